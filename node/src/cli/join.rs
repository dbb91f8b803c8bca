//! `pangea join`: a running node joins the pool of a token or a PIN, or asks members on the network to admit it, with six digits
//! that people compare.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use pangea_client::{AskedMember, ErrorKind, JoinedPool, MemberStatus, Membership};
use pangea_control::membership::{SixDigits, Token};
use serde::Serialize;

use super::args::{JsonArgs, OutputArgs, RpcArgs, duration, host_or_multiaddr};
use super::failure::{Exit, Failure, NOT_THERE};
use super::progress::Progress;
use super::session::note;
use super::{print, print_json};
use crate::config::{NodeConfig, PoolChoice};
use crate::net::peer_address;
use crate::pool::enrolment::Enrolment;

/// Join another pool
///
/// With a token or PIN of `pangea invite` the node joins at once; if none runs here, its certificate is stored for its next
/// start. Without either, members on the local network are asked: this
/// node and each of them show the same six digits, and once people have compared them, `pangea members accept` on the member
/// and the same digits here admit the node.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct JoinArgs {
    /// Token or PIN that `pangea invite` shows on a member
    #[arg(value_name = "TOKEN|PIN")]
    invitation: Option<String>,

    /// Member to ask, as a multiaddr or HOST:PORT; may be repeated [default: those on the local network]
    #[arg(long, value_name = "ADDR", value_parser = host_or_multiaddr)]
    address: Vec<String>,

    /// Six digits that the member's screen shows; without a terminal and without this, the digits are only shown
    #[arg(long, value_name = "DIGITS", conflicts_with = "invitation")]
    digits: Option<String>,

    /// Time for the member's owner to accept this node
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    timeout: Duration,

    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

const EXAMPLES: &str = "\
Examples:
  pangea join 481516                             with the PIN of `pangea invite`
  pangea join pangea1aetaajaiaejcbcodyqdn…       with its token
  pangea join                                    people compare six digits
  pangea join --address 192.168.1.20:7777 481516";

/// The result of `--json` while people compare digits.
#[derive(Serialize)]
struct Asked<'a> {
    asked: &'a [AskedMember],
}

pub(super) async fn run(args: JoinArgs, output: OutputArgs) -> Result<(), Failure> {
    let named = args.rpc.data_dir.data_dir.is_some() && args.rpc.rpc.is_none();
    // Whoever names a data directory means its node, not one that happens to be at the usual port: that one would join.
    let client = match named && args.rpc.data_dir.running_node().is_none() {
        true => None,
        false => args.rpc.node_if_there().await?,
    };
    let Some(client) = client else { return without_node(&args, &output).await };
    let membership = client.membership().await?;
    if let Some(invitation) = &args.invitation {
        let progress = Progress::waiting(&output, args.json, "joining");
        let joined = membership.join(invitation, &args.address).await?;
        drop(progress);
        return conclude(&joined, args.json.json);
    }
    let known = match &args.digits {
        // Whoever compares these digits already is not asked again, nor is anyone else.
        Some(digits) => membership
            .list()
            .await?
            .members
            .into_iter()
            .find(|member| member.state == "comparing" && plain(&member.digits) == plain(digits)),
        None => None,
    };
    let asked = match known {
        Some(MemberStatus { peer, name, digits, .. }) => {
            vec![AskedMember { peer, name, digits, ..AskedMember::default() }]
        }
        None => {
            let _progress = Progress::waiting(&output, args.json, "asking");
            membership.ask(&args.address).await.map_err(|error| match error.kind() {
                ErrorKind::Unavailable => Failure::from(error).hint(NOT_THERE),
                _ => error.into(),
            })?
        }
    };
    let name = client.status().await?.name;
    let digits = match &args.digits {
        Some(digits) => digits.clone(),
        None if !std::io::stdin().is_terminal() || args.json.json => {
            return if args.json.json { print_json(&Asked { asked: &asked }) } else { print(&show(&asked, &name)) };
        }
        None => {
            note(&output, show(&asked, &name));
            typed()?
        }
    };
    let same = |asked: &&AskedMember| plain(&asked.digits) == plain(&digits);
    let Some(member) = asked.iter().find(same) else {
        let message =
            "no member that this node asked shows these digits: somebody may stand between the two; nothing was joined";
        return Err(Failure::new(Exit::Untrusted, message));
    };
    note(&output, format!("The digits are the same. Waiting until {} accepts this node …", member.name));
    let progress = Progress::waiting(&output, args.json, "waiting");
    let joined = wait(&membership, member, args.timeout).await?;
    drop(progress);
    conclude(&joined, args.json.json)
}

/// Joins a pool for a node that does not run: its certificate is stored for its next start.
async fn without_node(args: &JoinArgs, output: &OutputArgs) -> Result<(), Failure> {
    let Some(invitation) = &args.invitation else {
        let message = "no node runs here, and people compare digits with one that does: start `pangea node`, then run this again; \
                       or join with a token or PIN of `pangea invite`";
        return Err(Failure::new(Exit::Unreachable, message));
    };
    let config = NodeConfig::of_data_dir(args.rpc.data_dir.data_dir.clone())?;
    if config.identity.ephemeral || !matches!(config.network.pool, PoolChoice::Own) {
        let message = "by its settings (config.toml and the environment), the node of this data directory keeps no identity, or is in \
                       a pool already: start it with `pangea node --join TOKEN`, without ephemeral, client, open and pool-key";
        return Err(Failure::usage(message));
    }
    let node = Enrolment::open(&config.identity.data_dir, &config.identity.name)?;
    let joined = if SixDigits::parse(invitation).is_some() {
        let addresses: Result<Vec<_>, _> = args.address.iter().map(|text| peer_address::parse(text)).collect();
        let addresses = addresses.map_err(|error| Failure::usage(error.to_string()))?;
        note(output, "No node runs here; looking for the member that shows this PIN …");
        let _progress = Progress::waiting(output, args.json, "looking");
        node.with_pin(&plain(invitation), &addresses).await?
    } else {
        let _progress = Progress::waiting(output, args.json, "joining");
        node.with_token(&Token::parse(invitation).map_err(|error| Failure::usage(error.to_string()))?).await?
    };
    if args.json.json {
        return print_json(&joined);
    }
    let JoinedPool { pool, member, role, .. } = &joined;
    print(&format!("Joined the pool of {member} ({pool}) as a {role}; `pangea node` is in it from its next start.\n"))
}

async fn wait(membership: &Membership, member: &AskedMember, timeout: Duration) -> Result<JoinedPool, Failure> {
    Ok(membership.await_acceptance(&member.peer, &member.digits, timeout).await?)
}

fn plain(digits: &str) -> String {
    digits.chars().filter(char::is_ascii_digit).collect()
}

/// Reads the digits that the member shows from the terminal.
fn typed() -> Result<String, Failure> {
    let mut error = std::io::stderr();
    let asked = error.write_all(b"Digits on the member's screen: ").and_then(|()| error.flush());
    asked.map_err(|error| Failure::failed(format!("cannot write to the terminal: {error}")))?;
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line) {
        Ok(_) if plain(&line).len() == 6 => Ok(line),
        Ok(_) => Err(Failure::usage("six digits are needed; nothing was joined")),
        Err(error) => Err(Failure::failed(format!("cannot read from the terminal: {error}"))),
    }
}

fn show(asked: &[AskedMember], name: &str) -> String {
    let mut text = String::from("Asked to join. Compare with `pangea members list` there, then accept there:\n\n");
    for member in asked {
        let (digits, plain) = (&member.digits, plain(&member.digits));
        text.push_str(&format!("  {digits}   on {}: pangea members accept {name} {plain}\n", member.name));
    }
    text.push_str("\nand confirm here with the same digits (pangea join --digits …).\n");
    text
}

fn conclude(joined: &JoinedPool, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(joined);
    }
    let JoinedPool { pool, member, role, connected } = joined;
    let peers = if *connected == 1 { "1 peer".to_owned() } else { format!("{connected} peers") };
    // The node that holds a pool's key was admitted by nobody.
    if member.is_empty() {
        return print(&format!("This node is in the pool {pool} already, as a {role}; connected to {peers}.\n"));
    }
    print(&format!("Joined the pool of {member} ({pool}) as a {role}; connected to {peers}.\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_are_shown_with_the_command_that_accepts_them() {
        let member = AskedMember { name: "mac1".to_owned(), digits: "048 151".to_owned(), ..AskedMember::default() };
        let text = show(&[member], "mac2");
        assert!(text.contains("048 151   on mac1: pangea members accept mac2 048151"), "{text}");
    }
}

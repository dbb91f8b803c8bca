//! `pangea members`: who belongs to a node's pool and who waits, as a table or JSON; accepts and revokes.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use pangea_client::{MemberStatus, MembersStatus};

use super::args::{JsonArgs, QueryArgs, RpcArgs, duration};
use super::failure::{Exit, Failure};
use super::table::{Align, Table, short_peer, shortened};
use super::{print, print_json};

/// Characters of a name, so that the table fits into 80 columns.
const NAME_CHARS: usize = 16;

/// Show and change who belongs to the pool of a node
#[derive(Subcommand, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) enum MembersCommand {
    /// List the members, and the nodes that wait to be accepted
    List(QueryArgs),
    /// Accept a waiting node, once its screen shows the same six digits
    ///
    /// Without digits, the node is asked to compare them: it shows six digits in its log and, where it runs on a terminal, asks
    /// there whether to join. They are the same here, or somebody stands between the two. On a terminal this command asks, too;
    /// otherwise it shows the digits and the command that accepts the node with them.
    Accept(AcceptArgs),
    /// Revoke a member for good, with everyone that it admitted; or turn a waiting node away
    ///
    /// Revocations are signed with the pool's key, so they are made on the node that holds it: the one whose pool others
    /// joined. Every member learns of them, also those that are away now. The revoked identity can never return; the device
    /// can, with a new identity and a new invitation.
    Revoke(RevokeArgs),
}

/// `pangea members accept`.
#[derive(Args, Clone, Debug)]
pub(super) struct AcceptArgs {
    /// Name or peer id of the waiting node
    node: String,

    /// The six digits on its screen; without them it is asked to show some
    #[arg(num_args = 0..=2)]
    digits: Vec<String>,

    /// Role of the node: member or client
    #[arg(long, value_name = "ROLE", default_value = "member", value_parser = ["member", "client"])]
    role: String,

    /// Time that the node belongs to the pool
    #[arg(long, value_name = "TIME", default_value = "3650d", value_parser = duration)]
    member_for: Duration,

    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// `pangea members revoke`.
#[derive(Args, Clone, Debug)]
pub(super) struct RevokeArgs {
    /// Name or peer id of the node
    node: String,

    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

const EXAMPLES: &str = "\
Examples:
  pangea members list
  pangea members accept mac2           compares six digits with it
  pangea members accept mac2 481516    its screen shows these
  pangea members revoke old-phone";

pub(super) async fn run(command: MembersCommand) -> Result<(), Failure> {
    match command {
        MembersCommand::List(args) => {
            let members = args.rpc.node().await?.membership().await?.list().await?;
            if args.json.json { print_json(&members) } else { print(&show(&members)) }
        }
        MembersCommand::Accept(args) => {
            let membership = args.rpc.node().await?.membership().await?;
            let mut digits = args.digits.concat();
            if digits.is_empty() {
                let pending = membership.compare(&args.node).await?;
                if args.json.json {
                    return print_json(&pending);
                }
                if !std::io::stdin().is_terminal() {
                    return print(&shown(&pending, &args.node));
                }
                if !are_the_same(&pending)? {
                    let turned_away = membership.revoke(&pending.peer).await?;
                    conclude(&turned_away, "Turned away", false)?;
                    return Err(Failure::new(Exit::Untrusted, "the digits were not confirmed; nobody was accepted"));
                }
                digits = pending.digits;
            }
            let accepted = membership.accept(&args.node, &digits, &args.role, args.member_for).await?;
            conclude(&accepted, "Accepted", args.json.json)
        }
        MembersCommand::Revoke(args) => {
            let revoked = args.rpc.node().await?.membership().await?.revoke(&args.node).await?;
            let what = if revoked.state == "pending" { "Turned away" } else { "Revoked" };
            conclude(&revoked, what, args.json.json)
        }
    }
}

/// The digits of a waiting node, and how to accept it with them.
fn shown(pending: &MemberStatus, named: &str) -> String {
    let plain: String = pending.digits.chars().filter(char::is_ascii_digit).collect();
    format!(
        "The screen of {} must show {}. If it does, accept it:\n  pangea members accept {named} {plain}\n",
        name_of(pending),
        pending.digits
    )
}

/// Asks whether both screens show the same digits.
fn are_the_same(pending: &MemberStatus) -> Result<bool, Failure> {
    let mut error = std::io::stderr();
    let question = format!("Does the screen of {} show {}? [y/N] ", name_of(pending), pending.digits);
    let asked = error.write_all(question.as_bytes()).and_then(|()| error.flush());
    asked.map_err(|error| Failure::failed(format!("cannot write to the terminal: {error}")))?;
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    read.map_err(|error| Failure::failed(format!("cannot read from the terminal: {error}")))?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn name_of(member: &MemberStatus) -> &str {
    if member.name.is_empty() { &member.peer } else { &member.name }
}

fn conclude(member: &MemberStatus, what: &str, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(member);
    }
    print(&format!("{what} {} ({}).\n", if member.name.is_empty() { "a node" } else { &member.name }, member.peer))
}

fn show(status: &MembersStatus) -> String {
    if status.open {
        return "The pool is OPEN: whoever is on the network is in (the node runs with --open).\n".to_owned();
    }
    let mut table = Table::new([
        ("peer", Align::Left),
        ("name", Align::Left),
        ("state", Align::Left),
        ("role", Align::Left),
        ("admitted by", Align::Left),
        ("digits", Align::Left),
    ]);
    for member in &status.members {
        let by = match member.admitted_by.as_str() {
            "" if matches!(member.state.as_str(), "pending" | "comparing" | "revoked") => "",
            "" => "the pool's key",
            by => by,
        };
        table.row([
            short_peer(&member.peer),
            shortened(&member.name, NAME_CHARS),
            member.state.clone(),
            member.role.clone(),
            shortened(by, NAME_CHARS),
            member.digits.clone(),
        ]);
    }
    let holder = if status.holds_key { "this node holds its key" } else { "another node holds its key" };
    let mut text = format!("Pool {}; {holder}.\n\n{}", status.pool, table.render());
    let in_state = |state: &str, with_digits: bool| {
        let is_one = |member: &&MemberStatus| member.state == state && member.digits.is_empty() != with_digits;
        status.members.iter().find(is_one).map(|member| shortened(name_of(member), NAME_CHARS))
    };
    if let Some(waiting) = in_state("pending", true) {
        text.push_str(&format!(
            "\nIf the screen of {waiting} shows the same digits, accept it:\n  pangea members accept NAME DIGITS\n\
             If it shows others, turn it away:\n  pangea members revoke NAME\n",
        ));
    }
    if let Some(stranger) = in_state("pending", false) {
        text.push_str(&format!(
            "\n{stranger} belongs to another pool. Admit it, after both screens show the same digits:\n  \
             pangea members accept NAME\n"
        ));
    }
    if let Some(member) = in_state("comparing", true) {
        text.push_str(&format!(
            "\nIf the screen of {member} shows the same digits, join its pool:\n  pangea join --digits DIGITS\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_waiting_nodes_are_shown_in_80_columns() {
        let member = |name: &str, state: &str, by: &str, digits: &str| MemberStatus {
            peer: "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xa".to_owned(),
            name: name.to_owned(),
            state: state.to_owned(),
            role: "member".to_owned(),
            admitted_by: by.to_owned(),
            digits: digits.to_owned(),
            ..MemberStatus::default()
        };
        let status = MembersStatus {
            pool: "01020304".to_owned(),
            holds_key: true,
            members: vec![
                member("a-name-that-is-very-long-indeed", "this node", "", ""),
                member("mac2", "connected", "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xb", ""),
                member("mac3", "pending", "", "048 151"),
                member("mac4", "pending", "", ""),
                member("mac5", "comparing", "", "162 342"),
            ],
            ..MembersStatus::default()
        };
        let text = show(&status);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in [
            "this node holds its key",
            "the pool's key",
            "048 151",
            "members accept",
            "mac4 belongs to another pool",
            "join --digits",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert!(show(&MembersStatus { open: true, ..MembersStatus::default() }).contains("OPEN"));
    }
}

//! `pangea members`: who belongs to a node's pool and who waits, as a table or JSON; accepts and revokes.

use std::time::Duration;

use clap::{Args, Subcommand};
use pangea_client::{MemberStatus, MembersStatus};

use super::args::{JsonArgs, QueryArgs, RpcArgs, duration};
use super::failure::Failure;
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
    /// Accept a node that asked to join, once its screen shows the same six digits
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

    /// The six digits on its screen
    #[arg(num_args = 1..=2)]
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
  pangea members accept mac2 481516
  pangea members revoke old-phone";

pub(super) async fn run(command: MembersCommand) -> Result<(), Failure> {
    match command {
        MembersCommand::List(args) => {
            let members = args.rpc.node().await?.membership().await?.list().await?;
            if args.json.json { print_json(&members) } else { print(&show(&members)) }
        }
        MembersCommand::Accept(args) => {
            let membership = args.rpc.node().await?.membership().await?;
            let digits = args.digits.concat();
            if digits.is_empty() {
                return Err(Failure::usage(
                    "say which six digits the screen of the other node shows: pangea members accept NAME DIGITS",
                ));
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
            "" if matches!(member.state.as_str(), "pending" | "revoked") => "",
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
    if let Some(waiting) = status.members.iter().find(|member| member.state == "pending") {
        text.push_str(&format!(
            "\nIf the screen of {} shows the same digits, accept it:\n  pangea members accept NAME DIGITS\n\
             If it shows others, turn it away:\n  pangea members revoke NAME\n",
            shortened(&waiting.name, NAME_CHARS)
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
            ],
            ..MembersStatus::default()
        };
        let text = show(&status);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in ["this node holds its key", "the pool's key", "048 151", "members accept"] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert!(show(&MembersStatus { open: true, ..MembersStatus::default() }).contains("OPEN"));
    }
}

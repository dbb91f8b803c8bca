//! `pangea invite` and `pangea token`: an invitation to the pool as a token, a QR code in the terminal and a PIN, or JSON.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use pangea_client::{Invitation, InviteOptions};
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use serde::Serialize;

use super::args::{JsonArgs, RpcArgs, duration};
use super::failure::Failure;
use super::{print, print_json};

/// Invite another device to the pool of a node
///
/// Shows a token, a QR code with it, and a PIN of six digits; on the other device: `pangea node --join TOKEN`, or, while its
/// node runs, `pangea join TOKEN` or `pangea join PIN`. None of them contains the pool's key. The node must be running when the
/// invitation is used. A PIN is for one device, for ten minutes, and ends after three tries.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct InviteArgs {
    /// Print the token alone
    #[arg(long)]
    token: bool,

    /// What is invited.
    #[command(flatten)]
    terms: TermsArgs,

    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// Print an invitation token: the same as `pangea invite --token`
#[derive(Args, Clone, Debug)]
pub(super) struct TokenArgs {
    /// What is invited.
    #[command(flatten)]
    terms: TermsArgs,

    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// What an invitation gives.
#[derive(Args, Clone, Debug)]
struct TermsArgs {
    /// Role of whoever joins: member, or client, which uses the pool and computes for nobody
    #[arg(long, value_name = "ROLE", default_value = "member", value_parser = ["member", "client"])]
    role: String,

    /// Time that the token can be used
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    expires: Duration,

    /// Time that the device belongs to the pool after it has joined
    #[arg(long, value_name = "TIME", default_value = "3650d", value_parser = duration)]
    member_for: Duration,

    /// Devices that can use the token, such as those that run with --ephemeral
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
}

const EXAMPLES: &str = "\
Examples:
  pangea invite                          shows a PIN, a QR code and a token
  pangea invite --token --expires 10m    for a script
  pangea invite --role client --member-for 7d
  pangea node --join \"$(ssh mac1 pangea token)\"";

/// The result of `--token --json`.
#[derive(Serialize)]
struct TokenAlone {
    token: String,
    expires: u64,
}

pub(super) async fn run(args: InviteArgs) -> Result<(), Failure> {
    let invitation = invite(&args.rpc, args.terms, !args.token).await?;
    match (args.token, args.json.json) {
        (true, json) => print_token(invitation, json),
        (false, true) => print_json(&invitation),
        (false, false) => print(&show(&invitation, std::io::stdout().is_terminal())),
    }
}

pub(super) async fn run_token(args: TokenArgs) -> Result<(), Failure> {
    print_token(invite(&args.rpc, args.terms, false).await?, args.json.json)
}

async fn invite(rpc: &RpcArgs, terms: TermsArgs, pin: bool) -> Result<Invitation, Failure> {
    let TermsArgs { role, expires, member_for, uses } = terms;
    let options = InviteOptions { role, valid: expires, member_for, uses, pin };
    Ok(rpc.node().await?.membership().await?.invite(&options).await?)
}

fn print_token(invitation: Invitation, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&TokenAlone { token: invitation.token, expires: invitation.expires_unix_s });
    }
    print(&format!("{}\n", invitation.token))
}

fn show(invitation: &Invitation, code: bool) -> String {
    let Invitation { token, pin, pin_life_s, .. } = invitation;
    let mut text = String::new();
    if let (3, Some((first, last))) = (pin.len() / 2, pin.split_at_checked(3)) {
        text.push_str(&format!("  PIN    {first} {last}    for one device, within {} minutes\n\n", pin_life_s / 60));
        text.push_str(&format!("  On a device of this network, where `pangea node` runs:\n    pangea join {pin}\n\n"));
    }
    text.push_str("  On any device that can reach this one:\n");
    text.push_str(&format!("    pangea node --join {token}\n"));
    if let Some(code) = Some(token).filter(|_| code).and_then(|token| qr_code(token)) {
        text.push_str(&format!("\n{code}\n"));
    }
    text
}

/// The token as a QR code, two modules per character; `None` if it is too long for one. In upper case it takes the dense
/// alphanumeric mode, and a token is read in either case.
fn qr_code(token: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(token.to_uppercase(), EcLevel::L).ok()?;
    // Dark modules stay dark on a terminal with a light foreground.
    Some(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_shows_pin_token_and_on_a_terminal_a_code_that_fits_into_80_columns() {
        let invitation = Invitation {
            token: format!("pangea1{}", "a2".repeat(110)),
            pin: "012345".to_owned(),
            expires_unix_s: 1,
            pin_life_s: 600,
        };
        let text = show(&invitation, true);
        for part in ["PIN    012 345", "within 10 minutes", "pangea join 012345", &invitation.token] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        let code: Vec<&str> = text.lines().filter(|line| line.contains('█')).collect();
        assert!(code.len() > 20 && code.iter().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!show(&invitation, false).contains('█'));
    }
}

//! `pangea doctor`: what is wrong and what to do, for people or as JSON.

use clap::Args;
use serde::Serialize;

use super::args::{JsonArgs, OutputArgs, RpcArgs};
use super::failure::Failure;
use super::progress::Progress;
use super::table::wrapped;
use super::{print, print_json};
use crate::config::data_dir;
use crate::data_dir::NodeFile;
use crate::doctor::{Finding, Level, look, look_at_node};

const EXAMPLES: &str = "\
Examples:
  pangea doctor          check this machine, and the node that runs on it
  pangea doctor --json   the same for programs

Exit codes: 0 nothing is wrong, 1 something does not work.";

/// Find out what is wrong with this machine and its node, and what to do
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct DoctorArgs {
    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,
    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// The result as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    /// Whether nothing is a problem.
    ok: bool,
    findings: &'a [Finding],
}

pub(super) async fn run(args: DoctorArgs, output: OutputArgs) -> Result<(), Failure> {
    let progress = Progress::waiting(&output, args.json, "looking");
    let folder = data_dir(args.rpc.data_dir.data_dir.clone())?;
    let node = NodeFile::of_running(&folder);
    let mut findings = look(&folder, node.as_ref());
    if node.is_some() || args.rpc.rpc.is_some() {
        let client = args.rpc.node().await?;
        // A node of an earlier release does not know the question.
        let ways = client.ways_back().await.unwrap_or_default();
        findings.extend(look_at_node(&client.status().await?, &client.peers().await?, &ways));
    }
    drop(progress);
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    match args.json.json {
        true => print_json(&Shown { ok: problems == 0, findings: &findings })?,
        false => print(&show(&findings))?,
    }
    match problems {
        0 => Ok(()),
        1 => Err(Failure::failed("1 problem was found")),
        problems => Err(Failure::failed(format!("{problems} problems were found"))),
    }
}

fn show(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Good => "ok     ",
            Level::Note => "note   ",
            Level::Problem => "PROBLEM",
        };
        text.push_str(&wrapped(&format!("{mark}  {}: {}", finding.check, finding.what), 9));
        if !finding.advice.is_empty() {
            text.push_str(&wrapped(&format!("         {}", finding.advice), 9));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_lines_that_fit_a_terminal() {
        let long =
            "a sentence that is so long that it does not fit into one line of a terminal with eighty columns at all";
        let finding =
            |level, advice: &str| Finding { check: "disk", level, what: long.to_owned(), advice: advice.to_owned() };
        let text = show(&[finding(Level::Good, ""), finding(Level::Problem, "do this")]);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("PROBLEM  disk: a sentence") && text.contains("\n         do this\n"), "{text}");
    }
}

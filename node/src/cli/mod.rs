//! The commands of the binary `pangea`.
//!
//! * `args`: flags that several commands share; other flags are defined with their command, those of `pangea node` in
//!   [`config`](crate::config). `failure`: failures and exit codes.
//! * `chat`, with `chat_node` for a node's model; `top`, with `top_state` and `top_view`; `matmul`, `peers`, `status`,
//!   `topology`, `doctor`, `service`, `man`, `jobs`, `keys`, `launch`, `invite`, `join`, `load` (with `drop`), `members`, `models`,
//!   `models_plan`, `receipts`, `perplexity`, `bench_matmul`, `bench_net`, `bench_llm`, `demo`: the commands; `demo_node`: the
//!   demo's child processes, `demo_model`: their language model.
//! * `session`, `multiplier`: the node that a command uses, or a fabric in this process.
//! * `matrix`, `product_file`: operands and the product's file.
//! * `log`, `progress`, `table`, `node_names`, `terminal`: output for people.
//!
//! Results go to standard output, everything else to standard error. Nothing is computed here.

mod args;
mod bench_llm;
mod bench_matmul;
mod bench_net;
mod chat;
mod chat_node;
mod demo;
mod demo_model;
mod demo_node;
mod doctor;
mod failure;
mod invite;
mod jobs;
mod join;
mod keys;
mod launch;
mod load;
mod log;
mod matmul;
mod matrix;
mod members;
mod models;
mod models_plan;
mod multiplier;
mod node_names;
mod peers;
mod perplexity;
mod product_file;
mod progress;
mod receipts;
mod service;
mod session;
mod status;
mod table;
mod terminal;
mod top;
mod top_state;
mod top_view;
mod topology;

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::task::LocalSet;

use crate::config::{LogConfig, LogFormat, LogLevel, NodeConfig, RawNodeConfig};
use crate::traces::Traces;
use args::{OutputArgs, QueryArgs};
use failure::Failure;

const EXAMPLES: &str = "\
Examples:
  pangea demo                          see it work; no set-up needed
  pangea node                          on every machine
  pangea invite                        on the first; says how the others join
  pangea matmul A.npy B.npy -o C.npy   multiply two files on all of them
  pangea chat 'Why is the sky blue?'   ask a model
  pangea peers                         list the peers
  pangea top                           watch them work

Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 the node named with --rpc
cannot be reached, 4 no trustworthy result could be had";

/// Pools the devices you own into one compute fabric whose results can be trusted
#[derive(Parser, Debug)]
#[command(name = "pangea", version, max_term_width = 80, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    output: OutputArgs,

    #[command(subcommand)]
    command: Option<Command>,
}

/// Every command; its flags and help are defined in its file.
#[derive(Subcommand, Debug)]
enum Command {
    Node(Box<RawNodeConfig>),
    Demo(demo::DemoArgs),
    Matmul(Box<matmul::MatmulArgs>),
    Chat(Box<chat::ChatArgs>),
    Peers(peers::PeersArgs),
    /// Show the nodes of the pool, its master, and the links between them
    Topology(QueryArgs),
    Top(top::TopArgs),
    /// Show the identity, resources and counters of a node
    Status(QueryArgs),
    /// List the jobs of a node: products and answers
    Jobs(QueryArgs),
    Invite(invite::InviteArgs),
    Token(invite::TokenArgs),
    Join(join::JoinArgs),
    #[command(subcommand)]
    Members(members::MembersCommand),
    Launch(launch::LaunchArgs),
    Doctor(doctor::DoctorArgs),
    #[command(subcommand)]
    Service(service::ServiceCommand),
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    #[command(subcommand)]
    Models(models::ModelsCommand),
    Load(load::LoadArgs),
    Drop(load::DropArgs),
    #[command(subcommand)]
    Receipts(receipts::ReceiptsCommand),
    /// Measure products, links and models
    #[command(subcommand)]
    Bench(BenchCommand),
    Perplexity(perplexity::PerplexityArgs),
    /// Write manual pages into a folder, one for each command
    Man {
        /// The folder, such as /usr/local/share/man/man1
        folder: std::path::PathBuf,
    },
    /// Write shell completions to standard output
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand, Debug)]
enum BenchCommand {
    Matmul(bench_matmul::BenchMatmulArgs),
    Net(bench_net::BenchNetArgs),
    Llm(bench_llm::BenchLlmArgs),
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  pangea completions bash > ~/.local/share/bash-completion/completions/pangea
  pangea completions zsh > \"${fpath[1]}/_pangea\"
  pangea completions fish > ~/.config/fish/completions/pangea.fish";

/// Runs the command line and returns the exit code.
pub fn main() -> ExitCode {
    crate::copying::make_fast();
    match run(&Cli::command().get_matches()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.into()
        }
    }
}

fn run(typed: &ArgMatches) -> Result<(), Failure> {
    let cli = Cli::from_arg_matches(typed).map_err(|error| Failure::usage(error.to_string()))?;
    let output = cli.output;
    let level = LogLevel::from_flags(output.quiet, output.verbose);
    let Some(command) = cli.command else {
        return print(&Cli::command().render_help().to_string());
    };
    if let Some(node) = typed.subcommand_matches("node") {
        let config = NodeConfig::resolve(node, level)?;
        let traces = config.traces.as_ref().map(Traces::new).transpose()?;
        log::start(config.log, traces.as_ref());
        return Ok(crate::daemon::run(config, traces)?);
    }
    // Log lines of libraries would hide the result.
    let level = if output.verbose == 0 { LogLevel::Error } else { level };
    log::start(LogConfig { level, format: LogFormat::Text }, None);
    match command {
        Command::Node(_) => Ok(()),
        Command::Matmul(args) => block_on(matmul::run(*args, output)),
        Command::Chat(args) => chat::run(&args, output),
        Command::Peers(args) => block_on(peers::run(args, output)),
        Command::Topology(args) => block_on(topology::run(args)),
        Command::Top(args) => top::run(args),
        Command::Jobs(args) => block_on(jobs::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Invite(args) => block_on(invite::run(args)),
        Command::Token(args) => block_on(invite::run_token(args)),
        Command::Join(args) => block_on(join::run(args, output)),
        Command::Members(command) => block_on(members::run(command)),
        Command::Bench(BenchCommand::Matmul(args)) => block_on(bench_matmul::run(args, output)),
        Command::Bench(BenchCommand::Net(args)) => block_on(bench_net::run(args, output)),
        Command::Bench(BenchCommand::Llm(args)) => bench_llm::run(args, output),
        Command::Launch(args) => block_on(launch::run(args, output)),
        Command::Service(command) => service::run(command),
        Command::Doctor(args) => block_on(doctor::run(args, output)),
        Command::Keys(command) => keys::run(command, output),
        Command::Load(args) => block_on(load::run_load(args, output)),
        Command::Drop(args) => block_on(load::run_drop(args, output)),
        Command::Models(command) => models::run(command, output),
        Command::Receipts(command) => receipts::run(command, output),
        Command::Perplexity(args) => perplexity::run(args, output),
        Command::Demo(args) => {
            let stays = Cell::new(false);
            // Ctrl-C is how a demo that stays ends; its nodes are gone by then.
            let stopped =
                || if stays.get() { print(&format!("\n{}", demo::GONE)) } else { Err(Failure::interrupted()) };
            block_on_unless_stopped(demo::run(args, output, &stays), stopped)
        }
        Command::Man { folder } => std::fs::create_dir_all(&folder)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), &folder))
            .map_err(|error| {
                Failure::failed(format!("cannot write pages to {}: {error}; name another folder", folder.display()))
            }),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pangea", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// Checks a command line of `pangea node` as the node itself would.
///
/// # Errors
/// What is wrong with it.
fn check_command_line(words: &[String]) -> Result<(), Failure> {
    let typed = Cli::command().try_get_matches_from(words).map_err(|error| {
        // The failure's own output begins with that word.
        let said = error.to_string();
        Failure::usage(said.strip_prefix("error: ").unwrap_or(&said))
    })?;
    if let Some(node) = typed.subcommand_matches("node") {
        NodeConfig::resolve(node, LogLevel::default())?;
    }
    Ok(())
}

/// Runs a command. Ctrl-C, SIGTERM and a closed terminal drop the command's future, which ends its work on every node.
fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    block_on_unless_stopped(command, || Err(Failure::interrupted()))
}

/// The same, with the result of a command that was stopped.
fn block_on_unless_stopped(
    command: impl Future<Output = Result<(), Failure>>,
    stopped: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    // Boxed, so that the runtime is compiled once and not for every command.
    match run_unless_stopped(Box::pin(command))? {
        Some(result) => result,
        None => stopped(),
    }
}

/// What `command` gives; none if it was stopped before, and dropped.
fn run_unless_stopped(
    command: Pin<Box<dyn Future<Output = Result<(), Failure>> + '_>>,
) -> Result<Option<Result<(), Failure>>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start an asynchronous runtime: {error}")))?;
    let result = LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            biased;
            () = stop_signal() => None,
            result = command => Some(result),
        }
    });
    // Work on other threads must not delay the exit.
    runtime.shutdown_background();
    Ok(result)
}

/// Returns at the first SIGINT, SIGTERM or SIGHUP.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let mut waiting: Vec<_> = signals.into_iter().flatten().collect();
    if waiting.is_empty() {
        // Without handlers only the default action of the signals remains.
        std::future::pending::<()>().await;
    }
    let any = waiting.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures::future::select_all(any).await;
}

/// Writes a result to standard output. A closed pipe is not an error.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write, stdout};
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a result as one JSON document to standard output.
fn print_json(result: &impl serde::Serialize) -> Result<(), Failure> {
    match serde_json::to_string_pretty(result) {
        Ok(mut text) => {
            text.push('\n');
            print(&text)
        }
        Err(error) => Err(Failure::failed(format!("cannot write the result as JSON: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }
}

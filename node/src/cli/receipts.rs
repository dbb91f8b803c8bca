//! `pangea receipts list`, `show` and `verify`: receipts from the disk, as tables or JSON. [`crate::trust::verify()`]
//! does the checks; no node is asked.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use pangea_client::ErrorKind;
use pangea_compute::chat::calendar::CalendarTime;
use pangea_compute::commit::ReplayPace;
use pangea_compute::model::{Manifest, ModelFile};
use pangea_compute::{Cancel, Engine, Pool};

use super::args::{DataDirArgs, JsonArgs, OutputArgs};
use super::failure::{Exit, Failure};
use super::progress::Progress;
use super::table::{Align, Table, facts, short_peer, shortened};
use super::{print, print_json};
use crate::models::{self, Found};
use crate::trust::{OutputCheck, Receipt, ReceiptStore, StageCheck, Verification, Weights, store, verify};
use crate::{config, host};
use pangea_units::LayerRange;

const VERIFY_EXAMPLES: &str = "\
Every signature is checked, the answer is computed again from the model's file,
and the result is compared with what each stage signed. No node is contacted.

Examples:
  pangea receipts verify 3f9a01c27b6e
  pangea receipts verify receipt.json --model SmolLM2-135M-Instruct.Q4_1.gguf

Exit codes: 0 the receipt holds, 4 a signature or a stage does not";

/// List, show and verify the receipts of answers
#[derive(Subcommand, Debug)]
pub(super) enum ReceiptsCommand {
    /// List the receipts of this node's answers, latest first
    List(ReceiptsListArgs),
    /// Show who computed an answer, and who audited it
    Show(ReceiptsShowArgs),
    /// Verify the signatures, stages and tokens of a receipt without a node
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify(ReceiptsVerifyArgs),
}

/// `receipts list`.
#[derive(Args, Clone, Debug)]
pub(super) struct ReceiptsListArgs {
    /// Number of receipts
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Where receipts are.
    #[command(flatten)]
    folder: DataDirArgs,
    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// `receipts show`.
#[derive(Args, Clone, Debug)]
pub(super) struct ReceiptsShowArgs {
    /// Id of a receipt, or its first characters
    #[arg(value_name = "ID")]
    id: String,
    /// Where receipts are.
    #[command(flatten)]
    folder: DataDirArgs,
    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// `receipts verify`.
#[derive(Args, Clone, Debug)]
pub(super) struct ReceiptsVerifyArgs {
    /// Id of a receipt, its first characters, or a file with a receipt
    #[arg(value_name = "ID|FILE")]
    receipt: String,
    /// Name of the model, or a .gguf file [default: the model that the receipt names]
    #[arg(short, long, value_name = "NAME|PATH")]
    model: Option<String>,
    /// Compute threads [default: fast physical cores]
    #[arg(short, long, value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,
    /// Where receipts and models are.
    #[command(flatten)]
    folder: DataDirArgs,
    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// Characters of the columns for model and verdict together, so that the table fits into 80 columns.
const MODEL_AND_VERDICT_CHARS: usize = 36;

/// Rows of one pass; more are not faster.
const CHUNK_ROWS: usize = 256;

/// Weights may take this machine's memory divided by this.
const MEMORY_SHARE: u64 = 2;

pub(super) fn run(command: ReceiptsCommand, output: OutputArgs) -> Result<(), Failure> {
    match command {
        ReceiptsCommand::List(args) => list(&args),
        ReceiptsCommand::Show(args) => show(&args),
        ReceiptsCommand::Verify(args) => check(&args, output),
    }
}

fn data_dir(args: &DataDirArgs) -> Result<PathBuf, Failure> {
    Ok(config::data_dir(args.data_dir.clone())?)
}

fn list(args: &ReceiptsListArgs) -> Result<(), Failure> {
    let store = ReceiptStore::new(&data_dir(&args.folder)?);
    let receipts = store.list(args.limit as usize)?;
    if args.json.json {
        return print_json(&receipts);
    }
    if receipts.is_empty() {
        return print(&format!(
            "No receipts in {}.\nA node keeps a receipt of each answer that other nodes helped to compute.\n",
            store.folder().display()
        ));
    }
    let mut table = Table::new([
        ("receipt", Align::Left),
        ("when (UTC)", Align::Left),
        ("model", Align::Left),
        ("tokens", Align::Right),
        ("verdict", Align::Left),
    ]);
    let verdicts = receipts.iter().map(|receipt| receipt.verdict.name().len()).chain(["verdict".len()]);
    let model_chars = MODEL_AND_VERDICT_CHARS - verdicts.max().unwrap_or_default();
    for receipt in &receipts {
        table.row([
            receipt.id.clone(),
            time(receipt.unix_ms),
            shortened(&receipt.model, model_chars),
            receipt.answer_tokens.to_string(),
            receipt.verdict.name().to_owned(),
        ]);
    }
    print(&table.render())
}

fn show(args: &ReceiptsShowArgs) -> Result<(), Failure> {
    let receipt = kept(&args.folder, &args.id)?;
    if args.json.json {
        return print_json(&receipt);
    }
    let tokens = format!("{} after {} of the prompt", receipt.answer_tokens.len(), receipt.prompt_tokens.len());
    // Only the HTTP API gives requests an id.
    let request = Some(("request", shortened(&receipt.request, 60))).filter(|(_, request)| !request.is_empty());
    let mut known = vec![("receipt", receipt.id.clone())];
    known.extend(request);
    known.extend([
        ("when", format!("{} UTC", time(receipt.unix_ms))),
        ("asked", receipt.coordinator.clone()),
        ("model", shortened(&receipt.model.name, 60)),
        ("digest", receipt.model.digest.to_string()),
        ("tokens", tokens),
        ("verdict", receipt.verdict.name().to_owned()),
    ]);
    let mut text = facts(&known);
    for (index, segment) in receipt.segments.iter().enumerate() {
        // The token after a position is chosen at that position.
        let first = segment.chosen_from.saturating_add(2).saturating_sub(receipt.prompt_tokens.len() as u64);
        text.push_str(&format!("\n  From token {first} of the answer on:\n"));
        let mut table = Table::new([
            ("layers", Align::Left),
            ("peer", Align::Left),
            ("signed", Align::Left),
            ("audit", Align::Left),
        ]);
        for (stage, of) in segment.stages.iter().enumerate() {
            let audits = receipt.audits.iter().filter(|audit| (audit.segment, audit.stage) == (index, stage));
            let audits: Vec<String> = audits
                .map(|audit| {
                    let found = if audit.holds { "right" } else { "WRONG" };
                    format!("{found}, by {}", short_peer(&audit.by))
                })
                .collect();
            let audits = if audits.is_empty() { "none".to_owned() } else { shortened(&audits.join("; "), 36) };
            table.row([
                LayerRange::from(of.layers).to_string(),
                short_peer(&of.peer),
                yes(stage < segment.claims.len()),
                audits,
            ]);
        }
        text.push_str(&table.render());
        text.push_str(&ended(segment.ended.as_deref()));
    }
    text.push_str(&format!("\nCheck it with:\n  pangea receipts verify {}{}\n", receipt.id, there(&args.folder)));
    print(&text)
}

fn check(args: &ReceiptsVerifyArgs, output: OutputArgs) -> Result<(), Failure> {
    let threads = config::threads(args.threads);
    let data_dir = data_dir(&args.folder)?;
    let receipt = find(&args.folder, &args.receipt)?;
    let path = model_of(&data_dir.join("models"), &receipt, args)?;
    let found = replay(&receipt, &path, threads, &Progress::waiting(&output, args.json, "hashing"))?;
    if args.json.json {
        print_json(&found)?;
    } else {
        print(&report(&receipt, &found))?;
    }
    match found.holds {
        true => Ok(()),
        false => Err(Failure::new(Exit::Untrusted, format!("the receipt {} does not hold", receipt.id))),
    }
}

/// Checks every signature of a receipt and computes its answer again from the model's file.
pub(super) fn replay(
    receipt: &Receipt,
    path: &Path,
    threads: usize,
    progress: &Progress,
) -> Result<Verification, Failure> {
    let file = ModelFile::open(path)?;
    let manifest = Manifest::of(file.gguf(), threads)?;
    // Nothing is computed with another model.
    if manifest.digest() == receipt.model.digest {
        progress.note(format!("Computing {} tokens again with {}.", receipt.tokens().len(), path.display()));
    }
    let engine = Engine::from(Pool::new(threads)?);
    progress.phase("replaying", receipt.tokens().len() as u64);
    let cancel = Cancel::new();
    let mut pace =
        ReplayPace { chunk_rows: CHUNK_ROWS, cancel: &cancel, between: &mut |rows| progress.done(rows as u64) };
    let room = host::memory_bytes().map_or(u64::MAX, |installed| installed / MEMORY_SHARE);
    let mut weights = Weights { file: &file, manifest: &manifest, room, fetch: &mut |_| Ok(()) };
    Ok(verify(receipt, &mut weights, &engine, &mut pace)?)
}

/// The receipt with this id in a data directory.
fn kept(folder: &DataDirArgs, id: &str) -> Result<Receipt, Failure> {
    let store = ReceiptStore::new(&data_dir(folder)?);
    match store.get(id) {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(Failure::usage(match store.list(1)?.is_empty() {
            true => format!(
                "no receipts in {}; name another node's data directory with --data-dir",
                store.folder().display()
            ),
            false => format!("no receipt {id:?}; see `pangea receipts list{}`", there(folder)),
        })),
        found => Ok(found?),
    }
}

/// The receipt in a file, or the one with an id.
fn find(folder: &DataDirArgs, receipt: &str) -> Result<Receipt, Failure> {
    let path = Path::new(receipt);
    match path.is_file() {
        true => store::read(path).map_err(|error| match error.kind() {
            ErrorKind::InvalidInput => {
                Failure::from(error).hint("such a file is what `pangea receipts show ID --json` writes")
            }
            _ => error.into(),
        }),
        false if receipt.contains(std::path::MAIN_SEPARATOR) || receipt.ends_with(".json") => {
            let why = if path.is_dir() { "is a folder, not a receipt" } else { "does not exist" };
            Err(Failure::usage(format!("the receipt file {receipt} {why}"))
                .hint("`pangea receipts list` shows the receipts here"))
        }
        false => kept(folder, receipt),
    }
}

/// Flags that a further command needs in order to use the same data directory.
fn there(folder: &DataDirArgs) -> String {
    folder.data_dir.as_ref().map_or_else(String::new, |folder| format!(" --data-dir {}", folder.display()))
}

/// The named model; otherwise the one with the receipt's model name, or its file name.
fn model_of(folder: &Path, receipt: &Receipt, args: &ReceiptsVerifyArgs) -> Result<PathBuf, Failure> {
    if let Some(named) = &args.model {
        return Ok(models::resolve(folder, named)?);
    }
    let name = &receipt.model.name;
    match models::locate(folder, name) {
        Ok(Found::Local(path)) => Ok(path),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        elsewhere => models::resolve(folder, &receipt.model.file).map_err(|_| {
            let fetch = match elsewhere {
                Ok(_) => format!(", or download it: pangea models pull {name}{}", there(&args.folder)),
                Err(_) => String::new(),
            };
            Failure::usage(format!(
                "the receipt's model {name} is not on this machine; name its file with --model{fetch}"
            ))
        }),
    }
}

fn report(receipt: &Receipt, found: &Verification) -> String {
    let mut text = String::new();
    for segment in &found.segments {
        let mut table = Table::new([
            ("layers", Align::Left),
            ("peer", Align::Left),
            ("signed", Align::Left),
            ("as asked", Align::Left),
            ("linked", Align::Left),
            ("received", Align::Left),
            ("output", Align::Left),
        ]);
        for stage in &segment.stages {
            table.row([
                LayerRange::from(stage.layers).to_string(),
                short_peer(&stage.peer),
                yes(stage.signed),
                yes(stage.asked),
                yes(stage.linked),
                yes(stage.received),
                output_of(stage),
            ]);
        }
        text.push_str(&table.render());
        text.push_str(&ended(segment.ended.as_deref()));
        for liar in segment.stages.iter().filter(|stage| stage.is_lie()) {
            text.push_str(&format!("  {} signed a wrong output of its layers.\n", liar.peer));
        }
        segment.stages.iter().for_each(|stage| text.push_str(&said_of(stage)));
        text.push('\n');
    }
    let count = receipt.answer_tokens.len();
    match (found.tokens.wrong_at, found.tokens.token, found.tokens.expected) {
        (Some(at), Some(token), Some(expected)) => text.push_str(&format!(
            "Token {} of the answer is {token}; the model gives {expected}.\n",
            at - receipt.prompt_tokens.len() + 1
        )),
        _ if found.tokens.checked < count => {
            text.push_str(&format!("{} of {count} tokens could be checked.\n", found.tokens.checked));
        }
        _ => text.push_str(&format!("All {count} tokens of the answer are what the model gives.\n")),
    }
    match found.holds {
        true => text.push_str(&format!("The receipt holds: {}.\n", found.verdict.name())),
        false => text.push_str("The receipt does not hold.\n"),
    }
    text
}

/// What there is to say of a stage whose output was compared by value, or could not be.
fn said_of(stage: &StageCheck) -> String {
    let said = match stage.output {
        OutputCheck::Close { difference, allowed } => {
            format!("rows differ by {difference:.2} deviations at most; {allowed} are accepted")
        }
        OutputCheck::CloseTokens { others } => {
            format!("{others} of its tokens would be others here, as engines' bits differ")
        }
        OutputCheck::Unopened => "cannot be checked: rows that it gave or received are not here".to_owned(),
        OutputCheck::Unclear { by_experts: true, .. } => "not confirmed: bits may change a row's experts".to_owned(),
        OutputCheck::Unclear { .. } => "not confirmed: it differs more than what is accepted".to_owned(),
        _ => return String::new(),
    };
    format!("  {}: {said}.\n", short_peer(&stage.peer))
}

/// Why a segment ended early.
fn ended(why: Option<&str>) -> String {
    why.map_or_else(String::new, |why| format!("  The segment ended early: {why}.\n"))
}

fn output_of(stage: &StageCheck) -> String {
    match stage.output {
        OutputCheck::Right => "right".to_owned(),
        OutputCheck::Close { .. } | OutputCheck::CloseTokens { .. } => "close".to_owned(),
        OutputCheck::Unopened | OutputCheck::Unclear { .. } => "unknown".to_owned(),
        OutputCheck::Wrong { position: Some(position) } => format!("WRONG at {position}"),
        OutputCheck::Wrong { position: None } => "WRONG".to_owned(),
        OutputCheck::FollowsWrong => "input is wrong".to_owned(),
        OutputCheck::Unclaimed => "none".to_owned(),
    }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "NO" }.to_owned()
}

fn time(unix_ms: u64) -> String {
    let time = CalendarTime::from_unix_seconds((unix_ms / 1000).try_into().unwrap_or(i64::MAX));
    time.format("%Y-%m-%d %H:%M").unwrap_or_default()
}

//! `pangea receipts list`, `show` and `verify`: what is kept of answers, read from the disk, as tables or JSON. What holds of
//! a receipt is [`crate::trust::verify()`]'s to say; no node is asked.

use std::path::{Path, PathBuf};

use pangea_client::ErrorKind;
use pangea_compute::chat::calendar::CalendarTime;
use pangea_compute::commit::Pace;
use pangea_compute::model::{Manifest, ModelFile};
use pangea_compute::{Cancel, Pool};

use super::args::{DataDirArgs, OutputArgs, ReceiptsCommand, ReceiptsListArgs, ReceiptsShowArgs, ReceiptsVerifyArgs};
use super::failure::{Exit, Failure};
use super::progress::Progress;
use super::session::note;
use super::table::{Align, Table, facts, short_peer, shortened};
use super::{print, print_json};
use crate::config::{self, LayerRange};
use crate::models;
use crate::trust::{OutputCheck, Receipt, ReceiptStore, StageCheck, Verification, store, verify};

/// Characters of a model's name, so that the table fits into 80 columns.
const MODEL_CHARS: usize = 20;

/// Rows of one pass: with all of them to itself, more bring nothing.
const CHUNK_ROWS: usize = 256;

pub(super) fn run(command: ReceiptsCommand, output: OutputArgs) -> Result<(), Failure> {
    match command {
        ReceiptsCommand::List(args) => list(&args),
        ReceiptsCommand::Show(args) => show(&args),
        ReceiptsCommand::Verify(args) => check(&args, output),
    }
}

fn data_dir(args: &DataDirArgs) -> Result<PathBuf, Failure> {
    Ok(config::node::data_dir(args.data_dir.clone())?)
}

fn list(args: &ReceiptsListArgs) -> Result<(), Failure> {
    let store = ReceiptStore::new(&data_dir(&args.folder)?);
    let receipts = store.list(args.limit)?;
    if args.json.json {
        return print_json(&receipts);
    }
    if receipts.is_empty() {
        return print(&format!(
            "No receipts in {}.\nEvery answer that other nodes had a part in leaves one with the node that was asked.\n",
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
    for receipt in &receipts {
        table.row([
            receipt.id.clone(),
            time(receipt.unix_ms),
            shortened(&receipt.model, MODEL_CHARS),
            receipt.answer_tokens.to_string(),
            receipt.verdict.name().to_owned(),
        ]);
    }
    print(&table.render())
}

fn show(args: &ReceiptsShowArgs) -> Result<(), Failure> {
    let receipt = ReceiptStore::new(&data_dir(&args.folder)?).get(&args.id)?;
    if args.json.json {
        return print_json(&receipt);
    }
    let tokens = format!("{} after {} of the prompt", receipt.answer_tokens.len(), receipt.prompt_tokens.len());
    let mut text = facts(&[
        ("receipt", receipt.id.clone()),
        ("request", shortened(&receipt.request, 60)),
        ("when", format!("{} UTC", time(receipt.unix_ms))),
        ("asked", receipt.coordinator.clone()),
        ("model", shortened(&receipt.model.name, 60)),
        ("digest", receipt.model.digest.to_string()),
        ("tokens", tokens),
        ("verdict", receipt.verdict.name().to_owned()),
    ]);
    for (index, segment) in receipt.segments.iter().enumerate() {
        text.push_str(&format!("\n  From token {} on", segment.chosen_from + 1));
        text.push_str(&segment.ended.as_ref().map_or(":\n".to_owned(), |why| format!(" ({why}):\n")));
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
    }
    text.push_str(&format!("\nCheck it with `pangea receipts verify {}`.\n", receipt.id));
    print(&text)
}

fn check(args: &ReceiptsVerifyArgs, output: OutputArgs) -> Result<(), Failure> {
    let threads = config::node::threads(args.threads)?;
    let data_dir = data_dir(&args.folder)?;
    let receipt = find(&data_dir, &args.receipt)?;
    let path = model_of(&data_dir.join("models"), &receipt, args.model.as_deref())?;
    let file = ModelFile::open(&path)?;
    note(&output, format!("Computing {} tokens again with {}.", receipt.tokens().len(), path.display()));
    let digest = Manifest::of(file.gguf(), threads)?.digest();
    let pool = Pool::new(threads)?;
    let mut progress = Progress::new(output.quiet);
    progress.phase("replaying", receipt.tokens().len() as u64);
    let cancel = Cancel::new();
    let mut pace = Pace { chunk_rows: CHUNK_ROWS, cancel: &cancel, between: &mut |rows| progress.done(rows as u64) };
    let found = verify(&receipt, &file, digest, &pool, &mut pace)?;
    drop(progress);
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

/// The receipt in a file, or that of an id.
fn find(data_dir: &Path, receipt: &str) -> Result<Receipt, Failure> {
    let path = Path::new(receipt);
    if path.is_file() || receipt.contains(std::path::MAIN_SEPARATOR) || receipt.ends_with(".json") {
        return Ok(store::read(path)?);
    }
    Ok(ReceiptStore::new(data_dir).get(receipt)?)
}

/// The model that was named, else the one of the receipt's name, else of its file's.
fn model_of(folder: &Path, receipt: &Receipt, named: Option<&str>) -> Result<PathBuf, Failure> {
    if let Some(named) = named {
        return Ok(models::resolve(folder, named)?);
    }
    match models::resolve(folder, &receipt.model.name) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let by_file = models::resolve(folder, &receipt.model.file);
            by_file.map_err(|_| Failure::from(error).about("the receipt's model (name another file with --model)"))
        }
        found => Ok(found?),
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
        text.push_str(&segment.ended.as_ref().map_or(String::new(), |why| format!("  It ended early: {why}.\n")));
        for liar in segment.stages.iter().filter(|stage| stage.is_lie()) {
            text.push_str(&format!("  {} signed what its layers do not give.\n", liar.peer));
        }
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
    text.push_str(match found.holds {
        true => "The receipt holds.\n",
        false => "The receipt does not hold.\n",
    });
    text
}

fn output_of(stage: &StageCheck) -> String {
    match stage.output {
        OutputCheck::Right => "right".to_owned(),
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

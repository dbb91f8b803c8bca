//! `pangea keys create`, `list` and `revoke`: the API keys of a node, in its data directory. A running node reads them by itself.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use pangea_compute::chat::calendar::CalendarTime;
use pangea_control::net::allowance::KeyLimits;
use serde_json::json;

use super::args::{DataDirArgs, JsonArgs, OutputArgs};
use super::failure::Failure;
use super::session::note;
use super::table::{Align, Table};
use super::{print, print_json};
use crate::api_keys::{ApiKeys, StoredKey};
use crate::config;

const EXAMPLES: &str = "\
Once a key exists, the HTTP API requires one of every client, on this host too.
A running node takes up new and revoked keys within a second.

Examples:
  pangea keys create ada
  pangea keys create guests --requests-per-minute 20 --tokens-per-minute 5000
  pangea keys create phone --model smollm2";

/// Create, list and revoke the API keys of a node
#[derive(Subcommand, Debug)]
pub(super) enum KeysCommand {
    /// Create a key and write it to standard output; it is shown nowhere again
    #[command(after_help = EXAMPLES)]
    Create(KeysCreateArgs),
    /// List the keys with their limits
    List(KeysListArgs),
    /// Revoke a key: whoever holds it is refused
    Revoke(KeysRevokeArgs),
}

/// `keys create`.
#[derive(Args, Clone, Debug)]
pub(super) struct KeysCreateArgs {
    /// Name of the key: who will hold it
    #[arg(value_name = "NAME")]
    name: String,
    /// Requests for answers that the holder may make per minute [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers that the holder may use per minute [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tokens_per_minute: Option<u32>,
    /// Model that the holder may use; may be given several times [default: all]
    #[arg(short, long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// Where keys are.
    #[command(flatten)]
    folder: DataDirArgs,
    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// `keys list`.
#[derive(Args, Clone, Debug)]
pub(super) struct KeysListArgs {
    /// Where keys are.
    #[command(flatten)]
    folder: DataDirArgs,
    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// `keys revoke`.
#[derive(Args, Clone, Debug)]
pub(super) struct KeysRevokeArgs {
    /// Name of the key
    #[arg(value_name = "NAME")]
    name: String,
    /// Where keys are.
    #[command(flatten)]
    folder: DataDirArgs,
    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

pub(super) fn run(command: KeysCommand, output: OutputArgs) -> Result<(), Failure> {
    match command {
        KeysCommand::Create(args) => create(args, output),
        KeysCommand::List(args) => list(&args, output),
        KeysCommand::Revoke(args) => revoke(&args, output),
    }
}

fn keys(folder: &DataDirArgs) -> Result<ApiKeys, Failure> {
    let folder = config::data_dir(folder.data_dir.clone()).map_err(|error| Failure::usage(error.to_string()))?;
    Ok(ApiKeys::of(&folder))
}

fn create(args: KeysCreateArgs, output: OutputArgs) -> Result<(), Failure> {
    let keys = keys(&args.folder)?;
    let is_first = !keys.exist();
    let limits = KeyLimits { requests_per_minute: args.requests_per_minute, tokens_per_minute: args.tokens_per_minute };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let key = keys.create(&args.name, limits, args.models, now_s)?;
    if args.json.json {
        return print_json(&json!({"name": args.name, "key": key}));
    }
    print(&format!("{key}\n"))?;
    if is_first {
        note(&output, "From now on the HTTP API of this node requires a key.");
    }
    note(&output, "Keep the key: only its digest is stored. Clients send it as `Authorization: Bearer KEY`.");
    Ok(())
}

fn list(args: &KeysListArgs, output: OutputArgs) -> Result<(), Failure> {
    let keys = keys(&args.folder)?.read()?;
    if args.json.json {
        let shown = keys.iter().map(|key| {
            json!({
                "name": key.name, "created": date(key), "requests_per_minute": key.requests_per_minute,
                "tokens_per_minute": key.tokens_per_minute, "models": key.models,
            })
        });
        return print_json(&shown.collect::<Vec<_>>());
    }
    if keys.is_empty() {
        note(&output, "There are no API keys; `pangea keys create NAME` creates one.");
        return Ok(());
    }
    let mut table = Table::new([
        ("name", Align::Left),
        ("created", Align::Left),
        ("requests/min", Align::Right),
        ("tokens/min", Align::Right),
        ("models", Align::Left),
    ]);
    let limit = |limit: Option<u32>| limit.map_or("-".to_owned(), |limit| limit.to_string());
    for key in &keys {
        let models = if key.models.is_empty() { "all".to_owned() } else { key.models.join(", ") };
        let (requests, tokens) = (limit(key.requests_per_minute), limit(key.tokens_per_minute));
        table.row([key.name.clone(), date(key), requests, tokens, models]);
    }
    print(&table.render())
}

fn date(key: &StoredKey) -> String {
    let created = i64::try_from(key.created_s).unwrap_or_default();
    CalendarTime::from_unix_seconds(created).format("%Y-%m-%d").unwrap_or_default()
}

fn revoke(args: &KeysRevokeArgs, output: OutputArgs) -> Result<(), Failure> {
    keys(&args.folder)?.revoke(&args.name)?;
    if args.json.json {
        return print_json(&json!({"name": args.name, "revoked": true}));
    }
    note(&output, format!("The key {} is revoked.", args.name));
    Ok(())
}

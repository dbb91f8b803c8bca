//! `pangea perplexity`: measures how well a model predicts a text. This file reads the text and prints the result;
//! [`Perplexity`] does the arithmetic.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use pangea_compute::Pool;
use pangea_compute::model::{ModelFile, ModelPart};
use pangea_compute::perplexity::Perplexity;
use serde::Serialize;

use super::args::{JsonArgs, OutputArgs, StoreArgs};
use super::failure::Failure;
use super::models::file_of;
use super::progress::Progress;
use super::{print, print_json};
use crate::config;
use crate::devices::choice::DeviceChoice;

const EXAMPLES: &str = "\
Perplexity as llama.cpp's llama-perplexity defines it: the text is cut into
chunks of --ctx tokens, and the second half of each chunk is scored.

Examples:
  pangea perplexity smollm2 book.txt
  pangea perplexity model.gguf book.txt --ctx 512 --json";

/// Measure how well a model predicts a text
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct PerplexityArgs {
    /// Name of the model, as `pangea models list` shows it, or a .gguf file
    #[arg(value_name = "MODEL")]
    model: String,

    /// Text file in UTF-8
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Tokens per chunk
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    ctx: usize,

    /// Number of chunks to score [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    chunks: Option<u32>,

    /// Compute threads [default: fast physical cores]
    #[arg(short, long, value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,

    /// What computes: auto, cpu, gpu, or gpu: and a part of the GPU's name
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: DeviceChoice,

    /// Where models are.
    #[command(flatten)]
    store: StoreArgs,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Serialize)]
struct Document {
    perplexity: f64,
    /// Tokens that were scored.
    tokens: usize,
    standard_error: f64,
    chunks: usize,
    context: usize,
}

pub(super) fn run(args: PerplexityArgs, output: OutputArgs) -> Result<(), Failure> {
    let threads = config::threads(args.threads);
    let progress = Progress::waiting(&output, args.json, "loading");
    let text = read(&args.file)?;
    let path = file_of(&args.store, &args.model)?;
    let file = ModelFile::open(&path)?;
    let tokenizer = file.tokenizer()?;
    let mut tokens = tokenizer.encode(&text, true, false);
    drop(text);
    if let Some(chunks) = args.chunks {
        tokens.truncate((chunks as usize).saturating_mul(args.ctx));
    }
    let bos = tokenizer.added_bos();
    let pool = Arc::new(Pool::new(threads)?);
    let model = args.device.engine(Arc::clone(&pool))?.load(&file, ModelPart::whole(file.config()))?;
    let chunks = tokens.len() / args.ctx.max(1);
    progress.note(format!("{} tokens, {chunks} chunks of {}", tokens.len(), args.ctx));
    progress.phase("scoring", chunks as u64);
    let result = Perplexity::measure(&model, &pool, &tokens, bos, args.ctx, &mut |done, _, _| {
        progress.done(done as u64);
        Ok(())
    })?;
    drop(progress);
    if args.json.json {
        return print_json(&Document {
            perplexity: result.perplexity,
            tokens: result.tokens,
            standard_error: result.standard_error,
            chunks: result.chunks,
            context: args.ctx,
        });
    }
    print(&format!(
        "perplexity {:.4} ± {:.4} over {} tokens in {} chunks of {}\n",
        result.perplexity, result.standard_error, result.tokens, result.chunks, args.ctx
    ))
}

/// The text without its final newline, as llama.cpp reads a prompt's file.
fn read(path: &Path) -> Result<String, Failure> {
    let wrong = |what: String| Failure::usage(format!("{}: {what}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => wrong("the file does not exist; check the path".to_owned()),
        _ => wrong(error.to_string()),
    })?;
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        wrong(format!("not UTF-8 at byte {place}; convert the file to UTF-8 first"))
    })?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

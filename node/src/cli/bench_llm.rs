//! `pangea bench llm`: tokens per second that a model reads and generates, with llama-bench's test names. The model is
//! loaded in this process; no node is asked, nothing is sampled.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use pangea_compute::engine::{Input, Logits, Stage, Step};
use pangea_compute::model::{Cache, ModelFile, ModelPart};
use pangea_compute::{Cancel, Pool};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use super::args::{JsonArgs, OutputArgs, StoreArgs};
use super::failure::Failure;
use super::models::file_of;
use super::progress::Progress;
use super::session::note;
use super::table::{Align, Table, shortened};
use super::{print, print_json};
use crate::devices::choice::{self, DeviceChoice};
use crate::models::Description;
use crate::{config, models};

const EXAMPLES: &str = "\
The tests are llama-bench's: ppN reads a prompt of N random tokens, tgN
generates N, each in an empty context or, as @ dN, after N other tokens. The
figure is the mean of the runs, after one run to warm up.

Examples:
  pangea bench llm --model smollm2 --threads 1,2
  pangea bench llm --model model.gguf -p 0 -n 64 -d 32,512 --json
  pangea bench llm --model smollm2 --device gpu";

/// Measure the speed of a language model in this process
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct BenchLlmArgs {
    /// Name of the model, as `pangea models list` shows it, or a .gguf file
    #[arg(short, long, value_name = "NAME|PATH")]
    model: String,

    /// Compute threads [default: fast physical cores]
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = config::thread_count)]
    threads: Vec<usize>,

    /// Prompt lengths in tokens; 0 skips the prompt tests
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_values_t = [128])]
    prompt: Vec<usize>,

    /// Answer lengths in tokens; 0 skips the generation tests
    #[arg(short = 'n', long, value_name = "N", value_delimiter = ',', default_values_t = [64])]
    generate: Vec<usize>,

    /// Tokens in the context before each test
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_values_t = [0])]
    depth: Vec<usize>,

    /// Runs of each test; the mean is reported
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,

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

/// Seed of the random tokens: every run reads the same.
const SEED: u64 = 1;

/// Characters of the model's name, so that the table fits into 80 columns.
const NAME_CHARS: usize = 24;

/// One line of the result: the mean of the runs.
#[derive(Serialize)]
struct Line {
    /// `pp128`, `tg64`, `tg64 @ d512`.
    test: String,
    threads: usize,
    tokens_per_s: f64,
    /// Standard deviation over the runs.
    stddev: f64,
    runs: u32,
    model: String,
    quantisation: String,
    /// What computed: `cpu`, or the GPU's name.
    device: String,
    /// Instruction set of the processor's kernels.
    isa: &'static str,
}

/// One test.
#[derive(Clone, Copy)]
enum Test {
    /// Reads a prompt of this many tokens.
    Prompt(usize),
    /// Generates this many tokens.
    Generate(usize),
}

impl Test {
    fn tokens(self) -> usize {
        match self {
            Test::Prompt(tokens) | Test::Generate(tokens) => tokens,
        }
    }

    fn name(self, depth: usize) -> String {
        let name = match self {
            Test::Prompt(tokens) => format!("pp{tokens}"),
            Test::Generate(tokens) => format!("tg{tokens}"),
        };
        match depth {
            0 => name,
            depth => format!("{name} @ d{depth}"),
        }
    }
}

pub(super) fn run(args: BenchLlmArgs, output: OutputArgs) -> Result<(), Failure> {
    let threads = match args.threads.is_empty() {
        true => vec![config::threads(None)],
        false => args.threads.clone(),
    };
    let prompts = args.prompt.iter().map(|n| Test::Prompt(*n));
    let tests: Vec<Test> =
        prompts.chain(args.generate.iter().map(|n| Test::Generate(*n))).filter(|test| test.tokens() > 0).collect();
    let path = file_of(&args.store, &args.model)?;
    let file = ModelFile::open(&path)?;
    let context = file.config().context;
    let longest = tests.iter().map(|test| test.tokens()).max().unwrap_or(0);
    let deepest = args.depth.iter().copied().max().unwrap_or(0);
    if tests.is_empty() {
        return Err(Failure::usage("nothing to measure: --prompt and --generate are 0"));
    }
    if longest.saturating_add(deepest) > context {
        return Err(Failure::usage(format!(
            "{longest} tokens at a depth of {deepest} do not fit the model's context of {context}; use smaller values"
        )));
    }
    let description = Description::of(&file);
    let name = models::name_of(&path.to_string_lossy()).to_owned();
    let tokenizer = file.tokenizer()?;
    let bos = tokenizer.added_bos();

    let progress = Progress::new(&output, args.json);
    let total = threads.len() * tests.len() * args.depth.len();
    progress.phase("measuring", total as u64);
    let mut lines = Vec::new();
    for &threads in &threads {
        let pool = Arc::new(Pool::new(threads)?);
        let engine = args.device.engine(Arc::clone(&pool))?;
        let model = engine.load(&file, ModelPart::whole(file.config()))?;
        let shape = model.cache_shape();
        // Every run goes on from a copy of the context, whose last page and states are its own.
        let copy = shape.page_bytes() + shape.sequence_bytes();
        let budget = model.page_budget(shape.bytes_for(longest + deepest) + copy);
        let mut bench = Bench { cache: model.cache(&budget), model: &model, bos, random: StdRng::seed_from_u64(SEED) };
        for &depth in &args.depth {
            for &test in &tests {
                let (tokens_per_s, stddev) = mean(&bench.measure(test, depth, args.runs)?);
                lines.push(Line {
                    test: test.name(depth),
                    threads,
                    tokens_per_s,
                    stddev,
                    runs: args.runs,
                    model: name.clone(),
                    quantisation: description.quantisation.clone(),
                    device: choice::name_of(&engine),
                    isa: pool.isa().name(),
                });
                progress.done(lines.len() as u64);
            }
        }
    }
    drop(progress);
    if let Some(line) = lines.first().filter(|line| line.device != "cpu") {
        note(&output, format!("Computed by {}.", line.device));
    }
    if args.json.json {
        return print_json(&lines);
    }
    print(&show(&lines, &description))
}

/// A model under test.
struct Bench<'a> {
    model: &'a Stage,
    cache: Cache,
    bos: Option<u32>,
    random: StdRng,
}

impl Bench<'_> {
    /// Tokens per second of every run, after one warm-up run.
    fn measure(&mut self, test: Test, depth: usize, runs: u32) -> Result<Vec<f64>, Failure> {
        self.cache.truncate(0);
        if depth > 0 {
            self.read(depth)?;
        }
        // Recurrent states do not go back to any position.
        let context = self.cache.fork();
        self.once(match test {
            Test::Generate(_) => Test::Generate(1),
            prompt => prompt,
        })?;
        let mut figures = Vec::new();
        for _ in 0..runs {
            self.cache = context.fork();
            let begun = Instant::now();
            self.once(test)?;
            figures.push(test.tokens() as f64 / begun.elapsed().as_secs_f64());
        }
        Ok(figures)
    }

    fn once(&mut self, test: Test) -> Result<(), Failure> {
        match test {
            Test::Prompt(tokens) => self.read(tokens),
            Test::Generate(tokens) => (0..tokens).try_for_each(|_| self.read(1)),
        }
    }

    /// Reads this many random tokens; the first of a context is the one that the model expects there.
    fn read(&mut self, tokens: usize) -> Result<(), Failure> {
        let vocabulary = self.model.config().vocabulary as u32;
        let mut ids: Vec<u32> = (0..tokens).map(|_| self.random.random_range(0..vocabulary)).collect();
        if let Some(bos) = self.bos.filter(|_| self.cache.is_empty()) {
            ids[0] = bos;
        }
        let step = Step { cache: &mut self.cache, rows: tokens, logits: Logits::Last };
        self.model.forward(&mut [step], Input::Tokens(&ids), &Cancel::new())?;
        Ok(())
    }
}

/// The mean and the standard deviation of a sample.
fn mean(figures: &[f64]) -> (f64, f64) {
    let count = figures.len() as f64;
    let mean = figures.iter().sum::<f64>() / count;
    let squares: f64 = figures.iter().map(|figure| (figure - mean) * (figure - mean)).sum();
    (mean, (squares / (count - 1.0).max(1.0)).sqrt())
}

fn show(lines: &[Line], model: &Description) -> String {
    let mut table = Table::new([
        ("model", Align::Left),
        ("size", Align::Right),
        ("params", Align::Right),
        ("threads", Align::Right),
        ("test", Align::Left),
        ("t/s", Align::Right),
    ]);
    for line in lines {
        let name = format!(
            "{} {}",
            shortened(&line.model, NAME_CHARS.saturating_sub(line.quantisation.len() + 1)),
            line.quantisation
        );
        table.row([
            name,
            model.size(),
            model.parameters(),
            line.threads.to_string(),
            line.test.clone(),
            format!("{:.2} ± {:.2}", line.tokens_per_s, line.stddev),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_named_as_llama_bench_names_them() {
        assert_eq!(Test::Prompt(128).name(0), "pp128");
        assert_eq!(Test::Generate(64).name(0), "tg64");
        assert_eq!(Test::Generate(32).name(512), "tg32 @ d512");
    }

    #[test]
    fn the_standard_deviation_is_that_of_a_sample() {
        assert_eq!(mean(&[1.0, 2.0, 3.0]), (2.0, 1.0));
        assert_eq!(mean(&[5.0]), (5.0, 0.0));
    }
}

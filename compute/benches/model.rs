//! Tokens per second of a whole model, beside what the memory gives:
//! `cargo bench -p pangea-compute --bench model -- MODEL.gguf [--threads N] [--prompt N] [--decode N] [--depth N] [--rounds N] [--device
//! cpu|gpu|exact-gpu]`. One line per round: a prompt of `--prompt` tokens (0 for none), then `--decode` single tokens behind a context of `--depth`
//! tokens, then reading memory with the same threads. The last line has the medians.

use pangea_compute::engine::{Input, Logits, Stage, Step};
use pangea_compute::gpu::{Gpu, GpuChoice};
use pangea_compute::model::{Cache, ModelFile, ModelPart};
use pangea_compute::{Buffer, Cancel, Engine, Error, Pool};
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

/// Bytes of keys and values, at most.
const PAGES_BYTES: u64 = 1 << 40;

/// Bytes that are read to measure the memory: more than any cache holds.
const READ_BYTES: usize = 512 << 20;

struct Options {
    model: PathBuf,
    threads: usize,
    prompt: usize,
    decode: usize,
    depth: usize,
    rounds: usize,
    device: String,
}

impl Options {
    fn from_args() -> Result<Options, String> {
        let mut options = Options {
            model: PathBuf::new(),
            threads: 1,
            prompt: 128,
            decode: 64,
            depth: 0,
            rounds: 3,
            device: "cpu".to_owned(),
        };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let number = match arg.as_str() {
                "--threads" => &mut options.threads,
                "--prompt" => &mut options.prompt,
                "--decode" => &mut options.decode,
                "--depth" => &mut options.depth,
                "--rounds" => &mut options.rounds,
                "--device" => {
                    options.device = args.next().unwrap_or_default();
                    continue;
                }
                // Cargo passes this on to every benchmark.
                "--bench" => continue,
                _ if arg.starts_with('-') => return Err(format!("there is no option {arg}")),
                _ => {
                    options.model = PathBuf::from(arg);
                    continue;
                }
            };
            let value = args.next().unwrap_or_default();
            *number = value.parse().map_err(|_| format!("{arg} takes a number, not {value:?}"))?;
        }
        options.threads = options.threads.max(1);
        Ok(options)
    }

    /// The engine of the device: of GPUs the best one, software where there is no other.
    fn engine(&self) -> Result<Engine, Box<dyn std::error::Error>> {
        match self.device.as_str() {
            "cpu" => Ok(Engine::from(Pool::new(self.threads)?)),
            "gpu" => Ok(Engine::Gpu(Gpu::open(GpuChoice::BestOrSoftware)?)),
            "exact-gpu" => {
                let start = Instant::now();
                let certified = Gpu::open(GpuChoice::BestOrSoftware)?.certify()?;
                println!("certified in {:.2} s", start.elapsed().as_secs_f64());
                Ok(Engine::ExactGpu(certified))
            }
            other => Err(format!("a device is cpu, gpu or exact-gpu, not {other:?}").into()),
        }
    }
}

/// One round's rates: tokens per second of the prompt and of decoding, bytes per second of memory.
fn round(options: &Options, model: &Stage, memory: &Buffer) -> Result<[f64; 3], Error> {
    let budget = model.page_budget(PAGES_BYTES);
    let tokens = |from: usize, n: usize| -> Vec<u32> {
        (from..from + n).map(|i| (i * 7919 % model.config().vocabulary) as u32).collect()
    };
    let run = |cache: &mut Cache, tokens: &[u32]| -> Result<f64, Error> {
        let start = Instant::now();
        let step = Step { cache, rows: tokens.len(), logits: Logits::Last };
        black_box(model.forward(&mut [step], Input::Tokens(tokens), &Cancel::new())?);
        Ok(start.elapsed().as_secs_f64())
    };
    let mut rates = [0.0; 3];
    if options.prompt > 0 {
        let seconds = run(&mut model.cache(&budget), &tokens(0, options.prompt))?;
        rates[0] = options.prompt as f64 / seconds;
    }
    if options.decode > 0 {
        let mut cache = model.cache(&budget);
        run(&mut cache, &tokens(0, options.depth.max(1)))?;
        let mut seconds = 0.0;
        for at in 0..options.decode {
            seconds += run(&mut cache, &tokens(at, 1))?;
        }
        rates[1] = options.decode as f64 / seconds;
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        for part in memory.as_slice().chunks(memory.len() / options.threads) {
            scope.spawn(|| black_box(read(part)));
        }
    });
    rates[2] = memory.len() as f64 / start.elapsed().as_secs_f64();
    Ok(rates)
}

/// Reads all bytes; many sums, so that no operation waits for another.
fn read(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 32];
    for line in bytes.as_chunks::<256>().0 {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum ^= u64::from_le_bytes(*word);
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::from_args()?;
    if options.model.as_os_str().is_empty() {
        println!("no model was named: nothing is measured");
        return Ok(());
    }
    let engine = options.engine()?;
    let file = ModelFile::open(&options.model)?;
    let model = engine.load(&file, ModelPart::whole(file.config()))?;
    // A token reads one row of the embedding, and all other weights.
    let of_token = ModelPart { embedding: false, ..ModelPart::whole(file.config()) };
    let needs = engine.load_bytes(&file, &of_token)?;
    let token_bytes = needs.weights + needs.device;
    let mut memory = Buffer::zeroed(READ_BYTES)?;
    memory.as_mut_slice().fill(1);
    let mut rounds = Vec::new();
    for _ in 0..options.rounds.max(1) {
        let rates = round(&options, &model, &memory)?;
        print(token_bytes, rates);
        rounds.push(rates);
    }
    let median = [0, 1, 2].map(|i| {
        let mut rates: Vec<f64> = rounds.iter().map(|rates| rates[i]).collect();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    print!("median: ");
    print(token_bytes, median);
    Ok(())
}

fn print(token_bytes: u64, [prompt, decode, memory]: [f64; 3]) {
    let weights = decode * token_bytes as f64;
    println!(
        "prompt {prompt:.1} tokens/s, decoding {decode:.2} tokens/s = {:.1} GB/s of weights, memory {:.1} GB/s",
        weights / 1e9,
        memory / 1e9
    );
}

//! Parsers of bytes from outside, on their seeds and on mutations of them: the checks of the fuzz targets, without libFuzzer.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pangea_tests::parsers::{TARGETS, Target};

/// Mutations per target; about a second in all.
const MUTATIONS: usize = 200_000;

#[test]
fn every_seed_and_mutation_is_accepted_or_refused() {
    for target in TARGETS {
        let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty());
        for seed in &seeds {
            run(target, seed);
        }
        for _ in 0..MUTATIONS {
            run(target, &mutation(&seeds, &mut random));
        }
    }
}

fn run(target: Target, bytes: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.body)(bytes))).is_err() {
        panic!("{} does not hold for {:02x?} ({:?})", target.name, bytes, String::from_utf8_lossy(bytes));
    }
}

/// One to eight changes to a seed: a bit, a byte, a piece cut out, a piece doubled, an end cut off, a part of another seed.
fn mutation(seeds: &[Vec<u8>], random: &mut Xorshift) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 + random.below(8) {
        let at = random.below(bytes.len());
        let length = random.below((bytes.len() - at).min(16) + 1);
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => {
                bytes[at] = [0, 1, 8, 0x7f, 0x80, 0xff, b'0', b'-', b'[', b'"', b'\n', b','][random.below(12)]
            }
            2 => drop(bytes.drain(at..at + length)),
            3 => {
                let piece = bytes[at..at + length].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => bytes.truncate(at),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                bytes.splice(at.., other[from..].iter().copied());
            }
        }
    }
    bytes
}

/// Marsaglia's xorshift64: the same inputs in every run.
struct Xorshift(u64);

impl Xorshift {
    /// A number below `bound`, or 0 if `bound` is 0.
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        if bound == 0 { 0 } else { (self.0 % bound as u64) as usize }
    }
}

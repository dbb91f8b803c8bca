//! The stateful fuzz targets: bytes become events of a machine, and what must hold is asserted after each of them. The entry points
//! of libFuzzer are in `tests/fuzz`, which includes the machines of this folder; this test plays what is kept of their corpora,
//! and runs that follow from it by small changes.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

mod bytes;
mod fetch;
mod intake;
mod mastership;
mod peers;
mod stage;

use std::path::Path;

use pangea_units::SplitMix64;

/// Runs that are made from every kept one.
const CHANGED: u64 = if cfg!(debug_assertions) { 20 } else { 400 };

/// The kept inputs of a target.
#[expect(clippy::disallowed_methods, reason = "the corpora are files")]
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target);
    let files = folder.read_dir().unwrap_or_else(|error| panic!("no corpus in {}: {error}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Changes some bytes, takes some away, doubles some.
fn changed(chance: &mut SplitMix64, input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=chance.index(6) {
        let at = chance.index(bytes.len().max(1)).min(bytes.len());
        match chance.index(4) {
            0 if at < bytes.len() => bytes[at] = chance.bits() as u8,
            1 if at < bytes.len() => bytes[at] = [0, 252, 253, 254, 255][chance.index(5)],
            2 if at < bytes.len() => drop(bytes.remove(at)),
            _ => {
                let copied = bytes[at..].iter().take(chance.index(40)).copied().collect::<Vec<u8>>();
                bytes.splice(at..at, copied);
            }
        }
    }
    bytes
}

/// Plays the corpus of a target, and changes of it.
fn plays(target: &str, run: fn(&[u8])) {
    let corpus = corpus(target);
    assert!(corpus.len() > 20, "only {} inputs of {target} are kept", corpus.len());
    let chance = &mut SplitMix64::new(1);
    for input in &corpus {
        run(input);
        for _ in 0..CHANGED {
            let input = changed(chance, input);
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            let result = std::panic::catch_unwind(|| run(&input));
            assert!(result.is_ok(), "{target} fails for {hex}");
        }
    }
}

#[test]
fn a_stage_holds_against_any_neighbour_and_coordinator() {
    plays("session_stage", stage::run);
}

#[test]
fn a_task_server_holds_against_any_coordinator() {
    plays("task_intake", intake::run);
}

#[test]
fn two_honest_nodes_agree_on_a_master_whatever_strangers_said() {
    plays("mastership", mastership::run);
}

#[test]
fn a_file_comes_from_its_honest_provider_whatever_the_others_do() {
    plays("blob_fetch", fetch::run);
}

//! Memory in use while a model is loaded, as the system counts it: a file of its own, so that no other test runs in the process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

#[path = "exactness/tiny.rs"]
#[allow(dead_code, reason = "the other tests' own")]
mod tiny;

use pangea_compute::gguf::GgmlType;
use pangea_compute::model::{ModelFile, ModelPart};
use pangea_compute::{Engine, Pool};
use tiny::{Sizes, Tiny};

/// Bytes beside the packed weights, at most: a piece of the file for each of two threads, the vectors, a huge page at the end.
const BESIDE_BYTES: u64 = 16 << 20;

/// A figure of this process, in bytes.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let figure = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    figure.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn loading_a_model_takes_its_packed_weights_and_little_more() {
    let sizes = Sizes {
        layers: 6,
        hidden: 2048,
        heads: 16,
        kv_heads: 4,
        head: 128,
        intermediate: 8192,
        vocabulary: 8192,
        context: 512,
    };
    let engine = Engine::from(Pool::new(2).unwrap());
    for architecture in ["llama", "qwen3moe"] {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&path, tiny::gguf_of(Tiny { architecture, weights: GgmlType::Q4K, seed: 1 }, sizes, |_, _| {}))
            .unwrap();
        let file = ModelFile::open(path.path()).unwrap();
        let before = status("VmRSS");
        // Sets the peak to what is in use now.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let model = engine.load(&file, ModelPart::whole(file.config())).unwrap();
        let beside = (status("VmHWM") - before).saturating_sub(model.memory_bytes());
        eprintln!("{architecture}: {} of weights, {beside} bytes beside them at most", model.memory_bytes());
        assert!(model.memory_bytes() > 60 << 20, "too small to tell");
        assert!(beside <= BESIDE_BYTES, "{architecture}: {beside} bytes beside {}", model.memory_bytes());
    }
}

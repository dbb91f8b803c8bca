//! Mixtures of experts: what of a file is refused, and by what message; what a router may not give; what loading takes.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

#[path = "exactness/tiny.rs"]
#[allow(dead_code, reason = "the other tests' own")]
mod tiny;

use pangea_compute::engine::{Input, Logits, Stage, Step};
use pangea_compute::gguf::GgmlType;
use pangea_compute::model::{Experts, ModelFile, ModelPart, PageBudget};
use pangea_compute::{Cancel, Engine, Error, ErrorKind, Isa, Pool};
use tiny::{Changes, EXPERTS, LAYERS, Tensor, Tiny, USED_EXPERTS};

const MIXTURE: Tiny = Tiny { architecture: "qwen3moe", weights: GgmlType::Q8_0, seed: 7 };

/// Opens the file and plans the whole model, of which nothing but the header is read, then loads it. What the header shows
/// must be refused before memory is taken.
fn refusal(changes: Changes<'_>, header_shows: bool) -> Error {
    let file = match ModelFile::from_bytes(tiny::gguf_changed(MIXTURE, changes)) {
        Ok(file) => file,
        Err(error) => return error,
    };
    let whole = ModelPart::whole(file.config());
    let planned = Engine::from(Pool::new(1).unwrap()).load_bytes(&file, &whole);
    assert_eq!(planned.is_err(), header_shows, "{planned:?}");
    let loaded = Engine::from(Pool::new(1).unwrap()).load(&file, whole).unwrap_err();
    if let Err(planned) = planned {
        assert_eq!(planned.to_string(), loaded.to_string());
    }
    loaded
}

#[test]
fn counts_that_do_not_fit_are_refused() {
    let file = ModelFile::from_bytes(tiny::gguf(MIXTURE)).unwrap();
    let Experts { count, used, shared, .. } = file.config().experts.unwrap();
    assert_eq!((count, used, shared), (EXPERTS, USED_EXPERTS, 0));
    assert_eq!(file.config().intermediate_size, 256);
    let refused: [(&str, Option<u32>, &str); 12] = [
        ("expert_count", None, "expert_count is missing"),
        ("expert_count", Some(0), "expert_count is 0, outside 1 to 1024"),
        ("expert_count", Some(10_000), "expert_count is 10000, outside 1 to 1024"),
        ("expert_count", Some(2), "expert_used_count is 3, more than the 2 of expert_count"),
        ("expert_count", Some(7), "\"blk.0.ffn_gate_inp.weight\" is 8 x 256, but the metadata says 7 x 256"),
        ("expert_count", Some(1024), "\"blk.0.ffn_gate_inp.weight\" is 8 x 256, but the metadata says 1024 x 256"),
        ("expert_used_count", None, "expert_used_count is missing"),
        ("expert_used_count", Some(0), "expert_used_count is 0, outside 1 to 1024"),
        ("expert_used_count", Some(9), "expert_used_count is 9, more than the 8 of expert_count"),
        ("expert_feed_forward_length", None, "expert_feed_forward_length is missing"),
        ("expert_feed_forward_length", Some(0), "expert_feed_forward_length is 0"),
        ("expert_feed_forward_length", Some(128), "is 8 x 256 x 256, but the metadata says 8 experts of 128 x 256"),
    ];
    for (key, value, why) in refused {
        let integer = |name: &str, given: u32| if name == key { value } else { Some(given) };
        let error = refusal(Changes { integer: &integer, ..Changes::NONE }, true);
        assert!(error.to_string().contains(why), "{key} {value:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    // All experts, and one, are as good as some.
    for used in [1, EXPERTS as u32] {
        let integer = |name: &str, given: u32| Some(if name == "expert_used_count" { used } else { given });
        let file = tiny::gguf_changed(MIXTURE, Changes { integer: &integer, ..Changes::NONE });
        let file = ModelFile::from_bytes(file).unwrap();
        let engine = Engine::from(Pool::new(1).unwrap());
        let model = engine.load(&file, ModelPart::whole(file.config())).unwrap();
        forward(&model, &[1, 2, 3]).unwrap();
    }
}

#[test]
fn what_a_glm_says_of_its_layers_is_checked() {
    const GLM: Tiny = Tiny { architecture: "glm4moe", ..MIXTURE };
    let open = |key: &str, value: Option<u32>| {
        let integer = |name: &str, given: u32| if name == key { value } else { Some(given) };
        let file = ModelFile::from_bytes(tiny::gguf_changed(GLM, Changes { integer: &integer, ..Changes::NONE }))?;
        let whole = ModelPart::whole(file.config());
        Engine::from(Pool::new(1).unwrap()).load(&file, whole).map(|model| model.config().layers)
    };
    assert_eq!(open("", None).unwrap(), LAYERS, "the block that predicts is no layer");
    for (key, value, why) in [
        ("expert_shared_count", Some(2), "expert_shared_count is 2"),
        ("expert_gating_func", Some(1), "expert_gating_func is 1"),
        ("leading_dense_block_count", None, "has no tensor \"blk.0.ffn_gate_inp.weight\""),
        ("leading_dense_block_count", Some(2), "has no tensor \"blk.1.ffn_gate.weight\""),
        ("nextn_predict_layers", Some(4), "nextn_predict_layers is 4 of 4 blocks"),
        ("nextn_predict_layers", Some(0), "has no tensor \"blk.3.attn_"),
    ] {
        let error = open(key, value).unwrap_err();
        assert!(error.to_string().contains(why), "{key} {value:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    for name in ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"] {
        let full = format!("blk.1.{name}.weight");
        let changes = Changes { tensor: &|tensor| tensor.name != full, ..Changes::NONE };
        let file = ModelFile::from_bytes(tiny::gguf_changed(GLM, changes)).unwrap();
        let error = Engine::from(Pool::new(1).unwrap()).load(&file, ModelPart::whole(file.config())).unwrap_err();
        assert!(error.to_string().contains(&full), "{error}");
    }
}

/// Without its biases gpt-oss would compute something else.
#[test]
fn a_gpt_oss_without_its_biases_or_sinks_is_refused() {
    const GPT_OSS: Tiny = Tiny { architecture: "gpt-oss", ..MIXTURE };
    let engine = Engine::from(Pool::new(1).unwrap());
    let load = |changes: Changes<'_>| {
        let file = ModelFile::from_bytes(tiny::gguf_changed(GPT_OSS, changes)).unwrap();
        engine.load(&file, ModelPart::whole(file.config()))
    };
    load(Changes::NONE).unwrap();
    for name in [
        "attn_q.bias",
        "attn_k.bias",
        "attn_v.bias",
        "attn_output.bias",
        "attn_sinks.weight",
        "post_attention_norm.weight",
        "ffn_gate_inp.bias",
        "ffn_gate_exps.bias",
        "ffn_up_exps.bias",
        "ffn_down_exps.bias",
    ] {
        let full = format!("blk.1.{name}");
        let error = load(Changes { tensor: &|tensor| tensor.name != full, ..Changes::NONE }).unwrap_err();
        assert!(error.to_string().contains(&format!("the file has no tensor {full:?}")), "{error}");
        let shorter = |tensor: &mut Tensor| {
            if tensor.name == full {
                tensor.shape = vec![tensor.shape.iter().product::<usize>() - 1];
                tensor.bytes.truncate(tensor.bytes.len() - 4);
            }
            true
        };
        let error = load(Changes { tensor: &shorter, ..Changes::NONE }).unwrap_err();
        assert!(error.to_string().contains(&full) && error.to_string().contains("but the metadata says"), "{error}");
        let poisoned = |name: &str, elements: &mut [f32]| {
            if name == full {
                elements[0] = f32::NAN;
            }
        };
        let error = load(Changes { elements: &poisoned, ..Changes::NONE }).unwrap_err();
        assert!(error.to_string().contains(&full) && error.to_string().contains("not finite"), "{error}");
    }
}

/// The clamp of gpt-oss's activation makes a number of an infinity.
#[test]
fn an_infinity_before_the_clamp_of_gpt_oss_fails_the_pass() {
    let engine = Engine::from(Pool::new(1).unwrap());
    let huge = |name: &str, elements: &mut [f32]| {
        if name == "blk.1.ffn_up_exps.bias" || name == "blk.1.ffn_gate_exps.bias" {
            elements.fill(f32::MAX);
        }
        if name == "blk.1.post_attention_norm.weight" {
            elements.fill(1e38);
        }
    };
    let tiny = Tiny { architecture: "gpt-oss", weights: GgmlType::F32, seed: 7 };
    let file = ModelFile::from_bytes(tiny::gguf_with(tiny, huge)).unwrap();
    let model = engine.load(&file, ModelPart::whole(file.config())).unwrap();
    let error = forward(&model, &[1, 2, 3]).unwrap_err();
    assert!(matches!(error, Error::NonFinite { .. }), "{error}");
    assert!(error.to_string().contains("layer 1"), "{error}");
}

#[test]
fn tensors_that_are_missing_or_of_another_shape_or_type_are_refused() {
    let changed = |name: &'static str, change: &dyn Fn(&mut Tensor) -> bool| {
        let tensor = |tensor: &mut Tensor| tensor.name != name || change(tensor);
        refusal(Changes { tensor: &tensor, ..Changes::NONE }, true).to_string()
    };
    for name in ["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
        let full: &'static str = format!("blk.2.{name}.weight").leak();
        let error = changed(full, &|_| false);
        assert!(error.contains(&format!("the file has no tensor {full:?}")), "{error}");
        let fewer = |tensor: &mut Tensor| {
            let experts = tensor.shape.len() - 1;
            tensor.shape[experts] -= 1;
            true
        };
        let error = changed(full, &fewer);
        assert!(error.contains(full) && error.contains("but the metadata says 8"), "{error}");
        if name != "ffn_gate_inp" {
            // As many elements, but not in three dimensions.
            let flat = |tensor: &mut Tensor| {
                tensor.shape = vec![256, 256 * EXPERTS];
                true
            };
            let error = changed(full, &flat);
            assert!(error.contains("is 2048 x 256, but the metadata says 8 experts of 256 x 256"), "{error}");
        }
    }
    let rounded = |tensor: &mut Tensor| {
        tensor.ty = GgmlType::Q8_0;
        true
    };
    let error = changed("blk.1.ffn_gate_inp.weight", &rounded);
    assert!(error.contains("\"blk.1.ffn_gate_inp.weight\" is Q8_0: a router must be F32, F16 or BF16"), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_refused_in_routers_and_in_every_expert() {
    for bad in [f32::NAN, f32::INFINITY] {
        let elements = |name: &str, elements: &mut [f32]| {
            if name == "blk.1.ffn_gate_inp.weight" {
                elements[1000] = bad;
            }
        };
        let error = refusal(Changes { elements: &elements, ..Changes::NONE }, false).to_string();
        assert!(error.contains("\"blk.1.ffn_gate_inp.weight\" holds numbers that are not finite"), "{error}");
    }
    for expert in [0, EXPERTS - 1] {
        let tensor = |tensor: &mut Tensor| {
            if tensor.name == "blk.0.ffn_down_exps.weight" {
                let at = tensor.bytes.len() / EXPERTS * expert;
                tensor.bytes[at..at + 2].fill(0xff);
            }
            true
        };
        let error = refusal(Changes { tensor: &tensor, ..Changes::NONE }, false).to_string();
        assert!(error.contains("\"blk.0.ffn_down_exps.weight\" holds numbers that are not finite"), "{error}");
    }
}

fn forward(model: &Stage, tokens: &[u32]) -> Result<Vec<f32>, Error> {
    let mut cache = model.cache(&PageBudget::new(1 << 30));
    let mut steps = [Step { cache: &mut cache, rows: tokens.len(), logits: Logits::Last }];
    let result =
        model.forward(&mut steps, Input::Tokens(tokens), &Cancel::new()).map(|output| output.logits(0).to_vec());
    assert_eq!(cache.len(), if result.is_ok() { tokens.len() } else { 0 });
    result
}

/// Finite weights whose products overflow: the pass fails by the first such layer, whoever computes it.
#[test]
fn a_router_that_overflows_is_an_error_that_names_its_layer() {
    for first in 0..LAYERS {
        let elements = |name: &str, elements: &mut [f32]| {
            if (first..LAYERS).any(|layer| name == format!("blk.{layer}.ffn_gate_inp.weight")) {
                elements[..256].fill(3e38);
            }
        };
        let file = tiny::gguf_changed(MIXTURE, Changes { elements: &elements, ..Changes::NONE });
        let file = ModelFile::from_bytes(file).unwrap();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for (threads, rows) in [(1, 1), (2, 1), (2, 9), (3, 40)] {
                let engine = Engine::from(Pool::with_isa(threads, isa).unwrap());
                let model = engine.load(&file, ModelPart::whole(file.config())).unwrap();
                let error = forward(&model, &vec![5; rows]).unwrap_err().to_string();
                let why = format!("the router values of layer {first} are not finite");
                assert!(error.contains(&why), "{isa:?}, {threads} threads, {rows} rows: {error}");
            }
        }
        // A stage counts its layers from the model's first.
        if first > 0 {
            let part = ModelPart { layers: first..LAYERS, embedding: false, head: false };
            let engine = Engine::from(Pool::new(1).unwrap());
            let stage = engine.load(&file, part).unwrap();
            let mut cache = stage.cache(&PageBudget::new(1 << 30));
            let mut steps = [Step { cache: &mut cache, rows: 1, logits: Logits::None }];
            let error =
                stage.forward(&mut steps, Input::Activations(&[1.0; 256]), &Cancel::new()).unwrap_err().to_string();
            assert!(error.contains(&format!("the router values of layer {first} are not finite")), "{error}");
        }
    }
}

#[test]
fn every_expert_counts_as_memory_of_its_layer() {
    let file = ModelFile::from_bytes(tiny::gguf(MIXTURE)).unwrap();
    let engine = Engine::from(Pool::new(2).unwrap());
    for layers in [0..1, 1..LAYERS] {
        let part = ModelPart { embedding: false, head: false, layers: layers.clone() };
        let told = engine.load_bytes(&file, &part).unwrap();
        let loaded = engine.load(&file, part).unwrap();
        assert_eq!((told.weights, told.scratch), (loaded.memory_bytes(), 0));
        let names = [
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate_inp",
            "ffn_gate_exps",
            "ffn_up_exps",
            "ffn_down_exps",
        ];
        let bytes = |layer: usize| -> u64 {
            names
                .iter()
                .map(|name| file.gguf().require(&format!("blk.{layer}.{name}.weight")).unwrap().bytes.len() as u64)
                .sum()
        };
        let in_file: u64 = layers.map(bytes).sum();
        // Packed, the eight rows of a router fill a tile of sixteen.
        let padding = (told.weights - in_file) as f64 / in_file as f64;
        assert!((0.0..0.02).contains(&padding), "{} packed, {in_file} in the file", told.weights);
    }
}

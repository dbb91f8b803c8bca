//! Files whose layers are gated delta nets: what of them is refused, and by what message.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

#[path = "exactness/tiny.rs"]
#[allow(dead_code, reason = "the other tests' own")]
mod tiny;

use pangea_compute::engine::Stage;
use pangea_compute::gguf::GgmlType;
use pangea_compute::model::{ModelFile, ModelPart};
use pangea_compute::{Engine, Error, ErrorKind, Pool};
use tiny::{Changes, LAYERS, Tensor, Tiny};

const DENSE: Tiny = Tiny { architecture: "qwen35", weights: GgmlType::Q8_0, seed: 7 };
const MIXTURE: Tiny = Tiny { architecture: "qwen35moe", ..DENSE };

fn load(tiny: Tiny, changes: Changes<'_>) -> Result<Stage, Error> {
    let file = ModelFile::from_bytes(tiny::gguf_changed(tiny, changes))?;
    let whole = ModelPart::whole(file.config());
    Engine::from(Pool::new(1).unwrap()).load(&file, whole)
}

#[test]
fn sizes_that_make_no_sense_are_refused_by_their_keys() {
    for tiny in [DENSE, MIXTURE, Tiny { architecture: "qwen3next", ..DENSE }] {
        assert_eq!(load(tiny, Changes::NONE).unwrap().config().layers, LAYERS);
    }
    type Keys = &'static [(&'static str, Option<u32>)];
    let refused: [(Tiny, Keys, &str); 21] = [
        (DENSE, &[("ssm.group_count", None)], "ssm.group_count is missing"),
        (DENSE, &[("ssm.group_count", Some(0))], "ssm.group_count is 0"),
        (DENSE, &[("ssm.group_count", Some(3))], "4: so many value heads cannot share the 3 key heads"),
        (DENSE, &[("ssm.group_count", Some(8))], "4: so many value heads cannot share the 8 key heads"),
        (
            DENSE,
            &[("ssm.group_count", Some(4))],
            "\"blk.0.attn_qkv.weight\" is 512 x 256, but the metadata says 768 x 256",
        ),
        (DENSE, &[("ssm.time_step_rank", None)], "ssm.time_step_rank is missing"),
        (DENSE, &[("ssm.time_step_rank", Some(6))], "ssm.inner_size is 256 for 6 value heads"),
        (DENSE, &[("ssm.inner_size", Some(96))], "must be a multiple of 16 elements"),
        (DENSE, &[("ssm.inner_size", Some(1 << 21))], "ssm.inner_size is 2097152, outside 16 to 1048576"),
        (DENSE, &[("ssm.state_size", Some(8))], "ssm.state_size is 8, outside 16 to 512"),
        (DENSE, &[("ssm.state_size", Some(1 << 20))], "ssm.state_size is 1048576"),
        (DENSE, &[("ssm.state_size", Some(40))], "must be a multiple of 16 elements"),
        (
            DENSE,
            &[("ssm.time_step_rank", Some(4096)), ("ssm.inner_size", Some(1 << 18))],
            "4096 states of 64 x 64 are more than 16.0 MiB for each layer",
        ),
        (DENSE, &[("ssm.conv_kernel", Some(0))], "ssm.conv_kernel is 0, outside 1 to 16"),
        (DENSE, &[("ssm.conv_kernel", Some(17))], "ssm.conv_kernel is 17"),
        (DENSE, &[("ssm.conv_kernel", Some(3))], "\"blk.0.ssm_conv1d.weight\" has 2048 elements"),
        (DENSE, &[("full_attention_interval", Some(0))], "full_attention_interval is 0"),
        (DENSE, &[("full_attention_interval", Some(1))], "has no tensor \"blk.0.attn_q.weight\""),
        (DENSE, &[("full_attention_interval", None)], "has no tensor \"blk.2.attn_qkv.weight\""),
        (DENSE, &[("rope.dimension_count", Some(32))], "rope.dimension_sections are [3, 3, 2, 0]"),
        (MIXTURE, &[("expert_shared_feed_forward_length", Some(512))], "expert_shared_feed_forward_length is 512"),
    ];
    for (tiny, keys, why) in refused {
        let integer =
            |name: &str, given: u32| keys.iter().find(|(key, _)| *key == name).map_or(Some(given), |(_, value)| *value);
        let error = load(tiny, Changes { integer: &integer, ..Changes::NONE }).unwrap_err();
        assert!(error.to_string().contains(why), "{keys:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_block_that_predicts_further_tokens_is_no_layer() {
    let with = |value: u32| {
        let integer = |name: &str, given: u32| Some(if name == "nextn_predict_layers" { value } else { given });
        load(DENSE, Changes { integer: &integer, ..Changes::NONE })
    };
    assert_eq!(with(1).unwrap().config().layers, LAYERS);
    assert!(with(4).unwrap_err().to_string().contains("nextn_predict_layers is 4 of 4 blocks"));
    assert!(with(0).unwrap_err().to_string().contains("has no tensor \"blk.3.attn_qkv.weight\""));
}

#[test]
fn tensors_that_are_missing_or_damaged_are_refused_by_their_names() {
    for (tiny, names) in [
        (
            DENSE,
            &[
                "blk.0.attn_qkv.weight",
                "blk.0.attn_gate.weight",
                "blk.0.ssm_beta.weight",
                "blk.0.ssm_alpha.weight",
                "blk.0.ssm_out.weight",
                "blk.0.ssm_conv1d.weight",
                "blk.0.ssm_dt.bias",
                "blk.0.ssm_a",
                "blk.0.ssm_norm.weight",
                "blk.0.post_attention_norm.weight",
                "blk.2.attn_q_norm.weight",
                "blk.2.attn_k_norm.weight",
            ][..],
        ),
        (MIXTURE, &["blk.0.ffn_gate_inp_shexp.weight", "blk.2.ffn_up_shexp.weight"][..]),
        (Tiny { architecture: "qwen3next", ..DENSE }, &["blk.1.ssm_ba.weight"][..]),
    ] {
        for full in names {
            let error = load(tiny, Changes { tensor: &|tensor| tensor.name != *full, ..Changes::NONE }).unwrap_err();
            assert!(error.to_string().contains(&format!("the file has no tensor {full:?}")), "{error}");
        }
    }
    for full in ["blk.1.ssm_a", "blk.1.ssm_conv1d.weight", "blk.0.ssm_dt.bias", "blk.1.ssm_norm.weight"] {
        let poisoned = |name: &str, elements: &mut [f32]| {
            if name == full {
                elements[1] = f32::NAN;
            }
        };
        let error = load(DENSE, Changes { elements: &poisoned, ..Changes::NONE }).unwrap_err();
        assert!(error.to_string().contains(full) && error.to_string().contains("not finite"), "{error}");
    }
    let grows = |name: &str, elements: &mut [f32]| {
        if name == "blk.1.ssm_a" {
            elements[1] = 0.5;
        }
    };
    let error = load(DENSE, Changes { elements: &grows, ..Changes::NONE }).unwrap_err().to_string();
    assert!(error.contains("\"blk.1.ssm_a\" holds 0.5: a state would grow without end"), "{error}");
}

#[test]
fn an_older_form_of_qwen3_nexts_files_is_told_apart() {
    let renamed = |tensor: &mut Tensor| {
        if tensor.name == "blk.0.attn_qkv.weight" {
            tensor.name = "blk.0.ssm_in.weight".to_owned();
        }
        true
    };
    let tiny = Tiny { architecture: "qwen3next", ..DENSE };
    let error = load(tiny, Changes { tensor: &renamed, ..Changes::NONE }).unwrap_err().to_string();
    assert!(error.contains("\"blk.0.ssm_in.weight\" is of an older form"), "{error}");
}

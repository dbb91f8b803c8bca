//! What is refused, by its name, and changes nothing: numbers that are not finite, damaged weights, ranges that are not there.

use super::*;

#[test]
fn what_cannot_be_computed_is_an_error_that_changes_nothing() {
    let file = tiny("llama", GgmlType::Q4_0);
    let engine = engine(2, Isa::best());
    let model = engine.load(&file, ModelPart::whole(file.config())).unwrap();
    let budget = PageBudget::new(model.cache_shape().bytes_for(128));
    let mut cache = model.cache(&budget);
    let forward = |cache: &mut Cache, tokens: &[u32]| {
        let mut steps = [Step { cache, rows: tokens.len(), logits: Logits::Last }];
        model.forward(&mut steps, Input::Tokens(tokens), &Cancel::new()).map(|_| ())
    };
    forward(&mut cache, &text(1, 100)).unwrap();
    let cases: [(&[u32], &str); 4] = [
        (&[], "at least one token"),
        (&[VOCABULARY as u32], "not in the vocabulary"),
        (&[1; 600], "context of 512"),
        (&[1; 60], "session memory is full"),
    ];
    for (tokens, why) in cases {
        let error = forward(&mut cache, tokens).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!((cache.len(), budget.used_bytes()), (100, budget.max_bytes()), "{why}");
    }
    forward(&mut cache, &text(2, 28)).unwrap();
    let mut steps = [Step { cache: &mut cache, rows: 1, logits: Logits::Last }];
    assert!(model.forward(&mut steps, Input::Activations(&[0.0; 256]), &Cancel::new()).is_err());

    let part = ModelPart { layers: 1..3, embedding: false, head: false };
    let stage = engine.load(&file, part).unwrap();
    let mut steps = [Step { cache: &mut cache, rows: 1, logits: Logits::Last }];
    assert!(
        stage.forward(&mut steps, Input::Activations(&[0.0; 256]), &Cancel::new()).is_err(),
        "a cache of other layers"
    );
    let budget = PageBudget::new(1 << 20);
    let mut cache = stage.cache(&budget);
    let mut run = |x: &[f32]| {
        let mut steps = [Step { cache: &mut cache, rows: 1, logits: Logits::None }];
        stage.forward(&mut steps, Input::Activations(x), &Cancel::new()).map(|output| output.activations().to_vec())
    };
    assert!(run(&[f32::NAN; 256]).unwrap_err().to_string().contains("not finite"));
    assert!(run(&[1.0; 255]).is_err());
    assert_eq!(run(&[1.0; 256]).unwrap().len(), 256);
}

/// Finite weights so large that a branch of a layer overflows: quantised, capped or normalised, what is not finite became a
/// number, another one on each instruction set.
#[test]
fn what_is_not_finite_inside_a_branch_is_an_error_on_every_family() {
    let run = |file: &ModelFile, isa: Isa, threads: usize, rows: usize| {
        let engine = engine(threads, isa);
        let model = engine.load(file, ModelPart::whole(file.config())).unwrap();
        let mut cache = model.cache(&PageBudget::new(1 << 20));
        let tokens = text(1, rows);
        let mut steps = [Step { cache: &mut cache, rows, logits: Logits::Last }];
        let output = model.forward(&mut steps, Input::Tokens(&tokens), &Cancel::new());
        output.map(|mut output| output.logits_mut(0).iter().map(|logit| logit.to_bits()).collect::<Vec<u32>>())
    };
    // Whole vectors, or one element of them, with which no number need overflow; then the families agree on the logits.
    let vectors: [(&str, &str, f32); 15] = [
        ("llama", "blk.1.ffn_norm.weight", 3e38),
        ("llama", "blk.1.attn_norm.weight", 3e38),
        ("llama", "blk.1.ffn_norm.weight", 1e30),
        ("llama", "output_norm.weight", 3e38),
        ("qwen2", "blk.1.attn_q.bias", 3e38),
        ("qwen3", "blk.1.attn_q_norm.weight", 3e38),
        ("qwen3moe", "blk.1.ffn_gate_inp.weight", 3e38),
        ("qwen3moe", "blk.1.ffn_norm.weight", 1e30),
        ("gemma3", "blk.1.attn_q_norm.weight", 1e37),
        ("gemma3", "blk.1.ffn_norm.weight", 1e25),
        ("gemma3", "blk.1.post_ffw_norm.weight", 1e25),
        ("qwen35", "blk.1.attn_norm.weight", 3e38),
        ("qwen35", "blk.0.ssm_conv1d.weight", 3e38),
        ("qwen35", "blk.0.ssm_norm.weight", 3e38),
        ("qwen35moe", "blk.2.ffn_gate_inp_shexp.weight", 3e38),
    ];
    for (architecture, name, value) in vectors {
        for whole in [true, false] {
            let tiny = Tiny { architecture, weights: GgmlType::Q8_0, seed: 7 };
            let bytes = tiny::gguf_with(tiny, |of, elements| {
                let many = if whole { elements.len() } else { 1 };
                if of == name {
                    elements[..many].fill(value);
                }
            });
            let file = ModelFile::from_bytes(bytes).unwrap();
            let mut said = [None, None];
            for isa in families() {
                for (threads, rows) in [(1, 1), (2, 1), (2, 9)] {
                    let why = format!("{name} of {value:e}, whole: {whole}, {isa:?}, {threads} threads, {rows} rows");
                    let result = run(&file, isa, threads, rows).map_err(|error| error.to_string());
                    let is_known = |error: &String| {
                        ["not finite", "exceed half precision", "exceed 2^100"].iter().any(|why| error.contains(why))
                    };
                    assert!(result.as_ref().err().is_none_or(is_known), "{why}: {result:?}");
                    assert!(!whole || result.is_err(), "{why}");
                    let said = said[usize::from(rows > 1)].get_or_insert_with(|| result.clone());
                    assert_eq!(*said, result, "{why}");
                }
            }
        }
    }
}

/// Rows of one pass and threads: every row on every thread, rows of their own, more rows than one group.
const SHAPES: [(usize, usize); 4] = [(1, 1), (1, 2), (9, 2), (9, 3)];

/// Weights so large, in one place each, that its results overflow or cancel to NaN there.
#[test]
fn the_error_names_the_step_and_layer_that_first_gave_no_finite_value() {
    let places: [(&str, &str, &str); 21] = [
        ("gemma3", "token_embd.weight", "the token embeddings"),
        ("llama", "blk.1.attn_norm.weight", "the attention norms of layer 1"),
        ("llama", "blk.1.attn_q.weight", "the queries of layer 1"),
        ("llama", "blk.2.attn_k.weight", "the keys of layer 2"),
        ("llama", "blk.1.attn_v.weight", "the values of layer 1"),
        ("qwen3", "blk.0.attn_q_norm.weight", "the queries of layer 0"),
        ("qwen3", "blk.1.attn_k_norm.weight", "the keys of layer 1"),
        ("llama", "blk.0.attn_output.weight", "the attention outputs of layer 0"),
        ("gemma3", "blk.1.post_attention_norm.weight", "the attention outputs of layer 1"),
        ("llama", "blk.1.ffn_norm.weight", "the feed-forward norms of layer 1"),
        ("llama", "blk.1.ffn_gate.weight", "the gated activations of layer 1"),
        ("gemma3", "blk.2.ffn_up.weight", "the gated activations of layer 2"),
        ("llama", "blk.2.ffn_down.weight", "the feed-forward outputs of layer 2"),
        ("llama", "output_norm.weight", "the output norms"),
        ("llama", "output.weight", "the logits"),
        ("qwen35", "blk.1.attn_qkv.weight", "the delta net's inputs of layer 1"),
        ("qwen35", "blk.0.ssm_alpha.weight", "the delta net's inputs of layer 0"),
        ("qwen3next", "blk.0.ssm_ba.weight", "the delta net's inputs of layer 0"),
        ("qwen35", "blk.0.attn_gate.weight", "the attention results of layer 0"),
        ("qwen35", "blk.1.ssm_out.weight", "the attention outputs of layer 1"),
        ("qwen35moe", "blk.0.ffn_gate_inp_shexp.weight", "the router values of layer 0"),
    ];
    for (architecture, name, step) in places {
        let tiny = Tiny { architecture, weights: GgmlType::F32, seed: 7 };
        let bytes = tiny::gguf_with(tiny, |of, elements| {
            if of == name {
                // Both signs: sums reach an infinity, or add both and are NaN.
                elements.iter_mut().enumerate().for_each(|(i, x)| *x = if i % 3 == 0 { -3e38 } else { 3e38 });
            }
        });
        let file = ModelFile::from_bytes(bytes).unwrap();
        for isa in families() {
            for (rows, threads) in SHAPES {
                let engine = engine(threads, isa);
                let model = engine.load(&file, ModelPart::whole(file.config())).unwrap();
                let mut cache = model.cache(&PageBudget::new(1 << 20));
                let tokens = text(1, rows);
                let mut steps = [Step { cache: &mut cache, rows, logits: Logits::All }];
                let error = model.forward(&mut steps, Input::Tokens(&tokens), &Cancel::new()).unwrap_err();
                let expected = format!("forward: {step} are not finite");
                assert!(error.to_string().starts_with(&expected), "{name}, {isa:?}, {threads} threads: {error}");
                assert_eq!((error.kind(), cache.len()), (ErrorKind::Internal, 0), "{name}");
            }
        }
    }
}

/// One element of one row, in each place of a block of sixteen lanes and of thirty-two quantised elements.
#[test]
fn an_activation_that_is_not_finite_is_an_error_wherever_it_stands() {
    for ty in [GgmlType::Q4_0, GgmlType::Q6K, GgmlType::F16] {
        let file = tiny("qwen2", ty);
        for isa in families() {
            for (rows, threads) in SHAPES {
                let engine = engine(threads, isa);
                let part = ModelPart { layers: 1..LAYERS, embedding: false, head: false };
                let stage = engine.load(&file, part).unwrap();
                let mut cache = stage.cache(&PageBudget::new(1 << 20));
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    for at in [0, 15, 16, 31, 32, WIDTH - 1] {
                        // The others are so small that they vanish beside any number.
                        let mut x = vec![1e-30; rows * WIDTH];
                        x[(rows - 1) * WIDTH + at] = bad;
                        let mut steps = [Step { cache: &mut cache, rows, logits: Logits::None }];
                        let error =
                            stage.forward(&mut steps, Input::Activations(&x), &Cancel::new()).unwrap_err().to_string();
                        let expected = "forward: the activations received for layer 1 are not finite";
                        assert!(error.starts_with(expected), "{ty} {isa:?} {rows} rows, {bad} at {at}: {error}");
                        assert_eq!(cache.len(), 0);
                    }
                }
            }
        }
    }
}

#[test]
fn the_header_tells_what_loading_a_part_takes() {
    let engine = engine(3, Isa::best());
    // Its vocabulary is no whole number of tiles: packed, it is larger than in the file.
    for (architecture, ty) in
        [("llama", GgmlType::Q4_0), ("qwen2", GgmlType::Q6K), ("gemma3", GgmlType::F16), ("qwen3next", GgmlType::Q5_0)]
    {
        let file = tiny(architecture, ty);
        let config = file.config().clone();
        let whole = ModelPart::whole(&config);
        for part in [whole.clone(), ModelPart::of_layers(&config, 0..1), ModelPart::of_layers(&config, 1..LAYERS)] {
            let told = engine.load_bytes(&file, &part).unwrap();
            let loaded = engine.load(&file, part).unwrap();
            assert_eq!(told.weights, loaded.memory_bytes(), "{architecture}");
            // Rows are put in order for the architecture whose pairs are neighbours: 16 rows on each thread.
            let row_bytes = (WIDTH / ty.block_len() * ty.block_bytes()) as u64;
            let ordered = if architecture == "llama" { 3 * 16 * row_bytes } else { 0 };
            assert_eq!(told.scratch, ordered, "{architecture}");
        }
        let beyond = ModelPart { layers: 0..LAYERS + 1, ..whole };
        assert_eq!(engine.load_bytes(&file, &beyond).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn damaged_weights_and_ranges_that_are_not_there_are_refused() {
    let engine = engine(1, Isa::best());
    for ty in TYPES {
        let mut bytes = tiny::gguf(Tiny { architecture: "qwen2", weights: ty, seed: 3 });
        let file = ModelFile::from_bytes(bytes.clone()).unwrap();
        let view = file.gguf().require("blk.1.ffn_up.weight").unwrap();
        let at = bytes.windows(64).position(|window| window == &view.bytes[..64]).unwrap();
        // Scales of blocks, or elements, become infinite or NaN.
        let end = at + ty.block_bytes();
        bytes[at..end].fill(0xff);
        let damaged = ModelFile::from_bytes(bytes).unwrap();
        let error = engine.load(&damaged, ModelPart::whole(damaged.config())).unwrap_err();
        assert!(error.to_string().contains("blk.1.ffn_up.weight"), "{}: {error}", ty.name());
        // Layers before and after it are none of its business.
        engine.load(&damaged, ModelPart { layers: 0..1, embedding: true, head: false }).unwrap();
        assert!(engine.load(&file, ModelPart { layers: 2..4, embedding: false, head: true }).is_err());
    }
}

#[test]
fn large_exponents_are_refused_only_where_an_element_overflows() {
    let engine = engine(1, Isa::best());
    let bytes = tiny::gguf(Tiny { architecture: "qwen2", weights: GgmlType::MXFP4, seed: 3 });
    let file = ModelFile::from_bytes(bytes.clone()).unwrap();
    let view = file.gguf().require("blk.1.ffn_up.weight").unwrap();
    let at = bytes.windows(64).position(|window| window == &view.bytes[..64]).unwrap();
    // 3, 4, 0.5 and 6 times powers of two; the largest float is a little less than 2¹²⁸.
    for (exponent, codes, fits) in [(253, 0x55, true), (253, 0xe6, false), (254, 0x11, true), (254, 0x70, false)] {
        let mut bytes = bytes.clone();
        bytes[at] = exponent;
        bytes[at + 1..at + 17].fill(codes);
        let file = ModelFile::from_bytes(bytes).unwrap();
        let loaded = engine.load(&file, ModelPart::whole(file.config()));
        assert_eq!(loaded.is_ok(), fits, "exponent {exponent}, codes {codes:x}");
    }
}

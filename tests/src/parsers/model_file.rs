//! Properties of model files: GGUF and the tokenizers in their metadata, with small valid files as seeds.
//! Never holds a real model.

use pangea_compute::gguf::Gguf;
use pangea_compute::model::{Manifest, PartBytes};
use pangea_compute::tokenizer::{Detokenizer, Tokenizer};

/// A GGUF file: every tensor that is found lies inside, has as many elements as its shape says, and can be read; no part of the
/// model is larger than the file.
pub fn gguf(bytes: &[u8]) {
    let Ok(file) = Gguf::from_bytes(bytes.to_vec()) else { return };
    for (key, _) in file.metadata().iter() {
        let m = file.metadata();
        let _ = (m.get_str(key), m.get_u64(key), m.get_f64(key), m.get_bool(key));
        let _ = (m.get_strs(key), m.get_f32s(key), m.get_i32s(key), m.get_bools(key));
    }
    for tensor in file.tensors().flatten() {
        let elements: u64 = tensor.shape.iter().product();
        assert_eq!(tensor.elements() as u64, elements);
        assert!(tensor.bytes.len() <= bytes.len());
        assert_eq!(tensor.to_f32().expect("it is there").len() as u64, elements);
    }
    if let Ok(parts) = PartBytes::of(&file) {
        assert!(parts.layer(1) <= file.size_bytes() && parts.embedding() + parts.head() <= file.size_bytes());
    }
}

/// A manifest: it has one form, its pieces lie in its file, and everything is selected for the whole of it.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::from_bytes(bytes) else { return };
    assert_eq!(manifest.to_bytes(), bytes);
    let mut end = 0;
    for piece in manifest.pieces() {
        for part in 0..piece.parts().len() as u32 {
            let range = piece.part_range(part).expect("it has a hash");
            assert!(range.start >= end && range.end > range.start && range.end <= manifest.size_bytes());
            end = range.end;
        }
        assert_eq!(end, piece.offset() + piece.len_bytes());
    }
    assert!(manifest.select(&manifest.whole()).len() <= manifest.pieces().len());
}

pub(super) fn manifest_seeds() -> Vec<Vec<u8>> {
    let of =
        |gguf: Vec<u8>| Manifest::of(&Gguf::from_bytes(gguf).expect("a seed"), 1).expect("a small file").to_bytes();
    gguf_seeds().into_iter().map(of).collect()
}

/// A tokenizer in a GGUF file's metadata, and any text: tokens are of the vocabulary, and come back as the same text
/// at once and one by one.
pub fn tokenizer(bytes: &[u8]) {
    let Ok(file) = Gguf::from_bytes(bytes.to_vec()) else { return };
    let Ok(tokenizer) = Tokenizer::from_gguf(file.metadata()) else { return };
    let text = String::from_utf8_lossy(bytes);
    for special in [false, true] {
        let ids = tokenizer.encode(&text, special, special);
        let _ = tokenizer.decode(&ids, special);
        let mut all = Vec::new();
        let mut detokenizer = Detokenizer::new();
        let mut streamed = String::new();
        for id in ids {
            assert!((id as usize) < tokenizer.vocabulary());
            all.extend_from_slice(&tokenizer.token_bytes(id, false).expect("it exists"));
            streamed += &detokenizer.push(&tokenizer, id);
        }
        streamed += &detokenizer.finish();
        assert_eq!(streamed, String::from_utf8_lossy(&all));
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn array(element: u32, values: &[Vec<u8>]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), &values.concat()].concat()
}

/// A file of these pairs (key, type, value), with one tensor of each of two types.
fn file(pairs: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
    let mut out =
        [&b"GGUF"[..], &3u32.to_le_bytes(), &2u64.to_le_bytes(), &(pairs.len() as u64).to_le_bytes()].concat();
    for (key, value_type, value) in pairs {
        out.extend([&string(key)[..], &value_type.to_le_bytes(), value].concat());
    }
    for (name, len, type_id, offset) in [("a", 4u64, 0u32, 0u64), ("b", 32, 8, 32)] {
        out.extend([&string(name)[..], &1u32.to_le_bytes(), &len.to_le_bytes(), &type_id.to_le_bytes()].concat());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32) + 32 + 34, 0x3c);
    out
}

pub(super) fn gguf_seeds() -> Vec<Vec<u8>> {
    let mut seeds = tokenizer_seeds();
    seeds.push(file(&[
        ("general.alignment", 4, 32u32.to_le_bytes().to_vec()),
        ("i", 1, vec![0xff]),
        ("f", 12, 0.5f64.to_le_bytes().to_vec()),
        ("b", 9, array(7, &[vec![1], vec![0]])),
    ]));
    seeds.push(file(&[]));
    seeds
}

pub(super) fn tokenizer_seeds() -> Vec<Vec<u8>> {
    let strings = |texts: &[&str]| array(8, &texts.iter().map(|text| string(text)).collect::<Vec<_>>());
    let i32s = |values: &[i32]| array(5, &values.iter().map(|value| value.to_le_bytes().to_vec()).collect::<Vec<_>>());
    let f32s = |values: &[f32]| array(6, &values.iter().map(|value| value.to_le_bytes().to_vec()).collect::<Vec<_>>());
    let byte_level = |name: &str| {
        file(&[
            ("tokenizer.ggml.model", 8, string("gpt2")),
            ("tokenizer.ggml.pre", 8, string(name)),
            ("tokenizer.ggml.tokens", 9, strings(&["e", "n", "Ġ", "en", "Ġen", "t", "<|im_end|>", "ken", "k"])),
            ("tokenizer.ggml.token_type", 9, i32s(&[1, 1, 1, 1, 1, 1, 3, 4, 1])),
            ("tokenizer.ggml.merges", 9, strings(&["e n", "Ġ en", "k en"])),
            ("tokenizer.ggml.eos_token_id", 4, 6u32.to_le_bytes().to_vec()),
        ])
    };
    let mut seeds: Vec<Vec<u8>> = ["smollm", "llama-bpe", "qwen2", "gpt-2", "default"].map(byte_level).to_vec();
    seeds.push(file(&[
        ("tokenizer.ggml.model", 8, string("llama")),
        ("tokenizer.ggml.tokens", 9, strings(&["<unk>", "<s>", "</s>", "<0x0A>", "▁", "e", "n", "en", "▁en", "gg"])),
        ("tokenizer.ggml.scores", 9, f32s(&[0.0, 0.0, 0.0, 0.0, -1.0, -1.0, -1.0, -2.0, -3.0, 0.5])),
        ("tokenizer.ggml.token_type", 9, i32s(&[2, 3, 3, 6, 1, 1, 1, 1, 1, 4])),
        ("tokenizer.ggml.add_eos_token", 7, vec![1]),
    ]));
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_a_whole_file() {
        for seed in gguf_seeds() {
            assert_eq!(Gguf::from_bytes(seed).expect("it is whole").tensors().flatten().count(), 2);
        }
        for seed in tokenizer_seeds() {
            let file = Gguf::from_bytes(seed).expect("it is whole");
            let tokenizer = Tokenizer::from_gguf(file.metadata()).expect("it fits together");
            assert!(!tokenizer.encode("ken en", false, false).is_empty());
        }
    }
}

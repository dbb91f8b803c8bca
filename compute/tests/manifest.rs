//! Manifests of model files: one form, hostile ones refused, and a selection that is just what a range of layers reads.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

#[allow(dead_code, reason = "made for a test that needs more of it")]
#[path = "exactness/tiny.rs"]
mod tiny;

use pangea_compute::gguf::{GgmlType, Gguf};
use pangea_compute::model::manifest::{MAX_MANIFEST_BYTES, PART_BYTES};
use pangea_compute::model::{Architecture, LayerPlan, Manifest, ModelFile, ModelPart, PartBytes, StagePlan, Wanted};
use pangea_compute::{Engine, Error, Pool};
use proptest::prelude::*;
use tiny::{EXPERTS, LAYERS, Tiny, USED_EXPERTS};

fn tiny(architecture: &'static str) -> Vec<u8> {
    tiny::gguf(Tiny { architecture, weights: GgmlType::F16, seed: 5 })
}

fn manifest(bytes: Vec<u8>) -> Manifest {
    Manifest::of(&Gguf::from_bytes(bytes).unwrap(), 2).unwrap()
}

/// A file of F32 tensors with these lengths, and zeros in them.
fn file(tensors: &[(&str, u64)]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(0u64.to_le_bytes());
    let mut offset = 0u64;
    for (name, len) in tensors {
        out.extend((name.len() as u64).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(len.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + len * 4).next_multiple_of(32);
    }
    out.resize(out.len().next_multiple_of(32) + offset as usize, 0);
    out
}

#[test]
fn a_manifest_has_one_form_and_it_is_pinned() {
    let bytes = file(&[("a", 8), ("blk.0.b", 24)]);
    let manifest = manifest(bytes.clone());
    let written = manifest.to_bytes();
    let hash = |range: std::ops::Range<usize>| blake3::hash(&bytes[range]).as_bytes().to_vec();
    // Written out: magic and version, file size, count, then header and tensors in the order of the file.
    let expected: Vec<u8> = [
        b"pangeaM\x01".to_vec(),
        224u64.to_le_bytes().to_vec(),
        3u32.to_le_bytes().to_vec(),
        [vec![0, 0], 0u64.to_le_bytes().to_vec(), 96u64.to_le_bytes().to_vec(), hash(0..96)].concat(),
        [vec![1, 0], b"a".to_vec(), 96u64.to_le_bytes().to_vec(), 32u64.to_le_bytes().to_vec(), hash(96..128)].concat(),
        [vec![7, 0], b"blk.0.b".to_vec(), 128u64.to_le_bytes().to_vec(), 96u64.to_le_bytes().to_vec(), hash(128..224)]
            .concat(),
    ]
    .concat();
    assert_eq!(bytes.len(), 224);
    assert_eq!(written, expected);
    assert_eq!(manifest.digest().as_bytes(), blake3::hash(&written).as_bytes());
    assert_eq!(Manifest::from_bytes(&written).unwrap(), manifest);
}

#[test]
fn it_is_the_same_on_any_number_of_threads_and_another_for_any_other_byte() {
    let bytes = tiny("llama");
    let gguf = Gguf::from_bytes(bytes.clone()).unwrap();
    let digests: Vec<_> = [1, 2, 7].map(|threads| Manifest::of(&gguf, threads).unwrap().digest()).into();
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    let mut other = bytes;
    *other.last_mut().unwrap() ^= 1;
    assert_ne!(manifest(other).digest(), digests[0]);
}

#[test]
fn large_tensors_are_hashed_in_parts_that_tell_which_is_wrong() {
    let len = PART_BYTES / 4 * 2 + 5;
    let manifest = manifest(file(&[("large", len)]));
    let piece = &manifest.pieces()[1];
    assert_eq!(piece.parts().len(), 3);
    let ranges: Vec<_> = (0..3).map(|part| piece.part_range(part).unwrap()).collect();
    assert_eq!(ranges[0].start, piece.offset());
    assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
    assert_eq!(ranges[2].end - ranges[2].start, 20);
    assert_eq!(piece.part_range(3), None);
    let mut part = vec![0; PART_BYTES as usize];
    assert!(piece.is_part(1, &part) && !piece.is_part(2, &part) && !piece.is_part(3, &part));
    part[77] = 1;
    assert!(!piece.is_part(1, &part));
}

/// A piece as written.
fn piece(name: &str, offset: u64, len: u64, hashes: usize) -> Vec<u8> {
    let name_len = (name.len() as u16).to_le_bytes();
    [&name_len[..], name.as_bytes(), &offset.to_le_bytes(), &len.to_le_bytes(), &vec![7; 32 * hashes]].concat()
}

fn written(size: u64, count: u32, pieces: &[Vec<u8>]) -> Vec<u8> {
    [&b"pangeaM\x01"[..], &size.to_le_bytes(), &count.to_le_bytes(), &pieces.concat()].concat()
}

#[test]
fn hostile_manifests_are_refused_and_cost_nothing() {
    let good = [piece("", 0, 10, 1), piece("a", 10, 10, 1)];
    assert!(Manifest::from_bytes(&written(20, 2, &good)).is_ok());
    let refused = [
        ("none at all", Vec::new()),
        ("no header", written(20, 0, &[])),
        ("header with a name", written(20, 1, &[piece("a", 0, 10, 1)])),
        ("header that begins later", written(20, 1, &[piece("", 1, 10, 1)])),
        ("more pieces than are there", written(20, u32::MAX, &good)),
        ("a length without its hashes", written(u64::MAX, 1, &[piece("", 0, u64::MAX, 1)])),
        ("an end beyond the file", written(19, 2, &good)),
        ("an end beyond all numbers", written(20, 2, &[piece("", 0, 10, 1), piece("a", u64::MAX, 10, 1)])),
        ("overlap", written(20, 2, &[piece("", 0, 11, 1), piece("a", 10, 10, 1)])),
        ("descending", written(40, 3, &[piece("", 0, 10, 1), piece("a", 30, 5, 1), piece("b", 20, 5, 1)])),
        ("empty piece", written(20, 2, &[piece("", 0, 10, 1), piece("a", 10, 0, 0)])),
        ("a name twice", written(30, 3, &[piece("", 0, 10, 1), piece("a", 10, 5, 1), piece("a", 20, 5, 1)])),
        ("a name that clears a terminal", written(20, 2, &[piece("", 0, 10, 1), piece("\x1b[2J", 10, 5, 1)])),
        ("a long name", written(20, 2, &[piece("", 0, 10, 1), piece(&"n".repeat(257), 10, 5, 1)])),
        ("a file larger than any", written(1 << 60, 2, &good)),
        ("bytes behind it", [written(20, 2, &good), vec![0]].concat()),
        ("too long", vec![0; MAX_MANIFEST_BYTES + 1]),
    ];
    for (what, bytes) in refused {
        assert!(matches!(Manifest::from_bytes(&bytes), Err(Error::Parse { .. })), "{what}");
    }
}

#[test]
fn a_range_of_layers_reads_what_is_selected_for_it_and_nothing_else() {
    let engine = Engine::from(Pool::new(1).unwrap());
    for architecture in ["llama", "qwen2", "qwen3", "qwen3moe", "gemma3"] {
        let bytes = tiny(architecture);
        let manifest = manifest(bytes.clone());
        assert_eq!(manifest.layers() as usize, LAYERS);
        let parts = [(0..LAYERS, true, true), (0..1, true, false), (1..2, false, false), (1..LAYERS, false, true)];
        for (layers, embedding, head) in parts {
            let part = ModelPart { layers, embedding, head };
            let wanted = Wanted::of_part(&part);
            let selected = manifest.select(&wanted);
            // What was not selected is what no float may be: reading any of it is an error.
            let mut partial = vec![0xff; bytes.len()];
            for piece in selected.iter().map(|index| &manifest.pieces()[*index]) {
                let range = piece.offset() as usize..(piece.offset() + piece.len_bytes()) as usize;
                partial[range.clone()].copy_from_slice(&bytes[range]);
            }
            let file = ModelFile::from_bytes(partial.clone()).unwrap();
            manifest.check_file(file.gguf()).unwrap();
            engine.load(&file, part.clone()).unwrap_or_else(|error| panic!("{architecture} {part:?}: {error}"));
            // And without any one matrix of it, it is.
            for piece in
                selected.iter().map(|index| &manifest.pieces()[*index]).filter(|piece| !piece.name().is_empty())
            {
                let mut less = partial.clone();
                less[piece.offset() as usize..(piece.offset() + piece.len_bytes()) as usize].fill(0xff);
                let file = ModelFile::from_bytes(less).unwrap();
                let loaded = engine.load(&file, part.clone());
                assert!(loaded.is_err(), "{architecture} {part:?} does not need {}", piece.name());
            }
        }
    }
}

#[test]
fn sizes_count_a_tied_head_once() {
    let bytes_of = |manifest: &Manifest, name: &str| {
        manifest.pieces().iter().find(|piece| piece.name() == name).map_or(0, |piece| piece.len_bytes())
    };
    let (tied, own) = (manifest(tiny("gemma3")), manifest(tiny("llama")));
    let norm = bytes_of(&tied, "output_norm.weight");
    let embedding = bytes_of(&tied, "token_embd.weight");
    let bytes = |architecture: &'static str| PartBytes::of(&Gguf::from_bytes(tiny(architecture)).unwrap()).unwrap();
    let (of_tied, of_own) = (bytes("gemma3"), bytes("llama"));
    assert_eq!((of_tied.embedding(), of_tied.head()), (0, embedding + norm));
    assert_eq!((of_own.embedding(), of_own.head()), (embedding, bytes_of(&own, "output.weight") + norm));
    let layers: u64 =
        tied.pieces().iter().filter(|piece| piece.name().starts_with("blk.")).map(|piece| piece.len_bytes()).sum();
    assert_eq!(of_tied.layer(LAYERS) * LAYERS as u64, layers);
    assert_eq!(tied.select(&Wanted::header()), [0]);
}

#[test]
fn a_position_reads_the_used_experts_of_a_layer_and_all_else() {
    let manifest = manifest(tiny("qwen3moe"));
    let experts = ModelFile::from_bytes(tiny("qwen3moe")).unwrap().config().experts;
    let layer = |of_experts: bool| -> u64 {
        let pieces = manifest.pieces().iter().filter(|piece| piece.name().starts_with("blk.0."));
        pieces.filter(|piece| piece.name().contains("_exps.") == of_experts).map(|piece| piece.len_bytes()).sum()
    };
    let bytes = PartBytes::of(&Gguf::from_bytes(tiny("qwen3moe")).unwrap()).unwrap();
    assert_eq!(bytes.layer(LAYERS), layer(false) + layer(true));
    let read = layer(false) + layer(true) / EXPERTS as u64 * USED_EXPERTS as u64;
    assert_eq!(bytes.active_layer(LAYERS, experts), read);
    assert_eq!(bytes.active_layer(LAYERS, None), bytes.layer(LAYERS));
}

#[test]
fn a_header_of_another_file_does_not_pass_for_the_manifests() {
    let manifest = manifest(file(&[("a", 8), ("b", 24)]));
    let gguf = |tensors: &[(&str, u64)]| Gguf::from_bytes(file(tensors)).unwrap();
    manifest.check_file(&gguf(&[("a", 8), ("b", 24)])).unwrap();
    for other in [&[("a", 8), ("c", 24)][..], &[("a", 16), ("b", 16)], &[("a", 8)], &[("b", 24), ("a", 8)]] {
        assert!(manifest.check_file(&gguf(other)).is_err(), "{other:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_manifest_in_its_one_form_or_refused(at in 0usize..500, bit in 0u8..8, cut in 0usize..500) {
        let mut bytes = written(20, 2, &[piece("", 0, 10, 1), piece("a", 10, 10, 1)]);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(manifest) = Manifest::from_bytes(&bytes) {
            prop_assert_eq!(manifest.to_bytes(), bytes.clone());
        }
        bytes.truncate(cut % bytes.len());
        prop_assert!(Manifest::from_bytes(&bytes).is_err());
    }
}

#[test]
fn a_plan_says_where_every_weight_lies_and_is_the_same_however_layers_are_cut() {
    for architecture in Architecture::ALL.map(Architecture::name) {
        let file = ModelFile::from_bytes(tiny(architecture)).unwrap();
        let plan = |layers| StagePlan::of(&file, &ModelPart::of_layers(file.config(), layers)).unwrap();
        let layers = file.config().layers;
        let whole = plan(0..layers);
        let parts = [plan(0..1), plan(1..2), plan(2..layers)];
        let cut: Vec<_> = parts.iter().flat_map(|part| part.layers.iter().flat_map(LayerPlan::matrices)).collect();
        assert!(whole.layers.iter().flat_map(LayerPlan::matrices).eq(cut), "{architecture}");
        // Every byte of every tensor that is a matrix, or one of each expert, once.
        let mut planned: Vec<_> = whole.matrices().map(|matrix| (matrix.bytes.clone(), &*matrix.name)).collect();
        planned.sort_unstable_by_key(|(bytes, _)| bytes.start);
        planned.dedup_by(|next, before| {
            let joins = next.1 == before.1 && next.0.start == before.0.end;
            before.0.end = if joins { next.0.end } else { before.0.end };
            joins
        });
        let no_matrix = ["conv1d.weight", "_exps.bias", "nextn.eh_proj.weight"];
        let tensors = file.gguf().tensors().map(Result::unwrap);
        let matrices =
            tensors.filter(|tensor| tensor.shape.len() > 1 && !no_matrix.iter().any(|end| tensor.name.ends_with(end)));
        let mut expected: Vec<_> = matrices.map(|tensor| (file.gguf().range_of(&tensor), tensor.name)).collect();
        expected.sort_unstable_by_key(|(bytes, _)| bytes.start);
        assert_eq!(planned, expected, "{architecture}");
    }
}

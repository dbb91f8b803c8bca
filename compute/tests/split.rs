//! Split models: their parts are the file that they were cut from, and parts that do not belong together are refused. The
//! parts are cut here, byte by byte, from tiny models.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first thing that is not as it should be")]

#[path = "exactness/tiny.rs"]
#[allow(dead_code, reason = "the other tests' own")]
mod tiny;

use pangea_compute::gguf::{GgmlType, Gguf, Located, PartName};
use pangea_compute::model::{Manifest, ModelFile, ModelPart, Wanted};
use pangea_compute::{Engine, ErrorKind, Pool};
use pangea_units::SplitMix64;
use std::path::{Path, PathBuf};
use tiny::Tiny;

fn model(weights: GgmlType, seed: u64) -> Vec<u8> {
    tiny::gguf(Tiny { architecture: "llama", weights, seed })
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// What is changed of the parts that [`cut`] makes.
#[derive(Clone, Copy)]
struct Said {
    number: u16,
    parts: u16,
    tensors: i32,
}

/// The bytes of the metadata pairs of a tiny model, and their number.
fn pairs(whole: &[u8]) -> (&[u8], u64) {
    let gguf = Gguf::from_bytes(whole.to_vec()).unwrap();
    let first = text(gguf.tensor_names().next().unwrap());
    let end = whole.windows(first.len()).position(|window| window == first).unwrap();
    (&whole[24..end], gguf.metadata().iter().count() as u64)
}

/// The model as parts that end before the tensors `cuts`, which ascend.
fn cut(whole: &[u8], cuts: &[usize], change: impl Fn(&mut Said)) -> Vec<Vec<u8>> {
    let gguf = Gguf::from_bytes(whole.to_vec()).unwrap();
    let tensors: Vec<_> = gguf.tensors().map(Result::unwrap).collect();
    let starts = [0].into_iter().chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([tensors.len()]);
    starts
        .zip(ends)
        .enumerate()
        .map(|(number, (start, end))| {
            let mut said = Said { number: number as u16, parts: cuts.len() as u16 + 1, tensors: tensors.len() as i32 };
            change(&mut said);
            let (model, count) = if number == 0 { pairs(whole) } else { (&[][..], 0) };
            let mut out = b"GGUF".to_vec();
            out.extend(3u32.to_le_bytes());
            out.extend((end as u64 - start as u64).to_le_bytes());
            out.extend((count + 3).to_le_bytes());
            out.extend(model);
            let shorts = [("split.no", said.number), ("split.count", said.parts)];
            shorts.iter().for_each(|(key, value)| {
                out.extend([&text(key)[..], &2u32.to_le_bytes(), &value.to_le_bytes()].concat());
            });
            out.extend([&text("split.tensors.count")[..], &5u32.to_le_bytes(), &said.tensors.to_le_bytes()].concat());
            let mut contents = Vec::new();
            for tensor in &tensors[start..end] {
                out.extend(text(tensor.name));
                out.extend((tensor.shape.len() as u32).to_le_bytes());
                tensor.shape.iter().for_each(|dimension| out.extend(dimension.to_le_bytes()));
                out.extend(tensor.ggml_type.id().to_le_bytes());
                out.extend((contents.len() as u64).to_le_bytes());
                contents.extend(tensor.bytes);
                contents.resize(contents.len().next_multiple_of(32), 0);
            }
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(contents);
            out
        })
        .collect()
}

/// Writes parts under their names; gives the first one's path.
fn write(folder: &Path, name: &str, parts: &[Vec<u8>]) -> PathBuf {
    let path = |number: usize| folder.join(format!("{name}-{:05}-of-{:05}.gguf", number + 1, parts.len()));
    parts.iter().enumerate().for_each(|(number, part)| std::fs::write(path(number), part).unwrap());
    path(0)
}

fn refused(parts: Vec<Vec<u8>>) -> String {
    let error = Gguf::from_parts(parts).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    error.to_string()
}

#[test]
fn parts_are_the_file_that_they_were_cut_from() {
    let mut random = SplitMix64::new(1);
    for weights in [GgmlType::F32, GgmlType::Q4_1, GgmlType::MXFP4, GgmlType::Q6K] {
        let whole = model(weights, 1);
        let expected = Gguf::from_bytes(whole.clone()).unwrap();
        let manifest = Manifest::of(&expected, 2).unwrap();
        let tensors = expected.tensor_names().count();
        // No tensors at all in the first part, and random cuts.
        let mut cases = vec![vec![0], vec![0, 1], vec![tensors], (1..tensors).collect()];
        cases.extend((0..20).map(|_| {
            let mut cuts: Vec<usize> = (0..1 + random.index(4)).map(|_| random.index(tensors + 1)).collect();
            cuts.sort_unstable();
            cuts
        }));
        for cuts in cases {
            let joined = Gguf::from_parts(cut(&whole, &cuts, |_| {})).unwrap();
            assert_eq!(joined.size_bytes(), whole.len() as u64, "{cuts:?}");
            assert!(joined.metadata().iter().eq(expected.metadata().iter()), "{cuts:?}");
            for (tensor, expected) in joined.tensors().zip(expected.tensors()) {
                let (tensor, expected) = (tensor.unwrap(), expected.unwrap());
                assert_eq!((tensor.name, &tensor.shape), (expected.name, &expected.shape));
                assert!(tensor.bytes == expected.bytes, "{cuts:?}: {}", tensor.name);
            }
            assert_eq!(Manifest::of(&joined, 2).unwrap(), manifest, "{cuts:?}");
            manifest.check_file(&joined).unwrap();
            // A node that has the parts gives away the file's pieces.
            for piece in manifest.pieces() {
                let range = piece.offset()..piece.offset() + piece.len_bytes();
                let bytes = joined.slice(range.clone()).unwrap();
                assert!(bytes == &whole[range.start as usize..range.end as usize], "{cuts:?}: {:?}", piece.name());
            }
            assert!(joined.slice(0..whole.len() as u64).is_none() && joined.slice(0..u64::MAX).is_none());
            assert!(joined.slice(whole.len() as u64 - 1..whole.len() as u64 + 1).is_none());
        }
    }
}

#[test]
fn the_first_part_opens_all_and_loads_as_the_whole_model() {
    let whole = model(GgmlType::Q4_0, 2);
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "Tiny-Q4_0", &cut(&whole, &[3, 11], |_| {}));
    let paths = Gguf::part_paths(&path);
    assert_eq!(paths.iter().map(|path| path.exists()).collect::<Vec<_>>(), [true; 3]);
    assert_eq!(Gguf::part_paths(&paths[1]), [paths[1].clone()]);
    assert_eq!(Gguf::part_paths(Path::new("a/b.gguf")), [PathBuf::from("a/b.gguf")]);
    let file = ModelFile::open(&path).unwrap();
    assert_eq!(file.path(), path);
    let engine = Engine::from(Pool::new(1).unwrap());
    let loaded = engine.load(&file, ModelPart::whole(file.config())).unwrap();
    let expected = ModelFile::from_bytes(whole).unwrap();
    let expected = engine.load(&expected, ModelPart::whole(expected.config())).unwrap();
    assert_eq!(loaded.memory_bytes(), expected.memory_bytes());
    // Pages that were read are released; reading them again gives the same bytes.
    let before = file.gguf().require("blk.1.ffn_up.weight").unwrap().bytes.to_vec();
    file.gguf().release_all();
    assert!(file.gguf().require("blk.1.ffn_up.weight").unwrap().bytes == before);
}

/// What reads pieces without mapping anything finds them in the files.
#[test]
fn every_piece_is_located_in_memory_or_in_one_of_the_files() {
    let whole = model(GgmlType::Q4_0, 2);
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "m", &cut(&whole, &[3, 11], |_| {}));
    let paths = Gguf::part_paths(&path);
    // The names are those of parts that are not finished yet.
    let unfinished: Vec<PathBuf> = paths.iter().map(|path| path.with_extension("partial")).collect();
    paths.iter().zip(&unfinished).for_each(|(from, to)| std::fs::rename(from, to).unwrap());
    let joined = Gguf::open_parts(&unfinished).unwrap();
    let files: Vec<Vec<u8>> = unfinished.iter().map(|path| std::fs::read(path).unwrap()).collect();
    for piece in Manifest::of(&joined, 1).unwrap().pieces() {
        let range = piece.offset()..piece.offset() + piece.len_bytes();
        let bytes = match joined.located(range.clone()).unwrap() {
            Located::Bytes(bytes) => {
                assert_eq!(piece.name(), "", "only the header is in no file");
                bytes
            }
            Located::File { part, start } => &files[part][start as usize..][..piece.len_bytes() as usize],
        };
        assert!(bytes == &whole[range.start as usize..range.end as usize], "{:?}", piece.name());
    }
    assert_eq!(joined.located(0..whole.len() as u64), None);
    std::fs::write(folder.path().join("whole"), &whole).unwrap();
    let one = Gguf::open_parts(&[folder.path().join("whole")]).unwrap();
    assert_eq!(one.located(5..9), Some(Located::File { part: 0, start: 5 }));
    assert_eq!(one.located(5..whole.len() as u64 + 1), None);
    assert!(Gguf::open_parts(&[]).is_err());
}

#[test]
fn the_name_of_a_part_says_which_one_it_is() {
    let name = PartName::parse("My-Model-Q4_K_M-00002-of-00010.gguf").unwrap();
    assert_eq!((name.stem(), name.number()), ("My-Model-Q4_K_M", 1));
    assert_eq!(name.file_names().last().unwrap(), "My-Model-Q4_K_M-00010-of-00010.gguf");
    for other in [
        "m.gguf",
        "m-00001-of-00001.gguf",
        "m-00003-of-00002.gguf",
        "m-00000-of-00002.gguf",
        "m-0001-of-0002.gguf",
        "m-+0001-of-00002.gguf",
        "m-00001-of-00002.bin",
        "-00001-of-00002.gguf",
        "00001-of-00002.gguf",
    ] {
        assert_eq!(PartName::parse(other), None, "{other}");
    }
}

/// A stage fetches the pieces of its layers from whoever has the model, in parts or whole: what arrives is one sparse file.
#[test]
fn pieces_of_parts_make_the_same_partial_copy_as_pieces_of_a_whole_file() {
    let whole = model(GgmlType::Q4_0, 2);
    let joined = Gguf::from_parts(cut(&whole, &[3, 11], |_| {})).unwrap();
    let manifest = Manifest::of(&joined, 1).unwrap();
    let wanted = Wanted { layers: 1..2, embedding: false, head: false };
    let mut copy = vec![0; manifest.size_bytes() as usize];
    for index in manifest.select(&wanted) {
        let piece = &manifest.pieces()[index];
        let range = piece.offset()..piece.offset() + piece.len_bytes();
        copy[range.start as usize..range.end as usize].copy_from_slice(joined.slice(range).unwrap());
    }
    let file = ModelFile::from_bytes(copy).unwrap();
    manifest.check_file(file.gguf()).unwrap();
    let part = ModelPart { layers: 1..2, embedding: false, head: false };
    Engine::from(Pool::new(1).unwrap()).load(&file, part).unwrap();
}

#[test]
fn a_missing_part_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "m", &cut(&model(GgmlType::F32, 1), &[4, 9], |_| {}));
    std::fs::remove_file(&Gguf::part_paths(&path)[1]).unwrap();
    let error = Gguf::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    for part in ["m-00002-of-00003.gguf", "missing", "m-00001-of-00003.gguf"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let mut parts = cut(&model(GgmlType::F32, 1), &[4, 9], |_| {});
    parts.pop();
    assert!(refused(parts).contains("3 parts, of which 2"));
    assert!(refused(vec![cut(&model(GgmlType::F32, 1), &[4], |_| {}).remove(0)]).contains("2 parts, of which 1"));
    assert!(refused(Vec::new()).contains("no parts"));
}

#[test]
fn another_part_than_the_first_and_a_renamed_one_say_what_to_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "m", &cut(&model(GgmlType::F32, 1), &[4, 9], |_| {}));
    let error = Gguf::open(&Gguf::part_paths(&path)[2]).unwrap_err().to_string();
    assert!(error.contains("part 3 of 3") && error.contains("-00001-of-00003.gguf"), "{error}");
    let renamed = folder.path().join("model.gguf");
    std::fs::rename(&path, &renamed).unwrap();
    let error = Gguf::open(&renamed).unwrap_err().to_string();
    assert!(error.contains("its name does not end with \"-00001-of-00003.gguf\""), "{error}");
}

#[test]
fn swapped_parts_and_parts_of_other_models_are_refused() {
    let whole = model(GgmlType::F32, 1);
    let parts = cut(&whole, &[4, 9], |_| {});
    let mut swapped = parts.clone();
    swapped.swap(1, 2);
    assert!(
        refused(swapped.clone()).contains("part 2, which should be part 2 of 3, is part 3: the parts were swapped")
    );
    let folder = tempfile::tempdir().unwrap();
    let error = Gguf::open(write(folder.path(), "m", &swapped)).unwrap_err().to_string();
    assert!(error.contains("m-00002-of-00003.gguf, which should be part 2 of 3, is part 3"), "{error}");
    swapped.swap(0, 2);
    assert!(refused(swapped).contains("part 1, which should be part 1 of 3, is part 2"));

    // The part of a model cut elsewhere has tensors that are there already, or too few.
    let with = |number: usize, part: Vec<u8>| {
        let mut parts = parts.clone();
        parts[number] = part;
        refused(parts)
    };
    assert!(with(1, cut(&whole, &[3, 9], |_| {}).remove(1)).contains("is in part 1 and in part 2"));
    assert!(with(1, cut(&whole, &[5, 9], |_| {}).remove(1)).contains("but the model has"));
    assert!(with(1, cut(&whole, &[4], |_| {}).remove(1)).contains("is of another model: it says 2 parts"));
    assert!(with(1, cut(&whole, &[4, 9], |said| said.tensors += 1).remove(1)).contains("is of another model"));
    assert!(with(2, whole.clone()).contains("part 3, which should be part 3 of 3, is not a part of a split model"));
    assert!(refused(vec![whole.clone(), parts[1].clone()]).contains("is a whole model"));
    // Metadata that a part repeats shows whose it is.
    let other = tiny::gguf(Tiny { architecture: "qwen2", weights: GgmlType::F32, seed: 1 });
    let mut first_again = cut(&other, &[4, 9], |said| said.tensors = 30).remove(0);
    let number = first_again.windows(8).position(|window| window == b"split.no").unwrap() + 12;
    first_again[number..number + 2].copy_from_slice(&1u16.to_le_bytes());
    let mut mixed = cut(&whole, &[4, 9], |said| said.tensors = 30);
    mixed[1] = first_again;
    assert!(refused(mixed).contains("its general.architecture is not that of the first part"));
}

#[test]
fn counts_that_do_not_fit_are_refused() {
    let whole = model(GgmlType::F32, 1);
    assert!(refused(cut(&whole, &[4, 9], |said| said.tensors = 1000)).contains("but the model has 1000"));
    assert!(refused(cut(&whole, &[4, 9], |said| said.parts = u16::MAX)).contains("65535 parts, of which 3"));
    assert!(Gguf::from_parts(cut(&whole, &[4, 9], |said| said.tensors = -1)).is_err());
    let folder = tempfile::tempdir().unwrap();
    let error =
        Gguf::open(write(folder.path(), "m", &cut(&whole, &[4], |said| said.parts = 9))).unwrap_err().to_string();
    assert!(error.contains("first of 9 parts") && error.contains("-00001-of-00009.gguf"), "{error}");
    // A key that every part must have.
    let mut parts = cut(&whole, &[4], |_| {});
    let at = parts[1].windows(8).position(|window| window == b"split.no").unwrap();
    parts[1][at..at + 8].copy_from_slice(b"split.on");
    assert!(refused(parts).contains("no split.no"));
}

#[test]
fn truncated_and_changed_parts_are_refused_or_read() {
    let parts = cut(&model(GgmlType::Q4K, 1), &[4, 9], |_| {});
    let mut random = SplitMix64::new(3);
    for case in 0..200 {
        let mut parts = parts.clone();
        let part = &mut parts[case % 3];
        if case % 2 == 0 {
            part.truncate(random.index(part.len()));
            assert!(Gguf::from_parts(parts).is_err(), "case {case}");
            continue;
        }
        let header = part.len().min(2000);
        part[random.index(header)] = random.bits() as u8;
        if let Ok(joined) = Gguf::from_parts(parts) {
            joined.tensors().flatten().for_each(|tensor| assert!(!tensor.bytes.is_empty()));
        }
    }
}

/// What the Python package of llama.cpp writes; `golden/split` says how.
#[test]
fn parts_that_llama_cpp_writes_are_the_file_that_it_writes_unsplit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/split");
    let joined = Gguf::open(folder.join("parts-00001-of-00003.gguf")).unwrap();
    let whole = Gguf::open(folder.join("whole.gguf")).unwrap();
    assert_eq!(Manifest::of(&joined, 1).unwrap().digest(), Manifest::of(&whole, 1).unwrap().digest());
    assert_eq!(joined.require("blk.1.weight").unwrap().to_f32().unwrap(), [4.0, 5.0, 6.0, 7.0]);
}

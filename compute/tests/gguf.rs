//! GGUF files: what a valid one says, what every block means, and that no hostile one does more than fail.
//! The files are built here, byte by byte; nothing here knows how a file is parsed.

use pangea_compute::gguf::{GgmlType, Gguf, dequantize};
use pangea_compute::{Error, ErrorKind};
use proptest::prelude::*;

/// A GGUF file being written.
struct File {
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    contents: Vec<u8>,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl File {
    fn new() -> File {
        File { pairs: Vec::new(), tensors: Vec::new(), contents: Vec::new() }
    }

    fn pair(mut self, key: &str, value_type: u32, value: &[u8]) -> File {
        self.pairs.push([&string(key)[..], &value_type.to_le_bytes(), value].concat());
        self
    }

    fn strings(self, key: &str, values: &[&str]) -> File {
        let mut value = 8u32.to_le_bytes().to_vec();
        value.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|text| value.extend(string(text)));
        self.pair(key, 9, &value)
    }

    /// A table entry as it is, without contents.
    fn entry(mut self, name: &str, shape: &[u64], type_id: u32, offset: u64) -> File {
        let mut entry = string(name);
        entry.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|dimension| entry.extend(dimension.to_le_bytes()));
        entry.extend(type_id.to_le_bytes());
        entry.extend(offset.to_le_bytes());
        self.tensors.push(entry);
        self
    }

    fn tensor(mut self, name: &str, shape: &[u64], type_id: u32, bytes: &[u8]) -> File {
        self.contents.resize(self.contents.len().next_multiple_of(32), 0);
        let offset = self.contents.len() as u64;
        self.contents.extend(bytes);
        self.entry(name, shape, type_id, offset)
    }

    fn head(&self, version: u32, tensors: u64, pairs: u64) -> Vec<u8> {
        [&b"GGUF"[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &pairs.to_le_bytes()].concat()
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_of_version(3)
    }

    fn bytes_of_version(&self, version: u32) -> Vec<u8> {
        let mut out = self.head(version, self.tensors.len() as u64, self.pairs.len() as u64);
        out.extend(self.pairs.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.contents);
        out
    }
}

fn small() -> File {
    File::new()
        .pair("general.architecture", 8, &string("llama"))
        .pair("llama.block_count", 4, &30u32.to_le_bytes())
        .pair("llama.rope.freq_base", 6, &10000f32.to_le_bytes())
        .pair("minus", 1, &(-5i8).to_le_bytes())
        .pair("flag", 7, &[1])
        .strings("names", &["a", "", "ß"])
        .pair(
            "ints",
            9,
            &[&5u32.to_le_bytes()[..], &2u64.to_le_bytes(), &7i32.to_le_bytes(), &(-1i32).to_le_bytes()].concat(),
        )
        .pair("floats", 9, &[&6u32.to_le_bytes()[..], &1u64.to_le_bytes(), &0.5f32.to_le_bytes()].concat())
        .pair("bools", 9, &[&7u32.to_le_bytes()[..], &2u64.to_le_bytes(), &[1, 0]].concat())
        .tensor("one", &[2, 3], 0, &[1f32, 2., 3., 4., 5., 6.].map(f32::to_le_bytes).concat())
        .tensor("odd", &[256], 17, &[0; 74])
        .tensor("two", &[32], 8, &[0; 34])
}

fn error(bytes: Vec<u8>) -> String {
    let error = Gguf::from_bytes(bytes).expect_err("a broken file");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    error.to_string()
}

#[test]
fn metadata_and_tensors_are_found_in_both_versions() -> Result<(), Error> {
    for version in [2, 3] {
        let gguf = Gguf::from_bytes(small().bytes_of_version(version))?;
        let m = gguf.metadata();
        assert_eq!(m.get_str("general.architecture")?, Some("llama"));
        assert_eq!(m.get_u64("llama.block_count")?, Some(30));
        assert_eq!(m.get_f64("llama.rope.freq_base")?, Some(10000.0));
        assert_eq!(m.get_f64("minus")?, Some(-5.0));
        assert_eq!(m.get_bool("flag")?, Some(true));
        let names = m.get_strs("names")?.expect("it is there");
        assert_eq!(names.iter().collect::<Vec<_>>(), ["a", "", "ß"]);
        assert_eq!((names.get(2), names.get(3)), (Some("ß"), None));
        assert_eq!(m.get_i32s("ints")?, Some(vec![7, -1]));
        assert_eq!(m.get_f32s("floats")?, Some(vec![0.5]));
        assert_eq!(m.get_bools("bools")?, Some(vec![true, false]));
        assert_eq!(m.get_str("absent")?, None);
        let one = gguf.require("one")?;
        assert_eq!((one.ggml_type, &one.shape[..], one.row_len(), one.rows()), (GgmlType::F32, &[2, 3][..], 2, 3));
        assert_eq!(one.to_f32()?, [1., 2., 3., 4., 5., 6.]);
        assert!(gguf.tensor("three")?.is_none());
        assert_eq!(gguf.tensor_names().collect::<Vec<_>>(), ["one", "odd", "two"]);
        assert_eq!(gguf.tensors().filter(Result::is_ok).count(), 2);
    }
    Ok(())
}

#[test]
fn a_value_of_another_type_is_an_error_that_names_the_key() -> Result<(), Error> {
    let gguf = Gguf::from_bytes(small().bytes())?;
    let m = gguf.metadata();
    for (error, key) in [
        (m.get_str("flag").expect_err("a bool"), "flag"),
        (m.get_u64("minus").expect_err("negative"), "minus"),
        (m.get_u64("names").expect_err("strings"), "names"),
        (m.get_f64("flag").expect_err("a bool"), "flag"),
        (m.get_strs("ints").expect_err("integers"), "ints"),
        (m.get_f32s("ints").expect_err("integers"), "ints"),
        (m.get_i32s("floats").expect_err("floats"), "floats"),
        (m.get_bools("names").expect_err("strings"), "names"),
    ] {
        assert!(error.to_string().contains(&format!("(metadata {key})")), "{error}");
    }
    Ok(())
}

#[test]
fn a_tensor_of_an_unsupported_type_fails_only_when_it_is_used() -> Result<(), Error> {
    let gguf = Gguf::from_bytes(small().bytes())?;
    let error = gguf.require("odd").expect_err("IQ2_XS").to_string();
    for part in ["IQ2_XS", "\"odd\"", "Q4_0", "Q6_K", "BF16"] {
        assert!(error.contains(part), "{error}");
    }
    for (id, name) in [(22, "IQ2_S"), (34, "TQ1_0"), (40, "NVFP4"), (31, "withdrawn"), (77, "77")] {
        let gguf = Gguf::from_bytes(File::new().tensor("t", &[256], id, &[0; 256]).bytes())?;
        let error = gguf.require("t").expect_err(name).to_string();
        assert!(error.contains(name), "{error}");
    }
    Ok(())
}

#[test]
fn other_files_and_other_versions_are_named() {
    assert!(error(Vec::new()).contains("byte 0"));
    assert!(error(b"GGU".to_vec()).contains("ends after 3"));
    assert!(error(b"\x93NUMPY then more".to_vec()).contains("not a GGUF file"));
    assert!(error(b"tjgg then more".to_vec()).contains("before GGUF"));
    assert!(error(small().bytes_of_version(1)).contains("version 1"));
    assert!(error(small().bytes_of_version(4)).contains("version 4"));
    assert!(error(small().bytes_of_version(3u32.swap_bytes())).contains("big-endian"));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small().bytes();
    for len in 0..bytes.len() {
        assert!(error(bytes[..len].to_vec()).contains("at byte"), "{len} bytes");
    }
}

#[test]
fn claims_are_checked_before_they_are_believed() {
    let cases: Vec<(File, &str)> = vec![
        // Arrays and strings of 10 GB and more.
        (File::new().pair("k", 8, &10_000_000_000u64.to_le_bytes()), "10000000000 bytes"),
        (File::new().pair("k", 8, &u64::MAX.to_le_bytes()), "ends after"),
        (File::new().pair("k", 9, &[&8u32.to_le_bytes()[..], &(1u64 << 61).to_le_bytes()].concat()), "strings"),
        (File::new().pair("k", 9, &[&12u32.to_le_bytes()[..], &(1u64 << 61).to_le_bytes()].concat()), "elements"),
        (File::new().pair("k", 9, &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat()), "array of arrays"),
        (File::new().pair("k", 13, &[0; 8]), "type 13"),
        (File::new().pair("k", 7, &[2]), "neither true nor false"),
        (File::new().pair("k", 8, &[&1u64.to_le_bytes()[..], &[0xff]].concat()), "UTF-8"),
        (File::new().pair("k", 7, &[1]).pair("k", 7, &[1]), "twice"),
        (File::new().pair("general.alignment", 4, &0u32.to_le_bytes()), "alignment 0"),
        (File::new().pair("general.alignment", 4, &48u32.to_le_bytes()), "alignment 48"),
        (File::new().pair("general.alignment", 8, &string("x")), "general.alignment"),
        (File::new().entry("t", &[10_000_000_000], 24, 0), "reaches past"),
        (File::new().entry("t", &[u64::MAX, u64::MAX], 0, 0), "reaches past"),
        (File::new().entry("t", &[1 << 32, 1 << 32, 2], 0, 0), "reaches past"),
        (File::new().entry("t", &[1], 0, u64::MAX - 31), "reaches past"),
        (File::new().entry("t", &[1], 77, 1 << 40), "reaches past"),
        (File::new().entry("t", &[0], 0, 0), "dimension of zero"),
        (File::new().entry("t", &[], 0, 0), "0 dimensions"),
        (File::new().entry("t", &[1; 5], 0, 0), "5 dimensions"),
        (File::new().entry("t", &[33], 8, 0), "not a whole number of Q8_0 blocks"),
        (File::new().tensor("u", &[64], 24, &[0; 64]).entry("t", &[1], 24, 8), "not a multiple"),
        (File::new().tensor("u", &[64], 24, &[0; 64]).entry("t", &[1], 24, 32), "overlap"),
        (File::new().tensor("t", &[1], 24, &[0]).tensor("t", &[1], 24, &[0]), "second tensor"),
    ];
    for (file, expected) in cases {
        let error = error(file.bytes());
        assert!(error.contains(expected), "{error:?} should contain {expected:?}");
    }
    let empty = File::new();
    assert!(error(empty.head(3, 0, u64::MAX)).contains("metadata pairs"));
    assert!(error(empty.head(3, u64::MAX, 0)).contains("tensors"));
    assert!(error(empty.head(3, 1 << 40, 0)).contains("tensors"));
}

#[test]
fn a_mapped_file_is_read_again_after_it_was_released() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("m.gguf");
    let bytes: Vec<u8> = (0..1u32 << 20).map(|i| (i * 7 % 251) as u8).collect();
    std::fs::write(&path, File::new().tensor("t", &[1 << 20], 0, &bytes.repeat(4)).bytes())?;
    let gguf = Gguf::open(&path)?;
    let before = gguf.require("t")?.bytes.to_vec();
    gguf.release(gguf.require("t")?.bytes);
    gguf.release(&before);
    gguf.release(&[]);
    assert!(gguf.require("t")?.bytes == before);
    assert_eq!(gguf.size_bytes(), std::fs::metadata(&path)?.len());
    Ok(())
}

#[test]
fn files_that_cannot_be_opened_are_errors_with_their_path() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    assert_eq!(Gguf::open(dir.path().join("none")).expect_err("absent").kind(), ErrorKind::NotFound);
    assert!(Gguf::open(dir.path()).expect_err("a directory").to_string().contains("not a regular file"));
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, b"")?;
    let error = Gguf::open(&empty).expect_err("nothing in it").to_string();
    assert!(error.contains("empty.gguf") && error.contains("byte 0"), "{error}");
    Ok(())
}

/// Blocks by hand, beside what they mean: `f16` 2.0 is 0x4000, 0.5 is 0x3800, 1.0 is 0x3c00.
#[test]
fn blocks_mean_what_the_format_says() -> Result<(), Error> {
    let values = |ty: GgmlType, block: &[u8]| -> Result<Vec<f32>, Error> {
        let mut out = vec![f32::NAN; ty.block_len()];
        dequantize(ty, block, &mut out)?;
        Ok(out)
    };
    assert_eq!(values(GgmlType::F32, &(-1.5f32).to_le_bytes())?, [-1.5]);
    assert_eq!(values(GgmlType::F16, &[0, 0xb8])?, [-0.5]);
    assert_eq!(values(GgmlType::BF16, &[0xc0, 0x3f])?, [1.5]);

    // Byte j holds element j in its low and element j + 16 in its high nibble.
    let nibbles: Vec<u8> = (0..16).map(|j| j | (15 - j) << 4).collect();
    let quant = |i: usize| if i < 16 { i as f32 } else { 31.0 - i as f32 };
    let expect = |f: &dyn Fn(usize) -> f32| (0..32).map(f).collect::<Vec<_>>();
    let d = [0, 0x40];
    let m = [0, 0x38];
    assert_eq!(values(GgmlType::Q4_0, &[&d[..], &nibbles].concat())?, expect(&|i| 2.0 * (quant(i) - 8.0)));
    assert_eq!(values(GgmlType::Q4_1, &[&d[..], &m, &nibbles].concat())?, expect(&|i| 2.0 * quant(i) + 0.5));
    // The fifth bits of elements 0, 9 and 31.
    let fifths = ((1u32 << 31) | (1 << 9) | 1).to_le_bytes();
    let fifth = |i: usize| if [0, 9, 31].contains(&i) { 16.0 } else { 0.0 };
    assert_eq!(
        values(GgmlType::Q5_0, &[&d[..], &fifths, &nibbles].concat())?,
        expect(&|i| 2.0 * (quant(i) + fifth(i) - 16.0))
    );
    assert_eq!(
        values(GgmlType::Q5_1, &[&d[..], &m, &fifths, &nibbles].concat())?,
        expect(&|i| 2.0 * (quant(i) + fifth(i)) + 0.5)
    );
    // Exponent 129 is 4; the values of the codes, of which 8 to 15 are negative.
    let floats = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let float = |q: usize| if q < 8 { floats[q] } else { -floats[q - 8] };
    assert_eq!(values(GgmlType::MXFP4, &[&[129][..], &nibbles].concat())?, expect(&|i| 4.0 * float(quant(i) as usize)));
    assert!(values(GgmlType::MXFP4, &[&[255][..], &nibbles].concat())?.iter().all(|x| x.is_nan()));
    let bytes: Vec<u8> = (0..32).map(|i| (i * 8 - 128) as i8 as u8).collect();
    assert_eq!(values(GgmlType::Q8_0, &[&d[..], &bytes].concat())?, expect(&|i| 2.0 * (i as f32 * 8.0 - 128.0)));
    Ok(())
}

/// The scales and minima of eight groups in ggml's 12 bytes.
fn packed_scales(scales: [u8; 8], mins: [u8; 8]) -> [u8; 12] {
    let mut out = [0; 12];
    for j in 0..4 {
        out[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        out[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6;
        out[j + 8] = (scales[j + 4] & 15) | (mins[j + 4] & 15) << 4;
    }
    out
}

proptest! {
    /// The other direction: quants, scales and minima are packed as the format says, and come out as d·s·q − m·min.
    #[test]
    fn superblocks_give_back_what_was_packed(
        scales in prop::array::uniform8(0u8..64), mins in prop::array::uniform8(0u8..64),
        small in prop::collection::vec(any::<i8>(), 16), quants in prop::collection::vec(0u8..64, 256),
    ) {
        let (d, dmin) = ([0, 0x40], [0, 0x38]);
        let mut out = [0f32; 256];

        let mut low = [0u8; 128];
        let mut fifths = [0u8; 32];
        for (i, q) in quants.iter().enumerate() {
            low[i / 64 * 32 + i % 32] |= (q & 15) << (i / 32 % 2 * 4);
            fifths[i % 32] |= ((q >> 4) & 1) << (i / 32);
        }
        let head = [&d[..], &dmin, &packed_scales(scales, mins)].concat();
        let group = |i: usize| (2.0 * f32::from(scales[i / 32]), 0.5 * f32::from(mins[i / 32]));
        dequantize(GgmlType::Q4K, &[&head[..], &low].concat(), &mut out).expect("whole blocks");
        for (i, q) in quants.iter().enumerate() {
            prop_assert_eq!(out[i], group(i).0 * f32::from(q & 15) - group(i).1);
        }
        dequantize(GgmlType::Q5K, &[&head[..], &fifths, &low].concat(), &mut out).expect("whole blocks");
        for (i, q) in quants.iter().enumerate() {
            prop_assert_eq!(out[i], group(i).0 * f32::from(q & 31) - group(i).1);
        }

        let (mut low, mut thirds, mut packed) = ([0u8; 64], [0u8; 32], [0u8; 12]);
        let scale = |j: usize| small[j] as u8 & 63;
        for j in 0..16 {
            packed[j % 8] |= (scale(j) & 15) << (j / 8 * 4);
            packed[8 + j % 4] |= (scale(j) >> 4) << (j / 4 * 2);
        }
        for (i, q) in quants.iter().enumerate() {
            low[i / 128 * 32 + i % 32] |= (q & 3) << (i / 32 % 4 * 2);
            thirds[i % 32] |= ((q >> 2) & 1) << (i / 32);
        }
        dequantize(GgmlType::Q3K, &[&thirds[..], &low, &packed, &d].concat(), &mut out).expect("whole blocks");
        for (i, q) in quants.iter().enumerate() {
            let expected = 2.0 * (f32::from(scale(i / 16)) - 32.0) * (f32::from(q & 7) - 4.0);
            prop_assert_eq!(out[i], expected);
        }

        let mut low = [0u8; 64];
        for (i, q) in quants.iter().enumerate() {
            low[i / 128 * 32 + i % 32] |= (q & 3) << (i / 32 % 4 * 2);
        }
        let both: Vec<u8> = small.iter().map(|&s| s as u8).collect();
        dequantize(GgmlType::Q2K, &[&both[..], &low, &d, &dmin].concat(), &mut out).expect("whole blocks");
        for (i, q) in quants.iter().enumerate() {
            let (scale, min) = (f32::from(both[i / 16] & 15), f32::from(both[i / 16] >> 4));
            prop_assert_eq!(out[i], 2.0 * scale * f32::from(q & 3) - 0.5 * min);
        }

        let (mut low, mut packed) = ([0u8; 128], [0u8; 6]);
        let upper = (0..8).fold(0, |upper, j| upper | u16::from(scale(j) >> 4) << (2 * j));
        packed[..2].copy_from_slice(&upper.to_le_bytes());
        for j in 0..8 {
            packed[2 + j / 2] |= (scale(j) & 15) << (j % 2 * 4);
        }
        for (i, q) in quants.iter().enumerate() {
            low[i / 32 * 16 + i % 16] |= (q & 15) << (i % 32 / 16 * 4);
        }
        dequantize(GgmlType::IQ4XS, &[&d[..], &packed, &low].concat(), &mut out).expect("whole blocks");
        let values = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113i8];
        for (i, q) in quants.iter().enumerate() {
            let expected = 2.0 * (f32::from(scale(i / 32)) - 32.0) * f32::from(values[usize::from(q & 15)]);
            prop_assert_eq!(out[i], expected);
        }

        let mut low = [0u8; 128];
        let mut high = [0u8; 64];
        for (i, q) in quants.iter().enumerate() {
            let (half, quarter, j) = (i / 128, i % 128 / 32, i % 32);
            low[half * 64 + (quarter % 2) * 32 + j] |= (q & 15) << (quarter / 2 * 4);
            high[half * 32 + j] |= (q >> 4) << (quarter * 2);
        }
        let signed: Vec<u8> = small.iter().map(|&s| s as u8).collect();
        dequantize(GgmlType::Q6K, &[&low[..], &high, &signed, &d].concat(), &mut out).expect("whole blocks");
        for (i, q) in quants.iter().enumerate() {
            prop_assert_eq!(out[i], 2.0 * f32::from(small[i / 16]) * (f32::from(*q) - 32.0));
        }
    }

    #[test]
    fn dequantizing_takes_whole_blocks_only(len in 0usize..700, extra in 0usize..3) {
        for ty in GgmlType::SUPPORTED {
            let bytes = vec![0; len];
            let mut out = vec![0.0; len / ty.block_bytes() * ty.block_len() + extra];
            let whole = len.is_multiple_of(ty.block_bytes()) && extra == 0;
            prop_assert_eq!(dequantize(ty, &bytes, &mut out).is_ok(), whole);
        }
    }

    /// Whatever is changed in a file, it is read or refused; nothing panics, and what is read lies inside.
    #[test]
    fn changed_bytes_are_read_or_refused(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = small().bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(gguf) = Gguf::from_bytes(bytes) {
            for tensor in gguf.tensors().flatten() {
                let _ = tensor.to_f32();
            }
        }
    }
}

/// Elements of random blocks as llama.cpp's own Python package gives them; `tests/golden/quants` says how they were made.
#[test]
fn blocks_have_the_elements_that_llama_cpp_gives_them() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quants");
    let mut judged = 0;
    for ty in GgmlType::SUPPORTED {
        let Ok(blocks) = std::fs::read(folder.join(format!("{ty}.blocks"))) else { continue };
        let expected = std::fs::read(folder.join(format!("{ty}.f32"))).expect("beside the blocks");
        let expected: Vec<f32> = expected.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let mut out = vec![0.0; expected.len()];
        dequantize(ty, &blocks, &mut out).expect("whole blocks");
        assert_eq!(out, expected, "{ty}");
        judged += 1;
    }
    assert_eq!(judged, GgmlType::SUPPORTED.len() - 3, "all types but the floats");
}

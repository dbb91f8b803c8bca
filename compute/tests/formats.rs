//! Files and text: what NumPy wrote is read, what we write is what NumPy writes, hostile bytes are errors.
// A test may stop at the first thing that is not as it should be, in its helpers too.
#![allow(clippy::unwrap_used)]

use pangea_compute::{DType, Error, ErrorKind, NpyFile, NpyHeader, NpyWriter, Tensor, TensorBuf, csv, json};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What `tests/golden` holds: (arange(12).reshape(3, 4) − 5) · 0.75, cast to each type by NumPy.
fn expected(dtype: DType) -> Tensor {
    let value = |i: i32| f64::from(i - 5) * 0.75;
    let values: Vec<f64> = (0..12).map(|i| if dtype.is_float() { value(i) } else { value(i).trunc() }).collect();
    csv::convert(&Tensor::from_slice(3, 4, &values).unwrap(), dtype).unwrap()
}

#[test]
fn files_that_numpy_wrote_are_read() {
    for (name, dtype) in [
        ("f16", DType::F16),
        ("f32", DType::F32),
        ("f64", DType::F64),
        ("i8", DType::I8),
        ("i32", DType::I32),
        ("f32_v2", DType::F32),
        ("f32_v3", DType::F32),
        ("f32_fortran", DType::F32),
        ("f32_big_endian", DType::F32),
        ("f64_big_endian_fortran", DType::F64),
    ] {
        let file = NpyFile::open(golden(&format!("{name}.npy"))).unwrap();
        let want = expected(dtype);
        assert_eq!((file.dtype(), file.rows(), file.cols()), (dtype, 3, 4), "{name}");
        assert_eq!(file.whole().unwrap().digest(), want.digest(), "{name}");
        let block = file.block(1..3, 1..2).unwrap();
        assert_eq!(block.digest(), want.slice(1..3, 1..2).unwrap().digest(), "{name}");
    }
}

#[test]
fn files_that_we_write_are_numpys_to_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in [DType::F16, DType::F32, DType::F64, DType::I8, DType::I32] {
        let path = folder.path().join(dtype.name());
        let mut writer = NpyWriter::create(&path, dtype, 3, 4).unwrap();
        let t = expected(dtype);
        // In pieces, one of them from a transposed view.
        let top = t.slice(0..1, 0..4).unwrap();
        let mut turned = TensorBuf::new(dtype, 3, 2).unwrap();
        turned.write_block(0, 0, &t.slice(1..3, 1..4).unwrap().transposed()).unwrap();
        writer.write_block(1, 1, &turned.freeze().transposed()).unwrap();
        writer.write_block(0, 0, &top).unwrap();
        writer.write_block(1, 0, &t.slice(1..3, 0..1).unwrap()).unwrap();
        assert!(!path.exists(), "no name before it is whole");
        writer.finish().unwrap();
        let numpy = std::fs::read(golden(&format!("{dtype}.npy"))).unwrap();
        assert_eq!(numpy, std::fs::read(&path).unwrap(), "{dtype}");
    }
}

#[test]
fn a_writer_dropped_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = NpyWriter::create(folder.path().join("out.npy"), DType::F32, 3, 4).unwrap();
    writer.write_block(0, 0, &expected(DType::F32)).unwrap();
    assert!(writer.write_block(1, 0, &expected(DType::F32)).is_err());
    assert!(writer.write_block(0, 0, &expected(DType::F64)).is_err());
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_size_that_no_disk_holds_is_an_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.npy");
    let error = NpyWriter::create(&path, DType::F64, 1 << 31, 1 << 28).unwrap_err();
    assert_ne!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{error}");
}

#[test]
fn other_than_matrices_are_refused_with_what_to_do() {
    for (name, hint) in [("vector", "reshape"), ("cube", "2-D"), ("i16", "int8")] {
        let error = NpyFile::open(golden(&format!("{name}.npy"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(hint), "{error}");
    }
    let empty = NpyFile::open(golden("empty.npy")).unwrap();
    assert_eq!(empty.whole().unwrap().shape(), (0, 7));
    assert!(matches!(NpyFile::open(golden("none.npy")).unwrap_err().kind(), ErrorKind::NotFound));
}

#[test]
fn a_file_cut_short_anywhere_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(golden("f32.npy")).unwrap();
    let path = folder.path().join("cut.npy");
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        let error = NpyFile::open(&path).unwrap_err();
        assert!(matches!(error, Error::Parse { .. }), "{len}: {error}");
    }
}

#[test]
fn elements_that_are_not_aligned_in_the_file_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.npy");
    for order in ['<', '>'] {
        let dict = format!("{{'descr': '{order}f8', 'fortran_order': True, 'shape': (3, 4)}}");
        let padding = (0..8).find(|p| (10 + dict.len() + p) % 8 == 3).unwrap();
        let dict = dict + &" ".repeat(padding);
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(dict.len() as u16).to_le_bytes());
        bytes.extend_from_slice(dict.as_bytes());
        let t = expected(DType::F64);
        for col in 0..4 {
            for row in 0..3 {
                let v = t.get(row, col).unwrap();
                bytes.extend_from_slice(&if order == '<' { v.to_le_bytes() } else { v.to_be_bytes() });
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let file = NpyFile::open(&path).unwrap();
        assert_eq!(file.whole().unwrap().digest(), t.digest());
        assert_eq!(file.block(1..2, 2..4).unwrap().digest(), t.slice(1..2, 2..4).unwrap().digest());
        assert!(file.block(1..4, 0..1).is_err());
    }
}

fn header(dict: &str) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(dict.len() as u16).to_le_bytes());
    bytes.extend_from_slice(dict.as_bytes());
    bytes
}

#[test]
fn hostile_headers_are_errors_that_say_what() {
    for (dict, what) in [
        ("", "'{'"),
        ("{'descr': '<f4', 'fortran_order': False}", "lacks"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3)}", "negative"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 99999999999999999999)}", "too large"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "larger than any file"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3)}", "not a tuple"),
        ("{'descr': '<f4', 'fortran_order': 0, 'shape': (3, 3)}", "True or False"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (3, 3)}", "never loaded"),
        ("{'descr': '<V2', 'fortran_order': False, 'shape': (3, 3)}", "bfloat16"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (3, 3)}", "complex"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3, 3)}", "record"),
        ("{'descr': '<f4', 'descr': '<f8', 'fortran_order': False, 'shape': (3, 3)}", "duplicate"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 3)} + evil()", "after its dict"),
        ("{'descr': '<f4', 'evil': False, 'shape': (3, 3)}", "unknown key"),
        ("{'descr': '<f4", "does not end"),
        ("{'descr': '<f\\x34', 'fortran_order': False, 'shape': (3, 3)}", "escapes"),
    ] {
        let error = NpyHeader::parse(&header(dict)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(what), "{dict}: {error}");
    }
    let deep = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({})}}", "1,".repeat(65));
    assert!(NpyHeader::parse(&header(&deep)).is_err());
    let mut long = b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec();
    long.resize(100, b' ');
    assert!(NpyHeader::parse(&long).unwrap_err().to_string().contains("limit"));
    assert!(NpyHeader::parse(b"\x93NUMPY\x04\x00aaaa").unwrap_err().to_string().contains("version"));
    assert!(NpyHeader::parse(b"PK\x03\x04 a zip file").unwrap_err().to_string().contains("not a .npy"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_header_written_is_read_back(
        dtype in 0usize..6,
        big_endian in any::<bool>(),
        fortran in any::<bool>(),
        shape in prop::collection::vec(0u64..1 << 20, 0..4),
    ) {
        let dtype = DType::ALL[dtype];
        prop_assume!(dtype != DType::Bf16 && shape.iter().product::<u64>() < 1 << 59);
        let header = NpyHeader { dtype, big_endian: big_endian && dtype.size_bytes() > 1, fortran, shape };
        let bytes = header.to_bytes().unwrap();
        prop_assert_eq!(bytes.len() % 64, 0);
        prop_assert_eq!(NpyHeader::parse(&bytes).unwrap(), (header, bytes.len() as u64));
        // Reading as much as the header asks for, again and again, ends exactly at its end.
        let mut known = 0;
        while known < NpyHeader::length(&bytes[..known]) {
            known = NpyHeader::length(&bytes[..known]);
        }
        prop_assert_eq!(known, bytes.len());
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..128, to in any::<u8>()) {
        let _ = NpyHeader::parse(&bytes);
        prop_assert!(NpyHeader::length(&bytes) <= 12 + (64 << 10));
        let _ = csv::parse(&bytes);
        let _ = json::parse(&bytes);
        let mut real = NpyHeader { dtype: DType::F32, big_endian: false, fortran: true, shape: vec![3, 4] }.to_bytes().unwrap();
        real[at] = to;
        let _ = NpyHeader::parse(&real);
    }

    #[test]
    fn text_gives_the_same_values_back(values in prop::collection::vec(any::<f64>(), 12), f32s in any::<bool>()) {
        let t = Tensor::from_slice(3, 4, &values).unwrap();
        let t = if f32s { csv::convert(&t, DType::F32).unwrap() } else { t };
        let back = csv::convert(&csv::parse(csv::write(&t).as_bytes()).unwrap(), t.dtype()).unwrap();
        for i in 0..12 {
            let (a, b) = (t.get(i / 4, i % 4).unwrap(), back.get(i / 4, i % 4).unwrap());
            prop_assert!(a == b || (a.is_nan() && b.is_nan()), "{} {}", a, b);
        }
        if t.all_finite() {
            let back = csv::convert(&json::parse(json::write(&t).unwrap().as_bytes()).unwrap(), t.dtype()).unwrap();
            prop_assert_eq!(back.digest(), t.digest());
        }
    }
}

#[test]
fn csv_that_is_not_a_matrix_is_refused_with_line_and_column() {
    for (text, place) in [
        ("1,2\n3\n", "line 2, column 2"),
        ("1,2\n3,4,5\n", "line 2, column 3"),
        ("a,b\n1,2\n", "line 1, column 1"),
        ("1,2\n3,x\n", "line 2, column 2"),
        ("1,,2\n", "line 1, column 2"),
        ("1,2\n\n3,4\n", "line 2, column 1"),
    ] {
        let error = csv::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(place), "{text:?}: {error}");
    }
    let t = csv::parse(b"\xef\xbb\xbf 1, -2.5e3\r\nnan,inf\r\n\r\n").unwrap();
    assert_eq!(t.shape(), (2, 2));
    assert_eq!(t.get(0, 1), Some(-2500.0));
    assert_eq!(csv::parse(b"").unwrap().shape(), (0, 0));
}

#[test]
fn json_that_is_not_a_matrix_is_refused_with_the_place() {
    for (text, place) in [
        ("[[1, 2], [3]]", "row 2, column 2"),
        ("[[1, \"2\"]]", "row 1, column 2"),
        ("[[[1]]]", "row 1, column 1"),
        ("[1, 2]", "row 1"),
        ("[[1, null]]", "row 1, column 2"),
        ("[[1, 2]", "line 1, column 7"),
        ("{\"rows\": [[1]]}", "list of rows"),
    ] {
        let error = json::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(place), "{text}: {error}");
    }
    assert_eq!(json::parse(b"{\"data\": [[1, 2]]}").unwrap().shape(), (1, 2));
    assert_eq!(json::parse(b"[]").unwrap().shape(), (0, 0));
}

#[test]
fn integers_in_text_must_fit_their_type() {
    let t = csv::parse(b"127,-128\n").unwrap();
    assert_eq!(csv::convert(&t, DType::I8).unwrap().get(0, 1), Some(-128.0));
    for text in ["128", "0.5", "nan"] {
        let error = csv::convert(&csv::parse(text.as_bytes()).unwrap(), DType::I8).unwrap_err();
        assert!(error.to_string().contains("cannot hold"), "{error}");
    }
}

//! Tensors: the canonical image and digest do not depend on how elements lie; generated blocks agree with the whole.
// A test may stop at the first thing that is not as it should be, in its helpers too.
#![allow(clippy::unwrap_used)]

use pangea_compute::{Buffer, DType, Digest, ErrorKind, Isa, Tensor, TensorBuf};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_canonical_image_is_the_same_for_every_layout(
        dtype in 0usize..6,
        rows in 0usize..40,
        cols in 0usize..40,
        cut in (0.0f64..1.0, 0.0f64..1.0),
        seed in any::<u64>(),
    ) {
        let dtype = DType::ALL[dtype];
        let t = Tensor::generate(dtype, rows, cols, seed).unwrap();
        let mut bytes = vec![0; t.size_bytes()];
        t.read_bytes(0, &mut bytes);
        prop_assert_eq!(Some(bytes.as_slice()), t.contiguous_bytes());
        let mut turned = TensorBuf::new(dtype, cols, rows).unwrap();
        turned.write_block(0, 0, &t.transposed()).unwrap();
        let mut inside = TensorBuf::new(dtype, rows + 2, cols + 3).unwrap();
        inside.write_block(1, 2, &t).unwrap();
        let views = [
            turned.freeze().transposed(),
            inside.freeze().slice(1..rows + 1, 2..cols + 2).unwrap(),
            Tensor::from_buffer(dtype, rows, cols, Buffer::copy_of(&bytes).unwrap()).unwrap(),
        ];
        // Any range of bytes, whether or not it begins at an element.
        let from = (cut.0 * bytes.len() as f64) as usize;
        let len = (cut.1 * (bytes.len() - from) as f64) as usize;
        for view in views {
            prop_assert_eq!(view.digest(), t.digest());
            let gathered = view.to_contiguous().unwrap();
            prop_assert_eq!(gathered.contiguous_bytes(), Some(bytes.as_slice()));
            let mut part = vec![0; len];
            view.read_bytes(from as u64, &mut part);
            prop_assert_eq!(&part, &bytes[from..from + len]);
        }
    }

    #[test]
    fn a_generated_block_is_that_block_of_the_whole(
        dtype in 0usize..6,
        rows in 1usize..30,
        cols in 1usize..30,
        corner in (0.0f64..1.0, 0.0f64..1.0),
        seed in any::<u64>(),
    ) {
        let dtype = DType::ALL[dtype];
        let whole = Tensor::generate(dtype, rows, cols, seed).unwrap();
        let row = (corner.0 * rows as f64) as usize;
        let col = (corner.1 * cols as f64) as usize;
        let block = Tensor::generate_block(dtype, rows, cols, row..rows, col..cols, seed).unwrap();
        prop_assert_eq!(block.digest(), whole.slice(row..rows, col..cols).unwrap().digest());
    }
}

#[test]
fn generated_values_are_the_same_on_every_machine() {
    let t = Tensor::generate(DType::F32, 1, 3, 7).unwrap();
    let values: Vec<f64> = (0..3).map(|j| t.get(0, j).unwrap()).collect();
    assert_eq!(values, GOLDEN_VALUES);
    assert_eq!(t.digest().to_string(), GOLDEN_DIGEST);
    for dtype in [DType::F16, DType::Bf16, DType::F32, DType::F64] {
        let t = Tensor::generate(dtype, 100, 100, 1).unwrap();
        let all: Vec<f64> = (0..10_000).map(|i| t.get(i / 100, i % 100).unwrap()).collect();
        assert!(all.iter().all(|v| (-1.0..1.0).contains(v)), "{dtype}");
        let mean = all.iter().sum::<f64>() / 10_000.0;
        assert!(mean.abs() < 0.03, "{dtype}: {mean}");
    }
}

const GOLDEN_VALUES: [f64; 3] = [0.8561549186706543, -0.23861265182495117, 0.9517678022384644];
const GOLDEN_DIGEST: &str = "664e8b1200baf13755c899b4087f6c90a06371f550120a4abe0ccd00ee724db2";

#[test]
fn type_and_shape_are_part_of_a_digest() {
    let bytes = [0u8; 16];
    let digest = |dtype, rows, cols| -> Digest {
        Tensor::from_buffer(dtype, rows, cols, Buffer::copy_of(&bytes).unwrap()).unwrap().digest()
    };
    let all = [
        digest(DType::F32, 2, 2),
        digest(DType::F32, 4, 1),
        digest(DType::F32, 1, 4),
        digest(DType::I32, 2, 2),
        digest(DType::F64, 2, 1),
    ];
    for (i, a) in all.iter().enumerate() {
        assert!(all[i + 1..].iter().all(|b| a != b));
    }
}

#[test]
fn ndarray_goes_in_and_out_with_any_strides() {
    let t = Tensor::generate(DType::F64, 6, 5, 3).unwrap();
    let array = t.to_array::<f64>().unwrap();
    let reversed = array.slice(ndarray::s![..;-1, ..;2]);
    let back = Tensor::from_array(reversed).unwrap();
    assert_eq!(back.to_array::<f64>().unwrap(), reversed.to_owned());
    assert_eq!(t.transposed().view::<f64>().unwrap(), array.t());
    assert!(t.view::<f32>().is_err());
}

#[test]
fn absurd_sizes_are_errors() {
    for (rows, cols) in [(usize::MAX, 2), (1 << 40, 1 << 40), (isize::MAX as usize, 1), (1 << 60, 1)] {
        let error = TensorBuf::new(DType::F64, rows, cols).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    }
    assert_eq!(TensorBuf::new(DType::F64, usize::MAX, 0).unwrap().size_bytes(), 0);
}

#[test]
fn buffers_begin_on_cache_lines() {
    for len in [0, 1, 63, 64, 100, 1000, 5 << 20] {
        let mut buffer = Buffer::zeroed(len).unwrap();
        assert_eq!(buffer.len(), len);
        assert_eq!(buffer.as_slice().as_ptr() as usize % 64, 0);
        assert!(buffer.as_mut_slice().iter().all(|b| *b == 0));
    }
}

#[test]
fn slices_outside_are_errors() {
    let t = Tensor::generate(DType::I8, 3, 4, 0).unwrap();
    assert!(t.slice(0..4, 0..1).is_err());
    assert!(t.slice(0..1, 4..5).is_err());
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = t.slice(2..1, 0..1);
    assert!(reversed.is_err());
    assert_eq!(t.slice(3..3, 4..4).unwrap().shape(), (0, 0));
}

#[test]
fn instruction_sets_are_named_and_the_best_is_there() {
    assert!(Isa::best().is_available());
    assert!(Isa::Plain.is_available());
}

//! Injected faults of a worker, for tests: wrong, late and missing results of peers' tasks. Only results
//! that are about to be sent are changed.

use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::{Cancel, DType, Tensor, TensorBuf};

use crate::fault::Fault;

/// Applies a [`Fault`] to one result after another.
#[derive(Debug)]
pub(crate) struct Liar {
    fault: Fault,
    earlier: Vec<Tensor>,
    /// Results that were sent as they are.
    honest: usize,
    panicked: bool,
}

/// Right results of a liar that waits before it lies.
const HONEST_FIRST: usize = 2;

impl Liar {
    pub(crate) fn new(fault: Fault) -> Liar {
        Liar { fault, earlier: Vec::new(), honest: 0, panicked: false }
    }

    /// The result to send instead of the honest one, and the fault of its sending.
    pub(crate) fn twist(
        &mut self,
        result: Result<Tensor>,
        a: &Tensor,
        b: &Tensor,
        took: Duration,
        cancel: &Cancel,
    ) -> (Result<Tensor>, Option<Fault>) {
        let Ok(honest) = result else { return (result, None) };
        match self.fault {
            Fault::CorruptOne => (corrupt(&honest, a, b, false), None),
            Fault::CorruptLater if self.honest < HONEST_FIRST => {
                self.honest += 1;
                (Ok(honest), None)
            }
            Fault::CorruptLater => (corrupt(&honest, a, b, false), None),
            Fault::CorruptAll => (corrupt(&honest, a, b, true), None),
            Fault::Stale => {
                let same_shape =
                    |t: &&Tensor| (t.rows(), t.cols(), t.dtype()) == (honest.rows(), honest.cols(), honest.dtype());
                let answer = self.earlier.iter().find(same_shape).cloned();
                if answer.is_none() {
                    self.earlier.push(honest.clone());
                }
                (Ok(answer.unwrap_or(honest)), None)
            }
            Fault::Hang | Fault::Drop => (Ok(honest), Some(self.fault)),
            // These faults are for stages.
            Fault::CorruptStage
            | Fault::CorruptToken
            | Fault::CorruptScore
            | Fault::LieUnsigned
            | Fault::OutOfTurn
            | Fault::TwoFaced
            | Fault::SignsTwice
            | Fault::Endless
            | Fault::Refuse
            | Fault::FalseReports
            | Fault::Misfit
            | Fault::Full
            | Fault::Stall
            | Fault::PanicPool
            | Fault::PanicStage
            | Fault::LoseDevice
            | Fault::LateHash
            | Fault::OldVersion => (Ok(honest), None),
            Fault::PanicExecutor => {
                assert!(std::mem::replace(&mut self.panicked, true), "as the fault of this node says");
                (Ok(honest), None)
            }
            Fault::Slow => {
                let end = std::time::Instant::now() + took * 19;
                while std::time::Instant::now() < end && !cancel.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if cancel.is_cancelled() {
                    // Like a slow kernel.
                    return (Err(Error::new(ErrorKind::Cancelled, "the task was cancelled")), None);
                }
                (Ok(honest), None)
            }
        }
    }
}

/// Adds 1 % of (row norm · column norm), at least 1 in integers, to the middle element or to all.
fn corrupt(honest: &Tensor, a: &Tensor, b: &Tensor, all: bool) -> Result<Tensor> {
    let (rows, cols) = (honest.rows(), honest.cols());
    if rows == 0 || cols == 0 {
        return Ok(honest.clone());
    }
    let mut lie = TensorBuf::new(honest.dtype(), rows, cols).map_err(crate::compute_error)?;
    lie.write_block(0, 0, honest).map_err(crate::compute_error)?;
    let row_norms = norms(a)?;
    let column_norms = norms(&b.transposed())?;
    let mut shift = |row: usize, col: usize| {
        let amount = 0.01 * row_norms[row] * column_norms[col];
        add(honest.dtype(), lie.bytes_mut(), row * cols + col, amount);
    };
    if all {
        for row in 0..rows {
            for col in 0..cols {
                shift(row, col);
            }
        }
    } else {
        shift(rows / 2, cols / 2);
    }
    Ok(lie.freeze())
}

/// Euclidean norm of every row.
fn norms(tensor: &Tensor) -> Result<Vec<f64>> {
    let mut norms = Vec::with_capacity(tensor.rows());
    let size = tensor.dtype().size_bytes();
    let mut row = vec![0; tensor.cols() * size];
    for r in 0..tensor.rows() {
        tensor.read_bytes((r * row.len()) as u64, &mut row);
        let squares: f64 = row.chunks_exact(size).map(|element| get(tensor.dtype(), element).powi(2)).sum();
        norms.push(squares.sqrt());
    }
    Ok(norms)
}

fn get(dtype: DType, element: &[u8]) -> f64 {
    let mut raw = [0; 8];
    raw[..element.len()].copy_from_slice(element);
    let bits = u64::from_le_bytes(raw);
    match dtype {
        DType::F16 => f64::from(half::f16::from_bits(bits as u16)),
        DType::Bf16 => f64::from(half::bf16::from_bits(bits as u16)),
        DType::F32 => f64::from(f32::from_bits(bits as u32)),
        DType::F64 => f64::from_bits(bits),
        DType::I8 => f64::from(bits as u8 as i8),
        DType::I32 => f64::from(bits as u32 as i32),
    }
}

fn add(dtype: DType, bytes: &mut [u8], index: usize, amount: f64) {
    let size = dtype.size_bytes();
    let place = &mut bytes[index * size..(index + 1) * size];
    let value = get(dtype, place);
    match dtype {
        DType::F16 => place.copy_from_slice(&half::f16::from_f64(value + amount).to_bits().to_le_bytes()),
        DType::Bf16 => place.copy_from_slice(&half::bf16::from_f64(value + amount).to_bits().to_le_bytes()),
        DType::F32 => place.copy_from_slice(&((value + amount) as f32).to_le_bytes()),
        DType::F64 => place.copy_from_slice(&(value + amount).to_le_bytes()),
        DType::I8 => place.copy_from_slice(&((value as i8).wrapping_add(amount.max(1.0) as i8)).to_le_bytes()),
        DType::I32 => place.copy_from_slice(&((value as i32).wrapping_add(amount.max(1.0) as i32)).to_le_bytes()),
    }
}

//! Products whose operands or result are larger than memory: cut into blocks that fit a budget and multiplied one after
//! another, wherever the blocks are computed.
//!
//! * `plan`: how a product is cut. Pure.
//! * `node`: blocks that a node computes, read from and written to where a program keeps its matrices.
//!
//! [`multiply_blocks`] owns the order of loading, multiplying and storing; it knows nothing of files, nodes or kernels.

mod node;
mod plan;

use std::ops::Range;
use std::time::{Duration, Instant};

pub use node::{MatrixDestination, MatrixSource, multiply};
pub use plan::{Block, Plan, Shape, Side};

use crate::job::MatmulOptions;
use crate::report::JobReport;

/// Blocks of a product done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockProgress {
    /// Blocks of C that are computed and stored.
    pub blocks_done: u64,
    /// Blocks of C in all.
    pub blocks_total: u64,
}

/// Multiplies block by block as `plan` says:
///
/// * `load` brings rows of A or columns of B to where the blocks are multiplied,
/// * `multiply` computes the product of two loaded operands,
/// * `store` puts away the product of a block.
///
/// While a block is multiplied, the block before it is stored and the operand after it is loaded. Operands are dropped
/// before what replaces them is loaded, so that never more is held than [`Plan::peak_bytes`]. A deadline in `options` is
/// that of the whole product. Dropping the future cancels all of it. The report adds up those of the blocks; `None` where
/// the product has no elements.
///
/// # Errors
/// The first error of `load`, `multiply` or `store`; nothing is started after it.
pub async fn multiply_blocks<T, P, E>(
    plan: &Plan,
    options: &MatmulOptions,
    mut load: impl AsyncFnMut(Side, Range<u64>) -> Result<T, E>,
    multiply: impl AsyncFn(&T, &T, MatmulOptions) -> Result<(P, JobReport), E>,
    mut store: impl AsyncFnMut(P, &Block) -> Result<(), E>,
    on_progress: &mut dyn FnMut(BlockProgress),
) -> Result<Option<JobReport>, E> {
    let deadline = options.deadline.map(|deadline| Instant::now() + deadline);
    let (resident_side, passing_side) = (plan.resident(), plan.resident().other());
    let blocks: Vec<Block> = plan.blocks().collect();
    let mut progress = BlockProgress { blocks_done: 0, blocks_total: blocks.len() as u64 };
    on_progress(progress);
    let mut store_finished = async |finished: Option<(P, &Block)>| {
        if let Some((product, block)) = finished {
            store(product, block).await?;
            progress.blocks_done += 1;
            on_progress(progress);
        }
        Ok(())
    };
    let mut whole: Option<JobReport> = None;
    let mut resident: Option<(&Range<u64>, T)> = None;
    let mut passing: Option<(&Range<u64>, T)> = None;
    let mut finished: Option<(P, &Block)> = None;
    for (index, block) in blocks.iter().enumerate() {
        let resident_operand = match resident.take() {
            Some((lines, operand)) if lines == block.lines(resident_side) => operand,
            // Both the old and the new one may not fit: the old one goes first.
            old => {
                drop(old);
                let load = load(resident_side, block.lines(resident_side).clone());
                tokio::try_join!(load, store_finished(finished.take()))?.0
            }
        };
        let passing_operand = match passing.take() {
            Some((lines, operand)) if lines == block.lines(passing_side) => operand,
            old => {
                drop(old);
                load(passing_side, block.lines(passing_side).clone()).await?
            }
        };
        let (a, b) = match resident_side {
            Side::A => (&resident_operand, &passing_operand),
            Side::B => (&passing_operand, &resident_operand),
        };
        // From one block to the next only one operand changes. The resident one is not loaded ahead.
        let next = blocks.get(index + 1).map(|next| next.lines(passing_side));
        let next = next.filter(|lines| *lines != block.lines(passing_side));
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        let ((product, report), loaded, ()) = tokio::try_join!(
            multiply(a, b, MatmulOptions { deadline: left, ..options.clone() }),
            async {
                match next {
                    Some(lines) => load(passing_side, lines.clone()).await.map(|operand| Some((lines, operand))),
                    None => Ok(None),
                }
            },
            store_finished(finished.take()),
        )?;
        match &mut whole {
            Some(whole) => whole.absorb(&report),
            None => whole = Some(JobReport { shape: plan.shape().extents(), ..report }),
        }
        finished = Some((product, block));
        passing = loaded.or(Some((block.lines(passing_side), passing_operand)));
        resident = Some((block.lines(resident_side), resident_operand));
    }
    store_finished(finished).await?;
    Ok(whole)
}

//! Attention with a cache of pages: where rows stand, rotation, what goes into the cache, scores and sums.

use super::fits;
use crate::Error;
use crate::gpu::commands::Dispatch;
use crate::gpu::pipeline::{KernelId, Shader};
use crate::gpu::{Commands, Gpu, GpuBuffer, GpuRows, dimension};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Positions of a page of the cache.
pub const GPU_PAGE_POSITIONS: usize = 32;

/// Positions that a workgroup of attention takes at once.
const BLOCK: usize = 128;
/// Threads of a workgroup of attention.
const THREADS: usize = 128;
/// Queries that share what is read of the cache, at most.
const MAX_QUERIES: usize = 8;
/// Bytes of workgroup memory that every adapter has.
const WORKGROUP_BYTES: usize = 16 << 10;
/// Workgroups that keep a large GPU busy: fewer tiles than that are split by positions.
const ENOUGH_WORKGROUPS: usize = 256;
/// Bytes of the scores of exact attention, about, at most: rows are taken as many at a time as have room.
const SCORE_BYTES: usize = 16 << 20;
/// Operations of a multiply-add of floats in integers, about, as multiply-adds of floats.
const EMULATED: u64 = 64;
/// Elements of a head, at most.
const MAX_HEAD_DIM: usize = 512;

/// Sizes of attention in the layers of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads, which divide the query heads.
    pub kv_heads: usize,
    /// Elements of a head, a multiple of 8.
    pub head_dim: usize,
    /// Whether each query head is followed by a gate of the head's result.
    pub has_gates: bool,
    /// Positions that a row attends to, its own the last; `usize::MAX` for all.
    pub window: usize,
    /// Scores become `cap · tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

impl AttentionShape {
    /// Bytes of a page of one layer's cache. A cache is a [`GpuBuffer`] of whole pages: of each, of each key-value head, the keys
    /// `[head_dim / 8][32 positions][8]` and the values `[32 positions][head_dim]`, as f16.
    pub fn page_bytes(&self) -> u64 {
        2 * 2 * (GPU_PAGE_POSITIONS * self.kv_heads * self.head_dim) as u64
    }

    /// Elements of a row of queries, with gates.
    pub fn query_cols(&self) -> usize {
        self.heads * self.query_head_stride()
    }

    /// Elements of a row of keys, or of values.
    pub fn kv_cols(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn query_head_stride(&self) -> usize {
        if self.has_gates { 2 * self.head_dim } else { self.head_dim }
    }

    /// Queries of a tile, at most, as far as workgroup memory goes.
    fn max_queries(&self) -> usize {
        let bytes = |queries: usize| 4 * (queries * (self.head_dim + BLOCK.max(2 * THREADS / queries) + 20) + 8);
        [MAX_QUERIES, 4, 2].into_iter().find(|queries| bytes(*queries) <= WORKGROUP_BYTES).unwrap_or(1)
    }
}

/// Rows of a batch that are consecutive positions of one session.
#[derive(Clone, Debug)]
pub struct GpuSequence<'a> {
    /// The rows of the batch.
    pub rows: Range<usize>,
    /// The position of the first row.
    pub position: usize,
    /// The page of the positions 0 – 31, 32 – 63, … in the cache of every layer, up to that of the last row. Pages whose positions
    /// no row attends to any more are not read: any number may stand there.
    pub pages: &'a [u32],
}

/// Where the rows of a batch stand in the layers of one kind, on the GPU.
pub struct GpuPlaces {
    shape: AttentionShape,
    rows: usize,
    last_page: u32,
    /// `[rows]`: position, first entry of the session's pages, the page of the position.
    places: GpuBuffer,
    pages: GpuBuffer,
    tiles: GpuBuffer,
    tile_count: usize,
    /// Queries of a tile.
    queries: usize,
    /// Positions of a split.
    split: usize,
    splits: usize,
    /// Pairs of keys and queries, of all rows and heads.
    scores: u64,
    /// `[rows, heads, splits, head_dim + 2]`, once attention that is split has needed it.
    partial: OnceLock<GpuBuffer>,
    /// Positions that a row attends to, at most, from a multiple of sixteen on.
    longest: usize,
    /// `[rows at once, heads, longest]`, once exact attention has needed it.
    exact_scores: OnceLock<GpuBuffer>,
}

impl GpuPlaces {
    /// Plans attention of these sequences, whose rows follow one another from 0 on.
    ///
    /// # Errors
    /// [`Error::Invalid`] for rows that do not, a session with too few pages, and shapes that the kernels do not take;
    /// [`Error::OutOfMemory`]; [`Error::DeviceLost`].
    pub fn new(gpu: &Arc<Gpu>, shape: AttentionShape, sequences: &[GpuSequence<'_>]) -> Result<GpuPlaces, Error> {
        let AttentionShape { heads, kv_heads, head_dim, window, .. } = shape;
        let is_taken = kv_heads > 0
            && heads.is_multiple_of(kv_heads)
            && head_dim.is_multiple_of(8)
            && (8..=MAX_HEAD_DIM).contains(&head_dim)
            && window > 0;
        fits("attention on the GPU", is_taken, || format!("{shape:?}"))?;
        let shared_by = heads / kv_heads;
        let most = sequences.iter().map(|sequence| sequence.rows.len() * shared_by).max().unwrap_or(1);
        let queries = most.next_power_of_two().min(shape.max_queries());
        let (mut places, mut pages, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
        let (mut rows, mut longest, mut scores) = (0, 0, 0);
        for sequence in sequences {
            let GpuSequence { rows: own, position, pages: own_pages } = sequence;
            let end = position + own.len();
            let is_whole = own.start == rows && !own.is_empty() && own_pages.len() * GPU_PAGE_POSITIONS >= end;
            fits("attention on the GPU", is_whole, || format!("{sequence:?} after {rows} rows"))?;
            rows = own.end;
            for position in *position..end {
                let page = own_pages[position / GPU_PAGE_POSITIONS];
                places.push([dimension(position)?, dimension(pages.len())?, page, 0]);
                scores += (position + 1).min(window) as u64;
            }
            for first in (0..own.len() * shared_by).step_by(queries) {
                let count = queries.min(own.len() * shared_by - first);
                tiles.push([dimension(own.start)?, dimension(first)?, dimension(count)?, 0]);
                let of = |query: usize| position + query / shared_by;
                let start = (of(first) + 1).saturating_sub(window) / BLOCK * BLOCK;
                longest = longest.max(of(first + count - 1) + 1 - start);
            }
            pages.extend_from_slice(own_pages);
        }
        let blocks = longest.div_ceil(BLOCK).max(1);
        let wanted = ENOUGH_WORKGROUPS.div_ceil((tiles.len() * kv_heads).max(1)).clamp(1, blocks);
        let split = blocks.div_ceil(wanted) * BLOCK;
        let splits = (blocks * BLOCK).div_ceil(split);
        let last_page = places.iter().map(|place| place[2]).max().unwrap_or(0);
        Ok(GpuPlaces {
            shape,
            rows,
            last_page,
            places: GpuBuffer::of(gpu, places.as_flattened(), "positions on the GPU")?,
            pages: GpuBuffer::of(gpu, &pages, "page tables on the GPU")?,
            tiles: GpuBuffer::of(gpu, tiles.as_flattened(), "tiles of attention on the GPU")?,
            tile_count: tiles.len(),
            queries,
            split,
            splits,
            scores: scores * heads as u64,
            partial: OnceLock::new(),
            longest: blocks * BLOCK,
            exact_scores: OnceLock::new(),
        })
    }

    fn partial(&self, gpu: &Arc<Gpu>) -> Result<&GpuBuffer, Error> {
        let bytes = 4 * (self.rows * self.shape.heads * self.splits * (self.shape.head_dim + 2)) as u64;
        made_once(&self.partial, || GpuBuffer::new(gpu, bytes, "results of attention on the GPU"))
    }

    /// Rows of exact attention whose scores lie in memory together.
    fn rows_at_once(&self) -> usize {
        (SCORE_BYTES / (4 * self.shape.heads * self.longest).max(1)).clamp(1, self.rows.max(1))
    }

    fn exact_scores(&self, gpu: &Arc<Gpu>) -> Result<&GpuBuffer, Error> {
        let bytes = 4 * (self.rows_at_once() * self.shape.heads * self.longest) as u64;
        made_once(&self.exact_scores, || GpuBuffer::new(gpu, bytes, "scores of attention on the GPU"))
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// What is made when it is first needed.
fn made_once(slot: &OnceLock<GpuBuffer>, make: impl FnOnce() -> Result<GpuBuffer, Error>) -> Result<&GpuBuffer, Error> {
    if let Some(made) = slot.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(slot.get_or_init(|| made))
}

/// Queries, keys and values of a layer's rows.
#[derive(Clone, Copy, Debug)]
pub struct QueryKeyValue<'a> {
    /// `[rows, query_cols]`
    pub q: &'a GpuRows,
    /// `[rows, kv_cols]`
    pub k: &'a GpuRows,
    /// `[rows, kv_cols]`
    pub v: &'a GpuRows,
}

/// How queries and keys are rotated, and their norms.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// `[rows, 2 · pairs]`: of each row the cosines, then the sines of its position's angles.
    pub angles: &'a GpuBuffer,
    /// Pairs of a head that are rotated.
    pub pairs: usize,
    /// Whether they are (2i, 2i + 1), instead of (i, i + pairs).
    pub interleaved: bool,
    /// `[2 · head_dim]`: the norm of query heads, then that of key heads.
    pub norms: Option<&'a GpuBuffer>,
    /// Added to the mean of squares in these norms.
    pub epsilon: f32,
    /// Factor of queries: the scale of scores.
    pub query_scale: f32,
}

impl Commands {
    /// Queries get their norm, rotation and scale in place; keys get norm and rotation and go into the layer's cache with the
    /// values. `code` is that of queries, the next one that of keys, the one after it that of values: of those that are not
    /// finite, of queries of 2¹⁰⁰ or more, of keys and values beyond f16.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::DeviceLost`].
    pub fn rope_and_cache(
        &mut self,
        places: &GpuPlaces,
        rows: QueryKeyValue<'_>,
        rotation: Rotation<'_>,
        cache: &GpuBuffer,
        code: u32,
    ) -> Result<(), Error> {
        let QueryKeyValue { q, k, v } = rows;
        let shape = places.shape;
        let enough = |rows: &GpuRows, cols: usize| rows.cols() == cols && rows.rows() >= places.rows;
        let shapes = enough(q, shape.query_cols())
            && enough(k, shape.kv_cols())
            && enough(v, shape.kv_cols())
            && 2 * rotation.pairs <= shape.head_dim
            && rotation.angles.size_bytes() >= 8 * (places.rows * rotation.pairs) as u64
            && rotation.norms.is_none_or(|norms| norms.size_bytes() >= 8 * shape.head_dim as u64)
            && cache.size_bytes() >= (u64::from(places.last_page) + 1) * shape.page_bytes();
        fits("rotation on the GPU", shapes, || format!("{q:?}, {k:?}, {v:?} of {} rows, {shape:?}", places.rows))?;
        let gpu = self.gpu().clone();
        let fault = self.fault()?;
        let flags = (3 * u32::from(rotation.norms.is_some())) | (4 * u32::from(rotation.interleaved));
        self.dispatch(&Dispatch {
            kernel: KernelId { shader: self.either(Shader::Rope, Shader::ExactRope), format: None, constants: [0; 3] },
            buffers: &[
                &q.buffer,
                &k.buffer,
                &v.buffer,
                cache,
                rotation.angles,
                rotation.norms.unwrap_or(gpu.nothing()?),
                &places.places,
                &fault,
            ],
            parameters: &[
                dimension(shape.heads)?,
                dimension(shape.kv_heads)?,
                dimension(shape.head_dim)?,
                dimension(rotation.pairs)?,
                dimension(shape.query_head_stride())?,
                dimension(q.stride())?,
                dimension(k.stride())?,
                dimension(v.stride())?,
                rotation.query_scale.to_bits(),
                rotation.epsilon.to_bits(),
                flags,
                code,
            ],
            workgroups: [dimension(shape.heads + 2 * shape.kv_heads)?, dimension(places.rows)?, 1],
            work: (4 * places.rows * (shape.heads + 2 * shape.kv_heads) * shape.head_dim) as u64,
        })
    }

    /// Attention of all rows, whose queries were rotated and whose keys and values are in the cache. `sinks`: `[heads]`, scores
    /// without a key and a value. `out`: `[rows, heads · head_dim]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where shapes do not fit; [`Error::DeviceLost`].
    pub fn attend(
        &mut self,
        places: &GpuPlaces,
        q: &GpuRows,
        cache: &GpuBuffer,
        sinks: Option<&GpuBuffer>,
        out: &GpuRows,
        code: u32,
    ) -> Result<(), Error> {
        let shape = places.shape;
        let shapes = q.cols() == shape.query_cols()
            && out.cols() == shape.heads * shape.head_dim
            && places.rows <= q.rows().min(out.rows())
            && sinks.is_none_or(|sinks| sinks.size_bytes() >= 4 * shape.heads as u64);
        fits("attention on the GPU", shapes, || format!("{q:?} to {out:?} of {} rows, {shape:?}", places.rows))?;
        if self.is_exact() {
            return self.exact_attend(places, q, cache, sinks, out, code);
        }
        let gpu = self.gpu().clone();
        let fault = self.fault()?;
        let partial = places.partial(&gpu)?;
        let own_words = (shape.head_dim / 2).div_ceil(THREADS);
        self.dispatch(&Dispatch {
            kernel: KernelId {
                shader: Shader::Attend,
                format: None,
                constants: [dimension(shape.head_dim)?, dimension(places.queries)?, dimension(own_words)?],
            },
            buffers: &[&q.buffer, cache, &places.places, &places.pages, &places.tiles, partial],
            parameters: &[
                dimension(shape.heads)?,
                dimension(shape.kv_heads)?,
                dimension(shape.query_head_stride())?,
                dimension(q.stride())?,
                u32::try_from(shape.window).unwrap_or(u32::MAX),
                dimension(places.splits)?,
                dimension(places.split)?,
                shape.soft_cap.unwrap_or(0.0).to_bits(),
                dimension(places.tile_count)?,
                0,
                0,
                0,
            ],
            workgroups: [dimension(shape.kv_heads)?, dimension(places.tile_count)?, dimension(places.splits)?],
            work: 2 * places.scores * shape.head_dim as u64,
        })?;
        self.dispatch(&Dispatch {
            kernel: KernelId { shader: Shader::CombineAttention, format: None, constants: [0; 3] },
            buffers: &[partial, sinks.unwrap_or(gpu.nothing()?), &q.buffer, &out.buffer, &fault],
            parameters: &[
                dimension(shape.heads)?,
                dimension(shape.head_dim)?,
                dimension(places.splits)?,
                dimension(out.stride())?,
                u32::from(sinks.is_some()) | (2 * u32::from(shape.has_gates)),
                dimension(q.stride())?,
                code,
                0,
            ],
            workgroups: [dimension(shape.heads)?, dimension(places.rows)?, 1],
            work: (places.rows * shape.heads * places.splits * shape.head_dim) as u64,
        })
    }

    /// [`Commands::attend`] of exact commands, whose shapes were checked.
    fn exact_attend(
        &mut self,
        places: &GpuPlaces,
        q: &GpuRows,
        cache: &GpuBuffer,
        sinks: Option<&GpuBuffer>,
        out: &GpuRows,
        code: u32,
    ) -> Result<(), Error> {
        let shape = places.shape;
        let gpu = self.gpu().clone();
        let fault = self.fault()?;
        let scores = places.exact_scores(&gpu)?;
        let at_once = places.rows_at_once();
        for first in (0..places.rows).step_by(at_once) {
            let count = at_once.min(places.rows - first);
            self.dispatch(&Dispatch {
                kernel: KernelId { shader: Shader::ExactAttend, format: None, constants: [0; 3] },
                buffers: &[
                    &q.buffer,
                    cache,
                    &places.places,
                    &places.pages,
                    sinks.unwrap_or(gpu.nothing()?),
                    scores,
                    &out.buffer,
                    &fault,
                ],
                parameters: &[
                    dimension(shape.heads)?,
                    dimension(shape.kv_heads)?,
                    dimension(shape.head_dim)?,
                    dimension(shape.query_head_stride())?,
                    dimension(q.stride())?,
                    dimension(out.stride())?,
                    u32::try_from(shape.window).unwrap_or(u32::MAX),
                    shape.soft_cap.unwrap_or(0.0).to_bits(),
                    dimension(first)?,
                    dimension(places.longest)?,
                    u32::from(sinks.is_some()) | (2 * u32::from(shape.has_gates)),
                    code,
                ],
                workgroups: [dimension(shape.heads)?, dimension(count)?, 1],
                work: 2 * EMULATED * places.scores * shape.head_dim as u64 * count as u64 / places.rows as u64,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_into_the_workgroup_memory_that_every_adapter_has() {
        for head_dim in (8..=MAX_HEAD_DIM).step_by(8) {
            let shape = AttentionShape {
                heads: 8,
                kv_heads: 1,
                head_dim,
                has_gates: false,
                window: usize::MAX,
                soft_cap: None,
            };
            let queries = shape.max_queries();
            // What attend.wgsl declares.
            let bytes = 4 * (queries * head_dim + (queries * BLOCK).max(2 * THREADS) + queries * 16 + 3 * queries + 4);
            assert!(bytes <= WORKGROUP_BYTES, "{head_dim}: {queries} queries take {bytes} bytes");
            assert!(queries >= 4, "{head_dim}");
        }
    }
}

//! The loop nest around the micro-kernels: cuts a product into slabs that fit in shared cache, packs them, and hands
//! blocks of C to the threads. Callers have checked shapes and types. Only scratch memory is allocated; a cancelled
//! product stops soon.
#![allow(unsafe_code)]

use super::pack::{pack_a, pack_b};
use super::{Kernel, SUM_BLOCK};
use crate::{Cancel, DType, Element, Error, Pool, Tensor, TensorBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Packed A and B together stay below this size: most of a last-level cache, and small beside the operands themselves.
const SLAB_BYTES: usize = 32 << 20;
/// Rows and columns of C in one slab, at most, so that a slab is deep in k rather than flat.
const SLAB_LINES: usize = 4096;
/// Rows of a slab, at most, where C is 16 bits wide and the slab needs an f32 copy of its part of C.
const SLAB_ROWS_HALF: usize = 2048;
/// Bytes of B that one thread works through: half of a 1 MiB L2 cache.
const B_BLOCK_BYTES: usize = 512 << 10;
/// Row panels of C per block: a balance between reuse of B's part and even work for threads.
const ROW_PANELS: usize = 12;
/// Multiply-adds per thread, at least: about 100 µs of work, against a wake-up of some 10 µs.
const MACS_PER_THREAD: f64 = 4e6;

/// Where a block of C goes: row-major memory of `dtype` elements, rows `ld` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Dest {
    pub(crate) ptr: *mut u8,
    pub(crate) dtype: DType,
    pub(crate) ld: usize,
}
// SAFETY: threads write disjoint blocks; the maker of a `Dest` holds the memory exclusively while the `Dest` is used.
unsafe impl Send for Dest {}
// SAFETY: as above.
unsafe impl Sync for Dest {}

impl Dest {
    /// # Safety
    /// (row, col) lies inside the memory, or at its end.
    pub(super) unsafe fn at(self, row: usize, col: usize) -> Dest {
        // SAFETY: the caller's promise.
        let ptr = unsafe { self.ptr.add((row * self.ld + col) * self.dtype.size_bytes()) };
        Dest { ptr, ..self }
    }
}

/// A block of a tensor being written that receives a product: checked, and held exclusively.
pub(crate) struct Target<'a> {
    c: Dest,
    rows: usize,
    cols: usize,
    held: std::marker::PhantomData<&'a mut TensorBuf>,
}

impl<'a> Target<'a> {
    /// The block of `rows` × `cols` at (`row0`, `col0`) of `out`.
    pub(crate) fn new(
        out: &'a mut TensorBuf,
        row0: usize,
        col0: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Target<'a>, Error> {
        let dtype = out.dtype();
        out.check_block(row0, col0, dtype, rows, cols)?;
        let ld = out.cols();
        let from = (row0 * ld + col0) * dtype.size_bytes();
        let from = from.min(out.size_bytes());
        Ok(Target {
            c: Dest { ptr: out.bytes_mut()[from..].as_mut_ptr(), dtype, ld },
            rows,
            cols,
            held: std::marker::PhantomData,
        })
    }

    /// Where to write, for a product of this shape summed in `acc`.
    pub(super) fn dest(&self, rows: usize, cols: usize, acc: DType) -> Dest {
        let rounded = acc == DType::F32 && matches!(self.c.dtype, DType::F16 | DType::Bf16);
        assert!((rows, cols) == (self.rows, self.cols) && (self.c.dtype == acc || rounded));
        self.c
    }
}

/// How k is cut into passes: every pass but the last has length `kc`. Both operands of a product are cut alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passes {
    k: usize,
    kc: usize,
    unit: usize,
}

impl Passes {
    /// Passes of equal length, as few as L1 allows.
    fn of<K: Kernel>(k: usize) -> Passes {
        const {
            assert!(K::KUNIT > 1 || K::KC <= SUM_BLOCK);
            assert!(K::KC.is_multiple_of(K::KUNIT));
        }
        let kc = k.div_ceil(k.div_ceil(K::KC).max(1)).next_multiple_of(K::KUNIT);
        Passes { k, kc, unit: K::KUNIT }
    }

    fn count(self) -> usize {
        if self.k == 0 { 0 } else { self.k.div_ceil(self.kc) }
    }

    /// First k, length, and length with padding of pass `q`.
    fn pass(self, q: usize) -> (usize, usize, usize) {
        let len = self.kc.min(self.k - q * self.kc);
        (q * self.kc, len, len.next_multiple_of(self.unit))
    }

    /// The part of the passes that covers `count` passes from `first` on.
    fn slab(self, first: usize, count: usize) -> Passes {
        let from = first * self.kc;
        Passes { k: (count * self.kc).min(self.k - from), ..self }
    }

    fn padded(self) -> usize {
        self.k.next_multiple_of(self.unit)
    }

    fn a_bytes<K: Kernel>(self, rows: usize) -> usize {
        rows * self.padded() * size_of::<K::Elem>()
    }

    fn b_bytes<K: Kernel>(self, cols: usize) -> usize {
        let panels = cols.div_ceil(K::NR);
        panels * (self.count() * K::HEADER + K::NR * self.padded() * size_of::<K::Elem>())
    }

    /// Byte range of panel `p` of pass `q` of A with `rows` rows.
    fn a_panel<K: Kernel>(self, rows: usize, q: usize, p: usize) -> std::ops::Range<usize> {
        let size = size_of::<K::Elem>();
        let (_, _, padded) = self.pass(q);
        let height = K::MR.min(rows - p * K::MR);
        let start = (q * self.kc * rows + p * K::MR * padded) * size;
        start..start + height * padded * size
    }

    /// Byte range of panel `p` of pass `q` of B with `cols` columns.
    fn b_panel<K: Kernel>(self, cols: usize, q: usize, p: usize) -> std::ops::Range<usize> {
        let size = size_of::<K::Elem>();
        let (_, _, padded) = self.pass(q);
        let panels = cols.div_ceil(K::NR);
        let bytes = K::HEADER + K::NR * padded * size;
        let start = q * panels * (K::HEADER + K::NR * self.kc * size) + p * bytes;
        start..start + bytes
    }
}

/// The number of threads that a product of this size uses.
fn width(pool: &Pool, m: usize, n: usize, k: usize) -> usize {
    let macs = m as f64 * n as f64 * k.max(1) as f64;
    pool.threads().min((macs / MACS_PER_THREAD) as usize).max(1)
}

/// Memory that several threads write disjoint parts of.
struct Parts(*mut u8, usize);
// SAFETY: every thread takes ranges that no other takes.
unsafe impl Sync for Parts {}

impl Parts {
    /// # Safety
    /// No other live reference covers any of `range`.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, range: std::ops::Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.1);
        // SAFETY: inside the memory, by the assertion; unaliased, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Runs `work(i)` for every i < count on `width` threads, in increasing order, `width` at a time.
fn each(pool: &Pool, width: usize, count: usize, work: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    pool.run(width, &|_| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return;
            }
            pool.next_piece();
            work(i);
        }
    });
}

/// Packs all of `a` ([rows, k]) into `out`.
fn pack_all_a<K: Kernel>(a: &Tensor, passes: Passes, out: &mut [u8], pool: &Pool, width: usize, cancel: &Cancel) {
    let rows = a.rows();
    let panels = rows.div_ceil(K::MR);
    let out = Parts(out.as_mut_ptr(), out.len());
    each(pool, width, passes.count() * panels, &|unit| {
        if cancel.is_cancelled() {
            return;
        }
        let (p, q) = (unit / passes.count(), unit % passes.count());
        let (k0, k, _) = passes.pass(q);
        // SAFETY: panels are disjoint and each is packed once.
        let out = unsafe { out.part(passes.a_panel::<K>(rows, q, p)) };
        let first = p * K::MR;
        pack_a::<K>(a, first, K::MR.min(rows - first), k0, k, out);
    });
}

/// Packs all of `b` ([k, cols]) into `out`.
fn pack_all_b<K: Kernel>(b: &Tensor, passes: Passes, out: &mut [u8], pool: &Pool, width: usize, cancel: &Cancel) {
    let cols = b.cols();
    let panels = cols.div_ceil(K::NR);
    let out = Parts(out.as_mut_ptr(), out.len());
    each(pool, width, passes.count() * panels, &|unit| {
        if cancel.is_cancelled() {
            return;
        }
        let (q, p) = (unit / panels, unit % panels);
        let (k0, k, _) = passes.pass(q);
        // SAFETY: panels are disjoint and each is packed once.
        let out = unsafe { out.part(passes.b_panel::<K>(cols, q, p)) };
        let first = p * K::NR;
        pack_b::<K>(b, first, K::NR.min(cols - first), k0, k, out);
    });
}

/// One slab of a product: packed operands, and the destination.
struct Slab<'a> {
    a: &'a [u8],
    b: &'a [u8],
    m: usize,
    n: usize,
    passes: Passes,
    c: Dest,
    /// Whether sums are added to the content of C.
    add: bool,
}

impl Slab<'_> {
    /// # Safety
    /// `c` is writable memory for `m` × `n` of the kernel's sums, exclusively held; the operands were packed by `K`
    /// with `passes`; the processor has K's instruction set.
    unsafe fn compute<K: Kernel>(&self, pool: &Pool, width: usize, cancel: &Cancel) {
        let row_panels = self.m.div_ceil(K::MR);
        let col_panels = self.n.div_ceil(K::NR);
        let deep = K::NR * self.passes.kc * size_of::<K::Elem>() + K::HEADER;
        let cols_per = (B_BLOCK_BYTES / deep).clamp(1, col_panels);
        let col_blocks = col_panels.div_ceil(cols_per);
        // Enough blocks that no thread idles for long at the end.
        let wanted = if width > 1 { (8 * width).div_ceil(col_blocks) } else { 1 };
        let row_blocks = row_panels.div_ceil(ROW_PANELS).max(wanted.min(row_panels.div_ceil(2)));
        each(pool, width, row_blocks * col_blocks, &|unit| {
            if cancel.is_cancelled() {
                return;
            }
            // Neighbouring blocks share B's part.
            let (col, row) = (unit / row_blocks, unit % row_blocks);
            let part = |i: usize, parts: usize, whole: usize| i * whole / parts..(i + 1) * whole / parts;
            let (rows, cols) = (part(row, row_blocks, row_panels), part(col, col_blocks, col_panels));
            // SAFETY: blocks of C are disjoint; the rest is the caller's promise.
            unsafe { self.block::<K>(rows, cols) }
        });
    }

    /// # Safety
    /// As [`Slab::compute`]; no other thread writes these panels of C.
    unsafe fn block<K: Kernel>(&self, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>) {
        let mut edge = [<K::Acc as bytemuck::Zeroable>::zeroed(); 512];
        const { assert!(K::MR * K::NR <= 512) };
        for q in 0..self.passes.count() {
            let (_, _, padded) = self.passes.pass(q);
            let groups = padded / K::KUNIT;
            let add = self.add || q > 0;
            for p in rows.clone() {
                let a = self.a[self.passes.a_panel::<K>(self.m, q, p)].as_ptr();
                let height = K::MR.min(self.m - p * K::MR);
                for j in cols.clone() {
                    let b = self.b[self.passes.b_panel::<K>(self.n, q, j)].as_ptr();
                    let width = K::NR.min(self.n - j * K::NR);
                    // SAFETY: panel (p, j) begins inside C.
                    let c = unsafe { self.c.at(p * K::MR, j * K::NR) }.ptr.cast::<K::Acc>();
                    if width == K::NR {
                        // SAFETY: a whole tile of C, `height` rows of NR; panels as packed.
                        unsafe {
                            K::micro(height, groups, a.cast(), b, c, self.c.ld, add);
                        }
                        continue;
                    }
                    // SAFETY: `edge` holds MR · NR sums.
                    unsafe {
                        K::micro(height, groups, a.cast(), b, edge.as_mut_ptr(), K::NR, false);
                    }
                    for (i, line) in edge.chunks_exact(K::NR).enumerate().take(height) {
                        // SAFETY: row i of this tile, cut to C's width.
                        let c = unsafe { std::slice::from_raw_parts_mut(c.add(i * self.c.ld), width) };
                        for (c, sum) in c.iter_mut().zip(line) {
                            *c = if add { *c + *sum } else { *sum };
                        }
                    }
                }
            }
        }
    }
}

/// `c = a · b`; shapes fit, `c` has the product's type, no length is 0, and K is the kernel that
/// [`for_kernel`](super::for_kernel) chose for the pool.
pub(crate) fn multiply<K: Kernel>(
    a: &Tensor,
    b: &Tensor,
    c: &Target<'_>,
    pool: &Pool,
    cancel: &Cancel,
) -> Result<(), Error> {
    assert!(a.cols() == b.rows() && !a.is_empty() && !b.is_empty());
    let c = c.dest(a.rows(), b.cols(), K::Acc::DTYPE);
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    let direct = c.dtype.size_bytes() == size_of::<K::Acc>();
    let size = size_of::<K::Elem>();
    let most_rows = if direct { SLAB_LINES } else { SLAB_ROWS_HALF };
    let (row_slabs, col_slabs) = (m.div_ceil(most_rows), n.div_ceil(SLAB_LINES));
    let (rows_per, cols_per) = (m.div_ceil(row_slabs), n.div_ceil(col_slabs));
    let passes = Passes::of::<K>(k);
    let per_pass = (rows_per + cols_per.next_multiple_of(K::NR)) * passes.kc * size;
    let slab_passes = (SLAB_BYTES / per_pass).clamp(1, passes.count());
    let slabs = passes.count().div_ceil(slab_passes);
    let slab_passes = passes.count().div_ceil(slabs);
    let deepest = passes.slab(0, slab_passes);
    let width = width(pool, m, n, k);

    let a_bytes = deepest.a_bytes::<K>(rows_per).next_multiple_of(64);
    let b_bytes = deepest.b_bytes::<K>(cols_per);
    let mut scratch = pool.scratch(a_bytes + b_bytes)?;
    let mut sums = match direct {
        true => None,
        false => Some(pool.scratch(rows_per * cols_per * size_of::<K::Acc>())?),
    };
    let result = (|| {
        for col in (0..n).step_by(cols_per) {
            let cols = cols_per.min(n - col);
            for row in (0..m).step_by(rows_per) {
                let rows = rows_per.min(m - row);
                // SAFETY: (row, col) lies inside C.
                let target = unsafe { c.at(row, col) };
                let into = match &mut sums {
                    None => target,
                    Some(sums) => Dest { ptr: sums.as_mut_slice().as_mut_ptr(), dtype: K::Acc::DTYPE, ld: cols },
                };
                for slab in 0..slabs {
                    let first = slab * slab_passes;
                    let part = passes.slab(first, slab_passes.min(passes.count() - first));
                    let k0 = first * passes.kc;
                    let (packed_a, packed_b) = scratch.as_mut_slice().split_at_mut(a_bytes);
                    let band = a.slice(row..row + rows, k0..k0 + part.k)?;
                    pack_all_a::<K>(&band, part, packed_a, pool, width, cancel);
                    if slabs > 1 || row == 0 {
                        let panel = b.slice(k0..k0 + part.k, col..col + cols)?;
                        pack_all_b::<K>(&panel, part, packed_b, pool, width, cancel);
                    }
                    let slab =
                        Slab { a: packed_a, b: packed_b, m: rows, n: cols, passes: part, c: into, add: first > 0 };
                    // SAFETY: `into` has room for rows × cols sums, exclusively ours; a pool's instruction set, by which K
                    // was chosen, is available.
                    unsafe { slab.compute::<K>(pool, width, cancel) };
                    cancel.check()?;
                }
                if let Some(sums) = &sums {
                    let sums = &sums.as_slice()[..rows * cols * size_of::<K::Acc>()];
                    // SAFETY: `target` has room for rows × cols, exclusively ours.
                    unsafe { round(sums, rows, cols, target, pool, width) };
                }
            }
        }
        Ok(())
    })();
    pool.give_back(scratch);
    if let Some(sums) = sums {
        pool.give_back(sums);
    }
    result
}

/// Rounds f32 `sums` ([rows, cols]) once to the 16-bit type of `c`.
///
/// # Safety
/// `c` is writable memory for rows × cols, exclusively held.
unsafe fn round(sums: &[u8], rows: usize, cols: usize, c: Dest, pool: &Pool, width: usize) {
    use half::slice::HalfFloatSliceExt;
    let sums: &[f32] = bytemuck::cast_slice(sums);
    // Some 64 Ki elements at a time.
    let step = (65_536 / cols).max(1);
    each(pool, width, rows.div_ceil(step), &|unit| {
        for row in unit * step..((unit + 1) * step).min(rows) {
            let from = &sums[row * cols..][..cols];
            // SAFETY: row < rows of C, cols elements; each row is written by one thread.
            unsafe {
                let to = c.at(row, 0).ptr;
                if c.dtype == DType::F16 {
                    std::slice::from_raw_parts_mut(to.cast::<half::f16>(), cols).convert_from_f32_slice(from);
                } else {
                    let to = std::slice::from_raw_parts_mut(to.cast::<u16>(), cols);
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = bf16_bits(*from);
                    }
                }
            }
        }
    });
}

/// f32 → bf16, to nearest, ties to even; NaN stays NaN. Without branches.
#[inline(always)]
fn bf16_bits(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    (if v.is_nan() { nan } else { rounded }) as u16
}

/// One whole operand, packed.
pub(crate) fn pack_whole<K: Kernel>(
    t: &Tensor,
    is_a: bool,
    pool: &Pool,
    cancel: &Cancel,
) -> Result<(crate::Buffer, Passes), Error> {
    let k = if is_a { t.cols() } else { t.rows() };
    let passes = Passes::of::<K>(k);
    // Packing moves about as many bytes per second as 30 multiply-adds take.
    let width = width(pool, t.rows(), t.cols(), 30);
    if is_a {
        let mut out = crate::Buffer::unspecified(passes.a_bytes::<K>(t.rows()))?;
        pack_all_a::<K>(t, passes, out.as_mut_slice(), pool, width, cancel);
        cancel.check()?;
        return Ok((out, passes));
    }
    let mut out = crate::Buffer::unspecified(passes.b_bytes::<K>(t.cols()))?;
    pack_all_b::<K>(t, passes, out.as_mut_slice(), pool, width, cancel);
    cancel.check()?;
    Ok((out, passes))
}

/// `c = a · b` from operands that [`pack_whole`] packed with the same kernel and pass lengths, `m` rows and `n` columns;
/// else as [`multiply`].
pub(crate) fn multiply_packed<K: Kernel>(
    a: &[u8],
    b: &[u8],
    (m, n): (usize, usize),
    passes: Passes,
    c: &Target<'_>,
    pool: &Pool,
    cancel: &Cancel,
) -> Result<(), Error> {
    assert!(passes == Passes::of::<K>(passes.k) && m > 0 && n > 0 && passes.k > 0);
    assert!(a.len() >= passes.a_bytes::<K>(m) && b.len() >= passes.b_bytes::<K>(n));
    let c = c.dest(m, n, K::Acc::DTYPE);
    let width = width(pool, m, n, passes.k);
    let direct = c.dtype.size_bytes() == size_of::<K::Acc>();
    let mut sums = match direct {
        true => None,
        false => Some(pool.scratch(m * n * size_of::<K::Acc>())?),
    };
    let into = match &mut sums {
        None => c,
        Some(sums) => Dest { ptr: sums.as_mut_slice().as_mut_ptr(), dtype: K::Acc::DTYPE, ld: n },
    };
    let slab = Slab { a, b, m, n, passes, c: into, add: false };
    // SAFETY: `into` has room for m × n sums, exclusively ours; a pool's instruction set, by which K was chosen, is
    // available.
    unsafe { slab.compute::<K>(pool, width, cancel) };
    let result = cancel.check();
    if let Some(sums) = sums {
        if result.is_ok() {
            let bytes = &sums.as_slice()[..m * n * size_of::<K::Acc>()];
            // SAFETY: `c` has room for m × n, exclusively ours.
            unsafe { round(bytes, m, n, c, pool, width) };
        }
        pool.give_back(sums);
    }
    result
}

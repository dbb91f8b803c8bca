//! What computes: a packed, blocked loop nest for products (Goto, van de Geijn 2008; BLIS) around one micro-kernel per
//! type and instruction set, and the layers of transformers. Callers have checked shapes and types; files and peers are
//! unknown here.
//!
//! | module | owns |
//! |---|---|
//! | `blocked`, `pack` | products of matrices: blocking, packed operands |
//! | `plain`, `avx2`, `avx512`, `accelerate` | micro-kernels of those products, per instruction set; Apple's BLAS |
//! | `skinny` | a matrix times a few vectors: what the checks compute |
//! | `simd` | sixteen lanes with the same bits on every processor |
//! | `quant`, `float` | over `simd`: products of packed weights; norms, rotation, attention, delta nets, activations, mixtures of experts |
//! | `linear` | one packed weight matrix by itself |
//! | `page` | where a cache's pages hold keys and values |
//! | `state` | where a session's recurrent states lie |
//! | `transformer` | the layers of a model over a batch of rows |
//! | `shared` | memory that threads fill together |
#![allow(unsafe_code)]

pub(crate) mod blocked;
pub(crate) mod float;
pub(crate) mod linear;
pub(crate) mod pack;
pub(crate) mod page;
pub(crate) mod plain;
pub(crate) mod quant;
pub(crate) mod shared;
pub(crate) mod simd;
pub(crate) mod skinny;
pub(crate) mod state;
pub(crate) mod transformer;

#[cfg(target_os = "macos")]
pub(crate) mod accelerate;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

/// Length of the longest chain of products that any float kernel sums before adding it to the rest. The checks'
/// rounding bound ([`crate::check`]) depends on this.
pub(crate) const SUM_BLOCK: usize = 512;

/// One micro-kernel: `C[rows, NR] (+)= A[rows, k] · B[k, NR]` from packed operands.
///
/// Packed A: `[group][row][KUNIT]`, `rows` rows. Packed B: `HEADER` bytes, then `[group][NR][KUNIT]`. A group is KUNIT
/// consecutive k; the last group is padded with zeros.
pub(crate) trait Kernel: Send + Sync + 'static {
    /// Element type of packed operands.
    type Elem: pack::PackElem;
    /// Type of sums and results.
    type Acc: crate::Element + std::ops::Add<Output = Self::Acc>;
    const MR: usize;
    const NR: usize;
    const KUNIT: usize;
    /// The longest chain of k in one pass: an A micro-panel of this length stays in L1.
    const KC: usize;
    /// Bits of A are xored with this when packed (VNNI takes unsigned bytes: +128).
    const A_XOR: u8 = 0;
    /// Bytes before a B panel: NR i32 values that the accumulators start from (VNNI: −128 · column sum).
    const HEADER: usize = 0;

    /// # Safety
    /// `1 ≤ rows ≤ MR`; `a`, `b` point to packed panels of `groups` groups, `b` (its header included) aligned to 64
    /// bytes where NR · size of Elem · KUNIT is a multiple of 64; `c` to `rows` rows of NR elements, `ldc` apart,
    /// writable by this thread alone; the processor has the instruction set.
    unsafe fn micro(
        rows: usize,
        groups: usize,
        a: *const Self::Elem,
        b: *const u8,
        c: *mut Self::Acc,
        ldc: usize,
        add: bool,
    );
}

/// Runs `$body` with `$K` bound to the kernel for this accumulator and instruction set.
macro_rules! for_kernel {
    ($isa:expr, $compute:expr, $K:ident => $body:expr) => {{
        use $crate::kernel::*;
        macro_rules! with {
            ($t:ty) => {{
                type $K = $t;
                $body
            }};
        }
        match ($compute, $isa.base()) {
            #[cfg(target_arch = "x86_64")]
            (Compute::F32, $crate::Isa::Avx512) => with!(avx512::F32),
            #[cfg(target_arch = "x86_64")]
            (Compute::F32, $crate::Isa::Avx2) => with!(avx2::F32),
            (Compute::F32, _) => with!(plain::F32),
            #[cfg(target_arch = "x86_64")]
            (Compute::F64, $crate::Isa::Avx512) => with!(avx512::F64),
            #[cfg(target_arch = "x86_64")]
            (Compute::F64, $crate::Isa::Avx2) => with!(avx2::F64),
            (Compute::F64, _) => with!(plain::F64),
            #[cfg(target_arch = "x86_64")]
            (Compute::I8, $crate::Isa::Avx512) if $crate::isa::has_vnni() => with!(avx512::I8),
            #[cfg(target_arch = "x86_64")]
            (Compute::I8, $crate::Isa::Avx2 | $crate::Isa::Avx512) => with!(avx2::I8),
            (Compute::I8, _) => with!(plain::I8),
        }
    }};
}
pub(crate) use for_kernel;

/// The type that a product is summed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compute {
    F32,
    F64,
    /// Exact i32 sums of i8 products.
    I8,
}

impl Compute {
    /// The type of sums for a product with this output type.
    pub(crate) fn of(out: crate::DType) -> Compute {
        match out {
            crate::DType::F64 => Compute::F64,
            crate::DType::I32 | crate::DType::I8 => Compute::I8,
            _ => Compute::F32,
        }
    }
}

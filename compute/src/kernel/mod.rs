//! The products' insides: a packed, blocked loop nest (Goto, van de Geijn 2008; BLIS) around one micro-kernel per
//! type and instruction set. Callers have checked shapes and types; nothing here knows about files or peers.
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
pub(crate) mod transformer;

#[cfg(target_os = "macos")]
pub(crate) mod accelerate;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

/// The longest run of products that is summed in one chain before it is added to the rest, in every float kernel.
/// The checks' rounding bound ([`crate::check`]) rests on it.
pub(crate) const SUM_BLOCK: usize = 512;

/// One micro-kernel: `C[rows, NR] (+)= A[rows, k] · B[k, NR]` from packed operands.
///
/// Packed A: `[group][row][KUNIT]`, `rows` rows. Packed B: `HEADER` bytes, then `[group][NR][KUNIT]`. A group is
/// KUNIT consecutive k; the last one is filled with zeros.
pub(crate) trait Kernel: Send + Sync + 'static {
    /// What operands are packed as.
    type Elem: pack::PackElem;
    /// What is summed in and written.
    type Acc: crate::Element + std::ops::Add<Output = Self::Acc>;
    const MR: usize;
    const NR: usize;
    const KUNIT: usize;
    /// The longest chain of k in one pass: an A micro-panel of this length stays in L1.
    const KC: usize;
    /// A's bits are xored with this when packed (VNNI wants unsigned bytes: +128).
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
        match ($compute, $isa) {
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

/// What a product is summed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compute {
    F32,
    F64,
    /// Exact i32 sums of i8 products.
    I8,
}

impl Compute {
    /// How a product with this output type is summed.
    pub(crate) fn of(out: crate::DType) -> Compute {
        match out {
            crate::DType::F64 => Compute::F64,
            crate::DType::I32 | crate::DType::I8 => Compute::I8,
            _ => Compute::F32,
        }
    }
}

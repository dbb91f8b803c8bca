//! Element types: sizes, names, and the type of a product of two of them. Tensors are in [`crate::tensor`].

use crate::Error;
use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of an `f32`.
    Bf16,
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
    /// Signed 8-bit integer.
    I8,
    /// Signed 32-bit integer: the product of two `i8` tensors, never an operand of a product.
    I32,
}

impl DType {
    /// Every type.
    pub const ALL: [DType; 6] = [DType::F16, DType::Bf16, DType::F32, DType::F64, DType::I8, DType::I32];

    /// The size of one element in bytes.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::I8 => 1,
            DType::F16 | DType::Bf16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 => 8,
        }
    }

    /// The short name: `f16`, `bf16`, `f32`, `f64`, `i8`, `i32`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::I8 => "i8",
            DType::I32 => "i32",
        }
    }

    /// The type with this short name, or NumPy's name for it (`float32`, `int8`, …).
    pub fn from_name(name: &str) -> Option<DType> {
        Some(match name {
            "f16" | "float16" => DType::F16,
            "bf16" | "bfloat16" => DType::Bf16,
            "f32" | "float32" => DType::F32,
            "f64" | "float64" => DType::F64,
            "i8" | "int8" => DType::I8,
            "i32" | "int32" => DType::I32,
            _ => return None,
        })
    }

    /// A stable number for hashing and for the wire.
    pub fn code(self) -> u8 {
        match self {
            DType::F16 => 1,
            DType::Bf16 => 2,
            DType::F32 => 3,
            DType::F64 => 4,
            DType::I8 => 5,
            DType::I32 => 6,
        }
    }

    /// The type with this [`code`](DType::code).
    pub fn from_code(code: u8) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.code() == code)
    }

    /// Whether this is a floating-point type.
    pub fn is_float(self) -> bool {
        !matches!(self, DType::I8 | DType::I32)
    }

    /// The element type of `A·B`, in either order of its arguments.
    ///
    /// Floats follow NumPy's promotion, with sums in f32 for the 16-bit types and one rounding at the end:
    /// `f16·f16 → f16`, `bf16·bf16 → bf16`, `f16·bf16 → f32`, anything with `f32 → f32`, anything with `f64 → f64`.
    /// `i8` with a float is converted to that float type (every i8 is exact in f16 and bf16). `i8·i8 → i32`, exactly.
    ///
    /// # Errors
    /// [`Error::Dtype`] where an operand is `i32`.
    pub fn product(a: DType, b: DType) -> Result<DType, Error> {
        use DType::{Bf16, F16, F32, F64, I8, I32};
        Ok(match (a, b) {
            (I32, _) | (_, I32) => {
                return Err(Error::Dtype {
                    operation: "matmul",
                    dtype: I32.name().to_string(),
                    hint: "a product of i8 matrices is i32 and cannot be multiplied again; convert it to f64 (exact) or i8",
                });
            }
            (F64, _) | (_, F64) => F64,
            (F32, _) | (_, F32) | (F16, Bf16) | (Bf16, F16) => F32,
            (F16, F16 | I8) | (I8, F16) => F16,
            (Bf16, Bf16 | I8) | (I8, Bf16) => Bf16,
            (I8, I8) => I32,
        })
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that a tensor's elements can be read as. Sealed: one implementation per [`DType`].
pub trait Element: bytemuck::Pod + Send + Sync + PartialEq + std::fmt::Debug + sealed::Sealed {
    /// The tensor element type.
    const DTYPE: DType;
    /// The value as f64, exactly.
    fn to_f64(self) -> f64;
    /// The value with its bytes in reverse order.
    fn swap_bytes(self) -> Self;
}

macro_rules! element {
    ($t:ty, $d:ident, $to:expr) => {
        impl sealed::Sealed for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$d;
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to(self)
            }
            #[inline(always)]
            fn swap_bytes(self) -> Self {
                let mut bytes = self.to_ne_bytes();
                bytes.reverse();
                <$t>::from_ne_bytes(bytes)
            }
        }
    };
}
element!(f16, F16, |v: f16| f64::from(f16_to_f32(v)));
element!(bf16, Bf16, |v: bf16| f64::from(bf16_to_f32(v)));
element!(f32, F32, f64::from);
element!(f64, F64, std::convert::identity);
element!(i8, I8, f64::from);
element!(i32, I32, f64::from);

/// Exact f16 → f32 without branches, so that loops over it vectorise on every instruction set.
#[inline(always)]
pub(crate) fn f16_to_f32(v: f16) -> f32 {
    const EXPONENT: u32 = 0x7c00 << 13;
    let h = u32::from(v.to_bits());
    let shifted = (h & 0x7fff) << 13;
    let exponent = shifted & EXPONENT;
    let normal = shifted + ((127 - 15) << 23);
    // Inf and NaN: the exponent becomes 255.
    let special = normal + ((128 - 16) << 23);
    // Subnormals: 2^-14 + mantissa, less 2^-14, in floating point.
    let subnormal = (f32::from_bits(normal + (1 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let magnitude = if exponent == EXPONENT {
        special
    } else if exponent == 0 {
        subnormal
    } else {
        normal
    };
    f32::from_bits(magnitude | ((h & 0x8000) << 16))
}

/// Exact bf16 → f32.
#[inline(always)]
pub(crate) fn bf16_to_f32(v: bf16) -> f32 {
    f32::from_bits(u32::from(v.to_bits()) << 16)
}

/// Runs the body once with `$t` bound to the Rust type of a [`DType`].
macro_rules! for_dtype {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F16 => {
                type $t = half::f16;
                $body
            }
            $crate::DType::Bf16 => {
                type $t = half::bf16;
                $body
            }
            $crate::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::DType::F64 => {
                type $t = f64;
                $body
            }
            $crate::DType::I8 => {
                type $t = i8;
                $body
            }
            $crate::DType::I32 => {
                type $t = i32;
                $body
            }
        }
    };
}
pub(crate) use for_dtype;

//! Instruction sets: those this processor has, and the one that the kernels use. Read when a pool starts, never inside
//! a kernel.

use crate::Error;

/// A family of kernels, written for one instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Portable Rust, vectorised by the compiler (SSE2, NEON).
    Plain,
    /// AArch64 with NEON and dot products (SDOT). Used by the layer engine; tensor products run as [`Isa::Plain`].
    Neon,
    /// [`Isa::Neon`] with products of 8-bit matrices (SMMLA; Apple since M2, Arm's cores since ARMv8.6): for quantised weights;
    /// all else is computed as by [`Isa::Neon`].
    I8mm,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// [`Isa::Avx2`] with VNNI on 256 bits (Intel since Alder Lake, AMD since Zen 5, and every AVX-512 with VNNI and VL): for
    /// quantised weights; all else is computed as by [`Isa::Avx2`].
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ and VL; VNNI is used where the processor has it.
    Avx512,
}

impl Isa {
    /// Every family, slowest first.
    pub const ALL: [Isa; 6] = [Isa::Plain, Isa::Neon, Isa::I8mm, Isa::Avx2, Isa::AvxVnni, Isa::Avx512];

    /// Whether this processor can run it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            match self {
                Isa::Plain => true,
                Isa::Neon | Isa::I8mm => false,
                Isa::Avx2 => avx2,
                Isa::AvxVnni => {
                    avx2 && (has_avx_vnni()
                        || is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni"))
                }
                Isa::Avx512 => {
                    avx2 && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            let dotprod = std::arch::is_aarch64_feature_detected!("dotprod");
            match self {
                Isa::Plain => true,
                Isa::Neon => dotprod,
                Isa::I8mm => dotprod && std::arch::is_aarch64_feature_detected!("i8mm"),
                Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 => false,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Isa::Plain
        }
    }

    /// The fastest family that this processor can run.
    pub fn best() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Plain)
    }

    /// The family without the instructions for quantised products: what computes everything else.
    pub(crate) fn base(self) -> Isa {
        match self {
            Isa::I8mm => Isa::Neon,
            Isa::AvxVnni => Isa::Avx2,
            other => other,
        }
    }

    /// The name: `plain`, `neon`, `i8mm`, `avx2`, `avxvnni`, `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Plain => "plain",
            Isa::Neon => "neon",
            Isa::I8mm => "i8mm",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
        }
    }

    /// The instruction set that `PANGEA_ISA` names, or the fastest one where the variable is not set.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another word, or a family that this processor cannot run.
    pub fn from_env() -> Result<Isa, Error> {
        let Some(word) = std::env::var_os("PANGEA_ISA") else {
            return Ok(Isa::best());
        };
        Isa::ALL.into_iter().find(|isa| word == isa.name() && isa.is_available()).ok_or_else(|| {
            Error::invalid(
                "PANGEA_ISA",
                format!(
                    "{} is not an instruction set that this processor has; use {}, or unset it",
                    word.to_string_lossy(),
                    Isa::ALL
                        .into_iter()
                        .filter(|isa| isa.is_available())
                        .map(Isa::name)
                        .collect::<Vec<_>>()
                        .join(" or ")
                ),
            )
        })
    }
}

/// Whether the AVX-512 family may use VNNI dot products.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

/// Whether the VNNI family of 256 bits may use the encoding without AVX-512.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx_vnni() -> bool {
    is_x86_feature_detected!("avxvnni")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_keep_the_names_that_people_set() {
        assert_eq!(Isa::ALL.map(Isa::name), ["plain", "neon", "i8mm", "avx2", "avxvnni", "avx512"]);
    }

    #[test]
    fn a_family_is_there_only_with_the_one_that_computes_the_rest() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            assert!(isa.base().is_available() && isa.base().base() == isa.base(), "{isa:?}");
        }
    }
}

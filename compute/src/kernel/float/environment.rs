//! Checks that this thread rounds to nearest, ties to even, with subnormal numbers, as IEEE 754 says by default. A
//! library in the same process can change the floating-point mode, and then results would have other bits.

use std::hint::black_box;

/// Whether sums round to nearest even and subnormal numbers are neither read nor written as zero.
#[inline(never)]
pub(crate) fn is_standard() -> bool {
    let one = black_box(1.0f32);
    let half_unit = black_box(f32::EPSILON / 2.0);
    // Ties on either side of an odd last place: each other rounding mode gets at least one of these sums wrong.
    let rounds =
        one + half_unit == 1.0 && one + 3.0 * half_unit == 1.0 + 2.0 * f32::EPSILON && -one - half_unit == -1.0;
    let smallest = black_box(f32::from_bits(1));
    let half_of_normal = black_box(f32::MIN_POSITIVE) / 2.0;
    let subnormals = (smallest + smallest).to_bits() == 2 && half_of_normal.to_bits() == 1 << 22;
    rounds && subnormals
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_default_environment_is_standard() {
        assert!(super::is_standard());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    #[allow(unsafe_code)]
    fn flushed_subnormals_and_other_roundings_are_noticed() {
        // Flush to zero; subnormals are zero; round down; round up; round towards zero.
        for bits in [0x8000u32, 0x0040, 0x2000, 0x4000, 0x6000] {
            let (mut before, mut changed) = (0u32, 0u32);
            // SAFETY: the register is put back before anything else is computed.
            let standard = unsafe {
                std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut before);
                changed |= before | bits;
                std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const changed);
                let standard = std::hint::black_box(super::is_standard());
                std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const before);
                standard
            };
            assert!(!standard, "{bits:#x}");
        }
    }
}

//! SplitMix64 (Steele, Lea, Flood 2014): numbers that follow from a seed alone, the same on every machine and in every
//! version. For generated matrices, simulated worlds and tests; never for anything that must be secret.

use std::ops::Range;

/// Added for every number: 2⁶⁴ divided by the golden ratio, made odd.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The numbers of a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The numbers of `seed`, from the first.
    pub fn new(seed: u64) -> SplitMix64 {
        SplitMix64(seed)
    }

    /// The number at `index` of seed 0, counted from 1: a bijection that scatters consecutive indices.
    #[inline]
    pub fn at(index: u64) -> u64 {
        scatter(index.wrapping_mul(GAMMA))
    }

    /// The next 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        scatter(self.0)
    }

    /// A number in `0..bound`; 0 where that range is empty.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits().checked_rem(bound).unwrap_or(0)
    }

    /// An index into a slice of this length; 0 where the slice is empty.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number in `range`; its start where the range is empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end.saturating_sub(range.start))
    }

    /// A number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number in `[-1, 1)`.
    pub fn signed_unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Whether an event of this probability happens.
    pub fn happens(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Whether an event happens that happens once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A number between `least` and `most`, every order of magnitude with equal probability.
    pub fn scale(&mut self, least: f64, most: f64) -> f64 {
        least * (most / least).powf(self.unit())
    }
}

#[inline]
fn scatter(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the authors' reference implementation (`splitmix64.c`) for seed 1234567.
    #[test]
    fn the_numbers_are_those_of_the_reference() {
        let mut numbers = SplitMix64::new(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([(); 3].map(|()| numbers.bits()), expected);
        let mut of_zero = SplitMix64::new(0);
        assert_eq!([1, 2, 3].map(SplitMix64::at), [(); 3].map(|()| of_zero.bits()));
    }

    #[test]
    fn numbers_stay_in_their_ranges() {
        let mut numbers = SplitMix64::new(7);
        for _ in 0..1000 {
            assert!(numbers.below(3) < 3 && (5..9).contains(&numbers.within(5..9)));
            assert!((0.0..1.0).contains(&numbers.unit()) && (-1.0..1.0).contains(&numbers.signed_unit()));
            assert!((1.0..=100.0).contains(&numbers.scale(1.0, 100.0)));
        }
        assert_eq!((numbers.below(0), numbers.index(0), numbers.within(4..4)), (0, 0, 4));
        assert!(numbers.one_in(1) && !numbers.happens(0.0) && numbers.happens(1.0));
    }
}

//! Storage types of tensors: the supported types with their blocks, and the names of all others, for errors.
//!
//! Source: `enum ggml_type` and the type traits of ggml.

use crate::Error;

/// A storage type: every block of [`block_len`](GgmlType::block_len) elements takes
/// [`block_bytes`](GgmlType::block_bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GgmlType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of binary32.
    BF16,
    /// 32 elements: an f16 scale, 4 bits each, minus 8.
    Q4_0,
    /// 32 elements: an f16 scale and an f16 minimum, 4 bits each.
    Q4_1,
    /// 32 elements: an f16 scale, 5 bits each, minus 16.
    Q5_0,
    /// 32 elements: an f16 scale and an f16 minimum, 5 bits each.
    Q5_1,
    /// 32 elements: an f16 scale, an i8 each.
    Q8_0,
    /// 32 elements: an f16 scale, 4 bits each that choose one of sixteen values.
    IQ4NL,
    /// 256 elements: 8 groups of 32 with 6-bit scales, minus 32, 4 bits each that choose one of IQ4_NL's values.
    IQ4XS,
    /// 32 elements: a power of two as a scale, 4 bits each: floats with 2 bits of exponent and 1 of fraction.
    MXFP4,
    /// 256 elements: 16 groups of 16 with 4-bit scales and minima, 2 bits each.
    Q2K,
    /// 256 elements: 16 groups of 16 with 6-bit scales, minus 32, 3 bits each, minus 4.
    Q3K,
    /// 256 elements: 8 groups of 32 with 6-bit scales and minima, 4 bits each.
    Q4K,
    /// 256 elements: 8 groups of 32 with 6-bit scales and minima, 5 bits each.
    Q5K,
    /// 256 elements: 16 groups of 16 with i8 scales, 6 bits each, minus 32.
    Q6K,
}

/// Every type that a file may name: id, name, elements and bytes of a block. Zeros for ids that ggml has withdrawn.
const ALL: [(u32, &str, u64, u64); 43] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (4, "Q4_2 (withdrawn)", 0, 0),
    (5, "Q4_3 (withdrawn)", 0, 0),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (31, "Q4_0_4_4 (withdrawn)", 0, 0),
    (32, "Q4_0_4_8 (withdrawn)", 0, 0),
    (33, "Q4_0_8_8 (withdrawn)", 0, 0),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (36, "IQ4_NL_4_4 (withdrawn)", 0, 0),
    (37, "IQ4_NL_4_8 (withdrawn)", 0, 0),
    (38, "IQ4_NL_8_8 (withdrawn)", 0, 0),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

impl GgmlType {
    /// All supported types.
    pub const SUPPORTED: [GgmlType; 16] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::IQ4NL,
        GgmlType::IQ4XS,
        GgmlType::MXFP4,
        GgmlType::Q2K,
        GgmlType::Q3K,
        GgmlType::Q4K,
        GgmlType::Q5K,
        GgmlType::Q6K,
    ];

    /// The id in files.
    pub fn id(self) -> u32 {
        match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::Q4_0 => 2,
            GgmlType::Q4_1 => 3,
            GgmlType::Q5_0 => 6,
            GgmlType::Q5_1 => 7,
            GgmlType::Q8_0 => 8,
            GgmlType::Q2K => 10,
            GgmlType::Q3K => 11,
            GgmlType::Q4K => 12,
            GgmlType::Q5K => 13,
            GgmlType::Q6K => 14,
            GgmlType::IQ4NL => 20,
            GgmlType::IQ4XS => 23,
            GgmlType::BF16 => 30,
            GgmlType::MXFP4 => 39,
        }
    }

    /// The type of that id, if it is supported.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        GgmlType::SUPPORTED.into_iter().find(|ty| ty.id() == id)
    }

    /// The type of that id for the tensor `name`. The error names the supported types.
    pub(super) fn supported(id: u32, name: &str) -> Result<GgmlType, Error> {
        GgmlType::from_id(id).ok_or_else(|| Error::Dtype {
            operation: "gguf",
            dtype: format!("{} of tensor {name:?}", type_name(id)),
            hint: "use a model in Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, F16, BF16 or F32",
        })
    }

    /// The name that people use, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        ALL[self.id() as usize].1
    }

    /// Elements of a block.
    pub fn block_len(self) -> usize {
        ALL[self.id() as usize].2 as usize
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        ALL[self.id() as usize].3 as usize
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The name of any type, supported or not.
pub(super) fn type_name(id: u32) -> String {
    ALL.get(id as usize).map_or_else(|| format!("number {id}, unknown here,"), |known| known.1.to_owned())
}

/// Elements and bytes of a block, for types that are known and not withdrawn.
pub(super) fn block_of(id: u32) -> Option<(u64, u64)> {
    ALL.get(id as usize).filter(|known| known.2 > 0).map(|known| (known.2, known.3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_under_its_own_id() {
        for (index, (id, ..)) in ALL.iter().enumerate() {
            assert_eq!(index as u32, *id);
        }
        for ty in GgmlType::SUPPORTED {
            assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
            assert_eq!(ty.name().replace('_', ""), format!("{ty:?}").replace('_', ""));
        }
    }

    #[test]
    fn the_error_for_other_types_names_every_supported_one() {
        let Err(Error::Dtype { hint, .. }) = GgmlType::supported(9, "t") else {
            panic!("Q8_1 is not supported");
        };
        for ty in GgmlType::SUPPORTED {
            assert!(hint.split([' ', ',']).any(|word| word == ty.name()), "{ty} is not in {hint:?}");
        }
    }
}

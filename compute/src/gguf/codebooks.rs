//! Code books: the values that codes of four bits stand for, in types whose values are not evenly spaced.
//!
//! Source: the tables of ggml's `ggml-common.h`.

/// The values of a code of four bits.
pub(crate) type Codebook = [i8; 16];

/// IQ4_NL and IQ4_XS.
pub(crate) const IQ4: Codebook = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// MXFP4: a sign, two bits of exponent and one of fraction (OCP Microscaling Formats 1.0, E2M1), doubled to be whole.
pub(crate) const MXFP4: Codebook = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

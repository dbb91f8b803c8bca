//! The names of models in a pool. Different files may be served under one name; each then has a full name of its own. Which of
//! them has the short name is decided elsewhere.

use pangea_units::Digest;

/// Hex digits of a digest that tell models of one name apart.
const DIGEST_DIGITS: usize = 8;

/// The name of one of several models that are called the same: `name@` and the first digits of its digest.
pub fn full_name(name: &str, digest: &Digest) -> String {
    let mut digits = digest.to_string();
    digits.truncate(DIGEST_DIGITS);
    format!("{name}@{digits}")
}

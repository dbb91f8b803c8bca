//! Names of models in a pool. Different files may be served under one name; each then has a full name of its own. Which of
//! them has the short name is decided elsewhere.

use pangea_units::Digest;

/// Hex digits of a digest that distinguish models with one name.
const DIGEST_DIGITS: usize = 8;

/// Full name of one of several models with the same name: `name@` and the first digits of its digest.
pub fn full_name(name: &str, digest: &Digest) -> String {
    let mut digits = digest.to_string();
    digits.truncate(DIGEST_DIGITS);
    format!("{name}@{digits}")
}

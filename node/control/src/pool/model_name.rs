//! Names of models in a pool. Different files may be served under one name; each then has a full name of its own. Which of
//! them has the short name is decided elsewhere.

use pangea_units::Digest;

/// Hex digits of a digest that distinguish models with one name, at least.
const DIGEST_DIGITS: usize = 8;

/// Full name of one of several models with the same name: `name@` and the first digits of its digest.
pub fn full_name(name: &str, digest: &Digest) -> String {
    let mut digits = digest.to_string();
    digits.truncate(DIGEST_DIGITS);
    format!("{name}@{digits}")
}

/// Whether a request names this model in full: its name, `@`, and the first digits of its digest, at least eight.
pub fn is_full_name(requested: &str, name: &str, digest: &Digest) -> bool {
    let digits = requested.strip_prefix(name).and_then(|rest| rest.strip_prefix('@'));
    digits.is_some_and(|digits| digits.len() >= DIGEST_DIGITS && digest.to_string().starts_with(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_name_has_eight_digits_or_more() {
        let digest = Digest::from_bytes([0xab; 32]);
        let named = |requested: &str| is_full_name(requested, "tiny", &digest);
        assert!(named("tiny@abababab") && named(&format!("tiny@{digest}")) && named(&full_name("tiny", &digest)));
        assert!(!named("tiny") && !named("tiny@") && !named("tiny@ababab") && !named("tiny@abababac"));
    }
}

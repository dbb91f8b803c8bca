//! Byte arrays of fixed length as hex digits in JSON.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<const N: usize, S: Serializer>(bytes: &[u8; N], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text(bytes))
}

pub(super) fn deserialize<'de, const N: usize, D: Deserializer<'de>>(from: D) -> Result<[u8; N], D::Error> {
    let text = String::deserialize(from)?;
    parse(&text).ok_or_else(|| D::Error::custom(format!("{} hex digits are expected", 2 * N)))
}

pub(super) fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(bytes)
}

/// Hex digits for [`pangea_compute::Digest`].
pub(super) mod digest {
    use pangea_compute::Digest;
    use serde::{Deserializer, Serializer};

    pub(in crate::trust) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        super::serialize(digest.as_bytes(), to)
    }

    pub(in crate::trust) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        super::deserialize(from).map(Digest::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hex_digits_of_the_right_length_are_read() {
        assert_eq!(text(&[0, 0x1f, 0xff]), "001fff");
        assert_eq!(parse("001fFF"), Some([0, 0x1f, 0xff]));
        for wrong in ["", "001f", "001fff0", "001fffff", "00 1fff", "001ffg", "+01fff", "00é1ff"] {
            assert_eq!(parse::<3>(wrong), None, "{wrong}");
        }
    }
}

//! What stages opened of their claimed output, as a receipt keeps it: rows of activations, tokens with log-probabilities. Whether it is
//! what they signed is checked by [`verify`](mod@super::verify).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pangea_compute::commit::merkle::row_leaf;
use pangea_compute::commit::{Claim, Profile, merkle_root};
use pangea_compute::sample::Choice;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Segment;

/// Maximum bytes of the rows that a receipt keeps, before their encoding adds a third: with them a receipt is small enough to be stored
/// and to be evidence ([`RECEIPT_BYTES_MAX`](super::store::RECEIPT_BYTES_MAX)). That is 340 positions of a model with activations of
/// 4096 elements.
pub const OPENED_BYTES_MAX: usize = 5 << 20;

const _: () = assert!(OPENED_BYTES_MAX as u64 / 3 * 4 + (1 << 20) < super::store::RECEIPT_BYTES_MAX);

/// The rows that a stage opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenedRows {
    /// Index of the stage within its segment.
    pub stage: usize,
    /// `[positions, hidden_size]`; in JSON the base64 of the numbers, little-endian.
    #[serde(with = "numbers")]
    pub rows: Arc<[f32]>,
}

impl OpenedRows {
    /// Whether these are the rows that a claim is about, of so many elements each.
    pub fn are_of(&self, claim: &Claim, width: usize) -> bool {
        let is_whole = claim.positions.checked_mul(width as u64) == Some(self.rows.len() as u64);
        claim.profile == Profile::Grid && is_whole && {
            let rows = self.rows.chunks_exact(width.max(1)).zip(0..);
            merkle_root(&rows.map(|(row, position)| row_leaf(position, row)).collect::<Vec<_>>()) == claim.output
        }
    }
}

/// A token with its log-probabilities, as the last stage told it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToldToken {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: Option<f32>,
    /// Alternatives with theirs, best first.
    pub top: Vec<(u32, f32)>,
}

impl From<&ToldToken> for Choice {
    fn from(told: &ToldToken) -> Choice {
        Choice { token: told.token, logprob: told.logprob, top: told.top.clone() }
    }
}

impl Segment {
    /// How the output of stage `stage` is checked: as it claims, or else as its node says of itself.
    pub fn profile(&self, stage: usize) -> Profile {
        let claimed = self.claims.get(stage).map(|signed| signed.claim.profile);
        claimed.or(self.stages.get(stage).map(|stage| stage.profile)).unwrap_or_default()
    }

    /// Whether any stage is checked by value.
    pub fn is_by_value(&self) -> bool {
        (0..self.stages.len()).any(|stage| self.profile(stage) == Profile::Grid)
    }

    /// The rows of stage `stage` of so many elements, if it opened those that it signed.
    pub fn rows_of(&self, stage: usize, width: usize) -> Option<&[f32]> {
        let claim = &self.claims.get(stage)?.claim;
        let opened = self.opened.iter().find(|opened| opened.stage == stage)?;
        opened.are_of(claim, width).then_some(&*opened.rows)
    }

    /// Bytes of all opened rows.
    pub fn opened_bytes(&self) -> usize {
        self.opened.iter().map(|opened| size_of_val(&*opened.rows)).sum()
    }
}

/// Numbers as base64.
mod numbers {
    use super::*;

    pub(super) fn serialize<S: Serializer>(rows: &Arc<[f32]>, to: S) -> Result<S::Ok, S::Error> {
        // Memory is little-endian on every supported machine.
        to.serialize_str(&STANDARD.encode(bytemuck::cast_slice::<f32, u8>(rows)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<[f32]>, D::Error> {
        let bytes = STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(D::Error::custom("the rows end within a number"));
        }
        Ok(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::receipt::tests::claim;

    #[test]
    fn opened_rows_come_back_bit_by_bit_and_are_held_to_their_root() {
        let rows: Arc<[f32]> = [1.5, -0.0, f32::MIN_POSITIVE / 4.0, 3e38].into();
        let opened = OpenedRows { stage: 1, rows: Arc::clone(&rows) };
        let json = serde_json::to_string(&opened).unwrap();
        assert_eq!(json, r#"{"stage":1,"rows":"AADAPwAAAIAAACAA5rFhfw=="}"#);
        let back: OpenedRows = serde_json::from_str(&json).unwrap();
        assert_eq!(bytemuck::cast_slice::<f32, u32>(&back.rows), bytemuck::cast_slice::<f32, u32>(&rows));
        for wrong in ["AAA", "AAAA", "!", "AADAPwAA"] {
            assert!(
                serde_json::from_str::<OpenedRows>(&json.replace("AADAPwAAAIAAACAA5rFhfw==", wrong)).is_err(),
                "{wrong}"
            );
        }
        let root = merkle_root(&[row_leaf(0, &rows[..2]), row_leaf(1, &rows[2..])]);
        let signed = Claim { profile: Profile::Grid, output: root, ..claim() };
        assert!(opened.are_of(&signed, 2));
        assert!(!opened.are_of(&signed, 4) && !opened.are_of(&Claim { positions: 1, ..signed.clone() }, 4));
        assert!(!opened.are_of(&Claim { profile: Profile::Exact, ..signed.clone() }, 2));
        assert!(!opened.are_of(&Claim { output: [0; 32], ..signed.clone() }, 2));
        assert!(!opened.are_of(&signed, 0));
    }
}

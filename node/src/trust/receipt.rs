//! What is kept of an answer: everything that checking it offline takes, as one JSON document with stable names (fields are
//! only added). Plain values; what they must be is [`verify`](mod@super::verify)'s.
//!
//! ```json
//! {
//!   "version": 1, "id": "3f9a01c27b6e", "request": "chatcmpl-…", "unix_ms": 1790000000000, "coordinator": "12D3…",
//!   "model": {"name": "smollm2", "digest": "<64 hex>", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
//!   "numerics": 1, "prompt_tokens": [1, 2], "answer_tokens": [3, 4],
//!   "sampling": {"temperature": 0.0, …}, "form": {"type": "text"},
//!   "segments": [{
//!     "session": "<32 hex>", "epoch": 7, "chosen_from": 1, "ended": null,
//!     "stages": [{"peer": "12D3…", "layers": [0, 15]}],
//!     "claims": [{"session": …, "epoch": …, "model": …, "numerics": …, "layers": [0, 15], "positions": 3, "chosen_from": 1,
//!                 "predecessor": …, "sampling": …, "output": …,
//!                 "signed": {"peer": "12D3…", "signature": "<128 hex>"}, "received": {…}}]
//!   }],
//!   "verdict": "audited",
//!   "audits": [{"segment": 0, "stage": 0, "by": "12D3…", "holds": true, "position": null, "unix_ms": 1790000000500}]
//! }
//! ```

use libp2p::PeerId;
use pangea_compute::Digest;
use pangea_compute::sample::AnswerFormat;
use pangea_control::trust::Verdict;
use serde::{Deserialize, Serialize};

use super::{ReceiptSampling, Signed, hex};

/// The version of the form that is written.
pub const VERSION: u32 = 1;

/// Hex digits of an id: some hundred thousand receipts of a folder are told apart.
const ID_BYTES: usize = 6;

/// Everything about one answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// [`VERSION`].
    pub version: u32,
    /// Its name among receipts: 12 hex digits.
    pub id: String,
    /// The request that it belongs to, as the answer names it.
    pub request: String,
    /// When the answer ended, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Who asked the stages and wrote this.
    pub coordinator: String,
    /// The model.
    pub model: ReceiptModel,
    /// The version of the engine's bits.
    pub numerics: u32,
    /// What was asked.
    pub prompt_tokens: Vec<u32>,
    /// Every token that was chosen, the one that ended the answer included.
    pub answer_tokens: Vec<u32>,
    /// How they were chosen.
    pub sampling: ReceiptSampling,
    /// What masked them.
    #[serde(default, with = "super::rules::format")]
    pub form: AnswerFormat,
    /// Who computed it; more than one after a failover.
    pub segments: Vec<Segment>,
    /// That of its weakest part.
    #[serde(with = "super::verdict")]
    pub verdict: Verdict,
    /// What was looked at again.
    #[serde(default)]
    pub audits: Vec<Audit>,
}

/// Which model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptModel {
    /// The name that the request gave.
    pub name: String,
    /// Its digest.
    #[serde(with = "hex::digest")]
    pub digest: Digest,
    /// What its file was called.
    pub file: String,
}

/// A run of tokens that the same stages computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// The session.
    #[serde(with = "hex")]
    pub session: [u8; 16],
    /// The placement's version.
    pub epoch: u64,
    /// The first position whose following token was chosen here.
    pub chosen_from: u64,
    /// Who was to compute what, in order.
    pub stages: Vec<ReceiptStage>,
    /// What they signed; empty where the session did not end in order.
    pub claims: Vec<Signed>,
    /// Why it did not.
    #[serde(default)]
    pub ended: Option<String>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptStage {
    /// The node.
    pub peer: String,
    /// Its layers, from 0, the end exclusive.
    pub layers: [u32; 2],
}

/// One stage's part, looked at again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Which segment, from 0.
    pub segment: usize,
    /// Which of its stages, from 0.
    pub stage: usize,
    /// Who computed it again.
    pub by: String,
    /// Whether the roots are the same.
    pub holds: bool,
    /// The first position that differs, where it is known.
    #[serde(default)]
    pub position: Option<u64>,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
}

impl Receipt {
    /// A name for a new receipt.
    pub fn new_id() -> String {
        hex::text(&rand::random::<[u8; ID_BYTES]>())
    }

    /// Whether this can be a receipt's name; it becomes part of a file's.
    pub fn is_id(text: &str) -> bool {
        text.len() == 2 * ID_BYTES && text.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
    }

    /// The receipt that this JSON is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Receipt, String> {
        let receipt: Receipt = serde_json::from_slice(json).map_err(|error| format!("this is no receipt: {error}"))?;
        match receipt.version {
            VERSION if Receipt::is_id(&receipt.id) => Ok(receipt),
            VERSION => Err(format!("{:?} is no receipt's id", receipt.id)),
            other => Err(format!("the receipt's version is {other}; this pangea reads version {VERSION}")),
        }
    }

    /// The receipt as JSON.
    ///
    /// # Errors
    /// `Internal` for numbers that JSON has not, which [`pangea_compute::sample::Sampling::check`] refuses.
    pub fn to_json(&self) -> pangea_client::Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| {
            let why = format!("the receipt {} cannot be written: {error}", self.id);
            pangea_client::Error::new(pangea_client::ErrorKind::Internal, why)
        })
    }

    /// The stages that an audit refuted.
    pub fn refuted(&self) -> Vec<PeerId> {
        let failed = self.audits.iter().filter(|audit| !audit.holds);
        let peer = |audit: &Audit| self.segments.get(audit.segment)?.stages.get(audit.stage)?.peer.parse().ok();
        failed.filter_map(peer).collect()
    }

    /// Prompt and answer.
    pub fn tokens(&self) -> Vec<u32> {
        [&self.prompt_tokens[..], &self.answer_tokens].concat()
    }

    /// Whether each stage of each segment was looked at again, by a node that is not the one that computed it, and held.
    /// What the coordinator computed itself needs no other's word for it.
    pub fn is_audited(&self) -> bool {
        let audited = |segment: usize, stage: usize, peer: &str| {
            let of_stage = |audit: &&Audit| (audit.segment, audit.stage) == (segment, stage);
            let mut audits = self.audits.iter().filter(of_stage).peekable();
            audits.peek().is_some() && audits.all(|audit| audit.holds && audit.by != peer)
        };
        !self.segments.is_empty()
            && self.segments.iter().enumerate().all(|(index, segment)| {
                // A segment that broke off claims nothing; its tokens were chosen again by the next one's rules.
                segment.ended.is_some()
                    || segment.claims.len() == segment.stages.len()
                        && segment
                            .stages
                            .iter()
                            .enumerate()
                            .all(|(stage, of)| of.peer == self.coordinator || audited(index, stage, &of.peer))
            })
    }
}

impl Segment {
    /// The stages as a chain's check takes them; `None` where one's peer id is none.
    pub fn expected_stages(&self) -> Option<Vec<(PeerId, std::ops::Range<u32>)>> {
        let stage = |stage: &ReceiptStage| Some((stage.peer.parse().ok()?, stage.layers[0]..stage.layers[1]));
        self.stages.iter().map(stage).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use pangea_compute::sample::Sampling;

    /// A receipt of nothing in particular.
    pub(crate) fn receipt() -> Receipt {
        Receipt {
            version: VERSION,
            id: "0123456789ab".to_owned(),
            request: "chatcmpl-1".to_owned(),
            unix_ms: 1_790_000_000_000,
            coordinator: "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp".to_owned(),
            model: ReceiptModel {
                name: "tiny".to_owned(),
                digest: Digest::from_bytes([7; 32]),
                file: "tiny.gguf".to_owned(),
            },
            numerics: 1,
            prompt_tokens: vec![1, 2],
            answer_tokens: vec![3],
            sampling: (&Sampling::greedy()).into(),
            form: AnswerFormat::Text,
            segments: vec![Segment {
                session: [8; 16],
                epoch: 3,
                chosen_from: 1,
                stages: vec![ReceiptStage { peer: "a".to_owned(), layers: [0, 2] }],
                claims: Vec::new(),
                ended: Some("gone".to_owned()),
            }],
            verdict: Verdict::Unchecked,
            audits: Vec::new(),
        }
    }

    /// A claim about the first two positions of that answer.
    pub(crate) fn claim() -> pangea_compute::commit::Claim {
        pangea_compute::commit::Claim {
            session: [8; 16],
            epoch: 3,
            model: Digest::from_bytes([7; 32]),
            numerics: 1,
            layers: 0..2,
            positions: 2,
            chosen_from: 1,
            predecessor: [0; 32],
            sampling: Digest::from_bytes([0; 32]),
            output: [0; 32],
        }
    }

    #[test]
    fn a_receipt_is_read_as_it_was_written_and_may_have_new_fields() {
        let json = receipt().to_json().unwrap();
        assert_eq!(Receipt::parse(&json).unwrap(), receipt());
        let mut value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        value["of-a-later-version"] = serde_json::json!(1);
        assert_eq!(Receipt::parse(value.to_string().as_bytes()).unwrap(), receipt());
        assert_eq!(value["verdict"], "unchecked");
        assert_eq!(value["segments"][0]["stages"][0]["layers"], serde_json::json!([0, 2]));
        for (field, wrong) in [("version", serde_json::json!(2)), ("id", serde_json::json!("../../x"))] {
            let mut value = value.clone();
            value[field] = wrong;
            assert!(Receipt::parse(value.to_string().as_bytes()).is_err(), "{field}");
        }
        assert!(Receipt::is_id(&Receipt::new_id()));
    }

    #[test]
    fn an_answer_is_audited_once_others_found_every_stage_right() {
        use libp2p::identity::Keypair;
        let keypair = Keypair::generate_ed25519();
        let mut receipt = receipt();
        receipt.segments[0].claims = vec![Signed::new(claim(), &keypair).unwrap()];
        receipt.segments[0].ended = None;
        let audit = Audit { segment: 0, stage: 0, by: "b".to_owned(), holds: true, position: None, unix_ms: 1 };
        let audited = |audits: &[&Audit]| {
            Receipt { audits: audits.iter().map(|audit| (*audit).clone()).collect(), ..receipt.clone() }.is_audited()
        };
        assert!(!audited(&[]));
        assert!(audited(&[&audit]));
        assert!(!audited(&[&Audit { by: "a".to_owned(), ..audit.clone() }]), "by itself");
        assert!(!audited(&[&Audit { holds: false, ..audit.clone() }]));
        assert!(!audited(&[&audit, &Audit { holds: false, ..audit.clone() }]));
        assert!(!audited(&[&Audit { stage: 1, ..audit }]));
    }
}

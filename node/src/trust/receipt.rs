//! The record of an answer: everything that an offline check needs, as one JSON document with stable names (fields are
//! only added). Plain values; [`verify`](mod@super::verify) checks them.
//!
//! ```json
//! {
//!   "version": 1, "id": "3f9a01c27b6e", "request": "chatcmpl-…", "unix_ms": 1790000000000, "coordinator": "12D3…",
//!   "model": {"name": "smollm2", "digest": "<64 hex>", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
//!   "numerics": 1, "prompt_tokens": [1, 2], "answer_tokens": [3, 4],
//!   "sampling": {"temperature": 0.0, …}, "form": {"type": "text"},
//!   "segments": [{
//!     "session": "<32 hex>", "epoch": 7, "chosen_from": 1, "scored": true, "ended": null,
//!     "stages": [{"peer": "12D3…", "layers": [0, 15]}],
//!     "claims": [{"session": …, "epoch": …, "model": …, "numerics": …, "layers": [0, 15], "positions": 3, "chosen_from": 1,
//!                 "predecessor": …, "sampling": …, "output": …,
//!                 "signed": {"peer": "12D3…", "signature": "<128 hex>"}, "received": {…}}],
//!     "received": {"positions": 3, "root": "<64 hex>"},
//!     "opened": [{"stage": 0, "rows": "<base64>"}], "told": [{"token": 3, "logprob": -0.5, "top": [[3, -0.5]]}]
//!   }],
//!   "verdict": "audited",
//!   "audits": [{"segment": 0, "stage": 0, "by": "12D3…", "holds": true, "position": null, "unix_ms": 1790000000500}]
//! }
//! ```
//!
//! A stage on an engine whose bits are not exact has `"profile": "canonical-grid/1"` in its claim; what it opened of its output for
//! an audit, and the log-probabilities that such a last stage gave, are `opened` and `told`.

use libp2p::PeerId;
use pangea_compute::Digest;
use pangea_compute::commit::Profile;
use pangea_compute::sample::AnswerFormat;
use pangea_control::trust::Verdict;
use serde::{Deserialize, Serialize};

use super::chain::is_exact;
use super::opened::{OpenedRows, ToldToken};
use super::{ReceiptSampling, Signed, hex};

/// Version of the format that this node writes.
pub const VERSION: u32 = 1;

/// Bytes of an id: enough for some hundred thousand receipts in one folder.
const ID_BYTES: usize = 6;

/// The record of one answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// [`VERSION`].
    pub version: u32,
    /// Id of the receipt: 12 hex digits.
    pub id: String,
    /// Id of the request, as the answer names it.
    pub request: String,
    /// When the answer ended, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Peer id of the coordinator, which wrote this receipt.
    pub coordinator: String,
    /// The model that answered.
    pub model: ReceiptModel,
    /// Version of the numerics.
    pub numerics: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: Vec<u32>,
    /// Tokens of the answer, including the one that ended it.
    pub answer_tokens: Vec<u32>,
    /// Sampling terms by which the tokens were chosen.
    pub sampling: ReceiptSampling,
    /// Format that restricted the tokens.
    #[serde(default, with = "super::rules::format")]
    pub form: AnswerFormat,
    /// The chains of stages that computed the answer; more than one after a failover.
    pub segments: Vec<Segment>,
    /// Verdict of the answer: that of its weakest part.
    #[serde(with = "super::verdict")]
    pub verdict: Verdict,
    /// Results of audits.
    #[serde(default)]
    pub audits: Vec<Audit>,
}

/// The model of a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptModel {
    /// Name that the request used.
    pub name: String,
    /// Digest of the model.
    #[serde(with = "hex::digest")]
    pub digest: Digest,
    /// Name of the model's file.
    pub file: String,
}

/// Tokens that one chain of stages computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Id of the session.
    #[serde(with = "hex")]
    pub session: [u8; 16],
    /// Version of the placement.
    pub epoch: u64,
    /// First position whose following token this segment chose.
    pub chosen_from: u64,
    /// Whether the last stage's output has the log-probabilities of the prompt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scored: bool,
    /// Planned stages, in order.
    pub stages: Vec<ReceiptStage>,
    /// The stages' signed claims, those of the first stages if not all signed; empty if the session was lost.
    pub claims: Vec<Signed>,
    /// Why the session did not end normally.
    #[serde(default)]
    pub ended: Option<String>,
    /// What the coordinator received from the last stage; receipts of earlier versions do not say.
    #[serde(default)]
    pub received: Option<Received>,
    /// Rows that stages opened for the audit: of those whose claims are checked by value, unless they are too many for a receipt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub opened: Vec<OpenedRows>,
    /// What the last stage told with its tokens, if that is checked by value and log-probabilities were asked for: for each position
    /// from the first one with a token, of the prompt if that is scored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub told: Vec<ToldToken>,
}

/// What the coordinator received from the last stage of a segment, signed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Number of positions, from the first, whose following tokens are known.
    pub positions: u64,
    /// Root over the tokens and log-probabilities, as a last stage claims it.
    #[serde(with = "hex")]
    pub root: [u8; 32],
}

/// A stage of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptStage {
    /// Peer id of the node.
    pub peer: String,
    /// Layers `[first, end)`, counted from 0.
    pub layers: [u32; 2],
    /// How its output is checked, as its node says of itself.
    #[serde(default, skip_serializing_if = "is_exact", with = "super::profile")]
    pub profile: Profile,
}

/// Result of auditing one stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Index of the segment.
    pub segment: usize,
    /// Index of the stage within the segment.
    pub stage: usize,
    /// Peer id of the auditor.
    pub by: String,
    /// Whether the replayed output has the claimed root, or is as close to the opened one as engines' bits are.
    pub holds: bool,
    /// First position that differs, if known.
    #[serde(default)]
    pub position: Option<u64>,
    /// When the audit ended, in milliseconds since 1970.
    pub unix_ms: u64,
}

impl Receipt {
    /// Generates an id for a new receipt.
    pub fn new_id() -> String {
        hex::text(&rand::random::<[u8; ID_BYTES]>())
    }

    /// Whether `text` has the form of a receipt's id. Ids become part of file names.
    pub fn is_id(text: &str) -> bool {
        text.len() == 2 * ID_BYTES && text.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
    }

    /// Parses a receipt's JSON.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the JSON.
    pub fn parse(json: &[u8]) -> Result<Receipt, String> {
        let receipt: Receipt = serde_json::from_slice(json).map_err(|error| format!("not a receipt: {error}"))?;
        match receipt.version {
            VERSION if Receipt::is_id(&receipt.id) => Ok(receipt),
            VERSION => Err(format!("{:?} is not a receipt id", receipt.id)),
            other => Err(format!("the receipt's version is {other}; this pangea reads version {VERSION}")),
        }
    }

    /// The receipt as JSON.
    ///
    /// # Errors
    /// `Internal` for non-finite numbers, which [`pangea_compute::sample::Sampling::check`] refuses.
    pub fn to_json(&self) -> pangea_client::Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| {
            let why = format!("cannot encode receipt {}: {error}", self.id);
            pangea_client::Error::new(pangea_client::ErrorKind::Internal, why)
        })
    }

    /// Peers whose stages an audit refuted.
    pub fn refuted(&self) -> Vec<PeerId> {
        let failed = self.audits.iter().filter(|audit| !audit.holds);
        let peer = |audit: &Audit| self.segments.get(audit.segment)?.stages.get(audit.stage)?.peer.parse().ok();
        failed.filter_map(peer).collect()
    }

    /// Tokens of the prompt and the answer.
    pub fn tokens(&self) -> Vec<u32> {
        [&self.prompt_tokens[..], &self.answer_tokens].concat()
    }

    /// Whether every stage of every segment was audited successfully by another node than its own. Stages on the
    /// coordinator need no audit; an answer whose last stages did not sign is never audited.
    pub fn is_audited(&self) -> bool {
        let audited = |segment: usize, stage: usize, peer: &str| {
            let of_stage = |audit: &&Audit| (audit.segment, audit.stage) == (segment, stage);
            let mut audits = self.audits.iter().filter(of_stage).peekable();
            audits.peek().is_some() && audits.all(|audit| audit.holds && audit.by != peer)
        };
        self.segments.last().is_some_and(|last| last.ended.is_none())
            && self.segments.iter().enumerate().all(|(index, segment)| {
                // Nobody vouches for a segment that ended early: the replay of the whole answer covers its tokens.
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
    /// The stages in the form that a chain's check takes; `None` if a peer id is invalid.
    pub fn expected_stages(&self) -> Option<Vec<(PeerId, std::ops::Range<u32>)>> {
        let stage = |stage: &ReceiptStage| Some((stage.peer.parse().ok()?, stage.layers[0]..stage.layers[1]));
        self.stages.iter().map(stage).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use pangea_compute::sample::Sampling;

    /// A receipt for tests.
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
                scored: false,
                stages: vec![ReceiptStage { peer: "a".to_owned(), layers: [0, 2], profile: Profile::Exact }],
                claims: Vec::new(),
                ended: Some("gone".to_owned()),
                received: Some(Received { positions: 2, root: [9; 32] }),
                opened: Vec::new(),
                told: Vec::new(),
            }],
            verdict: Verdict::Unchecked,
            audits: Vec::new(),
        }
    }

    /// A claim about the first two positions of that answer.
    pub(crate) fn claim() -> pangea_compute::commit::Claim {
        pangea_compute::commit::Claim {
            profile: Profile::Exact,
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
    fn a_receipt_survives_json_and_unknown_fields_are_ignored() {
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
    fn an_answer_is_audited_once_other_nodes_confirmed_every_stage() {
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

//! What nodes sign, and the receipts that keep it, as every version wrote them: statements about products, claims of stages, chains of
//! claims, receipts. All but receipts have exactly one encoding.

use pangea_compute::commit::{Claim, Profile};
use pangea_compute::sample::{AnswerFormat, Sampling};
use pangea_compute::{Digest, Operation};
use pangea_control::trust::Verdict;

use super::chain::tests::{claim, honest, keypair, peer};
use super::{
    Audit, CommitChain, OpenedRows, ProductClaim, Receipt, ReceiptModel, ReceiptStage, Received, Segment, Signed,
    SignedProduct, ToldToken, terms_digest,
};
use crate::wire::conformance::{assert_values_recorded, recorded};

const RECEIPT: &str = "receipt.json";

#[test]
fn statements_about_products_of_every_version_are_read_and_their_signatures_hold() {
    let [a, b, result] = [1, 2, 3].map(|byte| Digest::from_bytes([byte; 32]));
    let signed =
        |operation| SignedProduct::new(ProductClaim { operation, operands: [a, b], result }, &keypair(1)).unwrap();
    assert_values_recorded(
        "product/1",
        |_| vec![("matmul", signed(Operation::Matmul)), ("add", signed(Operation::Add))],
        SignedProduct::to_bytes,
        |bytes| SignedProduct::parse(bytes).filter(|signed| signed.is_by(&peer(1))),
    );
}

#[test]
fn claims_of_every_version_are_read() {
    let profiles = [("exact", Profile::Exact), ("grid", Profile::Grid)];
    assert_values_recorded(
        "claim/1",
        |_| profiles.map(|(name, profile)| (name, Claim { profile, ..claim(1) })).into(),
        Claim::to_bytes,
        Claim::parse,
    );
}

#[test]
fn chains_of_claims_of_every_version_are_read_and_their_signatures_hold() {
    assert_values_recorded(
        "commitments/1",
        |_| vec![("three stages", honest())],
        CommitChain::encode,
        |bytes| {
            let chain = CommitChain::decode(bytes).ok()?;
            let received = chain.links.iter().map(Signed::receiver).collect::<Vec<_>>();
            let holds = chain.links.iter().all(Signed::is_signed) && received == [Some(peer(2)), Some(peer(3)), None];
            holds.then_some(chain)
        },
    );
}

/// A receipt with one of everything.
fn receipt() -> Receipt {
    let sampling = Sampling {
        repetition_window: Some(64),
        logit_bias: vec![(7, -100.0)],
        seed: 5,
        logprobs: Some(1),
        ..Sampling::default()
    };
    let form = AnswerFormat::JsonSchema("{\"type\":\"object\"}".to_owned());
    let claim =
        Claim { profile: Profile::Grid, layers: 0..30, sampling: terms_digest(2, &sampling, &form, true), ..claim(0) };
    let mut signed = Signed::new(claim, &keypair(1)).unwrap();
    signed.countersign(&keypair(9)).unwrap();
    let stage = ReceiptStage { peer: peer(1).to_string(), layers: [0, 30], profile: Profile::Grid };
    let segment = Segment {
        session: [1; 16],
        epoch: 2,
        chosen_from: 1,
        scored: true,
        stages: vec![stage],
        claims: vec![signed],
        ended: Some("the node is gone".to_owned()),
        received: Some(Received { positions: 3, root: [9; 32] }),
        opened: vec![OpenedRows { stage: 0, rows: [0.5, -1.25, 3.0, f32::MIN_POSITIVE].into() }],
        told: vec![ToldToken { token: 3, logprob: Some(-0.5), top: vec![(3, -0.5)] }],
    };
    Receipt {
        version: super::receipt::VERSION,
        id: "0123456789ab".to_owned(),
        request: "chatcmpl-1".to_owned(),
        unix_ms: 1_790_000_000_000,
        coordinator: peer(9).to_string(),
        model: ReceiptModel {
            name: "smollm2".to_owned(),
            digest: Digest::from_bytes([3; 32]),
            file: "SmolLM2-135M-Instruct.Q4_1.gguf".to_owned(),
        },
        numerics: 1,
        prompt_tokens: vec![1, 2],
        answer_tokens: vec![3, 4],
        sampling: (&sampling).into(),
        form,
        segments: vec![segment],
        verdict: Verdict::ToleranceChecked,
        audits: vec![Audit {
            segment: 0,
            stage: 0,
            by: peer(2).to_string(),
            holds: false,
            position: Some(2),
            unix_ms: 1_790_000_000_500,
        }],
    }
}

#[test]
fn receipts_of_every_version_are_read_and_their_signatures_hold() {
    let value: serde_json::Value = serde_json::from_slice(&receipt().to_json().unwrap()).unwrap();
    let text = format!("{value:#}\n");
    for (version, text) in recorded(RECEIPT, &text) {
        let read = Receipt::parse(text.as_bytes()).unwrap();
        assert_eq!(read, receipt(), "{version}");
        let signed = &read.segments[0].claims[0];
        assert!(signed.is_signed() && signed.receiver() == Some(peer(9)), "{version}");
    }
}

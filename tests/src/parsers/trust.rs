//! Properties of chains of commitments and of receipts, for any bytes.

use libp2p::identity::Keypair;
use pangea_compute::Digest;
use pangea_compute::commit::{Claim, Profile};
use pangea_compute::sample::{AnswerFormat, Sampling};
use pangea_control::trust::Verdict;
use pangea_node::trust::{CommitChain, OpenedRows, Receipt, ReceiptModel, ReceiptStage, Received, Segment, ToldToken};

/// A chain of commitments: every chain has exactly one form, and whoever reads one can ask what it says.
pub fn commit_chain(bytes: &[u8]) {
    let Ok(chain) = CommitChain::decode(bytes) else { return };
    assert_eq!(chain.encode(), bytes);
    for signed in &chain.links {
        let _ = (signed.peer(), signed.is_signed(), signed.receiver());
    }
}

pub(super) fn commit_chain_seeds() -> Vec<Vec<u8>> {
    (0..3).map(|stages| chain(stages).encode()).collect()
}

fn chain(stages: u8) -> CommitChain {
    let mut chain = CommitChain::new();
    for stage in 0..stages {
        let claim = Claim {
            // Stages of both profiles.
            profile: if stage % 2 == 1 { Profile::Grid } else { Profile::Exact },
            session: [1; 16],
            epoch: 2,
            model: Digest::from_bytes([3; 32]),
            numerics: 1,
            layers: u32::from(stage)..u32::from(stage) + 1,
            positions: 9,
            chosen_from: 4,
            predecessor: [stage; 32],
            sampling: Digest::from_bytes([5; 32]),
            output: [stage + 1; 32],
        };
        let keypair = Keypair::ed25519_from_bytes([stage + 1; 32]).expect("any 32 bytes are a key");
        chain.pass(claim, &keypair).expect("each follows the one before");
    }
    chain
}

/// A receipt's JSON: a receipt that is read can be written and read again, unchanged.
pub fn receipt(bytes: &[u8]) {
    if let Ok(receipt) = Receipt::parse(bytes) {
        let written = receipt.to_json().expect("JSON holds only finite numbers");
        let again = Receipt::parse(&written).expect("what was written is read");
        assert_eq!(again.to_json().expect("it was written before"), written);
        let _ = (receipt.is_audited(), receipt.tokens());
    }
}

pub(super) fn receipt_seeds() -> Vec<Vec<u8>> {
    let receipt = Receipt {
        version: 1,
        id: "0123456789ab".to_owned(),
        request: "r".to_owned(),
        unix_ms: 1,
        coordinator: "c".to_owned(),
        model: ReceiptModel { name: "m".to_owned(), digest: Digest::from_bytes([3; 32]), file: "m.gguf".to_owned() },
        numerics: 1,
        prompt_tokens: vec![1, 2],
        answer_tokens: vec![3],
        sampling: (&Sampling { logit_bias: vec![(1, 0.5)], logprobs: Some(1), ..Sampling::default() }).into(),
        form: AnswerFormat::JsonSchema("{}".to_owned()),
        segments: vec![Segment {
            session: [1; 16],
            epoch: 2,
            chosen_from: 1,
            scored: true,
            stages: vec![ReceiptStage { peer: "p".to_owned(), layers: [0, 1], profile: Profile::Grid }],
            claims: chain(2).links,
            ended: None,
            received: Some(Received { positions: 2, root: [4; 32] }),
            opened: vec![OpenedRows { stage: 0, rows: [0.5, -0.0, 1e-40].into() }],
            told: vec![ToldToken { token: 3, logprob: Some(-0.5), top: vec![(3, -0.5)] }],
        }],
        verdict: Verdict::Audited,
        audits: Vec::new(),
    };
    vec![receipt.to_json().expect("finite numbers")]
}

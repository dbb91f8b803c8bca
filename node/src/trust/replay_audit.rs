//! The audit of one answer: stages without exact bits open their rows, the answer is recomputed from the model file, the result goes
//! into the receipt, a stage that signed a wrong output is accused, and one that is wrong and did not sign, or did not open what it
//! signed, is suspected. When it runs is not decided here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Cancel;
use pangea_compute::commit::Profile;
use pangea_compute::model::{ModelFile, Wanted};
use pangea_control::peers::SuspicionReason;
use pangea_control::trust::{AuditPace, Pace};

use super::FailedAudit;
use super::auditor::{AuditHost, Audited, AuditorParts, ModelSource};
use super::chain::Signed;
use super::opened::{OPENED_BYTES_MAX, OpenedRows};
use super::receipt::{Audit, Receipt, Segment};
use super::replayer::Replayer;
use super::verify::{OutputCheck, Verification};
use crate::devices::threads::Purpose;
use crate::devices::{Kind, Lease};
use crate::{clock, compute_error};

/// Longest sleep of a resting audit, after which it asks again whether the node still has sessions.
const REST_CHECK: Duration = Duration::from_millis(50);

/// Time for the rows of one stage, and for memory to hold them.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for the parts of a model that are not on this node: other answers wait for their audits meanwhile.
const FETCH_TIMEOUT: Duration = Duration::from_secs(120);

/// The threads of audits that a request waits for, and of all others.
pub(super) struct AuditReplayers {
    awaited: Replayer,
    others: Replayer,
}

impl Default for AuditReplayers {
    fn default() -> AuditReplayers {
        AuditReplayers { awaited: Replayer::new(Purpose::AwaitedAudits), others: Replayer::new(Purpose::Audits) }
    }
}

/// Recomputes an answer and records, for each stage on another node, whether its output is right.
///
/// # Errors
/// `DeadlineExceeded` as `pace` says; those of [`AuditHost::fetch`] and [`verify`].
pub(super) fn replay_audit(
    parts: &AuditorParts,
    replayers: &AuditReplayers,
    mut receipt: Receipt,
    awaited: bool,
    mut pace: AuditPace,
) -> Result<Audited> {
    let (host, model) = (&parts.host, receipt.model.digest);
    let stages = receipt.segments.iter().flat_map(|segment| &segment.stages);
    let providers: Vec<PeerId> = stages.filter_map(|stage| stage.peer.parse().ok()).collect();
    let cancel = Cancel::new();
    let deadline = pace.deadline();
    let fetch = |wanted: Wanted| host.fetch(model, wanted, &providers, deadline.since(clock::now()).min(FETCH_TIMEOUT));
    let mut began = None;
    let mut between = |_| {
        if let Some(began) = began.replace(clock::now()) {
            pace.worked(began, clock::now());
        }
        wait(host.as_ref(), &pace, &cancel);
        began = Some(clock::now());
    };
    let opened = open_rows(parts, &mut receipt, &fetch)?;
    let replayer = if awaited { &replayers.awaited } else { &replayers.others };
    let found = replayer.replay(&parts.devices, &receipt, &fetch, &cancel, &mut between);
    let found = found.map_err(|error| match error.kind() {
        // Only the deadline cancels an audit.
        ErrorKind::Cancelled => Error::new(ErrorKind::DeadlineExceeded, "the answer was not audited in time"),
        _ => error,
    })?;
    record(host.as_ref(), &mut receipt, &found);
    let mut wrong = receipt.refuted();
    let suspects = found.suspects(&receipt);
    suspects.iter().for_each(|peer| host.suspect(*peer, SuspicionReason::WrongUnsigned));
    wrong.extend(suspects);
    wrong.extend(opened.missing);
    wrong.extend(unclear(host.as_ref(), &found));
    Ok(Audited { receipt, wrong })
}

/// The other nodes' stages that are not confirmed, though nothing is proven: the answer is not theirs to give. Where no experts explain
/// it, they are suspected.
fn unclear(host: &dyn AuditHost, found: &Verification) -> Vec<PeerId> {
    let stages = found.segments.iter().flat_map(|segment| &segment.stages);
    let unclear = stages.filter_map(|stage| match stage.output {
        OutputCheck::Unclear { by_experts, .. } => Some((stage.peer.parse().ok()?, by_experts)),
        _ => None,
    });
    let unclear: Vec<(PeerId, bool)> = unclear.filter(|(peer, _)| *peer != host.local()).collect();
    unclear
        .iter()
        .filter(|(_, by_experts)| !by_experts)
        .for_each(|(peer, _)| host.suspect(*peer, SuspicionReason::Unconfirmed));
    unclear.into_iter().map(|(peer, _)| peer).collect()
}

/// What came of opening rows.
#[derive(Default)]
struct Opened {
    /// Peers that did not open what they had signed.
    missing: Vec<PeerId>,
    /// Memory of the rows in the receipt.
    _memory: Option<Lease>,
}

/// Puts the rows of the stages that are checked by value into the receipt. Those that another node does not open, or that have not the
/// root which it signed, make it a suspect; a session that ended early is left as it is, since its nodes may be gone.
fn open_rows(
    parts: &AuditorParts,
    receipt: &mut Receipt,
    fetch: &dyn Fn(Wanted) -> Result<ModelSource>,
) -> Result<Opened> {
    let (host, model) = (&parts.host, receipt.model.digest);
    if !receipt.segments.iter().any(|segment| segment.ended.is_none() && segment.is_by_value()) {
        return Ok(Opened::default());
    }
    let file = ModelFile::open(&fetch(Wanted::header())?.path).map_err(compute_error)?;
    let (layers, width) = (file.config().layers as u32, file.config().hidden_size);
    // A last stage gives tokens, which are known; no session is longer than a context.
    let is_open = |signed: &Signed| {
        let claim = &signed.claim;
        claim.profile == Profile::Grid && claim.layers.end < layers && claim.positions <= file.config().context as u64
    };
    let values_of = |signed: &Signed| signed.claim.positions as usize * width;
    let claims =
        || receipt.segments.iter().filter(|segment| segment.ended.is_none()).flat_map(|segment| &segment.claims);
    let values: usize = claims().filter(|signed| is_open(signed)).map(values_of).sum();
    let bytes = (values * size_of::<f32>()) as u64;
    let memory = parts.devices.lease_within(Kind::Audits, bytes, OPEN_TIMEOUT)?;
    let mut opened = Opened { missing: Vec::new(), _memory: Some(memory) };
    for segment in receipt.segments.iter_mut().filter(|segment| segment.ended.is_none()) {
        for (stage, signed) in segment.claims.iter().enumerate().filter(|(_, signed)| is_open(signed)) {
            let (claim, peer) = (&signed.claim, signed.peer());
            let rows = host.open(peer, claim.session, claim.layers.clone(), values_of(signed), OPEN_TIMEOUT);
            let rows = rows.map(|rows| OpenedRows { stage, rows: rows.into() }).and_then(|rows| {
                let other = || Error::new(ErrorKind::VerificationFailed, "the rows have not the root that was signed");
                if rows.are_of(claim, width) { Ok(rows) } else { Err(other()) }
            });
            match rows {
                Ok(rows) => segment.opened.push(rows),
                Err(error) => {
                    tracing::warn!(event = "rows_not_opened", %peer, %model, %error, "peer {peer} did not open its rows for an audit: {error}");
                    if peer != host.local() {
                        host.suspect(peer, SuspicionReason::NotOpened);
                        opened.missing.push(peer);
                    }
                }
            }
        }
    }
    Ok(opened)
}

/// Rests as long as `pace` says, or cancels.
fn wait(host: &dyn AuditHost, pace: &AuditPace, cancel: &Cancel) {
    loop {
        match pace.next(host.is_busy(), clock::now()) {
            Pace::Go => return,
            Pace::Rest(rest) => std::thread::sleep(rest.min(REST_CHECK)),
            Pace::Stop => return cancel.cancel(),
        }
    }
}

/// Writes the results into the receipt and accuses the stages that a signature proves to lie. Rows that are too many for a receipt are
/// removed from it: then nobody else can check what was found, so of their segments nobody is accused.
fn record(host: &dyn AuditHost, receipt: &mut Receipt, found: &Verification) {
    let local = host.local().to_string();
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let position_of = |output: OutputCheck| match output {
        OutputCheck::Wrong { position } => position.map(|position| position as u64),
        _ => None,
    };
    for (segment, checked) in found.segments.iter().enumerate() {
        for (stage, check) in checked.stages.iter().enumerate() {
            let is_known = !matches!(
                check.output,
                OutputCheck::FollowsWrong
                    | OutputCheck::Unclaimed
                    | OutputCheck::Unopened
                    | OutputCheck::Unclear { .. }
            );
            if check.peer != local && is_known {
                let (by, holds, position) = (local.clone(), check.is_right(), position_of(check.output));
                receipt.audits.push(Audit { segment, stage, by, holds, position, unix_ms });
            }
        }
    }
    if found.holds && receipt.is_audited() {
        receipt.verdict = found.verdict;
    }
    let bytes: usize = receipt.segments.iter().map(Segment::opened_bytes).sum();
    let is_too_large = bytes > OPENED_BYTES_MAX;
    if is_too_large {
        tracing::info!(
            event = "rows_not_in_receipt",
            receipt = receipt.id,
            bytes,
            "a receipt keeps no rows of an audited answer: they are too many"
        );
        receipt.segments.iter_mut().for_each(|segment| segment.opened.clear());
    }
    for (segment, checked) in found.segments.iter().enumerate() {
        let is_proven = !(is_too_large && receipt.segments[segment].is_by_value());
        for (stage, check) in checked.stages.iter().enumerate().filter(|(_, check)| check.is_lie()) {
            if !is_proven {
                if let Ok(peer) = check.peer.parse() {
                    host.suspect(peer, SuspicionReason::WrongUnproven);
                }
                continue;
            }
            host.accuse(&FailedAudit { receipt, segment, stage, position: position_of(check.output) });
        }
    }
}

//! The audit of one answer: it is recomputed from the model file, the result goes into the receipt, a stage that signed a wrong
//! output is accused, and one that is wrong and did not sign is suspected. When it runs is not decided here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Cancel;
use pangea_compute::model::Wanted;
use pangea_control::peers::SuspicionReason;
use pangea_control::trust::{AuditPace, Pace, Verdict};

use super::FailedAudit;
use super::auditor::{AuditHost, Audited, AuditorParts};
use super::receipt::{Audit, Receipt};
use super::replayer::Replayer;
use super::verify::{OutputCheck, Verification};
use crate::clock;
use crate::devices::threads::Purpose;

/// Longest sleep of a resting audit, after which it asks again whether the node still has sessions.
const REST_CHECK: Duration = Duration::from_millis(50);

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
    Ok(Audited { receipt, wrong })
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

/// Writes the results into the receipt and accuses the stages that a signature proves to lie.
fn record(host: &dyn AuditHost, receipt: &mut Receipt, found: &Verification) {
    let local = host.local().to_string();
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let position_of = |output: OutputCheck| match output {
        OutputCheck::Wrong { position } => position.map(|position| position as u64),
        _ => None,
    };
    for (segment, checked) in found.segments.iter().enumerate() {
        for (stage, check) in checked.stages.iter().enumerate() {
            let is_claim = !matches!(check.output, OutputCheck::FollowsWrong | OutputCheck::Unclaimed);
            if check.peer != local && is_claim {
                let (by, holds, position) = (local.clone(), check.is_right(), position_of(check.output));
                receipt.audits.push(Audit { segment, stage, by, holds, position, unix_ms });
            }
        }
    }
    if found.holds && receipt.is_audited() {
        receipt.verdict = Verdict::Audited;
    }
    for (segment, checked) in found.segments.iter().enumerate() {
        for (stage, check) in checked.stages.iter().enumerate().filter(|(_, check)| check.is_lie()) {
            host.accuse(&FailedAudit { receipt, segment, stage, position: position_of(check.output) });
        }
    }
}

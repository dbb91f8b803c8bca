//! The task that feeds accusations with findings of this node, with what peers tell and with the outcome of checks, and executes
//! what they decide: tells, fetches, checks, convicts, keeps. It decides nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::{PeerId, StreamProtocol};
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::commit::Claim;
use pangea_compute::{Digest, NpyWriter, Pool as ComputePool, Tensor};
use pangea_control::peers::SuspicionReason;
use pangea_control::trust::accusations::{Accusation, Accusations, Action, Event, EvidenceKind, Ground, Recheck};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::PROTOCOL;
use super::accusation::SignedAccusation;
use super::bundle::{CLAIMS, PLACE, RECEIPT, STATEMENT, TENSORS};
use super::findings::{Finding, FindingsInlet, ProductEvidence, product_sentence};
use super::folder::{Arrived, EvidenceFolder, Facts, Kept};
use super::metrics::{Metrics, Outcome};
use super::recheck::{Found, Means, recheck};
use super::streams::{self, Given};
use crate::clock;
use crate::devices::Devices;
use crate::devices::threads::Purpose;
use crate::membership::Membership;
use crate::net::{Follower, NetEvent, Network};
use crate::observe::Observer;
use crate::peers::Peers;
use crate::pool::{Pool, View};
use crate::streams::places::Places;
use crate::trust::Signed;

/// Streams that one peer may have open towards this node: one that tells and one that asks.
const STREAMS_PER_PEER: usize = 2;

/// Streams of all peers together.
const STREAMS: usize = 64;

/// Notices queued for the driver: a few per stream and check.
const NOTICES: usize = 256;

/// Signatures verified for one message: a millisecond or two of the network thread. What is told again later finds the first
/// ones known.
const VERIFIED_PER_MESSAGE: usize = 32;

/// Interval of the clock's ticks.
const TICK: Duration = Duration::from_secs(1);

/// What the driver starts with.
pub struct EvidenceSettings {
    /// Key of this node.
    pub keypair: Keypair,
    /// Who belongs to the pool: a peer that is proven to lie belongs to it no longer.
    pub membership: Membership,
    /// The directory of peers.
    pub peers: Peers,
    /// The members of the pool.
    pub pool: Pool,
    /// Memory and compute threads.
    pub devices: Devices,
    /// Where evidence is kept.
    pub folder: EvidenceFolder,
    /// Evidence of earlier runs; its peers are convicted already.
    pub kept: Vec<Kept>,
    /// Registry of metrics.
    pub observer: Observer,
}

/// What happened on another thread.
enum Notice {
    /// Evidence of this node's own finding is kept.
    Kept(Kept),
    Told {
        from: PeerId,
        accusations: Vec<[u8; SignedAccusation::BYTES]>,
    },
    Fetched {
        evidence: Digest,
        file: Result<PathBuf>,
    },
    Checked {
        evidence: Digest,
        arrived: Option<Arrived>,
        found: Found,
    },
}

/// The driver; [`EvidenceDriver::run`] must be called on the network thread's `LocalSet`.
pub struct EvidenceDriver {
    local: PeerId,
    keypair: Keypair,
    membership: Membership,
    peers: Peers,
    members: watch::Receiver<Arc<View>>,
    devices: Devices,
    folder: EvidenceFolder,
    network: Network,
    events: Follower,
    inlet: FindingsInlet,
    accusations: Accusations,
    /// Signed accusations, of this node and of others, by evidence and accuser.
    signed: BTreeMap<(Digest, PeerId), SignedAccusation>,
    given: Given,
    /// A file with evidence that was fetched and not checked yet.
    fetched: Option<(Digest, PathBuf)>,
    /// Evidence that was checked, with what the accused did; kept until its case is settled.
    checked: BTreeMap<Digest, (Option<Arrived>, Found)>,
    /// Compute threads of the checks, made for the first one.
    compute: Arc<OnceLock<ComputePool>>,
    metrics: Metrics,
    notices: mpsc::Sender<Notice>,
    noticed: mpsc::Receiver<Notice>,
}

impl EvidenceDriver {
    /// The driver of `inlet`'s findings, over `network`.
    pub fn new(
        settings: EvidenceSettings,
        inlet: FindingsInlet,
        network: Network,
        events: Follower,
    ) -> Result<EvidenceDriver> {
        let local = settings.keypair.public().to_peer_id();
        let (notices, noticed) = mpsc::channel(NOTICES);
        let mut driver = EvidenceDriver {
            local,
            keypair: settings.keypair,
            membership: settings.membership,
            peers: settings.peers,
            members: settings.pool.view(),
            devices: settings.devices,
            folder: settings.folder,
            network,
            events,
            inlet,
            accusations: Accusations::new(local),
            signed: BTreeMap::new(),
            given: Given::default(),
            fetched: None,
            checked: BTreeMap::new(),
            compute: Arc::default(),
            metrics: Metrics::new(&settings.observer),
            notices,
            noticed,
        };
        driver.accept()?;
        settings.kept.into_iter().for_each(|kept| driver.kept(kept));
        Ok(driver)
    }

    /// Runs until the network ends.
    pub async fn run(mut self) {
        let mut tick = clock::ticks(TICK);
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(NetEvent::PeerUp { peer, .. }) => self.handle(Event::Up(peer)),
                    Some(NetEvent::PeerDown { peer, .. }) => self.handle(Event::Down(peer)),
                    Some(_) => {}
                    None => return,
                },
                Some(finding) = self.inlet.queue.recv() => self.keep(finding),
                Some(notice) = self.noticed.recv() => self.on_notice(notice),
                _ = tick.tick() => self.handle(Event::Tick),
            }
        }
    }

    fn accept(&self) -> Result<()> {
        let failed = |error| Error::new(ErrorKind::Internal, format!("{PROTOCOL}: {error}"));
        let mut incoming = self.network.streams().accept(StreamProtocol::new(PROTOCOL)).map_err(failed)?;
        let places = Places::new(STREAMS_PER_PEER, STREAMS);
        let (peers, given, notices) = (self.peers.clone(), Given::clone(&self.given), self.notices.clone());
        // Ends with the network.
        tokio::task::spawn_local(async move {
            // Streams that arrive while this loop is busy are dropped, so it does nothing else.
            while let Some((from, stream)) = incoming.next().await {
                let Some(place) = places.take(from).filter(|_| peers.may_compute(&from)) else { continue };
                let (given, notices) = (Given::clone(&given), notices.clone());
                tokio::task::spawn_local(async move {
                    match streams::serve(stream, &given).await {
                        Ok(accusations) if accusations.is_empty() => {}
                        Ok(accusations) => drop(notices.send(Notice::Told { from, accusations }).await),
                        Err(why) => tracing::debug!(event = "evidence_stream_ended", peer = %from, %why),
                    }
                    drop(place);
                });
            }
        });
        Ok(())
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Kept(kept) => {
                if kept.evidence.is_some() {
                    self.metrics.count(Outcome::Found);
                }
                self.kept(kept);
            }
            Notice::Told { from, accusations } => self.told(from, &accusations),
            Notice::Fetched { evidence, file: Ok(file) } => {
                self.fetched = Some((evidence, file));
                self.handle(Event::Fetched(evidence));
                if let Some((_, unused)) = self.fetched.take() {
                    remove(&unused);
                }
            }
            Notice::Fetched { evidence, file: Err(error) } => {
                tracing::debug!(event = "evidence_not_fetched", %evidence, %error);
                self.handle(Event::FetchFailed(evidence));
            }
            Notice::Checked { evidence, arrived, found } => {
                let (outcome, arrived) =
                    (found.outcome, arrived.filter(|arrived| found.outcome != Recheck::Unable || arrived.is_small()));
                match outcome {
                    Recheck::Refuted => self.metrics.count(Outcome::Refuted),
                    Recheck::Unable => self.metrics.count(Outcome::Unchecked),
                    // Counted with its conviction.
                    Recheck::Proven => {}
                }
                self.checked.insert(evidence, (arrived, found));
                self.handle(Event::Checked(evidence, outcome));
                if outcome != Recheck::Unable {
                    self.checked.remove(&evidence);
                }
            }
        }
    }

    /// What this node found, now or in an earlier run, is told to others where they can check it.
    fn kept(&mut self, kept: Kept) {
        let Some((kind, evidence, evidence_bytes)) = kept.evidence else { return };
        self.revoke(kept.peer);
        let accusation = Accusation { accuser: self.local, accused: kept.peer, kind, evidence, evidence_bytes };
        self.given.borrow_mut().insert(evidence, (kept.folder, kind));
        self.sign(accusation);
        self.handle(Event::Found(accusation));
    }

    fn told(&mut self, from: PeerId, accusations: &[[u8; SignedAccusation::BYTES]]) {
        let mut verified = 0;
        for bytes in accusations {
            let Some(unverified) = SignedAccusation::parse(bytes) else { continue };
            let (accuser, evidence) = unverified.says();
            if self.signed.contains_key(&(evidence, accuser)) {
                // The same signature again: its sender may have the evidence.
                if let Some(accusation) = self.signed.get(&(evidence, accuser)).map(|signed| *signed.accusation()) {
                    self.handle(Event::Heard { from, accusation });
                }
                continue;
            }
            if verified == VERIFIED_PER_MESSAGE {
                return;
            }
            verified += 1;
            let Some(signed) = unverified.verify() else {
                tracing::info!(event = "forged_accusation", peer = %from, "peer {from} passed on an accusation that its accuser did not sign");
                self.metrics.count(Outcome::Forged);
                self.peers.suspect(from, SuspicionReason::AccusedWrongly);
                return;
            };
            let accusation = *signed.accusation();
            self.handle(Event::Heard { from, accusation });
            // Only those that count are remembered, and those are bounded.
            if self.accusations.knows(&accuser, &evidence) {
                self.signed.insert((evidence, accuser), signed);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let (view, peers) = (Arc::clone(&self.members.borrow()), self.peers.clone());
        let is_member = |peer: &PeerId| {
            let is_in = view.nodes.contains_key(peer) || view.connected.contains(peer);
            is_in && peers.may_compute(peer) && !peers.is_suspect(peer)
        };
        for action in self.accusations.handle(event, clock::now(), is_member) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Tell { peer, accusations } => {
                let signed = |accusation: &Accusation| {
                    let signed = self.signed.get(&(accusation.evidence, accusation.accuser))?;
                    Some(signed.to_bytes())
                };
                let accusations = accusations.iter().filter_map(signed).collect();
                tokio::task::spawn_local(streams::tell(self.network.clone(), peer, accusations));
            }
            Action::Fetch { evidence, evidence_bytes, from } => {
                let (network, folder, notices) = (self.network.clone(), self.folder.clone(), self.notices.clone());
                tokio::task::spawn_local(async move {
                    let file = streams::fetch(network, folder, evidence, evidence_bytes, from).await;
                    let _ = notices.send(Notice::Fetched { evidence, file }).await;
                });
            }
            Action::Check(accusation) => self.check(accusation),
            Action::Convict(accusation, ground) => self.convict(&accusation, &ground),
            Action::Accuse(accusation) => {
                self.metrics.count(Outcome::Joined);
                self.sign(accusation);
            }
            Action::Accused(Accusation { accuser, evidence, .. }) => {
                self.metrics.count(Outcome::Heard);
                tracing::warn!(
                    event = "accused", peer = %accuser, %evidence,
                    "peer {accuser} accuses this node of a wrong result; test this machine's memory"
                );
            }
            Action::Suspect(peer) => {
                tracing::warn!(event = "accusation_refuted", %peer, "an accusation by peer {peer} proves nothing");
                self.peers.suspect(peer, SuspicionReason::AccusedWrongly);
            }
            Action::Forget(evidence) => {
                self.checked.remove(&evidence);
                self.signed.retain(|(of, _), _| *of != evidence);
            }
        }
    }

    fn sign(&mut self, accusation: Accusation) {
        match SignedAccusation::new(accusation, &self.keypair) {
            Ok(signed) => {
                self.signed.insert((accusation.evidence, accusation.accuser), signed);
            }
            Err(error) => tracing::warn!(event = "accusation_not_signed", %error, "cannot sign an accusation: {error}"),
        }
    }

    fn check(&mut self, accusation: Accusation) {
        let Some((evidence, file)) = self.fetched.take() else { return };
        let (folder, devices, compute) = (self.folder.clone(), self.devices.clone(), Arc::clone(&self.compute));
        let (replay, notices) = (Arc::clone(&self.inlet.replay), self.notices.clone());
        tokio::task::spawn_local(async move {
            let checking = tokio::task::spawn_blocking(move || {
                let checked = unpack_and_check(
                    &folder,
                    &file,
                    &accusation,
                    &devices,
                    &compute,
                    replay.get().map(|replay| &**replay),
                );
                remove(&file);
                checked
            });
            // A check that panicked shows nothing about either side.
            let unable = || Found { outcome: Recheck::Unable, why: "members checked evidence against it".to_owned() };
            let (arrived, found) = checking.await.unwrap_or_else(|_| (None, unable()));
            let _ = notices.send(Notice::Checked { evidence, arrived, found }).await;
        });
    }

    fn convict(&mut self, accusation: &Accusation, ground: &Ground) {
        let Some((arrived, found)) = self.checked.remove(&accusation.evidence) else { return };
        let accuser = accusation.accuser;
        self.metrics.count(if *ground == Ground::Checked { Outcome::Proven } else { Outcome::Believed });
        let (why, confirmed_by) = match ground {
            Ground::Checked => (format!("{} (found by {accuser} and checked here)", found.why), Vec::new()),
            Ground::Confirmed(by) => {
                (format!("{} (found by {accuser} and confirmed by others)", found.why), by.clone())
            }
        };
        self.peers.convict(accusation.accused, &why);
        // The word of others convicts, but revokes nobody for good.
        if *ground == Ground::Checked {
            self.revoke(accusation.accused);
        }
        let confirmed_by: Vec<String> = confirmed_by.iter().map(PeerId::to_string).collect();
        let more = json!({"found_by": accuser.to_string(), "confirmed_by": confirmed_by});
        let (folder, accusation, is_shared) = (self.folder.clone(), *accusation, *ground == Ground::Checked);
        let given = Given::clone(&self.given);
        tokio::task::spawn_local(async move {
            let keeping = tokio::task::spawn_blocking(move || {
                folder.keep_arrived(arrived.as_ref(), &accusation, &why, is_shared, more)
            });
            match keeping.await {
                Ok(Ok(kept)) => {
                    log_kept(&kept);
                    given.borrow_mut().insert(accusation.evidence, (kept.folder, accusation.kind));
                }
                Ok(Err(error)) => log_lost(&error),
                Err(error) => log_lost(&error),
            }
        });
    }

    /// Revokes a peer that this node proved to lie, where this node holds the pool's key.
    fn revoke(&self, peer: PeerId) {
        let membership = self.membership.clone();
        // Writes to the disk.
        tokio::task::spawn_local(async move {
            let revoking = tokio::task::spawn_blocking(move || membership.revoke_liar(peer)).await;
            if let Ok(Err(error)) = revoking {
                tracing::warn!(event = "liar_not_revoked", %peer, %error, "cannot revoke peer {peer}, which lied: {error}");
            }
        });
    }

    /// Stores what this node found; its peer is convicted already.
    fn keep(&self, finding: Finding) {
        self.revoke(finding.peer());
        let (folder, notices) = (self.folder.clone(), self.notices.clone());
        tokio::task::spawn_local(async move {
            match tokio::task::spawn_blocking(move || store(&folder, &finding)).await {
                Ok(Ok(kept)) => {
                    log_kept(&kept);
                    let _ = notices.send(Notice::Kept(kept)).await;
                }
                Ok(Err(error)) => log_lost(&error),
                Err(error) => log_lost(&error),
            }
        });
    }
}

fn log_kept(kept: &Kept) {
    tracing::info!(event = "evidence_kept", folder = %kept.folder.display());
}

fn log_lost(error: &impl std::fmt::Display) {
    tracing::warn!(event = "evidence_lost", %error, "cannot store evidence: {error}");
}

/// Removes a file that is of no use any more; one that stays is swept when the node starts again.
fn remove(file: &Path) {
    let _ = std::fs::remove_file(file);
}

fn unpack_and_check(
    folder: &EvidenceFolder,
    file: &Path,
    accusation: &Accusation,
    devices: &Devices,
    compute: &OnceLock<ComputePool>,
    replay: Option<&dyn super::StageReplay>,
) -> (Option<Arrived>, Found) {
    let shown = |outcome| Found { outcome, why: String::new() };
    let arrived = match folder.unpack(file, accusation.kind) {
        Ok(arrived) => arrived,
        Err(error) => {
            tracing::debug!(event = "evidence_not_unpacked", evidence = %accusation.evidence, %error);
            let is_evidence = error.kind() != std::io::ErrorKind::InvalidData;
            return (None, shown(if is_evidence { Recheck::Unable } else { Recheck::Refuted }));
        }
    };
    let pool = match compute.get() {
        Some(pool) => pool,
        None => match devices.pool(Purpose::Audits) {
            Ok(made) => compute.get_or_init(|| made),
            Err(error) => {
                tracing::warn!(event = "evidence_not_checked", %error, "cannot check evidence: {error}");
                return (Some(arrived), shown(Recheck::Unable));
            }
        },
    };
    let means = Means { devices, pool, replay };
    let found = recheck(arrived.folder(), accusation, &means);
    (Some(arrived), found)
}

fn store(folder: &EvidenceFolder, finding: &Finding) -> std::io::Result<Kept> {
    match finding {
        Finding::Product(evidence) => store_product(folder, evidence),
        Finding::Stage { peer, why, receipt, segment, stage, position } => {
            let json = receipt.to_json().map_err(std::io::Error::other)?;
            let (name, kind) = (format!("{}.{segment}.{stage}", receipt.id), EvidenceKind::Stage);
            let layers = receipt.segments.get(*segment).and_then(|segment| segment.stages.get(*stage));
            let more = json!({
                "claim": "receipt.json holds a claim whose output is not what the model gives for its input",
                "receipt": receipt.id,
                "segment": segment,
                "stage": stage,
                "layers": layers.map(|stage| stage.layers),
                "position": position,
            });
            let facts = Facts { peer: *peer, kind, why, name: &name, is_shared: true, more };
            folder.keep(&facts, |inside| {
                let place = [(*segment as u32).to_le_bytes(), (*stage as u32).to_le_bytes()].concat();
                std::fs::write(inside.join(PLACE), place)?;
                std::fs::write(inside.join(RECEIPT), &json)
            })
        }
        Finding::Contradiction { peer, why, claims } => {
            let session: String = claims[0].claim.session.iter().map(|byte| format!("{byte:02x}")).collect();
            let more =
                json!({"claim": "claims.bin holds two signed claims that cannot both be true", "session": session});
            let (kind, name) = (EvidenceKind::Contradiction, &session[..12]);
            let facts = Facts { peer: *peer, kind, why, name, is_shared: true, more };
            folder
                .keep(&facts, |inside| std::fs::write(inside.join(CLAIMS), claims.each_ref().map(claim_bytes).concat()))
        }
    }
}

fn claim_bytes(signed: &Signed) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(Claim::BYTES_MAX + crate::trust::Signature::BYTES);
    bytes.extend(signed.claim.to_bytes());
    bytes.extend(signed.signature.to_bytes());
    bytes
}

fn store_product(folder: &EvidenceFolder, evidence: &ProductEvidence) -> std::io::Result<Kept> {
    let [a, b, c] = &evidence.tensors;
    // A worker that signed other bytes than it sent convinces nobody else.
    let signed = evidence.signed.as_ref().filter(|signed| {
        let claim = &signed.claim;
        let digests = [claim.operands[0], claim.operands[1], claim.result];
        signed.is_by(&evidence.peer) && digests == [a.digest(), b.digest(), c.digest()]
    });
    let more = json!({
        "job": evidence.job,
        "attempt": evidence.attempt,
        "claim": format!("c.npy is the {} of a.npy and b.npy", evidence.result_name),
        "a": a.digest().to_string(),
        "b": b.digest().to_string(),
        "c": c.digest().to_string(),
        "signed": signed.is_some(),
    });
    let (why, name) = (product_sentence(&evidence.why), evidence.attempt.to_string());
    let is_shared = signed.is_some();
    let facts = Facts { peer: evidence.peer, kind: EvidenceKind::Product, why: &why, name: &name, is_shared, more };
    folder.keep(&facts, |inside| {
        std::fs::write(inside.join(STATEMENT), signed.map(|signed| signed.to_bytes()).unwrap_or_default())?;
        for (name, tensor) in TENSORS.into_iter().zip([a, b, c]) {
            write_npy(&inside.join(name), tensor).map_err(std::io::Error::other)?;
        }
        Ok(())
    })
}

fn write_npy(path: &Path, tensor: &Tensor) -> std::result::Result<(), pangea_compute::Error> {
    let mut file = NpyWriter::create(path, tensor.dtype(), tensor.rows(), tensor.cols())?;
    file.write_block(0, 0, tensor)?;
    file.finish()
}

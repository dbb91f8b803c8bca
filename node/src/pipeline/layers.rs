//! The layers of one stage: the caches of its sequences, passes through the layers, on the last stage the chosen
//! tokens, and the stage's claims. The protocol decides which rows are computed and what becomes of a session.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::commit::merkle::token_leaves;
use pangea_compute::commit::{Claim, Leaf, Profile, merkle_root};
use pangea_compute::engine::{Input, Logits, Output, Stage, Step};
use pangea_compute::model::{NUMERICS, PageBudget};
use pangea_compute::{Cancel, Digest, ErrorKind as ComputeErrorKind};

use super::history::{History, Rows};
use super::pass_faults::PassFaults;
use super::payload::Payload;
use super::running_pass::RunningPass;
use super::sampler::Sampler;
use super::stage::Protocol;
use super::wire::{ChainId, FrameRows, Open, SessionId, StageAt, Start, StartSource, SteppedSequence, Tokens};
use crate::compute_error;
use crate::fault::{Fault, twist_row, twist_token};
use crate::rows::{RowStore, SignedRows};
use crate::trust::{CommitChain, terms_digest};

/// The layers of one stage with the caches of its sequences.
pub(super) struct Layers {
    model: Arc<Stage>,
    budget: PageBudget,
    faults: PassFaults,
    /// Where rows are kept; present on a stage that has to open them.
    opened: Option<RowStore>,
    histories: HashMap<u64, History>,
    sessions: HashMap<SessionId, Signable>,
    /// Present on the last stage.
    sampler: Option<Sampler>,
    /// Present on the first stage.
    running: Option<RunningPass>,
}

/// Data of a session that is signed, besides the rows of its sequence.
struct Signable {
    /// Who asked for the session.
    coordinator: PeerId,
    /// Digest of the sampling terms.
    terms: Digest,
    /// First position whose following token this session chooses.
    chosen_from: u64,
    /// Its rows, once the sequence has ended.
    rows: Option<Rows>,
}

/// Result of a pass.
#[derive(Default)]
pub(super) struct Passed {
    /// Rows of the sequences that continue.
    pub(super) rows: Vec<FrameRows>,
    /// `[rows, hidden_size]`, on a stage without the head.
    pub(super) activations: Vec<f32>,
    /// On the last stage, the result of each sequence.
    pub(super) advances: Vec<SteppedSequence>,
    /// Tokens for the coordinators, sent after the report to the first stage.
    pub(super) tokens: Vec<(PeerId, Tokens)>,
    /// Sequences that cannot continue.
    pub(super) failed: Vec<(u64, Error)>,
}

/// Why a pass failed for all of its sequences.
pub(super) enum PassError {
    /// Memory does not suffice.
    Exhausted(Error),
    /// The device that computes the layers is gone, or cannot hold what it has to: why.
    DeviceFailed(String),
}

impl Layers {
    pub(super) fn new(
        model: Arc<Stage>,
        budget: PageBudget,
        faults: PassFaults,
        sampler: Option<Sampler>,
        running: Option<RunningPass>,
        rows: Option<RowStore>,
    ) -> Layers {
        // A last stage gives tokens, which its coordinator has.
        let opened = rows.filter(|_| Profile::of(model.bits()) == Some(Profile::Grid) && !model.part().head);
        Layers { opened, model, budget, faults, histories: HashMap::new(), sessions: HashMap::new(), sampler, running }
    }

    pub(super) fn model(&self) -> &Stage {
        &self.model
    }

    pub(super) fn threads(&self) -> usize {
        self.model.threads()
    }

    pub(super) fn faults(&self) -> &PassFaults {
        &self.faults
    }

    /// Prepares for the sessions of a request.
    ///
    /// # Errors
    /// Errors of the sampler.
    pub(super) fn join(&mut self, open: &Open) -> Result<()> {
        if let Some(sampler) = &mut self.sampler {
            sampler.open(open)?;
        }
        for choice in 0..open.choices {
            let sampling = open.sampling.of_choice(choice);
            let terms = terms_digest(open.prompt_len.into(), &sampling, &open.format, open.scores(choice));
            let chosen_from = open.tokens.len() as u64 - 1;
            let signable = Signable { coordinator: open.coordinator, terms, chosen_from, rows: None };
            self.sessions.insert(open.session.choice(choice), signable);
        }
        Ok(())
    }

    /// Removes a session; its sequence ends separately.
    pub(super) fn remove(&mut self, session: &SessionId) {
        self.sessions.remove(session);
        if let Some(sampler) = &mut self.sampler {
            sampler.close(session);
        }
    }

    /// Removes all sessions and sequences.
    pub(super) fn clear(&mut self) {
        self.histories.clear();
        self.sessions.clear();
        if let Some(sampler) = &mut self.sampler {
            sampler.clear();
        }
    }

    /// Drops the cache of a sequence but keeps what its session must sign; returns whether there was one.
    pub(super) fn drop_history(&mut self, sequence: u64, session: Option<SessionId>) -> bool {
        let Some(history) = self.histories.remove(&sequence) else { return false };
        self.keep_rows(session, history.rows);
        true
    }

    fn keep_rows(&mut self, session: Option<SessionId>, rows: Rows) {
        if let Some(signable) = session.and_then(|session| self.sessions.get_mut(&session)) {
            signable.rows = Some(rows);
        }
    }

    /// Starts a sequence, possibly with another one's cache.
    pub(super) fn start(&mut self, start: Start, taken_from: Option<SessionId>) {
        let history = match start.source {
            StartSource::Empty => None,
            StartSource::Fork { from, tokens } => {
                self.histories.get(&from).map(|history| history.fork(tokens as usize))
            }
            StartSource::Take { from, tokens } => self.histories.remove(&from).map(|mut history| {
                if taken_from.is_some() {
                    let rows = history.rows.clone();
                    self.keep_rows(taken_from, rows);
                }
                history.truncate(tokens as usize);
                history.reused = tokens as usize;
                history
            }),
        };
        let history = history.unwrap_or_else(|| self.empty());
        // Rows from before a preemption are recomputed.
        if let Some(signable) = self.sessions.get_mut(&start.session) {
            signable.rows = None;
        }
        self.histories.insert(start.sequence, history);
    }

    fn empty(&self) -> History {
        History::empty(self.model.cache(&self.budget), self.opened.is_some())
    }

    /// Signs this stage's claim for the first `positions` of a session and appends it to the earlier stages' claims
    /// (`before`). `tokens`: on the first stage, the prompt and the chosen tokens. Rows that must be opened are kept from now on.
    ///
    /// # Errors
    /// `NotFound` if the session is unknown; errors of parsing `before`; `Internal` for an engine that no profile describes.
    pub(super) fn sign(
        &self,
        stage: &SignedStage<'_>,
        session: SessionId,
        sequence: u64,
        positions: u32,
        tokens: Option<&[u32]>,
        before: Option<&Payload>,
    ) -> Result<CommitChain> {
        let missing = || Error::new(ErrorKind::NotFound, "this stage no longer knows the session");
        let signable = self.sessions.get(&session).ok_or_else(missing)?;
        let held = positions as usize;
        let rows = match &signable.rows {
            Some(rows) => rows,
            None => &self.histories.get(&sequence).ok_or_else(missing)?.rows,
        };
        let root = |leaves: &[Leaf]| leaves.get(..held).map(merkle_root).ok_or_else(missing);
        let predecessor = match (stage.is_first, tokens) {
            (true, tokens) => {
                let tokens = tokens.and_then(|tokens| tokens.get(..held)).ok_or_else(missing)?;
                merkle_root(&token_leaves(tokens))
            }
            (false, _) => root(&rows.received)?,
        };
        let mut chain = match before {
            Some(bytes) => CommitChain::decode(bytes.as_bytes())?,
            None => CommitChain::new(),
        };
        let output = match &self.sampler {
            Some(sampler) => {
                let chooser = sampler.get(&session).ok_or_else(missing)?;
                // Whoever signs after the first stage vouches for the tokens that it was told.
                let told = chooser.tokens.get(..held).map(|tokens| merkle_root(&token_leaves(tokens)));
                if chain.links.first().is_some_and(|first| Some(first.claim.predecessor) != told) {
                    let why = "the first stage claims other tokens than it was told; this stage cannot sign for it";
                    return Err(Error::new(ErrorKind::VerificationFailed, why));
                }
                merkle_root(&chooser.leaves(held).ok_or_else(missing)?)
            }
            None => root(&rows.given)?,
        };
        let unknown = || {
            let why = format!("no profile of claims describes an engine with {} bits", self.model.bits());
            Error::new(ErrorKind::Internal, why)
        };
        let claim = Claim {
            profile: Profile::of(self.model.bits()).ok_or_else(unknown)?,
            session: session.0,
            epoch: stage.chain.epoch,
            model: stage.chain.model,
            numerics: NUMERICS,
            layers: stage.at.layers.clone(),
            positions: u64::from(positions),
            chosen_from: signable.chosen_from,
            predecessor,
            sampling: signable.terms,
            output,
        };
        chain.pass(claim, stage.keypair)?;
        if let Some(store) = &self.opened {
            match rows.values.as_ref().and_then(|values| values.get(..held)) {
                Some(values) => store.signed(SignedRows {
                    session,
                    layers: stage.at.layers.clone(),
                    coordinator: signable.coordinator,
                    rows: values.to_vec(),
                }),
                None => tracing::warn!(
                    event = "rows_not_kept", %session,
                    "rows of a session not kept for its audit: this node's memory for them is used up"
                ),
            }
        }
        Ok(chain)
    }

    /// Computes rows in one pass; if that fails for one of them, each sequence on its own.
    ///
    /// # Errors
    /// That the stage cannot go on, and on the first stage (`gives_way`), that memory does not suffice; every cache is then
    /// unchanged.
    pub(super) fn pass(
        &mut self,
        protocol: &Protocol,
        rows: &[FrameRows],
        input: Input<'_>,
        gives_way: bool,
    ) -> std::result::Result<Passed, PassError> {
        let mut passed = Passed::default();
        let (began, number) = (Instant::now(), protocol.frame_number());
        if self.faults.loses_device(number) {
            self.model.lose_device();
        }
        let result = if self.faults.is_full(number) {
            Err(pangea_compute::Error::OutOfMemory { bytes: 0, what: "keys and values, by a fault on purpose" })
        } else {
            self.forward(protocol, rows, input)
        };
        self.faults.delay(number, began);
        match result {
            Ok(output) => self.take(protocol, rows, output, &mut passed),
            Err(_) if let Some(why) = self.model.device_failure() => return Err(PassError::DeviceFailed(why)),
            Err(error) if gives_way && error.kind() == ComputeErrorKind::Overloaded => {
                return Err(PassError::Exhausted(compute_error(error)));
            }
            Err(error) if rows.len() == 1 => {
                match error.kind() {
                    // Its closing follows.
                    ComputeErrorKind::Cancelled => tracing::debug!(event = "stage_pass_cancelled"),
                    _ => tracing::warn!(event = "stage_pass_failed", %error, "a pass through layers failed"),
                }
                self.histories.remove(&rows[0].sequence);
                passed.failed.push((rows[0].sequence, compute_error(error)));
            }
            Err(_) => {
                // One sequence caused the error; the others are computed separately.
                let width = self.model.config().hidden_size;
                let mut at = 0;
                for rows in rows {
                    let end = at + rows.rows as usize;
                    let own = match input {
                        Input::Tokens(tokens) => Input::Tokens(&tokens[at..end]),
                        Input::Activations(values) => Input::Activations(&values[at * width..end * width]),
                    };
                    let one = self.pass(protocol, std::slice::from_ref(rows), own, false)?;
                    passed.rows.extend(one.rows);
                    passed.activations.extend(one.activations);
                    passed.advances.extend(one.advances);
                    passed.tokens.extend(one.tokens);
                    passed.failed.extend(one.failed);
                    at = end;
                }
            }
        }
        Ok(passed)
    }

    fn forward(
        &mut self,
        protocol: &Protocol,
        rows: &[FrameRows],
        input: Input<'_>,
    ) -> std::result::Result<Output, pangea_compute::Error> {
        let width = self.model.config().hidden_size;
        let mut taken = Vec::with_capacity(rows.len());
        for rows in rows {
            let mut history = self.histories.remove(&rows.sequence).unwrap_or_else(|| self.empty());
            history.truncate(rows.start as usize);
            let session = protocol.session_of(rows.sequence);
            let chooser = session.and_then(|session| self.sampler.as_ref()?.get(&session));
            let logits = match chooser {
                Some(chooser) if chooser.scores() || !rows.draft.is_empty() => Logits::All,
                Some(_) if rows.choose => Logits::Last,
                _ => Logits::None,
            };
            taken.push((rows, history, logits));
        }
        let result = if let Some((rows, history, _)) =
            taken.iter().find(|(rows, history, _)| history.cache.len() != rows.start as usize)
        {
            Err(pangea_compute::Error::Invalid {
                operation: "stage",
                what: format!("{} positions are held where {} are needed", history.cache.len(), rows.start),
            })
        } else {
            let mut steps: Vec<Step<'_>> = taken
                .iter_mut()
                .map(|(rows, history, logits)| Step {
                    cache: &mut history.cache,
                    rows: rows.rows as usize,
                    logits: *logits,
                })
                .collect();
            let sessions = || rows.iter().filter_map(|rows| protocol.session_of(rows.sequence)).collect();
            let cancel = self.running.as_ref().map_or_else(Cancel::new, |running| running.begin(sessions()));
            let result = self.model.forward(&mut steps, input, &cancel);
            if let Some(running) = &self.running {
                running.finish();
            }
            result
        };
        if result.is_ok()
            && let Input::Activations(values) = input
        {
            let mut at = 0;
            for (rows, history, _) in &mut taken {
                let own = &values[at..at + rows.rows as usize * width];
                history.receive(rows.start as usize, width, own);
                at += own.len();
            }
        }
        self.histories.extend(taken.into_iter().map(|(rows, history, _)| (rows.sequence, history)));
        result
    }

    /// Distributes the output of a pass: activations for the next stage, or tokens for the coordinators.
    fn take(&mut self, protocol: &Protocol, rows: &[FrameRows], mut output: Output, passed: &mut Passed) {
        let width = self.model.config().hidden_size;
        if self.sampler.is_none() {
            passed.rows.extend_from_slice(rows);
            let mut activations = output.into_activations();
            if self.faults.lies(Fault::CorruptStage) || self.faults.lies(Fault::LieUnsigned) {
                let row = rand::random::<u64>() as usize % (activations.len() / width).max(1);
                let row = &mut activations[row * width..(row + 1) * width];
                match self.opened {
                    Some(_) => row.rotate_left(width / 2),
                    None => twist_row(row, rand::random()),
                }
            }
            let mut at = 0;
            for rows in rows {
                let own = &activations[at..at + rows.rows as usize * width];
                if let Some(history) = self.histories.get_mut(&rows.sequence) {
                    history.give(rows.start as usize, width, own, self.opened.as_ref());
                }
                at += own.len();
            }
            passed.activations = activations;
            return;
        }
        for (step, rows) in rows.iter().enumerate() {
            match self.choose(protocol, rows, output.logits_mut(step), &mut passed.tokens) {
                Ok(advance) => {
                    passed.rows.push(rows.clone());
                    passed.advances.extend(advance);
                }
                Err(error) => {
                    self.histories.remove(&rows.sequence);
                    passed.failed.push((rows.sequence, error));
                }
            }
        }
    }

    /// Chooses the tokens that follow rows.
    fn choose(
        &mut self,
        protocol: &Protocol,
        rows: &FrameRows,
        logits: &mut [f32],
        reported: &mut Vec<(PeerId, Tokens)>,
    ) -> Result<Option<SteppedSequence>> {
        let vocabulary = self.model.config().vocabulary;
        let Some(session) = protocol.session_of(rows.sequence) else { return Ok(None) };
        let Some(sampler) = &mut self.sampler else { return Ok(None) };
        let text = sampler.text();
        let Some(chooser) = sampler.get_mut(&session) else { return Ok(None) };
        let lies = rows.choose && (self.faults.lies_to(&chooser.coordinator) || self.faults.lies(Fault::LieUnsigned));
        let start = rows.start as usize;
        let mut prompt = Vec::new();
        let mut last = Vec::new();
        let logits = if chooser.scores() {
            // Scoring overwrites the last row, which is still needed.
            last.extend_from_slice(&logits[logits.len() - vocabulary..]);
            prompt = chooser.score_prompt(start, vocabulary, logits)?;
            if self.faults.lies_about_prompts() {
                chooser.twist_score(&mut prompt);
            }
            &mut last[..]
        } else {
            logits
        };
        let ready = rows.choose && chooser.is_ready()?;
        if !ready {
            // The coordinator is told of every part of a prompt that is computed.
            let computed = if rows.choose { 0 } else { rows.start + rows.rows };
            if computed > 0 || !prompt.is_empty() {
                let position = chooser.tokens.len() as u32;
                let tokens = Tokens { session, position, prompt, computed, ..Tokens::default() };
                reported.push((chooser.coordinator, tokens));
            }
            if !rows.choose {
                return Ok(None);
            }
            // The last token's row is computed again, until the grammar is there and a token can follow it.
            let computed = rows.start as usize + rows.rows as usize - rows.draft.len() - 1;
            if let Some(history) = self.histories.get_mut(&rows.sequence) {
                history.truncate(computed);
            }
            let (sequence, computed) = (rows.sequence, computed as u32);
            let waiting = SteppedSequence { sequence, computed, chosen: Vec::new(), ended: false, failed: false };
            return Ok(Some(waiting));
        }
        let reused = self.histories.get(&rows.sequence).map_or(0, |history| history.reused);
        let mut chosen = chooser.take(&text, &rows.draft, reused, vocabulary, logits)?;
        chosen.tokens.prompt = prompt;
        if lies && let (Some(out), Some(id)) = (chosen.tokens.tokens.last_mut(), chosen.ids.last_mut()) {
            let lie = twist_token(*id, vocabulary, rand::random());
            (out.token, *id) = (lie, lie);
            chooser.replace_last(lie);
        }
        let computed = start + rows.rows as usize - rows.draft.len() + chosen.accepted;
        if let Some(history) = self.histories.get_mut(&rows.sequence) {
            history.truncate(computed);
        }
        reported.push((chosen.coordinator, chosen.tokens));
        Ok(Some(SteppedSequence {
            sequence: rows.sequence,
            computed: computed as u32,
            chosen: chosen.ids,
            ended: chosen.ended,
            failed: false,
        }))
    }
}

/// A stage that signs a session.
pub(super) struct SignedStage<'a> {
    pub(super) chain: ChainId,
    pub(super) at: &'a StageAt,
    pub(super) is_first: bool,
    pub(super) keypair: &'a libp2p::identity::Keypair,
}

//! The stages of a node: the binary's protocol of each, with the world's model in place of layers, and who may say what to
//! which. A pass takes its time: what a stage says, it says after it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use libp2p_identity::PeerId;
use pangea_control::generation::ReportedTokens;
use pangea_control::session::gate::{Admission, Ask, Gate, MessageBytes, waiting_for_opening};
use pangea_control::session::stage::{Action, Event, Incoming, Notice, Opening, StageProtocol, StageSettings};
use pangea_control::session::{ChainId, Drafts, SessionId, StageAt, StartSource};
use pangea_units::ErrorKind;

use crate::chat_messages::{Frame, Open, SessionMessage};
use crate::checks::Broken;
use crate::claims::Claim;
use crate::deviations::Deviation;
use crate::node::{StageKey, batch_limits, size};
use crate::pseudo_model::{Cache, Chooser, Guesser, VOCABULARY};
use crate::scenario::Micros;
use crate::world::{Happening, World};

/// What a stage is told.
enum StageEvent {
    Message(PeerId, SessionMessage),
    PeerGone(PeerId),
    Panic,
}

/// A stage of a chain on this node.
pub(crate) struct Stage {
    /// The protocol.
    pub(crate) protocol: StageProtocol<Guesser>,
    /// Who may say what to it.
    gate: Gate,
    pub(crate) stages: Vec<StageAt>,
    pub(crate) index: usize,
    /// The layers that it uses.
    pub(crate) key: StageKey,
    /// Whether it cannot go on, and whether another stage said so first.
    pub(crate) broken: bool,
    broke_elsewhere: bool,
    pub(crate) caches: BTreeMap<u64, Cache>,
    /// Sessions whose prompts are computed here whole.
    scored: BTreeSet<SessionId>,
    /// Sequences that failed here for want of memory, and those that were to continue them.
    pub(crate) lost: BTreeSet<u64>,
    pub(crate) choosers: BTreeMap<SessionId, (PeerId, Chooser)>,
    /// Who asked for each session.
    pub(crate) coordinators: BTreeMap<SessionId, PeerId>,
    /// Claims that the stages before sent.
    pub(crate) claims: BTreeMap<SessionId, Vec<Claim>>,
    /// Caches that are gone, of sessions that are to be signed.
    pub(crate) retained: BTreeMap<SessionId, Cache>,
    /// Sessions that it lied in, and will not sign.
    pub(crate) lied: BTreeSet<SessionId>,
    inbox: VecDeque<StageEvent>,
    /// Until when it computes, and whether it is woken up then.
    pub(crate) busy_until: Micros,
    waking: bool,
    /// The request that is being taken in.
    opening: Option<Box<Open>>,
    /// Activations of the frame that is being computed, and what the pass of it brought.
    pub(crate) received: Vec<u64>,
    pub(crate) activations: Vec<u64>,
    pub(crate) tokens: Vec<(PeerId, SessionId, ReportedTokens)>,
}

impl Stage {
    /// Caches that it holds, where it is the first of its chain: the others drop theirs with the next frame.
    pub(crate) fn caches(&self) -> usize {
        if self.index == 0 { self.caches.len() } else { 0 }
    }

    /// How many layers it has.
    pub(crate) fn layers(&self) -> u32 {
        self.key.2 - self.key.1
    }
}

impl World {
    /// Starts this node's stage of a chain. `session_bytes`: what its first stage may count with.
    pub(crate) fn start_stage(
        &mut self,
        at: usize,
        chain: ChainId,
        stages: Vec<StageAt>,
        index: usize,
        key: StageKey,
        session_bytes: u64,
    ) {
        self.checks.chain_started(self.now, at, chain, index);
        let count = stages.len();
        let settings = StageSettings {
            chain,
            stages: stages.clone(),
            index,
            numerics: 1,
            vocabulary: VOCABULARY,
            context: size().context as usize,
            limits: (index == 0).then(|| batch_limits(count, session_bytes, key.2 - key.1)),
            drafts: Drafts::Eager,
        };
        let gate = Gate::new(&stages, index, MessageBytes { frame: 1 << 20, opening: 1 << 16 });
        let stage = Stage {
            protocol: StageProtocol::new(settings, Guesser),
            gate,
            stages,
            index,
            key,
            broken: false,
            broke_elsewhere: false,
            caches: BTreeMap::new(),
            scored: BTreeSet::new(),
            lost: BTreeSet::new(),
            choosers: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            claims: BTreeMap::new(),
            retained: BTreeMap::new(),
            lied: BTreeSet::new(),
            inbox: VecDeque::new(),
            busy_until: self.now,
            waking: false,
            opening: None,
            received: Vec::new(),
            activations: Vec::new(),
            tokens: Vec::new(),
        };
        if let Some(run) = &mut self.nodes[at].run {
            run.stages.insert(chain, stage);
        }
    }

    /// Who asked for a session, as a stage of its chain knows.
    pub(crate) fn stage_coordinator(&self, at: usize, chain: ChainId, session: SessionId) -> Option<PeerId> {
        self.nodes[at].run.as_ref()?.stages.get(&chain)?.coordinators.get(&session).copied()
    }

    fn stage(&mut self, at: usize, chain: ChainId) -> Option<&mut Stage> {
        self.nodes[at].run.as_mut()?.stages.get_mut(&chain)
    }

    // Messages.

    /// A message came, from another node or from this one.
    pub(crate) fn deliver(&mut self, at: usize, from: usize, message: SessionMessage) -> Result<(), Broken> {
        let from_peer = self.nodes[from].peer;
        match &message {
            SessionMessage::Open(open) => {
                let Open { session, choices, coordinator, chain, ref stages, sequence, .. } = **open;
                let waiting = waiting_for_opening(&self.nodes[at].peer, &from_peer, stages, coordinator);
                self.start_pending(at, chain)?;
                let ask = Ask::Open { session, choices, coordinator };
                if self.tell_gate(at, chain, from_peer, ask, message)? {
                    return Ok(());
                }
                let forwarded = sequence.is_some();
                for choice in 0..if forwarded { choices } else { 1 } {
                    let session = session.choice(choice);
                    let (kind, message) = (ErrorKind::Unavailable, "no such layers".to_owned());
                    let notice = match forwarded {
                        true => SessionMessage::Failed { chain, session, kind, message },
                        false => SessionMessage::Refused { session, kind, message, retry_after: None },
                    };
                    for peer in &waiting {
                        let _ = self.send_session(at, self.index_of(peer), notice.clone(), 0);
                    }
                }
                Ok(())
            }
            SessionMessage::Frame(frame) => {
                let chain = frame.chain;
                self.start_pending(at, chain)?;
                self.tell_gate(at, chain, from_peer, Ask::Frame, message).map(drop)
            }
            SessionMessage::Stepped { chain, .. } => {
                self.tell_gate(at, *chain, from_peer, Ask::Stepped, message.clone()).map(drop)
            }
            SessionMessage::Close { chain, session, .. } => {
                let (chain, ask) = (*chain, Ask::Close(*session));
                self.tell_gate(at, chain, from_peer, ask, message).map(drop)
            }
            SessionMessage::Failed { chain, .. } => {
                self.tell_gate(at, *chain, from_peer, Ask::Failed, message.clone())?;
                self.tell_chat(at, from_peer, message)
            }
            SessionMessage::Commit { chain, .. } => {
                self.tell_gate(at, *chain, from_peer, Ask::Commit, message.clone())?;
                self.tell_chat(at, from_peer, message)
            }
            SessionMessage::Accepted { .. } | SessionMessage::Refused { .. } | SessionMessage::Tokens { .. } => {
                self.tell_chat(at, from_peer, message)
            }
        }
    }

    /// Gives the stage of a chain what its sender may say to it. Whether the stage took it.
    fn tell_gate(
        &mut self,
        at: usize,
        chain: ChainId,
        from: PeerId,
        ask: Ask,
        message: SessionMessage,
    ) -> Result<bool, Broken> {
        let Some(stage) = self.stage(at, chain) else { return Ok(false) };
        if stage.gate.admits(&from, ask, 1) != Admission::Admitted {
            self.noticed(self.index_of(&from), &[Deviation::Meddles]);
            return Ok(false);
        }
        if ask == Ask::Stepped {
            self.noticed(self.index_of(&from), &[Deviation::StepsWildly]);
        }
        let Some(stage) = self.stage(at, chain) else { return Ok(false) };
        stage.inbox.push_back(StageEvent::Message(from, message));
        self.work(at, chain)?;
        Ok(true)
    }

    /// A peer cannot be reached any more: every stage and every request hears of it.
    pub(crate) fn session_peer_gone(&mut self, at: usize, of: usize) -> Result<(), Broken> {
        let peer = self.nodes[of].peer;
        for chain in self.chains_of(at) {
            if let Some(stage) = self.stage(at, chain) {
                stage.inbox.push_back(StageEvent::PeerGone(peer));
            }
            self.work(at, chain)?;
        }
        self.chats_lost(at, peer)
    }

    /// A chain broke at the stage of another node.
    pub(crate) fn break_off(&mut self, at: usize, chain: ChainId, peer: PeerId) -> Result<(), Broken> {
        if let Some(stage) = self.stage(at, chain) {
            stage.broke_elsewhere = true;
            stage.inbox.push_back(StageEvent::PeerGone(peer));
        }
        self.work(at, chain)
    }

    /// Every stage of a node panics, though its layers are fine.
    pub(crate) fn break_chains(&mut self, at: usize) -> Result<(), Broken> {
        for chain in self.chains_of(at) {
            if let Some(stage) = self.stage(at, chain) {
                stage.inbox.push_back(StageEvent::Panic);
            }
            self.work(at, chain)?;
        }
        Ok(())
    }

    /// A stage ends: its sessions hear of it, and those whose opening it has not read.
    pub(crate) fn end_stage(&mut self, at: usize, chain: ChainId) -> Result<(), Broken> {
        self.follow_stage(at, chain, Event::End { why: "its layers leave memory" })?;
        while let Some(event) = self.stage(at, chain).and_then(|stage| stage.inbox.pop_front()) {
            if let StageEvent::Message(_, message @ SessionMessage::Open(_)) = event {
                self.stage_hears(at, chain, message)?;
            }
        }
        if let Some(run) = &mut self.nodes[at].run {
            run.stages.remove(&chain);
        }
        Ok(())
    }

    /// The peers of all stages of a chain.
    pub(crate) fn peers_of(&self, at: usize, chain: ChainId) -> Vec<PeerId> {
        let stage = self.nodes[at].run.as_ref().and_then(|run| run.stages.get(&chain));
        stage.map_or_else(Vec::new, |stage| stage.gate.stages().to_vec())
    }

    /// The chains that a node has stages of.
    pub(crate) fn chains_of(&self, at: usize) -> Vec<ChainId> {
        self.nodes[at].run.as_ref().map_or_else(Vec::new, |run| run.stages.keys().copied().collect())
    }

    // The stage at work.

    /// A stage goes on: the next frame, the next message, as long as no pass takes its time.
    pub(crate) fn work(&mut self, at: usize, chain: ChainId) -> Result<(), Broken> {
        loop {
            let now = self.now;
            let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
            let number = run.number;
            let Some(stage) = run.stages.get_mut(&chain) else { return Ok(()) };
            if stage.busy_until > now {
                let delay = stage.busy_until - now;
                if !std::mem::replace(&mut stage.waking, true) {
                    self.after(delay, Happening::StageWorks { node: at, run: number, chain });
                }
                return Ok(());
            }
            if stage.protocol.has_room() {
                let before = stage.protocol.frame_number();
                self.follow_stage(at, chain, Event::Ready)?;
                let after = self.stage(at, chain).map(|stage| stage.protocol.frame_number());
                if after.is_some_and(|after| after != before) {
                    continue;
                }
            }
            let Some(event) = self.stage(at, chain).and_then(|stage| stage.inbox.pop_front()) else { return Ok(()) };
            match event {
                StageEvent::Message(from, message) => {
                    if let Some(stage) = self.stage(at, chain) {
                        stage.gate.taken(&from, 1);
                    }
                    self.stage_hears(at, chain, message)?
                }
                StageEvent::PeerGone(peer) => {
                    self.follow_stage(at, chain, Event::PeerGone { peer, why: "it is gone" })?
                }
                StageEvent::Panic => self.follow_stage(at, chain, Event::CannotGoOn { why: "its stage panicked" })?,
            }
        }
    }

    /// The pass of a stage is over.
    pub(crate) fn stage_works(&mut self, at: usize, chain: ChainId) -> Result<(), Broken> {
        if let Some(stage) = self.stage(at, chain) {
            stage.waking = false;
        }
        self.work(at, chain)
    }

    /// Lets stages hear of the time that depend on it.
    pub(crate) fn stage_ticks(&mut self, at: usize) -> Result<(), Broken> {
        for chain in self.chains_of(at) {
            let due = self.stage(at, chain).is_some_and(|stage| stage.protocol.follows_time());
            if due {
                self.follow_stage(at, chain, Event::Ready)?;
                self.work(at, chain)?;
            }
        }
        Ok(())
    }

    /// Lets the stages of a node, and nothing else of it, hear of a time when every lease of a session is over.
    pub(crate) fn end_leases(&mut self, at: usize, after: Micros) -> Result<(), Broken> {
        let turn = |world: &mut World, ahead: fn(Micros, Micros) -> Micros| {
            if let Some(run) = &mut world.nodes[at].run {
                run.ahead = ahead(run.ahead, after);
            }
        };
        turn(self, |ahead, after| ahead + after);
        let result = self.stage_ticks(at);
        turn(self, |ahead, after| ahead - after);
        result
    }

    fn stage_hears(&mut self, at: usize, chain: ChainId, message: SessionMessage) -> Result<(), Broken> {
        match message {
            SessionMessage::Open(open) => {
                let now = self.now;
                let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
                let time = run.time(now);
                let Some(stage) = run.stages.get_mut(&chain) else { return Ok(()) };
                let opening = Opening {
                    session: open.session,
                    coordinator: open.coordinator,
                    stages: &open.stages,
                    numerics: 1,
                    choices: open.choices,
                    sequence: open.sequence,
                    prompt_len: open.prompt_len,
                    max_new_tokens: open.max_new_tokens,
                    prompt_logprobs: open.scored,
                    tokens: &open.tokens,
                    bad_sampling: None,
                };
                let mut actions = Vec::new();
                stage.protocol.handle(Event::Open(opening), time, &mut actions);
                stage.opening = Some(open);
                self.act_all(at, chain, actions)?;
                if let Some(stage) = self.stage(at, chain) {
                    stage.opening = None;
                }
                Ok(())
            }
            SessionMessage::Close { session, commit, .. } => {
                self.follow_stage(at, chain, Event::Close { session, commit })
            }
            SessionMessage::Commit { session, positions, claims, .. } => {
                if let Some(stage) = self.stage(at, chain) {
                    stage.claims.insert(session, claims);
                }
                self.follow_stage(at, chain, Event::Commit { session, positions })
            }
            SessionMessage::Frame(Frame { number, drops, starts, rows, activations, .. }) => {
                let payload_rows = Some(activations.len());
                if let Some(stage) = self.stage(at, chain) {
                    stage.received = activations;
                }
                self.follow_stage(at, chain, Event::Frame(Incoming { number, drops, starts, rows, payload_rows }))
            }
            SessionMessage::Stepped { number, advances, .. } => {
                self.follow_stage(at, chain, Event::Stepped { number, advances })
            }
            SessionMessage::Failed { session, .. } => self.follow_stage(at, chain, Event::Failed(session)),
            // These are for coordinators.
            _ => Ok(()),
        }
    }

    fn follow_stage(&mut self, at: usize, chain: ChainId, event: Event<'_>) -> Result<(), Broken> {
        let mut actions = Vec::new();
        self.tell_stage(at, chain, event, &mut actions);
        self.act_all(at, chain, actions)
    }

    /// Adds to `actions` what follows from an event.
    pub(crate) fn tell_stage(&mut self, at: usize, chain: ChainId, event: Event<'_>, actions: &mut Vec<Action>) {
        let now = self.now;
        let Some(run) = &mut self.nodes[at].run else { return };
        let time = run.time(now);
        if let Some(stage) = run.stages.get_mut(&chain) {
            stage.protocol.handle(event, time, actions);
        }
    }

    fn act_all(&mut self, at: usize, chain: ChainId, mut actions: Vec<Action>) -> Result<(), Broken> {
        while !actions.is_empty() {
            let mut following = Vec::new();
            for action in actions {
                self.act_stage(at, chain, action, &mut following)?;
            }
            actions = following;
        }
        Ok(())
    }

    fn act_stage(
        &mut self,
        at: usize,
        chain: ChainId,
        action: Action,
        following: &mut Vec<Action>,
    ) -> Result<(), Broken> {
        let now = self.now;
        let Some(stage) = self.stage(at, chain) else { return Ok(()) };
        let delay = stage.busy_until.saturating_sub(now);
        match action {
            Action::Join { sequence } => {
                if let Some(open) = &mut stage.opening {
                    open.sequence = Some(sequence);
                    if open.scored && open.tokens.len() == open.prompt_len {
                        stage.scored.extend((0..open.choices).map(|choice| open.session.choice(choice)));
                    }
                    for choice in (0..open.choices).filter(|_| stage.index + 1 == stage.stages.len()) {
                        let seed = open.seed + u64::from(choice);
                        let chooser = Chooser::new(seed, open.tokens.clone(), open.prompt_len, open.max_new_tokens);
                        stage.choosers.insert(open.session.choice(choice), (open.coordinator, chooser));
                    }
                    let sessions = (0..open.choices).map(|choice| (open.session.choice(choice), open.coordinator));
                    stage.coordinators.extend(sessions);
                }
                self.tell_stage(at, chain, Event::Joined, following);
            }
            Action::ForwardOpen(to) => {
                if let Some(open) = stage.opening.take() {
                    self.send_along(at, chain, to, SessionMessage::Open(open), delay, following);
                }
            }
            Action::Send { to, session, notice } => {
                let refuses = if matches!(notice, Notice::Accepted) { self.refuses_session(at) } else { None };
                let notice = refuses.map_or(notice, |error| Notice::Refused { error, retry_after: None });
                let message = match notice {
                    Notice::Accepted => SessionMessage::Accepted { session },
                    Notice::Refused { error, retry_after } => {
                        let (kind, message) = (error.kind(), error.message().to_owned());
                        SessionMessage::Refused { session, kind, message, retry_after }
                    }
                    Notice::Failed(error) if error.kind() == ErrorKind::Internal => {
                        // No pass of the world fails for what a node did wrong.
                        return Err(Broken::new(now, format!("node {at} fails a session and blames itself: {error}")));
                    }
                    Notice::Failed(error) => {
                        let (kind, message) = (error.kind(), error.message().to_owned());
                        SessionMessage::Failed { chain, session, kind, message }
                    }
                    Notice::Close => SessionMessage::Close { chain, session, commit: None },
                };
                // Whoever cannot be reached is reported as gone.
                let _ = self.send_session(at, self.index_of(&to), message, delay);
            }
            Action::Sign { session, sequence, positions, to, coordinator, .. } => {
                let peers = [to, coordinator];
                self.sign((at, chain), (session, sequence), positions, peers, delay, following);
            }
            Action::Forget(session) => {
                stage.choosers.remove(&session);
                stage.coordinators.remove(&session);
                stage.claims.remove(&session);
                stage.retained.remove(&session);
                stage.lied.remove(&session);
                stage.scored.remove(&session);
                if stage.index == 0 {
                    stage.gate.over(&session);
                }
            }
            Action::Drop { sequence, session } => {
                if let (Some(cache), Some(session)) = (stage.caches.remove(&sequence), session) {
                    stage.retained.insert(session, cache);
                }
            }
            Action::Start { start, taken_from } => {
                if let (StartSource::Take { from, .. }, Some(session)) = (start.source, taken_from)
                    && let Some(cache) = stage.caches.get(&from).cloned()
                {
                    stage.retained.insert(session, cache);
                }
                if start.source != StartSource::Empty && stage.scored.contains(&start.session) {
                    return Err(Broken::new(now, format!("node {at} takes a prompt that gives logits from a cache")));
                }
                let cache = match start.source {
                    StartSource::Empty => None,
                    StartSource::Fork { from, tokens } => stage.caches.get(&from).cloned().map(|cache| (cache, tokens)),
                    StartSource::Take { from, tokens } => stage.caches.remove(&from).map(|cache| (cache, tokens)),
                };
                if let StartSource::Fork { from, .. } | StartSource::Take { from, .. } = start.source
                    && stage.lost.contains(&from)
                {
                    stage.lost.insert(start.sequence);
                }
                let layers = stage.layers();
                let cache = cache.map(|(mut cache, tokens)| {
                    cache.truncate(tokens as usize);
                    cache
                });
                stage.caches.insert(start.sequence, cache.unwrap_or_else(|| Cache::new(layers)));
            }
            Action::Compute { rows, tokens } => self.pass(at, chain, rows, &tokens, following)?,
            Action::Frame { to, number, drops, starts, rows } => {
                let activations = if rows.is_empty() { Vec::new() } else { std::mem::take(&mut stage.activations) };
                let frame = Frame { chain, number, drops, starts, rows, activations };
                self.send_along(at, chain, to, SessionMessage::Frame(frame), delay, following);
            }
            Action::Report { to, number } => {
                let tokens = std::mem::take(&mut stage.tokens);
                // A node that deceives itself has only itself to blame.
                let own = self.nodes[at].peer;
                let for_others = tokens.iter().any(|(coordinator, ..)| *coordinator != own);
                let keeps = for_others && self.deviates(at, Deviation::KeepsTokens);
                let tokens: Vec<_> =
                    tokens.into_iter().filter(|(coordinator, ..)| !keeps || *coordinator == own).collect();
                if let Some((first, advances)) = to {
                    let stepped = SessionMessage::Stepped { chain, number, advances };
                    self.send_along(at, chain, first, stepped, delay, following);
                }
                for (coordinator, session, tokens) in tokens {
                    let message = SessionMessage::Tokens { session, tokens };
                    let _ = self.send_session(at, self.index_of(&coordinator), message, delay);
                }
            }
            Action::Break { why } => {
                stage.caches.clear();
                stage.choosers.clear();
                stage.coordinators.clear();
                stage.claims.clear();
                stage.retained.clear();
                stage.lied.clear();
                stage.gate.clear();
                stage.broken = true;
                let (key, epoch, elsewhere) = (stage.key, chain.epoch, stage.broke_elsewhere);
                self.checks.chain_broke(self.now, at, chain, &why);
                // Where it broke is told by the stages where it did: others are not to be blamed.
                if !elsewhere {
                    self.chain_broke(at, key, epoch)?;
                }
            }
            Action::Count(_) => {}
        }
        Ok(())
    }

    /// Sends what the next stage must have.
    fn send_along(
        &mut self,
        at: usize,
        chain: ChainId,
        to: PeerId,
        message: SessionMessage,
        delay: Micros,
        following: &mut Vec<Action>,
    ) {
        if let Err(error) = self.send_session(at, self.index_of(&to), message, delay) {
            self.tell_stage(at, chain, Event::NotSent { to, why: error.message() }, following);
        }
    }
}

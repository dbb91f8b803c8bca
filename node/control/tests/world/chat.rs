//! Requests to models: the state of each is the binary's; this file finds routes, sends, and hands tokens to the reader.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use libp2p_identity::PeerId;
use pangea_control::devices::{Kind, models_bytes};
use pangea_control::generation::{
    Action, Event, Exclusions, GenerationState, NewTokens, PromptPace, Reply, Route, Setup,
};
use pangea_control::jobs::{self, Api, Ending, JobId, JobKind, Owner};
use pangea_control::placement::{missing_layers, newest_usable, pool_facts};
use pangea_control::session::{ChainId, SessionId, StageAt};
use pangea_control::trust::{AuditPolicy, Verdict};
use pangea_units::{Digest, Error, ErrorKind};

use crate::chat_checks::Terms;
use crate::chat_messages::{Open, SessionMessage};
use crate::checks::Broken;
use crate::claims::{Gathered, encode};
use crate::deviations::Deviation;
use crate::node::{digest, size};
use crate::pseudo_model::undisturbed;
use crate::scenario::ChatSpec;
use crate::world::{Happening, World};

/// A request under way.
pub(crate) struct Chat {
    /// Which of the world's chats.
    number: usize,
    pub(crate) state: GenerationState,
    pub(crate) asked: ChatSpec,
    model: Digest,
    /// Tokens that the reader has not been given, by answer.
    ready: VecDeque<(usize, Vec<u32>)>,
    /// What the stages of each answer signed.
    pub(crate) gathered: BTreeMap<usize, Gathered>,
}

/// The requests of a run.
#[derive(Default)]
pub(crate) struct Chats {
    /// By job.
    pub(crate) chats: BTreeMap<JobId, Chat>,
    /// Whose each session is.
    sessions: BTreeMap<SessionId, JobId>,
    /// Whether this node loads a model for itself alone.
    loading: bool,
}

impl Chats {
    /// Whether nothing is left of any request.
    pub(crate) fn is_empty(&self) -> bool {
        self.chats.is_empty() && self.sessions.is_empty()
    }
}

impl World {
    /// The next chat of the scenario is asked of its node.
    pub(crate) fn ask(&mut self, number: usize) -> Result<(), Broken> {
        let asked = self.chats_asked[number].clone();
        let (now, node) = (self.now, asked.node);
        let prompt = asked.prompt();
        let patience = PromptPace::default().patience(prompt.len());
        let expected = (0..asked.choices as u64)
            .map(|choice| undisturbed(size().layers, asked.seed + choice, &prompt, asked.max_new_tokens))
            .collect();
        let runs = self.nodes[node].run.is_some();
        let held = asked.audit == Some(1.0);
        let trusted = self.nodes[node].spec.deviations.is_empty();
        self.checks.chat_asked(now, number, node, runs, Terms { expected, held, trusted });
        let local = self.nodes[node].peer;
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        let time = run.time(now);
        let (subject, owner) = (format!("model{}", asked.model), Owner::of(Api::Http));
        let job = jobs::JobSpec { kind: JobKind::Generation, subject, owner, deadline: None };
        let (id, event) = match run.jobs.submit(job, time) {
            Ok(submitted) => submitted,
            Err(error) => return self.checks.chat_ended(now, number, Err(error.kind())),
        };
        self.checks.job_event(now, node, &event)?;
        let audit = asked.audit.and_then(|share| AuditPolicy::new(share).ok());
        let setup = Setup {
            local,
            prompt,
            choices: asked.choices,
            max_new_tokens: asked.max_new_tokens,
            grammar: false,
            prompt_logprobs: false,
            patience,
            audit,
            one_server: false,
            arrived: time,
        };
        let model = digest(asked.model);
        let chat = Chat {
            number,
            state: GenerationState::new(setup),
            asked,
            model,
            ready: VecDeque::new(),
            gathered: BTreeMap::new(),
        };
        let Some(run) = &mut self.nodes[node].run else { return Ok(()) };
        run.chats.chats.insert(id, chat);
        self.chat_jobs.insert(number, id);
        self.chat(node, id, Event::Start)
    }

    /// Nobody waits for an answer any more.
    pub(crate) fn hang_up(&mut self, number: usize) -> Result<(), Broken> {
        let node = self.chats_asked[number].node;
        match self.chat_jobs.get(&number).copied() {
            Some(id) if self.checks.is_chat_open(number) => self.tell_jobs(node, jobs::Event::Cancel(id)),
            _ => Ok(()),
        }
    }

    /// Whoever works on a request is to end that.
    pub(crate) fn cancel_chat(&mut self, node: usize, job: JobId) -> Result<(), Broken> {
        self.end_chat(node, job, Err(ErrorKind::Cancelled), Ending::Cancelled)
    }

    /// Something is said to a coordinator.
    pub(crate) fn tell_chat(&mut self, at: usize, from: PeerId, message: SessionMessage) -> Result<(), Broken> {
        let (session, reply) = match message {
            SessionMessage::Accepted { session } => (session, Reply::Accepted),
            SessionMessage::Refused { session, kind, message, retry_after } => {
                (session, Reply::Refused { kind, message, retry_after })
            }
            SessionMessage::Failed { session, kind, message, .. } => (session, Reply::Failed { kind, message }),
            SessionMessage::Commit { session, claims, .. } => (session, Reply::Committed { claims: encode(&claims) }),
            SessionMessage::Tokens { session, tokens } => (session, Reply::Tokens(tokens)),
            _ => return Ok(()),
        };
        let Some(run) = &self.nodes[at].run else { return Ok(()) };
        match run.chats.sessions.get(&session).copied() {
            Some(job) => self.chat(at, job, Event::Reply { from, session, reply }),
            None => Ok(()),
        }
    }

    /// A peer cannot be reached any more.
    pub(crate) fn chats_lost(&mut self, at: usize, peer: PeerId) -> Result<(), Broken> {
        for job in self.chats_of(at, |_| true) {
            self.chat(at, job, Event::PeerGone { peer, why: "it is gone".to_owned() })?;
        }
        Ok(())
    }

    /// There may be other routes.
    pub(crate) fn routes_changed(&mut self, at: usize) -> Result<(), Broken> {
        for job in self.chats_of(at, |chat| chat.state.is_unrouted()) {
            self.chat(at, job, Event::RoutesChanged)?;
        }
        Ok(())
    }

    /// Requests hear of the time.
    pub(crate) fn chat_ticks(&mut self, at: usize) -> Result<(), Broken> {
        for job in self.chats_of(at, |chat| chat.state.needs_ticks()) {
            let unplaceable = self.unplaceable(at, job);
            self.chat(at, job, Event::Tick { unplaceable })?;
        }
        Ok(())
    }

    fn chats_of(&self, at: usize, which: impl Fn(&Chat) -> bool) -> Vec<JobId> {
        let Some(run) = &self.nodes[at].run else { return Vec::new() };
        run.chats.chats.iter().filter(|(_, chat)| which(chat)).map(|(job, _)| *job).collect()
    }

    pub(crate) fn chat(&mut self, at: usize, job: JobId, event: Event) -> Result<(), Broken> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.now;
            let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
            let time = run.time(now);
            let Some(chat) = run.chats.chats.get_mut(&job) else { return Ok(()) };
            for action in chat.state.handle(event, time) {
                events.extend(self.perform_chat(at, job, action)?);
            }
        }
        self.give_tokens(at, job)
    }

    fn perform_chat(&mut self, at: usize, job: JobId, action: Action) -> Result<Option<Event>, Broken> {
        let Some(run) = &mut self.nodes[at].run else { return Ok(None) };
        let Some(chat) = run.chats.chats.get_mut(&job) else { return Ok(None) };
        match action {
            Action::FindRoute { choices, exclusions } => {
                let model = chat.model;
                let Some(Route { chain, stages }) = self.best_route(at, model, &exclusions)? else {
                    return Ok(Some(Event::NoRoute));
                };
                let bits = [self.chance.bits(), self.chance.bits()].map(u64::to_le_bytes).concat();
                let id = SessionId(bits.try_into().unwrap());
                return Ok(Some(Event::RouteFound { choices, id, chain, stages }));
            }
            Action::RequestLocal => {
                let model = chat.model;
                self.request_local(at, model);
            }
            Action::Open { choices, id, route, from_prompt } => {
                let opened = self.open_chat(at, job, choices.clone(), id, route, from_prompt);
                return Ok(opened.err().map(|why| Event::OpenFailed { choices, why: why.message().to_owned() }));
            }
            Action::Forget { session } => drop(run.chats.sessions.remove(&session)),
            Action::Close { chain, session, first_stage, commit } => {
                let close = SessionMessage::Close { chain, session, commit };
                // A first stage that is gone needs no word, and signs nothing, which shows in time.
                let _ = self.send_session(at, self.index_of(&first_stage), close, 0);
            }
            Action::NewTokens { choice, new: NewTokens { tokens, ended, .. } } => {
                chat.ready.push_back((choice, tokens.iter().map(|out| out.token).collect()));
                return Ok(ended.map(|_| Event::AnswerComplete { choice }));
            }
            Action::FailOver { choice, .. } => {
                let left = chat.state.segments(choice).iter().rfind(|segment| segment.ended.is_some());
                let stages = left.map(|segment| segment.stages.clone());
                for stage in stages.unwrap_or_default() {
                    let of = self.index_of(&stage.peer);
                    self.noticed(of, &[Deviation::KeepsTokens, Deviation::StallsSession]);
                }
                self.checks.counts.add("failovers");
            }
            Action::CheckClaims { choice, segment, claims } => {
                // What the stages of a left chain signed is only kept.
                let is_last = segment + 1 == chat.state.segments(choice).len();
                let fault = if is_last { self.check_claims(at, job, choice, &claims)? } else { None };
                return Ok(Some(Event::ClaimsChecked { choice, segment, fault }));
            }
            Action::Suspect { peer, reason } => {
                self.suspect(at, self.index_of(&peer), reason)?;
            }
            Action::KeepReceipt { choice } => {
                let random = Some(self.chance.bits());
                let suspect = self.has_suspect(at, job, choice);
                return Ok(Some(Event::ReceiptKept { choice, random, suspect }));
            }
            Action::Audit { choice, awaited } => self.audit(at, job, choice, awaited),
            Action::Recompute => {
                chat.ready.clear();
                self.checks.counts.add("recomputed chats");
            }
            Action::Refuse { error, .. } | Action::Fail(error) => {
                let ending = Ending::Failed { kind: error.kind(), message: error.message().to_owned() };
                self.end_chat(at, job, Err(error.kind()), ending)?;
            }
            Action::Done(conclusion) => {
                self.give_tokens(at, job)?;
                let ending = Ending::Done { verdict: Some(conclusion.verdict) };
                self.end_chat(at, job, Ok(conclusion.verdict), ending)?;
            }
        }
        Ok(None)
    }

    /// The reader gets what may be told.
    fn give_tokens(&mut self, at: usize, job: JobId) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let Some(chat) = run.chats.chats.get_mut(&job).filter(|chat| !chat.state.is_held()) else { return Ok(()) };
        let number = chat.number;
        let ready: Vec<_> = chat.ready.drain(..).collect();
        ready.into_iter().try_for_each(|(choice, tokens)| self.checks.chat_tokens(now, number, choice, &tokens))
    }

    /// Nothing follows: sessions that are open are closed.
    fn end_chat(
        &mut self,
        at: usize,
        job: JobId,
        outcome: Result<Verdict, ErrorKind>,
        ending: Ending,
    ) -> Result<(), Broken> {
        let now = self.now;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let time = run.time(now);
        let Some(mut chat) = run.chats.chats.remove(&job) else { return Ok(()) };
        for action in chat.state.handle(Event::Cancelled, time) {
            match action {
                Action::Forget { session } => {
                    if let Some(run) = &mut self.nodes[at].run {
                        run.chats.sessions.remove(&session);
                    }
                }
                Action::Close { chain, session, first_stage, commit } => {
                    let close = SessionMessage::Close { chain, session, commit };
                    let _ = self.send_session(at, self.index_of(&first_stage), close, 0);
                }
                _ => {}
            }
        }
        if let Some(run) = &mut self.nodes[at].run {
            run.chats.sessions.retain(|_, of| *of != job);
        }
        self.checks.chat_ended(now, chat.number, outcome)?;
        self.end_job(at, job, ending)
    }

    fn open_chat(
        &mut self,
        at: usize,
        job: JobId,
        choices: Range<usize>,
        id: SessionId,
        route: Route,
        from_prompt: bool,
    ) -> Result<(), Error> {
        let coordinator = self.nodes[at].peer;
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        let Some(chat) = run.chats.chats.get(&job) else { return Ok(()) };
        let answer = chat.state.answer(choices.start);
        let first_stage = route.stages[0].peer;
        let open = Open {
            session: id,
            coordinator,
            chain: route.chain,
            stages: route.stages,
            choices: choices.len() as u16,
            sequence: None,
            prompt_len: answer.prompt_len(),
            max_new_tokens: chat.asked.max_new_tokens,
            seed: chat.asked.seed + choices.start as u64,
            scored: chat.asked.scored && from_prompt,
            tokens: answer.tokens().to_vec(),
        };
        for index in 0..choices.len() {
            run.chats.sessions.insert(id.choice(index as u16), job);
        }
        let first = self.index_of(&first_stage);
        let held = if first != at && from_prompt { self.holds_request(first) } else { 0 };
        self.send_session(at, first, SessionMessage::Open(Box::new(open)), held)
    }

    // Routes.

    fn best_route(&mut self, at: usize, model: Digest, without: &Exclusions) -> Result<Option<Route>, Broken> {
        let Some(view) = self.view_of(at) else { return Ok(None) };
        let local = self.nodes[at].peer;
        let Some(run) = &self.nodes[at].run else { return Ok(None) };
        let reaches = |peer: &PeerId| self.reaches(at, self.index_of(peer));
        let is_broken = |chain: &ChainId| run.stages.get(chain).is_some_and(|stage| stage.broken);
        let time = run.time(self.now);
        let is_suspect = |peer: &PeerId| run.directory.is_suspect(peer, time);
        let alone = ChainId { model, epoch: 0 };
        let has_alone = run.stages.contains_key(&alone) && !without.peers.contains(&local);
        let stages = vec![StageAt { peer: local, layers: 0..size().layers }];
        let alone = has_alone.then_some(Route { chain: alone, stages });
        let newest = newest_usable(&view, &model, (&without.peers, &without.epochs), is_suspect, reaches, is_broken);
        let Some(newest) = newest else { return Ok(alone) };
        let sole = newest.stages.len() == 1 && newest.stages[0].peer == local;
        if alone.is_some() && (sole || newest.stages.iter().any(|stage| is_suspect(&stage.peer))) {
            return Ok(alone);
        }
        let chain = ChainId { model, epoch: newest.epoch };
        self.start_pending(at, chain)?;
        let stages = newest.stages.into_iter().map(|stage| StageAt { peer: stage.peer, layers: stage.layers });
        Ok(Some(Route { chain, stages: stages.collect() }))
    }

    fn fits_here(&self, at: usize, model: Digest) -> bool {
        let spec = &self.nodes[at].spec;
        let has_file = self.nodes[at].run.as_ref().is_some_and(|run| run.has_file(&model));
        has_file && size().stage_bytes(&(0..size().layers)) <= models_bytes(spec.memory_bytes)
    }

    fn unplaceable(&self, at: usize, job: JobId) -> Option<String> {
        let run = self.nodes[at].run.as_ref()?;
        let chat = run.chats.chats.get(&job).filter(|chat| chat.state.is_unrouted())?;
        let view = run.view(self.now);
        let has_file = run.has_file(&chat.model);
        if !has_file && !missing_layers(&view, &chat.model, size().layers, |_| false).is_empty() {
            return Some("layers are missing".to_owned());
        }
        let why = pool_facts::refusal(&view, &chat.model)?;
        (!self.fits_here(at, chat.model)).then_some(why)
    }

    /// Loads all layers here for a request that nobody else takes.
    fn request_local(&mut self, at: usize, model: Digest) {
        let fits = self.fits_here(at, model);
        let takes = self.chance.within(200_000..2_000_000);
        let Some(run) = &mut self.nodes[at].run else { return };
        let has = run.stages.contains_key(&ChainId { model, epoch: 0 });
        if !fits || has || std::mem::replace(&mut run.chats.loading, true) {
            return;
        }
        let run = run.number;
        self.after(takes, Happening::LoadedAlone { node: at, run, model });
    }

    /// All layers are here, if there is memory for them.
    pub(crate) fn loaded_alone(&mut self, at: usize, model: Digest) -> Result<(), Broken> {
        let key = World::whole(model);
        let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
        run.chats.loading = false;
        if !run.layers.has(&key) {
            let (weights, sessions) = (size().weight_bytes(&(key.1..key.2)), size().session_bytes(&(key.1..key.2)));
            let Ok(weights) = self.lease(at, Kind::Weights, weights)? else { return Ok(()) };
            let Ok(sessions) = self.lease(at, Kind::Sessions, sessions)? else { return Ok(()) };
            let Some(run) = &mut self.nodes[at].run else { return Ok(()) };
            run.layers.insert(key, weights, sessions);
            self.checks.counts.add("models loaded alone");
        }
        self.start_alone(at, key);
        self.routes_changed(at)
    }
}

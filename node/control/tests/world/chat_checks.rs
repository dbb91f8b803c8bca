//! What must hold of requests to models: each ends once, its tokens come once and in order, and are those of a node that
//! nothing disturbs.

use std::collections::BTreeMap;

use pangea_control::session::{ChainId, StageAt};
use pangea_control::trust::Verdict;
use pangea_units::ErrorKind;

use crate::checks::{Broken, Check, Checks};
use crate::deviations::Deviation;
use crate::scenario::Micros;
use crate::world::World;

/// What a request's answers must be.
pub(crate) struct Terms {
    /// What each answer is where nothing is disturbed.
    pub(crate) expected: Vec<Vec<u32>>,
    /// Whether nothing is given before it is audited.
    pub(crate) held: bool,
    /// Whether its coordinator is honest.
    pub(crate) trusted: bool,
}

/// A request.
struct Chat {
    node: usize,
    terms: Terms,
    /// How much of each answer its reader has.
    given: Vec<usize>,
    /// How it ended; none while it has not, or its node did.
    outcome: Option<Result<(), ErrorKind>>,
    open: bool,
    /// Whether its reader has a token that is wrong.
    wrong: bool,
}

/// What is known of requests.
#[derive(Default)]
pub(crate) struct ChatChecks {
    chats: BTreeMap<usize, Chat>,
}

impl Checks {
    /// A chat is asked of a node, or would be if the node ran.
    pub(crate) fn chat_asked(&mut self, now: Micros, chat: usize, node: usize, runs: bool, terms: Terms) {
        self.log(now, format_args!("chat {chat} is asked of node {node}, which runs: {runs}"));
        self.counts.add("chats");
        let given = vec![0; terms.expected.len()];
        let chat_of = Chat { node, terms, given, outcome: None, open: runs, wrong: false };
        self.chats.chats.insert(chat, chat_of);
    }

    /// Whether a chat has not ended.
    pub(crate) fn is_chat_open(&self, chat: usize) -> bool {
        self.chats.chats.get(&chat).is_some_and(|chat| chat.open)
    }

    /// Tokens that the reader of a chat has, of all answers.
    pub(crate) fn chat_given(&self, chat: usize) -> usize {
        self.chats.chats.get(&chat).map_or(0, |chat| chat.given.iter().sum())
    }

    /// How a chat ended by itself.
    pub(crate) fn chat_outcome(&self, chat: usize) -> Option<Result<(), ErrorKind>> {
        self.chats.chats.get(&chat)?.outcome
    }

    /// The reader is given tokens of an answer.
    pub(crate) fn chat_tokens(
        &mut self,
        now: Micros,
        number: usize,
        choice: usize,
        tokens: &[u32],
    ) -> Result<(), Broken> {
        self.evaluated(Check::TokensAreRight);
        let lied = self.lied_in_sessions();
        let Some(chat) = self.chats.chats.get_mut(&number).filter(|chat| chat.open) else {
            return Err(Broken::new(now, format!("chat {number} is given tokens after its end")));
        };
        let from = chat.given[choice];
        let expected = chat.terms.expected[choice].get(from..from + tokens.len());
        let is_wrong = expected != Some(tokens);
        chat.wrong |= is_wrong && chat.terms.trusted;
        if is_wrong && chat.terms.trusted && (!lied || chat.terms.held) {
            let expected = chat.terms.expected[choice].clone();
            let what = format!("answer {choice} of chat {number} goes on with {tokens:?} at {from} of {expected:?}");
            return Err(Broken::new(now, what));
        }
        chat.given[choice] += tokens.len();
        Ok(())
    }

    /// A chat ended: with all its tokens, or for a reason.
    pub(crate) fn chat_ended(
        &mut self,
        now: Micros,
        number: usize,
        outcome: Result<Verdict, ErrorKind>,
    ) -> Result<(), Broken> {
        let (lied, refused) = (self.lied_in_sessions(), self.did(Deviation::RefusesSession));
        self.log(now, format_args!("chat {number} ends: {outcome:?}"));
        self.evaluated(Check::ChatsEnd);
        let Some(chat) = self.chats.chats.get_mut(&number).filter(|chat| chat.open) else {
            return Err(Broken::new(now, format!("chat {number} ends twice")));
        };
        (chat.open, chat.outcome) = (false, Some(outcome.map(drop)));
        let whole = chat.given.iter().zip(&chat.terms.expected).all(|(given, expected)| *given == expected.len());
        let is_wrong = chat.wrong || !whole;
        match outcome {
            _ if !chat.terms.trusted => Ok(()),
            Ok(verdict) if !is_wrong => {
                self.counts.add(match verdict {
                    Verdict::Audited => "audited answers",
                    Verdict::Local => "local answers",
                    _ => "unchecked answers",
                });
                self.counts.add("answered chats");
                Ok(())
            }
            Ok(Verdict::Unchecked) if lied => {
                self.counts.add("wrong answers that are called unchecked");
                Ok(())
            }
            Ok(verdict) if chat.wrong => {
                Err(Broken::new(now, format!("chat {number} is wrong and called {verdict:?}")))
            }
            // Two identities of one node that say the same are believed.
            Err(ErrorKind::InvalidInput) if refused > 1 => Ok(()),
            Ok(_) => Err(Broken::new(now, format!("chat {number} ends without all its tokens"))),
            Err(
                ErrorKind::Overloaded | ErrorKind::Unavailable | ErrorKind::Cancelled | ErrorKind::VerificationFailed,
            ) => {
                self.counts.add("failed chats");
                Ok(())
            }
            Err(kind) => Err(Broken::new(now, format!("chat {number} fails with {kind:?}"))),
        }
    }

    /// A node starts its stage of a chain.
    pub(crate) fn chain_started(&mut self, now: Micros, at: usize, chain: ChainId, index: usize) {
        self.counts.add("stages of chains");
        self.log(now, format_args!("node {at} starts stage {index} of {}", chain.epoch));
    }

    /// A chain broke at a node.
    pub(crate) fn chain_broke(&mut self, now: Micros, at: usize, chain: ChainId, why: &str) {
        self.counts.add("chains that broke");
        self.log(now, format_args!("node {at}: chain {} broke: {why}", chain.epoch));
    }

    /// A node's process ends, and its requests with it.
    pub(super) fn forget_chats_of(&mut self, node: usize) {
        self.chats.chats.values_mut().filter(|chat| chat.node == node).for_each(|chat| chat.open = false);
    }

    /// Every chat has ended.
    pub(crate) fn all_chats_ended(&self, now: Micros) -> Result<(), Broken> {
        match self.chats.chats.iter().find(|(_, chat)| chat.open && chat.terms.trusted) {
            Some((number, _)) => Err(Broken::new(now, format!("chat {number} never ended"))),
            None => Ok(()),
        }
    }
}

/// Nothing of any session is left: not at its coordinator, not at a stage, whoever of them is gone. A stage behind one that kept
/// its signature or its turn back has its sessions until their lease ends, and so has a node that with a term of its own did not
/// hear that the chain broke; whether there is such a one.
pub(crate) fn sessions_are_over(world: &World, leases_ended: bool) -> Result<bool, Broken> {
    let mut leased = false;
    for (at, node) in world.nodes.iter().enumerate() {
        let Some(run) = &node.run else { continue };
        if !run.chats.is_empty() && !world.checks.is_deviant(at) {
            return Err(Broken::new(world.now, format!("node {at} has requests left")));
        }
        for (chain, stage) in &run.stages {
            let (sessions, caches) = (stage.protocol.sessions(), stage.caches());
            if sessions == 0 && caches <= crate::node::KEPT {
                continue;
            }
            let kept_waiting = |stage: &StageAt| world.checks.kept_others_waiting(world.index_of(&stage.peer));
            leased = world.checks.is_deviant(at) || stage.stages.iter().any(kept_waiting);
            if leases_ended || !leased {
                let what = format!("node {at} has {sessions} sessions and {caches} caches left in {}", chain.epoch);
                return Err(Broken::new(world.now, what));
            }
        }
    }
    Ok(leased)
}

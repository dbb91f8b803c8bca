//! What must hold of requests to models: each ends once, its tokens come once and in order, and are those of a node that
//! nothing disturbs.

use std::collections::BTreeMap;

use pangea_control::session::ChainId;
use pangea_units::ErrorKind;

use crate::checks::{Broken, Check, Checks};
use crate::scenario::Micros;
use crate::world::World;

/// A request.
struct Chat {
    node: usize,
    /// What each answer is where nothing is disturbed.
    expected: Vec<Vec<u32>>,
    /// How much of each answer its reader has.
    given: Vec<usize>,
    /// How it ended; none while it has not, or its node did.
    outcome: Option<Result<(), ErrorKind>>,
    open: bool,
}

/// What is known of requests.
#[derive(Default)]
pub(crate) struct ChatChecks {
    chats: BTreeMap<usize, Chat>,
}

impl Checks {
    /// A chat is asked of a node, or would be if the node ran.
    pub(crate) fn chat_asked(&mut self, now: Micros, chat: usize, node: usize, runs: bool, expected: Vec<Vec<u32>>) {
        self.log(now, format_args!("chat {chat} is asked of node {node}, which runs: {runs}"));
        self.counts.add("chats");
        let given = vec![0; expected.len()];
        self.chats.chats.insert(chat, Chat { node, expected, given, outcome: None, open: runs });
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
        let Some(chat) = self.chats.chats.get_mut(&number).filter(|chat| chat.open) else {
            return Err(Broken::new(now, format!("chat {number} is given tokens after its end")));
        };
        let from = chat.given[choice];
        let expected = chat.expected[choice].get(from..from + tokens.len());
        if expected != Some(tokens) {
            let expected = chat.expected[choice].clone();
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
        outcome: Result<(), ErrorKind>,
    ) -> Result<(), Broken> {
        self.log(now, format_args!("chat {number} ends: {outcome:?}"));
        self.evaluated(Check::ChatsEnd);
        let Some(chat) = self.chats.chats.get_mut(&number).filter(|chat| chat.open) else {
            return Err(Broken::new(now, format!("chat {number} ends twice")));
        };
        (chat.open, chat.outcome) = (false, Some(outcome));
        let whole = chat.given.iter().zip(&chat.expected).all(|(given, expected)| *given == expected.len());
        match outcome {
            Ok(()) if whole => {
                self.counts.add("answered chats");
                Ok(())
            }
            Ok(()) => Err(Broken::new(now, format!("chat {number} ends without all its tokens"))),
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
        match self.chats.chats.iter().find(|(_, chat)| chat.open) {
            Some((number, _)) => Err(Broken::new(now, format!("chat {number} never ended"))),
            None => Ok(()),
        }
    }
}

/// Nothing of any session is left: not at its coordinator, not at a stage, whoever of them is gone.
pub(crate) fn sessions_are_over(world: &World) -> Result<(), Broken> {
    for (at, node) in world.nodes.iter().enumerate() {
        let Some(run) = &node.run else { continue };
        if !run.chats.is_empty() {
            return Err(Broken::new(world.now, format!("node {at} has requests left")));
        }
        for (chain, stage) in &run.stages {
            let (sessions, caches) = (stage.protocol.sessions(), stage.caches());
            if sessions > 0 || caches > crate::node::KEPT {
                let what = format!("node {at} has {sessions} sessions and {caches} caches left in {}", chain.epoch);
                return Err(Broken::new(world.now, what));
            }
        }
    }
    Ok(())
}

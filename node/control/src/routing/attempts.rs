//! The attempts of one request that is tunnelled to a server of its model: which server is tried when, a second one beside a silent
//! first, whose answer the client gets, and how the request ends when no server is left. Nothing is sent here.
//!
//! Once the client has received a part of an answer, no other server is tried: two servers may draw different answers.

use std::time::Duration;

use libp2p_identity::PeerId;
use pangea_units::ErrorKind;

use crate::Time;

/// Servers that work on one request at once: the second costs a place in another queue, and a third would cost more than it gains.
pub const AT_ONCE_MAX: usize = 2;

/// Servers tried for one request: with all of these full or broken, the next one is not likely to be better.
pub const TRIED_MAX: usize = 4;

/// Servers that must refuse a request as wrong before that is believed, where there are so many.
const WRONG_BELIEVED: usize = 2;

/// Input of the attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The request is to be answered.
    Begin,
    /// The request was sent to a server, as [`Action::FindServer`] asked.
    Sent(PeerId),
    /// There is no server that was not tried.
    NoServer,
    /// A server has computed a part of the answer.
    Answers(PeerId),
    /// The client receives the first part of the answer of the server that is followed.
    Given,
    /// A server refused the request, or its answer failed.
    Failed {
        /// The server.
        server: PeerId,
        /// Reason, for programs.
        kind: ErrorKind,
        /// Delay after which the server may take the request, if it told one.
        retry_after: Option<Duration>,
    },
    /// Time passed.
    Tick,
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send the request to the best server that was not tried; [`Event::Sent`] or [`Event::NoServer`] follows.
    FindServer,
    /// The server's answer is not wanted any more.
    Cancel(PeerId),
    /// The client gets this server's answer.
    Follow(PeerId),
    /// The request fails.
    GiveUp(GivenUp),
}

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// As this server said.
    AsSaid(PeerId),
    /// Every server is full.
    Full {
        /// The shortest delay after which one of them may take a request, if any told one.
        retry_after: Option<Duration>,
    },
    /// No server could be asked.
    NoServer,
}

#[derive(Debug)]
struct Running {
    server: PeerId,
    since: Time,
}

#[derive(Debug)]
struct Failure {
    server: PeerId,
    kind: ErrorKind,
    retry_after: Option<Duration>,
}

/// The attempts of one request.
#[derive(Debug)]
pub struct Attempts {
    /// Silence of a server after which another one is tried beside it.
    patience: Duration,
    tried: Vec<PeerId>,
    running: Vec<Running>,
    failures: Vec<Failure>,
    followed: Option<PeerId>,
    /// Whether a server is being looked for.
    finding: bool,
    /// Whether there was no server to be tried beside the one that runs.
    alone: bool,
    given: bool,
    over: bool,
}

impl Attempts {
    /// The attempts of a request whose answer should begin within `patience`.
    pub fn new(patience: Duration) -> Attempts {
        Attempts {
            patience,
            tried: Vec::new(),
            running: Vec::new(),
            failures: Vec::new(),
            followed: None,
            finding: false,
            alone: false,
            given: false,
            over: false,
        }
    }

    /// Servers that were tried, in order.
    pub fn tried(&self) -> &[PeerId] {
        &self.tried
    }

    /// Whether another server may be tried beside a silent one, so that [`Event::Tick`] is of use.
    pub fn needs_ticks(&self) -> bool {
        !self.over && self.followed.is_none()
    }

    /// Processes an event.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        if self.over {
            // The request was given up while this server was looked for.
            return if let Event::Sent(server) = event { vec![Action::Cancel(server)] } else { Vec::new() };
        }
        match event {
            Event::Begin => self.find(),
            Event::Sent(server) => {
                self.finding = false;
                self.tried.push(server);
                if self.followed.is_some() {
                    // An answer began while this server was looked for.
                    return vec![Action::Cancel(server)];
                }
                self.running.push(Running { server, since: now });
                Vec::new()
            }
            Event::NoServer => {
                self.finding = false;
                self.alone = true;
                if self.running.is_empty() { self.give_up() } else { Vec::new() }
            }
            Event::Answers(server) => self.answers(server),
            Event::Given => {
                self.given = self.followed.is_some();
                Vec::new()
            }
            Event::Failed { server, kind, retry_after } => self.failed(server, kind, retry_after),
            Event::Tick => self.tick(now),
        }
    }

    fn find(&mut self) -> Vec<Action> {
        if self.finding {
            return Vec::new();
        }
        self.finding = true;
        vec![Action::FindServer]
    }

    fn answers(&mut self, server: PeerId) -> Vec<Action> {
        if self.followed.is_some() || self.running.iter().all(|running| running.server != server) {
            return Vec::new();
        }
        self.followed = Some(server);
        let others = self.running.extract_if(.., |running| running.server != server);
        let mut actions: Vec<Action> = others.map(|other| Action::Cancel(other.server)).collect();
        actions.push(Action::Follow(server));
        actions
    }

    fn failed(&mut self, server: PeerId, kind: ErrorKind, retry_after: Option<Duration>) -> Vec<Action> {
        let Some(at) = self.running.iter().position(|running| running.server == server) else { return Vec::new() };
        self.running.remove(at);
        self.failures.push(Failure { server, kind, retry_after });
        if self.given {
            self.over = true;
            return vec![Action::GiveUp(GivenUp::AsSaid(server))];
        }
        if self.followed == Some(server) {
            self.followed = None;
        }
        let wrong = self.failures.iter().filter(|failure| failure.kind == ErrorKind::InvalidInput).count();
        if wrong >= WRONG_BELIEVED {
            let mut actions: Vec<Action> = self.running.drain(..).map(|other| Action::Cancel(other.server)).collect();
            actions.extend(self.give_up());
            return actions;
        }
        match (self.running.is_empty(), self.tried.len() < TRIED_MAX) {
            (false, _) => Vec::new(),
            (true, true) => self.find(),
            (true, false) => self.give_up(),
        }
    }

    fn tick(&mut self, now: Time) -> Vec<Action> {
        let may = self.followed.is_none() && !self.alone && self.tried.len() < TRIED_MAX;
        match &self.running[..] {
            [only] if may && now.since(only.since) >= self.patience => self.find(),
            _ => Vec::new(),
        }
    }

    fn give_up(&mut self) -> Vec<Action> {
        self.over = true;
        let last = |kind: ErrorKind| self.failures.iter().rfind(|failure| failure.kind == kind);
        let given_up = match (last(ErrorKind::InvalidInput), last(ErrorKind::Overloaded), self.failures.last()) {
            (Some(wrong), ..) => GivenUp::AsSaid(wrong.server),
            (None, Some(_), _) => {
                GivenUp::Full { retry_after: self.failures.iter().filter_map(|failure| failure.retry_after).min() }
            }
            (None, None, Some(failure)) => GivenUp::AsSaid(failure.server),
            (None, None, None) => GivenUp::NoServer,
        };
        vec![Action::GiveUp(given_up)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_peers::peer;

    const PATIENCE: Duration = Duration::from_secs(5);
    const START: Time = Time::from_secs(100);

    fn begun() -> Attempts {
        let mut attempts = Attempts::new(PATIENCE);
        assert_eq!(attempts.handle(Event::Begin, START), [Action::FindServer]);
        assert_eq!(attempts.handle(Event::Sent(peer(1)), START), []);
        attempts
    }

    fn failed(number: u64, kind: ErrorKind) -> Event {
        Event::Failed { server: peer(number), kind, retry_after: None }
    }

    #[test]
    fn the_next_server_is_tried_until_the_client_has_a_part_of_the_answer() {
        let mut attempts = begun();
        assert_eq!(attempts.handle(failed(1, ErrorKind::Unavailable), START), [Action::FindServer]);
        attempts.handle(Event::Sent(peer(2)), START);
        assert_eq!(attempts.handle(Event::Answers(peer(2)), START), [Action::Follow(peer(2))]);
        // Nothing was given to the client yet.
        assert_eq!(attempts.handle(failed(2, ErrorKind::Unavailable), START), [Action::FindServer]);
        attempts.handle(Event::Sent(peer(3)), START);
        attempts.handle(Event::Answers(peer(3)), START);
        attempts.handle(Event::Given, START);
        let over = attempts.handle(failed(3, ErrorKind::Unavailable), START);
        assert_eq!(over, [Action::GiveUp(GivenUp::AsSaid(peer(3)))]);
        assert_eq!(attempts.tried(), [peer(1), peer(2), peer(3)]);
    }

    #[test]
    fn a_silent_server_gets_company_once_and_the_first_that_answers_is_followed() {
        let mut attempts = begun();
        assert_eq!(attempts.handle(Event::Tick, START + PATIENCE - Duration::from_millis(1)), []);
        assert_eq!(attempts.handle(Event::Tick, START + PATIENCE), [Action::FindServer]);
        assert_eq!(attempts.handle(Event::Tick, START + PATIENCE), [], "one is being looked for");
        attempts.handle(Event::Sent(peer(2)), START + PATIENCE);
        assert_eq!(attempts.handle(Event::Tick, START + PATIENCE * 9), [], "never three at once");
        let first = attempts.handle(Event::Answers(peer(2)), START + PATIENCE * 9);
        assert_eq!(first, [Action::Cancel(peer(1)), Action::Follow(peer(2))]);
        assert_eq!(attempts.handle(Event::Answers(peer(1)), START + PATIENCE * 9), []);
        assert!(!attempts.needs_ticks());
    }

    #[test]
    fn a_server_found_too_late_is_cancelled_and_one_alone_is_waited_for() {
        let mut attempts = begun();
        attempts.handle(Event::Tick, START + PATIENCE);
        attempts.handle(Event::Answers(peer(1)), START + PATIENCE);
        assert_eq!(attempts.handle(Event::Sent(peer(2)), START + PATIENCE), [Action::Cancel(peer(2))]);
        let mut attempts = begun();
        attempts.handle(Event::Tick, START + PATIENCE);
        assert_eq!(attempts.handle(Event::NoServer, START + PATIENCE), []);
        assert_eq!(attempts.handle(Event::Tick, START + PATIENCE * 2), [], "there is no other");
        assert_eq!(attempts.handle(Event::Answers(peer(1)), START + PATIENCE * 3), [Action::Follow(peer(1))]);
    }

    #[test]
    fn full_servers_are_told_from_broken_ones_and_the_shortest_delay_counts() {
        let mut attempts = begun();
        let full = |number, seconds| Event::Failed {
            server: peer(number),
            kind: ErrorKind::Overloaded,
            retry_after: Some(Duration::from_secs(seconds)),
        };
        attempts.handle(full(1, 7), START);
        attempts.handle(Event::Sent(peer(2)), START);
        attempts.handle(full(2, 3), START);
        let over = attempts.handle(Event::NoServer, START);
        assert_eq!(over, [Action::GiveUp(GivenUp::Full { retry_after: Some(Duration::from_secs(3)) })]);

        let mut attempts = Attempts::new(PATIENCE);
        attempts.handle(Event::Begin, START);
        assert_eq!(attempts.handle(Event::NoServer, START), [Action::GiveUp(GivenUp::NoServer)]);

        let mut attempts = begun();
        for number in 1..TRIED_MAX as u64 {
            assert_eq!(attempts.handle(failed(number, ErrorKind::Internal), START), [Action::FindServer]);
            attempts.handle(Event::Sent(peer(number + 1)), START);
        }
        let last = TRIED_MAX as u64;
        let over = attempts.handle(failed(last, ErrorKind::Internal), START);
        assert_eq!(over, [Action::GiveUp(GivenUp::AsSaid(peer(last)))]);
    }

    #[test]
    fn one_servers_word_that_a_request_is_wrong_is_not_believed_while_there_is_another() {
        let mut attempts = begun();
        assert_eq!(attempts.handle(failed(1, ErrorKind::InvalidInput), START), [Action::FindServer]);
        attempts.handle(Event::Sent(peer(2)), START);
        assert_eq!(attempts.handle(Event::Answers(peer(2)), START), [Action::Follow(peer(2))], "it was right");

        let mut attempts = begun();
        attempts.handle(failed(1, ErrorKind::InvalidInput), START);
        attempts.handle(Event::Sent(peer(2)), START);
        let over = attempts.handle(failed(2, ErrorKind::InvalidInput), START);
        assert_eq!(over, [Action::GiveUp(GivenUp::AsSaid(peer(2)))]);

        let mut attempts = begun();
        attempts.handle(failed(1, ErrorKind::InvalidInput), START);
        assert_eq!(attempts.handle(Event::NoServer, START), [Action::GiveUp(GivenUp::AsSaid(peer(1)))]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Found(bool),
        Answers(usize),
        Given,
        Failed(usize, ErrorKind),
        Wait(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let kind = prop_oneof![
            Just(ErrorKind::InvalidInput),
            Just(ErrorKind::Overloaded),
            Just(ErrorKind::Unavailable),
            Just(ErrorKind::Internal)
        ];
        prop_oneof![
            any::<bool>().prop_map(Step::Found),
            (0usize..6).prop_map(Step::Answers),
            Just(Step::Given),
            (0usize..6, kind).prop_map(|(at, kind)| Step::Failed(at, kind)),
            (0u64..9).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn few_servers_work_at_once_each_is_tried_once_and_only_one_is_followed(
            steps in prop::collection::vec(any_step(), 0..60),
        ) {
            let mut attempts = Attempts::new(PATIENCE);
            let (mut now, mut next, mut finding) = (START, 0u64, false);
            let mut at_work: Vec<PeerId> = Vec::new();
            let (mut followed, mut given, mut over) = (None, false, false);
            let mut events = vec![Event::Begin];
            for step in steps {
                match step {
                    Step::Found(true) if finding => {
                        next += 1;
                        at_work.push(peer(next));
                        finding = false;
                        events.push(Event::Sent(peer(next)));
                    }
                    Step::Found(false) if finding => {
                        finding = false;
                        events.push(Event::NoServer);
                    }
                    Step::Found(_) => {}
                    // A server that is not at work has no say.
                    Step::Answers(at) => events.push(Event::Answers(peer(at as u64))),
                    Step::Given if followed.is_some() && !over => {
                        given = true;
                        events.push(Event::Given);
                    }
                    Step::Given => {}
                    Step::Failed(at, kind) => {
                        events.push(Event::Failed { server: peer(at as u64), kind, retry_after: None });
                    }
                    Step::Wait(seconds) => {
                        now += Duration::from_secs(seconds);
                        events.push(Event::Tick);
                    }
                }
                for event in events.drain(..) {
                    if let Event::Failed { server, .. } = &event {
                        at_work.retain(|other| other != server);
                        if followed == Some(*server) {
                            followed = None;
                        }
                    }
                    for action in attempts.handle(event, now) {
                        prop_assert!(!over || matches!(action, Action::Cancel(_)), "nothing follows the end");
                        match action {
                            Action::FindServer => {
                                prop_assert!(!finding && !given);
                                finding = true;
                            }
                            Action::Cancel(server) => {
                                prop_assert!(at_work.contains(&server) && followed != Some(server));
                                at_work.retain(|other| *other != server);
                            }
                            Action::Follow(server) => {
                                prop_assert!(followed.is_none() && at_work == [server]);
                                followed = Some(server);
                            }
                            Action::GiveUp(_) => {
                                prop_assert!(at_work.is_empty());
                                over = true;
                            }
                        }
                    }
                }
                prop_assert!(at_work.len() <= AT_ONCE_MAX && attempts.tried().len() <= TRIED_MAX);
            }
        }
    }
}

//! The best server for one prompt: the one that is expected to finish it first. A pure function.

use std::time::Duration;

use super::servers::Server;

/// Tokens of the answer that is expected.
const ANSWER_TOKENS: f64 = 64.0;

/// Tokens of a prompt that take as long as one of an answer: prompts are read many rows at a time.
const PROMPT_TOKENS_PER_STEP: f64 = 10.0;

/// How many times as long an answer of another node may be expected to take and still count as equal to one of this node, whose
/// answers nobody has to check.
const OWN_WORTH: f64 = 1.25;

/// Seconds per token of a server that nobody has measured, where none is measured.
const UNKNOWN_STEP_S: f64 = 0.02;

/// The index of the best server for a prompt of so many tokens; `None` without servers. Of equal ones this node comes first, then
/// the lowest peer id.
pub fn choose(servers: &[Server], prompt_tokens: usize) -> Option<usize> {
    let measured = servers.iter().filter(|server| server.tokens_per_s > 0);
    let fastest = measured.map(|server| server.tokens_per_s).max();
    // A server that nobody has measured counts as the fastest: it is measured by its first answer.
    let unknown_s = fastest.map_or(UNKNOWN_STEP_S, |per_s| 1.0 / f64::from(per_s));
    let cost = |server: &Server| expected_s(server, prompt_tokens, unknown_s);
    let order = |a: &Server, b: &Server| {
        cost(a).total_cmp(&cost(b)).then(b.is_local.cmp(&a.is_local)).then(a.peer.cmp(&b.peer))
    };
    (0..servers.len()).min_by(|a, b| order(&servers[*a], &servers[*b]))
}

/// Seconds until the answer is expected to be whole.
fn expected_s(server: &Server, prompt_tokens: usize, unknown_s: f64) -> f64 {
    let step_s = if server.tokens_per_s > 0 { 1.0 / f64::from(server.tokens_per_s) } else { unknown_s };
    let unread = prompt_tokens.saturating_sub(server.known_tokens) as f64;
    let steps = unread / PROMPT_TOKENS_PER_STEP + ANSWER_TOKENS;
    // Each request there takes its share of the steps.
    let alone_s = steps * step_s;
    let shared_s = alone_s * (f64::from(server.load) + 1.0);
    if server.is_local { shared_s } else { shared_s * OWN_WORTH + round_trip_s(server.rtt) }
}

fn round_trip_s(rtt: Duration) -> f64 {
    rtt.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use libp2p_identity::PeerId;
    use proptest::prelude::*;

    use super::*;
    use crate::test_peers::peer;

    fn server(number: u64, load: u32, tokens_per_s: u32) -> Server {
        let rtt = Duration::from_millis(1);
        Server { peer: peer(number), is_local: number == 1, load, tokens_per_s, rtt, known_tokens: 0 }
    }

    fn chosen(servers: &[Server], prompt_tokens: usize) -> Option<PeerId> {
        choose(servers, prompt_tokens).map(|at| servers[at].peer)
    }

    #[test]
    fn an_idle_node_answers_its_own_model() {
        assert_eq!(chosen(&[server(2, 0, 30), server(1, 0, 30)], 10), Some(peer(1)));
        assert_eq!(chosen(&[server(2, 0, 35), server(1, 0, 30)], 10), Some(peer(1)), "slightly faster is not worth it");
        assert_eq!(chosen(&[server(2, 0, 90), server(1, 0, 30)], 10), Some(peer(2)), "three times as fast is");
        assert_eq!(chosen(&[server(2, 0, 0), server(1, 0, 30)], 10), Some(peer(1)), "nobody knows how fast");
        assert_eq!(chosen(&[], 10), None);
    }

    #[test]
    fn parallel_requests_are_shared_by_equal_servers() {
        let mut servers = [server(1, 0, 30), server(2, 0, 30)];
        for _ in 0..16 {
            let at = choose(&servers, 20).unwrap();
            servers[at].load += 1;
        }
        let loads = servers.map(|server| server.load);
        assert!(loads.iter().all(|load| (6..=10).contains(load)), "{loads:?}");
        assert!(loads[0] >= loads[1]);
    }

    #[test]
    fn a_long_prompt_goes_where_it_was_read_unless_that_server_is_much_busier() {
        let knows = |load| Server { known_tokens: 3968, ..server(2, load, 30) };
        assert_eq!(chosen(&[server(1, 0, 30), knows(0)], 4000), Some(peer(2)));
        assert_eq!(chosen(&[server(1, 0, 30), knows(4)], 4000), Some(peer(2)));
        assert_eq!(chosen(&[server(1, 0, 30), knows(8)], 4000), Some(peer(1)));
    }

    fn any_server() -> impl Strategy<Value = Server> {
        (1u64..9, 0u32..40, prop_oneof![Just(0u32), 1..500u32], 0u64..300, 0usize..5000).prop_map(
            |(number, load, tokens_per_s, rtt_ms, known_tokens)| Server {
                rtt: Duration::from_millis(rtt_ms),
                known_tokens,
                ..server(number, load, tokens_per_s)
            },
        )
    }

    proptest! {
        #[test]
        fn the_order_of_servers_does_not_matter_and_a_dominated_one_is_never_taken(
            mut servers in prop::collection::vec(any_server(), 1..8),
            prompt in 0usize..6000,
        ) {
            servers.sort_by_key(|server| server.peer);
            servers.dedup_by_key(|server| server.peer);
            let best = chosen(&servers, prompt).unwrap();
            let taken = servers.iter().find(|server| server.peer == best).unwrap().clone();
            servers.reverse();
            prop_assert_eq!(chosen(&servers, prompt), Some(best));
            for other in servers.iter().filter(|other| other.peer != best && other.is_local >= taken.is_local) {
                let better = other.load < taken.load
                    && other.tokens_per_s > taken.tokens_per_s
                    && taken.tokens_per_s > 0
                    && other.rtt <= taken.rtt
                    && other.known_tokens >= taken.known_tokens;
                prop_assert!(!better, "{:?} instead of {:?}", taken, other);
            }
        }
    }
}

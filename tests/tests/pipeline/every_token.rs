//! A node that computes an answer is lost at every position of the answer: the text is the same, and the pause is short.

use std::time::{Duration, Instant};

use pangea_tests::cluster::Cluster;

use super::*;

/// Tokens of the answer.
const TOKENS: usize = 64;

/// Environment variable with any value: every position, instead of some.
const ALL: &str = "PANGEA_EVERY_TOKEN";

/// Positions of the short form: the first ones, one in the middle, the last.
const SOME: [usize; 4] = [0, 1, 31, 62];

/// Nodes that may be lost, beside the one that the client talks to.
const WORKERS: [&str; 3] = ["two", "three", "four"];

/// A way to lose a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Killed,
    Stopped,
}

#[test]
fn an_answer_is_the_same_whichever_token_its_stage_is_killed_at() {
    let Some(stage) = Stage::set("an_answer_is_the_same_whichever_token_its_stage_is_killed_at") else { return };
    lose_at_every_token(&stage, Loss::Killed);
}

#[test]
fn an_answer_is_the_same_whichever_token_its_stage_falls_silent_at() {
    let Some(stage) = Stage::set("an_answer_is_the_same_whichever_token_its_stage_falls_silent_at") else { return };
    lose_at_every_token(&stage, Loss::Stopped);
}

fn lose_at_every_token(stage: &Stage, loss: Loss) {
    let question = question(LONG, TOKENS);
    let undisturbed = stage.alone(std::slice::from_ref(&question)).remove(0);
    let one = stage.splitting("one").start();
    let start = |name: &str| worker(&stage.cluster, &one, name).start();
    let mut workers: Vec<Node> = WORKERS.iter().map(|name| start(name)).collect();
    let all = std::env::var_os(ALL).is_some();
    let positions: Vec<usize> = if all { (0..TOKENS).collect() } else { SOME.to_vec() };
    let mut pauses = Vec::new();
    for position in &positions {
        loop {
            let lost = a_stage_among(&one, &workers, *position);
            let (pause, failovers) = lose_at(&one, &workers[lost], *position, loss, &question, &undisturbed);
            match loss {
                Loss::Killed => {
                    workers[lost].process.wait();
                    workers[lost] = start(WORKERS[lost]);
                }
                Loss::Stopped => workers[lost].cont(),
            }
            // Without a failover the chain had changed, and the node that was lost computed nothing of this answer.
            if failovers > 0 {
                println!("{loss:?} after {position} tokens: pause of {:.2} s", pause.as_secs_f64());
                pauses.push(pause);
                break;
            }
        }
    }
    pauses.sort();
    let [shortest, median, longest] = [0, pauses.len() / 2, pauses.len() - 1].map(|at| pauses[at].as_secs_f64());
    println!(
        "{loss:?} at {} positions of {TOKENS}: every text the same; pause {shortest:.2} to {longest:.2} s, median {median:.2} s",
        positions.len()
    );
}

fn worker(cluster: &Cluster, one: &Node, name: &str) -> NodeBuilder {
    cluster.node(name).with("--peer", &one.address)
}

/// Index of a worker that computes answers now; `turn` chooses among them.
fn a_stage_among(one: &Node, workers: &[Node], turn: usize) -> usize {
    let mut found = None;
    eventually("a worker computes answers", || {
        let response = post(&one.api, CHAT, &question("Hello", 1));
        if response.status != 200 {
            return false;
        }
        let peers = stages(&response.json()["pangea"]);
        let used =
            (0..workers.len()).map(|at| (at + turn) % workers.len()).find(|at| peers.contains(&workers[*at].peer));
        found = used;
        used.is_some()
    });
    found.unwrap()
}

/// Loses `worker` once `position` tokens of an answer have arrived; the longest pause after that, and the failovers.
fn lose_at(
    one: &Node,
    worker: &Node,
    position: usize,
    loss: Loss,
    question: &Value,
    undisturbed: &str,
) -> (Duration, u64) {
    let mut answer = Streamed::ask(one, question);
    let mut arrived = 0;
    while arrived < position {
        let before = answer.text.len();
        if !answer.next() {
            break;
        }
        arrived += usize::from(answer.text.len() > before);
    }
    match loss {
        Loss::Killed => worker.kill9(),
        Loss::Stopped => worker.stop(),
    }
    let (mut last, mut pause) = (Instant::now(), Duration::ZERO);
    while answer.next() {
        pause = pause.max(last.elapsed());
        last = Instant::now();
    }
    let Streamed { text, pangea, .. } = answer;
    assert_eq!(text, undisturbed, "{loss:?} after {position} tokens: {pangea}");
    (pause, pangea["failovers"].as_u64().unwrap())
}

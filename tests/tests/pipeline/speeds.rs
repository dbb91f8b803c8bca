//! What stages really take: placements follow it, and predictions are near it.

use std::time::Instant;

use super::*;

/// Predicted tokens of a single stream per second, of the chain that a model has now.
fn predicted(node: &Node) -> f64 {
    let plan = node.client().plan_model(SMOLLM2).unwrap();
    plan.current.map_or(0.0, |chain| chain.decode_tokens_per_s)
}

/// Tokens per second of a long answer, from the first to the last.
fn came(node: &Node) -> f64 {
    let mut answer = Streamed::ask(node, &question(LONG, 120));
    answer.has_begun();
    let (began, mut tokens) = (Instant::now(), 0_u32);
    while answer.next() {
        tokens += 1;
    }
    f64::from(tokens) / began.elapsed().as_secs_f64()
}

#[test]
fn a_stage_that_answers_slowly_and_hides_it_is_replaced() {
    let Some(stage) = Stage::set("a_stage_that_answers_slowly_and_hides_it_is_replaced") else { return };
    let one = stage.splitting("one").flag("--force-master").start();
    let slow = stage.cluster.node("slow").with("--peer", &one.address).fault("stall").start();
    computed_by(&one, &[&one, &slow]);
    let other = stage.cluster.node("other").with("--peer", &one.address).start();
    other.process.line("are ready");
    computed_by(&one, &[&one, &slow, &other]);
    // Each token takes a third of a second longer than the stages account for.
    eventually("the slow stage is noticed", || {
        ask(&one, &question(LONG, 12));
        one.process.count("is slower than measured") > 0
    });
    // Until the first two are told apart by what happens without one of them.
    eventually("the slow stage is replaced", || {
        let answer = ask(&one, &question(LONG, 12));
        let mut peers = stages(&answer["pangea"]);
        peers.sort_unstable();
        let mut wanted = [one.peer.clone(), other.peer.clone()];
        wanted.sort_unstable();
        peers == wanted
    });
    ask(&one, &question(LONG, 60));
    let answer = ask(&one, &question(LONG, 12));
    assert!(!stages(&answer["pangea"]).contains(&slow.peer), "{answer}");
}

#[test]
fn ten_requests_make_predictions_of_what_comes() {
    let Some(stage) = Stage::set("ten_requests_make_predictions_of_what_comes") else { return };
    let one = stage.splitting("one").start();
    let two = stage.cluster.node("two").with("--peer", &one.address).start();
    computed_by(&one, &[&one, &two]);
    for _ in 0..10 {
        ask(&one, &question(LONG, 40));
    }
    // Both are measured on the same busy machine; the closest of several pairs counts, because a load comes and goes.
    let mut ratios = Vec::new();
    let close = (0..8).any(|_| {
        let came = came(&one);
        let ratio = predicted(&one) / came;
        ratios.push(ratio);
        (0.75..1.25).contains(&ratio)
    });
    assert!(close, "predicted and measured tokens per second differ: {ratios:?}");
}

//! Stages that die, fall silent and come back while an answer is under way.

use super::*;

#[test]
fn an_answer_survives_the_death_and_the_silence_of_its_stages() {
    let Some(stage) = Stage::set("an_answer_survives_the_death_and_the_silence_of_its_stages") else { return };
    let one = stage.splitting("one").start();
    // The first to die is the master, too.
    let two = stage.cluster.node("two").with("--peer", &one.address).flag("--force-master").start();
    let three = stage.cluster.node("three").with("--peer", &one.address).start();
    computed_by(&one, &[&one, &two, &three]);
    let question = question(LONG, 300);
    let (undisturbed, pangea) = Streamed::ask(&one, &question).finish();
    assert_eq!(pangea["failovers"], 0, "{pangea}");
    assert_eq!(stages(&pangea).len(), 3, "{pangea}");

    let mut answer = Streamed::ask(&one, &question);
    answer.has_begun();
    two.kill9();
    goes_on(&stage, &one, answer, &undisturbed);
    computed_by(&one, &[&one, &three]);

    two.process.wait();
    let back = stage.cluster.node("two").with("--peer", &one.address).start();
    assert_eq!(back.peer, two.peer);
    // A pool takes its time with who has only just come: no need to keep it busy meanwhile.
    back.process.line("are ready");
    computed_by(&one, &[&one, &back, &three]);

    // Only who has answered a ping can be missed.
    eventually("a ping is answered", || [&one, &back].iter().all(|node| node.status_of(&three).rtt_ms > 0.0));
    let mut answer = Streamed::ask(&one, &question);
    answer.has_begun();
    three.stop();
    goes_on(&stage, &one, answer, &undisturbed);
    three.cont();
    // What it still had to say changes nothing any more.
    one.process.nth_line(&format!("Connected to peer {}", three.peer), 2);
    let (text, pangea) = Streamed::ask(&one, &question).finish();
    assert_eq!(text, undisturbed);
    assert_eq!(pangea["failovers"], 0, "{pangea}");
}

/// A disturbed answer is the undisturbed one, and says what happened; its receipt holds.
fn goes_on(stage: &Stage, asked: &Node, answer: Streamed, undisturbed: &str) {
    let (text, pangea) = answer.finish();
    assert_eq!(text, undisturbed, "{pangea}");
    assert!(pangea["failovers"].as_u64().unwrap() >= 1, "it was over before anything happened: {pangea}");
    stage.verify_all(asked, &pangea);
}

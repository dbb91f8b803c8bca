//! The log lines of requests: every node that takes part writes one when the request starts and one when it ends.

use pangea_tests::process::eventually;

use crate::{Mesh, ask, computed_by};

/// The lines of a log about a request, from the word `Request` on.
fn lines(node: &pangea_tests::cluster::Node, request: &str) -> Vec<String> {
    let lines = node.process.lines();
    let about = format!("Request {request} ");
    lines.iter().filter_map(|line| Some(line.text[line.text.find(&about)?..].to_owned())).collect()
}

#[test]
fn every_node_that_takes_part_logs_the_start_and_the_end_of_a_request() {
    let mesh = Mesh::new();
    let one = mesh.serving("one", &["tiny"]).flag("--split").start();
    let two = mesh.cluster.node("two").with("--peer", &one.address).start();
    let mut last = String::new();
    eventually("both nodes compute", || {
        let answer = ask(&one, "tiny", "Hello", 1);
        last = answer["id"].as_str().unwrap().to_owned();
        computed_by(&answer).len() == 2
    });
    let answer = ask(&one, "tiny", "Hello there", 12);
    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
    let ended = format!(", {tokens} tokens, ");
    let line = one.process.lines().into_iter().rfind(|line| line.text.contains(" started: ")).unwrap().text;
    let request = line.split("Request ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    // Each node writes its line when it has closed the session, which is after the client has its answer.
    eventually("both nodes log the end", || {
        [&one, &two].into_iter().all(|node| lines(node, &request).iter().any(|line| line.contains(&ended)))
    });
    let (here, there) = (lines(&one, &request), lines(&two, &request));
    assert_eq!((here.len(), there.len()), (2, 2), "{here:?} {there:?}");
    assert!(here[0].contains("started: tiny, layers ") && here[0].contains(&two.peer), "{here:?}");
    assert!(here[1].contains(&ended) && here[1].contains("tokens/s, "), "{here:?}");
    assert!(there[0].contains("started: this node computes layers ") && there[0].ends_with(&one.peer), "{there:?}");
    assert!(there[1].contains("ended: layers ") && there[1].contains(&ended), "{there:?}");
}

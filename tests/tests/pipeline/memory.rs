//! Models and `--max-memory`: a model that does not fit its owner is placed over the pool, and one that fits nowhere is
//! refused by every surface with the same numbers.

use super::*;

/// The reason that every surface of a node gives for the refused model.
fn refused(node: &Node) -> String {
    let mut why = String::new();
    eventually("the node says that the model has no place", || {
        let ready = get(&node.api, "/readyz");
        let status = ready.status;
        let body = ready.json();
        why = body["why"][SMOLLM2].as_str().unwrap_or_default().to_owned();
        status == 503 && body["models"][SMOLLM2] == "unplaced" && why.contains("MiB")
    });
    why
}

#[test]
fn a_model_that_fits_nowhere_is_refused_by_every_surface_with_the_numbers() {
    let Some(stage) = Stage::set("a_model_that_fits_nowhere") else { return };
    let one = stage.serving("one").max_memory("100M").start();
    let two = stage.cluster.node("two").max_memory("130M").with("--peer", &one.address).start();
    // The reason counts both nodes.
    eventually("both nodes are counted", || {
        [&one, &two].iter().all(|node| refused(node).contains("one 93.8 MiB") && refused(node).contains("two 122 MiB"))
    });
    for node in [&one, &two] {
        let why = refused(node);
        let listed = get(&node.api, "/v1/models").json();
        assert_eq!(listed["data"][0]["pangea"]["state"], "unplaced", "{listed}");
        assert_eq!(listed["data"][0]["pangea"]["why"].as_str(), Some(&*why), "{listed}");
        let plan = stage.cluster.run(&["models", "plan", SMOLLM2, "--rpc", &node.rpc]);
        assert!(plan.out.contains("are missing") || plan.err.contains("are missing"), "{plan:?}");
        let asked = std::time::Instant::now();
        let response = post(&node.api, CHAT, &question("Hello", 1));
        assert_eq!(response.status, 503);
        let error = response.json()["error"]["message"].take();
        assert!(error.as_str().unwrap().contains("MiB are missing"), "{error}");
        eprintln!("{} answered after {:?}: {error}", node.peer, asked.elapsed());
        let status = node.status();
        assert!(status.memory.iter().all(|held| held.purpose != "weights" || held.bytes == 0), "{:?}", status.memory);
    }
}

#[test]
fn a_model_that_does_not_fit_its_owner_is_placed_over_the_pool() {
    let Some(stage) = Stage::set("a_model_that_does_not_fit_its_owner") else { return };
    let one = stage.serving("one").max_memory("160M").start();
    let two = stage.cluster.node("two").max_memory("160M").with("--peer", &one.address).start();
    computed_by(&one, &[&one, &two]);
    eventually("the owner is ready", || get(&one.api, "/readyz").status == 200);
    for node in [&one, &two] {
        let status = node.status();
        let of = |purpose: &str| status.memory.iter().find(|held| held.purpose == purpose).unwrap().bytes;
        assert!(of("weights") > 0 && of("sessions") > 0, "{:?}", status.memory);
        assert!(status.memory_used_bytes <= 160 << 20, "{:?}", status.memory);
    }
}

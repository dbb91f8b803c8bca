//! Mixtures of experts and models with recurrent states: whoever has whichever layers, the same text comes.

use pangea_tests::tiny_model::TinyModel;

use super::*;

pub(crate) const COMPLETIONS: &str = "/v1/completions";
pub(crate) const NAME: &str = "tiny";

/// Tokens of an answer: enough that a node can be killed while it comes.
const TOKENS: usize = 400;

pub(crate) fn stage(model: TinyModel) -> Stage {
    let cluster = Cluster::new();
    let path = cluster.folder().join(format!("{NAME}.gguf"));
    // As many layers as the model of the other tests has.
    std::fs::write(&path, TinyModel { layers: LAYERS as usize, width: 128, ..model }.gguf()).unwrap();
    Stage { cluster, model: path }
}

fn prompt(stream: bool) -> Value {
    let prompt = "The expert of the sea says: ";
    json!({
        "model": NAME, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stream": stream, "logit_bias": {"257": -100},
    })
}

/// The text of the whole answer, and its `pangea` object.
fn answer(node: &Node) -> (String, Value) {
    let response = post(&node.api, COMPLETIONS, &prompt(false));
    let status = response.status;
    let answer = response.json();
    assert_eq!(status, 200, "{answer}");
    (answer["choices"][0]["text"].as_str().unwrap().to_owned(), answer["pangea"].clone())
}

#[test]
fn three_nodes_with_a_mixture_give_the_text_of_one_whoever_dies_and_their_receipts_hold() {
    three_nodes_give_the_text_of_one(TinyModel { seed: 3, ..TinyModel::mixture(16) });
}

#[test]
fn three_nodes_with_recurrent_states_give_the_text_of_one_whoever_dies_and_their_receipts_hold() {
    three_nodes_give_the_text_of_one(TinyModel { seed: 3, ..TinyModel::recurrent() });
}

fn three_nodes_give_the_text_of_one(model: TinyModel) {
    let stage = stage(model);
    let alone = stage.serving("alone").start();
    let (undisturbed, pangea) = answer(&alone);
    assert_eq!(stages(&pangea), [alone.peer.as_str()], "{pangea}");
    assert!(undisturbed.chars().count() > TOKENS / 4, "{undisturbed}");
    drop(alone);

    let one = stage.splitting("one").start();
    let two = stage.cluster.node("two").with("--peer", &one.address).start();
    let three = stage.cluster.node("three").with("--peer", &one.address).with("--audit", "1").start();
    let short = json!({"model": NAME, "prompt": "a", "max_tokens": 1});
    let on = |asked: &Node, nodes: &[&Node]| request_computed_by(asked, COMPLETIONS, &short, nodes);
    on(&one, &[&one, &two, &three]);
    for node in [&one, &two, &three] {
        eventually("the model is known here", || get(&node.api, "/v1/models").text().contains(NAME));
        let (text, pangea) = answer(node);
        assert_eq!(text, undisturbed, "{pangea}");
        assert_eq!(stages(&pangea).len(), 3, "{pangea}");
        let verdict = if node.peer == three.peer { "audited" } else { "unchecked" };
        assert_eq!(pangea["verdict"], verdict, "{pangea}");
        stage.verify_all(node, &pangea);
    }

    let mut streamed = Streamed::of(post(&one.api, COMPLETIONS, &prompt(true)));
    while streamed.text.is_empty() {
        assert!(streamed.next(), "it ended before anything came");
    }
    two.kill9();
    let (text, pangea) = streamed.finish();
    assert_eq!(text, undisturbed, "{pangea}");
    assert!(pangea["failovers"].as_u64().unwrap() >= 1, "it was over before anything happened: {pangea}");
    stage.verify_all(&one, &pangea);
    on(&one, &[&one, &three]);
    assert_eq!(answer(&three).0, undisturbed);
}

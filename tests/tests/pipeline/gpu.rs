//! Nodes whose layers a GPU computes, Debian's software device where there is no other: alone, beside a processor, with a part of the
//! layers, lost in the middle of an answer, audited by value, and lying.

use pangea_compute::gpu::{Gpu, GpuChoice};
use pangea_tests::skip::skip;

use super::architectures::{COMPLETIONS, NAME, stage};
use super::*;
use pangea_tests::tiny_model::TinyModel;

/// Tokens of an answer: enough that a device can be lost while it comes.
const TOKENS: usize = 60;

/// What `--device` calls the GPU of this machine. Where there is none, says that `test` does not run.
fn device(test: &str) -> Option<String> {
    let gpu = Gpu::open(GpuChoice::BestOrSoftware).map_err(|why| skip(test, &why.to_string())).ok()?;
    Some(format!("gpu:{}", gpu.report().name))
}

fn prompt() -> Value {
    json!({
        "model": NAME, "prompt": "The keeper of the light says: ", "max_tokens": TOKENS, "temperature": 0,
        "logit_bias": {"257": -100},
    })
}

/// The text of an answer of the full length, and its `pangea` object.
fn answer(node: &Node) -> (String, Value) {
    let response = post(&node.api, COMPLETIONS, &prompt());
    let status = response.status;
    let answer = response.json();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], TOKENS, "{answer}");
    (answer["choices"][0]["text"].as_str().unwrap().to_owned(), answer["pangea"].clone())
}

fn devices(node: &Node) -> Vec<Value> {
    get(&node.api, "/api/status").json()["devices"].as_array().unwrap().clone()
}

fn dense() -> Stage {
    stage(TinyModel { seed: 5, ..TinyModel::default() })
}

#[test]
fn an_answer_goes_on_by_the_processor_when_its_gpu_is_lost() {
    let Some(device) = device("an_answer_goes_on_by_the_processor_when_its_gpu_is_lost") else { return };
    let stage = dense();
    let exact = answer(&stage.serving("processor").start()).0;
    let node = stage.serving("gpu").with("--device", &device).fault("lose-device").start();
    eventually("the node is ready", || get(&node.api, "/readyz").status == 200);
    let used = devices(&node);
    assert!(used.iter().any(|device| device["used"] == true && device["memory_used_bytes"] != 0), "{used:?}");

    let (_, pangea) = answer(&node);
    assert!(pangea["failovers"].as_u64().unwrap() >= 1 && stages(&pangea) == [node.peer.as_str()], "{pangea}");
    node.process.line("is not used any more");
    let named = device.trim_start_matches("gpu:");
    let lost = || devices(&node).into_iter().find(|device| device["name"] == named).unwrap();
    assert!(lost()["used"] == false && lost()["why"].as_str().unwrap().contains("lost"), "{}", lost());
    eventually("the memory of the lost GPU is given back", || lost()["memory_used_bytes"] == 0);
    // The processor's bits.
    let (text, pangea) = answer(&node);
    assert_eq!((text, &pangea["failovers"]), (exact, &json!(0)), "{pangea}");
}

#[test]
fn layers_that_do_not_fit_the_gpu_are_computed_by_the_processor_beside_it() {
    let Some(device) = device("layers_that_do_not_fit_the_gpu_are_computed_by_the_processor_beside_it") else { return };
    let stage = dense();
    let node = stage.serving("both").with("--device", &device).with("--gpu-memory", "16M").start();
    node.process.line("of 30 layers of");
    let (text, pangea) = answer(&node);
    assert_eq!((stages(&pangea), text.is_empty()), (vec![node.peer.clone()], false), "{pangea}");
    let used = devices(&node).into_iter().find(|device| device["used"] == true).unwrap();
    let (held, limit) = (used["memory_used_bytes"].as_u64().unwrap(), used["memory_limit_bytes"].as_u64().unwrap());
    assert!(0 < held && held <= limit && limit == 16 << 20, "{used}");
}

/// A node that splits the model and audits every answer, and one with a GPU that has these layers.
fn audited_with(stage: &Stage, device: &str, gpu_layers: [&str; 2], fault: Option<&str>) -> [Node; 2] {
    let one = stage.splitting("one").with("--layers", gpu_layers[0]).with("--audit", "1").start();
    let gpu = stage.cluster.node("gpu").with("--peer", &one.address).with("--layers", gpu_layers[1]);
    let gpu = gpu.with("--device", device).with("--gpu-bits", "own");
    let gpu = fault.into_iter().fold(gpu, NodeBuilder::fault).start();
    eventually("the layers are placed on both", || [&one, &gpu].iter().all(|node| node.process.count("are ready") > 0));
    [one, gpu]
}

#[test]
fn stages_of_processors_and_gpus_are_audited_by_value_and_no_honest_one_is_suspected() {
    let test = "stages_of_processors_and_gpus_are_audited_by_value_and_no_honest_one_is_suspected";
    let Some(device) = device(test) else { return };
    for gpu_layers in [["15-29", "0-14"], ["0-14", "15-29"]] {
        let stage = dense();
        let [one, gpu] = audited_with(&stage, &device, gpu_layers, None);
        request_computed_by(&one, COMPLETIONS, &prompt(), &[&one, &gpu]);
        for _ in 0..10 {
            let (_, pangea) = answer(&one);
            assert_eq!(
                (&pangea["verdict"], &pangea["failovers"]),
                (&json!("tolerance-checked"), &json!(0)),
                "{pangea}"
            );
            assert_eq!(stages(&pangea).len(), 2, "{pangea}");
            stage.verify_all(&one, &pangea);
        }
        assert!(!one.status_of(&gpu).quarantined);
        assert_eq!(one.process.count("peer_suspected"), 0, "an honest node is suspected");
    }
}

#[test]
fn a_gpu_s_stage_that_lies_is_convicted_by_the_rows_that_it_opened() {
    let Some(device) = device("a_gpu_s_stage_that_lies_is_convicted_by_the_rows_that_it_opened") else { return };
    let stage = dense();
    let exact = answer(&stage.serving("processor").start()).0;
    let [one, liar] = audited_with(&stage, &device, ["15-29", "0-14"], Some("corrupt-stage"));
    eventually("the liar is shut out", || {
        let (text, pangea) = answer(&one);
        // Without the liar all of it is computed here.
        assert!(pangea["verdict"] != "local" || text == exact, "{pangea}");
        one.status_of(&liar).quarantined
    });
    eventually("the evidence is kept", || !one.evidence_against(&liar).is_empty());
}

#[test]
fn a_certified_gpu_has_the_processor_s_bits_and_an_answer_goes_on_word_for_word_when_it_is_lost() {
    let test = "a_certified_gpu_has_the_processor_s_bits_and_an_answer_goes_on_word_for_word_when_it_is_lost";
    let Some(device) = device(test) else { return };
    let stage = dense();
    let exact = answer(&stage.serving("alone").start()).0;
    let one = stage.splitting("processor").with("--audit", "1").start();
    let two = stage.cluster.node("gpu").with("--peer", &one.address).with("--device", &device);
    let two = two.with("--layers", "10-29").fault("lose-device").start();
    let short = json!({"model": NAME, "prompt": "a", "max_tokens": 1});
    request_computed_by(&one, COMPLETIONS, &short, &[&one, &two]);
    let (mut lost, mut audited) = (0, 0);
    eventually("the device is lost in the middle of an answer, and both nodes compute one that is audited", || {
        let (text, pangea) = answer(&one);
        assert_eq!(text, exact, "{pangea}");
        lost += pangea["failovers"].as_u64().unwrap();
        if stages(&pangea).len() == 2 {
            assert_eq!(pangea["verdict"], "audited", "{pangea}");
            stage.verify_all(&one, &pangea);
            audited += 1;
        }
        lost > 0 && audited > 0
    });
    two.process.line("are on the processor now");
}

#[test]
fn a_gpu_that_is_not_there_is_refused_at_the_start() {
    let stage = Stage { cluster: Cluster::new(), model: PathBuf::new() };
    let output = stage.cluster.run(&["node", "--device", "gpu:No Such Card", "--rpc-addr", "127.0.0.1:0"]);
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.err.contains("No Such Card"), "{output:?}");
}

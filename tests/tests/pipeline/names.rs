//! Different models under one name: each is a model of its own, and the short name never comes to mean another one.

use std::io::{Seek, SeekFrom, Write};

use super::*;

/// The digest of each listed model, by its id.
fn listed(node: &Node) -> Vec<(String, String)> {
    let models = get(&node.api, "/v1/models").json();
    let models = models["data"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    models.map(|model| (text(&model["id"]), text(&model["pangea"]["digest"]))).collect()
}

/// The digest that the short name stands for, once two models are listed.
fn meant(node: &Node) -> String {
    eventually("both models are listed", || listed(node).len() == 2);
    let models = listed(node);
    let (_, digest) = models.iter().find(|(id, _)| id == SMOLLM2).unwrap_or_else(|| panic!("{models:?}"));
    digest.clone()
}

#[test]
fn a_second_model_under_a_known_name_is_another_model_on_every_node() {
    let Some(stage) = Stage::set("a_second_model_under_a_known_name_is_another_model_on_every_node") else { return };
    // The same name, and other weights.
    let poisoned = stage.cluster.folder().join("poisoned").join(stage.model.file_name().unwrap());
    std::fs::create_dir_all(poisoned.parent().unwrap()).unwrap();
    std::fs::copy(&stage.model, &poisoned).unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(&poisoned).unwrap();
    file.seek(SeekFrom::End(-4096)).unwrap();
    file.write_all(&[0; 4096]).unwrap();
    drop(file);

    let owner = stage.serving("owner").flag("--force-master").start();
    let entrance = stage.cluster.node("entrance").with("--peer", &owner.address).start();
    eventually("the model is known", || listed(&entrance).len() == 1);
    let honest = text_of(&ask(&entrance, &question("Hello", 8)));
    let liar = stage.cluster.node("liar").with("--peer", &owner.address);
    let liar = liar.with("--model", poisoned.to_str().unwrap()).start();
    let late = stage.cluster.node("late").with("--peer", &liar.address).with("--peer", &owner.address).start();
    let of_owner = meant(&owner);
    assert_eq!(meant(&entrance), of_owner);
    // It may hear of the other model before it hears of the master.
    eventually("a newcomer means the model that the pool means", || meant(&late) == of_owner);
    assert_ne!(meant(&liar), of_owner, "a node's own file comes first");
    entrance.process.line("Several different models are named");
    for node in [&entrance, &late] {
        assert_eq!(text_of(&ask(node, &question("Hello", 8))), honest);
        for (id, digest) in listed(node) {
            // By its listed name, and by its full name.
            let full = format!("{SMOLLM2}@{}", &digest[..8]);
            assert!(id == SMOLLM2 || id == full, "{id}");
            for name in [&id, &full] {
                let mut body = question("Hello", 2);
                body["model"] = json!(name);
                ask(node, &body);
            }
        }
    }
}

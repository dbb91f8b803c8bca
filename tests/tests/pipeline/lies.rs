//! Stages that sign a wrong output: with every answer audited, no lie reaches the client.

use pangea_compute::DType;
use pangea_tests::matrix::{multiply, operands, remote};

use super::*;

#[test]
fn an_audited_answer_is_right_and_liars_are_excluded() {
    let Some(stage) = Stage::set("an_audited_answer_is_right_and_liars_are_excluded") else { return };
    let question = question(LONG, 60);
    let honest = stage.alone(std::slice::from_ref(&question)).remove(0);

    let one = stage.splitting("one").with("--audit", "1").start();
    let liar = |name: &str, layers: &str, fault: &str| {
        stage.cluster.node(name).with("--peer", &one.address).with("--layers", layers).fault(fault).start()
    };
    // One liar in the middle and one at the end, and a node that takes the layers of whichever is shut out first: with only two
    // nodes left no chain could give the other liar the layers that it asks for.
    let honest_node = stage.cluster.node("four").with("--peer", &one.address).start();
    let liars = [liar("two", "12-21", "corrupt-stage"), liar("three", "22-29", "corrupt-token")];
    eventually("both are given layers", || {
        liars.iter().all(|liar| liar.process.count("are ready") > 0) && one.process.count("are ready") > 0
    });
    eventually("both liars are shut out", || {
        let answer = ask(&one, &question);
        assert_eq!(text_of(&answer), honest, "{answer}");
        liars.iter().all(|liar| one.status_of(liar).quarantined)
    });
    for liar in &liars {
        let evidence = std::fs::read_dir(one.data_dir.join("evidence")).unwrap();
        let folder = evidence.map(|folder| folder.unwrap().path()).find(|folder| {
            let name = folder.file_name().unwrap().to_str().unwrap();
            name.contains(&liar.peer)
        });
        let file = folder.unwrap_or_else(|| panic!("no evidence against {}", liar.peer)).join("evidence.json");
        let said: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        assert!(said.to_string().contains(&liar.peer), "{said}");
    }
    // A quarantined node is not used again.
    computed_by(&one, &[&one, &honest_node]);
    let answer = ask(&one, &question);
    assert_eq!(text_of(&answer), honest);
    assert_eq!(answer["pangea"]["failovers"], 0, "{answer}");
    let peers = stages(&answer["pangea"]);
    assert!(liars.iter().all(|liar| !peers.contains(&liar.peer)), "{answer}");
}

#[test]
fn a_liar_in_products_loses_its_layers_for_good() {
    let Some(stage) = Stage::set("a_liar_in_products_loses_its_layers_for_good") else { return };
    let one = stage.splitting("one").start();
    // As a stage this node is honest.
    let liar = stage.cluster.node("liar").with("--peer", &one.address).fault("corrupt-all").start();
    computed_by(&one, &[&one, &liar]);
    let (a, b) = operands(DType::I8, 300, 256, 280);
    let product = multiply(&one.client(), &a, &b, &remote()).unwrap();
    assert!(!product.report.verification.rejected.is_empty(), "{:?}", product.report);
    assert!(one.status_of(&liar).quarantined);
    computed_by(&one, &[&one]);
}

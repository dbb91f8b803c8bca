//! The files of `node/monitoring` against real nodes and a real Prometheus: rules, dashboard and README name the metrics that
//! nodes have, every panel of the dashboard has data, and each alert fires when its tests say.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::command::{stderr, stdout};
use pangea_tests::http::{get, post};
use pangea_tests::process::{Process, eventually};
use pangea_tests::skip::skip;
use pangea_tests::tiny_model::TinyModel;
use serde_json::{Value, json};

/// The folder of the files.
fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("node/monitoring")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(monitoring().join(file)).unwrap()
}

/// Whether Prometheus is on this machine; if not, prints that `test` is skipped.
fn unless_prometheus(test: &str) -> bool {
    let is_here = |program: &&str| Command::new(program).arg("--version").output().is_ok();
    let missing = ["promtool", "prometheus"].into_iter().find(|program| !is_here(program));
    if let Some(program) = missing {
        skip(test, &format!("there is no {program}; `scripts/setup.sh test` installs it where it can"));
    }
    missing.is_some()
}

/// Runs `promtool` in the folder of the files; it must accept what it checks.
fn promtool(arguments: &[&str], input: Stdio) {
    let output = Command::new("promtool").args(arguments).current_dir(monitoring()).stdin(input).output().unwrap();
    assert!(output.status.success(), "promtool {arguments:?}: {}{}", stdout(&output), stderr(&output));
}

/// Nodes on which every metric has a value.
struct Pool {
    /// The first one has the model and audits, a stage of the second one panicked, and the third one is a lite client.
    nodes: [Node; 3],
    cluster: Cluster,
}

impl Pool {
    fn start() -> Pool {
        let cluster = Cluster::new();
        let model = cluster.folder().join("tiny.gguf");
        std::fs::write(&model, TinyModel::default().gguf()).unwrap();
        let one =
            cluster.node("one").with("--model", model.to_str().unwrap()).flag("--split").with("--audit", "1").start();
        let two = cluster.node("two").with("--peer", &one.address).fault("panic-stage").start();
        let client = cluster.node("client").with("--peer", &one.address).flag("--client").start();
        eventually("an answer is computed by both nodes", || stages_of_an_answer(&one) == Some(2));
        eventually("the lite client gets an answer", || stages_of_an_answer(&client).is_some());
        let pool = Pool { nodes: [one, two, client], cluster };
        // Metrics that appear with their first event; that of an audit and of a panic may come after the answer.
        for name in ["pangea_audits_total", "pangea_part_ends_total", "pangea_tunnelled_requests_total"] {
            eventually(&format!("{name} has a value"), || {
                // A stage panics only after some frames.
                stages_of_an_answer(&pool.nodes[0]);
                pool.samples().contains(name)
            });
        }
        pool
    }

    /// The metrics of each node, as text.
    fn metrics(&self) -> Vec<String> {
        self.nodes.iter().map(|node| get(&node.api, "/metrics").text()).collect()
    }

    /// The names of the samples of all nodes: those that queries use.
    fn samples(&self) -> BTreeSet<String> {
        let name = |line: &str| line.split(['{', ' ']).next().unwrap().to_owned();
        let of_text =
            |text: &String| -> Vec<String> { text.lines().filter(|line| !line.starts_with('#')).map(name).collect() };
        self.metrics().iter().flat_map(of_text).collect()
    }

    /// The names of the metrics of all nodes: a histogram, which has several samples, has one.
    fn described(&self) -> BTreeSet<String> {
        let name = |line: &str| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned());
        self.metrics().iter().flat_map(|text| text.lines().filter_map(name).collect::<Vec<_>>()).collect()
    }
}

/// Number of nodes that computed an answer; `None` where the node does not answer yet.
fn stages_of_an_answer(node: &Node) -> Option<usize> {
    let body = json!({"model": "tiny", "prompt": "Hello", "max_tokens": 4, "temperature": 0});
    let response = post(&node.api, "/v1/completions", &body);
    (response.status == 200).then(|| response.json()["pangea"]["stages"].as_array().unwrap().len())
}

/// Every word of a text that is the name of a metric.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_of_name = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
    let words = text.split(|letter: char| !is_of_name(letter));
    words.filter(|word| word.starts_with("pangea_")).map(str::to_owned).collect()
}

/// The names of the alerts.
fn alerts() -> BTreeSet<String> {
    let rules = read("alerts.yml");
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(str::to_owned).collect()
}

/// The queries of the dashboard, with every node and model chosen.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let chosen = |query: &str| {
        let query = query.replace("$__rate_interval", "1m").replace("$node", ".*").replace("$model", ".*");
        assert!(!query.contains('$'), "a variable that the dashboard does not have: {query}");
        query
    };
    targets.map(|target| chosen(target["expr"].as_str().unwrap())).collect()
}

#[test]
fn rules_dashboard_and_readme_name_the_metrics_that_nodes_have() {
    let pool = Pool::start();
    let samples = pool.samples();
    for file in ["alerts.yml", "alerts_test.yml", "grafana.json"] {
        let named = metrics_in(&read(file));
        let unknown: Vec<&String> = named.difference(&samples).collect();
        assert!(!named.is_empty() && unknown.is_empty(), "{file} names metrics that no node has: {unknown:?}");
    }
    assert_eq!(metrics_in(&read("README.md")), pool.described(), "the table in node/monitoring/README.md");
}

#[test]
fn each_alert_fires_when_its_test_says() {
    if unless_prometheus("each_alert_fires_when_its_test_says") {
        return;
    }
    promtool(&["check", "config", "prometheus.yml"], Stdio::null());
    promtool(&["check", "rules", "alerts.yml"], Stdio::null());
    promtool(&["test", "rules", "alerts_test.yml"], Stdio::null());
    let tests = read("alerts_test.yml");
    let untested: Vec<String> =
        alerts().into_iter().filter(|alert| !tests.contains(&format!("alertname=\"{alert}\""))).collect();
    assert!(untested.is_empty(), "alerts without a test: {untested:?}");
}

/// A running Prometheus.
struct Prometheus {
    address: String,
    _process: Process,
}

impl Prometheus {
    /// Reads these nodes with the files as they are, except for the addresses and for intervals of seconds.
    fn start(pool: &Pool) -> Prometheus {
        let folder = pool.cluster.folder();
        let mut config = read("prometheus.yml");
        let nodes: Vec<String> = pool.nodes.iter().map(|node| format!("\"{}\"", node.api)).collect();
        let nodes = nodes.join(", ");
        for (there, here) in [
            ("\"127.0.0.1:52415\"", nodes.as_str()),
            ("scrape_interval: 15s", "scrape_interval: 1s"),
            ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ] {
            assert_eq!(config.matches(there).count(), 1, "{there} in {config}");
            config = config.replace(there, here);
        }
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        std::fs::copy(monitoring().join("alerts.yml"), folder.join("alerts.yml")).unwrap();
        let mut command = Command::new("prometheus");
        command.arg("--config.file").arg(file).arg("--storage.tsdb.path").arg(folder.join("prometheus"));
        command.arg("--web.listen-address=127.0.0.1:0").current_dir(folder);
        let process = Process::start("prometheus", command, &folder.join("prometheus.log"));
        let line = process.line("msg=\"Listening on\"").text;
        let address = line.split_once(" address=").unwrap().1.split(' ').next().unwrap().to_owned();
        eventually("Prometheus is ready", || get(&address, "/-/ready").status == 200);
        Prometheus { address, _process: process }
    }

    /// What its API answers.
    fn get(&self, path: &str) -> Value {
        let mut answer = get(&self.address, path).json();
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].take()
    }

    /// Whether a query gives any series.
    fn has_data(&self, query: &str) -> bool {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        !self.get(&format!("/api/v1/query?query={encoded}"))["result"].as_array().unwrap().is_empty()
    }

    fn rules(&self) -> Vec<Value> {
        let groups = self.get("/api/v1/rules");
        let rules = groups["groups"].as_array().unwrap().iter().map(|group| group["rules"].as_array().unwrap());
        rules.flatten().cloned().collect()
    }
}

/// The names of rules.
fn names<'a>(rules: impl Iterator<Item = &'a Value>) -> BTreeSet<String> {
    rules.map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn prometheus_reads_a_pool_every_panel_has_data_and_a_panic_raises_its_alert() {
    if unless_prometheus("prometheus_reads_a_pool_every_panel_has_data_and_a_panic_raises_its_alert") {
        return;
    }
    let pool = Pool::start();
    for (number, text) in pool.metrics().iter().enumerate() {
        let file = pool.cluster.folder().join(format!("metrics-{number}"));
        std::fs::write(&file, text).unwrap();
        promtool(&["check", "metrics"], File::open(file).unwrap().into());
    }
    let prometheus = Prometheus::start(&pool);
    eventually("every node is read", || {
        let targets = prometheus.get("/api/v1/targets")["activeTargets"].take();
        let targets = targets.as_array().unwrap();
        targets.len() == pool.nodes.len() && targets.iter().all(|target| target["health"] == "up")
    });
    for query in queries() {
        eventually(&format!("there is data of {query}"), || prometheus.has_data(&query));
    }
    eventually("every rule is evaluated", || prometheus.rules().iter().all(|rule| rule["health"] == "ok"));
    assert_eq!(names(prometheus.rules().iter()), alerts());
    eventually("the panic raises its alert", || {
        let rules = prometheus.rules();
        names(rules.iter().filter(|rule| rule["state"] == "firing")) == BTreeSet::from(["PangeaPartEnded".to_owned()])
    });
}

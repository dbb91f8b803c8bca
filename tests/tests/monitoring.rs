//! The files of `node/monitoring` against real nodes and a real Prometheus: rules, dashboard and README name the metrics that
//! nodes have, every panel of the dashboard has data, and each alert fires when its tests say.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use pangea_tests::cluster::{Cluster, Node};
use pangea_tests::command::{stderr, stdout};
use pangea_tests::http::{get, post};
use pangea_tests::process::{Process, eventually};
use pangea_tests::skip::skip;
use pangea_tests::test_model::{SMOLLM2, file_of};
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
        // What may come after the answer: its audit, a panic, the times of the split model's stages.
        for name in [
            "pangea_audits_total",
            "pangea_part_ends_total",
            "pangea_tunnelled_requests_total",
            "pangea_chain_token_measured_seconds",
        ] {
            eventually(&format!("{name} is above 0"), || {
                // A stage panics only after some frames.
                stages_of_an_answer(&pool.nodes[0]);
                pool.nodes.iter().any(|node| Samples::of(node).sum(name, &[]) > 0.0)
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

/// The samples of one node at one moment: name, labels, value.
struct Samples(Vec<(String, String, f64)>);

impl Samples {
    fn of(node: &Node) -> Samples {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            (name.to_owned(), labels.to_owned(), value.parse().unwrap())
        };
        let text = get(&node.api, "/metrics").text();
        Samples(text.lines().filter(|line| !line.starts_with('#')).map(sample).collect())
    }

    /// The series of this name with all of these labels, such as `outcome="done"`.
    fn with<'a>(&'a self, name: &'a str, labels: &'a [&'a str]) -> impl Iterator<Item = f64> + 'a {
        let fits = move |of: &str| labels.iter().all(|label| of.contains(label));
        self.0.iter().filter(move |(other, of, _)| other == name && fits(of)).map(|(.., value)| *value)
    }

    /// The sum of these series.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.with(name, labels).sum()
    }

    /// The value of the only such series.
    fn one(&self, name: &str, labels: &[&str]) -> f64 {
        let found: Vec<f64> = self.with(name, labels).collect();
        assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
        found[0]
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
        assert!(!named.is_empty(), "{file}");
        for name in named.difference(&samples) {
            // What is measured of a chain is shown while the chain is in force, and one whose stage panicked is replaced.
            eventually(&format!("a node has {name}, which {file} names"), || {
                stages_of_an_answer(&pool.nodes[0]);
                pool.samples().contains(name)
            });
        }
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
        eventually(&format!("there is data of {query}"), || {
            let is_there = prometheus.has_data(&query);
            if !is_there {
                stages_of_an_answer(&pool.nodes[0]);
            }
            is_there
        });
    }
    eventually("every rule is evaluated", || prometheus.rules().iter().all(|rule| rule["health"] == "ok"));
    assert_eq!(names(prometheus.rules().iter()), alerts());
    eventually("the panic raises its alert", || {
        let rules = prometheus.rules();
        names(rules.iter().filter(|rule| rule["state"] == "firing")) == BTreeSet::from(["PangeaPartEnded".to_owned()])
    });
}

#[test]
fn what_two_nodes_count_of_a_product_and_an_answer_fits_together() {
    let Some(file) = file_of(SMOLLM2, "what_two_nodes_count_of_a_product_and_an_answer_fits_together") else { return };
    let seconds = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let began = seconds();
    let cluster = Cluster::new();
    let one = cluster.node("one").with("--model", file.to_str().unwrap()).start();
    let two = cluster.node("two").start();
    let started = Samples::of(&one).one("pangea_start_time_seconds", &[]);
    assert!((began..=seconds()).contains(&started), "{started}");
    everything_countable_is_there_from_the_start(&two);
    one.connect(&two);
    eventually("the model answers", || answer(&one, 2).is_some());

    a_product_on_the_other_node(&cluster, &one, &two);
    an_answer(&one);
    tokens_count_before_the_answer_ends(&one);
    the_two_are_one_pool(&one, &two);
    for (from, to) in [(&one, &two), (&two, &one)] {
        what_is_sent_is_received(from, to);
    }

    assert_eq!(two.terminate(), Some(0));
    let label = format!("peer=\"{}\"", two.peer);
    for name in ["pangea_peer_sent_bytes_total", "pangea_peer_received_bytes_total", "pangea_peer_rtt_seconds"] {
        eventually(&format!("{name} of a peer that is gone is gone"), || {
            Samples::of(&one).with(name, &[&label]).next().is_none()
        });
    }
    assert_eq!(Samples::of(&one).one("pangea_peer_sent_bytes_total", &["peer=\"other\""]), 0.0);
}

/// Counters of closed sets do not wait for their first event.
fn everything_countable_is_there_from_the_start(node: &Node) {
    let samples = Samples::of(node);
    for (name, count) in [
        ("pangea_jobs_ended_total", 12),
        ("pangea_verdicts_total", 15),
        ("pangea_tasks_total", 4),
        ("pangea_task_attempts_total", 8),
        ("pangea_product_prediction_ratio_count", 3),
        ("pangea_results_rejected_total", 1),
        ("pangea_quarantines_total", 1),
        ("pangea_accusations_total", 8),
        ("pangea_audits_total", 6),
        ("pangea_tunnelled_requests_total", 3),
        ("pangea_tunnel_attempts_total", 3),
        ("pangea_refused_by_peers_total", 10),
    ] {
        let values: Vec<f64> = samples.with(name, &[]).collect();
        assert_eq!(values, vec![0.0; count], "{name}");
    }
    assert!(samples.with("pangea_part_ends_total", &[]).count() > 5, "a counter for each part that runs");
    assert_eq!(samples.sum("pangea_part_ends_total", &[]), 0.0);
}

/// A product that `one` has `two` compute: both count the same tasks.
fn a_product_on_the_other_node(cluster: &Cluster, one: &Node, two: &Node) {
    let product =
        ["matmul", "--size", "768", "--generate", "--place", "remote", "--verify", "--rpc", &one.rpc, "--json"];
    let report = cluster.run(&product).json();
    let remote = report["tasks"]["remote"].as_f64().unwrap();
    assert!(remote > 0.0, "{report}");
    let mode = format!("mode=\"{}\"", report["mode"].as_str().unwrap());
    let of_product = |verdict: &str| format!("verdict=\"{verdict}\"");
    let verdict = of_product(report["verification"]["verdict"].as_str().unwrap());
    eventually("no task is left", || {
        let here = Samples::of(two);
        here.one("pangea_tasks_waiting", &[]) + here.one("pangea_tasks_running", &[]) == 0.0
    });
    let (coordinator, worker) = (Samples::of(one), Samples::of(two));
    let sent = coordinator.sum("pangea_task_attempts_total", &["place=\"peer\""]);
    assert_eq!(sent, worker.sum("pangea_tasks_total", &[]), "each task that was sent has ended");
    assert!(worker.one("pangea_tasks_total", &["outcome=\"done\""]) >= remote);
    assert_eq!(coordinator.sum("pangea_tasks_total", &[]), 0.0);
    assert_eq!(worker.sum("pangea_task_attempts_total", &[]), 0.0);
    let kind = "kind=\"product\"";
    assert_eq!(coordinator.one("pangea_jobs_ended_total", &[kind, "outcome=\"done\""]), 1.0);
    assert_eq!(coordinator.one("pangea_verdicts_total", &[kind, &verdict]), 1.0);
    assert_eq!(coordinator.sum("pangea_verdicts_total", &[kind]), 1.0);
    assert_eq!(coordinator.one("pangea_product_prediction_ratio_count", &[&mode]), 1.0);
    assert!(coordinator.one("pangea_product_prediction_ratio_sum", &[&mode]) > 0.0);
    assert_eq!(coordinator.sum("pangea_results_rejected_total", &[]), 0.0);
}

/// Tokens of an answer of the model; `None` where the node does not answer yet.
fn answer(node: &Node, tokens: u64) -> Option<Value> {
    let body = json!({"model": SMOLLM2, "prompt": "The sea is", "max_tokens": tokens, "temperature": 0});
    let response = post(&node.api, "/v1/completions", &body);
    (response.status == 200).then(|| response.json())
}

/// Every token but the first has its time.
fn an_answer(node: &Node) {
    let before = Samples::of(node);
    let answer = answer(node, 24).unwrap();
    let tokens = answer["usage"]["completion_tokens"].as_f64().unwrap();
    let after = Samples::of(node);
    let model = format!("model=\"{SMOLLM2}\"");
    let more = |name: &str| after.one(name, &[&model]) - before.one(name, &[&model]);
    assert_eq!(more("pangea_answer_tokens_total"), tokens, "{answer}");
    assert_eq!(more("pangea_request_between_tokens_seconds_count"), tokens - 1.0);
    let between = more("pangea_request_between_tokens_seconds_sum");
    let (total, first) = (more("pangea_request_total_seconds_sum"), more("pangea_request_first_token_seconds_sum"));
    assert!(between > 0.0 && between <= total, "{between} s between tokens, {first} s before, {total} s in all");
    let generations = ["kind=\"generation\"", "verdict=\"local\""];
    assert_eq!(
        after.one("pangea_verdicts_total", &generations) - before.one("pangea_verdicts_total", &generations),
        1.0
    );
    let used = after.one("pangea_session_pages_used_bytes", &[&model]);
    assert!(used > 0.0 && used <= after.one("pangea_session_pages_limit_bytes", &[&model]), "{used}");
}

/// A long answer is counted while it is computed, and stays counted when its reader goes away.
fn tokens_count_before_the_answer_ends(node: &Node) {
    let model = format!("model=\"{SMOLLM2}\"");
    let tokens = || Samples::of(node).one("pangea_answer_tokens_total", &[&model]);
    let ended = || Samples::of(node).one("pangea_request_total_seconds_count", &[&model]);
    let (tokens_before, ended_before) = (tokens(), ended());
    let body = json!({
        "model": SMOLLM2, "prompt": "The sea is", "max_tokens": 2000, "temperature": 0, "stream": true,
        "logit_bias": {"2": -100},
    });
    let mut stream = post(&node.api, "/v1/completions", &body);
    for _ in 0..8 {
        stream.event().unwrap();
    }
    assert!(tokens() >= tokens_before + 4.0, "text may be held back for a few tokens");
    assert_eq!(ended(), ended_before, "the answer goes on");
    drop(stream);
    eventually("the request is cancelled", || {
        Samples::of(node).sum("pangea_requests_cancelled_total", &[&model]) == 1.0
    });
    assert!(tokens() >= tokens_before + 4.0);
}

/// One of the two is the master, under one term; adverts that arrive were sent; the ping is answered.
fn the_two_are_one_pool(one: &Node, two: &Node) {
    eventually("both follow one master", || {
        let both = [one, two].map(Samples::of);
        let terms = both.each_ref().map(|samples| samples.one("pangea_election_term", &[]));
        let masters: f64 = both.iter().map(|samples| samples.one("pangea_master", &[])).sum();
        masters == 1.0 && terms[0] == terms[1] && terms[0] > 0.0
    });
    for (from, to) in [(one, two), (two, one)] {
        let received = Samples::of(to);
        assert!(received.one("pangea_elections_total", &[]) >= 1.0);
        let adverts = received.sum("pangea_adverts_received_total", &[]);
        let sent = Samples::of(from).one("pangea_adverts_sent_total", &[]);
        assert!(0.0 < adverts && adverts <= sent, "{adverts} adverts of {sent} arrived");
        let label = format!("peer=\"{}\"", to.peer);
        eventually("a ping is answered", || Samples::of(from).sum("pangea_peer_rtt_seconds", &[&label]) > 0.0);
    }
}

/// What one node sends to the other, and what that one receives from it, is the same but for what is on its way.
fn what_is_sent_is_received(from: &Node, to: &Node) {
    let [of_from, of_to] = [from, to].map(|node| format!("peer=\"{}\"", node.peer));
    let sent = || Samples::of(from).one("pangea_peer_sent_bytes_total", &[&of_to]);
    let received = || Samples::of(to).one("pangea_peer_received_bytes_total", &[&of_from]);
    eventually("everything that was sent has arrived, and no more", || {
        let (before, arrived, after) = (sent(), received(), sent());
        before <= arrived && arrived <= after
    });
    let samples = Samples::of(from);
    let to_this_peer = samples.one("pangea_peer_sent_bytes_total", &[&of_to]);
    // A band and a panel of the product there, the tiles back.
    assert!(to_this_peer > 1e6, "{to_this_peer}");
    assert!(to_this_peer <= samples.one("pangea_network_sent_bytes_total", &[]));
}

#[test]
fn a_lie_is_counted_by_who_finds_it_who_checks_it_and_who_told_it() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let judge = cluster.node("judge").with("--peer", &one.address).start();
    let liar = cluster.node("liar").with("--peer", &one.address).fault("corrupt-all").start();
    eventually("the three are connected", || Samples::of(&one).one("pangea_peers_connected", &[]) == 2.0);
    // Two must agree, so that both are asked, however fast they look.
    let product =
        ["matmul", "--size", "512", "--generate", "--place", "remote", "--redundancy", "2", "--rpc", &one.rpc];
    eventually("the lie is found", || {
        cluster.run(&product);
        Samples::of(&one).one("pangea_results_rejected_total", &[]) > 0.0
    });
    assert!(Samples::of(&one).sum("pangea_task_attempts_total", &["reason=\"check\"", "place=\"peer\""]) > 0.0);
    let accusations = |node: &Node, role: &str, outcome: &str| {
        let [role, outcome] =
            [("role", role), ("outcome", outcome)].map(|(label, value)| format!("{label}=\"{value}\""));
        Samples::of(node).one("pangea_accusations_total", &[&role, &outcome])
    };
    eventually("the finder accuses the liar", || accusations(&one, "accuser", "found") == 1.0);
    eventually("the other node finds the evidence right", || accusations(&judge, "judge", "proven") == 1.0);
    assert_eq!(accusations(&judge, "accuser", "joined"), 1.0);
    for node in [&one, &judge] {
        let samples = Samples::of(node);
        assert_eq!(samples.one("pangea_quarantines_total", &[]), 1.0);
        assert_eq!(samples.one("pangea_peers_quarantined", &[]), 1.0);
        assert_eq!(samples.sum("pangea_accusations_total", &["outcome=\"refuted\""]), 0.0);
    }
    eventually("the liar hears that it is not wanted", || {
        Samples::of(&liar).one("pangea_refused_by_peers_total", &["reason=\"quarantined\""]) > 0.0
    });
    // A peer that is quarantined stays so, and a node that starts again has quarantined nobody yet.
    assert_eq!(one.terminate(), Some(0));
    let one = cluster.node("one").start();
    let samples = Samples::of(&one);
    assert_eq!(samples.one("pangea_peers_quarantined", &[]), 1.0);
    assert_eq!(samples.one("pangea_quarantines_total", &[]), 0.0);
    assert_eq!(samples.sum("pangea_accusations_total", &["role=\"accuser\""]), 0.0);
}

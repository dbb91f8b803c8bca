//! Nodes that reach each other only through something that forwards TCP: two plain forwarders, a real `ssh -L -R`, a third
//! node. The addresses that nodes report lead nowhere and must do no harm.

use std::path::{Path, PathBuf};
use std::process::Command;

use pangea_tests::cluster::{Cluster, Node, output};
use pangea_tests::forwarder::{Forwarder, Quality};
use pangea_tests::namespaces::{Namespace, Namespaces};
use pangea_tests::process::{Process, eventually};
use pangea_tests::skip::skip;

/// Adverts that a test waits for, one per second, during which nothing may be disturbed.
const ADVERTS: usize = 6;

fn connected(one: &Node, two: &Node) {
    one.process.line(&format!("Connected to peer {}", two.peer));
    two.process.line(&format!("Connected to peer {}", one.peer));
}

fn write_peers(data_dir: &Path, address: &str) {
    std::fs::create_dir_all(data_dir).unwrap();
    let text = format!("{{\"peers\": [{{\"name\": \"other\", \"address\": \"{address}\"}}]}}");
    std::fs::write(data_dir.join("peers.json"), text).unwrap();
}

/// Waits until `topology` has changed a few times: its round-trip times change with every advert.
fn adverts_pass(mut topology: impl FnMut() -> serde_json::Value) {
    // What passes over links changes without adverts.
    let mut round_trips = || {
        let links = topology()["links"].clone();
        links.as_array().unwrap().iter().map(|link| link["rtt_ms"].clone()).collect::<Vec<_>>()
    };
    let (mut last, mut changes) = (round_trips(), 0);
    eventually("adverts keep coming", || {
        let now = round_trips();
        changes += usize::from(now != last);
        last = now;
        changes >= ADVERTS
    });
}

#[test]
fn two_nodes_behind_two_forwarders_are_one_pool_over_one_connection() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.node("one").start(), cluster.node("two").start());
    let forwarders = [&one, &two].map(|node| Forwarder::start(node.port(), Quality::default()));
    // Each node knows the other only by its end of a tunnel.
    write_peers(&one.data_dir, &forwarders[1].address());
    write_peers(&two.data_dir, &forwarders[0].address());
    connected(&one, &two);
    one.process.line("elected master");
    two.process.line("elected master");
    let before = [one.connections(), two.connections()];
    assert_eq!(before.each_ref().map(|connections| connections.len()), [1, 1], "{before:?}");
    for _ in 0..50 {
        assert_eq!(one.client().topology().unwrap().links.len(), 2);
        one.client().check_peer(&two.peer, None).unwrap();
    }
    adverts_pass(|| serde_json::to_value(two.client().topology().unwrap()).unwrap());
    assert_eq!([one.connections(), two.connections()], before);
    for node in [&one, &two] {
        assert_eq!((node.process.count("Connected to peer"), node.process.count("is gone")), (1, 0));
    }
    // A failed tunnel is noticed, and the other one is used.
    let through = before[0].iter().next().unwrap();
    let used = forwarders.iter().position(|forwarder| forwarder.address().ends_with(&format!("/{}", through.remote)));
    forwarders[used.unwrap_or(0)].cut();
    one.process.line(&format!("Peer {} is gone (", two.peer));
    one.process.nth_line(&format!("Connected to peer {}", two.peer), 2);
    eventually("the two are a pool again", || one.client().topology().unwrap().links.len() == 2);
}

fn json_in(cluster: &Cluster, host: &Namespace, node: &Node, arguments: &[&str]) -> serde_json::Value {
    output(&cluster.start_in(Some(host), &[arguments, &["--json", "--rpc", &node.rpc]].concat())).json()
}

#[test]
fn nodes_that_reach_each_other_through_a_third_only_are_one_pool() {
    let Some(network) = Namespaces::for_test("nodes_that_reach_each_other_through_a_third_only_are_one_pool", 3) else {
        return;
    };
    network.isolate(&[1, 2]);
    let cluster = Cluster::new();
    // Members prove with every advert that they belong to the pool. In an open one, nobody can for a third.
    let key = cluster.pool_key("pool.key", 3);
    let host = |index: usize| &network.hosts()[index];
    let start = |name: &str, index: usize, peer: Option<&str>| {
        let builder = cluster.node(name).pool_key(&key).in_namespace(host(index)).flag("--no-mdns");
        let builder = builder.with("--log-format", "json").flag("-v");
        match peer {
            Some(peer) => builder.with("--peer", peer).start(),
            None => builder.start(),
        }
    };
    let hub = start("hub", 0, None);
    let reachable = format!("/ip4/{}/tcp/{}/p2p/{}", host(0).address, hub.port(), hub.peer);
    let (two, three) = (start("two", 1, Some(&reachable)), start("three", 2, Some(&reachable)));
    connected(&hub, &two);
    connected(&hub, &three);
    eventually("everyone sees the whole pool under one master", || {
        let views =
            [(&hub, 0), (&two, 1), (&three, 2)].map(|(node, at)| json_in(&cluster, host(at), node, &["topology"]));
        let master = |view: &serde_json::Value| {
            let nodes = view["nodes"].as_array().unwrap().iter();
            nodes.filter(|node| node["master"] == true).map(|node| node["peer"].to_string()).collect::<Vec<_>>()
        };
        views.iter().all(|view| view["nodes"].as_array().unwrap().len() == 3 && master(view) == master(&views[0]))
            && master(&views[0]).len() == 1
    });
    let before = [hub.connections(), two.connections(), three.connections()];
    adverts_pass(|| json_in(&cluster, host(1), &two, &["topology"]));
    assert_eq!([hub.connections(), two.connections(), three.connections()], before);
    let view = json_in(&cluster, host(1), &two, &["topology"]);
    assert_eq!(view["links"].as_array().unwrap().len(), 4, "the two are not connected: {view}");
    // Failed dials are retried with growing delays.
    for node in [&two, &three] {
        let dials = node.process.count("\"dial_failed\"");
        assert!(dials <= 10, "{dials} dials in vain");
    }
}

/// A real SSH server on a host, and the files of a client.
struct Ssh {
    folder: PathBuf,
    port: u16,
    _server: Process,
}

const SSHD: &str = "/usr/sbin/sshd";

impl Ssh {
    /// The reason if this machine has no SSH server.
    fn start(host: &Namespace, folder: &Path) -> Result<Ssh, String> {
        if !Path::new(SSHD).exists() {
            return Err(format!("there is no {SSHD} (Debian: apt-get install openssh-server)"));
        }
        for name in ["host", "user"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.join(name))
                .status()
                .map_err(|error| format!("ssh-keygen cannot be run: {error}"))?;
            assert!(made.success());
        }
        // Where a system's own server has its files.
        std::fs::create_dir_all("/run/sshd").map_err(|error| error.to_string())?;
        let port = 2222;
        let config = folder.join("sshd_config");
        let text = format!(
            "Port {port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\nStrictModes no\nUsePAM no\nPidFile none\n\
             PermitRootLogin prohibit-password\n",
            folder.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = host.command(Path::new(SSHD));
        command.args(["-D", "-e", "-f"]).arg(&config);
        let server = Process::start("sshd", command, &folder.join("sshd.log"));
        server.line("Server listening on");
        Ok(Ssh { folder: folder.to_owned(), port, _server: server })
    }

    /// `ssh` from `host` to the server at `address` with `forwards`; returns once the tunnels are open.
    fn tunnel(&self, host: &Namespace, address: &str, forwards: &[String]) -> Process {
        let mut command = host.command(Path::new("/usr/bin/ssh"));
        command.args(["-N", "-v", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args(["-o", "ExitOnForwardFailure=yes", "-o", "BatchMode=yes", "-F", "none", "-i"]);
        command
            .arg(self.folder.join("user"))
            .args(["-p", &self.port.to_string()])
            .args(forwards)
            .arg(format!("root@{address}"));
        let process = Process::start("ssh", command, &self.folder.join("ssh.log"));
        process.line(if forwards.iter().any(|word| word == "-R") {
            "remote forward success"
        } else {
            "Local forwarding listening on 127.0.0.1"
        });
        process
    }
}

/// Two nodes on two hosts that listen on their own loopback only, joined by `ssh` with the forwards that `of` names.
fn through_ssh(test: &str, forwards: &[&str]) {
    let Some(network) = Namespaces::for_test(test, 2) else { return };
    let cluster = Cluster::new();
    let (here, there) = (&network.hosts()[0], &network.hosts()[1]);
    let ssh = match Ssh::start(there, cluster.folder()) {
        Ok(ssh) => ssh,
        Err(why) => return skip(test, &why),
    };
    // The ports of the reference's tunnels.
    let (forward, reverse) = (50052, 50060);
    let node = |name: &str, host, port: u16| {
        let builder = cluster.node(name).in_namespace(host).flag("--no-mdns");
        let builder = builder.listen("/ip4/127.0.0.1/tcp/7777");
        write_peers(&builder.data_dir(), &format!("/ip4/127.0.0.1/tcp/{port}"));
        builder
    };
    let words: Vec<String> = forwards
        .iter()
        .flat_map(|flag| {
            let port = if *flag == "-L" { forward } else { reverse };
            [(*flag).to_owned(), format!("127.0.0.1:{port}:127.0.0.1:7777")]
        })
        .collect();
    let tunnel = ssh.tunnel(here, &there.address, &words);
    let (one, two) = (node("mac2", here, forward).start(), node("test_mac1", there, reverse).start());
    connected(&one, &two);
    one.process.line("elected master");
    let before = [one.connections(), two.connections()];
    assert_eq!(before.each_ref().map(|connections| connections.len()), [1, 1], "{before:?}");
    adverts_pass(|| json_in(&cluster, here, &one, &["topology"]));
    for _ in 0..10 {
        let checked = json_in(&cluster, there, &two, &["peers", "--check"]);
        assert!(checked[0]["check"]["round_trip_us"].as_f64() > Some(0.0), "{checked}");
    }
    let product = json_in(&cluster, here, &one, &["matmul", "--size", "300", "--dtype", "i8", "--place", "remote"]);
    assert_eq!(product["mode"], "remote");
    assert_eq!([one.connections(), two.connections()], before);
    for node in [&one, &two] {
        assert_eq!((node.process.count("Connected to peer"), node.process.count("is gone")), (1, 0));
    }
    tunnel.signal(rustix::process::Signal::TERM);
    one.process.line(&format!("Peer {} is gone (", two.peer));
    let _tunnel = ssh.tunnel(here, &there.address, &words);
    one.process.nth_line(&format!("Connected to peer {}", two.peer), 2);
}

#[test]
fn two_nodes_are_one_pool_through_ssh_with_a_forward_tunnel() {
    through_ssh("two_nodes_are_one_pool_through_ssh_with_a_forward_tunnel", &["-L"]);
}

#[test]
fn two_nodes_are_one_pool_through_ssh_with_a_reverse_tunnel() {
    through_ssh("two_nodes_are_one_pool_through_ssh_with_a_reverse_tunnel", &["-R"]);
}

#[test]
fn two_nodes_are_one_pool_through_ssh_with_both_tunnels() {
    through_ssh("two_nodes_are_one_pool_through_ssh_with_both_tunnels", &["-L", "-R"]);
}

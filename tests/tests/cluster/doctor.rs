//! `pangea doctor`: each thing that it looks for is provoked, with real nodes, networks and disks, and it says what to do.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pangea_control::membership::{Certificate, Chain, Role};
use pangea_node::membership::{KeptCertificate, PoolKey};
use pangea_tests::cluster::{Cluster, Node, binary};
use pangea_tests::command::{command, names_in, pangea, stderr, stdout};
use pangea_tests::doctor::{doctor, found};
use pangea_tests::memory_limit::MemoryLimit;
use pangea_tests::namespaces::Namespaces;
use pangea_tests::process::eventually;
use pangea_tests::skip::{skip, unless_root};
use pangea_tests::small_disk::SmallDisk;
use serde_json::Value;

/// What the doctor finds about a node that runs on this host.
fn of_node(cluster: &Cluster, node: &Node) -> Vec<Value> {
    doctor(command(cluster.folder(), &[]), &node.data_dir).0
}

#[test]
fn the_doctor_finds_what_is_wrong_with_the_folder_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    fs::create_dir_all(home.join("models")).unwrap();
    fs::write(home.join("models/broken.gguf"), b"GGUF and no more").unwrap();
    fs::write(home.join("keys.json"), "{}").unwrap();
    fs::set_permissions(home.join("keys.json"), fs::Permissions::from_mode(0o644)).unwrap();
    let (findings, ok) = doctor(command(folder.path(), &[]), &home);
    assert!(!ok);
    assert_eq!(found(&findings, "data directory", "others may read")["level"], "problem");
    assert_eq!(found(&findings, "model", "broken cannot be read")["level"], "problem");
    found(&findings, "disk", "/s are written");
    found(&findings, "memory", "of memory");
    // For people: lines that fit a terminal, problems in capitals, and a count.
    let output = pangea(folder.path(), &["doctor", "--data-dir", home.to_str().unwrap()]);
    let (text, error) = (stdout(&output), stderr(&output));
    assert!(text.contains("PROBLEM  model: broken cannot be read"), "{text}");
    assert!(error.contains("problems were found"), "{error}");
    let is_long = |line: &&str| line.chars().count() > 80 && line.trim().contains(' ') && !line.contains('/');
    assert_eq!(text.lines().find(is_long), None, "{text}");
    assert_eq!(names_in(&home), ["keys.json", "models"], "nothing is left behind");
}

#[test]
fn the_doctor_explains_a_gpu_that_is_not_used() {
    let test = "the_doctor_explains_a_gpu_that_is_not_used";
    let adapters = pangea_compute::gpu::adapters();
    let Some(unused) = adapters.iter().find(|adapter| adapter.unused_because.is_some()) else {
        return skip(test, "every GPU of this machine is used, or there is none");
    };
    let folder = tempfile::tempdir().unwrap();
    let (findings, _) = doctor(command(folder.path(), &[]), folder.path());
    let finding = found(&findings, "GPU", &unused.name);
    assert!(finding["what"].as_str().unwrap().contains(unused.unused_because.as_deref().unwrap()), "{finding}");
}

#[test]
fn the_doctor_finds_ports_that_are_taken_and_a_network_without_announcements() {
    let test = "the_doctor_finds_ports_that_are_taken_and_a_network_without_announcements";
    let Some(network) = Namespaces::for_test(test, 1) else { return };
    let host = &network.hosts()[0];
    let folder = tempfile::tempdir().unwrap();
    let (findings, ok) = doctor(host.command(&binary()), folder.path());
    assert!(ok, "{findings:?}");
    for (check, what) in
        [("mDNS", "announcements pass"), ("ports", "52415, for the HTTP API, is free"), ("addresses", "reach")]
    {
        assert_eq!(found(&findings, check, what)["level"], "good");
    }

    // Other programs have the ports, that of announcements for themselves alone.
    let _taken =
        host.within(|| (UdpSocket::bind("0.0.0.0:5353").unwrap(), TcpListener::bind("0.0.0.0:52415").unwrap()));
    let (findings, ok) = doctor(host.command(&binary()), folder.path());
    assert!(!ok);
    assert_eq!(found(&findings, "mDNS", "announcements cannot be sent or heard")["level"], "problem");
    assert_eq!(found(&findings, "ports", "52415, for the HTTP API, cannot be used")["level"], "note");
    assert_eq!(found(&findings, "ports", "7777, for other nodes, is free")["level"], "good");
}

#[test]
fn the_doctor_finds_a_certificate_that_does_not_count() {
    let cluster = Cluster::new();
    let one = cluster.node("one").own_pool().start();
    let invitation = cluster.run(&["invite", "--token", "--json", "--rpc", &one.rpc]).json();
    let two = cluster.node("two").own_pool().with("--join", invitation["token"].as_str().unwrap()).start();
    two.process.line("Joined the pool of one as a member");
    assert_eq!(two.terminate(), Some(0));
    let pool = |what: &str| {
        let (findings, ok) = doctor(command(cluster.folder(), &[]), &two.data_dir);
        let finding = found(&findings, "pool", what).clone();
        assert_eq!(ok, finding["level"] != "problem", "{findings:?}");
        finding["level"].as_str().unwrap().to_owned()
    };
    assert_eq!(pool("the certificate from one counts"), "good");

    let key = PoolKey::load(&one.data_dir.join("pool.key")).unwrap();
    let kept = KeptCertificate::load(&two.data_dir).unwrap().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let until = |expires_unix_s: u64| {
        let peer = two.peer.parse().unwrap();
        let signed =
            key.signer().unwrap().sign(Certificate { peer, role: Role::Member, expires_unix_s, serial: 1 }).unwrap();
        KeptCertificate { chain: Chain::of_pool(signed), ..kept.clone() }.save(&two.data_dir).unwrap();
    };
    until(now + 3 * 3600 + 60);
    assert_eq!(pool("ends in 3 hours"), "note");
    until(now - 1);
    assert_eq!(pool("does not count: its certificate has expired"), "problem");

    kept.save(&two.data_dir).unwrap();
    let own = fs::read(two.data_dir.join("node.key")).unwrap();
    fs::copy(one.data_dir.join("node.key"), two.data_dir.join("node.key")).unwrap();
    assert_eq!(pool("does not count: it shows the certificate of"), "problem");
    fs::write(two.data_dir.join("node.key"), "no key").unwrap();
    assert_eq!(pool("is damaged"), "problem");
    fs::write(two.data_dir.join("node.key"), own).unwrap();
    fs::write(two.data_dir.join("certificate"), "{").unwrap();
    assert_eq!(pool("is unusable"), "problem");
}

#[test]
fn the_doctor_finds_other_pools_other_versions_and_too_many_threads() {
    let cluster = Cluster::new();
    let other = cluster.node("other").own_pool().start();
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads = (cores + 1).to_string();
    let one = cluster.node("one").own_pool().with("--peer", &other.address).with("--threads", &threads).start();
    let open = cluster.node("open").start();
    let old = cluster.node("attic").fault("old-version").with("--peer", &open.address).start();
    old.process.line(&format!("Connected to peer {}", open.peer));
    let level = |node: &Node, check: &str, what: &str| {
        let fits = |finding: &&Value| finding["check"] == check && finding["what"].as_str().unwrap().contains(what);
        of_node(&cluster, node).iter().find(fits).map(|finding| finding["level"].as_str().unwrap().to_owned())
    };
    eventually("the other pool is found", || level(&one, "peers", "it belongs to another pool").is_some());
    eventually("the other version is found", || level(&open, "versions", "attic runs 0.0.1").is_some());
    assert_eq!(level(&one, "peers", "it belongs to another pool").as_deref(), Some("problem"));
    assert_eq!(level(&open, "versions", "attic runs 0.0.1").as_deref(), Some("note"));
    let what = format!("{threads} compute threads on {cores} cores");
    assert_eq!(level(&one, "threads", &what).as_deref(), Some("problem"));
    assert_eq!(level(&open, "pool", "the pool is open").as_deref(), Some("note"));
}

#[test]
fn the_doctor_finds_a_clock_that_was_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let state = fs::File::create(folder.path().join("state.redb")).unwrap();
    let check = |written: SystemTime, what: &str| {
        state.set_modified(written).unwrap();
        let (findings, _) = doctor(command(folder.path(), &[]), folder.path());
        found(&findings, "clock", what)["level"].clone()
    };
    assert_eq!(check(SystemTime::now(), "has not been set back"), "good");
    assert_eq!(check(SystemTime::now() + Duration::from_secs(3600), "s behind the last run of a node"), "problem");
}

#[test]
fn the_doctor_finds_too_little_memory() {
    let test = "the_doctor_finds_too_little_memory";
    if unless_root(test) {
        return;
    }
    let limit = match MemoryLimit::new("pangea-doctor", 512 << 20) {
        Ok(limit) => limit,
        Err(why) => return skip(test, &why),
    };
    let folder = tempfile::tempdir().unwrap();
    let (findings, _) = doctor(limit.command(&binary()), folder.path());
    assert_eq!(found(&findings, "memory", "512 MiB of memory")["level"], "note");
}

#[test]
fn the_doctor_finds_a_full_and_a_read_only_disk() {
    let test = "the_doctor_finds_a_full_and_a_read_only_disk";
    if unless_root(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = match SmallDisk::mount(&folder.path().join("disk"), 8 << 20) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &why),
    };
    let home = disk.path().join("home");
    fs::create_dir(&home).unwrap();
    let (findings, ok) = doctor(command(folder.path(), &[]), &home);
    assert!(!ok);
    assert_eq!(found(&findings, "disk", "MiB are free")["level"], "problem");
    assert_eq!(found(&findings, "disk", "cannot write")["level"], "problem");
    assert!(names_in(&home).is_empty());
    disk.make_read_only();
    let (findings, _) = doctor(command(folder.path(), &[]), &home);
    let finding = found(&findings, "data directory", "cannot write in");
    assert!(finding["advice"].as_str().unwrap().contains("--data-dir"), "{finding}");
}

/// What makes a disk slow: bytes take two seconds to be on it.
const SLOW_DISK: &str = "#include <unistd.h>\nint fsync(int file) { (void)file; sleep(2); return 0; }\n";

#[test]
#[cfg(target_os = "linux")]
fn the_doctor_finds_a_slow_disk() {
    let test = "the_doctor_finds_a_slow_disk";
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("slow.c"), folder.path().join("slow.so"));
    fs::write(&source, SLOW_DISK).unwrap();
    match Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output() {
        Ok(output) => assert!(output.status.success(), "{}", stderr(&output)),
        Err(error) => return skip(test, &format!("there is no C compiler: {error}")),
    }
    let mut slow = command(folder.path(), &[]);
    slow.env("LD_PRELOAD", &library);
    let (findings, _) = doctor(slow, folder.path());
    assert_eq!(found(&findings, "disk", "/s are written")["level"], "note");
}

#[test]
fn the_doctor_finds_that_no_way_leads_back_and_an_address_that_only_containers_reach() {
    let test = "the_doctor_finds_that_no_way_leads_back_and_an_address_that_only_containers_reach";
    let Some(network) = Namespaces::for_test(test, 2) else { return };
    let [here, there] = [0, 1].map(|index| &network.hosts()[index]);
    let cluster = Cluster::new();
    let key = cluster.pool_key("pool.key", 9);
    let node = |name: &str, host, listen: &str| {
        cluster.node(name).pool_key(&key).in_namespace(host).listen(listen).flag("--no-mdns")
    };
    let other = node("other", there, "/ip4/0.0.0.0/tcp/0").start();
    let address = format!("/ip4/{}/tcp/{}/p2p/{}", there.address, other.port(), other.peer);
    network.add_bridge(0, "docker0", "172.17.0.1/16");
    let findings_of = |name: &str, listen: &str| {
        let node = node(name, here, listen).with("--peer", &address).start();
        node.process.line(&format!("Connected to peer {}", other.peer));
        doctor(here.command(&binary()), &node.data_dir).0
    };
    let findings = findings_of("reached", "/ip4/0.0.0.0/tcp/0");
    assert_eq!(found(&findings, "way back", "other reaches this node at /ip4/10.231.77.1")["level"], "good");
    let findings = findings_of("alone", "/ip4/127.0.0.1/tcp/0");
    assert_eq!(found(&findings, "way back", "other cannot open a connection to this node")["level"], "problem");
    assert_eq!(found(&findings, "addresses", "which only this machine reaches")["level"], "problem");
    let findings = findings_of("boxed", "/ip4/172.17.0.1/tcp/0");
    assert_eq!(found(&findings, "addresses", "which leads to containers of this machine only")["level"], "problem");
    assert_eq!(found(&findings, "way back", "nothing answers it at /ip4/172.17.0.1")["level"], "problem");
}

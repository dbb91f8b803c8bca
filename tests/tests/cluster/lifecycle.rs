//! How nodes, commands and jobs end: cancelled on every node, drained, refused, with nothing left behind.

use pangea_client::ErrorKind;
use pangea_compute::DType;
use pangea_tests::cluster::{Cluster, Node, Star, output};
use pangea_tests::matrix::{multiply_watching, operands, remote, upload};
use pangea_tests::process::{Process, eventually};
use pangea_tests::skip::{skip, unless_root};
use pangea_tests::small_disk::SmallDisk;
use rustix::process::Signal;

/// Tasks that are under way at the worker when a job ends: enough to tell those that stop from those that go on.
const IN_FLIGHT: u32 = 3;

/// Waits until tasks of the only job are running at the only worker; returns how many tasks it has done.
fn in_the_middle(star: &Star) -> u64 {
    let client = star.one.client();
    eventually("the worker has tasks of the job", || {
        client.status().unwrap().jobs_running == 1 && client.peers().unwrap()[0].tasks_in_flight >= IN_FLIGHT
    });
    star.workers[0].status().tasks_served
}

/// A command whose job keeps a slow worker busy for a long time.
fn long_command(cluster: &Cluster, star: &Star) -> Process {
    let shape = ["matmul", "--size", "3000", "--generate", "--dtype", "f64", "--place", "remote", "-o", "C.npy"];
    cluster.start(&[&shape[..], &["--rpc", &star.one.rpc]].concat())
}

/// Checks that nothing of a job is left on any node. `served`: the tasks that the worker had done before the job ended.
fn all_is_over(star: &Star, served: u64) {
    star.one.is_idle_again();
    let (a, b) = operands(DType::I8, 64, 64, 64);
    let product = pangea_tests::matrix::multiply(&star.one.client(), &a, &b, &remote()).unwrap();
    let worker = star.workers[0].status();
    // A task that waited behind those of the ended job has been done, and none of those but one that ended meanwhile.
    let own = u64::from(product.report.tasks.remote);
    assert!(worker.tasks_served <= served + own + 1, "tasks of the ended job went on: {served} before, {worker:?}");
    assert_eq!(worker.jobs_running, 0);
}

fn slow_star(cluster: &Cluster) -> Star {
    cluster.star(vec![cluster.node("slow").fault("slow")])
}

#[test]
fn ctrl_c_on_a_product_cancels_it_on_every_node_and_leaves_no_file() {
    let cluster = Cluster::new();
    let star = slow_star(&cluster);
    let command = long_command(&cluster, &star);
    let served = in_the_middle(&star);
    command.signal(Signal::INT);
    let ended = output(&command);
    assert_eq!(ended.code, Some(130), "{ended:?}");
    all_is_over(&star, served);
    assert!(no_product_file(&cluster));
}

#[test]
fn a_killed_client_cancels_its_job_on_every_node_and_frees_its_memory() {
    let cluster = Cluster::new();
    let star = slow_star(&cluster);
    let command = long_command(&cluster, &star);
    let served = in_the_middle(&star);
    command.signal(Signal::KILL);
    all_is_over(&star, served);
}

fn no_product_file(cluster: &Cluster) -> bool {
    let names =
        std::fs::read_dir(cluster.folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.into_iter().all(|name| !name.contains("C.npy"))
}

#[test]
fn a_cancelled_job_has_its_error_kind() {
    let cluster = Cluster::new();
    let star = slow_star(&cluster);
    let client = star.one.client();
    let (a, b) = operands(DType::F64, 2500, 2500, 2500);
    let (a, b) = (upload(&client, &a).unwrap(), upload(&client, &b).unwrap());
    let (job, product) = client.matmul(&a, &b, &remote());
    // The request is sent with the first call that is awaited.
    client.block_on(job.progress()).unwrap();
    let served = in_the_middle(&star);
    client.cancel(&job).unwrap();
    assert_eq!(client.wait(&job, &mut |_| {}).unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(client.read_into(&product, &mut Vec::new()).unwrap_err().kind(), ErrorKind::Cancelled);
    drop((a, b, job, product, client));
    all_is_over(&star, served);
}

#[test]
fn a_terminated_node_exits_with_zero_and_its_peers_say_that_it_is_gone() {
    let cluster = Cluster::new();
    let (one, other) = (cluster.node("one").start(), cluster.node("other").start());
    one.connect(&other);
    assert_eq!(other.terminate(), Some(0));
    one.process.line(&format!("Peer {} is gone (", other.peer));
    assert!(!other.data_dir.join("node.json").exists());
    one.process.signal(Signal::INT);
    assert_eq!(one.process.wait().code(), Some(0));
}

#[test]
fn a_worker_terminated_in_the_middle_of_a_job_costs_no_result() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let (a, b) = operands(DType::F64, 2048, 2048, 2048);
    let worker = &star.workers[0];
    let mut told = false;
    let product = multiply_watching(&star.one.client(), &a, &b, &remote(), &mut |progress| {
        if progress.tasks_done > 0 && !told {
            told = true;
            worker.process.signal(Signal::TERM);
        }
    });
    pangea_tests::matrix::assert_product(&a, &b, &product.unwrap().c);
    assert_eq!(worker.process.wait().code(), Some(0));
    star.one.process.line(&format!("Peer {} is gone (", worker.peer));
}

#[test]
fn a_stopping_node_completes_its_job_and_lets_its_product_be_fetched() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let (a, b) = operands(DType::F64, 1200, 1200, 1200);
    let mut told = false;
    let product = multiply_watching(&star.one.client(), &a, &b, &remote(), &mut |_| {
        if !std::mem::replace(&mut told, true) {
            star.one.process.signal(Signal::TERM);
        }
    });
    pangea_tests::matrix::assert_product(&a, &b, &product.unwrap().c);
    assert_eq!(star.one.process.wait().code(), Some(0));
}

/// Checks that a node does not start and that its error contains `words`.
fn does_not_start(process: &Process, words: &[&str]) {
    let ended = output(process);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for word in words {
        assert!(ended.err.contains(word), "{word} is missing: {ended:?}");
    }
}

fn is_well(node: &Node) {
    assert_eq!(node.status().peer, node.peer);
}

#[test]
fn a_port_in_use_is_named_with_advice() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let port = one.port().to_string();
    does_not_start(&cluster.node("other").listen(&format!("/ip4/127.0.0.1/tcp/{port}")).launch(), &[&port, "--listen"]);
    let rpc_port = one.rpc.rsplit(':').next().unwrap();
    does_not_start(&cluster.node("third").rpc_addr(&one.rpc).launch(), &[rpc_port, "--rpc-addr"]);
    is_well(&one);
}

#[test]
fn a_data_directory_has_one_node_at_a_time() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    does_not_start(&cluster.node("one").launch(), &[one.data_dir.to_str().unwrap(), "--data-dir"]);
    assert!(one.data_dir.join("node.json").exists());
    one.kill9();
    one.process.wait();
    // A killed node leaves nothing behind that prevents the next one from starting.
    is_well(&cluster.node("one").start());
}

#[test]
fn two_ephemeral_nodes_share_a_data_directory() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let guest = cluster.node("one").flag("--ephemeral").launch();
    guest.line("Listening on ");
    assert_ne!(guest.line("Starting node ").text, one.process.line("Starting node ").text);
    is_well(&one);
}

#[test]
fn commands_find_the_node_of_their_data_directory_whatever_its_ports() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let data_dir = one.data_dir.to_str().unwrap().to_owned();
    let found = cluster.run(&["status", "--json", "--data-dir", &data_dir]).json();
    assert_eq!(found["peer"], one.peer.as_str());
    let product = ["matmul", "--size", "16", "--place", "local", "--json", "--data-dir", &data_dir];
    assert_eq!(cluster.run(&product).json()["workers"][0]["peer"], one.peer.as_str());
    // A killed node leaves its node.json behind: commands that can run without a node do so.
    one.process.signal(Signal::KILL);
    one.process.wait();
    assert!(one.data_dir.join("node.json").exists());
    let output = cluster.run(&product);
    assert_ne!(output.json()["workers"][0]["peer"], one.peer.as_str(), "{output:?}");
}

#[test]
fn a_panic_of_an_essential_part_ends_the_node_with_exit_code_1() {
    let cluster = Cluster::new();
    let node = cluster.node("one").fault("panic-pool").start();
    let ended = output(&node.process);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.err.contains("The part \"pool\" panicked: as the fault of this node says; the node ends"),
        "{ended:?}"
    );
    assert!(!node.data_dir.join("node.json").exists(), "nothing says that the node is there");
}

#[test]
fn a_panic_at_one_task_fails_only_that_task() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker").fault("panic-executor")]);
    let (a, b) = operands(DType::I8, 512, 512, 512);
    let product = pangea_tests::matrix::multiply(&star.one.client(), &a, &b, &remote()).unwrap();
    pangea_tests::matrix::assert_product(&a, &b, &product.c);
    let worker = &star.workers[0];
    worker.process.line("The part \"executor\" panicked: as the fault of this node says; restarting it");
    assert_eq!(pangea_tests::http::get(&worker.api, "/healthz").status, 200);
    let (a, b) = operands(DType::I8, 64, 64, 64);
    // After a failure the coordinator gives the worker nothing for a moment.
    eventually("the worker works on", || {
        let again = pangea_tests::matrix::multiply(&star.one.client(), &a, &b, &remote()).unwrap();
        pangea_tests::matrix::assert_product(&a, &b, &again.c);
        again.report.tasks.remote > 0
    });
}

/// A node that could not write where other programs find it ended at once.
#[test]
fn a_node_whose_disk_is_full_at_the_start_runs_and_is_found_once_there_is_room() {
    let test = "a_node_whose_disk_is_full_at_the_start_runs_and_is_found_once_there_is_room";
    if unless_root(test) {
        return;
    }
    let cluster = Cluster::new();
    let disk = match SmallDisk::mount(&cluster.folder().join("one"), 16 << 20) {
        Ok(disk) => disk,
        Err(why) => return skip(test, &format!("no small disk can be mounted: {why}")),
    };
    let builder = cluster.node("one");
    // Its key and its database are there.
    assert_eq!(builder.start().terminate(), Some(0));
    disk.fill();
    let node = builder.launch();
    node.line("until that works, commands find this node only with --rpc 127.0.0.1:");
    node.line("Listening on ");
    let data_dir = builder.data_dir();
    let status = || cluster.run(&["status", "--data-dir", data_dir.to_str().unwrap(), "--json"]);
    assert!(!data_dir.join("node.json").exists());
    disk.clear();
    node.line("Wrote node.json; commands find this node again");
    assert_eq!(status().json()["name"], "one");
    node.signal(Signal::TERM);
    assert!(node.wait().success());
}

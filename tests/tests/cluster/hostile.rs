//! Unexpected bytes on every port and at every point of the protocol: they are dropped without harm.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use pangea_compute::{DType, Operation, Tensor};
use pangea_node::wire::{Header, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, Message, Shape, Task, TaskHello};
use pangea_tests::cluster::{Cluster, Star};
use pangea_tests::http::get;
use pangea_tests::matrix::{assert_product, multiply, operands, reference, remote};
use pangea_tests::process::{TIMEOUT, eventually};
use pangea_tests::stranger::{Stranger, advert};

/// Checks that both nodes work, and that nothing of the stranger's is left.
fn all_is_well(star: &Star) {
    let (a, b) = operands(DType::I8, 200, 200, 200);
    let client = star.one.client();
    let product = multiply(&client, &a, &b, &remote()).unwrap();
    assert_product(&a, &b, &product.c);
    assert_eq!(product.report.mode, "remote");
    for node in star.workers.iter().chain([&star.one]) {
        assert_eq!(node.process.count("panicked"), 0);
    }
}

/// Pseudo-random bytes, the same in every run.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    Tensor::generate(DType::I8, 1, length, seed).unwrap().contiguous_bytes().unwrap().to_vec()
}

#[test]
fn garbage_on_the_ports_does_no_harm() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let worker = &star.workers[0];
    let libp2p = format!("127.0.0.1:{}", worker.port());
    for port in [&libp2p, &worker.rpc, &star.one.rpc] {
        // A Cap'n Proto message that claims 4 GiB, half a line of HTTP, nothing, and noise of several lengths.
        let mut claims = vec![vec![0, 0, 0, 0, 0xff, 0xff, 0xff, 0x1f, 1], b"GET / HTTP/1.1\r\n".to_vec(), Vec::new()];
        claims.push(vec![0xff; 64]);
        claims.extend((0..12).map(|seed| noise(1 << seed, seed)));
        for bytes in claims {
            let mut stream = TcpStream::connect(port).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            // The node may have closed the connection already.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let ended = stream.read_to_end(&mut answer);
            assert!(
                !ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
                "the node keeps the connection"
            );
        }
    }
    all_is_well(&star);
}

#[test]
fn silent_connections_do_not_block_others() {
    let cluster = Cluster::new();
    let (one, worker) = (cluster.node("one").start(), cluster.node("worker").start());
    let address = format!("127.0.0.1:{}", worker.port());
    // More than there are places for in handshakes, all from one address.
    let silent: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(&address).unwrap()).collect();
    one.connect(&worker);
    drop(silent);
    all_is_well(&Star { one, workers: vec![worker] });
}

#[test]
fn invalid_frames_end_only_their_stream() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let stranger = Stranger::connect(&star.workers[0].address);
    let prefix = |header: u32, payload: u32| [header.to_le_bytes(), payload.to_le_bytes()].concat();
    let mut advert_bytes = Vec::new();
    Message::Hello(advert()).encode(0, &mut advert_bytes).unwrap();
    let mut truncated = advert_bytes.clone();
    truncated.extend(prefix(16, 0));
    truncated.extend([0xee; 16]);
    let openings: [(&str, Vec<u8>); 8] = [
        ("noise", noise(500, 4)),
        ("a header larger than allowed", prefix(MAX_HEADER_BYTES + 8, 0)),
        ("a header of all that a length can say", prefix(u32::MAX, 0)),
        ("an empty header", prefix(0, 0)),
        ("a payload larger than allowed", prefix(64, MAX_PAYLOAD_BYTES + 1)),
        ("a header that is no message", [prefix(64, 0), noise(64, 5)].concat()),
        ("an advert with something behind it that is no message", truncated),
        ("a payload that belongs to no message", {
            let mut bytes = advert_bytes.clone();
            bytes[4..8].copy_from_slice(&8u32.to_le_bytes());
            [bytes, vec![0; 8]].concat()
        }),
    ];
    for (what, bytes) in openings {
        let mut stream = stranger.stream();
        stream.send(&bytes);
        eprintln!("{what}: {} bytes came back before the end", stream.is_ended());
    }
    all_is_well(&star);
}

#[test]
fn a_peer_with_another_protocol_version_gets_no_work_done() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let stranger = Stranger::connect(&star.workers[0].address);
    let mut stream = stranger.stream();
    stream.send_message(&Message::Hello(TaskHello { version: 0, ..advert() }), &[]);
    stream.is_ended();
    let mut stream = stranger.stream();
    stream.send_message(&Message::Cancel(7), &[]);
    stream.is_ended();
    all_is_well(&star);
}

#[test]
fn well_formed_messages_at_the_wrong_place_end_the_stream() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let worker = &star.workers[0];
    let stranger = Stranger::connect(&worker.address);
    let tensor = Tensor::generate(DType::I8, 8, 8, 1).unwrap();
    let (digest, shape) = (tensor.digest(), Shape::new(DType::I8, 8, 8).unwrap());
    let operand = |offset| Message::Operand { digest, shape, offset };
    let task = Message::Task(Task {
        id: 1,
        priority: 0,
        deadline: None,
        operation: Operation::Matmul,
        operands: [digest, digest],
        trace: None,
    });
    let lies: [Vec<(Message, usize)>; 3] = [
        // A piece that leaves a gap.
        vec![(operand(0), 16), (operand(32), 16)],
        // The same task twice.
        vec![(task.clone(), 0), (task.clone(), 0)],
        // Half an operand, then one of another shape under the same digest.
        vec![
            (operand(0), 32),
            (Message::Operand { digest, shape: Shape::new(DType::I8, 4, 16).unwrap(), offset: 32 }, 32),
        ],
    ];
    for messages in lies {
        let mut stream = stranger.stream();
        stream.send_message(&Message::Hello(advert()), &[]);
        for (message, payload) in messages {
            stream.send_message(&message, &vec![0; payload]);
        }
        stream.is_ended();
    }
    // Operands of the stranger are removed when its streams end.
    let client = worker.client();
    eventually("the worker's memory is free", || client.status().unwrap().memory_used_bytes == 0);
    all_is_well(&star);
}

#[test]
fn a_result_larger_than_the_memory_is_refused_before_it_is_computed() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker").max_memory("256M")]);
    let worker = &star.workers[0];
    let before = worker.process.peak_memory_bytes();
    let stranger = Stranger::connect(&worker.address);
    let mut stream = stranger.stream();
    stream.send_message(&Message::Hello(advert()), &[]);
    // 40 kB of operands, whose product takes 1.5 GiB.
    let side = 20_000;
    let a = Tensor::generate(DType::I8, side, 1, 1).unwrap();
    let b = Tensor::generate(DType::I8, 1, side, 2).unwrap();
    for tensor in [&a, &b] {
        let shape = Shape::new(DType::I8, tensor.rows() as u64, tensor.cols() as u64).unwrap();
        let message = Message::Operand { digest: tensor.digest(), shape, offset: 0 };
        stream.send_message(&message, tensor.contiguous_bytes().unwrap());
    }
    let (operation, operands) = (Operation::Matmul, [a.digest(), b.digest()]);
    stream.send_message(
        &Message::Task(Task { id: 1, priority: 127, deadline: None, operation, operands, trace: None }),
        &[],
    );
    let answer = stream.next_message(|message| {
        matches!(message, Message::Failure { .. } | Message::Result { .. } | Message::Started(_))
    });
    let Message::Failure { kind, message, .. } = answer else { panic!("{answer:?}") };
    assert_eq!(kind, pangea_client::ErrorKind::Overloaded, "{message}");
    assert!(message.starts_with("needs 1.49 GiB; at most 64.0 MiB of this node's 256 MiB"), "{message}");
    if let (Some(before), Some(after)) = (before, worker.process.peak_memory_bytes()) {
        assert!(after - before < 64 << 20, "{} bytes more", after - before);
    }
    drop(stream);
    all_is_well(&star);
}

#[test]
fn a_result_larger_than_the_memory_is_refused_to_programs_as_well() {
    let cluster = Cluster::new();
    let one = cluster.node("one").max_memory("256M").start();
    let before = one.process.peak_memory_bytes();
    // 200 kB of operands, whose product takes 40 GB.
    let side = 100_000;
    let a = Tensor::generate(DType::I8, side, 1, 1).unwrap();
    let b = Tensor::generate(DType::I8, 1, side, 2).unwrap();
    let refused = multiply(&one.client(), &a, &b, &pangea_client::MatmulOptions::default()).err().unwrap();
    let kinds = [pangea_client::ErrorKind::Overloaded, pangea_client::ErrorKind::InvalidInput];
    assert!(kinds.contains(&refused.kind()), "{refused:?}");
    if let (Some(before), Some(after)) = (before, one.process.peak_memory_bytes()) {
        assert!(after - before < 64 << 20, "{} bytes more", after - before);
    }
}

#[test]
fn operands_of_another_workers_task_are_not_sent_to_whoever_guesses_its_number() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("mute").fault("hang")]);
    let one = &star.one;
    let stranger = Stranger::worker(&one.address);
    let mut stream = stranger.accept();
    stream.send_message(&Message::Hello(advert()), &[]);
    // It computes for nobody, so that no operand is its own, and is in no list of peers for that.
    one.process.line(&format!("Connected to peer {}", stranger.peer()));
    let (a, b) = operands(DType::I8, 300, 300, 300);
    std::thread::scope(|scope| {
        let (rpc, a, b) = (&one.rpc, &a, &b);
        let asked = scope.spawn(move || {
            multiply(&pangea_client::blocking::Client::connect(rpc, TIMEOUT).unwrap(), a, b, &remote()).unwrap()
        });
        let busy = || one.status_of(&star.workers[0]).tasks_in_flight > 0;
        eventually("the other worker has a task", busy);
        for task in 0..64 {
            let digests = vec![a.digest(), b.digest()];
            stream.send_message(&Message::Missing { task, digests }, &[]);
        }
        assert_product(a, b, &asked.join().unwrap().c);
    });
    one.process.signal(rustix::process::Signal::TERM);
    let told = stream.messages();
    let operands = told.iter().filter(|message| matches!(message, Message::Operand { .. }));
    assert_eq!(operands.count(), 0, "{told:?}");
}

#[test]
fn a_right_result_without_a_signature_is_not_accepted_as_checked() {
    let cluster = Cluster::new();
    let one = cluster.node("one").start();
    let stranger = Stranger::worker(&one.address);
    let mut stream = stranger.accept();
    stream.send_message(&Message::Hello(TaskHello { works: true, tasks_max: 64, ..advert() }), &[]);
    let status = || one.client().peers().unwrap().into_iter().find(|peer| peer.peer == stranger.peer());
    let wanted = |message: &Message| matches!(message, Message::Task(_) | Message::Probe { last: true, .. });
    // The node measures the link before it sends tasks, and again now and then.
    let Message::Probe { nonce, .. } = stream.next_message(wanted) else { panic!("a task before the link is known") };
    stream.send_message(&Message::Probed(nonce), &[]);
    eventually("the stranger is a worker", || status().is_some_and(|peer| peer.state == "connected"));
    let before = status().unwrap().trust;
    // One tile, so that the whole product is one task's result.
    let (a, b) = operands(DType::I8, 64, 64, 64);
    let right = reference(&a, &b);
    let asked = std::thread::scope(|scope| {
        let (rpc, a, b) = (&one.rpc, &a, &b);
        let asked = scope
            .spawn(move || multiply(&pangea_client::blocking::Client::connect(rpc, TIMEOUT).unwrap(), a, b, &remote()));
        let task = loop {
            match stream.next_message(wanted) {
                Message::Task(task) => break task,
                Message::Probe { nonce, .. } => stream.send_message(&Message::Probed(nonce), &[]),
                other => unreachable!("{other:?}"),
            }
        };
        let shape = Shape::new(right.dtype(), right.rows() as u64, right.cols() as u64).unwrap();
        let result = Message::Result { task: task.id, shape, offset: 0, compute_nanos: 1000, signed: None };
        stream.send_message(&result, right.contiguous_bytes().unwrap());
        asked.join().unwrap()
    });
    let product = asked.unwrap();
    assert_product(&a, &b, &product.c);
    let by_stranger = product.report.workers.iter().filter(|worker| worker.peer == stranger.peer());
    assert_eq!(by_stranger.map(|worker| worker.tasks).sum::<u32>(), 0, "{:?}", product.report);
    assert!(status().unwrap().trust < before, "whoever does not sign is trusted less");
}

#[test]
fn a_peer_that_sends_tasks_too_fast_is_told_when_to_come_again() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let stranger = Stranger::connect(&star.workers[0].address);
    let mut stream = stranger.stream();
    stream.send_message(&Message::Hello(advert()), &[]);
    let digest = |number: u8| pangea_compute::Digest::from_bytes([number; 32]);
    // Their operands never come: each task waits.
    for id in 0..100 {
        let (operation, operands) = (Operation::Matmul, [digest(1), digest(2)]);
        stream.send_message(
            &Message::Task(Task { id, priority: 127, deadline: None, operation, operands, trace: None }),
            &[],
        );
    }
    let refused = stream.next_message(|message| matches!(message, Message::Failure { .. }));
    let Message::Failure { kind, retry_after, .. } = refused else { unreachable!() };
    assert_eq!(kind, pangea_client::ErrorKind::Overloaded);
    assert!(retry_after.is_some_and(|after| !after.is_zero()), "{retry_after:?}");
    drop(stream);
    all_is_well(&star);
}

#[test]
fn results_that_a_peer_does_not_take_leave_memory_for_those_of_others() {
    let cluster = Cluster::new();
    // 64 MiB for results, half of it for one peer.
    let star = cluster.star(vec![cluster.node("worker").max_memory("256M")]);
    let worker = &star.workers[0];
    let stranger = Stranger::connect(&worker.address);
    let mut stream = stranger.stream();
    stream.send_message(&Message::Hello(advert()), &[]);
    // Twelve results of 15 MiB each, none of which the stranger reads.
    let side = 2000;
    let a = Tensor::generate(DType::I8, side, 1, 1).unwrap();
    let b = Tensor::generate(DType::I8, 1, side, 2).unwrap();
    for tensor in [&a, &b] {
        let shape = Shape::new(DType::I8, tensor.rows() as u64, tensor.cols() as u64).unwrap();
        let message = Message::Operand { digest: tensor.digest(), shape, offset: 0 };
        stream.send_message(&message, tensor.contiguous_bytes().unwrap());
    }
    let (operation, digests) = (Operation::Matmul, [a.digest(), b.digest()]);
    for id in 0..12 {
        stream.send_message(
            &Message::Task(Task { id, priority: 0, deadline: None, operation, operands: digests, trace: None }),
            &[],
        );
    }
    let held = || {
        let metrics = get(&worker.api, "/metrics").text();
        let line = metrics.lines().find(|line| line.starts_with("pangea_memory_bytes{purpose=\"results\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap()
    };
    eventually("the results wait to be read", || held() > f64::from(30 << 20));
    let (a, b) = operands(DType::I8, 200, 200, 200);
    for _ in 0..20 {
        let product = multiply(&star.one.client(), &a, &b, &remote()).unwrap();
        assert_product(&a, &b, &product.c);
        assert_eq!((product.report.tasks.retried, product.report.mode.as_str()), (0, "remote"), "{:?}", product.report);
        assert!(held() <= f64::from(33 << 20), "{} bytes", held());
    }
    drop(stream);
    all_is_well(&star);
}

#[test]
fn memory_claimed_by_a_stranger_is_bounded_by_the_quota_of_one_peer() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker").max_memory("64M")]);
    let worker = &star.workers[0];
    let before = worker.process.peak_memory_bytes();
    let stranger = Stranger::connect(&worker.address);
    let mut stream = stranger.stream();
    stream.send_message(&Message::Hello(advert()), &[]);
    for number in 0..200u8 {
        let digest = pangea_compute::Digest::from_bytes([number; 32]);
        // The first byte of operands of 4 TiB, 1 GiB and 1 MiB; no more bytes follow.
        let cols = [1 << 30, 1 << 10, 1][usize::from(number % 3)];
        let shape = Shape::new(DType::I8, 1 << 12, cols).unwrap_or(Shape::new(DType::I8, 1 << 20, 1 << 10).unwrap());
        stream.send_message(&Message::Operand { digest, shape, offset: 0 }, &[1]);
    }
    stream.send_message(&Message::Probe { nonce: 1, total: 0, last: true }, &[]);
    let used = worker.status().memory_used_bytes;
    assert!(used <= 16 << 20, "{used} bytes are held on a stranger's word");
    if let (Some(before), Some(after)) = (before, worker.process.peak_memory_bytes()) {
        assert!(after - before < 64 << 20, "{before} {after}");
    }
    all_is_well(&star);
}

#[test]
fn an_operand_that_does_not_match_its_digest_is_not_used() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let worker = &star.workers[0];
    let stranger = Stranger::connect(&worker.address);
    let mut stream = stranger.stream();
    stream.send_message(&Message::Hello(advert()), &[]);
    let digest = pangea_compute::Digest::from_bytes([1; 32]);
    let shape = Shape::new(DType::I8, 8, 8).unwrap();
    stream.send_message(&Message::Operand { digest, shape, offset: 0 }, &[7; 64]);
    let (operation, operands) = (Operation::Matmul, [digest, digest]);
    stream.send_message(
        &Message::Task(Task { id: 5, priority: 0, deadline: None, operation, operands, trace: None }),
        &[],
    );
    let failure = stream.next_message(|message| matches!(message, Message::Failure { task: 5, .. }));
    let Message::Failure { kind, message, .. } = failure else { unreachable!() };
    assert_eq!(kind, pangea_client::ErrorKind::InvalidInput, "{message}");
    assert_eq!(worker.status().tasks_served, 0);
    all_is_well(&star);
}

#[test]
fn a_digest_reveals_nothing_about_another_peers_operands() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    // One tile, so that the whole operands are sent under their digests.
    let (a, b) = operands(DType::I8, 64, 64, 64);
    multiply(&star.one.client(), &a, &b, &remote()).unwrap();
    let stranger = Stranger::connect(&star.workers[0].address);
    let mut stream = stranger.stream();
    stream.send_message(&Message::Hello(advert()), &[]);
    let (operation, operands) = (Operation::Matmul, [a.digest(), b.digest()]);
    stream.send_message(
        &Message::Task(Task { id: 9, priority: 0, deadline: None, operation, operands, trace: None }),
        &[],
    );
    let missing = stream.next_message(|message| matches!(message, Message::Missing { task: 9, .. }));
    assert_eq!(missing, Message::Missing { task: 9, digests: vec![a.digest(), b.digest()] });
}

#[test]
fn a_task_of_an_unknown_operation_is_refused_by_kind_and_the_stream_goes_on() {
    let cluster = Cluster::new();
    let star = cluster.star(vec![cluster.node("worker")]);
    let stranger = Stranger::connect(&star.workers[0].address);
    let mut stream = stranger.stream();
    stream.send_message(&Message::Hello(advert()), &[]);
    stream.send_message(&Message::UnknownTask(3), &[]);
    let failure = stream.next_message(|message| matches!(message, Message::Failure { task: 3, .. }));
    let Message::Failure { kind, message, .. } = failure else { unreachable!() };
    assert_eq!(kind, pangea_client::ErrorKind::InvalidInput, "{message}");
    stream.send_message(&Message::Probe { nonce: 1, total: 0, last: true }, &[]);
    stream.next_message(|message| *message == Message::Probed(1));
    drop(stream);
    all_is_well(&star);
}

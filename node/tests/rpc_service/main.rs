//! The Cap'n Proto service over real sockets, driven by the Rust client, and by raw messages where
//! our client would not send them.
#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

mod backend;

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use backend::PlainBackend;
use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use pangea_client::exception::from_exception;
use pangea_client::out_of_core::{MatrixDestination, MatrixSource, Plan, Shape, multiply};
use pangea_client::transport::{CHUNK_BYTES, MAX_MESSAGE_BYTES, network};
use pangea_client::{
    Client, DType, Error, ErrorKind, MatmulOptions, Result, Tensor, TensorBytes, TensorDestination, TensorInfo,
    TensorSource,
};
use pangea_node::api::Service;
use pangea_node::api::rpc::{Limits, Ports, bind, bind_local, serve};
use pangea_node::serve::Served;
use pangea_node::supervise::Supervisor;
use pangea_schema::{node_capnp, tensor_capnp};
use tokio::task::LocalSet;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

/// The same as in the binary `pangea`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const GIB: u64 = 1 << 30;

/// Timeout of a test, long enough for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

struct Node {
    service: Service,
    backend: PlainBackend,
}

impl Node {
    fn start(memory_limit: u64, limits: Limits) -> Node {
        let backend = PlainBackend::new(memory_limit);
        let listener = bind("127.0.0.1:0").unwrap();
        let service = serve(listener, backend.clone(), Served::default(), limits, &Supervisor::default()).unwrap();
        Node { service, backend }
    }

    fn address(&self) -> SocketAddr {
        self.service.local_addr()
    }

    async fn client(&self) -> Client {
        Client::connect(&self.address().to_string(), TIMEOUT).await.unwrap()
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new()
        .block_on(&runtime, async { tokio::time::timeout(TIMEOUT, test).await })
        .expect("nothing here takes this long");
}

fn f32_info(rows: u64, cols: u64) -> TensorInfo {
    TensorInfo { dtype: DType::F32, rows, cols }
}

async fn upload_f32(client: &Client, rows: u64, cols: u64, elements: &[f32]) -> Tensor {
    let bytes: Vec<u8> = elements.iter().flat_map(|element| element.to_le_bytes()).collect();
    let mut source = TensorBytes::new(f32_info(rows, cols), &bytes).unwrap();
    client.upload(&mut source).await.unwrap()
}

async fn read_f32(tensor: &Tensor) -> Vec<f32> {
    let mut bytes = Vec::new();
    tensor.read_into(&mut bytes).await.unwrap();
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn kind<T>(outcome: Result<T>) -> ErrorKind {
    outcome.err().expect("this must fail").kind()
}

/// A tensor of any size whose bytes are computed from their position and are not stored.
struct Pattern {
    info: TensorInfo,
    block: Vec<u8>,
    checked: u64,
}

impl Pattern {
    fn new(info: TensorInfo) -> Pattern {
        // The length divides no chunk, so a chunk in the wrong place is noticed.
        let block = (0..1_048_583u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        Pattern { info, block, checked: 0 }
    }

    /// The runs of the pattern that cover `length` bytes from `offset`.
    fn runs(&self, offset: u64, length: usize) -> impl Iterator<Item = &[u8]> {
        let mut at = (offset % self.block.len() as u64) as usize;
        let mut left = length;
        std::iter::from_fn(move || {
            let take = left.min(self.block.len() - at);
            let run = &self.block[at..at + take];
            left -= take;
            at = 0;
            (take > 0).then_some(run)
        })
    }
}

impl TensorSource for Pattern {
    fn info(&self) -> TensorInfo {
        self.info
    }

    fn read(&mut self, offset: u64, chunk: &mut [u8]) -> Result<()> {
        let mut at = 0;
        for run in self.runs(offset, chunk.len()) {
            chunk[at..at + run.len()].copy_from_slice(run);
            at += run.len();
        }
        Ok(())
    }
}

impl TensorDestination for Pattern {
    fn begin(&mut self, info: &TensorInfo) -> Result<()> {
        assert_eq!(*info, self.info);
        Ok(())
    }

    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        let mut at = 0;
        for run in self.runs(self.checked, chunk.len()) {
            assert!(run == &chunk[at..at + run.len()], "wrong bytes near {}", self.checked);
            at += run.len();
        }
        self.checked += chunk.len() as u64;
        Ok(())
    }
}

#[test]
fn tensors_of_odd_sizes_come_back_as_they_went() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let client = node.client().await;
        let chunk = CHUNK_BYTES as u64;
        let sizes = [
            (DType::F64, 1, 1),
            (DType::I8, 3, 5),
            (DType::F16, 0, 7),
            (DType::Bf16, 7, 0),
            (DType::I8, 1, chunk - 1),
            (DType::I8, 1, chunk),
            (DType::I8, chunk + 1, 1),
            (DType::I32, 1023, 1025),
            (DType::F32, 3 * 64, chunk / 64),
        ];
        for (dtype, rows, cols) in sizes {
            let info = TensorInfo { dtype, rows, cols };
            let tensor = client.upload(&mut Pattern::new(info)).await.unwrap();
            let mut check = Pattern::new(info);
            assert_eq!(tensor.read_into(&mut check).await.unwrap(), info);
            assert_eq!(check.checked, info.size_bytes().unwrap());
        }
        node.backend.wait_reserved(0).await;
    });
}

#[test]
fn a_part_of_a_tensor_can_be_read_and_nothing_beyond_it() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let client = node.client().await;
        let tensor = upload_f32(&client, 1, 4, &[1.0, 2.0, 3.0, 4.0]).await;
        let mut part = Vec::new();
        let mut take = |chunk: &[u8]| {
            part.extend_from_slice(chunk);
            Ok(())
        };
        tensor.read_range(4, 8, &mut take).await.unwrap();
        assert_eq!(part, [2f32.to_le_bytes(), 3f32.to_le_bytes()].concat());
        for (offset, length) in [(0, 17), (17, 0), (u64::MAX, 2)] {
            let read = tensor.read_range(offset, length, &mut |_| Ok(())).await;
            assert_eq!(kind(read), ErrorKind::InvalidInput);
        }
    });
}

#[test]
fn a_matrix_of_one_gibibyte_goes_through() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let client = node.client().await;
        let info = f32_info(16384, 16384);
        let start = Instant::now();
        let tensor = client.upload(&mut Pattern::new(info)).await.unwrap();
        let uploaded = start.elapsed();
        let mut check = Pattern::new(info);
        tensor.read_into(&mut check).await.unwrap();
        let read = start.elapsed() - uploaded;
        assert_eq!(check.checked, GIB);
        println!(
            "1 GiB: upload {:.2} GB/s, read {:.2} GB/s",
            GIB as f64 / uploaded.as_secs_f64() / 1e9,
            GIB as f64 / read.as_secs_f64() / 1e9
        );
    });
}

#[test]
fn the_middle_product_of_a_chain_never_leaves_the_node() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let client = node.client().await;
        let (rows, inner) = (512, 2);
        let a = upload_f32(&client, rows, inner, &vec![1.0; (rows * inner) as usize]).await;
        let b = upload_f32(&client, inner, rows, &vec![2.0; (rows * inner) as usize]).await;
        let c = upload_f32(&client, rows, 1, &vec![3.0; rows as usize]).await;
        let (before, _) = client.counters().await.unwrap();

        // Nothing is awaited before all is asked for.
        node.backend.hold_jobs(true);
        let options = MatmulOptions::default();
        let (_, middle) = client.matmul(&a, &b, &options);
        let (job, product) = client.matmul(&middle, &c, &options);
        drop(middle);
        assert_eq!(product.info().await.unwrap(), f32_info(rows, 1), "known before it is computed");
        node.backend.hold_jobs(false);
        let expected = vec![(rows * inner) as f32 * 6.0; rows as usize];
        assert_eq!(read_f32(&product).await, expected);
        assert_eq!(job.report().await.unwrap().shape, [rows as usize, rows as usize, 1]);

        let (after, _) = client.counters().await.unwrap();
        let middle_bytes = rows * rows * 4;
        let moved = after.bytes_out - before.bytes_out + after.bytes_in - before.bytes_in;
        assert!(moved < middle_bytes / 50, "{moved} bytes moved, the middle product has {middle_bytes}");
        assert!(moved > rows * 4, "the product itself did come back");
    });
}

#[test]
fn all_that_is_said_of_jobs_peers_and_node_arrives() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let client = node.client().await;
        let a = upload_f32(&client, 2, 2, &[1.0, 2.0, 3.0, 4.0]).await;
        let (job, product) = client.matmul(&a, &a, &MatmulOptions::default());
        let mut seen = Vec::new();
        job.watch(&mut |progress| seen.push(progress)).await.unwrap();
        assert_eq!(seen.last().map(|progress| (progress.tasks_done, progress.tasks_total)), Some((1, 1)));
        let report = job.report().await.unwrap();
        assert_eq!((report.shape, report.dtype.as_str()), ([2, 2, 2], "f32"));
        assert_eq!((report.seconds, report.gflops), (0.25, 2.0));
        assert_eq!((report.workers[0].peer.as_str(), report.workers[0].tasks), ("self", 1));
        assert_eq!((report.verification.verdict.as_str(), report.mode.as_str()), ("local", "local"));
        assert_eq!(job.progress().await.unwrap().tasks_done, 1);
        assert_eq!(read_f32(&product).await, [7.0, 10.0, 15.0, 22.0]);

        let peers = client.peers().await.unwrap();
        assert_eq!((peers[0].name.as_str(), peers[0].addresses.len()), ("other", 2));
        assert_eq!((peers[0].trust, peers[0].tasks_checked), (0.5, 7));
        let status = client.status().await.unwrap();
        assert_eq!((status.name.as_str(), status.memory_limit_bytes), ("plain", GIB));
        let probe = client.probe_link("12D3KooW", 1000, 3).await.unwrap();
        assert_eq!(probe.message_bytes, 1000);
    });
}

#[test]
fn programs_that_are_not_asynchronous_get_the_same() {
    let node = Node::start(GIB, Limits::default());
    let address = node.address().to_string();
    let client = pangea_client::blocking::Client::connect(&address, TIMEOUT).unwrap();
    let bytes: Vec<u8> = [1f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
    let a = client.upload(&mut TensorBytes::new(f32_info(2, 2), &bytes).unwrap()).unwrap();
    let (job, product) = client.matmul(&a, &a, &MatmulOptions::default());
    let mut done = 0;
    let report = client.wait(&job, &mut |progress| done = progress.tasks_done).unwrap();
    assert_eq!((report.shape, done), ([2, 2, 2], 1));
    let mut out = Vec::new();
    client.read_into(&product, &mut out).unwrap();
    assert_eq!(out, [7f32, 10.0, 15.0, 22.0].map(f32::to_le_bytes).concat());
    assert_eq!(client.status().unwrap().name, "plain");

    node.backend.hold_jobs(true);
    let (job, _product) = client.matmul(&a, &a, &MatmulOptions::default());
    client.cancel(&job).unwrap();
    assert_eq!(kind(client.wait(&job, &mut |_| ())), ErrorKind::Cancelled);
}

#[test]
fn every_failure_has_its_kind() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let client = node.client().await;
        let options = MatmulOptions::default();
        let a = upload_f32(&client, 2, 3, &[0.0; 6]).await;

        let (job, product) = client.matmul(&a, &a, &options);
        let error = job.report().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains("2 x 3"), "{error}");
        assert_eq!(kind(product.info().await), ErrorKind::InvalidInput);
        assert_eq!(kind(product.read_into(&mut Vec::new()).await), ErrorKind::InvalidInput);
        let (job, _) = client.matmul(&product, &a, &options);
        assert_eq!(kind(job.report().await), ErrorKind::InvalidInput, "a failed product as operand");

        let i32_info = TensorInfo { dtype: DType::I32, rows: 1, cols: 1 };
        let i32_tensor = client.upload(&mut Pattern::new(i32_info)).await.unwrap();
        let (job, _) = client.matmul(&i32_tensor, &i32_tensor, &options);
        assert_eq!(kind(job.report().await), ErrorKind::InvalidInput);

        assert_eq!(kind(client.connect_peer("/ip4/10.0.0.9/tcp/1", None).await), ErrorKind::Unavailable);
        assert_eq!(kind(client.probe_link("nobody", 1, 1).await), ErrorKind::NotFound);
        assert_eq!(kind(client.probe_link("12D3KooW", 1 << 40, 1).await), ErrorKind::InvalidInput);
    });
}

#[test]
fn a_tensor_of_another_connection_is_no_operand() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let (mine, other) = (node.client().await, node.client().await);
        let a = upload_f32(&mine, 1, 1, &[1.0]).await;
        let foreign = upload_f32(&other, 1, 1, &[1.0]).await;
        let (job, _) = mine.matmul(&a, &foreign, &MatmulOptions::default());
        let error = job.report().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().starts_with("B is not a tensor of this connection"), "{error}");
    });
}

#[test]
fn more_memory_than_there_is_is_refused_before_anything_is_sent_or_allocated() {
    run(async {
        let node = Node::start(1000, Limits::default());
        let client = node.client().await;
        for (rows, cols) in [(251, 1), (1 << 40, 1 << 20)] {
            let upload = client.upload(&mut Pattern::new(f32_info(rows, cols))).await;
            assert_eq!(kind(upload), ErrorKind::Overloaded, "[{rows}, {cols}]");
        }
        // As many bytes as no number holds: raw, for the client refuses by itself.
        let raw = raw_node(node.address()).await;
        let mut request = raw.upload_request();
        request.get().set_rows(u64::MAX);
        request.get().set_cols(u64::MAX);
        let refusal = request.send().promise.await.err().unwrap();
        assert_eq!(from_exception(&refusal).kind(), ErrorKind::InvalidInput);

        // Two operands fit, their product does not.
        let a = upload_f32(&client, 60, 1, &[1.0; 60]).await;
        let b = upload_f32(&client, 1, 60, &[1.0; 60]).await;
        let (job, product) = client.matmul(&a, &b, &MatmulOptions::default());
        assert_eq!(kind(product.info().await), ErrorKind::Overloaded);
        assert_eq!(kind(job.report().await), ErrorKind::Overloaded);
        assert_eq!(node.backend.reserved(), 480);
        drop((a, b));
        node.backend.wait_reserved(0).await;
    });
}

/// The service as any Cap'n Proto program sees it.
async fn raw_node(address: SocketAddr) -> node_capnp::node::Client {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (read_half, write_half) = stream.into_split();
    let network = network(read_half.compat(), write_half.compat_write(), Side::Client);
    let mut rpc_system = RpcSystem::new(Box::new(network), None);
    let node = rpc_system.bootstrap(Side::Server);
    tokio::task::spawn_local(rpc_system);
    node
}

async fn raw_sink(node: &node_capnp::node::Client, bytes: u64) -> tensor_capnp::tensor_sink::Client {
    let mut request = node.upload_request();
    request.get().set_dtype(tensor_capnp::DType::I8);
    request.get().set_rows(1);
    request.get().set_cols(bytes);
    request.send().promise.await.unwrap().get().unwrap().get_sink().unwrap()
}

/// Writes and hears how that went, which a streaming call alone does not tell.
async fn raw_write(sink: &tensor_capnp::tensor_sink::Client, bytes: usize) -> Result<()> {
    let mut request = sink.write_request();
    request.get().init_chunk(bytes as u32);
    request.send().await.map_err(|exception| from_exception(&exception))
}

async fn raw_finish(sink: &tensor_capnp::tensor_sink::Client) -> Result<()> {
    let finished = sink.finish_request().send().promise.await;
    finished.map(drop).map_err(|exception| from_exception(&exception))
}

#[test]
fn uploads_of_the_wrong_length_fail_and_hold_nothing() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let raw = raw_node(node.address()).await;

        let short = raw_sink(&raw, 100).await;
        raw_write(&short, 99).await.unwrap();
        let error = raw_finish(&short).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains("99 of 100"), "{error}");
        node.backend.wait_reserved(0).await;

        let long = raw_sink(&raw, 100).await;
        raw_write(&long, 60).await.unwrap();
        let _ = raw_write(&long, 41).await;
        assert_eq!(kind(raw_finish(&long).await), ErrorKind::InvalidInput);
        node.backend.wait_reserved(0).await;

        let twice = raw_sink(&raw, 1).await;
        raw_write(&twice, 1).await.unwrap();
        raw_finish(&twice).await.unwrap();
        assert_eq!(kind(raw_finish(&twice).await), ErrorKind::InvalidInput);

        let too_large = raw_sink(&raw, 1 << 22).await;
        let _ = raw_write(&too_large, (1 << 21) + 1).await;
        assert_eq!(kind(raw_finish(&too_large).await), ErrorKind::InvalidInput);

        let dropped = raw_sink(&raw, 1 << 20).await;
        raw_write(&dropped, 1000).await.unwrap();
        assert_eq!(node.backend.reserved(), 1 << 20);
        drop(dropped);
        node.backend.wait_reserved(0).await;
    });
}

#[test]
fn a_connection_that_breaks_frees_its_memory_and_cancels_its_jobs() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        node.backend.hold_jobs(true);
        {
            let client = node.client().await;
            let a = upload_f32(&client, 2, 2, &[1.0; 4]).await;
            let (job, product) = client.matmul(&a, &a, &MatmulOptions::default());
            node.backend.wait_submitted(1).await;
            // Calls that wait go with it, too, and an upload that is half way.
            let (mut report, mut bytes) = (Box::pin(job.report()), Vec::new());
            let mut read = Box::pin(product.read_into(&mut bytes));
            assert!(futures::poll!(&mut report).is_pending());
            assert!(futures::poll!(&mut read).is_pending());
            let size = 64 << 20;
            let mut source = Pattern::new(TensorInfo { dtype: DType::I8, rows: 1, cols: size });
            let mut upload = Box::pin(client.upload(&mut source));
            assert!(futures::poll!(&mut upload).is_pending());
            node.backend.wait_reserved(16 + 16 + size).await;
        }
        node.backend.wait_cancelled(1).await;
        node.backend.wait_reserved(0).await;
        let (_, total) = node.client().await.counters().await.unwrap();
        assert_eq!((total.connections, total.tensors, total.jobs_running), (1, 0, 0));
    });
}

#[test]
fn a_job_lives_as_long_as_anyone_wants_it() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let client = node.client().await;
        let options = MatmulOptions::default();
        let a = upload_f32(&client, 1, 1, &[3.0]).await;
        node.backend.hold_jobs(true);

        // Either of job and product keeps it; so does a job that needs the product.
        let (job, product) = client.matmul(&a, &a, &options);
        drop(product);
        let (_, product) = client.matmul(&a, &a, &options);
        let (_, needed) = client.matmul(&a, &a, &options);
        let (needs, _) = client.matmul(&needed, &a, &options);
        drop(needed);
        node.backend.wait_submitted(3).await;
        node.backend.hold_jobs(false);
        job.report().await.unwrap();
        assert_eq!(read_f32(&product).await, [9.0]);
        needs.report().await.unwrap();
        assert_eq!(node.backend.cancelled(), 0);

        // With neither it ends.
        node.backend.hold_jobs(true);
        let pair = client.matmul(&a, &a, &options);
        node.backend.wait_submitted(5).await;
        drop(pair);
        node.backend.wait_cancelled(1).await;
    });
}

#[test]
fn a_job_that_is_kept_does_not_keep_its_product() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let client = node.client().await;
        let a = upload_f32(&client, 2, 1, &[1.0; 2]).await;
        let b = upload_f32(&client, 1, 2, &[1.0; 2]).await;
        let (job, product) = client.matmul(&a, &b, &MatmulOptions::default());
        job.report().await.unwrap();
        assert_eq!(node.backend.reserved(), 8 + 8 + 16);
        drop(product);
        node.backend.wait_reserved(8 + 8).await;
        job.report().await.unwrap();
    });
}

#[test]
fn cancelling_ends_the_job_for_everyone_who_waits() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let client = node.client().await;
        let a = upload_f32(&client, 1, 1, &[3.0]).await;
        node.backend.hold_jobs(true);
        let (job, product) = client.matmul(&a, &a, &MatmulOptions::default());
        let (after, _) = client.matmul(&product, &a, &MatmulOptions::default());
        node.backend.wait_submitted(1).await;
        let mut bytes = Vec::new();
        let (report, read, after, cancel) =
            tokio::join!(job.report(), product.read_into(&mut bytes), after.report(), job.cancel());
        cancel.unwrap();
        assert_eq!(kind(report), ErrorKind::Cancelled);
        assert_eq!(kind(read), ErrorKind::Cancelled);
        assert_eq!(kind(after), ErrorKind::Cancelled);
        node.backend.wait_cancelled(1).await;
        assert_eq!(client.counters().await.unwrap().0.jobs_running, 0);
    });
}

#[test]
fn a_client_that_stops_reading_stalls_only_itself() {
    /// Takes one chunk, says so, and no more until told to.
    struct Stuck {
        started: Option<tokio::sync::oneshot::Sender<()>>,
        go_on: std::sync::mpsc::Receiver<()>,
        received: u64,
    }
    impl TensorDestination for Stuck {
        fn begin(&mut self, _: &TensorInfo) -> Result<()> {
            Ok(())
        }
        fn write(&mut self, chunk: &[u8]) -> Result<()> {
            if let Some(started) = self.started.take() {
                started.send(()).unwrap();
                self.go_on.recv().unwrap();
            }
            self.received += chunk.len() as u64;
            Ok(())
        }
    }
    let size = 64 << 20;
    let info = TensorInfo { dtype: DType::I8, rows: 1, cols: size };
    let node = Node::start(GIB, Limits::default());
    let address = node.address().to_string();
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (release, go_on) = std::sync::mpsc::sync_channel(1);
    let slow = std::thread::spawn(move || {
        let client = pangea_client::blocking::Client::connect(&address, TIMEOUT).unwrap();
        let tensor = client.upload(&mut Pattern::new(info)).unwrap();
        let mut stuck = Stuck { started: Some(started), go_on, received: 0 };
        client.read_into(&tensor, &mut stuck).unwrap();
        stuck.received
    });
    run(async {
        has_started.await.unwrap();
        // Its whole thread stands still now: it reads neither chunks nor anything else.
        let client = node.client().await;
        let tensor = client.upload(&mut Pattern::new(info)).await.unwrap();
        tensor.read_into(&mut Pattern::new(info)).await.unwrap();
        let (mine, total) = client.counters().await.unwrap();
        let sent_to_slow = total.bytes_out - mine.bytes_out;
        assert!(sent_to_slow < size / 2, "{sent_to_slow} bytes went to a client that takes none");
    });
    release.send(()).unwrap();
    assert_eq!(slow.join().unwrap(), size);
}

#[test]
fn one_connection_holds_no_more_than_its_limits() {
    run(async {
        let limits = Limits {
            tensors_per_connection: 4,
            bytes_per_connection: 64,
            jobs_per_connection: 1,
            calls_per_connection: 2,
            ..Limits::default()
        };
        let node = Node::start(GIB, limits);
        let client = node.client().await;
        let a = upload_f32(&client, 2, 2, &[1.0; 4]).await;
        let too_much = client.upload(&mut Pattern::new(f32_info(1, 13))).await;
        assert_eq!(kind(too_much), ErrorKind::Overloaded);

        node.backend.hold_jobs(true);
        let options = MatmulOptions::default();
        let (job, product) = client.matmul(&a, &a, &options);
        let (refused, _) = client.matmul(&a, &a, &options);
        assert_eq!(kind(refused.report().await), ErrorKind::Overloaded);
        {
            // Two calls that wait; a third is refused.
            let mut ignore = |_: &[u8]| Ok(());
            let mut report = Box::pin(job.report());
            let mut read = Box::pin(product.read_range(0, 16, &mut ignore));
            assert!(futures::poll!(&mut report).is_pending());
            assert!(futures::poll!(&mut read).is_pending());
            assert_eq!(kind(product.info().await), ErrorKind::Overloaded);
        }
        node.backend.hold_jobs(false);
        job.report().await.unwrap();

        let b = upload_f32(&client, 1, 1, &[1.0]).await;
        let c = upload_f32(&client, 1, 1, &[1.0]).await;
        let too_many = client.upload(&mut Pattern::new(f32_info(1, 1))).await;
        assert_eq!(kind(too_many), ErrorKind::Overloaded);
        // What is dropped makes room again.
        drop((a, b, c, product));
        node.backend.wait_reserved(0).await;
        upload_f32(&client, 2, 8, &[1.0; 16]).await;
        // Others are not affected.
        upload_f32(&node.client().await, 1, 1, &[1.0]).await;
    });
}

#[test]
fn a_connection_too_many_is_told_so() {
    run(async {
        let node = Node::start(GIB, Limits { connections: 2, ..Limits::default() });
        let (first, second) = (node.client().await, node.client().await);
        let held = (upload_f32(&first, 1, 1, &[1.0]).await, upload_f32(&second, 1, 1, &[1.0]).await);
        let address = node.address().to_string();
        let refused = Client::connect(&address, TIMEOUT).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Overloaded, "{refused}");
        first.status().await.unwrap();
        drop(held);
        // The one that holds nothing gives its place, once the service has seen that its tensor is gone.
        let third = loop {
            match Client::connect(&address, TIMEOUT).await {
                Ok(client) => break client,
                Err(_) => continue,
            }
        };
        third.status().await.unwrap();
        assert_eq!([first.status().await, second.status().await].iter().filter(|answer| answer.is_ok()).count(), 1);
    });
}

#[test]
fn sockets_that_say_nothing_keep_nobody_out() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let working = node.client().await;
        let held = upload_f32(&working, 1, 1, &[1.0]).await;
        let silent: Vec<TcpStream> =
            (0..2 * Limits::default().connections).map(|_| TcpStream::connect(node.address()).unwrap()).collect();
        node.client().await.status().await.unwrap();
        assert_eq!(held.info().await.unwrap(), f32_info(1, 1), "whoever holds something keeps its place");
        drop(silent);
    });
}

#[test]
fn a_service_with_a_key_gives_nothing_away_without_it() {
    run(async {
        let backend = PlainBackend::new(GIB);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rpc.sock");
        let ports = Ports {
            tcp: bind("127.0.0.1:0").unwrap(),
            local: Some(bind_local(&path).unwrap()),
            key: Some("open-sesame".to_owned()),
        };
        let service = serve(ports, backend, Served::default(), Limits::default(), &Supervisor::default()).unwrap();
        let address = service.local_addr().to_string();
        for key in [None, Some("open-sesam"), Some("")] {
            let refused = Client::connect_with_key(&address, key, TIMEOUT).await.err().unwrap();
            assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{refused}");
            assert_eq!(refused.message().contains("PANGEA_API_KEY"), key.is_none(), "{refused}");
        }
        let shown = Client::connect_with_key(&address, Some("open-sesame"), TIMEOUT).await.unwrap();
        upload_f32(&shown, 1, 1, &[1.0]).await;

        // Calls that skip the greeting reach nothing either, and three wrong keys end the connection.
        let raw = raw_node(service.local_addr()).await;
        assert!(raw.status_request().send().promise.await.is_err());
        assert!(raw.jobs_request().send().promise.await.is_err());
        for wrong in ["a", "b", "c"] {
            let mut login = raw.login_request();
            login.get().set_key(wrong);
            assert!(login.send().promise.await.is_err());
        }
        let mut login = raw.login_request();
        login.get().set_key("open-sesame");
        assert!(login.send().promise.await.is_err(), "a fourth try comes too late");

        // The node's own user needs no key.
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let local = Client::connect(&format!("unix:{}", path.display()), TIMEOUT).await.unwrap();
        local.status().await.unwrap();
    });
}

#[test]
fn a_client_that_calls_too_often_is_told_when_to_come_again() {
    run(async {
        let node = Node::start(GIB, Limits { calls_per_second: 5, ..Limits::default() });
        let client = node.client().await;
        let refused = loop {
            if let Err(error) = client.status().await {
                break error;
            }
        };
        assert_eq!(refused.kind(), ErrorKind::Overloaded);
        assert!(refused.message().contains("try again in"), "{refused}");
    });
}

#[test]
fn garbage_and_giant_messages_cost_only_their_own_connection() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let client = node.client().await;
        // What a browser sends, noise, a message of 512 segments, one larger than the limit.
        let words = (MAX_MESSAGE_BYTES as u32 / 8 + 1).to_le_bytes();
        let giant = [&[0, 0, 0, 0][..], &words[..]].concat();
        let segments = [&511u32.to_le_bytes()[..], &[1, 0, 0, 0][..]].concat();
        let inputs: [&[u8]; 4] = [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", &[0x5a; 4096], &segments, &giant];
        for input in inputs {
            let mut stream = TcpStream::connect(node.address()).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            stream.write_all(input).unwrap();
            // It ends the connection; a last word of the protocol before that is fine.
            let mut rest = Vec::new();
            let ended = tokio::task::spawn_blocking(move || match stream.read_to_end(&mut rest) {
                Ok(_) => true,
                Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            });
            assert!(ended.await.unwrap(), "{input:?}");
            client.status().await.unwrap();
        }
        assert_eq!(client.counters().await.unwrap().1.connections, 1);
    });
}

#[test]
fn requests_are_left_unread_while_answers_are() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        // The same request for the bootstrap capability under ever new numbers.
        let mut stream = TcpStream::connect(node.address()).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        let sent = tokio::task::spawn_blocking(move || {
            let mut sent = 0u64;
            for first in (0u32..).step_by(1000) {
                let mut bytes = Vec::new();
                for question in first..first + 1000 {
                    let mut message = capnp::message::Builder::new_default();
                    let root: capnp_rpc::rpc_capnp::message::Builder<'_> = message.init_root();
                    root.init_bootstrap().set_question_id(question);
                    capnp::serialize::write_message(&mut bytes, &message).unwrap();
                }
                match stream.write_all(&bytes) {
                    Ok(()) => sent += bytes.len() as u64,
                    Err(_) => break,
                }
                if sent > 256 << 20 {
                    break;
                }
            }
            (sent, stream)
        });
        let (sent, _stream) = sent.await.unwrap();
        assert!(sent < 64 << 20, "{sent} bytes of requests were taken with no answer read");
        node.client().await.status().await.unwrap();
    });
}

#[test]
fn no_node_where_one_was_expected_is_said_plainly() {
    run(async {
        let free = bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let error = Client::connect(&free, TIMEOUT).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains(&free) && error.message().contains("pangea node"), "{error}");

        // Something else listens there and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let outcome = Client::connect(&address, Duration::from_millis(50)).await;
        assert_eq!(kind(outcome), ErrorKind::Unavailable);
    });
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let taken = bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind(&address.to_string()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.message();
    assert!(text.contains(&format!("port {}", address.port())) && text.contains("--rpc-addr"), "{text}");
    assert_eq!(kind(bind("localhost")), ErrorKind::InvalidInput);
}

#[test]
fn shutting_down_lets_jobs_end_and_takes_no_new_ones() {
    run(async {
        let node = Node::start(GIB, Limits::default());
        let address = node.address().to_string();
        let client = node.client().await;
        let a = upload_f32(&client, 1, 1, &[3.0]).await;
        let options = MatmulOptions::default();
        node.backend.hold_jobs(true);
        let (_job, product) = client.matmul(&a, &a, &options);
        let read = tokio::task::spawn_local(async move { read_f32(&product).await });
        node.backend.wait_submitted(1).await;
        let backend = node.backend.clone();
        let shutdown = tokio::task::spawn_local(node.service.shutdown(TIMEOUT));
        // It drains once it refuses jobs.
        loop {
            let (job, _) = client.matmul(&a, &a, &options);
            let mut report = Box::pin(job.report());
            tokio::select! {
                outcome = &mut report => {
                    assert_eq!(kind(outcome), ErrorKind::Unavailable);
                    break;
                }
                () = tokio::task::yield_now() => {}
            }
        }
        backend.hold_jobs(false);
        assert_eq!(read.await.unwrap(), [9.0]);
        shutdown.await.unwrap();
        assert_eq!(kind(client.status().await), ErrorKind::Unavailable, "the connection is gone");
        assert_eq!(kind(Client::connect(&address, TIMEOUT).await), ErrorKind::Unavailable);
        backend.wait_reserved(0).await;
    });
}

/// A matrix in memory, as if it were not.
struct Lines {
    info: TensorInfo,
    rows: Vec<Vec<u8>>,
}

impl Lines {
    fn of(info: TensorInfo, element: impl Fn(u64, u64) -> f32) -> Lines {
        let row = |row| (0..info.cols).flat_map(|col| element(row, col).to_le_bytes()).collect();
        Lines { info, rows: (0..info.rows).map(row).collect() }
    }
}

impl MatrixSource for Lines {
    fn info(&self) -> TensorInfo {
        self.info
    }

    fn read(&mut self, row: u64, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let offset = offset as usize;
        bytes.copy_from_slice(&self.rows[row as usize][offset..offset + bytes.len()]);
        Ok(())
    }
}

impl MatrixDestination for Lines {
    fn write(&mut self, row: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        let offset = offset as usize;
        self.rows[row as usize][offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

#[test]
fn a_product_larger_than_the_nodes_memory_is_had_in_blocks() {
    run(async {
        let (m, k, n) = (150, 40, 170);
        let budget = 20_000;
        assert!((m * k + k * n + m * n) * 4 > 3 * budget);
        // Were a byte more needed than planned, the node would refuse it.
        let node = Node::start(budget, Limits::default());
        let client = node.client().await;
        let mut a = Lines::of(f32_info(m, k), |i, j| (i * 3 + j) as f32 % 5.0 - 2.0);
        let mut b = Lines::of(f32_info(k, n), |i, j| (i + j * 7) as f32 % 4.0 - 1.0);
        let mut c = Lines::of(f32_info(m, n), |_, _| f32::NAN);
        let dtype = DType::F32;
        let plan = Plan::new(Shape { m, k, n, a: dtype, b: dtype, c: dtype }, budget).unwrap();
        let blocks = plan.count();
        assert!(blocks > 4, "{plan:?}");
        let mut progress = Vec::new();
        let report = multiply(&client, &plan, &MatmulOptions::default(), &mut a, &mut b, &mut c, &mut |now| {
            progress.push((now.blocks_done, now.blocks_total))
        })
        .await
        .unwrap()
        .unwrap();
        let expected = Lines::of(f32_info(m, n), |i, j| {
            (0..k).map(|l| ((i * 3 + l) as f32 % 5.0 - 2.0) * ((l + j * 7) as f32 % 4.0 - 1.0)).sum()
        });
        assert!(c.rows == expected.rows);
        assert_eq!(report.shape, [m as usize, k as usize, n as usize]);
        assert_eq!(u64::from(report.tasks.total), blocks);
        assert_eq!(progress, (0..=blocks).map(|done| (done, blocks)).collect::<Vec<_>>());
        let (moved, _) = client.counters().await.unwrap();
        assert!(u128::from(moved.bytes_in) >= plan.upload_bytes());
        assert!(u128::from(moved.bytes_in) < plan.upload_bytes() + u128::from(blocks * 4000));
        node.backend.wait_reserved(0).await;
    });
}

#[test]
fn a_source_that_fails_leaves_nothing_behind() {
    struct Failing;
    impl TensorSource for Failing {
        fn info(&self) -> TensorInfo {
            TensorInfo { dtype: DType::I8, rows: 1, cols: 8 << 20 }
        }
        fn read(&mut self, offset: u64, _: &mut [u8]) -> Result<()> {
            match offset {
                0 => Ok(()),
                _ => Err(Error::new(ErrorKind::InvalidInput, "the file ends here")),
            }
        }
    }
    run(async {
        let node = Node::start(GIB, Limits::default());
        let client = node.client().await;
        assert_eq!(kind(client.upload(&mut Failing).await), ErrorKind::InvalidInput);
        // After an answer that was asked for later, what came before has been seen.
        client.status().await.unwrap();
        node.backend.wait_reserved(0).await;
    });
}

//! Pieces of model files between whole nodes in one process, over real sockets on loopback: only the needed pieces are sent,
//! no piece is sent again after a lost connection, and wrong bytes are found. The files are generated here.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::{AsyncReadExt, StreamExt};
use libp2p::{PeerId, StreamProtocol};
use pangea_client::{Error, ErrorKind};
use pangea_compute::gguf::Gguf;
use pangea_compute::model::manifest::PART_BYTES;
use pangea_compute::model::{Manifest, Wanted};
use pangea_compute::{Cancel, Digest};
use pangea_node::blob::{self, BlobMessage, Blobs, PROTOCOL};
use pangea_node::devices::{Devices, Kind};
use pangea_node::net::{NetConfig, Network, identity};
use pangea_node::peers::Peers;
use pangea_node::streams::framed::{FrameReader, FrameWriter};
use pangea_node::supervise::Supervisor;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// Timeout of a test.
const HUNG: Duration = Duration::from_secs(60);

const LAYERS: u32 = 4;

/// A GGUF file with tensors of several parts and of a few bytes, in which every byte depends on its position.
fn model(seed: u64) -> Vec<u8> {
    let mut tensors = vec![("token_embd.weight".to_owned(), 9u64 << 20)];
    for layer in 0..LAYERS {
        tensors.push((format!("blk.{layer}.attn_q.weight"), 5 << 20));
        tensors.push((format!("blk.{layer}.attn_norm.weight"), 256));
        tensors.push((format!("blk.{layer}.ffn_up.weight"), 3 << 20));
    }
    tensors.push(("output_norm.weight".to_owned(), 256));
    tensors.push(("output.weight".to_owned(), 9 << 20));
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let mut out =
        [&b"GGUF"[..], &3u32.to_le_bytes(), &(tensors.len() as u64).to_le_bytes(), &1u64.to_le_bytes()].concat();
    text(&mut out, "general.name");
    out.extend(8u32.to_le_bytes());
    text(&mut out, "Made");
    let mut offset = 0u64;
    for (name, bytes) in &tensors {
        text(&mut out, name);
        out.extend(1u32.to_le_bytes());
        out.extend((bytes / 4).to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += bytes;
    }
    out.resize(out.len().next_multiple_of(32), 0);
    let data = (0..offset / 8).flat_map(|word| (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed).to_le_bytes());
    out.extend(data);
    out
}

fn layers(layers: Range<u32>) -> Wanted {
    Wanted { layers, embedding: false, head: false }
}

/// Other work on the network thread of a node.
type Beside = Box<dyn FnOnce(&Network) + Send>;

struct Node {
    blobs: Blobs,
    network: Network,
    folder: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    fn start(folder: &Path) -> Node {
        Node::start_on(folder, Devices::new(1 << 30, 2))
    }

    /// Starts a node with the memory of `devices`.
    fn start_on(folder: &Path, devices: Devices) -> Node {
        Node::started(folder, true, devices, Box::new(|_| {}))
    }

    /// Starts a node that runs `beside`, and serves blobs itself only if `answers`.
    fn start_with(folder: &Path, answers: bool, beside: Beside) -> Node {
        Node::started(folder, answers, Devices::new(1 << 30, 2), beside)
    }

    fn started(folder: &Path, answers: bool, devices: Devices, beside: Beside) -> Node {
        let (started, handles) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let blobs_folder = folder.join("blobs");
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            LocalSet::new().block_on(&runtime, async move {
                let mut config = NetConfig::new(identity::ephemeral());
                config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
                let (network, mut events) = pangea_node::net::start(config).unwrap();
                let blobs = blob::start(
                    &blobs_folder,
                    &devices,
                    answers.then_some(&network),
                    &Peers::default(),
                    &Supervisor::default(),
                )
                .unwrap();
                beside(&network);
                tokio::task::spawn_local(async move { while events.recv().await.is_some() {} });
                started.send((blobs, network.clone())).unwrap();
                let _ = stopped.await;
                network.shutdown().await;
            });
        });
        let (blobs, network) = handles.recv().unwrap();
        Node { blobs, network, folder: folder.to_owned(), stop: Some(stop), thread: Some(thread) }
    }

    fn id(&self) -> PeerId {
        self.network.local_peer_id()
    }

    fn connect(&self, other: &Node) {
        block_on(async {
            let address = loop {
                if let Some(address) = other.network.listen_addresses().await.into_iter().next() {
                    break address;
                }
                tokio::task::yield_now().await;
            };
            self.network.connect(address, HUNG).await.unwrap();
        });
    }

    /// Offers a file with `bytes`.
    fn offer(&self, bytes: &[u8]) -> Digest {
        let path = self.folder.join("offered.gguf");
        std::fs::write(&path, bytes).unwrap();
        self.blobs.offer(&path).unwrap().digest
    }

    fn fetch(&self, model: Digest, wanted: &Wanted, holders: &[PeerId]) -> Result<PathBuf, Error> {
        self.ensure_until(model, wanted, holders, |_, _| false)
    }

    /// Ends early if `enough` accepts the number of bytes done and in total.
    fn ensure_until(
        &self,
        model: Digest,
        wanted: &Wanted,
        holders: &[PeerId],
        mut enough: impl FnMut(u64, u64) -> bool + Send,
    ) -> Result<PathBuf, Error> {
        let cancel = Cancel::new();
        let mut progress = |done, total| {
            if enough(done, total) {
                cancel.cancel();
            }
        };
        block_on(self.blobs.fetch(model, wanted.clone(), holders.to_vec(), &mut progress, &cancel))
    }

    /// Bytes received from a peer so far, all streams together.
    fn received(&self, from: &Node) -> u64 {
        self.network.traffic(&from.id()).received_bytes
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(HUNG, work).await.expect("hung") })
}

/// Creates folders for nodes.
fn folders<const N: usize>() -> (tempfile::TempDir, [PathBuf; N]) {
    let folder = tempfile::tempdir().unwrap();
    let paths = std::array::from_fn(|node| folder.path().join(format!("node{node}")));
    paths.iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
    (folder, paths)
}

/// Asserts that the file has the wanted pieces of the model and, with `nothing_else`, zeros elsewhere.
fn assert_holds(file: &Path, bytes: &[u8], wanted: &Wanted, nothing_else: bool) {
    let manifest = Manifest::of(&Gguf::from_bytes(bytes.to_vec()).unwrap(), 2).unwrap();
    let selected = manifest.select(wanted);
    let copy = std::fs::read(file).unwrap();
    assert_eq!(copy.len(), bytes.len());
    for (index, piece) in manifest.pieces().iter().enumerate() {
        let range = piece.offset() as usize..(piece.offset() + piece.len_bytes()) as usize;
        if selected.contains(&index) {
            assert!(copy[range.clone()] == bytes[range], "{}", piece.name());
        } else if nothing_else {
            assert!(copy[range].iter().all(|byte| *byte == 0), "{} was not asked for", piece.name());
        }
    }
}

/// Upper bound of the bytes that frames, Noise, ping and identify add to `bytes`.
fn overhead(bytes: u64) -> u64 {
    bytes / 50 + (256 << 10)
}

#[test]
fn a_stage_fetches_its_layers_and_no_more() {
    let (_folder, [one, other]) = folders();
    let (holder, node) = (Node::start(&one), Node::start(&other));
    node.connect(&holder);
    let bytes = model(1);
    let digest = holder.offer(&bytes);
    let wanted = layers(1..3);
    let mut told = Vec::new();
    let file = node
        .ensure_until(digest, &wanted, &[holder.id()], |done, total| {
            told.push((done, total));
            false
        })
        .unwrap();
    assert_holds(&file, &bytes, &wanted, true);
    let here = node.blobs.have(&digest).unwrap();
    let (done, total) = here.bytes_of(&wanted);
    assert_eq!(done, total);
    assert!(here.holds(&wanted) && !here.holds(&layers(0..1)) && !here.is_whole());
    assert_eq!(told.last(), Some(&(total, total)));
    let received = node.received(&holder);
    assert!(received >= total && received <= total + overhead(total), "{received} for {total}");
    // A second fetch transfers nothing, one more layer transfers that layer, and the rest completes the file.
    node.fetch(digest, &wanted, &[holder.id()]).unwrap();
    assert!(node.received(&holder) - received < 64 << 10);
    node.fetch(digest, &here.manifest.whole(), &[holder.id()]).unwrap();
    assert!(node.blobs.have(&digest).unwrap().is_whole());
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    let received = node.received(&holder);
    assert!(received <= bytes.len() as u64 + overhead(bytes.len() as u64), "{received} for {}", bytes.len());
}

#[test]
fn the_header_comes_alone_and_a_whole_file_is_used_as_it_is() {
    let (_folder, [one, other]) = folders();
    let (holder, node) = (Node::start(&one), Node::start(&other));
    node.connect(&holder);
    let bytes = model(2);
    let digest = holder.offer(&bytes);
    let file = node.fetch(digest, &Wanted::header(), &[holder.id()]).unwrap();
    assert_eq!(Gguf::open(&file).unwrap().metadata().get_str("general.name").unwrap(), Some("Made"));
    assert!(node.received(&holder) < 256 << 10, "{}", node.received(&holder));
    let offered = node.offer(&bytes);
    assert_eq!(offered, digest);
    let file = node.fetch(digest, &layers(0..LAYERS), &[]).unwrap();
    assert_eq!(file, other.join("offered.gguf"));
    // After the file is removed, the copy is used again.
    std::fs::remove_file(&file).unwrap();
    let file = node.fetch(digest, &layers(0..1), &[holder.id()]).unwrap();
    assert_holds(&file, &bytes, &layers(0..1), true);
}

#[test]
fn an_interrupted_transfer_continues_in_the_next_run() {
    // Of the file's 24 parts, none longer than 4 MiB: more than half of its bytes and not all of them.
    const GIVEN: usize = 18;
    let (_folder, [one, two, other]) = folders();
    let bytes = model(3);
    let (holder, silent) = (Node::start(&one), Node::start_with(&two, false, falling_silent(bytes.clone(), GIVEN)));
    let digest = holder.offer(&bytes);
    let node = Node::start(&other);
    node.connect(&silent);
    node.connect(&holder);
    let whole =
        node.fetch(digest, &Wanted::header(), &[holder.id()]).map(|_| node.blobs.have(&digest).unwrap()).unwrap();
    let whole = whole.manifest.whole();
    let error = node.ensure_until(digest, &whole, &[silent.id()], |done, total| done * 2 > total).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    drop(node);
    let node = Node::start(&other);
    let (here, total) = node.blobs.have(&digest).unwrap().bytes_of(&whole);
    assert!(here * 2 > total && here < total, "{here} of {total}");
    node.connect(&holder);
    let file = node.fetch(digest, &whole, &[holder.id()]).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    let received = node.received(&holder);
    assert!(received <= total - here + overhead(total), "{received} for {}", total - here);
}

#[test]
fn a_node_with_a_part_gives_that_part_and_several_share_the_rest() {
    let (_folder, [one, two, three]) = folders();
    let (whole, partial, node) = (Node::start(&one), Node::start(&two), Node::start(&three));
    partial.connect(&whole);
    node.connect(&whole);
    node.connect(&partial);
    let bytes = model(4);
    let digest = whole.offer(&bytes);
    partial.fetch(digest, &layers(0..2), &[whole.id()]).unwrap();
    node.fetch(digest, &layers(0..1), &[partial.id()]).unwrap();
    assert!(node.received(&whole) < 64 << 10, "what {} has is not had from another", partial.id());
    let error = node.fetch(digest, &layers(0..3), &[partial.id()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let file = node.fetch(digest, &layers(0..LAYERS), &[partial.id(), whole.id()]).unwrap();
    assert_holds(&file, &bytes, &layers(0..LAYERS), true);
}

#[test]
fn streams_that_ask_nothing_keep_no_other_peer_waiting() {
    let (_folder, [one, two, three, four, five, six]) = folders();
    let whole = Node::start(&one);
    let bytes = model(9);
    let digest = whole.offer(&bytes);
    // As many streams as are answered at once, of four peers, each of which has asked once.
    let idle = [two, three, four, five].map(|folder| Node::start_with(&folder, false, Box::new(|_| {})));
    let mut open = Vec::new();
    for stranger in &idle {
        stranger.connect(&whole);
        for _ in 0..blob::limits::STREAMS_PER_PEER {
            open.push(block_on(async {
                let mut streams = stranger.network.streams();
                let stream = streams.open_stream(whole.id(), StreamProtocol::new(PROTOCOL)).await.unwrap();
                let (read, write) = stream.split();
                let (mut questions, mut answers) = (FrameWriter::new(write), FrameReader::new(read));
                questions.send(&BlobMessage::Manifest(digest), &[]).await.unwrap();
                questions.flush().await.unwrap();
                let (answer, _) = answers.receive().await.unwrap();
                assert!(matches!(answer, BlobMessage::Chunk { .. }), "{answer:?}");
                (questions, answers)
            }));
        }
    }
    let node = Node::start(&six);
    node.connect(&whole);
    let file = node.fetch(digest, &layers(0..LAYERS), &[whole.id()]).unwrap();
    assert_holds(&file, &bytes, &layers(0..LAYERS), true);
    drop(open);
}

#[test]
fn a_holder_that_leaves_during_a_transfer_is_replaced() {
    let (_folder, [one, two, three]) = folders();
    let (first, second, node) = (Node::start(&one), Node::start(&two), Node::start(&three));
    node.connect(&first);
    node.connect(&second);
    let bytes = model(5);
    let digest = first.offer(&bytes);
    assert_eq!(second.offer(&bytes), digest);
    let holders = [first.id(), second.id()];
    let mut first = Some(first);
    let wanted = layers(0..LAYERS);
    let file = node
        .ensure_until(digest, &wanted, &holders, |done, total| {
            if done * 3 > total {
                first.take();
            }
            false
        })
        .unwrap();
    assert!(first.is_none());
    assert_holds(&file, &bytes, &wanted, true);
}

#[test]
fn a_model_without_holders_is_not_found_and_a_pool_without_peers_is_unavailable() {
    let (_folder, [one, other]) = folders();
    let (holder, node) = (Node::start(&one), Node::start(&other));
    node.connect(&holder);
    let unknown = Digest::from_bytes([7; 32]);
    assert_eq!(node.fetch(unknown, &Wanted::header(), &[holder.id()]).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(node.fetch(unknown, &Wanted::header(), &[]).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(node.blobs.have(&unknown).is_none() && node.blobs.list().is_empty());
}

/// Answers as an honest holder would, but with one bit of every part from the second piece on flipped. Counts its streams.
fn lying(bytes: Vec<u8>) -> (Beside, Arc<AtomicUsize>) {
    holder(bytes, |piece, bytes| {
        bytes[100] ^= u8::from(piece > 0) << 3;
        true
    })
}

/// Answers as an honest holder would for the first `parts` parts, and then no more.
fn falling_silent(bytes: Vec<u8>, parts: usize) -> Beside {
    let left = AtomicUsize::new(parts);
    let gives = move |_, _: &mut [u8]| {
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    };
    holder(bytes, gives).0
}

/// Answers with each part of a piece as changed by `gives`, until `gives` returns false. Counts its streams.
fn holder(bytes: Vec<u8>, gives: impl Fn(u32, &mut [u8]) -> bool + Send + 'static) -> (Beside, Arc<AtomicUsize>) {
    let streams = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&streams);
    let beside: Beside = Box::new(move |network| {
        let manifest = Manifest::of(&Gguf::from_bytes(bytes.clone()).unwrap(), 2).unwrap();
        let mut incoming = network.streams().accept(StreamProtocol::new(PROTOCOL)).unwrap();
        let gives = Rc::new(gives);
        tokio::task::spawn_local(async move {
            while let Some((_, stream)) = incoming.next().await {
                let gives = Rc::clone(&gives);
                counted.fetch_add(1, Ordering::Relaxed);
                let (bytes, manifest) = (bytes.clone(), manifest.clone());
                tokio::task::spawn_local(async move {
                    let (read, write) = stream.split();
                    let (mut questions, mut answers) = (FrameReader::new(read), FrameWriter::new(write));
                    while let Ok((question, _)) = questions.receive().await {
                        let answer = match question {
                            BlobMessage::Manifest(_) => manifest.to_bytes(),
                            BlobMessage::Have(_) => {
                                blob::parts::PartSet::full(blob::parts::part_counts(&manifest)).as_bytes().to_vec()
                            }
                            BlobMessage::Part { piece, part, .. } => {
                                let range = manifest.pieces()[piece as usize].part_range(part).unwrap();
                                let mut bytes = bytes[range.start as usize..range.end as usize].to_vec();
                                if !gives(piece, &mut bytes) {
                                    return std::future::pending().await;
                                }
                                bytes
                            }
                            other => panic!("{other:?}"),
                        };
                        let total = answer.len() as u64;
                        for (index, chunk) in answer.chunks(blob::limits::CHUNK_BYTES).enumerate() {
                            let offset = (index * blob::limits::CHUNK_BYTES) as u64;
                            if answers.send(&BlobMessage::Chunk { total, offset }, chunk).await.is_err() {
                                return;
                            }
                        }
                        let _ = answers.flush().await;
                    }
                });
            }
        });
    });
    (beside, streams)
}

#[test]
fn a_holder_of_wrong_bytes_is_found_named_and_not_asked_again_while_another_helps() {
    let (_folder, [one, two, three]) = folders();
    let bytes = model(6);
    let (beside, streams) = lying(bytes.clone());
    let (honest, liar) = (Node::start(&one), Node::start_with(&two, false, beside));
    let node = Node::start(&three);
    node.connect(&honest);
    node.connect(&liar);
    let digest = honest.offer(&bytes);
    let error = node.fetch(digest, &layers(0..2), &[liar.id()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VerificationFailed);
    assert!(error.message().contains(&liar.id().to_string()), "{error}");
    let (here, _) = node.blobs.have(&digest).unwrap().bytes_of(&layers(0..2));
    assert!(here < 64 << 10, "nothing but the header counts");
    let asked = streams.load(Ordering::Relaxed);
    let file = node.fetch(digest, &layers(0..2), &[liar.id(), honest.id()]).unwrap();
    assert_holds(&file, &bytes, &layers(0..2), true);
    assert_eq!(streams.load(Ordering::Relaxed), asked, "it was asked again");
}

#[test]
fn wrong_bytes_in_the_middle_of_a_transfer_cost_no_result() {
    let (_folder, [one, two, three]) = folders();
    let bytes = model(7);
    let (beside, _) = lying(bytes.clone());
    let (honest, liar) = (Node::start(&one), Node::start_with(&two, false, beside));
    let node = Node::start(&three);
    node.connect(&honest);
    node.connect(&liar);
    let digest = honest.offer(&bytes);
    let file = node.fetch(digest, &layers(0..LAYERS), &[liar.id(), honest.id()]).unwrap();
    assert_holds(&file, &bytes, &layers(0..LAYERS), true);
}

#[test]
fn a_file_that_changed_is_not_passed_on_and_its_owner_is_no_liar() {
    let (_folder, [one, other]) = folders();
    let (holder, node) = (Node::start(&one), Node::start(&other));
    node.connect(&holder);
    let bytes = model(8);
    let digest = holder.offer(&bytes);
    let mut changed = bytes.clone();
    let end = changed.len();
    changed[end - (9 << 20) - 512..].fill(1);
    std::fs::write(one.join("offered.gguf"), &changed).unwrap();
    let file = node.fetch(digest, &layers(0..1), &[holder.id()]).unwrap();
    assert_holds(&file, &bytes, &layers(0..1), true);
    let head = Wanted { head: true, ..Wanted::header() };
    assert_eq!(node.fetch(digest, &head, &[holder.id()]).unwrap_err().kind(), ErrorKind::NotFound);
    node.fetch(digest, &layers(1..2), &[holder.id()]).unwrap();
}

#[test]
fn a_file_is_hashed_again_only_when_it_changed() {
    let (_folder, [one]) = folders();
    let node = Node::start(&one);
    let first = node.offer(&model(9));
    let index = one.join("blobs/manifests");
    let kept = || std::fs::read_dir(&index).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(kept().len(), 1);
    // A damaged manifest is not used.
    let path = one.join("offered.gguf");
    let mut damaged = std::fs::read(&kept()[0]).unwrap();
    damaged[40] ^= 1;
    std::fs::write(&kept()[0], &damaged).unwrap();
    assert_eq!(node.blobs.offer(&path).unwrap().digest, first);
    assert_ne!(std::fs::read(&kept()[0]).unwrap(), damaged);
    // Another file at the same path is another model.
    assert_ne!(node.offer(&model(10)), first);
    assert_eq!(kept().len(), 1);
}

/// Waits until `devices` have leased `bytes` for `kind`.
fn until_held(devices: &Devices, kind: Kind, bytes: u64) {
    let began = std::time::Instant::now();
    loop {
        let (_, held) = devices.held_by_kind().into_iter().find(|(of, _)| *of == kind).unwrap();
        if held == bytes {
            return;
        }
        assert!(began.elapsed() < HUNG, "{held} bytes of {}, not {bytes}", kind.name());
        std::thread::yield_now();
    }
}

#[test]
fn a_fetch_leases_what_it_holds_in_memory_and_gives_it_back() {
    let (_folder, [one, two]) = folders();
    let bytes = model(20);
    // The header and two parts arrive, and then nothing more.
    let silent = Node::start_with(&one, false, falling_silent(bytes.clone(), 3));
    let digest = Manifest::of(&Gguf::from_bytes(bytes).unwrap(), 2).unwrap().digest();
    // Memory for one part; and plenty, of which one provider needs five parts.
    for (limit, held) in [(5 << 20, PART_BYTES), (1 << 30, 5 * PART_BYTES)] {
        let devices = Devices::new(limit, 1);
        let node = Node::start_on(&two.join(limit.to_string()), devices.clone());
        node.connect(&silent);
        let cancel = Cancel::new();
        let (cancelled, blobs) = (cancel.clone(), node.blobs.clone());
        let fetching = std::thread::spawn({
            let holders = vec![silent.id()];
            move || block_on(blobs.fetch(digest, layers(0..LAYERS), holders, &mut |_, _| {}, &cancelled))
        });
        until_held(&devices, Kind::Downloads, held);
        cancel.cancel();
        assert_eq!(fetching.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
        until_held(&devices, Kind::Downloads, 0);
    }
}

#[test]
fn a_fetch_without_memory_for_one_part_is_refused_with_the_numbers() {
    let (_folder, [one, two]) = folders();
    let holder = Node::start(&one);
    let node = Node::start_on(&two, Devices::new(3 << 20, 1));
    node.connect(&holder);
    let digest = holder.offer(&model(21));
    node.fetch(digest, &Wanted::header(), &[holder.id()]).unwrap();
    let error = node.fetch(digest, &layers(0..1), &[holder.id()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.message().contains("needs 4.00 MiB; at most 3.00 MiB"), "{error}");
}

#[test]
fn memory_for_one_part_is_enough_to_fetch_a_model_from_several_holders() {
    let (_folder, [one, two, three]) = folders();
    let holders = [Node::start(&one), Node::start(&two)];
    let devices = Devices::new(5 << 20, 1);
    let node = Node::start_on(&three, devices.clone());
    let bytes = model(22);
    let [digest, _] = holders.each_ref().map(|holder| {
        node.connect(holder);
        holder.offer(&bytes)
    });
    let whole = Wanted { layers: 0..LAYERS, embedding: true, head: true };
    let file = node.fetch(digest, &whole, &holders.each_ref().map(Node::id)).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    until_held(&devices, Kind::Downloads, 0);
}

#[test]
fn a_node_full_of_layers_gives_its_parts_to_several_peers_within_its_memory() {
    let (_folder, [one, two, three]) = folders();
    let devices = Devices::new(64 << 20, 1);
    let holder = Node::start_on(&one, devices.clone());
    let weights = devices.lease(Kind::Weights, 60 << 20).unwrap();
    let bytes = model(23);
    let digest = holder.offer(&bytes);
    let nodes = [Node::start(&two), Node::start(&three)];
    let whole = Wanted { layers: 0..LAYERS, embedding: true, head: true };
    std::thread::scope(|scope| {
        for node in &nodes {
            node.connect(&holder);
            scope.spawn(|| {
                let file = node.fetch(digest, &whole, &[holder.id()]).unwrap();
                assert_eq!(std::fs::read(&file).unwrap(), bytes);
            });
        }
    });
    // A stream without a request holds no memory.
    until_held(&devices, Kind::Uploads, 0);
    assert_eq!(devices.held(), weights.bytes());
}

#[test]
fn a_part_is_refused_with_the_numbers_if_there_is_no_memory_to_send_it() {
    let (_folder, [one, two]) = folders();
    let holder = Node::start_on(&one, Devices::new(3 << 20, 1));
    let node = Node::start(&two);
    node.connect(&holder);
    let digest = holder.offer(&model(24));
    let error = node.fetch(digest, &layers(0..1), &[holder.id()]).unwrap_err();
    assert!(
        error.message().contains("needs 4.00 MiB; at most 3.00 MiB of this node's 3.00 MiB may go to uploads"),
        "{error}"
    );
}

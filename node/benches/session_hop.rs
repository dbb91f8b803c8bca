//! How long a message takes from one stage to the next on loopback: from the call that sends it to the call of the other
//! node's inbox, and until the other node's stage thread runs. Two nodes, each with a network thread and a stage thread, as
//! the binary has them; messages go there and back, after a pause in which a stage would compute.
//!
//! `cargo bench -p pangea-node --bench session_hop`; `PANGEA_BENCH_RUNS` (1000), `PANGEA_BENCH_PAUSE_US` (0).

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use pangea_compute::Digest;
use pangea_control::membership::Role;
use pangea_node::membership::{Membership, PoolKey, Stored};
use pangea_node::net::{Followers, Interest, NetConfig, NetEvent, start};
use pangea_node::peers::Peers;
use pangea_node::pipeline::links::{Inbox, Links, Payload, links};
use pangea_node::pipeline::wire::{Frame, FrameRows, Message};
use tokio::task::LocalSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

const WARM_UP: usize = 100;

/// Elements of a row of SmolLM2-135M.
const WIDTH: usize = 576;

/// Passes each message to a stage thread, with its time of arrival.
struct Stage(SyncSender<(Instant, Message, Payload)>);

impl Inbox for Stage {
    fn admits(&self, _: PeerId, _: &Message) -> bool {
        true
    }

    fn message(&self, _: PeerId, message: Message, payload: Payload) {
        // The message is dropped if the stage has ended.
        let _ = self.0.try_send((Instant::now(), message, payload));
    }

    fn peer_gone(&self, peer: PeerId, why: &str) {
        eprintln!("{peer} is gone: {why}");
    }
}

/// A node: its network on a thread of its own, its stage on the caller's.
struct Node {
    peer: PeerId,
    addresses: Receiver<Multiaddr>,
    links: Links,
    arrived: Receiver<(Instant, Message, Payload)>,
}

fn node(dial: Option<Multiaddr>) -> Outcome<Node> {
    let (ready_sender, ready) = sync_channel(1);
    let (address_sender, addresses) = sync_channel(2);
    let (stage, arrived) = sync_channel(64);
    std::thread::spawn(move || -> Outcome<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, async move {
            let mut config = NetConfig::new(Keypair::generate_ed25519());
            let key = PoolKey::from_bytes(&[7; 32]);
            config.membership = Membership::holder(&config.identity, &key, Role::Member, "bench", Stored::default())?;
            match dial {
                Some(address) => config.peers = vec![address],
                None => config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse()?, "/ip4/127.0.0.1/udp/0/quic-v1".parse()?],
            }
            let (network, events) = start(config)?;
            let mut followers = Followers::new(events);
            let net_events = followers.follow(Interest::Connections);
            let mut all = followers.follow(Interest::All);
            let (handle, driver) = links(network.clone(), net_events, Arc::new(Stage(stage)), Peers::default());
            ready_sender.send((network.local_peer_id(), handle))?;
            tokio::task::spawn_local(driver.run());
            tokio::task::spawn_local(followers.run(Some(network)));
            while let Some(event) = all.recv().await {
                if let NetEvent::Listening(address) = event {
                    address_sender.send(address)?;
                }
            }
            Ok(())
        })
    });
    let (peer, links) = ready.recv()?;
    Ok(Node { peer, addresses, links, arrived })
}

/// A frame that begins a step of `rows` rows.
fn frame(first_stage: PeerId, rows: usize) -> Message {
    let rows = (0..rows).map(|sequence| FrameRows {
        sequence: sequence as u64,
        start: 100,
        rows: 1,
        choose: true,
        all_logits: false,
        draft: vec![],
    });
    let model = Digest::from_bytes([7; 32]);
    Message::Frame(Frame {
        epoch: 1,
        model,
        number: 1,
        first_stage,
        drops: vec![],
        starts: vec![],
        rows: rows.collect(),
    })
}

/// Spins for `time`, in place of the computation of a stage.
fn pause(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn measure() -> Outcome<()> {
    let number =
        |name: &str, default: usize| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let runs = number("PANGEA_BENCH_RUNS", 1000).max(1);
    let computing = Duration::from_micros(number("PANGEA_BENCH_PAUSE_US", 0) as u64);
    for transport in ["tcp", "udp"] {
        let far = node(None)?;
        let address = loop {
            let address = far.addresses.recv()?;
            if address.to_string().contains(transport) {
                break address;
            }
        };
        let near = node(Some(address))?;
        while !(near.links.connected(&far.peer) && far.links.connected(&near.peer)) {
            std::thread::yield_now();
        }
        let back = near.peer;
        let (far_links, far_arrived) = (far.links, far.arrived);
        let (time_sender, times) = sync_channel(1);
        std::thread::spawn(move || -> Outcome<()> {
            loop {
                let (arrived, message, payload) = far_arrived.recv()?;
                time_sender.send((arrived, Instant::now()))?;
                pause(computing);
                far_links.send(back, message, payload)?;
            }
        });
        for rows in [1, 8, 64] {
            let payload = Payload::from_f32(vec![0.5; rows * WIDTH]);
            let (mut inbox, mut stage) = (Vec::with_capacity(runs), Vec::with_capacity(runs));
            for run in 0..WARM_UP + runs {
                pause(computing);
                let message = frame(near.peer, rows);
                let payload = payload.clone();
                let begin = Instant::now();
                near.links.send(far.peer, message, payload)?;
                near.arrived.recv()?;
                let (arrived, woken) = times.recv()?;
                if run >= WARM_UP {
                    inbox.push((arrived - begin).as_secs_f64() * 1e6);
                    stage.push((woken - begin).as_secs_f64() * 1e6);
                }
            }
            println!(
                "{transport} {:7} bytes: send to inbox {}, to the stage thread {}",
                rows * WIDTH * 4,
                spread(&mut inbox),
                spread(&mut stage)
            );
        }
    }
    Ok(())
}

/// The median and the 90th percentile.
fn spread(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    format!("{:.0} us (p90 {:.0})", values[values.len() / 2], values[values.len() * 9 / 10])
}

fn main() -> ExitCode {
    // `cargo test --benches` passes this: there is nothing to test here.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

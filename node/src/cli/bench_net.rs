//! `pangea bench net`: speed of the link to a peer, measured by the node, beside plain TCP over this machine's loopback
//! in the same run, because only their ratio can be compared between machines.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

use clap::Args;
use pangea_client::{Client, ErrorKind, LinkProbe};
use serde::Serialize;

use super::args::{JsonArgs, OutputArgs, RpcArgs};
use super::failure::{Failure, NOT_THERE};
use super::progress::Progress;
use super::table::{Align, Table, seconds, short_peer};
use super::{print, print_json};
use crate::net::peer_address;
use pangea_units::ByteSize;

/// Measure the link to a peer, beside plain TCP on this machine
#[derive(Args, Clone, Debug)]
pub(super) struct BenchNetArgs {
    /// Peer id, its last characters, or name, as `pangea peers` shows them; or an address to connect to, a multiaddr or
    /// HOST:PORT
    #[arg(value_name = "PEER")]
    peer: String,

    /// Bytes of one bulk message
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    bytes: ByteSize,

    /// Number of messages; the median is reported
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// JSON output.
#[derive(Serialize)]
struct Outcome {
    peer: String,
    name: String,
    /// `tcp` or `quic`.
    transport: String,
    message_bytes: u64,
    rounds: u32,
    /// The link to the peer.
    link: Speeds,
    /// Plain TCP over loopback on this machine.
    plain_tcp: Speeds,
    /// The link's bytes per second over plain TCP's.
    ratio: f64,
}

/// Median speeds of a link.
#[derive(Clone, Copy, Serialize)]
struct Speeds {
    bytes_per_s: f64,
    /// Round-trip time of a 16-byte message, in microseconds.
    round_trip_us: f64,
}

pub(super) async fn run(args: BenchNetArgs, output: OutputArgs) -> Result<(), Failure> {
    let client = args.rpc.node().await?;
    let progress = Progress::waiting(&output, args.json, "connecting");
    let (peer, name) = find(&client, &args.peer).await?;
    progress.phase("link", 0);
    let probe = client.probe_link(&peer, args.bytes.0, args.rounds).await?;
    progress.phase("plain TCP", 0);
    let (bytes, rounds) = (args.bytes.0, args.rounds);
    let plain = tokio::task::spawn_blocking(move || plain_tcp(bytes as usize, rounds)).await;
    let plain = plain.map_err(io::Error::other).and_then(|plain| plain);
    let plain = plain.map_err(|error| Failure::failed(format!("cannot measure plain TCP over loopback: {error}")))?;
    drop(progress);
    let outcome = outcome(probe, name, rounds, plain);
    if args.json.json {
        return print_json(&outcome);
    }
    print(&show(&outcome))
}

/// Peer id and name of the peer that `text` identifies.
async fn find(client: &Client, text: &str) -> Result<(String, String), Failure> {
    // Peer ids have no colon and names of nodes hardly ever: text with a colon or a leading slash is an address.
    let wanted = match text.starts_with('/') || text.contains(':') {
        true => {
            let address = peer_address::parse(text).map_err(|error| Failure::usage(error.to_string()))?;
            client.connect_peer(&address.to_string(), None).await.map_err(|error| match error.kind() {
                ErrorKind::Unavailable => Failure::from(error).hint(NOT_THERE),
                _ => error.into(),
            })?
        }
        false => text.to_owned(),
    };
    let peers = client.peers().await?;
    let end = wanted.trim_start_matches('…');
    let mut found = peers
        .iter()
        .filter(|peer| peer.peer == wanted || peer.name == wanted || (end.len() >= 4 && peer.peer.ends_with(end)));
    match (found.next(), found.next()) {
        (Some(peer), None) => Ok((peer.peer.clone(), peer.name.clone())),
        (Some(_), Some(_)) => {
            Err(Failure::usage(format!("several peers are named {text}; use the peer id (pangea peers --json)")))
        }
        (None, _) => Err(Failure::usage(format!("{text} is not a peer of this node; `pangea peers` lists its peers"))),
    }
}

fn outcome(probe: LinkProbe, name: String, rounds: u32, plain_tcp: Speeds) -> Outcome {
    Outcome {
        peer: probe.peer,
        name,
        transport: probe.transport,
        message_bytes: probe.message_bytes,
        rounds,
        link: Speeds { bytes_per_s: probe.bytes_per_s, round_trip_us: probe.round_trip_us },
        plain_tcp,
        ratio: probe.bytes_per_s / plain_tcp.bytes_per_s.max(1.0),
    }
}

/// Sends `rounds` messages of `bytes` over loopback, each acknowledged with a byte, and as many small round trips.
fn plain_tcp(bytes: usize, rounds: u32) -> io::Result<Speeds> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let other = std::thread::spawn(move || answer(&listener, bytes, rounds));
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let message = vec![0x5a; bytes];
    let mut small = [0; 16];
    let mut bulk_seconds = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut small[..1])?;
        bulk_seconds.push(start.elapsed().as_secs_f64());
    }
    let mut small_seconds = Vec::new();
    for _ in 0..small_rounds(rounds) {
        let start = Instant::now();
        stream.write_all(&small)?;
        stream.read_exact(&mut small)?;
        small_seconds.push(start.elapsed().as_secs_f64());
    }
    other.join().map_err(|_| io::Error::other("the other end panicked"))??;
    Ok(Speeds {
        bytes_per_s: bytes as f64 / median(bulk_seconds).max(1e-9),
        round_trip_us: median(small_seconds) * 1e6,
    })
}

/// The receiving side of [`plain_tcp`].
fn answer(listener: &TcpListener, bytes: usize, rounds: u32) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 1 << 20];
    for _ in 0..rounds {
        let mut left = bytes;
        while left > 0 {
            let want = left.min(buffer.len());
            let read = stream.read(&mut buffer[..want])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= read;
        }
        stream.write_all(&[1])?;
    }
    let mut small = [0; 16];
    for _ in 0..small_rounds(rounds) {
        stream.read_exact(&mut small)?;
        stream.write_all(&small)?;
    }
    Ok(())
}

/// Number of small messages: more, because they are cheap and noisy.
fn small_rounds(rounds: u32) -> u32 {
    rounds.max(101)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn show(outcome: &Outcome) -> String {
    let mut table =
        Table::new([("from this machine", Align::Left), ("bulk", Align::Right), ("round trip", Align::Right)]);
    let mut row = |what: String, speeds: Speeds| {
        let bulk = format!("{:.2} GB/s", speeds.bytes_per_s / 1e9);
        table.row([what, bulk, seconds(speeds.round_trip_us / 1e6)]);
    };
    let name = if outcome.name.is_empty() { short_peer(&outcome.peer) } else { outcome.name.clone() };
    row(format!("to {name} (libp2p, {}, encrypted)", outcome.transport), outcome.link);
    row("to itself (plain TCP over loopback)".to_owned(), outcome.plain_tcp);
    let size = ByteSize(outcome.message_bytes);
    let mut text = table.render();
    text.push_str(&format!(
        "\n  The link carries {:.2} of plain loopback TCP ({} messages of {size}; medians).\n",
        outcome.ratio, outcome.rounds
    ));
    text
}

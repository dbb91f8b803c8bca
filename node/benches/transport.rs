//! Throughput and latency of streams between two nodes on loopback, and of plain TCP in the same run: bytes per second
//! of large messages one way, over one stream and over two, and the round trip of 16 bytes. Two threads, each a node
//! with its own current-thread runtime, as the binary has them.
//!
//! `cargo bench -p pangea-node --bench transport`; `PANGEA_BENCH_MIB` (256) and `PANGEA_BENCH_RUNS` (5).

use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, StreamProtocol};
use pangea_control::membership::Role;
use pangea_node::membership::{Membership, PoolKey, Stored};
use pangea_node::net::{NetConfig, NetEvent, start};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::compat::TokioAsyncReadCompatExt;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/bench/1");

/// The first byte of a stream, which says what the server does with it.
const BULK: u8 = 0;
const ECHO: u8 = 1;

const ROUND_TRIPS: usize = 2000;
const WARM_UP: usize = 200;
const ECHO_BYTES: usize = 16;

/// Size of the buffer of a reader.
const READ_BYTES: usize = 1 << 20;

/// Serves a stream: reads messages and answers each with one byte, or echoes.
async fn serve<S>(mut stream: S) -> Outcome<()>
where
    S: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    let mut what = [0];
    stream.read_exact(&mut what).await?;
    if what[0] == ECHO {
        let mut message = [0; ECHO_BYTES];
        while stream.read_exact(&mut message).await.is_ok() {
            stream.write_all(&message).await?;
            stream.flush().await?;
        }
        return Ok(());
    }
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let mut length = [0; 8];
        if stream.read_exact(&mut length).await.is_err() {
            return Ok(());
        }
        let mut left = u64::from_le_bytes(length);
        while left > 0 {
            let most = buffer.len().min(left as usize);
            let count = stream.read(&mut buffer[..most]).await?;
            if count == 0 {
                return Err("the message ends early".into());
            }
            left -= count as u64;
        }
        stream.write_all(&[1]).await?;
        stream.flush().await?;
    }
}

/// Sends one message and waits for its answer.
async fn send<S>(stream: &mut S, message: &[u8]) -> Outcome<()>
where
    S: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    stream.write_all(&(message.len() as u64).to_le_bytes()).await?;
    stream.write_all(message).await?;
    stream.flush().await?;
    stream.read_exact(&mut [0]).await?;
    Ok(())
}

/// Round trips of 16 bytes, the median in microseconds.
async fn round_trip<S>(stream: &mut S) -> Outcome<f64>
where
    S: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    stream.write_all(&[ECHO]).await?;
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..WARM_UP + ROUND_TRIPS {
        let begin = Instant::now();
        stream.write_all(&[7; ECHO_BYTES]).await?;
        stream.flush().await?;
        stream.read_exact(&mut [0; ECHO_BYTES]).await?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&mut times[WARM_UP..]))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Starts a node that serves, on its own thread, and returns its addresses.
fn far_node() -> Outcome<(Vec<Multiaddr>, u16)> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || -> Outcome<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let (network, mut events) =
                start(config(vec!["/ip4/127.0.0.1/tcp/0".parse()?, "/ip4/127.0.0.1/udp/0/quic-v1".parse()?]))?;
            let mut incoming = network.streams().accept(PROTOCOL).map_err(|_| "accepted twice")?;
            let plain = TcpListener::bind("127.0.0.1:0").await?;
            let port = plain.local_addr()?.port();
            let mut addresses = Vec::new();
            while addresses.len() < 2 {
                if let Some(NetEvent::Listening(address)) = events.recv().await {
                    addresses.push(address);
                }
            }
            sender.send((addresses, port))?;
            loop {
                tokio::select! {
                    Some((_, stream)) = incoming.next() => { tokio::spawn(serve(stream)); }
                    Ok((stream, _)) = plain.accept() => {
                        stream.set_nodelay(true)?;
                        tokio::spawn(serve(stream.compat()));
                    }
                    Some(_) = events.recv() => {}
                    else => return Ok(()),
                }
            }
        })
    });
    Ok(receiver.recv()?)
}

fn config(listen: Vec<Multiaddr>) -> NetConfig {
    let mut config = NetConfig::new(Keypair::generate_ed25519());
    config.listen = listen;
    let key = PoolKey::from_bytes(&[7; 32]);
    config.membership =
        Membership::holder(&config.identity, &key, Role::Member, "bench", Stored::default()).expect("a certificate");
    config
}

/// Bytes per second over `streams` at once.
async fn bulk<S>(streams: &mut [S], message: &[u8]) -> Outcome<f64>
where
    S: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    let share = message.len() / streams.len();
    let begin = Instant::now();
    futures::future::try_join_all(streams.iter_mut().map(|stream| send(stream, &message[..share]))).await?;
    Ok((share * streams.len()) as f64 / begin.elapsed().as_secs_f64())
}

async fn measure() -> Outcome<()> {
    let number =
        |name: &str, default: usize| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let message = vec![0x5a; number("PANGEA_BENCH_MIB", 256) << 20];
    let runs = number("PANGEA_BENCH_RUNS", 5).max(1);
    let (addresses, plain_port) = far_node()?;

    let mut plain = Vec::new();
    for _ in 0..2 {
        let stream = TcpStream::connect(("127.0.0.1", plain_port)).await?;
        stream.set_nodelay(true)?;
        let mut stream = stream.compat();
        stream.write_all(&[BULK]).await?;
        plain.push(stream);
    }
    let stream = TcpStream::connect(("127.0.0.1", plain_port)).await?;
    stream.set_nodelay(true)?;
    let plain_rtt = round_trip(&mut stream.compat()).await?;
    let (mut plain_one, mut plain_two) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        plain_one.push(bulk(&mut plain[..1], &message).await?);
        plain_two.push(bulk(&mut plain, &message).await?);
    }
    report("plain tcp", &mut plain_one, &mut plain_two, plain_rtt);

    for address in addresses {
        let (network, mut events) = start(config(Vec::new()))?;
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        let quic = address.iter().any(|part| matches!(part, Protocol::QuicV1));
        let peer = network.connect(address, Duration::from_secs(10)).await?;
        let mut control = network.streams();
        let mut streams = Vec::new();
        for _ in 0..2 {
            let mut stream = control.open_stream(peer, PROTOCOL).await?;
            stream.write_all(&[BULK]).await?;
            streams.push(stream);
        }
        let rtt = round_trip(&mut control.open_stream(peer, PROTOCOL).await?).await?;
        let (mut one, mut two) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            one.push(bulk(&mut streams[..1], &message).await?);
            two.push(bulk(&mut streams, &message).await?);
        }
        report(if quic { "quic" } else { "tcp noise yamux" }, &mut one, &mut two, rtt);
        network.shutdown().await;
    }
    Ok(())
}

fn report(name: &str, one: &mut [f64], two: &mut [f64], rtt: f64) {
    println!(
        "{name:16} one stream {:.2} GB/s, two streams {:.2} GB/s, 16 bytes there and back {rtt:.0} us",
        median(one) / 1e9,
        median(two) / 1e9
    );
}

fn main() -> ExitCode {
    // `cargo test --benches` passes this: there is nothing to test here.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(measure())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

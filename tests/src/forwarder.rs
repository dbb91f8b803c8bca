//! A TCP link between two nodes with delay, limited bandwidth, cuts and damaged bytes. Never looks at what the bytes mean.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of one read.
const PIECE_BYTES: usize = 16 << 10;

/// Pieces in flight in each direction: 4 MiB are more than any delay here fills.
const PIECES: usize = 256;

/// Properties of a link.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quality {
    /// One-way delay.
    pub delay: Duration,
    /// Bandwidth of each direction of each connection, in bytes per second; 0 is unlimited.
    pub bytes_per_s: u64,
    /// Bytes after which all connections are cut permanently; 0 is never.
    pub cut_after_bytes: u64,
}

/// A link that ends when dropped.
pub struct Forwarder {
    local: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    quality: Quality,
    forwarded: AtomicU64,
    /// Reads whose bytes are still to be damaged.
    damage: AtomicU64,
    damaged: AtomicU64,
    cut: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Forwarder {
    /// A link to the node that listens on `port` of loopback.
    pub fn start(port: u16, quality: Quality) -> Forwarder {
        Forwarder::at("127.0.0.1:0".parse().unwrap(), port, quality)
    }

    /// A link that nodes reach at `address`, to the node that listens on `port` of loopback.
    ///
    /// # Panics
    /// Where the address is in use or not this host's.
    pub fn at(address: SocketAddr, port: u16, quality: Quality) -> Forwarder {
        let listener = TcpListener::bind(address).unwrap();
        let local = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            quality,
            forwarded: AtomicU64::new(0),
            damage: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while let Ok((near, _)) = listener.accept() {
                    if shared.cut.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                    shared.carry(&near, &far);
                }
            }
        });
        Forwarder { local, shared, acceptor: Some(acceptor) }
    }

    /// Address of the link, which a node dials instead of the target.
    pub fn address(&self) -> String {
        format!("/ip4/127.0.0.1/tcp/{}", self.local.port())
    }

    /// Bytes forwarded in both directions.
    pub fn forwarded_bytes(&self) -> u64 {
        self.shared.forwarded.load(Ordering::SeqCst)
    }

    /// Whether the link was cut.
    pub fn is_cut(&self) -> bool {
        self.shared.cut.load(Ordering::SeqCst)
    }

    /// Cuts every connection, and accepts no more.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Ends every connection; new ones are accepted.
    pub fn disconnect(&self) {
        self.shared.disconnect();
    }

    /// Flips one bit in each of the next `pieces` reads, whatever their direction.
    pub fn damage(&self, pieces: u64) {
        self.shared.damage.store(pieces, Ordering::SeqCst);
    }

    /// Reads whose bytes were damaged.
    pub fn damaged(&self) -> u64 {
        self.shared.damaged.load(Ordering::SeqCst)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.cut();
        // A connection wakes the acceptor, which then ends.
        let _ = TcpStream::connect(self.local);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Bytes in flight, and when they arrive.
type Piece = (Instant, Vec<u8>);

impl Shared {
    fn carry(self: &Arc<Shared>, near: &TcpStream, far: &TcpStream) {
        for stream in [near, far] {
            stream.set_nodelay(true).unwrap();
            self.connections.lock().unwrap().push(stream.try_clone().unwrap());
        }
        for (from, to) in [(near, far), (far, near)] {
            let (sender, pieces) = sync_channel(PIECES);
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let taker = Arc::clone(self);
            std::thread::spawn(move || taker.take(from, &sender));
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.give(to, &pieces));
        }
    }

    fn give(&self, mut to: TcpStream, pieces: &Receiver<Piece>) {
        let mut free_at = Instant::now();
        while let Ok((due, bytes)) = pieces.recv() {
            let rate = self.quality.bytes_per_s;
            let due = due.max(free_at);
            if rate > 0 {
                free_at = due + Duration::from_secs_f64(bytes.len() as f64 / rate as f64);
            }
            // The delay itself: not a wait for another event.
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
            let before = self.forwarded.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            let limit = self.quality.cut_after_bytes;
            if limit > 0 && before + bytes.len() as u64 >= limit {
                self.cut();
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        self.disconnect();
    }

    fn disconnect(&self) {
        for stream in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn take(&self, mut from: TcpStream, pieces: &SyncSender<Piece>) {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut bytes = buffer[..length].to_vec();
            let left = |left: u64| left.checked_sub(1);
            if self.damage.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
                bytes[length / 2] ^= 1;
                self.damaged.fetch_add(1, Ordering::SeqCst);
            }
            if pieces.send((Instant::now() + self.quality.delay, bytes)).is_err() {
                return;
            }
        }
    }
}

//! A model file from one node to another on this machine: bytes per second, from the request until all of it is checked
//! and written. `cargo bench -p pangea-node --bench blobs -- MODEL.gguf [FOLDER]`; copies are written under FOLDER.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Instant;

use pangea_compute::Cancel;
use pangea_node::blob::{self, Blobs};
use pangea_node::devices::Devices;
use pangea_node::net::{NetConfig, Network, identity};
use pangea_node::peers::Peers;
use pangea_node::supervise::Supervisor;
use tokio::task::LocalSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RUNS: usize = 7;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let Some(file) = arguments.first().map(PathBuf::from) else {
        println!("name a model file: cargo bench -p pangea-node --bench blobs -- MODEL.gguf [FOLDER]");
        return;
    };
    let base = arguments.get(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(base).expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (holder, network) = node(&folder.path().join("holder"));
    let started = Instant::now();
    let offered = holder.offer(&file).expect("a model file");
    let bytes = offered.manifest.size_bytes() as f64;
    println!("indexed at {:.0} MB/s", bytes / started.elapsed().as_secs_f64() / 1e6);
    let mut speeds: Vec<f64> = (0..RUNS)
        .map(|run| {
            let (blobs, mine) = node(&folder.path().join(run.to_string()));
            runtime.block_on(async {
                let address = loop {
                    if let Some(address) = network.listen_addresses().await.into_iter().next() {
                        break address;
                    }
                    tokio::task::yield_now().await;
                };
                mine.connect(address, std::time::Duration::from_secs(10)).await.expect("a connection");
                let holders = vec![network.local_peer_id()];
                let started = Instant::now();
                let wanted = offered.manifest.whole();
                blobs
                    .fetch(offered.digest, wanted, holders, &mut |_, _| {}, &Cancel::new())
                    .await
                    .expect("the model comes");
                let speed = bytes / started.elapsed().as_secs_f64();
                mine.shutdown().await;
                speed
            })
        })
        .collect();
    speeds.sort_by(f64::total_cmp);
    println!(
        "{:.0} MB: median {:.0} MB/s, best {:.0}, worst {:.0}",
        bytes / 1e6,
        speeds[RUNS / 2] / 1e6,
        speeds[RUNS - 1] / 1e6,
        speeds[0] / 1e6
    );
}

/// Starts a node on its own thread, which ends with the process.
fn node(folder: &Path) -> (Blobs, Network) {
    let (started, handles) = mpsc::sync_channel(1);
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async move {
            let mut config = NetConfig::new(identity::ephemeral());
            config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("a multiaddr")];
            let (network, mut events) = pangea_node::net::start(config).expect("a network");
            let blobs = blob::start(
                &folder,
                &Devices::new(4 << 30, 2),
                Some(&network),
                &Peers::default(),
                &Supervisor::default(),
            )
            .expect("blobs");
            started.send((blobs, network)).expect("somebody waits");
            while events.recv().await.is_some() {}
        });
    });
    handles.recv().expect("the node starts")
}

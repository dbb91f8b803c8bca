//! The handle on this node's model files: cheap to clone, usable from any thread. It indexes files on the caller's thread;
//! fetching is the network thread's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::model::{Manifest, Wanted};
use pangea_compute::{Cancel, Digest};
use tokio::sync::{mpsc, oneshot, watch};

use super::blob_store::BlobStore;
use super::fetcher::{Fetcher, Request};
use super::index::Index;
use super::limits::REQUESTS;
use super::parts::{PartSet, holds, part_bytes, parts_of};
use super::serve;
use super::stored::Stored;
use crate::net::Network;
use crate::peers::Peers;
use crate::supervise::Supervisor;

/// Folder of the manifests of whole files.
const MANIFESTS: &str = "manifests";

/// The model files of this node.
#[derive(Clone, Debug)]
pub struct Blobs {
    blob_store: Arc<BlobStore>,
    index: Arc<Index>,
    requests: mpsc::Sender<Request>,
    /// What the model is called that is fetched through this handle.
    name: Option<Arc<str>>,
}

/// A whole file that peers can have.
#[derive(Clone, Debug)]
pub struct Offered {
    /// The model's digest.
    pub digest: Digest,
    /// What the file consists of.
    pub manifest: Arc<Manifest>,
    /// The file.
    pub path: PathBuf,
}

/// What is here of a model.
#[derive(Clone, Debug)]
pub struct Here {
    /// The model's digest.
    pub digest: Digest,
    /// What the whole file consists of.
    pub manifest: Arc<Manifest>,
    /// The file, of the full size; what is not here of it reads as zeros.
    pub path: PathBuf,
    parts: PartSet,
}

/// Keeps model files in `folder` (`blobs` of the data directory) and answers peers about them; hashes files on so many
/// threads. On the network thread, inside its `LocalSet`, before the first connection. Without a network it finds what is
/// here. Its work ends with the `LocalSet`.
///
/// # Errors
/// `Internal` where the protocol is answered already.
///
/// # Panics
/// Outside of a `LocalSet`.
pub fn start(
    folder: &Path,
    threads: usize,
    network: Option<&Network>,
    peers: &Peers,
    supervisor: &Supervisor,
) -> Result<Blobs> {
    let blob_store = Arc::new(BlobStore::open(folder.to_owned()));
    if let Some(network) = network {
        serve::accept(network, Arc::clone(&blob_store), peers.clone(), supervisor)?;
    }
    let (requests, queue) = mpsc::channel(REQUESTS);
    Fetcher::start(Arc::clone(&blob_store), network.cloned(), peers.clone(), queue, supervisor);
    let index = Arc::new(Index::new(folder.join(MANIFESTS), threads));
    Ok(Blobs { blob_store, index, requests, name: None })
}

impl Blobs {
    /// Offers a whole model file to peers, and uses it itself. Hashes it where it has changed or is new, which takes a
    /// moment: blocks.
    ///
    /// # Errors
    /// Those of reading it; `InvalidInput` for what is no model file.
    pub fn offer(&self, path: &Path) -> Result<Arc<Offered>> {
        let (digest, manifest) = self.index.manifest_of(path)?;
        let manifest = Arc::new(manifest);
        self.blob_store.insert(Arc::new(Stored::whole(path, digest, Arc::clone(&manifest))?));
        tracing::debug!(event = "model_offered", model = %digest, file = %path.display());
        Ok(Arc::new(Offered { digest, manifest, path: path.to_owned() }))
    }

    /// The same, for a model that requests call `name`: whoever fetches more of it later, that is what people read meanwhile,
    /// and not what its file says.
    pub fn called(&self, name: &str) -> Blobs {
        Blobs { name: Some(name.into()), ..self.clone() }
    }

    /// Makes sure that what is `wanted` of a model is here and true to its digest: fetches what is missing from `providers`,
    /// from several at once. Gives the file, which reads as the model's where it was wanted. `progress` is told the bytes
    /// that are here and those in all. Dropping the future, or `cancel`, ends it; what has come stays.
    ///
    /// # Errors
    /// `NotFound` where nobody has what is missing, `Unavailable` where who has it cannot be reached, `VerificationFailed`
    /// where only wrong bytes come, with who sent them; `Overloaded` where the disk is full or too much is being fetched;
    /// `Cancelled`.
    pub async fn fetch(
        &self,
        model: Digest,
        wanted: Wanted,
        providers: Vec<PeerId>,
        progress: &mut (dyn FnMut(u64, u64) + Send),
        cancel: &Cancel,
    ) -> Result<PathBuf> {
        let gone = || Error::new(ErrorKind::Unavailable, "this node is shutting down");
        let (so_far, mut told) = watch::channel((0, 0));
        let (answer, mut answered) = oneshot::channel();
        let name = self.name.clone();
        let request = Request { model, wanted, name, providers, cancel: cancel.clone(), so_far, answer };
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Error::new(ErrorKind::Overloaded, "too many models are being fetched; try again")
            }
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        loop {
            tokio::select! {
                // First: the end is told, too, before it is given.
                biased;
                Ok(()) = told.changed() => {
                    let (done, total) = *told.borrow_and_update();
                    progress(done, total);
                }
                answer = &mut answered => return answer.unwrap_or_else(|_| Err(gone())),
            }
        }
    }

    /// What is here of a model; `None` where nothing is.
    pub fn have(&self, model: &Digest) -> Option<Here> {
        self.blob_store.get(model).map(|stored| Here::of(&stored))
    }

    /// All models of which something is here.
    pub fn list(&self) -> Vec<Here> {
        self.blob_store.all().iter().map(|stored| Here::of(stored)).collect()
    }
}

impl Here {
    fn of(stored: &Stored) -> Here {
        Here {
            digest: stored.digest(),
            manifest: Arc::clone(stored.manifest()),
            path: stored.path().to_owned(),
            parts: stored.parts(),
        }
    }

    /// Whether the whole file is.
    pub fn is_whole(&self) -> bool {
        self.parts.is_full()
    }

    /// Whether all that is `wanted` is.
    pub fn holds(&self, wanted: &Wanted) -> bool {
        holds(&self.parts, &self.manifest, wanted)
    }

    /// Bytes of `wanted` that are here, and bytes of it in all.
    pub fn bytes_of(&self, wanted: &Wanted) -> (u64, u64) {
        parts_of(&self.manifest, wanted).fold((0, 0), |(here, all), id| {
            let bytes = part_bytes(&self.manifest, id);
            (here + if self.parts.contains(id) { bytes } else { 0 }, all + bytes)
        })
    }
}

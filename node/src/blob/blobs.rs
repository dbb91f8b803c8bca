//! The handle on this node's model files: cheap to clone, usable from any thread. Files are indexed on the caller's
//! thread and fetched on the network thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use libp2p::PeerId;
use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::model::{Manifest, Wanted};
use pangea_compute::{Cancel, Digest};
use tokio::sync::{mpsc, oneshot, watch};

use super::blob_store::BlobStore;
use super::fetcher::{Fetcher, Request};
use super::index::{FileStamp, Index, stamp_of};
use super::limits::REQUESTS;
use super::parts::{PartSet, holds, part_bytes, parts_of};
use super::serve;
use super::stored::Stored;
use crate::devices::Devices;
use crate::devices::threads::Purpose;
use crate::net::Network;
use crate::peers::Peers;
use crate::supervise::Supervisor;

/// Subfolder with the manifests of whole files.
const MANIFESTS: &str = "manifests";

/// The model files of this node.
#[derive(Clone, Debug)]
pub struct Blobs {
    blob_store: Arc<BlobStore>,
    index: Arc<Index>,
    /// Threads that hash a file that is waited for.
    hash_threads: usize,
    requests: mpsc::Sender<Request>,
    /// Name of the model that is fetched through this handle, for log lines.
    name: Option<Arc<str>>,
}

/// A whole file that peers may fetch.
#[derive(Clone, Debug)]
pub struct Offered {
    /// Digest of the model.
    pub digest: Digest,
    /// Tensors and layers of the file.
    pub manifest: Arc<Manifest>,
    /// Path of the file.
    pub path: PathBuf,
}

/// A model of which this node has at least a part.
#[derive(Clone, Debug)]
pub struct StoredModel {
    /// Digest of the model.
    pub digest: Digest,
    /// Tensors and layers of the whole file.
    pub manifest: Arc<Manifest>,
    /// Path of the file, which has its full size; missing parts read as zeros.
    pub path: PathBuf,
    parts: PartSet,
}

/// Stores model files in `folder` (`blobs` of the data directory) and answers peers' requests for them, with the memory and the
/// threads of `devices`. Must be called on the network thread, inside its `LocalSet`, before the first connection. Without a
/// network only local files are found. The work ends with the `LocalSet`.
///
/// # Errors
/// `Internal` if the protocol has a handler already.
///
/// # Panics
/// If called outside of a `LocalSet`.
pub fn start(
    folder: &Path,
    devices: &Devices,
    network: Option<&Network>,
    peers: &Peers,
    supervisor: &Supervisor,
) -> Result<Blobs> {
    let blob_store = Arc::new(BlobStore::open(folder.to_owned()));
    if let Some(network) = network {
        serve::accept(network, Arc::clone(&blob_store), peers.clone(), devices.clone(), supervisor)?;
    }
    let (requests, queue) = mpsc::channel(REQUESTS);
    Fetcher::start(Arc::clone(&blob_store), network.cloned(), peers.clone(), devices.clone(), queue, supervisor);
    let index = Arc::new(Index::new(folder.join(MANIFESTS)));
    Ok(Blobs { blob_store, index, hash_threads: devices.threads(Purpose::Loading), requests, name: None })
}

impl Blobs {
    /// Offers a whole model file to peers and uses it locally. A new or changed file is hashed first, which takes a
    /// moment. Blocks.
    ///
    /// # Errors
    /// Errors of reading the file; `InvalidInput` if it is not a model file.
    pub fn offer(&self, path: &Path) -> Result<Arc<Offered>> {
        let (digest, manifest) = self.index.manifest_of(path, None, self.hash_threads)?;
        self.offer_as(path, digest, manifest)
    }

    /// Like [`Blobs::offer`], but only a file that was hashed before, for which nobody waits.
    ///
    /// # Errors
    /// Those of [`Blobs::offer`].
    pub fn offer_hashed(&self, path: &Path) -> Result<Option<Arc<Offered>>> {
        let known = self.index.known(path)?;
        known.map(|(digest, manifest)| self.offer_as(path, digest, manifest)).transpose()
    }

    /// Like [`Blobs::offer`], for a file that is in use already, since it had this stamp: it is hashed on the calling thread alone.
    ///
    /// # Errors
    /// Those of [`Blobs::offer`]; `InvalidInput` if the file has changed since.
    pub fn offer_used(&self, path: &Path, since: &FileStamp) -> Result<Arc<Offered>> {
        let (digest, manifest) = self.index.manifest_of(path, Some(since), 1)?;
        self.offer_as(path, digest, manifest)
    }

    /// The stamp of a model's files as they are now.
    ///
    /// # Errors
    /// Errors of finding the files.
    pub fn stamp_of(&self, path: &Path) -> Result<FileStamp> {
        stamp_of(path)
    }

    fn offer_as(&self, path: &Path, digest: Digest, manifest: Manifest) -> Result<Arc<Offered>> {
        let manifest = Arc::new(manifest);
        self.blob_store.insert(Arc::new(Stored::whole(path, digest, Arc::clone(&manifest))?));
        tracing::debug!(event = "model_offered", model = %digest, file = %path.display());
        Ok(Arc::new(Offered { digest, manifest, path: path.to_owned() }))
    }

    /// The digest of a model file, which is not offered to anyone. Blocks while the file is hashed for the first time.
    ///
    /// # Errors
    /// Those of [`Blobs::offer`].
    pub fn digest_of(&self, path: &Path) -> Result<Digest> {
        self.index.manifest_of(path, None, self.hash_threads).map(|(digest, _)| digest)
    }

    /// A handle whose fetches are logged under `name`, the name that requests use, instead of the name in the model's file.
    pub fn called(&self, name: &str) -> Blobs {
        Blobs { name: Some(name.into()), ..self.clone() }
    }

    /// Ensures that the `wanted` parts of a model are on this node and match its digest: missing parts are fetched from
    /// several `providers` at once. Returns the file, in which the wanted parts are present. `progress` receives the present
    /// and the total bytes. Dropping the future or setting `cancel` stops the fetch; parts that arrived are kept.
    ///
    /// # Errors
    /// `NotFound` if nobody has a missing part, `Unavailable` if its providers cannot be reached, `VerificationFailed`
    /// if only wrong bytes arrive, naming their senders; `Overloaded` if the disk is full, the memory does not hold a part
    /// (with the numbers), or too many fetches run;
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
                // Progress first, so that the last progress is reported before the result.
                biased;
                Ok(()) = told.changed() => {
                    let (done, total) = *told.borrow_and_update();
                    progress(done, total);
                }
                answer = &mut answered => return answer.unwrap_or_else(|_| Err(gone())),
            }
        }
    }

    /// The local parts of a model; `None` if there are none.
    pub fn have(&self, model: &Digest) -> Option<StoredModel> {
        self.blob_store.get(model).map(|stored| StoredModel::of(&stored))
    }

    /// Every model of which this node has at least a part.
    pub fn list(&self) -> Vec<StoredModel> {
        self.blob_store.all().iter().map(|stored| StoredModel::of(stored)).collect()
    }
}

impl StoredModel {
    fn of(stored: &Stored) -> StoredModel {
        StoredModel {
            digest: stored.digest(),
            manifest: Arc::clone(stored.manifest()),
            path: stored.path().to_owned(),
            parts: stored.parts(),
        }
    }

    /// Whether every part of the file is present.
    pub fn is_whole(&self) -> bool {
        self.parts.is_full()
    }

    /// Whether every `wanted` part is present.
    pub fn holds(&self, wanted: &Wanted) -> bool {
        holds(&self.parts, &self.manifest, wanted)
    }

    /// Present bytes of `wanted`, and its total bytes.
    pub fn bytes_of(&self, wanted: &Wanted) -> (u64, u64) {
        parts_of(&self.manifest, wanted).fold((0, 0), |(here, all), id| {
            let bytes = part_bytes(&self.manifest, id);
            (here + if self.parts.contains(id) { bytes } else { 0 }, all + bytes)
        })
    }
}

//! Tensors held by a node, and the transfer of their bytes in both directions. Bytes are row-major and
//! little-endian; nothing here converts them.

use std::pin::pin;
use std::rc::Rc;

use capnp_rpc::new_client;
use pangea_schema::tensor_capnp::{byte_sink, tensor};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::connection::Connection;
use crate::dtype::DType;
use crate::exception::from_exception;
use crate::transport::{CHUNK_BYTES, WINDOW_BYTES};
use crate::{Error, ErrorKind, Result};

/// Dtype and shape of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Type of its elements.
    pub dtype: DType,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
}

impl TensorInfo {
    /// Bytes of all elements; `InvalidInput` where the number overflows 64 bits.
    pub fn size_bytes(&self) -> Result<u64> {
        let elements = self.rows.checked_mul(self.cols);
        elements.and_then(|elements| elements.checked_mul(self.dtype.size_bytes())).ok_or_else(|| {
            let TensorInfo { dtype, rows, cols } = self;
            Error::new(ErrorKind::InvalidInput, format!("a {dtype} tensor [{rows}, {cols}] is too large"))
        })
    }
}

/// The source of an upload's bytes.
pub trait TensorSource {
    /// Dtype and shape of the upload.
    fn info(&self) -> TensorInfo;

    /// Fills `chunk` with the tensor's bytes from byte `offset`. Called in order, each byte once;
    /// `chunk` is the message itself, so that a memory-mapped file is copied only there.
    fn read(&mut self, offset: u64, chunk: &mut [u8]) -> Result<()>;
}

/// The receiver of a download's bytes.
pub trait TensorDestination {
    /// Called once, before the first byte.
    fn begin(&mut self, info: &TensorInfo) -> Result<()>;

    /// Takes the next bytes, in order. The node sends at most a window ahead of this call.
    fn write(&mut self, chunk: &[u8]) -> Result<()>;
}

/// A tensor in memory, as a source.
pub struct TensorBytes<'a> {
    info: TensorInfo,
    bytes: &'a [u8],
}

impl<'a> TensorBytes<'a> {
    /// `bytes` as a tensor; `InvalidInput` where their number does not match `info`.
    pub fn new(info: TensorInfo, bytes: &'a [u8]) -> Result<TensorBytes<'a>> {
        let expected = info.size_bytes()?;
        if bytes.len() as u64 != expected {
            let TensorInfo { dtype, rows, cols } = info;
            let got = bytes.len();
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("a {dtype} tensor [{rows}, {cols}] has {expected} bytes, not {got}"),
            ));
        }
        Ok(TensorBytes { info, bytes })
    }
}

impl TensorSource for TensorBytes<'_> {
    fn info(&self) -> TensorInfo {
        self.info
    }

    fn read(&mut self, offset: u64, chunk: &mut [u8]) -> Result<()> {
        let start = offset as usize;
        chunk.copy_from_slice(&self.bytes[start..start + chunk.len()]);
        Ok(())
    }
}

impl TensorDestination for Vec<u8> {
    fn begin(&mut self, info: &TensorInfo) -> Result<()> {
        let size_bytes = info.size_bytes()?;
        let no_room = || {
            let message = format!("no memory for the {size_bytes} bytes of the result");
            Error::new(ErrorKind::Overloaded, message)
        };
        self.clear();
        self.try_reserve_exact(usize::try_from(size_bytes).map_err(|_| no_room())?).map_err(|_| no_room())
    }

    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        self.extend_from_slice(chunk);
        Ok(())
    }
}

/// A tensor held by a node: an upload, or a product that may still be computed. The node frees
/// the tensor when the last clone is dropped.
#[derive(Clone)]
pub struct Tensor {
    capability: tensor::Client,
    /// Keeps the connection open for the life of this value.
    _connection: Rc<Connection>,
}

impl Tensor {
    pub(crate) fn new(capability: tensor::Client, connection: Rc<Connection>) -> Tensor {
        Tensor { capability, _connection: connection }
    }

    pub(crate) fn capability(&self) -> tensor::Client {
        self.capability.clone()
    }

    /// Dtype and shape; known for a product before it is computed. Fails as the job failed.
    pub async fn info(&self) -> Result<TensorInfo> {
        let response = self.capability.info_request().send().promise.await;
        let response = response.map_err(|exception| from_exception(&exception))?;
        let info = response.get().and_then(|results| results.get_info()).and_then(|info| {
            let dtype = DType::from_wire(info.get_dtype()?);
            Ok(TensorInfo { dtype, rows: info.get_rows(), cols: info.get_cols() })
        });
        info.map_err(|exception| from_exception(&exception))
    }

    /// Waits for the whole tensor and writes it to `destination`. Dropping the future ends the
    /// transfer.
    pub async fn read_into(&self, destination: &mut dyn TensorDestination) -> Result<TensorInfo> {
        let info = self.info().await?;
        destination.begin(&info)?;
        self.read_range(0, info.size_bytes()?, &mut |chunk| destination.write(chunk)).await?;
        Ok(info)
    }

    /// Waits for the tensor and passes `length` of its bytes from byte `offset` to `take`, in
    /// order.
    pub async fn read_range(&self, offset: u64, length: u64, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        // As many chunks as the node sends before it waits: neither side waits for this queue.
        let (chunks, mut arrived) = mpsc::channel(WINDOW_BYTES / CHUNK_BYTES + 2);
        let mut request = self.capability.read_request();
        request.get().set_sink(new_client(Sink { chunks }));
        request.get().set_offset(offset);
        request.get().set_length(length);
        let mut call = pin!(request.send().promise);
        let mut received = 0;
        let mut accept = |chunk: Chunk| -> Result<u64> {
            let bytes = chunk.params.get().and_then(|params| params.get_chunk());
            let bytes = bytes.map_err(|exception| from_exception(&exception))?;
            take(bytes)?;
            // The sender is gone only if the call has failed, which `call` reports.
            let _ = chunk.taken.send(());
            Ok(bytes.len() as u64)
        };
        loop {
            tokio::select! {
                biased;
                Some(chunk) = arrived.recv() => received += accept(chunk)?,
                outcome = &mut call => {
                    outcome.map_err(|exception| from_exception(&exception))?;
                    break;
                }
            }
        }
        // All chunks have arrived, but the last of them may still be in the queue.
        while received < length
            && let Some(chunk) = arrived.recv().await
        {
            received += accept(chunk)?;
        }
        if received != length {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the node sent {received} bytes of a tensor instead of {length}"),
            ));
        }
        Ok(())
    }
}

/// One chunk on its way from the node's call to the reader.
struct Chunk {
    params: byte_sink::WriteParams,
    taken: oneshot::Sender<()>,
}

/// The receiver that the node writes to. A call returns, and so allows the next one, once its chunk has
/// been taken.
struct Sink {
    chunks: mpsc::Sender<Chunk>,
}

impl byte_sink::Server for Sink {
    async fn write(self: Rc<Self>, params: byte_sink::WriteParams) -> capnp::Result<()> {
        let gone = || capnp::Error::failed("Cancelled: the reader has gone away".to_owned());
        let (taken, wait) = oneshot::channel();
        self.chunks.send(Chunk { params, taken }).await.map_err(|_| gone())?;
        wait.await.map_err(|_| gone())
    }
}

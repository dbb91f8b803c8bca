//! The `Tensor` and `TensorSink` capabilities: tensors that a client uploaded or had computed. They copy chunks and wait for
//! products; they compute nothing.

use std::cell::RefCell;
use std::rc::Rc;

use capnp_rpc::CapabilityServerSet;
use pangea_client::exception::to_exception;
use pangea_client::transport::{CHUNK_BYTES, MAX_CHUNK_BYTES};
use pangea_client::{DType, Error, ErrorKind, Result, TensorInfo};
use pangea_compute::{TensorBuf, TensorShape};
use pangea_schema::tensor_capnp::{tensor, tensor_sink};
use tokio_util::sync::DropGuard;

use super::account::{Account, TensorMemory, TensorSeat};
use super::backend::Backend;
use super::slot::Slot;

/// The tensors of one connection, by capability; other connections' tensors are not found here.
pub(super) type Tensors<B> = CapabilityServerSet<TensorObject<B>, tensor::Client>;

/// A tensor with its reserved memory.
pub(super) struct HeldTensor<B: Backend> {
    pub(super) tensor: pangea_compute::Tensor,
    pub(super) _holding: TensorMemory<B>,
}

/// State behind a `Tensor` capability. A clone keeps alive what the capability does: the
/// tensor, or the job that produces it.
pub(super) struct TensorObject<B: Backend> {
    pub(super) account: Rc<Account<B>>,
    pub(super) info: Slot<TensorInfo>,
    pub(super) value: Slot<Rc<HeldTensor<B>>>,
    pub(super) _seat: Rc<TensorSeat<B>>,
    /// Cancels the producing job when its last holder drops it; `None` for uploads.
    pub(super) _job: Option<Rc<DropGuard>>,
}

impl<B: Backend> Clone for TensorObject<B> {
    fn clone(&self) -> TensorObject<B> {
        TensorObject {
            account: self.account.clone(),
            info: self.info.clone(),
            value: self.value.clone(),
            _seat: self._seat.clone(),
            _job: self._job.clone(),
        }
    }
}

impl<B: Backend> tensor::Server for TensorObject<B> {
    async fn info(self: Rc<Self>, _: tensor::InfoParams, mut results: tensor::InfoResults) -> capnp::Result<()> {
        let _call = self.account.call().map_err(|error| to_exception(&error))?;
        let info = self.info.wait().await.map_err(|error| to_exception(&error))?;
        let mut wire = results.get().init_info();
        wire.set_dtype(info.dtype.to_wire());
        wire.set_rows(info.rows);
        wire.set_cols(info.cols);
        wire.set_size_bytes(info.size_bytes().map_err(|error| to_exception(&error))?);
        Ok(())
    }

    async fn read(self: Rc<Self>, params: tensor::ReadParams, _: tensor::ReadResults) -> capnp::Result<()> {
        let _call = self.account.call().map_err(|error| to_exception(&error))?;
        let params = params.get()?;
        let (sink, mut offset, length) = (params.get_sink()?, params.get_offset(), params.get_length());
        let held = self.value.wait().await.map_err(|error| to_exception(&error))?;
        let size_bytes = held.tensor.size_bytes() as u64;
        let end = offset.checked_add(length).filter(|end| *end <= size_bytes).ok_or_else(|| {
            to_exception(&Error::new(
                ErrorKind::InvalidInput,
                format!("cannot read {length} bytes at {offset}: the tensor has {size_bytes}"),
            ))
        })?;
        while offset < end {
            let length = (end - offset).min(CHUNK_BYTES as u64);
            let mut request = sink.write_request();
            held.tensor.read_bytes(offset, request.get().init_chunk(length as u32));
            request.send().await?;
            offset += length;
        }
        Ok(())
    }
}

/// State behind a `TensorSink` capability: an upload in progress; empty once it has ended.
pub(super) struct SinkObject<B: Backend> {
    account: Rc<Account<B>>,
    tensors: Rc<RefCell<Tensors<B>>>,
    upload: RefCell<Option<Upload<B>>>,
}

struct Upload<B: Backend> {
    info: TensorInfo,
    buffer: TensorBuf,
    filled: usize,
    holding: TensorMemory<B>,
    seat: TensorSeat<B>,
}

impl<B: Backend> SinkObject<B> {
    /// Starts an upload: memory is reserved first, then allocated.
    pub(super) fn new(
        account: Rc<Account<B>>,
        tensors: Rc<RefCell<Tensors<B>>>,
        info: TensorInfo,
    ) -> Result<SinkObject<B>> {
        let size_bytes = info.size_bytes()?;
        let seat = account.seat()?;
        let holding = account.hold(size_bytes)?;
        let refused = || {
            let message = format!("this node cannot hold a tensor of {size_bytes} bytes");
            Error::new(ErrorKind::Overloaded, message)
        };
        let rows = usize::try_from(info.rows).map_err(|_| refused())?;
        let cols = usize::try_from(info.cols).map_err(|_| refused())?;
        let buffer = TensorBuf::new(compute_dtype(info.dtype), rows, cols).map_err(|_| refused())?;
        let upload = RefCell::new(Some(Upload { info, buffer, filled: 0, holding, seat }));
        Ok(SinkObject { account, tensors, upload })
    }

    fn take_chunk(&self, chunk: &[u8]) -> Result<()> {
        let mut upload = self.upload.borrow_mut();
        let Upload { buffer, filled, .. } = upload.as_mut().ok_or_else(finished)?;
        let got = chunk.len();
        let room = buffer.bytes_mut().get_mut(*filled..).unwrap_or_default();
        if got > MAX_CHUNK_BYTES || got > room.len() {
            let room = room.len();
            // The upload has failed; its memory is released at once.
            *upload = None;
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a chunk of {got} bytes is refused: a chunk has at most {MAX_CHUNK_BYTES} \
                     bytes and {room} bytes of the tensor are missing"
                ),
            ));
        }
        room[..got].copy_from_slice(chunk);
        *filled += got;
        Ok(())
    }

    fn finish(&self) -> Result<tensor::Client> {
        let Upload { info, buffer, filled, holding, seat } = self.upload.borrow_mut().take().ok_or_else(finished)?;
        let tensor = buffer.freeze();
        let size_bytes = tensor.size_bytes();
        if filled != size_bytes {
            let TensorInfo { dtype, rows, cols } = info;
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "the upload of a {dtype} tensor [{rows}, {cols}] ended after {filled} of \
                     {size_bytes} bytes"
                ),
            ));
        }
        let object = TensorObject {
            account: self.account.clone(),
            info: Slot::full(info),
            value: Slot::full(Rc::new(HeldTensor { tensor, _holding: holding })),
            _seat: Rc::new(seat),
            _job: None,
        };
        let mut tensors = self.tensors.borrow_mut();
        tensors.gc();
        Ok(tensors.new_client(object))
    }
}

fn finished() -> Error {
    Error::new(ErrorKind::InvalidInput, "this upload has already ended; start another one")
}

impl<B: Backend> tensor_sink::Server for SinkObject<B> {
    async fn write(self: Rc<Self>, params: tensor_sink::WriteParams) -> capnp::Result<()> {
        self.take_chunk(params.get()?.get_chunk()?).map_err(|error| to_exception(&error))
    }

    async fn finish(
        self: Rc<Self>,
        _: tensor_sink::FinishParams,
        mut results: tensor_sink::FinishResults,
    ) -> capnp::Result<()> {
        let tensor = SinkObject::finish(&self).map_err(|error| to_exception(&error))?;
        results.get().set_tensor(tensor);
        Ok(())
    }
}

/// Converts a tensor's dtype and shape to compute's type.
pub(super) fn tensor_shape(info: TensorInfo) -> Result<TensorShape> {
    let side = |length: u64| {
        let too_large = || Error::new(ErrorKind::InvalidInput, format!("{length} rows or columns are too many"));
        usize::try_from(length).map_err(|_| too_large())
    };
    Ok(TensorShape { dtype: compute_dtype(info.dtype), rows: side(info.rows)?, cols: side(info.cols)? })
}

/// Converts a dtype to compute's type.
fn compute_dtype(dtype: DType) -> pangea_compute::DType {
    match dtype {
        DType::F16 => pangea_compute::DType::F16,
        DType::Bf16 => pangea_compute::DType::Bf16,
        DType::F32 => pangea_compute::DType::F32,
        DType::F64 => pangea_compute::DType::F64,
        DType::I8 => pangea_compute::DType::I8,
        DType::I32 => pangea_compute::DType::I32,
    }
}

/// Converts a dtype to the client's type.
pub(super) fn client_dtype(dtype: pangea_compute::DType) -> DType {
    match dtype {
        pangea_compute::DType::F16 => DType::F16,
        pangea_compute::DType::Bf16 => DType::Bf16,
        pangea_compute::DType::F32 => DType::F32,
        pangea_compute::DType::F64 => DType::F64,
        pangea_compute::DType::I8 => DType::I8,
        pangea_compute::DType::I32 => DType::I32,
    }
}

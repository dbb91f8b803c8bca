//! The Cap'n Proto connection over a byte stream, and its limits, for both ends. Never opens a socket.

use capnp::message::ReaderOptions;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::twoparty::VatNetwork;
use futures::io::{AsyncRead, AsyncWrite, BufReader, BufWriter};
use pangea_schema::tensor_capnp;

/// Bytes of one chunk of a bulk transfer.
pub const CHUNK_BYTES: usize = tensor_capnp::CHUNK_BYTES as usize;

/// The largest chunk that is accepted, as `schema/tensor.capnp` promises.
pub const MAX_CHUNK_BYTES: usize = 2 * CHUNK_BYTES;

/// Bytes of a stream in flight before the sender waits for the receiver: enough
/// chunks that neither side of a fast link waits, few compared with a tensor.
pub const WINDOW_BYTES: usize = 8 * CHUNK_BYTES;

/// The largest message: one chunk of the largest size with its envelope, twice,
/// because reading the envelope counts against the same limit. A larger message closes the connection.
pub const MAX_MESSAGE_BYTES: usize = 2 * MAX_CHUNK_BYTES;

/// Depth of pointers in a message: the envelope of a call takes about ten.
const NESTING_LIMIT: i32 = 32;

/// Bytes of the read and write buffers: enough for a message's segment table and first segment, so that a small
/// message is one read or write; chunks bypass the buffer.
const BUFFER_BYTES: usize = 16 * 1024;

const _: () = assert!(MAX_CHUNK_BYTES < MAX_MESSAGE_BYTES && CHUNK_BYTES < WINDOW_BYTES);

/// A connection over the two halves of a byte stream; `side` tells which end this is.
pub fn network<R, W>(read_half: R, write_half: W, side: Side) -> VatNetwork<BufReader<R>>
where
    R: AsyncRead + Unpin + 'static,
    W: AsyncWrite + Unpin + 'static,
{
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(MAX_MESSAGE_BYTES / 8)).nesting_limit(NESTING_LIMIT);
    let mut network = VatNetwork::new(
        BufReader::with_capacity(BUFFER_BYTES, read_half),
        BufWriter::with_capacity(BUFFER_BYTES, write_half),
        side,
        options,
    );
    network.set_window_size(WINDOW_BYTES);
    network
}

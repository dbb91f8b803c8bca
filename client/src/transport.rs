//! How a byte stream becomes a Cap'n Proto connection, and the limits that go with it, for both
//! ends. Never opens a socket.

use capnp::message::ReaderOptions;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::twoparty::VatNetwork;
use futures::io::{AsyncRead, AsyncWrite, BufReader, BufWriter};
use pangea_schema::tensor_capnp;

/// Bytes of one chunk of a bulk transfer.
pub const CHUNK_BYTES: usize = tensor_capnp::CHUNK_BYTES as usize;

/// The largest chunk that is accepted, as `schema/tensor.capnp` promises.
pub const MAX_CHUNK_BYTES: usize = 2 * CHUNK_BYTES;

/// Bytes of a stream that may be under way before the sender waits for the receiver: enough
/// chunks that neither side of a fast link ever waits, few enough to be nothing beside a tensor.
pub const WINDOW_BYTES: usize = 8 * CHUNK_BYTES;

/// The largest message: one chunk of the largest size with its envelope, and as much again
/// because reading the envelope counts against the same limit. Breaking it costs the connection.
pub const MAX_MESSAGE_BYTES: usize = 2 * MAX_CHUNK_BYTES;

/// Depth of pointers in a message: a call's envelope takes about ten.
const NESTING_LIMIT: i32 = 32;

/// Enough for a message's segment table and first segment, so that a small message is one read
/// or write; chunks pass the buffer by.
const BUFFER_BYTES: usize = 16 * 1024;

const _: () = assert!(MAX_CHUNK_BYTES < MAX_MESSAGE_BYTES && CHUNK_BYTES < WINDOW_BYTES);

/// A connection over the two halves of a byte stream; `side` is which end this is.
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

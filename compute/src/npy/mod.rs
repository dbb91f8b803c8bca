//! NumPy's `.npy` format: matrices in files, read and written block by block.
//!
//! | file | owns |
//! |---|---|
//! | `header` | the header's bytes, parsed and written |
//! | `file` | a mapped file as tensors |
//! | `writer` | a file being written, under a temporary name until complete |

mod file;
mod header;
mod writer;

pub use file::NpyFile;
pub use header::NpyHeader;
pub use writer::NpyWriter;

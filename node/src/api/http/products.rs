//! `/api/pangea/products`: the product of two matrices, for clients that speak only HTTP. One request carries the operands, or their
//! sizes; its answer tells where each tile was computed, then the report, then the product. Nothing outlives the request: a client
//! that goes away cancels the job.
//!
//! The request is JSON with sizes (`{"m": 512, "k": 512, "n": 512, "dtype": "f32", "seed": 1, "place": "auto"}`), or, as
//! `application/octet-stream`, two `.npy` files one after the other. The answer is lines of JSON, each with an `event`: `accepted`,
//! `planned`, `tiles`, `done` or `error`; the last line is `product` with the number of bytes of the `.npy` file that follows it.

use std::ops::Range;
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, HttpBody};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::stream;
use http_body_util::BodyExt;
use pangea_client::ErrorKind;
use pangea_compute::{DType, NpyHeader, Tensor, TensorBuf};
use pangea_control::jobs::{Api, Owner};
use serde_json::{Value, json};

use super::content_type::OCTETS;
use super::error::ApiError;
use super::fields::Fields;
use super::key_holder::KeyHolder;
use super::limits::BODY_TIME;
use super::{App, Body};
use crate::compute_error;
use crate::devices::Lease;
use crate::fabric::job::{Job, JobOutcome, JobRequest, Place};

/// Bytes of a product that are written at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Tiles of one line: what a client draws at once.
const TILES_PER_LINE: usize = 256;

/// Silence after which an empty line is sent, so that clients and proxies keep the answer open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Name of the file that a client stores the product in.
const FILE: &str = "product.npy";

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/api/pangea/products", post(multiply))
}

/// `/api/pangea/products`.
async fn multiply(
    State(app): State<App>,
    holder: KeyHolder,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    holder.check_owner()?;
    let mut leases = Vec::new();
    let is_file = headers.get(header::CONTENT_TYPE).is_some_and(|given| given.as_bytes() == OCTETS.as_bytes());
    let (a, b, place) = match is_file {
        true => {
            let mut reader = BodyReader { body, rest: Bytes::new() };
            let a = read_npy(&app, &mut reader, &mut leases, "the first file").await?;
            let b = read_npy(&app, &mut reader, &mut leases, "the second file").await?;
            reader.ends().await?;
            (a, b, Place::default())
        }
        false => generated(&app, Fields::read(body).await?, &mut leases).await?,
    };
    let (m, k) = a.shape();
    let owner = Owner::of(Api::Http);
    let request = JobRequest { owner, place, ..JobRequest::product(a, b) };
    let output = request.result()?;
    leases.push(lease(&app, output.rows, output.cols, output.dtype)?);
    let mut job = app.fabric.submit(request)?;
    job.tiles.mark_unchanged();
    let accepted =
        json!({"event": "accepted", "job": job.id, "shape": [m, k, output.cols], "dtype": output.dtype.name()});
    let first = Some(line(&accepted));
    let local = app.pool.as_ref().map_or_else(String::new, |pool| pool.local().to_string());
    let answer =
        ProductStream { job, first, local, told: 0, is_planned: false, state: StreamState::Running, _leases: leases };
    let body = stream::unfold(answer, |mut answer| async {
        let bytes = answer.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), answer))
    });
    let headers = [(header::CONTENT_TYPE, OCTETS), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(body)).into_response())
}

fn lease(app: &App, rows: usize, cols: usize, dtype: DType) -> Result<Lease, ApiError> {
    let bytes = (rows as u64).saturating_mul(cols as u64).saturating_mul(dtype.size_bytes() as u64);
    Ok(app.fabric.lease(bytes)?)
}

/// Two matrices of pseudo-random numbers that depend only on the seed, as `pangea matmul --generate` makes them, and where they are to
/// be multiplied.
async fn generated(
    app: &App,
    mut fields: Fields,
    leases: &mut Vec<Lease>,
) -> Result<(Tensor, Tensor, Place), ApiError> {
    let mut side = |name: &str| match fields.required::<usize>(name) {
        Ok(0) => Err(ApiError::field(name, format!("{name} must be at least 1"))),
        side => side,
    };
    let (m, k, n) = (side("m")?, side("k")?, side("n")?);
    let named: String = fields.optional("dtype")?.unwrap_or_else(|| DType::F32.name().to_owned());
    let dtype = DType::from_name(&named);
    let dtype = dtype.ok_or_else(|| ApiError::field("dtype", format!("{named:?} is no dtype of a matrix")))?;
    let seed: u64 = fields.optional("seed")?.unwrap_or(0);
    let place: Option<String> = fields.optional("place")?;
    let place = place.map_or(Ok(Place::default()), |named| Place::from_name(&named))?;
    leases.push(lease(app, m, k, dtype)?);
    leases.push(lease(app, k, n, dtype)?);
    let made = tokio::task::spawn_blocking(move || {
        Ok((Tensor::generate(dtype, m, k, seed)?, Tensor::generate(dtype, k, n, seed.wrapping_add(1))?, place))
    });
    let made =
        made.await.map_err(|error| ApiError::new(ErrorKind::Internal, format!("the operands were not made: {error}")));
    Ok(made?.map_err(compute_error)?)
}

/// Reads a `.npy` file of a body. Memory is leased as soon as the file's header says how much.
async fn read_npy(app: &App, reader: &mut BodyReader, leases: &mut Vec<Lease>, what: &str) -> Result<Tensor, ApiError> {
    let about = |error: pangea_compute::Error| {
        let error = compute_error(error);
        ApiError::new(error.kind(), format!("{what}: {}", error.message()))
    };
    let mut head = Vec::new();
    while head.len() < NpyHeader::length(&head) {
        let from = head.len();
        head.resize(NpyHeader::length(&head), 0);
        reader.fill(&mut head[from..], what).await?;
    }
    let (header, _) = NpyHeader::parse(&head).map_err(about)?;
    let (rows, cols) = header.matrix_shape().map_err(about)?;
    header.payload_bytes().map_err(about)?;
    leases.push(lease(app, rows, cols, header.dtype)?);
    // Columns that lie one after the other are the rows of the transposed matrix.
    let (lines, width) = if header.fortran { (cols, rows) } else { (rows, cols) };
    let mut matrix = TensorBuf::new(header.dtype, lines, width).map_err(about)?;
    reader.fill(matrix.bytes_mut(), what).await?;
    if header.big_endian {
        matrix.bytes_mut().chunks_exact_mut(header.dtype.size_bytes()).for_each(<[u8]>::reverse);
    }
    let matrix = matrix.freeze();
    Ok(if header.fortran { matrix.transposed() } else { matrix })
}

/// A request's body, read as it comes.
struct BodyReader {
    body: Body,
    rest: Bytes,
}

impl BodyReader {
    /// Fills `out`.
    ///
    /// # Errors
    /// `InvalidInput` for a body that ends before, or that does not come on.
    async fn fill(&mut self, out: &mut [u8], what: &str) -> Result<(), ApiError> {
        let mut filled = 0;
        while filled < out.len() {
            if self.rest.is_empty() && !self.more().await? {
                let missing = out.len() - filled;
                let message = format!("{what} ends {missing} bytes too early");
                return Err(ApiError::new(ErrorKind::InvalidInput, message));
            }
            let part = self.rest.split_to(self.rest.len().min(out.len() - filled));
            out[filled..filled + part.len()].copy_from_slice(&part);
            filled += part.len();
        }
        Ok(())
    }

    /// # Errors
    /// `InvalidInput` for a body that goes on.
    async fn ends(&mut self) -> Result<(), ApiError> {
        if self.rest.is_empty() && !self.more().await? {
            return Ok(());
        }
        let message = "the body goes on after the second file; send two .npy files, one after the other";
        Err(ApiError::new(ErrorKind::InvalidInput, message))
    }

    /// Waits for more bytes; whether there are any.
    async fn more(&mut self) -> Result<bool, ApiError> {
        while !self.body.is_end_stream() {
            let frame = tokio::time::timeout(BODY_TIME, self.body.frame()).await.map_err(|_| {
                let message = format!("the body did not go on within {} s", BODY_TIME.as_secs());
                ApiError::new(ErrorKind::InvalidInput, message).status(StatusCode::REQUEST_TIMEOUT)
            })?;
            let Some(frame) = frame else { return Ok(false) };
            let cannot = |error| ApiError::new(ErrorKind::InvalidInput, format!("cannot read the body: {error}"));
            if let Ok(bytes) = frame.map_err(cannot)?.into_data()
                && !bytes.is_empty()
            {
                self.rest = bytes;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The answer to one request. Dropping it cancels the job and gives its memory back.
struct ProductStream {
    job: Job,
    /// What comes before everything else.
    first: Option<Bytes>,
    /// Peer id of this node.
    local: String,
    /// Tiles that the client knows of.
    told: usize,
    /// Whether the client knows the grid.
    is_planned: bool,
    state: StreamState,
    _leases: Vec<Lease>,
}

enum StreamState {
    Running,
    /// The product is sent from this byte on.
    Product {
        product: Tensor,
        sent: u64,
    },
    Over,
}

/// One line of an answer.
fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

impl ProductStream {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        match &mut self.state {
            StreamState::Running => Some(self.progress().await),
            StreamState::Product { product, sent } => {
                let left = product.size_bytes() as u64 - *sent;
                if left == 0 {
                    self.state = StreamState::Over;
                    return None;
                }
                let mut piece = vec![0; PIECE_BYTES.min(left as usize)];
                product.read_bytes(*sent, &mut piece);
                *sent += piece.len() as u64;
                Some(piece.into())
            }
            StreamState::Over => None,
        }
    }

    /// What has happened to the job, once something has.
    async fn progress(&mut self) -> Bytes {
        loop {
            if let Some(news) = self.news() {
                return news;
            }
            tokio::select! {
                biased;
                Ok(()) = self.job.tiles.changed() => {}
                outcome = &mut self.job.outcome => {
                    // The last tiles may have landed together with the outcome.
                    let mut bytes = Vec::new();
                    while let Some(news) = self.news() {
                        bytes.extend(news);
                    }
                    bytes.extend(self.end(outcome.unwrap_or_else(|_| {
                        Err(pangea_client::Error::new(ErrorKind::Unavailable, "the node is shutting down"))
                    })));
                    return bytes.into();
                }
                () = tokio::time::sleep(KEEP_ALIVE) => return Bytes::from_static(b"\n"),
            }
        }
    }

    /// A line about the grid, or about tiles that the client does not know of.
    fn news(&mut self) -> Option<Bytes> {
        let tiles = self.job.tiles.borrow();
        if tiles.bands == 0 {
            return None;
        }
        // A job that starts again has fewer tiles than before.
        if !self.is_planned || tiles.landed.len() < self.told {
            (self.is_planned, self.told) = (true, 0);
            return Some(line(&json!({"event": "planned", "bands": tiles.bands, "panels": tiles.panels})));
        }
        let Range { start, end } = self.told..tiles.landed.len().min(self.told + TILES_PER_LINE);
        let landed: Vec<Value> = tiles.landed[start..end]
            .iter()
            .map(|(tile, worker)| {
                let peer = worker.as_ref().map_or_else(|| self.local.clone(), ToString::to_string);
                json!([tile.band, tile.panel, peer])
            })
            .collect();
        self.told = end;
        (!landed.is_empty()).then(|| line(&json!({"event": "tiles", "tiles": landed})))
    }

    /// The last lines; the product's bytes follow them.
    fn end(&mut self, outcome: pangea_client::Result<JobOutcome>) -> Bytes {
        self.state = StreamState::Over;
        let failed = |error: pangea_client::Error| line(&json!({"event": "error", "message": error.message()}));
        let JobOutcome { result, report } = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return failed(error),
        };
        let shape = vec![result.rows() as u64, result.cols() as u64];
        let header = NpyHeader { dtype: result.dtype(), big_endian: false, fortran: false, shape };
        let header = match header.to_bytes() {
            Ok(header) => header,
            Err(error) => return failed(compute_error(error)),
        };
        let bytes = header.len() as u64 + result.size_bytes() as u64;
        let done = line(&json!({"event": "done", "report": report}));
        let product = line(&json!({"event": "product", "bytes": bytes, "name": FILE}));
        self.state = StreamState::Product { product: result, sent: 0 };
        [&done[..], &product, &header].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(parts: &[&'static [u8]]) -> BodyReader {
        let parts: Vec<_> = parts.iter().map(|part| Ok::<_, std::io::Error>(Bytes::from_static(part))).collect();
        BodyReader { body: Body::from_stream(stream::iter(parts)), rest: Bytes::new() }
    }

    #[tokio::test]
    async fn a_body_is_read_whatever_its_pieces_are_and_a_short_one_is_refused() {
        for parts in [&[&b"abcdef"[..]][..], &[b"a", b"", b"bcd", b"ef"], &[b"abc", b"def"]] {
            let mut reader = reader(parts);
            let (mut first, mut second) = ([0; 2], [0; 4]);
            reader.fill(&mut first, "it").await.unwrap();
            reader.fill(&mut second, "it").await.unwrap();
            assert_eq!((&first, &second), (b"ab", b"cdef"));
            reader.ends().await.unwrap();
        }
        let short = reader(&[b"abc"]).fill(&mut [0; 5], "the first file").await.unwrap_err();
        assert_eq!(short.message(), "the first file ends 2 bytes too early");
        let mut long = reader(&[b"abc", b"d"]);
        long.fill(&mut [0; 3], "it").await.unwrap();
        assert!(long.ends().await.unwrap_err().message().contains("goes on"));
    }
}

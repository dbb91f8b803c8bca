//! Downloads a file over HTTP into a partial file, resuming where an earlier attempt ended. Checks lengths and that the
//! file at the address is still the same, never the content.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Cancel;
use serde::{Deserialize, Serialize};
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::{Agent, Body};

use super::fetch::{beside, stop_if};
use super::transfer::{FETCHING, Listener};
use super::{Transfer, disk};
use crate::https;
use crate::storage::whole_file;

/// Timeout until a response begins.
const ANSWER: Duration = Duration::from_secs(30);

/// Timeout of one response's body; a longer download continues in the next request, a stalled one ends with it.
const BODY: Duration = Duration::from_secs(120);

/// Consecutive requests without progress before the download fails.
const ATTEMPTS: u32 = 4;

/// Pause before a retry, multiplied by the number of consecutive failures.
const PAUSE: Duration = Duration::from_millis(500);

/// Maximum redirects of one request.
const MAX_REDIRECTS: usize = 8;

/// Bytes read and written at a time.
const BLOCK_BYTES: usize = 256 << 10;

/// Bytes between two checks of the disk's free space.
const LOOK_BYTES: u64 = 64 << 20;

/// Identity of the file that a partial file is a part of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    address: String,
    /// A strong entity tag: files with the same tag are equal bit by bit.
    etag: String,
}

/// Path of the file that stores a partial file's origin.
pub(super) fn origin_file(partial: &Path) -> PathBuf {
    beside(partial, "json")
}

/// Downloads `address` into `partial`; returns its SHA-256 if the host sends one.
///
/// # Errors
/// `NotFound`, `Unauthorized`, `InvalidInput` by the host's status; `Unavailable` if the host cannot be reached, is too
/// busy or repeatedly drops the connection (received bytes are kept); `Overloaded` without disk space; `Cancelled`.
pub(super) fn fetch(
    address: &str,
    token: Option<&str>,
    partial: &Path,
    cancel: &Cancel,
    progress: Listener<'_>,
) -> Result<Option<String>> {
    let mut download = Download { agent: agent(address)?, address, token, partial, cancel, progress };
    let mut failures = 0;
    loop {
        let before = download.size_bytes();
        match download.go_on() {
            Ok(sha256) => return Ok(sha256),
            Err(Failure::Permanent(error)) => return Err(error),
            Err(Failure::Transient(why)) => {
                failures = if download.size_bytes() > before { 1 } else { failures + 1 };
                if failures >= ATTEMPTS {
                    return Err(download.gave_up(&why));
                }
                stop_if(cancel)?;
                std::thread::sleep(PAUSE * failures);
            }
        }
    }
}

/// Size of the file at `address` in bytes, if the host says it.
///
/// # Errors
/// As [`fetch`], after one attempt.
pub(super) fn size_bytes(address: &str, token: Option<&str>, cancel: &Cancel) -> Result<Option<u64>> {
    stop_if(cancel)?;
    let partial = Path::new("");
    let download = Download { agent: agent(address)?, address, token, partial, cancel, progress: &mut |_| {} };
    // The whole file is requested, because some hosts sign their addresses for that alone; its body is not read.
    match download.request(0, None) {
        Ok((response, _)) => Ok(content_length(response.headers())),
        Err(Failure::Permanent(error)) => Err(error),
        Err(Failure::Transient(_)) => Ok(None),
    }
}

fn agent(address: &str) -> Result<Agent> {
    https::agent(address, |config| {
        config.timeout_connect(Some(ANSWER)).timeout_recv_response(Some(ANSWER)).timeout_recv_body(Some(BODY))
    })
}

/// Why a request did not deliver the whole file.
enum Failure {
    /// A retry may succeed.
    Transient(String),
    /// A retry cannot succeed.
    Permanent(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Permanent(error)
    }
}

struct Download<'a> {
    agent: Agent,
    address: &'a str,
    token: Option<&'a str>,
    partial: &'a Path,
    cancel: &'a Cancel,
    progress: Listener<'a>,
}

impl Download<'_> {
    /// Bytes of the partial file.
    fn size_bytes(&self) -> u64 {
        std::fs::metadata(self.partial).map_or(0, |facts| facts.len())
    }

    /// Entity tag of the file that the partial file is a part of.
    fn etag(&self) -> Option<String> {
        let origin: Origin = serde_json::from_slice(&std::fs::read(origin_file(self.partial)).ok()?).ok()?;
        (origin.address == self.address).then_some(origin.etag)
    }

    fn go_on(&mut self) -> std::result::Result<Option<String>, Failure> {
        let etag = self.etag();
        let start = if etag.is_some() { self.size_bytes() } else { 0 };
        let (response, sha256) = self.request(start, etag.as_deref())?;
        let headers = response.headers();
        let (start, total) = match response.status() {
            StatusCode::PARTIAL_CONTENT => match content_range(headers) {
                Some((first, total)) if first == start => (start, total),
                _ => return Err(self.start_again("the host sent another range than requested")),
            },
            // The whole file had arrived before.
            StatusCode::RANGE_NOT_SATISFIABLE if unsatisfied_range(headers) == Some(start) => return Ok(sha256),
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(self.start_again("the file is shorter than before")),
            _ => (0, content_length(headers)),
        };
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(start == 0)
            .open(self.partial)
            .map_err(|error| disk::writing(self.partial, &error))?;
        file.seek(SeekFrom::Start(start)).map_err(|error| disk::writing(self.partial, &error))?;
        if start == 0 {
            self.note_origin(headers)?;
        }
        let folder = self.partial.parent().unwrap_or(Path::new("."));
        disk::need(folder, total.unwrap_or(0).saturating_sub(start))?;
        let done = self.copy(response.into_body(), &mut file, start, total)?;
        match total {
            Some(total) if total != done => {
                Err(Failure::Transient(format!("the response ended after {done} of {total} bytes")))
            }
            _ => Ok(sha256),
        }
    }

    fn copy(
        &mut self,
        body: Body,
        file: &mut File,
        start: u64,
        total: Option<u64>,
    ) -> std::result::Result<u64, Failure> {
        let mut reader = body.into_reader();
        let (mut block, mut done, mut looked) = (vec![0; BLOCK_BYTES], start, start);
        loop {
            stop_if(self.cancel)?;
            let read = match reader.read(&mut block) {
                Ok(0) => return Ok(done),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Transient(error.to_string())),
            };
            file.write_all(&block[..read]).map_err(|error| disk::writing(self.partial, &error))?;
            done += read as u64;
            if total.is_some_and(|total| done > total) {
                return Err(self.start_again("the host sent more bytes than announced"));
            }
            if done - looked >= LOOK_BYTES {
                looked = done;
                disk::need(self.partial.parent().unwrap_or(Path::new(".")), 0)?;
            }
            (self.progress)(Transfer { phase: FETCHING, done_bytes: done, total_bytes: total.unwrap_or(0) });
        }
    }

    /// Requests the file from byte `start` on, provided that its entity tag is still `etag`, following redirects; returns
    /// the response and the SHA-256 that the host sent.
    fn request(
        &self,
        start: u64,
        etag: Option<&str>,
    ) -> std::result::Result<(Response<Body>, Option<String>), Failure> {
        let mut address = self.address.to_owned();
        let mut sha256 = None;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&address);
            // The token is only for the host that the user named, never for a redirect's target.
            if let Some(token) = self.token.filter(|_| origin(&address) == origin(self.address)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(etag) = etag.filter(|_| start > 0) {
                request = request.header(header::RANGE, format!("bytes={start}-")).header(header::IF_RANGE, etag);
            }
            let response = request.call().map_err(|error| self.not_reached(error))?;
            sha256 = sha256.or_else(|| linked_sha256(response.headers()));
            let status = response.status();
            if !status.is_redirection() {
                self.accept(status)?;
                return Ok((response, sha256));
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            address = location
                .and_then(|location| moved(&address, location))
                .ok_or_else(|| self.refused(ErrorKind::Unavailable, "the host redirects to an invalid address"))?;
        }
        Err(self.refused(ErrorKind::Unavailable, "the host redirects too many times").into())
    }

    fn not_reached(&self, error: ureq::Error) -> Failure {
        use ureq::Error as E;
        match error {
            E::BadUri(_) | E::Http(_) | E::InvalidProxyUrl => {
                Failure::Permanent(self.refused(ErrorKind::InvalidInput, &error.to_string()))
            }
            error => Failure::Transient(error.to_string()),
        }
    }

    fn accept(&self, status: StatusCode) -> std::result::Result<(), Failure> {
        let refused = |kind, why: &str| Err(Failure::Permanent(self.refused(kind, why)));
        match status.as_u16() {
            200 | 206 | 416 => Ok(()),
            401 | 403 => refused(
                ErrorKind::Unauthorized,
                "the host denies access; accept the model's terms there and set HF_TOKEN to your token",
            ),
            404 | 410 => refused(ErrorKind::NotFound, "there is no such file; check the spelling"),
            408 | 425 | 429 | 500..=599 => Err(Failure::Transient(format!("the host answered {status}"))),
            _ => refused(ErrorKind::Unavailable, &format!("the host answered {status}")),
        }
    }

    fn refused(&self, kind: ErrorKind, why: &str) -> Error {
        Error::new(kind, format!("cannot download {}: {why}", self.address))
    }

    fn gave_up(&self, why: &str) -> Error {
        let kept = match self.size_bytes() {
            0 => String::new(),
            bytes => {
                format!(
                    "; {} were received and are kept, the next attempt resumes there",
                    super::description::size(bytes)
                )
            }
        };
        let message = format!(
            "cannot download {}: {why} ({ATTEMPTS} attempts); check the network, and HTTPS_PROXY if there is a proxy{kept}",
            self.address
        );
        Error::new(ErrorKind::Unavailable, message)
    }

    /// The received bytes cannot be resumed: the download restarts.
    fn start_again(&self, why: &str) -> Failure {
        let _ = std::fs::remove_file(self.partial);
        let _ = std::fs::remove_file(origin_file(self.partial));
        Failure::Transient(why.to_owned())
    }

    /// Stores the origin of the partial file if the host sends a strong entity tag; without one the download cannot resume.
    fn note_origin(&self, headers: &HeaderMap) -> Result<()> {
        let path = origin_file(self.partial);
        let etag = headers.get(header::ETAG).and_then(|value| value.to_str().ok()).filter(|etag| etag.starts_with('"'));
        let Some(etag) = etag else {
            let _ = std::fs::remove_file(&path);
            return Ok(());
        };
        let origin = Origin { address: self.address.to_owned(), etag: etag.to_owned() };
        let text = serde_json::to_vec(&origin).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        whole_file::replace(&path, &text).map_err(|error| disk::writing(&path, &error))
    }
}

/// The SHA-256 that Hugging Face sends for large files.
fn linked_sha256(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get("x-linked-etag")?.to_str().ok()?.trim_matches('"');
    (tag.len() == 64 && tag.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| tag.to_ascii_lowercase())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// First byte and total length from `bytes FIRST-LAST/TOTAL`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = range.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// Total length from `bytes */TOTAL`.
fn unsatisfied_range(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes */")?.parse().ok()
}

/// Scheme, host and port of an address.
fn origin(address: &str) -> &str {
    let host = address.find("://").map_or(0, |at| at + 3);
    let end = address[host..].find(['/', '?', '#']).map_or(address.len(), |at| host + at);
    &address[..end]
}

/// Resolves a redirect's `location` against `address`; a redirect from https to http is refused.
fn moved(address: &str, location: &str) -> Option<String> {
    let next = match location {
        _ if location.starts_with("https://") || location.starts_with("http://") => location.to_owned(),
        _ if location.starts_with("//") => format!("{}:{location}", address.split_once(':')?.0),
        _ if location.starts_with('/') => format!("{}{location}", origin(address)),
        _ => return None,
    };
    (next.starts_with("https://") || address.starts_with("http://")).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_followed_but_never_to_an_unprotected_connection() {
        let from = "https://host.example/a/b";
        assert_eq!(moved(from, "/c?d").as_deref(), Some("https://host.example/c?d"));
        assert_eq!(moved(from, "//cdn.example/c").as_deref(), Some("https://cdn.example/c"));
        assert_eq!(moved(from, "https://cdn.example/c").as_deref(), Some("https://cdn.example/c"));
        assert_eq!(moved(from, "http://cdn.example/c"), None);
        assert_eq!(moved(from, "file:///etc/passwd"), None);
        assert_eq!(origin("https://host.example:1?x"), "https://host.example:1");
        assert_ne!(origin("https://host.example/a"), origin("https://host.example.evil/a"));
    }

    #[test]
    fn ranges_and_hashes_are_read_from_headers() {
        let mut headers = HeaderMap::new();
        assert_eq!((content_range(&headers), linked_sha256(&headers)), (None, None));
        for (range, read) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes */10", None),
            ("5-9/10", None),
        ] {
            headers.insert(header::CONTENT_RANGE, range.parse().unwrap());
            assert_eq!(content_range(&headers), read, "{range}");
        }
        headers.insert("x-linked-etag", format!("\"{}\"", "Ab".repeat(32)).parse().unwrap());
        assert_eq!(linked_sha256(&headers), Some("ab".repeat(32)));
        headers.insert("x-linked-etag", "\"d41d8\"".parse().unwrap());
        assert_eq!(linked_sha256(&headers), None);
    }
}

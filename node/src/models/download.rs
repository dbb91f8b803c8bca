//! A file from an address into a partial file, going on where an earlier attempt broke off. It checks lengths and that the
//! file at the address is still the same, never what is in it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Cancel;
use serde::{Deserialize, Serialize};
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::fetch::{beside, stop_if};
use super::transfer::{FETCHING, Listener};
use super::{Transfer, disk};

/// Until an answer begins.
const ANSWER: Duration = Duration::from_secs(30);

/// For one answer's body; a longer one is gone on with in the next request, a stalled one ends with this.
const BODY: Duration = Duration::from_secs(120);

/// Where systems keep the certificates that they trust: Debian, Fedora, SUSE, macOS and Alpine.
const CERTIFICATES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Requests in a row that bring nothing.
const ATTEMPTS: u32 = 4;

/// Waited before asking again, times the attempts in a row.
const PAUSE: Duration = Duration::from_millis(500);

/// From one address to the next.
const MAX_REDIRECTS: usize = 8;

/// Read and written at a time.
const BLOCK_BYTES: usize = 256 << 10;

/// Between looks at the room on the disk.
const LOOK_BYTES: u64 = 64 << 20;

/// What a partial file is a part of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    address: String,
    /// A strong one: the file with this tag is the same to the last bit.
    etag: String,
}

/// Where it is noted what a partial file is a part of.
pub(super) fn origin_file(partial: &Path) -> PathBuf {
    beside(partial, "json")
}

/// Fetches what is at `address` into `partial`; gives its SHA-256 where the host says it.
///
/// # Errors
/// `NotFound`, `Unauthorized`, `InvalidInput` as the host answers; `Unavailable` where it cannot be reached, again and
/// again breaks off or is too busy: what came is kept; `Overloaded` without room on the disk; `Cancelled`.
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
            Err(Broken::ForGood(error)) => return Err(error),
            Err(Broken::ForNow(why)) => {
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

fn agent(address: &str) -> Result<Agent> {
    let certificates = match trusted() {
        Err(error) if address.starts_with("https://") => return Err(error),
        certificates => certificates.unwrap_or_default(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates))
        .unversioned_rustls_crypto_provider(provider)
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(ANSWER))
        .timeout_recv_response(Some(ANSWER))
        .timeout_recv_body(Some(BODY))
        .user_agent(concat!("pangea/", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(config.into())
}

/// The certificates that the system trusts: networks with a proxy of their own have put its certificate there.
fn trusted() -> Result<Vec<Certificate<'static>>> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|file| !file.is_empty()).map(PathBuf::from);
    let path = named.or_else(|| CERTIFICATES.iter().map(PathBuf::from).find(|path| path.is_file()));
    let no = |what: String| {
        let hint = "set SSL_CERT_FILE to a file of certificates that are trusted, in PEM form";
        Error::new(ErrorKind::Unavailable, format!("nothing can be fetched over https: {what}; {hint}"))
    };
    let path =
        path.ok_or_else(|| no("this system has no file of trusted certificates where one is looked for".to_owned()))?;
    let pem = std::fs::read(&path).map_err(|error| no(format!("{}: {error}", path.display())))?;
    let items = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        // Keys, and what is not understood: fewer are trusted then.
        _ => None,
    });
    Ok(items.collect())
}

/// Why a request did not bring the whole file.
enum Broken {
    /// Another may.
    ForNow(String),
    /// None will.
    ForGood(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Broken {
        Broken::ForGood(error)
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
    /// Of what is there.
    fn size_bytes(&self) -> u64 {
        std::fs::metadata(self.partial).map_or(0, |facts| facts.len())
    }

    /// The tag of the file that the partial one is a part of.
    fn etag(&self) -> Option<String> {
        let origin: Origin = serde_json::from_slice(&std::fs::read(origin_file(self.partial)).ok()?).ok()?;
        (origin.address == self.address).then_some(origin.etag)
    }

    fn go_on(&mut self) -> std::result::Result<Option<String>, Broken> {
        let etag = self.etag();
        let start = if etag.is_some() { self.size_bytes() } else { 0 };
        let (response, sha256) = self.request(start, etag.as_deref())?;
        let headers = response.headers();
        let (start, total) = match response.status() {
            StatusCode::PARTIAL_CONTENT => match content_range(headers) {
                Some((first, total)) if first == start => (start, total),
                _ => return Err(self.start_again("its host sends another part than it was asked for")),
            },
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(self.start_again("it is shorter than before")),
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
            Some(total) if total != done => Err(Broken::ForNow(format!("it ended after {done} of {total} bytes"))),
            _ => Ok(sha256),
        }
    }

    fn copy(
        &mut self,
        body: Body,
        file: &mut File,
        start: u64,
        total: Option<u64>,
    ) -> std::result::Result<u64, Broken> {
        let mut reader = body.into_reader();
        let (mut block, mut done, mut looked) = (vec![0; BLOCK_BYTES], start, start);
        loop {
            stop_if(self.cancel)?;
            let read = match reader.read(&mut block) {
                Ok(0) => return Ok(done),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Broken::ForNow(error.to_string())),
            };
            file.write_all(&block[..read]).map_err(|error| disk::writing(self.partial, &error))?;
            done += read as u64;
            if total.is_some_and(|total| done > total) {
                return Err(self.start_again("its host sends more than it said"));
            }
            if done - looked >= LOOK_BYTES {
                looked = done;
                disk::need(self.partial.parent().unwrap_or(Path::new(".")), 0)?;
            }
            (self.progress)(Transfer { phase: FETCHING, done_bytes: done, total_bytes: total.unwrap_or(0) });
        }
    }

    /// Asks for the file from byte `start` on, as far as it is still the one with this tag, wherever it has moved; gives
    /// the answer and the SHA-256 that the host names for it.
    fn request(&self, start: u64, etag: Option<&str>) -> std::result::Result<(Response<Body>, Option<String>), Broken> {
        let mut address = self.address.to_owned();
        let mut sha256 = None;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&address);
            // The token is for the host that the person named, not for where that one sends us.
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
            address = location.and_then(|location| moved(&address, location)).ok_or_else(|| {
                self.refused(ErrorKind::Unavailable, "it sends us to no address that can be followed")
            })?;
        }
        Err(self.refused(ErrorKind::Unavailable, "it sends us from address to address").into())
    }

    fn not_reached(&self, error: ureq::Error) -> Broken {
        use ureq::Error as E;
        match error {
            E::BadUri(_) | E::Http(_) | E::InvalidProxyUrl => {
                Broken::ForGood(self.refused(ErrorKind::InvalidInput, &error.to_string()))
            }
            error => Broken::ForNow(error.to_string()),
        }
    }

    fn accept(&self, status: StatusCode) -> std::result::Result<(), Broken> {
        let refused = |kind, why: &str| Err(Broken::ForGood(self.refused(kind, why)));
        match status.as_u16() {
            200 | 206 | 416 => Ok(()),
            401 | 403 => refused(
                ErrorKind::Unauthorized,
                "its host does not give it to us; accept the model's terms there and set HF_TOKEN to a token of yours",
            ),
            404 | 410 => refused(ErrorKind::NotFound, "there is no such file; check how it is written"),
            408 | 425 | 429 | 500..=599 => Err(Broken::ForNow(format!("its host answers {status}"))),
            _ => refused(ErrorKind::Unavailable, &format!("its host answers {status}")),
        }
    }

    fn refused(&self, kind: ErrorKind, why: &str) -> Error {
        Error::new(kind, format!("{} cannot be fetched: {why}", self.address))
    }

    fn gave_up(&self, why: &str) -> Error {
        let kept = match self.size_bytes() {
            0 => String::new(),
            bytes => {
                format!("; {} came and are kept, the next attempt goes on from there", super::description::size(bytes))
            }
        };
        let message = format!(
            "{} cannot be fetched: {why} ({ATTEMPTS} attempts); check the network, and HTTPS_PROXY if there is a proxy{kept}",
            self.address
        );
        Error::new(ErrorKind::Unavailable, message)
    }

    /// What came cannot be gone on with.
    fn start_again(&self, why: &str) -> Broken {
        let _ = std::fs::remove_file(self.partial);
        let _ = std::fs::remove_file(origin_file(self.partial));
        Broken::ForNow(why.to_owned())
    }

    /// Notes what the partial file is a part of, where its host says so; without, nothing is gone on with.
    fn note_origin(&self, headers: &HeaderMap) -> Result<()> {
        let path = origin_file(self.partial);
        let etag = headers.get(header::ETAG).and_then(|value| value.to_str().ok()).filter(|etag| etag.starts_with('"'));
        let Some(etag) = etag else {
            let _ = std::fs::remove_file(&path);
            return Ok(());
        };
        let origin = Origin { address: self.address.to_owned(), etag: etag.to_owned() };
        let text = serde_json::to_vec(&origin).map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        std::fs::write(&path, text).map_err(|error| disk::writing(&path, &error))
    }
}

/// The SHA-256 that Hugging Face names for large files.
fn linked_sha256(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get("x-linked-etag")?.to_str().ok()?.trim_matches('"');
    (tag.len() == 64 && tag.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| tag.to_ascii_lowercase())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The first byte and the length of the whole, from `bytes FIRST-LAST/TOTAL`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = range.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// Scheme, host and port.
fn origin(address: &str) -> &str {
    let host = address.find("://").map_or(0, |at| at + 3);
    let end = address[host..].find(['/', '?', '#']).map_or(address.len(), |at| host + at);
    &address[..end]
}

/// Where `location` leads from `address`; never from a protected connection to one that is not.
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
    fn headers_are_read_as_they_are_written() {
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

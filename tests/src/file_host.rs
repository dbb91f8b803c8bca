//! A host of one file over HTTP/1.1 that breaks off, redirects and refuses as a test says, and records its requests.
//! Plain sockets; every answer closes its connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// How one request is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// With the file, or the requested range where the entity tag matches.
    File {
        /// The whole file.
        bytes: Arc<Vec<u8>>,
        /// The strong entity tag, without quotes.
        etag: String,
        /// Further headers.
        headers: Vec<(String, String)>,
        /// Bytes of the body after which the connection breaks.
        broken_after: Option<usize>,
    },
    /// With a redirect to this location.
    Elsewhere(String),
    /// With this status and no body.
    Status(u16),
}

impl Answer {
    /// An ordinary file.
    pub fn file(bytes: &[u8], etag: &str) -> Answer {
        Answer::File { bytes: Arc::new(bytes.to_vec()), etag: etag.to_owned(), headers: Vec::new(), broken_after: None }
    }

    /// Adds a header.
    pub fn with(mut self, name: &str, value: &str) -> Answer {
        if let Answer::File { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Breaks the connection after `bytes` of the body.
    pub fn broken_after(mut self, bytes: usize) -> Answer {
        if let Answer::File { broken_after, .. } = &mut self {
            *broken_after = Some(bytes);
        }
        self
    }
}

/// A received request: its first line, and its headers with names in lower case.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Path, such as `/owner/repo/resolve/main/file.gguf`.
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    /// The header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

/// The host, which ends when dropped.
pub struct FileHost {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FileHost {
    /// A host that gives `answers` in order, and repeats the last one.
    ///
    /// # Panics
    /// Where no port can be bound, or without answers.
    pub fn start(answers: Vec<Answer>) -> FileHost {
        assert!(!answers.is_empty());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, ending) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (asked, ending) = (Arc::clone(&asked), Arc::clone(&ending));
            move || {
                for (count, stream) in listener.incoming().enumerate() {
                    if ending.load(Ordering::Relaxed) {
                        return;
                    }
                    // A client that closes early is not the host's failure.
                    let _ = stream.and_then(|stream| serve(stream, &answers[count.min(answers.len() - 1)], &asked));
                }
            }
        });
        FileHost { address, asked, ending, thread: Some(thread) }
    }

    /// Base URL, without a slash at the end.
    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far.
    ///
    /// # Panics
    /// Where answering panicked.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for FileHost {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        // A connection wakes the accepting thread, which then ends.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, answer: &Answer, asked: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut headers = Vec::new();
    for line in lines {
        let line = line?;
        match line.split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let request = Asked { path: first.split(' ').nth(1).unwrap_or_default().to_owned(), headers };
    asked.lock().unwrap().push(request.clone());
    match answer {
        Answer::Elsewhere(location) => {
            write!(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )?;
        }
        Answer::Status(status) => {
            write!(stream, "HTTP/1.1 {status} Said\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        }
        Answer::File { bytes, etag, headers, broken_after } => {
            let quoted = format!("\"{etag}\"");
            let same = request.header("if-range").is_none_or(|tag| tag == quoted);
            let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
            let start = range.and_then(|start| start.parse().ok()).filter(|_| same).unwrap_or(0);
            let total = bytes.len();
            if start >= total {
                return write!(
                    stream,
                    "HTTP/1.1 416 Said\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
            }
            let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: {quoted}\r\n", total - start)?;
            if start > 0 {
                write!(stream, "Content-Range: bytes {start}-{}/{total}\r\n", total - 1)?;
            }
            for (name, value) in headers {
                write!(stream, "{name}: {value}\r\n")?;
            }
            write!(stream, "Connection: close\r\n\r\n")?;
            let end = broken_after.map_or(total, |after| (start + after).min(total));
            stream.write_all(&bytes[start..end])?;
        }
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // Until the other side closes: a reset could overtake what was sent.
    let _ = stream.read_to_end(&mut Vec::new());
    Ok(())
}

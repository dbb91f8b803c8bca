//! HTTP/1.1 over plain sockets, for requests and answers of the tests. A separate client from the binary's, so that
//! nothing that a lenient client tolerates stays hidden.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use pangea_client::sse::EventReader;
use serde_json::Value;

use crate::process::TIMEOUT;

/// The largest event of any test: a long answer's logprobs fit.
const MAX_EVENT_BYTES: usize = 8 << 20;

/// An answer whose head has been read.
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names are in lower case.
    headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    event_reader: EventReader,
    /// Events that have arrived and are not read yet.
    events: VecDeque<String>,
}

/// Sends a request with these headers and reads the head of the answer.
///
/// # Panics
/// Where connecting fails or the connection breaks.
pub fn send(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    try_send(address, method, path, headers, body).unwrap()
}

/// Like [`send`], for servers that may be gone.
///
/// # Errors
/// What broke the connection, and an answer that has no head.
pub fn try_send(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str(&format!("Host: {address}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    // A server that refuses a body need not read it.
    let _ = stream.write_all(format!("{head}\r\n{body}").as_bytes());
    let mut reader = BufReader::new(stream);
    let mut line = || -> std::io::Result<String> {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    let status = line()?;
    let Some(status) = status.split(' ').nth(1).and_then(|code| code.parse().ok()) else {
        return Err(broken(format!("no answer: {status:?}")));
    };
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Response { status, headers, reader, event_reader: EventReader::new(MAX_EVENT_BYTES), events: VecDeque::new() })
}

/// An answer that is not whole, as a connection that ended too early leaves it.
fn broken(what: String) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::UnexpectedEof, what)
}

/// GET.
pub fn get(address: &str, path: &str) -> Response {
    send(address, "GET", path, &[], "")
}

/// POST of a JSON document.
pub fn post(address: &str, path: &str, body: &Value) -> Response {
    send(address, "POST", path, &[("Content-Type", "application/json")], &body.to_string())
}

impl Response {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The rest of the body, whole.
    pub fn text(self) -> String {
        self.try_text().unwrap()
    }

    /// Like [`Response::text`], for servers that may be gone.
    ///
    /// # Errors
    /// What broke the connection.
    pub fn try_text(self) -> std::io::Result<String> {
        String::from_utf8(self.try_bytes()?).map_err(std::io::Error::other)
    }

    /// The rest of the body, whole, of whatever bytes.
    pub fn bytes(self) -> Vec<u8> {
        self.try_bytes().unwrap()
    }

    fn try_bytes(mut self) -> std::io::Result<Vec<u8>> {
        let mut body = Vec::new();
        match self.header("content-length").map(|length| length.parse().unwrap()) {
            Some(length) => {
                body.resize(length, 0);
                self.reader.read_exact(&mut body)?;
            }
            None => while self.chunk(&mut body)? {},
        }
        Ok(body)
    }

    /// The body as JSON.
    pub fn json(self) -> Value {
        let status = self.status;
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status}: {error}: {text}"))
    }

    /// One chunk of a body in chunks; whether there was one.
    fn chunk(&mut self, body: &mut Vec<u8>) -> std::io::Result<bool> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(|_| broken(format!("no chunk: {line:?}")))?;
        let start = body.len();
        body.resize(start + length, 0);
        self.reader.read_exact(&mut body[start..])?;
        self.reader.read_line(&mut String::new())?;
        Ok(length > 0)
    }

    /// The next server-sent event's data; `None` at the end.
    pub fn event(&mut self) -> Option<String> {
        self.try_event().unwrap()
    }

    /// Like [`Response::event`], for servers that may be gone.
    ///
    /// # Errors
    /// What broke the connection; a stream without an event for [`TIMEOUT`], however many comments keep it alive.
    pub fn try_event(&mut self) -> std::io::Result<Option<String>> {
        let began = Instant::now();
        while self.events.is_empty() {
            let mut bytes = Vec::new();
            if !self.chunk(&mut bytes)? {
                return Ok(None);
            }
            self.events.extend(self.event_reader.read(&bytes).unwrap());
            if self.events.is_empty() && began.elapsed() > TIMEOUT {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::TimedOut,
                    "the stream is kept alive without an event",
                ));
            }
        }
        Ok(self.events.pop_front())
    }

    /// All events of a stream that ends with its last event, as JSON.
    pub fn events_to_end(mut self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let read = |event: String| serde_json::from_str(&event).unwrap_or_else(|error| panic!("{error}: {event}"));
        std::iter::from_fn(|| self.event()).map(read).collect()
    }

    /// All events of a stream, which must end with `[DONE]`, as JSON.
    pub fn events(mut self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let mut events = Vec::new();
        while let Some(event) = self.event() {
            if event == "[DONE]" {
                assert!(self.event().is_none(), "more after [DONE]");
                return events;
            }
            events.push(serde_json::from_str(&event).unwrap_or_else(|error| panic!("{error}: {event}")));
        }
        panic!("the stream ended without [DONE]: {events:?}");
    }
}

//! Server-sent events out of the bytes of an HTTP body, however these are cut (WHATWG HTML, "Server-sent events", 9.2.6).
//! Bytes in, the data of whole events out; nothing here reads a socket or knows what the data says.

use crate::{Error, ErrorKind, Result};

/// Puts the events of one stream together. Names, ids and comments are passed over.
#[derive(Debug)]
pub struct EventReader {
    max_event_bytes: usize,
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// Data of the event that has not ended yet, its lines joined by line feeds.
    data: Option<String>,
}

impl EventReader {
    /// A reader at the start of a stream. No event may be larger than `max_event_bytes`.
    pub fn new(max_event_bytes: usize) -> EventReader {
        EventReader { max_event_bytes, line: Vec::new(), data: None }
    }

    /// The data of every event that these bytes complete, in order.
    ///
    /// # Errors
    /// `Internal` for an event that is too large; the stream is of no more use then.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Vec<String>> {
        let mut events = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let held = self.line.len() + self.data.as_ref().map_or(0, String::len);
            if held + piece.len() > self.max_event_bytes {
                let message = format!("a server-sent event is larger than {} bytes", self.max_event_bytes);
                return Err(Error::new(ErrorKind::Internal, message));
            }
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\n") {
                events.extend(self.end_line());
            }
        }
        Ok(events)
    }

    /// Takes in a whole line; the event's data where the line ends one.
    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
        if line.is_empty() {
            return self.data.take();
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => data.extend(["\n", value]),
                None => self.data = Some(value.to_owned()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let stream = "data: {\"a\": \"ü\"}\n\n: a comment\n\nevent: named\r\ndata: 2\r\ndata:  3\r\n\r\n\
                      data:[DONE]\n\ndata: cut off\n"
            .as_bytes();
        for cut in 0..stream.len() {
            let mut events = EventReader::new(100);
            let mut all = events.read(&stream[..cut]).unwrap();
            all.extend(events.read(&stream[cut..]).unwrap());
            assert_eq!(all, ["{\"a\": \"ü\"}", "2\n 3", "[DONE]"], "cut at {cut}");
        }
    }

    #[test]
    fn an_event_without_an_end_is_refused_at_the_limit() {
        let largest = format!("data: {}\n\n", "x".repeat(93));
        assert_eq!(EventReader::new(100).read(largest.as_bytes()).unwrap().len(), 1);
        let larger = format!("data: {}\n\n", "x".repeat(94));
        assert_eq!(EventReader::new(100).read(larger.as_bytes()).unwrap_err().kind(), ErrorKind::Internal);
        let mut reader = EventReader::new(100);
        let many = (0..100).try_for_each(|_| reader.read(b"data: many lines\n").map(drop));
        assert!(many.is_err());
    }
}

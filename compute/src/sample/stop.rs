//! Stop strings in streamed text: text is passed on, except for the part that may become a stop string. Works on whole
//! characters, not tokens.

use crate::Error;

/// Stop strings per request, at most, because every byte of text is compared with each. (OpenAI allows 4.)
const MAX_STOPS: usize = 16;
/// Bytes of a stop string, at most: as much text may be held back.
const MAX_STOP_BYTES: usize = 1024;

/// Finds stop strings. The stop string that is complete first wins; of several complete at the same character, the
/// longest. The result does not depend on how the text is cut into pieces.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<Stop>,
    held: String,
    stopped: bool,
    /// The stop string that was found.
    found: Option<String>,
}

#[derive(Clone, Debug)]
struct Stop {
    text: Vec<u8>,
    /// `borders[n]`: length of the longest proper prefix of `text[..n]` that is also its suffix (Knuth, Morris, Pratt).
    borders: Vec<usize>,
    /// Bytes of `text` that the text so far ends with.
    matched: usize,
}

/// The result of one piece of text.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Emitted {
    /// Text that is not part of a stop string.
    pub text: String,
    /// Whether a stop string was found; the stop string and all text after it are dropped.
    pub stopped: bool,
}

impl StopMatcher {
    /// Errors (`InvalidInput`): an empty stop string, one longer than 1,024 bytes, more than 16.
    pub fn new(stops: &[impl AsRef<str>]) -> Result<StopMatcher, Error> {
        let invalid = |what: String| Err(Error::invalid("stop strings", what));
        if stops.len() > MAX_STOPS {
            return invalid(format!("{} stop strings are given; at most {MAX_STOPS} are supported", stops.len()));
        }
        for (stop, place) in stops.iter().zip(1..) {
            match stop.as_ref().len() {
                0 => return invalid(format!("stop string {place} is empty")),
                bytes if bytes > MAX_STOP_BYTES => {
                    return invalid(format!(
                        "stop string {place} has {bytes} bytes; at most {MAX_STOP_BYTES} are allowed"
                    ));
                }
                _ => {}
            }
        }
        let stops = stops.iter().map(|stop| Stop::new(stop.as_ref())).collect();
        Ok(StopMatcher { stops, held: String::new(), stopped: false, found: None })
    }

    /// Processes the next piece of text. After a stop string nothing is emitted.
    pub fn push(&mut self, piece: &str) -> Emitted {
        if self.stopped {
            return Emitted { text: String::new(), stopped: true };
        }
        for (end, byte) in (self.held.len() + 1..).zip(piece.bytes()) {
            let found = self.stops.iter_mut().filter_map(|stop| stop.advance(byte)).max();
            if let Some(length) = found {
                self.stopped = true;
                let mut text = std::mem::take(&mut self.held);
                text.push_str(piece);
                self.found = Some(text[end - length..end].to_owned());
                // A stop string begins with the first byte of a character, so this is a character boundary.
                text.truncate(end - length);
                return Emitted { text, stopped: true };
            }
        }
        self.held.push_str(piece);
        let holding = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let text = self.held.drain(..self.held.len() - holding).collect();
        Emitted { text, stopped: false }
    }

    /// The stop string that was found.
    pub fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// Ends the text: returns the part that was held back.
    pub fn finish(self) -> String {
        self.held
    }
}

impl Stop {
    fn new(text: &str) -> Stop {
        let text = text.as_bytes().to_vec();
        let mut borders = vec![0; text.len() + 1];
        for end in 1..text.len() {
            let mut border = borders[end];
            while border > 0 && text[border] != text[end] {
                border = borders[border];
            }
            borders[end + 1] = border + usize::from(text[border] == text[end]);
        }
        Stop { text, borders, matched: 0 }
    }

    /// The length of the stop string, when this byte completes it.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = self.borders[self.matched];
        }
        self.matched += usize::from(self.text[self.matched] == byte);
        (self.matched == self.text.len()).then_some(self.matched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: the stop whose end comes first, the longest of those.
    fn expected(text: &str, stops: &[String]) -> (String, bool) {
        let mut ends: Vec<(usize, usize)> = stops
            .iter()
            .flat_map(|stop| {
                (0..text.len()).filter_map(move |start| {
                    text.as_bytes()[start..].starts_with(stop.as_bytes()).then_some((start + stop.len(), start))
                })
            })
            .collect();
        ends.sort_unstable();
        match ends.first() {
            Some(&(_, start)) => (text[..start].to_owned(), true),
            None => (text.to_owned(), false),
        }
    }

    proptest! {
        #[test]
        fn cutting_the_text_makes_no_difference(
            text in "[abé]{0,40}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut bounds: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            bounds.dedup();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| bounds[cut.index(bounds.len())]).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let mut matcher = StopMatcher::new(&stops).unwrap();
            let mut emitted = String::new();
            let mut stopped = false;
            for pair in cuts.windows(2) {
                let piece = matcher.push(&text[pair[0]..pair[1]]);
                emitted += &piece.text;
                stopped = piece.stopped;
                if !stopped {
                    let held = &text[emitted.len()..pair[1]];
                    prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)), "{held:?} is held for nothing");
                }
            }
            if !stopped {
                emitted += &matcher.finish();
            }
            prop_assert_eq!((emitted, stopped), expected(&text, &stops));
        }
    }

    #[test]
    fn nothing_comes_after_a_stop() {
        let mut matcher = StopMatcher::new(&["</s>", "\n\n"]).unwrap();
        assert_eq!(matcher.push("Paris.\n"), Emitted { text: "Paris.".to_owned(), stopped: false });
        assert_eq!(matcher.push("\nmore"), Emitted { text: String::new(), stopped: true });
        assert_eq!(matcher.push("and more"), Emitted { text: String::new(), stopped: true });
        assert_eq!(matcher.found(), Some("\n\n"));
    }

    #[test]
    fn empty_long_and_too_many_stops_are_refused() {
        for (stops, part) in [
            (vec![String::new()], "stop string 1 is empty"),
            (vec!["a".to_owned(), "b".repeat(1025)], "stop string 2 has 1025 bytes"),
            (vec!["a".to_owned(); 17], "17 stop strings are given"),
        ] {
            let error = StopMatcher::new(&stops).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

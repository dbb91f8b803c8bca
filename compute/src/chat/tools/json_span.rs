//! Where a JSON object in a text ends, while the text arrives. Whether it is valid JSON is not judged here.

/// The part of an object that has arrived.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct JsonSpan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonSpan {
    /// Goes on with `text`, the first of which begins with the opening bracket: the number of its bytes that belong to the
    /// object, and whether the object ends with them.
    pub(super) fn take(&mut self, text: &str) -> (usize, bool) {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                _ => {}
            }
        }
        (text.len(), false)
    }
}

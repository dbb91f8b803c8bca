//! The context of a trace as it travels: which span of which trace asks, as `traceparent` of W3C Trace Context has it. Pure:
//! this file knows no spans.

use std::fmt;

/// The span that asks for something, and whether its trace is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

impl TraceParent {
    /// Length of its text in bytes.
    pub const TEXT_BYTES: usize = 55;

    /// The context of a span; `None` for the ids that are all zero, which stand for no span.
    pub fn new(trace: [u8; 16], span: [u8; 8], sampled: bool) -> Option<TraceParent> {
        (trace != [0; 16] && span != [0; 8]).then_some(TraceParent { trace, span, sampled })
    }

    /// Parses the text of version 00: `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, lower case. `None` for anything else:
    /// a context that cannot be read is none, and no error.
    ///
    /// W3C Trace Context, section 3.2.2.
    pub fn parse(text: &str) -> Option<TraceParent> {
        if text.len() != TraceParent::TEXT_BYTES {
            return None;
        }
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "00" || parts.next().is_some() {
            return None;
        }
        // Version 00 defines the lowest flag only; the others are to be ignored.
        let [flags] = bytes(flags)?;
        TraceParent::new(bytes(trace)?, bytes(span)?, flags & 1 != 0)
    }

    /// Id of the trace.
    pub fn trace(&self) -> [u8; 16] {
        self.trace
    }

    /// Id of the span.
    pub fn span(&self) -> [u8; 8] {
        self.span
    }

    /// Whether the trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace), u64::from_be_bytes(self.span));
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", u8::from(self.sampled))
    }
}

/// The bytes of exactly `2 * N` lower-case hex digits.
fn bytes<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of the specification.
    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_written_as_it_was_read() {
        let read = TraceParent::parse(EXAMPLE).unwrap();
        assert_eq!((read.trace()[0], read.span()[7], read.is_sampled()), (0x4b, 0xb7, true));
        assert_eq!(read.to_string(), EXAMPLE);
        let unsampled = EXAMPLE.replace("-01", "-00");
        assert_eq!(TraceParent::parse(&unsampled).unwrap().to_string(), unsampled);
    }

    #[test]
    fn flags_beyond_the_first_are_ignored() {
        for (flags, sampled) in [("-ff", true), ("-02", false), ("-03", true)] {
            let read = TraceParent::parse(&EXAMPLE.replace("-01", flags)).unwrap();
            assert_eq!(read.is_sampled(), sampled, "{flags}");
        }
    }

    #[test]
    fn whatever_is_not_exactly_a_context_of_version_00_is_none() {
        let zero_trace = EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32));
        let zero_span = EXAMPLE.replace("00f067aa0ba902b7", &"0".repeat(16));
        for text in [
            "",
            &EXAMPLE[1..],
            &EXAMPLE[..54],
            &format!("{EXAMPLE} "),
            &format!("{EXAMPLE}-00"),
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replacen("00-", "01-", 1),
            &EXAMPLE.replacen("00-", "ff-", 1),
            &EXAMPLE.replace('-', "_"),
            &EXAMPLE.replace("-01", "-0g"),
            // The same length with a dash elsewhere, and with a character of two bytes.
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47é-00f067aa0ba902b7-01",
            &zero_trace,
            &zero_span,
        ] {
            assert_eq!(TraceParent::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic_and_what_is_read_comes_back(text in "\\PC{0,60}|[0-9a-f-]{55}") {
            if let Some(read) = TraceParent::parse(&text) {
                prop_assert_eq!(TraceParent::parse(&read.to_string()), Some(read));
            }
        }
    }
}

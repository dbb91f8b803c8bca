//! Layers as people write and read them: `0-14`, `15`. The first and the last are named, counting from 0, and both are meant.
//! The one place where they are parsed and shown.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::limits::MAX_LAYERS;

/// Layers `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRange {
    /// The first, counting from 0.
    pub first: u32,
    /// The last.
    pub last: u32,
}

/// What is no range of layers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{0}' is no range of layers; write the first and the last, counting from 0 and both included, such as 0-14")]
pub struct NotLayers(String);

impl LayerRange {
    /// As the rest of the code counts: the end exclusive.
    pub fn range(self) -> Range<u32> {
        self.first..self.last + 1
    }
}

impl From<&Range<u32>> for LayerRange {
    /// Of no layers at all, the one where they would begin.
    fn from(layers: &Range<u32>) -> LayerRange {
        LayerRange { first: layers.start, last: layers.end.saturating_sub(1).max(layers.start) }
    }
}

impl From<[u32; 2]> for LayerRange {
    /// As JSON has them: first and end.
    fn from([first, end]: [u32; 2]) -> LayerRange {
        LayerRange::from(&(first..end))
    }
}

impl FromStr for LayerRange {
    type Err = NotLayers;

    fn from_str(text: &str) -> Result<LayerRange, NotLayers> {
        let wrong = || NotLayers(text.to_owned());
        let number = |text: &str| {
            let text = text.trim();
            // `parse` takes a plus sign.
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|layer| digits && *layer < MAX_LAYERS).ok_or_else(wrong)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let layers = LayerRange { first: number(first)?, last: number(last)? };
        if layers.first > layers.last { Err(wrong()) } else { Ok(layers) }
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last > self.first {
            true => write!(f, "{}-{}", self.first, self.last),
            false => write!(f, "{}", self.first),
        }
    }
}

impl<'de> Deserialize<'de> for LayerRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<LayerRange, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_included() {
        let range = |text: &str| text.parse::<LayerRange>().unwrap().range();
        assert_eq!(range("0-14"), 0..15);
        assert_eq!(range(" 15 - 29 "), 15..30);
        assert_eq!(range("7"), 7..8);
    }

    #[test]
    fn a_single_layer_is_shown_as_one_number() {
        let shown = |layers: Range<u32>| LayerRange::from(&layers).to_string();
        assert_eq!(shown(0..15), "0-14");
        assert_eq!(shown(29..30), "29");
        assert_eq!(shown(3..3), "3");
        assert_eq!(LayerRange::from([16, 30]).to_string(), "16-29");
        for text in ["0-14", "29"] {
            assert_eq!(text.parse::<LayerRange>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "-", "-3", "3-", "5-2", "1-2-3", "a-b", "+1-2", "0-1024", "99999999999", "1..3", "0:14"] {
            assert!(text.parse::<LayerRange>().is_err(), "{text}");
        }
    }
}

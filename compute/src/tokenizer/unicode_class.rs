//! Classes of characters that pre-tokenizers distinguish: letter, number, whitespace, punctuation. The table is fixed,
//! because the standard library's Unicode version changes with the compiler and tokens must not.

#[path = "unicode_class_table.rs"]
mod table;

/// General categories of Unicode 15.1, grouped as pre-tokenizers use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnicodeClass {
    /// `\p{L}`.
    Letter,
    /// `\p{N}`.
    Number,
    /// `\s`: the property `White_Space`.
    Whitespace,
    /// `\p{P}`.
    Punctuation,
    /// All other code points: symbols, marks, controls, unassigned.
    Other,
}

impl UnicodeClass {
    pub(super) fn of(c: char) -> UnicodeClass {
        let c = u32::from(c);
        if c < 128 {
            return ASCII[c as usize];
        }
        // The first run begins at 0, so some run begins at or before any code point.
        table::RUNS[table::RUNS.partition_point(|&(start, _)| start <= c) - 1].1
    }
}

const ASCII: [UnicodeClass; 128] = {
    let mut classes = [UnicodeClass::Other; 128];
    let mut run = 0;
    let mut c = 0;
    while c < 128 {
        while table::RUNS[run + 1].0 <= c {
            run += 1;
        }
        classes[c as usize] = table::RUNS[run].1;
        c += 1;
    }
    classes
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The standard library's Unicode is newer: it knows at least what the table knows.
    #[test]
    fn the_table_agrees_with_the_standard_library() {
        let mut numbers = 0;
        for c in '\0'..=char::MAX {
            match UnicodeClass::of(c) {
                UnicodeClass::Letter => assert!(c.is_alphabetic(), "{c:?}"),
                UnicodeClass::Number => assert!(c.is_numeric(), "{c:?}"),
                UnicodeClass::Punctuation => assert!(!c.is_alphanumeric() && !c.is_whitespace(), "{c:?}"),
                UnicodeClass::Whitespace | UnicodeClass::Other => {}
            }
            assert_eq!(UnicodeClass::of(c) == UnicodeClass::Whitespace, c.is_whitespace(), "{c:?}");
            assert_eq!(
                UnicodeClass::of(c) == UnicodeClass::Punctuation && c.is_ascii(),
                c.is_ascii() && "!\"#%&'()*,-./:;?@[\\]_{}".contains(c)
            );
            numbers += usize::from(UnicodeClass::of(c) == UnicodeClass::Number);
        }
        assert_eq!(numbers, 1831, "the numbers of Unicode 15.1");
    }
}

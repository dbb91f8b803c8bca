//! Classes of characters that pre-tokenizers distinguish: letters by case, marks, numbers, whitespace, punctuation, symbols. The
//! table is fixed, because the standard library's Unicode version changes with the compiler and tokens must not.

#[path = "unicode_class_table.rs"]
mod table;

/// General categories of Unicode 15.1, grouped as pre-tokenizers use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnicodeClass {
    /// `\p{Lu}` and `\p{Lt}`.
    Upper,
    /// `\p{Ll}`.
    Lower,
    /// `\p{Lm}` and `\p{Lo}`: letters without case.
    OtherLetter,
    /// `\p{M}`.
    Mark,
    /// `\p{N}`.
    Number,
    /// `\s`: the property `White_Space`.
    Whitespace,
    /// `\p{P}`.
    Punctuation,
    /// `\p{S}`.
    Symbol,
    /// All other code points: controls, formats, private and unassigned ones.
    Other,
}

/// Code points from one place of the table to the next.
#[derive(Clone, Copy)]
enum Run {
    /// All of one class.
    Of(UnicodeClass),
    /// Upper and lower case by turns, beginning with upper case.
    Alternating,
}

impl Run {
    /// The class of the code point `offset` places after the run's first one.
    const fn class(self, offset: u32) -> UnicodeClass {
        match self {
            Run::Of(class) => class,
            Run::Alternating if offset.is_multiple_of(2) => UnicodeClass::Upper,
            Run::Alternating => UnicodeClass::Lower,
        }
    }
}

impl UnicodeClass {
    pub(super) fn of(c: char) -> UnicodeClass {
        let c = u32::from(c);
        if c < 128 {
            return ASCII[c as usize];
        }
        // The first run begins at 0, so some run begins at or before any code point.
        let (start, run) = table::RUNS[table::RUNS.partition_point(|&(start, _)| start <= c) - 1];
        run.class(c - start)
    }

    /// `\p{L}`.
    pub(super) fn is_letter(self) -> bool {
        matches!(self, UnicodeClass::Upper | UnicodeClass::Lower | UnicodeClass::OtherLetter)
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
        let (start, class) = table::RUNS[run];
        classes[c as usize] = class.class(c - start);
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
        let mut counts = [0; 9];
        for c in '\0'..=char::MAX {
            let class = UnicodeClass::of(c);
            match class {
                // The library counts letters with another case among neither.
                UnicodeClass::Upper => assert!(c.is_uppercase() || c.to_lowercase().ne([c]), "{c:?}"),
                // Newer versions have taken the case from U+0295.
                UnicodeClass::Lower => assert!(c.is_lowercase() || c == '\u{295}', "{c:?}"),
                UnicodeClass::OtherLetter => assert!(c.is_alphabetic() && !c.is_uppercase(), "{c:?}"),
                UnicodeClass::Number => assert!(c.is_numeric(), "{c:?}"),
                UnicodeClass::Punctuation | UnicodeClass::Mark => {
                    assert!(!c.is_numeric() && !c.is_whitespace(), "{c:?}");
                }
                UnicodeClass::Symbol | UnicodeClass::Whitespace | UnicodeClass::Other => {}
            }
            assert_eq!(class == UnicodeClass::Whitespace, c.is_whitespace(), "{c:?}");
            if c.is_ascii() {
                assert_eq!(class == UnicodeClass::Punctuation, "!\"#%&'()*,-./:;?@[\\]_{}".contains(c), "{c:?}");
                assert_eq!(class == UnicodeClass::Symbol, "$+<=>^`|~".contains(c), "{c:?}");
            }
            counts[class as usize] += 1;
        }
        // Lu + Lt, Ll, Lm + Lo, M, N, White_Space, P, S of Unicode 15.1, and the rest without surrogates.
        let rest = 0x11_0000 - 0x800 - (1862 + 2233 + 132_631 + 2450 + 1831 + 25 + 842 + 7_775);
        assert_eq!(counts, [1862, 2233, 132_631, 2450, 1831, 25, 842, 7_775, rest]);
    }
}

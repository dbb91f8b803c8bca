//! Numbers as people write them, and their one decimal form: no superfluous zeros, no separators of thousands, no exponent.

/// Largest exponent that is written out.
const EXPONENT_MAX: i32 = 40;

/// The number in a short text, if it has exactly one: `$1,234.50`, `42 apples`, `-7`, `50%`.
pub(super) fn within(text: &str) -> Option<String> {
    let text = text.trim_start_matches(['$', '€', '£', '≈', '~', ' ']);
    let starts = text.starts_with(|c: char| c.is_ascii_digit() || "+-−.".contains(c));
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "+-−.,".contains(c))).unwrap_or(text.len());
    let (first, rest) = text.split_at(end);
    let unit = rest.trim_start_matches(['%', '°', ' ']);
    let is_unit = unit.chars().all(|c| c.is_alphabetic() || c == ' ' || c == '°');
    if starts && is_unit { canonical(first) } else { None }
}

/// The decimal form of a number; `None` if the text is anything else.
pub(super) fn canonical(text: &str) -> Option<String> {
    let (negative, text) = match text.strip_prefix(['-', '−']) {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, exponent) = match text.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    if !(-EXPONENT_MAX..=EXPONENT_MAX).contains(&exponent) {
        return None;
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = without_separators(whole)?;
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(&whole) || !is_number(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let mut all = format!("{whole}{fraction}");
    let mut point = whole.len() as i32 + exponent;
    if point <= 0 {
        all.insert_str(0, &"0".repeat(1 + point.unsigned_abs() as usize));
        point = 1;
    }
    let point = point as usize;
    if all.len() < point {
        all.push_str(&"0".repeat(point - all.len()));
    }
    let (whole, fraction) = all.split_at(point);
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let mut canonical = String::new();
    if negative && !(whole.is_empty() && fraction.is_empty()) {
        canonical.push('-');
    }
    canonical.push_str(if whole.is_empty() { "0" } else { whole });
    if !fraction.is_empty() {
        canonical.push('.');
        canonical.push_str(fraction);
    }
    Some(canonical)
}

/// The digits of `1,234,567`; `None` if the commas do not separate thousands.
fn without_separators(whole: &str) -> Option<String> {
    let mut groups = whole.split(',');
    let first = groups.next()?;
    let mut digits = first.to_owned();
    for group in groups {
        if group.len() != 3 || !(1..=3).contains(&first.len()) {
            return None;
        }
        digits.push_str(group);
    }
    Some(digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_notation_of_a_number_is_one_number() {
        for (number, texts) in [
            ("1234.5", &["1234.5", "1,234.50", "+1234.5", "01234.5", "1.2345e3", "12345E-1", "$1,234.50"][..]),
            ("0", &["0", "-0", "0.00", "00", ".0", "0e9"]),
            ("-0.5", &["-0.5", "−.5", "-5e-1", "-0.50 m"]),
            ("7", &["7", "7.", "7.0", "7 dwarfs", "7%", "0.7e1", "~7", "7 °C"]),
            ("1000000", &["1000000", "1,000,000", "1e6", "1.0e+6"]),
            ("0.001", &["1e-3", "0.0010"]),
        ] {
            for text in texts {
                assert_eq!(within(text).as_deref(), Some(number), "{text}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_a_number_is_none() {
        for text in [
            "",
            "-",
            "+",
            ".",
            "1,23",
            "1234,567",
            ",123",
            "1.2.3",
            "2024-05-01",
            "3 or 4",
            "4x4",
            "1e99",
            "1e",
            "e5",
            "12:30",
            "one",
            "1/2",
            "- 5",
            "5 - 3",
            "1,2345",
        ] {
            assert_eq!(within(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_number_has_the_form_that_it_was_made_of(n: i32, digits in 0_u32..1000) {
            let text = format!("{n}.{digits:03}");
            let is: f64 = within(&text).unwrap().parse().unwrap();
            prop_assert_eq!(is, text.parse::<f64>().unwrap());
            let canonical_text = canonical(&text).unwrap();
            prop_assert_eq!(canonical(&canonical_text), Some(canonical_text.clone()));
        }

        #[test]
        fn no_text_makes_it_fail(text in "[-+−.,eE0-9 ]{0,12}") {
            if let Some(number) = canonical(&text) {
                prop_assert_eq!(canonical(&number), Some(number));
            }
        }
    }
}

//! Durations as people write them. Parsing only.

use std::time::Duration;

/// Parses a duration such as `30s`, `500ms`, `2m`; a bare number is seconds.
///
/// # Errors
/// A message if `text` is no duration, or one below a millisecond.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err("use a number and ms, s, m, h or d, such as 30s".to_owned()),
    };
    number
        .parse()
        .ok()
        .and_then(|number: f64| Duration::try_from_secs_f64(number * factor).ok())
        .filter(|time| *time >= Duration::from_millis(1))
        .ok_or_else(|| "use a duration of at least 1ms, such as 30s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed_with_and_without_units() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        for text in ["", "s", "-1s", "0", "5 weeks", "1e99h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}

//! A date and time of day, formatted like Python's `strftime`. No clock is read and no time zone is known: the caller
//! gives the time.

use std::fmt::Write;
use std::sync::Arc;

use minijinja::value::Object;

/// A moment in the proleptic Gregorian calendar, in the caller's time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalendarTime {
    /// Days since 1970-01-01.
    days: i64,
    /// Seconds since midnight.
    seconds: u32,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAY_SECONDS: i64 = 86_400;
/// 9999-12-31, the last day that Python knows.
const LAST_DAY: i64 = 2_932_896;

impl CalendarTime {
    /// From seconds since 1970-01-01 00:00 in the caller's time zone (Unix time plus the zone's offset); clamped to the
    /// years 1 to 9999.
    pub fn from_unix_seconds(seconds: i64) -> CalendarTime {
        let days = seconds.div_euclid(DAY_SECONDS).clamp(-719_162, LAST_DAY);
        CalendarTime { days, seconds: seconds.rem_euclid(DAY_SECONDS) as u32 }
    }

    /// (year, month from 1, day from 1). Source: Hinnant, "chrono-compatible low-level date algorithms".
    fn date(self) -> (i64, usize, i64) {
        let shifted = self.days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month as usize, day)
    }

    /// As `strftime` with this format in the C locale; a `-` after the percent sign turns padding off. Errors: the
    /// first unknown directive.
    pub fn format(self, format: &str) -> Result<String, String> {
        let mut text = String::with_capacity(format.len() + 16);
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            let mut directive = chars.next();
            let padded = directive != Some('-');
            if !padded {
                directive = chars.next();
            }
            let directive = directive.ok_or("a % at the end of the date format")?;
            self.write(&mut text, directive, padded)?;
        }
        Ok(text)
    }

    fn write(self, text: &mut String, directive: char, padded: bool) -> Result<(), String> {
        let (year, month, day) = self.date();
        let (hour, minute, second) = (self.seconds / 3600, self.seconds / 60 % 60, self.seconds % 60);
        let weekday = (self.days + 4).rem_euclid(7) as usize;
        let mut number = |value: i64, width: usize| {
            let width = if padded { width } else { 0 };
            write!(text, "{value:0width$}").map_err(|error| error.to_string())
        };
        match directive {
            'd' => number(day, 2)?,
            'm' => number(month as i64, 2)?,
            'Y' => number(year, 4)?,
            'y' => number(year % 100, 2)?,
            'H' => number(hour.into(), 2)?,
            'I' => number(((hour + 11) % 12 + 1).into(), 2)?,
            'M' => number(minute.into(), 2)?,
            'S' => number(second.into(), 2)?,
            'j' => number(self.days - first_day(year) + 1, 3)?,
            'b' | 'h' => text.push_str(&MONTHS[month - 1][..3]),
            'B' => text.push_str(MONTHS[month - 1]),
            'a' => text.push_str(&DAYS[weekday][..3]),
            'A' => text.push_str(DAYS[weekday]),
            'p' => text.push_str(if hour < 12 { "AM" } else { "PM" }),
            'F' => text.push_str(&self.format("%Y-%m-%d")?),
            'T' => text.push_str(&self.format("%H:%M:%S")?),
            'D' => text.push_str(&self.format("%m/%d/%y")?),
            '%' => text.push('%'),
            // Naive times have no zone in Python either, so nothing is written.
            'Z' | 'z' => {}
            _ => return Err(format!("the date format has the unknown directive %{directive}")),
        }
        Ok(())
    }
}

/// The day number of January 1st.
fn first_day(year: i64) -> i64 {
    let before = year - 1;
    before * 365 + before / 4 - before / 100 + before / 400 - 719_162
}

/// An object, so that a render can carry the time.
impl Object for CalendarTime {
    fn repr(self: &Arc<Self>) -> minijinja::value::ObjectRepr {
        minijinja::value::ObjectRepr::Plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_python_writes_them() {
        // datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %I %p %-d %%")
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thu Thursday Jan January 001 70 12 AM 1 %"),
            (951_782_400, "2000-02-29 00:00:00 Tue Tuesday Feb February 060 00 12 AM 29 %"),
            (1_735_689_599, "2024-12-31 23:59:59 Tue Tuesday Dec December 366 24 11 PM 31 %"),
            (-1, "1969-12-31 23:59:59 Wed Wednesday Dec December 365 69 11 PM 31 %"),
            (4_102_488_000, "2100-01-01 12:00:00 Fri Friday Jan January 001 00 12 PM 1 %"),
        ] {
            let time = CalendarTime::from_unix_seconds(seconds);
            assert_eq!(time.format("%Y-%m-%d %H:%M:%S %a %A %b %B %j %y %I %p %-d %%").unwrap(), expected);
            assert_eq!(time.format("%F %T").unwrap(), expected[..19]);
        }
    }

    #[test]
    fn every_time_and_format_has_an_answer() {
        for seconds in [i64::MIN, -62_135_596_801, 253_402_300_800, i64::MAX] {
            CalendarTime::from_unix_seconds(seconds).format("%d %b %Y %j").unwrap();
        }
        let now = CalendarTime::from_unix_seconds(0);
        for broken in ["%", "%-", "%Q", "%é"] {
            assert!(now.format(broken).is_err(), "{broken}");
        }
    }
}

//! Tables for a terminal of 80 columns: alignment and shortening. Commands decide the content.

use pangea_control::peers::is_newcomer;

/// Alignment of a column.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

/// A table with a heading.
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub(super) fn new(columns: impl Into<Vec<(&'static str, Align)>>) -> Table {
        Table { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row with one cell per column.
    pub(super) fn row(&mut self, cells: impl Into<Vec<String>>) {
        self.rows.push(cells.into());
    }

    /// The table as text, two spaces between columns, a newline after every line.
    pub(super) fn render(&self) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, (heading, _))| {
                let cells = self.rows.iter().filter_map(|row| row.get(index));
                cells.map(|cell| width(cell)).chain([width(heading)]).max().unwrap_or(0)
            })
            .collect();
        let headings: Vec<String> = self.columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        let mut out = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::from(" ");
            for ((cell, (_, align)), column) in row.iter().zip(&self.columns).zip(&widths) {
                let padding = " ".repeat(column - width(cell));
                line.push(' ');
                match align {
                    Align::Left => line.extend([cell.as_str(), &padding]),
                    Align::Right => line.extend([padding.as_str(), cell]),
                }
                line.push(' ');
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Lines of names and values, with the values aligned; long values are broken at spaces.
pub(super) fn facts(facts: &[(&str, String)]) -> String {
    let names = facts.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    facts.iter().map(|(name, value)| wrapped(&format!("  {}  {value}", padded(name, names)), names + 4)).collect()
}

/// Columns of a terminal that nobody made wider.
pub(super) const COLUMNS: usize = 80;

/// A line of text, broken at spaces where it does not fit a terminal; the lines that follow begin with `indent` spaces. A word
/// that does not fit has a line of its own. A number stays with its unit.
pub(super) fn wrapped(text: &str, indent: usize) -> String {
    let (start, words) = text.split_at(text.len() - text.trim_start().len());
    let (mut out, mut column) = (start.to_owned(), width(start));
    let mut words = words.split(' ').peekable();
    let mut index = 0;
    while let Some(word) = words.next() {
        // With the unit that follows a number.
        let unit = words.peek().filter(|_| word.trim_start_matches('(').parse::<f64>().is_ok());
        let whole = width(word) + unit.map_or(0, |unit| 1 + width(unit));
        let fits = column + 1 + whole <= COLUMNS;
        match (index, fits) {
            (0, _) => {}
            (_, true) => {
                out.push(' ');
                column += 1;
            }
            (_, false) => {
                out.truncate(out.trim_end().len());
                out.push('\n');
                out.push_str(&" ".repeat(indent));
                column = indent;
            }
        }
        out.push_str(word);
        column += width(word);
        index += 1;
    }
    out.push('\n');
    out
}

/// `text` with spaces behind it, `columns` wide.
pub(super) fn padded(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// The last characters of a peer id, which distinguish peers (the first are the same for all).
pub(super) fn short_peer(peer: &str) -> String {
    match peer.len().checked_sub(8).and_then(|start| peer.get(start..)) {
        Some(end) if peer.len() > 12 => format!("…{end}"),
        _ => peer.to_owned(),
    }
}

/// Trust in a peer, from 0 to 1: `new` where it is low because little was checked so far, which is no distrust.
pub(super) fn trust(trust: f64, tasks_checked: u64) -> String {
    if is_newcomer(trust, tasks_checked) { "new".to_owned() } else { format!("{trust:.2}") }
}

/// `text`, cut to `limit` characters.
pub(super) fn shortened(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.to_owned();
    }
    text.chars().take(limit.saturating_sub(1)).chain(['…']).collect()
}

/// A duration with three digits and a suitable unit.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s >= 90.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), s % 60.0),
        s if s >= 1.0 => format!("{} s", three_digits(s)),
        s if s >= 1e-3 => format!("{} ms", three_digits(s * 1e3)),
        s => format!("{:.0} µs", s * 1e6),
    }
}

/// A number with about three digits.
pub(super) fn three_digits(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Columns that a text takes.
pub(super) fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_of_which_little_was_checked_is_new_and_a_distrusted_one_has_a_number() {
        let shown = |height, tasks_checked| trust(height, tasks_checked);
        assert_eq!((shown(0.1, 0), shown(0.33, 10)), ("new".to_owned(), "new".to_owned()));
        assert_eq!((shown(0.05, 0), shown(0.0, 0), shown(0.12, 500)), ("0.05".into(), "0.00".into(), "0.12".into()));
        assert_eq!((shown(0.55, 23), shown(1.0, 9000)), ("0.55".into(), "1.00".into()));
    }

    #[test]
    fn long_values_are_broken_at_spaces_and_numbers_stay_with_their_units() {
        let words = "x".repeat(60);
        let text = facts(&[("memory", format!("{words} 8.00 GiB of")), ("id", "short".to_owned())]);
        assert_eq!(text, format!("  memory  {words} 8.00 GiB\n          of\n  id      short\n"));
        let text = facts(&[("memory", format!("{words}xxxx 8.00 GiB of"))]);
        assert_eq!(text, format!("  memory  {words}xxxx\n          8.00 GiB of\n"));
        // The unit fits where the number's last column is the last that leaves room for it.
        assert!(facts(&[("memory", format!("{words}x 8.00 GiB"))]).lines().all(|line| width(line) <= 80));
    }
}

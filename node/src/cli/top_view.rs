//! The screen of `pangea top` as lines of text for a terminal of any size. Pure: the same state gives the same lines.

use pangea_client::JobStatus;
use pangea_units::ByteSize;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;

use super::table::{Align, padded, seconds, shortened, three_digits, trust, width};
use super::top_state::{NodeRow, SortKey, State, is_generation};

/// Keys, in one line of 80 columns.
pub(super) const HELP: &str = " sort: n name  m memory  t tok/s  u trust  r RTT  b link   ↑↓ scroll   q quit";

/// Lines that are neither nodes nor jobs: three of totals, the notice, two headings, an empty line, the keys.
const FIXED_LINES: usize = 8;

/// Characters of a bar of progress with its brackets.
const BAR_CHARS: usize = 16;

/// How text stands out.
#[derive(Clone, Copy)]
pub(super) struct Theme {
    /// Whether colours are used; the brightness of text is not a colour.
    pub(super) colours: bool,
}

impl Theme {
    fn coloured(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }
}

/// A column of a table.
struct Column<R> {
    heading: &'static str,
    align: Align,
    /// Smallest and largest number of characters.
    chars: (usize, usize),
    /// Columns of a lower rank are shown first.
    rank: usize,
    sorted_by: Option<SortKey>,
    cell: fn(&R) -> String,
}

impl<R> Column<R> {
    const fn new(
        heading: &'static str,
        align: Align,
        chars: (usize, usize),
        rank: usize,
        cell: fn(&R) -> String,
    ) -> Column<R> {
        Column { heading, align, chars, rank, sorted_by: None, cell }
    }

    const fn sorted_by(mut self, key: SortKey) -> Column<R> {
        self.sorted_by = Some(key);
        self
    }
}

/// The columns of nodes.
const NODE_COLUMNS: [Column<NodeRow>; 11] = [
    Column::new("NODE", Align::Left, (12, 24), 0, |node: &NodeRow| node.label.clone()).sorted_by(SortKey::Name),
    Column::new("STATE", Align::Left, (11, 11), 8, |node: &NodeRow| node.state.clone()),
    Column::new("DEVICE", Align::Left, (10, 16), 5, |node: &NodeRow| node.device.clone()),
    Column::new("LAYERS", Align::Left, (13, 30), 4, layers),
    Column::new("MEMORY", Align::Right, (8, 8), 2, |node: &NodeRow| bytes(node.memory_bytes))
        .sorted_by(SortKey::Memory),
    Column::new("GFLOP/s", Align::Right, (7, 7), 9, |node: &NodeRow| figure(node.gflops)),
    Column::new("TASKS", Align::Right, (5, 5), 10, |node: &NodeRow| {
        node.tasks_in_flight.map_or_else(unknown, |tasks| tasks.to_string())
    }),
    Column::new("TOK/S", Align::Right, (6, 6), 1, |node: &NodeRow| figure(node.tokens_per_s))
        .sorted_by(SortKey::Tokens),
    Column::new("TRUST", Align::Right, (5, 5), 6, |node: &NodeRow| {
        node.trust.map_or_else(unknown, |height| trust(height, node.tasks_checked))
    })
    .sorted_by(SortKey::Trust),
    Column::new("RTT", Align::Right, (7, 7), 3, |node: &NodeRow| {
        node.rtt_ms.map_or_else(unknown, |ms| seconds(ms / 1e3))
    })
    .sorted_by(SortKey::Rtt),
    Column::new("LINK", Align::Right, (10, 10), 7, |node: &NodeRow| rate_of_bytes(node.bytes_per_s))
        .sorted_by(SortKey::Link),
];

/// A job as its table shows it.
struct JobRow {
    id: u64,
    kind: String,
    subject: String,
    state: String,
    done: u64,
    total: u64,
    /// Speed of a running job, duration of one that ended.
    rate: String,
    /// Who computes a running job, what came of one that ended.
    by: String,
}

/// The columns of jobs.
const JOB_COLUMNS: [Column<JobRow>; 8] = [
    Column::new("JOB", Align::Right, (4, 6), 0, |job| job.id.to_string()),
    Column::new("KIND", Align::Left, (10, 10), 1, |job| job.kind.clone()),
    Column::new("ABOUT", Align::Left, (12, 24), 4, |job| job.subject.clone()),
    Column::new("STATE", Align::Left, (9, 9), 6, |job| job.state.clone()),
    Column::new("DONE", Align::Right, (9, 13), 2, done),
    Column::new("", Align::Left, (BAR_CHARS, BAR_CHARS), 7, bar),
    Column::new("RATE", Align::Right, (11, 11), 3, |job| job.rate.clone()),
    Column::new("BY, VERDICT", Align::Left, (17, 40), 5, |job| job.by.clone()),
];

/// The screen.
pub(super) fn lines(state: &State, columns: usize, rows: usize, theme: Theme) -> Vec<Line<'static>> {
    let room = rows.saturating_sub(FIXED_LINES);
    let (nodes, jobs) = (state.nodes(), job_rows(state));
    // Jobs get what the nodes leave, at least a third.
    let for_jobs = jobs.len().max(1).min(room / 3).max(room.saturating_sub(nodes.len()));
    let mut lines = totals(state, columns, theme);
    lines.push(notice(state, columns, theme));
    lines.extend(node_table(state, &nodes, columns, room - for_jobs, theme));
    lines.push(Line::default());
    lines.extend(job_table(&jobs, columns, for_jobs, theme));
    // The keys stay in the last line; a terminal that is too low loses lines above them.
    lines.truncate(rows.saturating_sub(1));
    lines.resize(rows.saturating_sub(1), Line::default());
    if rows > 0 {
        lines.push(Line::styled(shortened(HELP, columns), Style::new().add_modifier(Modifier::DIM)));
    }
    lines
}

/// As many parts as fit, whole: a number that is cut is another number.
fn fitted(parts: &[String], columns: usize) -> String {
    let mut line = String::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        let longer = if line.is_empty() { format!(" {part}") } else { format!("{line}   {part}") };
        if width(&longer) > columns {
            break;
        }
        line = longer;
    }
    line
}

fn totals(state: &State, columns: usize, theme: Theme) -> Vec<Line<'static>> {
    let status = &state.snapshot.status;
    let nodes = state.nodes();
    let absent = nodes.iter().filter(|node| !is_there(node)).count();
    let (sent, received) = state.traffic();
    let in_state = |wanted: &str| state.snapshot.jobs.iter().filter(|job| job.state == wanted).count();
    let first = [
        "pangea top".to_owned(),
        format!("{} at {}", shortened(&status.name, 24), shortened(&state.address, 30)),
        format!("up {}", seconds(status.uptime_s.floor())),
        if status.pool_key { "closed pool" } else { "OPEN pool" }.to_owned(),
    ];
    let second = [
        format!(
            "nodes {}{}",
            nodes.len(),
            if absent > 0 { format!(", {absent} not connected") } else { String::new() }
        ),
        format!("jobs {} running, {} waiting", in_state("running"), in_state("waiting")),
        format!("{} tok/s", three_digits(state.tokens_per_s())),
    ];
    let third = [
        format!("memory {} of {}", ByteSize(status.memory_used_bytes), ByteSize(status.memory_limit_bytes)),
        format!("sent {}, received {}", rate_of_bytes(sent), rate_of_bytes(received)),
        format!("{} tasks for peers", status.tasks_served),
    ];
    vec![
        Line::styled(fitted(&first, columns), theme.coloured(Color::Cyan).add_modifier(Modifier::BOLD)),
        Line::raw(fitted(&second, columns)),
        Line::raw(fitted(&third, columns)),
    ]
}

/// Why the figures are old, where they are.
fn notice(state: &State, columns: usize, theme: Theme) -> Line<'static> {
    match &state.lost {
        Some(why) => Line::styled(
            shortened(&format!(" LOST, trying again; old figures: {why}"), columns),
            theme.coloured(Color::Red).add_modifier(Modifier::BOLD),
        ),
        None => Line::default(),
    }
}

fn node_table(state: &State, nodes: &[NodeRow], columns: usize, rows: usize, theme: Theme) -> Vec<Line<'static>> {
    let widths = widths(&NODE_COLUMNS, columns);
    let mut lines = vec![heading(&NODE_COLUMNS, &widths, Some((state.sort, state.is_reversed)))];
    let has_state = widths.get(1).is_some_and(Option::is_some);
    let first = state.scrolled.min(nodes.len().saturating_sub(rows));
    let below = nodes.len().saturating_sub(first + rows);
    // The last line says what is below.
    let shown = if below > 0 { rows.saturating_sub(1) } else { rows };
    for node in nodes.iter().skip(first).take(shown) {
        let mut shown = node.clone();
        if !has_state && !is_there(node) {
            shown.layers = node.state.to_uppercase();
        }
        let mark = if node.is_master { "*" } else { " " };
        let style = match node.state.as_str() {
            "quarantined" => theme.coloured(Color::Red),
            _ if is_there(node) => Style::new(),
            _ => Style::new().add_modifier(Modifier::DIM),
        };
        lines.push(Line::styled(row(&NODE_COLUMNS, &widths, &shown, mark), style));
    }
    if below > 0 && rows > 0 {
        lines.push(Line::raw(shortened(&format!("  and {} more: ↓", below + 1), columns)));
    }
    lines
}

fn job_table(jobs: &[JobRow], columns: usize, rows: usize, theme: Theme) -> Vec<Line<'static>> {
    let widths = widths(&JOB_COLUMNS, columns);
    let mut lines = vec![heading(&JOB_COLUMNS, &widths, None)];
    for job in jobs.iter().take(rows) {
        let style = match job.state.as_str() {
            "running" => theme.coloured(Color::Green),
            "failed" => theme.coloured(Color::Red),
            "waiting" => Style::new(),
            _ => Style::new().add_modifier(Modifier::DIM),
        };
        lines.push(Line::styled(row(&JOB_COLUMNS, &widths, job, " "), style));
    }
    if jobs.is_empty() {
        lines.push(Line::raw("  no jobs yet"));
    }
    lines
}

fn job_rows(state: &State) -> Vec<JobRow> {
    state.jobs().into_iter().map(|job| job_row(state, job)).collect()
}

fn job_row(state: &State, job: &JobStatus) -> JobRow {
    let unit = if is_generation(job) { "tok/s" } else { "tasks/s" };
    let rate = match (job.started_unix_ms, job.ended_unix_ms) {
        // The node counts milliseconds.
        (Some(started), Some(ended)) if ended <= started => "< 1 ms".to_owned(),
        (Some(started), Some(ended)) => seconds(ended.saturating_sub(started) as f64 / 1e3),
        _ => state.rate(job).map_or_else(unknown, |rate| format!("{} {unit}", short_figure(rate))),
    };
    let outcome = job.verdict.clone().or_else(|| job.error.as_ref().map(|error| error.kind.clone()));
    JobRow {
        id: job.id,
        kind: job.kind.clone(),
        subject: job.subject.clone(),
        state: job.state.clone(),
        done: job.progress.done,
        total: job.progress.total,
        rate,
        by: match job.state.as_str() {
            "running" => state.worker_names(job).join(if is_generation(job) { " → " } else { ", " }),
            _ => outcome.unwrap_or_default(),
        },
    }
}

/// Characters of each column; `None` where there is no room for it. What is left over widens all columns that can be
/// wider.
fn widths<R>(table: &[Column<R>], columns: usize) -> Vec<Option<usize>> {
    let mut ranked: Vec<usize> = (0..table.len()).collect();
    ranked.sort_by_key(|index| table[*index].rank);
    let mut widths = vec![None; table.len()];
    // Every column has a space before it.
    let mut left = columns.saturating_sub(1);
    for index in ranked {
        let (smallest, _) = table[index].chars;
        if smallest + 1 > left {
            break;
        }
        widths[index] = Some(smallest);
        left -= smallest + 1;
    }
    let mut is_wider = true;
    while is_wider {
        is_wider = false;
        for (chars, column) in widths.iter_mut().zip(table) {
            if let Some(chars) = chars.as_mut().filter(|chars| **chars < column.chars.1 && left > 0) {
                *chars += 1;
                left -= 1;
                is_wider = true;
            }
        }
    }
    widths
}

fn heading<R>(table: &[Column<R>], widths: &[Option<usize>], sorted: Option<(SortKey, bool)>) -> Line<'static> {
    let cells = table.iter().map(|column| match sorted {
        Some((key, is_reversed)) if column.sorted_by == Some(key) => {
            format!("{}{}", column.heading, if is_reversed { '▲' } else { '▼' })
        }
        _ => column.heading.to_owned(),
    });
    Line::styled(aligned(table, widths, cells, " "), Style::new().add_modifier(Modifier::BOLD))
}

fn row<R>(table: &[Column<R>], widths: &[Option<usize>], row: &R, mark: &str) -> String {
    aligned(table, widths, table.iter().map(|column| (column.cell)(row)), mark)
}

fn aligned<R>(
    table: &[Column<R>],
    widths: &[Option<usize>],
    cells: impl Iterator<Item = String>,
    mark: &str,
) -> String {
    let mut line = mark.to_owned();
    for ((column, chars), cell) in table.iter().zip(widths).zip(cells) {
        let Some(chars) = *chars else { continue };
        line.push_str(if line == mark { "" } else { " " });
        match column.align {
            Align::Left => line.push_str(&padded(&shortened(&cell, chars), chars)),
            Align::Right => line.push_str(&format!("{cell:>chars$}")),
        }
    }
    line.truncate(line.trim_end().len());
    line
}

/// Whether a node is the answering one, or connected to it.
fn is_there(node: &NodeRow) -> bool {
    matches!(node.state.as_str(), "" | "connected")
}

fn unknown() -> String {
    "-".to_owned()
}

fn layers(node: &NodeRow) -> String {
    node.layers.clone()
}

fn figure(value: Option<f64>) -> String {
    value.map_or_else(unknown, three_digits)
}

/// A number in four characters at most, below ten thousand.
fn short_figure(value: f64) -> String {
    if value >= 9.995 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn bytes(value: Option<u64>) -> String {
    value.map_or_else(unknown, |bytes| ByteSize(bytes).to_string())
}

fn rate_of_bytes(value: Option<f64>) -> String {
    value.map_or_else(unknown, |bytes| format!("{}/s", ByteSize(bytes as u64)))
}

fn done(job: &JobRow) -> String {
    match (job.done, job.total) {
        (0, 0) => unknown(),
        (done, 0) => done.to_string(),
        (done, total) => format!("{done}/{total}"),
    }
}

fn bar(job: &JobRow) -> String {
    let inner = BAR_CHARS - 2;
    if job.total == 0 {
        return String::new();
    }
    let filled = (inner as u128 * u128::from(job.done.min(job.total)) / u128::from(job.total)) as usize;
    format!("[{}{}]", "=".repeat(filled), " ".repeat(inner - filled))
}

#[cfg(test)]
mod tests {
    use pangea_client::PeerStatus;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::widgets::Paragraph;

    use super::super::top_state::Event;
    use super::super::top_state::tests::watched;
    use super::*;

    const PLAIN: Theme = Theme { colours: false };

    /// The screen as a terminal shows it.
    fn screen(state: &State, columns: u16, rows: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        let text = lines(state, columns.into(), rows.into(), PLAIN);
        assert!(text.iter().all(|line| line.width() <= columns.into()), "{text:#?}");
        assert_eq!(text.len(), usize::from(rows));
        terminal.draw(|frame| frame.render_widget(Paragraph::new(text), frame.area())).unwrap();
        let shown = terminal.backend().to_string();
        // Without the quotes around each line and the spaces at its end, which nobody can review.
        shown.lines().map(|line| line.trim_matches('"').trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn a_pool_fits_an_ordinary_terminal_and_fills_a_wide_one() {
        let mut state = watched();
        insta::assert_snapshot!("top_80x24", screen(&state, 80, 24));
        insta::assert_snapshot!("top_120x40", screen(&state, 120, 40));
        state.handle(Event::Lost("cannot reach a node at 127.0.0.1:8080: Connection refused".to_owned()));
        state.handle(Event::Sort(SortKey::Memory));
        insta::assert_snapshot!("top_lost_80x24", screen(&state, 80, 24));
    }

    #[test]
    fn many_nodes_are_scrolled_and_leave_a_third_to_the_jobs() {
        let mut state = watched();
        for number in 10..40 {
            state.snapshot.peers.push(PeerStatus {
                peer: format!("12D3KooWnumber{number}"),
                name: format!("node{number}"),
                state: "connected".to_owned(),
                ..PeerStatus::default()
            });
        }
        let text = screen(&state, 80, 24);
        assert!(text.contains("and 22 more: ↓") && text.contains("generation"), "{text}");
        for _ in 0..40 {
            state.handle(Event::Scroll { down: true });
        }
        let text = screen(&state, 80, 24);
        assert!(text.contains("node39") && text.contains("server") && !text.contains("more: ↓"), "{text}");
    }

    #[test]
    fn every_size_is_drawn_without_an_error_and_without_cutting_a_number() {
        let state = watched();
        for columns in [1, 10, 30, 40, 60, 79, 80, 81, 100, 119, 200, 500] {
            for rows in [1, 2, 5, 8, 9, 12, 24, 60] {
                let text = screen(&state, columns, rows);
                for (begun, whole) in
                    [("8.00", "8.00 GiB"), ("1.26", "1.26 GiB of 8.00 GiB"), ("152", "152 µs"), ("60/", "60/64")]
                {
                    let (parts, wholes) = (text.matches(begun).count(), text.matches(whole).count());
                    assert_eq!(parts, wholes, "{columns} x {rows}: {whole} is cut\n{text}");
                }
            }
        }
        assert!(width(HELP) <= 80);
    }

    #[test]
    fn colours_are_used_only_where_they_are_wanted() {
        let mut state = watched();
        state.handle(Event::Lost("gone".to_owned()));
        let has_colours = |colours| {
            let text = lines(&state, 120, 40, Theme { colours });
            text.iter().any(|line| line.style.fg.is_some() || line.spans.iter().any(|span| span.style.fg.is_some()))
        };
        assert!(has_colours(true) && !has_colours(false));
    }
}

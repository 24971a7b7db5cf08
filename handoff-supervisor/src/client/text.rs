//! How things are written for people: 80 columns, colour where there is a terminal that wants it.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use console::{Term, measure_text_width, strip_ansi_codes, style};

use crate::cli::Which;
use crate::config;

/// How many columns a line has at most.
pub(crate) const WIDTH: usize = 80;
/// Where the values of a [`Sheet`] begin.
const INDENT: usize = 13;
/// The longest that is shown of what a daemon calls its build, or of another text of any length.
const LONG: usize = 400;
/// The last second that RFC 3339 has a name for.
const LAST_SECOND: u64 = 253_402_300_799;

/// Whether words have colours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    /// As standard output wants it: a terminal, and no `NO_COLOR`.
    pub(crate) fn of_stdout() -> Self {
        Self(Term::stdout().features().colors_supported())
    }

    pub(crate) fn good(self, word: &str) -> String {
        style(word).green().force_styling(self.0).to_string()
    }

    pub(crate) fn warn(self, word: &str) -> String {
        style(word).yellow().force_styling(self.0).to_string()
    }

    pub(crate) fn bad(self, word: &str) -> String {
        style(word).red().force_styling(self.0).to_string()
    }
}

/// Fields below each other: labels to the left, values to the right of them.
#[derive(Debug, Default)]
pub(super) struct Sheet(pub(super) String);

impl Sheet {
    /// A field; without a label, more of the one before.
    pub(super) fn field(&mut self, label: &str, value: &str) {
        let mut label = label;
        for line in wrap(value, WIDTH - INDENT) {
            let _ = writeln!(self.0, "{label:INDENT$}{line}");
            label = "";
        }
    }

    /// Between groups of fields.
    pub(super) fn gap(&mut self) {
        self.0.push('\n');
    }
}

/// A column of a [`table`].
pub(super) struct Column {
    pub(super) head: &'static str,
    /// How wide it may get. A longer cell has lines of its own.
    pub(super) most: usize,
    /// Whether its cells end below each other.
    pub(super) right: bool,
}

/// Rows with a heading, the columns as wide as they must be.
pub(super) fn table(columns: &[Column], rows: &[Vec<String>]) -> String {
    let width = |(place, column): (usize, &Column)| {
        let cells =
            rows.iter().filter_map(|row| row.get(place)).map(|cell| measure_text_width(cell));
        let fitting = cells.filter(|width| *width <= column.most).max();
        fitting.unwrap_or(0).max(column.head.len())
    };
    let widths: Vec<usize> = columns.iter().enumerate().map(width).collect();
    let head = columns.iter().map(|column| column.head.to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let (mut line, mut start) = (String::new(), 0);
        for ((cell, width), column) in row.iter().zip(&widths).zip(columns) {
            let pad = |text: &mut String, to: usize| {
                let blanks = to.saturating_sub(measure_text_width(text));
                text.extend(std::iter::repeat_n(' ', blanks));
            };
            pad(&mut line, start);
            if measure_text_width(cell) <= *width {
                let before = if column.right { width - measure_text_width(cell) } else { 0 };
                pad(&mut line, start + before);
                line += cell;
            } else {
                for part in wrap(cell, WIDTH - start) {
                    let _ = writeln!(text, "{line}{part}");
                    line = " ".repeat(start);
                }
            }
            start += width + 2;
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Lines of at most `width` columns. A word that is longer is broken, behind a slash if it has one.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let mut word = word;
        if !line.is_empty() && measure_text_width(&line) + 1 + measure_text_width(word) > width {
            lines.push(std::mem::take(&mut line));
        }
        while measure_text_width(word) > width {
            let (end, _) = word.char_indices().nth(width).unwrap_or((word.len(), ' '));
            let end =
                word[..end].rfind('/').filter(|slash| *slash > 0).map_or(end, |slash| slash + 1);
            lines.push(word[..end].to_owned());
            word = &word[end..];
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// Wraps each line of a text, which keeps the blanks it begins with.
pub(super) fn paragraphs(text: &str) -> String {
    let mut all = String::new();
    for line in text.lines() {
        let indent = (line.len() - line.trim_start_matches(' ').len()).min(WIDTH / 2);
        for part in wrap(line, WIDTH - indent) {
            let _ = writeln!(all, "{}", format_args!("{:indent$}{part}", ""));
        }
    }
    all
}

/// What somebody else wrote, without what would move the cursor or change the colours of a terminal, and
/// not too much of it.
pub(crate) fn clean(text: &str) -> String {
    let plain = strip_ansi_codes(text.trim_end());
    let mut chars = plain.chars();
    let mut shown = String::new();
    for char in chars.by_ref().take(LONG) {
        match char {
            '\t' | '\n' | '\r' => shown.push(' '),
            char if char.is_control() => shown.extend(char.escape_default()),
            char => shown.push(char),
        }
    }
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

/// A path, as [`clean`] shows text.
pub(super) fn path(path: &Path) -> String {
    clean(&path.to_string_lossy())
}

/// A duration: `812 ms`, `12.3 s`, `4m 12s`, `3d 4h`.
pub(super) fn span(ms: u64) -> String {
    let (seconds, minutes, hours) = (ms / 1_000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{seconds}.{} s", ms % 1_000 / 100),
        60_000..3_600_000 => format!("{minutes}m {}s", seconds % 60),
        3_600_000..86_400_000 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{}d {}h", hours / 24, hours % 24),
    }
}

/// A moment, in UTC.
pub(super) fn time(at_ms: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs((at_ms / 1_000).min(LAST_SECOND));
    humantime::format_rfc3339_seconds(at).to_string()
}

/// The moment that is now, as a supervisor tells moments.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// How much is done, as `█████░░░`.
pub(super) fn bar(done: u32, all: u32, width: usize) -> String {
    let share = f64::from(done.min(all)) / f64::from(all.max(1));
    let full = (share * width as f64) as usize;
    (0..width).map(|place| if place < full { '█' } else { '░' }).collect()
}

/// How to say another verb to the same supervisor.
#[derive(Clone, Debug)]
pub(super) struct Again(String);

impl Again {
    pub(super) fn to(which: &Which) -> Self {
        Self(match &which.socket {
            Some(socket) => format!(" --socket {}", quoted(socket)),
            None if which.config == Path::new(config::DEFAULT) => String::new(),
            None => format!(" --config {}", quoted(&which.config)),
        })
    }

    /// The command, as a text shows it.
    pub(super) fn say(&self, verb: &str) -> String {
        format!("`handoff {verb}{}`", self.0)
    }
}

/// A path as a shell takes it.
pub(crate) fn quoted(file: &Path) -> String {
    let text = path(file);
    let plain = |char: char| char.is_alphanumeric() || "/._-+:@%,".contains(char);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// To standard output. Whether somebody still reads it.
pub(crate) fn out(text: &str) -> bool {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
}

/// To standard output, for programs: one line.
pub(crate) fn json(value: &impl serde::Serialize) -> bool {
    serde_json::to_string(value).is_ok_and(|line| out(&(line + "\n")))
}

/// To standard error.
pub(super) fn tell(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_broken_behind_a_slash() {
        let lines = wrap("to /opt/kv/releases/1.4.2/kv and on", 12);
        assert_eq!(lines, ["to", "/opt/kv/", "releases/", "1.4.2/kv and", "on"]);
        assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(wrap("/éééééé/x", 4), ["/ééé", "ééé/", "x"]);
        assert_eq!(wrap("  ", 4), [""]);
        let far = " ".repeat(100) + &"x".repeat(50);
        assert_eq!(paragraphs(&far).lines().map(str::len).collect::<Vec<_>>(), [80, 50]);
    }

    #[test]
    fn colour_takes_no_columns() {
        let paint = Paint(true);
        let text = format!("{} {}", paint.good("good"), paint.bad("bad"));
        assert!(text.contains('\u{1b}'));
        assert_eq!(wrap(&text, 8), std::slice::from_ref(&text));
        assert_eq!(wrap(&text, 7).len(), 2);
        assert_eq!(Paint(false).warn("word"), "word");
    }

    #[test]
    fn what_others_wrote_does_not_reach_the_terminal_as_it_is() {
        assert_eq!(clean("\u{1b}[31mred\u{1b}[0m\tbell\u{7}"), "red bell\\u{7}");
        assert_eq!(clean(&"x".repeat(500)).chars().count(), LONG + 1);
    }

    #[test]
    fn durations_and_moments_are_readable() {
        let spans = [0, 999, 1_000, 59_999, 60_000, 252_000, 15_120_000, 273_600_000].map(span);
        let expected = ["0 ms", "999 ms", "1.0 s", "59.9 s", "1m 0s", "4m 12s", "4h 12m", "3d 4h"];
        assert_eq!(spans, expected);
        assert_eq!(time(1_700_000_000_999), "2023-11-14T22:13:20Z");
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn a_cell_that_is_too_long_has_a_line_of_its_own() {
        let column = |head, most| Column { head, most, right: false };
        let columns = [column("NAME", 6), Column { head: "N", most: 4, right: true }];
        let rows =
            [["http", "12"], ["a-long-name", "3"]].map(|row| row.map(str::to_owned).to_vec());
        let expected = "NAME   N\nhttp  12\na-long-name\n       3\n";
        assert_eq!(table(&columns, &rows), expected);
    }

    #[test]
    fn a_command_can_be_copied() {
        let mut which = Which { config: config::DEFAULT.into(), socket: None, json: false };
        assert_eq!(Again::to(&which).say("abort"), "`handoff abort`");
        which.config = "/tmp/my daemon's/kv.toml".into();
        let said = r"`handoff abort --config '/tmp/my daemon'\''s/kv.toml'`";
        assert_eq!(Again::to(&which).say("abort"), said);
        which.socket = Some("/run/kv.sock".into());
        assert_eq!(Again::to(&which).say("status"), "`handoff status --socket /run/kv.sock`");
    }
}

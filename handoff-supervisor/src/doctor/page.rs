//! What is printed: a line for each thing that was looked at, and what to do below those that are not good.

use std::fmt::Write as _;

use serde::Serialize;

use crate::client::text::{self, Paint, WIDTH, clean, wrap};

/// Where text begins.
const INDENT: usize = 6;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Good,
    /// It may do harm one day.
    Warn,
    /// It is broken.
    Fail,
}

/// What was found of one thing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Line {
    pub(super) level: Level,
    /// What was looked at, in one word that stays the same.
    pub(super) about: &'static str,
    pub(super) text: String,
    /// What to do; none where it is good.
    pub(super) remedy: Option<String>,
}

impl Line {
    pub(super) fn good(about: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Good, about, text: text.into(), remedy: None }
    }

    pub(super) fn warn(
        about: &'static str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Warn, about, text: text.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn fail(
        about: &'static str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Fail, ..Self::warn(about, text, remedy) }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Page {
    /// Nothing is broken. There may be warnings.
    good: bool,
    lines: Vec<Line>,
}

impl Page {
    pub(super) fn new(lines: Vec<Line>) -> Self {
        Self { good: lines.iter().all(|line| line.level != Level::Fail), lines }
    }

    pub(super) fn good(&self) -> bool {
        self.good
    }

    pub(super) fn print(&self, json: bool) {
        // Nobody may read it any more.
        let _ = if json { text::json(self) } else { text::out(&self.text(Paint::of_stdout())) };
    }

    /// As a person reads it.
    pub(super) fn text(&self, paint: Paint) -> String {
        let mut text = String::new();
        for Line { level, text: found, remedy, .. } in &self.lines {
            let word = match level {
                Level::Good => paint.good("good"),
                Level::Warn => paint.warn("warn"),
                Level::Fail => paint.bad("FAIL"),
            };
            let mut start = format!("{word}  ");
            for part in wrap(&clean(found), WIDTH - INDENT) {
                let _ = writeln!(text, "{start}{part}");
                start = " ".repeat(INDENT);
            }
            start = format!("{:INDENT$}-> ", "");
            for part in remedy.iter().flat_map(|remedy| wrap(&clean(remedy), WIDTH - INDENT - 3)) {
                let _ = writeln!(text, "{start}{part}");
                start = " ".repeat(INDENT + 3);
            }
        }
        let count = |level| self.lines.iter().filter(|line| line.level == level).count();
        let (broken, warnings) = (count(Level::Fail), count(Level::Warn));
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let warned = match warnings {
            0 => String::new(),
            many => format!(", {many} warning{}", plural(many)),
        };
        let _ = match broken {
            0 => writeln!(text, "\nnothing is broken{warned}"),
            many => writeln!(text, "\n{many} thing{} broken{warned}", plural(many)),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fits_80_columns_and_has_colours_only_where_they_are_wanted() {
        let long = "a file system that is shared with other machines ".repeat(3);
        let page = Page::new(vec![
            Line::good("lock", "pid 7 holds the lock"),
            Line::warn("disk", long.clone(), long.clone()),
            Line::fail("disk", format!("/{}", "directory/".repeat(12)), "make room"),
        ]);
        assert!(!page.good());
        let text = page.text(Paint(false));
        assert!(text.starts_with("good  pid 7 holds the lock\nwarn  a file system"), "{text}");
        assert!(text.ends_with("\n      -> make room\n\n1 thing broken, 1 warning\n"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(page.text(Paint(true)).starts_with("\u{1b}[32mgood\u{1b}[0m  pid 7"));
    }

    #[test]
    fn warnings_break_nothing() {
        let page = Page::new(vec![Line::warn("disk", "it is \u{1b}[2J small", "buy another")]);
        assert!(page.good());
        assert!(page.text(Paint(false)).starts_with("warn  it is small\n"));
        assert!(page.text(Paint(false)).ends_with("\nnothing is broken, 1 warning\n"));
        let json = serde_json::to_value(&page).unwrap();
        assert_eq!(json["lines"][0]["level"], "warn");
        assert_eq!(json["good"], true);
    }
}

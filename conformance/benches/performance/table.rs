//! The table: a row for each thing measured, ours beside the peer's and the floor.

use std::fmt;

use serde::Serialize;

/// What a number counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    Nanoseconds,
    Count,
    /// Something by itself, as it was without a burden.
    Times,
}

/// One thing measured, in one run, in turn.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub section: &'static str,
    pub name: String,
    pub unit: Unit,
    pub ours: f64,
    /// The crate beyond-handoff 0.1.4.
    pub peer: Option<f64>,
    /// What it cannot be better than.
    pub floor: Option<f64>,
    /// How many floors it is to be at most; without a floor, the bound itself.
    pub reach: Option<f64>,
    /// More is better.
    pub rate: bool,
}

impl Row {
    pub fn new(section: &'static str, name: impl Into<String>, unit: Unit, ours: f64) -> Self {
        let name = name.into();
        Self { section, name, unit, ours, peer: None, floor: None, reach: None, rate: false }
    }

    pub fn peer(mut self, peer: f64) -> Self {
        self.peer = Some(peer);
        self
    }

    pub fn floor(mut self, floor: f64) -> Self {
        self.floor = Some(floor);
        self
    }

    pub fn reach(mut self, reach: f64) -> Self {
        self.reach = Some(reach);
        self
    }

    pub fn rate(mut self) -> Self {
        self.rate = true;
        self
    }

    fn in_floors(&self, value: f64) -> Option<f64> {
        self.floor.filter(|floor| *floor > 0.0).map(|floor| value / floor)
    }

    /// Whether it is where it is to be, where that is said.
    pub fn reached(&self) -> Option<bool> {
        let value = self.in_floors(self.ours).unwrap_or(self.ours);
        self.reach.map(|reach| if self.rate { value >= reach } else { value <= reach })
    }

    fn shown(&self, value: Option<f64>) -> String {
        let Some(value) = value else { return String::new() };
        match self.unit {
            Unit::Nanoseconds if value < 1e3 => format!("{value:.1} ns"),
            Unit::Nanoseconds if value < 1e6 => format!("{:.2} µs", value / 1e3),
            Unit::Nanoseconds if value < 1e9 => format!("{:.2} ms", value / 1e6),
            Unit::Nanoseconds => format!("{:.2} s", value / 1e9),
            Unit::Count if value >= 1e6 => format!("{:.2} M", value / 1e6),
            Unit::Count if value.fract() < 0.05 => format!("{value:.0}"),
            Unit::Count => format!("{value:.1}"),
            Unit::Times => format!("{value:.2} x"),
        }
    }
}

impl fmt::Display for Row {
    /// 80 columns.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = |value: Option<f64>| {
            let times = value.and_then(|value| self.in_floors(value));
            times.map_or_else(String::new, |it| {
                if it < 100.0 { format!("{it:.2}") } else { format!("{it:.0}") }
            })
        };
        let reach = self.reach.map_or_else(String::new, |it| {
            if it < 1e6 { format!("{it}") } else { format!("{}M", it / 1e6) }
        });
        let missed = if self.reached() == Some(false) { "!" } else { "" };
        write!(
            f,
            "{:<32}{:>10}{:>10}{:>10}{:>7}{:>6}{:>4}{:>1}",
            self.name,
            self.shown(Some(self.ours)),
            self.shown(self.peer),
            self.shown(self.floor),
            times(Some(self.ours)),
            times(self.peer),
            reach,
            missed,
        )
    }
}

/// The rows, shown as they come.
pub struct Table {
    pub rows: Vec<Row>,
    /// Prints nothing but the rows as JSON, at the end.
    json: bool,
}

impl Table {
    pub fn new(json: bool) -> Self {
        if !json {
            println!(
                "{:<32}{:>10}{:>10}{:>10}{:>7}{:>6}{:>4}",
                "", "ours", "peer", "floor", "ours/", "peer/", "aim"
            );
        }
        Self { rows: Vec::new(), json }
    }

    pub fn section(&self, title: &str) {
        if !self.json {
            println!("\n{title}");
        }
    }

    pub fn push(&mut self, row: Row) {
        if !self.json {
            println!("{row}");
        }
        self.rows.push(row);
    }

    /// Something that is not measured here, and why.
    pub fn skip(&self, what: &str) {
        eprintln!("({what})");
    }

    pub fn end(self) {
        if self.json {
            println!("{}", serde_json::to_string_pretty(&self.rows).expect("plain data"));
        } else {
            let missed = self.rows.iter().filter(|row| row.reached() == Some(false)).count();
            println!("\n`ours/` and `peer/` are in floors. {missed} rows miss their aim (!).");
        }
    }
}

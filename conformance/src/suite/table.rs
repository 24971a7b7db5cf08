//! Scenarios by adapters.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{AT_A_TIME, Adapter, Role, Scenario, Verdict, scenarios};

/// How wide a line is.
const WIDTH: usize = 80;

/// Which scenarios run, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only those whose name holds these words, or which prove this clause; all, if there are none.
    pub only: Vec<String>,
    /// How many run at a time. They wait more than they work.
    pub jobs: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { only: Vec::new(), jobs: AT_A_TIME }
    }
}

impl Options {
    fn wants(&self, scenario: &Scenario) -> bool {
        let meant = |words: &String| {
            scenario.clauses.contains(&words.as_str()) || scenario.name.contains(words.as_str())
        };
        self.only.is_empty() || self.only.iter().any(meant)
    }
}

/// What one scenario came to on one adapter.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The adapter.
    pub adapter: &'static str,
    /// Whether it passed.
    pub verdict: Verdict,
    /// What was seen; why, where it failed.
    pub seen: String,
    /// How long it took.
    pub millis: u64,
}

/// One scenario on all adapters.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What an adapter does that passes.
    pub name: &'static str,
    /// The clauses that it proves.
    pub clauses: &'static [&'static str],
    /// Whom it is about.
    pub role: Role,
    /// In the order of the adapters.
    pub cells: Vec<Cell>,
}

/// The whole of it. Its text is a table that fits 80 columns, and what failed behind it.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The adapters.
    pub adapters: Vec<&'static str>,
    /// How many scenarios have passed, on all adapters together.
    pub passed: usize,
    /// How many have failed.
    pub failed: usize,
    /// How many say nothing of their adapter.
    pub skipped: usize,
    /// How long all of it took.
    pub millis: u64,
    /// The scenarios.
    pub rows: Vec<Row>,
}

/// Runs scenarios on adapters. `on` is told of each as it ends, and of how many there are.
///
/// To be called in a program that called [`play`](super::play) first.
pub fn run(
    adapters: &[&'static dyn Adapter],
    options: &Options,
    on: impl FnMut(&Scenario, &Cell, usize) + Send,
) -> Table {
    let start = Instant::now();
    let scenarios: Vec<_> = scenarios().into_iter().filter(|it| options.wants(it)).collect();
    let all = scenarios.len() * adapters.len();
    let (next, on) = (AtomicUsize::new(0), Mutex::new(on));
    let cells = Mutex::new(vec![None; all]);
    thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, all.max(1)) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(scenario) = scenarios.get(place / adapters.len().max(1)) else {
                        return;
                    };
                    let cell = cell(scenario, adapters[place % adapters.len()]);
                    (*lock(&on))(scenario, &cell, all);
                    lock(&cells)[place] = Some(cell);
                }
            });
        }
    });
    let mut cells =
        cells.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten();
    let rows: Vec<Row> = scenarios
        .iter()
        .map(|&Scenario { name, clauses, role, .. }| {
            let cells = cells.by_ref().take(adapters.len()).collect();
            Row { name, clauses, role, cells }
        })
        .collect();
    let count = |verdict| {
        rows.iter().flat_map(|row| &row.cells).filter(|cell| cell.verdict == verdict).count()
    };
    Table {
        adapters: adapters.iter().map(|adapter| adapter.name()).collect(),
        passed: count(Verdict::Pass),
        failed: count(Verdict::Fail),
        skipped: count(Verdict::Skip),
        millis: millis(start),
        rows,
    }
}

fn cell(scenario: &Scenario, adapter: &'static dyn Adapter) -> Cell {
    let start = Instant::now();
    let (verdict, seen) = scenario.run(adapter);
    Cell { adapter: adapter.name(), verdict, seen, millis: millis(start) }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A letter for each adapter, and two columns.
        let letters = || ('a'..='z').cycle();
        for (letter, adapter) in letters().zip(&self.adapters) {
            writeln!(f, "  {letter}  {adapter}")?;
        }
        writeln!(f, "\n  .  as it should be    F  failed    -  says nothing of this one")?;
        let cells = 2 * self.adapters.len();
        for role in Role::ALL {
            let rows: Vec<_> = self.rows.iter().filter(|row| row.role == role).collect();
            if rows.is_empty() {
                continue;
            }
            let letters: Vec<_> =
                letters().take(self.adapters.len()).map(|it| it.to_string()).collect();
            let title = role.title();
            writeln!(f, "\n{title:<0$} {1}", WIDTH - cells, letters.join(" "))?;
            for row in rows {
                let (name, clauses) = (row.name, row.clauses.join(" "));
                let room = WIDTH.saturating_sub(2 + clauses.chars().count() + 1 + cells);
                write!(f, "  {name:<room$} {clauses}")?;
                for cell in &row.cells {
                    let sign = match cell.verdict {
                        Verdict::Pass => '.',
                        Verdict::Fail => 'F',
                        Verdict::Skip => '-',
                    };
                    write!(f, " {sign}")?;
                }
                writeln!(f)?;
            }
        }
        for row in &self.rows {
            for cell in row.cells.iter().filter(|cell| cell.verdict == Verdict::Fail) {
                writeln!(f, "\n{}, {}: {}", cell.adapter, row.role.name(), row.name)?;
                writeln!(f, "{}", cell.seen.trim_end())?;
            }
        }
        let seconds = Duration::from_millis(self.millis).as_secs_f64();
        writeln!(
            f,
            "\n{} scenarios on {} adapters: {} passed, {} failed, {} skipped, in {seconds:.1} s",
            self.rows.len(),
            self.adapters.len(),
            self.passed,
            self.failed,
            self.skipped,
        )
    }
}

impl Role {
    const fn title(self) -> &'static str {
        match self {
            Self::Incumbent => "An incumbent, met by the probe",
            Self::Successor => "A successor, started by the probe",
            Self::Supervisor => "A supervisor, with the probe on both sides",
            Self::Handoff => "Handoffs among them",
        }
    }
}

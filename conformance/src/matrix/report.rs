//! What came of all the runs, for people.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use serde::Serialize;

use super::run::{Blow, Case, Ran, Role, Step, Strike};
use super::{Place, Shortage};

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::S => "S",
            Self::O => "O",
            Self::N => "N",
            Self::Restarted => "S'",
            Self::Later => "a later daemon",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.role, self.moment, self.what)?;
        if self.nth > 1 { write!(f, " {}", self.nth) } else { Ok(()) }
    }
}

impl Blow {
    /// What it is called, in one word.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Exit => "exit".into(),
            Self::Kill => "kill".into(),
            Self::Stop(ms) => format!("stop-{}s", ms / 1000),
            Self::Stall(ms) => format!("stall-{}s", ms / 1000),
            Self::NoDescriptors(_) => "no-fds".into(),
            Self::LockHeld(_) => "lock-held".into(),
            Self::NoBinary(_) => "no-binary".into(),
            Self::Lacks(Shortage::Full, place, _) => format!("full-{}", place.name()),
            Self::Lacks(Shortage::ReadOnly, place, _) => format!("read-only-{}", place.name()),
            Self::Abort => "abort".into(),
        }
    }
}

impl Place {
    const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Run => "run",
            Self::State => "state",
        }
    }
}

impl Strike {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}: {} {}", self.at, self.on, self.blow.name())
    }
}

/// What all runs together came to.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Totals {
    /// Runs.
    pub runs: u64,
    /// Blows that were dealt.
    pub faults: u64,
    /// Runs in which none of theirs came, because the step was not taken this time.
    pub idle: u64,
    /// Handoffs that were begun.
    pub handoffs: u64,
    /// Requests that were made.
    pub requests: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged writes that were lost (I3).
    pub lost: u64,
    /// Requests that were refused or not answered (I4).
    pub refused: u64,
    /// Requests that a struck process had accepted, and took with it.
    pub cut: u64,
    /// The longest time in which nobody was served, in milliseconds (I5).
    pub gap: u64,
    /// Runs in which something was wrong.
    pub failed: u64,
}

/// What came of the runs, fault by step.
#[derive(Debug, Default)]
pub struct Table {
    cells: BTreeMap<Step, Vec<(Role, Blow, Cell)>>,
    /// All runs together.
    pub totals: Totals,
    /// Those in which something was wrong.
    pub failed: Vec<(Case, Result<Ran, String>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cell {
    Good,
    Bad,
    Idle,
}

impl Table {
    /// Takes in a run.
    pub fn add(&mut self, case: Case, ran: io::Result<Ran>) {
        let totals = &mut self.totals;
        totals.runs += 1;
        let cell = match &ran {
            Ok(ran) => {
                totals.faults += u64::from(ran.struck);
                totals.handoffs += u64::from(ran.handoffs);
                totals.requests += ran.requests;
                totals.acknowledged += ran.acknowledged;
                totals.lost += ran.lost;
                totals.refused += ran.refused;
                totals.cut += ran.cut;
                totals.gap = totals.gap.max(ran.gap);
                match (ran.problems.is_empty(), ran.struck) {
                    (false, _) => Cell::Bad,
                    (true, 0) if !case.strikes.is_empty() => Cell::Idle,
                    (true, _) => Cell::Good,
                }
            }
            Err(_) => Cell::Bad,
        };
        totals.failed += u64::from(cell == Cell::Bad);
        totals.idle += u64::from(cell == Cell::Idle);
        if let [Strike { at, on, blow }] = &case.strikes[..] {
            self.cells.entry(at.clone()).or_default().push((*on, *blow, cell));
        }
        if cell == Cell::Bad {
            self.failed.push((case, ran.map_err(|error| error.to_string())));
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (step, cells) in &self.cells {
            let count = |wanted: Cell| cells.iter().filter(|(.., cell)| *cell == wanted).count();
            let (good, bad, idle) = (count(Cell::Good), count(Cell::Bad), count(Cell::Idle));
            write!(f, "{:40} {good:3} good", step.to_string())?;
            if bad > 0 {
                write!(f, ", {bad} BAD")?;
            }
            if idle > 0 {
                write!(f, ", {idle} not reached")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

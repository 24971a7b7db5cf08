//! What came of all the runs, for people.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use serde::Serialize;

use super::case::{Blow, Case, Ran, Role, Step, Strike};
use super::mixed;
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
            Self::Jump(_) => "jump".into(),
            Self::Unlink(place) => format!("unlink-{}", place.name()),
            Self::Garbage => "garbage".into(),
            Self::Strangers(..) => "strangers".into(),
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
    /// Requests that were answered that the daemon could not write.
    pub declined: u64,
    /// The longest time in which nobody was served, in milliseconds (I5).
    pub gap: u64,
    /// Runs that were played again, because the machine had stood still.
    pub disturbed: u64,
    /// Runs in which something was wrong that is the other implementation's.
    pub theirs: u64,
    /// Runs in which something else was wrong.
    pub failed: u64,
}

/// What came of the runs, fault by step.
#[derive(Debug, Default)]
pub struct Table {
    cells: BTreeMap<Step, [Cell; COLUMNS.len()]>,
    /// All runs together.
    pub totals: Totals,
    /// In how many runs the other implementation broke what each of its rows says. Empty where it
    /// has no part in any.
    theirs: Vec<u64>,
    /// Those in which something else was wrong.
    pub failed: Vec<(Case, Result<Ran, String>)>,
}

/// What came of one blow at one step, over all courses and adapters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Cell {
    good: u32,
    bad: u32,
    idle: u32,
    theirs: u32,
}

/// The columns, with what each is short for.
const COLUMNS: [(&str, &str); 13] = [
    ("exit", "it exits"),
    ("kill", "it is killed"),
    ("2s", "it is stopped for 2 s"),
    ("12s", "it is stopped for 12 s"),
    ("slow", "the step takes 6 s"),
    ("fds", "no descriptor is free for 3 s"),
    ("lock", "somebody else has the lock for 3 s"),
    ("exe", "there is no binary for 3 s"),
    ("full", "the file system is full for 3 s"),
    ("ro", "it is read-only for 3 s"),
    ("S", "the supervisor is killed there"),
    ("O", "the incumbent is killed there"),
    ("N", "the successor is killed there"),
];

/// The column of a blow to `on` at a step of `own`.
fn column(own: Role, on: Role, blow: Blow) -> Option<usize> {
    let name = match blow {
        Blow::Kill if on != own => match on {
            Role::S => "S",
            Role::O => "O",
            _ => "N",
        },
        Blow::Exit => "exit",
        Blow::Kill => "kill",
        Blow::Stop(..=5_000) => "2s",
        Blow::Stop(_) => "12s",
        Blow::Stall(_) => "slow",
        Blow::NoDescriptors(_) => "fds",
        Blow::LockHeld(_) => "lock",
        Blow::NoBinary(_) => "exe",
        Blow::Lacks(Shortage::Full, ..) => "full",
        Blow::Lacks(Shortage::ReadOnly, ..) => "ro",
        _ => return None,
    };
    COLUMNS.iter().position(|(column, _)| *column == name)
}

impl Table {
    /// Takes in a run.
    pub fn add(&mut self, case: Case, ran: io::Result<Ran>) {
        let totals = &mut self.totals;
        totals.runs += 1;
        let (mut bad, mut idle) = (true, false);
        if let Ok(ran) = &ran {
            totals.faults += u64::from(ran.struck);
            totals.handoffs += u64::from(ran.handoffs);
            totals.requests += ran.requests;
            totals.acknowledged += ran.acknowledged;
            totals.lost += ran.lost;
            totals.refused += ran.refused;
            totals.cut += ran.cut;
            totals.declined += ran.declined;
            totals.disturbed += u64::from(ran.disturbed);
            totals.gap = totals.gap.max(ran.gap);
            bad = !ran.problems.is_empty();
            idle = !bad && ran.struck == 0 && !case.strikes.is_empty();
        }
        if !mixed::theirs(&case).is_empty() {
            self.theirs.resize(mixed::rows().len(), 0);
        }
        let theirs = ran.as_ref().ok().filter(|_| bad).and_then(|ran| mixed::known(&case, ran));
        if let Some(row) = theirs {
            self.theirs[row] += 1;
            totals.theirs += 1;
            bad = false;
        }
        totals.failed += u64::from(bad);
        totals.idle += u64::from(idle);
        if let [Strike { at, on, blow }] = &case.strikes[..]
            && let Some(column) = column(at.role, *on, *blow)
        {
            let cell = &mut self.cells.entry(at.clone()).or_default()[column];
            match (bad, idle) {
                (true, _) => cell.bad += 1,
                (false, true) => cell.idle += 1,
                (false, false) if theirs.is_some() => cell.theirs += 1,
                (false, false) => cell.good += 1,
            }
        }
        if bad {
            self.failed.push((case, ran.map_err(|error| error.to_string())));
        }
    }

    /// Whether it has no cell: runs with two faults have none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The table: how many runs were good at each step with each fault; what is not, stands out.
    #[must_use]
    pub fn grid(&self) -> String {
        use fmt::Write;
        let mut text = format!("{:26}", "");
        for (column, _) in COLUMNS {
            let _ = write!(text, " {column:>4}");
        }
        for (step, cells) in &self.cells {
            let mut name = step.to_string();
            name.truncate(26);
            let _ = write!(text, "\n{name:26}");
            for cell in cells {
                let cell = match *cell {
                    Cell { bad: bad @ 1.., .. } => format!("!{bad}"),
                    Cell { theirs: theirs @ 1.., .. } => format!("?{theirs}"),
                    Cell { good: good @ 1.., .. } => good.to_string(),
                    Cell { idle: 1.., .. } => "-".into(),
                    Cell { .. } => String::new(),
                };
                let _ = write!(text, " {cell:>4}");
            }
        }
        let _ = write!(text, "\n\n");
        for (column, what) in COLUMNS {
            let _ = writeln!(text, "  {column:>4}  {what}");
        }
        let _ = write!(
            text,
            "  How many runs were good; - the step was not taken in any; !n n were not;\n  \
             ?n n were not, and that is the other implementation's."
        );
        for (row, runs) in mixed::rows().zip(&self.theirs) {
            // One without a run is not needed any more, unless only some runs are played.
            let _ = write!(text, "\n  {runs:>4}  runs are theirs: {row}");
        }
        text
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, faults, idle, handoffs, requests, acknowledged, .. } = self;
        let Self { lost, refused, cut, declined, gap, disturbed, theirs, failed, .. } = self;
        let mut line = |number: u64, what: &str| writeln!(f, "{number:>9}  {what}");
        line(*runs, "runs")?;
        line(*faults, "faults")?;
        line(*idle, "runs whose fault did not come: the step was not taken this time")?;
        line(*handoffs, "handoffs")?;
        line(*requests, "requests")?;
        line(*acknowledged, "writes acknowledged")?;
        line(*lost, "of these lost")?;
        line(*refused, "requests refused, or not answered")?;
        line(*cut, "requests cut off, because the process that had them was struck")?;
        line(*declined, "requests answered that the disk is full")?;
        line(*gap, "ms at most in which nobody served")?;
        line(*disturbed, "runs played again, because the machine had stood still")?;
        if *theirs > 0 {
            line(*theirs, "runs in which the other implementation did wrong")?;
        }
        write!(f, "{failed:>9}  runs in which something was wrong")
    }
}

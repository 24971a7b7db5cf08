//! What a probe has found, for people and for programs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::Serialize;

/// How wide a line of the report is.
const WIDTH: usize = 80;

/// Where the text of a case begins: behind the name of its part.
const INDENT: usize = 15;

/// How many lines of a transcript are shown. The rest is in the JSON.
const SHOWN: usize = 24;

/// How a case has ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The peer does what the clauses say.
    Pass,
    /// It does something else.
    Fail,
    /// The case says nothing of this peer; why is in what was seen.
    Skip,
}

/// One case: what was done to the peer and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What a peer does that passes.
    pub name: &'static str,
    /// The clauses of the protocol that say so.
    pub clauses: Vec<&'static str>,
    /// How it has ended.
    pub verdict: Verdict,
    /// What the probe did.
    pub sent: &'static str,
    /// What has to come of it.
    pub expected: &'static str,
    /// What came of it.
    pub seen: String,
    /// How long it took.
    pub millis: u64,
    /// Every frame and event, in order.
    pub transcript: Vec<String>,
}

/// All that a probe has found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was probed: incumbent, successor or supervisor.
    pub role: &'static str,
    /// Which one.
    pub target: String,
    /// How many cases have passed.
    pub passed: usize,
    /// How many have failed.
    pub failed: usize,
    /// How many were skipped.
    pub skipped: usize,
    /// The cases, in the order they ran.
    pub cases: Vec<Case>,
}

impl Report {
    /// Whether nothing failed.
    #[must_use]
    pub fn all_passed(&self) -> bool {
        self.failed == 0
    }

    /// The case of this name.
    #[must_use]
    pub fn case(&self, name: &str) -> Option<&Case> {
        self.cases.iter().find(|case| case.name == name)
    }

    /// What is to be read before the cases.
    #[must_use]
    pub fn heading(role: &str, target: &str) -> String {
        format!(
            "Probing {} {role}: {target}\nThe clauses on the right are those of docs/protocol.md.\n",
            if role == "incumbent" { "an" } else { "a" },
        )
    }

    /// What is to be read behind them: the clauses, and the sum.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut clauses: BTreeMap<(char, u32), Verdict> = BTreeMap::new();
        for case in &self.cases {
            for clause in &case.clauses {
                let mut letters = clause.chars();
                let letter = letters.next().unwrap_or(' ');
                let number = letters.as_str().parse().unwrap_or(0);
                let verdict = clauses.entry((letter, number)).or_insert(Verdict::Skip);
                *verdict = match (*verdict, case.verdict) {
                    (Verdict::Fail, _) | (_, Verdict::Fail) => Verdict::Fail,
                    (Verdict::Pass, _) | (_, Verdict::Pass) => Verdict::Pass,
                    (Verdict::Skip, Verdict::Skip) => Verdict::Skip,
                };
            }
        }
        let mut text = String::from("\n");
        for (verdict, what) in [
            (Verdict::Pass, "clauses that passed       "),
            (Verdict::Fail, "clauses in a failed case  "),
            (Verdict::Skip, "clauses not looked at     "),
        ] {
            let of: Vec<_> = clauses
                .iter()
                .filter(|(_, found)| **found == verdict)
                .map(|((letter, number), _)| format!("{letter}{number}"))
                .collect();
            if !of.is_empty() {
                text += &wrap(&format!("{what}{}", of.join(" ")), 26);
            }
        }
        let millis: u64 = self.cases.iter().map(|case| case.millis).sum();
        text += &format!(
            "\n{} cases: {} passed, {} failed, {} skipped, in {}\n",
            self.cases.len(),
            self.passed,
            self.failed,
            self.skipped,
            seconds(Duration::from_millis(millis)),
        );
        text
    }
}

impl Case {
    /// Its lines in the report. `brief` leaves out what a person need not read where it passed.
    #[must_use]
    pub fn text(&self, brief: bool) -> String {
        let verdict = match self.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Skip => "skip",
        };
        let (name, clauses) = (self.name, self.clauses.join(" "));
        let room = WIDTH.saturating_sub(verdict.len() + 2 + clauses.chars().count() + 2);
        let mut text = format!("{verdict}  {name:<room$}  {clauses}\n");
        if !brief || self.verdict == Verdict::Fail {
            text += &part("sent", self.sent);
            text += &part("expected", self.expected);
        }
        if !brief || self.verdict != Verdict::Pass {
            let seen = if self.verdict == Verdict::Skip { "because" } else { "seen" };
            text += &part(seen, &self.seen);
        }
        if self.verdict == Verdict::Fail {
            let left = self.transcript.len().saturating_sub(SHOWN);
            if left > 0 {
                text += &format!("{:INDENT$}... {left} lines, see --json\n", "");
            }
            for line in &self.transcript[left..] {
                text += &wrap(&format!("{:INDENT$}{line}", ""), INDENT + 10);
            }
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::heading(self.role, &self.target))?;
        for case in &self.cases {
            f.write_str("\n")?;
            f.write_str(&case.text(false))?;
        }
        f.write_str(&self.summary())
    }
}

fn part(name: &str, text: &str) -> String {
    wrap(&format!("      {name:<9}{text}"), INDENT)
}

/// Lines of at most [`WIDTH`], the later ones indented.
fn wrap(text: &str, indent: usize) -> String {
    let body = text.trim_start();
    let mut line = " ".repeat(text.len() - body.len());
    let (mut lines, mut bare) = (String::new(), true);
    for word in body.split(' ') {
        if !bare && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines += line.trim_end();
            lines.push('\n');
            line = " ".repeat(indent);
            bare = true;
        }
        if !bare {
            line.push(' ');
        }
        line += word;
        bare = false;
    }
    lines += line.trim_end();
    lines.push('\n');
    lines
}

/// A duration, as the report says it.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Why a case did not pass.
#[derive(Debug)]
pub(super) enum Stop {
    /// What was seen instead.
    Failed(String),
    /// Why it says nothing.
    Skipped(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What was seen where it passed, or why it did not.
pub(super) type Seen = Result<String, Stop>;

/// The case has failed.
pub(super) fn fail<T>(seen: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Failed(seen.into()))
}

/// The case says nothing.
pub(super) fn skip<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Skipped(why.into()))
}

/// What happens in a case, as it happens; and how what is sent in it reaches the peer.
#[derive(Clone, Debug)]
pub(super) struct Log {
    start: Instant,
    lines: Rc<RefCell<Vec<String>>>,
    split: bool,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), lines: Rc::default(), split: false }
    }

    /// Whether frames are written byte by byte.
    pub(super) fn split(&self) -> bool {
        self.split
    }

    /// Notes what happened.
    pub(super) fn note(&self, what: impl fmt::Display) {
        let time = seconds(self.start.elapsed());
        self.lines.borrow_mut().push(format!("{time:>8}  {what}"));
    }
}

/// A case to run.
pub(crate) struct Check<C> {
    pub(crate) name: &'static str,
    pub(crate) clauses: &'static [&'static str],
    pub(super) sent: &'static str,
    pub(super) expected: &'static str,
    pub(super) run: fn(&C, &Log) -> Seen,
}

impl<C> Check<C> {
    /// Runs it, with each frame written byte by byte.
    pub(crate) fn run_split(&self, context: &C) -> Case {
        let log = Log { split: true, ..Log::new() };
        let result = (self.run)(context, &log);
        self.case(&log, result)
    }

    fn case(&self, log: &Log, result: Seen) -> Case {
        let (verdict, seen) = match result {
            Ok(seen) => (Verdict::Pass, seen),
            Err(Stop::Failed(seen)) => (Verdict::Fail, seen),
            Err(Stop::Skipped(why)) => (Verdict::Skip, why),
        };
        Case {
            name: self.name,
            clauses: self.clauses.to_vec(),
            verdict,
            sent: self.sent,
            expected: self.expected,
            seen,
            millis: u64::try_from(log.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            transcript: log.lines.take(),
        }
    }
}

/// Runs the cases one after the other. `before` may say why there is nothing to run them on: the first
/// has failed then, and whatever is left is skipped.
pub(super) fn run<'a, C: 'static>(
    role: &'static str,
    target: String,
    checks: impl Iterator<Item = &'a Check<C>>,
    context: &C,
    before: impl Fn(&C) -> Option<String>,
    on: &mut dyn FnMut(&Case),
) -> Report {
    let mut report = Report { role, target, passed: 0, failed: 0, skipped: 0, cases: Vec::new() };
    let mut gone: Option<String> = None;
    for check in checks {
        let log = Log::new();
        gone = gone.or_else(|| before(context));
        let result = match &gone {
            Some(why) if report.cases.is_empty() => Err(Stop::Failed(why.clone())),
            Some(why) => Err(Stop::Skipped(why.clone())),
            None => (check.run)(context, &log),
        };
        let case = check.case(&log, result);
        *match case.verdict {
            Verdict::Pass => &mut report.passed,
            Verdict::Fail => &mut report.failed,
            Verdict::Skip => &mut report.skipped,
        } += 1;
        on(&case);
        report.cases.push(case);
    }
    report
}

//! What the demo shows: how it goes, the timeline of a swap, and the numbers.

use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handoff_blocking::{Phase, Verdict};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;

use super::load::Load;
use super::stage::{Line, Successor};
use super::{Options, Runtime, Swap};

/// How many characters the longest bar of the timeline has.
const BAR: usize = 26;
/// How many lines of the daemons' log are shown if something went wrong.
const LOG_LINES: usize = 20;

/// How it goes, on standard error: one line that changes where that is a terminal, else a line for
/// each thing that happens.
pub(super) struct Progress {
    line: ProgressBar,
    swaps: u32,
}

impl Progress {
    pub(super) fn new(load: &Arc<Load>, options: &Options) -> Self {
        let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let load = Arc::clone(load);
        let counts = move |_: &ProgressState, text: &mut dyn std::fmt::Write| {
            let (requests, failed) = (load.requests(), load.failed_requests());
            let _ = write!(
                text,
                "{requests} requests, {failed} failed, {} writes",
                load.acked_writes()
            );
        };
        if let Ok(style) = ProgressStyle::with_template("{msg:34} {counts}") {
            line.set_style(style.with_key("counts", counts));
        }
        line.enable_steady_tick(Duration::from_millis(100));
        Self { line, swaps: options.swaps + 2 }
    }

    pub(super) fn started(&self, address: SocketAddr, pid: u32, runtime: Runtime) {
        self.say(format!("pid {pid} ({}) serves {address}", runtime.name()));
    }

    pub(super) fn phase(&self, place: u32, phase: Phase) {
        self.line.set_message(format!("swap {} of {}: {}", place + 1, self.swaps, phase.name()));
    }

    pub(super) fn swapped(&self, place: u32, swap: &Swap) {
        let (verdict, ms) = (swap.report.verdict, millis(swap.end - swap.start));
        let (place, swaps) = (place + 1, self.swaps);
        if swap.successor != Successor::Serves && swap.is_as_expected() {
            self.say(format!("swap {place} of {swaps} {verdict} as planned"));
        } else {
            self.say(format!("swap {place} of {swaps}: {verdict}, {ms:.0} ms"));
        }
    }

    pub(super) fn reads_back(&self) {
        self.say("reading every write back".to_owned());
    }

    /// Takes the changing line away.
    pub(super) fn ended(&self) {
        self.line.finish_and_clear();
    }

    fn say(&self, text: String) {
        if self.line.is_hidden() {
            tell(&text);
        }
        self.line.set_message(text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ended();
    }
}

/// What came of it all.
pub(super) struct Summary {
    numbers: Numbers,
    swaps: Vec<Swap>,
    log: Vec<Line>,
    failures: Vec<(String, u64)>,
    asked: u32,
}

/// The object that `--json` prints.
#[derive(Debug, Serialize)]
struct Numbers {
    from: Runtime,
    to: Runtime,
    swaps_committed: usize,
    rolled_back: usize,
    requests: u64,
    failed_requests: u64,
    acked_writes: u64,
    lost_writes: u64,
    longest_pause_ms: f64,
    /// Null where the log does not tell.
    accept_gap_ms: Option<f64>,
}

impl Summary {
    pub(super) fn new(
        swaps: Vec<Swap>,
        options: &Options,
        load: &Load,
        lost_writes: u64,
        log: Vec<Line>,
    ) -> Self {
        let count = |verdict| swaps.iter().filter(|swap| swap.report.verdict == verdict).count();
        let committed = || swaps.iter().filter(|swap| swap.report.verdict == Verdict::Committed);
        // One gap that is not known makes the longest unknown.
        let gaps: Option<Vec<_>> = committed().map(|swap| accept_gap(swap, &log)).collect();
        let longest = gaps.and_then(|gaps| gaps.into_iter().map(|(from, to)| to - from).max());
        let [from, to] = options.runtimes();
        let numbers = Numbers {
            from,
            to,
            swaps_committed: count(Verdict::Committed),
            rolled_back: count(Verdict::RolledBack),
            requests: load.requests(),
            failed_requests: load.failed_requests(),
            acked_writes: load.acked_writes(),
            lost_writes,
            longest_pause_ms: millis(load.longest_pause()),
            accept_gap_ms: longest.map(millis),
        };
        Self { numbers, swaps, log, failures: load.failures(), asked: options.swaps }
    }

    /// Whether it went as it should.
    pub(super) fn is_good(&self) -> bool {
        self.problems().is_empty()
    }

    /// To standard output: the object, or the timeline, the table and the verdict. With the object,
    /// what went wrong is told on standard error.
    pub(super) fn print(&self, json: bool) {
        let text = if json {
            serde_json::to_string(&self.numbers).unwrap_or_default()
        } else {
            let last = self.swaps.iter().rfind(|swap| swap.report.verdict == Verdict::Committed);
            let timeline = last.map(|swap| timeline(swap, &self.log)).unwrap_or_default();
            format!("{timeline}\n{}\n{}", self.table(), self.verdict())
        };
        // Whoever reads may have read enough.
        let _ = writeln!(io::stdout(), "{text}");
        if json && !self.is_good() {
            tell(self.verdict());
        }
    }

    fn table(&self) -> String {
        let Numbers { requests, failed_requests, acked_writes, lost_writes, .. } = self.numbers;
        let mut text = String::new();
        let mut row = |name: &str, value: String, note: &str| {
            let line = format!("  {name:<20}{value:>12}   {note}");
            let _ = writeln!(text, "{}", line.trim_end());
        };
        row("swaps committed", self.numbers.swaps_committed.to_string(), "");
        row(
            "rolled back",
            self.numbers.rolled_back.to_string(),
            "one unhealthy, one died after Begin",
        );
        row("requests", grouped(requests), "");
        row("failed requests", grouped(failed_requests), "");
        row("acknowledged writes", grouped(acked_writes), "each is read back at the end");
        row("lost writes", grouped(lost_writes), "");
        row("longest pause", in_ms(self.numbers.longest_pause_ms), "that a client saw");
        let gap = self.numbers.accept_gap_ms.map_or("not known".to_owned(), in_ms);
        row("nobody accepted", gap, "in the worst swap; clients waited");
        text
    }

    fn verdict(&self) -> String {
        let problems = self.problems();
        if problems.is_empty() {
            return "Nothing was refused, nothing failed, nothing was lost.".to_owned();
        }
        let log = &self.log[self.log.len().saturating_sub(LOG_LINES)..];
        let lines = |lines: Vec<&str>| lines.join("\n  ");
        format!(
            "This should not have happened:\n  {}\nThe last lines of the daemons' log:\n  {}",
            lines(problems.iter().map(String::as_str).collect()),
            lines(log.iter().map(|line| line.text.as_str()).collect()),
        )
    }

    fn problems(&self) -> Vec<String> {
        let numbers = &self.numbers;
        let mut problems: Vec<String> = self
            .swaps
            .iter()
            .enumerate()
            .filter(|(_, swap)| !swap.is_as_expected())
            .map(unexpected)
            .collect();
        let planned = self.asked as usize + 2;
        if self.swaps.len() < planned {
            problems.push(format!("{} of {planned} swaps were made", self.swaps.len()));
        }
        for (reason, count) in &self.failures {
            problems.push(format!("requests that failed: {count}, {reason}"));
        }
        if numbers.lost_writes > 0 {
            let (lost, all) = (numbers.lost_writes, numbers.acked_writes);
            problems.push(format!("{lost} of {all} acknowledged writes could not be read back"));
        }
        if numbers.acked_writes == 0 {
            problems.push("no write was acknowledged".to_owned());
        }
        if numbers.accept_gap_ms.is_none() && numbers.swaps_committed > 0 {
            problems.push("the daemons' log does not tell when they accepted".to_owned());
        }
        problems
    }
}

fn unexpected((place, swap): (usize, &Swap)) -> String {
    let expected = match swap.successor {
        Successor::Serves => "be committed",
        Successor::Unhealthy => "be rolled back because the successor is unhealthy",
        Successor::Dies => "be rolled back because the successor dies",
    };
    let verdict = swap.report.verdict;
    let mut text = format!("swap {} was to {expected}, and ended as {verdict}", place + 1);
    if let Some(trouble) = &swap.report.trouble {
        let _ = write!(text, ": {} ({})", trouble.detail, trouble.reason.code());
    }
    if let Some(pid) = swap.report.serving {
        let _ = write!(text, "; pid {pid} serves, it was {}", swap.old);
    }
    text
}

/// From when the old daemon of a committed swap had stopped accepting until the new one accepted.
fn accept_gap(swap: &Swap, log: &[Line]) -> Option<(Instant, Instant)> {
    let new = swap.report.serving?;
    let lines = || log.iter().filter(|line| line.at >= swap.start);
    let to = lines().find(|line| line.says(new, "accepting"))?.at;
    let from = lines().find(|line| line.says(swap.old, "stopped accepting"))?.at;
    Some((from, to))
}

/// The phases of a committed swap, one below the other, to one scale.
fn timeline(swap: &Swap, log: &[Line]) -> String {
    let (old, new) = (swap.old, swap.report.serving.unwrap_or_default());
    let whole = swap.end - swap.start;
    let [from, to] = swap.runtimes.map(Runtime::name);
    let mut text = format!(
        "The last swap: pid {old} ({from}) to pid {new} ({to}), {}\n\n",
        in_ms(millis(whole))
    );
    let mut row = |name: &str, from: Instant, to: Instant, what: &str, mark: char| {
        let scale = |at: Instant| {
            let share = (at - swap.start).as_secs_f64() / whole.as_secs_f64().max(f64::EPSILON);
            (share * BAR as f64).round() as usize
        };
        let left = scale(from).min(BAR - 1);
        let right = scale(to).clamp(left + 1, BAR);
        let bar: String = (0..right).map(|i| if i < left { ' ' } else { mark }).collect();
        let _ = writeln!(text, "  {name:<7}{:>9}  {what:<33} {bar}", in_ms(millis(to - from)));
    };
    let ends = swap.phases.iter().skip(1).map(|(_, at)| *at).chain([swap.end]);
    for ((phase, from), to) in swap.phases.iter().zip(ends) {
        row(phase.name(), *from, to, who_does_what(*phase), '█');
    }
    if let Some((from, to)) = accept_gap(swap, log) {
        row("", from, to, "nobody accepts, clients wait", '░');
    }
    text
}

fn who_does_what(phase: Phase) -> &'static str {
    match phase {
        Phase::Warm => "new starts, old serves",
        Phase::Drain => "old finishes its requests",
        Phase::Seal => "old closes its data, unlocks",
        Phase::Open => "new locks, opens, accepts",
        Phase::Commit => "new takes the control path",
        _ => "",
    }
}

/// Tells the person at the terminal, if there still is one.
pub(super) fn tell(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Milliseconds, to a hundredth.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 100_000.0).round() / 100.0
}

fn in_ms(millis: f64) -> String {
    format!("{millis:.1} ms")
}

/// A number with a space after each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use handoff_blocking::Report;

    use super::*;

    fn committed_swap() -> (Swap, Vec<Line>) {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let phases = [Phase::Warm, Phase::Drain, Phase::Seal, Phase::Open, Phase::Commit];
        let swap = Swap {
            successor: Successor::Serves,
            old: 4_194_303,
            runtimes: [Runtime::AsyncStd; 2],
            start,
            phases: phases.into_iter().zip([0, 10, 11, 12, 99].map(at)).collect(),
            end: at(100),
            report: Report {
                id: Default::default(),
                verdict: Verdict::Committed,
                trouble: None,
                serving: Some(2),
                ready: None,
                stuck: None,
            },
        };
        let line = |ms, text: &str| Line { at: at(ms), text: text.to_owned() };
        let log = vec![line(11, "kv[4194303]: stopped accepting"), line(51, "kv[2]: accepting")];
        (swap, log)
    }

    #[test]
    fn the_timeline_fits_a_terminal() {
        let (swap, log) = committed_swap();
        let timeline = timeline(&swap, &log);
        assert_eq!(timeline.lines().count(), 2 + 6, "{timeline}");
        assert!(timeline.lines().all(|line| line.chars().count() <= 80), "{timeline}");
        let bars = timeline.chars().filter(|c| *c == '█').count();
        assert!((BAR..BAR + 5).contains(&bars), "{timeline}");
    }

    #[test]
    fn the_gap_is_from_the_old_ones_last_to_the_new_ones_first() {
        let (swap, mut log) = committed_swap();
        let (from, to) = accept_gap(&swap, &log).unwrap();
        assert_eq!(to - from, Duration::from_millis(40));
        log.pop();
        assert_eq!(accept_gap(&swap, &log), None);
    }

    #[test]
    fn numbers_are_readable() {
        let numbers = [0, 999, 1_000, 12_345, 1_234_567].map(grouped);
        assert_eq!(numbers, ["0", "999", "1 000", "12 345", "1 234 567"]);
    }
}

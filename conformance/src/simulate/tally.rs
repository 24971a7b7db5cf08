use std::fmt::{self, Write};
use std::time::Duration;

use handoff_core::supervisor::Verdict;

use super::Fault;

/// What happened in all runs so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Runs.
    pub runs: u64,
    /// Steps of all runs.
    pub steps: u64,
    verdicts: [u64; VERDICTS.len()],
    faults: [u64; Fault::ALL.len()],
}

/// The simulator makes no dry runs.
const VERDICTS: [(Verdict, &str); 4] = [
    (Verdict::Committed, "committed"),
    (Verdict::RolledBack, "rolled back"),
    (Verdict::Refused, "refused"),
    (Verdict::Unknown, "unknown"),
];

impl Tally {
    pub(super) fn verdict(&mut self, verdict: Verdict) {
        let place = VERDICTS.iter().position(|&(it, _)| it == verdict);
        if let Some(count) = place.and_then(|place| self.verdicts.get_mut(place)) {
            *count += 1;
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        let place = Fault::ALL.iter().position(|&it| it == fault);
        if let Some(count) = place.and_then(|place| self.faults.get_mut(place)) {
            *count += 1;
        }
    }

    /// How many handoffs came to an end, whatever it was.
    #[must_use]
    pub fn handoffs(&self) -> u64 {
        self.verdicts.iter().sum()
    }

    /// How many handoffs came to this end.
    #[must_use]
    pub fn of(&self, verdict: Verdict) -> u64 {
        let counts = VERDICTS.iter().zip(self.verdicts);
        counts.filter(|((it, _), _)| *it == verdict).map(|(_, count)| count).sum()
    }

    /// How often this happened.
    #[must_use]
    pub fn happened(&self, fault: Fault) -> u64 {
        let counts = Fault::ALL.iter().zip(self.faults);
        counts.filter(|(it, _)| **it == fault).map(|(_, count)| count).sum()
    }

    /// Faults of all kinds that happened; habits of the world are none.
    #[must_use]
    pub fn all_faults(&self) -> u64 {
        let faults = Fault::ALL.iter().filter(|it| !it.is_habit());
        faults.map(|&it| self.happened(it)).sum()
    }

    /// How many of these a minute.
    #[must_use]
    pub fn per_minute(count: u64, time: Duration) -> u64 {
        let nanos = time.as_nanos().max(1);
        let rate = u128::from(count) * Duration::from_secs(60).as_nanos() / nanos;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// All of it, for a person.
    #[must_use]
    pub fn table(&self, time: Duration) -> String {
        let mut text = String::new();
        let all = self.handoffs();
        let mut row = |name: &str, count: u64, more: String| {
            // Writing to a String does not fail.
            let _ = writeln!(text, "  {name:<14}{:>15}{more}", grouped(count));
        };
        row("runs", self.runs, format!("   in {time:.1?}"));
        row("steps", self.steps, String::new());
        row("handoffs", all, String::new());
        for ((_, name), count) in VERDICTS.iter().zip(self.verdicts) {
            let share = if all == 0 { 0.0 } else { 100.0 * count as f64 / all as f64 };
            row(&format!("  {name}"), count, format!("   {share:5.1} %"));
        }
        row("faults", self.all_faults(), String::new());
        for fault in Fault::ALL.into_iter().filter(|it| !it.is_habit()) {
            row(&format!("  {fault}"), self.happened(fault), String::new());
        }
        row("strangers", self.happened(Fault::Strangers), String::new());
        row("cut messages", self.happened(Fault::Bytes), String::new());
        row("a minute", Self::per_minute(all, time), String::from("   handoffs"));
        text
    }
}

/// A number for people to read.
#[must_use]
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [committed, rolled_back, refused, unknown] = self.verdicts;
        write!(
            f,
            "{} runs, {} faults: {} committed, {} rolled back,\n{} refused, {} unknown",
            grouped(self.runs),
            grouped(self.all_faults()),
            grouped(committed),
            grouped(rolled_back),
            grouped(refused),
            grouped(unknown)
        )
    }
}

//! A handoff under way, as those who watch it see it, and what is left of it when it has ended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use handoff_tokio::{Event, HandoffId, Phase, Report, Verdict};
use tokio::sync::mpsc::Sender;

use super::keep::Binary;
use super::output::Files;
use crate::admin::{self, Ended, Entry, Reply, Serving, Span, Timeline};
use crate::exit;

/// How many lines of a successor that failed are shown.
const LAST_LINES: usize = 50;
/// How many samples of the queues a timeline has at most.
const SAMPLES: usize = 10_000;
/// How many events.
const EVENTS: usize = 1_000;

/// Milliseconds since 1970.
pub(super) fn at(time: SystemTime) -> u64 {
    millis(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What was asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// `swap`, `rollback`, `probation` or `dry_run`.
    pub(super) kind: &'static str,
    pub(super) binary: Binary,
    pub(super) dry_run: bool,
    pub(super) warm_up: Duration,
    pub(super) drain_grace: Duration,
    pub(super) deadline: Duration,
    pub(super) reason: Option<String>,
    pub(super) key: Option<String>,
    pub(super) uid: Option<u32>,
}

/// Somebody who waits for the end.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub(super) to: Sender<Reply>,
    /// It has aborted the handoff: that it was rolled back is what it wanted, and it sees no progress.
    pub(super) aborts: bool,
}

impl Waiter {
    /// Tells it of the end, however slow it is.
    pub(super) fn tell(&self, ended: &Ended) {
        let mut ended = ended.clone();
        if self.aborts {
            ended.exit = match ended.exit {
                exit::TEMPORARY => exit::OK,
                // It came too late.
                exit::OK => exit::TEMPORARY,
                other => other,
            };
        }
        self.last_word(Reply::Ended(Box::new(ended)));
    }

    pub(super) fn last_word(&self, reply: Reply) {
        let to = self.to.clone();
        tokio::spawn(async move { to.send(reply).await });
    }
}

/// A handoff under way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) id: HandoffId,
    pub(super) asked: Asked,
    pub(super) waiters: Vec<Waiter>,
    from: Option<Serving>,
    files: Files,
    began: Instant,
    phases: Vec<(Phase, Instant)>,
    shards: Option<(u32, u32)>,
    open_connections: Option<u32>,
    events: Vec<(u64, String)>,
    waiting: Vec<(u64, u32)>,
    waiting_max: BTreeMap<String, u32>,
}

impl Flight {
    pub(super) fn new(asked: Asked, files: Files, from: Option<Serving>, now: Instant) -> Self {
        Self {
            id: HandoffId::new(),
            asked,
            waiters: Vec::new(),
            from,
            files,
            began: now,
            phases: Vec::new(),
            shards: None,
            open_connections: None,
            events: Vec::new(),
            waiting: Vec::new(),
            waiting_max: BTreeMap::new(),
        }
    }

    /// Takes in what happened.
    pub(super) fn event(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Phase(phase) => {
                if self.phases.last().is_none_or(|(last, _)| last != phase) {
                    self.phases.push((*phase, now));
                }
                return;
            }
            Event::SealProgress { shards_sealed, shards_total, .. } => {
                self.shards = Some((*shards_sealed, *shards_total));
            }
            Event::Drained { open_conns_remaining, .. } => {
                self.open_connections = Some(*open_conns_remaining);
            }
            Event::Finished(_) => return,
            _ => {}
        }
        if self.events.len() < EVENTS {
            self.events.push((self.since(now), event.to_string()));
        }
    }

    /// Takes in how many connections wait at each listener.
    pub(super) fn sample(&mut self, queues: &[(&str, u32)], now: Instant) {
        for (name, waiting) in queues {
            let most = self.waiting_max.entry((*name).to_string()).or_default();
            *most = (*most).max(*waiting);
        }
        let all = queues.iter().map(|(_, waiting)| waiting).sum();
        let same = self.waiting.last().is_some_and(|(_, last)| *last == all);
        if !same && self.waiting.len() < SAMPLES {
            self.waiting.push((self.since(now), all));
        }
    }

    fn since(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.began))
    }

    pub(super) fn is_younger_than(&self, age: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.began) < age
    }

    /// The phase it is in, and since when.
    fn phase(&self) -> (&'static str, Instant) {
        self.phases.last().map_or(("warm", self.began), |(phase, since)| (phase.name(), *since))
    }

    fn began_phase(&self, wanted: Phase) -> Option<Instant> {
        self.phases.iter().find(|(phase, _)| *phase == wanted).map(|(_, since)| *since)
    }

    /// Until when it may be in its phase (T5, C3).
    fn limit(&self) -> Option<Instant> {
        let (last, since) = self.phases.last()?;
        let prepared = self.began_phase(Phase::Drain);
        let deadline = prepared.map(|prepared| prepared + self.asked.deadline);
        match last {
            Phase::Warm => Some(*since + self.asked.warm_up),
            Phase::Drain => Some((*since + self.asked.drain_grace).min(deadline?)),
            Phase::Seal | Phase::Open => deadline,
            _ => None,
        }
    }

    /// What is shown of it.
    pub(super) fn view(&self, now: Instant) -> admin::Flight {
        let (phase, since) = self.phase();
        admin::Flight {
            id: self.id.to_string(),
            binary: self.asked.binary.path.clone(),
            dry_run: self.asked.dry_run,
            phase: phase.to_string(),
            elapsed_ms: millis(now.saturating_duration_since(self.began)),
            phase_ms: millis(now.saturating_duration_since(since)),
            left_ms: self.limit().map(|limit| millis(limit.saturating_duration_since(now))),
            shards: self.shards,
            open_connections: self.open_connections,
            reason: self.asked.reason.clone(),
        }
    }

    /// How long nobody accepted, at most: from when the incumbent was told to drain until the successor was
    /// ready, or until it was seen to serve again.
    fn unavailable(&self, now: Instant) -> Option<Duration> {
        let from = self.began_phase(Phase::Drain)?;
        let to = self.began_phase(Phase::Commit).unwrap_or(now);
        Some(to.saturating_duration_since(from))
    }

    /// It has ended.
    pub(super) fn end(&self, report: &Report, now: Instant) -> Ended {
        let well = matches!(report.verdict, Verdict::Committed | Verdict::DryRun);
        let begins = self.phases.iter().map(|(phase, since)| (*phase, self.since(*since)));
        let ends = self.phases.iter().skip(1).map(|(_, since)| *since).chain([now]);
        let spans = begins.zip(ends).map(|((phase, from_us), end)| Span {
            phase: phase.name().to_string(),
            from_us,
            to_us: self.since(end),
        });
        let spans: Vec<Span> = spans.collect();
        // R14: a child that will not die is reported.
        let stuck = report.stuck.map(|pid| format!("process group {pid} will not die"));
        let trouble = report.trouble.as_ref().map(|trouble| trouble.detail.clone());
        let detail: Vec<String> = trouble.into_iter().chain(stuck).collect();
        let detail = (!detail.is_empty()).then(|| detail.join("; "));
        let entry = Entry {
            kind: self.asked.kind.to_string(),
            at: at(SystemTime::now()),
            id: Some(self.id.to_string()),
            verdict: Some(report.verdict.code().to_string()),
            code: report.trouble.as_ref().map(|trouble| trouble.reason.code().to_string()),
            detail,
            from: self.from.clone(),
            binary: Some(self.asked.binary.path.clone()),
            serving: report.serving,
            took_ms: Some(millis(now.saturating_duration_since(self.began))),
            phases: spans
                .iter()
                .map(|it| (it.phase.clone(), (it.to_us - it.from_us) / 1000))
                .collect(),
            unavailable_ms: self.unavailable(now).map(millis),
            waiting_max: self.waiting_max.clone(),
            open_connections: self.open_connections,
            reason: self.asked.reason.clone(),
            key: self.asked.key.clone(),
            uid: self.asked.uid,
        };
        Ended {
            exit: exit_code(&entry),
            entry,
            repeated: false,
            stderr: if well { Vec::new() } else { self.files.last_lines(LAST_LINES) },
            timeline: Timeline {
                phases: spans,
                events: self.events.clone(),
                waiting: self.waiting.clone(),
                end_us: self.since(now),
            },
        }
    }

    pub(super) const fn files(&self) -> &Files {
        &self.files
    }
}

/// What a verb exits with after this.
pub(super) fn exit_code(entry: &Entry) -> u8 {
    match (entry.verdict.as_deref(), entry.serving) {
        // A start that failed.
        (None, None) if entry.code.is_some() => exit::SOFTWARE,
        (None | Some("committed" | "dry_run"), _) => exit::OK,
        (Some("rolled_back" | "refused"), Some(_)) => exit::TEMPORARY,
        _ => exit::SOFTWARE,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use handoff_tokio::{Reason, Trouble};

    use super::*;

    fn flight(began: Instant) -> Flight {
        let path = std::env::current_exe().unwrap();
        let asked = Asked {
            kind: "swap",
            binary: Binary::at(&path).unwrap(),
            dry_run: false,
            warm_up: Duration::from_secs(60),
            drain_grace: Duration::from_secs(30),
            deadline: Duration::from_secs(20),
            reason: Some("a test".into()),
            key: None,
            uid: Some(0),
        };
        let nowhere = Files { stdout: "/nowhere".into(), stderr: "/nowhere".into() };
        Flight::new(asked, nowhere, None, began)
    }

    fn report(verdict: Verdict, trouble: Option<Trouble>, serving: Option<u32>) -> Report {
        Report { id: HandoffId::new(), verdict, trouble, serving, ready: None, stuck: None }
    }

    #[test]
    fn phases_limits_and_the_gap_are_those_of_the_events() {
        let began = Instant::now();
        let ms = |ms| began + Duration::from_millis(ms);
        let mut flight = flight(began);
        flight.event(&Event::Phase(Phase::Warm), ms(0));
        assert_eq!(flight.view(ms(1000)).left_ms, Some(59_000));
        flight.event(&Event::Phase(Phase::Drain), ms(2000));
        assert_eq!(flight.view(ms(3000)).left_ms, Some(19_000), "the deadline is sooner");
        flight.sample(&[("http", 3), ("admin", 1)], ms(2100));
        flight.sample(&[("http", 2), ("admin", 2)], ms(2200));
        flight.event(&Event::Drained { open_conns_remaining: 1, accept_closed: true }, ms(2300));
        flight.event(&Event::Phase(Phase::Seal), ms(2300));
        let progress = Event::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: 9 };
        flight.event(&progress, ms(2400));
        flight.event(&Event::Phase(Phase::Open), ms(2500));
        flight.event(&Event::Phase(Phase::Commit), ms(2600));
        let view = flight.view(ms(2700));
        assert_eq!((view.phase.as_str(), view.elapsed_ms, view.phase_ms), ("commit", 2700, 100));
        assert_eq!(
            (view.left_ms, view.shards, view.open_connections),
            (None, Some((1, 2)), Some(1))
        );

        let ended = flight.end(&report(Verdict::Committed, None, Some(7)), ms(2800));
        assert_eq!((ended.exit, ended.entry.unavailable_ms), (0, Some(600)));
        let phases: Vec<_> =
            ended.entry.phases.iter().map(|(name, ms)| (name.as_str(), *ms)).collect();
        let expected =
            [("warm", 2000), ("drain", 300), ("seal", 200), ("open", 100), ("commit", 200)];
        assert_eq!(phases, expected);
        assert_eq!(ended.entry.waiting_max["http"], 3);
        assert_eq!(ended.timeline.waiting, [(2_100_000, 4)], "the same is not told twice");
        assert_eq!(ended.timeline.events[0].0, 2_300_000);
    }

    #[test]
    fn a_verb_exits_as_sysexits_says() {
        let trouble = |reason| Some(Trouble { reason, detail: "so".into() });
        for (verdict, reason, serving, exit) in [
            (Verdict::Committed, None, Some(7), 0),
            (Verdict::DryRun, None, Some(7), 0),
            (Verdict::RolledBack, trouble(Reason::Unhealthy), Some(7), 75),
            (Verdict::Refused, trouble(Reason::SuccessorExited), Some(7), 75),
            (Verdict::Refused, trouble(Reason::IncumbentLost), None, 70),
            (Verdict::Unknown, trouble(Reason::IncumbentLost), Some(7), 70),
        ] {
            let code = reason.as_ref().map(|it| it.reason.code().to_string());
            let ended =
                flight(Instant::now()).end(&report(verdict, reason, serving), Instant::now());
            assert_eq!((ended.exit, ended.entry.code), (exit, code));
        }
    }
}

//! A supervisor's handoffs, for who watches them: spans, a line for each step and one for the whole,
//! metrics, and what lets a successor's spans join in.
//!
//! The trace id is the handoff's id: both are 16 bytes. A span is left at the next phase, and what is
//! logged meanwhile is inside it.

use std::time::{Duration, Instant};

use handoff_core::HandoffId;
use handoff_core::supervisor::{Event, Phase, Report};
use tracing::field::Empty;
use tracing::{Span, info_span};

use super::log;
#[cfg(feature = "metrics")]
use super::metrics as measure;
use crate::spawn::Launch;

/// The variable that tells a process of the span it was started in, as the W3C's trace context has it.
const TRACEPARENT: &str = "TRACEPARENT";
/// What goes with it: of another trace it would mean nothing.
const TRACESTATE: &str = "TRACESTATE";

/// What nobody asked to be measured is not.
#[cfg(not(feature = "metrics"))]
mod measure {
    use std::time::Duration;

    pub(super) const fn describe() {}
    pub(super) const fn begun() {}
    pub(super) const fn phase_over(_: &str, _: Duration) {}
    pub(super) const fn committing(_: u32) {}
    pub(super) const fn ended(_: &str, _: &str, _: Duration, _: Option<Duration>) {}
    pub(super) const fn idle() {}
}

/// Follows one handoff after the other.
#[derive(Debug)]
pub(super) struct Observer {
    flight: Option<Flight>,
}

/// A handoff under way.
#[derive(Debug)]
struct Flight {
    trace: Trace,
    span: Span,
    began: Instant,
    stage: Option<Stage>,
    /// How many stages there were.
    stages: u64,
    /// Connections that were open when the drain ended.
    open_connections: Option<u32>,
    outage: Outage,
}

/// A phase that it is in.
#[derive(Debug)]
struct Stage {
    phase: Phase,
    span: Span,
    began: Instant,
}

impl Observer {
    pub(super) fn new() -> Self {
        measure::describe();
        Self { flight: None }
    }

    /// A handoff begins; what its successor is started with, so that it can join the trace.
    pub(super) fn begin(&mut self, id: HandoffId, launch: Launch, now: Instant) -> Launch {
        let trace = Trace(id);
        measure::begun();
        self.flight = Some(Flight {
            span: trace.root(),
            trace,
            began: now,
            stage: None,
            stages: 0,
            open_connections: None,
            outage: Outage::default(),
        });
        trace.passed_on(launch)
    }

    /// What the machine tells, in this state of it.
    pub(super) fn tell(&mut self, event: &Event, state: &str, now: Instant) {
        if let Event::Finished(report) = event
            && let Some(flight) = self.flight.take()
        {
            return flight.end(report, now);
        }
        match &mut self.flight {
            Some(flight) => flight.tell(event, state, now),
            None => log(state, event.is_trouble(), event),
        }
    }
}

impl Flight {
    fn tell(&mut self, event: &Event, state: &str, now: Instant) {
        match event {
            Event::Phase(phase) => self.enter(*phase, now),
            Event::Drained { open_conns_remaining, .. } => {
                self.open_connections = Some(*open_conns_remaining);
            }
            _ => {}
        }
        let span = self.stage.as_ref().map_or(&self.span, |stage| &stage.span);
        span.in_scope(|| match event {
            // As many as there are shards: no step of the handoff.
            Event::SealProgress { .. } => tracing::debug!(state, "handoff: {event}"),
            _ => log(state, event.is_trouble(), event),
        });
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        // Who is promoted again was promoted before.
        if self.stage.as_ref().is_some_and(|stage| stage.phase == phase) {
            return;
        }
        let before = self.leave(now);
        match phase {
            // A drain begins with accepting no more.
            Phase::Drain | Phase::Seal | Phase::Open | Phase::Promote => self.outage.begins(now),
            // The successor is gone after all.
            Phase::Rollback if before == Some(Phase::Commit) => self.outage.begins(now),
            Phase::Commit => {
                self.outage.ends(now);
                self.open_connections.into_iter().for_each(measure::committing);
            }
            _ => {}
        }
        self.stages += 1;
        let span = self.trace.stage(&self.span, phase, self.stages);
        self.stage = Some(Stage { phase, span, began: now });
    }

    fn leave(&mut self, now: Instant) -> Option<Phase> {
        let Stage { phase, began, .. } = self.stage.take()?;
        measure::phase_over(phase.name(), now.saturating_duration_since(began));
        Some(phase)
    }

    fn end(mut self, report: &Report, now: Instant) {
        self.leave(now);
        self.outage.ends(now);
        let took = now.saturating_duration_since(self.began);
        let outcome = report.verdict.code();
        let reason = report.trouble.as_ref().map_or("none", |trouble| trouble.reason.code());
        measure::ended(outcome, reason, took, self.outage.seen());
        self.span.record("outcome", outcome).record("reason", reason);
        let duration_ms = millis(took);
        let unavailable_ms = millis(self.outage.seen().unwrap_or_default());
        let id = report.id;
        self.span.in_scope(|| {
            if Event::Finished(report.clone()).is_trouble() {
                tracing::warn!(%id, outcome, reason, duration_ms, unavailable_ms, "handoff: {report}");
            } else {
                tracing::info!(%id, outcome, reason, duration_ms, unavailable_ms, "handoff: {report}");
            }
        });
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        measure::idle();
    }
}

/// For how long nobody served.
#[derive(Clone, Copy, Default, Debug)]
struct Outage {
    since: Option<Instant>,
    before: Option<Duration>,
}

impl Outage {
    fn begins(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    fn ends(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            *self.before.get_or_insert_default() += now.saturating_duration_since(since);
        }
    }

    /// In all, once it is over; `None` where somebody served all the time.
    const fn seen(&self) -> Option<Duration> {
        self.before
    }
}

/// The names of a handoff's spans.
#[derive(Clone, Copy, Debug)]
struct Trace(HandoffId);

impl Trace {
    /// 32 hexadecimal digits.
    fn id(self) -> String {
        format!("{:032x}", self.0.0.as_u128())
    }

    /// 16 hexadecimal digits, of the id's last half: those of the whole handoff with 0, of its stages from 1
    /// on. Never only zeros, which would be no id.
    fn span_id(self, stage: u64) -> String {
        let (_, half) = self.0.0.as_u64_pair();
        format!("{:016x}", half.wrapping_add(stage).max(1))
    }

    fn root(self) -> Span {
        let (trace_id, span_id) = (self.id(), self.span_id(0));
        info_span!(parent: None, "handoff", trace_id, span_id, outcome = Empty, reason = Empty)
    }

    fn stage(self, root: &Span, phase: Phase, stage: u64) -> Span {
        let (trace_id, span_id) = (self.id(), self.span_id(stage));
        // The name of a span is a constant.
        macro_rules! span {
            ($name:literal) => {
                info_span!(parent: root, $name, trace_id, span_id)
            };
        }
        match phase {
            Phase::Warm => span!("handoff.warm"),
            Phase::Drain => span!("handoff.drain"),
            Phase::Seal => span!("handoff.seal"),
            Phase::Open => span!("handoff.open"),
            Phase::Commit => span!("handoff.commit"),
            Phase::Rollback => span!("handoff.rollback"),
            Phase::Promote => span!("handoff.promote"),
            _ => span!("handoff.phase"),
        }
    }

    /// Sets the variable, unless the launch does.
    fn passed_on(self, launch: Launch) -> Launch {
        if launch.env.iter().any(|(name, _)| name == TRACEPARENT) {
            return launch;
        }
        launch
            .env_remove(TRACESTATE)
            .env(TRACEPARENT, format!("00-{}-{}-01", self.id(), self.span_id(0)))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The id whose digits tell where they are.
    const ID: HandoffId = HandoffId::from_random_bytes([
        0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee,
        0xff,
    ]);

    /// For how long nobody served, where this was told at these milliseconds, and the end came at `end`.
    fn outage(told: &[(u64, Event)], end: u64) -> Option<u64> {
        let origin = Instant::now();
        let at = |ms| origin + Duration::from_millis(ms);
        let mut observer = Observer::new();
        observer.begin(ID, Launch::new("new"), origin);
        for (ms, event) in told {
            observer.tell(event, "testing", at(*ms));
        }
        observer.flight.take().and_then(|mut flight| {
            flight.outage.ends(at(end));
            flight.outage.seen().map(millis)
        })
    }

    #[test]
    fn nobody_serves_from_the_drain_until_somebody_does_again() {
        let phase = Event::Phase;
        let (warm, drain) = ((0, phase(Phase::Warm)), (10, phase(Phase::Drain)));
        let (seal, open) = ((35, phase(Phase::Seal)), (50, phase(Phase::Open)));
        let commit = (90, phase(Phase::Commit));
        let begun = |rest: &[(u64, Event)]| [&[warm.clone(), drain.clone()], rest].concat();

        let told = begun(&[seal.clone(), open.clone(), commit.clone()]);
        assert_eq!(outage(&told, 95), Some(80), "until it is ready");

        let told = begun(&[seal.clone(), (80, phase(Phase::Rollback))]);
        assert_eq!(outage(&told, 100), Some(90), "until the rollback is confirmed");

        assert_eq!(outage(&[warm.clone(), (40, phase(Phase::Rollback))], 60), None, "no drain");

        let told = begun(&[(20, phase(Phase::Promote)), open.clone(), commit.clone()]);
        assert_eq!(outage(&told, 95), Some(80), "the incumbent is gone");

        let lost = (95, phase(Phase::Rollback));
        let told = begun(&[seal, open, commit, lost]);
        assert_eq!(outage(&told, 130), Some(80 + 35), "the successor is gone");
    }

    #[test]
    fn a_successor_is_started_in_the_handoffs_span() {
        let mut observer = Observer::new();
        let parent = |launch: &Launch| {
            let set = launch.env.iter().filter(|(name, _)| name == TRACEPARENT);
            set.map(|(_, value)| value.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        let launch = observer.begin(ID, Launch::new("new"), Instant::now());
        let expected = "00-00112233445546778899aabbccddeeff-8899aabbccddeeff-01";
        assert_eq!(parent(&launch), [expected]);
        let own = Launch::new("new").env(TRACEPARENT, "its own");
        let launch = observer.begin(ID, own, Instant::now());
        assert_eq!(parent(&launch), ["its own"], "what was asked for stays");
    }

    #[test]
    fn no_span_has_zeros_for_an_id() {
        let trace = Trace(HandoffId(Default::default()));
        assert_eq!(trace.span_id(0), "0000000000000001");
        assert_eq!(trace.span_id(2), "0000000000000002");
    }
}

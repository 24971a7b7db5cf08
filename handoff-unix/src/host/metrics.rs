//! What a supervisor's handoffs are counted and timed with: the facade of the crate `metrics`.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

const HANDOFFS: &str = "handoff_handoffs_total";
const OUTCOMES: &str = "handoff_outcomes_total";
const DURATION: &str = "handoff_duration_seconds";
const PHASE_DURATION: &str = "handoff_phase_duration_seconds";
const UNAVAILABLE: &str = "handoff_unavailable_seconds";
const OPEN_CONNECTIONS: &str = "handoff_open_connections_at_commit";
const IN_PROGRESS: &str = "handoff_in_progress";

/// Says what each is, and what is known before the first handoff.
pub(super) fn describe() {
    describe_counter!(HANDOFFS, "Handoffs that were begun.");
    describe_counter!(
        OUTCOMES,
        "Handoffs that have ended, by outcome, and by the reason code of what went wrong."
    );
    describe_histogram!(DURATION, Unit::Seconds, "From the start of a handoff to its end.");
    describe_histogram!(PHASE_DURATION, Unit::Seconds, "How long a phase of a handoff took.");
    describe_histogram!(
        UNAVAILABLE,
        Unit::Seconds,
        "How long nobody served in a handoff that came so far: from when the incumbent was told to \
         drain until the successor was ready, or the incumbent was seen to serve again."
    );
    describe_gauge!(
        OPEN_CONNECTIONS,
        "Connections the incumbent still had open when the last handoff was committed."
    );
    describe_gauge!(IN_PROGRESS, "Whether a handoff is under way: 1 or 0.");
    counter!(HANDOFFS).increment(0);
    gauge!(IN_PROGRESS).set(0.0);
}

pub(super) fn begun() {
    counter!(HANDOFFS).increment(1);
    gauge!(IN_PROGRESS).set(1.0);
}

pub(super) fn phase_over(phase: &'static str, took: Duration) {
    histogram!(PHASE_DURATION, "phase" => phase).record(took.as_secs_f64());
}

pub(super) fn committing(open_connections: u32) {
    gauge!(OPEN_CONNECTIONS).set(f64::from(open_connections));
}

/// `unavailable` where anybody had to wait.
pub(super) fn ended(
    outcome: &'static str,
    reason: &'static str,
    took: Duration,
    unavailable: Option<Duration>,
) {
    counter!(OUTCOMES, "outcome" => outcome, "reason" => reason).increment(1);
    histogram!(DURATION).record(took.as_secs_f64());
    if let Some(unavailable) = unavailable {
        histogram!(UNAVAILABLE).record(unavailable.as_secs_f64());
    }
}

/// No handoff is under way any more, whether its end was seen or not.
pub(super) fn idle() {
    gauge!(IN_PROGRESS).set(0.0);
}

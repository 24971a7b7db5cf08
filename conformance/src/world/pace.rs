//! The durations of the closed system, in whole units so that its states repeat.
//!
//! They keep the order of the defaults: a question is given up (`ask`) before silence counts as
//! death, a verdict is awaited for longer than that, and a supervisor allows one unit more than the
//! daemon it gave a deadline to (T5).

use core::time::Duration;

use handoff_core::{Pulse, daemon, supervisor};

/// One unit of time.
pub const UNIT: Duration = Duration::from_secs(1);

const fn units(count: u32) -> Duration {
    Duration::from_secs(count as u64)
}

const PULSE: Pulse = Pulse { every: units(1), silence: units(3) };

/// One handoff's.
pub const SPEC: supervisor::Spec = supervisor::Spec {
    deadline: units(4),
    drain_grace: units(2),
    hello_budget: units(2),
    dry_run: false,
};

/// A daemon's.
pub const DAEMON: daemon::Timing = daemon::Timing {
    pulse: PULSE,
    hello_ack: units(2),
    idle: units(4),
    hook_stuck: units(3),
    lock_bound: units(5),
    retry: units(1),
    verdict: units(4),
    end_grace: units(1),
    stop_grace: units(2),
};

/// The supervisor's.
pub const SUPERVISOR: supervisor::Timing = supervisor::Timing {
    pulse: PULSE,
    incumbent_hello: units(2),
    slack: units(1),
    ask: units(2),
    recheck: units(1),
    path_recheck: units(1),
    end_grace: units(1),
    kill_wait: units(1),
    confirm: units(4),
    path: units(4),
    silent: units(1),
    silent_grace: units(1),
    hung: units(4),
    unanswered: units(6),
};

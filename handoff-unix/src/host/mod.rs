//! The effects of the machines, carried out on this system.
//!
//! A host turns an effect into a [`Job`]: a closure that may block and is run wherever the adapter
//! keeps such work (a thread, a blocking pool). What it returns goes back into the machine.

mod daemon;
mod supervisor;

pub use daemon::DaemonHost;
pub use supervisor::{Completion, Finished, SupervisorHost};

/// Work that may block, and gives `T`.
pub type Job<T> = Box<dyn FnOnce() -> T + Send>;

/// The log line of an event: a warning where somebody should look at it. `state` is the machine's.
pub fn log(state: &str, trouble: bool, event: &dyn std::fmt::Display) {
    if trouble {
        tracing::warn!(state, "handoff: {event}");
    } else {
        tracing::info!(state, "handoff: {event}");
    }
}

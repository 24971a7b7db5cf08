//! Handoff for programs of threads and blocking sockets.
//!
//! A daemon becomes handoff-aware with [`Daemon`], whose one code path is both the cold start and
//! the takeover:
//!
//! ```text
//! Daemon::from_env ── listener ── (warm up) ── begin ─→ Grant ── (open) ── ready ─→ Serving ── run(hooks) ─→ Ended
//! ```
//!
//! [`Daemon::begin`] blocks until the data directory's lock is held, [`Serving::run`] until this
//! process has no further part to play. The README shows all of it in forty lines, and
//! `examples/kv.rs` is a whole daemon.
//!
//! The protocol runs on one thread beside the program's own; hooks run on the thread that calls
//! [`Serving::run`]. [`Supervisor`] is the other side: it holds the listeners and swaps the daemon.

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

mod daemon;
mod reactor;
mod supervisor;

pub use daemon::{
    Config, Daemon, DrainContext, Grant, HookError, Hooks, SealContext, Serving, Stop,
};
pub use handoff_core::daemon::{DrainReport, Ended, Readiness, SealReport, Timing};
pub use handoff_core::supervisor::{Event, Phase, Reason, Report, Verdict};
pub use handoff_unix::accept::{Acceptor, Stopper};
pub use handoff_unix::spawn::Launch;
pub use supervisor::{Aborter, Handoff, Started, Supervisor, SupervisorConfig};

/// Why a daemon or a supervisor could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The control path cannot be used.
    #[error(transparent)]
    ControlPath(#[from] handoff_unix::control::ControlPathError),
    /// What the supervisor passed on does not hold together (R13).
    #[error(transparent)]
    Inherited(#[from] handoff_unix::inherit::InheritError),
    /// A listener of this name was neither inherited nor could be bound.
    #[error("the listener {name:?} was not inherited, and cannot be bound: {source}")]
    Listener {
        /// Its name.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// A successor looked for a listener that its supervisor did not pass on. Bound anew, it would
    /// strand the clients of the old one (R10).
    #[error("the supervisor passed on no listener {name:?}; it has: {passed}")]
    NotInherited {
        /// The name.
        name: String,
        /// What was passed on.
        passed: String,
    },
    /// A supervisor without listeners would strand its daemon's clients (R10).
    #[error(
        "the supervisor holds no listeners, so a handoff would strand the daemon's clients; \
             give it the listeners, or say that there are none with SupervisorConfig::no_listeners"
    )]
    NoListeners,
    /// A handoff or a search is under way already.
    #[error("the supervisor has not come to the end of what it was asked before")]
    Busy,
    /// A listener cannot be passed on under this name (R13).
    #[error("the listener name {name:?} {problem}")]
    ListenerName {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nobody serves, and no daemon could be started.
    #[error("nobody serves: {0}")]
    NobodyServes(String),
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

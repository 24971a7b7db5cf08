//! The machines on this system: what every adapter has in common.
//!
//! A [`Host`] is a machine with its sockets, its clock and its effects. Everything it waits for is
//! behind one descriptor, so an adapter is a loop in its runtime's idiom:
//!
//! 1. run each [`Host::job`] where it may block, until there is none;
//! 2. drop the host, if it [has ended](Host::has_ended);
//! 3. wait until the host's descriptor is readable;
//! 4. call [`Host::turn`].
//!
//! With threads that is
//!
//! ```
//! use handoff_unix::{host::Host, poll};
//!
//! fn drive(mut host: impl Host) -> std::io::Result<()> {
//!     loop {
//!         while let Some(job) = host.job() {
//!             std::thread::spawn(job);
//!         }
//!         if host.has_ended() {
//!             return Ok(());
//!         }
//!         poll::readable(&host, None)?;
//!         host.turn()?;
//!     }
//! }
//! ```
//!
//! Nothing in a host blocks, and nothing of it belongs to a runtime. The other end of a host is what
//! the program holds: [`Program`] and [`Front`]. For programs of tasks there is [`task`] on top of
//! these, which is the same on every runtime that polls futures.
//!
//! # To be seen
//!
//! What a machine tells is logged, at WARN where somebody should look at it and at INFO else.
//!
//! A supervisor's handoff is a span `handoff`, and in it one for each phase: `handoff.warm`, `.drain`,
//! `.seal`, `.open`, `.commit`, `.rollback`, `.promote`. Each has the fields `trace_id`, the handoff's id in
//! 32 hexadecimal digits, and `span_id`; the first also `outcome` and `reason`, the stable codes. A
//! successor finds both ids of `handoff` in its `TRACEPARENT` (W3C trace context), unless its launch sets
//! that. The last line of a handoff sums it up: `id`, `outcome`, `reason`, `duration_ms`, `unavailable_ms`.
//! With the feature `metrics` it is counted and timed through the crate of that name, too.
//!
//! At TRACE,
//! with the target `handoff::step`, each effect, each hook and each message but heartbeats is told
//! before it and after it: the field `moment` is `before` or `after`, `what` is what it is.
//! An effect is told of in the thread that carries it out, a hook in that of the program, and its
//! completion is reported only after that: so who subscribes to these can hold a process at any of its
//! steps, as the crash matrix in `conformance` does. At a message, and where a daemon watches or signals its
//! successor, that holds the protocol too.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use crate::effects::Job;

mod channel;
mod daemon;
mod hooks;
mod incumbency;
#[cfg(feature = "metrics")]
mod metrics;
mod observe;
mod program;
mod reactor;
mod supervisor;
pub mod task;

pub use daemon::{Config, DaemonHost};
pub use hooks::{DrainContext, HookError, Hooks, Off, SealContext};
pub use incumbency::Incumbency;
pub use program::{HookCall, Program, Request, Stop};
pub use supervisor::{Aborter, Front, Handoff, Started, SupervisorConfig, SupervisorHost};

/// A machine on this system, to be driven by an adapter. Its descriptor is readable when a turn is
/// due.
pub trait Host: AsFd {
    /// What is to be done next, somewhere where it may block: it reports to the host by itself.
    /// `None` when there is nothing until the next turn.
    fn job(&mut self) -> Option<Job<()>>;

    /// Takes in what has arrived, and then the time (T5); whether there was anything.
    ///
    /// # Errors
    ///
    /// The descriptors cannot be waited on: the host is of no use any more, and is to be dropped.
    fn turn(&mut self) -> io::Result<bool>;

    /// Whether it has no further part to play: it is to be dropped.
    fn has_ended(&self) -> bool;
}

/// Tells of a step, before it and after it.
fn step<T>(what: &dyn fmt::Debug, take: impl FnOnce() -> T) -> T {
    step_begins(what);
    let taken = take();
    step_is_over(what);
    taken
}

fn step_begins(what: &dyn fmt::Debug) {
    tracing::trace!(target: "handoff::step", moment = "before", ?what);
}

fn step_is_over(what: &dyn fmt::Debug) {
    tracing::trace!(target: "handoff::step", moment = "after", ?what);
}

/// The log line of an event: a warning where somebody should look at it. `state` is the machine's.
fn log(state: &str, trouble: bool, event: &dyn std::fmt::Display) {
    if trouble {
        tracing::warn!(state, "handoff: {event}");
    } else {
        tracing::info!(state, "handoff: {event}");
    }
}

/// Why a daemon or a supervisor could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The control path cannot be used.
    #[error(transparent)]
    ControlPath(#[from] crate::control::ControlPathError),
    /// What the supervisor passed on does not hold together (R13).
    #[error(transparent)]
    Inherited(#[from] crate::inherit::InheritError),
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

impl StartError {
    /// That a listener of this name cannot be had.
    pub fn listener(name: &str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Listener { name: name.to_string(), source }
    }
}

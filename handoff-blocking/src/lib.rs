//! Handoff for programs of threads and blocking sockets.
//!
//! A daemon becomes handoff-aware with [`Daemon`], whose one code path is both the cold start and
//! the takeover:
//!
//! ```no_run
//! use std::net::TcpListener;
//! use handoff_blocking::{
//!     Config, Daemon, DrainContext, DrainReport, Hooks, HookError, Readiness, SealContext, SealReport,
//! };
//!
//! struct Program; // what accepts, and what holds the data
//!
//! impl Hooks for Program {
//!     fn drain(&mut self, _: &DrainContext) -> Result<DrainReport, HookError> {
//!         // stop accepting, wait for what is in flight
//!         Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
//!     }
//!     fn seal(&mut self, _: &SealContext) -> Result<SealReport, HookError> {
//!         // flush, fsync, close; acknowledge no write from here on
//!         Ok(SealReport::default())
//!     }
//!     fn resume(&mut self) -> Result<(), HookError> {
//!         // the handoff is off: open again, accept again
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut daemon = Daemon::from_env(Config::new("/run/kv/control.sock", "/var/lib/kv"))?;
//! let http = daemon.listener("http", || TcpListener::bind("127.0.0.1:8080"))?;
//! // Warm up here: the old process still serves.
//! let grant = match daemon.begin() {
//!     Ok(grant) => grant,
//!     Err(ended) => std::process::exit(ended.exit_code().into()),
//! };
//! // The lock is ours: open the data in grant.data_dir(), accept on `http`.
//! # let _ = http;
//! let ready = Readiness { listening_on: vec![], healthz_ok: true, revisions: vec![] };
//! let ended = match grant.ready(ready) {
//!     Ok(serving) => serving.run(Program),
//!     Err(ended) => ended,
//! };
//! std::process::exit(ended.exit_code().into());
//! # }
//! ```
//!
//! The protocol runs on one thread beside the program's own; hooks run on the thread that calls
//! [`Serving::run`]. [`Supervisor`] is the other side: it holds the listeners and swaps the daemon.

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

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
mod supervisor;
mod workers;

pub use daemon::{Daemon, Grant, Serving};
pub use handoff_core::HandoffId;
pub use handoff_core::daemon::{DrainReport, Ended, Readiness, SealReport, Timing};
pub use handoff_core::supervisor::{Event, Phase, Ready, Reason, Report, Trouble, Verdict};
pub use handoff_unix::accept::{Acceptor, Stopper};
pub use handoff_unix::host::{
    Aborter, Config, DrainContext, Handoff, HookError, Hooks, Incumbency, Off, SealContext,
    StartError, Started, Stop, SupervisorConfig,
};
pub use handoff_unix::spawn::Launch;
pub use supervisor::Supervisor;

use std::io;
use std::time::Duration;

use handoff_unix::host::Host;
use handoff_unix::poll;

/// Waits for a turn of the host, at most so long, and does what comes of it.
fn turn(host: &mut impl Host, limit: Option<Duration>) -> io::Result<()> {
    poll::readable(host, limit)?;
    host.turn()?;
    work(host);
    Ok(())
}

/// Does what there is to do until the next turn.
fn work(host: &mut impl Host) {
    while let Some(job) = host.job() {
        workers::run(job);
    }
}

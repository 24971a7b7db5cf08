//! Handoff for programs on tokio.
//!
//! A daemon becomes handoff-aware with [`Daemon`], whose one code path is both the cold start and
//! the takeover:
//!
//! ```text
//! Daemon::from_env ── listener ── (warm up) ── begin ─→ Grant ── (open) ── ready ─→ Serving ── run(hooks) ─→ Ended
//! ```
//!
//! [`Daemon::begin`] waits until the data directory's lock is held, [`Serving::run`] until this
//! process has no further part to play:
//!
//! ```no_run
//! use handoff_tokio::{
//!     Config, Daemon, DrainContext, DrainReport, Ended, HookError, Hooks, Readiness, SealContext, SealReport,
//! };
//! use tokio::net::TcpListener;
//!
//! struct Program; // what accepts, and what holds the data
//!
//! async fn serve() -> Result<Ended, HookError> {
//!     let mut daemon = Daemon::from_env(Config::new("/run/kv/control.sock", "/var/lib/kv"))?;
//!     // Inherited from the old process, or bound where there is none.
//!     let http = daemon.listener("http", || TcpListener::bind("127.0.0.1:8080")).await?;
//!     // Warm up here: the old process still serves.
//!     let grant = match daemon.begin().await {
//!         Ok(grant) => grant,
//!         Err(ended) => return Ok(ended),
//!     };
//!     // The lock is ours: open the data in grant.data_dir(), accept on `http`.
//!     let listening_on = vec![http.local_addr()?.to_string()];
//!     let ready = Readiness { listening_on, healthz_ok: true, revisions: vec![] };
//!     Ok(grant.ready(ready).run(Program).await)
//! }
//!
//! impl Hooks for Program {
//!     async fn drain(&mut self, _: &DrainContext) -> Result<DrainReport, HookError> {
//!         // Stop accepting, finish what is in flight.
//!         Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
//!     }
//!     async fn seal(&mut self, _: &SealContext) -> Result<SealReport, HookError> {
//!         // Flush, fsync, close. Acknowledge no write from here on.
//!         Ok(SealReport::default())
//!     }
//!     async fn resume(&mut self) -> Result<(), HookError> {
//!         // The handoff is off: open again, accept again.
//!         Ok(())
//!     }
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), HookError> {
//!     let ended = serve().await?;
//!     std::process::exit(ended.exit_code().into());
//! }
//! ```
//!
//! `examples/kv.rs` is a whole daemon, on axum. [`Supervisor`] is the other side: it holds the
//! listeners and swaps the daemon.
//!
//! The protocol is one task beside the program's own; what may block, the lock, the control path, the
//! journal, starting a process, runs on tokio's blocking pool. Hooks run in the task that awaits
//! [`Serving::run`], so they need not be `Send` unless that is. On a `current_thread` runtime work that
//! blocks the executor for seconds also holds up the protocol's heartbeats, and a daemon that is not
//! heard for 5 s counts as dead: open the data in `spawn_blocking` where that takes long.
//!
//! Everything here needs a runtime with I/O and time enabled.

mod daemon;
mod listener;
mod supervisor;

pub use daemon::Daemon;
pub use handoff_core::HandoffId;
pub use handoff_core::daemon::{DrainReport, Ended, Readiness, SealReport, Timing};
pub use handoff_core::supervisor::{Event, Phase, Ready, Reason, Report, Trouble, Verdict};
#[doc(inline)]
pub use handoff_unix::host::task::{Grant, Hooks, Serving};
#[doc(inline)]
pub use handoff_unix::host::{
    Aborter, Config, DrainContext, Handoff, HookError, Incumbency, Off, SealContext, StartError,
    Started, Stop, SupervisorConfig,
};
pub use handoff_unix::spawn::Launch;
pub use listener::Listener;
pub use supervisor::Supervisor;

use std::io;
use std::os::fd::AsRawFd;

use handoff_unix::host::Host;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;

/// Drives a host in a task of its own.
fn drive(mut host: impl Host + Send + 'static) -> Result<(), StartError> {
    let failed = |source| StartError::Io { what: "watching the protocol's descriptor", source };
    let fd = host.as_fd().try_clone_to_owned().and_then(register).map_err(failed)?;
    work(&mut host);
    tokio::spawn(async move {
        while !host.has_ended() {
            let turn = fd.readable().await.and_then(|mut ready| {
                if !host.turn()? {
                    ready.clear_ready();
                }
                Ok(())
            });
            if let Err(error) = turn {
                return tracing::error!(%error, "handoff: the protocol's task cannot go on");
            }
            work(&mut host);
        }
    });
    Ok(())
}

/// Has done what there is to do until the next turn.
fn work(host: &mut impl Host) {
    while let Some(job) = host.job() {
        drop(spawn_blocking(job));
    }
}

/// What owns a descriptor, in tokio's reactor.
fn register<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // Deprecated, because a type might name descriptors that it does not own, for a constructor that
    // is unsafe. The two types used here own theirs, and unsafe code is for handoff-unix.
    #[allow(deprecated)]
    AsyncFd::with_interest(owner, Interest::READABLE)
}

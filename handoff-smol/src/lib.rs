//! Handoff for programs on smol, and on async-std.
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
//! use handoff_smol::{
//!     Config, Daemon, DrainContext, DrainReport, Ended, HookError, Hooks, Readiness, SealContext, SealReport,
//! };
//! use smol::net::TcpListener;
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
//! fn main() -> Result<(), HookError> {
//!     let ended = smol::block_on(serve())?;
//!     std::process::exit(ended.exit_code().into());
//! }
//! ```
//!
//! `examples/kv.rs` is a whole daemon. [`Supervisor`] is the other side: it holds the listeners and
//! swaps the daemon.
//!
//! The protocol is one task on smol's global executor; what may block, the lock, the control path, the
//! journal, starting a process, runs on smol's blocking pool, whose threads stay once they were needed.
//! Hooks run in the task that awaits [`Serving::run`], so they need not be `Send` unless that is, and a
//! program on a `LocalExecutor` of its own works as well as any: its cost is the global executor's
//! thread, which smol starts for the first task that is spawned on it.
//!
//! # async-std
//!
//! It runs unchanged inside a program on async-std, under `async_std::task::block_on`: both use the
//! reactor of async-io and the pool of blocking. The adapters' tests, in `conformance`, run under both.
//! async-std itself is a dependency of tests and of the demo only, because it is discontinued; smol is
//! what its authors name as its successor, so a program that stays on async-std for now has one runtime
//! less to leave.

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

use handoff_unix::host::Host;
use smol::Async;

/// Drives a host in a task of its own.
fn drive(mut host: impl Host + Send + 'static) -> Result<(), StartError> {
    let failed = |source| StartError::Io { what: "watching the protocol's descriptor", source };
    let fd = host.as_fd().try_clone_to_owned().and_then(Async::new_nonblocking).map_err(failed)?;
    work(&mut host);
    let driven = smol::spawn(async move {
        while !host.has_ended() {
            if let Err(error) = fd.readable().await.and_then(|()| host.turn()) {
                return tracing::error!(%error, "handoff: the protocol's task cannot go on");
            }
            work(&mut host);
        }
    });
    driven.detach();
    Ok(())
}

/// Has done what there is to do until the next turn.
fn work(host: &mut impl Host) {
    while let Some(job) = host.job() {
        smol::unblock(job).detach();
    }
}

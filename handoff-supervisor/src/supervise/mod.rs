//! `handoff supervise`: the process that keeps its pid for ever.
//!
//! ```text
//!            clients ── server ──┐                    ┌── keep    state and history, on disk
//!            signals ────────────┤                    ├── output  what daemons write
//!   handoff_tokio::Supervisor ───┼── Mail ──→ Actor ──┼── systemd
//!            health ─────────────┘                    └── status, metrics
//! ```
//!
//! One [`Actor`](actor) decides what the command does; everything that takes time runs beside it and reports
//! to it by [`Mail`]. How a handoff goes is decided in `handoff-core`.

mod actor;
mod flight;
mod health;
mod keep;
mod launch;
mod log;
mod metrics;
mod output;
mod server;
mod start;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use handoff_tokio::{Event, Report, StartError, Started};
use tokio::sync::mpsc;

use crate::admin::{Reply, Request};
use crate::client::text::tell;
use crate::exit;

/// What reaches the supervisor's actor.
#[derive(Debug)]
enum Mail {
    /// A client asks.
    Request { request: Request, uid: u32, to: mpsc::Sender<Reply> },
    /// The search for who serves, or a handoff, tells something.
    Event(Event),
    /// The search has an answer.
    Started(Result<Started, StartError>),
    /// The handoff has an end.
    Finished(Result<Report, StartError>),
    /// A daemon has ended.
    Exited(u32, String),
    /// What this daemon calls its build.
    Build(u32, String),
    /// The health of this daemon.
    Health(u32, Result<(), String>),
    /// A new binary of the supervisor was tried, and the client knows.
    Reexec(PathBuf),
    /// Every daemon has ended, unless this says what has not.
    Stopped(Option<String>),
    /// Everybody who waits knows: the process ends with this code.
    End(u8),
    /// SIGTERM or SIGINT.
    Terminate,
    /// SIGHUP.
    Reload,
}

/// Runs the verb.
pub(crate) fn run(config: &Path) -> ExitCode {
    let kept = handoff_unix::replace::kept();
    let config = match std::path::absolute(config) {
        Ok(config) => config,
        Err(error) => {
            tell(&format!("handoff: {}: {error}\n", config.display()));
            return exit::NO_INPUT.into();
        }
    };
    match start::start(&config, kept) {
        Ok(code) => code,
        Err(failure) => {
            tell(&format!("handoff: {}\n", failure.message));
            failure.exit.into()
        }
    }
}

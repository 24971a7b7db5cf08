use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use handoff_core::daemon::Ended;
use handoff_unix::host::task::{self, Grant};
use handoff_unix::host::{Config, DaemonHost, Program, StartError};

use crate::Listener;

/// A daemon before it holds the lock: started cold, or as a successor.
///
/// Dropping it gives up: the protocol's task closes its connections and ends, a successor is then
/// ended by its supervisor, and the old process goes on.
#[derive(Debug)]
pub struct Daemon {
    program: Program,
}

impl Daemon {
    /// Reads what a supervisor passed on (R13), and starts the task that speaks the protocol.
    ///
    /// To be called once, early: where the supervisor gave no budget for a warm-up, Hello is said now
    /// (C3). Nothing is locked, bound or opened.
    ///
    /// # Errors
    ///
    /// A control path too long for a socket or in no directory, an environment that does not hold
    /// together, a descriptor that cannot be had.
    ///
    /// # Panics
    ///
    /// Outside of a runtime with I/O enabled, as tokio's own sockets do.
    pub fn from_env(config: Config) -> Result<Self, StartError> {
        let (host, program) = DaemonHost::from_env(config)?;
        crate::drive(host)?;
        Ok(Self { program })
    }

    /// Whether a supervisor started this process to take over from another.
    #[must_use]
    pub fn is_successor(&self) -> bool {
        self.program.is_successor()
    }

    /// The inherited TCP listener of this name; on a cold start without one, what `bind` gives.
    ///
    /// Its mode is not changed (R13), so it comes as a [`Listener`], which takes either. Dropping the
    /// future drops what it has.
    ///
    /// # Errors
    ///
    /// The inherited descriptor is no TCP listener, `bind` failed, or this is a successor and its
    /// supervisor passed on no such listener (R10).
    pub async fn listener<L: AsFd, F: Future<Output = io::Result<L>>>(
        &mut self,
        name: &str,
        bind: impl FnOnce() -> F,
    ) -> Result<Listener, StartError> {
        let listener = self.program.listen(name, bind).await?;
        Listener::new(listener).map_err(StartError::listener(name))
    }

    /// The same for a Unix stream listener.
    ///
    /// # Errors
    ///
    /// The inherited descriptor is no Unix stream listener, `bind` failed, or this is a successor and
    /// its supervisor passed on no such listener (R10).
    pub async fn unix_listener<L: AsFd, F: Future<Output = io::Result<L>>>(
        &mut self,
        name: &str,
        bind: impl FnOnce() -> F,
    ) -> Result<Listener<UnixListener>, StartError> {
        let listener = self.program.listen(name, bind).await?;
        Listener::new(listener).map_err(StartError::listener(name))
    }

    /// Any other inherited descriptor of this name.
    pub fn fd(&mut self, name: &str) -> Option<OwnedFd> {
        self.program.fd(name)
    }

    /// The warm-up is done: waits until the lock is this process's (C3, R3).
    ///
    /// Waits for Hello, HelloAck and Begin in a successor; on a cold start, while another holds the
    /// lock and does not answer. Dropping the future gives up, as dropping the [`Daemon`]; a lock that
    /// is had meanwhile is released.
    ///
    /// # Errors
    ///
    /// How it ended instead: the supervisor went away or gave up, another process serves, the lock
    /// could not be had. Exit with [`Ended::exit_code`].
    pub async fn begin(self) -> Result<Grant, Ended> {
        task::begin(self.program).await
    }
}

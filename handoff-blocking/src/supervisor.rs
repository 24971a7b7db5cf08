use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use handoff_core::supervisor::{Event, Report};
use handoff_unix::host::{
    Aborter, Front, Handoff, Host, StartError, Started, SupervisorConfig, SupervisorHost,
};
use handoff_unix::spawn::Launch;

/// Holds the listeners and swaps the daemon (S).
///
/// It works while one of its methods runs, on the calling thread. Dropping it ends no daemon, and waits
/// until the last entry of the journal is written; a handoff cannot be dropped halfway, because
/// [`Supervisor::handoff`] returns at its end.
#[derive(Debug)]
pub struct Supervisor {
    front: Front,
    host: SupervisorHost,
}

impl Supervisor {
    /// A supervisor without listeners. Makes this process the reaper of its daemons' orphans (R14).
    ///
    /// # Errors
    ///
    /// A control path too long for a socket or in no directory, no descriptors left.
    pub fn new(config: SupervisorConfig) -> Result<Self, StartError> {
        let (host, front) = SupervisorHost::new(config)?;
        Ok(Self { front, host })
    }

    /// Keeps a listener, for every daemon it starts from now on to inherit under this name (R13). Its
    /// mode is not changed.
    ///
    /// # Errors
    ///
    /// A name that is taken, empty, or has a colon.
    pub fn listener(&mut self, name: &str, fd: impl Into<OwnedFd>) -> Result<(), StartError> {
        self.front.listener(name, fd.into())
    }

    /// Finds out who serves; where nobody does and the lock is free, starts `launch` and waits until
    /// it serves (R10, R17).
    ///
    /// # Errors
    ///
    /// The daemon did not start, ended before it served, or the search was [aborted](Aborter). As long
    /// as somebody else holds the lock and answers nobody, it waits.
    pub fn start(&mut self, launch: &Launch) -> Result<Started, StartError> {
        self.front.start(launch, || turn(&mut self.host, None))
    }

    /// Hands off, and returns when that has come to an end (C, R). `on` is told what happens, as it
    /// happens.
    ///
    /// # Errors
    ///
    /// The supervisor holds no listeners, or is busy: nothing was done. Or this process cannot wait for
    /// its sockets any more: what became of the handoff is not known then.
    pub fn handoff(
        &mut self,
        handoff: &Handoff,
        on: impl FnMut(&Event),
    ) -> Result<Report, StartError> {
        self.front.handoff(handoff, on, || turn(&mut self.host, None))
    }

    /// Watches the daemons for a while, between handoffs: reaps those that have exited, and returns
    /// early when one has. Gives the pids and how they ended, replaced ones too, each once.
    ///
    /// # Errors
    ///
    /// This process cannot wait for its sockets any more.
    pub fn watch(&mut self, time: Duration) -> Result<Vec<(u32, String)>, StartError> {
        let limit = Instant::now().checked_add(time);
        loop {
            let left = limit.map(|limit| limit.saturating_duration_since(Instant::now()));
            turn(&mut self.host, left)?;
            let gone: Vec<_> = std::iter::from_fn(|| self.front.exit()).collect();
            if !gone.is_empty() || left.is_some_and(|left| left.is_zero()) {
                return Ok(gone);
            }
        }
    }

    /// A handle that rolls back the handoff under way.
    #[must_use]
    pub fn aborter(&self) -> Aborter {
        self.front.aborter()
    }

    /// Ends every daemon it started or found: SIGTERM, `grace`, SIGKILL, each with all its process group (R14).
    /// Gives the pids that would not die.
    ///
    /// # Errors
    ///
    /// This process cannot wait for its sockets any more.
    pub fn shutdown(&mut self, grace: Duration) -> Result<Vec<u32>, StartError> {
        self.front.shutdown(grace, || turn(&mut self.host, None))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.front.close();
        while !self.host.has_ended() && turn(&mut self.host, None).is_ok() {}
    }
}

fn turn(host: &mut SupervisorHost, limit: Option<Duration>) -> Result<(), StartError> {
    let what = "waiting for the daemons";
    crate::turn(host, limit).map_err(|source| StartError::Io { what, source })
}

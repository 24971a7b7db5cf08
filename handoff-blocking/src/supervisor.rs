use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use handoff_core::supervisor::{Event, Report};
use handoff_unix::host::{
    Aborter, Handoff, StartError, Started, SupervisorConfig, SupervisorHost, SupervisorWork,
};
use handoff_unix::poll;
use handoff_unix::spawn::Launch;

/// Holds the listeners and swaps the daemon (S).
///
/// It works while one of its methods runs, on the calling thread. Dropping it ends no daemon; a
/// handoff cannot be dropped halfway, because [`Supervisor::handoff`] returns at its end.
#[derive(Debug)]
pub struct Supervisor {
    host: SupervisorHost,
}

impl Supervisor {
    /// A supervisor without listeners. Makes this process the reaper of its daemons' orphans (R14).
    ///
    /// # Errors
    ///
    /// A control path too long for a socket or in no directory, no descriptors left.
    pub fn new(config: SupervisorConfig) -> Result<Self, StartError> {
        Ok(Self { host: SupervisorHost::new(config)? })
    }

    /// Keeps a listener, for every daemon it starts from now on to inherit under this name (R13). Its
    /// mode is not changed.
    ///
    /// # Errors
    ///
    /// A name that is taken, empty, or has a colon.
    pub fn listener(&mut self, name: &str, fd: impl Into<OwnedFd>) -> Result<(), StartError> {
        self.host.listener(name, fd.into())
    }

    /// Finds out who serves; where nobody does and the lock is free, starts `launch` and waits until
    /// it serves (R10, R17).
    ///
    /// # Errors
    ///
    /// The daemon did not start, ended before it served, or the search was [aborted](Aborter). As long
    /// as somebody else holds the lock and answers nobody, it waits.
    pub fn start(&mut self, launch: &Launch) -> Result<Started, StartError> {
        self.host.start(launch)?;
        self.until(|event| match event {
            Event::Serving { pid, started } => Some(Ok(Started { pid, started })),
            Event::NobodyServes(reason) => Some(Err(StartError::NobodyServes(reason))),
            _ => None,
        })?
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
        mut on: impl FnMut(&Event),
    ) -> Result<Report, StartError> {
        self.host.handoff(handoff)?;
        self.until(|event| {
            on(&event);
            match event {
                Event::Finished(report) => Some(report),
                _ => None,
            }
        })
    }

    /// Watches the daemons for a while, between handoffs: reaps those that have exited, and returns
    /// early when one has. Gives the pids and how they ended.
    ///
    /// # Errors
    ///
    /// This process cannot wait for its sockets any more.
    pub fn watch(&mut self, time: Duration) -> Result<Vec<(u32, String)>, StartError> {
        let limit = Instant::now().checked_add(time);
        loop {
            let gone = self.work(|_| {});
            let left = limit.map(|limit| limit.saturating_duration_since(Instant::now()));
            if !gone.is_empty() || left.is_some_and(|left| left.is_zero()) {
                return Ok(gone);
            }
            self.turn(left)?;
        }
    }

    /// A handle that rolls back the handoff under way.
    #[must_use]
    pub fn aborter(&self) -> Aborter {
        self.host.aborter()
    }

    /// Ends every daemon it started: SIGTERM, `grace`, SIGKILL, each with all its process group (R14).
    /// Gives the pids that would not die.
    pub fn shutdown(&mut self, grace: Duration) -> Vec<u32> {
        self.host.end_all(grace)()
    }

    /// Works until `stop` has what it waits for.
    fn until<R>(&mut self, mut stop: impl FnMut(Event) -> Option<R>) -> Result<R, StartError> {
        loop {
            let mut result = None;
            self.work(|event| result = result.take().or_else(|| stop(event)));
            if let Some(result) = result {
                return Ok(result);
            }
            self.turn(None)?;
        }
    }

    /// Does what there is to do; which daemons have exited.
    fn work(&mut self, mut on: impl FnMut(Event)) -> Vec<(u32, String)> {
        let mut gone = Vec::new();
        while let Some(work) = self.host.work() {
            match work {
                SupervisorWork::Job(job) => crate::run(job),
                SupervisorWork::Event(event) => on(event),
                SupervisorWork::Exited { pid, status } => gone.push((pid, status)),
            }
        }
        gone
    }

    fn turn(&mut self, limit: Option<Duration>) -> Result<(), StartError> {
        let turn = poll::readable(&self.host, limit).and_then(|_| self.host.turn());
        let what = "waiting for the daemons";
        turn.map(drop).map_err(|source| StartError::Io { what, source })
    }
}

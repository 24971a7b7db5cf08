use std::os::fd::OwnedFd;
use std::time::Duration;

use handoff_core::supervisor::{Event, Report};
use handoff_unix::host::{
    Aborter, Handoff, StartError, Started, SupervisorConfig, SupervisorHost, task,
};
use handoff_unix::spawn::Launch;

/// Holds the listeners and swaps the daemon (S).
///
/// A task of its own does the work, so a future that is dropped halfway leaves nothing undone.
/// Dropping the supervisor ends no daemon that serves: a handoff under way is rolled back, unless it
/// is committed already, and then the task ends.
#[derive(Debug)]
pub struct Supervisor(task::Supervisor);

impl Supervisor {
    /// A supervisor without listeners. Makes this process the reaper of its daemons' orphans (R14).
    ///
    /// # Errors
    ///
    /// A control path too long for a socket or in no directory, no descriptors left.
    pub fn new(config: SupervisorConfig) -> Result<Self, StartError> {
        let (host, front) = SupervisorHost::new(config)?;
        crate::drive(host)?;
        Ok(Self(task::Supervisor::new(front)))
    }

    /// Keeps a listener, for every daemon it starts from now on to inherit under this name (R13). Its
    /// mode is not changed.
    ///
    /// # Errors
    ///
    /// A name that is taken, empty, or has a colon.
    pub fn listener(&self, name: &str, fd: impl Into<OwnedFd>) -> Result<(), StartError> {
        self.0.front().listener(name, fd.into())
    }

    /// Finds out who serves; where nobody does and the lock is free, starts `launch` and waits until
    /// it serves (R10, R17). Dropping the future gives up the search; a daemon that was started by then
    /// is left to serve.
    ///
    /// # Errors
    ///
    /// The supervisor is busy; the daemon did not start, ended before it served, or the search was
    /// [aborted](Aborter). As long as somebody else holds the lock and answers nobody, it waits.
    pub async fn start(&self, launch: &Launch) -> Result<Started, StartError> {
        self.0.start(launch).await
    }

    /// Hands off, and is done when that has come to an end (C, R). `on` is told what happens, as it
    /// happens. Dropping the future aborts the handoff: it is rolled back unless it is committed
    /// already, and until then the supervisor is busy.
    ///
    /// # Errors
    ///
    /// The supervisor holds no listeners, or is busy: nothing was done. Or its task is gone: what
    /// became of the handoff is not known then.
    pub async fn handoff(
        &self,
        handoff: &Handoff,
        on: impl FnMut(&Event),
    ) -> Result<Report, StartError> {
        self.0.handoff(handoff, on).await
    }

    /// Waits until one of its daemons has ended, replaced ones too, and gives its pid and how it ended.
    /// Each is told once. Dropping the future loses none.
    pub async fn exited(&self) -> (u32, String) {
        self.0.exited().await
    }

    /// A handle that rolls back the handoff under way.
    #[must_use]
    pub fn aborter(&self) -> Aborter {
        self.0.front().aborter()
    }

    /// Ends every daemon it started: SIGTERM, `grace`, SIGKILL, each with all its process group (R14).
    /// Gives the pids that would not die. Dropping the future does not stop it.
    ///
    /// # Errors
    ///
    /// Its task is gone.
    pub async fn shutdown(&self, grace: Duration) -> Result<Vec<u32>, StartError> {
        self.0.shutdown(grace).await
    }
}

use std::ops::Deref;

use handoff_unix::host::{StartError, SupervisorConfig, SupervisorHost, task};

/// Holds the listeners and swaps the daemon (S), in a task of its own: what it can do is that of
/// [`task::Supervisor`].
///
/// Dropping it ends no daemon that serves: a handoff under way is rolled back, unless it is committed
/// already, and then the task ends.
#[derive(Debug)]
pub struct Supervisor(task::Supervisor);

impl Supervisor {
    /// A supervisor without listeners. Makes this process the reaper of its daemons' orphans (R14).
    ///
    /// # Errors
    ///
    /// A control path too long for a socket or in no directory, no descriptors left.
    ///
    /// # Panics
    ///
    /// Outside of a runtime with I/O enabled, as tokio's own sockets do.
    pub fn new(config: SupervisorConfig) -> Result<Self, StartError> {
        let (host, front) = SupervisorHost::new(config)?;
        crate::drive(host)?;
        Ok(Self(task::Supervisor::new(front)))
    }
}

impl Deref for Supervisor {
    type Target = task::Supervisor;

    fn deref(&self) -> &task::Supervisor {
        &self.0
    }
}

//! Processes that a probe starts, and ends.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use handoff_unix::process::{ExitCause, Signal};
use handoff_unix::spawn::{self, Child, Launch, SpawnRole};

use super::report::{Log, Stop, fail, seconds};
use super::until;

/// How long a process may take to go once it is killed.
const KILLED: Duration = Duration::from_secs(10);

/// One that is gone, with all its group, when this is dropped.
pub(super) struct Process {
    pub(super) child: Child,
    log: Log,
}

impl Process {
    pub(super) fn start(
        launch: &Launch,
        listeners: &[(String, BorrowedFd<'_>)],
        role: SpawnRole,
        log: &Log,
    ) -> Result<Self, Stop> {
        let child = spawn::spawn(launch, listeners, role)
            .map_err(|error| Stop::Failed(error.to_string()))?;
        log.note(format_args!("-- pid {} started", child.pid));
        Ok(Self { child, log: log.clone() })
    }

    /// Waits until it has exited; how.
    pub(super) fn exits(&self, limit: Duration) -> Result<ExitCause, Stop> {
        if !self.child.pidfd.wait(Some(limit))? {
            return fail(format!("the process is there after {}", seconds(limit)));
        }
        let mut cause = None;
        until(KILLED, || {
            self.child.group.reap();
            cause = self.child.group.leader_status();
            cause.is_some()
        });
        let cause = cause.unwrap_or(ExitCause::Unknown);
        self.log.note(format_args!("-- pid {}: {cause}", self.child.pid));
        Ok(cause)
    }

    /// Waits until it has exited with this code.
    pub(super) fn exits_with(&self, code: i32, limit: Duration) -> Result<(), Stop> {
        match self.exits(limit)? {
            ExitCause::Code(found) if found == code => Ok(()),
            other => fail(format!("it ended with {other}, not with exit code {code}")),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.group.signal(Signal::KILL);
        until(KILLED, || self.child.group.is_gone());
    }
}

/// The same, with what it prints let go, or on the standard error, where it is in no report's way.
pub(super) fn quiet(launch: Launch, output: bool) -> Launch {
    let to = if output {
        std::io::stderr().as_fd().try_clone_to_owned()
    } else {
        OpenOptions::new().write(true).open("/dev/null").map(OwnedFd::from)
    };
    match to {
        Ok(to) => {
            let to = Arc::new(to);
            launch.stdout(Arc::clone(&to)).stderr(to)
        }
        Err(_) => launch,
    }
}

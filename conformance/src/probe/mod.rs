//! The black box: drives any implementation of the wire from outside, a clause at a time, as h2spec does
//! for HTTP/2.
//!
//! | what is probed | who the probe is | |
//! |---|---|---|
//! | [`Incumbent`] | the supervisor, on a control path where a daemon serves | a running daemon, left serving |
//! | [`Successor`] | the supervisor that starts it, and the incumbent before it | a fresh process for each case |
//! | [`Supervisor`] | the incumbent, and through a [`puppet`] the successor | a fresh process for each case |
//!
//! Nothing of this project's daemons or supervisors is in it, but the frames of `handoff-core` and the
//! system calls of `handoff-unix`. Every wait has a bound, so no peer can make a probe hang.

mod conn;
mod incumbent;
mod process;
pub mod puppet;
mod report;
mod successor;
mod supervisor;

pub(crate) use incumbent::CHECKS as INCUMBENT;
pub(crate) use report::Check;
pub(crate) use successor::CHECKS as SUCCESSOR;
pub(crate) use supervisor::CHECKS as SUPERVISOR;

pub use incumbent::Incumbent;
pub use report::{Case, Report, Verdict};
pub use successor::Successor;
pub use supervisor::Supervisor;

use std::io;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use handoff_unix::control::ControlPath;

/// How long to wait before looking again at what has no event.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks until it is true, or the time is over; whether it is.
pub(crate) fn until(limit: Duration, mut true_by_now: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if true_by_now() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// What is allowed beyond the protocol's own durations, where an answer may take so long.
fn slack(patience: Duration) -> Duration {
    patience * 2 / 5
}

/// Removes what ended processes have left at a control path and beside it.
fn tidy(socket: &ControlPath) {
    socket.remove_stale();
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if socket.connect(Duration::ZERO).is_err_and(refused) {
        let _ = std::fs::remove_file(socket.as_path());
    }
}

/// A process that does nothing, to be named as a successor: an incumbent may end the one it was told of
/// (R2), so that must not be the probe.
struct Dummy(Child);

impl Dummy {
    fn start() -> io::Result<Self> {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Dummy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::{Check, incumbent, successor, supervisor};

    const PROTOCOL: &str = include_str!("../../../docs/protocol.md");

    fn reads_well<C>(checks: &[Check<C>]) {
        for check in checks {
            for clause in check.clauses {
                let row = format!("| {clause} |");
                assert!(PROTOCOL.contains(&row), "{}: there is no clause {clause}", check.name);
            }
            let clauses: usize = check.clauses.iter().map(|clause| clause.len() + 1).sum();
            assert!(6 + check.name.len() + 1 + clauses <= 80, "{}: too long a line", check.name);
            let same = checks.iter().filter(|other| other.name == check.name).count();
            assert_eq!(same, 1, "{}", check.name);
        }
    }

    #[test]
    fn cases_name_clauses_that_there_are_and_fit_a_line() {
        reads_well(incumbent::CHECKS);
        reads_well(successor::CHECKS);
        reads_well(supervisor::CHECKS);
    }
}

//! Watching and ending processes that were started here (R14, R5).
//!
//! Nothing in this module waits for or signals "any child": the program it runs in may have
//! children of its own.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus};

pub use rustix::process::Signal;

/// A handle to one process that never comes to mean another one, unlike a pid.
///
/// It is close-on-exec, and readable once the process has exited, reaped or not. Dropping it does
/// nothing to the process.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: Pid,
}

impl PidFd {
    /// Opens a handle to the process that has this pid now.
    ///
    /// That it is the intended one is for the caller to know: a child that has not been waited
    /// for, or a peer whose connection is open. Errors: no such process, 0 or beyond the range
    /// of pids (`InvalidInput`), no descriptors left.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = to_pid(pid)?;
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { fd, pid })
    }

    /// The pid it was opened with. It may belong to another process once this one is reaped.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal to the process; `Ok(false)` if it is gone already.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        match rustix::process::pidfd_send_signal(&self.fd, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether the process has exited; a zombie has.
    #[must_use]
    pub fn has_exited(&self) -> bool {
        self.wait(Some(Duration::ZERO)).unwrap_or(false)
    }

    /// Waits until the process has exited, or for `timeout`; says whether it has exited.
    ///
    /// It does not reap: the exit status stays with the parent.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        crate::poll::ready(&self.fd, PollFlags::IN, timeout)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a process is stopped, as by SIGSTOP. One that a debugger holds is not.
pub(crate) fn is_stopped(pid: u32) -> bool {
    stat(pid, 0).as_deref() == Some("T")
}

/// Whether a process leads a group of its own, as one that a supervisor started does.
pub(crate) fn leads_a_group(pid: u32) -> bool {
    to_pid(pid).is_ok_and(|pid| rustix::process::getpgid(Some(pid)) == Ok(pid))
}

/// When a process was started, in clock ticks since boot: with its number that names it for good. `None`
/// where there is no such process any more.
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    stat(pid, 19)?.parse().ok()
}

/// A field of a process's `stat`, counted behind the name, which may hold anything.
fn stat(pid: u32, field: usize) -> Option<String> {
    let stat = read_proc(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(field).map(str::to_string)
}

/// What a file of `/proc` says, in one read and another that finds the end. These have no size, so
/// std would ask for that first and then read them in small pieces.
pub(crate) fn read_proc(path: impl AsRef<Path>) -> io::Result<String> {
    let mut text = String::with_capacity(4096);
    File::open(path)?.take(u64::MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitCause {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It is gone, and somebody else was told how.
    Unknown,
}

impl From<WaitStatus> for ExitCause {
    fn from(status: WaitStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => match signal_name(signal) {
                Some(name) => write!(f, "killed by {name} ({signal})"),
                None => write!(f, "killed by signal {signal}"),
            },
            Self::Unknown => f.write_str("ended in an unknown way"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        _ => return None,
    })
}

/// A process of the group that was reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reaped {
    /// The pid it had.
    pub pid: u32,
    /// How it ended.
    pub cause: ExitCause,
}

/// The process group of a child that was started as the leader of its own group (R14).
///
/// It reaches every descendant that has not made itself a group or session of its own; orphans
/// among them come to this process if it is a subreaper
/// ([`become_subreaper`](crate::spawn::become_subreaper)). The id of a group stays taken while a
/// member, even a zombie, is left; once the group was seen to be gone this value never signals or
/// waits again. Dropping it does nothing to the processes.
#[derive(Debug)]
pub struct ProcessGroup {
    id: Pid,
    state: Mutex<GroupState>,
}

#[derive(Debug, Default)]
struct GroupState {
    leader: Option<ExitCause>,
    gone: bool,
}

impl ProcessGroup {
    /// The group led by the child with this pid, which must have been started as its leader.
    ///
    /// Errors (`InvalidInput`) for what would mean other processes altogether: 0, 1, this
    /// process, its own group, or what is no pid.
    pub fn of(leader: u32) -> io::Result<Self> {
        let id = to_pid(leader)?;
        // To the system calls, group 1 means "every process there is".
        if id == Pid::INIT || id == rustix::process::getpid() || id == rustix::process::getpgrp() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("process group {leader} was not started here"),
            ));
        }
        Ok(Self { id, state: Mutex::default() })
    }

    /// The pid of the leader, which is the id of the group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id.as_raw_nonzero().get().unsigned_abs()
    }

    /// Signals every process of the group; `Ok(false)` if none is left.
    ///
    /// Reaps first. `PermissionDenied` if there are processes left and none of them may be
    /// signalled.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let mut state = self.state();
        self.sweep(&mut state);
        if state.gone {
            return Ok(false);
        }
        match rustix::process::kill_process_group(self.id, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => {
                state.gone = true;
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Reaps the children of this process in the group that have ended, without waiting.
    pub fn reap(&self) -> Vec<Reaped> {
        self.sweep(&mut self.state())
    }

    /// Reaps, then says whether no process of the group is left.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let mut state = self.state();
        self.sweep(&mut state);
        state.gone
    }

    /// How the leader ended, once it was reaped; [`ExitCause::Unknown`] if somebody else did.
    #[must_use]
    pub fn leader_status(&self) -> Option<ExitCause> {
        let state = self.state();
        state.leader.or(state.gone.then_some(ExitCause::Unknown))
    }

    fn state(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep(&self, state: &mut GroupState) -> Vec<Reaped> {
        let mut reaped = Vec::new();
        // A later child may be given the same pid; it is not ours to reap.
        if state.gone {
            return reaped;
        }
        loop {
            match rustix::process::waitpgid(self.id, WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let cause = ExitCause::from(status);
                    if pid == self.id {
                        state.leader = Some(cause);
                    }
                    reaped.push(Reaped { pid: pid.as_raw_nonzero().get().unsigned_abs(), cause });
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(Errno::CHILD) => break,
                Err(error) => {
                    tracing::warn!(group = self.id(), %error, "cannot reap");
                    break;
                }
            }
        }
        state.gone = matches!(rustix::process::test_kill_process_group(self.id), Err(Errno::SRCH));
        reaped
    }
}

fn to_pid(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is no pid")))
}

#[cfg(test)]
#[allow(clippy::zombie_processes, reason = "groups are what reaps here")]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use super::*;

    fn start(script: &str) -> Child {
        Command::new("/bin/sh").args(["-c", script]).process_group(0).spawn().unwrap()
    }

    #[test]
    fn a_pidfd_tells_when_its_process_is_gone() {
        let mut child = start("exec sleep 1000");
        let pidfd = PidFd::open(child.id()).unwrap();
        assert_eq!(pidfd.pid(), child.id());
        assert!(!pidfd.has_exited());
        assert!(!pidfd.wait(Some(Duration::from_millis(1))).unwrap());
        assert!(pidfd.signal(Signal::TERM).unwrap());
        assert!(pidfd.wait(None).unwrap());
        assert!(pidfd.has_exited(), "as a zombie");
        child.wait().unwrap();
        assert!(pidfd.has_exited(), "and reaped");
        assert!(!pidfd.signal(Signal::KILL).unwrap());
        assert!(PidFd::open(child.id()).is_err());
    }

    #[test]
    fn r14_a_group_of_one_is_reaped_with_its_status() {
        let child = start("exit 3");
        let pidfd = PidFd::open(child.id()).unwrap();
        let group = ProcessGroup::of(child.id()).unwrap();
        pidfd.wait(None).unwrap();
        let cause = ExitCause::Code(3);
        assert_eq!(group.reap(), [Reaped { pid: child.id(), cause }]);
        assert!(group.is_gone());
        assert_eq!(group.leader_status(), Some(cause));
        assert!(!group.signal(Signal::KILL).unwrap());
    }

    #[test]
    fn r14_other_children_are_left_alone() {
        let mut other = Command::new("/bin/true").spawn().unwrap();
        let child = start("exec sleep 1000");
        let group = ProcessGroup::of(child.id()).unwrap();
        PidFd::open(other.id()).unwrap().wait(None).unwrap();
        assert_eq!(group.reap(), []);
        assert!(!group.is_gone());
        assert_eq!(group.leader_status(), None);
        assert!(other.wait().unwrap().success(), "still there to be waited for");
        assert!(group.signal(Signal::KILL).unwrap());
        PidFd::open(child.id()).unwrap().wait(None).unwrap();
        assert!(group.is_gone());
        assert_eq!(group.leader_status(), Some(ExitCause::Signal(9)));
    }

    #[test]
    fn a_group_that_was_not_started_here_is_refused() {
        let own = rustix::process::getpgrp().as_raw_nonzero().get().unsigned_abs();
        for pid in [0, 1, std::process::id(), own, u32::MAX] {
            let error = ProcessGroup::of(pid).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{pid}");
        }
        assert!(PidFd::open(0).is_err());
    }

    #[test]
    fn causes_are_readable() {
        assert_eq!(ExitCause::Code(3).to_string(), "exit code 3");
        assert_eq!(ExitCause::Signal(9).to_string(), "killed by SIGKILL (9)");
        assert_eq!(ExitCause::Signal(40).to_string(), "killed by signal 40");
    }
}

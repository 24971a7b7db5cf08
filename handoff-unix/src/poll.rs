//! Waiting for descriptors.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Waits until one of `fds` has something to tell, or the time is over; how many have.
///
/// The time is rounded up, so that a deadline has come when it returns. A signal counts as nothing
/// to tell.
///
/// # Errors
///
/// Only what is a mistake of the caller's, or a shortage of memory.
pub fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    match poll(fds, timeout.as_ref()) {
        Ok(count) => Ok(count),
        Err(rustix::io::Errno::INTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn ready(
    fd: &impl AsFd,
    flags: PollFlags,
    timeout: Option<Duration>,
) -> io::Result<bool> {
    Ok(wait(&mut [PollFd::new(fd, flags)], timeout)? > 0)
}

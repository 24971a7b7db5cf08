//! Waiting for descriptors.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits until one of `fds` has something to tell, or the time is over; how many have.
///
/// The time is rounded up, so that a deadline has come when it returns, and goes on after a signal:
/// nothing to tell means that nothing was there when the time was over.
///
/// # Errors
///
/// Only what is a mistake of the caller's, or a shortage of memory.
pub fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    // A timeout too far away for the clock is none.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
            .and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, left.as_ref()) {
            Ok(count) => return Ok(count),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until `fd` is readable, or the time is over; whether it is. As [`wait`] otherwise.
///
/// # Errors
///
/// As [`wait`].
pub fn readable(fd: &impl AsFd, timeout: Option<Duration>) -> io::Result<bool> {
    ready(fd, PollFlags::IN, timeout)
}

pub(crate) fn ready(
    fd: &impl AsFd,
    flags: PollFlags,
    timeout: Option<Duration>,
) -> io::Result<bool> {
    Ok(wait(&mut [PollFd::new(fd, flags)], timeout)? > 0)
}

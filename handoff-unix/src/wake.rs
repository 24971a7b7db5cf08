//! Waking a thread that waits in `poll(2)`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// Something another thread can make readable; clones are the same thing.
///
/// Poll it for reading. Waking is remembered until [`drain`](Self::drain), so a wake-up that
/// comes before the poll is not missed. The descriptor is close-on-exec and closed with the last
/// clone.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Makes one, not awake. Fails for want of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Makes it readable. Never blocks; waking twice is waking once.
    pub fn wake(&self) {
        loop {
            match rustix::io::write(&*self.0, &1u64.to_ne_bytes()) {
                Err(Errno::INTR) => {}
                // A full counter (AGAIN) is awake already.
                _ => return,
            }
        }
    }

    /// Makes it unreadable again; returns whether it was awake.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        loop {
            match rustix::io::read(&*self.0, &mut count) {
                Err(Errno::INTR) => {}
                result => return result.is_ok(),
            }
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::PollFlags;

    use super::*;

    fn is_readable(waker: &Waker) -> bool {
        crate::poll::ready(waker, PollFlags::IN, Some(std::time::Duration::ZERO)).unwrap()
    }

    #[test]
    fn a_wake_up_is_remembered_until_it_is_drained() {
        let waker = Waker::new().unwrap();
        assert!(!is_readable(&waker));
        assert!(!waker.drain());
        let clone = waker.clone();
        clone.wake();
        clone.wake();
        assert!(is_readable(&waker));
        assert!(waker.drain());
        assert!(!is_readable(&waker));
    }

    #[test]
    fn a_thread_in_poll_is_woken() {
        let waker = Waker::new().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| waker.wake());
            assert!(crate::poll::ready(&waker, PollFlags::IN, None).unwrap());
        });
    }
}

//! Whether a daemon is the incumbent for good (X1).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::channel::Bell;

/// Whether this process is the incumbent for good, for work that cannot be undone: a migration of the
/// data, say. To be asked, waited for in a thread, or awaited on any runtime: `true` once it is, `false`
/// when the process ends without.
///
/// A successor serves from Ready on, but until the commit it may still be ended, and the old process
/// opens the data again. That is over when it has read Commit, which a supervisor says to the successor
/// before it says it to the old process (X1), or when its connection to the supervisor has ended after
/// Ready; under a supervisor that does not know X1 it is over 10 s after Ready (R3). In each case the
/// control path leads to this process by then. On a cold start there is nobody to give way to: it is
/// certain as soon as the daemon answers on its control path.
///
/// Once certain it stays so, whatever handoffs follow, and the next may begin at once: a drain is to wait
/// for such work, or to stop it. Who swaps the previous binary in again, as a supervisor may by itself
/// while a new one is on probation, has it open the data as it is then.
///
/// Clones are the same. Dropping one changes nothing.
#[derive(Clone, Default)]
pub struct Incumbency(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// None while it is open.
    certain: Mutex<Option<bool>>,
    known: Condvar,
    bell: Bell,
}

impl Incumbency {
    /// Whether it is certain by now.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        *self.certain() == Some(true)
    }

    /// Waits on this thread, at most so long, until it is known; whether it is certain then.
    #[must_use]
    pub fn wait(&self, limit: Option<Duration>) -> bool {
        let (open, known) = (|certain: &mut Option<bool>| certain.is_none(), &self.0.known);
        let certain = match limit {
            None => *known.wait_while(self.certain(), open).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = known.wait_timeout_while(self.certain(), limit, open);
                *waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        certain == Some(true)
    }

    fn certain(&self) -> MutexGuard<'_, Option<bool>> {
        self.0.certain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first word counts.
    fn settle(&self, certain: bool) {
        self.certain().get_or_insert(certain);
        self.0.known.notify_all();
        self.0.bell.ring();
    }
}

impl Future for Incumbency {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        self.0.bell.listen(cx);
        self.certain().map_or(Poll::Pending, Poll::Ready)
    }
}

impl fmt::Debug for Incumbency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Incumbency").field(&*self.certain()).finish()
    }
}

/// The host's end: who drops it without having said so will never be certain.
#[derive(Debug, Default)]
pub(super) struct Settles(pub(super) Incumbency);

impl Settles {
    pub(super) fn certain(&self) {
        self.0.settle(true);
    }
}

impl Drop for Settles {
    fn drop(&mut self) {
        self.0.settle(false);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::task::Waker;
    use std::thread;

    fn poll(incumbency: &Incumbency) -> Poll<bool> {
        Pin::new(&mut incumbency.clone()).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn x1_who_waits_is_told_once_it_is_certain() {
        let host = Settles::default();
        let incumbency = host.0.clone();
        assert!(!incumbency.is_certain() && !incumbency.wait(Some(Duration::ZERO)));
        assert_eq!(poll(&incumbency), Poll::Pending);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| incumbency.wait(None));
            host.certain();
            assert!(waiting.join().unwrap());
        });
        drop(host);
        assert!(incumbency.is_certain(), "it stays so");
        assert_eq!(poll(&incumbency), Poll::Ready(true));
    }

    #[test]
    fn x1_a_host_that_ends_without_leaves_nobody_waiting() {
        let host = Settles::default();
        let incumbency = host.0.clone();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| incumbency.wait(None));
            drop(host);
            assert!(!waiting.join().unwrap());
        });
        assert!(!incumbency.is_certain());
        assert_eq!(poll(&incumbency), Poll::Ready(false));
    }
}

//! What only the program can do: its hooks, and what they may know.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use handoff_core::daemon::{Command, DrainReport, SealReport};

use super::channel::Bell;
use super::program::Post;

/// Why a hook failed, for the log and the supervisor.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// What only the program can do, in threads. One hook runs at a time, never twice for one handoff,
/// and never without the lock (R7). A hook that panics has failed.
pub trait Hooks {
    /// Stop accepting, finish what is in flight, make acknowledged writes durable (C2).
    ///
    /// # Errors
    ///
    /// The handoff is off; [`Hooks::resume`] follows.
    fn drain(&mut self, drain: &DrainContext) -> Result<DrainReport, HookError>;

    /// Flush, fsync and close the data, so that another process can open it. From its start on no
    /// write is acknowledged.
    ///
    /// # Errors
    ///
    /// The handoff is off; [`Hooks::resume`] follows. The lock was not released.
    fn seal(&mut self, seal: &SealContext) -> Result<SealReport, HookError>;

    /// The handoff is off and the lock is held: open the data if it is closed, accept again. Runs
    /// exactly once after every drain that no commit followed.
    ///
    /// # Errors
    ///
    /// The process aborts: it can neither serve nor let another serve.
    fn resume(&mut self) -> Result<(), HookError>;
}

/// What a drain may know.
#[derive(Debug)]
pub struct DrainContext {
    pub(super) grace: Duration,
    pub(super) off: Off,
}

impl DrainContext {
    /// How long the drain may take, from its start.
    #[must_use]
    pub const fn grace(&self) -> Duration {
        self.grace
    }

    /// Whether the handoff has ended, so that the drain is to return at once (R7).
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.off.is_off()
    }

    /// A future that is done when the handoff has ended.
    #[must_use]
    pub fn off(&self) -> Off {
        self.off.clone()
    }
}

/// What a seal may know and tell.
#[derive(Debug)]
pub struct SealContext {
    pub(super) post: Post,
    pub(super) off: Off,
}

impl SealContext {
    /// Tells whoever watches the handoff how far the seal has come (C4).
    pub fn progress(&self, shards_sealed: u32, shards_total: u32, last_revision: u64) {
        self.post.command(Command::SealProgress { shards_sealed, shards_total, last_revision });
    }

    /// Whether the handoff has ended, so that the seal may stop halfway (R7).
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.off.is_off()
    }

    /// A future that is done when the handoff has ended.
    #[must_use]
    pub fn off(&self) -> Off {
        self.off.clone()
    }
}

/// Whether a hook's handoff has ended: to be asked, or awaited on any runtime.
///
/// Clones are the same. Dropping one changes nothing.
#[derive(Clone, Default)]
pub struct Off(Arc<Flag>);

#[derive(Default)]
struct Flag {
    set: AtomicBool,
    bell: Bell,
}

impl Off {
    /// Whether it has ended.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    pub(super) fn set(&self) {
        self.0.set.store(true, Ordering::Release);
        self.0.bell.ring();
    }
}

impl Future for Off {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.bell.listen(cx);
        if self.is_off() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl fmt::Debug for Off {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Off").field(&self.is_off()).finish()
    }
}

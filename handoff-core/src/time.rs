use alloc::vec::Vec;
use core::ops::Add;
use core::time::Duration;

/// A point on the host's monotonic clock: nanoseconds since an origin that the host picks (T5).
///
/// Only differences mean anything. It reaches 584 years from its origin and saturates there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Instant(u64);

impl Instant {
    /// The host's origin.
    pub const ORIGIN: Self = Self(0);

    /// The instant that many nanoseconds after the origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// How long after the origin.
    #[must_use]
    pub const fn since_origin(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// How long after `earlier`; zero where `earlier` is later.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This instant told from an origin that is `by` later; the new origin where it lies before it.
    #[must_use]
    pub fn rebased(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(by)))
    }

    pub(crate) const fn millis(self) -> u64 {
        self.0 / 1_000_000
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }
}

/// When a machine has to be told the time again, and why.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Deadline<K> {
    /// When.
    pub at: Instant,
    /// Why: the timer that expires then.
    pub why: K,
}

/// The one table that holds all of a machine's deadlines, at most one per key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Timers<K> {
    // Sorted by key, so that equal tables are equal values.
    entries: Vec<(K, Instant)>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<K: Copy + Ord> Timers<K> {
    /// Sets `key` to `at`, replacing what it was set to.
    pub fn set(&mut self, key: K, at: Instant) {
        match self.entries.binary_search_by_key(&key, |&(k, _)| k) {
            Ok(found) => self.entries[found].1 = at,
            Err(place) => self.entries.insert(place, (key, at)),
        }
    }

    /// Forgets `key`.
    pub fn clear(&mut self, key: K) {
        self.retain(|k| k != key);
    }

    /// Forgets every key that `keep` refuses.
    pub fn retain(&mut self, keep: impl Fn(K) -> bool) {
        self.entries.retain(|&(k, _)| keep(k));
    }

    /// When `key` expires, if it is set.
    #[must_use]
    pub fn at(&self, key: K) -> Option<Instant> {
        self.entries.iter().find(|&&(k, _)| k == key).map(|&(_, at)| at)
    }

    /// The earliest deadline; the lowest key where several are due at once.
    #[must_use]
    pub fn next(&self) -> Option<Deadline<K>> {
        let &(why, at) = self.entries.iter().min_by_key(|&&(k, at)| (at, k))?;
        Some(Deadline { at, why })
    }

    /// Removes and returns the earliest key that is due at `now`.
    pub fn pop(&mut self, now: Instant) -> Option<K> {
        let due = self.next().filter(|deadline| deadline.at <= now)?;
        self.clear(due.why);
        Some(due.why)
    }

    /// How many keys are set.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Tells every deadline from an origin that is `by` later. What is overdue stays due.
    pub fn rebase(&mut self, by: Duration) {
        for (_, at) in &mut self.entries {
            *at = at.rebased(by);
        }
    }
}

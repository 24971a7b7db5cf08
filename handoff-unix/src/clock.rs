use std::time::Duration;

use handoff_core::Instant;

/// The monotonic clock, as the machines tell time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    /// A clock whose origin is now.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::ORIGIN + self.origin.elapsed()
    }

    /// How long until `at`; zero when it has come.
    #[must_use]
    pub fn until(&self, at: Instant) -> Duration {
        at.saturating_since(self.now())
    }
}

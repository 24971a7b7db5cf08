//! The effects of the machines, carried out on this system.
//!
//! An effect becomes a [`Job`]: a closure that may block and is run wherever there is room for such
//! work (a thread, a blocking pool). What it returns goes back into the machine. Whoever uses a
//! [`crate::host`] has nothing to do with it; it is for adapters that drive a machine themselves.

mod daemon;
mod supervisor;

pub use daemon::DaemonEffects;
pub use supervisor::{Completion, Finished, SupervisorEffects};

/// Work that may block, and gives `T`.
pub type Job<T> = Box<dyn FnOnce() -> T + Send>;

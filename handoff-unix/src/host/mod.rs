//! The effects of the machines, carried out on this system.
//!
//! A host turns an effect into a [`Job`]: a closure that may block and is run wherever the adapter
//! keeps such work (a thread, a blocking pool). What it returns goes back into the machine.

mod daemon;
mod supervisor;

pub use daemon::DaemonHost;
pub use supervisor::{Completion, Finished, SupervisorHost};

/// Work that may block, and gives `T`.
pub type Job<T> = Box<dyn FnOnce() -> T + Send>;

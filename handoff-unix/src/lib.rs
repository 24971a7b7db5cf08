//! What Linux offers every handoff adapter: primitives, no protocol and no policy of time.
//!
//! | module | what it is | clauses |
//! |---|---|---|
//! | [`lock`] | who may write: the data directory's lock | R1 |
//! | [`peer`] | who is at the other end of a socket, as the kernel says | R12, C1 |
//! | [`control`] | the well-known path: stage, publish, connect | R11, R6, C6 |
//! | [`inherit`] | descriptors and variables a process was started with | R13 |
//! | [`spawn`] | starting a process with listeners and a control socket | R13, R14 |
//! | [`process`] | watching and ending what was started | R14, R5 |
//! | [`journal`] | the supervisor's journal file | R9 |
//! | [`wake`] | waking a thread that polls | |
//! | [`stream`], [`probe`] | control connections, and asking who serves | C1, C6, R12 |
//! | [`effects`] | the machines' effects, carried out with all of these | R8 |
//! | [`host`] | the machines with their sockets and clock: what adapters drive | T5 |
//! | [`sockets`] | listeners: bound, described, brought out of another process | R10 |
//! | [`replace`] | another program in this process, with its descriptors | |
//! | [`accept`] | accepting until told to stop, on a listener in either mode | R13, C2 |
//!
//! Nothing here waits on or signals a process it was not given by the caller, and nothing
//! changes `O_NONBLOCK` on a listener: that flag belongs to the open file, which another
//! process may be accepting on.

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
compile_error!("handoff-unix needs Linux with glibc 2.34 or later (posix_spawn extensions)");

pub mod accept;
mod clock;
pub mod control;
pub mod effects;
pub mod host;
pub mod inherit;
pub mod journal;
pub mod lock;
pub mod peer;
pub mod poll;
pub mod probe;
pub mod process;
pub mod replace;
pub mod sockets;
pub mod spawn;
pub mod stream;
pub mod wake;

pub use clock::Clock;

#[cfg(test)]
mod test_dir {
    /// A scratch directory whose path has a space in it.
    pub(crate) fn scratch() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("handoff unix ").tempdir().expect("a scratch directory")
    }
}

//! The suite: scripted scenarios, each named after the clauses it proves, for any adapter, over real
//! sockets and with real processes.
//!
//! An [`Adapter`] is a daemon and a supervisor. Each is first met alone by the [probe](crate::probe),
//! which says its frames byte by byte; then they hand off to each other, with hooks that are late, fail,
//! panic or hang, a lock, a journal and a control path that cannot be had for a while, frames that fill
//! a socket's buffer, strangers, and supervisors that are killed.
//!
//! # For an adapter of your own
//!
//! A test target without libtest's harness, whose program is
//!
//! ```no_run
//! # use std::net::TcpListener;
//! use conformance::suite::{self, Adapter, LISTENER, Program};
//! use handoff_core::daemon::Ended;
//! # use handoff_blocking as mine;
//!
//! struct Mine;
//!
//! impl Adapter for Mine {
//!     fn name(&self) -> &'static str {
//!         "mine"
//!     }
//!
//!     fn daemon(&self, program: Program) -> Ended {
//!         let mut daemon = mine::Daemon::from_env(program.config()).unwrap();
//!         let bind = || TcpListener::bind("127.0.0.1:0");
//!         let listener = daemon.listener(LISTENER, bind).unwrap();
//!         program.warm_up();
//!         let grant = match daemon.begin() {
//!             Ok(grant) => grant,
//!             Err(ended) => return ended,
//!         };
//!         match program.open(|| grant.is_off()) {
//!             Ok(readiness) => {
//!                 // Accept here, each connection a line that `program.answer` answers.
//!                 let serving = grant.ready(readiness);
//!                 let stop = serving.stopper();
//!                 program.on_stop(move || stop.stop()).unwrap();
//!                 serving.run(Hooks { program, listener })
//!             }
//!             Err(error) => grant.fail(error),
//!         }
//!     }
//! }
//! # struct Hooks { program: Program, listener: TcpListener }
//! # impl mine::Hooks for Hooks {
//! #     fn drain(&mut self, drain: &mine::DrainContext) -> Result<mine::DrainReport, mine::HookError> {
//! #         self.program.drain(|| drain.is_off())
//! #     }
//! #     fn seal(&mut self, seal: &mine::SealContext) -> Result<mine::SealReport, mine::HookError> {
//! #         self.program.seal(|| seal.is_off(), |a, b, c| seal.progress(a, b, c))
//! #     }
//! #     fn resume(&mut self) -> Result<(), mine::HookError> { self.program.resume() }
//! # }
//!
//! fn main() -> std::process::ExitCode {
//!     suite::test(&[&Mine])
//! }
//! ```
//!
//! ```toml
//! [[test]]
//! name = "suite"
//! harness = false
//!
//! [dev-dependencies]
//! conformance = { path = "../handoff/conformance", default-features = false }
//! ```
//!
//! Then `cargo test` has a test for each scenario. An adapter that brings no supervisor of its own is
//! swapped by one of threads. `tests/third_party.rs` is all of this for an adapter that is not ours.

mod bench;
pub(crate) mod part;
pub(crate) mod program;
mod scenarios;
mod table;

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use handoff_core::daemon::Ended;
use handoff_core::supervisor::{Event, Report};
use handoff_unix::host::{Handoff, StartError, Started, SupervisorConfig};
use handoff_unix::spawn::Launch;

use crate::probe::until;

pub use bench::{Bench, Client, reason};
pub use part::{config, daemon, play};
pub use program::{Fault, LISTENER, Program};
pub use scenarios::{Role, Scenario, Verdict, scenarios};
pub use table::{Cell, Options, Row, Table, run};

/// How long anything may take on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How many scenarios run at a time: they wait more than they work.
const AT_A_TIME: usize = 12;

/// An adapter, as the suite sees it.
pub trait Adapter: Sync {
    /// What it is called, in one word that no other adapter of the same program has.
    fn name(&self) -> &'static str;

    /// A daemon, from the environment of this process to its end.
    ///
    /// It takes the listener [`LISTENER`], or binds one on loopback where there is none, and then calls
    /// [`Program::warm_up`]; with the lock it calls [`Program::open`] and accepts. Each connection is a
    /// line, answered with what [`Program::answer`] gives, if anything, and closed. Its hooks are
    /// [`Program::drain`], once nobody is accepted and everybody who was has been answered,
    /// [`Program::seal`], and [`Program::resume`], after which it accepts again.
    /// [`Program::on_stop`] tells when it is to stop.
    ///
    /// # Panics
    ///
    /// Where it cannot start; the process exits then, as after any panic.
    fn daemon(&self, program: Program) -> Ended;

    /// A supervisor in this process; of threads, if the adapter has none.
    ///
    /// # Errors
    ///
    /// It cannot start.
    fn supervisor(&self, config: SupervisorConfig) -> Result<Box<dyn Supervise>, StartError> {
        Ok(Box::new(handoff_blocking::Supervisor::new(config)?))
    }
}

/// A supervisor of an adapter. Each method blocks; between them it may rest or work.
///
/// The errors are those of the adapter. Dropped, it leaves its daemons to themselves.
pub trait Supervise {
    /// Adds a listener for the daemons to inherit.
    ///
    /// # Errors
    ///
    /// It cannot be taken.
    fn listener(&mut self, name: &str, fd: OwnedFd) -> Result<(), StartError>;

    /// Finds out who serves, and starts a daemon where nobody does.
    ///
    /// # Errors
    ///
    /// Nobody can be found or started.
    fn start(&mut self, launch: &Launch) -> Result<Started, StartError>;

    /// Hands off, and tells of each event.
    ///
    /// # Errors
    ///
    /// It cannot begin.
    fn handoff(
        &mut self,
        handoff: &Handoff,
        on: &mut dyn FnMut(&Event),
    ) -> Result<Report, StartError>;

    /// Waits until a daemon has ended, at most so long: which have, and how.
    ///
    /// # Errors
    ///
    /// It cannot work any more.
    fn exits(&mut self, time: Duration) -> Result<Vec<(u32, String)>, StartError>;

    /// Aborts the handoff that is under way when it is called, from anywhere.
    fn aborter(&self) -> Arc<dyn Fn() + Send + Sync>;

    /// Ends the daemons, killing what is there after the grace; which could not be ended.
    ///
    /// # Errors
    ///
    /// It cannot work any more.
    fn shutdown(&mut self, grace: Duration) -> Result<Vec<u32>, StartError>;

    /// How many tasks its runtime has, where that can be told.
    fn tasks(&self) -> Option<usize> {
        None
    }
}

impl Supervise for handoff_blocking::Supervisor {
    fn listener(&mut self, name: &str, fd: OwnedFd) -> Result<(), StartError> {
        self.listener(name, fd)
    }

    fn start(&mut self, launch: &Launch) -> Result<Started, StartError> {
        self.start(launch)
    }

    fn handoff(
        &mut self,
        handoff: &Handoff,
        on: &mut dyn FnMut(&Event),
    ) -> Result<Report, StartError> {
        self.handoff(handoff, on)
    }

    fn exits(&mut self, time: Duration) -> Result<Vec<(u32, String)>, StartError> {
        self.watch(time)
    }

    fn aborter(&self) -> Arc<dyn Fn() + Send + Sync> {
        let aborter = self.aborter();
        Arc::new(move || aborter.abort())
    }

    fn shutdown(&mut self, grace: Duration) -> Result<Vec<u32>, StartError> {
        self.shutdown(grace)
    }
}

/// The whole suite as the tests of a binary, with libtest's arguments and output.
///
/// It is also what the processes of the suite are started from: the first thing in `main`.
#[must_use]
pub fn test(adapters: &[&'static dyn Adapter]) -> ExitCode {
    play(adapters);
    let mut arguments = libtest_mimic::Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_A_TIME);
    let mut trials = Vec::new();
    for scenario in scenarios() {
        for &adapter in adapters {
            let trial = move || match scenario.run(adapter) {
                (Verdict::Pass | Verdict::Skip, _) => Ok(()),
                (Verdict::Fail, why) => Err(why.into()),
            };
            let name = format!("{}::{}", adapter.name(), scenario.id());
            trials.push(libtest_mimic::Trial::test(name, trial));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Waits for what has no event.
///
/// # Panics
///
/// It is not so in [`PATIENCE`].
pub fn wait_until(what: &str, true_by_now: impl FnMut() -> bool) {
    assert!(until(PATIENCE, true_by_now), "{what}: not in {PATIENCE:?}");
}

/// Why it panics, if it does.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("it panicked").to_string()
    })
}

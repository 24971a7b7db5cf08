//! The crash matrix: real processes that die, hang or lack something at each of their steps.
//!
//! A run is a supervisor, a daemon with a database under load, and a successor, each a process on a
//! runtime. At one of its steps, before or after a message it sends, an effect or a hook, a process is
//! killed, exits, is stopped, takes long, or finds that something is not to be had. Then, with no person
//! acting:
//!
//! - I1: never do two processes hold the lock; that is looked at all the time;
//! - I3: every write that was acknowledged is in the database, once;
//! - I4: no connection is refused, and none is reset but those that the struck process had accepted;
//! - I5: somebody acknowledges a write within 10 s, and nobody waits longer for the next one;
//! - I6: the next handoff commits, and no process, no descriptor and no file is left.
//!
//! Where the supervisor was struck it is started again, once its daemons have shown that they need none.
//! Which steps there are is not written down here: each of the [`courses`] is played once without a
//! fault, and says.
//!
//! `cargo run --release -p conformance --bin crash-matrix` plays them all.

mod case;
mod cast;
mod courses;
mod gate;
mod load;
mod mixed;
mod report;
mod run;
mod shortage;
mod soak;
mod stories;
mod stranger;

pub use case::{Blow, Case, Ran, Role, Step, Strike};
pub(crate) use cast::Part;
pub use cast::{Actor, Limits, Wrap};
pub use courses::{ADAPTERS, courses, faults, pairs};
pub use gate::Moment;
pub(crate) use gate::keep;
pub use mixed::{known, mixed, mixed_faults};
pub use report::{Table, Totals};
pub use shortage::{Place, Shortage};
pub use soak::{Flat, Look, Process, Soak, Soaked, soak};
pub use stories::{Boss, Expect, Story, stories};
pub use stranger::Stranger;

use std::io;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::suite::part;

/// How long a run may take in all.
const LONGEST: Duration = Duration::from_secs(240);

/// Plays a run in a process of its own, and gives what came of it.
///
/// # Errors
///
/// The process cannot be started, or does not come to an end.
pub fn play(case: &Case) -> io::Result<Ran> {
    let ran = alone(Part::Run(Box::new(case.clone())), case.mounts, LONGEST);
    ran.map_err(|error| io::Error::other(format!("{}: {error}", case.name)))
}

/// Plays a part in a process of its own, and gives what it prints last.
fn alone<T: DeserializeOwned>(part: Part, mounts: bool, longest: Duration) -> io::Result<T> {
    let launch = part::matrix(part)?;
    let mut command = if mounts {
        let mut command = unshared();
        command.arg(&launch.program);
        command
    } else {
        Command::new(&launch.program)
    };
    command.args(&launch.args).envs(launch.env).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let reader = std::thread::spawn(move || stdout.map(io::read_to_string).transpose());
    let errors = std::thread::spawn(move || stderr.map(io::read_to_string).transpose());
    let limit = Instant::now() + longest;
    while child.try_wait()?.is_none() {
        if Instant::now() > limit {
            child.kill()?;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let panicked = |_| io::Error::other("a reader has panicked");
    let said = reader.join().map_err(panicked)??.unwrap_or_default();
    let errors = errors.join().map_err(panicked)??.unwrap_or_default();
    let told = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    told.ok_or_else(|| io::Error::other(format!("no result: {errors}{said}")))
}

/// How often a run is played again that was disturbed.
const AGAIN: u32 = 3;

/// Plays many runs, `jobs` at a time, and tells of each when it is over.
///
/// One in which something is wrong, and the machine itself stood still for half a second or more, shows
/// nothing: it is played again, and [`Ran::disturbed`] says so.
pub fn play_all(
    cases: Vec<Case>,
    jobs: usize,
    told: impl Fn(&Case, &io::Result<Ran>) + Sync,
) -> Vec<(Case, io::Result<Ran>)> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut ran = play(case);
                    for _ in 0..AGAIN {
                        let disturbed = |ran: &Ran| !ran.problems.is_empty() && ran.stalled > 0;
                        if !ran.as_ref().is_ok_and(disturbed) {
                            break;
                        }
                        let disturbed = 1 + ran.map_or(0, |ran| ran.disturbed);
                        ran = play(case).map(|ran| Ran { disturbed, ..ran });
                    }
                    told(case, &ran);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push((case.clone(), ran));
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Whether runs can have file systems of their own here.
#[must_use]
pub fn has_mounts() -> bool {
    let tried = unshared()
        .args(["sh", "-c", "mount -t tmpfs none /proc/self/cwd"])
        .current_dir(std::env::temp_dir())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

/// What runs a command with mounts of its own.
fn unshared() -> Command {
    let mut command = Command::new("unshare");
    command.arg(if rustix::process::geteuid().is_root() { "-m" } else { "-rm" });
    command
}

//! A run, as it is to be, and what came of it.

use serde::{Deserialize, Serialize};

use super::cast::{Actor, Limits};
use super::gate::Moment;
use super::shortage::{Place, Shortage};
use super::stories::Story;
use super::stranger::Stranger;

/// Who takes a step, or is struck.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Role {
    /// The supervisor.
    S,
    /// The incumbent: the first daemon.
    O,
    /// The successor: the second.
    N,
    /// Another supervisor: it took the place of a dead one, or is a rival.
    Restarted,
    /// A daemon after these.
    Later,
}

/// A moment in the life of a role.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Whose.
    pub role: Role,
    /// The effect, the hook or the message.
    pub what: String,
    /// Which of them, from 1.
    pub nth: u32,
    /// Before it or after it.
    pub moment: Moment,
}

/// What happens to a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blow {
    /// It exits, from inside.
    Exit,
    /// It is killed, from outside.
    Kill,
    /// It is stopped, and goes on so many milliseconds later.
    Stop(u64),
    /// The step takes so many milliseconds; the rest of the process goes on.
    Stall(u64),
    /// For so many milliseconds it finds no free descriptor.
    NoDescriptors(u64),
    /// For so many milliseconds somebody else has the lock.
    LockHeld(u64),
    /// For so many milliseconds there is no binary to start.
    NoBinary(u64),
    /// For so many milliseconds a file system lacks something.
    Lacks(Shortage, Place, u64),
    /// The handoff is aborted.
    Abort,
    /// All processes are stopped, and go on so many milliseconds later: to them the clock jumps.
    Jump(u64),
    /// Somebody unlinks the lock file, the control path, or the journal.
    Unlink(Place),
    /// The journal is no journal any more.
    Garbage,
    /// Strangers come to the control path, for so many milliseconds.
    Strangers(Stranger, u64),
}

/// What happens to whom, and when.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Strike {
    /// When.
    pub at: Step,
    /// To whom.
    pub on: Role,
    /// What.
    pub blow: Blow,
}

/// A run, as it is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// What it is called.
    pub name: String,
    /// The adapter of the supervisor.
    pub supervisor: String,
    /// The first daemon.
    pub incumbent: Actor,
    /// The second.
    pub successor: Actor,
    /// The durations of the handoff.
    pub limits: Limits,
    /// What happens. Each happens once, in any order.
    pub strikes: Vec<Strike>,
    /// Whether file systems of its own are needed.
    pub mounts: bool,
    /// What else it is, if it is a story.
    pub story: Option<Story>,
}

impl Case {
    /// A handoff in which nothing happens, with the durations of [`Limits::default`].
    pub(super) fn new(name: String, supervisor: &str, incumbent: Actor, successor: Actor) -> Self {
        Self {
            name,
            supervisor: supervisor.into(),
            incumbent,
            successor,
            limits: Limits::default(),
            strikes: Vec::new(),
            mounts: false,
            story: None,
        }
    }

    /// The same, in which this happens as well.
    pub(super) fn struck(&self, strikes: Vec<Strike>) -> Self {
        let names: Vec<_> = strikes.iter().map(Strike::name).collect();
        let name = format!("{}, {}", self.name, names.join(" and "));
        let mounts = strikes.iter().any(|strike| matches!(strike.blow, Blow::Lacks(..)));
        Self { name, strikes, mounts, ..self.clone() }
    }
}

/// What came of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ran {
    /// What it is called.
    pub name: String,
    /// How many of the strikes happened.
    pub struck: u32,
    /// What is wrong.
    pub problems: Vec<String>,
    /// The steps that were taken, up to the end of the handoff.
    pub steps: Vec<Step>,
    /// What happened, in seconds from the start.
    pub timeline: Vec<(f64, String)>,
    /// How many handoffs were begun.
    pub handoffs: u32,
    /// How many requests were made.
    pub requests: u64,
    /// How many were acknowledged.
    pub acknowledged: u64,
    /// How many of these were lost (I3).
    pub lost: u64,
    /// How many were refused, or not answered without an excuse (I4).
    pub refused: u64,
    /// How many were cut off by the blow: the process that had accepted them was struck.
    pub cut: u64,
    /// How many were answered that the daemon could not write.
    pub declined: u64,
    /// The longest time in which nobody acknowledged anything (I5), in milliseconds.
    pub gap: u64,
    /// For how long the machine stood still meanwhile, in milliseconds: a thread of the run that does
    /// next to nothing was not run by it.
    pub stalled: u64,
    /// How often it was played before and the machine stood still.
    pub disturbed: u32,
}

//! The words a run is told in: what may happen, what does, and why.

use std::time::Duration;

use handoff_core::{daemon, supervisor};
use serde::{Deserialize, Serialize};

use super::process::{Death, Job, Pid};
pub use super::stranger::Guise;

/// What a run allows beyond the one thing every run does: hand off.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// How many handoffs are asked for.
    pub handoffs: u8,
    /// How many faults may happen, of the kinds below.
    pub faults: u8,
    /// Any process is killed.
    pub crashes: bool,
    /// Any process is stopped; it may be continued at any later time.
    pub stops: bool,
    /// Drain, seal or open fails, or a successor opens its data and is not fit to serve.
    pub hook_failures: bool,
    /// A warm-up, drain, seal or open takes longer than it is given, if it ever returns.
    pub hangs: bool,
    /// The journal cannot be written.
    pub journal_failures: bool,
    /// The lock cannot be tried, the control socket not be put in place.
    pub shortages: bool,
    /// A binary does not start.
    pub spawn_failures: bool,
    /// A control connection breaks.
    pub breaks: bool,
    /// The operator aborts the handoff.
    pub aborts: bool,
    /// A supervisor that died is started again.
    pub restarts: bool,
    /// A supervisor is told to look again when it is idle and the daemon it knows is gone.
    pub revives: bool,
    /// The operating system's effects are reported some time after they took place.
    pub late: bool,
    /// The journal takes its time.
    pub slow_journal: bool,
    /// A committed incumbent takes its time to exit.
    pub linger: bool,
    /// Messages travel as encoded frames, cut anywhere; what is cut off by a break never arrives.
    pub bytes: bool,
    /// The disk is full for a while: no lock, no journal, no control socket until it has room again.
    pub disk: bool,
    /// A process sleeps while all others run on, and every deadline of it has passed at once.
    pub jumps: bool,
    /// Somebody removes the control path.
    pub unlinks: bool,
    /// How often a stranger connects to the control socket.
    pub strangers: u8,
    /// Every second daemon speaks as an incumbent of beyond-handoff does: it announces no steady
    /// heartbeat, sends one every other time and only while a hook runs, and reads nothing meanwhile.
    pub legacy: bool,
    /// The run is long: processes that are gone are forgotten, so that there is always room for
    /// another, and once all is well again what went wrong before is history: it excuses nothing, and
    /// as many faults may follow.
    pub long: bool,
    /// What the host does wrong, to see that it is found out.
    pub sabotage: Option<Sabotage>,
}

impl Rules {
    /// One handoff, undisturbed.
    pub const HANDOFF: Self = Self {
        handoffs: 1,
        faults: 0,
        crashes: false,
        stops: false,
        hook_failures: false,
        hangs: false,
        journal_failures: false,
        shortages: false,
        spawn_failures: false,
        breaks: false,
        aborts: false,
        restarts: false,
        revives: false,
        late: false,
        slow_journal: false,
        linger: false,
        bytes: false,
        disk: false,
        jumps: false,
        unlinks: false,
        strangers: 0,
        legacy: false,
        long: false,
        sabotage: None,
    };

    /// One handoff, with so many faults of any kind.
    #[must_use]
    pub const fn faulty(faults: u8) -> Self {
        Self {
            faults,
            crashes: true,
            stops: true,
            hook_failures: true,
            hangs: true,
            journal_failures: true,
            shortages: true,
            spawn_failures: true,
            breaks: true,
            aborts: true,
            ..Self::HANDOFF
        }
    }

    /// The same in a less orderly world: effects are reported late, journals and exits take their
    /// time, and supervisors are started again and look after what they find.
    #[must_use]
    pub const fn messy(self) -> Self {
        Self { restarts: true, revives: true, late: true, slow_journal: true, linger: true, ..self }
    }
}

/// A bug of a host, or one that makes a machine see what a bug of its own would make of the world.
/// What breaks with it shows that the search would find such a bug.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sabotage {
    /// R8: the lock is reported released when its release is asked for.
    ReleasedWhenAsked,
    /// R1: the lock is reported taken, whoever holds it.
    LockedRegardless,
    /// R7: the lock is let go when the seal begins.
    ReleasedBeforeSeal,
    /// R4: the successor is reported reaped when its end is asked for.
    ReapedWhenAsked,
    /// R4: an incumbent that was told to resume is taken to have resumed.
    ResumedWhenTold,
    /// R6: a successor is taken to be ready when it is told to begin.
    ReadyWhenBegun,
    /// R5: a successor is ended though it is the last.
    NeverPromotes,
    /// C6: an incumbent says Hello between Prepare and resume.
    AnswersUnsettled,
    /// T5: no deadline of a daemon's expires.
    TimelessDaemons,
    /// T5: no deadline of the supervisor's expires.
    TimelessSupervisor,
    /// R2: an incumbent that takes its lock back tries for two seconds, and exits.
    GivesUp,
    /// R3: a successor that holds the lock exits when its connection is closed.
    ExitsOnEof,
    /// R7: the seal runs again for the same handoff, when the lock is released.
    SealsTwice,
    /// R6: a successor is taken to be healthy, whatever it says.
    HealthIgnored,
    /// T4: a heartbeat is queued whatever is unsent before it.
    BeatsRegardless,
    /// T5, R2: an incumbent that takes its lock back forgets when to try again; its other deadlines
    /// stand.
    ForgetsRetry,
    /// T5, R11: a successor that could not claim the control path forgets when to try again.
    ForgetsPath,
    /// T5, C3: the supervisor forgets the time while a successor warms up.
    ForgetsHello,
    /// R4: the supervisor's heartbeats do not repeat its open question.
    AsksOnce,
    /// R11: nobody is told that the control path was removed.
    OverlooksPath,
}

impl Sabotage {
    /// All there are.
    pub const ALL: [Self; 20] = [
        Self::ReleasedWhenAsked,
        Self::LockedRegardless,
        Self::ReleasedBeforeSeal,
        Self::ReapedWhenAsked,
        Self::ResumedWhenTold,
        Self::ReadyWhenBegun,
        Self::NeverPromotes,
        Self::AnswersUnsettled,
        Self::TimelessDaemons,
        Self::TimelessSupervisor,
        Self::GivesUp,
        Self::ExitsOnEof,
        Self::SealsTwice,
        Self::HealthIgnored,
        Self::BeatsRegardless,
        Self::ForgetsRetry,
        Self::ForgetsPath,
        Self::ForgetsHello,
        Self::AsksOnce,
        Self::OverlooksPath,
    ];
}

/// How an effect turns out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Luck {
    /// As it should, given the world.
    Good,
    /// It fails.
    Bad,
    /// The data is open, and the program that opened it is not fit to serve.
    Unhealthy,
}

/// An end of a control connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The supervisor's.
    Supervisor,
    /// The daemon's.
    Daemon,
}

/// Something that can happen next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// A process handles what arrived first on a connection: the connection itself, a message, or its
    /// end.
    Deliver {
        /// Which connection, by its place in the list.
        wire: usize,
        /// Who handles it.
        to: End,
    },
    /// The supervisor is told that a process it watches has exited.
    Exited(Pid),
    /// An effect takes place, and is reported later.
    Perform(Pid, Job, Luck),
    /// An effect is reported; it takes place now where it has not yet.
    Complete(Pid, Job, Luck),
    /// A daemon's program has done all that needs no lock.
    Warm(Pid),
    /// A daemon that has ended exits.
    Exit(Pid),
    /// SIGTERM arrives.
    Terminate(Pid),
    /// A process that was stopped sees what time it is.
    Tick(Pid),
    /// Time passes until the next deadline.
    Advance,
    /// The supervisor is told to find out who serves.
    Start,
    /// The supervisor is asked for a handoff.
    Handoff,
    /// The operator aborts the handoff.
    Abort,
    /// The supervisor's binary is started again.
    Restart,
    /// SIGCONT.
    Continue(Pid),
    /// The hook that runs, or the warm-up, takes any time.
    Dawdle(Pid),
    /// The hook that runs, or the warm-up, never returns.
    Hang(Pid),
    /// SIGKILL, out of nowhere.
    Crash(Pid),
    /// SIGSTOP, out of nowhere.
    Stop(Pid),
    /// A control connection breaks.
    Break {
        /// Which, by its place in the list.
        wire: usize,
    },
    /// A process reads so many bytes of what arrived on a connection, or all there are.
    Chunk {
        /// Which connection, by its place in the list.
        wire: usize,
        /// Who reads them.
        to: End,
        /// How many.
        bytes: u16,
    },
    /// The disk is full.
    Fill,
    /// The disk has room again.
    Room,
    /// A process finds that every deadline of it has passed.
    Jump(Pid),
    /// Somebody removes the control path.
    Unlink,
    /// A daemon is told that something beside the control path has changed.
    Notice(Pid),
    /// A stranger connects to where the control path leads.
    Stranger(Guise),
    /// A stranger says the next thing it has to say, or leaves; by its place in the list.
    Speak(usize),
}

/// Why a choice is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// It happens sooner or later, whatever else does.
    Work,
    /// Somebody may want it, or not.
    Will,
    /// It is a fault of the run.
    Fault,
}

/// What happens inside a step, for a transcript.
#[derive(Debug)]
pub enum Line<'a> {
    /// A process died.
    Died(Pid, Death),
    /// Time passed.
    Passed(Duration),
    /// The supervisor takes an input.
    SupervisorIn(&'a supervisor::Input, &'static str),
    /// The supervisor asks for this.
    SupervisorOut(&'a supervisor::Output),
    /// A daemon takes an input.
    DaemonIn(Pid, &'a daemon::Input, &'static str),
    /// A daemon asks for this.
    DaemonOut(Pid, &'a daemon::Output),
}

/// Who listens to a step.
pub type Listener<'a> = &'a mut dyn FnMut(Line<'_>);

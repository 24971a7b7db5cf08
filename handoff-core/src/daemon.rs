//! What both daemon roles share, and [`Daemon`], the process that plays them one after the other.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::incumbent::{self, Incumbent};
use crate::link::Pulse;
use crate::successor::{self, Successor};
use crate::{Deadline, HandoffId, Instant, Machine, PROTO_MAX, PROTO_MIN, ProtoVersion, Violation};

/// One control connection of a daemon. The host numbers those it accepts, from 1, and may use a
/// number again once its connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u32);

impl ConnId {
    /// The connection that a successor inherits from its supervisor.
    pub const SUPERVISOR: Self = Self(0);
}

/// What a daemon asks of its host.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Something for the operating system, the same in every program.
    Os(OsEffect),
    /// Something only the program itself can do.
    Hook(Hook),
}

/// What a daemon asks of the operating system.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum OsEffect {
    /// Try once to take the data directory's lock (R1). Completes with [`Outcome::Lock`].
    TakeLock,
    /// Release the lock by unlocking it (R1). Completes with [`Outcome::Released`].
    ReleaseLock,
    /// Bind the control socket under its staging name and clear stale ones (R6); name the lock's holder in the
    /// pid file (R1). Completes with [`Outcome::Staged`].
    StagePath,
    /// Make the control path lead to this process, whatever it takes (R11); name the lock's holder, where that
    /// was not done. Completes with [`Outcome::Claimed`].
    ClaimPath,
    /// See who answers on the control path (C6). Completes with [`Outcome::Probed`].
    Probe,
    /// Open a pidfd of the successor, for [`OsEffect::SignalSuccessor`] (R2). Completes with
    /// [`Outcome::Watched`].
    WatchSuccessor {
        /// Its pid.
        pid: u32,
    },
    /// Send a signal to the successor (R2). Completes with [`Outcome::Signalled`].
    SignalSuccessor(Signal),
}

/// What a daemon asks of its program. One runs at a time.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Hook {
    /// The lock is held: open the data and accept connections. Completes with [`Outcome::Opened`].
    Open,
    /// Stop accepting, finish what is in flight, make acknowledged writes durable. Completes with
    /// [`Outcome::Drained`].
    Drain {
        /// How long it may take.
        grace: Duration,
    },
    /// Flush, fsync and close the data; acknowledge no write from here on. Completes with
    /// [`Outcome::Sealed`].
    Seal,
    /// The handoff is off and the lock is held: open the data if it was closed, and serve again.
    /// Completes with [`Outcome::Resumed`].
    Resume,
}

/// How a process is asked to end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Signal {
    /// SIGTERM.
    Term,
    /// SIGKILL.
    Kill,
}

/// What an [`Effect`] completed with (R8).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Of [`OsEffect::TakeLock`].
    Lock(Result<(), LockFailure>),
    /// Of [`OsEffect::ReleaseLock`]. After an error the lock is still held.
    Released(Result<(), String>),
    /// Of [`OsEffect::StagePath`].
    Staged(Result<(), String>),
    /// Of [`OsEffect::ClaimPath`].
    Claimed(Result<(), String>),
    /// Of [`OsEffect::Probe`].
    Probed(Probed),
    /// Of [`OsEffect::WatchSuccessor`].
    Watched(Result<(), String>),
    /// Of [`OsEffect::SignalSuccessor`]. A process that is already gone is a success.
    Signalled(Result<(), String>),
    /// Of [`Hook::Open`]. After an error nothing is open and nobody accepts.
    Opened(Result<Readiness, String>),
    /// Of [`Hook::Drain`]. A panic is an error.
    Drained(Result<DrainReport, String>),
    /// Of [`Hook::Seal`]. A panic is an error.
    Sealed(Result<SealReport, SealFailure>),
    /// Of [`Hook::Resume`]. A panic is an error.
    Resumed(Result<(), String>),
}

/// Why the lock was not taken. Tried again, but for the one case that time does not mend (R1).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum LockFailure {
    /// Another process holds it.
    Held {
        /// Its pid, where it is known.
        holder: Option<u32>,
    },
    /// The system lacks something: space, descriptors, permission to write.
    Shortage(String),
    /// There is no data directory of this name that this process may use. Whoever has not held the
    /// lock yet gives up; an incumbent that takes it back does not (R2).
    Unusable(String),
}

impl fmt::Display for LockFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { holder: Some(pid) } => write!(f, "pid {pid} holds the lock"),
            Self::Held { holder: None } => f.write_str("another process holds the lock"),
            Self::Shortage(reason) | Self::Unusable(reason) => f.write_str(reason),
        }
    }
}

/// Who answers on the control path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Probed {
    /// The path leads to the asking process's own socket.
    Own,
    /// Another process said Hello as the incumbent.
    Answered {
        /// Its pid.
        pid: u32,
    },
    /// Nobody did.
    Silent,
}

/// What a program that is ready to serve says of itself (R6).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Readiness {
    /// The addresses it accepts on, for people.
    pub listening_on: Vec<String>,
    /// Whether it is fit to serve. S commits only then.
    pub healthz_ok: bool,
    /// The last revision of each shard, at most [`crate::wire::MAX_SHARDS`]; empty to report none.
    pub revisions: Vec<u64>,
}

/// What a drain came to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DrainReport {
    /// Connections that are still open, for reading only.
    pub open_conns_remaining: u32,
    /// Whether accepting has stopped.
    pub accept_closed: bool,
}

/// What a seal came to.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct SealReport {
    /// The last revision of each shard, at most [`crate::wire::MAX_SHARDS`]; empty to report none.
    pub revisions: Vec<u64>,
    /// A digest of the data for whoever compares; zeros to report none.
    pub fingerprint: [u8; 32],
}

/// Why a seal failed.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct SealFailure {
    /// What went wrong.
    pub error: String,
    /// How far it came.
    pub partial_state: String,
}

/// What a daemon's program can ask for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    /// Everything that needs no lock is done; take over, or start (C3).
    Begin,
    /// The seal has come this far (C4). Ignored when no seal runs.
    SealProgress {
        /// Shards that are sealed.
        shards_sealed: u32,
        /// Shards there are.
        shards_total: u32,
        /// The last revision that is durable.
        last_revision: u64,
    },
    /// Something beside the control path has changed: where this process serves it makes sure that the
    /// path leads to itself (R11). Ignored elsewhere: whoever resumes or takes over does so anyway.
    PathChanged,
    /// End without a successor: drain, seal, release the lock.
    Stop,
}

/// What a daemon tells.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// This process is the incumbent: it serves and answers on the control path.
    Incumbent,
    /// A handoff has begun.
    HandoffBegun {
        /// Its id.
        id: HandoffId,
        /// Who is to take over.
        successor: u32,
    },
    /// A handoff is off; this process will serve on.
    HandoffOff {
        /// Its id.
        id: HandoffId,
        /// Why.
        why: Off,
    },
    /// The lock is released and the successor may take it.
    Sealed {
        /// The handoff.
        id: HandoffId,
    },
    /// This process serves again after a handoff that came to nothing.
    Resumed {
        /// The handoff.
        id: HandoffId,
    },
    /// A hook failed.
    HookFailed {
        /// Which one.
        hook: &'static str,
        /// Why.
        error: String,
    },
    /// The lock could not be taken; it is tried again.
    LockRefused(LockFailure),
    /// The control socket could not be put in place; it is tried again.
    PathFailed(String),
    /// The successor holds on to the lock and could not be ended; the lock is tried again.
    SuccessorNotEnded(String),
    /// A peer was turned away (W7). Nothing else is touched by it.
    PeerRefused {
        /// Whose connection was closed.
        conn: ConnId,
        /// Why.
        violation: Violation,
        /// In which state of this process.
        state: &'static str,
    },
    /// This process has no further part to play. The last event.
    Ended(Ended),
}

impl Event {
    /// Whether somebody should look at it.
    #[must_use]
    pub const fn is_trouble(&self) -> bool {
        match self {
            Self::HandoffOff { .. }
            | Self::HookFailed { .. }
            | Self::LockRefused(_)
            | Self::PathFailed(_)
            | Self::SuccessorNotEnded(_)
            | Self::PeerRefused { .. } => true,
            Self::Incumbent
            | Self::HandoffBegun { .. }
            | Self::Sealed { .. }
            | Self::Resumed { .. }
            | Self::Ended(_) => false,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incumbent => f.write_str("this process is the incumbent"),
            Self::HandoffBegun { id, successor } => {
                write!(f, "handoff {id} to pid {successor} begins: draining")
            }
            Self::HandoffOff { id, why } => write!(f, "handoff {id} is off: {why}"),
            Self::Sealed { id } => write!(f, "handoff {id}: sealed, the lock is released"),
            Self::Resumed { id } => write!(f, "handoff {id} came to nothing: serving again"),
            Self::HookFailed { hook, error } => write!(f, "the {hook} hook failed: {error}"),
            Self::LockRefused(failure) => write!(f, "the lock is tried again: {failure}"),
            Self::PathFailed(reason) => write!(f, "the control path is tried again: {reason}"),
            Self::SuccessorNotEnded(reason) => {
                write!(f, "the successor keeps the lock and could not be ended: {reason}")
            }
            Self::PeerRefused { conn, violation, state } => {
                write!(f, "connection {} closed while {state}: {violation}", conn.0)
            }
            Self::Ended(ended) => ended.fmt(f),
        }
    }
}

/// Why a handoff is off.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Off {
    /// The supervisor said so.
    Aborted,
    /// The connection to the supervisor is closed or dead.
    SupervisorGone,
    /// The deadline has passed.
    Deadline,
    /// The drain failed.
    DrainFailed,
    /// The drain outlived its grace.
    DrainTimeout,
    /// The seal failed.
    SealFailed,
    /// The program was told to stop.
    Stopped,
}

impl fmt::Display for Off {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aborted => "the supervisor aborted it",
            Self::SupervisorGone => "the supervisor is gone",
            Self::Deadline => "its deadline has passed",
            Self::DrainFailed => "the drain failed",
            Self::DrainTimeout => "the drain outlived its grace",
            Self::SealFailed => "the seal failed",
            Self::Stopped => "this process was told to stop",
        })
    }
}

/// How a daemon ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Ended {
    /// The handoff was committed: finish what is still read and exit.
    Committed {
        /// The handoff.
        id: HandoffId,
    },
    /// Another process serves, or is to: exit.
    StoodDown {
        /// Why.
        why: StandDown,
    },
    /// It was told to stop.
    Stopped,
    /// The program could not open its data; the lock is released.
    OpenFailed(String),
    /// The process must abort: a hook neither returned nor can be undone, and only a crash lets
    /// somebody else serve (R7).
    Crash(String),
}

impl Ended {
    /// The code to exit with (R15).
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Committed { .. } | Self::Stopped => 0,
            Self::StoodDown { .. } => 75,
            Self::OpenFailed(_) | Self::Crash(_) => 70,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Committed { id } => write!(f, "handoff {id} is committed"),
            Self::StoodDown { why } => why.fmt(f),
            Self::Stopped => f.write_str("stopped"),
            Self::OpenFailed(error) => write!(f, "the data could not be opened: {error}"),
            Self::Crash(reason) => f.write_str(reason),
        }
    }
}

/// Why a daemon stood down.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum StandDown {
    /// Another process answers on the control path.
    OtherServes {
        /// Its pid.
        pid: u32,
    },
    /// The supervisor ended the handoff.
    Aborted(String),
    /// The supervisor was gone before it said Begin (R3).
    SupervisorGone,
    /// The lock could not be had in time (R3).
    NoLock(Option<LockFailure>),
}

impl fmt::Display for StandDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherServes { pid } => write!(f, "pid {pid} serves"),
            Self::Aborted(reason) => write!(f, "the supervisor ended the handoff: {reason}"),
            Self::SupervisorGone => f.write_str("the supervisor went away before it said Begin"),
            Self::NoLock(Some(failure)) => {
                write!(f, "the lock could not be had in time: {failure}")
            }
            Self::NoLock(None) => f.write_str("the lock could not be had in time"),
        }
    }
}

/// What a daemon is told once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Config {
    /// Its pid.
    pub pid: u32,
    /// Its uid. Peers of this uid and of root are allowed (R12).
    pub uid: u32,
    /// Further uids that are allowed.
    pub allowed_uids: Vec<u32>,
    /// What it calls its build, at most 1 KiB.
    pub build_id: Vec<u8>,
    /// The lowest version it speaks.
    pub proto_min: ProtoVersion,
    /// The highest version it speaks.
    pub proto_max: ProtoVersion,
    /// Its durations.
    pub timing: Timing,
}

impl Config {
    /// The defaults, for a process of this pid and uid.
    #[must_use]
    pub fn new(pid: u32, uid: u32) -> Self {
        Self {
            pid,
            uid,
            allowed_uids: Vec::new(),
            build_id: Vec::new(),
            proto_min: PROTO_MIN,
            proto_max: PROTO_MAX,
            timing: Timing::default(),
        }
    }
}

/// A daemon's durations. The defaults are PROTOCOL's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timing {
    /// Heartbeats (T1, T2).
    pub pulse: Pulse,
    /// How long a connection may take to send HelloAck (C5): 5 s.
    pub hello_ack: Duration,
    /// How long a connection may neither heartbeat nor send Prepare (C5): 30 s.
    pub idle: Duration,
    /// How long a hook may take to return once its handoff has ended (R7): 30 s.
    pub hook_stuck: Duration,
    /// How long a successor, or a cold start, tries to take the lock (R3): 60 s.
    pub lock_bound: Duration,
    /// How long until a failed effect is tried again: 20 ms.
    pub retry: Duration,
    /// How long a successor that is ready waits for a verdict (R3): 10 s.
    pub verdict: Duration,
    /// How long a process may take to end after SIGTERM, before SIGKILL (R14): 5 s.
    pub end_grace: Duration,
    /// The grace of the drain when the program stops without a successor: 30 s.
    pub stop_grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            pulse: Pulse::default(),
            hello_ack: Duration::from_secs(5),
            idle: Duration::from_secs(30),
            hook_stuck: Duration::from_secs(30),
            lock_bound: Duration::from_secs(60),
            retry: Duration::from_millis(20),
            verdict: Duration::from_secs(10),
            end_grace: Duration::from_secs(5),
            stop_grace: Duration::from_secs(30),
        }
    }
}

/// An input of a daemon.
pub type Input = crate::Input<ConnId, Outcome, Command>;

/// An output of a daemon.
pub type Output = crate::Output<ConnId, Effect, Event>;

pub(crate) type Out = Vec<Output>;

pub(crate) fn os(effect: OsEffect) -> Output {
    Output::Do(Effect::Os(effect))
}

pub(crate) fn hook(hook: Hook) -> Output {
    Output::Do(Effect::Hook(hook))
}

/// The way out without a successor: drain, seal, release the lock. Shared by both roles.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Retiring {
    ended: Ended,
    /// The control path is being claimed: the lock is not let go before that is over.
    claiming: bool,
    sealed: bool,
}

impl Retiring {
    pub(crate) fn start(ended: Ended, grace: Duration, claiming: bool, out: &mut Out) -> Self {
        out.push(hook(Hook::Drain { grace }));
        Self { ended, claiming, sealed: false }
    }

    /// The claim of the control path is over.
    pub(crate) fn claimed(&mut self, out: &mut Out) {
        if core::mem::replace(&mut self.claiming, false) && self.sealed {
            out.push(os(OsEffect::ReleaseLock));
        }
    }

    /// Takes a completion; gives the end once there is nothing left to do.
    pub(crate) fn done(&mut self, outcome: Outcome, out: &mut Out) -> Option<Ended> {
        match outcome {
            Outcome::Drained(result) => {
                if let Err(error) = result {
                    out.push(Output::Event(Event::HookFailed { hook: "drain", error }));
                }
                out.push(hook(Hook::Seal));
                None
            }
            Outcome::Sealed(Ok(_)) => {
                self.sealed = true;
                if !self.claiming {
                    out.push(os(OsEffect::ReleaseLock));
                }
                None
            }
            Outcome::Claimed(_) => {
                self.claimed(out);
                None
            }
            // The data may still be open: the lock goes with the process, not before it (R7).
            Outcome::Sealed(Err(SealFailure { error, .. })) => {
                out.push(Output::Event(Event::HookFailed { hook: "seal", error }));
                Some(self.ended.clone())
            }
            Outcome::Released(_) => Some(self.ended.clone()),
            Outcome::Lock(_)
            | Outcome::Staged(_)
            | Outcome::Probed(_)
            | Outcome::Watched(_)
            | Outcome::Signalled(_)
            | Outcome::Opened(_)
            | Outcome::Resumed(_) => None,
        }
    }
}

/// A daemon's whole life: a [`Successor`] (or a cold start), then the [`Incumbent`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Daemon {
    /// It does not serve yet.
    Successor(Successor),
    /// It serves.
    Incumbent(Incumbent),
}

impl Daemon {
    /// A daemon that nobody came before: it takes the lock at [`Command::Begin`].
    #[must_use]
    pub fn cold(config: Config) -> Self {
        Self::Successor(Successor::cold(config))
    }

    /// A daemon that a supervisor started to take over. `says_hello_when_warm` where the supervisor
    /// gave a budget for the warm-up (C3).
    #[must_use]
    pub fn successor(config: Config, says_hello_when_warm: bool) -> Self {
        Self::Successor(Successor::new(config, says_hello_when_warm))
    }

    /// Whether it answers on the control path now, that is, whether connections are to be accepted.
    #[must_use]
    pub const fn answers(&self) -> bool {
        match self {
            Self::Successor(_) => false,
            Self::Incumbent(incumbent) => incumbent.answers(),
        }
    }
}

/// Names of a daemon's timers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "each stands for the role's own timer")]
pub enum Timer {
    Successor(successor::Timer),
    Incumbent(incumbent::Timer),
}

impl Machine for Daemon {
    type Peer = ConnId;
    type Effect = Effect;
    type Outcome = Outcome;
    type Command = Command;
    type Event = Event;
    type Timer = Timer;

    fn handle(&mut self, now: Instant, input: Input, out: &mut Out) {
        match self {
            Self::Successor(successor) => {
                successor.handle(now, input, out);
                if let Some(incumbent) = successor.succeeded() {
                    *self = Self::Incumbent(incumbent);
                }
            }
            Self::Incumbent(incumbent) => incumbent.handle(now, input, out),
        }
    }

    fn deadline(&self) -> Option<Deadline<Timer>> {
        match self {
            Self::Successor(machine) => {
                machine.deadline().map(|d| Deadline { at: d.at, why: Timer::Successor(d.why) })
            }
            Self::Incumbent(machine) => {
                machine.deadline().map(|d| Deadline { at: d.at, why: Timer::Incumbent(d.why) })
            }
        }
    }

    fn rebase(&mut self, by: Duration) {
        match self {
            Self::Successor(machine) => machine.rebase(by),
            Self::Incumbent(machine) => machine.rebase(by),
        }
    }

    fn state_name(&self) -> &'static str {
        match self {
            Self::Successor(machine) => machine.state_name(),
            Self::Incumbent(machine) => machine.state_name(),
        }
    }
}

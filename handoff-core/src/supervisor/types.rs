use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::daemon::{Probed, Signal};
use crate::link::Pulse;
use crate::{HandoffId, PROTO_MAX, PROTO_MIN, ProtoVersion, Violation};

/// The two ends a supervisor speaks to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Peer {
    /// O.
    Incumbent,
    /// N.
    Successor,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Incumbent => "the incumbent",
            Self::Successor => "the successor",
        })
    }
}

/// What a supervisor asks of its host.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// See who answers on the control path (C6). Completes with [`Outcome::Probed`]; never
    /// [`Probed::Own`].
    Probe,
    /// Start a daemon in a process group of its own, and watch it. Completes with
    /// [`Outcome::Spawned`], later with [`Outcome::Exited`].
    Spawn {
        /// As a successor, with a control connection; else as a cold start.
        successor: bool,
    },
    /// Connect to the control path, and watch the process that listens there. Completes with
    /// [`Outcome::Connected`], after an [`crate::Input::Opened`] where it succeeded; later with
    /// [`Outcome::Exited`].
    Connect,
    /// See who holds the data directory's lock, without touching it. Completes with
    /// [`Outcome::LockChecked`].
    CheckLock {
        /// Who is thought to hold it: the first place to look.
        by: Option<u32>,
    },
    /// Send a signal to the process group that the host started with this leader. A leader that is
    /// stopped is killed, whatever it was to be sent: it could not take the signal, and would go on
    /// before it ends. Completes with [`Outcome::Signalled`].
    Signal {
        /// The group's leader.
        pid: u32,
        /// What to send.
        signal: Signal,
    },
    /// Wait until every process of that group is gone and reaped (R14). Completes with
    /// [`Outcome::Reaped`].
    Reap {
        /// The group's leader.
        pid: u32,
    },
    /// Write the journal (R9). Completes with [`Outcome::Journalled`].
    Journal(Entry),
}

/// What an [`Effect`] completed with (R8).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Of [`Effect::Probe`].
    Probed(Probed),
    /// Of [`Effect::Spawn`]: the pid, or why the binary did not start.
    Spawned(Result<u32, String>),
    /// Of [`Effect::Connect`].
    Connected(Result<(), String>),
    /// Of [`Effect::CheckLock`].
    LockChecked(LockState),
    /// Of [`Effect::Signal`]. A group that is already gone is a success.
    Signalled(Result<(), String>),
    /// Of [`Effect::Reap`].
    Reaped {
        /// The group's leader.
        pid: u32,
    },
    /// Of [`Effect::Journal`].
    Journalled(Result<(), String>),
    /// A process that [`Effect::Spawn`] or [`Effect::Connect`] watches has exited: its pidfd says so.
    /// To be given before anything else that was there at the same time.
    Exited {
        /// Its pid.
        pid: u32,
        /// How, for people.
        status: String,
    },
}

/// What is known of the data directory's lock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LockState {
    /// A process holds it.
    Held {
        /// Its pid, where it is known.
        pid: Option<u32>,
    },
    /// A process holds it that is stopped, as by SIGSTOP: until it goes on it can answer nobody.
    Stopped {
        /// Its pid.
        pid: u32,
    },
    /// Nobody holds it.
    Free,
    /// The data directory is not known, or the system does not tell.
    Unknown,
}

/// One line of the journal: what a supervisor that is restarted must know (R9, R10).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The handoff.
    pub id: HandoffId,
    /// The step that is about to be taken.
    pub step: Step,
    /// O's pid.
    pub incumbent: Option<u32>,
    /// N's pid.
    pub successor: Option<u32>,
}

/// The steps of a handoff that the journal tells apart. An entry is written ahead of its step (R9), those of
/// Prepare and of Seal one after the other as soon as the incumbent has said Hello, and before Prepare is sent:
/// a step that is written was not necessarily reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Step {
    /// A successor warms up; the incumbent is untouched.
    Warm,
    /// The incumbent is told to drain.
    Prepare,
    /// The incumbent is told to seal.
    Seal,
    /// The successor may take the lock.
    Begin,
    /// The successor is the incumbent.
    Commit,
    /// The successor is being ended.
    Abort,
    /// Nothing is under way.
    Idle,
}

/// What a supervisor's user can ask for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    /// Find out who serves, and start a daemon if nobody does and the lock is free (R10, R17).
    Start {
        /// Processes that this supervisor, or the one before it, started and that still run: it may
        /// end one of them if it holds the lock and is hung.
        own: Vec<u32>,
    },
    /// Hand off to the binary the host holds ready. One at a time.
    Handoff {
        /// A fresh id.
        id: HandoffId,
        /// Its durations.
        spec: Spec,
    },
    /// Roll back the handoff under way. Too late once it is committed, or once the incumbent is gone.
    Abort,
}

/// The durations of one handoff.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Spec {
    /// From Prepare to Ready (T5): 60 s.
    pub deadline: Duration,
    /// For the drain (T5): 30 s.
    pub drain_grace: Duration,
    /// For the successor's warm-up, until its Hello (C3): 60 s.
    pub hello_budget: Duration,
    /// Whether the successor is ended once it has said Hello, so that it was only seen to start and the
    /// incumbent is left alone: false.
    pub dry_run: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(60),
            drain_grace: Duration::from_secs(30),
            hello_budget: Duration::from_secs(60),
            dry_run: false,
        }
    }
}

/// What a supervisor is told once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Config {
    /// Its uid. Daemons of this uid and of root are allowed (R12).
    pub uid: u32,
    /// Further uids that are allowed.
    pub allowed_uids: Vec<u32>,
    /// Whether a descendant of the process that was started may be the successor (C1).
    pub allow_wrappers: bool,
    /// The lowest version it speaks.
    pub proto_min: ProtoVersion,
    /// The highest version it speaks.
    pub proto_max: ProtoVersion,
    /// Whether a successor takes over when the incumbent is gone (R5).
    pub promote: bool,
    /// Whether a peer that reports no revisions is refused (R6).
    pub strict: bool,
    /// Its durations.
    pub timing: Timing,
}

impl Config {
    /// The defaults, for a process of this uid.
    #[must_use]
    pub fn new(uid: u32) -> Self {
        Self {
            uid,
            allowed_uids: Vec::new(),
            allow_wrappers: false,
            proto_min: PROTO_MIN,
            proto_max: PROTO_MAX,
            promote: true,
            strict: false,
            timing: Timing::default(),
        }
    }
}

/// A supervisor's durations. The defaults are PROTOCOL's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timing {
    /// Heartbeats (T1, T2).
    pub pulse: Pulse,
    /// How long an incumbent may take to say Hello once the successor has: 3 s.
    pub incumbent_hello: Duration,
    /// What is added to a deadline for an answer in flight (T5): 1 s.
    pub slack: Duration,
    /// How long a question to the incumbent may go unanswered (R5): 2 s.
    pub ask: Duration,
    /// How long until the lock is looked at, or the control path probed, again: 10 ms.
    pub recheck: Duration,
    /// How long until it is probed again when a successor that was told the commit is about to rename its
    /// socket there (R16): 1 ms. The handoff is over but for that.
    pub path_recheck: Duration,
    /// From SIGTERM to SIGKILL (R14): 5 s.
    pub end_grace: Duration,
    /// From SIGKILL until a process that will not die is reported (R14): 5 s.
    pub kill_wait: Duration,
    /// How long the incumbent may take to be seen serving again (R4): 10 s.
    pub confirm: Duration,
    /// How long the control path may take to lead to the successor (R16): 4 s.
    pub path: Duration,
    /// From the silence of a process, which is dead by that (T2), until it is ended where it stands in
    /// the way (R17): 500 ms.
    pub silent: Duration,
    /// From SIGTERM to SIGKILL for one that is silent or stopped: 1 s.
    pub silent_grace: Duration,
    /// How long one without X2, whose silence means nothing, may stand in the way (R17): 10 s.
    pub hung: Duration,
    /// How long a child that answers nobody on the control path may hold the lock (R17): 60 s. It
    /// may be opening its data.
    pub unanswered: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            pulse: Pulse::default(),
            incumbent_hello: Duration::from_secs(3),
            slack: Duration::from_secs(1),
            ask: Duration::from_secs(2),
            recheck: Duration::from_millis(10),
            path_recheck: Duration::from_millis(1),
            end_grace: Duration::from_secs(5),
            kill_wait: Duration::from_secs(5),
            confirm: Duration::from_secs(10),
            path: Duration::from_secs(4),
            silent: Duration::from_millis(500),
            silent_grace: Duration::from_secs(1),
            hung: Duration::from_secs(10),
            unanswered: Duration::from_secs(60),
        }
    }
}

/// What a supervisor tells.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A handoff has come to this phase.
    Phase(Phase),
    /// The seal has come this far (C4).
    SealProgress {
        /// Shards that are sealed.
        shards_sealed: u32,
        /// Shards there are.
        shards_total: u32,
        /// The last revision that is durable.
        last_revision: u64,
    },
    /// The drain has ended.
    Drained {
        /// Connections that are still open.
        open_conns_remaining: u32,
        /// Whether accepting has stopped.
        accept_closed: bool,
    },
    /// A peer broke the protocol; its connection was closed (W7).
    PeerRefused {
        /// Which.
        peer: Peer,
        /// How.
        violation: Violation,
        /// In which state of this machine.
        state: &'static str,
    },
    /// The journal could not be written (R9).
    JournalFailed(String),
    /// The request came while another was under way.
    Busy,
    /// Nobody answers, and somebody holds the lock: it is waited for (R17).
    Waiting {
        /// The holder, where it is known.
        holder: Option<u32>,
    },
    /// This process serves: the answer to [`Command::Start`].
    Serving {
        /// Its pid.
        pid: u32,
        /// Whether it was started just now.
        started: bool,
    },
    /// Nobody serves, and the daemon that was started did not come up: the other answer to
    /// [`Command::Start`].
    NobodyServes(String),
    /// A handoff has ended.
    Finished(Report),
}

impl Event {
    /// Whether somebody should look at it.
    #[must_use]
    pub fn is_trouble(&self) -> bool {
        match self {
            Self::PeerRefused { .. }
            | Self::JournalFailed(_)
            | Self::Busy
            | Self::Waiting { .. }
            | Self::NobodyServes(_)
            | Self::Phase(Phase::Rollback | Phase::Promote) => true,
            Self::Finished(report) => match report.verdict {
                Verdict::Committed | Verdict::DryRun => false,
                Verdict::RolledBack | Verdict::Refused | Verdict::Unknown => true,
            },
            Self::Phase(_)
            | Self::SealProgress { .. }
            | Self::Drained { .. }
            | Self::Serving { .. } => false,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Phase(phase) => write!(f, "phase {}", phase.name()),
            Self::SealProgress { shards_sealed, shards_total, last_revision } => {
                write!(f, "{shards_sealed} of {shards_total} shards sealed, to {last_revision}")
            }
            Self::Drained { open_conns_remaining, .. } => {
                write!(f, "drained, {open_conns_remaining} connections still open")
            }
            Self::PeerRefused { peer, violation, state } => {
                write!(f, "closed the connection to {peer} while {state}: {violation}")
            }
            Self::JournalFailed(error) => write!(f, "the journal was not written: {error}"),
            Self::Busy => f.write_str("another handoff is under way"),
            Self::Waiting { holder: Some(pid) } => {
                write!(f, "nobody answers, and pid {pid} holds the lock: waiting")
            }
            Self::Waiting { holder: None } => {
                f.write_str("nobody answers, and somebody holds the lock: waiting")
            }
            Self::Serving { pid, started } => {
                write!(f, "pid {pid} serves{}", if *started { ", started just now" } else { "" })
            }
            Self::NobodyServes(reason) => write!(f, "nobody serves: {reason}"),
            Self::Finished(report) => report.fmt(f),
        }
    }
}

/// The phases of a handoff, as a person would tell them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Phase {
    /// The successor starts and warms up; the incumbent serves.
    Warm,
    /// The incumbent finishes what is in flight.
    Drain,
    /// The incumbent seals its data and releases the lock.
    Seal,
    /// The successor takes the lock and opens the data.
    Open,
    /// The successor serves; the control path is to lead to it.
    Commit,
    /// The successor is being ended, the incumbent takes its data back.
    Rollback,
    /// The incumbent is gone; the successor takes over as after a crash.
    Promote,
}

impl Phase {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Drain => "drain",
            Self::Seal => "seal",
            Self::Open => "open",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::Promote => "promote",
        }
    }
}

/// How a handoff ended (R4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// The successor serves, and the control path leads to it.
    Committed,
    /// The incumbent was seen to serve again.
    RolledBack,
    /// The incumbent was not touched, or refused before its drain was done, and serves.
    Refused,
    /// The successor of a [dry run](Spec::dry_run) said Hello and was ended; the incumbent was not
    /// touched.
    DryRun,
    /// None of these is proven.
    Unknown,
}

impl Verdict {
    /// The code, for scripts: it stays the same for ever.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled_back",
            Self::Refused => "refused",
            Self::DryRun => "dry_run",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled back",
            Self::Refused => "refused",
            Self::DryRun => "the dry run went well",
            Self::Unknown => "unknown",
        })
    }
}

/// Why a handoff went as it did: codes that stay the same for ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is its code, see Reason::code")]
pub enum Reason {
    SuccessorExecFailed,
    SuccessorExited,
    SuccessorHelloTimeout,
    VersionMismatch,
    ProtocolViolation,
    DrainTimeout,
    DrainFailed,
    SealFailed,
    SealTimeout,
    ReadyTimeout,
    Unhealthy,
    RevisionRegressed,
    IncumbentLost,
    OperatorAbort,
    IoError,
}

impl Reason {
    /// The code, for scripts.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::SuccessorExecFailed => "successor_exec_failed",
            Self::SuccessorExited => "successor_exited",
            Self::SuccessorHelloTimeout => "successor_hello_timeout",
            Self::VersionMismatch => "version_mismatch",
            Self::ProtocolViolation => "protocol_violation",
            Self::DrainTimeout => "drain_timeout",
            Self::DrainFailed => "drain_failed",
            Self::SealFailed => "seal_failed",
            Self::SealTimeout => "seal_timeout",
            Self::ReadyTimeout => "ready_timeout",
            Self::Unhealthy => "unhealthy",
            Self::RevisionRegressed => "revision_regressed",
            Self::IncumbentLost => "incumbent_lost",
            Self::OperatorAbort => "operator_abort",
            Self::IoError => "io_error",
        }
    }
}

/// What went wrong: the code for scripts and the sentence for people.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Trouble {
    /// The code.
    pub reason: Reason,
    /// The sentence.
    pub detail: String,
}

/// What a successor said when it was ready (R6).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Ready {
    /// The addresses it accepts on.
    pub listening_on: Vec<String>,
    /// Whether it called itself fit to serve.
    pub healthz_ok: bool,
    /// The last revision of each shard.
    pub revisions: Vec<u64>,
}

/// The outcome of one handoff (R4).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Report {
    /// Which handoff.
    pub id: HandoffId,
    /// How it ended.
    pub verdict: Verdict,
    /// What went wrong, also where it was committed all the same (R5).
    pub trouble: Option<Trouble>,
    /// Who serves, as far as it was seen.
    pub serving: Option<u32>,
    /// What the successor reported.
    pub ready: Option<Ready>,
    /// A process of the successor's that would not die (R14).
    pub stuck: Option<u32>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handoff {}: {}", self.id, self.verdict)?;
        if let Some(trouble) = &self.trouble {
            write!(f, ", {} ({})", trouble.detail, trouble.reason.code())?;
        }
        match self.serving {
            Some(pid) => write!(f, "; pid {pid} serves")?,
            None => f.write_str("; nobody was seen to serve")?,
        }
        if let Some(pid) = self.stuck {
            write!(f, "; process group {pid} will not die")?;
        }
        Ok(())
    }
}

/// An input of a supervisor.
pub type Input = crate::Input<Peer, Outcome, Command>;

/// An output of a supervisor.
pub type Output = crate::Output<Peer, Effect, Event>;

/// Names of a supervisor's timers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Timer {
    /// The next heartbeat is due (T1).
    Beat(Peer),
    /// A daemon that heartbeats has been silent (T2, X2).
    Silence(Peer),
    /// A Hello is overdue (C3).
    Hello(Peer),
    /// The drain is overdue (T5).
    Drain,
    /// Ready is overdue (T5).
    Deadline,
    /// The incumbent did not answer (R5).
    Ask,
    /// The lock or the control path is to be looked at again.
    Recheck,
    /// SIGTERM had its time (R14).
    EndGrace,
    /// SIGKILL had its time (R14).
    KillWait,
    /// The incumbent was not seen to serve again (R4).
    Confirm,
    /// The control path does not lead to the successor (R16).
    Path,
    /// A child that answers nobody holds the lock (R17).
    Hung,
}

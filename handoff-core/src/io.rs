use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::wire::{Message, ProtoVersion, VersionMismatch, WireError};
use crate::{Deadline, HandoffId, Instant, Side};

/// What the kernel says of the process at the other end of a connection (C1, R12).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Credentials {
    /// Its process id.
    pub pid: u32,
    /// Its user id.
    pub uid: u32,
    /// Whether it descends from the process the host started for this connection. True where the
    /// host started it directly, false where the host started nothing.
    pub descends: bool,
}

/// Everything that can happen to a machine: its complete input alphabet.
///
/// `P` names its peers, `D` what effects complete with, `C` what its user can ask for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input<P, D, C> {
    /// Time has passed. To be given at or after [`Machine::deadline`]; harmless at any other time.
    Tick,
    /// A connection is open, and this is who is at its other end.
    Opened {
        /// The peer it belongs to from now on.
        peer: P,
        /// Who the kernel says it is.
        cred: Credentials,
    },
    /// Bytes arrived that do not complete a message yet. Proof of life, and nothing more (T2).
    Heard {
        /// Who sent them.
        from: P,
    },
    /// A whole message arrived.
    Message {
        /// Who sent it.
        from: P,
        /// What it says.
        message: Message,
    },
    /// A connection ended: everything that arrived on it was given before (C3). A failed write is no
    /// such input.
    Closed {
        /// Whose it was.
        from: P,
        /// How it ended.
        how: Hangup,
    },
    /// An effect completed. Every effect does, exactly once, however late (R8).
    Done(D),
    /// The machine's user asks for something.
    Command(C),
}

/// How a connection ended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Hangup {
    /// The peer closed its end, or is gone.
    Eof,
    /// The peer broke the protocol; the connection was closed on it (W7).
    Violation(Violation),
}

/// Something a machine asks of its host, to be carried out in the order given.
///
/// `E` is what it can do to the world, `V` what it has to tell.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[must_use = "an output that is not carried out is an effect that never completes"]
pub enum Output<P, E, V> {
    /// Queue a message for a peer.
    Send {
        /// Who it is for.
        to: P,
        /// What to say.
        message: Message,
    },
    /// Queue a Heartbeat, unless earlier bytes to this peer are still unsent (T4).
    Beat {
        /// Who it is for.
        to: P,
        /// Its time stamp.
        ts_ms: u64,
    },
    /// Answer a Heartbeat (T3, X2): queue a Heartbeat with the same time stamp. While earlier bytes to
    /// this peer are unsent one answer is kept back, the newest (T4).
    Answer {
        /// Who it is for.
        to: P,
        /// The time stamp that was asked with.
        ts_ms: u64,
    },
    /// Carry out an effect, and report its completion. At most one effect of a kind is ever in
    /// flight, so the kind is what ties a completion to it.
    Do(E),
    /// Tell the hook that runs now that its handoff has ended (R7). Its own completion follows.
    Cancel,
    /// Close a connection once what was queued for it was offered to the socket. No input from this
    /// peer is expected afterwards, and none does harm.
    Close {
        /// Whose connection.
        peer: P,
    },
    /// Something to tell the user, the log, the metrics.
    Event(V),
}

/// A protocol machine: plain data that inputs move from state to state.
pub trait Machine {
    /// Names of the peers.
    type Peer: Copy + Ord + fmt::Debug;
    /// What it asks of the world.
    type Effect;
    /// What its effects complete with.
    type Outcome;
    /// What its user can ask for.
    type Command;
    /// What it tells.
    type Event;
    /// Names of the timers.
    type Timer: Copy + Ord + fmt::Debug;

    /// Takes one input and appends what is to be done to `out`. Never panics, whatever the order of
    /// inputs; one that makes no sense in its state changes nothing.
    fn handle(
        &mut self,
        now: Instant,
        input: Input<Self::Peer, Self::Outcome, Self::Command>,
        out: &mut Vec<Output<Self::Peer, Self::Effect, Self::Event>>,
    );

    /// When [`Input::Tick`] is due and why. Pure; after a tick at this instant it is later, or none.
    fn deadline(&self) -> Option<Deadline<Self::Timer>>;

    /// Tells all deadlines from an origin that is `by` later, for hosts whose origin moves.
    fn rebase(&mut self, by: Duration);

    /// The name of the state it is in, for logs.
    fn state_name(&self) -> &'static str;
}

/// How a peer broke the protocol, and in which state of ours (W7).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Violation {
    /// Its bytes are no frame.
    Wire(WireError),
    /// It said something that has no place here.
    Unexpected {
        /// What it said.
        message: &'static str,
        /// The state it was said in.
        state: &'static str,
    },
    /// It announced the other role.
    WrongSide {
        /// What it announced.
        announced: Side,
    },
    /// Its Hello names another pid than the kernel does (C1).
    WrongPid {
        /// What it announced.
        announced: u32,
        /// What the kernel says.
        actual: u32,
    },
    /// It is not the process that was started, nor an allowed descendant of it (C1).
    NotOurs {
        /// What the kernel says.
        actual: u32,
        /// What was started.
        started: u32,
    },
    /// It runs as a user that is not allowed (R12).
    WrongUser {
        /// Its uid.
        uid: u32,
    },
    /// No protocol version in common (W4).
    Versions(VersionMismatch),
    /// HelloAck chose a version that was not offered (W5).
    ChosenVersion {
        /// What it chose.
        chosen: ProtoVersion,
        /// The lowest offered.
        min: ProtoVersion,
        /// The highest offered.
        max: ProtoVersion,
    },
    /// A message carries another handoff's id (C1).
    WrongId {
        /// What said so.
        message: &'static str,
        /// The id it carries.
        got: HandoffId,
        /// The id of this connection.
        expected: HandoffId,
    },
    /// Another handoff is active (C5).
    Busy {
        /// The active one.
        active: HandoffId,
    },
    /// It kept silent for too long (T2, C5).
    Silent {
        /// What was waited for.
        awaited: &'static str,
    },
    /// More connections are open than are kept; this one was the oldest that had said nothing.
    Crowded,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wire(error) => error.fmt(f),
            Self::Unexpected { message, state } => {
                write!(f, "{message} has no place while {state}")
            }
            Self::WrongSide { announced } => {
                write!(f, "the peer announces itself as {announced:?}")
            }
            Self::WrongPid { announced, actual } => {
                write!(f, "Hello names pid {announced}, but the kernel says {actual}")
            }
            Self::NotOurs { actual, started } => {
                write!(f, "pid {actual} speaks, but pid {started} was started")
            }
            Self::WrongUser { uid } => write!(f, "uid {uid} is not allowed on this connection"),
            Self::Versions(mismatch) => mismatch.fmt(f),
            Self::ChosenVersion { chosen, min, max } => {
                write!(f, "version {chosen} was chosen, but {min} to {max} were offered")
            }
            Self::WrongId { message, got, expected } => {
                write!(f, "{message} carries handoff {got}, but this connection is for {expected}")
            }
            Self::Busy { active } => write!(f, "handoff {active} is active"),
            Self::Silent { awaited } => write!(f, "the peer kept silent; {awaited} was awaited"),
            Self::Crowded => f.write_str("too many connections are open"),
        }
    }
}

impl core::error::Error for Violation {}

/// Shortens a text for the wire to at most `max` bytes, at a character's boundary.
pub(crate) fn clip(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

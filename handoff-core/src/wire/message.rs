use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A version of the protocol, as it stands in a frame's header (W2).
pub type ProtoVersion = u16;

/// The lowest protocol version this crate speaks (W3).
pub const PROTO_MIN: ProtoVersion = 1;

/// The highest protocol version this crate speaks (W3).
pub const PROTO_MAX: ProtoVersion = 1;

/// Which daemon says Hello (W3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Side {
    /// O: the process that serves and holds the lock.
    Incumbent,
    /// N: the process that takes over.
    Successor,
}

/// The identity of one handoff: the same on both connections, in every message that carries one (C1).
///
/// On the wire it is postcard's form of a [`Uuid`]: a length byte 16, then the bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct HandoffId(pub Uuid);

impl HandoffId {
    /// Makes a fresh id, a version 4 UUID.
    ///
    /// Only with the feature `v4`; without it this crate draws no random number and hosts hand their
    /// own bytes to [`HandoffId::from_random_bytes`].
    #[cfg(feature = "v4")]
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "the feature asks for it")]
    pub fn new() -> Self {
        Self(Uuid::new_v4())
    }

    /// Makes a version 4 UUID of 16 bytes that the host drew at random.
    #[must_use]
    pub const fn from_random_bytes(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }
}

#[cfg(feature = "v4")]
impl Default for HandoffId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for HandoffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a daemon can do beyond version 1, one bit each (X1, X2). A bit that a peer does not know is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// The bits.
    pub reserved: u64,
}

impl Capabilities {
    /// X1, in N's Hello: N wants to be sent Commit too.
    pub const COMMIT_NOTICE: u64 = 1;
    /// X2: the daemon heartbeats from HelloAck to the end, and O's answer to a Heartbeat repeats its `ts_ms`.
    pub const STEADY_HEARTBEAT: u64 = 1 << 1;

    /// What every daemon built on this crate sets: X1 and X2.
    pub const OURS: Self = Self { reserved: Self::COMMIT_NOTICE | Self::STEADY_HEARTBEAT };

    /// Whether every bit of `bits` is set.
    #[must_use]
    pub const fn has(self, bits: u64) -> bool {
        self.reserved & bits == bits
    }
}

/// Everything that is said on a control connection (W3).
///
/// postcard writes a variant's index, so the order of the variants is the wire.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are the table of W3 and carry its names")]
pub enum Message {
    /// O, N to S: who speaks, first on every connection (C1).
    Hello {
        role: Side,
        pid: u32,
        build_id: Vec<u8>,
        proto_min: ProtoVersion,
        proto_max: ProtoVersion,
        capabilities: Capabilities,
    },
    /// S to O, N: the version chosen and the handoff's id.
    HelloAck { proto_version_chosen: ProtoVersion, handoff_id: HandoffId },
    /// S to O: drain now. Durations in milliseconds (T5).
    PrepareHandoff {
        handoff_id: HandoffId,
        successor_pid: u32,
        deadline_ms: u64,
        drain_grace_ms: u64,
    },
    /// O to S: accepting has stopped and what was in flight is done.
    Drained { open_conns_remaining: u32, accept_closed: bool },
    /// S to O: seal the data and release the lock.
    SealRequest { handoff_id: HandoffId },
    /// O to S: how far the seal has come (C4).
    SealProgress { shards_sealed: u32, shards_total: u32, last_revision: u64 },
    /// O to S: the data is sealed and the lock released.
    SealComplete {
        handoff_id: HandoffId,
        last_revision_per_shard: Vec<u64>,
        data_dir_fingerprint: [u8; 32],
    },
    /// O to S: the seal failed; O keeps the lock and resumes.
    SealFailed { handoff_id: HandoffId, error: String, partial_state: String },
    /// S to N: take the lock and open the data.
    Begin { handoff_id: HandoffId },
    /// N to S: the data is open and connections are accepted.
    Ready {
        handoff_id: HandoffId,
        listening_on: Vec<String>,
        healthz_ok: bool,
        advertised_revision_per_shard: Vec<u64>,
    },
    /// S to O (and N, see X1): N is the incumbent; O exits.
    Commit { handoff_id: HandoffId },
    /// S to O, N: the handoff is off.
    Abort { handoff_id: HandoffId, reason: String },
    /// S to O: N is gone; take the lock back and serve.
    ResumeAfterAbort { handoff_id: HandoffId },
    /// Both ways: still here. `ts_ms` is for people, but for X2.
    Heartbeat { ts_ms: u64 },
}

impl Message {
    /// The handoff's id, for the messages that carry one.
    #[must_use]
    pub const fn handoff_id(&self) -> Option<HandoffId> {
        match self {
            Self::HelloAck { handoff_id, .. }
            | Self::PrepareHandoff { handoff_id, .. }
            | Self::SealRequest { handoff_id }
            | Self::SealComplete { handoff_id, .. }
            | Self::SealFailed { handoff_id, .. }
            | Self::Begin { handoff_id }
            | Self::Ready { handoff_id, .. }
            | Self::Commit { handoff_id }
            | Self::Abort { handoff_id, .. }
            | Self::ResumeAfterAbort { handoff_id } => Some(*handoff_id),
            Self::Hello { .. }
            | Self::Drained { .. }
            | Self::SealProgress { .. }
            | Self::Heartbeat { .. } => None,
        }
    }
}

/// The identifier of a message's variant, for logs and errors (W3).
#[must_use]
pub const fn short_name(message: &Message) -> &'static str {
    match message {
        Message::Hello { .. } => "Hello",
        Message::HelloAck { .. } => "HelloAck",
        Message::PrepareHandoff { .. } => "PrepareHandoff",
        Message::Drained { .. } => "Drained",
        Message::SealRequest { .. } => "SealRequest",
        Message::SealProgress { .. } => "SealProgress",
        Message::SealComplete { .. } => "SealComplete",
        Message::SealFailed { .. } => "SealFailed",
        Message::Begin { .. } => "Begin",
        Message::Ready { .. } => "Ready",
        Message::Commit { .. } => "Commit",
        Message::Abort { .. } => "Abort",
        Message::ResumeAfterAbort { .. } => "ResumeAfterAbort",
        Message::Heartbeat { .. } => "Heartbeat",
    }
}

/// Two peers share no protocol version (W4). The four numbers are what each of them offered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the fields say what they are")]
pub struct VersionMismatch {
    pub our_min: ProtoVersion,
    pub our_max: ProtoVersion,
    pub their_min: ProtoVersion,
    pub their_max: ProtoVersion,
}

impl fmt::Display for VersionMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no common protocol version: we speak {} to {}, the peer {} to {}",
            self.our_min, self.our_max, self.their_min, self.their_max
        )
    }
}

impl core::error::Error for VersionMismatch {}

/// The highest version that both ranges hold (W4).
///
/// # Errors
///
/// [`VersionMismatch`] where the ranges do not meet, or one of them is empty.
pub fn negotiate_version(
    our_min: ProtoVersion,
    our_max: ProtoVersion,
    their_min: ProtoVersion,
    their_max: ProtoVersion,
) -> Result<ProtoVersion, VersionMismatch> {
    let low = our_min.max(their_min);
    let high = our_max.min(their_max);
    // An empty range leaves nothing between them either.
    if low > high {
        return Err(VersionMismatch { our_min, our_max, their_min, their_max });
    }
    Ok(high)
}

//! What the verbs and a supervisor say to each other over its socket: a request in one line of JSON, and
//! replies in a line each, the last of which is no [`Reply::Progress`] (nor a [`Reply::Status`] of a
//! watch).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The longest request.
pub(crate) const LONGEST_REQUEST: usize = 64 << 10;

/// What a verb asks for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Who serves, and what is going on; with `watch` again at each change, until the client goes.
    Status {
        /// Whether to go on.
        watch: bool,
    },
    /// Hands off.
    Swap(Swap),
    /// Hands off to the previous binary.
    Rollback(Rollback),
    /// Rolls back the handoff under way.
    Abort,
    /// What has happened, the newest last.
    History {
        /// How many entries at most.
        last: usize,
    },
    /// Puts a new binary of the supervisor into its process.
    Reexec {
        /// The binary, if not the one it was started from.
        binary: Option<PathBuf>,
    },
    /// Stops the daemon and the supervisor.
    Stop,
}

/// What a swap is to do. What is left out is as the configuration says.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Swap {
    /// The new binary.
    pub binary: Option<PathBuf>,
    /// Whether to answer when it has ended, with progress until then; else when it has begun.
    pub wait: bool,
    /// Only has the new binary start, warm up and say Hello.
    pub dry_run: bool,
    /// From Prepare to Ready.
    pub deadline_ms: Option<u64>,
    /// For the drain.
    pub drain_grace_ms: Option<u64>,
    /// Why, for the history.
    pub reason: Option<String>,
    /// Two requests with one key are one handoff.
    pub key: Option<String>,
}

/// A swap back.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollback {
    /// As in [`Swap`].
    pub wait: bool,
    /// Why, for the history.
    pub reason: Option<String>,
    /// As in [`Swap`].
    pub key: Option<String>,
}

/// What a supervisor replies.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// How a handoff gets on. The end of it follows.
    Progress(Flight),
    /// A handoff has begun, and nobody waits for its end.
    Begun {
        /// Its id.
        id: String,
    },
    /// A handoff has ended: to [`Request::Swap`] and [`Request::Rollback`], and to [`Request::Abort`]
    /// for the one that was aborted.
    Ended(Box<Ended>),
    /// To [`Request::History`].
    History {
        /// The newest last.
        entries: Vec<Entry>,
    },
    /// It is done, or will be: to [`Request::Reexec`] and [`Request::Stop`].
    Done {
        /// What a person reads.
        message: String,
    },
    /// It was not done.
    Refused(Refusal),
}

/// Why something was not done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// The stable code.
    pub code: String,
    /// What the verb exits with, as in sysexits.
    pub exit: u8,
    /// What a person reads: what is wrong, and what to do.
    pub message: String,
}

/// What is going on. Times are milliseconds since 1970 where they end in `_at`, durations where they end
/// in `_ms`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The supervisor.
    pub supervisor: Boss,
    /// Who serves, if anybody is known to.
    pub serving: Option<Serving>,
    /// What it does now, in one word: `starting`, `waiting`, `serving`, `handoff`, `backoff`, `stopping`.
    pub activity: String,
    /// What there is to say of it.
    pub detail: Option<String>,
    /// The handoff under way.
    pub flight: Option<Flight>,
    /// The listeners it holds.
    pub listeners: Vec<Listener>,
    /// The new daemon is on probation.
    pub probation: Option<Probation>,
    /// What `rollback` would start.
    pub previous: Option<PathBuf>,
    /// The last that happened.
    pub last: Option<Entry>,
}

/// A supervisor.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Boss {
    /// Its pid.
    pub pid: u32,
    /// The version of the command.
    pub version: String,
    /// When this process, or its binary at the last `reexec`, was started.
    pub since_at: u64,
    /// Its configuration file.
    pub config: PathBuf,
}

/// A daemon that serves.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Serving {
    /// Its pid.
    pub pid: u32,
    /// What it calls its build.
    pub build_id: String,
    /// What was started, where this is known.
    pub binary: Option<PathBuf>,
    /// Since when.
    pub since_at: u64,
    /// How many daemons have served before it and including it.
    pub generation: u64,
    /// The last look at its health, where the configuration has one.
    pub healthy: Option<bool>,
}

/// A handoff under way.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Flight {
    /// Its id.
    pub id: String,
    /// What is started.
    pub binary: PathBuf,
    /// Whether the incumbent is left alone.
    pub dry_run: bool,
    /// Where it is: `warm`, `drain`, `seal`, `open`, `commit`, `rollback`, `promote`.
    pub phase: String,
    /// Since it began.
    pub elapsed_ms: u64,
    /// Since this phase began.
    pub phase_ms: u64,
    /// Until it is given up, in the phases that have a limit.
    pub left_ms: Option<u64>,
    /// Shards that are sealed, of how many.
    pub shards: Option<(u32, u32)>,
    /// Connections that were open when the drain ended.
    pub open_connections: Option<u32>,
    /// Why, as the operator said.
    pub reason: Option<String>,
}

/// A listener that the supervisor holds.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Listener {
    /// Its name.
    pub name: String,
    /// `tcp`, `unix` or `udp`.
    pub kind: String,
    /// Where it listens.
    pub address: String,
    /// How many connections may wait.
    pub backlog: Option<u32>,
    /// How many wait now.
    pub waiting: Option<u32>,
    /// Where it came from: `bound`, `systemd`, `fdstore`, `daemon`, `reexec`.
    pub origin: String,
}

/// A new daemon that is watched.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Probation {
    /// For how much longer.
    pub left_ms: u64,
    /// What takes its place if it fails.
    pub previous: PathBuf,
}

/// Something that happened, as the history keeps it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// `start`, `adopt`, `exit`, `swap`, `rollback`, `probation`, `dry_run`, `reexec`, `stop`.
    pub kind: String,
    /// When it ended.
    pub at: u64,
    /// The handoff's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How a handoff ended: `committed`, `rolled_back`, `refused`, `unknown`, `dry_run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// The stable code of what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What a person reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Who served before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Serving>,
    /// What was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    /// Who was seen to serve afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<u32>,
    /// How long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// The phases in order, and how long each took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<(String, u64)>,
    /// From when the incumbent had stopped accepting until the successor, or it again, accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable_ms: Option<u64>,
    /// The most connections that waited at each listener.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub waiting_max: BTreeMap<String, u32>,
    /// Connections that were open when the drain ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_connections: Option<u32>,
    /// Why, as the operator said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The operator's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// The end of a handoff, for who waits for it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// What the history keeps.
    pub entry: Entry,
    /// What the verb exits with: 0, 70 or 75.
    pub exit: u8,
    /// It is the outcome of an earlier request with the same key.
    pub repeated: bool,
    /// The last lines of the successor's standard error, where it failed.
    pub stderr: Vec<String>,
    /// Who did what when.
    pub timeline: Timeline,
}

/// Who did what when, in microseconds since a handoff began.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Timeline {
    /// The phases and when each began, the last with its end.
    pub phases: Vec<Span>,
    /// What was told meanwhile, as `drained, 3 connections still open`.
    pub events: Vec<(u64, String)>,
    /// How many connections waited, as it was sampled: when, and at all listeners together.
    pub waiting: Vec<(u64, u32)>,
    /// When it ended.
    pub end_us: u64,
}

/// A phase.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Span {
    /// Its name.
    pub phase: String,
    /// When it began.
    pub from_us: u64,
    /// When it ended.
    pub to_us: u64,
}

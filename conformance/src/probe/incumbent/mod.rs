//! An incumbent, as a supervisor meets it: on its control path.

mod checks;
mod company;
mod frames;
mod greeting;
mod handoffs;

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use handoff_core::wire::{FRAME_CAP, HANDSHAKE_CAP};
use handoff_core::{
    Capabilities, HandoffId, Message, PROTO_MAX, PROTO_MIN, Side, negotiate_version, short_name,
};
use handoff_unix::control::{ControlPath, ControlPathError};
use handoff_unix::lock::{DataDirLock, LockState, lock_state};

use super::conn::{Conn, Greeting, Next, frame, raw};
use super::report::{Case, Check, Log, Report, Seen, Stop, fail, run, seconds, skip};
use super::{Dummy, until};

pub(crate) use checks::CHECKS;

/// How long a daemon may be busy with strangers before it counts as held up: less than their
/// [`HELLO_ACK`] one after the other.
const HELD_UP: Duration = Duration::from_secs(10);

/// C5: until HelloAck.
const HELLO_ACK: Duration = Duration::from_secs(5);

/// C5: until a heartbeat or Prepare.
const IDLE: Duration = Duration::from_secs(30);

/// T2.
const SILENCE: Duration = Duration::from_secs(5);

/// The deadline of a handoff that is not to run into it.
const LONG: Duration = Duration::from_secs(60);

/// The deadline of a handoff that is.
const SHORT: Duration = Duration::from_secs(2);

/// A daemon that serves, to be probed. It is left serving, unless [`Incumbent::commit`] is asked for.
#[derive(Clone, Debug)]
pub struct Incumbent {
    socket: ControlPath,
    data_dir: Option<PathBuf>,
    patience: Duration,
    slow: bool,
    commit: bool,
    only: Vec<String>,
}

impl Incumbent {
    /// The daemon at this control path.
    ///
    /// # Errors
    ///
    /// The path cannot be one of a socket.
    pub fn new(socket: impl Into<PathBuf>) -> Result<Self, ControlPathError> {
        Ok(Self {
            socket: ControlPath::new(socket.into())?,
            data_dir: None,
            patience: Duration::from_secs(10),
            slow: false,
            commit: false,
            only: Vec::new(),
        })
    }

    /// The directory whose lock it holds.
    #[must_use]
    pub fn data_dir(mut self, data_dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(data_dir.into());
        self
    }

    /// How long it may take for what the protocol sets no bound to: a drain, a seal, a resume.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Runs the cases too that take half a minute.
    #[must_use]
    pub fn slow(mut self, slow: bool) -> Self {
        self.slow = slow;
        self
    }

    /// Ends with a commit, after which it has exited.
    #[must_use]
    pub fn commit(mut self, commit: bool) -> Self {
        self.commit = commit;
        self
    }

    /// Runs only the cases that prove this clause, or whose name holds these words; may be asked for
    /// several times.
    #[must_use]
    pub fn only(mut self, words: impl Into<String>) -> Self {
        self.only.push(words.into());
        self
    }

    /// What is probed, for the heading.
    #[must_use]
    pub fn target(&self) -> String {
        self.socket.as_path().display().to_string()
    }

    /// Runs all cases. `on` is told of each as it ends.
    pub fn probe(&self, mut on: impl FnMut(&Case)) -> Report {
        let before = |probe: &Self| {
            let quiet = Log::new();
            probe.serves(&quiet, None).err().map(|stop| match stop {
                Stop::Failed(why) | Stop::Skipped(why) => format!("there is no daemon: {why}"),
            })
        };
        let wanted = |check: &&Check<Self>| {
            let meant = |words: &String| {
                check.clauses.contains(&words.as_str()) || check.name.contains(words.as_str())
            };
            self.only.is_empty() || self.only.iter().any(meant)
        };
        run("incumbent", self.target(), CHECKS.iter().filter(wanted), self, before, &mut on)
    }

    /// What is allowed beyond the protocol's own durations, on a machine that has other things to do.
    fn slack(&self) -> Duration {
        super::slack(self.patience)
    }

    fn connect(&self, name: &str, log: &Log) -> Result<Conn, Stop> {
        let stream = self.socket.connect(self.patience).map_err(|error| {
            Stop::Failed(format!("nobody can be connected to at the control path: {error}"))
        })?;
        Ok(Conn::connected(name, stream, log)?)
    }

    fn greeted(&self, name: &str, log: &Log) -> Result<(Conn, Greeting), Stop> {
        let mut conn = self.connect(name, log)?;
        let greeting = conn.hello(Side::Incumbent, self.patience)?;
        Ok((conn, greeting))
    }

    /// Through the handshake.
    fn acked(&self, name: &str, log: &Log) -> Result<Session, Stop> {
        let (mut conn, greeting) = self.greeted(name, log)?;
        let id = HandoffId::new();
        conn.hello_ack(id);
        Ok(Session { conn, greeting, id, successor: None })
    }

    /// Through the drain.
    fn drained(&self, name: &str, log: &Log, deadline: Duration) -> Result<Session, Stop> {
        let mut session = self.acked(name, log)?;
        session.prepare(deadline)?;
        session.wait_drained(self.patience)?;
        Ok(session)
    }

    /// Through the seal: the lock is released.
    fn sealed(&self, name: &str, log: &Log, deadline: Duration) -> Result<Session, Stop> {
        let mut session = self.drained(name, log, deadline)?;
        session.seal(self.patience)?;
        Ok(session)
    }

    /// Waits until the daemon answers as the incumbent; how long that took. `pid` is who it has to be.
    fn serves(&self, log: &Log, pid: Option<u32>) -> Result<Duration, Stop> {
        self.serves_within(log, pid, self.patience)
    }

    fn serves_within(
        &self,
        log: &Log,
        pid: Option<u32>,
        limit: Duration,
    ) -> Result<Duration, Stop> {
        let start = Instant::now();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            // The lines of an attempt that came to nothing say nothing.
            let quiet = Log::new();
            let attempt = self.socket.connect(left).map_err(Stop::from).and_then(|stream| {
                let mut conn = Conn::connected("probe", stream, &quiet)?;
                let greeting = conn.hello(Side::Incumbent, left)?;
                conn.hello_ack(HandoffId::new());
                Ok(greeting.pid)
            });
            let last = match attempt {
                Ok(found) if pid.is_some_and(|pid| pid != found) => {
                    return fail(format!("process {found} serves, which is another one"));
                }
                Ok(found) => {
                    log.note(format_args!("probe answered by pid {found}"));
                    return Ok(start.elapsed());
                }
                Err(Stop::Failed(why) | Stop::Skipped(why)) => why,
            };
            if start.elapsed() >= limit {
                let limit = seconds(limit);
                return fail(format!("nobody serves within {limit}: {last}"));
            }
            std::thread::sleep(super::PAUSE);
        }
    }

    fn dir(&self) -> Result<&Path, Stop> {
        self.data_dir.as_deref().ok_or(Stop::Skipped("--data-dir was not given".into()))
    }

    /// Whether the lock is as it should be, where that can be seen.
    fn lock_is(&self, held: bool) -> Result<&'static str, Stop> {
        let Some(dir) = &self.data_dir else { return Ok("") };
        let limit = if held { self.patience } else { Duration::ZERO };
        let mut state = LockState::Unknown;
        let as_wanted = until(limit, || {
            state = lock_state(dir);
            match state {
                LockState::Held { .. } => held,
                LockState::Free => !held,
                LockState::Unknown => true,
            }
        });
        match (state, as_wanted) {
            (LockState::Unknown, _) => Ok(", who holds the lock cannot be seen"),
            (_, true) if held => Ok(", it holds the lock"),
            (_, true) => Ok(", the lock is free"),
            (state, false) => fail(format!("the lock of the data directory is {state:?}")),
        }
    }
}

/// A connection behind its handshake.
struct Session {
    conn: Conn,
    greeting: Greeting,
    id: HandoffId,
    /// Who takes over, as the daemon was told.
    successor: Option<Dummy>,
}

impl Session {
    fn has_x2(&self) -> bool {
        self.greeting.capabilities.has(Capabilities::STEADY_HEARTBEAT)
    }

    fn prepare(&mut self, deadline: Duration) -> Result<(), Stop> {
        let successor = Dummy::start().map_err(|error| {
            Stop::Skipped(format!("no process to stand for a successor, `sleep`: {error}"))
        })?;
        let message = self.prepare_message(self.id, successor.pid(), deadline);
        self.conn.send(&message);
        self.successor = Some(successor);
        Ok(())
    }

    fn prepare_message(&self, handoff_id: HandoffId, pid: u32, deadline: Duration) -> Message {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Message::PrepareHandoff {
            handoff_id,
            successor_pid: pid,
            deadline_ms: millis(deadline),
            drain_grace_ms: millis(deadline.min(Duration::from_secs(10))),
        }
    }

    fn wait_drained(&mut self, limit: Duration) -> Result<(), Stop> {
        self.conn.wait("Drained", limit, |message| {
            matches!(message, Message::Drained { .. }).then_some(())
        })
    }

    fn seal(&mut self, limit: Duration) -> Result<(), Stop> {
        let id = self.id;
        self.conn.send(&Message::SealRequest { handoff_id: id });
        let sealed = self.conn.wait("SealComplete", limit, |message| match message {
            Message::SealComplete { handoff_id, .. } if *handoff_id == id => Some(Ok(())),
            Message::SealComplete { .. } | Message::SealFailed { .. } => {
                Some(Err(super::conn::describe(message)))
            }
            _ => None,
        })?;
        sealed.or_else(|said| fail(format!("it answered SealRequest with {said}")))
    }

    fn resume(&mut self) {
        self.conn.send(&Message::ResumeAfterAbort { handoff_id: self.id });
    }

    fn abort(&mut self) {
        let reason = "the probe takes it back".into();
        self.conn.send(&Message::Abort { handoff_id: self.id, reason });
    }
}

/// Sends what is no frame, and expects the end of that connection, and of nothing else.
fn garbage(
    probe: &Incumbent,
    log: &Log,
    handshake: bool,
    what: &str,
    bytes: &[u8],
) -> Result<Duration, Stop> {
    let (mut conn, pid) = if handshake {
        let session = probe.acked("1", log)?;
        (session.conn, session.greeting.pid)
    } else {
        let (conn, greeting) = probe.greeted("1", log)?;
        (conn, greeting.pid)
    };
    conn.send_bytes(bytes, what);
    let said = |stop| match stop {
        Stop::Failed(seen) => Stop::Failed(format!("{what}: {seen}")),
        skipped => skipped,
    };
    let took = conn.closes(closing(probe, handshake), |_| false).map_err(said)?;
    probe.serves(log, Some(pid)).map_err(said)?;
    Ok(took)
}

/// How soon a violation has to close a connection: before time alone would (C5).
fn closing(probe: &Incumbent, handshake: bool) -> Duration {
    let before = if handshake { IDLE } else { HELLO_ACK };
    probe.patience.min(before.saturating_sub(Duration::from_secs(1)))
}

/// The same for several.
fn each_closes(probe: &Incumbent, log: &Log, handshake: bool, all: &[(&str, &[u8])]) -> Seen {
    let mut longest = Duration::ZERO;
    for (what, bytes) in all {
        longest = longest.max(garbage(probe, log, handshake, what, bytes)?);
    }
    Ok(format!("closed, at the latest after {}; the daemon serves", seconds(longest)))
}

const HEARTBEAT: Message = Message::Heartbeat { ts_ms: 7 };

/// Sends what must come to nothing, and a Heartbeat behind it: whether the peer closed the connection,
/// if it did not say what is forbidden.
fn comes_to_nothing(
    probe: &Incumbent,
    conn: &mut Conn,
    message: &Message,
    forbidden: impl Fn(&Message) -> bool,
) -> Seen {
    conn.send(message);
    conn.send(&HEARTBEAT);
    let (start, limit) = (Instant::now(), closing(probe, true));
    while start.elapsed() <= limit {
        match conn.next(limit.saturating_sub(start.elapsed()))? {
            Next::Frame(frame) if forbidden(&frame.message) => {
                return fail(format!("it said {} once more", short_name(&frame.message)));
            }
            Next::Frame(frame) if frame.message == HEARTBEAT => break,
            Next::Frame(_) => {}
            Next::Closed => return Ok("closed; the daemon serves".into()),
            Next::Silent => break,
        }
    }
    Ok("nothing came of it; the daemon serves".into())
}

/// A number of bytes in the status of a process.
fn memory(pid: u32) -> Result<u64, Stop> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|error| {
        Stop::Skipped(format!("its memory cannot be looked at: {path}: {error}"))
    })?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.map(|kib| kib * 1024).ok_or(Stop::Skipped(format!("{path} has no VmRSS")))
}

//! An incumbent, as a supervisor meets it: on its control path.

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

fn says_hello(probe: &Incumbent, log: &Log) -> Seen {
    let (conn, hello) = probe.greeted("1", log)?;
    let Some(cred) = conn.cred() else {
        return skip("the kernel does not say who listens");
    };
    if cred.pid != 0 && cred.pid != hello.pid {
        let (pid, said) = (cred.pid, hello.pid);
        return fail(format!("Hello says pid {said}, the kernel says {pid}"));
    }
    let own = rustix::process::geteuid().as_raw();
    if cred.uid != own && cred.uid != 0 && own != 0 {
        return fail(format!("it runs as user {}, not as user {own}", cred.uid));
    }
    if hello.frame_version != hello.proto.1 {
        return fail(format!(
            "Hello is in a frame of version {}, and its highest version is {}",
            hello.frame_version, hello.proto.1
        ));
    }
    let build: String = String::from_utf8_lossy(&hello.build_id).escape_debug().take(40).collect();
    Ok(format!("Hello of pid {}, user {}, build \"{build}\"", hello.pid, cred.uid))
}

fn offers_a_range(probe: &Incumbent, log: &Log) -> Seen {
    let (_conn, hello) = probe.greeted("1", log)?;
    let (min, max) = hello.proto;
    match negotiate_version(PROTO_MIN, PROTO_MAX, min, max) {
        Ok(chosen) => Ok(format!("versions {min} to {max}; {chosen} is chosen")),
        Err(error) => fail(error.to_string()),
    }
}

fn socket_mode(probe: &Incumbent, log: &Log) -> Seen {
    let (_conn, hello) = probe.greeted("1", log)?;
    let found = std::fs::symlink_metadata(probe.socket.as_path())?;
    let mode = found.mode() & 0o777;
    if !found.file_type().is_socket() {
        return fail("the control path is no socket itself");
    }
    if mode != 0o600 {
        return fail(format!("mode {mode:04o} of pid {}'s socket", hello.pid));
    }
    Ok("mode 0600".into())
}

fn holds_the_lock(probe: &Incumbent, log: &Log) -> Seen {
    let dir = probe.dir()?;
    let (_conn, hello) = probe.greeted("1", log)?;
    match lock_state(dir) {
        LockState::Held { pid: Some(pid) } if pid != hello.pid => {
            // A process may hold it through another, which it shares the descriptor with.
            fail(format!("process {pid} holds it, and {} answers", hello.pid))
        }
        LockState::Held { .. } => Ok(format!("it is held, process {} answers", hello.pid)),
        LockState::Free => fail("nobody holds it"),
        LockState::Unknown => skip("who holds it cannot be seen"),
    }
}

fn probes_leave_nothing(probe: &Incumbent, log: &Log) -> Seen {
    let (conn, hello) = probe.greeted("1", log)?;
    conn.close();
    let descriptors = || Some(std::fs::read_dir(format!("/proc/{}/fd", hello.pid)).ok()?.count());
    probe.serves(log, Some(hello.pid))?;
    let before = descriptors();
    let mut times = Vec::new();
    for _ in 0..20 {
        times.push(probe.serves(log, Some(hello.pid))?);
    }
    times.sort();
    if times[10] > Duration::from_secs(1) {
        return fail(format!("half of them took longer than {}", seconds(times[10])));
    }
    let longest = seconds(times[19]);
    let Some(before) = before else {
        return Ok(format!("20 answers, the slowest in {longest}"));
    };
    let mut now = before;
    if !until(probe.patience, || {
        now = descriptors().unwrap_or(0);
        now <= before
    }) {
        return fail(format!("it had {before} descriptors before and has {now} now"));
    }
    Ok(format!("20 answers, the slowest in {longest}; it has {now} descriptors, as before"))
}

fn closed_at_once(probe: &Incumbent, log: &Log) -> Seen {
    let (conn, hello) = probe.greeted("1", log)?;
    conn.close();
    for _ in 0..20 {
        drop(probe.socket.connect(probe.patience)?);
    }
    log.note("20 connections made and closed");
    let took = probe.serves(log, Some(hello.pid))?;
    Ok(format!("it answers in {}", seconds(took)))
}

fn too_short(probe: &Incumbent, log: &Log) -> Seen {
    each_closes(
        probe,
        log,
        false,
        &[("a frame of length 0", &0_u32.to_le_bytes()), ("a frame of length 1", &[1, 0, 0, 0, 1])],
    )
}

fn too_long_before(probe: &Incumbent, log: &Log) -> Seen {
    each_closes(
        probe,
        log,
        false,
        &[
            ("the length 4097", &(HANDSHAKE_CAP + 1).to_le_bytes()),
            ("the length 4294967295", &u32::MAX.to_le_bytes()),
        ],
    )
}

fn too_long_after(probe: &Incumbent, log: &Log) -> Seen {
    let length = (FRAME_CAP + 1).to_le_bytes();
    each_closes(probe, log, true, &[("the length 1048577", &length)])
}

fn no_message(probe: &Incumbent, log: &Log) -> Seen {
    each_closes(
        probe,
        log,
        true,
        &[
            ("variant 14, which there is not", &raw(PROTO_MAX, &[14])),
            ("a Heartbeat without its field", &raw(PROTO_MAX, &[13])),
            ("a frame without a message", &raw(PROTO_MAX, &[])),
        ],
    )
}

fn leftovers(probe: &Incumbent, log: &Log) -> Seen {
    each_closes(probe, log, true, &[("a Heartbeat and a byte more", &raw(PROTO_MAX, &[13, 7, 0]))])
}

fn another_frame_version(probe: &Incumbent, log: &Log) -> Seen {
    let bytes = frame(&HEARTBEAT, PROTO_MAX + 1);
    each_closes(probe, log, true, &[("a Heartbeat in a frame of version 2", &bytes)])
}

fn another_chosen_version(probe: &Incumbent, log: &Log) -> Seen {
    let (_conn, hello) = probe.greeted("0", log)?;
    let Some(chosen) = hello.proto.1.checked_add(1) else {
        return skip("it offers every version");
    };
    drop(_conn);
    let ack = Message::HelloAck { proto_version_chosen: chosen, handoff_id: HandoffId::new() };
    let what = "HelloAck of a version that was not offered";
    each_closes(probe, log, false, &[(what, &frame(&ack, chosen))])
}

fn wrong_message(probe: &Incumbent, log: &Log) -> Seen {
    let begin = Message::Begin { handoff_id: HandoffId::new() };
    let what = "Begin instead of HelloAck";
    each_closes(probe, log, false, &[(what, &frame(&begin, PROTO_MAX))])?;
    let drained = Message::Drained { open_conns_remaining: 0, accept_closed: true };
    let what = "Drained, which only a daemon says";
    each_closes(probe, log, true, &[(what, &frame(&drained, PROTO_MAX))])
}

fn lengths_cost_nothing(probe: &Incumbent, log: &Log) -> Seen {
    const MANY: usize = 16;
    let (conn, hello) = probe.greeted("0", log)?;
    conn.close();
    probe.serves(log, Some(hello.pid))?;
    let before = memory(hello.pid)?;
    let mut held: Vec<Conn> = Vec::new();
    for number in 1..=MANY {
        let mut conn = probe.connect(&number.to_string(), log)?;
        // A daemon that serves one connection at a time does not say more than one Hello.
        if held.is_empty() {
            conn.hello(Side::Incumbent, probe.patience)?;
        } else if conn.hello(Side::Incumbent, HELLO_ACK.min(probe.patience)).is_err() {
            break;
        }
        conn.hello_ack(HandoffId::new());
        let start = [&FRAME_CAP.to_le_bytes()[..], &PROTO_MAX.to_le_bytes(), &[13]].concat();
        conn.send_bytes(&start, "a frame of 1 MiB is announced, its first 3 bytes follow");
        held.push(conn);
    }
    for number in 0..50 {
        let mut conn = probe.connect(&format!("u{number}"), &Log::new())?;
        conn.drip(&u32::MAX.to_le_bytes());
    }
    log.note("50 connections announced 4 GiB");
    let count = held.len() as u64;
    if count < 4 {
        drop(held);
        probe.serves(log, Some(hello.pid))?;
        return skip(format!("it answers on {count} at a time, too few to measure"));
    }
    // They have been read once the one behind them is answered.
    probe.serves(log, Some(hello.pid))?;
    let grown = memory(hello.pid)?.saturating_sub(before);
    drop(held);
    probe.serves(log, Some(hello.pid))?;
    let (announced, kib) = (count * u64::from(FRAME_CAP), grown / 1024);
    if grown > announced / 2 {
        return fail(format!("its memory grew by {kib} KiB for {count} announced MiB"));
    }
    Ok(format!("its memory grew by {kib} KiB for {count} announced MiB"))
}

/// Bytes one at a time.
fn drip(conn: &mut Conn, bytes: &[u8], pause: Duration) -> bool {
    bytes.iter().all(|byte| {
        std::thread::sleep(pause);
        conn.drip(&[*byte])
    })
}

fn byte_by_byte(probe: &Incumbent, log: &Log) -> Seen {
    let (mut conn, hello) = probe.greeted("1", log)?;
    let exact = hello.capabilities.has(Capabilities::STEADY_HEARTBEAT);
    let ack = Message::HelloAck { proto_version_chosen: PROTO_MAX, handoff_id: HandoffId::new() };
    log.note("1 -> HelloAck and Heartbeat, one byte at a time");
    let pause = Duration::from_millis(10);
    let taken = drip(&mut conn, &frame(&ack, PROTO_MAX), pause)
        && drip(&mut conn, &frame(&HEARTBEAT, PROTO_MAX), pause);
    conn.handshake_done(PROTO_MAX);
    if !taken {
        return fail("it closed the connection");
    }
    conn.wait("answer to a Heartbeat", probe.patience, |message| {
        let answer = *message == HEARTBEAT || !exact;
        (answer && matches!(message, Message::Heartbeat { .. })).then_some(())
    })?;
    Ok("the Heartbeat was answered".into())
}

fn strangers_wait(probe: &Incumbent, log: &Log) -> Seen {
    let (conn, hello) = probe.greeted("0", log)?;
    conn.close();
    probe.serves(log, Some(hello.pid))?;
    let mut strangers = Vec::new();
    for name in ["1", "2", "3", "4"] {
        strangers.push(probe.connect(name, log)?);
    }
    log.note("4 strangers are connected and say nothing");
    let limit = HELD_UP.min(probe.patience);
    match probe.serves_within(log, Some(hello.pid), limit) {
        Ok(took) => Ok(format!("another connection got its Hello after {}", seconds(took))),
        Err(_) => fail(format!("another connection got no Hello in {}", seconds(limit))),
    }
}

fn crowd(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.drained("S", log, LONG)?;
    let mut strangers = Vec::new();
    for number in 0..100 {
        let stream = probe.socket.connect(Duration::from_millis(200));
        let Ok(stream) = stream else { break };
        strangers.push(Conn::connected(&number.to_string(), stream, &Log::new())?);
    }
    log.note(format_args!("{} strangers are connected and say nothing", strangers.len()));
    let exact = session.has_x2();
    session.conn.ask(4711, exact, probe.patience)?;
    session.resume();
    session.conn.ask(4712, exact, probe.patience)?;
    let count = strangers.len();
    drop(strangers);
    session.conn.close();
    probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("with {count} strangers the supervisor was answered, and the daemon serves"))
}

fn overdue_ack(probe: &Incumbent, log: &Log) -> Seen {
    let (mut conn, _) = probe.greeted("1", log)?;
    let took = conn.closes(HELLO_ACK + probe.slack(), |_| false)?;
    if took + Duration::from_secs(1) < HELLO_ACK {
        return fail(format!("closed after {} already", seconds(took)));
    }
    Ok(format!("closed after {}", seconds(took)))
}

fn dripped_ack(probe: &Incumbent, log: &Log) -> Seen {
    let (mut conn, _) = probe.greeted("1", log)?;
    let ack = Message::HelloAck { proto_version_chosen: PROTO_MAX, handoff_id: HandoffId::new() };
    log.note("1 -> HelloAck, one byte each half second");
    let start = Instant::now();
    for byte in frame(&ack, PROTO_MAX) {
        if start.elapsed() > HELLO_ACK + probe.slack() {
            break;
        }
        match conn.next(Duration::from_millis(500))? {
            Next::Closed => return Ok(format!("closed after {}", seconds(start.elapsed()))),
            Next::Frame(_) | Next::Silent => drop(conn.drip(&[byte])),
        }
    }
    fail(format!("the connection is open after {}", seconds(start.elapsed())))
}

fn idle(probe: &Incumbent, log: &Log) -> Seen {
    if !probe.slow {
        return skip("it takes half a minute; ask for it with --slow");
    }
    let mut session = probe.acked("1", log)?;
    let took = session.conn.closes(IDLE + probe.slack(), |_| false)?;
    Ok(format!("closed after {}", seconds(took)))
}

fn beats(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    if !session.has_x2() {
        return skip("its Hello does not announce steady heartbeats (X2)");
    }
    let start = Instant::now();
    let limit = Duration::from_secs(3) + probe.slack();
    for count in 1..=3 {
        let left = limit.saturating_sub(start.elapsed());
        session.conn.wait(&format!("Heartbeat number {count}"), left, |message| {
            matches!(message, Message::Heartbeat { .. }).then_some(())
        })?;
    }
    let took = start.elapsed();
    if took < Duration::from_secs(2) {
        return fail(format!("3 Heartbeats in {}", seconds(took)));
    }
    Ok(format!("3 Heartbeats in {}", seconds(took)))
}

fn answers(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    let exact = session.has_x2();
    for ts_ms in [0, 1, u64::MAX, 1 << 40] {
        session.conn.ask(ts_ms, exact, probe.patience)?;
    }
    let how = if exact { ", each with its own time stamp (X2)" } else { "" };
    Ok(format!("4 answers{how}"))
}

fn answers_once(probe: &Incumbent, log: &Log) -> Seen {
    const STAMP: u64 = 0x5eed_5eed;
    let mut session = probe.acked("1", log)?;
    session.conn.send(&Message::Heartbeat { ts_ms: STAMP });
    let first = session.conn.wait("answer to a Heartbeat", probe.patience, |message| {
        (*message == Message::Heartbeat { ts_ms: STAMP }).then_some(())
    });
    if first.is_err() && !session.has_x2() {
        return skip("its answers do not repeat the time stamp, and X2 is not announced");
    }
    first?;
    // Another question and its answer behind it: what was to come has come by then.
    session.conn.send(&Message::Heartbeat { ts_ms: STAMP + 1 });
    let mut again = 0;
    session.conn.wait("answer to a second Heartbeat", probe.patience, |message| match message {
        Message::Heartbeat { ts_ms } if *ts_ms == STAMP => {
            again += 1;
            None
        }
        Message::Heartbeat { ts_ms } if *ts_ms == STAMP + 1 => Some(()),
        _ => None,
    })?;
    if again > 0 {
        return fail(format!("{} answers to one Heartbeat", again + 1));
    }
    Ok("one answer".into())
}

fn wrong_id(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    let dummy = Dummy::start()?;
    let message = session.prepare_message(HandoffId::new(), dummy.pid(), LONG);
    session.conn.send(&message);
    let seen = session
        .conn
        .closes(closing(probe, true), |message| matches!(message, Message::Drained { .. }));
    drop(session.conn);
    probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("closed after {}; the daemon serves", seconds(seen?)))
}

fn busy(probe: &Incumbent, log: &Log) -> Seen {
    let mut first = probe.acked("1", log)?;
    let mut second = match probe.acked("2", log) {
        Ok(second) => second,
        Err(Stop::Failed(why)) => return fail(format!("on a second connection: {why}")),
        Err(skipped) => return Err(skipped),
    };
    first.prepare(LONG)?;
    first.wait_drained(probe.patience)?;
    second.prepare(LONG)?;
    second
        .conn
        .closes(closing(probe, true), |message| matches!(message, Message::Drained { .. }))?;
    let exact = first.has_x2();
    first.conn.ask(1, exact, probe.patience)?;
    first.resume();
    first.conn.ask(2, exact, probe.patience)?;
    drop(first.conn);
    probe.serves(log, Some(first.greeting.pid))?;
    Ok("the second was closed, the first went on".into())
}

fn prepared_twice(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.drained("1", log, LONG)?;
    let pid = session.successor.as_ref().map_or(0, Dummy::pid);
    let message = session.prepare_message(session.id, pid, LONG);
    let seen = comes_to_nothing(probe, &mut session.conn, &message, |message| {
        matches!(message, Message::Drained { .. })
    });
    drop(session.conn);
    probe.serves(log, Some(session.greeting.pid))?;
    seen
}

fn drain_then_abort(probe: &Incumbent, log: &Log) -> Seen {
    for name in ["1", "2"] {
        let mut session = probe.drained(name, log, LONG)?;
        session.abort();
        if session.has_x2() {
            session.conn.ask(1, true, probe.patience)?;
        }
        drop(session.conn);
        probe.serves(log, Some(session.greeting.pid))?;
    }
    Ok("it serves, after each of two handoffs".into())
}

fn drain_then_resume(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.drained("1", log, LONG)?;
    let exact = session.has_x2();
    session.resume();
    session.conn.ask(4711, exact, probe.patience)?;
    // The connection is kept, so this is not what a close would have brought about.
    let took = match probe.serves(log, Some(session.greeting.pid)) {
        Err(_) if !exact => {
            session.conn.close();
            probe.serves(log, Some(session.greeting.pid))?
        }
        other => other?,
    };
    Ok(format!("a Heartbeat was answered, and a probe {} later", seconds(took)))
}

fn drain_then_close(probe: &Incumbent, log: &Log) -> Seen {
    let session = probe.drained("1", log, LONG)?;
    session.conn.close();
    let took = probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("it serves after {}{}", seconds(took), probe.lock_is(true)?))
}

fn drain_then_deadline(probe: &Incumbent, log: &Log) -> Seen {
    let session = probe.drained("1", log, SHORT)?;
    let took = probe.serves_within(log, Some(session.greeting.pid), SHORT + probe.slack())?;
    Ok(format!("it serves {} after Drained, on a connection that is open", seconds(took)))
}

fn seal_then_close(probe: &Incumbent, log: &Log) -> Seen {
    let session = probe.sealed("1", log, LONG)?;
    let free = probe.lock_is(false)?;
    session.conn.close();
    let took = probe.serves(log, Some(session.greeting.pid))?;
    let held = probe.lock_is(true)?;
    Ok(format!("sealed{free}; it serves after {}{held}", seconds(took)))
}

fn seal_then_resume(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.sealed("1", log, LONG)?;
    let exact = session.has_x2();
    session.resume();
    session.conn.ask(4711, exact, probe.patience)?;
    let held = if exact { probe.lock_is(true)? } else { "" };
    drop(session.conn);
    probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("the answer to a Heartbeat came{held}; it serves"))
}

fn seal_then_abort(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.sealed("1", log, LONG)?;
    session.abort();
    drop(session.conn);
    let took = probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("it serves after {}{}", seconds(took), probe.lock_is(true)?))
}

fn seal_then_deadline(probe: &Incumbent, log: &Log) -> Seen {
    let session = probe.sealed("1", log, SHORT)?;
    let took = probe.serves_within(log, Some(session.greeting.pid), SHORT + probe.slack())?;
    let held = probe.lock_is(true)?;
    Ok(format!("it serves {} after SealComplete{held}", seconds(took)))
}

fn dripped_deadline(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.sealed("1", log, SHORT)?;
    let long = Message::Abort { handoff_id: session.id, reason: "x".repeat(2000) };
    log.note("1 -> a long frame, one byte each tenth of a second");
    let (start, limit) = (Instant::now(), SHORT + probe.slack());
    let pid = session.greeting.pid;
    for byte in frame(&long, PROTO_MAX) {
        let taken = drip(&mut session.conn, &[byte], Duration::from_millis(100));
        let early = start.elapsed() < SHORT;
        if early && taken {
            continue;
        }
        let look = Duration::from_millis(200);
        if probe.serves_within(log, Some(pid), look).is_ok() {
            let took = seconds(start.elapsed());
            return Ok(format!("it serves {took} after SealComplete, bytes dripping"));
        }
        if start.elapsed() > limit {
            break;
        }
    }
    session.conn.close();
    probe.serves(log, Some(pid))?;
    fail(format!("it did not serve {} after SealComplete", seconds(limit)))
}

fn silent_supervisor(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    session.conn.ask(1, session.has_x2(), probe.patience)?;
    session.prepare(LONG)?;
    session.wait_drained(probe.patience)?;
    session.seal(probe.patience)?;
    let took = match probe.serves_within(log, Some(session.greeting.pid), SILENCE + probe.slack()) {
        Ok(took) => took,
        Err(_) => {
            session.conn.close();
            probe.serves(log, Some(session.greeting.pid))?;
            let limit = seconds(SILENCE + probe.slack());
            return fail(format!("it did not serve {limit} after the last byte"));
        }
    };
    Ok(format!("it serves {} after the last byte, long before its deadline", seconds(took)))
}

fn sealed_twice(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.sealed("1", log, LONG)?;
    let again = Message::SealRequest { handoff_id: session.id };
    let seen = comes_to_nothing(probe, &mut session.conn, &again, |message| {
        matches!(message, Message::SealComplete { .. } | Message::SealFailed { .. })
    });
    drop(session.conn);
    probe.serves(log, Some(session.greeting.pid))?;
    seen
}

/// Between Prepare and resume nobody is told that this is the incumbent.
fn settles_first(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.drained("1", log, LONG)?;
    let mut asking = probe.connect("2", log)?;
    if !matches!(asking.next(Duration::from_secs(1))?, Next::Silent) {
        return fail("Hello, or the end of the connection, while it serves nobody");
    }
    session.resume();
    session.conn.ask(1, session.has_x2(), probe.patience)?;
    if !session.has_x2() {
        // It may serve one connection at a time.
        session.conn.close();
    }
    let hello = asking.hello(Side::Incumbent, probe.patience)?;
    if hello.pid != session.greeting.pid {
        return fail(format!("process {} says Hello", hello.pid));
    }
    drop(asking);
    probe.serves(log, Some(hello.pid))?;
    Ok("no Hello until it was told to resume, then on the same connection".into())
}

fn seal_unasked(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    session.conn.send(&Message::SealRequest { handoff_id: session.id });
    let seen = session
        .conn
        .closes(closing(probe, true), |message| matches!(message, Message::SealComplete { .. }));
    drop(session.conn);
    let held = probe.lock_is(true)?;
    probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("closed after {}; the daemon serves{held}", seconds(seen?)))
}

fn commit_unasked(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    session.conn.send(&Message::Commit { handoff_id: session.id });
    session.conn.closes(closing(probe, true), |_| false)?;
    probe.serves(log, Some(session.greeting.pid))?;
    let mut session = probe.drained("2", log, LONG)?;
    session.conn.send(&Message::Commit { handoff_id: session.id });
    session.conn.closes(closing(probe, true), |_| false)?;
    probe.serves(log, Some(session.greeting.pid))?;
    Ok("closed, each time; the daemon serves".into())
}

/// Takes the lock as a successor would.
fn take(probe: &Incumbent, dir: &Path) -> Result<DataDirLock, Stop> {
    let mut taken = None;
    let mut error = String::new();
    until(probe.patience, || match DataDirLock::try_take(dir) {
        Ok(lock) => {
            taken = Some(lock);
            true
        }
        Err(why) => {
            error = why.to_string();
            false
        }
    });
    taken.ok_or(Stop::Failed(format!("after SealComplete: {error}")))
}

fn never_gives_up(probe: &Incumbent, log: &Log) -> Seen {
    let held = Duration::from_secs(4);
    let dir = probe.dir()?;
    let session = probe.sealed("1", log, LONG)?;
    let lock = take(probe, dir)?;
    log.note("-- the probe holds the lock, as a successor would");
    session.conn.close();
    if probe.serves_within(log, None, held).is_ok() {
        return fail("it answered as the incumbent, without the lock");
    }
    lock.release()?;
    log.note("-- the probe has released the lock");
    let took = probe.serves(log, Some(session.greeting.pid))?;
    let now = probe.lock_is(true)?;
    Ok(format!("it serves {} after the lock was free{now}", seconds(took)))
}

fn commits(probe: &Incumbent, log: &Log) -> Seen {
    if !probe.commit {
        return skip("it ends the daemon; ask for it with --commit");
    }
    let dir = probe.dir()?;
    let mut session = probe.sealed("1", log, LONG)?;
    let lock = take(probe, dir)?;
    log.note("-- the probe holds the lock, as a successor would");
    session.conn.send(&Message::Commit { handoff_id: session.id });
    let closed = session.conn.closes(probe.patience, |_| false);
    let alive = || {
        // A zombie has exited, whatever its parent does.
        std::fs::read_to_string(format!("/proc/{}/stat", session.greeting.pid))
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
    };
    let gone = until(probe.patience, || !alive());
    lock.release()?;
    closed?;
    if !gone {
        return fail(format!("it is there {} after Commit", seconds(probe.patience)));
    }
    Ok("it closed the connection and exited".into())
}

pub(super) const CHECKS: &[Check<Incumbent>] = &[
    Check {
        name: "it says Hello first, and is who it says",
        clauses: &["C1", "W3", "W5", "R12"],
        sent: "nothing",
        expected: "Hello as Incumbent within the handshake's 4 KiB, with the pid that the kernel \
                   names, in a frame of its highest version",
        run: says_hello,
    },
    Check {
        name: "it offers a range of versions that can be met",
        clauses: &["W4"],
        sent: "nothing",
        expected: "a range in its Hello that version 1 is in",
        run: offers_a_range,
    },
    Check {
        name: "its control socket is its own only",
        clauses: &["R11"],
        sent: "nothing",
        expected: "a socket of mode 0600 at the control path",
        run: socket_mode,
    },
    Check {
        name: "it holds the lock of its data directory",
        clauses: &["R1"],
        sent: "nothing",
        expected: "an exclusive flock on .handoff.lock or its directory",
        run: holds_the_lock,
    },
    Check {
        name: "a probe is answered and leaves nothing",
        clauses: &["C6"],
        sent: "20 times, one after the other: connect, HelloAck to its Hello, close",
        expected: "Hello within 1 s, no descriptor more afterwards",
        run: probes_leave_nothing,
    },
    Check {
        name: "connections that are closed at once do nothing",
        clauses: &["C6", "W7"],
        sent: "20 connections that are closed before Hello is read",
        expected: "the daemon answers the next one",
        run: closed_at_once,
    },
    Check {
        name: "a length below 2 closes the connection",
        clauses: &["W2", "W7"],
        sent: "instead of HelloAck a frame of length 0; another time of length 1",
        expected: "this connection closed, the daemon serving",
        run: too_short,
    },
    Check {
        name: "a length over 4 KiB before the handshake closes it",
        clauses: &["W2", "W7"],
        sent: "instead of HelloAck the length 4097, and no more; another time 4294967295",
        expected: "this connection closed without more bytes, the daemon serving",
        run: too_long_before,
    },
    Check {
        name: "a length over 1 MiB closes it",
        clauses: &["W2", "W7"],
        sent: "HelloAck, then the length 1048577, and no more",
        expected: "this connection closed without more bytes, the daemon serving",
        run: too_long_after,
    },
    Check {
        name: "what is no message closes it",
        clauses: &["W3", "W7"],
        sent: "HelloAck, then a variant that there is not; a message cut short; none at all",
        expected: "this connection closed, the daemon serving",
        run: no_message,
    },
    Check {
        name: "bytes behind a message close it",
        clauses: &["W6", "W7"],
        sent: "HelloAck, then a Heartbeat with one byte more in its frame",
        expected: "this connection closed, the daemon serving",
        run: leftovers,
    },
    Check {
        name: "another version than the chosen one closes it",
        clauses: &["W5", "W7"],
        sent: "HelloAck of version 1, then a Heartbeat in a frame of version 2",
        expected: "this connection closed, the daemon serving",
        run: another_frame_version,
    },
    Check {
        name: "a chosen version that was not offered closes it",
        clauses: &["W4", "W5", "W7"],
        sent: "HelloAck with the version above its highest one",
        expected: "this connection closed, the daemon serving",
        run: another_chosen_version,
    },
    Check {
        name: "a message out of turn closes it",
        clauses: &["W7", "C1"],
        sent: "Begin instead of HelloAck; another time HelloAck, then Drained",
        expected: "this connection closed, the daemon serving",
        run: wrong_message,
    },
    Check {
        name: "an announced length costs no memory",
        clauses: &["W2"],
        sent: "on 16 open connections the length 1 MiB and 3 bytes; on 50 more the length 4 GiB",
        expected: "memory that grows by less than half of what was announced on the 16",
        run: lengths_cost_nothing,
    },
    Check {
        name: "frames may come in single bytes",
        clauses: &["W2"],
        sent: "HelloAck and a Heartbeat, one byte at a time",
        expected: "the answer to the Heartbeat",
        run: byte_by_byte,
    },
    Check {
        name: "silent strangers delay nobody",
        clauses: &["C5"],
        sent: "nothing, on four connections that stay open; then a fifth",
        expected: "Hello on the fifth",
        run: strangers_wait,
    },
    Check {
        name: "no HelloAck: closed after 5 s",
        clauses: &["C5"],
        sent: "nothing after its Hello",
        expected: "the connection closed after 5 s",
        run: overdue_ack,
    },
    Check {
        name: "a HelloAck that drips in: closed after 5 s",
        clauses: &["C5", "T5"],
        sent: "HelloAck, one byte each half second",
        expected: "the connection closed after 5 s",
        run: dripped_ack,
    },
    Check {
        name: "neither heartbeat nor Prepare: closed after 30 s",
        clauses: &["C5"],
        sent: "HelloAck, then nothing",
        expected: "the connection closed after 30 s",
        run: idle,
    },
    Check {
        name: "it heartbeats every second",
        clauses: &["T1", "X2"],
        sent: "HelloAck",
        expected: "3 Heartbeats in about 3 s",
        run: beats,
    },
    Check {
        name: "it answers heartbeats",
        clauses: &["T3"],
        sent: "HelloAck, then 4 Heartbeats, each after the answer to the one before",
        expected: "an answer to each, with its own time stamp where X2 is announced",
        run: answers,
    },
    Check {
        name: "it answers a heartbeat once, with its time stamp",
        clauses: &["T3", "X2"],
        sent: "HelloAck and two Heartbeats",
        expected: "one answer to the first, before that to the second",
        run: answers_once,
    },
    Check {
        name: "Prepare must carry the id of HelloAck",
        clauses: &["C1", "W7"],
        sent: "HelloAck, then PrepareHandoff with another id",
        expected: "this connection closed, no Drained, the daemon serving",
        run: wrong_id,
    },
    Check {
        name: "drained and aborted, it serves, and again",
        clauses: &["C2", "R7", "I6"],
        sent: "Prepare, after Drained Abort; then all of it once more",
        expected: "the same process answering as the incumbent, both times",
        run: drain_then_abort,
    },
    Check {
        name: "drained and told to resume, it serves",
        clauses: &["C2", "R4", "R7"],
        sent: "Prepare, after Drained ResumeAfterAbort and a Heartbeat",
        expected: "the answer to the Heartbeat, and the same process answering a probe",
        run: drain_then_resume,
    },
    Check {
        name: "drained and left alone, it serves",
        clauses: &["R7"],
        sent: "Prepare, after Drained the end of the connection",
        expected: "the same process answering as the incumbent",
        run: drain_then_close,
    },
    Check {
        name: "drained and its deadline over, it serves",
        clauses: &["R7", "T5"],
        sent: "Prepare with a deadline of 2 s, after Drained nothing",
        expected: "the same process answering as the incumbent, the connection still open",
        run: drain_then_deadline,
    },
    Check {
        name: "drained, it does not say that it serves",
        clauses: &["C6"],
        sent: "Prepare, after Drained another connection, then ResumeAfterAbort and a Heartbeat",
        expected: "no Hello on the other connection until it has resumed, and then Hello",
        run: settles_first,
    },
    Check {
        name: "several connections, one handoff at a time",
        clauses: &["C5"],
        sent: "HelloAck on two connections, Prepare on the first, then on the second",
        expected: "the second closed, the first answered and resumed",
        run: busy,
    },
    Check {
        name: "it drains once for a handoff",
        clauses: &["R7"],
        sent: "Prepare, after Drained the same Prepare again",
        expected: "no second Drained, the daemon serving afterwards",
        run: prepared_twice,
    },
    Check {
        name: "sealed and left alone, it takes the lock back",
        clauses: &["C2", "R2", "R8"],
        sent: "Prepare, SealRequest, after SealComplete the end of the connection",
        expected: "the lock free at SealComplete, then held again, the same process serving",
        run: seal_then_close,
    },
    Check {
        name: "sealed and told to resume, it takes the lock back",
        clauses: &["R2", "R4"],
        sent: "Prepare, SealRequest, after SealComplete ResumeAfterAbort and a Heartbeat",
        expected: "the answer to the Heartbeat, not before it holds the lock where X2 is announced",
        run: seal_then_resume,
    },
    Check {
        name: "sealed and aborted, it takes the lock back",
        clauses: &["R2"],
        sent: "Prepare, SealRequest, after SealComplete Abort and the end of the connection",
        expected: "the lock held again, the same process serving",
        run: seal_then_abort,
    },
    Check {
        name: "sealed and its deadline over, it takes the lock back",
        clauses: &["R2", "T5"],
        sent: "Prepare with a deadline of 2 s, SealRequest, after SealComplete nothing",
        expected: "the lock held again, the same process serving, the connection still open",
        run: seal_then_deadline,
    },
    Check {
        name: "a peer that drips is bound by the deadline",
        clauses: &["R2", "T5"],
        sent: "the same, and after SealComplete a frame, one byte each tenth of a second",
        expected: "the same process serving after the deadline of 2 s",
        run: dripped_deadline,
    },
    Check {
        name: "a supervisor that falls silent is dead after 5 s",
        clauses: &["R2", "T2"],
        sent: "a Heartbeat, Prepare with a deadline of 60 s, SealRequest, then nothing",
        expected: "the same process serving 5 s after the last byte",
        run: silent_supervisor,
    },
    Check {
        name: "strangers in number disturb no handoff",
        clauses: &["C5"],
        sent: "Prepare, then 100 connections that say nothing, then a Heartbeat and \
               ResumeAfterAbort",
        expected: "answers to the Heartbeats, and the daemon serving",
        run: crowd,
    },
    Check {
        name: "a second SealRequest seals nothing",
        clauses: &["R7", "W7"],
        sent: "Prepare, SealRequest, after SealComplete SealRequest again",
        expected: "no second SealComplete, the daemon serving after the end of the connection",
        run: sealed_twice,
    },
    Check {
        name: "a SealRequest before Prepare seals nothing",
        clauses: &["W7", "R7"],
        sent: "HelloAck, then SealRequest",
        expected: "this connection closed, the lock held, the daemon serving",
        run: seal_unasked,
    },
    Check {
        name: "a Commit while it holds the lock ends nothing",
        clauses: &["C2", "W7"],
        sent: "HelloAck, then Commit; another time Prepare, after Drained Commit",
        expected: "this connection closed, the daemon serving",
        run: commit_unasked,
    },
    Check {
        name: "it never gives up taking the lock back",
        clauses: &["R2"],
        sent: "Prepare, SealRequest; the probe takes the lock, closes the connection, and releases \
               the lock after 4 s",
        expected: "no answer while the lock is the probe's, the same process serving afterwards",
        run: never_gives_up,
    },
    Check {
        name: "committed, it exits",
        clauses: &["C2", "R15"],
        sent: "Prepare, SealRequest; the probe takes the lock and sends Commit",
        expected: "the connection closed, the process gone",
        run: commits,
    },
];

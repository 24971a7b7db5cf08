//! A successor, as a supervisor starts it: with listeners and a control socket. The probe is the
//! incumbent before it too, and holds the lock.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use handoff_core::wire::{FRAME_CAP, HANDSHAKE_CAP};
use handoff_core::{
    Capabilities, HandoffId, Message, PROTO_MAX, PROTO_MIN, Side, negotiate_version,
};
use handoff_unix::control::{ControlPath, ControlPathError, ControlSocket};
use handoff_unix::lock::{DataDirLock, LockState, lock_state};
use handoff_unix::process::{ExitCause, Signal};
use handoff_unix::spawn::{Launch, SpawnRole};
use rustix::fs::OFlags;

use super::conn::{Conn, Greeting, Next, frame, raw};
use super::process::{Process, quiet};
use super::report::{Case, Check, Log, Report, Seen, Stop, fail, run, seconds, skip};
use super::until;

/// R3: until a successor that is ready is the incumbent, under a supervisor that never says.
const VERDICT: Duration = Duration::from_secs(10);

/// How long what must not happen is waited for.
const WATCHED: Duration = Duration::from_millis(1500);

/// R15.
const TEMPFAIL: i32 = 75;

#[derive(Debug)]
enum Door {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// A client that is connected.
enum Client {
    Tcp(TcpStream),
    Unix,
}

impl Door {
    fn connect(&self) -> io::Result<Client> {
        match self {
            Self::Tcp(listener) => {
                let address = listener.local_addr()?;
                TcpStream::connect_timeout(&address, Duration::from_secs(5)).map(Client::Tcp)
            }
            Self::Unix(_, path) => UnixStream::connect(path).map(|_| Client::Unix),
        }
    }

    /// How many connections wait to be accepted, where the kernel says.
    fn waiting(&self) -> Option<u64> {
        let Self::Tcp(listener) = self else { return None };
        let address = listener.local_addr().ok()?;
        let table = if address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
        let port = format!(":{:04X}", address.port());
        std::fs::read_to_string(table).ok()?.lines().find_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [_, local, _, state, queues, ..] = fields[..] else { return None };
            // 0A: listening. Its second queue holds those that wait.
            let listens = state == "0A" && local.ends_with(&port);
            let waiting = queues.split(':').nth(1).filter(|_| listens)?;
            u64::from_str_radix(waiting, 16).ok()
        })
    }
}

/// A program to be started as a successor, once for each case.
#[derive(Debug)]
pub struct Successor {
    launch: Launch,
    listeners: Vec<(String, Door)>,
    socket: Option<ControlPath>,
    data_dir: Option<PathBuf>,
    patience: Duration,
    slow: bool,
}

impl Successor {
    /// The program; what it prints is let go unless `output`.
    #[must_use]
    pub fn new(launch: Launch, output: bool) -> Self {
        Self {
            launch: quiet(launch, output),
            listeners: Vec::new(),
            socket: None,
            data_dir: None,
            patience: Duration::from_secs(10),
            slow: false,
        }
    }

    /// Binds a listener for it to inherit: of TCP, or of Unix sockets where the address has a slash.
    ///
    /// # Errors
    ///
    /// It cannot be bound.
    pub fn listener(mut self, name: &str, address: &str) -> io::Result<Self> {
        let door = if address.contains('/') {
            Door::Unix(UnixListener::bind(address)?, address.into())
        } else {
            let addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
            Door::Tcp(TcpListener::bind(&addresses[..])?)
        };
        self.listeners.push((name.to_string(), door));
        Ok(self)
    }

    /// The control path at which it will serve. Nobody may serve there now.
    ///
    /// # Errors
    ///
    /// The path cannot be one of a socket.
    pub fn socket(mut self, socket: impl Into<PathBuf>) -> Result<Self, ControlPathError> {
        self.socket = Some(ControlPath::new(socket.into())?);
        Ok(self)
    }

    /// The directory whose lock it will take. Nobody may hold it now.
    #[must_use]
    pub fn data_dir(mut self, data_dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(data_dir.into());
        self
    }

    /// How long it may take for what the protocol sets no bound to: to start, to open its data.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Runs the cases too that wait for ten seconds and longer.
    #[must_use]
    pub fn slow(mut self, slow: bool) -> Self {
        self.slow = slow;
        self
    }

    /// What is probed, for the heading.
    #[must_use]
    pub fn target(&self) -> String {
        self.launch.program.display().to_string()
    }

    /// Runs all cases. `on` is told of each as it ends.
    pub fn probe(&self, mut on: impl FnMut(&Case)) -> Report {
        let before = |probe: &Self| {
            let socket = probe.socket.as_ref()?;
            let found = handoff_unix::probe::probe(socket, &handoff_unix::probe::Users::default());
            let pid = found.ok()?.cred.pid;
            Some(format!("process {pid} serves at the control path; the probe must be alone there"))
        };
        let report = run("successor", self.target(), CHECKS.iter(), self, before, &mut on);
        if let Some(socket) = &self.socket {
            super::tidy(socket);
        }
        report
    }

    fn start(&self, log: &Log) -> Result<Started, Stop> {
        self.start_as(&self.launch, log)
    }

    fn start_as(&self, launch: &Launch, log: &Log) -> Result<Started, Stop> {
        let mut lock = None;
        if let Some(dir) = &self.data_dir {
            let mut error = String::new();
            until(self.patience, || match DataDirLock::try_take(dir) {
                Ok(taken) => {
                    lock = Some(taken);
                    true
                }
                Err(why) => {
                    error = why.to_string();
                    false
                }
            });
            if lock.is_none() {
                return skip(format!("the probe does not get the lock: {error}"));
            }
        }
        let own = match &self.socket {
            None => None,
            Some(path) => {
                let socket = path.stage().and_then(|socket| {
                    socket.publish()?;
                    Ok(socket)
                });
                Some(socket.map_err(|error| Stop::Skipped(error.to_string()))?)
            }
        };
        let listeners: Vec<_> =
            self.listeners.iter().map(|(name, door)| (name.clone(), door.as_fd())).collect();
        let role = SpawnRole::Successor { hello_budget: self.patience };
        let mut process = Process::start(launch, &listeners, role, log)?;
        let Some(control) = process.child.control.take() else {
            return fail("it was given no control socket");
        };
        let conn = Conn::to_child("N", control, process.child.pid, log)?;
        Ok(Started { conn, process, own, lock, id: HandoffId::new() })
    }

    /// Up to its Hello.
    fn greeted(&self, log: &Log) -> Result<(Started, Greeting), Stop> {
        let mut started = self.start(log)?;
        let greeting = started.conn.hello(Side::Successor, self.patience).map_err(|stop| {
            // The program's own words are worth more than anything that can be seen from here.
            match (stop, started.process.exits(Duration::from_secs(1))) {
                (Stop::Failed(seen), Ok(cause)) => Stop::Failed(format!(
                    "{seen}; the program ended with {cause}, --output shows what it prints"
                )),
                (stop, _) => stop,
            }
        })?;
        Ok((started, greeting))
    }

    /// Through the handshake.
    fn acked(&self, log: &Log) -> Result<(Started, Greeting), Stop> {
        let (mut started, greeting) = self.greeted(log)?;
        started.conn.hello_ack(started.id);
        Ok((started, greeting))
    }

    /// Up to Ready.
    fn ready(&self, log: &Log) -> Result<(Started, Greeting), Stop> {
        let (mut started, greeting) = self.acked(log)?;
        started.release(log)?;
        started.begin();
        started.wait_ready(self.patience)?;
        Ok((started, greeting))
    }

    /// Waits until it answers as the incumbent.
    fn serves(&self, pid: u32, limit: Duration, log: &Log) -> Result<Duration, Stop> {
        let Some(socket) = &self.socket else { return skip("--socket was not given") };
        let start = Instant::now();
        let mut last = String::from("nobody");
        // As long as the path leads to the probe itself, nobody answers.
        let mut turn = Duration::from_millis(20);
        let found = until(limit, || {
            turn = (turn * 2).min(Duration::from_secs(1));
            let attempt = socket.connect(Duration::ZERO).map_err(Stop::from).and_then(|stream| {
                let mut conn = Conn::connected("probe", stream, &Log::new())?;
                let greeting = conn.hello(Side::Incumbent, turn)?;
                conn.hello_ack(HandoffId::new());
                Ok(greeting.pid)
            });
            match attempt {
                Ok(found) if found == pid => return true,
                Ok(found) => last = format!("process {found}"),
                Err(Stop::Failed(why) | Stop::Skipped(why)) => last = why,
            }
            false
        });
        if !found {
            let limit = seconds(limit);
            return fail(format!("it does not answer on the control path within {limit}: {last}"));
        }
        log.note(format_args!("probe answered by pid {pid}"));
        Ok(start.elapsed())
    }

    /// Whether it has the lock, where that can be seen.
    fn has_the_lock(&self, process: &Process) -> Result<&'static str, Stop> {
        let Some(dir) = &self.data_dir else { return Ok("") };
        match lock_state(dir) {
            LockState::Held { pid: Some(pid) } if pid == std::process::id() => {
                fail("the probe itself holds the lock")
            }
            LockState::Held { .. } => Ok(", it holds the lock"),
            LockState::Unknown => Ok(", who holds the lock cannot be seen"),
            LockState::Free => fail(format!("process {} has no lock", process.child.pid)),
        }
    }

    fn lock_is_free(&self) -> Result<&'static str, Stop> {
        let Some(dir) = &self.data_dir else { return Ok("") };
        match lock_state(dir) {
            LockState::Free => Ok(", the lock is free"),
            LockState::Unknown => Ok(", who holds the lock cannot be seen"),
            LockState::Held { .. } => fail("the lock is held"),
        }
    }
}

/// A successor that was started.
struct Started {
    conn: Conn,
    process: Process,
    /// The incumbent's control socket, which is the probe's.
    own: Option<ControlSocket>,
    /// The incumbent's lock, which is the probe's.
    lock: Option<DataDirLock>,
    id: HandoffId,
}

impl Started {
    fn release(&mut self, log: &Log) -> Result<(), Stop> {
        if let Some(lock) = self.lock.take() {
            lock.release()?;
            log.note("-- the probe has released the lock");
        }
        Ok(())
    }

    fn begin(&mut self) {
        self.conn.send(&Message::Begin { handoff_id: self.id });
    }

    fn wait_ready(&mut self, limit: Duration) -> Result<bool, Stop> {
        let id = self.id;
        let (right, healthy) = self.conn.wait("Ready", limit, |message| match message {
            Message::Ready { handoff_id, healthz_ok, .. } => Some((*handoff_id == id, *healthz_ok)),
            _ => None,
        })?;
        if right { Ok(healthy) } else { fail("Ready carries another id than Begin") }
    }

    /// Whether the control path still leads to the incumbent.
    fn path_is_untouched(&self) -> Result<&'static str, Stop> {
        match &self.own {
            None => Ok(""),
            Some(own) if own.leads_here() => Ok(", the control path is the incumbent's"),
            Some(_) => fail("the control path does not lead to the incumbent any more"),
        }
    }
}

fn says_hello(probe: &Successor, log: &Log) -> Seen {
    let (started, hello) = probe.greeted(log)?;
    let Some(cred) = started.conn.cred() else {
        return skip("the kernel does not say who has sent it");
    };
    if cred.pid != 0 && cred.pid != hello.pid {
        return fail(format!("Hello says pid {}, the kernel says {}", hello.pid, cred.pid));
    }
    if !cred.descends && cred.pid != started.process.child.pid {
        return fail(format!("process {} is not the one that was started", cred.pid));
    }
    if hello.frame_version != hello.proto.1 {
        return fail(format!(
            "Hello is in a frame of version {}, and its highest version is {}",
            hello.frame_version, hello.proto.1
        ));
    }
    let (min, max) = hello.proto;
    if let Err(error) = negotiate_version(PROTO_MIN, PROTO_MAX, min, max) {
        return fail(error.to_string());
    }
    Ok(format!("Hello of pid {}, versions {min} to {max}", hello.pid))
}

fn no_lock_before_begin(probe: &Successor, log: &Log) -> Seen {
    let Some(dir) = &probe.data_dir else { return skip("--data-dir was not given") };
    let (mut started, _) = probe.acked(log)?;
    started.release(log)?;
    if until(WATCHED, || matches!(lock_state(dir), LockState::Held { .. })) {
        return fail("it has taken the lock");
    }
    Ok(format!("the lock is free after {}{}", seconds(WATCHED), started.path_is_untouched()?))
}

fn closed_before_ack(probe: &Successor, log: &Log) -> Seen {
    let (started, _) = probe.greeted(log)?;
    let Started { conn, process, .. } = started;
    conn.close();
    process.exits_with(TEMPFAIL, probe.patience)?;
    Ok("exit code 75".into())
}

fn closed_before_begin(probe: &Successor, log: &Log) -> Seen {
    let (mut started, _) = probe.acked(log)?;
    started.release(log)?;
    let path = started.path_is_untouched()?;
    let Started { conn, process, own: _own, .. } = started;
    conn.close();
    process.exits_with(TEMPFAIL, probe.patience)?;
    Ok(format!("exit code 75{path}{}", probe.lock_is_free()?))
}

fn aborted_before_begin(probe: &Successor, log: &Log) -> Seen {
    let (mut started, _) = probe.acked(log)?;
    let reason = "the probe takes it back".into();
    started.conn.send(&Message::Abort { handoff_id: started.id, reason });
    started.process.exits_with(TEMPFAIL, probe.patience)?;
    Ok(format!("exit code 75{}", started.path_is_untouched()?))
}

fn wrong_id(probe: &Successor, log: &Log) -> Seen {
    let (mut started, _) = probe.acked(log)?;
    started.release(log)?;
    started.conn.send(&Message::Begin { handoff_id: HandoffId::new() });
    started.conn.closes(probe.patience, |message| matches!(message, Message::Ready { .. }))?;
    started.process.exits_with(TEMPFAIL, probe.patience)?;
    Ok(format!("closed, exit code 75{}", probe.lock_is_free()?))
}

fn beats(probe: &Successor, log: &Log) -> Seen {
    const STAMP: u64 = 0x5eed_5eed;
    let (mut started, hello) = probe.acked(log)?;
    if !hello.capabilities.has(Capabilities::STEADY_HEARTBEAT) {
        return skip("its Hello does not announce steady heartbeats (X2)");
    }
    started.conn.send(&Message::Heartbeat { ts_ms: STAMP });
    let start = Instant::now();
    let limit = Duration::from_secs(1) + super::slack(probe.patience);
    let mut echoed = false;
    // The lock is the probe's: it beats while it waits for that, too.
    for count in 1..=4 {
        started.conn.wait(
            &format!("Heartbeat number {count}"),
            limit,
            |message| match message {
                Message::Heartbeat { ts_ms: STAMP } => {
                    echoed = true;
                    None
                }
                Message::Heartbeat { .. } => Some(()),
                _ => None,
            },
        )?;
        if count == 2 {
            started.begin();
            // A supervisor that was heard once has to go on.
            started.conn.send(&Message::Heartbeat { ts_ms: STAMP });
        }
    }
    if echoed {
        return fail("it answered a Heartbeat, which only an incumbent does");
    }
    let took = start.elapsed();
    if took < Duration::from_secs(3) {
        return fail(format!("4 Heartbeats in {}", seconds(took)));
    }
    Ok(format!("4 Heartbeats in {}, none of them an answer", seconds(took)))
}

fn gets_ready(probe: &Successor, log: &Log) -> Seen {
    let (mut started, hello) = probe.acked(log)?;
    started.release(log)?;
    started.begin();
    let healthy = started.wait_ready(probe.patience)?;
    let lock = probe.has_the_lock(&started.process)?;
    let path = started.path_is_untouched()?;
    for (name, door) in &probe.listeners {
        let client = door.connect()?;
        if matches!(&client, Client::Tcp(_)) && door.waiting().is_some() {
            log.note(format_args!("-- connected to listener {name}"));
            if !until(probe.patience, || door.waiting() == Some(0)) {
                return fail(format!("nobody accepts on the listener {name}"));
            }
        }
        if let Client::Tcp(stream) = client {
            drop(stream);
        }
    }
    let mut staged = "";
    if let Some(parent) = probe.socket.as_ref().and_then(|path| path.as_path().parent()) {
        let pid = hello.pid.to_string();
        let found = std::fs::read_dir(parent)?.flatten().any(|entry| {
            entry.file_type().is_ok_and(|kind| kind.is_socket())
                && entry.file_name().to_string_lossy().contains(&pid)
        });
        if !found {
            return fail("no socket with its pid stands beside the control path");
        }
        staged = ", its own socket is staged";
    }
    let doors = match probe.listeners.len() {
        0 => String::new(),
        1 => ", its listener is accepted on".into(),
        count => format!(", its {count} listeners are accepted on"),
    };
    Ok(format!("Ready, healthz_ok {healthy}{lock}{path}{staged}{doors}"))
}

fn committed(probe: &Successor, log: &Log) -> Seen {
    let (mut started, hello) = probe.ready(log)?;
    if !hello.capabilities.has(Capabilities::COMMIT_NOTICE) {
        return skip("its Hello does not ask for Commit (X1)");
    }
    started.conn.send(&Message::Commit { handoff_id: started.id });
    let took = probe.serves(hello.pid, probe.patience, log)?;
    let lock = probe.has_the_lock(&started.process)?;
    Ok(format!("it serves {} after Commit{lock}", seconds(took)))
}

fn closed_after_ready(probe: &Successor, log: &Log) -> Seen {
    let (started, hello) = probe.ready(log)?;
    let Started { conn, process, own: _own, .. } = started;
    conn.close();
    let took = probe.serves(hello.pid, probe.patience, log)?;
    let lock = probe.has_the_lock(&process)?;
    Ok(format!("it serves {} after the end of the connection{lock}", seconds(took)))
}

fn unsaid_after_ready(probe: &Successor, log: &Log) -> Seen {
    if !probe.slow {
        return skip("it takes ten seconds; ask for it with --slow");
    }
    let (started, hello) = probe.ready(log)?;
    let took = probe.serves(hello.pid, VERDICT + super::slack(probe.patience), log)?;
    drop(started);
    Ok(format!("it serves {} after Ready", seconds(took)))
}

fn closed_before_ready(probe: &Successor, log: &Log) -> Seen {
    let (mut started, hello) = probe.acked(log)?;
    started.begin();
    let Started { conn, process, own: _own, lock, .. } = started;
    conn.close();
    if let Some(lock) = lock {
        // It waits for the lock meanwhile, alone.
        if let Ok(cause) = process.exits(WATCHED) {
            return fail(format!("it ended with {cause} while the incumbent held the lock"));
        }
        lock.release()?;
        log.note("-- the probe has released the lock");
    }
    let took = probe.serves(hello.pid, probe.patience, log)?;
    let lock = probe.has_the_lock(&process)?;
    Ok(format!("it serves after {}{lock}", seconds(took)))
}

fn aborted_after_ready(probe: &Successor, log: &Log) -> Seen {
    let (mut started, _) = probe.ready(log)?;
    let reason = "the probe takes it back".into();
    started.conn.send(&Message::Abort { handoff_id: started.id, reason });
    started.process.exits_with(TEMPFAIL, probe.patience)?;
    Ok(format!("exit code 75{}{}", probe.lock_is_free()?, started.path_is_untouched()?))
}

fn stops(probe: &Successor, log: &Log) -> Seen {
    let (started, hello) = probe.ready(log)?;
    let Started { conn, process, own: _own, .. } = started;
    conn.close();
    if probe.socket.is_some() {
        probe.serves(hello.pid, probe.patience, log)?;
    }
    process.child.pidfd.signal(Signal::TERM)?;
    log.note("-- SIGTERM");
    match process.exits(probe.patience)? {
        ExitCause::Code(0) => Ok(format!("exit code 0{}", probe.lock_is_free()?)),
        ExitCause::Signal(15) => skip("the program leaves SIGTERM to the system"),
        other => fail(format!("it ended with {other}, not with exit code 0")),
    }
}

fn listeners_of_another(probe: &Successor, log: &Log) -> Seen {
    let Some((name, door)) = probe.listeners.first() else {
        return skip("no --listener was given");
    };
    if door.waiting().is_none() {
        return skip("only of a TCP listener the kernel says who waits");
    }
    // What sets the variable is gone from the process by the time the program runs.
    let mut launch = probe.launch.clone();
    launch.args.insert(0, launch.program.into_os_string());
    launch.args.insert(0, "LISTEN_PID=1".into());
    launch.program = "env".into();
    let mut started = probe.start_as(&launch, log)?;
    // It may end here: without a listener there is nothing to serve on.
    let ready = (|| {
        started.conn.hello(Side::Successor, probe.patience)?;
        started.conn.hello_ack(started.id);
        started.release(log)?;
        started.begin();
        started.wait_ready(probe.patience)
    })();
    if ready.is_err() {
        return Ok("it did not get ready without its listeners".into());
    }
    let _client = door.connect()?;
    if until(WATCHED, || door.waiting() == Some(0)) {
        return fail(format!("it accepts on the listener {name}, which is meant for process 1"));
    }
    Ok("it is ready, and does not accept on the listener".into())
}

fn modes_stay(probe: &Successor, log: &Log) -> Seen {
    if probe.listeners.is_empty() {
        return skip("no --listener was given");
    }
    for nonblocking in [false, true] {
        let mode = if nonblocking { "non-blocking" } else { "blocking" };
        log.note(format_args!("-- the listeners are {mode}"));
        for (_, door) in &probe.listeners {
            rustix::io::ioctl_fionbio(door, nonblocking).map_err(io::Error::from)?;
        }
        let started = probe.ready(log);
        let mut changed = None;
        for (name, door) in &probe.listeners {
            let flags = rustix::fs::fcntl_getfl(door).map_err(io::Error::from)?;
            if flags.contains(OFlags::NONBLOCK) != nonblocking {
                changed = Some(name);
            }
            rustix::io::ioctl_fionbio(door, false).map_err(io::Error::from)?;
        }
        drop(started?);
        if let Some(name) = changed {
            return fail(format!("the listener {name}, which was {mode}, is not any more"));
        }
    }
    Ok("both modes are as they were".into())
}

/// Sends what is no frame, each time to another process, and expects the end of it.
fn each_ends(probe: &Successor, log: &Log, all: &[(&str, bool, Vec<u8>)]) -> Seen {
    for (what, handshake, bytes) in all {
        let (mut started, _) = if *handshake { probe.acked(log)? } else { probe.greeted(log)? };
        started.conn.send_bytes(bytes, what);
        let ended = started
            .conn
            .closes(probe.patience, |message| matches!(message, Message::Ready { .. }))
            .and_then(|_| started.process.exits_with(TEMPFAIL, probe.patience));
        if let Err(Stop::Failed(seen)) = ended {
            return fail(format!("{what}: {seen}"));
        }
    }
    Ok("closed, exit code 75, each time".into())
}

fn bad_frames_before(probe: &Successor, log: &Log) -> Seen {
    let ack = Message::HelloAck { proto_version_chosen: u16::MAX, handoff_id: HandoffId::new() };
    each_ends(
        probe,
        log,
        &[
            ("a frame of length 1", false, vec![1, 0, 0, 0, 1]),
            ("the length 4097", false, (HANDSHAKE_CAP + 1).to_le_bytes().to_vec()),
            ("HelloAck of version 65535", false, frame(&ack, u16::MAX)),
        ],
    )
}

fn bad_frames_after(probe: &Successor, log: &Log) -> Seen {
    let beat = frame(&Message::Heartbeat { ts_ms: 7 }, PROTO_MAX + 1);
    each_ends(
        probe,
        log,
        &[
            ("the length 1048577", true, (FRAME_CAP + 1).to_le_bytes().to_vec()),
            ("variant 14, which there is not", true, raw(PROTO_MAX, &[14])),
            ("a Heartbeat and a byte more", true, raw(PROTO_MAX, &[13, 7, 0])),
            ("a Heartbeat in a frame of version 2", true, beat),
        ],
    )
}

fn hello_is_said_once(probe: &Successor, log: &Log) -> Seen {
    let (mut started, _) = probe.greeted(log)?;
    match started.conn.next(WATCHED)? {
        Next::Silent => Ok("nothing more before HelloAck".into()),
        Next::Closed => fail("it closed the connection while it waited for HelloAck"),
        Next::Frame(_) => fail("it went on before HelloAck"),
    }
}

pub(crate) const CHECKS: &[Check<Successor>] = &[
    Check {
        name: "it says Hello on the socket it was given",
        clauses: &["C1", "C3", "W1", "W4", "R13"],
        sent: "nothing",
        expected: "within HANDOFF_HELLO_MS Hello as Successor, with the pid that the kernel names",
        run: says_hello,
    },
    Check {
        name: "it waits for HelloAck",
        clauses: &["C1"],
        sent: "nothing after its Hello",
        expected: "nothing more, and an open connection",
        run: hello_is_said_once,
    },
    Check {
        name: "it takes no lock before Begin",
        clauses: &["R3", "I1"],
        sent: "HelloAck, while nobody holds the lock",
        expected: "the lock free, the control path untouched",
        run: no_lock_before_begin,
    },
    Check {
        name: "closed before HelloAck, it stands down",
        clauses: &["R3", "R15"],
        sent: "nothing; the connection is closed after its Hello",
        expected: "exit code 75",
        run: closed_before_ack,
    },
    Check {
        name: "closed before Begin, it stands down",
        clauses: &["R3", "R15"],
        sent: "HelloAck, then the end of the connection",
        expected: "exit code 75, the lock and the control path untouched",
        run: closed_before_begin,
    },
    Check {
        name: "aborted before Begin, it stands down",
        clauses: &["R3", "R15"],
        sent: "HelloAck, then Abort",
        expected: "exit code 75, the control path untouched",
        run: aborted_before_begin,
    },
    Check {
        name: "Begin must carry the id of HelloAck",
        clauses: &["C1", "W7"],
        sent: "HelloAck, then Begin with another id",
        expected: "the connection closed, exit code 75, the lock untouched",
        run: wrong_id,
    },
    Check {
        name: "bad frames before the handshake end it",
        clauses: &["W2", "W5", "W7"],
        sent: "instead of HelloAck a length of 1; a length of 4097; a version not offered",
        expected: "the connection closed and exit code 75, each time",
        run: bad_frames_before,
    },
    Check {
        name: "bad frames behind the handshake end it",
        clauses: &["W2", "W3", "W5", "W6", "W7"],
        sent: "HelloAck, then a length over 1 MiB; an unknown variant; bytes behind a message; \
               another frame version",
        expected: "the connection closed and exit code 75, each time",
        run: bad_frames_after,
    },
    Check {
        name: "it heartbeats every second and answers none",
        clauses: &["T1", "T3", "X2"],
        sent: "HelloAck and a Heartbeat, later Begin and one more",
        expected: "4 Heartbeats in about 4 s, none with the time stamp it was sent",
        run: beats,
    },
    Check {
        name: "told to begin, it gets ready and changes nothing yet",
        clauses: &["C2", "R3", "R6"],
        sent: "HelloAck, Begin, a connection to each listener after Ready",
        expected: "Ready, the lock held, the connections accepted, its control socket staged, the \
                   control path the incumbent's",
        run: gets_ready,
    },
    Check {
        name: "committed, it serves",
        clauses: &["R3", "R11", "X1"],
        sent: "HelloAck, Begin, after Ready Commit",
        expected: "it answers on the control path as the incumbent, and holds the lock",
        run: committed,
    },
    Check {
        name: "left alone after Ready, it serves",
        clauses: &["R3", "R11"],
        sent: "HelloAck, Begin, after Ready the end of the connection",
        expected: "it answers on the control path as the incumbent, and holds the lock",
        run: closed_after_ready,
    },
    Check {
        name: "left alone before Ready, it goes on and serves",
        clauses: &["R3", "I5"],
        sent: "HelloAck, Begin and the end of the connection; then the lock is released",
        expected: "it answers on the control path as the incumbent, and holds the lock",
        run: closed_before_ready,
    },
    Check {
        name: "not told after Ready, it serves after 10 s",
        clauses: &["R3"],
        sent: "HelloAck, Begin, after Ready nothing, on a connection that stays open",
        expected: "it answers on the control path as the incumbent",
        run: unsaid_after_ready,
    },
    Check {
        name: "aborted after Ready, it stands down",
        clauses: &["R3", "R15"],
        sent: "HelloAck, Begin, after Ready Abort",
        expected: "exit code 75, the lock free, the control path untouched",
        run: aborted_after_ready,
    },
    Check {
        name: "told to stop, it exits with 0",
        clauses: &["R15"],
        sent: "HelloAck, Begin, after Ready the end of the connection; then SIGTERM",
        expected: "exit code 0, the lock free",
        run: stops,
    },
    Check {
        name: "it ignores listeners that are meant for another",
        clauses: &["R13"],
        sent: "the same, with LISTEN_PID=1 in its environment",
        expected: "no Ready, or nobody who accepts on the listener",
        run: listeners_of_another,
    },
    Check {
        name: "it leaves the mode of its listeners alone",
        clauses: &["R13"],
        sent: "HelloAck and Begin, with a blocking listener and with a non-blocking one",
        expected: "Ready, and O_NONBLOCK as it was",
        run: modes_stay,
    },
];

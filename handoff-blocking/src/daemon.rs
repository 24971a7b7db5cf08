use std::any::Any;
use std::fmt;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use handoff_core::daemon::{
    self as core, Command, ConnId, DrainReport, Effect, Ended, Event, Hook, Outcome, Readiness,
    SealFailure, SealReport, Timing,
};
use handoff_core::driver::ActionOf;
use handoff_core::{Input, Machine as _};
use handoff_unix::control::{ACCEPT_PAUSE, ControlPath, ControlSocket};
use handoff_unix::host::{DaemonHost, log};
use handoff_unix::inherit::{Inherited, Role};
use handoff_unix::probe::Users;
use handoff_unix::stream::ControlStream;

use crate::StartError;
use crate::reactor::{Mailbox, Reactor};

/// Where a daemon lives and what it calls itself.
#[derive(Clone, Debug)]
pub struct Config {
    control_path: PathBuf,
    data_dir: PathBuf,
    build_id: Vec<u8>,
    allowed_uids: Vec<u32>,
    timing: Timing,
}

impl Config {
    /// The control path, at which supervisors find the daemon, and the data directory, whose lock
    /// decides who writes.
    pub fn new(control_path: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            control_path: control_path.into(),
            data_dir: data_dir.into(),
            build_id: Vec::new(),
            allowed_uids: Vec::new(),
            timing: Timing::default(),
        }
    }

    /// What this build calls itself, at most 1 KiB of it: a commit, a version.
    #[must_use]
    pub fn build_id(mut self, build_id: impl Into<Vec<u8>>) -> Self {
        self.build_id = build_id.into();
        self.build_id.truncate(1024);
        self
    }

    /// Lets supervisors of further users speak to this daemon (R12).
    #[must_use]
    pub fn allow_uid(mut self, uid: u32) -> Self {
        self.allowed_uids.push(uid);
        self
    }

    /// Replaces the protocol's durations.
    #[must_use]
    pub const fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }
}

/// A daemon before it holds the lock: started cold, or as a successor.
///
/// Dropping it, or any value made from it, without reaching the end of [`Serving::run`] is a stop:
/// a successor is then given up by its supervisor, and the old process goes on.
#[derive(Debug)]
pub struct Daemon {
    inherited: Inherited,
    front: Front,
}

impl Daemon {
    /// Reads what a supervisor passed on (R13), and starts the thread that speaks the protocol.
    ///
    /// To be called once, early: where the supervisor gave no budget for a warm-up, Hello is said now
    /// (C3). Nothing is locked, bound or opened.
    ///
    /// # Errors
    ///
    /// A control path too long for a socket or in no directory, an environment that does not hold together, a thread or
    /// a descriptor that cannot be had.
    pub fn from_env(config: Config) -> Result<Self, StartError> {
        let control = ControlPath::new(config.control_path)?;
        control.check_directory()?;
        let mut inherited = Inherited::from_env()?;
        let mut settings =
            core::Config::new(std::process::id(), rustix::process::geteuid().as_raw());
        settings.build_id = config.build_id;
        let users = Users(config.allowed_uids.clone());
        settings.allowed_uids = config.allowed_uids;
        settings.timing = config.timing;
        let machine = match inherited.role() {
            Role::Cold => core::Daemon::cold(settings),
            Role::Successor => {
                core::Daemon::successor(settings, inherited.hello_budget().is_some())
            }
        };
        let supervisor = match inherited.take_control().map(ControlStream::connected) {
            Some(stream) => Some(stream.map_err(|source| StartError::Io {
                what: "the control connection to the supervisor",
                source,
            })?),
            None => None,
        };
        let host = DaemonHost::new(control, config.data_dir.clone(), users);
        let front = Front::start(machine, host, supervisor, config.data_dir)?;
        Ok(Self { inherited, front })
    }

    /// Whether a supervisor started this process to take over from another.
    #[must_use]
    pub fn is_successor(&self) -> bool {
        self.inherited.role() == Role::Successor
    }

    /// The inherited TCP listener of this name; on a cold start without one, what `bind` gives.
    ///
    /// Its mode is what the supervisor made it: use an [`crate::Acceptor`], which takes either and
    /// changes neither (R13).
    ///
    /// # Errors
    ///
    /// The inherited descriptor is no TCP listener, `bind` failed, or this is a successor and its
    /// supervisor passed on no such listener (R10).
    pub fn listener(
        &mut self,
        name: &str,
        bind: impl FnOnce() -> std::io::Result<TcpListener>,
    ) -> Result<TcpListener, StartError> {
        match self.inherited.take_tcp(name)? {
            Some(listener) => Ok(listener),
            None => self.bound(name, bind),
        }
    }

    /// The same for a Unix stream listener.
    ///
    /// # Errors
    ///
    /// The inherited descriptor is no Unix stream listener, `bind` failed, or this is a successor and
    /// its supervisor passed on no such listener (R10).
    pub fn unix_listener(
        &mut self,
        name: &str,
        bind: impl FnOnce() -> std::io::Result<UnixListener>,
    ) -> Result<UnixListener, StartError> {
        match self.inherited.take_unix(name)? {
            Some(listener) => Ok(listener),
            None => self.bound(name, bind),
        }
    }

    fn bound<L>(
        &self,
        name: &str,
        bind: impl FnOnce() -> std::io::Result<L>,
    ) -> Result<L, StartError> {
        let name = name.to_string();
        if self.is_successor() {
            let passed: Vec<&str> = self.inherited.names().collect();
            return Err(StartError::NotInherited { name, passed: passed.join(", ") });
        }
        bind().map_err(|source| StartError::Listener { name, source })
    }

    /// Any other inherited descriptor of this name.
    pub fn fd(&mut self, name: &str) -> Option<OwnedFd> {
        self.inherited.take_fd(name)
    }

    /// The warm-up is done: waits until the lock is this process's (C3, R3).
    ///
    /// Blocks through Hello, HelloAck and Begin in a successor; on a cold start, while another holds
    /// the lock and does not answer.
    ///
    /// # Errors
    ///
    /// How it ended instead: the supervisor went away or gave up, another process serves, the lock
    /// could not be had. Exit with [`Ended::exit_code`].
    pub fn begin(self) -> Result<Grant, Ended> {
        let Self { inherited, front } = self;
        front.mailbox.send(Input::Command(Command::Begin));
        match front.next() {
            Request::Hook(Hook::Open) => Ok(Grant { inherited, front: Some(front) }),
            Request::Hook(_) => Err(front.lost()),
            Request::Ended(ended) => Err(ended),
        }
    }
}

/// The lock is held: the data may be opened.
///
/// Dropping it says that opening failed: whatever was opened is to be closed before, because the lock
/// is released then.
#[derive(Debug)]
pub struct Grant {
    inherited: Inherited,
    front: Option<Front>,
}

impl Grant {
    /// The data directory that is locked.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.front.as_ref().map_or(Path::new(""), |front| &front.data_dir)
    }

    /// Whether the handoff was called off meanwhile, so that opening on is work for nothing (R7).
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.front.as_ref().is_some_and(|front| front.off.load(Ordering::Acquire))
    }

    /// The data is open and connections are accepted: says Ready (R6). Returns at once.
    ///
    /// Listeners that were inherited and that nobody has claimed are closed (R13).
    ///
    /// # Errors
    ///
    /// How this process ended, if it has.
    pub fn ready(mut self, readiness: Readiness) -> Result<Serving, Ended> {
        let Some(front) = self.front.take() else { return Err(Ended::Stopped) };
        for (name, _) in self.inherited.unclaimed() {
            tracing::warn!(name, "an inherited descriptor that nobody claimed is closed");
        }
        front.mailbox.send(Input::Done(Outcome::Opened(Ok(readiness))));
        Ok(Serving { front: Some(front) })
    }

    /// The data cannot be opened; it is closed again, and the lock may be released. Waits until it is.
    #[must_use]
    pub fn fail(mut self, error: impl fmt::Display) -> Ended {
        match self.front.take() {
            Some(front) => {
                let failed = Outcome::Opened(Err(error.to_string()));
                front.mailbox.send(Input::Done(failed));
                front.join()
            }
            None => Ended::Stopped,
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if let Some(front) = self.front.take() {
            let failed = Outcome::Opened(Err("the program gave up opening its data".to_string()));
            front.mailbox.send(Input::Done(failed));
            let _ = front.join();
        }
    }
}

/// The daemon serves, and takes part in handoffs once [`Serving::run`] is called.
///
/// Dropping it instead stops the protocol without running a hook; the lock is kept until the process
/// ends, because the data may still be open.
#[derive(Debug)]
pub struct Serving {
    front: Option<Front>,
}

impl Serving {
    /// A handle that stops this daemon: from a signal, say.
    #[must_use]
    pub fn stopper(&self) -> Stop {
        Stop { mailbox: self.front.as_ref().map(|front| front.mailbox.clone()) }
    }

    /// Takes part in handoffs until this process has no further part to play (R15).
    ///
    /// Hooks run on the calling thread, one at a time. When it returns [`Ended::Committed`], finish
    /// what is still read and exit.
    pub fn run(mut self, mut hooks: impl Hooks) -> Ended {
        let Some(front) = self.front.take() else { return Ended::Stopped };
        loop {
            let outcome = match front.next() {
                Request::Ended(ended) => {
                    // Its socket goes with the thread.
                    let _ = front.thread.join();
                    return ended;
                }
                Request::Hook(hook) => front.perform(&mut hooks, &hook),
            };
            front.mailbox.send(Input::Done(outcome));
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(front) = self.front.take() {
            front.mailbox.send(Input::Command(Command::Stop));
            loop {
                let refused = "the program does not run its hooks".to_string();
                let outcome = match front.next() {
                    Request::Ended(_) => return,
                    // Nothing was drained or sealed, so there is nothing to resume.
                    Request::Hook(Hook::Resume) => Outcome::Resumed(Ok(())),
                    Request::Hook(hook) => failed(&hook, refused),
                };
                front.mailbox.send(Input::Done(outcome));
            }
        }
    }
}

/// Stops a daemon without a successor: drain, seal, release; [`Serving::run`] returns
/// [`Ended::Stopped`]. During a handoff it waits until that is off or done.
#[derive(Clone, Debug)]
pub struct Stop {
    mailbox: Option<Mailbox<core::Input>>,
}

impl Stop {
    /// Asks for it. A second time changes nothing.
    pub fn stop(&self) {
        if let Some(mailbox) = &self.mailbox {
            mailbox.send(Input::Command(Command::Stop));
        }
    }
}

/// Why a hook failed, for the log and the supervisor.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// What only the program can do. One hook runs at a time, never twice for one handoff, and never
/// without the lock (R7). A hook that panics has failed.
pub trait Hooks {
    /// Stop accepting, finish what is in flight, make acknowledged writes durable (C2).
    ///
    /// # Errors
    ///
    /// The handoff is off; [`Hooks::resume`] follows.
    fn drain(&mut self, drain: &DrainContext) -> Result<DrainReport, HookError>;

    /// Flush, fsync and close the data, so that another process can open it. From its start on no
    /// write is acknowledged.
    ///
    /// # Errors
    ///
    /// The handoff is off; [`Hooks::resume`] follows. The lock was not released.
    fn seal(&mut self, seal: &SealContext) -> Result<SealReport, HookError>;

    /// The handoff is off and the lock is held: open the data if it is closed, accept again. Runs
    /// exactly once after every drain that no commit followed.
    ///
    /// # Errors
    ///
    /// The process aborts: it can neither serve nor let another serve.
    fn resume(&mut self) -> Result<(), HookError>;
}

/// What a drain may know.
#[derive(Debug)]
pub struct DrainContext {
    grace: Duration,
    off: Arc<AtomicBool>,
}

impl DrainContext {
    /// How long the drain may take, from its start.
    #[must_use]
    pub const fn grace(&self) -> Duration {
        self.grace
    }

    /// Whether the handoff has ended, so that the drain is to return at once (R7).
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.off.load(Ordering::Acquire)
    }
}

/// What a seal may know and tell.
#[derive(Debug)]
pub struct SealContext {
    mailbox: Mailbox<core::Input>,
    off: Arc<AtomicBool>,
}

impl SealContext {
    /// Tells whoever watches the handoff how far the seal has come (C4).
    pub fn progress(&self, shards_sealed: u32, shards_total: u32, last_revision: u64) {
        let progress = Command::SealProgress { shards_sealed, shards_total, last_revision };
        self.mailbox.send(Input::Command(progress));
    }

    /// Whether the handoff has ended, so that the seal may stop halfway (R7).
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.off.load(Ordering::Acquire)
    }
}

/// What the protocol's thread asks the program's.
#[derive(Debug)]
enum Request {
    Hook(Hook),
    Ended(Ended),
}

/// The program's end of the protocol's thread.
#[derive(Debug)]
struct Front {
    mailbox: Mailbox<core::Input>,
    requests: Receiver<Request>,
    off: Arc<AtomicBool>,
    data_dir: PathBuf,
    thread: JoinHandle<()>,
}

impl Front {
    fn start(
        machine: core::Daemon,
        host: DaemonHost,
        supervisor: Option<ControlStream>,
        data_dir: PathBuf,
    ) -> Result<Self, StartError> {
        let failed = |what| move |source| StartError::Io { what, source };
        let mut reactor = Reactor::new(machine).map_err(failed("the protocol's waker"))?;
        if let Some(stream) = supervisor {
            reactor.add(ConnId::SUPERVISOR, stream);
        }
        let mailbox = reactor.mailbox();
        let (sender, requests) = channel();
        let off = Arc::new(AtomicBool::new(false));
        let back = Back { reactor, host, program: sender, off: Arc::clone(&off), pause: None };
        let thread = std::thread::Builder::new()
            .name("handoff".into())
            .spawn(move || back.run())
            .map_err(failed("the protocol's thread"))?;
        Ok(Self { mailbox, requests, off, data_dir, thread })
    }

    fn next(&self) -> Request {
        self.requests.recv().unwrap_or_else(|_| Request::Ended(self.lost()))
    }

    fn lost(&self) -> Ended {
        Ended::Crash("the protocol's thread is gone".to_string())
    }

    fn join(self) -> Ended {
        loop {
            if let Request::Ended(ended) = self.next() {
                let _ = self.thread.join();
                return ended;
            }
        }
    }

    fn perform(&self, hooks: &mut impl Hooks, hook: &Hook) -> Outcome {
        let result = catch_unwind(AssertUnwindSafe(|| match hook {
            Hook::Drain { grace } => {
                let drain = DrainContext { grace: *grace, off: Arc::clone(&self.off) };
                Outcome::Drained(hooks.drain(&drain).map_err(|error| error.to_string()))
            }
            Hook::Seal => {
                let (mailbox, off) = (self.mailbox.clone(), Arc::clone(&self.off));
                let sealed = hooks.seal(&SealContext { mailbox, off });
                Outcome::Sealed(sealed.map_err(|error| seal_failure(error.to_string())))
            }
            Hook::Resume => Outcome::Resumed(hooks.resume().map_err(|error| error.to_string())),
            Hook::Open => failed(hook, "the data is open already".to_string()),
        }));
        result.unwrap_or_else(|panic| failed(hook, panicked(&*panic)))
    }
}

fn failed(hook: &Hook, error: String) -> Outcome {
    match hook {
        Hook::Open => Outcome::Opened(Err(error)),
        Hook::Drain { .. } => Outcome::Drained(Err(error)),
        Hook::Seal => Outcome::Sealed(Err(seal_failure(error))),
        Hook::Resume => Outcome::Resumed(Err(error)),
    }
}

fn seal_failure(error: String) -> SealFailure {
    SealFailure { error, partial_state: String::new() }
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("no message"))
}

/// The protocol's thread.
struct Back {
    reactor: Reactor<core::Daemon, core::Input>,
    host: DaemonHost,
    program: Sender<Request>,
    off: Arc<AtomicBool>,
    /// The control listener is left alone until then, for want of descriptors.
    pause: Option<Instant>,
}

impl Back {
    fn run(mut self) {
        loop {
            while let Some(action) = self.reactor.next_action() {
                if let Some(ended) = self.act(action) {
                    let _ = self.program.send(Request::Ended(ended));
                    return;
                }
            }
            let pause = self.pause.map(|until| until.saturating_duration_since(Instant::now()));
            let answering = self.reactor.machine().answers() && pause.is_none_or(|p| p.is_zero());
            let socket = self.host.socket().filter(|_| answering);
            let listener: Vec<BorrowedFd<'_>> =
                socket.iter().map(|socket| socket.listener().as_fd()).collect();
            match self.reactor.wait(&listener, pause.filter(|pause| !pause.is_zero())) {
                Ok(turn) => {
                    if let (Some(socket), false) = (&socket, turn.extra.is_empty()) {
                        self.accept(socket);
                    }
                    for input in turn.mail {
                        self.reactor.handle(input);
                    }
                    self.reactor.tick();
                }
                Err(error) => {
                    tracing::error!(%error, "the protocol's thread cannot wait for its sockets");
                    return;
                }
            }
        }
    }

    fn act(&mut self, action: ActionOf<core::Daemon>) -> Option<Ended> {
        match action {
            ActionOf::<core::Daemon>::Do(Effect::Os(effect)) => {
                let done = |outcome| Input::Done(outcome);
                self.reactor.mailbox().run(self.host.job(effect), done);
            }
            ActionOf::<core::Daemon>::Do(Effect::Hook(hook)) => {
                self.off.store(false, Ordering::Release);
                let _ = self.program.send(Request::Hook(hook));
            }
            ActionOf::<core::Daemon>::Cancel => self.off.store(true, Ordering::Release),
            ActionOf::<core::Daemon>::Event(Event::Ended(ended)) => {
                tracing::info!(%ended, "handoff: this process has no further part");
                if let Ended::Crash(reason) = &ended {
                    tracing::error!(reason, "handoff: aborting");
                    std::process::abort();
                }
                return Some(ended);
            }
            ActionOf::<core::Daemon>::Event(event) => {
                log(self.reactor.machine().state_name(), event.is_trouble(), &event);
            }
            ActionOf::<core::Daemon>::Close { .. } => {}
        }
        None
    }

    fn accept(&mut self, socket: &ControlSocket) {
        // A name is free again once its connection was closed, so what is to be closed comes first.
        while !self.reactor.pending() {
            let stream = match socket.accept() {
                Ok(Some(stream)) => stream,
                Ok(None) => {
                    self.pause = None;
                    return;
                }
                Err(error) => {
                    if self.pause.is_none() {
                        tracing::warn!(%error, "handoff: no connection can be taken for now");
                    }
                    self.pause = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            };
            let free = (1..).map(ConnId).find(|conn| !self.reactor.has(*conn));
            match (free, ControlStream::connected(stream)) {
                (Some(conn), Ok(stream)) => self.reactor.add(conn, stream),
                (_, Err(error)) => tracing::warn!(%error, "handoff: a connection was dropped"),
                (None, Ok(_)) => {}
            }
        }
    }
}

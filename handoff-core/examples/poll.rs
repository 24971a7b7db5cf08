//! One's own runtime: an adapter over plain `poll(2)`, which drives the core's [`Driver`] itself, and a
//! toy daemon on top. Copy the adapter.
//!
//! Who needs this? Whoever cannot use `handoff-tokio`, `handoff-smol` or `handoff-blocking` (threads),
//! *and* cannot wait for one more descriptor: a simulator, a runtime with completions instead of
//! readiness, a loop that must own each socket. Everybody else takes a `DaemonHost` of
//! `handoff_unix::host`, which keeps the sockets, the clock and the rules below behind one descriptor;
//! what is left is the loop of fifteen lines in that module's docs.
//!
//! The machine decides, the driver frames; an adapter reads, writes, sleeps and carries out. To be
//! correct it keeps these rules:
//!
//! 1. *What has arrived comes before the time* (T5). Tick last, with an instant from before the reads:
//!    else a peer is declared dead whose heartbeat is here. But tick: a flood of bytes stops no timer.
//! 2. *A failed write is no close* (C3). Drop what is unsent, `sent(peer, usize::MAX)`, and read on: the
//!    verdict may have arrived before the peer went away.
//! 3. *Actions are carried out in order, and a [`ConnId`] is free only behind its Close.* Else the Close
//!    of the old connection hits the new one.
//! 4. *Each effect completes once* (R8), however late, and a hook that panics has failed. Effects and
//!    hooks may block, so none runs on this loop: connections live on meanwhile (T5).
//! 5. *[`Ended::Crash`] aborts the process, and no drop releases the lock* (R7): the data may be open,
//!    and only the end of the process proves that nobody writes. [`DaemonEffects`] keeps the second half.
//! 6. *A connection is introduced before its bytes* (R12): who the peer is decides whether it is heard.
//! 7. *Control connections are accepted only while the machine answers* (C6): else a supervisor takes a
//!    process for the incumbent that is not. After an error the listener is left alone for
//!    [`ACCEPT_PAUSE`], because the connection that could not be taken keeps it readable.
//!
//! The toy keeps a number in the file `count`. Each connection is a line from the client that makes it
//! one more; once that is durable it is answered with `COUNT PID`. The line `stop` stops the daemon
//! instead.
//!
//! Settings: `POLL_CONTROL`, the path of its control socket; `POLL_DATA`, its data directory, which must
//! exist; `POLL_LISTEN`, the address to listen at where no supervisor passes a listener named `tcp`. For
//! trying failures: with `POLL_FAIL_OPEN` set it fails to open its data.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::mem;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use handoff_core::daemon::{
    Command, Config, ConnId, Daemon, DrainReport, Effect, Ended, Event, Hook, Input, Outcome,
    Readiness, SealFailure, SealReport,
};
use handoff_core::driver::{Action, ActionOf, Driver};
use handoff_core::{Instant, Machine};
use handoff_unix::Clock;
use handoff_unix::accept::Acceptor;
use handoff_unix::control::{ACCEPT_PAUSE, ControlPath, ControlSocket};
use handoff_unix::effects::{DaemonEffects, Job};
use handoff_unix::inherit::{Inherited, Role};
use handoff_unix::poll;
use handoff_unix::probe::Users;
use handoff_unix::stream::ControlStream;
use handoff_unix::wake::Waker;
use rustix::event::{PollFd, PollFlags};

type Failure = Box<dyn Error + Send + Sync>;

// ---- The adapter begins here -------------------------------------------------------------------

/// A daemon's machine with its sockets and its clock.
pub struct Adapter {
    driver: Driver<Daemon>,
    effects: DaemonEffects,
    clock: Clock,
    connections: BTreeMap<ConnId, ControlStream>,
    actions: Vec<ActionOf<Daemon>>,
    post: Post,
    inputs: Receiver<Input>,
    /// Until when the control listener is left alone.
    paused: Option<Instant>,
}

impl Adapter {
    /// Takes what a supervisor passed on for the protocol; the listeners are the program's to take.
    pub fn new(config: Config, effects: DaemonEffects, from: &mut Inherited) -> io::Result<Self> {
        let machine = match from.role() {
            Role::Cold => Daemon::cold(config),
            Role::Successor => Daemon::successor(config, from.hello_budget().is_some()),
        };
        let (sender, inputs) = channel();
        let mut adapter = Self {
            driver: Driver::new(machine),
            effects,
            clock: Clock::start(),
            connections: BTreeMap::new(),
            actions: Vec::new(),
            post: Post { sender, waker: Waker::new()? },
            inputs,
            paused: None,
        };
        if let Some(stream) = from.take_control() {
            adapter.add(ConnId::SUPERVISOR, stream)?;
        }
        Ok(adapter)
    }

    /// What reaches it.
    pub fn post(&self) -> Post {
        self.post.clone()
    }

    /// Speaks the protocol until this process has no further part to play. After an error it cannot be
    /// spoken any more: exit, so that the lock goes and another can serve.
    pub fn run(mut self, mut program: impl Program) -> io::Result<Ended> {
        let jobs = self.post.worker(|job: Job<Outcome>| job())?;
        let hooks =
            self.post.worker(move |(hook, off): (_, Off)| call(&mut program, hook, &off))?;
        let mut off = Off::default();
        loop {
            for action in mem::take(&mut self.actions) {
                match action {
                    // A worker takes work for as long as its sender is there.
                    Action::Do(Effect::Os(effect)) => {
                        let _ = jobs.send(self.effects.job(effect));
                    }
                    Action::Do(Effect::Hook(hook)) => {
                        off = Off::default();
                        let _ = hooks.send((hook, off.clone()));
                    }
                    Action::Cancel => off.store(true, Ordering::Release),
                    Action::Close { peer, unsent } => {
                        let stream = self.connections.remove(&peer);
                        let _ = stream.map(|stream| stream.write(&unsent));
                    }
                    Action::Event(event) => {
                        log(format_args!("{}: {event}", self.driver.machine().state_name()));
                        match event {
                            Event::Ended(Ended::Crash(_)) => process::abort(),
                            Event::Ended(ended) => return Ok(ended),
                            _ => {}
                        }
                    }
                }
            }
            self.flush();
            self.wait()?;
            self.take_in();
        }
    }

    fn add(&mut self, conn: ConnId, stream: UnixStream) -> io::Result<()> {
        let mut stream = ControlStream::connected(stream)?;
        // The kernel knows who made a connection, so it can be introduced at once.
        let cred = stream.introduction().ok_or(io::ErrorKind::PermissionDenied)?;
        self.connections.insert(conn, stream);
        self.driver.opened(self.clock.now(), conn, cred, &mut self.actions);
        Ok(())
    }

    fn flush(&mut self) {
        for (conn, stream) in &self.connections {
            while !self.driver.unsent(*conn).is_empty() {
                match stream.write(self.driver.unsent(*conn)) {
                    Ok(count) => self.driver.sent(*conn, count),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => self.driver.sent(*conn, usize::MAX),
                }
            }
        }
    }

    /// Sleeps until there may be something to take in. What it was is not asked: everything is
    /// non-blocking and is tried.
    fn wait(&self) -> io::Result<usize> {
        let listener = self.listener();
        let mut fds = vec![PollFd::new(&self.post.waker, PollFlags::IN)];
        fds.extend(listener.iter().map(|socket| PollFd::new(socket.listener(), PollFlags::IN)));
        fds.extend(self.connections.iter().map(|(conn, stream)| {
            let full = !self.driver.unsent(*conn).is_empty();
            PollFd::new(stream, if full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN })
        }));
        let deadline = self.driver.deadline().map(|deadline| deadline.at);
        let due = deadline.into_iter().chain(self.paused).min();
        poll::wait(&mut fds, due.map(|due| self.clock.until(due)))
    }

    fn take_in(&mut self) {
        let looked = self.clock.now();
        self.paused = self.paused.filter(|over| *over > looked);
        if let Err(error) = self.accept() {
            log(format_args!("no control connection can be taken for now: {error}"));
            self.paused = Some(looked + ACCEPT_PAUSE);
        }
        let Self { driver, clock, connections, actions, .. } = self;
        let mut buffer = [0; 16 << 10];
        connections.retain(|conn, stream| {
            // More than a socket holds, so what had arrived is read; a flood is left for the next turn.
            for _ in 0..16 {
                match stream.read(&mut buffer) {
                    Ok(count) if count > 0 => {
                        driver.received(clock.now(), *conn, &buffer[..count], actions);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                    _ => {
                        driver.closed(clock.now(), *conn, actions);
                        return false;
                    }
                }
            }
            true
        });
        self.post.waker.drain();
        while let Ok(input) = self.inputs.try_recv() {
            self.driver.handle(self.clock.now(), input, &mut self.actions);
        }
        if self.driver.deadline().is_some_and(|deadline| deadline.at <= looked) {
            self.driver.tick(looked, &mut self.actions);
        }
    }

    /// The control listener, while this process answers on it.
    fn listener(&self) -> Option<Arc<ControlSocket>> {
        let answers = self.driver.machine().answers() && self.paused.is_none();
        self.effects.socket().filter(|_| answers)
    }

    /// Takes one connection, if one waits. To be called while nothing is to be carried out: no Close is
    /// under way then, and a name that nobody has is free.
    fn accept(&mut self) -> io::Result<()> {
        let Some(listener) = self.listener() else { return Ok(()) };
        let Some(stream) = listener.accept()? else { return Ok(()) };
        let free = (1..).map(ConnId).find(|conn| !self.connections.contains_key(conn));
        free.map_or(Ok(()), |conn| self.add(conn, stream))
    }
}

// ---- Its threads, in place of which a runtime has its own, -------------------------------------

/// What only the program can do: its hooks, one at a time, on a thread of their own.
pub trait Program: Send + 'static {
    /// The lock is held: open the data and accept. After an error nothing is open and nobody accepts.
    fn open(&mut self, off: &Off) -> Result<Readiness, Failure>;
    /// Stop accepting, finish what is in flight.
    fn drain(&mut self, grace: Duration, off: &Off) -> Result<DrainReport, Failure>;
    /// Close the data, durably. From its start on no write is acknowledged.
    fn seal(&mut self, off: &Off) -> Result<SealReport, Failure>;
    /// The handoff came to nothing: open the data if it is closed, accept again.
    fn resume(&mut self) -> Result<(), Failure>;
}

/// Set once the handoff of a hook has ended: the hook is to return (R7).
pub type Off = Arc<AtomicBool>;

fn call(program: &mut impl Program, hook: Hook, off: &Off) -> Outcome {
    let failure = |error| SealFailure { error, ..SealFailure::default() };
    match hook {
        Hook::Open => Outcome::Opened(guarded(|| program.open(off))),
        Hook::Drain { grace } => Outcome::Drained(guarded(|| program.drain(grace, off))),
        Hook::Seal => Outcome::Sealed(guarded(|| program.seal(off)).map_err(failure)),
        Hook::Resume => Outcome::Resumed(guarded(|| program.resume())),
    }
}

fn guarded<T>(hook: impl FnOnce() -> Result<T, Failure>) -> Result<T, String> {
    let result = catch_unwind(AssertUnwindSafe(hook));
    result.unwrap_or_else(|_| Err("it panicked".into())).map_err(|error| error.to_string())
}

/// Reaches the adapter, from any thread: with [`Command::Begin`] once all is done that needs no data
/// (C3), with [`Command::Stop`], with reports of a seal's progress.
#[derive(Clone)]
pub struct Post {
    sender: Sender<Input>,
    waker: Waker,
}

impl Post {
    /// Asks the machine for something. Nothing happens once it has ended.
    pub fn command(&self, command: Command) {
        self.send(Input::Command(command));
    }

    fn send(&self, input: Input) {
        if self.sender.send(input).is_ok() {
            self.waker.wake();
        }
    }

    /// A thread that carries out what it is sent, in order, and reports each. It is there before there
    /// is work, so that no effect is lost for want of a thread.
    fn worker<T: Send + 'static>(
        &self,
        mut work: impl FnMut(T) -> Outcome + Send + 'static,
    ) -> io::Result<Sender<T>> {
        let ((sender, items), post) = (channel(), self.clone());
        let report = move || items.into_iter().for_each(|item| post.send(Input::Done(work(item))));
        thread::Builder::new().name("handoff-work".into()).spawn(report)?;
        Ok(sender)
    }
}

// ---- how a program uses it, --------------------------------------------------------------------

/// Runs the daemon until it is replaced or told to stop.
pub fn main() {
    process::exit(match serve() {
        Ok(ended) => {
            log(&ended);
            ended.exit_code().into()
        }
        Err(error) => {
            log(error);
            1
        }
    })
}

fn serve() -> Result<Ended, Failure> {
    let setting = |name| env::var(name).map_err(|error| format!("{name}: {error}"));
    let (control, data_dir) = (setting("POLL_CONTROL")?, PathBuf::from(setting("POLL_DATA")?));
    let control = ControlPath::new(control.into())?;
    control.check_directory()?;
    let mut inherited = Inherited::from_env()?;
    let listener = match (inherited.take_tcp("tcp")?, inherited.role()) {
        (Some(listener), _) => listener,
        (None, Role::Cold) => TcpListener::bind(setting("POLL_LISTEN")?)?,
        // Bound anew it would strand the clients of the old one (R10).
        (None, Role::Successor) => return Err("the supervisor passed on no listener `tcp`".into()),
    };
    let config = Config::new(process::id(), rustix::process::geteuid().as_raw());
    let effects = DaemonEffects::new(control, data_dir.clone(), Users(config.allowed_uids.clone()));
    let adapter = Adapter::new(config, effects, &mut inherited)?;
    // What nobody claimed is closed (R13).
    drop(inherited);
    let post = adapter.post();
    let toy = Toy::new(listener, data_dir, post.clone())?;
    // Slow work that needs no data belongs on a thread of its own, which says this at its end.
    post.command(Command::Begin);
    Ok(adapter.run(toy)?)
}

impl Program for Toy {
    fn open(&mut self, _: &Off) -> Result<Readiness, Failure> {
        if env::var_os("POLL_FAIL_OPEN").is_some() {
            return Err("failing, as POLL_FAIL_OPEN says".into());
        }
        let address = self.server.acceptor.listener().local_addr()?;
        let count = self.serve()?;
        log(format_args!("accepting on {address}"));
        Ok(Readiness {
            listening_on: vec![address.to_string()],
            healthz_ok: true,
            revisions: vec![count],
        })
    }

    fn drain(&mut self, grace: Duration, off: &Off) -> Result<DrainReport, Failure> {
        let (stopper, clock) = (self.server.acceptor.stopper(), Clock::start());
        stopper.stop();
        // An answer is part of the admission, so who has settled has answered.
        while !stopper.settle(Duration::from_millis(10)) {
            if off.load(Ordering::Acquire) {
                return Err("the handoff is off".into());
            }
            if clock.now().since_origin() > grace {
                return Err("a client dawdles".into());
            }
        }
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&mut self, _: &Off) -> Result<SealReport, Failure> {
        let count = self.server.count().take().ok_or("the data is closed")?;
        Ok(SealReport { revisions: vec![count.value], ..SealReport::default() })
    }

    fn resume(&mut self) -> Result<(), Failure> {
        let count = self.serve()?;
        log(format_args!("accepting again from {count} on"));
        Ok(())
    }
}

// ---- and the toy itself. -----------------------------------------------------------------------

/// How long a client may dawdle with its line, and then with its answer.
const PATIENCE: Duration = Duration::from_secs(5);

struct Toy {
    server: Arc<Server>,
    data_dir: PathBuf,
    /// The thread that accepts.
    thread: Option<JoinHandle<()>>,
}

struct Server {
    acceptor: Acceptor,
    /// None while it is closed.
    count: Mutex<Option<Count>>,
    post: Post,
}

impl Toy {
    fn new(listener: TcpListener, data_dir: PathBuf, post: Post) -> io::Result<Self> {
        let (acceptor, count) = (Acceptor::new(listener)?, Mutex::new(None));
        Ok(Self { server: Arc::new(Server { acceptor, count, post }), data_dir, thread: None })
    }

    /// Opens the data, if it is closed, and accepts; gives the count.
    fn serve(&mut self) -> Result<u64, Failure> {
        if let Some(thread) = self.thread.take() {
            // The acceptor is stopped, but the last client may not be served yet.
            let _ = thread.join();
        }
        let open = match self.server.count().take() {
            Some(open) => open,
            None => Count::open(&self.data_dir)?,
        };
        let value = open.value;
        *self.server.count() = Some(open);
        self.server.acceptor.stopper().resume();
        let server = Arc::clone(&self.server);
        let thread = thread::Builder::new().name("accept".into());
        self.thread = Some(thread.spawn(move || server.accept())?);
        Ok(value)
    }
}

impl Server {
    fn count(&self) -> MutexGuard<'_, Option<Count>> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(&self) {
        loop {
            match self.acceptor.accept_with(|stream, _| self.answer(stream)) {
                Ok(Some(Ok(()))) => {}
                Ok(Some(Err(error))) => log(format_args!("a client got no answer: {error}")),
                Ok(None) => return,
                Err(error) => return log(format_args!("cannot accept any more: {error}")),
            }
        }
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new((&stream).take(64)).read_line(&mut line)?;
        if line.trim() == "stop" {
            self.post.command(Command::Stop);
            return Ok(());
        }
        let closed = || io::Error::other("the data is closed");
        let count = self.count().as_mut().ok_or_else(closed)?.increment()?;
        stream.write_all(format!("{count} {}\n", process::id()).as_bytes())
    }
}

/// A number in a file.
struct Count {
    dir: PathBuf,
    value: u64,
}

impl Count {
    fn open(dir: &Path) -> Result<Self, Failure> {
        let value = match fs::read_to_string(dir.join("count")) {
            Ok(text) => text.trim().parse().map_err(|error| format!("{text:?}: {error}"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { dir: dir.to_owned(), value })
    }

    /// Returns once it is durable.
    fn increment(&mut self) -> io::Result<u64> {
        let (value, new) = (self.value + 1, self.dir.join("count.new"));
        let mut file = File::create(&new)?;
        writeln!(file, "{value}")?;
        file.sync_all()?;
        fs::rename(new, self.dir.join("count"))?;
        File::open(&self.dir)?.sync_all()?;
        self.value = value;
        Ok(value)
    }
}

/// One write for each line, and no panic when nobody reads them.
fn log(message: impl Display) {
    let _ = io::stderr().write_all(format!("poll[{}]: {message}\n", process::id()).as_bytes());
}

//! The program that a daemon of the suite is: its data, and what goes wrong with it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use handoff_core::daemon::{DrainReport, Readiness, SealReport};
use handoff_core::wire::MAX_SHARDS;
use handoff_unix::accept::{Acceptor, Stopper};
use handoff_unix::host::{Config, HookError};
use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use super::wait_until;

/// How long a hook takes that is slow: longer than a silence may last before it counts as death (T2).
const SLOW: Duration = Duration::from_secs(6);

/// How many shards there are where they are many: as many as a frame can list (W2).
const MANY: usize = MAX_SHARDS;

/// What goes wrong with a daemon, or takes its time, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// It exits before it has said anything.
    ExitsAtOnce,
    /// It warms up until [`go`](super::Bench::go).
    WarmsUp,
    /// It exits when it has been told to begin.
    DiesAfterBegin,
    /// It opens its data only after [`go`](super::Bench::go).
    WaitsToOpen,
    /// It takes longer to open than a silence may last.
    OpensSlowly,
    /// It cannot open its data.
    FailsToOpen,
    /// It opens nothing until its handoff has ended.
    NeverReady,
    /// It says that it is not healthy.
    Unhealthy,
    /// It says that it has less than was sealed.
    Regressed,
    /// Its drain fails.
    DrainFails,
    /// Its drain panics.
    DrainPanics,
    /// Its drain takes until its handoff has ended.
    DrainHangs,
    /// Its drain takes longer than a silence may last.
    DrainsSlowly,
    /// Its seal fails.
    SealFails,
    /// Its seal panics.
    SealPanics,
    /// Its seal takes until its handoff has ended.
    SealHangs,
    /// Its seal takes longer than a silence may last.
    SealsSlowly,
    /// It has as many shards as fit a frame.
    ManyShards,
}

/// A log of writes, one a line, and the hooks around it. Clones are the same.
///
/// An [`Adapter`](super::Adapter) calls it where a daemon of its own would call its program. All of it
/// may block, as a program may.
#[derive(Clone, Debug)]
pub struct Program(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    fault: Option<Fault>,
    /// The fault has happened.
    over: AtomicBool,
    /// None while it is closed. The count is the revision.
    log: Mutex<Option<(File, u64)>>,
}

impl Program {
    pub(crate) fn new(dir: PathBuf, fault: Option<Fault>) -> Self {
        let (over, log) = (AtomicBool::new(false), Mutex::default());
        Self(Arc::new(Inner { dir, fault, over, log }))
    }

    /// Where it is to be reached by supervisors.
    #[must_use]
    pub fn control_path(&self) -> PathBuf {
        control_path(&self.0.dir)
    }

    /// The directory whose lock it needs.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        data_dir(&self.0.dir)
    }

    /// Both, for an adapter on a host of `handoff-unix`.
    #[must_use]
    pub fn config(&self) -> Config {
        Config::new(self.control_path(), self.data_dir()).build_id("suite")
    }

    /// Whether this goes wrong: true once.
    fn goes_wrong(&self, fault: Fault) -> bool {
        self.0.fault == Some(fault) && !self.0.over.swap(true, Ordering::Relaxed)
    }

    /// What it does before it begins, when it has its listener (C3). May take long.
    pub fn warm_up(&self) {
        if self.goes_wrong(Fault::WarmsUp) {
            self.waits(|| self.0.dir.join(GO).exists());
        }
    }

    /// Waits until the suite lets it go on, or its handoff has ended; and says that it does.
    fn waits(&self, over: impl Fn() -> bool) {
        let _ = File::create(self.0.dir.join(WAITS));
        wait_until("a daemon that waits may go on", over);
    }

    /// Calls this when the process is told to end by SIGTERM: where an adapter stops its daemon.
    ///
    /// # Errors
    ///
    /// The signal cannot be waited for.
    pub fn on_stop(&self, stop: impl Fn() + Send + 'static) -> io::Result<()> {
        let mut signals = None;
        // Clients are answered by now: that there is no descriptor for it must not end the process.
        wait_until("signals can be waited for", || {
            signals = Signals::new([SIGTERM]).ok();
            signals.is_some()
        });
        let waits = move || signals.iter_mut().for_each(|it| it.forever().for_each(|_| stop()));
        thread::Builder::new().name("signals".into()).spawn(waits)?;
        Ok(())
    }

    /// The lock is held: opens the data. Returns early when `off` says that the handoff has ended.
    ///
    /// # Errors
    ///
    /// It cannot be opened, and is not.
    pub fn open(&self, off: impl Fn() -> bool) -> Result<Readiness, HookError> {
        if self.goes_wrong(Fault::DiesAfterBegin) {
            std::process::exit(4);
        }
        if self.goes_wrong(Fault::NeverReady) {
            self.waits(&off);
        }
        if self.goes_wrong(Fault::WaitsToOpen) {
            self.waits(|| self.0.dir.join(GO).exists());
        }
        if self.goes_wrong(Fault::OpensSlowly) {
            thread::sleep(SLOW);
        }
        if self.goes_wrong(Fault::FailsToOpen) {
            return Err("injected".into());
        }
        let revision = self.reopen()?;
        let regressed = self.goes_wrong(Fault::Regressed);
        Ok(Readiness {
            listening_on: vec![LISTENER.into()],
            healthz_ok: !self.goes_wrong(Fault::Unhealthy),
            revisions: self.revisions(revision.saturating_sub(regressed.into())),
        })
    }

    fn revisions(&self, revision: u64) -> Vec<u64> {
        let many = if self.0.fault == Some(Fault::ManyShards) { MANY } else { 1 };
        // The longest there are, but for the first.
        std::iter::once(revision).chain(std::iter::repeat_n(u64::MAX, many - 1)).collect()
    }

    /// A client's line: what it is answered, once that is durable. Nothing while the data is closed.
    #[must_use]
    pub fn answer(&self, line: &str) -> Option<String> {
        let mut log = self.log();
        let (file, revision) = log.as_mut()?;
        // In one piece: who is killed between two would leave half a line for the next to go on with.
        let line = format!("{}\n", line.trim());
        file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).ok()?;
        *revision += 1;
        Some(format!("{revision} {}\n", std::process::id()))
    }

    /// Accepts on threads, and answers each connection before it accepts the next, so that who has
    /// settled has answered everybody: for an adapter that has nothing of its own for that.
    ///
    /// # Errors
    ///
    /// The listener cannot be used.
    pub fn accept_on_threads(&self, listener: TcpListener) -> io::Result<Stopper> {
        let (acceptor, program) = (Acceptor::new(listener)?, self.clone());
        let stopper = acceptor.stopper();
        let answer = move |mut stream: TcpStream| -> io::Result<()> {
            let mut line = String::new();
            BufReader::new(&mut stream).read_line(&mut line)?;
            stream.write_all(program.answer(&line).unwrap_or_default().as_bytes())
        };
        thread::Builder::new().name("accept".into()).spawn(move || {
            loop {
                if let Ok(None) = acceptor.accept_with(|stream, _| answer(stream)) {
                    // It is stopped.
                    thread::park_timeout(Duration::from_millis(1));
                }
            }
        })?;
        Ok(stopper)
    }

    /// Nobody is accepted any more, and everybody who was has been answered.
    ///
    /// # Errors
    ///
    /// The drain has failed.
    ///
    /// # Panics
    ///
    /// Where that is its fault.
    pub fn drain(&self, off: impl Fn() -> bool) -> Result<DrainReport, HookError> {
        self.hook(Fault::DrainFails, Fault::DrainPanics)?;
        self.takes_long(Fault::DrainHangs, Fault::DrainsSlowly, off);
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    /// Closes the data, durably. `progress` is the report of a seal's progress (C4).
    ///
    /// # Errors
    ///
    /// The seal has failed. What is closed is closed.
    ///
    /// # Panics
    ///
    /// Where that is its fault.
    pub fn seal(
        &self,
        off: impl Fn() -> bool,
        progress: impl Fn(u32, u32, u64),
    ) -> Result<SealReport, HookError> {
        self.hook(Fault::SealFails, Fault::SealPanics)?;
        self.takes_long(Fault::SealHangs, Fault::SealsSlowly, off);
        let (file, revision) = self.log().take().ok_or("sealed twice")?;
        file.sync_all()?;
        progress(1, 1, revision);
        Ok(SealReport { revisions: self.revisions(revision), fingerprint: [0; 32] })
    }

    /// The handoff is off: opens the data if it is closed. The adapter accepts again after it.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn resume(&self) -> Result<(), HookError> {
        self.reopen().map(drop)
    }

    fn hook(&self, fails: Fault, panics: Fault) -> Result<(), HookError> {
        assert!(!self.goes_wrong(panics), "injected");
        if self.goes_wrong(fails) { Err("injected".into()) } else { Ok(()) }
    }

    fn takes_long(&self, hangs: Fault, slow: Fault, off: impl Fn() -> bool) {
        if self.goes_wrong(hangs) {
            self.waits(off);
        }
        if self.goes_wrong(slow) {
            thread::sleep(SLOW);
        }
    }

    fn log(&self) -> MutexGuard<'_, Option<(File, u64)>> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reopen(&self) -> Result<u64, HookError> {
        let mut log = self.log();
        if let Some((_, revision)) = &*log {
            return Ok(*revision);
        }
        let path = writes(&self.0.dir);
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let revision = std::fs::read_to_string(&path)?.lines().count() as u64;
        *log = Some((file, revision));
        Ok(revision)
    }
}

/// What the suite's listener is called.
pub const LISTENER: &str = "tcp";

/// The file that a daemon makes when it begins to wait.
pub(super) const WAITS: &str = "waits";

/// The file that lets a daemon go on.
pub(super) const GO: &str = "go";

/// What a daemon's directory holds: its data, its control socket, and the supervisor's journal, each
/// in a directory of its own, because they may be on different file systems.
pub(crate) const DIRECTORIES: [&str; 3] = ["data", "run", "state"];

pub(crate) fn data_dir(dir: &Path) -> PathBuf {
    dir.join("data")
}

pub(crate) fn control_path(dir: &Path) -> PathBuf {
    dir.join("run").join("control")
}

pub(crate) fn journal(dir: &Path) -> PathBuf {
    dir.join("state").join("journal")
}

/// The log of writes.
pub(crate) fn writes(dir: &Path) -> PathBuf {
    data_dir(dir).join("writes.log")
}

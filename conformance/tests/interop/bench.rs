//! A supervisor, a daemon that serves, and a client that never stops writing to it.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use handoff_blocking::Launch;
use handoff_unix::control::ControlPath;
use handoff_unix::lock::{LockState, lock_state};
use handoff_unix::poll;
use handoff_unix::probe::{Users, probe};
use handoff_unix::spawn::become_subreaper;
use rustix::fs::inotify;

use crate::boss::{Boss, BossKind};

/// How long anything may take on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// For what hangs: long enough for everything before that, on the slowest machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);

/// What may stand beside the data in the end. The last is of their journal, when they are killed while
/// they write it.
const KNOWN: [&str; 9] =
    ["boss.sock", "c.sock", "data", "go", "journal", "pids", "said", "warming", "journal.bin.tmp"];

/// Whose daemon it is: the other implementation's, or ours on one of the adapters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Theirs,
    Blocking,
    Tokio,
    Smol,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Theirs, Self::Blocking, Self::Tokio, Self::Smol];

    pub(crate) fn name(self) -> String {
        format!("{self:?}")
    }

    pub(crate) fn of(name: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.name() == name).expect("a kind of daemon")
    }
}

/// Waits for what has no event.
pub(crate) fn wait_until(what: &str, mut true_by_now: impl FnMut() -> bool) {
    let start = Instant::now();
    while !true_by_now() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// This same binary, as one of its ignored tests.
pub(crate) fn launch_as(test: &str, dir: &Path) -> Launch {
    let null: OwnedFd = OpenOptions::new().write(true).open("/dev/null").unwrap().into();
    let said = OpenOptions::new().create(true).append(true).open(dir.join("said")).unwrap();
    Launch::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env("TEST_DIR", dir)
        .stdout(Arc::new(null))
        .stderr(Arc::new(said.into()))
}

/// A daemon, and what goes wrong with it.
pub(crate) fn launch(kind: Kind, dir: &Path, fault: &str) -> Launch {
    launch_as("daemon", dir).env("TEST_KIND", kind.name()).env("TEST_FAULT", fault)
}

/// The moment a process was started, in ticks since boot: with its pid, its identity. `None` when
/// there is no such process, not even a zombie.
fn started_at(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19).map(str::to_string)
}

/// A process of the bench says that it exists.
pub(crate) fn sign_in(dir: &Path) {
    let pid = std::process::id();
    let line = format!("{pid} {}\n", started_at(pid).unwrap());
    let mut file = OpenOptions::new().create(true).append(true).open(dir.join("pids")).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// Writes; by whom it was acknowledged.
fn write(address: SocketAddr, value: &str) -> io::Result<u32> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{value}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let pid = answer.trim().rsplit(' ').next().and_then(|pid| pid.parse().ok());
    pid.ok_or_else(|| io::Error::other(format!("{value} was answered {answer:?}")))
}

/// What a client comes back with: what was acknowledged, and what failed.
type Written = (Vec<String>, Vec<io::Error>);

/// Writes, one connection each, until it is stopped.
struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

impl Client {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut acknowledged, mut failed) = Written::default();
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let value = format!("background-{number}");
                match write(address, &value) {
                    Ok(_) => acknowledged.push(value),
                    Err(error) => failed.push(error),
                }
                // Others need the processor too.
                std::thread::park_timeout(Duration::from_millis(5));
            }
            (acknowledged, failed)
        });
        Self { stop, thread }
    }

    fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Writes when the test says so. Clones are the same.
#[derive(Clone)]
pub(crate) struct Writer {
    address: SocketAddr,
    acknowledged: Arc<Mutex<Vec<String>>>,
}

impl Writer {
    /// A write that must be acknowledged; by whom.
    pub(crate) fn write(&self) -> u32 {
        let mut acknowledged = self.acknowledged.lock().unwrap();
        let value = format!("foreground-{}", acknowledged.len());
        let pid = write(self.address, &value).unwrap();
        acknowledged.push(value);
        pid
    }
}

/// A supervisor, a daemon in a process, and a client.
pub(crate) struct Bench {
    boss: Boss,
    dir: tempfile::TempDir,
    pub(crate) listener: TcpListener,
    client: Option<Client>,
    pub(crate) writer: Writer,
    /// Readable when something was renamed in the directory.
    renames: OwnedFd,
}

impl Bench {
    /// A daemon that serves under a supervisor; its pid.
    pub(crate) fn start(boss: BossKind, first: Kind, fault: &str) -> (Self, u32) {
        // What a supervisor that dies leaves behind is to be reaped here.
        become_subreaper().unwrap();
        let dir = tempfile::Builder::new().prefix("interop test ").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let renames = inotify::init(flags).unwrap();
        inotify::add_watch(&renames, dir.path(), inotify::WatchFlags::MOVED_TO).unwrap();
        let boss = Boss::new(boss, dir.path(), &listener);
        let address = listener.local_addr().unwrap();
        let writer = Writer { address, acknowledged: Arc::default() };
        let mut bench = Self { boss, dir, listener, client: None, writer, renames };
        let pid = bench.boss.start(&launch(first, bench.dir.path(), fault), first, fault);
        bench.serves(pid);
        bench.client = Some(Client::start(address));
        (bench, pid)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Hands off: to whom, or why it came to nothing.
    pub(crate) fn swap(&mut self, next: Kind, fault: &str) -> Result<u32, String> {
        self.swap_within(PATIENCE, next, fault)
    }

    pub(crate) fn swap_within(
        &mut self,
        deadline: Duration,
        next: Kind,
        fault: &str,
    ) -> Result<u32, String> {
        self.boss.handoff(self.dir.path(), deadline, next, fault)
    }

    /// Hands off, and that is committed: to whom.
    pub(crate) fn commits_to(&mut self, next: Kind) -> u32 {
        let pid = self.swap(next, "").unwrap_or_else(|why| panic!("to {next:?}: {why}"));
        self.serves(pid);
        pid
    }

    /// A write that must be acknowledged; by whom.
    pub(crate) fn write(&self) -> u32 {
        self.writer.write()
    }

    /// I5: this process serves, the control path leads to it, it holds the lock, and of the other
    /// daemons nothing is left, not even a zombie.
    #[track_caller]
    pub(crate) fn serves(&mut self, pid: u32) {
        assert_eq!(self.write(), pid, "who serves");
        self.leads_to(pid);
        self.is_alone(pid);
    }

    /// This process serves, holds the lock, and of the other daemons nothing is left.
    #[track_caller]
    pub(crate) fn is_alone(&mut self, pid: u32) {
        assert_eq!(self.write(), pid, "who serves");
        assert_eq!(lock_state(&self.file("data")), LockState::Held { pid: Some(pid) });
        self.only(&[pid]);
    }

    /// Waits until the control path leads to this process, which is when it is renamed.
    #[track_caller]
    fn leads_to(&self, pid: u32) {
        let control = ControlPath::new(self.file("c.sock")).unwrap();
        let start = Instant::now();
        loop {
            let found = probe(&control, &Users::default());
            match &found {
                Ok(found) if found.cred.pid == pid => return,
                // It listens and is slow.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                _ => {
                    poll::readable(&self.renames, Some(Duration::from_secs(1))).unwrap();
                    let _ = rustix::io::read(&self.renames, &mut [0; 4096]);
                }
            }
            assert!(start.elapsed() < PATIENCE, "the path does not lead to {pid}: {found:?}");
        }
    }

    /// Waits until of all processes of this bench only these are left, and the supervisor's.
    #[track_caller]
    fn only(&mut self, pids: &[u32]) {
        let start = Instant::now();
        loop {
            self.boss.reap();
            let known = std::fs::read_to_string(self.file("pids")).unwrap_or_default();
            let there = known.lines().filter_map(|line| {
                let (pid, started) = line.split_once(' ')?;
                let pid = pid.parse().ok()?;
                (started_at(pid).as_deref() == Some(started)).then_some(pid)
            });
            let others = there.filter(|pid| !pids.contains(pid) && Some(*pid) != self.boss.pid());
            let others: Vec<u32> = others.collect();
            if others.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{others:?} are left beside {pids:?}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Has the supervisor's process hand off, without waiting for it.
    pub(crate) fn hand_off_meanwhile(&self, next: Kind, fault: &str) {
        self.boss.hand_off_meanwhile(next, fault);
    }

    /// Ends the supervisor's process, and nobody else.
    pub(crate) fn kill_supervisor(&self) {
        self.boss.kill();
    }

    /// A supervisor of ours, in this process, instead of one of theirs that is dead. It starts nobody;
    /// who serves. What it cannot read of the other's journal it sets aside (R9).
    pub(crate) fn adopt(&mut self) -> u32 {
        let serving = self.boss.succeed(self.dir.path(), &self.listener);
        std::fs::remove_file(self.file("journal.bad-1")).expect("their journal, set aside");
        serving
    }

    /// I3, I4, I6: no request has failed, each acknowledged write is there once, and nothing else is
    /// left.
    #[track_caller]
    pub(crate) fn ends_well(mut self) {
        let (mut acknowledged, failed) = self.client.take().unwrap().stop();
        assert!(failed.is_empty(), "requests failed: {failed:?}");
        assert!(!acknowledged.is_empty(), "the client did not get to write");
        acknowledged.append(&mut self.writer.acknowledged.lock().unwrap());
        acknowledged.sort();
        let log = std::fs::read_to_string(self.file("data/writes.log")).unwrap();
        let mut log: Vec<_> = log.lines().collect();
        log.sort_unstable();
        assert_eq!(log, acknowledged);
        self.boss.shutdown(PATIENCE);
        self.only(&[]);
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut left: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        // Theirs leaves its staging name behind when it is ended before it has renamed it.
        left.retain(|name| !KNOWN.contains(&name.as_str()) && !name.starts_with(".ho-"));
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.file("said")).unwrap_or_default());
        }
        self.boss.shutdown(Duration::from_secs(1));
        // Without a daemon the client's writes fail soon, if it is still there.
        if let Some(client) = self.client.take() {
            client.stop.store(true, Ordering::Relaxed);
        }
    }
}

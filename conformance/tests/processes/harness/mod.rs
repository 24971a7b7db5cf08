//! A daemon to swap, and the bench that swaps it, on any runtime: real processes, real sockets, a real
//! data directory. The daemon keeps a log of writes and answers `revision pid` to each.

#![allow(dead_code, reason = "not every test binary uses all of it")]

mod daemon;
mod supervisor;
mod tasks;
mod threads;

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handoff_blocking::{Event, Handoff, Launch, Reason, Report, SupervisorConfig, Verdict};

pub(crate) use daemon::daemon;
pub(crate) use supervisor::Supervisor;

/// How long anything may take on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What programs run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Runtime {
    /// Threads.
    Blocking,
    /// tokio on one thread.
    Tokio,
    /// tokio on several.
    TokioThreads,
    /// smol, in a `LocalExecutor`.
    Smol,
    /// handoff-smol in a program on async-std.
    AsyncStd,
}

impl Runtime {
    pub(crate) const ALL: [Self; 5] =
        [Self::Blocking, Self::Tokio, Self::TokioThreads, Self::Smol, Self::AsyncStd];

    fn name(self) -> String {
        format!("{self:?}")
    }

    /// The runtime that a process of a test was told to use.
    pub(crate) fn from_env() -> Self {
        let told = std::env::var("TEST_RUNTIME").unwrap();
        Self::ALL.into_iter().find(|runtime| runtime.name() == told).expect("a runtime")
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

/// Writes, one connection each, and remembers what was acknowledged.
pub(crate) struct Client {
    address: SocketAddr,
    acknowledged: Vec<String>,
}

impl Client {
    /// A write that must be acknowledged; by whom.
    pub(crate) fn write(&mut self) -> u32 {
        let value = format!("value-{}", self.acknowledged.len());
        let mut stream = TcpStream::connect(self.address).expect("the listener refuses nobody");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{value}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an accepted connection is served");
        let _ = stream.shutdown(Shutdown::Both);
        self.acknowledged.push(value);
        answer.trim().rsplit(' ').next().unwrap().parse().expect("an answer")
    }
}

/// A supervisor in the test, a daemon in a process, a client.
pub(crate) struct Bench {
    pub(crate) runtime: Runtime,
    pub(crate) supervisor: Supervisor,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) listener: TcpListener,
    pub(crate) client: Client,
}

impl Bench {
    /// A supervisor with a listener, and a daemon that serves. `fault` is the daemon's.
    pub(crate) fn start(runtime: Runtime, fault: &str) -> (Self, u32) {
        Self::start_on(runtime, fault, TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The same with this listener.
    pub(crate) fn start_on(runtime: Runtime, fault: &str, listener: TcpListener) -> (Self, u32) {
        let dir = tempfile::Builder::new().prefix("swap test ").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let client = Client { address: listener.local_addr().unwrap(), acknowledged: Vec::new() };
        let mut supervisor = Supervisor::new(runtime, config(dir.path())).unwrap();
        supervisor.listener("tcp", listener.try_clone().unwrap()).unwrap();
        let mut bench = Self { runtime, supervisor, dir, listener, client };
        let started = bench.supervisor.start(&bench.launch(fault)).unwrap();
        assert!(started.started);
        assert_eq!(bench.write(), started.pid);
        (bench, started.pid)
    }

    /// A daemon on the bench's runtime.
    pub(crate) fn launch(&self, fault: &str) -> Launch {
        launch(self.runtime, self.dir.path(), fault)
    }

    /// A write that must be acknowledged; by whom.
    pub(crate) fn write(&mut self) -> u32 {
        self.client.write()
    }

    pub(crate) fn swap(&mut self, fault: &str) -> Report {
        self.swap_as(Handoff::new(self.launch(fault)), |_| {})
    }

    pub(crate) fn swap_as(&mut self, handoff: Handoff, on: impl FnMut(&Event)) -> Report {
        self.supervisor.handoff(&handoff, on).unwrap()
    }

    /// I3, I6: everything acknowledged is there, once; the next handoff commits.
    pub(crate) fn ends_well(mut self) {
        self.write();
        let report = self.swap("");
        assert_eq!(report.verdict, Verdict::Committed, "{report}");
        assert_eq!(Some(self.write()), report.serving);
        let log = std::fs::read_to_string(self.dir.path().join("data/writes.log")).unwrap();
        assert_eq!(log.lines().collect::<Vec<_>>(), self.client.acknowledged);
        assert!(self.supervisor.shutdown(PATIENCE).unwrap().is_empty());
        let left: Vec<_> =
            self.files().into_iter().filter(|name| name.contains("staging")).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// What stands beside the data.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let mut files: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        files
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.supervisor.shutdown(Duration::from_secs(1));
        // The last entry of the journal may still be written, and get in the way once or twice.
        let _ = (0..100).any(|_| std::fs::remove_dir_all(self.dir.path()).is_ok());
    }
}

/// Why a handoff did not come to what was asked for.
pub(crate) fn reason(report: &Report) -> Option<Reason> {
    report.trouble.as_ref().map(|trouble| trouble.reason)
}

/// What a supervisor of the daemon in `dir` watches over.
pub(crate) fn config(dir: &Path) -> SupervisorConfig {
    SupervisorConfig::new(dir.join("c.sock"))
        .data_dir(dir.join("data"))
        .journal(dir.join("journal"))
}

/// This same binary, as the named ignored test.
pub(crate) fn launch_as(test: &str, runtime: Runtime, dir: &Path) -> Launch {
    Launch::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env("TEST_RUNTIME", runtime.name())
        .env("TEST_DIR", dir)
}

/// A daemon in `dir` with a fault.
pub(crate) fn launch(runtime: Runtime, dir: &Path, fault: &str) -> Launch {
    let null: Arc<OwnedFd> =
        Arc::new(OpenOptions::new().write(true).open("/dev/null").unwrap().into());
    launch_as("daemon", runtime, dir)
        .env("TEST_FAULT", fault)
        .stdout(Arc::clone(&null))
        .stderr(null)
}

//! A daemon to swap, and the bench that swaps it: real processes, real sockets, a real data directory.
//! The daemon keeps a log of writes and answers `revision pid` to each.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use handoff_blocking::{
    Acceptor, Config, Daemon, DrainContext, DrainReport, Handoff, HookError, Hooks, Launch,
    Readiness, Report, SealContext, SealReport, Stopper, Supervisor, SupervisorConfig, Verdict,
};
use handoff_core::supervisor::Event;

struct Store(Mutex<Option<(File, u64)>>);

impl Store {
    fn open(dir: &Path) -> Self {
        let path = dir.join("writes.log");
        let written = std::fs::read_to_string(&path).unwrap_or_default().lines().count();
        let file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        Self(Mutex::new(Some((file, written as u64))))
    }

    fn write(&self, value: &str) -> Option<u64> {
        let mut store = self.0.lock().unwrap();
        let (file, revision) = store.as_mut()?;
        writeln!(file, "{value}").unwrap();
        file.sync_data().unwrap();
        *revision += 1;
        Some(*revision)
    }
}

struct Program {
    dir: PathBuf,
    store: Arc<Store>,
    stopper: Stopper,
    fault: String,
}

fn fault(name: &str) -> impl Fn(&str) -> bool {
    let name = name.to_string();
    move |at| name == at
}

impl Hooks for Program {
    fn drain(&mut self, drain: &DrainContext) -> Result<DrainReport, HookError> {
        let fault = fault(&self.fault);
        if fault("drain-error") {
            return Err("injected".into());
        }
        assert!(!fault("drain-panic"), "injected");
        self.stopper.stop();
        assert!(self.stopper.settle(Duration::from_secs(5)), "an admission hangs");
        // A drain that hangs returns when it is told that its handoff is off.
        while fault("drain-hangs") && !drain.is_off() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&mut self, seal: &SealContext) -> Result<SealReport, HookError> {
        let fault = fault(&self.fault);
        if fault("seal-error") {
            return Err("injected".into());
        }
        assert!(!fault("seal-panic"), "injected");
        while fault("seal-hangs") && !seal.is_off() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let (file, revision) = self.store.0.lock().unwrap().take().ok_or("sealed twice")?;
        file.sync_all()?;
        seal.progress(1, 1, revision);
        Ok(SealReport { revisions: vec![revision], fingerprint: [0; 32] })
    }

    fn resume(&mut self) -> Result<(), HookError> {
        let mut store = self.store.0.lock().unwrap();
        if store.is_none() {
            *store = Store::open(&self.dir).0.into_inner().unwrap();
        }
        self.stopper.resume();
        Ok(())
    }
}

/// What the daemon processes run, if this is one.
pub fn daemon() {
    let Ok(control) = std::env::var("TEST_CONTROL") else { return };
    let dir = PathBuf::from(std::env::var("TEST_DATA").unwrap());
    let name = std::env::var("TEST_FAULT").unwrap_or_default();
    let fault = fault(&name);
    if fault("exit-at-once") {
        std::process::exit(3);
    }
    let mut daemon = Daemon::from_env(Config::new(control, &dir).build_id("test")).unwrap();
    let listener = daemon.listener("tcp", || TcpListener::bind("127.0.0.1:0")).unwrap();
    let grant = match daemon.begin() {
        Ok(grant) => grant,
        Err(ended) => std::process::exit(ended.exit_code().into()),
    };
    if fault("die-after-begin") {
        std::process::exit(4);
    }
    while fault("never-ready") && !grant.is_off() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    while fault("waits-to-open") && !dir.join("go").exists() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    if fault("fail-open") {
        std::process::exit(grant.fail("injected").exit_code().into());
    }
    let store = Arc::new(Store::open(grant.data_dir()));
    let revision = store.0.lock().unwrap().as_ref().unwrap().1;
    let acceptor = Acceptor::new(listener).unwrap();
    let stopper = acceptor.stopper();
    let serving = Arc::clone(&store);
    std::thread::spawn(move || {
        loop {
            // Admission and answer are one step here, so a settled drain has answered everything.
            let answered = acceptor.accept_with(|mut stream, _| {
                let mut value = String::new();
                let _ = BufReader::new(&mut stream).read_line(&mut value);
                if let Some(revision) = serving.write(value.trim()) {
                    let _ = writeln!(stream, "{revision} {}", std::process::id());
                }
            });
            if let Ok(None) = answered {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
    });
    let readiness = Readiness {
        listening_on: vec!["tcp".into()],
        healthz_ok: !fault("unhealthy"),
        revisions: vec![if fault("regressed") { revision.saturating_sub(1) } else { revision }],
    };
    let program = Program { dir, store, stopper, fault: name.clone() };
    let ended = grant.ready(readiness).run(program);
    std::process::exit(ended.exit_code().into());
}

/// A supervisor in the test, a daemon in a process, a client.
pub struct Bench {
    pub supervisor: Supervisor,
    pub dir: tempfile::TempDir,
    pub listener: TcpListener,
    address: std::net::SocketAddr,
    acknowledged: Vec<String>,
}

impl Bench {
    /// A supervisor with a listener, and a daemon that serves. `fault` is the daemon's.
    pub fn start(fault: &str) -> (Self, u32) {
        let dir = tempfile::Builder::new().prefix("swap test ").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut supervisor = Supervisor::new(config(dir.path())).unwrap();
        supervisor.listener("tcp", listener.try_clone().unwrap()).unwrap();
        let mut bench = Self { supervisor, dir, listener, address, acknowledged: Vec::new() };
        let started = bench.supervisor.start(&bench.launch(fault)).unwrap();
        assert!(started.started);
        bench.write();
        (bench, started.pid)
    }

    pub fn launch(&self, fault: &str) -> Launch {
        launch(self.dir.path(), fault)
    }

    /// A write that must be acknowledged; by whom.
    pub fn write(&mut self) -> u32 {
        let value = format!("value-{}", self.acknowledged.len());
        let mut stream = TcpStream::connect(self.address).expect("the listener refuses nobody");
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        writeln!(stream, "{value}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an accepted connection is served");
        let _ = stream.shutdown(Shutdown::Both);
        self.acknowledged.push(value);
        answer.trim().rsplit(' ').next().unwrap().parse().expect("an answer")
    }

    pub fn swap(&mut self, fault: &str) -> Report {
        let handoff = Handoff::new(self.launch(fault));
        self.swap_as(handoff, |_| {})
    }

    pub fn swap_as(&mut self, handoff: Handoff, on: impl FnMut(&Event)) -> Report {
        self.supervisor.handoff(&handoff, on).unwrap()
    }

    /// I3, I6: everything acknowledged is there, once; the next handoff commits.
    pub fn ends_well(mut self) {
        self.write();
        let report = self.swap("");
        assert_eq!(report.verdict, Verdict::Committed, "{report}");
        assert_eq!(Some(self.write()), report.serving);
        let log = std::fs::read_to_string(self.dir.path().join("data/writes.log")).unwrap();
        assert_eq!(log.lines().collect::<Vec<_>>(), self.acknowledged);
        assert!(self.supervisor.shutdown(Duration::from_secs(5)).unwrap().is_empty());
        let left: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("staging"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// What a supervisor of the daemon in `dir` watches over.
pub fn config(dir: &Path) -> SupervisorConfig {
    SupervisorConfig::new(dir.join("c.sock"))
        .data_dir(dir.join("data"))
        .journal(dir.join("journal"))
}

/// A daemon in `dir` with a fault: this same binary, as [`daemon`].
pub fn launch(dir: &Path, fault: &str) -> Launch {
    Launch::new(std::env::current_exe().unwrap())
        .args(["daemon", "--exact", "--ignored", "--nocapture"])
        .env("TEST_CONTROL", dir.join("c.sock"))
        .env("TEST_DATA", dir.join("data"))
        .env("TEST_FAULT", fault)
        .stdout(null())
        .stderr(null())
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.supervisor.shutdown(Duration::from_secs(1));
    }
}

fn null() -> Arc<std::os::fd::OwnedFd> {
    Arc::new(OpenOptions::new().write(true).open("/dev/null").unwrap().into())
}

//! Real processes: a supervisor in the test, daemons started from this same binary, real sockets,
//! a real data directory. The daemon keeps a log of writes and answers `revision pid` to each.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use handoff_blocking::{
    Acceptor, Config, Daemon, DrainContext, DrainReport, Handoff, HookError, Hooks, Launch, Phase,
    Readiness, Reason, Report, SealContext, SealReport, Stopper, Supervisor, SupervisorConfig,
    Verdict,
};
use handoff_core::supervisor::Event;
use rustix::process::{Pid, Signal, kill_process};

// The daemon.

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

/// Not a test of its own: what the daemons of the other tests run.
#[test]
#[ignore = "the body of the daemon processes"]
fn daemon() {
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
    let ended = grant.ready(readiness).map_or_else(|ended| ended, |serving| serving.run(program));
    std::process::exit(ended.exit_code().into());
}

// The test's side.

struct Bench {
    supervisor: Supervisor,
    dir: tempfile::TempDir,
    address: std::net::SocketAddr,
    acknowledged: Vec<String>,
}

impl Bench {
    /// A supervisor with a listener, and a daemon that serves. `fault` is the daemon's.
    fn start(fault: &str) -> (Self, u32) {
        let dir = tempfile::Builder::new().prefix("swap test ").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let config = SupervisorConfig::new(dir.path().join("c.sock"))
            .data_dir(dir.path().join("data"))
            .journal(dir.path().join("journal"));
        let mut supervisor = Supervisor::new(config).unwrap();
        supervisor.listener("tcp", listener).unwrap();
        let mut bench = Self { supervisor, dir, address, acknowledged: Vec::new() };
        let started = bench.supervisor.start(&bench.launch(fault)).unwrap();
        assert!(started.started);
        bench.write();
        (bench, started.pid)
    }

    fn launch(&self, fault: &str) -> Launch {
        Launch::new(std::env::current_exe().unwrap())
            .args(["daemon", "--exact", "--ignored", "--nocapture"])
            .env("TEST_CONTROL", self.dir.path().join("c.sock"))
            .env("TEST_DATA", self.dir.path().join("data"))
            .env("TEST_FAULT", fault)
            .stdout(null())
            .stderr(null())
    }

    /// A write that must be acknowledged; by whom.
    fn write(&mut self) -> u32 {
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

    fn swap(&mut self, fault: &str) -> Report {
        let handoff = Handoff::new(self.launch(fault));
        self.swap_as(handoff, |_| {})
    }

    fn swap_as(&mut self, handoff: Handoff, on: impl FnMut(&Event)) -> Report {
        self.supervisor.handoff(&handoff, on).unwrap()
    }

    /// I3, I6: everything acknowledged is there, once; the next handoff commits.
    fn ends_well(mut self) {
        self.write();
        let report = self.swap("");
        assert_eq!(report.verdict, Verdict::Committed, "{report}");
        assert_eq!(Some(self.write()), report.serving);
        let log = std::fs::read_to_string(self.dir.path().join("data/writes.log")).unwrap();
        assert_eq!(log.lines().collect::<Vec<_>>(), self.acknowledged);
        assert!(self.supervisor.shutdown(Duration::from_secs(5)).is_empty());
        let left: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("staging"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.supervisor.shutdown(Duration::from_secs(1));
    }
}

fn null() -> Arc<std::os::fd::OwnedFd> {
    Arc::new(OpenOptions::new().write(true).open("/dev/null").unwrap().into())
}

fn reason(report: &Report) -> Option<Reason> {
    report.trouble.as_ref().map(|trouble| trouble.reason)
}

/// C2, R6, R16: the good path, three times in a row without a pause.
#[test]
fn back_to_back_handoffs_commit() {
    let (mut bench, mut old) = Bench::start("");
    for _ in 0..3 {
        let report = bench.swap("");
        assert_eq!(report.verdict, Verdict::Committed, "{report}");
        assert_eq!(report.trouble, None);
        let new = report.serving.unwrap();
        assert_ne!(new, old);
        assert_eq!(bench.write(), new);
        old = new;
    }
    bench.ends_well();
}

/// C3, R4, R6: whatever is wrong with the successor, the incumbent serves on.
#[test]
fn a_successor_that_fails_is_rolled_back() {
    let cases = [
        ("exit-at-once", Verdict::Refused, Reason::SuccessorExited),
        ("die-after-begin", Verdict::RolledBack, Reason::SuccessorExited),
        ("fail-open", Verdict::RolledBack, Reason::SuccessorExited),
        ("unhealthy", Verdict::RolledBack, Reason::Unhealthy),
        ("regressed", Verdict::RolledBack, Reason::RevisionRegressed),
    ];
    let (mut bench, old) = Bench::start("");
    for (fault, verdict, code) in cases {
        let report = bench.swap(fault);
        assert_eq!((report.verdict, reason(&report)), (verdict, Some(code)), "{fault}: {report}");
        assert_eq!(report.serving, Some(old), "{fault}");
        assert_eq!(bench.write(), old, "{fault}");
    }
    bench.ends_well();
}

/// R7: a drain or a seal that fails, panics or hangs leaves the incumbent serving, resumed once.
#[test]
fn a_hook_that_fails_leaves_the_incumbent_serving() {
    let cases = [
        ("drain-error", Verdict::Refused, Reason::DrainFailed),
        ("drain-panic", Verdict::Refused, Reason::DrainFailed),
        ("drain-hangs", Verdict::Refused, Reason::DrainFailed),
        ("seal-error", Verdict::RolledBack, Reason::SealFailed),
        ("seal-panic", Verdict::RolledBack, Reason::SealFailed),
        ("seal-hangs", Verdict::RolledBack, Reason::SealTimeout),
    ];
    for (fault, verdict, code) in cases {
        let (mut bench, old) = Bench::start(fault);
        let handoff = Handoff::new(bench.launch(""))
            .drain_grace(Duration::from_millis(100))
            .deadline(Duration::from_millis(300));
        let report = bench.swap_as(handoff, |_| {});
        // The incumbent closes at its own deadline or is asked at the supervisor's: either is true.
        let seen = (report.verdict, reason(&report));
        assert_eq!(seen, (verdict, Some(code)), "{fault}: {report}");
        assert_eq!(report.serving, Some(old), "{fault}");
        assert_eq!(bench.write(), old, "{fault}");
        bench.supervisor.shutdown(Duration::from_secs(5));
    }
}

/// T5, R5: a successor that is not ready in time is ended, because the incumbent answers.
#[test]
fn a_successor_that_is_never_ready_is_rolled_back() {
    let (mut bench, old) = Bench::start("");
    let handoff = Handoff::new(bench.launch("never-ready")).deadline(Duration::from_millis(300));
    let report = bench.swap_as(handoff, |_| {});
    assert_eq!(
        (report.verdict, reason(&report)),
        (Verdict::RolledBack, Some(Reason::ReadyTimeout))
    );
    assert_eq!(bench.write(), old);
    bench.ends_well();
}

/// R5, R8: an incumbent that is killed in its drain or seal is replaced by the successor.
#[test]
fn an_incumbent_that_dies_is_replaced() {
    for (fault, at) in [("drain-hangs", Phase::Drain), ("seal-hangs", Phase::Seal)] {
        let (mut bench, old) = Bench::start(fault);
        let victim = Pid::from_raw(old.cast_signed()).unwrap();
        let handoff = Handoff::new(bench.launch(""));
        let report = bench.swap_as(handoff, |event| {
            if *event == Event::Phase(at) {
                kill_process(victim, Signal::KILL).unwrap();
            }
        });
        assert_eq!(report.verdict, Verdict::Committed, "{fault}: {report}");
        assert_eq!(reason(&report), Some(Reason::IncumbentLost), "{fault}");
        assert_eq!(Some(bench.write()), report.serving, "{fault}");
        bench.ends_well();
    }
}

/// R13: a binary that does not exist is named, and the incumbent was not touched.
#[test]
fn a_binary_that_does_not_start_is_named() {
    let (mut bench, old) = Bench::start("");
    let handoff = Handoff::new(Launch::new("/nowhere/daemon"));
    let mut phases = Vec::new();
    let report = bench.swap_as(handoff, |event| {
        if let Event::Phase(phase) = event {
            phases.push(*phase);
        }
    });
    assert_eq!(report.verdict, Verdict::Refused);
    let trouble = report.trouble.as_ref().unwrap();
    assert_eq!(trouble.reason, Reason::SuccessorExecFailed);
    assert!(trouble.detail.contains("/nowhere/daemon"), "{}", trouble.detail);
    assert_eq!(phases, [Phase::Warm]);
    assert_eq!(bench.write(), old);
    bench.ends_well();
}

/// R10, R17: a second supervisor adopts the daemon that serves instead of starting another.
#[test]
fn a_supervisor_adopts_who_serves() {
    let (bench, old) = Bench::start("");
    let mut second =
        Supervisor::new(SupervisorConfig::new(bench.dir.path().join("c.sock"))).unwrap();
    let found = second.start(&bench.launch("")).unwrap();
    assert_eq!((found.pid, found.started), (old, false));
    bench.ends_well();
}

//! The black box, held to what is known of those it probes: beyond-handoff breaks the clauses that it is
//! known to break, and a toy that is wrong on purpose is found out. That this project's own daemons and
//! supervisors keep every clause is for the suite, which has all of the probe's cases.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use conformance::adapters::{ALL, TOKIO_THREADS};
use conformance::probe::{Incumbent, Report, Supervisor, Verdict};
use conformance::suite::{PATIENCE, daemon, play, wait_until};
use handoff_blocking::Launch;
use handoff_core::wire::encode;
use handoff_core::{Capabilities, Message, PROTO_MAX, PROTO_MIN, Side};
use handoff_unix::control::ControlPath;
use handoff_unix::process::Signal;
use handoff_unix::spawn::{Child, SpawnRole, spawn};

/// Where the daemons of the suite have their control path; the others follow them.
const SOCKET: &str = "run/control";

/// Not a test of its own: what the daemon processes run.
#[test]
#[ignore = "the body of the daemon processes"]
fn part() {
    play(&ALL);
}

/// Not a test of its own: a daemon of the other implementation.
#[test]
#[ignore = "the body of a daemon process"]
fn beyond() {
    struct Program;

    impl ::handoff::Drainable for Program {
        fn drain(&self, _: std::time::Instant) -> ::handoff::Result<::handoff::DrainReport> {
            Ok(::handoff::DrainReport { open_conns_remaining: 0, accept_closed: true })
        }
        fn seal(&self) -> ::handoff::Result<::handoff::SealReport> {
            Ok(::handoff::SealReport::default())
        }
        fn resume_after_abort(&self) -> ::handoff::Result<()> {
            Ok(())
        }
        fn snapshot_state(&self) -> ::handoff::StateSnapshot {
            ::handoff::StateSnapshot::default()
        }
    }

    let Ok(dir) = std::env::var("TEST_DIR") else { return };
    let (socket, data) = (Path::new(&dir).join(SOCKET), Path::new(&dir).join("data"));
    let lock = ::handoff::DataDirLock::acquire(&data).unwrap();
    let _ = ::handoff::Incumbent::bind_cold_start(&socket, lock).unwrap().serve(Program);
}

/// Not a test of its own: a daemon that says Hello, with a pid that is not its own, and then reads
/// whatever comes, says nothing, and closes nothing.
#[test]
#[ignore = "the body of a daemon process"]
fn toy() {
    let Ok(dir) = std::env::var("TEST_DIR") else { return };
    let listener = UnixListener::bind(Path::new(&dir).join(SOCKET)).unwrap();
    let hello = Message::Hello {
        role: Side::Incumbent,
        pid: 1,
        build_id: b"toy".to_vec(),
        proto_min: PROTO_MIN,
        proto_max: PROTO_MAX,
        capabilities: Capabilities::OURS,
    };
    let mut bytes = Vec::new();
    encode(&hello, PROTO_MAX, &mut bytes).unwrap();
    for stream in listener.incoming() {
        let (mut stream, bytes) = (stream.unwrap(), bytes.clone());
        std::thread::spawn(move || {
            let _ = stream.write_all(&bytes);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
    }
}

/// Not a test of its own: hands off from whoever serves to a puppet of the probe's, with the other
/// implementation's supervisor.
#[test]
#[ignore = "the body of a supervisor process"]
fn beyond_hands_off() {
    use std::os::fd::AsRawFd;

    let Ok(dir) = std::env::var("TEST_DIR") else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let supervisor = ::handoff::Supervisor::new(&Path::new(&dir).join(SOCKET))
        .unwrap()
        .with_listener("tcp", listener.as_raw_fd());
    let mut puppet = ::handoff::SpawnSpec::new(env!("CARGO_BIN_EXE_conformance"));
    puppet.args = vec!["probe-successor".into()];
    let _ = supervisor.perform_handoff(puppet);
}

/// A directory for a daemon, and the daemon in it.
struct Bench {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("probe test ").tempdir().unwrap();
        for name in ["data", "run"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, daemon: None }
    }

    /// With a daemon that answers.
    fn serving(launch: impl FnOnce(&Path) -> Launch) -> Self {
        let mut bench = Self::new();
        let none: [(String, BorrowedFd<'_>); 0] = [];
        bench.daemon = Some(spawn(&launch(bench.path()), &none, SpawnRole::Cold).unwrap());
        wait_until("the daemon is there", || UnixStream::connect(bench.socket()).is_ok());
        bench
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn socket(&self) -> PathBuf {
        self.path().join(SOCKET)
    }

    fn incumbent(&self) -> Incumbent {
        let incumbent = Incumbent::new(self.socket()).unwrap();
        incumbent.data_dir(self.path().join("data")).patience(PATIENCE)
    }

    fn answers(&self) -> bool {
        let path = ControlPath::new(self.socket()).unwrap();
        handoff_unix::probe::probe(&path, &handoff_unix::probe::Users::default()).is_ok()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(daemon) = &self.daemon {
            let _ = daemon.group.signal(Signal::KILL);
            let _ = daemon.pidfd.wait(Some(PATIENCE));
            let _ = daemon.group.reap();
        }
    }
}

/// The program of one of the ignored tests above.
fn body(test: &'static str) -> impl FnOnce(&Path) -> Launch {
    move |dir| {
        let launch = Launch::new(std::env::current_exe().unwrap());
        let launch = launch.args([test, "--exact", "--ignored"]).env("TEST_DIR", dir);
        launch.stdout(null()).stderr(null())
    }
}

fn null() -> std::sync::Arc<std::os::fd::OwnedFd> {
    std::sync::Arc::new(std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap().into())
}

/// What of the report has ended like this.
fn names(report: &Report, verdict: Verdict) -> Vec<&str> {
    let cases = report.cases.iter().filter(|case| case.verdict == verdict);
    cases.map(|case| case.name).collect()
}

fn conformance(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_conformance")).args(args).output().unwrap()
}

/// In JSON, with 0 as the exit code.
#[test]
fn a_program_reads_what_was_found() {
    let bench = Bench::serving(|dir| daemon(TOKIO_THREADS, dir, None).unwrap());
    let (socket, data) = (bench.socket(), bench.path().join("data"));
    let output = conformance(&[
        "probe",
        "incumbent",
        "--json",
        "--only=C1",
        "--only=R1",
        "--socket",
        socket.to_str().unwrap(),
        "--data-dir",
        data.to_str().unwrap(),
        "--patience",
        "60",
    ]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{json:#}");
    assert_eq!((&json["failed"], &json["role"]), (&0.into(), &"incumbent".into()));
    let cases = json["cases"].as_array().unwrap();
    assert!(cases.len() > 3, "{json:#}");
    assert!(cases.iter().all(|case| case["clauses"].as_array().unwrap()[0].is_string()));
    assert!(cases.iter().all(|case| case["verdict"] == "pass"), "{json:#}");
    assert!(bench.answers(), "it is left serving");
}

/// What beyond-handoff 0.1.4 is known to lack, and can be seen to lack, is found. Not all cases are run,
/// because it holds each connection up for long.
#[test]
fn the_other_implementation_is_found_out() {
    const KNOWN: [&str; 3] = [
        "silent strangers delay nobody",
        "a peer that drips is bound by the deadline",
        "a second SealRequest seals nothing",
    ];
    let bench = Bench::serving(body("beyond"));
    let probe = KNOWN.into_iter().fold(bench.incumbent(), Incumbent::only);
    let probe = probe.only("C1").only("it heartbeats every second");
    let report = probe.patience(Duration::from_secs(4)).probe(|_| {});
    let failed = names(&report, Verdict::Fail);
    for known in KNOWN {
        assert!(failed.contains(&known), "{known}: {report}");
    }
    let skipped = names(&report, Verdict::Skip);
    assert!(skipped.contains(&"it heartbeats every second"), "{report}");
    assert_eq!(report.cases[0].verdict, Verdict::Pass, "{report}");
}

#[test]
fn the_other_supervisor_is_found_out() {
    let bench = Bench::new();
    let command = body("beyond_hands_off")(bench.path());
    let probe = Supervisor::new(bench.socket(), command, false).unwrap();
    let report = probe.patience(Duration::from_secs(8)).probe(|_| {});
    let failed = names(&report, Verdict::Fail);
    for known in [
        "it heartbeats to both and answers none",
        "an unhealthy successor is not committed",
        "lower revisions are not committed",
    ] {
        assert!(failed.contains(&known), "{known}: {report}");
    }
    let kept = "one fresh id for both, and Prepare names the successor";
    assert_eq!(report.case(kept).unwrap().verdict, Verdict::Pass, "{report}");
}

/// The report of a peer that is wrong is to be read at 80 columns, and its exit code is 1.
#[test]
fn a_wrong_peer_is_found_out() {
    let bench = Bench::serving(body("toy"));
    let socket = bench.socket();
    let args = ["probe", "incumbent", "--patience", "1", "--socket", socket.to_str().unwrap()];
    let output = conformance(&args);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAIL  it says Hello first, and is who it says"), "{text}");
    assert!(text.contains("Hello says pid 1, the kernel says"), "{text}");
    assert!(text.contains("FAIL  it answers heartbeats"), "{text}");
    assert!(text.contains("-> Heartbeat"), "{text}");
    let wide: Vec<_> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "{wide:?}");
    let last = text.lines().last().unwrap();
    assert!(last.contains(" failed, "), "{last}");
}

/// It is no success to have found nobody.
#[test]
fn where_nobody_serves_it_fails() {
    let bench = Bench::new();
    let report = bench.incumbent().patience(Duration::from_millis(100)).probe(|_| {});
    assert_eq!((report.passed, report.failed), (0, 1), "{report}");
    assert!(!report.all_passed());
}

#[test]
fn what_it_cannot_do_is_a_mistake_of_usage() {
    for args in [
        &["probe"][..],
        &["probe", "incumbent"],
        &["probe", "successor"],
        &["probe", "successor", "--listener", "no-address", "--", "true"],
        &["probe", "incumbent", "--socket", "c.sock", "--commit"],
        &["probe-successor"],
    ] {
        let output = conformance(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    assert_eq!(conformance(&["probe", "--help"]).status.code(), Some(0));
}

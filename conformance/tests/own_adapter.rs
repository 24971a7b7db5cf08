//! The toy daemon of the example `poll`, as it is: real processes, real sockets, a real data directory.
//! Its adapter goes through the suite in `third_party.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[allow(dead_code, unreachable_pub)]
#[path = "../../handoff-core/examples/poll.rs"]
mod poll;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use handoff_blocking::{
    Handoff, Launch, Reason, Report, Started, Supervisor, SupervisorConfig, Verdict,
};
use handoff_core::supervisor::Event;
use tempfile::TempDir;

/// Longer than anything takes, also on a machine that has other things to do.
const LONG: Duration = Duration::from_secs(60);

/// What makes this test binary a daemon.
const DAEMON: [&str; 4] = ["daemon", "--exact", "--ignored", "--nocapture"];

/// Not a test of its own: what the daemons of the other tests run.
#[test]
#[ignore = "the body of the daemon processes"]
fn daemon() {
    if std::env::var_os("POLL_CONTROL").is_some() {
        poll::main();
    }
}

/// What a client says, and what it is answered: the count, and by whom. `None` where nobody answers.
fn say(address: SocketAddr, line: &str) -> Option<(u64, u32)> {
    let mut stream = TcpStream::connect(address).expect("the listener refuses nobody");
    stream.set_read_timeout(Some(LONG)).unwrap();
    writeln!(stream, "{line}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an accepted connection is served");
    let (count, pid) = answer.trim().split_once(' ')?;
    Some((count.parse().unwrap(), pid.parse().unwrap()))
}

/// A supervisor in the test, daemons in processes of their own.
struct Bench {
    supervisor: Supervisor,
    address: SocketAddr,
    dir: TempDir,
}

impl Bench {
    /// A supervisor with a listener, and a daemon that serves; its pid.
    fn start() -> (Self, u32) {
        let dir = tempfile::Builder::new().prefix("own adapter ").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let control = dir.path().join("c.sock");
        let config = SupervisorConfig::new(control).data_dir(dir.path().join("data"));
        let mut supervisor = Supervisor::new(config).unwrap();
        supervisor.listener("tcp", listener).unwrap();
        let mut bench = Self { supervisor, address, dir };
        let pid = bench.cold_start();
        (bench, pid)
    }

    fn cold_start(&mut self) -> u32 {
        let Started { pid, started } = self.supervisor.start(&self.launch()).unwrap();
        assert!(started);
        pid
    }

    fn launch(&self) -> Launch {
        let null = || -> Arc<OwnedFd> {
            Arc::new(OpenOptions::new().write(true).open("/dev/null").unwrap().into())
        };
        Launch::new(std::env::current_exe().unwrap())
            .args(DAEMON)
            .env("POLL_CONTROL", self.dir.path().join("c.sock"))
            .env("POLL_DATA", self.dir.path().join("data"))
            .stdout(null())
            .stderr(null())
    }

    fn hand_off(&mut self, launch: Launch, on: impl FnMut(&Event)) -> Report {
        self.supervisor.handoff(&Handoff::new(launch), on).unwrap()
    }

    /// A handoff that is committed; the pid of who serves now.
    fn swap(&mut self) -> u32 {
        let report = self.hand_off(self.launch(), |_| {});
        assert_eq!((report.verdict, &report.trouble), (Verdict::Committed, &None), "{report}");
        report.serving.unwrap()
    }

    /// Waits until a daemon has ended; how.
    fn end_of(&mut self, pid: u32) -> String {
        loop {
            let ended = self.supervisor.watch(LONG).unwrap();
            assert!(!ended.is_empty(), "pid {pid} does not end");
            if let Some((_, status)) = ended.into_iter().find(|(ended, _)| *ended == pid) {
                return status;
            }
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.supervisor.shutdown(Duration::from_secs(5));
    }
}

fn exit_code(status: &str, code: u8) -> bool {
    status == format!("exit code {code}") || status.starts_with(&format!("exit code {code} "))
}

/// Does something else beside the work, until that is done, also where it panics; what both gave.
fn beside<A: Send, R>(
    other: impl FnOnce(&AtomicBool) -> A + Send,
    work: impl FnOnce() -> R,
) -> (R, A) {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| other(&done));
        let result = {
            let _done = Done(&done);
            work()
        };
        (result, other.join().unwrap())
    })
}

/// Counts while the work is done; all that was answered, in order.
fn while_counting<R>(address: SocketAddr, work: impl FnOnce() -> R) -> (R, Vec<(u64, u32)>) {
    let count = |done: &AtomicBool| {
        let mut answers = Vec::new();
        while !done.load(Ordering::Acquire) {
            answers.push(say(address, "count").expect("every connection is answered"));
        }
        answers
    };
    beside(count, work)
}

/// C2, I3, I4, R15: five in a row under a client, which sees every number once, and each daemon that was
/// replaced ends well.
#[test]
fn handoffs_in_a_row_commit_and_no_count_is_lost() {
    let (mut bench, first) = Bench::start();
    assert_eq!(say(bench.address, "count"), Some((1, first)));
    let (served, answers) = while_counting(bench.address, || {
        let mut served = vec![first];
        for _ in 0..5 {
            let (old, new) = (*served.last().unwrap(), bench.swap());
            assert_ne!(new, old);
            let status = bench.end_of(old);
            assert!(exit_code(&status, 0), "{status}");
            served.push(new);
        }
        served
    });
    let counts: Vec<_> = answers.iter().map(|(count, _)| *count).collect();
    let expected: Vec<_> = (2..2 + answers.len() as u64).collect();
    assert_eq!(counts, expected);
    let mut by: Vec<_> = answers.iter().map(|(_, pid)| *pid).collect();
    by.dedup();
    // Who was replaced does not answer any more, and nobody answers out of turn.
    let mut turns = served.iter();
    assert!(by.iter().all(|pid| turns.any(|turn| turn == pid)), "{by:?} of {served:?}");
    let last = expected.last().unwrap() + 1;
    assert_eq!(say(bench.address, "count"), Some((last, *served.last().unwrap())));
    let file = std::fs::read_to_string(bench.dir.path().join("data/count")).unwrap();
    assert_eq!(file, format!("{last}\n"));
}

/// R4, R6: a successor that cannot open its data is rolled back, and the count goes on.
#[test]
fn a_successor_that_fails_to_open_is_rolled_back() {
    let (mut bench, old) = Bench::start();
    let ((), answers) = while_counting(bench.address, || {
        for _ in 0..2 {
            let report = bench.hand_off(bench.launch().env("POLL_FAIL_OPEN", "1"), |_| {});
            let reason = report.trouble.as_ref().map(|trouble| trouble.reason);
            assert_eq!(
                (report.verdict, reason),
                (Verdict::RolledBack, Some(Reason::SuccessorExited)),
                "{report}"
            );
            assert_eq!(report.serving, Some(old));
        }
    });
    let expected: Vec<_> = (1..=answers.len() as u64).map(|count| (count, old)).collect();
    assert_eq!(answers, expected);
    // The next one works, and whoever rolled back twice ends as well as any other.
    let new = bench.swap();
    assert_eq!(say(bench.address, "count"), Some((answers.len() as u64 + 1, new)));
    let status = bench.end_of(old);
    assert!(exit_code(&status, 0), "{status}");
}

/// R10, R13: without a supervisor it binds a listener of its own, and can be stopped all the same.
#[test]
fn without_a_supervisor_it_listens_by_itself() {
    let dir = tempfile::Builder::new().prefix("own adapter ").tempdir().unwrap();
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(DAEMON)
        .env("POLL_CONTROL", dir.path().join("c.sock"))
        .env("POLL_DATA", dir.path())
        .env("POLL_LISTEN", "127.0.0.1:0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines().map(Result::unwrap);
    let accepting = lines.find_map(|line| Some(line.split_once("accepting on ")?.1.to_string()));
    let address = accepting.unwrap().parse().unwrap();
    assert_eq!(say(address, "count"), Some((1, daemon.id())));
    assert_eq!(say(address, "stop"), None);
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    assert!(lines.last().unwrap().contains("stopped"));
}

//! An adapter that somebody wrote for a loop of their own, the example `poll`, is swapped by a supervisor
//! as the project's own adapters are: real processes, real sockets, a real data directory.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[allow(dead_code, unreachable_pub)]
#[path = "../../handoff-core/examples/poll.rs"]
mod poll;

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use handoff_blocking::{
    Handoff, Launch, Phase, Reason, Report, Started, Supervisor, SupervisorConfig, Verdict,
};
use handoff_core::supervisor::Event;
use handoff_core::wire::{Decoder, encode};
use handoff_core::{HandoffId, Message};
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

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("c.sock")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
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

/// R4: a handoff that is called off while the incumbent drains, and after it has sealed.
#[test]
fn a_handoff_that_is_aborted_is_resumed() {
    let (mut bench, old) = Bench::start();
    let aborter = bench.supervisor.aborter();
    let mut count = 0;
    for at in [Phase::Drain, Phase::Seal, Phase::Open] {
        let report = bench.hand_off(bench.launch(), |event| {
            if *event == Event::Phase(at) {
                aborter.abort();
            }
        });
        assert_eq!((report.verdict, report.serving), (Verdict::RolledBack, Some(old)), "{report}");
        count += 1;
        assert_eq!(say(bench.address, "count"), Some((count, old)));
    }
    let new = bench.swap();
    assert_eq!(say(bench.address, "count"), Some((count + 1, new)));
}

/// R15, R17: a daemon that is told to stop ends well, and the next one counts on from there.
#[test]
fn a_daemon_that_is_stopped_ends_well() {
    let (mut bench, first) = Bench::start();
    assert_eq!(say(bench.address, "count"), Some((1, first)));
    assert_eq!(say(bench.address, "stop"), None);
    let status = bench.end_of(first);
    assert!(exit_code(&status, 0), "{status}");
    let second = bench.cold_start();
    assert_ne!(second, first);
    assert_eq!(say(bench.address, "count"), Some((2, second)));
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

/// R1, R15: a cold start beside a daemon that serves finds it and ends, and disturbs nobody.
#[test]
fn a_second_daemon_on_the_same_data_stands_down() {
    let (bench, first) = Bench::start();
    let mut second = Command::new(std::env::current_exe().unwrap())
        .args(DAEMON)
        .env("POLL_CONTROL", bench.dir.path().join("c.sock"))
        .env("POLL_DATA", bench.dir.path().join("data"))
        .env("POLL_LISTEN", "127.0.0.1:0")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(second.wait().unwrap().code(), Some(75));
    assert_eq!(say(bench.address, "count"), Some((1, first)));
}

/// Greets as a supervisor does, and then hears one heartbeat.
fn hear_a_heartbeat(mut stream: &UnixStream) {
    let (mut decoder, mut buffer, mut greeted) = (Decoder::new(), [0; 4096], false);
    loop {
        let count = stream.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "it hung up");
        let mut bytes = &buffer[..count];
        while let Some(frame) = decoder.decode(&mut bytes).unwrap() {
            match frame.message {
                Message::Hello { .. } if !greeted => {
                    greeted = true;
                    decoder.handshake_done(1);
                    let id = HandoffId::new();
                    let ack = Message::HelloAck { proto_version_chosen: 1, handoff_id: id };
                    let mut bytes = Vec::new();
                    encode(&ack, 1, &mut bytes).unwrap();
                    stream.write_all(&bytes).unwrap();
                }
                Message::Heartbeat { .. } if greeted => return,
                message => panic!("{message:?}"),
            }
        }
    }
}

/// T1, C5: it tells the machine the time: heartbeats are sent unasked, and who says nothing is turned
/// away.
#[test]
fn it_tells_the_time() {
    let (bench, _) = Bench::start();
    let mut silent = bench.connect();
    let greeted = bench.connect();
    hear_a_heartbeat(&greeted);
    hear_a_heartbeat_again(&greeted);
    // It says Hello, waits for an answer that does not come, and hangs up.
    let mut all = Vec::new();
    silent.read_to_end(&mut all).unwrap();
    assert!(!all.is_empty());
    assert_eq!(say(bench.address, "count").map(|(count, _)| count), Some(1));
}

fn hear_a_heartbeat_again(mut stream: &UnixStream) {
    assert_ne!(stream.read(&mut [0; 4096]).unwrap(), 0, "it hung up");
}

/// C5, W7: strangers that come and go, more than may stay, disturb no handoff: the names of their
/// connections are used again and again, and never mixed up with the supervisor's.
#[test]
fn strangers_disturb_no_handoff() {
    let (mut bench, _) = Bench::start();
    let path = bench.dir.path().join("c.sock");
    let sayings: [&[u8]; 4] =
        [b"", b"GET / HTTP/1.1", b"\xff\xff\xff\xff", b"\x06\0\0\0\x01\0\x0d\0\0\0"];
    let visit = |done: &AtomicBool| {
        let mut strangers = VecDeque::new();
        for saying in sayings.iter().cycle().take_while(|_| !done.load(Ordering::Acquire)) {
            strangers.extend(stranger(&path, saying));
            if strangers.len() > 40 {
                strangers.pop_front();
            }
        }
    };
    let (last, ()) = beside(visit, || {
        bench.swap();
        bench.swap();
        bench.swap()
    });
    assert_eq!(say(bench.address, "count"), Some((1, last)));
}

/// It may be turned away before it has said anything, or come while nobody has the path.
fn stranger(path: &Path, saying: &[u8]) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(path).ok()?;
    let _ = stream.write_all(saying);
    Some(stream)
}

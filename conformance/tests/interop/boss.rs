//! The supervisors: ours, in the test; theirs, and ours once more, in a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use conformance::adapters;
use conformance::suite::Supervise;
use handoff_blocking::{Handoff, Launch, Report, StartError, SupervisorConfig, Verdict};
use handoff_unix::inherit::Inherited;
use handoff_unix::poll;
use handoff_unix::process::{PidFd, ProcessGroup, Signal};
use tokio::runtime::Runtime;

use crate::bench::{Kind, PATIENCE, launch, launch_as, sign_in, wait_until};

/// Whose supervisor it is, and where it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BossKind {
    /// Theirs, in a process: it has children and signals of its own.
    Theirs,
    /// Ours, in the test.
    Blocking,
    Tokio,
    Smol,
    /// Ours, in a process that was started as systemd starts one with sockets: `LISTEN_PID` in its
    /// environment names it.
    Activated,
}

impl BossKind {
    pub(crate) const OURS: [Self; 3] = [Self::Blocking, Self::Tokio, Self::Smol];
}

/// A supervisor.
pub(crate) enum Boss {
    Blocking(Box<handoff_blocking::Supervisor>, Option<ProcessGroup>),
    Tokio(handoff_tokio::Supervisor, Runtime),
    Smol(handoff_smol::Supervisor),
    Process(Process),
}

/// A supervisor in a process, in a group with all that it starts.
pub(crate) struct Process {
    pid: u32,
    group: ProcessGroup,
    /// Says what it is to do, a line each, and hears what came of it.
    talk: BufReader<UnixStream>,
}

impl Boss {
    pub(crate) fn new(kind: BossKind, dir: &Path, listener: &TcpListener) -> Self {
        let listener = listener.try_clone().unwrap();
        match kind {
            BossKind::Theirs | BossKind::Activated => {
                Self::Process(Process::start(kind, dir, &listener))
            }
            BossKind::Blocking => {
                let mut supervisor = handoff_blocking::Supervisor::new(config(dir)).unwrap();
                supervisor.listener("tcp", listener).unwrap();
                Self::Blocking(Box::new(supervisor), None)
            }
            BossKind::Tokio => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                let runtime = builder.worker_threads(1).enable_all().build().unwrap();
                let inside = runtime.enter();
                let supervisor = handoff_tokio::Supervisor::new(config(dir)).unwrap();
                drop(inside);
                supervisor.listener("tcp", listener).unwrap();
                Self::Tokio(supervisor, runtime)
            }
            BossKind::Smol => {
                let supervisor = handoff_smol::Supervisor::new(config(dir)).unwrap();
                supervisor.listener("tcp", listener).unwrap();
                Self::Smol(supervisor)
            }
        }
    }

    /// Starts the first daemon; its pid.
    pub(crate) fn start(&mut self, launch: &Launch, first: Kind, fault: &str) -> u32 {
        let started = match self {
            Self::Blocking(supervisor, _) => supervisor.start(launch),
            Self::Tokio(supervisor, runtime) => runtime.block_on(supervisor.start(launch)),
            Self::Smol(supervisor) => smol::block_on(supervisor.start(launch)),
            Self::Process(process) => {
                return process.ask(&format!("start {} {fault}", first.name())).unwrap();
            }
        };
        let started = started.unwrap();
        assert!(started.started);
        started.pid
    }

    pub(crate) fn handoff(
        &mut self,
        dir: &Path,
        deadline: Duration,
        next: Kind,
        fault: &str,
    ) -> Result<u32, String> {
        let handoff = Handoff::new(launch(next, dir, fault)).deadline(deadline);
        let report = match self {
            Self::Blocking(supervisor, _) => supervisor.handoff(&handoff, |_| {}),
            Self::Tokio(supervisor, runtime) => {
                runtime.block_on(supervisor.handoff(&handoff, |_| {}))
            }
            Self::Smol(supervisor) => smol::block_on(supervisor.handoff(&handoff, |_| {})),
            Self::Process(process) => {
                let (deadline, next) = (deadline.as_millis(), next.name());
                return process.ask(&format!("handoff {next} {fault} {deadline}"));
            }
        };
        came_to(report)
    }

    /// The pid of its process, if it has one of its own.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            Self::Process(process) => Some(process.pid),
            _ => None,
        }
    }

    /// Lets it reap what has ended, if it does not do so by itself.
    pub(crate) fn reap(&mut self) {
        match self {
            Self::Blocking(supervisor, orphans) => {
                let _ = supervisor.watch(Duration::from_millis(1));
                orphans.as_ref().map(ProcessGroup::reap);
            }
            // What it leaves behind when it is dead.
            Self::Process(process) => drop(process.group.reap()),
            Self::Tokio(..) | Self::Smol(_) => {}
        }
    }

    /// Ends every daemon it started, and itself.
    pub(crate) fn shutdown(&mut self, grace: Duration) {
        let stuck = match self {
            Self::Blocking(supervisor, orphans) => {
                if let Some(group) = orphans {
                    let _ = group.signal(Signal::KILL);
                }
                supervisor.shutdown(grace)
            }
            Self::Tokio(supervisor, runtime) => runtime.block_on(supervisor.shutdown(grace)),
            Self::Smol(supervisor) => smol::block_on(supervisor.shutdown(grace)),
            Self::Process(process) => {
                if process.group.is_gone() {
                    return;
                }
                // It ends its daemons when it hears no more.
                let _ = process.talk.get_ref().shutdown(Shutdown::Both);
                let ended = process.exits(grace);
                let _ = process.group.signal(Signal::KILL);
                wait_until("the group is gone", || process.group.is_gone());
                assert!(ended || std::thread::panicking(), "it does not end its daemons");
                return;
            }
        };
        assert!(stuck.is_ok_and(|stuck| stuck.is_empty()) || std::thread::panicking());
    }

    /// Has its process hand off, without waiting for it.
    pub(crate) fn hand_off_meanwhile(&self, next: Kind, fault: &str) {
        let Self::Process(process) = self else { panic!("it has no process") };
        process.tell(&format!("handoff {} {fault} {}", next.name(), PATIENCE.as_millis()));
    }

    /// Ends its process, and no other.
    pub(crate) fn kill(&self) {
        let Self::Process(process) = self else { panic!("it has no process") };
        PidFd::open(process.pid).unwrap().signal(Signal::KILL).unwrap();
        assert!(process.exits(PATIENCE));
        process.group.reap();
    }

    /// Puts one of ours in the place of one whose process is dead, and has it find who serves.
    pub(crate) fn succeed(&mut self, dir: &Path, listener: &TcpListener) -> u32 {
        let mut next = Self::new(BossKind::Blocking, dir, listener);
        let Self::Blocking(supervisor, _) = &mut next else { unreachable!("it is blocking") };
        let found = supervisor.start(&Launch::new("/nowhere/needed")).unwrap();
        assert!(!found.started);
        if let Self::Process(process) = std::mem::replace(self, next) {
            let Self::Blocking(_, orphans) = self else { unreachable!("it is blocking") };
            *orphans = Some(process.group);
        }
        found.pid
    }
}

fn config(dir: &Path) -> SupervisorConfig {
    SupervisorConfig::new(dir.join("c.sock"))
        .data_dir(dir.join("data"))
        .journal(dir.join("journal"))
}

/// What one of our handoffs came to: who serves, or the verdict and the reason.
fn came_to(report: Result<Report, StartError>) -> Result<u32, String> {
    let report = report.map_err(|error| error.to_string())?;
    let reason = report.trouble.as_ref().map(|trouble| trouble.reason.code());
    match (report.verdict, reason, report.serving) {
        (Verdict::Committed, None, Some(pid)) => Ok(pid),
        (verdict, reason, _) => Err(format!("{verdict:?} {}", reason.unwrap_or("-"))),
    }
}

impl Process {
    fn start(kind: BossKind, dir: &Path, listener: &TcpListener) -> Self {
        let door = UnixListener::bind(dir.join("boss.sock")).unwrap();
        let launch = launch_as("supervisor", dir).env("TEST_BOSS", format!("{kind:?}"));
        let mut command = if kind == BossKind::Activated {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(&launch.program);
            shell
        } else {
            Command::new(&launch.program)
        };
        prepare(&mut command, &launch);
        command.process_group(0);
        let listeners = [("tcp".to_string(), listener.as_raw_fd())];
        handoff::pass_listener_fds_on_spawn(&mut command, &listeners, None);
        // Reaped with its group.
        let pid = command.spawn().unwrap().id();
        let group = ProcessGroup::of(pid).unwrap();
        assert!(poll::readable(&door, Some(PATIENCE)).unwrap(), "the supervisor does not start");
        let (talk, _) = door.accept().unwrap();
        // A deadline may pass first.
        talk.set_read_timeout(Some(2 * PATIENCE)).unwrap();
        Self { pid, group, talk: BufReader::new(talk) }
    }

    /// Waits until it has exited, at most so long; whether it has.
    fn exits(&self, limit: Duration) -> bool {
        // Without a process of this pid it has, and was reaped.
        PidFd::open(self.pid).map_or(true, |process| process.wait(Some(limit)).unwrap())
    }

    /// Sends a line, without waiting for the answer.
    fn tell(&self, line: &str) {
        writeln!(self.talk.get_ref(), "{line}").unwrap();
    }

    /// Sends a line; the answer.
    fn ask(&mut self, line: &str) -> Result<u32, String> {
        self.tell(line);
        let mut answer = String::new();
        self.talk.read_line(&mut answer).unwrap();
        match answer.trim().split_once(' ') {
            Some(("ok", pid)) => Ok(pid.parse().unwrap()),
            Some(("off", why)) => Err(why.to_string()),
            _ => panic!("{line}: the supervisor has died"),
        }
    }
}

fn prepare(command: &mut Command, launch: &Launch) {
    let said = launch.stderr.as_ref().unwrap().try_clone().unwrap();
    command.args(&launch.args).envs(launch.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
}

/// What the supervisor processes run, if this is one.
pub(crate) fn supervisor() {
    let Ok(dir) = std::env::var("TEST_DIR") else { return };
    let dir = PathBuf::from(dir);
    sign_in(&dir);
    let theirs = std::env::var("TEST_BOSS").unwrap() == "Theirs";
    let listener = Inherited::from_env().unwrap().take_tcp("tcp").unwrap().unwrap();
    let adapter = if theirs {
        adapters::THEIRS
    } else {
        assert_eq!(std::env::var("LISTEN_PID").unwrap(), std::process::id().to_string());
        adapters::BLOCKING
    };
    let mut supervisor = adapter.supervisor(config(&dir)).unwrap();
    supervisor.listener("tcp", listener.into()).unwrap();
    let talk = UnixStream::connect(dir.join("boss.sock")).unwrap();
    for line in BufReader::new(&talk).lines().map_while(Result::ok) {
        let words: Vec<_> = line.split(' ').collect();
        let launch = launch(Kind::of(words[1]), &dir, words[2]);
        let came_to = match words.get(3) {
            None => supervisor.start(&launch).map(|found| found.pid).map_err(|e| e.to_string()),
            Some(millis) => hand_off(&mut *supervisor, launch, millis.parse().unwrap()),
        };
        let answer = match came_to {
            Ok(pid) => format!("ok {pid}\n"),
            Err(why) => format!("off {}\n", why.replace('\n', " ")),
        };
        (&talk).write_all(answer.as_bytes()).unwrap();
    }
    assert!(supervisor.shutdown(PATIENCE).unwrap().is_empty());
}

fn hand_off(supervisor: &mut dyn Supervise, launch: Launch, millis: u64) -> Result<u32, String> {
    let handoff = Handoff::new(launch).deadline(Duration::from_millis(millis));
    let pid = came_to(supervisor.handoff(&handoff, &mut |_| {}))?;
    // The old one ends, and is reaped.
    supervisor.exits(PATIENCE).map_err(|error| error.to_string())?;
    Ok(pid)
}

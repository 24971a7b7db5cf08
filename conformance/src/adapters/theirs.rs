//! `beyond-handoff`, the other implementation of the wire, as a program of its users' has it.
//!
//! It is no adapter of this project's, and keeps not all of the rules: the suite is not for it. It is
//! here for runs in which its processes meet ours.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use handoff::{
    DataDirLock, DrainReport, Drainable, Error, HandoffOutcome, ReadinessSnapshot, Role,
    SealReport, SpawnSpec, StateSnapshot,
};
use handoff_core::HandoffId;
use handoff_core::daemon::{Ended, Readiness};
use handoff_core::supervisor::{Event, Reason, Report, Trouble, Verdict};
use handoff_unix::control::ControlPath;
use handoff_unix::host::{Handoff, StartError, Started, SupervisorConfig};
use handoff_unix::lock::{LockState, lock_state};
use handoff_unix::poll;
use handoff_unix::probe::{Users, probe};
use handoff_unix::process::{PidFd, Signal};
use handoff_unix::spawn::Launch;
use rustix::event::{PollFd, PollFlags};

use crate::suite::{Adapter, LISTENER, PATIENCE, Program, Supervise};

/// How long a daemon that was started may take until it answers.
const ANSWERS: Duration = Duration::from_secs(10);

/// How often it is looked whether it does.
const LOOK: Duration = Duration::from_millis(20);

pub(super) struct Theirs;

impl Adapter for Theirs {
    fn name(&self) -> &'static str {
        "theirs"
    }

    fn daemon(&self, program: Program) -> Ended {
        match serve(&program) {
            // It does not say of which handoff it was told the commit.
            Ok(()) => Ended::Stopped,
            Err(error) => {
                tracing::warn!(%error, "their daemon ends");
                Ended::Crash(error.to_string())
            }
        }
    }

    fn supervisor(&self, config: SupervisorConfig) -> Result<Box<dyn Supervise>, StartError> {
        let (control, data_dir, journal) = config.paths();
        Ok(Box::new(Supervisor {
            control: ControlPath::new(control.to_path_buf())?,
            data_dir: data_dir.map(Into::into),
            journal: journal.map(Into::into),
            listeners: Vec::new(),
            known: Vec::new(),
        }))
    }
}

/// Tells of a step as the hosts of `handoff-unix` do.
fn told<T>(what: &str, step: impl FnOnce() -> T) -> T {
    tracing::trace!(target: "handoff::step", moment = "before", %what);
    let came_to = step();
    tracing::trace!(target: "handoff::step", moment = "after", %what);
    came_to
}

fn injected<E: ToString>(error: E) -> Error {
    Error::Protocol(error.to_string())
}

fn serve(program: &Program) -> Result<(), Error> {
    told("Start", || ());
    let open = || told("Open", || program.open(|| false)).map_err(injected);
    let accept = |listener: Option<TcpListener>| -> Result<_, Error> {
        let listener = match listener {
            Some(listener) => listener,
            None => TcpListener::bind("127.0.0.1:0")?,
        };
        Ok(program.accept_on_threads(listener)?)
    };
    let (incumbent, stopper) = match handoff::detect_role()? {
        Role::ColdStart { mut inherited } => {
            program.warm_up();
            let lock = DataDirLock::acquire(&program.data_dir())?;
            open()?;
            let bound = handoff::Incumbent::bind_cold_start(&program.control_path(), lock)?;
            (bound, accept(inherited.take(LISTENER))?)
        }
        Role::Successor(successor) => {
            program.warm_up();
            let mut begun = successor.handshake(b"suite".to_vec())?.wait_for_begin()?;
            let lock = DataDirLock::acquire(&program.data_dir())?;
            let heartbeats = begun.start_heartbeats();
            let Readiness { listening_on, healthz_ok, revisions } = open()?;
            drop(heartbeats);
            let snapshot = ReadinessSnapshot {
                listening_on,
                healthz_ok,
                advertised_revision_per_shard: revisions,
            };
            let listener = begun.take_listener(LISTENER);
            let bound = begun.announce_and_bind(snapshot, &program.control_path(), lock)?;
            // Where the supervisor is gone it ends above, without having accepted anybody.
            (bound, accept(listener)?)
        }
    };
    program.on_stop(|| std::process::exit(0))?;
    let hooks = Hooks { program: program.clone(), stopper };
    incumbent.with_build_id(b"suite".to_vec()).serve(hooks)
}

struct Hooks {
    program: Program,
    stopper: handoff_unix::accept::Stopper,
}

impl Drainable for Hooks {
    fn drain(&self, _: Instant) -> Result<DrainReport, Error> {
        told("Drain", || {
            self.stopper.stop();
            if !self.stopper.settle(PATIENCE) {
                return Err(injected("a client dawdles"));
            }
            let report = self.program.drain(|| false).map_err(injected)?;
            let (open_conns_remaining, accept_closed) =
                (report.open_conns_remaining, report.accept_closed);
            Ok(DrainReport { open_conns_remaining, accept_closed })
        })
    }

    fn seal(&self) -> Result<SealReport, Error> {
        told("Seal", || {
            let report = self.program.seal(|| false, |_, _, _| {}).map_err(injected)?;
            Ok(SealReport {
                last_revision_per_shard: report.revisions,
                data_dir_fingerprint: report.fingerprint,
            })
        })
    }

    fn resume_after_abort(&self) -> Result<(), Error> {
        told("Resume", || {
            self.program.resume().map_err(injected)?;
            self.stopper.resume();
            Ok(())
        })
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }
}

/// Their supervisor, and what their users write around it: it starts no first daemon, finds nobody who
/// serves already, and watches over nobody.
struct Supervisor {
    control: ControlPath,
    data_dir: Option<PathBuf>,
    journal: Option<PathBuf>,
    listeners: Vec<(String, OwnedFd)>,
    /// The daemons that have not ended.
    known: Vec<Known>,
}

struct Known {
    process: PidFd,
    /// Where it is a child of this process.
    child: Option<Child>,
}

impl Known {
    fn of(child: Child) -> Result<Self, StartError> {
        let process = PidFd::open(child.id()).map_err(io("a pidfd"))?;
        Ok(Self { process, child: Some(child) })
    }
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::Io { what, source }
}

fn nobody(why: impl ToString) -> StartError {
    StartError::NobodyServes(why.to_string())
}

impl Supervisor {
    fn theirs(&self) -> Result<handoff::Supervisor, Error> {
        let mut supervisor = handoff::Supervisor::new(self.control.as_path())?;
        for (name, fd) in &self.listeners {
            supervisor = supervisor.with_listener(name, fd.as_raw_fd());
        }
        Ok(match &self.journal {
            Some(journal) => supervisor.with_journal(journal.clone()),
            None => supervisor,
        })
    }

    /// Who answers on the control path.
    fn found(&self) -> Option<u32> {
        probe(&self.control, &Users::default()).ok().map(|found| found.cred.pid)
    }

    /// Waits until the control path leads to `known`; whether it comes to that.
    fn leads_to(&self, known: &Known) -> bool {
        let limit = Instant::now() + ANSWERS;
        while self.found() != Some(known.process.pid()) {
            if known.process.wait(Some(LOOK)).unwrap_or(true) || Instant::now() > limit {
                return false;
            }
        }
        true
    }

    /// Reaps whoever has ended.
    fn ended(&mut self) -> Vec<(u32, String)> {
        let ended = self.known.extract_if(.., |known| known.process.has_exited());
        let how = |known: Known| {
            let status = known.child.and_then(|mut child| child.wait().ok());
            let how = status.map_or("it is no child of this process".into(), |it| it.to_string());
            (known.process.pid(), how)
        };
        ended.map(how).collect()
    }
}

impl Supervise for Supervisor {
    fn listener(&mut self, name: &str, fd: OwnedFd) -> Result<(), StartError> {
        self.listeners.push((name.into(), fd));
        Ok(())
    }

    fn start(&mut self, launch: &Launch) -> Result<Started, StartError> {
        self.theirs().and_then(|theirs| theirs.resume_from_journal()).map_err(nobody)?;
        if let Some(pid) = self.found() {
            if self.known.iter().all(|known| known.process.pid() != pid) {
                let process = PidFd::open(pid).map_err(io("a pidfd"))?;
                self.known.push(Known { process, child: None });
            }
            return Ok(Started { pid, started: false });
        }
        if let Some(LockState::Held { pid }) = self.data_dir.as_deref().map(lock_state) {
            // It would only fail to take it.
            thread::park_timeout(LOOK);
            return Err(nobody(format!("{pid:?} holds the lock, and does not answer")));
        }
        let mut command = Command::new(&launch.program);
        command.args(&launch.args).envs(launch.env.iter().map(|(name, value)| (name, value)));
        let listeners: Vec<_> =
            self.listeners.iter().map(|(name, fd)| (name.clone(), fd.as_raw_fd())).collect();
        handoff::pass_listener_fds_on_spawn(&mut command, &listeners, None);
        let known = Known::of(command.spawn().map_err(io("the daemon"))?)?;
        let (pid, answers) = (known.process.pid(), self.leads_to(&known));
        self.known.push(known);
        if answers { Ok(Started { pid, started: true }) } else { Err(nobody("it does not answer")) }
    }

    fn handoff(
        &mut self,
        handoff: &Handoff,
        _: &mut dyn FnMut(&Event),
    ) -> Result<Report, StartError> {
        let (launch, durations) = handoff.parts();
        let text = |text: &OsStr| text.to_string_lossy().into_owned();
        let mut spec = SpawnSpec::new(&launch.program);
        spec.args = launch.args.iter().map(|arg| text(arg)).collect();
        spec.env = launch.env.iter().map(|(name, value)| (text(name), text(value))).collect();
        (spec.deadline, spec.drain_grace) = (durations.deadline, durations.drain_grace);
        let unknown = |id, reason, detail| Report {
            id,
            verdict: Verdict::Unknown,
            trouble: Some(Trouble { reason, detail }),
            serving: None,
            ready: None,
            stuck: None,
        };
        Ok(match self.theirs().and_then(|theirs| theirs.perform_handoff(spec)) {
            Ok(HandoffOutcome { handoff_id, child: Some(child), .. }) => {
                let (id, known) = (HandoffId(handoff_id.0), Known::of(child)?);
                let (pid, leads) = (known.process.pid(), self.leads_to(&known));
                self.known.push(known);
                if leads {
                    let (verdict, serving) = (Verdict::Committed, Some(pid));
                    Report { id, verdict, trouble: None, serving, ready: None, stuck: None }
                } else {
                    let why = "they committed, and the control path does not lead to the successor";
                    unknown(id, Reason::SuccessorExited, why.into())
                }
            }
            // That it was rolled back nobody has seen (R4).
            Ok(HandoffOutcome { handoff_id, abort_reason, .. }) => {
                let detail = abort_reason.unwrap_or_default();
                unknown(HandoffId(handoff_id.0), reason(&detail), detail)
            }
            // Of which one it does not say.
            Err(error) => {
                let detail = error.to_string();
                unknown(HandoffId::default(), reason(&detail), detail)
            }
        })
    }

    fn exits(&mut self, time: Duration) -> Result<Vec<(u32, String)>, StartError> {
        let ended = self.ended();
        if !ended.is_empty() {
            return Ok(ended);
        }
        let fds = self.known.iter().map(|known| PollFd::new(&known.process, PollFlags::IN));
        poll::wait(&mut fds.collect::<Vec<_>>(), Some(time)).map_err(io("the daemons"))?;
        Ok(self.ended())
    }

    /// There is no way to.
    fn aborter(&self) -> Arc<dyn Fn() + Send + Sync> {
        Arc::new(|| {})
    }

    fn shutdown(&mut self, grace: Duration) -> Result<Vec<u32>, StartError> {
        for signal in [Signal::TERM, Signal::KILL] {
            for known in &self.known {
                let _ = known.process.signal(signal);
            }
            let limit = Instant::now() + grace;
            for known in &self.known {
                let rest = limit.saturating_duration_since(Instant::now());
                known.process.wait(Some(rest)).map_err(io("a pidfd"))?;
            }
            self.ended();
        }
        Ok(self.known.iter().map(|known| known.process.pid()).collect())
    }
}

/// What their words are in our codes.
fn reason(why: &str) -> Reason {
    let codes = [
        ("seal failed", Reason::SealFailed),
        ("waiting for Drained", Reason::DrainTimeout),
        ("waiting for SealComplete", Reason::SealTimeout),
        ("waiting for Ready", Reason::ReadyTimeout),
        ("waiting for peer Hello", Reason::SuccessorHelloTimeout),
        ("version mismatch", Reason::VersionMismatch),
        ("protocol violation", Reason::ProtocolViolation),
        ("unexpected message", Reason::ProtocolViolation),
        ("ready read failed", Reason::SuccessorExited),
    ];
    let found = codes.iter().find(|(words, _)| why.contains(words));
    found.map_or(Reason::IoError, |(_, reason)| *reason)
}

//! The processes of a run: the daemons, and the supervisor that starts and swaps them.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use handoff_core::supervisor::{Event, Verdict};
use handoff_unix::host::{Handoff, HookError, SupervisorConfig};
use handoff_unix::inherit::Inherited;
use handoff_unix::spawn::Launch;
use serde::{Deserialize, Serialize};

use super::case::Case;
use super::{run, soak};
use crate::adapters::examples;
use crate::suite::part::{self, named};
use crate::suite::program::{LISTENER, control_path, data_dir, journal};
use crate::suite::{Adapter, Fault, Supervise};

/// The name under which a supervisor inherits the socket on which it is told what to do.
pub(super) const BOSS: &str = "boss";

/// What a second supervisor's journal ends with.
pub(super) const RIVAL: &str = "rival";

/// How often a supervisor looks whether a daemon has ended.
const LOOK: Duration = Duration::from_millis(20);

/// From SIGTERM to SIGKILL when a run is over.
const GRACE: Duration = Duration::from_secs(5);

/// A process of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Part {
    /// The run itself, which starts the others.
    Run(Box<Case>),
    /// The same of a soak.
    Soak(soak::Soak),
    /// The supervisor.
    Boss { adapter: String, dir: PathBuf, first: Actor, wrappers: bool, rival: bool },
    /// The example daemon of an adapter.
    Example { adapter: String },
}

impl Part {
    pub(crate) fn play(self, adapters: &[&'static dyn Adapter]) -> Result<u8, HookError> {
        match self {
            Self::Run(case) => run::play(&case),
            Self::Soak(soak) => soak::play(&soak),
            Self::Boss { adapter, dir, first, wrappers, rival } => {
                let mut config =
                    part::config(&dir).policy(|policy| policy.allow_wrappers = wrappers);
                if rival {
                    config = config.journal(journal(&dir).with_extension(RIVAL));
                }
                supervise(named(adapters, &adapter)?, config, &dir, first)?;
                Ok(0)
            }
            Self::Example { adapter } => {
                Ok(code(example(&adapter).ok_or("there is no example of this name")?()))
            }
        }
    }
}

/// The number in an exit code.
fn code(code: ExitCode) -> u8 {
    (0..=u8::MAX).find(|number| ExitCode::from(*number) == code).unwrap_or(1)
}

/// The example daemon of an adapter, if it has one.
fn example(adapter: &str) -> Option<fn() -> ExitCode> {
    match adapter {
        "blocking" => Some(examples::blocking::main),
        "tokio" | "tokio-threads" => Some(examples::tokio::main),
        "smol" => Some(examples::smol::main),
        _ => None,
    }
}

/// A daemon of a run: what it is, and what goes wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Actor {
    /// The example daemon of an adapter: a key-value store over HTTP, with a database. The fault is one
    /// of its own, by the name of a variable.
    Example {
        /// Whose.
        adapter: String,
        /// The variable that is set.
        fault: Option<String>,
    },
    /// The suite's daemon on an adapter: a log of writes.
    Suite {
        /// On which.
        adapter: String,
        /// What goes wrong with it, once.
        fault: Option<Fault>,
    },
    /// One that is not started by itself.
    Wrapped(Wrap, Box<Self>),
}

/// What is around a daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Wrap {
    /// A script that starts it as its child and waits for it.
    Script,
    /// It has a child that stays behind, and holds all that it has inherited.
    Forks,
    /// It has another data directory: the example daemons only.
    Elsewhere,
}

impl Actor {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Example { adapter, fault: None } => format!("kv on {adapter}"),
            Self::Example { adapter, fault: Some(fault) } => format!("kv on {adapter} ({fault})"),
            Self::Suite { adapter, fault: None } => format!("log on {adapter}"),
            Self::Suite { adapter, fault: Some(fault) } => format!("log on {adapter} ({fault:?})"),
            Self::Wrapped(wrap, actor) => format!("{} ({wrap:?})", actor.name()),
        }
    }

    /// The same by itself, without a fault.
    #[must_use]
    pub fn well(&self) -> Self {
        let mut well = self.clone();
        match &mut well {
            Self::Example { fault, .. } => *fault = None,
            Self::Suite { fault, .. } => *fault = None,
            Self::Wrapped(_, actor) => return actor.well(),
        }
        well
    }

    /// How its clients speak to it.
    pub(super) fn speaks(&self) -> Speech {
        match self {
            Self::Example { .. } => Speech::Http,
            Self::Suite { .. } => Speech::Lines,
            Self::Wrapped(_, actor) => actor.speaks(),
        }
    }

    fn launch(&self, dir: &Path) -> io::Result<Launch> {
        let mut launch = match self {
            Self::Example { adapter, fault } => {
                let launch = part::matrix(Part::Example { adapter: adapter.clone() })?
                    .env("KV_CONTROL", control_path(dir))
                    .env("KV_DATA", data_dir(dir));
                match fault {
                    Some(fault) => launch.env(fault, "1"),
                    None => launch,
                }
            }
            Self::Suite { adapter, fault } => part::bare_daemon(adapter, dir, *fault)?,
            Self::Wrapped(wrap, actor) => return wrap.around(actor.launch(dir)?, dir),
        };
        launch.program = program(dir);
        Ok(launch)
    }
}

impl Wrap {
    fn around(self, launch: Launch, dir: &Path) -> io::Result<Launch> {
        match self {
            Self::Script => Ok(by_shell(r#""$0" "$@"; exit $?"#, launch)),
            Self::Forks => Ok(by_shell(r#"sleep 600 & exec "$0" "$@""#, launch)),
            Self::Elsewhere => {
                std::fs::create_dir_all(elsewhere(dir))?;
                Ok(launch.env("KV_DATA", elsewhere(dir)))
            }
        }
    }
}

/// The other data directory.
pub(super) fn elsewhere(dir: &Path) -> PathBuf {
    dir.join("elsewhere")
}

/// What a shell starts with this script.
pub(super) fn by_shell(script: &str, mut launch: Launch) -> Launch {
    let program = std::mem::replace(&mut launch.program, "/bin/sh".into());
    launch.args.splice(0..0, ["-c".into(), script.into(), program.into()]);
    launch
}

/// Where a run's daemons are started from: a link to this binary, so that it can be taken away.
pub(super) fn program(dir: &Path) -> PathBuf {
    dir.join("program")
}

/// How a daemon is spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Speech {
    /// `PUT /key`, answered with 204.
    Http,
    /// A line, answered with a line.
    Lines,
}

impl Speech {
    /// What its daemons call their listener.
    pub(super) const fn listener(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Lines => LISTENER,
        }
    }
}

/// What a run tells its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    Handoff {
        to: Actor,
        limits: Limits,
    },
    Abort,
    /// Who serves?
    Look,
    Stop,
}

/// The durations of a handoff, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// From Prepare to Ready.
    pub deadline: u64,
    /// For the drain.
    pub drain_grace: u64,
    /// For the warm-up.
    pub warm_up: u64,
}

impl Default for Limits {
    /// What leaves room for a rollback within the 10 s in which somebody must serve again.
    fn default() -> Self {
        Self { deadline: 6_000, drain_grace: 2_000, warm_up: 6_000 }
    }
}

/// What a supervisor says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// This process serves.
    Serving {
        pid: u32,
        started: bool,
    },
    /// Nobody does, and nobody could be started.
    Nobody(String),
    Phase(String),
    /// A handoff has ended, or could not begin: then there is no verdict.
    Report {
        text: String,
        verdict: Option<String>,
        reason: Option<String>,
        serving: Option<u32>,
    },
    Exited {
        pid: u32,
        how: String,
    },
    Stopped {
        left: Vec<u32>,
    },
}

/// Starts a daemon, swaps it when told to, and starts another where it finds that nobody serves.
fn supervise(
    adapter: &'static dyn Adapter,
    config: SupervisorConfig,
    dir: &Path,
    first: Actor,
) -> Result<(), HookError> {
    let mut inherited = Inherited::from_env()?;
    let name = first.speaks().listener();
    let listener = inherited.take_tcp(name)?.ok_or("the run passes on a listener")?;
    let talk = UnixStream::from(inherited.take_fd(BOSS).ok_or("the run passes on a socket")?);
    let mut supervisor = adapter.supervisor(config)?;
    supervisor.listener(name, listener.into())?;
    let orders = orders(&talk, &*supervisor)?;
    let say = |word: &Word| -> io::Result<()> {
        let line = serde_json::to_string(word)? + "\n";
        (&talk).write_all(line.as_bytes())
    };
    let (mut current, mut settled) = (first, false);
    loop {
        if !settled {
            match supervisor.start(&current.launch(dir)?) {
                Ok(found) => {
                    say(&Word::Serving { pid: found.pid, started: found.started })?;
                    settled = true;
                }
                Err(error) => say(&Word::Nobody(error.to_string()))?,
            }
        }
        match orders.recv_timeout(Duration::ZERO) {
            Ok(Order::Handoff { to, limits }) => {
                let handoff = Handoff::new(to.launch(dir)?)
                    .deadline(Duration::from_millis(limits.deadline))
                    .drain_grace(Duration::from_millis(limits.drain_grace))
                    .warm_up(Duration::from_millis(limits.warm_up));
                let report = supervisor.handoff(&handoff, &mut |event| {
                    if let Event::Phase(phase) = event {
                        let _ = say(&Word::Phase(format!("{phase:?}")));
                    }
                });
                let word = match &report {
                    Ok(report) => Word::Report {
                        text: report.to_string(),
                        verdict: Some(report.verdict.to_string()),
                        reason: report.trouble.as_ref().map(|it| it.reason.code().to_string()),
                        serving: report.serving,
                    },
                    Err(error) => Word::Report {
                        text: error.to_string(),
                        verdict: None,
                        reason: None,
                        serving: None,
                    },
                };
                settled = report.is_ok_and(|report| report.verdict == Verdict::Committed);
                if settled {
                    current = to.well();
                }
                say(&word)?;
            }
            Ok(Order::Look) => settled = false,
            Ok(Order::Stop) => {
                let left = supervisor.shutdown(GRACE)?;
                say(&Word::Stopped { left })?;
                return Ok(());
            }
            Ok(Order::Abort) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err("the run has gone".into()),
        }
        for (pid, how) in supervisor.exits(LOOK)? {
            say(&Word::Exited { pid, how })?;
            settled = false;
        }
    }
}

/// Reads orders; an abort is carried out at once.
fn orders(talk: &UnixStream, supervisor: &dyn Supervise) -> io::Result<Receiver<Order>> {
    let (sender, orders) = channel();
    let (lines, abort) = (BufReader::new(talk.try_clone()?).lines(), supervisor.aborter());
    std::thread::Builder::new().name("orders".into()).spawn(move || {
        for line in lines.map_while(Result::ok) {
            let Ok(order) = serde_json::from_str(&line) else { return };
            if matches!(order, Order::Abort) {
                abort();
            } else if sender.send(order).is_err() {
                return;
            }
        }
    })?;
    Ok(orders)
}

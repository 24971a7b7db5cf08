//! `handoff doctor`: the system that a daemon runs on. Each thing is looked at by a function of its own, and
//! is good, or is told with its remedy. Nothing is changed.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use handoff_unix::control::ControlPath;
use handoff_unix::lock::{LockState, is_held_by, lock_state};
use handoff_unix::probe::{Found, Users, probe};

use crate::admin::{Entry, Reply, Request, Status};
use crate::cli::Which;
use crate::client::text::quoted;
use crate::config::{self, Config};
use crate::exit;

mod files;
mod kernel;
mod page;
mod process;
mod service;
mod unit;

use page::{Line, Page};
use unit::Unit;

/// How long the supervisor may take to let us in, and to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer.
const LONGEST_REPLY: u64 = 4 << 20;
/// How many entries of the history are looked at.
const HISTORY: usize = 100;

/// Runs the verb.
pub(crate) fn run(which: &Which) -> ExitCode {
    let patient = match Patient::of(which) {
        Ok(patient) => patient,
        Err(mistakes) => {
            let what = if mistakes.unreadable {
                mistakes.to_string()
            } else {
                let file = mistakes.file.display();
                format!("the configuration {file} has {} mistakes", mistakes.list.len())
            };
            let remedy = format!("`handoff check --config {}`", quoted(&mistakes.file));
            let page = Page::new(vec![Line::fail("configuration", what, remedy)]);
            page.print(which.json);
            return mistakes.exit().into();
        }
    };
    let page = Page::new(patient.examine());
    page.print(which.json);
    if page.good() { exit::OK.into() } else { exit::SOFTWARE.into() }
}

/// All that is known before it is looked at.
#[derive(Debug)]
struct Patient {
    /// None where only a socket was named, and its supervisor's file cannot be read.
    config: Option<Config>,
    socket: PathBuf,
    status: Result<Box<Status>, io::Error>,
    /// The newest last.
    history: Vec<Entry>,
    /// Who answers on the control path.
    found: Option<io::Result<Found>>,
    lock: LockState,
    /// How systemd runs the supervisor, if it does.
    unit: Option<Unit>,
    /// What the kernel had counted when this began.
    drops: Option<kernel::Drops>,
}

impl Patient {
    fn of(which: &Which) -> Result<Self, config::Mistakes> {
        let drops = kernel::Drops::now();
        let (config, socket, status) = match &which.socket {
            None => {
                let config = config::read(&which.config)?;
                let socket = config.supervisor.socket.clone();
                let status = status(&socket);
                (Some(config), socket, status)
            }
            Some(socket) => {
                let status = status(socket);
                let told = status.as_ref().ok().map(|status| status.supervisor.config.as_path());
                let named = [Some(which.config.as_path()), told];
                let read = named.into_iter().flatten().filter_map(|file| config::read(file).ok());
                let config = read.into_iter().find(|config| config.supervisor.socket == *socket);
                (config, socket.clone(), status)
            }
        };
        let history = status
            .as_ref()
            .ok()
            .and_then(|_| ask(&socket, &Request::History { last: HISTORY }).ok());
        let history = match history {
            Some(Reply::History { entries }) => entries,
            _ => Vec::new(),
        };
        let found = config.as_ref().map(incumbent);
        let lock = config
            .as_ref()
            .map_or(LockState::Unknown, |config| lock_state(&config.daemon.data_dir));
        let boss = status.as_ref().ok().map(|status| status.supervisor.pid);
        let unit = boss.and_then(Unit::of);
        Ok(Self { config, socket, status, history, found, lock, unit, drops })
    }

    /// The pid of the daemon, from whoever knows.
    fn daemon(&self) -> Option<u32> {
        let answers = self.found.as_ref().and_then(|found| Some(found.as_ref().ok()?.cred.pid));
        let told = self.status.as_ref().ok().and_then(|status| Some(status.serving.as_ref()?.pid));
        let holds = match self.lock {
            LockState::Held { pid } => pid,
            _ => None,
        };
        answers.or(told).or(holds)
    }

    fn boss(&self) -> Option<u32> {
        self.status.as_ref().ok().map(|status| status.supervisor.pid)
    }

    fn in_flight(&self) -> bool {
        self.status.as_ref().is_ok_and(|status| status.flight.is_some())
    }

    fn examine(&self) -> Vec<Line> {
        let mut lines = service::supervisor(self);
        match &self.config {
            Some(config) => {
                lines.extend(service::control(self, config));
                lines.extend(service::lock(self, config));
                lines.extend(files::permissions(self, config));
                lines.extend(files::file_systems(config));
            }
            None => lines.push(Line::warn(
                "configuration",
                "its configuration cannot be read: files, lock and limits are not looked at",
                "name it with --config, and run this as a user who may read it",
            )),
        }
        lines.extend(process::environment(self));
        lines.extend(process::binary(self));
        lines.extend(process::open_files(self));
        lines.extend(kernel::backlogs(self));
        lines.extend(kernel::drops(self));
        lines.extend(kernel::ptrace(self));
        lines.extend(unit::unit(self));
        lines
    }
}

fn incumbent(config: &Config) -> io::Result<Found> {
    let users = Users(config.daemon.user.iter().map(|user| user.uid).collect());
    let control = ControlPath::new(config.daemon.control.clone()).map_err(io::Error::other)?;
    probe(&control, &users)
}

fn status(socket: &Path) -> io::Result<Box<Status>> {
    match ask(socket, &Request::Status { watch: false })? {
        Reply::Status(status) => Ok(status),
        Reply::Refused(refusal) => Err(io::Error::other(refusal.message)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is of another verb")),
    }
}

/// Asks a supervisor one thing, and takes the first line of its answer.
fn ask(socket: &Path, request: &Request) -> io::Result<Reply> {
    let path = ControlPath::new(socket.into()).map_err(io::Error::other)?;
    let mut stream = path.connect(PATIENCE)?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let line = serde_json::to_string(request).map_err(io::Error::other)?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    let read = BufReader::new(stream.take(LONGEST_REPLY)).read_line(&mut answer);
    match read {
        Ok(0) => {
            let text = "it closed the connection without an answer";
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        }
        Ok(_) => serde_json::from_str(&answer)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"))
        }
        Err(error) => Err(error),
    }
}

/// Whether `pid` has the lock, as far as it can be seen.
fn has_lock(config: &Config, lock: LockState, pid: u32) -> bool {
    lock == LockState::Held { pid: Some(pid) } || is_held_by(&config.daemon.data_dir, pid)
}

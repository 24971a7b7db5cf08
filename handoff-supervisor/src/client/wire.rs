//! The connection to a supervisor, and what there is to say when it is not what it should be.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write as _};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use handoff_unix::control::ControlPath;
use handoff_unix::peer::{Credentials, peer_credentials};
use rustix::process::geteuid;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::text::{Again, clean, out, paragraphs, path, quoted, tell};
use crate::admin::{LONGEST_REQUEST, Refusal, Reply, Request};
use crate::cli::Which;
use crate::{config, exit};

/// The longest reply.
const LONGEST_REPLY: u64 = 4 << 20;
/// How much of a reply that is not understood is shown.
const SHOWN: usize = 60;
/// How long a supervisor may take to let a client in, and to answer where it needs nobody else for that.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Why a verb ends without its result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Trouble {
    /// What it exits with.
    pub(super) exit: u8,
    /// What happened, and what to do: lines, wrapped when they are told.
    pub(super) text: String,
    /// What a supervisor said in refusing, for programs.
    pub(super) refusal: Option<Refusal>,
}

impl Trouble {
    pub(super) fn new(exit: u8, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), refusal: None }
    }

    pub(super) fn tell(&self, json: bool) -> ExitCode {
        if let (true, Some(refusal)) = (json, &self.refusal) {
            super::text::json(refusal);
        }
        tell(&paragraphs(&format!("handoff: {}", self.text)));
        self.exit.into()
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        let lines: Vec<String> = refusal.message.lines().map(clean).collect();
        let text = format!("{}: {}", clean(&refusal.code), lines.join("\n"));
        Self { exit: refusal.exit, text, refusal: Some(refusal) }
    }
}

/// A connection to a supervisor.
#[derive(Debug)]
pub(super) struct Link {
    stream: BufReader<UnixStream>,
    socket: PathBuf,
    server: Credentials,
    again: Again,
}

/// What reaches a verb that waits.
#[derive(Debug)]
pub(super) enum Heard {
    /// A reply; none once the connection has ended.
    Reply(Result<Option<Reply>, Trouble>),
    /// The operator wants it to end.
    Signal(i32),
}

impl Link {
    /// Connects, and makes sure that it is somebody to be trusted who listens.
    pub(super) fn open(which: &Which) -> Result<Self, Trouble> {
        let socket = socket_of(which)?;
        let control = ControlPath::new(socket.clone())
            .map_err(|error| Trouble::new(exit::USAGE, error.to_string()))?;
        let stream = control.connect(PATIENCE).map_err(|error| refused(&socket, which, &error))?;
        let ready = stream.set_nonblocking(false).and_then(|()| peer_credentials(&stream));
        let server = ready.map_err(|error| broken(&socket, &error))?;
        if !is_trusted(server.uid, &socket) {
            let whose =
                format!("whoever listens at\n  {}\nis of user {}", path(&socket), server.uid);
            let text = format!(
                "{whose}: not root, not you, and not the owner of the directory. That is no \
                 supervisor to trust; see who put it there."
            );
            return Err(Trouble::new(exit::PERMISSION, text));
        }
        Ok(Self { stream: BufReader::new(stream), socket, server, again: Again::to(which) })
    }

    /// Sends a request.
    pub(super) fn ask(&mut self, request: &Request) -> Result<(), Trouble> {
        let line = serde_json::to_string(request).map_err(|error| {
            Trouble::new(exit::USAGE, format!("this cannot be said to a supervisor: {error}"))
        })? + "\n";
        if line.len() > LONGEST_REQUEST {
            let most = LONGEST_REQUEST / 1024;
            let text =
                format!("that is more than the {most} KiB a supervisor reads; say it shorter");
            return Err(Trouble::new(exit::USAGE, text));
        }
        match self.stream.get_ref().write_all(line.as_bytes()) {
            // A peer that does not read may have said why.
            Err(error) if !is_end(&error) => Err(broken(&self.socket, &error)),
            _ => Ok(()),
        }
    }

    /// The next reply; none where the connection has ended. A reply that was cut off is none.
    pub(super) fn next(&mut self) -> Result<Option<Reply>, Trouble> {
        let mut line = Vec::new();
        let read = self.stream.by_ref().take(LONGEST_REPLY).read_until(b'\n', &mut line);
        match read {
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(read) if read as u64 == LONGEST_REPLY => return Err(self.garbage(&line)),
            Ok(_) => return Ok(None),
            Err(error) if is_end(&error) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let text = format!(
                    "the supervisor (pid {}) does not answer within {} s. See what it does, or \
                     whether it is stopped, with `ps -o stat,wchan,cmd {0}`.",
                    self.server.pid,
                    PATIENCE.as_secs()
                );
                return Err(Trouble::new(exit::UNAVAILABLE, text));
            }
            Err(error) => return Err(broken(&self.socket, &error)),
        }
        serde_json::from_slice(&line).map(Some).map_err(|_| self.garbage(&line))
    }

    /// Asks what a supervisor answers at once.
    pub(super) fn question(&mut self, request: &Request) -> Result<Reply, Trouble> {
        let bound = self.stream.get_ref().set_read_timeout(Some(PATIENCE));
        bound.map_err(|error| broken(&self.socket, &error))?;
        self.ask(request)?;
        match self.next()? {
            Some(Reply::Refused(refusal)) => Err(refusal.into()),
            Some(reply) => Ok(reply),
            None => Err(self.unanswered(exit::UNAVAILABLE)),
        }
    }

    /// Waits for the other side to close, at most as long as it may take to answer.
    pub(super) fn wait_for_end(&mut self) {
        while let Ok(Some(_)) = self.next() {}
    }

    /// Lets a reply take any time.
    pub(super) fn be_patient(&self) -> Result<(), Trouble> {
        let unbound = self.stream.get_ref().set_read_timeout(None);
        unbound.map_err(|error| broken(&self.socket, &error))
    }

    /// All that comes from now on, and the signals that end a process, if `signals` is set: then they no
    /// longer do.
    pub(super) fn listen(mut self, signals: bool) -> Result<Receiver<Heard>, Trouble> {
        let (heard, receiver) = mpsc::sync_channel(0);
        if signals {
            let heard = heard.clone();
            let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|error| {
                Trouble::new(exit::IO, format!("cannot wait for signals: {error}"))
            })?;
            thread::spawn(move || {
                for signal in signals.forever() {
                    if heard.send(Heard::Signal(signal)).is_err() {
                        return;
                    }
                }
            });
        }
        thread::spawn(move || {
            loop {
                let reply = self.next();
                let last = !matches!(reply, Ok(Some(_)));
                if heard.send(Heard::Reply(reply)).is_err() || last {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    /// The connection ended before an answer.
    pub(super) fn unanswered(&self, otherwise: u8) -> Trouble {
        let me = geteuid().as_raw();
        if me != 0 && me != self.server.uid {
            let text = format!(
                "the supervisor (pid {}) closed the connection without an answer, as it does to \
                 users that may not use it. You are user {me}: use sudo, or have yourself added to \
                 `admins` in its configuration.",
                self.server.pid
            );
            return Trouble::new(exit::PERMISSION, text);
        }
        let text = format!(
            "the supervisor (pid {}) closed the connection without an answer. {} tells whether it \
             is still there; its log tells why.",
            self.server.pid,
            self.again.say("status")
        );
        Trouble::new(otherwise, text)
    }

    /// The connection ended where it was to stay.
    pub(super) fn gone(&self) -> Trouble {
        let text = format!(
            "the supervisor (pid {}) has closed the connection: it has ended, or has started anew. {} \
             tells.",
            self.server.pid,
            self.again.say("status")
        );
        Trouble::new(exit::UNAVAILABLE, text)
    }

    /// A reply that belongs to another request.
    pub(super) fn beside(&self) -> Trouble {
        misunderstood(&self.socket, "what came back is no answer to this verb")
    }

    fn garbage(&self, line: &[u8]) -> Trouble {
        let start = &line[..line.len().min(SHOWN)];
        let start = clean(&String::from_utf8_lossy(start));
        misunderstood(&self.socket, &format!("what came back is not understood: {start}"))
    }
}

fn misunderstood(socket: &Path, what: &str) -> Trouble {
    let version = env!("CARGO_PKG_VERSION");
    let text = format!(
        "{what}\nIs that a supervisor that listens at\n  {}\nand is it of the version of this \
         command, {version}?",
        path(socket)
    );
    Trouble::new(exit::PROTOCOL, text)
}

/// Whether the error says no more than that the other side is gone.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected
    )
}

fn broken(socket: &Path, error: &io::Error) -> Trouble {
    let text = format!("cannot speak with the supervisor at\n  {}\n{error}", path(socket));
    Trouble::new(exit::IO, text)
}

/// Root and this process's own user are trusted, and who owns the directory: it may put there what it
/// likes.
fn is_trusted(uid: u32, socket: &Path) -> bool {
    let owner = || fs::metadata(socket.parent()?).ok().map(|directory| directory.uid());
    uid == 0 || uid == geteuid().as_raw() || owner() == Some(uid)
}

fn refused(socket: &Path, which: &Which, error: &io::Error) -> Trouble {
    let place = format!("\n  {}\n", path(socket));
    let start = match which.socket {
        Some(_) => "handoff supervise --config FILE".to_owned(),
        None => format!("handoff supervise --config {}", quoted(&which.config)),
    };
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => {
            let text = format!(
                "no supervisor listens at{place}Start it with `{start}`; where systemd runs it, \
                 `systemctl status` of its unit says why it is not there."
            );
            Trouble::new(exit::UNAVAILABLE, text)
        }
        ErrorKind::PermissionDenied => {
            let me = geteuid().as_raw();
            let text = format!(
                "user {me} may not use the supervisor at{place}Use sudo, or have yourself added to \
                 `admins` in its configuration."
            );
            Trouble::new(exit::PERMISSION, text)
        }
        ErrorKind::TimedOut => {
            let text = format!(
                "the supervisor at{place}lets nobody in. It may be stopped: `ss -xlp` tells its \
                 pid, `ps -o stat,wchan,cmd PID` what it does."
            );
            Trouble::new(exit::UNAVAILABLE, text)
        }
        _ => Trouble::new(exit::IO, format!("cannot connect to the supervisor at{place}{error}")),
    }
}

/// The socket that was named, or that the configuration names.
fn socket_of(which: &Which) -> Result<PathBuf, Trouble> {
    if let Some(socket) = &which.socket {
        return Ok(socket.clone());
    }
    if let Err(error) = File::open(&which.config) {
        let exit = match error.kind() {
            ErrorKind::PermissionDenied => exit::PERMISSION,
            _ => exit::NO_INPUT,
        };
        let text = format!(
            "cannot read the configuration\n  {}\n{error}. Name it with --config, or the \
             supervisor's socket with --socket.",
            path(&which.config)
        );
        return Err(Trouble::new(exit, text));
    }
    let config = config::read(&which.config).map_err(|mistakes| {
        let mut text = String::from("the configuration is wrong, so its supervisor is not found:");
        for mistake in &mistakes.list {
            let line = mistake.line.map(|line| format!(":{line}")).unwrap_or_default();
            let _ = write!(text, "\n{}{line}: {}", path(&mistakes.file), mistake.what);
            if !mistake.remedy.is_empty() {
                let _ = write!(text, "\n  {}", mistake.remedy);
            }
        }
        Trouble::new(exit::CONFIG, text)
    })?;
    Ok(config.supervisor.socket)
}

/// What a verb exits with that a signal ended, as shells have it.
pub(super) fn signalled(signal: i32) -> ExitCode {
    u8::try_from(128 + signal).unwrap_or(exit::SOFTWARE).into()
}

/// Prints, and then it is all done.
pub(super) fn printed(text: &str) -> Result<ExitCode, Trouble> {
    out(text);
    Ok(exit::OK.into())
}

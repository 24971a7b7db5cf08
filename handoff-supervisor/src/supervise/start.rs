//! The beginning of a supervisor: what it finds, what it is given, what it makes.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use handoff_tokio::{Supervisor, SupervisorConfig};
use handoff_unix::control::ControlPath;
use handoff_unix::lock::{LockState, lock_state};
use handoff_unix::probe::{Users, probe};
use handoff_unix::sockets as unix_sockets;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::actor::{Actor, Parts};
use super::keep::Keeper;
use super::launch::refused;
use super::log::Log;
use super::output::Output;
use super::server::{self, Desk};
use super::{Mail, metrics};
use crate::admin::Refusal;
use crate::config::{self, Config};
use crate::exit;
use crate::sockets::{self, Origin};
use crate::systemd::{self, Systemd};

/// What a listener's name begins with among the descriptors that a former binary of this process has kept.
pub(super) const LISTENER: &str = "listener.";
/// The same, for those that a socket unit of systemd has made.
pub(super) const UNIT: &str = "unit.";
/// The lock of the state directory, among them.
pub(super) const LOCK: &str = "lock";
/// The socket for the verbs, among them.
pub(super) const SOCKET: &str = "socket";

type Kept = Option<Vec<(String, OwnedFd)>>;

/// Runs a supervisor to its end.
pub(super) fn start(file: &Path, kept: Kept) -> Result<ExitCode, Refusal> {
    // Before there is any other thread, and for as long as there is one: they wait to be read.
    let signals = signals().map_err(failed("cannot take", Path::new("signals")))?;
    let log = Log::start(io::stderr()).map_err(failed("cannot start", Path::new("its log")))?;
    show(&log);
    let ended = with_log(file, kept, signals, &log);
    log.flush();
    ended
}

fn with_log(file: &Path, kept: Kept, signals: SignalFd, log: &Log) -> Result<ExitCode, Refusal> {
    let config = config::read(file).map_err(|mistakes| {
        let message =
            format!("{mistakes}\n`handoff check --config {}` explains them", file.display());
        refused(exit::CONFIG, "config", message)
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("cannot start", Path::new("its runtime")))?;
    let ended = runtime.block_on(run(config, kept, signals, log.clone()));
    // What still blocks, a probe or a disk, does not hold up the end.
    runtime.shutdown_background();
    ended
}

fn show(log: &Log) {
    let level = match std::env::var("HANDOFF_LOG").as_deref() {
        Ok("error") => tracing::Level::ERROR,
        Ok("warn") => tracing::Level::WARN,
        Ok("debug") => tracing::Level::DEBUG,
        Ok("trace") => tracing::Level::TRACE,
        _ => tracing::Level::INFO,
    };
    // systemd's journal has the time already.
    let timed = std::env::var_os("JOURNAL_STREAM").is_none();
    let lines = tracing_subscriber::fmt().with_writer(log.clone()).with_max_level(level);
    // Nobody may read it any more, which is no reason to end: what cannot be written is lost.
    let lines = lines.log_internal_errors(false);
    // It fails only where there is a log already.
    let _ = lines.event_format(Line { timed }).try_init();
}

/// A line of the log: the time, the level, and what happened. Spans are for who collects traces.
struct Line {
    timed: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        if self.timed {
            let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
            write!(writer, "{now} ")?;
        }
        write!(writer, "{:>5} ", event.metadata().level())?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Refusal {
    let path = path.display().to_string();
    move |error| {
        let code = if error.kind() == io::ErrorKind::PermissionDenied {
            exit::PERMISSION
        } else {
            exit::IO
        };
        refused(code, "io_error", format!("{what} {path}: {error}"))
    }
}

async fn run(config: Config, kept: Kept, signals: SignalFd, log: Log) -> Result<ExitCode, Refusal> {
    let again = kept.is_some();
    let (mut lock, mut socket, mut given) = (None, None, Vec::new());
    for (name, fd) in kept.into_iter().flatten() {
        if let Some(listener) = name.strip_prefix(LISTENER) {
            given.push((listener.to_string(), fd, Origin::Reexec));
        } else if let Some(listener) = name.strip_prefix(UNIT) {
            given.push((listener.to_string(), fd, Origin::Systemd));
        } else if name == LOCK {
            lock = Some(File::from(fd));
        } else if name == SOCKET {
            socket = Some(fd);
        }
    }
    let state_dir = &config.supervisor.state_dir;
    make_dir(state_dir).map_err(failed("cannot make the state directory", state_dir))?;
    let lock = match lock {
        Some(lock) => lock,
        None => alone(&config)?,
    };
    let systemd = Systemd::from_env();
    if !again {
        given.extend(
            systemd::given().map_err(|error| refused(exit::CONFIG, "config", error.to_string()))?,
        );
    }

    let (keeper, state, history, complaints) =
        Keeper::open(state_dir).map_err(failed("cannot read", state_dir))?;
    let output = config.state("output");
    let output = Output::start(output.clone()).map_err(failed("cannot use", &output))?;
    let daemon = daemon(&config)?;
    let gathered = sockets::gather(&config.listeners, given, daemon, &state.listeners)
        .map_err(|trouble| refused(trouble.exit(), "io_error", trouble.to_string()))?;
    for complaint in complaints.iter().chain(&gathered.complaints) {
        tracing::warn!("{complaint}");
    }
    let path = &config.supervisor.socket;
    // Who else may ask is decided by who they are, for which they must get in.
    let mode = if config.supervisor.admins.is_empty() { 0o600 } else { 0o666 };
    let socket = match socket {
        Some(socket) => {
            fs::set_permissions(path, Permissions::from_mode(mode))
                .map_err(failed("cannot change the permissions of", path))?;
            socket
        }
        None => {
            unix_sockets::bind_unix(path, mode, None).map_err(failed("cannot listen at", path))?
        }
    };
    let socket = std::os::unix::net::UnixListener::from(socket);
    let for_reexec =
        socket.try_clone().map_err(failed("cannot keep", &config.supervisor.socket))?;
    socket
        .set_nonblocking(true)
        .and_then(|()| {
            let socket = tokio::net::UnixListener::from_std(socket)?;
            let (mail, inbox) = mpsc::unbounded_channel();
            let (news, heard) = watch::channel(0);
            let admins = config.supervisor.admins.iter().map(|user| user.uid).collect();
            let desk = Desk::new(mail.clone(), heard, Users(admins));
            tokio::spawn(server::serve(socket, desk));
            Ok((mail, inbox, news))
        })
        .map_err(failed("cannot listen at", &config.supervisor.socket))
        .and_then(|(mail, inbox, news)| {
            // Before the supervisor, which says what it measures when it is made.
            if let Some(address) = config.supervisor.metrics {
                metrics::serve(address)
                    .map_err(|error| refused(exit::UNAVAILABLE, "io_error", error))?;
            }
            let supervisor = supervisor(&config)?;
            relay(signals, &mail).map_err(failed("cannot take", Path::new("signals")))?;
            Ok(Parts {
                supervisor: Arc::new(supervisor),
                config,
                keeper,
                state,
                history,
                output,
                gathered,
                systemd,
                log,
                lock,
                socket: for_reexec.into(),
                again,
                mail,
                inbox,
                news,
            })
        })
        .map(Actor::new)?
        .run()
        .await
}

/// SIGTERM, SIGINT and SIGHUP, to be read: none of them ends the process, and what was not read when it puts
/// a new binary into itself is read by that.
fn signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|it| set.add(it));
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

fn relay(signals: SignalFd, mail: &mpsc::UnboundedSender<Mail>) -> io::Result<()> {
    // Deprecated, because a type might name a descriptor that it does not own, for a constructor that is
    // unsafe. This one owns its own.
    #[allow(deprecated)]
    let signals = AsyncFd::new(signals)?;
    let mail = mail.clone();
    tokio::spawn(async move {
        while let Ok(mut ready) = signals.readable().await {
            let heard = match signals.get_ref().read_signal() {
                Ok(Some(it)) if it.ssi_signo == Signal::SIGHUP as u32 => Mail::Reload,
                Ok(Some(_)) => Mail::Terminate,
                Ok(None) | Err(_) => {
                    ready.clear_ready();
                    continue;
                }
            };
            if mail.send(heard).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// One supervisor for a state directory.
fn alone(config: &Config) -> Result<File, Refusal> {
    let path = config.state("supervisor.lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("cannot open", &path))?;
    match file.try_lock() {
        Ok(()) => {
            // For messages only: a full disk keeps no supervisor from its daemon.
            let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
            if let Err(error) = written {
                tracing::warn!("cannot write {}: {error}", path.display());
            }
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let pid = fs::read_to_string(&path).unwrap_or_default();
            let text = format!(
                "another supervisor (pid {}) has {}; stop it first, or talk to it: handoff status",
                pid.trim(),
                config.supervisor.state_dir.display()
            );
            Err(refused(exit::TEMPORARY, "busy", text))
        }
        Err(TryLockError::Error(error)) => Err(failed("cannot lock", &path)(error)),
    }
}

/// The daemon that is there already: who answers on the control path, else who holds the lock (R10).
fn daemon(config: &Config) -> Result<Option<u32>, Refusal> {
    let control = ControlPath::new(config.daemon.control.clone())
        .map_err(|error| refused(exit::CONFIG, "config", error.to_string()))?;
    if let Ok(found) = probe(&control, &users(config)) {
        return Ok(Some(found.cred.pid));
    }
    Ok(match lock_state(&config.daemon.data_dir) {
        // One that cannot be named has no listeners to give, but nobody is started beside it.
        LockState::Held { pid } => Some(pid.unwrap_or(0)),
        LockState::Free | LockState::Unknown => None,
    })
}

/// Who may be the daemon, besides this process's user and root.
pub(super) fn users(config: &Config) -> Users {
    Users(config.daemon.user.iter().map(|user| user.uid).collect())
}

fn supervisor(config: &Config) -> Result<Supervisor, Refusal> {
    let mut watched = SupervisorConfig::new(&config.daemon.control)
        .data_dir(&config.daemon.data_dir)
        .journal(config.state("journal"))
        .policy(|policy| {
            policy.allowed_uids = users(config).0;
            policy.allow_wrappers = config.daemon.wrapper;
            policy.promote = config.handoff.promote;
            policy.strict = config.handoff.strict;
        });
    if config.listeners.is_empty() {
        watched = watched.no_listeners();
    }
    Supervisor::new(watched).map_err(|error| refused(exit::CONFIG, "config", error.to_string()))
}

//! The processes of the suite: each is this same program again, told by its environment what to be.

use std::fs::OpenOptions;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use handoff_unix::host::{Handoff, HookError, SupervisorConfig};
use handoff_unix::inherit::Inherited;
use handoff_unix::process::PidFd;
use handoff_unix::spawn::Launch;
use serde::{Deserialize, Serialize};

use super::program::{LISTENER, control_path, data_dir, journal};
use super::{Adapter, Fault, PATIENCE, Program};
use crate::probe::puppet;

/// The variable that tells a process what to be.
const PART: &str = "CONFORMANCE_PART";

/// The variable that tells it the pid of who runs the suite, which it does not outlive.
pub(crate) const SUITE: &str = "CONFORMANCE_SUITE";

#[derive(Serialize, Deserialize)]
enum Part {
    Daemon {
        adapter: String,
        dir: PathBuf,
        fault: Option<Fault>,
    },
    Supervisor {
        adapter: String,
        dir: PathBuf,
        successor: Successor,
    },
    Puppet,
    #[cfg(feature = "adapters")]
    Matrix(crate::matrix::Part),
}

/// Whom a supervisor of the suite hands off to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Successor {
    /// A daemon of the same adapter.
    Daemon(Option<Fault>),
    /// A puppet of the probe's.
    Puppet,
}

/// Is a process of the suite, if this is one, and does not return then.
///
/// To be called first in a program that runs the suite, because its processes are started from the same
/// binary. In a binary of libtest's the place for it is an ignored test with the name `part`.
pub fn play(adapters: &[&'static dyn Adapter]) {
    let Some(part) = std::env::var_os(PART) else { return };
    #[cfg(feature = "adapters")]
    crate::matrix::keep();
    let suite = std::env::var(SUITE).ok().and_then(|pid| pid.parse().ok());
    if let Some(Ok(suite)) = suite.map(PidFd::open) {
        std::thread::spawn(move || {
            let _ = suite.wait(None);
            std::process::exit(9);
        });
    }
    let played = serde_json::from_slice(part.as_encoded_bytes())
        .map_err(HookError::from)
        .and_then(|part| play_as(part, adapters));
    let code = played.unwrap_or_else(|error| {
        eprintln!("conformance: {error}");
        1
    });
    std::process::exit(code.into());
}

fn play_as(part: Part, adapters: &[&'static dyn Adapter]) -> Result<u8, HookError> {
    match part {
        Part::Daemon { fault: Some(Fault::ExitsAtOnce), .. } => Ok(3),
        Part::Daemon { adapter, dir, fault } => {
            Ok(named(adapters, &adapter)?.daemon(Program::new(dir, fault)).exit_code())
        }
        Part::Supervisor { adapter, dir, successor } => {
            supervise(named(adapters, &adapter)?, &dir, successor)?;
            Ok(0)
        }
        #[cfg(feature = "adapters")]
        Part::Matrix(part) => part.play(adapters),
        Part::Puppet => Ok(if puppet::run()? == ExitCode::SUCCESS { 0 } else { 75 }),
    }
}

/// The adapter of this name.
pub(crate) fn named(
    adapters: &[&'static dyn Adapter],
    name: &str,
) -> Result<&'static dyn Adapter, String> {
    let adapter = adapters.iter().find(|adapter| adapter.name() == name);
    adapter.copied().ok_or_else(|| format!("this program has no adapter {name}"))
}

/// Hands off once.
fn supervise(
    adapter: &'static dyn Adapter,
    dir: &Path,
    successor: Successor,
) -> Result<(), HookError> {
    let config = match successor {
        Successor::Daemon(_) => config(dir),
        // It takes no lock, and must not be expected to.
        Successor::Puppet => SupervisorConfig::new(control_path(dir)),
    };
    let mut supervisor = adapter.supervisor(config)?;
    let listener = match Inherited::from_env()?.take_tcp(LISTENER)? {
        Some(listener) => listener,
        None => TcpListener::bind("127.0.0.1:0")?,
    };
    supervisor.listener(LISTENER, listener.into())?;
    let launch = match successor {
        Successor::Daemon(fault) => daemon(adapter, dir, fault)?,
        Successor::Puppet => again(&Part::Puppet)?,
    };
    println!("{}", supervisor.handoff(&Handoff::new(launch), &mut |_| {})?);
    supervisor.exits(PATIENCE)?;
    Ok(())
}

/// What a supervisor of the daemon in `dir` watches over.
#[must_use]
pub fn config(dir: &Path) -> SupervisorConfig {
    SupervisorConfig::new(control_path(dir)).data_dir(data_dir(dir)).journal(journal(dir))
}

/// A daemon in `dir`, with what goes wrong with it, that prints nothing.
///
/// # Errors
///
/// The operating system does not tell which binary this is.
pub fn daemon(adapter: &dyn Adapter, dir: &Path, fault: Option<Fault>) -> io::Result<Launch> {
    let null: Arc<OwnedFd> = Arc::new(OpenOptions::new().write(true).open("/dev/null")?.into());
    Ok(bare_daemon(adapter.name(), dir, fault)?.stdout(Arc::clone(&null)).stderr(null))
}

/// The same with this process's output.
pub(crate) fn bare_daemon(adapter: &str, dir: &Path, fault: Option<Fault>) -> io::Result<Launch> {
    again(&Part::Daemon { adapter: adapter.into(), dir: dir.into(), fault })
}

pub(super) fn supervisor(
    adapter: &dyn Adapter,
    dir: &Path,
    successor: Successor,
) -> io::Result<Launch> {
    again(&Part::Supervisor { adapter: adapter.name().into(), dir: dir.into(), successor })
}

/// A part of the matrix's.
#[cfg(feature = "adapters")]
pub(crate) fn matrix(part: crate::matrix::Part) -> io::Result<Launch> {
    again(&Part::Matrix(part))
}

fn again(part: &Part) -> io::Result<Launch> {
    let program = std::env::current_exe()?;
    // For a binary of libtest's; all others look at the variable first.
    let launch = Launch::new(program).args(["part", "--exact", "--ignored", "--nocapture"]);
    let suite = std::env::var(SUITE).unwrap_or_else(|_| std::process::id().to_string());
    Ok(launch.env(PART, serde_json::to_string(part)?).env(SUITE, suite))
}

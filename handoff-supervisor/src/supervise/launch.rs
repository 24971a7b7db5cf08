//! What is started: from the configuration to a process.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use handoff_tokio::Launch;

use super::keep::Binary;
use crate::admin::Refusal;
use crate::cli::RUN_AS;
use crate::config::Config;
use crate::exit;

/// The binary that is to be started: the one that was named, or the configured one.
///
/// # Errors
///
/// It is not there, or the configuration does not allow it.
pub(super) fn binary(config: &Config, named: Option<&Path>) -> Result<Binary, Refusal> {
    let path = named.unwrap_or(&config.daemon.command);
    if !path.is_absolute() {
        return Err(refused(
            exit::USAGE,
            "bad_request",
            format!("{}: give the binary's full path", path.display()),
        ));
    }
    let binary = Binary::at(path).map_err(|error| {
        let message = format!("{}: {error}; check the path", path.display());
        refused(exit::NO_INPUT, "successor_exec_failed", message)
    })?;
    let allowed = |path: &Path| config.allows(path);
    if allowed(path) && allowed(&binary.path) {
        return Ok(binary);
    }
    let mut message = format!("{} is not allowed", path.display());
    if binary.path != path {
        message.push_str(&format!(" (it is {})", binary.path.display()));
    }
    let list = config.handoff.binaries.join(", ");
    message.push_str(&format!("; `binaries` in {} allows {list}", config.file.display()));
    Err(refused(exit::PERMISSION, "not_allowed", message))
}

pub(super) fn refused(exit: u8, code: &str, message: String) -> Refusal {
    Refusal { code: code.to_string(), exit, message }
}

/// How it is started, its output going to `stdout` and `stderr`.
///
/// # Errors
///
/// This process's own binary cannot be found, which is what becomes another user.
pub(super) fn launch(
    config: &Config,
    binary: &Binary,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> io::Result<Launch> {
    let daemon = &config.daemon;
    let (program, mut args) = match &daemon.user {
        Some(user) if user.uid != rustix::process::geteuid().as_raw() => {
            let groups: Vec<String> = user.groups.iter().map(u32::to_string).collect();
            let args: Vec<OsString> = vec![
                RUN_AS.into(),
                user.uid.to_string().into(),
                user.gid.to_string().into(),
                groups.join(",").into(),
                "--".into(),
                binary.path.clone().into(),
            ];
            (own_binary()?, args)
        }
        _ => (binary.path.clone(), Vec::new()),
    };
    args.extend(daemon.args.iter().map(OsString::from));
    let mut launch = Launch::new(program).args(args);
    launch = launch.env("HANDOFF_CONTROL", &daemon.control).env("HANDOFF_DATA", &daemon.data_dir);
    for (name, value) in &daemon.environment {
        launch = launch.env(name, value);
    }
    if let Some(dir) = &daemon.directory {
        launch = launch.current_dir(dir);
    }
    Ok(launch.stdout(Arc::new(stdout)).stderr(Arc::new(stderr)))
}

/// The file this process runs, even where another has taken its place.
fn own_binary() -> io::Result<PathBuf> {
    let path = env::current_exe()?;
    Ok(if path.exists() { path } else { "/proc/self/exe".into() })
}

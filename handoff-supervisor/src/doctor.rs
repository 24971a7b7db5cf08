//! `handoff doctor`: the system that a daemon runs on.

use std::process::ExitCode;

use crate::cli::Which;

/// Runs the verb.
pub fn run(_which: &Which) -> ExitCode {
    crate::exit::CONFIG.into()
}

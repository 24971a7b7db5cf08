//! `handoff check`: what is wrong with a configuration, and with what it names.

use std::path::Path;
use std::process::ExitCode;

/// Runs the verb.
pub fn run(_config: &Path, _json: bool) -> ExitCode {
    crate::exit::CONFIG.into()
}

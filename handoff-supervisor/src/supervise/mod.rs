//! `handoff supervise`: the process that keeps its pid for ever.

use std::path::Path;
use std::process::ExitCode;

/// Runs the verb.
pub fn run(_config: &Path) -> ExitCode {
    crate::exit::CONFIG.into()
}

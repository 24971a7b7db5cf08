//! The verbs that talk to a supervisor.

use std::process::ExitCode;

use crate::cli::Verb;

/// Runs one.
pub fn run(_verb: Verb) -> ExitCode {
    crate::exit::UNAVAILABLE.into()
}

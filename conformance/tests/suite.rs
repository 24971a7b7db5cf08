//! The suite, on all of this project's adapters.

use std::process::ExitCode;

use conformance::{adapters, suite};

fn main() -> ExitCode {
    suite::test(&adapters::ALL)
}

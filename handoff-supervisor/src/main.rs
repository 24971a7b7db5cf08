//! The `handoff` command.

mod demo;

// The daemons of the demo are the examples that people copy: there is one of each.
#[path = "../../handoff-blocking/examples/kv.rs"]
pub mod kv_blocking;
#[path = "../../handoff-smol/examples/kv.rs"]
pub mod kv_smol;
#[path = "../../handoff-tokio/examples/kv.rs"]
pub mod kv_tokio;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Replaces the binary of a running daemon: no refused connection, no lost acknowledged write.
#[derive(Debug, Parser)]
#[command(name = "handoff", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Shows it: swaps a key-value daemon under load, in a temporary folder.
    Demo(demo::Options),
    /// The key-value daemon of the demo.
    #[command(hide = true, name = demo::DAEMON_VERB)]
    Kv {
        /// What it runs on
        runtime: demo::Runtime,
    },
}

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Demo(options) => demo::run(&options),
        Verb::Kv { runtime } => demo::daemon(runtime),
    }
}

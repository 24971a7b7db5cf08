//! The `handoff` command.

mod admin;
mod check;
mod cli;
mod client;
mod config;
mod demo;
mod doctor;
mod exit;
mod run_as;
mod sockets;
mod supervise;
mod system;
mod systemd;
mod timeline;

// The daemons of the demo are the examples that people copy: there is one of each.
#[path = "../../handoff-blocking/examples/kv.rs"]
pub mod kv_blocking;
#[path = "../../handoff-smol/examples/kv.rs"]
pub mod kv_smol;
#[path = "../../handoff-tokio/examples/kv.rs"]
pub mod kv_tokio;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Verb};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { exit::USAGE } else { exit::OK }.into();
        }
    };
    match cli.verb {
        Verb::Supervise { config } => supervise::run(&config),
        Verb::Check { config, json } => check::run(&config, json),
        Verb::Doctor { which } => doctor::run(&which),
        Verb::Demo(options) => demo::run(&options),
        Verb::Kv { runtime } => demo::daemon(runtime),
        Verb::RunAs { uid, gid, groups, program, args } => {
            run_as::run(uid, gid, &groups, &program, &args)
        }
        verb => client::run(verb),
    }
}

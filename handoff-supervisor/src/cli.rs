//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::{config, demo};

/// Replaces the binary of a running daemon: no refused connection, no lost acknowledged write.
#[derive(Debug, Parser)]
#[command(name = "handoff", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

/// Which supervisor.
#[derive(Clone, Debug, Args)]
pub(crate) struct Which {
    /// The supervisor's configuration, which names its socket
    #[arg(long, value_name = "FILE", env = "HANDOFF_CONFIG", default_value = config::DEFAULT)]
    pub config: PathBuf,
    /// The supervisor's socket, instead of a configuration
    #[arg(long, value_name = "PATH", env = "HANDOFF_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// What is said of any handoff.
#[derive(Clone, Debug, Args)]
pub(crate) struct Asked {
    /// Wait for the outcome, with progress (the default)
    #[arg(long, overrides_with = "no_wait")]
    pub wait: bool,
    /// Return when it has begun
    #[arg(long)]
    pub no_wait: bool,
    /// Why, for the history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Two requests with the same key are one handoff
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Write who did what when, as a picture (SVG)
    #[arg(long, value_name = "FILE", conflicts_with = "no_wait")]
    pub timeline: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Runs a daemon: starts it, watches it, swaps its binary on demand
    Supervise {
        /// Its configuration
        #[arg(long, value_name = "FILE", env = "HANDOFF_CONFIG", default_value = config::DEFAULT)]
        config: PathBuf,
    },
    /// Looks for mistakes in a configuration and explains each
    Check {
        /// The configuration
        #[arg(long, value_name = "FILE", env = "HANDOFF_CONFIG", default_value = config::DEFAULT)]
        config: PathBuf,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Tells who serves, what is under way, and what happened last
    Status {
        #[command(flatten)]
        which: Which,
        /// Go on, and show each change
        #[arg(long)]
        watch: bool,
    },
    /// Replaces the daemon: by a new binary, or by the configured one started anew
    Swap {
        /// The new binary
        binary: Option<PathBuf>,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        asked: Asked,
        /// Have the new binary start, warm up and say Hello, then end it; the daemon is left alone
        #[arg(long)]
        dry_run: bool,
        /// How long until the new daemon must be ready, from when the old one is told (60s)
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        deadline: Option<Duration>,
        /// How long the old daemon may take to finish what is in flight (30s)
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        drain_grace: Option<Duration>,
    },
    /// Rolls back the swap that is under way
    Abort {
        #[command(flatten)]
        which: Which,
    },
    /// Swaps back to the binary that served before
    Rollback {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        asked: Asked,
    },
    /// Lists what has happened
    History {
        #[command(flatten)]
        which: Which,
        /// How many entries
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        last: usize,
    },
    /// Examines the system a daemon runs on: each line is good, or says what to do
    Doctor {
        #[command(flatten)]
        which: Which,
    },
    /// Puts a new binary of the supervisor into its process; daemon and sockets stay
    Reexec {
        #[command(flatten)]
        which: Which,
        /// The new binary of `handoff`, if not in the place of the old one
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
    },
    /// Stops the daemon and its supervisor
    Stop {
        #[command(flatten)]
        which: Which,
    },
    /// Prints completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Prints the man page
    Man,
    /// Shows it: swaps a key-value daemon under load, in a temporary folder
    Demo(demo::Options),
    /// The key-value daemon of the demo.
    #[command(hide = true, name = demo::DAEMON_VERB)]
    Kv {
        /// What it runs on
        runtime: demo::Runtime,
    },
    /// Becomes another user and then the program: how a supervisor starts a daemon of another user.
    #[command(hide = true, name = RUN_AS)]
    RunAs {
        uid: u32,
        gid: u32,
        /// Its groups, with commas between them
        groups: String,
        program: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
}

/// The verb of [`Verb::RunAs`].
pub(crate) const RUN_AS: &str = "run-as";

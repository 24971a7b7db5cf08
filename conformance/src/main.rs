//! Shows whether an implementation of the handoff protocol keeps it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use conformance::probe::{Case, Incumbent, Report, Successor, Supervisor, puppet};
use handoff_unix::spawn::Launch;

/// EX_USAGE of sysexits.h.
const USAGE: u8 = 64;

/// Shows whether an implementation of the handoff protocol keeps it.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Drives an implementation from outside, a clause of the protocol at a time.
    ///
    /// Exits with 0 if all that was looked at is as the protocol says, with 1 if something is not, and
    /// with 64 if it was not told what to do.
    #[command(subcommand)]
    Probe(Probe),
    /// What `probe supervisor` wants a supervisor to start as the successor.
    #[command(hide = true)]
    ProbeSuccessor,
}

#[derive(Subcommand)]
enum Probe {
    /// A daemon that serves. It is left serving, unless --commit is given.
    ///
    /// The probe plays the supervisor: handoffs begin, and are taken back.
    Incumbent {
        /// The control path at which the daemon serves.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// The directory whose lock it holds, for what can be seen there.
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Also run what takes half a minute.
        #[arg(long)]
        slow: bool,
        /// Run only the cases of this clause, or whose name holds these words; may be given again.
        #[arg(long)]
        only: Vec<String>,
        /// Commit in the end, after which the daemon has exited. Needs --data-dir.
        #[arg(long, requires = "data_dir")]
        commit: bool,
        #[command(flatten)]
        how: How,
    },
    /// A program that takes over, started anew for each case.
    ///
    /// The probe plays the supervisor that starts it, and the incumbent before it.
    Successor {
        /// A listener for it to inherit: a name, and HOST:PORT or the path of a Unix socket.
        #[arg(long = "listener", value_name = "NAME=ADDR", value_parser = listener)]
        listeners: Vec<(String, String)>,
        /// The control path at which it will serve. Nobody may serve there.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
        /// The directory whose lock it will take. Nobody may hold it.
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Also run what takes ten seconds.
        #[arg(long)]
        slow: bool,
        /// Show what it prints.
        #[arg(long)]
        output: bool,
        #[command(flatten)]
        how: How,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// A command that hands off, run anew for each case.
    ///
    /// The probe plays the incumbent, at --socket. The successor that the command starts has to be
    /// `conformance probe-successor`, with the command's own environment.
    Supervisor {
        /// The control path at which the command looks for the incumbent. Nobody may serve there.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// Show what it prints.
        #[arg(long)]
        output: bool,
        #[command(flatten)]
        how: How,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Args)]
struct How {
    /// How long may take what the protocol sets no bound to.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,
    /// One line for each case that has passed.
    #[arg(long)]
    brief: bool,
    /// Print one JSON document instead, with a transcript of each case.
    #[arg(long)]
    json: bool,
}

impl How {
    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }

    /// Runs it, and prints what it finds, as it finds it.
    fn show(
        &self,
        role: &str,
        target: &str,
        probe: impl FnOnce(&mut dyn FnMut(&Case)) -> Report,
    ) -> ExitCode {
        let print = |text: &str| {
            // Who has stopped reading wants no more of it; the exit code is still the answer.
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        };
        if !self.json {
            print(&Report::heading(role, target));
        }
        let report = probe(&mut |case| {
            if !self.json {
                let gap = if self.brief { "" } else { "\n" };
                print(&format!("{gap}{}", case.text(self.brief)));
            }
        });
        if self.json {
            match serde_json::to_string_pretty(&report) {
                Ok(json) => print(&format!("{json}\n")),
                Err(error) => eprintln!("conformance: {error}"),
            }
        } else {
            print(&report.summary());
        }
        if report.all_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn listener(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, _)) if handoff_unix::spawn::name_problem(name).is_some() => {
            Err("a name is not empty and has no colon".into())
        }
        Some((name, address)) if !address.is_empty() => Ok((name.into(), address.into())),
        _ => Err("expected NAME=HOST:PORT or NAME=/PATH".into()),
    }
}

fn launch(command: Vec<String>) -> Launch {
    let mut words = command.into_iter();
    Launch::new(words.next().unwrap_or_default()).args(words)
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _ = error.print();
            return ExitCode::from(if asked { 0 } else { USAGE });
        }
    };
    let done = match cli.command {
        Command::Probe(probe) => run(probe),
        Command::ProbeSuccessor => puppet::run().map_err(|error| error.to_string()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("conformance: {error}");
        ExitCode::from(USAGE)
    })
}

fn run(probe: Probe) -> Result<ExitCode, String> {
    match probe {
        Probe::Incumbent { socket, data_dir, slow, only, commit, how } => {
            let mut probe = Incumbent::new(socket)
                .map_err(|error| error.to_string())?
                .patience(how.patience())
                .slow(slow)
                .commit(commit);
            for words in only {
                probe = probe.only(words);
            }
            if let Some(dir) = data_dir {
                probe = probe.data_dir(dir);
            }
            Ok(how.show("incumbent", &probe.target(), |on| probe.probe(on)))
        }
        Probe::Successor { listeners, socket, data_dir, slow, output, how, command } => {
            let mut probe =
                Successor::new(launch(command), output).patience(how.patience()).slow(slow);
            for (name, address) in listeners {
                probe = probe
                    .listener(&name, &address)
                    .map_err(|error| format!("cannot listen at {address}: {error}"))?;
            }
            if let Some(socket) = socket {
                probe = probe.socket(socket).map_err(|error| error.to_string())?;
            }
            if let Some(dir) = data_dir {
                probe = probe.data_dir(dir);
            }
            Ok(how.show("successor", &probe.target(), |on| probe.probe(on)))
        }
        Probe::Supervisor { socket, output, how, command } => {
            let probe = Supervisor::new(socket, launch(command), output)
                .map_err(|error| error.to_string())?
                .patience(how.patience());
            Ok(how.show("supervisor", &probe.target(), |on| probe.probe(on)))
        }
    }
}

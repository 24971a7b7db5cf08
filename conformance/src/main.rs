//! Shows whether an implementation of the handoff protocol keeps it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use conformance::adapters;
use conformance::probe::{Case, Incumbent, Report, Successor, Supervisor, puppet};
use conformance::suite::{self, Adapter, Options};
use handoff_unix::spawn::Launch;
use indicatif::{ProgressBar, ProgressStyle};

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
    /// Takes this project's adapters through every scenario, and prints a table.
    ///
    /// An adapter of your own gets the same from `conformance::suite::test`. Exits with 0 if nothing
    /// failed, with 1 if something did.
    Suite(Suite),
    /// What `probe supervisor` wants a supervisor to start as the successor.
    #[command(hide = true)]
    ProbeSuccessor,
}

#[derive(Args)]
struct Suite {
    /// Only this adapter; may be given again.
    #[arg(long, value_name = "NAME", value_parser = adapters())]
    adapter: Vec<String>,
    /// Only the scenarios of this clause, or whose name holds these words; may be given again.
    #[arg(long, value_name = "WORDS")]
    only: Vec<String>,
    /// How many run at a time; they wait more than they work.
    #[arg(long, default_value_t = Options::default().jobs)]
    jobs: usize,
    /// Print one JSON document instead.
    #[arg(long)]
    json: bool,
}

fn adapters() -> PossibleValuesParser {
    PossibleValuesParser::new(adapters::ALL.map(|adapter| adapter.name()))
}

impl Suite {
    fn run(self) -> Result<ExitCode, String> {
        let wanted = |adapter: &&dyn Adapter| {
            self.adapter.is_empty() || self.adapter.iter().any(|name| name == adapter.name())
        };
        let adapters: Vec<_> = adapters::ALL.into_iter().filter(wanted).collect();
        let options = Options { only: self.only, jobs: self.jobs };
        // It is drawn on a terminal only.
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{pos}/{len}  {elapsed}  {wide_msg}");
        bar.set_style(style.map_err(|error| error.to_string())?);
        // Why a scenario failed is in the table.
        std::panic::set_hook(Box::new(|_| {}));
        let table = suite::run(&adapters, &options, |scenario, cell, all| {
            bar.set_length(all as u64);
            bar.inc(1);
            bar.set_message(format!("{}: {}", cell.adapter, scenario.name));
        });
        bar.finish_and_clear();
        if table.rows.is_empty() {
            return Err("no scenario is of that clause, or has these words in its name".into());
        }
        let text = if self.json {
            serde_json::to_string_pretty(&table).map_err(|error| error.to_string())? + "\n"
        } else {
            table.to_string()
        };
        print(&text);
        Ok(if table.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
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

fn print(text: &str) {
    // Who has stopped reading wants no more of it; the exit code is still the answer.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
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
    suite::play(&adapters::ALL);
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
        Command::Suite(suite) => suite.run(),
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

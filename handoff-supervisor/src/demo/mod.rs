//! `handoff demo`: a daemon is swapped under load, on real parts.
//!
//! [`stage`] is where it takes place, [`load`] the clients, [`report`] what is shown of it. Here is
//! the order of events.

mod load;
mod report;
mod stage;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use handoff_blocking::{Aborter, Event, Phase, Reason, Report, StartError, Verdict};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use load::{Load, StopLoad};
use report::{Progress, Summary};
use stage::{Stage, Successor};

/// The hidden verb that makes this binary the demo's daemon.
pub(crate) const DAEMON_VERB: &str = "demo-daemon";

/// What the load may run on for, beyond the time it was asked for, while the last swaps end.
const OVERTIME: Duration = Duration::from_secs(120);

/// Shows what handoff does: swaps a key-value daemon that is under load, as real processes in a
/// temporary folder, and counts what its clients saw.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How long the load runs; longer where the swaps take longer
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// How many clients there are, up to 128; one half writes, the other reads
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=i64::from(stage::MOST_CLIENTS)))]
    clients: u32,
    /// How many swaps are to succeed; two more are to be rolled back
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    swaps: u32,
    /// What the daemons run on
    #[arg(long, value_enum, default_value_t = Runtime::Blocking)]
    runtime: Runtime,
    /// What the first daemon runs on; each swap goes to the other of the two
    #[arg(long, value_enum, requires = "to", conflicts_with = "runtime")]
    from: Option<Runtime>,
    /// What its successor runs on
    #[arg(long, value_enum, requires = "from")]
    to: Option<Runtime>,
    /// Print one JSON object instead of the report
    #[arg(long)]
    json: bool,
}

impl Options {
    /// What the daemons run on, the first of them first.
    fn runtimes(&self) -> [Runtime; 2] {
        [self.from.unwrap_or(self.runtime), self.to.unwrap_or(self.runtime)]
    }
}

/// What a daemon runs on: the same daemon, once for each adapter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Runtime {
    // Threads and blocking sockets.
    Blocking,
    // tokio, with axum.
    Tokio,
    // smol.
    Smol,
    // The daemon for smol, unchanged, in a program on async-std.
    AsyncStd,
}

impl Runtime {
    /// As it is written on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Tokio => "tokio",
            Self::Smol => "smol",
            Self::AsyncStd => "async-std",
        }
    }
}

/// Runs the daemon of the demo.
pub(crate) fn daemon(runtime: Runtime) -> ExitCode {
    match runtime {
        Runtime::Blocking => crate::kv_blocking::main(),
        Runtime::Tokio => crate::kv_tokio::main(),
        Runtime::Smol => crate::kv_smol::main(),
        Runtime::AsyncStd => crate::kv_smol::main_on(async_std::task::block_on),
    }
}

/// Why there is nothing to report.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("interrupted")]
    Interrupted(i32),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error("these processes would not end, kill them by hand: {0:?}")]
    Stuck(Vec<u32>),
}

impl Failure {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// One swap, as it went.
#[derive(Debug)]
struct Swap {
    successor: Successor,
    old: u32,
    /// What the two run on.
    runtimes: [Runtime; 2],
    start: Instant,
    phases: Vec<(Phase, Instant)>,
    end: Instant,
    report: Report,
}

impl Swap {
    /// Whether it ended as its successor was made to make it end.
    fn is_as_expected(&self) -> bool {
        let Report { verdict, trouble, serving, .. } = &self.report;
        let reason = trouble.as_ref().map(|trouble| trouble.reason);
        let rolled_back = *verdict == Verdict::RolledBack && *serving == Some(self.old);
        match self.successor {
            Successor::Serves => {
                *verdict == Verdict::Committed
                    && reason.is_none()
                    && serving.is_some_and(|pid| pid != self.old)
            }
            Successor::Unhealthy => rolled_back && reason == Some(Reason::Unhealthy),
            Successor::Dies => rolled_back && reason == Some(Reason::SuccessorExited),
        }
    }
}

/// Runs the demo. Fails if a request failed, a write was lost or a swap went otherwise than it should.
pub(crate) fn run(options: &Options) -> ExitCode {
    match perform(options) {
        Ok(summary) => {
            summary.print(options.json);
            if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(Failure::Interrupted(signal)) => {
            report::tell("interrupted; every process is ended and the folder is removed");
            // As a shell says it.
            ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
        }
        Err(error) => {
            report::tell(format!("handoff demo: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn perform(options: &Options) -> Result<Summary, Failure> {
    // Before there is anything to leave behind.
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]);
    let signals = signals.map_err(Failure::io("cannot handle signals"))?;
    let mut stage = Stage::set()?;
    let interrupt = Interrupt::watch(signals, stage.supervisor.aborter())
        .map_err(Failure::io("cannot start a thread"))?;
    let load = Arc::new(Load::new(stage.address, options.clients));
    let progress = Progress::new(&load, options);

    let swapped = swap_and_read_back(options, &mut stage, &load, &interrupt, &progress);
    let log = stage.clear()?;
    progress.ended();
    let (swaps, lost) = swapped?;
    interrupt.check()?;
    Ok(Summary::new(swaps, options, &load, lost, log))
}

/// What became of the swaps, and how many writes were lost.
fn swap_and_read_back(
    options: &Options,
    stage: &mut Stage,
    load: &Load,
    interrupt: &Interrupt,
    progress: &Progress,
) -> Result<(Vec<Swap>, u64), Failure> {
    let [runtime, _] = options.runtimes();
    let pid = stage.start(runtime)?;
    interrupt.check()?;
    progress.started(stage.address, pid, runtime);
    let swaps = swap_under_load(options, stage, load, interrupt, progress, pid)?;
    progress.reads_back();
    Ok((swaps, load.read_back(interrupt.flag())))
}

fn swap_under_load(
    options: &Options,
    stage: &mut Stage,
    load: &Load,
    interrupt: &Interrupt,
    progress: &Progress,
    mut serving: u32,
) -> Result<Vec<Swap>, Failure> {
    let time = Duration::from_secs(options.seconds.into());
    let (start, plan) = (Instant::now(), plan(options.swaps));
    let slot = time / u32::try_from(plan.len()).unwrap_or(u32::MAX);
    let mut swaps = Vec::new();
    let mut runtimes = options.runtimes();
    thread::scope(|scope| {
        let _stop = StopLoad(load);
        for client in 0..options.clients {
            let run = move || load.client(client, start + time + OVERTIME);
            let client = thread::Builder::new().spawn_scoped(scope, run);
            client.map_err(Failure::io("cannot start a client"))?;
        }
        for (place, successor) in (0..).zip(plan) {
            interrupt.wait_until(start + slot * place + slot / 2)?;
            let on = |phase| progress.phase(place, phase);
            let swap = swap(stage, successor, serving, runtimes, on)?;
            interrupt.check()?;
            progress.swapped(place, &swap);
            let goes_on = swap.is_as_expected();
            if swap.report.verdict == Verdict::Committed {
                runtimes.reverse();
            }
            serving = swap.report.serving.unwrap_or(serving);
            swaps.push(swap);
            if !goes_on {
                break;
            }
        }
        interrupt.wait_until(start + time)
    })?;
    Ok(swaps)
}

/// The two that are to fail come in between, so that swaps are seen to succeed after them.
fn plan(swaps: u32) -> Vec<Successor> {
    let swaps = swaps as usize;
    let mut plan = vec![Successor::Serves; swaps];
    plan.insert(swaps * 2 / 3, Successor::Dies);
    plan.insert(swaps / 3, Successor::Unhealthy);
    plan
}

fn swap(
    stage: &mut Stage,
    successor: Successor,
    old: u32,
    runtimes: [Runtime; 2],
    on: impl Fn(Phase),
) -> Result<Swap, Failure> {
    let (start, mut phases) = (Instant::now(), Vec::new());
    let report = stage.swap(successor, runtimes[1], |event| {
        if let Event::Phase(phase) = event {
            phases.push((*phase, Instant::now()));
            on(*phase);
        }
    })?;
    Ok(Swap { successor, old, runtimes, start, phases, end: Instant::now(), report })
}

/// Ctrl-C and its like, seen from the thread that runs the demo.
struct Interrupt {
    signal: Arc<AtomicI32>,
    raised: Receiver<()>,
}

impl Interrupt {
    fn watch(mut signals: Signals, aborter: Aborter) -> io::Result<Self> {
        let signal = Arc::new(AtomicI32::new(0));
        let (sender, raised): (Sender<()>, _) = mpsc::channel();
        let theirs = Arc::clone(&signal);
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                let _ = theirs.compare_exchange(0, signal, Ordering::AcqRel, Ordering::Acquire);
                aborter.abort();
                let _ = sender.send(());
            }
        })?;
        Ok(Self { signal, raised })
    }

    /// Says, from any thread, whether it was raised.
    fn flag(&self) -> impl Fn() -> bool + Sync + use<> {
        let signal = Arc::clone(&self.signal);
        move || signal.load(Ordering::Acquire) != 0
    }

    fn check(&self) -> Result<(), Failure> {
        match self.signal.load(Ordering::Acquire) {
            0 => Ok(()),
            signal => Err(Failure::Interrupted(signal)),
        }
    }

    fn wait_until(&self, time: Instant) -> Result<(), Failure> {
        let _ = self.raised.recv_timeout(time.saturating_duration_since(Instant::now()));
        self.check()
    }
}

//! The crash matrix, by hand.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use conformance::matrix::{self, Pick, Table};
use conformance::{adapters, suite};

/// Kills, stops and starves real processes at every step of a handoff.
#[derive(Debug, Parser)]
#[command(name = "crash-matrix")]
struct Options {
    /// Only runs whose name holds this; may be given more than once.
    #[arg(long)]
    filter: Vec<String>,
    /// Only on this adapter; may be given more than once.
    #[arg(long, default_values = ["blocking", "tokio", "smol"])]
    adapter: Vec<String>,
    /// How many runs at a time.
    #[arg(long, default_value_t = 16)]
    jobs: usize,
    /// Runs with two faults each, of this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// How many of those.
    #[arg(long, default_value_t = 100)]
    runs: usize,
}

fn main() -> ExitCode {
    suite::play(&adapters::ALL);
    let options = Options::parse();
    let pick = Pick { words: options.filter.clone() };
    let mounts = matrix::has_mounts();
    let mut cases = Vec::new();
    let mut table = Table::default();
    for adapter in &options.adapter {
        for course in matrix::courses() {
            let course = course.case(adapter);
            match matrix::play(&course) {
                Ok(ran) => {
                    let found = match options.seed {
                        None => matrix::faults(&course, &ran.steps, mounts),
                        Some(seed) => matrix::pairs(&course, &ran.steps, seed, options.runs),
                    };
                    eprintln!("{}: {} steps, {} runs", course.name, ran.steps.len(), found.len());
                    for problem in &ran.problems {
                        eprintln!("   {problem}");
                    }
                    if !ran.problems.is_empty() {
                        for (at, what) in &ran.timeline {
                            eprintln!("{at:8.3} {what}");
                        }
                    }
                    cases.extend(found);
                }
                Err(error) => eprintln!("{}: {error}", course.name),
            }
        }
    }
    cases.retain(|case| pick.takes(&case.name));
    let (all, done) = (cases.len(), AtomicUsize::new(0));
    let lock = Mutex::new(());
    let ran = matrix::play_all(cases, options.jobs, |case, ran| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        let _one = lock.lock();
        match ran {
            Ok(ran) if ran.problems.is_empty() => {
                eprintln!("{done}/{all} {} ({} ms, struck {})", case.name, ran.gap, ran.struck);
            }
            Ok(ran) => {
                eprintln!("{done}/{all} BAD {}", case.name);
                for problem in &ran.problems {
                    eprintln!("   {problem}");
                }
            }
            Err(error) => eprintln!("{done}/{all} BAD {}: {error}", case.name),
        }
    });
    for (case, ran) in ran {
        table.add(case, ran);
    }
    println!("{table}");
    for (case, ran) in &table.failed {
        println!("\n{}", case.name);
        match ran {
            Ok(ran) => {
                for problem in &ran.problems {
                    println!("   {problem}");
                }
                for (at, what) in &ran.timeline {
                    println!("{at:8.3} {what}");
                }
            }
            Err(error) => println!("   {error}"),
        }
    }
    println!("{:?}", table.totals);
    if table.totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

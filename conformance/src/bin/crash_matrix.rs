//! The crash matrix, by hand.
//!
//! The exit code is 0 where nothing goes wrong, 1 where something does, 2 where it cannot be told.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use conformance::matrix::{self, Case, Ran, Soak, Table, Totals};
use conformance::{adapters, suite};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Kill, stop and starve real processes at every step of a handoff, and look
/// whether somebody serves.
#[derive(Debug, Parser)]
#[command(name = "crash-matrix", max_term_width = 80)]
struct Options {
    /// Only runs whose name holds this; all of these, where given more than once
    #[arg(long, value_name = "WORDS")]
    filter: Vec<String>,
    /// Only on this adapter; may be given more than once
    #[arg(long, default_values = matrix::ADAPTERS, value_parser = PossibleValuesParser::new(matrix::ADAPTERS))]
    adapter: Vec<String>,
    /// With one or two processes of beyond-handoff's
    #[arg(long)]
    mixed: bool,
    /// Two faults in each run, picked by this seed, instead of one in each
    #[arg(long)]
    seed: Option<u64>,
    /// How many runs with two faults, on each adapter
    #[arg(long, default_value_t = 100, requires = "seed")]
    runs: usize,
    /// So many handoffs in a row instead, on each adapter and from each to the next
    #[arg(long, value_name = "HANDOFFS")]
    soak: Option<u32>,
    /// How many runs at a time: they wait more than they work
    #[arg(long, default_value_t = 16)]
    jobs: usize,
    /// Say what each run came to
    #[arg(long, short)]
    verbose: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Whether all is well.
fn soak(options: &Options, handoffs: u32) -> bool {
    let mut well = true;
    for soak in Soak::all(&options.adapter, handoffs) {
        match matrix::soak(&soak) {
            Ok(soaked) => {
                well &= soaked.problems.is_empty();
                match serde_json::to_string(&soaked) {
                    Ok(json) if options.json => println!("{json}"),
                    _ => println!("{soaked}"),
                }
            }
            Err(error) => {
                well = false;
                eprintln!("{}: {error}", soak.name());
            }
        }
    }
    well
}

#[derive(Serialize)]
struct Result<'a> {
    totals: Totals,
    failed: Vec<Failed<'a>>,
}

#[derive(Serialize)]
struct Failed<'a> {
    name: &'a str,
    ran: Option<&'a Ran>,
    error: Option<&'a str>,
}

fn main() -> ExitCode {
    suite::play(&[&adapters::ALL[..], &[adapters::THEIRS]].concat());
    let options = Options::parse();
    if let Some(handoffs) = options.soak {
        return if soak(&options, handoffs) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match play(&options) {
        Ok(table) => {
            if options.json {
                print_json(&table);
            } else {
                print(&table);
            }
            if table.totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("crash-matrix: {error}");
            ExitCode::from(2)
        }
    }
}

fn play(options: &Options) -> io::Result<Table> {
    let mounts = matrix::has_mounts();
    if !mounts {
        eprintln!("Full and read-only file systems are left out: this user may mount none here.");
    }
    let mut cases = Vec::new();
    for adapter in &options.adapter {
        let courses = if options.mixed { matrix::mixed(adapter) } else { matrix::courses(adapter) };
        for course in courses {
            let ran = matrix::play(&course)?;
            if !ran.problems.is_empty() {
                print_run(&course.name, &ran);
                return Err(io::Error::other("a handoff goes wrong without a fault"));
            }
            cases.extend(match options.seed {
                None if options.mixed => matrix::mixed_faults(&course, &ran.steps, mounts),
                None => matrix::faults(&course, &ran.steps, mounts),
                Some(seed) => matrix::pairs(&course, &ran.steps, seed, options.runs),
            });
        }
        if options.seed.is_none() && !options.mixed {
            cases.extend(matrix::stories(adapter));
        }
    }
    cases.retain(|case| mounts || !case.mounts);
    cases.retain(|case| options.filter.iter().all(|words| case.name.contains(words)));
    let bar = ProgressBar::new(cases.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}, {elapsed}, {eta} left")
    {
        bar.set_style(style);
    }
    let mut table = Table::default();
    let told = |case: &Case, ran: &io::Result<Ran>| {
        bar.inc(1);
        let line = match ran {
            Ok(ran) if ran.problems.is_empty() && options.verbose => {
                let Ran { struck, gap, .. } = ran;
                format!("good  {}: {struck} struck, {gap} ms", case.name)
            }
            Ok(ran) if ran.problems.is_empty() => return,
            Ok(ran) if matrix::known(case, ran).is_some() => return,
            Ok(ran) => format!("BAD   {}: {}", case.name, ran.problems[0]),
            Err(error) => format!("BAD   {error}"),
        };
        if io::stderr().is_terminal() {
            bar.println(line);
        } else {
            eprintln!("{line}");
        }
    };
    for (case, ran) in matrix::play_all(cases, options.jobs, told) {
        table.add(case, ran);
    }
    bar.finish_and_clear();
    Ok(table)
}

fn print(table: &Table) {
    if !table.is_empty() {
        println!("{}\n", table.grid());
    }
    for (case, ran) in &table.failed {
        match ran {
            Ok(ran) => print_run(&case.name, ran),
            Err(error) => println!("{}\n  {error}\n", case.name),
        }
    }
    println!("{}", table.totals);
}

fn print_run(name: &str, ran: &Ran) {
    println!("{name}");
    for problem in &ran.problems {
        println!("  {problem}");
    }
    for (at, what) in &ran.timeline {
        println!("{at:>8.3}  {what}");
    }
    println!();
}

fn print_json(table: &Table) {
    let failed = table.failed.iter().map(|(case, ran)| Failed {
        name: &case.name,
        ran: ran.as_ref().ok(),
        error: ran.as_ref().err().map(String::as_str),
    });
    let result = Result { totals: table.totals, failed: failed.collect() };
    match serde_json::to_string_pretty(&result) {
        Ok(json) => println!("{json}"),
        Err(error) => eprintln!("crash-matrix: {error}"),
    }
}

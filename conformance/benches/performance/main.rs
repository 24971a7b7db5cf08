//! How fast it is: one table, ours beside the peer's and the floor, in one run. `docs/performance.md`
//! says what the rows are, and what they came to.
//!
//! `cargo bench -p conformance -- --help` shows what can be asked for.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    unreachable_pub,
    missing_docs,
    reason = "a measurement that lacks what it needs is none"
)]

mod clients;
mod codec;
mod conversation;
mod floor;
mod handoffs;
mod instructions;
mod many;
mod measure;
mod simulated;
mod stage;
mod table;

use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, getrlimit, setrlimit};

use stage::Kind;
use table::Table;

/// Measure this project against the floor of the machine, and against
/// beyond-handoff 0.1.4, in one run.
#[derive(Parser)]
#[command(max_term_width = 80)]
struct Options {
    /// Only the sections whose names contain one of these words
    sections: Vec<String>,
    /// Print the rows as JSON
    #[arg(long)]
    json: bool,
    /// List the sections
    #[arg(long)]
    list: bool,
    /// Count instructions with callgrind instead, and compare with what is
    /// recorded
    #[arg(long)]
    instructions: bool,
    /// Record what is counted
    #[arg(long, requires = "instructions")]
    record: bool,
    // What cargo passes, and what the processes of a measurement are told to be.
    #[arg(long, hide = true)]
    bench: bool,
    #[arg(long, hide = true)]
    boss: Option<Kind>,
    #[arg(long, hide = true, default_value_t = 1)]
    handoffs: usize,
    #[arg(long, hide = true)]
    case: Option<usize>,
    #[arg(long, hide = true, default_value_t = 0)]
    times: u32,
}

/// A name, and what measures it.
type Section = (&'static str, fn(&mut Table));

const SECTIONS: [Section; 10] = [
    ("codec", codec::codec),
    ("decoder", codec::pieces),
    ("conversation", conversation::conversation),
    ("handoff", handoffs::handoff),
    ("heap", handoffs::heap),
    ("many", many::many),
    ("failures", handoffs::failures),
    ("simulated", simulated::simulated),
    ("costs", handoffs::costs),
    ("clients", clients::clients),
];

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(kind) = options.boss {
        handoffs::boss(kind, options.handoffs);
        return ExitCode::SUCCESS;
    }
    if let Some(case) = options.case {
        instructions::play(case, options.times);
        return ExitCode::SUCCESS;
    }
    if options.instructions {
        return instructions::compare(options.record);
    }
    if options.list {
        SECTIONS.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    // Hundreds of daemons have a few descriptors each.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    if let Ok(load) = std::fs::read_to_string("/proc/loadavg") {
        let cores = std::thread::available_parallelism().map_or(0, Into::into);
        eprintln!("({cores} cores; load before: {})", load.trim());
    }
    let mut table = Table::new(options.json);
    for (name, measure) in SECTIONS {
        let wanted = |word: &String| name.contains(word.as_str());
        if options.sections.is_empty() || options.sections.iter().any(wanted) {
            measure(&mut table);
        }
    }
    table.end();
    ExitCode::SUCCESS
}

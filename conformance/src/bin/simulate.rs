//! Long seeded runs of the production machines, with faults; what goes wrong is made short and shown.
//!
//! The exit code is 0 where nothing goes wrong, 1 where something does, 2 where it cannot be told.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{fs, io};

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use conformance::explore::Finding;
use conformance::simulate::trace::Trace;
use conformance::simulate::{Fault, Plan, Run, Tally, draw, file, shrink, simulate};
use conformance::transcript::transcript;
use conformance::world::Sabotage;
use indicatif::{ProgressBar, ProgressStyle};

/// Run seeded simulations of whole handoffs, many in a row, and look for broken invariants.
#[derive(Parser)]
#[command(max_term_width = 80)]
struct Options {
    /// How many runs
    #[arg(long, default_value_t = 10_000)]
    runs: u64,
    /// The seed of the first run; each further one has the next
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many handoffs are asked for in a run
    #[arg(long, default_value_t = 24, value_parser = RangedU64ValueParser::<u8>::new().range(1..=250))]
    handoffs: u8,
    /// Kinds of faults, separated by commas; any, none
    #[arg(long, default_value = "any", value_parser = faults)]
    faults: Faults,
    /// How many faults may happen, at most, between two states in which all is
    /// well
    #[arg(long, default_value_t = 2, value_parser = RangedU64ValueParser::<u8>::new().range(1..))]
    at_once: u8,
    /// In how many of a thousand steps something goes wrong, on average
    #[arg(long, default_value_t = 10, value_parser = RangedU64ValueParser::<u16>::new().range(0..=500))]
    rate: u16,
    /// Plant a bug, to see that it is found
    #[arg(long, value_parser = sabotage)]
    sabotage: Option<Sabotage>,
    /// Keep what is found as long as it is
    #[arg(long)]
    no_shrink: bool,
    /// Save what is found in this directory
    #[arg(long, value_name = "DIR", default_value = ".")]
    save: PathBuf,
    /// Let a saved run happen again, instead of new ones
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Write the run that is shown as a Mermaid sequence diagram
    #[arg(long, value_name = "FILE")]
    mermaid: Option<PathBuf>,
    /// Write the run that is shown as a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone)]
struct Faults(Vec<Fault>);

fn faults(words: &str) -> Result<Faults, String> {
    let kinds = match words {
        "any" => Fault::ALL.to_vec(),
        "none" => Vec::new(),
        words => {
            let kinds = words.split(',').map(|word| word.trim().parse::<Fault>());
            kinds.collect::<Result<_, _>>().map_err(|error| error.to_string())?
        }
    };
    Ok(Faults(kinds))
}

fn sabotage(word: &str) -> Result<Sabotage, String> {
    serde_json::from_value(word.into()).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.replay {
        Some(path) => replay(path, &options),
        None => search(&options),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::from(2)
        }
    }
}

/// Why nothing can be told.
#[derive(Debug)]
struct Trouble(String);

impl Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn trouble<E: Display>(path: &Path) -> impl FnOnce(E) -> Trouble {
    let path = path.display().to_string();
    move |error| Trouble(format!("{path}: {error}"))
}

fn search(options: &Options) -> Result<ExitCode, Trouble> {
    let plan = Plan {
        handoffs: options.handoffs,
        faults: options.faults.0.clone(),
        at_once: options.at_once,
        rate: options.rate,
        sabotage: options.sabotage,
    };
    let bar = ProgressBar::new(options.runs);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent:>3} %, {eta} left\n{msg}")
    {
        bar.set_style(style);
    }
    let mut tally = Tally::default();
    let start = Instant::now();
    let mut shown = start;
    let mut wrong = None;
    for seed in (0..options.runs).map(|run| options.seed.wrapping_add(run)) {
        let (run, found) = simulate(&plan, seed, &mut tally);
        if let Some(finding) = found {
            wrong = Some((run, finding));
            break;
        }
        if shown.elapsed() > Duration::from_millis(200) {
            shown = Instant::now();
            let rate = Tally::per_minute(tally.handoffs(), start.elapsed());
            bar.set_position(tally.runs);
            bar.set_message(format!("{rate} handoffs a minute\n{tally}"));
        }
    }
    bar.finish_and_clear();
    let time = start.elapsed();
    let Some((run, finding)) = wrong else {
        println!("{}", tally.table(time));
        println!("Nothing went wrong.");
        return Ok(ExitCode::SUCCESS);
    };
    eprintln!("seed {}: {} after {} steps", run.seed, told(&finding), run.choices.len());
    let (run, finding) = if options.no_shrink {
        (run, finding)
    } else {
        match shrink::shrink(&run) {
            Some(short) => short,
            // A replay looks at more than a run does, but never at less.
            None => (run, finding),
        }
    };
    show(&run, Some(&finding), options)?;
    println!("{}", tally.table(time));
    let path = options.save.join(format!("run-{}.json", run.seed));
    save(&path, &file::write(&run, &told(&finding)).map_err(trouble(&path))?)?;
    println!("{} in {} steps.", told(&finding), run.choices.len());
    println!("Saved; to see it again: simulate --replay {}", path.display());
    Ok(ExitCode::FAILURE)
}

fn replay(path: &Path, options: &Options) -> Result<ExitCode, Trouble> {
    let text = fs::read_to_string(path).map_err(trouble(path))?;
    let run = file::read(&text).map_err(trouble(path))?;
    let asked = run.choices.len();
    let (run, found) = run.replay(&mut |_| {});
    show(&run, found.as_ref(), options)?;
    let Some(finding) = found else {
        println!("Nothing goes wrong in {} steps, of {asked} that were saved.", run.choices.len());
        return Ok(ExitCode::SUCCESS);
    };
    println!("{} in {} steps.", told(&finding), run.choices.len());
    Ok(ExitCode::FAILURE)
}

fn told(finding: &Finding) -> String {
    match finding {
        Finding::Violation(violation) => violation.to_string(),
        Finding::NoRest => String::from("it never comes to rest"),
        Finding::NeverServed => String::from("nobody ever serves"),
    }
}

/// What happens step by step, then the picture.
fn show(run: &Run, finding: Option<&Finding>, options: &Options) -> Result<(), Trouble> {
    let trace = Trace::of(run).with(finding);
    println!("{}", transcript(&run.start(), &run.choices));
    println!("{}", draw::text(&trace));
    if let Some(path) = &options.mermaid {
        save(path, &draw::mermaid(&trace))?;
    }
    if let Some(path) = &options.svg {
        save(path, &draw::svg(&trace))?;
    }
    Ok(())
}

fn save(path: &Path, text: &str) -> Result<(), Trouble> {
    let written = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => fs::create_dir_all(folder),
        _ => io::Result::Ok(()),
    };
    written.and_then(|()| fs::write(path, text)).map_err(trouble(path))
}

//! Looks at every run of a closed system: in a browser, step by step, or all of them at once, to tell
//! how many states there are and what is wrong.
//!
//! ```text
//! explore [serve[=ADDRESS]] [faults=N] [handoffs=N] [limit=N] [cold] [KIND]...
//! ```
//!
//! With `serve`, or with nothing at all, stateright's explorer is opened at a loopback address,
//! 127.0.0.1:3000 unless another is given: each step leads to those that can follow, and the path to it
//! is drawn as a sequence diagram.
//!
//! Kinds of faults: `crashes stops hooks hangs journal shortages spawn breaks aborts`, or `any` for all
//! of them. Habits of the world: `restarts revives late slow linger`, or `messy` for all of them. With
//! none of them, one handoff is undisturbed. What is found is told with a shortest way there; the exit
//! code says whether there is anything.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Instant;

use conformance::explore::{Origin, explore};
use conformance::model::Handoffs;
use conformance::transcript::transcript;
use conformance::world::Rules;
use stateright::Model;

fn main() -> ExitCode {
    let mut rules = Rules::HANDOFF;
    let mut origin = Origin::Settled;
    let mut limit = 5_000_000;
    let mut serve = (std::env::args().len() == 1).then(|| "127.0.0.1:3000".to_string());
    for word in std::env::args().skip(1) {
        let (key, value) = word.split_once('=').unwrap_or((&word, ""));
        let number = value.parse::<usize>().ok();
        let small = number.and_then(|number| u8::try_from(number).ok());
        match (key, small) {
            ("serve", _) if value.is_empty() => serve = Some("127.0.0.1:3000".to_string()),
            ("serve", _) => serve = Some(value.to_string()),
            ("faults", Some(number)) => rules.faults = number,
            ("handoffs", Some(number)) => rules.handoffs = number,
            ("limit", _) if number.is_some() => limit = number.unwrap_or(limit),
            ("any", _) => {
                let Rules { handoffs, faults, .. } = rules;
                rules = Rules { handoffs, ..Rules::faulty(faults) };
            }
            ("messy", _) => rules = rules.messy(),
            ("cold", _) => origin = Origin::Cold,
            ("crashes", _) => rules.crashes = true,
            ("stops", _) => rules.stops = true,
            ("hooks", _) => rules.hook_failures = true,
            ("hangs", _) => rules.hangs = true,
            ("journal", _) => rules.journal_failures = true,
            ("shortages", _) => rules.shortages = true,
            ("spawn", _) => rules.spawn_failures = true,
            ("breaks", _) => rules.breaks = true,
            ("aborts", _) => rules.aborts = true,
            ("restarts", _) => rules.restarts = true,
            ("revives", _) => rules.revives = true,
            ("late", _) => rules.late = true,
            ("slow", _) => rules.slow_journal = true,
            ("linger", _) => rules.linger = true,
            _ => {
                eprintln!("what is {word}? See the top of this example's source.");
                return ExitCode::from(2);
            }
        }
    }
    if let Some(address) = serve {
        let loopback = address.parse::<SocketAddr>().is_ok_and(|it| it.ip().is_loopback());
        if !loopback {
            eprintln!("{address} is no loopback address with a port, such as 127.0.0.1:3000.");
            return ExitCode::from(2);
        }
        println!("http://{address} shows every step; Ctrl-C ends it.");
        Handoffs { origin, rules }.checker().serve(address);
        return ExitCode::SUCCESS;
    }
    let start = Instant::now();
    let explored = explore(origin, rules, limit);
    let all = if explored.complete { "all of them" } else { "not all of them" };
    println!(
        "{} states ({all}), {} at rest, {:.1?}",
        explored.states,
        explored.rests,
        start.elapsed()
    );
    for (finding, path) in &explored.findings {
        println!("\n{finding:?}, in {} steps:\n", path.len());
        println!("{}", transcript(&origin.world(rules), path));
    }
    if explored.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

//! Long seeded runs: what is drawn is drawn again, what is clean stays so, what is planted is found.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use conformance::explore::Finding;
use conformance::simulate::trace::Trace;
use conformance::simulate::{Fault, Plan, Run, Tally, alike, draw, file, shrink, simulate};
use conformance::world::{Job, Line, Sabotage, Violation};
use handoff_core::supervisor::Verdict;
use handoff_core::{Capabilities, Input, Message};

/// Runs of a plan; the first thing that is wrong is told as a file to replay.
fn clean(plan: &Plan, runs: u64) -> Tally {
    let mut tally = Tally::default();
    for seed in 0..runs {
        let (run, found) = simulate(plan, seed, &mut tally);
        if found.is_some() {
            let (short, finding) = shrink::shrink(&run).expect("a replay looks at no less");
            let picture = draw::text(&Trace::of(&short));
            panic!("seed {seed}: {finding:?}\n{}\n{picture}", file::write(&short, "").unwrap());
        }
    }
    tally
}

#[test]
fn a_seed_gives_the_same_run_twice() {
    let plan = Plan::default();
    let mut runs = BTreeSet::new();
    for seed in 0..20 {
        let (mut once, mut again) = (Tally::default(), Tally::default());
        let (run, found) = simulate(&plan, seed, &mut once);
        assert_eq!((&run, &found), (&simulate(&plan, seed, &mut again).0, &found));
        assert_eq!(once, again);
        // And no other seed does.
        assert!(runs.insert(format!("{:?}", run.choices)));
    }
}

#[test]
fn dozens_of_handoffs_in_a_row_are_committed() {
    let plan = Plan { handoffs: 250, faults: Vec::new(), ..Plan::default() };
    let tally = clean(&plan, 4);
    assert_eq!(tally.handoffs(), 1000);
    assert_eq!(tally.of(Verdict::Committed), 1000);
}

#[test]
fn every_kind_of_fault_happens_and_breaks_nothing() {
    for fault in Fault::ALL {
        let plan = Plan { faults: vec![fault], rate: 30, ..Plan::default() };
        let tally = clean(&plan, 100);
        assert!(tally.handoffs() > 1000, "{fault}: {tally}");
        let shows = !matches!(
            fault,
            Fault::Legacy | Fault::Late | Fault::Slow | Fault::Linger | Fault::Alone
        );
        assert_eq!(tally.happened(fault) > 20, shows, "{fault}: {tally}");
        if fault.is_habit() {
            assert_eq!(tally.all_faults(), 0, "{fault}: {tally}");
        }
    }
}

#[test]
fn all_kinds_at_once_break_nothing() {
    let tally = clean(&Plan::default(), 400);
    assert!(tally.of(Verdict::Committed) > tally.handoffs() / 2, "{tally}");
    let seen = Fault::ALL.iter().filter(|&&fault| tally.happened(fault) > 0);
    assert_eq!(seen.count(), Fault::ALL.len() - 5);
}

#[test]
fn strangers_disturb_nobody() {
    let plan = Plan { faults: vec![Fault::Strangers], rate: 60, ..Plan::default() };
    let tally = clean(&plan, 200);
    assert!(tally.happened(Fault::Strangers) > 2000, "{tally}");
    assert_eq!(tally.of(Verdict::RolledBack) + tally.of(Verdict::Refused), 0, "{tally}");
}

/// X2: every second incumbent announces no steady heartbeat, and is heard at most while it works.
#[test]
fn legacy_daemons_are_heard_as_such() {
    let plan = Plan { faults: vec![Fault::Legacy], rate: 0, ..Plan::default() };
    let runs = (0..20).map(|seed| simulate(&plan, seed, &mut Tally::default()).0);
    let run = runs.into_iter().find(|run| run.rules.legacy).unwrap();
    let mut heard = [0, 0];
    let (_, found) = run.replay(&mut |line| {
        if let Line::SupervisorIn(Input::Message { message, .. }, _) = line
            && let Message::Hello { role: handoff_core::Side::Incumbent, pid, capabilities, .. } =
                message
        {
            let steady = capabilities.has(Capabilities::STEADY_HEARTBEAT);
            assert_eq!(steady, !pid.is_multiple_of(2));
            heard[usize::from(steady)] += 1;
        }
    });
    assert_eq!(found, None);
    assert!(heard.iter().all(|&count| count > 5), "{heard:?}");
}

// What is planted is found, made short, and kept.

/// Runs until the planted bug shows, and makes the run short.
fn hunt(sabotage: Sabotage) -> (Run, Finding) {
    let plan = Plan { sabotage: Some(sabotage), at_once: 1, ..Plan::default() };
    let mut tally = Tally::default();
    let start = Instant::now();
    let long = (0..20_000).find_map(|seed| {
        let (run, found) = simulate(&plan, seed, &mut tally);
        found.map(|_| run)
    });
    let long = long.unwrap_or_else(|| panic!("{sabotage:?} was not found"));
    let (handoffs, time) = (tally.handoffs(), start.elapsed());
    let (short, finding) = shrink::shrink(&long).unwrap();
    assert!(shows(sabotage, &finding), "{sabotage:?}: {finding:?}");
    println!("{sabotage:?}: {finding:?} after {handoffs} handoffs, {time:.1?}");
    assert!(short.choices.len() < 150, "{sabotage:?}: {} steps", short.choices.len());
    assert!(short.choices.len() <= long.choices.len());
    (short, finding)
}

#[test]
fn every_planted_bug_is_found_and_the_run_made_short() {
    for sabotage in Sabotage::ALL {
        let (run, finding) = hunt(sabotage);
        // It is exactly what happens when it is replayed.
        let (again, wrong) = run.replay(&mut |_| {});
        assert_eq!((again, wrong), (run.clone(), Some(finding.clone())));
        // No single choice can be spared.
        for place in 0..run.choices.len() {
            let mut shorter = run.clone();
            shorter.choices.remove(place);
            let (replayed, wrong) = shorter.replay(&mut |_| {});
            let alike = wrong.is_some_and(|wrong| alike(&wrong, &finding));
            assert!(!alike || replayed.choices.len() >= run.choices.len(), "{sabotage:?} {place}");
        }
        // Written and read it is the same.
        let text = file::write(&run, &format!("{finding:?}")).unwrap();
        assert_eq!(file::read(&text).unwrap(), run);
        // Without the bug nothing is wrong.
        assert_eq!(run.with_sabotage(None).replay(&mut |_| {}).1, None, "{sabotage:?}");
    }
}

#[test]
fn a_file_of_another_version_is_refused() {
    let (run, _) = simulate(&Plan { handoffs: 1, ..Plan::default() }, 1, &mut Tally::default());
    let text = file::write(&run, "nothing").unwrap();
    let other = text.replace("\"version\": 1", "\"version\": 2");
    assert!(matches!(file::read(&other), Err(file::Unreadable::Version(2))));
    assert!(matches!(file::read("{}"), Err(file::Unreadable::Malformed(_))));
}

#[test]
fn pictures_fit_a_terminal_and_show_everybody() {
    let (run, _) = hunt(Sabotage::ResumedWhenTold);
    let trace = Trace::of(&run);
    let text = draw::text(&trace);
    for line in text.lines().filter(|line| !line.starts_with(" !")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let mermaid = draw::mermaid(&trace);
    assert!(mermaid.starts_with("sequenceDiagram\n"));
    let svg = draw::svg(&trace);
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    for (_, name) in &trace.lanes {
        assert!(text.contains(name) && mermaid.contains(name) && svg.contains(name));
    }
    assert!(text.contains(" Hello ") && text.contains("Untrue"));
}

/// Every run that was saved. Those with a bug planted show it, and nothing is wrong without it.
#[test]
fn saved_runs_come_to_what_they_did() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runs");
    let mut planted = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let run = file::read(&fs::read_to_string(&path).unwrap()).unwrap();
        if let Some(sabotage) = run.rules.sabotage {
            planted += 1;
            let (replayed, found) = run.replay(&mut |_| {});
            assert_eq!(replayed, run, "{}", path.display());
            let found = found.unwrap_or_else(|| panic!("{}: nothing", path.display()));
            assert!(shows(sabotage, &found), "{}: {found:?}", path.display());
        }
        let (_, found) = run.with_sabotage(None).replay(&mut |_| {});
        assert_eq!(found, None, "{}", path.display());
    }
    assert!(planted >= 3);
}

/// Whether this is what a planted bug does to the world.
fn shows(sabotage: Sabotage, finding: &Finding) -> bool {
    let Finding::Violation(violation) = finding else { return false };
    match sabotage {
        Sabotage::ReleasedBeforeSeal | Sabotage::LockedRegardless => {
            matches!(violation, Violation::NoLock { .. })
        }
        Sabotage::ReleasedWhenAsked => matches!(violation, Violation::AskedTwice { .. }),
        Sabotage::ReapedWhenAsked => matches!(violation, Violation::LeftBehind { .. }),
        Sabotage::ResumedWhenTold | Sabotage::AnswersUnsettled => {
            matches!(violation, Violation::Untrue { .. })
        }
        Sabotage::NeverPromotes | Sabotage::GivesUp | Sabotage::ExitsOnEof => {
            matches!(violation, Violation::NobodyLeft { .. })
        }
        Sabotage::SealsTwice => matches!(violation, Violation::HookTwice { job: Job::Seal, .. }),
        Sabotage::HealthIgnored => matches!(violation, Violation::Unhealthy { .. }),
        Sabotage::BeatsRegardless => matches!(violation, Violation::Unread { .. }),
        Sabotage::AsksOnce => matches!(violation, Violation::Overlooked { .. }),
        Sabotage::ForgetsRetry
        | Sabotage::ForgetsPath
        | Sabotage::ForgetsHello
        | Sabotage::OverlooksPath => matches!(violation, Violation::AtRest { .. }),
        // Something is waited for that never comes.
        Sabotage::ReadyWhenBegun | Sabotage::TimelessDaemons | Sabotage::TimelessSupervisor => {
            matches!(
                violation,
                Violation::Trace
                    | Violation::AtRest { .. }
                    | Violation::NextFails { .. }
                    | Violation::Undone { .. }
            )
        }
    }
}

//! Every run of one handoff: undisturbed, and with any one fault at any step.
//!
//! The counts are exact. They change with the machines, and a count that changes though the behaviour
//! should not have is worth a look; `cargo run --release -p conformance --example explore -- faults=1 any` tells more.

use std::time::Instant;

use conformance::explore::{Finding, Origin, explore};
use conformance::model::Handoffs;
use conformance::transcript::transcript;
use conformance::world::{Death, Job, Rules, Sabotage, Violation};
use handoff_core::supervisor::Verdict;
use stateright::{Checker, Model, Path};

/// More than there are.
const LIMIT: usize = 1_000_000;

/// Searches twice, with stateright for what is never right, and with the own search also for rest.
fn closes(origin: Origin, rules: Rules, states: usize) {
    let explored = explore(origin, rules, LIMIT);
    if let Some((finding, path)) = explored.findings.first() {
        panic!("{finding:?}\n{}", transcript(&origin.world(rules), path));
    }
    assert!(explored.complete);
    assert_eq!(explored.states, states);

    let checker = Handoffs { origin, rules }.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    assert_eq!(checker.unique_state_count(), states);
}

/// C2, I1 to I6: one handoff, undisturbed.
#[test]
fn one_handoff() {
    closes(Origin::Settled, Rules::HANDOFF, 342);
}

/// The same from a cold start, in a world that takes its time (R8, R9).
#[test]
fn one_handoff_in_a_messy_world() {
    closes(Origin::Cold, Rules::HANDOFF.messy(), 3_389);
}

/// C2, R2: two of them, undisturbed. The incumbent of the first may read its Commit as late as in the second.
#[test]
fn two_handoffs() {
    let rules = Rules { handoffs: 2, ..Rules::HANDOFF };
    closes(Origin::Settled, rules, 5_365);
    closes(Origin::Settled, rules.messy(), 78_578);
}

/// R2 to R9, R14, R17: any process dies or stops at any step; a hook fails, hangs or takes too long; a
/// connection breaks; the journal, a spawn, the lock or the control path fails; the operator aborts.
#[test]
fn one_fault() {
    closes(Origin::Settled, Rules::faulty(1), 106_722);
}

/// The same in a messy world, where a supervisor that dies is started again (R10, R17).
#[test]
fn one_fault_in_a_messy_world() {
    closes(Origin::Settled, Rules::faulty(1).messy(), 414_044);
}

/// R10: a process dies in the first of two handoffs, or in the second; whoever is to does come back.
#[test]
fn one_death_in_two_handoffs() {
    let rules = Rules { handoffs: 2, faults: 1, crashes: true, ..Rules::HANDOFF };
    closes(Origin::Settled, Rules { restarts: true, revives: true, ..rules }, 485_866);
}

/// Two of: a process dies, a connection breaks, the operator aborts. I1 to I3 and I6 hold, and where
/// somebody can serve, somebody does.
#[test]
fn two_faults() {
    let rules = Rules { faults: 2, crashes: true, breaks: true, aborts: true, ..Rules::HANDOFF };
    closes(Origin::Settled, rules, 208_306);
}

/// R11, R17: somebody removes the control path, at any step and twice.
#[test]
fn a_control_path_that_is_removed() {
    let rules = Rules { faults: 2, unlinks: true, ..Rules::HANDOFF };
    closes(Origin::Settled, rules, 4_819);
    closes(Origin::Cold, rules.messy(), 74_581);
}

// What the search would find: with a bug planted there is a run that shows it.

/// Tells the nearest of what is found that `shows` it.
fn bites(sabotage: Sabotage, rules: Rules, shows: impl Fn(&Violation) -> bool) -> String {
    let rules = Rules { sabotage: Some(sabotage), ..rules };
    let start = Instant::now();
    let explored = explore(Origin::Settled, rules, LIMIT);
    let time = start.elapsed();
    let shown = explored.findings.iter().find_map(|(finding, path)| match finding {
        Finding::Violation(violation) if shows(violation) => Some((violation, path)),
        _ => None,
    });
    let (violation, path) = shown.unwrap_or_else(|| panic!("{:?}", explored.findings));
    let (steps, states) = (path.len(), explored.states);
    println!("{sabotage:?}: {violation} in {steps} steps, of {states} states in {time:.1?}");
    // A path is replayed by its choices alone, and comes to the same.
    let mut world = Origin::Settled.world(rules);
    for &choice in path {
        assert!(world.choices().contains(&choice));
        world.step(choice, &mut |_| {});
    }
    assert_eq!(world.violation().as_ref(), Some(violation));
    // So does stateright.
    let model = Handoffs { origin: Origin::Settled, rules };
    assert!(model.checker().spawn_bfs().join().discovery("I1 to I6").is_some());
    transcript(&Origin::Settled.world(rules), path)
}

const ABORT: Rules = Rules { faults: 1, aborts: true, ..Rules::HANDOFF };
const CRASH: Rules = Rules { faults: 1, crashes: true, ..Rules::HANDOFF };
const DISK: Rules = Rules { faults: 1, disk: true, ..Rules::HANDOFF };

/// R8: an incumbent that resumes holds a lock which is being released behind its back.
#[test]
fn a_lock_that_counts_as_released_too_early() {
    bites(Sabotage::ReleasedWhenAsked, CRASH, |violation| {
        matches!(violation, Violation::AskedTwice { job: Job::TakeLock, .. })
    });
}

/// I1, I2.
#[test]
fn a_lock_that_two_take() {
    bites(Sabotage::LockedRegardless, CRASH, |it| matches!(it, Violation::NoLock { .. }));
}

/// I2, R7.
#[test]
fn a_lock_that_is_let_go_before_the_data_is_sealed() {
    bites(Sabotage::ReleasedBeforeSeal, Rules::HANDOFF, |it| {
        matches!(it, Violation::NoLock { .. })
    });
}

/// R4, I6: ResumeAfterAbort is sent while the successor lives.
#[test]
fn a_successor_that_counts_as_reaped_too_early() {
    let told = bites(Sabotage::ReapedWhenAsked, ABORT, |violation| {
        matches!(violation, Violation::LeftBehind { verdict: Verdict::RolledBack, .. })
    });
    assert!(told.contains("ResumeAfterAbort of"), "{told}");
    assert!(!told.contains("D3 is dead"), "{told}");
}

/// R4.
#[test]
fn a_rollback_that_is_taken_for_granted() {
    bites(Sabotage::ResumedWhenTold, CRASH, |it| matches!(it, Violation::Untrue { .. }));
}

/// R6: the incumbent is gone before the successor has opened anything.
#[test]
fn a_commit_before_the_successor_is_ready() {
    bites(Sabotage::ReadyWhenBegun, CRASH, |it| matches!(it, Violation::NobodyLeft { .. }));
}

/// R5.
#[test]
fn a_supervisor_that_ends_the_last_process() {
    bites(Sabotage::NeverPromotes, CRASH, |it| matches!(it, Violation::NobodyLeft { .. }));
}

/// C6.
#[test]
fn a_probe_that_is_answered_before_all_is_settled() {
    bites(Sabotage::AnswersUnsettled, Rules::faulty(1), |it| {
        matches!(it, Violation::Untrue { .. })
    });
}

/// T5, R2: a lock is never tried again.
#[test]
fn daemons_without_a_clock() {
    bites(Sabotage::TimelessDaemons, CRASH, |it| {
        matches!(it, Violation::AtRest { serving: None, .. })
    });
}

/// T5: a handoff never ends.
#[test]
fn a_supervisor_without_a_clock() {
    bites(Sabotage::TimelessSupervisor, CRASH, |it| matches!(it, Violation::Trace));
}

/// R2: a full disk keeps the lock from the successor, and then from the incumbent.
#[test]
fn an_incumbent_that_gives_up() {
    bites(Sabotage::GivesUp, DISK, |violation| {
        matches!(violation, Violation::NobodyLeft { death: Death::Exited(75), .. })
    });
}

/// R3: the incumbent was told of the commit, and the successor was not.
#[test]
fn a_successor_that_exits_when_its_supervisor_is_gone() {
    let rules = Rules { faults: 1, breaks: true, ..Rules::HANDOFF };
    bites(Sabotage::ExitsOnEof, rules, |violation| {
        matches!(violation, Violation::NobodyLeft { death: Death::Exited(75), .. })
    });
}

/// R7.
#[test]
fn a_seal_that_runs_twice() {
    bites(Sabotage::SealsTwice, Rules::HANDOFF, |it| {
        matches!(it, Violation::HookTwice { job: Job::Seal, .. })
    });
}

/// R6, I5.
#[test]
fn a_commit_to_a_successor_that_is_unhealthy() {
    let rules = Rules { faults: 1, hook_failures: true, ..Rules::HANDOFF };
    bites(Sabotage::HealthIgnored, rules, |it| matches!(it, Violation::Unhealthy { .. }));
}

/// T4: a supervisor that is stopped before it has said a heartbeat is waited for.
#[test]
fn heartbeats_that_pile_up() {
    let rules = Rules { faults: 1, stops: true, ..Rules::HANDOFF };
    bites(Sabotage::BeatsRegardless, rules, |it| matches!(it, Violation::Unread { .. }));
}

/// T5, R2: one deadline of the incumbent's is lost on the way to take its lock back.
#[test]
fn an_incumbent_that_forgets_to_try_again() {
    bites(Sabotage::ForgetsRetry, DISK, |it| matches!(it, Violation::AtRest { serving: None, .. }));
}

/// T5, R11: one deadline of the successor's is lost on the way to be the incumbent.
#[test]
fn a_successor_that_forgets_to_claim_the_control_path() {
    let rules = Rules { faults: 1, shortages: true, ..Rules::HANDOFF };
    bites(Sabotage::ForgetsPath, rules, |it| matches!(it, Violation::AtRest { serving: None, .. }));
}

/// T5, C3: one deadline of the supervisor's is lost on the way to await a Hello.
#[test]
fn a_supervisor_that_awaits_a_warm_up_for_ever() {
    let rules = Rules { faults: 1, hangs: true, ..Rules::HANDOFF };
    bites(Sabotage::ForgetsHello, rules, |it| matches!(it, Violation::AtRest { .. }));
}

/// R4: the incumbent takes longer to resume than to the supervisor's next heartbeat.
#[test]
fn a_question_that_a_heartbeat_takes_the_place_of() {
    bites(Sabotage::AsksOnce, ABORT, |it| matches!(it, Violation::Overlooked { .. }));
}

/// R11: somebody removes the control path of who serves.
#[test]
fn a_control_path_that_is_removed_and_nobody_notices() {
    let rules = Rules { faults: 1, unlinks: true, ..Rules::HANDOFF };
    bites(Sabotage::OverlooksPath, rules, |it| {
        matches!(it, Violation::AtRest { serving: None, .. })
    });
}

/// The explorer draws the path to a state: the handoff, message by message.
#[test]
fn a_path_is_drawn() {
    let model = Handoffs { origin: Origin::Settled, rules: Rules::HANDOFF };
    let mut world = model.origin.world(model.rules);
    let mut path = Vec::new();
    while let Some(&choice) = world.choices().first() {
        world.step(choice, &mut |_| {});
        path.push(choice);
    }
    let start = model.origin.world(model.rules);
    let path = Path::from_actions(&model, start, &path).unwrap();
    let drawn = model.as_svg(path).unwrap();
    assert!(drawn.starts_with("<svg"), "{drawn}");
    for said in ["Hello", "Prepare", "Drained", "SealComplete", "Begin", "Ready", "Commit"] {
        assert!(drawn.contains(said), "{said}: {drawn}");
    }
}

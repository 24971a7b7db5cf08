//! Handoffs that come to nothing: the incumbent goes on as if nothing had happened.

use crate::bench::{Bench, DEADLINE, Kind, PATIENCE};
use crate::boss::BossKind;

with_each_of_ours!(
    our_incumbent_outlives_successors_under_their_supervisor,
    our_incumbent_whose_seal_fails_goes_on_under_their_supervisor,
    our_incumbent_takes_the_control_path_back,
);

/// What can be wrong with a successor, and what our supervisor says of it.
const FAULTS: [(&str, &str); 5] = [
    ("dies-after-begin", "RolledBack successor_exited"),
    ("fails-to-open", "RolledBack successor_exited"),
    ("unhealthy", "RolledBack unhealthy"),
    ("regressed", "RolledBack revision_regressed"),
    ("never-ready", "RolledBack ready_timeout"),
];

/// R4, R5, R6: whatever is wrong with a successor, their incumbent is asked first, told once, and seen
/// to serve again; also where their own supervisor would commit.
fn their_incumbent_outlives(successors: Kind) {
    let (mut bench, mut old) = Bench::start(BossKind::Blocking, Kind::Theirs, "");
    for (fault, what) in FAULTS {
        let deadline = if fault == "never-ready" { DEADLINE } else { PATIENCE };
        let outcome = bench.swap_within(deadline, successors, fault);
        assert_eq!(outcome, Err(what.to_string()), "{fault}");
        bench.serves(old);
        // The next one finds an incumbent that has been through this.
        old = bench.commits_to(Kind::Theirs);
    }
    bench.ends_well();
}

#[test]
fn their_incumbent_outlives_their_successors() {
    their_incumbent_outlives(Kind::Theirs);
}

#[test]
fn their_incumbent_outlives_our_successors() {
    for ours in [Kind::Blocking, Kind::Tokio, Kind::Smol] {
        their_incumbent_outlives(ours);
    }
}

/// R6: their successor takes the control path before anybody has decided, and their incumbent does not
/// take it back. What is wrong with the successor is noticed all the same, and the incumbent serves on;
/// but no supervisor can find it any more, so no next handoff is tried here.
#[test]
fn their_successor_that_is_unhealthy_leaves_their_incumbent_without_a_control_path() {
    let (mut bench, old) = Bench::start(BossKind::Blocking, Kind::Theirs, "");
    let outcome = bench.swap(Kind::Theirs, "unhealthy-and-bound");
    // It may have been ended before it came to that.
    let known = ["Unknown unhealthy", "RolledBack unhealthy"];
    assert!(known.contains(&outcome.unwrap_err().as_str()));
    bench.is_alone(old);
    bench.ends_well();
}

/// R11: their successor takes the control path before anybody has decided; our incumbent makes sure
/// that it leads to itself again.
fn our_incumbent_takes_the_control_path_back(ours: Kind) {
    let (mut bench, old) = Bench::start(BossKind::Blocking, ours, "");
    let outcome = bench.swap(Kind::Theirs, "unhealthy-and-bound");
    assert_eq!(outcome, Err("RolledBack unhealthy".to_string()));
    bench.serves(old);
    bench.commits_to(Kind::Theirs);
    bench.ends_well();
}

/// R2, R7: their supervisor ends the successor and says Resume; our incumbent takes the lock back.
///
/// It asks neither for the successor's health nor for its revisions, so these two are left out.
fn our_incumbent_outlives_successors_under_their_supervisor(ours: Kind) {
    let (mut bench, mut old) = Bench::start(BossKind::Theirs, ours, "");
    for successors in [ours, Kind::Theirs] {
        for fault in ["dies-after-begin", "fails-to-open", "never-ready"] {
            let deadline = if fault == "never-ready" { DEADLINE } else { PATIENCE };
            let outcome = bench.swap_within(deadline, successors, fault);
            assert!(outcome.is_err(), "{successors:?} {fault}: {outcome:?}");
            bench.serves(old);
            old = bench.commits_to(ours);
        }
    }
    bench.ends_well();
}

/// R7: our incumbent, having said SealFailed, never let the lock go.
fn our_incumbent_whose_seal_fails_goes_on_under_their_supervisor(ours: Kind) {
    for successors in [ours, Kind::Theirs] {
        let (mut bench, old) = Bench::start(BossKind::Theirs, ours, "fails-first-seal");
        assert_eq!(bench.swap(successors, ""), Err("Unknown seal_failed".to_string()));
        bench.serves(old);
        bench.commits_to(successors);
        bench.ends_well();
    }
}

/// R4, R7: their incumbent resumes by itself when its seal fails, and is not told to again.
#[test]
fn their_incumbent_whose_seal_fails_goes_on_under_our_supervisor() {
    for successors in Kind::ALL {
        let (mut bench, old) = Bench::start(BossKind::Blocking, Kind::Theirs, "fails-first-seal");
        let outcome = bench.swap(successors, "");
        assert_eq!(outcome, Err("RolledBack seal_failed".to_string()));
        bench.serves(old);
        bench.commits_to(successors);
        bench.ends_well();
    }
}

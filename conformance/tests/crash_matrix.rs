//! A cut of the crash matrix: each step once, with one of the things that can happen there. The whole of
//! it is `cargo run --release -p conformance --bin crash-matrix`.

use conformance::matrix::{self, ADAPTERS, Case, Role, Step};
use conformance::{adapters, suite};

/// How many runs at a time: they are to disturb nobody.
const JOBS: usize = 6;

#[test]
#[ignore = "what the processes of a run are"]
fn part() {
    suite::play(&adapters::ALL);
}

/// I1, I3, I4, I5, I6: whoever dies at whichever step, somebody serves, nothing is lost, nothing is left.
#[test]
fn whoever_dies_somebody_serves() {
    let courses = ADAPTERS.iter().flat_map(|adapter| matrix::courses(adapter));
    let mut cut = Vec::new();
    for (place, course) in courses.enumerate() {
        let ran = matrix::play(&course).unwrap();
        assert!(ran.problems.is_empty(), "{}: {ran:#?}", course.name);
        // Every host tells of its steps, or there would be nothing to strike at.
        for (role, what) in [(Role::S, "Begin"), (Role::O, "Seal"), (Role::N, "TakeLock")] {
            let told = |step: &Step| step.role == role && step.what == what;
            assert!(ran.steps.iter().any(told), "{}: no {what} of {role}", course.name);
        }
        let deaths = |case: &Case| case.name.ends_with(" kill") || case.name.ends_with(" exit");
        let mut all = matrix::faults(&course, &ran.steps, false);
        all.retain(deaths);
        // Another part of them on each adapter.
        cut.extend(all.into_iter().skip(place).step_by(23));
    }
    plays_well(cut);
}

/// I5: whoever hangs, somebody serves in time.
#[test]
fn whoever_hangs_somebody_serves() {
    let hangs = |case: &Case| {
        let steps = ["after SealRequest: O", "after Begin: N", "before SealComplete: O"];
        let hung = steps.iter().any(|step| case.name.contains(step));
        hung && case.name.ends_with("stop-12s")
    };
    let mut cut = Vec::new();
    for adapter in ADAPTERS {
        let course = &matrix::courses(adapter)[0];
        let ran = matrix::play(course).unwrap();
        cut.extend(matrix::faults(course, &ran.steps, false).into_iter().filter(hangs));
    }
    plays_well(cut);
}

/// All are played, each is struck but where its step is not taken, and nothing is wrong.
fn plays_well(cases: Vec<Case>) {
    let (count, mut struck, mut wrong) = (cases.len(), 0, Vec::new());
    for (case, ran) in matrix::play_all(cases, JOBS, |_, _| {}) {
        match ran {
            Ok(ran) if ran.problems.is_empty() => struck += ran.struck as usize,
            Ok(ran) => wrong.push(format!("{}: {ran:#?}", case.name)),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    assert!(count > 0 && (!wrong.is_empty() || struck * 2 > count), "{struck} of {count} struck");
    assert!(wrong.is_empty(), "{} of {count} runs: {}", wrong.len(), wrong.join("\n"));
}

//! What a handoff comes to by itself, and what is done to it.

use super::case::{Blow, Case, Role, Step, Strike};
use super::cast::Actor;
use super::{Moment, Place, Shortage};
use crate::walk::Seed;

/// How long a process is stopped that goes on before it counts as dead (T2).
pub(super) const SHORT: u64 = 2_000;

/// How long one is stopped that others must do without.
pub(super) const LONG: u64 = 12_000;

/// How long a step takes that takes long.
const STALL: u64 = 6_000;

/// How long something is not to be had.
const LACK: u64 = 3_000;

/// The adapters that have an example daemon.
pub const ADAPTERS: [&str; 3] = ["blocking", "tokio", "smol"];

/// Handoffs without a blow, on an adapter, with its example daemons: each is played once to learn its
/// steps.
#[must_use]
pub fn courses(adapter: &str) -> Vec<Case> {
    let daemon = |fault: Option<&str>| Actor::Example {
        adapter: adapter.into(),
        fault: fault.map(str::to_string),
    };
    let courses = [
        ("commit", None),
        ("rollback of an unhealthy successor", Some("KV_UNHEALTHY")),
        ("rollback of one that dies", Some("KV_DIE_AFTER_BEGIN")),
    ];
    let case = |(name, fault)| {
        Case::new(format!("{adapter}: {name}"), adapter, daemon(None), daemon(fault))
    };
    courses.map(case).into()
}

/// What can happen at a step, to whom.
pub(super) fn blows(step: &Step, mounts: bool) -> Vec<(Role, Blow)> {
    let own = step.role;
    let before = step.moment == Moment::Before;
    let is = |names: &[&str]| names.contains(&step.what.as_str());
    let message = is(&[
        "Hello",
        "HelloAck",
        "PrepareHandoff",
        "Drained",
        "SealRequest",
        "SealProgress",
        "SealComplete",
        "SealFailed",
        "Begin",
        "Ready",
        "Commit",
        "Abort",
        "ResumeAfterAbort",
    ]);
    let mut blows = vec![
        (own, Blow::Exit),
        (own, Blow::Kill),
        (own, Blow::Stop(SHORT)),
        (own, Blow::Stop(LONG)),
    ];
    for other in [Role::S, Role::O, Role::N] {
        if other != own {
            blows.push((other, Blow::Kill));
        }
    }
    if before && !message {
        blows.push((own, Blow::Stall(STALL)));
        blows.push((own, Blow::NoDescriptors(LACK)));
        if is(&["TakeLock"]) {
            blows.push((own, Blow::LockHeld(LACK)));
        }
        if is(&["Spawn", "SpawnCold"]) {
            blows.push((own, Blow::NoBinary(LACK)));
        }
        let place = match step.what.as_str() {
            "TakeLock" | "ReleaseLock" | "Open" | "Resume" | "Seal" | "Drain" => Some(Place::Data),
            "StagePath" | "ClaimPath" | "Connect" | "Probe" => Some(Place::Run),
            what if what.starts_with("Journal") => Some(Place::State),
            _ => None,
        };
        if let Some(place) = place.filter(|_| mounts) {
            blows.push((own, Blow::Lacks(Shortage::Full, place, LACK)));
            blows.push((own, Blow::Lacks(Shortage::ReadOnly, place, LACK)));
        }
    }
    blows
}

/// The runs of a course: every step that it has, with everything that can happen there.
#[must_use]
pub fn faults(course: &Case, steps: &[Step], mounts: bool) -> Vec<Case> {
    let known = |step: &&Step| matches!(step.role, Role::S | Role::O | Role::N);
    let strikes = steps.iter().filter(known).flat_map(|step| {
        let at = |(on, blow)| Strike { at: step.clone(), on, blow };
        blows(step, mounts).into_iter().map(at)
    });
    strikes.map(|strike| course.struck(vec![strike])).collect()
}

/// Runs with two blows, by seed.
#[must_use]
pub fn pairs(course: &Case, steps: &[Step], seed: u64, count: usize) -> Vec<Case> {
    let singles = faults(course, steps, false);
    let mut seed = Seed::new(seed);
    let mut one = || singles.get(seed.below(singles.len())).map(|case| case.strikes.clone());
    let mut pair = || Some(course.struck([one()?, one()?].concat()));
    (0..count).map_while(|_| pair()).collect()
}

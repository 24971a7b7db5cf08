//! What a handoff comes to by itself, and what is done to it.

use super::case::{Blow, Case, Role, Step, Strike};
use super::cast::{Actor, Limits};
use super::{Moment, Place, Shortage};

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
    let case = |(name, fault)| Case {
        name: format!("{adapter}: {name}"),
        supervisor: adapter.into(),
        incumbent: daemon(None),
        successor: daemon(fault),
        limits: Limits::default(),
        strikes: Vec::new(),
        mounts: false,
        story: None,
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
    let mut cases = Vec::new();
    for step in steps.iter().filter(known) {
        for (on, blow) in blows(step, mounts) {
            let strike = Strike { at: step.clone(), on, blow };
            let mounts = matches!(blow, Blow::Lacks(..));
            let name = format!("{}, {}", course.name, strike.name());
            cases.push(Case { name, strikes: vec![strike], mounts, ..course.clone() });
        }
    }
    cases
}

/// Runs with two blows, by seed.
#[must_use]
pub fn pairs(course: &Case, steps: &[Step], seed: u64, count: usize) -> Vec<Case> {
    let singles = faults(course, steps, false);
    let mut state = seed;
    let mut random = |below: usize| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % below as u64).unwrap_or_default()
    };
    if singles.is_empty() {
        return Vec::new();
    }
    let mut pair = || {
        let (one, other) = (&singles[random(singles.len())], &singles[random(singles.len())]);
        let strikes = [&one.strikes[..], &other.strikes[..]].concat();
        let names: Vec<_> = strikes.iter().map(Strike::name).collect();
        Case {
            name: format!("{}, {}", course.name, names.join(" and ")),
            strikes,
            ..course.clone()
        }
    };
    (0..count).map(|_| pair()).collect()
}

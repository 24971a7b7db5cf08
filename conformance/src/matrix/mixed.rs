//! The same with one or two processes of the other implementation's.
//!
//! These tell no steps that are struck at: everything happens at the steps of ours. Where they break an
//! invariant by themselves that is known, by a table, and even there I1 and I3 are kept.

use super::case::{Blow, Case, Ran, Role, Step, Strike};
use super::cast::Actor;
use super::courses::{LONG, SHORT, blows};

/// What the adapter of the other implementation is called.
const THEIRS: &str = "theirs";

/// What they break by themselves: with which of them, by what, at which steps of ours.
struct Known {
    /// These are theirs, and others may be.
    theirs: &'static [Role],
    on: Role,
    blows: &'static [Blow],
    at: &'static [(Role, &'static [&'static str])],
    /// How the problems begin.
    breaks: &'static [&'static str],
    why: &'static str,
}

/// Nobody serves for too long.
const GAP: &str = "I5: nobody served";

/// The next handoff does not commit.
const NEXT: &str = "I6: the next handoff does not commit";

const KNOWN: &[Known] = &[
    Known {
        theirs: &[Role::S],
        on: Role::O,
        blows: &[Blow::Stop(LONG)],
        at: &[
            (
                Role::O,
                &["Open", "StagePath", "ClaimPath", "Hello", "WatchSuccessor", "Drain", "Drained"],
            ),
            (Role::O, &["Seal", "SealProgress", "ReleaseLock"]),
            (Role::N, &["Hello"]),
        ],
        breaks: &[GAP],
        why: "their supervisor ends no daemon that hangs (R17)",
    },
    Known {
        theirs: &[Role::S],
        on: Role::N,
        blows: &[Blow::Stop(LONG)],
        at: &[(Role::O, &["TakeLock"]), (Role::N, &["Ready", "ClaimPath", "Hello"])],
        breaks: &[GAP, NEXT],
        why: "their supervisor ends no daemon that hangs (R17)",
    },
    Known {
        theirs: &[Role::O],
        on: Role::S,
        blows: &[Blow::Stop(LONG)],
        at: &[
            (Role::S, &["PrepareHandoff", "JournalSeal", "SealRequest", "Begin", "JournalBegin"]),
            (Role::N, &["Hello"]),
        ],
        breaks: &[GAP, "I6: a file is left: data/.handoff.pidfile."],
        why: "their incumbent does not see that its supervisor hangs (R2)",
    },
    Known {
        theirs: &[Role::O, Role::N],
        on: Role::S,
        blows: &[Blow::Stop(LONG)],
        at: &[(Role::S, &["Begin", "JournalBegin"])],
        breaks: &[GAP, NEXT, "I5: not in 60s: somebody serves"],
        why: "their successor takes the control path before it is committed, and their incumbent does \
              not take it back (R11)",
    },
    Known {
        theirs: &[Role::O],
        on: Role::O,
        blows: &[Blow::Stop(LONG)],
        at: &[(Role::S, &["JournalSeal", "SealRequest"])],
        breaks: &[GAP],
        why: "their incumbent sends no heartbeats, so that only the deadline tells that it hangs (T2)",
    },
    Known {
        theirs: &[Role::N],
        on: Role::N,
        blows: &[Blow::Kill, Blow::Stop(LONG)],
        at: &[(Role::S, &["Begin", "JournalBegin"])],
        breaks: &["I6: a file is left: data/.handoff.pidfile."],
        why: "their daemon that is ended leaves half a pidfile, and nobody clears it",
    },
];

impl Known {
    fn is(&self, whose: &[Role], Strike { at, on, blow }: &Strike) -> bool {
        let here =
            |(role, steps): &(Role, &[&str])| at.role == *role && steps.contains(&at.what.as_str());
        self.theirs.iter().all(|role| whose.contains(role))
            && self.on == *on
            && self.blows.contains(blow)
            && self.at.iter().any(here)
    }
}

/// What they are known to break, row by row.
pub(super) fn rows() -> impl ExactSizeIterator<Item = String> {
    KNOWN.iter().map(|Known { theirs, on, blows, why, .. }| {
        let theirs: Vec<_> = theirs.iter().map(ToString::to_string).collect();
        let blows: Vec<_> = blows.iter().map(|blow| blow.name()).collect();
        format!("their {}, {on} {}: {why}", theirs.join(" and "), blows.join(" or "))
    })
}

/// The row of `rows` by which what is wrong in a run is theirs, if all of it is. I1 and I3 never are.
#[must_use]
pub fn known(case: &Case, ran: &Ran) -> Option<usize> {
    let whose = theirs(case);
    let [strike] = &case.strikes[..] else { return None };
    let all = |known: &&Known| {
        let is_known = |problem: &String| {
            let kept = problem.starts_with("I1") || problem.starts_with("I3");
            !kept && known.breaks.iter().any(|begins| problem.starts_with(begins))
        };
        known.is(&whose, strike) && ran.problems.iter().all(is_known)
    };
    KNOWN.iter().position(|known| all(&known))
}

/// A handoff in which some roles are theirs and the others are on this adapter: each pairing in which
/// one of ours meets one of theirs.
#[must_use]
pub fn mixed(adapter: &str) -> Vec<Case> {
    let pairings: [&[Role]; 6] = [
        &[Role::O],
        &[Role::N],
        &[Role::O, Role::N],
        &[Role::S],
        &[Role::S, Role::N],
        &[Role::S, Role::O],
    ];
    let pairing = |theirs: &[Role]| {
        let whose = |role: Role| if theirs.contains(&role) { THEIRS } else { adapter };
        let daemon = |role: Role| Actor::Suite { adapter: whose(role).into(), fault: None };
        let names: Vec<_> = theirs.iter().map(ToString::to_string).collect();
        let name = format!("{adapter}: their {}", names.join(" and "));
        Case::new(name, whose(Role::S), daemon(Role::O), daemon(Role::N))
    };
    pairings.into_iter().map(pairing).collect()
}

/// Which roles are theirs.
pub(super) fn theirs(case: &Case) -> Vec<Role> {
    let is = |actor: &Actor| matches!(actor, Actor::Suite { adapter, .. } if adapter == THEIRS);
    let whose = [
        (Role::S, case.supervisor == THEIRS),
        (Role::O, is(&case.incumbent)),
        (Role::N, is(&case.successor)),
    ];
    whose.into_iter().filter(|(_, theirs)| *theirs).map(|(role, _)| role).collect()
}

/// The runs of a course: every step of ours, with everything that can happen there to ours, and what
/// can happen to any process to the others.
#[must_use]
pub fn mixed_faults(course: &Case, steps: &[Step], mounts: bool) -> Vec<Case> {
    let roles = [Role::S, Role::O, Role::N];
    let theirs = theirs(course);
    let ours = |step: &&Step| roles.contains(&step.role) && !theirs.contains(&step.role);
    let spawn = steps.iter().position(|step| step.role == Role::N || step.what == "Spawn");
    let mut cases = Vec::new();
    for (place, step) in steps.iter().enumerate().filter(|(_, step)| ours(step)) {
        let others = roles.into_iter().filter(|role| *role != step.role);
        let stops = others.flat_map(|on| [(on, Blow::Stop(SHORT)), (on, Blow::Stop(LONG))]);
        for (on, blow) in blows(step, mounts).into_iter().chain(stops) {
            if on == Role::N && spawn.is_none_or(|spawn| place < spawn) {
                continue;
            }
            cases.push(course.struck(vec![Strike { at: step.clone(), on, blow }]));
        }
    }
    cases
}

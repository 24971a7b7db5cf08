//! Handoffs in a row leave nothing in the supervisor that did them, on any adapter. A few here: hundreds
//! are `crash-matrix --soak 500`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::alloc::System;
use std::sync::Mutex;
use std::time::Duration;

use conformance::adapters::{ALL, BLOCKING, SMOL, TOKIO};
use conformance::matrix::{Soak, soak};
use conformance::suite::{Bench, play};
use handoff_blocking::Verdict;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test at a time: what is counted is the whole process's.
static ALONE: Mutex<()> = Mutex::new(());

/// Not a test of its own: what the processes run.
#[test]
#[ignore = "the body of the processes"]
fn part() {
    play(&ALL);
}

/// I3, I4, I6: as processes, under load, on each adapter and from each to the next.
#[test]
fn nothing_fails_and_nothing_grows() {
    let _alone = ALONE.lock();
    let adapters = [BLOCKING, TOKIO, SMOL].map(|adapter| adapter.name().to_string());
    for wanted in Soak::all(&adapters, 20) {
        let soaked = soak(&wanted).unwrap();
        assert!(soaked.problems.is_empty(), "{soaked}");
        assert_eq!(soaked.handoffs, 20, "{soaked}");
        assert!(soaked.requests > 20 && soaked.acknowledged == soaked.requests, "{soaked}");
        assert!(!soaked.flat.is_empty(), "{soaked}");
    }
}

/// How many handoffs are compared with as many before.
const HANDOFFS: usize = 16;

/// How many more allocations a runtime and its pool may come to have: fewer than one for each.
const POOL: usize = 12;

/// How many allocations this process has at rest, behind some handoffs: the fewest, because a pool may
/// still have one under way.
fn allocated(bench: &mut Bench) -> usize {
    let after = |_| {
        let report = bench.swap(None);
        assert_eq!(report.verdict, Verdict::Committed, "{report}");
        let _ = bench.supervisor.exits(Duration::from_millis(50)).unwrap();
        let stats = COUNTED.stats();
        stats.allocations - stats.deallocations
    };
    (0..HANDOFFS).map(after).min().unwrap()
}

/// I6: not one allocation is left behind by each.
#[test]
fn a_handoff_leaves_no_allocation() {
    let _alone = ALONE.lock();
    for adapter in ALL {
        let (mut bench, _) = Bench::start(adapter, None);
        let before = allocated(&mut bench);
        let after = allocated(&mut bench);
        assert!(after <= before + POOL, "{}: {before}, and then {after}", adapter.name());
        bench.ends_well();
    }
}

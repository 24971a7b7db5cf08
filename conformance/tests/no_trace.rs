//! A handoff that failed leaves nothing: no process, no descriptor, no thread, no task, no file. Alone
//! in its process, so that what it counts is its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::time::Duration;

use conformance::adapters::ALL;
use conformance::suite::{Adapter, Bench, Fault, play, wait_until};
use handoff_blocking::Verdict;

/// Not a test of its own: what the processes run.
#[test]
#[ignore = "the body of the processes"]
fn part() {
    play(&ALL);
}

/// How many threads a pool may come to have later than in its first handoffs: those of smol's stay, and
/// there are as many as jobs have ever run at once.
const POOL: usize = 3;

/// What this process has.
#[derive(Debug)]
struct Trace {
    descriptors: usize,
    threads: usize,
    /// The processes that it has started or adopted, zombies included.
    children: Vec<String>,
}

impl Trace {
    fn now() -> Self {
        let tasks: Vec<_> = std::fs::read_dir("/proc/self/task").unwrap().flatten().collect();
        let mut children: Vec<String> = tasks
            .iter()
            // A thread may end while it is looked at.
            .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|line| line.split_whitespace().map(String::from).collect::<Vec<_>>())
            .collect();
        children.sort();
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        Self { descriptors, threads: tasks.len(), children }
    }

    /// Waits until there is nothing more than this: the last entry of the journal is written behind the
    /// report, and a supervisor that was dropped keeps its descriptors for a moment.
    fn returns(&self, what: &str, mut and: impl FnMut() -> bool) {
        wait_until(&format!("{what}, as before: {self:?}"), || {
            let now = Self::now();
            and()
                && now.descriptors <= self.descriptors
                && now.threads <= self.threads + POOL
                && now.children == self.children
        });
    }
}

/// Handoffs that fail, round after round.
fn failures(adapter: &'static dyn Adapter) {
    let name = adapter.name();
    let (mut bench, old) = Bench::start(adapter, None);
    let mut before = None;
    for _ in 0..3 {
        for fault in
            [Fault::DiesAfterBegin, Fault::Unhealthy, Fault::ExitsAtOnce, Fault::FailsToOpen]
        {
            let report = bench.swap(Some(fault));
            assert_ne!(report.verdict, Verdict::Committed, "{name}, {fault:?}: {report}");
            assert_eq!(bench.write(), old, "{name}, {fault:?}");
        }
        let before = before.get_or_insert_with(Trace::now);
        assert_eq!(before.children, [old.to_string()], "{name}");
        before.returns(name, || {
            let _ = bench.supervisor.exits(Duration::from_millis(1));
            bench.supervisor.tasks().is_none_or(|tasks| tasks == 1)
                && bench.files() == ["control", "journal"]
        });
    }
    bench.ends_well();
}

/// I6, R6, R14.
#[test]
fn a_handoff_that_failed_leaves_no_trace() {
    for adapter in ALL {
        // What a runtime starts once and keeps is there after the first time.
        failures(adapter);
        let before = Trace::now();
        failures(adapter);
        before.returns(&format!("{}, after its supervisor", adapter.name()), || true);
    }
}

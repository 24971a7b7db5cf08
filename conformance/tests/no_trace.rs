//! A handoff that failed leaves nothing: no process, no descriptor, no thread, no task, no file. Alone
//! in its process, so that what it counts is its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[path = "processes/harness/mod.rs"]
mod harness;

use std::time::Duration;

use handoff_blocking::Verdict;
use harness::{Bench, Runtime, wait_until};

/// Not a test of its own: what the daemon processes run.
#[test]
#[ignore = "the body of the daemon processes"]
fn daemon() {
    harness::daemon();
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
fn failures(runtime: Runtime) {
    let (mut bench, old) = Bench::start(runtime, "");
    let mut before = None;
    for _ in 0..3 {
        for fault in ["die-after-begin", "unhealthy", "exit-at-once", "fail-open"] {
            let report = bench.swap(fault);
            assert_ne!(report.verdict, Verdict::Committed, "{runtime:?}, {fault}: {report}");
            assert_eq!(bench.write(), old, "{runtime:?}, {fault}");
        }
        let before = before.get_or_insert_with(Trace::now);
        assert_eq!(before.children, [old.to_string()], "{runtime:?}");
        before.returns(&format!("{runtime:?}"), || {
            bench.supervisor.watch(Duration::from_millis(1));
            bench.supervisor.tasks().is_none_or(|tasks| tasks == 1)
                && bench.files() == ["c.sock", "data", "journal"]
        });
    }
    bench.ends_well();
}

/// I6, R6, R14.
#[test]
fn a_handoff_that_failed_leaves_no_trace() {
    for runtime in Runtime::ALL {
        // What a runtime starts once and keeps is there after the first time.
        failures(runtime);
        let before = Trace::now();
        failures(runtime);
        before.returns(&format!("{runtime:?}, after its supervisor"), || true);
    }
}

//! A handoff that failed leaves nothing: no process, no descriptor, no file. Alone in its process, so that
//! what it counts is its own.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::Bench;
use handoff_blocking::Verdict;

/// Not a test of its own: what the daemons of the other test run.
#[test]
#[ignore = "the body of the daemon processes"]
fn daemon() {
    common::daemon();
}

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// The processes that this one has started or adopted, zombies included.
fn children() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let mut all: Vec<String> = tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok())
        .flat_map(|line| line.split_whitespace().map(String::from).collect::<Vec<_>>())
        .collect();
    all.sort();
    all
}

/// Waits until no effect is under way: the last entry of the journal is written behind the report.
fn settle() {
    let working = || {
        let mut tasks = std::fs::read_dir("/proc/self/task").unwrap();
        tasks.any(|task| {
            let name = std::fs::read_to_string(task.unwrap().path().join("comm"));
            name.is_ok_and(|name| name.trim() == "handoff-job")
        })
    };
    while working() {
        std::thread::park_timeout(std::time::Duration::from_millis(1));
    }
}

/// I6, R6, R14.
#[test]
fn a_handoff_that_failed_leaves_no_trace() {
    let (mut bench, old) = Bench::start("");
    let mut traces = Vec::new();
    for fault in ["die-after-begin", "unhealthy", "exit-at-once", "fail-open"].repeat(3) {
        let report = bench.swap(fault);
        assert_ne!(report.verdict, Verdict::Committed, "{fault}: {report}");
        assert_eq!(bench.write(), old);
        settle();
        let mut files: Vec<_> = std::fs::read_dir(bench.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        traces.push((count("/proc/self/fd"), children(), files));
    }
    let last = traces.split_off(4);
    for trace in last {
        assert_eq!(trace, traces[3]);
    }
    assert_eq!(traces[3].1, [old.to_string()]);
    assert_eq!(traces[3].2, ["c.sock", "data", "journal"]);
    bench.ends_well();
}

//! `handoff demo`, run as a person runs it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use handoff_unix::process::{PidFd, Signal};
use serde_json::Value;

/// Longer than any of this takes, on a slow machine too.
const LIMIT: Duration = Duration::from_secs(120);

fn demo(folder: &Path, args: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_handoff"))
        .arg("demo")
        .args(args.split(' '))
        .env("TMPDIR", folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for the demo, and ends it if it takes too long.
fn wait(child: &Child) {
    let pidfd = PidFd::open(child.id()).unwrap();
    if !pidfd.wait(Some(LIMIT)).unwrap() {
        pidfd.signal(Signal::KILL).unwrap();
        panic!("the demo does not end");
    }
}

fn assert_nothing_is_left(folder: &Path) {
    let left: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    // Every process of the demo has the folder in its environment.
    let folder = folder.to_str().unwrap().as_bytes();
    for process in fs::read_dir("/proc").unwrap() {
        let process = process.unwrap().path();
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        let found = environment.windows(folder.len()).any(|window| window == folder);
        assert!(!found, "{} is still there", process.display());
    }
}

#[test]
fn i3_i4_nothing_fails_and_nothing_is_lost() {
    is_clean("--runtime blocking");
}

#[test]
fn i3_i4_nor_on_tokio() {
    is_clean("--runtime tokio");
}

#[test]
fn i3_i4_nor_on_smol() {
    is_clean("--runtime smol");
}

#[test]
fn i3_i4_nor_on_async_std() {
    is_clean("--runtime async-std");
}

#[test]
fn i3_i4_nor_from_one_to_another() {
    is_clean("--from smol --to tokio");
}

fn is_clean(runtimes: &str) {
    let folder = tempfile::tempdir().unwrap();
    let args = format!("--seconds 3 --swaps 3 --clients 4 --json {runtimes}");
    let child = demo(folder.path(), &args);
    wait(&child);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");

    let object: serde_json::Map<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
    let number = |name: &str| object[name].as_f64().unwrap_or_else(|| panic!("{object:?}"));
    assert_eq!(number("swaps_committed"), 3.0);
    assert_eq!(number("rolled_back"), 2.0);
    assert_eq!(number("failed_requests"), 0.0);
    assert_eq!(number("lost_writes"), 0.0);
    assert!(number("acked_writes") > 0.0, "{object:?}");
    assert!(number("requests") >= 2.0 * number("acked_writes"), "each was read back: {object:?}");
    assert!(number("longest_pause_ms") > 0.0);
    assert!(number("accept_gap_ms") > 0.0);
    assert_eq!(object.len(), 10, "{object:?}");
    assert_nothing_is_left(folder.path());
}

/// Sends a signal when the demo has told `lines` lines. The next swap has begun by then.
fn interrupted(signal: Signal, lines: usize) -> Option<i32> {
    let folder = tempfile::tempdir().unwrap();
    let mut child = demo(folder.path(), "--seconds 1 --swaps 1000 --clients 4");
    let told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut told = told.inspect(|line| eprintln!("{line}"));
    assert_eq!(told.by_ref().take(lines).count(), lines);
    PidFd::open(child.id()).unwrap().signal(signal).unwrap();
    wait(&child);
    let output = child.wait_with_output().unwrap();
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(told.last().unwrap().starts_with("interrupted"));
    assert_nothing_is_left(folder.path());
    output.status.code()
}

#[test]
fn i6_ctrl_c_leaves_no_process_and_no_folder() {
    for lines in 1..=4 {
        assert_eq!(interrupted(Signal::INT, lines), Some(130), "after {lines} lines");
    }
    assert_eq!(interrupted(Signal::TERM, 2), Some(143));
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for args in ["--clients 0", "--clients 129", "--seconds 0", "--swaps 0", "--swaps many"] {
        let folder = tempfile::tempdir().unwrap();
        let output = demo(folder.path(), args).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{args}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(args.split(' ').next().unwrap()), "{stderr}");
        assert_nothing_is_left(folder.path());
    }
}

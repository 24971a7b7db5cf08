//! The supervisor is a process too, and is killed at every phase of a handoff: somebody serves, nobody
//! twice, no write is lost, and the next supervisor finds out who.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{Bench, config, launch};
use handoff_blocking::{Handoff, Launch, Supervisor};
use handoff_core::supervisor::Event;
use handoff_unix::inherit::Inherited;
use handoff_unix::lock::{LockState, lock_state};
use handoff_unix::process::Signal;
use handoff_unix::spawn::{SpawnRole, spawn};

/// Not a test of its own: what the daemons of the other tests run.
#[test]
#[ignore = "the body of the daemon processes"]
fn daemon() {
    common::daemon();
}

/// Not a test of its own: the supervisor that is killed. It tells of each phase as it begins.
#[test]
#[ignore = "the body of the supervisor process"]
fn supervisor() {
    let Ok(dir) = std::env::var("TEST_DIR") else { return };
    let dir = PathBuf::from(dir);
    let mut supervisor = Supervisor::new(config(&dir)).unwrap();
    let listener = Inherited::from_env().unwrap().take_tcp("tcp").unwrap().unwrap();
    supervisor.listener("tcp", listener).unwrap();
    let handoff = Handoff::new(launch(&dir, "waits-to-open"));
    let report = supervisor.handoff(&handoff, |event| {
        if let Event::Phase(phase) = event {
            let _ = writeln!(std::io::stdout(), "\nphase {}", phase.name());
        }
    });
    println!("{}", report.unwrap());
}

/// Kills a supervisor as soon as it says that `phase` has begun, and sees who serves then.
fn killed_at(phase: &str, incumbents_fault: &str) -> (Bench, u32, u32) {
    let (bench, old) = Bench::start(incumbents_fault);
    let (reader, writer) = std::io::pipe().unwrap();
    let launch = Launch::new(std::env::current_exe().unwrap())
        .args(["supervisor", "--exact", "--ignored", "--nocapture"])
        .env("TEST_DIR", bench.dir.path())
        .stdout(Arc::new(writer.into()));
    let victim =
        spawn(&launch, &[("tcp".into(), bench.listener.as_fd())], SpawnRole::Cold).unwrap();
    drop(launch);
    let begun = format!("phase {phase}");
    let mut said = BufReader::new(reader).lines().map(Result::unwrap);
    assert!(said.any(|line| line == begun), "it did not come to {begun:?}");
    // The phase begins when Begin is about to be sent; it is read when the lock changes hands.
    let data = bench.dir.path().join("data");
    let taken = || matches!(lock_state(&data), LockState::Held { pid } if pid != Some(old));
    while phase == "open" && !taken() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    victim.pidfd.signal(Signal::KILL).unwrap();
    assert!(victim.pidfd.wait(None).unwrap());
    victim.group.reap();
    // From here on a successor that has read Begin may open.
    std::fs::write(data.join("go"), "").unwrap();

    let mut next = Supervisor::new(config(bench.dir.path())).unwrap();
    let found = next.start(&Launch::new("/nowhere/needed")).unwrap();
    assert!(!found.started, "{phase}: nobody served");
    (bench, old, found.pid)
}

/// R3, R10: before Begin the successor ends, and the incumbent serves on.
#[test]
fn before_begin_the_incumbent_serves_on() {
    for (phase, fault) in [("warm", ""), ("drain", "drain-hangs"), ("seal", "seal-hangs")] {
        let (mut bench, old, serving) = killed_at(phase, fault);
        assert_eq!(serving, old, "{phase}");
        assert_eq!(bench.write(), old, "{phase}");
    }
}

/// R2, R3: after Begin the successor goes on by itself, and the incumbent stands down.
#[test]
fn after_begin_the_successor_goes_on() {
    let (mut bench, old, serving) = killed_at("open", "");
    assert_ne!(serving, old);
    assert_eq!(bench.write(), serving);
    let gone = bench.supervisor.watch(Duration::from_secs(30)).unwrap();
    assert_eq!(gone.len(), 1, "{gone:?}");
    assert_eq!(gone[0].0, old);
    assert!(gone[0].1.starts_with("exit code 75"), "{gone:?}");
    bench.ends_well();
}

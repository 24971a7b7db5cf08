//! The supervisor is a process too, and is killed at every phase of a handoff: somebody serves, nobody
//! twice, no write is lost, and the next supervisor finds out who.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use handoff_blocking::{Event, Handoff, Launch};
use handoff_unix::inherit::Inherited;
use handoff_unix::lock::{LockState, lock_state};
use handoff_unix::process::Signal;
use handoff_unix::spawn::{SpawnRole, spawn};

use crate::harness::{Bench, PATIENCE, Runtime, Supervisor, config, launch, launch_as, wait_until};

on_every_runtime!(before_begin_the_incumbent_serves_on, after_begin_the_successor_goes_on);

/// Not a test of its own: the supervisor that is killed. It tells of each phase as it begins.
#[test]
#[ignore = "the body of the supervisor process"]
fn supervisor() {
    let Ok(dir) = std::env::var("TEST_DIR") else { return };
    let dir = PathBuf::from(dir);
    let runtime = Runtime::from_env();
    let mut supervisor = Supervisor::new(runtime, config(&dir)).unwrap();
    let listener = Inherited::from_env().unwrap().take_tcp("tcp").unwrap().unwrap();
    supervisor.listener("tcp", listener).unwrap();
    let handoff = Handoff::new(launch(runtime, &dir, "waits-to-open"));
    let report = supervisor.handoff(&handoff, |event| {
        if let Event::Phase(phase) = event {
            let _ = writeln!(std::io::stdout(), "\nphase {}", phase.name());
        }
    });
    println!("{}", report.unwrap());
}

/// Kills a supervisor as soon as it says that `phase` has begun, and sees who serves then.
fn killed_at(runtime: Runtime, phase: &str, incumbents_fault: &str) -> (Bench, u32, u32) {
    let (bench, old) = Bench::start(runtime, incumbents_fault);
    let (reader, writer) = std::io::pipe().unwrap();
    let launch = launch_as("supervisor_dies::supervisor", runtime, bench.dir.path())
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
    wait_until("the lock changes hands", || phase != "open" || taken());
    victim.pidfd.signal(Signal::KILL).unwrap();
    assert!(victim.pidfd.wait(None).unwrap());
    victim.group.reap();
    // From here on a successor that has read Begin may open.
    std::fs::write(bench.dir.path().join("go"), "").unwrap();

    let mut next = Supervisor::new(runtime, config(bench.dir.path())).unwrap();
    let found = next.start(&Launch::new("/nowhere/needed")).unwrap();
    assert!(!found.started, "{phase}: nobody served");
    (bench, old, found.pid)
}

/// R3, R10: before Begin the successor ends, and the incumbent serves on.
fn before_begin_the_incumbent_serves_on(runtime: Runtime) {
    for (phase, fault) in [("warm", ""), ("drain", "drain-hangs"), ("seal", "seal-hangs")] {
        let (mut bench, old, serving) = killed_at(runtime, phase, fault);
        assert_eq!(serving, old, "{phase}");
        assert_eq!(bench.write(), old, "{phase}");
    }
}

/// R2, R3: after Begin the successor goes on by itself, and the incumbent stands down.
fn after_begin_the_successor_goes_on(runtime: Runtime) {
    let (mut bench, old, serving) = killed_at(runtime, "open", "");
    assert_ne!(serving, old);
    assert_eq!(bench.write(), serving);
    let gone = bench.supervisor.watch(PATIENCE);
    assert_eq!(gone.len(), 1, "{gone:?}");
    assert_eq!(gone[0].0, old);
    assert!(gone[0].1.starts_with("exit code 75"), "{gone:?}");
    bench.ends_well();
}

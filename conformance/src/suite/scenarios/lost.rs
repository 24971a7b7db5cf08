//! The supervisor is a process too, and is killed while it hands off: somebody serves, nobody twice, no
//! write is lost, and the next supervisor finds out who.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use handoff_unix::process::Signal;
use handoff_unix::spawn::{Launch, SpawnRole, spawn};

use super::Scenario;
use crate::suite::part::{Successor, config, supervisor};
use crate::suite::program::LISTENER;
use crate::suite::{Adapter, Bench, Fault};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::handoff(
        &["R3", "R10"],
        "its supervisor killed before Begin, a successor ends",
        before_begin,
    ),
    Scenario::handoff(
        &["R2", "R3", "R15"],
        "its supervisor killed after Begin, a successor serves",
        after_begin,
    ),
];

/// Kills a supervisor while one of the daemons waits, and sees who serves then.
fn killed(
    adapter: &'static dyn Adapter,
    incumbents: Option<Fault>,
    successors: Option<Fault>,
) -> (Bench, u32, u32) {
    let (bench, old) = Bench::start(adapter, incumbents);
    let dir = bench.dir.path();
    let null = File::options().write(true).open("/dev/null").expect("there is one");
    let launch = supervisor(adapter, dir, Successor::Daemon(successors)).expect("this binary");
    let launch = launch.stdout(Arc::new(null.into()));
    let listeners = [(LISTENER.into(), bench.listener.as_fd())];
    let victim = spawn(&launch, &listeners, SpawnRole::Cold).expect("a supervisor");
    Bench::waits(dir);
    victim.pidfd.signal(Signal::KILL).expect("it runs");
    victim.pidfd.wait(None).expect("it ends");
    victim.group.reap();
    // From here on a successor that waits goes on.
    Bench::go(dir);

    let mut next = adapter.supervisor(config(dir)).expect("a supervisor");
    let found = next.start(&Launch::new("/nowhere/needed")).expect("somebody serves");
    assert!(!found.started, "nobody served");
    (bench, old, found.pid)
}

fn before_begin(adapter: &'static dyn Adapter) {
    let cases = [
        (None, Some(Fault::WarmsUp)),
        (Some(Fault::DrainHangs), None),
        (Some(Fault::SealHangs), None),
    ];
    for (incumbents, successors) in cases {
        let (mut bench, old, serving) = killed(adapter, incumbents, successors);
        assert_eq!(serving, old, "{incumbents:?}, {successors:?}");
        assert_eq!(bench.write(), old, "{incumbents:?}, {successors:?}");
        bench.ends_well();
    }
}

fn after_begin(adapter: &'static dyn Adapter) {
    let (mut bench, old, serving) = killed(adapter, None, Some(Fault::WaitsToOpen));
    assert_ne!(serving, old);
    assert_eq!(bench.write(), serving);
    let status = bench.end_of(old);
    assert!(status.starts_with("exit code 75"), "{status}");
    bench.ends_well();
}

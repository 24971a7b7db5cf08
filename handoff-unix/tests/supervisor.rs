//! A supervisor's host and effects on their own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use handoff_core::HandoffId;
use handoff_core::daemon::Signal;
use handoff_core::supervisor::{Effect, Entry, LockState, Outcome, Step};
use handoff_unix::control::ControlPath;
use handoff_unix::effects::SupervisorEffects;
use handoff_unix::host::{Front, Host, StartError, SupervisorConfig, SupervisorHost};
use handoff_unix::lock::DataDirLock;
use handoff_unix::poll;
use handoff_unix::probe::Users;
use handoff_unix::process::{self, PidFd};
use handoff_unix::spawn::Launch;

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("handoff unix ").tempdir().unwrap()
}

/// Stops a process and waits until it is.
fn stop(pid: u32) {
    PidFd::open(pid).unwrap().signal(process::Signal::STOP).unwrap();
    let limit = Instant::now() + Duration::from_secs(60);
    let stopped = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
    while !stopped() {
        assert!(Instant::now() < limit, "it does not stop");
        std::thread::yield_now();
    }
}

fn effects(dir: &Path) -> SupervisorEffects {
    let control = ControlPath::new(dir.join("control")).unwrap();
    SupervisorEffects::new(control, Some(dir.into()), None, Users(Vec::new()))
}

/// R17: one that is stopped cannot take SIGTERM, and must not go on before it ends: it is killed.
#[test]
fn r17_who_is_stopped_is_killed_when_it_is_to_end() {
    let dir = scratch();
    for (stops, end) in [(false, "SIGTERM"), (true, "SIGKILL")] {
        let mut effects = effects(dir.path());
        effects.launch(Some((Launch::new("sleep").arg("600"), Duration::from_secs(1))));
        let spawned = effects.finish(effects.job(Effect::Spawn { successor: false })());
        let Some(Outcome::Spawned(Ok(pid))) = spawned.outcome else { panic!("{spawned:?}") };
        if stops {
            stop(pid);
        }
        effects.job(Effect::Signal { pid, signal: Signal::Term })();
        let watch = spawned.watch.unwrap();
        assert!(watch.wait(Some(Duration::from_secs(60))).unwrap(), "it does not end");
        let Outcome::Exited { status, .. } = effects.exited(&watch) else { panic!("no end") };
        assert!(status.contains(end), "{status}");
    }
}

/// R4, R14: a successor that was ended is told of with how it ended, also where its group is gone before
/// its exit is noticed.
#[test]
fn r14_who_was_ended_is_told_of_with_its_status() {
    let dir = scratch();
    let mut effects = effects(dir.path());
    effects.launch(Some((Launch::new("sleep").arg("600"), Duration::from_secs(1))));
    let spawned = effects.finish(effects.job(Effect::Spawn { successor: true })());
    let Some(Outcome::Spawned(Ok(pid))) = spawned.outcome else { panic!("{spawned:?}") };
    effects.job(Effect::Signal { pid, signal: Signal::Kill })();
    let mut effect = Some(Effect::Reap { pid });
    while let Some(again) = effect {
        effect = effects.finish(effects.job(again)()).again;
    }
    assert!(effects.own().is_empty(), "it is reaped");
    let ended = effects.exited(&spawned.watch.unwrap());
    let Outcome::Exited { status, .. } = ended else { panic!("{ended:?}") };
    assert!(status.contains("SIGKILL") && status.contains("sleep"), "{status}");
}

/// R17: who holds the lock is told for as long as it does, and no longer.
#[test]
fn r17_the_holder_is_told_for_as_long_as_it_holds() {
    let dir = scratch();
    let mut effects = effects(dir.path());
    let mut look = || effects.finish(effects.job(Effect::CheckLock { by: None })()).outcome;
    let is = |state| Some(Outcome::LockChecked(state));
    let own = LockState::Held { pid: Some(std::process::id()) };
    for _ in 0..2 {
        let lock = DataDirLock::try_take(dir.path()).unwrap();
        assert_eq!((look(), look()), (is(own), is(own)));
        drop(lock.release());
        assert_eq!((look(), look()), (is(LockState::Free), is(LockState::Free)));
    }
}

fn start(host: &mut SupervisorHost, front: &Front) -> Result<(), StartError> {
    let launch = Launch::new("/nowhere/at all");
    let turn = || {
        poll::readable(&*host, Some(Duration::from_secs(60))).unwrap();
        host.turn().unwrap();
        // What is told is told of here: who waits before it waits for nothing.
        while let Some(job) = host.job() {
            job();
        }
        Ok(())
    };
    front.start(&launch, turn).map(drop)
}

/// R10, R17: a supervisor knows the daemon that one before it has started, also where no handoff has ever
/// begun and where the one between has died as well: it may end it, if it hangs.
#[test]
fn r10_a_daemon_that_was_started_is_known_to_the_next_supervisors() {
    let dir = scratch();
    let journal = dir.path().join("journal");
    let effects = || {
        let control = ControlPath::new(dir.path().join("control")).unwrap();
        SupervisorEffects::new(control, None, Some(journal.clone()), Users(Vec::new()))
    };
    let mut first = effects();
    first.launch(Some((Launch::new("sleep").arg("600"), Duration::from_secs(1))));
    let spawned = first.finish(first.job(Effect::Spawn { successor: false })());
    let Some(Outcome::Spawned(Ok(pid))) = spawned.outcome else { panic!("{spawned:?}") };
    for step in [Step::Idle, Step::Seal] {
        let next = effects();
        next.recover()();
        assert_eq!(next.own(), [pid], "{step:?}");
        // It dies in the middle of a handoff.
        let entry = Entry { id: HandoffId::new(), step, incumbent: Some(pid), successor: None };
        next.job(Effect::Journal(entry))();
        let after = effects();
        after.recover()();
        let last = effects();
        last.recover()();
        assert_eq!((after.own(), last.own()), (vec![pid], vec![pid]), "{step:?}");
    }
    assert_eq!(first.end_all(Duration::from_secs(60))(), []);
}

/// R9, R10: what the supervisor before this one left is read once. After that the journal is this one's
/// own, and what stands there is no news.
#[test]
fn r10_a_journal_is_read_by_who_comes_anew_and_once() {
    let dir = scratch();
    let (control, journal) = (dir.path().join("control"), dir.path().join("journal"));
    let config = SupervisorConfig::new(control).data_dir(dir.path()).journal(&journal);
    let (mut host, front) = SupervisorHost::new(config).unwrap();
    for read in [true, false] {
        fs::write(&journal, "garbage").unwrap();
        assert!(matches!(start(&mut host, &front), Err(StartError::NobodyServes(_))));
        assert_eq!(journal.exists(), !read, "garbage that is read is set aside");
    }
}

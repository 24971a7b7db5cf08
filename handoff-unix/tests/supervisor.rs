//! A supervisor's host and effects on their own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use handoff_core::daemon::Signal;
use handoff_core::supervisor::{Effect, Outcome};
use handoff_unix::control::ControlPath;
use handoff_unix::effects::SupervisorEffects;
use handoff_unix::host::{Front, Host, StartError, SupervisorConfig, SupervisorHost};
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

fn start(host: &mut SupervisorHost, front: &Front) -> Result<(), StartError> {
    let launch = Launch::new("/nowhere/at all");
    let turn = || {
        poll::readable(&*host, Some(Duration::from_secs(60))).unwrap();
        host.turn().unwrap();
        while let Some(job) = host.job() {
            job();
        }
        Ok(())
    };
    front.start(&launch, turn).map(drop)
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

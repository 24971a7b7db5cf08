//! A daemon or a supervisor by itself: the probe is whoever else takes part.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use handoff_unix::process::Signal;
use handoff_unix::spawn::{Child, SpawnRole, spawn};

use super::Verdict;
use crate::probe::{Case, Check, Incumbent, Successor, Supervisor};
use crate::suite::bench::directory;
use crate::suite::program::{LISTENER, control_path, data_dir};
use crate::suite::{Adapter, PATIENCE, part, wait_until};

/// A daemon that serves; it is gone when this is dropped.
struct Daemon(Child);

impl Daemon {
    fn start(adapter: &dyn Adapter, dir: &Path) -> Self {
        let launch = part::daemon(adapter, dir, None).expect("this binary");
        let none: [(String, BorrowedFd<'_>); 0] = [];
        let daemon = Self(spawn(&launch, &none, SpawnRole::Cold).expect("a daemon"));
        let answers = || UnixStream::connect(control_path(dir)).is_ok();
        wait_until("the daemon is there", answers);
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.group.signal(Signal::KILL);
        let _ = self.0.pidfd.wait(Some(PATIENCE));
        let _ = self.0.group.reap();
    }
}

pub(super) fn incumbent(adapter: &dyn Adapter, check: &Check<Incumbent>) -> (Verdict, String) {
    let dir = directory();
    let _daemon = Daemon::start(adapter, dir.path());
    let probe = Incumbent::new(control_path(dir.path())).expect("a path");
    let probe = probe.data_dir(data_dir(dir.path())).patience(PATIENCE).slow(true).commit(true);
    told(&check.run_split(&probe))
}

pub(super) fn successor(adapter: &dyn Adapter, check: &Check<Successor>) -> (Verdict, String) {
    let dir = directory();
    let launch = part::daemon(adapter, dir.path(), None).expect("this binary");
    let probe = Successor::new(launch, false).listener(LISTENER, "127.0.0.1:0");
    let probe = probe.expect("a loopback address").socket(control_path(dir.path()));
    let probe = probe.expect("a path").data_dir(data_dir(dir.path()));
    told(&check.run_split(&probe.patience(PATIENCE).slow(true)))
}

pub(super) fn supervisor(adapter: &dyn Adapter, check: &Check<Supervisor>) -> (Verdict, String) {
    let dir = directory();
    let launch = part::supervisor(adapter, dir.path(), part::Successor::Puppet);
    let probe = Supervisor::new(control_path(dir.path()), launch.expect("this binary"), false);
    told(&check.run_split(&probe.expect("a path").patience(PATIENCE)))
}

/// What a case came to: where it failed, with all that was said.
fn told(case: &Case) -> (Verdict, String) {
    let text = if case.verdict == Verdict::Fail { case.text(false) } else { case.seen.clone() };
    (case.verdict, text)
}

//! A daemon's host on its own, and what others do to its control path (R11).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use handoff_core::daemon::Readiness;
use handoff_unix::control::ControlPath;
use handoff_unix::host::{Config, DaemonHost, Host, Program, Request};
use handoff_unix::poll;

/// Drives it until nothing is left to do, with all jobs on this thread; how many there were.
fn settles(host: &mut DaemonHost) -> usize {
    let mut jobs = 0;
    loop {
        while let Some(job) = host.job() {
            jobs += 1;
            job();
        }
        if !poll::readable(host, Some(Duration::ZERO)).unwrap() {
            return jobs;
        }
        host.turn().unwrap();
        assert!(jobs < 100, "it does not come to rest");
    }
}

fn opens(program: &mut Program) {
    let Request::Hook(call) = program.wait() else { panic!("nothing is to be opened") };
    let readiness = Readiness { listening_on: vec![], healthz_ok: true, revisions: vec![] };
    program.ready(call, readiness);
}

/// R11, R17: whoever serves claims the path each time that it leads elsewhere or nowhere, once; for what
/// else happens beside it, and for its own renames, it does nothing.
#[test]
fn r11_a_control_path_that_is_lost_is_claimed_again() {
    let dir = tempfile::Builder::new().prefix("handoff unix ").tempdir().unwrap();
    let (run, data) = (dir.path().join("run"), dir.path().join("data"));
    fs::create_dir(&run).unwrap();
    fs::create_dir(&data).unwrap();
    let path = run.join("control sock");
    let (mut host, mut program) = DaemonHost::from_env(Config::new(&path, &data)).unwrap();
    program.begin();
    assert_eq!(settles(&mut host), 2, "the lock is taken, the socket staged");
    opens(&mut program);
    assert_eq!(settles(&mut host), 1, "the path is claimed, and no more often for its own rename");
    let answers = || ControlPath::new(path.clone()).unwrap().connect(Duration::ZERO).is_ok();
    assert!(answers());

    fs::remove_file(&path).unwrap();
    assert_eq!(settles(&mut host), 1, "removed");
    assert!(answers());

    fs::rename(&path, run.join("moved")).unwrap();
    assert_eq!(settles(&mut host), 1, "moved away");
    assert!(answers());

    // A socket that is bound under another name, and whose owner is gone.
    drop(UnixListener::bind(run.join("other")).unwrap());
    fs::rename(run.join("other"), &path).unwrap();
    assert_eq!(settles(&mut host), 1, "replaced");
    assert!(answers());

    fs::rename(&run, dir.path().join("elsewhere")).unwrap();
    fs::create_dir(&run).unwrap();
    assert_eq!(settles(&mut host), 1, "its directory replaced");
    assert!(answers());
    fs::remove_file(&path).unwrap();
    assert_eq!(settles(&mut host), 1, "removed in the new one");
    assert!(answers());

    fs::write(run.join("control sock.1.staging"), "").unwrap();
    fs::write(run.join("file"), "").unwrap();
    fs::remove_file(run.join("file")).unwrap();
    assert_eq!(settles(&mut host), 0, "others");
}

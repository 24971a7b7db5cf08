//! Whatever is dropped, and wherever it stands: no task, thread, process or descriptor is left behind,
//! and there never are two writers.
//!
//! Each scenario is a process of its own, because what it counts is its own. It is this binary once
//! more, and so are the daemons.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, reason = "tests")]

mod accepting;
mod adapters;
mod bench;
mod daemons;
mod program;
mod supervisors;

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use adapters::{Adapter, Smol, Tokio, block_on};

/// Not a test of its own: what the daemon processes run.
#[test]
#[ignore = "the body of the daemon processes"]
fn daemon() {
    program::main();
}

/// Not a test of its own: what the processes of the tests below run.
#[test]
#[ignore = "the body of the scenario processes"]
fn scenario() {
    let Ok(name) = std::env::var("TEST_SCENARIO") else { return };
    let runtime = std::env::var("TEST_RUNTIME").unwrap();
    match runtime.as_str() {
        "tokio-current" | "tokio-multi" => block_on(&runtime, play::<Tokio>(&name, &runtime)),
        _ => block_on(&runtime, play::<Smol>(&name, &runtime)),
    }
}

/// Plays a scenario in a process of its own.
fn alone(scenario: &str, runtime: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("said");
    let said = File::create(&path).unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["scenario", "--exact", "--ignored", "--nocapture"])
        .env("TEST_SCENARIO", scenario)
        .env("TEST_RUNTIME", runtime)
        .stdin(Stdio::null())
        .stdout(said.try_clone().unwrap())
        .stderr(said)
        .spawn()
        .unwrap();
    let limit = Instant::now() + Duration::from_secs(300);
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > limit {
            process.kill().unwrap();
            process.wait().unwrap();
            break None;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    };
    let said = std::fs::read_to_string(&path).unwrap();
    assert!(status.is_some_and(|status| status.success()), "{runtime}: {status:?}\n{said}");
}

macro_rules! scenarios {
    ($($(#[$what:meta])* $place:ident :: $scenario:ident,)*) => {
        async fn play<A: Adapter>(name: &str, runtime: &str) {
            match name {
                $(stringify!($scenario) => $place::$scenario::<A>(runtime).await,)*
                _ => panic!("no scenario {name:?}"),
            }
        }
        $($(#[$what])* mod $scenario {
            #[test]
            fn on_tokio_with_one_thread() {
                crate::alone(stringify!($scenario), "tokio-current");
            }
            #[test]
            fn on_tokio_with_several_threads() {
                crate::alone(stringify!($scenario), "tokio-multi");
            }
            #[test]
            fn on_smol() {
                crate::alone(stringify!($scenario), "smol");
            }
            #[test]
            fn on_async_std() {
                crate::alone(stringify!($scenario), "async-std");
            }
        })*
    };
}

scenarios! {
    /// `Supervisor::handoff`, at every phase and after every wake-up.
    supervisors::a_handoff_that_is_dropped_is_rolled_back,
    /// `Supervisor` itself, in the middle of a handoff.
    supervisors::a_supervisor_that_is_dropped_rolls_back_and_ends,
    /// `Supervisor::start`, while a process that answers nobody holds the lock.
    supervisors::a_search_that_is_dropped_is_given_up,
    /// `Supervisor` itself, in the middle of that search.
    supervisors::a_supervisor_that_is_dropped_gives_up_its_search,
    /// `Supervisor::start`, while the daemon it started opens its data.
    supervisors::a_start_that_is_dropped_leaves_its_daemon_to_serve,
    /// `Supervisor::exited`.
    supervisors::an_exit_is_told_once_however_often_the_wait_is_dropped,
    /// `Supervisor::shutdown`.
    supervisors::a_shutdown_that_is_dropped_ends_the_daemons,
    /// `Daemon`, `Daemon::begin`, `Grant`, `Grant::fail`, in a successor.
    daemons::a_successor_that_is_dropped_is_rolled_back,
    /// The same on a cold start.
    daemons::a_cold_start_that_is_dropped_frees_the_lock,
    /// `Daemon::begin`, while another process holds the lock.
    daemons::a_wait_for_the_lock_that_is_dropped_takes_none,
    /// `Serving` in a successor, which may be committed to by then.
    daemons::a_successor_that_drops_its_serving_keeps_the_lock_until_it_exits,
    /// `Serving` and `Serving::run`, idle.
    daemons::a_daemon_that_is_dropped_keeps_the_lock_until_it_exits,
    /// `Serving::run`, in the middle of a hook and between two.
    daemons::an_incumbent_that_is_dropped_in_a_handoff_is_succeeded,
    /// `Serving::run`, in the middle of its resume hook.
    daemons::an_incumbent_that_is_dropped_in_its_resume_keeps_the_lock,
    /// `Listener::accept`.
    accepting::an_accept_that_is_dropped_loses_no_connection,
}

//! Any order of any inputs: what holds for the machines whatever their peers, their host and the clock do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod arbitrary;
mod common;
mod hosts;

use arbitrary::config;
use hosts::{Dice, States, daemon, supervisor, transcript};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use std::cell::{Cell, RefCell};
use std::sync::Once;

/// Plays a host with many lists of choices; gives the states that its machine was in. A list that fails
/// is shrunk and told as a transcript.
fn run(cases: u32, steps: usize, host: impl Fn(&mut Dice<'_>) -> States) -> States {
    let strategy = vec(any::<u16>(), 0..steps);
    let states = RefCell::new(States::new());
    quietly(true);
    let result = TestRunner::new(config(cases)).run(&strategy, |choices| {
        states.borrow_mut().append(&mut host(&mut Dice(&choices)));
        Ok(())
    });
    let reason = match result {
        Ok(()) => None,
        Err(TestError::Fail(reason, choices)) => {
            let transcript = transcript(|| drop(host(&mut Dice(&choices))));
            Some(format!("{reason}\n{transcript}\nchoices: {choices:?}"))
        }
        Err(TestError::Abort(reason)) => Some(reason.to_string()),
    };
    quietly(false);
    if let Some(reason) = reason {
        panic!("{reason}");
    }
    states.into_inner()
}

/// Whether this thread panics without a word: while a failure is shrunk, it does so a thousand times.
fn quietly(quiet: bool) {
    thread_local! {
        static QUIET: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                loud(panic);
            }
        }));
    });
    QUIET.set(quiet);
}

/// W7, R7: any order of any inputs, completions of nothing among them, neither makes a daemon panic nor
/// its clock stand still; once it has ended it asks for nothing more.
#[test]
fn a_daemon_survives_any_inputs() {
    let states = run(3000, 160, daemon::any_inputs);
    for state in ["ended", "serving", "draining", "stopping", "taking the lock", "leaving"] {
        assert!(states.contains(state), "{state} was not reached: {states:?}");
    }
}

/// R1-R3, R7, R8, R11, C2, C5: what an incumbent asks for, whatever its peers say and however late its
/// host completes what it asked for; and that it ends up serving, or has ended, once all connections are
/// closed and all effects succeed.
#[test]
fn an_incumbent_keeps_its_promises() {
    let states = run(4000, 800, |dice| daemon::incumbent(dice, false));
    for state in [
        "draining",
        "drained",
        "sealing",
        "releasing the lock",
        "sealed",
        "taking the lock back",
        "resuming",
        "stopping",
        "ended",
    ] {
        assert!(states.contains(state), "{state} was not reached: {states:?}");
    }
}

/// R2, T5: the same under a supervisor that goes on reading and says nothing more: the deadline frees it.
#[test]
fn an_incumbent_is_freed_by_its_deadline() {
    run(2000, 400, |dice| daemon::incumbent(dice, true));
}

/// R1, R3, R7, R8: the same of a successor and of a cold start: the lock is not touched before Begin, no
/// hook runs without it, and it ends up serving or ended.
#[test]
fn a_successor_keeps_its_promises() {
    let states = run(4000, 400, daemon::successor);
    for state in [
        "warming up",
        "awaiting HelloAck",
        "awaiting Begin",
        "taking the lock",
        "opening the data",
        "awaiting the verdict",
        "claiming the control path",
        "leaving",
        "serving",
        "sealed",
        "ended",
    ] {
        assert!(states.contains(state), "{state} was not reached: {states:?}");
    }
}

/// W7: any order of any inputs neither makes a supervisor panic nor its clock stand still.
#[test]
fn a_supervisor_survives_any_inputs() {
    let states = run(3000, 200, supervisor::any_inputs);
    assert!(states.contains("ending the successor"), "{states:?}");
}

/// C1, R4-R6, T3: what a supervisor says and asks for, whatever its peers say and however late its host
/// completes what it asked for; and that every handoff comes to an end, once.
#[test]
fn a_supervisor_keeps_its_promises() {
    let states = run(4000, 600, supervisor::supervisor);
    for state in [
        "probing the incumbent",
        "starting the successor",
        "awaiting the successor's Hello",
        "awaiting the incumbent's Hello",
        "awaiting Drained",
        "awaiting SealComplete",
        "awaiting Ready",
        "checking the successor",
        "awaiting the control path",
        "asking the incumbent",
        "awaiting the lock",
        "ending the successor",
        "confirming the rollback",
        "finding out who serves",
    ] {
        assert!(states.contains(state), "{state} was not reached: {states:?}");
    }
}

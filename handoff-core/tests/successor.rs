//! N and the cold start, as transcripts: what they hear, what they do, and when.

mod common;

use common::daemon::*;
use common::*;
use handoff_core::daemon::{
    Command, Config, Daemon, Ended, Event, Hook, LockFailure, Outcome, Output, Probed, Readiness,
    StandDown,
};
use handoff_core::{Credentials, Machine, Message, Violation};
use std::time::Duration;

type N = TestDaemon;

fn stood_down(why: StandDown) -> Output {
    ended(Ended::StoodDown { why })
}

fn aborted() -> Output {
    stood_down(StandDown::Aborted("no".into()))
}

fn supervisor_gone() -> Output {
    stood_down(StandDown::SupervisorGone)
}

fn crashed(output: &Output) -> bool {
    matches!(output, Output::Event(Event::Ended(Ended::Crash(_))))
}

// The good path.

/// C2, C3, R3, R6: warm-up, Hello, Begin, the lock, the data and the staged socket, Ready, Commit; the
/// connection is closed before the path is claimed, and only then does it answer as the incumbent.
#[test]
fn the_good_path() {
    let mut n = Bench::new(Daemon::successor(Config::new(N_PID, UID), true));
    n.opens();
    n.passes(30.s());
    n.quiet();
    n.asks(Command::Begin);
    n.expect([send(UP, hello_n())]);
    n.hears(UP, ack());
    n.quiet();
    n.hears(UP, begin());
    n.expect([take_lock()]);
    n.done(locked());
    n.expect([hook(Hook::Open), stage_path()]);
    n.done(data_open());
    n.quiet();
    n.done(staged());
    n.expect([send(UP, ready(true, &[4, 9]))]);
    n.hears(UP, commit());
    n.expect([close(UP), claim_path()]);
    assert!(!n.machine.answers());
    n.done(claimed());
    n.expect([event(Event::Incumbent)]);
    n.becomes_visible();
}

/// C3: where no budget was given Hello is said at once, and the warm-up follows HelloAck: the data is
/// opened when both the lock is there and the program is warm.
#[test]
fn without_a_budget_hello_comes_before_the_warm_up() {
    for warm_after_lock in [true, false] {
        let mut n = Bench::new(Daemon::successor(Config::new(N_PID, UID), false));
        n.opens();
        n.expect([send(UP, hello_n())]);
        n.hears(UP, ack());
        n.hears(UP, begin());
        n.expect([take_lock()]);
        if warm_after_lock {
            n.done(locked());
            n.expect([stage_path()]);
            n.done(staged());
            n.quiet();
            n.asks(Command::Begin);
            n.expect([hook(Hook::Open)]);
        } else {
            n.asks(Command::Begin);
            n.quiet();
            n.done(locked());
            n.expect([hook(Hook::Open), stage_path()]);
            n.done(staged());
        }
        n.asks(Command::Begin);
        n.quiet();
        n.done(data_open());
        n.expect([send(UP, ready(true, &[4, 9]))]);
    }
}

/// C3: the program may be warm before its connection is reported open.
#[test]
fn a_program_may_be_warm_before_it_is_connected() {
    let mut n = Bench::new(Daemon::successor(Config::new(N_PID, UID), true));
    n.asks(Command::Begin);
    n.quiet();
    n.opens();
    n.expect([send(UP, hello_n())]);
}

/// R6: everything that can fail is done before Ready: the data and the staged socket, in either order.
#[test]
fn ready_waits_for_the_data_and_the_staged_socket() {
    let mut n = N::opening();
    n.done(staged());
    n.quiet();
    n.done(data_open());
    n.expect([send(UP, ready(true, &[4, 9]))]);
    let mut n = N::opening();
    n.done(Outcome::Staged(Err("no space".into())));
    n.expect([event(Event::PathFailed("no space".into()))]);
    n.done(data_open());
    n.quiet();
    n.passes(20.ms());
    n.expect([stage_path()]);
    n.done(staged());
    n.expect([send(UP, ready(true, &[4, 9]))]);
}

/// R6: what the program says of itself reaches the supervisor, also that it is unhealthy.
#[test]
fn ready_says_what_the_program_says() {
    let mut n = N::opening();
    n.done(staged());
    let readiness = Readiness { healthz_ok: false, revisions: vec![], ..readiness() };
    n.done(Outcome::Opened(Ok(readiness)));
    n.expect([send(UP, ready(false, &[]))]);
}

/// W2: whatever the program says of itself fits a frame.
#[test]
fn an_absurd_readiness_fits_a_frame() {
    let mut n = N::opening();
    n.done(staged());
    let readiness = Readiness {
        listening_on: vec!["\u{20ac}".repeat(100_000); 1000],
        healthz_ok: true,
        revisions: vec![u64::MAX; 1_000_000],
    };
    n.done(Outcome::Opened(Ok(readiness)));
    let outputs = n.take();
    let [Output::Send { message, .. }] = &outputs[..] else { panic!("Ready is said") };
    handoff_core::wire::encode(message, 1, &mut Vec::new()).unwrap();
}

// R3: before Begin.

/// R3: it never touches the lock before Begin, however long it takes and whatever is said.
#[test]
fn the_lock_is_not_touched_before_begin() {
    for mut n in [N::warming(), N::greeted(), N::acked()] {
        n.asks(Command::Begin);
        n.passes_with_beats_of(UP, 3.s());
        for message in all_messages(ID) {
            if message != begin() {
                n.hears(UP, message);
            }
        }
        for outcome in [locked(), data_open(), staged(), claimed(), nobody(), answered(X_PID)] {
            n.done(outcome);
        }
        n.passes(100.s());
        n.expect_without(|output| matches!(output, Output::Do(_)));
    }
}

/// R3: its connection closes before Begin: 75.
#[test]
fn a_close_before_begin_ends_it() {
    for mut n in [N::warming(), N::greeted(), N::acked()] {
        n.loses(UP);
        n.expect([supervisor_gone()]);
        let why = StandDown::SupervisorGone;
        assert_eq!(Ended::StoodDown { why }.exit_code(), 75);
    }
}

/// T2, R3: five seconds of silence of a supervisor that heartbeats are a close.
#[test]
fn silence_before_begin_ends_it() {
    let mut n = N::acked();
    n.hears(UP, heartbeat(1));
    n.passes(4999.ms());
    n.quiet();
    n.passes(1.ms());
    n.expect([refused(UP, silent("a heartbeat"), "awaiting Begin"), close(UP), supervisor_gone()]);
}

/// T2: a supervisor that was never heard to heartbeat may be silent.
#[test]
fn a_supervisor_without_heartbeats_may_be_silent() {
    let mut n = N::acked();
    n.passes(600.s());
    n.quiet();
    n.hears(UP, begin());
    n.expect([take_lock()]);
}

/// R3: an Abort before Begin ends it at once.
#[test]
fn an_abort_before_begin_ends_it() {
    let mut n = N::acked();
    n.hears(UP, abort());
    n.expect([close(UP), aborted()]);
    let why = StandDown::Aborted(String::new());
    assert_eq!(Ended::StoodDown { why }.exit_code(), 75);
}

// R3: between Begin and Ready.

/// R3: the lock is tried again until its bound, 60 s, and then it exits 75 with the holder's name.
#[test]
fn the_lock_is_tried_for_sixty_seconds() {
    let mut n = N::locking();
    n.done(lock_held());
    n.expect([event(Event::LockRefused(held()))]);
    for _ in 0..100 {
        n.passes(20.ms());
        n.expect([take_lock()]);
        n.done(lock_held());
        n.quiet();
    }
    for _ in 2..59 {
        n.passes(1.s());
        n.expect([take_lock()]);
        n.done(lock_held());
    }
    n.passes(999.ms());
    n.expect([take_lock()]);
    n.done(lock_held());
    n.passes(1.ms());
    let why = StandDown::NoLock(Some(held()));
    assert!(why.to_string().contains(&N_PID.to_string()), "{why}");
    n.expect([close(UP), stood_down(why)]);
}

/// R3, R8: the bound is on the tries: one that is under way when it passes is the last, and its completion
/// counts.
#[test]
fn the_try_under_way_when_the_bound_passes_is_the_last() {
    let mut n = N::locking();
    n.passes(61.s());
    n.quiet();
    n.done(locked());
    n.expect([hook(Hook::Open), stage_path()]);
    let mut n = N::locking();
    n.passes(61.s());
    n.done(lock_held());
    let outputs = n.take();
    let no_lock = stood_down(StandDown::NoLock(Some(held())));
    assert_eq!(outputs[outputs.len() - 2..], [close(UP), no_lock]);
    // Also one of an abandoned successor, whether it probes or not.
    let mut n = N::locking();
    n.loses(UP);
    n.done(lock_held());
    n.passes(61.s());
    n.expect([event(Event::LockRefused(held())), probe()]);
    n.done(nobody());
    n.expect([stood_down(StandDown::NoLock(Some(held())))]);
}

/// R1: what time does not mend is not tried again.
#[test]
fn an_unusable_directory_is_told_at_once() {
    let unusable = LockFailure::Unusable("no such directory".into());
    let mut n = N::cold();
    n.asks(Command::Begin);
    n.done(Outcome::Lock(Err(unusable)));
    n.expect([take_lock(), ended(Ended::OpenFailed("no such directory".into()))]);
}

/// R1: a shortage is retried like a held lock, and nobody is probed while the supervisor is there.
#[test]
fn a_shortage_is_retried_like_a_held_lock() {
    let mut n = N::locking();
    let shortage = LockFailure::Shortage("no space left".into());
    for _ in 0..10 {
        n.done(Outcome::Lock(Err(shortage.clone())));
        let _ = n.take();
        n.passes(20.ms());
        n.expect([take_lock()]);
    }
    n.done(locked());
    n.expect([hook(Hook::Open), stage_path()]);
}

/// R3: closed between Begin and Ready it goes on: lock, open, serve.
#[test]
fn a_close_after_begin_changes_nothing() {
    let mut n = N::locking();
    n.loses(UP);
    n.quiet();
    n.done(locked());
    n.expect([hook(Hook::Open), stage_path()]);
    n.done(staged());
    n.done(data_open());
    n.expect([claim_path()]);
    n.becomes_the_incumbent();
    let mut n = N::opening();
    n.loses(UP);
    n.quiet();
    n.done(staged());
    n.done(data_open());
    n.expect([claim_path()]);
    n.becomes_the_incumbent();
}

/// R3, T2: nor does five seconds of silence.
#[test]
fn silence_after_begin_changes_nothing() {
    let mut n = N::opening();
    n.hears(UP, heartbeat(1));
    n.passes(5.s());
    n.expect([refused(UP, silent("a heartbeat"), "opening the data"), close(UP)]);
    n.done(staged());
    n.done(data_open());
    n.expect([claim_path()]);
}

/// R3: without a supervisor the bound on the lock still holds, and another that answers is heard.
#[test]
fn an_abandoned_successor_gives_way_to_another_that_answers() {
    let mut n = N::locking();
    n.loses(UP);
    n.done(lock_held());
    n.expect([event(Event::LockRefused(held())), probe()]);
    n.done(answered(O_PID));
    n.expect([stood_down(StandDown::OtherServes { pid: O_PID })]);
    let mut n = N::locking();
    n.loses(UP);
    while n.now.since_origin() < 60.s() {
        n.done(lock_held());
        n.done(nobody());
        n.passes(1.s());
    }
    n.done(lock_held());
    n.expect_among(stood_down(StandDown::NoLock(Some(held()))));
}

/// R3: if opening fails it releases the lock and exits.
#[test]
fn a_failed_open_releases_the_lock() {
    for connected in [true, false] {
        let mut n = N::opening();
        if !connected {
            n.loses(UP);
        }
        n.done(Outcome::Opened(Err("corrupt".into())));
        n.expect([release_lock()]);
        n.passes(3.s());
        n.quiet();
        n.done(released());
        let failed = ended(Ended::OpenFailed("corrupt".into()));
        if connected {
            n.expect([close(UP), failed]);
        } else {
            n.expect([failed]);
        }
    }
}

/// R3, R8: an Abort while the lock is being tried: the try is waited for, and a late success undone.
#[test]
fn an_abort_while_the_lock_is_tried_undoes_a_late_success() {
    let mut n = N::locking();
    n.hears(UP, abort());
    n.quiet();
    n.done(locked());
    n.expect([release_lock()]);
    n.done(released());
    n.expect([close(UP), aborted()]);
    let mut n = N::locking();
    n.hears(UP, abort());
    n.done(lock_held());
    n.expect([close(UP), aborted()]);
    // Between two tries there is nothing to wait for.
    let mut n = N::locking();
    n.done(lock_held());
    let _ = n.take();
    n.hears(UP, abort());
    n.expect([close(UP), aborted()]);
}

/// R3, R7: an Abort while the data is being opened: the hook is told at once, and what it opened is
/// closed again before the lock is let go.
#[test]
fn an_abort_while_opening_waits_for_the_hook() {
    let mut n = N::opening();
    n.hears(UP, abort());
    n.expect([Output::Cancel]);
    n.passes(20.s());
    n.quiet();
    n.done(data_open());
    n.expect([drain(30.s())]);
    n.done(drain_ok());
    n.expect([hook(Hook::Seal)]);
    n.done(sealed(&[]));
    n.expect([release_lock()]);
    n.done(released());
    n.expect([close(UP), aborted()]);
    let mut n = N::opening();
    n.hears(UP, abort());
    n.done(Outcome::Opened(Err("cancelled".into())));
    n.expect([Output::Cancel, release_lock()]);
    n.done(released());
    n.expect([close(UP), aborted()]);
}

/// R3: an Abort before the program was asked to open anything.
#[test]
fn an_abort_before_the_open_hook_runs_none() {
    let mut n = Bench::new(Daemon::successor(Config::new(N_PID, UID), false));
    n.opens();
    n.hears(UP, ack());
    n.hears(UP, begin());
    n.done(locked());
    let _ = n.take();
    n.hears(UP, abort());
    n.expect([release_lock()]);
    n.asks(Command::Begin);
    n.quiet();
    n.done(released());
    n.expect([close(UP), aborted()]);
}

/// R7: an open hook that has not returned 30 s after it was told makes the process abort.
#[test]
fn a_stuck_open_hook_is_a_crash() {
    let mut n = N::opening();
    n.hears(UP, abort());
    n.expect([Output::Cancel]);
    n.passes(29_999.ms());
    n.quiet();
    n.passes(1.ms());
    let outputs = n.take();
    assert!(outputs.iter().any(crashed), "{outputs:?}");
}

// R3: after Ready.

/// R3: after Ready it is the incumbent at Commit, at a close, at 5 s of silence, or after 10 s.
#[test]
fn after_ready_it_becomes_the_incumbent() {
    let mut n = N::ready();
    n.hears(UP, commit());
    n.expect([close(UP), claim_path()]);
    n.becomes_the_incumbent();

    let mut n = N::ready();
    n.loses(UP);
    n.expect([claim_path()]);
    n.becomes_the_incumbent();

    let mut n = N::ready();
    n.hears(UP, heartbeat(1));
    n.passes(5.s());
    let refusal = refused(UP, silent("a heartbeat"), "awaiting the verdict");
    n.expect([refusal, close(UP), claim_path()]);
    n.becomes_the_incumbent();

    let mut n = N::ready();
    n.passes_with_beats_of(UP, 9.s());
    n.passes(999.ms());
    n.quiet();
    n.passes(1.ms());
    n.expect([close(UP), claim_path()]);
    n.becomes_the_incumbent();
}

/// R3: an Abort before the verdict makes it stop, release, and exit 75.
#[test]
fn an_abort_after_ready_stops_and_releases() {
    let mut n = N::ready();
    n.hears(UP, abort());
    n.expect([drain(30.s())]);
    n.done(drain_ok());
    n.expect([hook(Hook::Seal)]);
    n.done(sealed(&[]));
    n.expect([release_lock()]);
    n.done(released());
    n.expect([close(UP), aborted()]);
}

/// R3: once it is on its way out, no close and no time makes it the incumbent.
#[test]
fn an_aborted_successor_does_not_become_the_incumbent() {
    let mut n = N::ready();
    n.hears(UP, abort());
    n.loses(UP);
    n.passes(60.s());
    n.expect([drain(30.s())]);
    n.done(drain_ok());
    n.done(sealed(&[]));
    n.done(released());
    n.expect([hook(Hook::Seal), release_lock(), aborted()]);
}

/// R3: once it is the incumbent nothing that was under way on the old connection is heard.
#[test]
fn an_abort_after_the_verdict_is_not_heard() {
    let mut n = N::ready();
    n.passes(10.s());
    n.expect([close(UP), claim_path()]);
    n.hears(UP, abort());
    n.loses(UP);
    n.quiet();
    n.becomes_the_incumbent();
}

/// R11: the path is claimed until it leads here, and before that it does not answer.
#[test]
fn the_path_is_claimed_until_it_leads_here() {
    let mut n = N::claiming();
    for round in 0..10 {
        n.done(Outcome::Claimed(Err("no space".into())));
        // It is told of once.
        n.expect((round == 0).then(|| event(Event::PathFailed("no space".into()))));
        assert!(!n.machine.answers());
        n.passes(20.ms());
        n.expect([claim_path()]);
    }
    n.becomes_the_incumbent();
}

// The cold start (R1).

/// R1: a cold start takes the lock, opens the data, and claims the path; it says nothing to anybody.
#[test]
fn a_cold_start() {
    let mut n = N::cold();
    n.passes(100.s());
    n.quiet();
    n.asks(Command::Begin);
    n.expect([take_lock()]);
    n.done(locked());
    n.expect([hook(Hook::Open), stage_path()]);
    n.done(staged());
    n.done(data_open());
    n.expect([claim_path()]);
    n.becomes_the_incumbent();
}

/// R1: on a held lock a cold start probes: answered, it exits 75.
#[test]
fn a_cold_start_beside_one_that_serves_stands_down() {
    let mut n = N::cold();
    n.asks(Command::Begin);
    n.done(lock_held());
    n.expect([take_lock(), event(Event::LockRefused(held())), probe()]);
    n.done(answered(X_PID));
    n.expect([stood_down(StandDown::OtherServes { pid: X_PID })]);
    let why = StandDown::OtherServes { pid: X_PID };
    assert_eq!(Ended::StoodDown { why }.exit_code(), 75);
}

/// R1: not answered, it retries, and the error names the holder.
#[test]
fn a_cold_start_beside_one_that_is_silent_retries() {
    let mut n = N::cold();
    n.asks(Command::Begin);
    n.done(lock_held());
    n.expect([take_lock(), event(Event::LockRefused(held())), probe()]);
    assert!(held().to_string().contains(&N_PID.to_string()));
    for _ in 0..100 {
        n.done(nobody());
        n.quiet();
        n.passes(20.ms());
        n.expect([take_lock()]);
        n.done(lock_held());
        n.expect([probe()]);
    }
    n.done(nobody());
    n.passes(20.ms());
    n.done(locked());
    n.expect([take_lock(), hook(Hook::Open), stage_path()]);
}

/// R1: a shortage is retried, and says nothing about others.
#[test]
fn a_cold_start_retries_a_shortage() {
    let mut n = N::cold();
    n.asks(Command::Begin);
    let shortage = LockFailure::Shortage("no descriptors".into());
    n.done(Outcome::Lock(Err(shortage.clone())));
    n.expect([take_lock(), event(Event::LockRefused(shortage))]);
    n.passes(20.ms());
    n.expect([take_lock()]);
}

/// R3: the bound on the lock holds for a cold start too, also while it probes.
#[test]
fn a_cold_start_gives_up_after_the_bound() {
    let mut n = N::cold();
    n.asks(Command::Begin);
    n.done(lock_held());
    n.passes(60.s());
    n.expect([take_lock(), event(Event::LockRefused(held())), probe()]);
    n.done(nobody());
    n.expect([stood_down(StandDown::NoLock(Some(held())))]);
}

/// R3: a cold start whose data does not open releases the lock and exits with a failure.
#[test]
fn a_cold_start_that_cannot_open_releases_the_lock() {
    let mut n = N::cold();
    n.asks(Command::Begin);
    n.done(locked());
    n.done(Outcome::Opened(Err("corrupt".into())));
    n.done(released());
    n.expect([
        take_lock(),
        hook(Hook::Open),
        stage_path(),
        release_lock(),
        ended(Ended::OpenFailed("corrupt".into())),
    ]);
    assert_eq!(Ended::OpenFailed(String::new()).exit_code(), 70);
}

// C1, R12, W5, W7.

/// C1: Hello says who speaks; nothing is said before it, and nothing after it until HelloAck.
#[test]
fn hello_is_said_once() {
    let mut n = N::greeted();
    n.asks(Command::Begin);
    n.opens();
    n.passes(600.s());
    n.quiet();
    assert_eq!(n.beats_to(UP), []);
}

/// W5: a chosen version that was not offered is a violation.
#[test]
fn a_version_that_was_not_offered_is_a_violation() {
    let mut config = Config::new(N_PID, UID);
    (config.proto_min, config.proto_max) = (2, 4);
    for (chosen, offered) in [(1, false), (2, true), (4, true), (5, false)] {
        let mut n = Bench::new(Daemon::successor(config.clone(), false));
        n.opens();
        let _ = n.take();
        n.hears(UP, Message::HelloAck { proto_version_chosen: chosen, handoff_id: ID });
        if offered {
            n.quiet();
        } else {
            let violation = Violation::ChosenVersion { chosen, min: 2, max: 4 };
            n.expect([refused(UP, violation, "awaiting HelloAck"), close(UP), supervisor_gone()]);
        }
    }
}

/// R12: a supervisor of another uid is refused.
#[test]
fn a_supervisor_of_another_uid_is_refused() {
    let mut n = Bench::new(Daemon::successor(Config::new(N_PID, UID), false));
    n.opens_as(UP, Credentials { pid: S_PID, uid: 5, descends: false });
    n.expect([
        refused(UP, Violation::WrongUser { uid: 5 }, "warming up"),
        close(UP),
        supervisor_gone(),
    ]);
    let mut n = Bench::new(Daemon::successor(Config::new(N_PID, UID), false));
    n.opens_as(UP, Credentials { pid: S_PID, uid: 0, descends: false });
    n.expect([send(UP, hello_n())]);
}

/// C1: every message that has an id must carry the connection's.
#[test]
fn a_wrong_id_is_a_violation() {
    for message in all_messages(OTHER) {
        let Some(got) = message.handoff_id() else { continue };
        let name = handoff_core::short_name(&message);
        let wrong = Violation::WrongId { message: name, got, expected: ID };
        let mut n = N::acked();
        n.hears(UP, message.clone());
        let refusal = refused(UP, wrong.clone(), "awaiting Begin");
        n.expect([refusal, close(UP), supervisor_gone()]);
        let mut n = N::opening();
        n.hears(UP, message.clone());
        n.expect([refused(UP, wrong.clone(), "opening the data"), close(UP)]);
        let mut n = N::ready();
        n.hears(UP, message);
        let refusal = refused(UP, wrong, "awaiting the verdict");
        n.expect([refusal, close(UP), claim_path()]);
    }
}

/// W7: whatever has no place closes the connection, and that is a close (R3): before Begin it ends, after
/// Begin it goes on, after Ready it is the incumbent.
#[test]
fn an_unexpected_message_closes_the_connection() {
    type Stage = fn() -> N;
    let stages: [(Stage, &[&str]); 6] = [
        (N::warming, &[]),
        (N::greeted, &["HelloAck"]),
        (N::acked, &["Begin", "Abort", "Heartbeat"]),
        (N::locking, &["Abort", "Heartbeat"]),
        (N::opening, &["Abort", "Heartbeat"]),
        (N::ready, &["Commit", "Abort", "Heartbeat"]),
    ];
    for (stage, welcome) in stages {
        for message in all_messages(ID) {
            let name = handoff_core::short_name(&message);
            let mut n = stage();
            let state = n.machine.state_name();
            n.hears(UP, message);
            let outputs = n.take();
            let refusal = refused(UP, unexpected(name, state), state);
            if welcome.contains(&name) {
                assert!(!outputs.contains(&refusal), "{name} while {state}");
                continue;
            }
            let mut expected = vec![refusal, close(UP)];
            match state {
                "warming up" | "awaiting HelloAck" | "awaiting Begin" => {
                    expected.push(supervisor_gone());
                }
                "awaiting the verdict" => expected.push(claim_path()),
                _ => {}
            }
            assert_eq!(outputs, expected, "{name} while {state}");
        }
    }
}

// T: heartbeats.

/// T1, X2: from HelloAck on, every second, while it waits, locks, opens, and awaits the verdict.
#[test]
fn it_heartbeats_every_second_from_hello_ack_on() {
    for mut n in [N::acked(), N::locking(), N::opening(), N::ready()] {
        let _ = n.beats_to(UP);
        n.passes(3.s());
        assert_eq!(n.beats_to(UP), [1.s(), 2.s(), 3.s()], "{}", n.machine.state_name());
    }
    for mut n in [N::warming(), N::greeted()] {
        n.passes(3.s());
        assert_eq!(n.beats_to(UP), [], "{}", n.machine.state_name());
    }
}

/// T1, X2: to the end: also while an abort waits for a hook, as long as the connection is open.
#[test]
fn it_heartbeats_while_it_leaves() {
    type Leave = fn() -> N;
    let leaving: [(&str, Leave); 3] = [
        ("a try for the lock", || {
            let mut n = N::locking();
            n.hears(UP, abort());
            n
        }),
        ("the open hook", || {
            let mut n = N::opening();
            n.hears(UP, abort());
            n
        }),
        ("the drain hook", || {
            let mut n = N::ready();
            n.hears(UP, abort());
            n
        }),
    ];
    for (what, leave) in leaving {
        let mut n = leave();
        let _ = n.take();
        n.passes(3.s());
        n.quiet();
        assert_eq!(n.beats_to(UP), [1.s(), 2.s(), 3.s()], "while it waits for {what}");
    }
}

/// T3: it never answers a Heartbeat.
#[test]
fn it_never_answers_a_heartbeat() {
    for mut n in [N::acked(), N::locking(), N::opening(), N::ready()] {
        for ts_ms in [0, 1, u64::MAX] {
            n.hears(UP, heartbeat(ts_ms));
            n.quiet();
        }
        assert_eq!(n.beats_to(UP), []);
    }
}

/// T2: any byte is proof of life.
#[test]
fn any_byte_counts_as_life() {
    let mut n = N::acked();
    n.hears(UP, heartbeat(1));
    n.passes_with_drips_of(UP, 60.s());
    n.quiet();
    n.passes(5.s());
    n.expect_among(close(UP));
}

/// T5: what has arrived is handled before a timer that has expired: the Commit counts, not the silence.
#[test]
fn what_has_arrived_comes_before_an_expired_timer() {
    let mut n = N::ready();
    n.hears(UP, heartbeat(1));
    n.sleeps(100.s());
    n.hears(UP, abort());
    n.tick();
    n.expect([drain(30.s())]);
}

// Stopping.

/// R15: told to stop it gives up what it has reached, and ends with 0.
#[test]
fn a_stop_gives_up_what_was_reached() {
    for mut n in [N::warming(), N::greeted(), N::acked()] {
        n.asks(Command::Stop);
        n.expect([close(UP), ended(Ended::Stopped)]);
    }
    let mut n = N::ready();
    n.asks(Command::Stop);
    n.done(drain_ok());
    n.done(sealed(&[]));
    n.done(released());
    n.expect([drain(30.s()), hook(Hook::Seal), release_lock(), close(UP), ended(Ended::Stopped)]);
    let mut n = N::cold();
    n.asks(Command::Stop);
    n.expect([ended(Ended::Stopped)]);
}

/// R8, R11: the lock is not let go while the path is being claimed: from then on it may be another's.
#[test]
fn a_stop_waits_for_a_claim_of_the_path() {
    let mut n = N::claiming();
    n.asks(Command::Stop);
    n.expect_without(|output| *output == release_lock());
    n.done(claimed());
    n.done(drain_ok());
    n.done(sealed(&[]));
    n.expect_among(release_lock());
    n.done(released());
    n.expect([ended(Ended::Stopped)]);
}

/// What has ended says nothing more, also where its connection is reported open only then.
#[test]
fn a_connection_that_opens_after_the_end_is_not_greeted() {
    for says_hello_when_warm in [true, false] {
        let mut n = Bench::new(Daemon::successor(Config::new(N_PID, UID), says_hello_when_warm));
        n.asks(Command::Stop);
        n.expect([ended(Ended::Stopped)]);
        n.opens();
        n.asks(Command::Begin);
        n.hears(UP, ack());
        n.expect_without(|output| *output != close(UP));
        assert_eq!(n.machine.state_name(), "ended");
    }
}

/// R7: once it serves, its hooks are the incumbent's.
#[test]
fn once_it_serves_it_hands_off_like_any_incumbent() {
    let mut n = N::claiming();
    n.becomes_the_incumbent();
    n.hears(S, ack_of(OTHER));
    n.hears(S, prepare_of(OTHER, DEADLINE, GRACE));
    n.expect_among(drain(GRACE));
}

/// Its bounds are configured.
#[test]
fn its_bounds_are_configured() {
    let mut config = Config::new(N_PID, UID);
    config.timing.lock_bound = Duration::from_secs(5);
    config.timing.retry = Duration::from_secs(1);
    let mut n = Bench::new(Daemon::cold(config));
    n.asks(Command::Begin);
    n.done(lock_held());
    n.done(Outcome::Probed(Probed::Silent));
    n.passes(999.ms());
    n.expect([take_lock(), event(Event::LockRefused(held())), probe()]);
    n.passes(1.ms());
    n.expect([take_lock()]);
    n.done(lock_held());
    n.done(Outcome::Probed(Probed::Own));
    n.passes(4.s());
    n.expect([probe(), take_lock()]);
    n.done(lock_held());
    n.expect([stood_down(StandDown::NoLock(Some(held())))]);
}

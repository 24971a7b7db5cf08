//! O, as transcripts: what it hears, what it does, and when.

mod common;

use common::daemon::*;
use common::*;
use handoff_core::daemon::{
    Command, Config, ConnId, Ended, Event, Hook, LockFailure, Off, OsEffect, Outcome, Output,
    Probed, SealReport, Signal, StandDown,
};
use handoff_core::incumbent::Incumbent;
use handoff_core::{Credentials, Machine, Message, Side, Violation};
use std::time::Duration;

type O = TestIncumbent;

fn resumed_event() -> Output {
    event(Event::Resumed { id: ID })
}

fn committed() -> Output {
    ended(Ended::Committed { id: ID })
}

fn stood_down(pid: u32) -> Output {
    let why = StandDown::OtherServes { pid };
    ended(Ended::StoodDown { why })
}

fn crashed(output: &Output) -> bool {
    matches!(output, Output::Event(Event::Ended(Ended::Crash(_))))
}

// The good path.

/// C2: drain, Drained, seal, the lock released, and only then SealComplete; Commit ends it with 0, once
/// the lock is seen to be another's.
#[test]
fn the_good_path() {
    let mut o = O::serving();
    o.opens(S);
    o.expect([send(S, hello_o())]);
    o.hears(S, ack());
    o.quiet();
    o.hears(S, prepare(DEADLINE, GRACE));
    o.expect([
        event(Event::HandoffBegun { id: ID, successor: N_PID }),
        os(OsEffect::WatchSuccessor { pid: N_PID }),
        drain(GRACE),
    ]);
    o.done(Outcome::Watched(Ok(())));
    o.quiet();
    o.done(drain_ok());
    o.expect([send(S, drained())]);
    o.hears(S, seal_request());
    o.expect([hook(Hook::Seal)]);
    o.asks(Command::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: 9 });
    o.expect([send(S, seal_progress(1))]);
    o.done(sealed(&[4, 9]));
    o.expect([release_lock()]);
    o.done(released());
    o.expect([event(Event::Sealed { id: ID }), send(S, seal_complete(&[4, 9]))]);
    o.hears(S, commit());
    o.expect([take_lock()]);
    o.done(lock_held());
    o.expect([close(S), committed()]);
    assert_eq!(Ended::Committed { id: ID }.exit_code(), 0);
    assert!(!o.machine.answers());
}

/// R8: the lock counts as released when its release is reported, and not a moment earlier.
#[test]
fn seal_complete_waits_for_the_release() {
    let mut o = O::releasing();
    o.passes(2.s());
    o.quiet();
    o.done(released());
    o.expect([event(Event::Sealed { id: ID }), send(S, seal_complete(&[4, 9]))]);
}

/// R2: the pidfd of the successor is opened when Prepare is read; whether that works changes nothing.
#[test]
fn a_successor_that_cannot_be_watched_is_no_obstacle() {
    let mut o = O::serving();
    o.connects(S);
    o.hears(S, prepare(DEADLINE, GRACE));
    let _ = o.take();
    o.done(Outcome::Watched(Err("gone".into())));
    o.quiet();
    o.done(drain_ok());
    o.expect([send(S, drained())]);
}

/// C4: progress is said only while the seal runs.
#[test]
fn progress_is_said_while_the_seal_runs() {
    let report = Command::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: 9 };
    for mut o in [O::serving(), O::draining(), O::drained(), O::releasing(), O::sealed()] {
        o.asks(report.clone());
        o.quiet();
    }
    let mut o = O::sealing();
    o.asks(report.clone());
    o.expect([send(S, seal_progress(1))]);
    o.hears(S, abort());
    o.expect([Output::Cancel, off(Off::Aborted)]);
    o.asks(report);
    o.quiet();
}

/// T5: the drain's grace is what Prepare says, at most the deadline.
#[test]
fn the_grace_ends_with_the_deadline() {
    let mut o = O::serving();
    o.connects(S);
    o.hears(S, prepare(3.s(), 90.s()));
    o.expect_among(drain(3.s()));
}

// R2: after sealing it never gives up before Commit.

/// R2: the supervisor closes.
#[test]
fn after_seal_a_close_takes_the_lock_back() {
    let mut o = O::sealed();
    o.loses(S);
    o.expect([off(Off::SupervisorGone), take_lock()]);
    o.done(locked());
    o.expect([hook(Hook::Resume), claim_path()]);
    o.done(claimed());
    o.quiet();
    o.done(resumed());
    o.expect([resumed_event()]);
    o.proves_that_it_serves();
}

/// R2, T2: the supervisor that was heard to heartbeat is silent for 5 s.
#[test]
fn after_seal_five_seconds_of_silence_take_the_lock_back() {
    let mut o = O::sealed();
    o.hears(S, heartbeat(7));
    o.expect([answer(S, 7)]);
    o.passes(4999.ms());
    o.quiet();
    o.passes(1.ms());
    o.expect([
        refused(S, silent("a heartbeat"), "sealed"),
        close(S),
        off(Off::SupervisorGone),
        take_lock(),
    ]);
}

/// T2: a supervisor that was never heard to heartbeat is judged by the deadline alone.
#[test]
fn a_supervisor_without_heartbeats_may_be_silent() {
    let mut o = O::sealed();
    o.passes(DEADLINE - 1.ms());
    o.quiet();
}

/// R2, T5: at the deadline it starts to take the lock back, keeps the connection and answers on it; a
/// Commit is still heard.
#[test]
fn after_seal_the_deadline_takes_the_lock_back_on_an_open_connection() {
    let mut o = O::sealed();
    o.passes_with_beats_of(S, DEADLINE);
    o.expect([off(Off::Deadline), take_lock()]);
    o.done(lock_held());
    o.expect([event(Event::LockRefused(held()))]);
    o.hears(S, heartbeat(3));
    o.expect([answer(S, 3)]);
    o.passes(20.ms());
    o.expect([take_lock()]);
    o.done(lock_held());
    o.quiet();
    o.hears(S, commit());
    o.expect([take_lock()]);
    o.done(lock_held());
    o.expect([close(S), committed()]);
}

/// R2: Abort.
#[test]
fn after_seal_an_abort_takes_the_lock_back() {
    let mut o = O::sealed();
    o.hears(S, abort());
    o.expect([off(Off::Aborted), take_lock()]);
    o.hears(S, heartbeat(3));
    o.expect([answer(S, 3)]);
}

/// R2, R4: ResumeAfterAbort, without an Abort before it as after one.
#[test]
fn after_seal_resume_takes_the_lock_back() {
    let mut o = O::sealed();
    o.hears(S, resume());
    o.expect([off(Off::Aborted), take_lock()]);
    let mut o = O::aborted();
    o.hears(S, resume());
    o.quiet();
    o.done(locked());
    o.expect([hook(Hook::Resume), claim_path()]);
}

/// R2, W7: a violation closes the connection, and that is a close.
#[test]
fn after_seal_a_violation_takes_the_lock_back() {
    let mut o = O::sealed();
    o.loses_by(S, Violation::Wire(handoff_core::wire::WireError::Malformed));
    o.expect([
        refused(S, Violation::Wire(handoff_core::wire::WireError::Malformed), "sealed"),
        off(Off::SupervisorGone),
        take_lock(),
    ]);
}

/// R2: while the supervisor is connected, another process that answers is no reason to end: nobody is
/// even asked.
#[test]
fn a_connected_supervisor_keeps_it_from_standing_down() {
    let mut o = O::sealed();
    o.passes_with_beats_of(S, DEADLINE);
    o.expect([off(Off::Deadline), take_lock()]);
    for _ in 0..100 {
        o.done(lock_held());
        o.expect_without(|output| *output == probe());
        o.passes_with_beats_of(S, 20.ms());
        o.expect([take_lock()]);
    }
    // Nor does it believe an answer to what was not asked.
    let before = o.clone();
    for answer in [answered(N_PID), nobody()] {
        o.done(answer);
        o.quiet();
        assert_eq!(o.machine, before.machine);
    }
}

/// R2: it stands down where the connection is closed, no Abort was read, and another answers.
#[test]
fn an_abandoned_incumbent_stands_down_for_another_that_answers() {
    let mut o = O::abandoned();
    o.done(lock_held());
    o.expect([event(Event::LockRefused(held())), probe()]);
    o.done(answered(N_PID));
    o.expect([stood_down(N_PID)]);
    let why = StandDown::OtherServes { pid: N_PID };
    assert_eq!(Ended::StoodDown { why }.exit_code(), 75);
}

/// R2: an Abort that was read, even before the connection closed, keeps it from standing down.
#[test]
fn an_abort_keeps_it_from_standing_down() {
    for word in [abort(), resume()] {
        let mut o = O::sealed();
        o.hears(S, word);
        o.loses(S);
        o.expect([off(Off::Aborted), take_lock()]);
        for _ in 0..10 {
            o.done(lock_held());
            o.expect_among(probe());
            o.done(answered(N_PID));
            o.quiet();
            o.passes(20.ms());
            o.expect([take_lock()]);
        }
        o.done(locked());
        o.expect([hook(Hook::Resume), claim_path()]);
    }
}

/// R2, I6: but not for ever. A successor that is being ended answers no longer than that takes; one that
/// answers for 15 s on end serves, and two processes are one too many.
#[test]
fn after_an_abort_it_stands_down_for_one_that_answers_on() {
    let mut o = O::aborted();
    o.loses(S);
    let _ = o.take();
    let mut stood_down_after = None;
    for second in 0..30 {
        o.done(lock_held());
        o.done(answered(N_PID));
        o.passes(1.s());
        if o.take().contains(&stood_down(N_PID)) {
            stood_down_after = Some(second);
            break;
        }
    }
    assert_eq!(stood_down_after, Some(15));
    // Answers that are not on end do not add up.
    let mut o = O::aborted();
    o.loses(S);
    for second in 0..60 {
        o.done(lock_held());
        o.done(if second % 10 == 9 { nobody() } else { answered(N_PID) });
        o.passes(1.s());
    }
    o.expect_without(|output| *output == stood_down(N_PID));
}

/// R2: its own socket is not another process, and silence proves nothing.
#[test]
fn it_does_not_stand_down_for_itself() {
    for probed in [Probed::Own, Probed::Silent] {
        let mut o = O::abandoned();
        o.done(lock_held());
        o.expect([event(Event::LockRefused(held())), probe()]);
        o.done(Outcome::Probed(probed));
        o.quiet();
        o.passes(20.ms());
        o.expect([take_lock()]);
    }
}

/// R1, R2: a shortage is retried like a held lock, and told once.
#[test]
fn a_shortage_is_retried_like_a_held_lock() {
    let mut o = O::aborted();
    let shortage = LockFailure::Shortage("no space left".into());
    o.done(Outcome::Lock(Err(shortage.clone())));
    o.expect([event(Event::LockRefused(shortage.clone()))]);
    for _ in 0..50 {
        o.passes(20.ms());
        o.expect([take_lock()]);
        o.done(Outcome::Lock(Err(shortage.clone())));
        o.quiet();
    }
    o.passes(20.ms());
    o.done(locked());
    o.expect([take_lock(), hook(Hook::Resume), claim_path()]);
}

/// An abandoned incumbent whose deadline has passed, and which was refused the lock just now.
fn abandoned_beyond_the_deadline() -> O {
    let mut o = O::abandoned();
    let mut rounds = 0;
    while o.now.since_origin() < DEADLINE {
        o.done(lock_held());
        o.expect_among(probe());
        o.done(nobody());
        o.quiet();
        o.passes(20.ms().max(DEADLINE / 50));
        o.expect([take_lock()]);
        rounds += 1;
    }
    assert!(rounds > 10, "it kept trying");
    o.done(lock_held());
    o.expect([probe()]);
    o
}

/// R2: the supervisor gone, the deadline passed, the successor neither serving nor letting go: TERM, a
/// grace, KILL, and the lock all the while.
#[test]
fn it_ends_a_successor_that_neither_serves_nor_lets_go() {
    let mut o = abandoned_beyond_the_deadline();
    o.done(nobody());
    o.expect([signal(Signal::Term)]);
    o.done(Outcome::Signalled(Ok(())));
    o.quiet();
    let asked = o.now;
    while o.now < asked + 4980.ms() {
        o.passes(20.ms());
        o.expect([take_lock()]);
        o.done(lock_held());
        o.expect([probe()]);
        o.done(nobody());
        o.quiet();
    }
    o.passes(20.ms());
    o.expect_among(signal(Signal::Kill));
    o.done(Outcome::Signalled(Ok(())));
    o.done(locked());
    o.expect([hook(Hook::Resume), claim_path()]);
    o.resumes();
    o.expect([resumed_event()]);
}

/// R2, R3: nor before the successor could serve by itself: one that is ready takes over when its own
/// supervisor has been silent for 5 s, or 10 s after Ready; the deadline alone does not tell.
#[test]
fn it_ends_nobody_before_the_successor_could_serve_by_itself() {
    let mut o = O::sealed();
    o.passes_with_beats_of(S, DEADLINE - 1.s());
    o.loses(S);
    let lost = o.now;
    let mut first = None;
    while first.is_none() && o.now < lost + 60.s() {
        o.done(lock_held());
        o.done(nobody());
        if o.take().contains(&signal(Signal::Term)) {
            first = Some(o.now.saturating_since(lost).as_secs());
        }
        o.passes(500.ms());
    }
    assert!((15..=25).contains(&first.unwrap_or_default()), "{first:?}");
}

/// R2: before the deadline nobody is ended.
#[test]
fn it_ends_nobody_before_the_deadline() {
    let mut o = O::abandoned();
    while o.now.since_origin() < DEADLINE - 2.s() {
        o.done(lock_held());
        o.done(nobody());
        o.passes(1.s());
        o.expect_without(|output| {
            matches!(output, Output::Do(_)) && *output != take_lock() && *output != probe()
        });
    }
}

/// R2: nor while the supervisor is connected, however late it is.
#[test]
fn it_ends_nobody_while_the_supervisor_is_connected() {
    let mut o = O::sealed();
    o.passes_with_beats_of(S, DEADLINE);
    let _ = o.take();
    for _ in 0..30 {
        o.done(lock_held());
        o.passes_with_beats_of(S, 1.s());
        o.expect_without(|output| matches!(output, Output::Do(_)) && *output != take_lock());
    }
}

/// R2: nor a successor that serves: for that one it stands down.
#[test]
fn it_does_not_end_a_successor_that_serves() {
    let mut o = abandoned_beyond_the_deadline();
    o.done(answered(N_PID));
    o.expect([stood_down(N_PID)]);
}

/// R2: where it may not end the successor it says so, once, and keeps trying.
#[test]
fn where_it_may_not_end_the_successor_it_says_so_and_keeps_trying() {
    let mut o = abandoned_beyond_the_deadline();
    o.done(nobody());
    o.expect([signal(Signal::Term)]);
    let reason = String::from("not permitted");
    o.done(Outcome::Signalled(Err(reason.clone())));
    o.expect([event(Event::SuccessorNotEnded(reason))]);
    for _ in 0..1000 {
        o.passes(20.ms());
        o.expect([take_lock()]);
        o.done(lock_held());
        o.expect([probe()]);
        o.done(nobody());
        o.quiet();
    }
    o.passes(20.ms());
    o.done(locked());
    o.expect([take_lock(), hook(Hook::Resume), claim_path()]);
}

/// R2: a Commit that was sent before the deadline and read after the supervisor's end would be lost;
/// one that is read while the lock is being tried is obeyed, and a late success undone (R8).
#[test]
fn a_commit_during_a_try_for_the_lock_is_obeyed_after_the_try() {
    let mut o = O::sealed();
    o.passes_with_beats_of(S, DEADLINE);
    o.expect([off(Off::Deadline), take_lock()]);
    o.hears(S, commit());
    o.quiet();
    o.done(lock_held());
    o.expect([close(S), committed()]);
}

/// It has the lock, lets it go, and has it again.
fn has_the_lock_twice(o: &mut O) {
    o.done(locked());
    o.expect([release_lock()]);
    o.done(released());
    o.passes(1020.ms());
    o.expect([take_lock()]);
    o.done(locked());
}

/// I5, R8, C2: who gets the lock after the successor had it serves: the successor is gone. A Commit that
/// was read while the lock was being tried does not make it give the lock away to nobody.
#[test]
fn a_lock_that_is_had_after_a_commit_is_put_to_use() {
    let mut o = O::sealed();
    o.passes_with_beats_of(S, DEADLINE);
    o.expect([off(Off::Deadline), take_lock()]);
    o.hears(S, commit());
    o.quiet();
    has_the_lock_twice(&mut o);
    o.expect_among(hook(Hook::Resume));
}

/// I5, C2 as amended: a Commit whose successor is gone, and has left the lock behind, is not obeyed.
#[test]
fn a_commit_of_a_successor_that_is_gone_is_not_obeyed() {
    let mut o = O::sealed();
    o.hears(S, commit());
    o.expect([take_lock()]);
    has_the_lock_twice(&mut o);
    o.expect([hook(Hook::Resume), claim_path()]);
    o.done(claimed());
    o.done(resumed());
    o.expect([resumed_event(), close(S)]);
    assert_eq!(o.machine.state_name(), "serving");
}

/// I5, C2 as amended: who is held up until the next handoff may have the lock between two others. It lets
/// go, and finds it held when they have had their time.
#[test]
fn a_lock_that_is_had_between_two_others_is_let_go() {
    let mut o = O::sealed();
    o.hears(S, commit());
    o.loses(S);
    o.expect([take_lock()]);
    o.done(locked());
    o.expect([release_lock()]);
    o.done(released());
    // The successor of the next handoff tries every 20 ms.
    o.passes(1.s());
    o.quiet();
    o.passes(20.ms());
    o.expect([take_lock()]);
    o.done(lock_held());
    o.expect([committed()]);
}

/// R8: a lock that cannot be let go is still held.
#[test]
fn a_lock_that_cannot_be_let_go_is_put_to_use() {
    let mut o = O::sealed();
    o.hears(S, commit());
    o.done(locked());
    o.expect([take_lock(), release_lock()]);
    o.done(Outcome::Released(Err("no descriptor".into())));
    o.expect([hook(Hook::Resume), claim_path()]);
}

/// R4: an Abort or ResumeAfterAbort behind that Commit says that the successor is gone: the lock is not let
/// go, or tried again at once.
#[test]
fn a_lock_that_is_had_after_an_abort_is_put_to_use_at_once() {
    for word in [abort(), resume()] {
        let mut o = O::sealed();
        o.hears(S, commit());
        o.hears(S, word);
        o.done(locked());
        o.expect([take_lock(), hook(Hook::Resume), claim_path()]);
    }
    for late in [false, true] {
        let mut o = O::sealed();
        o.hears(S, commit());
        o.done(locked());
        o.expect([take_lock(), release_lock()]);
        if late {
            o.done(released());
            o.quiet();
            o.hears(S, resume());
        } else {
            o.hears(S, resume());
            o.quiet();
            o.done(released());
        }
        o.expect([take_lock()]);
        o.done(locked());
        o.expect([hook(Hook::Resume), claim_path()]);
    }
}

/// R2, R4, I5: an Abort behind that Commit says that the successor is gone and its processes are being
/// ended: one of them may hold the lock a moment longer, so one refusal is not the last word. That the lock
/// is tried again is told, once.
#[test]
fn an_abort_behind_a_commit_keeps_it_trying() {
    for word in [abort(), resume()] {
        let mut o = O::sealed();
        o.hears(S, commit());
        o.expect([take_lock()]);
        o.hears(S, word);
        o.done(lock_held());
        o.expect([event(Event::LockRefused(held()))]);
        for _ in 0..10 {
            o.passes(20.ms());
            o.expect([take_lock()]);
            o.done(lock_held());
            o.quiet();
        }
        o.passes(20.ms());
        o.expect([take_lock()]);
        o.done(locked());
        o.expect([hook(Hook::Resume), claim_path()]);
    }
}

/// C2: a Commit that is read when the lock is held again is a violation, and it goes on serving.
#[test]
fn a_commit_after_the_lock_is_back_is_a_violation() {
    let mut o = O::sealed();
    o.passes_with_beats_of(S, DEADLINE);
    o.done(locked());
    o.expect([off(Off::Deadline), take_lock(), hook(Hook::Resume), claim_path()]);
    o.hears(S, commit());
    o.expect([refused(S, unexpected("Commit", "resuming"), "resuming"), close(S)]);
    o.resumes();
    o.expect([resumed_event()]);
    o.proves_that_it_serves();
}

/// C2: so is one before the lock was let go, or after the handoff was aborted.
#[test]
fn a_commit_without_a_seal_is_a_violation() {
    let mut o = O::drained();
    o.hears(S, commit());
    o.expect([
        refused(S, unexpected("Commit", "drained"), "drained"),
        close(S),
        off(Off::SupervisorGone),
        hook(Hook::Resume),
        claim_path(),
    ]);
    o.resumes();
    let mut o = O::aborted();
    o.hears(S, commit());
    let state = "taking the lock back";
    o.expect([refused(S, unexpected("Commit", state), state), close(S)]);
    o.done(locked());
    o.expect([hook(Hook::Resume), claim_path()]);
}

/// At most one effect of a kind is in flight, so that its completion is known: a second signal waits for
/// the first, and a second handoff's watch for the first one's.
#[test]
fn a_signal_waits_for_the_one_before_it() {
    let mut o = abandoned_beyond_the_deadline();
    o.done(nobody());
    o.expect([signal(Signal::Term)]);
    for _ in 0..10 {
        o.passes(1.s());
        o.done(lock_held());
        o.done(nobody());
    }
    o.expect_without(|output| *output == signal(Signal::Kill));
    o.done(Outcome::Signalled(Ok(())));
    o.passes(5.s());
    o.expect_among(signal(Signal::Kill));
}

/// The same of the watch on the successor.
#[test]
fn a_watch_waits_for_the_one_before_it() {
    let watch = os(OsEffect::WatchSuccessor { pid: N_PID });
    let mut o = O::serving();
    o.connects(S);
    o.hears(S, prepare(DEADLINE, GRACE));
    o.expect_among(watch.clone());
    o.loses(S);
    o.done(drain_ok());
    o.done(resumed());
    o.done(claimed());
    let _ = o.take();
    o.opens(T);
    o.hears(T, ack_of(OTHER));
    o.hears(T, prepare_of(OTHER, DEADLINE, GRACE));
    o.expect_without(|output| *output == watch);
    o.done(Outcome::Watched(Ok(())));
    o.expect([watch]);
}

/// A watch that has waited is not made for a process that has ended, nor for a handoff that is over.
#[test]
fn a_watch_that_has_waited_is_not_made_too_late() {
    let mut o = O::serving();
    o.connects(S);
    o.hears(S, prepare(DEADLINE, GRACE));
    o.loses(S);
    o.done(drain_ok());
    o.done(resumed());
    o.done(claimed());
    o.opens(T);
    o.hears(T, ack_of(OTHER));
    o.hears(T, prepare_of(OTHER, DEADLINE, GRACE));
    o.loses(T);
    o.done(drain_ok());
    let _ = o.take();
    let mut over = o.clone();
    over.done(resumed());
    over.done(claimed());
    let _ = over.take();
    over.done(Outcome::Watched(Ok(())));
    over.quiet();
    o.done(Outcome::Resumed(Err("corrupt".into())));
    let _ = o.take();
    o.done(Outcome::Watched(Ok(())));
    o.quiet();
}

// R4: what the supervisor is told of a resume.

/// R4, X2: the answer to a Heartbeat behind ResumeAfterAbort is held back until it has resumed.
#[test]
fn the_answer_after_resume_waits_for_the_resume() {
    let mut o = O::aborted();
    o.hears(S, resume());
    o.hears(S, heartbeat(5));
    o.hears(S, heartbeat(6));
    o.quiet();
    o.done(locked());
    o.expect([hook(Hook::Resume), claim_path()]);
    o.hears(S, heartbeat(7));
    o.done(claimed());
    o.quiet();
    o.done(resumed());
    o.expect([resumed_event(), answer(S, 7)]);
    o.hears(S, heartbeat(8));
    o.expect([answer(S, 8)]);
}

/// R4: the same where nothing was sealed, and the drain hook takes its time.
#[test]
fn the_answer_after_resume_waits_for_the_drain_hook() {
    let mut o = O::draining();
    o.hears(S, resume());
    o.expect([Output::Cancel, off(Off::Aborted)]);
    o.hears(S, heartbeat(5));
    o.quiet();
    o.done(drain_ok());
    o.expect([hook(Hook::Resume), claim_path()]);
    o.done(resumed());
    o.quiet();
    o.done(claimed());
    o.expect([resumed_event(), answer(S, 5)]);
}

/// R4: one that has resumed already answers at once.
#[test]
fn one_that_has_resumed_already_answers_at_once() {
    let mut o = O::resuming();
    o.resumes();
    o.expect([resumed_event()]);
    o.hears(S, resume());
    o.hears(S, heartbeat(5));
    o.expect([answer(S, 5)]);
}

/// R4: an Abort alone holds no answer back: S asks whether it is alive before it ends N (R5).
#[test]
fn an_abort_holds_no_answer_back() {
    let mut o = O::draining();
    o.hears(S, abort());
    o.expect([Output::Cancel, off(Off::Aborted)]);
    o.hears(S, heartbeat(5));
    o.expect([answer(S, 5)]);
}

// R7: failing hooks.

/// R7: a drain that fails: the resume hook, once, after the drain hook returned; closing is the answer.
#[test]
fn a_failed_drain_resumes_once_and_hangs_up() {
    let mut o = O::draining();
    o.done(drain_err());
    o.expect([
        hook_failed("drain", "stuck writes"),
        off(Off::DrainFailed),
        hook(Hook::Resume),
        claim_path(),
    ]);
    o.done(claimed());
    o.done(resumed());
    o.expect([resumed_event(), close(S)]);
    o.proves_that_it_serves();
}

/// R7, T5: a drain that outlives its grace is told so, and resumes when its hook has returned.
#[test]
fn a_drain_that_outlives_its_grace_resumes_when_it_has_returned() {
    let mut o = O::draining();
    o.passes(GRACE);
    o.expect([Output::Cancel, off(Off::DrainTimeout)]);
    o.passes(10.s());
    o.quiet();
    o.done(drain_ok());
    o.expect([hook(Hook::Resume), claim_path()]);
    o.done(resumed());
    o.quiet();
    o.done(claimed());
    o.expect([resumed_event(), close(S)]);
}

/// R7: a seal that fails: SealFailed is said, and the resume hook runs, once.
#[test]
fn a_failed_seal_resumes_once() {
    let mut o = O::sealing();
    o.done(seal_err());
    o.expect([
        hook_failed("seal", "disk full"),
        off(Off::SealFailed),
        send(S, seal_failed()),
        hook(Hook::Resume),
        claim_path(),
    ]);
    o.hears(S, abort());
    o.hears(S, resume());
    o.quiet();
    o.resumes();
    o.expect([resumed_event()]);
    o.proves_that_it_serves();
}

/// R7, R8: a lock that cannot be released is held: the seal has failed.
#[test]
fn a_failed_release_is_a_failed_seal() {
    let mut o = O::releasing();
    o.done(Outcome::Released(Err("EIO".into())));
    let outputs = o.take();
    let failed = |output: &Output| match output {
        Output::Send { message: Message::SealFailed { handoff_id, error, .. }, .. } => {
            *handoff_id == ID && error == "EIO"
        }
        _ => false,
    };
    assert!(outputs.iter().any(failed), "{outputs:?}");
    assert!(outputs.contains(&hook(Hook::Resume)) && outputs.contains(&off(Off::SealFailed)));
}

/// W2: a report that fits no frame is a failed seal, not a frame that cannot be sent.
#[test]
fn a_seal_of_more_shards_than_fit_a_frame_has_failed() {
    let mut o = O::sealing();
    let revisions = vec![1; handoff_core::wire::MAX_SHARDS + 1];
    o.done(Outcome::Sealed(Ok(SealReport { revisions, fingerprint: [0; 32] })));
    let outputs = o.take();
    assert!(outputs.contains(&off(Off::SealFailed)), "{outputs:?}");
    assert!(outputs.contains(&hook(Hook::Resume)));
}

/// R7: whatever ends a handoff while the drain hook runs: the hook is told at once and once, and resume
/// runs once, when it has returned, whether it failed or not.
#[test]
fn a_handoff_that_ends_while_draining_resumes_after_the_hook() {
    type End = fn(&mut O);
    let ends: [(End, Off); 5] = [
        (|o| o.hears(S, abort()), Off::Aborted),
        (|o| o.hears(S, resume()), Off::Aborted),
        (|o| o.loses(S), Off::SupervisorGone),
        (|o| o.passes(GRACE), Off::DrainTimeout),
        (|o| o.asks(Command::Stop), Off::Stopped),
    ];
    for (end, why) in ends {
        for outcome in [drain_ok(), drain_err()] {
            let mut o = O::draining();
            end(&mut o);
            o.expect([Output::Cancel, off(why)]);
            // More reasons change nothing.
            o.hears(S, abort());
            o.loses(S);
            o.passes(20.s());
            o.quiet();
            let failed = outcome == drain_err();
            o.done(outcome);
            if failed {
                o.expect([hook_failed("drain", "stuck writes"), hook(Hook::Resume), claim_path()]);
            } else {
                o.expect([hook(Hook::Resume), claim_path()]);
            }
            o.done(claimed());
            o.quiet();
            o.done(resumed());
            o.expect_among(resumed_event());
        }
    }
}

/// R7: the same while the seal hook runs: the data is sealed or not, but the lock was never let go.
#[test]
fn a_handoff_that_ends_while_sealing_resumes_after_the_hook() {
    type End = fn(&mut O);
    let ends: [(End, Off); 4] = [
        (|o| o.hears(S, abort()), Off::Aborted),
        (|o| o.hears(S, resume()), Off::Aborted),
        (|o| o.loses(S), Off::SupervisorGone),
        (|o| o.passes(DEADLINE), Off::Deadline),
    ];
    for (end, why) in ends {
        for outcome in [sealed(&[1]), seal_err()] {
            let mut o = O::sealing();
            end(&mut o);
            o.expect([Output::Cancel, off(why)]);
            o.hears(S, abort());
            o.loses(S);
            o.passes(20.s());
            o.quiet();
            o.done(outcome);
            o.expect([hook(Hook::Resume), claim_path()]);
            o.done(claimed());
            o.done(resumed());
            o.expect([resumed_event()]);
        }
    }
}

/// R7: between Drained and SealRequest no hook runs, and resume starts at once.
#[test]
fn a_handoff_that_ends_when_drained_resumes_at_once() {
    type End = fn(&mut O);
    let ends: [(End, Off); 4] = [
        (|o| o.hears(S, abort()), Off::Aborted),
        (|o| o.hears(S, resume()), Off::Aborted),
        (|o| o.loses(S), Off::SupervisorGone),
        (|o| o.passes(DEADLINE), Off::Deadline),
    ];
    for (end, why) in ends {
        let mut o = O::drained();
        end(&mut o);
        o.expect([off(why), hook(Hook::Resume), claim_path()]);
        o.hears(S, abort());
        o.quiet();
        o.resumes();
    }
}

/// R8: a handoff that ends while the lock is being released: it is taken back once it is released.
#[test]
fn a_handoff_that_ends_while_releasing_takes_the_lock_back_afterwards() {
    type End = fn(&mut O);
    let ends: [(End, Off); 4] = [
        (|o| o.hears(S, abort()), Off::Aborted),
        (|o| o.hears(S, resume()), Off::Aborted),
        (|o| o.loses(S), Off::SupervisorGone),
        (|o| o.passes(DEADLINE), Off::Deadline),
    ];
    for (end, why) in ends {
        let mut o = O::releasing();
        end(&mut o);
        o.expect([off(why)]);
        o.done(released());
        o.expect([take_lock()]);
        o.done(locked());
        o.expect([hook(Hook::Resume), claim_path()]);
        // And where the release failed, the lock was never gone.
        let mut o = O::releasing();
        end(&mut o);
        o.expect([off(why)]);
        o.done(Outcome::Released(Err("EIO".into())));
        o.expect([hook(Hook::Resume), claim_path()]);
    }
}

/// R7: a hook that has not returned 30 s after it was told makes the process abort.
#[test]
fn a_stuck_hook_is_a_crash() {
    for (mut o, state) in [(O::draining(), "draining"), (O::sealing(), "sealing")] {
        o.hears(S, abort());
        o.expect([Output::Cancel, off(Off::Aborted)]);
        o.passes_with_beats_of(S, 29.s());
        o.passes(999.ms());
        o.quiet();
        assert_eq!(o.machine.state_name(), state);
        o.passes(1.ms());
        let outputs = o.take();
        assert!(outputs.iter().any(crashed), "{outputs:?}");
    }
}

/// R7: the bound is on the hook, not on the resume that follows it.
#[test]
fn a_hook_that_returns_in_time_is_no_crash() {
    let mut o = O::sealing();
    o.hears(S, abort());
    o.passes(29.s());
    o.done(sealed(&[]));
    o.passes(100.s());
    o.expect_without(crashed);
}

/// R7: a resume that fails leaves a process that neither serves nor can be undone.
#[test]
fn a_failed_resume_is_a_crash() {
    let mut o = O::resuming();
    o.done(Outcome::Resumed(Err("corrupt".into())));
    let outputs = o.take();
    assert!(outputs.iter().any(crashed), "{outputs:?}");
}

/// R7: a second SealRequest is a violation, whenever it comes; the seal hook never runs twice.
#[test]
fn a_second_seal_request_is_a_violation() {
    let mut o = O::sealing();
    o.hears(S, seal_request());
    o.expect([
        refused(S, unexpected("SealRequest", "sealing"), "sealing"),
        close(S),
        Output::Cancel,
        off(Off::SupervisorGone),
    ]);
    o.done(sealed(&[]));
    o.expect([hook(Hook::Resume), claim_path()]);
    let mut o = O::sealed();
    o.hears(S, seal_request());
    o.expect([
        refused(S, unexpected("SealRequest", "sealed"), "sealed"),
        close(S),
        off(Off::SupervisorGone),
        take_lock(),
    ]);
}

/// R7: a hook never runs twice for one handoff: not for a second Prepare on the same connection, and not
/// for one with the same id on another.
#[test]
fn a_handoff_that_has_ended_does_not_begin_again() {
    let mut o = O::resuming();
    o.resumes();
    o.expect([resumed_event()]);
    let mut again = o.clone();
    again.hears(S, prepare(DEADLINE, GRACE));
    again.expect([refused(S, unexpected("PrepareHandoff", "serving"), "serving"), close(S)]);
    o.loses(S);
    o.connects(T);
    o.hears(T, prepare(DEADLINE, GRACE));
    o.expect_without(|output| matches!(output, Output::Do(_)));
}

/// R7, T5: the deadline holds while the drain hook runs, too.
#[test]
fn the_deadline_ends_a_drain() {
    let mut o = O::serving();
    o.connects(S);
    o.hears(S, prepare(5.s(), 5.s()));
    let _ = o.take();
    o.passes(5.s());
    o.expect([Output::Cancel, off(Off::DrainTimeout)]);
    o.passes(1.s());
    o.quiet();
}

/// R7, T5: and while the drain is done.
#[test]
fn the_deadline_counts_from_prepare() {
    let mut o = O::serving();
    o.passes(100.s());
    o.connects(S);
    o.passes(2.s());
    o.hears(S, prepare(5.s(), 4.s()));
    let _ = o.take();
    o.passes(3.s());
    o.done(drain_ok());
    o.expect([send(S, drained())]);
    o.passes(1999.ms());
    o.quiet();
    o.passes(1.ms());
    o.expect([off(Off::Deadline), hook(Hook::Resume), claim_path()]);
}

/// R2, T5: numbers that no clock reaches neither overflow nor expire.
#[test]
fn absurd_durations_do_no_harm() {
    let mut o = O::serving();
    o.connects(S);
    let message = Message::PrepareHandoff {
        handoff_id: ID,
        successor_pid: N_PID,
        deadline_ms: u64::MAX,
        drain_grace_ms: u64::MAX,
    };
    o.hears(S, message);
    let _ = o.take();
    o.passes_with_beats_of(S, 3600.s());
    o.quiet();
    o.done(drain_ok());
    o.expect([send(S, drained())]);
}

/// R7, T5: a deadline of zero has passed at once.
#[test]
fn a_deadline_of_zero_passes_at_once() {
    let mut o = O::serving();
    o.connects(S);
    o.hears(S, prepare(0.s(), 0.s()));
    let _ = o.take();
    o.passes(0.s());
    o.expect([Output::Cancel, off(Off::DrainTimeout)]);
    o.done(drain_ok());
    o.expect([hook(Hook::Resume), claim_path()]);
}

// The control path.

/// R11: whoever resumes makes sure that the path leads to itself, and keeps at it.
#[test]
fn the_path_is_claimed_until_it_leads_here() {
    let mut o = O::resuming();
    o.done(Outcome::Claimed(Err("no space".into())));
    o.expect([event(Event::PathFailed("no space".into()))]);
    o.done(resumed());
    o.expect([resumed_event()]);
    for _ in 0..5 {
        o.passes(20.ms());
        o.expect([claim_path()]);
        o.done(Outcome::Claimed(Err("no space".into())));
        // It was told of once.
        o.quiet();
    }
    o.passes(20.ms());
    o.expect([claim_path()]);
    o.done(claimed());
    o.passes(100.s());
    o.expect_without(|output| *output == claim_path());
}

/// R11: where something beside the path has changed, whoever serves makes sure that it leads to itself;
/// and no more often than that.
#[test]
fn a_path_that_changes_is_claimed_again() {
    let mut o = O::serving();
    o.asks(Command::PathChanged);
    o.expect([claim_path()]);
    o.done(claimed());
    assert_eq!(o.machine, O::serving().machine);

    // One that does not succeed is kept at.
    o.asks(Command::PathChanged);
    o.done(Outcome::Claimed(Err("no space".into())));
    o.expect([claim_path(), event(Event::PathFailed("no space".into()))]);
    o.passes(20.ms());
    o.expect([claim_path()]);
    o.done(claimed());
    assert_eq!(o.machine.deadline(), None);
}

/// R11: a change that comes while the path is being claimed may be one that the claim has not seen.
#[test]
fn a_change_during_a_claim_is_not_lost() {
    let mut o = O::serving();
    for _ in 0..3 {
        o.asks(Command::PathChanged);
    }
    o.expect([claim_path()]);
    // However long that claim takes, and whatever it comes to.
    o.passes(1.s());
    o.quiet();
    o.done(claimed());
    o.passes(20.ms());
    o.expect([claim_path()]);
    o.done(claimed());
    assert_eq!(o.machine.deadline(), None);

    // Nor by a handoff that comes to nothing meanwhile.
    let mut o = claiming_while_serving();
    o.asks(Command::PathChanged);
    o.opens(T);
    o.hears(T, ack_of(OTHER));
    o.hears(T, prepare_of(OTHER, DEADLINE, GRACE));
    o.loses(T);
    o.done(drain_ok());
    o.done(claimed());
    o.done(resumed());
    o.expect_without(|output| *output == claim_path());
    o.passes(20.ms());
    o.expect_among(claim_path());
}

/// R11: who resumes has claimed the path, and what happens to it before it serves is seen too.
#[test]
fn a_path_that_changes_during_a_resume_is_claimed_before_it_serves() {
    let mut o = O::resuming();
    o.done(claimed());
    o.asks(Command::PathChanged);
    o.expect([claim_path()]);
    o.done(resumed());
    o.quiet();
    o.done(claimed());
    o.expect([resumed_event()]);
}

/// R11: where another may serve, or is to, the path is not claimed for a change of it.
#[test]
fn a_path_that_changes_in_a_handoff_is_left_alone() {
    let stages = [O::draining(), O::drained(), O::sealing(), O::releasing(), O::sealed()];
    for mut o in stages {
        let before = o.machine.clone();
        o.asks(Command::PathChanged);
        o.quiet();
        assert_eq!(o.machine, before);
    }
    let mut o = O::serving();
    o.asks(Command::Stop);
    o.asks(Command::PathChanged);
    o.expect_without(|output| *output == claim_path());
}

/// It serves, the path does not lead to it, and a claim of it is under way.
fn claiming_while_serving() -> O {
    let mut o = O::resuming();
    o.done(Outcome::Claimed(Err("no space".into())));
    o.done(resumed());
    o.loses(S);
    let _ = o.take();
    o.passes(20.ms());
    o.expect([claim_path()]);
    o
}

/// Up to the seal of the next handoff, on `T`.
fn seals_again(o: &mut O) {
    o.opens(T);
    o.hears(T, ack_of(OTHER));
    o.hears(T, prepare_of(OTHER, DEADLINE, GRACE));
    o.done(drain_ok());
    o.hears(T, Message::SealRequest { handoff_id: OTHER });
    o.done(sealed(&[]));
}

/// R11, R16: a claim of the path that is still wanting from before is not made without the lock: it
/// would take the path from the successor that has it.
#[test]
fn the_path_is_not_claimed_without_the_lock() {
    let mut o = claiming_while_serving();
    seals_again(&mut o);
    o.done(Outcome::Claimed(Err("no space".into())));
    o.done(released());
    let outputs = o.take();
    assert!(outputs.contains(&event(Event::Sealed { id: OTHER })), "{outputs:?}");
    o.passes(10.s());
    o.expect_without(|output| *output == claim_path());
}

/// The same of a claim that has failed, and waits to be tried again when the lock is let go.
#[test]
fn the_path_is_not_claimed_again_without_the_lock() {
    let mut o = claiming_while_serving();
    o.done(Outcome::Claimed(Err("no space".into())));
    seals_again(&mut o);
    o.done(released());
    let outputs = o.take();
    assert!(outputs.contains(&event(Event::Sealed { id: OTHER })), "{outputs:?}");
    o.passes(10.s());
    o.expect_without(|output| *output == claim_path());
}

/// R8, R11: nor is the lock let go while a claim is under way, for the same reason.
#[test]
fn the_lock_is_not_let_go_while_the_path_is_being_claimed() {
    for outcome in [claimed(), Outcome::Claimed(Err("no space".into()))] {
        let mut o = claiming_while_serving();
        seals_again(&mut o);
        o.expect_without(|output| *output == release_lock());
        o.done(outcome);
        o.expect_among(release_lock());
    }
}

/// R7, R8: a handoff that ends before the release was asked for keeps the lock: there is nothing to take
/// back.
#[test]
fn a_handoff_that_ends_before_the_release_keeps_the_lock() {
    let mut o = claiming_while_serving();
    seals_again(&mut o);
    o.loses(T);
    let _ = o.take();
    o.done(claimed());
    let outputs = o.take();
    assert!(!outputs.contains(&release_lock()), "{outputs:?}");
    assert!(outputs.contains(&hook(Hook::Resume)), "{outputs:?}");
}

// C: connections.

/// C5: HelloAck within 5 s.
#[test]
fn a_connection_has_five_seconds_for_hello_ack() {
    let mut o = O::serving();
    o.opens(S);
    o.passes(4999.ms());
    o.expect([send(S, hello_o())]);
    o.passes_with_drips_of(S, 1.ms());
    o.expect([refused(S, silent("HelloAck"), "serving"), close(S)]);
}

/// C5, T5: bytes that drip in are no HelloAck.
#[test]
fn dripping_does_not_extend_the_time_for_hello_ack() {
    let mut o = O::serving();
    o.opens(S);
    let _ = o.take();
    o.passes_with_drips_of(S, 5.s());
    o.expect([refused(S, silent("HelloAck"), "serving"), close(S)]);
}

/// C5: a connection that neither heartbeats nor sends Prepare is closed after 30 s.
#[test]
fn an_idle_connection_is_closed_after_thirty_seconds() {
    let mut o = O::serving();
    o.connects(S);
    o.passes(29_999.ms());
    o.quiet();
    o.passes(1.ms());
    o.expect([refused(S, silent("a heartbeat or PrepareHandoff"), "serving"), close(S)]);
}

/// C5: one that heartbeats is kept, and one that has sent Prepare is judged by the handoff alone.
#[test]
fn a_connection_that_heartbeats_is_kept() {
    let mut o = O::serving();
    o.connects(S);
    o.passes_with_beats_of(S, 300.s());
    o.quiet();
    let mut o = O::serving();
    o.connects(S);
    o.hears(S, prepare(100.s(), 90.s()));
    let _ = o.take();
    o.passes(80.s());
    o.quiet();
}

/// C5: after a handoff that came to nothing the 30 s start again.
#[test]
fn after_a_resume_a_connection_may_idle_for_thirty_seconds() {
    let mut o = O::resuming();
    o.resumes();
    o.expect([resumed_event()]);
    o.passes(29.s());
    o.quiet();
    o.passes(1.s());
    o.expect([refused(S, silent("a heartbeat or PrepareHandoff"), "serving"), close(S)]);
}

/// C5: a Prepare with another id closes the connection that sent it, and nothing else happens.
#[test]
fn a_second_prepare_closes_only_its_own_connection() {
    for stage in STAGES {
        let mut o = with_a_stranger(stage);
        let state = o.machine.state_name();
        o.hears(T, ack_of(OTHER));
        o.hears(T, prepare_of(OTHER, DEADLINE, GRACE));
        o.expect([refused(T, Violation::Busy { active: ID }, state), close(T)]);
        o.hears(S, heartbeat(9));
        o.expect([answer(S, 9)]);
        assert_eq!(o.machine.state_name(), state);
    }
    let mut o = with_a_stranger("sealed");
    o.hears(T, ack_of(OTHER));
    o.hears(T, prepare_of(OTHER, DEADLINE, GRACE));
    let _ = o.take();
    o.hears(S, commit());
    o.expect([take_lock()]);
    o.done(lock_held());
    o.expect([close(S), committed()]);
}

const STAGES: [&str; 5] = ["draining", "drained", "sealing", "releasing the lock", "sealed"];

/// At this stage of the handoff on `S`, beside a connection `T` that was greeted before it.
fn with_a_stranger(stage: &str) -> O {
    let mut o = O::serving();
    o.opens(T);
    o.expect([send(T, hello_o())]);
    o.prepares();
    type Step = fn(&mut O);
    let steps: [Step; 4] = [
        |o| o.done(drain_ok()),
        |o| o.hears(S, seal_request()),
        |o| o.done(sealed(&[4, 9])),
        |o| o.done(released()),
    ];
    for step in steps {
        if o.machine.state_name() != stage {
            step(&mut o);
        }
    }
    assert_eq!(o.machine.state_name(), stage);
    let _ = o.take();
    o
}

/// C1, C5: a Prepare whose id is not its own connection's closes that connection.
#[test]
fn a_prepare_of_another_id_than_hello_ack_is_a_violation() {
    let mut o = O::serving();
    o.connects(S);
    o.hears(S, prepare_of(OTHER, DEADLINE, GRACE));
    let wrong = Violation::WrongId { message: "PrepareHandoff", got: OTHER, expected: ID };
    o.expect([refused(S, wrong, "serving"), close(S)]);
    let mut o = O::draining();
    o.hears(S, prepare_of(OTHER, DEADLINE, GRACE));
    o.expect([
        refused(S, Violation::Busy { active: ID }, "draining"),
        close(S),
        Output::Cancel,
        off(Off::SupervisorGone),
    ]);
}

/// C5: a silent stranger never delays a real handoff, nor does the end of its connection touch it.
#[test]
fn a_silent_stranger_does_not_touch_a_handoff() {
    let mut o = O::serving();
    o.opens(T);
    o.expect([send(T, hello_o())]);
    o.prepares();
    o.passes(5.s());
    o.expect([refused(T, silent("HelloAck"), "draining"), close(T)]);
    o.done(drain_ok());
    o.expect([send(S, drained())]);
}

/// C5: the 33rd connection pushes out the oldest that has not sent HelloAck.
#[test]
fn the_33rd_connection_pushes_out_the_oldest_that_has_said_nothing() {
    let mut o = O::serving();
    o.connects(ConnId(1));
    for number in 2..=32 {
        o.opens(ConnId(number));
        o.expect([send(ConnId(number), hello_o())]);
    }
    o.opens(ConnId(33));
    o.expect([
        refused(ConnId(2), Violation::Crowded, "serving"),
        close(ConnId(2)),
        send(ConnId(33), hello_o()),
    ]);
    o.hears(ConnId(1), prepare(DEADLINE, GRACE));
    o.expect_among(drain(GRACE));
}

/// C5: where all have sent HelloAck, the oldest that has not sent Prepare goes: a stranger that has said no
/// more than that keeps nobody out.
#[test]
fn the_33rd_connection_pushes_out_the_oldest_that_has_not_prepared() {
    let mut o = O::serving();
    for number in 1..=32 {
        o.connects(ConnId(number));
    }
    o.opens(ConnId(33));
    let crowded = refused(ConnId(1), Violation::Crowded, "serving");
    o.expect([crowded, close(ConnId(1)), send(ConnId(33), hello_o())]);
}

/// C5, C6: connections that wait for Hello between seal and resume do not add up either.
#[test]
fn connections_that_wait_for_hello_are_bounded() {
    let mut o = O::sealed();
    for number in 2..=32 {
        o.opens(ConnId(number));
        o.quiet();
    }
    o.opens(ConnId(33));
    o.expect([refused(ConnId(2), Violation::Crowded, "sealed"), close(ConnId(2))]);
    o.hears(S, commit());
    o.expect([take_lock()]);
    o.done(lock_held());
    o.expect_among(committed());
}

/// C6: a probe leaves no trace.
#[test]
fn a_probe_leaves_no_trace() {
    let before = O::serving();
    let mut o = before.clone();
    o.opens(T);
    o.expect([send(T, hello_o())]);
    o.hears(T, ack_of(OTHER));
    o.loses(T);
    o.quiet();
    assert_eq!(o.machine, before.machine);
}

/// C6, as amended: Hello waits from Prepare on, so that a probe never mistakes one that accepts nobody for
/// one that serves.
#[test]
fn a_probe_during_the_drain_waits() {
    for before in [O::draining(), O::drained()] {
        let mut o = before.clone();
        o.opens(T);
        o.quiet();
        o.loses(T);
        o.quiet();
        assert_eq!(o.machine, before.machine);
    }
}

/// C6: between seal and resume a probe is accepted, and greeted when it has settled.
#[test]
fn between_seal_and_resume_hello_waits() {
    for stage in 0..5 {
        let mut o = O::sealing();
        let step = |at: u8, o: &mut O| {
            if stage == at {
                o.opens(T);
                o.quiet();
                o.hears_a_byte(T);
                o.passes(10.ms());
                o.quiet();
            }
        };
        step(0, &mut o);
        o.done(sealed(&[]));
        o.expect([release_lock()]);
        step(1, &mut o);
        o.done(released());
        let _ = o.take();
        step(2, &mut o);
        o.hears(S, abort());
        o.expect([off(Off::Aborted), take_lock()]);
        step(3, &mut o);
        o.done(locked());
        o.expect([hook(Hook::Resume), claim_path()]);
        step(4, &mut o);
        o.done(claimed());
        o.quiet();
        o.done(resumed());
        o.expect([resumed_event(), send(T, hello_o())]);
        // And the 5 s for HelloAck count from there.
        o.passes(5.s());
        o.expect([refused(T, silent("HelloAck"), "serving"), close(T)]);
    }
}

/// C6: one that is committed never says Hello to who waits for it.
#[test]
fn a_committed_incumbent_greets_nobody() {
    let mut o = O::sealed();
    o.opens(T);
    o.hears(S, commit());
    o.expect([take_lock()]);
    o.done(lock_held());
    o.expect([close(S), close(T), committed()]);
    o.opens(ConnId(3));
    o.expect([close(ConnId(3))]);
}

/// C6: nor does one that ends by standing down.
#[test]
fn one_that_stands_down_greets_nobody() {
    let mut o = O::abandoned();
    o.opens(T);
    o.done(lock_held());
    o.done(answered(N_PID));
    o.expect([event(Event::LockRefused(held())), probe(), close(T), stood_down(N_PID)]);
}

/// W5: a chosen version that was not offered is a violation.
#[test]
fn a_version_that_was_not_offered_is_a_violation() {
    let mut config = Config::new(O_PID, UID);
    (config.proto_min, config.proto_max) = (2, 4);
    for (chosen, offered) in
        [(0, false), (1, false), (2, true), (4, true), (5, false), (u16::MAX, false)]
    {
        let mut o = Bench::new(Incumbent::new(config.clone()));
        o.opens(S);
        let _ = o.take();
        o.hears(S, Message::HelloAck { proto_version_chosen: chosen, handoff_id: ID });
        if offered {
            o.quiet();
        } else {
            let violation = Violation::ChosenVersion { chosen, min: 2, max: 4 };
            o.expect([refused(S, violation, "serving"), close(S)]);
        }
    }
}

/// R12: peers of another uid than its own, root or the allow-list are refused, and are told nothing.
#[test]
fn peers_of_another_uid_are_refused() {
    let mut config = Config::new(O_PID, UID);
    config.allowed_uids = vec![77];
    for (uid, allowed) in [(UID, true), (0, true), (77, true), (78, false), (UID + 1, false)] {
        let mut o = Bench::new(Incumbent::new(config.clone()));
        o.opens_as(S, Credentials { pid: S_PID, uid, descends: false });
        if allowed {
            o.expect([send(S, hello_o())]);
        } else {
            o.expect([refused(S, Violation::WrongUser { uid }, "serving"), close(S)]);
        }
    }
}

/// C1: Hello says who speaks.
#[test]
fn hello_says_what_it_is_configured_to() {
    let mut config = Config::new(O_PID, UID);
    config.build_id = vec![1, 2, 3];
    (config.proto_min, config.proto_max) = (1, 2);
    let mut o = Bench::new(Incumbent::new(config));
    o.opens(S);
    o.expect([send(
        S,
        Message::Hello {
            role: Side::Incumbent,
            pid: O_PID,
            build_id: vec![1, 2, 3],
            proto_min: 1,
            proto_max: 2,
            capabilities: handoff_core::Capabilities { reserved: 3 },
        },
    )]);
}

// T: heartbeats.

/// T1: from HelloAck on, every second, until the connection ends; on every connection.
#[test]
fn it_heartbeats_every_second_from_hello_ack_on() {
    let mut o = O::serving();
    o.opens(S);
    o.passes(3.s());
    assert_eq!(o.beats_to(S), []);
    o.hears(S, ack());
    o.passes(999.ms());
    assert_eq!(o.beats_to(S), []);
    o.passes(1.ms());
    assert_eq!(o.beats_to(S), [4.s()]);
    o.passes(3.s());
    assert_eq!(o.beats_to(S), [5.s(), 6.s(), 7.s()]);
    o.loses(S);
    o.passes(10.s());
    assert_eq!(o.beats_to(S), []);
}

/// T1, X2: also while hooks run, while sealed, and while the lock is being taken back.
#[test]
fn it_heartbeats_in_every_state() {
    for mut o in [
        O::draining(),
        O::drained(),
        O::sealing(),
        O::releasing(),
        O::sealed(),
        O::aborted(),
        O::resuming(),
    ] {
        let since = o.now.since_origin();
        let _ = o.beats_to(S);
        o.passes(3.s());
        let expected: Vec<Duration> = (1..=3).map(|n| since + n.s()).collect();
        assert_eq!(o.beats_to(S), expected, "while {}", o.machine.state_name());
    }
}

/// T1, T4: a host that was asleep sends one heartbeat, not all that it missed.
#[test]
fn missed_heartbeats_are_not_made_up_for() {
    let mut o = O::draining();
    o.sleeps(10.s());
    o.tick();
    assert_eq!(o.beats_to(S), [10.s()]);
    o.passes(1.s());
    assert_eq!(o.beats_to(S), [11.s()]);
}

/// T3, X2: one answer for each Heartbeat, with its time stamp, in every state from HelloAck on.
#[test]
fn every_heartbeat_is_answered_once_with_its_own_stamp() {
    let mut acked = O::serving();
    acked.connects(S);
    for mut o in
        [acked, O::draining(), O::drained(), O::sealing(), O::sealed(), O::aborted(), O::resuming()]
    {
        for ts_ms in [0, 5, u64::MAX, 5] {
            o.hears(S, heartbeat(ts_ms));
            o.expect([answer(S, ts_ms)]);
        }
    }
}

/// T2: any byte is proof of life, once it is known that the peer heartbeats.
#[test]
fn any_byte_counts_as_life() {
    let mut o = O::drained();
    o.hears(S, heartbeat(1));
    let _ = o.take();
    o.passes_with_drips_of(S, 30.s());
    o.quiet();
    o.passes(5.s());
    o.expect_among(close(S));
}

/// T2: the silence of a connection that is not the handoff's ends that connection only.
#[test]
fn a_dead_stranger_is_closed_alone() {
    let mut o = O::serving();
    o.opens(T);
    o.hears(T, ack_of(OTHER));
    o.hears(T, heartbeat(1));
    let _ = o.take();
    o.prepares();
    o.passes(5.s());
    o.expect([refused(T, silent("a heartbeat"), "draining"), close(T)]);
    assert_eq!(o.machine.state_name(), "draining");
}

/// T5: what has arrived is handled before a timer that has expired.
#[test]
fn what_has_arrived_comes_before_an_expired_timer() {
    let mut o = O::sealed();
    o.hears(S, heartbeat(1));
    let _ = o.take();
    o.sleeps(DEADLINE);
    o.hears(S, commit());
    o.tick();
    o.expect([take_lock()]);
    o.done(lock_held());
    o.expect([close(S), committed()]);
}

// W7: unexpected messages.

/// W7: whatever has no place closes its connection and nothing else: with a handoff under way on
/// another connection, that one goes on as if nothing had been said.
#[test]
fn an_unexpected_message_closes_only_its_own_connection() {
    for stage in STAGES {
        for message in all_messages(OTHER) {
            let name = handoff_core::short_name(&message);
            // A stranger that was greeted, one that has sent HelloAck, one that waits for Hello.
            let mut greeted = with_a_stranger(stage);
            greeted.hears(T, message.clone());
            let mut acked = with_a_stranger(stage);
            acked.hears(T, ack_of(OTHER));
            acked.hears(T, message.clone());
            let welcome: &[Output] = match name {
                "Heartbeat" => &[answer(T, 5)],
                _ => &[],
            };
            match name {
                "HelloAck" => greeted.quiet(),
                _ => expect_only_a_refusal(&mut greeted, name),
            }
            match name {
                // What ends a handoff that never began ends nothing.
                "Heartbeat" | "Abort" | "ResumeAfterAbort" => acked.expect(welcome.to_vec()),
                _ => expect_only_a_refusal(&mut acked, name),
            }
            for mut o in [greeted, acked] {
                assert_eq!(o.machine.state_name(), stage);
                o.hears(S, heartbeat(9));
                o.expect([answer(S, 9)]);
            }
        }
    }
    for message in all_messages(OTHER) {
        let name = handoff_core::short_name(&message);
        let mut o = O::sealing();
        o.opens(T);
        o.hears(T, message);
        o.expect([refused(T, unexpected(name, "sealing"), "sealing"), close(T)]);
        o.done(sealed(&[4, 9]));
        o.done(released());
        o.expect_among(send(S, seal_complete(&[4, 9])));
    }
}

#[track_caller]
fn expect_only_a_refusal(o: &mut O, name: &str) {
    let outputs = o.take();
    let refused =
        |output: &Output| matches!(output, Output::Event(Event::PeerRefused { conn: T, .. }));
    assert!(outputs.len() == 2 && refused(&outputs[0]), "{name}: {outputs:?}");
    assert_eq!(outputs[1], close(T), "{name}");
}

/// W7, R2, R7: on the handoff's own connection it is a close: the handoff is off, and the machine takes
/// back what it gave up.
#[test]
fn an_unexpected_message_on_the_handoffs_connection_ends_the_handoff() {
    type Stage = fn() -> O;
    let expected: [(Stage, &[&str]); 6] = [
        (O::draining, &["Heartbeat", "Abort", "ResumeAfterAbort"]),
        (O::drained, &["Heartbeat", "Abort", "ResumeAfterAbort", "SealRequest"]),
        (O::sealing, &["Heartbeat", "Abort", "ResumeAfterAbort"]),
        (O::releasing, &["Heartbeat", "Abort", "ResumeAfterAbort"]),
        (O::sealed, &["Heartbeat", "Abort", "ResumeAfterAbort", "Commit"]),
        (O::resuming, &["Heartbeat", "Abort", "ResumeAfterAbort"]),
    ];
    for (stage, welcome) in expected {
        for message in all_messages(ID) {
            let name = handoff_core::short_name(&message);
            let mut o = stage();
            let state = o.machine.state_name();
            o.hears(S, message);
            let outputs = o.take();
            let refusal = refused(S, unexpected(name, state), state);
            if welcome.contains(&name) {
                assert!(!outputs.contains(&refusal), "{name} while {state}");
                continue;
            }
            assert_eq!(outputs[..2], [refusal, close(S)], "{name} while {state}");
            // It ends up serving, once what runs has returned and the lock is back.
            match state {
                "draining" => o.done(drain_ok()),
                "sealing" => o.done(sealed(&[])),
                "releasing the lock" => o.done(released()),
                _ => {}
            }
            o.done(locked());
            o.done(claimed());
            o.done(resumed());
            assert_eq!(o.machine.state_name(), "serving", "{name} while {state}");
        }
    }
}

/// C1: every message that has an id must carry the connection's.
#[test]
fn a_wrong_id_closes_the_connection() {
    for message in all_messages(OTHER) {
        let Some(got) = message.handoff_id() else { continue };
        let name = handoff_core::short_name(&message);
        if name == "PrepareHandoff" {
            continue;
        }
        let mut o = O::sealed();
        o.hears(S, message);
        let wrong = Violation::WrongId { message: name, got, expected: ID };
        o.expect([refused(S, wrong, "sealed"), close(S), off(Off::SupervisorGone), take_lock()]);
    }
}

/// W7: what a connection says before it was reported open, or after it was closed, is nothing.
#[test]
fn unknown_connections_are_ignored() {
    let mut o = O::sealed();
    for message in all_messages(ID) {
        o.hears(T, message);
    }
    o.hears_a_byte(T);
    o.loses(T);
    o.quiet();
    assert_eq!(o.machine.state_name(), "sealed");
}

/// A message of an earlier handoff's connection does not touch the one that is active.
#[test]
fn the_connection_of_an_earlier_handoff_has_no_say() {
    let mut o = O::resuming();
    o.resumes();
    let _ = o.take();
    o.opens(T);
    o.hears(T, ack_of(OTHER));
    o.hears(T, prepare_of(OTHER, DEADLINE, GRACE));
    let _ = o.take();
    o.hears(S, abort());
    o.hears(S, resume());
    o.quiet();
    o.loses(S);
    o.quiet();
    assert_eq!(o.machine.state_name(), "draining");
}

// Stopping.

/// R15: told to stop it drains, seals, lets the lock go, and ends with 0; nobody is greeted meanwhile.
#[test]
fn a_stop_drains_and_seals() {
    let mut o = O::serving();
    o.connects(S);
    o.asks(Command::Stop);
    o.expect([drain(30.s()), close(S)]);
    o.opens(T);
    o.quiet();
    o.done(drain_ok());
    o.expect([hook(Hook::Seal)]);
    o.done(sealed(&[]));
    o.expect([release_lock()]);
    o.done(released());
    o.expect([close(T), ended(Ended::Stopped)]);
    assert_eq!(Ended::Stopped.exit_code(), 0);
}

/// R7: a seal that fails on the way out keeps the lock until the process is gone.
#[test]
fn a_failed_seal_on_the_way_out_keeps_the_lock() {
    let mut o = O::serving();
    o.asks(Command::Stop);
    o.done(drain_err());
    o.done(seal_err());
    o.expect([
        drain(30.s()),
        hook_failed("drain", "stuck writes"),
        hook(Hook::Seal),
        hook_failed("seal", "disk full"),
        ended(Ended::Stopped),
    ]);
}

/// R7: a stop during a handoff ends that first, and stops when it serves again.
#[test]
fn a_stop_during_a_handoff_waits_for_the_resume() {
    let mut o = O::draining();
    o.asks(Command::Stop);
    o.expect([Output::Cancel, off(Off::Stopped)]);
    o.done(drain_ok());
    o.expect([hook(Hook::Resume), claim_path()]);
    o.done(claimed());
    o.done(resumed());
    o.expect([resumed_event(), drain(30.s()), close(S)]);
}

/// R8, R11: nor is the lock let go on the way out while the path is being claimed.
#[test]
fn a_stop_waits_for_a_claim_of_the_path() {
    let mut o = claiming_while_serving();
    o.asks(Command::Stop);
    let mut early = o.clone();
    early.done(drain_ok());
    early.done(sealed(&[]));
    early.expect_without(|output| *output == release_lock());
    o.done(claimed());
    o.done(drain_ok());
    o.done(sealed(&[]));
    o.expect_among(release_lock());
    o.done(released());
    o.expect_among(ended(Ended::Stopped));
}

/// A stop without the lock: there is nothing to give back, whether or not the lock is being tried.
#[test]
fn a_stop_without_the_lock_ends_it() {
    let mut o = O::sealed();
    o.asks(Command::Stop);
    o.expect([close(S), ended(Ended::Stopped)]);
    let mut o = O::aborted();
    o.done(lock_held());
    let _ = o.take();
    o.asks(Command::Stop);
    o.expect([close(S), ended(Ended::Stopped)]);
    let mut o = O::aborted();
    o.asks(Command::Stop);
    o.quiet();
    o.done(lock_held());
    o.expect_among(ended(Ended::Stopped));
}

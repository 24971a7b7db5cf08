//! S, as transcripts: what it hears, what it does, and when.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod common;

use common::supervisor::*;
use common::*;
use handoff_core::supervisor::{
    Command, Effect, Entry, Event, LockState, Outcome, Output, Peer, Phase, Reason, Report, Spec,
    Step, Verdict,
};
use handoff_core::wire::VersionMismatch;
use handoff_core::{Capabilities, Credentials, Machine, Message, Side, Violation, short_name};

type S = TestSupervisor;

fn setup() -> Setup {
    Setup::default()
}

/// Everything from the journal's Prepare to Ready's check: where the incumbent knows of the handoff.
fn prepared_stages(setup: &Setup) -> Vec<(&'static str, S)> {
    vec![
        ("draining", setup.draining()),
        ("sealing", setup.sealing()),
        ("opening", setup.opening()),
        ("verifying", setup.verifying()),
    ]
}

// The good path.

/// C1, C2, C3, R6, R9, R16, X1: probe, spawn, connect, both Hellos, Prepare, Drained, SealRequest,
/// SealComplete, Begin, Ready, Commit to N and then to O, and Committed once the path leads to N.
#[test]
fn the_good_path() {
    let setup = setup();
    let mut s = setup.idle();
    s.asks(Command::Handoff { id: ID, spec: SPEC });
    let warm = Entry { incumbent: None, successor: None, ..entry(Step::Warm) };
    s.expect([effect(Effect::Journal(warm)), phase(Phase::Warm), probe()]);
    s.done(written());
    s.done(answered(O_PID));
    s.expect([spawn()]);
    s.done(Outcome::Spawned(Ok(N_PID)));
    s.opens_as(N, Credentials { descends: true, ..cred(N_PID) });
    s.expect([journal(Step::Warm), effect(Effect::Connect)]);
    s.done(written());
    s.opens_as(O, cred(O_PID));
    s.done(Outcome::Connected(Ok(())));
    s.quiet();
    s.hears(O, hello_of(Side::Incumbent, O_PID, Capabilities::OURS));
    s.expect([send(O, ack()), journal(Step::Prepare)]);
    s.done(written());
    s.expect([journal(Step::Seal)]);
    s.done(written());
    s.quiet();
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    s.expect([
        send(N, ack()),
        phase(Phase::Drain),
        send(O, prepare(SPEC.deadline, SPEC.drain_grace)),
    ]);
    s.hears(O, drained());
    s.expect([drained_event(), phase(Phase::Seal), send(O, seal_request())]);
    s.hears(O, seal_progress(1));
    s.expect([event(Event::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: 9 })]);
    s.hears(O, seal_complete(&[4, 9]));
    s.expect([send(N, begin()), phase(Phase::Open), journal(Step::Begin)]);
    s.done(written());
    s.hears(N, ready(true, &[4, 9]));
    s.expect([check_ready()]);
    s.done(held_by(N_PID));
    s.expect([
        phase(Phase::Commit),
        send(N, commit()),
        send(O, commit()),
        journal(Step::Commit),
        probe(),
    ]);
    s.done(written());
    s.loses(O);
    s.done(exited(O_PID));
    s.loses(N);
    s.quiet();
    s.done(nobody());
    s.expect([probe()]);
    s.done(answered(N_PID));
    s.expect([
        journal(Step::Idle),
        event(Event::Finished(Report {
            id: ID,
            verdict: Verdict::Committed,
            trouble: None,
            serving: Some(N_PID),
            ready: Some(ready_of(true, &[4, 9])),
            stuck: None,
        })),
    ]);
    assert_eq!(s.machine.deadline(), None);
}

/// X1: a successor that does not ask for it is not told of the commit.
#[test]
fn a_successor_without_x1_is_not_told_of_the_commit() {
    let mut s = Setup { n: LEGACY, ..setup() }.verifying();
    s.done(held_by(N_PID));
    s.expect([phase(Phase::Commit), send(O, commit()), journal(Step::Commit), probe()]);
}

/// R4: one handoff at a time; a second request is refused and changes nothing.
#[test]
fn a_second_handoff_is_refused_while_one_is_under_way() {
    for mut s in [setup().probing(), setup().draining(), setup().committing()] {
        let before = s.machine.clone();
        s.asks(Command::Handoff { id: OTHER, spec: SPEC });
        s.asks(Command::Start { own: vec![] });
        s.expect([event(Event::Busy), event(Event::Busy)]);
        assert_eq!(s.machine, before);
    }
}

/// R16: the next handoff can start at once.
#[test]
fn the_next_handoff_starts_at_once() {
    let mut s = setup().committing();
    s.done(answered(N_PID));
    assert_eq!(s.report().verdict, Verdict::Committed);
    s.asks(Command::Handoff { id: OTHER, spec: SPEC });
    s.expect_among(probe());
    s.done(answered(N_PID));
    // What the first one wrote last, and what the second one writes first.
    s.done(written());
    s.done(written());
    s.expect_among(spawn());
}

// C1, C3: who speaks.

/// C3: nobody answers on the control path: refused, and no process was started.
#[test]
fn without_an_incumbent_no_successor_is_started() {
    let mut s = setup().probing();
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Refused, Some(Reason::IncumbentLost), None));
}

/// R13: a binary that does not start: refused, with the reason, and the incumbent was not touched.
#[test]
fn a_binary_that_does_not_start_is_refused() {
    let mut s = setup().spawning();
    s.done(Outcome::Spawned(Err("no such file".into())));
    let report = s.report();
    assert_eq!(report.verdict, Verdict::Refused);
    assert_eq!(trouble_of(&report), Some(Reason::SuccessorExecFailed));
    assert_eq!(report.trouble.unwrap().detail, "no such file");
}

/// C3: a successor that ends or closes before its Hello: the incumbent is not touched.
#[test]
fn a_successor_that_ends_before_hello_leaves_the_incumbent_alone() {
    for gone in [0, 1, 2] {
        let mut s = setup().warming();
        match gone {
            0 => s.done(exited(N_PID)),
            1 => s.loses(N),
            _ => {
                s.loses(N);
                s.done(exited(N_PID));
            }
        }
        s.expect([phase(Phase::Rollback), journal(Step::Abort), reap(), term(N_PID)]);
        s.done(written());
        s.done(reaped());
        let expected = (Verdict::Refused, Some(Reason::SuccessorExited), Some(O_PID));
        assert_eq!(s.verdict(), expected);
    }
}

/// C3: Hello within the budget, 40 s here.
#[test]
fn a_successor_has_its_budget_for_hello() {
    let mut s = setup().warming();
    s.passes_with_drips_of(N, 39.s());
    s.passes(999.ms());
    s.quiet();
    s.passes(1.ms());
    s.expect([phase(Phase::Rollback), journal(Step::Abort), reap(), term(N_PID)]);
    s.done(written());
    s.done(reaped());
    assert_eq!(s.verdict().1, Some(Reason::SuccessorHelloTimeout));
}

/// C3, R4: a dry run ends a successor that has said Hello; the incumbent hears nothing of it.
#[test]
fn a_dry_run_ends_with_hello() {
    let dry_run = || {
        let mut s = setup().idle();
        s.asks(Command::Handoff { id: ID, spec: Spec { dry_run: true, ..SPEC } });
        s.done(written());
        s.done(answered(O_PID));
        s.done(Outcome::Spawned(Ok(N_PID)));
        s.opens_as(N, cred(N_PID));
        s.done(written());
        s.take();
        s
    };
    let mut s = dry_run();
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    let reason = "it was a dry run".to_string();
    let abort = Message::Abort { handoff_id: ID, reason };
    s.expect([send(N, ack()), send(N, abort), journal(Step::Abort), reap(), term(N_PID)]);
    s.done(written());
    s.loses(N);
    s.done(exited(N_PID));
    s.quiet();
    s.done(reaped());
    assert_eq!(s.verdict(), (Verdict::DryRun, None, Some(O_PID)));

    // One that says no Hello fails it, as it would a handoff.
    let mut s = dry_run();
    s.done(exited(N_PID));
    s.expect([phase(Phase::Rollback), journal(Step::Abort), reap(), term(N_PID)]);
    s.done(written());
    s.done(reaped());
    assert_eq!(s.verdict(), (Verdict::Refused, Some(Reason::SuccessorExited), Some(O_PID)));

    // One that is aborted while it ends was aborted.
    let mut s = dry_run();
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    s.asks(Command::Abort);
    s.take();
    s.done(written());
    s.done(reaped());
    assert_eq!(s.verdict(), (Verdict::Refused, Some(Reason::OperatorAbort), Some(O_PID)));

    // That the incumbent has ended meanwhile is what there is to tell.
    let mut s = dry_run();
    s.done(exited(O_PID));
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    s.take();
    s.done(written());
    s.done(reaped());
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::IncumbentLost), None));
}

/// C1: the role, the pid and the uid of a Hello are checked against the kernel's.
#[test]
fn a_hello_is_checked() {
    let hello = |side, pid| hello_of(side, pid, Capabilities::OURS);
    let violation_of = |message: Message, cred: Credentials, config: &Setup| {
        let mut s = config.spawning();
        s.done(Outcome::Spawned(Ok(N_PID)));
        s.opens_as(N, cred);
        let _ = s.take();
        s.hears(N, message);
        s.take().into_iter().find_map(|output| match output {
            Output::Event(Event::PeerRefused { peer: N, violation, .. }) => Some(violation),
            _ => None,
        })
    };
    let ours = Credentials { descends: true, ..cred(N_PID) };
    let ok = |message, cred| violation_of(message, cred, &setup());
    assert_eq!(ok(hello(Side::Successor, N_PID), ours), None);
    let wrong = Violation::WrongSide { announced: Side::Incumbent };
    assert_eq!(ok(hello(Side::Incumbent, N_PID), ours), Some(wrong));
    let wrong = Violation::WrongPid { announced: X_PID, actual: N_PID };
    assert_eq!(ok(hello(Side::Successor, X_PID), ours), Some(wrong));
    let other = Credentials { uid: 5, ..ours };
    let wrong = Violation::WrongUser { uid: 5 };
    assert_eq!(ok(hello(Side::Successor, N_PID), other), Some(wrong));
    let root = Credentials { uid: 0, ..ours };
    assert_eq!(ok(hello(Side::Successor, N_PID), root), None);
    let wrong = Violation::Unexpected { message: "Ready", state: "awaiting the successor's Hello" };
    assert_eq!(ok(ready(true, &[]), ours), Some(wrong));

    // C1: a descendant only where wrappers are allowed, another process never.
    let child = Credentials { descends: true, ..cred(X_PID) };
    let stranger = Credentials { descends: false, ..cred(X_PID) };
    let wrappers = Setup::with(|config| config.allow_wrappers = true);
    let wrong = Some(Violation::NotOurs { actual: X_PID, started: N_PID });
    assert_eq!(ok(hello(Side::Successor, X_PID), child), wrong);
    assert_eq!(violation_of(hello(Side::Successor, X_PID), child, &wrappers), None);
    assert_eq!(violation_of(hello(Side::Successor, X_PID), stranger, &wrappers), wrong);
    assert_eq!(violation_of(hello(Side::Successor, N_PID), ours, &wrappers), None);
}

/// C1, R12: so is the incumbent's.
#[test]
fn the_incumbents_hello_is_checked() {
    for (message, cred, wrong) in [
        (
            hello_of(Side::Successor, O_PID, Capabilities::OURS),
            cred(O_PID),
            Violation::WrongSide { announced: Side::Successor },
        ),
        (
            hello_of(Side::Incumbent, O_PID, Capabilities::OURS),
            cred(X_PID),
            Violation::WrongPid { announced: O_PID, actual: X_PID },
        ),
        (
            hello_of(Side::Incumbent, O_PID, Capabilities::OURS),
            Credentials { uid: 5, ..cred(O_PID) },
            Violation::WrongUser { uid: 5 },
        ),
    ] {
        let mut s = setup().connecting();
        s.opens_as(O, cred);
        s.done(Outcome::Connected(Ok(())));
        s.hears(O, message);
        s.expect([refused(O, wrong, "awaiting the incumbent's Hello"), close(O), probe()]);
        s.done(answered(O_PID));
        s.done(written());
        s.done(reaped());
        let expected = (Verdict::Refused, Some(Reason::ProtocolViolation), Some(O_PID));
        assert_eq!(s.verdict(), expected);
    }
}

/// C3: what becomes of the connection to the incumbent while the successor warms up is no failure: where it
/// is not there when it is needed, it is made again.
#[test]
fn a_connection_that_ends_during_the_warm_up_is_made_again() {
    let hung_up = || {
        let mut s = setup().greeted();
        s.loses(O);
        s.quiet();
        s
    };
    let refused = || {
        let mut s = setup().warming();
        s.done(Outcome::Connected(Err("refused".into())));
        s.quiet();
        s
    };
    let silent = || {
        let mut s = setup().greeted();
        s.passes(5.s());
        s.expect_among(close(O));
        s
    };
    let confused = || {
        let mut s = setup().greeted();
        s.hears(O, drained());
        s.expect_among(close(O));
        s
    };
    for mut s in [hung_up(), refused(), silent(), confused()] {
        s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
        s.expect([send(N, ack()), effect(Effect::Connect)]);
        s.opens_as(O, cred(O_PID));
        s.done(Outcome::Connected(Ok(())));
        s.hears(O, hello_of(Side::Incumbent, O_PID, Capabilities::OURS));
        s.expect_among(send(O, ack()));
        // One of the first connection's may be under way; its own are awaited.
        let asked = |s: &mut S| s.take().into_iter().filter(is_journal).collect::<Vec<_>>();
        let mut entries = Vec::new();
        while entries.last() != Some(&journal(Step::Seal)) {
            s.expect_without(|output| matches!(output, Output::Send { to: Peer::Incumbent, .. }));
            s.done(written());
            entries.append(&mut asked(&mut s));
        }
        s.done(written());
        s.expect_among(send(O, prepare(SPEC.deadline, SPEC.drain_grace)));
        // And nothing is held against it.
        s.asks(Command::Abort);
        s.answers_alive();
        s.expect_among(term(N_PID));
    }
}

/// C3, R5: nor is its end: another may have taken its place.
#[test]
fn an_incumbent_that_ends_during_the_warm_up_is_looked_for() {
    let mut s = setup().greeted();
    s.done(exited(O_PID));
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    s.expect([send(N, ack()), close(O), effect(Effect::Connect)]);
    s.done(Outcome::Connected(Err("refused".into())));
    s.expect([phase(Phase::Promote), check_lock()]);

    // Somebody listens, and says nothing: a child that it left behind has the socket.
    let mut s = setup().greeted();
    s.done(exited(O_PID));
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    s.opens_as(O, cred(X_PID));
    s.done(Outcome::Connected(Ok(())));
    s.passes_with_beats_of(N, 2.s());
    s.expect_without(|output| *output == phase(Phase::Promote));
    s.passes(1.s());
    s.expect_among(phase(Phase::Promote));
}

/// C3, R5: one that hung up or fell silent then is waited for as any other.
#[test]
fn a_connection_that_ended_during_the_warm_up_is_not_held_against_the_incumbent() {
    let hung_up = |s: &mut S| s.loses(O);
    let silent = |s: &mut S| s.passes(5.s());
    for ends in [&hung_up as &dyn Fn(&mut S), &silent] {
        let mut s = setup().greeted();
        ends(&mut s);
        s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
        s.done(Outcome::Connected(Err("no descriptor".into())));
        s.expect_among(probe());
        s.done(nobody());
        s.expect_without(|output| *output == phase(Phase::Promote));
        s.passes_with_beats_of(N, 2.s());
        s.expect_among(phase(Phase::Promote));
        s.passes_with_beats_of(N, 9.s());
        s.expect_without(is_signal);
        s.passes_with_beats_of(N, 1.s());
        s.expect_among(term(O_PID));
    }
}

/// C3, T2: a supervisor that was stopped for longer than the incumbent waits for it connects anew: that one has
/// hung up, which is still to be read.
#[test]
fn a_supervisor_that_was_stopped_during_the_warm_up_connects_anew() {
    let mut s = setup().greeted();
    s.done(written());
    s.done(written());
    s.take();
    s.now = s.now + 12.s();
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    s.expect([send(N, ack()), close(O), effect(Effect::Connect)]);
}

/// C3, C6: an incumbent without X2 may serve one connection at a time: it is let go until it is needed.
#[test]
fn a_legacy_incumbent_is_not_held_during_the_warm_up() {
    let mut s = Setup::legacy_o().warming();
    s.opens_as(O, cred(O_PID));
    s.done(Outcome::Connected(Ok(())));
    s.hears(O, hello_of(Side::Incumbent, O_PID, LEGACY));
    s.expect([send(O, ack()), close(O)]);
    s.passes(9.s());
    s.quiet();
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    s.expect([send(N, ack()), effect(Effect::Connect)]);
}

/// C3, T1: the connection is kept alive as long as the warm-up takes, and let go with it.
#[test]
fn the_incumbent_is_heartbeaten_during_the_warm_up() {
    let mut s = setup().greeted();
    s.done(written());
    s.expect([journal(Step::Seal)]);
    s.done(written());
    for _ in 0..30 {
        s.passes(1.s());
        s.hears(O, heartbeat(7));
    }
    assert_eq!(s.beats_to(O).len(), 30);
    s.done(exited(N_PID));
    s.done(reaped());
    let outputs = s.take();
    assert!(outputs.contains(&close(O)));
    let abort = |output: &Output| matches!(output, Output::Send { to: Peer::Incumbent, .. });
    assert!(!outputs.iter().any(abort), "it is left alone");
}

/// R9: a journal that fails during the warm-up stops the handoff; the incumbent is left alone.
#[test]
fn a_journal_that_fails_during_the_warm_up_stops_the_handoff() {
    for entries in [0, 1] {
        let mut s = setup().greeted();
        for _ in 0..entries {
            s.done(written());
        }
        s.done(unwritten());
        s.expect_among(term(N_PID));
        s.done(written());
        s.done(reaped());
        let expected = (Verdict::Refused, Some(Reason::IoError), Some(O_PID));
        assert_eq!(s.verdict(), expected);
    }
}

/// W4: no version in common: refused, and the error carries the four numbers.
#[test]
fn without_a_common_version_it_is_refused() {
    let mut s = Setup::with(|config| (config.proto_min, config.proto_max) = (3, 4)).warming();
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    let mismatch = VersionMismatch { our_min: 3, our_max: 4, their_min: 1, their_max: 1 };
    s.expect_among(refused(N, Violation::Versions(mismatch), "awaiting the successor's Hello"));
    s.done(written());
    s.done(reaped());
    assert_eq!(s.verdict().1, Some(Reason::VersionMismatch));
}

/// C1: the same fresh id goes to both, and every message that has an id must carry it.
#[test]
fn a_wrong_id_closes_the_connection() {
    for message in all_messages(OTHER) {
        let Some(got) = message.handoff_id() else { continue };
        let name = short_name(&message);
        for peer in [O, N] {
            let mut s = setup().sealing();
            s.hears(peer, message.clone());
            let wrong = Violation::WrongId { message: name, got, expected: ID };
            let outputs = s.take();
            assert_eq!(outputs[0], refused(peer, wrong, "awaiting SealComplete"));
            assert_eq!(outputs[1], close(peer));
        }
    }
}

/// C3: the incumbent cannot be connected to, or says nothing for 3 s: it is looked for (R5), and where
/// it answers the successor is ended.
#[test]
fn an_incumbent_that_does_not_say_hello_is_probed() {
    let mut s = setup().connecting();
    s.done(Outcome::Connected(Err("refused".into())));
    s.expect([probe()]);
    s.done(answered(O_PID));
    s.expect_among(term(N_PID));
    s.done(written());
    s.done(reaped());
    let expected = (Verdict::Refused, Some(Reason::IncumbentLost), Some(O_PID));
    assert_eq!(s.verdict(), expected);

    let mut s = setup().connected();
    s.passes_with_beats_of(N, 2.s());
    s.passes(999.ms());
    s.quiet();
    s.passes(1.ms());
    s.expect_among(probe());
}

/// C3: from Hello on the successor is watched: its end before Begin touches the incumbent no further.
#[test]
fn a_successor_that_ends_before_begin_is_rolled_back() {
    for (mut s, state) in [(setup().draining(), "draining"), (setup().sealing(), "sealing")] {
        s.done(exited(N_PID));
        s.expect([
            phase(Phase::Rollback),
            send(N, abort_saying("the successor ended: signal 9")),
            send(O, abort_saying("the successor ended: signal 9")),
            journal(Step::Abort),
            reap(),
            term(N_PID),
        ]);
        // What the incumbent said meanwhile leads to nothing.
        s.hears(O, if state == "draining" { drained() } else { seal_complete(&[1]) });
        s.expect_without(|output| matches!(output, Output::Send { .. }));
        s.done(written());
        s.done(reaped());
        let stamp = s.asked();
        s.hears(O, heartbeat(stamp));
        let expected = (Verdict::RolledBack, Some(Reason::SuccessorExited), Some(O_PID));
        assert_eq!(s.verdict(), expected);
    }
}

/// R3, R5: one that closes between Begin and Ready goes on by itself: it is ended where the incumbent is
/// there.
#[test]
fn a_successor_that_closes_before_ready_is_rolled_back() {
    let mut s = setup().opening();
    s.loses(N);
    s.answers_alive();
    s.expect_among(term(N_PID));
    s.done(written());
    s.done(reaped());
    s.answers_alive();
    let expected = (Verdict::RolledBack, Some(Reason::SuccessorExited), Some(O_PID));
    assert_eq!(s.verdict(), expected);
}

fn abort_saying(reason: &str) -> Message {
    Message::Abort { handoff_id: ID, reason: reason.into() }
}

// R4: the rollback.

/// R4: ResumeAfterAbort is sent once, only when every process of the successor's is gone; behind it goes
/// a Heartbeat, and its answer, and only that one, means that the incumbent has resumed.
#[test]
fn the_incumbent_is_resumed_once_after_the_successor_is_reaped() {
    let mut s = setup().ending();
    s.done(exited(N_PID));
    s.loses(N);
    s.quiet();
    s.done(reaped());
    let outputs = s.take();
    assert_eq!(outputs[0], send(O, resume()));
    let Output::Send { to: O, message: Message::Heartbeat { ts_ms } } = outputs[1] else {
        panic!("it is asked: {outputs:?}")
    };
    assert_eq!(outputs.len(), 2);
    for other in [0, 7, ts_ms - 1, ts_ms + 1] {
        s.hears(O, heartbeat(other));
    }
    s.hears(N, heartbeat(ts_ms));
    s.done(reaped());
    s.passes_with_beats_of(O, 9.s());
    s.quiet();
    s.hears(O, heartbeat(ts_ms));
    s.expect([
        close(O),
        journal(Step::Idle),
        event(Event::Finished(Report {
            id: ID,
            verdict: Verdict::RolledBack,
            trouble: Some(handoff_core::supervisor::Trouble {
                reason: Reason::Unhealthy,
                detail: "the successor calls itself unhealthy".into(),
            }),
            serving: Some(O_PID),
            ready: Some(ready_of(false, &[4, 9])),
            stuck: None,
        })),
    ]);
}

/// R4: a late answer to the question before is no answer to this one.
#[test]
fn an_answer_from_before_the_resume_proves_nothing() {
    let mut s = setup().asking();
    s.hears(O, heartbeat(1));
    s.passes(1.s());
    s.quiet();
    let mut s = setup().opening();
    s.hears(N, ready(false, &[]));
    s.done(held_by(N_PID));
    let alive = s.asked();
    s.hears(O, heartbeat(alive));
    s.done(written());
    s.done(reaped());
    let resumed = s.asked();
    assert_ne!(alive, resumed);
    s.hears(O, heartbeat(alive));
    s.quiet();
    s.hears(O, heartbeat(resumed));
    assert_eq!(s.verdict().0, Verdict::RolledBack);
}

/// R4, T4: the incumbent owes one answer, the last. So heartbeats to it repeat what it has been asked and
/// not answered, and an answer to any of them will do.
#[test]
fn heartbeats_repeat_an_open_question() {
    let mut s = setup().opening();
    s.hears(N, ready(false, &[]));
    s.done(held_by(N_PID));
    let alive = s.asked();
    s.questions.clear();
    s.passes(1.s());
    assert_eq!(s.questions, [alive]);
    s.hears(O, heartbeat(alive));
    s.done(written());
    s.done(reaped());
    let resumed = s.asked();
    s.questions.clear();
    s.passes_with_beats_of(O, 2.s());
    assert_eq!(s.questions, [resumed, resumed]);
    s.hears(O, heartbeat(resumed));
    assert_eq!(s.verdict().0, Verdict::RolledBack);
}

/// R4: EOF proves nothing: it probes, and reports what it then knows.
#[test]
fn a_close_instead_of_an_answer_is_probed() {
    let mut s = setup().confirming();
    let _ = s.take();
    s.loses(O);
    s.expect([probe()]);
    s.done(nobody());
    s.quiet();
    s.passes(10.ms());
    s.expect([probe()]);
    s.done(answered(O_PID));
    let expected = (Verdict::RolledBack, Some(Reason::Unhealthy), Some(O_PID));
    assert_eq!(s.verdict(), expected);
}

/// R4: another process that answers is no rollback.
#[test]
fn another_that_answers_is_no_rollback() {
    let mut s = setup().confirming();
    let _ = s.take();
    s.loses(O);
    s.done(answered(X_PID));
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::Unhealthy), Some(X_PID)));
}

/// R4: nor is silence, for 10 s, or the end of the incumbent.
#[test]
fn nobody_that_answers_is_unknown() {
    let mut s = setup().confirming();
    let _ = s.take();
    s.passes_with_beats_of(O, 9.s());
    s.quiet();
    s.passes(1.s());
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::Unhealthy), None));
    let mut s = setup().confirming();
    let _ = s.take();
    s.done(exited(O_PID));
    s.expect([probe()]);
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::Unhealthy), None));
}

/// R4: an answer of one that has ended since proves nothing.
#[test]
fn an_answer_of_one_that_has_ended_is_no_rollback() {
    let mut s = setup().confirming();
    let stamp = s.asked();
    s.done(exited(O_PID));
    s.hears(O, heartbeat(stamp));
    s.loses(O);
    s.expect_without(|output| matches!(output, Output::Event(Event::Finished(_))));
    s.done(nobody());
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::Unhealthy), None));
}

/// R4: nor does the answer of one that was probed while it counted as gone, and has ended since.
#[test]
fn an_answer_to_a_probe_from_before_the_end_is_no_rollback() {
    let mut s = setup().sealing();
    s.asks(Command::Abort);
    s.asked();
    s.passes(2.s());
    s.done(held_by(O_PID));
    s.passes(10.ms());
    s.expect([phase(Phase::Promote), check_lock(), check_lock(), probe()]);
    s.done(exited(O_PID));
    s.done(exited(N_PID));
    s.done(written());
    s.done(reaped());
    let _ = s.take();
    s.done(answered(O_PID));
    s.expect([probe()]);
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::OperatorAbort), None));
}

/// The incumbent has not answered the question with this stamp, and was told to end.
fn told_to_end() -> (S, u64) {
    let mut s = setup().sealing();
    s.asks(Command::Abort);
    let stamp = s.asked();
    s.passes(2.s());
    while !s.take().contains(&term(O_PID)) {
        s.done(held_by(O_PID));
        s.passes(10.ms());
        s.hears(N, heartbeat(7));
        s.hears_a_byte(O);
        s.done(nobody());
        assert!(s.now.since_origin() < 100.s(), "a hung incumbent is asked to end");
    }
    (s, stamp)
}

/// R4, R17: nor does the answer of one that was told to end.
#[test]
fn an_answer_of_one_that_was_told_to_end_is_no_rollback() {
    let (mut s, _) = told_to_end();
    s.loses(O);
    s.done(exited(N_PID));
    s.done(written());
    s.done(reaped());
    s.expect_among(probe());
    s.done(answered(O_PID));
    s.quiet();
    s.passes(10.ms());
    s.expect([probe()]);
    s.done(nobody());
    s.done(exited(O_PID));
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::OperatorAbort), None));
}

/// R4, R17: nor does its word that it has resumed.
#[test]
fn the_word_of_one_that_was_told_to_end_is_no_rollback() {
    let (mut s, _) = told_to_end();
    s.done(exited(N_PID));
    s.done(written());
    s.done(reaped());
    let stamp = s.asked();
    s.hears(O, heartbeat(stamp));
    s.quiet();
    s.loses(O);
    s.expect([probe()]);
    s.done(exited(O_PID));
    s.done(nobody());
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::OperatorAbort), None));
}

/// R5, I5: one that hangs before it has resumed is given up, soon, so that somebody looks who serves (R17);
/// it is not ended, because it may be the last.
#[test]
fn an_incumbent_that_hangs_before_it_has_resumed_is_given_up() {
    let mut s = setup().confirming();
    s.passes(5.s());
    s.expect_among(close(O));
    s.done(nobody());
    s.passes(999.ms());
    s.expect_without(|output| is_signal(output) || matches!(output, Output::Event(_)));
    s.passes(1.ms());
    let (verdict, _, serving) = s.verdict();
    assert_eq!((verdict, serving), (Verdict::Unknown, None));
}

/// R4: no ResumeAfterAbort and no Abort after SealFailed: the incumbent has resumed by itself, which a
/// probe tells.
#[test]
fn after_seal_failed_nothing_more_is_said_to_the_incumbent() {
    let mut s = setup().sealing();
    s.hears(O, seal_failed());
    s.answers_alive();
    let outputs = s.take();
    let said = |output: &Output| matches!(output, Output::Send { to: O, .. });
    assert!(!outputs.iter().any(said), "{outputs:?}");
    assert!(outputs.contains(&term(N_PID)));
    s.done(written());
    s.done(reaped());
    s.expect([close(O), probe()]);
    s.done(answered(O_PID));
    let report = s.report();
    assert_eq!(report.verdict, Verdict::RolledBack);
    let trouble = report.trouble.unwrap();
    assert_eq!(trouble.reason, Reason::SealFailed);
    assert!(trouble.detail.contains("disk full") && trouble.detail.contains("1 of 2"));
}

/// R4: an incumbent without X2 gets no Abort, only the one ResumeAfterAbort, and is probed once its
/// connection is closed.
#[test]
fn a_legacy_incumbent_gets_one_resume_and_a_probe() {
    let setup = Setup::legacy_o();
    let mut s = setup.opening();
    s.hears(N, ready(false, &[]));
    s.done(held_by(N_PID));
    let _ = s.take();
    s.hears(O, heartbeat(1));
    let outputs = s.take();
    let said = |output: &Output| matches!(output, Output::Send { to: O, .. });
    assert!(!outputs.iter().any(said), "{outputs:?}");
    s.done(written());
    s.done(reaped());
    s.expect([send(O, resume()), close(O), probe()]);
    s.done(nobody());
    s.passes(10.ms());
    s.expect([probe()]);
    s.done(answered(O_PID));
    let expected = (Verdict::RolledBack, Some(Reason::Unhealthy), Some(O_PID));
    assert_eq!(s.verdict(), expected);
}

/// R4: Refused where the incumbent closed before Drained and answers a probe.
#[test]
fn an_incumbent_that_closes_before_drained_has_refused() {
    for setup in [setup(), Setup::legacy_o()] {
        let mut s = setup.draining();
        s.loses(O);
        s.expect([probe()]);
        s.done(answered(O_PID));
        let outputs = s.take();
        assert!(outputs.contains(&term(N_PID)));
        s.done(written());
        s.done(reaped());
        s.expect([probe()]);
        s.done(answered(O_PID));
        let expected = (Verdict::Refused, Some(Reason::DrainFailed), Some(O_PID));
        assert_eq!(s.verdict(), expected);
    }
}

/// R4: one that was told to resume before it had drained is rolled back, as it was when it had.
#[test]
fn an_incumbent_that_was_stopped_before_drained_is_rolled_back() {
    let mut s = Setup::legacy_o().draining();
    s.asks(Command::Abort);
    s.asked();
    s.hears(O, heartbeat(1));
    s.done(written());
    s.done(reaped());
    let _ = s.take();
    s.done(answered(O_PID));
    let expected = (Verdict::RolledBack, Some(Reason::OperatorAbort), Some(O_PID));
    assert_eq!(s.verdict(), expected);
}

/// R4: the reason codes are stable.
#[test]
fn reason_codes_are_stable() {
    let codes = [
        (Reason::SuccessorExecFailed, "successor_exec_failed"),
        (Reason::SuccessorExited, "successor_exited"),
        (Reason::SuccessorHelloTimeout, "successor_hello_timeout"),
        (Reason::VersionMismatch, "version_mismatch"),
        (Reason::ProtocolViolation, "protocol_violation"),
        (Reason::DrainTimeout, "drain_timeout"),
        (Reason::DrainFailed, "drain_failed"),
        (Reason::SealFailed, "seal_failed"),
        (Reason::SealTimeout, "seal_timeout"),
        (Reason::ReadyTimeout, "ready_timeout"),
        (Reason::Unhealthy, "unhealthy"),
        (Reason::RevisionRegressed, "revision_regressed"),
        (Reason::IncumbentLost, "incumbent_lost"),
        (Reason::OperatorAbort, "operator_abort"),
        (Reason::IoError, "io_error"),
    ];
    for (reason, code) in codes {
        assert_eq!(reason.code(), code);
    }
}

// R5: the last process that could serve is not ended.

/// R5: at every step after Prepare the incumbent is asked before the successor is ended.
#[test]
fn the_incumbent_is_asked_before_the_successor_is_ended() {
    for (stage, mut s) in prepared_stages(&setup()) {
        s.asks(Command::Abort);
        let outputs = s.take();
        assert!(!outputs.iter().any(is_signal), "{stage}");
        let [Output::Send { to: O, message: Message::Heartbeat { ts_ms } }] = outputs[..] else {
            panic!("asked while {stage}: {outputs:?}")
        };
        // Its heartbeats of its own are no answer, nor are others'.
        s.hears(O, heartbeat(5));
        s.hears(N, heartbeat(ts_ms));
        s.expect_without(is_signal);
        s.hears(O, heartbeat(ts_ms));
        let text = "the operator aborted it";
        s.expect([
            phase(Phase::Rollback),
            send(N, abort_saying(text)),
            send(O, abort_saying(text)),
            journal(Step::Abort),
            reap(),
            term(N_PID),
        ]);
    }
}

/// R5: a successor that is gone need not be spared.
#[test]
fn nobody_is_asked_for_a_successor_that_is_gone() {
    for (stage, mut s) in prepared_stages(&setup()) {
        s.done(exited(N_PID));
        let outputs = s.take();
        assert!(outputs.contains(&reap()), "{stage}: {outputs:?}");
    }
}

/// R5: no answer in 2 s: it counts as gone. The lock is looked at until it is free, then Begin is sent.
#[test]
fn without_an_answer_the_successor_is_promoted_when_the_lock_is_free() {
    let mut s = setup().sealing();
    s.asks(Command::Abort);
    s.asked();
    s.passes(1999.ms());
    s.quiet();
    s.passes(1.ms());
    s.expect([phase(Phase::Promote), check_lock()]);
    for _ in 0..50 {
        s.done(held_by(O_PID));
        s.quiet();
        s.passes(10.ms());
        s.expect([check_lock(), probe()]);
        s.done(nobody());
    }
    s.done(lock_free());
    s.expect([send(N, begin()), phase(Phase::Open), journal(Step::Begin)]);
    s.done(written());
    s.hears(N, ready(true, &[4]));
    s.expect_among(check_ready());
    s.done(held_by(N_PID));
    s.expect_among(send(N, commit()));
    s.done(answered(N_PID));
    s.done(answered(N_PID));
    let expected = (Verdict::Committed, Some(Reason::OperatorAbort), Some(N_PID));
    assert_eq!(s.verdict(), expected);
}

/// R5, I5: a look that takes longer than the pause between two of them counts, and the other one goes on
/// beside it: where it was asked again meanwhile, none would ever come to an end.
#[test]
fn a_look_that_takes_long_is_awaited() {
    let looking = || {
        let mut s = setup().promoting();
        s.done(held_by(O_PID));
        s.passes(10.ms());
        s.expect([check_lock(), probe()]);
        s
    };
    let mut s = looking();
    for _ in 0..50 {
        s.done(nobody());
        s.passes(10.ms());
        s.expect([probe()]);
    }
    s.done(lock_free());
    s.expect_among(send(N, begin()));

    let mut s = looking();
    for _ in 0..50 {
        s.done(held_by(O_PID));
        s.passes(10.ms());
        s.expect([check_lock()]);
    }
    s.done(answered(X_PID));
    s.expect_among(term(N_PID));
}

/// R5: an incumbent that had answered before it ended is gone all the same.
#[test]
fn what_an_incumbent_answered_before_it_ended_ends_nobody() {
    let mut promoting = setup().promoting();
    promoting.done(held_by(X_PID));
    for mut s in [promoting, setup().promoted()] {
        s.passes(10.ms());
        s.expect_among(probe());
        s.done(answered(O_PID));
        s.expect_without(is_signal);
        s.passes(10.ms());
        s.expect([probe()]);
        s.done(answered(X_PID));
        s.expect_among(term(N_PID));
    }
}

/// R5: where the lock cannot be looked at, the successor is left to find out: it takes it or waits.
#[test]
fn where_the_lock_is_not_known_begin_is_sent() {
    let mut s = setup().promoting();
    s.done(lock_unknown());
    s.expect_among(send(N, begin()));
}

/// R5: one that has begun, or is ready, is left to go on.
#[test]
fn without_an_answer_a_successor_that_has_begun_goes_on() {
    let mut s = setup().asking();
    s.passes(2.s());
    s.expect([phase(Phase::Promote)]);
    s.passes_with_beats_of(N, 5.s());
    s.expect_without(is_signal);
    s.done(nobody());
    s.hears(N, ready(true, &[4, 9]));
    s.expect_among(check_ready());
    s.done(held_by(N_PID));
    s.expect_among(send(N, commit()));

    let mut s = setup().verifying();
    s.asks(Command::Abort);
    s.asked();
    s.done(held_by(N_PID));
    s.passes(2.s());
    s.expect([phase(Phase::Promote), check_ready()]);
    s.done(held_by(N_PID));
    s.expect_among(send(N, commit()));
}

/// R5: an answer that comes late, before the lock was free or after Begin: the successor is ended after
/// all.
#[test]
fn a_late_answer_ends_the_successor_after_all() {
    let mut s = setup().sealing();
    s.asks(Command::Abort);
    let stamp = s.asked();
    s.passes(2.s());
    s.done(held_by(O_PID));
    s.expect([phase(Phase::Promote), check_lock()]);
    s.hears(O, heartbeat(stamp));
    s.expect_among(term(N_PID));

    let mut s = setup().opening();
    s.asks(Command::Abort);
    let stamp = s.asked();
    s.passes(2.s());
    s.expect([phase(Phase::Promote)]);
    s.hears(O, heartbeat(stamp));
    s.expect_among(term(N_PID));
}

/// R5: a process other than the successor that answers on the control path is somebody who serves.
#[test]
fn another_that_answers_ends_the_successor() {
    let unanswered = |mut s: S| {
        s.asks(Command::Abort);
        s.passes(2.s());
        s.expect_among(phase(Phase::Promote));
        s
    };
    let mut silent = unanswered(setup().sealing());
    silent.done(held_by(O_PID));
    let mut gone = setup().promoting();
    gone.done(held_by(X_PID));
    let promoting = [(silent, O_PID), (gone, X_PID)];
    let promoted = [(unanswered(setup().opening()), O_PID), (setup().promoted(), X_PID)];
    for (mut s, pid) in promoting.into_iter().chain(promoted) {
        s.passes(10.ms());
        s.expect_among(probe());
        s.done(answered(pid));
        s.expect_among(term(N_PID));
    }
}

/// R5, R3: the successor itself is nobody else: one that took over by itself is not ended for that.
#[test]
fn a_successor_that_answers_is_not_ended_for_it() {
    let mut asking = setup().verifying();
    asking.loses(O);
    asking.asks(Command::Abort);
    asking.expect([probe()]);
    let mut promoting = setup().promoting();
    promoting.done(held_by(X_PID));
    promoting.passes(10.ms());
    promoting.expect([check_lock(), probe()]);
    for mut s in [asking, promoting] {
        s.done(answered(N_PID));
        s.passes(10.ms());
        s.expect([probe()]);
    }
}

/// R5: EOF alone is not "gone": the incumbent is looked for on the control path.
#[test]
fn a_close_is_not_gone() {
    let mut s = setup().sealing();
    s.loses(O);
    s.expect([probe()]);
    s.done(nobody());
    s.quiet();
    s.passes(10.ms());
    s.expect([probe()]);
    s.done(answered(O_PID));
    s.expect_among(term(N_PID));
    let mut s = setup().sealing();
    s.loses(O);
    s.passes(2.s());
    s.expect([probe(), phase(Phase::Promote), check_lock()]);
}

/// R5: its pidfd is: the successor is promoted at once, from every step.
#[test]
fn an_incumbent_that_has_ended_is_gone_at_once() {
    for (mut s, step) in [(setup().draining(), "draining"), (setup().sealing(), "sealing")] {
        s.done(exited(O_PID));
        s.expect([phase(Phase::Promote), check_lock()]);
        s.loses(O);
        s.quiet();
        s.done(lock_free());
        s.expect([send(N, begin()), phase(Phase::Open), journal(Step::Begin)]);
        s.done(written());
        s.hears(N, ready(true, &[]));
        s.expect([check_ready()]);
        s.done(held_by(N_PID));
        s.expect_among(send(N, commit()));
        s.done(answered(N_PID));
        let report = s.report();
        assert_eq!(report.verdict, Verdict::Committed, "{step}");
        assert_eq!(trouble_of(&report), Some(Reason::IncumbentLost), "{step}");
    }
    let mut s = setup().asking();
    s.done(exited(O_PID));
    s.expect([phase(Phase::Promote)]);
    // Nor is it waited for any more.
    s.passes_with_beats_of(N, 3.s());
    s.expect_without(|output| *output == phase(Phase::Promote));
}

/// R5: the outcome names the cause that came first; where that was a close, its end is what the close was.
#[test]
fn the_end_of_the_incumbent_is_told_where_it_is_the_cause() {
    let promoted = |mut s: S| {
        s.hears(N, ready(true, &[]));
        s.done(held_by(N_PID));
        s.done(answered(N_PID));
        let report = s.report();
        assert_eq!(report.verdict, Verdict::Committed);
        let trouble = report.trouble.unwrap();
        (trouble.reason, trouble.detail)
    };
    let ended = (Reason::IncumbentLost, "the incumbent ended: signal 9".to_string());
    let mut s = setup().opening();
    s.done(exited(O_PID));
    assert_eq!(promoted(s), ended);
    let mut s = setup().draining();
    s.loses(O);
    s.done(exited(O_PID));
    s.done(nobody());
    s.done(lock_free());
    s.done(written());
    assert_eq!(promoted(s), ended);
    // On a slow machine it is told late.
    let mut s = setup().draining();
    s.loses(O);
    s.passes(2.s());
    s.expect_among(phase(Phase::Promote));
    s.done(nobody());
    s.done(exited(O_PID));
    s.done(lock_free());
    s.expect_among(check_lock());
    s.done(lock_free());
    s.done(written());
    assert_eq!(promoted(s), ended);
    let mut s = setup().draining();
    s.loses(O);
    s.passes(2.s());
    s.done(nobody());
    s.done(lock_free());
    s.expect_among(send(N, begin()));
    s.done(exited(O_PID));
    s.done(written());
    assert_eq!(promoted(s), ended);
    let mut s = setup().opening();
    s.asks(Command::Abort);
    s.passes(2.s());
    s.done(exited(O_PID));
    assert_eq!(promoted(s), (Reason::OperatorAbort, "the operator aborted it".to_string()));
}

/// R5: who answered the probe may end while the successor warms up, and another take its place: that one
/// is not gone.
#[test]
fn an_incumbent_in_the_place_of_one_that_has_ended_is_not_gone() {
    let mut s = setup().warming();
    s.done(exited(O_PID));
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    s.opens_as(O, cred(X_PID));
    s.done(Outcome::Connected(Ok(())));
    s.hears(O, hello_of(Side::Incumbent, X_PID, Capabilities::OURS));
    s.done(written());
    s.done(written());
    s.expect_among(send(O, prepare(SPEC.deadline, SPEC.drain_grace)));
    s.asks(Command::Abort);
    s.answers_alive();
    s.expect_among(term(N_PID));
}

/// R5: however late: the deadline of the handoff does not bind a successor that is the only one left.
#[test]
fn a_promoted_successor_may_open_for_long() {
    let mut s = setup().promoted();
    for _ in 0..300 {
        s.passes_with_beats_of(N, 1.s());
        s.done(nobody());
    }
    s.expect_without(|output| is_signal(output) || *output == close(N));
    s.hears(N, ready(true, &[]));
    s.expect_among(check_ready());
}

/// R5: the same where the incumbent ended after it had sealed.
#[test]
fn a_successor_whose_incumbent_ended_after_the_seal_may_open_for_long() {
    let mut s = setup().opening();
    s.done(exited(O_PID));
    s.loses(O);
    for _ in 0..300 {
        s.passes_with_beats_of(N, 1.s());
        s.done(nobody());
    }
    s.expect_without(|output| is_signal(output) || *output == close(N));
    s.hears(N, ready(true, &[4, 9]));
    s.expect_among(check_ready());
}

/// R5, R3: a successor that goes on by itself, its connection closed after Begin, is the only one left: it
/// may open for as long as any other (R17: 60 s), not for 10 s.
#[test]
fn a_promoted_successor_whose_connection_closed_may_open_for_long() {
    let mut s = setup().promoted();
    s.loses(N);
    for _ in 0..30 {
        s.passes(1.s());
        s.done(nobody());
    }
    s.expect_without(is_signal);
    s.done(answered(N_PID));
    s.done(answered(N_PID));
    assert_eq!(s.verdict().0, Verdict::Committed);
}

/// R17, R14: but not for ever. One that has closed its connection and answers nobody within 60 s, or has
/// been silent for half a second more than T2 allows, is hung: it is ended, and has a second for that
/// where it is silent, because it hears nothing.
#[test]
fn a_promoted_successor_that_is_hung_is_ended() {
    let mut closed = setup().promoted();
    closed.loses(N);
    closed.passes(59_999.ms());
    let mut silent = setup().promoted();
    silent.passes(5.s());
    silent.expect_among(close(N));
    silent.passes(499.ms());
    for (mut s, grace) in [(closed, 5.s()), (silent, 1.s())] {
        s.expect_without(is_signal);
        s.passes(1.ms());
        s.expect([phase(Phase::Rollback), journal(Step::Abort), reap(), term(N_PID)]);
        s.passes(grace - 1.ms());
        s.quiet();
        s.passes(1.ms());
        s.expect([kill(N_PID)]);
        s.done(reaped());
        s.done(nobody());
        s.done(nobody());
        assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::IncumbentLost), None));
    }
}

/// R8, R17: an incumbent that ends after it has answered the probe, and before that is known, is not taken
/// for one that is there: it is asked for again.
#[test]
fn an_answer_of_one_that_has_exited_meanwhile_is_not_believed() {
    let mut s = setup().idle();
    s.asks(Command::Handoff { id: ID, spec: SPEC });
    s.take();
    s.done(exited(O_PID));
    s.done(answered(O_PID));
    s.expect([probe()]);
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Refused, Some(Reason::IncumbentLost), None));

    let mut s = setup().idle();
    s.asks(Command::Start { own: vec![O_PID] });
    s.expect([probe()]);
    s.done(exited(O_PID));
    s.done(answered(O_PID));
    s.expect([probe()]);
    s.done(nobody());
    s.expect_among(Output::Do(Effect::CheckLock { by: None }));
}

/// R17: whoever holds the lock and is stopped is hung, X2 or not.
#[test]
fn a_stopped_incumbent_without_x2_is_ended_like_a_silent_one() {
    let mut s = setup().sealing();
    s.asks(Command::Abort);
    s.asked();
    s.passes(2.s());
    s.expect([phase(Phase::Promote), check_lock()]);
    s.done(Outcome::LockChecked(LockState::Stopped { pid: O_PID }));
    s.passes(499.ms());
    s.expect_without(is_signal);
    s.passes(1.ms());
    s.expect_among(term(O_PID));
    s.passes(1.s());
    s.expect_among(kill(O_PID));
}

/// R17, I5: an incumbent that hangs with the lock in its hand is gone soon enough: 5 s until it is dead
/// (T2), at most one for a probe (R5), half a second, and a second from SIGTERM to SIGKILL.
#[test]
fn a_silent_incumbent_stands_in_the_way_for_less_than_ten_seconds() {
    let mut s = setup().sealing();
    let start = s.now;
    let mut signals = Vec::new();
    while s.now < start + 10.s() {
        s.passes(100.ms());
        s.hears(N, heartbeat(7));
        if s.now >= start + 6.s() {
            s.done(nobody());
        }
        s.done(held_by(O_PID));
        let signalled = s.take().into_iter().filter(is_signal);
        signals.extend(signalled.map(|output| (s.now.saturating_since(start).as_millis(), output)));
    }
    assert_eq!(signals, [(6_500, term(O_PID)), (7_500, kill(O_PID))]);
}

/// R5, R17: an incumbent that is hung and holds the lock is ended; the successor that then takes over is
/// not ended in its place.
#[test]
fn ending_a_hung_incumbent_does_not_end_its_successor() {
    let mut s = setup().sealing();
    s.asks(Command::Abort);
    s.asked();
    s.passes(2.s());
    s.expect([phase(Phase::Promote), check_lock()]);
    let mut signalled = false;
    for _ in 0..1100 {
        s.done(held_by(O_PID));
        s.passes(10.ms());
        s.hears(N, heartbeat(7));
        s.done(nobody());
        let outputs = s.take();
        assert!(!outputs.contains(&term(N_PID)));
        if outputs.contains(&term(O_PID)) {
            signalled = true;
            break;
        }
    }
    assert!(signalled, "a hung incumbent is asked to end");
    s.done(exited(O_PID));
    s.done(lock_free());
    s.done(lock_free());
    s.expect_among(send(N, begin()));
    s.done(written());
    for _ in 0..30 {
        s.passes_with_beats_of(N, 1.s());
        s.done(nobody());
    }
    s.expect_without(|output| is_signal(output) || *output == close(N));
}

/// R5, R17: once it was told to end, its answer comes too late: it ends, and the successor must not.
#[test]
fn a_hung_incumbent_that_was_told_to_end_answers_too_late() {
    let (mut s, stamp) = told_to_end();
    s.hears(O, heartbeat(stamp));
    s.passes(10.ms());
    s.done(answered(O_PID));
    s.expect_without(|output| *output == term(N_PID));
    // Where it may not be ended, it counts again.
    s.done(Outcome::Signalled(Err("not permitted".into())));
    s.hears(O, heartbeat(stamp));
    s.expect_among(term(N_PID));
}

/// R5: an operator may turn the promotion off: then the successor is ended, and the outcome is unknown.
#[test]
fn without_promotion_the_successor_is_ended() {
    let setup = Setup::with(|config| config.promote = false);
    let mut s = setup.sealing();
    s.done(exited(O_PID));
    s.loses(O);
    s.expect_among(term(N_PID));
    s.done(written());
    s.done(reaped());
    s.expect_among(probe());
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::IncumbentLost), None));
    let mut s = setup.sealing();
    s.asks(Command::Abort);
    s.asked();
    s.passes(2.s());
    s.expect_among(term(N_PID));
}

/// R5: from an incumbent without X2 any frame is the answer, and it has 3 s, since it may heartbeat every
/// 2 s only.
#[test]
fn any_frame_of_a_legacy_incumbent_is_an_answer() {
    for answer in [heartbeat(1), drained(), seal_progress(1), seal_complete(&[1]), seal_failed()] {
        let mut s = Setup::legacy_o().sealing();
        s.asks(Command::Abort);
        s.asked();
        s.hears(O, answer);
        s.expect_among(term(N_PID));
    }
    let mut s = Setup::legacy_o().sealing();
    s.asks(Command::Abort);
    s.asked();
    s.passes(2999.ms());
    s.quiet();
    s.passes(1.ms());
    s.expect_among(phase(Phase::Promote));
    s.hears(O, heartbeat(1));
    s.expect_among(term(N_PID));
}

/// R5, T2: so are bytes of it that complete no frame yet; the successor's are not.
#[test]
fn any_byte_of_a_legacy_incumbent_is_an_answer() {
    let mut s = Setup::legacy_o().sealing();
    s.asks(Command::Abort);
    s.asked();
    s.hears_a_byte(N);
    s.quiet();
    s.hears_a_byte(O);
    s.expect_among(term(N_PID));
}

/// R5: what an incumbent had said before it exited, and is read only now, answers nothing.
#[test]
fn what_a_dead_incumbent_had_said_is_no_answer() {
    let mut s = Setup::legacy_o().sealing();
    s.done(exited(O_PID));
    s.expect_among(phase(Phase::Promote));
    s.hears(O, heartbeat(1));
    s.quiet();
    s.done(lock_free());
    s.expect_among(send(N, begin()));
}

/// R5: a successor that ends while the incumbent is asked, or while it waits for the lock.
#[test]
fn a_successor_that_ends_while_it_might_be_promoted() {
    let mut s = setup().asking();
    s.done(exited(N_PID));
    s.expect_among(reap());
    let mut s = setup().promoting();
    s.done(exited(N_PID));
    s.expect_among(reap());
    s.done(written());
    s.done(held_by(X_PID));
    s.done(reaped());
    s.expect_among(probe());
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::IncumbentLost), None));
}

// R6: what a commit needs.

/// R6: unhealthy, a revision below the sealed one, another number of them: not committed.
#[test]
fn a_bad_ready_is_not_committed() {
    let cases: [(Message, Reason); 5] = [
        (ready(false, &[4, 9]), Reason::Unhealthy),
        (ready(true, &[4, 8]), Reason::RevisionRegressed),
        (ready(true, &[3, 100]), Reason::RevisionRegressed),
        (ready(true, &[4]), Reason::RevisionRegressed),
        (ready(true, &[4, 9, 9]), Reason::RevisionRegressed),
    ];
    for (message, reason) in cases {
        let mut s = setup().opening();
        s.hears(N, message);
        s.done(held_by(N_PID));
        s.answers_alive();
        s.done(written());
        s.done(reaped());
        let outputs = s.take();
        let committed = |output: &Output| {
            matches!(output, Output::Send { message: Message::Commit { .. }, .. })
        };
        assert!(!outputs.iter().any(committed));
        let Some(Output::Send { message: Message::Heartbeat { ts_ms }, .. }) = outputs.last()
        else {
            panic!("{outputs:?}")
        };
        s.hears(O, heartbeat(*ts_ms));
        assert_eq!(s.verdict(), (Verdict::RolledBack, Some(reason), Some(O_PID)));
    }
}

/// R6: revisions at least the sealed ones are committed; a peer that reports none is not checked.
#[test]
fn a_good_ready_is_committed() {
    for revisions in [&[4, 9][..], &[5, 9], &[u64::MAX, u64::MAX], &[]] {
        let mut s = setup().opening();
        s.hears(N, ready(true, revisions));
        s.done(held_by(N_PID));
        s.expect_among(send(O, commit()));
    }
    let mut s = setup().sealing();
    s.hears(O, seal_complete(&[]));
    s.hears(N, ready(true, &[1, 2, 3]));
    s.done(held_by(N_PID));
    s.expect_among(send(O, commit()));
}

/// R6: unless the supervisor is told to be strict.
#[test]
fn a_strict_supervisor_wants_revisions_of_both() {
    let strict = Setup::with(|config| config.strict = true);
    let pairs: [(&[u64], &[u64], bool); 4] =
        [(&[4], &[4], true), (&[], &[4], false), (&[4], &[], false), (&[], &[], false)];
    for (of_o, of_n, good) in pairs {
        let mut s = strict.sealing();
        s.hears(O, seal_complete(of_o));
        s.hears(N, ready(true, of_n));
        s.done(held_by(N_PID));
        let committed = s.take().contains(&send(O, commit()));
        assert_eq!(committed, good, "{of_o:?} {of_n:?}");
    }
}

/// R6: a successor that says it is ready holds the lock, and the incumbent does not.
#[test]
fn the_lock_is_held_at_ready() {
    let verdicts = [
        (lock_free(), false),
        (held_by(O_PID), false),
        (held_by(N_PID), true),
        (lock_unknown(), true),
    ];
    for (lock, good) in verdicts {
        let mut s = setup().verifying();
        s.done(lock.clone());
        let committed = s.take().contains(&send(O, commit()));
        assert_eq!(committed, good, "{lock:?}");
    }
}

/// R6: it commits only while the successor is alive.
#[test]
fn a_successor_that_ended_is_not_committed() {
    let mut s = setup().verifying();
    s.done(exited(N_PID));
    let outputs = s.take();
    assert!(outputs.contains(&reap()), "{outputs:?}");
    s.done(held_by(N_PID));
    s.expect_without(|output| *output == send(O, commit()));
}

/// C3: a successor that closes after Ready is not dead; its pidfd tells.
#[test]
fn a_successor_that_closes_after_ready_is_committed() {
    let mut s = setup().verifying();
    s.loses(N);
    s.quiet();
    s.done(held_by(N_PID));
    s.expect([phase(Phase::Commit), send(O, commit()), journal(Step::Commit), probe()]);
}

/// R6: with the incumbent gone a bad Ready does not end the successor; the outcome says what is wrong.
#[test]
fn without_an_incumbent_a_bad_ready_is_left_to_serve() {
    let cases = [
        (ready(false, &[4, 9]), held_by(N_PID), Reason::Unhealthy),
        (ready(true, &[1, 1]), held_by(N_PID), Reason::RevisionRegressed),
        (ready(true, &[4, 9]), lock_free(), Reason::Unhealthy),
    ];
    for (message, lock, reason) in cases {
        let mut s = setup().opening();
        s.done(exited(O_PID));
        s.loses(O);
        s.hears(N, message);
        s.done(lock);
        s.expect_without(is_signal);
        s.done(answered(N_PID));
        let report = s.report();
        assert_eq!(report.verdict, Verdict::Committed);
        assert_eq!(trouble_of(&report), Some(reason));
        assert!(report.ready.is_some());
    }
}

/// R5, R6: one that is only silent is gone as well; but where it answers after all, before the lock was
/// looked at, a successor that is not fit to serve is ended.
#[test]
fn a_bad_ready_is_left_to_serve_until_the_incumbent_answers() {
    let mut s = setup().opening();
    s.asks(Command::Abort);
    let stamp = s.asked();
    s.passes(2.s());
    s.hears(N, ready(false, &[4, 9]));
    s.expect([phase(Phase::Promote), check_ready()]);
    let mut back = s.clone();
    s.done(held_by(N_PID));
    s.expect_among(send(N, commit()));
    back.hears(O, heartbeat(stamp));
    back.done(held_by(N_PID));
    back.answers_alive();
    back.expect_among(term(N_PID));
}

/// R6: the same where it ended while the lock was looked at.
#[test]
fn an_incumbent_that_ends_while_ready_is_checked_is_gone() {
    let mut s = setup().opening();
    s.hears(N, ready(false, &[4, 9]));
    s.done(exited(O_PID));
    s.loses(O);
    s.done(held_by(N_PID));
    s.expect_without(is_signal);
    s.done(answered(N_PID));
    let expected = (Verdict::Committed, Some(Reason::Unhealthy), Some(N_PID));
    assert_eq!(s.verdict(), expected);
}

// R9: the journal.

/// R9: ahead of each step up to Seal: no process before Warm is written, no Prepare and no SealRequest before
/// both of them are.
#[test]
fn the_journal_is_ahead_of_prepare_and_seal() {
    let mut s = setup().preparing();
    for next in [journal(Step::Seal), send(O, prepare(SPEC.deadline, SPEC.drain_grace))] {
        s.passes_with_beats_of(N, 1.s());
        s.hears(O, heartbeat(1));
        s.quiet();
        s.done(written());
        s.expect_among(next);
    }
    // And nothing is waited for while nobody accepts.
    s.hears(O, drained());
    s.expect([drained_event(), phase(Phase::Seal), send(O, seal_request())]);
}

/// R9: and of the first: a process is started only when the journal says so.
#[test]
fn the_journal_is_ahead_of_the_spawn() {
    let mut s = setup().idle();
    s.asks(Command::Handoff { id: ID, spec: SPEC });
    s.done(answered(O_PID));
    s.expect_without(|output| *output == spawn());
    s.done(written());
    s.expect_among(spawn());
}

/// R9: an entry that is late is only itself: Prepare waits for its own.
#[test]
fn a_late_entry_is_not_the_next_ones() {
    let mut s = setup().spawning();
    s.done(Outcome::Spawned(Ok(N_PID)));
    s.expect([journal(Step::Warm), effect(Effect::Connect)]);
    s.opens_as(N, Credentials { descends: true, ..cred(N_PID) });
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    s.opens_as(O, cred(O_PID));
    s.done(Outcome::Connected(Ok(())));
    s.hears(O, hello_of(Side::Incumbent, O_PID, Capabilities::OURS));
    s.expect([send(N, ack()), send(O, ack())]);
    s.done(written());
    s.expect([journal(Step::Prepare)]);
    s.done(written());
    s.expect([journal(Step::Seal)]);
    s.done(written());
    s.expect_among(send(O, prepare(SPEC.deadline, SPEC.drain_grace)));
}

/// R9: a journal that cannot be written stops a handoff before Seal.
#[test]
fn a_journal_that_fails_before_seal_stops_the_handoff() {
    let mut s = setup().idle();
    s.asks(Command::Handoff { id: ID, spec: SPEC });
    s.done(unwritten());
    s.expect_among(event(Event::JournalFailed("disk full".into())));
    for entries in [0, 1] {
        let mut s = setup().preparing();
        for _ in 0..entries {
            s.done(written());
        }
        s.done(unwritten());
        s.answers_alive();
        s.expect_among(term(N_PID));
        s.done(written());
        s.done(reaped());
        assert_eq!(s.verdict(), (Verdict::Refused, Some(Reason::IoError), Some(O_PID)));
    }
}

/// R9: after Seal it is told, and nothing else.
#[test]
fn a_journal_that_fails_after_seal_is_only_told() {
    let mut s = setup().sealing();
    s.hears(O, seal_complete(&[4, 9]));
    s.done(unwritten());
    s.expect_among(event(Event::JournalFailed("disk full".into())));
    s.hears(N, ready(true, &[4, 9]));
    s.done(held_by(N_PID));
    s.done(unwritten());
    s.done(answered(N_PID));
    assert_eq!(s.verdict().0, Verdict::Committed);
}

/// R9: a journal that stalls after Seal delays nothing: the lock is nobody's.
#[test]
fn a_journal_that_stalls_after_seal_delays_nothing() {
    let mut s = setup().sealing();
    s.hears(O, seal_complete(&[4, 9]));
    s.expect([send(N, begin()), phase(Phase::Open), journal(Step::Begin)]);
    s.hears(N, ready(true, &[4, 9]));
    s.done(held_by(N_PID));
    s.expect_among(send(O, commit()));
    s.done(answered(N_PID));
    assert_eq!(s.verdict().0, Verdict::Committed);
    // One write at a time, and the newest entry next.
    s.done(written());
    s.expect([journal(Step::Idle)]);
}

/// R9: what an earlier handoff had written is no entry of this one.
#[test]
fn a_late_write_of_an_earlier_handoff_is_not_this_ones() {
    let mut s = setup().idle();
    s.asks(Command::Handoff { id: ID, spec: SPEC });
    // Warm of the first handoff is being written when the operator gives it up.
    s.asks(Command::Abort);
    s.done(answered(O_PID));
    assert_eq!(s.verdict().0, Verdict::Refused);
    s.asks(Command::Handoff { id: OTHER, spec: SPEC });
    s.done(answered(O_PID));
    let _ = s.take();
    // Now that write completes; the one that this handoff waits for begins only then.
    s.done(written());
    let warm = Entry { id: OTHER, step: Step::Warm, incumbent: None, successor: None };
    s.expect([effect(Effect::Journal(warm))]);
    s.done(written());
    s.expect([spawn()]);
}

// R14: ending the successor.

/// R14: TERM, 5 s, KILL, 5 s, and then it is reported; without ResumeAfterAbort (R4).
#[test]
fn a_successor_that_will_not_die_is_reported() {
    let mut s = setup().ending();
    s.loses(N);
    s.passes_with_beats_of(O, 4.s());
    s.passes(999.ms());
    s.quiet();
    s.passes(1.ms());
    s.expect([kill(N_PID)]);
    s.passes_with_beats_of(O, 4.s());
    s.passes(999.ms());
    s.quiet();
    s.passes(1.ms());
    s.expect([close(O), probe()]);
    s.done(answered(O_PID));
    let report = s.report();
    assert_eq!((report.stuck, report.serving), (Some(N_PID), Some(O_PID)));
}

/// R14: a signal that could not be sent changes nothing of that.
#[test]
fn a_signal_in_vain_is_followed_by_the_next() {
    let mut s = setup().ending();
    s.loses(N);
    s.done(Outcome::Signalled(Err("not permitted".into())));
    s.passes_with_beats_of(O, 5.s());
    s.expect([kill(N_PID)]);
    s.done(Outcome::Signalled(Err("not permitted".into())));
    s.passes_with_beats_of(O, 5.s());
    s.expect([close(O), probe()]);
    s.done(answered(O_PID));
    assert_eq!(s.report().stuck, Some(N_PID));
}

/// R14: one that ends after TERM, or after KILL, is waited for.
#[test]
fn a_successor_that_ends_is_waited_for() {
    let mut s = setup().ending();
    s.loses(N);
    s.passes_with_beats_of(O, 5.s());
    s.expect([kill(N_PID)]);
    s.passes_with_beats_of(O, 4.s());
    s.done(reaped());
    s.answers_alive();
    assert_eq!(s.report().stuck, None);
}

/// R14: with a wrapper the group of the one that was started is ended, and the child's end counts.
#[test]
fn with_a_wrapper_the_whole_group_is_ended() {
    let setup = Setup::with(|config| config.allow_wrappers = true);
    let mut s = setup.spawning();
    s.done(Outcome::Spawned(Ok(N_PID)));
    s.opens_as(N, Credentials { descends: true, ..cred(X_PID) });
    s.done(written());
    s.hears(N, hello_of(Side::Successor, X_PID, Capabilities::OURS));
    let _ = s.take();
    // The wrapper may leave.
    s.done(exited(N_PID));
    s.quiet();
    s.done(exited(X_PID));
    let outputs = s.take();
    assert!(outputs.contains(&reap()) && outputs.contains(&term(N_PID)), "{outputs:?}");
}

// R16: the control path.

/// R16: Committed when the path leads to the successor; what it leads to before is not news.
#[test]
fn committed_is_reported_when_the_path_leads_to_the_successor() {
    let mut s = setup().committing();
    for pid in [None, Some(O_PID), None] {
        s.done(pid.map_or(nobody(), answered));
        s.quiet();
        s.passes(10.ms());
        s.expect([probe()]);
    }
    s.done(answered(N_PID));
    assert_eq!(s.verdict(), (Verdict::Committed, None, Some(N_PID)));
}

/// R16: after 10 s it is unknown.
#[test]
fn after_four_seconds_without_the_path_it_is_unknown() {
    let mut s = setup().committing();
    s.passes(3999.ms());
    s.quiet();
    s.passes(1.ms());
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::IoError), None));
}

/// R4, R16: a successor that ends after Commit: the incumbent is told, and serves where it has not obeyed.
#[test]
fn a_successor_that_ends_after_commit_is_rolled_back() {
    let mut s = setup().committing();
    s.done(exited(N_PID));
    s.done(reaped());
    s.answers_alive();
    assert_eq!(s.verdict(), (Verdict::RolledBack, Some(Reason::SuccessorExited), Some(O_PID)));
}

/// R16: where the incumbent has ended on that Commit, nobody is known to serve.
#[test]
fn a_successor_that_ends_after_an_obeyed_commit_is_unknown() {
    let mut s = setup().committing();
    s.done(exited(O_PID));
    s.loses(O);
    s.done(exited(N_PID));
    s.done(reaped());
    s.done(nobody());
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Unknown, Some(Reason::SuccessorExited), None));
}

// R17, R10: who serves?

/// R10: it finds out who serves, and adopts it.
#[test]
fn it_adopts_who_serves() {
    let mut s = setup().idle();
    s.asks(Command::Start { own: vec![] });
    s.expect([probe()]);
    s.done(answered(O_PID));
    s.expect([event(Event::Serving { pid: O_PID, started: false })]);
    assert!(s.machine.idle());
    assert_eq!(s.machine.deadline(), None);
}

/// R17: nobody answers and the lock is free: it starts a daemon, and waits until that one answers.
#[test]
fn it_starts_a_daemon_where_nobody_serves() {
    let mut s = setup().idle();
    s.asks(Command::Start { own: vec![] });
    s.done(nobody());
    s.expect([probe(), check_any()]);
    s.done(lock_free());
    s.expect([effect(Effect::Spawn { successor: false })]);
    s.done(Outcome::Spawned(Ok(X_PID)));
    s.passes(10.ms());
    s.expect([probe()]);
    s.done(nobody());
    s.passes(10.ms());
    s.expect([probe()]);
    s.done(answered(X_PID));
    s.expect([event(Event::Serving { pid: X_PID, started: true })]);
}

/// R17: a daemon that does not start, or ends before it serves.
#[test]
fn a_daemon_that_does_not_come_up_is_told() {
    let mut s = setup().idle();
    s.asks(Command::Start { own: vec![] });
    s.done(nobody());
    s.done(lock_free());
    let mut ended = s.clone();
    s.done(Outcome::Spawned(Err("no such file".into())));
    s.expect_among(event(Event::NobodyServes("no such file".into())));
    assert!(s.machine.idle());
    ended.done(Outcome::Spawned(Ok(X_PID)));
    ended.done(exited(X_PID));
    let outputs = ended.take();
    let told = |output: &Output| matches!(output, Output::Event(Event::NobodyServes(_)));
    assert!(outputs.iter().any(told));
    assert!(ended.machine.idle());
}

/// R17: its own child that holds the lock and answers nobody is ended after a grace: 60 s, because it may
/// be opening its data, but 2 s where it is stopped and can do nothing; then a daemon is started.
#[test]
fn its_own_hung_child_is_ended_after_a_grace() {
    let held = |_| held_by(O_PID);
    let stopped = |_| Outcome::LockChecked(LockState::Stopped { pid: O_PID });
    let stops_for_a_second = |at| if (10..11).contains(&at) { stopped(at) } else { held(at) };
    ends_who_holds_the_lock(held, 60, 5);
    ends_who_holds_the_lock(stopped, 2, 1);
    // What it opens takes as long as ever.
    ends_who_holds_the_lock(stops_for_a_second, 71, 5);
    // Told to end, it has the time it was given, whatever becomes of it.
    ends_who_holds_the_lock(|at| if at < 60 { held(at) } else { stopped(at) }, 60, 5);
}

/// It is told to end after so many seconds, and killed so many later; `lock` is what is seen at a second.
fn ends_who_holds_the_lock(lock: impl Fn(u64) -> Outcome, term_at: u64, grace: u64) {
    let mut s = setup().idle();
    s.asks(Command::Start { own: vec![O_PID] });
    let start = s.now;
    let mut signals = Vec::new();
    while s.now < start + 80.s() {
        let at = s.now.saturating_since(start).as_secs();
        s.done(nobody());
        s.done(lock(at));
        let signalled = s.take().into_iter().filter(is_signal);
        signals.extend(signalled.map(|output| (at, output)));
        s.passes(100.ms());
    }
    assert_eq!(signals[..2], [(term_at, term(O_PID)), (term_at + grace, kill(O_PID))]);
    s.done(nobody());
    s.done(lock_free());
    s.expect_among(effect(Effect::Spawn { successor: false }));
}

/// R17: the holder that is not its own is waited for, and told once.
#[test]
fn a_holder_that_is_not_its_own_is_only_waited_for() {
    let mut s = setup().idle();
    s.asks(Command::Start { own: vec![N_PID] });
    s.done(nobody());
    s.done(held_by(X_PID));
    s.expect([probe(), check_any(), event(Event::Waiting { holder: Some(X_PID) })]);
    for _ in 0..1000 {
        s.passes(1.s());
        s.done(nobody());
        s.done(held_by(X_PID));
    }
    s.expect_without(|output| is_signal(output) || matches!(output, Output::Event(_)));
}

/// R17: an operator may give a search up that waits for a stranger; not one that has started a daemon, or is
/// about to: that one serves or ends, and is not left behind unwatched.
#[test]
fn a_search_is_given_up_until_it_starts_a_daemon() {
    let mut s = setup().idle();
    s.asks(Command::Start { own: vec![] });
    s.done(nobody());
    let mut starting = s.clone();
    s.done(held_by(X_PID));
    let _ = s.take();
    s.asks(Command::Abort);
    let text = "the search for who serves was aborted";
    s.expect([event(Event::NobodyServes(text.into()))]);
    assert!(s.machine.idle());
    assert_eq!(s.machine.deadline(), None);
    starting.done(lock_free());
    let _ = starting.take();
    starting.asks(Command::Abort);
    starting.done(Outcome::Spawned(Ok(X_PID)));
    starting.asks(Command::Abort);
    starting.quiet();
    starting.passes(10.ms());
    starting.done(answered(X_PID));
    starting.expect_among(event(Event::Serving { pid: X_PID, started: true }));
}

/// R17: the daemon that was started just now is its own child, too: where it hangs it is ended, and its
/// end is told.
#[test]
fn a_started_daemon_that_hangs_is_ended() {
    let mut s = setup().idle();
    s.asks(Command::Start { own: vec![] });
    s.done(nobody());
    s.done(lock_free());
    s.done(Outcome::Spawned(Ok(X_PID)));
    let _ = s.take();
    for _ in 0..100 {
        s.passes(1.s());
        s.done(nobody());
        s.done(held_by(X_PID));
    }
    s.expect_among(term(X_PID));
}

/// R17: the daemon that is started in place of a hung one has its own time: what was due to the other one
/// is not done to it.
#[test]
fn a_daemon_started_in_place_of_a_hung_one_is_left_alone() {
    let mut s = setup().idle();
    s.asks(Command::Start { own: vec![O_PID] });
    while !s.take().contains(&term(O_PID)) {
        s.done(nobody());
        s.done(held_by(O_PID));
        s.passes(100.ms());
        assert!(s.now.since_origin() < 100.s(), "a hung child is asked to end");
    }
    // It ends, and the lock is free.
    s.done(nobody());
    s.done(lock_free());
    s.expect_among(effect(Effect::Spawn { successor: false }));
    s.done(Outcome::Spawned(Ok(X_PID)));
    for _ in 0..50 {
        s.passes(1.s());
        s.done(nobody());
    }
    s.expect_without(is_signal);
    s.passes(1.s());
    s.done(answered(X_PID));
    s.expect_among(event(Event::Serving { pid: X_PID, started: true }));
}

// T: heartbeats and deadlines.

/// T1: from HelloAck on, every second, to both.
#[test]
fn it_heartbeats_every_second_to_both() {
    let mut s = setup().warming();
    s.passes(3.s());
    assert_eq!(s.beats_to(N), []);
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    s.passes(2.s());
    assert_eq!(s.beats_to(N), [4.s(), 5.s()]);
    s.opens_as(O, cred(O_PID));
    s.done(Outcome::Connected(Ok(())));
    s.hears(O, hello_of(Side::Incumbent, O_PID, Capabilities::OURS));
    s.passes(1500.ms());
    assert_eq!(s.beats_to(O), [6.s()]);
}

/// T1: in every state, to the end of the connection.
#[test]
fn it_heartbeats_in_every_state() {
    let both = [
        setup().draining(),
        setup().sealing(),
        setup().opening(),
        setup().verifying(),
        setup().committing(),
    ];
    for mut s in both {
        let (mut o, mut n) = (s.clone(), s.clone());
        o.passes(3.s());
        assert_eq!(o.beats_to(O), [1.s(), 2.s(), 3.s()], "{}", s.machine.state_name());
        n.passes(3.s());
        assert_eq!(n.beats_to(N), [1.s(), 2.s(), 3.s()], "{}", s.machine.state_name());
        s.loses(N);
        s.passes(1.s());
        assert_eq!(s.beats_to(N), []);
    }
    for mut s in [setup().ending(), setup().confirming()] {
        s.passes(3.s());
        assert_eq!(s.beats_to(O), [1.s(), 2.s(), 3.s()], "{}", s.machine.state_name());
    }
    for mut s in [setup().promoting(), setup().promoted()] {
        s.passes(3.s());
        assert_eq!(s.beats_to(N), [1.s(), 2.s(), 3.s()], "{}", s.machine.state_name());
    }
}

/// T2, X2: a daemon that says it heartbeats is dead after 5 s without a byte, exactly as if it had closed.
#[test]
fn five_seconds_of_silence_are_a_close() {
    let silent = || Violation::Silent { awaited: "a heartbeat" };
    let mut s = setup().sealing();
    s.passes_with_beats_of(N, 4.s());
    s.passes(999.ms());
    s.quiet();
    s.passes(1.ms());
    s.expect([refused(O, silent(), "awaiting SealComplete"), close(O), probe()]);

    let mut s = setup().opening();
    s.passes_with_beats_of(O, 4.s());
    s.passes(999.ms());
    s.quiet();
    s.passes(1.ms());
    let outputs = s.take();
    assert_eq!(outputs[0], refused(N, silent(), "awaiting Ready"));
    assert_eq!(outputs[1], close(N));
    assert!(!outputs.iter().any(is_signal), "it has begun, so the incumbent is asked first");
}

/// T2: any byte is proof of life.
#[test]
fn any_byte_counts_as_life() {
    let mut s = setup().sealing();
    for _ in 0..30 {
        s.passes(1.s());
        s.hears_a_byte(O);
        s.hears_a_byte(N);
    }
    s.quiet();
}

/// T2: others are judged by deadlines alone.
#[test]
fn daemons_without_x2_are_judged_by_deadlines_alone() {
    let mut s = Setup { o: LEGACY, n: LEGACY, ..setup() }.sealing();
    s.passes(60.s());
    s.quiet();
}

/// T3: it never answers a Heartbeat.
#[test]
fn it_never_answers_a_heartbeat() {
    for mut s in [setup().draining(), setup().opening(), setup().committing(), setup().ending()] {
        for peer in [O, N] {
            for ts_ms in [0, 5, u64::MAX] {
                s.hears(peer, heartbeat(ts_ms));
            }
        }
        s.quiet();
    }
}

/// T5: the deadline, and 1 s more for an answer in flight.
#[test]
fn the_deadline_has_a_second_of_slack() {
    let reasons = [
        (setup().draining(), 21.s(), Reason::DrainTimeout),
        (setup().sealing(), 61.s(), Reason::SealTimeout),
        (setup().opening(), 61.s(), Reason::ReadyTimeout),
    ];
    for (mut s, limit, reason) in reasons {
        s.passes_alive(limit - 1.ms());
        s.quiet();
        s.passes(1.ms());
        s.answers_alive();
        s.expect_among(term(N_PID));
        s.done(written());
        s.done(reaped());
        s.answers_alive();
        assert_eq!(s.verdict(), (Verdict::RolledBack, Some(reason), Some(O_PID)));
    }
}

/// T5: where the deadline is shorter than the drain's grace it bounds the drain, and says what it was that
/// did not come in time.
#[test]
fn a_deadline_shorter_than_the_grace_bounds_the_drain() {
    let mut s = setup().idle();
    let spec = Spec { deadline: 10.s(), ..SPEC };
    s.asks(Command::Handoff { id: ID, spec });
    s.done(written());
    s.done(answered(O_PID));
    s.done(Outcome::Spawned(Ok(N_PID)));
    s.done(written());
    s.opens_as(N, Credentials { descends: true, ..cred(N_PID) });
    s.hears(N, hello_of(Side::Successor, N_PID, Capabilities::OURS));
    s.opens_as(O, cred(O_PID));
    s.done(Outcome::Connected(Ok(())));
    s.hears(O, hello_of(Side::Incumbent, O_PID, Capabilities::OURS));
    s.done(written());
    s.done(written());
    s.expect_among(send(O, prepare(spec.deadline, spec.drain_grace)));
    s.passes_alive(11.s());
    s.answers_alive();
    s.done(written());
    s.done(reaped());
    s.answers_alive();
    let trouble = s.report().trouble.unwrap();
    assert_eq!(trouble.reason, Reason::DrainTimeout);
    assert_eq!(trouble.detail, "the deadline passed before the data was drained");
}

/// T5: a peer that drips bytes is bound by the same deadlines.
#[test]
fn dripping_does_not_extend_a_deadline() {
    let mut s = setup().opening();
    for _ in 0..61 {
        s.passes(1.s());
        s.hears_a_byte(O);
        s.hears_a_byte(N);
    }
    s.asked();
}

/// T5: what has arrived is handled before a timer that has expired.
#[test]
fn what_has_arrived_comes_before_an_expired_timer() {
    let mut s = setup().opening();
    s.sleeps(100.s());
    s.hears(O, heartbeat(1));
    s.hears(N, ready(true, &[4, 9]));
    s.tick();
    s.expect([check_ready()]);
    s.done(held_by(N_PID));
    s.expect_among(send(O, commit()));
}

// W7: what has no place.

/// W7: a message that has no place closes its connection, and only that one, with a typed error.
#[test]
fn an_unexpected_message_closes_only_its_own_connection() {
    type Stage = fn(&Setup) -> S;
    let stages: [(Stage, &[&str], &[&str]); 6] = [
        (Setup::preparing, &["Heartbeat"], &["Heartbeat"]),
        (Setup::draining, &["Heartbeat", "Drained"], &["Heartbeat"]),
        (
            Setup::sealing,
            &["Heartbeat", "SealProgress", "SealComplete", "SealFailed"],
            &["Heartbeat"],
        ),
        (Setup::opening, &["Heartbeat"], &["Heartbeat", "Ready"]),
        (Setup::verifying, &["Heartbeat"], &["Heartbeat"]),
        (Setup::committing, &["Heartbeat"], &["Heartbeat"]),
    ];
    for (stage, of_o, of_n) in stages {
        for (peer, other, welcome) in [(O, N, of_o), (N, O, of_n)] {
            for message in all_messages(ID) {
                let name = short_name(&message);
                let mut s = stage(&setup());
                let state = s.machine.state_name();
                s.hears(peer, message);
                let outputs = s.take();
                let wrong = Violation::Unexpected { message: name, state };
                let refusal = refused(peer, wrong, state);
                if welcome.contains(&name) {
                    assert!(!outputs.contains(&refusal), "{name} of {peer} while {state}");
                    continue;
                }
                assert_eq!(outputs[..2], [refusal, close(peer)], "{name} while {state}");
                assert!(!outputs.contains(&close(other)), "{name} while {state}");
            }
        }
    }
}

/// W7: a message that crossed a failure on its way is no violation.
#[test]
fn messages_that_cross_a_failure_are_no_violation() {
    for message in [drained(), seal_progress(1), seal_complete(&[1]), seal_failed()] {
        for mut s in [setup().asking(), setup().ending(), setup().confirming()] {
            let _ = s.take();
            s.hears(O, message.clone());
            s.expect_without(|output| *output == close(O));
        }
    }
    let mut s = setup().asking();
    s.hears(N, ready(true, &[4, 9]));
    s.expect_without(|output| *output == close(N));
}

/// W7: so may the late words of an incumbent that counts as gone; but no word of a successor comes
/// before its turn.
#[test]
fn the_late_words_of_an_incumbent_that_counts_as_gone_are_no_violation() {
    let mut s = setup().sealing();
    s.asks(Command::Abort);
    s.asked();
    s.passes(2.s());
    s.done(nobody());
    s.done(lock_free());
    s.expect_among(send(N, begin()));
    for message in [seal_progress(1), seal_complete(&[4, 9])] {
        s.hears(O, message);
        s.expect_without(|output| *output == close(O));
    }
    let mut s = setup().promoting();
    s.hears(N, ready(true, &[]));
    let wrong = Violation::Unexpected { message: "Ready", state: "awaiting the lock" };
    s.expect_among(refused(N, wrong, "awaiting the lock"));
}

/// Connections that nobody asked for are closed.
#[test]
fn connections_that_nobody_asked_for_are_closed() {
    let mut s = setup().idle();
    s.opens_as(O, cred(O_PID));
    s.opens_as(N, cred(N_PID));
    s.expect([close(O), close(N)]);
    let mut s = setup().spawning();
    s.opens_as(O, cred(O_PID));
    s.expect([close(O)]);
    let mut s = setup().greeted();
    s.opens_as(O, cred(O_PID));
    s.opens_as(N, cred(N_PID));
    s.expect([close(O), close(N)]);
}

/// A connection that comes late, for a handoff that has ended, is not the next one's.
#[test]
fn a_late_connection_is_not_the_next_handoffs() {
    let mut s = setup().connecting();
    s.done(exited(N_PID));
    s.done(reaped());
    assert_eq!(s.verdict().0, Verdict::Refused);
    s.done(written());
    s.done(written());
    s.asks(Command::Handoff { id: OTHER, spec: SPEC });
    s.done(written());
    s.done(answered(O_PID));
    s.done(Outcome::Spawned(Ok(X_PID)));
    s.opens_as(N, Credentials { descends: true, ..cred(X_PID) });
    s.hears(N, hello_of(Side::Successor, X_PID, Capabilities::OURS));
    s.expect_without(|output| *output == effect(Effect::Connect));
    s.opens_as(O, cred(O_PID));
    s.expect([close(O)]);
    s.done(Outcome::Connected(Ok(())));
    s.expect([effect(Effect::Connect)]);
    s.opens_as(O, cred(O_PID));
    s.done(Outcome::Connected(Ok(())));
    s.hears(O, hello_of(Side::Incumbent, O_PID, Capabilities::OURS));
    s.expect_among(send(O, ack_of(OTHER)));
}

/// An answer to a question of an earlier handoff is asked again, not believed.
#[test]
fn a_late_probe_is_not_believed() {
    let mut s = setup().committing();
    s.passes(10.s());
    assert_eq!(s.verdict().0, Verdict::Unknown);
    s.done(written());
    s.asks(Command::Handoff { id: OTHER, spec: SPEC });
    s.expect_without(|output| *output == probe());
    s.done(written());
    s.done(answered(X_PID));
    s.expect_among(probe());
    s.done(answered(N_PID));
    s.expect_among(spawn());
}

/// Nor is a look at the lock: that it was free once says nothing of now, and no daemon is started for it.
#[test]
fn a_late_look_at_the_lock_is_not_believed() {
    let mut s = setup().promoting();
    s.done(exited(N_PID));
    s.done(written());
    s.done(reaped());
    s.done(nobody());
    assert_eq!(s.verdict().0, Verdict::Unknown);
    s.asks(Command::Start { own: vec![] });
    s.expect([probe()]);
    s.done(lock_free());
    s.expect([check_any()]);
    s.done(answered(X_PID));
    s.expect([event(Event::Serving { pid: X_PID, started: false })]);
}

/// R17: whoever is being started is awaited first, whatever is seen meanwhile: it is started once, and
/// watched to its end.
#[test]
fn a_daemon_that_is_being_started_is_awaited() {
    let mut s = setup().promoting();
    s.done(exited(N_PID));
    s.done(written());
    s.done(reaped());
    s.done(nobody());
    s.asks(Command::Start { own: vec![] });
    // A look at the lock from before is asked again beside the probe, and comes first.
    s.done(lock_free());
    s.done(lock_free());
    s.expect_among(effect(Effect::Spawn { successor: false }));
    let mut silent = s.clone();
    s.done(answered(X_PID));
    s.quiet();
    assert!(!s.machine.idle());
    s.done(Outcome::Spawned(Ok(N_PID)));
    s.passes(10.ms());
    s.done(exited(N_PID));
    let outputs = s.take();
    let told = |output: &Output| matches!(output, Output::Event(Event::NobodyServes(_)));
    assert!(outputs.iter().any(told), "{outputs:?}");
    silent.done(nobody());
    silent.done(lock_free());
    silent.expect_without(|output| *output == effect(Effect::Spawn { successor: false }));
}

/// The operator's abort: before Prepare it is refused, later rolled back, and after Commit too late.
#[test]
fn an_operator_may_abort_until_commit() {
    // The answer to the probe is awaited: the outcome says who serves.
    let mut s = setup().probing();
    s.asks(Command::Abort);
    s.quiet();
    s.done(answered(O_PID));
    let expected = (Verdict::Refused, Some(Reason::OperatorAbort), Some(O_PID));
    assert_eq!(s.verdict(), expected);
    let mut s = setup().probing();
    s.asks(Command::Abort);
    s.done(nobody());
    assert_eq!(s.verdict(), (Verdict::Refused, Some(Reason::OperatorAbort), None));
    let mut s = setup().spawning();
    s.asks(Command::Abort);
    s.quiet();
    s.done(Outcome::Spawned(Ok(N_PID)));
    s.expect_among(term(N_PID));
    s.done(written());
    s.done(written());
    s.done(reaped());
    let expected = (Verdict::Refused, Some(Reason::OperatorAbort), Some(O_PID));
    assert_eq!(s.verdict(), expected);
    let mut s = setup().warming();
    s.asks(Command::Abort);
    s.expect_among(term(N_PID));
    let mut s = setup().committing();
    s.asks(Command::Abort);
    s.quiet();
    s.done(answered(N_PID));
    assert_eq!(s.verdict(), (Verdict::Committed, None, Some(N_PID)));
    let mut s = setup().promoted();
    s.asks(Command::Abort);
    s.quiet();
    let mut s = setup().idle();
    s.asks(Command::Abort);
    s.quiet();
}

/// An end of somebody else is nobody's.
#[test]
fn the_end_of_a_stranger_changes_nothing() {
    for (stage, mut s) in prepared_stages(&setup()) {
        let before = s.machine.clone();
        s.done(exited(X_PID));
        s.quiet();
        assert_eq!(s.machine, before, "{stage}");
    }
}

/// The peers have names.
#[test]
fn peers_have_names() {
    assert_eq!(Peer::Incumbent.to_string(), "the incumbent");
    assert_eq!(Peer::Successor.to_string(), "the successor");
}

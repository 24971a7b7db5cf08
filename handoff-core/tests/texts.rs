//! What an operator reads: what the machines tell, in words, and which of it is trouble.

mod common;

use common::*;
use handoff_core::daemon::{ConnId, Ended, Event, LockFailure, Off, StandDown};
use handoff_core::supervisor::{self, Peer, Phase, Reason, Report, Trouble, Verdict};
use handoff_core::wire::{EncodeError, VersionMismatch, WireError};
use handoff_core::{Side, Violation};
use std::fmt::Display;

/// `<id>` and `<other>` stand for the two ids.
#[track_caller]
fn assert_reads(told: &impl Display, text: &str) {
    let text = text.replace("<id>", &ID.to_string()).replace("<other>", &OTHER.to_string());
    assert_eq!(told.to_string(), text);
}

/// A daemon's events: whether somebody should look at each, and what it says.
#[test]
fn what_a_daemon_tells() {
    let held = LockFailure::Held { holder: Some(N_PID) };
    let failed = Event::HookFailed { hook: "drain", error: "stuck writes".into() };
    let refused = Event::PeerRefused {
        conn: ConnId(7),
        violation: Violation::WrongUser { uid: 5 },
        state: "draining",
    };
    let events = [
        (Event::Incumbent, false, "this process is the incumbent"),
        (
            Event::HandoffBegun { id: ID, successor: N_PID },
            false,
            "handoff <id> to pid 200 begins: draining",
        ),
        (
            Event::HandoffOff { id: ID, why: Off::Deadline },
            true,
            "handoff <id> is off: its deadline has passed",
        ),
        (Event::Sealed { id: ID }, false, "handoff <id>: sealed, the lock is released"),
        (Event::Resumed { id: ID }, false, "handoff <id> came to nothing: serving again"),
        (failed, true, "the drain hook failed: stuck writes"),
        (Event::LockRefused(held), true, "the lock is tried again: pid 200 holds the lock"),
        (Event::PathFailed("no space".into()), true, "the control path is tried again: no space"),
        (
            Event::SuccessorNotEnded("not permitted".into()),
            true,
            "the successor keeps the lock and could not be ended: not permitted",
        ),
        (
            refused,
            true,
            "connection 7 closed while draining: uid 5 is not allowed on this connection",
        ),
        (Event::Ended(Ended::Stopped), false, "stopped"),
    ];
    for (event, trouble, text) in events {
        assert_reads(&event, text);
        assert_eq!(event.is_trouble(), trouble, "{event}");
    }
}

/// Why a handoff is off.
#[test]
fn why_a_handoff_is_off() {
    let reasons = [
        (Off::Aborted, "the supervisor aborted it"),
        (Off::SupervisorGone, "the supervisor is gone"),
        (Off::Deadline, "its deadline has passed"),
        (Off::DrainFailed, "the drain failed"),
        (Off::DrainTimeout, "the drain outlived its grace"),
        (Off::SealFailed, "the seal failed"),
        (Off::Stopped, "this process was told to stop"),
    ];
    for (why, text) in reasons {
        assert_reads(&why, text);
    }
}

/// R15: how a daemon ended, and the code it exits with.
#[test]
fn how_a_daemon_ended() {
    let stood_down = |why| Ended::StoodDown { why };
    let shortage = LockFailure::Shortage("no space left".into());
    let ends = [
        (Ended::Committed { id: ID }, 0, "handoff <id> is committed"),
        (Ended::Stopped, 0, "stopped"),
        (stood_down(StandDown::OtherServes { pid: N_PID }), 75, "pid 200 serves"),
        (stood_down(StandDown::Aborted("no".into())), 75, "the supervisor ended the handoff: no"),
        (
            stood_down(StandDown::SupervisorGone),
            75,
            "the supervisor went away before it said Begin",
        ),
        (
            stood_down(StandDown::NoLock(Some(shortage))),
            75,
            "the lock could not be had in time: no space left",
        ),
        (stood_down(StandDown::NoLock(None)), 75, "the lock could not be had in time"),
        (Ended::OpenFailed("corrupt".into()), 70, "the data could not be opened: corrupt"),
        (Ended::Crash("a hook is stuck".into()), 70, "a hook is stuck"),
    ];
    for (end, code, text) in ends {
        assert_reads(&end, text);
        assert_eq!(end.exit_code(), code, "{end}");
    }
    let unknown = LockFailure::Held { holder: None };
    assert_reads(&unknown, "another process holds the lock");
    assert_reads(&LockFailure::Unusable("no such directory".into()), "no such directory");
}

/// W7: what was wrong.
#[test]
fn how_a_peer_broke_the_protocol() {
    let mismatch = VersionMismatch { our_min: 3, our_max: 4, their_min: 1, their_max: 2 };
    let violations = [
        (Violation::Wire(WireError::Malformed), "a frame holds no message of this protocol"),
        (
            Violation::Unexpected { message: "Begin", state: "serving" },
            "Begin has no place while serving",
        ),
        (
            Violation::WrongSide { announced: Side::Successor },
            "the peer announces itself as Successor",
        ),
        (
            Violation::WrongPid { announced: X_PID, actual: N_PID },
            "Hello names pid 400, but the kernel says 200",
        ),
        (
            Violation::NotOurs { actual: X_PID, started: N_PID },
            "pid 400 speaks, but pid 200 was started",
        ),
        (Violation::WrongUser { uid: 5 }, "uid 5 is not allowed on this connection"),
        (
            Violation::Versions(mismatch),
            "no common protocol version: we speak 3 to 4, the peer 1 to 2",
        ),
        (
            Violation::ChosenVersion { chosen: 5, min: 2, max: 4 },
            "version 5 was chosen, but 2 to 4 were offered",
        ),
        (
            Violation::WrongId { message: "Commit", got: OTHER, expected: ID },
            "Commit carries handoff <other>, but this connection is for <id>",
        ),
        (Violation::Busy { active: ID }, "handoff <id> is active"),
        (Violation::Silent { awaited: "HelloAck" }, "the peer kept silent; HelloAck was awaited"),
        (Violation::Crowded, "too many connections are open"),
    ];
    for (violation, text) in violations {
        assert_reads(&violation, text);
    }
    let error = EncodeError { message: "Ready", length: 2_000_000 };
    assert_reads(&error, "Ready takes 2000000 bytes; a frame holds 1048576");
}

fn report(verdict: Verdict) -> Report {
    Report { id: ID, verdict, trouble: None, serving: Some(N_PID), ready: None, stuck: None }
}

/// A supervisor's events: whether somebody should look at each, and what it says.
#[test]
fn what_a_supervisor_tells() {
    use supervisor::Event;
    let refused = Event::PeerRefused {
        peer: Peer::Successor,
        violation: Violation::WrongUser { uid: 5 },
        state: "awaiting Ready",
    };
    let events = [
        (Event::Phase(Phase::Warm), false, "phase warm"),
        (Event::Phase(Phase::Drain), false, "phase drain"),
        (Event::Phase(Phase::Seal), false, "phase seal"),
        (Event::Phase(Phase::Open), false, "phase open"),
        (Event::Phase(Phase::Commit), false, "phase commit"),
        (Event::Phase(Phase::Rollback), true, "phase rollback"),
        (Event::Phase(Phase::Promote), true, "phase promote"),
        (
            Event::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: 9 },
            false,
            "1 of 2 shards sealed, to 9",
        ),
        (
            Event::Drained { open_conns_remaining: 3, accept_closed: true },
            false,
            "drained, 3 connections still open",
        ),
        (
            refused,
            true,
            "closed the connection to the successor while awaiting Ready: uid 5 is not allowed on \
             this connection",
        ),
        (Event::JournalFailed("disk full".into()), true, "the journal was not written: disk full"),
        (Event::Busy, true, "another handoff is under way"),
        (
            Event::Waiting { holder: Some(X_PID) },
            true,
            "nobody answers, and pid 400 holds the lock: waiting",
        ),
        (
            Event::Waiting { holder: None },
            true,
            "nobody answers, and somebody holds the lock: waiting",
        ),
        (Event::Serving { pid: O_PID, started: false }, false, "pid 100 serves"),
        (Event::Serving { pid: O_PID, started: true }, false, "pid 100 serves, started just now"),
        (Event::NobodyServes("no such file".into()), true, "nobody serves: no such file"),
        (
            Event::Finished(report(Verdict::Committed)),
            false,
            "handoff <id>: committed; pid 200 serves",
        ),
        (
            Event::Finished(report(Verdict::RolledBack)),
            true,
            "handoff <id>: rolled back; pid 200 serves",
        ),
        (Event::Finished(report(Verdict::Refused)), true, "handoff <id>: refused; pid 200 serves"),
        (
            Event::Finished(report(Verdict::DryRun)),
            false,
            "handoff <id>: the dry run went well; pid 200 serves",
        ),
        (Event::Finished(report(Verdict::Unknown)), true, "handoff <id>: unknown; pid 200 serves"),
    ];
    for (event, trouble, text) in events {
        assert_reads(&event, text);
        assert_eq!(event.is_trouble(), trouble, "{event}");
    }
}

/// R4: the codes of outcomes stay the same for ever.
#[test]
fn an_outcome_has_a_code() {
    let verdicts = [Verdict::Committed, Verdict::RolledBack, Verdict::Refused, Verdict::Unknown];
    let codes = verdicts.map(Verdict::code);
    assert_eq!(codes, ["committed", "rolled_back", "refused", "unknown"]);
}

/// R4, R14: the outcome says what went wrong, who serves, and what would not die.
#[test]
fn what_a_report_says() {
    let detail = "the successor calls itself unhealthy".into();
    let trouble = Some(Trouble { reason: Reason::Unhealthy, detail });
    let full = Report { trouble, serving: None, stuck: Some(N_PID), ..report(Verdict::Unknown) };
    assert_reads(
        &full,
        "handoff <id>: unknown, the successor calls itself unhealthy (unhealthy); nobody was seen \
         to serve; process group 200 will not die",
    );
}

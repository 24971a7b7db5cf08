//! A daemon is swapped by a supervisor in this process; either side fails in every way it can.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use handoff_blocking::{
    Event, Handoff, Launch, Phase, Reason, StartError, SupervisorConfig, Verdict,
};
use handoff_core::wire::encode;
use handoff_core::{HandoffId, Message};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Bench, PATIENCE, Runtime, Supervisor, launch, reason};

on_every_runtime!(
    back_to_back_handoffs_commit,
    a_successor_that_fails_is_rolled_back,
    a_hook_that_fails_leaves_the_incumbent_serving,
    a_successor_that_is_never_ready_is_rolled_back,
    an_incumbent_that_dies_is_replaced,
    an_abort_is_obeyed_in_every_phase,
    a_binary_that_does_not_start_is_named,
    a_supervisor_adopts_who_serves,
    strangers_disturb_no_handoff,
);

/// For what hangs: long enough for everything before that, on the slowest machine.
const DEADLINE: Duration = Duration::from_millis(1500);

/// C2, R6, R16: the good path, three times in a row without a pause.
fn back_to_back_handoffs_commit(runtime: Runtime) {
    let (mut bench, mut old) = Bench::start(runtime, "");
    for _ in 0..3 {
        let report = bench.swap("");
        assert_eq!(report.verdict, Verdict::Committed, "{report}");
        assert_eq!(report.trouble, None);
        let new = report.serving.unwrap();
        assert_ne!(new, old);
        assert_eq!(bench.write(), new);
        old = new;
    }
    bench.ends_well();
}

/// C3, R4, R6: whatever is wrong with the successor, the incumbent serves on.
fn a_successor_that_fails_is_rolled_back(runtime: Runtime) {
    let cases = [
        ("exit-at-once", Verdict::Refused, Reason::SuccessorExited),
        ("die-after-begin", Verdict::RolledBack, Reason::SuccessorExited),
        ("fail-open", Verdict::RolledBack, Reason::SuccessorExited),
        ("unhealthy", Verdict::RolledBack, Reason::Unhealthy),
        ("regressed", Verdict::RolledBack, Reason::RevisionRegressed),
    ];
    let (mut bench, old) = Bench::start(runtime, "");
    for (fault, verdict, code) in cases {
        let report = bench.swap(fault);
        assert_eq!((report.verdict, reason(&report)), (verdict, Some(code)), "{fault}: {report}");
        assert_eq!(report.serving, Some(old), "{fault}");
        assert_eq!(bench.write(), old, "{fault}");
    }
    bench.ends_well();
}

/// R7: a drain or a seal that fails, panics or hangs leaves the incumbent serving, resumed once.
fn a_hook_that_fails_leaves_the_incumbent_serving(runtime: Runtime) {
    let cases = [
        ("drain-error", Verdict::Refused, Reason::DrainFailed),
        ("drain-panic", Verdict::Refused, Reason::DrainFailed),
        ("drain-hangs", Verdict::Refused, Reason::DrainFailed),
        ("seal-error", Verdict::RolledBack, Reason::SealFailed),
        ("seal-panic", Verdict::RolledBack, Reason::SealFailed),
        ("seal-hangs", Verdict::RolledBack, Reason::SealTimeout),
    ];
    for (fault, verdict, code) in cases {
        let (mut bench, old) = Bench::start(runtime, fault);
        let mut handoff = Handoff::new(bench.launch(""));
        // Only what hangs has to be brought to its end.
        handoff = match fault {
            "drain-hangs" => handoff.drain_grace(Duration::from_millis(100)),
            "seal-hangs" => handoff.deadline(DEADLINE),
            _ => handoff,
        };
        let report = bench.swap_as(handoff, |_| {});
        // The incumbent closes at its own deadline or is asked at the supervisor's: either is true.
        let seen = (report.verdict, reason(&report));
        assert_eq!(seen, (verdict, Some(code)), "{fault}: {report}");
        assert_eq!(report.serving, Some(old), "{fault}");
        assert_eq!(bench.write(), old, "{fault}");
        bench.supervisor.shutdown(PATIENCE).unwrap();
    }
}

/// T5, R5: a successor that is not ready in time is ended, because the incumbent answers.
fn a_successor_that_is_never_ready_is_rolled_back(runtime: Runtime) {
    let (mut bench, old) = Bench::start(runtime, "");
    let handoff = Handoff::new(bench.launch("never-ready")).deadline(DEADLINE);
    let report = bench.swap_as(handoff, |_| {});
    assert_eq!(
        (report.verdict, reason(&report)),
        (Verdict::RolledBack, Some(Reason::ReadyTimeout))
    );
    assert_eq!(bench.write(), old);
    bench.ends_well();
}

/// R5, R8: an incumbent that is killed in its drain or seal is replaced by the successor.
fn an_incumbent_that_dies_is_replaced(runtime: Runtime) {
    for (fault, at) in [("drain-hangs", Phase::Drain), ("seal-hangs", Phase::Seal)] {
        let (mut bench, old) = Bench::start(runtime, fault);
        let victim = Pid::from_raw(old.cast_signed()).unwrap();
        let handoff = Handoff::new(bench.launch(""));
        let report = bench.swap_as(handoff, |event| {
            if *event == Event::Phase(at) {
                kill_process(victim, Signal::KILL).unwrap();
            }
        });
        assert_eq!(report.verdict, Verdict::Committed, "{fault}: {report}");
        assert_eq!(reason(&report), Some(Reason::IncumbentLost), "{fault}");
        assert_eq!(Some(bench.write()), report.serving, "{fault}");
        bench.ends_well();
    }
}

/// R4, R7: an operator's abort rolls back, whatever the two are doing, until it is committed.
fn an_abort_is_obeyed_in_every_phase(runtime: Runtime) {
    let cases = [
        ("", "warms-up", Phase::Warm, Verdict::Refused),
        ("drain-hangs", "", Phase::Drain, Verdict::RolledBack),
        ("seal-hangs", "", Phase::Seal, Verdict::RolledBack),
        ("", "never-ready", Phase::Open, Verdict::RolledBack),
    ];
    for (incumbents, successors, at, verdict) in cases {
        let (mut bench, old) = Bench::start(runtime, incumbents);
        let aborter = bench.supervisor.aborter();
        // Between handoffs there is nothing to abort.
        aborter.abort();
        let report = bench.swap_as(Handoff::new(bench.launch(successors)), |event| {
            if *event == Event::Phase(at) {
                aborter.abort();
            }
        });
        let seen = (report.verdict, reason(&report));
        assert_eq!(seen, (verdict, Some(Reason::OperatorAbort)), "{at:?}: {report}");
        // It may not have been asked yet who serves.
        assert!(report.serving.is_none_or(|pid| pid == old), "{at:?}: {report}");
        assert_eq!(bench.write(), old, "{at:?}");
        if incumbents.is_empty() {
            bench.ends_well();
        }
    }
}

/// I3: each runtime takes over from each.
#[test]
fn every_runtime_takes_over_from_every_runtime() {
    let all = Runtime::ALL;
    let (mut bench, mut old) = Bench::start(all[0], "");
    // Each pair in both directions, and each with itself, without going back over any.
    let walk = (0..all.len()).flat_map(|one| {
        let there_and_back = (one + 1..all.len()).flat_map(move |other| [other, one]);
        std::iter::once(one).chain(there_and_back).chain((one + 1 < all.len()).then_some(one + 1))
    });
    for next in walk {
        let handoff = Handoff::new(launch(all[next], bench.dir.path(), ""));
        let report = bench.swap_as(handoff, |_| {});
        assert_eq!((report.verdict, reason(&report)), (Verdict::Committed, None), "{report}");
        let new = report.serving.unwrap();
        assert_ne!(new, old);
        assert_eq!(bench.write(), new);
        old = new;
    }
    bench.ends_well();
}

/// R13: a binary that does not exist is named, and the incumbent was not touched.
fn a_binary_that_does_not_start_is_named(runtime: Runtime) {
    let (mut bench, old) = Bench::start(runtime, "");
    let handoff = Handoff::new(Launch::new("/nowhere/daemon"));
    let mut phases = Vec::new();
    let report = bench.swap_as(handoff, |event| {
        if let Event::Phase(phase) = event {
            phases.push(*phase);
        }
    });
    assert_eq!(report.verdict, Verdict::Refused);
    let trouble = report.trouble.as_ref().unwrap();
    assert_eq!(trouble.reason, Reason::SuccessorExecFailed);
    assert!(trouble.detail.contains("/nowhere/daemon"), "{}", trouble.detail);
    assert_eq!(phases, [Phase::Warm]);
    assert_eq!(bench.write(), old);
    bench.ends_well();
}

/// R10, R17: a second supervisor adopts the daemon that serves instead of starting another.
fn a_supervisor_adopts_who_serves(runtime: Runtime) {
    let (bench, old) = Bench::start(runtime, "");
    let config = SupervisorConfig::new(bench.dir.path().join("c.sock"));
    let mut second = Supervisor::new(runtime, config).unwrap();
    let found = second.start(&bench.launch("")).unwrap();
    assert_eq!((found.pid, found.started), (old, false));
    // It was given no listeners, and would strand the clients: it does not hand off (R10).
    let refused = second.handoff(&Handoff::new(bench.launch("")), |_| {});
    assert!(matches!(refused, Err(StartError::NoListeners)), "{refused:?}");
    bench.ends_well();
}

/// C5, W7: strangers on the control socket disturb nobody, whatever they say or do not say.
fn strangers_disturb_no_handoff(runtime: Runtime) {
    let (mut bench, _) = Bench::start(runtime, "");
    let path = bench.dir.path().join("c.sock");
    let mut strangers = Vec::new();
    let sayings: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.1",
        b"\xff\xff\xff\xff",
        b"\x02\0\0\0\x01",
        b"\x06\0\0\0\x01\0\x0d\0\0\0",
    ];
    for saying in sayings.iter().cycle().take(50) {
        let mut stranger = UnixStream::connect(&path).unwrap();
        // It may be turned away before it has said anything.
        let _ = stranger.write_all(saying);
        strangers.push(stranger);
    }
    // Some even greet, and then say nothing more.
    let ack = Message::HelloAck { proto_version_chosen: 1, handoff_id: HandoffId::new() };
    let mut greeting = Vec::new();
    encode(&ack, 1, &mut greeting).unwrap();
    for _ in 0..40 {
        let mut stranger = UnixStream::connect(&path).unwrap();
        let mut hello = [0; 64];
        let _ = stranger.read(&mut hello).unwrap();
        let _ = stranger.write_all(&greeting);
        strangers.push(stranger);
    }
    let report = bench.swap("");
    assert_eq!((report.verdict, reason(&report)), (Verdict::Committed, None), "{report}");
    assert_eq!(Some(bench.write()), report.serving);
    drop(strangers);
    bench.ends_well();
}

/// T5, C5: strangers that never stop talking keep no deadline from passing, and no handoff. On one
/// runtime, because what reads is the same on all.
#[test]
fn a_flood_stops_no_timer() {
    /// So many that there is always more to read.
    const LOUD: usize = 8;
    let (mut bench, _) = Bench::start(Runtime::Blocking, "");
    let path = bench.dir.path().join("c.sock");
    let (mut greeting, mut beats) = (Vec::new(), Vec::new());
    let ack = Message::HelloAck { proto_version_chosen: 1, handoff_id: HandoffId::new() };
    encode(&ack, 1, &mut greeting).unwrap();
    for ts_ms in 0..10_000 {
        encode(&Message::Heartbeat { ts_ms }, 1, &mut beats).unwrap();
    }
    let loud = [(); LOUD].map(|()| UnixStream::connect(&path).unwrap());
    std::thread::scope(|scope| {
        let (beats, _hushed) = (&beats, Hushed(&loud));
        for mut stranger in &loud {
            stranger.write_all(&greeting).unwrap();
            scope.spawn(move || while stranger.write_all(beats).is_ok() {});
        }
        let silent = UnixStream::connect(&path).unwrap();
        silent.set_read_timeout(Some(PATIENCE)).unwrap();
        // It hears Hello, and is turned away after 5 s because it says nothing.
        let mut heard = Vec::new();
        (&silent).read_to_end(&mut heard).expect("it is turned away");
        assert!(!heard.is_empty());
        let report = bench.swap("");
        assert_eq!((report.verdict, reason(&report)), (Verdict::Committed, None), "{report}");
    });
    bench.ends_well();
}

/// Ends the connections of strangers, and so the threads that write to them.
struct Hushed<'a>(&'a [UnixStream]);

impl Drop for Hushed<'_> {
    fn drop(&mut self) {
        for stranger in self.0 {
            let _ = stranger.shutdown(Shutdown::Both);
        }
    }
}

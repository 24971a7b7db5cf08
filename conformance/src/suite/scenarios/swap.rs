//! Daemons of one adapter under its supervisor, which lives in this process: what commits, and what is
//! rolled back because somebody fails at once.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use handoff_core::supervisor::{Event, Phase, Reason, Verdict};
use handoff_core::wire::encode;
use handoff_core::{HandoffId, Message};
use handoff_unix::host::{Handoff, StartError};
use handoff_unix::spawn::Launch;
use rustix::process::{Pid, Signal, kill_process};

use super::Scenario;
use crate::suite::program::control_path;
use crate::suite::{Adapter, Bench, Fault, PATIENCE, config, reason};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::handoff(
        &["C2", "R6", "R15", "R16"],
        "handoffs in a row commit, and the old one exits with 0",
        in_a_row,
    ),
    Scenario::handoff(&["I2", "I3", "I4"], "clients see nothing but a pause", under_load),
    Scenario::handoff(&["C4"], "what a seal reports reaches who watches", progress),
    Scenario::handoff(
        &["C3", "R4", "R6", "I6"],
        "a successor that fails is rolled back",
        successor_fails,
    ),
    Scenario::handoff(
        &["R7", "W7"],
        "a hook that fails, panics or hangs is rolled back",
        hook_fails,
    ),
    Scenario::handoff(&["T5", "R5"], "a successor that is never ready is rolled back", never_ready),
    Scenario::handoff(&["R5", "R8"], "an incumbent that dies is replaced", incumbent_dies),
    Scenario::handoff(&["R4", "R7"], "an abort is obeyed in every phase", aborted),
    Scenario::handoff(&["R13"], "a binary that does not start is named", no_binary),
    Scenario::handoff(
        &["R10", "R17"],
        "a second supervisor adopts who serves, and hands nothing off",
        adopted,
    ),
    Scenario::handoff(
        &["R1", "R15"],
        "a second daemon on the same data stands down",
        second_daemon,
    ),
    Scenario::handoff(
        &["R15", "R17"],
        "a daemon that is told to stop is followed by another",
        stopped,
    ),
    Scenario::handoff(&["C5", "W7"], "strangers disturb no handoff", strangers),
];

/// For what hangs: long enough for everything before that, on the slowest machine.
const DEADLINE: Duration = Duration::from_millis(1500);

fn in_a_row(adapter: &'static dyn Adapter) {
    let (mut bench, mut old) = Bench::start(adapter, None);
    for _ in 0..3 {
        let report = bench.swap(None);
        assert_eq!((report.verdict, &report.trouble), (Verdict::Committed, &None), "{report}");
        let new = report.serving.expect("it says who serves");
        assert_ne!(new, old);
        assert_eq!(bench.write(), new);
        let status = bench.end_of(old);
        assert!(status.starts_with("exit code 0"), "{status}");
        old = new;
    }
    bench.ends_well();
}

/// Each writes in a row and is answered, while one handoff is rolled back and two commit.
fn under_load(adapter: &'static dyn Adapter) {
    let (mut bench, _) = Bench::start(adapter, None);
    let launch = |bench: &Bench, fault| Handoff::new(bench.launch(fault));
    let handoffs = [Some(Fault::FailsToOpen), None, None].map(|fault| launch(&bench, fault));
    let over = AtomicBool::new(false);
    let Bench { supervisor, client, .. } = &mut bench;
    let verdicts = thread::scope(|scope| {
        let writes = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                client.write();
            }
        });
        let verdicts = handoffs.map(|handoff| {
            let report = supervisor.handoff(&handoff, &mut |_| {});
            report.map(|report| report.verdict)
        });
        over.store(true, Ordering::Relaxed);
        writes.join().expect("every write is acknowledged");
        verdicts
    });
    let verdicts = verdicts.map(|verdict| verdict.expect("the supervisor works"));
    assert_eq!(verdicts, [Verdict::RolledBack, Verdict::Committed, Verdict::Committed]);
    bench.ends_well();
}

fn progress(adapter: &'static dyn Adapter) {
    let (mut bench, _) = Bench::start(adapter, None);
    let mut reports = Vec::new();
    let handoff = Handoff::new(bench.launch(None));
    let report = bench.swap_as(&handoff, |event| {
        if let Event::SealProgress { shards_sealed, shards_total, last_revision } = event {
            reports.push((*shards_sealed, *shards_total, *last_revision));
        }
    });
    assert_eq!(report.verdict, Verdict::Committed, "{report}");
    // One write was made.
    assert_eq!(reports, [(1, 1, 1)]);
    bench.ends_well();
}

fn successor_fails(adapter: &'static dyn Adapter) {
    let cases = [
        (Fault::ExitsAtOnce, Verdict::Refused, Reason::SuccessorExited),
        (Fault::DiesAfterBegin, Verdict::RolledBack, Reason::SuccessorExited),
        (Fault::FailsToOpen, Verdict::RolledBack, Reason::SuccessorExited),
        (Fault::Unhealthy, Verdict::RolledBack, Reason::Unhealthy),
        (Fault::Regressed, Verdict::RolledBack, Reason::RevisionRegressed),
    ];
    let (mut bench, old) = Bench::start(adapter, None);
    for (fault, verdict, code) in cases {
        let report = bench.swap(Some(fault));
        assert_eq!((report.verdict, reason(&report)), (verdict, Some(code)), "{fault:?}: {report}");
        assert_eq!(report.serving, Some(old), "{fault:?}");
        assert_eq!(bench.write(), old, "{fault:?}");
    }
    bench.ends_well();
}

fn hook_fails(adapter: &'static dyn Adapter) {
    let cases = [
        (Fault::DrainFails, Verdict::Refused, Reason::DrainFailed),
        (Fault::DrainPanics, Verdict::Refused, Reason::DrainFailed),
        (Fault::DrainHangs, Verdict::Refused, Reason::DrainFailed),
        (Fault::SealFails, Verdict::RolledBack, Reason::SealFailed),
        (Fault::SealPanics, Verdict::RolledBack, Reason::SealFailed),
        (Fault::SealHangs, Verdict::RolledBack, Reason::SealTimeout),
    ];
    for (fault, verdict, code) in cases {
        let (mut bench, old) = Bench::start(adapter, Some(fault));
        let handoff = Handoff::new(bench.launch(None));
        // Only what hangs has to be brought to its end.
        let handoff = match fault {
            Fault::DrainHangs => handoff.drain_grace(Duration::from_millis(100)),
            Fault::SealHangs => handoff.deadline(DEADLINE),
            _ => handoff,
        };
        let report = bench.swap_as(&handoff, |_| {});
        let seen = (report.verdict, reason(&report));
        assert_eq!(seen, (verdict, Some(code)), "{fault:?}: {report}");
        assert_eq!(report.serving, Some(old), "{fault:?}");
        assert_eq!(bench.write(), old, "{fault:?}");
        bench.ends_well();
    }
}

fn never_ready(adapter: &'static dyn Adapter) {
    let (mut bench, old) = Bench::start(adapter, None);
    let handoff = Handoff::new(bench.launch(Some(Fault::NeverReady))).deadline(DEADLINE);
    let report = bench.swap_as(&handoff, |_| {});
    let seen = (report.verdict, reason(&report));
    assert_eq!(seen, (Verdict::RolledBack, Some(Reason::ReadyTimeout)), "{report}");
    assert_eq!(bench.write(), old);
    bench.ends_well();
}

fn incumbent_dies(adapter: &'static dyn Adapter) {
    for (fault, at) in [(Fault::DrainHangs, Phase::Drain), (Fault::SealHangs, Phase::Seal)] {
        let (mut bench, old) = Bench::start(adapter, Some(fault));
        let victim = Pid::from_raw(old.cast_signed()).expect("a pid");
        let handoff = Handoff::new(bench.launch(None));
        let report = bench.swap_as(&handoff, |event| {
            if *event == Event::Phase(at) {
                kill_process(victim, Signal::KILL).expect("it runs");
            }
        });
        assert_eq!(report.verdict, Verdict::Committed, "{at:?}: {report}");
        assert_eq!(reason(&report), Some(Reason::IncumbentLost), "{at:?}");
        assert_eq!(Some(bench.write()), report.serving, "{at:?}");
        bench.ends_well();
    }
}

fn aborted(adapter: &'static dyn Adapter) {
    let cases = [
        (None, Some(Fault::WarmsUp), Phase::Warm, Verdict::Refused),
        (Some(Fault::DrainHangs), None, Phase::Drain, Verdict::RolledBack),
        (Some(Fault::SealHangs), None, Phase::Seal, Verdict::RolledBack),
        (None, Some(Fault::NeverReady), Phase::Open, Verdict::RolledBack),
    ];
    for (incumbents, successors, at, verdict) in cases {
        let (mut bench, old) = Bench::start(adapter, incumbents);
        let abort = bench.supervisor.aborter();
        // Between handoffs there is nothing to abort.
        abort();
        let handoff = Handoff::new(bench.launch(successors));
        let report = bench.swap_as(&handoff, |event| {
            if *event == Event::Phase(at) {
                abort();
            }
        });
        let seen = (report.verdict, reason(&report));
        assert_eq!(seen, (verdict, Some(Reason::OperatorAbort)), "{at:?}: {report}");
        // It may not have been asked yet who serves.
        assert!(report.serving.is_none_or(|pid| pid == old), "{at:?}: {report}");
        assert_eq!(bench.write(), old, "{at:?}");
        bench.ends_well();
    }
}

fn no_binary(adapter: &'static dyn Adapter) {
    let (mut bench, old) = Bench::start(adapter, None);
    let mut phases = Vec::new();
    let report = bench.swap_as(&Handoff::new(Launch::new("/nowhere/daemon")), |event| {
        if let Event::Phase(phase) = event {
            phases.push(*phase);
        }
    });
    assert_eq!(report.verdict, Verdict::Refused, "{report}");
    assert_eq!(reason(&report), Some(Reason::SuccessorExecFailed), "{report}");
    assert!(report.to_string().contains("/nowhere/daemon"), "{report}");
    assert_eq!(phases, [Phase::Warm]);
    assert_eq!(bench.write(), old);
    bench.ends_well();
}

fn adopted(adapter: &'static dyn Adapter) {
    let (bench, old) = Bench::start(adapter, None);
    // Not the journal of the first, which is alive.
    let config = config(bench.dir.path()).journal(bench.dir.path().join("journal of the second"));
    let mut second = adapter.supervisor(config).expect("a supervisor");
    let found = second.start(&bench.launch(None)).expect("somebody serves");
    assert_eq!((found.pid, found.started), (old, false));
    // It was given no listeners, and would strand the clients.
    let refused = second.handoff(&Handoff::new(bench.launch(None)), &mut |_| {});
    assert!(matches!(refused, Err(StartError::NoListeners)), "{refused:?}");
    bench.ends_well();
}

fn second_daemon(adapter: &'static dyn Adapter) {
    let (mut bench, old) = Bench::start(adapter, None);
    let Launch { program, args, env, .. } = bench.launch(None);
    let mut command = Command::new(program);
    command.args(args).envs(env).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.spawn().and_then(|mut second| second.wait()).expect("a process");
    assert_eq!(status.code(), Some(75));
    assert_eq!(bench.write(), old);
    bench.ends_well();
}

fn stopped(adapter: &'static dyn Adapter) {
    let (mut bench, old) = Bench::start(adapter, None);
    let daemon = Pid::from_raw(old.cast_signed()).expect("a pid");
    kill_process(daemon, Signal::TERM).expect("it runs");
    let status = bench.end_of(old);
    assert!(status.starts_with("exit code 0"), "{status}");
    let found = bench.supervisor.start(&bench.launch(None)).expect("a daemon");
    assert!(found.started && found.pid != old, "{found:?}");
    assert_eq!(bench.write(), found.pid);
    bench.ends_well();
}

fn strangers(adapter: &'static dyn Adapter) {
    let (mut bench, _) = Bench::start(adapter, None);
    let path = control_path(bench.dir.path());
    let come = || UnixStream::connect(&path).expect("the control path leads to the incumbent");
    let mut strangers = Vec::new();
    let sayings: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.1",
        b"\xff\xff\xff\xff",
        b"\x02\0\0\0\x01",
        b"\x06\0\0\0\x01\0\x0d\0\0\0",
    ];
    for saying in sayings.iter().cycle().take(50) {
        let mut stranger = come();
        // It may be turned away before it has said anything.
        let _ = stranger.write_all(saying);
        strangers.push(stranger);
    }
    // Some even greet, and then say nothing more.
    let ack = Message::HelloAck { proto_version_chosen: 1, handoff_id: HandoffId::new() };
    let mut greeting = Vec::new();
    encode(&ack, 1, &mut greeting).expect("it fits a frame");
    for _ in 0..40 {
        let mut stranger = come();
        stranger.set_read_timeout(Some(PATIENCE)).expect("a socket");
        // It hears Hello, or is turned away.
        let _ = stranger.read(&mut [0; 64]).expect("it is not left waiting");
        let _ = stranger.write_all(&greeting);
        strangers.push(stranger);
    }
    let report = bench.swap(None);
    assert_eq!((report.verdict, reason(&report)), (Verdict::Committed, None), "{report}");
    assert_eq!(Some(bench.write()), report.serving);
    drop(strangers);
    bench.ends_well();
}

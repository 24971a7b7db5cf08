//! The supervisor on the bench: its inputs and outputs, and benches that stand in a given state.

use super::*;
use handoff_core::daemon::{Probed, Signal};
use handoff_core::supervisor::{
    Command, Config, Effect, Entry, Event, LockState, Outcome, Output, Peer, Phase, Ready, Reason,
    Report, Spec, Step, Supervisor, Trouble, Verdict,
};
use handoff_core::{Capabilities, Message, Side, Violation};

pub(crate) const O: Peer = Peer::Incumbent;
pub(crate) const N: Peer = Peer::Successor;

pub(crate) const SPEC: Spec = Spec {
    deadline: Duration::from_secs(60),
    drain_grace: Duration::from_secs(20),
    hello_budget: Duration::from_secs(40),
    dry_run: false,
};

/// What the other implementation's daemons say they can do.
pub(crate) const LEGACY: Capabilities = Capabilities { reserved: 0 };

// Outputs.

pub(crate) fn effect(effect: Effect) -> Output {
    Output::Do(effect)
}

pub(crate) fn probe() -> Output {
    Output::Do(Effect::Probe)
}

pub(crate) fn spawn() -> Output {
    Output::Do(Effect::Spawn { successor: true })
}

/// The lock is looked at: does the incumbent still hold it?
pub(crate) fn check_lock() -> Output {
    Output::Do(Effect::CheckLock { by: Some(O_PID) })
}

/// The same: does the successor hold it, now that it is ready?
pub(crate) fn check_ready() -> Output {
    Output::Do(Effect::CheckLock { by: Some(N_PID) })
}

/// The same: does anybody?
pub(crate) fn check_any() -> Output {
    Output::Do(Effect::CheckLock { by: None })
}

pub(crate) fn phase(phase: Phase) -> Output {
    event(Event::Phase(phase))
}

pub(crate) fn entry(step: Step) -> Entry {
    Entry { id: ID, step, incumbent: Some(O_PID), successor: Some(N_PID) }
}

pub(crate) fn journal(step: Step) -> Output {
    Output::Do(Effect::Journal(entry(step)))
}

pub(crate) fn term(pid: u32) -> Output {
    Output::Do(Effect::Signal { pid, signal: Signal::Term })
}

pub(crate) fn kill(pid: u32) -> Output {
    Output::Do(Effect::Signal { pid, signal: Signal::Kill })
}

pub(crate) fn reap() -> Output {
    Output::Do(Effect::Reap { pid: N_PID })
}

pub(crate) fn refused(peer: Peer, violation: Violation, state: &'static str) -> Output {
    event(Event::PeerRefused { peer, violation, state })
}

pub(crate) fn is_signal(output: &Output) -> bool {
    matches!(output, Output::Do(Effect::Signal { .. }))
}

pub(crate) fn is_journal(output: &Output) -> bool {
    matches!(output, Output::Do(Effect::Journal(_)))
}

// Completions.

pub(crate) fn answered(pid: u32) -> Outcome {
    Outcome::Probed(Probed::Answered { pid })
}

pub(crate) fn nobody() -> Outcome {
    Outcome::Probed(Probed::Silent)
}

pub(crate) fn written() -> Outcome {
    Outcome::Journalled(Ok(()))
}

pub(crate) fn unwritten() -> Outcome {
    Outcome::Journalled(Err("disk full".into()))
}

pub(crate) fn held_by(pid: u32) -> Outcome {
    Outcome::LockChecked(LockState::Held { pid: Some(pid) })
}

pub(crate) fn lock_free() -> Outcome {
    Outcome::LockChecked(LockState::Free)
}

pub(crate) fn lock_unknown() -> Outcome {
    Outcome::LockChecked(LockState::Unknown)
}

pub(crate) fn exited(pid: u32) -> Outcome {
    Outcome::Exited { pid, status: "signal 9".into() }
}

pub(crate) fn reaped() -> Outcome {
    Outcome::Reaped { pid: N_PID }
}

pub(crate) type TestSupervisor = Bench<Supervisor>;

/// Who takes part: what the daemons can do, and what the supervisor was told.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) o: Capabilities,
    pub(crate) n: Capabilities,
    pub(crate) config: Config,
}

impl Default for Setup {
    fn default() -> Self {
        Self { o: Capabilities::OURS, n: Capabilities::OURS, config: Config::new(UID) }
    }
}

impl Setup {
    /// The incumbent is the other implementation's.
    pub(crate) fn legacy_o() -> Self {
        Self { o: LEGACY, ..Self::default() }
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut setup = Self::default();
        change(&mut setup.config);
        setup
    }

    pub(crate) fn idle(&self) -> TestSupervisor {
        Bench::new(Supervisor::new(self.config.clone()))
    }

    /// The incumbent is probed.
    pub(crate) fn probing(&self) -> TestSupervisor {
        let mut s = self.idle();
        s.asks(Command::Handoff { id: ID, spec: SPEC });
        let warm = Entry { incumbent: None, successor: None, ..entry(Step::Warm) };
        s.expect([effect(Effect::Journal(warm)), phase(Phase::Warm), probe()]);
        s.done(written());
        s.quiet();
        s
    }

    /// The successor is being started.
    pub(crate) fn spawning(&self) -> TestSupervisor {
        let mut s = self.probing();
        s.done(answered(O_PID));
        s.expect([spawn()]);
        s
    }

    /// The successor's Hello is awaited.
    pub(crate) fn warming(&self) -> TestSupervisor {
        let mut s = self.spawning();
        s.done(Outcome::Spawned(Ok(N_PID)));
        s.expect([journal(Step::Warm), effect(Effect::Connect)]);
        s.done(written());
        s.opens_as(N, Credentials { descends: true, ..cred(N_PID) });
        s.quiet();
        s
    }

    /// The same, and the incumbent has said its own; the journal of Prepare is awaited.
    pub(crate) fn greeted(&self) -> TestSupervisor {
        let mut s = self.warming();
        s.opens_as(O, cred(O_PID));
        s.done(Outcome::Connected(Ok(())));
        s.quiet();
        s.hears(O, hello_of(Side::Incumbent, O_PID, self.o));
        s.expect([send(O, ack()), journal(Step::Prepare)]);
        s
    }

    /// The incumbent's Hello is awaited: the successor was quicker.
    pub(crate) fn connecting(&self) -> TestSupervisor {
        let mut s = self.warming();
        s.hears(N, hello_of(Side::Successor, N_PID, self.n));
        s.expect([send(N, ack())]);
        s
    }

    /// The incumbent is connected, its Hello is awaited.
    pub(crate) fn connected(&self) -> TestSupervisor {
        let mut s = self.connecting();
        s.opens_as(O, cred(O_PID));
        s.done(Outcome::Connected(Ok(())));
        s.quiet();
        s
    }

    /// The journal is awaited, then Prepare is sent.
    pub(crate) fn preparing(&self) -> TestSupervisor {
        let mut s = self.connected();
        s.hears(O, hello_of(Side::Incumbent, O_PID, self.o));
        s.expect([send(O, ack()), journal(Step::Prepare)]);
        s
    }

    /// Prepare is sent; the journal of the seal is written.
    pub(crate) fn draining(&self) -> TestSupervisor {
        let mut s = self.preparing();
        s.done(written());
        s.expect([journal(Step::Seal)]);
        s.done(written());
        s.expect([phase(Phase::Drain), send(O, prepare(SPEC.deadline, SPEC.drain_grace))]);
        s
    }

    /// SealRequest is sent.
    pub(crate) fn sealing(&self) -> TestSupervisor {
        let mut s = self.draining();
        s.hears(O, drained());
        s.expect([drained_event(), phase(Phase::Seal), send(O, seal_request())]);
        s
    }

    /// Begin is sent, and the incumbent has sealed revisions 4 and 9.
    pub(crate) fn opening(&self) -> TestSupervisor {
        let mut s = self.sealing();
        s.hears(O, seal_complete(&[4, 9]));
        s.expect([send(N, begin()), phase(Phase::Open), journal(Step::Begin)]);
        s.done(written());
        s.quiet();
        s
    }

    /// Ready came; the lock is looked at.
    pub(crate) fn verifying(&self) -> TestSupervisor {
        let mut s = self.opening();
        s.hears(N, ready(true, &[4, 9]));
        s.expect([check_ready()]);
        s
    }

    /// Commit is sent; the path is probed.
    pub(crate) fn committing(&self) -> TestSupervisor {
        let mut s = self.verifying();
        s.done(held_by(N_PID));
        s.expect_among(phase(Phase::Commit));
        s.done(written());
        s.quiet();
        s
    }

    /// The deadline has passed before Ready came; the incumbent was asked.
    pub(crate) fn asking(&self) -> TestSupervisor {
        let mut s = self.opening();
        s.passes_alive(61.s());
        s.asked();
        s
    }

    /// The successor said that it is unhealthy; the incumbent answered; the successor is being ended.
    pub(crate) fn ending(&self) -> TestSupervisor {
        let mut s = self.opening();
        s.hears(N, ready(false, &[4, 9]));
        s.expect([check_ready()]);
        s.done(held_by(N_PID));
        s.answers_alive();
        s.expect_among(term(N_PID));
        s.done(written());
        s.quiet();
        s
    }

    /// The same, and it is gone; the incumbent is to be seen serving.
    pub(crate) fn confirming(&self) -> TestSupervisor {
        let mut s = self.ending();
        s.done(reaped());
        s
    }

    /// The incumbent ended while it drained, and the lock is looked at.
    pub(crate) fn promoting(&self) -> TestSupervisor {
        let mut s = self.draining();
        s.done(exited(O_PID));
        s.loses(O);
        s.expect([phase(Phase::Promote), check_lock()]);
        s
    }

    /// The same, and Begin is sent.
    pub(crate) fn promoted(&self) -> TestSupervisor {
        let mut s = self.promoting();
        s.done(lock_free());
        s.expect([send(N, begin()), phase(Phase::Open), journal(Step::Begin)]);
        s.done(written());
        s
    }
}

pub(crate) fn drained_event() -> Output {
    event(Event::Drained { open_conns_remaining: 3, accept_closed: true })
}

impl TestSupervisor {
    /// Time passes while both daemons heartbeat.
    pub(crate) fn passes_alive(&mut self, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            let step = until.saturating_since(self.now).min(1.s());
            self.passes(step);
            self.hears(O, heartbeat(7));
            self.hears(N, heartbeat(7));
        }
    }

    /// The incumbent was asked just now; gives the stamp of the question.
    #[track_caller]
    pub(crate) fn asked(&mut self) -> u64 {
        let outputs = self.take();
        let mut stamps = outputs.iter().filter_map(|output| match output {
            Output::Send { to: O, message: Message::Heartbeat { ts_ms } } => Some(*ts_ms),
            _ => None,
        });
        let Some(stamp) = stamps.next() else { panic!("nobody was asked: {outputs:?}") };
        assert_eq!(stamps.next(), None, "it was asked once");
        assert!(stamp >= STAMPED, "no clock shows {stamp}");
        stamp
    }

    /// The incumbent answers the question that was asked just now.
    #[track_caller]
    pub(crate) fn answers_alive(&mut self) {
        let stamp = self.asked();
        self.hears(O, heartbeat(stamp));
    }

    /// What the handoff came to; it must have ended just now.
    #[track_caller]
    pub(crate) fn report(&mut self) -> Report {
        let outputs = self.take();
        let reports = outputs.iter().filter_map(|output| match output {
            Output::Event(Event::Finished(report)) => Some(report.clone()),
            _ => None,
        });
        let reports: Vec<Report> = reports.collect();
        let [report] = &reports[..] else {
            panic!("{} reports in {outputs:#?}", reports.len());
        };
        assert!(self.machine.idle(), "the next handoff can start");
        assert_eq!(report.id, ID);
        report.clone()
    }

    /// The verdict and the reason of a handoff that ended just now, and who serves.
    #[track_caller]
    pub(crate) fn verdict(&mut self) -> (Verdict, Option<Reason>, Option<u32>) {
        let report = self.report();
        (report.verdict, report.trouble.map(|trouble| trouble.reason), report.serving)
    }
}

pub(crate) fn trouble_of(report: &Report) -> Option<Reason> {
    report.trouble.as_ref().map(|trouble: &Trouble| trouble.reason)
}

pub(crate) fn ready_of(healthz_ok: bool, revisions: &[u64]) -> Ready {
    Ready { listening_on: vec!["[::1]:80".into()], healthz_ok, revisions: revisions.to_vec() }
}

//! The core in a program's own event loop: no socket, no thread, and a clock that is only a number.
//! What a machine asks for is done, and told it by an event in a queue: a few milliseconds later.
use std::collections::BTreeMap;

use handoff_core::daemon::{
    self, Command, ConnId, Daemon, DrainReport, Effect, Hook, LockFailure, OsEffect, Outcome,
    Probed, Readiness, SealReport,
};
use handoff_core::supervisor::{self, Effect as Do, LockState, Outcome as Done, Peer, Supervisor};
use handoff_core::{Credentials, HandoffId, Input, Instant, Machine, Message, Output};

/// The clock in milliseconds, the queue of what happens to whom, and what the processes share.
#[derive(Default)]
struct Loop {
    now: u64,
    events: BTreeMap<(u64, usize), Event>,
    count: usize,
    lock: Option<u32>,
    path: Option<u32>,
    report: Option<supervisor::Report>,
}
enum Event {
    Supervisor(supervisor::Input),
    Daemon(u32, daemon::Input),
}
const OLD: u32 = 2;
const NEW: u32 = 3;

fn main() {
    let (mut it, mut supervisor) = (Loop::default(), Supervisor::new(supervisor::Config::new(0)));
    let mut old = Daemon::cold(daemon::Config::new(OLD, 0));
    let mut new = Daemon::successor(daemon::Config::new(NEW, 0), true);
    let (id, spec) = (HandoffId::from_random_bytes([7; 16]), supervisor::Spec::default());
    it.after(0, Event::Daemon(OLD, Input::Command(Command::Begin)));
    it.after(500, Event::Supervisor(Input::Command(supervisor::Command::Handoff { id, spec })));
    // The new one warms up for so long that both sides heartbeat.
    it.after(3000, Event::Daemon(NEW, Input::Command(Command::Begin)));
    while it.report.is_none() {
        let due = |at: Option<Instant>| at.map(|at| at.since_origin().as_millis() as u64 + 1);
        let ticks = [
            (due(supervisor.deadline().map(|it| it.at)), Event::Supervisor(Input::Tick)),
            (due(old.deadline().map(|it| it.at)), Event::Daemon(OLD, Input::Tick)),
            (due(new.deadline().map(|it| it.at)), Event::Daemon(NEW, Input::Tick)),
        ];
        let tick =
            ticks.into_iter().filter_map(|(at, tick)| Some((at?, tick))).min_by_key(|it| it.0);
        let Some((at, event)) = it.next(tick) else { break };
        it.now = at;
        let (now, mut asks, mut wants) = (Instant::from_nanos(at * 1_000_000), vec![], vec![]);
        let pid = if let Event::Daemon(pid, _) = event { pid } else { 0 };
        match event {
            Event::Supervisor(input) => supervisor.handle(now, input, &mut asks),
            Event::Daemon(OLD, input) => old.handle(now, input, &mut wants),
            Event::Daemon(_, input) => new.handle(now, input, &mut wants),
        }
        asks.into_iter().for_each(|output| it.supervisor(output));
        wants.into_iter().for_each(|output| it.daemon(pid, output));
    }
    let said = it.report.as_ref().map(ToString::to_string).unwrap_or_default();
    println!("after {} ms: {said}; the control path leads to {:?}", it.now, it.path);
    assert_eq!(it.report.map(|it| it.verdict), Some(supervisor::Verdict::Committed));
    assert_eq!((it.lock, it.path), (Some(NEW), Some(NEW)));
}

impl Loop {
    fn after(&mut self, millis: u64, event: Event) {
        self.count += 1;
        self.events.insert((self.now + millis, self.count), event);
    }

    /// What has arrived comes before a timer that expires at the same time.
    fn next(&mut self, tick: Option<(u64, Event)>) -> Option<(u64, Event)> {
        let first = self.events.keys().next().map(|key| key.0);
        let tick = tick.filter(|tick| first.is_none_or(|first| tick.0 < first));
        tick.or_else(|| self.events.pop_first().map(|((at, _), event)| (at, event)))
    }

    /// Carries out what the supervisor asks for. No handoff fails here, so nobody is ended.
    fn supervisor(&mut self, output: supervisor::Output) {
        let (to, message) = match output {
            Output::Send { to, message } => (to, message),
            Output::Beat { to, ts_ms } => (to, Message::Heartbeat { ts_ms }),
            Output::Event(supervisor::Event::Finished(report)) => {
                return self.report = Some(report);
            }
            Output::Do(effect) => {
                let probed = self.path.map_or(Probed::Silent, |pid| Probed::Answered { pid });
                let lock = LockState::Held { pid: self.lock };
                let done = match effect {
                    Do::Probe => Done::Probed(probed),
                    Do::Spawn { .. } => self.open(5, Peer::Successor, Done::Spawned(Ok(NEW))),
                    Do::Connect => self.open(3, Peer::Incumbent, Done::Connected(Ok(()))),
                    Do::CheckLock { .. } => Done::LockChecked(lock),
                    Do::Journal(_) => Done::Journalled(Ok(())),
                    Do::Signal { .. } | Do::Reap { .. } => return,
                };
                return self.after(4, Event::Supervisor(Input::Done(done)));
            }
            Output::Answer { .. } | Output::Cancel | Output::Close { .. } | Output::Event(_) => {
                return;
            }
        };
        let (pid, from) = ends(to);
        self.after(1, Event::Daemon(pid, Input::Message { from, message }));
    }

    fn open(&mut self, millis: u64, peer: Peer, done: Done) -> Done {
        let (pid, conn) = ends(peer);
        let cred = |pid| Credentials { pid, uid: 0, descends: true };
        self.after(millis, Event::Supervisor(Input::Opened { peer, cred: cred(pid) }));
        self.after(millis, Event::Daemon(pid, Input::Opened { peer: conn, cred: cred(1) }));
        done
    }

    fn daemon(&mut self, pid: u32, output: daemon::Output) {
        let message = match output {
            Output::Send { message, .. } => message,
            Output::Beat { ts_ms, .. } | Output::Answer { ts_ms, .. } => {
                Message::Heartbeat { ts_ms }
            }
            Output::Do(effect) => {
                let done = self.done(pid, &effect);
                return self.after(20, Event::Daemon(pid, Input::Done(done)));
            }
            Output::Cancel | Output::Close { .. } | Output::Event(_) => return,
        };
        let from = if pid == OLD { Peer::Incumbent } else { Peer::Successor };
        self.after(1, Event::Supervisor(Input::Message { from, message }));
    }

    /// What a daemon's effect does, and completes with.
    fn done(&mut self, pid: u32, effect: &Effect) -> Outcome {
        match effect {
            Effect::Hook(Hook::Open) => Outcome::Opened(Ok(Readiness {
                listening_on: vec![],
                healthz_ok: true,
                revisions: vec![],
            })),
            Effect::Hook(Hook::Drain { .. }) => {
                Outcome::Drained(Ok(DrainReport { open_conns_remaining: 0, accept_closed: true }))
            }
            Effect::Hook(Hook::Seal) => Outcome::Sealed(Ok(SealReport::default())),
            Effect::Hook(Hook::Resume) => Outcome::Resumed(Ok(())),
            Effect::Os(OsEffect::TakeLock) => match self.lock {
                Some(holder) => Outcome::Lock(Err(LockFailure::Held { holder: Some(holder) })),
                None => {
                    self.lock = Some(pid);
                    Outcome::Lock(Ok(()))
                }
            },
            Effect::Os(OsEffect::ReleaseLock) => {
                self.lock = None;
                Outcome::Released(Ok(()))
            }
            Effect::Os(OsEffect::ClaimPath) => {
                self.path = Some(pid);
                Outcome::Claimed(Ok(()))
            }
            Effect::Os(OsEffect::StagePath) => Outcome::Staged(Ok(())),
            Effect::Os(OsEffect::Probe) => Outcome::Probed(Probed::Silent),
            Effect::Os(OsEffect::WatchSuccessor { .. }) => Outcome::Watched(Ok(())),
            Effect::Os(OsEffect::SignalSuccessor(_)) => Outcome::Signalled(Ok(())),
        }
    }
}

/// A daemon's pid, and what it calls its connection to the supervisor.
const fn ends(peer: Peer) -> (u32, ConnId) {
    match peer {
        Peer::Incumbent => (OLD, ConnId(1)),
        Peer::Successor => (NEW, ConnId::SUPERVISOR),
    }
}

#[test]
fn it_hands_over() {
    main();
}

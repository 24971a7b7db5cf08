//! Any order of any inputs: what holds for the machines whatever their peers, their host and the clock do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod common;

use common::arbitrary::config;
use common::*;
use handoff_core::daemon::{self, ConnId, Daemon, Ended, Hook, OsEffect, Probed, StandDown};
use handoff_core::supervisor::{self, LockState, Peer, Supervisor, Verdict};
use handoff_core::wire::{WireError, encode};
use handoff_core::{
    Capabilities, Credentials, HandoffId, Hangup, Input, Instant, Machine, Message, Output, Side,
    Violation,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Once;

/// A list of choices, used up one by one.
struct Dice<'a>(&'a [u16]);

impl Dice<'_> {
    fn roll(&mut self, below: usize) -> usize {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                usize::from(first) % below
            }
            None => 0,
        }
    }

    fn pick<T: Clone>(&mut self, among: &[T]) -> T {
        among[self.roll(among.len())].clone()
    }

    fn flip(&mut self) -> bool {
        self.roll(2) == 0
    }

    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

type In<M> = Input<<M as Machine>::Peer, <M as Machine>::Outcome, <M as Machine>::Command>;
type Outs<M> = Vec<Output<<M as Machine>::Peer, <M as Machine>::Effect, <M as Machine>::Event>>;

/// Gives one input to a machine, and checks what holds for every machine and every input.
fn give<M>(machine: &mut M, now: Instant, input: In<M>) -> Outs<M>
where
    M: Machine + Clone + PartialEq + Debug,
    In<M>: Clone + Debug,
    M::Effect: PartialEq + Debug,
    M::Event: PartialEq + Debug,
{
    let before = machine.deadline();
    assert_eq!(before, machine.deadline(), "pure");
    let mut twin = machine.clone();
    let mut moved = machine.clone();
    let mut outputs = Vec::new();
    machine.handle(now, input.clone(), &mut outputs);
    TRANSCRIPT.with_borrow_mut(|transcript| {
        let (at, state) = (now.since_origin(), machine.state_name());
        transcript.push(format!("{at:?} {input:?} -> {state}: {outputs:?}"));
    });

    // Equal states give equal outputs.
    let mut of_twin = Vec::new();
    twin.handle(now, input.clone(), &mut of_twin);
    assert_eq!(outputs, of_twin);
    assert_eq!(*machine, twin);

    // The origin of time is the host's own choice.
    let by = before.map_or(now, |deadline| deadline.at.min(now)).since_origin();
    moved.rebase(by);
    let mut of_moved = Vec::new();
    moved.handle(now.rebased(by), input.clone(), &mut of_moved);
    let untimed = |outputs: &[_]| -> Vec<usize> {
        let timed = |output: &Output<_, M::Effect, M::Event>| matches!(output, Output::Beat { .. });
        (0..outputs.len()).filter(|&at| !timed(&outputs[at])).collect()
    };
    assert_eq!(untimed(&outputs), untimed(&of_moved));
    for at in untimed(&outputs) {
        assert_eq!(outputs[at], of_moved[at]);
    }
    let mut rebased = machine.clone();
    rebased.rebase(by);
    assert_eq!(moved, rebased);

    // After a tick at the deadline it is later, or none.
    if let (Input::Tick, Some(next)) = (input, machine.deadline()) {
        assert!(next.at > now, "{next:?} is still due at {now:?}");
    }
    for output in &outputs {
        if let Output::Send { message, .. } = output {
            encode(message, 1, &mut Vec::new()).expect("what is said fits a frame");
        }
    }
    outputs
}

thread_local! {
    /// What the machine of the case at hand was given, and what it asked for.
    static TRANSCRIPT: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Runs a test with many lists of choices. One that fails is shrunk and told as a transcript.
fn run(cases: u32, steps: usize, test: impl Fn(&mut Dice<'_>)) {
    let strategy = vec(any::<u16>(), 0..steps);
    let one = |choices: &[u16]| {
        TRANSCRIPT.take();
        test(&mut Dice(choices));
    };
    quietly(true);
    let result = TestRunner::new(config(cases)).run(&strategy, |choices| {
        one(&choices);
        Ok(())
    });
    let reason = match result {
        Ok(()) => None,
        Err(TestError::Fail(reason, choices)) => {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one(&choices)));
            let transcript = TRANSCRIPT.take().join("\n");
            Some(format!("{reason}\n{transcript}\nchoices: {choices:?}"))
        }
        Err(TestError::Abort(reason)) => Some(reason.to_string()),
    };
    quietly(false);
    if let Some(reason) = reason {
        panic!("{reason}");
    }
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

fn any_message(dice: &mut Dice<'_>) -> Message {
    let id = dice.pick(&[ID, ID, ID, OTHER]);
    let message = dice.pick(&all_messages(id));
    match message {
        Message::PrepareHandoff { handoff_id, successor_pid, .. } => Message::PrepareHandoff {
            handoff_id,
            successor_pid,
            deadline_ms: dice.pick(&[0, 1000, 60_000, 600_000]),
            drain_grace_ms: dice.pick(&[0, 500, 20_000, 600_000]),
        },
        Message::HelloAck { handoff_id, .. } => {
            let proto_version_chosen = dice.pick(&[1, 1, 1, 0, 2]);
            Message::HelloAck { proto_version_chosen, handoff_id }
        }
        Message::Hello { pid, build_id, proto_min, proto_max, .. } => Message::Hello {
            role: dice.pick(&[Side::Incumbent, Side::Successor]),
            pid: dice.pick(&[pid, N_PID]),
            build_id,
            proto_min,
            proto_max: dice.pick(&[proto_max, 7]),
            capabilities: Capabilities { reserved: dice.roll(4) as u64 },
        },
        other => other,
    }
}

fn any_cred(dice: &mut Dice<'_>) -> Credentials {
    Credentials {
        pid: dice.pick(&[S_PID, O_PID, N_PID]),
        uid: dice.pick(&[UID, UID, UID, 0, 5]),
        descends: dice.flip(),
    }
}

fn any_hangup(dice: &mut Dice<'_>) -> Hangup {
    if dice.flip() { Hangup::Eof } else { Hangup::Violation(Violation::Wire(WireError::Malformed)) }
}

fn any_span(dice: &mut Dice<'_>) -> std::time::Duration {
    dice.pick(&[0.ms(), 1.ms(), 20.ms(), 300.ms(), 1.s(), 5.s(), 31.s(), 100.s()])
}

// Daemons.

fn daemon_outcome(dice: &mut Dice<'_>) -> daemon::Outcome {
    use daemon::Outcome;
    use daemon::{DrainReport, LockFailure, Readiness, SealFailure, SealReport};
    let error = || String::from("no");
    match dice.roll(18) {
        0 => Outcome::Lock(Ok(())),
        1 => Outcome::Lock(Err(LockFailure::Held { holder: None })),
        2 => Outcome::Lock(Err(LockFailure::Shortage(error()))),
        3 => Outcome::Released(Ok(())),
        4 => Outcome::Released(Err(error())),
        5 => Outcome::Staged(Ok(())),
        6 => Outcome::Staged(Err(error())),
        7 => Outcome::Claimed(Ok(())),
        8 => Outcome::Claimed(Err(error())),
        9 => Outcome::Probed(dice.pick(&[
            Probed::Own,
            Probed::Silent,
            Probed::Answered { pid: X_PID },
        ])),
        10 => Outcome::Watched(if dice.flip() { Ok(()) } else { Err(error()) }),
        11 => Outcome::Signalled(if dice.flip() { Ok(()) } else { Err(error()) }),
        12 => Outcome::Opened(Ok(Readiness {
            listening_on: vec![],
            healthz_ok: true,
            revisions: vec![1],
        })),
        13 => Outcome::Opened(Err(error())),
        14 => {
            let report = DrainReport { open_conns_remaining: 0, accept_closed: true };
            Outcome::Drained(if dice.flip() { Ok(report) } else { Err(error()) })
        }
        15 => Outcome::Sealed(Ok(SealReport::default())),
        16 => Outcome::Sealed(Err(SealFailure::default())),
        _ => Outcome::Resumed(if dice.roll(8) > 0 { Ok(()) } else { Err(error()) }),
    }
}

fn daemon_command(dice: &mut Dice<'_>) -> daemon::Command {
    match dice.roll(8) {
        0 => daemon::Command::Stop,
        1..4 => {
            daemon::Command::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: 3 }
        }
        _ => daemon::Command::Begin,
    }
}

fn serving() -> Daemon {
    let config = daemon::Config::new(O_PID, UID);
    Daemon::Incumbent(handoff_core::incumbent::Incumbent::new(config))
}

fn any_daemon(dice: &mut Dice<'_>) -> Daemon {
    let config = daemon::Config::new(N_PID, UID);
    match dice.roll(4) {
        0 => Daemon::cold(config),
        1 => Daemon::successor(config, dice.flip()),
        _ => serving(),
    }
}

/// W7, R7: any order of any inputs, completions of nothing among them, neither makes a daemon panic nor
/// its clock stand still; once it has ended it asks for nothing more.
#[test]
fn a_daemon_survives_any_inputs() {
    let states = RefCell::new(BTreeSet::new());
    run(3000, 160, |dice| {
        let mut machine = any_daemon(dice);
        let mut now = Instant::ORIGIN;
        let mut ended = false;
        while !dice.is_empty() {
            let conn = ConnId(dice.roll(4) as u32);
            let input = match dice.roll(12) {
                0 | 1 => Input::Opened { peer: conn, cred: any_cred(dice) },
                2 => Input::Heard { from: conn },
                3..6 => Input::Message { from: conn, message: any_message(dice) },
                6 => Input::Closed { from: conn, how: any_hangup(dice) },
                7 => Input::Command(daemon_command(dice)),
                8 | 9 => Input::Done(daemon_outcome(dice)),
                _ => {
                    now = match machine.deadline() {
                        Some(deadline) if dice.flip() => now.max(deadline.at),
                        _ => now + any_span(dice),
                    };
                    Input::Tick
                }
            };
            let outputs = give(&mut machine, now, input);
            states.borrow_mut().insert(machine.state_name());
            if ended {
                let closes = |output: &daemon::Output| matches!(output, Output::Close { .. });
                assert!(outputs.iter().all(closes), "{outputs:?} after the end");
                assert_eq!(machine.deadline(), None, "after the end");
            }
            ended |= outputs
                .iter()
                .any(|output| matches!(output, Output::Event(daemon::Event::Ended(_))));
        }
    });
    let states = states.into_inner();
    for state in ["ended", "serving", "draining", "stopping", "taking the lock", "leaving"] {
        assert!(states.contains(state), "{state} was not reached: {states:?}");
    }
}

/// What a host knows of a daemon, and whether the daemon keeps to what it promises.
struct Host {
    machine: Daemon,
    now: Instant,
    in_flight: Vec<daemon::Effect>,
    open: BTreeSet<ConnId>,
    /// As the machine knows it: taken when reported, gone when its release is asked for (R8).
    lock: bool,
    /// Nobody came before it: it has no supervisor's connection.
    cold: bool,
    /// It may take the lock (R3).
    may_lock: bool,
    committed: bool,
    ended: Option<Ended>,
    /// Of the handoff under way: its id, and how often its hooks were asked for.
    handoff: Option<HandoffId>,
    asked: BTreeMap<&'static str, u32>,
    states: BTreeSet<&'static str>,
}

/// At most one of a kind is in flight.
fn kind(effect: &daemon::Effect) -> &'static str {
    match effect {
        // One runs at a time.
        daemon::Effect::Hook(_) => "hook",
        daemon::Effect::Os(effect) => match effect {
            OsEffect::TakeLock | OsEffect::ReleaseLock => "lock",
            OsEffect::StagePath => "stage",
            OsEffect::ClaimPath => "claim",
            OsEffect::Probe => "probe",
            OsEffect::WatchSuccessor { .. } => "watch",
            OsEffect::SignalSuccessor(_) => "signal",
        },
    }
}

impl Host {
    fn new(machine: Daemon, lock: bool) -> Self {
        Self {
            cold: false,
            machine,
            now: Instant::ORIGIN,
            in_flight: Vec::new(),
            open: BTreeSet::new(),
            lock,
            may_lock: lock,
            committed: false,
            ended: None,
            handoff: None,
            asked: BTreeMap::new(),
            states: BTreeSet::new(),
        }
    }

    fn running(&self, kind_: &str) -> bool {
        self.in_flight.iter().any(|effect| kind(effect) == kind_)
    }

    fn give(&mut self, input: daemon::Input) {
        match &input {
            Input::Opened { peer, .. } => {
                self.open.insert(*peer);
            }
            Input::Closed { from, .. } => {
                self.open.remove(from);
            }
            Input::Message { from, message } => match message {
                Message::Begin { .. } if *from == ConnId::SUPERVISOR => self.may_lock = true,
                Message::Commit { .. } => self.committed = true,
                _ => {}
            },
            Input::Done(daemon::Outcome::Lock(Ok(()))) => self.lock = true,
            Input::Done(daemon::Outcome::Released(Err(_))) => self.lock = true,
            _ => {}
        }
        let outputs = give(&mut self.machine, self.now, input);
        self.states.insert(self.machine.state_name());
        for output in outputs {
            self.check(output);
        }
    }

    fn check(&mut self, output: daemon::Output) {
        let state = self.machine.state_name();
        if self.ended.is_some() {
            assert!(matches!(output, Output::Close { .. }), "{output:?} after the end");
        }
        match output {
            Output::Send { to, message } => {
                assert!(self.open.contains(&to), "{message:?} to a closed connection");
                if matches!(message, Message::SealComplete { .. }) {
                    assert!(!self.lock && !self.running("lock"), "R8: the lock is released");
                }
            }
            Output::Beat { to, .. } | Output::Answer { to, .. } => {
                assert!(self.open.contains(&to), "a heartbeat to a closed connection");
            }
            Output::Close { peer } => {
                assert!(self.open.remove(&peer), "{peer:?} was closed before");
            }
            Output::Cancel => assert!(self.running("hook"), "no hook runs to be told"),
            Output::Event(event) => self.told(event),
            Output::Do(effect) => {
                assert!(
                    !self.running(kind(&effect)),
                    "{effect:?} beside {:?} while {state}",
                    self.in_flight
                );
                match &effect {
                    daemon::Effect::Os(OsEffect::TakeLock) => {
                        assert!(!self.lock && self.may_lock, "R3: {effect:?} while {state}");
                    }
                    daemon::Effect::Os(OsEffect::ReleaseLock) => {
                        assert!(self.lock, "R8: {effect:?} while {state}");
                        assert!(!self.running("hook"), "R7: a hook still runs");
                        assert!(!self.running("claim"), "R11: the path is being claimed");
                        self.lock = false;
                    }
                    daemon::Effect::Os(OsEffect::ClaimPath | OsEffect::StagePath) => {
                        assert!(self.lock, "R11: {effect:?} without the lock while {state}");
                    }
                    daemon::Effect::Hook(hook) => {
                        assert!(self.lock, "R7: {hook:?} without the lock while {state}");
                        let name = match hook {
                            Hook::Open => "open",
                            Hook::Drain { .. } => "drain",
                            Hook::Seal => "seal",
                            Hook::Resume => "resume",
                        };
                        *self.asked.entry(name).or_default() += 1;
                        if self.handoff.is_some() {
                            assert_eq!(self.asked[name], 1, "R7: {name} twice in one handoff");
                        }
                    }
                    daemon::Effect::Os(_) => {}
                }
                self.in_flight.push(effect);
            }
        }
    }

    fn told(&mut self, event: daemon::Event) {
        use daemon::Event;
        match event {
            Event::HandoffBegun { id, .. } => {
                assert_eq!(self.handoff, None, "C5: one handoff at a time");
                self.handoff = Some(id);
                self.asked.clear();
            }
            Event::Resumed { id } => {
                assert_eq!(self.handoff.take(), Some(id));
                assert_eq!(self.asked.get("resume"), Some(&1), "R7: resume ran once");
                assert!(self.lock, "R7: it serves without the lock");
                self.asked.clear();
            }
            Event::Ended(ended) => {
                match &ended {
                    Ended::Committed { .. } => {
                        assert!(self.committed, "R2: nobody said Commit");
                        assert!(!self.lock, "C2: committed with the lock in hand");
                    }
                    // Elsewhere an unlock or a seal may have failed: the lock goes with the process.
                    Ended::StoodDown { why: StandDown::OtherServes { .. } } => {
                        assert!(!self.lock, "R2: {ended:?} with the lock");
                    }
                    _ => {}
                }
                self.ended = Some(ended);
            }
            _ => {}
        }
    }

    /// Before it answers on the control path only its supervisor's connection is there, and that once.
    fn reachable(&self, conn: ConnId) -> bool {
        self.machine.answers() && conn != ConnId::SUPERVISOR
    }

    /// Completes one of the effects in flight, in a way that fits it.
    fn complete(&mut self, dice: &mut Dice<'_>, fails: bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let effect = self.in_flight.remove(dice.roll(self.in_flight.len()));
        let fits = |outcome: &daemon::Outcome| {
            use daemon::{Effect, Outcome};
            matches!(
                (&effect, outcome),
                (Effect::Os(OsEffect::TakeLock), Outcome::Lock(_))
                    | (Effect::Os(OsEffect::ReleaseLock), Outcome::Released(_))
                    | (Effect::Os(OsEffect::StagePath), Outcome::Staged(_))
                    | (Effect::Os(OsEffect::ClaimPath), Outcome::Claimed(_))
                    | (Effect::Os(OsEffect::Probe), Outcome::Probed(_))
                    | (Effect::Os(OsEffect::WatchSuccessor { .. }), Outcome::Watched(_))
                    | (Effect::Os(OsEffect::SignalSuccessor(_)), Outcome::Signalled(_))
                    | (Effect::Hook(Hook::Open), Outcome::Opened(_))
                    | (Effect::Hook(Hook::Drain { .. }), Outcome::Drained(_))
                    | (Effect::Hook(Hook::Seal), Outcome::Sealed(_))
                    | (Effect::Hook(Hook::Resume), Outcome::Resumed(_))
            )
        };
        let good = |outcome: &daemon::Outcome| {
            use daemon::Outcome;
            !matches!(
                outcome,
                Outcome::Lock(Err(_))
                    | Outcome::Released(Err(_))
                    | Outcome::Staged(Err(_))
                    | Outcome::Claimed(Err(_))
                    | Outcome::Probed(Probed::Answered { .. })
                    | Outcome::Watched(Err(_))
                    | Outcome::Signalled(Err(_))
                    | Outcome::Opened(Err(_))
                    | Outcome::Drained(Err(_))
                    | Outcome::Sealed(Err(_))
                    | Outcome::Resumed(Err(_))
            )
        };
        // Every completion there is, in turn; each effect has a good one.
        let first = dice.roll(1000) as u16;
        let outcome = (first..)
            .flat_map(|n| [[n, 0, 1], [n, 1, 0], [n, 2, 0]])
            .map(|choices| daemon_outcome(&mut Dice(&choices)))
            .find(|outcome| fits(outcome) && (fails || good(outcome)))
            .expect("every effect completes");
        self.give(Input::Done(outcome));
    }

    /// Time passes, and the host tells it when it asked to be told.
    fn pass(&mut self, until: Instant) {
        for _ in 0..10_000 {
            let Some(deadline) = self.machine.deadline().filter(|d| d.at <= until) else {
                self.now = self.now.max(until);
                return;
            };
            self.now = self.now.max(deadline.at);
            self.give(Input::Tick);
        }
        panic!("its clock stands still");
    }

    fn step(&mut self, dice: &mut Dice<'_>) {
        // Mostly the connection that matters, the supervisor's.
        let s = match &self.machine {
            Daemon::Successor(_) if !self.cold => ConnId::SUPERVISOR,
            Daemon::Successor(_) | Daemon::Incumbent(_) => ConnId(1),
        };
        let conn = if dice.roll(5) > 0 { s } else { ConnId(2 + dice.roll(2) as u32) };
        match dice.roll(20) {
            0 | 1 if !self.open.contains(&conn) && self.reachable(conn) => {
                let uid = dice.pick(&[UID, UID, UID, UID, 5]);
                self.give(Input::Opened { peer: conn, cred: Credentials { uid, ..cred(S_PID) } });
            }
            0..8 if self.open.contains(&conn) => {
                let id = if conn == s { ID } else { OTHER };
                let next = match self.machine.state_name() {
                    "serving" if dice.flip() => prepare_of(id, 30.s(), 10.s()),
                    "drained" => Message::SealRequest { handoff_id: id },
                    "sealed" | "awaiting the verdict" => Message::Commit { handoff_id: id },
                    "awaiting Begin" => Message::Begin { handoff_id: id },
                    _ => ack_of(id),
                };
                let message = match dice.roll(8) {
                    0..4 => next,
                    4 => ack_of(id),
                    5 => heartbeat(5),
                    6 => dice.pick(&[abort(), resume(), heartbeat(6)]),
                    _ => any_message(dice),
                };
                self.give(Input::Message { from: conn, message });
            }
            8 if self.open.contains(&conn) => {
                let how = any_hangup(dice);
                self.give(Input::Closed { from: conn, how });
            }
            9 if self.open.contains(&conn) => self.give(Input::Heard { from: conn }),
            10 => {
                let command = daemon_command(dice);
                self.give(Input::Command(command));
            }
            11..16 => {
                let fails = dice.roll(4) == 0;
                self.complete(dice, fails);
            }
            16 => {
                // A host that was stopped: one tick, late.
                self.now = self.now + any_span(dice);
                self.give(Input::Tick);
            }
            17 if self.machine.deadline().is_some() => {
                let at = self.machine.deadline().map(|deadline| deadline.at);
                self.pass(self.now.max(at.unwrap_or_default()));
            }
            _ => {
                let span = dice.pick(&[0.ms(), 10.ms(), 1.s(), 4.s()]);
                self.pass(self.now + span);
            }
        }
    }

    /// From here on everything works: hooks return, the lock is free, nobody else serves.
    fn settle(&mut self) {
        for _ in 0..2000 {
            if !self.in_flight.is_empty() {
                self.complete(&mut Dice(&[]), false);
            } else if let Some(deadline) = self.machine.deadline() {
                self.pass(self.now.max(deadline.at));
            } else {
                break;
            }
            if self.machine.state_name() == "serving" && self.in_flight.is_empty() {
                break;
            }
        }
    }
}

/// R1-R3, R7, R8, R11, C2, C5: what an incumbent asks for, whatever its peers say and however late its
/// host completes what it asked for; and that it ends up serving, or has ended, once all connections are
/// closed and all effects succeed.
#[test]
fn an_incumbent_keeps_its_promises() {
    let states = RefCell::new(BTreeSet::new());
    run(4000, 800, |dice| {
        let mut host = Host::new(serving(), true);
        while !dice.is_empty() {
            host.step(dice);
        }
        let open: Vec<ConnId> = host.open.iter().copied().collect();
        for conn in open {
            host.give(Input::Closed { from: conn, how: Hangup::Eof });
        }
        host.settle();
        let state = host.machine.state_name();
        assert!(matches!(state, "serving" | "ended"), "stuck while {state}");
        assert_eq!(state == "ended", host.ended.is_some());
        states.borrow_mut().extend(host.states);
    });
    let states = states.into_inner();
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
    run(2000, 400, |dice| {
        let mut host = Host::new(serving(), true);
        while !dice.is_empty() {
            host.step(dice);
        }
        host.settle();
        let state = host.machine.state_name();
        assert!(matches!(state, "serving" | "ended"), "stuck while {state}");
    });
}

/// R1, R3, R7, R8: the same of a successor and of a cold start: the lock is not touched before Begin, no
/// hook runs without it, and it ends up serving or ended.
#[test]
fn a_successor_keeps_its_promises() {
    let states = RefCell::new(BTreeSet::new());
    run(4000, 400, |dice| {
        let config = daemon::Config::new(N_PID, UID);
        let cold = dice.roll(4) == 0;
        let machine =
            if cold { Daemon::cold(config) } else { Daemon::successor(config, dice.flip()) };
        let mut host = Host::new(machine, false);
        (host.cold, host.may_lock) = (cold, cold);
        if !cold {
            host.give(Input::Opened { peer: ConnId::SUPERVISOR, cred: cred(S_PID) });
        }
        if dice.roll(4) > 0 {
            host.give(Input::Command(daemon::Command::Begin));
        }
        while !dice.is_empty() {
            host.step(dice);
        }
        host.give(Input::Command(daemon::Command::Begin));
        let open: Vec<ConnId> = host.open.iter().copied().collect();
        for conn in open {
            host.give(Input::Closed { from: conn, how: Hangup::Eof });
        }
        host.settle();
        let state = host.machine.state_name();
        assert!(matches!(state, "serving" | "ended"), "stuck while {state}");
        states.borrow_mut().extend(host.states);
    });
    let states = states.into_inner();
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

// The supervisor.

fn supervisor_outcome(dice: &mut Dice<'_>, n: u32) -> supervisor::Outcome {
    use supervisor::Outcome;
    let error = || String::from("no");
    let flip = |dice: &mut Dice<'_>| if dice.flip() { Ok(()) } else { Err(error()) };
    let pid = dice.pick(&[n, O_PID, X_PID]);
    match dice.roll(9) {
        0 | 1 => Outcome::Probed(dice.pick(&[Probed::Silent, Probed::Answered { pid }])),
        2 => Outcome::Spawned(if dice.roll(4) > 0 { Ok(n) } else { Err(error()) }),
        3 => Outcome::Connected(flip(dice)),
        4 => Outcome::LockChecked(dice.pick(&[
            LockState::Free,
            LockState::Unknown,
            LockState::Held { pid: Some(pid) },
            LockState::Held { pid: None },
        ])),
        5 => Outcome::Signalled(flip(dice)),
        6 => Outcome::Reaped { pid },
        7 => Outcome::Journalled(if dice.roll(8) > 0 { Ok(()) } else { Err(error()) }),
        _ => Outcome::Exited { pid, status: error() },
    }
}

fn any_supervisor(dice: &mut Dice<'_>) -> (Supervisor, supervisor::Config) {
    let mut config = supervisor::Config::new(UID);
    config.promote = dice.roll(8) > 0;
    config.strict = dice.roll(4) == 0;
    config.allow_wrappers = dice.roll(4) == 0;
    (Supervisor::new(config.clone()), config)
}

/// W7: any order of any inputs neither makes a supervisor panic nor its clock stand still.
#[test]
fn a_supervisor_survives_any_inputs() {
    let states = RefCell::new(BTreeSet::new());
    run(3000, 200, |dice| {
        let (mut machine, _) = any_supervisor(dice);
        let mut now = Instant::ORIGIN;
        while !dice.is_empty() {
            let peer = dice.pick(&[Peer::Incumbent, Peer::Successor]);
            let input = match dice.roll(14) {
                0 | 1 => Input::Opened { peer, cred: any_cred(dice) },
                2 => Input::Heard { from: peer },
                3..6 => Input::Message { from: peer, message: any_message(dice) },
                6 => Input::Closed { from: peer, how: any_hangup(dice) },
                7 => Input::Command(match dice.roll(8) {
                    0 => supervisor::Command::Abort,
                    1 => supervisor::Command::Start { own: vec![O_PID] },
                    _ => {
                        let id = dice.pick(&[ID, OTHER]);
                        supervisor::Command::Handoff { id, spec: supervisor::Spec::default() }
                    }
                }),
                8..12 => Input::Done(supervisor_outcome(dice, N_PID)),
                _ => {
                    now = match machine.deadline() {
                        Some(deadline) if dice.flip() => now.max(deadline.at),
                        _ => now + any_span(dice),
                    };
                    Input::Tick
                }
            };
            give(&mut machine, now, input);
            states.borrow_mut().insert(machine.state_name());
            if machine.idle() {
                assert_eq!(machine.deadline(), None, "nothing is awaited when idle");
            }
        }
    });
    let states = states.into_inner();
    assert!(states.contains("ending the successor"), "{states:?}");
}

/// What a host knows of a supervisor, and whether it keeps to what it promises.
struct Base {
    machine: Supervisor,
    config: supervisor::Config,
    now: Instant,
    in_flight: Vec<supervisor::Effect>,
    open: BTreeSet<Peer>,
    states: BTreeSet<&'static str>,
    /// The pid that the next process gets.
    n: u32,
    swap: Option<Facts>,
    /// Who was asked to end, and when.
    terms: BTreeMap<u32, Instant>,
    finished: u32,
    accepted: u32,
}

/// What was seen of the handoff under way.
#[derive(Default)]
struct Facts {
    id: Option<HandoffId>,
    o_exited: bool,
    n_exited: bool,
    n_lost: bool,
    steady_o: bool,
    other_answered: bool,
    /// Since Prepare the incumbent has answered, or somebody on the control path has.
    o_alive: bool,
    seal_failed: bool,
    may_begin: bool,
    begun: bool,
    ready: bool,
    reaped: bool,
    ended_n: bool,
    said: BTreeMap<(Peer, &'static str), u32>,
}

fn supervisor_kind(effect: &supervisor::Effect) -> String {
    use supervisor::Effect;
    match effect {
        Effect::Probe => "probe".into(),
        Effect::Spawn { .. } => "spawn".into(),
        Effect::Connect => "connect".into(),
        Effect::CheckLock { .. } => "check".into(),
        Effect::Signal { pid, signal } => format!("{signal:?} to {pid}"),
        Effect::Reap { pid } => format!("reap {pid}"),
        Effect::Journal(_) => "journal".into(),
    }
}

impl Base {
    fn new(dice: &mut Dice<'_>) -> Self {
        let (machine, config) = any_supervisor(dice);
        Self {
            machine,
            config,
            now: Instant::ORIGIN,
            in_flight: Vec::new(),
            open: BTreeSet::new(),
            states: BTreeSet::new(),
            n: N_PID,
            swap: None,
            terms: BTreeMap::new(),
            finished: 0,
            accepted: 0,
        }
    }

    fn give(&mut self, input: supervisor::Input) {
        use supervisor::{Command, Outcome};
        if let Input::Command(Command::Handoff { id, .. }) = &input
            && self.machine.idle()
        {
            self.accepted += 1;
            self.swap = Some(Facts { id: Some(*id), ..Facts::default() });
        }
        let n = self.n;
        let gone_before = self.swap.as_ref().is_some_and(|facts| facts.o_exited);
        if let Some(facts) = &mut self.swap {
            match &input {
                Input::Done(Outcome::Exited { pid, .. }) if *pid == O_PID => facts.o_exited = true,
                Input::Done(Outcome::Exited { pid, .. }) if *pid == n => facts.n_exited = true,
                Input::Done(Outcome::Probed(Probed::Answered { pid })) if *pid != n => {
                    facts.other_answered = true;
                    facts.o_alive = true;
                }
                Input::Done(Outcome::LockChecked(LockState::Free | LockState::Unknown)) => {
                    facts.may_begin = true;
                }
                Input::Done(Outcome::Reaped { .. }) => facts.reaped = true,
                Input::Closed { from: Peer::Successor, .. } => facts.n_lost = true,
                Input::Heard { from: Peer::Incumbent } => facts.o_alive |= !facts.steady_o,
                Input::Message { from: Peer::Incumbent, message } => match message {
                    Message::Heartbeat { ts_ms } if *ts_ms >> 63 == 1 => facts.o_alive = true,
                    Message::SealFailed { .. } => {
                        facts.seal_failed = true;
                        facts.o_alive |= !facts.steady_o;
                    }
                    Message::SealComplete { .. } => {
                        facts.may_begin = true;
                        facts.o_alive |= !facts.steady_o;
                    }
                    Message::Hello { capabilities, .. } => {
                        facts.steady_o = capabilities.has(Capabilities::STEADY_HEARTBEAT);
                    }
                    _ => facts.o_alive |= !facts.steady_o,
                },
                Input::Message { from: Peer::Successor, message: Message::Ready { .. } } => {
                    facts.ready = true;
                }
                _ => {}
            }
        }
        match &input {
            Input::Opened { peer, .. } => {
                self.open.insert(*peer);
            }
            Input::Closed { from, .. } => {
                self.open.remove(from);
            }
            _ => {}
        }
        let outputs = give(&mut self.machine, self.now, input);
        self.states.insert(self.machine.state_name());
        for output in outputs {
            self.check(output, gone_before);
        }
    }

    fn check(&mut self, output: supervisor::Output, gone_before: bool) {
        let state = self.machine.state_name();
        match output {
            Output::Cancel => panic!("a supervisor has no hooks"),
            Output::Answer { .. } => panic!("T3: it never answers a Heartbeat"),
            Output::Beat { to, .. } => assert!(self.open.contains(&to)),
            Output::Close { peer } => {
                assert!(self.open.remove(&peer), "{peer} was closed before");
                if let (Peer::Successor, Some(facts)) = (peer, &mut self.swap) {
                    facts.n_lost = true;
                }
            }
            Output::Send { to, message } => {
                assert!(self.open.contains(&to), "{message:?} to a closed connection");
                self.said(to, &message, state);
            }
            Output::Event(supervisor::Event::Finished(report)) => {
                let facts = self.swap.take().expect("a handoff was under way");
                assert_eq!(Some(report.id), facts.id);
                self.finished += 1;
                assert!(self.machine.idle());
                if report.verdict == Verdict::Committed {
                    let commits = facts.said.get(&(Peer::Incumbent, "Commit"));
                    assert!(facts.ready || facts.o_exited || commits.is_none());
                    assert_eq!(report.serving, Some(self.n));
                }
                self.n += 1;
            }
            Output::Event(
                supervisor::Event::Serving { .. } | supervisor::Event::NobodyServes(_),
            ) => self.n += 1,
            Output::Event(_) => {}
            Output::Do(effect) => {
                let kind = supervisor_kind(&effect);
                let beside = self.in_flight.iter().any(|other| supervisor_kind(other) == kind);
                // A signal's completion is tied to nothing: what it did is seen in what it ends.
                let signal = matches!(effect, supervisor::Effect::Signal { .. });
                assert!(!beside || signal, "{effect:?} twice while {state}");
                if let supervisor::Effect::Signal { pid, signal } = effect {
                    if signal == daemon::Signal::Term {
                        self.terms.insert(pid, self.now);
                    } else {
                        let asked = self.terms.get(&pid).map(|&at| self.now.saturating_since(at));
                        assert!(asked >= Some(5.s()), "R14: {pid} had no time to end by itself");
                    }
                }
                if let supervisor::Effect::Signal { pid, signal: daemon::Signal::Term } = effect
                    && let Some(facts) = &mut self.swap
                    && pid == self.n
                {
                    // R5: with the incumbent gone, the last that could serve is not ended.
                    let allowed = facts.n_exited || facts.n_lost || facts.other_answered;
                    let reason = !gone_before || allowed || !self.config.promote;
                    assert!(reason, "R5: the last process is ended while {state}");
                    let prepared = facts.said.contains_key(&(Peer::Incumbent, "PrepareHandoff"));
                    let needless = facts.n_exited || facts.n_lost || !self.config.promote;
                    let asked = !prepared || needless || facts.o_alive;
                    assert!(asked, "R5: ended while {state}, and the incumbent did not answer");
                    facts.ended_n = true;
                }
                self.in_flight.push(effect);
            }
        }
    }

    fn said(&mut self, to: Peer, message: &Message, state: &str) {
        let name = handoff_core::short_name(message);
        let facts = self.swap.as_mut().expect("nothing is said without a handoff");
        if let Some(id) = message.handoff_id() {
            assert_eq!(Some(id), facts.id, "C1");
        }
        let times = facts.said.entry((to, name)).or_default();
        *times += 1;
        if name != "Heartbeat" {
            assert_eq!(*times, 1, "{name} to {to} twice, while {state}");
        }
        let said = |facts: &Facts, name| facts.said.contains_key(&(Peer::Incumbent, name));
        match (to, name) {
            (Peer::Incumbent, "Abort") => {
                assert!(facts.steady_o, "R4: a legacy incumbent gets no Abort");
                assert!(!facts.seal_failed, "R4: no Abort after SealFailed");
                let early = !said(facts, "Commit") || facts.n_exited;
                assert!(early, "no Abort after Commit, unless its successor is gone");
            }
            (Peer::Incumbent, "ResumeAfterAbort") => {
                assert!(facts.reaped || facts.n_exited, "R4: only when N is reaped");
                assert!(!facts.seal_failed, "R4: not after SealFailed");
                let early = !said(facts, "Commit") || facts.n_exited;
                assert!(early, "not after Commit, unless its successor is gone");
            }
            (Peer::Incumbent, "PrepareHandoff") => facts.o_alive = false,
            (Peer::Incumbent, "SealRequest") => assert!(said(facts, "PrepareHandoff")),
            (Peer::Successor, "Begin") => {
                assert!(facts.may_begin, "the lock may be held");
                facts.begun = true;
            }
            (_, "Commit") => {
                assert!(facts.ready && !facts.n_exited, "R6: N is ready and alive");
                assert!(!facts.ended_n, "R6: N is being ended");
            }
            _ => {}
        }
    }

    fn complete(&mut self, dice: &mut Dice<'_>) {
        use supervisor::{Effect, Outcome};
        if self.in_flight.is_empty() {
            return;
        }
        let effect = self.in_flight.remove(dice.roll(self.in_flight.len()));
        let error = || String::from("no");
        let fails = dice.roll(5) == 4;
        let outcome = match effect {
            Effect::Probe => Outcome::Probed(match dice.roll(4) {
                3 => Probed::Silent,
                // Before Begin nobody can find the successor there.
                2 if self.swap.as_ref().is_some_and(|facts| facts.begun) => {
                    Probed::Answered { pid: self.n }
                }
                _ => Probed::Answered { pid: O_PID },
            }),
            Effect::Spawn { .. } if fails => Outcome::Spawned(Err(error())),
            Effect::Spawn { .. } => Outcome::Spawned(Ok(self.n)),
            Effect::Connect if fails => Outcome::Connected(Err(error())),
            Effect::Connect => {
                self.give(Input::Opened { peer: Peer::Incumbent, cred: cred(O_PID) });
                Outcome::Connected(Ok(()))
            }
            Effect::CheckLock { .. } => Outcome::LockChecked(match dice.roll(4) {
                0 => LockState::Free,
                1 => LockState::Unknown,
                _ => LockState::Held { pid: Some(dice.pick(&[self.n, O_PID])) },
            }),
            Effect::Signal { .. } if fails => Outcome::Signalled(Err(error())),
            Effect::Signal { .. } => Outcome::Signalled(Ok(())),
            Effect::Reap { pid } => Outcome::Reaped { pid },
            Effect::Journal(_) if fails => Outcome::Journalled(Err(error())),
            Effect::Journal(_) => Outcome::Journalled(Ok(())),
        };
        self.give(Input::Done(outcome));
    }

    fn pass(&mut self, until: Instant) {
        for _ in 0..10_000 {
            let Some(deadline) = self.machine.deadline().filter(|d| d.at <= until) else {
                self.now = self.now.max(until);
                return;
            };
            self.now = self.now.max(deadline.at);
            self.give(Input::Tick);
        }
        panic!("its clock stands still");
    }

    fn step(&mut self, dice: &mut Dice<'_>) {
        use supervisor::{Command, Outcome};
        let peer = dice.pick(&[Peer::Incumbent, Peer::Successor]);
        let state = self.machine.state_name();
        match dice.roll(20) {
            0 if self.machine.idle() && dice.roll(3) == 0 => {
                let own = dice.pick(&[vec![], vec![O_PID]]);
                self.give(Input::Command(Command::Start { own }));
            }
            0 | 1 if self.machine.idle() => {
                let id = dice.pick(&[ID, OTHER]);
                let spec = supervisor::Spec::default();
                self.give(Input::Command(Command::Handoff { id, spec }));
            }
            0 if state == "awaiting the successor's Hello"
                && !self.open.contains(&Peer::Successor) =>
            {
                let cred = Credentials { descends: true, ..cred(self.n) };
                self.give(Input::Opened { peer: Peer::Successor, cred });
            }
            1 if dice.roll(6) == 0 => self.give(Input::Command(Command::Abort)),
            0..9 => {
                let id = self.swap.as_ref().and_then(|facts| facts.id).unwrap_or(ID);
                let (from, next) = self.next_message(id, dice);
                let (from, message) = match dice.roll(10) {
                    0 => (peer, any_message(dice)),
                    1 => (peer, heartbeat(dice.pick(&[5, (1 << 63) | 1, (1 << 63) | 2]))),
                    2 => (
                        Peer::Incumbent,
                        Message::SealFailed {
                            handoff_id: id,
                            error: String::new(),
                            partial_state: String::new(),
                        },
                    ),
                    _ => (from, next),
                };
                if self.open.contains(&from) {
                    self.give(Input::Message { from, message });
                }
            }
            9 if self.open.contains(&peer) && dice.roll(3) == 0 => {
                let how = any_hangup(dice);
                self.give(Input::Closed { from: peer, how });
            }
            10 if dice.roll(4) == 0 => {
                let pid = dice.pick(&[O_PID, self.n]);
                let known = self.swap.as_ref().is_some_and(|facts| match pid {
                    O_PID => !facts.o_exited,
                    _ => !facts.n_exited,
                });
                if known && self.open.len() == 2 {
                    self.give(Input::Done(Outcome::Exited { pid, status: "9".into() }));
                }
            }
            11..16 => self.complete(dice),
            16 if self.open.contains(&peer) => self.give(Input::Heard { from: peer }),
            17 => {
                let at = self.machine.deadline().map(|deadline| deadline.at);
                self.pass(self.now.max(at.unwrap_or_default()));
            }
            18 => {
                self.now = self.now + any_span(dice);
                self.give(Input::Tick);
            }
            _ if dice.flip() => {
                let span = dice.pick(&[0.ms(), 10.ms(), 1.s(), 3.s()]);
                self.pass(self.now + span);
            }
            _ => {
                // A quarter of a minute in which nothing happens, and everybody is alive.
                for _ in 0..15 {
                    self.pass(self.now + 1.s());
                    for from in [Peer::Incumbent, Peer::Successor] {
                        if self.open.contains(&from) {
                            self.give(Input::Heard { from });
                        }
                    }
                }
            }
        }
    }

    /// What the daemon whose turn it is would say next.
    fn next_message(&self, id: HandoffId, dice: &mut Dice<'_>) -> (Peer, Message) {
        let reserved = dice.pick(&[3, 3, 3, 0]);
        let capabilities = Capabilities { reserved };
        match self.machine.state_name() {
            "awaiting the successor's Hello" => {
                (Peer::Successor, hello_of(Side::Successor, self.n, capabilities))
            }
            "awaiting the incumbent's Hello" => {
                (Peer::Incumbent, hello_of(Side::Incumbent, O_PID, capabilities))
            }
            "awaiting Drained" => (Peer::Incumbent, drained()),
            "awaiting SealComplete" => {
                let message = Message::SealComplete {
                    handoff_id: id,
                    last_revision_per_shard: vec![4],
                    data_dir_fingerprint: [0; 32],
                };
                (Peer::Incumbent, message)
            }
            "awaiting Ready" => {
                let message = Message::Ready {
                    handoff_id: id,
                    listening_on: vec![],
                    healthz_ok: dice.roll(4) > 0,
                    advertised_revision_per_shard: vec![dice.pick(&[4, 4, 3])],
                };
                (Peer::Successor, message)
            }
            _ => (Peer::Incumbent, heartbeat((1 << 63) | (1 + dice.roll(2) as u64))),
        }
    }

    /// From here on the successor is gone, nobody answers, and the host completes what it is asked.
    fn settle(&mut self) {
        use supervisor::{Effect, Outcome};
        for round in 0..5000 {
            if self.machine.idle() && self.in_flight.is_empty() {
                return;
            }
            let Some(effect) = self.in_flight.pop() else {
                if round > 100 {
                    let (pid, status) = (self.n, String::from("9"));
                    self.give(Input::Done(Outcome::Exited { pid, status }));
                }
                if let Some(deadline) = self.machine.deadline() {
                    self.pass(self.now.max(deadline.at));
                }
                continue;
            };
            let outcome = match effect {
                Effect::Probe => Outcome::Probed(Probed::Silent),
                Effect::Spawn { .. } => Outcome::Spawned(Ok(self.n)),
                Effect::Connect => Outcome::Connected(Err("refused".into())),
                Effect::CheckLock { .. } => Outcome::LockChecked(LockState::Free),
                Effect::Signal { .. } => Outcome::Signalled(Ok(())),
                Effect::Reap { pid } => Outcome::Reaped { pid },
                Effect::Journal(_) => Outcome::Journalled(Ok(())),
            };
            self.give(Input::Done(outcome));
        }
        panic!("stuck while {}", self.machine.state_name());
    }
}

/// C1, R4-R6, T3: what a supervisor says and asks for, whatever its peers say and however late its host
/// completes what it asked for; and that every handoff comes to an end, once.
#[test]
fn a_supervisor_keeps_its_promises() {
    let states = RefCell::new(BTreeSet::new());
    run(4000, 600, |dice| {
        let mut base = Base::new(dice);
        while !dice.is_empty() {
            base.step(dice);
        }
        base.settle();
        assert_eq!(base.finished, base.accepted, "every handoff ends once");
        states.borrow_mut().extend(base.states);
    });
    let states = states.into_inner();
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

//! Hosts of a daemon.

use super::*;
use handoff_core::HandoffId;
use handoff_core::daemon::{self, ConnId, Daemon, Ended, Hook, OsEffect, Probed, StandDown};
use std::collections::BTreeMap;

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
        4 => daemon::Command::PathChanged,
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

/// Gives a daemon any inputs in any order, completions of nothing among them.
pub(crate) fn any_inputs(dice: &mut Dice<'_>) -> States {
    let mut states = States::new();
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
        states.insert(machine.state_name());
        if ended {
            let closes = |output: &daemon::Output| matches!(output, Output::Close { .. });
            assert!(outputs.iter().all(closes), "{outputs:?} after the end");
            assert_eq!(machine.deadline(), None, "after the end");
        }
        ended |=
            outputs.iter().any(|output| matches!(output, Output::Event(daemon::Event::Ended(_))));
    }
    states
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
    /// When it said Ready.
    ready: Option<Instant>,
    /// Its connection to the supervisor has ended.
    parted: bool,
    /// It has told that it is the incumbent.
    certain: bool,
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
            ready: None,
            parted: false,
            certain: false,
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
                self.parted |= *from == ConnId::SUPERVISOR;
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
                if matches!(message, Message::Ready { .. }) {
                    self.ready = Some(self.now);
                }
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
            Event::PeerRefused { conn: ConnId::SUPERVISOR, .. } => self.parted = true,
            // What a program does then cannot be undone.
            Event::Incumbent => {
                assert!(!std::mem::replace(&mut self.certain, true), "X1: it was told before");
                assert!(self.lock, "I2: the incumbent without the lock");
                let waited = self.ready.map(|at| self.now.saturating_since(at));
                let verdict = waited.is_some_and(|time| self.committed || time >= 10.s());
                assert!(self.cold || self.parted || verdict, "R3, X1: it may be given up yet");
            }
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

    fn lose_all(&mut self) {
        let open: Vec<ConnId> = self.open.iter().copied().collect();
        for conn in open {
            self.give(Input::Closed { from: conn, how: Hangup::Eof });
        }
    }

    /// From here on everything works: hooks return, the lock is free, nobody else serves. It serves in
    /// the end, or has ended.
    fn come_to_rest(mut self) -> States {
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
        let state = self.machine.state_name();
        assert!(matches!(state, "serving" | "ended"), "stuck while {state}");
        assert_eq!(state == "ended", self.ended.is_some());
        self.states
    }
}

/// Hosts an incumbent. In the end all effects succeed, with its connections closed or, where `silent`, with
/// those that are open saying nothing more.
pub(crate) fn incumbent(dice: &mut Dice<'_>, silent: bool) -> States {
    let mut host = Host::new(serving(), true);
    while !dice.is_empty() {
        host.step(dice);
    }
    if !silent {
        host.lose_all();
    }
    host.come_to_rest()
}

/// Hosts a successor, or a cold start. In the end its connections are closed and all effects succeed.
pub(crate) fn successor(dice: &mut Dice<'_>) -> States {
    let config = daemon::Config::new(N_PID, UID);
    let cold = dice.roll(4) == 0;
    let machine = if cold { Daemon::cold(config) } else { Daemon::successor(config, dice.flip()) };
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
    host.lose_all();
    host.come_to_rest()
}

//! Bytes in, bytes out: whole handoffs between drivers, and what a driver does with bytes (W, T4, C).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod arbitrary;
mod common;

use arbitrary::config;
use common::daemon::{DEADLINE, GRACE, S};
use common::*;
use handoff_core::daemon::{
    self, Command, Config, ConnId, Daemon, DrainReport, Ended, Event, Hook, LockFailure, OsEffect,
    Outcome, Probed, Readiness, SealReport,
};
use handoff_core::driver::{Action, ActionOf, Driver};
use handoff_core::incumbent::Incumbent;
use handoff_core::probe::Probe;
use handoff_core::supervisor::{self, LockState, Peer, Report, Spec, Supervisor, Verdict};
use handoff_core::wire::{Decoder, Frame, WireError, encode};
use handoff_core::{
    Credentials, Deadline, HandoffId, Input, Instant, Machine, Message, Violation, short_name,
};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::time::Duration;

// A world of three drivers.

/// Which daemon: the first, or one of those that were started later.
type Place = usize;

/// A connection between the supervisor and a daemon: bytes under way, and which ends are open.
struct Link {
    peer: Peer,
    place: Place,
    conn: ConnId,
    up: VecDeque<u8>,
    down: VecDeque<u8>,
    /// All that was read of it.
    heard_up: Vec<u8>,
    heard_down: Vec<u8>,
    s_open: bool,
    d_open: bool,
}

struct Process {
    pid: u32,
    driver: Driver<Daemon>,
    tasks: Vec<daemon::Effect>,
    ended: Option<Ended>,
    /// Bytes of its ends cross the kernel no more.
    alive: bool,
}

/// A supervisor, the daemons, the lock and the control path; every choice is drawn from one seed.
struct World {
    now: Instant,
    seed: u64,
    s: Driver<Supervisor>,
    s_tasks: Vec<supervisor::Effect>,
    daemons: Vec<Process>,
    links: Vec<Link>,
    lock: Option<Place>,
    path: Option<Place>,
    open_fails: bool,
    reports: Vec<Report>,
    probes: u32,
}

impl World {
    /// A daemon that serves, and a supervisor that does nothing yet.
    fn new(seed: u64) -> Self {
        let mut world = Self {
            now: Instant::ORIGIN,
            seed,
            s: Driver::new(Supervisor::new(supervisor::Config::new(UID))),
            s_tasks: Vec::new(),
            daemons: Vec::new(),
            links: Vec::new(),
            lock: None,
            path: None,
            open_fails: false,
            reports: Vec::new(),
            probes: 1000,
        };
        let o = world.start(Daemon::cold(Config::new(O_PID, UID)), O_PID);
        world.tell_daemon(o, Input::Command(Command::Begin));
        world.settle();
        assert!(matches!(world.daemons[o].driver.machine(), Daemon::Incumbent(_)));
        world
    }

    fn start(&mut self, machine: Daemon, pid: u32) -> Place {
        self.daemons.push(Process {
            pid,
            driver: Driver::new(machine),
            tasks: Vec::new(),
            ended: None,
            alive: true,
        });
        self.daemons.len() - 1
    }

    fn draw(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.seed >> 33) as usize % below
    }

    fn handoff(&mut self, id: HandoffId) -> Report {
        let spec = Spec::default();
        self.tell_supervisor(Input::Command(supervisor::Command::Handoff { id, spec }));
        for _ in 0..100_000 {
            if let Some(report) = self.reports.pop() {
                self.settle();
                return report;
            }
            if self.draw(8) == 0 {
                let pause = self.draw(100) as u64;
                self.now = self.now + pause.ms();
                self.tick();
            }
            if !self.step() {
                self.wait();
            }
        }
        panic!("no end: {}", self.s.machine().state_name());
    }

    /// Until nothing happens any more but the passing of time.
    fn settle(&mut self) {
        while self.step() {}
    }

    /// Until the next deadline.
    fn wait(&mut self) {
        let of_daemons = self.daemons.iter().filter(|d| d.alive);
        let deadlines = of_daemons.filter_map(|d| d.driver.deadline().map(|d| d.at));
        let next = deadlines.chain(self.s.deadline().map(|d| d.at)).min();
        self.now = self.now.max(next.expect("somebody waits for something"));
        self.tick();
    }

    fn tick(&mut self) {
        if self.s.deadline().is_some_and(|d| d.at <= self.now) {
            self.tell_supervisor(Input::Tick);
        }
        for place in 0..self.daemons.len() {
            let process = &self.daemons[place];
            if process.alive && process.driver.deadline().is_some_and(|d| d.at <= self.now) {
                self.tell_daemon(place, Input::Tick);
            }
        }
    }

    /// One thing happens, out of all that could; false where nothing could.
    fn step(&mut self) -> bool {
        let mut moves: Vec<(u8, usize)> = Vec::new();
        for (at, link) in self.links.iter().enumerate() {
            let process = &self.daemons[link.place];
            if link.s_open && !self.s.unsent(link.peer).is_empty() {
                moves.push((0, at));
            }
            if link.d_open && !process.driver.unsent(link.conn).is_empty() {
                moves.push((1, at));
            }
            if link.s_open && (!link.up.is_empty() || !link.d_open) {
                moves.push((2, at));
            }
            if link.d_open && (!link.down.is_empty() || !link.s_open) {
                moves.push((3, at));
            }
        }
        let reapable = |effect: &supervisor::Effect| match effect {
            supervisor::Effect::Reap { pid } => {
                self.daemons.iter().all(|d| d.pid != *pid || !d.alive)
            }
            _ => true,
        };
        let ready = self.s_tasks.iter().enumerate().filter(|(_, task)| reapable(task));
        moves.extend(ready.map(|(at, _)| (4, at)));
        for (place, process) in self.daemons.iter().enumerate() {
            if process.alive && !process.tasks.is_empty() {
                moves.push((5, place));
            }
        }
        if moves.is_empty() {
            return false;
        }
        let choice = self.draw(moves.len());
        let (what, at) = moves[choice];
        match what {
            0 => self.write_down(at),
            1 => self.write_up(at),
            2 => self.read_up(at),
            3 => self.read_down(at),
            4 => {
                let task = self.s_tasks.remove(at);
                self.supervise(task);
            }
            _ => {
                let pick = self.draw(self.daemons[at].tasks.len());
                let task = self.daemons[at].tasks.remove(pick);
                self.serve(at, task);
            }
        }
        true
    }

    fn write_down(&mut self, at: usize) {
        let peer = self.links[at].peer;
        let unsent = self.s.unsent(peer).to_vec();
        let count = 1 + self.draw(unsent.len());
        self.s.sent(peer, count);
        self.links[at].down.extend(&unsent[..count]);
    }

    fn write_up(&mut self, at: usize) {
        let (place, conn) = (self.links[at].place, self.links[at].conn);
        let unsent = self.daemons[place].driver.unsent(conn).to_vec();
        let count = 1 + self.draw(unsent.len());
        self.daemons[place].driver.sent(conn, count);
        self.links[at].up.extend(&unsent[..count]);
    }

    fn read_up(&mut self, at: usize) {
        let mut actions = Vec::new();
        let peer = self.links[at].peer;
        if self.links[at].up.is_empty() {
            self.links[at].s_open = false;
            self.s.closed(self.now, peer, &mut actions);
        } else {
            let count = 1 + self.draw(self.links[at].up.len());
            let bytes: Vec<u8> = self.links[at].up.drain(..count).collect();
            self.links[at].heard_up.extend(&bytes);
            self.s.received(self.now, peer, &bytes, &mut actions);
        }
        self.act_supervisor(actions);
    }

    fn read_down(&mut self, at: usize) {
        let mut actions = Vec::new();
        let (place, conn) = (self.links[at].place, self.links[at].conn);
        if self.links[at].down.is_empty() {
            self.links[at].d_open = false;
            self.daemons[place].driver.closed(self.now, conn, &mut actions);
        } else {
            let count = 1 + self.draw(self.links[at].down.len());
            let bytes: Vec<u8> = self.links[at].down.drain(..count).collect();
            self.links[at].heard_down.extend(&bytes);
            let driver = &mut self.daemons[place].driver;
            driver.received(self.now, conn, &bytes, &mut actions);
        }
        self.act_daemon(place, actions);
    }

    fn tell_supervisor(&mut self, input: supervisor::Input) {
        let mut actions = Vec::new();
        self.s.handle(self.now, input, &mut actions);
        self.act_supervisor(actions);
    }

    fn tell_daemon(&mut self, place: Place, input: daemon::Input) {
        let mut actions = Vec::new();
        self.daemons[place].driver.handle(self.now, input, &mut actions);
        self.act_daemon(place, actions);
    }

    fn act_supervisor(&mut self, actions: Vec<ActionOf<Supervisor>>) {
        for action in actions {
            match action {
                Action::Do(effect) => self.s_tasks.push(effect),
                Action::Cancel => panic!("a supervisor has no hooks"),
                Action::Close { peer, unsent } => {
                    let open = |link: &&mut Link| link.peer == peer && link.s_open;
                    if let Some(link) = self.links.iter_mut().find(open) {
                        link.s_open = false;
                        link.down.extend(unsent);
                    }
                }
                Action::Event(supervisor::Event::Finished(report)) => self.reports.push(report),
                Action::Event(_) => {}
            }
        }
    }

    fn act_daemon(&mut self, place: Place, actions: Vec<ActionOf<Daemon>>) {
        for action in actions {
            match action {
                Action::Do(effect) => self.daemons[place].tasks.push(effect),
                Action::Cancel => {}
                Action::Close { peer, unsent } => {
                    let open =
                        |link: &&mut Link| (link.place, link.conn) == (place, peer) && link.d_open;
                    if let Some(link) = self.links.iter_mut().find(open) {
                        link.d_open = false;
                        link.up.extend(unsent);
                    }
                }
                Action::Event(Event::Ended(ended)) => {
                    self.daemons[place].ended = Some(ended);
                    self.die(place);
                }
                Action::Event(_) => {}
            }
        }
    }

    /// The process is gone: its ends are closed, its lock is free, its supervisor is told.
    fn die(&mut self, place: Place) {
        if !std::mem::take(&mut self.daemons[place].alive) {
            return;
        }
        for link in self.links.iter_mut().filter(|link| link.place == place) {
            link.d_open = false;
        }
        if self.lock == Some(place) {
            self.lock = None;
        }
        let pid = self.daemons[place].pid;
        let status = "ended".into();
        self.tell_supervisor(Input::Done(supervisor::Outcome::Exited { pid, status }));
    }

    /// A probe in full: connect, read Hello, say HelloAck, close (C6).
    fn probe(&mut self) -> Probed {
        let Some(place) = self.path.filter(|&place| self.daemons[place].alive) else {
            return Probed::Silent;
        };
        self.probes += 1;
        let conn = ConnId(self.probes);
        let mut actions = Vec::new();
        let driver = &mut self.daemons[place].driver;
        driver.opened(self.now, conn, cred(S_PID), &mut actions);
        let hello = driver.unsent(conn).to_vec();
        driver.sent(conn, hello.len());
        let answer = Probe::new().received(&hello, OTHER).unwrap();
        if let Some(answer) = &answer {
            driver.received(self.now, conn, &answer.ack, &mut actions);
        }
        driver.closed(self.now, conn, &mut actions);
        self.act_daemon(place, actions);
        answer.map_or(Probed::Silent, |answer| Probed::Answered { pid: answer.pid })
    }

    fn connect(&mut self, peer: Peer, place: Place, conn: ConnId) {
        self.links.push(Link {
            peer,
            place,
            conn,
            up: VecDeque::new(),
            down: VecDeque::new(),
            heard_up: Vec::new(),
            heard_down: Vec::new(),
            s_open: true,
            d_open: true,
        });
        let pid = self.daemons[place].pid;
        let mut actions = Vec::new();
        let of_daemon = Credentials { descends: true, ..cred(pid) };
        self.s.opened(self.now, peer, of_daemon, &mut actions);
        self.act_supervisor(actions);
        let mut actions = Vec::new();
        let driver = &mut self.daemons[place].driver;
        driver.opened(self.now, conn, cred(S_PID), &mut actions);
        self.act_daemon(place, actions);
    }

    fn supervise(&mut self, effect: supervisor::Effect) {
        use supervisor::{Effect, Outcome};
        let outcome = match effect {
            Effect::Probe => Outcome::Probed(self.probe()),
            Effect::Spawn { successor: true } => {
                let pid = N_PID + self.daemons.len() as u32;
                let machine = Daemon::successor(Config::new(pid, UID), true);
                let place = self.start(machine, pid);
                self.tell_supervisor(Input::Done(Outcome::Spawned(Ok(pid))));
                self.connect(Peer::Successor, place, ConnId::SUPERVISOR);
                return self.tell_daemon(place, Input::Command(Command::Begin));
            }
            Effect::Spawn { successor: false } => panic!("nobody asked for a cold start"),
            Effect::Connect => {
                self.probes += 1;
                let place = self.path.unwrap();
                self.connect(Peer::Incumbent, place, ConnId(self.probes));
                Outcome::Connected(Ok(()))
            }
            Effect::CheckLock { .. } => Outcome::LockChecked(match self.lock {
                Some(place) => LockState::Held { pid: Some(self.daemons[place].pid) },
                None => LockState::Free,
            }),
            Effect::Signal { pid, .. } => {
                let found = self.daemons.iter().position(|d| d.pid == pid);
                self.die(found.unwrap());
                Outcome::Signalled(Ok(()))
            }
            Effect::Reap { pid } => Outcome::Reaped { pid },
            Effect::Journal(_) => Outcome::Journalled(Ok(())),
        };
        self.tell_supervisor(Input::Done(outcome));
    }

    fn serve(&mut self, place: Place, effect: daemon::Effect) {
        let outcome = match effect {
            daemon::Effect::Os(OsEffect::TakeLock) => {
                let holder = self.lock.filter(|&holder| holder != place);
                Outcome::Lock(match holder {
                    Some(holder) => {
                        Err(LockFailure::Held { holder: Some(self.daemons[holder].pid) })
                    }
                    None => {
                        self.lock = Some(place);
                        Ok(())
                    }
                })
            }
            daemon::Effect::Os(OsEffect::ReleaseLock) => {
                assert_eq!(self.lock.take(), Some(place), "only its holder releases it");
                Outcome::Released(Ok(()))
            }
            daemon::Effect::Os(OsEffect::StagePath) => Outcome::Staged(Ok(())),
            daemon::Effect::Os(OsEffect::ClaimPath) => {
                self.path = Some(place);
                Outcome::Claimed(Ok(()))
            }
            daemon::Effect::Os(OsEffect::Probe) => Outcome::Probed(match self.path {
                Some(owner) if owner == place => Probed::Own,
                _ => self.probe(),
            }),
            daemon::Effect::Os(OsEffect::WatchSuccessor { .. }) => Outcome::Watched(Ok(())),
            daemon::Effect::Os(OsEffect::SignalSuccessor(_)) => Outcome::Signalled(Ok(())),
            daemon::Effect::Hook(hook) => {
                let with_lock = self.lock == Some(place);
                assert!(with_lock, "{hook:?} without the lock");
                match hook {
                    Hook::Open if self.open_fails => Outcome::Opened(Err("corrupt".into())),
                    Hook::Open => Outcome::Opened(Ok(Readiness {
                        listening_on: vec!["[::1]:80".into()],
                        healthz_ok: true,
                        revisions: vec![7; 3],
                    })),
                    Hook::Drain { .. } => Outcome::Drained(Ok(DrainReport {
                        open_conns_remaining: 0,
                        accept_closed: true,
                    })),
                    Hook::Seal => {
                        let progress = Command::SealProgress {
                            shards_sealed: 2,
                            shards_total: 3,
                            last_revision: 7,
                        };
                        self.tell_daemon(place, Input::Command(progress));
                        Outcome::Sealed(Ok(SealReport {
                            revisions: vec![7; 3],
                            fingerprint: [1; 32],
                        }))
                    }
                    Hook::Resume => Outcome::Resumed(Ok(())),
                }
            }
        };
        self.tell_daemon(place, Input::Done(outcome));
    }

    /// I5: exactly this one serves, holds the lock and answers on the control path.
    fn assert_serves(&mut self, place: Place) {
        assert_eq!((self.lock, self.path), (Some(place), Some(place)));
        let state = self.daemons[place].driver.machine().state_name();
        assert_eq!(state, "serving");
        let pid = self.daemons[place].pid;
        assert_eq!(self.probe(), Probed::Answered { pid });
        for (other, process) in self.daemons.iter().enumerate() {
            assert_eq!(process.alive, other == place, "{:?}", process.ended);
        }
    }
}

/// The names of the messages in a stream, heartbeats left out.
fn names(bytes: &[u8]) -> Vec<&'static str> {
    let names = messages(bytes).into_iter().map(|frame| short_name(&frame.message));
    names.filter(|&name| name != "Heartbeat").collect()
}

fn messages(mut bytes: &[u8]) -> Vec<Frame> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    while let Some(frame) = decoder.decode(&mut bytes).unwrap() {
        decoder.handshake_done(1);
        frames.push(frame);
    }
    frames
}

proptest! {
    #![proptest_config(config(200))]

    /// C2, X1: who says what, in which order, on the two connections.
    #[test]
    fn the_good_path_is_said_in_order(seed in any::<u64>()) {
        let mut world = World::new(seed);
        let report = world.handoff(ID);
        prop_assert_eq!(report.verdict, Verdict::Committed);
        let [n, o] = &world.links[..] else { panic!("two connections") };
        prop_assert_eq!((n.peer, o.peer), (Peer::Successor, Peer::Incumbent));
        let from_o = ["Hello", "Drained", "SealProgress", "SealComplete"];
        prop_assert_eq!(names(&o.heard_up), from_o);
        let to_o = ["HelloAck", "PrepareHandoff", "SealRequest", "Commit"];
        prop_assert_eq!(names(&o.heard_down), to_o);
        prop_assert_eq!(names(&n.heard_up), ["Hello", "Ready"]);
        prop_assert_eq!(names(&n.heard_down), ["HelloAck", "Begin", "Commit"]);
    }

    /// C2, R16, W1: a handoff from end to end, every byte stream cut anywhere, every effect completed at
    /// any time; then the next one, from the daemon that took over.
    #[test]
    fn a_handoff_is_committed_however_its_bytes_are_cut(seed in any::<u64>()) {
        let mut world = World::new(seed);
        for (place, id) in [(1, ID), (2, OTHER)] {
            let report = world.handoff(id);
            prop_assert_eq!(report.id, id);
            prop_assert_eq!(report.verdict, Verdict::Committed, "{:?}", report);
            prop_assert_eq!(report.serving, Some(world.daemons[place].pid));
            prop_assert_eq!(report.trouble, None);
            world.assert_serves(place);
            let before = &world.daemons[place - 1].ended;
            prop_assert_eq!(before, &Some(Ended::Committed { id }));
        }
    }

    /// R3, R4, R6, I6: where the successor cannot open its data the incumbent serves on, and the next
    /// handoff works.
    #[test]
    fn a_handoff_whose_successor_cannot_open_is_rolled_back(seed in any::<u64>()) {
        let mut world = World::new(seed);
        world.open_fails = true;
        let report = world.handoff(ID);
        prop_assert_eq!(report.verdict, Verdict::RolledBack, "{:?}", report);
        prop_assert_eq!(report.serving, Some(O_PID));
        world.assert_serves(0);
        world.open_fails = false;
        let report = world.handoff(OTHER);
        prop_assert_eq!(report.verdict, Verdict::Committed, "{:?}", report);
        world.assert_serves(2);
    }
}

// One driver, and bytes by hand.

fn frame_of(message: &Message, version: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, version, &mut bytes).unwrap();
    bytes
}

fn bytes_of(message: &Message) -> Vec<u8> {
    frame_of(message, 1)
}

/// A driver, its clock, and the actions that were not yet looked at.
struct Bytes<M: Machine> {
    driver: Driver<M>,
    now: Instant,
    actions: Vec<ActionOf<M>>,
}

impl<M: Machine> Bytes<M> {
    fn new(machine: M) -> Self {
        Self { driver: Driver::new(machine), now: Instant::ORIGIN, actions: Vec::new() }
    }

    fn opens(&mut self, peer: M::Peer) {
        let cred = cred(S_PID);
        self.driver.opened(self.now, peer, cred, &mut self.actions);
    }

    fn receives(&mut self, peer: M::Peer, bytes: &[u8]) {
        self.driver.received(self.now, peer, bytes, &mut self.actions);
    }

    fn hears(&mut self, peer: M::Peer, message: Message) {
        self.receives(peer, &bytes_of(&message));
    }

    fn input(&mut self, input: Input<M::Peer, M::Outcome, M::Command>) {
        self.driver.handle(self.now, input, &mut self.actions);
    }

    fn done(&mut self, outcome: M::Outcome) {
        self.input(Input::Done(outcome));
    }

    fn passes(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(deadline) = self.driver.deadline().filter(|d| d.at <= until) {
            self.now = self.now.max(deadline.at);
            self.driver.tick(self.now, &mut self.actions);
        }
        self.now = until;
    }

    /// The peer reads all that was written.
    fn reads(&mut self, peer: M::Peer) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !self.driver.unsent(peer).is_empty() {
            let unsent = self.driver.unsent(peer).to_vec();
            self.driver.sent(peer, unsent.len());
            bytes.extend(unsent);
        }
        bytes
    }

    fn take(&mut self) -> Vec<ActionOf<M>> {
        std::mem::take(&mut self.actions)
    }
}

/// The incumbent of these tests; `DEADLINE` and `GRACE` are what its supervisor asks for.
fn serving() -> Bytes<Incumbent> {
    Bytes::new(Incumbent::new(Config::new(O_PID, UID)))
}

/// It has read HelloAck on `S`.
fn acked() -> Bytes<Incumbent> {
    let mut o = serving();
    o.opens(S);
    assert_eq!(names(&o.reads(S)), ["Hello"]);
    o.hears(S, ack());
    assert_eq!(o.take(), []);
    o
}

/// Its drain hook runs.
fn draining() -> Bytes<Incumbent> {
    let mut o = acked();
    o.hears(S, prepare(DEADLINE, GRACE));
    let drain = Action::Do(daemon::Effect::Hook(Hook::Drain { grace: GRACE }));
    assert!(o.take().contains(&drain));
    o
}

/// Its seal hook runs.
fn sealing() -> Bytes<Incumbent> {
    let mut o = draining();
    o.done(daemon_drained());
    o.hears(S, seal_request());
    assert_eq!(o.take(), [Action::Do(daemon::Effect::Hook(Hook::Seal))]);
    assert_eq!(names(&o.reads(S)), ["Drained"]);
    o
}

fn daemon_drained() -> Outcome {
    common::daemon::drain_ok()
}

fn closed_with(unsent: Vec<u8>) -> Action<ConnId, daemon::Effect, Event> {
    Action::Close { peer: S, unsent }
}

fn refused_in(violation: Violation, state: &'static str) -> Action<ConnId, daemon::Effect, Event> {
    Action::Event(Event::PeerRefused { conn: S, violation, state })
}

/// W7: bytes that are no frame close their connection with an error that says what was wrong in which
/// state; what comes after them is not read.
#[test]
fn garbage_closes_its_connection_with_a_typed_error() {
    let mut o = acked();
    let mut bytes = [0xff; 64].to_vec();
    bytes.extend(bytes_of(&prepare(DEADLINE, GRACE)));
    o.receives(S, &bytes);
    let violation = Violation::Wire(WireError::Length { announced: u32::MAX, cap: 1 << 20 });
    assert_eq!(o.take(), [closed_with(vec![]), refused_in(violation, "serving")]);
    o.hears(S, prepare(DEADLINE, GRACE));
    o.driver.closed(o.now, S, &mut o.actions);
    assert_eq!(o.take(), []);
    assert_eq!(o.driver.unsent(S), []);
}

/// C3, W7: what came before the garbage is handled before it.
#[test]
fn what_precedes_garbage_is_handled() {
    let mut o = acked();
    let mut bytes = bytes_of(&prepare(DEADLINE, GRACE));
    bytes.extend([0; 4]);
    o.receives(S, &bytes);
    let actions = o.take();
    let begun = |a: &ActionOf<Incumbent>| matches!(a, Action::Event(Event::HandoffBegun { .. }));
    assert!(actions.iter().any(begun));
    assert!(actions.contains(&Action::Cancel), "its handoff is off");
    let violation = Violation::Wire(WireError::Length { announced: 0, cap: 1 << 20 });
    assert!(actions.contains(&refused_in(violation, "draining")));
}

/// W7: once a message has closed its connection, what arrived behind it is dropped.
#[test]
fn what_follows_a_violation_is_dropped() {
    let mut o = acked();
    let mut bytes = bytes_of(&begin());
    bytes.extend(bytes_of(&prepare(DEADLINE, GRACE)));
    o.receives(S, &bytes);
    let violation = Violation::Unexpected { message: "Begin", state: "serving" };
    assert_eq!(o.take(), [refused_in(violation, "serving"), closed_with(vec![])]);
}

/// C5: a name may be used again once its connection is closed, and starts from nothing.
#[test]
fn a_new_connection_of_the_same_name_starts_from_nothing() {
    let mut o = acked();
    o.receives(S, &bytes_of(&prepare(DEADLINE, GRACE))[..7]);
    o.driver.closed(o.now, S, &mut o.actions);
    assert_eq!(o.take(), []);
    o.opens(S);
    assert_eq!(names(&o.reads(S)), ["Hello"]);
    let large = Message::Abort { handoff_id: ID, reason: "x".repeat(5000) };
    o.hears(S, large);
    let violation = Violation::Wire(WireError::Length { announced: 5022, cap: 4096 });
    assert_eq!(o.take(), [closed_with(vec![]), refused_in(violation, "serving")]);
}

/// W2: 4 KiB until HelloAck, 1 MiB from the very next frame on, both in one read.
#[test]
fn the_cap_rises_with_hello_ack() {
    let mut o = serving();
    o.opens(S);
    o.reads(S);
    let mut bytes = bytes_of(&ack());
    bytes.extend(bytes_of(&Message::Abort { handoff_id: ID, reason: "x".repeat(5000) }));
    bytes.extend(bytes_of(&heartbeat(42)));
    o.receives(S, &bytes);
    assert_eq!(o.take(), []);
    assert_eq!(o.driver.unsent(S), bytes_of(&heartbeat(42)));
}

/// W4, W5: Hello goes out under the sender's highest version, whatever this crate's own is.
#[test]
fn hello_carries_the_senders_highest_version() {
    let mut config = Config::new(O_PID, UID);
    (config.proto_min, config.proto_max) = (1, 3);
    let mut o = Bytes::new(Incumbent::new(config));
    o.opens(S);
    let hello = o.reads(S);
    assert_eq!(hello[4..6], 3_u16.to_le_bytes());
    let mut config = Config::new(N_PID, UID);
    (config.proto_min, config.proto_max) = (2, 5);
    let mut n = Bytes::new(Daemon::successor(config, false));
    n.opens(ConnId::SUPERVISOR);
    let hello = n.reads(ConnId::SUPERVISOR);
    assert_eq!(hello[4..6], 5_u16.to_le_bytes());
}

/// W5: every frame after HelloAck carries the chosen version, both ways; another one is a violation.
#[test]
fn frames_after_hello_ack_carry_the_chosen_version() {
    let mut config = Config::new(O_PID, UID);
    (config.proto_min, config.proto_max) = (1, 3);
    let mut o = Bytes::new(Incumbent::new(config));
    o.opens(S);
    o.reads(S);
    let chosen = Message::HelloAck { proto_version_chosen: 2, handoff_id: ID };
    o.receives(S, &frame_of(&chosen, 2));
    o.receives(S, &frame_of(&heartbeat(1), 2));
    assert_eq!(o.reads(S), frame_of(&heartbeat(1), 2));
    assert_eq!(o.take(), []);
    o.receives(S, &frame_of(&heartbeat(1), 3));
    let violation = Violation::Wire(WireError::Version { got: 3, chosen: 2 });
    assert_eq!(o.take(), [closed_with(vec![]), refused_in(violation, "serving")]);
}

/// W4, W5: the supervisor chooses the highest version of both ranges and speaks it from then on.
#[test]
fn the_supervisor_speaks_the_version_it_chose() {
    use supervisor::{Command, Outcome};
    let mut config = supervisor::Config::new(UID);
    (config.proto_min, config.proto_max) = (1, 4);
    let mut s = Bytes::new(Supervisor::new(config));
    let spec = Spec::default();
    s.input(Input::Command(Command::Handoff { id: ID, spec }));
    s.done(Outcome::Journalled(Ok(())));
    s.done(Outcome::Probed(Probed::Answered { pid: O_PID }));
    s.done(Outcome::Spawned(Ok(S_PID)));
    s.opens(Peer::Successor);
    let hello = Message::Hello {
        role: handoff_core::Side::Successor,
        pid: S_PID,
        build_id: vec![],
        proto_min: 2,
        proto_max: 3,
        capabilities: handoff_core::Capabilities::OURS,
    };
    s.receives(Peer::Successor, &frame_of(&hello, 3));
    let chosen = Message::HelloAck { proto_version_chosen: 3, handoff_id: ID };
    assert_eq!(s.reads(Peer::Successor), frame_of(&chosen, 3));
    s.passes(1.s());
    assert_eq!(s.reads(Peer::Successor), frame_of(&heartbeat(1000), 3));
    s.take();
    s.receives(Peer::Successor, &frame_of(&heartbeat(1), 2));
    let violation = Violation::Wire(WireError::Version { got: 2, chosen: 3 });
    let refused = Action::Event(supervisor::Event::PeerRefused {
        peer: Peer::Successor,
        violation,
        state: "awaiting the incumbent's Hello",
    });
    assert!(s.take().contains(&refused));
}

/// T4: heartbeats to a peer that does not read are not queued; one answer is kept, the newest (X2), and
/// goes out as soon as what is in front of it has left.
#[test]
fn a_peer_that_does_not_read_costs_bounded_memory() {
    let mut o = acked();
    for second in 0..600 {
        o.passes(1.s());
        o.hears(S, heartbeat(5_000_000 + second));
    }
    let beat = bytes_of(&heartbeat(1000));
    assert_eq!(o.driver.unsent(S), beat, "the first beat, and no other");
    o.driver.sent(S, beat.len());
    let answer = bytes_of(&heartbeat(5_000_599));
    assert_eq!(o.driver.unsent(S), answer, "the newest answer, and no other");
    o.driver.sent(S, answer.len());
    assert_eq!(o.driver.unsent(S), []);
    assert_eq!(o.take(), []);
    o.passes(1.s());
    assert_eq!(names(&o.reads(S)), [""; 0]);
}

/// T4: nor are its own heartbeats, on either side.
#[test]
fn beats_to_a_peer_that_does_not_read_are_dropped() {
    let mut n = Bytes::new(Daemon::successor(Config::new(N_PID, UID), false));
    n.opens(ConnId::SUPERVISOR);
    let hello = n.driver.unsent(ConnId::SUPERVISOR).len();
    n.hears(ConnId::SUPERVISOR, ack());
    n.passes(600.s());
    assert_eq!(n.driver.unsent(ConnId::SUPERVISOR).len(), hello);
}

/// T4, C4: what the seal reports costs a peer that does not read no more memory than one report.
#[test]
fn reports_of_the_seal_cost_bounded_memory() {
    let mut o = sealing();
    for revision in 0..10_000 {
        o.input(Input::Command(Command::SealProgress {
            shards_sealed: 1,
            shards_total: 2,
            last_revision: revision,
        }));
    }
    let unsent = o.driver.unsent(S).len();
    assert!(unsent <= 1024, "{unsent} bytes are kept for a peer that does not read");
}

/// T4: a part of a frame that has left is completed by nothing but its own rest.
#[test]
fn frames_are_whole_however_they_are_written() {
    let mut o = serving();
    o.opens(S);
    let mut written = Vec::new();
    let mut heard = Vec::new();
    o.hears(S, ack());
    for round in 0..40 {
        if round % 4 == 0 {
            o.hears(S, heartbeat(round));
        }
        if round == 10 {
            o.hears(S, prepare(DEADLINE, GRACE));
            o.done(daemon_drained());
        }
        o.passes(300.ms());
        let unsent = o.driver.unsent(S);
        let count = unsent.len().min(5);
        written.extend_from_slice(&unsent[..count]);
        o.driver.sent(S, count);
    }
    written.extend(o.reads(S));
    for frame in messages(&written) {
        heard.push(short_name(&frame.message));
    }
    assert_eq!(heard[0], "Hello");
    assert_eq!(heard.iter().filter(|&&name| name == "Drained").count(), 1);
    let others = heard.iter().filter(|&&name| name != "Heartbeat").count();
    assert_eq!(others, 2);
    assert!(heard.len() > 4, "{heard:?}");
}

/// The unsent bytes shrink by what was written, byte by byte, to nothing and not beyond.
#[test]
fn partial_writes_leave_the_rest() {
    let mut o = serving();
    o.opens(S);
    let hello = o.driver.unsent(S).to_vec();
    for written in 0..hello.len() {
        assert_eq!(o.driver.unsent(S), &hello[written..]);
        o.driver.sent(S, 1);
    }
    assert_eq!(o.driver.unsent(S), []);
    o.driver.sent(S, 1);
    o.driver.sent(ConnId(99), 1);
    assert_eq!(o.driver.unsent(S), []);
    o.hears(S, ack());
    o.hears(S, heartbeat(3));
    assert_eq!(o.driver.unsent(S), bytes_of(&heartbeat(3)));
}

/// C3: a failed write is not a close. All that is unsent is dropped at once, also behind a partial write.
#[test]
fn after_a_failed_write_everything_unsent_can_be_dropped() {
    let mut o = serving();
    o.opens(S);
    o.driver.sent(S, 3);
    o.driver.sent(S, usize::MAX);
    assert_eq!(o.driver.unsent(S), []);
}

/// A connection that is closed takes its last bytes along: what was unsent, from where it was cut.
#[test]
fn a_close_takes_the_unsent_bytes_along() {
    let mut o = serving();
    o.opens(S);
    let hello = o.driver.unsent(S).to_vec();
    o.driver.sent(S, 9);
    o.passes(5.s());
    let silent = Violation::Silent { awaited: "HelloAck" };
    let expected = [refused_in(silent, "serving"), closed_with(hello[9..].to_vec())];
    assert_eq!(o.take(), expected);
}

/// X2, R4, R7: an answer is never dropped, not even where the close that follows it overtakes it.
#[test]
fn a_close_takes_the_answer_along_that_waits_behind_unsent_bytes() {
    let mut o = draining();
    // The supervisor reads nothing from here on.
    o.passes(1.s());
    let beat = bytes_of(&heartbeat(1000));
    assert_eq!(o.driver.unsent(S), beat);
    o.done(Outcome::Drained(Err("stuck".into())));
    o.take();
    // The supervisor asks, and the incumbent resumes and hangs up.
    o.hears(S, resume());
    o.hears(S, heartbeat(77));
    o.done(Outcome::Claimed(Ok(())));
    o.done(Outcome::Resumed(Ok(())));
    let last = [beat, bytes_of(&heartbeat(77))].concat();
    let actions = o.take();
    assert!(actions.contains(&closed_with(last)), "{actions:?}");
}

/// T2: bytes that complete no message are proof of life. T5: and of nothing more.
#[test]
fn a_peer_that_drips_lives_but_is_bound_by_the_deadlines() {
    let mut o = draining();
    o.done(daemon_drained());
    o.hears(S, heartbeat(1));
    o.reads(S);
    let large = bytes_of(&Message::Abort { handoff_id: ID, reason: "x".repeat(500) });
    for byte in large.iter().take(59) {
        o.passes(1.s());
        o.receives(S, &[*byte]);
        o.reads(S);
        assert_eq!(o.take(), []);
    }
    o.passes(1.s());
    let off = Action::Event(Event::HandoffOff { id: ID, why: daemon::Off::Deadline });
    assert!(o.take().contains(&off));
}

/// T5: what has arrived is handled before a timer that has expired: nothing is decided by time alone.
#[test]
fn bytes_that_have_arrived_come_before_the_tick() {
    let mut o = acked();
    o.hears(S, heartbeat(1));
    o.now = o.now + 6.s();
    o.hears(S, heartbeat(2));
    o.driver.tick(o.now, &mut o.actions);
    assert_eq!(o.take(), []);
}

/// T5: a host may tell the time from a later origin: what is due stays due at the same moment.
#[test]
fn a_later_origin_moves_no_deadline() {
    let mut o = acked();
    o.passes(400.ms());
    let before = o.driver.deadline().unwrap();
    o.driver.rebase(400.ms());
    o.now = o.now.rebased(400.ms());
    assert_eq!(o.now, Instant::ORIGIN);
    let at = Instant::ORIGIN + 600.ms();
    assert_eq!(o.driver.deadline(), Some(Deadline { at, ..before }));
    o.passes(600.ms());
    assert_eq!(o.driver.unsent(S), bytes_of(&heartbeat(600)));
}

/// C1: on both connections the daemon speaks first, and says nothing more before HelloAck.
#[test]
fn the_daemon_speaks_first() {
    let mut o = serving();
    o.opens(S);
    o.passes(4.s());
    assert_eq!(names(&o.reads(S)), ["Hello"]);
    let mut n = Bytes::new(Daemon::successor(Config::new(N_PID, UID), false));
    n.opens(ConnId::SUPERVISOR);
    n.passes(600.s());
    assert_eq!(names(&n.reads(ConnId::SUPERVISOR)), ["Hello"]);
}

/// C6, W4, C1: a probe is a conversation of its own: Hello of an incumbent, then HelloAck.
#[test]
fn a_probe_learns_who_the_incumbent_is() {
    let mut o = serving();
    o.opens(S);
    let hello = o.reads(S);
    let mut probe = Probe::new();
    assert_eq!(probe.received(&hello[..10], OTHER), Ok(None));
    let answer = probe.received(&hello[10..], OTHER).unwrap().unwrap();
    assert_eq!((answer.pid, answer.build_id), (O_PID, vec![]));
    assert_eq!(answer.ack, bytes_of(&ack_of(OTHER)));
    o.receives(S, &answer.ack);
    o.driver.closed(o.now, S, &mut o.actions);
    assert_eq!(o.take(), [], "it leaves no trace");
}

/// C6, W7: what is no incumbent is none.
#[test]
fn a_probe_refuses_what_is_no_incumbent() {
    let probe = |bytes: &[u8]| Probe::new().received(bytes, OTHER);
    let hello = |role, proto_min, proto_max| Message::Hello {
        role,
        pid: 1,
        build_id: vec![],
        proto_min,
        proto_max,
        capabilities: handoff_core::Capabilities::OURS,
    };
    let announced = handoff_core::Side::Successor;
    let successor = bytes_of(&hello(announced, 1, 1));
    assert_eq!(probe(&successor), Err(Violation::WrongSide { announced }));
    let newer = frame_of(&hello(handoff_core::Side::Incumbent, 2, 9), 9);
    assert!(matches!(probe(&newer), Err(Violation::Versions(_))));
    let other = bytes_of(&heartbeat(1));
    assert!(matches!(probe(&other), Err(Violation::Unexpected { .. })));
    assert!(matches!(probe(&[1, 0, 0, 0]), Err(Violation::Wire(_))));
}

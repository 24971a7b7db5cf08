//! Bytes in, bytes out: whole handoffs between drivers, and what a driver does with bytes (W, T4, C).

mod common;

use common::arbitrary::config;
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
    Credentials, HandoffId, Input, Instant, Machine, Message, Violation, short_name,
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
        world.to_daemon(o, Input::Command(Command::Begin));
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
        self.to_supervisor(Input::Command(supervisor::Command::Handoff { id, spec }));
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
            self.to_supervisor(Input::Tick);
        }
        for place in 0..self.daemons.len() {
            let process = &self.daemons[place];
            if process.alive && process.driver.deadline().is_some_and(|d| d.at <= self.now) {
                self.to_daemon(place, Input::Tick);
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

    fn to_supervisor(&mut self, input: supervisor::Input) {
        let mut actions = Vec::new();
        self.s.handle(self.now, input, &mut actions);
        self.act_supervisor(actions);
    }

    fn to_daemon(&mut self, place: Place, input: daemon::Input) {
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
        self.to_supervisor(Input::Done(supervisor::Outcome::Exited { pid, status }));
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
        let to_daemon = Credentials { descends: true, ..cred(pid) };
        self.s.opened(self.now, peer, to_daemon, &mut actions);
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
                self.to_supervisor(Input::Done(Outcome::Spawned(Ok(pid))));
                self.connect(Peer::Successor, place, ConnId::SUPERVISOR);
                return self.to_daemon(place, Input::Command(Command::Begin));
            }
            Effect::Spawn { successor: false } => panic!("nobody asked for a cold start"),
            Effect::Connect => {
                self.probes += 1;
                let place = self.path.unwrap();
                self.connect(Peer::Incumbent, place, ConnId(self.probes));
                Outcome::Connected(Ok(()))
            }
            Effect::CheckLock => Outcome::LockChecked(match self.lock {
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
        self.to_supervisor(Input::Done(outcome));
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
                        self.to_daemon(place, Input::Command(progress));
                        Outcome::Sealed(Ok(SealReport {
                            revisions: vec![7; 3],
                            fingerprint: [1; 32],
                        }))
                    }
                    Hook::Resume => Outcome::Resumed(Ok(())),
                }
            }
        };
        self.to_daemon(place, Input::Done(outcome));
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

type TestDriver<M> = (Driver<M>, Vec<ActionOf<M>>);

fn bytes_of(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, 1, &mut bytes).unwrap();
    bytes
}

/// A driver, a clock, and the actions that are not yet looked at.
struct Bytes<M: Machine> {
    driver: Driver<M>,
    now: Instant,
    actions: Vec<ActionOf<M>>,
}

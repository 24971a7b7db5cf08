//! N: the process that takes over (R3, R6), or that starts where nobody serves (R1).
//!
//! ```text
//!  Warming ─Hello→ Greeted ─HelloAck→ Acked ─Begin→ Locking ─lock→ Opening ─Ready→ Ready ─┐
//!     └──────────────── cold start ───────────────────↑                └─no supervisor─┐  │ Commit, close,
//!                                                                                      ↓  ↓ 10 s
//!  left before the lock: Ended        left with it: Leaving / Retiring → Ended        Claiming → Incumbent
//! ```
//!
//! A supervisor that goes away before Begin ends the successor; after Begin it goes on by itself.

use core::time::Duration;

use crate::daemon::{
    Command, Config, ConnId, Ended, Event, Hook, Input, LockFailure, OsEffect, Out, Outcome,
    Output, Probed, Readiness, Retiring, StandDown, hook, os,
};
use crate::incumbent::Incumbent;
use crate::io::clip;
use crate::link::check_user;
use crate::wire::MAX_SHARDS;
use crate::{
    Capabilities, Credentials, Deadline, HandoffId, Hangup, Instant, Machine, Message, Side,
    Timers, Violation, short_name,
};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// The machine of N. See the [module](self) for its states.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Successor {
    config: Config,
    link: Link,
    says_hello_when_warm: bool,
    /// The program has done all that needs no lock ([`Command::Begin`]).
    warm: bool,
    /// The control socket could not be put in place, and that was told.
    path_failed: bool,
    timers: Timers<Timer>,
    state: State,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum State {
    /// Hello is not said: the program warms up while the incumbent serves.
    Warming,
    /// Hello is said, HelloAck awaited.
    Greeted,
    /// Begin awaited. The lock must not be touched (R3).
    Acked,
    /// Begin was read, or there is nobody to say it: the lock is tried until its bound.
    Locking(Locking),
    /// The lock is held; the program opens its data while the control socket is staged.
    Opening(Opening),
    /// Ready is sent, the verdict awaited.
    Ready,
    /// This process is the incumbent, and makes the control path lead to itself.
    Claiming { in_flight: bool },
    /// The control path leads here.
    Incumbent,
    /// On the way out before the program has opened anything.
    Leaving(Leaving),
    /// On the way out with the data open.
    Retiring(Retiring),
    /// Nothing is left to do.
    Ended,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Locking {
    last: Option<LockFailure>,
    in_flight: bool,
    /// The bound has passed; the try under way is the last.
    overdue: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Opening {
    readiness: Option<Readiness>,
    staged: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Leaving {
    awaits: Awaits,
    ended: Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Awaits {
    Lock,
    Hook,
    Release,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Link {
    /// There is no supervisor: a cold start, or it is gone.
    Gone,
    /// The inherited connection is not reported open yet.
    Expected,
    Open {
        id: Option<HandoffId>,
        beats: bool,
    },
}

/// Names of a successor's timers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Timer {
    /// The next heartbeat is due (T1).
    Beat,
    /// A supervisor that heartbeats has been silent (T2).
    Silence,
    /// The lock is to be tried again.
    RetryLock,
    /// The control socket is to be tried again.
    RetryPath,
    /// The lock was not had in time (R3).
    LockBound,
    /// No verdict came after Ready (R3).
    Verdict,
    /// The Open hook did not return after it was told that its handoff has ended (R7).
    HookStuck,
}

impl Successor {
    pub(crate) fn cold(config: Config) -> Self {
        Self::with_link(config, Link::Gone, true)
    }

    pub(crate) fn new(config: Config, says_hello_when_warm: bool) -> Self {
        Self::with_link(config, Link::Expected, says_hello_when_warm)
    }

    fn with_link(config: Config, link: Link, says_hello_when_warm: bool) -> Self {
        let timers = Timers::default();
        Self {
            config,
            link,
            says_hello_when_warm,
            warm: false,
            path_failed: false,
            timers,
            state: State::Warming,
        }
    }

    pub(crate) fn succeeded(&self) -> Option<Incumbent> {
        matches!(self.state, State::Incumbent).then(|| Incumbent::new(self.config.clone()))
    }

    fn opened(&mut self, cred: Credentials, out: &mut Out) {
        if self.link != Link::Expected {
            return;
        }
        self.link = Link::Open { id: None, beats: false };
        if let Err(violation) = check_user(cred, self.config.uid, &self.config.allowed_uids) {
            return self.refuse(violation, out);
        }
        if self.warm || !self.says_hello_when_warm {
            self.say_hello(out);
        }
    }

    fn say_hello(&mut self, out: &mut Out) {
        out.push(Output::Send {
            to: ConnId::SUPERVISOR,
            message: Message::Hello {
                role: Side::Successor,
                pid: self.config.pid,
                build_id: self.config.build_id.clone(),
                proto_min: self.config.proto_min,
                proto_max: self.config.proto_max,
                capabilities: Capabilities::OURS,
            },
        });
        self.state = State::Greeted;
    }

    fn command(&mut self, now: Instant, command: Command, out: &mut Out) {
        match command {
            Command::Begin if !self.warm => {
                self.warm = true;
                match (&self.state, self.link) {
                    (State::Warming, Link::Open { .. }) => self.say_hello(out),
                    (State::Warming, Link::Gone) => self.lock(now, out),
                    (State::Opening(_), _) => out.push(hook(Hook::Open)),
                    _ => {}
                }
            }
            Command::Stop => self.leave(now, Ended::Stopped, out),
            Command::Begin | Command::SealProgress { .. } | Command::PathChanged => {}
        }
    }

    fn message(&mut self, now: Instant, message: Message, out: &mut Out) {
        let Link::Open { id, beats } = &mut self.link else {
            return;
        };
        if let (Some(expected), Some(got)) = (*id, message.handoff_id())
            && expected != got
        {
            let message = short_name(&message);
            return self.refuse(Violation::WrongId { message, got, expected }, out);
        }
        match (&self.state, message) {
            (State::Greeted, Message::HelloAck { proto_version_chosen, handoff_id }) => {
                let (min, max) = (self.config.proto_min, self.config.proto_max);
                if !(min..=max).contains(&proto_version_chosen) {
                    let chosen = proto_version_chosen;
                    return self.refuse(Violation::ChosenVersion { chosen, min, max }, out);
                }
                *id = Some(handoff_id);
                self.timers.set(Timer::Beat, now + self.config.timing.pulse.every);
                self.state = State::Acked;
            }
            (State::Acked, Message::Begin { .. }) => self.lock(now, out),
            (State::Ready, Message::Commit { .. }) => self.become_incumbent(out),
            (state, Message::Abort { reason, .. })
                if !matches!(state, State::Warming | State::Greeted) =>
            {
                let why = StandDown::Aborted(clip(reason, 1024));
                self.leave(now, Ended::StoodDown { why }, out);
            }
            (state, Message::Heartbeat { .. })
                if !matches!(state, State::Warming | State::Greeted) =>
            {
                *beats = true;
                self.timers.set(Timer::Silence, now + self.config.timing.pulse.silence);
            }
            (_, message) => {
                let (message, state) = (short_name(&message), self.state_name());
                self.refuse(Violation::Unexpected { message, state }, out);
            }
        }
    }

    fn heard(&mut self, now: Instant) {
        if matches!(self.link, Link::Open { beats: true, .. }) {
            self.timers.set(Timer::Silence, now + self.config.timing.pulse.silence);
        }
    }

    fn refuse(&mut self, violation: Violation, out: &mut Out) {
        let state = self.state_name();
        let conn = ConnId::SUPERVISOR;
        out.push(Output::Event(Event::PeerRefused { conn, violation, state }));
        out.push(Output::Close { peer: conn });
        self.supervisor_lost(out);
    }

    /// The connection is closed or dead (R3).
    fn supervisor_lost(&mut self, out: &mut Out) {
        self.link = Link::Gone;
        self.timers.retain(|timer| !matches!(timer, Timer::Beat | Timer::Silence));
        match self.state {
            State::Warming | State::Greeted | State::Acked => {
                self.end(Ended::StoodDown { why: StandDown::SupervisorGone }, out);
            }
            State::Ready => self.become_incumbent(out),
            State::Locking(_)
            | State::Opening(_)
            | State::Claiming { .. }
            | State::Incumbent
            | State::Leaving(_)
            | State::Retiring(_)
            | State::Ended => {}
        }
    }

    fn lock(&mut self, now: Instant, out: &mut Out) {
        self.timers.set(Timer::LockBound, now + self.config.timing.lock_bound);
        self.state = State::Locking(Locking { last: None, in_flight: true, overdue: false });
        out.push(os(OsEffect::TakeLock));
    }

    /// Once, however often it is tried.
    fn tell_path_failed(&mut self, reason: String, out: &mut Out) {
        if !core::mem::replace(&mut self.path_failed, true) {
            out.push(Output::Event(Event::PathFailed(reason)));
        }
    }

    fn no_lock(&mut self, out: &mut Out) {
        let last = match &mut self.state {
            State::Locking(locking) => locking.last.take(),
            _ => None,
        };
        self.end(Ended::StoodDown { why: StandDown::NoLock(last) }, out);
    }

    fn become_incumbent(&mut self, out: &mut Out) {
        if matches!(self.link, Link::Open { .. }) {
            out.push(Output::Close { peer: ConnId::SUPERVISOR });
            self.link = Link::Gone;
        }
        self.timers = Timers::default();
        self.state = State::Claiming { in_flight: true };
        out.push(os(OsEffect::ClaimPath));
    }

    fn done(&mut self, now: Instant, outcome: Outcome, out: &mut Out) {
        match (&mut self.state, outcome) {
            (State::Locking(_), Outcome::Lock(Ok(()))) => {
                self.timers.retain(|t| !matches!(t, Timer::LockBound | Timer::RetryLock));
                self.state = State::Opening(Opening::default());
                // Nobody serves until the data is open: that first.
                if self.warm {
                    out.push(hook(Hook::Open));
                }
                out.push(os(OsEffect::StagePath));
            }
            (State::Locking(_), Outcome::Lock(Err(failure @ LockFailure::Unusable(_)))) => {
                self.end(Ended::OpenFailed(failure.to_string()), out);
            }
            (State::Locking(locking), Outcome::Lock(Err(failure))) => {
                let held = matches!(failure, LockFailure::Held { .. });
                if locking.last.as_ref() != Some(&failure) {
                    out.push(Output::Event(Event::LockRefused(failure.clone())));
                }
                locking.last = Some(failure);
                if locking.overdue {
                    self.no_lock(out);
                } else if held && matches!(self.link, Link::Gone) {
                    out.push(os(OsEffect::Probe));
                } else {
                    locking.in_flight = false;
                    self.timers.set(Timer::RetryLock, now + self.config.timing.retry);
                }
            }
            (State::Locking(_), Outcome::Probed(Probed::Answered { pid })) => {
                self.end(Ended::StoodDown { why: StandDown::OtherServes { pid } }, out);
            }
            (State::Locking(locking), Outcome::Probed(Probed::Own | Probed::Silent)) => {
                if locking.overdue {
                    return self.no_lock(out);
                }
                locking.in_flight = false;
                self.timers.set(Timer::RetryLock, now + self.config.timing.retry);
            }
            (State::Opening(opening), Outcome::Opened(Ok(readiness))) => {
                opening.readiness = Some(readiness);
                self.ready_if_complete(now, out);
            }
            (State::Opening(_), Outcome::Opened(Err(error))) => {
                out.push(os(OsEffect::ReleaseLock));
                let ended = Ended::OpenFailed(error);
                self.state = State::Leaving(Leaving { awaits: Awaits::Release, ended });
            }
            (State::Opening(opening), Outcome::Staged(Ok(()))) => {
                opening.staged = true;
                self.ready_if_complete(now, out);
            }
            (State::Opening(_), Outcome::Staged(Err(reason))) => {
                self.tell_path_failed(reason, out);
                self.timers.set(Timer::RetryPath, now + self.config.timing.retry);
            }
            (State::Claiming { in_flight }, Outcome::Claimed(Err(reason))) => {
                *in_flight = false;
                self.tell_path_failed(reason, out);
                self.timers.set(Timer::RetryPath, now + self.config.timing.retry);
            }
            (State::Claiming { .. }, Outcome::Claimed(Ok(()))) => {
                self.state = State::Incumbent;
                out.push(Output::Event(Event::Incumbent));
            }
            (State::Leaving(leaving), outcome) => match (leaving.awaits, outcome) {
                // A late success is undone (R8).
                (Awaits::Lock, Outcome::Lock(Ok(()))) | (Awaits::Hook, Outcome::Opened(Err(_))) => {
                    leaving.awaits = Awaits::Release;
                    self.timers.clear(Timer::HookStuck);
                    out.push(os(OsEffect::ReleaseLock));
                }
                (Awaits::Hook, Outcome::Opened(Ok(_))) => {
                    let ended = leaving.ended.clone();
                    self.retire(ended, out);
                }
                (Awaits::Lock, Outcome::Lock(Err(_)) | Outcome::Probed(_))
                | (Awaits::Release, Outcome::Released(_)) => {
                    let ended = leaving.ended.clone();
                    self.end(ended, out);
                }
                _ => {}
            },
            (State::Retiring(retiring), outcome) => {
                if let Some(ended) = retiring.done(outcome, out) {
                    self.end(ended, out);
                }
            }
            _ => {}
        }
    }

    /// Everything that can fail is done before Ready is said (R6).
    fn ready_if_complete(&mut self, now: Instant, out: &mut Out) {
        let State::Opening(Opening { readiness, staged: true, .. }) = &mut self.state else {
            return;
        };
        let Some(readiness) = readiness.take() else {
            return;
        };
        self.timers.clear(Timer::RetryPath);
        let Link::Open { id: Some(handoff_id), .. } = self.link else {
            return self.become_incumbent(out);
        };
        let Readiness { listening_on, healthz_ok, mut revisions } = readiness;
        revisions.truncate(MAX_SHARDS);
        let listening_on = listening_on.into_iter().take(64).map(|text| clip(text, 256)).collect();
        out.push(Output::Send {
            to: ConnId::SUPERVISOR,
            message: Message::Ready {
                handoff_id,
                listening_on,
                healthz_ok,
                advertised_revision_per_shard: revisions,
            },
        });
        self.timers.set(Timer::Verdict, now + self.config.timing.verdict);
        self.state = State::Ready;
    }

    /// Gives up what was reached so far, in an order that never leaves the data open without the lock.
    fn leave(&mut self, now: Instant, ended: Ended, out: &mut Out) {
        match &self.state {
            State::Warming | State::Greeted | State::Acked => self.end(ended, out),
            State::Locking(Locking { in_flight: false, .. }) => self.end(ended, out),
            State::Locking(Locking { in_flight: true, .. }) => {
                self.keep_pulse();
                self.state = State::Leaving(Leaving { awaits: Awaits::Lock, ended });
            }
            State::Opening(_) if !self.warm => {
                out.push(os(OsEffect::ReleaseLock));
                self.keep_pulse();
                self.state = State::Leaving(Leaving { awaits: Awaits::Release, ended });
            }
            State::Opening(Opening { readiness: None, .. }) => {
                out.push(Output::Cancel);
                self.keep_pulse();
                self.timers.set(Timer::HookStuck, now + self.config.timing.hook_stuck);
                self.state = State::Leaving(Leaving { awaits: Awaits::Hook, ended });
            }

            State::Opening(_) | State::Ready | State::Claiming { .. } => self.retire(ended, out),
            State::Incumbent | State::Leaving(_) | State::Retiring(_) | State::Ended => {}
        }
    }

    /// Heartbeats go on as long as the connection is open (T1).
    fn keep_pulse(&mut self) {
        self.timers.retain(|timer| matches!(timer, Timer::Beat | Timer::Silence));
    }

    fn retire(&mut self, ended: Ended, out: &mut Out) {
        self.keep_pulse();
        let grace = self.config.timing.stop_grace;
        let claiming = matches!(self.state, State::Claiming { in_flight: true });
        self.state = State::Retiring(Retiring::start(ended, grace, claiming, out));
    }

    fn end(&mut self, ended: Ended, out: &mut Out) {
        if matches!(self.link, Link::Open { .. }) {
            out.push(Output::Close { peer: ConnId::SUPERVISOR });
        }
        self.link = Link::Gone;
        self.timers = Timers::default();
        self.state = State::Ended;
        out.push(Output::Event(Event::Ended(ended)));
    }

    fn expired(&mut self, now: Instant, timer: Timer, out: &mut Out) {
        match timer {
            Timer::Beat => {
                out.push(Output::Beat { to: ConnId::SUPERVISOR, ts_ms: now.millis() });
                self.timers.set(Timer::Beat, now + self.config.timing.pulse.every);
            }
            Timer::Silence => self.refuse(Violation::Silent { awaited: "a heartbeat" }, out),
            Timer::RetryLock => {
                if let State::Locking(locking) = &mut self.state {
                    locking.in_flight = true;
                    out.push(os(OsEffect::TakeLock));
                }
            }
            Timer::RetryPath => match &mut self.state {
                State::Opening(_) => out.push(os(OsEffect::StagePath)),
                State::Claiming { in_flight } => {
                    *in_flight = true;
                    out.push(os(OsEffect::ClaimPath));
                }
                _ => {}
            },
            Timer::LockBound => {
                if let State::Locking(locking) = &mut self.state {
                    locking.overdue = true;
                    if !locking.in_flight {
                        self.no_lock(out);
                    }
                }
            }
            Timer::Verdict => self.become_incumbent(out),
            Timer::HookStuck => {
                let reason = "the open hook did not return after its handoff had ended";
                self.end(Ended::Crash(String::from(reason)), out);
            }
        }
    }
}

impl Machine for Successor {
    type Peer = ConnId;
    type Effect = crate::daemon::Effect;
    type Outcome = Outcome;
    type Command = Command;
    type Event = Event;
    type Timer = Timer;

    fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Tick => {
                for _ in 0..self.timers.len() {
                    let Some(timer) = self.timers.pop(now) else {
                        break;
                    };
                    self.expired(now, timer, out);
                }
            }
            Input::Opened { peer: ConnId::SUPERVISOR, cred } => self.opened(cred, out),
            Input::Message { from: ConnId::SUPERVISOR, message } => {
                self.heard(now);
                self.message(now, message, out);
            }
            Input::Heard { from: ConnId::SUPERVISOR } => self.heard(now),
            Input::Closed { from: ConnId::SUPERVISOR, how } => {
                if matches!(self.link, Link::Gone) {
                    return;
                }
                if let Hangup::Violation(violation) = how {
                    let (conn, state) = (ConnId::SUPERVISOR, self.state_name());
                    out.push(Output::Event(Event::PeerRefused { conn, violation, state }));
                }
                self.supervisor_lost(out);
            }
            Input::Opened { .. }
            | Input::Message { .. }
            | Input::Heard { .. }
            | Input::Closed { .. } => {}
            Input::Done(outcome) => self.done(now, outcome, out),
            Input::Command(command) => self.command(now, command, out),
        }
    }

    fn deadline(&self) -> Option<Deadline<Timer>> {
        self.timers.next()
    }

    fn rebase(&mut self, by: Duration) {
        self.timers.rebase(by);
    }

    fn state_name(&self) -> &'static str {
        match self.state {
            State::Warming => "warming up",
            State::Greeted => "awaiting HelloAck",
            State::Acked => "awaiting Begin",
            State::Locking(_) => "taking the lock",
            State::Opening(_) => "opening the data",
            State::Ready => "awaiting the verdict",
            State::Claiming { .. } => "claiming the control path",
            State::Incumbent => "serving",
            State::Leaving(_) | State::Retiring(_) => "leaving",
            State::Ended => "ended",
        }
    }
}

//! O: the process that serves, and that hands over or takes back (R1, R2, R7).
//!
//! ```text
//!  Serving ─Prepare→ Draining ─Drained→ Drained ─SealRequest→ Sealing → Releasing ─SealComplete→ Sealed ─Commit→ Ended
//!     ↑                  │                 │                     │           │                      │
//!     │                  │ the handoff is off: it failed, was aborted, outlived │                   │ off
//!     │                  ↓ its deadline, or its supervisor is gone   ↓          ↓                   ↓
//!     └────────────── Resuming ←────────────────────────────── lock ────── Reclaiming ─another serves→ Ended
//! ```
//!
//! Up to Releasing the lock was never let go, so a handoff that is off resumes as soon as the running
//! hook has returned. From then on the lock has to come back first, and the incumbent never gives up:
//! it ends only when Commit is read, or when its supervisor is gone, never said that the handoff is
//! off, and another process serves (R2).

mod connections;

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::daemon::{
    Command, Config, ConnId, DrainReport, Ended, Event, Hook, Input, LockFailure, Off, OsEffect,
    Out, Outcome, Output, Probed, Retiring, SealFailure, SealReport, Signal, StandDown, hook, os,
};
use crate::io::clip;
use crate::link::check_user;
use crate::wire::MAX_SHARDS;
use crate::{
    Capabilities, Credentials, Deadline, HandoffId, Hangup, Instant, Machine, Message, Side,
    Timers, Violation, short_name,
};

/// How many connections are kept. One more pushes out the oldest that has not sent HelloAck, or else
/// the oldest that has not sent Prepare.
const CONNECTIONS: usize = 32;

/// How many bytes of an error's text cross the wire.
const TEXT: usize = 2048;

/// The machine of O. See the [module](self) for its states.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Incumbent {
    config: Config,
    /// Oldest first.
    conns: Vec<Conn>,
    timers: Timers<Timer>,
    /// The control path is being claimed.
    claiming: bool,
    /// The last try to claim it failed, and was told of.
    path_failed: bool,
    /// A successor's pidfd is being opened, and the pid of one that waits for that.
    watching: bool,
    to_watch: Option<u32>,
    /// The program asked to stop; it happens as soon as this process serves again.
    stopping: bool,
    /// The last handoff that has ended: it does not begin again (R7).
    last: Option<HandoffId>,
    state: State,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum State {
    Serving,
    Handoff(Handoff),
    Retiring(Retiring),
    Ended,
}

/// One handoff, from Prepare until this process serves again or ends.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Handoff {
    id: HandoffId,
    /// The supervisor's connection, while it is open.
    conn: Option<ConnId>,
    /// Abort or ResumeAfterAbort was read: another process that answers is no reason to end (R2).
    aborted: bool,
    /// The deadline has passed.
    late: bool,
    /// The supervisor has been gone for so long that a successor which is ready would serve (R3).
    alone: bool,
    step: Step,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Step {
    /// The drain hook runs. `off` once its result no longer matters.
    Draining { off: Option<Off> },
    /// Drained was said.
    Drained,
    /// The seal hook runs. No write is acknowledged from here on.
    Sealing { off: Option<Off> },
    /// The data is sealed; the lock is being released.
    Releasing { off: Option<Off>, report: SealReport },
    /// SealComplete was said: the lock is the successor's to take.
    Sealed,
    /// The lock is being taken back.
    Reclaiming(Reclaiming),
    /// Commit was read, and the lock is tried: it is the successor's, or else the successor is gone, the
    /// verdict came too late, and this process serves on. `again`: it was had once, and let go, because
    /// it may have been on its way from the successor to the next one.
    Yielding { again: bool },
    /// The lock is held; the resume hook runs and the control path is claimed. `hang_up` where
    /// closing the connection is the answer that the supervisor waits for.
    Resuming { open: bool, hang_up: bool },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Reclaiming {
    last: Option<LockFailure>,
    trying: bool,
    ending: Ending,
    /// Another process has answered for so long that it is not one that is being ended (I6).
    yields: bool,
}

/// How far this process has come in ending a successor that neither serves nor lets go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Ending {
    #[default]
    Not,
    Asked,
    Forced,
    Refused,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Conn {
    id: ConnId,
    stage: Stage,
    /// The peer was heard to heartbeat, so its silence means something (T2).
    beats: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Stage {
    /// Hello waits until this process has settled (C6).
    Unsettled,
    Greeted,
    Acked {
        id: HandoffId,
    },
    /// It has sent Prepare. `held`: ResumeAfterAbort was read, and what answers a Heartbeat now says
    /// that this process has resumed, so the answer waits for that (R4).
    Prepared {
        id: HandoffId,
        held: bool,
        answer: Option<u64>,
    },
}

/// Names of an incumbent's timers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Timer {
    /// HelloAck is overdue (C5).
    HelloAck(ConnId),
    /// Neither a heartbeat nor Prepare came (C5).
    Idle(ConnId),
    /// The next heartbeat is due (T1).
    Beat(ConnId),
    /// A supervisor that heartbeats has been silent (T2).
    Silence(ConnId),
    /// The drain's grace is over (T5).
    DrainGrace,
    /// The handoff's deadline (T5).
    Deadline,
    /// A hook did not return after it was told that its handoff has ended (R7).
    HookStuck,
    /// The lock is to be tried again.
    RetryLock,
    /// The control path is to be claimed again.
    RetryPath,
    /// The successor was asked to end and has had its time (R2).
    EndGrace,
    /// A successor that is ready would serve by now (R3).
    Alone,
    /// Another process has answered on the control path for long.
    Yield,
}

impl Timer {
    fn of(self, conn: ConnId) -> bool {
        match self {
            Self::HelloAck(id) | Self::Idle(id) | Self::Beat(id) | Self::Silence(id) => id == conn,
            Self::DrainGrace
            | Self::Deadline
            | Self::HookStuck
            | Self::RetryLock
            | Self::RetryPath
            | Self::EndGrace
            | Self::Alone
            | Self::Yield => false,
        }
    }

    fn of_handoff(self) -> bool {
        match self {
            Self::DrainGrace
            | Self::Deadline
            | Self::HookStuck
            | Self::RetryLock
            | Self::EndGrace
            | Self::Alone
            | Self::Yield => true,
            Self::HelloAck(_)
            | Self::Idle(_)
            | Self::Beat(_)
            | Self::Silence(_)
            | Self::RetryPath => false,
        }
    }
}

impl Incumbent {
    /// A process that holds the lock, serves, and to which the control path leads.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            conns: Vec::new(),
            timers: Timers::default(),
            claiming: false,
            path_failed: false,
            watching: false,
            to_watch: None,
            stopping: false,
            last: None,
            state: State::Serving,
        }
    }

    /// Whether connections to the control socket are to be accepted.
    #[must_use]
    pub const fn answers(&self) -> bool {
        !matches!(self.state, State::Ended)
    }

    /// Whether a Hello tells the truth now: not between Prepare and resume (C6).
    const fn settled(&self) -> bool {
        matches!(self.state, State::Serving)
    }

    // The handoff.

    fn step_is(&self, from: ConnId, test: impl Fn(&Step) -> bool) -> bool {
        matches!(&self.state, State::Handoff(h) if h.conn == Some(from) && test(&h.step))
    }

    fn prepare(
        &mut self,
        now: Instant,
        from: ConnId,
        id: HandoffId,
        successor: u32,
        (deadline, grace): (Duration, Duration),
        out: &mut Out,
    ) {
        match &self.state {
            State::Serving => {}
            State::Handoff(Handoff { id: active, .. }) => {
                let active = *active;
                return self.refuse(now, from, Violation::Busy { active }, out);
            }
            State::Retiring(_) | State::Ended => return self.close(now, from, out),
        }
        if let Some(conn) = self.conn(from) {
            conn.stage = Stage::Prepared { id, held: false, answer: None };
        }
        self.timers.clear(Timer::Idle(from));
        self.timers.set(Timer::Deadline, now + deadline);
        self.timers.set(Timer::DrainGrace, now + grace);
        self.state = State::Handoff(Handoff {
            id,
            conn: Some(from),
            aborted: false,
            late: false,
            alone: false,
            step: Step::Draining { off: None },
        });
        out.push(Output::Event(Event::HandoffBegun { id, successor }));
        self.watch(successor, out);
        out.push(hook(Hook::Drain { grace }));
    }

    fn watch(&mut self, pid: u32, out: &mut Out) {
        if core::mem::replace(&mut self.watching, true) {
            self.to_watch = Some(pid);
        } else {
            out.push(os(OsEffect::WatchSuccessor { pid }));
        }
    }

    fn commit(&mut self, now: Instant, from: ConnId, unexpected: Violation, out: &mut Out) {
        let trying = match &self.state {
            State::Handoff(h) if h.conn == Some(from) && !h.aborted => match &h.step {
                Step::Sealed => Some(false),
                Step::Reclaiming(reclaiming) => Some(reclaiming.trying),
                Step::Draining { .. }
                | Step::Drained
                | Step::Sealing { .. }
                | Step::Releasing { .. }
                | Step::Yielding { .. }
                | Step::Resuming { .. } => None,
            },
            State::Serving | State::Handoff(_) | State::Retiring(_) | State::Ended => None,
        };
        let (State::Handoff(handoff), Some(trying)) = (&mut self.state, trying) else {
            // It holds the lock, or was told that the handoff is off: it goes on serving (C2).
            return self.refuse(now, from, unexpected, out);
        };
        handoff.step = Step::Yielding { again: false };
        self.timers.clear(Timer::RetryLock);
        if !trying {
            out.push(os(OsEffect::TakeLock));
        }
    }

    fn aborted(&mut self, now: Instant, from: ConnId, resume: bool, out: &mut Out) {
        let State::Handoff(handoff) = &mut self.state else {
            return;
        };
        // One that comes before Prepare ends nothing here.
        if handoff.conn != Some(from) {
            return;
        }
        handoff.aborted = true;
        if resume
            && let Some(conn) = self.conn(from)
            && let Stage::Prepared { held, .. } = &mut conn.stage
        {
            *held = true;
        }
        self.call_off(now, Off::Aborted, out);
        // The successor is reaped by now: no reason to wait for the next try.
        if resume && self.timers.at(Timer::RetryLock).is_some() {
            self.timers.clear(Timer::RetryLock);
            self.try_lock(out);
        }
    }

    /// The handoff is off: whatever runs is told, and what was given up is taken back (R2, R7).
    fn call_off(&mut self, now: Instant, why: Off, out: &mut Out) {
        let stuck = now + self.config.timing.hook_stuck;
        let State::Handoff(handoff) = &mut self.state else {
            return;
        };
        let id = handoff.id;
        let first = match &mut handoff.step {
            Step::Draining { off } | Step::Sealing { off } => {
                let first = off.is_none();
                if first {
                    out.push(Output::Cancel);
                    self.timers.set(Timer::HookStuck, stuck);
                }
                off.get_or_insert(why);
                first
            }
            Step::Releasing { off, .. } => {
                let first = off.is_none();
                off.get_or_insert(why);
                first
            }
            Step::Drained | Step::Sealed => true,
            Step::Reclaiming(_) | Step::Yielding { .. } | Step::Resuming { .. } => false,
        };
        if first {
            out.push(Output::Event(Event::HandoffOff { id, why }));
        }
        match &self.state {
            State::Handoff(Handoff { step: Step::Drained, .. }) => self.resume(false, out),
            State::Handoff(Handoff { step: Step::Sealed, .. }) => self.reclaim(out),
            _ => {}
        }
    }

    fn reclaim(&mut self, out: &mut Out) {
        if let State::Handoff(handoff) = &mut self.state {
            let trying = Reclaiming { trying: true, ..Reclaiming::default() };
            handoff.step = Step::Reclaiming(trying);
            out.push(os(OsEffect::TakeLock));
        }
    }

    fn resume(&mut self, hang_up: bool, out: &mut Out) {
        if let State::Handoff(handoff) = &mut self.state {
            handoff.step = Step::Resuming { open: false, hang_up };
            self.timers.retain(|timer| !timer.of_handoff());
            out.push(hook(Hook::Resume));
            self.claim(out);
        }
    }

    fn claim(&mut self, out: &mut Out) {
        if !self.claiming {
            self.timers.clear(Timer::RetryPath);
            self.claiming = true;
            out.push(os(OsEffect::ClaimPath));
        }
    }

    /// The same for what a claim under way may have missed: that one is awaited, and then it is claimed
    /// again.
    fn claim_again(&mut self, now: Instant, out: &mut Out) {
        if self.claiming {
            self.timers.set(Timer::RetryPath, now + self.config.timing.retry);
        } else {
            self.claim(out);
        }
    }

    fn path_changed(&mut self, now: Instant, out: &mut Out) {
        match &self.state {
            State::Serving | State::Handoff(Handoff { step: Step::Resuming { .. }, .. }) => {
                self.claim_again(now, out);
            }
            // It is claimed by whoever serves once this is over.
            State::Handoff(_) | State::Retiring(_) | State::Ended => {}
        }
    }

    /// It serves again once its data is open and the control path was claimed, or found wanting.
    fn resumed_if_complete(&mut self, now: Instant, out: &mut Out) {
        let State::Handoff(Handoff {
            id, conn, step: Step::Resuming { open: true, hang_up }, ..
        }) = self.state
        else {
            return;
        };
        if self.claiming {
            return;
        }
        self.state = State::Serving;
        self.last = Some(id);
        out.push(Output::Event(Event::Resumed { id }));
        if let Some(conn) = conn {
            self.settle_conn(now, conn, hang_up, out);
        }
        let waiting: Vec<ConnId> = self.conns.iter().map(|conn| conn.id).collect();
        for conn in waiting {
            self.greet(now, conn, out);
        }
        if self.stopping {
            self.stop(now, out);
        }
    }

    fn settle_conn(&mut self, now: Instant, id: ConnId, hang_up: bool, out: &mut Out) {
        self.timers.set(Timer::Idle(id), now + self.config.timing.idle);
        if let Some(conn) = self.conn(id)
            && let Stage::Prepared { held, answer, .. } = &mut conn.stage
        {
            *held = false;
            if let Some(ts_ms) = answer.take() {
                out.push(Output::Answer { to: id, ts_ms });
            }
        }
        if hang_up {
            self.close(now, id, out);
        }
    }

    fn claimed(&mut self, now: Instant, result: Result<(), String>, out: &mut Out) {
        self.claiming = false;
        // The release has waited for this: from then on the path may be another's.
        match &mut self.state {
            State::Retiring(retiring) => return retiring.claimed(out),
            State::Handoff(Handoff { step: Step::Releasing { off: None, .. }, .. }) => {
                return out.push(os(OsEffect::ReleaseLock));
            }
            State::Handoff(Handoff { step: Step::Releasing { off: Some(_), .. }, .. }) => {
                return self.resume(false, out);
            }
            _ => {}
        }
        match result {
            Err(reason) if self.answers() => {
                // Told once, however often it is tried.
                if !core::mem::replace(&mut self.path_failed, true) {
                    out.push(Output::Event(Event::PathFailed(reason)));
                }
                self.timers.set(Timer::RetryPath, now + self.config.timing.retry);
            }
            Ok(()) | Err(_) => self.path_failed = false,
        }
        self.resumed_if_complete(now, out);
    }

    fn done(&mut self, now: Instant, outcome: Outcome, out: &mut Out) {
        match outcome {
            Outcome::Claimed(result) => return self.claimed(now, result, out),
            Outcome::Watched(_) => {
                self.watching = false;
                if let (Some(pid), State::Handoff(_)) = (self.to_watch.take(), &self.state) {
                    self.watch(pid, out);
                }
                return;
            }
            _ => {}
        }
        match &mut self.state {
            State::Handoff(_) => self.handoff_done(now, outcome, out),
            State::Retiring(retiring) => {
                if let Some(ended) = retiring.done(outcome, out) {
                    self.end(ended, out);
                }
            }
            State::Serving | State::Ended => {}
        }
    }

    fn handoff_done(&mut self, now: Instant, outcome: Outcome, out: &mut Out) {
        let State::Handoff(handoff) = &mut self.state else {
            return;
        };
        let (id, conn) = (handoff.id, handoff.conn);
        match (&mut handoff.step, outcome) {
            (Step::Draining { off }, Outcome::Drained(result)) => {
                let off = *off;
                self.drained(result, off, out);
            }
            (Step::Sealing { off: None }, Outcome::Sealed(Ok(report)))
                if report.revisions.len() <= MAX_SHARDS =>
            {
                handoff.step = Step::Releasing { off: None, report };
                self.timers.clear(Timer::RetryPath);
                if !self.claiming {
                    out.push(os(OsEffect::ReleaseLock));
                }
            }
            (Step::Sealing { off: None }, Outcome::Sealed(result)) => {
                let failure = result.err().unwrap_or_else(|| SealFailure {
                    error: String::from("the seal reports more shards than a frame can list"),
                    partial_state: String::new(),
                });
                self.seal_failed(id, conn, failure, out);
            }
            // The data is sealed or half sealed, but the lock was never let go: nobody else has
            // touched it.
            (Step::Sealing { off: Some(_) }, Outcome::Sealed(_)) => self.resume(false, out),
            (Step::Releasing { off, report }, Outcome::Released(Ok(()))) => {
                if off.is_some() {
                    return self.reclaim(out);
                }
                let report = core::mem::take(report);
                handoff.step = Step::Sealed;
                out.push(Output::Event(Event::Sealed { id }));
                if let Some(to) = conn {
                    let message = Message::SealComplete {
                        handoff_id: id,
                        last_revision_per_shard: report.revisions,
                        data_dir_fingerprint: report.fingerprint,
                    };
                    out.push(Output::Send { to, message });
                }
            }
            (Step::Releasing { off, .. }, Outcome::Released(Err(error))) => {
                if off.is_some() {
                    return self.resume(false, out);
                }
                let partial_state = String::from("sealed, but the lock could not be released");
                self.seal_failed(id, conn, SealFailure { error, partial_state }, out);
            }
            (Step::Reclaiming(_), Outcome::Lock(Ok(()))) => self.resume(false, out),
            (Step::Reclaiming(reclaiming), Outcome::Lock(Err(failure))) => {
                if reclaiming.last.as_ref() != Some(&failure) {
                    out.push(Output::Event(Event::LockRefused(failure.clone())));
                }
                reclaiming.last = Some(failure);
                if self.stopping {
                    return self.end(Ended::Stopped, out);
                }
                if conn.is_none() {
                    out.push(os(OsEffect::Probe));
                } else {
                    self.retry_lock_later(now);
                }
            }
            (Step::Reclaiming(_), Outcome::Probed(probed)) if conn.is_none() => {
                self.probed(now, probed, out);
            }
            (
                Step::Reclaiming(Reclaiming { ending: Ending::Asked, .. }),
                Outcome::Signalled(Ok(())),
            ) => {
                self.timers.set(Timer::EndGrace, now + self.config.timing.end_grace);
            }
            (Step::Reclaiming(reclaiming), Outcome::Signalled(Err(reason))) => {
                reclaiming.ending = Ending::Refused;
                self.timers.clear(Timer::EndGrace);
                out.push(Output::Event(Event::SuccessorNotEnded(reason)));
            }
            (Step::Yielding { again: again @ false }, Outcome::Lock(Ok(())))
                if !handoff.aborted =>
            {
                *again = true;
                out.push(os(OsEffect::ReleaseLock));
            }
            // Who was kept from the lock by that has had its time.
            (Step::Yielding { .. }, Outcome::Lock(Ok(())) | Outcome::Released(Err(_))) => {
                self.resume(true, out);
            }
            (Step::Yielding { .. }, Outcome::Released(Ok(()))) if handoff.aborted => {
                self.try_lock(out);
            }
            (Step::Yielding { .. }, Outcome::Released(Ok(()))) => {
                let timing = self.config.timing;
                self.timers.set(Timer::RetryLock, now + timing.pulse.every + timing.retry);
            }
            (Step::Yielding { .. }, Outcome::Lock(Err(failure))) if handoff.aborted => {
                out.push(Output::Event(Event::LockRefused(failure.clone())));
                let reclaiming = Reclaiming { last: Some(failure), ..Reclaiming::default() };
                handoff.step = Step::Reclaiming(reclaiming);
                self.retry_lock_later(now);
            }
            (Step::Yielding { .. }, Outcome::Lock(Err(_))) => {
                self.end(Ended::Committed { id }, out)
            }
            (Step::Resuming { open, .. }, Outcome::Resumed(Ok(()))) => {
                *open = true;
                self.resumed_if_complete(now, out);
            }
            (Step::Resuming { .. }, Outcome::Resumed(Err(error))) => {
                let reason = alloc::format!("the daemon cannot resume: {error}");
                self.end(Ended::Crash(reason), out);
            }
            _ => {}
        }
    }

    fn drained(&mut self, result: Result<DrainReport, String>, off: Option<Off>, out: &mut Out) {
        let State::Handoff(handoff) = &mut self.state else {
            return;
        };
        let id = handoff.id;
        self.timers.clear(Timer::DrainGrace);
        self.timers.clear(Timer::HookStuck);
        match (result, off) {
            (Ok(report), None) => {
                handoff.step = Step::Drained;
                if let Some(to) = handoff.conn {
                    let DrainReport { open_conns_remaining, accept_closed } = report;
                    let message = Message::Drained { open_conns_remaining, accept_closed };
                    out.push(Output::Send { to, message });
                }
            }
            (Err(error), off) => {
                out.push(Output::Event(Event::HookFailed { hook: "drain", error }));
                if off.is_none() {
                    let why = Off::DrainFailed;
                    out.push(Output::Event(Event::HandoffOff { id, why }));
                }
                self.resume(matches!(off, None | Some(Off::DrainTimeout)), out);
            }
            (Ok(_), Some(off)) => self.resume(off == Off::DrainTimeout, out),
        }
    }

    fn seal_failed(
        &mut self,
        id: HandoffId,
        conn: Option<ConnId>,
        failure: SealFailure,
        out: &mut Out,
    ) {
        let error = failure.error.clone();
        out.push(Output::Event(Event::HookFailed { hook: "seal", error }));
        out.push(Output::Event(Event::HandoffOff { id, why: Off::SealFailed }));
        if let Some(to) = conn {
            let message = Message::SealFailed {
                handoff_id: id,
                error: clip(failure.error, TEXT),
                partial_state: clip(failure.partial_state, TEXT),
            };
            out.push(Output::Send { to, message });
        }
        self.resume(false, out);
    }

    fn retry_lock_later(&mut self, now: Instant) {
        if let State::Handoff(Handoff { step: Step::Reclaiming(reclaiming), .. }) = &mut self.state
        {
            reclaiming.trying = false;
            self.timers.set(Timer::RetryLock, now + self.config.timing.retry);
        }
    }

    fn try_lock(&mut self, out: &mut Out) {
        if let State::Handoff(Handoff { step: Step::Reclaiming(reclaiming), .. }) = &mut self.state
        {
            reclaiming.trying = true;
        }
        out.push(os(OsEffect::TakeLock));
    }

    /// The lock is held by another, and the supervisor is gone: who serves? (R2)
    fn probed(&mut self, now: Instant, probed: Probed, out: &mut Out) {
        let timing = self.config.timing;
        let State::Handoff(handoff) = &mut self.state else { return };
        let (aborted, overdue) = (handoff.aborted, handoff.late && handoff.alone);
        let Step::Reclaiming(reclaiming) = &mut handoff.step else { return };
        match probed {
            Probed::Answered { pid } if !aborted || reclaiming.yields => {
                let why = StandDown::OtherServes { pid };
                return self.end(Ended::StoodDown { why }, out);
            }
            // One that is being ended answers no longer than that takes.
            Probed::Answered { .. } => {
                if self.timers.at(Timer::Yield).is_none() {
                    self.timers.set(Timer::Yield, now + timing.end_grace + timing.verdict);
                }
            }
            Probed::Own | Probed::Silent => {
                reclaiming.yields = false;
                self.timers.clear(Timer::Yield);
                if overdue && reclaiming.ending == Ending::Not {
                    reclaiming.ending = Ending::Asked;
                    out.push(os(OsEffect::SignalSuccessor(Signal::Term)));
                }
            }
        }
        self.retry_lock_later(now);
    }

    fn stop(&mut self, now: Instant, out: &mut Out) {
        match &self.state {
            State::Serving => {
                let grace = self.config.timing.stop_grace;
                self.state =
                    State::Retiring(Retiring::start(Ended::Stopped, grace, self.claiming, out));
                let open: Vec<ConnId> = self.conns.iter().map(|conn| conn.id).collect();
                for conn in open {
                    self.close(now, conn, out);
                }
                self.timers = Timers::default();
            }
            // The lock is not held, so there is nothing to give back.
            State::Handoff(Handoff { step: Step::Sealed, .. }) => self.end(Ended::Stopped, out),
            State::Handoff(Handoff { step: Step::Reclaiming(reclaiming), .. })
                if !reclaiming.trying =>
            {
                self.end(Ended::Stopped, out);
            }
            State::Handoff(_) => {
                self.stopping = true;
                self.call_off(now, Off::Stopped, out);
            }
            State::Retiring(_) | State::Ended => {}
        }
    }

    fn end(&mut self, ended: Ended, out: &mut Out) {
        self.timers = Timers::default();
        for conn in self.conns.drain(..) {
            out.push(Output::Close { peer: conn.id });
        }
        self.state = State::Ended;
        out.push(Output::Event(Event::Ended(ended)));
    }

    fn expired(&mut self, now: Instant, timer: Timer, out: &mut Out) {
        match timer {
            Timer::HelloAck(conn) => {
                self.refuse(now, conn, Violation::Silent { awaited: "HelloAck" }, out);
            }
            Timer::Idle(conn) => {
                let awaited = "a heartbeat or PrepareHandoff";
                self.refuse(now, conn, Violation::Silent { awaited }, out);
            }
            Timer::Silence(conn) => {
                self.refuse(now, conn, Violation::Silent { awaited: "a heartbeat" }, out);
            }
            Timer::Beat(conn) => {
                out.push(Output::Beat { to: conn, ts_ms: now.millis() });
                self.timers.set(Timer::Beat(conn), now + self.config.timing.pulse.every);
            }
            Timer::DrainGrace => {
                if let State::Handoff(Handoff { step: Step::Draining { .. }, .. }) = self.state {
                    self.call_off(now, Off::DrainTimeout, out);
                }
            }
            Timer::Deadline => {
                if let State::Handoff(handoff) = &mut self.state {
                    handoff.late = true;
                    self.call_off(now, Off::Deadline, out);
                }
            }
            Timer::HookStuck => {
                let reason = "a hook did not return after its handoff had ended";
                self.end(Ended::Crash(String::from(reason)), out);
            }
            Timer::RetryLock => self.try_lock(out),
            Timer::RetryPath => self.claim_again(now, out),
            Timer::Alone => {
                if let State::Handoff(handoff) = &mut self.state {
                    handoff.alone = true;
                }
            }
            Timer::Yield => {
                if let State::Handoff(Handoff { step: Step::Reclaiming(reclaiming), .. }) =
                    &mut self.state
                {
                    reclaiming.yields = true;
                }
            }
            Timer::EndGrace => {
                if let State::Handoff(Handoff { step: Step::Reclaiming(reclaiming), .. }) =
                    &mut self.state
                    && reclaiming.ending == Ending::Asked
                {
                    reclaiming.ending = Ending::Forced;
                    out.push(os(OsEffect::SignalSuccessor(Signal::Kill)));
                }
            }
        }
    }
}

impl Machine for Incumbent {
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
            Input::Opened { peer, cred } => self.opened(now, peer, cred, out),
            Input::Heard { from } => self.heard(now, from),
            Input::Message { from, message } => {
                self.heard(now, from);
                self.message(now, from, message, out);
            }
            Input::Closed { from, how } => {
                if self.conn(from).is_none() {
                    return;
                }
                if let Hangup::Violation(violation) = how {
                    let state = self.state_name();
                    out.push(Output::Event(Event::PeerRefused { conn: from, violation, state }));
                }
                self.lost(now, from, out);
            }
            Input::Done(outcome) => self.done(now, outcome, out),
            Input::Command(Command::Stop) => self.stop(now, out),
            Input::Command(Command::SealProgress {
                shards_sealed,
                shards_total,
                last_revision,
            }) => {
                if let State::Handoff(Handoff {
                    conn: Some(to),
                    step: Step::Sealing { off: None },
                    ..
                }) = self.state
                {
                    let message =
                        Message::SealProgress { shards_sealed, shards_total, last_revision };
                    out.push(Output::Send { to, message });
                }
            }
            Input::Command(Command::PathChanged) => self.path_changed(now, out),
            Input::Command(Command::Begin) => {}
        }
    }

    fn deadline(&self) -> Option<Deadline<Timer>> {
        self.timers.next()
    }

    fn rebase(&mut self, by: Duration) {
        self.timers.rebase(by);
    }

    fn state_name(&self) -> &'static str {
        match &self.state {
            State::Serving => "serving",
            State::Handoff(handoff) => match handoff.step {
                Step::Draining { .. } => "draining",
                Step::Drained => "drained",
                Step::Sealing { .. } => "sealing",
                Step::Releasing { .. } => "releasing the lock",
                Step::Sealed => "sealed",
                Step::Reclaiming(_) | Step::Yielding { .. } => "taking the lock back",
                Step::Resuming { .. } => "resuming",
            },
            State::Retiring(_) => "stopping",
            State::Ended => "ended",
        }
    }
}

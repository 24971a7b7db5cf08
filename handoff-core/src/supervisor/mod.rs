//! S: the process that holds the listeners and drives a swap (C, R4-R6, R9, R14, R16, R17).
//!
//! ```text
//!  Idle ─Handoff→ Probing → Spawning → Warming (→ Connecting) → Preparing ─Prepare→ Draining
//!   ↑                                                                                  │ SealRequest
//!   │   Committed                                                                      ↓
//!   ├──────────── Committing ←─Commit── Verifying ←─Ready── Opening ←────Begin───── Sealing
//!   │                                                         ↑
//!   │             anything fails: is the incumbent there?     │ lock free
//!   │             Asking ──no answer──────────────────────→ Promoting
//!   │               │ it answers                              │ it answers after all
//!   │  RolledBack   ↓                                         ↓
//!   └─ Confirming ← Ending (the successor's process group) ←──┘
//! ```
//!
//! The rule behind the lower half is R5: a successor is ended only while the incumbent is known to be
//! there; where it is not, the successor is promoted, however late.

mod completions;
mod connections;
mod failure;
mod finding;
mod types;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use crate::daemon::{Probed, Signal};
use crate::io::clip;
use crate::link::check_user;
use crate::{
    Capabilities, Credentials, Deadline, HandoffId, Hangup, Instant, Machine, Message, Side,
    Timers, Violation, negotiate_version, short_name,
};
pub use types::{
    Command, Config, Effect, Entry, Event, Input, LockState, Outcome, Output, Peer, Phase, Ready,
    Reason, Report, Spec, Step, Timer, Timing, Trouble, Verdict,
};

type Out = Vec<Output>;

/// What a question to the incumbent is stamped with (X2): no clock reaches the top bit.
const ASK_ALIVE: u64 = (1 << 63) | 1;
/// The same, for the question whether it has resumed (R4).
const ASK_RESUMED: u64 = (1 << 63) | 2;

/// The machine of S. See the [module](self) for its states.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Supervisor {
    config: Config,
    timers: Timers<Timer>,
    probe: Flight,
    check: Flight,
    connect: Flight,
    journal: Journal,
    state: State,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum State {
    Idle,
    /// Who serves? (R10, R17)
    Finding(Finding),
    Swap(Swap),
}

/// An effect that may be asked for again while it is in flight. What was asked before the latest
/// change of state tells nothing about it, so such an answer is dropped and the question repeated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Flight {
    Idle,
    Out,
    Stale,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Journal {
    writing: Option<Entry>,
    next: Option<Entry>,
    /// The last step that is on disk.
    written: Option<Step>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Finding {
    own: Vec<u32>,
    started: Option<u32>,
    spawning: bool,
    /// The group that is being ended.
    ending: Option<u32>,
    /// It was seen to be stopped.
    stopped: bool,
    told: bool,
}

/// One handoff.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Swap {
    id: HandoffId,
    deadline: Duration,
    drain_grace: Duration,
    hello_budget: Duration,
    dry_run: bool,
    incumbent: Incumbent,
    successor: Successor,
    prepared: bool,
    drained: bool,
    /// The revisions the incumbent has sealed.
    sealed: Option<Vec<u64>>,
    seal_failed: bool,
    ready: Option<Ready>,
    /// The incumbent counts as gone: the successor is the only one left (R5).
    promoted: bool,
    /// It answered after all, when the successor was ready.
    back: bool,
    /// The incumbent was sent a signal to end: its answers mean nothing any more.
    doomed: bool,
    trouble: Option<Trouble>,
    at: At,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Incumbent {
    pid: Option<u32>,
    link: Link,
    /// X2: its silence means something, and its answers can be told apart.
    steady: bool,
    /// It closed its connection itself, so it may be resuming, and say Hello when it has.
    hung_up: bool,
    /// It heartbeats no more (T2).
    silent: bool,
    exited: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Successor {
    /// The leader of its process group: what was started.
    leader: Option<u32>,
    /// The process that said Hello.
    pid: Option<u32>,
    link: Link,
    /// X1: it wants to be told of the commit.
    notice: bool,
    steady: bool,
    begun: bool,
    /// It heartbeats no more (T2).
    silent: bool,
    exited: bool,
    stuck: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Link {
    #[default]
    None,
    /// Open; Hello is awaited.
    Opened(Credentials),
    /// HelloAck is sent.
    Acked,
    Closed,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Hash, Debug)]
enum At {
    /// Is the incumbent there? (C3)
    Probing,
    /// The successor's process is being started.
    Spawning,
    /// Its Hello is awaited.
    /// Meanwhile the incumbent says its own.
    Warming,
    /// The incumbent's Hello is awaited, because it has not said it by now.
    Connecting,
    /// The journal is awaited, then Prepare is sent.
    Preparing,
    Draining,
    Sealing,
    /// Ready is awaited.
    Opening,
    /// Ready came; the lock is looked at.
    Verifying,
    /// Commit is sent; the control path is to lead to the successor (R16).
    Committing,
    /// Is the incumbent still there? (R5)
    Asking,
    /// It is not; the successor gets Begin once the lock is free.
    Promoting,
    /// The successor's process group is being ended (R14).
    Ending,
    /// The incumbent is to be seen serving (R4).
    Confirming,
}

impl Supervisor {
    /// A supervisor that does nothing yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            timers: Timers::default(),
            probe: Flight::Idle,
            check: Flight::Idle,
            connect: Flight::Idle,
            journal: Journal { writing: None, next: None, written: None },
            state: State::Idle,
        }
    }

    /// Whether a command would be taken now: no handoff and no search is under way.
    #[must_use]
    pub const fn idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    fn swap(&mut self) -> Option<&mut Swap> {
        match &mut self.state {
            State::Swap(swap) => Some(swap),
            State::Idle | State::Finding(_) => None,
        }
    }

    fn at(&self) -> Option<At> {
        match &self.state {
            State::Swap(swap) => Some(swap.at),
            State::Idle | State::Finding(_) => None,
        }
    }

    // Looking at the world.

    fn look(flight: &mut Flight, effect: Effect, out: &mut Out) {
        match flight {
            Flight::Idle => {
                *flight = Flight::Out;
                out.push(Output::Do(effect));
            }
            Flight::Out | Flight::Stale => *flight = Flight::Stale,
        }
    }

    fn want_probe(&mut self, out: &mut Out) {
        Self::look(&mut self.probe, Effect::Probe, out);
    }

    fn want_check(&mut self, out: &mut Out) {
        let effect = self.lock_question();
        Self::look(&mut self.check, effect, out);
    }

    fn lock_question(&self) -> Effect {
        let by = match &self.state {
            State::Swap(swap) if swap.at == At::Verifying => swap.successor.pid,
            State::Swap(swap) => swap.incumbent.pid,
            State::Idle | State::Finding(_) => None,
        };
        Effect::CheckLock { by }
    }

    /// Whether an answer is to the latest question; a stale one is asked again.
    fn fresh(flight: &mut Flight, effect: Effect, wanted: bool, out: &mut Out) -> bool {
        let fresh = *flight == Flight::Out;
        *flight = Flight::Idle;
        if !fresh && wanted {
            Self::look(flight, effect, out);
        }
        fresh
    }

    fn recheck_later(&mut self, now: Instant) {
        let timing = self.config.timing;
        let committing = self.at() == Some(At::Committing);
        let pause = if committing { timing.path_recheck } else { timing.recheck };
        self.timers.set(Timer::Recheck, now + pause);
    }

    // The journal (R9): one write in flight, the newest entry next.

    fn journal(&mut self, step: Step, out: &mut Out) {
        let State::Swap(swap) = &self.state else {
            return;
        };
        let entry = Entry {
            id: swap.id,
            step,
            incumbent: swap.incumbent.pid,
            successor: swap.successor.pid.or(swap.successor.leader),
        };
        if self.journal.writing.is_some() {
            self.journal.next = Some(entry);
        } else {
            self.journal.writing = Some(entry);
            out.push(Output::Do(Effect::Journal(entry)));
        }
    }

    fn journalled(&mut self, now: Instant, result: Result<(), String>, out: &mut Out) {
        let Some(entry) = self.journal.writing.take() else { return };
        // A late entry of an earlier handoff says nothing about this one.
        let current = self.swap().is_some_and(|swap| swap.id == entry.id);
        let before_seal = self.at().is_some_and(|at| at < At::Sealing);
        let failure = match result {
            Ok(()) => {
                if current {
                    self.journal.written = Some(entry.step);
                }
                None
            }
            Err(error) => {
                out.push(Output::Event(Event::JournalFailed(error.clone())));
                Some(error)
            }
        };
        if let Some(next) = self.journal.next.take() {
            self.journal.writing = Some(next);
            out.push(Output::Do(Effect::Journal(next)));
        } else if failure.is_none() && current && before_seal && entry.step == Step::Prepare {
            // Before the drain as well, so that nothing is waited for when nobody accepts.
            self.journal(Step::Seal, out);
        }
        match failure {
            // Only before Seal may the journal stop a handoff.
            Some(error) if before_seal && current => {
                self.fail(now, Reason::IoError, format!("the journal: {error}"), out);
            }
            Some(_) | None => self.step_if_journalled(now, out),
        }
    }

    fn step_if_journalled(&mut self, now: Instant, out: &mut Out) {
        let written = self.journal.written;
        match self.at() {
            Some(At::Probing) if written == Some(Step::Warm) => self.spawn(out),
            // Those of an earlier connection to the incumbent may have been written.
            Some(At::Preparing)
                if written == Some(Step::Seal) && self.journal.writing.is_none() =>
            {
                self.prepare(now, out);
            }
            _ => {}
        }
    }

    // The good path (C2).

    fn start_handoff(&mut self, id: HandoffId, spec: Spec, out: &mut Out) {
        let Spec { deadline, drain_grace, hello_budget, dry_run } = spec;
        self.state = State::Swap(Swap {
            id,
            deadline,
            drain_grace,
            hello_budget,
            dry_run,
            incumbent: Incumbent::default(),
            successor: Successor::default(),
            prepared: false,
            drained: false,
            sealed: None,
            seal_failed: false,
            ready: None,
            promoted: false,
            back: false,
            doomed: false,
            trouble: None,
            at: At::Probing,
        });
        self.journal.written = None;
        self.journal(Step::Warm, out);
        out.push(Output::Event(Event::Phase(Phase::Warm)));
        self.want_probe(out);
    }

    /// Once the incumbent was found and the journal says so.
    fn spawn(&mut self, out: &mut Out) {
        if let Some(swap) = self.swap()
            && swap.incumbent.pid.is_some()
        {
            swap.at = At::Spawning;
            out.push(Output::Do(Effect::Spawn { successor: true }));
        }
    }

    fn prepare(&mut self, now: Instant, out: &mut Out) {
        let slack = self.config.timing.slack;
        let Some(swap) = self.swap() else { return };
        let (deadline, drain_grace) = (swap.deadline, swap.drain_grace);
        swap.at = At::Draining;
        swap.prepared = true;
        let message = Message::PrepareHandoff {
            handoff_id: swap.id,
            successor_pid: swap.successor.pid.unwrap_or_default(),
            deadline_ms: millis(deadline),
            drain_grace_ms: millis(drain_grace),
        };
        out.push(Output::Event(Event::Phase(Phase::Drain)));
        out.push(Output::Send { to: Peer::Incumbent, message });
        self.timers.set(Timer::Deadline, now + deadline + slack);
        self.timers.set(Timer::Drain, now + drain_grace + slack);
    }

    fn request_seal(&mut self, out: &mut Out) {
        let Some(swap) = self.swap() else { return };
        swap.at = At::Sealing;
        let message = Message::SealRequest { handoff_id: swap.id };
        out.push(Output::Event(Event::Phase(Phase::Seal)));
        out.push(Output::Send { to: Peer::Incumbent, message });
    }

    fn begin(&mut self, now: Instant, out: &mut Out) {
        let patience = now + self.config.timing.unanswered;
        self.timers.retain(|timer| !matches!(timer, Timer::Hung | Timer::EndGrace));
        let Some(swap) = self.swap() else { return };
        swap.at = At::Opening;
        swap.successor.begun = true;
        if swap.successor.link == Link::Acked {
            let message = Message::Begin { handoff_id: swap.id };
            out.push(Output::Send { to: Peer::Successor, message });
        }
        if swap.promoted {
            if swap.successor.link == Link::Closed {
                self.timers.set(Timer::Hung, patience);
            }
            self.recheck_later(now);
        }
        out.push(Output::Event(Event::Phase(Phase::Open)));
        self.journal(Step::Begin, out);
    }

    fn verify(&mut self, ready: Ready, out: &mut Out) {
        let Some(swap) = self.swap() else { return };
        swap.ready = Some(ready);
        swap.at = At::Verifying;
        self.timers
            .retain(|timer| !matches!(timer, Timer::Deadline | Timer::Hung | Timer::Recheck));
        self.want_check(out);
    }

    /// R6: what is wrong with a successor that says it is ready.
    fn objection(&self, lock: LockState) -> Option<Trouble> {
        let State::Swap(swap) = &self.state else {
            return None;
        };
        let ready = swap.ready.as_ref()?;
        let trouble = |reason, detail| Some(Trouble { reason, detail });
        if !ready.healthz_ok {
            return trouble(Reason::Unhealthy, "the successor calls itself unhealthy".to_string());
        }
        if let Some(sealed) = &swap.sealed {
            let regressed = Reason::RevisionRegressed;
            let (was, is) = (sealed.len(), ready.revisions.len());
            if was == 0 || is == 0 {
                if self.config.strict {
                    let detail = "revisions are required, and one side reports none";
                    return trouble(regressed, detail.to_string());
                }
            } else if was != is {
                let detail =
                    format!("the incumbent sealed {was} shards, the successor opened {is}");
                return trouble(regressed, detail);
            } else if let Some((shard, (was, is))) =
                sealed.iter().zip(&ready.revisions).enumerate().find(|(_, (was, is))| is < was)
            {
                let detail = format!("shard {shard} was sealed at {was}, but opened at {is}");
                return trouble(regressed, detail);
            }
        }
        match lock {
            LockState::Free => {
                let detail = "the successor is ready, but does not hold the data directory's lock";
                trouble(Reason::Unhealthy, detail.to_string())
            }
            LockState::Held { pid: Some(pid) } | LockState::Stopped { pid }
                if Some(pid) == swap.incumbent.pid =>
            {
                let detail = "the successor is ready, but the incumbent holds the lock";
                trouble(Reason::Unhealthy, detail.to_string())
            }
            LockState::Held { .. } | LockState::Stopped { .. } | LockState::Unknown => None,
        }
    }

    fn verified(&mut self, now: Instant, lock: LockState, out: &mut Out) {
        let objection = self.objection(lock);
        let Some(swap) = self.swap() else { return };
        match objection {
            Some(trouble) if (swap.promoted && !swap.back) || swap.incumbent.exited => {
                swap.trouble = Some(trouble);
                self.commit(now, out);
            }
            Some(Trouble { reason, detail }) => self.fail(now, reason, detail, out),
            None => self.commit(now, out),
        }
    }

    fn commit(&mut self, now: Instant, out: &mut Out) {
        let Some(swap) = self.swap() else { return };
        swap.at = At::Committing;
        let message = Message::Commit { handoff_id: swap.id };
        out.push(Output::Event(Event::Phase(Phase::Commit)));
        if swap.successor.link == Link::Acked && swap.successor.notice {
            out.push(Output::Send { to: Peer::Successor, message: message.clone() });
        }
        if swap.incumbent.link == Link::Acked {
            out.push(Output::Send { to: Peer::Incumbent, message });
        }
        self.timers.retain(|timer| matches!(timer, Timer::Beat(_)));
        self.timers.set(Timer::Path, now + self.config.timing.path);
        self.journal(Step::Commit, out);
        self.want_probe(out);
    }

    // Time.

    /// What the incumbent has been asked and has not answered. Its heartbeats repeat that, because of
    /// the answers that it owes it keeps one (T4), and that is the last.
    fn question(&self) -> Option<u64> {
        let State::Swap(swap) = &self.state else { return None };
        match swap.at {
            At::Asking => Some(ASK_ALIVE),
            At::Confirming => Some(ASK_RESUMED),
            _ => None,
        }
    }

    fn expired(&mut self, now: Instant, timer: Timer, out: &mut Out) {
        let timing = self.config.timing;
        match timer {
            Timer::Beat(peer) => {
                let question = self.question().filter(|_| peer == Peer::Incumbent);
                out.push(Output::Beat { to: peer, ts_ms: question.unwrap_or(now.millis()) });
                self.timers.set(Timer::Beat(peer), now + timing.pulse.every);
            }
            Timer::Silence(peer) => {
                out.push(Output::Event(Event::PeerRefused {
                    peer,
                    violation: Violation::Silent { awaited: "a heartbeat" },
                    state: self.state_name(),
                }));
                let Some(swap) = self.swap() else { return };
                let (silent, reason) = match peer {
                    Peer::Incumbent => (&mut swap.incumbent.silent, Reason::IncumbentLost),
                    Peer::Successor => (&mut swap.successor.silent, Reason::SuccessorExited),
                };
                *silent = true;
                let detail = format!("{peer} heartbeats no more");
                self.close(peer, out);
                self.lost(now, peer, Some((reason, detail)), out);
            }
            Timer::Hello(Peer::Successor) => {
                let detail =
                    "the successor did not say Hello within its warm-up budget".to_string();
                self.fail(now, Reason::SuccessorHelloTimeout, detail, out);
            }
            Timer::Hello(Peer::Incumbent) => {
                // It may serve one connection at a time, and is about to be probed.
                self.close(Peer::Incumbent, out);
                if let Some(swap) = self.swap() {
                    swap.incumbent.silent = true;
                }
                let detail = "the incumbent did not say Hello".to_string();
                self.fail(now, Reason::IncumbentLost, detail, out);
            }
            Timer::Drain => {
                let detail = "the drain outlived its grace".to_string();
                self.fail(now, Reason::DrainTimeout, detail, out);
            }
            Timer::Deadline => {
                let (reason, what) = match self.at() {
                    Some(At::Draining) => (Reason::DrainTimeout, "drained"),
                    Some(At::Sealing) => (Reason::SealTimeout, "sealed"),
                    _ => (Reason::ReadyTimeout, "open"),
                };
                let detail = format!("the deadline passed before the data was {what}");
                self.fail(now, reason, detail, out);
            }
            Timer::Ask => self.promote(now, out),
            // What is in flight is awaited: its answer would be dropped if it was asked for again, and may
            // take longer than the pause between two.
            Timer::Recheck => {
                if self.at() == Some(At::Promoting) && self.check == Flight::Idle {
                    self.want_check(out);
                }
                if self.probe == Flight::Idle {
                    self.want_probe(out);
                }
            }
            Timer::EndGrace => self.force(now, out),
            Timer::KillWait => {
                if let Some(swap) = self.swap() {
                    swap.successor.stuck = true;
                    self.successor_ended(now, out);
                }
            }
            Timer::Confirm => self.finish(Verdict::Unknown, None, out),
            Timer::Path => {
                if let Some(swap) = self.swap() {
                    let detail = "the control path does not lead to the successor".to_string();
                    swap.trouble.get_or_insert(Trouble { reason: Reason::IoError, detail });
                    self.finish(Verdict::Unknown, None, out);
                }
            }
            Timer::Hung if self.at() == Some(At::Opening) => self.end_successor(now, out),
            Timer::Hung => {
                if let Some(swap) = self.swap() {
                    swap.doomed = true;
                }
                if let Some(pid) = self.being_ended() {
                    out.push(Output::Do(Effect::Signal { pid, signal: Signal::Term }));
                    self.timers.set(Timer::EndGrace, now + self.end_grace());
                }
            }
        }
    }

    /// Whose process group gets the signals.
    fn being_ended(&self) -> Option<u32> {
        match &self.state {
            // An incumbent that holds the lock and answers nobody (R17). The host knows whether it
            // is its child, and refuses otherwise.
            State::Swap(swap) if swap.at == At::Promoting => swap.incumbent.pid,
            State::Swap(swap) => swap.successor.leader,
            State::Finding(finding) => finding.ending,
            State::Idle => None,
        }
    }

    /// From SIGTERM to SIGKILL, for whom is being ended: who hears nothing needs no time for it.
    fn end_grace(&self) -> Duration {
        let deaf = match &self.state {
            State::Swap(swap) if swap.at == At::Promoting => swap.incumbent.silent,
            State::Swap(swap) => swap.successor.silent,
            State::Finding(finding) => finding.stopped,
            State::Idle => false,
        };
        let timing = self.config.timing;
        if deaf { timing.silent_grace } else { timing.end_grace }
    }

    /// SIGTERM had its time.
    fn force(&mut self, now: Instant, out: &mut Out) {
        if let Some(pid) = self.being_ended() {
            out.push(Output::Do(Effect::Signal { pid, signal: Signal::Kill }));
        }
        if self.at() == Some(At::Ending) {
            self.timers.set(Timer::KillWait, now + self.config.timing.kill_wait);
        }
    }

    fn command(&mut self, now: Instant, command: Command, out: &mut Out) {
        match (command, &self.state) {
            (Command::Start { own }, State::Idle) => self.find(own, out),
            (Command::Handoff { id, spec }, State::Idle) => self.start_handoff(id, spec, out),
            (Command::Start { .. } | Command::Handoff { .. }, _) => {
                out.push(Output::Event(Event::Busy));
            }
            (Command::Abort, State::Swap(swap)) if !swap.promoted => {
                let detail = "the operator aborted it".to_string();
                self.fail(now, Reason::OperatorAbort, detail, out);
            }
            (Command::Abort, State::Finding(finding))
                if finding.started.is_none() && !finding.spawning =>
            {
                self.timers = Timers::default();
                self.state = State::Idle;
                let text = "the search for who serves was aborted".to_string();
                out.push(Output::Event(Event::NobodyServes(text)));
            }
            (Command::Abort, _) => {}
        }
    }

    fn goto(&mut self, at: At) {
        if let Some(swap) = self.swap() {
            swap.at = at;
        }
    }

    fn done(&mut self, now: Instant, outcome: Outcome, out: &mut Out) {
        match outcome {
            Outcome::Probed(answer) => self.probed(now, answer, out),
            Outcome::Spawned(result) => self.spawned(now, result, out),
            Outcome::Connected(result) => self.connected(now, result, out),
            Outcome::LockChecked(lock) => self.lock_checked(now, lock, out),
            Outcome::Signalled(Err(_)) if self.at() == Some(At::Promoting) => {
                // It is no child of this host's, and may answer yet.
                self.timers.clear(Timer::EndGrace);
                if let Some(swap) = self.swap() {
                    swap.doomed = false;
                }
            }
            // What was signalled in vain is seen when it is not reaped in time.
            Outcome::Signalled(_) => {}
            Outcome::Reaped { pid } => {
                let awaited =
                    |swap: &mut Swap| swap.at == At::Ending && swap.successor.leader == Some(pid);
                if self.swap().is_some_and(awaited) {
                    self.successor_ended(now, out);
                }
            }
            Outcome::Journalled(result) => self.journalled(now, result, out),
            Outcome::Exited { pid, status } => self.exited(now, pid, &status, out),
        }
    }
}

impl Swap {
    fn link(&mut self, peer: Peer) -> &mut Link {
        match peer {
            Peer::Incumbent => &mut self.incumbent.link,
            Peer::Successor => &mut self.successor.link,
        }
    }

    /// Whether what the incumbent says is an answer: not what one that has exited had said before, nor what
    /// one says that was told to end (R5, R17).
    const fn answers(&self) -> bool {
        !self.doomed && !self.incumbent.exited
    }

    /// Whether this is a dry run that is at its end, because its successor said Hello.
    const fn went_well(&self) -> bool {
        self.dry_run && self.trouble.is_none()
    }

    fn trouble_is(&self, reason: Reason) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.reason == reason)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Machine for Supervisor {
    type Peer = Peer;
    type Effect = Effect;
    type Outcome = Outcome;
    type Command = Command;
    type Event = Event;
    type Timer = Timer;

    fn handle(&mut self, now: Instant, input: Input, out: &mut Out) {
        match input {
            Input::Tick => {
                for _ in 0..self.timers.len() {
                    let Some(timer) = self.timers.pop(now) else {
                        break;
                    };
                    self.expired(now, timer, out);
                }
            }
            Input::Opened { peer, cred } => self.opened(peer, cred, out),
            Input::Heard { from } => {
                self.heard(now, from);
                let legacy = matches!(&self.state, State::Swap(s) if !s.incumbent.steady);
                if from == Peer::Incumbent && legacy {
                    self.incumbent_answered(now, out);
                }
            }
            Input::Message { from, message } => {
                self.heard(now, from);
                self.message(now, from, message, out);
            }
            Input::Closed { from, how } => {
                if !self.hung_up(from) {
                    return;
                }
                if let (Peer::Incumbent, Some(swap)) = (from, self.swap()) {
                    swap.incumbent.hung_up = true;
                }
                let why = match how {
                    Hangup::Eof => None,
                    Hangup::Violation(violation) => {
                        let detail = format!("{from}: {violation}");
                        let state = self.state_name();
                        let event = Event::PeerRefused { peer: from, violation, state };
                        out.push(Output::Event(event));
                        Some((Reason::ProtocolViolation, detail))
                    }
                };
                self.lost(now, from, why, out);
            }
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
        match &self.state {
            State::Idle => "idle",
            State::Finding(_) => "finding out who serves",
            State::Swap(swap) => match swap.at {
                At::Probing => "probing the incumbent",
                At::Spawning => "starting the successor",
                At::Warming => "awaiting the successor's Hello",
                At::Connecting => "awaiting the incumbent's Hello",
                At::Preparing => "writing the journal",
                At::Draining => "awaiting Drained",
                At::Sealing => "awaiting SealComplete",
                At::Opening => "awaiting Ready",
                At::Verifying => "checking the successor",
                At::Committing => "awaiting the control path",
                At::Asking => "asking the incumbent",
                At::Promoting => "awaiting the lock",
                At::Ending => "ending the successor",
                At::Confirming => "confirming the rollback",
            },
        }
    }
}

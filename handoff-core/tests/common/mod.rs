//! A machine on a bench: virtual time, a script of inputs, and the outputs that must follow.
//!
//! ```text
//! let mut o = incumbent();
//! o.opens(S);                                   // an input
//! o.expect([send(S, hello(Side::Incumbent))]);  // all that it leads to, in this order
//! o.passes(5.s());                              // time, with a tick at every deadline on the way
//! o.expect([refused(S, ..), close(S)]);
//! o.quiet();                                    // nothing else
//! ```
//!
//! Heartbeats of the machine's own (`Output::Beat`) go into a list beside the transcript, so that only
//! the tests that are about them have to name them.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "shared by several test binaries, none of which uses all of it"
)]

pub(crate) mod daemon;
pub(crate) mod supervisor;

use handoff_core::{
    Capabilities, Credentials, HandoffId, Hangup, Input, Instant, Machine, Message, Output, Side,
    Violation,
};
use std::fmt::Debug;
use std::time::Duration;

pub(crate) const ID: HandoffId = HandoffId::from_random_bytes([1; 16]);
pub(crate) const OTHER: HandoffId = HandoffId::from_random_bytes([2; 16]);

/// The pids of the incumbent, the successor, the supervisor and somebody else; the uid of them all.
pub(crate) const O_PID: u32 = 100;
pub(crate) const N_PID: u32 = 200;
pub(crate) const S_PID: u32 = 300;
pub(crate) const X_PID: u32 = 400;
pub(crate) const UID: u32 = 1000;

pub(crate) trait Units {
    fn s(self) -> Duration;
    fn ms(self) -> Duration;
}

impl Units for u64 {
    fn s(self) -> Duration {
        Duration::from_secs(self)
    }

    fn ms(self) -> Duration {
        Duration::from_millis(self)
    }
}

type Out<M> = Output<<M as Machine>::Peer, <M as Machine>::Effect, <M as Machine>::Event>;
type In<M> = Input<<M as Machine>::Peer, <M as Machine>::Outcome, <M as Machine>::Command>;

/// A machine, its clock and what it asked for since it was last looked at.
pub(crate) struct Bench<M: Machine> {
    pub(crate) machine: M,
    pub(crate) now: Instant,
    outputs: Vec<Out<M>>,
    /// Every heartbeat of its own: when, and to whom.
    pub(crate) beats: Vec<(Duration, M::Peer)>,
    /// What was asked with them.
    pub(crate) questions: Vec<u64>,
}

/// From here on a time stamp is a question that is recognised in its answer (X2).
pub(crate) const STAMPED: u64 = 1 << 63;

impl<M: Machine + Clone> Clone for Bench<M>
where
    M::Effect: Clone,
    M::Event: Clone,
{
    fn clone(&self) -> Self {
        Self {
            machine: self.machine.clone(),
            now: self.now,
            outputs: self.outputs.clone(),
            beats: self.beats.clone(),
            questions: self.questions.clone(),
        }
    }
}

impl<M: Machine> Bench<M>
where
    M::Peer: PartialEq,
    M::Effect: Debug + PartialEq,
    M::Event: Debug + PartialEq,
{
    pub(crate) fn new(machine: M) -> Self {
        Self {
            machine,
            now: Instant::ORIGIN,
            outputs: Vec::new(),
            beats: Vec::new(),
            questions: Vec::new(),
        }
    }

    pub(crate) fn input(&mut self, input: In<M>) {
        let mut outputs = Vec::new();
        self.machine.handle(self.now, input, &mut outputs);
        for output in outputs {
            match output {
                Output::Beat { to, ts_ms } => {
                    let since = self.now.since_origin();
                    let asks = ts_ms >= STAMPED;
                    let time = u128::from(ts_ms) == since.as_millis();
                    assert!(asks || time, "a beat tells the time, or asks");
                    self.questions.extend(asks.then_some(ts_ms));
                    self.beats.push((since, to));
                }
                output => self.outputs.push(output),
            }
        }
    }

    /// A connection opens, and the kernel vouches for its peer.
    pub(crate) fn opens_as(&mut self, peer: M::Peer, cred: Credentials) {
        self.input(Input::Opened { peer, cred });
    }

    pub(crate) fn hears(&mut self, from: M::Peer, message: Message) {
        self.input(Input::Message { from, message });
    }

    /// Bytes that complete no message.
    pub(crate) fn hears_a_byte(&mut self, from: M::Peer) {
        self.input(Input::Heard { from });
    }

    pub(crate) fn loses(&mut self, from: M::Peer) {
        let how = Hangup::Eof;
        self.input(Input::Closed { from, how });
    }

    pub(crate) fn loses_by(&mut self, from: M::Peer, violation: Violation) {
        let how = Hangup::Violation(violation);
        self.input(Input::Closed { from, how });
    }

    pub(crate) fn done(&mut self, outcome: M::Outcome) {
        self.input(Input::Done(outcome));
    }

    pub(crate) fn asks(&mut self, command: M::Command) {
        self.input(Input::Command(command));
    }

    pub(crate) fn tick(&mut self) {
        self.input(Input::Tick);
    }

    /// Time passes, and the machine is told whenever it wants to be.
    pub(crate) fn passes(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(deadline) = self.machine.deadline().filter(|d| d.at <= until) {
            self.now = self.now.max(deadline.at);
            self.tick();
            if let Some(next) = self.machine.deadline() {
                assert!(next.at > self.now, "{next:?} is still due");
            }
        }
        self.now = until;
    }

    /// Time passes, and the machine is told nothing: its host was stopped, or has input to hand in first.
    pub(crate) fn sleeps(&mut self, span: Duration) {
        self.now = self.now + span;
    }

    /// Time passes while a peer heartbeats every second, so that it counts as alive. Answers to it are
    /// left out of the transcript.
    pub(crate) fn passes_with_beats_of(&mut self, peer: M::Peer, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            let step = until.saturating_since(self.now).min(1.s());
            self.passes(step);
            let before = self.outputs.len();
            self.hears(peer, heartbeat(7));
            let answer = Output::Answer { to: peer, ts_ms: 7 };
            if self.outputs.get(before) == Some(&answer) {
                let _ = self.outputs.remove(before);
            }
        }
    }

    /// Time passes while bytes of a peer drip in, none of which completes a message.
    pub(crate) fn passes_with_drips_of(&mut self, peer: M::Peer, span: Duration) {
        let until = self.now + span;
        while self.now < until {
            let step = until.saturating_since(self.now).min(1.s());
            self.passes(step);
            self.hears_a_byte(peer);
        }
    }

    /// All that was asked for since the last look.
    pub(crate) fn take(&mut self) -> Vec<Out<M>> {
        std::mem::take(&mut self.outputs)
    }

    /// Exactly this was asked for since the last look, in this order.
    #[track_caller]
    pub(crate) fn expect(&mut self, expected: impl IntoIterator<Item = Out<M>>) {
        let expected: Vec<_> = expected.into_iter().collect();
        let outputs = self.take();
        assert_eq!(
            outputs,
            expected,
            "\n   asked for: {outputs:#?}\n   expected: {expected:#?}\n   while {}",
            self.machine.state_name()
        );
    }

    /// Nothing was asked for since the last look.
    #[track_caller]
    pub(crate) fn quiet(&mut self) {
        self.expect([]);
    }

    /// This was asked for since the last look, among other things.
    #[track_caller]
    pub(crate) fn expect_among(&mut self, expected: Out<M>) {
        let outputs = self.take();
        assert!(
            outputs.contains(&expected),
            "{expected:?} is not among {outputs:#?} while {}",
            self.machine.state_name()
        );
    }

    /// This was not asked for since the last look; whatever else was is let pass.
    #[track_caller]
    pub(crate) fn expect_without(&mut self, unwanted: impl Fn(&Out<M>) -> bool) {
        let outputs = self.take();
        let found = outputs.iter().find(|output| unwanted(output));
        assert_eq!(found, None, "while {}", self.machine.state_name());
    }

    /// When its own heartbeats to `peer` went out since this was last asked.
    pub(crate) fn beats_to(&mut self, peer: M::Peer) -> Vec<Duration> {
        let beats = std::mem::take(&mut self.beats);
        let to_peer = beats.into_iter().filter(|&(_, to)| to == peer);
        to_peer.map(|(at, _)| at).collect()
    }
}

// Messages of the handoff `ID`.

pub(crate) fn hello_of(role: Side, pid: u32, capabilities: Capabilities) -> Message {
    Message::Hello { role, pid, build_id: Vec::new(), proto_min: 1, proto_max: 1, capabilities }
}

pub(crate) fn ack() -> Message {
    ack_of(ID)
}

pub(crate) fn ack_of(handoff_id: HandoffId) -> Message {
    Message::HelloAck { proto_version_chosen: 1, handoff_id }
}

pub(crate) fn prepare(deadline: Duration, grace: Duration) -> Message {
    prepare_of(ID, deadline, grace)
}

pub(crate) fn prepare_of(handoff_id: HandoffId, deadline: Duration, grace: Duration) -> Message {
    Message::PrepareHandoff {
        handoff_id,
        successor_pid: N_PID,
        deadline_ms: deadline.as_millis() as u64,
        drain_grace_ms: grace.as_millis() as u64,
    }
}

pub(crate) fn drained() -> Message {
    Message::Drained { open_conns_remaining: 3, accept_closed: true }
}

pub(crate) fn seal_request() -> Message {
    Message::SealRequest { handoff_id: ID }
}

pub(crate) fn seal_progress(shards_sealed: u32) -> Message {
    Message::SealProgress { shards_sealed, shards_total: 2, last_revision: 9 }
}

pub(crate) fn seal_complete(revisions: &[u64]) -> Message {
    Message::SealComplete {
        handoff_id: ID,
        last_revision_per_shard: revisions.to_vec(),
        data_dir_fingerprint: [9; 32],
    }
}

pub(crate) fn seal_failed() -> Message {
    Message::SealFailed {
        handoff_id: ID,
        error: "disk full".into(),
        partial_state: "1 of 2".into(),
    }
}

pub(crate) fn begin() -> Message {
    Message::Begin { handoff_id: ID }
}

pub(crate) fn ready(healthz_ok: bool, revisions: &[u64]) -> Message {
    Message::Ready {
        handoff_id: ID,
        listening_on: vec!["[::1]:80".into()],
        healthz_ok,
        advertised_revision_per_shard: revisions.to_vec(),
    }
}

pub(crate) fn commit() -> Message {
    Message::Commit { handoff_id: ID }
}

pub(crate) fn abort() -> Message {
    Message::Abort { handoff_id: ID, reason: "no".into() }
}

pub(crate) fn resume() -> Message {
    Message::ResumeAfterAbort { handoff_id: ID }
}

pub(crate) fn heartbeat(ts_ms: u64) -> Message {
    Message::Heartbeat { ts_ms }
}

/// One of each of the 14 messages, those with an id carrying `handoff_id`.
pub(crate) fn all_messages(handoff_id: HandoffId) -> Vec<Message> {
    vec![
        hello_of(Side::Incumbent, O_PID, Capabilities::OURS),
        ack_of(handoff_id),
        prepare_of(handoff_id, 10.s(), 5.s()),
        drained(),
        Message::SealRequest { handoff_id },
        seal_progress(1),
        Message::SealComplete {
            handoff_id,
            last_revision_per_shard: vec![1],
            data_dir_fingerprint: [0; 32],
        },
        Message::SealFailed { handoff_id, error: String::new(), partial_state: String::new() },
        Message::Begin { handoff_id },
        Message::Ready {
            handoff_id,
            listening_on: Vec::new(),
            healthz_ok: true,
            advertised_revision_per_shard: vec![1],
        },
        Message::Commit { handoff_id },
        Message::Abort { handoff_id, reason: String::new() },
        Message::ResumeAfterAbort { handoff_id },
        heartbeat(5),
    ]
}

// Outputs.

pub(crate) fn send<P, E, V>(to: P, message: Message) -> Output<P, E, V> {
    Output::Send { to, message }
}

pub(crate) fn answer<P, E, V>(to: P, ts_ms: u64) -> Output<P, E, V> {
    Output::Answer { to, ts_ms }
}

pub(crate) fn close<P, E, V>(peer: P) -> Output<P, E, V> {
    Output::Close { peer }
}

pub(crate) fn event<P, E, V>(event: V) -> Output<P, E, V> {
    Output::Event(event)
}

pub(crate) fn cred(pid: u32) -> Credentials {
    Credentials { pid, uid: UID, descends: false }
}

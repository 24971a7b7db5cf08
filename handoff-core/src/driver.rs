//! A machine with its connections: what an adapter drives.
//!
//! The adapter reads bytes and hands them in, writes the bytes that are [unsent](Driver::unsent),
//! sleeps until the [deadline](Driver::deadline), carries out [`Action`]s, and reports their
//! completions. It decodes nothing and decides nothing.

use alloc::vec::Vec;
use core::time::Duration;

use crate::wire::{Decoder, encode};
use crate::{
    Credentials, Deadline, Hangup, Input, Instant, Machine, Message, Output, PROTO_MAX,
    ProtoVersion, Violation,
};

/// What is left for the adapter to do, in the order given.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[must_use = "an action that is not carried out is an effect that never completes"]
pub enum Action<P, E, V> {
    /// Carry out an effect and report its completion with [`Driver::handle`].
    Do(E),
    /// Tell the hook that runs now that its handoff has ended.
    Cancel,
    /// Offer these last bytes to the peer's socket, without waiting, and close it.
    Close {
        /// Whose connection.
        peer: P,
        /// What was still unsent.
        unsent: Vec<u8>,
    },
    /// Something to tell.
    Event(V),
}

/// The actions of a machine `M`.
pub type ActionOf<M> = Action<<M as Machine>::Peer, <M as Machine>::Effect, <M as Machine>::Event>;

/// The inputs of a machine `M`.
pub type InputOf<M> = Input<<M as Machine>::Peer, <M as Machine>::Outcome, <M as Machine>::Command>;

/// How many bytes may be unsent before reports of a seal's progress are dropped.
const REPORTS: usize = 512;

/// One connection: a decoder and a send buffer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Channel<P> {
    peer: P,
    decoder: Decoder,
    version: Option<ProtoVersion>,
    unsent: Vec<u8>,
    /// How much of `unsent` the socket has taken.
    taken: usize,
    /// The newest answer to a Heartbeat that waits for earlier bytes to leave (T4).
    answer: Option<u64>,
}

impl<P> Channel<P> {
    fn push(&mut self, message: &Message) {
        // W5: Hello's frame carries the sender's highest version, every later one the chosen one.
        let version = match message {
            Message::Hello { proto_max, .. } => *proto_max,
            Message::HelloAck { proto_version_chosen, .. } => {
                self.settle(*proto_version_chosen);
                *proto_version_chosen
            }
            _ => self.version.unwrap_or(PROTO_MAX),
        };
        // Machines bound what they say, so that every message of theirs fits a frame.
        let fits = encode(message, version, &mut self.unsent);
        debug_assert!(fits.is_ok(), "{fits:?}");
    }

    fn settle(&mut self, chosen: ProtoVersion) {
        self.version = Some(chosen);
        self.decoder.handshake_done(chosen);
    }

    fn pending(&self) -> &[u8] {
        &self.unsent[self.taken..]
    }
}

/// A machine with one decoder and one send buffer per open connection.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Driver<M: Machine> {
    machine: M,
    channels: Vec<Channel<M::Peer>>,
    /// Room for what an input brings; empty between inputs.
    outputs: Vec<Output<M::Peer, M::Effect, M::Event>>,
}

impl<M: Machine> Driver<M> {
    /// A driver without connections.
    #[must_use]
    pub const fn new(machine: M) -> Self {
        Self { machine, channels: Vec::new(), outputs: Vec::new() }
    }

    /// The machine, to look at.
    #[must_use]
    pub const fn machine(&self) -> &M {
        &self.machine
    }

    /// When [`Driver::tick`] is due, and why. Bytes that have arrived are to be handed in first (T5).
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline<M::Timer>> {
        self.machine.deadline()
    }

    /// Tells all deadlines from an origin that is `by` later.
    pub fn rebase(&mut self, by: Duration) {
        self.machine.rebase(by);
    }

    /// The deadline has come.
    pub fn tick(&mut self, now: Instant, actions: &mut Vec<ActionOf<M>>) {
        self.handle(now, Input::Tick, actions);
    }

    /// A connection is open. Its peer's name is free: never used, [closed](Driver::closed), or its
    /// [`Action::Close`] was carried out.
    pub fn opened(
        &mut self,
        now: Instant,
        peer: M::Peer,
        cred: Credentials,
        actions: &mut Vec<ActionOf<M>>,
    ) {
        self.channels.retain(|channel| channel.peer != peer);
        self.channels.push(Channel {
            peer,
            decoder: Decoder::new(),
            version: None,
            unsent: Vec::new(),
            taken: 0,
            answer: None,
        });
        self.handle(now, Input::Opened { peer, cred }, actions);
    }

    /// Bytes arrived. Bytes of a connection that is closed are dropped.
    pub fn received(
        &mut self,
        now: Instant,
        peer: M::Peer,
        mut bytes: &[u8],
        actions: &mut Vec<ActionOf<M>>,
    ) {
        let mut whole = false;
        while let Some(channel) = self.channel(peer) {
            match channel.decoder.decode(&mut bytes) {
                Ok(Some(frame)) => {
                    whole = true;
                    if let Message::HelloAck { proto_version_chosen, .. } = frame.message {
                        channel.settle(proto_version_chosen);
                    }
                    self.handle(
                        now,
                        Input::Message { from: peer, message: frame.message },
                        actions,
                    );
                }
                Ok(None) => {
                    if !whole {
                        self.handle(now, Input::Heard { from: peer }, actions);
                    }
                    return;
                }
                Err(error) => {
                    self.hang_up(peer, actions);
                    let how = Hangup::Violation(Violation::Wire(error));
                    return self.handle(now, Input::Closed { from: peer, how }, actions);
                }
            }
        }
    }

    /// A connection ended, after everything that arrived on it was handed in (C3). The adapter has
    /// let go of it; no [`Action::Close`] follows. A write that fails is no such end: drop what is
    /// unsent with [`Driver::sent`] and read on.
    pub fn closed(&mut self, now: Instant, peer: M::Peer, actions: &mut Vec<ActionOf<M>>) {
        if self.channel(peer).is_some() {
            self.channels.retain(|channel| channel.peer != peer);
            self.handle(now, Input::Closed { from: peer, how: Hangup::Eof }, actions);
        }
    }

    /// The bytes that wait to be written to a peer.
    #[must_use]
    pub fn unsent(&self, peer: M::Peer) -> &[u8] {
        let found = self.channels.iter().find(|channel| channel.peer == peer);
        found.map_or(&[], Channel::pending)
    }

    /// The first `count` of the unsent bytes were written.
    pub fn sent(&mut self, peer: M::Peer, count: usize) {
        let Some(channel) = self.channel(peer) else {
            return;
        };
        channel.taken = channel.taken.saturating_add(count).min(channel.unsent.len());
        // What has left is forgotten in time, also where some is always left.
        if channel.taken >= channel.pending().len() {
            channel.unsent.drain(..channel.taken);
            channel.taken = 0;
        }
        if channel.unsent.is_empty()
            && let Some(ts_ms) = channel.answer.take()
        {
            channel.push(&Message::Heartbeat { ts_ms });
        }
    }

    /// Hands an input to the machine: a completion, a command. Appends what is left to do.
    pub fn handle(&mut self, now: Instant, input: InputOf<M>, actions: &mut Vec<ActionOf<M>>) {
        let mut outputs = core::mem::take(&mut self.outputs);
        self.machine.handle(now, input, &mut outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Send { to, message } => {
                    // C4: a report of progress that nobody reads is worth no memory.
                    let report = matches!(message, Message::SealProgress { .. });
                    if let Some(channel) = self.channel(to)
                        && !(report && channel.pending().len() > REPORTS)
                    {
                        channel.push(&message);
                    }
                }
                Output::Beat { to, ts_ms } => {
                    if let Some(channel) = self.channel(to)
                        && channel.unsent.is_empty()
                    {
                        channel.push(&Message::Heartbeat { ts_ms });
                    }
                }
                Output::Answer { to, ts_ms } => {
                    if let Some(channel) = self.channel(to) {
                        if channel.unsent.is_empty() {
                            channel.push(&Message::Heartbeat { ts_ms });
                        } else {
                            channel.answer = Some(ts_ms);
                        }
                    }
                }
                Output::Do(effect) => actions.push(Action::Do(effect)),
                Output::Cancel => actions.push(Action::Cancel),
                Output::Close { peer } => self.hang_up(peer, actions),
                Output::Event(event) => actions.push(Action::Event(event)),
            }
        }
        self.outputs = outputs;
    }

    fn channel(&mut self, peer: M::Peer) -> Option<&mut Channel<M::Peer>> {
        self.channels.iter_mut().find(|channel| channel.peer == peer)
    }

    fn hang_up(&mut self, peer: M::Peer, actions: &mut Vec<ActionOf<M>>) {
        if let Some(place) = self.channels.iter().position(|channel| channel.peer == peer) {
            let mut channel = self.channels.remove(place);
            channel.unsent.drain(..channel.taken);
            if let Some(ts_ms) = channel.answer.take() {
                channel.push(&Message::Heartbeat { ts_ms });
            }
            actions.push(Action::Close { peer, unsent: channel.unsent });
        }
    }
}

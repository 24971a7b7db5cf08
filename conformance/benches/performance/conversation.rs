//! HelloAck to Commit with the daemons of each adapter: a script speaks for the supervisor, over plain
//! blocking sockets, so that what is left is what the daemons take.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use handoff_core::wire::{Decoder, encode};
use handoff_core::{HandoffId, Message};
use handoff_unix::spawn::{Child, SpawnRole, spawn};

use crate::floor::Floor;
use crate::measure::{Rounds, median, nanos};
use crate::stage::{Kind, LISTENER, Nest, PATIENCE, Place, answers};
use crate::table::{Row, Table, Unit};

/// A control connection, as a script has it.
struct Line {
    stream: UnixStream,
    decoder: Decoder,
    said: Vec<u8>,
}

impl Line {
    fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(false).expect("a socket's mode");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket's timeout");
        Self { stream, decoder: Decoder::new(), said: Vec::new() }
    }

    /// The next message but heartbeats.
    fn hear(&mut self) -> Message {
        loop {
            let mut bytes = &self.said[..];
            let frame = self.decoder.decode(&mut bytes).expect("a frame");
            let rest = bytes.len();
            self.said.drain(..self.said.len() - rest);
            match frame.map(|frame| frame.message) {
                Some(Message::Heartbeat { .. }) => {}
                Some(message) => return message,
                None => {
                    let mut room = [0; 4096];
                    let count = self.stream.read(&mut room).expect("the daemon speaks");
                    assert!(count > 0, "the daemon hangs up");
                    self.said.extend_from_slice(&room[..count]);
                }
            }
        }
    }

    fn say(&mut self, messages: &[&Message]) {
        assert!(self.try_say(messages), "the daemon reads");
    }

    fn try_say(&mut self, messages: &[&Message]) -> bool {
        let mut frames = Vec::new();
        for message in messages {
            encode(message, 1, &mut frames).expect("it fits");
            if matches!(message, Message::HelloAck { .. }) {
                self.decoder.handshake_done(1);
            }
        }
        self.stream.write_all(&frames).is_ok()
    }
}

/// A daemon that is swapped by the script.
struct Scripted {
    nest: Nest,
    child: Child,
}

impl Scripted {
    fn start(kind: Kind) -> Self {
        let nest = Nest::new(kind, Place::Memory);
        let child = Self::spawn(&nest, SpawnRole::Cold);
        answers(&nest, child.pid);
        Self { nest, child }
    }

    fn spawn(nest: &Nest, role: SpawnRole) -> Child {
        let listeners = [(LISTENER.to_string(), nest.listener.as_fd())];
        spawn(&nest.launch(), &listeners, role).expect("a daemon")
    }

    /// How long it takes from HelloAck to Commit.
    fn converse(&mut self) -> Duration {
        let hello_budget = PATIENCE;
        let mut new = Self::spawn(&self.nest, SpawnRole::Successor { hello_budget });
        let mut n = Line::new(new.control.take().expect("a control socket"));
        let hello = n.hear();
        assert!(matches!(hello, Message::Hello { .. }), "{hello:?}");
        let mut o =
            Line::new(self.nest.control().connect(PATIENCE).expect("the incumbent listens"));
        let hello = o.hear();
        assert!(matches!(hello, Message::Hello { .. }), "{hello:?}");
        let handoff_id = HandoffId::new();
        let [ack, prepare, seal, begin, commit] = script(handoff_id, new.pid);

        let start = Instant::now();
        n.say(&[&ack]);
        o.say(&[&ack, &prepare]);
        let drained = o.hear();
        o.say(&[&seal]);
        let sealed = o.hear();
        n.say(&[&begin]);
        let ready = n.hear();
        // Not everybody waits for it: the other implementation's successor hangs up when it is ready.
        n.try_say(&[&commit]);
        o.try_say(&[&commit]);
        let took = start.elapsed();

        assert!(matches!(drained, Message::Drained { .. }), "{drained:?}");
        assert!(matches!(sealed, Message::SealComplete { .. }), "{sealed:?}");
        assert!(matches!(ready, Message::Ready { .. }), "{ready:?}");
        let old = std::mem::replace(&mut self.child, new);
        end(&old);
        drop((n, o));
        answers(&self.nest, self.child.pid);
        took
    }
}

fn script(handoff_id: HandoffId, successor_pid: u32) -> [Message; 5] {
    [
        Message::HelloAck { proto_version_chosen: 1, handoff_id },
        Message::PrepareHandoff {
            handoff_id,
            successor_pid,
            deadline_ms: 60_000,
            drain_grace_ms: 30_000,
        },
        Message::SealRequest { handoff_id },
        Message::Begin { handoff_id },
        Message::Commit { handoff_id },
    ]
}

fn end(child: &Child) {
    if !child.pidfd.wait(Some(PATIENCE)).unwrap_or(true) {
        let _ = child.group.signal(handoff_unix::process::Signal::KILL);
        let _ = child.pidfd.wait(Some(PATIENCE));
    }
    child.group.reap();
}

impl Drop for Scripted {
    fn drop(&mut self) {
        let _ = self.child.group.signal(handoff_unix::process::Signal::KILL);
        end(&self.child);
    }
}

pub fn conversation(table: &mut Table) {
    table.section("HelloAck to Commit, script and daemons; the floor echoes the same frames");
    let floor = Floor::new();
    let (mut n, mut o) = (floor.echo(), floor.echo());
    let frames = script(HandoffId::new(), 1).map(|message| {
        let mut frame = Vec::new();
        encode(&message, 1, &mut frame).expect("it fits");
        frame
    });
    let [ack, prepare, seal, begin, commit] = &frames;
    let both = [&ack[..], prepare].concat();
    let mut ping_pong = || {
        let start = Instant::now();
        n.tell(ack);
        o.tell(&both);
        o.hear(both.len());
        o.ask(seal);
        n.hear(ack.len());
        n.ask(begin);
        n.tell(commit);
        o.tell(commit);
        let took = start.elapsed();
        n.hear(commit.len());
        o.hear(commit.len());
        took
    };
    let mut daemons = Kind::ALL.map(Scripted::start);
    let mut times = [const { Vec::new() }; 5];
    for round in Rounds::new(41, Duration::from_secs(10)) {
        for turn in 0..5 {
            let it = (round + turn) % 5;
            let took = if it == 4 { ping_pong() } else { daemons[it].converse() };
            times[it].push(nanos(took));
        }
    }
    let [ours @ .., theirs, floor] = times.map(median);
    for (kind, ours) in Kind::OURS.into_iter().zip(ours) {
        let row = Row::new("conversation", kind.name(), Unit::Nanoseconds, ours);
        table.push(row.peer(theirs).floor(floor).reach(1.5));
    }
}

//! A control connection at the level of frames, which can say what no machine of ours would.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use handoff_core::wire::{Decoder, Frame, PROTO_MAX, encode};
use handoff_core::{Credentials, HandoffId, Message, ProtoVersion, Side, short_name};
use handoff_unix::stream::ControlStream;
use rustix::event::{PollFd, PollFlags};

use super::report::{Log, Stop, fail, seconds};

/// How long a peer that never stops talking is listened to beyond what it is allowed.
const FLOOD: Duration = Duration::from_secs(2);

/// How much of a message is shown.
const SHOWN: usize = 160;

/// How much of a write is split into single bytes, where it is: longer than any frame of the
/// conversation, shorter than what is sent to be too much.
const SPLIT: usize = 256;

/// What comes next on a connection.
#[derive(Debug)]
pub(super) enum Next {
    Frame(Frame),
    /// The peer has closed it.
    Closed,
    /// Nothing in the time allowed.
    Silent,
}

/// How bytes reach the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// As they are.
    Direct,
    /// Through a [puppet](super::puppet), which is told how many they are.
    Puppet,
}

/// One connection, and what is said on it.
pub(super) struct Conn {
    name: String,
    stream: ControlStream,
    via: Via,
    decoder: Decoder,
    input: Vec<u8>,
    cred: Option<Credentials>,
    closed: bool,
    log: Log,
}

impl Conn {
    /// To a listening socket, or from one.
    pub(super) fn connected(name: &str, stream: UnixStream, log: &Log) -> io::Result<Self> {
        Ok(Self::new(name, ControlStream::connected(stream)?, Via::Direct, log))
    }

    /// To a process that was started with the other end.
    pub(super) fn to_child(
        name: &str,
        stream: UnixStream,
        pid: u32,
        log: &Log,
    ) -> io::Result<Self> {
        Ok(Self::new(name, ControlStream::to_child(stream, pid)?, Via::Direct, log))
    }

    /// To a process that passes on what is said.
    pub(super) fn to_puppet(name: &str, stream: UnixStream, log: &Log) -> io::Result<Self> {
        Ok(Self::new(name, ControlStream::connected(stream)?, Via::Puppet, log))
    }

    fn new(name: &str, mut stream: ControlStream, via: Via, log: &Log) -> Self {
        let cred = stream.introduction();
        Self {
            name: name.to_string(),
            stream,
            via,
            decoder: Decoder::new(),
            input: Vec::new(),
            cred,
            closed: false,
            log: log.clone(),
        }
    }

    /// Who is at the other end, as far as the kernel has said.
    pub(super) fn cred(&self) -> Option<Credentials> {
        self.cred
    }

    /// Frames have this version from now on.
    pub(super) fn handshake_done(&mut self, chosen: ProtoVersion) {
        self.decoder.handshake_done(chosen);
    }

    fn note(&self, what: impl std::fmt::Display) {
        self.log.note(format_args!("{} {what}", self.name));
    }

    /// The next frame, within this time.
    pub(super) fn next(&mut self, limit: Duration) -> Result<Next, Stop> {
        let end = Instant::now() + limit;
        loop {
            let mut rest = self.input.as_slice();
            let decoded = self.decoder.decode(&mut rest);
            let left = rest.len();
            self.input.drain(..self.input.len() - left);
            match decoded {
                Ok(Some(frame)) => {
                    self.note(format_args!("<- {}", describe(&frame.message)));
                    return Ok(Next::Frame(frame));
                }
                Ok(None) => {}
                Err(error) => {
                    self.note(format_args!("<- bytes that are no frame: {error}"));
                    return fail(format!("bytes that are no frame of the protocol (W2): {error}"));
                }
            }
            if self.closed {
                return Ok(Next::Closed);
            }
            let left = end.saturating_duration_since(Instant::now());
            if !handoff_unix::poll::readable(&self.stream, Some(left))? {
                return Ok(Next::Silent);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => self.end(),
                Ok(count) => {
                    self.cred = self.stream.introduction().or(self.cred);
                    self.input.extend_from_slice(&buffer[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.end(),
            }
        }
    }

    fn end(&mut self) {
        self.closed = true;
        self.note("<- closed");
    }

    /// The first message that `wanted` takes. Others are passed over, but it must not be closed.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Message) -> Option<T>,
    ) -> Result<T, Stop> {
        let start = Instant::now();
        loop {
            match self.next(limit.saturating_sub(start.elapsed()))? {
                Next::Frame(frame) => {
                    if let Some(found) = wanted(&frame.message) {
                        return Ok(found);
                    }
                    if start.elapsed() > limit + FLOOD {
                        return fail(format!("frame upon frame, but no {what}"));
                    }
                }
                Next::Closed => return fail(format!("the connection was closed, without {what}")),
                Next::Silent => return fail(format!("no {what} within {}", seconds(limit))),
            }
        }
    }

    /// Waits until it is closed; how long that took. `forbidden` names what must not be said before.
    pub(super) fn closes(
        &mut self,
        limit: Duration,
        mut forbidden: impl FnMut(&Message) -> bool,
    ) -> Result<Duration, Stop> {
        let start = Instant::now();
        loop {
            match self.next(limit.saturating_sub(start.elapsed()))? {
                Next::Frame(frame) if forbidden(&frame.message) => {
                    return fail(format!("it said {}", describe(&frame.message)));
                }
                Next::Frame(_) if start.elapsed() > limit + FLOOD => {
                    return fail("frame upon frame, and the connection is not closed");
                }
                Next::Frame(_) => {}
                Next::Closed => return Ok(start.elapsed()),
                Next::Silent => {
                    return fail(format!("the connection is open after {}", seconds(limit)));
                }
            }
        }
    }

    /// Sends a message in a frame of our version.
    pub(super) fn send(&mut self, message: &Message) {
        self.send_as(message, PROTO_MAX);
    }

    /// Sends a message in a frame of any version.
    pub(super) fn send_as(&mut self, message: &Message, version: ProtoVersion) {
        let version_text =
            if version == PROTO_MAX { String::new() } else { format!(", frame version {version}") };
        self.note(format_args!("-> {}{version_text}", describe(message)));
        self.write(&frame(message, version));
    }

    /// Sends bytes.
    pub(super) fn send_bytes(&mut self, bytes: &[u8], what: &str) {
        self.note(format_args!("-> {what}"));
        self.write(bytes);
    }

    /// Writes all of it without a word; whether the peer takes it still. What it says tells why not.
    pub(super) fn write(&mut self, bytes: &[u8]) -> bool {
        let alone = if self.log.split() { bytes.len().min(SPLIT) } else { 0 };
        let (alone, rest) = bytes.split_at(alone);
        alone.chunks(1).chain((!rest.is_empty()).then_some(rest)).all(|piece| self.put(piece))
    }

    /// Writes these bytes as one piece.
    fn put(&mut self, bytes: &[u8]) -> bool {
        let framed;
        let mut left = if self.via == Via::Puppet {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            framed = [length.to_le_bytes().as_slice(), bytes].concat();
            &framed[..]
        } else {
            bytes
        };
        let end = Instant::now() + Duration::from_secs(2);
        while !left.is_empty() {
            match self.stream.write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let time = end.saturating_duration_since(Instant::now());
                    let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
                    if !handoff_unix::poll::wait(&mut fds, Some(time)).is_ok_and(|ready| ready > 0)
                    {
                        self.note("-- it does not read");
                        return false;
                    }
                }
                Err(error) => {
                    self.note(format_args!("-- it does not take that: {error}"));
                    return false;
                }
            }
        }
        true
    }

    /// Closes it.
    pub(super) fn close(self) {
        self.note("-> close");
    }
}

/// A Hello, checked.
#[derive(Clone, Debug)]
pub(super) struct Greeting {
    pub(super) pid: u32,
    pub(super) build_id: Vec<u8>,
    pub(super) proto: (ProtoVersion, ProtoVersion),
    pub(super) frame_version: ProtoVersion,
    pub(super) capabilities: handoff_core::Capabilities,
}

impl Conn {
    /// Waits for Hello, which has to come first (C1).
    pub(super) fn hello(&mut self, role: Side, limit: Duration) -> Result<Greeting, Stop> {
        match self.next(limit)? {
            Next::Frame(Frame {
                version,
                message:
                    Message::Hello { role: said, pid, build_id, proto_min, proto_max, capabilities },
            }) => {
                if said != role {
                    return fail(format!("its Hello says role {said:?}, not {role:?}"));
                }
                let proto = (proto_min, proto_max);
                Ok(Greeting { pid, build_id, proto, frame_version: version, capabilities })
            }
            Next::Frame(frame) => {
                fail(format!("it said {} before Hello", short_name(&frame.message)))
            }
            Next::Closed => fail("the connection was closed before Hello"),
            Next::Silent => fail(format!("no Hello within {}", seconds(limit))),
        }
    }

    /// Sends HelloAck with our version and this id.
    pub(super) fn hello_ack(&mut self, handoff_id: HandoffId) {
        self.send(&Message::HelloAck { proto_version_chosen: PROTO_MAX, handoff_id });
        self.handshake_done(PROTO_MAX);
    }

    /// Asks with a Heartbeat, and waits for the answer: one with the same time stamp from who has X2,
    /// any from others.
    pub(super) fn ask(&mut self, ts_ms: u64, exact: bool, limit: Duration) -> Result<(), Stop> {
        self.send(&Message::Heartbeat { ts_ms });
        self.wait("answer to a Heartbeat", limit, |message| match message {
            Message::Heartbeat { ts_ms: said } if *said == ts_ms || !exact => Some(()),
            _ => None,
        })
    }
}

/// The bytes of a frame. Messages that fit none are not sent here.
pub(super) fn frame(message: &Message, version: ProtoVersion) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = encode(message, version, &mut bytes);
    bytes
}

/// The bytes of a frame around this payload.
pub(super) fn raw(version: ProtoVersion, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + 2).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], &version.to_le_bytes(), payload].concat()
}

/// A message in a line.
pub(super) fn describe(message: &Message) -> String {
    // What a peer says may hold anything, and be long.
    let printable = |letter: char| if letter.is_control() { '?' } else { letter };
    full(message).chars().take(SHOWN).map(printable).collect()
}

fn full(message: &Message) -> String {
    let name = short_name(message);
    let id = |id: &HandoffId| id.to_string()[..8].to_string();
    match message {
        Message::Hello { role, pid, proto_min, proto_max, capabilities, .. } => format!(
            "Hello {role:?} pid {pid}, versions {proto_min} to {proto_max}, capabilities {:#x}",
            capabilities.reserved
        ),
        Message::HelloAck { proto_version_chosen, handoff_id } => {
            format!("HelloAck version {proto_version_chosen}, id {}", id(handoff_id))
        }
        Message::PrepareHandoff { handoff_id, deadline_ms, drain_grace_ms, .. } => format!(
            "PrepareHandoff id {}, deadline {deadline_ms} ms, grace {drain_grace_ms} ms",
            id(handoff_id)
        ),
        Message::Drained { open_conns_remaining, accept_closed } => {
            format!("Drained, {open_conns_remaining} open, accept_closed {accept_closed}")
        }
        Message::SealFailed { handoff_id, error, .. } => {
            format!("SealFailed id {}: {error}", id(handoff_id))
        }
        Message::SealComplete { handoff_id, last_revision_per_shard, .. } => {
            format!("SealComplete id {}, revisions {last_revision_per_shard:?}", id(handoff_id))
        }
        Message::Ready { handoff_id, healthz_ok, advertised_revision_per_shard, .. } => format!(
            "Ready id {}, healthz_ok {healthz_ok}, revisions {advertised_revision_per_shard:?}",
            id(handoff_id)
        ),
        Message::Abort { handoff_id, reason } => format!("Abort id {}: {reason}", id(handoff_id)),
        Message::Heartbeat { ts_ms } => format!("Heartbeat {ts_ms}"),
        other => match other.handoff_id() {
            Some(handoff_id) => format!("{name} id {}", id(&handoff_id)),
            None => name.to_string(),
        },
    }
}

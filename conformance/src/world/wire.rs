//! Control connections.

use std::collections::VecDeque;

use handoff_core::daemon::{ConnId, Probed};
use handoff_core::supervisor::Peer;
use handoff_core::wire::{Decoder, encode};
use handoff_core::{
    Capabilities, Hangup, Input, Machine, Message, Output, PROTO_MAX, Side, daemon,
};

use super::process::Worker;
use super::{End, Listener, NOW, Pid, SUPERVISOR, Sabotage, Status, Violation, World, cred};

/// What the question of a supervisor is stamped with that wants to know whether a handoff is undone.
const ASK_RESUMED: u64 = (1 << 63) | 2;

/// One control connection.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Wire {
    /// What the supervisor calls it.
    pub(super) peer: Peer,
    /// Who is at the other end.
    pub(super) daemon: Pid,
    /// What the daemon calls it, once it was accepted.
    pub(super) conn: Option<ConnId>,
    pub(super) supervisor_open: bool,
    pub(super) daemon_open: bool,
    /// Each end sees what has arrived, then the end of it.
    pub(super) broken: bool,
    pub(super) to_supervisor: VecDeque<Message>,
    pub(super) to_daemon: VecDeque<Message>,
    /// How the bytes of these are read, where they travel as such.
    pub(super) supervisor_reads: Reader,
    pub(super) daemon_reads: Reader,
}

/// One end's decoder.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Reader {
    decoder: Decoder,
    /// How many bytes of the first message in the queue it was given.
    given: usize,
}

/// How a message is queued.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// Always.
    Send,
    /// Not where something is before it (T4).
    Beat,
    /// Not where the same is the last already (T4).
    Answer,
}

impl Way {
    fn push(self, message: Message, queue: &mut VecDeque<Message>, sabotage: Option<Sabotage>) {
        let push = match self {
            Self::Send => true,
            Self::Beat => queue.is_empty() || sabotage == Some(Sabotage::BeatsRegardless),
            Self::Answer => queue.back() != Some(&message),
        };
        if push {
            queue.push_back(message);
        }
    }
}

impl Wire {
    /// One end is closed: what it has said still arrives, what it was told does not.
    pub(super) fn close(&mut self, end: End) {
        match end {
            End::Supervisor => {
                self.supervisor_open = false;
                self.to_supervisor.clear();
                self.supervisor_reads = Reader::default();
            }
            End::Daemon => {
                self.daemon_open = false;
                self.to_daemon.clear();
                self.daemon_reads = Reader::default();
            }
        }
    }

    /// The connection breaks: what is inside a frame stays there.
    pub(super) fn break_off(&mut self) {
        self.broken = true;
        if self.supervisor_reads.given > 0 {
            self.to_supervisor.clear();
        }
        if self.daemon_reads.given > 0 {
            self.to_daemon.clear();
        }
    }

    /// Who does not read what is sent to it, if more heartbeats wait than may.
    pub(super) fn flooded(&self, most: usize) -> Option<Pid> {
        let over = |queue: &VecDeque<Message>| {
            let beats = queue.iter().filter(|it| matches!(it, Message::Heartbeat { .. }));
            beats.count() > most
        };
        if over(&self.to_supervisor) {
            Some(SUPERVISOR)
        } else {
            over(&self.to_daemon).then_some(self.daemon)
        }
    }

    /// Whether the supervisor and an incumbent speak here, and neither has anything unread.
    pub(super) fn asks_incumbent(&self) -> bool {
        let stands =
            self.conn.is_some() && self.supervisor_open && self.daemon_open && !self.broken;
        let read = self.to_supervisor.is_empty() && self.to_daemon.is_empty();
        self.peer == Peer::Incumbent && stands && read
    }

    /// Whether bytes wait to be read.
    pub(super) fn has_bytes(&self, to: End) -> bool {
        match to {
            End::Supervisor => !self.to_supervisor.is_empty(),
            End::Daemon => self.conn.is_some() && !self.to_daemon.is_empty(),
        }
    }

    fn is_open(&self, to: End) -> bool {
        match to {
            End::Supervisor => self.supervisor_open,
            End::Daemon => self.daemon_open,
        }
    }

    fn reader(&mut self, to: End) -> (&mut Reader, &mut VecDeque<Message>) {
        match to {
            End::Supervisor => (&mut self.supervisor_reads, &mut self.to_supervisor),
            End::Daemon => (&mut self.daemon_reads, &mut self.to_daemon),
        }
    }

    /// Takes the first `count` bytes that wait; zero: the rest of the first message.
    fn take(&mut self, to: End, count: usize) -> Vec<u8> {
        let (reader, queue) = self.reader(to);
        let mut taken = Vec::new();
        let mut frame = Vec::new();
        while let Some(message) = queue.front() {
            frame.clear();
            // Machines bound what they say.
            let fits = encode(message, PROTO_MAX, &mut frame);
            debug_assert!(fits.is_ok());
            let rest = &frame[reader.given..];
            let wanted = if count == 0 { rest.len() } else { count - taken.len() };
            if wanted < rest.len() {
                taken.extend_from_slice(&rest[..wanted]);
                reader.given += wanted;
                break;
            }
            taken.extend_from_slice(rest);
            queue.pop_front();
            reader.given = 0;
            if count == 0 || taken.len() == count {
                break;
            }
        }
        taken
    }
}

impl World {
    /// One end reads so many bytes, and is told what a driver tells it: the messages they complete, or
    /// else that it was heard (T2).
    pub(super) fn receive(&mut self, place: usize, to: End, count: usize, listen: Listener<'_>) {
        let Some(wire) = self.wires.get_mut(place) else {
            return;
        };
        let (pid, peer, conn) = (wire.daemon, wire.peer, wire.conn.unwrap_or(ConnId::SUPERVISOR));
        let bytes = wire.take(to, count);
        let mut rest = &bytes[..];
        let mut whole = false;
        while let Some(wire) = self.wires.get_mut(place).filter(|wire| wire.is_open(to)) {
            let decoder = &mut wire.reader(to).0.decoder;
            let message = match decoder.decode(&mut rest) {
                Ok(Some(frame)) => Some(frame.message),
                Ok(None) if whole => return,
                Ok(None) => None,
                Err(error) => {
                    let by = if to == End::Supervisor { SUPERVISOR } else { pid };
                    let of = handoff_core::Violation::Wire(error);
                    return self.broke(Violation::Accused { by, of });
                }
            };
            if let Some(Message::HelloAck { proto_version_chosen, .. }) = message {
                decoder.handshake_done(proto_version_chosen);
            }
            whole |= message.is_some();
            let done = message.is_none();
            match (to, message) {
                (End::Supervisor, Some(message)) => {
                    self.tell_supervisor(Input::Message { from: peer, message }, listen);
                }
                (End::Supervisor, None) => {
                    self.tell_supervisor(Input::Heard { from: peer }, listen);
                }
                (End::Daemon, Some(message)) => {
                    self.tell_daemon(pid, Input::Message { from: conn, message }, listen);
                }
                (End::Daemon, None) => {
                    self.tell_daemon(pid, Input::Heard { from: conn }, listen);
                }
            }
            if done {
                return;
            }
        }
    }

    pub(super) fn deliver(&mut self, place: usize, to: End, listen: Listener<'_>) {
        let bytes = self.rules.bytes;
        let Some(wire) = self.wires.get_mut(place) else {
            return;
        };
        if bytes && wire.has_bytes(to) {
            return self.receive(place, to, 0, listen);
        }
        let (pid, peer) = (wire.daemon, wire.peer);
        match to {
            End::Supervisor => {
                let input = match wire.to_supervisor.pop_front() {
                    Some(message) => Input::Message { from: peer, message },
                    None => {
                        wire.supervisor_open = false;
                        let how = Hangup::Eof;
                        Input::Closed { from: peer, how }
                    }
                };
                self.tell_supervisor(input, listen);
            }
            End::Daemon => {
                let input = match (wire.conn, wire.to_daemon.pop_front()) {
                    (None, unread) => {
                        // Nothing was sent before Hello, so nothing is lost here.
                        debug_assert!(unread.is_none());
                        let conn = self.free_conn(pid);
                        self.wires[place].conn = Some(conn);
                        Input::Opened { peer: conn, cred: cred(SUPERVISOR) }
                    }
                    (Some(from), Some(message)) => Input::Message { from, message },
                    (Some(from), None) => {
                        wire.daemon_open = false;
                        let how = Hangup::Eof;
                        Input::Closed { from, how }
                    }
                };
                self.tell_daemon(pid, input, listen);
            }
        }
    }

    pub(super) fn free_conn(&self, pid: Pid) -> ConnId {
        let taken = |conn: u32| {
            self.wires.iter().any(|wire| {
                wire.daemon == pid && wire.daemon_open && wire.conn == Some(ConnId(conn))
            }) || self.strangers.iter().any(|it| it.daemon == pid && it.conn == ConnId(conn))
        };
        ConnId((1..).find(|&conn| !taken(conn)).unwrap_or(u32::MAX))
    }

    /// Heartbeats arrive at once where nothing is before them: their order among other things tells
    /// nobody anything. Those that ask something (a time stamp of their own) are messages like others.
    pub(super) fn beat(&mut self, listen: Listener<'_>) {
        let beats = |queue: &VecDeque<Message>| {
            matches!(queue.front(), Some(Message::Heartbeat { ts_ms: 0 }))
        };
        loop {
            let place = self.wires.iter().enumerate().find_map(|(place, wire)| {
                if beats(&wire.to_supervisor) && self.deliverable(wire, End::Supervisor) {
                    Some((place, End::Supervisor))
                } else if beats(&wire.to_daemon) && self.deliverable(wire, End::Daemon) {
                    Some((place, End::Daemon))
                } else {
                    None
                }
            });
            let Some((place, to)) = place else { return };
            self.deliver(place, to, listen);
        }
    }

    pub(super) fn connect(&mut self, daemon: Pid, peer: Peer) {
        if let Some(boss) = &mut self.boss {
            boss.watch(daemon);
        }
        self.wires.push(Wire {
            peer,
            daemon,
            conn: None,
            supervisor_open: true,
            daemon_open: true,
            broken: false,
            to_supervisor: VecDeque::new(),
            to_daemon: VecDeque::new(),
            supervisor_reads: Reader::default(),
            daemon_reads: Reader::default(),
        });
    }

    /// One probe. What a process would say is asked of a copy of it: a probe leaves no trace (C6).
    pub(super) fn probe(&self, asker: Pid) -> Probed {
        match self.path {
            Some(pid) if pid == asker => Probed::Own,
            Some(pid) if self.says_hello(pid) => Probed::Answered { pid },
            Some(_) | None => Probed::Silent,
        }
    }

    pub(super) fn says_hello(&self, pid: Pid) -> bool {
        let Some(worker) = self.worker(pid).filter(|it| it.status == Status::Running) else {
            return false;
        };
        if worker.ended.is_some() || !worker.machine.answers() {
            return false;
        }
        if self.rules.sabotage == Some(Sabotage::AnswersUnsettled) {
            return true;
        }
        let mut machine = worker.machine.clone();
        let mut outputs = Vec::new();
        let opened = Input::Opened { peer: ConnId(u32::MAX), cred: cred(SUPERVISOR) };
        machine.handle(NOW, opened, &mut outputs);
        let hello = |output: &daemon::Output| matches!(output, Output::Send { message, .. } if matches!(message, Message::Hello { .. }));
        outputs.iter().any(hello)
    }

    pub(super) fn say(&mut self, to: Peer, message: Message, way: Way) {
        let sabotage = self.rules.sabotage;
        let open = |wire: &&mut Wire| wire.peer == to && wire.supervisor_open;
        if let Some(wire) = self.wires.iter_mut().find(open)
            && wire.daemon_open
            && !wire.broken
        {
            match (sabotage, &message) {
                (Some(Sabotage::ResumedWhenTold), Message::Heartbeat { ts_ms: ASK_RESUMED }) => {
                    return wire.to_supervisor.push_back(message);
                }
                (Some(Sabotage::ReadyWhenBegun), &Message::Begin { handoff_id }) => {
                    wire.to_supervisor.push_back(Message::Ready {
                        handoff_id,
                        listening_on: Vec::new(),
                        healthz_ok: true,
                        advertised_revision_per_shard: vec![1],
                    });
                }
                (_, &Message::HelloAck { proto_version_chosen, .. }) if self.rules.bytes => {
                    wire.supervisor_reads.decoder.handshake_done(proto_version_chosen);
                }
                _ => {}
            }
            way.push(message, &mut wire.to_daemon, sabotage);
        }
    }

    pub(super) fn wire_of(&mut self, pid: Pid, conn: ConnId) -> Option<&mut Wire> {
        self.wires
            .iter_mut()
            .find(|wire| wire.daemon == pid && wire.daemon_open && wire.conn == Some(conn))
    }

    /// Whether this daemon speaks on this connection as an incumbent of beyond-handoff does.
    pub(super) fn is_legacy(&self, pid: Pid, conn: Option<ConnId>) -> bool {
        self.rules.legacy && pid.is_multiple_of(2) && conn != Some(ConnId::SUPERVISOR)
    }

    /// A legacy incumbent neither accepts nor reads while a hook runs.
    pub(super) fn reads_nothing(&self, wire: &Wire, worker: &Worker) -> bool {
        self.is_legacy(wire.daemon, wire.conn) && worker.jobs.hook().is_some()
    }

    /// What a legacy incumbent says instead, if anything.
    fn legacy(&mut self, pid: Pid, mut message: Message, way: Way) -> Option<Message> {
        if let Message::Hello { role: Side::Incumbent, capabilities, .. } = &mut message {
            capabilities.reserved &= !Capabilities::STEADY_HEARTBEAT;
        }
        if matches!(way, Way::Beat) {
            let worker = self.worker_mut(pid)?;
            worker.jobs.hook()?;
            worker.skipped = !worker.skipped;
            return (!worker.skipped).then_some(message);
        }
        Some(message)
    }

    pub(super) fn reply(&mut self, pid: Pid, to: ConnId, message: Message, way: Way) {
        let sabotage = self.rules.sabotage;
        let mut message = if self.is_legacy(pid, Some(to)) {
            match self.legacy(pid, message, way) {
                Some(message) => message,
                None => return,
            }
        } else {
            message
        };
        match (sabotage, &mut message) {
            (Some(Sabotage::ReadyWhenBegun), Message::Ready { .. }) => return,
            (Some(Sabotage::HealthIgnored), Message::Ready { healthz_ok: fit, .. }) => *fit = true,
            _ => {}
        }
        if let Some(wire) = self.wire_of(pid, to)
            && wire.supervisor_open
            && !wire.broken
        {
            way.push(message, &mut wire.to_supervisor, sabotage);
        }
    }
}

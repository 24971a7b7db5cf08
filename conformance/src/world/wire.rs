//! Control connections.

use std::collections::VecDeque;

use handoff_core::daemon::{ConnId, Probed};
use handoff_core::supervisor::Peer;
use handoff_core::{Hangup, Input, Machine, Message, Output, daemon};

use super::{End, Listener, NOW, Pid, SUPERVISOR, Sabotage, Status, World, cred};

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
    pub(super) fn push(self, message: Message, queue: &mut VecDeque<Message>) {
        let push = match self {
            Self::Send => true,
            Self::Beat => queue.is_empty(),
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
            }
            End::Daemon => {
                self.daemon_open = false;
                self.to_daemon.clear();
            }
        }
    }
}

impl World {
    pub(super) fn deliver(&mut self, place: usize, to: End, listen: Listener<'_>) {
        let Some(wire) = self.wires.get_mut(place) else {
            return;
        };
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
            })
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
                _ => {}
            }
            way.push(message, &mut wire.to_daemon);
        }
    }

    pub(super) fn wire_of(&mut self, pid: Pid, conn: ConnId) -> Option<&mut Wire> {
        self.wires
            .iter_mut()
            .find(|wire| wire.daemon == pid && wire.daemon_open && wire.conn == Some(conn))
    }

    pub(super) fn reply(&mut self, pid: Pid, to: ConnId, message: Message, way: Way) {
        if self.rules.sabotage == Some(Sabotage::ReadyWhenBegun)
            && matches!(message, Message::Ready { .. })
        {
            return;
        }
        if let Some(wire) = self.wire_of(pid, to)
            && wire.supervisor_open
            && !wire.broken
        {
            way.push(message, &mut wire.to_supervisor);
        }
    }
}

//! Processes of nobody's that find the control socket (C5, R12, W7).

use handoff_core::daemon::ConnId;
use handoff_core::wire::{Decoder, encode};
use handoff_core::{
    Capabilities, Credentials, HandoffId, Hangup, Input, Message, PROTO_MAX, PROTO_MIN, Side,
    Violation,
};
use serde::{Deserialize, Serialize};

use super::{Listener, Pid, Status, UID, World};

/// Its pid.
const STRANGER: Pid = 999;

/// How many are there at once, at most.
const CROWD: usize = 3;

/// What a stranger does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guise {
    /// Nothing, for as long as it is let.
    Silent,
    /// It looks who answers, and leaves.
    Looks,
    /// It takes the socket for another service's.
    Lost,
    /// It says Hello, as only daemons do.
    Greets,
    /// It heartbeats before anything else is said.
    Beats,
    /// It drips a frame that is never whole.
    Drips,
    /// It shakes hands, heartbeats for a while, and leaves.
    Lingers,
    /// It shakes hands for one handoff and prepares another.
    Forges,
    /// It is another user's.
    Alien,
}

impl Guise {
    /// All there are.
    pub const ALL: [Self; 9] = [
        Self::Silent,
        Self::Looks,
        Self::Lost,
        Self::Greets,
        Self::Beats,
        Self::Drips,
        Self::Lingers,
        Self::Forges,
        Self::Alien,
    ];

    /// How often it speaks before it leaves; none: it stays.
    const fn words(self) -> Option<u8> {
        match self {
            Self::Silent => None,
            Self::Looks | Self::Alien => Some(0),
            Self::Lost | Self::Greets | Self::Beats => Some(1),
            Self::Forges => Some(2),
            Self::Lingers => Some(4),
            Self::Drips => Some(6),
        }
    }

    /// The bytes of one thing it says.
    fn word(self, said: u8) -> Vec<u8> {
        const ONE: HandoffId = HandoffId::from_random_bytes([0xaa; 16]);
        const OTHER: HandoffId = HandoffId::from_random_bytes([0xbb; 16]);
        let message = match (self, said) {
            (Self::Lost, _) => return b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            (Self::Drips, said) => return vec![if said == 0 { 16 } else { 0 }],
            (Self::Greets, _) => Message::Hello {
                role: Side::Incumbent,
                pid: STRANGER,
                build_id: b"stranger".to_vec(),
                proto_min: PROTO_MIN,
                proto_max: PROTO_MAX,
                capabilities: Capabilities::OURS,
            },
            (Self::Forges | Self::Lingers, 0) => {
                Message::HelloAck { proto_version_chosen: PROTO_MAX, handoff_id: ONE }
            }
            (Self::Forges, _) => Message::PrepareHandoff {
                handoff_id: OTHER,
                successor_pid: STRANGER,
                deadline_ms: 4000,
                drain_grace_ms: 2000,
            },
            _ => Message::Heartbeat { ts_ms: 7 },
        };
        let mut bytes = Vec::new();
        // These are small.
        let fits = encode(&message, PROTO_MAX, &mut bytes);
        debug_assert!(fits.is_ok());
        bytes
    }
}

/// A stranger's connection.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Stranger {
    pub(super) daemon: Pid,
    pub(super) conn: ConnId,
    guise: Guise,
    said: u8,
    /// The daemon's.
    decoder: Decoder,
}

impl World {
    /// Whom a stranger would reach.
    fn reached(&self) -> Option<Pid> {
        let pid = self.path?;
        let worker = self.worker(pid)?;
        let accepts =
            worker.status == Status::Running && worker.ended.is_none() && worker.machine.answers();
        accepts.then_some(pid)
    }

    pub(super) fn may_come(&self) -> bool {
        self.strangers.len() < CROWD && self.reached().is_some()
    }

    pub(super) fn is_stranger(&self, pid: Pid, conn: ConnId) -> bool {
        self.strangers.iter().any(|it| it.daemon == pid && it.conn == conn)
    }

    pub(super) fn stranger_comes(&mut self, guise: Guise, listen: Listener<'_>) {
        self.rules.strangers = self.rules.strangers.saturating_sub(1);
        let Some(daemon) = self.reached() else { return };
        let conn = self.free_conn(daemon);
        self.strangers.push(Stranger { daemon, conn, guise, said: 0, decoder: Decoder::new() });
        let uid = if guise == Guise::Alien { UID + 1 } else { UID };
        let cred = Credentials { pid: STRANGER, uid, descends: false };
        self.tell_daemon(daemon, Input::Opened { peer: conn, cred }, listen);
    }

    /// Those that have something left to say, or to leave.
    pub(super) fn speakers(&self) -> impl Iterator<Item = usize> + '_ {
        self.strangers.iter().enumerate().filter_map(|(place, it)| {
            it.guise.words()?;
            let worker = self.worker(it.daemon)?;
            (worker.status == Status::Running && worker.ended.is_none()).then_some(place)
        })
    }

    pub(super) fn stranger_speaks(&mut self, place: usize, listen: Listener<'_>) {
        let Some(stranger) = self.strangers.get_mut(place) else { return };
        let (pid, from) = (stranger.daemon, stranger.conn);
        if stranger.guise.words().is_none_or(|words| stranger.said >= words) {
            self.strangers.remove(place);
            return self.tell_daemon(pid, Input::Closed { from, how: Hangup::Eof }, listen);
        }
        let bytes = stranger.guise.word(stranger.said);
        stranger.said += 1;
        let input = match stranger.decoder.decode(&mut &bytes[..]) {
            Ok(Some(frame)) => {
                if let Message::HelloAck { proto_version_chosen, .. } = frame.message {
                    stranger.decoder.handshake_done(proto_version_chosen);
                }
                Input::Message { from, message: frame.message }
            }
            Ok(None) => Input::Heard { from },
            Err(error) => Input::Closed { from, how: Hangup::Violation(Violation::Wire(error)) },
        };
        let over = matches!(input, Input::Closed { .. });
        self.tell_daemon(pid, input, listen);
        if over {
            self.strangers.retain(|it| it.daemon != pid || it.conn != from);
        }
    }
}

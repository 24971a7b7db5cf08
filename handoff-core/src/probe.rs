//! The short conversation that tells who the incumbent is (C6).

use alloc::vec::Vec;

use crate::wire::{Decoder, WireError, encode};
use crate::{
    HandoffId, Message, PROTO_MAX, PROTO_MIN, Side, Violation, negotiate_version, short_name,
};

/// One probe: read Hello, answer HelloAck, close. The host bounds it to 1 s and asks the kernel who is
/// at the other end.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Probe {
    decoder: Decoder,
}

/// What a probe learned. `ack` is to be written before the connection is closed, so that the other
/// side sees a probe and no violation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Answer {
    /// The pid in its Hello.
    pub pid: u32,
    /// What it calls its build.
    pub build_id: Vec<u8>,
    /// The bytes of HelloAck.
    pub ack: Vec<u8>,
}

impl Probe {
    /// A probe that has read nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes. `id` is any fresh id: no handoff follows. `None` as long as Hello is incomplete.
    ///
    /// # Errors
    ///
    /// [`Violation`] where the peer is no incumbent that speaks this protocol.
    pub fn received(
        &mut self,
        mut bytes: &[u8],
        id: HandoffId,
    ) -> Result<Option<Answer>, Violation> {
        let frame = match self.decoder.decode(&mut bytes) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            Err(error) => return Err(Violation::Wire(error)),
        };
        let Message::Hello { role, pid, build_id, proto_min, proto_max, .. } = frame.message else {
            let message = short_name(&frame.message);
            return Err(Violation::Unexpected { message, state: "probing" });
        };
        if role != Side::Incumbent {
            return Err(Violation::WrongSide { announced: role });
        }
        let chosen = negotiate_version(PROTO_MIN, PROTO_MAX, proto_min, proto_max)
            .map_err(Violation::Versions)?;
        let mut ack = Vec::new();
        let message = Message::HelloAck { proto_version_chosen: chosen, handoff_id: id };
        encode(&message, chosen, &mut ack).map_err(|_| Violation::Wire(WireError::Malformed))?;
        Ok(Some(Answer { pid, build_id, ack }))
    }
}

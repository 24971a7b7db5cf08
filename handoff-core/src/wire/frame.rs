use alloc::vec::Vec;
use core::fmt;

use postcard::ser_flavors::Flavor;
use serde::Deserialize;

use super::{Message, ProtoVersion, short_name};

/// The largest length a frame may announce once the handshake is done (W2): 1 MiB.
pub const FRAME_CAP: u32 = 1 << 20;

/// The largest length a frame may announce before the handshake is done (W2): 4 KiB.
pub const HANDSHAKE_CAP: u32 = 4 << 10;

/// How many revisions a message may list: as many as surely fit a frame, whatever their values (W2).
pub const MAX_SHARDS: usize = 100_000;

const LENGTH_BYTES: usize = 4;
const VERSION_BYTES: usize = 2;

/// One decoded frame: its header's version, its message, and the bytes it took on the wire.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Frame {
    /// The version in the frame's header.
    pub version: ProtoVersion,
    /// What it says.
    pub message: Message,
}

/// Bytes that are no frame of this protocol (W2, W5, W6). Fatal for the connection they came on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum WireError {
    /// The announced length is outside `2..=cap`.
    Length {
        /// What the frame announced.
        announced: u32,
        /// What was allowed at this point of the conversation.
        cap: u32,
    },
    /// The header carries another version than the one chosen in HelloAck (W5).
    Version {
        /// What the frame carried.
        got: ProtoVersion,
        /// What HelloAck chose.
        chosen: ProtoVersion,
    },
    /// The bytes are no postcard form of a [`Message`].
    Malformed,
    /// Bytes are left over inside the frame after the message (W6).
    Leftover {
        /// The message that was read.
        message: &'static str,
        /// How many bytes follow it.
        bytes: usize,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { announced, cap } => {
                write!(f, "a frame announces {announced} bytes, outside 2..={cap}")
            }
            Self::Version { got, chosen } => {
                write!(f, "a frame carries version {got}, but version {chosen} was chosen")
            }
            Self::Malformed => f.write_str("a frame holds no message of this protocol"),
            Self::Leftover { message, bytes } => {
                write!(f, "{bytes} bytes are left over behind {message} inside its frame")
            }
        }
    }
}

impl core::error::Error for WireError {}

/// A message that fits no frame. The buffer is as it was before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EncodeError {
    /// The message.
    pub message: &'static str,
    /// The length it would have announced.
    pub length: usize,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} takes {} bytes; a frame holds {FRAME_CAP}", self.message, self.length)
    }
}

impl core::error::Error for EncodeError {}

struct Append<'a>(&'a mut Vec<u8>);

impl Flavor for Append<'_> {
    type Output = ();

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Appends one frame to `buffer` (W2). Allocates only where `buffer` has to grow.
///
/// # Errors
///
/// [`EncodeError`] where the message exceeds [`FRAME_CAP`]; nothing is appended then.
#[inline]
pub fn encode(
    message: &Message,
    version: ProtoVersion,
    buffer: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let start = buffer.len();
    let [low, high] = version.to_le_bytes();
    buffer.extend_from_slice(&[0, 0, 0, 0, low, high]);
    let written = postcard::serialize_with_flavor(message, Append(buffer));
    let length = buffer.len() - start - LENGTH_BYTES;
    match u32::try_from(length) {
        Ok(announced) if written.is_ok() && announced <= FRAME_CAP => {
            buffer[start..start + LENGTH_BYTES].copy_from_slice(&announced.to_le_bytes());
            Ok(())
        }
        _ => {
            buffer.truncate(start);
            Err(EncodeError { message: short_name(message), length })
        }
    }
}

/// Takes bytes as they arrive and gives whole frames (W2, W5, W6).
///
/// What it keeps is at most the bytes received of one frame: a length that is announced costs
/// nothing. Its work is linear in the bytes, however they are split. After an error it gives the
/// same error for ever; the connection is to be closed.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Decoder {
    partial: Vec<u8>,
    /// How long `partial` has to be to be a whole frame; zero until its header says so.
    end: usize,
    chosen: Option<ProtoVersion>,
    failed: Option<WireError>,
}

impl Decoder {
    /// A decoder before the handshake: frames up to [`HANDSHAKE_CAP`], of any version.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The handshake is done: from now on frames up to [`FRAME_CAP`], of version `chosen` only (W2, W5).
    pub fn handshake_done(&mut self, chosen: ProtoVersion) {
        self.chosen = Some(chosen);
    }

    /// How many bytes of an unfinished frame are kept.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.partial.len()
    }

    /// Takes bytes off the front of `input` until a frame is whole.
    ///
    /// `None` means that `input` is used up and more is needed. Call it until then.
    ///
    /// # Errors
    ///
    /// [`WireError`] where the bytes are no frame; the rest of `input` is meaningless then.
    // Inlined, so that a message is not copied from result to result: that takes longer than to read it.
    #[inline]
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, WireError> {
        // The rest of the frame has not arrived: how most calls end where there are many pieces.
        if self.partial.len() + input.len() < self.end {
            self.partial.extend_from_slice(input);
            *input = &[];
            return Ok(None);
        }
        if self.partial.is_empty()
            && self.failed.is_none()
            && let Some((header, _)) = input.split_first_chunk::<LENGTH_BYTES>()
            && let Ok(length) = self.length(*header)
            && let Some((frame, rest)) = input.split_at_checked(LENGTH_BYTES + length)
        {
            *input = rest;
            return self.frame(&frame[LENGTH_BYTES..]);
        }
        self.collect(input)
    }

    /// The same for the first and the last piece of a frame.
    #[inline(never)]
    fn collect(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, WireError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.fill(input, LENGTH_BYTES);
        let Some(header) = self.partial.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        if self.end == 0 {
            match self.length(*header) {
                Ok(length) => self.end = LENGTH_BYTES + length,
                Err(error) => return Err(self.fail(error)),
            }
        }
        self.fill(input, self.end);
        if self.partial.len() < self.end {
            return Ok(None);
        }
        let mut whole = core::mem::take(&mut self.partial);
        self.end = 0;
        let frame = self.frame(&whole[LENGTH_BYTES..]);
        if frame.is_ok() {
            // There is room for the next.
            whole.clear();
            self.partial = whole;
        }
        frame
    }

    #[cold]
    fn fail(&mut self, error: WireError) -> WireError {
        self.failed = Some(error);
        (self.partial, self.end) = (Vec::new(), 0);
        error
    }

    /// Moves bytes from `input` until `partial` holds `target` of them.
    fn fill(&mut self, input: &mut &[u8], target: usize) {
        let missing = target.saturating_sub(self.partial.len());
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.partial.extend_from_slice(taken);
        *input = rest;
    }

    #[inline]
    fn length(&self, header: [u8; LENGTH_BYTES]) -> Result<usize, WireError> {
        let announced = u32::from_le_bytes(header);
        let cap = if self.chosen.is_some() { FRAME_CAP } else { HANDSHAKE_CAP };
        if announced < VERSION_BYTES as u32 || announced > cap {
            return Err(WireError::Length { announced, cap });
        }
        Ok(announced as usize)
    }

    // What it gives is what a caller of `decode` gets, as it is.
    #[inline]
    fn frame(&mut self, body: &[u8]) -> Result<Option<Frame>, WireError> {
        let Some((version, payload)) = body.split_first_chunk::<VERSION_BYTES>() else {
            return Err(self.fail(WireError::Malformed));
        };
        let version = u16::from_le_bytes(*version);
        if let Some(chosen) = self.chosen
            && chosen != version
        {
            return Err(self.fail(WireError::Version { got: version, chosen }));
        }
        let mut bytes = postcard::Deserializer::from_bytes(payload);
        match Message::deserialize(&mut bytes) {
            Ok(message) => match bytes.finalize() {
                Ok([]) => Ok(Some(Frame { version, message })),
                rest => {
                    let bytes = rest.map_or(0, <[u8]>::len);
                    let message = short_name(&message);
                    Err(self.fail(WireError::Leftover { message, bytes }))
                }
            },
            Err(_) => Err(self.fail(WireError::Malformed)),
        }
    }
}

//! The wire: frames and messages (W2-W6).
//!
//! A frame is a `u32` little-endian length of all that follows, a `u16` little-endian protocol
//! version, and one [`Message`] in postcard.

mod frame;
mod message;

pub use frame::{
    Decoder, EncodeError, FRAME_CAP, Frame, HANDSHAKE_CAP, MAX_SHARDS, WireError, encode,
};
pub use message::{
    Capabilities, HandoffId, Message, PROTO_MAX, PROTO_MIN, ProtoVersion, Side, VersionMismatch,
    negotiate_version, short_name,
};

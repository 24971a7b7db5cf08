//! The handoff protocol without I/O: bytes, time and completions go in; messages and effects come out.
//!
//! Three layers, each usable on its own:
//!
//! - [`wire`] turns bytes into [`Message`]s and back, bounded and incremental.
//! - The machines, one file a role: [`supervisor::Supervisor`] drives a swap,
//!   [`incumbent::Incumbent`] drains and seals, [`successor::Successor`] takes over.
//!   [`daemon::Daemon`] is a process that is first a successor and then the incumbent.
//! - [`driver::Driver`] is a machine with one decoder and one send buffer per peer. It is what an
//!   adapter drives, so that no adapter decodes a frame or decides anything.
//!
//! There is no clock, socket, thread or random number in here. A host reads its clock and passes an
//! [`Instant`]; it carries out every [`Output`] in the order given, and reports the completion of
//! every effect as an [`Input`], however late (R8).
#![no_std]

extern crate alloc;

pub mod daemon;
pub mod driver;
pub mod incumbent;
mod io;
mod link;
pub mod probe;
pub mod successor;
pub mod supervisor;
mod time;
pub mod wire;

pub use io::{Credentials, Hangup, Input, Machine, Output, Violation};
pub use link::Pulse;
pub use time::{Deadline, Instant, Timers};
pub use wire::{
    Capabilities, HandoffId, Message, PROTO_MAX, PROTO_MIN, ProtoVersion, Side, negotiate_version,
    short_name,
};

//! What a verb exits with: 0, or one of sysexits' codes.

/// Committed, or done.
pub const OK: u8 = 0;
/// The command line is wrong.
pub const USAGE: u8 = 64;
/// What was given is not what it should be: a key that was used for another handoff, say.
pub const DATA: u8 = 65;
/// A file that was named is not there, or cannot be read.
pub const NO_INPUT: u8 = 66;
/// No supervisor answers.
pub const UNAVAILABLE: u8 = 69;
/// The outcome is unknown, or nobody serves.
pub const SOFTWARE: u8 = 70;
/// The system refused to read or write.
pub const IO: u8 = 74;
/// Rolled back, refused or busy: it is safe to try again.
pub const TEMPORARY: u8 = 75;
/// What the other side said is not understood.
pub const PROTOCOL: u8 = 76;
/// This user may not.
pub const PERMISSION: u8 = 77;
/// The configuration is wrong.
pub const CONFIG: u8 = 78;

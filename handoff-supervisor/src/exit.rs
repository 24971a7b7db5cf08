//! What a verb exits with: 0, or one of sysexits' codes.

/// Committed, or done.
pub(crate) const OK: u8 = 0;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 64;
/// What was given is not what it should be: a key that was used for another handoff, say.
pub(crate) const DATA: u8 = 65;
/// A file that was named is not there, or cannot be read.
pub(crate) const NO_INPUT: u8 = 66;
/// No supervisor answers.
pub(crate) const UNAVAILABLE: u8 = 69;
/// The outcome is unknown, or nobody serves.
pub(crate) const SOFTWARE: u8 = 70;
/// The system refused to read or write.
pub(crate) const IO: u8 = 74;
/// Rolled back, refused or busy: it is safe to try again.
pub(crate) const TEMPORARY: u8 = 75;
/// What the other side said is not understood.
pub(crate) const PROTOCOL: u8 = 76;
/// This user may not.
pub(crate) const PERMISSION: u8 = 77;
/// The configuration is wrong.
pub(crate) const CONFIG: u8 = 78;

//! The supervisor's journal: one small file that is whole or absent (R9).
//!
//! An entry outlives its supervisor, not the machine: pids mean nothing after a boot, so that one of before it
//! is not heeded. So it is not forced to the disk either, which would take longer than most handoffs, and hold
//! up whoever makes a file on that file system meanwhile. What a loss of power leaves of it, if it is not
//! whole, its checksum tells.
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `HANDOFFJ` |
//! | 2 | format version, little-endian |
//! | 36 | boot id, as the kernel writes it |
//! | 4 | length of the payload, little-endian |
//! | n | payload |
//! | 4 | CRC-32 (IEEE) of all that precedes, little-endian |

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

/// The longest payload, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"HANDOFFJ";
const VERSION: u16 = 1;
const BOOT_ID_LEN: usize = 36;
const HEADER_LEN: usize = MAGIC.len() + 2 + BOOT_ID_LEN + 4;
const CRC_LEN: usize = 4;
/// How many unreadable journals are kept; the last one is replaced when there are more.
const MAX_SET_ASIDE: u32 = 32;

/// What the journal file held.
#[derive(Debug, PartialEq, Eq)]
pub enum Loaded {
    /// There is no journal: nothing was under way.
    Absent,
    /// A journal that was written completely.
    Entry {
        /// What was written.
        payload: Vec<u8>,
        /// Whether it was written since this machine booted: pids in it may still mean the same.
        same_boot: bool,
    },
    /// A journal that cannot be read. Report it, and go on without.
    SetAside {
        /// Where it was moved; `None` if it stays where it is, because it may be readable later
        /// or cannot be moved.
        moved_to: Option<PathBuf>,
        /// What is wrong with it.
        reason: String,
    },
}

/// The journal file of one supervisor. Others must not write it at the same time.
#[derive(Debug)]
pub struct JournalFile {
    path: PathBuf,
    temporary: PathBuf,
    writing: Mutex<()>,
}

impl JournalFile {
    /// The journal at `path`; nothing is touched yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { temporary: beside(&path, ".tmp"), path, writing: Mutex::new(()) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the content, atomically: whoever loads finds the old or the new payload, whenever a process
    /// ends.
    ///
    /// The file has mode 0600. Errors leave the old content; a payload longer than
    /// [`MAX_PAYLOAD`] is one (`InvalidInput`).
    pub fn write(&self, payload: &[u8]) -> io::Result<()> {
        self.write_with(|| Ok(payload.to_vec()))
    }

    /// The same, with a payload that is made when no other write is under way: of two that are made of
    /// what grows, the one with more comes last.
    pub(crate) fn write_with(
        &self,
        payload: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = encode(&payload()?, &boot_id().unwrap_or([b'0'; BOOT_ID_LEN]))?;
        let written =
            self.write_temporary(&bytes).and_then(|()| fs::rename(&self.temporary, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&self.temporary);
        }
        written
    }

    fn write_temporary(&self, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::TRUNC
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK;
        let mode = Mode::from_raw_mode(0o600);
        let mut file = File::from(rustix::fs::openat(CWD, &self.temporary, flags, mode)?);
        // A leftover may have been made with another mode.
        rustix::fs::fchmod(&file, mode)?;
        file.write_all(bytes)
    }

    /// Reads the journal. Never fails: what cannot be read blocks nothing (R9).
    ///
    /// Content that is not a journal is renamed to `<path>.bad-<n>`.
    pub fn load(&self) -> Loaded {
        let bytes = match self.read() {
            Ok(None) => return Loaded::Absent,
            Ok(Some(Ok(bytes))) => bytes,
            Ok(Some(Err(reason))) => return self.set_aside(reason),
            Err(error) => {
                let reason = format!("cannot read {}: {error}", self.path.display());
                tracing::warn!(%reason, "the journal is left where it is");
                return Loaded::SetAside { moved_to: None, reason };
            }
        };
        // A loss of power may leave nothing of an entry, which would not have been heeded after that.
        if bytes.is_empty() {
            return Loaded::Absent;
        }
        match decode(&bytes) {
            Ok((payload, boot)) => Loaded::Entry {
                payload: payload.to_vec(),
                same_boot: boot_id().is_some_and(|now| now == boot),
            },
            Err(reason) => self.set_aside(reason),
        }
    }

    /// `Ok(Some(Err(_)))` is something that will never be a journal.
    #[allow(clippy::type_complexity)]
    fn read(&self) -> io::Result<Option<Result<Vec<u8>, &'static str>>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(CWD, &self.path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NXIO) => return Ok(Some(Err("it is not a regular file"))),
            Err(e) => return Err(e.into()),
        };
        if !file.metadata()?.is_file() {
            return Ok(Some(Err("it is not a regular file")));
        }
        let limit = HEADER_LEN + MAX_PAYLOAD + CRC_LEN;
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit {
            return Ok(Some(Err("it is longer than a journal can be")));
        }
        Ok(Some(Ok(bytes)))
    }

    fn set_aside(&self, reason: &str) -> Loaded {
        let mut target = PathBuf::new();
        for n in 1..=MAX_SET_ASIDE {
            target = beside(&self.path, &format!(".bad-{n}"));
            if matches!(rustix::fs::lstat(&target), Err(Errno::NOENT)) {
                break;
            }
        }
        let reason = format!("{} cannot be used: {reason}", self.path.display());
        match fs::rename(&self.path, &target) {
            Ok(()) => {
                tracing::warn!(%reason, moved_to = %target.display(), "the journal is set aside");
                Loaded::SetAside { moved_to: Some(target), reason }
            }
            Err(error) => {
                tracing::warn!(%reason, %error, "the journal cannot be set aside");
                Loaded::SetAside { moved_to: None, reason }
            }
        }
    }

    /// Removes the journal; there being none is fine.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// It stays the same for as long as this process can run.
fn boot_id() -> Option<[u8; BOOT_ID_LEN]> {
    static BOOT_ID: OnceLock<[u8; BOOT_ID_LEN]> = OnceLock::new();
    if let Some(known) = BOOT_ID.get() {
        return Some(*known);
    }
    let id = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let id = id.trim_ascii().try_into().ok()?;
    Some(*BOOT_ID.get_or_init(|| id))
}

fn encode(payload: &[u8], boot: &[u8; BOOT_ID_LEN]) -> io::Result<Vec<u8>> {
    let len =
        u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_PAYLOAD).ok_or_else(
            || io::Error::new(io::ErrorKind::InvalidInput, "the journal entry is too long"),
        )?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len() + CRC_LEN);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(boot);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(&crc32(&bytes).to_le_bytes());
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<(&[u8], [u8; BOOT_ID_LEN]), &'static str> {
    const SHORT: &str = "it is too short";
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is not a journal")?;
    let (version, rest) = rest.split_first_chunk().ok_or(SHORT)?;
    if u16::from_le_bytes(*version) != VERSION {
        return Err("it was written in another format version");
    }
    let (body, crc) = bytes.split_last_chunk().ok_or(SHORT)?;
    let (boot, rest) = rest.split_first_chunk().ok_or(SHORT)?;
    let (len, rest) = rest.split_first_chunk().ok_or(SHORT)?;
    let payload = rest.strip_suffix(crc).ok_or(SHORT)?;
    if usize::try_from(u32::from_le_bytes(*len)) != Ok(payload.len()) {
        return Err("its length is not the one it says");
    }
    if crc32(body) != u32::from_le_bytes(*crc) {
        return Err("its checksum is wrong");
    }
    Ok((payload, *boot))
}

/// Without a table: entries are small and rare.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc >>= 1;
            if low == 1 {
                crc ^= 0xedb8_8320;
            }
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::test_dir::scratch;

    fn journal(dir: &tempfile::TempDir) -> JournalFile {
        JournalFile::new(dir.path().join("the journal"))
    }

    fn names(dir: &tempfile::TempDir) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn entry(payload: &[u8]) -> Loaded {
        Loaded::Entry { payload: payload.to_vec(), same_boot: true }
    }

    fn reason(loaded: Loaded) -> String {
        match loaded {
            Loaded::SetAside { moved_to: Some(_), reason } => reason,
            other => panic!("expected it to be set aside, got {other:?}"),
        }
    }

    #[test]
    fn r9_what_was_written_is_loaded_until_it_is_cleared() {
        let dir = scratch();
        let journal = journal(&dir);
        assert_eq!(journal.load(), Loaded::Absent);
        journal.write(b"first").unwrap();
        journal.write(b"").unwrap();
        assert_eq!(journal.load(), entry(b""));
        journal.write(b"second").unwrap();
        assert_eq!(journal.load(), entry(b"second"));
        assert_eq!(journal.load(), entry(b"second"));
        assert_eq!(names(&dir), ["the journal"]);
        let mode = fs::metadata(journal.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        journal.clear().unwrap();
        journal.clear().unwrap();
        assert_eq!(journal.load(), Loaded::Absent);
        assert!(names(&dir).is_empty());
    }

    #[test]
    fn r9_every_corrupt_byte_and_every_cut_is_noticed() {
        let whole = encode(b"payload", &[b'x'; BOOT_ID_LEN]).unwrap();
        assert_eq!(decode(&whole), Ok((&b"payload"[..], [b'x'; BOOT_ID_LEN])));
        for i in 0..whole.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[i] ^= flip;
                assert!(decode(&bytes).is_err(), "byte {i} ^ {flip}");
            }
            assert!(decode(&whole[..i]).is_err(), "cut at {i}");
        }
        let longer = [whole.as_slice(), &[0]].concat();
        assert!(decode(&longer).is_err());
    }

    #[test]
    fn r9_garbage_is_set_aside_and_blocks_nothing() {
        let dir = scratch();
        let journal = journal(&dir);
        fs::write(journal.path(), "garbage").unwrap();
        assert!(reason(journal.load()).contains("not a journal"));
        assert_eq!(journal.load(), Loaded::Absent);

        // All that a loss of power may leave is none.
        fs::write(journal.path(), "").unwrap();
        assert_eq!(journal.load(), Loaded::Absent);
        fs::remove_file(journal.path()).unwrap();
        fs::create_dir(journal.path()).unwrap();
        assert!(reason(journal.load()).contains("regular file"));
        fs::write(journal.path(), vec![0; MAX_PAYLOAD + 1000]).unwrap();
        assert!(reason(journal.load()).contains("longer"));
        let bad = |n| format!("the journal.bad-{n}");
        assert_eq!(names(&dir), [bad(1), bad(2), bad(3)]);
        journal.write(b"next").unwrap();
        assert_eq!(journal.load(), entry(b"next"));
    }

    #[test]
    fn r9_a_journal_of_another_boot_says_so() {
        let dir = scratch();
        let journal = journal(&dir);
        let bytes = encode(b"old", &[b'0'; BOOT_ID_LEN]).unwrap();
        fs::write(journal.path(), bytes).unwrap();
        let expected = Loaded::Entry { payload: b"old".to_vec(), same_boot: false };
        assert_eq!(journal.load(), expected);
    }

    #[test]
    fn r9_a_failed_write_keeps_the_old_entry_and_leaves_no_trace() {
        let dir = scratch();
        let journal = journal(&dir);
        journal.write(b"old").unwrap();
        let error = journal.write(&vec![0; MAX_PAYLOAD + 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        journal.write(&vec![7; MAX_PAYLOAD]).unwrap();
        journal.write(b"old").unwrap();

        // A crash while writing leaves a temporary file, which is neither read nor kept.
        fs::write(dir.path().join("the journal.tmp"), "half").unwrap();
        assert_eq!(journal.load(), entry(b"old"));
        journal.write(b"new").unwrap();
        assert_eq!(names(&dir), ["the journal"]);

        let nowhere = JournalFile::new(dir.path().join("missing/journal"));
        assert!(nowhere.write(b"x").is_err());
        assert_eq!(nowhere.load(), Loaded::Absent);
    }

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}

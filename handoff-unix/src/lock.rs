//! The data directory's lock: who holds it may write (R1).
//!
//! Two `flock(2)` locks make one: first the file `.handoff.lock`, then the directory itself.
//! The second is there because a lock file can be unlinked by somebody tidying up, after which
//! a newcomer would lock a different file of the same name. They are released in the opposite
//! order, so whoever finds the file free finds the directory free as well.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::process::read_proc;

/// Name of the lock file inside the data directory. It is created once and never unlinked.
pub const LOCK_FILE: &str = ".handoff.lock";

/// Name of the file that tells people (and only people) which process holds the lock.
pub const PID_FILE: &str = ".handoff.pidfile";

/// How often a path that changes under the lock is tried again before it is reported.
const ATTEMPTS: u32 = 8;

/// How often a table of locks too long to be read in one piece is looked through.
const LOOKS: u32 = 4;

/// The exclusive lock on a data directory, held until [`release`](Self::release) or drop.
///
/// Both descriptors are close-on-exec. Dropping it unlocks too, but cannot report a failure.
#[derive(Debug)]
#[must_use = "dropping the lock releases it"]
pub struct DataDirLock {
    // Declared in the order of release: the directory was locked last.
    dir: Flock,
    file: Flock,
    data_dir: PathBuf,
}

impl DataDirLock {
    /// Takes the lock on `data_dir` if nobody holds it, without waiting.
    ///
    /// On success the path of the lock file still names the locked file. Who took it is written by
    /// [`PidFile::write`]. Errors: [`LockError::Held`] and [`LockError::Shortage`] are worth retrying,
    /// [`LockError::Unusable`] is not (R1).
    pub fn try_take(data_dir: &Path) -> Result<Self, LockError> {
        let lock_path = data_dir.join(LOCK_FILE);
        for _ in 0..ATTEMPTS {
            let dir = open_dir(data_dir).map_err(|e| LockError::of(data_dir, e))?;
            let file = open_lock_file(&dir).map_err(|e| LockError::of(&lock_path, e))?;
            let Some(file) = Flock::try_take(file).map_err(|e| LockError::of(&lock_path, e))?
            else {
                return Err(LockError::held(data_dir, &lock_path));
            };
            let Some(dir) = Flock::try_take(dir).map_err(|e| LockError::of(data_dir, e))? else {
                return Err(LockError::held(data_dir, data_dir));
            };
            let lock = Self { dir, file, data_dir: data_dir.to_owned() };
            // Somebody may have replaced the file or the directory between open and lock; what
            // is locked then guards nothing.
            if lock.is_in_place().map_err(|e| LockError::of(&lock_path, e))? {
                return Ok(lock);
            }
            tracing::debug!(path = %lock_path.display(), "lock file was replaced while being locked");
        }
        Err(LockError::Shortage {
            path: lock_path,
            source: io::Error::other("it is being replaced again and again while it is locked"),
        })
    }

    /// The directory that is locked, as it was named when the lock was taken.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Releases the lock by unlocking it, the directory first and then the file.
    ///
    /// Unlocking, unlike closing, also takes the lock from a forked child that shares the
    /// descriptor. Both locks are tried even if the first fails; the first error is returned.
    pub fn release(mut self) -> io::Result<()> {
        let dir = self.dir.unlock();
        let file = self.file.unlock();
        dir.and(file)
    }

    /// Whether the paths still name what is locked.
    fn is_in_place(&self) -> io::Result<bool> {
        let named = match rustix::fs::statat(&self.dir.file, LOCK_FILE, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let named_dir = match rustix::fs::stat(&self.data_dir) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let file = rustix::fs::fstat(&self.file.file)?;
        let dir = rustix::fs::fstat(&self.dir.file)?;
        Ok((named.st_dev, named.st_ino) == (file.st_dev, file.st_ino)
            && (named_dir.st_dev, named_dir.st_ino) == (dir.st_dev, dir.st_ino))
    }

    /// The file that tells others who holds the lock. `None` for want of a descriptor.
    #[must_use]
    pub fn pid_file(&self) -> Option<PidFile> {
        let dir = self.dir.file.try_clone().ok()?;
        Some(PidFile { dir, data_dir: self.data_dir.clone() })
    }
}

/// The file in a locked data directory that names the lock's holder: for messages only (R1).
#[derive(Debug)]
pub struct PidFile {
    dir: File,
    data_dir: PathBuf,
}

impl PidFile {
    /// Writes this process's pid. Not being able to fails nothing.
    pub fn write(self) {
        // Truncating comes first: on a full disk an empty file is better than one that names
        // somebody else.
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::TRUNC
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK;
        let line = format!("{}\n", std::process::id());
        let written = rustix::fs::openat(&self.dir, PID_FILE, flags, Mode::from_raw_mode(0o644))
            .map_err(io::Error::from)
            .and_then(|fd| File::from(fd).write_all(line.as_bytes()));
        if let Err(error) = written {
            tracing::debug!(
                path = %self.data_dir.join(PID_FILE).display(), %error,
                "could not write the pid file; it is for messages only"
            );
        }
    }
}

/// One `flock(2)` lock that is given back by unlocking, whoever else shares the descriptor.
#[derive(Debug)]
struct Flock {
    file: File,
    held: bool,
}

impl Flock {
    fn try_take(file: File) -> io::Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file, held: true })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// May be called again: unlocking what is not locked is no error.
    fn unlock(&mut self) -> io::Result<()> {
        loop {
            match self.file.unlock() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => {
                    self.held = other.is_err();
                    return other;
                }
            }
        }
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        if self.held
            && let Err(error) = self.unlock()
        {
            tracing::warn!(%error, "could not unlock the data directory");
        }
    }
}

fn open_dir(data_dir: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, data_dir, flags, Mode::empty())?.into())
}

fn open_lock_file(dir: &impl AsFd) -> io::Result<File> {
    let base = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let open = |flags, mode| rustix::fs::openat(dir, LOCK_FILE, base | flags, mode);
    // Creating is the last resort: an existing file can be opened on a full disk, and on one
    // that has turned read-only, where the incumbent must be able to resume.
    let opened = match open(OFlags::RDWR, Mode::empty()) {
        Err(Errno::NOENT) => open(OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o600)),
        Err(Errno::ROFS) => open(OFlags::RDONLY, Mode::empty()),
        other => other,
    };
    Ok(opened?.into())
}

/// Why the lock on a data directory was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it. Retry, or find out who serves.
    #[error("{}", describe_held(path, *holder))]
    Held {
        /// What is locked: the lock file, or the directory.
        path: PathBuf,
        /// The process that holds it, as far as it can be told.
        holder: Option<u32>,
    },
    /// The machine is short of something (space, descriptors, memory, a writable disk). Retry
    /// as for a held lock: it passes.
    #[error(
        "cannot lock {} for the time being: {source}; free what is short, the lock can then be taken",
        path.display()
    )]
    Shortage {
        /// What could not be opened or locked.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The directory cannot serve as a data directory as it is.
    #[error("cannot lock {}: {source}; {}", path.display(), advice(source))]
    Unusable {
        /// What could not be opened or locked.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl LockError {
    /// Whether trying again later can succeed without anybody changing the configuration.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Unusable { .. })
    }

    fn of(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if is_shortage(&source) {
            Self::Shortage { path, source }
        } else {
            Self::Unusable { path, source }
        }
    }

    fn held(data_dir: &Path, path: &Path) -> Self {
        // The table of all locks is the last resort: the kernel stops everybody who locks anything to show
        // it, and that takes it milliseconds. Who is asked for here delays an incumbent that ends.
        let written = pid_from_file(data_dir);
        let holder =
            written.filter(|pid| is_held_by(data_dir, *pid)).or_else(|| {
                match lock_state(data_dir) {
                    LockState::Held { pid: Some(pid) } => Some(pid),
                    _ => written,
                }
            });
        Self::Held { path: path.to_owned(), holder }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    let Some(errno) = Errno::from_io_error(error) else {
        return false;
    };
    [
        Errno::NOSPC,
        Errno::ROFS,
        Errno::DQUOT,
        Errno::IO,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::NOBUFS,
        Errno::NOLCK,
        Errno::INTR,
        Errno::AGAIN,
        Errno::BUSY,
        Errno::STALE,
        Errno::TIMEDOUT,
    ]
    .contains(&errno)
}

fn describe_held(path: &Path, holder: Option<u32>) -> String {
    let path = path.display();
    match holder {
        Some(pid) => match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(comm) => format!(
                "{path} is locked by process {pid} ({}); stop it, or hand off from it",
                comm.trim_end()
            ),
            Err(_) => format!(
                "{path} is locked by process {pid}, or by a child it left behind with the lock open; stop that process"
            ),
        },
        None => format!(
            "{path} is locked by another process; `fuser -v` on it shows which, stop that one or hand off from it"
        ),
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "create the data directory, or name the right one",
        io::ErrorKind::NotADirectory => "the data directory must be a directory",
        io::ErrorKind::PermissionDenied => {
            "give the user this process runs as read and write access to it"
        }
        _ => "check the data directory and the file system it is on",
    }
}

/// The pid in the pid file, if it names a process that is alive.
fn pid_from_file(data_dir: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(data_dir.join(PID_FILE)).ok()?;
    let pid: u32 = text.trim().parse().ok()?;
    Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
}

/// How many descriptors of a process [`is_held_by`] looks at.
const FDS: usize = 1024;
/// How many of them before they are listed.
const FIRST_FDS: usize = 24;

/// What can be seen of a data directory's lock without touching it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LockState {
    /// Somebody holds it.
    Held {
        /// The process that took it, where the kernel says.
        pid: Option<u32>,
    },
    /// Nobody that can be seen from here holds it.
    Free,
    /// It cannot be told.
    Unknown,
}

/// Looks who holds the lock on `data_dir`, without ever taking it, not even for an instant.
///
/// The answer is a hint, out of date when it arrives: only [`DataDirLock::try_take`] decides.
/// A holder in a pid namespace that is not visible from here looks like [`LockState::Free`].
/// A missing lock file is no lock; a directory that is missing or cannot be looked at, or an
/// unreadable `/proc/locks`, gives [`LockState::Unknown`].
#[must_use]
pub fn lock_state(data_dir: &Path) -> LockState {
    let Ok(dir) = rustix::fs::stat(data_dir) else {
        return LockState::Unknown;
    };
    let file = match rustix::fs::lstat(data_dir.join(LOCK_FILE)) {
        Ok(stat) => Some(stat),
        Err(Errno::NOENT) => None,
        Err(_) => return LockState::Unknown,
    };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for _ in 0..LOOKS {
        let Ok((locks, at_once)) = read_lock_table() else {
            return LockState::Unknown;
        };
        // The directory counts without the file, which may have been unlinked under its holder.
        for stat in file.iter().chain([&dir]) {
            let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
            let exact = has_device(&mounts, device);
            let ambiguous = !exact || is_overlay(&mounts, device);
            let mut holders = find_flocks(&locks, device, stat.st_ino, exact);
            let holds = |pid: &Option<u32>| {
                !ambiguous || pid.is_none_or(|pid| has_open(pid, stat) != Some(false))
            };
            if let Some(pid) = holders.find(holds) {
                return LockState::Held { pid };
            }
        }
        if at_once {
            break;
        }
    }
    LockState::Free
}

/// Whether process `pid` is seen to hold the lock on `data_dir`; `false` where that cannot be told.
///
/// It looks at what that process has open, where [`lock_state`] makes the kernel walk every lock of
/// the machine, and stop the others for it: milliseconds. A lock that was taken through a descriptor
/// beyond the first 1024 is not seen.
#[must_use]
pub fn is_held_by(data_dir: &Path, pid: u32) -> bool {
    let Ok(file) = rustix::fs::lstat(data_dir.join(LOCK_FILE)) else { return false };
    let device = (rustix::fs::major(file.st_dev), rustix::fs::minor(file.st_dev));
    let holds = |fd: &str| {
        // What it has under another name is no lock file; most are told apart by that.
        let name = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
        let mut parts = name.as_os_str().as_bytes().windows(LOCK_FILE.len());
        if !parts.any(|part| part == LOCK_FILE.as_bytes()) {
            return false;
        }
        let info = read_proc(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        info.lines()
            .filter_map(|line| line.strip_prefix("lock:"))
            .any(|lock| find_flocks(lock.trim_start(), device, file.st_ino, true).count() > 0)
    };
    // Whoever has just taken it has it among its first descriptors, and to list them all takes longer.
    if (0..FIRST_FDS).any(|fd| holds(&fd.to_string())) {
        return true;
    }
    let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    fds.flatten().take(FDS).any(|fd| fd.file_name().to_str().is_some_and(holds))
}

/// The kernel's table of locks, and whether it was read in one piece.
///
/// One `read` is consistent, but between two of them entries move up when earlier ones go, and
/// can be missed. So the buffer must be larger than what the kernel gives at once, a page.
fn read_lock_table() -> io::Result<(String, bool)> {
    let mut file = File::open("/proc/locks")?;
    let mut chunk = vec![0; 1 << 16];
    let mut table = Vec::new();
    let mut reads = 0;
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => {
                table.extend_from_slice(&chunk[..n]);
                reads += 1;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok((String::from_utf8_lossy(&table).into_owned(), reads <= 1))
}

/// The holders of `flock`s on that inode; `None` is a holder whose pid is hidden.
///
/// Some file systems (btrfs subvolumes, overlays) show another device in `stat` than in
/// `/proc/locks`; there, and only there, the inode alone has to do.
fn find_flocks(
    locks: &str,
    device: (u32, u32),
    inode: u64,
    device_is_exact: bool,
) -> impl Iterator<Item = Option<u32>> {
    let found = locks.lines().filter_map(parse_flock);
    found
        .filter(move |(dev, ino, _)| *ino == inode && (!device_is_exact || *dev == device))
        .map(|(_, _, pid)| pid)
}

/// Whether a process has this open. `None` where that may not be looked at, or it is gone: a child that it left
/// behind may have.
fn has_open(pid: u32, stat: &Stat) -> Option<bool> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let is_it = |open: Stat| (open.st_dev, open.st_ino) == (stat.st_dev, stat.st_ino);
    Some(fds.flatten().take(FDS).any(|fd| rustix::fs::stat(fd.path()).is_ok_and(is_it)))
}

/// Whether this is an overlay, which gives a directory the number that a file may have as well.
fn is_overlay(mountinfo: &str, (major, minor): (u32, u32)) -> bool {
    let device = format!("{major}:{minor}");
    mountinfo
        .lines()
        .any(|line| line.split(' ').nth(2) == Some(device.as_str()) && line.contains(" - overlay "))
}

/// Reads `1: FLOCK  ADVISORY  WRITE 1234 08:02:12345 0 EOF`; waiters (`1: -> FLOCK`) and other
/// kinds of lock are not for us.
fn parse_flock(line: &str) -> Option<((u32, u32), u64, Option<u32>)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    if words.next()? != "FLOCK" {
        return None;
    }
    let pid = words.nth(2)?.parse::<i64>().ok()?;
    let mut id = words.next()?.split(':');
    let major = u32::from_str_radix(id.next()?, 16).ok()?;
    let minor = u32::from_str_radix(id.next()?, 16).ok()?;
    let inode = id.next()?.parse().ok()?;
    Some(((major, minor), inode, u32::try_from(pid).ok().filter(|p| *p > 0)))
}

/// Whether a mount shows this device, i.e. `stat` and the kernel agree on it.
fn has_device(mountinfo: &str, (major, minor): (u32, u32)) -> bool {
    let wanted = format!("{major}:{minor}");
    mountinfo.lines().any(|line| line.split(' ').nth(2) == Some(wanted.as_str()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::test_dir::scratch;

    fn holder_of(result: Result<DataDirLock, LockError>) -> Option<u32> {
        match result {
            Err(LockError::Held { holder, .. }) => holder,
            other => panic!("expected a held lock, got {other:?}"),
        }
    }

    #[test]
    fn a_process_is_seen_to_hold_its_lock_and_no_other() {
        let held = scratch();
        let free = scratch();
        let pid = std::process::id();
        let lock = DataDirLock::try_take(held.path()).unwrap();
        drop(DataDirLock::try_take(free.path()).unwrap());
        assert!(is_held_by(held.path(), pid));
        assert!(!is_held_by(free.path(), pid));
        lock.release().unwrap();
        assert!(!is_held_by(held.path(), pid));
    }

    #[test]
    fn what_a_process_has_open_is_told_apart() {
        let dir = scratch();
        let me = std::process::id();
        let stat = rustix::fs::stat(dir.path()).unwrap();
        assert_eq!(has_open(me, &stat), Some(false));
        let open = File::open(dir.path()).unwrap();
        assert_eq!(has_open(me, &stat), Some(true));
        drop(open);
        assert_eq!(has_open(4_194_305, &stat), None);
    }

    #[test]
    fn r1_one_holder_who_is_named_until_it_releases() {
        let dir = scratch();
        assert_eq!(lock_state(dir.path()), LockState::Free);

        let lock = DataDirLock::try_take(dir.path()).unwrap();
        lock.pid_file().unwrap().write();
        assert_eq!(lock.data_dir(), dir.path());
        let me = std::process::id();
        assert_eq!(lock_state(dir.path()), LockState::Held { pid: Some(me) });
        assert_eq!(std::fs::read_to_string(dir.path().join(PID_FILE)).unwrap(), format!("{me}\n"));

        let error = DataDirLock::try_take(dir.path()).unwrap_err();
        assert!(error.is_retryable());
        assert!(error.to_string().contains(&format!("process {me}")), "{error}");
        assert_eq!(holder_of(Err(error)), Some(me));

        let inode = std::fs::metadata(dir.path().join(LOCK_FILE)).unwrap().ino();
        lock.release().unwrap();
        assert_eq!(lock_state(dir.path()), LockState::Free);
        let again = DataDirLock::try_take(dir.path()).unwrap();
        let meta = std::fs::metadata(dir.path().join(LOCK_FILE)).unwrap();
        assert_eq!(meta.ino(), inode, "the lock file is never replaced");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        drop(again);
        DataDirLock::try_take(dir.path()).unwrap().release().unwrap();
    }

    #[test]
    fn r1_an_unlinked_lock_file_does_not_make_two_holders() {
        let dir = scratch();
        let first = DataDirLock::try_take(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();

        assert_eq!(holder_of(DataDirLock::try_take(dir.path())), Some(std::process::id()));
        std::fs::remove_file(dir.path().join(LOCK_FILE)).unwrap();
        assert!(matches!(lock_state(dir.path()), LockState::Held { .. }));

        first.release().unwrap();
        let second = DataDirLock::try_take(dir.path()).unwrap();
        holder_of(DataDirLock::try_take(dir.path()));
        second.release().unwrap();
    }

    #[test]
    fn r1_release_takes_the_lock_from_a_child_that_shares_the_descriptors() {
        let dir = scratch();
        let lock = DataDirLock::try_take(dir.path()).unwrap();
        let share = |f: &Flock| Stdio::from(f.file.try_clone().unwrap());
        let mut child = Command::new("/bin/sleep")
            .arg("1000")
            .stdin(share(&lock.file))
            .stdout(share(&lock.dir))
            .spawn()
            .unwrap();

        lock.release().unwrap();
        let again = DataDirLock::try_take(dir.path()).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "the child still lives");
        // And the child's descriptors do not unlock what was locked since.
        child.kill().unwrap();
        child.wait().unwrap();
        holder_of(DataDirLock::try_take(dir.path()));
        drop(again);
    }

    #[test]
    fn r1_a_dead_holder_leaves_the_lock_free() {
        let dir = scratch();
        let holder = Command::new("/bin/sh")
            .args(["-c", "exec 9>\"$0\"; flock -n 9 && echo locked && read -r x"])
            .arg(dir.path().join(LOCK_FILE))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut holder = holder.unwrap();
        let mut line = [0; 7];
        if holder.stdout.as_mut().unwrap().read_exact(&mut line).is_err() {
            holder.wait().unwrap();
            return; // no flock(1) here
        }
        // flock(1) locked through the shell's descriptor and is gone itself.
        holder_of(DataDirLock::try_take(dir.path()));
        assert!(matches!(lock_state(dir.path()), LockState::Held { .. }));
        holder.kill().unwrap();
        holder.wait().unwrap();
        DataDirLock::try_take(dir.path()).unwrap().release().unwrap();
    }

    #[test]
    fn r1_the_pid_file_fails_nothing() {
        let dir = scratch();
        std::fs::create_dir(dir.path().join(PID_FILE)).unwrap();
        let lock = DataDirLock::try_take(dir.path()).unwrap();
        lock.pid_file().unwrap().write();
        lock.release().unwrap();
    }

    #[test]
    fn r1_a_stale_pid_file_does_not_name_a_dead_holder() {
        let dir = scratch();
        std::fs::write(dir.path().join(PID_FILE), "4194305\n").unwrap();
        assert_eq!(pid_from_file(dir.path()), None);
        std::fs::write(dir.path().join(PID_FILE), "garbage").unwrap();
        assert_eq!(pid_from_file(dir.path()), None);
    }

    #[test]
    fn what_cannot_be_a_data_directory_is_named_with_advice() {
        let dir = scratch();
        let missing = dir.path().join("missing");
        let error = DataDirLock::try_take(&missing).unwrap_err();
        assert!(matches!(error, LockError::Unusable { .. }), "{error:?}");
        assert!(!error.is_retryable());
        let text = error.to_string();
        assert!(text.contains("missing") && text.contains("create the data directory"), "{text}");
        assert_eq!(lock_state(&missing), LockState::Unknown);

        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let text = DataDirLock::try_take(&file).unwrap_err().to_string();
        assert!(text.contains("must be a directory"), "{text}");

        std::os::unix::fs::symlink("elsewhere", dir.path().join(LOCK_FILE)).unwrap();
        let error = DataDirLock::try_take(dir.path()).unwrap_err();
        assert!(matches!(error, LockError::Unusable { .. }), "{error:?}");
    }

    #[test]
    fn r1_shortages_are_told_from_what_will_not_pass() {
        let of = |errno: Errno| LockError::of(Path::new("/data"), errno.into());
        for errno in
            [Errno::NOSPC, Errno::ROFS, Errno::MFILE, Errno::NFILE, Errno::DQUOT, Errno::IO]
        {
            assert!(matches!(of(errno), LockError::Shortage { .. }), "{errno:?}");
        }
        for errno in [Errno::NOTDIR, Errno::NOENT, Errno::ACCESS, Errno::PERM, Errno::LOOP] {
            assert!(matches!(of(errno), LockError::Unusable { .. }), "{errno:?}");
        }
    }

    #[test]
    fn proc_locks_is_read_as_the_kernel_writes_it() {
        let locks = "\
1: POSIX  ADVISORY  WRITE 11 08:02:100 0 EOF
2: FLOCK  ADVISORY  WRITE 22 fe:0a:200 0 EOF
2: -> FLOCK  ADVISORY  WRITE 33 fe:0a:300 0 EOF
3: FLOCK  ADVISORY  WRITE 0 00:2b:400 0 EOF
4: OFDLCK ADVISORY  READ  -1 08:02:500 0 EOF
not a lock line
";
        let find = |dev, inode, exact| find_flocks(locks, dev, inode, exact).next();
        assert_eq!(find((0xfe, 0x0a), 200, true), Some(Some(22)));
        assert_eq!(find((0xfe, 0x0b), 200, true), None);
        assert_eq!(find((0, 99), 200, false), Some(Some(22)));
        assert_eq!(find((8, 2), 100, true), None, "another kind of lock");
        assert_eq!(find((0xfe, 0x0a), 300, true), None, "a waiter holds nothing");
        assert_eq!(find((0, 0x2b), 400, true), Some(None), "its pid is hidden");
        assert_eq!(find((8, 2), 500, false), None);

        let mounts = "22 1 254:10 / / rw,relatime - ext4 /dev/root rw\n\
                      69 43 0:41 / / rw - overlay root rw,lowerdir=/\n";
        assert!(is_overlay(mounts, (0, 41)) && !is_overlay(mounts, (254, 10)));
        assert!(has_device(mounts, (254, 10)));
        assert!(!has_device(mounts, (254, 1)));
    }
}

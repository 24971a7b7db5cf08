//! The control path: where the incumbent listens and everybody else connects (R11, C6).
//!
//! A socket is bound under a staging name, and renamed into place only when its owner is the
//! one to be found there. Nobody unlinks the control path; a path that refuses connections says
//! "nobody serves" as well as a missing one does.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Pid;

/// `sun_path` of Linux, less the final NUL.
const SUN_PATH_MAX: usize = 107;
/// `.`, the digits of the largest pid Linux gives (4194304), `.staging`.
const STAGING_SUFFIX_MAX: usize = 1 + 7 + STAGING_END.len();
const STAGING_END: &str = ".staging";
const BACKLOG: i32 = 128;
const MODE: u32 = 0o600;

/// Device and inode of the sockets this process has staged and still holds.
static STAGED: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

fn staged() -> MutexGuard<'static, Vec<(u64, u64)>> {
    STAGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The path at which the incumbent of one daemon listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ControlPath {
    path: PathBuf,
    parent: PathBuf,
    name: OsString,
}

/// How long a control listener is left alone when a connection cannot be taken.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl ControlPath {
    /// Checks that a socket can be bound at `path` and under its staging names.
    ///
    /// A relative path is made absolute now, so that it means the same after a change of
    /// directory. Nothing is touched on disk. Errors say what is wrong with the path.
    pub fn new(path: PathBuf) -> Result<Self, ControlPathError> {
        if path.as_os_str().is_empty() {
            return Err(ControlPathError::Empty);
        }
        let given = path.as_os_str().as_bytes();
        let (true, false) = (!given.ends_with(b"/") && !given.ends_with(b"/."), given.contains(&0))
        else {
            return Err(ControlPathError::NotAFileName { path });
        };
        let path =
            std::path::absolute(&path).map_err(|e| ControlPathError::io(&path, "name", e))?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(ControlPathError::NotAFileName { path });
        };
        let len = path.as_os_str().len();
        let limit = SUN_PATH_MAX - STAGING_SUFFIX_MAX;
        if len > limit {
            return Err(ControlPathError::TooLong { path, len, limit });
        }
        Ok(Self { parent: parent.to_owned(), name: name.to_owned(), path })
    }

    /// Checks that there is a directory for the socket to be in. To be asked once, at the start: later
    /// it may come and go.
    ///
    /// # Errors
    ///
    /// It is missing, is no directory, or may not be looked at.
    pub fn check_directory(&self) -> Result<(), ControlPathError> {
        let problem = match fs::metadata(&self.parent) {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => io::ErrorKind::NotADirectory.into(),
            Err(error) => error,
        };
        Err(ControlPathError::io(&self.parent, "look at the directory of", problem))
    }

    /// The absolute path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.path
    }

    /// Binds a listening socket under the staging name, where nobody looks for it yet (R6, R11).
    ///
    /// The socket has mode 0600 from its first instant, is close-on-exec and non-blocking. A
    /// leftover of an earlier staging by this process is replaced: only the last socket staged
    /// for a path can be published.
    pub fn stage(&self) -> Result<ControlSocket, ControlPathError> {
        let staging = self.staging_path(std::process::id());
        let io = |what, e: io::Error| ControlPathError::io(&staging, what, e);
        match fs::remove_file(&staging) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io("remove", e)),
            _ => {}
        }
        let socket = stream_socket().map_err(|e| io("make", e))?;
        // The mode of the socket, before it has a name, is the mode of the file that bind makes:
        // there is no instant in which others could connect.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(MODE))
            .map_err(|e| io("chmod", e.into()))?;
        let address = SocketAddrUnix::new(&staging).map_err(|e| io("bind", e.into()))?;
        rustix::net::bind(&socket, &address).map_err(|e| io("bind", e.into()))?;

        let stat = rustix::fs::lstat(&staging).map_err(|e| io("find", e.into()))?;
        let id = (stat.st_dev, stat.st_ino);
        staged().push(id);
        let control = ControlSocket { listener: socket.into(), id, path: self.clone(), staging };
        let io = |what, e: io::Error| ControlPathError::io(&control.staging, what, e);
        // The umask may have taken away bits that are wanted.
        if stat.st_mode & 0o777 != MODE {
            rustix::fs::chmod(&control.staging, Mode::from_raw_mode(MODE))
                .map_err(|e| io("chmod", e.into()))?;
        }
        rustix::net::listen(&control.listener, BACKLOG).map_err(|e| io("listen on", e.into()))?;
        Ok(control)
    }

    /// Removes staging sockets whose process is gone, and nothing else (R6).
    ///
    /// For the holder of the data directory's lock, and for who has reaped a process. Of this process's
    /// own sockets those still in use stay. What cannot be removed is logged and left.
    pub fn remove_stale(&self) {
        let entries = match fs::read_dir(&self.parent) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::debug!(dir = %self.parent.display(), %error, "cannot look for stale sockets");
                return;
            }
        };
        for entry in entries.flatten() {
            let Some(pid) = self.staging_pid(&entry.file_name()) else {
                continue;
            };
            let path = entry.path();
            let Ok(stat) = rustix::fs::lstat(&path) else {
                continue;
            };
            let in_use = if pid == std::process::id() {
                staged().contains(&(stat.st_dev, stat.st_ino))
            } else {
                is_alive(pid)
            };
            if in_use || FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
                continue;
            }
            match fs::remove_file(&path) {
                Ok(()) => tracing::debug!(path = %path.display(), "removed a stale staging socket"),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a stale staging socket");
                }
            }
        }
    }

    /// Connects to whoever listens at the path, within `timeout`.
    ///
    /// A full backlog is waited out, which is the only thing that takes time: a missing path
    /// (`NotFound`) or one nobody listens at (`ConnectionRefused`) is reported at once, a backlog
    /// that stays full as `TimedOut`. The stream is non-blocking and close-on-exec.
    pub fn connect(&self, timeout: Duration) -> io::Result<UnixStream> {
        let address = SocketAddrUnix::new(&self.path)?;
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let socket = stream_socket()?;
            match rustix::net::connect(&socket, &address) {
                Ok(()) => return Ok(socket.into()),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
            // A Unix socket has no connection under way that could be polled for.
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "the process listening on {} does not accept connections",
                        self.path.display()
                    ),
                ));
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Watches what happens to the path's name, from now on (R11).
    ///
    /// # Errors
    ///
    /// The directory is missing, or the system gives no more watches.
    pub fn watch(&self) -> io::Result<PathWatch> {
        let inotify =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let watch = PathWatch { inotify, path: self.clone() };
        watch.renew()?;
        Ok(watch)
    }

    pub(crate) fn staging_path(&self, pid: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string().into_vec();
        path.extend_from_slice(format!(".{pid}{STAGING_END}").as_bytes());
        OsString::from_vec(path).into()
    }

    /// The path that a staging name is for, if it is one.
    pub(crate) fn unstaged(name: &str) -> Option<&str> {
        let (path, pid) = name.strip_suffix(STAGING_END)?.rsplit_once('.')?;
        let named = !path.is_empty() && !path.ends_with('/');
        (named && !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit())).then_some(path)
    }

    fn staging_pid(&self, name: &OsStr) -> Option<u32> {
        let digits = name
            .as_bytes()
            .strip_prefix(self.name.as_bytes())?
            .strip_prefix(b".")?
            .strip_suffix(STAGING_END.as_bytes())?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        std::str::from_utf8(digits).ok()?.parse().ok()
    }
}

/// Tells when a control path was removed or replaced, by whomever.
///
/// Its descriptor is readable when there is something to take in.
#[derive(Debug)]
pub struct PathWatch {
    inotify: OwnedFd,
    path: ControlPath,
}

impl PathWatch {
    /// Watches the directory that has the control path's name now. Nothing happens if that is the one
    /// that is watched already.
    ///
    /// # Errors
    ///
    /// As [`ControlPath::watch`].
    pub fn renew(&self) -> io::Result<()> {
        // A directory that is removed was emptied before.
        let flags = WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVE_SELF;
        Ok(inotify::add_watch(&self.inotify, &self.path.parent, flags).map(drop)?)
    }

    /// Takes in some of what is told; whether it was about the control path, or about all of its
    /// directory. Staging names and other files there are not.
    pub fn changed(&self) -> bool {
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut room);
        let mut changed = false;
        while let Ok(event) = events.next() {
            let name = event.file_name().map(|name| name.to_bytes());
            changed |= name.is_none_or(|name| name == self.path.name.as_bytes());
            if events.is_buffer_empty() {
                break;
            }
        }
        changed
    }
}

impl AsFd for PathWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// A listening control socket, staged or published.
///
/// Dropping it ends the listening for every copy of the descriptor, and removes the staging name
/// if it was never published; the control path itself is left alone and refuses from then on (R11).
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    id: (u64, u64),
    path: ControlPath,
    staging: PathBuf,
}

impl ControlSocket {
    /// The listening socket, in non-blocking mode. Connections may arrive once it is published.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The control path this socket is meant for.
    #[must_use]
    pub fn path(&self) -> &ControlPath {
        &self.path
    }

    /// Device and inode of the socket's file.
    #[must_use]
    pub fn device_and_inode(&self) -> (u64, u64) {
        self.id
    }

    /// Whether the control path leads to this very socket.
    ///
    /// `false` also if the path cannot be looked at.
    #[must_use]
    pub fn leads_here(&self) -> bool {
        rustix::fs::stat(self.path.as_path())
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.id)
    }

    /// Renames the socket into place, over whatever is there (R11).
    ///
    /// Nothing happens if the path leads here already. [`ControlPathError::Lost`] means that
    /// somebody removed the file under its staging name, or the control path after it was
    /// published: the socket cannot be reached any more, [`ControlPath::stage`] a new one.
    pub fn publish(&self) -> Result<(), ControlPathError> {
        if self.leads_here() {
            return Ok(());
        }
        if !self.is_staged() {
            return Err(self.lost());
        }
        match fs::rename(&self.staging, self.path.as_path()) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(self.lost()),
            Err(e) => return Err(ControlPathError::io(self.path.as_path(), "rename to", e)),
        }
        if self.leads_here() { Ok(()) } else { Err(self.lost()) }
    }

    fn is_staged(&self) -> bool {
        rustix::fs::lstat(&self.staging).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.id)
    }

    /// Takes the next connection, if one waits.
    ///
    /// # Errors
    ///
    /// [`ACCEPT_PAUSE`] is how long to leave the listener alone after one: it is a shortage, and the
    /// connection that waits keeps the listener readable.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn lost(&self) -> ControlPathError {
        ControlPathError::Lost { path: self.path.path.clone() }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // By shutting down, not only by closing: a forked child may share the descriptor, and
        // would keep the path looking as if somebody served.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if self.is_staged() {
            let _ = fs::remove_file(&self.staging);
        }
        let mut staged = staged();
        if let Some(at) = staged.iter().position(|id| *id == self.id) {
            staged.swap_remove(at);
        }
    }
}

pub(crate) fn stream_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?)
}

/// When in doubt, alive.
fn is_alive(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    !matches!(rustix::process::test_kill_process(pid), Err(Errno::SRCH))
}

/// What is wrong with a control path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlPathError {
    /// No path was given.
    #[error("the control path is empty; give the path of a socket file")]
    Empty,
    /// The path cannot be that of a socket file.
    #[error(
        "the control path {path:?} does not end in a file name; give the path of a socket file"
    )]
    NotAFileName {
        /// The path as given.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error(
        "the control path {} has {len} bytes and the limit is {limit} (a Unix socket address holds \
         {SUN_PATH_MAX}, and a staging name must fit as well); choose a shorter one, under /run for example",
        path.display()
    )]
    TooLong {
        /// The path, made absolute.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
        /// The longest that would do.
        limit: usize,
    },
    /// The socket's file was removed or replaced by somebody: stage a new one.
    #[error("somebody removed the socket meant for {}; it has to be bound again", path.display())]
    Lost {
        /// The control path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {what} the control socket {}: {source}", path.display())]
    Io {
        /// The file it was about.
        path: PathBuf,
        /// What was to be done with it.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl ControlPathError {
    fn io(path: &Path, what: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), what, source }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::process::Command;

    use super::*;
    use crate::test_dir::scratch;

    const SOON: Duration = Duration::from_secs(5);

    fn control(dir: &tempfile::TempDir) -> ControlPath {
        ControlPath::new(dir.path().join("control sock")).unwrap()
    }

    fn names(dir: &tempfile::TempDir) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn r11_a_watch_tells_of_the_control_path_only() {
        let dir = scratch();
        let control = control(&dir);
        let watch = control.watch().unwrap();
        let socket = control.stage().unwrap();
        let other = dir.path().join("other");
        fs::write(&other, "").unwrap();
        fs::remove_file(&other).unwrap();
        assert!(!watch.changed());
        socket.publish().unwrap();
        assert!(watch.changed());
        assert!(!watch.changed());
        fs::remove_file(control.as_path()).unwrap();
        assert!(watch.changed());
    }

    #[test]
    fn r11_staged_then_renamed_into_place() {
        let dir = scratch();
        let control = control(&dir);
        let socket = control.stage().unwrap();
        let staging = format!("control sock.{}.staging", std::process::id());
        assert_eq!(names(&dir), [staging.as_str()]);
        assert!(!socket.leads_here());
        let refused = control.connect(SOON).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);

        socket.publish().unwrap();
        assert_eq!(names(&dir), ["control sock"]);
        assert!(socket.leads_here());
        socket.publish().unwrap();
        let client = control.connect(SOON).unwrap();
        socket.listener().accept().unwrap();
        assert!(is_nonblocking(&client) && is_nonblocking(socket.listener()));

        let shared = socket.listener().try_clone().unwrap();
        drop(socket);
        assert_eq!(names(&dir), ["control sock"], "nobody unlinks it on exit");
        let refused = control.connect(SOON).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        drop(shared);
    }

    fn is_nonblocking(fd: &impl std::os::fd::AsFd) -> bool {
        rustix::fs::fcntl_getfl(fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK)
    }

    #[test]
    fn r11_the_newer_socket_takes_the_path_over() {
        let dir = scratch();
        let control = control(&dir);
        let old = control.stage().unwrap();
        old.publish().unwrap();
        let new = control.stage().unwrap();
        assert!(old.leads_here() && !new.leads_here());
        assert_ne!(old.device_and_inode(), new.device_and_inode());
        new.publish().unwrap();
        assert!(new.leads_here() && !old.leads_here());
        assert!(matches!(old.publish(), Err(ControlPathError::Lost { .. })));
        control.connect(SOON).unwrap();
        new.listener().accept().unwrap();
    }

    #[test]
    fn r11_mode_0600_has_no_race() {
        let dir = scratch();
        let mode = |path: &Path| {
            let meta = fs::symlink_metadata(path).unwrap();
            assert!(meta.file_type().is_socket());
            meta.permissions().mode() & 0o777
        };
        // What stage() relies on: bind makes the file with the mode the socket has.
        let path = dir.path().join("bare");
        let socket = stream_socket().unwrap();
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600)).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        assert_eq!(mode(&path), 0o600);

        let control = control(&dir);
        let socket = control.stage().unwrap();
        assert_eq!(mode(&socket.staging), 0o600);
        socket.publish().unwrap();
        assert_eq!(mode(control.as_path()), 0o600);
    }

    #[test]
    fn r11_a_removed_socket_is_lost_and_can_be_staged_again() {
        let dir = scratch();
        let control = control(&dir);
        let socket = control.stage().unwrap();
        fs::remove_file(&socket.staging).unwrap();
        assert!(matches!(socket.publish(), Err(ControlPathError::Lost { .. })));

        let socket = control.stage().unwrap();
        socket.publish().unwrap();
        fs::remove_file(control.as_path()).unwrap();
        assert!(!socket.leads_here());
        let error = socket.publish().unwrap_err();
        assert!(matches!(error, ControlPathError::Lost { .. }), "{error}");

        let again = control.stage().unwrap();
        again.publish().unwrap();
        assert!(again.leads_here());
    }

    #[test]
    fn r6_a_socket_that_was_never_published_leaves_no_trace() {
        let dir = scratch();
        drop(control(&dir).stage().unwrap());
        assert!(names(&dir).is_empty());
    }

    #[test]
    fn r6_only_stale_staging_sockets_are_removed() {
        let dir = scratch();
        let control = control(&dir);
        let mut alive = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let mut dead = Command::new("/bin/true").spawn().unwrap();
        dead.wait().unwrap();
        let me = std::process::id();
        let bind = |name: String| drop(UnixListener::bind(dir.path().join(name)).unwrap());
        bind(format!("control sock.{}.staging", dead.id()));
        bind(format!("control sock.{}.staging", alive.id()));
        bind(format!("control sock.{me}.staging"));
        bind(format!("other.{}.staging", dead.id()));
        bind("control sock.x1.staging".into());
        bind("control sock".into());
        fs::write(dir.path().join("control sock.4194303.staging"), "not a socket").unwrap();

        control.remove_stale();
        let mut expected = vec![
            "control sock".to_owned(),
            "control sock.4194303.staging".into(),
            format!("control sock.{}.staging", alive.id()),
            "control sock.x1.staging".into(),
            format!("other.{}.staging", dead.id()),
        ];
        expected.sort();
        assert_eq!(names(&dir), expected);

        let socket = control.stage().unwrap();
        control.remove_stale();
        assert!(socket.is_staged(), "in use");
        alive.kill().unwrap();
        alive.wait().unwrap();
    }

    #[test]
    fn c6_connect_does_not_outlive_its_timeout_on_a_full_backlog() {
        let dir = scratch();
        let control = control(&dir);
        let socket = control.stage().unwrap();
        socket.publish().unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match control.connect(Duration::from_millis(30)) {
                Ok(stream) => waiting.push(stream),
                Err(e) => break e,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
        assert!(!waiting.is_empty() && waiting.len() <= BACKLOG as usize + 1);

        // Room is used as soon as there is some.
        std::thread::scope(|scope| {
            let late = scope.spawn(|| control.connect(SOON));
            socket.listener().accept().unwrap();
            late.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_path_that_cannot_be_bound_is_refused_with_the_reason() {
        let text = |path: &str| ControlPath::new(path.into()).unwrap_err().to_string();
        assert!(text("").contains("empty"));
        assert!(text("/").contains("file name"));
        assert!(text("/run/").contains("file name"));
        assert!(text("/run/..").contains("file name"));
        assert!(text("/run/a\0b").contains("file name"));
        let long = format!("/run/{}", "x".repeat(87));
        let said = text(&long);
        assert!(said.contains("92 bytes") && said.contains("limit is 91"), "{said}");

        let longest = ControlPath::new(long[..91].into()).unwrap();
        SocketAddrUnix::new(longest.staging_path(4_194_304)).unwrap();
        let relative = ControlPath::new("a/control".into()).unwrap();
        assert!(relative.as_path().is_absolute() && relative.as_path().ends_with("a/control"));
    }
}

//! What a supervisor says to systemd, and gets from it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use handoff_unix::inherit::{InheritError, Inherited};
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr,
};
use sd_notify::NotifyState;

use crate::sockets::Origin;

/// What the names of stored listeners begin with, so that they are told from those of a socket unit.
const KEPT: &str = "kept.";
/// How long a systemd that does not read is waited for.
const PATIENCE: Duration = Duration::from_millis(250);

/// The line to systemd. Where a supervisor was not started by it, nothing happens.
///
/// What cannot be said is logged, once, and stops nothing. The main process is always this one, so systemd is
/// never told of another.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    line: Option<Line>,
    watchdog: Option<Duration>,
    complained: AtomicBool,
}

#[derive(Debug)]
struct Line {
    socket: UnixDatagram,
    to: SocketAddrUnix,
}

impl Systemd {
    /// From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`. They stay in the environment:
    /// [`spawn`](handoff_unix::spawn::spawn) clears them for the daemon.
    pub(crate) fn from_env() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty());
        Self::new(socket, sd_notify::watchdog_enabled())
    }

    fn new(socket: Option<OsString>, watchdog: Option<Duration>) -> Self {
        let line = socket.and_then(|socket| {
            let failed = |error| {
                tracing::warn!(?socket, %error, "cannot talk to systemd; check NOTIFY_SOCKET");
            };
            Line::to(&socket).map_err(failed).ok()
        });
        let watchdog = watchdog.filter(|time| !time.is_zero());
        Self { line, watchdog, complained: AtomicBool::new(false) }
    }

    /// A daemon serves, after a start, a reload or a handoff that failed.
    pub(crate) fn ready(&self, status: &str) {
        self.say(&[NotifyState::Ready, NotifyState::Status(&one_line(status))], None);
    }

    /// What goes on, for `systemctl status`.
    pub(crate) fn status(&self, status: &str) {
        self.say(&[NotifyState::Status(&one_line(status))], None);
    }

    /// A handoff begins. [`ready`](Self::ready) must follow, however it ends.
    pub(crate) fn reloading(&self) {
        let mut states = vec![NotifyState::Reloading];
        states.extend(NotifyState::monotonic_usec_now());
        self.say(&states, None);
    }

    /// The supervisor stops.
    pub(crate) fn stopping(&self) {
        self.say(&[NotifyState::Stopping], None);
    }

    /// How often to [`beat`](Self::beat), if at all: twice in the time after which systemd ends this process.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|time| time / 2)
    }

    /// This process is well.
    pub(crate) fn beat(&self) {
        self.say(&[NotifyState::Watchdog], None);
    }

    /// Has systemd keep a listener, for the supervisor that comes after this one (R10). It keeps as many as
    /// `FileDescriptorStoreMax=` says; the same one twice is one.
    pub(crate) fn store(&self, name: &str, fd: impl AsFd) {
        let name = format!("FDNAME={KEPT}{name}");
        // A listener is not watched for hanging up, which would remove it from the store.
        let states = ["FDSTORE=1", &name, "FDPOLL=0"].map(NotifyState::Custom);
        self.say(&states, Some(fd.as_fd()));
    }

    /// Has systemd forget what it keeps under a name.
    pub(crate) fn unstore(&self, name: &str) {
        let name = format!("FDNAME={KEPT}{name}");
        self.say(&["FDSTOREREMOVE=1", &name].map(NotifyState::Custom), None);
    }

    fn say(&self, states: &[NotifyState<'_>], fd: Option<BorrowedFd<'_>>) {
        let Some(line) = &self.line else { return };
        if let Err(error) = line.say(states, fd)
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, "systemd cannot be told what goes on; this is not said again");
        }
    }
}

impl Line {
    fn to(socket: &OsStr) -> io::Result<Self> {
        let to = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            [b'/', ..] => SocketAddrUnix::new(socket)?,
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "it is no Unix socket")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, to })
    }

    /// As `sd_notify::notify_with_fds`, which would wait for as long as systemd does not read.
    fn say(&self, states: &[NotifyState<'_>], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fd) = &fd {
            control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
        }
        let text = [IoSlice::new(text.as_bytes())];
        rustix::io::retry_on_intr(|| {
            sendmsg_addr(&self.socket, &self.to, &text, &mut control, SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }
}

/// A message has a line for each thing it says.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// The sockets that this process was started with, each with its name and where it comes from: a socket
/// unit, or what [`Systemd::store`] had put away. Once in a process, early in `main`.
///
/// # Errors
///
/// As [`Inherited::from_env`].
pub(crate) fn given() -> Result<Vec<(String, OwnedFd, Origin)>, InheritError> {
    let mut inherited = Inherited::from_env()?;
    let names: Vec<String> = inherited.names().map(str::to_owned).collect();
    let take = |name: String| {
        let fd = inherited.take_fd(&name)?;
        Some(match name.strip_prefix(KEPT) {
            Some(kept) => (kept.to_owned(), fd, Origin::FdStore),
            None => (name, fd, Origin::Systemd),
        })
    };
    Ok(names.into_iter().filter_map(take).collect())
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::net::TcpListener;
    use std::time::Instant;

    use handoff_unix::process::ExitCause;
    use handoff_unix::sockets;
    use handoff_unix::spawn::{Launch, SpawnRole, spawn};
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use tempfile::TempDir;

    use super::*;

    /// What systemd has: a socket in a directory of its own.
    struct Manager {
        dir: TempDir,
        socket: UnixDatagram,
    }

    impl Manager {
        fn start() -> Self {
            let dir = tempfile::Builder::new().prefix("handoff systemd ").tempdir().unwrap();
            let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            Self { dir, socket }
        }

        fn path(&self) -> OsString {
            self.dir.path().join("notify").into()
        }

        fn line(&self) -> Systemd {
            Systemd::new(Some(self.path()), None)
        }

        /// The next message, and the inodes of the sockets that came with it.
        fn hears(&self) -> (String, Vec<u64>) {
            let (mut text, mut space) =
                ([0; 4096], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))]);
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut text)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(&self.socket, &mut parts, &mut control, flags).unwrap();
            let mut inodes = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    inodes.extend(fds.map(|fd| sockets::inode(fd).unwrap()));
                }
            }
            let text = std::str::from_utf8(&text[..received.bytes]).unwrap();
            (text.trim_end().replace('\n', " | "), inodes)
        }

        fn hears_text(&self) -> String {
            let (text, fds) = self.hears();
            assert!(fds.is_empty());
            text
        }
    }

    #[test]
    fn systemd_is_told_what_goes_on() {
        let manager = Manager::start();
        let systemd = manager.line();
        systemd.ready("process 7 serves");
        assert_eq!(manager.hears_text(), "READY=1 | STATUS=process 7 serves");
        systemd.reloading();
        let text = manager.hears_text();
        let usec = text.strip_prefix("RELOADING=1 | MONOTONIC_USEC=").unwrap();
        assert!(usec.parse::<u64>().unwrap() > 0);
        systemd.status("drain\nMAINPID=1\r29 s left");
        assert_eq!(manager.hears_text(), "STATUS=drain MAINPID=1 29 s left");
        systemd.beat();
        assert_eq!(manager.hears_text(), "WATCHDOG=1");
        systemd.stopping();
        assert_eq!(manager.hears_text(), "STOPPING=1");
    }

    #[test]
    fn r10_systemd_keeps_listeners() {
        let manager = Manager::start();
        let systemd = manager.line();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        systemd.store("http", &socket);
        let inode = sockets::inode(&socket).unwrap();
        let expected = "FDSTORE=1 | FDNAME=kept.http | FDPOLL=0";
        assert_eq!(manager.hears(), (expected.into(), vec![inode]));
        systemd.unstore("http");
        assert_eq!(manager.hears_text(), "FDSTOREREMOVE=1 | FDNAME=kept.http");
    }

    #[test]
    fn an_abstract_socket_will_do() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("handoff systemd {}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Systemd::new(Some(format!("@{name}").into()), None).beat();
        let mut text = [0; 64];
        let len = socket.recv(&mut text).unwrap();
        assert_eq!(text[..len], *b"WATCHDOG=1\n");
    }

    #[test]
    fn without_systemd_nothing_happens() {
        let systemd = Systemd::default();
        systemd.ready("serves");
        systemd.store("http", TcpListener::bind("127.0.0.1:0").unwrap());
        assert_eq!(systemd.watchdog(), None);
    }

    #[test]
    fn a_systemd_that_is_not_there_or_does_not_read_stops_nothing() {
        let manager = Manager::start();
        let systemd = manager.line();
        let full = manager.line();
        // Each of them may have some messages on their way, until the queue is full.
        let sends = || {
            let other = UnixDatagram::unbound().unwrap();
            other.set_nonblocking(true).unwrap();
            std::iter::repeat(())
                .take_while(|()| other.send_to(b"X=1", manager.path()).is_ok())
                .count()
        };
        while sends() > 0 {}
        let start = Instant::now();
        full.beat();
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(full.complained.load(Ordering::Relaxed));

        drop(manager);
        systemd.ready("serves");
        systemd.beat();
        assert!(systemd.complained.load(Ordering::Relaxed));
        for strange in ["vsock:2:1", "relative", "/a\0b"] {
            assert!(Systemd::new(Some(strange.into()), None).line.is_none());
        }
    }

    #[test]
    fn the_watchdog_is_fed_twice_in_its_time() {
        let half = |time| Systemd::new(None, time).watchdog();
        assert_eq!(half(Some(Duration::from_secs(30))), Some(Duration::from_secs(15)));
        assert_eq!(half(Some(Duration::ZERO)), None);
        assert_eq!(half(None), None);
    }

    /// Starts this program again as systemd would, and returns what it says.
    fn service(manager: &Manager, sockets: &[(&str, &TcpListener)], watchdog_pid: &str) {
        let test = "systemd::tests::alone_in_a_service";
        let launch = Launch::new(env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env("NOTIFY_SOCKET", manager.path())
            .env("WATCHDOG_USEC", "20000000")
            .env("WATCHDOG_PID", watchdog_pid);
        let sockets: Vec<_> =
            sockets.iter().map(|(name, socket)| ((*name).to_owned(), socket.as_fd())).collect();
        let child = spawn(&launch, &sockets, SpawnRole::Cold).unwrap();
        child.pidfd.wait(None).unwrap();
        child.group.reap();
        assert_eq!(child.group.leader_status(), Some(ExitCause::Code(0)));
    }

    #[test]
    fn a_service_gets_its_sockets_and_its_line() {
        let manager = Manager::start();
        let [unit, kept] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        service(&manager, &[("http", &unit), ("kept.admin", &kept)], "");
        assert_eq!(manager.hears_text(), "READY=1 | STATUS=beats Some(10s)");
        let inodes = [&unit, &kept].map(|socket| sockets::inode(socket).unwrap());
        let hears = |name: &str, inode| {
            assert_eq!(manager.hears_text(), format!("STATUS=has {name}"));
            let (text, fds) = manager.hears();
            assert!(text.starts_with("FDSTORE=1"));
            assert_eq!(fds, [inode]);
        };
        hears("http systemd", inodes[0]);
        hears("admin fdstore", inodes[1]);

        // The watchdog of another process is not this one's.
        service(&manager, &[], "1");
        assert_eq!(manager.hears_text(), "READY=1 | STATUS=beats None");
    }

    #[test]
    #[ignore = "started by another test"]
    fn alone_in_a_service() {
        let systemd = Systemd::from_env();
        systemd.ready(&format!("beats {:?}", systemd.watchdog()));
        for (name, fd, origin) in given().unwrap() {
            systemd.status(&format!("has {name} {}", origin.name()));
            systemd.store(&name, fd);
        }
    }
}

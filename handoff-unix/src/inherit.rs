//! What a process was started with: listeners, role and control socket (R13).
//!
//! The conventions are systemd's: descriptors from 3, `LISTEN_FDS`, `LISTEN_FDNAMES`, and
//! `LISTEN_PID` if whoever set it knew the pid.

#![allow(unsafe_code, reason = "descriptors that are known by number only")]

use std::env;
use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketType, sockopt};

/// How many descriptors are passed.
pub const LISTEN_FDS: &str = "LISTEN_FDS";
/// Their names, separated by colons.
pub const LISTEN_FDNAMES: &str = "LISTEN_FDNAMES";
/// The process they are meant for.
pub const LISTEN_PID: &str = "LISTEN_PID";
/// What the process is to be; [`ROLE_SUCCESSOR`], or absent.
pub const HANDOFF_ROLE: &str = "HANDOFF_ROLE";
/// The number of the successor's control descriptor.
pub const HANDOFF_SOCK_FD: &str = "HANDOFF_SOCK_FD";
/// How many milliseconds the successor has until its Hello (C3).
pub const HANDOFF_HELLO_MS: &str = "HANDOFF_HELLO_MS";
/// The value of [`HANDOFF_ROLE`] for a successor.
pub const ROLE_SUCCESSOR: &str = "successor";
/// The first descriptor passed.
pub const FIRST_FD: RawFd = 3;

/// The name of a listener that was passed without one.
const UNNAMED: &str = "unknown";
/// More descriptors than this are a mistake, not a configuration.
const MAX_FDS: usize = 1 << 16;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Whether a process starts afresh or takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Nobody is asked to hand over.
    Cold,
    /// A supervisor started it to take over from a daemon that serves.
    Successor,
}

/// What the environment announces; no descriptor has been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The names of the listeners, the first of which is descriptor [`FIRST_FD`].
    pub names: Vec<String>,
    /// What the process is to be.
    pub role: Role,
    /// The control descriptor; always there for a successor.
    pub control: Option<RawFd>,
    /// The time until Hello, from the start of the process.
    pub hello_budget: Option<Duration>,
}

/// The descriptors this process inherited, and its role.
///
/// Whoever needs a listener takes it by name; dropping this closes what nobody took.
#[derive(Debug)]
pub struct Inherited {
    listeners: Vec<(String, OwnedFd)>,
    role: Role,
    control: Option<UnixStream>,
    hello_budget: Option<Duration>,
}

impl Inherited {
    /// Takes over what this process was started with. Once per process, early in `main`.
    ///
    /// Every announced descriptor is checked to be open, and made close-on-exec; `O_NONBLOCK`
    /// stays as it is, for it belongs to the open file that others accept on. Listeners are
    /// ignored, and not touched, if `LISTEN_PID` names another process. The variables stay in the
    /// environment: [`spawn`](crate::spawn::spawn) clears them for children.
    ///
    /// Errors say which variable or descriptor is wrong. A second call is
    /// [`InheritError::AlreadyTaken`], even after a failed first one: descriptors must not be
    /// owned twice.
    pub fn from_env() -> Result<Self, InheritError> {
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(InheritError::AlreadyTaken);
        }
        Self::adopt(Self::parse(|name| env::var_os(name), std::process::id())?)
    }

    /// Reads the announcement through `lookup` as the process `own_pid` would, and touches
    /// nothing.
    pub fn parse(
        lookup: impl Fn(&str) -> Option<OsString>,
        own_pid: u32,
    ) -> Result<Announced, InheritError> {
        // Set but empty is not set, as shells make it.
        let text = |name: &'static str| match lookup(name) {
            None => Ok(None),
            Some(value) if value.is_empty() => Ok(None),
            Some(value) => value
                .into_string()
                .map(Some)
                .map_err(|value| InheritError::variable(name, value, "text in UTF-8")),
        };
        let number = |name: &'static str, expected: &'static str| match text(name)? {
            None => Ok(None),
            Some(value) => match value.parse::<u64>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(InheritError::variable(name, value, expected)),
            },
        };

        let for_us = number(LISTEN_PID, "a pid")?.is_none_or(|pid| pid == u64::from(own_pid));
        if !for_us {
            tracing::debug!("LISTEN_PID names another process, inherited listeners are ignored");
        }
        let names = if for_us {
            let count = number(LISTEN_FDS, "a number of descriptors")?.unwrap_or(0);
            let count =
                usize::try_from(count).ok().filter(|count| *count <= MAX_FDS).ok_or_else(|| {
                    InheritError::variable(LISTEN_FDS, count.to_string(), "at most 65536")
                })?;
            match lookup(LISTEN_FDNAMES) {
                Some(names) if count > 0 => {
                    let names = names.into_string().map_err(|value| {
                        InheritError::variable(LISTEN_FDNAMES, value, "text in UTF-8")
                    })?;
                    let split: Vec<String> = names.split(':').map(str::to_owned).collect();
                    if split.len() != count {
                        return Err(InheritError::variable(
                            LISTEN_FDNAMES,
                            names,
                            "as many names as LISTEN_FDS says, separated by colons",
                        ));
                    }
                    split
                }
                _ => vec![UNNAMED.to_owned(); count],
            }
        } else {
            Vec::new()
        };

        let role = match text(HANDOFF_ROLE)?.as_deref() {
            None | Some("cold") => Role::Cold,
            Some(ROLE_SUCCESSOR) => Role::Successor,
            Some(other) => {
                let expected = "\"successor\", or to be absent";
                return Err(InheritError::variable(HANDOFF_ROLE, other, expected));
            }
        };
        let (mut control, mut hello_budget) = (None, None);
        // The descriptor of a process that is no successor is somebody else's number.
        if role == Role::Successor {
            let expected = "the number of a descriptor, from 3 and after the listeners";
            let fd = number(HANDOFF_SOCK_FD, expected)?.ok_or(InheritError::NoControl)?;
            control = Some(
                RawFd::try_from(fd)
                    .ok()
                    .filter(|fd| usize::try_from(fd - FIRST_FD).is_ok_and(|i| i >= names.len()))
                    .ok_or_else(|| {
                        InheritError::variable(HANDOFF_SOCK_FD, fd.to_string(), expected)
                    })?,
            );
            hello_budget = number(HANDOFF_HELLO_MS, "milliseconds")?.map(Duration::from_millis);
        }
        Ok(Announced { names, role, control, hello_budget })
    }

    /// Owns what was announced. Callers make sure that it happens once per process.
    fn adopt(announced: Announced) -> Result<Self, InheritError> {
        let fds = FIRST_FD..;
        for (fd, name) in fds.clone().zip(&announced.names) {
            rearm(fd, LISTEN_FDS, name)?;
        }
        if let Some(fd) = announced.control {
            rearm(fd, HANDOFF_SOCK_FD, "control")?;
        }
        let control = announced.control.map(|fd| {
            // SAFETY: it is open, it was passed to this process to be its own, and the flag in
            // `from_env` keeps it from being owned twice.
            (fd, unsafe { OwnedFd::from_raw_fd(fd) })
        });
        let listeners = fds
            .zip(announced.names)
            // SAFETY: as above.
            .map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) }))
            .collect();
        let control = match control {
            None => None,
            Some((fd, owned)) => {
                expect_kind(owned.as_fd(), Kind::Connected).map_err(|found| {
                    InheritError::WrongKind {
                        variable: HANDOFF_SOCK_FD,
                        fd,
                        name: "control".to_owned(),
                        expected: Kind::Connected.name(),
                        found,
                    }
                })?;
                Some(UnixStream::from(owned))
            }
        };
        Ok(Self { listeners, role: announced.role, control, hello_budget: announced.hello_budget })
    }

    /// What this process was started as.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// How long a successor has until its Hello, from its start; absent, it says it at once (C3).
    #[must_use]
    pub fn hello_budget(&self) -> Option<Duration> {
        self.hello_budget
    }

    /// The successor's control socket, once.
    pub fn take_control(&mut self) -> Option<UnixStream> {
        self.control.take()
    }

    /// Takes the first listener of that name, which must be a listening TCP socket.
    ///
    /// `Ok(None)` if there is none. One of another kind is an error and stays where it is. It may
    /// be in blocking or non-blocking mode.
    pub fn take_tcp(&mut self, name: &str) -> Result<Option<TcpListener>, InheritError> {
        Ok(self.take_kind(name, Kind::Tcp)?.map(TcpListener::from))
    }

    /// Takes the first listener of that name, which must be a listening Unix stream socket; as
    /// [`take_tcp`](Self::take_tcp) otherwise.
    pub fn take_unix(&mut self, name: &str) -> Result<Option<UnixListener>, InheritError> {
        Ok(self.take_kind(name, Kind::Unix)?.map(UnixListener::from))
    }

    /// Takes the first descriptor of that name, whatever it is.
    pub fn take_fd(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.listeners.iter().position(|(n, _)| n == name)?;
        Some(self.listeners.remove(at).1)
    }

    /// The names nobody has taken, in order of their descriptors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.listeners.iter().map(|(name, _)| name.as_str())
    }

    /// The descriptors nobody has taken, with their names.
    pub fn unclaimed(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.listeners.iter().map(|(name, fd)| (name.as_str(), fd.as_fd()))
    }

    /// Closes the descriptors nobody has taken.
    pub fn close_unclaimed(&mut self) {
        self.listeners.clear();
    }

    fn take_kind(&mut self, name: &str, kind: Kind) -> Result<Option<OwnedFd>, InheritError> {
        use std::os::fd::AsRawFd;
        let Some(at) = self.listeners.iter().position(|(n, _)| n == name) else {
            return Ok(None);
        };
        let fd = &self.listeners[at].1;
        expect_kind(fd.as_fd(), kind).map_err(|found| InheritError::WrongKind {
            variable: LISTEN_FDS,
            fd: fd.as_raw_fd(),
            name: name.to_owned(),
            expected: kind.name(),
            found,
        })?;
        Ok(Some(self.listeners.remove(at).1))
    }
}

/// What is wrong with what a process was started with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InheritError {
    /// [`Inherited::from_env`] was called before in this process.
    #[error("the inherited descriptors were taken before; take them once, early in main")]
    AlreadyTaken,
    /// A variable cannot be understood.
    #[error(
        "the variable {variable}={value:?} is wrong, expected {expected}; check what started this process"
    )]
    Variable {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: OsString,
        /// What it should be.
        expected: &'static str,
    },
    /// A successor was given no control socket.
    #[error(
        "HANDOFF_ROLE is \"successor\" but HANDOFF_SOCK_FD is not set; start it by its supervisor"
    )]
    NoControl,
    /// A descriptor that was announced is not open.
    #[error(
        "{variable} announces descriptor {fd} ({name}), which is not open: {source}; check what started this process"
    )]
    NotOpen {
        /// The variable that announces it.
        variable: &'static str,
        /// Its number.
        fd: RawFd,
        /// Its name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A descriptor is not what was asked for.
    #[error(
        "descriptor {fd} ({name}), announced by {variable}, should be {expected} and is {found}; check what started this process"
    )]
    WrongKind {
        /// The variable that announces it.
        variable: &'static str,
        /// Its number.
        fd: RawFd,
        /// Its name.
        name: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

impl InheritError {
    fn variable(
        variable: &'static str,
        value: impl Into<OsString>,
        expected: &'static str,
    ) -> Self {
        Self::Variable { variable, value: value.into(), expected }
    }
}

/// Makes a descriptor that must be open close-on-exec again.
fn rearm(fd: RawFd, variable: &'static str, name: &str) -> Result<(), InheritError> {
    // SAFETY: only used for fcntl, which reports a descriptor that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_getfd(borrowed)
        .and_then(|flags| rustix::io::fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC))
        .map_err(|e| InheritError::NotOpen {
            variable,
            fd,
            name: name.to_owned(),
            source: e.into(),
        })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Unix,
    Connected,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "a listening TCP socket",
            Self::Unix => "a listening Unix stream socket",
            Self::Connected => "a connected Unix stream socket",
        }
    }
}

/// `Err` says what it is instead.
fn expect_kind(fd: BorrowedFd<'_>, expected: Kind) -> Result<(), String> {
    let (Ok(domain), Ok(kind)) = (sockopt::socket_domain(fd), sockopt::socket_type(fd)) else {
        return Err("not a socket".to_owned());
    };
    let listening = sockopt::socket_acceptconn(fd).unwrap_or(false);
    let family = match domain {
        AddressFamily::INET | AddressFamily::INET6 => "TCP",
        AddressFamily::UNIX => "Unix stream",
        _ => "stream",
    };
    let found = match (family, kind, listening) {
        ("TCP", SocketType::STREAM, true) => Kind::Tcp,
        ("Unix stream", SocketType::STREAM, true) => Kind::Unix,
        ("Unix stream", SocketType::STREAM, false) => Kind::Connected,
        (_, SocketType::STREAM, listening) => {
            let not = if listening { "" } else { "not " };
            return Err(format!("a {family} socket that is {not}listening"));
        }
        (_, SocketType::DGRAM, _) => return Err("a datagram socket".to_owned()),
        _ => return Err("a socket of another type".to_owned()),
    };
    if found == expected { Ok(()) } else { Err(found.name().to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: u32 = 77;

    fn parse(vars: &[(&str, &str)]) -> Result<Announced, InheritError> {
        let lookup = |name: &str| {
            let found = vars.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Inherited::parse(lookup, ME)
    }

    fn names(vars: &[(&str, &str)]) -> Vec<String> {
        parse(vars).unwrap().names
    }

    #[test]
    fn r13_nothing_announced_is_a_cold_start() {
        let cold = Announced { names: vec![], role: Role::Cold, control: None, hello_budget: None };
        assert_eq!(parse(&[]).unwrap(), cold);
        assert_eq!(parse(&[("HANDOFF_ROLE", ""), ("LISTEN_FDS", "")]).unwrap(), cold);
        assert_eq!(parse(&[("HANDOFF_SOCK_FD", "9")]).unwrap(), cold);
    }

    #[test]
    fn r13_a_successor_is_told_all_of_it() {
        let vars = [
            ("LISTEN_FDS", "2"),
            ("LISTEN_FDNAMES", "http:admin"),
            ("HANDOFF_ROLE", "successor"),
            ("HANDOFF_SOCK_FD", "5"),
            ("HANDOFF_HELLO_MS", "60000"),
        ];
        let expected = Announced {
            names: vec!["http".into(), "admin".into()],
            role: Role::Successor,
            control: Some(5),
            hello_budget: Some(Duration::from_secs(60)),
        };
        assert_eq!(parse(&vars).unwrap(), expected);
    }

    #[test]
    fn r13_listeners_for_another_process_are_ignored() {
        let fds = ("LISTEN_FDS", "1");
        assert_eq!(names(&[fds]), ["unknown"]);
        assert_eq!(names(&[fds, ("LISTEN_PID", "77")]), ["unknown"]);
        assert!(names(&[fds, ("LISTEN_PID", "78")]).is_empty());
        // Even if they make no sense.
        assert!(names(&[("LISTEN_FDS", "x"), ("LISTEN_PID", "78")]).is_empty());
        assert!(names(&[("LISTEN_FDNAMES", "a:b")]).is_empty());
        assert_eq!(names(&[("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a:a")]), ["a", "a"]);
    }

    #[test]
    fn r13_what_makes_no_sense_is_refused_and_named() {
        let successor = ("HANDOFF_ROLE", "successor");
        let cases: [(&[(&str, &str)], &str); 11] = [
            (&[("LISTEN_FDS", "two")], "LISTEN_FDS=\"two\""),
            (&[("LISTEN_FDS", "-1")], "LISTEN_FDS"),
            (&[("LISTEN_FDS", "99999999")], "at most 65536"),
            (&[("LISTEN_FDS", "99999999999999999999999")], "LISTEN_FDS"),
            (&[("LISTEN_PID", "me")], "LISTEN_PID"),
            (&[("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "a")], "LISTEN_FDNAMES"),
            (&[("HANDOFF_ROLE", "king")], "HANDOFF_ROLE=\"king\""),
            (&[successor], "HANDOFF_SOCK_FD is not set"),
            (&[successor, ("HANDOFF_SOCK_FD", "2")], "HANDOFF_SOCK_FD=\"2\""),
            (&[successor, ("LISTEN_FDS", "1"), ("HANDOFF_SOCK_FD", "3")], "after the listeners"),
            (
                &[successor, ("HANDOFF_SOCK_FD", "3"), ("HANDOFF_HELLO_MS", "1s")],
                "HANDOFF_HELLO_MS",
            ),
        ];
        for (vars, expected) in cases {
            let said = parse(vars).unwrap_err().to_string();
            assert!(said.contains(expected), "{vars:?}: {said}");
        }
    }

    #[test]
    fn r13_kinds_are_told_apart() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let (unix, _peer) = UnixStream::pair().unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(expect_kind(tcp.as_fd(), Kind::Tcp), Ok(()));
        assert_eq!(expect_kind(unix.as_fd(), Kind::Connected), Ok(()));
        let found = |fd: BorrowedFd<'_>| expect_kind(fd, Kind::Unix).unwrap_err();
        assert_eq!(found(tcp.as_fd()), "a listening TCP socket");
        assert_eq!(found(client.as_fd()), "a TCP socket that is not listening");
        assert_eq!(found(unix.as_fd()), "a connected Unix stream socket");
        assert_eq!(found(udp.as_fd()), "a datagram socket");
        assert_eq!(found(file.as_fd()), "not a socket");
    }
}

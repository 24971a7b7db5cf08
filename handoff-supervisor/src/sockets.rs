//! The listeners: bound, or handed over by systemd, by the daemon, or by this process's former binary.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use handoff_unix::sockets::{self, Kind};
use serde::{Deserialize, Serialize};

use crate::config::{Address, Listener};
use crate::{admin, exit};

/// Where a listener came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// It was bound here.
    Bound,
    /// A socket unit of systemd.
    Systemd,
    /// The store of systemd, where a supervisor before this one had put it.
    FdStore,
    /// The daemon, by pidfd_getfd(2).
    Daemon,
    /// This process, before it put a new binary into itself.
    Reexec,
}

impl Origin {
    /// The word of [`admin::Listener::origin`].
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Systemd => "systemd",
            Self::FdStore => "fdstore",
            Self::Daemon => "daemon",
            Self::Reexec => "reexec",
        }
    }
}

/// As the subject of a sentence.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bound => "this supervisor",
            Self::Systemd => "the socket unit",
            Self::FdStore => "systemd's store",
            Self::Daemon => "the daemon",
            Self::Reexec => "the supervisor's former binary",
        })
    }
}

/// A listener that this supervisor holds.
#[derive(Debug)]
pub(crate) struct Held {
    /// Its name.
    pub name: String,
    /// As it is configured.
    pub listener: Listener,
    /// The socket, in the mode it came in (R13).
    pub fd: OwnedFd,
    /// Where it came from.
    pub origin: Origin,
}

impl Held {
    /// What `status` shows of it. What the system does not tell is left out.
    pub(crate) fn status(&self) -> admin::Listener {
        let queue = sockets::queue(&self.fd).ok().flatten();
        let address = sockets::describe(&self.fd).map(|is| is.address);
        admin::Listener {
            name: self.name.clone(),
            kind: kind(&self.listener.address).name().into(),
            address: address.unwrap_or_else(|_| place(&self.listener.address)),
            backlog: queue.map(|queue| queue.backlog),
            waiting: queue.map(|queue| queue.waiting),
            origin: self.origin.name().into(),
        }
    }

    /// How many connections wait to be accepted.
    pub(crate) fn waiting(&self) -> Option<u32> {
        sockets::queue(&self.fd).ok().flatten().map(|queue| queue.waiting)
    }

    /// By what it is found again.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub(crate) fn kept(&self) -> io::Result<Kept> {
        Ok(Kept { name: self.name.clone(), inode: sockets::inode(&self.fd)? })
    }
}

/// By what a supervisor that comes later finds a listener at the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Its name.
    pub name: String,
    /// The inode of its socket.
    pub inode: u64,
}

/// What became of the configured listeners.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// Those that were found or bound, in the configuration's order.
    pub held: Vec<Held>,
    /// The names of those that a daemon serves and nobody gave: no handoff without them (R10).
    pub missing: Vec<String>,
    /// What an operator should know, a sentence each.
    pub complaints: Vec<String>,
    /// Names under which systemd's store keeps what nobody wants: it should forget them, or clients go on
    /// connecting there. What is held is to be stored after that.
    pub forget: Vec<String>,
}

/// Why a supervisor cannot have its listeners.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// One cannot be bound.
    #[error("listener {name:?}: cannot bind {address}: {why}")]
    Bind {
        /// Its name.
        name: String,
        /// What was to be bound.
        address: String,
        /// What is wrong, and what to do.
        why: String,
        /// What it makes a verb exit with.
        exit: u8,
    },
    /// One that was given is another one than the configuration's.
    #[error(
        "listener {name:?}: {origin} passes {found}, and the configuration says {wanted}; \
         make them the same"
    )]
    Given {
        /// Its name.
        name: String,
        /// Who gave it.
        origin: Origin,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// A socket unit has a configured address under another name.
    #[error(
        "listener {name:?}: the socket unit passes {address} under the name {given:?}; \
         set FileDescriptorName={name} in it"
    )]
    Misnamed {
        /// The configured name.
        name: String,
        /// The name it was given under.
        given: String,
        /// The address.
        address: String,
    },
}

impl Trouble {
    /// What the supervisor exits with.
    pub(crate) fn exit(&self) -> u8 {
        match self {
            Self::Bind { exit, .. } => *exit,
            Self::Given { .. } | Self::Misnamed { .. } => exit::CONFIG,
        }
    }
}

/// Finds or binds the configured listeners.
///
/// A listener is, in this order: what was given under its name, if it is what the configuration says; what
/// `daemon`, which serves, has by the inode in `kept`; and only where no daemon serves, bound anew (R10), or
/// where `kept` has others and not this one, which then is a new one. Whatever else was given is closed, and
/// complained of.
///
/// # Errors
///
/// Only where no daemon serves: one cannot be bound, or a socket unit passes another one. Beside a daemon
/// that serves it is missing instead, and the daemon goes on.
pub(crate) fn gather(
    listeners: &[Listener],
    given: Vec<(String, OwnedFd, Origin)>,
    daemon: Option<u32>,
    kept: &[Kept],
) -> Result<Gathered, Trouble> {
    let mut gathered = Gathered::default();
    let mut given: Vec<Given> =
        given.into_iter().map(|(name, fd, origin)| Given { name, fd, origin }).collect();
    let inode = |name: &str| kept.iter().find(|kept| kept.name == name).map(|kept| kept.inode);
    let new = |name: &str| !kept.is_empty() && inode(name).is_none();
    let mut found = Vec::with_capacity(listeners.len());
    for listener in listeners {
        let mine = given.extract_if(.., |given| given.name == listener.name).collect();
        found.push(choose(listener, mine, inode(&listener.name), daemon, &mut gathered)?);
    }
    if let Some(pid) = daemon {
        let wanted = listeners.iter().zip(&mut found);
        let wanted = wanted.filter(|(listener, found)| found.is_none() && !new(&listener.name));
        let wanted = wanted.map(|(listener, found)| (listener, inode(&listener.name), found));
        from_daemon(pid, wanted.collect(), &mut gathered);
    }
    for (listener, found) in listeners.iter().zip(found) {
        match found {
            Some(held) => gathered.held.push(held),
            None if daemon.is_some() && !new(&listener.name) => {
                gathered.missing.push(listener.name.clone());
            }
            None => match bind(listener, &given) {
                Ok(held) => gathered.held.push(held),
                Err(trouble) if daemon.is_some() => {
                    gathered.complain(trouble);
                    gathered.missing.push(listener.name.clone());
                }
                Err(trouble) => return Err(trouble),
            },
        }
    }
    for Given { name, fd, origin } in given {
        gathered.complain(format_args!(
            "{origin} passes {} under the name {name:?}, which no listener has: it is closed; \
             configure a listener, or pass it no more",
            what(&fd)
        ));
        gathered.forget_if(origin, &name);
    }
    Ok(gathered)
}

struct Given {
    name: String,
    fd: OwnedFd,
    origin: Origin,
}

impl Gathered {
    fn complain(&mut self, complaint: impl fmt::Display) {
        self.complaints.push(complaint.to_string());
    }

    fn forget_if(&mut self, origin: Origin, name: &str) {
        // What a former binary held may be in the store as well.
        if matches!(origin, Origin::FdStore | Origin::Reexec)
            && !self.forget.iter().any(|known| known == name)
        {
            self.forget.push(name.into());
        }
    }
}

/// The right one among those that were given under a listener's name; the rest is closed.
fn choose(
    listener: &Listener,
    mut mine: Vec<Given>,
    inode: Option<u64>,
    daemon: Option<u32>,
    gathered: &mut Gathered,
) -> Result<Option<Held>, Trouble> {
    // Where several fit, the one that the daemon accepts on.
    mine.sort_by_key(|given| sockets::inode(&given.fd).ok() != inode);
    let mut chosen: Option<Held> = None;
    for Given { name, fd, origin } in mine {
        if !fits(&listener.address, &fd) {
            let (found, wanted) = (what(&fd), configured(&listener.address));
            if daemon.is_none() && origin != Origin::FdStore {
                return Err(Trouble::Given { name, origin, found, wanted });
            }
            gathered.complain(format_args!(
                "listener {name:?}: {origin} passes {found}, and the configuration says {wanted}: \
                 it is closed"
            ));
            gathered.forget_if(origin, &name);
            continue;
        }
        if let Some(chosen) = &chosen {
            // The same socket may well come both from its unit and from the store.
            if sockets::inode(&fd).ok() != sockets::inode(&chosen.fd).ok() {
                gathered.complain(format_args!(
                    "listener {name:?}: {} and {origin} pass a socket each: the second is closed",
                    chosen.origin
                ));
                gathered.forget_if(origin, &name);
            }
            continue;
        }
        if let Some(path) = lost(&listener.address) {
            let file = path.display();
            if daemon.is_none() {
                gathered.complain(format_args!(
                    "listener {name:?}: the socket that {origin} passes cannot be reached, since \
                     {file} is gone: it is bound anew"
                ));
                gathered.forget_if(origin, &name);
                continue;
            }
            gathered.complain(unreachable(&name, path));
        }
        chosen = Some(Held { name, listener: listener.clone(), fd, origin });
    }
    Ok(chosen)
}

/// Brings listeners out of the daemon, each with the inode it had.
fn from_daemon(
    pid: u32,
    wanted: Vec<(&Listener, Option<u64>, &mut Option<Held>)>,
    gathered: &mut Gathered,
) {
    let mut known = Vec::new();
    for (listener, inode, place) in wanted {
        match inode {
            Some(inode) => known.push((listener, inode, place)),
            None => gathered.complain(format_args!(
                "listener {:?}: nothing tells which socket of the daemon (process {pid}) it is; \
                 stop the daemon and start it again to have it bound",
                listener.name
            )),
        }
    }
    if known.is_empty() {
        return;
    }
    let inodes: Vec<u64> = known.iter().map(|(_, inode, _)| *inode).collect();
    let came = match sockets::fetch(pid, &inodes) {
        Ok(came) => came,
        Err(error) => return gathered.complain(error),
    };
    for ((listener, _, place), fd) in known.into_iter().zip(came) {
        let name = listener.name.clone();
        match fd {
            None => gathered.complain(format_args!(
                "listener {name:?}: the daemon (process {pid}) has its socket no more; \
                 stop the daemon and start it again to have it bound"
            )),
            Some(fd) if fits(&listener.address, &fd) => {
                if let Some(path) = lost(&listener.address) {
                    gathered.complain(unreachable(&name, path));
                }
                let (listener, origin) = (listener.clone(), Origin::Daemon);
                *place = Some(Held { name, listener, fd, origin });
            }
            Some(fd) => gathered.complain(format_args!(
                "listener {name:?}: the daemon (process {pid}) has {}, and the configuration says \
                 {}; stop the daemon and start it again to have that bound",
                what(&fd),
                configured(&listener.address)
            )),
        }
    }
}

fn unreachable(name: &str, path: &Path) -> String {
    format!(
        "listener {name:?}: no client finds it, since {} is gone; stop the daemon and start it \
         again to have it bound anew",
        path.display()
    )
}

fn kind(address: &Address) -> Kind {
    match address {
        Address::Tcp(_) => Kind::Tcp,
        Address::Udp(_) => Kind::Udp,
        Address::Unix { .. } => Kind::Unix,
    }
}

fn place(address: &Address) -> String {
    match address {
        Address::Tcp(address) | Address::Udp(address) => address.to_string(),
        Address::Unix { path, .. } => path.display().to_string(),
    }
}

fn configured(address: &Address) -> String {
    format!("{} {}", kind(address).name(), place(address))
}

fn what(fd: &OwnedFd) -> String {
    match sockets::describe(fd) {
        Ok(described) => described.to_string(),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            format!("something else ({error})")
        }
        Err(error) => format!("what cannot be looked at ({error})"),
    }
}

/// Whether a socket is the configured one. Port 0 is any port.
fn fits(address: &Address, fd: &OwnedFd) -> bool {
    let Ok(is) = sockets::describe(fd) else { return false };
    if is.kind != kind(address) || !(is.listening || is.kind == Kind::Udp) {
        return false;
    }
    match address {
        Address::Tcp(wanted) | Address::Udp(wanted) => {
            is.address.parse().is_ok_and(|bound: SocketAddr| {
                bound.ip() == wanted.ip() && [0, bound.port()].contains(&wanted.port())
            })
        }
        Address::Unix { path, .. } => {
            // One path may have several names, as /run and /var/run are one.
            let file = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
            let bound = Path::new(&is.address);
            bound == path
                || (bound.is_absolute() && file(bound).is_some_and(|f| file(path) == Some(f)))
        }
    }
}

/// The path of a Unix socket whose file is not there.
fn lost(address: &Address) -> Option<&Path> {
    match address {
        Address::Unix { path, .. } => {
            let there = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
            (!there).then_some(path)
        }
        _ => None,
    }
}

/// Binds a listener, unless a socket unit has its address under a name of its own.
fn bind(listener: &Listener, given: &[Given]) -> Result<Held, Trouble> {
    let name = listener.name.clone();
    let misnamed =
        given.iter().find(|g| g.origin == Origin::Systemd && fits(&listener.address, &g.fd));
    if let Some(other) = misnamed {
        let address = configured(&listener.address);
        return Err(Trouble::Misnamed { name, given: other.name.clone(), address });
    }
    let bound = match &listener.address {
        Address::Tcp(address) => sockets::bind_tcp(*address, listener.backlog),
        Address::Udp(address) => sockets::bind_udp(*address),
        Address::Unix { path, mode } => sockets::bind_unix(path, *mode, listener.backlog),
    };
    match bound {
        Ok(fd) => Ok(Held { name, listener: listener.clone(), fd, origin: Origin::Bound }),
        Err(error) => {
            let (why, exit) = explain(&listener.address, &error);
            Err(Trouble::Bind { name, address: configured(&listener.address), why, exit })
        }
    }
}

/// What is wrong and what to do, and what to exit with.
fn explain(address: &Address, error: &io::Error) -> (String, u8) {
    use io::ErrorKind as E;
    match (address, error.kind()) {
        (Address::Tcp(at) | Address::Udp(at), E::AddrInUse) => {
            let who = holder(kind(address), *at)
                .unwrap_or_else(|| "somebody (ss -lntup tells root who)".to_owned());
            let why = format!("{who} has it; stop that, or choose another address");
            (why, exit::TEMPORARY)
        }
        (Address::Unix { .. }, E::AddrInUse) => {
            (format!("{error}; stop that, or choose another path"), exit::TEMPORARY)
        }
        (Address::Tcp(at) | Address::Udp(at), E::PermissionDenied) => {
            let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
            let first = first.ok().and_then(|first| first.trim().parse().ok()).unwrap_or(1024);
            let why = if at.port() < first {
                format!(
                    "this user may not bind ports below {first}; choose a higher one, or give the \
                     supervisor CAP_NET_BIND_SERVICE (AmbientCapabilities= in its unit)"
                )
            } else {
                format!("{error}; look for what restricts this process, as SELinux")
            };
            (why, exit::PERMISSION)
        }
        (Address::Unix { path, .. }, E::PermissionDenied) => {
            let dir = path.parent().unwrap_or(path).display();
            let why = format!("this user may not write to {dir}; change its owner or permissions");
            (why, exit::PERMISSION)
        }
        (Address::Unix { path, .. }, E::NotFound) if path.parent().is_some_and(|p| !p.exists()) => {
            let dir = path.parent().unwrap_or(path).display();
            let why = format!(
                "there is no directory {dir}; create it, or have systemd do so (RuntimeDirectory=)"
            );
            (why, exit::NO_INPUT)
        }
        (_, E::AddrNotAvailable) => {
            let why = "it is no address of this machine; ip address lists those it has. If it \
                       comes up late, start the supervisor after network-online.target";
            (why.to_owned(), exit::UNAVAILABLE)
        }
        // These say themselves what to do.
        (Address::Unix { .. }, E::AlreadyExists | E::InvalidInput) => {
            (error.to_string(), exit::CONFIG)
        }
        _ => (error.to_string(), exit::IO),
    }
}

/// Who probably has an address, as far as this user may know.
fn holder(kind: Kind, address: SocketAddr) -> Option<String> {
    // Columns: number, local address, remote address, state, and in the tenth the inode.
    let (tables, state) = match kind {
        Kind::Tcp => (["tcp", "tcp6"], "0A"),
        _ => (["udp", "udp6"], "07"),
    };
    let port = format!(":{:04X}", address.port());
    let lines: String =
        tables.iter().filter_map(|t| fs::read_to_string(format!("/proc/net/{t}")).ok()).collect();
    let links: Vec<String> = lines
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .filter(|row| row.len() > 9 && row[1].ends_with(&port) && row[3] == state)
        .map(|row| format!("socket:[{}]", row[9]))
        .collect();
    let has_it = |process: &Path| {
        let fds = fs::read_dir(process.join("fd")).ok()?;
        let mut links_of = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        links_of
            .any(|link| links.iter().any(|wanted| link.as_os_str() == wanted.as_str()))
            .then_some(())
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        has_it(&entry.path())?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some(format!("process {pid} ({})", name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;

    use handoff_unix::process::Signal;
    use handoff_unix::spawn::{Child, Launch, SpawnRole, spawn};
    use tempfile::TempDir;

    use super::*;

    fn scratch() -> TempDir {
        tempfile::Builder::new().prefix("handoff sockets ").tempdir().unwrap()
    }

    fn listener(name: &str, address: Address) -> Listener {
        Listener { name: name.into(), address, backlog: Some(9) }
    }

    fn tcp(name: &str, address: SocketAddr) -> Listener {
        listener(name, Address::Tcp(address))
    }

    fn unix(name: &str, path: PathBuf) -> Listener {
        listener(name, Address::Unix { path, mode: 0o600 })
    }

    fn any_port() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    /// A listening TCP socket in blocking mode, and its address.
    fn passed() -> (OwnedFd, SocketAddr) {
        let socket = TcpListener::bind(any_port()).unwrap();
        let address = socket.local_addr().unwrap();
        (socket.into(), address)
    }

    fn given(name: &str, fd: &OwnedFd, origin: Origin) -> (String, OwnedFd, Origin) {
        (name.into(), fd.try_clone().unwrap(), origin)
    }

    /// A daemon that has these sockets, and its end when this is dropped.
    struct Daemon(Child);

    impl Daemon {
        fn with(sockets: &[&OwnedFd]) -> Self {
            let named: Vec<_> = sockets
                .iter()
                .enumerate()
                .map(|(i, fd)| (format!("listener {i}"), fd.as_fd()))
                .collect();
            Self(spawn(&Launch::new("/bin/sleep").arg("1000"), &named, SpawnRole::Cold).unwrap())
        }

        fn pid(&self) -> Option<u32> {
            Some(self.0.pid)
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            self.0.group.signal(Signal::KILL).unwrap();
            self.0.pidfd.wait(None).unwrap();
            self.0.group.reap();
        }
    }

    fn nonblocking(fd: &OwnedFd) -> bool {
        rustix::fs::fcntl_getfl(fd).unwrap().contains(rustix::fs::OFlags::NONBLOCK)
    }

    #[test]
    fn without_a_daemon_listeners_are_bound() {
        let dir = scratch();
        let path = dir.path().join("sock");
        let configured = [
            tcp("http", any_port()),
            unix("admin", path.clone()),
            listener("dns", Address::Udp(any_port())),
        ];
        let gathered = gather(&configured, vec![], None, &[]).unwrap();
        assert!(gathered.complaints.is_empty() && gathered.missing.is_empty());
        let _waits = UnixStream::connect(&path).unwrap();
        let status: Vec<_> = gathered.held.iter().map(Held::status).collect();
        let [http, admin, dns] = &status[..] else { panic!("{status:?}") };
        assert_eq!((http.name.as_str(), http.kind.as_str()), ("http", "tcp"));
        assert!(http.address.starts_with("127.0.0.1:") && !http.address.ends_with(":0"));
        assert_eq!((http.backlog, http.waiting), (Some(9), Some(0)));
        let expected = admin::Listener {
            name: "admin".into(),
            kind: "unix".into(),
            address: path.display().to_string(),
            backlog: Some(9),
            waiting: Some(1),
            origin: "bound".into(),
        };
        assert_eq!(*admin, expected);
        assert_eq!((dns.kind.as_str(), dns.backlog, dns.waiting), ("udp", None, None));
        assert_eq!(gathered.held[1].waiting(), Some(1));
        let kept = gathered.held[0].kept().unwrap();
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), kept);
    }

    #[test]
    fn r13_what_was_given_is_taken_in_the_mode_it_has() {
        let (socket, address) = passed();
        for daemon in [None, Some(std::process::id())] {
            let sockets = vec![given("http", &socket, Origin::Systemd)];
            let gathered = gather(&[tcp("http", address)], sockets, daemon, &[]).unwrap();
            assert!(gathered.complaints.is_empty(), "{:?}", gathered.complaints);
            let [held] = &gathered.held[..] else { panic!("{gathered:?}") };
            assert_eq!(held.origin, Origin::Systemd);
            assert_eq!(sockets::inode(&held.fd).unwrap(), sockets::inode(&socket).unwrap());
            assert!(!nonblocking(&held.fd));
        }
        // Any port is one of them.
        let sockets = vec![given("http", &socket, Origin::Reexec)];
        let gathered = gather(&[tcp("http", any_port())], sockets, None, &[]).unwrap();
        assert_eq!(gathered.held[0].status().origin, "reexec");
    }

    #[test]
    fn the_same_socket_from_unit_and_store_is_one() {
        let ((socket, address), (other, _)) = (passed(), passed());
        let sockets = || {
            vec![given("http", &socket, Origin::Systemd), given("http", &socket, Origin::FdStore)]
        };
        let gathered = gather(&[tcp("http", address)], sockets(), None, &[]).unwrap();
        assert!(gathered.complaints.is_empty() && gathered.forget.is_empty());
        assert_eq!(gathered.held[0].origin, Origin::Systemd);

        // Of several that fit, the one the daemon has.
        let mut sockets = sockets();
        sockets.push(given("http", &other, Origin::FdStore));
        let kept = Kept { name: "http".into(), inode: sockets::inode(&other).unwrap() };
        let daemon = Some(std::process::id());
        let gathered = gather(&[tcp("http", any_port())], sockets, daemon, &[kept]).unwrap();
        let inode = sockets::inode(&gathered.held[0].fd).unwrap();
        assert_eq!(inode, sockets::inode(&other).unwrap());
        assert_eq!(gathered.complaints.len(), 2);
        assert!(gathered.complaints[0].contains("systemd's store and the socket unit pass"));
    }

    #[test]
    fn a_wrong_socket_is_refused_and_both_are_named() {
        let ((socket, address), (_, configured)) = (passed(), passed());
        let both = |text: &str| {
            let (a, b) = (format!("tcp {address}"), format!("tcp {configured}"));
            assert!(text.contains(&a) && text.contains(&b) && text.contains("http"), "{text}");
        };
        let sockets = |origin| vec![given("http", &socket, origin)];
        let listeners = [tcp("http", configured)];
        let trouble = gather(&listeners, sockets(Origin::Systemd), None, &[]).unwrap_err();
        assert_eq!(trouble.exit(), exit::CONFIG);
        both(&trouble.to_string());

        // R10: a daemon that serves is adopted all the same, and only not handed off.
        let us = Some(std::process::id());
        let gathered = gather(&listeners, sockets(Origin::Systemd), us, &[]).unwrap();
        assert_eq!(gathered.missing, ["http"]);
        assert!(gathered.held.is_empty() && gathered.forget.is_empty());
        both(&gathered.complaints[0]);

        // What was stored before the configuration changed is to be forgotten.
        let gathered = gather(&listeners, sockets(Origin::FdStore), None, &[]).unwrap();
        assert_eq!(gathered.held[0].origin, Origin::Bound);
        assert_eq!(gathered.forget, ["http"]);
        both(&gathered.complaints[0]);
    }

    #[test]
    fn other_kinds_and_sockets_that_do_not_listen_are_wrong() {
        let dir = scratch();
        let (client, _server) = UnixStream::pair().unwrap();
        let udp = std::net::UdpSocket::bind(any_port()).unwrap();
        let at = Address::Unix { path: dir.path().join("sock"), mode: 0o600 };
        let file = fs::File::open("/dev/null").unwrap();
        for (fd, is) in [
            (client.into(), "unix unnamed, not listening"),
            (OwnedFd::from(udp), "udp 127.0.0.1:"),
            (file.into(), "something else (it is not a socket)"),
        ] {
            let sockets = vec![given("admin", &fd, Origin::Systemd)];
            let listeners = [listener("admin", at.clone())];
            let trouble = gather(&listeners, sockets, None, &[]).unwrap_err().to_string();
            assert!(trouble.contains(&format!("the socket unit passes {is}")), "{trouble}");
        }
    }

    #[test]
    fn a_path_by_another_name_is_the_same() {
        let dir = scratch();
        let alias = dir.path().join("alias");
        std::os::unix::fs::symlink(dir.path(), &alias).unwrap();
        let socket: OwnedFd = UnixListener::bind(alias.join("sock")).unwrap().into();
        let sockets = vec![given("admin", &socket, Origin::Systemd)];
        let listeners = [unix("admin", dir.path().join("sock"))];
        assert_eq!(gather(&listeners, sockets, None, &[]).unwrap().held.len(), 1);
    }

    #[test]
    fn a_unix_socket_whose_file_is_gone_is_bound_anew_or_complained_of() {
        let dir = scratch();
        let path = dir.path().join("sock");
        let socket: OwnedFd = UnixListener::bind(&path).unwrap().into();
        fs::remove_file(&path).unwrap();
        let listeners = [unix("admin", path.clone())];
        let sockets = || vec![given("admin", &socket, Origin::FdStore)];

        let us = Some(std::process::id());
        let gathered = gather(&listeners, sockets(), us, &[]).unwrap();
        assert_eq!(gathered.held[0].origin, Origin::FdStore);
        assert!(gathered.complaints[0].contains("no client finds it"));

        let gathered = gather(&listeners, sockets(), None, &[]).unwrap();
        assert_eq!(gathered.held[0].origin, Origin::Bound);
        assert!(gathered.complaints[0].contains("is gone: it is bound anew"));
        assert_eq!(gathered.forget, ["admin"]);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_no_listener_names_is_closed_and_complained_of() {
        let (socket, address) = passed();
        let stray = vec![
            given("handoff.socket", &socket, Origin::Systemd),
            given("old", &socket, Origin::FdStore),
        ];
        drop(socket);
        let gathered = gather(&[], stray, None, &[]).unwrap();
        let [unit, store] = &gathered.complaints[..] else { panic!("{gathered:?}") };
        let expected = format!(
            "the socket unit passes tcp {address} under the name \"handoff.socket\", which no listener \
             has: it is closed; configure a listener, or pass it no more"
        );
        assert_eq!(*unit, expected);
        assert!(store.starts_with("systemd's store passes"), "{store}");
        assert_eq!(gathered.forget, ["old"]);
        TcpStream::connect(address).unwrap_err();
    }

    #[test]
    fn a_socket_unit_without_the_listeners_name_is_told_to_have_it() {
        let (socket, address) = passed();
        let sockets = vec![given("handoff.socket", &socket, Origin::Systemd)];
        let trouble = gather(&[tcp("http", address)], sockets, None, &[]).unwrap_err();
        let text = trouble.to_string();
        assert!(text.contains("\"handoff.socket\"; set FileDescriptorName=http"), "{text}");
        assert_eq!(trouble.exit(), exit::CONFIG);
    }

    #[test]
    fn r10_listeners_come_back_from_the_daemon() {
        let dir = scratch();
        let path = dir.path().join("sock");
        let configured =
            [tcp("http", any_port()), unix("admin", path.clone()), tcp("new", any_port())];
        let before = gather(&configured[..2], vec![], None, &[]).unwrap();
        let kept: Vec<_> = before.held.iter().map(|held| held.kept().unwrap()).collect();
        let daemon = Daemon::with(&[&before.held[0].fd, &before.held[1].fd]);
        let address = before.held[0].status().address;
        drop(before);

        let gathered = gather(&configured, vec![], daemon.pid(), &kept).unwrap();
        let origins: Vec<_> =
            gathered.held.iter().map(|h| (h.name.as_str(), h.origin.name())).collect();
        // The daemon never had the last one, so that is not bound beside it.
        assert_eq!(origins, [("http", "daemon"), ("admin", "daemon"), ("new", "bound")]);
        assert_eq!(gathered.held[0].status().address, address);
        assert!(nonblocking(&gathered.held[0].fd));
        assert!(gathered.complaints.is_empty() && gathered.missing.is_empty(), "{gathered:?}");
        UnixStream::connect(&path).unwrap();

        // R10: never bound beside a daemon that serves, where it may be one of its own.
        let gathered = gather(&configured[2..], vec![], daemon.pid(), &[]).unwrap();
        assert_eq!(gathered.missing, ["new"]);
        let [complaint] = &gathered.complaints[..] else { panic!("{gathered:?}") };
        assert!(complaint.contains("\"new\": nothing tells which socket"), "{complaint}");
    }

    #[test]
    fn r10_what_the_daemon_does_not_have_is_missing() {
        let ((socket, address), (other, _)) = (passed(), passed());
        let daemon = Daemon::with(&[&socket]);
        let kept =
            |fd: &OwnedFd| [Kept { name: "http".into(), inode: sockets::inode(fd).unwrap() }];
        let gather = |address, daemon: Option<u32>, kept: &[Kept]| {
            let gathered = gather(&[tcp("http", address)], vec![], daemon, kept).unwrap();
            assert_eq!(gathered.missing, ["http"]);
            assert!(gathered.held.is_empty());
            gathered.complaints.join("\n")
        };
        let text = gather(address, daemon.pid(), &kept(&other));
        assert!(text.contains("has its socket no more; stop the daemon"), "{text}");

        let elsewhere = SocketAddr::from(([127, 0, 0, 2], 1));
        let text = gather(elsewhere, daemon.pid(), &kept(&socket));
        assert!(text.contains(&format!("has tcp {address}, and the configuration")), "{text}");

        let pid = daemon.pid();
        drop(daemon);
        let text = gather(address, pid, &kept(&socket));
        assert_eq!(text, format!("there is no process {}", pid.unwrap()));
    }

    #[test]
    fn what_cannot_be_bound_is_explained() {
        let dir = scratch();
        let trouble = |listener: Listener| {
            let trouble = gather(&[listener], vec![], None, &[]).unwrap_err();
            (trouble.to_string(), trouble.exit())
        };
        let says = |listener: Listener, parts: &[&str], code: u8| {
            let (text, exit) = trouble(listener);
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
            assert_eq!(exit, code, "{text}");
        };
        let (_socket, address) = passed();
        let me = format!("process {} (", std::process::id());
        let parts = [&format!("cannot bind tcp {address}: {me}"), ") has it; stop that"];
        says(tcp("http", address), &parts, exit::TEMPORARY);

        let socket = std::net::UdpSocket::bind(any_port()).unwrap();
        let udp = listener("dns", Address::Udp(socket.local_addr().unwrap()));
        says(udp, &[&me, "choose another address"], exit::TEMPORARY);

        let foreign = SocketAddr::from(([192, 0, 2, 1], 8080));
        says(tcp("http", foreign), &["no address of this machine"], exit::UNAVAILABLE);

        let at = |name: &str| unix("admin", dir.path().join(name));
        let _alive = UnixListener::bind(dir.path().join("alive")).unwrap();
        says(at("alive"), &["listens at", "choose another path"], exit::TEMPORARY);
        says(
            at("no/sock"),
            &["no directory", "/no; create it", "RuntimeDirectory="],
            exit::NO_INPUT,
        );
        fs::write(dir.path().join("file"), "").unwrap();
        says(at("file"), &["not a socket; remove it"], exit::CONFIG);
        if !rustix::process::geteuid().is_root() {
            says(
                tcp("http", SocketAddr::from(([127, 0, 0, 1], 1))),
                &["ports below"],
                exit::PERMISSION,
            );
            let closed = dir.path().join("closed");
            fs::create_dir(&closed).unwrap();
            fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
            says(at("closed/sock"), &["may not write to", "closed; change"], exit::PERMISSION);
        }
    }
}

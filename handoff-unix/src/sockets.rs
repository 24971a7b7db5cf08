//! Listening sockets: binding them, telling what they are and how many connections wait, and bringing
//! them back from the process that has them (R10).
//!
//! A socket is known by its inode, which names it for as long as any process has it open.

#![allow(unsafe_code, reason = "TCP_INFO has no safe wrapper")]

use std::fmt;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType,
    netlink, sockopt,
};
use rustix::process::PidfdGetfdFlags;

use crate::control::{ControlPath, ControlPathError, stream_socket};
use crate::peer::peer_credentials;
use crate::process::PidFd;

const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";
/// The system's maximum where it cannot be read: Linux's own default.
const USUAL_SOMAXCONN: u32 = 4096;

/// A listening TCP socket: non-blocking, close-on-exec, with `SO_REUSEADDR`.
///
/// `backlog` is how many connections may wait; `None` is the system's maximum, which also caps what is
/// asked for.
///
/// # Errors
///
/// What the system said: the address is in use, not one of this machine's, or not for this user.
pub fn bind_tcp(address: SocketAddr, backlog: Option<u32>) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, length(backlog))?;
    Ok(socket)
}

/// A bound UDP socket: non-blocking and close-on-exec.
///
/// # Errors
///
/// As [`bind_tcp`].
pub fn bind_udp(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A listening Unix stream socket at `path`: non-blocking, close-on-exec, its file with the permissions
/// `mode` from its first instant. `backlog` is as in [`bind_tcp`].
///
/// It is bound under a staging name in the same directory, and renamed into place when it listens: a
/// client finds the socket that was there or this one, and never one that refuses. What was left there by
/// a process that is gone is replaced.
///
/// # Errors
///
/// Beside what the system said: something that is not a socket has that name (`AlreadyExists`), or a socket
/// that somebody listens at (`AddrInUse`, which names the process), or the path is none for a socket
/// (`InvalidInput`). Nothing is left behind then.
pub fn bind_unix(path: &Path, mode: u32, backlog: Option<u32>) -> io::Result<OwnedFd> {
    let unfit = |e: ControlPathError| {
        io::Error::new(io::ErrorKind::InvalidInput, e.to_string().replace("control path", "path"))
    };
    let place = ControlPath::new(path.into()).map_err(unfit)?;
    let path = place.as_path();
    expect_free(path)?;
    place.remove_stale();
    let staging = place.staging_path(std::process::id());
    let socket = stream_socket()?;
    let mode = Mode::from_raw_mode(mode & 0o777);
    // The mode of the socket, before it has a name, is the mode of the file that bind makes.
    rustix::fs::fchmod(&socket, mode)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&staging)?)?;
    let placed = rustix::fs::lstat(&staging)
        // The umask may have taken away bits that are wanted.
        .and_then(|stat| match Mode::from_raw_mode(stat.st_mode & 0o777) == mode {
            true => Ok(()),
            false => rustix::fs::chmod(&staging, mode),
        })
        .and_then(|()| rustix::net::listen(&socket, length(backlog)))
        .map_err(io::Error::from)
        .and_then(|()| fs::rename(&staging, path));
    if placed.is_err() {
        let _ = fs::remove_file(&staging);
    }
    placed.map(|()| socket)
}

/// Whether a socket may be put at `path`: nothing is there, or a socket that nobody listens at.
fn expect_free(path: &Path) -> io::Result<()> {
    let kind = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(found) => found.file_type(),
    };
    if !kind.is_socket() {
        let what = match kind {
            _ if kind.is_dir() => "a directory",
            _ if kind.is_symlink() => "a symbolic link",
            _ => "a file that is not a socket",
        };
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{} is {what}; remove it, or choose another path", path.display()),
        ));
    }
    let socket = stream_socket()?;
    let who = match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(()),
        Ok(()) => match peer_credentials(&UnixStream::from(socket)) {
            Ok(peer) if peer.pid != 0 => format!("process {} listens", peer.pid),
            _ => "somebody listens".to_owned(),
        },
        Err(Errno::AGAIN) => "somebody listens, and does not accept connections,".to_owned(),
        Err(Errno::PROTOTYPE) => "somebody has a socket of another type".to_owned(),
        Err(Errno::ACCESS) => "another user has a socket, perhaps a stale one,".to_owned(),
        Err(e) => return Err(e.into()),
    };
    Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{who} at {}", path.display())))
}

/// A backlog for listen(2).
fn length(backlog: Option<u32>) -> i32 {
    let most = || fs::read_to_string(SOMAXCONN).ok()?.trim().parse().ok();
    let length = backlog.or_else(most).unwrap_or(USUAL_SOMAXCONN);
    i32::try_from(length).unwrap_or(i32::MAX)
}

/// The inode of a socket.
///
/// # Errors
///
/// It is no socket (`InvalidInput`).
pub fn inode(fd: impl AsFd) -> io::Result<u64> {
    let stat = rustix::fs::fstat(fd)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
        Ok(stat.st_ino)
    } else {
        Err(unlike("it is not a socket"))
    }
}

/// The kinds of sockets that a daemon is given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// A TCP socket.
    Tcp,
    /// A Unix stream socket.
    Unix,
    /// A UDP socket.
    Udp,
}

impl Kind {
    /// `tcp`, `unix` or `udp`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Udp => "udp",
        }
    }
}

/// What a socket is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Described {
    /// Its kind.
    pub kind: Kind,
    /// Where it is bound: address and port, the path, `@` and the abstract name, or nothing. Of a socket of
    /// [`bind_unix`] it is the path it was put at, not the staging name that the system knows.
    pub address: String,
    /// Whether connections come in at it. A UDP socket never listens.
    pub listening: bool,
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, address, listening } = self;
        let address = if address.is_empty() { "unnamed" } else { address };
        let not = if *listening || *kind == Kind::Udp { "" } else { ", not listening" };
        write!(f, "{} {address}{not}", kind.name())
    }
}

/// Tells what a socket is.
///
/// # Errors
///
/// It is no socket, or one of another kind (`InvalidInput`).
pub fn describe(fd: impl AsFd) -> io::Result<Described> {
    let fd = fd.as_fd();
    inode(fd)?;
    let kind = match (sockopt::socket_domain(fd)?, sockopt::socket_type(fd)?) {
        (AddressFamily::INET | AddressFamily::INET6, SocketType::STREAM) => Kind::Tcp,
        (AddressFamily::INET | AddressFamily::INET6, SocketType::DGRAM) => Kind::Udp,
        (AddressFamily::UNIX, SocketType::STREAM) => Kind::Unix,
        _ => return Err(unlike("it is neither a TCP, a UDP nor a Unix stream socket")),
    };
    let address = address(rustix::net::getsockname(fd)?);
    Ok(Described { kind, address, listening: sockopt::socket_acceptconn(fd)? })
}

fn address(name: SocketAddrAny) -> String {
    if let Ok(address) = SocketAddr::try_from(name.clone()) {
        return address.to_string();
    }
    let Ok(unix) = SocketAddrUnix::try_from(name) else {
        return String::new();
    };
    match (unix.path_bytes(), unix.abstract_name()) {
        (Some(path), _) => {
            let path = String::from_utf8_lossy(path);
            ControlPath::unstaged(&path).unwrap_or(&path).to_owned()
        }
        (None, Some(name)) if !name.is_empty() => format!("@{}", String::from_utf8_lossy(name)),
        _ => String::new(),
    }
}

/// The connections that wait at a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queue {
    /// How many wait to be accepted now.
    pub waiting: u32,
    /// How many may wait.
    pub backlog: u32,
}

/// How many connections wait at a listener now; `None` for a socket that does not listen.
///
/// It costs a few system calls.
///
/// # Errors
///
/// It is no socket of the kinds in [`Kind`], or the system does not tell: for a Unix socket it needs
/// netlink, which a sandbox may forbid.
pub fn queue(fd: impl AsFd) -> io::Result<Option<Queue>> {
    let fd = fd.as_fd();
    let inode = inode(fd)?;
    if !sockopt::socket_acceptconn(fd)? {
        return Ok(None);
    }
    match sockopt::socket_domain(fd)? {
        AddressFamily::UNIX => unix_queue(inode).map(Some),
        AddressFamily::INET | AddressFamily::INET6 => tcp_queue(fd).map(Some),
        _ => Err(unlike("it is neither a TCP nor a Unix stream socket")),
    }
}

fn tcp_queue(fd: impl AsFd) -> io::Result<Queue> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or(0);
    // SAFETY: the pointers are to room for a `tcp_info` and to its length, which the kernel respects.
    let rc = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is plain numbers, zero where the kernel wrote nothing.
    let info = unsafe { info.assume_init() };
    // What these two are for a socket that listens.
    Ok(Queue { waiting: info.tcpi_unacked, backlog: info.tcpi_sacked })
}

/// `struct nlmsghdr` and `struct unix_diag_req`, `struct unix_diag_msg`, `struct rtattr`.
mod diag {
    pub(super) const HEADER: usize = 16;
    pub(super) const REQUEST: u32 = 16 + 24;
    pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
    pub(super) const NLM_F_REQUEST: u16 = 1;
    pub(super) const NLMSG_ERROR: u16 = 2;
    pub(super) const AF_UNIX: u8 = 1;
    pub(super) const ALL_STATES: u32 = !0;
    pub(super) const SHOW_RQLEN: u32 = 0x10;
    pub(super) const NO_COOKIE: u32 = !0;
    pub(super) const MESSAGE: usize = 16;
    pub(super) const ATTRIBUTE: usize = 4;
    pub(super) const RQLEN: u16 = 4;
}

/// Asks for the one socket by NETLINK_SOCK_DIAG.
fn unix_queue(inode: u64) -> io::Result<Queue> {
    let flags = SocketFlags::CLOEXEC;
    let protocol = Some(netlink::SOCK_DIAG);
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
    let inode = u32::try_from(inode).map_err(|_| unlike("its inode is beyond 32 bits"))?;
    let mut request = Vec::with_capacity(diag::REQUEST as usize);
    request.extend(diag::REQUEST.to_ne_bytes());
    request.extend(diag::SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(diag::NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]); // sequence number and port
    request.extend([diag::AF_UNIX, 0, 0, 0]);
    request.extend(diag::ALL_STATES.to_ne_bytes());
    request.extend(inode.to_ne_bytes());
    request.extend(diag::SHOW_RQLEN.to_ne_bytes());
    request.extend([diag::NO_COOKIE.to_ne_bytes(); 2].as_flattened());
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    // The kernel answers within the call that asks.
    let mut answer = [0; 1024];
    let (len, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    parse_queue(&answer[..len])
}

fn parse_queue(answer: &[u8]) -> io::Result<Queue> {
    let unclear = || io::Error::new(io::ErrorKind::InvalidData, "the answer of netlink is unclear");
    let short = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let long = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    match short(4) {
        Some(diag::SOCK_DIAG_BY_FAMILY) => {}
        Some(diag::NLMSG_ERROR) => {
            let errno = long(diag::HEADER).map_or(0, u32::cast_signed);
            return Err(io::Error::from_raw_os_error(-errno));
        }
        _ => return Err(unclear()),
    }
    let mut at = diag::HEADER + diag::MESSAGE;
    while let (Some(len), Some(kind)) = (short(at), short(at + 2)) {
        if kind == diag::RQLEN {
            let value = at + diag::ATTRIBUTE;
            let (Some(waiting), Some(backlog)) = (long(value), long(value + 4)) else { break };
            return Ok(Queue { waiting, backlog });
        }
        at += usize::from(len).max(diag::ATTRIBUTE).next_multiple_of(4);
    }
    Err(unclear())
}

/// Brings sockets out of another process, by their inodes, in the same order; `None` for one that it does
/// not have (R10).
///
/// That process notices nothing, and keeps them. What comes is the same open file, so its mode (blocking
/// or not) is what it was; the descriptor here is close-on-exec.
///
/// # Errors
///
/// There is no such process (`NotFound`), or this one may not look into it (`PermissionDenied`, which says
/// what keeps it and what to do).
pub fn fetch(pid: u32, inodes: &[u64]) -> io::Result<Vec<Option<OwnedFd>>> {
    let mut found: Vec<Option<OwnedFd>> = inodes.iter().map(|_| None).collect();
    let refused = |error: io::Error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            let said = format!("may not take sockets out of process {pid}: {}", obstacle(pid));
            io::Error::new(io::ErrorKind::PermissionDenied, said)
        }
        Some(libc::ENOENT | libc::ESRCH) => {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no process {pid}"))
        }
        _ => error,
    };
    // Before its descriptors are listed: a number that came to mean another process in between lists
    // descriptors of which none leads to one of the inodes here.
    let process = PidFd::open(pid).map_err(refused)?;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).map_err(refused)? {
        if found.iter().all(Option::is_some) {
            break;
        }
        let entry = entry.map_err(refused)?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that was closed meanwhile is none.
        let Some(inode) = fs::read_link(entry.path()).ok().and_then(linked_inode) else {
            continue;
        };
        let wanted = (0..inodes.len()).find(|i| inodes[*i] == inode && found[*i].is_none());
        let Some(wanted) = wanted else { continue };
        let fd = match get(&process, number) {
            Ok(fd) => fd,
            Err(Errno::BADF) => continue,
            Err(error) => return Err(refused(error.into())),
        };
        // The number may have come to mean another file since it was looked at.
        if self::inode(&fd).is_ok_and(|came| came == inode) {
            found[wanted] = Some(fd);
        }
    }
    Ok(found)
}

fn get(process: &PidFd, number: RawFd) -> rustix::io::Result<OwnedFd> {
    rustix::process::pidfd_getfd(process, number, PidfdGetfdFlags::empty())
}

/// The inode in `socket:[4711]`.
fn linked_inode(link: PathBuf) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// What keeps this process from looking into another one, and what to do.
fn obstacle(pid: u32) -> String {
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let owner = |pid: &str| {
        let meta = fs::metadata(format!("/proc/{pid}")).ok()?;
        Some(std::os::unix::fs::MetadataExt::uid(&meta))
    };
    let (theirs, ours) = (owner(&pid.to_string()), owner("self"));
    let why = match yama.as_deref().map(str::trim) {
        Ok("3") => "the system forbids it to all (kernel.yama.ptrace_scope is 3)".to_owned(),
        Ok("2") => "kernel.yama.ptrace_scope is 2; give this process CAP_SYS_PTRACE".to_owned(),
        _ if theirs != ours => {
            "it runs as another user, or has changed its own; give this process CAP_SYS_PTRACE"
                .to_owned()
        }
        Ok("1") => "kernel.yama.ptrace_scope is 1, and it is no child of this process; \
             give this process CAP_SYS_PTRACE, or set that to 0"
            .to_owned(),
        _ => "it is protected, as one with capabilities is; give this process CAP_SYS_PTRACE"
            .to_owned(),
    };
    format!("{why}; or have systemd keep the sockets (FileDescriptorStoreMax=)")
}

fn unlike(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unclear_answer_of_netlink_is_an_error() {
        let error = |bytes: &[u8]| parse_queue(bytes).unwrap_err().kind();
        assert_eq!(error(&[]), io::ErrorKind::InvalidData);
        assert_eq!(error(&[0; 16]), io::ErrorKind::InvalidData);
        let mut answer = [0; 40];
        answer[4..6].copy_from_slice(&diag::SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        // Attributes of length 0, and one that is cut.
        assert_eq!(error(&answer), io::ErrorKind::InvalidData);
        answer[34..36].copy_from_slice(&diag::RQLEN.to_ne_bytes());
        assert_eq!(error(&answer), io::ErrorKind::InvalidData);
        answer[4..6].copy_from_slice(&diag::NLMSG_ERROR.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(error(&answer), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_staging_name_stands_for_the_path() {
        let path = |name: &str| address(SocketAddrUnix::new(name).unwrap().into());
        assert_eq!(path("/run/kv.sock.123.staging"), "/run/kv.sock");
        for other in
            ["/run/kv.sock", "/run/kv.sock.staging", "/run/x.1a.staging", "/run/.1.staging"]
        {
            assert_eq!(path(other), other);
        }
    }
}

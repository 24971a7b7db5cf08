//! Who is at the other end of a Unix socket, as the kernel says (R12, C1).
//!
//! The system calls are made here rather than through a wrapper because the pid the kernel
//! reports may be 0 (a peer in a pid namespace that is not visible from here), which wrappers
//! with a non-zero pid type cannot hold.

#![allow(unsafe_code, reason = "SO_PEERCRED and recvmsg, for the pid 0 described above")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// How far up a process tree [`is_descendant`] looks.
const MAX_DEPTH: usize = 256;

/// A process as the kernel vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// Its pid in our namespace; 0 if it has none there.
    pub pid: u32,
    /// Its effective user id in our namespace.
    pub uid: u32,
}

impl From<libc::ucred> for Credentials {
    fn from(cred: libc::ucred) -> Self {
        Self { pid: u32::try_from(cred.pid).unwrap_or(0), uid: cred.uid }
    }
}

/// The process that connected `stream`, or that listened for it (`SO_PEERCRED`).
///
/// For a socketpair this is the process that made the pair: use [`recv_with_credentials`]
/// there (C1).
pub fn peer_credentials(stream: &UnixStream) -> io::Result<Credentials> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = socklen(size_of::<libc::ucred>());
    // SAFETY: the pointers are to a live `ucred` and to its length, which the kernel respects.
    let rc = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    if cred.pid == 0 && cred.uid == u32::MAX {
        return Err(io::Error::from(io::ErrorKind::NotConnected));
    }
    Ok(cred.into())
}

/// Asks the kernel to attach the sender's credentials to all that `fd` receives from now on.
///
/// What was sent before carries none, so call it before the peer can send (C1).
pub fn enable_passcred(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_passcred(fd, true)?)
}

/// Receives bytes together with the credentials of who sent them.
///
/// `Ok((0, _))` is the end of the stream. One call never returns bytes of two senders. The
/// credentials are `None` if the message had none, i.e. [`enable_passcred`] was not called.
/// File descriptors that came along are closed. Interruptions are retried; in non-blocking mode
/// `WouldBlock` says that there is nothing yet.
pub fn recv_with_credentials(
    fd: impl AsFd,
    buf: &mut [u8],
) -> io::Result<(usize, Option<Credentials>)> {
    // Room for the credentials, which the kernel puts first: descriptors find none left and are
    // then never installed.
    let mut control = [0u64; 8];
    // SAFETY: CMSG_SPACE only computes.
    let space = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) } as usize;
    debug_assert!(space <= size_of_val(&control));
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: `msghdr` is plain data, all zero is an empty one.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = space;
    let received = loop {
        // SAFETY: `msg` points to buffers that live across the call, with their lengths.
        let n =
            unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut msg, libc::MSG_CMSG_CLOEXEC) };
        if let Ok(n) = usize::try_from(n) {
            break n;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        msg.msg_controllen = space;
    };

    let mut credentials = None;
    // SAFETY: the kernel filled `msg`; the CMSG functions stay inside `msg_controllen`, and the
    // control buffer is aligned for `cmsghdr`. Payloads are read unaligned. Descriptors in a
    // SCM_RIGHTS message were installed for us by this very call, so nobody else owns them.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(&raw const msg);
        while !cmsg.is_null() {
            let (level, kind, len) = ((*cmsg).cmsg_level, (*cmsg).cmsg_type, (*cmsg).cmsg_len);
            let data = libc::CMSG_DATA(cmsg);
            let payload = len.saturating_sub(libc::CMSG_LEN(0) as usize);
            if level == libc::SOL_SOCKET
                && kind == libc::SCM_CREDENTIALS
                && payload >= size_of::<libc::ucred>()
            {
                credentials = Some(data.cast::<libc::ucred>().read_unaligned().into());
            } else if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
                for i in 0..payload / size_of::<RawFd>() {
                    let passed = data.cast::<RawFd>().add(i).read_unaligned();
                    drop(OwnedFd::from_raw_fd(passed));
                }
            }
            cmsg = libc::CMSG_NXTHDR(&raw const msg, cmsg);
        }
    }
    Ok((received, credentials))
}

/// Whether `pid` is a child, grandchild and so on of `ancestor`; a process is not its own.
///
/// A process whose parents have exited has been given to a reaper, and is no descendant any
/// more. A process that does not exist is nobody's.
#[must_use]
pub fn is_descendant(pid: u32, ancestor: u32) -> bool {
    let mut current = pid;
    for _ in 0..MAX_DEPTH {
        match parent_of(current) {
            Some(parent) if parent == ancestor => return true,
            Some(parent) if parent != 0 => current = parent,
            _ => return false,
        }
    }
    false
}

fn parent_of(pid: u32) -> Option<u32> {
    parse_parent(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in `pid (name) state ppid ...` may hold anything, closing brackets included.
fn parse_parent(stat: &[u8]) -> Option<u32> {
    let after_name = stat.iter().rposition(|b| *b == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn socklen(len: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(len).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, IoSlice, Write};
    use std::process::{Command, Stdio};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    use super::*;

    fn me() -> Credentials {
        Credentials { pid: std::process::id(), uid: rustix::process::geteuid().as_raw() }
    }

    #[test]
    fn c1_a_peer_is_who_the_kernel_says() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert_eq!(peer_credentials(&a).unwrap(), me());
    }

    #[test]
    fn c1_a_child_on_a_socketpair_is_told_from_its_parent() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        enable_passcred(&ours).unwrap();
        let mut child = Command::new("/bin/sh")
            .args(["-c", "echo hello"])
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        assert_eq!(peer_credentials(&ours).unwrap().pid, std::process::id());
        let mut buf = [0; 64];
        let (n, from) = recv_with_credentials(&ours, &mut buf).unwrap();
        assert_eq!(&buf[..n], b"hello\n");
        assert_eq!(from, Some(Credentials { pid: child.id(), ..me() }));
        child.wait().unwrap();
        assert_eq!(recv_with_credentials(&ours, &mut buf).unwrap().0, 0);
    }

    #[test]
    fn c1_without_passcred_there_are_no_credentials() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut buf = [0; 8];
        let error = recv_with_credentials(&ours, &mut buf).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        theirs.write_all(b"x").unwrap();
        assert_eq!(recv_with_credentials(&ours, &mut buf).unwrap(), (1, None));
    }

    #[test]
    fn descriptors_that_come_along_are_closed() {
        for passcred in [false, true] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            if passcred {
                enable_passcred(&ours).unwrap();
            }
            // Two ends whose peer sees EOF once every copy is closed.
            let (watch, passed) = UnixStream::pair().unwrap();
            let fds = [passed.as_fd(), passed.as_fd()];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
            rustix::net::sendmsg(
                &theirs,
                &[IoSlice::new(b"x")],
                &mut ancillary,
                SendFlags::empty(),
            )
            .unwrap();
            drop(passed);
            let mut buf = [0; 8];
            let (n, from) = recv_with_credentials(&ours, &mut buf).unwrap();
            assert_eq!((n, from), (1, passcred.then(me)));
            // Blocks for ever if a copy had stayed open.
            assert_eq!(recv_with_credentials(&watch, &mut buf).unwrap().0, 0);
        }
    }

    #[test]
    fn c1_descent_is_followed_through_wrappers() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "/bin/sh -c 'echo $$; read x; :'; :"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        assert!(is_descendant(grandchild, child.id()));
        assert!(is_descendant(grandchild, std::process::id()));
        assert!(!is_descendant(child.id(), grandchild));
        assert!(!is_descendant(child.id(), child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!is_descendant(child.id(), std::process::id()), "it is gone");
    }

    #[test]
    fn a_process_name_cannot_pose_as_its_parent() {
        assert_eq!(parse_parent(b"12 (a) S 1 (b)) S 7 12 12"), Some(7));
        assert_eq!(parse_parent(b"12 a S 7"), None);
        assert_eq!(parse_parent(b""), None);
    }
}

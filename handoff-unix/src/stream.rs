//! A control connection as bytes, with what the kernel says of its other end (C1, R12).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use handoff_core::Credentials;

use crate::peer::{peer_credentials, recv_with_credentials};

/// One end of a control connection, non-blocking, that knows who is at the other.
///
/// Of a connection to or from a listening socket the kernel tells at once. Of a socketpair it tells
/// with the first bytes, because the other end was made here. Dropping it closes the connection.
#[derive(Debug)]
pub struct ControlStream {
    stream: UnixStream,
    cred: Option<Credentials>,
    introduced: bool,
    /// The process that was started with the other end, for a socketpair.
    started: Option<u32>,
}

impl ControlStream {
    /// A connection that was accepted, connected, or inherited: the peer is whom the kernel recorded
    /// when it was made.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell, or the mode cannot be set.
    pub fn connected(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let peer = peer_credentials(&stream)?;
        let cred = Credentials { pid: peer.pid, uid: peer.uid, descends: false };
        Ok(Self { stream, cred: Some(cred), introduced: false, started: None })
    }

    /// Our end of a socketpair whose other end was given to process `started`, with `SO_PASSCRED` set.
    ///
    /// # Errors
    ///
    /// When the mode cannot be set.
    pub fn to_child(stream: UnixStream, started: u32) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, cred: None, introduced: false, started: Some(started) })
    }

    /// Who is at the other end: once, as soon as it is known. To be asked right after the stream is
    /// made, and after each read before its bytes are used.
    pub fn introduction(&mut self) -> Option<Credentials> {
        if self.introduced {
            return None;
        }
        self.introduced = self.cred.is_some();
        self.cred
    }

    /// The pid at the other end, where it is known and visible.
    #[must_use]
    pub fn peer_pid(&self) -> Option<u32> {
        self.cred.map(|cred| cred.pid).filter(|pid| *pid != 0)
    }

    /// Reads what has arrived. 0 is the end.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when there is nothing now; anything else means that the connection is broken.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv_with_credentials(&self.stream, buffer) {
                Ok((count, peer)) => {
                    if let (None, Some(started), Some(peer)) = (self.cred, self.started, peer) {
                        let descends =
                            peer.pid == started || crate::peer::is_descendant(peer.pid, started);
                        self.cred = Some(Credentials { pid: peer.pid, uid: peer.uid, descends });
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes as much as fits now.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when nothing fits; anything else means that nothing more can be written, though
    /// there may still be something to read (C3).
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        use rustix::net::{SendFlags, send};
        loop {
            match send(&self.stream, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => return Ok(count),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for ControlStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

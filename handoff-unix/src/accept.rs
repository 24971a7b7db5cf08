//! Accepting connections until told to stop, on a listener in either mode (R13, C2).
//!
//! An inherited listener may be blocking or not, and nobody may change that: the flag belongs to
//! the open file, which another process may be accepting on. So `accept(2)` is called only when
//! `poll(2)` has seen a connection, by one thread at a time.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::inherit::{InheritError, Inherited};
use crate::poll::{ready, wait};
use crate::wake::Waker;

/// How long a process that is out of descriptors waits for one to be closed.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

mod sealed {
    pub trait Sealed {}
    impl Sealed for std::net::TcpListener {}
    impl Sealed for std::os::unix::net::UnixListener {}
}

/// A listener an [`Acceptor`] can serve: std's for TCP and for Unix sockets.
pub trait Listener: AsFd + Sized + sealed::Sealed {
    /// A connection.
    type Stream;
    /// The address of its peer.
    type Address;

    /// Accepts one connection, in blocking mode and close-on-exec.
    #[doc(hidden)]
    fn accept_one(&self) -> io::Result<(Self::Stream, Self::Address)>;
    /// Puts a connection into non-blocking mode.
    #[doc(hidden)]
    fn unblock(stream: &Self::Stream) -> io::Result<()>;
    /// Takes the inherited listener of that name.
    #[doc(hidden)]
    fn take(inherited: &mut Inherited, name: &str) -> Result<Option<Self>, InheritError>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    type Address = SocketAddr;

    fn accept_one(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.accept()
    }

    fn unblock(stream: &TcpStream) -> io::Result<()> {
        stream.set_nonblocking(true)
    }

    fn take(inherited: &mut Inherited, name: &str) -> Result<Option<Self>, InheritError> {
        inherited.take_tcp(name)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    type Address = std::os::unix::net::SocketAddr;

    fn accept_one(&self) -> io::Result<(UnixStream, Self::Address)> {
        self.accept()
    }

    fn unblock(stream: &UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)
    }

    fn take(inherited: &mut Inherited, name: &str) -> Result<Option<Self>, InheritError> {
        inherited.take_unix(name)
    }
}

/// A listener that several threads accept on until they are told to stop.
///
/// One value per listener and process: threads share it by reference or in an `Arc`. With a
/// listener in blocking mode, another *process* that accepts at the same time can still snatch
/// the connection `poll` has seen; the thread then waits in `accept(2)` for the next one, deaf to
/// [`Stopper::stop`] until it comes. A handoff never has two processes accepting at once.
#[derive(Debug)]
pub struct Acceptor<L = TcpListener> {
    listener: L,
    gate: Arc<Gate>,
}

/// Stops and resumes an [`Acceptor`] from any thread; clones are the same handle.
#[derive(Debug, Clone)]
pub struct Stopper {
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct Gate {
    wake: Waker,
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    stopped: bool,
    /// A thread is between poll and having handed its connection over.
    busy: bool,
}

/// What waited on a [`Polled`] listener.
#[derive(Debug)]
pub enum Waiting<C> {
    /// A connection.
    Connection(C),
    /// Nothing, or something that came to nothing: wait until the listener is readable.
    Nothing,
    /// A connection that cannot be taken for want of something: leave it alone for so long.
    Shortage(Duration),
}

/// A listener for a runtime's reactor: asked for a connection when it was seen to be readable.
///
/// It takes a listener in either mode and changes neither (R13). With one in blocking mode another
/// *process* that accepts at the same time can snatch the connection that was seen, and then
/// [`accept`](Self::accept) blocks until the next one comes. A handoff never has two processes
/// accepting at once. Dropping it closes the descriptor, nothing else.
#[derive(Debug)]
pub struct Polled<L> {
    listener: L,
    /// Between seeing a connection and taking it.
    turn: Mutex<()>,
}

impl<L: Listener> Polled<L> {
    /// Serves `listener`, whose mode is left as it is.
    pub const fn new(listener: L) -> Self {
        Self { listener, turn: Mutex::new(()) }
    }

    /// The listener.
    pub const fn listener(&self) -> &L {
        &self.listener
    }

    /// Takes the connection that waits, if one does, and has `own` make of it what the runtime needs.
    /// The stream is non-blocking. Where `own` fails the connection is dropped, as for a shortage.
    ///
    /// # Errors
    ///
    /// The listener's own, which will not pass.
    pub fn accept<T>(
        &self,
        own: impl FnOnce(L::Stream, L::Address) -> io::Result<T>,
    ) -> io::Result<Waiting<T>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !ready(&self.listener, PollFlags::IN, Some(Duration::ZERO))? {
            return Ok(Waiting::Nothing);
        }
        let (stream, address) = match self.listener.accept_one() {
            Ok(connection) => connection,
            Err(error) => match Trouble::of(&error) {
                Trouble::Connection => return Ok(Waiting::Nothing),
                Trouble::Shortage => return Ok(short(&error)),
                Trouble::Listener => return Err(error),
            },
        };
        let owned = L::unblock(&stream).and_then(|()| own(stream, address));
        Ok(owned.map_or_else(|error| short(&error), Waiting::Connection))
    }
}

fn short<C>(error: &io::Error) -> Waiting<C> {
    tracing::warn!(%error, "cannot accept, waiting for connections to close");
    Waiting::Shortage(SHORTAGE_PAUSE)
}

/// Whether a listener may be given to a runtime that needs it to be non-blocking already.
///
/// # Errors
///
/// It is in blocking mode, with what to do about it.
pub fn check_nonblocking(listener: &impl AsFd) -> io::Result<()> {
    if rustix::fs::fcntl_getfl(listener)?.contains(OFlags::NONBLOCK) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "the listener is in blocking mode, which may not be changed while another process accepts \
         on it; have the supervisor make it non-blocking before it starts the first daemon, or \
         accept with the Listener itself",
    ))
}

impl<L: AsFd> AsFd for Polled<L> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl<L: AsFd> AsRawFd for Polled<L> {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_fd().as_raw_fd()
    }
}

impl<L: Listener> Acceptor<L> {
    /// Serves `listener`, whose mode is left as it is. Fails for want of a descriptor.
    pub fn new(listener: L) -> io::Result<Self> {
        let gate = Arc::new(Gate {
            wake: Waker::new()?,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        Ok(Self { listener, gate })
    }

    /// A handle that stops the acceptor.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper { gate: Arc::clone(&self.gate) }
    }

    /// The listener.
    #[must_use]
    pub fn listener(&self) -> &L {
        &self.listener
    }

    /// Waits for a connection; `Ok(None)` once the acceptor is stopped.
    ///
    /// The stream is in blocking mode whatever the listener's mode is. Connections that came to
    /// nothing are passed over, and a shortage of descriptors or memory is waited out; other
    /// errors are the listener's own and will not pass. A connection that waits in the backlog
    /// when the acceptor is stopped stays there.
    #[allow(clippy::type_complexity)]
    pub fn accept(&self) -> io::Result<Option<(L::Stream, L::Address)>> {
        self.accept_with(|stream, address| (stream, address))
    }

    /// As [`accept`](Self::accept), but `admit` is called with the connection before
    /// [`Stopper::settle`] can return.
    ///
    /// A daemon that counts its connections in `admit` knows, when `settle` has returned, that
    /// it has counted every one.
    pub fn accept_with<T>(
        &self,
        admit: impl FnOnce(L::Stream, L::Address) -> T,
    ) -> io::Result<Option<T>> {
        let Some(_turn) = self.gate.enter() else {
            return Ok(None);
        };
        let mut short = false;
        loop {
            let mut fds = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.gate.wake, PollFlags::IN),
            ];
            wait(&mut fds, None)?;
            if self.gate.state().stopped {
                return Ok(None);
            }
            if fds[0].revents().is_empty() {
                continue;
            }
            let error = match self.listener.accept_one() {
                Ok((stream, address)) => return Ok(Some(admit(stream, address))),
                Err(error) => error,
            };
            match Trouble::of(&error) {
                Trouble::Connection => {}
                Trouble::Shortage => {
                    if !short {
                        tracing::warn!(%error, "cannot accept, waiting for connections to close");
                        short = true;
                    }
                    let stop = &mut [PollFd::new(&self.gate.wake, PollFlags::IN)];
                    wait(stop, Some(SHORTAGE_PAUSE))?;
                }
                Trouble::Listener => return Err(error),
            }
        }
    }
}

impl Stopper {
    /// Makes every `accept` return `Ok(None)`, those that wait and those to come.
    ///
    /// Returns at once; a thread may still be handing over a connection, see
    /// [`settle`](Self::settle).
    pub fn stop(&self) {
        let mut state = self.gate.state();
        state.stopped = true;
        // Under the lock: a wake-up that came after a `resume` would keep acceptors spinning.
        self.gate.wake.wake();
        self.gate.changed.notify_all();
    }

    /// After [`stop`](Self::stop), waits until no thread is accepting any more; `false` if that
    /// takes longer than `timeout`, or the acceptor is not stopped.
    #[must_use]
    pub fn settle(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        let mut state = self.gate.state();
        while state.stopped && state.busy {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            state = self
                .gate
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.stopped
    }

    /// Lets the acceptor accept again. Threads that got `Ok(None)` must call `accept` again.
    pub fn resume(&self) {
        let mut state = self.gate.state();
        self.gate.wake.drain();
        state.stopped = false;
    }

    /// Whether the acceptor is stopped.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.gate.state().stopped
    }
}

/// The right to accept, held by one thread at a time.
struct Turn<'a>(&'a Gate);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().busy = false;
        self.0.changed.notify_all();
    }
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn; `None` once stopped.
    fn enter(&self) -> Option<Turn<'_>> {
        let mut state = self.state();
        while state.busy && !state.stopped {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped {
            return None;
        }
        state.busy = true;
        Some(Turn(self))
    }
}

/// Whose fault a failed `accept(2)` is.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    /// The connection's: go on with the next one.
    Connection,
    /// The process or the machine is short of something.
    Shortage,
    /// The listener's.
    Listener,
}

impl Trouble {
    fn of(error: &io::Error) -> Self {
        let Some(errno) = Errno::from_io_error(error) else {
            return Self::Listener;
        };
        // Linux passes errors of the network on the new connection through accept.
        const CONNECTION: [Errno; 13] = [
            Errno::AGAIN,
            Errno::INTR,
            Errno::CONNABORTED,
            Errno::CONNRESET,
            Errno::PERM,
            Errno::PROTO,
            Errno::NOPROTOOPT,
            Errno::NETDOWN,
            Errno::NETUNREACH,
            Errno::HOSTDOWN,
            Errno::HOSTUNREACH,
            Errno::NONET,
            Errno::TIMEDOUT,
        ];
        const SHORTAGE: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
        if CONNECTION.contains(&errno) {
            Self::Connection
        } else if SHORTAGE.contains(&errno) {
            Self::Shortage
        } else {
            Self::Listener
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::fs::fcntl_getfl;

    use super::*;
    use crate::test_dir::scratch;

    const SOON: Duration = Duration::from_secs(10);

    fn is_nonblocking(fd: impl AsFd) -> bool {
        fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
    }

    /// Acceptors in both modes, with the address they listen at.
    fn acceptors() -> [(Acceptor, SocketAddr, bool); 2] {
        [false, true].map(|nonblocking| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(nonblocking).unwrap();
            let address = listener.local_addr().unwrap();
            (Acceptor::new(listener).unwrap(), address, nonblocking)
        })
    }

    #[test]
    fn r13_either_mode_is_served_and_left_as_it_is() {
        for (acceptor, address, nonblocking) in acceptors() {
            let mut client = TcpStream::connect(address).unwrap();
            let (mut stream, peer) = acceptor.accept().unwrap().unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
            assert!(!is_nonblocking(&stream));
            assert_eq!(is_nonblocking(acceptor.listener()), nonblocking);
            client.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
    }

    #[test]
    fn c2_stopping_ends_every_waiting_thread_and_resuming_lets_them_back_in() {
        for (acceptor, address, _) in acceptors() {
            let stopper = acceptor.stopper();
            let accepted = AtomicUsize::new(0);
            let serve = || {
                while acceptor
                    .accept_with(|_, _| accepted.fetch_add(1, Ordering::SeqCst))
                    .unwrap()
                    .is_some()
                {}
            };
            assert!(!stopper.settle(SOON), "it is not stopped");
            for round in 1..=3 {
                std::thread::scope(|scope| {
                    for _ in 0..4 {
                        scope.spawn(serve);
                    }
                    let clients: Vec<_> =
                        (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
                    // Dropped by the server when it was accepted.
                    for mut client in clients {
                        assert_eq!(client.read(&mut [0]).unwrap(), 0);
                    }
                    stopper.stop();
                    assert!(stopper.settle(SOON));
                    assert_eq!(accepted.load(Ordering::SeqCst), round * 20);
                });
                assert!(stopper.is_stopped());
                assert!(acceptor.accept().unwrap().is_none());
                stopper.resume();
            }
        }
    }

    #[test]
    fn i4_a_connection_made_while_stopped_waits_for_whoever_accepts_next() {
        for (acceptor, address, _) in acceptors() {
            acceptor.stopper().stop();
            let client = TcpStream::connect(address).unwrap();
            assert!(acceptor.accept().unwrap().is_none());
            acceptor.stopper().resume();
            let (_, peer) = acceptor.accept().unwrap().unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
        }
    }

    #[test]
    fn unix_listeners_too() {
        let dir = scratch();
        let path = dir.path().join("sock");
        let acceptor = Acceptor::new(UnixListener::bind(&path).unwrap()).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        let (mut stream, _) = acceptor.accept().unwrap().unwrap();
        client.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_connection_that_was_reset_does_not_stop_the_next() {
        for (acceptor, address, _) in acceptors() {
            let reset = TcpStream::connect(address).unwrap();
            rustix::net::sockopt::set_socket_linger(&reset, Some(Duration::ZERO)).unwrap();
            drop(reset);
            let client = TcpStream::connect(address).unwrap();
            let served = std::iter::from_fn(|| acceptor.accept().unwrap())
                .find(|(_, peer)| *peer == client.local_addr().unwrap());
            assert!(served.is_some());
        }
    }

    #[test]
    fn errors_are_told_by_whose_fault_they_are() {
        let of = |errno: Errno| Trouble::of(&errno.into());
        assert_eq!(of(Errno::CONNABORTED), Trouble::Connection);
        assert_eq!(of(Errno::MFILE), Trouble::Shortage);
        assert_eq!(of(Errno::NFILE), Trouble::Shortage);
        assert_eq!(of(Errno::BADF), Trouble::Listener);
        assert_eq!(of(Errno::INVAL), Trouble::Listener);
    }
}

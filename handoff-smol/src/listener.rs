use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use handoff_unix::accept::{self, Polled, Waiting};
use smol::Async;
use smol::net::TcpStream;
use smol::net::unix::UnixStream;

/// A listener in either mode, of TCP or of Unix sockets.
///
/// An inherited listener may be blocking or not, and nobody may change that, because the process that
/// it is inherited from is still accepting on it (R13). smol's own listeners need one that is not
/// blocking; this takes both. Where the supervisor made it non-blocking,
/// [`Listener::to_smol`] gives smol's own for libraries that ask for it.
///
/// Clones are the same listener: keep one to accept again after a handoff that came to nothing.
/// Dropping the last closes this process's descriptor, and the connections that wait stay where they
/// are, for whoever accepts next.
#[derive(Debug)]
pub struct Listener<L: accept::Listener = TcpListener>(Arc<Async<Polled<L>>>);

impl<L: accept::Listener> Clone for Listener<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: accept::Listener> Listener<L> {
    /// Serves `listener`, whose mode is left as it is.
    ///
    /// # Errors
    ///
    /// The reactor cannot watch it.
    pub fn new(listener: L) -> io::Result<Self> {
        Ok(Self(Arc::new(Async::new_nonblocking(Polled::new(listener))?)))
    }

    /// The listener itself.
    #[must_use]
    pub fn listener(&self) -> &L {
        self.0.get_ref().listener()
    }

    async fn next<T>(&self, own: impl Fn(L::Stream, L::Address) -> io::Result<T>) -> io::Result<T> {
        loop {
            self.0.readable().await?;
            match self.0.get_ref().accept(&own)? {
                Waiting::Connection(connection) => return Ok(connection),
                Waiting::Nothing => {}
                Waiting::Shortage(pause) => drop(smol::Timer::after(pause).await),
            }
        }
    }
}

impl Listener<TcpListener> {
    /// Waits for a connection.
    ///
    /// Connections that came to nothing are passed over, and a shortage of descriptors or memory is
    /// waited out. Dropping the future takes no connection: one that waits stays where it is.
    ///
    /// # Errors
    ///
    /// The listener's own, which will not pass.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.next(|stream, address| Ok((Async::new_nonblocking(stream)?.into(), address))).await
    }

    /// The address it listens at.
    ///
    /// # Errors
    ///
    /// The system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener().local_addr()
    }

    /// The same listener as smol's own type.
    ///
    /// # Errors
    ///
    /// It is in blocking mode, which smol's own cannot use and nobody may change (R13); no descriptors
    /// are left.
    pub fn to_smol(&self) -> io::Result<smol::net::TcpListener> {
        accept::check_nonblocking(self.listener())?;
        Ok(Async::new_nonblocking(self.listener().try_clone()?)?.into())
    }
}

impl Listener<UnixListener> {
    /// Waits for a connection; as with TCP otherwise.
    ///
    /// # Errors
    ///
    /// The listener's own, which will not pass.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.next(|stream, _| Ok(Async::new_nonblocking(stream)?.into())).await
    }

    /// The same listener as smol's own type.
    ///
    /// # Errors
    ///
    /// It is in blocking mode, which smol's own cannot use and nobody may change (R13); no descriptors
    /// are left.
    pub fn to_smol(&self) -> io::Result<smol::net::unix::UnixListener> {
        accept::check_nonblocking(self.listener())?;
        Ok(Async::new_nonblocking(self.listener().try_clone()?)?.into())
    }
}

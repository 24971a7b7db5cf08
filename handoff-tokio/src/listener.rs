use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use handoff_unix::accept::{self, Polled, Waiting};
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};

/// A listener in either mode, of TCP or of Unix sockets.
///
/// An inherited listener may be blocking or not, and nobody may change that, because the process that
/// it is inherited from is still accepting on it (R13). tokio's own listeners need one that is not
/// blocking; this takes both. Where the supervisor made it non-blocking,
/// [`Listener::to_tokio`] gives tokio's own for libraries that ask for it.
///
/// Clones are the same listener: keep one to accept again after a handoff that came to nothing.
/// Dropping the last closes this process's descriptor, and the connections that wait stay where they
/// are, for whoever accepts next.
#[derive(Debug)]
pub struct Listener<L: accept::Listener = TcpListener>(Arc<AsyncFd<Polled<L>>>);

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
    /// The runtime cannot watch it.
    ///
    /// # Panics
    ///
    /// Outside of a runtime with I/O enabled, as tokio's own sockets do.
    pub fn new(listener: L) -> io::Result<Self> {
        Ok(Self(Arc::new(crate::register(Polled::new(listener))?)))
    }

    /// The listener itself.
    #[must_use]
    pub fn listener(&self) -> &L {
        self.0.get_ref().listener()
    }

    async fn next<T>(&self, own: impl Fn(L::Stream, L::Address) -> io::Result<T>) -> io::Result<T> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.0.get_ref().accept(&own)? {
                Waiting::Connection(connection) => return Ok(connection),
                Waiting::Nothing => ready.clear_ready(),
                Waiting::Shortage(pause) => tokio::time::sleep(pause).await,
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
        self.next(|stream, address| Ok((TcpStream::from_std(stream)?, address))).await
    }

    /// The address it listens at.
    ///
    /// # Errors
    ///
    /// The system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener().local_addr()
    }

    /// The same listener as tokio's own type.
    ///
    /// # Errors
    ///
    /// It is in blocking mode, which tokio's own cannot use and nobody may change (R13); no descriptors
    /// are left.
    pub fn to_tokio(&self) -> io::Result<tokio::net::TcpListener> {
        accept::check_nonblocking(self.listener())?;
        tokio::net::TcpListener::from_std(self.listener().try_clone()?)
    }
}

impl Listener<UnixListener> {
    /// Waits for a connection; as with TCP otherwise.
    ///
    /// # Errors
    ///
    /// The listener's own, which will not pass.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.next(|stream, _| UnixStream::from_std(stream)).await
    }

    /// The same listener as tokio's own type.
    ///
    /// # Errors
    ///
    /// It is in blocking mode, which tokio's own cannot use and nobody may change (R13); no descriptors
    /// are left.
    pub fn to_tokio(&self) -> io::Result<tokio::net::UnixListener> {
        accept::check_nonblocking(self.listener())?;
        tokio::net::UnixListener::from_std(self.listener().try_clone()?)
    }
}

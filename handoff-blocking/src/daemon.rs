use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use handoff_core::daemon::{Ended, Readiness};
use handoff_unix::host::{
    Config, DaemonHost, HookCall, Hooks, Host, Incumbency, Program, Request, StartError, Stop,
};

/// A daemon before it holds the lock: started cold, or as a successor.
///
/// Dropping it gives up, and waits until the protocol's thread is gone: a successor is then ended by
/// its supervisor, and the old process goes on.
#[derive(Debug)]
pub struct Daemon {
    program: Program,
    _thread: Thread,
}

impl Daemon {
    /// Reads what a supervisor passed on (R13), and starts the thread that speaks the protocol.
    ///
    /// To be called once, early: where the supervisor gave no budget for a warm-up, Hello is said now
    /// (C3). Nothing is locked, bound or opened.
    ///
    /// # Errors
    ///
    /// A control path too long for a socket or in no directory, an environment that does not hold
    /// together, a thread or a descriptor that cannot be had.
    pub fn from_env(config: Config) -> Result<Self, StartError> {
        let (host, program) = DaemonHost::from_env(config)?;
        let thread = Thread::start(host)
            .map_err(|source| StartError::Io { what: "starting the protocol's thread", source })?;
        Ok(Self { program, _thread: thread })
    }

    /// Whether a supervisor started this process to take over from another.
    #[must_use]
    pub fn is_successor(&self) -> bool {
        self.program.is_successor()
    }

    /// The inherited TCP listener of this name; on a cold start without one, what `bind` gives.
    ///
    /// Its mode is what the supervisor made it: use an [`crate::Acceptor`], which takes either and
    /// changes neither (R13).
    ///
    /// # Errors
    ///
    /// The inherited descriptor is no TCP listener, `bind` failed, or this is a successor and its
    /// supervisor passed on no such listener (R10).
    pub fn listener(
        &mut self,
        name: &str,
        bind: impl FnOnce() -> io::Result<TcpListener>,
    ) -> Result<TcpListener, StartError> {
        match self.program.listener(name)? {
            Some(listener) => Ok(listener),
            None => bind().map_err(StartError::listener(name)),
        }
    }

    /// The same for a Unix stream listener.
    ///
    /// # Errors
    ///
    /// The inherited descriptor is no Unix stream listener, `bind` failed, or this is a successor and
    /// its supervisor passed on no such listener (R10).
    pub fn unix_listener(
        &mut self,
        name: &str,
        bind: impl FnOnce() -> io::Result<UnixListener>,
    ) -> Result<UnixListener, StartError> {
        match self.program.listener(name)? {
            Some(listener) => Ok(listener),
            None => bind().map_err(StartError::listener(name)),
        }
    }

    /// Any other inherited descriptor of this name.
    pub fn fd(&mut self, name: &str) -> Option<OwnedFd> {
        self.program.fd(name)
    }

    /// The warm-up is done: waits until the lock is this process's (C3, R3).
    ///
    /// Blocks through Hello, HelloAck and Begin in a successor; on a cold start, while another holds
    /// the lock and does not answer.
    ///
    /// # Errors
    ///
    /// How it ended instead: the supervisor went away or gave up, another process serves, the lock
    /// could not be had. Exit with [`Ended::exit_code`].
    pub fn begin(self) -> Result<Grant, Ended> {
        let Self { program, _thread } = self;
        program.begin();
        match program.wait() {
            Request::Hook(open) => Ok(Grant { open, program, _thread }),
            Request::Ended(ended) => Err(ended),
        }
    }
}

/// The lock is held: the data may be opened.
///
/// Dropping it says that opening failed, and waits until the lock is released: whatever was opened is
/// to be closed before.
#[derive(Debug)]
pub struct Grant {
    open: HookCall,
    program: Program,
    _thread: Thread,
}

impl Grant {
    /// The data directory that is locked.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.program.data_dir()
    }

    /// Whether the handoff was called off meanwhile, so that opening on is work for nothing (R7).
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.open.off().is_off()
    }

    /// The data is open and connections are accepted: says Ready (R6). Returns at once.
    ///
    /// Descriptors that were inherited and that nobody has claimed are closed (R13).
    #[must_use]
    pub fn ready(self, readiness: Readiness) -> Serving {
        let Self { open, mut program, _thread } = self;
        program.ready(open, readiness);
        Serving { program, _thread }
    }

    /// The data cannot be opened; it is closed again, and the lock may be released. Waits until it is.
    #[must_use]
    pub fn fail(self, error: impl fmt::Display) -> Ended {
        self.open.fail(error);
        loop {
            if let Request::Ended(ended) = self.program.wait() {
                return ended;
            }
        }
    }
}

/// The daemon serves, and takes part in handoffs once [`Serving::run`] is called.
///
/// Dropping it instead ends the protocol at once, without a hook, and waits until its thread is gone. The
/// lock is kept until the process ends, because the data may still be open: exit soon, so that another
/// can serve.
#[derive(Debug)]
pub struct Serving {
    program: Program,
    _thread: Thread,
}

impl Serving {
    /// A handle that stops this daemon: from a signal, say.
    #[must_use]
    pub fn stopper(&self) -> Stop {
        self.program.stopper()
    }

    /// A handle that tells when this process is the incumbent for good (X1): before that, do nothing
    /// that an old process which takes its data back could not read.
    #[must_use]
    pub fn incumbency(&self) -> Incumbency {
        self.program.incumbency()
    }

    /// Takes part in handoffs until this process has no further part to play (R15).
    ///
    /// Hooks run on the calling thread, one at a time. When it returns [`Ended::Committed`], finish
    /// what is still read and exit.
    pub fn run(self, mut hooks: impl Hooks) -> Ended {
        loop {
            match self.program.wait() {
                Request::Hook(hook) => hook.run(&mut hooks),
                Request::Ended(ended) => return ended,
            }
        }
    }
}

/// The protocol's thread. It is dropped after the [`Program`], which brings it to its end, and waits
/// for that, so that nothing is left.
#[derive(Debug)]
struct Thread(Option<JoinHandle<()>>);

impl Thread {
    fn start(mut host: DaemonHost) -> io::Result<Self> {
        crate::work(&mut host);
        let thread = std::thread::Builder::new().name("handoff".into()).spawn(move || {
            while !host.has_ended() {
                if let Err(error) = crate::turn(&mut host, None) {
                    return tracing::error!(%error, "handoff: the protocol's thread cannot go on");
                }
            }
        });
        Ok(Self(Some(thread?)))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            let _ = thread.join();
        }
    }
}

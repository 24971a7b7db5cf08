//! What programs of tasks hold, on any runtime: the futures of a daemon and of a supervisor.

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use handoff_core::daemon::{DrainReport, Ended, Readiness, SealReport};
use handoff_core::supervisor::{Event, Report};

use super::supervisor::{Ask, Told};
use super::{
    Aborter, DrainContext, Front, Handoff, HookCall, HookError, Incumbency, Off, Program, Request,
    SealContext, StartError, Started, Stop,
};
use crate::spawn::Launch;

/// What only the program can do. One hook runs at a time, never twice for one handoff, and never
/// without the lock (R7). A hook that panics has failed.
///
/// Hooks are polled by whoever polls [`Serving::run`], so they need not be `Send` unless that is.
#[allow(async_fn_in_trait)]
pub trait Hooks {
    /// Stop accepting, finish what is in flight, make acknowledged writes durable (C2).
    ///
    /// # Errors
    ///
    /// The handoff is off; [`Hooks::resume`] follows.
    async fn drain(&mut self, drain: &DrainContext) -> Result<DrainReport, HookError>;

    /// Flush, fsync and close the data, so that another process can open it. From its start on no
    /// write is acknowledged.
    ///
    /// # Errors
    ///
    /// The handoff is off; [`Hooks::resume`] follows. The lock was not released.
    async fn seal(&mut self, seal: &SealContext) -> Result<SealReport, HookError>;

    /// The handoff is off and the lock is held: open the data if it is closed, accept again. Runs
    /// exactly once after every drain that no commit followed.
    ///
    /// # Errors
    ///
    /// The process aborts: it can neither serve nor let another serve.
    async fn resume(&mut self) -> Result<(), HookError>;
}

/// The warm-up is done: waits until the lock is this process's (C3, R3).
///
/// # Errors
///
/// How it ended instead.
pub async fn begin(program: Program) -> Result<Grant, Ended> {
    program.begin();
    match program.next().await {
        Request::Hook(open) => Ok(Grant { open, program }),
        Request::Ended(ended) => Err(ended),
    }
}

/// The lock is held: the data may be opened.
///
/// Dropping it says that opening failed, and the lock is released soon after: whatever was opened is
/// to be closed before.
#[derive(Debug)]
pub struct Grant {
    open: HookCall,
    program: Program,
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

    /// A future that is done when the handoff was called off.
    #[must_use]
    pub fn off(&self) -> Off {
        self.open.off()
    }

    /// The data is open and connections are accepted: says Ready (R6). Returns at once.
    ///
    /// Descriptors that were inherited and that nobody has claimed are closed (R13).
    #[must_use]
    pub fn ready(self, readiness: Readiness) -> Serving {
        let Self { open, mut program } = self;
        program.ready(open, readiness);
        Serving { program }
    }

    /// The data cannot be opened; it is closed again, and the lock may be released. Waits until it is,
    /// which dropping the future does not prevent.
    pub async fn fail(self, error: impl Display) -> Ended {
        self.open.fail(error);
        loop {
            if let Request::Ended(ended) = self.program.next().await {
                return ended;
            }
        }
    }
}

/// The daemon serves, and takes part in handoffs once [`Serving::run`] is awaited.
///
/// Dropping it instead ends the protocol at once, without a hook: its task closes the connections, as if
/// the process had died. The lock is kept until it has, because the data may still be open: exit soon, so
/// that another can serve.
#[derive(Debug)]
pub struct Serving {
    program: Program,
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
    /// Hooks run in the task that awaits this, one at a time. When it gives [`Ended::Committed`],
    /// finish what is still read and exit. Dropping the future is as dropping [`Serving`], and a hook
    /// that runs is dropped where it is. To end well instead, keep a [`Serving::stopper`] and await this
    /// to its end.
    pub async fn run(self, mut hooks: impl Hooks) -> Ended {
        loop {
            match self.program.next().await {
                Request::Hook(hook) => hook.run_async(&mut hooks).await,
                Request::Ended(ended) => return ended,
            }
        }
    }
}

/// A supervisor whose host runs in a task of its own, so that a future that is dropped leaves nothing
/// undone.
///
/// Dropping it ends no daemon that serves: a handoff under way is rolled back, unless it is committed
/// already, and then the host ends. From then on its daemons are reaped by the next supervisor that is
/// started in this process, or by whoever reaps this one.
#[derive(Debug)]
pub struct Supervisor {
    front: Front,
}

impl Supervisor {
    /// The supervisor at the front of a host.
    #[must_use]
    pub const fn new(front: Front) -> Self {
        Self { front }
    }

    /// Keeps a listener, for every daemon it starts from now on to inherit under this name (R13). Its
    /// mode is not changed.
    ///
    /// # Errors
    ///
    /// A name that is taken, empty, or has a colon.
    pub fn listener(&self, name: &str, fd: impl Into<OwnedFd>) -> Result<(), StartError> {
        self.front.listener(name, fd.into())
    }

    /// A handle that rolls back the handoff under way.
    #[must_use]
    pub fn aborter(&self) -> Aborter {
        self.front.aborter()
    }

    /// Finds out who serves; where nobody does and the lock is free, starts `launch` and waits until
    /// it serves (R10, R17). Dropping the future gives up the search; a daemon that was started by then
    /// is left to serve.
    ///
    /// # Errors
    ///
    /// The supervisor is busy; the daemon did not start, ended before it served, or the search was
    /// [aborted](Aborter). As long as somebody else holds the lock and answers nobody, it waits.
    pub async fn start(&self, launch: &Launch) -> Result<Started, StartError> {
        self.start_telling(launch, |_| {}).await
    }

    /// The same; `on` is told what happens, as it happens.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_telling(
        &self,
        launch: &Launch,
        on: impl FnMut(&Event),
    ) -> Result<Started, StartError> {
        self.find(Some(launch.clone()), on).await
    }

    /// Finds out who serves, as [`start_telling`](Self::start_telling) does, and starts nobody.
    ///
    /// # Errors
    ///
    /// Nobody does and the lock is free, or as [`start`](Self::start).
    pub async fn find_telling(&self, on: impl FnMut(&Event)) -> Result<Started, StartError> {
        self.find(None, on).await
    }

    async fn find(
        &self,
        launch: Option<Launch>,
        mut on: impl FnMut(&Event),
    ) -> Result<Started, StartError> {
        self.answer(Ask::Start(launch), |told| {
            if let Told::Event(event) = &told {
                on(event);
            }
            told.started()
        })
        .await
    }

    /// Hands off, and is done when that has come to an end (C, R). `on` is told what happens, as it
    /// happens. Dropping the future aborts the handoff: it is rolled back unless it is committed
    /// already, and until then the supervisor is busy.
    ///
    /// # Errors
    ///
    /// The supervisor holds no listeners, or is busy: nothing was done. Or its task is gone: what
    /// became of the handoff is not known then.
    pub async fn handoff(
        &self,
        handoff: &Handoff,
        mut on: impl FnMut(&Event),
    ) -> Result<Report, StartError> {
        self.answer(Ask::Handoff(handoff.clone()), |told| told.finished(&mut on)).await
    }

    /// Waits until one of its daemons has ended, replaced ones too, and gives its pid and how it ended.
    /// Each is told once. Dropping the future loses none.
    pub async fn exited(&self) -> (u32, String) {
        match self.front.exits().next().await {
            Some(exit) => exit,
            // Its task is gone, and nobody is watched any more.
            None => std::future::pending().await,
        }
    }

    /// Ends every daemon it started or found: SIGTERM, `grace`, SIGKILL, each with all its process group (R14).
    /// Gives the pids that would not die. Dropping the future does not stop it.
    ///
    /// # Errors
    ///
    /// Its task is gone.
    pub async fn shutdown(&self, grace: Duration) -> Result<Vec<u32>, StartError> {
        self.front.end(grace).next().await.ok_or_else(gone)
    }

    async fn answer<R>(
        &self,
        ask: Ask,
        mut answer: impl FnMut(Told) -> Option<Result<R, StartError>>,
    ) -> Result<R, StartError> {
        let (number, told) = self.front.ask(ask);
        let mut unfinished = Unfinished { front: &self.front, number: Some(number) };
        while let Some(told) = told.next().await {
            if let Some(result) = answer(told) {
                unfinished.number = None;
                return result;
            }
        }
        Err(gone())
    }
}

fn gone() -> StartError {
    let source = std::io::Error::other("the supervisor's task is gone");
    StartError::Io { what: "asking the supervisor", source }
}

/// A question whose answer somebody waits for.
struct Unfinished<'a> {
    front: &'a Front,
    number: Option<u64>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.front.abandon(number);
        }
    }
}

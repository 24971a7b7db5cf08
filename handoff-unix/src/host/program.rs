//! The program's end of a daemon's host.

use std::any::Any;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Mutex, Weak};

use handoff_core::Input;
use handoff_core::daemon::{self as core, Command, Ended, Hook, Outcome, Readiness, SealFailure};

use super::channel::Receiver;
use super::daemon::{Inner, advance};
use super::hooks::{DrainContext, Hooks, Off, SealContext};
use super::incumbency::Incumbency;
use super::reactor::Mailbox;
use super::{StartError, step_begins, step_is_over, task};
use crate::accept::Listener;
use crate::inherit::{InheritError, Inherited, Role};

/// What reaches a daemon's host from outside.
#[derive(Debug)]
pub(super) enum Mail {
    Input(core::Input),
    /// The program let go of a hook without an answer.
    Dropped(Hook),
    /// The program has gone.
    Gone,
}

/// Speaks to a daemon's host, from anywhere.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) mailbox: Mailbox<Mail>,
    pub(super) host: Weak<Mutex<Option<Inner>>>,
}

impl Post {
    pub(super) fn send(&self, mail: Mail) {
        self.mailbox.send(mail);
    }

    pub(super) fn command(&self, command: Command) {
        self.send(Mail::Input(Input::Command(command)));
    }

    /// The same, where it is waited for: the host's turn is taken on this thread, if nobody is at it. What
    /// may block is left to the adapter, which is woken for it; only the lock is released here.
    pub(super) fn deliver(&self, mut input: core::Input) {
        while self.mailbox.put(Mail::Input(input)) {
            let taken = self.host.upgrade().and_then(advance);
            let Some(release) = taken else { return self.mailbox.wake() };
            let Some(release) = release else { return };
            input = Input::Done(release());
        }
    }
}

/// Stops a daemon without a successor: drain, seal, release; its `run` returns
/// [`Ended::Stopped`]. During a handoff it waits until that is off or done.
///
/// Clones are the same. Dropping one stops nothing.
#[derive(Clone, Debug)]
pub struct Stop(Post);

impl Stop {
    /// Asks for it. A second time changes nothing.
    pub fn stop(&self) {
        self.0.command(Command::Stop);
    }
}

/// What a host asks of its program, in order.
#[derive(Debug)]
pub enum Request {
    /// To run a hook. The first is [`Hook::Open`].
    Hook(HookCall),
    /// Nothing any more: the last request.
    Ended(Ended),
}

/// The program, as its host knows it.
///
/// Dropping it before the host has ended gives up, without a further hook. Before the data was opened a
/// lock that is held is released. From then on it is kept until the process ends, because the data may be
/// open (R7); the connections are closed at once, so to everybody else that is as if the process had
/// died.
#[derive(Debug)]
pub struct Program {
    inherited: Inherited,
    data_dir: PathBuf,
    post: Post,
    requests: Receiver<Request>,
    incumbency: Incumbency,
}

impl Program {
    pub(super) const fn new(
        inherited: Inherited,
        data_dir: PathBuf,
        post: Post,
        requests: Receiver<Request>,
        incumbency: Incumbency,
    ) -> Self {
        Self { inherited, data_dir, post, requests, incumbency }
    }

    /// What is asked of the program next. After [`Request::Ended`] the host is gone, and its sockets
    /// with it. Dropping the future loses nothing.
    pub async fn next(&self) -> Request {
        let request = self.requests.next().await;
        if let Some(Request::Ended(_)) = request {
            while self.requests.next().await.is_some() {}
        }
        request.map_or_else(lost, taken)
    }

    /// The same on this thread.
    pub fn wait(&self) -> Request {
        let request = self.requests.wait();
        if let Some(Request::Ended(_)) = request {
            while self.requests.wait().is_some() {}
        }
        request.map_or_else(lost, taken)
    }

    /// Whether a supervisor started this process to take over from another.
    #[must_use]
    pub fn is_successor(&self) -> bool {
        self.inherited.role() == Role::Successor
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The inherited listener of this name, its mode as it is (R13). `None` where it is to be bound.
    ///
    /// # Errors
    ///
    /// It is of another kind, or this is a successor and its supervisor passed on no such listener
    /// (R10).
    pub fn listener<L: Listener>(&mut self, name: &str) -> Result<Option<L>, StartError> {
        let found: Result<Option<L>, InheritError> = L::take(&mut self.inherited, name);
        match found? {
            None if self.is_successor() => {
                let passed: Vec<&str> = self.inherited.names().collect();
                let name = name.to_string();
                Err(StartError::NotInherited { name, passed: passed.join(", ") })
            }
            found => Ok(found),
        }
    }

    /// The same; where there is none, what `bind` gives, as std's own type. Dropping the future drops
    /// what it has.
    ///
    /// # Errors
    ///
    /// As [`listener`](Self::listener); or it could not be bound, or no descriptors are left.
    pub async fn listen<L, B, F>(
        &mut self,
        name: &str,
        bind: impl FnOnce() -> F,
    ) -> Result<L, StartError>
    where
        L: Listener + From<OwnedFd>,
        B: AsFd,
        F: Future<Output = io::Result<B>>,
    {
        if let Some(listener) = self.listener(name)? {
            return Ok(listener);
        }
        let owned = bind().await.and_then(|bound| bound.as_fd().try_clone_to_owned());
        owned.map(L::from).map_err(StartError::listener(name))
    }

    /// Any other inherited descriptor of this name.
    pub fn fd(&mut self, name: &str) -> Option<OwnedFd> {
        self.inherited.take_fd(name)
    }

    /// The warm-up is done (C3).
    pub fn begin(&self) {
        self.post.deliver(Input::Command(Command::Begin));
    }

    /// The data is open and connections are accepted (R6). Descriptors that nobody has claimed are
    /// closed (R13).
    pub fn ready(&mut self, open: HookCall, readiness: Readiness) {
        for (name, _) in self.inherited.unclaimed() {
            tracing::warn!(name, "an inherited descriptor that nobody claimed is closed");
        }
        self.inherited.close_unclaimed();
        open.answer(Outcome::Opened(Ok(readiness)));
    }

    /// What stops this daemon.
    #[must_use]
    pub fn stopper(&self) -> Stop {
        Stop(self.post.clone())
    }

    /// What tells when this process is the incumbent for good (X1).
    #[must_use]
    pub fn incumbency(&self) -> Incumbency {
        self.incumbency.clone()
    }
}

/// The program has it in hand.
fn taken(request: Request) -> Request {
    if let Request::Hook(HookCall { hook: Some(hook), .. }) = &request {
        step_begins(hook);
    }
    request
}

/// Its host was dropped before it had ended: with its runtime, or because it could not go on.
fn lost() -> Request {
    Request::Ended(Ended::Crash("the protocol has stopped before its end".to_string()))
}

impl Drop for Program {
    fn drop(&mut self) {
        self.post.send(Mail::Gone);
    }
}

/// A hook that is to run. It is answered once (R8). Dropping it instead is what a program does that has
/// gone, see [`Program`].
#[derive(Debug)]
pub struct HookCall {
    /// None once it is answered.
    hook: Option<Hook>,
    off: Off,
    post: Post,
}

impl HookCall {
    pub(super) const fn new(hook: Hook, off: Off, post: Post) -> Self {
        Self { hook: Some(hook), off, post }
    }

    /// Whether its handoff has ended.
    #[must_use]
    pub fn off(&self) -> Off {
        self.off.clone()
    }

    /// It failed.
    pub fn fail(self, error: impl Display) {
        if let Some(hook) = &self.hook {
            let outcome = failed(hook, error.to_string());
            self.answer(outcome);
        }
    }

    /// Runs it on this thread.
    pub fn run(self, hooks: &mut impl Hooks) {
        let Some(hook) = &self.hook else { return };
        let outcome = catch_unwind(AssertUnwindSafe(|| match hook {
            Hook::Drain { grace } => drained(hooks.drain(&self.drain(*grace))),
            Hook::Seal => sealed(hooks.seal(&self.seal())),
            Hook::Resume => resumed(hooks.resume()),
            Hook::Open => failed(hook, "the data is open already"),
        }));
        let outcome = outcome.unwrap_or_else(|panic| failed(hook, panicked(&*panic)));
        self.answer(outcome);
    }

    /// Runs it as a future. Dropping that is dropping the hook.
    pub async fn run_async(self, hooks: &mut impl task::Hooks) {
        let Some(hook) = &self.hook else { return };
        let outcome = unwinding(async {
            match hook {
                Hook::Drain { grace } => drained(hooks.drain(&self.drain(*grace)).await),
                Hook::Seal => sealed(hooks.seal(&self.seal()).await),
                Hook::Resume => resumed(hooks.resume().await),
                Hook::Open => failed(hook, "the data is open already"),
            }
        });
        let outcome = outcome.await.unwrap_or_else(|panic| failed(hook, panicked(&*panic)));
        self.answer(outcome);
    }

    fn answer(mut self, outcome: Outcome) {
        if let Some(hook) = self.hook.take() {
            step_is_over(&hook);
        }
        self.post.deliver(Input::Done(outcome));
    }

    fn drain(&self, grace: std::time::Duration) -> DrainContext {
        DrainContext { grace, off: self.off() }
    }

    fn seal(&self) -> SealContext {
        SealContext { post: self.post.clone(), off: self.off() }
    }
}

impl Drop for HookCall {
    fn drop(&mut self) {
        if let Some(hook) = self.hook.take() {
            self.post.send(Mail::Dropped(hook));
        }
    }
}

/// The panic of a future, as `catch_unwind` gives that of a function.
async fn unwinding<T>(future: impl Future<Output = T>) -> std::thread::Result<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => std::task::Poll::Ready(Err(panic)),
    })
    .await
}

fn drained<E: Display>(result: Result<core::DrainReport, E>) -> Outcome {
    Outcome::Drained(result.map_err(|error| error.to_string()))
}

fn sealed<E: Display>(result: Result<core::SealReport, E>) -> Outcome {
    Outcome::Sealed(result.map_err(|error| seal_failure(&error)))
}

fn resumed<E: Display>(result: Result<(), E>) -> Outcome {
    Outcome::Resumed(result.map_err(|error| error.to_string()))
}

fn failed(hook: &Hook, error: impl Display) -> Outcome {
    match hook {
        Hook::Open => Outcome::Opened(Err(error.to_string())),
        Hook::Drain { .. } => Outcome::Drained(Err(error.to_string())),
        Hook::Seal => Outcome::Sealed(Err(seal_failure(&error))),
        Hook::Resume => Outcome::Resumed(Err(error.to_string())),
    }
}

fn seal_failure(error: &impl Display) -> SealFailure {
    SealFailure { error: error.to_string(), partial_state: String::new() }
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("no message"))
}

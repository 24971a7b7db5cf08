use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use handoff_core::daemon::{
    self as core, Command, ConnId, Effect, Ended, Event, Hook, OsEffect, Outcome, Timing,
};
use handoff_core::driver::ActionOf;
use handoff_core::{Input, Machine as _};

use super::channel::{Sender, channel};
use super::hooks::Off;
use super::incumbency::Settles;
use super::program::{HookCall, Mail, Post, Program, Request};
use super::reactor::{Look, Reactor};
use super::{Host, StartError, log, step};
use crate::control::{ACCEPT_PAUSE, ControlPath, ControlSocket, PathWatch};
use crate::effects::{DaemonEffects, Job};
use crate::inherit::{Inherited, Role};
use crate::probe::Users;
use crate::stream::ControlStream;

/// The name of the control listener's descriptor.
const LISTENER: u64 = 0;
/// The name of the descriptor that tells of changes beside the control path.
const PATH: u64 = 1;

/// Where a daemon lives and what it calls itself.
#[derive(Clone, Debug)]
pub struct Config {
    control_path: PathBuf,
    data_dir: PathBuf,
    build_id: Vec<u8>,
    allowed_uids: Vec<u32>,
    timing: Timing,
}

impl Config {
    /// The control path, at which supervisors find the daemon, and the data directory, whose lock
    /// decides who writes.
    pub fn new(control_path: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            control_path: control_path.into(),
            data_dir: data_dir.into(),
            build_id: Vec::new(),
            allowed_uids: Vec::new(),
            timing: Timing::default(),
        }
    }

    /// What this build calls itself, at most 1 KiB of it: a commit, a version.
    #[must_use]
    pub fn build_id(mut self, build_id: impl Into<Vec<u8>>) -> Self {
        self.build_id = build_id.into();
        self.build_id.truncate(1024);
        self
    }

    /// Lets supervisors of further users speak to this daemon (R12).
    #[must_use]
    pub fn allow_uid(mut self, uid: u32) -> Self {
        self.allowed_uids.push(uid);
        self
    }

    /// Replaces the protocol's durations.
    #[must_use]
    pub const fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }
}

/// A daemon's machine on this system.
///
/// Dropping it closes its connections. The lock is not released by that, because the program may
/// still be writing: it goes with the process.
#[derive(Debug)]
pub struct DaemonHost {
    /// `None` once this is dropped, so that nothing is left to whoever is at it then.
    inner: Arc<Mutex<Option<Inner>>>,
    descriptor: Arc<OwnedFd>,
}

/// What there is of it. The thread that answers a hook or has carried out an effect takes the turn that
/// follows from that itself, where the adapter waits ([`advance`]).
#[derive(Debug)]
pub(super) struct Inner {
    reactor: Reactor<core::Daemon, Mail>,
    effects: DaemonEffects,
    /// Of the hook that was asked for last.
    off: Off,
    /// The control listener that is watched.
    listener: Option<Arc<ControlSocket>>,
    /// What happens to the control path, once it was claimed.
    path: Option<PathWatch>,
    /// The control path could not be watched.
    blind: bool,
    /// The last connection that waited could not be taken.
    short: bool,
    /// The data was opened.
    opened: bool,
    ended: bool,
    incumbency: Settles,
    post: Post,
    /// The adapter has nothing to do until the next turn.
    rests: bool,
    /// The adapter is to start a thread for jobs, if it has none: a successor's first one takes the lock, and
    /// nobody serves while a thread is started for that.
    needs_thread: bool,
    succeeds: bool,
    /// What is left to it: effects that may block.
    left: VecDeque<OsEffect>,
    /// Dropped last: it tells the program that the rest is gone.
    program: Sender<Request>,
}

impl DaemonHost {
    /// Reads what a supervisor passed on (R13). Nothing is locked, bound or opened.
    ///
    /// To be called once, early: where the supervisor gave no budget for a warm-up, Hello is said in
    /// the first turn (C3).
    ///
    /// # Errors
    ///
    /// A control path too long for a socket or in no directory, an environment that does not hold
    /// together, a descriptor that cannot be had.
    pub fn from_env(config: Config) -> Result<(Self, Program), StartError> {
        let control = ControlPath::new(config.control_path)?;
        control.check_directory()?;
        let mut inherited = Inherited::from_env()?;
        let mut settings =
            core::Config::new(std::process::id(), rustix::process::geteuid().as_raw());
        settings.build_id = config.build_id;
        let users = Users(config.allowed_uids.clone());
        settings.allowed_uids = config.allowed_uids;
        settings.timing = config.timing;
        let machine = match inherited.role() {
            Role::Cold => core::Daemon::cold(settings),
            Role::Successor => {
                core::Daemon::successor(settings, inherited.hello_budget().is_some())
            }
        };
        let io = |what| move |source| StartError::Io { what, source };
        let mut reactor = Reactor::new(machine).map_err(io("making the descriptors to wait on"))?;
        if let Some(stream) = inherited.take_control() {
            let stream = ControlStream::connected(stream)
                .map_err(io("reading who is at the other end of the supervisor's connection"))?;
            reactor.add(ConnId::SUPERVISOR, stream);
        }
        let (sender, requests) = channel();
        let succeeds = inherited.role() == Role::Successor;
        let incumbency = Settles::default();
        let told = incumbency.0.clone();
        let (mailbox, descriptor) = (reactor.mailbox().clone(), reactor.descriptor());
        let effects = DaemonEffects::new(control, config.data_dir.clone(), users);
        let inner = Arc::new_cyclic(|host| {
            Mutex::new(Some(Inner {
                reactor,
                effects,
                off: Off::default(),
                listener: None,
                path: None,
                blind: false,
                short: false,
                opened: false,
                ended: false,
                incumbency,
                post: Post { mailbox: mailbox.clone(), host: host.clone() },
                rests: false,
                needs_thread: false,
                succeeds,
                left: VecDeque::new(),
                program: sender,
            }))
        });
        let post = Post { mailbox, host: Arc::downgrade(&inner) };
        let program = Program::new(inherited, config.data_dir, post, requests, told);
        Ok((Self { inner, descriptor }, program))
    }

    fn with<T>(&self, does: impl FnOnce(&mut Inner) -> T) -> Option<T> {
        self.own().as_mut().map(does)
    }

    fn own(&self) -> MutexGuard<'_, Option<Inner>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DaemonHost {
    fn drop(&mut self) {
        let inner = self.own().take();
        drop(inner);
    }
}

/// Takes a turn on this thread, which does not block, and all that comes of it, if the adapter can be left to
/// wait. It cannot where there is something that may block, or it is at work itself. The release of the lock is
/// given back, to be carried out here when nobody is kept from a turn by it: only a network file system's
/// server can make that take long, and this thread's program has just sealed its data.
#[allow(clippy::option_option, reason = "whether it was taken, and what is left to do")]
pub(super) fn advance(host: Arc<Mutex<Option<Inner>>>) -> Option<Option<Job<Outcome>>> {
    let mut inner = host.try_lock().ok()?;
    let inner = inner.as_mut().filter(|inner| inner.rests)?;
    inner.turn().ok()?;
    let mut release = None;
    while let Some(effect) = inner.carry_out() {
        if effect == OsEffect::ReleaseLock {
            let job = inner.effects.job(effect.clone());
            let stepped: Job<Outcome> = Box::new(move || step(&effect, job));
            release = Some(stepped);
        } else {
            inner.left.push_back(effect);
        }
    }
    if inner.ended || !inner.left.is_empty() {
        inner.post.mailbox.wake();
    } else {
        inner.settle();
    }
    Some(release)
}

impl Inner {
    fn end(&mut self, ended: Ended) {
        tracing::info!(%ended, "handoff: this process has no further part");
        if let Ended::Crash(reason) = &ended {
            tracing::error!(reason, "handoff: aborting");
            std::process::abort();
        }
        self.ended = true;
        self.program.send(Request::Ended(ended));
    }

    /// The program has gone, and its data may be open: to everybody else that is as if the process had
    /// died, but for the lock, which goes with the process.
    fn abandon(&mut self) {
        if !self.ended {
            tracing::warn!(
                "handoff: the program has gone; its lock is kept until the process exits"
            );
        }
        self.ended = true;
    }

    /// Watches the control listener while this process answers on it.
    fn listen(&mut self) {
        let answers = self.reactor.machine().answers() && !self.reactor.pauses();
        let wanted = if answers { self.effects.socket() } else { None };
        let same = match (&wanted, &self.listener) {
            (Some(wanted), Some(watched)) => Arc::ptr_eq(wanted, watched),
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        if let Some(old) = self.listener.take() {
            self.reactor.unwatch(old.listener());
        }
        if let Some(socket) = wanted {
            match self.reactor.watch(socket.listener(), LISTENER) {
                Ok(()) => self.listener = Some(socket),
                Err(error) => self.pause(&error),
            }
        }
    }

    /// Watches the control path, which was just claimed, in the directory where it is now (R11).
    fn watch_path(&mut self) {
        let watched = match &self.path {
            Some(watch) => watch.renew(),
            None => self.effects.watch_path().and_then(|watch| {
                self.reactor.watch(&watch, PATH)?;
                self.path = Some(watch);
                Ok(())
            }),
        };
        let blind = watched.is_err();
        if let Err(error) = watched
            && !self.blind
        {
            tracing::warn!(%error, "handoff: whoever removes the control path will not be noticed");
        }
        self.blind = blind;
    }

    /// Leaves the control listener alone for a while: what it lacks may be there again then.
    fn pause(&mut self, error: &io::Error) {
        if !self.short {
            tracing::warn!(%error, "handoff: no control connection can be taken for now");
        }
        self.short = true;
        self.reactor.pause(ACCEPT_PAUSE);
    }

    fn accept(&mut self) {
        let Some(socket) = self.listener.clone() else { return };
        loop {
            if self.reactor.pending() {
                // A name is free again once its connection was closed, so what is to be closed comes
                // first.
                return self.reactor.leave_some();
            }
            let stream = match socket.accept() {
                Ok(Some(stream)) => stream,
                Ok(None) => return,
                Err(error) => return self.pause(&error),
            };
            self.short = false;
            let free = (1..).map(ConnId).find(|conn| !self.reactor.has(*conn));
            match (free, ControlStream::connected(stream)) {
                (Some(conn), Ok(stream)) => self.reactor.add(conn, stream),
                (_, Err(error)) => tracing::warn!(%error, "handoff: a connection was dropped"),
                (None, Ok(_)) => {}
            }
        }
    }

    /// Carries out what there is to do, up to the next effect that may block.
    fn carry_out(&mut self) -> Option<OsEffect> {
        while !self.ended {
            match self.reactor.next_action()? {
                ActionOf::<core::Daemon>::Do(Effect::Os(effect)) => {
                    match effect {
                        OsEffect::TakeLock
                        | OsEffect::ReleaseLock
                        | OsEffect::StagePath
                        | OsEffect::ClaimPath
                        | OsEffect::Probe => return Some(effect),
                        // Neither can block.
                        OsEffect::WatchSuccessor { .. } | OsEffect::SignalSuccessor(_) => {}
                    }
                    let outcome = step(&effect, self.effects.job(effect.clone()));
                    self.reactor.handle(Input::Done(outcome));
                }
                ActionOf::<core::Daemon>::Do(Effect::Hook(hook)) => {
                    self.off = Off::default();
                    let call = HookCall::new(hook, self.off.clone(), self.post.clone());
                    self.program.send(Request::Hook(call));
                }
                ActionOf::<core::Daemon>::Cancel => self.off.set(),
                ActionOf::<core::Daemon>::Event(Event::Ended(ended)) => self.end(ended),
                ActionOf::<core::Daemon>::Event(event) => {
                    if event == Event::Incumbent {
                        self.incumbency.certain();
                    }
                    log(self.reactor.machine().state_name(), event.is_trouble(), &event);
                }
                ActionOf::<core::Daemon>::Close { .. } => {}
            }
        }
        None
    }

    fn job(&mut self) -> Option<Job<()>> {
        if std::mem::take(&mut self.needs_thread) {
            return Some(Box::new(|| {}));
        }
        let effect = self.left.pop_front().or_else(|| self.carry_out());
        if let Some(effect) = effect.filter(|_| !self.ended) {
            let (job, post) = (self.effects.job(effect.clone()), self.post.clone());
            return Some(Box::new(move || {
                let outcome = step(&effect, job);
                post.deliver(Input::Done(outcome));
            }));
        }
        if !self.ended {
            self.settle();
            self.rests = true;
        }
        None
    }

    /// Everything is carried out.
    fn settle(&mut self) {
        self.listen();
        self.reactor.settle();
    }

    fn turn(&mut self) -> io::Result<bool> {
        let Look { any, names, .. } = self.reactor.look()?;
        if names.contains(&LISTENER) {
            self.accept();
        }
        let told = |watch: &PathWatch| names.contains(&PATH) && watch.changed();
        let mut changed = self.path.as_ref().is_some_and(told);
        while let Some(mail) = self.reactor.mail() {
            match mail {
                Mail::Input(input) => {
                    self.opened |= matches!(&input, Input::Done(Outcome::Opened(Ok(_))));
                    let warm = matches!(&input, Input::Command(Command::Begin));
                    self.needs_thread |= warm && self.succeeds;
                    let claimed = matches!(&input, Input::Done(Outcome::Claimed(Ok(()))));
                    self.reactor.handle(input);
                    if claimed {
                        self.watch_path();
                        // What happened before it was watched is seen now.
                        changed = true;
                    }
                }
                Mail::Dropped(Hook::Open) => {
                    let error = "the program gave up opening its data".to_string();
                    self.reactor.handle(Input::Done(Outcome::Opened(Err(error))));
                }
                Mail::Dropped(_) => self.abandon(),
                Mail::Gone if self.opened => self.abandon(),
                Mail::Gone => self.reactor.handle(Input::Command(Command::Stop)),
            }
        }
        // This process's own renames are changes too.
        if changed && self.effects.path_is_lost() {
            self.reactor.handle(Input::Command(Command::PathChanged));
        }
        self.reactor.tick();
        Ok(any)
    }
}

impl Host for DaemonHost {
    fn job(&mut self) -> Option<Job<()>> {
        self.with(Inner::job)?
    }

    fn turn(&mut self) -> io::Result<bool> {
        let turn = self.with(|inner| {
            inner.rests = false;
            if inner.ended { Ok(false) } else { inner.turn() }
        });
        turn.unwrap_or(Ok(false))
    }

    fn has_ended(&self) -> bool {
        self.with(|inner| inner.ended).unwrap_or(true)
    }
}

impl AsFd for DaemonHost {
    /// Readable when a turn is due.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

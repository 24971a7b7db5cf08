use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use handoff_core::driver::ActionOf;
use handoff_core::supervisor::{self as core, Command, Entry, Event, Outcome, Report, Spec};
use handoff_core::{HandoffId, Input, Machine as _};
use handoff_unix::control::ControlPath;
use handoff_unix::host::{Completion, SupervisorHost, log};
use handoff_unix::probe::Users;
use handoff_unix::process::PidFd;
use handoff_unix::spawn::{Launch, become_subreaper, name_problem};

use crate::StartError;
use crate::reactor::{Mailbox, Reactor};

/// What a supervisor watches over.
#[derive(Clone, Debug)]
pub struct SupervisorConfig {
    control_path: PathBuf,
    data_dir: Option<PathBuf>,
    journal: Option<PathBuf>,
    no_listeners: bool,
    core: core::Config,
}

impl SupervisorConfig {
    /// A supervisor of the daemon that answers on this control path.
    pub fn new(control_path: impl Into<PathBuf>) -> Self {
        Self {
            control_path: control_path.into(),
            data_dir: None,
            journal: None,
            no_listeners: false,
            core: core::Config::new(rustix::process::geteuid().as_raw()),
        }
    }

    /// Where the daemon's data is: lets the supervisor see who holds the lock (R5, R6).
    #[must_use]
    pub fn data_dir(mut self, data_dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(data_dir.into());
        self
    }

    /// Where to keep the journal (R9). Without it nothing is kept.
    #[must_use]
    pub fn journal(mut self, journal: impl Into<PathBuf>) -> Self {
        self.journal = Some(journal.into());
        self
    }

    /// The daemon has no listeners that a successor would inherit. Without this a supervisor that was
    /// given none refuses to hand off (R10).
    #[must_use]
    pub const fn no_listeners(mut self) -> Self {
        self.no_listeners = true;
        self
    }

    /// Changes policy and durations.
    #[must_use]
    pub fn policy(mut self, change: impl FnOnce(&mut core::Config)) -> Self {
        change(&mut self.core);
        self
    }
}

/// One handoff: what to start and how long things may take.
#[derive(Clone, Debug)]
pub struct Handoff {
    launch: Launch,
    spec: Spec,
}

impl Handoff {
    /// A handoff to what `launch` starts, with the durations of [`Spec::default`].
    #[must_use]
    pub fn new(launch: Launch) -> Self {
        Self { launch, spec: Spec::default() }
    }

    /// From Prepare to Ready (T5).
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.spec.deadline = deadline;
        self
    }

    /// For the drain (T5).
    #[must_use]
    pub const fn drain_grace(mut self, grace: Duration) -> Self {
        self.spec.drain_grace = grace;
        self
    }

    /// For the successor's warm-up (C3).
    #[must_use]
    pub const fn warm_up(mut self, budget: Duration) -> Self {
        self.spec.hello_budget = budget;
        self
    }
}

/// Who serves, as [`Supervisor::start`] found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Started {
    /// Its pid.
    pub pid: u32,
    /// Whether it was started just now.
    pub started: bool,
}

/// Rolls back the handoff under way, from another thread. Too late once it is committed.
#[derive(Clone, Debug)]
pub struct Aborter(Mailbox<Mail>);

impl Aborter {
    /// Asks for it. Without a handoff under way it does nothing.
    pub fn abort(&self) {
        self.0.send(Mail::Abort);
    }
}

#[derive(Debug)]
enum Mail {
    Done(Completion),
    Abort,
}

/// Holds the listeners and swaps the daemon (S).
///
/// It works while one of its methods runs, on the calling thread. Dropping it ends no daemon; a
/// handoff cannot be dropped halfway, because [`Supervisor::handoff`] returns at its end.
pub struct Supervisor {
    reactor: Reactor<core::Supervisor, Mail>,
    host: SupervisorHost,
    names: Vec<String>,
    no_listeners: bool,
    watched: Vec<PidFd>,
}

impl Supervisor {
    /// A supervisor without listeners. Makes this process the reaper of its daemons' orphans (R14).
    ///
    /// # Errors
    ///
    /// A control path too long for a socket or in no directory, no descriptors left.
    pub fn new(config: SupervisorConfig) -> Result<Self, StartError> {
        let control = ControlPath::new(config.control_path)?;
        control.check_directory()?;
        let failed = |what| move |source| StartError::Io { what, source };
        become_subreaper().map_err(failed("becoming a subreaper"))?;
        let users = Users(config.core.allowed_uids.clone());
        let machine = core::Supervisor::new(config.core);
        let reactor = Reactor::new(machine).map_err(failed("the supervisor's waker"))?;
        let host = SupervisorHost::new(control, config.data_dir, config.journal, users);
        let no_listeners = config.no_listeners;
        Ok(Self { reactor, host, names: Vec::new(), no_listeners, watched: Vec::new() })
    }

    /// Keeps a listener, for every daemon it starts from now on to inherit under this name (R13). Its
    /// mode is not changed.
    ///
    /// # Errors
    ///
    /// A name that is taken, empty, or has a colon.
    pub fn listener(&mut self, name: &str, fd: impl Into<OwnedFd>) -> Result<(), StartError> {
        let taken = self.names.iter().any(|taken| taken == name);
        let problem = name_problem(name).or(taken.then_some("is given twice"));
        if let Some(problem) = problem {
            return Err(StartError::ListenerName { name: name.to_string(), problem });
        }
        self.names.push(name.to_string());
        self.host.listener(name.to_string(), fd.into());
        Ok(())
    }

    /// Finds out who serves; where nobody does and the lock is free, starts `launch` and waits until
    /// it serves (R10, R17).
    ///
    /// # Errors
    ///
    /// The daemon did not start, ended before it served, or the search was [aborted](Aborter). As long
    /// as somebody else holds the lock and answers nobody, it waits.
    pub fn start(&mut self, launch: &Launch) -> Result<Started, StartError> {
        self.turn(Some(Duration::ZERO))?;
        if !self.reactor.machine().idle() {
            return Err(StartError::Busy);
        }
        self.host.launch(launch.clone(), Spec::default().hello_budget);
        if let Some(Entry { id, step, .. }) = self.host.recover() {
            tracing::warn!(%id, ?step, "the supervisor before this one left a handoff behind");
            self.host.forget();
        }
        self.command(Command::Start { own: self.host.own() });
        self.until(|event| match event {
            Event::Serving { pid, started } => Some(Ok(Started { pid, started })),
            Event::NobodyServes(reason) => Some(Err(StartError::NobodyServes(reason))),
            _ => None,
        })?
    }

    /// Hands off, and returns when that has come to an end (C, R). `on` is told what happens, as it
    /// happens.
    ///
    /// # Errors
    ///
    /// The supervisor holds no listeners, or is busy: nothing was done. Or this process cannot wait for
    /// its sockets any more: what became of the handoff is not known then.
    pub fn handoff(
        &mut self,
        handoff: &Handoff,
        mut on: impl FnMut(&Event),
    ) -> Result<Report, StartError> {
        // An abort that was meant for a handoff before this one has nothing to end.
        self.turn(Some(Duration::ZERO))?;
        if !self.reactor.machine().idle() {
            return Err(StartError::Busy);
        }
        if self.host.listeners() == 0 && !self.no_listeners {
            return Err(StartError::NoListeners);
        }
        self.host.launch(handoff.launch.clone(), handoff.spec.hello_budget);
        self.command(Command::Handoff { id: HandoffId::new(), spec: handoff.spec });
        self.until(|event| {
            on(&event);
            match event {
                Event::Finished(report) => Some(report),
                _ => None,
            }
        })
    }

    /// Watches the daemons for a while, between handoffs: reaps those that have exited, and returns
    /// early when one has. Gives the pids and how they ended.
    ///
    /// # Errors
    ///
    /// This process cannot wait for its sockets any more.
    pub fn watch(&mut self, time: Duration) -> Result<Vec<(u32, String)>, StartError> {
        let limit = Instant::now().checked_add(time);
        loop {
            let _ = self.act(|_| None::<()>);
            let left = limit.map(|limit| limit.saturating_duration_since(Instant::now()));
            let gone = self.turn(left)?;
            if !gone.is_empty() || left.is_some_and(|left| left.is_zero()) {
                return Ok(gone);
            }
        }
    }

    /// A handle that rolls back the handoff under way.
    #[must_use]
    pub fn aborter(&self) -> Aborter {
        Aborter(self.reactor.mailbox())
    }

    /// Ends every daemon it started: SIGTERM, `grace`, SIGKILL, each with all its process group (R14).
    /// Gives the pids that would not die.
    pub fn shutdown(&mut self, grace: Duration) -> Vec<u32> {
        self.watched.clear();
        self.host.end_all(grace)
    }

    fn command(&mut self, command: Command) {
        self.reactor.handle(Input::Command(command));
    }

    /// Works until `stop` has what it waits for.
    fn until<R>(&mut self, mut stop: impl FnMut(Event) -> Option<R>) -> Result<R, StartError> {
        loop {
            if let Some(result) = self.act(&mut stop) {
                return Ok(result);
            }
            self.turn(None)?;
        }
    }

    /// Carries out what the machine asks for.
    fn act<R>(&mut self, mut stop: impl FnMut(Event) -> Option<R>) -> Option<R> {
        let mut result = None;
        while let Some(action) = self.reactor.next_action() {
            match action {
                ActionOf::<core::Supervisor>::Do(effect) => {
                    self.reactor.mailbox().run(self.host.job(effect), Mail::Done);
                }
                ActionOf::<core::Supervisor>::Event(event) => {
                    let state = self.reactor.machine().state_name();
                    log(state, event.is_trouble(), &event);
                    result = result.or(stop(event));
                }
                ActionOf::<core::Supervisor>::Cancel
                | ActionOf::<core::Supervisor>::Close { .. } => {}
            }
        }
        result
    }

    /// Waits for something to happen, at most so long; whose processes have exited.
    fn turn(&mut self, limit: Option<Duration>) -> Result<Vec<(u32, String)>, StartError> {
        let pidfds: Vec<BorrowedFd<'_>> = self.watched.iter().map(AsFd::as_fd).collect();
        let what = "waiting for the daemons";
        let turn =
            self.reactor.wait(&pidfds, limit).map_err(|source| StartError::Io { what, source })?;
        let mut gone = Vec::new();
        for place in turn.extra.into_iter().rev() {
            let outcome = self.host.exited(&self.watched.swap_remove(place));
            if let Outcome::Exited { pid, status } = &outcome {
                gone.push((*pid, status.clone()));
            }
            self.reactor.handle(Input::Done(outcome));
        }
        for mail in turn.mail {
            match mail {
                Mail::Abort => self.command(Command::Abort),
                Mail::Done(completion) => self.complete(completion),
            }
        }
        // A successor that a wrapper started is watched from when it says who it is (C1).
        for (peer, cred) in turn.introduced {
            if let Some(process) = self.host.introduced(peer, cred) {
                self.watch_too(process);
            }
        }
        self.reactor.tick();
        Ok(gone)
    }

    fn complete(&mut self, completion: Completion) {
        let finished = self.host.finish(completion);
        if let Some(watch) = finished.watch {
            self.watch_too(watch);
        }
        if let Some(effect) = finished.again {
            self.reactor.mailbox().run(self.host.job(effect), Mail::Done);
        }
        if let Some((peer, stream)) = finished.connection {
            self.reactor.add(peer, stream);
        }
        if let Some(outcome) = finished.outcome {
            self.reactor.handle(Input::Done(outcome));
        }
    }

    /// One pidfd for each process is enough.
    fn watch_too(&mut self, process: PidFd) {
        let known = |other: &PidFd| other.pid() == process.pid() && !other.has_exited();
        if !self.watched.iter().any(known) {
            self.watched.push(process);
        }
    }
}

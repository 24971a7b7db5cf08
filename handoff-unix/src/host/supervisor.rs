use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use handoff_core::driver::ActionOf;
use handoff_core::supervisor::{self as core, Command, Effect, Event, Outcome, Spec};
use handoff_core::{HandoffId, Input, Machine as _};

use super::reactor::{Look, Mailbox, Reactor};
use super::{StartError, log};
use crate::control::ControlPath;
use crate::effects::{Completion, Job, SupervisorEffects};
use crate::probe::Users;
use crate::process::PidFd;
use crate::spawn::{Launch, become_subreaper, name_problem};

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

/// Who serves, as a supervisor found it when it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Started {
    /// Its pid.
    pub pid: u32,
    /// Whether it was started just now.
    pub started: bool,
}

/// Rolls back the handoff under way, from anywhere. Too late once it is committed.
///
/// Clones are the same. Dropping one aborts nothing.
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
    /// The daemon is to be looked for: the journal was read.
    Recovered,
}

/// What a [`SupervisorHost`] leaves to its adapter.
#[must_use = "work that is not done never completes"]
pub enum SupervisorWork {
    /// To be run where it may block. It reports to the host by itself.
    Job(Job<()>),
    /// Something to tell whoever waits for it.
    Event(Event),
    /// A process that was watched has ended, and is reaped where it was a child.
    Exited {
        /// Its pid.
        pid: u32,
        /// How it ended.
        status: String,
    },
}

/// A supervisor's machine on this system, with the listeners.
///
/// Its adapter repeats: [`work`](Self::work) until there is no more work, then wait until the
/// descriptor is readable, then [`turn`](Self::turn). Nothing in it blocks.
///
/// Dropping it ends nobody: daemons outlive their supervisor. Between [`Event::Finished`] and the next
/// handoff there is nothing to lose by that; in the middle of one it is as if the supervisor had died.
pub struct SupervisorHost {
    reactor: Reactor<core::Supervisor, Mail>,
    effects: SupervisorEffects,
    names: Vec<String>,
    no_listeners: bool,
    watched: Vec<(u64, PidFd)>,
    named: u64,
    jobs: VecDeque<Job<()>>,
    exits: VecDeque<(u32, String)>,
    recovering: bool,
}

impl SupervisorHost {
    /// A supervisor without listeners. Makes this process the reaper of its daemons' orphans (R14).
    ///
    /// # Errors
    ///
    /// A control path too long for a socket or in no directory, no descriptors left.
    pub fn new(config: SupervisorConfig) -> Result<Self, StartError> {
        let control = ControlPath::new(config.control_path)?;
        control.check_directory()?;
        let io = |what| move |source| StartError::Io { what, source };
        become_subreaper().map_err(io("becoming a subreaper"))?;
        let users = Users(config.core.allowed_uids.clone());
        let machine = core::Supervisor::new(config.core);
        let reactor = Reactor::new(machine).map_err(io("making the descriptors to wait on"))?;
        Ok(Self {
            reactor,
            effects: SupervisorEffects::new(control, config.data_dir, config.journal, users),
            names: Vec::new(),
            no_listeners: config.no_listeners,
            watched: Vec::new(),
            named: 0,
            jobs: VecDeque::new(),
            exits: VecDeque::new(),
            recovering: false,
        })
    }

    /// Keeps a listener, for every daemon it starts from now on to inherit under this name (R13). Its
    /// mode is not changed.
    ///
    /// # Errors
    ///
    /// A name that is taken, empty, or has a colon.
    pub fn listener(&mut self, name: &str, fd: OwnedFd) -> Result<(), StartError> {
        let taken = self.names.iter().any(|taken| taken == name);
        let problem = name_problem(name).or(taken.then_some("is given twice"));
        if let Some(problem) = problem {
            return Err(StartError::ListenerName { name: name.to_string(), problem });
        }
        self.names.push(name.to_string());
        self.effects.listener(name.to_string(), fd);
        Ok(())
    }

    /// Begins to find out who serves; where nobody does and the lock is free, `launch` is started
    /// (R10, R17). [`Event::Serving`] or [`Event::NobodyServes`] is the end of it.
    ///
    /// # Errors
    ///
    /// It is busy.
    pub fn start(&mut self, launch: &Launch) -> Result<(), StartError> {
        self.check_idle()?;
        self.effects.launch(launch.clone(), Spec::default().hello_budget);
        self.recovering = true;
        let (recover, to) = (self.effects.recover(), self.reactor.mailbox().clone());
        self.jobs.push_back(Box::new(move || {
            recover();
            to.send(Mail::Recovered);
        }));
        self.reactor.mailbox().wake();
        Ok(())
    }

    /// Begins a handoff (C, R). [`Event::Finished`] is the end of it.
    ///
    /// # Errors
    ///
    /// It holds no listeners, or is busy: nothing was done.
    pub fn handoff(&mut self, handoff: &Handoff) -> Result<(), StartError> {
        self.check_idle()?;
        if self.names.is_empty() && !self.no_listeners {
            return Err(StartError::NoListeners);
        }
        self.effects.launch(handoff.launch.clone(), handoff.spec.hello_budget);
        let command = Command::Handoff { id: HandoffId::new(), spec: handoff.spec };
        self.reactor.handle(Input::Command(command));
        self.reactor.mailbox().wake();
        Ok(())
    }

    /// Takes in mail, so that an abort that was meant for what came before has nothing to end.
    fn check_idle(&mut self) -> Result<(), StartError> {
        self.read_mail();
        if self.is_idle() { Ok(()) } else { Err(StartError::Busy) }
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.reactor.machine().idle() && !self.recovering
    }

    /// A handle that rolls back the handoff under way.
    #[must_use]
    pub fn aborter(&self) -> Aborter {
        Aborter(self.reactor.mailbox().clone())
    }

    /// Work that ends every daemon it started: SIGTERM, `grace`, SIGKILL, each with all its process
    /// group, and a bounded wait (R14). It gives the pids that would not die.
    #[must_use]
    pub fn end_all(&self, grace: Duration) -> Job<Vec<u32>> {
        self.effects.end_all(grace)
    }

    /// What is to be done next. `None` when there is nothing, until the next [`turn`](Self::turn) or
    /// the next thing that is asked for.
    pub fn work(&mut self) -> Option<SupervisorWork> {
        if let Some(job) = self.jobs.pop_front() {
            return Some(SupervisorWork::Job(job));
        }
        if let Some((pid, status)) = self.exits.pop_front() {
            return Some(SupervisorWork::Exited { pid, status });
        }
        while let Some(action) = self.reactor.next_action() {
            match action {
                ActionOf::<core::Supervisor>::Do(effect) => {
                    return Some(SupervisorWork::Job(self.job(effect)));
                }
                ActionOf::<core::Supervisor>::Event(event) => {
                    log(self.reactor.machine().state_name(), event.is_trouble(), &event);
                    return Some(SupervisorWork::Event(event));
                }
                ActionOf::<core::Supervisor>::Cancel
                | ActionOf::<core::Supervisor>::Close { .. } => {}
            }
        }
        self.reactor.settle();
        None
    }

    /// Takes in what has arrived, and then the time; whether there was anything.
    ///
    /// # Errors
    ///
    /// The descriptors cannot be waited on: the host is of no use any more.
    pub fn turn(&mut self) -> io::Result<bool> {
        let Look { any, names, introduced } = self.reactor.look()?;
        // The exit of a process before the completion that would commit to it.
        for name in names {
            if let Some(place) = self.watched.iter().position(|(watched, _)| *watched == name) {
                let (_, process) = self.watched.swap_remove(place);
                self.reactor.unwatch(&process);
                let outcome = self.effects.exited(&process);
                if let Outcome::Exited { pid, status } = &outcome {
                    self.exits.push_back((*pid, status.clone()));
                }
                self.reactor.handle(Input::Done(outcome));
            }
        }
        self.read_mail();
        // A successor that a wrapper started is watched from when it says who it is (C1).
        for (peer, cred) in introduced {
            if let Some(process) = self.effects.introduced(peer, cred) {
                self.watch(process);
            }
        }
        self.reactor.tick();
        Ok(any)
    }

    fn read_mail(&mut self) {
        while let Some(mail) = self.reactor.mail() {
            match mail {
                Mail::Abort => self.reactor.handle(Input::Command(Command::Abort)),
                Mail::Recovered => {
                    self.recovering = false;
                    let own = self.effects.own();
                    self.reactor.handle(Input::Command(Command::Start { own }));
                }
                Mail::Done(completion) => self.complete(completion),
            }
        }
    }

    fn complete(&mut self, completion: Completion) {
        let finished = self.effects.finish(completion);
        if let Some(process) = finished.watch {
            self.watch(process);
        }
        if let Some(effect) = finished.again {
            let job = self.job(effect);
            self.jobs.push_back(job);
        }
        if let Some((peer, stream)) = finished.connection {
            self.reactor.add(peer, stream);
        }
        if let Some(outcome) = finished.outcome {
            self.reactor.handle(Input::Done(outcome));
        }
    }

    fn job(&self, effect: Effect) -> Job<()> {
        let (job, to) = (self.effects.job(effect), self.reactor.mailbox().clone());
        Box::new(move || to.send(Mail::Done(job())))
    }

    /// One pidfd for each process is enough.
    fn watch(&mut self, process: PidFd) {
        let known = |other: &PidFd| other.pid() == process.pid() && !other.has_exited();
        if self.watched.iter().any(|(_, other)| known(other)) {
            return;
        }
        self.named += 1;
        if let Err(error) = self.reactor.watch(&process, self.named) {
            tracing::warn!(pid = process.pid(), %error, "a process cannot be watched");
        }
        self.watched.push((self.named, process));
    }
}

impl AsFd for SupervisorHost {
    /// Readable when a [`turn`](Self::turn) is due.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reactor.as_fd()
    }
}

impl fmt::Debug for SupervisorHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SupervisorHost").field(&self.reactor).finish()
    }
}

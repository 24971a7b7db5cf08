use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use handoff_core::driver::ActionOf;
use handoff_core::supervisor::{self as core, Command, Effect, Event, Outcome, Report, Spec};
use handoff_core::{HandoffId, Input, Machine as _};

use super::channel::{Receiver, Sender, channel};
use super::observe::Observer;
use super::reactor::{Look, Mailbox, Reactor};
use super::{Host, StartError, step};
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

    /// The control path, the data directory and the journal, for a supervisor that is not this crate's.
    #[must_use]
    pub fn paths(&self) -> (&Path, Option<&Path>, Option<&Path>) {
        (&self.control_path, self.data_dir.as_deref(), self.journal.as_deref())
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
    id: Option<HandoffId>,
}

impl Handoff {
    /// A handoff to what `launch` starts, with the durations of [`Spec::default`].
    #[must_use]
    pub fn new(launch: Launch) -> Self {
        Self { launch, spec: Spec::default(), id: None }
    }

    /// Gives it this id, which no handoff has had before; without this it gets a fresh one when it begins.
    #[must_use]
    pub const fn id(mut self, id: HandoffId) -> Self {
        self.id = Some(id);
        self
    }

    /// Only has the successor start, warm up and say Hello, and ends it then: the incumbent is left alone,
    /// and the verdict is [`DryRun`](core::Verdict::DryRun).
    #[must_use]
    pub const fn dry_run(mut self) -> Self {
        self.spec.dry_run = true;
        self
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

    /// What is started and how long things may take, for a supervisor that is not this crate's.
    #[must_use]
    pub const fn parts(&self) -> (&Launch, &Spec) {
        (&self.launch, &self.spec)
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

/// What reaches a supervisor's host from outside.
#[derive(Debug)]
enum Mail {
    Done(Completion),
    /// The journal was read: the daemon is to be looked for.
    Recovered,
    Listener(String, OwnedFd),
    Ask(u64, Ask, Sender<Told>),
    /// Nobody waits for the answer any more.
    Abandoned(u64),
    Abort,
    End(Duration, Sender<Vec<u32>>),
    /// They are, but for these.
    AllEnded(Vec<u32>, Sender<Vec<u32>>),
    /// The supervisor was dropped.
    Closing,
}

/// What a supervisor can be asked for, one at a time.
#[derive(Debug)]
pub(super) enum Ask {
    /// Without anything to launch, it is only found out who serves.
    Start(Option<Launch>),
    Handoff(Handoff),
}

/// What is told of it.
#[derive(Debug)]
pub(super) enum Told {
    Event(Event),
    Refused(StartError),
}

impl Told {
    /// The answer to [`Ask::Start`], when this is it.
    pub(super) fn started(self) -> Option<Result<Started, StartError>> {
        match self {
            Self::Event(Event::Serving { pid, started }) => Some(Ok(Started { pid, started })),
            Self::Event(Event::NobodyServes(reason)) => Some(Err(StartError::NobodyServes(reason))),
            Self::Refused(error) => Some(Err(error)),
            Self::Event(_) => None,
        }
    }

    /// The answer to [`Ask::Handoff`], when this is it; `on` is told of events.
    pub(super) fn finished(
        self,
        on: &mut impl FnMut(&Event),
    ) -> Option<Result<Report, StartError>> {
        match self {
            Self::Refused(error) => Some(Err(error)),
            Self::Event(event) => {
                on(&event);
                match event {
                    Event::Finished(report) => Some(Ok(report)),
                    _ => None,
                }
            }
        }
    }
}

/// A supervisor's host, as its user sees it.
///
/// Dropping it ends no daemon: a handoff under way is rolled back, and then the host ends.
#[derive(Debug)]
pub struct Front {
    post: Mailbox<Mail>,
    names: Mutex<Vec<String>>,
    /// How many questions were asked.
    asked: AtomicU64,
    exits: Receiver<(u32, String)>,
}

impl Front {
    /// Keeps a listener, for every daemon that is started from now on to inherit under this name
    /// (R13). Its mode is not changed.
    ///
    /// # Errors
    ///
    /// A name that is taken, empty, or has a colon.
    pub fn listener(&self, name: &str, fd: OwnedFd) -> Result<(), StartError> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = names.iter().any(|taken| taken == name);
        if let Some(problem) = name_problem(name).or(taken.then_some("is given twice")) {
            return Err(StartError::ListenerName { name: name.to_string(), problem });
        }
        names.push(name.to_string());
        self.post.send(Mail::Listener(name.to_string(), fd));
        Ok(())
    }

    /// A handle that rolls back the handoff under way.
    #[must_use]
    pub fn aborter(&self) -> Aborter {
        Aborter(self.post.clone())
    }

    /// Asks for the daemon to be found or started, and calls `turn`, which runs the host, until that
    /// has an answer.
    ///
    /// # Errors
    ///
    /// Those of the answer and of `turn`.
    pub fn start(
        &self,
        launch: &Launch,
        turn: impl FnMut() -> Result<(), StartError>,
    ) -> Result<Started, StartError> {
        wait(&self.ask(Ask::Start(Some(launch.clone()))).1, turn, Told::started)?
    }

    /// Asks for a handoff, and calls `turn`, which runs the host, until that has come to an end. `on`
    /// is told what happens.
    ///
    /// # Errors
    ///
    /// Those of the answer and of `turn`.
    pub fn handoff(
        &self,
        handoff: &Handoff,
        mut on: impl FnMut(&Event),
        turn: impl FnMut() -> Result<(), StartError>,
    ) -> Result<Report, StartError> {
        let (_, told) = self.ask(Ask::Handoff(handoff.clone()));
        wait(&told, turn, |told| told.finished(&mut on))?
    }

    /// Asks for every daemon to be ended (R14), and calls `turn`, which runs the host, until they are.
    /// Gives the pids that would not die.
    ///
    /// # Errors
    ///
    /// Those of `turn`.
    pub fn shutdown(
        &self,
        grace: Duration,
        turn: impl FnMut() -> Result<(), StartError>,
    ) -> Result<Vec<u32>, StartError> {
        wait(&self.end(grace), turn, Some)
    }

    /// Gives up what is under way, and has the host end once that is settled.
    pub fn close(&self) {
        self.post.send(Mail::Closing);
    }

    /// A daemon that has ended, if there is one that was not told of.
    pub fn exit(&self) -> Option<(u32, String)> {
        self.exits.try_next()
    }

    pub(super) fn exits(&self) -> &Receiver<(u32, String)> {
        &self.exits
    }

    /// Asks; gives the number of the question and what is told of it.
    pub(super) fn ask(&self, ask: Ask) -> (u64, Receiver<Told>) {
        let (sender, told) = channel();
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        self.post.send(Mail::Ask(number, ask, sender));
        (number, told)
    }

    /// Nobody waits for the answer any more: what is under way for it is aborted.
    pub(super) fn abandon(&self, number: u64) {
        self.post.send(Mail::Abandoned(number));
    }

    pub(super) fn end(&self, grace: Duration) -> Receiver<Vec<u32>> {
        let (sender, ended) = channel();
        self.post.send(Mail::End(grace, sender));
        ended
    }
}

fn wait<T, R>(
    told: &Receiver<T>,
    mut turn: impl FnMut() -> Result<(), StartError>,
    mut answer: impl FnMut(T) -> Option<R>,
) -> Result<R, StartError> {
    loop {
        while let Some(told) = told.try_next() {
            if let Some(answer) = answer(told) {
                return Ok(answer);
            }
        }
        turn()?;
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.close();
    }
}

/// A supervisor's machine on this system, with the listeners.
///
/// Dropping it ends nobody: daemons outlive their supervisor. Between handoffs there is nothing to
/// lose by that; in the middle of one it is as if the supervisor had died.
#[derive(Debug)]
pub struct SupervisorHost {
    reactor: Reactor<core::Supervisor, Mail>,
    effects: SupervisorEffects,
    no_listeners: bool,
    watched: Vec<(u64, PidFd)>,
    named: u64,
    /// What is left of an effect, and what is no effect.
    jobs: Jobs,
    /// How many jobs have not reported yet.
    in_flight: usize,
    recovering: bool,
    /// What the supervisor before this one left is known: the journal is this one's own by now.
    recovered: bool,
    /// The search that was to follow is not wanted any more.
    given_up: bool,
    closing: bool,
    /// Answers to [`Mail::End`] that wait for what else is in flight.
    ended: Vec<(Vec<u32>, Sender<Vec<u32>>)>,
    /// Who asked last, by the number of the question.
    told: Option<(u64, Sender<Told>)>,
    exits: Sender<(u32, String)>,
    observer: Observer,
}

impl SupervisorHost {
    /// A supervisor without listeners. Makes this process the reaper of its daemons' orphans (R14).
    ///
    /// # Errors
    ///
    /// A control path too long for a socket or in no directory, no descriptors left.
    pub fn new(config: SupervisorConfig) -> Result<(Self, Front), StartError> {
        let control = ControlPath::new(config.control_path)?;
        control.check_directory()?;
        let io = |what| move |source| StartError::Io { what, source };
        become_subreaper().map_err(io("becoming a subreaper"))?;
        let users = Users(config.core.allowed_uids.clone());
        let machine = core::Supervisor::new(config.core);
        let reactor = Reactor::new(machine).map_err(io("making the descriptors to wait on"))?;
        let (sender, exits) = channel();
        let post = reactor.mailbox().clone();
        let front = Front { post, names: Mutex::default(), asked: AtomicU64::new(0), exits };
        let host = Self {
            reactor,
            effects: SupervisorEffects::new(control, config.data_dir, config.journal, users),
            no_listeners: config.no_listeners,
            watched: Vec::new(),
            named: 0,
            jobs: Jobs::default(),
            in_flight: 0,
            recovering: false,
            recovered: false,
            given_up: false,
            closing: false,
            ended: Vec::new(),
            told: None,
            exits: sender,
            observer: Observer::new(),
        };
        Ok((host, front))
    }

    fn is_idle(&self) -> bool {
        self.reactor.machine().idle() && !self.recovering
    }

    fn read_mail(&mut self) {
        while let Some(mail) = self.reactor.mail() {
            match mail {
                Mail::Done(completion) => {
                    self.in_flight -= 1;
                    self.complete(completion);
                }
                Mail::Recovered => {
                    self.in_flight -= 1;
                    let own = self.effects.own();
                    // Those that the supervisor before this one had started are reaped here now.
                    own.iter()
                        .filter_map(|pid| PidFd::open(*pid).ok())
                        .for_each(|it| self.watch(it));
                    self.recovering = false;
                    if !std::mem::take(&mut self.given_up) {
                        self.reactor.handle(Input::Command(Command::Start { own }));
                    }
                }
                Mail::Listener(name, fd) => self.effects.listener(name, fd),
                Mail::Ask(number, ask, told) => {
                    // What has happened so far is for whoever asked before.
                    for event in self.reactor.events() {
                        self.tell(event);
                    }
                    match self.begin(ask) {
                        Ok(()) => self.told = Some((number, told)),
                        Err(error) => told.send(Told::Refused(error)),
                    }
                }
                Mail::Abandoned(number) => {
                    if self.told.as_ref().is_some_and(|(asked, _)| *asked == number) {
                        self.abort();
                    }
                }
                Mail::Abort => self.abort(),
                Mail::End(grace, ended) => {
                    let (end, to) = (self.effects.end_all(grace), self.reactor.mailbox().clone());
                    self.jobs.0.push_back(Box::new(move || to.send(Mail::AllEnded(end(), ended))));
                }
                Mail::AllEnded(left, ended) => {
                    self.in_flight -= 1;
                    self.ended.push((left, ended));
                }
                Mail::Closing => {
                    self.closing = true;
                    self.abort();
                }
            }
        }
    }

    fn abort(&mut self) {
        // Busy until the journal is read and cleared: a handoff's entry must not be cleared with it.
        if self.recovering && !self.given_up {
            self.given_up = true;
            let text = "the search for who serves was aborted".to_string();
            self.tell(Event::NobodyServes(text));
        }
        self.reactor.handle(Input::Command(Command::Abort));
    }

    fn begin(&mut self, ask: Ask) -> Result<(), StartError> {
        if !self.is_idle() {
            return Err(StartError::Busy);
        }
        match ask {
            Ask::Start(launch) => {
                self.effects.launch(launch.map(|launch| (launch, Spec::default().hello_budget)));
                self.recovering = true;
                let known = std::mem::replace(&mut self.recovered, true);
                let (recover, to) = (self.effects.recover(), self.reactor.mailbox().clone());
                self.jobs.0.push_back(Box::new(move || {
                    if !known {
                        recover();
                    }
                    to.send(Mail::Recovered);
                }));
            }
            Ask::Handoff(Handoff { launch, spec, id }) => {
                if !self.effects.has_listeners() && !self.no_listeners {
                    return Err(StartError::NoListeners);
                }
                let id = id.unwrap_or_default();
                let launch = self.observer.begin(id, launch, Instant::now());
                self.effects.launch(Some((launch, spec.hello_budget)));
                let command = Command::Handoff { id, spec };
                self.reactor.handle(Input::Command(command));
            }
        }
        Ok(())
    }

    fn tell(&mut self, event: Event) {
        let mut gone = None;
        if let Event::Serving { pid, .. } = event {
            match self.effects.adopt(pid) {
                Ok(Some(process)) => self.watch(process),
                Ok(None) => {}
                // It has answered, and ended since: nobody else would tell.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                    gone = Some((pid, "it is gone".to_string()));
                }
                Err(error) => tracing::warn!(pid, %error, "the daemon cannot be watched"),
            }
        }
        self.observer.tell(&event, self.reactor.machine().state_name(), Instant::now());
        if let Some((_, told)) = &self.told {
            told.send(Told::Event(event));
        }
        gone.into_iter().for_each(|gone| self.exits.send(gone));
    }

    fn complete(&mut self, completion: Completion) {
        let finished = self.effects.finish(completion);
        if let Some(process) = finished.watch {
            self.watch(process);
        }
        if let Some(effect) = finished.again {
            let job = self.effect(effect);
            self.jobs.0.push_back(job);
        }
        if let Some((peer, stream)) = finished.connection {
            self.reactor.add(peer, stream);
        }
        if let Some(outcome) = finished.outcome {
            self.reactor.handle(Input::Done(outcome));
        }
    }

    fn effect(&self, effect: Effect) -> Job<()> {
        let (job, to) = (self.effects.job(effect.clone()), self.reactor.mailbox().clone());
        Box::new(move || {
            let completion = step(&effect, job);
            to.send(Mail::Done(completion));
        })
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

impl Host for SupervisorHost {
    fn job(&mut self) -> Option<Job<()>> {
        if let Some(job) = self.jobs.0.pop_front() {
            self.in_flight += 1;
            return Some(job);
        }
        while let Some(action) = self.reactor.next_action() {
            match action {
                ActionOf::<core::Supervisor>::Do(Effect::Journal(_))
                    if !self.effects.has_journal() =>
                {
                    self.reactor.handle(Input::Done(Outcome::Journalled(Ok(()))));
                }
                ActionOf::<core::Supervisor>::Do(effect) => {
                    // Whoever waits for a message is not to wait for the start of a job. Only an end is asked
                    // for before it is told: a supervisor that is stopped between the two for longer than the
                    // daemons wait for it (R5) would end one that has become the incumbent since.
                    let ends =
                        |it: &Effect| matches!(it, Effect::Signal { .. } | Effect::Reap { .. });
                    if !ends(&effect) {
                        self.reactor.flush_unless(ends);
                    }
                    self.in_flight += 1;
                    return Some(self.effect(effect));
                }
                ActionOf::<core::Supervisor>::Event(event) => self.tell(event),
                ActionOf::<core::Supervisor>::Cancel
                | ActionOf::<core::Supervisor>::Close { .. } => {}
            }
        }
        if self.in_flight == 0 {
            // What is written behind a report, the journal's last entry, is written by now.
            self.ended.drain(..).for_each(|(left, ended)| ended.send(left));
        }
        self.reactor.settle();
        None
    }

    fn turn(&mut self) -> io::Result<bool> {
        let Look { any, names, introduced } = self.reactor.look()?;
        // The exit of a process before the completion that would commit to it.
        for name in names {
            if let Some(place) = self.watched.iter().position(|(watched, _)| *watched == name) {
                let (_, process) = self.watched.swap_remove(place);
                self.reactor.unwatch(&process);
                let outcome = self.effects.exited(&process);
                if let Outcome::Exited { pid, status } = &outcome {
                    self.exits.send((*pid, status.clone()));
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

    fn has_ended(&self) -> bool {
        self.closing && self.is_idle() && self.in_flight == 0 && self.jobs.0.is_empty()
    }
}

#[derive(Default)]
struct Jobs(VecDeque<Job<()>>);

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Jobs").field(&self.0.len()).finish()
    }
}

impl AsFd for SupervisorHost {
    /// Readable when a turn is due.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reactor.as_fd()
    }
}

use handoff_core::daemon::{self, Daemon, Hook};
use handoff_core::supervisor::{self, Supervisor};
use serde::{Deserialize, Serialize};

/// A process id. The supervisor's is [`SUPERVISOR`], daemons count up from it.
pub type Pid = u32;

/// The supervisor's pid.
pub const SUPERVISOR: Pid = 1;

/// How far the kernel lets a process run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// It runs.
    Running,
    /// SIGSTOP: it does nothing, and holds what it holds.
    Stopped,
}

/// Why a process is no more.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Death {
    /// A fault of the run, which it may have ended for by itself.
    Crashed,
    /// A signal of another process of the run.
    Signalled,
    /// By itself, with this exit code.
    Exited(u8),
}

/// What a process has asked its host to do, by kind. The hooks are the program's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is the effect of its name")]
pub enum Job {
    Probe,
    Spawn { successor: bool },
    Connect,
    CheckLock,
    Journal,
    Reap(Pid),
    TakeLock,
    ReleaseLock,
    ClaimPath,
    Open,
    Drain,
    Seal,
    Resume,
}

impl Job {
    /// Whether it is the program's.
    #[must_use]
    pub const fn is_hook(self) -> bool {
        matches!(self, Self::Open | Self::Drain | Self::Seal | Self::Resume)
    }

    pub(super) const fn of_hook(hook: &Hook) -> Self {
        match hook {
            Hook::Open => Self::Open,
            Hook::Drain { .. } => Self::Drain,
            Hook::Seal => Self::Seal,
            Hook::Resume => Self::Resume,
        }
    }
}

/// What is in flight, at most one of a kind, and what came of it where it is done but not yet
/// reported.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Jobs<O> {
    list: Vec<(Job, Option<O>)>,
}

impl<O> Default for Jobs<O> {
    fn default() -> Self {
        Self { list: Vec::new() }
    }
}

impl<O> Jobs<O> {
    /// Whether it could be added: none of its kind was there.
    pub(super) fn add(&mut self, job: Job) -> bool {
        match self.list.binary_search_by_key(&job, |(job, _)| *job) {
            Ok(_) => false,
            Err(place) => {
                self.list.insert(place, (job, None));
                true
            }
        }
    }

    pub(super) fn done(&mut self, job: Job, outcome: O) {
        if let Some(entry) = self.list.iter_mut().find(|entry| entry.0 == job) {
            entry.1 = Some(outcome);
        }
    }

    pub(super) fn remove(&mut self, job: Job) -> Option<O> {
        let place = self.list.iter().position(|entry| entry.0 == job)?;
        self.list.remove(place).1
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Job, bool)> + '_ {
        self.list.iter().map(|(job, done)| (*job, done.is_some()))
    }

    pub(super) fn hook(&self) -> Option<Job> {
        self.iter().map(|(job, _)| job).find(|job| job.is_hook())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// The supervisor's process, and what the program around the machine knows.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Boss {
    pub(super) machine: Supervisor,
    pub(super) status: Status,
    pub(super) jobs: Jobs<supervisor::Outcome>,
    /// Whose exit it is told of, once.
    pub(super) watched: Vec<Pid>,
    /// How long the journal may still take.
    pub(super) effort: Effort,
    /// Who serves, as far as it was told.
    pub(super) serving: Option<Pid>,
    /// It is to find out who serves.
    pub(super) to_start: bool,
    /// Whom it started in the handoff under way.
    pub(super) successor: Option<Pid>,
    /// Whom it has signalled to end in that handoff.
    pub(super) ended: Vec<Pid>,
}

impl Boss {
    pub(super) fn new(machine: Supervisor) -> Self {
        Self {
            machine,
            status: Status::Running,
            jobs: Jobs::default(),
            watched: Vec::new(),
            effort: Effort::BRISK,
            serving: None,
            to_start: true,
            successor: None,
            ended: Vec::new(),
        }
    }

    pub(super) fn journals(&self) -> bool {
        self.jobs.iter().any(|(job, _)| job == Job::Journal)
    }

    pub(super) fn watch(&mut self, pid: Pid) {
        if let Err(place) = self.watched.binary_search(&pid) {
            self.watched.insert(place, pid);
        }
    }
}

/// How long a program takes for what it does now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Effort {
    /// At most so many units more.
    Within(u8),
    /// Any time, more than it is given included.
    Dawdles,
    /// For ever.
    Hangs,
}

impl Effort {
    /// What everything takes unless a fault makes it slower.
    pub(super) const BRISK: Self = Self::Within(1);

    pub(super) const fn passed(self) -> Self {
        match self {
            Self::Within(units) => Self::Within(units.saturating_sub(1)),
            slow => slow,
        }
    }
}

/// A living daemon: the machine, its program and what it holds.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Worker {
    pub(super) machine: Daemon,
    pub(super) status: Status,
    pub(super) jobs: Jobs<daemon::Outcome>,
    /// SIGTERM was sent to it.
    pub(super) term: bool,
    /// The program has asked for the lock (Command::Begin).
    pub(super) warm: bool,
    /// It has tried to take the lock.
    pub(super) begun: bool,
    /// The running hook was told that its handoff has ended.
    pub(super) cancelled: bool,
    /// How long the warm-up or the hook may still take.
    pub(super) effort: Effort,
    /// The data is open.
    pub(super) open: bool,
    /// Connections are accepted.
    pub(super) accepting: bool,
    /// How often drain, seal and resume ran in this handoff.
    pub(super) ran: [u8; 3],
    /// Its data could not be opened.
    pub(super) fails: bool,
    /// It is fit to serve once its data is open.
    pub(super) healthy: bool,
    /// For how many seconds it has tried to take the lock back, where a planted bug counts them.
    pub(super) tried: u8,
    /// Whom it may signal.
    pub(super) successor: Option<Pid>,
    /// The exit code it is about to end with.
    pub(super) ended: Option<u8>,
    /// Its last heartbeat was kept back: one of a legacy daemon's two.
    pub(super) skipped: bool,
    /// Something beside the control path has changed, and it was not told yet.
    pub(super) path_changed: bool,
}

impl Worker {
    pub(super) fn new(machine: Daemon) -> Self {
        Self {
            machine,
            status: Status::Running,
            jobs: Jobs::default(),
            term: false,
            warm: false,
            begun: false,
            cancelled: false,
            effort: Effort::BRISK,
            open: false,
            accepting: false,
            ran: [0; 3],
            fails: false,
            healthy: true,
            tried: 0,
            successor: None,
            ended: None,
            skipped: false,
            path_changed: false,
        }
    }
}

/// A place in the table of daemons.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[allow(clippy::large_enum_variant, reason = "most of them are alive, and there are few")]
pub(super) enum Slot {
    Alive(Worker),
    Dead(Death),
}

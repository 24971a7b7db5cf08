use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use handoff_core::supervisor::{Effect, Entry, LockState, Outcome, Peer, Step};
use handoff_core::{Credentials, HandoffId};
use serde::{Deserialize, Serialize};

use super::{Job, daemon::to_unix};
use crate::control::ControlPath;
use crate::journal::{JournalFile, Loaded};
use crate::lock;
use crate::probe::{Users, probed};
use crate::process::{PidFd, ProcessGroup, Signal, is_stopped, leads_a_group, start_time};
use crate::spawn::{Child, Launch, SpawnError, SpawnRole, spawn};
use crate::stream::ControlStream;

/// How long a connection to the control path may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How often a process group is looked at once its leader is gone: there is no event for it.
const GROUP_POLL: Duration = Duration::from_millis(2);

/// How long one job waits for a process group to be gone, before the next one does.
const REAP_SHARE: Duration = Duration::from_millis(100);

/// How long a process group may take to be gone once it was killed.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// What a [`Job`] of the supervisor's came to, for [`SupervisorEffects::finish`].
#[derive(Debug)]
pub struct Completion(Done);

#[derive(Debug)]
enum Done {
    Outcome(Outcome),
    NotReaped(u32),
    Spawned(Result<(PidFd, Option<UnixStream>), String>),
    Connected(Result<(ControlStream, Option<PidFd>), String>),
}

/// What a completion means to the adapter.
#[derive(Debug)]
pub struct Finished {
    /// For the machine.
    pub outcome: Option<Outcome>,
    /// What is not done yet: an effect to be given to [`SupervisorEffects::job`] once more.
    pub again: Option<Effect>,
    /// A connection to read and write from now on. It is introduced before the outcome is given.
    pub connection: Option<(Peer, ControlStream)>,
    /// A process to watch from now on.
    pub watch: Option<PidFd>,
}

/// What a supervisor's effects act on: listeners, children, the control path, the journal.
///
/// Dropping it ends nobody: daemons outlive their supervisor.
#[derive(Debug)]
pub struct SupervisorEffects {
    control: ControlPath,
    data_dir: Option<PathBuf>,
    users: Users,
    journal: Option<Arc<JournalFile>>,
    listeners: Vec<(String, Arc<OwnedFd>)>,
    launch: Option<(Launch, Duration)>,
    groups: Arc<Mutex<BTreeMap<u32, Group>>>,
    /// The groups of those that are watched: whose group is gone is told of with its status none the less.
    watched: BTreeMap<u32, Group>,
    /// Who held the lock at the last look, if anybody is known. 0 is nobody.
    holder: Arc<AtomicU32>,
    /// A daemon that was found to serve, in a process group that is not its own, and when it was started.
    lone: Arc<Mutex<Option<(u32, u64)>>>,
}

/// A process group that was started here, and with what.
#[derive(Clone, Debug)]
struct Group {
    group: Arc<ProcessGroup>,
    program: Option<PathBuf>,
}

impl SupervisorEffects {
    /// A host without listeners and children.
    #[must_use]
    pub fn new(
        control: ControlPath,
        data_dir: Option<PathBuf>,
        journal: Option<PathBuf>,
        users: Users,
    ) -> Self {
        Self {
            control,
            data_dir,
            users,
            journal: journal.map(|path| Arc::new(JournalFile::new(path))),
            listeners: Vec::new(),
            launch: None,
            groups: Arc::default(),
            watched: BTreeMap::new(),
            holder: Arc::default(),
            lone: Arc::default(),
        }
    }

    /// Keeps a listener for every daemon that is started from now on. Its mode is not changed (R13).
    pub fn listener(&mut self, name: String, fd: OwnedFd) {
        self.listeners.push((name, Arc::new(fd)));
    }

    /// Whether it keeps any.
    #[must_use]
    pub fn has_listeners(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// Whether it keeps a journal (R9).
    #[must_use]
    pub const fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    /// Work that reads what the supervisor before this one was doing (R10), tells of it, counts the
    /// processes it had started, where they still run, among its own, and clears the journal of all but
    /// these. One that cannot be read is set aside, with a warning.
    #[must_use]
    pub fn recover(&self) -> Job<()> {
        let (journal, groups) = (self.journal.clone(), Arc::clone(&self.groups));
        Box::new(move || {
            if let Some(journal) = journal
                && let Some(Entry { id, step, .. }) = left_behind(&journal, &groups)
            {
                tracing::warn!(%id, ?step, "the supervisor before this one left a handoff behind");
                // It can be removed where there is no room to write it.
                let cleared = note_started(&journal, &groups).or_else(|_| journal.clear());
                if let Err(error) = cleared {
                    tracing::warn!(%error, "the journal cannot be cleared");
                }
            }
        })
    }

    /// What [`Effect::Spawn`] starts from now on, and the budget it is told (C3). `None`: nothing, it fails.
    pub fn launch(&mut self, launch: Option<(Launch, Duration)>) {
        self.launch = launch;
    }

    /// Counts a daemon that was found to serve among those it started (R10): it is ended and reaped as they
    /// are, with its process group where it leads one, and by itself where its group is somebody else's.
    /// Gives the process to watch, if it was not known.
    ///
    /// # Errors
    ///
    /// It has ended meanwhile, or cannot be watched.
    pub fn adopt(&self, pid: u32) -> io::Result<Option<PidFd>> {
        if self.groups().contains_key(&pid) {
            return Ok(None);
        }
        let process = PidFd::open(pid)?;
        if leads_a_group(pid) {
            let group = Arc::new(ProcessGroup::of(pid)?);
            self.groups().insert(pid, Group { group, program: None });
        } else {
            let known = start_time(pid).map(|start| (pid, start));
            *self.lone.lock().unwrap_or_else(PoisonError::into_inner) = known;
        }
        Ok(Some(process))
    }

    /// The processes it started that still run.
    #[must_use]
    pub fn own(&self) -> Vec<u32> {
        self.groups().keys().copied().collect()
    }

    /// The work that carries out an effect.
    #[must_use]
    pub fn job(&self, effect: Effect) -> Job<Completion> {
        let control = self.control.clone();
        let groups = Arc::clone(&self.groups);
        match effect {
            Effect::Probe => {
                let users = self.users.clone();
                done(move || Outcome::Probed(probed(&control, &users)))
            }
            Effect::Spawn { successor } => {
                let (launch, listeners) = (self.launch.clone(), self.listeners.clone());
                // For one that is started in a handoff the machine does it.
                let journal = self.journal.clone().filter(|_| !successor);
                Box::new(move || {
                    let program = launch.as_ref().map(|(launch, _)| launch.program.clone());
                    let child = start(launch, &listeners, successor);
                    let child = child.map(|child| {
                        let Child { pid, pidfd, group, control } = child;
                        let group = Group { group: Arc::new(group), program };
                        own_groups(&groups).insert(pid, group);
                        (pidfd, control)
                    });
                    if let (Some(journal), Ok(_)) = (journal, &child)
                        && let Err(error) = note_started(&journal, &groups)
                    {
                        let path = journal.path().display();
                        tracing::warn!(%path, %error, "what was started cannot be written");
                    }
                    Completion(Done::Spawned(child))
                })
            }
            Effect::Connect => Box::new(move || {
                let connected = connect(&control).map_err(|error| {
                    format!("cannot connect to {}: {error}", control.as_path().display())
                });
                Completion(Done::Connected(connected))
            }),
            Effect::CheckLock { by } => {
                let (data_dir, holder) = (self.data_dir.clone(), Arc::clone(&self.holder));
                done(move || {
                    Outcome::LockChecked(match data_dir {
                        Some(dir) => check_lock(&dir, by, &holder),
                        None => LockState::Unknown,
                    })
                })
            }
            Effect::Signal { pid, signal } => {
                let group = self.groups().get(&pid).cloned();
                done(move || {
                    Outcome::Signalled(match group {
                        Some(Group { group, .. }) => {
                            // Who is stopped cannot take it, and must not go on before it ends.
                            let signal =
                                if is_stopped(pid) { Signal::KILL } else { to_unix(signal) };
                            group.signal(signal).map(drop).map_err(|e| e.to_string())
                        }
                        None => Err(format!("pid {pid} is no child of this supervisor")),
                    })
                })
            }
            Effect::Reap { pid } => Box::new(move || {
                let group = own_groups(&groups).get(&pid).cloned();
                if let Some(Group { group, .. }) = group {
                    // A share of the wait at a time, so that whoever runs this is never held up for long.
                    let limit = Instant::now() + REAP_SHARE;
                    let leader = PidFd::open(pid).ok();
                    while !group.is_gone() {
                        let left = limit.saturating_duration_since(Instant::now());
                        if left.is_zero() {
                            return Completion(Done::NotReaped(pid));
                        }
                        match &leader {
                            Some(leader) if !leader.has_exited() => {
                                let _ = leader.wait(Some(left));
                            }
                            _ => std::thread::sleep(GROUP_POLL),
                        }
                    }
                    own_groups(&groups).remove(&pid);
                }
                // Whoever held the lock meanwhile may have found the process still alive (R6, I6).
                control.remove_stale();
                Completion(Done::Outcome(Outcome::Reaped { pid }))
            }),
            Effect::Journal(entry) => {
                let journal = self.journal.clone();
                done(move || {
                    Outcome::Journalled(match journal {
                        Some(journal) => write_entry(&journal, entry, &groups)
                            .map_err(|error| format!("{}: {error}", journal.path().display())),
                        None => Ok(()),
                    })
                })
            }
        }
    }

    /// Takes what a job came to.
    #[must_use]
    pub fn finish(&mut self, completion: Completion) -> Finished {
        let finished = |outcome| Finished {
            outcome: Some(outcome),
            again: None,
            connection: None,
            watch: None,
        };
        match completion.0 {
            Done::Outcome(outcome) => finished(outcome),
            Done::NotReaped(pid) => Finished {
                outcome: None,
                again: Some(Effect::Reap { pid }),
                connection: None,
                watch: None,
            },
            Done::Spawned(Err(error)) => finished(Outcome::Spawned(Err(error))),
            Done::Spawned(Ok((pidfd, control))) => {
                let pid = pidfd.pid();
                if let Some(group) = own_groups(&self.groups).get(&pid) {
                    self.watched.insert(pid, group.clone());
                }
                let stream = control.and_then(|stream| ControlStream::to_child(stream, pid).ok());
                Finished {
                    outcome: Some(Outcome::Spawned(Ok(pid))),
                    again: None,
                    connection: stream.map(|stream| (Peer::Successor, stream)),
                    watch: Some(pidfd),
                }
            }
            Done::Connected(Err(error)) => finished(Outcome::Connected(Err(error))),
            Done::Connected(Ok((stream, watch))) => Finished {
                outcome: Some(Outcome::Connected(Ok(()))),
                again: None,
                connection: Some((Peer::Incumbent, stream)),
                watch,
            },
        }
    }

    /// A peer was introduced: a process to watch, where it is not the one that was started (C1).
    #[must_use]
    pub fn introduced(&self, peer: Peer, cred: Credentials) -> Option<PidFd> {
        let started = self.groups().contains_key(&cred.pid);
        (peer == Peer::Successor && !started).then(|| PidFd::open(cred.pid).ok()).flatten()
    }

    /// A watched process has exited: the input for the machine. Reaps it, if it is a child.
    #[must_use]
    pub fn exited(&mut self, process: &PidFd) -> Outcome {
        let pid = process.pid();
        let group = self.watched.remove(&pid).or_else(|| self.groups().get(&pid).cloned());
        if group.is_none() {
            // It may be of a group that a wrapper led, and have been left to this process.
            let groups: Vec<Group> = self.groups().values().cloned().collect();
            let reaped = groups.iter().flat_map(|it| it.group.reap()).find(|it| it.pid == pid);
            if let Some(reaped) = reaped {
                return Outcome::Exited { pid, status: reaped.cause.to_string() };
            }
        }
        let status = group.and_then(|Group { group, program }| {
            group.reap();
            let status = group.leader_status()?;
            if group.is_gone() {
                self.groups().remove(&pid);
            }
            Some(match program {
                Some(program) => format!("{status} ({})", program.display()),
                None => status.to_string(),
            })
        });
        let status = status.unwrap_or_else(|| "it is gone".to_string());
        Outcome::Exited { pid, status }
    }

    /// Work that ends every process it started: SIGTERM, `grace`, SIGKILL, and a bounded wait (R14).
    /// It gives the leaders of groups that would not die.
    #[must_use]
    pub fn end_all(&self, grace: Duration) -> Job<Vec<u32>> {
        let (groups, lone) = (Arc::clone(&self.groups), Arc::clone(&self.lone));
        Box::new(move || {
            let lone = lone.lock().unwrap_or_else(PoisonError::into_inner).take();
            // Its number may have come to mean another.
            let lone = lone.and_then(|(pid, start)| {
                PidFd::open(pid).ok().filter(|_| start_time(pid) == Some(start))
            });
            let lone_runs = || lone.as_ref().filter(|process| !process.has_exited());
            for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, KILL_WAIT)] {
                let limit = Instant::now().checked_add(patience);
                for Group { group, .. } in own_groups(&groups).values() {
                    if let Err(error) = group.signal(signal) {
                        tracing::warn!(group = group.id(), %error, "cannot signal a process group");
                    }
                }
                if let Some(process) = lone_runs()
                    && let Err(error) = process.signal(signal)
                {
                    tracing::warn!(pid = process.pid(), %error, "cannot signal the daemon");
                }
                loop {
                    own_groups(&groups).retain(|_, group| !group.group.is_gone());
                    if own_groups(&groups).is_empty() && lone_runs().is_none() {
                        return Vec::new();
                    }
                    if limit.is_some_and(|limit| Instant::now() >= limit) {
                        break;
                    }
                    std::thread::sleep(GROUP_POLL);
                }
            }
            let stuck = own_groups(&groups).keys().copied().collect::<Vec<u32>>();
            stuck.into_iter().chain(lone_runs().map(PidFd::pid)).collect()
        })
    }

    fn groups(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Group>> {
        own_groups(&self.groups)
    }
}

fn own_groups(
    groups: &Mutex<BTreeMap<u32, Group>>,
) -> std::sync::MutexGuard<'_, BTreeMap<u32, Group>> {
    groups.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stands in the journal: the entry, and which processes were started here and when, because a
/// pid alone may come to mean another process.
#[derive(Serialize, Deserialize)]
struct Record {
    entry: Entry,
    started: Vec<(u32, u64)>,
}

fn left_behind(journal: &JournalFile, groups: &Mutex<BTreeMap<u32, Group>>) -> Option<Entry> {
    let payload = match journal.load() {
        Loaded::Absent | Loaded::Entry { same_boot: false, .. } => return None,
        Loaded::Entry { payload, same_boot: true } => payload,
        Loaded::SetAside { moved_to, reason } => {
            let path = journal.path().display();
            tracing::warn!(%path, ?moved_to, reason, "the journal cannot be read; it is set aside");
            return None;
        }
    };
    let Ok(Record { entry, started }) = postcard::from_bytes(&payload) else {
        tracing::warn!(path = %journal.path().display(), "the journal is of another version");
        return None;
    };
    for (pid, start) in started {
        if start_time(pid) == Some(start)
            && let Ok(group) = ProcessGroup::of(pid)
        {
            let group = Group { group: Arc::new(group), program: None };
            own_groups(groups).entry(pid).or_insert(group);
        }
    }
    (entry.step != Step::Idle).then_some(entry)
}

/// Writes that no handoff is under way, and which processes were started here: the supervisor after this
/// one is to know its daemons (R10), or it could not end one that hangs (R17).
fn note_started(journal: &JournalFile, groups: &Mutex<BTreeMap<u32, Group>>) -> io::Result<()> {
    let id = HandoffId::default();
    let entry = Entry { id, step: Step::Idle, incumbent: None, successor: None };
    write_entry(journal, entry, groups)
}

fn write_entry(
    journal: &JournalFile,
    entry: Entry,
    groups: &Mutex<BTreeMap<u32, Group>>,
) -> io::Result<()> {
    journal.write_with(|| {
        let pids: Vec<u32> = own_groups(groups).keys().copied().collect();
        let started = pids.into_iter().filter_map(|pid| Some((pid, start_time(pid)?))).collect();
        postcard::to_allocvec(&Record { entry, started }).map_err(io::Error::other)
    })
}

fn done(work: impl FnOnce() -> Outcome + Send + 'static) -> Job<Completion> {
    Box::new(move || Completion(Done::Outcome(work())))
}

fn start(
    launch: Option<(Launch, Duration)>,
    listeners: &[(String, Arc<OwnedFd>)],
    successor: bool,
) -> Result<Child, String> {
    let Some((launch, hello_budget)) = launch else {
        return Err("there is no binary to start".to_string());
    };
    let listeners: Vec<_> = listeners.iter().map(|(name, fd)| (name.clone(), fd.as_fd())).collect();
    let role = if successor { SpawnRole::Successor { hello_budget } } else { SpawnRole::Cold };
    spawn(&launch, &listeners, role).map_err(|error: SpawnError| error.to_string())
}

fn connect(control: &ControlPath) -> io::Result<(ControlStream, Option<PidFd>)> {
    let stream: UnixStream = control.connect(CONNECT)?;
    let stream = ControlStream::connected(stream)?;
    let watch = stream.peer_pid().and_then(|pid| PidFd::open(pid).ok());
    Ok((stream, watch))
}

/// Who holds the lock. Those who are likely to are asked before the table of all locks is read, which holds
/// up every `flock` of the machine: it may be asked many times a second for as long as somebody has it.
fn check_lock(dir: &Path, by: Option<u32>, known: &AtomicU32) -> LockState {
    let mut likely = by.into_iter().chain([known.load(Ordering::Relaxed)]);
    let holder = match likely.find(|pid| lock::is_held_by(dir, *pid)) {
        Some(pid) => Some(pid),
        None => match lock::lock_state(dir) {
            lock::LockState::Held { pid } => pid,
            lock::LockState::Free => return LockState::Free,
            lock::LockState::Unknown => return LockState::Unknown,
        },
    };
    known.store(holder.unwrap_or(0), Ordering::Relaxed);
    match holder {
        Some(pid) if is_stopped(pid) => LockState::Stopped { pid },
        pid => LockState::Held { pid },
    }
}

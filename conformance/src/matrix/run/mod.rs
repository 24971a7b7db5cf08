//! One run: a daemon under load is handed off, something happens to somebody at one of the steps, and
//! the invariants are looked at until everything has come to rest.

mod ending;
mod strikes;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use handoff_unix::host::HookError;
use handoff_unix::lock::{DataDirLock, is_held_by};
use handoff_unix::process::{PidFd, start_time};
use handoff_unix::spawn::{SpawnRole, become_subreaper, spawn};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use super::case::{Blow, Case, Ran, Role, Step, Strike};
use super::cast::{Actor, BOSS, Limits, Order, Part, Word, Wrap, by_shell, elsewhere, program};
use super::gate::{self, Answer, GATE, Held, Moment};
use super::load::{Failed, Load, Record, Request, database, lost, stored};
use super::shortage::{self, Place};
use super::stories::{self, Story};
use crate::suite::part::{self, SUITE};
use crate::suite::program::{DIRECTORIES, control_path, data_dir, journal};
pub(super) use ending::gap;
use ending::{descriptors, kill, service_variables, signal, stop};
use watch::Watch;

/// How soon somebody serves again (I5).
const SERVES: Duration = Duration::from_secs(10);

/// How long anything else may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked who holds the lock.
const WATCH: Duration = Duration::from_millis(10);

/// A machine that does not run a thread for so long stands still.
const STALL: Duration = Duration::from_millis(500);

/// How long nobody takes a step where nothing is under way.
const QUIET: Duration = Duration::from_millis(100);

/// The durations of the handoff after that, in which nothing happens: those of a supervisor's own, so
/// that a slow machine is no reason for a rollback.
const AMPLE: Limits = Limits { deadline: 60_000, drain_grace: 30_000, warm_up: 60_000 };

/// What a service manager sets for the supervisor, and for nobody else.
const AS_SERVICE: &str = "export LISTEN_PID=$$ NOTIFY_SOCKET=/nowhere WATCHDOG_PID=$$ \
                          WATCHDOG_USEC=30000000; exec \"$0\" \"$@\"";

/// How many times a step of one kind is told apart.
const OCCURRENCES: u32 = 2;

/// Plays the run in this process, and prints what came of it.
pub(super) fn play(case: &Case) -> Result<u8, HookError> {
    become_subreaper()?;
    let dir = tempfile::Builder::new().prefix("crash matrix ").tempdir_in(place())?;
    if case.mounts {
        shortage::mount(dir.path())?;
    }
    for name in DIRECTORIES {
        fs::create_dir_all(dir.path().join(name))?;
    }
    let ran = Run::start(case, dir.path())?.play();
    println!("{}", serde_json::to_string(&ran)?);
    if case.mounts {
        shortage::unmount(dir.path());
    }
    Ok(0)
}

/// In memory, unless told otherwise: many runs at a time would wait for one disk, and what a process
/// has written outlives it there as well.
fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let told = std::env::var_os("TMPDIR").is_some();
    if memory.is_dir() && !told { memory.into() } else { std::env::temp_dir() }
}

enum Event {
    Held(Held),
    Word(u32, Word),
    Line(String),
}

impl From<Held> for Event {
    fn from(held: Held) -> Self {
        Self::Held(held)
    }
}

/// What is to happen later.
enum Later {
    Continue(u32),
    Answer(Held),
    Lift(Box<dyn FnOnce() + Send>),
    /// It is over by itself.
    Over,
}

struct Boss {
    pid: u32,
    talk: UnixStream,
}

impl Boss {
    fn order(&self, order: &Order) {
        if let Ok(line) = serde_json::to_string(order) {
            let _ = (&self.talk).write_all((line + "\n").as_bytes());
        }
    }
}

/// What a supervisor has said of a handoff.
struct Reported {
    text: String,
    /// None where it could not begin.
    verdict: Option<String>,
    reason: Option<String>,
}

impl Reported {
    fn committed(&self) -> bool {
        self.verdict.as_deref() == Some("committed")
    }
}

/// A second supervisor.
struct Rival {
    boss: Boss,
    /// It has found the daemon.
    ready: bool,
    report: Option<Reported>,
}

/// Whether the supervisor is stopped between the incumbent's answer and its own kill, for longer than daemons wait
/// for it: the successor becomes the incumbent then, and is ended when the supervisor goes on. No rule can mend
/// that (R5); whether it comes to it is a matter of which of its threads was how far.
fn is_beyond_mending(at: &Step, on: Role, blow: Blow) -> bool {
    let before = at.role == Role::S && on == Role::S && at.moment == Moment::Before;
    let ends = ["Abort", "JournalAbort", "Reap", "SignalTerm"].contains(&at.what.as_str());
    before && ends && matches!(blow, Blow::Stop(ms) if ms > 5_000)
}

/// A daemon that was struck: what it had accepted is excused.
struct Victim {
    pid: u32,
    from: Instant,
    to: Option<Instant>,
}

/// A process that does nothing: it is stopped, or is a dead supervisor in whose place there is none yet.
/// Or there is none, because all daemons have ended.
#[derive(Debug)]
pub(super) struct Down {
    /// None for all daemons.
    pid: Option<u32>,
    from: Instant,
    to: Option<Instant>,
}

struct Run<'a> {
    case: &'a Case,
    dir: &'a Path,
    start: Instant,
    listener: TcpListener,
    sender: Sender<Event>,
    events: Receiver<Event>,
    story: Story,
    boss: Option<Boss>,
    bosses: u32,
    rival: Option<Rival>,
    daemons: Vec<u32>,
    gone: Vec<u32>,
    load: Option<Load>,
    watch: Watch,
    later: Vec<(Instant, Later)>,
    strikes: Vec<Strike>,
    struck: u32,
    last_blow: Option<Instant>,
    /// Until then nobody needs to serve, because nobody has served yet.
    cold: Option<Instant>,
    victims: Vec<Victim>,
    downs: Vec<Down>,
    counts: BTreeMap<(Role, Moment, String), u32>,
    steps: Vec<Step>,
    recording: bool,
    timeline: Vec<(f64, String)>,
    problems: Vec<String>,
    /// Something was waited for in vain.
    exhausted: bool,
    handoffs: u32,
    /// The last word of the supervisor's.
    serving: Option<u32>,
    report: Option<Reported>,
    /// When all were stopped: to nobody did time pass.
    jumps: Vec<(Instant, Instant)>,
    stopped: Option<Vec<u32>>,
    /// No supervisor is started any more.
    ending: bool,
    /// When a process was last held.
    last_step: Instant,
    log: Arc<OwnedFd>,
}

impl<'a> Run<'a> {
    fn start(case: &'a Case, dir: &'a Path) -> Result<Self, HookError> {
        let (sender, events) = channel();
        gate::open(&dir.join("gate"), sender.clone())?;
        std::os::unix::fs::symlink(std::env::current_exe()?, program(dir))?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // Every runtime's own sockets can use it then.
        listener.set_nonblocking(true)?;
        let load = Load::start(listener.local_addr()?, case.incumbent.speaks())?;
        let (reader, writer) = io::pipe()?;
        let lines = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                let _ = lines.send(Event::Line(line));
            }
        });
        Ok(Self {
            case,
            dir,
            start: Instant::now(),
            listener,
            sender,
            events,
            story: case.story.clone().unwrap_or_default(),
            boss: None,
            bosses: 0,
            rival: None,
            daemons: Vec::new(),
            gone: Vec::new(),
            load: Some(load),
            watch: Watch::start(data_dir(dir)),
            later: Vec::new(),
            strikes: case.strikes.clone(),
            struck: 0,
            last_blow: None,
            cold: None,
            victims: Vec::new(),
            downs: Vec::new(),
            counts: BTreeMap::new(),
            steps: Vec::new(),
            recording: true,
            timeline: Vec::new(),
            problems: Vec::new(),
            exhausted: false,
            handoffs: 0,
            serving: None,
            report: None,
            jumps: Vec::new(),
            stopped: None,
            ending: false,
            last_step: Instant::now(),
            log: Arc::new(writer.into()),
        })
    }

    fn play(mut self) -> Ran {
        self.acts();
        self.ends()
    }

    fn acts(&mut self) {
        self.employ();
        if !self.until("a daemon serves", |run| run.serving.is_some()) {
            return;
        }
        if self.case.story.is_some() {
            self.until("clients are served", |run| run.is_served());
            for (on, blow) in self.story.before.clone() {
                self.strike(None, on, blow);
            }
            self.until("a daemon serves before the handoff", Self::rests);
        }
        if self.story.rival {
            self.invite();
            self.until("the rival is there", |run| run.rival.as_ref().is_some_and(|it| it.ready));
        }
        // One that was started again watches over nobody it has started.
        let first = self.boss.as_ref().filter(|_| self.bosses == 1 && self.struck == 0);
        let before = first.map(|boss| (boss.pid, descriptors(boss.pid)));
        self.handoff(self.case.successor.clone(), self.case.limits);
        let bosses = self.bosses;
        self.until("the handoff comes to an end", |run| {
            run.report.is_some() || run.boss.is_none() || run.bosses > bosses
        });
        self.recording = false;
        self.until("somebody serves, and is known", Self::rests);
        self.until("it is over what happened", |run| run.later.is_empty());
        self.part_with_rival();
        self.until("somebody serves, and is known", Self::rests);
        self.looks_as_expected();
        // What has not come by now would come in another handoff than it was meant for.
        self.strikes.clear();
        self.handoff(self.case.successor.well(), AMPLE);
        // Where nothing else ends it, its deadline does, and what follows takes its time as well.
        let what = "the next handoff comes to an end";
        self.until_within(PATIENCE * 2, what, |run| run.report.is_some());
        if let Some(Reported { text, .. }) = self.report.as_ref().filter(|it| !it.committed()) {
            self.problems.push(format!("I6: the next handoff does not commit: {text}"));
        }
        self.until("somebody serves, and is known", Self::rests);
        if let (Some((pid, before)), Some(boss)) = (before, &self.boss)
            && pid == boss.pid
        {
            let limit = Instant::now() + Duration::from_secs(5);
            loop {
                let now = descriptors(pid);
                if now.len() <= before.len() {
                    break;
                }
                if Instant::now() > limit {
                    let found = format!("I6: the supervisor had {before:?}, and has {now:?}");
                    self.problems.push(found);
                    break;
                }
                self.turn();
            }
        }
    }

    /// The supervisor has said who serves, after all that happened, and clients know it too.
    fn rests(&self) -> bool {
        // What comes behind a report has come by then, as the journal's last entry.
        let quiet = self.last_step.elapsed() > QUIET;
        // One that was given up and goes on stands down when it has seen another serve for a while (R2).
        quiet
            && self.watch.alive() <= 1
            && self.boss.is_some()
            && self.serving.is_some()
            && self.served_since_blow()
    }

    fn is_served(&self) -> bool {
        self.load.as_ref().is_some_and(|load| load.last_begun().is_some())
    }

    fn served_since_blow(&self) -> bool {
        let begun = self.load.as_ref().and_then(Load::last_begun);
        self.last_blow.is_none_or(|blow| begun.is_some_and(|begun| begun > blow))
    }

    fn handoff(&mut self, to: Actor, limits: Limits) {
        self.report = None;
        self.handoffs += 1;
        self.tell(format!("handoff to {}", to.name()));
        let order = Order::Handoff { to, limits };
        self.order(&order);
        if let Some(rival) = &self.rival {
            rival.boss.order(&order);
        }
    }

    fn order(&self, order: &Order) {
        if let Some(boss) = &self.boss {
            boss.order(order);
        }
    }

    fn tell(&mut self, what: impl Into<String>) {
        self.timeline.push((self.start.elapsed().as_secs_f64(), what.into()));
    }

    /// Starts a supervisor.
    fn employ(&mut self) {
        match self.try_employ(false) {
            Ok(boss) => {
                self.bosses += 1;
                // Of the dead, only a supervisor is still down.
                for down in self
                    .downs
                    .iter_mut()
                    .filter(|it| it.pid.is_some_and(|pid| self.gone.contains(&pid)))
                {
                    down.to.get_or_insert(Instant::now());
                }
                self.tell(format!("supervisor {} starts, pid {}", self.bosses, boss.pid));
                self.boss = Some(boss);
            }
            Err(error) => self.problems.push(format!("the supervisor cannot be started: {error}")),
        }
    }

    /// Starts a second one.
    fn invite(&mut self) {
        match self.try_employ(true) {
            Ok(boss) => {
                self.tell(format!("a rival starts, pid {}", boss.pid));
                self.rival = Some(Rival { boss, ready: false, report: None });
            }
            Err(error) => self.problems.push(format!("the rival cannot be started: {error}")),
        }
    }

    /// A rival that has said what came of its handoff is not needed any more. Its daemons live on.
    fn part_with_rival(&mut self) {
        if self.rival.is_none() {
            return;
        }
        self.until("the rival's handoff comes to an end", |run| {
            run.rival.as_ref().is_none_or(|it| it.report.is_some())
        });
        if let Some(rival) = self.rival.take() {
            let theirs = rival.report.is_some_and(|report| report.committed());
            let ours = self.report.as_ref().is_some_and(Reported::committed);
            if theirs == ours {
                let both = if ours { "both" } else { "none" };
                self.problems.push(format!("story: of the two supervisors {both} committed"));
            }
            signal(rival.boss.pid, Signal::KILL);
            self.until("the rival has gone", |run| run.gone.contains(&rival.boss.pid));
            // Whoever has been replaced may be known to the rival only.
            self.serving = None;
            self.order(&Order::Look);
        }
    }

    /// What the story says of the first handoff.
    fn looks_as_expected(&mut self) {
        let expect = self.story.expect.clone();
        let (mut verdict, mut reason) = (None, None);
        if let Some(report) = &self.report {
            (verdict, reason) = (report.verdict.clone(), report.reason.clone());
        }
        let differs = |is: &Option<String>, to_be: &Option<String>| to_be.is_some() && is != to_be;
        if differs(&verdict, &expect.verdict) || differs(&reason, &expect.reason) {
            let (was, is) = ((expect.verdict, expect.reason), (verdict, reason));
            self.problems.push(format!("story: the handoff was to come to {was:?}, not to {is:?}"));
        }
        if let Some(role) = expect.serves
            && self.serving != self.daemons.get(usize::from(role == Role::N)).copied()
        {
            let (daemons, serving) = (&self.daemons, self.serving);
            let found = format!("story: {role:?} was to serve, of {daemons:?} it is {serving:?}");
            self.problems.push(found);
        }
        let count = |what: &str| {
            self.counts.get(&(Role::O, Moment::Before, what.to_string())).copied().unwrap_or(0)
        };
        let (drains, resumes) = (count("Drain"), count("Resume"));
        if expect.serves == Some(Role::O) && drains != resumes {
            let found = format!("R7: O has drained {drains} times, and resumed {resumes} times");
            self.problems.push(found);
        }
        if let (stories::Boss::Service, Some(boss), Some(daemon)) =
            (self.story.boss, &self.boss, self.daemons.last())
        {
            let (theirs, inherited) = (service_variables(boss.pid), service_variables(*daemon));
            if theirs.is_empty() || !inherited.is_empty() {
                let found = format!("R13: S has {theirs:?}, and the successor {inherited:?}");
                self.problems.push(found);
            }
        }
    }

    fn try_employ(&self, rival: bool) -> Result<Boss, HookError> {
        let (talk, theirs) = UnixStream::pair()?;
        let part = Part::Boss {
            adapter: self.case.supervisor.clone(),
            dir: self.dir.into(),
            first: self.case.incumbent.clone(),
            wrappers: self.story.boss == stories::Boss::AllowsWrappers,
            rival,
        };
        let mut launch = part::matrix(part)?
            .env(SUITE, std::process::id().to_string())
            .env(GATE, self.dir.join("gate"))
            .stdout(Arc::clone(&self.log))
            .stderr(Arc::clone(&self.log));
        if self.story.boss == stories::Boss::Service {
            launch = by_shell(AS_SERVICE, launch);
        }
        let name = self.case.incumbent.speaks().listener().to_string();
        let listeners: [(String, BorrowedFd<'_>); 2] =
            [(name, self.listener.as_fd()), (BOSS.to_string(), theirs.as_fd())];
        let child = spawn(&launch, &listeners, SpawnRole::Cold)?;
        let (pid, words) = (child.pid, BufReader::new(talk.try_clone()?).lines());
        let sender = self.sender.clone();
        thread::spawn(move || {
            for line in words.map_while(Result::ok) {
                if let Ok(word) = serde_json::from_str(&line) {
                    let _ = sender.send(Event::Word(pid, word));
                }
            }
        });
        Ok(Boss { pid, talk })
    }

    /// Goes on until it is so; if that takes too long, it is a problem.
    fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) -> bool {
        self.until_within(PATIENCE, what, so)
    }

    fn until_within(&mut self, patience: Duration, what: &str, so: impl Fn(&Self) -> bool) -> bool {
        // Where something went on for too long, what comes behind is only told of.
        let patience = if self.exhausted { SERVES } else { patience };
        let limit = Instant::now() + patience;
        while !so(self) {
            if Instant::now() > limit {
                self.exhausted = true;
                self.problems.push(format!("I5: not in {patience:?}: {what}"));
                return false;
            }
            self.turn();
        }
        true
    }

    fn turn(&mut self) {
        match self.events.recv_timeout(Duration::from_millis(5)) {
            Ok(Event::Held(held)) => self.held(held),
            Ok(Event::Word(pid, word)) => self.word(pid, word),
            Ok(Event::Line(line)) => self.tell(format!("  {line}")),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        let now = Instant::now();
        let due: Vec<_> = self.later.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, later) in due {
            match later {
                Later::Continue(pid) => {
                    if !self.gone.contains(&pid) {
                        self.tell(format!("pid {pid} goes on"));
                        signal(pid, Signal::CONT);
                    }
                    self.over(pid);
                }
                Later::Answer(held) => {
                    self.tell(format!("pid {} has its answer", held.pid));
                    self.over(held.pid);
                    held.answer(Answer::Go);
                }
                Later::Lift(lift) => {
                    self.tell("it is lifted");
                    lift();
                }
                Later::Over => {}
            }
        }
        self.reap();
        self.looks_for_daemons();
        // As whoever watches over a supervisor does: once its daemons have shown that they need none,
        // or there are none.
        if self.boss.is_none() && !self.ending {
            // Who has told of the end of a daemon may have died before it was heard.
            let nobody = self.watch.alive() == 0;
            if nobody || self.story.at_once || self.served_since_blow() {
                self.employ();
            }
        }
    }

    fn looks_for_daemons(&mut self) {
        let open = |down: &Down| down.to.is_none();
        if !self.downs.iter().any(open) {
            return;
        }
        let nobody = self.watch.alive() == 0;
        let known = self.downs.iter_mut().find(|it| it.pid.is_none() && open(it));
        match known {
            Some(known) if !nobody => known.to = Some(Instant::now()),
            None if nobody => {
                self.downs.push(Down { pid: None, from: Instant::now(), to: None });
            }
            Some(_) | None => {}
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            self.tell(format!("pid {pid} has ended: {status:?}"));
            self.departed(pid);
            if self.boss.as_ref().is_some_and(|boss| boss.pid == pid) {
                self.boss = None;
                self.serving = None;
                self.downs.push(Down { pid: Some(pid), from: Instant::now(), to: None });
            }
        }
    }

    fn departed(&mut self, pid: u32) {
        self.gone.push(pid);
        self.over(pid);
    }

    /// A victim harms nobody any more, and is not down.
    fn over(&mut self, pid: u32) {
        let now = Instant::now();
        for victim in self.victims.iter_mut().filter(|it| it.pid == pid && it.to.is_none()) {
            victim.to = Some(now);
        }
        for down in self.downs.iter_mut().filter(|it| it.pid == Some(pid)) {
            down.to.get_or_insert(now);
        }
    }

    fn word(&mut self, pid: u32, word: Word) {
        // Its last word may be read after it was reaped.
        if let Word::Stopped { left } = word {
            self.stopped = Some(left);
            return;
        }
        if let Some(rival) = self.rival.as_mut().filter(|rival| rival.boss.pid == pid) {
            let said = match word {
                Word::Serving { pid, .. } => {
                    rival.ready = true;
                    format!("pid {pid} serves")
                }
                Word::Report { text, verdict, reason, .. } => {
                    rival.report = Some(Reported { text: text.clone(), verdict, reason });
                    text
                }
                Word::Exited { pid, how } => {
                    self.departed(pid);
                    format!("pid {pid} has ended: {how}")
                }
                other => format!("{other:?}"),
            };
            return self.tell(format!("S': {said}"));
        }
        if self.boss.as_ref().is_none_or(|boss| boss.pid != pid) {
            return;
        }
        match word {
            Word::Serving { pid, started } => {
                let how = if started { "was started" } else { "was found" };
                self.tell(format!("S: pid {pid} serves, it {how}"));
                self.serving = Some(pid);
            }
            Word::Nobody(why) => self.tell(format!("S: {why}")),
            Word::Phase(phase) => self.tell(format!("S: {phase}")),
            Word::Report { text, verdict, reason, serving } => {
                self.tell(format!("S: {text}"));
                let report = Reported { text, verdict, reason };
                // Where it was not, the supervisor looks who serves.
                self.serving = serving.filter(|_| report.committed());
                self.report = Some(report);
            }
            Word::Exited { pid, how } => {
                self.tell(format!("S: pid {pid} has ended: {how}"));
                self.serving = None;
                self.departed(pid);
            }
            Word::Stopped { .. } => {}
        }
    }

    fn role(&mut self, pid: u32) -> Role {
        if self.boss.as_ref().is_some_and(|boss| boss.pid == pid) {
            return if self.bosses == 1 { Role::S } else { Role::Restarted };
        }
        if self.rival.as_ref().is_some_and(|rival| rival.boss.pid == pid) {
            return Role::Restarted;
        }
        let place = self.daemons.iter().position(|known| *known == pid).unwrap_or_else(|| {
            self.daemons.push(pid);
            self.watch.add(pid);
            self.daemons.len() - 1
        });
        [Role::O, Role::N].get(place).copied().unwrap_or(Role::Later)
    }

    fn held(&mut self, held: Held) {
        let (role, pid) = (self.role(held.pid), held.pid);
        self.last_step = Instant::now();
        let count = self.counts.entry((role, held.moment, held.what.clone())).or_default();
        *count += 1;
        let nth = *count;
        if nth <= OCCURRENCES {
            let text: String = held.text.chars().take(48).collect();
            self.tell(format!("{role} {pid} {} {text}", held.moment));
        }
        let step = Step { role, what: held.what.clone(), nth, moment: held.moment };
        let strike = self.strikes.iter().position(|strike| strike.at == step);
        if self.recording && nth <= OCCURRENCES {
            self.steps.push(step);
        }
        if let Some(place) = strike {
            let Strike { at, on, blow } = self.strikes.remove(place);
            if is_beyond_mending(&at, on, blow)
                && let Some(pid) = self.who(Role::N)
            {
                self.victims.push(Victim { pid, from: Instant::now(), to: None });
            }
            return self.strike(Some(held), on, blow);
        }
        held.answer(Answer::Go);
    }

    /// The process of a role.
    fn who(&self, role: Role) -> Option<u32> {
        let pid = match role {
            Role::S | Role::Restarted => self.boss.as_ref().map(|boss| boss.pid),
            Role::O => self.daemons.first().copied(),
            Role::N => self.daemons.get(1).copied(),
            Role::Later => self.daemons.last().copied(),
        };
        pid.filter(|pid| !self.gone.contains(pid))
    }
}

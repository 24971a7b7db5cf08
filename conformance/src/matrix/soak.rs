//! The soak: handoffs in a row, as fast as they go, under load, and nothing grows.
//!
//! Nothing is struck here, so nothing is excused: every handoff commits, every request is acknowledged,
//! every write is there at the end. In between, at rest, it is looked what the supervisor, the daemon
//! and their directories have, and what they have late is compared with what they had early.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use handoff_core::supervisor::Verdict;
use handoff_unix::host::HookError;
use handoff_unix::process::{PidFd, Signal};
use handoff_unix::spawn::{SpawnRole, become_subreaper, spawn};
use rustix::process::{WaitOptions, wait};
use serde::{Deserialize, Serialize};

use super::alone;
use super::cast::{Actor, BOSS, Limits, Order, Part, Word, program};
use super::load::{Load, Record, lost, stored};
use super::run::gap;
use crate::suite::part::{self, SUITE};
use crate::suite::program::DIRECTORIES;

/// How long anything may take: nothing here is about time.
const PATIENCE: Duration = Duration::from_secs(120);

/// The durations of a handoff, in milliseconds: what a machine that is busy with something else needs.
const LIMITS: Limits = Limits { deadline: 60_000, drain_grace: 30_000, warm_up: 60_000 };

/// How long what is left to do behind a report may take.
const SETTLES: Duration = Duration::from_secs(20);

/// How far apart two looks are that must be the same.
const APART: Duration = Duration::from_millis(5);

/// The pace of each client: there are always requests under way.
const PACE: Duration = Duration::from_millis(5);

/// How often it is looked.
const LOOKS: u32 = 50;

/// How many looks are compared with others, where there are as many.
const LEAST: usize = 5;

/// How many of the last lines of output are kept.
const LINES: usize = 12;

/// Handoffs in a row, as they are to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Soak {
    /// The adapter of the supervisor.
    pub supervisor: String,
    /// The adapters of the daemons, in turn.
    pub daemons: Vec<String>,
    /// How many handoffs.
    pub handoffs: u32,
}

impl Soak {
    /// On each of these adapters by itself, and from each to the next under a supervisor on each.
    #[must_use]
    pub fn all(adapters: &[String], handoffs: u32) -> Vec<Self> {
        let soak = |supervisor: &String, daemons: &[String]| Self {
            supervisor: supervisor.clone(),
            daemons: daemons.to_vec(),
            handoffs,
        };
        let alone = adapters.iter().map(|adapter| soak(adapter, std::slice::from_ref(adapter)));
        let mixed = adapters.iter().filter(|_| adapters.len() > 1).map(|it| soak(it, adapters));
        alone.chain(mixed).collect()
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> String {
        format!("supervisor on {}, daemons on {}", self.supervisor, self.daemons.join(", "))
    }

    fn adapter(&self, number: u32) -> &str {
        let turn = number as usize % self.daemons.len().max(1);
        self.daemons.get(turn).unwrap_or(&self.supervisor)
    }

    fn daemon(&self, number: u32) -> Actor {
        Actor::Example { adapter: self.adapter(number).to_string(), fault: None }
    }
}

/// What a process has.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Process {
    /// Its descriptors, by what they are.
    pub descriptors: BTreeMap<String, u64>,
    /// How many descriptors its epoll instances watch.
    pub watched: u64,
    /// Its threads.
    pub threads: u64,
    /// Its children, zombies included.
    pub children: Vec<u32>,
    /// Its resident memory, in KiB.
    pub resident: u64,
    /// What of that is no file's: heap and stacks.
    pub anonymous: u64,
}

/// A look at everybody, at rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Look {
    /// After how many handoffs.
    pub handoffs: u32,
    /// The supervisor.
    pub supervisor: Process,
    /// The daemon that serves.
    pub daemon: Process,
    /// Its adapter.
    pub adapter: String,
    /// What is in the directories.
    pub files: Vec<String>,
}

/// How something went that must not grow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flat {
    /// What.
    pub what: String,
    /// What it was before the first handoff.
    pub first: u64,
    /// The least early, once everything has been used.
    pub early: u64,
    /// The least at the end.
    pub late: u64,
    /// How much a handoff adds, from early on.
    pub slope: f64,
    /// How much more than early it may be.
    pub room: u64,
}

/// What came of a soak.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Soaked {
    /// What it is called.
    pub name: String,
    /// How many handoffs have committed.
    pub handoffs: u32,
    /// How many have not.
    pub failed_handoffs: u32,
    /// How long they took in all, in seconds, without the looks.
    pub seconds: f64,
    /// How many requests were made.
    pub requests: u64,
    /// How many were acknowledged.
    pub acknowledged: u64,
    /// How many of these were lost (I3).
    pub lost: u64,
    /// How many were not acknowledged (I4).
    pub failed: u64,
    /// The longest that a client waited for its answer, in milliseconds.
    pub longest_wait: f64,
    /// The median of that.
    pub median_wait: f64,
    /// The longest time in which nobody acknowledged anything, in milliseconds.
    pub gap: f64,
    /// What must not grow.
    pub flat: Vec<Flat>,
    /// What was seen.
    pub looks: Vec<Look>,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// Plays a soak in a process of its own.
///
/// # Errors
///
/// The process cannot be started, or does not come to an end.
pub fn soak(soak: &Soak) -> io::Result<Soaked> {
    let longest = PATIENCE * 2 + Duration::from_secs(4) * soak.handoffs;
    alone(Part::Soak(soak.clone()), false, longest)
}

/// Plays it in this process, and prints what came of it.
pub(super) fn play(soak: &Soak) -> Result<u8, HookError> {
    become_subreaper()?;
    let dir = tempfile::Builder::new().prefix("soak ").tempdir()?;
    for name in DIRECTORIES {
        fs::create_dir(dir.path().join(name))?;
    }
    let soaked = Run::start(soak, dir.path())?.play();
    println!("\n{}", serde_json::to_string(&soaked)?);
    Ok(0)
}

struct Run<'a> {
    soak: &'a Soak,
    dir: &'a Path,
    /// Kept open for every daemon.
    listener: TcpListener,
    supervisor: PidFd,
    talk: UnixStream,
    words: Lines<BufReader<UnixStream>>,
    output: Receiver<String>,
    started: u32,
    serving: Option<u32>,
    ended: u32,
    committed: u32,
    failed: u32,
    left: Option<Vec<u32>>,
    seconds: f64,
    looks: Vec<Look>,
    problems: Vec<String>,
}

impl<'a> Run<'a> {
    fn start(soak: &'a Soak, dir: &'a Path) -> Result<Self, HookError> {
        std::os::unix::fs::symlink(std::env::current_exe()?, program(dir))?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // Every runtime's own sockets can use it then.
        listener.set_nonblocking(true)?;
        let (talk, theirs) = UnixStream::pair()?;
        let (reader, writer) = io::pipe()?;
        let log: Arc<OwnedFd> = Arc::new(writer.into());
        let first = soak.daemon(0);
        let name = first.speaks().listener().to_string();
        let part = Part::Boss {
            adapter: soak.supervisor.clone(),
            dir: dir.into(),
            first,
            wrappers: false,
            rival: false,
        };
        let launch = part::matrix(part)?
            .env(SUITE, std::process::id().to_string())
            .stdout(Arc::clone(&log))
            .stderr(log);
        let listeners: [(String, BorrowedFd<'_>); 2] =
            [(name, listener.as_fd()), (BOSS.to_string(), theirs.as_fd())];
        let supervisor = spawn(&launch, &listeners, SpawnRole::Cold)?.pidfd;
        let (lines, output) = channel();
        thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        talk.set_read_timeout(Some(PATIENCE))?;
        let words = BufReader::new(talk.try_clone()?).lines();
        Ok(Self {
            soak,
            dir,
            listener,
            supervisor,
            talk,
            words,
            output,
            started: 0,
            serving: None,
            ended: 0,
            committed: 0,
            failed: 0,
            left: None,
            seconds: 0.0,
            looks: Vec::new(),
            problems: Vec::new(),
        })
    }

    fn play(mut self) -> Soaked {
        let record = self.acts().unwrap_or_else(|error| {
            self.problems.push(error.to_string());
            let _ = self.supervisor.signal(Signal::KILL);
            Record::default()
        });
        self.processes();
        self.ends(record)
    }

    fn acts(&mut self) -> Result<Record, HookError> {
        self.until("a daemon serves", |run| run.serving.is_some())?;
        let address = self.listener.local_addr()?;
        let speech = self.soak.daemon(0).speaks();
        let load = Load::paced(address, speech, PACE, PATIENCE)?;
        self.look()?;
        let share = (self.soak.handoffs / LOOKS).max(1);
        while self.started < self.soak.handoffs {
            self.swaps(share.min(self.soak.handoffs - self.started))?;
            self.look()?;
        }
        load.no_more();
        let limit = Instant::now() + PATIENCE;
        while !load.is_over() {
            if Instant::now() > limit {
                return Err("I5: a client has no answer".into());
            }
            thread::park_timeout(APART);
        }
        let record = load.record();
        self.order(&Order::Stop)?;
        self.until("the supervisor stops", |run| run.left.is_some())?;
        if let Some(left) = self.left.take().filter(|left| !left.is_empty()) {
            self.problems.push(format!("I6: the supervisor could not end {left:?}"));
        }
        Ok(record)
    }

    /// So many handoffs: the supervisor always knows the next one.
    fn swaps(&mut self, count: u32) -> Result<(), HookError> {
        let begun = Instant::now();
        for _ in 0..count {
            self.started += 1;
            let to = self.soak.daemon(self.started);
            self.order(&Order::Handoff { to, limits: LIMITS })?;
        }
        self.until("a handoff ends", |run| run.committed + run.failed == run.started)?;
        self.seconds += begun.elapsed().as_secs_f64();
        // Those that were replaced have ended, and who serves was asked.
        let rests = |run: &Self| run.ended == run.committed + run.failed && run.serving.is_some();
        self.until("the replaced daemons end", rests)
    }

    fn order(&self, order: &Order) -> Result<(), HookError> {
        let line = serde_json::to_string(order)? + "\n";
        Ok((&self.talk).write_all(line.as_bytes())?)
    }

    /// Hears the supervisor until it is so.
    fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) -> Result<(), HookError> {
        while !so(self) {
            let line = self.words.next().unwrap_or(Err(io::ErrorKind::UnexpectedEof.into()));
            let line = line.map_err(|error| format!("not in {PATIENCE:?}: {what}: {error}"))?;
            self.hear(serde_json::from_str(&line)?);
        }
        Ok(())
    }

    fn hear(&mut self, word: Word) {
        match word {
            Word::Serving { pid, .. } => self.serving = Some(pid),
            Word::Nobody(why) => self.problems.push(format!("nobody serves: {why}")),
            Word::Phase(_) => {}
            Word::Report { text, verdict, .. } => {
                self.serving = None;
                if verdict == Some(Verdict::Committed.to_string()) {
                    self.committed += 1;
                } else {
                    self.failed += 1;
                    let number = self.committed + self.failed;
                    self.problems.push(format!("handoff {number} does not commit: {text}"));
                }
            }
            Word::Exited { pid, how } => {
                self.ended += 1;
                // It is told with the path of its program.
                if self.serving == Some(pid) || !how.starts_with("exit code 0 ") {
                    self.problems.push(format!("pid {pid} has ended: {how}"));
                }
                self.serving = None;
            }
            Word::Stopped { left } => self.left = Some(left),
        }
    }

    /// Looks at everybody, once they have come to rest.
    fn look(&mut self) -> Result<(), HookError> {
        let pid = self.serving.ok_or("nobody serves")?;
        let limit = Instant::now() + SETTLES;
        let mut before = Process::of(self.supervisor.pid())?;
        loop {
            thread::park_timeout(APART);
            let supervisor = Process::of(self.supervisor.pid())?;
            let same = supervisor.descriptors == before.descriptors
                && supervisor.watched == before.watched
                && supervisor.threads == before.threads;
            if same && supervisor.children == [pid] {
                let (daemon, files) = (Process::of(pid)?, files(self.dir)?);
                let adapter = self.soak.adapter(self.started).to_string();
                let handoffs = self.started;
                self.looks.push(Look { handoffs, supervisor, daemon, adapter, files });
                return Ok(());
            }
            if Instant::now() > limit {
                let problem = "I6: not at rest, after handoff";
                return Err(format!("{problem} {}: {supervisor:?}", self.started).into());
            }
            before = supervisor;
        }
    }

    /// I6: nobody is left, and nobody came here but the supervisor.
    fn processes(&mut self) {
        let (own, limit) = (self.supervisor.pid(), Instant::now() + SETTLES);
        loop {
            match wait(WaitOptions::NOHANG) {
                Err(_) => return,
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get().unsigned_abs();
                    if pid != own || status.exit_status() != Some(0) {
                        let role = if pid == own { "the supervisor" } else { "an orphan" };
                        self.problems.push(format!("I6: {role}, pid {pid}, ended: {status:?}"));
                    }
                }
                Ok(None) if Instant::now() > limit => {
                    let left = Process::of(std::process::id()).unwrap_or_default().children;
                    return self.problems.push(format!("I6: processes are left: {left:?}"));
                }
                Ok(None) => thread::park_timeout(APART),
            }
        }
    }

    fn ends(mut self, record: Record) -> Soaked {
        let Record { acknowledged, failed } = &record;
        let mut waits: Vec<Duration> = acknowledged
            .iter()
            .chain(failed.iter().map(|(request, _)| request))
            .map(|request| request.over - request.begun)
            .collect();
        waits.sort_unstable();
        let missing = match stored(self.dir, self.soak.daemon(0).speaks()) {
            Ok(stored) => lost(acknowledged, &stored),
            Err(error) => {
                self.problems.push(format!("I3: the data cannot be read: {error}"));
                Vec::new()
            }
        };
        if !missing.is_empty() {
            self.problems.push(format!("I3: acknowledged and not there once: {missing:?}"));
        }
        for (request, failure) in failed {
            self.problems.push(format!("I4: {}: {}", request.key, failure.why));
        }
        let flat = flat(&self.looks);
        for Flat { what, early, late, room, .. } in &flat {
            if *late > early + room {
                self.problems.push(format!("I6: {what} went from {early} to {late}"));
            }
        }
        if !self.problems.is_empty() {
            let output: Vec<_> = self.output.try_iter().collect();
            let last = output.len().saturating_sub(LINES);
            self.problems.extend(output[last..].iter().map(|line| format!("   {line}")));
        }
        let first = record.acknowledged.iter().map(|request| request.over).min();
        let first = first.unwrap_or_else(Instant::now);
        Soaked {
            name: self.soak.name(),
            handoffs: self.committed,
            failed_handoffs: self.failed,
            seconds: self.seconds,
            requests: waits.len() as u64,
            acknowledged: acknowledged.len() as u64,
            lost: missing.len() as u64,
            failed: failed.len() as u64,
            longest_wait: waits.last().copied().map_or(0.0, millis),
            median_wait: waits.get(waits.len() / 2).copied().map_or(0.0, millis),
            gap: millis(gap(&record, first, &[], &[])),
            flat,
            looks: self.looks,
            problems: self.problems,
        }
    }
}

impl Process {
    fn of(pid: u32) -> io::Result<Self> {
        let root = format!("/proc/{pid}");
        let (mut descriptors, mut watched, mut children) = (BTreeMap::new(), 0, Vec::new());
        for entry in fs::read_dir(format!("{root}/fd"))?.flatten() {
            // It may be closed meanwhile.
            let Ok(link) = fs::read_link(entry.path()) else { continue };
            let link = link.to_string_lossy();
            let kind = link.split(":[").next().unwrap_or_default().to_string();
            *descriptors.entry(kind).or_default() += 1;
            if link == "anon_inode:[eventpoll]" {
                let info = Path::new(&root).join("fdinfo").join(entry.file_name());
                let info = fs::read_to_string(info).unwrap_or_default();
                watched += info.lines().filter(|line| line.starts_with("tfd:")).count() as u64;
            }
        }
        let mut threads = 0;
        for task in fs::read_dir(format!("{root}/task"))?.flatten() {
            threads += 1;
            let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        let memory = fs::read_to_string(format!("{root}/smaps_rollup"))?;
        let kib = |name: &str| {
            let line = memory.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        let (resident, anonymous) = (kib("Rss:"), kib("Anonymous:"));
        Ok(Self { descriptors, watched, threads, children, resident, anonymous })
    }

    fn descriptors(&self) -> u64 {
        self.descriptors.values().sum()
    }
}

/// The names in the directories.
fn files(dir: &Path) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    for name in DIRECTORIES {
        for entry in fs::read_dir(dir.join(name))? {
            files.push(format!("{name}/{}", entry?.file_name().to_string_lossy()));
        }
    }
    files.sort();
    Ok(files)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What is measured at a look, and how much it may grow.
type Measure = (&'static str, fn(&Look) -> u64, u64);

/// How many threads a pool may come to have later than early: those of smol's stay.
const POOL: u64 = 3;

/// What a daemon may have more because of the requests that it is just answering.
const LOAD: u64 = 8;

/// How much the heap may come to be fragmented, in KiB: far less than a page for each of hundreds of
/// handoffs. What is allocated in it is counted in `tests/soak.rs`.
const HEAP: u64 = 512;

const OF_SUPERVISOR: [Measure; 7] = [
    ("supervisor: descriptors", |look| look.supervisor.descriptors(), 0),
    ("supervisor: watched by epoll", |look| look.supervisor.watched, 0),
    ("supervisor: threads", |look| look.supervisor.threads, POOL),
    ("supervisor: children", |look| look.supervisor.children.len() as u64, 0),
    ("supervisor: heap, stacks, KiB", |look| look.supervisor.anonymous, HEAP),
    // With the pages of the binary, which come as they are used.
    ("supervisor: all memory, KiB", |look| look.supervisor.resident, 2 * HEAP),
    ("files", |look| look.files.len() as u64, 0),
];

const OF_DAEMON: [Measure; 2] = [
    ("descriptors", |look| look.daemon.descriptors(), LOAD),
    ("threads", |look| look.daemon.threads, LOAD),
];

fn flat(looks: &[Look]) -> Vec<Flat> {
    let mut adapters: Vec<&str> = looks.iter().map(|look| &*look.adapter).collect();
    adapters.sort_unstable();
    adapters.dedup();
    let all: Vec<&Look> = looks.iter().collect();
    let supervisor = OF_SUPERVISOR
        .iter()
        .filter_map(|(what, of, room)| grown(&all, (*what).to_string(), *of, *room));
    let daemons = adapters.iter().flat_map(|adapter| {
        // Each with others of its kind.
        let looks: Vec<_> = looks.iter().filter(|look| look.adapter == *adapter).collect();
        OF_DAEMON.iter().filter_map(move |(what, of, room)| {
            grown(&looks, format!("daemon on {adapter}: {what}"), *of, *room)
        })
    });
    supervisor.chain(daemons).collect()
}

/// How it went: the second tenth of the looks against the last. Of each the least, because the last
/// entry of a journal may just be under way.
fn grown(looks: &[&Look], what: String, of: fn(&Look) -> u64, room: u64) -> Option<Flat> {
    let (first, rest) = looks.split_first()?;
    let tenth = (rest.len() / 10).max(LEAST).min(rest.len() / 3);
    let least = |looks: &[&Look]| looks.iter().map(|look| of(look)).min();
    let early = least(rest.get(tenth..2 * tenth)?)?;
    let late = least(&rest[rest.len() - tenth..])?;
    let points = rest[tenth..].iter().map(|look| (f64::from(look.handoffs), of(look) as f64));
    let slope = slope(&points.collect::<Vec<_>>());
    Some(Flat { what, first: of(first), early, late, slope, room })
}

/// Of the line that fits best.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let both: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if spread == 0.0 { 0.0 } else { both / spread }
}

impl fmt::Display for Soaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handoffs, seconds, requests, acknowledged, lost, failed, .. } = self;
        let Self { longest_wait, median_wait, gap, .. } = self;
        writeln!(f, "{}", self.name)?;
        let (undone, rate) = (self.failed_handoffs, f64::from(*handoffs) / seconds);
        writeln!(f, "  {handoffs} handoffs, {undone} failed, {seconds:.1} s, {rate:.1} a second")?;
        write!(f, "  {requests} requests, {acknowledged} acknowledged, ")?;
        writeln!(f, "{lost} lost, {failed} failed")?;
        write!(f, "  a client waited {median_wait:.1} ms, {longest_wait:.1} ms at most; ")?;
        writeln!(f, "nobody was answered for {gap:.1} ms")?;
        write!(f, "  {:36} {:>8} {:>8} {:>8}", "", "before", "early", "late")?;
        writeln!(f, " {:>11}", "a handoff")?;
        for Flat { what, first, early, late, slope, .. } in &self.flat {
            writeln!(f, "  {what:36} {first:8} {early:8} {late:8} {slope:+11.4}")?;
        }
        for problem in &self.problems {
            writeln!(f, "  BAD {problem}")?;
        }
        Ok(())
    }
}

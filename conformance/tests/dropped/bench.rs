//! A supervisor in a scenario's process, daemons in processes of their own, a client, and a look at
//! what is left of it all.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use handoff_core::supervisor::{Event, Report, Verdict};
use handoff_unix::host::{Handoff, StartError, SupervisorConfig};
use handoff_unix::lock::{LockState, lock_state};
use handoff_unix::spawn::Launch;

use crate::adapters::{Adapter, PATIENCE};

/// The descriptors of this process, by what they are. Of sockets only how many there are.
pub fn fds() -> BTreeMap<String, usize> {
    let mut fds = BTreeMap::new();
    for fd in std::fs::read_dir("/proc/self/fd").unwrap() {
        let Ok(target) = std::fs::read_link(fd.unwrap().path()) else { continue };
        let target = target.to_string_lossy();
        // The one that reads this.
        if target.starts_with("/proc/") {
            continue;
        }
        let kind = target.split(":[").next().unwrap();
        let kind = if kind == "anon_inode" { &target } else { kind };
        *fds.entry(kind.to_string()).or_default() += 1;
    }
    fds
}

/// The processes that this one has started or adopted, zombies included.
pub fn children() -> Vec<u32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let mut all: Vec<u32> = tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok())
        .flat_map(|line| {
            line.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()
        })
        .collect();
    all.sort_unstable();
    all
}

/// The threads of this process by name, but for those that a runtime keeps in a pool for good.
pub fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let mut names: Vec<String> = tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .map(|name| name.trim_end().to_string())
        .filter(|name| ["blocking-", "async-std"].iter().all(|pool| !name.starts_with(pool)))
        .collect();
    names.sort();
    names
}

/// The threads that stay when nothing of an adapter is left: those of the test, and the runtime's.
pub fn calm(runtime: &str, tests: &[&str]) -> Vec<String> {
    let main = std::fs::read_to_string("/proc/self/comm").unwrap();
    let own: &[&str] = match runtime {
        "tokio-multi" => &["tokio-rt-worker"; 2],
        "smol" | "async-std" => &["async-io", "smol-1"],
        _ => &[],
    };
    let names = tests.iter().chain(own).copied().chain([main.trim_end()]);
    let mut names: Vec<String> = names.map(String::from).collect();
    names.sort();
    names
}

/// Waits until what is looked at is as it must be.
pub async fn eventually<A: Adapter, T: PartialEq + Debug>(
    what: &str,
    wanted: T,
    mut look: impl FnMut() -> T,
) {
    let limit = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if seen == wanted {
            return;
        }
        assert!(Instant::now() < limit, "{what}: {seen:?}, and not {wanted:?}");
        A::pause().await;
    }
}

pub struct Bench<A: Adapter> {
    pub supervisor: Option<A::Supervisor>,
    pub dir: tempfile::TempDir,
    /// Of the daemons.
    pub runtime: String,
    listener: TcpListener,
    address: SocketAddr,
    acknowledged: Vec<String>,
}

impl<A: Adapter> Bench<A> {
    /// A listener and a data directory; no supervisor yet.
    pub fn bare(runtime: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("dropped test ").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (supervisor, runtime) = (None, runtime.to_string());
        Self { supervisor, dir, runtime, listener, address, acknowledged: Vec::new() }
    }

    /// A supervisor; no daemon yet.
    pub fn new(runtime: &str) -> Self {
        let mut bench = Self::bare(runtime);
        bench.supervise();
        bench
    }

    /// A supervisor, and a daemon that serves.
    pub async fn serving(runtime: &str, how: &[(&str, &str)]) -> (Self, u32) {
        let mut bench = Self::new(runtime);
        let pid = bench.start(how).await;
        (bench, pid)
    }

    /// Makes the supervisor.
    pub fn supervise(&mut self) {
        let config = SupervisorConfig::new(self.dir.path().join("c.sock"))
            .data_dir(self.data())
            .journal(self.dir.path().join("journal"));
        self.supervisor = Some(A::supervisor(config, self.listener.try_clone().unwrap()));
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn is_there(&self, name: &str) -> bool {
        self.dir.path().join(name).exists()
    }

    /// Makes or removes a file that daemons look at.
    pub fn mark(&self, name: &str, there: bool) {
        let path = self.dir.path().join(name);
        if there {
            std::fs::write(path, "").unwrap();
        } else if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }

    pub fn supervisor(&self) -> &A::Supervisor {
        self.supervisor.as_ref().unwrap()
    }

    /// A daemon that does what it is told by these variables.
    pub fn launch(&self, how: &[(&str, &str)]) -> Launch {
        launch(self.dir.path(), &self.runtime, how)
    }

    pub async fn start(&mut self, how: &[(&str, &str)]) -> u32 {
        let launch = self.launch(how);
        let started = loop {
            match A::start(self.supervisor(), &launch).await {
                Err(StartError::Busy) => A::pause().await,
                started => break started.unwrap(),
            }
        };
        assert_eq!(self.write().await, started.pid);
        started.pid
    }

    /// A write that must be acknowledged; by whom.
    pub async fn write(&mut self) -> u32 {
        let value = format!("value-{}", self.acknowledged.len());
        let (address, line) = (self.address, value.clone());
        let client = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).expect("the listener refuses nobody");
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            writeln!(stream, "{line}").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an accepted connection is served");
            answer
        });
        while !client.is_finished() {
            A::pause().await;
        }
        let answer = client.join().unwrap();
        self.acknowledged.push(value);
        answer.trim().parse().expect("an answer")
    }

    /// A handoff, once the supervisor takes it.
    pub async fn handoff(&self, how: &[(&str, &str)], mut on: impl FnMut(&Event)) -> Report {
        let handoff = Handoff::new(self.launch(how));
        let limit = Instant::now() + PATIENCE;
        loop {
            match A::handoff(self.supervisor(), &handoff, &mut on).await {
                Err(StartError::Busy) => {
                    assert!(Instant::now() < limit, "the supervisor stays busy");
                    A::pause().await;
                }
                report => return report.unwrap(),
            }
        }
    }

    /// The next handoff works, and exactly its daemon holds the lock (I1, I5, I6).
    pub async fn swap(&mut self) -> u32 {
        let report = self.handoff(&[], |_| {}).await;
        assert_eq!(report.verdict, Verdict::Committed, "{report}");
        let serving = self.write().await;
        assert_eq!(Some(serving), report.serving);
        self.holds(serving);
        serving
    }

    /// This process holds the lock.
    pub fn holds(&self, pid: u32) {
        assert_eq!(lock_state(&self.data()), LockState::Held { pid: Some(pid) });
    }

    /// The descriptors of a supervisor at rest.
    pub async fn at_rest(&self, serving: u32) -> BTreeMap<String, usize> {
        eventually::<A, _>("processes", vec![serving], children).await;
        let journal = self.dir.path().join("journal").to_string_lossy().into_owned();
        let mut seen = BTreeMap::new();
        let look = || {
            seen = fds();
            let writing = seen.keys().any(|name| name.starts_with(&journal));
            (seen.get("anon_inode:[pidfd]").copied(), writing)
        };
        eventually::<A, _>("processes watched, and the journal", (Some(1), false), look).await;
        seen
    }

    /// Nothing is left but what was there, and this daemon.
    pub async fn rests(&self, rest: &BTreeMap<String, usize>, serving: &[u32]) {
        eventually::<A, _>("processes", serving.to_vec(), children).await;
        eventually::<A, _>("descriptors", rest.clone(), fds).await;
    }

    /// The next handoff commits, everything acknowledged is there once, nobody wrote beside another.
    pub async fn ends_well(&mut self) {
        if self.supervisor.is_none() {
            self.supervise();
            self.start(&[]).await;
        }
        self.swap().await;
        let log = std::fs::read_to_string(self.data().join("writes.log")).unwrap();
        assert_eq!(log.lines().collect::<Vec<_>>(), self.acknowledged);
        assert!(!self.is_there("two-writers"), "two processes had the data open");
        let left = A::shutdown(self.supervisor(), Duration::ZERO).await;
        assert!(left.is_empty(), "{left:?}");
        eventually::<A, _>("processes", vec![], children).await;
        let files = std::fs::read_dir(self.dir.path()).unwrap();
        let staged: Vec<_> = files
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("staging"))
            .collect();
        assert!(staged.is_empty(), "{staged:?}");
    }
}

impl<A: Adapter> Drop for Bench<A> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = std::fs::read_to_string(self.dir.path().join("said")).unwrap_or_default();
            let lines = said.lines().filter(|line| !line.is_empty() && *line != "running 1 test");
            for pid in children() {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                println!("child {}", stat.chars().take(40).collect::<String>());
            }
            println!("the daemons said:");
            lines.for_each(|line| println!("  {line}"));
        }
    }
}

/// A daemon in `dir`: this same binary, as [`crate::program::main`]. It ignores SIGTERM, and ends well
/// when it reads Abort, or has told what it saw; but not where `TEST_TERM` says otherwise.
fn launch(dir: &Path, runtime: &str, how: &[(&str, &str)]) -> Launch {
    let ends = how.iter().any(|(name, _)| *name == "TEST_TERM");
    let trap = if ends { "" } else { "trap '' TERM; " };
    let said = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("said"));
    let said: Arc<std::os::fd::OwnedFd> = Arc::new(said.unwrap().into());
    let mut launch = Launch::new("/bin/sh")
        .args(["-c", &format!("{trap}exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["daemon", "--exact", "--ignored", "--nocapture"])
        .env("TEST_DIR", dir)
        .env("TEST_RUNTIME", runtime)
        .env("TEST_DROP", "")
        .stdout(Arc::clone(&said))
        .stderr(said);
    for (name, value) in how {
        launch = launch.env(*name, *value);
    }
    launch
}

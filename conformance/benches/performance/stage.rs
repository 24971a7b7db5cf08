//! A daemon that is swapped, and whoever swaps it.

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use conformance::adapters;
use conformance::suite::{Adapter, Supervise};
use handoff_core::supervisor::{Event, Phase, Verdict};
use handoff_unix::control::ControlPath;
use handoff_unix::host::{Handoff, SupervisorConfig};
use handoff_unix::probe::{Users, probe};
use handoff_unix::spawn::Launch;
use tempfile::TempDir;

/// What the listener is called.
pub const LISTENER: &str = "tcp";

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Whose daemons and whose supervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Kind {
    Blocking,
    Tokio,
    Smol,
    /// beyond-handoff's.
    Theirs,
}

impl Kind {
    pub const OURS: [Self; 3] = [Self::Blocking, Self::Tokio, Self::Smol];
    pub const ALL: [Self; 4] = [Self::Blocking, Self::Tokio, Self::Smol, Self::Theirs];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Tokio => "tokio",
            Self::Smol => "smol",
            Self::Theirs => "theirs",
        }
    }

    pub const fn program(self) -> &'static str {
        match self {
            Self::Blocking => env!("CARGO_BIN_EXE_bench-blocking"),
            Self::Tokio => env!("CARGO_BIN_EXE_bench-tokio"),
            Self::Smol => env!("CARGO_BIN_EXE_bench-smol"),
            Self::Theirs => env!("CARGO_BIN_EXE_bench-theirs"),
        }
    }

    fn adapter(self) -> &'static dyn Adapter {
        match self {
            Self::Blocking => adapters::BLOCKING,
            Self::Tokio => adapters::TOKIO,
            Self::Smol => adapters::SMOL,
            Self::Theirs => adapters::THEIRS,
        }
    }
}

/// Where the data, the control path and the journal are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Place {
    Memory,
    Disk,
}

impl Place {
    /// A directory there, which goes when it is dropped.
    pub fn dir(self) -> TempDir {
        let shared = Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("bench ");
        let dir = match self {
            Self::Memory if shared.is_dir() => builder.tempdir_in(shared),
            Self::Memory => builder.tempdir(),
            // Beside what cargo builds; a socket's path must be short.
            Self::Disk => builder.tempdir_in(env!("CARGO_TARGET_TMPDIR")),
        };
        dir.expect("a directory")
    }
}

/// What a daemon is given: its directories, its listener, and what it tells of its accepting.
pub struct Nest {
    pub kind: Kind,
    dir: TempDir,
    pub listener: TcpListener,
    told: UnixDatagram,
}

impl Nest {
    pub fn new(kind: Kind, place: Place) -> Self {
        let dir = place.dir();
        for name in ["data", "state"] {
            std::fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let told = UnixDatagram::bind(dir.path().join("told")).expect("a socket");
        told.set_read_timeout(Some(PATIENCE)).expect("a socket's timeout");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback address");
        // As a service manager passes it.
        listener.set_nonblocking(true).expect("a listener's mode");
        Self { kind, dir, listener, told }
    }

    pub fn control(&self) -> ControlPath {
        ControlPath::new(self.path("c")).expect("a control path")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args(&self) -> Vec<OsString> {
        self.args_at(self.path("c").into())
    }

    /// The same with something else for the control path.
    pub fn args_at(&self, place: OsString) -> Vec<OsString> {
        let pid = std::process::id().to_string();
        vec![place, self.path("data").into(), self.path("told").into(), pid.into()]
    }

    pub fn launch(&self) -> Launch {
        Launch::new(self.kind.program()).args(self.args())
    }

    pub fn config(&self, journal: bool) -> SupervisorConfig {
        let config = SupervisorConfig::new(self.path("c")).data_dir(self.path("data"));
        if journal { config.journal(self.path("state").join("journal")) } else { config }
    }

    pub fn listener(&self) -> OwnedFd {
        self.listener.as_fd().try_clone_to_owned().expect("a descriptor")
    }

    /// When a daemon told that it stopped to accept, or began to: in nanoseconds of the system's clock.
    pub fn told(&self, word: &str) -> io::Result<u64> {
        let mut room = [0; 64];
        loop {
            let count = self.told.recv(&mut room)?;
            let line = String::from_utf8_lossy(&room[..count]);
            if let Some(time) = line.strip_prefix(word) {
                return time.trim().parse().map_err(io::Error::other);
            }
        }
    }

    /// What was told before is not of interest.
    pub fn forget(&self) {
        self.told.set_nonblocking(true).expect("a socket's mode");
        while self.told.recv(&mut [0; 64]).is_ok() {}
        self.told.set_nonblocking(false).expect("a socket's mode");
    }
}

/// How a swap went.
pub struct Swap {
    /// From the call to its return.
    pub total: Duration,
    /// Nobody accepted.
    pub gap: Duration,
    /// Until Prepare, from there to Commit, and from there on, where the supervisor tells of them.
    pub phases: Option<[Duration; 3]>,
    pub committed: bool,
}

enum Boss {
    Ours(Box<dyn Supervise>),
    Theirs { supervisor: Box<handoff::Supervisor>, child: Child, old: Vec<Child> },
}

/// A daemon that serves, and its supervisor in this process. Dropped, it ends the daemon.
pub struct Stage {
    pub nest: Nest,
    boss: Boss,
}

impl Stage {
    pub fn start(kind: Kind, place: Place, journal: bool) -> Self {
        let nest = Nest::new(kind, place);
        let boss = match kind {
            Kind::Theirs => theirs(&nest, journal),
            _ => {
                let config = nest.config(journal);
                let mut boss = kind.adapter().supervisor(config).expect("a supervisor");
                boss.listener(LISTENER, nest.listener()).expect("a listener");
                boss.start(&nest.launch()).expect("a daemon");
                Boss::Ours(boss)
            }
        };
        nest.told("accepts").expect("a daemon accepts");
        Self { nest, boss }
    }

    pub fn swap(&mut self) -> Swap {
        self.nest.forget();
        let (total, committed, phases) = match &mut self.boss {
            Boss::Ours(boss) => {
                let handoff = Handoff::new(self.nest.launch());
                let (mut prepare, mut commit) = (None, None);
                let start = Instant::now();
                let report = boss.handoff(&handoff, &mut |event| match event {
                    Event::Phase(Phase::Drain) => prepare = Some(Instant::now()),
                    Event::Phase(Phase::Commit) => commit = Some(Instant::now()),
                    _ => {}
                });
                let total = start.elapsed();
                let report = report.expect("the supervisor works");
                let phases = prepare.zip(commit).map(|(prepare, commit)| {
                    [prepare - start, commit - prepare, start + total - commit]
                });
                (total, report.verdict == Verdict::Committed, phases)
            }
            Boss::Theirs { supervisor, child, old } => {
                let mut spec = handoff::SpawnSpec::new(self.nest.kind.program());
                let args = self.nest.args().into_iter();
                spec.args = args.map(|arg| arg.into_string().expect("text")).collect();
                let start = Instant::now();
                let outcome = supervisor.perform_handoff(spec);
                let total = start.elapsed();
                match outcome.map(|outcome| outcome.child) {
                    Ok(Some(new)) => {
                        old.push(std::mem::replace(child, new));
                        (total, true, None)
                    }
                    Ok(None) | Err(_) => (total, false, None),
                }
            }
        };
        let mut gap = Duration::ZERO;
        if committed {
            let [stops, accepts] =
                ["stops", "accepts"].map(|word| self.nest.told(word).expect("the daemons tell"));
            gap = Duration::from_nanos(accepts.saturating_sub(stops));
        }
        Swap { total, gap, phases, committed }
    }

    /// Waits until nothing is left to do of the last swap.
    pub fn settle(&mut self) {
        match &mut self.boss {
            Boss::Ours(boss) => {
                boss.exits(Duration::from_secs(2)).expect("the supervisor works");
            }
            Boss::Theirs { child, old, .. } => {
                old.drain(..).for_each(|mut old| drop(old.wait()));
                answers(&self.nest, child.id());
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        match &mut self.boss {
            Boss::Ours(boss) => drop(boss.shutdown(Duration::from_secs(1))),
            Boss::Theirs { child, old, .. } => {
                for child in old.iter_mut().chain([child]) {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
    }
}

fn theirs(nest: &Nest, journal: bool) -> Boss {
    let fd = nest.listener.as_raw_fd();
    let mut command = Command::new(nest.kind.program());
    command.args(nest.args()).stdin(Stdio::null());
    handoff::pass_listener_fds_on_spawn(&mut command, &[(LISTENER.to_string(), fd)], None);
    let child = command.spawn().expect("a daemon");
    answers(nest, child.id());
    let supervisor = handoff::Supervisor::new(nest.control().as_path()).expect("a supervisor");
    let supervisor = supervisor.with_listener(LISTENER, fd);
    let supervisor = if journal {
        supervisor.with_journal(nest.path("state").join("journal"))
    } else {
        supervisor
    };
    Boss::Theirs { supervisor: Box::new(supervisor), child, old: Vec::new() }
}

/// Waits until this daemon answers on the control path.
pub fn answers(nest: &Nest, pid: u32) {
    let (control, limit) = (nest.control(), Instant::now() + PATIENCE);
    while probe(&control, &Users::default()).ok().map(|found| found.cred.pid) != Some(pid) {
        assert!(Instant::now() < limit, "pid {pid} does not answer");
        std::thread::park_timeout(Duration::from_micros(500));
    }
}

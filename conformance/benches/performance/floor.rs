//! What nothing can be faster than: a trivial static program, and messages to it.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::stage::Place;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/performance/echo.c");

/// How long who is asked cold was asleep.
const ASLEEP: Duration = Duration::from_millis(4);

/// A program that says again what it reads.
pub struct Floor {
    program: PathBuf,
    _dir: TempDir,
    /// One that runs, to be asked when it has slept.
    echo: Echo,
}

/// A process of that program.
pub struct Echo {
    child: Child,
    stream: UnixStream,
}

impl Floor {
    /// Compiles it, statically where that can be done here.
    pub fn new() -> Self {
        let dir = Place::Memory.dir();
        let program = dir.path().join("echo");
        let compiled = [["-static", "-O2"], ["-O1", "-O2"]].into_iter().find(|flags| {
            let mut cc = Command::new("cc");
            cc.args(flags).arg("-o").arg(&program).arg(SOURCE).stderr(Stdio::null());
            cc.status().is_ok_and(|status| status.success())
        });
        let flags = compiled.expect("cc, which links Rust too, compiles a program");
        if flags[0] != "-static" {
            eprintln!("(the floor's program is not static: there is no static libc here)");
        }
        let echo = Echo::start(&program, &[]);
        Self { program, _dir: dir, echo }
    }

    pub fn echo(&self) -> Echo {
        Echo::start(&self.program, &[])
    }

    /// posix_spawn, and five round trips with what was started.
    pub fn swap(&self) -> Duration {
        five_trips(|| self.echo())
    }

    /// The same with a daemon's program, which does nothing else then.
    pub fn swap_of(&self, daemon: &str) -> Duration {
        five_trips(|| Echo::start(daemon.as_ref(), &["echo"]))
    }

    /// As many at once: all are started, then each is asked.
    pub fn swaps(&self, count: usize) -> Duration {
        at_once(count, || self.echo())
    }

    /// The same with a daemon's program.
    pub fn swaps_of(&self, daemon: &str, count: usize) -> Duration {
        at_once(count, || Echo::start(daemon.as_ref(), &["echo"]))
    }

    /// Two round trips, each with a process that sleeps.
    pub fn two_cold_trips(&mut self) -> Duration {
        let mut trip = || {
            std::thread::park_timeout(ASLEEP);
            let start = Instant::now();
            self.echo.ask(&[7; 24]);
            start.elapsed()
        };
        trip() + trip()
    }
}

fn at_once(count: usize, start_echo: impl Fn() -> Echo) -> Duration {
    let start = Instant::now();
    let mut echoes: Vec<_> = (0..count).map(|_| start_echo()).collect();
    for _ in 0..5 {
        for echo in &mut echoes {
            echo.stream.write_all(&[7; 24]).expect("it reads");
        }
        for echo in &mut echoes {
            echo.stream.read_exact(&mut [0; 24]).expect("it answers");
        }
    }
    start.elapsed()
}

fn five_trips(start_echo: impl FnOnce() -> Echo) -> Duration {
    let start = Instant::now();
    let mut echo = start_echo();
    for _ in 0..5 {
        echo.ask(&[7; 24]);
    }
    start.elapsed()
}

impl Echo {
    fn start(program: &Path, args: &[&str]) -> Self {
        let (stream, theirs) = UnixStream::pair().expect("a socketpair");
        // std starts it by posix_spawn.
        let mut command = Command::new(program);
        let child = command.args(args).stdin(OwnedFd::from(theirs)).spawn().expect("it starts");
        Self { child, stream }
    }

    pub fn tell(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("it reads");
    }

    pub fn hear(&mut self, count: usize) {
        let mut said = [0; 256];
        self.stream.read_exact(&mut said[..count]).expect("it answers");
    }

    pub fn ask(&mut self, bytes: &[u8]) {
        self.tell(bytes);
        self.hear(bytes.len());
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

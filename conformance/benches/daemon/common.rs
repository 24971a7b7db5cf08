//! What the benchmark's daemons have in common: where they live, and when they stop and begin to accept.
#![allow(unreachable_pub, dead_code, reason = "part of several binaries, none of which uses all")]

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use handoff_unix::process::PidFd;
use rustix::time::{ClockId, clock_gettime};

/// Says again what it reads: how long it takes to start a program as large as this one.
fn echo() -> io::Result<()> {
    let (stream, mut said) = (io::stdin(), [0; 256]);
    loop {
        let count = rustix::io::read(&stream, &mut said)?;
        if count == 0 {
            return Ok(());
        }
        rustix::io::write(&stream, &said[..count])?;
    }
}

/// What the listener is called.
pub const LISTENER: &str = "tcp";

/// The arguments of a daemon: its control path, its data directory, the socket it tells the benchmark
/// of its accepting on, and the pid of the benchmark.
pub struct Options {
    pub control: PathBuf,
    pub data: PathBuf,
    tell: PathBuf,
    bench: u32,
}

impl Options {
    /// # Errors
    ///
    /// This is no daemon of the benchmark's.
    pub fn of_process() -> io::Result<Self> {
        let mut args = std::env::args_os().skip(1);
        if std::env::args_os().nth(1).is_some_and(|arg| arg == "echo") {
            std::process::exit(echo().is_err().into());
        }
        let mut next =
            || args.next().ok_or_else(|| io::Error::other("not started by the benchmark"));
        let (control, data, tell) = (next()?.into(), next()?.into(), next()?.into());
        let pid = |arg: OsString| arg.to_str().and_then(|pid| pid.parse().ok());
        let bench = pid(next()?).ok_or_else(|| io::Error::other("the benchmark's pid"))?;
        Ok(Self { control, data, tell, bench })
    }

    /// Tells the benchmark that this has happened, and when. Nobody may listen.
    pub fn tell(&self, word: &str) {
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
        let line = format!("{word} {}", now.as_nanos());
        let _ = UnixDatagram::unbound().and_then(|it| it.send_to(line.as_bytes(), &self.tell));
    }

    /// Tells the benchmark who this is.
    pub fn tell_pid(&self) {
        let line = format!("pid {}", std::process::id());
        let _ = UnixDatagram::unbound().and_then(|it| it.send_to(line.as_bytes(), &self.tell));
    }

    /// The port to listen at, for a daemon that binds it itself: what stands for the control path then.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn port(&self) -> io::Result<u16> {
        let port = self.control.file_name().and_then(|name| name.to_str()?.parse().ok());
        port.ok_or_else(|| io::Error::other("a port"))
    }

    /// This process does not outlive the benchmark.
    pub fn keep(&self) {
        if let Ok(bench) = PidFd::open(self.bench) {
            std::thread::spawn(move || {
                let _ = bench.wait(None);
                std::process::exit(9);
            });
        }
    }
}

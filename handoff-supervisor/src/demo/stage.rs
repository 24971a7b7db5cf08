//! What the demo takes place in: a folder, a supervisor, and the log of the daemons it starts.

use std::env;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use handoff_blocking::{Event, Handoff, Launch, Report, Supervisor, SupervisorConfig};
use tempfile::TempDir;

use super::{DAEMON_VERB, Failure, Runtime};

/// How many clients may wait at once while nobody accepts: the backlog std gives a listener.
pub(super) const MOST_CLIENTS: u32 = 128;

/// The longest name of a folder in which the control path still fits into a socket's address.
const LONGEST_PARENT: usize = 48;
/// From SIGTERM to SIGKILL when the demo is over.
const END_GRACE: Duration = Duration::from_secs(5);
/// The last line of the log, written when every daemon is gone.
const END_OF_LOG: &str = "the demo is over";
/// How long that line may take.
const LOG_GRACE: Duration = Duration::from_secs(2);

/// What a successor is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Successor {
    /// Take over.
    Serves,
    /// Report itself unfit to serve.
    Unhealthy,
    /// Exit when it has the lock and has opened the data.
    Dies,
}

/// A line of a daemon's log, and when it came.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) at: Instant,
    pub(super) text: String,
}

impl Line {
    /// Whether this daemon said exactly this.
    pub(super) fn says(&self, pid: u32, what: &str) -> bool {
        self.text.strip_prefix(&format!("kv[{pid}]: ")) == Some(what)
    }
}

/// Ends its daemons and removes its folder when it is dropped.
pub(super) struct Stage {
    pub(super) supervisor: Supervisor,
    pub(super) address: SocketAddr,
    launch: Launch,
    log: Receiver<Line>,
    folder: Option<TempDir>,
}

impl Stage {
    /// Makes the folder and the listener. Nothing runs yet.
    pub(super) fn set() -> Result<Self, Failure> {
        let folder = folder().map_err(Failure::io("cannot make a temporary folder"))?;
        let (control, data) = (folder.path().join("control"), folder.path().join("data"));
        std::fs::create_dir(&data).map_err(Failure::io("cannot make the data directory"))?;
        let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| {
            // While nobody else has it: every runtime's own sockets can use it then.
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        });
        let (address, listener) = listener.map_err(Failure::io("cannot listen on 127.0.0.1"))?;

        let config = SupervisorConfig::new(&control).data_dir(&data);
        let mut supervisor = Supervisor::new(config.journal(folder.path().join("journal")))?;
        supervisor.listener("http", listener)?;

        let (reader, writer) = io::pipe().map_err(Failure::io("cannot make a pipe"))?;
        let program = env::current_exe().map_err(Failure::io("cannot find my own binary"))?;
        let launch = Launch::new(program)
            .arg(DAEMON_VERB)
            .env("KV_CONTROL", control)
            .env("KV_DATA", data)
            .stderr(Arc::new(OwnedFd::from(writer)));
        let log = read_log(reader).map_err(Failure::io("cannot start a thread"))?;
        Ok(Self { supervisor, address, launch, log, folder: Some(folder) })
    }

    /// Starts the first daemon; gives its pid.
    pub(super) fn start(&mut self, runtime: Runtime) -> Result<u32, Failure> {
        let launch = self.launch.clone().arg(runtime.name());
        Ok(self.supervisor.start(&launch)?.pid)
    }

    pub(super) fn swap(
        &mut self,
        successor: Successor,
        runtime: Runtime,
        on: impl FnMut(&Event),
    ) -> Result<Report, Failure> {
        let launch = self.launch.clone().arg(runtime.name());
        let launch = match successor {
            Successor::Serves => launch,
            Successor::Unhealthy => launch.env("KV_UNHEALTHY", "1"),
            Successor::Dies => launch.env("KV_DIE_AFTER_BEGIN", "1"),
        };
        let limit = Duration::from_secs(20);
        let handoff = Handoff::new(launch).warm_up(limit).drain_grace(limit / 2).deadline(limit);
        Ok(self.supervisor.handoff(&handoff, on)?)
    }

    /// Ends the daemons and removes the folder; gives what the daemons logged.
    pub(super) fn clear(mut self) -> Result<Vec<Line>, Failure> {
        let stuck = self.supervisor.shutdown(END_GRACE)?;
        if let Some(log) = &self.launch.stderr {
            rustix::io::write(log, format!("{END_OF_LOG}\n").as_bytes())
                .map_err(|error| Failure::io("cannot end the log")(error.into()))?;
        }
        let mut lines = Vec::new();
        while let Ok(line) = self.log.recv_timeout(LOG_GRACE) {
            lines.push(line);
        }
        match self.folder.take().map_or(Ok(()), TempDir::close) {
            _ if !stuck.is_empty() => Err(Failure::Stuck(stuck)),
            removed => removed.map_err(Failure::io("cannot remove the folder")).map(|()| lines),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.supervisor.shutdown(END_GRACE);
    }
}

fn folder() -> io::Result<TempDir> {
    let usual = std::path::absolute(env::temp_dir())?;
    let short = usual.as_os_str().len() <= LONGEST_PARENT;
    let parent = if short { usual.as_path() } else { Path::new("/tmp") };
    tempfile::Builder::new().prefix("handoff-demo-").tempdir_in(parent)
}

/// Notes when each line comes, up to the last.
fn read_log(reader: PipeReader) -> io::Result<Receiver<Line>> {
    let (sender, log) = mpsc::channel();
    thread::Builder::new().name("log".into()).spawn(move || {
        let lines = BufReader::new(reader).split(b'\n').map_while(Result::ok);
        for line in lines.take_while(|line| line != END_OF_LOG.as_bytes()) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if sender.send(Line { at: Instant::now(), text }).is_err() {
                return;
            }
        }
    })?;
    Ok(log)
}

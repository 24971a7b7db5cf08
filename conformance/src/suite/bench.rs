//! A supervisor, a daemon to swap and a client of it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use handoff_core::supervisor::{Event, Reason, Report, Verdict};
use handoff_unix::host::Handoff;
use handoff_unix::spawn::Launch;
use tempfile::TempDir;

use super::program::{DIRECTORIES, GO, LISTENER, WAITS, control_path, data_dir, writes};
use super::{Adapter, Fault, PATIENCE, Supervise, part, wait_until};

/// Writes, one connection each, and remembers what was acknowledged.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    acknowledged: Vec<String>,
}

impl Client {
    /// A write that must be acknowledged; by whom.
    ///
    /// # Panics
    ///
    /// The connection was refused, reset or not answered (I4), or somebody else has written (I2).
    pub fn write(&mut self) -> u32 {
        let value = format!("value-{}", self.acknowledged.len());
        let mut stream = TcpStream::connect(self.address).expect("the listener refuses nobody");
        let mut answer = String::new();
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| writeln!(stream, "{value}"))
            .and_then(|()| stream.read_to_string(&mut answer))
            .expect("an accepted connection is served");
        let _ = stream.shutdown(Shutdown::Both);
        self.acknowledged.push(value);
        let (revision, by) = answer.trim().split_once(' ').unwrap_or_default();
        // Whoever wrote beside it would have counted on from elsewhere.
        assert_eq!(revision.parse(), Ok(self.acknowledged.len()), "the revision in {answer:?}");
        by.parse().expect("a pid")
    }
}

/// A supervisor in this process, a daemon in one of its own, a client. Whatever runs is ended when it
/// is dropped, and its directory removed.
///
/// Its methods panic where the invariants do not hold, as a test does.
pub struct Bench {
    /// Whose daemons and supervisor these are.
    pub adapter: &'static dyn Adapter,
    /// The supervisor.
    pub supervisor: Box<dyn Supervise>,
    /// Where all that the daemons have is.
    pub dir: TempDir,
    /// The listener that the daemons inherit.
    pub listener: TcpListener,
    /// Who writes.
    pub client: Client,
}

impl Bench {
    /// A supervisor with a listener, and a daemon that serves; its pid. The fault is the daemon's.
    #[must_use]
    pub fn start(adapter: &'static dyn Adapter, fault: Option<Fault>) -> (Self, u32) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback address");
        Self::start_on(adapter, fault, listener)
    }

    /// The same with this listener.
    #[must_use]
    pub fn start_on(
        adapter: &'static dyn Adapter,
        fault: Option<Fault>,
        listener: TcpListener,
    ) -> (Self, u32) {
        let dir = directory();
        let supervisor = adapter.supervisor(part::config(dir.path())).expect("a supervisor");
        let address = listener.local_addr().expect("a loopback address");
        let client = Client { address, acknowledged: Vec::new() };
        let mut bench = Self { adapter, supervisor, dir, listener, client };
        let listener = bench.listener.try_clone().expect("a descriptor").into();
        bench.supervisor.listener(LISTENER, listener).expect("the supervisor takes a listener");
        let started = bench.supervisor.start(&bench.launch(fault)).expect("a daemon");
        assert!(started.started, "{started:?}");
        assert_eq!(bench.write(), started.pid);
        (bench, started.pid)
    }

    /// Where its data is.
    #[must_use]
    pub fn data_dir(&self) -> std::path::PathBuf {
        data_dir(self.dir.path())
    }

    /// Where its daemons are to be reached by supervisors.
    #[must_use]
    pub fn control_path(&self) -> std::path::PathBuf {
        control_path(self.dir.path())
    }

    /// A daemon of the bench's adapter.
    #[must_use]
    pub fn launch(&self, fault: Option<Fault>) -> Launch {
        part::daemon(self.adapter, self.dir.path(), fault).expect("this binary")
    }

    /// A write that must be acknowledged; by whom.
    pub fn write(&mut self) -> u32 {
        self.client.write()
    }

    /// Hands off to a daemon with this fault.
    pub fn swap(&mut self, fault: Option<Fault>) -> Report {
        self.swap_as(&Handoff::new(self.launch(fault)), |_| {})
    }

    /// The same, with `on` told of each event.
    pub fn swap_as(&mut self, handoff: &Handoff, mut on: impl FnMut(&Event)) -> Report {
        self.supervisor.handoff(handoff, &mut on).expect("the supervisor works")
    }

    /// Waits until a daemon in `dir` waits: in its warm-up, its open, its drain or its seal.
    pub fn waits(dir: &Path) {
        wait_until("a daemon waits", || dir.join(WAITS).exists());
    }

    /// Lets a daemon in `dir` go on that waits for it.
    pub fn go(dir: &Path) {
        std::fs::write(dir.join(GO), "").expect("a file");
    }

    /// Waits until a daemon has ended; how.
    pub fn end_of(&mut self, pid: u32) -> String {
        loop {
            let ended = self.supervisor.exits(PATIENCE).expect("the supervisor works");
            assert!(!ended.is_empty(), "pid {pid} does not end");
            if let Some((_, status)) = ended.into_iter().find(|(ended, _)| *ended == pid) {
                return status;
            }
        }
    }

    /// I3, I6: everything acknowledged is there, once; the next handoff commits, and leaves nothing.
    pub fn ends_well(mut self) {
        self.write();
        let report = self.swap(None);
        assert_eq!(report.verdict, Verdict::Committed, "{report}");
        assert_eq!(Some(self.write()), report.serving);
        self.has_all();
        let left = self.supervisor.shutdown(PATIENCE).expect("the supervisor works");
        assert!(left.is_empty(), "{left:?}");
        let mut files = self.files();
        files.retain(|name| name.contains("staging"));
        assert!(files.is_empty(), "{files:?}");
    }

    /// I3: every write that was acknowledged is there, once and in order.
    pub fn has_all(&self) {
        let log = std::fs::read_to_string(writes(self.dir.path())).expect("the log of writes");
        assert_eq!(log.lines().collect::<Vec<_>>(), self.client.acknowledged);
    }

    /// What stands beside the data: in the directories of the control path and of the journal.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        let beside = DIRECTORIES.iter().filter(|name| **name != "data");
        let entries = beside.flat_map(|name| std::fs::read_dir(self.dir.path().join(name)));
        let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut files: Vec<_> = entries.flatten().flatten().map(name).collect();
        files.sort();
        files
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.supervisor.shutdown(Duration::from_secs(1));
        // The last entry of the journal may still be written, and get in the way once or twice.
        let _ = (0..100).any(|_| std::fs::remove_dir_all(self.dir.path()).is_ok());
    }
}

/// Why a handoff did not come to what was asked for.
#[must_use]
pub fn reason(report: &Report) -> Option<Reason> {
    report.trouble.as_ref().map(|trouble| trouble.reason)
}

/// A directory with room for data in it.
pub(super) fn directory() -> TempDir {
    let dir = tempfile::Builder::new().prefix("suite of handoff ").tempdir().expect("a directory");
    for name in DIRECTORIES {
        std::fs::create_dir(dir.path().join(name)).expect("a directory");
    }
    dir
}

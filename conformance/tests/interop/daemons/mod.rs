//! The daemons: theirs, and ours on each adapter. Each keeps a log of writes and answers
//! `revision pid` to each.

mod tasks;
mod theirs;
mod threads;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use handoff_blocking::{Config, Readiness};

use crate::bench::{Kind, sign_in, wait_until};

/// What the daemon processes run, if this is one.
pub(crate) fn daemon() {
    let Ok(dir) = std::env::var("TEST_DIR") else { return };
    let told = Told {
        dir: dir.into(),
        fault: std::env::var("TEST_FAULT").unwrap(),
        first: Arc::new(AtomicBool::new(true)),
    };
    sign_in(&told.dir);
    let kind = Kind::of(&std::env::var("TEST_KIND").unwrap());
    let ended = match kind {
        Kind::Theirs => std::process::exit(theirs::daemon(&told)),
        Kind::Blocking => threads::daemon(told),
        Kind::Tokio => tasks::on_tokio(told),
        Kind::Smol => tasks::on_smol(told),
    };
    eprintln!("{kind:?} {}: {ended}", std::process::id());
    std::process::exit(ended.exit_code().into());
}

/// Where a daemon is, and what goes wrong with it.
#[derive(Clone)]
struct Told {
    dir: PathBuf,
    fault: String,
    /// Nothing was sealed yet.
    first: Arc<AtomicBool>,
}

impl Told {
    /// Whether this is what goes wrong.
    fn to(&self, fault: &str) -> bool {
        self.fault == fault
    }

    fn config(&self) -> Config {
        Config::new(self.control(), self.data()).build_id("test")
    }

    fn control(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Whether to fail the seal, which goes wrong once.
    fn fails_seal(&self) -> bool {
        self.first.swap(false, Ordering::Relaxed) && self.to("fails-first-seal")
    }

    /// Says that the listener is taken, and waits until the test lets it go on.
    fn warm_up(&self) {
        if self.to("warms-up") {
            std::fs::write(self.dir.join("warming"), "").unwrap();
            self.go();
        }
    }

    /// What goes wrong at once when the lock is to be had, or with it in hand.
    fn begun(&self) {
        if self.to("dies-after-begin") {
            std::process::exit(4);
        }
        if self.to("waits-to-open") {
            self.go();
        }
    }

    /// Whether it is worth being ready. One that is not and knows it accepts nobody: it may be ended
    /// at any moment.
    fn is_well(&self) -> bool {
        !self.fault.starts_with("unhealthy") && !self.to("regressed")
    }

    /// Waits until the test lets it go on.
    fn go(&self) {
        wait_until("the test lets it go on", || self.dir.join("go").exists());
    }

    fn readiness(&self, store: &Store) -> Readiness {
        let revision = store.revision().unwrap();
        let revision = if self.to("regressed") { revision - 1 } else { revision };
        let healthz_ok = !self.fault.starts_with("unhealthy");
        let revisions = if self.to("reports-nothing") { vec![] } else { vec![revision] };
        Readiness { listening_on: vec!["tcp".into()], healthz_ok, revisions }
    }
}

/// A log of writes.
struct Store {
    path: PathBuf,
    /// None while it is sealed. The count is the revision.
    open: Mutex<Option<(File, u64)>>,
}

impl Store {
    fn open(dir: &Path) -> Self {
        let store = Self { path: dir.join("writes.log"), open: Mutex::default() };
        store.reopen();
        store
    }

    fn state(&self) -> MutexGuard<'_, Option<(File, u64)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens it, if it is closed.
    fn reopen(&self) {
        let mut open = self.state();
        if open.is_none() {
            let written = std::fs::read_to_string(&self.path).unwrap_or_default().lines().count();
            let file = OpenOptions::new().create(true).append(true).open(&self.path).unwrap();
            *open = Some((file, written as u64));
        }
    }

    fn revision(&self) -> Option<u64> {
        self.state().as_ref().map(|(_, revision)| *revision)
    }

    /// Writes, and gives the answer, unless it is sealed.
    fn write(&self, value: &str) -> Option<String> {
        let mut open = self.state();
        let (file, revision) = open.as_mut()?;
        writeln!(file, "{}", value.trim()).unwrap();
        file.sync_data().unwrap();
        *revision += 1;
        Some(format!("{revision} {}\n", std::process::id()))
    }

    /// Reads a write from a connection and answers it. A client may go away.
    fn serve(&self, mut stream: TcpStream) {
        let mut value = String::new();
        let _ = BufReader::new(&mut stream).read_line(&mut value);
        if let Some(answer) = self.write(&value) {
            let _ = stream.write_all(answer.as_bytes());
        }
    }

    /// Flushes and closes it; the last revision.
    fn seal(&self) -> io::Result<u64> {
        let open = self.state().take();
        let (file, revision) = open.ok_or_else(|| io::Error::other("sealed twice"))?;
        file.sync_all()?;
        Ok(revision)
    }
}

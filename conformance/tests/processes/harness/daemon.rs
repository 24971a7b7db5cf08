//! What the daemons of all runtimes share: their data, and what goes wrong with them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use handoff_blocking::{Config, Ended, HookError, Readiness};

use super::{Runtime, tasks, threads, wait_until};

/// What the daemon processes run, if this is one.
pub(crate) fn daemon() {
    let Ok(dir) = std::env::var("TEST_DIR") else { return };
    let told = Told { dir: dir.into(), fault: std::env::var("TEST_FAULT").unwrap_or_default() };
    if told.to("exit-at-once") {
        std::process::exit(3);
    }
    let ended: Ended = match Runtime::from_env() {
        Runtime::Blocking => threads::daemon(told),
        runtime => tasks::daemon(runtime, told),
    };
    std::process::exit(ended.exit_code().into());
}

/// Where a daemon is, and what goes wrong with it.
#[derive(Clone)]
pub(super) struct Told {
    dir: PathBuf,
    fault: String,
}

impl Told {
    /// Whether this is what goes wrong.
    pub(super) fn to(&self, fault: &str) -> bool {
        self.fault == fault
    }

    pub(super) fn config(&self) -> Config {
        Config::new(self.dir.join("c.sock"), self.dir.join("data")).build_id("test")
    }

    /// A hook that fails at once, or panics.
    pub(super) fn hook(&self, name: &str) -> Result<(), HookError> {
        if self.to(&format!("{name}-error")) {
            return Err("injected".into());
        }
        assert!(!self.to(&format!("{name}-panic")), "injected");
        Ok(())
    }

    /// Says that the listener is taken, and waits until the test lets it go on.
    pub(super) fn warm_up(&self) {
        std::fs::write(self.dir.join("warming"), "").unwrap();
        self.go();
    }

    /// Waits until the test lets it go on.
    pub(super) fn go(&self) {
        wait_until("the test lets it go on", || self.dir.join("go").exists());
    }

    pub(super) fn readiness(&self, store: &Store) -> Readiness {
        let revision = store.revision().unwrap();
        let regressed = self.to("regressed");
        Readiness {
            listening_on: vec!["tcp".into()],
            healthz_ok: !self.to("unhealthy"),
            revisions: vec![if regressed { revision.saturating_sub(1) } else { revision }],
        }
    }
}

/// A log of writes.
pub(super) struct Store {
    path: PathBuf,
    /// None while it is sealed. The count is the revision.
    open: Mutex<Option<(File, u64)>>,
}

impl Store {
    pub(super) fn open(dir: &Path) -> Self {
        let store = Self { path: dir.join("writes.log"), open: Mutex::default() };
        store.reopen();
        store
    }

    fn state(&self) -> MutexGuard<'_, Option<(File, u64)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens it, if it is closed.
    pub(super) fn reopen(&self) {
        let mut open = self.state();
        if open.is_none() {
            let written = std::fs::read_to_string(&self.path).unwrap_or_default().lines().count();
            let file = OpenOptions::new().create(true).append(true).open(&self.path).unwrap();
            *open = Some((file, written as u64));
        }
    }

    pub(super) fn revision(&self) -> Option<u64> {
        self.state().as_ref().map(|(_, revision)| *revision)
    }

    /// Writes, and gives the answer, unless it is sealed.
    pub(super) fn write(&self, value: &str) -> Option<String> {
        let mut open = self.state();
        let (file, revision) = open.as_mut()?;
        writeln!(file, "{}", value.trim()).unwrap();
        file.sync_data().unwrap();
        *revision += 1;
        Some(format!("{revision} {}\n", std::process::id()))
    }

    /// Flushes and closes it; the last revision.
    pub(super) fn seal(&self) -> Result<u64, HookError> {
        let (file, revision) = self.state().take().ok_or("sealed twice")?;
        file.sync_all()?;
        Ok(revision)
    }
}

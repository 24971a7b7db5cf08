use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use handoff_core::daemon::{LockFailure, OsEffect, Outcome, Probed, Signal};

use super::Job;
use crate::control::{ControlPath, ControlPathError, ControlSocket, PathWatch};
use crate::lock::{DataDirLock, LockError, PidFile};
use crate::probe::{Users, probed};
use crate::process::{self, PidFd};

/// What a daemon's effects act on: its lock, its control socket, its successor.
///
/// Cloning it gives another handle to the same. The lock is let go by
/// [`OsEffect::ReleaseLock`] and by the end of the process only: dropping the host keeps it, because
/// the program may still be writing (R7).
#[derive(Clone, Debug)]
pub struct DaemonEffects {
    control: ControlPath,
    data_dir: PathBuf,
    users: Users,
    lock: Arc<Mutex<Held>>,
    socket: Arc<Mutex<Option<Arc<ControlSocket>>>>,
    successor: Arc<Mutex<Option<PidFd>>>,
}

/// The lock, while it is held. It goes by being released or with the process, never by a drop.
#[derive(Debug, Default)]
struct Held {
    lock: Option<DataDirLock>,
    /// The pid file says so.
    told: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        std::mem::forget(self.lock.take());
    }
}

fn own<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DaemonEffects {
    /// A host that holds nothing yet.
    #[must_use]
    pub fn new(control: ControlPath, data_dir: PathBuf, users: Users) -> Self {
        Self {
            control,
            data_dir,
            users,
            lock: Arc::default(),
            socket: Arc::default(),
            successor: Arc::default(),
        }
    }

    /// The control socket, once there is one. It may change when the control path is claimed again.
    #[must_use]
    pub fn socket(&self) -> Option<Arc<ControlSocket>> {
        own(&self.socket).clone()
    }

    /// Watches what happens to the control path.
    ///
    /// # Errors
    ///
    /// As [`ControlPath::watch`].
    pub fn watch_path(&self) -> io::Result<PathWatch> {
        self.control.watch()
    }

    /// Whether there is a control socket, and the control path leads elsewhere or nowhere.
    #[must_use]
    pub fn path_is_lost(&self) -> bool {
        self.socket().is_some_and(|socket| !socket.leads_here())
    }

    /// The work that carries out an effect.
    #[must_use]
    pub fn job(&self, effect: OsEffect) -> Job<Outcome> {
        let host = self.clone();
        Box::new(move || host.run(&effect))
    }

    fn run(&self, effect: &OsEffect) -> Outcome {
        match effect {
            OsEffect::TakeLock => Outcome::Lock(self.take_lock()),
            OsEffect::ReleaseLock => Outcome::Released(self.release_lock()),
            OsEffect::StagePath => {
                self.tell_holder();
                self.control.remove_stale();
                Outcome::Staged(self.stage().map(drop).map_err(|error| error.to_string()))
            }
            OsEffect::ClaimPath => {
                let claimed = self.claim().map_err(|error| error.to_string());
                self.tell_holder();
                self.control.remove_stale();
                Outcome::Claimed(claimed)
            }
            OsEffect::Probe => Outcome::Probed(self.probe()),
            OsEffect::WatchSuccessor { pid } => Outcome::Watched(self.watch(*pid)),
            OsEffect::SignalSuccessor(signal) => Outcome::Signalled(self.signal(*signal)),
        }
    }

    fn take_lock(&self) -> Result<(), LockFailure> {
        match DataDirLock::try_take(&self.data_dir) {
            Ok(lock) => {
                *own(&self.lock) = Held { lock: Some(lock), told: false };
                Ok(())
            }
            Err(LockError::Held { holder, .. }) => Err(LockFailure::Held { holder }),
            Err(error @ LockError::Shortage { .. }) => {
                Err(LockFailure::Shortage(error.to_string()))
            }
            Err(error @ LockError::Unusable { .. }) => {
                Err(LockFailure::Unusable(error.to_string()))
            }
        }
    }

    fn release_lock(&self) -> Result<(), String> {
        let lock = own(&self.lock).lock.take();
        match lock {
            Some(lock) => lock.release().map_err(|error| {
                format!("the lock on {} could not be released: {error}", self.data_dir.display())
            }),
            None => Ok(()),
        }
    }

    /// Names the lock's holder for others, once, where nobody waits for it: to make a file takes as long as
    /// all of the lock.
    fn tell_holder(&self) {
        let mut held = own(&self.lock);
        let told = std::mem::replace(&mut held.told, true);
        let file = held.lock.as_ref().filter(|_| !told).and_then(DataDirLock::pid_file);
        drop(held);
        file.into_iter().for_each(PidFile::write);
    }

    fn stage(&self) -> Result<Arc<ControlSocket>, ControlPathError> {
        let socket = Arc::new(self.control.stage()?);
        *own(&self.socket) = Some(Arc::clone(&socket));
        Ok(socket)
    }

    fn claim(&self) -> Result<(), ControlPathError> {
        if let Some(socket) = self.socket() {
            if socket.leads_here() {
                return Ok(());
            }
            match socket.publish() {
                Err(ControlPathError::Lost { .. }) => {}
                result => return result,
            }
        }
        self.stage()?.publish()
    }

    fn probe(&self) -> Probed {
        if self.socket().is_some_and(|socket| socket.leads_here()) {
            return Probed::Own;
        }
        match probed(&self.control, &self.users) {
            Probed::Answered { pid } if pid == std::process::id() => Probed::Own,
            found => found,
        }
    }

    fn watch(&self, pid: u32) -> Result<(), String> {
        let watched = PidFd::open(pid).map_err(|e| format!("cannot watch pid {pid}: {e}"));
        *own(&self.successor) = None;
        *own(&self.successor) = Some(watched?);
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<(), String> {
        let successor = own(&self.successor);
        let Some(pidfd) = successor.as_ref() else {
            return Err("the successor is not watched, so it cannot be ended safely".to_string());
        };
        let sent: io::Result<bool> = pidfd.signal(to_unix(signal));
        sent.map(drop).map_err(|e| format!("cannot end the successor, pid {}: {e}", pidfd.pid()))
    }
}

pub(super) fn to_unix(signal: Signal) -> process::Signal {
    match signal {
        Signal::Term => process::Signal::TERM,
        Signal::Kill => process::Signal::KILL,
    }
}

//! What clients are answered.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use handoff_unix::poll;
use handoff_unix::process::{ExitCause, Signal};
use handoff_unix::spawn::{Launch, SpawnRole, spawn};
use rustix::fd::BorrowedFd;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::{Actor, Doing, Mail, left, told};
use crate::admin::{
    Boss, Ended, Entry, Probation, Refusal, Reply, Request, Rollback, Status, Swap,
};
use crate::exit;
use crate::sockets::Held;
use crate::supervise::flight::{self, Waiter, at, exit_code};
use crate::supervise::launch::{binary, refused};

/// How long a new binary of the supervisor may take to say that it understands the configuration.
const TRIAL: Duration = Duration::from_secs(30);

/// How many bytes of the history are told at a time: a client reads so much in a line, and more.
const HISTORY: usize = 2 << 20;

type To = mpsc::Sender<Reply>;

impl Actor {
    pub(super) fn request(&mut self, request: Request, uid: u32, to: To) {
        let asker = to.clone();
        let result = match request {
            Request::Status { .. } => {
                let status = Box::new(self.status());
                drop(to.try_send(Reply::Status(status)));
                Ok(())
            }
            Request::History { last } => {
                let entries = newest(&self.history, last);
                drop(to.try_send(Reply::History { entries }));
                Ok(())
            }
            Request::Swap(swap) => self.swap(swap, uid, to),
            Request::Rollback(rollback) => self.roll_back(rollback, uid, to),
            Request::Abort => self.abort_for(to),
            Request::Reexec { binary } => self.try_reexec(binary, to),
            Request::Stop => {
                self.stop(Some(to));
                Ok(())
            }
        };
        if let Err(refusal) = result {
            drop(asker.try_send(Reply::Refused(refusal)));
        }
    }

    fn swap(&mut self, swap: Swap, uid: u32, to: To) -> Result<(), Refusal> {
        let kind = if swap.dry_run { "dry_run" } else { "swap" };
        if self.repeats(kind, swap.key.as_deref(), swap.wait, &to) {
            return Ok(());
        }
        self.reload()?;
        let binary = binary(&self.config, swap.binary.as_deref())?;
        let mut asked = self.asked(kind, binary, swap.reason);
        asked.dry_run = swap.dry_run;
        (asked.key, asked.uid) = (swap.key, Some(uid));
        if let Some(deadline) = swap.deadline_ms {
            asked.deadline = Duration::from_millis(deadline);
            asked.drain_grace = asked.drain_grace.min(asked.deadline);
        }
        if let Some(grace) = swap.drain_grace_ms {
            asked.drain_grace = Duration::from_millis(grace);
        }
        if asked.deadline.is_zero() || asked.drain_grace > asked.deadline {
            let message = "the drain's grace is longer than the deadline, or that is zero; give other \
                           values for --deadline and --drain-grace";
            return Err(refused(exit::USAGE, "bad_request", message.to_string()));
        }
        self.fly(asked, swap.wait, to)
    }

    fn roll_back(&mut self, rollback: Rollback, uid: u32, to: To) -> Result<(), Refusal> {
        if self.repeats("rollback", rollback.key.as_deref(), rollback.wait, &to) {
            return Ok(());
        }
        let Some(previous) = self.state.previous.clone() else {
            let message = "no binary has served before this one, as far as this supervisor knows; name \
                           it: handoff swap BINARY";
            return Err(refused(exit::DATA, "no_previous", message.to_string()));
        };
        if !previous.is_there() {
            let message = format!(
                "{} is not the file any more that served before; give each version a path of its own, \
                 and name the binary: handoff swap BINARY",
                previous.path.display()
            );
            return Err(refused(exit::NO_INPUT, "no_previous", message));
        }
        let mut asked = self.asked("rollback", previous, rollback.reason);
        (asked.key, asked.uid) = (rollback.key, Some(uid));
        self.fly(asked, rollback.wait, to)
    }

    /// Whether this key was used before for the same: then it is answered with that handoff.
    fn repeats(&mut self, kind: &str, key: Option<&str>, wait: bool, to: &To) -> bool {
        if key.is_none() {
            return false;
        }
        let under_way = match &mut self.doing {
            Doing::Handoff(flight) => Some((
                &flight.asked,
                &mut flight.waiters,
                Reply::Begun { id: flight.id.to_string() },
            )),
            Doing::Starting(starting) => {
                starting.asked.as_ref().map(|asked| (asked, &mut starting.waiters, being_started()))
            }
            Doing::Idle | Doing::Backoff { .. } | Doing::Stopping => None,
        };
        if let Some((asked, waiters, reply)) = under_way
            && (asked.kind, asked.key.as_deref()) == (kind, key)
        {
            if wait {
                waiters.push(Waiter { to: to.clone(), aborts: false });
            } else {
                drop(to.try_send(reply));
            }
            return true;
        }
        // Where nobody served it was a start.
        let same = |entry: &&Entry| {
            entry.key.as_deref() == key && (entry.kind == kind || entry.kind == "start")
        };
        let Some(entry) = self.history.iter().rev().find(same) else { return false };
        let entry = entry.clone();
        let ended = Ended { exit: exit_code(&entry), entry, repeated: true, ..Ended::default() };
        drop(to.try_send(Reply::Ended(Box::new(ended))));
        true
    }

    fn fly(&mut self, asked: flight::Asked, wait: bool, to: To) -> Result<(), Refusal> {
        let waiter = wait.then(|| Waiter { to: to.clone(), aborts: false });
        self.begin_handoff(asked, waiter)?;
        if !wait {
            let reply = match &self.doing {
                Doing::Handoff(flight) => Reply::Begun { id: flight.id.to_string() },
                _ => being_started(),
            };
            drop(to.try_send(reply));
        }
        Ok(())
    }

    fn abort_for(&mut self, to: To) -> Result<(), Refusal> {
        let waiter = Waiter { to, aborts: true };
        match &mut self.doing {
            Doing::Handoff(flight) => flight.waiters.push(waiter),
            Doing::Starting(_) => {
                let message = "no handoff is under way: the daemon is being started, and nobody \
                               serves; see `handoff status`";
                return Err(refused(exit::TEMPORARY, "not_busy", message.to_string()));
            }
            _ => {
                let message = "no handoff is under way; see `handoff history`".to_string();
                return Err(refused(exit::TEMPORARY, "not_busy", message));
            }
        }
        self.abort();
        Ok(())
    }

    fn try_reexec(&mut self, program: Option<PathBuf>, to: To) -> Result<(), Refusal> {
        if !matches!(self.doing, Doing::Idle | Doing::Backoff { .. }) || self.stopping.is_some() {
            let message = format!("the supervisor is busy ({}); try again", self.activity().0);
            return Err(refused(exit::TEMPORARY, "busy", message));
        }
        let program = match program {
            Some(program) => program,
            None => std::env::current_exe()
                .map(|own| own.to_string_lossy().trim_end_matches(" (deleted)").into())
                .map_err(|error| {
                    let message = format!("cannot find its own binary: {error}; name it: --binary");
                    refused(exit::IO, "io_error", message)
                })?,
        };
        let (file, mail) = (self.config.file.clone(), self.mail.clone());
        tokio::spawn(async move {
            let tried = program.clone();
            let trial = spawn_blocking(move || trial(&tried, file)).await;
            match trial.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(()) => {
                    let message = format!("the supervisor becomes {}", program.display());
                    told(&to, Reply::Done { message }).await;
                    let _ = mail.send(Mail::Reexec(program));
                }
                Err(message) => {
                    let refusal = refused(exit::NO_INPUT, "io_error", message);
                    let _ = to.send(Reply::Refused(refusal)).await;
                }
            }
        });
        Ok(())
    }

    pub(super) fn status(&self) -> Status {
        let now = Instant::now();
        let (activity, detail) = self.activity();
        Status {
            supervisor: Boss {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_string(),
                since_at: at(self.since),
                config: self.config.file.clone(),
            },
            serving: self.serving.clone(),
            activity: activity.to_string(),
            detail,
            flight: match &self.doing {
                Doing::Handoff(flight) => Some(flight.view(now)),
                _ => None,
            },
            listeners: self.held.iter().map(Held::status).collect(),
            probation: self.probation.as_ref().map(|it| Probation {
                left_ms: left(it.until, now),
                previous: it.previous.path.clone(),
            }),
            previous: self.state.previous.as_ref().map(|it| it.path.clone()),
            last: self.history.last().cloned(),
        }
    }

    /// What it does, in one word, and what there is to say of it.
    fn activity(&self) -> (&'static str, Option<String>) {
        if self.stopping.is_some() {
            return ("stopping", None);
        }
        match &self.doing {
            Doing::Idle if self.serving.is_some() && !self.missing.is_empty() => {
                let missing = self.missing.join(", ");
                (
                    "serving",
                    Some(format!("nothing can be swapped: without the listeners {missing}")),
                )
            }
            Doing::Idle => ("serving", None),
            Doing::Starting(starting) => match &starting.waiting {
                Some(waiting) => ("waiting", Some(waiting.clone())),
                None => ("starting", None),
            },
            Doing::Backoff { until, why } => {
                let seconds = left(*until, Instant::now()).div_ceil(1000);
                ("backoff", Some(format!("{why}; started again in {seconds} s")))
            }
            Doing::Handoff(_) => ("handoff", None),
            Doing::Stopping => ("stopping", None),
        }
    }

    /// What systemd shows of it, in one line.
    pub(super) fn summary(&self) -> String {
        let now = Instant::now();
        match (&self.doing, &self.serving) {
            (Doing::Handoff(flight), _) => {
                let view = flight.view(now);
                let left = view.left_ms.map(|left| format!(", {} s left", left.div_ceil(1000)));
                format!("handoff {}: {}{}", view.id, view.phase, left.unwrap_or_default())
            }
            (Doing::Backoff { why, .. }, _) => format!("nobody serves: {why}"),
            (_, Some(serving)) => {
                format!("pid {} serves, generation {}", serving.pid, serving.generation)
            }
            (_, None) => self.activity().0.to_string(),
        }
    }

    /// The entry of the history that says so, with the time of now.
    pub(super) fn note(kind: &str) -> Entry {
        Entry { kind: kind.to_string(), at: at(std::time::SystemTime::now()), ..Entry::default() }
    }
}

/// The newest entries that fit in a reply.
fn newest(history: &[Entry], most: usize) -> Vec<Entry> {
    let mut room = HISTORY;
    let fits = |entry: &&Entry| {
        let size = serde_json::to_vec(entry).map_or(0, |text| text.len() + 1);
        room = room.saturating_sub(size);
        room > 0
    };
    let mut entries: Vec<Entry> =
        history.iter().rev().take(most).take_while(fits).cloned().collect();
    entries.reverse();
    entries
}

fn being_started() -> Reply {
    Reply::Done { message: "nobody served; it is being started".to_string() }
}

/// Whether a binary understands the configuration, as `handoff check` says. What is wrong otherwise.
fn trial(program: &std::path::Path, config: PathBuf) -> Result<(), String> {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null");
    let null = std::sync::Arc::new(null.map_err(|error| format!("/dev/null: {error}"))?.into());
    let launch = Launch::new(program)
        .args(["check".into(), "--config".into(), config.into_os_string()])
        .stdout(std::sync::Arc::clone(&null))
        .stderr(null);
    let none: [(String, BorrowedFd<'_>); 0] = [];
    let child = spawn(&launch, &none, SpawnRole::Cold).map_err(|error| error.to_string())?;
    let _ = poll::readable(&child.pidfd, Some(TRIAL));
    let late = !child.pidfd.has_exited();
    if late {
        let _ = child.group.signal(Signal::KILL);
        let _ = child.pidfd.wait(Some(TRIAL));
    }
    let _ = child.group.reap();
    match child.group.leader_status() {
        Some(ExitCause::Code(0)) => Ok(()),
        // The supervisor that runs holds what is in use already, which is no mistake of the configuration.
        Some(ExitCause::Code(code)) if code == i32::from(exit::CONFIG) => {
            Err(format!("{} finds mistakes in the configuration: handoff check", program.display()))
        }
        _ if late => Err(format!("{} check does not end in {TRIAL:?}", program.display())),
        status => Err(format!(
            "{} is no `handoff` that runs here: its check ended with {}",
            program.display(),
            status.map_or_else(|| "no status".to_string(), |status| status.to_string())
        )),
    }
}

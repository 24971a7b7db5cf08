//! What the command decides: when to start a daemon, what to swap it for, what to say.

mod daemon;
mod ending;
mod handoffs;
mod replies;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use handoff_tokio::{Event, Handoff, Launch, Report, StartError, Started, Supervisor, Verdict};
use handoff_unix::control::ControlPath;
use handoff_unix::probe::probe;
use handoff_unix::replace::replace;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep_until, timeout};

use super::flight::{Asked, Flight, Waiter, at, millis};
use super::keep::{self, Binary, Keeper, Next, State};
use super::launch::{binary, launch, refused};
use super::log::Log;
use super::output::{Files, Output};
use super::start::{LISTENER, LOCK, SOCKET, UNIT, users};
use super::{Mail, health, metrics};
use crate::admin::{Entry, Refusal, Reply, Serving};
use crate::config::{self, Config};
use crate::exit;
use crate::sockets::{self, Gathered, Held};
use crate::systemd::Systemd;

/// How often the queues are looked at during a handoff: often at first, when it may be over soon.
const SAMPLE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));
/// How long a handoff is young in this.
const YOUNG: Duration = Duration::from_secs(2);
/// How often whoever waits is told how it gets on.
const PROGRESS: Duration = Duration::from_millis(200);
/// How long a start and a handoff may take to be given up before a stop, for which an incumbent gets its data
/// back in order.
const GIVE_UP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long ending the daemons may take beyond their grace.
const END: Duration = Duration::from_secs(10);

/// What a supervisor begins with.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) supervisor: Arc<Supervisor>,
    pub(super) config: Config,
    pub(super) keeper: Keeper,
    pub(super) state: State,
    pub(super) history: Vec<Entry>,
    pub(super) output: Output,
    pub(super) gathered: Gathered,
    pub(super) systemd: Systemd,
    pub(super) log: Log,
    /// Kept locked as long as the process lives.
    pub(super) lock: File,
    /// The socket for the verbs, for the next binary of this process.
    pub(super) socket: OwnedFd,
    /// Whether this process had another binary before.
    pub(super) again: bool,
    pub(super) mail: mpsc::UnboundedSender<Mail>,
    pub(super) inbox: mpsc::UnboundedReceiver<Mail>,
    pub(super) news: watch::Sender<u64>,
}

/// The supervisor.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) config: Config,
    pub(super) state: State,
    pub(super) history: Vec<Entry>,
    pub(super) held: Vec<Held>,
    /// Listeners that a daemon has and this supervisor could not get (R10).
    pub(super) missing: Vec<String>,
    pub(super) serving: Option<Serving>,
    pub(super) doing: Doing,
    pub(super) probation: Option<Probation>,
    pub(super) since: SystemTime,
    pub(super) mail: mpsc::UnboundedSender<Mail>,
    /// It is to stop, and who waits for that.
    pub(super) stopping: Option<Vec<mpsc::Sender<Reply>>>,
    /// When what is under way is not waited for any more, in stopping.
    stop_at: Option<Instant>,
    supervisor: Arc<Supervisor>,
    keeper: Keeper,
    output: Output,
    systemd: Systemd,
    log: Log,
    lock: File,
    socket: OwnedFd,
    again: bool,
    inbox: mpsc::UnboundedReceiver<Mail>,
    news: watch::Sender<u64>,
    /// The files of daemons that run, by pid.
    files: BTreeMap<u32, Files>,
    /// Those of processes of which it is not known yet whether they serve.
    stray: Vec<Files>,
    /// Who served when the state was last written, until it is known who does.
    former: Option<Serving>,
    /// A handoff was under way when the supervisor before this one ended.
    interrupted: bool,
    /// Daemons that have ended during a handoff or a start, and how.
    gone: Vec<(u32, String)>,
    /// How many daemons were launched by this process.
    launched: u64,
    /// How long until the next start.
    backoff: Duration,
    serving_since: Option<Instant>,
    /// How many looks at the health of the daemon have failed in a row.
    failures: u32,
    next_look: Option<Instant>,
    looking: bool,
    next_sample: Option<Instant>,
    next_progress: Option<Instant>,
    next_beat: Option<Instant>,
    /// How it ends.
    end: Option<u8>,
}

/// What is under way.
#[derive(Debug)]
pub(super) enum Doing {
    /// Nothing: the daemon serves, or could not be started and nobody asked for another try.
    Idle,
    /// It is found out who serves, and a daemon is started where nobody does.
    Starting(Box<Starting>),
    /// The daemon is started again at this moment.
    Backoff { until: Instant, why: String },
    /// A handoff.
    Handoff(Box<Flight>),
    /// The daemons are being ended.
    Stopping,
}

/// A search for who serves.
#[derive(Debug)]
pub(super) struct Starting {
    binary: Binary,
    /// Those of the daemon that is started; none where nobody is to be started.
    files: Option<Files>,
    /// What an operator has asked for.
    asked: Option<Asked>,
    waiters: Vec<Waiter>,
    /// What there is to say of it.
    pub(super) waiting: Option<String>,
}

/// The daemon has just taken over, and is replaced by the one before if it fails.
#[derive(Debug)]
pub(super) struct Probation {
    pub(super) until: Instant,
    pub(super) previous: Binary,
}

impl Actor {
    pub(super) fn new(parts: Parts) -> Self {
        let Gathered { held, missing, forget, .. } = parts.gathered;
        for name in forget {
            parts.systemd.unstore(&name);
        }
        let backoff = parts.config.supervisor.restart_first;
        let former = parts.state.serving.clone();
        let now = at(SystemTime::now());
        let probation = parts.state.probation.clone().filter(|it| it.until_at > now);
        let probation = probation.map(|keep::Probation { until_at, previous }| Probation {
            until: Instant::now() + Duration::from_millis(until_at - now),
            previous,
        });
        let interrupted = parts.state.next.is_some();
        Self {
            state: parts.state,
            history: parts.history,
            held,
            missing,
            serving: None,
            doing: Doing::Idle,
            probation,
            since: SystemTime::now(),
            mail: parts.mail,
            stopping: None,
            stop_at: None,
            supervisor: parts.supervisor,
            keeper: parts.keeper,
            output: parts.output,
            systemd: parts.systemd,
            log: parts.log,
            lock: parts.lock,
            socket: parts.socket,
            again: parts.again,
            inbox: parts.inbox,
            news: parts.news,
            files: BTreeMap::new(),
            stray: Vec::new(),
            gone: Vec::new(),
            former,
            interrupted,
            launched: 0,
            backoff,
            serving_since: None,
            failures: 0,
            next_look: None,
            looking: false,
            next_sample: None,
            next_progress: None,
            next_beat: None,
            end: None,
            config: parts.config,
        }
    }

    /// Runs it to its end.
    pub(super) async fn run(mut self) -> Result<ExitCode, Refusal> {
        let exits = (Arc::clone(&self.supervisor), self.mail.clone());
        tokio::spawn(async move {
            loop {
                let (pid, status) = exits.0.exited().await;
                if exits.1.send(Mail::Exited(pid, status)).is_err() {
                    return;
                }
            }
        });
        for held in &self.held {
            self.pass_on(held).map_err(|error| refused(exit::CONFIG, "config", error))?;
        }
        if !self.missing.is_empty() {
            tracing::error!(
                "the daemon serves, but its listeners cannot be had: {}; nothing is swapped until it \
                 ends, see `handoff doctor`",
                self.missing.join(", ")
            );
        }
        self.keep_sockets();
        let interval = self.systemd.watchdog();
        self.next_beat = interval.map(|_| Instant::now());
        self.begin_start(None, None).ok();
        while self.end.is_none() {
            let wake = self.wake();
            tokio::select! {
                biased;
                mail = self.inbox.recv() => match mail {
                    Some(mail) => self.receive(mail),
                    None => break,
                },
                () = sleep_until(wake.into()) => {}
            }
            self.tick(Instant::now());
            self.publish();
        }
        self.keeper.flush();
        self.output.drain();
        Ok(self.end.unwrap_or(exit::SOFTWARE).into())
    }

    fn receive(&mut self, mail: Mail) {
        match mail {
            Mail::Request { request, uid, to } => self.request(request, uid, to),
            Mail::Event(event) => self.event(&event),
            Mail::Started(result) => self.started(result),
            Mail::Finished(result) => self.finished(result),
            Mail::Exited(pid, status) => self.exited(pid, &status),
            Mail::Build(pid, build_id) => {
                if let Some(serving) = self.serving.as_mut().filter(|it| it.pid == pid) {
                    serving.build_id = build_id;
                    self.keep();
                }
            }
            Mail::Health(pid, result) => self.looked(pid, result),
            Mail::Reexec(program) => self.reexec(program),
            Mail::Stopped(stuck) => self.stopped(stuck),
            Mail::End(code) => self.end = Some(code),
            Mail::Terminate => self.stop(None),
            Mail::Reload => {
                if let Err(refusal) = self.reload() {
                    tracing::error!("SIGHUP: {}", refusal.message);
                } else if let Err(refusal) = self.swap_configured() {
                    tracing::error!("SIGHUP: {}", refusal.message);
                }
            }
        }
    }

    fn swap_configured(&mut self) -> Result<(), Refusal> {
        let binary = binary(&self.config, None)?;
        let asked = self.asked("swap", binary, Some("SIGHUP".to_string()));
        self.begin_handoff(asked, None)
    }

    /// A handoff as the configuration has it.
    pub(super) fn asked(
        &self,
        kind: &'static str,
        binary: Binary,
        reason: Option<String>,
    ) -> Asked {
        let config = &self.config.handoff;
        Asked {
            kind,
            binary,
            dry_run: false,
            warm_up: config.warm_up,
            drain_grace: config.drain_grace,
            deadline: config.deadline,
            reason,
            key: None,
            uid: None,
        }
    }

    // Time.

    fn wake(&self) -> Instant {
        let backoff = match &self.doing {
            Doing::Backoff { until, .. } => Some(*until),
            _ => None,
        };
        let probation = self.probation.as_ref().map(|it| it.until);
        let look = self.next_look.filter(|_| !self.looking && self.serving.is_some());
        let (sample, progress, beat) = (self.next_sample, self.next_progress, self.next_beat);
        let times = [backoff, probation, look, sample, progress, beat, self.stop_at];
        let far = Instant::now() + Duration::from_secs(3600);
        times.into_iter().flatten().min().unwrap_or(far)
    }

    fn tick(&mut self, now: Instant) {
        let due = |time: Option<Instant>| time.is_some_and(|time| time <= now);
        if let Doing::Backoff { until, .. } = &self.doing
            && *until <= now
            && self.stopping.is_none()
        {
            self.begin_start(None, None).ok();
        }
        if self.probation.as_ref().is_some_and(|it| it.until <= now) {
            self.probation = None;
            self.keep();
        }
        if due(self.stop_at) {
            self.stop_at = None;
            if matches!(self.doing, Doing::Handoff(_) | Doing::Starting(_)) {
                self.end_daemons();
            }
        }
        if let (Some(serving), Some(health)) = (&self.serving, &self.config.handoff.health)
            && due(self.next_look)
            && !self.looking
        {
            self.next_look = Some(now + health.every);
            self.looking = true;
            let (pid, health, mail) = (serving.pid, health.clone(), self.mail.clone());
            tokio::spawn(async move {
                let result = health::look(&health).await;
                let _ = mail.send(Mail::Health(pid, result));
            });
        }
        if due(self.next_sample)
            && let Doing::Handoff(flight) = &mut self.doing
        {
            let queues: Vec<(&str, u32)> = self
                .held
                .iter()
                .filter_map(|held| Some((held.name.as_str(), held.waiting()?)))
                .collect();
            flight.sample(&queues, now);
            let young = flight.is_younger_than(YOUNG, now);
            self.next_sample = Some(now + if young { SAMPLE.0 } else { SAMPLE.1 });
        }
        if due(self.next_progress)
            && let Doing::Handoff(flight) = &mut self.doing
        {
            let view = flight.view(now);
            // Who is gone is forgotten; who is slow misses some.
            flight.waiters.retain(|waiter| !waiter.to.is_closed());
            for waiter in flight.waiters.iter().filter(|waiter| !waiter.aborts) {
                drop(waiter.to.try_send(Reply::Progress(view.clone())));
            }
            self.next_progress = Some(now + PROGRESS);
        }
        if due(self.next_beat) {
            self.systemd.beat();
            self.next_beat = self.systemd.watchdog().map(|every| now + every);
        }
    }

    // What is kept and shown.

    pub(super) fn record(&mut self, entry: Entry) {
        self.keeper.entry(&entry);
        self.history.push(entry);
        if self.history.len() > keep::REMEMBERED {
            self.history.remove(0);
        }
    }

    fn keep(&mut self) {
        self.state.serving = self.serving.clone().or_else(|| self.former.clone());
        let (now, now_at) = (Instant::now(), at(SystemTime::now()));
        self.state.probation = self.probation.as_ref().map(|it| keep::Probation {
            until_at: now_at.saturating_add(left(it.until, now)),
            previous: it.previous.clone(),
        });
        self.keeper.state(&self.state);
    }

    fn publish(&mut self) {
        metrics::publish(self.serving.as_ref());
        self.news.send_modify(|count| *count += 1);
    }

    /// Reads the configuration again; what only a new process can take in is left as it was.
    pub(super) fn reload(&mut self) -> Result<(), Refusal> {
        let file = self.config.file.clone();
        let mut new = config::read(&file)
            .map_err(|mistakes| refused(mistakes.exit(), "config", mistakes.to_string()))?;
        let old = &self.config;
        let fixed = [
            ("control", new.daemon.control != old.daemon.control),
            ("data_dir", new.daemon.data_dir != old.daemon.data_dir),
            ("user", new.daemon.user != old.daemon.user),
            ("wrapper", new.daemon.wrapper != old.daemon.wrapper),
            ("listener", new.listeners != old.listeners),
            ("supervisor", new.supervisor != old.supervisor),
            ("promote", new.handoff.promote != old.handoff.promote),
            ("strict", new.handoff.strict != old.handoff.strict),
        ];
        let changed: Vec<&str> = fixed.iter().filter(|it| it.1).map(|it| it.0).collect();
        if !changed.is_empty() {
            let text = "a changed value is taken in by `handoff reexec` only";
            tracing::warn!("{}: {text}: {}", file.display(), changed.join(", "));
            new.daemon.control.clone_from(&old.daemon.control);
            new.daemon.data_dir.clone_from(&old.daemon.data_dir);
            new.daemon.user.clone_from(&old.daemon.user);
            new.daemon.wrapper = old.daemon.wrapper;
            new.listeners.clone_from(&old.listeners);
            new.supervisor.clone_from(&old.supervisor);
            new.handoff.promote = old.handoff.promote;
            new.handoff.strict = old.handoff.strict;
        }
        self.config = new;
        if self.config.handoff.health.is_none() {
            self.next_look = None;
            self.serving.iter_mut().for_each(|serving| serving.healthy = None);
        } else {
            self.next_look.get_or_insert_with(Instant::now);
        }
        Ok(())
    }
}

/// Says the last word, and waits until it is written, for a second at most.
pub(super) async fn told(to: &mpsc::Sender<Reply>, reply: Reply) {
    if to.send(reply).await.is_ok() {
        let _ = timeout(Duration::from_secs(1), to.closed()).await;
    }
}

/// How long until then, for people.
pub(super) fn left(until: Instant, now: Instant) -> u64 {
    millis(until.saturating_duration_since(now))
}

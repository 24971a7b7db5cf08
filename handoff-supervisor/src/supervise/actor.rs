//! What the command decides: when to start a daemon, what to swap it for, what to say.

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
use super::keep::{Binary, Keeper, State};
use super::launch::{binary, launch, refused};
use super::output::{Files, Output};
use super::start::{LISTENER, LOCK, SOCKET, users};
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
/// How many entries of the history are kept in memory.
const REMEMBERED: usize = 10_000;

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
    supervisor: Arc<Supervisor>,
    keeper: Keeper,
    output: Output,
    systemd: Systemd,
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
    /// Daemons that have ended during a handoff, and how.
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
    files: Files,
    waiters: Vec<mpsc::Sender<Reply>>,
    asked_by: Option<u32>,
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
        Self {
            state: parts.state,
            history: parts.history,
            held,
            missing,
            serving: None,
            doing: Doing::Idle,
            probation: None,
            since: SystemTime::now(),
            mail: parts.mail,
            stopping: None,
            supervisor: parts.supervisor,
            keeper: parts.keeper,
            output: parts.output,
            systemd: parts.systemd,
            lock: parts.lock,
            socket: parts.socket,
            again: parts.again,
            inbox: parts.inbox,
            news: parts.news,
            files: BTreeMap::new(),
            stray: Vec::new(),
            gone: Vec::new(),
            former,
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
        self.begin_start(None);
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
            Mail::Reexec(program) => self.reexec(&program),
            Mail::Stopped(left) => self.stopped(&left),
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

    // Starting.

    /// Finds out who serves, and starts a daemon where nobody does.
    fn begin_start(&mut self, binary_to_start: Option<Binary>) {
        let wanted = binary_to_start.or_else(|| self.state.current.clone());
        let wanted = match wanted.filter(Binary::is_there) {
            Some(binary) => Ok(binary),
            None => binary(&self.config, None),
        };
        let made = wanted.and_then(|binary| {
            self.bind_missing()?;
            let (launch, files) = self.launch(&binary)?;
            Ok((binary, launch, files))
        });
        match made {
            Ok((binary, launch, files)) => {
                let (supervisor, mail) = (Arc::clone(&self.supervisor), self.mail.clone());
                tokio::spawn(async move {
                    let tell = |event: &Event| drop(mail.send(Mail::Event(event.clone())));
                    let result = supervisor.start_telling(&launch, tell).await;
                    let _ = mail.send(Mail::Started(result));
                });
                self.doing = Doing::Starting(Box::new(Starting {
                    binary,
                    files,
                    waiters: Vec::new(),
                    asked_by: None,
                    waiting: None,
                }));
            }
            Err(refusal) => self.not_started(refusal.code, refusal.message, None),
        }
    }

    /// Listeners that could not be had because somebody served: nobody may any more.
    fn bind_missing(&mut self) -> Result<(), Refusal> {
        if self.missing.is_empty() {
            return Ok(());
        }
        if handoff_unix::lock::lock_state(&self.config.daemon.data_dir)
            != handoff_unix::lock::LockState::Free
        {
            return Ok(());
        }
        let missing = std::mem::take(&mut self.missing);
        let wanted: Vec<config::Listener> =
            self.config.listeners.iter().filter(|it| missing.contains(&it.name)).cloned().collect();
        match sockets::gather(&wanted, Vec::new(), None, &[]) {
            Ok(gathered) => {
                for held in gathered.held {
                    self.pass_on(&held).map_err(|error| refused(exit::CONFIG, "config", error))?;
                    self.held.push(held);
                }
                self.keep_sockets();
                Ok(())
            }
            Err(trouble) => {
                self.missing = missing;
                Err(refused(exit::UNAVAILABLE, "io_error", trouble.to_string()))
            }
        }
    }

    /// Gives a listener to the supervisor of the library.
    fn pass_on(&self, held: &Held) -> Result<(), String> {
        let fd = held.fd.try_clone().map_err(|error| error.to_string())?;
        self.supervisor.listener(&held.name, fd).map_err(|error| error.to_string())
    }

    /// Has systemd keep the listeners that it did not make itself, and the state remember all.
    fn keep_sockets(&mut self) {
        for held in &self.held {
            if held.origin != sockets::Origin::Systemd {
                self.systemd.store(&held.name, held.fd.as_fd());
            }
        }
        self.state.listeners = self.held.iter().filter_map(|held| held.kept().ok()).collect();
        self.keep();
    }

    fn launch(&mut self, binary: &Binary) -> Result<(Launch, Files), Refusal> {
        self.launched += 1;
        let name = format!("{}-{}-{}", at(self.since), std::process::id(), self.launched);
        let io = |error: std::io::Error| {
            let dir = self.config.state("output");
            refused(exit::IO, "io_error", format!("{}: {error}", dir.display()))
        };
        let (files, stdout, stderr) = self.output.make(&name).map_err(io)?;
        let launch = launch(&self.config, binary, stdout, stderr).map_err(io)?;
        Ok((launch, files))
    }

    fn started(&mut self, result: Result<Started, StartError>) {
        let Doing::Starting(starting) = std::mem::replace(&mut self.doing, Doing::Idle) else {
            return;
        };
        let Starting { binary, files, waiters, asked_by, .. } = *starting;
        match result {
            Ok(Started { pid, started }) => {
                let known = self.serving.take().or(self.former.take()).filter(|it| it.pid == pid);
                let entry = Entry {
                    serving: Some(pid),
                    binary: started.then(|| binary.path.clone()),
                    uid: asked_by,
                    ..Self::note(if started { "start" } else { "adopt" })
                };
                if started {
                    self.files.insert(pid, files);
                    self.serves(pid, Some(binary.path.clone()), None);
                    self.state.current = Some(binary);
                } else {
                    self.output.over(&files);
                    if !self.files.contains_key(&pid)
                        && let Some(files) = self.output.adopt(pid)
                    {
                        self.stray.retain(|it| it.stdout != files.stdout);
                        self.files.insert(pid, files);
                    }
                    let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
                    self.serves(pid, path, known);
                }
                self.clear_stray();
                self.output.clear();
                if !(self.again && !started) {
                    self.record(entry.clone());
                }
                self.again = false;
                self.systemd.ready(&self.summary());
                let ended = crate::admin::Ended { entry, ..crate::admin::Ended::default() };
                for waiter in waiters {
                    let _ = waiter.try_send(Reply::Ended(Box::new(ended.clone())));
                }
                if self.stopping.is_some() {
                    self.end_daemons();
                }
            }
            Err(error) => {
                let lines = files.last_lines(10);
                self.output.over(&files);
                let text = error.to_string();
                if self.stopping.is_some() {
                    return self.end_daemons();
                }
                let code = match error {
                    StartError::NobodyServes(_) if text.contains("cannot start") => {
                        "successor_exec_failed"
                    }
                    StartError::NobodyServes(_) => "successor_exited",
                    _ => "io_error",
                };
                for waiter in waiters {
                    let refusal = refused(exit::SOFTWARE, code, text.clone());
                    let _ = waiter.try_send(Reply::Refused(refusal));
                }
                let last = lines.last().map(|line| format!("; it said: {line}"));
                self.not_started(code.to_string(), text + &last.unwrap_or_default(), Some(binary));
            }
        }
    }

    fn not_started(&mut self, code: String, detail: String, binary: Option<Binary>) {
        tracing::error!("the daemon does not start: {detail}");
        self.record(Entry {
            code: Some(code),
            detail: Some(detail.clone()),
            binary: binary.map(|binary| binary.path),
            ..Self::note("start")
        });
        self.back_off(detail);
    }

    fn back_off(&mut self, why: String) {
        let config = &self.config.supervisor;
        let until = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(config.restart_most);
        self.doing = Doing::Backoff { until, why };
        self.systemd.status(&self.summary());
    }

    /// This daemon serves from now on.
    fn serves(&mut self, pid: u32, binary: Option<PathBuf>, known: Option<Serving>) {
        let serving = known.unwrap_or_else(|| {
            self.state.generation += 1;
            Serving {
                pid,
                build_id: String::new(),
                binary,
                since_at: at(SystemTime::now()),
                generation: self.state.generation,
                healthy: None,
            }
        });
        self.serving = Some(serving);
        self.serving_since = Some(Instant::now());
        self.failures = 0;
        self.next_look = self.config.handoff.health.as_ref().map(|_| Instant::now());
        self.keep();
        let (control, mail) = (self.config.daemon.control.clone(), self.mail.clone());
        let users = users(&self.config);
        drop(spawn_blocking(move || {
            if let Ok(found) = ControlPath::new(control).map(|path| probe(&path, &users))
                && let Ok(found) = found
            {
                let build_id = String::from_utf8_lossy(&found.build_id).into_owned();
                let _ = mail.send(Mail::Build(found.cred.pid, build_id));
            }
        }));
    }

    // Handing off.

    /// Begins a handoff; `waiter` is told of it.
    ///
    /// # Errors
    ///
    /// It cannot begin: nothing was done.
    pub(super) fn begin_handoff(
        &mut self,
        asked: Asked,
        waiter: Option<Waiter>,
    ) -> Result<(), Refusal> {
        let busy = |what: &str| Err(refused(exit::TEMPORARY, "busy", format!("{what}; try again")));
        match &self.doing {
            Doing::Idle => {}
            Doing::Starting(_) => return busy("the daemon is being started"),
            Doing::Handoff(flight) => return busy(&format!("handoff {} is under way", flight.id)),
            Doing::Stopping => return busy("the supervisor is being stopped"),
            // Nobody serves: there is nobody to take over from, and this is what is to be started.
            Doing::Backoff { .. } if !asked.dry_run => {
                self.begin_start(Some(asked.binary));
                if let Doing::Starting(starting) = &mut self.doing {
                    starting.waiters.extend(waiter.map(|waiter| waiter.to));
                    starting.asked_by = asked.uid;
                }
                return Ok(());
            }
            Doing::Backoff { .. } => {
                let message = "nobody serves; see `handoff status`".to_string();
                return Err(refused(exit::SOFTWARE, "incumbent_lost", message));
            }
        }
        if self.stopping.is_some() {
            return busy("the supervisor is being stopped");
        }
        if !self.missing.is_empty() {
            let message = format!(
                "this supervisor does not have the listeners {}, so a new daemon could not accept; \
                 see `handoff doctor`",
                self.missing.join(", ")
            );
            return Err(refused(exit::UNAVAILABLE, "io_error", message));
        }
        let (launch, files) = self.launch(&asked.binary)?;
        let mut flight = Flight::new(asked, files, self.serving.clone(), Instant::now());
        let asked = &flight.asked;
        let mut handoff = Handoff::new(launch)
            .id(flight.id)
            .warm_up(asked.warm_up)
            .drain_grace(asked.drain_grace)
            .deadline(asked.deadline);
        if asked.dry_run {
            handoff = handoff.dry_run();
        }
        flight.waiters.extend(waiter);
        let (supervisor, mail) = (Arc::clone(&self.supervisor), self.mail.clone());
        tokio::spawn(async move {
            let tell = |event: &Event| drop(mail.send(Mail::Event(event.clone())));
            let result = supervisor.handoff(&handoff, tell).await;
            let _ = mail.send(Mail::Finished(result));
        });
        self.doing = Doing::Handoff(Box::new(flight));
        self.next_sample = Some(Instant::now());
        self.next_progress = Some(Instant::now());
        self.systemd.reloading();
        self.systemd.status(&self.summary());
        Ok(())
    }

    fn event(&mut self, event: &Event) {
        match &mut self.doing {
            Doing::Handoff(flight) => {
                flight.event(event, Instant::now());
                self.next_progress = Some(Instant::now());
                if matches!(event, Event::Phase(_)) {
                    self.systemd.status(&self.summary());
                }
            }
            Doing::Starting(starting) => {
                if let Event::Waiting { .. } = event {
                    starting.waiting = Some(event.to_string());
                }
            }
            Doing::Idle | Doing::Backoff { .. } | Doing::Stopping => {}
        }
    }

    fn finished(&mut self, result: Result<Report, StartError>) {
        let Doing::Handoff(flight) = std::mem::replace(&mut self.doing, Doing::Idle) else {
            return;
        };
        (self.next_sample, self.next_progress) = (None, None);
        match result {
            Ok(report) => self.reported(*flight, &report),
            Err(error) => {
                self.output.over(flight.files());
                let busy = matches!(error, StartError::Busy);
                let (exit, code) =
                    if busy { (exit::TEMPORARY, "busy") } else { (exit::SOFTWARE, "io_error") };
                let reply = Reply::Refused(refused(exit, code, error.to_string()));
                flight.waiters.iter().for_each(|waiter| waiter.last_word(reply.clone()));
            }
        }
        for (pid, status) in std::mem::take(&mut self.gone) {
            self.exited(pid, &status);
        }
        self.systemd.ready(&self.summary());
        if self.stopping.is_some() {
            self.end_daemons();
        }
    }

    fn reported(&mut self, flight: Flight, report: &Report) {
        let ended = flight.end(report, Instant::now());
        metrics::ended(&ended.entry);
        flight.waiters.iter().for_each(|waiter| waiter.tell(&ended));
        self.record(ended.entry);
        let Asked { kind, binary, .. } = flight.asked.clone();
        match report.verdict {
            Verdict::Committed => {
                if let Some(pid) = report.serving {
                    self.files.insert(pid, flight.files().clone());
                    self.serves(pid, Some(binary.path.clone()), None);
                }
                let previous = self.state.current.replace(binary);
                let watched = self.config.handoff.probation.filter(|_| kind == "swap");
                self.probation = watched.zip(previous.clone()).map(|(time, previous)| {
                    let until = Instant::now() + time;
                    Probation { until, previous }
                });
                self.state.previous = previous;
                self.keep();
            }
            Verdict::Refused | Verdict::RolledBack | Verdict::DryRun => {
                self.output.over(flight.files());
            }
            Verdict::Unknown => self.stray.push(flight.files().clone()),
        }
        let expected = self.serving.as_ref().map(|serving| serving.pid);
        let unsure = report.verdict == Verdict::Unknown || report.serving.is_none();
        if (unsure || report.serving != expected) && self.stopping.is_none() {
            self.begin_start(None);
        }
    }

    fn clear_stray(&mut self) {
        for files in std::mem::take(&mut self.stray) {
            self.output.over(&files);
        }
    }

    // The daemon's life.

    fn exited(&mut self, pid: u32, status: &str) {
        // What it means is known when the handoff has ended: an old daemon is to exit, after all.
        if matches!(self.doing, Doing::Handoff(_)) {
            return self.gone.push((pid, status.to_string()));
        }
        if let Some(files) = self.files.remove(&pid) {
            self.output.over(&files);
        }
        let Some(serving) = self.serving.take_if(|serving| serving.pid == pid) else { return };
        tracing::error!(pid, "the daemon has ended: {status}");
        self.record(Entry {
            detail: Some(status.to_string()),
            from: Some(serving),
            ..Self::note("exit")
        });
        if !matches!(self.doing, Doing::Idle) || self.stopping.is_some() {
            return;
        }
        let well =
            self.serving_since.is_some_and(|it| it.elapsed() > self.config.supervisor.restart_most);
        if well {
            self.backoff = self.config.supervisor.restart_first;
        }
        if let Some(probation) = self.probation.take() {
            let previous = probation.previous.path.display().to_string();
            tracing::error!("it was on probation: {previous} is started instead");
            self.record(Entry {
                code: Some("successor_exited".to_string()),
                detail: Some(format!("the new daemon ended: {status}; {previous} is started")),
                ..Self::note("probation")
            });
            self.state.current = Some(probation.previous.clone());
            return self.begin_start(Some(probation.previous));
        }
        self.back_off(format!("the daemon has ended: {status}"));
    }

    fn looked(&mut self, pid: u32, result: Result<(), String>) {
        self.looking = false;
        let Some(health) = &self.config.handoff.health else { return };
        let Some(serving) = self.serving.as_mut().filter(|it| it.pid == pid) else { return };
        let why = match result {
            Ok(()) => {
                self.failures = 0;
                serving.healthy = Some(true);
                return;
            }
            Err(why) => why,
        };
        self.failures = self.failures.saturating_add(1);
        if self.failures < health.failures {
            return;
        }
        if serving.healthy != Some(false) {
            tracing::warn!(pid, "the daemon is unhealthy: {why}");
        }
        serving.healthy = Some(false);
        if !matches!(self.doing, Doing::Idle) {
            return;
        }
        if let Some(Probation { previous, .. }) = self.probation.take() {
            let reason = format!("the new daemon is unhealthy: {why}");
            let asked = self.asked("probation", previous, Some(reason));
            if let Err(refusal) = self.begin_handoff(asked, None) {
                tracing::error!("it is on probation, and cannot be replaced: {}", refusal.message);
            }
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
        let times =
            [backoff, probation, look, self.next_sample, self.next_progress, self.next_beat];
        let far = Instant::now() + Duration::from_secs(3600);
        times.into_iter().flatten().min().unwrap_or(far)
    }

    fn tick(&mut self, now: Instant) {
        let due = |time: Option<Instant>| time.is_some_and(|time| time <= now);
        if let Doing::Backoff { until, .. } = &self.doing
            && *until <= now
            && self.stopping.is_none()
        {
            self.begin_start(None);
        }
        if self.probation.as_ref().is_some_and(|it| it.until <= now) {
            self.probation = None;
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
            flight.waiters.retain(|waiter| {
                // Who is slow misses some; who is gone is forgotten.
                let told =
                    (!waiter.aborts).then(|| waiter.to.try_send(Reply::Progress(view.clone())));
                !matches!(told, Some(Err(mpsc::error::TrySendError::Closed(_))))
            });
            self.next_progress = Some(now + PROGRESS);
        }
        if due(self.next_beat) {
            self.systemd.beat();
            self.next_beat = self.systemd.watchdog().map(|every| now + every);
        }
    }

    // The end.

    /// Rolls back what is under way; whether there was anything.
    pub(super) fn abort(&self) -> bool {
        let under_way = matches!(self.doing, Doing::Handoff(_) | Doing::Starting(_));
        if under_way {
            self.supervisor.aborter().abort();
        }
        under_way
    }

    /// Stops the daemon and then the supervisor.
    pub(super) fn stop(&mut self, waiter: Option<mpsc::Sender<Reply>>) {
        let first = self.stopping.is_none();
        self.stopping.get_or_insert_default().extend(waiter);
        if first {
            self.systemd.stopping();
            if !self.abort() {
                self.end_daemons();
            }
        }
    }

    fn end_daemons(&mut self) {
        self.doing = Doing::Stopping;
        let (supervisor, mail) = (Arc::clone(&self.supervisor), self.mail.clone());
        let grace = self.config.daemon.stop_grace;
        tokio::spawn(async move {
            let left = supervisor.shutdown(grace).await.unwrap_or_default();
            let _ = mail.send(Mail::Stopped(left));
        });
    }

    fn stopped(&mut self, left: &[u32]) {
        let stuck = (!left.is_empty()).then(|| {
            let pids: Vec<String> = left.iter().map(u32::to_string).collect();
            format!("process groups that will not die: {}", pids.join(", "))
        });
        if let Some(stuck) = &stuck {
            tracing::error!("{stuck}");
        }
        self.record(Entry { detail: stuck.clone(), ..Self::note("stop") });
        self.keeper.flush();
        self.output.drain();
        for held in &self.held {
            self.systemd.unstore(&held.name);
            if let config::Address::Unix { path, .. } = &held.listener.address
                && held.origin != sockets::Origin::Systemd
            {
                let _ = std::fs::remove_file(path);
            }
        }
        let _ = std::fs::remove_file(&self.config.supervisor.socket);
        let code = if stuck.is_some() { exit::SOFTWARE } else { exit::OK };
        let reply = match stuck {
            Some(stuck) => Reply::Refused(refused(exit::SOFTWARE, "io_error", stuck)),
            None => {
                Reply::Done { message: "the daemon and its supervisor are stopped".to_string() }
            }
        };
        let waiters = self.stopping.replace(Vec::new()).unwrap_or_default();
        let mail = self.mail.clone();
        tokio::spawn(async move {
            for waiter in waiters {
                told(&waiter, reply.clone()).await;
            }
            let _ = mail.send(Mail::End(code));
        });
    }

    fn reexec(&mut self, program: &std::path::Path) {
        if !matches!(self.doing, Doing::Idle | Doing::Backoff { .. }) || self.stopping.is_some() {
            return tracing::error!("no reexec: something was begun meanwhile");
        }
        self.record(Entry { binary: Some(program.to_path_buf()), ..Self::note("reexec") });
        self.keeper.flush();
        self.output.drain();
        let listeners =
            self.held.iter().map(|it| (format!("{LISTENER}{}", it.name), it.fd.as_fd()));
        let mut keep: Vec<_> = listeners.collect();
        keep.push((LOCK.to_string(), self.lock.as_fd()));
        keep.push((SOCKET.to_string(), self.socket.as_fd()));
        let args =
            ["supervise".into(), "--config".into(), self.config.file.clone().into_os_string()];
        let error = replace(program, &args, &keep);
        tracing::error!("cannot become {}: {error}; this supervisor goes on", program.display());
    }

    // What is kept and shown.

    pub(super) fn record(&mut self, entry: Entry) {
        self.keeper.entry(&entry);
        self.history.push(entry);
        if self.history.len() > REMEMBERED {
            self.history.remove(0);
        }
    }

    fn keep(&mut self) {
        self.state.serving = self.serving.clone().or_else(|| self.former.clone());
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

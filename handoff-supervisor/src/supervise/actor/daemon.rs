//! The life of a daemon: found or started, started again when it ends.

use super::*;

impl Actor {
    /// Finds out who serves, and starts a daemon where nobody does.
    pub(super) fn begin_start(&mut self, binary_to_start: Option<Binary>) {
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
    pub(super) fn bind_missing(&mut self) -> Result<(), Refusal> {
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
    pub(super) fn pass_on(&self, held: &Held) -> Result<(), String> {
        let fd = held.fd.try_clone().map_err(|error| error.to_string())?;
        self.supervisor.listener(&held.name, fd).map_err(|error| error.to_string())
    }

    /// Has systemd keep the listeners that it did not make itself, and the state remember all.
    pub(super) fn keep_sockets(&mut self) {
        for held in &self.held {
            if held.origin != sockets::Origin::Systemd {
                self.systemd.store(&held.name, held.fd.as_fd());
            }
        }
        self.state.listeners = self.held.iter().filter_map(|held| held.kept().ok()).collect();
        self.keep();
    }

    pub(super) fn launch(&mut self, binary: &Binary) -> Result<(Launch, Files), Refusal> {
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

    pub(super) fn started(&mut self, result: Result<Started, StartError>) {
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
                if started || !self.again {
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

    pub(super) fn not_started(&mut self, code: String, detail: String, binary: Option<Binary>) {
        tracing::error!("the daemon does not start: {detail}");
        self.record(Entry {
            code: Some(code),
            detail: Some(detail.clone()),
            binary: binary.map(|binary| binary.path),
            ..Self::note("start")
        });
        self.back_off(detail);
    }

    pub(super) fn back_off(&mut self, why: String) {
        let config = &self.config.supervisor;
        let until = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(config.restart_most);
        self.doing = Doing::Backoff { until, why };
        self.systemd.status(&self.summary());
    }

    /// This daemon serves from now on.
    pub(super) fn serves(&mut self, pid: u32, binary: Option<PathBuf>, known: Option<Serving>) {
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

    pub(super) fn exited(&mut self, pid: u32, status: &str) {
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
}

//! The life of a daemon: found or started, started again when it ends.

use super::*;

impl Actor {
    /// Finds out who serves, and starts a daemon where nobody does.
    ///
    /// # Errors
    ///
    /// It cannot be tried; it is tried again later.
    pub(super) fn begin_start(
        &mut self,
        wanted: Option<Binary>,
        asked: Option<Asked>,
    ) -> Result<(), Refusal> {
        let wanted = wanted.or_else(|| self.state.current.clone());
        let wanted = match wanted.filter(Binary::is_there) {
            Some(binary) => Ok(binary),
            None => binary(&self.config, None),
        };
        let made = wanted.and_then(|binary| {
            self.bind_missing()?;
            // Without its listeners nobody is started, but somebody may serve (R10).
            let launch = self.missing.is_empty().then(|| self.launch(&binary)).transpose()?;
            Ok((binary, launch))
        });
        let (binary, launch) = match made {
            Ok(made) => made,
            Err(refusal) => {
                let Refusal { code, message, .. } = refusal.clone();
                self.not_started(code, message, None, asked);
                return Err(refusal);
            }
        };
        let (launch, files) = launch.unzip();
        let (supervisor, mail) = (Arc::clone(&self.supervisor), self.mail.clone());
        tokio::spawn(async move {
            let tell = |event: &Event| drop(mail.send(Mail::Event(event.clone())));
            let result = match launch {
                Some(launch) => supervisor.start_telling(&launch, tell).await,
                None => supervisor.find_telling(tell).await,
            };
            let _ = mail.send(Mail::Started(result));
        });
        let (waiters, waiting) = (Vec::new(), None);
        self.doing = Doing::Starting(Box::new(Starting { binary, files, asked, waiters, waiting }));
        Ok(())
    }

    /// Listeners that could not be had because somebody served: nobody may any more.
    pub(super) fn bind_missing(&mut self) -> Result<(), Refusal> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let lock = handoff_unix::lock::lock_state(&self.config.daemon.data_dir);
        if matches!(lock, handoff_unix::lock::LockState::Held { .. }) {
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
        let (missing, held) = (&self.missing, &self.held);
        // What is missing may be had by a supervisor that may do more.
        self.state.listeners.retain(|kept| missing.contains(&kept.name));
        self.state.listeners.extend(held.iter().filter_map(|held| held.kept().ok()));
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
        match result {
            Ok(Started { pid, started }) => self.found(*starting, pid, started),
            Err(error) => self.found_nobody(*starting, &error),
        }
        for (pid, status) in std::mem::take(&mut self.gone) {
            self.exited(pid, &status);
        }
    }

    fn found(&mut self, starting: Starting, pid: u32, started: bool) {
        let Starting { binary, files, asked, waiters, .. } = starting;
        let theirs = self.output.adopt(pid);
        // Where there is a wrapper, it is not the process that was started.
        let ours = files.as_ref().map(|it| &it.stderr);
        let started = started || (ours.is_some() && theirs.as_ref().map(|it| &it.stderr) == ours);
        let known = self.serving.take().or(self.former.take()).filter(|it| it.pid == pid);
        let next = self.state.next.take();
        let mut entry = match started {
            true => Self::asked_for("start", asked.as_ref()),
            false => Self::note("adopt"),
        };
        entry.serving = Some(pid);
        if started {
            entry.binary = Some(binary.path.clone());
            self.files.extend(files.map(|files| (pid, files)));
            self.took_over("start", binary.clone());
            self.serves(pid, Some(binary.path), None);
        } else {
            files.iter().for_each(|files| self.output.over(files));
            if let Some(theirs) = theirs {
                self.stray.retain(|it| it.stdout != theirs.stdout);
                self.files.insert(pid, theirs);
            }
            let mut path = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
            let took_over = known.is_none();
            if let Some(next) = next {
                let told = self.history.iter().any(|it| it.id.as_ref() == Some(&next.id));
                if self.interrupted && !told {
                    self.interrupted_by_end(&next, pid, took_over);
                }
                if took_over {
                    path = Some(next.binary.path.clone());
                    self.took_over(&next.kind, next.binary);
                }
            } else if took_over {
                self.probation = None;
            }
            self.serves(pid, path, known);
        }
        self.interrupted = false;
        self.clear_stray();
        self.output.clear();
        if started || !self.again {
            self.record(entry.clone());
        }
        self.again = false;
        if self.stopping.is_none() {
            self.systemd.ready(&self.summary());
        }
        let reply = if started {
            Reply::Ended(Box::new(crate::admin::Ended { entry, ..crate::admin::Ended::default() }))
        } else {
            let text = format!("pid {pid} serves after all, so nothing was started; try again");
            Reply::Refused(refused(exit::TEMPORARY, "busy", text))
        };
        waiters.iter().for_each(|waiter| waiter.last_word(reply.clone()));
        if self.stopping.is_some() {
            self.end_daemons();
        }
    }

    fn found_nobody(&mut self, starting: Starting, error: &StartError) {
        let Starting { binary, files, asked, waiters, .. } = starting;
        if self.stopping.is_some() {
            // It may have been started, and have something to say until it is ended.
            self.stray.extend(files);
            stop_waiting(waiters);
            return self.end_daemons();
        }
        let text = error.to_string();
        let Some(files) = files else {
            let missing = self.missing.join(", ");
            return self.back_off(format!("{text}; the listeners {missing} are to be bound first"));
        };
        let lines = files.last_lines(10);
        self.output.over(&files);
        let code = match error {
            StartError::NobodyServes(_) if text.contains("cannot start") => "successor_exec_failed",
            StartError::NobodyServes(_) => "successor_exited",
            _ => "io_error",
        };
        let last = lines.last().map(|line| format!("; it said: {line}"));
        let text = text + &last.unwrap_or_default();
        for waiter in waiters {
            let refusal = refused(exit::SOFTWARE, code, text.clone());
            waiter.last_word(Reply::Refused(refusal));
        }
        self.not_started(code.to_string(), text, Some(binary), asked);
    }

    /// What became of the handoff in which the supervisor before this one ended: this process serves.
    fn interrupted_by_end(&mut self, next: &Next, pid: u32, took_over: bool) {
        let verdict = if took_over { "committed" } else { "rolled_back" };
        self.record(Entry {
            id: Some(next.id.clone()),
            verdict: Some(verdict.to_string()),
            detail: Some("its supervisor ended meanwhile; this is who serves".to_string()),
            binary: Some(next.binary.path.clone()),
            serving: Some(pid),
            reason: next.reason.clone(),
            // It may be tried again with the same key.
            key: next.key.clone().filter(|_| took_over),
            uid: next.uid,
            ..Self::note(&next.kind)
        });
    }

    /// This binary serves from now on.
    pub(super) fn took_over(&mut self, kind: &str, binary: Binary) {
        let before = self.state.current.replace(binary.clone());
        let watched = self.config.handoff.probation.filter(|_| kind == "swap");
        self.probation = watched.zip(before.clone()).map(|(time, previous)| {
            let until = Instant::now() + time;
            Probation { until, previous }
        });
        // Who starts the same again can go back to what was before it.
        if before.as_ref() != Some(&binary) {
            self.state.previous = before.or(self.state.previous.take());
        }
    }

    fn asked_for(kind: &str, asked: Option<&Asked>) -> Entry {
        Entry {
            reason: asked.and_then(|asked| asked.reason.clone()),
            key: asked.and_then(|asked| asked.key.clone()),
            uid: asked.and_then(|asked| asked.uid),
            ..Self::note(kind)
        }
    }

    fn not_started(
        &mut self,
        code: String,
        detail: String,
        binary: Option<Binary>,
        asked: Option<Asked>,
    ) {
        tracing::error!("the daemon does not start: {detail}");
        self.record(Entry {
            code: Some(code),
            detail: Some(detail.clone()),
            binary: binary.map(|binary| binary.path),
            ..Self::asked_for("start", asked.as_ref())
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
        // What it means is known when the handoff has ended: an old daemon is to exit, after all. And who has
        // just been started may have ended before that is heard of.
        let known = self.serving.as_ref().is_some_and(|serving| serving.pid == pid);
        if matches!(self.doing, Doing::Handoff(_))
            || (matches!(self.doing, Doing::Starting(_)) && !known)
        {
            return self.gone.push((pid, status.to_string()));
        }
        if let Some(files) = self.files.remove(&pid) {
            self.output.over(&files);
        }
        let Some(serving) = self.serving.take_if(|serving| serving.pid == pid) else { return };
        if self.stopping.is_some() {
            return tracing::info!(pid, "the daemon has ended: {status}");
        }
        tracing::error!(pid, "the daemon has ended: {status}");
        self.record(Entry {
            detail: Some(status.to_string()),
            from: Some(serving),
            ..Self::note("exit")
        });
        if !matches!(self.doing, Doing::Idle) {
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
            // Where that fails it is told, and tried again.
            self.took_over("probation", probation.previous);
            return drop(self.begin_start(None, None));
        }
        self.back_off(format!("the daemon has ended: {status}"));
    }
}

/// They asked for what a stop has put an end to.
pub(super) fn stop_waiting(waiters: Vec<Waiter>) {
    for waiter in waiters {
        let message = "the supervisor was stopped before that had ended".to_string();
        waiter.last_word(Reply::Refused(refused(exit::SOFTWARE, "busy", message)));
    }
}

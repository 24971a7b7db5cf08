//! Handoffs: begun, followed, and what their ends mean; and whether a new daemon is fit.

use super::*;

impl Actor {
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
                self.begin_start(Some(asked.binary.clone()), Some(asked))?;
                if let Doing::Starting(starting) = &mut self.doing {
                    starting.waiters.extend(waiter);
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
        let by = asked.uid.map_or(String::new(), |uid| format!(", asked for by user {uid}"));
        let why = asked.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        let what = if asked.dry_run { "dry run" } else { asked.kind };
        tracing::info!("{what} {} of {}{by}{why}", flight.id, asked.binary.path.display());
        let mut handoff = Handoff::new(launch)
            .id(flight.id)
            .warm_up(asked.warm_up)
            .drain_grace(asked.drain_grace)
            .deadline(asked.deadline);
        if asked.dry_run {
            handoff = handoff.dry_run();
        }
        self.state.next = (!asked.dry_run).then(|| Next {
            id: flight.id.to_string(),
            kind: asked.kind.to_string(),
            binary: asked.binary.clone(),
            reason: asked.reason.clone(),
            key: asked.key.clone(),
            uid: asked.uid,
        });
        self.keep();
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

    pub(super) fn event(&mut self, event: &Event) {
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

    pub(super) fn finished(&mut self, result: Result<Report, StartError>) {
        let Doing::Handoff(flight) = std::mem::replace(&mut self.doing, Doing::Idle) else {
            return;
        };
        (self.next_sample, self.next_progress) = (None, None);
        match result {
            Ok(report) => self.reported(*flight, &report),
            Err(error) => {
                self.output.over(flight.files());
                self.state.next = None;
                self.keep();
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
        if self.stopping.is_some() {
            self.end_daemons();
        } else {
            self.systemd.ready(&self.summary());
        }
    }

    pub(super) fn reported(&mut self, flight: Flight, report: &Report) {
        let ended = flight.end(report, Instant::now());
        metrics::ended(&ended.entry);
        flight.waiters.iter().for_each(|waiter| waiter.tell(&ended));
        self.record(ended.entry);
        let Asked { kind, binary, .. } = flight.asked.clone();
        // Where nothing is known, it is when it has been found out who serves.
        if report.verdict != Verdict::Unknown {
            self.state.next = None;
        }
        match report.verdict {
            Verdict::Committed => {
                self.took_over(kind, binary.clone());
                if let Some(pid) = report.serving {
                    self.files.insert(pid, flight.files().clone());
                    self.serves(pid, Some(binary.path), None);
                }
            }
            Verdict::Refused | Verdict::RolledBack | Verdict::DryRun => {
                self.output.over(flight.files());
            }
            Verdict::Unknown => self.stray.push(flight.files().clone()),
        }
        self.keep();
        let expected = self.serving.as_ref().map(|serving| serving.pid);
        let unsure = report.verdict == Verdict::Unknown || report.serving.is_none();
        if (unsure || report.serving != expected) && self.stopping.is_none() {
            self.begin_start(None, None).ok();
        }
    }

    pub(super) fn clear_stray(&mut self) {
        for files in std::mem::take(&mut self.stray) {
            self.output.over(&files);
        }
    }

    pub(super) fn looked(&mut self, pid: u32, result: Result<(), String>) {
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
}

//! The end of a supervisor, or of its program.

use super::*;

impl Actor {
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
            let patience = match self.doing {
                Doing::Starting(_) => GIVE_UP.0,
                _ => GIVE_UP.1,
            };
            self.stop_at = Some(Instant::now() + patience);
            if !self.abort() {
                self.end_daemons();
            }
        }
    }

    pub(super) fn end_daemons(&mut self) {
        match std::mem::replace(&mut self.doing, Doing::Stopping) {
            Doing::Starting(starting) => {
                self.stray.extend(starting.files);
                daemon::stop_waiting(starting.waiters);
            }
            Doing::Handoff(flight) => {
                (self.next_sample, self.next_progress) = (None, None);
                self.stray.push(flight.files().clone());
                daemon::stop_waiting(flight.waiters);
            }
            Doing::Idle | Doing::Backoff { .. } | Doing::Stopping => {}
        }
        let (supervisor, mail) = (Arc::clone(&self.supervisor), self.mail.clone());
        let grace = self.config.daemon.stop_grace;
        tokio::spawn(async move {
            let stuck = match timeout(grace + END, supervisor.shutdown(grace)).await {
                Ok(Ok(left)) if left.is_empty() => None,
                Ok(Ok(left)) => {
                    let pids: Vec<String> = left.iter().map(u32::to_string).collect();
                    Some(format!("process groups that will not die: {}", pids.join(", ")))
                }
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("something that was started will not die".to_string()),
            };
            let _ = mail.send(Mail::Stopped(stuck));
        });
    }

    pub(super) fn stopped(&mut self, stuck: Option<String>) {
        if let Some(stuck) = &stuck {
            tracing::error!("{stuck}");
        }
        self.record(Entry { detail: stuck.clone(), ..Self::note("stop") });
        self.keeper.flush();
        // Whether it was told of their exits yet or not.
        if stuck.is_none() {
            self.stray.extend(std::mem::take(&mut self.files).into_values());
            self.clear_stray();
        }
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
            None => Reply::Done { message: "the daemon and its supervisor have ended".to_string() },
        };
        let waiters = self.stopping.replace(Vec::new()).unwrap_or_default();
        let mail = self.mail.clone();
        tokio::spawn(async move {
            let mut telling = tokio::task::JoinSet::new();
            for waiter in waiters {
                let reply = reply.clone();
                telling.spawn(async move { told(&waiter, reply).await });
            }
            telling.join_all().await;
            let _ = mail.send(Mail::End(code));
        });
    }

    pub(super) fn reexec(&mut self, program: PathBuf) {
        // What was heard by now would be forgotten; what comes from here on waits for the new program.
        if !self.inbox.is_empty() {
            return drop(self.mail.send(Mail::Reexec(program)));
        }
        if !matches!(self.doing, Doing::Idle | Doing::Backoff { .. }) || self.stopping.is_some() {
            return tracing::error!("no reexec: something was begun meanwhile");
        }
        let entry = Entry { binary: Some(program.clone()), ..Self::note("reexec") };
        self.record(entry.clone());
        self.keeper.flush();
        self.output.drain();
        self.log.flush();
        let listeners = self.held.iter().map(|it| {
            let from = if it.origin == sockets::Origin::Systemd { UNIT } else { LISTENER };
            (format!("{from}{}", it.name), it.fd.as_fd())
        });
        let mut keep: Vec<_> = listeners.collect();
        keep.push((LOCK.to_string(), self.lock.as_fd()));
        keep.push((SOCKET.to_string(), self.socket.as_fd()));
        let args =
            ["supervise".into(), "--config".into(), self.config.file.clone().into_os_string()];
        let error = replace(&program, &args, &keep);
        let text = format!("cannot become {}: {error}; this supervisor goes on", program.display());
        tracing::error!("{text}");
        self.record(Entry { code: Some("io_error".to_string()), detail: Some(text), ..entry });
    }
}

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
            if !self.abort() {
                self.end_daemons();
            }
        }
    }

    pub(super) fn end_daemons(&mut self) {
        self.doing = Doing::Stopping;
        let (supervisor, mail) = (Arc::clone(&self.supervisor), self.mail.clone());
        let grace = self.config.daemon.stop_grace;
        tokio::spawn(async move {
            let left = supervisor.shutdown(grace).await.unwrap_or_default();
            let _ = mail.send(Mail::Stopped(left));
        });
    }

    pub(super) fn stopped(&mut self, left: &[u32]) {
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
            None => Reply::Done { message: "the daemon and its supervisor have ended".to_string() },
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

    pub(super) fn reexec(&mut self, program: &std::path::Path) {
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
}

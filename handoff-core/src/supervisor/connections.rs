//! The two connections: who speaks, what it says, how it ends (C1-C4, T2, W7).

use super::*;

impl Supervisor {
    pub(super) fn opened(&mut self, peer: Peer, cred: Credentials, out: &mut Out) {
        let wanted = match peer {
            Peer::Successor => true,
            Peer::Incumbent => self.connect == Flight::Out && self.connects(),
        };
        // There may have been one to the incumbent that has ended.
        let free =
            |link: &Link| *link == Link::None || (peer == Peer::Incumbent && *link == Link::Closed);
        match self.swap().map(|swap| swap.link(peer)) {
            Some(link) if wanted && free(link) => *link = Link::Opened(cred),
            _ => out.push(Output::Close { peer }),
        }
    }

    /// Whether a connection to the incumbent is wanted: while the successor warms up, so that nobody has to
    /// wait for it, and again when it is needed. A dry run leaves the incumbent alone.
    pub(super) fn connects(&self) -> bool {
        match &self.state {
            State::Swap(swap) => matches!(swap.at, At::Warming | At::Connecting) && !swap.dry_run,
            State::Idle | State::Finding(_) => false,
        }
    }

    pub(super) fn connected(&mut self, now: Instant, result: Result<(), String>, out: &mut Out) {
        let wanted = self.connects();
        if !Self::fresh(&mut self.connect, Effect::Connect, wanted, out) {
            return;
        }
        if let Err(error) = result
            && self.at() == Some(At::Connecting)
        {
            self.fail(now, Reason::IncumbentLost, error, out);
        }
    }

    pub(super) fn hello(&mut self, now: Instant, from: Peer, message: Message, out: &mut Out) {
        let config = self.config.clone();
        let state = self.state_name();
        let Some(swap) = self.swap() else { return };
        let side = match from {
            Peer::Incumbent => Side::Incumbent,
            Peer::Successor => Side::Successor,
        };
        let Link::Opened(cred) = *swap.link(from) else {
            return;
        };
        let Message::Hello { role, pid, proto_min, proto_max, capabilities, .. } = message else {
            let message = short_name(&message);
            return self.refuse(now, from, Violation::Unexpected { message, state }, out);
        };
        let started = swap.successor.leader.unwrap_or_default();
        let violation = if role != side {
            Some(Violation::WrongSide { announced: role })
        } else if pid != cred.pid {
            Some(Violation::WrongPid { announced: pid, actual: cred.pid })
        } else if from == Peer::Successor
            && cred.pid != started
            && !(config.allow_wrappers && cred.descends)
        {
            Some(Violation::NotOurs { actual: cred.pid, started })
        } else {
            check_user(cred, config.uid, &config.allowed_uids).err()
        };
        if let Some(violation) = violation {
            return self.refuse(now, from, violation, out);
        }
        let chosen =
            match negotiate_version(config.proto_min, config.proto_max, proto_min, proto_max) {
                Ok(chosen) => chosen,
                Err(mismatch) => {
                    return self.refuse(now, from, Violation::Versions(mismatch), out);
                }
            };
        let steady = capabilities.has(Capabilities::STEADY_HEARTBEAT);
        let ack = Message::HelloAck { proto_version_chosen: chosen, handoff_id: swap.id };
        match from {
            Peer::Incumbent => {
                // Who answered the probe may have ended since; this is another.
                swap.incumbent.exited &= swap.incumbent.pid == Some(pid);
                swap.incumbent.pid = Some(pid);
                swap.incumbent.link = Link::Acked;
                swap.incumbent.steady = steady;
            }
            Peer::Successor => {
                swap.successor.pid = Some(pid);
                swap.successor.link = Link::Acked;
                swap.successor.steady = steady;
                swap.successor.notice = capabilities.has(Capabilities::COMMIT_NOTICE);
            }
        }
        let (at, dry_run) = (swap.at, swap.dry_run);
        out.push(Output::Send { to: from, message: ack });
        self.timers.clear(Timer::Hello(from));
        self.timers.set(Timer::Beat(from), now + config.timing.pulse.every);
        if steady {
            self.timers.set(Timer::Silence(from), now + config.timing.pulse.silence);
        }
        match (from, at) {
            (Peer::Successor, At::Warming) if dry_run => self.end_successor(now, out),
            (Peer::Successor, At::Warming) => self.warm(now, out),
            (Peer::Incumbent, At::Warming) if steady => self.journal(Step::Prepare, out),
            // It may serve one connection at a time, and others want to know who serves meanwhile.
            (Peer::Incumbent, At::Warming) => self.close(Peer::Incumbent, out),
            (Peer::Incumbent, At::Connecting) => {
                self.goto(At::Preparing);
                self.journal(Step::Prepare, out);
            }
            _ => {}
        }
    }

    /// The successor has said Hello.
    fn warm(&mut self, now: Instant, out: &mut Out) {
        let limit = now + self.config.timing.incumbent_hello;
        // This supervisor may itself have been stopped for so long, and be given up by now.
        let silence = self.timers.at(Timer::Silence(Peer::Incumbent));
        let silent = silence.is_some_and(|due| due <= now);
        let Some(swap) = self.swap() else { return };
        let (link, gone) = (swap.incumbent.link, swap.incumbent.exited || silent);
        if link == Link::Acked && !gone {
            swap.at = At::Preparing;
            return self.step_if_journalled(now, out);
        }
        swap.at = At::Connecting;
        if gone {
            self.close(Peer::Incumbent, out);
        }
        if let Some(swap) = self.swap() {
            // What became of the connection so far is no failure, and says nothing of what follows.
            (swap.incumbent.hung_up, swap.incumbent.silent) = (false, false);
        }
        self.timers.set(Timer::Hello(Peer::Incumbent), limit);
        let awaited = self.connect != Flight::Idle || (matches!(link, Link::Opened(_)) && !gone);
        if !awaited {
            Self::look(&mut self.connect, Effect::Connect, out);
        }
    }

    pub(super) fn close(&mut self, peer: Peer, out: &mut Out) {
        if self.hung_up(peer) {
            out.push(Output::Close { peer });
        }
    }

    /// Notes that a connection is no more; whether it was one.
    pub(super) fn hung_up(&mut self, peer: Peer) -> bool {
        let Some(swap) = self.swap() else {
            return false;
        };
        let was = core::mem::replace(swap.link(peer), Link::Closed);
        self.timers.retain(|t| {
            t != Timer::Beat(peer) && t != Timer::Silence(peer) && t != Timer::Hello(peer)
        });
        !matches!(was, Link::None | Link::Closed)
    }

    pub(super) fn refuse(&mut self, now: Instant, peer: Peer, violation: Violation, out: &mut Out) {
        let state = self.state_name();
        let reason = match violation {
            Violation::Versions(_) => Reason::VersionMismatch,
            _ => Reason::ProtocolViolation,
        };
        let detail = format!("{peer}: {violation}");
        out.push(Output::Event(Event::PeerRefused { peer, violation, state }));
        self.close(peer, out);
        self.lost(now, peer, Some((reason, detail)), out);
    }

    /// A connection is closed or dead.
    pub(super) fn lost(
        &mut self,
        now: Instant,
        peer: Peer,
        why: Option<(Reason, String)>,
        out: &mut Out,
    ) {
        let timing = self.config.timing;
        let Some(swap) = self.swap() else { return };
        let (at, promoted) = (swap.at, swap.promoted);
        // Silence is worse a sign than an end: who has closed may be opening its data by itself (R3).
        let patience = if swap.successor.silent { timing.silent } else { timing.unanswered };
        match (peer, at) {
            (Peer::Incumbent, At::Asking) | (Peer::Successor, At::Committing) => {
                self.want_probe(out);
            }
            (Peer::Incumbent, At::Confirming) => {
                // It is not ended here, because it may be the last (R5); who looks next who serves may.
                if swap.incumbent.silent {
                    self.timers.set(Timer::Confirm, now + timing.slack);
                }
                self.want_probe(out);
            }
            (Peer::Incumbent, At::Connecting | At::Preparing | At::Sealing) => {
                let text = "the incumbent closed its connection".to_string();
                let (reason, detail) = why.unwrap_or((Reason::IncumbentLost, text));
                self.fail(now, reason, detail, out);
            }
            (Peer::Incumbent, At::Draining) => {
                let text = "the incumbent closed its connection before it was drained".to_string();
                let (reason, detail) = why.unwrap_or((Reason::DrainFailed, text));
                self.fail(now, reason, detail, out);
            }
            (Peer::Incumbent, At::Promoting) if swap.incumbent.silent => {
                self.timers.set(Timer::Hung, now + timing.silent);
            }
            // After Begin a successor goes on by itself (R3); the control path tells.
            (Peer::Successor, At::Opening) if promoted => {
                self.timers.set(Timer::Hung, now + patience);
            }
            (
                Peer::Successor,
                At::Warming
                | At::Connecting
                | At::Preparing
                | At::Draining
                | At::Sealing
                | At::Opening,
            ) => {
                let text = "the successor closed its connection".to_string();
                let (reason, detail) = why.unwrap_or((Reason::SuccessorExited, text));
                self.fail(now, reason, detail, out);
            }
            _ => {}
        }
    }

    pub(super) fn heard(&mut self, now: Instant, peer: Peer) {
        let silence = now + self.config.timing.pulse.silence;
        let Some(swap) = self.swap() else { return };
        let steady = match peer {
            Peer::Incumbent => swap.incumbent.steady,
            Peer::Successor => swap.successor.steady,
        };
        if *swap.link(peer) == Link::Acked && steady {
            self.timers.set(Timer::Silence(peer), silence);
        }
    }

    pub(super) fn message(&mut self, now: Instant, from: Peer, message: Message, out: &mut Out) {
        let state = self.state_name();
        let Some(swap) = self.swap() else { return };
        match *swap.link(from) {
            Link::None | Link::Closed => return,
            Link::Opened(_) => return self.hello(now, from, message, out),
            Link::Acked => {}
        }
        if let Some(got) = message.handoff_id()
            && got != swap.id
        {
            let (message, expected) = (short_name(&message), swap.id);
            return self.refuse(now, from, Violation::WrongId { message, got, expected }, out);
        }
        // After a failure a message that crossed it on the way is no violation.
        let crossed = swap.promoted
            || matches!(swap.at, At::Asking | At::Promoting | At::Ending | At::Confirming);
        let at = swap.at;
        let steady = swap.incumbent.steady;
        match (from, message) {
            (Peer::Incumbent, Message::Heartbeat { ts_ms }) => {
                if at == At::Confirming && ts_ms == ASK_RESUMED && steady && swap.answers() {
                    let serving = swap.incumbent.pid;
                    return self.finish(Verdict::RolledBack, serving, out);
                }
                if ts_ms == ASK_ALIVE || !steady {
                    self.incumbent_answered(now, out);
                }
                return;
            }
            (Peer::Successor, Message::Heartbeat { .. }) => return,
            (Peer::Incumbent, Message::Drained { open_conns_remaining, accept_closed })
                if at == At::Draining || crossed =>
            {
                swap.drained = true;
                let event = Event::Drained { open_conns_remaining, accept_closed };
                out.push(Output::Event(event));
                if at == At::Draining {
                    self.timers.clear(Timer::Drain);
                    self.request_seal(out);
                }
            }
            (
                Peer::Incumbent,
                Message::SealProgress { shards_sealed, shards_total, last_revision },
            ) if at == At::Sealing || crossed => {
                let event = Event::SealProgress { shards_sealed, shards_total, last_revision };
                out.push(Output::Event(event));
            }
            (Peer::Incumbent, Message::SealComplete { last_revision_per_shard, .. })
                if at == At::Sealing || crossed =>
            {
                swap.sealed = Some(last_revision_per_shard);
                if at == At::Sealing {
                    self.begin(now, out);
                }
            }
            (Peer::Incumbent, Message::SealFailed { error, partial_state, .. })
                if at == At::Sealing || crossed =>
            {
                swap.seal_failed = true;
                if at == At::Sealing {
                    let detail = if partial_state.is_empty() {
                        format!("the seal failed: {error}")
                    } else {
                        format!("the seal failed: {error} ({partial_state})")
                    };
                    self.fail(now, Reason::SealFailed, detail, out);
                }
            }
            (
                Peer::Successor,
                Message::Ready { listening_on, healthz_ok, advertised_revision_per_shard, .. },
            ) if swap.successor.begun && (at == At::Opening || crossed) => {
                let revisions = advertised_revision_per_shard;
                let ready = Ready { listening_on, healthz_ok, revisions };
                if at == At::Opening {
                    self.verify(ready, out);
                } else {
                    swap.ready = Some(ready);
                }
            }
            (_, message) => {
                let message = short_name(&message);
                return self.refuse(now, from, Violation::Unexpected { message, state }, out);
            }
        }
        if from == Peer::Incumbent && !steady {
            self.incumbent_answered(now, out);
        }
    }
}

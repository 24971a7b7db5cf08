//! When something fails: who is ended, who is promoted, who is confirmed (R4, R5, R7).

use alloc::string::String;

use super::*;

impl Supervisor {
    pub(super) fn fail(&mut self, now: Instant, reason: Reason, detail: String, out: &mut Out) {
        let Some(swap) = self.swap() else { return };
        let trouble = Trouble { reason, detail: clip(detail, 1024) };
        match swap.at {
            // Too late: the successor was told that it is the incumbent.
            At::Committing => {}
            At::Asking | At::Promoting | At::Ending | At::Confirming => {
                swap.trouble.get_or_insert(trouble);
            }
            // Unless nobody answered, an answer is on its way, and the outcome is to say who serves.
            At::Probing => {
                let (serving, lost) = (swap.incumbent.pid, reason == Reason::IncumbentLost);
                swap.trouble.get_or_insert(trouble);
                if lost || serving.is_some() {
                    self.finish(Verdict::Refused, serving, out);
                }
            }
            // The process is on its way; it is ended when it is there.
            At::Spawning => swap.trouble = Some(trouble),
            At::Warming
            | At::Connecting
            | At::Preparing
            | At::Draining
            | At::Sealing
            | At::Opening
            | At::Verifying => {
                swap.trouble.get_or_insert(trouble);
                let could_serve = swap.successor.link == Link::Acked || swap.successor.begun;
                if swap.successor.exited || !could_serve {
                    self.end_successor(now, out);
                } else {
                    self.ask(now, out);
                }
            }
        }
    }

    /// Is the incumbent there? Only then may the successor be ended (R5).
    pub(super) fn ask(&mut self, now: Instant, out: &mut Out) {
        let timing = self.config.timing;
        let Some(swap) = self.swap() else { return };
        // Without X2 it reads nothing while a hook runs, and then heartbeats every 2 s only.
        let patience = if swap.incumbent.steady { timing.ask } else { timing.ask + timing.slack };
        let limit = now + patience;
        swap.at = At::Asking;
        let (gone, link) = (swap.incumbent.exited, swap.incumbent.link);
        self.timers.retain(|timer| !matches!(timer, Timer::Deadline | Timer::Drain | Timer::Hung));
        if gone {
            return self.promote(now, out);
        }
        self.timers.set(Timer::Ask, limit);
        if link == Link::Acked {
            let message = Message::Heartbeat { ts_ms: ASK_ALIVE };
            out.push(Output::Send { to: Peer::Incumbent, message });
        } else {
            self.want_probe(out);
        }
    }

    /// The incumbent is there, as of now.
    pub(super) fn incumbent_answered(&mut self, now: Instant, out: &mut Out) {
        let Some(swap) = self.swap().filter(|swap| swap.answers()) else { return };
        match swap.at {
            At::Asking | At::Promoting => self.end_successor(now, out),
            At::Opening if swap.promoted => self.end_successor(now, out),
            // It is there after all: a successor that is not fit to serve is not needed.
            At::Verifying => swap.back = true,
            _ => {}
        }
    }

    /// The incumbent counts as gone: the successor is left to serve, however late (R5).
    pub(super) fn promote(&mut self, now: Instant, out: &mut Out) {
        let allowed = self.config.promote;
        let timing = self.config.timing;
        let Some(swap) = self.swap() else { return };
        // One that has hung up may have a hook to wait for (R7) before it says Hello again. One that
        // was heard a moment ago falls silent before it counts as hung.
        let patience = match &swap.incumbent {
            Incumbent { silent: true, .. } => timing.silent,
            Incumbent { hung_up: true, .. } => timing.unanswered,
            _ => timing.hung,
        };
        if !allowed || swap.successor.exited {
            return self.end_successor(now, out);
        }
        swap.promoted = true;
        swap.back = false;
        let (ready, begun) = (swap.ready.is_some(), swap.successor.begun);
        out.push(Output::Event(Event::Phase(Phase::Promote)));
        self.timers.clear(Timer::Ask);
        if ready {
            self.goto(At::Verifying);
            self.want_check(out);
        } else if begun {
            self.goto(At::Opening);
            self.recheck_later(now);
        } else {
            self.goto(At::Promoting);
            self.timers.set(Timer::Hung, now + patience);
            self.want_check(out);
        }
    }

    pub(super) fn end_successor(&mut self, now: Instant, out: &mut Out) {
        let Some(swap) = self.swap() else { return };
        swap.at = At::Ending;
        let reason = match &swap.trouble {
            Some(trouble) => trouble.detail.clone(),
            None if swap.went_well() => "it was a dry run".to_string(),
            None => String::new(),
        };
        let abort = Message::Abort { handoff_id: swap.id, reason };
        // The end of a dry run is no rollback.
        if !swap.went_well() {
            out.push(Output::Event(Event::Phase(Phase::Rollback)));
        }
        if swap.successor.link == Link::Acked {
            out.push(Output::Send { to: Peer::Successor, message: abort.clone() });
        }
        if swap.incumbent.link == Link::Acked
            && swap.incumbent.steady
            && swap.prepared
            && !swap.seal_failed
        {
            out.push(Output::Send { to: Peer::Incumbent, message: abort });
        }
        let leader = swap.successor.leader;
        self.timers.retain(|timer| matches!(timer, Timer::Beat(_) | Timer::Silence(_)));
        self.journal(Step::Abort, out);
        match leader {
            Some(pid) => {
                out.push(Output::Do(Effect::Reap { pid }));
                out.push(Output::Do(Effect::Signal { pid, signal: Signal::Term }));
                self.timers.set(Timer::EndGrace, now + self.end_grace());
            }
            None => self.successor_ended(now, out),
        }
    }

    /// Every process of the successor's is gone, or one will not die: the incumbent may go on (R4).
    pub(super) fn successor_ended(&mut self, now: Instant, out: &mut Out) {
        let timing = self.config.timing;
        // Of one that is silent nothing is to be expected but the answer to a probe.
        let (limit, silence) = (now + timing.confirm, now + timing.slack);
        let Some(swap) = self.swap() else { return };
        if swap.went_well() && swap.incumbent.exited {
            let detail = "the incumbent ended during the dry run".to_string();
            swap.trouble = Some(Trouble { reason: Reason::IncumbentLost, detail });
        }
        if !swap.prepared && !swap.promoted && !swap.incumbent.exited {
            let verdict = if swap.went_well() { Verdict::DryRun } else { Verdict::Refused };
            let serving = swap.incumbent.pid;
            return self.finish(verdict, serving, out);
        }
        swap.at = At::Confirming;
        let resume =
            swap.incumbent.link == Link::Acked && !swap.seal_failed && !swap.successor.stuck;
        let (steady, silent) = (swap.incumbent.steady, swap.incumbent.silent);
        let id = swap.id;
        self.timers
            .retain(|t| t == Timer::Beat(Peer::Incumbent) || t == Timer::Silence(Peer::Incumbent));
        self.timers.set(Timer::Confirm, if silent { silence } else { limit });
        if resume {
            let message = Message::ResumeAfterAbort { handoff_id: id };
            out.push(Output::Send { to: Peer::Incumbent, message });
        }
        if resume && steady {
            let message = Message::Heartbeat { ts_ms: ASK_RESUMED };
            out.push(Output::Send { to: Peer::Incumbent, message });
        } else {
            // An incumbent may serve one connection at a time, so a probe needs this one closed.
            self.close(Peer::Incumbent, out);
            self.want_probe(out);
        }
    }

    pub(super) fn finish(&mut self, verdict: Verdict, serving: Option<u32>, out: &mut Out) {
        self.close(Peer::Incumbent, out);
        self.close(Peer::Successor, out);
        self.journal(Step::Idle, out);
        self.timers = Timers::default();
        if let State::Swap(swap) = core::mem::replace(&mut self.state, State::Idle) {
            let stuck = swap.successor.leader.filter(|_| swap.successor.stuck);
            out.push(Output::Event(Event::Finished(Report {
                id: swap.id,
                verdict,
                trouble: swap.trouble,
                serving,
                ready: swap.ready,
                stuck,
            })));
        }
    }
}

//! What effects came to: processes that started or ended, and looks at the world (R5, R8, R16).

use super::*;

impl Supervisor {
    pub(super) fn exited(&mut self, now: Instant, pid: u32, status: &str, out: &mut Out) {
        let wrappers = self.config.allow_wrappers;
        // It may be who answers the probe under way, and was there when it did.
        let probing = self.at() == Some(At::Probing) || matches!(self.state, State::Finding(_));
        if probing && self.probe == Flight::Out {
            self.probe = Flight::Stale;
        }
        if let State::Finding(finding) = &self.state {
            if finding.started == Some(pid) {
                self.timers = Timers::default();
                self.state = State::Idle;
                let text = format!("the daemon (pid {pid}) ended before it served: {status}");
                out.push(Output::Event(Event::NobodyServes(text)));
            }
            return;
        }
        let Some(swap) = self.swap() else { return };
        let at = swap.at;
        // Where wrappers are allowed, the one that was started may leave the stage to its child.
        let successor = swap.successor.pid.or(swap.successor.leader.filter(|_| !wrappers));
        let peer = if successor == Some(pid) {
            Peer::Successor
        } else if swap.incumbent.pid == Some(pid) {
            Peer::Incumbent
        } else {
            return;
        };
        match peer {
            Peer::Incumbent => {
                swap.incumbent.exited = true;
                let detail = format!("the incumbent ended: {status}");
                let guessed =
                    swap.trouble_is(Reason::DrainFailed) || swap.trouble_is(Reason::IncumbentLost);
                // The end of its connection, or its silence, was seen first, and this is why.
                if guessed && (at == At::Asking || swap.promoted) {
                    let detail = detail.clone();
                    swap.trouble = Some(Trouble { reason: Reason::IncumbentLost, detail });
                }
                match at {
                    At::Connecting | At::Preparing | At::Draining | At::Sealing => {
                        self.fail(now, Reason::IncumbentLost, detail, out);
                    }
                    At::Asking => self.promote(now, out),
                    At::Opening if !swap.promoted => {
                        swap.promoted = true;
                        swap.trouble = Some(Trouble { reason: Reason::IncumbentLost, detail });
                        self.timers.clear(Timer::Deadline);
                        self.recheck_later(now);
                    }
                    At::Promoting => self.want_check(out),
                    At::Confirming => self.want_probe(out),
                    At::Probing
                    | At::Spawning
                    | At::Warming
                    | At::Opening
                    | At::Verifying
                    | At::Committing
                    | At::Ending => {}
                }
            }
            Peer::Successor => {
                swap.successor.exited = true;
                let detail = format!("the successor ended: {status}");
                match at {
                    At::Asking | At::Promoting => self.end_successor(now, out),
                    // The incumbent may be back, or not have read Commit, or not have obeyed it.
                    At::Opening | At::Verifying | At::Committing => {
                        let reason = Reason::SuccessorExited;
                        swap.trouble = Some(Trouble { reason, detail });
                        self.end_successor(now, out);
                    }
                    At::Ending | At::Confirming => {
                        // The end of its connection was seen first, and this is why.
                        if swap.trouble_is(Reason::SuccessorExited) {
                            let reason = Reason::SuccessorExited;
                            swap.trouble = Some(Trouble { reason, detail });
                        }
                    }
                    At::Probing
                    | At::Spawning
                    | At::Warming
                    | At::Connecting
                    | At::Preparing
                    | At::Draining
                    | At::Sealing => self.fail(now, Reason::SuccessorExited, detail, out),
                }
            }
        }
    }

    pub(super) fn spawned(&mut self, now: Instant, result: Result<u32, String>, out: &mut Out) {
        if let State::Finding(finding) = &mut self.state {
            finding.spawning = false;
            match result {
                Ok(pid) => {
                    finding.started = Some(pid);
                    finding.own.push(pid);
                    finding.ending = Some(pid);
                    self.timers.set(Timer::Hung, now + self.config.timing.unanswered);
                    self.recheck_later(now);
                }
                Err(error) => {
                    self.timers = Timers::default();
                    self.state = State::Idle;
                    out.push(Output::Event(Event::NobodyServes(error)));
                }
            }
            return;
        }
        let Some(swap) = self.swap() else { return };
        if swap.at != At::Spawning {
            return;
        }
        match result {
            Ok(pid) => {
                swap.successor.leader = Some(pid);
                swap.at = At::Warming;
                let limit = now + swap.hello_budget;
                let failed = swap.trouble.is_some();
                self.timers.set(Timer::Hello(Peer::Successor), limit);
                self.journal(Step::Warm, out);
                if failed {
                    self.end_successor(now, out);
                } else if self.connects() {
                    Self::look(&mut self.connect, Effect::Connect, out);
                }
            }
            Err(detail) => {
                let serving = swap.incumbent.pid;
                swap.trouble = Some(Trouble { reason: Reason::SuccessorExecFailed, detail });
                self.finish(Verdict::Refused, serving, out);
            }
        }
    }

    pub(super) fn probed(&mut self, now: Instant, answer: Probed, out: &mut Out) {
        let wanted = !matches!(self.state, State::Idle);
        if !Self::fresh(&mut self.probe, Effect::Probe, wanted, out) {
            return;
        }
        let who = match answer {
            Probed::Answered { pid } => Some(pid),
            Probed::Own | Probed::Silent => None,
        };
        match &self.state {
            State::Idle => {}
            State::Finding(_) => self.found(now, who, out),
            State::Swap(_) => self.swap_probed(now, who, out),
        }
    }

    pub(super) fn swap_probed(&mut self, now: Instant, who: Option<u32>, out: &mut Out) {
        let Some(swap) = self.swap() else { return };
        let (incumbent, successor) = (swap.incumbent.pid, swap.successor.pid);
        let (gone, answers) = (swap.incumbent.exited, swap.answers());
        match (swap.at, who) {
            (At::Probing, Some(pid)) => {
                swap.incumbent.pid = Some(pid);
                if swap.trouble.is_some() {
                    self.finish(Verdict::Refused, who, out);
                } else {
                    self.step_if_journalled(now, out);
                }
            }
            (At::Probing, None) => {
                let detail = "nobody answers on the control path".to_string();
                self.fail(now, Reason::IncumbentLost, detail, out);
            }
            (At::Asking, Some(pid)) if Some(pid) != successor => {
                self.incumbent_answered(now, out);
            }
            // Silence was the first sign, and this is the second.
            (At::Asking, None) if swap.incumbent.silent => self.promote(now, out),
            // It answered before it ended, or is about to end.
            (At::Promoting | At::Opening, Some(pid)) if Some(pid) == incumbent && !answers => {
                self.recheck_later(now);
            }
            (At::Promoting, Some(pid)) if Some(pid) != successor => self.end_successor(now, out),
            (At::Opening, Some(pid)) => {
                if Some(pid) == successor {
                    self.finish(Verdict::Committed, Some(pid), out);
                } else {
                    self.end_successor(now, out);
                }
            }
            // It was asked before it ended.
            (At::Confirming, Some(pid)) if Some(pid) == incumbent && gone => self.want_probe(out),
            // It answers still, and is about to end.
            (At::Confirming, Some(pid)) if Some(pid) == incumbent && swap.doomed => {
                self.recheck_later(now);
            }
            (At::Committing, Some(pid)) if Some(pid) == successor => {
                self.finish(Verdict::Committed, Some(pid), out);
            }
            (At::Confirming, Some(pid)) => {
                let verdict = match (Some(pid) == incumbent, swap.drained) {
                    (true, true) => Verdict::RolledBack,
                    (true, false) if swap.trouble_is(Reason::DrainFailed) => Verdict::Refused,
                    (true, false) => Verdict::RolledBack,
                    (false, _) => Verdict::Unknown,
                };
                self.finish(verdict, Some(pid), out);
            }
            (At::Confirming, None) if gone => self.finish(Verdict::Unknown, None, out),
            (At::Asking | At::Promoting | At::Opening | At::Committing | At::Confirming, _) => {
                self.recheck_later(now);
            }
            _ => {}
        }
    }

    pub(super) fn lock_checked(&mut self, now: Instant, lock: LockState, out: &mut Out) {
        let wanted = !matches!(self.state, State::Idle);
        let effect = self.lock_question();
        if !Self::fresh(&mut self.check, effect, wanted, out) {
            return;
        }
        match self.at() {
            Some(At::Verifying) => self.verified(now, lock, out),
            Some(At::Promoting) => match lock {
                LockState::Free | LockState::Unknown => self.begin(now, out),
                LockState::Held { .. } => self.recheck_later(now),
                LockState::Stopped { pid } => {
                    let limit = now + self.config.timing.silent;
                    let ending = self.timers.at(Timer::EndGrace).is_some();
                    // It answers nobody until it goes on, whether it would be heard to heartbeat or not.
                    if let Some(swap) = self.swap()
                        && swap.incumbent.pid == Some(pid)
                        && !swap.incumbent.silent
                        && !ending
                    {
                        swap.incumbent.silent = true;
                        self.timers.set(Timer::Hung, limit);
                    }
                    self.recheck_later(now);
                }
            },
            Some(_) => {}
            None => self.found_lock(now, lock, out),
        }
    }
}

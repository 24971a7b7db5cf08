//! A daemon's host and its program.

use std::collections::VecDeque;

use handoff_core::daemon::{
    self, Daemon, DrainReport, Effect, Event, Hook, LockFailure, OsEffect, Readiness, SealFailure,
    SealReport,
};
use handoff_core::{Input, Machine, Message, Output};

use super::process::{Death, Effort};
use super::wire::Way;
use super::{End, Job, Line, Listener, Luck, NOW, Pid, Sabotage, Violation, World};

impl World {
    pub(super) fn tell_daemon(&mut self, pid: Pid, input: daemon::Input, listen: Listener<'_>) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            if self.mishears(pid, &input, listen) {
                continue;
            }
            let forgets =
                self.rules.sabotage == Some(Sabotage::ForgetsRetry) && input == Input::Tick;
            let Some(worker) = self.worker_mut(pid) else {
                return;
            };
            listen(Line::DaemonIn(pid, &input, worker.machine.state_name()));
            let mut outputs = Vec::new();
            worker.machine.handle(NOW, input, &mut outputs);
            if forgets && matches!(worker.machine, Daemon::Incumbent(_)) {
                outputs.retain(|it| *it != Output::Do(Effect::Os(OsEffect::TakeLock)));
            }
            for output in outputs {
                listen(Line::DaemonOut(pid, &output));
                let done = self.daemon_output(pid, output, listen);
                inputs.extend(done.map(Input::Done));
            }
        }
    }

    /// Whether a planted bug keeps this from the machine.
    fn mishears(&mut self, pid: Pid, input: &daemon::Input, listen: Listener<'_>) -> bool {
        let Some(sabotage) = self.rules.sabotage else { return false };
        let holds = self.lock == Some(pid);
        let Some(worker) = self.worker_mut(pid) else { return false };
        let succeeds = matches!(worker.machine, Daemon::Successor(_));
        let exits = match (sabotage, input) {
            (Sabotage::ExitsOnEof, Input::Closed { .. }) => succeeds && holds,
            (Sabotage::GivesUp, Input::Tick) => {
                let tries = worker.machine.state_name() == "taking the lock back";
                worker.tried = if tries { worker.tried + 1 } else { 0 };
                worker.tried == 2
            }
            (Sabotage::ForgetsPath, Input::Done(daemon::Outcome::Claimed(Err(_)))) => {
                return succeeds;
            }
            _ => false,
        };
        if exits {
            self.die(pid, Death::Exited(75), listen);
        }
        exits
    }

    /// Carries out an output; gives the completion of an effect that is done at once.
    pub(super) fn daemon_output(
        &mut self,
        pid: Pid,
        output: daemon::Output,
        listen: Listener<'_>,
    ) -> Option<daemon::Outcome> {
        match output {
            Output::Send { to, message } => {
                let sealed = matches!(message, Message::SealComplete { .. });
                self.reply(pid, to, message, Way::Send);
                if sealed && self.rules.sabotage == Some(Sabotage::SealsTwice) {
                    return self.daemon_effect(pid, Effect::Hook(Hook::Seal), listen);
                }
            }
            Output::Beat { to, ts_ms } => {
                self.reply(pid, to, Message::Heartbeat { ts_ms }, Way::Beat);
            }
            Output::Answer { to, ts_ms } => {
                self.reply(pid, to, Message::Heartbeat { ts_ms }, Way::Answer);
            }
            Output::Do(effect) => return self.daemon_effect(pid, effect, listen),
            Output::Cancel => {
                if let Some(worker) = self.worker_mut(pid) {
                    worker.cancelled = true;
                    if worker.effort != Effort::Hangs {
                        worker.effort = Effort::BRISK;
                    }
                    if worker.jobs.hook().is_none() {
                        self.broke(Violation::CancelledNothing { pid });
                    }
                }
            }
            Output::Close { peer } => {
                if let Some(wire) = self.wire_of(pid, peer) {
                    wire.close(End::Daemon);
                }
                self.strangers.retain(|it| it.daemon != pid || it.conn != peer);
            }
            Output::Event(event) => {
                let worker = self.worker_mut(pid)?;
                match event {
                    Event::HandoffBegun { .. } => worker.ran = [0; 3],
                    Event::Ended(ended) => {
                        worker.ended = Some(ended.exit_code());
                        self.check_end(pid, &ended);
                    }
                    // Strangers are refused for good reason.
                    Event::PeerRefused { conn, .. } if self.is_stranger(pid, conn) => {}
                    Event::PeerRefused { violation, .. } => self.accused(pid, violation),
                    Event::Incumbent
                    | Event::HandoffOff { .. }
                    | Event::Sealed { .. }
                    | Event::Resumed { .. }
                    | Event::HookFailed { .. }
                    | Event::LockRefused(_)
                    | Event::PathFailed(_)
                    | Event::SuccessorNotEnded(_) => {}
                }
            }
        }
        None
    }

    pub(super) fn daemon_effect(
        &mut self,
        pid: Pid,
        effect: Effect,
        listen: Listener<'_>,
    ) -> Option<daemon::Outcome> {
        let job = match effect {
            Effect::Hook(hook) => Job::of_hook(&hook),
            Effect::Os(OsEffect::TakeLock) => Job::TakeLock,
            Effect::Os(OsEffect::ReleaseLock) => Job::ReleaseLock,
            Effect::Os(OsEffect::ClaimPath) => Job::ClaimPath,
            Effect::Os(OsEffect::Probe) => Job::Probe,
            // Its own directory entry: nobody else sees it.
            Effect::Os(OsEffect::StagePath) => return Some(daemon::Outcome::Staged(self.room())),
            Effect::Os(OsEffect::WatchSuccessor { pid: successor }) => {
                if let Some(worker) = self.worker_mut(pid) {
                    worker.successor = Some(successor);
                }
                return Some(daemon::Outcome::Watched(Ok(())));
            }
            Effect::Os(OsEffect::SignalSuccessor(signal)) => {
                let successor = self.worker(pid).and_then(|worker| worker.successor);
                if let Some(successor) = successor {
                    self.signal(successor, signal, listen);
                }
                return Some(daemon::Outcome::Signalled(Ok(())));
            }
        };
        self.check_asked(pid, job);
        let worker = self.worker_mut(pid)?;
        worker.begun |= job == Job::TakeLock;
        if job.is_hook() {
            worker.cancelled = false;
            worker.effort = Effort::BRISK;
        }
        if !worker.jobs.add(job) {
            self.broke(Violation::AskedTwice { pid, job });
        }
        match (self.rules.sabotage, job) {
            (Some(Sabotage::ReleasedWhenAsked), Job::ReleaseLock) => {
                return Some(daemon::Outcome::Released(Ok(())));
            }
            (Some(Sabotage::ReleasedBeforeSeal), Job::Seal) => self.lock = None,
            _ => {}
        }
        None
    }

    pub(super) fn daemon_job(&mut self, pid: Pid, job: Job, luck: Luck) -> Option<daemon::Outcome> {
        let failed = || String::from("bad luck");
        let luck = match job {
            Job::TakeLock | Job::ClaimPath if self.full => Luck::Bad,
            _ => luck,
        };
        Some(match (job, luck) {
            (Job::TakeLock, Luck::Bad) => {
                daemon::Outcome::Lock(Err(LockFailure::Shortage(failed())))
            }
            (Job::TakeLock, Luck::Good) => daemon::Outcome::Lock(match self.lock {
                Some(holder) if self.rules.sabotage == Some(Sabotage::LockedRegardless) => {
                    debug_assert_ne!(holder, pid);
                    Ok(())
                }
                Some(holder) => {
                    if holder == pid {
                        self.broke(Violation::AskedTwice { pid, job });
                    }
                    Err(LockFailure::Held { holder: Some(holder) })
                }
                None => {
                    self.lock = Some(pid);
                    Ok(())
                }
            }),
            (Job::ReleaseLock, _) => {
                if self.lock == Some(pid) {
                    self.lock = None;
                // Who was told so lets go of it in good faith.
                } else if self.rules.sabotage != Some(Sabotage::LockedRegardless) {
                    self.broke(Violation::ReleasedUnheld { pid });
                }
                daemon::Outcome::Released(Ok(()))
            }
            (Job::ClaimPath, Luck::Bad) => daemon::Outcome::Claimed(Err(failed())),
            (Job::ClaimPath, Luck::Good) => {
                if self.lock != Some(pid) {
                    self.broke(Violation::ClaimedUnheld { pid });
                }
                self.path = Some(pid);
                self.path_changes();
                daemon::Outcome::Claimed(Ok(()))
            }
            (Job::Probe, _) => daemon::Outcome::Probed(self.probe(pid)),
            (job, luck) => {
                let worker = self.worker_mut(pid)?;
                match (job, luck) {
                    (Job::Open, Luck::Bad) => {
                        worker.fails = true;
                        daemon::Outcome::Opened(Err(failed()))
                    }
                    (Job::Open, Luck::Good | Luck::Unhealthy) => {
                        worker.open = true;
                        worker.accepting = true;
                        worker.healthy = luck == Luck::Good;
                        daemon::Outcome::Opened(Ok(Readiness {
                            listening_on: Vec::new(),
                            healthz_ok: worker.healthy,
                            revisions: vec![1],
                        }))
                    }
                    (Job::Drain, luck) => {
                        worker.accepting = false;
                        let report = DrainReport { open_conns_remaining: 0, accept_closed: true };
                        let good = luck == Luck::Good;
                        daemon::Outcome::Drained(good.then_some(report).ok_or_else(failed))
                    }
                    (Job::Seal, Luck::Bad) => daemon::Outcome::Sealed(Err(SealFailure {
                        error: failed(),
                        partial_state: String::new(),
                    })),
                    (Job::Seal, Luck::Good) => {
                        worker.open = false;
                        daemon::Outcome::Sealed(Ok(SealReport {
                            revisions: vec![1],
                            fingerprint: [0; 32],
                        }))
                    }
                    (Job::Resume, _) => {
                        worker.open = true;
                        worker.accepting = true;
                        daemon::Outcome::Resumed(Ok(()))
                    }
                    _ => return None,
                }
            }
        })
    }
}

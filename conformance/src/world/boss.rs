//! The supervisor's host.

use std::collections::VecDeque;

use handoff_core::daemon::{self, ConnId, Daemon, Signal};
use handoff_core::supervisor::{self, LockState, Peer, Supervisor};
use handoff_core::{Input, Machine, Message, Output};

use super::process::{Slot, Worker};
use super::wire::{Way, Wire};
use super::{
    End, Job, Line, Listener, Luck, NOW, PROCESSES, Pid, SUPERVISOR, Sabotage, UID, Violation,
    World, cred, pace,
};

/// A supervisor that was just started.
pub(super) fn supervisor(sabotage: Option<Sabotage>) -> Supervisor {
    let mut config = supervisor::Config::new(UID);
    config.timing = pace::SUPERVISOR;
    config.promote = sabotage != Some(Sabotage::NeverPromotes);
    Supervisor::new(config)
}

impl World {
    pub(super) fn tell_supervisor(&mut self, input: supervisor::Input, listen: Listener<'_>) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(boss) = &mut self.boss else { return };
            listen(Line::SupervisorIn(&input, boss.machine.state_name()));
            let mut outputs = Vec::new();
            boss.machine.handle(NOW, input, &mut outputs);
            self.check_unknown(&outputs);
            for output in outputs {
                listen(Line::SupervisorOut(&output));
                let done = self.supervisor_output(output, listen);
                inputs.extend(done.map(Input::Done));
            }
        }
    }

    /// Carries out an output; gives the completion of an effect that is done at once.
    pub(super) fn supervisor_output(
        &mut self,
        output: supervisor::Output,
        listen: Listener<'_>,
    ) -> Option<supervisor::Outcome> {
        match output {
            Output::Send { to, message } => self.say(to, message, Way::Send),
            Output::Beat { to, ts_ms } => {
                let asks = self.rules.sabotage != Some(Sabotage::AsksOnce);
                let ts_ms = if asks { ts_ms } else { 0 };
                self.say(to, Message::Heartbeat { ts_ms }, Way::Beat);
            }
            Output::Answer { to, ts_ms } => {
                self.say(to, Message::Heartbeat { ts_ms }, Way::Answer);
            }
            Output::Do(effect) => {
                let job = match effect {
                    supervisor::Effect::Probe => Job::Probe,
                    supervisor::Effect::Spawn { successor } => Job::Spawn { successor },
                    supervisor::Effect::Connect => Job::Connect,
                    supervisor::Effect::CheckLock { .. } => Job::CheckLock,
                    supervisor::Effect::Reap { pid } => Job::Reap(pid),
                    supervisor::Effect::Journal(_) => Job::Journal,
                    supervisor::Effect::Signal { pid, signal } => {
                        if let Some(boss) = &mut self.boss
                            && signal == Signal::Term
                        {
                            boss.ended.push(pid);
                        }
                        self.signal(pid, signal, listen);
                        return Some(supervisor::Outcome::Signalled(Ok(())));
                    }
                };
                let dull = !self.rules.slow_journal && !self.rules.journal_failures;
                if job == Job::Journal && dull {
                    let written = self.room();
                    return Some(supervisor::Outcome::Journalled(written));
                }
                if let Job::Reap(pid) = job
                    && self.rules.sabotage == Some(Sabotage::ReapedWhenAsked)
                {
                    return Some(supervisor::Outcome::Reaped { pid });
                }
                if !self.boss.as_mut()?.jobs.add(job) {
                    let pid = SUPERVISOR;
                    self.broke(Violation::AskedTwice { pid, job });
                }
            }
            Output::Cancel => {}
            Output::Close { peer } => {
                let open = |wire: &&mut Wire| wire.peer == peer && wire.supervisor_open;
                if let Some(wire) = self.wires.iter_mut().find(open) {
                    wire.close(End::Supervisor);
                }
            }
            Output::Event(event) => self.supervisor_event(event),
        }
        None
    }

    pub(super) fn supervisor_event(&mut self, event: supervisor::Event) {
        match event {
            supervisor::Event::Finished(report) => {
                // The host watches whom it leaves to serve; one that is gone is told of at once.
                if let (Some(boss), Some(pid)) = (&mut self.boss, report.serving) {
                    boss.watch(pid);
                }
                self.known_to_serve(|_| report.serving);
                self.check_report(&report);
                self.report = Some((report, self.rules.faults));
            }
            supervisor::Event::NobodyServes(_) => self.known_to_serve(|_| None),
            supervisor::Event::Serving { pid, .. } => {
                // The host watches whom it adopts.
                if let Some(boss) = &mut self.boss {
                    boss.watch(pid);
                }
                self.known_to_serve(|_| Some(pid));
            }
            supervisor::Event::PeerRefused { violation, .. } => {
                self.accused(SUPERVISOR, violation);
            }
            supervisor::Event::Phase(_)
            | supervisor::Event::SealProgress { .. }
            | supervisor::Event::Drained { .. }
            | supervisor::Event::JournalFailed(_)
            | supervisor::Event::Busy
            | supervisor::Event::Waiting { .. } => {}
        }
    }

    /// What the supervisor's program knows of who serves has changed: it looks again where nobody does.
    pub(super) fn known_to_serve(&mut self, change: impl FnOnce(Option<Pid>) -> Option<Pid>) {
        let revives = self.rules.revives;
        if let Some(boss) = &mut self.boss {
            let known = change(boss.serving);
            boss.to_start |= revives && known.is_none() && boss.machine.idle();
            boss.serving = known;
        }
    }

    pub(super) fn supervisor_job(
        &mut self,
        job: Job,
        luck: Luck,
        listen: Listener<'_>,
    ) -> Option<supervisor::Outcome> {
        let failed = || String::from("bad luck");
        Some(match (job, luck) {
            (Job::Journal, Luck::Bad) => supervisor::Outcome::Journalled(Err(failed())),
            (Job::Journal, Luck::Good) => supervisor::Outcome::Journalled(self.room()),
            (Job::Probe, _) => supervisor::Outcome::Probed(self.probe(SUPERVISOR)),
            (Job::CheckLock, _) => supervisor::Outcome::LockChecked(match self.lock {
                Some(pid) if self.is_stopped(pid) => LockState::Stopped { pid },
                Some(pid) => LockState::Held { pid: Some(pid) },
                None => LockState::Free,
            }),
            (Job::Reap(pid), _) => supervisor::Outcome::Reaped { pid },
            (Job::Spawn { .. }, Luck::Bad) => supervisor::Outcome::Spawned(Err(failed())),
            (Job::Spawn { successor }, Luck::Good) => match self.spawn(successor) {
                Some(pid) => {
                    let done = Input::Done(supervisor::Outcome::Spawned(Ok(pid)));
                    self.tell_supervisor(done, listen);
                    if successor {
                        self.inherit(pid, listen);
                    }
                    return None;
                }
                None => supervisor::Outcome::Spawned(Err(failed())),
            },
            (Job::Connect, _) => supervisor::Outcome::Connected(match self.path {
                Some(pid) => {
                    self.connect(pid, Peer::Incumbent);
                    let opened = Input::Opened { peer: Peer::Incumbent, cred: cred(pid) };
                    self.tell_supervisor(opened, listen);
                    Ok(())
                }
                None => Err(failed()),
            }),
            _ => return None,
        })
    }

    pub(super) fn spawn(&mut self, successor: bool) -> Option<Pid> {
        if self.daemons.len() >= PROCESSES {
            if self.rules.long {
                self.forget();
            }
            if self.daemons.len() >= PROCESSES {
                return None;
            }
        }
        let pid = SUPERVISOR + 1 + self.forgotten + u32::try_from(self.daemons.len()).ok()?;
        let mut config = daemon::Config::new(pid, UID);
        config.timing = pace::DAEMON;
        let machine =
            if successor { Daemon::successor(config, true) } else { Daemon::cold(config) };
        self.daemons.push((pid, Slot::Alive(Worker::new(machine))));
        if let Some(boss) = &mut self.boss {
            boss.watch(pid);
            boss.successor = successor.then_some(pid).or(boss.successor);
        }
        Some(pid)
    }

    /// Whoever is dead and neither watched nor reported to serve is spoken of no more.
    pub(super) fn forget(&mut self) {
        let boss = self.boss.as_ref();
        let reported = self.report.as_ref().and_then(|(report, _)| report.serving);
        let before = self.daemons.len();
        self.daemons.retain(|(pid, slot)| {
            matches!(slot, Slot::Alive(_))
                || reported == Some(*pid)
                || boss.is_some_and(|boss| boss.watched.contains(pid))
        });
        let gone = before - self.daemons.len();
        self.forgotten += u32::try_from(gone).unwrap_or_default();
    }

    /// Whether the disk takes anything now.
    pub(super) fn room(&self) -> Result<(), String> {
        if self.full { Err(String::from("no space left on device")) } else { Ok(()) }
    }

    /// A successor finds the connection it inherits.
    pub(super) fn inherit(&mut self, pid: Pid, listen: Listener<'_>) {
        self.connect(pid, Peer::Successor);
        if let Some(wire) = self.wires.last_mut() {
            wire.conn = Some(ConnId::SUPERVISOR);
        }
        let opened = Input::Opened { peer: Peer::Successor, cred: cred(pid) };
        self.tell_supervisor(opened, listen);
        let opened = Input::Opened { peer: ConnId::SUPERVISOR, cred: cred(SUPERVISOR) };
        self.tell_daemon(pid, opened, listen);
    }
}

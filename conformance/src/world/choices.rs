//! What can happen next.

use std::time::Duration;

use handoff_core::daemon::ConnId;
use handoff_core::{Instant, Machine};

use super::process::{Boss, Effort, Slot, Worker};
use super::wire::Wire;
use super::{
    Choice, End, Guise, Job, Kind, Luck, NOW, Pid, SUPERVISOR, Sabotage, Status, World, pace,
};

/// After how many bytes a read may end: inside a frame's length, behind it, behind the version, and
/// anywhere in what follows.
const CUTS: [u16; 4] = [1, 4, 7, 40];

impl World {
    /// Everything that can happen next, in an order that depends on the state alone.
    #[must_use]
    pub fn choices(&self) -> Vec<Choice> {
        let mut choices = self.work();
        self.will_into(&mut choices);
        self.unusual_into(&mut choices);
        choices
    }

    /// Appends what nobody has to do and nothing has to happen for: faults, and strangers.
    pub(crate) fn unusual_into(&self, choices: &mut Vec<Choice>) {
        if self.rules.strangers > 0 && self.may_come() {
            choices.extend(Guise::ALL.map(Choice::Stranger));
        }
        if self.rules.faults > 0 {
            self.faults(choices);
        }
    }

    /// Why a choice is there.
    #[must_use]
    pub fn kind(&self, choice: Choice) -> Kind {
        match choice {
            Choice::Perform(_, _, Luck::Bad) | Choice::Complete(_, _, Luck::Unhealthy) => {
                Kind::Fault
            }
            // A hook that was told to give up may say that it did.
            Choice::Complete(pid, job, Luck::Bad) => {
                if job.is_hook() && self.worker(pid).is_some_and(|worker| worker.cancelled) {
                    Kind::Work
                } else {
                    Kind::Fault
                }
            }
            Choice::Deliver { .. }
            | Choice::Chunk { .. }
            | Choice::Exited(_)
            | Choice::Perform(..)
            | Choice::Complete(..)
            | Choice::Warm(_)
            | Choice::Exit(_)
            | Choice::Terminate(_)
            | Choice::Tick(_)
            | Choice::Start
            | Choice::Restart
            | Choice::Room
            | Choice::Speak(_)
            | Choice::Notice(_)
            | Choice::Advance => Kind::Work,
            // Strangers are nobody's fault, and excuse nothing.
            Choice::Handoff | Choice::Continue(_) | Choice::Stranger(_) => Kind::Will,
            Choice::Abort
            | Choice::Dawdle(_)
            | Choice::Hang(_)
            | Choice::Crash(_)
            | Choice::Stop(_)
            | Choice::Fill
            | Choice::Jump(_)
            | Choice::Unlink
            | Choice::Break { .. } => Kind::Fault,
        }
    }

    /// What has to be done sooner or later. Nothing: the system is at rest.
    #[must_use]
    pub fn work(&self) -> Vec<Choice> {
        let mut work = Vec::new();
        self.work_into(&mut work);
        work
    }

    /// Appends the same.
    pub(crate) fn work_into(&self, fast: &mut Vec<Choice>) {
        let before = fast.len();
        let mut slow = Vec::new();
        for (wire, it) in self.wires.iter().enumerate() {
            for to in [End::Supervisor, End::Daemon] {
                if self.deliverable(it, to) {
                    fast.push(Choice::Deliver { wire, to });
                    if self.rules.bytes && it.has_bytes(to) {
                        let chunk = |bytes| Choice::Chunk { wire, to, bytes };
                        fast.extend(CUTS.map(chunk));
                    }
                }
            }
        }
        if let Some(boss) = self.boss.as_ref().filter(|it| it.status == Status::Running) {
            let gone = |&&pid: &&Pid| self.worker(pid).is_none();
            fast.extend(boss.watched.iter().filter(gone).copied().map(Choice::Exited));
            for (job, done) in boss.jobs.iter() {
                let complete = Choice::Complete(SUPERVISOR, job, Luck::Good);
                match job {
                    Job::Reap(pid) if self.worker(pid).is_some() => {}
                    Job::Journal if boss.effort != Effort::Within(0) => slow.push(complete),
                    Job::Probe | Job::CheckLock if self.rules.late && !done => {
                        fast.push(Choice::Perform(SUPERVISOR, job, Luck::Good));
                    }
                    _ => fast.push(complete),
                }
            }
            if boss.to_start && boss.machine.idle() {
                fast.push(Choice::Start);
            }
        }
        if self.boss.is_none() && self.rules.restarts {
            slow.push(Choice::Restart);
        }
        if self.full {
            slow.push(Choice::Room);
        }
        slow.extend(self.speakers().map(Choice::Speak));
        for (pid, worker) in self.workers() {
            if worker.status == Status::Running {
                self.work_of(pid, worker, fast, &mut slow);
            }
        }
        let overdue: Vec<Pid> = self
            .deadlines()
            .filter(|&(_, status, at)| status == Status::Running && at <= NOW)
            .map(|(pid, ..)| pid)
            .filter(|&pid| !fast.iter().any(|&choice| self.handler(choice) == Some(pid)))
            .collect();
        fast.extend(overdue.into_iter().map(Choice::Tick));
        let still = fast.len() == before;
        fast.append(&mut slow);
        if still && self.gap().is_some() {
            fast.push(Choice::Advance);
        }
    }

    pub(super) fn work_of(
        &self,
        pid: Pid,
        worker: &Worker,
        fast: &mut Vec<Choice>,
        slow: &mut Vec<Choice>,
    ) {
        if worker.term {
            fast.push(Choice::Terminate(pid));
        }
        if let Some(code) = worker.ended {
            let exit = Choice::Exit(pid);
            if code == 0 && self.rules.linger {
                slow.push(exit);
            } else {
                fast.push(exit);
            }
            return;
        }
        if worker.path_changed && worker.machine.answers() {
            fast.push(Choice::Notice(pid));
        }
        let program = match worker.effort {
            Effort::Within(0) => Some(&mut *fast),
            Effort::Within(_) | Effort::Dawdles => Some(&mut *slow),
            Effort::Hangs => None,
        };
        if let Some(queue) = program {
            if !worker.warm {
                queue.push(Choice::Warm(pid));
            }
            if let Some(hook) = worker.jobs.hook() {
                queue.push(Choice::Complete(pid, hook, Luck::Good));
                if worker.cancelled {
                    queue.push(Choice::Complete(pid, hook, Luck::Bad));
                }
            }
        }
        for (job, done) in worker.jobs.iter() {
            let complete = Choice::Complete(pid, job, Luck::Good);
            if job.is_hook() {
                continue;
            }
            if self.rules.late && !done {
                fast.push(Choice::Perform(pid, job, Luck::Good));
            } else {
                fast.push(complete);
            }
        }
    }

    /// Appends what somebody may want.
    pub(crate) fn will_into(&self, choices: &mut Vec<Choice>) {
        match &self.boss {
            Some(boss)
                if boss.status == Status::Running
                    && boss.machine.idle()
                    && !boss.to_start
                    && !self.is_hasty()
                    && self.handoffs < self.rules.handoffs =>
            {
                choices.push(Choice::Handoff);
            }
            _ => {}
        }
        for (pid, status) in self.statuses() {
            if status == Status::Stopped {
                choices.push(Choice::Continue(pid));
            }
        }
    }

    /// Whether an effect of the operating system is in flight. It takes no time, and a handoff does:
    /// none begins and ends meanwhile.
    pub(super) fn is_hasty(&self) -> bool {
        self.workers().any(|(_, worker)| {
            let in_flight = worker.jobs.iter().any(|(job, _)| !job.is_hook());
            worker.status == Status::Running && in_flight
        })
    }

    pub(super) fn faults(&self, choices: &mut Vec<Choice>) {
        let rules = self.rules;
        for (pid, status) in self.statuses() {
            if rules.crashes {
                choices.push(Choice::Crash(pid));
            }
            if rules.stops && status == Status::Running {
                choices.push(Choice::Stop(pid));
            }
        }
        if rules.disk && !self.full {
            choices.push(Choice::Fill);
        }
        if rules.unlinks && self.path.is_some() {
            choices.push(Choice::Unlink);
        }
        if rules.jumps {
            let awake =
                self.deadlines().filter(|&(_, status, at)| status == Status::Running && at > NOW);
            choices.extend(awake.map(|(pid, ..)| Choice::Jump(pid)));
        }
        for (wire, it) in self.wires.iter().enumerate() {
            if rules.breaks && it.supervisor_open && it.daemon_open && !it.broken {
                choices.push(Choice::Break { wire });
            }
        }
        if let Some(boss) = self.boss.as_ref().filter(|it| it.status == Status::Running) {
            if rules.hangs && boss.journals() && matches!(boss.effort, Effort::Within(_)) {
                choices.push(Choice::Dawdle(SUPERVISOR));
            }
            if rules.aborts && !boss.machine.idle() {
                choices.push(Choice::Abort);
            }
            for (job, done) in boss.jobs.iter() {
                let fails = match job {
                    Job::Journal => rules.journal_failures,
                    Job::Spawn { .. } => rules.spawn_failures,
                    _ => false,
                };
                if fails && !done {
                    choices.push(Choice::Complete(SUPERVISOR, job, Luck::Bad));
                }
            }
        }
        for (pid, worker) in self.workers() {
            if worker.status != Status::Running || worker.ended.is_some() {
                continue;
            }
            let hook = worker.jobs.hook();
            let busy = !worker.warm || hook.is_some_and(|hook| hook != Job::Resume);
            if rules.hangs && busy && matches!(worker.effort, Effort::Within(_)) {
                choices.extend([Choice::Dawdle(pid), Choice::Hang(pid)]);
            }
            for (job, done) in worker.jobs.iter() {
                match job {
                    Job::Open | Job::Drain | Job::Seal
                        if rules.hook_failures
                            && !worker.cancelled
                            && worker.effort != Effort::Hangs =>
                    {
                        choices.push(Choice::Complete(pid, job, Luck::Bad));
                        if job == Job::Open && self.is_led(pid) {
                            choices.push(Choice::Complete(pid, job, Luck::Unhealthy));
                        }
                    }
                    Job::TakeLock | Job::ClaimPath if rules.shortages && !done => {
                        choices.push(if rules.late {
                            Choice::Perform(pid, job, Luck::Bad)
                        } else {
                            Choice::Complete(pid, job, Luck::Bad)
                        });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Whether this process is a successor with somebody to tell how it is.
    fn is_led(&self, pid: Pid) -> bool {
        self.wires.iter().any(|wire| {
            wire.daemon == pid && wire.conn == Some(ConnId::SUPERVISOR) && wire.supervisor_open
        })
    }

    /// Which process an item of fast work is handled by.
    pub(super) fn handler(&self, choice: Choice) -> Option<Pid> {
        match choice {
            Choice::Deliver { to: End::Supervisor, .. }
            | Choice::Chunk { to: End::Supervisor, .. }
            | Choice::Exited(_) => Some(SUPERVISOR),
            Choice::Deliver { wire, .. } | Choice::Chunk { wire, .. } => {
                self.wires.get(wire).map(|it| it.daemon)
            }
            Choice::Terminate(pid) | Choice::Exit(pid) | Choice::Notice(pid) => Some(pid),
            // The operating system's effects take no time.
            Choice::Complete(pid, job, _) | Choice::Perform(pid, job, _) if !job.is_hook() => {
                Some(pid)
            }
            _ => None,
        }
    }

    pub(super) fn deliverable(&self, wire: &Wire, to: End) -> bool {
        match to {
            End::Supervisor => {
                let runs = self.boss.as_ref().is_some_and(|it| it.status == Status::Running);
                runs && wire.supervisor_open
                    && (!wire.to_supervisor.is_empty() || !wire.daemon_open || wire.broken)
            }
            End::Daemon => self.worker(wire.daemon).is_some_and(|worker| {
                worker.status == Status::Running
                    && worker.ended.is_none()
                    && wire.daemon_open
                    && !self.reads_nothing(wire, worker)
                    && if wire.conn.is_none() {
                        worker.machine.answers()
                    } else {
                        !wire.to_daemon.is_empty() || !wire.supervisor_open || wire.broken
                    }
            }),
        }
    }

    /// How far time can pass at once.
    pub(super) fn gap(&self) -> Option<Duration> {
        let mut gap: Option<Duration> = None;
        let mut bounded = false;
        for (_, status, at) in self.deadlines() {
            let after = at.saturating_since(NOW);
            match status {
                Status::Running => gap = Some(gap.map_or(after, |gap| gap.min(after))),
                Status::Stopped => bounded |= at > NOW,
            }
        }
        let busy = |worker: &Worker| !worker.warm || worker.jobs.hook().is_some();
        let journals = self.boss.as_ref().is_some_and(Boss::journals);
        if gap.is_some() && (journals || self.workers().any(|(_, worker)| busy(worker))) {
            bounded = true;
        }
        if bounded {
            gap = Some(gap.map_or(pace::UNIT, |gap| gap.min(pace::UNIT)));
        }
        gap
    }

    pub(super) fn deadlines(&self) -> impl Iterator<Item = (Pid, Status, Instant)> + '_ {
        let sabotage = self.rules.sabotage;
        let boss = self.boss.iter().filter_map(move |boss| {
            let deadline = boss.machine.deadline()?;
            let forgotten = match sabotage {
                Some(Sabotage::TimelessSupervisor) => true,
                // Nor is its heartbeat due then, with which it would see what else is.
                Some(Sabotage::ForgetsHello) => {
                    boss.machine.state_name() == "awaiting the successor's Hello"
                }
                _ => false,
            };
            (!forgotten).then_some((SUPERVISOR, boss.status, deadline.at))
        });
        let workers = self.workers().filter(move |_| sabotage != Some(Sabotage::TimelessDaemons));
        boss.chain(workers.filter_map(|(pid, worker)| {
            let deadline = worker.machine.deadline()?;
            Some((pid, worker.status, deadline.at))
        }))
    }

    pub(super) fn statuses(&self) -> impl Iterator<Item = (Pid, Status)> + '_ {
        let boss = self.boss.iter().map(|boss| (SUPERVISOR, boss.status));
        boss.chain(self.workers().map(|(pid, worker)| (pid, worker.status)))
    }

    pub(super) fn is_stopped(&self, pid: Pid) -> bool {
        self.worker(pid).is_some_and(|worker| worker.status == Status::Stopped)
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = (Pid, &Worker)> + '_ {
        self.daemons.iter().filter_map(|(pid, slot)| match slot {
            Slot::Alive(worker) => Some((*pid, worker)),
            Slot::Dead(_) => None,
        })
    }

    pub(super) fn slot(&self, pid: Pid) -> Option<&Slot> {
        self.daemons.iter().find(|(it, _)| *it == pid).map(|(_, slot)| slot)
    }

    pub(super) fn slot_mut(&mut self, pid: Pid) -> Option<&mut Slot> {
        self.daemons.iter_mut().find(|(it, _)| *it == pid).map(|(_, slot)| slot)
    }

    pub(super) fn worker(&self, pid: Pid) -> Option<&Worker> {
        match self.slot(pid)? {
            Slot::Alive(worker) => Some(worker),
            Slot::Dead(_) => None,
        }
    }

    pub(super) fn worker_mut(&mut self, pid: Pid) -> Option<&mut Worker> {
        match self.slot_mut(pid)? {
            Slot::Alive(worker) => Some(worker),
            Slot::Dead(_) => None,
        }
    }
}

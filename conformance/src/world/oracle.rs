//! What is never right: the invariants I1 to I6, and what PROTOCOL.md says of hooks and time.

use std::fmt;

use handoff_core::daemon::Ended;
use handoff_core::supervisor::{self, Event, Report, Verdict};
use handoff_core::{Machine, Output};

use super::process::{Death, Effort, Job, Pid, SUPERVISOR, Status, Worker};
use super::wire::Wire;
use super::{LastDeath, World};

/// How many heartbeats wait on a connection for one that does not read, at most (T4): one that nothing
/// was before when it was queued, one answer to such a one, and the two questions of a handoff or the
/// answers to them. What is no heartbeat is said once in a handoff, so this bounds all of it.
const HEARTBEATS: usize = 4;

/// How a run went wrong.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Violation {
    /// I2: its data is open, or a hook of it runs, and it does not hold the lock.
    NoLock {
        /// Which process.
        pid: Pid,
    },
    /// A lock was released by a process that does not hold it.
    ReleasedUnheld {
        /// Which process.
        pid: Pid,
    },
    /// R11: the control path was made to lead to a process that does not hold the lock.
    ClaimedUnheld {
        /// Which process.
        pid: Pid,
    },
    /// A second effect of a kind was asked for, or the lock by its holder.
    AskedTwice {
        /// Which process.
        pid: Pid,
        /// Which effect.
        job: Job,
    },
    /// R7: two hooks at once.
    HooksAtOnce {
        /// Which process.
        pid: Pid,
        /// The second one.
        job: Job,
    },
    /// R7: a hook ran twice for one handoff.
    HookTwice {
        /// Which process.
        pid: Pid,
        /// The hook.
        job: Job,
    },
    /// A hook was told to give up, and none ran.
    CancelledNothing {
        /// Which process.
        pid: Pid,
    },
    /// After a tick at its deadline the deadline is still due.
    DeadlineStands {
        /// Which process.
        pid: Pid,
    },
    /// A process of this project accuses another of breaking the protocol.
    Accused {
        /// Who.
        by: Pid,
        /// Of what.
        of: handoff_core::Violation,
    },
    /// A committed incumbent was never asked to release, or another holds nothing.
    EndedWithData {
        /// Which process.
        pid: Pid,
    },
    /// T4: more heartbeats wait for a process than one that does not read may cost.
    Unread {
        /// Who is to read them.
        pid: Pid,
    },
    /// I5: at rest, and the one that serves is not fit to, though nothing else went wrong.
    Unhealthy {
        /// Which process.
        pid: Pid,
    },
    /// I5: at rest, and nobody serves, or more than one process is left.
    AtRest {
        /// Who lives.
        alive: Vec<Pid>,
        /// Who serves.
        serving: Option<Pid>,
    },
    /// At rest, nobody lives, and the last one was not killed by a fault.
    NobodyLeft {
        /// The last one.
        last: Pid,
        /// Why it is no more.
        death: Death,
    },
    /// I6: at rest, and a supervisor is busy or something is in flight.
    Trace,
    /// R4, I6: a handoff is reported undone, and its successor lives. Rolled back: its incumbent was
    /// told to resume before that.
    LeftBehind {
        /// The successor.
        pid: Pid,
        /// What was reported.
        verdict: Verdict,
    },
    /// The report says that one serves which does not.
    Untrue {
        /// What was reported.
        verdict: Verdict,
        /// Who was to serve.
        reported: Option<Pid>,
        /// Who does.
        serving: Option<Pid>,
    },
    /// A handoff that nothing has disturbed is not committed.
    Undone {
        /// What was reported.
        verdict: Verdict,
    },
    /// R17: the report says that one serves which its supervisor has signalled to end.
    ToldToEnd {
        /// Which process.
        pid: Pid,
    },
    /// R4: the report says that nothing is proven, and the incumbent, which is asked on a connection
    /// that stands, serves and has nothing left to read or to say.
    Overlooked {
        /// The incumbent.
        pid: Pid,
    },
    /// I6: the next handoff, undisturbed, is not committed.
    NextFails {
        /// What became of it.
        verdict: Option<Verdict>,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl World {
    pub(super) fn broke(&mut self, violation: Violation) {
        self.broken.get_or_insert(violation);
    }

    /// A peer was turned away. Only silence is nobody's fault, and a handoff of a supervisor that is
    /// gone may still be active for a moment (C5).
    pub(super) fn accused(&mut self, by: Pid, of: handoff_core::Violation) {
        match of {
            handoff_core::Violation::Silent { .. } | handoff_core::Violation::Busy { .. } => {}
            // A supervisor that was stopped or slow, or that mistakes a successor which serves already for the
            // incumbent, may ask for the next step of what is over, and is told so by the end of the
            // connection (C2, R7).
            handoff_core::Violation::Unexpected { message: "SealRequest" | "Commit", .. }
                if by != SUPERVISOR && (self.spent > 1 || (self.pauses() && self.spent > 0)) => {}
            of => self.broke(Violation::Accused { by, of }),
        }
    }

    /// Whether the supervisor may sleep, or wait for its journal, while a daemon's deadline passes.
    fn pauses(&self) -> bool {
        self.rules.stops || self.rules.jumps || self.rules.hangs
    }

    pub(super) fn check_asked(&mut self, pid: Pid, job: Job) {
        if !job.is_hook() {
            return;
        }
        let Some(worker) = self.worker_mut(pid) else {
            return;
        };
        let count = match job {
            Job::Drain => Some(&mut worker.ran[0]),
            Job::Seal => Some(&mut worker.ran[1]),
            Job::Resume => Some(&mut worker.ran[2]),
            _ => None,
        };
        let twice = count.is_some_and(|count| {
            *count += 1;
            *count > 1
        });
        let busy = worker.jobs.hook().is_some();
        if twice {
            self.broke(Violation::HookTwice { pid, job });
        }
        if busy {
            self.broke(Violation::HooksAtOnce { pid, job });
        }
    }

    /// The successor of a handoff that is undone is no more (R4), and who is said to serve does.
    pub(super) fn check_report(&mut self, report: &Report) {
        let (verdict, reported) = (report.verdict, report.serving);
        // An incumbent that was held up in the first may be in the way of the third.
        if self.spent == 0 && self.handoffs <= 2 && verdict != Verdict::Committed {
            self.broke(Violation::Undone { verdict });
        }
        let undone = matches!(verdict, Verdict::RolledBack | Verdict::Refused);
        let successor = self.boss.as_ref().and_then(|boss| boss.successor);
        let left = successor.filter(|&pid| self.worker(pid).is_some());
        if let Some(pid) = left.filter(|_| undone && report.stuck.is_none()) {
            self.broke(Violation::LeftBehind { pid, verdict });
        }
        let seen = matches!(verdict, Verdict::RolledBack | Verdict::Committed);
        let Some(pid) = reported.filter(|_| seen) else { return };
        if self.boss.as_ref().is_some_and(|boss| boss.ended.contains(&pid)) {
            self.broke(Violation::ToldToEnd { pid });
        }
        if !self.has_changed(pid) && !self.has_data(pid) {
            let serving = self.serving();
            self.broke(Violation::Untrue { verdict, reported, serving });
        }
    }

    /// Nothing is proven only where the incumbent could not prove it (R4). To be called before any of
    /// these outputs is carried out: the connections are closed with the report.
    pub(super) fn check_unknown(&mut self, outputs: &[supervisor::Output]) {
        let report = outputs.iter().find_map(|output| match output {
            Output::Event(Event::Finished(report)) => Some(report),
            _ => None,
        });
        if report.is_none_or(|report| report.verdict != Verdict::Unknown) {
            return;
        }
        let answered = |wire: &&Wire| {
            let pid = wire.daemon;
            let steady = !self.is_legacy(pid, wire.conn);
            let stays = self.worker(pid).is_some_and(|worker| !worker.term);
            wire.asks_incumbent() && steady && stays && self.has_resumed(pid)
        };
        if let Some(pid) = self.wires.iter().find(answered).map(|wire| wire.daemon) {
            self.broke(Violation::Overlooked { pid });
        }
    }

    /// Whether this process may have stopped to serve since it was seen: it was stopped or is about to
    /// end, or it is to read a Prepare that was sent before, which it will make good; or what was seen
    /// is told late.
    fn has_changed(&self, pid: Pid) -> bool {
        let ends = self.worker(pid).is_none_or(|worker| {
            worker.status == Status::Stopped || worker.term || worker.ended.is_some()
        });
        let reads = self.wires.iter().any(|wire| wire.daemon == pid && !wire.to_daemon.is_empty());
        ends || reads || self.rules.late
    }

    pub(super) fn check_end(&mut self, pid: Pid, ended: &Ended) {
        let Some(worker) = self.worker(pid) else {
            return;
        };
        let left = worker.open || worker.jobs.hook().is_some();
        if left && matches!(ended, Ended::Committed { .. }) {
            self.broke(Violation::EndedWithData { pid });
        }
    }

    pub(super) fn check_step(&mut self) {
        let unlocked = |&(pid, worker): &(Pid, &Worker)| {
            (worker.open || worker.jobs.hook().is_some()) && self.lock != Some(pid)
        };
        let found = self.workers().find(unlocked).map(|(pid, _)| pid);
        if let Some(pid) = found {
            self.broke(Violation::NoLock { pid });
        }
        if let Some(pid) = self.wires.iter().find_map(|wire| wire.flooded(HEARTBEATS)) {
            self.broke(Violation::Unread { pid });
        }
    }

    /// What is wrong with this state.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        self.wrong(self.broken.is_none() && self.work().is_empty(), true)
    }

    /// The same for who knows whether anything is left to do; whether the next handoff would be
    /// committed is only looked at where that is asked for.
    pub(crate) fn wrong(&self, rests: bool, next: bool) -> Option<Violation> {
        self.broken.clone().or_else(|| if rests { self.at_rest(next) } else { None })
    }

    /// Whether this process accepts, and its data is open under the lock.
    fn has_data(&self, pid: Pid) -> bool {
        self.worker(pid).is_some_and(|worker| worker.accepting && worker.open)
            && self.lock == Some(pid)
    }

    /// Whether this process runs, has its data, and says that it does.
    fn has_resumed(&self, pid: Pid) -> bool {
        self.has_data(pid) && self.says_hello(pid)
    }

    /// Whether this process serves: it accepts, its data is open under the lock, and who asks on the
    /// control path learns that it does.
    #[must_use]
    pub fn serves(&self, pid: Pid) -> bool {
        self.has_resumed(pid) && self.path == Some(pid)
    }

    /// Who serves.
    #[must_use]
    pub fn serving(&self) -> Option<Pid> {
        let pids = self.workers().map(|(pid, _)| pid);
        pids.into_iter().find(|&pid| self.serves(pid))
    }

    /// Whether somebody serves, or nobody can: those that live are stopped, hang, or wait for a
    /// supervisor that does; or such a one holds the lock. Who may end such a holder does.
    #[must_use]
    pub fn is_served(&self) -> bool {
        let led = self.boss.as_ref().is_some_and(|boss| boss.status == Status::Running);
        let stuck =
            |worker: &Worker| worker.status == Status::Stopped || worker.effort == Effort::Hangs;
        self.workers().all(|(_, worker)| stuck(worker) || (!led && !worker.begun))
            || self.lock.and_then(|holder| self.worker(holder)).is_some_and(stuck)
            || self.serving().is_some()
    }

    /// Whether nothing can be asked of this state any more but that it is safe: after several faults
    /// the only one that is left hangs, and nobody may end it (R5).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.spent > 1 && self.workers().any(|(_, worker)| worker.effort == Effort::Hangs)
    }

    /// What is wrong with a state in which nothing is left to do.
    fn at_rest(&self, next: bool) -> Option<Violation> {
        let alive: Vec<Pid> = self.workers().map(|(pid, _)| pid).collect();
        let serving = self.serving();
        let stopped = self.statuses().any(|(_, status)| status == Status::Stopped);
        // A program that hangs before it has anything stays until somebody looks.
        let idler = |worker: &Worker| worker.effort == Effort::Hangs && !worker.begun;
        let extra = self.workers().filter(|(_, worker)| self.spent < 2 || !idler(worker)).count();
        if !self.is_served() || (!stopped && extra > 1) {
            return Some(Violation::AtRest { alive, serving });
        }
        // Where more went wrong it may be the only one that is left (R6).
        let unfit = |&pid: &Pid| self.worker(pid).is_some_and(|worker| !worker.healthy);
        if let Some(pid) = serving.filter(unfit).filter(|_| self.spent < 2) {
            return Some(Violation::Unhealthy { pid });
        }
        if stopped {
            return None;
        }
        if alive.is_empty()
            && let Some(last) = self.last_death
            && !self.nobody_could(last)
        {
            return Some(Violation::NobodyLeft { last: last.pid, death: last.death });
        }
        let boss = self.boss.as_ref()?;
        let idle = boss.machine.idle() && boss.jobs.is_empty() && boss.machine.deadline().is_none();
        let daemons_idle = self
            .workers()
            .all(|(_, worker)| worker.jobs.is_empty() && worker.machine.deadline().is_none());
        if !idle || !daemons_idle || !self.wires.is_empty() || !self.strangers.is_empty() {
            return Some(Violation::Trace);
        }
        self.untrue(serving).or_else(|| if next { self.next_fails(serving) } else { None })
    }

    /// Whether it is nobody's fault that nobody is left: the last one crashed and was the only one; or
    /// there were more faults than one, and nobody is there to start another.
    fn nobody_could(&self, last: LastDeath) -> bool {
        let several = self.spent > 1 && !(self.rules.restarts && self.rules.revives);
        several || (last.death == Death::Crashed && last.alone)
    }

    /// Whether the last report names one that does not serve, though no fault has ended it since.
    fn untrue(&self, serving: Option<Pid>) -> Option<Violation> {
        let (report, faults_left) = self.report.as_ref()?;
        let reported = report.serving;
        let claims = match report.verdict {
            Verdict::Committed | Verdict::RolledBack => true,
            Verdict::Refused | Verdict::DryRun | Verdict::Unknown => reported.is_some(),
        };
        let excused = reported.and_then(|pid| self.death(pid)).is_some_and(|death| {
            death == Death::Crashed || self.rules.faults < *faults_left || self.spent > 1
        });
        (claims && reported != serving && !excused).then_some(Violation::Untrue {
            verdict: report.verdict,
            reported,
            serving,
        })
    }

    /// Whether a handoff that nothing disturbs would not be committed (I6).
    fn next_fails(&self, serving: Option<Pid>) -> Option<Violation> {
        serving?;
        if self.handoffs == 0 {
            return None;
        }
        let mut world = self.clone();
        world.report = None;
        let super::Rules { sabotage, long, legacy, bytes, .. } = self.rules;
        world.rules = super::Rules { sabotage, long, legacy, bytes, ..super::Rules::default() };
        world.step(super::Choice::Handoff, &mut |_| {});
        world.run_to_rest(&mut |_| {});
        let verdict = world.report.as_ref().map(|(report, _)| report.verdict);
        (verdict != Some(Verdict::Committed)).then_some(Violation::NextFails { verdict })
    }

    fn death(&self, pid: Pid) -> Option<Death> {
        match self.slot(pid)? {
            super::process::Slot::Alive(_) => None,
            super::process::Slot::Dead(death) => Some(*death),
        }
    }
}

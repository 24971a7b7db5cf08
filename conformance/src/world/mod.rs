//! The closed system: one supervisor, its daemons, and everything between them.
//!
//! Messages are fast and programs are slow: time passes only when nothing that has arrived waits for
//! a process that runs, and no effect of the operating system is in flight; hooks, warm-ups and the
//! journal may take any time. Whole processes stop, continue and die between any two steps.
//!
//! There is no clock. Advancing tells every deadline from a later origin ([`Machine::rebase`]), so
//! that now is always [`Instant::ORIGIN`] and a state that repeats is an equal value.

mod boss;
mod choices;
mod oracle;
pub mod pace;
mod process;
mod stranger;
mod vocabulary;
mod wire;
mod worker;

use std::time::Duration;

use handoff_core::daemon::{self, Signal};
use handoff_core::supervisor::{self, Report};
use handoff_core::{Credentials, HandoffId, Input, Instant, Machine};

use boss::supervisor;
pub use oracle::Violation;
use process::{Boss, Effort, Slot, Worker};
pub use process::{Death, Job, Pid, SUPERVISOR, Status};
use stranger::Stranger;
pub use vocabulary::{Choice, End, Guise, Kind, Line, Listener, Luck, Rules, Sabotage};
use wire::Wire;

/// Everybody's uid.
const UID: u32 = 1000;

/// Now, always.
const NOW: Instant = Instant::ORIGIN;

/// How many processes the table holds; a daemon beyond them does not start.
///
/// In a [long](Rules::long) run it is those that live or are still spoken of.
const PROCESSES: usize = 10;

/// How the last daemon died that had not handed over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct LastDeath {
    pid: Pid,
    death: Death,
    /// No other daemon lived that had not ended.
    alone: bool,
}

/// The whole system. See the [module](self).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    rules: Rules,
    boss: Option<Boss>,
    /// Ascending.
    daemons: Vec<(Pid, Slot)>,
    /// How many more there were, of which nobody speaks any more.
    forgotten: u32,
    wires: Vec<Wire>,
    strangers: Vec<Stranger>,
    /// Who holds the data directory's lock.
    lock: Option<Pid>,
    /// Whose socket the control path leads to, while that process lives.
    path: Option<Pid>,
    /// The disk is full.
    full: bool,
    /// How many handoffs were asked for.
    handoffs: u8,
    /// What became of the last one, and how many faults were left then.
    report: Option<(Report, u8)>,
    /// The last daemon that died without having handed over.
    last_death: Option<LastDeath>,
    /// How many faults there were.
    spent: u8,
    /// What a step did that is never right.
    broken: Option<Violation>,
}

impl World {
    /// A supervisor that has just been told to find out who serves, where nobody does.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            boss: Some(Boss::new(supervisor(rules.sabotage))),
            daemons: Vec::new(),
            forgotten: 0,
            wires: Vec::new(),
            strangers: Vec::new(),
            full: false,
            lock: None,
            path: None,
            handoffs: 0,
            report: None,
            last_death: None,
            spent: 0,
            broken: None,
        }
    }

    /// One daemon serves, and its supervisor is idle.
    #[must_use]
    pub fn settled(rules: Rules) -> Self {
        // Only what a supervisor is told at its start is spoilt already.
        let sabotage = rules.sabotage.filter(|&it| it == Sabotage::NeverPromotes);
        let mut world = Self::new(Rules { sabotage, legacy: rules.legacy, ..Rules::default() });
        world.run_to_rest(&mut |_| {});
        world.rules = rules;
        world
    }

    /// What may still happen.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Does the first thing that has to be done until nothing has; gives up after long enough.
    pub fn run_to_rest(&mut self, listen: Listener<'_>) -> Vec<Choice> {
        let mut done = Vec::new();
        while done.len() < 1000
            && let Some(&choice) = self.work().first()
        {
            self.step(choice, listen);
            done.push(choice);
        }
        done
    }

    // What happens.

    /// Lets one of the [choices](World::choices) happen.
    pub fn step(&mut self, choice: Choice, listen: Listener<'_>) {
        if self.kind(choice) == Kind::Fault {
            self.rules.faults = self.rules.faults.saturating_sub(1);
            self.spent = self.spent.saturating_add(1);
        }
        match choice {
            Choice::Deliver { wire, to } => self.deliver(wire, to, listen),
            Choice::Chunk { wire, to, bytes } => self.receive(wire, to, bytes.into(), listen),
            Choice::Exited(pid) => {
                if let Some(boss) = &mut self.boss {
                    boss.watched.retain(|&it| it != pid);
                    let status = String::new();
                    let exited = supervisor::Outcome::Exited { pid, status };
                    self.tell_supervisor(Input::Done(exited), listen);
                    self.known_to_serve(|known| known.filter(|&it| it != pid));
                }
            }
            Choice::Perform(SUPERVISOR, job, luck) => {
                let outcome = self.supervisor_job(job, luck, listen);
                if let (Some(boss), Some(outcome)) = (&mut self.boss, outcome) {
                    boss.jobs.done(job, outcome);
                }
            }
            Choice::Perform(pid, job, luck) => {
                let outcome = self.daemon_job(pid, job, luck);
                if let (Some(worker), Some(outcome)) = (self.worker_mut(pid), outcome) {
                    worker.jobs.done(job, outcome);
                }
            }
            Choice::Complete(SUPERVISOR, job, luck) => {
                let done = self.boss.as_mut().and_then(|boss| {
                    if job == Job::Journal {
                        boss.effort = Effort::BRISK;
                    }
                    boss.jobs.remove(job)
                });
                if let Some(outcome) = done.or_else(|| self.supervisor_job(job, luck, listen)) {
                    self.tell_supervisor(Input::Done(outcome), listen);
                }
            }
            Choice::Complete(pid, job, luck) => {
                let done = self.worker_mut(pid).and_then(|worker| {
                    if job.is_hook() {
                        worker.cancelled = false;
                        worker.effort = Effort::BRISK;
                    }
                    worker.jobs.remove(job)
                });
                if let Some(outcome) = done.or_else(|| self.daemon_job(pid, job, luck)) {
                    self.tell_daemon(pid, Input::Done(outcome), listen);
                }
            }
            Choice::Warm(pid) => {
                if let Some(worker) = self.worker_mut(pid) {
                    worker.warm = true;
                    worker.effort = Effort::BRISK;
                }
                self.tell_daemon(pid, Input::Command(daemon::Command::Begin), listen);
            }
            Choice::Exit(pid) => {
                let worker = self.worker(pid);
                let code = worker.and_then(|it| it.ended).unwrap_or_default();
                let death = match worker {
                    Some(worker) if worker.fails || worker.effort == Effort::Hangs => {
                        Death::Crashed
                    }
                    _ => Death::Exited(code),
                };
                self.die(pid, death, listen);
            }
            Choice::Terminate(pid) => self.die(pid, Death::Signalled, listen),
            Choice::Tick(pid) => self.tick(pid, listen),
            Choice::Advance => self.advance(listen),
            Choice::Start => {
                let own = self.workers().map(|(pid, _)| pid).collect();
                if let Some(boss) = &mut self.boss {
                    boss.to_start = false;
                }
                let command = supervisor::Command::Start { own };
                self.tell_supervisor(Input::Command(command), listen);
            }
            Choice::Handoff => {
                self.turn_the_page();
                self.handoffs += 1;
                let command = supervisor::Command::Handoff {
                    id: HandoffId::from_random_bytes([self.handoffs; 16]),
                    spec: pace::SPEC,
                };
                if let Some(boss) = &mut self.boss {
                    boss.successor = None;
                    boss.ended.clear();
                }
                self.tell_supervisor(Input::Command(command), listen);
            }
            Choice::Abort => {
                self.tell_supervisor(Input::Command(supervisor::Command::Abort), listen);
            }
            Choice::Restart => self.boss = Some(Boss::new(supervisor(self.rules.sabotage))),
            Choice::Continue(pid) => self.set_status(pid, Status::Running),
            Choice::Crash(pid) => self.die(pid, Death::Crashed, listen),
            Choice::Hang(pid) => {
                if let Some(worker) = self.worker_mut(pid) {
                    worker.effort = Effort::Hangs;
                }
            }
            Choice::Dawdle(SUPERVISOR) => {
                if let Some(boss) = &mut self.boss {
                    boss.effort = Effort::Dawdles;
                }
            }
            Choice::Dawdle(pid) => {
                if let Some(worker) = self.worker_mut(pid) {
                    worker.effort = Effort::Dawdles;
                }
            }
            Choice::Stop(pid) => self.set_status(pid, Status::Stopped),
            Choice::Break { wire } => {
                if let Some(wire) = self.wires.get_mut(wire) {
                    wire.break_off();
                }
            }
            Choice::Fill => self.full = true,
            Choice::Room => self.full = false,
            Choice::Jump(pid) => self.jump(pid),
            Choice::Unlink => {
                self.path = None;
                self.path_changes();
            }
            Choice::Notice(pid) => self.notice(pid, listen),
            Choice::Stranger(guise) => self.stranger_comes(guise, listen),
            Choice::Speak(place) => self.stranger_speaks(place, listen),
        }
        self.beat(listen);
        self.wires.retain(|wire| wire.supervisor_open || wire.daemon_open);
        self.check_step();
    }

    fn set_status(&mut self, pid: Pid, status: Status) {
        if pid == SUPERVISOR {
            if let Some(boss) = &mut self.boss {
                boss.status = status;
            }
        } else if let Some(worker) = self.worker_mut(pid) {
            worker.status = status;
        }
    }

    fn advance(&mut self, listen: Listener<'_>) {
        let Some(gap) = self.gap() else { return };
        listen(Line::Passed(gap));
        if let Some(boss) = &mut self.boss {
            boss.machine.rebase(gap);
            if boss.journals() {
                boss.effort = boss.effort.passed();
            }
        }
        for (_, slot) in &mut self.daemons {
            if let Slot::Alive(worker) = slot {
                worker.machine.rebase(gap);
                if !worker.warm || worker.jobs.hook().is_some() {
                    worker.effort = worker.effort.passed();
                }
            }
        }
        let due: Vec<Pid> = self
            .deadlines()
            .filter(|&(_, status, at)| status == Status::Running && at <= NOW)
            .map(|(pid, ..)| pid)
            .collect();
        for pid in due {
            self.tick(pid, listen);
        }
    }

    /// Every deadline of one process has passed.
    fn jump(&mut self, pid: Pid) {
        const LONG: Duration = Duration::from_secs(1000);
        if pid == SUPERVISOR {
            if let Some(boss) = &mut self.boss {
                boss.machine.rebase(LONG);
            }
        } else if let Some(worker) = self.worker_mut(pid) {
            worker.machine.rebase(LONG);
        }
    }

    /// In a long run, a handoff that begins while all is well begins as if it were the first.
    fn turn_the_page(&mut self) {
        let rules = self.rules;
        let one = |world: &Self| {
            let (mut workers, serving) = (world.workers(), world.serving());
            let well = |(pid, worker): (Pid, &Worker)| serving == Some(pid) && worker.healthy;
            workers.next().is_some_and(well) && workers.next().is_none()
        };
        if rules.long && self.work().is_empty() && one(self) {
            self.rules.faults = rules.faults.saturating_add(self.spent);
            self.spent = 0;
            self.last_death = None;
            self.report = None;
            self.forget();
        }
    }

    fn tick(&mut self, pid: Pid, listen: Listener<'_>) {
        if pid == SUPERVISOR {
            self.tell_supervisor(Input::Tick, listen);
        } else {
            self.tell_daemon(pid, Input::Tick, listen);
        }
        let due = |it: &(Pid, Status, Instant)| it.0 == pid && it.2 <= NOW;
        if self.deadlines().any(|it| due(&it)) {
            self.broke(Violation::DeadlineStands { pid });
        }
    }

    fn die(&mut self, pid: Pid, death: Death, listen: Listener<'_>) {
        listen(Line::Died(pid, death));
        if pid == SUPERVISOR {
            self.boss = None;
            for wire in &mut self.wires {
                wire.close(End::Supervisor);
            }
            return;
        }
        if let Some(slot) = self.slot_mut(pid) {
            *slot = Slot::Dead(death);
        }
        self.strangers.retain(|stranger| stranger.daemon != pid);
        if death != Death::Exited(0) {
            let alone = self.workers().all(|(_, worker)| worker.ended.is_some());
            self.last_death = Some(LastDeath { pid, death, alone });
        }
        self.lock = self.lock.filter(|&holder| holder != pid);
        self.path = self.path.filter(|&target| target != pid);
        for wire in self.wires.iter_mut().filter(|wire| wire.daemon == pid) {
            wire.close(End::Daemon);
        }
    }

    /// Something happens beside the control path: whoever is alive will be told.
    fn path_changes(&mut self) {
        if self.rules.unlinks && self.rules.sabotage != Some(Sabotage::OverlooksPath) {
            for (_, slot) in &mut self.daemons {
                if let Slot::Alive(worker) = slot {
                    worker.path_changed = true;
                }
            }
        }
    }

    /// Its host looks where the control path leads, and tells the machine only of what may concern it.
    fn notice(&mut self, pid: Pid, listen: Listener<'_>) {
        let lost = self.path != Some(pid);
        if let Some(worker) = self.worker_mut(pid) {
            worker.path_changed = false;
        }
        if lost {
            self.tell_daemon(pid, Input::Command(daemon::Command::PathChanged), listen);
        }
    }

    fn signal(&mut self, pid: Pid, signal: Signal, listen: Listener<'_>) {
        match (self.worker_mut(pid), signal) {
            (Some(worker), Signal::Term) => worker.term = true,
            (Some(_), Signal::Kill) => self.die(pid, Death::Signalled, listen),
            (None, _) => {}
        }
    }
}

fn cred(pid: Pid) -> Credentials {
    Credentials { pid, uid: UID, descends: true }
}

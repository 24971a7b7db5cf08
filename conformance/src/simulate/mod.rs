//! Long seeded runs: dozens of handoffs one after the other in one world, with faults of many kinds.
//!
//! A [`Plan`] says what is allowed; a seed decides what happens. Each run draws its own few kinds of
//! faults and how often they happen, so that some runs see one kind all the time and others everything
//! at once. What goes wrong is [shrunk](shrink::shrink) to a [`Run`]: a short list of choices, kept as
//! a [file](mod@file) and shown as a [trace](trace::Trace).
//!
//! ```
//! use conformance::simulate::{Fault, Plan, Tally, simulate};
//!
//! let plan = Plan { handoffs: 30, faults: vec![Fault::Crashes], ..Plan::default() };
//! let mut tally = Tally::default();
//! let (run, found) = simulate(&plan, 1, &mut tally);
//! assert_eq!(found, None);
//! assert!(tally.handoffs() > 0);
//! assert_eq!(run, simulate(&plan, 1, &mut Tally::default()).0);
//! ```
//!
//! # Which kinds go together
//!
//! The oracle is the same for all of them, and excuses nothing for the sake of a kind. At most
//! [`Plan::at_once`] faults happen between two states in which all is well.
//!
//! Strangers, bytes, legacy, alone and the slow kinds are no faults but habits of the world: they
//! happen any number of times and excuse nothing.
//!
//! All kinds go together but for one: where nobody starts anybody again ([`Fault::Alone`]), nothing is
//! told late, because a successor may die after its incumbent has seen it hold the lock and before that
//! ends; and no run begins with a cold start, because a supervisor ends a daemon of its own that hangs
//! in it (R17), and to start the next is for the program around it.
//!
//! Of what beyond-handoff does otherwise, [`Fault::Legacy`] shows what a peer sees while a handoff goes
//! well or is called off: capabilities, heartbeats, silence while a hook runs. Its own faults break the
//! invariants by themselves, and are planted ([`Sabotage`]) where they are looked at: it seals again
//! without the lock, tries for the lock for 2 s only, exits when its connection is closed, and its
//! supervisor commits to whoever calls itself unhealthy.

pub mod draw;
pub mod file;
pub mod shrink;
mod tally;
pub mod trace;

use std::fmt;
use std::str::FromStr;

pub use tally::Tally;

use handoff_core::Output;
use handoff_core::supervisor::Event;

use crate::explore::{Finding, Origin};
use crate::walk::Seed;
use crate::world::{Choice, Job, Kind, Line, Listener, Rules, Sabotage, World};

/// A kind of what may go wrong, or is out of the ordinary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    /// Any process is killed; a supervisor that was is started again, and starts a daemon where none
    /// is left.
    Crashes,
    /// Any process is stopped, and may be continued.
    Stops,
    /// Drain, seal or open fails, or a successor opens its data and is not fit to serve.
    Hooks,
    /// A hook, a warm-up or the journal takes longer than it is given, if it ever returns.
    Hangs,
    /// The journal cannot be written.
    Journal,
    /// The lock cannot be tried, or the control socket not be put in place.
    Shortages,
    /// A binary does not start.
    Spawn,
    /// A control connection breaks.
    Breaks,
    /// The operator aborts.
    Aborts,
    /// The disk is full for a while.
    Disk,
    /// A process sleeps while the others run on.
    Jumps,
    /// Somebody removes the control path.
    Unlinks,
    /// Strangers connect to the control socket.
    Strangers,
    /// Messages arrive in pieces.
    Bytes,
    /// Every second daemon speaks as beyond-handoff's do.
    Legacy,
    /// Effects are reported some time after they took place.
    Late,
    /// The journal takes its time.
    Slow,
    /// A committed incumbent takes its time to exit.
    Linger,
    /// Who dies is not started again, and no daemon is where none is left: whoever is left has to
    /// serve (R5).
    Alone,
}

impl Fault {
    /// All there are.
    pub const ALL: [Self; 19] = [
        Self::Crashes,
        Self::Stops,
        Self::Hooks,
        Self::Hangs,
        Self::Journal,
        Self::Shortages,
        Self::Spawn,
        Self::Breaks,
        Self::Aborts,
        Self::Disk,
        Self::Jumps,
        Self::Unlinks,
        Self::Strangers,
        Self::Bytes,
        Self::Legacy,
        Self::Late,
        Self::Slow,
        Self::Linger,
        Self::Alone,
    ];

    /// Its name, as a word of a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crashes => "crashes",
            Self::Stops => "stops",
            Self::Hooks => "hooks",
            Self::Hangs => "hangs",
            Self::Journal => "journal",
            Self::Shortages => "shortages",
            Self::Spawn => "spawn",
            Self::Breaks => "breaks",
            Self::Aborts => "aborts",
            Self::Disk => "disk",
            Self::Jumps => "jumps",
            Self::Unlinks => "unlinks",
            Self::Strangers => "strangers",
            Self::Bytes => "bytes",
            Self::Legacy => "legacy",
            Self::Late => "late",
            Self::Slow => "slow",
            Self::Linger => "linger",
            Self::Alone => "alone",
        }
    }

    /// Whether it is a habit of the world, and no fault that happens.
    #[must_use]
    pub const fn is_habit(self) -> bool {
        matches!(
            self,
            Self::Strangers
                | Self::Bytes
                | Self::Legacy
                | Self::Late
                | Self::Slow
                | Self::Linger
                | Self::Alone
        )
    }

    const fn allow(self, rules: &mut Rules) {
        match self {
            Self::Crashes => rules.crashes = true,
            Self::Stops => rules.stops = true,
            Self::Hooks => rules.hook_failures = true,
            Self::Hangs => rules.hangs = true,
            Self::Journal => rules.journal_failures = true,
            Self::Shortages => rules.shortages = true,
            Self::Spawn => rules.spawn_failures = true,
            Self::Breaks => rules.breaks = true,
            Self::Aborts => rules.aborts = true,
            Self::Disk => rules.disk = true,
            Self::Jumps => rules.jumps = true,
            Self::Unlinks => rules.unlinks = true,
            Self::Strangers => rules.strangers = u8::MAX,
            Self::Bytes => rules.bytes = true,
            Self::Legacy => rules.legacy = true,
            Self::Late => rules.late = true,
            Self::Slow => rules.slow_journal = true,
            Self::Linger => rules.linger = true,
            Self::Alone => (rules.restarts, rules.revives) = (false, false),
        }
    }

    /// Which kind a choice is of; none: it is what happens in every run.
    #[must_use]
    pub const fn of(choice: Choice, kind: Kind) -> Option<Self> {
        match (choice, kind) {
            (Choice::Stranger(_), _) => Some(Self::Strangers),
            (Choice::Chunk { .. }, _) => Some(Self::Bytes),
            (_, Kind::Work | Kind::Will) => None,
            (Choice::Perform(_, job, _) | Choice::Complete(_, job, _), Kind::Fault) => {
                Some(match job {
                    Job::Journal => Self::Journal,
                    Job::Spawn { .. } => Self::Spawn,
                    Job::TakeLock | Job::ClaimPath => Self::Shortages,
                    _ => Self::Hooks,
                })
            }
            (Choice::Abort, _) => Some(Self::Aborts),
            (Choice::Dawdle(_) | Choice::Hang(_), _) => Some(Self::Hangs),
            (Choice::Stop(_), _) => Some(Self::Stops),
            (Choice::Break { .. }, _) => Some(Self::Breaks),
            (Choice::Fill, _) => Some(Self::Disk),
            (Choice::Jump(_), _) => Some(Self::Jumps),
            (Choice::Unlink, _) => Some(Self::Unlinks),
            _ => Some(Self::Crashes),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No kind of fault has this name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownFault(String);

impl fmt::Display for UnknownFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no kind of fault is called {:?}; there are", self.0)?;
        Fault::ALL.iter().try_for_each(|fault| write!(f, " {fault}"))
    }
}

impl std::error::Error for UnknownFault {}

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(word: &str) -> Result<Self, UnknownFault> {
        let found = Self::ALL.into_iter().find(|fault| fault.name() == word);
        found.ok_or_else(|| UnknownFault(word.to_owned()))
    }
}

/// What runs are made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// How many handoffs are asked for in a run, at most 250.
    pub handoffs: u8,
    /// What may go wrong; a run draws some of it.
    pub faults: Vec<Fault>,
    /// How many faults may happen between two states in which all is well; a run draws fewer, or
    /// as many.
    pub at_once: u8,
    /// In how many of a thousand steps something goes wrong, on average.
    pub rate: u16,
    /// A bug that is planted.
    pub sabotage: Option<Sabotage>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { handoffs: 24, faults: Fault::ALL.to_vec(), at_once: 2, rate: 10, sabotage: None }
    }
}

/// One run: where it began, what was allowed, and what happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// What decided it, where it was drawn.
    pub seed: u64,
    /// Whether a daemon served when it began.
    pub origin: Origin,
    /// What was allowed.
    pub rules: Rules,
    /// What happened.
    pub choices: Vec<Choice>,
}

impl Run {
    /// The state it began in.
    #[must_use]
    pub fn start(&self) -> World {
        self.origin.world(self.rules)
    }

    /// The same with another planted bug, or none.
    #[must_use]
    pub fn with_sabotage(self, sabotage: Option<Sabotage>) -> Self {
        Self { rules: Rules { sabotage, ..self.rules }, ..self }
    }

    /// Lets it happen again, as far as it can: a choice that is not there at its step is left out.
    /// Everything comes to rest in the end. Gives what happened, and what is wrong.
    #[must_use]
    pub fn replay(&self, listen: Listener<'_>) -> (Self, Option<Finding>) {
        let mut world = self.start();
        let mut choices = Vec::with_capacity(self.choices.len());
        let mut found = world.violation();
        for &choice in &self.choices {
            if found.is_some() {
                break;
            }
            if !world.choices().contains(&choice) {
                continue;
            }
            world.step(choice, listen);
            choices.push(choice);
            found = world.violation();
        }
        let found = match found {
            Some(violation) => Some(Finding::Violation(violation)),
            None => settle(&mut world, &mut choices, listen),
        };
        (Self { choices, ..self.clone() }, found)
    }
}

/// How many steps a run takes to rest, at most.
const TAIL: usize = 1000;

/// Everybody continues and everything comes to rest; what happens is appended to `choices`. Gives what is
/// wrong.
pub fn settle(
    world: &mut World,
    choices: &mut Vec<Choice>,
    listen: Listener<'_>,
) -> Option<Finding> {
    let long = choices.len();
    let mut open = Vec::new();
    while choices.len() < long + TAIL {
        open.clear();
        world.will_into(&mut open);
        open.retain(|choice| matches!(choice, Choice::Continue(_)));
        world.work_into(&mut open);
        let Some(&choice) = open.first() else { break };
        world.step(choice, listen);
        choices.push(choice);
        if let Some(violation) = world.violation() {
            return Some(Finding::Violation(violation));
        }
    }
    if world.work().is_empty() || world.is_lost() {
        return None;
    }
    choices.truncate(long);
    Some(Finding::NoRest)
}

/// Whether two findings are of one kind.
#[must_use]
pub fn alike(one: &Finding, other: &Finding) -> bool {
    use std::mem::discriminant;
    match (one, other) {
        (Finding::Violation(one), Finding::Violation(other)) => {
            discriminant(one) == discriminant(other)
        }
        _ => discriminant(one) == discriminant(other),
    }
}

/// The rules of a run with so many handoffs, in which so many faults of these kinds happen at once. See the
/// [module](self).
#[must_use]
pub fn rules(handoffs: u8, at_once: u8, faults: impl IntoIterator<Item = Fault>) -> Rules {
    let mut rules = Rules {
        handoffs,
        faults: at_once,
        restarts: true,
        revives: true,
        long: true,
        ..Rules::HANDOFF
    };
    for fault in faults {
        fault.allow(&mut rules);
    }
    // A committed incumbent has seen the successor hold the lock: what is told late may be over.
    if rules.late {
        (rules.restarts, rules.revives) = (true, true);
    }
    rules
}

/// One run, drawn from a seed.
#[must_use]
pub fn simulate(plan: &Plan, seed: u64, tally: &mut Tally) -> (Run, Option<Finding>) {
    let mut draw = Seed::new(seed);
    let at_once = u8::try_from(1 + draw.below(plan.at_once.into())).unwrap_or(u8::MAX);
    // Few kinds at a time go deeper than all of them at once do.
    let share = 1 + draw.below(4);
    let drawn = plan.faults.iter().copied().filter(|_| draw.below(4) < share);
    let rules = rules(plan.handoffs.min(250), at_once, drawn);
    let rules = Rules { sabotage: plan.sabotage, ..rules };
    // A supervisor ends a daemon of its own that hangs in a cold start (R17), and another is for its
    // program to start: where nobody does, a run begins with a daemon that serves.
    let cold = rules.revives && draw.below(8) == 0;
    let origin = if cold { Origin::Cold } else { Origin::Settled };
    let pace = Pace {
        rate: draw.below(2 * usize::from(plan.rate) + 1),
        // Some disks stay full for long, and some processes stopped.
        mends: 1 + draw.below(16),
    };
    let mut world = origin.world(rules);
    let mut run = Run { seed, origin, rules, choices: Vec::new() };
    let found = wander(&mut world, &mut draw, pace, &mut run.choices, tally);
    tally.runs += 1;
    tally.steps += run.choices.len() as u64;
    (run, found)
}

/// How often things go wrong in a run, and how soon they end.
#[derive(Clone, Copy)]
struct Pace {
    /// In how many of a thousand steps something goes wrong.
    rate: usize,
    /// One time in how many a process that could be continued is, and a full disk has room again.
    mends: usize,
}

/// Goes at random until every handoff was asked for and has come to its end.
fn wander(
    world: &mut World,
    draw: &mut Seed,
    pace: Pace,
    choices: &mut Vec<Choice>,
    tally: &mut Tally,
) -> Option<Finding> {
    let limit = 400 * usize::from(world.rules().handoffs) + 400;
    let mut open = Vec::with_capacity(32);
    // Whether anything went wrong since the next handoff was last seen to work.
    let mut disturbed = true;
    while choices.len() < limit {
        open.clear();
        world.work_into(&mut open);
        // Checked where it costs something only after what may have changed it.
        let found = world.wrong(open.is_empty(), disturbed);
        if let Some(violation) = found {
            return Some(Finding::Violation(violation));
        }
        disturbed &= !open.is_empty();
        let choice = if draw.below(1000) < pace.rate
            && let Some(choice) = unusual(world, draw)
        {
            disturbed = true;
            choice
        } else {
            world.will_into(&mut open);
            if open.is_empty() {
                return None;
            }
            let choice = open[draw.below(open.len())];
            let mends = matches!(choice, Choice::Continue(_) | Choice::Room);
            if mends && draw.below(pace.mends) > 0 { open[draw.below(open.len())] } else { choice }
        };
        if let Some(fault) = Fault::of(choice, world.kind(choice)) {
            tally.fault(fault);
        }
        world.step(choice, &mut |line| {
            if let Line::SupervisorOut(Output::Event(Event::Finished(report))) = line {
                tally.verdict(report.verdict);
            }
        });
        choices.push(choice);
    }
    settle(world, choices, &mut |_| {})
}

/// Something out of the ordinary, each kind as likely as another.
fn unusual(world: &World, draw: &mut Seed) -> Option<Choice> {
    let mut open = Vec::new();
    world.unusual_into(&mut open);
    let kind = |choice: Choice| Fault::of(choice, world.kind(choice));
    let mut kinds: Vec<Option<Fault>> = open.iter().map(|&choice| kind(choice)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let wanted = *kinds.get(draw.below(kinds.len()))?;
    open.retain(|&choice| kind(choice) == wanted);
    open.get(draw.below(open.len())).copied()
}

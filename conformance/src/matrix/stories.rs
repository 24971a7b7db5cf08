//! Stories: runs with a name, for what the grid of steps and blows does not have.

use serde::{Deserialize, Serialize};

use super::case::{Blow, Case, Role, Step, Strike};
use super::cast::{Actor, Wrap};
use super::stranger::Stranger;
use super::{Moment, Place, Shortage};
use crate::suite::Fault;

/// For the rest of a handoff, in milliseconds.
const REST: u64 = 12_000;

/// How long something is not to be had, in milliseconds.
const LACK: u64 = 3_000;

/// What makes a run a story: all of it has to happen.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Story {
    /// What happens to whom while the incumbent serves, before the handoff is asked for.
    pub before: Vec<(Role, Blow)>,
    /// What is to come of the handoff.
    pub expect: Expect,
    /// How the supervisor is started.
    pub boss: Boss,
    /// Whether one that was struck is started again at once, before anybody is seen to serve.
    pub at_once: bool,
    /// Whether another supervisor, with a journal of its own, hands the same daemon off at the same time.
    /// Not both can commit.
    pub rival: bool,
    /// The files that are left beside the known ones, and are to be.
    pub leaves: Vec<String>,
}

/// How a supervisor is started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Boss {
    /// By itself.
    #[default]
    Plain,
    /// It allows wrappers.
    AllowsWrappers,
    /// By a service manager, whose variables it has.
    Service,
}

/// What is to come of a handoff. What is not said may be anything.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Expect {
    /// The verdict of the supervisor, in its words.
    pub verdict: Option<String>,
    /// The code of its reason.
    pub reason: Option<String>,
    /// Who serves when all is over. An incumbent that does has resumed as often as it has drained (R7).
    pub serves: Option<Role>,
}

/// One that is being put together.
struct Telling {
    adapter: String,
    told: Vec<Case>,
}

impl Telling {
    fn kv(&self) -> Actor {
        Actor::Example { adapter: self.adapter.clone(), fault: None }
    }

    fn kv_with(&self, fault: &str) -> Actor {
        Actor::Example { adapter: self.adapter.clone(), fault: Some(fault.into()) }
    }

    fn log(&self, fault: Option<Fault>) -> Actor {
        Actor::Suite { adapter: self.adapter.clone(), fault }
    }

    /// A story of example daemons, in which nothing happens yet.
    fn tell(&mut self, name: impl Into<String>) -> &mut Case {
        let (incumbent, successor) = (self.kv(), self.kv());
        self.tell_of(name, incumbent, successor)
    }

    fn tell_of(&mut self, name: impl Into<String>, from: Actor, to: Actor) -> &mut Case {
        let name = format!("{}: story: {}", self.adapter, name.into());
        let mut case = Case::new(name, &self.adapter, from, to);
        case.story = Some(Story::default());
        self.told.push(case);
        let last = self.told.len() - 1;
        &mut self.told[last]
    }
}

impl Case {
    fn story(&mut self) -> &mut Story {
        self.story.get_or_insert_default()
    }

    /// Something happens at the first step of this name, such as `S after Begin`, or at another, such as
    /// `S after HelloAck 2`.
    fn when(&mut self, step: &str, on: Role, blow: Blow) -> &mut Self {
        if let Some(at) = parsed(step) {
            self.mounts |= matches!(blow, Blow::Lacks(..));
            self.strikes.push(Strike { at, on, blow });
        }
        self
    }

    fn first(&mut self, on: Role, blow: Blow) -> &mut Self {
        self.story().before.push((on, blow));
        self
    }

    fn commits(&mut self) -> &mut Self {
        self.comes_to("committed", "", Role::N)
    }

    fn comes_to(&mut self, verdict: &str, reason: &str, serves: Role) -> &mut Self {
        let some = |text: &str| Some(text.to_string()).filter(|text| !text.is_empty());
        self.story().expect =
            Expect { verdict: some(verdict), reason: some(reason), serves: Some(serves) };
        self
    }

    /// Whatever the supervisor says, if it is there to say anything.
    fn serves(&mut self, role: Role) -> &mut Self {
        self.comes_to("", "", role)
    }

    fn started(&mut self, boss: Boss) -> &mut Self {
        self.story().boss = boss;
        self
    }
}

fn parsed(step: &str) -> Option<Step> {
    let mut words = step.split(' ');
    let role = match words.next()? {
        "S" => Role::S,
        "O" => Role::O,
        "N" => Role::N,
        _ => Role::Restarted,
    };
    let moment = if words.next()? == "before" { Moment::Before } else { Moment::After };
    let what = words.next()?.to_string();
    let nth = words.next().map_or(Some(1), |nth| nth.parse().ok())?;
    Some(Step { role, what, nth, moment })
}

/// All stories, on an adapter.
#[must_use]
pub fn stories(adapter: &str) -> Vec<Case> {
    let mut on = Telling { adapter: adapter.into(), told: Vec::new() };
    supervisors_that_end(&mut on);
    incumbents_that_end(&mut on);
    hooks_that_go_wrong(&mut on);
    successors_that_go_wrong(&mut on);
    families(&mut on);
    shortages(&mut on);
    files_that_go(&mut on);
    strangers(&mut on);
    supervisors_that_return(&mut on);
    rivals(&mut on);
    jumps(&mut on);
    aborts(&mut on);
    on.told
}

fn supervisors_that_end(on: &mut Telling) {
    for seconds in [3, 8] {
        on.tell(format!("S is killed after Begin, and N takes {seconds} s to open"))
            .when("N after TakeLock", Role::S, Blow::Kill)
            .when("N before Open", Role::N, Blow::Stall(seconds * 1000))
            .serves(Role::N);
    }
    on.tell("S hangs after SealComplete")
        .when("S before Begin", Role::S, Blow::Stop(12_000))
        .comes_to("rolled back", "", Role::O);
    on.tell("S hangs, and SealComplete is never read")
        .when("O before SealComplete", Role::S, Blow::Stop(12_000))
        .comes_to("rolled back", "", Role::O);
}

fn incumbents_that_end(on: &mut Telling) {
    for step in ["O before Drain", "O after Drain", "O before Seal", "O after Seal"] {
        on.tell(format!("O is killed, {step}")).when(step, Role::O, Blow::Kill).comes_to(
            "committed",
            "incumbent_lost",
            Role::N,
        );
    }
}

fn hooks_that_go_wrong(on: &mut Telling) {
    let told = [
        ("drain fails", Fault::DrainFails, "refused", "drain_failed"),
        ("drain panics", Fault::DrainPanics, "refused", "drain_failed"),
        ("drain outlives its grace", Fault::DrainHangs, "refused", "drain_failed"),
        ("drain takes long after its grace", Fault::DrainsSlowly, "", "drain_timeout"),
        ("seal fails", Fault::SealFails, "rolled back", "seal_failed"),
        ("seal panics", Fault::SealPanics, "rolled back", "seal_failed"),
        ("seal outlives the deadline", Fault::SealHangs, "rolled back", "seal_timeout"),
    ];
    for (name, fault, verdict, reason) in told {
        let (incumbent, successor) = (on.log(Some(fault)), on.log(None));
        on.tell_of(name, incumbent, successor).comes_to(verdict, reason, Role::O);
    }
}

fn successors_that_go_wrong(on: &mut Telling) {
    let told = [
        ("N is never ready", Fault::NeverReady, "ready_timeout"),
        ("N cannot open its data", Fault::FailsToOpen, "successor_exited"),
        ("N is unhealthy", Fault::Unhealthy, "unhealthy"),
        ("N has lower revisions", Fault::Regressed, "revision_regressed"),
        ("N dies after Begin", Fault::DiesAfterBegin, "successor_exited"),
    ];
    for (name, fault, reason) in told {
        let (incumbent, successor) = (on.log(None), on.log(Some(fault)));
        on.tell_of(name, incumbent, successor).comes_to("rolled back", reason, Role::O);
    }
    for (name, step) in [
        ("N dies after Ready", "S before Commit"),
        ("N dies as it is told of the commit", "S after Commit"),
        ("N dies as O is told of the commit", "S after Commit 2"),
    ] {
        // O leaves if it finds the lock still held, or takes it back.
        on.tell(name).when(step, Role::N, Blow::Kill);
        on.tell(format!("{name}, and O looks at the lock after that"))
            .when(step, Role::N, Blow::Kill)
            .when("O before TakeLock 2", Role::O, Blow::Stall(1_000))
            .comes_to("rolled back", "successor_exited", Role::O);
    }
    let elsewhere = Actor::Wrapped(Wrap::Elsewhere, Box::new(on.kv()));
    let incumbent = on.kv();
    on.tell_of("N opens another data directory", incumbent, elsewhere).comes_to(
        "rolled back",
        "revision_regressed",
        Role::O,
    );
}

fn families(on: &mut Telling) {
    let incumbent = on.kv();
    let forks = Actor::Wrapped(Wrap::Forks, Box::new(on.kv_with("KV_UNHEALTHY")));
    on.tell_of("N leaves a child behind, and is unhealthy", incumbent.clone(), forks).comes_to(
        "rolled back",
        "unhealthy",
        Role::O,
    );
    let forks = Actor::Wrapped(Wrap::Forks, Box::new(on.kv()));
    on.tell_of("N leaves a child behind, and dies after Ready", incumbent.clone(), forks.clone())
        .when("S before Commit", Role::N, Blow::Kill)
        .when("O before TakeLock 2", Role::O, Blow::Stall(1_000))
        .comes_to("rolled back", "successor_exited", Role::O);
    on.tell_of("N leaves a child behind, and commits", incumbent.clone(), forks).commits();
    let wrapped = Actor::Wrapped(Wrap::Script, Box::new(on.kv()));
    on.tell_of("N in a wrapper", incumbent.clone(), wrapped.clone())
        .started(Boss::AllowsWrappers)
        .commits();
    on.tell_of("N in a wrapper dies after Ready", incumbent.clone(), wrapped.clone())
        .started(Boss::AllowsWrappers)
        .when("S before Commit", Role::N, Blow::Kill)
        .when("O before TakeLock 2", Role::O, Blow::Stall(1_000))
        .comes_to("rolled back", "successor_exited", Role::O);
    on.tell_of("N in a wrapper that is not allowed", incumbent, wrapped).comes_to(
        "refused",
        "protocol_violation",
        Role::O,
    );
    on.tell("S has a service manager's variables").started(Boss::Service).commits();
}

fn shortages(on: &mut Telling) {
    let (incumbent, unhealthy) = (on.kv(), on.kv_with("KV_UNHEALTHY"));
    on.tell_of("the data is full as O takes it back", incumbent, unhealthy)
        .when("O before TakeLock 2", Role::O, Blow::Lacks(Shortage::Full, Place::Data, LACK))
        .comes_to("rolled back", "unhealthy", Role::O);
    for shortage in [Shortage::Full, Shortage::ReadOnly] {
        let is = match shortage {
            Shortage::Full => "is full",
            Shortage::ReadOnly => "is read-only",
        };
        for step in ["StagePath", "ClaimPath"] {
            let case = on.tell(format!("the control directory {is} for 3 s, N before {step}"));
            case.when(
                &format!("N before {step}"),
                Role::N,
                Blow::Lacks(shortage, Place::Run, LACK),
            )
            .commits();
        }
        on.tell(format!("the control directory {is} from N's StagePath on"))
            .when("N before StagePath", Role::N, Blow::Lacks(shortage, Place::Run, REST))
            .serves(Role::O);
        on.tell(format!("the control directory {is} from N's ClaimPath on"))
            .when("N before ClaimPath", Role::N, Blow::Lacks(shortage, Place::Run, REST))
            .serves(Role::N);
        on.tell(format!("the journal's directory {is}, S before JournalWarm"))
            .when("S before JournalWarm", Role::S, Blow::Lacks(shortage, Place::State, LACK))
            .comes_to("refused", "io_error", Role::O);
        on.tell(format!("the journal's directory {is}, S before JournalSeal"))
            .when("S before JournalSeal", Role::S, Blow::Lacks(shortage, Place::State, LACK))
            .comes_to("refused", "io_error", Role::O);
        on.tell(format!("the journal's directory {is}, S before JournalBegin"))
            .when("S before JournalBegin", Role::S, Blow::Lacks(shortage, Place::State, LACK))
            .commits();
    }
    let garbage = on.tell("the journal is garbage as S starts");
    garbage.first(Role::S, Blow::Garbage).first(Role::S, Blow::Kill).commits();
    garbage.story().leaves.push("state/journal.bad-1".into());
    for step in ["JournalWarm", "JournalSeal", "JournalBegin", "JournalCommit"] {
        on.tell(format!("the journal takes 12 s, S before {step}"))
            .when(&format!("S before {step}"), Role::S, Blow::Stall(12_000))
            .commits();
    }
}

fn files_that_go(on: &mut Telling) {
    let (incumbent, unhealthy) = (on.kv(), on.kv_with("KV_UNHEALTHY"));
    let lock = Blow::Unlink(Place::Data);
    on.tell("the lock file goes, then a handoff").first(Role::O, lock).commits();
    on.tell_of("the lock file goes, then O is rolled back", incumbent, unhealthy)
        .first(Role::O, lock)
        .comes_to("rolled back", "unhealthy", Role::O);
    for step in ["O after SealComplete", "N after TakeLock", "N after Ready"] {
        on.tell(format!("the lock file goes, {step}")).when(step, Role::O, lock);
    }
    let path = Blow::Unlink(Place::Run);
    on.tell("the control path goes, then a handoff").first(Role::O, path);
    for step in ["N before Hello", "S after PrepareHandoff", "S after SealRequest", "N after Ready"]
    {
        on.tell(format!("the control path goes, {step}")).when(step, Role::O, path);
    }
    on.tell("the control path goes, N after ClaimPath").when("N after ClaimPath", Role::N, path);
}

fn strangers(on: &mut Telling) {
    for stranger in Stranger::ALL {
        for step in ["S before JournalWarm", "S after PrepareHandoff", "N after ClaimPath"] {
            let (blow, name) = (Blow::Strangers(stranger, REST), stranger.name());
            on.tell(format!("{name}, {step}")).when(step, Role::O, blow).commits();
        }
    }
}

fn supervisors_that_return(on: &mut Telling) {
    on.tell("S is killed while O serves, and returns").first(Role::S, Blow::Kill).commits();
    for (step, serves) in [
        ("S after Spawn", Role::O),
        ("S after PrepareHandoff", Role::O),
        ("S after SealRequest", Role::O),
        ("N after TakeLock", Role::N),
    ] {
        let case = on.tell(format!("S is killed {step}, and returns at once"));
        case.when(step, Role::S, Blow::Kill).serves(serves).story().at_once = true;
    }
    // Either may be the one that takes the lock.
    let case = on.tell("S is killed S after Begin, and returns at once");
    case.when("S after Begin", Role::S, Blow::Kill).story().at_once = true;
}

fn rivals(on: &mut Telling) {
    let held = |ms| Blow::Stall(ms);
    on.tell("two supervisors prepare at once")
        .when("S before JournalPrepare", Role::S, held(1_000))
        .when("S' before JournalPrepare", Role::Restarted, held(1_000))
        .story()
        .rival = true;
    on.tell("two supervisors, and S prepares when S' has committed")
        .when("S before JournalPrepare", Role::S, held(3_000))
        .story()
        .rival = true;
    let late = on.tell("two supervisors, and S' comes while S has O drained");
    late.when("S' before Spawn", Role::Restarted, held(1_500))
        .when("S before SealRequest", Role::S, held(3_000))
        .commits()
        .story()
        .rival = true;
}

fn jumps(on: &mut Telling) {
    for step in ["S after PrepareHandoff", "S after SealRequest", "S after Begin", "N after Ready"]
    {
        on.tell(format!("the clock jumps, {step}")).when(step, Role::S, Blow::Jump(12_000));
    }
}

fn aborts(on: &mut Telling) {
    let told = [
        ("S after HelloAck", "S before Connect", Role::S, "refused"),
        ("S after PrepareHandoff", "O before Drain", Role::O, "rolled back"),
        ("S after SealRequest", "O before Seal", Role::O, "rolled back"),
        ("S after Begin", "N before TakeLock", Role::N, "rolled back"),
    ];
    for (step, held, who, verdict) in told {
        on.tell(format!("an operator aborts, {step}"))
            .when(step, Role::S, Blow::Abort)
            // So that it does not come too late.
            .when(held, who, Blow::Stall(1_000))
            .comes_to(verdict, "operator_abort", Role::O);
    }
    on.tell("an operator aborts, N after Ready").when("N after Ready", Role::S, Blow::Abort);
}

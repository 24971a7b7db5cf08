//! The host of a supervisor.

use super::*;
use handoff_core::HandoffId;
use handoff_core::daemon::{self, Probed};
use handoff_core::supervisor::{self, LockState, Peer, Supervisor, Verdict};
use std::collections::BTreeMap;

fn supervisor_outcome(dice: &mut Dice<'_>, n: u32) -> supervisor::Outcome {
    use supervisor::Outcome;
    let error = || String::from("no");
    let flip = |dice: &mut Dice<'_>| if dice.flip() { Ok(()) } else { Err(error()) };
    let pid = dice.pick(&[n, O_PID, X_PID]);
    match dice.roll(9) {
        0 | 1 => Outcome::Probed(dice.pick(&[Probed::Silent, Probed::Answered { pid }])),
        2 => Outcome::Spawned(if dice.roll(4) > 0 { Ok(n) } else { Err(error()) }),
        3 => Outcome::Connected(flip(dice)),
        4 => Outcome::LockChecked(dice.pick(&[
            LockState::Free,
            LockState::Unknown,
            LockState::Held { pid: Some(pid) },
            LockState::Held { pid: None },
            LockState::Stopped { pid },
        ])),
        5 => Outcome::Signalled(flip(dice)),
        6 => Outcome::Reaped { pid },
        7 => Outcome::Journalled(if dice.roll(8) > 0 { Ok(()) } else { Err(error()) }),
        _ => Outcome::Exited { pid, status: error() },
    }
}

fn any_supervisor(dice: &mut Dice<'_>) -> (Supervisor, supervisor::Config) {
    let mut config = supervisor::Config::new(UID);
    config.promote = dice.roll(8) > 0;
    config.strict = dice.roll(4) == 0;
    config.allow_wrappers = dice.roll(4) == 0;
    (Supervisor::new(config.clone()), config)
}

/// Gives a supervisor any inputs in any order, completions of nothing among them.
pub(crate) fn any_inputs(dice: &mut Dice<'_>) -> States {
    let mut states = States::new();
    let (mut machine, _) = any_supervisor(dice);
    let mut now = Instant::ORIGIN;
    while !dice.is_empty() {
        let peer = dice.pick(&[Peer::Incumbent, Peer::Successor]);
        let input = match dice.roll(14) {
            0 | 1 => Input::Opened { peer, cred: any_cred(dice) },
            2 => Input::Heard { from: peer },
            3..6 => Input::Message { from: peer, message: any_message(dice) },
            6 => Input::Closed { from: peer, how: any_hangup(dice) },
            7 => Input::Command(match dice.roll(8) {
                0 => supervisor::Command::Abort,
                1 => supervisor::Command::Start { own: vec![O_PID] },
                _ => {
                    let id = dice.pick(&[ID, OTHER]);
                    supervisor::Command::Handoff { id, spec: supervisor::Spec::default() }
                }
            }),
            8..12 => Input::Done(supervisor_outcome(dice, N_PID)),
            _ => {
                now = match machine.deadline() {
                    Some(deadline) if dice.flip() => now.max(deadline.at),
                    _ => now + any_span(dice),
                };
                Input::Tick
            }
        };
        give(&mut machine, now, input);
        states.insert(machine.state_name());
        if machine.idle() {
            assert_eq!(machine.deadline(), None, "nothing is awaited when idle");
        }
    }
    states
}

/// What a host knows of a supervisor, and whether it keeps to what it promises.
struct Base {
    machine: Supervisor,
    config: supervisor::Config,
    now: Instant,
    in_flight: Vec<supervisor::Effect>,
    open: BTreeSet<Peer>,
    states: BTreeSet<&'static str>,
    /// The pid that the next process gets.
    n: u32,
    swap: Option<Facts>,
    /// Who was asked to end, and when.
    terms: BTreeMap<u32, Instant>,
    finished: u32,
    accepted: u32,
}

/// What was seen of the handoff under way.
#[derive(Default)]
struct Facts {
    id: Option<HandoffId>,
    o_exited: bool,
    n_exited: bool,
    n_lost: bool,
    steady_o: bool,
    other_answered: bool,
    /// Since Prepare the incumbent has answered, or somebody on the control path has.
    o_alive: bool,
    seal_failed: bool,
    may_begin: bool,
    begun: bool,
    ready: bool,
    reaped: bool,
    ended_n: bool,
    said: BTreeMap<(Peer, &'static str), u32>,
}

fn supervisor_kind(effect: &supervisor::Effect) -> String {
    use supervisor::Effect;
    match effect {
        Effect::Probe => "probe".into(),
        Effect::Spawn { .. } => "spawn".into(),
        Effect::Connect => "connect".into(),
        Effect::CheckLock { .. } => "check".into(),
        Effect::Signal { pid, signal } => format!("{signal:?} to {pid}"),
        Effect::Reap { pid } => format!("reap {pid}"),
        Effect::Journal(_) => "journal".into(),
    }
}

impl Base {
    fn new(dice: &mut Dice<'_>) -> Self {
        let (machine, config) = any_supervisor(dice);
        Self {
            machine,
            config,
            now: Instant::ORIGIN,
            in_flight: Vec::new(),
            open: BTreeSet::new(),
            states: BTreeSet::new(),
            n: N_PID,
            swap: None,
            terms: BTreeMap::new(),
            finished: 0,
            accepted: 0,
        }
    }

    fn give(&mut self, input: supervisor::Input) {
        use supervisor::{Command, Outcome};
        if let Input::Command(Command::Handoff { id, .. }) = &input
            && self.machine.idle()
        {
            self.accepted += 1;
            self.swap = Some(Facts { id: Some(*id), ..Facts::default() });
        }
        let n = self.n;
        let gone_before = self.swap.as_ref().is_some_and(|facts| facts.o_exited);
        if let Some(facts) = &mut self.swap {
            match &input {
                Input::Done(Outcome::Exited { pid, .. }) if *pid == O_PID => facts.o_exited = true,
                Input::Done(Outcome::Exited { pid, .. }) if *pid == n => facts.n_exited = true,
                Input::Done(Outcome::Probed(Probed::Answered { pid })) if *pid != n => {
                    facts.other_answered = true;
                    facts.o_alive = true;
                }
                Input::Done(Outcome::LockChecked(LockState::Free | LockState::Unknown)) => {
                    facts.may_begin = true;
                }
                Input::Done(Outcome::Reaped { .. }) => facts.reaped = true,
                Input::Closed { from: Peer::Successor, .. } => facts.n_lost = true,
                Input::Heard { from: Peer::Incumbent } => facts.o_alive |= !facts.steady_o,
                Input::Message { from: Peer::Incumbent, message } => match message {
                    Message::Heartbeat { ts_ms } if *ts_ms >> 63 == 1 => facts.o_alive = true,
                    Message::SealFailed { .. } => {
                        facts.seal_failed = true;
                        facts.o_alive |= !facts.steady_o;
                    }
                    Message::SealComplete { .. } => {
                        facts.may_begin = true;
                        facts.o_alive |= !facts.steady_o;
                    }
                    Message::Hello { capabilities, .. } => {
                        facts.steady_o = capabilities.has(Capabilities::STEADY_HEARTBEAT);
                        // What was said on a connection before this one was refused.
                        facts.seal_failed = false;
                    }
                    _ => facts.o_alive |= !facts.steady_o,
                },
                Input::Message { from: Peer::Successor, message: Message::Ready { .. } } => {
                    facts.ready = true;
                }
                _ => {}
            }
        }
        match &input {
            Input::Opened { peer, .. } => {
                self.open.insert(*peer);
            }
            Input::Closed { from, .. } => {
                self.open.remove(from);
            }
            _ => {}
        }
        let outputs = give(&mut self.machine, self.now, input);
        self.states.insert(self.machine.state_name());
        for output in outputs {
            self.check(output, gone_before);
        }
    }

    fn check(&mut self, output: supervisor::Output, gone_before: bool) {
        let state = self.machine.state_name();
        match output {
            Output::Cancel => panic!("a supervisor has no hooks"),
            Output::Answer { .. } => panic!("T3: it never answers a Heartbeat"),
            Output::Beat { to, .. } => assert!(self.open.contains(&to)),
            Output::Close { peer } => {
                assert!(self.open.remove(&peer), "{peer} was closed before");
                if let (Peer::Successor, Some(facts)) = (peer, &mut self.swap) {
                    facts.n_lost = true;
                }
            }
            Output::Send { to, message } => {
                assert!(self.open.contains(&to), "{message:?} to a closed connection");
                self.said(to, &message, state);
            }
            Output::Event(supervisor::Event::Finished(report)) => {
                let facts = self.swap.take().expect("a handoff was under way");
                assert_eq!(Some(report.id), facts.id);
                self.finished += 1;
                assert!(self.machine.idle());
                if report.verdict == Verdict::Committed {
                    let commits = facts.said.get(&(Peer::Incumbent, "Commit"));
                    assert!(facts.ready || facts.o_exited || commits.is_none());
                    assert_eq!(report.serving, Some(self.n));
                }
                self.n += 1;
            }
            Output::Event(
                supervisor::Event::Serving { .. } | supervisor::Event::NobodyServes(_),
            ) => self.n += 1,
            Output::Event(_) => {}
            Output::Do(effect) => {
                let kind = supervisor_kind(&effect);
                let beside = self.in_flight.iter().any(|other| supervisor_kind(other) == kind);
                // A signal's completion is tied to nothing: what it did is seen in what it ends.
                let signal = matches!(effect, supervisor::Effect::Signal { .. });
                assert!(!beside || signal, "{effect:?} twice while {state}");
                if let supervisor::Effect::Signal { pid, signal } = effect {
                    if signal == daemon::Signal::Term {
                        self.terms.insert(pid, self.now);
                    } else {
                        let asked = self.terms.get(&pid).map(|&at| self.now.saturating_since(at));
                        assert!(asked >= Some(1.s()), "R14: {pid} had no time to end by itself");
                    }
                }
                if let supervisor::Effect::Signal { pid, signal: daemon::Signal::Term } = effect
                    && let Some(facts) = &mut self.swap
                    && pid == self.n
                {
                    // R5: with the incumbent gone, the last that could serve is not ended.
                    let allowed = facts.n_exited || facts.n_lost || facts.other_answered;
                    let reason = !gone_before || allowed || !self.config.promote;
                    assert!(reason, "R5: the last process is ended while {state}");
                    let prepared = facts.said.contains_key(&(Peer::Incumbent, "PrepareHandoff"));
                    let needless = facts.n_exited || facts.n_lost || !self.config.promote;
                    let asked = !prepared || needless || facts.o_alive;
                    assert!(asked, "R5: ended while {state}, and the incumbent did not answer");
                    facts.ended_n = true;
                }
                self.in_flight.push(effect);
            }
        }
    }

    fn said(&mut self, to: Peer, message: &Message, state: &str) {
        let name = handoff_core::short_name(message);
        let facts = self.swap.as_mut().expect("nothing is said without a handoff");
        if let Some(id) = message.handoff_id() {
            assert_eq!(Some(id), facts.id, "C1");
        }
        let times = facts.said.entry((to, name)).or_default();
        *times += 1;
        if name != "Heartbeat" {
            assert_eq!(*times, 1, "{name} to {to} twice, while {state}");
        }
        let said = |facts: &Facts, name| facts.said.contains_key(&(Peer::Incumbent, name));
        match (to, name) {
            (Peer::Incumbent, "Abort") => {
                assert!(facts.steady_o, "R4: a legacy incumbent gets no Abort");
                assert!(!facts.seal_failed, "R4: no Abort after SealFailed");
                let early = !said(facts, "Commit") || facts.n_exited;
                assert!(early, "no Abort after Commit, unless its successor is gone");
            }
            (Peer::Incumbent, "ResumeAfterAbort") => {
                assert!(facts.reaped || facts.n_exited, "R4: only when N is reaped");
                assert!(!facts.seal_failed, "R4: not after SealFailed");
                let early = !said(facts, "Commit") || facts.n_exited;
                assert!(early, "not after Commit, unless its successor is gone");
            }
            (Peer::Incumbent, "PrepareHandoff") => facts.o_alive = false,
            (Peer::Incumbent, "SealRequest") => assert!(said(facts, "PrepareHandoff")),
            (Peer::Successor, "Begin") => {
                assert!(facts.may_begin, "the lock may be held");
                facts.begun = true;
            }
            (_, "Commit") => {
                assert!(facts.ready && !facts.n_exited, "R6: N is ready and alive");
                assert!(!facts.ended_n, "R6: N is being ended");
            }
            _ => {}
        }
    }

    fn complete(&mut self, dice: &mut Dice<'_>) {
        use supervisor::{Effect, Outcome};
        if self.in_flight.is_empty() {
            return;
        }
        let effect = self.in_flight.remove(dice.roll(self.in_flight.len()));
        let error = || String::from("no");
        let fails = dice.roll(5) == 4;
        let outcome = match effect {
            Effect::Probe => Outcome::Probed(match dice.roll(4) {
                3 => Probed::Silent,
                // Before Begin nobody can find the successor there.
                2 if self.swap.as_ref().is_some_and(|facts| facts.begun) => {
                    Probed::Answered { pid: self.n }
                }
                _ => Probed::Answered { pid: O_PID },
            }),
            Effect::Spawn { .. } if fails => Outcome::Spawned(Err(error())),
            Effect::Spawn { .. } => Outcome::Spawned(Ok(self.n)),
            Effect::Connect if fails => Outcome::Connected(Err(error())),
            Effect::Connect => {
                self.give(Input::Opened { peer: Peer::Incumbent, cred: cred(O_PID) });
                Outcome::Connected(Ok(()))
            }
            Effect::CheckLock { .. } => Outcome::LockChecked(match dice.roll(4) {
                0 => LockState::Free,
                1 => LockState::Unknown,
                _ => LockState::Held { pid: Some(dice.pick(&[self.n, O_PID])) },
            }),
            Effect::Signal { .. } if fails => Outcome::Signalled(Err(error())),
            Effect::Signal { .. } => Outcome::Signalled(Ok(())),
            Effect::Reap { pid } => Outcome::Reaped { pid },
            Effect::Journal(_) if fails => Outcome::Journalled(Err(error())),
            Effect::Journal(_) => Outcome::Journalled(Ok(())),
        };
        self.give(Input::Done(outcome));
    }

    fn pass(&mut self, until: Instant) {
        for _ in 0..10_000 {
            let Some(deadline) = self.machine.deadline().filter(|d| d.at <= until) else {
                self.now = self.now.max(until);
                return;
            };
            self.now = self.now.max(deadline.at);
            self.give(Input::Tick);
        }
        panic!("its clock stands still");
    }

    fn step(&mut self, dice: &mut Dice<'_>) {
        use supervisor::{Command, Outcome};
        let peer = dice.pick(&[Peer::Incumbent, Peer::Successor]);
        let state = self.machine.state_name();
        match dice.roll(20) {
            0 if self.machine.idle() && dice.roll(3) == 0 => {
                let own = dice.pick(&[vec![], vec![O_PID]]);
                self.give(Input::Command(Command::Start { own }));
            }
            0 | 1 if self.machine.idle() => {
                let id = dice.pick(&[ID, OTHER]);
                let spec = supervisor::Spec::default();
                self.give(Input::Command(Command::Handoff { id, spec }));
            }
            0 if state == "awaiting the successor's Hello"
                && !self.open.contains(&Peer::Successor) =>
            {
                let cred = Credentials { descends: true, ..cred(self.n) };
                self.give(Input::Opened { peer: Peer::Successor, cred });
            }
            1 if dice.roll(6) == 0 => self.give(Input::Command(Command::Abort)),
            0..9 => {
                let id = self.swap.as_ref().and_then(|facts| facts.id).unwrap_or(ID);
                let (from, next) = self.next_message(id, dice);
                let (from, message) = match dice.roll(10) {
                    0 => (peer, any_message(dice)),
                    1 => (peer, heartbeat(dice.pick(&[5, (1 << 63) | 1, (1 << 63) | 2]))),
                    2 => (
                        Peer::Incumbent,
                        Message::SealFailed {
                            handoff_id: id,
                            error: String::new(),
                            partial_state: String::new(),
                        },
                    ),
                    _ => (from, next),
                };
                if self.open.contains(&from) {
                    self.give(Input::Message { from, message });
                }
            }
            9 if self.open.contains(&peer) && dice.roll(3) == 0 => {
                let how = any_hangup(dice);
                self.give(Input::Closed { from: peer, how });
            }
            10 if dice.roll(4) == 0 => {
                let pid = dice.pick(&[O_PID, self.n]);
                let known = self.swap.as_ref().is_some_and(|facts| match pid {
                    O_PID => !facts.o_exited,
                    _ => !facts.n_exited,
                });
                if known && self.open.len() == 2 {
                    self.give(Input::Done(Outcome::Exited { pid, status: "9".into() }));
                }
            }
            11..16 => self.complete(dice),
            16 if self.open.contains(&peer) => self.give(Input::Heard { from: peer }),
            17 => {
                let at = self.machine.deadline().map(|deadline| deadline.at);
                self.pass(self.now.max(at.unwrap_or_default()));
            }
            18 => {
                self.now = self.now + any_span(dice);
                self.give(Input::Tick);
            }
            _ if dice.flip() => {
                let span = dice.pick(&[0.ms(), 10.ms(), 1.s(), 3.s()]);
                self.pass(self.now + span);
            }
            _ => {
                // A quarter of a minute in which nothing happens, and everybody is alive.
                for _ in 0..15 {
                    self.pass(self.now + 1.s());
                    for from in [Peer::Incumbent, Peer::Successor] {
                        if self.open.contains(&from) {
                            self.give(Input::Heard { from });
                        }
                    }
                }
            }
        }
    }

    /// What the daemon whose turn it is would say next.
    fn next_message(&self, id: HandoffId, dice: &mut Dice<'_>) -> (Peer, Message) {
        let reserved = dice.pick(&[3, 3, 3, 0]);
        let capabilities = Capabilities { reserved };
        match self.machine.state_name() {
            "awaiting the successor's Hello" => {
                (Peer::Successor, hello_of(Side::Successor, self.n, capabilities))
            }
            "awaiting the incumbent's Hello" => {
                (Peer::Incumbent, hello_of(Side::Incumbent, O_PID, capabilities))
            }
            "awaiting Drained" => (Peer::Incumbent, drained()),
            "awaiting SealComplete" => {
                let message = Message::SealComplete {
                    handoff_id: id,
                    last_revision_per_shard: vec![4],
                    data_dir_fingerprint: [0; 32],
                };
                (Peer::Incumbent, message)
            }
            "awaiting Ready" => {
                let message = Message::Ready {
                    handoff_id: id,
                    listening_on: vec![],
                    healthz_ok: dice.roll(4) > 0,
                    advertised_revision_per_shard: vec![dice.pick(&[4, 4, 3])],
                };
                (Peer::Successor, message)
            }
            _ => (Peer::Incumbent, heartbeat((1 << 63) | (1 + dice.roll(2) as u64))),
        }
    }

    /// From here on the successor is gone, nobody answers, and the host completes what it is asked.
    fn settle(&mut self) {
        use supervisor::{Effect, Outcome};
        for round in 0..5000 {
            if self.machine.idle() && self.in_flight.is_empty() {
                return;
            }
            let Some(effect) = self.in_flight.pop() else {
                if round > 100 {
                    let (pid, status) = (self.n, String::from("9"));
                    self.give(Input::Done(Outcome::Exited { pid, status }));
                }
                if let Some(deadline) = self.machine.deadline() {
                    self.pass(self.now.max(deadline.at));
                }
                continue;
            };
            let outcome = match effect {
                Effect::Probe => Outcome::Probed(Probed::Silent),
                Effect::Spawn { .. } => Outcome::Spawned(Ok(self.n)),
                Effect::Connect => Outcome::Connected(Err("refused".into())),
                Effect::CheckLock { .. } => Outcome::LockChecked(LockState::Free),
                Effect::Signal { .. } => Outcome::Signalled(Ok(())),
                Effect::Reap { pid } => Outcome::Reaped { pid },
                Effect::Journal(_) => Outcome::Journalled(Ok(())),
            };
            self.give(Input::Done(outcome));
        }
        panic!("stuck while {}", self.machine.state_name());
    }
}

/// Hosts a supervisor. In the end its successor is gone and nobody answers, and every handoff has ended.
pub(crate) fn supervisor(dice: &mut Dice<'_>) -> States {
    let mut base = Base::new(dice);
    while !dice.is_empty() {
        base.step(dice);
    }
    base.settle();
    assert_eq!(base.finished, base.accepted, "every handoff ends once");
    base.states
}

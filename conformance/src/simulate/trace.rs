//! What the processes of a run say to each other, ready to be drawn.

use std::time::Duration;

use handoff_core::daemon::{self, ConnId, Hook, OsEffect};
use handoff_core::supervisor::{self, Peer};
use handoff_core::{Input, Message, Output, short_name};

use crate::explore::{Finding, Origin};
use crate::world::{Choice, Death, Kind, Line, Luck, Pid, SUPERVISOR};

use super::{Fault, Run};

/// One thing worth a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mark {
    /// A process is there from here on.
    Born(Pid),
    /// It is gone.
    Died(Pid, Death),
    /// A message was read.
    Said {
        /// Who said it; nobody of the run's: a stranger.
        from: Option<Pid>,
        /// Who read it.
        to: Pid,
        /// What.
        what: &'static str,
    },
    /// A process did something by itself.
    Did(Pid, String),
    /// Something is out of the ordinary.
    Fault(String),
    /// Time passed.
    Passed(Duration),
    /// What is wrong at the end.
    Wrong(String),
}

/// A run as the marks it leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    /// Everybody, in order of appearance: the supervisor first.
    pub lanes: Vec<(Pid, String)>,
    /// What happened.
    pub marks: Vec<Mark>,
}

impl Trace {
    /// Lets a run happen again and looks on.
    #[must_use]
    pub fn of(run: &Run) -> Self {
        let mut eye = Eye::new(run.origin);
        let mut world = run.start();
        for &choice in &run.choices {
            if !world.choices().contains(&choice) {
                continue;
            }
            let kind = world.kind(choice);
            eye.before(choice, kind);
            world.step(choice, &mut |line| eye.see(&line));
        }
        if let Some(violation) = world.violation() {
            eye.mark(Mark::Wrong(violation.to_string()));
        }
        eye.trace
    }

    /// The same, with the word for what is wrong where it is no violation.
    #[must_use]
    pub fn with(mut self, finding: Option<&Finding>) -> Self {
        if let Some(finding @ (Finding::NoRest | Finding::NeverServed)) = finding {
            self.marks.push(Mark::Wrong(format!("{finding:?}")));
        }
        self
    }

    /// What a lane is called.
    #[must_use]
    pub fn name(&self, pid: Pid) -> &str {
        self.lanes.iter().find(|(it, _)| *it == pid).map_or("?", |(_, name)| name)
    }
}

struct Eye {
    trace: Trace,
    /// Who is at the other end of the supervisor's connections.
    peers: Vec<(Peer, Pid)>,
    /// Who is at the other end of the daemons' connections.
    conns: Vec<(Pid, ConnId, Pid)>,
    /// The process that is being started is no successor.
    cold: bool,
}

impl Eye {
    fn new(origin: Origin) -> Self {
        let lanes = vec![(SUPERVISOR, String::from("S"))];
        let mut eye = Self {
            trace: Trace { lanes, marks: Vec::new() },
            peers: Vec::new(),
            conns: Vec::new(),
            cold: false,
        };
        if origin == Origin::Settled {
            eye.born(SUPERVISOR + 1, 'O');
        }
        eye
    }

    fn mark(&mut self, mark: Mark) {
        if let (Some(Mark::Passed(sum)), Mark::Passed(more)) = (self.trace.marks.last_mut(), &mark)
        {
            *sum += *more;
        } else {
            self.trace.marks.push(mark);
        }
    }

    fn born(&mut self, pid: Pid, role: char) {
        if self.trace.lanes.iter().all(|(it, _)| *it != pid) {
            self.trace.lanes.push((pid, format!("{role} ({pid})")));
            self.mark(Mark::Born(pid));
        }
    }

    fn did(&mut self, pid: Pid, what: impl Into<String>) {
        self.mark(Mark::Did(pid, what.into()));
    }

    fn name(&self, pid: Pid) -> String {
        self.trace.name(pid).to_owned()
    }

    /// What a choice means where no machine tells.
    fn before(&mut self, choice: Choice, kind: Kind) {
        let text = match choice {
            Choice::Crash(pid) => format!("{} is killed", self.name(pid)),
            Choice::Stop(pid) => format!("{} is stopped", self.name(pid)),
            Choice::Continue(pid) => format!("{} continues", self.name(pid)),
            Choice::Dawdle(pid) => format!("{} takes its time", self.name(pid)),
            Choice::Hang(pid) => format!("{} hangs", self.name(pid)),
            Choice::Jump(pid) => format!("{} has slept for long", self.name(pid)),
            Choice::Unlink => String::from("the control path is removed"),
            Choice::Fill => String::from("the disk is full"),
            Choice::Room => String::from("the disk has room again"),
            Choice::Break { .. } => String::from("a connection breaks"),
            Choice::Abort => String::from("the operator aborts"),
            Choice::Stranger(guise) => format!("a stranger connects: {guise:?}"),
            Choice::Restart => return self.did(SUPERVISOR, "started again"),
            Choice::Handoff => return self.did(SUPERVISOR, "handoff asked"),
            Choice::Complete(pid, _, Luck::Unhealthy) => format!("{} is unhealthy", self.name(pid)),
            Choice::Perform(pid, job, _) | Choice::Complete(pid, job, _) if kind == Kind::Fault => {
                let name = self.name(pid);
                match Fault::of(choice, kind) {
                    Some(fault) => format!("{name}: {job:?} fails ({fault})"),
                    None => return,
                }
            }
            _ => return,
        };
        self.mark(Mark::Fault(text));
    }

    fn see(&mut self, line: &Line<'_>) {
        match line {
            Line::Died(pid, death) => self.mark(Mark::Died(*pid, *death)),
            Line::Passed(time) => self.mark(Mark::Passed(*time)),
            Line::SupervisorIn(input, _) => self.supervisor_in(input),
            Line::SupervisorOut(output) => self.supervisor_out(output),
            Line::DaemonIn(pid, input, _) => self.daemon_in(*pid, input),
            Line::DaemonOut(pid, output) => self.daemon_out(*pid, output),
        }
    }

    fn said(&mut self, from: Option<Pid>, to: Pid, message: &Message) {
        // Heartbeats without a question tell nobody anything here.
        let what = match message {
            Message::Heartbeat { ts_ms } if *ts_ms >> 63 == 0 => return,
            Message::Heartbeat { .. } if to == SUPERVISOR => "answer",
            Message::Heartbeat { .. } => "question",
            Message::PrepareHandoff { .. } => "Prepare",
            Message::ResumeAfterAbort { .. } => "Resume",
            message => short_name(message),
        };
        self.mark(Mark::Said { from, to, what });
    }

    fn supervisor_in(&mut self, input: &supervisor::Input) {
        match input {
            Input::Opened { peer, cred } => {
                self.peers.retain(|(it, _)| it != peer);
                self.peers.push((*peer, cred.pid));
            }
            Input::Message { from, message } => {
                let known = self.peers.iter().find(|(it, _)| it == from);
                let from = known.map(|&(_, pid)| pid);
                self.said(from, SUPERVISOR, message);
            }
            Input::Heard { .. } => self.did(SUPERVISOR, "hears a part"),
            Input::Done(supervisor::Outcome::Spawned(Ok(pid))) => {
                let role = if self.cold { 'D' } else { 'N' };
                self.born(*pid, role);
            }
            _ => {}
        }
    }

    fn supervisor_out(&mut self, output: &supervisor::Output) {
        match output {
            Output::Do(supervisor::Effect::Spawn { successor }) => self.cold = !successor,
            Output::Do(supervisor::Effect::Signal { pid, signal }) => {
                let name = self.name(*pid);
                self.did(SUPERVISOR, format!("{signal:?} to {name}"));
            }
            Output::Event(supervisor::Event::Finished(report)) => {
                self.did(SUPERVISOR, format!("{:?}", report.verdict));
            }
            Output::Event(supervisor::Event::Phase(
                phase @ (supervisor::Phase::Rollback | supervisor::Phase::Promote),
            )) => self.did(SUPERVISOR, phase.name()),
            _ => {}
        }
    }

    fn daemon_in(&mut self, pid: Pid, input: &daemon::Input) {
        match input {
            Input::Opened { peer, cred } => {
                self.conns.retain(|(daemon, conn, _)| *daemon != pid || conn != peer);
                self.conns.push((pid, *peer, cred.pid));
            }
            Input::Message { from, message } => {
                let known = self.conns.iter().find(|it| it.0 == pid && it.1 == *from);
                let from = known.map(|it| it.2).filter(|&it| it == SUPERVISOR);
                self.said(from, pid, message);
            }
            Input::Heard { .. } => self.did(pid, "hears a part"),
            Input::Done(outcome) => {
                let text = match outcome {
                    daemon::Outcome::Lock(Ok(())) => "lock taken",
                    daemon::Outcome::Lock(Err(_)) => "no lock",
                    daemon::Outcome::Released(Ok(())) => "lock released",
                    daemon::Outcome::Claimed(Ok(())) => "path claimed",
                    daemon::Outcome::Claimed(Err(_)) => "path not claimed",
                    daemon::Outcome::Opened(Ok(_)) => "data is open",
                    daemon::Outcome::Opened(Err(_)) => "open failed",
                    daemon::Outcome::Drained(Ok(_)) => "drained",
                    daemon::Outcome::Drained(Err(_)) => "drain failed",
                    daemon::Outcome::Sealed(Ok(_)) => "sealed",
                    daemon::Outcome::Sealed(Err(_)) => "seal failed",
                    daemon::Outcome::Resumed(Ok(())) => "resumed",
                    _ => return,
                };
                self.did(pid, text);
            }
            _ => {}
        }
    }

    fn daemon_out(&mut self, pid: Pid, output: &daemon::Output) {
        let text = match output {
            Output::Do(daemon::Effect::Hook(hook)) => match hook {
                Hook::Open => "open...",
                Hook::Drain { .. } => "drain...",
                Hook::Seal => "seal...",
                Hook::Resume => "resume...",
            },
            Output::Do(daemon::Effect::Os(OsEffect::SignalSuccessor(signal))) => {
                return self.did(pid, format!("{signal:?} to N"));
            }
            Output::Cancel => "hook told: off",
            Output::Event(daemon::Event::Incumbent) => "is the incumbent",
            Output::Event(daemon::Event::Ended(_)) => "ends",
            _ => return,
        };
        self.did(pid, text);
    }
}

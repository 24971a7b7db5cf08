//! Hosts that do anything a host may do, and check what a machine promises meanwhile.
//!
//! Each choice of theirs is a roll of [`Dice`]: whoever makes a list of numbers plays a host. The property
//! tests draw such lists at random; the fuzz targets of `conformance` make them of bytes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a host that cannot go on has found something"
)]

pub(crate) mod daemon;
pub(crate) mod supervisor;

use super::common::*;
use handoff_core::wire::{WireError, encode};
use handoff_core::{
    Capabilities, Credentials, Hangup, Input, Instant, Machine, Message, Output, Side, Violation,
};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The names of the states that a machine was in.
pub(crate) type States = BTreeSet<&'static str>;

/// A list of choices, used up one by one.
pub(crate) struct Dice<'a>(pub(crate) &'a [u16]);

impl Dice<'_> {
    pub(crate) fn roll(&mut self, below: usize) -> usize {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                usize::from(first) % below
            }
            None => 0,
        }
    }

    pub(crate) fn pick<T: Clone>(&mut self, among: &[T]) -> T {
        among[self.roll(among.len())].clone()
    }

    pub(crate) fn flip(&mut self) -> bool {
        self.roll(2) == 0
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

type In<M> = Input<<M as Machine>::Peer, <M as Machine>::Outcome, <M as Machine>::Command>;
type Outs<M> = Vec<Output<<M as Machine>::Peer, <M as Machine>::Effect, <M as Machine>::Event>>;

/// Gives one input to a machine, and checks what holds for every machine and every input.
fn give<M>(machine: &mut M, now: Instant, input: In<M>) -> Outs<M>
where
    M: Machine + Clone + PartialEq + Debug,
    In<M>: Clone + Debug,
    M::Effect: PartialEq + Debug,
    M::Event: PartialEq + Debug,
{
    let before = machine.deadline();
    assert_eq!(before, machine.deadline(), "pure");
    let mut twin = machine.clone();
    let mut moved = machine.clone();
    let mut outputs = Vec::new();
    tell(|| format!("{:?} {input:?}", now.since_origin()));
    machine.handle(now, input.clone(), &mut outputs);
    tell(|| format!("  -> {}: {outputs:?}", machine.state_name()));

    // Equal states give equal outputs.
    let mut of_twin = Vec::new();
    twin.handle(now, input.clone(), &mut of_twin);
    assert_eq!(outputs, of_twin);
    assert_eq!(*machine, twin);

    // The origin of time is the host's own choice.
    let by = before.map_or(now, |deadline| deadline.at.min(now)).since_origin();
    moved.rebase(by);
    let mut of_moved = Vec::new();
    moved.handle(now.rebased(by), input.clone(), &mut of_moved);
    let untimed = |outputs: &[_]| -> Vec<usize> {
        let timed = |output: &Output<_, M::Effect, M::Event>| matches!(output, Output::Beat { .. });
        (0..outputs.len()).filter(|&at| !timed(&outputs[at])).collect()
    };
    assert_eq!(untimed(&outputs), untimed(&of_moved));
    for at in untimed(&outputs) {
        assert_eq!(outputs[at], of_moved[at]);
    }
    let mut rebased = machine.clone();
    rebased.rebase(by);
    assert_eq!(moved, rebased);

    // After a tick at the deadline it is later, or none.
    if let (Input::Tick, Some(next)) = (input, machine.deadline()) {
        assert!(next.at > now, "{next:?} is still due at {now:?}");
    }
    for output in &outputs {
        if let Output::Send { message, .. } = output {
            encode(message, 1, &mut Vec::new()).expect("what is said fits a frame");
        }
    }
    outputs
}

thread_local! {
    /// What a machine was given and what it asked for, where somebody wants to know.
    static TRANSCRIPT: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

fn tell(line: impl FnOnce() -> String) {
    TRANSCRIPT.with_borrow_mut(|transcript| {
        if let Some(transcript) = transcript {
            transcript.push(line());
        }
    });
}

/// A run of a host, line by line, up to where it panics.
pub(crate) fn transcript(run: impl FnOnce()) -> String {
    TRANSCRIPT.set(Some(Vec::new()));
    let _ = catch_unwind(AssertUnwindSafe(run));
    TRANSCRIPT.take().unwrap_or_default().join("\n")
}

fn any_message(dice: &mut Dice<'_>) -> Message {
    let id = dice.pick(&[ID, ID, ID, OTHER]);
    let message = dice.pick(&all_messages(id));
    match message {
        Message::PrepareHandoff { handoff_id, successor_pid, .. } => Message::PrepareHandoff {
            handoff_id,
            successor_pid,
            deadline_ms: dice.pick(&[0, 1000, 60_000, 600_000]),
            drain_grace_ms: dice.pick(&[0, 500, 20_000, 600_000]),
        },
        Message::HelloAck { handoff_id, .. } => {
            let proto_version_chosen = dice.pick(&[1, 1, 1, 0, 2]);
            Message::HelloAck { proto_version_chosen, handoff_id }
        }
        Message::Hello { pid, build_id, proto_min, proto_max, .. } => Message::Hello {
            role: dice.pick(&[Side::Incumbent, Side::Successor]),
            pid: dice.pick(&[pid, N_PID]),
            build_id,
            proto_min,
            proto_max: dice.pick(&[proto_max, 7]),
            capabilities: Capabilities { reserved: dice.roll(4) as u64 },
        },
        other => other,
    }
}

fn any_cred(dice: &mut Dice<'_>) -> Credentials {
    Credentials {
        pid: dice.pick(&[S_PID, O_PID, N_PID]),
        uid: dice.pick(&[UID, UID, UID, 0, 5]),
        descends: dice.flip(),
    }
}

fn any_hangup(dice: &mut Dice<'_>) -> Hangup {
    if dice.flip() { Hangup::Eof } else { Hangup::Violation(Violation::Wire(WireError::Malformed)) }
}

fn any_span(dice: &mut Dice<'_>) -> std::time::Duration {
    dice.pick(&[0.ms(), 1.ms(), 20.ms(), 300.ms(), 1.s(), 5.s(), 31.s(), 100.s()])
}

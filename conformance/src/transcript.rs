//! A path as text: who was told what, and what it asked for.

use std::fmt::Write;

use handoff_core::{Input, Message, Output, short_name};

use crate::world::{Choice, Line, World};

/// Replays `path` from `world` and tells what happens in each step.
#[must_use]
pub fn transcript(world: &World, path: &[Choice]) -> String {
    let mut world = world.clone();
    let mut text = String::new();
    for (step, &choice) in path.iter().enumerate() {
        let kind = world.kind(choice);
        // Writing to a String does not fail.
        let _ = writeln!(text, "{step:3} {choice:?} ({kind:?})");
        world.step(choice, &mut |line| {
            let _ = writeln!(text, "      {}", tell(&line));
        });
    }
    if let Some(violation) = world.violation() {
        let _ = writeln!(text, "    ! {violation}");
    }
    text
}

fn tell(line: &Line<'_>) -> String {
    match line {
        Line::Died(pid, death) => format!("{} is dead: {death:?}", name(*pid)),
        Line::Passed(time) => format!("{time:?} pass"),
        Line::SupervisorIn(it, state) => format!("S <- {} [{state}]", input(it)),
        Line::SupervisorOut(it) => format!("S -> {}", output(it)),
        Line::DaemonIn(pid, it, state) => format!("{} <- {} [{state}]", name(*pid), input(it)),
        Line::DaemonOut(pid, it) => format!("{} -> {}", name(*pid), output(it)),
    }
}

fn name(pid: u32) -> String {
    if pid == crate::world::SUPERVISOR { String::from("S") } else { format!("D{pid}") }
}

fn input<P, D, C>(it: &Input<P, D, C>) -> String
where
    P: std::fmt::Debug,
    D: std::fmt::Debug,
    C: std::fmt::Debug,
{
    match it {
        Input::Tick => String::from("Tick"),
        Input::Opened { peer, .. } => format!("Opened {peer:?}"),
        Input::Heard { from } => format!("Heard {from:?}"),
        Input::Message { from, message } => format!("{} of {from:?}", said(message)),
        Input::Closed { from, how } => format!("Closed {from:?}: {how:?}"),
        Input::Done(outcome) => format!("{outcome:?}"),
        Input::Command(command) => format!("{command:?}"),
    }
}

fn output<P, E, V>(it: &Output<P, E, V>) -> String
where
    P: std::fmt::Debug,
    E: std::fmt::Debug,
    V: std::fmt::Debug,
{
    match it {
        Output::Send { to, message } => format!("{} to {to:?}", said(message)),
        Output::Beat { to, .. } => format!("Beat to {to:?}"),
        Output::Answer { to, ts_ms } => format!("Answer {ts_ms} to {to:?}"),
        Output::Do(effect) => format!("Do {effect:?}"),
        Output::Cancel => String::from("Cancel"),
        Output::Close { peer } => format!("Close {peer:?}"),
        Output::Event(event) => format!("{event:?}"),
    }
}

fn said(message: &Message) -> String {
    match message {
        Message::Heartbeat { ts_ms } => format!("Heartbeat {ts_ms}"),
        message => short_name(message).to_owned(),
    }
}

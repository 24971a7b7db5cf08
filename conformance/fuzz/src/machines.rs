//! The machines, on hosts that do anything a host may do.

use super::hosts::{self, Dice, daemon, supervisor as base};
use super::{STEPS, Target};

/// R1-R3, R7, R8, R11, C2, C5, T5: an incumbent keeps its promises, and serves or has ended when all is done.
///
/// The first byte: whether its connections are closed in the end, or stay open in silence, or whether
/// nothing it is given makes sense (W7). The others are rolls of its host's dice.
pub fn incumbent(data: &[u8]) {
    play(data, |head, dice| {
        match head % 4 {
            0 => daemon::any_inputs(dice),
            1 => daemon::incumbent(dice, true),
            _ => daemon::incumbent(dice, false),
        };
    });
}

/// R1, R3, R7, R8: the same of a successor, and of a cold start.
///
/// The first byte: whether what it is given makes sense. The others are rolls of its host's dice.
pub fn successor(data: &[u8]) {
    play(data, |head, dice| {
        match head % 4 {
            0 => daemon::any_inputs(dice),
            _ => daemon::successor(dice),
        };
    });
}

/// C1, R4-R6, T3: a supervisor keeps its promises, and every handoff ends once.
///
/// The bytes are those of a [`successor`].
pub fn supervisor(data: &[u8]) {
    play(data, |head, dice| {
        match head % 4 {
            0 => base::any_inputs(dice),
            _ => base::supervisor(dice),
        };
    });
}

/// What a machine was given and what it asked for, line by line, up to where the target panics.
pub fn transcript(target: Target, data: &[u8]) -> String {
    hosts::transcript(|| target(data))
}

fn play(data: &[u8], host: impl Fn(u8, &mut Dice<'_>)) {
    let Some((&head, rolls)) = data.split_first() else { return };
    let rolls: Vec<u16> = rolls.iter().take(STEPS).map(|&roll| roll.into()).collect();
    host(head, &mut Dice(&rolls));
}

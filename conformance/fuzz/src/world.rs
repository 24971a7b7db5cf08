//! The closed world, where anything happens that its rules allow.

use conformance::explore::{Finding, Origin};
use conformance::simulate::{Fault, Run, file, rules, settle, shrink};
use conformance::transcript::transcript;
use conformance::world::{Choice, Rules, World};

use super::STEPS;

/// I1-I6: whatever happens is right, and everything comes to rest.
///
/// The first four bytes are the rules: a bit for each kind of [`Fault`], one for two of them at once, one
/// for a cold start; the last byte is the number of handoffs, less one. Each byte that follows picks one
/// of the world's choices.
pub fn world(data: &[u8]) {
    let Some((head, picks)) = data.split_first_chunk() else { return };
    let (origin, rules) = beginning(u32::from_le_bytes(*head));
    let mut world = origin.world(rules);
    let mut choices = Vec::new();
    if let Some(found) = wander(&mut world, picks, &mut choices) {
        let run = Run { seed: 0, origin, rules, choices };
        let (run, found) = shrink::shrink(&run).unwrap_or((run, found));
        let told = transcript(&run.start(), &run.choices);
        let file = file::write(&run, &format!("{found:?}"));
        panic!("{found:?}\n{told}\nto be replayed:\n{}", file.unwrap_or_default());
    }
}

fn beginning(head: u32) -> (Origin, Rules) {
    let bit = |at: usize| head >> at & 1 == 1;
    let kinds = Fault::ALL.len();
    let faults = Fault::ALL.into_iter().enumerate().filter(|&(at, _)| bit(at));
    let [.., handoffs] = head.to_le_bytes();
    let at_once = if bit(kinds) { 2 } else { 1 };
    let rules = rules(1 + handoffs % 24, at_once, faults.map(|(_, fault)| fault));
    // Where nobody starts anybody again, nobody starts what hangs in a cold start.
    let cold = bit(kinds + 1) && rules.revives;
    (if cold { Origin::Cold } else { Origin::Settled }, rules)
}

fn wander(world: &mut World, picks: &[u8], choices: &mut Vec<Choice>) -> Option<Finding> {
    for &pick in picks.iter().take(STEPS) {
        let open = world.choices();
        let Some(place) = usize::from(pick).checked_rem(open.len()) else { break };
        world.step(open[place], &mut |_| {});
        choices.push(open[place]);
        if let Some(violation) = world.violation() {
            return Some(Finding::Violation(violation));
        }
    }
    settle(world, choices, &mut |_| {})
}

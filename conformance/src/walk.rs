//! Seeded random runs: deeper than the exhaustive search goes, and not exhaustive.

use crate::explore::Finding;
use crate::world::{Choice, Kind, World};

/// A small generator of numbers that look random (splitmix64).
#[derive(Clone, Debug)]
pub struct Seed(u64);

impl Seed {
    /// The generator with this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`; zero where there is none.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        usize::try_from(mixed.checked_rem(bound).unwrap_or(0)).unwrap_or(0)
    }
}

/// Walks from `world` for at most `steps`, then lets everybody continue and everything come to rest.
/// Gives the choices made, and what is wrong.
#[must_use]
pub fn walk(mut world: World, seed: u64, steps: usize) -> (Vec<Choice>, Option<Finding>) {
    let mut seed = Seed::new(seed);
    let mut path = Vec::new();
    // Some runs see their faults early, others late or never.
    let patience = 2 + seed.below(60);
    while path.len() < steps {
        if let Some(violation) = world.violation() {
            return (path, Some(Finding::Violation(violation)));
        }
        let choices = world.choices();
        let fault = seed.below(patience) == 0;
        let wanted: Vec<Choice> = choices
            .iter()
            .copied()
            .filter(|&choice| (world.kind(choice) == Kind::Fault) == fault)
            .collect();
        let from = if wanted.is_empty() { &choices } else { &wanted };
        if from.is_empty() {
            return (path, None);
        }
        let choice = from[seed.below(from.len())];
        world.step(choice, &mut |_| {});
        path.push(choice);
    }
    while let Some(choice) =
        world.choices().into_iter().find(|it| matches!(it, Choice::Continue(_)))
    {
        world.step(choice, &mut |_| {});
        path.push(choice);
    }
    path.extend(world.run_to_rest(&mut |_| {}));
    let finding = match world.violation() {
        Some(violation) => Some(Finding::Violation(violation)),
        None if world.work().is_empty() || world.is_lost() => None,
        None => Some(Finding::NoRest),
    };
    (path, finding)
}

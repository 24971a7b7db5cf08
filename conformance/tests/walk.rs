//! Long random runs: several handoffs, two faults of any kind, supervisors that come back.

use conformance::explore::Origin;
use conformance::transcript::transcript;
use conformance::walk::walk;
use conformance::world::Rules;

/// How many runs of each kind.
const RUNS: u64 = 20_000;

fn runs(rules: Rules) {
    for seed in 0..RUNS {
        let origin = if seed % 4 == 0 { Origin::Cold } else { Origin::Settled };
        let world = origin.world(rules);
        let (path, finding) = walk(world.clone(), seed, 600);
        if let Some(finding) = finding {
            panic!(
                "seed {seed}, {finding:?} after {} steps\n{}",
                path.len(),
                transcript(&world, &path)
            );
        }
    }
}

/// I1 to I6 over three handoffs.
#[test]
fn three_handoffs_with_two_faults() {
    runs(Rules { handoffs: 3, restarts: true, revives: true, ..Rules::faulty(2) });
}

/// The same where effects are reported late and everything takes its time (R8).
#[test]
fn three_handoffs_with_two_faults_in_a_messy_world() {
    runs(Rules { handoffs: 3, ..Rules::faulty(2).messy() });
}

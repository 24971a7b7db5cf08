//! Handoffs of real processes between all adapters, beyond what the suite does with each of them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod path;
mod swap;
mod warm_up;

/// Not a test of its own: what the processes run.
#[test]
#[ignore = "the body of the processes"]
fn part() {
    conformance::suite::play(&conformance::adapters::ALL);
}

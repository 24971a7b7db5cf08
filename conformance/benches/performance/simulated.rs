//! How many handoffs a minute one core simulates.

use std::time::{Duration, Instant};

use conformance::simulate::{Fault, Plan, Tally, simulate};

use crate::table::{Row, Table, Unit};

const TIME: Duration = Duration::from_secs(3);

pub fn simulated(table: &mut Table) {
    table.section("handoffs simulated a minute on one core, with faults of every kind");
    let plan = Plan { faults: Fault::ALL.to_vec(), ..Plan::default() };
    let (mut tally, start) = (Tally::default(), Instant::now());
    let mut seed = 0;
    while start.elapsed() < TIME {
        let (_, found) = simulate(&plan, seed, &mut tally);
        assert_eq!(found, None, "seed {seed}");
        seed += 1;
    }
    let rate = Tally::per_minute(tally.handoffs(), start.elapsed());
    let row = Row::new("simulated", "handoffs", Unit::Count, rate as f64);
    table.push(row.reach(1e6).rate());
}

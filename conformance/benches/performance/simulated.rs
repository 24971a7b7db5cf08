//! How many handoffs a minute one core simulates.

use std::time::Duration;

use conformance::simulate::{Fault, Plan, Tally, simulate};
use rustix::time::{ClockId, clock_gettime};

use crate::table::{Row, Table, Unit};

const TIME: Duration = Duration::from_secs(2);

pub fn simulated(table: &mut Table) {
    table.section("handoffs simulated a minute on one core, with faults of every kind");
    let plan = Plan { faults: Fault::ALL.to_vec(), ..Plan::default() };
    // What this thread had of a core, whatever the others do.
    let time = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
    let (mut tally, start) = (Tally::default(), time());
    let mut seed = 0;
    while time() - start < TIME {
        let (_, found) = simulate(&plan, seed, &mut tally);
        assert_eq!(found, None, "seed {seed}");
        seed += 1;
    }
    let rate = Tally::per_minute(tally.handoffs(), time() - start);
    let row = Row::new("simulated", "handoffs", Unit::Count, rate as f64);
    table.push(row.reach(1e6).rate());
}

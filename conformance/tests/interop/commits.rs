//! Handoffs that are committed, in every pairing of roles.

use crate::bench::{Bench, Kind};
use crate::boss::BossKind;

with_each_of_ours!(
    we_take_over_from_them,
    they_take_over_from_us,
    their_supervisor_swaps_ours_for_ours,
    their_supervisor_swaps_ours_for_theirs,
    their_supervisor_swaps_theirs_for_ours,
);

/// C2, R16: our supervisor, their incumbent, our successor.
fn we_take_over_from_them(ours: Kind) {
    let (mut bench, _) = Bench::start(BossKind::Blocking, Kind::Theirs, "");
    bench.commits_to(ours);
    bench.ends_well();
}

/// C2, R16: our supervisor, our incumbent, their successor.
fn they_take_over_from_us(ours: Kind) {
    let (mut bench, _) = Bench::start(BossKind::Blocking, ours, "");
    bench.commits_to(Kind::Theirs);
    bench.ends_well();
}

/// C2, R16: our supervisor swaps daemons that know nothing of us, back to back.
#[test]
fn our_supervisor_swaps_theirs_for_theirs() {
    let (mut bench, _) = Bench::start(BossKind::Blocking, Kind::Theirs, "");
    for _ in 0..3 {
        let pid = bench.swap(Kind::Theirs, "").unwrap();
        assert_eq!(bench.write(), pid);
    }
    bench.commits_to(Kind::Theirs);
    bench.ends_well();
}

/// R6: who reports no revisions is not held to any.
#[test]
fn who_reports_nothing_is_not_checked() {
    let (mut bench, _) = Bench::start(BossKind::Blocking, Kind::Theirs, "reports-nothing");
    for next in [Kind::Blocking, Kind::Theirs, Kind::Theirs] {
        let pid = bench.swap(next, "reports-nothing").unwrap();
        bench.serves(pid);
    }
    bench.ends_well();
}

/// T2, R3: their supervisor says nothing for as long as it waits, and does not tell of the commit.
/// Three in a row, each when the control path leads to the last: it does not wait for that by itself.
fn their_supervisor_swaps_ours_for_ours(ours: Kind) {
    let (mut bench, _) = Bench::start(BossKind::Theirs, ours, "");
    for _ in 0..3 {
        bench.commits_to(ours);
    }
    bench.ends_well();
}

/// C2: their supervisor, our incumbent, their successor.
fn their_supervisor_swaps_ours_for_theirs(ours: Kind) {
    let (mut bench, _) = Bench::start(BossKind::Theirs, ours, "");
    bench.commits_to(Kind::Theirs);
    bench.ends_well();
}

/// C2, R3: their supervisor, their incumbent, our successor.
fn their_supervisor_swaps_theirs_for_ours(ours: Kind) {
    let (mut bench, _) = Bench::start(BossKind::Theirs, Kind::Theirs, "");
    bench.commits_to(ours);
    bench.ends_well();
}

/// A daemon moves from their implementation to ours, from adapter to adapter, and back, under one
/// supervisor of each kind.
fn migrates_live(under: BossKind) {
    let (mut bench, _) = Bench::start(under, Kind::Theirs, "");
    for next in [Kind::Blocking, Kind::Tokio, Kind::Smol, Kind::Theirs] {
        bench.commits_to(next);
    }
    bench.ends_well();
}

#[test]
fn a_daemon_migrates_live_under_their_supervisor() {
    migrates_live(BossKind::Theirs);
}

#[test]
fn a_daemon_migrates_live_under_our_supervisors() {
    for ours in BossKind::OURS {
        migrates_live(ours);
    }
}

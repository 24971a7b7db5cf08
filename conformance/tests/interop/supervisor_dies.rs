//! Their supervisor is killed after Begin: one daemon serves in the end, and a supervisor of ours
//! finds it, whatever the other's journal says, and goes on.

use handoff_unix::lock::{LockState, lock_state};

use crate::bench::{Bench, Kind, wait_until};
use crate::boss::BossKind;

with_each_of_ours!(
    our_successor_goes_on,
    our_successor_goes_on_after_theirs,
    our_incumbent_resumes
);

/// Kills their supervisor while the successor opens, which it does only after that; who serves then.
fn killed_after_begin(incumbent: Kind, successor: Kind) -> (Bench, u32, u32) {
    let (bench, old) = Bench::start(BossKind::Theirs, incumbent, "");
    bench.hand_off_meanwhile(successor, "waits-to-open");
    let data = bench.file("data");
    // Begin was read when the lock has changed hands.
    let taken = || matches!(lock_state(&data), LockState::Held { pid } if pid != Some(old));
    wait_until("the lock changes hands", taken);
    bench.kill_supervisor();
    std::fs::write(bench.file("go"), "").unwrap();
    // It is answered by whoever comes to serve.
    let serving = bench.write();
    (bench, old, serving)
}

/// R2, R3: the successor goes on by itself, and the incumbent stands down.
fn our_successor_goes_on(ours: Kind) {
    let (mut bench, old, serving) = killed_after_begin(ours, ours);
    assert_ne!(serving, old);
    bench.serves(serving);
    assert_eq!(bench.adopt(), serving);
    bench.commits_to(ours);
    bench.ends_well();
}

/// R3: their incumbent gives up after 2 s, whoever serves then; our successor does.
fn our_successor_goes_on_after_theirs(ours: Kind) {
    let (mut bench, old, serving) = killed_after_begin(Kind::Theirs, ours);
    assert_ne!(serving, old);
    bench.serves(serving);
    assert_eq!(bench.adopt(), serving);
    bench.commits_to(Kind::Theirs);
    bench.ends_well();
}

/// R2: their successor ends because it has nobody to be ready for; our incumbent has not given up.
fn our_incumbent_resumes(ours: Kind) {
    let (mut bench, old, serving) = killed_after_begin(ours, Kind::Theirs);
    assert_eq!(serving, old);
    bench.serves(serving);
    assert_eq!(bench.adopt(), serving);
    bench.commits_to(ours);
    bench.ends_well();
}

//! What their successor does with what it is given.

use rustix::fs::{OFlags, fcntl_getfl};

use crate::bench::{Bench, Kind, wait_until};
use crate::boss::BossKind;

with_each_of_ours!(our_incumbent_accepts_in_either_mode);

/// R13: a `LISTEN_PID` that is the supervisor's would have their successor ignore its listeners.
#[test]
fn their_successor_of_a_socket_activated_supervisor_has_its_listeners() {
    let (mut bench, _) = Bench::start(BossKind::Activated, Kind::Theirs, "");
    bench.commits_to(Kind::Theirs);
    bench.commits_to(Kind::Blocking);
    bench.ends_well();
}

/// R13: their successor makes the listener blocking as soon as it starts, while our incumbent still
/// accepts on it, and goes on to.
fn our_incumbent_accepts_in_either_mode(ours: Kind) {
    let (mut bench, old) = Bench::start(BossKind::Blocking, ours, "");
    let listener = bench.listener.try_clone().unwrap();
    let blocks = || !fcntl_getfl(&listener).unwrap().contains(OFlags::NONBLOCK);
    listener.set_nonblocking(true).unwrap();
    bench.serves(old);
    let (warming, go) = (bench.file("warming"), bench.file("go"));
    let writer = bench.writer.clone();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("their successor warms up", || warming.exists());
            assert!(blocks(), "it left the listener's mode alone");
            for _ in 0..10 {
                assert_eq!(writer.write(), old);
            }
            std::fs::write(&go, "").unwrap();
        });
        bench.swap(Kind::Theirs, "warms-up")
    });
    bench.serves(outcome.unwrap());
    bench.ends_well();
}

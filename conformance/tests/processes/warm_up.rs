//! While a successor warms up, the incumbent serves as if it were alone, on a listener in either mode.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use handoff_blocking::{Handoff, Verdict};
use rustix::fs::{OFlags, fcntl_getfl};

use conformance::adapters::ALL;
use conformance::suite::{Adapter, Bench, Client, Fault, daemon};

const WARM_UP: Duration = Duration::from_secs(2);

/// R13.
#[test]
fn a_blocking_listener_is_served_on() {
    ALL.into_iter().for_each(|incumbent| is_served_on(incumbent, false));
}

/// R13.
#[test]
fn a_nonblocking_listener_is_served_on() {
    ALL.into_iter().for_each(|incumbent| is_served_on(incumbent, true));
}

/// On a bench for each adapter of the successor, all at once: the time is that of the warm-up.
fn is_served_on(incumbent: &'static dyn Adapter, nonblocking: bool) {
    thread::scope(|benches| {
        for successor in ALL {
            let name = format!("{} to {}", incumbent.name(), successor.name());
            let bench = move || swapped_under_load(incumbent, successor, nonblocking);
            thread::Builder::new().name(name).spawn_scoped(benches, bench).unwrap();
        }
    });
}

fn is_nonblocking(listener: &TcpListener) -> bool {
    fcntl_getfl(listener).unwrap().contains(OFlags::NONBLOCK)
}

/// Writes for so long, each answered by `by`: the longest time between two answers.
fn longest(client: &mut Client, by: u32, time: Duration) -> Duration {
    let start = Instant::now();
    let (mut last, mut longest) = (start, Duration::ZERO);
    while start.elapsed() < time {
        assert_eq!(client.write(), by);
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest
}

fn swapped_under_load(
    incumbent: &'static dyn Adapter,
    successor: &'static dyn Adapter,
    nonblocking: bool,
) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(nonblocking).unwrap();
    let (mut bench, old) = Bench::start_on(incumbent, None, listener);
    let Bench { supervisor, client, dir, listener, .. } = &mut bench;
    let unchanged = |at: &str| assert_eq!(is_nonblocking(listener), nonblocking, "{at}");
    unchanged("while the incumbent serves alone");
    let usual = longest(client, old, WARM_UP / 4);
    let handoff = Handoff::new(daemon(successor, dir.path(), Some(Fault::WarmsUp)).unwrap());
    let over = AtomicBool::new(false);
    let (report, warming) = thread::scope(|scope| {
        let writing = scope.spawn(|| {
            Bench::waits(dir.path());
            unchanged("when the successor has taken it");
            // Nobody but the incumbent can answer: the successor goes on only after this.
            let warming = longest(client, old, WARM_UP);
            unchanged("after the warm-up");
            Bench::go(dir.path());
            while !over.load(Ordering::Relaxed) {
                client.write();
            }
            warming
        });
        let report = supervisor.handoff(&handoff, &mut |_| {}).unwrap();
        over.store(true, Ordering::Relaxed);
        (report, writing.join().unwrap())
    });
    let with = successor.name();
    assert!(warming < usual + WARM_UP, "{usual:?} without a warm-up, {warming:?} with {with}");
    assert_eq!(report.verdict, Verdict::Committed, "{report}");
    assert_eq!(Some(bench.write()), report.serving);
    assert_eq!(is_nonblocking(&bench.listener), nonblocking, "after the handoff");
    bench.ends_well();
}

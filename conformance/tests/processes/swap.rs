//! Daemons of different adapters hand off to each other, and a flood stops none of it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use conformance::adapters::{ALL, BLOCKING};
use conformance::suite::{Bench, PATIENCE, daemon, reason};
use handoff_blocking::{Handoff, Verdict};
use handoff_core::wire::encode;
use handoff_core::{HandoffId, Message};

/// I3: each runtime takes over from each.
#[test]
fn every_runtime_takes_over_from_every_runtime() {
    let (mut bench, mut old) = Bench::start(ALL[0], None);
    // Each pair in both directions, and each with itself, without going back over any.
    let walk = (0..ALL.len()).flat_map(|one| {
        let there_and_back = (one + 1..ALL.len()).flat_map(move |other| [other, one]);
        std::iter::once(one).chain(there_and_back).chain((one + 1 < ALL.len()).then_some(one + 1))
    });
    for next in walk {
        let launch = daemon(ALL[next], bench.dir.path(), None).unwrap();
        let report = bench.swap_as(&Handoff::new(launch), |_| {});
        assert_eq!((report.verdict, reason(&report)), (Verdict::Committed, None), "{report}");
        let new = report.serving.unwrap();
        assert_ne!(new, old);
        assert_eq!(bench.write(), new);
        old = new;
    }
    bench.ends_well();
}

/// T5, C5: strangers that never stop talking keep no deadline from passing, and no handoff. On one
/// runtime, because what reads is the same on all.
#[test]
fn a_flood_stops_no_timer() {
    /// So many that there is always more to read.
    const LOUD: usize = 8;
    let (mut bench, _) = Bench::start(BLOCKING, None);
    let path = bench.control_path();
    let (mut greeting, mut beats) = (Vec::new(), Vec::new());
    let ack = Message::HelloAck { proto_version_chosen: 1, handoff_id: HandoffId::new() };
    encode(&ack, 1, &mut greeting).unwrap();
    for ts_ms in 0..10_000 {
        encode(&Message::Heartbeat { ts_ms }, 1, &mut beats).unwrap();
    }
    let loud = [(); LOUD].map(|()| UnixStream::connect(&path).unwrap());
    std::thread::scope(|scope| {
        let (beats, _hushed) = (&beats, Hushed(&loud));
        for mut stranger in &loud {
            stranger.write_all(&greeting).unwrap();
            scope.spawn(move || while stranger.write_all(beats).is_ok() {});
        }
        let silent = UnixStream::connect(&path).unwrap();
        silent.set_read_timeout(Some(PATIENCE)).unwrap();
        // It hears Hello, and is turned away after 5 s because it says nothing.
        let mut heard = Vec::new();
        (&silent).read_to_end(&mut heard).expect("it is turned away");
        assert!(!heard.is_empty());
        let report = bench.swap(None);
        assert_eq!((report.verdict, reason(&report)), (Verdict::Committed, None), "{report}");
    });
    bench.ends_well();
}

/// Ends the connections of strangers, and so the threads that write to them.
struct Hushed<'a>(&'a [UnixStream]);

impl Drop for Hushed<'_> {
    fn drop(&mut self) {
        for stranger in self.0 {
            let _ = stranger.shutdown(Shutdown::Both);
        }
    }
}

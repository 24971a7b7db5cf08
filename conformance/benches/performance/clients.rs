//! What clients see while their daemon is swapped again and again.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use handoff_unix::process::Signal;
use handoff_unix::spawn::{Child, SpawnRole, spawn};

use crate::measure::nanos;
use crate::stage::{Kind, LISTENER, Nest, PATIENCE, Place, Stage};
use crate::table::{Row, Table, Unit};

const CLIENTS: usize = 4;
/// How long each daemon is looked at.
const TIME: Duration = Duration::from_secs(3);
/// Between two swaps, and between two requests of a client.
const SWAPS: Duration = Duration::from_millis(100);
const REQUESTS: Duration = Duration::from_millis(1);

/// What the clients of one daemon saw.
struct Seen {
    failed: usize,
    /// How long each answer took, in order.
    answers: Vec<Duration>,
}

impl Seen {
    fn nth(&self, of_1000: usize) -> f64 {
        nanos(self.answers[(self.answers.len() * of_1000 / 1000).min(self.answers.len() - 1)])
    }
}

fn ask(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"whoever serves")?;
    stream.read_exact(&mut [0; 14])
}

/// A load on this address, while `disturb` is called again and again.
fn load(address: SocketAddr, mut disturb: impl FnMut()) -> Seen {
    let over = AtomicBool::new(false);
    let mut seen = Seen { failed: 0, answers: Vec::new() };
    std::thread::scope(|scope| {
        let client = || {
            let (mut failed, mut answers) = (0, Vec::new());
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                match ask(address) {
                    Ok(()) => answers.push(start.elapsed()),
                    Err(_) => failed += 1,
                }
                std::thread::sleep(REQUESTS);
            }
            (failed, answers)
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let end = Instant::now() + TIME;
        while Instant::now() < end {
            std::thread::sleep(SWAPS);
            disturb();
        }
        over.store(true, Ordering::Relaxed);
        for client in clients {
            let (failed, answers) = client.join().expect("a client");
            seen.failed += failed;
            seen.answers.extend(answers);
        }
    });
    seen.answers.sort();
    seen
}

fn swapped(kind: Kind) -> Seen {
    let mut stage = Stage::start(kind, Place::Memory, false);
    let address = stage.nest.listener.local_addr().expect("an address");
    load(address, || {
        stage.swap();
        stage.settle();
    })
}

fn undisturbed(kind: Kind) -> Seen {
    let stage = Stage::start(kind, Place::Memory, false);
    load(stage.nest.listener.local_addr().expect("an address"), || {})
}

/// The old daemon is ended and the new one started, with the listener kept by whoever starts them.
fn stopped_and_started() -> Seen {
    let nest = Nest::new(Kind::Blocking, Place::Memory);
    let start = || {
        let listeners = [(LISTENER.to_string(), nest.listener.as_fd())];
        spawn(&nest.launch(), &listeners, SpawnRole::Cold).expect("a daemon")
    };
    let end = |child: &Child| {
        let _ = child.group.signal(Signal::TERM);
        let _ = child.pidfd.wait(Some(PATIENCE));
        child.group.reap();
    };
    let mut child = start();
    nest.told("accepts").expect("the daemon tells");
    let seen = load(nest.listener.local_addr().expect("an address"), || {
        end(&child);
        child = start();
        nest.told("accepts").expect("the daemon tells");
    });
    end(&child);
    seen
}

pub fn clients(table: &mut Table) {
    table.section("4 clients, a swap every 100 ms; the floor is the same without swaps");
    let theirs = swapped(Kind::Theirs);
    let mut show = |name: &str, ours: &Seen, calm: &Seen| {
        let tried = ours.failed + ours.answers.len();
        let their_tries = theirs.failed + theirs.answers.len();
        let per_tried = theirs.failed as f64 * tried as f64 / their_tries as f64;
        let name = |what: &str| format!("{name}, {what}");
        let failed = name(&format!("failed of {tried}"));
        let failed = Row::new("clients", failed, Unit::Count, ours.failed as f64);
        table.push(failed.peer(per_tried).reach(0.0));
        for (what, of_1000) in [("p50", 500), ("p99", 990), ("worst", 1000)] {
            let row = Row::new("clients", name(what), Unit::Nanoseconds, ours.nth(of_1000));
            table.push(row.peer(theirs.nth(of_1000)).floor(calm.nth(of_1000)));
        }
    };
    for kind in Kind::OURS {
        show(kind.name(), &swapped(kind), &undisturbed(kind));
    }
    show("stop, start", &stopped_and_started(), &undisturbed(Kind::Blocking));
}

//! What clients see while their daemon is swapped again and again.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use handoff_unix::process::{PidFd, Signal};
use handoff_unix::spawn::{Child, Launch, SpawnRole, become_subreaper, spawn};

use crate::measure::nanos;
use crate::stage::{Kind, LISTENER, Nest, PATIENCE, Place, Stage};
use crate::table::{Row, Table, Unit};

const CLIENTS: usize = 4;
/// How long each daemon is looked at.
const TIME: Duration = Duration::from_secs(2);
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
    // Also where a swap fails, so that nobody waits for the clients for ever.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
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
        let ends = Over(&over);
        while Instant::now() < end {
            std::thread::sleep(SWAPS);
            disturb();
        }
        drop(ends);
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

/// Who swaps itself when it gets a signal: a crate for processes without data.
struct Itself {
    name: &'static str,
    signal: Signal,
    /// It makes its listener itself, and passes it on.
    binds: bool,
}

const ECDYSIS: Itself = Itself { name: "ecdysis", signal: Signal::HUP, binds: true };
const SHELLFLIP: Itself = Itself { name: "shellflip", signal: Signal::USR1, binds: false };

impl Itself {
    fn run(&self, programs: &Path, swaps: bool) -> Seen {
        // What it starts is left to this process when it has ended.
        become_subreaper().expect("a subreaper");
        let nest = Nest::new(Kind::Tokio, Place::Memory);
        let passed = nest.listener.local_addr().expect("an address");
        let address = if self.binds { free_address() } else { passed };
        let listeners = [(LISTENER.to_string(), nest.listener.as_fd())];
        let args = nest.args_at(address.port().to_string().into());
        let launch = Launch::new(programs.join(self.name)).args(args);
        let child = spawn(&launch, &listeners, SpawnRole::Cold).expect("a daemon");
        let served = || {
            let pid = nest.told("pid").expect("the daemon tells");
            PidFd::open(u32::try_from(pid).expect("a pid")).expect("a process")
        };
        let mut serves = served();
        let seen = load(address, || {
            if swaps {
                serves.signal(self.signal).expect("a signal");
                let old = std::mem::replace(&mut serves, served());
                let _ = old.wait(Some(PATIENCE));
                child.group.reap();
            }
        });
        let _ = serves.signal(Signal::KILL);
        let _ = serves.wait(Some(PATIENCE));
        child.group.reap();
        seen
    }
}

/// Where their daemons are, once they are built: a workspace of its own.
fn others() -> Option<PathBuf> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/others/Cargo.toml");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("others");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--locked", "--quiet", "--manifest-path", manifest]);
    let built = cargo.arg("--target-dir").arg(&target).status();
    built.is_ok_and(|status| status.success()).then(|| target.join("release"))
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback address");
    listener.local_addr().expect("an address")
}

pub fn clients(table: &mut Table) {
    let others = others();
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
    if let Some(programs) = &others {
        for it in [ECDYSIS, SHELLFLIP] {
            show(it.name, &it.run(programs, true), &it.run(programs, false));
        }
    }
    show("stop, start", &stopped_and_started(), &undisturbed(Kind::Blocking));
    if others.is_none() {
        table.skip("clients of ecdysis and shellflip: their daemons could not be built");
    }
}

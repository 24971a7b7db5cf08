//! Whole handoffs with real processes: how long they take, how long nobody accepts, what a large
//! supervisor costs, how many fail in a row, and what they are made of.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::floor::Floor;
use crate::measure::{Rounds, median, nanos};
use crate::stage::{Kind, Place, Stage};
use crate::table::{Row, Table, Unit};

/// How many handoffs the costs are divided by, and how many come before these.
const COUNTED: usize = 10;
const BEFORE: usize = 3;

/// What one place came to, in nanoseconds.
struct Times {
    total: [f64; 4],
    gap: [f64; 4],
    phases: [[f64; 3]; 3],
    own: [f64; 4],
    floor: f64,
    two_cold_trips: f64,
}

fn measure(place: Place, journal: bool, most: usize, budget: Duration) -> Times {
    let mut floor = Floor::new();
    let mut stages = Kind::ALL.map(|kind| Stage::start(kind, place, journal));
    let mut total = [const { Vec::new() }; 4];
    let mut gap = [const { Vec::new() }; 4];
    let mut phases = [const { [const { Vec::new() }; 3] }; 3];
    let mut own = [const { Vec::new() }; 4];
    let (mut floors, mut trips) = (Vec::new(), Vec::new());
    for round in Rounds::new(most, budget) {
        for turn in 0..5 {
            let it = (round + turn) % 5;
            if it == 4 {
                floors.push(nanos(floor.swap()));
                trips.push(nanos(floor.two_cold_trips()));
                continue;
            }
            own[it].push(nanos(floor.swap_of(stages[it].nest.kind.program())));
            let swap = stages[it].swap();
            stages[it].settle();
            // The other implementation fails now and then.
            if swap.committed {
                total[it].push(nanos(swap.total));
                gap[it].push(nanos(swap.gap));
            }
            if let Some(took) = swap.phases {
                for (times, took) in phases[it].iter_mut().zip(took) {
                    times.push(nanos(took));
                }
            }
        }
    }
    Times {
        total: total.map(median),
        gap: gap.map(median),
        phases: phases.map(|phases| phases.map(median)),
        own: own.map(median),
        floor: median(floors),
        two_cold_trips: median(trips),
    }
}

pub fn handoff(table: &mut Table) {
    let memory = measure(Place::Memory, false, 41, Duration::from_secs(14));
    let disk = measure(Place::Disk, true, 41, Duration::from_secs(14));
    let ours = || Kind::OURS.into_iter().enumerate();
    table.section("a whole handoff; the floor is posix_spawn of a static program and five trips");
    for (place, times, reach) in [("tmpfs", &memory, 1.4), ("disk, journal", &disk, 1.6)] {
        for (it, kind) in ours() {
            let name = format!("{}, {place}", kind.name());
            let row = Row::new("handoff", name, Unit::Nanoseconds, times.total[it]);
            table.push(row.peer(times.total[3]).floor(times.floor).reach(reach));
        }
    }
    table.section("the same floor with the daemon's own program in place of the static one");
    for (it, kind) in ours() {
        let row = Row::new("handoff", kind.name(), Unit::Nanoseconds, memory.own[it]);
        table.push(row.peer(memory.own[3]).floor(memory.floor));
    }
    table.section("its parts: until Prepare, from there to Commit, and until the path is there");
    for (place, times) in [("tmpfs", &memory), ("disk, journal", &disk)] {
        for (it, kind) in ours() {
            for (part, time) in ["start", "swap", "path"].into_iter().zip(times.phases[it]) {
                let name = format!("{}, {place}, {part}", kind.name());
                table.push(Row::new("handoff", name, Unit::Nanoseconds, time));
            }
        }
    }
    table.section("nobody accepts; the floor is two trips to a process that sleeps");
    for (place, times, reach) in [("tmpfs", &memory, 2.5), ("disk, journal", &disk, 4.0)] {
        for (it, kind) in ours() {
            let name = format!("{}, {place}", kind.name());
            let row = Row::new("gap", name, Unit::Nanoseconds, times.gap[it]);
            table.push(row.peer(times.gap[3]).floor(times.two_cold_trips).reach(reach));
        }
    }
}

/// Handoffs by a supervisor whose memory is in use.
pub fn heap(table: &mut Table) {
    table.section("a handoff by a supervisor with a large heap, in handoffs by one without");
    let mut stages =
        [Kind::Blocking, Kind::Theirs].map(|it| Stage::start(it, Place::Memory, false));
    let sizes = [0, 256 << 20, 1 << 30];
    let mut times = [const { [const { Vec::new() }; 3] }; 2];
    for _ in Rounds::new(9, Duration::from_secs(15)) {
        for (size, bytes) in sizes.into_iter().enumerate() {
            let ballast = vec![1_u8; bytes];
            for (stage, times) in stages.iter_mut().zip(&mut times) {
                // The first one after the ballast has come or gone is not like the others.
                for counts in [false, true] {
                    let swap = stage.swap();
                    stage.settle();
                    if swap.committed && counts {
                        times[size].push(nanos(swap.total));
                    }
                }
            }
            black_box(&ballast);
        }
    }
    let [ours, theirs] = times.map(|times| times.map(median));
    for (size, name) in [(1, "256 MiB"), (2, "1 GiB")] {
        let row = Row::new("heap", name, Unit::Times, ours[size] / ours[0]);
        table.push(row.peer(theirs[size] / theirs[0]).reach(1.1));
    }
}

/// Handoffs as fast as they go.
pub fn failures(table: &mut Table) {
    table.section("handoffs back to back");
    let tried = |kind, most, budget: Duration| {
        let mut stage = Stage::start(kind, Place::Memory, false);
        let (start, mut tried, mut failed) = (Instant::now(), 0, 0);
        while tried < most && start.elapsed() < budget {
            tried += 1;
            if !stage.swap().committed {
                failed += 1;
                // About as long as one takes: whatever was in the way has its time to go.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        (tried, failed, start.elapsed())
    };
    let (theirs, theirs_failed, _) = tried(Kind::Theirs, 100, Duration::from_secs(5));
    for (kind, most) in [(Kind::Blocking, 1000), (Kind::Tokio, 100), (Kind::Smol, 100)] {
        let (tried, failed, time) = tried(kind, most, Duration::from_secs(12));
        let name = format!("failures in {tried}, {}", kind.name());
        let row = Row::new("failures", name, Unit::Count, failed.into()).reach(0.0);
        let per_tried = f64::from(theirs_failed) * f64::from(tried) / f64::from(theirs);
        table.push(row.peer(per_tried));
        let name = format!("each, {}", kind.name());
        let each = nanos(time) / f64::from(tried);
        table.push(Row::new("failures", name, Unit::Nanoseconds, each));
    }
}

/// What a boss of a process of its own does: `handoffs`, one after the other.
pub fn boss(kind: Kind, handoffs: usize) {
    let mut stage = Stage::start(kind, Place::Memory, true);
    for _ in 0..handoffs {
        assert!(stage.swap().committed, "it commits");
        if kind != Kind::Theirs {
            stage.settle();
        }
        // Their control path is there by then, and nobody has to ask for it.
        std::thread::park_timeout(Duration::from_millis(60));
    }
}

/// System calls and threads of all processes of a number of handoffs.
fn traced(kind: Kind, handoffs: usize) -> Option<[f64; 2]> {
    let dir = Place::Memory.dir();
    let log = dir.path().join("log");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-s", "0", "-o"]).arg(&log);
    strace.arg(std::env::current_exe().ok()?).args(["--boss", kind.name(), "--handoffs"]);
    strace.arg(handoffs.to_string()).stdout(Stdio::null()).stderr(Stdio::null());
    if !strace.status().is_ok_and(|status| status.success()) {
        return None;
    }
    let log = std::fs::read_to_string(log).ok()?;
    let calls = log.lines().filter(|line| {
        !line.contains(" resumed>") && !line.contains(" +++ ") && !line.contains(" --- ")
    });
    let (mut count, mut threads) = (0.0, 0.0);
    for call in calls {
        count += 1.0;
        threads += if call.contains("CLONE_THREAD") { 1.0 } else { 0.0 };
    }
    Some([count, threads])
}

pub fn costs(table: &mut Table) {
    table.section("what a handoff takes of all processes, the journal on");
    let each = |kind| {
        let [few, many] = [BEFORE, BEFORE + COUNTED].map(|handoffs| traced(kind, handoffs));
        let (few, many) = (few?, many?);
        Some([0, 1].map(|it| (many[it] - few[it]) / COUNTED as f64))
    };
    match each(Kind::Theirs) {
        Some([calls, threads]) => {
            for kind in Kind::OURS {
                let Some([our_calls, our_threads]) = each(kind) else { continue };
                let name = format!("system calls, {}", kind.name());
                table.push(Row::new("costs", name, Unit::Count, our_calls).peer(calls));
                let name = format!("threads, {}", kind.name());
                table.push(Row::new("costs", name, Unit::Count, our_threads).peer(threads));
            }
        }
        None => {
            table.skip("system calls and threads are not counted: strace is not here, or may not")
        }
    }
    let allocations = |kind| {
        let mut stage = Stage::start(kind, Place::Memory, true);
        let counts = (0..BEFORE).map(|_| {
            let count = allocation_counter::measure(|| assert!(stage.swap().committed)).count_total;
            stage.settle();
            count as f64
        });
        median(counts.collect())
    };
    let name = "allocations of the supervisor's thread";
    let row = Row::new("costs", &name[..32], Unit::Count, allocations(Kind::Blocking));
    table.push(row.peer(allocations(Kind::Theirs)));
}

//! Instruction counts, where a timing would be noise: exact but for the compiler, so that a regression
//! shows. callgrind counts a process that does the work a number of times, and one that does it not.

use std::hint::black_box;
use std::process::{Command, ExitCode};

use conformance::world::{Rules, World};
use handoff_core::wire::encode;

use crate::codec::{decoder, feed, framed, long_frame, messages};

/// How much more than what is recorded is no regression.
const ROOM: f64 = 1.03;

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.tsv");

/// What is counted: a name, how many times it is done, and what does it so many times.
type Case = (&'static str, u32, fn(u32));

const CASES: [Case; 6] = [
    ("encode the 14", 2000, |times| {
        let (messages, mut room) = (messages(1), Vec::with_capacity(1024));
        for _ in 0..times {
            for message in &messages {
                room.clear();
                encode(black_box(message), 1, &mut room).expect("it fits");
                black_box(&room);
            }
        }
    }),
    ("decode the 14", 2000, |times| {
        let frames: Vec<_> = messages(1).iter().map(framed).collect();
        let mut decoder = decoder();
        for _ in 0..times {
            for frame in &frames {
                black_box(&decoder.decode(&mut black_box(&frame[..])).expect("a frame"));
            }
        }
    }),
    ("encode lists of 10000", 20, |times| {
        let mut room = Vec::with_capacity(1 << 20);
        let long = messages(10_000);
        for _ in 0..times {
            for message in &long {
                room.clear();
                encode(black_box(message), 1, &mut room).expect("it fits");
                black_box(&room);
            }
        }
    }),
    ("decode lists of 10000", 20, |times| {
        let frames: Vec<_> = messages(10_000).iter().map(framed).collect();
        let mut decoder = decoder();
        for _ in 0..times {
            for frame in &frames {
                black_box(&decoder.decode(&mut black_box(&frame[..])).expect("a frame"));
            }
        }
    }),
    ("decode 62 KiB byte by byte", 10, |times| {
        let (frame, mut decoder) = (long_frame(), decoder());
        for _ in 0..times {
            feed(&mut decoder, &frame, 1);
        }
    }),
    ("a handoff of the machines", 200, |times| {
        for _ in 0..times {
            let mut world = World::settled(Rules::HANDOFF);
            while let Some(&choice) = world.choices().first() {
                world.step(choice, &mut |_| {});
            }
            black_box(&world);
        }
    }),
];

/// The process that is counted.
pub fn play(case: usize, times: u32) {
    let (_, most, work) = CASES[case];
    work(times.min(most));
}

fn counted(case: usize, times: u32) -> Option<f64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(std::env::current_exe().ok()?).args(["--case", &case.to_string(), "--times"]);
    let output = valgrind.arg(times.to_string()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find_map(|line| line.split_once("Collected :"))?;
    line.1.trim().parse().ok()
}

/// Counts, and compares with what is recorded, or records.
pub fn compare(record: bool) -> ExitCode {
    let recorded = std::fs::read_to_string(RECORDED).unwrap_or_default();
    let recorded = |name: &str| -> Option<f64> {
        let line = recorded.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
        line?.trim().parse().ok()
    };
    let (mut lines, mut worse) = (String::new(), 0);
    println!("{:<32}{:>14}{:>14}{:>8}", "instructions", "now", "recorded", "");
    for (case, (name, times, _)) in CASES.into_iter().enumerate() {
        let [none, all] = [0, times].map(|times| counted(case, times));
        let Some((none, all)) = none.zip(all) else {
            eprintln!("valgrind is not here, or cannot run this program");
            return ExitCode::from(2);
        };
        let each = ((all - none) / f64::from(times)).round();
        lines += &format!("{name}\t{each:.0}\n");
        let before = recorded(name);
        let times = before.map_or(String::new(), |before| format!("{:.3}", each / before));
        let shown = before.map_or(String::new(), |before| format!("{before:.0}"));
        let is_worse = before.is_some_and(|before| each > before * ROOM);
        worse += u32::from(is_worse);
        println!("{name:<32}{each:>14.0}{shown:>14}{times:>8}{}", if is_worse { " !" } else { "" });
    }
    if record {
        std::fs::write(RECORDED, lines).expect("the record can be written");
    } else if worse > 0 {
        eprintln!("{worse} take more instructions than recorded; --record, if that is meant");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

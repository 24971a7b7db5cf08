//! What a fuzzer does with the wire, the machines and their closed world.
//!
//! A target is a function of bytes that panics where something is wrong:
//!
//! | target | its bytes are | it shows |
//! |---|---|---|
//! | [`decoder`] | a stream, and where it is cut | no bytes panic; how they are cut changes nothing; memory is bounded by what has arrived; what is read is written again as it was, or shorter (W2, W5, W6) |
//! | [`differential`] | a stream, or a message | beyond-handoff reads and writes the same, but for what it is known to let pass (W2, W3, W5, W6) |
//! | [`world`] | rules, then choices | whatever happens in the closed world, the invariants hold, and everything comes to rest (I1-I6) |
//! | [`incumbent`], [`successor`], [`supervisor`] | rolls of a host's dice | a machine keeps its promises to peers that lie and a host that is late (R1-R8, T5, W7) |
//!
//! The last three play the hosts of handoff-core's property tests, and the world is that of the simulator:
//! a fuzzer adds that it finds its way to what has not been run yet.
//!
//! # Running it
//!
//! Every input of the corpus is replayed by `cargo test -p conformance --test fuzz_corpus`, which needs no
//! fuzzer. `cargo install cargo-fuzz` and a C++ compiler give one, on stable Rust too, without a
//! sanitizer: there is no unsafe code here for one to watch.
//!
//! ```text
//! cd conformance
//! mkdir -p fuzz/target/decoder
//! cargo fuzz run --sanitizer none decoder fuzz/target/decoder fuzz/corpus/decoder -- -max_total_time=300
//! ```
//!
//! What it learns goes to the first directory; without one it goes to the corpus.
//!
//! # A finding
//!
//! It is left under `fuzz/artifacts`. `cargo fuzz tmin --sanitizer none <target> <file>` makes it small,
//! and what the [`world`] finds is told as a short run that `simulate --replay` draws. Put the file
//! into `corpus/<target>` under a name that says what it shows; the replay tells what a machine was given
//! and what it asked for, and guards the fix from then on.
//!
//! Such names are those of a bug, planted or not, that the input found, or of the frames of
//! handoff-core's vectors; `long` ones were drawn at random, and the others kept for what they reach. After
//! a long run, keep what is new of it: `cargo fuzz cmin --sanitizer none <target> fuzz/target/<target>`,
//! then copy what is small.

// Where cargo looks for tests, and for what they share.
#[path = "../../../handoff-core/tests/common/mod.rs"]
mod common;
#[path = "../../../handoff-core/tests/hosts/mod.rs"]
mod hosts;

mod decoder;
mod differential;
mod machines;
mod world;

pub use decoder::decoder;
pub use differential::differential;
pub use machines::{incumbent, successor, supervisor, transcript};
pub use world::world;

/// What panics where something is wrong.
pub type Target = fn(&[u8]);

/// All there are, by the names of their corpora.
pub const TARGETS: [(&str, Target); 6] = [
    ("decoder", decoder),
    ("differential", differential),
    ("world", world),
    ("incumbent", incumbent),
    ("successor", successor),
    ("supervisor", supervisor),
];

/// How many choices of an input count.
const STEPS: usize = 2000;

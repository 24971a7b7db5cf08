//! What proves Handoff, its adapters, and any other implementation of the protocol.
//!
//! | you have | you take |
//! |---|---|
//! | a simulator of your own, and want handoffs in it | [`World`], below; `examples/embed.rs` |
//! | an adapter for another runtime | [`suite::test`]: one trait, one call |
//! | an implementation that you can run | [`probe`], as a library or by `conformance probe` |
//!
//! # The world
//!
//! [`World`] holds one supervisor, the daemons it has started, their connections, the lock, the control
//! path and time. The machines in it are those of `handoff-core`, unchanged: the world carries out what
//! they ask for, tells them what came of it, and lets things go wrong where its [`Rules`] allow that.
//! The oracle, [`World::violation`], knows the invariants I1 to I6 and nothing of the conversation.
//!
//! # Driving it
//!
//! A world is plain data. [`World::choices`] lists what can happen next, [`World::step`] lets it
//! happen, and a list of choices is a run that can be replayed:
//!
//! ```
//! use conformance::world::{Kind, Rules, World};
//!
//! let mut world = World::settled(Rules::HANDOFF);
//! let old = world.serving();
//! // Everything that has to be done, and a handoff where one may be asked for.
//! while let Some(&choice) = world.choices().first() {
//!     assert_ne!(world.kind(choice), Kind::Fault);
//!     world.step(choice, &mut |line| println!("{line:?}"));
//!     assert_eq!(world.violation(), None);
//! }
//! assert!(world.serving() > old);
//! ```
//!
//! Who listens to a step is told every input and output of every machine; [`transcript`] makes text of
//! them. There is no clock and no randomness in it, and all of a world counts as its state.
//!
//! # What drives it
//!
//! - [`explore`](explore::explore) looks at every state there is, and tells whether each of them leads
//!   to rest: that is what "never nobody serving" means for a graph.
//! - [`Handoffs`](model::Handoffs) is the same graph as a [`stateright::Model`], for its checkers.
//! - [`walk`](walk::walk) goes at random, from a seed, deeper than a whole graph can be looked at.
//! - [`simulate`](simulate::simulate) hands over dozens of times in a row in one world, with more kinds
//!   of faults and messages in pieces, and makes what it finds short. `cargo run --release -p conformance
//!   --bin simulate -- --runs 100000` does so by hand; `--replay` shows a saved run.
//! - `cargo run --release -p conformance --example explore` opens stateright's explorer in a browser,
//!   where each path is a sequence diagram; with `-- faults=1 any` it searches instead, and prints a
//!   shortest run to whatever is wrong.
//!
//! # What it does not know
//!
//! Programs write nothing, so I3 is checked as what it rests on: data is open only under the lock, it
//! is sealed before the lock is let go, and nobody serves but the one that holds it. Listeners are not
//! modelled either (I4); whoever serves accepts. Both are for the tests with real processes. Frames are
//! whole but where [`Rules::bytes`](world::Rules::bytes) cuts them; what other bytes may do to a decoder
//! is for the fuzzer. The repository's `docs/testing.md` has all layers in one table.
//!
//! [`World`]: world::World
//! [`World::choices`]: world::World::choices
//! [`World::step`]: world::World::step
//! [`World::violation`]: world::World::violation
//! [`Rules`]: world::Rules
//! [`transcript`]: transcript::transcript

#[cfg(feature = "adapters")]
#[allow(clippy::expect_used, reason = "what a scenario cannot do without, it fails without")]
pub mod adapters;
pub mod explore;
#[cfg(feature = "adapters")]
pub mod matrix;
pub mod model;
pub mod probe;
pub mod simulate;
#[allow(clippy::expect_used, reason = "what a scenario cannot do without, it fails without")]
pub mod suite;
pub mod transcript;
pub mod walk;
pub mod world;

/// The clauses of the protocol: how many there are of each letter.
pub const CLAUSES: [(char, u32); 6] = [('W', 7), ('C', 6), ('T', 5), ('R', 17), ('X', 2), ('I', 6)];

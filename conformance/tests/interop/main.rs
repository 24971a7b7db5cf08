//! Handoffs between this project and `beyond-handoff`, the other implementation of its wire, in every
//! pairing of roles: real processes, real sockets, a real data directory, and a client that never
//! stops writing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

/// One test for each scenario with each of our adapters.
macro_rules! with_each_of_ours {
    ($($scenario:ident),+ $(,)?) => {
        with_each_of_ours!(@ blocking Blocking, $($scenario)+);
        with_each_of_ours!(@ tokio Tokio, $($scenario)+);
        with_each_of_ours!(@ smol Smol, $($scenario)+);
    };
    (@ $name:ident $kind:ident, $($scenario:ident)+) => {
        mod $name {
            $(#[test]
            fn $scenario() {
                super::$scenario(crate::bench::Kind::$kind);
            })+
        }
    };
}

mod bench;
mod boss;
mod commits;
mod daemons;
mod environment;
mod rollbacks;
mod supervisor_dies;

/// Not a test of its own: what the daemon processes run.
#[test]
#[ignore = "the body of the daemon processes"]
fn daemon() {
    daemons::daemon();
}

/// Not a test of its own: what the supervisor processes run.
#[test]
#[ignore = "the body of the supervisor processes"]
fn supervisor() {
    boss::supervisor();
}

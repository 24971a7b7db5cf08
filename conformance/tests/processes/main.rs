//! Handoffs of real processes over real sockets and a real data directory, on every runtime: its
//! adapter's daemons under its adapter's supervisor.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

/// One test for each scenario on each runtime.
macro_rules! on_every_runtime {
    ($($scenario:ident),+ $(,)?) => {
        on_every_runtime!(@ blocking Blocking, $($scenario)+);
        on_every_runtime!(@ tokio Tokio, $($scenario)+);
        on_every_runtime!(@ tokio_threads TokioThreads, $($scenario)+);
        on_every_runtime!(@ smol Smol, $($scenario)+);
        on_every_runtime!(@ async_std AsyncStd, $($scenario)+);
    };
    (@ $name:ident $runtime:ident, $($scenario:ident)+) => {
        mod $name {
            $(#[test]
            fn $scenario() {
                super::$scenario(crate::harness::Runtime::$runtime);
            })+
        }
    };
}

mod harness;
mod supervisor_dies;
mod swap;
mod warm_up;

/// Not a test of its own: what the daemon processes run.
#[test]
#[ignore = "the body of the daemon processes"]
fn daemon() {
    harness::daemon();
}

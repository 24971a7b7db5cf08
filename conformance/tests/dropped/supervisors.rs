//! What a supervisor gives, dropped at any point.

use std::cell::Cell;
use std::time::{Duration, Instant};

use handoff_core::supervisor::{Event, Phase, Verdict};
use handoff_unix::host::{Handoff, StartError};
use handoff_unix::lock::{DataDirLock, LockState, lock_state};

use crate::adapters::{Adapter, PATIENCE, a_while, first, polled, unless};
use crate::bench::{Bench, calm, children, eventually, fds, threads};

/// Where a handoff is dropped.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// When so much was woken.
    Polls(usize),
    /// When this phase is told of, while nothing holds the handoff up.
    Passing(Phase),
    /// In the middle of this phase.
    In(Phase),
}

impl Point {
    fn all() -> Vec<Self> {
        use Phase::{Commit, Drain, Open, Rollback, Seal, Warm};
        let passing = [Warm, Drain, Seal, Open, Commit, Rollback].map(Self::Passing);
        let within = [Warm, Drain, Seal, Open].map(Self::In);
        passing.into_iter().chain(within).collect()
    }

    /// Whether the handoff cannot come further than this, so that the old daemon must serve on.
    const fn is_early(self) -> bool {
        matches!(self, Self::In(_) | Self::Passing(Phase::Rollback))
    }
}

impl<A: Adapter> Bench<A> {
    /// A handoff that is dropped at a point; whether it was done before.
    async fn dropped(&self, point: Point) -> bool {
        let how: &[_] = match point {
            Point::In(Phase::Warm) => &[("TEST_HOLD", "warm"), ("TEST_TERM", "")],
            Point::In(Phase::Open) => &[("TEST_HOLD", "open")],
            Point::Passing(Phase::Rollback) => &[("TEST_FAIL", "")],
            _ => &[],
        };
        self.mark("hold-drain", matches!(point, Point::In(Phase::Drain)));
        self.mark("hold-seal", matches!(point, Point::In(Phase::Seal)));
        let handoff = Handoff::new(self.launch(how));
        let there = Cell::new(false);
        let on = |event: &Event| {
            if let (Event::Phase(now), Point::In(phase) | Point::Passing(phase)) = (event, point) {
                there.set(there.get() || *now == phase);
            }
        };
        let future = A::handoff(self.supervisor(), &handoff, on);
        let done = match point {
            Point::Polls(polls) => polled(future, polls).await.is_some(),
            Point::In(_) | Point::Passing(_) => unless(future, || there.get()).await.is_some(),
        };
        self.mark("hold-drain", false);
        self.mark("hold-seal", false);
        done
    }
}

pub async fn a_handoff_that_is_dropped_is_rolled_back<A: Adapter>(runtime: &str) {
    A::warm().await;
    let (mut bench, _) = Bench::<A>::serving(runtime, &[]).await;
    let mut serving = bench.swap().await;
    let rest = bench.at_rest(serving).await;
    for point in Point::all() {
        let done = bench.dropped(point).await;
        if point.is_early() {
            // What is told at once may be the end of it as well.
            assert!(!done || matches!(point, Point::Passing(_)), "{point:?}");
            assert_eq!(bench.write().await, serving, "{point:?}");
            bench.holds(serving);
        } else {
            bench.write().await;
        }
        serving = bench.swap().await;
        bench.rests(&rest, &[serving]).await;
    }
    for polls in 0.. {
        let done = bench.dropped(Point::Polls(polls)).await;
        bench.write().await;
        serving = bench.swap().await;
        bench.rests(&rest, &[serving]).await;
        if done {
            break;
        }
    }
    // At once, again and again: nothing is piled up.
    for polls in 0..8 {
        bench.dropped(Point::Polls(polls % 3)).await;
    }
    serving = bench.swap().await;
    bench.rests(&rest, &[serving]).await;
    eventually::<A, _>("threads", calm(runtime, &["scenario"]), threads).await;
    bench.ends_well().await;
}

pub async fn a_supervisor_that_is_dropped_rolls_back_and_ends<A: Adapter>(runtime: &str) {
    A::warm().await;
    let mut bench = Bench::<A>::bare(runtime);
    let mut rest = None;
    let polls = (0..12).map(Point::Polls);
    for point in Point::all().into_iter().chain(polls) {
        let before = fds();
        bench.supervise();
        bench.start(&[]).await;
        let serving = bench.swap().await;
        bench.dropped(point).await;
        bench.supervisor = None;
        // The task is gone when its descriptors are.
        let rest = rest.get_or_insert(before);
        eventually::<A, _>("descriptors", rest.clone(), fds).await;
        let now = bench.write().await;
        if point.is_early() {
            assert_eq!(now, serving, "{point:?}");
        }
        bench.holds(now);
        // The one that comes next finds it, and reaps whoever has ended since.
        bench.supervise();
        let found = A::start(bench.supervisor(), &bench.launch(&[])).await.unwrap();
        assert_eq!((found.pid, found.started), (now, false), "{point:?}");
        eventually::<A, _>("processes", vec![now], children).await;
        bench.supervisor = None;
        eventually::<A, _>("descriptors", rest.clone(), fds).await;
    }
    eventually::<A, _>("threads", calm(runtime, &["scenario"]), threads).await;
    bench.ends_well().await;
}

/// Waits until the supervisor is idle: a handoff is refused then, because nobody serves.
async fn idle<A: Adapter>(bench: &Bench<A>) {
    let handoff = Handoff::new(bench.launch(&[]));
    let limit = Instant::now() + PATIENCE;
    loop {
        match A::handoff(bench.supervisor(), &handoff, |_| {}).await {
            Err(StartError::Busy) => assert!(Instant::now() < limit, "the search goes on"),
            report => return assert_eq!(report.unwrap().verdict, Verdict::Refused),
        }
        A::pause().await;
    }
}

pub async fn a_search_that_is_dropped_is_given_up<A: Adapter>(runtime: &str) {
    A::warm().await;
    let mut bench = Bench::<A>::new(runtime);
    let lock = DataDirLock::try_take(&bench.data()).unwrap();
    let launch = bench.launch(&[]);
    for (polls, pauses) in [(0, 0), (1, 0), (1, 1), (2, 5), (9, 1), (9, 9), (99, 50)] {
        let found = a_while::<A, _>(A::start(bench.supervisor(), &launch), polls, pauses).await;
        assert!(found.is_none(), "{found:?}");
        idle(&bench).await;
    }
    // Nothing is started once nobody waits, not even when the lock is free.
    lock.release().unwrap();
    a_while::<A, _>(std::future::pending::<()>(), 1, 50).await;
    assert_eq!(children(), []);
    bench.start(&[]).await;
    let serving = bench.swap().await;
    eventually::<A, _>("processes", vec![serving], children).await;
    bench.ends_well().await;
}

pub async fn a_supervisor_that_is_dropped_gives_up_its_search<A: Adapter>(runtime: &str) {
    A::warm().await;
    let mut bench = Bench::<A>::bare(runtime);
    let lock = DataDirLock::try_take(&bench.data()).unwrap();
    let rest = fds();
    for (polls, pauses) in [(0, 0), (1, 0), (1, 1), (2, 5), (9, 1), (9, 9), (99, 50)] {
        bench.supervise();
        let launch = bench.launch(&[]);
        a_while::<A, _>(A::start(bench.supervisor(), &launch), polls, pauses).await;
        drop(launch);
        bench.supervisor = None;
        eventually::<A, _>("descriptors", rest.clone(), fds).await;
    }
    assert_eq!(children(), []);
    lock.release().unwrap();
    bench.ends_well().await;
}

pub async fn a_start_that_is_dropped_leaves_its_daemon_to_serve<A: Adapter>(runtime: &str) {
    A::warm().await;
    let mut bench = Bench::<A>::new(runtime);
    let launch = bench.launch(&[("TEST_HOLD", "open")]);
    let start = A::start(bench.supervisor(), &launch);
    let opening = async {
        while lock_state(&bench.data()) == LockState::Free {
            A::pause().await;
        }
    };
    assert!(first(start, opening).await.is_err(), "it serves before it is open");
    let started = children();
    bench.mark("go", true);
    let found = loop {
        match A::start(bench.supervisor(), &launch).await {
            Err(StartError::Busy) => A::pause().await,
            found => break found.unwrap(),
        }
    };
    assert_eq!(started, [found.pid]);
    assert_eq!(bench.write().await, found.pid);
    bench.holds(found.pid);
    drop(launch);
    bench.ends_well().await;
}

pub async fn an_exit_is_told_once_however_often_the_wait_is_dropped<A: Adapter>(runtime: &str) {
    A::warm().await;
    let (mut bench, first) = Bench::<A>::serving(runtime, &[]).await;
    let mut serving = vec![first];
    let (mut told, mut polls) = (Vec::new(), 0);
    for _ in 0..4 {
        // Dropped while nothing comes, and while the exit comes.
        for _ in 0..4 {
            told.extend(a_while::<A, _>(A::exited(bench.supervisor()), polls % 3, 2).await);
            polls += 1;
        }
        serving.push(bench.swap().await);
        for _ in 0..4 {
            told.extend(a_while::<A, _>(A::exited(bench.supervisor()), 2, polls % 3).await);
            polls += 1;
        }
    }
    let ended = &serving[..serving.len() - 1];
    while told.len() < ended.len() {
        let exit = a_while::<A, _>(A::exited(bench.supervisor()), usize::MAX, 10_000).await;
        told.push(exit.expect("an exit was lost"));
    }
    let pids: Vec<u32> = told.iter().map(|(pid, _)| *pid).collect();
    assert_eq!(pids, ended);
    assert!(told.iter().all(|(_, how)| how.starts_with("exit code 0")), "{told:?}");
    assert!(a_while::<A, _>(A::exited(bench.supervisor()), 9, 20).await.is_none());
    bench.ends_well().await;
}

pub async fn a_shutdown_that_is_dropped_ends_the_daemons<A: Adapter>(runtime: &str) {
    A::warm().await;
    let mut bench = Bench::<A>::bare(runtime);
    let mut rest = None;
    for polls in 1..4 {
        for supervised in [true, false] {
            let before = fds();
            bench.supervise();
            bench.start(&[("TEST_TERM", "")]).await;
            polled(A::shutdown(bench.supervisor(), Duration::from_secs(5)), polls).await;
            if !supervised {
                bench.supervisor = None;
            }
            eventually::<A, _>("processes", vec![], children).await;
            bench.supervisor = None;
            let rest = rest.get_or_insert(before);
            eventually::<A, _>("descriptors", rest.clone(), fds).await;
        }
    }
    bench.ends_well().await;
}

//! Many daemons swapped at once by one process.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use handoff_core::supervisor::{Report, Verdict};
use handoff_unix::host::{Handoff, StartError, task};
use tokio::runtime::Runtime;

use crate::floor::Floor;
use crate::measure::{Rounds, median, nanos};
use crate::stage::{Kind, LISTENER, Nest, Place, Stage};
use crate::table::{Row, Table, Unit};

/// That many daemons of a kind, with their supervisors.
trait Many {
    /// Swaps all of them at once: how long it takes, and how many fail.
    fn swap(&mut self) -> (Duration, usize);
}

/// A thread for each.
struct Threads {
    workers: Vec<(Sender<()>, JoinHandle<()>)>,
    done: Receiver<bool>,
    settled: Receiver<()>,
}

impl Threads {
    fn start(kind: Kind, count: usize) -> Self {
        let (done, all_done) = channel();
        let (settled, all_settled) = channel();
        let workers = (0..count).map(|_| {
            let (go, gone) = channel();
            let (done, settled) = (done.clone(), settled.clone());
            let work = move || {
                let mut stage = Stage::start(kind, Place::Memory, false);
                let _ = settled.send(());
                while let Ok(()) = gone.recv() {
                    let _ = done.send(stage.swap().committed);
                    stage.settle();
                    let _ = settled.send(());
                }
            };
            (go, std::thread::spawn(work))
        });
        let threads = Self { workers: workers.collect(), done: all_done, settled: all_settled };
        threads.settle();
        threads
    }

    fn settle(&self) {
        self.workers.iter().for_each(|_| self.settled.recv().expect("a daemon"));
    }
}

impl Many for Threads {
    fn swap(&mut self) -> (Duration, usize) {
        let start = Instant::now();
        for (go, _) in &self.workers {
            go.send(()).expect("a supervisor");
        }
        let committed = self.workers.iter().map(|_| self.done.recv().expect("a supervisor"));
        let failed = committed.filter(|committed| !committed).count();
        let took = start.elapsed();
        self.settle();
        (took, failed)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for (go, thread) in self.workers.drain(..) {
            drop(go);
            let _ = thread.join();
        }
    }
}

/// A supervisor of tasks.
trait Supervises: Deref<Target = task::Supervisor> + Send + Sync + 'static {}

impl<S: Deref<Target = task::Supervisor> + Send + Sync + 'static> Supervises for S {}

/// All in one runtime.
struct Tasks<S: Supervises, R: Runs> {
    all: Vec<(Nest, Arc<S>)>,
    runs: R,
}

/// A runtime for them.
trait Runs {
    /// Does all of these at once.
    fn all<T: Send + 'static>(&self, work: Vec<impl Future<Output = T> + Send + 'static>)
    -> Vec<T>;
}

impl Runs for Runtime {
    fn all<T: Send + 'static>(
        &self,
        work: Vec<impl Future<Output = T> + Send + 'static>,
    ) -> Vec<T> {
        self.block_on(async {
            let work: Vec<_> = work.into_iter().map(tokio::spawn).collect();
            let mut all = Vec::new();
            for task in work {
                all.push(task.await.expect("a task"));
            }
            all
        })
    }
}

struct OnSmol;

impl Runs for OnSmol {
    fn all<T: Send + 'static>(
        &self,
        work: Vec<impl Future<Output = T> + Send + 'static>,
    ) -> Vec<T> {
        smol::block_on(async {
            let work: Vec<_> = work.into_iter().map(smol::spawn).collect();
            let mut all = Vec::new();
            for task in work {
                all.push(task.await);
            }
            all
        })
    }
}

impl<S: Supervises, R: Runs> Tasks<S, R> {
    fn start(kind: Kind, count: usize, runs: R, supervisor: impl Fn(&R, &Nest) -> S) -> Self {
        let mut all = Vec::new();
        for _ in 0..count {
            let nest = Nest::new(kind, Place::Memory);
            let supervisor = Arc::new(supervisor(&runs, &nest));
            supervisor.listener(LISTENER, nest.listener()).expect("a listener");
            all.push((nest, supervisor));
        }
        let start = |(nest, supervisor): &(Nest, Arc<S>)| {
            let (launch, supervisor) = (nest.launch(), Arc::clone(supervisor));
            async move { supervisor.start(&launch).await }
        };
        for started in runs.all(all.iter().map(start).collect()) {
            started.expect("a daemon");
        }
        Self { all, runs }
    }
}

impl<S: Supervises, R: Runs> Many for Tasks<S, R> {
    fn swap(&mut self) -> (Duration, usize) {
        let handoff = |(nest, supervisor): &(Nest, Arc<S>)| {
            let (handoff, supervisor) = (Handoff::new(nest.launch()), Arc::clone(supervisor));
            async move { supervisor.handoff(&handoff, |_| {}).await }
        };
        let work: Vec<_> = self.all.iter().map(handoff).collect();
        let start = Instant::now();
        let reports = self.runs.all(work);
        let took = start.elapsed();
        let failed = |report: &&Result<Report, StartError>| {
            !report.as_ref().is_ok_and(|report| report.verdict == Verdict::Committed)
        };
        let failed = reports.iter().filter(failed).count();
        let exited = |(_, supervisor): &(Nest, Arc<S>)| {
            let supervisor = Arc::clone(supervisor);
            async move { supervisor.exited().await }
        };
        if failed == 0 {
            self.runs.all(self.all.iter().map(exited).collect());
        }
        (took, failed)
    }
}

impl<S: Supervises, R: Runs> Drop for Tasks<S, R> {
    fn drop(&mut self) {
        let end = |(_, supervisor): &(Nest, Arc<S>)| {
            let supervisor = Arc::clone(supervisor);
            async move { supervisor.shutdown(Duration::from_secs(1)).await }
        };
        self.runs.all(self.all.iter().map(end).collect());
    }
}

fn start(kind: Kind, count: usize) -> Box<dyn Many> {
    match kind {
        Kind::Blocking | Kind::Theirs => Box::new(Threads::start(kind, count)),
        Kind::Tokio => {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().expect("a runtime");
            Box::new(Tasks::start(kind, count, runtime, |runtime: &Runtime, nest| {
                let _inside = runtime.enter();
                handoff_tokio::Supervisor::new(nest.config(false)).expect("a supervisor")
            }))
        }
        Kind::Smol => Box::new(Tasks::start(kind, count, OnSmol, |_, nest| {
            handoff_smol::Supervisor::new(nest.config(false)).expect("a supervisor")
        })),
    }
}

pub fn many(table: &mut Table) {
    table.section("many daemons at once, one supervising process; the floor is as many spawns");
    let floor = Floor::new();
    for (count, rounds, budget) in [(1, 15, 4), (10, 9, 6), (50, 5, 15), (200, 1, 20)] {
        let kinds = Kind::ALL;
        // Not more processes than the machine can bear.
        let together = if count > 50 { 1 } else { kinds.len() };
        let mut times = [const { Vec::new() }; 4];
        let (mut failed, mut floors) = ([0; 4], Vec::new());
        let mut own = [const { Vec::new() }; 4];
        for (group, kinds) in kinds.chunks(together).enumerate() {
            let mut all: Vec<_> = kinds.iter().map(|kind| start(*kind, count)).collect();
            let each = Duration::from_secs(budget) * together as u32 / 4;
            let rounds: Box<dyn Iterator<Item = usize>> =
                if rounds > 1 { Box::new(Rounds::new(rounds, each)) } else { Box::new(0..1) };
            for round in rounds {
                floors.push(nanos(floor.swaps(count)));
                for turn in 0..all.len() {
                    let it = (round + turn) % all.len();
                    let (took, fails) = all[it].swap();
                    times[group * together + it].push(nanos(took));
                    if count == 50 {
                        own[it].push(nanos(floor.swaps_of(kinds[it].program(), count)));
                    }
                    failed[group * together + it] += fails;
                }
            }
        }
        let [ours @ .., theirs] = times.map(median);
        let floor = median(floors);
        for ((kind, ours), failed) in Kind::OURS.into_iter().zip(ours).zip(failed) {
            let failed = if failed > 0 { format!(", {failed} FAIL") } else { String::new() };
            let name = format!("{count}, {}{failed}", kind.name());
            let row = Row::new("many", name, Unit::Nanoseconds, ours).peer(theirs).floor(floor);
            table.push(if count == 50 { row.reach(2.5) } else { row });
        }
        if count == 50 {
            let [ours @ .., theirs] = own.map(median);
            for (kind, ours) in Kind::OURS.into_iter().zip(ours) {
                let name = format!("{count} times its own program, {}", kind.name());
                let row = Row::new("many", name, Unit::Nanoseconds, ours);
                table.push(row.peer(theirs).floor(floor));
            }
        }
        if failed[3] > 0 {
            table.skip(&format!("the peer failed {} times at {count}", failed[3]));
        }
    }
}

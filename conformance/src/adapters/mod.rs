//! This project's adapters, as the [suite](crate::suite) sees them: an [`Adapter`] each.

pub mod examples;
mod tasks;
mod theirs;
mod threads;

use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use handoff_core::daemon::Ended;
use handoff_core::supervisor::{Event, Report};
use handoff_unix::host::{Handoff, StartError, Started, SupervisorConfig, task};
use handoff_unix::spawn::Launch;
use tokio::runtime::Runtime;

use crate::suite::{Adapter, Program, Supervise};

/// Threads.
pub const BLOCKING: &dyn Adapter = &Blocking;

/// tokio on one thread.
pub const TOKIO: &dyn Adapter = &Tokio { threads: false };

/// tokio on several.
pub const TOKIO_THREADS: &dyn Adapter = &Tokio { threads: true };

/// smol, its daemons in a `LocalExecutor`.
pub const SMOL: &dyn Adapter = &Smol;

/// handoff-smol in a program on async-std.
pub const ASYNC_STD: &dyn Adapter = &AsyncStd;

/// All of them.
pub const ALL: [&dyn Adapter; 5] = [BLOCKING, TOKIO, TOKIO_THREADS, SMOL, ASYNC_STD];

/// The other implementation of the wire. It is none of [`ALL`]: it keeps not all that the suite asks for.
pub const THEIRS: &dyn Adapter = &theirs::Theirs;

struct Blocking;

impl Adapter for Blocking {
    fn name(&self) -> &'static str {
        "blocking"
    }

    fn daemon(&self, program: Program) -> Ended {
        threads::daemon(program)
    }
}

struct Tokio {
    threads: bool,
}

impl Tokio {
    /// Its blocking pool is empty soon after it was used.
    fn runtime(&self) -> Runtime {
        let mut builder = if self.threads {
            tokio::runtime::Builder::new_multi_thread()
        } else {
            tokio::runtime::Builder::new_current_thread()
        };
        builder.worker_threads(2).thread_keep_alive(Duration::from_millis(100)).enable_all();
        builder.build().expect("a runtime")
    }
}

impl Adapter for Tokio {
    fn name(&self) -> &'static str {
        if self.threads { "tokio-threads" } else { "tokio" }
    }

    fn daemon(&self, program: Program) -> Ended {
        let runtime = self.runtime();
        if self.threads {
            // In a task of its own, so that it moves between the threads.
            let task = runtime.spawn(tasks::on_tokio(program));
            runtime.block_on(task).expect("the daemon's task")
        } else {
            runtime.block_on(tasks::on_tokio(program))
        }
    }

    fn supervisor(&self, config: SupervisorConfig) -> Result<Box<dyn Supervise>, StartError> {
        let runtime = self.runtime();
        let inside = runtime.enter();
        let supervisor = handoff_tokio::Supervisor::new(config)?;
        drop(inside);
        Ok(Box::new(Tasks { supervisor, block_on: runtime }))
    }
}

struct Smol;

impl Adapter for Smol {
    fn name(&self) -> &'static str {
        "smol"
    }

    fn daemon(&self, program: Program) -> Ended {
        tasks::EXECUTOR
            .with(|executor| smol::block_on(executor.run(tasks::on_smol(program, tasks::locally))))
    }

    fn supervisor(&self, config: SupervisorConfig) -> Result<Box<dyn Supervise>, StartError> {
        let supervisor = handoff_smol::Supervisor::new(config)?;
        Ok(Box::new(Tasks { supervisor, block_on: OnSmol }))
    }
}

struct AsyncStd;

impl Adapter for AsyncStd {
    fn name(&self) -> &'static str {
        "async-std"
    }

    fn daemon(&self, program: Program) -> Ended {
        let spawn = |task| drop(async_std::task::spawn(task));
        async_std::task::block_on(tasks::on_smol(program, spawn))
    }

    fn supervisor(&self, config: SupervisorConfig) -> Result<Box<dyn Supervise>, StartError> {
        let supervisor = handoff_smol::Supervisor::new(config)?;
        Ok(Box::new(Tasks { supervisor, block_on: OnAsyncStd }))
    }
}

/// Waits for a future.
trait BlockOn {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T;

    fn within<T>(&self, time: Duration, future: impl Future<Output = T>) -> Option<T>;

    fn tasks(&self) -> Option<usize> {
        None
    }
}

impl BlockOn for Runtime {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.block_on(future)
    }

    fn within<T>(&self, time: Duration, future: impl Future<Output = T>) -> Option<T> {
        self.block_on(async { tokio::time::timeout(time, future).await.ok() })
    }

    fn tasks(&self) -> Option<usize> {
        Some(self.metrics().num_alive_tasks())
    }
}

/// Done, or so much time has passed.
async fn timed<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    let over = async {
        smol::Timer::after(time).await;
        None
    };
    smol::future::or(async { Some(future.await) }, over).await
}

struct OnSmol;

impl BlockOn for OnSmol {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        smol::block_on(future)
    }

    fn within<T>(&self, time: Duration, future: impl Future<Output = T>) -> Option<T> {
        smol::block_on(timed(time, future))
    }
}

struct OnAsyncStd;

impl BlockOn for OnAsyncStd {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        async_std::task::block_on(future)
    }

    fn within<T>(&self, time: Duration, future: impl Future<Output = T>) -> Option<T> {
        async_std::task::block_on(timed(time, future))
    }
}

/// A supervisor of tasks. It works while one of the methods runs, if not longer.
struct Tasks<S, B> {
    supervisor: S,
    block_on: B,
}

impl<S: std::ops::Deref<Target = task::Supervisor>, B: BlockOn> Supervise for Tasks<S, B> {
    fn listener(&mut self, name: &str, fd: OwnedFd) -> Result<(), StartError> {
        self.supervisor.listener(name, fd)
    }

    fn start(&mut self, launch: &Launch) -> Result<Started, StartError> {
        self.block_on.block_on(self.supervisor.start(launch))
    }

    fn handoff(
        &mut self,
        handoff: &Handoff,
        on: &mut dyn FnMut(&Event),
    ) -> Result<Report, StartError> {
        self.block_on.block_on(self.supervisor.handoff(handoff, on))
    }

    fn exits(&mut self, time: Duration) -> Result<Vec<(u32, String)>, StartError> {
        Ok(self.block_on.within(time, self.supervisor.exited()).into_iter().collect())
    }

    fn aborter(&self) -> Arc<dyn Fn() + Send + Sync> {
        let aborter = self.supervisor.aborter();
        Arc::new(move || aborter.abort())
    }

    fn shutdown(&mut self, grace: Duration) -> Result<Vec<u32>, StartError> {
        self.block_on.block_on(self.supervisor.shutdown(grace))
    }

    fn tasks(&self) -> Option<usize> {
        self.block_on.tasks()
    }
}

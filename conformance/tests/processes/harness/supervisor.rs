//! The supervisors of all adapters behind one face.

use std::os::fd::OwnedFd;
use std::time::Duration;

use handoff_blocking::{
    Aborter, Event, Handoff, Launch, Report, StartError, Started, SupervisorConfig,
};
use tokio::runtime;

use super::Runtime;

/// A supervisor of any runtime. Those of tasks work while one of the methods runs, if not longer.
pub(crate) enum Supervisor {
    Blocking(Box<handoff_blocking::Supervisor>),
    Tokio(handoff_tokio::Supervisor, runtime::Runtime),
    Smol(handoff_smol::Supervisor),
    AsyncStd(handoff_smol::Supervisor),
}

/// Asks the supervisor, whose answer may be a future.
macro_rules! ask {
    ($of:expr, $supervisor:ident => $question:expr) => {
        match $of {
            Supervisor::Blocking($supervisor) => $question,
            Supervisor::Tokio($supervisor, runtime) => runtime.block_on($question),
            Supervisor::Smol($supervisor) => smol::block_on($question),
            Supervisor::AsyncStd($supervisor) => async_std::task::block_on($question),
        }
    };
}

/// A runtime of tokio's, whose blocking pool is empty soon after it was used.
pub(super) fn tokio(threads: bool) -> runtime::Runtime {
    let mut builder = if threads {
        runtime::Builder::new_multi_thread()
    } else {
        runtime::Builder::new_current_thread()
    };
    builder.worker_threads(2).thread_keep_alive(Duration::from_millis(100)).enable_all();
    builder.build().unwrap()
}

impl Supervisor {
    pub(crate) fn new(on: Runtime, config: SupervisorConfig) -> Result<Self, StartError> {
        Ok(match on {
            Runtime::Blocking => {
                let supervisor = handoff_blocking::Supervisor::new(config)?;
                Self::Blocking(Box::new(supervisor))
            }
            Runtime::Tokio | Runtime::TokioThreads => {
                let runtime = tokio(on == Runtime::TokioThreads);
                let inside = runtime.enter();
                let supervisor = handoff_tokio::Supervisor::new(config)?;
                drop(inside);
                Self::Tokio(supervisor, runtime)
            }
            Runtime::Smol => Self::Smol(handoff_smol::Supervisor::new(config)?),
            Runtime::AsyncStd => Self::AsyncStd(handoff_smol::Supervisor::new(config)?),
        })
    }

    pub(crate) fn listener(
        &mut self,
        name: &str,
        fd: impl Into<OwnedFd>,
    ) -> Result<(), StartError> {
        match self {
            Self::Blocking(supervisor) => supervisor.listener(name, fd),
            Self::Tokio(supervisor, _) => supervisor.listener(name, fd),
            Self::Smol(supervisor) | Self::AsyncStd(supervisor) => supervisor.listener(name, fd),
        }
    }

    pub(crate) fn start(&mut self, launch: &Launch) -> Result<Started, StartError> {
        ask!(self, supervisor => supervisor.start(launch))
    }

    pub(crate) fn handoff(
        &mut self,
        handoff: &Handoff,
        on: impl FnMut(&Event),
    ) -> Result<Report, StartError> {
        ask!(self, supervisor => supervisor.handoff(handoff, on))
    }

    pub(crate) fn shutdown(&mut self, grace: Duration) -> Result<Vec<u32>, StartError> {
        ask!(self, supervisor => supervisor.shutdown(grace))
    }

    /// Lets it work until one of its daemons has ended, at most so long; which have, and how.
    pub(crate) fn watch(&mut self, time: Duration) -> Vec<(u32, String)> {
        let ended = match self {
            Self::Blocking(supervisor) => return supervisor.watch(time).unwrap(),
            Self::Tokio(supervisor, runtime) => runtime
                .block_on(async { ::tokio::time::timeout(time, supervisor.exited()).await.ok() }),
            Self::Smol(supervisor) => smol::block_on(exited(supervisor, time)),
            Self::AsyncStd(supervisor) => async_std::task::block_on(exited(supervisor, time)),
        };
        ended.into_iter().collect()
    }

    pub(crate) fn aborter(&self) -> Aborter {
        match self {
            Self::Blocking(supervisor) => supervisor.aborter(),
            Self::Tokio(supervisor, _) => supervisor.aborter(),
            Self::Smol(supervisor) | Self::AsyncStd(supervisor) => supervisor.aborter(),
        }
    }

    /// How many tasks its runtime has, where that can be asked for.
    pub(crate) fn tasks(&self) -> Option<usize> {
        match self {
            Self::Tokio(_, runtime) => Some(runtime.metrics().num_alive_tasks()),
            _ => None,
        }
    }
}

async fn exited(supervisor: &handoff_smol::Supervisor, time: Duration) -> Option<(u32, String)> {
    let over = async {
        smol::Timer::after(time).await;
        None
    };
    smol::future::or(async { Some(supervisor.exited().await) }, over).await
}

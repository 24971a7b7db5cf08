//! The two adapters for tasks and the runtimes they run on, behind one trait.

use std::future::{Future, poll_fn};
use std::net::{TcpListener, TcpStream};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use handoff_core::daemon::Ended;
use handoff_core::supervisor::{Event, Report};
use handoff_unix::host::task::Grant;
use handoff_unix::host::{Config, Handoff, StartError, Started, SupervisorConfig};
use handoff_unix::spawn::Launch;

/// How long is waited for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub trait Adapter: 'static {
    type Supervisor;
    type Daemon;
    type Listener: Clone;

    /// Lets the runtime work for a moment, where there is no event to wait for.
    async fn pause();
    /// Starts what the runtime keeps for good once it was used.
    async fn warm();

    fn supervisor(config: SupervisorConfig, listener: TcpListener) -> Self::Supervisor;
    async fn start(supervisor: &Self::Supervisor, launch: &Launch) -> Result<Started, StartError>;
    async fn handoff(
        supervisor: &Self::Supervisor,
        handoff: &Handoff,
        on: impl FnMut(&Event),
    ) -> Result<Report, StartError>;
    async fn exited(supervisor: &Self::Supervisor) -> (u32, String);
    async fn shutdown(supervisor: &Self::Supervisor, grace: Duration) -> Vec<u32>;

    fn daemon(config: Config) -> Self::Daemon;
    async fn inherited(daemon: &mut Self::Daemon) -> Self::Listener;
    async fn begin(daemon: Self::Daemon) -> Result<Grant, Ended>;

    fn listener(listener: TcpListener) -> Self::Listener;
    /// The next connection, in blocking mode.
    async fn accept(listener: &Self::Listener) -> TcpStream;
}

pub struct Tokio;
pub struct Smol;

macro_rules! adapter {
    ($name:ident, $krate:ident, $net:ident, $pause:expr, $warm:expr, $to_std:expr) => {
        impl Adapter for $name {
            type Supervisor = $krate::Supervisor;
            type Daemon = $krate::Daemon;
            type Listener = $krate::Listener;

            async fn pause() {
                $pause(Duration::from_millis(1)).await;
            }

            async fn warm() {
                Self::pause().await;
                $warm.await;
            }

            fn supervisor(config: SupervisorConfig, listener: TcpListener) -> Self::Supervisor {
                let supervisor = $krate::Supervisor::new(config).unwrap();
                supervisor.listener("tcp", listener).unwrap();
                supervisor
            }

            async fn start(
                supervisor: &Self::Supervisor,
                launch: &Launch,
            ) -> Result<Started, StartError> {
                supervisor.start(launch).await
            }

            async fn handoff(
                supervisor: &Self::Supervisor,
                handoff: &Handoff,
                on: impl FnMut(&Event),
            ) -> Result<Report, StartError> {
                supervisor.handoff(handoff, on).await
            }

            async fn exited(supervisor: &Self::Supervisor) -> (u32, String) {
                supervisor.exited().await
            }

            async fn shutdown(supervisor: &Self::Supervisor, grace: Duration) -> Vec<u32> {
                supervisor.shutdown(grace).await.unwrap()
            }

            fn daemon(config: Config) -> Self::Daemon {
                $krate::Daemon::from_env(config).unwrap()
            }

            async fn inherited(daemon: &mut Self::Daemon) -> Self::Listener {
                daemon
                    .listener("tcp", || $net::net::TcpListener::bind("127.0.0.1:0"))
                    .await
                    .unwrap()
            }

            async fn begin(daemon: Self::Daemon) -> Result<Grant, Ended> {
                daemon.begin().await
            }

            fn listener(listener: TcpListener) -> Self::Listener {
                $krate::Listener::new(listener).unwrap()
            }

            async fn accept(listener: &Self::Listener) -> TcpStream {
                let stream = listener.accept().await.unwrap().0;
                let stream: TcpStream = $to_std(stream);
                stream.set_nonblocking(false).unwrap();
                stream
            }
        }
    };
}

adapter!(
    Tokio,
    handoff_tokio,
    tokio,
    tokio::time::sleep,
    async { tokio::spawn(tokio::task::spawn_blocking(|| {})).await.unwrap().unwrap() },
    |stream: tokio::net::TcpStream| stream.into_std().unwrap()
);

adapter!(
    Smol,
    handoff_smol,
    smol,
    smol::Timer::after,
    smol::spawn(smol::unblock(|| {})),
    |stream: smol::net::TcpStream| {
        let stream: std::sync::Arc<smol::Async<TcpStream>> = stream.into();
        std::sync::Arc::into_inner(stream).unwrap().into_inner().unwrap()
    }
);

/// Runs a future to its end on a runtime, whose threads for what blocks do not outlive their work by
/// long.
pub fn block_on<T>(runtime: &str, future: impl Future<Output = T>) -> T {
    let tokio = |mut builder: tokio::runtime::Builder| {
        builder.enable_all().thread_keep_alive(Duration::from_millis(20)).build().unwrap()
    };
    match runtime {
        "tokio-current" => tokio(tokio::runtime::Builder::new_current_thread()).block_on(future),
        "tokio-multi" => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(2);
            tokio(builder).block_on(future)
        }
        "smol" => smol::block_on(future),
        "async-std" => async_std::task::block_on(future),
        _ => panic!("no runtime {runtime:?}"),
    }
}

/// Polls a future until it is done, or `enough` says after a poll that it is to be dropped.
pub async fn unless<T>(
    future: impl Future<Output = T>,
    mut enough: impl FnMut() -> bool,
) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending if enough() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Polls a future so many times at most, once for each time that it is woken, and drops it then.
pub async fn polled<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut left = polls;
    if left == 0 {
        return None;
    }
    unless(future, || {
        left -= 1;
        left == 0
    })
    .await
}

/// The first of two futures that is done; the other is dropped.
pub async fn first<T, U>(
    one: impl Future<Output = T>,
    other: impl Future<Output = U>,
) -> Result<T, U> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| {
        if let Poll::Ready(result) = one.as_mut().poll(cx) {
            return Poll::Ready(Ok(result));
        }
        other.as_mut().poll(cx).map(Err)
    })
    .await
}

/// Polls a future so many times at most, and for so many pauses, and drops it then.
pub async fn a_while<A: Adapter, T>(
    future: impl Future<Output = T>,
    polls: usize,
    pauses: usize,
) -> Option<T> {
    let late = async {
        for _ in 0..pauses {
            A::pause().await;
        }
    };
    first(polled(future, polls), late).await.ok().flatten()
}

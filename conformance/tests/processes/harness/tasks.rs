//! The daemon of tasks, on any runtime that has them.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use handoff_tokio::{
    DrainContext, DrainReport, Ended, Grant, HookError, Hooks, SealContext, SealReport,
};
use smol::channel::{Receiver, Sender, bounded};
use smol::future::{or, yield_now};
use smol::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::daemon::{Store, Told};
use super::{Runtime, supervisor};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    static EXECUTOR: smol::LocalExecutor<'static> = const { smol::LocalExecutor::new() };
}

/// The daemon, and how it starts a task, on its runtime.
pub(super) fn daemon(runtime: Runtime, told: Told) -> Ended {
    let to_tokio = |task: Task| drop(tokio::spawn(task));
    match runtime {
        Runtime::Blocking => unreachable!("it has no tasks"),
        Runtime::Tokio => supervisor::tokio(false).block_on(on_tokio(told, to_tokio)),
        Runtime::TokioThreads => {
            // In a task of its own, so that it moves between the threads.
            let daemon = async move { tokio::spawn(on_tokio(told, to_tokio)).await.unwrap() };
            supervisor::tokio(true).block_on(daemon)
        }
        Runtime::Smol => EXECUTOR.with(|executor| {
            let spawn = |task| EXECUTOR.with(|executor| executor.spawn(task).detach());
            smol::block_on(executor.run(on_smol(told, spawn)))
        }),
        Runtime::AsyncStd => {
            let spawn = |task| drop(async_std::task::spawn(task));
            async_std::task::block_on(on_smol(told, spawn))
        }
    }
}

async fn on_tokio(told: Told, spawn: fn(Task)) -> Ended {
    let mut daemon = handoff_tokio::Daemon::from_env(told.config()).unwrap();
    let bind = || tokio::net::TcpListener::bind("127.0.0.1:0");
    let door = daemon.listener("tcp", bind).await.unwrap();
    told.warm_up_in_task().await;
    match daemon.begin().await {
        Ok(grant) => serve(told, grant, door, spawn).await,
        Err(ended) => ended,
    }
}

async fn on_smol(told: Told, spawn: fn(Task)) -> Ended {
    let mut daemon = handoff_smol::Daemon::from_env(told.config()).unwrap();
    let bind = || smol::net::TcpListener::bind("127.0.0.1:0");
    let door = daemon.listener("tcp", bind).await.unwrap();
    told.warm_up_in_task().await;
    match daemon.begin().await {
        Ok(grant) => serve(told, grant, door, spawn).await,
        Err(ended) => ended,
    }
}

impl Told {
    async fn warm_up_in_task(&self) {
        if self.to("warms-up") {
            let told = self.clone();
            smol::unblock(move || told.warm_up()).await;
        }
    }
}

async fn serve<D: Door>(told: Told, grant: Grant, door: D, spawn: fn(Task)) -> Ended {
    if told.to("die-after-begin") {
        std::process::exit(4);
    }
    if told.to("never-ready") {
        grant.off().await;
    }
    if told.to("waits-to-open") {
        let told = told.clone();
        smol::unblock(move || told.go()).await;
    }
    if told.to("fail-open") {
        return grant.fail("injected").await;
    }
    let store = Arc::new(Store::open(grant.data_dir()));
    let readiness = told.readiness(&store);
    let mut program = Program { told, store, door, spawn, open: None };
    program.open();
    grant.ready(readiness).run(program).await
}

struct Program<D> {
    told: Told,
    store: Arc<Store>,
    door: D,
    spawn: fn(Task),
    /// While it accepts.
    open: Option<Open>,
}

struct Open {
    /// Dropped, it ends the accepting.
    _stop: Sender<()>,
    /// Closed when nobody accepts and everybody admitted has been answered.
    settled: Receiver<()>,
}

impl<D: Door> Program<D> {
    fn open(&mut self) {
        if self.open.is_some() {
            return;
        }
        let (stop, stopped) = bounded::<()>(1);
        let (admitted, settled) = bounded::<()>(1);
        let (door, store, spawn) = (self.door.clone(), Arc::clone(&self.store), self.spawn);
        spawn(Box::pin(async move {
            let stopped = || async {
                let _ = stopped.recv().await;
                None
            };
            while let Some(stream) = or(stopped(), async { Some(door.admit().await) }).await {
                let (stream, admitted, store) =
                    (stream.unwrap(), admitted.clone(), Arc::clone(&store));
                spawn(Box::pin(async move {
                    // A client may go away.
                    let _ = D::answer(stream, &store).await;
                    drop(admitted);
                }));
            }
        }));
        self.open = Some(Open { _stop: stop, settled });
    }
}

impl<D: Door> Hooks for Program<D> {
    async fn drain(&mut self, drain: &DrainContext) -> Result<DrainReport, HookError> {
        // What goes wrong does so when it is polled again.
        yield_now().await;
        self.told.hook("drain")?;
        if let Some(Open { _stop, settled }) = self.open.take() {
            drop(_stop);
            let _ = settled.recv().await;
        }
        if self.told.to("drain-hangs") {
            drain.off().await;
        }
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    async fn seal(&mut self, seal: &SealContext) -> Result<SealReport, HookError> {
        yield_now().await;
        self.told.hook("seal")?;
        if self.told.to("seal-hangs") {
            seal.off().await;
        }
        let revision = self.store.seal()?;
        seal.progress(1, 1, revision);
        Ok(SealReport { revisions: vec![revision], fingerprint: [0; 32] })
    }

    async fn resume(&mut self) -> Result<(), HookError> {
        self.store.reopen();
        self.open();
        Ok(())
    }
}

/// A listener of an adapter's, with the streams of its runtime.
trait Door: Clone + Send + Sync + 'static {
    type Stream: Send + 'static;

    fn admit(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Reads a write and answers it.
    fn answer(stream: Self::Stream, store: &Store) -> impl Future<Output = io::Result<()>> + Send;
}

impl Door for handoff_smol::Listener {
    type Stream = smol::net::TcpStream;

    async fn admit(&self) -> io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }

    async fn answer(stream: Self::Stream, store: &Store) -> io::Result<()> {
        let (mut stream, mut value) = (BufReader::new(stream), String::new());
        stream.read_line(&mut value).await?;
        match store.write(&value) {
            Some(answer) => stream.get_mut().write_all(answer.as_bytes()).await,
            None => Ok(()),
        }
    }
}

impl Door for handoff_tokio::Listener {
    type Stream = tokio::net::TcpStream;

    async fn admit(&self) -> io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }

    async fn answer(stream: Self::Stream, store: &Store) -> io::Result<()> {
        let (mut value, mut piece) = (Vec::new(), [0; 64]);
        while !value.ends_with(b"\n") {
            stream.readable().await?;
            match stream.try_read(&mut piece) {
                Ok(0) => break,
                Ok(count) => value.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let answer = store.write(&String::from_utf8_lossy(&value)).unwrap_or_default();
        let mut left = answer.as_bytes();
        while !left.is_empty() {
            stream.writable().await?;
            match stream.try_write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

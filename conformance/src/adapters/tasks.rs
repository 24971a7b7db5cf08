//! The suite's daemon of tasks, on any runtime that has them.

use std::future::Future;
use std::io;
use std::pin::Pin;

use handoff_tokio::{
    DrainContext, DrainReport, Ended, Grant, HookError, Hooks, SealContext, SealReport,
};
use smol::channel::{Receiver, Sender, bounded};
use smol::future::{or, yield_now};
use smol::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use smol::unblock;

use crate::suite::{LISTENER, Program};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    pub(super) static EXECUTOR: smol::LocalExecutor<'static> =
        const { smol::LocalExecutor::new() };
}

/// Starts a task on this thread's executor.
pub(super) fn locally(task: Task) {
    EXECUTOR.with(|executor| executor.spawn(task).detach());
}

pub(super) async fn on_tokio(program: Program) -> Ended {
    let mut daemon = handoff_tokio::Daemon::from_env(program.config()).expect("a daemon");
    let bind = || tokio::net::TcpListener::bind("127.0.0.1:0");
    let door = daemon.listener(LISTENER, bind).await.expect("a listener");
    warm_up(&program).await;
    match daemon.begin().await {
        Ok(grant) => serve(program, grant, door, |task| drop(tokio::spawn(task))).await,
        Err(ended) => ended,
    }
}

pub(super) async fn on_smol(program: Program, spawn: fn(Task)) -> Ended {
    let mut daemon = handoff_smol::Daemon::from_env(program.config()).expect("a daemon");
    let bind = || smol::net::TcpListener::bind("127.0.0.1:0");
    let door = daemon.listener(LISTENER, bind).await.expect("a listener");
    warm_up(&program).await;
    match daemon.begin().await {
        Ok(grant) => serve(program, grant, door, spawn).await,
        Err(ended) => ended,
    }
}

async fn warm_up(program: &Program) {
    let program = program.clone();
    unblock(move || program.warm_up()).await;
}

async fn serve<D: Door>(program: Program, grant: Grant, door: D, spawn: fn(Task)) -> Ended {
    let (opens, off) = (program.clone(), grant.off());
    let readiness = match unblock(move || opens.open(|| off.is_off())).await {
        Ok(readiness) => readiness,
        Err(error) => return grant.fail(error).await,
    };
    let mut tasks = Tasks { program: program.clone(), door, spawn, open: None };
    tasks.accept();
    let serving = grant.ready(readiness);
    let stop = serving.stopper();
    program.on_stop(move || stop.stop()).expect("a signal handler");
    serving.run(tasks).await
}

struct Tasks<D> {
    program: Program,
    door: D,
    spawn: fn(Task),
    /// While it accepts.
    open: Option<Open>,
}

struct Open {
    /// Dropped, it ends the accepting.
    stop: Sender<()>,
    /// Closed when nobody accepts and everybody admitted has been answered.
    settled: Receiver<()>,
}

impl<D: Door> Tasks<D> {
    fn accept(&mut self) {
        if self.open.is_some() {
            return;
        }
        let (stop, stopped) = bounded::<()>(1);
        let (admitted, settled) = bounded::<()>(1);
        let (door, program, spawn) = (self.door.clone(), self.program.clone(), self.spawn);
        spawn(Box::pin(async move {
            let stopped = || async {
                let _ = stopped.recv().await;
                None
            };
            while let Some(stream) = or(stopped(), async { Some(door.admit().await) }).await {
                let Ok(stream) = stream else { return };
                let (admitted, program) = (admitted.clone(), program.clone());
                spawn(Box::pin(async move {
                    // A client may go away.
                    let _ = D::answer(stream, &program).await;
                    drop(admitted);
                }));
            }
        }));
        self.open = Some(Open { stop, settled });
    }
}

impl<D: Door> Hooks for Tasks<D> {
    async fn drain(&mut self, drain: &DrainContext) -> Result<DrainReport, HookError> {
        // What goes wrong does so when it is polled again.
        yield_now().await;
        if let Some(Open { stop, settled }) = self.open.take() {
            drop(stop);
            let _ = settled.recv().await;
        }
        let (program, off) = (self.program.clone(), drain.off());
        unblock(move || program.drain(|| off.is_off())).await
    }

    async fn seal(&mut self, seal: &SealContext) -> Result<SealReport, HookError> {
        let (program, off) = (self.program.clone(), seal.off());
        let (progress, reports) = smol::channel::unbounded();
        let sealed = unblock(move || {
            let progress = |sealed, total, revision| {
                let _ = progress.try_send((sealed, total, revision));
            };
            program.seal(|| off.is_off(), progress)
        });
        let sealed = sealed.await;
        while let Ok((sealed, total, revision)) = reports.try_recv() {
            seal.progress(sealed, total, revision);
        }
        sealed
    }

    async fn resume(&mut self) -> Result<(), HookError> {
        let program = self.program.clone();
        unblock(move || program.resume()).await?;
        self.accept();
        Ok(())
    }
}

/// A listener of an adapter's, with the streams of its runtime.
trait Door: Clone + Send + Sync + 'static {
    type Stream: Send + 'static;

    fn admit(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Reads a line and answers it.
    fn answer(
        stream: Self::Stream,
        program: &Program,
    ) -> impl Future<Output = io::Result<()>> + Send;
}

impl Door for handoff_smol::Listener {
    type Stream = smol::net::TcpStream;

    async fn admit(&self) -> io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }

    async fn answer(stream: Self::Stream, program: &Program) -> io::Result<()> {
        let (mut stream, mut line) = (BufReader::new(stream), String::new());
        stream.read_line(&mut line).await?;
        let answer = program.answer(&line).unwrap_or_default();
        stream.get_mut().write_all(answer.as_bytes()).await
    }
}

impl Door for handoff_tokio::Listener {
    type Stream = tokio::net::TcpStream;

    async fn admit(&self) -> io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }

    async fn answer(stream: Self::Stream, program: &Program) -> io::Result<()> {
        use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
        let (mut stream, mut line) = (BufReader::new(stream), String::new());
        stream.read_line(&mut line).await?;
        let answer = program.answer(&line).unwrap_or_default();
        stream.get_mut().write_all(answer.as_bytes()).await
    }
}

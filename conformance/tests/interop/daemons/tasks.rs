//! Our daemon of tasks.

use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use handoff_tokio::{
    DrainContext, DrainReport, Ended, Grant, HookError, Hooks, SealContext, SealReport,
};
use smol::Async;
use smol::channel::{Receiver, Sender, bounded};
use smol::future::or;

use super::{Store, Told};

/// The daemon on tokio.
pub(super) fn on_tokio(told: Told) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut daemon = handoff_tokio::Daemon::from_env(told.config()).unwrap();
        let bind = || std::future::ready(io::Result::<std::net::TcpListener>::Err(not_passed_on()));
        let door = daemon.listener("tcp", bind).await.unwrap();
        told.in_task(Told::warm_up).await;
        match daemon.begin().await {
            Ok(grant) => serve(told, grant, door).await,
            Err(ended) => ended,
        }
    })
}

/// The daemon on smol.
pub(super) fn on_smol(told: Told) -> Ended {
    smol::block_on(async {
        let mut daemon = handoff_smol::Daemon::from_env(told.config()).unwrap();
        let bind = || std::future::ready(io::Result::<std::net::TcpListener>::Err(not_passed_on()));
        let door = daemon.listener("tcp", bind).await.unwrap();
        told.in_task(Told::warm_up).await;
        match daemon.begin().await {
            Ok(grant) => serve(told, grant, door).await,
            Err(ended) => ended,
        }
    })
}

fn not_passed_on() -> io::Error {
    io::Error::other("the test passes it on")
}

impl Told {
    async fn in_task(&self, does: fn(&Self)) {
        let told = self.clone();
        smol::unblock(move || does(&told)).await;
    }
}

async fn serve(told: Told, grant: Grant, door: impl Door) -> Ended {
    told.in_task(Told::begun).await;
    if told.to("never-ready") {
        grant.off().await;
    }
    if told.to("fails-to-open") || told.to("never-ready") {
        return grant.fail("injected").await;
    }
    let store = Arc::new(Store::open(grant.data_dir()));
    let readiness = told.readiness(&store);
    let (hooks, heard) = bounded(1);
    let (says, loops) = bounded(1);
    let accepting = accept(told.is_well().then_some(door), Arc::clone(&store), heard, says);
    let serving = grant.ready(readiness).run(Program { told, store, hooks, loops });
    or(serving, accepting).await
}

/// Accepts and answers, where there is a door; told once, stops and says so; told again, goes on.
async fn accept(
    door: Option<impl Door>,
    store: Arc<Store>,
    heard: Receiver<()>,
    says: Sender<()>,
) -> Ended {
    loop {
        let told = async {
            let _ = heard.recv().await;
            None
        };
        let admitted = async {
            match &door {
                Some(door) => Some(door.admit().await),
                None => std::future::pending().await,
            }
        };
        if let Some(stream) = or(told, admitted).await {
            let (stream, store) = (stream.unwrap(), Arc::clone(&store));
            smol::unblock(move || store.serve(stream)).await;
        } else {
            let _ = says.send(()).await;
            let _ = heard.recv().await;
        }
    }
}

struct Program {
    told: Told,
    store: Arc<Store>,
    hooks: Sender<()>,
    loops: Receiver<()>,
}

impl Hooks for Program {
    async fn drain(&mut self, _: &DrainContext) -> Result<DrainReport, HookError> {
        self.hooks.send(()).await?;
        self.loops.recv().await?;
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    async fn seal(&mut self, seal: &SealContext) -> Result<SealReport, HookError> {
        if self.told.fails_seal() {
            return Err("injected".into());
        }
        let revision = self.store.seal()?;
        seal.progress(1, 1, revision);
        Ok(SealReport { revisions: vec![revision], fingerprint: [0; 32] })
    }

    async fn resume(&mut self) -> Result<(), HookError> {
        self.store.reopen();
        Ok(self.hooks.send(()).await?)
    }
}

/// A listener of an adapter's, whose connections are answered where it may block.
trait Door {
    fn admit(&self) -> impl Future<Output = io::Result<TcpStream>>;
}

impl Door for handoff_tokio::Listener {
    async fn admit(&self) -> io::Result<TcpStream> {
        let stream = self.accept().await?.0.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl Door for handoff_smol::Listener {
    async fn admit(&self) -> io::Result<TcpStream> {
        let stream: Arc<Async<TcpStream>> = self.accept().await?.0.into();
        let stream = stream.get_ref().try_clone()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

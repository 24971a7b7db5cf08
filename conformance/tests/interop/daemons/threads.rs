//! Our daemon of threads. What accepts here, accepts in theirs too.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use handoff_blocking::{
    Acceptor, Daemon, DrainContext, DrainReport, Ended, HookError, Hooks, SealContext, SealReport,
    Stopper,
};

use super::{Store, Told};
use crate::bench::PATIENCE;

/// Accepts until it is stopped, and after every resume.
pub(super) struct Accepting(Stopper);

impl Accepting {
    pub(super) fn start(told: &Told, listener: TcpListener, store: Arc<Store>) -> Self {
        let acceptor = Acceptor::new(listener).unwrap();
        let stopper = acceptor.stopper();
        if !told.is_well() {
            stopper.stop();
        }
        std::thread::spawn(move || {
            loop {
                // Admission and answer are one step here, so a settled drain has answered everything.
                let answered = acceptor.accept_with(|stream, _| store.serve(stream));
                if let Ok(None) = answered {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            }
        });
        Self(stopper)
    }

    /// Nobody accepts any more, and all who were accepted have their answer.
    pub(super) fn stop(&self) {
        self.0.stop();
        assert!(self.0.settle(PATIENCE), "an admission hangs");
    }

    pub(super) fn resume(&self) {
        self.0.resume();
    }
}

struct Program {
    told: Told,
    store: Arc<Store>,
    accepting: Accepting,
}

impl Hooks for Program {
    fn drain(&mut self, _: &DrainContext) -> Result<DrainReport, HookError> {
        self.accepting.stop();
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&mut self, seal: &SealContext) -> Result<SealReport, HookError> {
        if self.told.fails_seal() {
            return Err("injected".into());
        }
        let revision = self.store.seal()?;
        seal.progress(1, 1, revision);
        Ok(SealReport { revisions: vec![revision], fingerprint: [0; 32] })
    }

    fn resume(&mut self) -> Result<(), HookError> {
        self.store.reopen();
        self.accepting.resume();
        Ok(())
    }
}

pub(super) fn daemon(told: Told) -> Ended {
    let mut daemon = Daemon::from_env(told.config()).unwrap();
    let bind = || Err(std::io::Error::other("the test passes it on"));
    let listener = daemon.listener("tcp", bind).unwrap();
    told.warm_up();
    let grant = match daemon.begin() {
        Ok(grant) => grant,
        Err(ended) => return ended,
    };
    told.begun();
    while told.to("never-ready") && !grant.is_off() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    if told.to("fails-to-open") || told.to("never-ready") {
        return grant.fail("injected");
    }
    let store = Arc::new(Store::open(grant.data_dir()));
    let readiness = told.readiness(&store);
    let accepting = Accepting::start(&told, listener, Arc::clone(&store));
    grant.ready(readiness).run(Program { told, store, accepting })
}

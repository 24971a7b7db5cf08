//! The daemon of threads.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use handoff_blocking::{
    Acceptor, Daemon, DrainContext, DrainReport, Ended, HookError, Hooks, SealContext, SealReport,
    Stopper,
};

use super::PATIENCE;
use super::daemon::{Store, Told};

struct Program {
    told: Told,
    store: Arc<Store>,
    stopper: Stopper,
}

fn hang_until(off: impl Fn() -> bool) {
    while !off() {
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

impl Hooks for Program {
    fn drain(&mut self, drain: &DrainContext) -> Result<DrainReport, HookError> {
        self.told.hook("drain")?;
        self.stopper.stop();
        assert!(self.stopper.settle(PATIENCE), "an admission hangs");
        if self.told.to("drain-hangs") {
            hang_until(|| drain.is_off());
        }
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&mut self, seal: &SealContext) -> Result<SealReport, HookError> {
        self.told.hook("seal")?;
        if self.told.to("seal-hangs") {
            hang_until(|| seal.is_off());
        }
        let revision = self.store.seal()?;
        seal.progress(1, 1, revision);
        Ok(SealReport { revisions: vec![revision], fingerprint: [0; 32] })
    }

    fn resume(&mut self) -> Result<(), HookError> {
        self.store.reopen();
        self.stopper.resume();
        Ok(())
    }
}

pub(super) fn daemon(told: Told) -> Ended {
    let mut daemon = Daemon::from_env(told.config()).unwrap();
    let listener = daemon.listener("tcp", || TcpListener::bind("127.0.0.1:0")).unwrap();
    if told.to("warms-up") {
        told.warm_up();
    }
    let grant = match daemon.begin() {
        Ok(grant) => grant,
        Err(ended) => return ended,
    };
    if told.to("die-after-begin") {
        std::process::exit(4);
    }
    if told.to("never-ready") {
        hang_until(|| grant.is_off());
    }
    if told.to("waits-to-open") {
        told.go();
    }
    if told.to("fail-open") {
        return grant.fail("injected");
    }
    let store = Arc::new(Store::open(grant.data_dir()));
    let acceptor = Acceptor::new(listener).unwrap();
    let stopper = acceptor.stopper();
    let serving = Arc::clone(&store);
    std::thread::spawn(move || {
        loop {
            // Admission and answer are one step here, so a settled drain has answered everything.
            let answered = acceptor.accept_with(|mut stream, _| {
                let mut value = String::new();
                let _ = BufReader::new(&mut stream).read_line(&mut value);
                if let Some(answer) = serving.write(&value) {
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
            if let Ok(None) = answered {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
    });
    let readiness = told.readiness(&store);
    grant.ready(readiness).run(Program { told, store, stopper })
}

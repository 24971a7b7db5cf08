//! The suite's daemon on threads.

use std::net::TcpListener;

use handoff_blocking::{
    Daemon, DrainContext, DrainReport, Ended, HookError, Hooks, SealContext, SealReport, Stopper,
};

use crate::suite::{LISTENER, PATIENCE, Program};

struct Threads {
    program: Program,
    stopper: Stopper,
}

impl Hooks for Threads {
    fn drain(&mut self, drain: &DrainContext) -> Result<DrainReport, HookError> {
        self.stopper.stop();
        if !self.stopper.settle(PATIENCE) {
            return Err("a client dawdles".into());
        }
        self.program.drain(|| drain.is_off())
    }

    fn seal(&mut self, seal: &SealContext) -> Result<SealReport, HookError> {
        let progress = |sealed, total, revision| seal.progress(sealed, total, revision);
        self.program.seal(|| seal.is_off(), progress)
    }

    fn resume(&mut self) -> Result<(), HookError> {
        self.program.resume()?;
        self.stopper.resume();
        Ok(())
    }
}

pub(super) fn daemon(program: Program) -> Ended {
    let mut daemon = Daemon::from_env(program.config()).expect("a daemon");
    let listener = daemon.listener(LISTENER, || TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a listener");
    program.warm_up();
    let grant = match daemon.begin() {
        Ok(grant) => grant,
        Err(ended) => return ended,
    };
    let readiness = match program.open(|| grant.is_off()) {
        Ok(readiness) => readiness,
        Err(error) => return grant.fail(error),
    };
    let stopper = program.accept_on_threads(listener).expect("an acceptor");
    let serving = grant.ready(readiness);
    let stop = serving.stopper();
    program.on_stop(move || stop.stop()).expect("a signal handler");
    serving.run(Threads { program, stopper })
}

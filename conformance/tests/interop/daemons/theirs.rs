//! A daemon on the other implementation, as its users write one.

use std::sync::Arc;
use std::time::Instant;

use handoff::{
    DataDirLock, DrainReport, Drainable, Error, Incumbent, ReadinessSnapshot, Result, Role,
    SealReport, StateSnapshot,
};

use super::threads::Accepting;
use super::{Store, Told};

struct Program {
    told: Told,
    store: Arc<Store>,
    accepting: Accepting,
}

impl Drainable for Program {
    fn drain(&self, _: Instant) -> Result<DrainReport> {
        self.accepting.stop();
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self) -> Result<SealReport> {
        if self.told.fails_seal() {
            return Err(Error::Protocol("injected".into()));
        }
        let revision = self.store.seal()?;
        if self.told.to("reports-nothing") {
            return Ok(SealReport::default());
        }
        Ok(SealReport { last_revision_per_shard: vec![revision], data_dir_fingerprint: [1; 32] })
    }

    fn resume_after_abort(&self) -> Result<()> {
        self.store.reopen();
        self.accepting.resume();
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }
}

/// Runs it; the exit code.
pub(super) fn daemon(told: &Told) -> i32 {
    let ended = run(told);
    eprintln!("Theirs {}: {ended:?}", std::process::id());
    i32::from(ended.is_err())
}

fn run(told: &Told) -> Result<()> {
    let (incumbent, store, accepting) = match handoff::detect_role()? {
        Role::ColdStart { mut inherited } => {
            let lock = DataDirLock::acquire(&told.data())?;
            let store = Arc::new(Store::open(&told.data()));
            let incumbent = Incumbent::bind_cold_start(&told.control(), lock)?;
            let listener = inherited.take("tcp").expect("a listener");
            (incumbent, Arc::clone(&store), Accepting::start(told, listener, store))
        }
        Role::Successor(successor) => {
            told.warm_up();
            let mut begun = successor.handshake(b"theirs".to_vec())?.wait_for_begin()?;
            let lock = DataDirLock::acquire(&told.data())?;
            let heartbeats = begun.start_heartbeats();
            told.begun();
            while told.to("never-ready") {
                std::thread::park();
            }
            if told.to("fails-to-open") {
                return Err(Error::Protocol("injected".into()));
            }
            drop(heartbeats);
            let store = Arc::new(Store::open(&told.data()));
            let readiness = told.readiness(&store);
            let snapshot = ReadinessSnapshot {
                listening_on: readiness.listening_on,
                healthz_ok: readiness.healthz_ok,
                advertised_revision_per_shard: readiness.revisions,
            };
            let listener = begun.take_listener("tcp").expect("a listener");
            if told.to("unhealthy") || told.to("regressed") {
                // Their other way to be ready: the control socket is bound later, here never.
                begun.announce_ready(snapshot)?;
                loop {
                    std::thread::park();
                }
            }
            let incumbent = begun.announce_and_bind(snapshot, &told.control(), lock)?;
            // Where the supervisor is gone it ends up here without having accepted anybody.
            let accepting = Accepting::start(told, listener, Arc::clone(&store));
            (incumbent, store, accepting)
        }
    };
    let program = Program { told: told.clone(), store, accepting };
    incumbent.with_build_id(b"theirs".to_vec()).serve(program)
}

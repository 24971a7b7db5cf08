//! The suite on an adapter that is none of this project's: the one of the example `poll`, which drives
//! the core over plain poll(2). It has no supervisor of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[allow(dead_code, unreachable_pub)]
#[path = "../../handoff-core/examples/poll.rs"]
mod poll;

use std::error::Error;
use std::net::TcpListener;
use std::process::{self, ExitCode};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use conformance::suite::{self, LISTENER, PATIENCE, Program};
use handoff_core::daemon::{Command, Config, DrainReport, Ended, Readiness, SealReport};
use handoff_unix::accept::Stopper;
use handoff_unix::control::ControlPath;
use handoff_unix::effects::DaemonEffects;
use handoff_unix::inherit::{Inherited, Role};
use handoff_unix::probe::Users;
use poll::{Off, Post};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    suite::test(&[&Poll])
}

struct Poll;

impl suite::Adapter for Poll {
    fn name(&self) -> &'static str {
        "poll"
    }

    fn daemon(&self, program: Program) -> Ended {
        let control = ControlPath::new(program.control_path()).unwrap();
        let mut inherited = Inherited::from_env().unwrap();
        let listener = match (inherited.take_tcp(LISTENER).unwrap(), inherited.role()) {
            (Some(listener), _) => listener,
            (None, Role::Cold) => TcpListener::bind("127.0.0.1:0").unwrap(),
            (None, Role::Successor) => panic!("no listener was inherited"),
        };
        let config = Config::new(process::id(), rustix::process::geteuid().as_raw());
        let users = Users(config.allowed_uids.clone());
        let effects = DaemonEffects::new(control, program.data_dir(), users);
        let adapter = poll::Adapter::new(config, effects, &mut inherited).unwrap();
        drop(inherited);
        let (begins, stops, post) = (adapter.post(), adapter.post(), adapter.post());
        program.on_stop(move || stops.command(Command::Stop)).unwrap();
        let warms_up = program.clone();
        thread::spawn(move || {
            warms_up.warm_up();
            begins.command(Command::Begin);
        });
        adapter.run(Toy { program, post, listener: Some(listener), stopper: None }).unwrap()
    }
}

struct Toy {
    program: Program,
    post: Post,
    /// Until it is accepted on.
    listener: Option<TcpListener>,
    stopper: Option<Stopper>,
}

impl poll::Program for Toy {
    fn open(&mut self, off: &Off) -> Result<Readiness, Failure> {
        let readiness = self.program.open(|| off.load(Ordering::Acquire))?;
        if let Some(listener) = self.listener.take() {
            self.stopper = Some(self.program.accept_on_threads(listener)?);
        }
        Ok(readiness)
    }

    fn drain(&mut self, _: Duration, off: &Off) -> Result<DrainReport, Failure> {
        if let Some(stopper) = &self.stopper {
            stopper.stop();
            if !stopper.settle(PATIENCE) {
                return Err("a client dawdles".into());
            }
        }
        self.program.drain(|| off.load(Ordering::Acquire))
    }

    fn seal(&mut self, off: &Off) -> Result<SealReport, Failure> {
        let progress = |shards_sealed, shards_total, last_revision| {
            let command = Command::SealProgress { shards_sealed, shards_total, last_revision };
            self.post.command(command);
        };
        self.program.seal(|| off.load(Ordering::Acquire), progress)
    }

    fn resume(&mut self) -> Result<(), Failure> {
        self.program.resume()?;
        if let Some(stopper) = &self.stopper {
            stopper.resume();
        }
        Ok(())
    }
}

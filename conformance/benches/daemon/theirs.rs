//! The benchmark's daemon on beyond-handoff: it has no data, and echoes what a client says.
//!
//! It accepts before it says Ready, which is the shortest gap that crate can have.

mod common;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{LISTENER, Options};
use handoff::{
    DataDirLock, DrainReport, Drainable, Error, Incumbent, ReadinessSnapshot, Role, SealReport,
    StateSnapshot,
};
use handoff_unix::accept::{Acceptor, Stopper};

struct Program {
    options: Options,
    stopper: Stopper,
}

impl Drainable for Program {
    fn drain(&self, _: Instant) -> Result<DrainReport, Error> {
        self.options.tell("stops");
        self.stopper.stop();
        let _ = self.stopper.settle(Duration::from_secs(5));
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&self) -> Result<SealReport, Error> {
        Ok(SealReport::default())
    }

    fn resume_after_abort(&self) -> Result<(), Error> {
        self.stopper.resume();
        Ok(())
    }

    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut said = [0; 64];
    let count = stream.read(&mut said)?;
    stream.write_all(&said[..count])
}

fn accept(listener: Option<TcpListener>) -> io::Result<Stopper> {
    let listener = listener.ok_or_else(|| io::Error::other("no listener was passed"))?;
    let acceptor = Acceptor::new(listener)?;
    let stopper = acceptor.stopper();
    std::thread::spawn(move || {
        loop {
            if let Ok(None) = acceptor.accept_with(|stream, _| echo(stream)) {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
    });
    Ok(stopper)
}

fn serve() -> Result<(), Error> {
    let options = Options::of_process()?;
    let (incumbent, stopper) = match handoff::detect_role()? {
        Role::ColdStart { mut inherited } => {
            let lock = DataDirLock::acquire(&options.data)?;
            let stopper = accept(inherited.take(LISTENER))?;
            options.tell("accepts");
            (Incumbent::bind_cold_start(&options.control, lock)?, stopper)
        }
        Role::Successor(successor) => {
            let mut begun = successor.handshake(b"bench".to_vec())?.wait_for_begin()?;
            let lock = DataDirLock::acquire(&options.data)?;
            let stopper = accept(begun.take_listener(LISTENER))?;
            options.tell("accepts");
            let ready = ReadinessSnapshot {
                listening_on: vec![LISTENER.into()],
                healthz_ok: true,
                advertised_revision_per_shard: vec![1],
            };
            (begun.announce_and_bind(ready, &options.control, lock)?, stopper)
        }
    };
    options.keep();
    incumbent.serve(Program { options, stopper })
}

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-theirs: {error}");
            ExitCode::FAILURE
        }
    }
}

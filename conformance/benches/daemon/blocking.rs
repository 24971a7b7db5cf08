//! The benchmark's daemon on threads: it has no data, and echoes what a client says.

mod common;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use common::{LISTENER, Options};
use handoff_blocking::{
    Acceptor, Config, Daemon, DrainContext, DrainReport, Ended, HookError, Hooks, Readiness,
    SealContext, SealReport, Stopper,
};

struct Program {
    options: Options,
    stopper: Stopper,
}

impl Hooks for Program {
    fn drain(&mut self, _: &DrainContext) -> Result<DrainReport, HookError> {
        self.options.tell("stops");
        self.stopper.stop();
        let _ = self.stopper.settle(Duration::from_secs(5));
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&mut self, _: &SealContext) -> Result<SealReport, HookError> {
        Ok(SealReport::default())
    }

    fn resume(&mut self) -> Result<(), HookError> {
        self.stopper.resume();
        Ok(())
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut said = [0; 64];
    let count = stream.read(&mut said)?;
    stream.write_all(&said[..count])
}

fn accept(listener: TcpListener) -> io::Result<Stopper> {
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

fn serve() -> Result<Ended, HookError> {
    let options = Options::of_process()?;
    let config = Config::new(&options.control, &options.data).build_id("bench");
    let mut daemon = Daemon::from_env(config)?;
    let listener = daemon.listener(LISTENER, || TcpListener::bind("127.0.0.1:0"))?;
    let grant = match daemon.begin() {
        Ok(grant) => grant,
        Err(ended) => return Ok(ended),
    };
    let stopper = accept(listener)?;
    options.tell("accepts");
    let readiness =
        Readiness { listening_on: vec![LISTENER.into()], healthz_ok: true, revisions: vec![1] };
    let serving = grant.ready(readiness);
    options.keep();
    Ok(serving.run(Program { options, stopper }))
}

fn main() -> ExitCode {
    match serve() {
        Ok(ended) => ended.exit_code().into(),
        Err(error) => {
            eprintln!("bench-blocking: {error}");
            ExitCode::FAILURE
        }
    }
}

//! The benchmark's daemon on smol: it has no data, and echoes what a client says.

mod common;

use std::io;
use std::process::ExitCode;

use common::{LISTENER, Options};
use handoff_smol::{
    Config, Daemon, DrainContext, DrainReport, Ended, HookError, Hooks, Listener, Readiness,
    SealContext, SealReport,
};
use smol::Task;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::TcpListener;

struct Program {
    options: Options,
    listener: Listener,
    accepting: Option<Task<()>>,
}

impl Hooks for Program {
    async fn drain(&mut self, _: &DrainContext) -> Result<DrainReport, HookError> {
        self.options.tell("stops");
        if let Some(accepting) = self.accepting.take() {
            accepting.cancel().await;
        }
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    async fn seal(&mut self, _: &SealContext) -> Result<SealReport, HookError> {
        Ok(SealReport::default())
    }

    async fn resume(&mut self) -> Result<(), HookError> {
        self.accepting = Some(smol::spawn(accept(self.listener.clone())));
        Ok(())
    }
}

async fn accept(listener: Listener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let echo = async move {
            let mut said = [0; 64];
            let count = stream.read(&mut said).await?;
            stream.write_all(&said[..count]).await?;
            io::Result::Ok(())
        };
        smol::spawn(echo).detach();
    }
}

async fn serve() -> Result<Ended, HookError> {
    let options = Options::of_process()?;
    let config = Config::new(&options.control, &options.data).build_id("bench");
    let mut daemon = Daemon::from_env(config)?;
    let listener = daemon.listener(LISTENER, || TcpListener::bind("127.0.0.1:0")).await?;
    let grant = match daemon.begin().await {
        Ok(grant) => grant,
        Err(ended) => return Ok(ended),
    };
    let accepting = Some(smol::spawn(accept(listener.clone())));
    options.tell("accepts");
    let readiness =
        Readiness { listening_on: vec![LISTENER.into()], healthz_ok: true, revisions: vec![1] };
    let serving = grant.ready(readiness);
    options.keep();
    Ok(serving.run(Program { options, listener, accepting }).await)
}

fn main() -> ExitCode {
    match smol::block_on(serve()) {
        Ok(ended) => ended.exit_code().into(),
        Err(error) => {
            eprintln!("bench-smol: {error}");
            ExitCode::FAILURE
        }
    }
}

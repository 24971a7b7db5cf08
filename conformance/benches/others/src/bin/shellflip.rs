//! The benchmark's daemon on shellflip, which has no data to hand over: it echoes what a client says, and starts
//! its successor itself when it is told to by SIGUSR1. That crate passes no listeners on; this one is inherited
//! as it is.

#[path = "../../../daemon/common.rs"]
mod common;

use std::error::Error;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;

use common::{LISTENER, Options};
use handoff_unix::inherit::Inherited;
use rustix::io::{FdFlags, fcntl_setfd};
use shellflip::{RestartConfig, ShutdownCoordinator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn serve() -> Result<(), Box<dyn Error>> {
    shellflip::fixup_systemd_env();
    let options = Options::of_process()?;
    let mut inherited = Inherited::from_env()?;
    let listener = inherited.take_fd(LISTENER).ok_or("no listener was passed")?;
    fcntl_setfd(&listener, FdFlags::empty())?;
    let listener = tokio::net::TcpListener::from_std(TcpListener::from(listener))?;
    let restart = RestartConfig::default().try_into_restart_task()?;
    let coordinator = ShutdownCoordinator::new();
    let unanswered = coordinator.handle();
    let accepting = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let unanswered = Arc::clone(&unanswered);
            tokio::spawn(async move {
                let mut said = [0; 64];
                if let Ok(count) = stream.read(&mut said).await {
                    let _ = stream.write_all(&said[..count]).await;
                }
                drop(unanswered);
            });
        }
    });
    options.keep();
    // It says that it is ready when it is polled first.
    let told = async {
        options.tell_pid();
        std::future::pending::<()>().await
    };
    tokio::select! {
        biased;
        restarted = restart => drop(restarted?),
        () = told => {}
    }
    accepting.abort();
    let _ = accepting.await;
    coordinator.shutdown().await;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("bench-shellflip: {error}");
            ExitCode::FAILURE
        }
    }
}

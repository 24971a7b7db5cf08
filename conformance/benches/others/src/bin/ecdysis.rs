//! The benchmark's daemon on ecdysis, which has no data to hand over: it echoes what a client says, starts its
//! successor itself when it is told to by SIGHUP, and passes its listener on.

#[path = "../../../daemon/common.rs"]
mod common;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::Options;
use ecdysis::tokio_ecdysis::{SignalKind, StopOnShutdown, TokioEcdysisBuilder};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn serve() -> io::Result<()> {
    let options = Options::of_process()?;
    let builder = TokioEcdysisBuilder::new(SignalKind::hangup())?;
    let address: SocketAddr = ([127, 0, 0, 1], options.port()?).into();
    let mut connections =
        builder.build_listen_tcp(StopOnShutdown::Yes, address, |socket, address| {
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(128)?;
            Ok(socket.into())
        })?;
    let unanswered = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&unanswered);
    let accepting = tokio::spawn(async move {
        while let Some(Ok(mut stream)) = connections.next().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut said = [0; 64];
                if let Ok(count) = stream.read(&mut said).await {
                    let _ = stream.write_all(&said[..count]).await;
                }
                counted.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    let (_ecdysis, ended) = builder.ready()?;
    options.keep();
    options.tell_pid();
    let _ = ended.await;
    let _ = accepting.await;
    while unanswered.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("bench-ecdysis: {error}");
            ExitCode::FAILURE
        }
    }
}

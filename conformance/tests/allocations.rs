//! An adapter allocates nothing for a frame in steady state: a daemon in this process answers heartbeats,
//! and every allocation of the process is counted. Where the runtime's reactor itself allocates for each
//! wake-up, as that of smol and async-std does, a bare socket on it that echoes the same frames is the
//! measure.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::alloc::System;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use handoff_core::daemon::{DrainReport, Readiness, SealReport};
use handoff_core::wire::encode;
use handoff_core::{HandoffId, Message};
use handoff_unix::host::{Config, DrainContext, HookError, Hooks, SealContext, task};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Heartbeats until all buffers have the size they keep, and then those that are counted.
const WARM_UP: usize = 500;
const BEATS: usize = 5_000;

struct Program;

impl Hooks for Program {
    fn drain(&mut self, _: &DrainContext) -> Result<DrainReport, HookError> {
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&mut self, _: &SealContext) -> Result<SealReport, HookError> {
        Ok(SealReport::default())
    }

    fn resume(&mut self) -> Result<(), HookError> {
        Ok(())
    }
}

impl task::Hooks for Program {
    async fn drain(&mut self, _: &DrainContext) -> Result<DrainReport, HookError> {
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    async fn seal(&mut self, _: &SealContext) -> Result<SealReport, HookError> {
        Ok(SealReport::default())
    }

    async fn resume(&mut self) -> Result<(), HookError> {
        Ok(())
    }
}

fn ready() -> Readiness {
    Readiness { listening_on: vec![], healthz_ok: true, revisions: vec![] }
}

/// Beats, and gives how many allocations that took in the whole process.
fn beats(control: &Path) -> usize {
    let mut stream = loop {
        match UnixStream::connect(control) {
            Ok(stream) => break stream,
            // It is bound when the daemon is the incumbent.
            Err(_) => std::thread::park_timeout(std::time::Duration::from_millis(1)),
        }
    };
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut hello = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut hello).unwrap();
    let mut frame = Vec::new();
    let ack = Message::HelloAck { proto_version_chosen: 1, handoff_id: HandoffId::new() };
    encode(&ack, 1, &mut frame).unwrap();
    stream.write_all(&frame).unwrap();
    count(stream)
}

/// Beats on a connection whose other end answers each beat with the same.
fn count(mut stream: UnixStream) -> usize {
    let mut frame = Vec::new();
    // Its answer repeats the time stamp (X2), which sets it apart from the daemon's own.
    encode(&Message::Heartbeat { ts_ms: u64::MAX }, 1, &mut frame).unwrap();
    let mut answer = vec![0; frame.len()];
    let mut beat = || {
        stream.write_all(&frame).unwrap();
        loop {
            stream.read_exact(&mut answer[..4]).unwrap();
            let length = u32::from_le_bytes(answer[..4].try_into().unwrap()) as usize;
            stream.read_exact(&mut answer[4..4 + length]).unwrap();
            if answer[..4 + length] == frame[..] {
                return;
            }
        }
    };
    (0..WARM_UP).for_each(|_| beat());
    let region = Region::new(COUNTED);
    (0..BEATS).for_each(|_| beat());
    let counted = region.change();
    counted.allocations + counted.reallocations
}

/// What a bare socket on the reactor of smol and async-std costs.
async fn echo() -> usize {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let echo = smol::Async::new(theirs).unwrap();
    let counting = std::thread::spawn(|| count(ours));
    let echoing = smol::spawn(async move {
        let mut buffer = [0; 64];
        loop {
            match echo.read_with(|mut echo| echo.read(&mut buffer)).await.unwrap() {
                0 => return,
                count => {
                    echo.write_with(|mut echo| echo.write_all(&buffer[..count])).await.unwrap()
                }
            }
        }
    });
    echoing.await;
    counting.join().unwrap()
}

/// Not a test of its own: a daemon and its peer, on the runtime that `TEST_RUNTIME` names.
#[test]
#[ignore = "the body of the other test's processes"]
fn counting() {
    let Ok(runtime) = std::env::var("TEST_RUNTIME") else { return };
    let dir = tempfile::Builder::new().prefix("allocations ").tempdir().unwrap();
    let control = dir.path().join("c.sock");
    let config = Config::new(&control, dir.path());
    let (sender, allocations) = std::sync::mpsc::channel();
    let peer = move |stop: handoff_unix::host::Stop| {
        std::thread::spawn(move || {
            sender.send(beats(&control)).unwrap();
            stop.stop();
        })
    };
    let tokio = || async {
        let grant = handoff_tokio::Daemon::from_env(config.clone()).unwrap().begin().await.unwrap();
        let serving = grant.ready(ready());
        peer.clone()(serving.stopper());
        serving.run(Program).await
    };
    let smol = || async {
        let grant = handoff_smol::Daemon::from_env(config.clone()).unwrap().begin().await.unwrap();
        let serving = grant.ready(ready());
        peer.clone()(serving.stopper());
        serving.run(Program).await
    };
    let floor = match runtime.as_str() {
        "smol" => smol::block_on(echo()),
        "async-std" => async_std::task::block_on(echo()),
        _ => 0,
    };
    match runtime.as_str() {
        "blocking" => {
            let grant = handoff_blocking::Daemon::from_env(config).unwrap().begin().unwrap();
            let serving = grant.ready(ready());
            peer(serving.stopper());
            serving.run(Program)
        }
        "tokio" => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(tokio()),
        "tokio-threads" => tokio::runtime::Runtime::new().unwrap().block_on(tokio()),
        "smol" => smol::block_on(smol()),
        "async-std" => async_std::task::block_on(smol()),
        other => panic!("no runtime {other}"),
    };
    println!("\nallocations: {} {floor}", allocations.recv().unwrap());
}

#[test]
fn a_frame_allocates_nothing() {
    for runtime in ["blocking", "tokio", "tokio-threads", "smol", "async-std"] {
        let counted = Command::new(std::env::current_exe().unwrap())
            .args(["counting", "--exact", "--ignored", "--nocapture"])
            .env("TEST_RUNTIME", runtime)
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let text = String::from_utf8(counted.stdout).unwrap();
        let numbers = text.lines().find_map(|line| line.strip_prefix("allocations: "));
        let (allocations, floor) = numbers.and_then(|line| line.split_once(' ')).expect(&text);
        let [allocations, floor]: [usize; 2] = [allocations, floor].map(|n| n.parse().unwrap());
        println!("{runtime}: {allocations} for {BEATS} beats, a bare socket {floor}");
        // One each wake-up is the reactor's where a bare socket has it too; it may be woken less often.
        let wake_ups = if floor > BEATS / 2 { BEATS } else { 0 };
        // Now and then a queue of the runtime's grows, and the daemon's own heartbeat wakes it.
        assert!(allocations < wake_ups + BEATS / 20, "{runtime}: {allocations}, {floor}");
    }
}

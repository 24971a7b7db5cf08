//! What systemd is told, over a real notify socket.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::bench::{Bench, PATIENCE};

/// A message: its lines, and how many descriptors came with it.
type Message = (String, usize);

/// Receives for ever, in a thread that ends with the test's process.
fn manager(socket: UnixDatagram) -> Receiver<Message> {
    let (told, messages) = mpsc::channel();
    thread::spawn(move || {
        loop {
            let (mut text, mut space) =
                ([0; 4096], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))]);
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut text)];
            let received = recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC);
            let descriptors: usize = control
                .drain()
                .map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => fds.count(),
                    _ => 0,
                })
                .sum();
            let length = received.unwrap().bytes;
            let text = String::from_utf8(text[..length].to_vec()).unwrap();
            if told.send((text, descriptors)).is_err() {
                return;
            }
        }
    });
    messages
}

/// What is told up to the message that begins so, without the beats of the watchdog.
#[track_caller]
fn until(messages: &Receiver<Message>, beginning: &str) -> Vec<Message> {
    let mut heard = Vec::new();
    loop {
        let Ok(message) = messages.recv_timeout(PATIENCE) else {
            panic!("{beginning} is not told, but {heard:#?}")
        };
        assert!(!message.0.contains("MAINPID"), "{message:?}");
        if message.0 == "WATCHDOG=1\n" && beginning != "WATCHDOG=1" {
            continue;
        }
        let ends = message.0.starts_with(beginning);
        heard.push(message);
        if ends {
            return heard;
        }
    }
}

/// A reload, from its beginning until it is over: the phases that `systemctl status` has shown.
#[track_caller]
fn reload(messages: &Receiver<Message>) -> Vec<String> {
    let heard = until(messages, "READY=1");
    let reloading = &heard.first().unwrap().0;
    let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    assert!(usec.is_some_and(|usec| usec.trim_end().parse::<u64>().is_ok()), "{heard:#?}");
    let mut phases = Vec::new();
    for (text, _) in heard.iter().skip(1).take(heard.len() - 2) {
        let status = text.strip_prefix("STATUS=handoff ").unwrap_or_else(|| panic!("{heard:#?}"));
        let (_, phase) = status.trim_end().split_once(": ").unwrap();
        let (phase, left) = phase.split_once(", ").unwrap_or((phase, ""));
        // The time of the warm-up begins with the new process.
        if ["drain", "seal", "open"].contains(&phase) {
            assert!(left.ends_with(" s left"), "{heard:#?}");
        }
        phases.push(phase.to_string());
    }
    phases.dedup();
    phases
}

#[test]
fn systemd_is_told_how_it_is() {
    let mut bench = Bench::new("");
    let messages = manager(UnixDatagram::bind(bench.path("notify")).unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_handoff"));
    command.stdin(Stdio::null()).env("NOTIFY_SOCKET", bench.path("notify"));
    command.env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID");
    bench.start_as(command);
    let heard = until(&messages, "READY=1");
    assert_eq!(heard[0], ("FDSTORE=1\nFDNAME=kept.http\nFDPOLL=0\n".to_string(), 1), "{heard:#?}");
    let first = bench.serving();
    let ready =
        |pid, generation| format!("READY=1\nSTATUS=pid {pid} serves, generation {generation}\n");
    assert_eq!(heard.last().unwrap().0, ready(first, 1));
    until(&messages, "WATCHDOG=1");
    until(&messages, "WATCHDOG=1");
    let environment = fs::read(format!("/proc/{first}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("NOTIFY_SOCKET"), "the daemon is not systemd's: {environment}");
    assert!(!environment.contains("WATCHDOG_USEC"), "{environment}");

    bench.handoff(&["swap", bench.version("v2", "sleep 1").to_str().unwrap()]).exits(0);
    assert_eq!(reload(&messages), ["warm", "drain", "seal", "open", "commit"]);
    let unfit = bench.version("unfit", "export KV_UNHEALTHY=1");
    bench.handoff(&["swap", unfit.to_str().unwrap()]).exits(75);
    assert_eq!(reload(&messages), ["warm", "drain", "seal", "open", "rollback"]);
    let stuck = bench.version("stuck", "sleep 600");
    bench.handoff(&["swap", stuck.to_str().unwrap(), "--no-wait"]).exits(0);
    bench.handoff(&["abort"]).exits(0);
    // Whether there was a process to be ended is a matter of luck.
    let phases = reload(&messages);
    assert!(phases == ["warm", "rollback"] || phases == ["warm"], "{phases:?}");

    bench.handoff(&["stop"]).exits(0);
    let heard = until(&messages, "STOPPING=1");
    assert_eq!(heard.len(), 1, "{heard:#?}");
    let heard = until(&messages, "FDSTOREREMOVE=1");
    assert_eq!(heard.last().unwrap().0, "FDSTOREREMOVE=1\nFDNAME=kept.http\n");
    assert_eq!(bench.ends(), 0);
}

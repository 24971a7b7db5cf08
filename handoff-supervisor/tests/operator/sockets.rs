//! Listeners of each kind, and those that systemd passes.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use super::bench::{Bench, Load, PATIENCE};

/// A version that writes down which listeners it was given.
fn notes(bench: &Bench, name: &str) -> PathBuf {
    let record = bench.path(&format!("{name}.given")).display().to_string();
    let script = format!(
        r#"number=3
for name in $(echo "$LISTEN_FDNAMES" | tr : ' '); do
  echo "$name $(readlink /proc/$$/fd/$number)" >>'{record}'
  number=$((number + 1))
done"#
    );
    bench.version(name, &script)
}

/// What it has written: for each name the socket.
fn given(bench: &Bench, name: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(bench.path(&format!("{name}.given"))).unwrap();
    let pairs = text.lines().map(|line| line.split_once(' ').unwrap());
    pairs.map(|(name, socket)| (name.to_string(), socket.to_string())).collect()
}

#[test]
fn listeners_of_each_kind_pass_through_a_swap() {
    let mut bench = Bench::new("");
    notes(&bench, "v1");
    let (unix, udp) = (bench.path("run/kv.sock"), UdpSocket::bind("127.0.0.1:0").unwrap());
    let udp_address = udp.local_addr().unwrap();
    drop(udp);
    bench.configure(
        "",
        &format!(
            "[[listener]]\nname = \"local\"\nunix = {unix:?}\nmode = \"0660\"\nbacklog = 7\n\n\
             [[listener]]\nname = \"stats\"\nudp = \"{udp_address}\"\n"
        ),
    );
    bench.start();
    let load = Load::start(bench.address);
    assert_eq!(fs::metadata(&unix).unwrap().permissions().mode() & 0o777, 0o660);
    let before = given(&bench, "v1");
    assert_eq!(before.keys().collect::<Vec<_>>(), ["http", "local", "stats"]);
    // Clients that nobody has looked at yet.
    let client = UnixStream::connect(&unix).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.connect(udp_address).unwrap();
    sender.send(b"one").unwrap();

    let second = notes(&bench, "v2");
    bench.handoff(&["swap", second.to_str().unwrap()]).exits(0);
    assert_eq!(given(&bench, "v2"), before, "they are the same sockets");
    let status = bench.status();
    let listeners = status["listeners"].as_array().unwrap();
    let seen =
        listeners.iter().map(|it| (it["name"].as_str().unwrap(), it["kind"].as_str().unwrap()));
    let seen: Vec<_> = seen.collect();
    assert_eq!(seen, [("http", "tcp"), ("local", "unix"), ("stats", "udp")]);
    assert_eq!(listeners[1]["waiting"], 1, "the client still waits: {status:#}");
    assert_eq!(listeners[1]["backlog"], 7);
    // Had the socket been closed, the second would be an error.
    sender.send(b"two").unwrap();
    sender.send(b"three").unwrap();
    drop(client);
    let said = bench.handoff(&["status"]).exits(0);
    assert!(said.out.contains(&format!("stats     udp   {udp_address}")), "{}", said.out);
    load.ends_clean();
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
    assert!(!unix.exists());
}

#[test]
fn listeners_that_systemd_passes_are_taken_instead_of_bound() {
    let mut bench = Bench::new("");
    notes(&bench, "v1");
    let listener = TcpListener::bind(bench.address).unwrap();
    // The shell gives the supervisor what systemd would: a descriptor, and whom it is for.
    let mut command = Command::new("sh");
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=http exec \"$@\"";
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_handoff")]);
    command.stdin(OwnedFd::from(listener.try_clone().unwrap()));
    bench.start_as(command);
    // What the test had of it is gone: it is the supervisor's.
    let inode = handoff_unix::sockets::inode(&listener).unwrap();
    drop(listener);
    assert_eq!(bench.status()["listeners"][0]["origin"], "systemd");
    assert_eq!(given(&bench, "v1")["http"], format!("socket:[{inode}]"));
    let load = Load::start(bench.address);
    let second = notes(&bench, "v2");
    bench.handoff(&["swap", second.to_str().unwrap()]).exits(0);
    assert_eq!(given(&bench, "v2"), given(&bench, "v1"));
    bench.handoff(&["reexec"]).exits(0);
    let status = bench.until("it is back", |status| status["activity"] == "serving");
    assert_eq!(status["listeners"][0]["origin"], "systemd", "it is still systemd's");
    load.goes_on();
    load.ends_clean();
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}

#[test]
fn a_listener_of_systemd_that_is_not_the_configured_one_is_refused() {
    let bench = Bench::new("");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=http exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_handoff"), "supervise", "--config"]);
    command.arg(bench.path("handoff.toml")).stdin(OwnedFd::from(listener));
    let started = std::time::Instant::now();
    let output = command.output().unwrap();
    assert!(started.elapsed() < PATIENCE);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("http") && text.contains(&bench.address.to_string()), "{text}");
}

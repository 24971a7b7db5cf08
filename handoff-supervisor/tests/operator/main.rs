//! An operator's session with the `handoff` command, on a real database daemon under load.

#![allow(clippy::unwrap_used, reason = "a test")]

mod bench;
mod health;
mod metrics;
mod notify;
mod refusals;
mod sockets;
mod user;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;

use bench::{Bench, Load, PATIENCE, link, request};
use handoff_unix::process::{PidFd, Signal};
use serde_json::Value;

/// Start, status, check, dry run, swap, watch, failing swap, abort, rollback, kill -9 of the supervisor,
/// restart, status, reexec, history, stop: no request fails, and no acknowledged write is lost.
#[test]
fn a_session_with_a_person_on_call() {
    let mut bench = Bench::new("");
    let said = bench.handoff(&["status"]).exits(69);
    assert!(said.err.contains("handoff supervise"), "it says what to do: {said:?}");
    bench.handoff(&["check"]).exits(0);

    bench.start();
    let first = bench.serving();
    let said = bench.handoff(&["status"]).exits(0);
    assert!(said.out.contains(&first.to_string()), "{said:?}");
    let load = Load::start(bench.address);
    load.goes_on();

    // The new binary is tried, and the daemon left alone.
    let second = bench.version("v2", "");
    let second = second.to_str().unwrap();
    bench.handoff(&["swap", second, "--dry-run"]).exits(0);
    assert_eq!(bench.serving(), first);

    // It is swapped, once however often that is asked for with one key.
    let swap = ["swap", second, "--reason", "release 2", "--key", "r2", "--json"];
    let said = bench.handoff(&swap).exits(0).json();
    assert_eq!(
        (&said["entry"]["verdict"], &said["repeated"]),
        (&"committed".into(), &false.into())
    );
    let again = bench.handoff(&swap).exits(0).json();
    assert_eq!((&again["entry"]["id"], &again["repeated"]), (&said["entry"]["id"], &true.into()));
    let status = bench.status();
    assert_eq!(status["serving"]["generation"], 2);
    assert_eq!(status["serving"]["binary"], second);
    assert_ne!(bench.serving(), first);
    load.goes_on();

    // Somebody watches a swap.
    let (mut watcher, mut seen) = bench.begin(&["status", "--watch", "--json"]);
    seen.next().unwrap();
    let slow = bench.version("slow <&> \"v3\"", "sleep 1");
    let picture = bench.path("swap.svg");
    bench
        .handoff(&["swap", slow.to_str().unwrap(), "--timeline", picture.to_str().unwrap()])
        .exits(0);
    let mut watched = seen.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let flight = watched.find(|status| status["activity"] == "handoff").unwrap();
    assert_eq!(flight["flight"]["phase"], "warm");
    assert!(watched.any(|status| status["activity"] == "serving"));
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    let picture = fs::read_to_string(&picture).unwrap();
    let picture = roxmltree::Document::parse(&picture).unwrap();
    let said: Vec<&str> = picture.descendants().filter_map(|node| node.text()).collect();
    assert!(said.iter().any(|text| text.contains(slow.to_str().unwrap())), "{said:?}");
    assert!(said.iter().any(|text| text.starts_with("nobody accept")), "{said:?}");

    // Swaps that fail leave it as it was, and say why.
    let third = bench.serving();
    for (name, first, code) in [
        ("unfit", "echo not feeling well >&2; export KV_UNHEALTHY=1", "unhealthy"),
        (
            "dies",
            "echo cannot find my settings >&2; export KV_DIE_AFTER_BEGIN=1",
            "successor_exited",
        ),
        ("ends", "echo no such option >&2; exit 3", "successor_exited"),
    ] {
        let version = bench.version(name, first);
        let said = bench.handoff(&["swap", version.to_str().unwrap(), "--json"]).exits(75).json();
        assert_eq!(said["entry"]["code"], code, "{said:#}");
        let complaint = first.split('>').next().unwrap().trim_start_matches("echo ").trim();
        let lines = said["stderr"].as_array().unwrap();
        assert!(lines.iter().any(|line| line == complaint), "{said:#}");
        let said = bench.handoff(&["swap", version.to_str().unwrap()]).exits(75);
        assert!((said.out + &said.err).contains(complaint));
        assert_eq!(bench.serving(), third);
    }
    bench.handoff(&["swap", bench.path("nothing").to_str().unwrap()]).exits(66);

    // One that takes for ever is aborted, and what is asked for meanwhile is refused.
    let stuck = bench.version("stuck", "sleep 600");
    let stuck = stuck.to_str().unwrap();
    let (mut waits, _) = bench.begin(&["swap", stuck, "--json"]);
    bench.until("it is under way", |status| status["activity"] == "handoff");
    let said = bench.handoff(&["swap", "--json"]).exits(75);
    assert!(said.out.contains("busy"), "{said:?}");
    let said = bench.handoff(&["abort", "--json"]).exits(0).json();
    assert_eq!(said["entry"]["code"], "operator_abort");
    assert_eq!(waits.wait().unwrap().code(), Some(75));
    assert_eq!(bench.serving(), third);
    load.goes_on();

    // Back to the binary before.
    let said = bench.handoff(&["rollback", "--reason", "it was better", "--json"]).exits(0).json();
    assert_eq!(
        (&said["entry"]["kind"], &said["entry"]["binary"]),
        (&"rollback".into(), &second.into())
    );
    load.goes_on();

    // The supervisor dies, the daemon serves, the next supervisor adopts it and swaps it.
    let fourth = bench.serving();
    bench.kill_supervisor();
    load.goes_on();
    bench.start();
    let status = bench.status();
    assert_eq!(bench.serving(), fourth);
    assert_eq!(status["listeners"][0]["origin"], "daemon");
    assert_eq!(status["serving"]["generation"], 4);
    assert_eq!(status["serving"]["binary"], second);
    bench.handoff(&["swap"]).exits(0);
    load.goes_on();

    // The supervisor's binary is replaced in its process.
    let (pid, fifth) = (bench.supervisor(), bench.serving());
    let own = bench.path("handoff v2");
    fs::copy(env!("CARGO_BIN_EXE_handoff"), &own).unwrap();
    bench.handoff(&["reexec", "--binary", bench.path("v1").to_str().unwrap()]).exits(66);
    bench.handoff(&["reexec", "--binary", own.to_str().unwrap()]).exits(0);
    let status = bench.until("it is back", |status| status["activity"] == "serving");
    assert_eq!(status["supervisor"]["pid"], pid);
    assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), own);
    assert_eq!((bench.serving(), &status["listeners"][0]["origin"]), (fifth, &"reexec".into()));
    bench.handoff(&["swap", second]).exits(0);
    load.goes_on();

    let kinds = bench.history();
    let mut expected = vec!["start", "dry_run", "swap", "swap"];
    expected.extend(["swap"; 7]);
    expected.extend(["rollback", "adopt", "swap", "reexec", "swap"]);
    assert_eq!(kinds, expected);
    let said = bench.handoff(&["history"]).exits(0);
    assert!(said.out.contains("release 2") && said.out.contains("it was better"), "{said:?}");
    bench.handoff(&["doctor"]).exits(0);

    let requests = load.ends_clean();
    assert!(requests > 100, "{requests}");
    let (last, control) = (PidFd::open(bench.serving()).unwrap(), bench.path("run/handoff.sock"));
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
    assert!(last.has_exited());
    assert!(!control.exists());
    assert_eq!(fs::read_dir(bench.path("state/output")).unwrap().count(), 0);
    bench.handoff(&["status"]).exits(69);
}

/// SIGHUP swaps to what the configuration says, SIGTERM stops.
#[test]
fn signals_swap_and_stop() {
    let mut bench = Bench::new("");
    let current = bench.path("current");
    link(&bench.path("v1"), &current);
    let config = fs::read_to_string(bench.path("handoff.toml")).unwrap();
    let v1 = bench.path("v1").display().to_string();
    let config = config.replace(&v1, current.to_str().unwrap());
    fs::write(bench.path("handoff.toml"), config).unwrap();
    bench.start();
    let load = Load::start(bench.address);
    let second = bench.version("v2", "");
    link(&second, &current);
    bench.signal_supervisor(Signal::HUP);
    let status = bench.until("it is swapped", |status| status["serving"]["generation"] == 2);
    assert_eq!(status["serving"]["binary"], second.to_str().unwrap(), "links are resolved");
    load.ends_clean();
    bench.signal_supervisor(Signal::TERM);
    assert_eq!(bench.ends(), 0);
}

/// A daemon that dies is started again; on probation, the one before it.
#[test]
fn who_fails_on_probation_is_replaced() {
    let mut bench = Bench::new("probation = \"1h\"");
    bench.start();
    let first = bench.serving();
    PidFd::open(first).unwrap().signal(Signal::KILL).unwrap();
    let status = bench.until("it is started again", |status| status["serving"]["generation"] == 2);
    assert_eq!(status["last"]["kind"], "start");

    let second = bench.version("v2", "");
    bench.handoff(&["swap", second.to_str().unwrap()]).exits(0);
    let status = bench.status();
    assert_eq!(status["probation"]["previous"], bench.path("v1").to_str().unwrap());
    PidFd::open(bench.serving()).unwrap().signal(Signal::KILL).unwrap();
    let status =
        bench.until("the one before serves", |status| status["serving"]["generation"] == 4);
    assert_eq!(status["serving"]["binary"], bench.path("v1").to_str().unwrap());
    assert_eq!(bench.history(), ["start", "exit", "start", "swap", "exit", "probation", "start"]);
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}

/// Clients that say nothing, garbage, too much, or go: nobody else notices.
#[test]
fn strangers_on_the_socket_change_nothing() {
    let mut bench = Bench::new("");
    bench.start();
    let first = bench.serving();
    let socket = bench.path("run/handoff.sock");
    let silent: Vec<UnixStream> = (0..32).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for text in [&b"garbage\n"[..], b"{\"verb\":\"fly\"}\n", b"{\"verb\":\"stop\"", b"\xff\n"] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(text).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(
            (&answer["reply"], &answer["exit"]),
            (&"refused".into(), &76.into()),
            "{answer}"
        );
    }
    let mut flood = UnixStream::connect(&socket).unwrap();
    let _ = flood.write_all(&vec![b'x'; 1 << 20]);
    assert_eq!(bench.serving(), first);
    bench.handoff(&["swap"]).exits(0);
    drop(silent);
    // A second supervisor of the same daemon is refused.
    let said = bench.handoff(&["supervise"]).exits(75);
    assert!(said.err.contains(&bench.supervisor().to_string()), "{said:?}");
    assert_eq!(request(bench.address, "GET", "healthz", "").unwrap().0, 200);
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}

/// A binary that is gone or fails keeps the daemon down; a swap to one that works starts it, and says so.
#[test]
fn where_nobody_serves_a_swap_starts_what_works() {
    let mut bench = Bench::new("");
    bench.start();
    let (first, aside) = (bench.path("v1"), bench.path("aside"));
    let second = bench.version("v2", "");
    fs::rename(&first, &aside).unwrap();
    PidFd::open(bench.serving()).unwrap().signal(Signal::KILL).unwrap();
    bench.until("it cannot be started", |status| {
        status["activity"] == "backoff" && status["last"]["code"] == "successor_exec_failed"
    });
    let said = bench.handoff(&["status"]).exits(0);
    assert!(said.words().contains("nobody is known to serve"), "{said:?}");
    assert!(said.words().contains("check the path; started again in"), "{said:?}");
    let doctor = bench.handoff(&["doctor"]);
    assert!(doctor.code != 0 && doctor.words().contains("nobody serves"), "{doctor:?}");
    bench.handoff(&["swap", "--dry-run", second.to_str().unwrap()]).exits(70);
    let broken = bench.version("broken", "echo no such option >&2; exit 3");
    let said = bench.handoff(&["swap", broken.to_str().unwrap()]).exits(70).words();
    assert!(said.contains("successor_exited") && said.contains("no such option"), "{said}");

    let said = bench.handoff(&["swap", second.to_str().unwrap()]).exits(0);
    assert!(said.out.starts_with("Started: pid "), "{said:?}");
    let status = bench.status();
    assert_eq!(status["serving"]["binary"], second.to_str().unwrap());
    assert_eq!(status["previous"], first.to_str().unwrap());
    fs::rename(&aside, &first).unwrap();
    bench.handoff(&["rollback"]).exits(0);
    assert_eq!(bench.status()["serving"]["binary"], first.to_str().unwrap());
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
    assert!(!bench.log().contains("ERROR the daemon has ended: it is gone"), "{}", bench.log());
}

/// A supervisor that dies in the middle of a handoff leaves a daemon that serves, and nothing else; the next
/// one settles it. Probation goes on where it was.
#[test]
fn a_supervisor_that_dies_in_the_middle_is_followed_by_another() {
    let mut bench = Bench::new("probation = \"1h\"");
    bench.start();
    let load = Load::start(bench.address);
    let note = bench.path("trace").display().to_string();
    let second = bench.version("v2", &format!("echo \"$TRACEPARENT\" >'{note}'"));
    let said = bench.handoff(&["swap", second.to_str().unwrap(), "--json"]).exits(0).json();
    // The new daemon can join the trace, whose id is the handoff's.
    let id = said["entry"]["id"].as_str().unwrap().replace('-', "");
    let trace = fs::read_to_string(&note).unwrap();
    assert_eq!(trace.split('-').nth(1), Some(id.as_str()), "{trace}");
    let serving = bench.serving();
    let stuck = bench.version("stuck", "echo stuck; sleep 600");
    bench.handoff(&["swap", stuck.to_str().unwrap(), "--no-wait"]).exits(0);
    while !bench.log().contains("stuck\n") {
        load.goes_on();
    }
    bench.kill_supervisor();
    load.goes_on();
    bench.start();
    assert_eq!(bench.serving(), serving);
    assert!(bench.log().contains("left a handoff behind"), "{}", bench.log());
    assert_eq!(bench.status()["probation"]["previous"], bench.path("v1").to_str().unwrap());

    bench.handoff(&["reexec"]).exits(0);
    bench.until("it is back", |status| status["activity"] == "serving");
    load.goes_on();
    load.ends_clean();
    PidFd::open(bench.serving()).unwrap().signal(Signal::KILL).unwrap();
    let status =
        bench.until("the one before serves", |status| status["serving"]["generation"] == 3);
    assert_eq!(status["serving"]["binary"], bench.path("v1").to_str().unwrap());
    assert_eq!(status["probation"], Value::Null);
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
    // What it has said is said once, whoever passes it on.
    let said = bench.log().matches(&format!("kv[{serving}]: accepting")).count();
    assert_eq!(said, 1, "{}", bench.log());
}

/// Whoever read its log has gone: it goes on.
#[test]
fn a_supervisor_that_nobody_listens_to_goes_on() {
    let mut bench = Bench::new("");
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_handoff"));
    command.stdin(std::process::Stdio::null());
    drop(reader);
    bench.start_into(command, writer.try_clone().unwrap(), writer);
    let load = Load::start(bench.address);
    bench.handoff(&["swap"]).exits(0);
    bench.handoff(&["swap", bench.version("ends", "exit 3").to_str().unwrap()]).exits(75);
    load.ends_clean();
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}

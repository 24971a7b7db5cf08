//! What goes wrong around a supervisor: readers who do not read, supervisors that die in the middle, binaries
//! that do not start, listeners that are lost.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../operator/bench.rs"]
#[allow(dead_code, reason = "it is shared")]
mod bench;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bench::{Bench, Load, PATIENCE, request};
use handoff_unix::process::{PidFd, Signal};
use handoff_unix::spawn::{Launch, SpawnRole, spawn};
use serde_json::Value;

fn kill(pid: u32) {
    PidFd::open(pid).unwrap().signal(Signal::KILL).unwrap();
}

fn change(bench: &Bench, from: &str, to: &str) {
    let path = bench.path("handoff.toml");
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains(from), "{config}");
    fs::write(path, config.replace(from, to)).unwrap();
}

/// What a supervisor has written down, to be changed while there is none.
fn state(bench: &Bench) -> Value {
    serde_json::from_slice(&fs::read(bench.path("state/state.json")).unwrap()).unwrap()
}

fn remember(bench: &Bench, state: &Value) {
    fs::write(bench.path("state/state.json"), state.to_string()).unwrap();
}

/// A supervisor that does not outlive its test.
struct Boss(std::process::Child);

impl Boss {
    /// Ends it by a signal; gives its exit code.
    fn terminate(mut self) -> Option<i32> {
        PidFd::open(self.0.id()).unwrap().signal(Signal::TERM).unwrap();
        self.ends()
    }

    fn ends(&mut self) -> Option<i32> {
        let pidfd = PidFd::open(self.0.id()).unwrap();
        assert!(pidfd.wait(Some(Duration::from_secs(20))).unwrap(), "it does not end");
        self.0.wait().unwrap().code()
    }
}

impl Drop for Boss {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A supervisor, without waiting for anything.
fn supervise(bench: &Bench) -> Boss {
    let log = fs::OpenOptions::new().append(true).create(true).open(bench.path("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_handoff"));
    command
        .args(["supervise", "--config"])
        .arg(bench.path("handoff.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    Boss(command.spawn().unwrap())
}

/// Whoever reads the supervisor's output stops reading, and the daemon writes on: nothing else is held up.
#[test]
fn a_reader_who_stalls_holds_up_nothing() {
    let bench = Bench::new("");
    let chatty = bench.version("v1", "(yes 'a long line of output' | head -c 4000000 >&2) &");
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_handoff"));
    command
        .args(["supervise", "--config"])
        .arg(bench.path("handoff.toml"))
        .stdin(Stdio::null())
        .stdout(writer.try_clone().unwrap())
        .stderr(writer);
    let mut child = Boss(command.spawn().unwrap());
    bench.until("a daemon serves", |status| status["serving"] != Value::Null);
    bench.handoff(&["swap", chatty.to_str().unwrap()]).exits(0);
    for _ in 0..3 {
        bench.handoff(&["swap"]).exits(0);
    }
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(child.ends(), Some(0));
    drop(reader);
}

/// What a daemon has written is passed on once, by whichever supervisor.
#[test]
fn output_is_passed_on_once() {
    let mut bench = Bench::new("");
    bench.version("v1", "echo the daemon starts; printf 'half a ' >&2");
    bench.start();
    let own = env!("CARGO_BIN_EXE_handoff");
    bench.handoff(&["reexec", "--binary", own]).exits(0);
    bench.until("it is back", |status| status["activity"] == "serving");
    bench.kill_supervisor();
    bench.start();
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
    let log = bench.log();
    assert_eq!(log.matches("the daemon starts").count(), 1, "{log}");
    assert_eq!(log.matches("half a ").count(), 1, "{log}");
    assert_eq!(fs::read_dir(bench.path("state/output")).unwrap().count(), 0);
}

/// SIGTERM while the daemon that was started says nothing, and what it has written is not lost.
#[test]
fn a_daemon_that_is_being_started_is_stopped_at_once() {
    let bench = Bench::new("");
    let waits = "trap 'echo told to end; exit 0' TERM; echo it runs; while :; do sleep 0.1; done";
    bench.version("v1", waits);
    let child = supervise(&bench);
    bench.until("it is started", |status| status["activity"] == "starting");
    let limit = Instant::now() + PATIENCE;
    while !bench.log().contains("it runs") {
        assert!(Instant::now() < limit, "{}", bench.log());
    }
    assert_eq!(child.terminate(), Some(0));
    assert!(bench.log().contains("told to end"), "{}", bench.log());
    assert_eq!(fs::read_dir(bench.path("state/output")).unwrap().count(), 0);
}

/// SIGTERM while a stranger holds the lock and answers nobody.
#[test]
fn a_stranger_with_the_lock_does_not_keep_a_supervisor_from_stopping() {
    let bench = Bench::new("");
    let file = File::create(bench.path("data/.handoff.lock")).unwrap();
    file.lock().unwrap();
    let child = supervise(&bench);
    bench.until("it waits", |status| status["activity"] == "waiting");
    assert_eq!(child.terminate(), Some(0));
}

/// R10: listeners that a supervisor could not get are bound when the daemon that had them has ended, and no
/// daemon is started without them: not even when it ends while its supervisor looks for it.
#[test]
fn r10_lost_listeners_come_back_when_the_daemon_has_ended() {
    let mut bench = Bench::new("");
    bench.start();
    for silent in [false, true] {
        let daemon = bench.serving();
        bench.kill_supervisor();
        let mut state = state(&bench);
        state["listeners"] = Value::Array(Vec::new());
        remember(&bench, &state);
        if silent {
            PidFd::open(daemon).unwrap().signal(Signal::STOP).unwrap();
            let child = supervise(&bench);
            bench.until("it waits", |status| status["activity"] == "waiting");
            kill(daemon);
            another_serves(&bench, daemon);
            assert!(!bench.log().contains("does not start"), "{}", bench.log());
            assert_eq!(child.terminate(), Some(0));
        } else {
            bench.start();
            let said = bench.handoff(&["swap"]).exits(69);
            assert!(said.err.contains("does not have the listeners http"), "{said:?}");
            kill(daemon);
            another_serves(&bench, daemon);
        }
    }
}

/// With its listener, which can be handed over.
fn another_serves(bench: &Bench, daemon: u32) {
    bench.until("another serves, with its listener", |status| {
        status["activity"] == "serving"
            && status["serving"]["pid"] != daemon
            && status["listeners"][0]["origin"] == "bound"
    });
    assert_eq!(request(bench.address, "GET", "healthz", "").unwrap().0, 200);
    bench.handoff(&["swap"]).exits(0);
}

/// R10: by what a listener is found is not forgotten by a supervisor that could not get it, and one that is
/// new in the configuration is bound.
#[test]
fn r10_listeners_are_found_later_and_new_ones_bound() {
    let mut bench = Bench::new("");
    bench.start();
    let daemon = bench.serving();
    bench.kill_supervisor();
    let known = state(&bench);
    let mut wrong = known.clone();
    wrong["listeners"][0]["inode"] = 1.into();
    remember(&bench, &wrong);
    bench.start();
    bench.handoff(&["swap"]).exits(69);
    bench.kill_supervisor();
    assert_eq!(state(&bench)["listeners"], wrong["listeners"]);
    remember(&bench, &known);

    let new = "[[listener]]\nname = \"admin\"\ntcp = \"127.0.0.1:0\"\n\n[handoff]";
    change(&bench, "[handoff]", new);
    bench.start();
    let status = bench.status();
    let origin = |number: usize| status["listeners"][number]["origin"].as_str();
    assert_eq!((origin(0), origin(1)), (Some("daemon"), Some("bound")));
    assert_eq!(bench.serving(), daemon);
    bench.handoff(&["swap"]).exits(0);
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}

/// Clock ticks that a process has spent.
fn spent(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// A look at the health that is not wanted any more is not due for ever.
#[test]
fn a_health_that_is_no_longer_configured_costs_nothing() {
    let mut bench = Bench::new("\n[handoff.health]\nevery = \"10ms\"\nhttp = \"ADDRESS/healthz\"");
    change(&bench, "ADDRESS", &format!("http://{}", bench.address));
    bench.start();
    bench.until("it is seen to be well", |status| status["serving"]["healthy"] == true);
    let config = fs::read_to_string(bench.path("handoff.toml")).unwrap();
    let (before, after) = config.split_once("[handoff.health]").unwrap();
    let (_, rest) = after.split_once("[supervisor]").unwrap();
    fs::write(bench.path("handoff.toml"), format!("{before}[supervisor]{rest}")).unwrap();
    bench.handoff(&["swap", "--dry-run"]).exits(0);
    assert_eq!(bench.status()["serving"]["healthy"], Value::Null);
    let (began, before) = (Instant::now(), spent(bench.supervisor()));
    while began.elapsed() < Duration::from_secs(1) {
        bench.status();
    }
    let ticks = spent(bench.supervisor()) - before;
    assert!(ticks < 30, "{ticks} ticks of 10 ms in a second");
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}

/// Where nobody serves, a swap starts what it names, once for one key, and says how that went.
#[test]
fn a_swap_where_nobody_serves_starts_the_binary() {
    let mut bench = Bench::new("");
    bench.start();
    let first = bench.path("v1");
    let bad = bench.version("bad", "exit 3").display().to_string();
    // A dry run is no swap, whatever its key.
    let broken = bench.path("broken");
    let good = bench.version("v2", &format!("[ -e '{}' ] && exit 3", broken.display()));
    let good = good.display().to_string();
    bench.handoff(&["swap", &good, "--dry-run", "--key", "k"]).exits(0);
    let said = bench.handoff(&["swap", &good, "--key", "k", "--json"]).exits(0).json();
    assert_eq!((&said["entry"]["kind"], &said["repeated"]), (&"swap".into(), &false.into()));

    // It stops working.
    File::create(&broken).unwrap();
    kill(bench.serving());
    bench.until("it cannot be started", |status| status["activity"] == "backoff");
    let attempt = ["swap", &bad, "--key", "bad", "--json"];
    // It may be tried by itself just then.
    let said = loop {
        let said = bench.handoff(&attempt);
        if said.code != 75 {
            break said;
        }
    };
    said.exits(70);
    let again = bench.handoff(&attempt).exits(70).json();
    assert_eq!((&again["repeated"], &again["entry"]["kind"]), (&true.into(), &"start".into()));
    let repair = ["swap", first.to_str().unwrap(), "--key", "good", "--json"];
    let said = loop {
        let said = bench.handoff(&repair);
        if said.code != 75 {
            break said.exits(0).json();
        }
    };
    assert_eq!((&said["entry"]["kind"], &said["entry"]["key"]), (&"start".into(), &"good".into()));
    let again = bench.handoff(&repair).exits(0).json();
    assert_eq!(
        (&again["repeated"], &again["entry"]["serving"]),
        (&true.into(), &said["entry"]["serving"])
    );
    let status = bench.status();
    assert_eq!(status["previous"], good.as_str());
    assert_eq!(status["serving"]["binary"], first.to_str().unwrap());

    fs::remove_file(&broken).unwrap();
    // The same again is no other binary to go back to.
    bench.handoff(&["swap", first.to_str().unwrap()]).exits(0);
    assert_eq!(bench.status()["previous"], good.as_str());
}

/// The supervisor dies while the new daemon opens its data, which goes on (R3): the next supervisor knows
/// what serves, and what to start when that ends.
#[test]
fn what_was_swapped_in_while_no_supervisor_was_there_is_known() {
    let mut bench = Bench::new("probation = \"1h\"");
    bench.start();
    let second = bench.version("v2", "").display().to_string();
    let first = bench.serving();
    let (mut client, lines) = bench.begin(&["swap", &second, "--key", "k", "--json"]);
    // Held by the test from when the old one lets go: the new one waits for it, and the supervisor dies.
    let lock = File::open(bench.path("data/.handoff.lock")).unwrap();
    lock.lock().unwrap();
    bench.kill_supervisor();
    drop(lines);
    client.wait().unwrap();
    drop(lock);
    bench.start();
    let pid = bench.serving();
    let status = bench.status();
    // Whichever has won the lock from the test.
    let took_over = pid != first;
    let expected = if took_over { second.clone() } else { bench.path("v1").display().to_string() };
    assert_eq!(status["serving"]["binary"], expected.as_str(), "{status:#}");
    assert_eq!(status["probation"] != Value::Null, took_over, "{status:#}");
    let said = bench.handoff(&["history", "--last", "2", "--json"]).exits(0);
    let verdict = if took_over { "committed" } else { "rolled_back" };
    assert!(said.out.contains(&format!("\"verdict\":\"{verdict}\"")), "{said:?}");
    let again = bench.handoff(&["swap", &second, "--key", "k", "--json"]).exits(0).json();
    assert_eq!(again["repeated"], took_over);
    assert_eq!(bench.status()["serving"]["binary"], second.as_str());
}

/// Probation goes on in the next supervisor.
#[test]
fn probation_outlives_a_supervisor() {
    let mut bench = Bench::new("probation = \"1h\"");
    bench.start();
    let first = bench.path("v1").display().to_string();
    let second = bench.version("v2", "").display().to_string();
    bench.handoff(&["swap", &second]).exits(0);
    bench.kill_supervisor();
    bench.start();
    let status = bench.status();
    assert_eq!(status["probation"]["previous"], first.as_str());
    let pid = bench.serving();
    kill(pid);
    let status = bench.until("the one before serves", |status| {
        status["activity"] == "serving" && status["serving"]["pid"] != pid
    });
    assert_eq!(status["serving"]["binary"], first.as_str());
    assert_eq!(
        (&status["previous"], &status["probation"]),
        (&second.as_str().into(), &Value::Null)
    );
}

/// C1: a daemon behind a wrapper that stays: its output is passed on, its end is seen, and it is stopped.
#[test]
fn c1_a_daemon_behind_a_wrapper_is_watched() {
    let mut bench = Bench::new("");
    change(&bench, "stop_grace", "wrapper = true\nstop_grace");
    let handoff = env!("CARGO_BIN_EXE_handoff");
    let wraps = format!("echo wrapped; '{handoff}' demo-daemon tokio; exit $?");
    bench.version("v1", &wraps);
    bench.start();
    assert_eq!(bench.history(), ["start"]);
    let first = bench.serving();
    kill(first);
    bench.until("it is started again", |status| status["serving"]["generation"] == 2);
    bench.handoff(&["swap"]).exits(0);
    bench.kill_supervisor();
    bench.start();
    let third = bench.serving();
    kill(third);
    bench.until("it is started again", |status| status["serving"]["generation"] == 4);
    let last = PidFd::open(bench.serving()).unwrap();
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
    assert!(last.has_exited());
    assert_eq!(bench.log().matches("wrapped").count(), 4, "{}", bench.log());
}

/// Sockets of a socket unit stay the unit's, also where the supervisor's binary was replaced.
#[test]
fn a_socket_of_a_unit_stays_the_units() {
    let bench = Bench::new("");
    let path = bench.path("run/admin.sock");
    let unix = format!(
        "[[listener]]\nname = \"admin\"\nunix = {:?}\n\n[handoff]",
        path.display().to_string()
    );
    change(&bench, "[handoff]", &unix);
    let socket = UnixListener::bind(&path).unwrap();
    let log: std::os::fd::OwnedFd = File::create(bench.path("log")).unwrap().into();
    let log = std::sync::Arc::new(log);
    let launch = Launch::new(env!("CARGO_BIN_EXE_handoff"))
        .args(["supervise".into(), "--config".into(), bench.path("handoff.toml").into_os_string()])
        .stdout(std::sync::Arc::clone(&log))
        .stderr(log);
    let child = spawn(&launch, &[("admin".to_string(), socket.as_fd())], SpawnRole::Cold).unwrap();
    for _ in 0..2 {
        let status = bench.until("a daemon serves", |status| status["activity"] == "serving");
        assert_eq!(status["listeners"][1]["origin"], "systemd");
        bench.handoff(&["reexec", "--binary", env!("CARGO_BIN_EXE_handoff")]).exits(0);
    }
    // A signal at any time is heard by one binary or the other.
    child.group.signal(Signal::TERM).unwrap();
    assert!(child.pidfd.wait(Some(PATIENCE)).unwrap(), "{}", bench.log());
    child.group.reap();
    UnixStream::connect(&path).unwrap();
}

/// Those who only look keep nobody from acting.
#[test]
fn watchers_leave_room_for_who_acts() {
    let mut bench = Bench::new("");
    bench.start();
    let socket = bench.path("run/handoff.sock");
    let mut watchers: Vec<UnixStream> = Vec::new();
    let refusal = loop {
        let mut stream = UnixStream::connect(&socket).unwrap();
        std::io::Write::write_all(&mut stream, b"{\"verb\":\"status\",\"watch\":true}\n").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let reply: Value = serde_json::from_str(&line).unwrap();
        if reply["reply"] == "refused" {
            break reply;
        }
        watchers.push(stream);
        assert!(watchers.len() < 1000);
    };
    assert_eq!((&refusal["code"], &refusal["exit"]), (&"busy".into(), &75.into()));
    let limit = Instant::now() + Duration::from_secs(20);
    bench.handoff(&["swap"]).exits(0);
    assert!(Instant::now() < limit);
    let mut text = [0; 1];
    watchers[0].read_exact(&mut text).unwrap();
}

/// Supervisors that die during swaps under load: no acknowledged write is lost, and none waits for ever.
#[test]
fn supervisors_may_die_at_any_time() {
    let mut bench = Bench::new("");
    bench.start();
    let load = Load::start(bench.address);
    let second = bench.version("v2", "").display().to_string();
    for pause in [0, 20, 60, 120, 250] {
        let (mut client, lines) = bench.begin(&["swap", &second]);
        let until = Instant::now() + Duration::from_millis(pause);
        while Instant::now() < until {
            load.goes_on();
        }
        bench.kill_supervisor();
        drop(lines);
        client.wait().unwrap();
        bench.start();
        load.goes_on();
    }
    load.ends_clean();
}

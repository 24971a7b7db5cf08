//! `handoff doctor` and `handoff check`, run as a person runs them, beside a daemon that serves.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use handoff_unix::control::ControlPath;
use handoff_unix::poll;
use handoff_unix::probe::{Users, probe};
use serde_json::{Value, json};

const HANDOFF: &str = env!("CARGO_BIN_EXE_handoff");

/// Longer than any of this takes, on a slow machine too.
const LIMIT: Duration = Duration::from_secs(60);

/// A daemon that serves, and what a supervisor of it would have.
struct Bench {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("handoff doctor ").tempdir().unwrap();
        for name in ["data", "run", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let bench = Self { dir, daemon: None };
        let at = |name: &str| bench.at(name).display().to_string();
        let text = format!(
            "[daemon]\ncommand = {HANDOFF:?}\ndata_dir = {:?}\ncontrol = {:?}
[supervisor]\nsocket = {:?}\nstate_dir = {:?}\n",
            at("data"),
            at("run/control"),
            at("run/handoff"),
            at("state")
        );
        fs::write(bench.at("kv.toml"), text).unwrap();
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&mut self) -> u32 {
        let control = ControlPath::new(self.at("run/control")).unwrap();
        let watch = control.watch().unwrap();
        let child = Command::new(HANDOFF)
            .args(["demo-daemon", "blocking"])
            .env("KV_CONTROL", control.as_path())
            .env("KV_DATA", self.at("data"))
            .env("KV_LISTEN", "127.0.0.1:0")
            .env("NOTIFY_SOCKET", "/run/of another")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        self.daemon = Some(child);
        while probe(&control, &Users::default()).is_err() {
            let changed = poll::readable(&watch, Some(LIMIT)).unwrap();
            assert!(changed, "the daemon did not start");
            watch.changed();
        }
        pid
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(HANDOFF).args(args).env_remove("HANDOFF_SOCKET").output().unwrap()
    }

    /// What it says, with `DIR` for the directory, in long lines.
    fn doctor(&self) -> (String, Option<i32>) {
        let output = self.run(&["doctor", "--config", self.at("kv.toml").to_str().unwrap()]);
        let text = String::from_utf8(output.stdout).unwrap();
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "longer than 80 columns: {line}");
        }
        let text = text.replace("\n         ", " ").replace("\n      ", " ");
        // A directory with a blank in it may be broken there.
        (text.replace(self.dir.path().to_str().unwrap(), "DIR"), output.status.code())
    }

    /// Answers as a supervisor does, until the test ends.
    fn answer(&self, serving: u32) {
        let socket = self.at("run/handoff");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
        let status = json!({
            "reply": "status", "supervisor": {
                "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION"), "since_at": 0,
                "config": self.at("kv.toml"),
            },
            "serving": {"pid": serving, "build_id": "kv", "since_at": 0, "generation": 1},
            "activity": "serving",
            "listeners": [{"name": "http", "kind": "tcp", "address": "127.0.0.1:1",
                "backlog": 16, "waiting": 0, "origin": "bound"}],
        });
        let entry =
            json!({"kind": "swap", "at": 0, "waiting_max": {"http": 20}, "unavailable_ms": 100});
        let history = json!({"reply": "history", "entries": [entry]});
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = String::new();
                BufReader::new(&stream).read_line(&mut request).unwrap();
                let reply = if request.contains("history") { &history } else { &status };
                let _ = writeln!(stream, "{reply}");
            }
        });
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|found| found.starts_with(line)), "no {line:?} in\n{text}");
}

#[test]
fn where_nobody_serves_it_says_so() {
    let bench = Bench::new();
    let (text, code) = bench.doctor();
    has(&text, "FAIL  no supervisor listens at DIR/run/handoff -> start it: ");
    has(&text, "FAIL  no daemon listens at the control path DIR/run/control -> ");
    has(&text, "FAIL  nobody holds the lock on DIR/data: nobody serves -> start the daemon");
    assert_eq!(code, Some(70));
}

#[test]
fn a_daemon_is_examined_with_its_supervisor() {
    let mut bench = Bench::new();
    let pid = bench.start();
    bench.answer(pid);
    let (text, code) = bench.doctor();
    let me = std::process::id();
    has(&text, &format!("good  the supervisor answers at DIR/run/handoff: pid {me}, version "));
    has(&text, &format!("good  handoff (pid {pid}) answers on the control path"));
    has(&text, &format!("good  pid {pid}, which answers, holds the lock on DIR/data"));
    has(&text, "good  data_dir is on ");
    has(
        &text,
        &format!("warn  pid {pid} has in its environment: NOTIFY_SOCKET=/run/of another -> "),
    );
    has(&text, &format!("good  pid {pid} runs {HANDOFF} as it is on disk"));
    has(&text, &format!("good  the daemon (pid {pid}) has "));
    has(&text, &format!("good  the supervisor (pid {me}) has "));
    // As many as 20 have waited in 0.1 s.
    has(
        &text,
        "FAIL  http: 16 connections can wait, and 200 connections/s for 100 ms would be 20 -> ",
    );
    assert_eq!(code, Some(70));

    let mut modes = fs::metadata(bench.at("state")).unwrap().permissions();
    modes.set_mode(0o777);
    fs::set_permissions(bench.at("state"), modes).unwrap();
    let (text, _) = bench.doctor();
    has(
        &text,
        "FAIL  state_dir, DIR/state, has mode 0777: its group and others can write to it -> chmod go-w ",
    );

    let output =
        bench.run(&["doctor", "--json", "--socket", bench.at("run/handoff").to_str().unwrap()]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["good"], false);
    let about: Vec<&str> = report["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["about"].as_str().unwrap())
        .collect();
    // The supervisor names the configuration.
    for wanted in ["supervisor", "control", "lock", "permissions", "filesystem", "space", "backlog"]
    {
        assert!(about.contains(&wanted), "{wanted} is not in {about:?}");
    }
}

#[test]
fn a_supervisor_that_is_mistaken_is_told() {
    let mut bench = Bench::new();
    let pid = bench.start();
    bench.answer(1);
    let (text, code) = bench.doctor();
    has(
        &text,
        &format!(
            "FAIL  the supervisor says that pid 1 serves, but DIR/run/control leads to pid {pid} -> "
        ),
    );
    assert_eq!(code, Some(70));
}

#[test]
fn the_configuration_comes_first() {
    let bench = Bench::new();
    let file = bench.at("kv.toml");
    let name = file.to_str().unwrap();
    let output = bench.run(&["check", "--config", name]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{name} is good\n"));
    assert_eq!(output.status.code(), Some(0));

    fs::write(&file, "[daemon]\ndata-dir = \"/\"\n").unwrap();
    let output = bench.run(&["check", "--json", "--config", name]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        report["mistakes"][0]["remedy"],
        "add command = \"/usr/local/bin/kv\", the binary of the daemon"
    );
    assert_eq!(output.status.code(), Some(78));
    let (text, code) = bench.doctor();
    has(&text, "FAIL  the configuration DIR/kv.toml has 4 mistakes -> `handoff check --config ");
    assert_eq!(code, Some(78));

    fs::remove_file(&file).unwrap();
    let output = bench.run(&["check", "--config", name]);
    assert_eq!(output.status.code(), Some(66));
    let (text, code) = bench.doctor();
    has(&text, "FAIL  DIR/kv.toml: cannot be read: No such file");
    assert_eq!(code, Some(66));
}

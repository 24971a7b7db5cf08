//! The verbs that talk to a supervisor, as an operator runs them. The supervisor is a thread that plays
//! what it is to reply.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};

use handoff_unix::process::{PidFd, Signal};
use rustix::process::geteuid;
use rustix::thread::Uid;
use serde_json::{Value, json};
use tempfile::TempDir;

const HANDOFF: &str = env!("CARGO_BIN_EXE_handoff");
/// A user that is not the one of the tests, nor root.
const NOBODY: u32 = 65534;

/// What the supervisor does on a connection, once it has read the request.
enum Does {
    /// Replies.
    Says(Value),
    /// Writes what may be anything.
    Writes(Vec<u8>),
    /// Waits until the client has closed.
    Waits,
}
use Does::{Says, Waits, Writes};

/// A supervisor. It closes each connection when it has done what it does there.
struct Supervisor {
    socket: PathBuf,
    heard: JoinHandle<Vec<Value>>,
    // Last, so that it is removed last.
    _folder: TempDir,
}

fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("hand off ").tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

impl Supervisor {
    /// Plays a connection for each of `plays`.
    fn plays(plays: Vec<Vec<Does>>) -> Self {
        let folder = folder();
        let socket = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let heard =
            thread::spawn(move || plays.into_iter().map(|play| on(&listener, play)).collect());
        Self { socket, heard, _folder: folder }
    }

    fn says(reply: Value) -> Self {
        Self::plays(vec![vec![Says(reply)]])
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = handoff(args);
        command.arg("--socket").arg(&self.socket);
        command
    }

    fn run(&self, args: &[&str]) -> Told {
        told(self.command(args).output().unwrap())
    }

    /// What it was asked for.
    fn heard(self) -> Vec<Value> {
        self.heard.join().unwrap()
    }
}

fn on(listener: &UnixListener, play: Vec<Does>) -> Value {
    let (stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    for does in play {
        let stream: &mut UnixStream = reader.get_mut();
        match does {
            Says(reply) => writeln!(stream, "{reply}").unwrap(),
            // Who has read enough closes.
            Writes(bytes) => drop(stream.write_all(&bytes)),
            Waits => drop(stream.read(&mut [0])),
        }
    }
    serde_json::from_str(&line).unwrap_or(Value::Null)
}

fn handoff(args: &[&str]) -> Command {
    let mut command = Command::new(HANDOFF);
    command.args(args);
    for variable in ["HANDOFF_CONFIG", "HANDOFF_SOCKET", "NO_COLOR"] {
        command.env_remove(variable);
    }
    command
}

/// What a verb told, and its exit code.
#[derive(Debug)]
struct Told {
    exit: i32,
    out: String,
    err: String,
}

fn told(output: Output) -> Told {
    let exit = output.status.code().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    Told { exit, out, err }
}

impl Told {
    /// Text for people: with these phrases, whatever the line they are in, and in 80 columns.
    #[track_caller]
    fn reads(self, exit: i32, phrases: &[&str]) -> Self {
        assert_eq!(self.exit, exit, "{self:?}");
        let text = format!("{}{}", self.out, self.err);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for phrase in phrases {
            assert!(words.contains(phrase), "{phrase:?} is not in\n{text}");
        }
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "too long: {line}");
            assert!(!line.chars().any(char::is_control), "no plain text: {line:?}");
        }
        self
    }

    #[track_caller]
    fn json(&self, exit: i32) -> Value {
        assert_eq!(self.exit, exit, "{self:?}");
        assert_eq!(self.out.lines().count(), 1, "{self:?}");
        serde_json::from_str(&self.out).unwrap()
    }
}

fn status(since_at: u64, flight: Value) -> Value {
    json!({
        "reply": "status",
        "supervisor": {"pid": 12, "version": "0.1.0", "since_at": since_at, "config": "/etc/handoff.toml"},
        "serving": {
            "pid": 4711, "build_id": "1.4.2+g3f2a9c1", "binary": "/opt/kv/1.4.2/kv", "since_at": 1,
            "generation": 7, "healthy": true
        },
        "activity": if flight.is_null() { "serving" } else { "handoff" },
        "detail": null,
        "flight": flight,
        "listeners": [{
            "name": "http", "kind": "tcp", "address": "127.0.0.1:8080", "backlog": 4096, "waiting": 3,
            "origin": "bound"
        }],
        "probation": null,
        "previous": format!("/opt/kv/releases/{}/kv", "a-long-name/".repeat(9)),
        "last": null
    })
}

fn flight(phase: &str, elapsed_ms: u64, phase_ms: u64) -> Value {
    json!({
        "id": "0f8e2a6c", "binary": "/opt/kv/1.5.0/kv", "dry_run": false, "phase": phase,
        "elapsed_ms": elapsed_ms, "phase_ms": phase_ms, "left_ms": 900, "shards": [1, 4],
        "open_connections": null, "reason": null
    })
}

fn progress(phase: &str, elapsed_ms: u64, phase_ms: u64) -> Does {
    let mut reply = flight(phase, elapsed_ms, phase_ms);
    reply["reply"] = "progress".into();
    Says(reply)
}

fn ended(verdict: &str, exit: u8) -> Value {
    let mut entry = json!({
        "kind": "swap", "at": 1_700_000_000_000_u64, "id": "0f8e2a6c", "verdict": verdict,
        "from": {
            "pid": 4711, "build_id": "1.4.2", "binary": null, "since_at": 1, "generation": 7, "healthy": null
        },
        "binary": "/opt/kv/1.5.0/kv", "serving": 4711, "took_ms": 812, "unavailable_ms": 14,
        "phases": [["warm", 700], ["drain", 100], ["seal", 12]]
    });
    let mut stderr = json!([]);
    if verdict == "committed" {
        entry["serving"] = 4712.into();
    } else {
        entry["code"] = "successor_exited".into();
        entry["detail"] = "the successor (pid 4712) ended with exit code 3".into();
        stderr = json!(["loading", "\u{1b}[31merror:\u{1b}[0m no such table", "x".repeat(200)]);
    }
    let phases = [("warm", 0, 700_000), ("drain", 700_000, 800_000), ("seal", 800_000, 812_000)]
        .map(|(phase, from_us, to_us)| json!({"phase": phase, "from_us": from_us, "to_us": to_us}));
    let timeline = json!({"phases": phases, "events": [], "waiting": [], "end_us": 812_000});
    json!({
        "reply": "ended", "entry": entry, "exit": exit, "repeated": false, "stderr": stderr,
        "timeline": timeline
    })
}

fn refused() -> Value {
    let message = "a handoff is under way: wait for it, or abort it";
    json!({"reply": "refused", "code": "busy", "exit": 75, "message": message})
}

#[test]
fn status_tells_who_serves_and_what_goes_on() {
    let supervisor = Supervisor::says(status(1, flight("seal", 2_300, 300)));
    let phrases = [
        "serving pid 4711, generation 7, healthy",
        "build 1.4.2+g3f2a9c1",
        "phase seal, for 300 ms, 900 ms left",
        "1 of 4 shards sealed",
        "http tcp 127.0.0.1:8080 3/4096 bound",
        "previous /opt/kv/releases/a-long-name/",
    ];
    let told = supervisor.run(&["status"]).reads(0, &phrases);
    assert_eq!(told.err, "");
    assert_eq!(supervisor.heard(), [json!({"verb": "status", "watch": false})]);
}

#[test]
fn status_is_an_object_for_programs() {
    let mut expected = status(1, Value::Null);
    let told = Supervisor::says(expected.clone()).run(&["status", "--json"]);
    expected.as_object_mut().unwrap().remove("reply");
    assert_eq!(told.json(0), expected);
}

#[test]
fn a_watch_has_a_line_for_each_change() {
    let statuses = || {
        let flights =
            [Value::Null, flight("warm", 1, 1), flight("warm", 2, 2), flight("seal", 9, 1)];
        flights.into_iter().map(|flight| Says(status(1, flight))).collect()
    };
    let supervisor = Supervisor::plays(vec![statuses()]);
    let told = supervisor.run(&["status", "--watch"]);
    let told =
        told.reads(69, &["the supervisor (pid", "has closed the connection", "`handoff status"]);
    let lines: Vec<&str> = told.out.lines().map(|line| line.split_once("Z ").unwrap().1).collect();
    let expected = ["serving", "handoff warm 1/4 shards", "handoff seal 1/4 shards"];
    assert_eq!(lines, expected.map(|line| format!("{line}; pid 4711, generation 7, healthy")));
    assert_eq!(supervisor.heard(), [json!({"verb": "status", "watch": true})]);

    let told = Supervisor::plays(vec![statuses()]).run(&["status", "--watch", "--json"]);
    let phases = told.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let phases: Vec<Value> = phases.map(|status| status["flight"]["phase"].clone()).collect();
    assert_eq!(phases, [Value::Null, "warm".into(), "warm".into(), "seal".into()]);
}

#[test]
fn a_swap_tells_each_phase_and_how_it_ended() {
    let play = vec![
        progress("warm", 1, 1),
        progress("warm", 400, 400),
        progress("drain", 710, 10),
        progress("seal", 805, 5),
        Says(ended("committed", 0)),
    ];
    let supervisor = Supervisor::plays(vec![play]);
    let args =
        ["swap", "kv 1.5", "--deadline", "20s", "--drain-grace", "1500ms", "--reason", "a fix"];
    let told = supervisor.run(&args).reads(0, &[]);
    let sentence = "Committed: pid 4712 serves in place of pid 4711, after 812 ms, and nobody\n\
                    accepted for 14 ms.\n";
    assert_eq!(told.out, sentence);
    let lines = "\
handoff 0f8e2a6c to
  /opt/kv/1.5.0/kv
  warm         700 ms  the new daemon warms up, the old one serves
  drain        100 ms  the old daemon finishes its requests
  seal          12 ms  the old daemon closes its data
";
    assert_eq!(told.err, lines);
    let request = json!({
        "verb": "swap", "binary": std::env::current_dir().unwrap().join("kv 1.5"), "wait": true,
        "dry_run": false, "deadline_ms": 20_000, "drain_grace_ms": 1_500, "reason": "a fix", "key": null
    });
    assert_eq!(supervisor.heard(), [request]);
}

#[test]
fn a_swap_that_fails_says_why_and_what_to_do() {
    let supervisor = Supervisor::says(ended("rolled_back", 75));
    let phrases = [
        "Rolled back: the old daemon (pid 4711) serves on, after 812 ms",
        "code successor_exited",
        "detail the successor (pid 4712) ended with exit code 3",
        "loading error: no such table xxxx",
        "`handoff swap --dry-run --socket '",
    ];
    let told = supervisor.run(&["swap"]).reads(75, &phrases);
    assert!(told.out.contains("\n    error: no such table\n"), "{}", told.out);
}

#[test]
fn a_swap_is_an_object_for_programs_and_nothing_else() {
    let play = vec![progress("warm", 1, 1), Says(ended("rolled_back", 75))];
    let told = Supervisor::plays(vec![play]).run(&["swap", "--json"]);
    let object = told.json(75);
    assert_eq!(object["entry"]["code"], "successor_exited");
    assert_eq!(object["reply"], Value::Null);
    assert_eq!(told.err, "");
}

#[test]
fn a_swap_that_is_not_waited_for_has_begun() {
    let begun = json!({"reply": "begun", "id": "0f8e2a6c"});
    let supervisor = Supervisor::says(begun.clone());
    let phrases = ["Begun: handoff 0f8e2a6c.", "`handoff status --watch --socket '"];
    supervisor.run(&["swap", "--no-wait", "--key", "deploy 7"]).reads(0, &phrases);
    let heard = supervisor.heard();
    assert_eq!((&heard[0]["wait"], &heard[0]["key"]), (&json!(false), &json!("deploy 7")));
    let told = Supervisor::says(begun).run(&["swap", "--no-wait", "--json"]);
    assert_eq!(told.json(0), json!({"id": "0f8e2a6c"}));
}

#[test]
fn a_dry_run_is_asked_for_and_told_as_one() {
    let mut reply = ended("dry_run", 0);
    let entry = reply["entry"].as_object_mut().unwrap();
    entry.insert("kind".into(), "dry_run".into());
    entry.remove("code");
    entry.remove("detail");
    let supervisor = Supervisor::says(reply);
    let phrase = "Dry run passed: the new binary started, warmed up and said Hello in 812 ms";
    supervisor.run(&["swap", "--dry-run"]).reads(0, &[phrase, "(pid 4711) serves on, untouched."]);
    assert_eq!(supervisor.heard()[0]["dry_run"], true);
}

#[test]
fn the_same_key_is_told_to_be_the_same_handoff() {
    let mut reply = ended("committed", 0);
    reply["repeated"] = true.into();
    let told = Supervisor::says(reply).run(&["swap", "--key", "k"]);
    told.reads(0, &["This key was used before. How that handoff ended: Committed: pid 4712"]);
}

#[test]
fn a_swap_can_be_drawn() {
    let folder = folder();
    let file = folder.path().join("time line.svg");
    let play = vec![progress("warm", 1, 1), Says(ended("committed", 0))];
    let told = Supervisor::plays(vec![play]).run(&["swap", "--timeline", file.to_str().unwrap()]);
    told.reads(0, &["Committed"]);
    let svg = fs::read_to_string(&file).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("0f8e2a6c: committed"), "{svg}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_picture_that_cannot_be_drawn_stops_a_swap_before_it_begins() {
    let folder = folder();
    for place in ["none/x.svg", "."] {
        let file = folder.path().join(place);
        let told = told(handoff(&["swap", "--timeline"]).arg(&file).output().unwrap());
        told.reads(74, &["cannot write the timeline", "Nothing was begun"]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_handoff_that_is_lost_sight_of_is_unknown() {
    let supervisor = Supervisor::plays(vec![vec![progress("seal", 9, 1)]]);
    let phrases = ["lost in the middle of the handoff", "Look at `handoff status --socket '"];
    supervisor.run(&["swap"]).reads(70, &phrases);
    // Also in the middle of a reply.
    let cut = vec![progress("seal", 9, 1), Writes(b"{\"reply\": \"ended\"".to_vec())];
    Supervisor::plays(vec![cut]).run(&["swap"]).reads(70, &phrases);
    let silent = Supervisor::plays(vec![vec![]]);
    silent
        .run(&["swap"])
        .reads(70, &["closed the connection without an answer", "`handoff status"]);
}

#[test]
fn ctrl_c_leaves_the_handoff_alone() {
    for (signal, exit) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let play = vec![progress("warm", 1, 1), progress("drain", 9, 1), Waits];
        let supervisor = Supervisor::plays(vec![play]);
        let folder = folder();
        let file = folder.path().join("timeline.svg");
        let mut command = supervisor.command(&["swap", "--timeline", file.to_str().unwrap()]);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut err = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        while !text.contains("warm ") {
            assert_ne!(err.read_line(&mut text).unwrap(), 0, "{text}");
        }
        PidFd::open(child.id()).unwrap().signal(signal).unwrap();
        err.read_to_string(&mut text).unwrap();
        let exited = child.wait().unwrap().code().unwrap();
        let told = Told { exit: exited, out: String::new(), err: text };
        told.reads(
            exit,
            &["The handoff goes on without this command", "`handoff abort --socket '"],
        );
        assert_eq!(supervisor.heard().len(), 1, "nothing was asked for but the swap");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_rollback_is_told_as_a_swap() {
    let play = vec![progress("warm", 1, 1), Says(ended("committed", 0))];
    let supervisor = Supervisor::plays(vec![play]);
    supervisor.run(&["rollback", "--reason", "slow"]).reads(0, &["Committed: pid 4712", "warm"]);
    let request = json!({"verb": "rollback", "wait": true, "reason": "slow", "key": null});
    assert_eq!(supervisor.heard(), [request]);
}

#[test]
fn an_abort_tells_how_the_handoff_ended() {
    let mut reply = ended("rolled_back", 0);
    reply["entry"]["code"] = "operator_abort".into();
    reply["entry"]["detail"] = "uid 0 asked for it".into();
    reply["stderr"] = json!([]);
    let supervisor = Supervisor::says(reply);
    let phrases = ["Rolled back: the old daemon (pid 4711) serves on", "code operator_abort"];
    supervisor.run(&["abort"]).reads(0, &phrases);
    assert_eq!(supervisor.heard(), [json!({"verb": "abort"})]);
}

#[test]
fn a_refusal_says_why_and_has_its_own_exit_code() {
    for verb in ["status", "swap", "rollback", "abort", "history", "stop"] {
        let phrase = "handoff: busy: a handoff is under way: wait for it, or abort it";
        let told = Supervisor::says(refused()).run(&[verb]).reads(75, &[phrase]);
        assert_eq!(told.out, "", "{verb}");
        let object = Supervisor::says(refused()).run(&[verb, "--json"]).json(75);
        assert_eq!(object["code"], "busy", "{verb}");
    }
}

#[test]
fn history_lists_what_happened() {
    let entries = json!([
        {"kind": "start", "at": 1_700_000_000_000_u64, "serving": 4711},
        ended("rolled_back", 75)["entry"],
    ]);
    let reply = json!({"reply": "history", "entries": entries});
    let supervisor = Supervisor::says(reply.clone());
    let phrases = [
        "TIME (UTC) KIND RESULT WHO TOOK",
        "2023-11-14T22:13:20Z start - - -> 4711 -",
        "2023-11-14T22:13:20Z swap rolled back 4711 812 ms",
        "successor_exited: the successor (pid 4712) ended with exit code 3",
    ];
    supervisor.run(&["history", "--last", "5"]).reads(0, &phrases);
    assert_eq!(supervisor.heard(), [json!({"verb": "history", "last": 5})]);
    let told = Supervisor::says(reply).run(&["history", "--json"]);
    let lines: Vec<Value> =
        told.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, *entries.as_array().unwrap());
    let none = Supervisor::says(json!({"reply": "history", "entries": []}));
    none.run(&["history"]).reads(0, &["Nothing has happened yet."]);
}

#[test]
fn reexec_waits_for_the_new_supervisor() {
    let done = json!({"reply": "done", "message": "starting anew"});
    let supervisor = Supervisor::plays(vec![
        vec![Says(status(1, Value::Null))],
        vec![Says(done)],
        // It has not come so far.
        vec![Says(status(1, Value::Null))],
        vec![],
        vec![Says(status(2, Value::Null))],
    ]);
    let phrases = ["the supervisor (pid 12) runs handoff 0.1.0 now; pid 4711 serves on."];
    supervisor.run(&["reexec", "--binary", "/opt/handoff"]).reads(0, &phrases);
    assert_eq!(supervisor.heard()[1], json!({"verb": "reexec", "binary": "/opt/handoff"}));
}

#[test]
fn stop_waits_until_the_supervisor_is_gone() {
    let done = json!({"reply": "done", "message": "stopping pid 4711"});
    let supervisor = Supervisor::says(done);
    let told = supervisor.run(&["stop"]).reads(0, &[]);
    assert_eq!((told.out.as_str(), told.err.as_str()), ("Stopped.\n", "stopping pid 4711\n"));
    assert_eq!(supervisor.heard(), [json!({"verb": "stop"})]);
}

#[test]
fn where_nobody_listens_it_says_what_to_do() {
    let folder = folder();
    let missing = folder.path().join("none.sock");
    let stale = folder.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    for socket in [&missing, &stale, &stale.join("below a file")] {
        for verb in ["status", "swap", "rollback", "abort", "history", "reexec", "stop"] {
            let told = told(handoff(&[verb, "--socket"]).arg(socket).output().unwrap());
            told.reads(
                69,
                &["no supervisor listens at", "`handoff supervise", "`systemctl status`"],
            );
        }
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_named() {
    let folder = folder();
    let file = folder.path().join("kv.toml");
    let status = || told(handoff(&["status", "--config"]).arg(&file).output().unwrap());
    status().reads(66, &["cannot read the configuration", "kv.toml", "--socket"]);
    fs::write(&file, "nonsense = [").unwrap();
    status().reads(78, &["the configuration is wrong", "kv.toml"]);
}

#[test]
fn garbage_is_not_believed_and_not_shown_as_it_is() {
    let phrases = ["what came back is not understood: red", "0.1.0?"];
    let garbage = || vec![Writes(b"\x1b[31mred\x1b[0m\x07\n{}\n".to_vec())];
    for verb in ["status", "swap", "abort", "history", "reexec", "stop"] {
        Supervisor::plays(vec![garbage()]).run(&[verb]).reads(76, &phrases);
        let beside = Supervisor::says(json!({"reply": "begun", "id": "x"})).run(&[verb]);
        beside.reads(76, &["no answer to this verb"]);
    }
    let other = Supervisor::says(json!({"reply": "a_later_version"})).run(&["status"]);
    other.reads(76, &["not understood: {\"reply\":\"a_later_version\"}"]);
    let after = vec![progress("warm", 1, 1), Writes(vec![0xff, b'\n'])];
    Supervisor::plays(vec![after]).run(&["swap"]).reads(76, &["not understood"]);
}

#[test]
fn a_reply_has_a_longest_length() {
    let endless = Supervisor::plays(vec![vec![Writes(vec![b' '; 5 << 20])]]);
    endless.run(&["status"]).reads(76, &["not understood"]);
    let mut long = status(1, Value::Null);
    long["detail"] = "x".repeat(2 << 20).into();
    Supervisor::says(long).run(&["status"]).reads(0, &["serving pid 4711"]);
}

#[test]
fn a_request_has_a_longest_length() {
    // The supervisor is asked for nothing, and hears the end.
    let supervisor = Supervisor::plays(vec![vec![]]);
    let reason = "x".repeat(70 << 10);
    supervisor.run(&["swap", "--reason", &reason]).reads(64, &["more than the 64 KiB"]);
    assert_eq!(supervisor.heard(), [Value::Null]);
}

/// What follows needs other users. Says so where there is no way to be one.
fn is_root() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("not root: this is not tested");
    }
    root
}

#[test]
fn r12_a_supervisor_of_a_stranger_is_not_spoken_to() {
    if !is_root() {
        return;
    }
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let socket = folder.path().join("admin.sock");
    let bound = socket.clone();
    let listens = thread::spawn(move || {
        // Of this thread only.
        let uid = Uid::from_raw(NOBODY);
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        UnixListener::bind(bound).unwrap()
    });
    let listener = listens.join().unwrap();
    let run = || told(handoff(&["stop", "--socket"]).arg(&socket).output().unwrap());
    run().reads(77, &["is of user 65534", "no supervisor to trust"]);
    let (mut stream, _) = listener.accept().unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "nothing was said");

    // In a directory of its own it is who is meant.
    std::os::unix::fs::chown(folder.path(), Some(NOBODY), None).unwrap();
    let done = thread::spawn(move || {
        on(&listener, vec![Says(json!({"reply": "done", "message": "stopping"}))])
    });
    run().reads(0, &["Stopped."]);
    assert_eq!(done.join().unwrap(), json!({"verb": "stop"}));
}

#[test]
fn who_may_not_is_told_so() {
    if !is_root() {
        return;
    }
    let as_nobody = |supervisor: &Supervisor| {
        let args = ["run-as", "65534", "65534", "", HANDOFF, "status", "--socket"];
        told(handoff(&args).arg(&supervisor.socket).output().unwrap())
    };
    let supervisor = Supervisor::says(status(1, Value::Null));
    fs::set_permissions(&supervisor.socket, fs::Permissions::from_mode(0o600)).unwrap();
    as_nobody(&supervisor).reads(77, &["user 65534 may not use the supervisor", "`admins`"]);
    supervisor.run(&["status"]).reads(0, &[]);

    // Let in by the socket's permissions, but not by the supervisor.
    let supervisor = Supervisor::plays(vec![vec![]]);
    fs::set_permissions(&supervisor.socket, fs::Permissions::from_mode(0o666)).unwrap();
    as_nobody(&supervisor).reads(77, &["without an answer", "You are user 65534", "`admins`"]);
}

#[test]
fn run_as_becomes_another_user_for_good() {
    let shell = |script: &str| {
        let args = ["run-as", "65534", "65533", "65532,65531", "/bin/sh", "-c", script];
        told(handoff(&args).env("KEPT", "as it was").output().unwrap())
    };
    if !is_root() {
        let told = shell("true");
        assert_eq!(told.exit, 77, "{told:?}");
        assert!(told.err.contains("cannot become user 65534"), "{told:?}");
        assert!(told.err.contains("must run as root"), "{told:?}");
        return;
    }
    let told = shell("echo \"$KEPT\"; cat /proc/$$/status");
    let line =
        |name: &str| told.out.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    assert!(told.out.starts_with("as it was\n"), "{told:?}");
    assert_eq!(line("Uid:"), "65534\t65534\t65534\t65534");
    assert_eq!(line("Gid:"), "65533\t65533\t65533\t65533");
    assert_eq!(line("Groups:"), "65531 65532");
    for set in ["CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(line(set), "0000000000000000", "{set}");
    }
    assert_eq!(shell("exit 3").exit, 3);
}

#[test]
fn run_as_fails_as_shells_do() {
    let folder = folder();
    let file = folder.path().join("no program");
    fs::write(&file, "").unwrap();
    let run = |uid: &str, program: &Path| {
        told(handoff(&["run-as", uid, "65534", ""]).arg(program).output().unwrap())
    };
    run("4294967295", &file).reads(64, &["are no ids of a user"]);
    if is_root() {
        let none = folder.path().join("none");
        for (program, exit) in [(&file, 126), (&none, 127)] {
            // One line, for a log, however long the path is.
            let told = run("65534", program);
            assert_eq!((told.exit, told.err.lines().count()), (exit, 1), "{told:?}");
            let said =
                format!("handoff run-as: cannot execute {} as user 65534", program.display());
            assert!(told.err.starts_with(&said), "{told:?}");
        }
    }
}

#[test]
fn the_man_page_and_the_completions_need_no_supervisor() {
    let page = told(handoff(&["man"]).output().unwrap());
    assert_eq!(page.exit, 0);
    for part in [".TH handoff 1", ".SH \"HANDOFF SWAP\"", ".SH \"EXIT STATUS\""] {
        assert!(page.out.contains(part), "{part} is not in\n{}", page.out);
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = told(handoff(&["completions", shell]).output().unwrap());
        assert_eq!(script.exit, 0);
        assert!(script.out.contains("rollback") && !script.out.contains("run-as"), "{shell}");
    }
}

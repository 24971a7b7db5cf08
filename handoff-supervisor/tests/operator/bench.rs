//! A folder with a configuration, binaries and a supervisor, and clients that never rest.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use handoff_unix::process::{PidFd, Signal};
use serde_json::Value;

/// Longer than anything here takes, on a slow machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What a verb came to.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What a person reads, wherever its lines are broken.
    pub(crate) fn words(&self) -> String {
        let words = self.out.split_whitespace().chain(self.err.split_whitespace());
        words.collect::<Vec<_>>().join(" ")
    }

    /// The same, if it exited so.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

pub(crate) struct Bench {
    dir: tempfile::TempDir,
    supervisor: Option<Child>,
    pub(crate) address: SocketAddr,
}

impl Bench {
    /// `more` is added to the configuration's `[handoff]`.
    pub(crate) fn new(more: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("handoff op ").tempdir().unwrap();
        for name in ["data", "run"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        // Nobody else is given it soon: the system hands ports out in turn.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let bench = Self { dir, supervisor: None, address };
        let first = bench.version("v1", "");
        let at = |name: &str| bench.path(name).display().to_string();
        let config = format!(
            r#"
[daemon]
command = {command:?}
data_dir = {data:?}
control = {control:?}
stop_grace = "20s"

[daemon.environment]
KV_CONTROL = {control:?}
KV_DATA = {data:?}

[[listener]]
name = "http"
tcp = "{address}"

[handoff]
deadline = "30s"
drain_grace = "20s"
warm_up = "60s"
{more}

[supervisor]
socket = {socket:?}
state_dir = {state:?}
"#,
            command = first.display().to_string(),
            data = at("data"),
            control = at("run/control"),
            socket = at("run/handoff.sock"),
            state = at("state"),
        );
        fs::write(bench.path("handoff.toml"), config).unwrap();
        bench
    }

    /// More of the configuration: lines after the one that is `table`, or new tables at its end.
    pub(crate) fn configure(&self, table: &str, lines: &str) {
        let file = self.path("handoff.toml");
        let config = fs::read_to_string(&file).unwrap();
        let config = match table {
            "" => format!("{config}\n{lines}\n"),
            table => config.replacen(&format!("\n{table}\n"), &format!("\n{table}\n{lines}\n"), 1),
        };
        fs::write(file, config).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A version of the daemon: a script, so that it has a file of its own, that runs `first` before.
    pub(crate) fn version(&self, name: &str, first: &str) -> PathBuf {
        self.version_of(Path::new(env!("CARGO_BIN_EXE_handoff")), name, first)
    }

    /// The same, of this binary.
    pub(crate) fn version_of(&self, handoff: &Path, name: &str, first: &str) -> PathBuf {
        let (path, handoff) = (self.path(name), handoff.display());
        let script = format!("#!/bin/sh\n{first}\nexec '{handoff}' demo-daemon tokio\n");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Starts a supervisor, and waits until it says that a daemon serves.
    pub(crate) fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handoff"));
        command.stdin(Stdio::null());
        self.start_as(command);
    }

    /// The same, by this command, which is given the verb and the configuration.
    pub(crate) fn start_as(&mut self, command: Command) {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.path("log")).unwrap();
        self.start_into(command, log.try_clone().unwrap(), log);
    }

    /// The same, what it writes going elsewhere.
    pub(crate) fn start_into(
        &mut self,
        mut command: Command,
        out: impl Into<Stdio>,
        err: impl Into<Stdio>,
    ) {
        let child = command
            .args(["supervise", "--config"])
            .arg(self.path("handoff.toml"))
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap();
        self.supervisor = Some(child);
        self.until("a daemon serves", |status| {
            status["activity"] == "serving" && status["serving"] != Value::Null
        });
    }

    pub(crate) fn supervisor(&self) -> u32 {
        self.supervisor.as_ref().unwrap().id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handoff"));
        command.args(args).arg("--config").arg(self.path("handoff.toml")).stdin(Stdio::null());
        command.env("COLUMNS", "80");
        command
    }

    /// Runs a verb.
    pub(crate) fn handoff(&self, args: &[&str]) -> Said {
        let output = self.command(args).output().unwrap();
        Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Begins a verb; gives what it prints, as it prints it.
    pub(crate) fn begin(&self, args: &[&str]) -> (Child, impl Iterator<Item = String> + use<>) {
        let mut child = self.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        (child, lines)
    }

    pub(crate) fn status(&self) -> Value {
        self.handoff(&["status", "--json"]).exits(0).json()
    }

    pub(crate) fn serving(&self) -> u32 {
        let status = self.status();
        let pid = status["serving"]["pid"].as_u64();
        u32::try_from(pid.unwrap_or_else(|| panic!("{status:#}"))).unwrap()
    }

    /// The kinds of what has happened.
    pub(crate) fn history(&self) -> Vec<String> {
        let said = self.handoff(&["history", "--last", "100", "--json"]).exits(0);
        let entries = said.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        entries.map(|entry| entry["kind"].as_str().unwrap().to_string()).collect()
    }

    /// Waits until the status is so; gives it.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let limit = Instant::now() + PATIENCE;
        loop {
            let said = self.handoff(&["status", "--json"]);
            if said.code == 0 {
                let status = said.json();
                if so(&status) {
                    return status;
                }
            }
            assert!(Instant::now() < limit, "{what}: {said:?}\n{}", self.log());
        }
    }

    /// Kills the supervisor; the daemon stays.
    pub(crate) fn kill_supervisor(&mut self) {
        let mut child = self.supervisor.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits for the supervisor's end; gives its exit code.
    pub(crate) fn ends(&mut self) -> i32 {
        let mut child = self.supervisor.take().unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        assert!(pidfd.wait(Some(PATIENCE)).unwrap(), "the supervisor does not end: {}", self.log());
        child.wait().unwrap().code().unwrap_or(-1)
    }

    pub(crate) fn signal_supervisor(&self, signal: Signal) {
        PidFd::open(self.supervisor()).unwrap().signal(signal).unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
        // What a test that failed has left: the supervisor, and the daemons, which have the folder in
        // their environment.
        if let Some(mut child) = self.supervisor.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let folder = self.dir.path().display().to_string();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = process.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok());
            let environment = fs::read(process.path().join("environ")).unwrap_or_default();
            let ours =
                String::from_utf8_lossy(&environment).contains(&format!("KV_DATA={folder}/"));
            if let Some(pidfd) = pid.filter(|_| ours).and_then(|pid| PidFd::open(pid).ok()) {
                let _ = pidfd.signal(Signal::KILL);
                let _ = pidfd.wait(Some(PATIENCE));
            }
        }
    }
}

/// Clients that write without rest, and remember what was acknowledged.
pub(crate) struct Load {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    failed: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<BTreeMap<String, String>>>,
}

impl Load {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let mut load = Self {
            address,
            over: Arc::default(),
            requests: Arc::default(),
            failed: Arc::default(),
            clients: Vec::new(),
        };
        for client in 0..3 {
            let (over, requests) = (Arc::clone(&load.over), Arc::clone(&load.requests));
            let failed = Arc::clone(&load.failed);
            load.clients.push(thread::spawn(move || {
                let mut acknowledged = BTreeMap::new();
                for number in 0_u64.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let (key, value) = (format!("c{client}-{}", number % 500), number.to_string());
                    match request(address, "PUT", &key, &value) {
                        Ok((200..=299, _)) => drop(acknowledged.insert(key, value)),
                        other => failed.lock().unwrap().push(format!("PUT {key}: {other:?}")),
                    }
                    requests.fetch_add(1, Ordering::Relaxed);
                }
                acknowledged
            }));
        }
        load
    }

    /// Waits until some more requests were answered.
    pub(crate) fn goes_on(&self) {
        let before = self.requests.load(Ordering::Relaxed);
        let limit = Instant::now() + PATIENCE;
        while self.requests.load(Ordering::Relaxed) < before + 10 {
            assert!(Instant::now() < limit, "nobody answers");
            thread::yield_now();
        }
    }

    /// Ends it: nothing failed, and what was acknowledged is there. Gives how many requests there were.
    pub(crate) fn ends_clean(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        let acknowledged: Vec<_> =
            self.clients.into_iter().map(|client| client.join().unwrap()).collect();
        let failed = self.failed.lock().unwrap().clone();
        assert!(failed.is_empty(), "I4: {} failed: {:?}", failed.len(), failed.first());
        for (key, value) in acknowledged.iter().flatten() {
            let read = request(self.address, "GET", key, "").unwrap();
            assert_eq!(read, (200, value.clone()), "I3: {key}");
        }
        self.requests.load(Ordering::Relaxed)
    }
}

/// One request; the status and the body of its answer.
pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    key: &str,
    body: &str,
) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "{method} /{key} HTTP/1.1\r\nHost: kv\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_string()))
}

/// Another name for a file.
pub(crate) fn link(to: &Path, at: &Path) {
    let _ = fs::remove_file(at);
    symlink(to, at).unwrap();
}

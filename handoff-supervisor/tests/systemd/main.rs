//! The units, in a systemd that is booted for the test: see `boot`.
//!
//! Where none can be booted this says why, and passes: it takes root, systemd, and a machine that lets root
//! make namespaces and control groups.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use handoff_unix::process::{PidFd, Signal};
use serde_json::Value;

/// Longer than any step takes, on a slow machine too.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where `boot` looks for it.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];

/// Why no systemd can be booted here, if so.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root can boot a systemd".into());
    }
    if !SYSTEMD.iter().any(|path| Path::new(path).exists()) {
        return Some("systemd is not installed".into());
    }
    for tool in ["bash", "findmnt", "nsenter", "setpriv", "systemctl", "unshare"] {
        let found = Command::new(tool).arg("--version").output().is_ok();
        if !found {
            return Some(format!("there is no `{tool}`"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if !mounts.lines().any(|mount| mount.split(' ').nth(2) == Some("cgroup2")) {
        return Some("there is no cgroup2".into());
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known =
        filesystems.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay");
    (!known).then(|| "there is no overlayfs".into())
}

/// A systemd of its own, and what is in it.
struct Machine {
    boot: Child,
    pid: u32,
    _units: tempfile::TempDir,
}

impl Machine {
    /// Boots one with these units.
    ///
    /// # Errors
    ///
    /// Why this cannot be done here.
    fn boot(units: &[&Path]) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("handoff units ").tempdir().unwrap();
        for unit in units {
            fs::copy(unit, folder.path().join(unit.file_name().unwrap())).unwrap();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/systemd/boot");
        // Whether root may do all of it here is seen by trying.
        let tried = Command::new(&script).arg(folder.path()).arg("true").output().unwrap();
        if !tried.status.success() {
            return Err(format!("boot: {}", String::from_utf8_lossy(&tried.stderr)));
        }
        let log = File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(&script);
        command.arg(folder.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut boot = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(boot.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = line.trim().parse().unwrap();
        let machine = Self { boot, pid, _units: folder };
        machine.until("it is up", || machine.run(&["systemctl", "is-active", "test.target"]).ok());
        Ok(machine)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--target"]);
        command.arg(self.pid.to_string()).args(args).stdin(Stdio::null());
        command.env("SYSTEMD_PAGER", "").env("HANDOFF_CONFIG", "/etc/handoff.toml");
        command
    }

    /// Runs a command in it.
    fn run(&self, args: &[&str]) -> Ran {
        Ran(self.command(args).output().unwrap())
    }

    /// Puts a file into it.
    fn install(&self, path: &str, mode: &str, mut content: impl std::io::Read) {
        let script = "mkdir -p \"$(dirname \"$1\")\" && cat >\"$1\" && chmod \"$2\" \"$1\"";
        let mut command = self.command(&["sh", "-c", script, "sh", path, mode]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        std::io::copy(&mut content, &mut child.stdin.take().unwrap()).unwrap();
        assert!(child.wait().unwrap().success(), "{path}");
    }

    #[track_caller]
    fn until(&self, what: &str, so: impl Fn() -> bool) {
        let limit = Instant::now() + PATIENCE;
        while !so() {
            if Instant::now() > limit {
                let journal = self.run(&["journalctl", "--no-pager", "-n", "100"]);
                panic!("not so: {what}\n{}", journal.out());
            }
        }
    }

    fn status(&self) -> Option<Value> {
        let ran = self.run(&["handoff", "status", "--json"]);
        if !ran.ok() {
            return None;
        }
        Some(serde_json::from_str(&ran.out()).unwrap())
    }

    /// Waits until a daemon serves and nothing is under way; gives the status, and the daemon's pid.
    #[track_caller]
    fn serving(&self) -> (Value, u64) {
        self.until("a daemon serves", || {
            self.status().is_some_and(|it| it["activity"] == "serving" && !it["serving"].is_null())
        });
        let status = self.status().unwrap();
        let pid = status["serving"]["pid"].as_u64().unwrap();
        (status, pid)
    }

    fn property(&self, name: &str) -> String {
        let ran = self.run(&["systemctl", "show", "handoff", "--value", "--property", name]);
        ran.out().trim().to_string()
    }

    fn journal(&self) -> String {
        self.run(&["journalctl", "--no-pager", "--unit", "handoff"]).out()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It ends everything in it.
        if let Ok(pidfd) = PidFd::open(self.boot.id()) {
            let _ = pidfd.signal(Signal::TERM);
        }
        let _ = self.boot.wait();
    }
}

struct Ran(Output);

impl Ran {
    fn ok(&self) -> bool {
        self.0.status.success()
    }

    fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    #[track_caller]
    fn succeeds(self, machine: &Machine) -> Self {
        assert!(self.ok(), "{:?}\n{}", self.0, machine.journal());
        self
    }
}

#[test]
fn a_service_is_reloaded_and_outlives_a_crash_of_its_supervisor() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let machine = match obstacle() {
        Some(obstacle) => Err(obstacle),
        None => Machine::boot(&[&units.join("handoff.service")]),
    };
    let machine = match machine {
        Ok(machine) => machine,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    // The network is this machine's.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    machine.install("/usr/bin/handoff", "755", File::open(env!("CARGO_BIN_EXE_handoff")).unwrap());
    let version = |name: &str, first: &str| {
        let script = format!("#!/bin/sh\n{first}\nexec /usr/bin/handoff demo-daemon tokio\n");
        machine.install(&format!("/opt/kv/{name}"), "755", script.as_bytes());
    };
    version("v1", "");
    version("v2", "");
    version("unfit", "echo not feeling well >&2; export KV_UNHEALTHY=1");
    let config = format!(
        r#"[daemon]
command = "/opt/kv/current"
data_dir = "/var/lib/kv"
control = "/run/handoff/control"
environment = {{ KV_CONTROL = "/run/handoff/control", KV_DATA = "/var/lib/kv" }}

[[listener]]
name = "http"
tcp = "{address}"

[supervisor]
socket = "/run/handoff/admin.sock"
state_dir = "/var/lib/handoff/kv"
"#
    );
    machine.install("/etc/handoff.toml", "644", config.as_bytes());
    machine.install("/var/lib/kv/.keep", "600", &b""[..]);
    let link = |to: &str| {
        machine
            .run(&["ln", "-sfn", &format!("/opt/kv/{to}"), "/opt/kv/current"])
            .succeeds(&machine);
    };
    link("v1");
    let verified = machine.run(&["systemd-analyze", "verify", "--man=no", "handoff.service"]);
    assert!(verified.ok(), "{:?}", verified.0);

    // systemd waits until a daemon serves.
    machine.run(&["systemctl", "start", "handoff"]).succeeds(&machine);
    let (status, first) = machine.serving();
    assert_eq!(status["listeners"][0]["origin"], "bound");
    let supervisor = machine.property("MainPID");
    assert_eq!(machine.property("StatusText"), format!("pid {first} serves, generation 1"));

    // A reload is a swap.
    link("v2");
    machine.run(&["systemctl", "reload", "handoff"]).succeeds(&machine);
    let (status, second) = machine.serving();
    assert_ne!(first, second);
    assert_eq!(status["serving"]["binary"], "/opt/kv/v2");
    assert_eq!(machine.property("StatusText"), format!("pid {second} serves, generation 2"));
    assert_eq!(machine.property("MainPID"), supervisor);

    // A reload fails when the swap fails, and the service runs on.
    link("unfit");
    assert!(!machine.run(&["systemctl", "reload", "handoff"]).ok());
    assert_eq!(machine.serving().1, second);
    assert_eq!(machine.property("ActiveState"), "active");
    assert!(machine.journal().contains("not feeling well"), "{}", machine.journal());
    link("v2");

    // The supervisor is killed: systemd starts another, and gives it the listeners.
    machine
        .run(&["systemctl", "kill", "--kill-whom=main", "--signal=KILL", "handoff"])
        .succeeds(&machine);
    machine.until("another supervisor runs", || {
        let pid = machine.property("MainPID");
        pid != "0" && pid != supervisor && machine.property("ActiveState") == "active"
    });
    let (status, pid) = machine.serving();
    assert_eq!(pid, second, "the daemon knows nothing of it");
    assert_eq!(status["listeners"][0]["origin"], "fdstore");
    let said = machine.run(&["handoff", "status"]).out();
    assert!(said.contains("fdstore"), "{said}");
    machine.run(&["handoff", "swap", "/opt/kv/v1"]).succeeds(&machine);
    let (status, third) = machine.serving();
    assert_eq!((&status["serving"]["generation"], third != second), (&3.into(), true));
    let doctor = machine.run(&["handoff", "doctor"]);
    assert!(doctor.ok(), "{}", doctor.out());
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: kv\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "{answer}");

    // A stop ends both.
    machine.run(&["systemctl", "stop", "handoff"]).succeeds(&machine);
    assert_eq!(machine.property("ActiveState"), "inactive");
    assert!(!machine.run(&["kill", "-0", &third.to_string()]).ok(), "{}", machine.journal());
    assert_eq!(machine.run(&["handoff", "status"]).0.status.code(), Some(69));
    drop(TcpListener::bind(address).unwrap());
}

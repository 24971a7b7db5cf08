//! Who serves: the supervisor, the daemon on the control path, the holder of the lock.

use std::io::{self, ErrorKind};

use handoff_unix::lock::LockState;

use super::page::Line;
use super::{Patient, has_lock};
use crate::client::text::quoted;
use crate::config::Config;
use crate::system::named;

/// Whether it answers, and how it is.
pub(super) fn supervisor(patient: &Patient) -> Vec<Line> {
    const ABOUT: &str = "supervisor";
    let socket = patient.socket.display();
    let status = match &patient.status {
        Ok(status) => status,
        Err(error) => return vec![silent(patient, error)],
    };
    let boss = &status.supervisor;
    let mut lines = vec![Line::good(
        ABOUT,
        format!("the supervisor answers at {socket}: pid {}, version {}", boss.pid, boss.version),
    )];
    let version = env!("CARGO_PKG_VERSION");
    if boss.version != version {
        lines.push(Line::warn(
            ABOUT,
            format!("the supervisor is version {}, and this command is {version}", boss.version),
            "`handoff reexec` puts the new version into its process",
        ));
    }
    let detail = status.detail.as_deref().unwrap_or("it does not say why");
    match status.activity.as_str() {
        "backoff" => lines.push(Line::fail(
            ABOUT,
            format!("the daemon ended and is started again later: {detail}"),
            "`handoff history` tells how it ended; its output tells why",
        )),
        "starting" | "waiting" => lines.push(Line::warn(
            ABOUT,
            format!("the daemon is not up yet: {detail}"),
            "look again in a moment",
        )),
        _ => {}
    }
    if status.serving.as_ref().and_then(|serving| serving.healthy) == Some(false) {
        lines.push(Line::fail(
            "health",
            "the daemon is unhealthy: its health address does not answer 2xx",
            "its output tells why; `handoff rollback` swaps back to the previous binary",
        ));
    }
    lines
}

fn silent(patient: &Patient, error: &io::Error) -> Line {
    let socket = patient.socket.display();
    let start = match &patient.config {
        Some(config) => format!("handoff supervise --config {}", quoted(&config.file)),
        None => "handoff supervise --config FILE".to_owned(),
    };
    let (text, remedy) = match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::ConnectionRefused => (
            format!("no supervisor listens at {socket}"),
            format!("start it: `systemctl start` of its unit, or `{start}`"),
        ),
        ErrorKind::PermissionDenied => (
            format!("the supervisor at {socket} does not let you in: {error}"),
            "run this as root, as its user, or as one of admins".to_owned(),
        ),
        ErrorKind::TimedOut => (
            format!("the supervisor at {socket} does not answer"),
            "see whether it is stopped: `ss -xlp` tells its pid, `ps -o stat PID` its state"
                .to_owned(),
        ),
        ErrorKind::InvalidData => (
            format!("what answers at {socket} is not understood: {error}"),
            "see who listens there (`ss -xlp`), and whether it is of this version".to_owned(),
        ),
        _ => (
            format!("the supervisor at {socket} cannot be asked: {error}"),
            "the supervisor's log tells more".to_owned(),
        ),
    };
    Line::fail("supervisor", text, remedy)
}

/// Who answers on the control path.
pub(super) fn control(patient: &Patient, config: &Config) -> Vec<Line> {
    const ABOUT: &str = "control";
    let path = config.daemon.control.display();
    let found = match patient.found.as_ref() {
        None => return Vec::new(),
        Some(Err(error)) => return vec![unanswered(patient, config, error)],
        Some(Ok(found)) => found,
    };
    let build = String::from_utf8_lossy(&found.build_id);
    let build: String = build.chars().filter(|c| !c.is_control()).take(40).collect();
    let build = if build.is_empty() { build } else { format!(", build {build},") };
    let pid = found.cred.pid;
    let mut lines =
        vec![Line::good(ABOUT, format!("{}{build} answers on the control path", named(pid)))];
    let serving = patient.status.as_ref().ok().and_then(|status| status.serving.as_ref());
    if let Some(serving) = serving.filter(|serving| serving.pid != pid && !patient.in_flight()) {
        lines.push(Line::fail(
            ABOUT,
            format!(
                "the supervisor says that pid {} serves, but {path} leads to pid {pid}",
                serving.pid
            ),
            format!(
                "see which of them the clients reach; end the other, or swap: `ps -fp {pid},{}`",
                serving.pid
            ),
        ));
    }
    lines
}

fn unanswered(patient: &Patient, config: &Config, error: &io::Error) -> Line {
    const ABOUT: &str = "control";
    let path = config.daemon.control.display();
    match error.kind() {
        _ if patient.in_flight() => Line::warn(
            ABOUT,
            "nobody answers on the control path now: a handoff is under way",
            "look again when it has ended: `handoff status`",
        ),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Line::fail(
            ABOUT,
            format!("no daemon listens at the control path {path}"),
            "see in its output why it ended; a daemon listens there once it serves",
        ),
        ErrorKind::TimedOut => Line::fail(
            ABOUT,
            format!("the daemon at the control path {path} does not answer"),
            "it may be stopped or stuck: `ss -xlp` tells its pid, `ps -o stat,wchan PID` more",
        ),
        ErrorKind::PermissionDenied => Line::fail(
            ABOUT,
            format!("the control path {path} does not let you in: {error}"),
            "run this as root or as the daemon's user; set user where it has its own",
        ),
        _ => Line::fail(
            ABOUT,
            format!("what listens at the control path {path} is no daemon: {error}"),
            "see who it is: `ss -xlp`",
        ),
    }
}

/// Who holds the data directory's lock, and whether that is who answers (I5).
pub(super) fn lock(patient: &Patient, config: &Config) -> Vec<Line> {
    const ABOUT: &str = "lock";
    let data_dir = config.daemon.data_dir.display();
    let answers = patient.found.as_ref().and_then(|found| Some(found.as_ref().ok()?.cred.pid));
    if patient.in_flight() {
        let text = "a handoff is under way: the lock goes from one daemon to the other";
        return vec![Line::good(ABOUT, text)];
    }
    if let Some(pid) = answers.filter(|pid| has_lock(config, patient.lock, *pid)) {
        let text = format!("pid {pid}, which answers, holds the lock on {data_dir}");
        return vec![Line::good(ABOUT, text)];
    }
    vec![match (patient.lock, answers) {
        (LockState::Held { pid: Some(holder) }, Some(pid)) => Line::fail(
            ABOUT,
            format!("pid {pid} answers, but {} holds the lock on {data_dir}", named(holder)),
            format!(
                "see what pid {holder} is (`ps -fp {holder}`): a child left behind by an earlier daemon can be ended"
            ),
        ),
        (LockState::Held { pid: Some(holder) }, None) => Line::fail(
            ABOUT,
            format!("{} holds the lock on {data_dir}, and does not answer", named(holder)),
            format!(
                "see what it does: `ps -o pid,stat,wchan,cmd -p {holder}`; no other daemon starts while it is there"
            ),
        ),
        (LockState::Held { pid: None }, _) => Line::warn(
            ABOUT,
            format!("the lock on {data_dir} is held by a process that cannot be seen from here"),
            "run this as root, on the machine and not in a container",
        ),
        (LockState::Free, Some(pid)) => Line::fail(
            ABOUT,
            format!("pid {pid} answers, but nobody holds the lock on {data_dir}"),
            "see that data_dir is the directory the daemon uses: HANDOFF_DATA in its environment",
        ),
        (LockState::Free, None) => Line::fail(
            ABOUT,
            format!("nobody holds the lock on {data_dir}: nobody serves"),
            "start the daemon; the lock is not in its way",
        ),
        (LockState::Unknown, _) => Line::warn(
            ABOUT,
            format!("it cannot be told who holds the lock on {data_dir}"),
            "run this as root",
        ),
    }]
}

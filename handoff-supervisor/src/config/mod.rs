//! The configuration of a supervisor: a TOML file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod read;
mod reader;
mod values;

pub(crate) use read::{Mistake, Mistakes, read, read_with_lines};

/// What a supervisor is told.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// `[daemon]`
    pub daemon: Daemon,
    /// `[[listener]]`, in order.
    pub listeners: Vec<Listener>,
    /// `[handoff]`
    pub handoff: Handoff,
    /// `[supervisor]`
    pub supervisor: Supervisor,
}

/// The daemon.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Daemon {
    /// `command`: the binary, an absolute path.
    pub command: PathBuf,
    /// `args`
    pub args: Vec<String>,
    /// `environment`: variables to set. `HANDOFF_CONTROL` and `HANDOFF_DATA` tell it its paths, unless they
    /// are set here.
    pub environment: Vec<(String, String)>,
    /// `directory`: where it starts, if not where the supervisor did.
    pub directory: Option<PathBuf>,
    /// `user`: whom it runs as, by name or number, if not as the supervisor.
    pub user: Option<User>,
    /// `data_dir`: the directory whose lock it holds.
    pub data_dir: PathBuf,
    /// `control`: its control path.
    pub control: PathBuf,
    /// `wrapper`: whether `command` may start the daemon as its child (C1).
    pub wrapper: bool,
    /// `stop_grace`: from SIGTERM to SIGKILL when it is stopped; 10 s.
    pub stop_grace: Duration,
}

/// A user of the system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct User {
    /// Its name, or its number where it has none.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// The number of its group.
    pub gid: u32,
    /// The numbers of all its groups.
    pub groups: Vec<u32>,
}

/// A listener to bind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Listener {
    /// `name`, by which the daemon knows it.
    pub name: String,
    /// `tcp`, `udp` or `unix`: exactly one.
    pub address: Address,
    /// `backlog`: how many connections may wait; the system's maximum unless set. None for UDP.
    pub backlog: Option<u32>,
}

/// Where a listener listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Address {
    /// `tcp = "127.0.0.1:8080"`
    Tcp(SocketAddr),
    /// `udp = "127.0.0.1:8080"`
    Udp(SocketAddr),
    /// `unix = "/run/kv/kv.sock"`, and `mode = "0660"`, the socket file's permissions: 0600 unless set.
    Unix {
        /// The path.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// How handoffs go.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Handoff {
    /// `deadline`: from Prepare to Ready; 60 s.
    pub deadline: Duration,
    /// `drain_grace`: for the drain; 30 s.
    pub drain_grace: Duration,
    /// `warm_up`: for the successor until its Hello; 60 s.
    pub warm_up: Duration,
    /// `strict`: whether a peer that reports no revisions is refused; false.
    pub strict: bool,
    /// `promote`: whether a successor takes over where the incumbent is gone (R5); true.
    pub promote: bool,
    /// `probation`: for how long a new daemon is watched, and replaced by the previous one if it ends or
    /// turns unhealthy.
    pub probation: Option<Duration>,
    /// `health`: how its health is looked at during probation, and for `status`.
    pub health: Option<Health>,
    /// `binaries`: what `swap` may start, as paths with `*` for what is between two slashes; anything where
    /// the list is empty.
    pub binaries: Vec<String>,
}

/// A look at a daemon's health.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Health {
    /// `http = "http://127.0.0.1:8080/healthz"`: well where this answers 2xx.
    pub address: SocketAddr,
    /// The path and query of it.
    pub path: String,
    /// `every`: how often; 1 s.
    pub every: Duration,
    /// `timeout`: for one look; 2 s.
    pub timeout: Duration,
    /// `failures`: how many in a row make it unhealthy; 3.
    pub failures: u32,
}

/// The supervisor itself.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Supervisor {
    /// `socket`: where the verbs find it.
    pub socket: PathBuf,
    /// `state_dir`: where it keeps its journal, its history and the output of daemons.
    pub state_dir: PathBuf,
    /// `admins`: who may use the verbs, besides root and the user it runs as.
    pub admins: Vec<User>,
    /// `metrics`: where to answer Prometheus, if at all.
    pub metrics: Option<SocketAddr>,
    /// `restart_first`: how long until a daemon that ended is started again, doubled each time; 100 ms.
    pub restart_first: Duration,
    /// `restart_most`: the longest that gets; 30 s.
    pub restart_most: Duration,
}

/// Where the verbs look for a configuration unless told.
pub(crate) const DEFAULT: &str = "/etc/handoff.toml";

impl Config {
    /// A file in the state directory.
    #[must_use]
    pub(crate) fn state(&self, name: impl AsRef<Path>) -> PathBuf {
        self.supervisor.state_dir.join(name)
    }
}

impl Config {
    /// Whether a handoff may start this binary: an absolute path, links resolved.
    #[must_use]
    pub(crate) fn allows(&self, path: &Path) -> bool {
        let patterns = &self.handoff.binaries;
        patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, path))
    }
}

/// Whether each part of a path is as the pattern has it, where `*` is anything between two slashes.
fn matches(pattern: &str, path: &Path) -> bool {
    let Some(path) = path.to_str() else { return false };
    let (pattern, path): (Vec<_>, Vec<_>) =
        (pattern.split('/').collect(), path.split('/').collect());
    pattern.len() == path.len()
        && pattern.iter().zip(path).all(|(pattern, part)| part_matches(pattern, part))
}

fn part_matches(pattern: &str, part: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == part };
    let Some(part) = part.strip_prefix(first) else { return false };
    // `..` is resolved before, so that no part stands for another place.
    (0..=part.len()).filter_map(|from| part.get(from..)).any(|left| part_matches(rest, left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_anything_between_two_slashes() {
        for (pattern, path, expected) in [
            ("/opt/kv/kv", "/opt/kv/kv", true),
            ("/opt/*/kv", "/opt/v2/kv", true),
            ("/opt/*/kv", "/opt/a/b/kv", false),
            ("/opt/kv-*", "/opt/kv-2", true),
            ("/opt/kv-*", "/opt/kv-", true),
            ("/opt/kv-*-x", "/opt/kv-1-2-x", true),
            ("/opt/kv-*-x", "/opt/kv-1-y", false),
            ("/opt/kv", "/opt/kv2", false),
        ] {
            assert_eq!(matches(pattern, Path::new(path)), expected, "{pattern} {path}");
        }
    }
}

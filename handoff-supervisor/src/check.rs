//! `handoff check`: what is wrong with a configuration, and with what it names. Nothing is changed.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use handoff_unix::control::ControlPath;
use handoff_unix::probe::{Users, probe};
use handoff_unix::spawn;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use serde::Serialize;

use crate::client::text::{self, quoted};
use crate::config::{self, Address, Config, Mistake, Mistakes, User};
use crate::exit;
use crate::system::{self, Family, PASS, READ, WRITE};

/// Runs the verb.
pub(crate) fn run(file: &Path, json: bool) -> ExitCode {
    let report = Report::of(file);
    // Nobody may read it any more.
    let _ = if json { text::json(&report) } else { text::out(&report.text()) };
    report.exit.into()
}

/// What is printed, as text or JSON.
#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    good: bool,
    mistakes: Vec<Mistake>,
    /// What is no mistake, but should be known.
    notes: Vec<Mistake>,
    #[serde(skip)]
    exit: u8,
}

impl Report {
    fn of(file: &Path) -> Self {
        let (config, lines) = match config::read_with_lines(file) {
            Ok(read) => read,
            Err(mistakes) => {
                let exit = mistakes.exit();
                let Mistakes { file, list, .. } = mistakes;
                return Self { file, good: false, mistakes: list, notes: Vec::new(), exit };
            }
        };
        let told = |finding: Finding| Mistake {
            line: lines.of(&finding.place),
            what: finding.what,
            remedy: finding.remedy,
        };
        let (notes, mistakes): (Vec<Finding>, Vec<Finding>) =
            examine(&config).into_iter().partition(|finding| finding.is_note);
        let sorted = |list: Vec<Finding>| {
            let mut list: Vec<Mistake> = list.into_iter().map(told).collect();
            list.sort_by_key(|mistake| mistake.line.unwrap_or(usize::MAX));
            list
        };
        let (mistakes, notes) = (sorted(mistakes), sorted(notes));
        let good = mistakes.is_empty();
        let exit = if good { exit::OK } else { exit::CONFIG };
        Self { file: file.into(), good, mistakes, notes, exit }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let file = self.file.display();
        let both = [(&self.mistakes, ""), (&self.notes, "note: ")];
        for (mistake, kind) in
            both.iter().flat_map(|(list, kind)| list.iter().map(move |m| (m, kind)))
        {
            let line = mistake.line.map(|line| format!("{line}:")).unwrap_or_default();
            text += &format!("{file}:{line} {kind}{}\n    {}\n", mistake.what, mistake.remedy);
        }
        text += &match self.mistakes.len() {
            0 => format!("{file} is good\n"),
            1 => "1 mistake\n".to_owned(),
            many => format!("{many} mistakes\n"),
        };
        text
    }
}

/// Something about what a key names.
#[derive(Debug)]
struct Finding {
    /// The key: `daemon.command`.
    place: String,
    is_note: bool,
    what: String,
    remedy: String,
}

impl Finding {
    fn mistake(
        place: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { place: place.into(), is_note: false, what: what.into(), remedy: remedy.into() }
    }

    fn note(place: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { is_note: true, ..Self::mistake(place, what, remedy) }
    }
}

/// Looks at all that a configuration names, as the supervisor that it is for would run: as this user.
fn examine(config: &Config) -> Vec<Finding> {
    let me = User::current();
    let daemon = config.daemon.user.clone().unwrap_or_else(|| me.clone());
    let mut found = Vec::new();
    found.extend(check_user(&me, &daemon));
    found.extend(check_command(config, &daemon));
    found.extend(check_data_dir(&config.daemon.data_dir, &daemon));
    if let Some(directory) = &config.daemon.directory {
        found.extend(check_directory("daemon.directory", directory, &daemon, PASS));
    }
    found.extend(check_socket("daemon.control", &config.daemon.control, &daemon));
    found.extend(check_socket("supervisor.socket", &config.supervisor.socket, &me));
    found.extend(check_state_dir(&config.supervisor.state_dir, &me));
    found.extend(check_listeners(config, &me));
    found
}

fn check_user(me: &User, daemon: &User) -> Option<Finding> {
    (daemon.uid != me.uid && me.uid != 0).then(|| {
        Finding::mistake(
            "daemon.user",
            format!("only root can start the daemon as {}, and this is {}", daemon.name, me.name),
            "run supervisor and check as root, or remove user",
        )
    })
}

fn check_command(config: &Config, daemon: &User) -> Vec<Finding> {
    let mut found = Vec::new();
    let command = &config.daemon.command;
    match spawn::resolve(command, None) {
        Err(problem) => {
            let told = problem.to_string();
            let (what, remedy) = told.rsplit_once("; ").unwrap_or((&told, "check the path"));
            found.push(Finding::mistake("daemon.command", what, remedy));
        }
        Ok(binary) => {
            if let Ok(Some(by)) = system::denied(daemon, &binary, PASS) {
                let who = &daemon.name;
                let what = format!("user {who} may not execute {}", command.display());
                let remedy = if by == binary { "a+x" } else { "o+x" };
                let remedy = format!("chmod {remedy} {}", quoted(&by));
                found.push(Finding::mistake("daemon.command", what, remedy));
            }
            let resolved = binary.canonicalize().unwrap_or(binary);
            if !config.allows(&resolved) {
                let what = format!("binaries does not allow {}", resolved.display());
                let remedy = format!("add \"{}\" to it: it is what command is", resolved.display());
                found.push(Finding::mistake("handoff.binaries", what, remedy));
            }
        }
    }
    found
}

fn check_data_dir(data_dir: &Path, daemon: &User) -> Vec<Finding> {
    let place = "daemon.data_dir";
    let mut found: Vec<Finding> =
        check_directory(place, data_dir, daemon, READ | WRITE | PASS).into_iter().collect();
    if let (true, Ok(on)) = (found.is_empty(), system::file_system(data_dir)) {
        let (path, kind) = (data_dir.display(), &on.kind);
        match on.family() {
            Family::Local => {}
            Family::Memory => found.push(Finding::note(
                place,
                format!("{path} is in memory ({kind}): it is gone after a reboot"),
                "choose a directory on a disk, unless this is a trial",
            )),
            Family::Network | Family::Process => found.push(Finding::note(
                place,
                format!("{path} is on {kind}, where two hosts may both get its lock"),
                "choose a directory on a disk of this machine, or make sure no other uses it",
            )),
        }
    }
    found
}

/// A directory that `user` must have `wanted` in.
fn check_directory(place: &str, directory: &Path, user: &User, wanted: u32) -> Option<Finding> {
    let (path, quoted_path, who) = (directory.display(), quoted(directory), &user.name);
    match fs::metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let remedy = format!("make it: install -d -o {who} -m 0700 {quoted_path}");
            return Some(Finding::mistake(place, format!("{path} does not exist"), remedy));
        }
        Err(error) => return Some(cannot_look(place, directory, &error)),
        Ok(found) if !found.is_dir() => {
            let what = format!("{path} is no directory");
            return Some(Finding::mistake(place, what, "name a directory, or move the file away"));
        }
        Ok(_) => {}
    }
    let on = system::file_system(directory).ok();
    if wanted & WRITE != 0 && on.is_some_and(|on| on.read_only) {
        let what = format!("{path} is on a file system that is read-only");
        return Some(Finding::mistake(place, what, "mount it for writing, or name another place"));
    }
    match system::denied(user, directory, wanted) {
        Ok(None) => None,
        Ok(Some(by)) if Ok(&by) == directory.canonicalize().as_ref().map_err(|_| ()) => {
            let verb = if wanted & WRITE != 0 { "write to" } else { "use" };
            let what = format!("user {who} may not {verb} {path}");
            let remedy = format!("chown {who} {quoted_path}, or let its group or others do it");
            Some(Finding::mistake(place, what, remedy))
        }
        Ok(Some(by)) => {
            let what = format!("user {who} does not get to {path}: {} is closed", by.display());
            let remedy = format!("let it pass: chmod o+x {}", quoted(&by));
            Some(Finding::mistake(place, what, remedy))
        }
        Err(error) => Some(cannot_look(place, directory, &error)),
    }
}

fn cannot_look(place: &str, path: &Path, error: &io::Error) -> Finding {
    let what = format!("{} cannot be looked at: {error}", path.display());
    Finding::mistake(place, what, "run this as the user that the supervisor runs as, or as root")
}

/// A socket that `user` binds beside its place and renames into it (R11).
fn check_socket(place: &str, socket: &Path, user: &User) -> Option<Finding> {
    if let Some(finding) = not_a_socket(place, socket) {
        return Some(finding);
    }
    check_directory(place, socket.parent()?, user, WRITE | PASS)
}

/// What is in a socket's place, and is none.
fn not_a_socket(place: &str, socket: &Path) -> Option<Finding> {
    let found = fs::symlink_metadata(socket).ok()?;
    (!found.file_type().is_socket()).then(|| {
        let what = format!("{} is there already, and is no socket", socket.display());
        Finding::mistake(place, what, "move it away, or choose another path")
    })
}

/// It can be made where the directory it would be in can be written to.
fn check_state_dir(state_dir: &Path, me: &User) -> Option<Finding> {
    let place = "supervisor.state_dir";
    if fs::symlink_metadata(state_dir).is_ok() {
        return check_directory(place, state_dir, me, READ | WRITE | PASS);
    }
    let above = state_dir.ancestors().skip(1).find(|path| fs::symlink_metadata(path).is_ok())?;
    let finding = check_directory(place, above, me, WRITE | PASS)?;
    let what = format!("{} cannot be made: {}", state_dir.display(), finding.what);
    let remedy = format!("make it: install -d -o {} -m 0700 {}", me.name, quoted(state_dir));
    Some(Finding::mistake(place, what, remedy))
}

fn check_listeners(config: &Config, me: &User) -> Vec<Finding> {
    let listeners = config.listeners.iter().enumerate().map(|(place, listener)| {
        let kind = match &listener.address {
            Address::Tcp(_) => "tcp",
            Address::Udp(_) => "udp",
            Address::Unix { .. } => "unix",
        };
        (format!("listener.{place}.{kind}"), listener.address.clone())
    });
    let metrics = config.supervisor.metrics.map(Address::Tcp);
    let metrics = metrics.map(|address| ("supervisor.metrics".to_owned(), address));
    let all = listeners.chain(metrics);
    all.filter_map(|(place, address)| check_listener(config, me, &place, &address)).collect()
}

fn check_listener(config: &Config, me: &User, place: &str, address: &Address) -> Option<Finding> {
    match address {
        Address::Unix { path, .. } => {
            if !system::sockets_at(address).is_empty() {
                return Some(in_use(config, place, address));
            }
            let there = not_a_socket(place, path);
            there.or_else(|| check_directory(place, path.parent()?, me, WRITE | PASS))
        }
        Address::Tcp(at) | Address::Udp(at) => {
            match can_bind(*at, matches!(address, Address::Tcp(_))) {
                Ok(()) => None,
                Err(Errno::ADDRINUSE) => Some(in_use(config, place, address)),
                Err(error) => Some(not_bound(place, *at, error, &me.name)),
            }
        }
    }
}

/// Binds, which nobody notices, and does not listen.
fn can_bind(at: SocketAddr, is_tcp: bool) -> rustix::io::Result<()> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, protocol) =
        if is_tcp { (SocketType::STREAM, ipproto::TCP) } else { (SocketType::DGRAM, ipproto::UDP) };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol))?;
    if is_tcp {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &at)
}

fn not_bound(place: &str, at: SocketAddr, error: Errno, who: &str) -> Finding {
    let (what, remedy) = match error {
        Errno::ACCESS | Errno::PERM => {
            let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
            let first = first.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
            (
                format!("user {who} may not bind {at}: ports below {first} are not for everybody"),
                "use a higher port, a systemd socket unit, or AmbientCapabilities=CAP_NET_BIND_SERVICE",
            )
        }
        Errno::ADDRNOTAVAIL => (
            format!("this machine does not have the address {}", at.ip()),
            "write one that `ip address` lists, or 0.0.0.0 or [::] for all",
        ),
        error => {
            (format!("{at} cannot be bound: {}", io::Error::from(error)), "choose another address")
        }
    };
    Finding::mistake(place, what, remedy)
}

/// By the supervisor of this configuration, or by somebody else.
fn in_use(config: &Config, place: &str, address: &Address) -> Finding {
    let shown = match address {
        Address::Tcp(at) | Address::Udp(at) => at.to_string(),
        Address::Unix { path, .. } => path.display().to_string(),
    };
    let holders = system::holders(address);
    let ours = ours(config);
    if let Some(pid) = holders.iter().find(|pid| ours.contains(pid)) {
        let by = system::named(*pid);
        return Finding::note(
            place,
            format!("{shown} is bound already, by {by}: this configuration runs"),
            "nothing is to be done; `handoff status` tells more",
        );
    }
    match holders.as_slice() {
        [1, ..] => Finding::note(
            place,
            format!("{shown} is bound already, by systemd: by a socket unit"),
            "have the supervisor started by that unit, which passes it the socket",
        ),
        [pid, ..] => Finding::mistake(
            place,
            format!("{shown} is in use, by {}", system::named(*pid)),
            "stop that process, or choose another address",
        ),
        [] if !ours.is_empty() => Finding::note(
            place,
            format!("{shown} is bound already; a supervisor of this configuration runs"),
            "to be sure that it is by that, run this as root",
        ),
        [] => Finding::mistake(
            place,
            format!("{shown} is in use, and this user may not see by whom"),
            "`ss -lptux` as root tells; stop that process, or choose another address",
        ),
    }
}

/// The supervisor that listens at the configured socket, and the daemon at the control path.
fn ours(config: &Config) -> Vec<u32> {
    let users = Users(config.daemon.user.iter().map(|user| user.uid).collect());
    let control = ControlPath::new(config.daemon.control.clone()).ok();
    let daemon = control.and_then(|control| probe(&control, &users).ok());
    let supervisor = system::listens_at(&config.supervisor.socket).ok();
    supervisor.into_iter().chain(daemon.map(|found| found.cred.pid)).collect()
}

#[cfg(test)]
mod tests;

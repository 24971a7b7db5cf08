//! Files and directories: who may do what with them, and what they are on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Patient;
use super::page::Line;
use crate::client::text::quoted;
use crate::config::{Config, User};
use crate::system::{Family, FileSystem, file_system};

const PERMISSIONS: &str = "permissions";
/// Less than this is little: bytes.
const LITTLE: u64 = 256 << 20;
const STICKY: u32 = 0o1000;

/// What a file must be like.
#[derive(Clone, Copy, Debug)]
struct Rule {
    /// What it is to a reader: `the control path`.
    name: &'static str,
    /// Whose it must be; root's is always right.
    owner: Option<u32>,
    /// Permissions that it must not have.
    not: u32,
    /// Whether it is broken otherwise, or only careless.
    is_grave: bool,
}

/// Of the sockets, the directories they are in, data, state, and what is run.
pub(super) fn permissions(patient: &Patient, config: &Config) -> Vec<Line> {
    let daemon = config.daemon.user.as_ref().map(|user| user.uid);
    let boss = patient.boss().and_then(|pid| fs::metadata(format!("/proc/{pid}")).ok());
    let boss = boss.map_or_else(|| User::current().uid, |found| found.uid());
    let daemon = daemon.unwrap_or(boss);
    let supervisor = &config.supervisor;
    // Others are let in by the supervisor itself, which knows who they are.
    let not_for = if supervisor.admins.is_empty() { 0o077 } else { 0 };
    let all: [(&Path, Rule); 6] = [
        (
            &config.daemon.control,
            Rule { name: "the control path", owner: Some(daemon), not: 0o077, is_grave: true },
        ),
        (
            &supervisor.socket,
            Rule { name: "the socket", owner: Some(boss), not: not_for, is_grave: true },
        ),
        (
            &config.daemon.data_dir,
            Rule { name: "data_dir", owner: Some(daemon), not: 0o002, is_grave: true },
        ),
        (
            &supervisor.state_dir,
            Rule { name: "state_dir", owner: Some(boss), not: 0o022, is_grave: true },
        ),
        (
            &config.daemon.command,
            Rule { name: "the command", owner: None, not: 0o022, is_grave: false },
        ),
        (
            &config.file,
            Rule { name: "the configuration", owner: None, not: 0o022, is_grave: false },
        ),
    ];
    let mut lines: Vec<Line> = all
        .iter()
        .filter_map(|(path, rule)| {
            let found = fs::metadata(path).ok()?;
            judge(path, (found.uid(), found.mode()), *rule)
        })
        .collect();
    for directory in [config.daemon.control.parent(), supervisor.socket.parent()] {
        let Some(directory) = directory else { continue };
        let mode = fs::metadata(directory).map(|found| found.mode()).unwrap_or_default();
        if let Some(line) = open_to_all(directory, mode).filter(|line| !lines.contains(line)) {
            lines.push(line);
        }
    }
    if lines.is_empty() {
        let text = "sockets, directories, command and configuration are closed to others";
        lines.push(Line::good(PERMISSIONS, text));
    }
    lines
}

fn judge(path: &Path, (uid, mode): (u32, u32), rule: Rule) -> Option<Line> {
    let Rule { name, owner, not, is_grave } = rule;
    let shown = path.display();
    let line = if is_grave { Line::fail } else { Line::warn };
    if let Some(owner) = owner.filter(|owner| *owner != uid && uid != 0) {
        return Some(Line::fail(
            PERMISSIONS,
            format!("{name}, {shown}, belongs to user {uid}, and should to {owner}"),
            format!("chown {owner} {}", quoted(path)),
        ));
    }
    // As in a mode that somebody types.
    let mode = mode & 0o7777;
    (mode & not != 0).then(|| {
        let (who, classes) = match (mode & not & 0o070 != 0, mode & not & 0o007 != 0) {
            (true, true) => ("its group and others", "go"),
            (true, false) => ("its group", "g"),
            _ => ("others", "o"),
        };
        let (does, less) = if not & 0o044 != 0 { ("use", "rwx") } else { ("write to", "w") };
        line(
            PERMISSIONS,
            format!("{name}, {shown}, has mode {mode:04o}: {who} can {does} it"),
            format!("chmod {classes}-{less} {}", quoted(path)),
        )
    })
}

/// Whoever can write to a directory can put something else in a socket's place.
fn open_to_all(directory: &Path, mode: u32) -> Option<Line> {
    let is_open = mode & 0o002 != 0 && mode & STICKY == 0;
    is_open.then(|| {
        Line::fail(
            PERMISSIONS,
            format!("anybody can replace the sockets in {}", directory.display()),
            format!("chmod o-w {}", quoted(directory)),
        )
    })
}

/// What data and state are on, and how much room there is.
pub(super) fn file_systems(config: &Config) -> Vec<Line> {
    let both = [("data_dir", &config.daemon.data_dir), ("state_dir", &config.supervisor.state_dir)];
    let mut lines = Vec::new();
    for (name, path) in both {
        match file_system(path) {
            Ok(on) => {
                lines.extend(kind(name, &on));
                lines.extend(room(name, &on));
            }
            Err(error) => lines.push(Line::fail(
                "filesystem",
                format!("{name}, {}, cannot be looked at: {error}", path.display()),
                "make it, or run this as a user who may",
            )),
        }
    }
    lines
}

fn kind(name: &str, on: &FileSystem) -> Vec<Line> {
    const ABOUT: &str = "filesystem";
    let (kind, at) = (&on.kind, on.mounted.display());
    if on.read_only {
        return vec![Line::fail(
            ABOUT,
            format!("{name} is on {kind} ({at}), which is read-only"),
            "see in `dmesg` whether a disk failed; mount it for writing",
        )];
    }
    vec![match on.family() {
        Family::Local => Line::good(ABOUT, format!("{name} is on {kind} ({at})")),
        Family::Memory => Line::warn(
            ABOUT,
            format!("{name} is on {kind} ({at}): in memory, and gone after a reboot"),
            "put it on a disk, unless this is a trial",
        ),
        Family::Network => Line::warn(
            ABOUT,
            format!("{name} is on {kind} ({at}), which other machines can use too"),
            "run the daemon on one machine only: on two, both may get the lock; or use a local disk",
        ),
        Family::Process => Line::warn(
            ABOUT,
            format!("{name} is on {kind} ({at}): what a lock means there, only its server knows"),
            "use a local disk, or make sure that nobody else has it mounted",
        ),
    }]
}

fn room(name: &str, on: &FileSystem) -> Vec<Line> {
    const ABOUT: &str = "space";
    let ((free, size), (files, most)) = (on.bytes, on.files);
    let mut lines = Vec::new();
    let remedy = format!("make room on {}", on.mounted.display());
    if size > 0 && free == 0 {
        let text =
            format!("{name}: the disk is full; a daemon that resumes may have to wait for room");
        lines.push(Line::fail(ABOUT, text, remedy.clone()));
    } else if size > 0 && (free < LITTLE && free < size / 5 || free < size / 100) {
        let text = format!("{name}: only {} are free", bytes(free));
        lines.push(Line::warn(ABOUT, text, remedy.clone()));
    } else {
        lines.push(Line::good(ABOUT, format!("{name}: {} are free", bytes(free))));
    }
    if most > 0 && files < most / 100 {
        let text = format!("{name}: only {files} files (inodes) can still be made");
        let line = if files == 0 { Line::fail } else { Line::warn };
        lines.push(line(ABOUT, text, remedy));
    }
    lines
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::page::Level;

    const RULE: Rule = Rule { name: "the socket", owner: Some(7), not: 0o077, is_grave: true };

    #[test]
    fn who_owns_it_and_who_else_may_use_it() {
        let judge = |owner, mode, rule| judge(Path::new("/run/s"), (owner, mode), rule);
        assert_eq!(judge(7, 0o140600, RULE), None);
        assert_eq!(judge(0, 0o140600, RULE), None, "root's is always right");
        let told = judge(8, 0o140600, RULE).unwrap();
        assert_eq!(told.text, "the socket, /run/s, belongs to user 8, and should to 7");
        assert_eq!(told.remedy.unwrap(), "chown 7 /run/s");
        let told = judge(7, 0o140666, RULE).unwrap();
        assert_eq!(told.text, "the socket, /run/s, has mode 0666: its group and others can use it");
        assert_eq!(told.remedy.unwrap(), "chmod go-rwx /run/s");
        let data = Rule { name: "data_dir", not: 0o002, ..RULE };
        assert_eq!(judge(7, 0o40775, data), None);
        let told = judge(7, 0o40777, data).unwrap();
        assert_eq!(told.text, "data_dir, /run/s, has mode 0777: others can write to it");
        assert_eq!(told.remedy.unwrap(), "chmod o-w /run/s");
    }

    #[test]
    fn a_directory_that_anybody_writes_to_needs_the_sticky_bit() {
        assert!(open_to_all(Path::new("/run"), 0o40777).is_some());
        assert!(open_to_all(Path::new("/tmp"), 0o41777).is_none());
        assert!(open_to_all(Path::new("/run"), 0o40775).is_none());
    }

    #[test]
    fn what_it_is_on_and_how_full_it_is() {
        let disk = FileSystem {
            kind: "ext4".into(),
            mounted: "/var".into(),
            read_only: false,
            bytes: (10 << 30, 100 << 30),
            files: (1000, 2000),
        };
        let levels = |on: &FileSystem| {
            let lines = kind("data_dir", on).into_iter().chain(room("data_dir", on));
            lines.map(|line| line.level).collect::<Vec<_>>()
        };
        let with = |change: fn(&mut FileSystem)| {
            let mut disk = disk.clone();
            change(&mut disk);
            levels(&disk)
        };
        use Level::{Fail, Good, Warn};
        assert_eq!(levels(&disk), [Good, Good]);
        assert_eq!(with(|d| d.kind = "nfs4".into()), [Warn, Good]);
        assert_eq!(with(|d| d.kind = "tmpfs".into()), [Warn, Good]);
        assert_eq!(with(|d| d.kind = "fuse.x".into()), [Warn, Good]);
        assert_eq!(with(|d| d.read_only = true), [Fail, Good]);
        assert_eq!(with(|d| d.bytes.0 = 0), [Good, Fail]);
        assert_eq!(with(|d| d.bytes.0 = 900 << 20), [Good, Warn]);
        assert_eq!(with(|d| d.bytes = (200 << 20, 300 << 20)), [Good, Good], "a small disk");
        assert_eq!(with(|d| d.files.0 = 3), [Good, Good, Warn]);
        assert_eq!(with(|d| d.files.0 = 0), [Good, Good, Fail]);
        assert_eq!(with(|d| d.files = (0, 0)), [Good, Good], "no limit");
        assert_eq!(bytes(10 << 30), "10.0 GiB");
        assert_eq!(bytes(0), "0.0 KiB");
    }
}

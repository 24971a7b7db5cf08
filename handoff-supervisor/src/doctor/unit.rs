//! How systemd runs the supervisor.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::Patient;
use super::page::Line;

/// Where systemd's files are; what comes first wins.
const PLACES: [&str; 5] =
    ["/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd", "/lib/systemd"];

/// A unit, and what its files say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Unit {
    name: String,
    /// The keys of `[Service]`, with all their values; none where no file can be read.
    service: Option<BTreeMap<String, Vec<String>>>,
}

impl Unit {
    /// The unit that `pid` belongs to.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let (name, is_user) = name_of(&cgroup)?;
        let kind = if is_user { "user" } else { "system" };
        let mut places: Vec<PathBuf> =
            PLACES.iter().map(|place| Path::new(place).join(kind)).collect();
        if let (true, Some(home)) = (is_user, std::env::var_os("HOME")) {
            places.insert(0, Path::new(&home).join(".config/systemd/user"));
        }
        let service = read(&places, &name);
        Some(Self { name, service })
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.service.as_ref()?.get(key)?.last().map(String::as_str)
    }

    /// Whether systemd's store has room for the listeners.
    pub(super) fn keeps(&self, listeners: usize) -> bool {
        self.store() >= listeners && self.store() > 0
    }

    /// How many descriptors systemd keeps for it.
    fn store(&self) -> usize {
        self.value("FileDescriptorStoreMax").and_then(|value| value.parse().ok()).unwrap_or(0)
    }
}

/// The service in the text of `/proc/PID/cgroup`, and whether it is of a user's own manager.
fn name_of(cgroup: &str) -> Option<(String, bool)> {
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    // In version 1 there is a line for each controller; systemd's has the units.
    paths
        .filter_map(|path| {
            let (_, name) = path.trim_end_matches('/').rsplit_once('/')?;
            name.ends_with(".service").then(|| (name.to_owned(), path.contains("/user@")))
        })
        .next()
}

/// The file of a unit, or of its template, and what is dropped in.
fn read(places: &[PathBuf], name: &str) -> Option<BTreeMap<String, Vec<String>>> {
    let template = name.split_once('@').map(|(unit, _)| format!("{unit}@.service"));
    let names: Vec<&str> = [Some(name), template.as_deref()].into_iter().flatten().collect();
    let mut files = Vec::new();
    for name in &names {
        if files.is_empty() {
            files.extend(places.iter().find_map(|place| fs::read_to_string(place.join(name)).ok()));
        }
    }
    if files.is_empty() {
        return None;
    }
    // By the name of the file, whatever directory it is in; for one name the first directory wins.
    let mut dropped = BTreeMap::new();
    for (place, name) in places.iter().flat_map(|place| names.iter().map(move |name| (place, name)))
    {
        let Ok(entries) = fs::read_dir(place.join(format!("{name}.d"))) else { continue };
        for file in entries.flatten().map(|entry| entry.path()) {
            if file.extension().is_some_and(|extension| extension == "conf") {
                dropped.entry(file.file_name().map(ToOwned::to_owned)).or_insert(file);
            }
        }
    }
    files.extend(dropped.into_values().filter_map(|file| fs::read_to_string(file).ok()));
    Some(parse(&files))
}

/// The keys of `[Service]`, of one file after the other. An empty value forgets those before it.
fn parse(files: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        let mut is_service = false;
        let joined = file.replace("\\\n", " ");
        for line in joined.lines().map(str::trim) {
            if line.starts_with('[') {
                is_service = line == "[Service]";
            } else if let (true, false, Some((key, value))) =
                (is_service, line.starts_with(['#', ';']), line.split_once('='))
            {
                let (key, value) = (key.trim(), value.trim());
                let values = keys.entry(key.to_owned()).or_default();
                if value.is_empty() {
                    values.clear();
                } else {
                    values.push(value.to_owned());
                }
            }
        }
    }
    keys
}

/// Whether the unit lets the daemon outlive its supervisor, and keeps what it needs.
pub(super) fn unit(patient: &Patient) -> Vec<Line> {
    let Ok(status) = &patient.status else { return Vec::new() };
    match &patient.unit {
        Some(unit) => judge(unit, status.listeners.len()),
        None => vec![Line::good(ABOUT, "the supervisor is not run by a systemd service")],
    }
}

const ABOUT: &str = "systemd";

fn judge(unit: &Unit, listeners: usize) -> Vec<Line> {
    let name = &unit.name;
    if unit.service.is_none() {
        return vec![Line::warn(
            ABOUT,
            format!("the files of {name}, which runs the supervisor, cannot be read"),
            format!("`systemctl cat {name}` shows them; KillMode must be process"),
        )];
    }
    let value = |key: &str, usual: &'static str| unit.value(key).unwrap_or(usual);
    let mut lines = Vec::new();
    let mut warn = |text: String, set: String| {
        let remedy = format!("`systemctl edit {name}`: [Service] {set}");
        lines.push(Line::warn(ABOUT, text, remedy));
    };
    let kill = value("KillMode", "control-group");
    if kill != "process" {
        warn(
            format!("{name} has KillMode={kill}: if the supervisor dies, the daemon is ended too"),
            "KillMode=process".into(),
        );
    }
    let (kind, access) = (value("Type", "simple"), value("NotifyAccess", ""));
    let is_notified = matches!(access, "main" | "exec" | "all")
        || (access.is_empty() && kind.starts_with("notify"));
    if !is_notified {
        warn(
            format!("{name} has Type={kind} and no NotifyAccess: systemd is told nothing"),
            "Type=notify, NotifyAccess=main".into(),
        );
    }
    if listeners > 0 && !unit.keeps(listeners) {
        warn(
            format!(
                "{name} keeps {} of {listeners} listeners if the supervisor dies (FileDescriptorStoreMax)",
                unit.store()
            ),
            format!("FileDescriptorStoreMax={}", (listeners * 2).max(16)),
        );
    }
    if !value("ExecReload", "").contains("swap") {
        warn(
            format!("{name} has no ExecReload that swaps: `systemctl reload` does not hand off"),
            "ExecReload=/usr/bin/handoff swap --wait".into(),
        );
    }
    let restart = value("Restart", "no");
    if restart == "no" {
        warn(
            format!("{name} has Restart=no: a supervisor that dies is not started again"),
            "Restart=on-failure".into(),
        );
    }
    if lines.is_empty() {
        lines.push(Line::good(ABOUT, format!("{name} keeps the daemon and its listeners")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_found_in_either_version_of_cgroups() {
        let of = |text| name_of(text).map(|(name, is_user)| format!("{name} {is_user}"));
        assert_eq!(of("0::/system.slice/kv.service\n").unwrap(), "kv.service false");
        assert_eq!(
            of("0::/user.slice/user-7.slice/user@7.service/app.slice/kv.service\n").unwrap(),
            "kv.service true"
        );
        assert_eq!(
            of("4:memory:/\n1:name=systemd:/system.slice/kv@a.service\n").unwrap(),
            "kv@a.service false"
        );
        assert_eq!(of("0::/user.slice/user-7.slice/session-2.scope\n"), None);
        assert_eq!(of("0::/\n"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn a_unit_is_read_with_what_is_dropped_in() {
        let dir = tempfile::Builder::new().prefix("handoff doctor ").tempdir().unwrap();
        let places: Vec<PathBuf> =
            ["etc", "lib"].iter().map(|place| dir.path().join(place)).collect();
        for (file, text) in [
            (
                "lib/kv@.service",
                "[Unit]\nKillMode=none\n[Service]\nKillMode=mixed\n# Type=x\nExecReload=a \\\n  b\n",
            ),
            (
                "etc/kv@.service.d/a.conf",
                "[Service]\nKillMode=process\nExecReload=\nExecReload=handoff swap\n",
            ),
            ("lib/kv@.service.d/a.conf", "[Service]\nKillMode=never\n"),
            ("lib/kv@one.service.d/b.conf", "[Service]\nFileDescriptorStoreMax=4\n"),
            ("lib/kv@one.service.d/c.txt", "[Service]\nFileDescriptorStoreMax=5\n"),
        ] {
            let file = dir.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let service = read(&places, "kv@one.service");
        let unit = Unit { name: "kv@one.service".into(), service };
        assert_eq!(unit.value("KillMode"), Some("process"));
        assert_eq!(unit.value("ExecReload"), Some("handoff swap"));
        assert_eq!(unit.value("Type"), None);
        assert_eq!(unit.store(), 4);
        assert!(unit.keeps(4) && !unit.keeps(5));
        assert_eq!(read(&places, "other.service"), None);
    }

    #[test]
    fn each_setting_that_is_missing_is_told() {
        let unit =
            |text: &str| Unit { name: "kv.service".into(), service: Some(parse(&[text.into()])) };
        let good = unit(
            "[Service]\nType=notify\nKillMode=process\nFileDescriptorStoreMax=16\nRestart=always
ExecReload=/usr/bin/handoff swap --wait\n",
        );
        let told: Vec<String> = judge(&good, 3).into_iter().map(|line| line.text).collect();
        assert_eq!(told, ["kv.service keeps the daemon and its listeners"]);
        let told: Vec<String> = judge(&unit("[Service]\n"), 3)
            .into_iter()
            .map(|line| line.remedy.unwrap().rsplit_once("[Service] ").unwrap().1.to_owned())
            .collect();
        let expected = [
            "KillMode=process",
            "Type=notify, NotifyAccess=main",
            "FileDescriptorStoreMax=16",
            "ExecReload=/usr/bin/handoff swap --wait",
            "Restart=on-failure",
        ];
        assert_eq!(told, expected);
        let unread = Unit { name: "kv.service".into(), service: None };
        assert!(judge(&unread, 3)[0].text.contains("cannot be read"));
    }
}

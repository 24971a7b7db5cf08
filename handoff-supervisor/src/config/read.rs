//! Reads a configuration, and says all that is wrong with it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use handoff_unix::spawn::name_problem;
use toml::de::DeTable;

use super::reader::{Fault, Item, Lines, Page, Reader, Shape};
use super::values;
use super::{Address, Config, Daemon, Handoff, Health, Listener, Supervisor, User};
use crate::exit;

/// The largest file that is taken for a configuration.
const LARGEST: u64 = 1 << 20;

/// Every table, and every key of it.
pub(super) const TABLES: &[Shape] = &[
    Shape {
        name: "daemon",
        many: false,
        keys: &[
            "command",
            "args",
            "environment",
            "directory",
            "user",
            "data_dir",
            "control",
            "wrapper",
            "stop_grace",
        ],
    },
    Shape {
        name: "listener",
        many: true,
        keys: &["name", "tcp", "udp", "unix", "mode", "backlog"],
    },
    Shape {
        name: "handoff",
        many: false,
        keys: &[
            "deadline",
            "drain_grace",
            "warm_up",
            "strict",
            "promote",
            "probation",
            "health",
            "binaries",
        ],
    },
    Shape { name: "handoff.health", many: false, keys: &["http", "every", "timeout", "failures"] },
    Shape {
        name: "supervisor",
        many: false,
        keys: &["socket", "state_dir", "admins", "metrics", "restart_first", "restart_most"],
    },
];

const STOP_GRACE: Duration = Duration::from_secs(10);
const HEALTH_EVERY: Duration = Duration::from_secs(1);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
const HEALTH_FAILURES: u32 = 3;
const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_MOST: Duration = Duration::from_secs(30);
/// The permissions of a Unix listener.
const MODE: u32 = 0o600;

impl Default for Handoff {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(60),
            drain_grace: Duration::from_secs(30),
            warm_up: Duration::from_secs(60),
            strict: false,
            promote: true,
            probation: None,
            health: None,
            binaries: Vec::new(),
        }
    }
}

/// One mistake in a configuration.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub(crate) struct Mistake {
    /// The line, from 1, where it is in one.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// All that is wrong with a file, in the order of its lines; at least one. Displayed, it is what a person
/// reads: each as `FILE:LINE: what`, its remedy below it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) struct Mistakes {
    /// The file.
    pub file: PathBuf,
    /// The mistakes.
    pub list: Vec<Mistake>,
    /// The file is not there, or cannot be read.
    pub unreadable: bool,
}

impl Mistakes {
    /// What a verb exits with on account of them.
    #[must_use]
    pub(crate) fn exit(&self) -> u8 {
        if self.unreadable { exit::NO_INPUT } else { exit::CONFIG }
    }

    fn unreadable(file: &Path, what: impl fmt::Display, remedy: &str) -> Self {
        let mistake =
            Mistake { line: None, what: format!("cannot be read: {what}"), remedy: remedy.into() };
        Self { file: file.into(), list: vec![mistake], unreadable: true }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, mistake) in self.list.iter().enumerate() {
            if place > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:", self.file.display())?;
            if let Some(line) = mistake.line {
                write!(f, "{line}:")?;
            }
            write!(f, " {}\n    {}", mistake.what, mistake.remedy)?;
        }
        Ok(())
    }
}

/// Reads it. Only the file itself and the system's users are looked at: what it names may not be there.
///
/// # Errors
///
/// All that is wrong with it.
pub(crate) fn read(file: &Path) -> Result<Config, Mistakes> {
    read_with_lines(file).map(|(config, _)| config)
}

/// Reads it as [`read`] does, and tells where each key stands.
///
/// # Errors
///
/// All that is wrong with it.
pub(crate) fn read_with_lines(file: &Path) -> Result<(Config, Lines), Mistakes> {
    let bytes = contents(file)?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let mistake = Mistake {
                line: Some(1 + before.iter().filter(|byte| **byte == b'\n').count()),
                what: "this is no text: it is not in UTF-8".into(),
                remedy: "save the file as UTF-8".into(),
            };
            return Err(Mistakes { file: file.into(), list: vec![mistake], unreadable: false });
        }
    };
    parse(file, text)
}

fn contents(file: &Path) -> Result<Vec<u8>, Mistakes> {
    let told = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "write it, or name the right one with --config FILE",
            io::ErrorKind::PermissionDenied => "run this as a user who may read it",
            _ => "check the file, and the disk it is on",
        };
        Mistakes::unreadable(file, error, remedy)
    };
    // Opening a pipe waits for who writes to it.
    if !std::fs::metadata(file).map_err(told)?.is_file() {
        return Err(Mistakes::unreadable(file, "it is no file", "name a file with --config FILE"));
    }
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(LARGEST + 1).read_to_end(&mut bytes))
        .map_err(told)?;
    if bytes.len() as u64 > LARGEST {
        let mistake = Mistake {
            line: None,
            what: "is larger than 1 MiB, which no configuration is".into(),
            remedy: "name the right file with --config FILE".into(),
        };
        return Err(Mistakes { file: file.into(), list: vec![mistake], unreadable: false });
    }
    Ok(bytes)
}

fn parse(file: &Path, text: &str) -> Result<(Config, Lines), Mistakes> {
    let page = Page::new(text, TABLES);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut broken: Vec<Mistake> = Vec::new();
    let mut end = None;
    for error in &errors {
        let span = error.span();
        let line = span.as_ref().map(|span| page.line(span.start));
        let there = span.and_then(|span| text.get(span)).unwrap_or_default();
        // One slip of the hand makes the parser stumble more than once in its line.
        if broken.last().is_none_or(|last| last.line != line) {
            let Fault { what, remedy } = not_toml(error.message(), there);
            broken.push(Mistake { line, what, remedy });
        }
        // All that follows is read as part of the array.
        if error.message().contains("array") && !error.message().contains("table") {
            end = line;
            break;
        }
    }

    let config = read_file(file, Reader::file(&page, table.into_inner()));
    let (mut list, lines) = page.close();
    if !broken.is_empty() {
        // What the parser made of a broken line, and what is missing because of it, is no mistake of its own.
        let is_broken = |line| {
            broken.iter().any(|mistake| mistake.line == Some(line))
                || end.is_some_and(|end| line > end)
        };
        list.retain(|mistake| {
            mistake.line.is_some_and(|line| !is_broken(line)) && !mistake.what.contains(" has no ")
        });
        list.append(&mut broken);
    }
    list.sort_by_key(|mistake| mistake.line.unwrap_or(usize::MAX));
    if list.is_empty() {
        Ok((config, lines))
    } else {
        Err(Mistakes { file: file.into(), list, unreadable: false })
    }
}

fn not_toml(message: &str, there: &str) -> Fault {
    if message.starts_with("duplicate key") {
        let what = format!("{} is given twice", there.trim());
        return Fault::new(what, "keep one of the two");
    }
    // What else the parser expected there is no help.
    let message = message.split(", expected").next().unwrap_or_default();
    let (what, remedy) = if message.contains("must be quoted") {
        match there.trim() {
            "" => ("a key without its value", "write a value after the ="),
            "yes" | "on" | "True" | "TRUE" => ("a value that means nothing", "write true"),
            "no" | "off" | "False" | "FALSE" => ("a value that means nothing", "write false"),
            _ => ("a text without quotes", "put it in quotes: key = \"value\""),
        }
    } else if message.contains("with no value") {
        ("a key without its value", "write key = \"value\", or # before a comment")
    } else if message.contains("basic string") || message.contains("literal string") {
        ("a text without its closing quote", "close it on the same line")
    } else if message.contains("array") && !message.contains("table") {
        ("an array that is not closed", "end it with ], and put a comma between its elements")
    } else if message.contains("escape") {
        ("a backslash that means nothing", "write \\\\ for one, or the text in 'single quotes'")
    } else if message.starts_with("unclosed") {
        (message, "close it with its bracket, on the same line")
    } else if message.contains("leading zero") {
        ("a number that begins with 0", "write it without the 0, or in quotes if it is a mode")
    } else {
        (message, "a line is [table], or key = value with text in quotes, or a # comment")
    };
    Fault::new(format!("this is not TOML: {what}"), remedy)
}

fn read_file(file: &Path, mut top: Reader<'_>) -> Config {
    let daemon = read_daemon(top.table("daemon"));
    let listeners = read_listeners(top.tables("listener"), &daemon);
    let handoff = read_handoff(top.table("handoff"));
    let supervisor = read_supervisor(top.table("supervisor"), &daemon, &listeners);
    top.finish();
    Config { file: file.into(), daemon, listeners, handoff, supervisor }
}

fn read_daemon(mut table: Reader<'_>) -> Daemon {
    let mut daemon = Daemon {
        command: PathBuf::new(),
        args: Vec::new(),
        environment: Vec::new(),
        directory: None,
        user: None,
        data_dir: PathBuf::new(),
        control: PathBuf::new(),
        wrapper: false,
        stop_grace: STOP_GRACE,
    };
    if !table.is_there() {
        table.wrong("there is no [daemon]", "add it, with command, data_dir and control");
        return daemon;
    }
    if let Some(item) =
        table.need("command", "command = \"/usr/local/bin/kv\", the binary of the daemon")
    {
        daemon.command = binary(&item).unwrap_or_default();
    }
    if let Some(item) = table.take("args") {
        let args = item.elements("an array of texts", "[\"--verbose\"]");
        daemon.args = args
            .into_iter()
            .filter_map(|arg| {
                arg.parse("an array of texts", "[\"--verbose\"]", |text| Ok(text.to_owned()))
            })
            .collect();
    }
    if let Some(item) = table.take("environment") {
        daemon.environment = environment(item);
    }
    daemon.directory = table.take("directory").and_then(|item| path(&item, "\"/var/lib/kv\""));
    daemon.user = table.take("user").and_then(|item| user(&item));
    if let Some(item) =
        table.need("data_dir", "data_dir = \"/var/lib/kv\", the directory whose lock it holds")
    {
        daemon.data_dir = path(&item, "\"/var/lib/kv\"").unwrap_or_default();
    }
    if let Some(item) =
        table.need("control", "control = \"/run/kv/control.sock\", where the daemon listens")
    {
        daemon.control = item
            .parse("a path", "\"/run/kv/control.sock\"", values::control_path)
            .unwrap_or_default();
    }
    if let Some(item) = table.take("wrapper") {
        daemon.wrapper = item.flag().unwrap_or_default();
    }
    daemon.stop_grace = time(&mut table, "stop_grace", "\"10s\"").unwrap_or(STOP_GRACE);
    table.finish();
    daemon
}

fn environment(item: Item<'_>) -> Vec<(String, String)> {
    const EXAMPLE: &str = "{ RUST_LOG = \"info\" }";
    let Some(map) = item.into_map("a table", EXAMPLE) else { return Vec::new() };
    map.into_items()
        .into_iter()
        .filter_map(|item| {
            if let Err(Fault { what, remedy }) = values::variable(&item.key) {
                item.wrong_in_all(what, remedy);
                return None;
            }
            let value = item.parse("text", "\"1\"", |text| Ok(text.to_owned()))?;
            Some((item.key, value))
        })
        .collect()
}

fn read_listeners(tables: Vec<Reader<'_>>, daemon: &Daemon) -> Vec<Listener> {
    let mut listeners: Vec<(Option<usize>, Listener)> = Vec::new();
    let mut names = BTreeMap::new();
    for mut table in tables {
        let name = table.need("name", "name = \"http\", by which the daemon knows the listener");
        let name = name.and_then(|item| {
            let name = item.parse("text", "\"http\"", |name| match name_problem(name) {
                Some(problem) => {
                    Err(Fault::new(problem, "choose a name of letters, digits and dashes"))
                }
                None => Ok(name.to_owned()),
            })?;
            if let Some(first) = names.insert(name.clone(), item.line) {
                let what = format!("{name:?} is given twice");
                item.wrong(what, format!("rename one of the two; the other is in line {first}"));
            }
            Some(name)
        });
        let address = read_address(&mut table);
        let udp = matches!(address, Some(Address::Udp(_)));
        let backlog = table.take("backlog").and_then(|item| {
            if udp {
                item.wrong("is for tcp and unix", "remove it: nothing waits at a udp socket");
            }
            item.count(1..=i32::MAX.unsigned_abs(), "4096")
        });
        let line = table.line;
        if let Some(address) = address {
            if let Address::Unix { path, .. } = &address
                && same_path(path, &daemon.control)
            {
                let remedy = "give each its own path";
                table.wrong("this listener is at the daemon's control path", remedy);
            }
            if let Some((first, _)) = listeners.iter().find(|(_, l)| same(&l.address, &address)) {
                let first = first.unwrap_or_default();
                let what = format!("this listener has the address of the one in line {first}");
                table.wrong(what, "give each its own");
            }
            let name = name.unwrap_or_default();
            listeners.push((line, Listener { name, address, backlog }));
        }
        table.finish();
    }
    listeners.into_iter().map(|(_, listener)| listener).collect()
}

/// Exactly one of its three kinds.
fn read_address(table: &mut Reader<'_>) -> Option<Address> {
    const EXAMPLE: &str = "\"127.0.0.1:8080\"";
    let (tcp, udp, unix) = (table.take("tcp"), table.take("udp"), table.take("unix"));
    let mode = table.take("mode");
    if let (Some(mode), None) = (&mode, &unix) {
        mode.wrong("is for unix", "remove it: only a socket file has permissions");
    }
    let given: Vec<&str> =
        [&tcp, &udp, &unix].into_iter().flatten().map(|item| item.key.as_str()).collect();
    match given.as_slice() {
        [] => {
            let remedy = format!("add tcp = {EXAMPLE}, or udp, or unix = \"/run/kv/kv.sock\"");
            table.wrong("this listener has no address", remedy);
        }
        [_] => {}
        many => {
            let what = format!("this listener has {}", many.join(" and "));
            table.wrong(what, "keep one, and make a [[listener]] for each other one");
        }
    }
    let tcp = tcp.and_then(|item| item.parse("an address", EXAMPLE, values::address));
    let udp = udp.and_then(|item| item.parse("an address", EXAMPLE, values::address));
    let unix =
        unix.and_then(|item| item.parse("a path", "\"/run/kv/kv.sock\"", values::socket_path));
    let mode = mode.and_then(|item| item.parse("permissions", "\"0660\"", values::mode));
    tcp.map(Address::Tcp)
        .or_else(|| udp.map(Address::Udp))
        .or_else(|| unix.map(|path| Address::Unix { path, mode: mode.unwrap_or(MODE) }))
}

fn read_handoff(mut table: Reader<'_>) -> Handoff {
    let usual = Handoff::default();
    let deadline = time(&mut table, "deadline", "\"60s\"");
    let drain_grace = time(&mut table, "drain_grace", "\"30s\"");
    let (most, grace) =
        (deadline.unwrap_or(usual.deadline), drain_grace.unwrap_or(usual.drain_grace));
    if grace > most {
        let (grace, most) = (humantime::format_duration(grace), humantime::format_duration(most));
        let unset =
            if drain_grace.is_none() { " (which it is unless set)" } else { Default::default() };
        let key = if drain_grace.is_some() { "drain_grace" } else { "deadline" };
        let line = table.line_of(key);
        table.wrong_at(
            line,
            format!("drain_grace of {grace}{unset} does not fit into the deadline of {most}"),
            format!("set drain_grace to at most {most}, or make the deadline longer"),
        );
    }
    let warm_up = time(&mut table, "warm_up", "\"60s\"").unwrap_or(usual.warm_up);
    let strict = table.take("strict").and_then(|item| item.flag()).unwrap_or(usual.strict);
    let promote = table.take("promote").and_then(|item| item.flag()).unwrap_or(usual.promote);
    let probation = time(&mut table, "probation", "\"30s\"");
    let health = read_health(table.table("health"));
    let binaries = table.take("binaries").map(|item| {
        const KIND: &str = "an array of paths";
        const EXAMPLE: &str = "[\"/opt/kv/*/kv\"]";
        item.elements(KIND, EXAMPLE)
            .iter()
            .filter_map(|item| item.parse(KIND, EXAMPLE, values::pattern))
            .collect()
    });
    table.finish();
    Handoff {
        deadline: most,
        drain_grace: grace,
        warm_up,
        strict,
        promote,
        probation,
        health,
        binaries: binaries.unwrap_or(usual.binaries),
    }
}

fn read_health(mut table: Reader<'_>) -> Option<Health> {
    if !table.is_there() {
        return None;
    }
    const EXAMPLE: &str = "\"http://127.0.0.1:8080/healthz\"";
    let http = table.need("http", &format!("http = {EXAMPLE}"));
    let http = http.and_then(|item| item.parse("a URL", EXAMPLE, values::health));
    let every = time(&mut table, "every", "\"1s\"").unwrap_or(HEALTH_EVERY);
    let timeout = time(&mut table, "timeout", "\"2s\"").unwrap_or(HEALTH_TIMEOUT);
    let failures = table.take("failures").and_then(|item| item.count(1..=1000, "3"));
    table.finish();
    let (address, path) = http?;
    Some(Health { address, path, every, timeout, failures: failures.unwrap_or(HEALTH_FAILURES) })
}

fn read_supervisor(mut table: Reader<'_>, daemon: &Daemon, listeners: &[Listener]) -> Supervisor {
    let mut supervisor = Supervisor {
        socket: PathBuf::new(),
        state_dir: PathBuf::new(),
        admins: Vec::new(),
        metrics: None,
        restart_first: RESTART_FIRST,
        restart_most: RESTART_MOST,
    };
    if !table.is_there() {
        table.wrong("there is no [supervisor]", "add it, with socket and state_dir");
        return supervisor;
    }
    if let Some(item) =
        table.need("socket", "socket = \"/run/kv/handoff.sock\", where the verbs find it")
    {
        let socket = item.parse("a path", "\"/run/kv/handoff.sock\"", values::control_path);
        supervisor.socket = socket.unwrap_or_default();
        if same_path(&supervisor.socket, &daemon.control) {
            item.wrong("is the daemon's control path", "give each its own path");
        }
        let at = Address::Unix { path: supervisor.socket.clone(), mode: MODE };
        if let Some(listener) = listeners.iter().find(|l| same(&l.address, &at)) {
            let what = format!("is where the listener {:?} is", listener.name);
            item.wrong(what, "give each its own path");
        }
    }
    if let Some(item) =
        table.need("state_dir", "state_dir = \"/var/lib/handoff/kv\", for journal and history")
    {
        supervisor.state_dir = path(&item, "\"/var/lib/handoff/kv\"").unwrap_or_default();
        if same_path(&supervisor.state_dir, &daemon.data_dir) {
            item.wrong("is the daemon's data_dir", "give the supervisor a directory of its own");
        }
    }
    if let Some(item) = table.take("admins") {
        let users = item.elements("an array of users", "[\"deploy\"]");
        supervisor.admins = users.iter().filter_map(user).collect();
    }
    supervisor.metrics = table.take("metrics").and_then(|item| {
        let address = item.parse("an address", "\"127.0.0.1:9100\"", values::address)?;
        let metrics = Address::Tcp(address);
        if let Some(listener) = listeners.iter().find(|l| same(&l.address, &metrics)) {
            let what = format!("is where the listener {:?} is", listener.name);
            item.wrong(what, "give each its own address");
        }
        Some(address)
    });
    let first = time(&mut table, "restart_first", "\"100ms\"");
    let most = time(&mut table, "restart_most", "\"30s\"");
    supervisor.restart_first = first.unwrap_or(RESTART_FIRST);
    supervisor.restart_most = most.unwrap_or(RESTART_MOST);
    if supervisor.restart_first > supervisor.restart_most {
        let (first_text, most_text) = (
            humantime::format_duration(supervisor.restart_first),
            humantime::format_duration(supervisor.restart_most),
        );
        let key = if first.is_some() { "restart_first" } else { "restart_most" };
        let line = table.line_of(key);
        table.wrong_at(
            line,
            format!("restart_first ({first_text}) is longer than restart_most ({most_text})"),
            "set restart_most to the longer of the two",
        );
    }
    table.finish();
    supervisor
}

fn time(table: &mut Reader<'_>, key: &'static str, example: &str) -> Option<Duration> {
    table.take(key)?.parse("a time", example, values::time)
}

fn path(item: &Item<'_>, example: &str) -> Option<PathBuf> {
    item.parse("a path", example, values::path)
}

fn binary(item: &Item<'_>) -> Option<PathBuf> {
    item.parse("a path", "\"/usr/local/bin/kv\"", |text| {
        if text.trim().contains(' ') && !text.starts_with('~') && text.contains(" -") {
            let what = format!("must be the binary alone, not {text:?}");
            return Err(Fault::new(what, "move what follows it to args = [\"…\"]"));
        }
        let path = values::path(text)?;
        if text.ends_with('/') {
            let what = format!("must be a file, not {text:?}");
            return Err(Fault::new(what, "end the path with the name of the binary"));
        }
        Ok(path)
    })
}

/// By name, or by number with or without quotes.
fn user(item: &Item<'_>) -> Option<User> {
    match item.digits() {
        Some(digits) => {
            values::user(digits).map_err(|Fault { what, remedy }| item.wrong(what, remedy)).ok()
        }
        None => item.parse("a user", "\"kv\"", values::user),
    }
}

fn same(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) | (Address::Udp(one), Address::Udp(other)) => {
            one == other && one.port() != 0
        }
        (Address::Unix { path: one, .. }, Address::Unix { path: other, .. }) => {
            same_path(one, other)
        }
        _ => false,
    }
}

/// As they are written: links are not followed.
fn same_path(one: &Path, other: &Path) -> bool {
    let plain = |path: &Path| -> PathBuf {
        path.components().filter(|part| !matches!(part, Component::CurDir)).collect()
    };
    !one.as_os_str().is_empty() && plain(one) == plain(other)
}

#[cfg(test)]
mod tests;

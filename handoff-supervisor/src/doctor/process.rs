//! The processes: with what environment, from which binary, with how many open files.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use procfs::process::{LimitValue, Process};

use super::Patient;
use super::page::Line;
use crate::client::text::quoted;

/// Whether anything is left in the daemon's environment that was meant for another process (R13).
pub(super) fn environment(patient: &Patient) -> Vec<Line> {
    const ABOUT: &str = "environment";
    let Some(pid) = patient.daemon() else { return Vec::new() };
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(bytes) => {
            let left = leftover(&bytes, pid);
            if left.is_empty() {
                let text = format!("pid {pid} has nothing in its environment that is not its own");
                return vec![Line::good(ABOUT, text)];
            }
            vec![Line::warn(
                ABOUT,
                format!("pid {pid} has in its environment: {}", left.join(", ")),
                "have its wrapper or shell not set them; what it starts would take them for its own",
            )]
        }
        Err(error) => unseen(ABOUT, pid, "environment", &error),
    }
}

/// Variables of service managers that speak to another process than `pid`.
fn leftover(environ: &[u8], pid: u32) -> Vec<String> {
    let variables = environ.split(|byte| *byte == 0).filter_map(|variable| {
        let at = variable.iter().position(|byte| *byte == b'=')?;
        Some((String::from_utf8_lossy(&variable[..at]), &variable[at + 1..]))
    });
    let meant_for_others = |name: &str, value: &[u8]| match name {
        "LISTEN_PID" | "WATCHDOG_PID" => value != pid.to_string().as_bytes(),
        "NOTIFY_SOCKET" | "WATCHDOG_USEC" => true,
        _ => false,
    };
    variables
        .filter(|(name, value)| meant_for_others(name, value))
        .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value)))
        .collect()
}

/// Whether what a restart starts is what runs.
pub(super) fn binary(patient: &Patient) -> Vec<Line> {
    const ABOUT: &str = "binary";
    let Some(pid) = patient.daemon() else { return Vec::new() };
    let (link, exe) = match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(link) => (link, format!("/proc/{pid}/exe")),
        Err(error) => return unseen(ABOUT, pid, "binary", &error),
    };
    let place = without_deleted(&link);
    let id = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let (runs, there) = (id(Path::new(&exe)), id(&place));
    let shown = place.display();
    vec![match (runs, there) {
        (Ok(runs), Ok(there)) if runs == there => {
            Line::good(ABOUT, format!("pid {pid} runs {shown} as it is on disk"))
        }
        (_, Ok(_)) => Line::warn(
            ABOUT,
            format!("{shown} was replaced since pid {pid} was started from it"),
            "`handoff swap` has the new one serve; a restart after a crash would do so untried",
        ),
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => Line::fail(
            ABOUT,
            format!("{shown}, from which pid {pid} was started, is gone"),
            format!(
                "put it back, so that a daemon that ends can be started again: {}",
                quoted(&place)
            ),
        ),
        (_, Err(error)) => {
            Line::warn(ABOUT, format!("{shown} cannot be looked at: {error}"), "run this as root")
        }
    }]
}

/// The path that a process was started from: the kernel marks one that leads there no more.
fn without_deleted(link: &Path) -> PathBuf {
    let bytes = link.as_os_str().as_bytes();
    let place = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    OsString::from(OsStr::from_bytes(place)).into()
}

/// How near both processes are to their limits of open files.
pub(super) fn open_files(patient: &Patient) -> Vec<Line> {
    const ABOUT: &str = "limits";
    let both = [("the daemon", patient.daemon()), ("the supervisor", patient.boss())];
    let mut lines = Vec::new();
    for (who, pid) in both.into_iter().filter_map(|(who, pid)| Some((who, pid?))) {
        let Some(process) = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()) else {
            continue;
        };
        let (Ok(limits), Ok(open)) = (process.limits(), process.fd_count()) else {
            let denied = io::ErrorKind::PermissionDenied.into();
            lines.extend(unseen(ABOUT, pid, "open files", &denied));
            continue;
        };
        let limit = |value: LimitValue| match value {
            LimitValue::Unlimited => u64::MAX,
            LimitValue::Value(value) => value,
        };
        let most = limits.max_open_files;
        let most = (limit(most.soft_limit), limit(most.hard_limit));
        lines.push(judge_open_files(who, pid, open as u64, most));
    }
    lines
}

fn judge_open_files(who: &str, pid: u32, open: u64, (soft, hard): (u64, u64)) -> Line {
    const ABOUT: &str = "limits";
    if soft == u64::MAX {
        return Line::good(
            ABOUT,
            format!("{who} (pid {pid}) has {open} files open, of any number"),
        );
    }
    let text = format!("{who} (pid {pid}) has {open} of at most {soft} files open");
    let raise = if hard > soft {
        format!("it may raise that itself, to {hard}; or set LimitNOFILE= in its unit")
    } else {
        "set LimitNOFILE= in its unit, or `ulimit -n` where it is started".to_owned()
    };
    match open.saturating_mul(10) {
        // With no descriptor left, no connection is accepted.
        tenfold if tenfold >= soft.saturating_mul(9) => Line::fail(ABOUT, text, raise),
        tenfold if tenfold >= soft.saturating_mul(6) => Line::warn(ABOUT, text, raise),
        _ => Line::good(ABOUT, text),
    }
}

fn unseen(about: &'static str, pid: u32, what: &str, error: &io::Error) -> Vec<Line> {
    match error.kind() {
        io::ErrorKind::PermissionDenied => vec![Line::warn(
            about,
            format!("this user may not see the {what} of pid {pid}"),
            "run this as root or as the daemon's user",
        )],
        // It ended meanwhile, which others tell of.
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::page::Level;

    #[test]
    fn variables_of_another_process_are_found() {
        let environ = b"PATH=/bin\0LISTEN_PID=7\0LISTEN_FDS=1\0NOTIFY_SOCKET=/run/n\0X\0";
        assert_eq!(leftover(environ, 7), ["NOTIFY_SOCKET=/run/n"]);
        assert_eq!(leftover(environ, 8), ["LISTEN_PID=7", "NOTIFY_SOCKET=/run/n"]);
        assert_eq!(leftover(b"", 8), [""; 0]);
    }

    #[test]
    fn a_binary_that_was_removed_is_named_as_it_was() {
        assert_eq!(without_deleted(Path::new("/opt/kv (deleted)")), Path::new("/opt/kv"));
        assert_eq!(without_deleted(Path::new("/opt/kv")), Path::new("/opt/kv"));
    }

    #[test]
    fn few_descriptors_left_are_told() {
        let level = |open, most| judge_open_files("the daemon", 7, open, most).level;
        assert_eq!(level(10, (1024, 4096)), Level::Good);
        assert_eq!(level(700, (1024, 4096)), Level::Warn);
        assert_eq!(level(1000, (1024, 1024)), Level::Fail);
        assert_eq!(level(1_000_000, (u64::MAX, u64::MAX)), Level::Good);
        let told = judge_open_files("the daemon", 7, 1000, (1024, 4096));
        assert_eq!(told.text, "the daemon (pid 7) has 1000 of at most 1024 files open");
        assert!(told.remedy.unwrap().contains("to 4096"));
    }
}

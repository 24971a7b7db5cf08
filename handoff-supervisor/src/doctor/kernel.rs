//! What the kernel allows and has counted: backlogs, dropped connections, taking a descriptor from a process.

use std::fs;
use std::time::Duration;

use procfs::process::Process;

use super::Patient;
use super::page::Line;
use crate::admin::{Entry, Listener};

/// The bit of a capability set that lets a process take descriptors from others (capabilities(7)).
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// Whether as many connections can wait as come while nobody accepts (I4).
pub(super) fn backlogs(patient: &Patient) -> Vec<Line> {
    let Ok(status) = &patient.status else { return Vec::new() };
    let most = number("/proc/sys/net/core/somaxconn").unwrap_or(4096);
    let waits = status.listeners.iter().filter(|listener| listener.kind != "udp");
    waits.map(|listener| backlog(listener, most, &patient.history)).collect()
}

/// The most connections a second that a listener saw in a handoff, how long nobody accepted at most, and how
/// many waited.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Seen {
    rate: f64,
    gap: Duration,
    waited: u32,
}

impl Seen {
    fn of(name: &str, history: &[Entry]) -> Self {
        let mut seen = Self::default();
        for entry in history {
            let gap = Duration::from_millis(entry.unavailable_ms.unwrap_or_default());
            let waited = entry.waiting_max.get(name).copied().unwrap_or_default();
            seen.gap = seen.gap.max(gap);
            seen.waited = seen.waited.max(waited);
            // In less than a millisecond a few say nothing of many.
            if !gap.is_zero() {
                seen.rate = seen.rate.max(f64::from(waited) / gap.as_secs_f64());
            }
        }
        seen
    }

    /// How many would wait at the highest rate in the longest gap.
    fn need(&self) -> u32 {
        let product = (self.rate * self.gap.as_secs_f64()).ceil();
        (product.min(f64::from(u32::MAX)) as u32).max(self.waited)
    }
}

fn backlog(listener: &Listener, most: u32, history: &[Entry]) -> Line {
    const ABOUT: &str = "backlog";
    let name = &listener.name;
    let asked = listener.backlog.unwrap_or(most);
    let holds = asked.min(most);
    let seen = Seen::of(name, history);
    let need = seen.need();
    let raise = |to: u32| {
        let to = to.max(1024).checked_next_power_of_two().unwrap_or(u32::MAX);
        if to > most {
            format!(
                "sysctl -w net.core.somaxconn={to}, set backlog = {to}, and restart the supervisor"
            )
        } else {
            format!("set backlog = {to} for it, and restart the supervisor")
        }
    };
    if let Some(waiting) = listener.waiting.filter(|waiting| *waiting > holds / 2) {
        return Line::warn(
            ABOUT,
            format!("{name}: {waiting} of {holds} connections wait now: it is slow to accept"),
            "see what the daemon is busy with; a full queue turns clients away",
        );
    }
    let told = format!(
        "{:.0} connections/s for {} ms would be {need}",
        seen.rate.ceil(),
        seen.gap.as_millis()
    );
    if need > holds {
        let text = format!("{name}: {holds} connections can wait, and {told}");
        return Line::fail(ABOUT, text, raise(need.saturating_mul(2)));
    }
    if need > holds / 2 {
        let text = format!("{name}: {holds} connections can wait, and {told}: that is near");
        return Line::warn(ABOUT, text, raise(need.saturating_mul(2)));
    }
    if asked > most {
        return Line::warn(
            ABOUT,
            format!("{name}: its backlog is {asked}, but the system allows {most}"),
            format!("sysctl -w net.core.somaxconn={asked}, and restart the supervisor"),
        );
    }
    let text = if seen.gap.is_zero() {
        format!("{name}: {holds} connections can wait; no handoff has shown yet how many do")
    } else if seen.rate > 0.0 {
        let seconds = f64::from(holds) / seen.rate;
        format!(
            "{name}: {holds} connections can wait, enough for {seconds:.1} s at {:.0}/s; nobody \
             accepted for {} ms at most",
            seen.rate.ceil(),
            seen.gap.as_millis()
        )
    } else {
        format!("{name}: {holds} connections can wait; none did in the handoffs so far")
    };
    Line::good(ABOUT, text)
}

/// Connections that found a queue full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Drops {
    /// The queue of a listener was full.
    overflows: u64,
    /// These, and those dropped for another reason.
    drops: u64,
}

impl Drops {
    /// As they are counted now, in this process's network.
    pub(super) fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/net/netstat").ok()?)
    }

    /// `TcpExt:` and names, and in the next line `TcpExt:` and their numbers.
    fn parse(netstat: &str) -> Option<Self> {
        let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let (names, numbers) = (lines.next()?, lines.next()?);
        let value = |wanted: &str| {
            let place = names.split_ascii_whitespace().position(|name| name == wanted)?;
            numbers.split_ascii_whitespace().nth(place)?.parse().ok()
        };
        Some(Self { overflows: value("ListenOverflows")?, drops: value("ListenDrops")? })
    }
}

/// Whether connections were dropped, and are.
pub(super) fn drops(patient: &Patient) -> Option<Line> {
    judge_drops(patient.drops?, Drops::now()?)
}

fn judge_drops(before: Drops, now: Drops) -> Option<Line> {
    const ABOUT: &str = "overflows";
    let again = "`nstat -az TcpExtListenOverflows` tells whether it grows, `ss -lt` where; raise that backlog";
    Some(if now.overflows > before.overflows {
        let more = now.overflows - before.overflows;
        let text = format!(
            "{more} connections were dropped just now, at a full queue of some listener here"
        );
        // It may be anybody's.
        Line::warn(ABOUT, text, again)
    } else if now.overflows > 0 {
        let text = format!(
            "{} connections were dropped since boot, at a full queue of some listener here",
            now.overflows
        );
        Line::warn(ABOUT, text, again)
    } else if now.drops > 0 {
        let text = format!("{} connections were dropped since boot, at no full queue", now.drops);
        Line::warn(
            ABOUT,
            text,
            "the kernel was short of memory, or a filter refused them: see `dmesg`",
        )
    } else {
        Line::good(ABOUT, "no connection was dropped at a full queue since boot")
    })
}

/// Whether a supervisor that is restarted after a crash gets the listeners back from the daemon (R10).
pub(super) fn ptrace(patient: &Patient) -> Option<Line> {
    let status = patient.status.as_ref().ok()?;
    let process = Process::new(i32::try_from(status.supervisor.pid).ok()?).ok()?;
    let capable = process.status().ok()?.capeff & CAP_SYS_PTRACE != 0;
    let keeps = patient.unit.as_ref().is_some_and(|unit| unit.keeps(status.listeners.len()));
    let scope = number("/proc/sys/kernel/yama/ptrace_scope");
    let other_user = patient.config.as_ref().is_some_and(|config| {
        config
            .daemon
            .user
            .as_ref()
            .is_some_and(|user| process.uid().is_ok_and(|uid| uid != user.uid))
    });
    Some(judge_ptrace(scope, capable, other_user, keeps))
}

fn judge_ptrace(scope: Option<u32>, capable: bool, other_user: bool, keeps: bool) -> Line {
    const ABOUT: &str = "ptrace";
    if keeps {
        return Line::good(ABOUT, "systemd keeps the listeners if the supervisor crashes");
    }
    let may = match scope.unwrap_or(0) {
        0 => capable || !other_user,
        1 | 2 => capable,
        _ => false,
    };
    if may {
        let text = "after a crash the supervisor can take the listeners back from the daemon";
        return Line::good(ABOUT, text);
    }
    let why = match scope {
        Some(scope @ 1..) => format!("kernel.yama.ptrace_scope is {scope}"),
        _ => "the daemon is of another user".to_owned(),
    };
    Line::warn(
        ABOUT,
        format!("after a crash the supervisor cannot take the listeners from the daemon: {why}"),
        "have systemd keep them (FileDescriptorStoreMax=), or give it CAP_SYS_PTRACE",
    )
}

fn number(file: &str) -> Option<u32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::page::Level;

    fn listener(backlog: Option<u32>, waiting: u32) -> Listener {
        Listener { name: "http".into(), backlog, waiting: Some(waiting), ..Listener::default() }
    }

    fn entry(waited: u32, gap_ms: u64) -> Entry {
        let waiting_max = [("http".to_owned(), waited)].into();
        Entry { waiting_max, unavailable_ms: Some(gap_ms), ..Entry::default() }
    }

    #[test]
    fn a_backlog_must_hold_the_rate_times_the_gap() {
        let told = |line: Line| (line.level, line.text, line.remedy.unwrap_or_default());
        let judge =
            |backlog_, history: &[Entry]| told(backlog(&listener(backlog_, 0), 4096, history));
        assert_eq!(
            judge(None, &[]).1,
            "http: 4096 connections can wait; no handoff has shown yet how many do"
        );
        let (level, text, _) = judge(Some(1024), &[entry(100, 500), entry(10, 1000)]);
        assert_eq!(level, Level::Good);
        assert_eq!(
            text,
            "http: 1024 connections can wait, enough for 5.1 s at 200/s; nobody accepted for 1000 ms at \
             most"
        );
        // The busiest of the swaps, as long as the longest of them.
        let (level, text, remedy) = judge(Some(300), &[entry(100, 500), entry(10, 1000)]);
        assert_eq!(level, Level::Warn);
        assert!(
            text.ends_with("200 connections/s for 1000 ms would be 200: that is near"),
            "{text}"
        );
        assert_eq!(remedy, "set backlog = 1024 for it, and restart the supervisor");
        let (level, _, remedy) = judge(None, &[entry(4000, 100), entry(0, 1000)]);
        assert_eq!(level, Level::Fail);
        assert!(remedy.starts_with("sysctl -w net.core.somaxconn=131072, set "), "{remedy}");
        assert_eq!(judge(None, &[entry(0, 10)]).0, Level::Good);
    }

    #[test]
    fn a_backlog_beyond_what_the_system_allows_and_a_queue_that_is_full() {
        let line = backlog(&listener(Some(8192), 0), 4096, &[]);
        assert_eq!(line.level, Level::Warn);
        assert_eq!(line.text, "http: its backlog is 8192, but the system allows 4096");
        let line = backlog(&listener(None, 4000), 4096, &[]);
        assert!(line.text.starts_with("http: 4000 of 4096 connections wait now"), "{}", line.text);
    }

    #[test]
    fn counters_are_found_by_their_names() {
        let netstat = "\
TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPX
TcpExt: 1 22 33 4
IpExt: ListenOverflows
IpExt: 5
";
        let found = Drops::parse(netstat).unwrap();
        assert_eq!(found, Drops { overflows: 22, drops: 33 });
        assert_eq!(Drops::parse("TcpExt: a\nTcpExt: 1\n"), None);
        assert_eq!(Drops::parse(""), None);
        assert!(Drops::now().is_some());

        let none = Drops { overflows: 0, drops: 0 };
        let level = |before, now| judge_drops(before, now).unwrap().level;
        assert_eq!(level(none, none), Level::Good);
        assert_eq!(level(found, found), Level::Warn);
        assert_eq!(level(none, found), Level::Warn);
        assert_eq!(level(none, Drops { drops: 1, ..none }), Level::Warn);
    }

    #[test]
    fn taking_listeners_back_needs_a_scope_or_a_capability() {
        let good = |scope, capable, other, keeps| {
            judge_ptrace(scope, capable, other, keeps).level == Level::Good
        };
        assert!(good(None, false, false, false));
        assert!(good(Some(0), false, false, false));
        assert!(!good(Some(0), false, true, false));
        assert!(!good(Some(1), false, false, false));
        assert!(good(Some(1), true, true, false));
        assert!(good(Some(2), true, false, false));
        assert!(!good(Some(3), true, false, false));
        assert!(good(Some(3), false, false, true), "systemd has them");
    }
}

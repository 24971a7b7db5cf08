//! `status`: who serves, what is under way, what happened last.

use std::process::ExitCode;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use console::{Term, truncate_str};

use super::text::{self, Column, Paint, Sheet, bar, clean, now, path, span, table, time};
use super::wire::{Heard, Link, Trouble, printed};
use crate::admin::{Entry, Flight, Listener, Reply, Request, Status};
use crate::cli::Which;
use crate::exit;

/// How often what is shown of a watch counts on by itself.
const TICK: Duration = Duration::from_secs(1);
/// How wide a bar is.
const BAR: usize = 30;

/// Runs the verb.
pub(super) fn run(which: &Which, watch: bool) -> Result<ExitCode, Trouble> {
    let mut link = Link::open(which)?;
    let Reply::Status(status) = link.question(&Request::Status { watch })? else {
        return Err(link.beside());
    };
    if watch {
        return watched(which, link, *status);
    }
    if which.json {
        text::json(&status);
        return Ok(exit::OK.into());
    }
    printed(&page(&status, now(), Paint::of_stdout()))
}

/// Asks once.
pub(super) fn ask(which: &Which) -> Result<Status, Trouble> {
    let mut link = Link::open(which)?;
    match link.question(&Request::Status { watch: false })? {
        Reply::Status(status) => Ok(*status),
        _ => Err(link.beside()),
    }
}

fn watched(which: &Which, link: Link, first: Status) -> Result<ExitCode, Trouble> {
    link.be_patient()?;
    let (beside, gone) = (link.beside(), link.gone());
    let heard = link.listen(false)?;
    let mut screen = Screen::new(which.json);
    let (mut status, mut at) = (first, Instant::now());
    let mut fresh = true;
    loop {
        if !screen.show(&status, at.elapsed(), fresh) {
            return Ok(exit::OK.into());
        }
        fresh = true;
        match heard.recv_timeout(TICK) {
            Ok(Heard::Reply(Ok(Some(Reply::Status(next))))) => {
                (status, at) = (*next, Instant::now())
            }
            Ok(Heard::Reply(Ok(Some(Reply::Refused(refusal))))) => return Err(refusal.into()),
            Ok(Heard::Reply(Ok(Some(_)))) => return Err(beside),
            Ok(Heard::Reply(Err(trouble))) => return Err(trouble),
            Err(RecvTimeoutError::Timeout) => fresh = false,
            Ok(Heard::Signal(_) | Heard::Reply(Ok(None))) | Err(RecvTimeoutError::Disconnected) => {
                return Err(gone);
            }
        }
    }
}

/// Where a watch is shown.
struct Screen {
    term: Term,
    json: bool,
    /// How many lines of a terminal are to be written anew.
    lines: usize,
    /// The line that was written last where there is no terminal.
    last: String,
}

impl Screen {
    fn new(json: bool) -> Self {
        Self { term: Term::buffered_stdout(), json, lines: 0, last: String::new() }
    }

    /// Whether somebody still looks. `fresh` is a status that has not been shown.
    fn show(&mut self, status: &Status, age: Duration, fresh: bool) -> bool {
        if self.json {
            return !fresh || text::json(status);
        }
        if !self.term.is_term() {
            let line = line(status);
            if !fresh || line == self.last {
                return true;
            }
            let shown = text::out(&format!("{} {line}\n", time(now())));
            self.last = line;
            return shown;
        }
        let page = page(&aged(status, age), now(), Paint::of_stdout());
        self.redraw(&page).is_ok()
    }

    /// No more than fits, since lines that scroll out of sight cannot be written anew.
    fn redraw(&mut self, page: &str) -> std::io::Result<()> {
        let (height, width) = self.term.size();
        self.term.clear_last_lines(self.lines)?;
        self.lines = 0;
        for line in page.lines().take(usize::from(height).saturating_sub(1)) {
            self.term.write_line(&truncate_str(line, width.into(), "…"))?;
            self.lines += 1;
        }
        self.term.flush()
    }
}

/// A status some time after it was told.
fn aged(status: &Status, age: Duration) -> Status {
    let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let mut status = status.clone();
    if let Some(flight) = &mut status.flight {
        flight.elapsed_ms = flight.elapsed_ms.saturating_add(age);
        flight.phase_ms = flight.phase_ms.saturating_add(age);
        flight.left_ms = flight.left_ms.map(|left| left.saturating_sub(age));
    }
    if let Some(probation) = &mut status.probation {
        probation.left_ms = probation.left_ms.saturating_sub(age);
    }
    status
}

/// All of it, for people, as it is at `now`.
fn page(status: &Status, now: u64, paint: Paint) -> String {
    let mut sheet = Sheet::default();
    let since = |at: u64| format!("since {}, for {}", time(at), span(now.saturating_sub(at)));
    match &status.serving {
        Some(serving) => {
            let health = match serving.healthy {
                Some(true) => format!(", {}", paint.good("healthy")),
                Some(false) => format!(", {}", paint.bad("unhealthy")),
                None => String::new(),
            };
            let who = format!("pid {}, generation {}{health}", serving.pid, serving.generation);
            sheet.field("serving", &who);
            sheet.field("", &since(serving.since_at));
            if !serving.build_id.is_empty() {
                sheet.field("", &format!("build {}", clean(&serving.build_id)));
            }
            if let Some(binary) = &serving.binary {
                sheet.field("", &path(binary));
            }
        }
        None => sheet.field("serving", &paint.bad("nobody is known to serve")),
    }
    let activity = activity(&status.activity, paint);
    let detail = status.detail.as_deref().map(|detail| format!(": {}", clean(detail)));
    sheet.field("activity", &(activity + &detail.unwrap_or_default()));
    let boss = &status.supervisor;
    sheet.field("supervisor", &format!("pid {}, handoff {}", boss.pid, clean(&boss.version)));
    sheet.field("", &since(boss.since_at));
    sheet.field("", &path(&boss.config));
    if let Some(flight) = &status.flight {
        sheet.gap();
        under_way(&mut sheet, flight, paint);
    }
    if let Some(probation) = &status.probation {
        sheet.gap();
        let left = paint.warn(&span(probation.left_ms));
        sheet.field("probation", &format!("for {left} more; if the daemon fails, back to"));
        sheet.field("", &path(&probation.previous));
    }
    if !status.listeners.is_empty() {
        sheet.gap();
        sheet.0 += &listeners(&status.listeners, paint);
    }
    if status.previous.is_some() || status.last.is_some() {
        sheet.gap();
    }
    if let Some(previous) = &status.previous {
        sheet.field("previous", &path(previous));
    }
    if let Some(last) = &status.last {
        sheet.field("last", &what_happened(last, now, paint));
        if let Some(trouble) = trouble(last) {
            sheet.field("", &trouble);
        }
    }
    sheet.0
}

fn under_way(sheet: &mut Sheet, flight: &Flight, paint: Paint) {
    let what = if flight.dry_run { "dry run" } else { "handoff" };
    sheet.field(what, &format!("{}, for {}", clean(&flight.id), span(flight.elapsed_ms)));
    sheet.field("", &format!("to {}", path(&flight.binary)));
    if let Some(reason) = &flight.reason {
        sheet.field("", &format!("because: {}", clean(reason)));
    }
    let left = flight.left_ms.map(|left| format!(", {} left", span(left)));
    let phase = paint.warn(&clean(&flight.phase));
    let phase = format!("{phase}, for {}{}", span(flight.phase_ms), left.unwrap_or_default());
    sheet.field("phase", &phase);
    sheet.field("", what_it_means(&flight.phase));
    if let Some((sealed, all)) = flight.shards {
        let bar = bar(sealed, all, BAR);
        sheet.field("", &format!("{bar} {sealed} of {all} shards sealed"));
    }
    if let Some(open) = flight.open_connections {
        sheet.field("", &format!("{} still open when the drain ended", connections(open)));
    }
}

/// What is done in a phase, and by whom.
pub(super) fn what_it_means(phase: &str) -> &'static str {
    match phase {
        "warm" => "the new daemon warms up, the old one serves",
        "drain" => "the old daemon finishes its requests",
        "seal" => "the old daemon closes its data",
        "open" => "the new daemon opens the data",
        "commit" => "the new daemon takes over for good",
        "rollback" => "the old daemon takes its data back",
        "promote" => "the old daemon is gone, the new one goes on",
        _ => "",
    }
}

pub(super) fn connections(count: u32) -> String {
    if count == 1 { "1 connection".to_owned() } else { format!("{count} connections") }
}

fn activity(word: &str, paint: Paint) -> String {
    match word {
        "serving" => paint.good(word),
        "backoff" => paint.bad(word),
        _ => paint.warn(&clean(word)),
    }
}

fn listeners(list: &[Listener], paint: Paint) -> String {
    let column = |head, most| Column { head, most, right: false };
    let columns = [
        column("LISTENER", 16),
        column("KIND", 4),
        column("ADDRESS", 26),
        Column { head: "WAITING", most: 15, right: true },
        column("ORIGIN", 8),
    ];
    let row = |listener: &Listener| {
        let waiting = match (listener.waiting, listener.backlog) {
            (Some(waiting), Some(backlog)) => {
                let text = format!("{waiting}/{backlog}");
                match waiting {
                    waiting if waiting >= backlog => paint.bad(&text),
                    waiting if waiting >= backlog / 2 => paint.warn(&text),
                    _ => text,
                }
            }
            (Some(waiting), None) => waiting.to_string(),
            (None, Some(backlog)) => format!("?/{backlog}"),
            (None, None) => "-".to_owned(),
        };
        let [name, kind, address, origin] =
            [&listener.name, &listener.kind, &listener.address, &listener.origin]
                .map(|text| clean(text));
        vec![name, kind, address, waiting, origin]
    };
    table(&columns, &list.iter().map(row).collect::<Vec<_>>())
}

/// An entry in a sentence.
fn what_happened(entry: &Entry, now: u64, paint: Paint) -> String {
    let mut text = clean(&entry.kind);
    if let Some(verdict) = &entry.verdict {
        text = format!("{text} {}", result(verdict, paint));
    }
    text = format!("{text}, {} ago", span(now.saturating_sub(entry.at)));
    if let Some(took) = entry.took_ms {
        text = format!("{text}, took {}", span(took));
    }
    text
}

/// A verdict in words.
pub(super) fn result(verdict: &str, paint: Paint) -> String {
    match verdict {
        "committed" => paint.good("committed"),
        "dry_run" => "dry run".to_owned(),
        "rolled_back" => paint.warn("rolled back"),
        "refused" => paint.warn("refused"),
        _ => paint.bad(&clean(verdict)),
    }
}

/// What went wrong, or else what there is to say.
pub(super) fn trouble(entry: &Entry) -> Option<String> {
    match (&entry.code, &entry.detail) {
        (Some(code), Some(detail)) => Some(format!("{}: {}", clean(code), clean(detail))),
        (one, other) => one.as_ref().or(other.as_ref()).map(|text| clean(text)),
    }
}

/// A status as one line of a log: what changes by itself is left out.
fn line(status: &Status) -> String {
    let mut line = clean(&status.activity);
    if let Some(flight) = &status.flight {
        line = format!("{line} {}", clean(&flight.phase));
        if let Some((sealed, all)) = flight.shards {
            line = format!("{line} {sealed}/{all} shards");
        }
    }
    match &status.serving {
        Some(serving) => {
            let health = match serving.healthy {
                Some(true) => ", healthy",
                Some(false) => ", unhealthy",
                None => "",
            };
            let (pid, generation) = (serving.pid, serving.generation);
            line = format!("{line}; pid {pid}, generation {generation}{health}");
        }
        None => line += "; nobody serves",
    }
    if status.probation.is_some() {
        line += ", on probation";
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{Boss, Probation, Serving};

    const NOW: u64 = 1_700_000_000_000;

    fn full() -> Status {
        let binary = |version: &str| format!("/opt/kv/releases/{version}/bin/kv").into();
        Status {
            supervisor: Boss {
                pid: 1201,
                version: "0.1.0".into(),
                since_at: NOW - 1_051_200_000,
                config: "/etc/handoff.toml".into(),
            },
            serving: Some(Serving {
                pid: 4_194_303,
                build_id: "1.4.2+g3f2a9c1".into(),
                binary: Some(binary("1.4.2")),
                since_at: NOW - 273_600_000,
                generation: 7,
                healthy: Some(true),
            }),
            activity: "handoff".into(),
            detail: Some(
                "to build 1.5.0 because the operator asked for it, and one more word".into(),
            ),
            flight: Some(Flight {
                id: "0f8e2a6c-4b7c-4e0a-9d61-5f0e1c2d3b4a".into(),
                binary: binary("1.5.0"),
                dry_run: false,
                phase: "seal".into(),
                elapsed_ms: 12_340,
                phase_ms: 1_210,
                left_ms: Some(28_790),
                shards: Some((12, 32)),
                open_connections: Some(3),
                reason: Some("the fix for the cache".into()),
            }),
            listeners: vec![
                Listener {
                    name: "http".into(),
                    kind: "tcp".into(),
                    address: "127.0.0.1:8080".into(),
                    backlog: Some(4096),
                    waiting: Some(4096),
                    origin: "bound".into(),
                },
                Listener {
                    name: "a-listener-with-a-long-name".into(),
                    kind: "unix".into(),
                    address: "/run/kv/instances/production/eu-central-1/sockets/public/kv.sock"
                        .into(),
                    backlog: Some(128),
                    waiting: Some(0),
                    origin: "fdstore".into(),
                },
                Listener { name: "stats".into(), kind: "udp".into(), ..Listener::default() },
            ],
            probation: Some(Probation { left_ms: 24_000, previous: binary("1.4.1") }),
            previous: Some(binary("1.4.1")),
            last: Some(Entry {
                kind: "swap".into(),
                at: NOW - 60_000,
                verdict: Some("rolled_back".into()),
                code: Some("successor_exited".into()),
                detail: Some(
                    "the successor (pid 77) ended before its Hello with exit code 3".into(),
                ),
                took_ms: Some(812),
                ..Entry::default()
            }),
        }
    }

    fn fits(text: &str) {
        let width = |line: &str| console::measure_text_width(line);
        assert!(text.lines().all(|line| width(line) <= 80), "{text}");
        assert!(text.lines().all(|line| line.trim_end() == line), "{text}");
    }

    #[test]
    fn a_status_is_told_in_80_columns() {
        let page = page(&full(), NOW, Paint(false));
        fits(&page);
        let phrases = [
            "serving      pid 4194303, generation 7, healthy",
            "for 3d 4h",
            "phase        seal, for 1.2 s, 28.7 s left",
            "███████████░░░░░░░░░░░░░░░░░░░ 12 of 32 shards sealed",
            "3 connections still open when the drain ended",
            "http      tcp   127.0.0.1:8080  4096/4096  bound",
            "probation    for 24.0 s more",
            "last         swap rolled back, 1m 0s ago, took 812 ms",
            "successor_exited: the successor (pid 77)",
        ];
        assert!(phrases.iter().all(|phrase| page.contains(phrase)), "{page}");
    }

    #[test]
    fn colour_changes_nothing_but_colour() {
        let coloured = page(&full(), NOW, Paint(true));
        fits(&coloured);
        assert!(coloured.contains('\u{1b}'));
        assert_eq!(console::strip_ansi_codes(&coloured), page(&full(), NOW, Paint(false)));
    }

    #[test]
    fn where_nobody_serves_it_says_so() {
        let status = Status { activity: "backoff".into(), ..Status::default() };
        assert!(
            page(&status, NOW, Paint(false)).starts_with("serving      nobody is known to serve\n")
        );
        assert_eq!(line(&status), "backoff; nobody serves");
    }

    #[test]
    fn a_line_of_a_watch_leaves_out_what_changes_by_itself() {
        let expected =
            "handoff seal 12/32 shards; pid 4194303, generation 7, healthy, on probation";
        assert_eq!(line(&full()), expected);
        assert_eq!(line(&aged(&full(), Duration::from_secs(1))), expected);
    }

    #[test]
    fn times_count_on_by_themselves() {
        let flight = aged(&full(), Duration::from_secs(30)).flight.unwrap();
        assert_eq!((flight.elapsed_ms, flight.phase_ms), (42_340, 31_210));
        assert_eq!(flight.left_ms, Some(0));
    }
}

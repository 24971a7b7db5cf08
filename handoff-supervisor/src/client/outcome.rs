//! How a handoff ended, for people.

use super::status::connections;
use super::text::{Again, Paint, Sheet, clean, paragraphs, path, span};
use crate::admin::{Ended, Entry};

/// The sentence; and where it went wrong, why, what the new daemon said last, and what to do.
pub(super) fn tell(ended: &Ended, again: &Again, paint: Paint) -> String {
    let entry = &ended.entry;
    let mut text = String::new();
    if ended.repeated {
        text += "This key was used before. How that handoff ended:\n";
    }
    text += &paragraphs(&sentence(entry, paint));
    let failed = entry.code.is_some() || entry.detail.is_some();
    let mut sheet = Sheet::default();
    if failed {
        sheet.gap();
        if let Some(code) = &entry.code {
            sheet.field("code", &clean(code));
        }
        if let Some(detail) = &entry.detail {
            sheet.field("detail", &clean(detail));
        }
        if let Some(binary) = &entry.binary {
            sheet.field("new binary", &path(binary));
        }
        if let Some(id) = &entry.id {
            sheet.field("handoff", &clean(id));
        }
    }
    waits(&mut sheet, entry);
    text += &sheet.0;
    if !ended.stderr.is_empty() {
        text += "\nThe last that the new daemon wrote to its standard error:\n";
        for line in &ended.stderr {
            text += &paragraphs(&format!("    {}", clean(line)));
        }
    }
    if let Some(remedy) = remedy(entry, again) {
        text += &format!("\n{}", paragraphs(&remedy));
    }
    text
}

fn sentence(entry: &Entry, paint: Paint) -> String {
    let from = entry.from.as_ref().map(|from| from.pid);
    let took = entry.took_ms.map_or("some time".to_owned(), span);
    let gap = match entry.unavailable_ms {
        Some(0) => ", and nobody accepted for less than 1 ms",
        Some(ms) => &format!(", and nobody accepted for {}", span(ms)),
        None => "",
    };
    let on = match entry.serving.or(from) {
        Some(pid) => format!("the old daemon (pid {pid}) serves on"),
        None => "the old daemon serves on".to_owned(),
    };
    let verdict = entry.verdict.as_deref().unwrap_or("unknown");
    match (verdict, entry.serving) {
        _ if entry.kind == "dry_run" || verdict == "dry_run" => match &entry.code {
            None => format!(
                "{}: the new binary started, warmed up and said Hello in {took}; {on}, untouched.",
                paint.good("Dry run passed")
            ),
            Some(_) => format!(
                "{}: the new binary did not get as far as its Hello, after {took}; {on}, untouched.",
                paint.bad("Dry run failed")
            ),
        },
        ("committed", Some(pid)) => {
            let place = from.map_or(String::new(), |from| format!(" in place of pid {from}"));
            format!("{}: pid {pid} serves{place}, after {took}{gap}.", paint.good("Committed"))
        }
        ("committed", None) => {
            format!("{}: the new daemon serves, after {took}{gap}.", paint.good("Committed"))
        }
        ("rolled_back", _) => format!("{}: {on}, after {took}{gap}.", paint.warn("Rolled back")),
        ("refused", _) => format!("{}: {on}, as if nothing had been asked.", paint.warn("Refused")),
        (_, Some(pid)) => format!(
            "{}: it is not known how the handoff ended, after {took}{gap}; pid {pid} was seen to \
             serve.",
            paint.bad("Unknown")
        ),
        (_, None) => format!(
            "{}: it is not known how the handoff ended, after {took}, and nobody was seen to serve.",
            paint.bad("Unknown")
        ),
    }
}

/// Who waited, if anybody did.
fn waits(sheet: &mut Sheet, entry: &Entry) {
    let waited = entry.waiting_max.iter().filter(|(_, most)| **most > 0);
    let waited: Vec<String> =
        waited.map(|(name, most)| format!("{} at {}", connections(*most), clean(name))).collect();
    if !waited.is_empty() {
        sheet.field("waited", &format!("at most {}", waited.join(", ")));
    }
    if let Some(open) = entry.open_connections.filter(|open| *open > 0) {
        sheet.field("open", &format!("{} when the drain ended", connections(open)));
    }
}

/// What to do next, where something went wrong.
fn remedy(entry: &Entry, again: &Again) -> Option<String> {
    let unknown = !matches!(
        entry.verdict.as_deref(),
        Some("committed" | "rolled_back" | "refused" | "dry_run")
    );
    if unknown {
        let (status, doctor) = (again.say("status"), again.say("doctor"));
        let text = format!(
            "Do not swap again before {status} says who serves. Where nobody does, {doctor} and the \
             daemon's log tell why."
        );
        return Some(text);
    }
    let retry = "it is safe to try again";
    Some(match entry.code.as_deref()? {
        "successor_exec_failed" => format!(
            "See that the file is there, is a program for this machine, and may be executed by the \
             daemon's user; {retry}."
        ),
        "successor_exited" => format!(
            "See why it ended above, or in its log. {} tries a binary out without touching the \
             daemon.",
            again.say("swap --dry-run")
        ),
        "successor_hello_timeout" => format!(
            "See in its log what it waits for. If it needs longer to warm up, raise `warm_up` in \
             the configuration; {retry}."
        ),
        "version_mismatch" | "protocol_violation" => "Old and new daemon do not understand each \
             other: see which versions of the handoff library they were built with."
            .to_owned(),
        "drain_timeout" => format!(
            "Requests took longer than the drain may. Try again when there are fewer, or with a \
             longer --drain-grace than the last; {retry}."
        ),
        "drain_failed" | "seal_failed" => format!(
            "The old daemon could not finish its requests or close its data: its log tells why. \
             Mend that first; then {retry}."
        ),
        "seal_timeout" | "ready_timeout" => format!(
            "If closing or opening the data takes that long, give it a longer --deadline; else its \
             log tells what it waited for; {retry}."
        ),
        "unhealthy" => {
            format!("The new daemon says that it is not fit to serve: its log tells why; {retry}.")
        }
        "revision_regressed" => {
            "The new daemon has opened older data than the old one closed. See \
             that both use the same data directory, and that nothing restores it in between."
                .to_owned()
        }
        "incumbent_lost" => format!(
            "The old daemon ended, or stopped answering, on the way: its log tells why. {} tells who \
             serves now.",
            again.say("status")
        ),
        "operator_abort" => return None,
        "busy" => format!(
            "Another handoff is under way: {} shows it, {} rolls it back.",
            again.say("status --watch"),
            again.say("abort")
        ),
        "io_error" => format!(
            "The system refused something, as the detail says: {} looks for what else is wrong.",
            again.say("doctor")
        ),
        _ => format!(
            "{} tells who serves, {} what happened.",
            again.say("status"),
            again.say("history")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Serving;

    fn entry(verdict: &str, code: Option<&str>) -> Entry {
        Entry {
            kind: "swap".into(),
            id: Some("0f8e2a6c-4b7c-4e0a-9d61-5f0e1c2d3b4a".into()),
            verdict: Some(verdict.into()),
            code: code.map(str::to_owned),
            detail: code.map(|code| format!("what happened, as the supervisor tells it of {code}")),
            from: Some(Serving { pid: 4_194_303, ..Serving::default() }),
            binary: Some("/opt/kv/releases/1.5.0/bin/kv".into()),
            serving: Some(4_194_302),
            took_ms: Some(812),
            unavailable_ms: Some(14),
            ..Entry::default()
        }
    }

    fn told(entry: Entry) -> String {
        let again = Again::to(&crate::cli::Which {
            config: "/etc/handoff.d/a-daemon-with-a-long-name/handoff.toml".into(),
            socket: None,
            json: false,
        });
        let stderr = vec!["error: no such table: kv, \u{1b}[31mand more\u{1b}[0m".into(); 2];
        let ended = Ended { entry, stderr, ..Ended::default() };
        let text = tell(&ended, &again, Paint(false));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(console::strip_ansi_codes(&tell(&ended, &again, Paint(true))), text);
        text
    }

    #[test]
    fn a_commit_is_one_sentence() {
        let mut entry = entry("committed", None);
        entry.waiting_max = [("http".to_owned(), 12), ("admin".to_owned(), 0)].into();
        let text = tell(
            &Ended { entry, ..Ended::default() },
            &Again::to(&crate::cli::Which { config: "x".into(), socket: None, json: false }),
            Paint(false),
        );
        let expected = "\
Committed: pid 4194302 serves in place of pid 4194303, after 812 ms, and nobody
accepted for 14 ms.
waited       at most 12 connections at http
";
        assert_eq!(text, expected);
    }

    #[test]
    fn every_failure_says_what_to_do() {
        let codes = [
            "successor_exec_failed",
            "successor_exited",
            "successor_hello_timeout",
            "version_mismatch",
            "protocol_violation",
            "drain_timeout",
            "drain_failed",
            "seal_failed",
            "seal_timeout",
            "ready_timeout",
            "unhealthy",
            "revision_regressed",
            "incumbent_lost",
            "busy",
            "io_error",
            "one_that_is_new",
        ];
        for code in codes {
            let text = told(entry("rolled_back", Some(code)));
            assert!(
                text.starts_with("Rolled back: the old daemon (pid 4194302) serves on"),
                "{text}"
            );
            assert!(text.contains(&format!("code         {code}\n")), "{text}");
            assert!(text.contains("\n    error: no such table: kv, and more\n"), "{text}");
            assert!(!text.lines().last().unwrap().starts_with(' '), "a remedy: {text}");
        }
    }

    #[test]
    fn what_is_not_known_is_said_to_be() {
        let mut entry = entry("unknown", Some("incumbent_lost"));
        assert!(told(entry.clone()).contains("Do not swap again before `handoff status"));
        entry.serving = None;
        let words = told(entry).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("after 812 ms, and nobody was seen to serve."), "{words}");
    }

    #[test]
    fn a_dry_run_touches_nothing() {
        assert!(told(entry("dry_run", None)).starts_with("Dry run passed: "));
        assert!(told(entry("dry_run", Some("successor_exited"))).starts_with("Dry run failed: "));
    }
}

//! `history`: what has happened.

use std::process::ExitCode;

use super::status::{result, trouble};
use super::text::{self, Column, Paint, clean, paragraphs, span, table, time};
use super::wire::{Link, Trouble, printed};
use crate::admin::{Entry, Reply, Request};
use crate::cli::Which;
use crate::exit;

/// Runs the verb. With `--json` each entry is a line.
pub(super) fn run(which: &Which, last: usize) -> Result<ExitCode, Trouble> {
    let mut link = Link::open(which)?;
    let Reply::History { entries } = link.question(&Request::History { last })? else {
        return Err(link.beside());
    };
    if which.json {
        let _ = entries.iter().all(text::json);
        return Ok(exit::OK.into());
    }
    printed(&list(&entries, Paint::of_stdout()))
}

fn list(entries: &[Entry], paint: Paint) -> String {
    if entries.is_empty() {
        return "Nothing has happened yet.\n".to_owned();
    }
    let column = |head, most| Column { head, most, right: false };
    let columns = [
        column("TIME (UTC)", 20),
        column("KIND", 9),
        column("RESULT", 11),
        column("WHO", 19),
        Column { head: "TOOK", most: 8, right: true },
    ];
    let rows: Vec<Vec<String>> = entries.iter().map(|entry| row(entry, paint)).collect();
    // The heading has one line, and what there is to say of an entry follows its last one.
    let table = table(&columns, &rows);
    let mut lines = table.lines();
    let mut list = format!("{}\n", lines.next().unwrap_or_default());
    for (entry, line) in entries.iter().zip(lines) {
        list += &format!("{line}\n");
        let reason = entry.reason.as_ref().map(|reason| format!("because: {}", clean(reason)));
        for said in trouble(entry).into_iter().chain(reason) {
            list += &paragraphs(&format!("    {said}"));
        }
    }
    list
}

fn row(entry: &Entry, paint: Paint) -> Vec<String> {
    let short = |text: &str, most| clean(text).chars().take(most).collect::<String>();
    let verdict = entry.verdict.as_deref().map_or("-".to_owned(), |verdict| match verdict {
        "committed" | "rolled_back" | "refused" | "unknown" | "dry_run" => result(verdict, paint),
        other => short(other, 11),
    });
    let took = entry.took_ms.map_or("-".to_owned(), span);
    vec![time(entry.at), short(&entry.kind, 9), verdict, who(entry), took]
}

/// Who served before and after.
fn who(entry: &Entry) -> String {
    match (entry.from.as_ref().map(|from| from.pid), entry.serving) {
        (Some(from), Some(to)) if from == to => from.to_string(),
        (from, to) => {
            let name = |pid: Option<u32>| pid.map_or("-".to_owned(), |pid| pid.to_string());
            if from == to { name(None) } else { format!("{} -> {}", name(from), name(to)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Serving;

    #[test]
    fn each_entry_is_a_row_and_what_there_is_to_say() {
        let pid = |pid| Some(Serving { pid, ..Serving::default() });
        let at = 1_700_000_000_000;
        let swap = Entry { kind: "swap".into(), at, from: pid(4_194_303), ..Entry::default() };
        let entries = [
            Entry { kind: "start".into(), at, serving: Some(7), ..Entry::default() },
            Entry {
                verdict: Some("committed".into()),
                serving: Some(4_194_302),
                took_ms: Some(812),
                reason: Some("the fix for the cache".into()),
                ..swap.clone()
            },
            Entry {
                verdict: Some("rolled_back".into()),
                serving: Some(4_194_303),
                code: Some("successor_exited".into()),
                detail: Some(
                    "it ended with exit code 3 before it had said Hello to anybody".into(),
                ),
                took_ms: Some(600_000),
                ..swap
            },
        ];
        let expected = "\
TIME (UTC)            KIND   RESULT       WHO                   TOOK
2023-11-14T22:13:20Z  start  -            - -> 7                   -
2023-11-14T22:13:20Z  swap   committed    4194303 -> 4194302  812 ms
    because: the fix for the cache
2023-11-14T22:13:20Z  swap   rolled back  4194303             10m 0s
    successor_exited: it ended with exit code 3 before it had said Hello to
    anybody
";
        assert_eq!(list(&entries, Paint(false)), expected);
        assert_eq!(console::strip_ansi_codes(&list(&entries, Paint(true))), expected);
        assert_eq!(list(&[], Paint(false)), "Nothing has happened yet.\n");
    }
}

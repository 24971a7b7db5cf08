//! The verbs that talk to a supervisor.
//!
//! Each sends one request and shows what comes back: results on standard output, as text or as JSON, and
//! on standard error how it goes and what is wrong.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use crate::admin::{self, Reply, Request};
use crate::cli::{Verb, Which};
use crate::exit;

mod history;
mod outcome;
mod pages;
mod status;
mod swap;
pub(crate) mod text;
mod wire;

use text::{Again, paragraphs, tell};
use wire::{Link, PATIENCE, Trouble, printed};

/// Runs one.
pub(crate) fn run(verb: Verb) -> ExitCode {
    let (json, done) = match verb {
        Verb::Status { which, watch } => (which.json, status::run(&which, watch)),
        Verb::Swap { binary, which, asked, dry_run, deadline, drain_grace } => {
            let request = |wait| {
                Ok(Request::Swap(admin::Swap {
                    binary: binary.map(absolute).transpose()?,
                    wait,
                    dry_run,
                    deadline_ms: deadline.map(swap::millis),
                    drain_grace_ms: drain_grace.map(swap::millis),
                    reason: asked.reason.clone(),
                    key: asked.key.clone(),
                }))
            };
            (which.json, swap::run(&which, &asked, request))
        }
        Verb::Rollback { which, asked } => {
            let request = |wait| {
                let (reason, key) = (asked.reason.clone(), asked.key.clone());
                Ok(Request::Rollback(admin::Rollback { wait, reason, key }))
            };
            (which.json, swap::run(&which, &asked, request))
        }
        Verb::Abort { which } => (which.json, swap::abort(&which)),
        Verb::History { which, last } => (which.json, history::run(&which, last)),
        Verb::Reexec { which, binary } => (which.json, reexec(&which, binary)),
        Verb::Stop { which } => (which.json, stop(&which)),
        Verb::Completions { shell } => (false, printed(&pages::completions(shell))),
        Verb::Man => (false, pages::man().and_then(|page| printed(&page))),
        Verb::Supervise { .. }
        | Verb::Check { .. }
        | Verb::Doctor { .. }
        | Verb::Demo(_)
        | Verb::Kv { .. }
        | Verb::RunAs { .. } => {
            (false, Err(Trouble::new(exit::USAGE, "this verb talks to no supervisor")))
        }
    };
    done.unwrap_or_else(|trouble| trouble.tell(json))
}

/// What a supervisor, which is in another directory, takes for the same file.
fn absolute(file: PathBuf) -> Result<PathBuf, Trouble> {
    std::path::absolute(&file).map_err(|error| {
        Trouble::new(exit::USAGE, format!("{} is no file: {error}", text::path(&file)))
    })
}

/// Waits until it answers with another beginning.
fn reexec(which: &Which, binary: Option<PathBuf>) -> Result<ExitCode, Trouble> {
    let before = status::ask(which)?;
    let mut link = Link::open(which)?;
    let request = Request::Reexec { binary: binary.map(absolute).transpose()? };
    if !matches!(link.question(&request)?, Reply::Done { .. }) {
        return Err(link.beside());
    }
    let start = Instant::now();
    // The old binary's end of the connection does not outlive it.
    link.wait_for_end();
    loop {
        if let Ok(now) = status::ask(which)
            && now.supervisor.since_at != before.supervisor.since_at
        {
            if which.json {
                text::json(&now.supervisor);
                return Ok(exit::OK.into());
            }
            let admin::Boss { pid, version, .. } = &now.supervisor;
            let version = text::clean(version);
            let daemon =
                now.serving.map_or(String::new(), |it| format!("; pid {} serves on", it.pid));
            let text =
                format!("Done: the supervisor (pid {pid}) runs handoff {version} now{daemon}.");
            return printed(&paragraphs(&text));
        }
        if start.elapsed() > PATIENCE {
            let text = format!(
                "the supervisor (pid {}) was to start anew and has not answered since, for {} s. \
                 The daemon is left alone by that. {} tells whether it answers by now, its log why \
                 it did not.",
                before.supervisor.pid,
                PATIENCE.as_secs(),
                Again::to(which).say("status")
            );
            return Err(Trouble::new(exit::SOFTWARE, text));
        }
        std::thread::sleep(PATIENCE / 200);
    }
}

/// Waits until it is gone.
fn stop(which: &Which) -> Result<ExitCode, Trouble> {
    let mut link = Link::open(which)?;
    let Reply::Done { message } = link.question(&Request::Stop)? else {
        return Err(link.beside());
    };
    if !which.json {
        tell(&paragraphs(&text::clean(&message)));
    }
    link.be_patient()?;
    link.wait_for_end();
    if which.json {
        text::json(&serde_json::json!({ "message": message }));
        return Ok(exit::OK.into());
    }
    printed("Stopped.\n")
}

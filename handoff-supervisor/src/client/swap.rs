//! `swap` and `rollback`, how they get on and how they end; and `abort`.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tempfile::NamedTempFile;

use super::outcome;
use super::status::what_it_means;
use super::text::{self, Again, Paint, bar, clean, paragraphs, path, span, tell};
use super::wire::{Heard, Link, Trouble, printed, signalled};
use crate::admin::{Ended, Flight, Reply, Request};
use crate::cli::{Asked, Which};
use crate::{exit, timeline};

/// How often the line of the phase under way is drawn.
const TICK: Duration = Duration::from_millis(100);
/// How wide the bar of the shards is.
const BAR: usize = 20;

/// Runs the verb; `request` makes what is asked for, given whether to wait.
pub(super) fn run(
    which: &Which,
    asked: &Asked,
    request: impl FnOnce(bool) -> Result<Request, Trouble>,
) -> Result<ExitCode, Trouble> {
    let wait = !asked.no_wait;
    let request = request(wait)?;
    let picture = asked.timeline.as_deref().map(Picture::new).transpose()?;
    let mut link = Link::open(which)?;
    link.ask(&request)?;
    let ended = match outcome_of(link, which, wait)? {
        End::Ended(ended) => ended,
        End::Begun(id) => {
            if which.json {
                text::json(&serde_json::json!({ "id": id }));
                return Ok(exit::OK.into());
            }
            let shows = Again::to(which).say("status --watch");
            return printed(&paragraphs(&format!(
                "Begun: handoff {}. {shows} shows it.",
                clean(&id)
            )));
        }
        End::Signal(signal) => return Ok(signalled(signal)),
    };
    if let Some(picture) = picture {
        picture.draw(&ended);
    }
    Ok(show(&ended, which))
}

/// Runs the verb.
pub(super) fn abort(which: &Which) -> Result<ExitCode, Trouble> {
    let mut link = Link::open(which)?;
    link.ask(&Request::Abort)?;
    loop {
        match link.next()? {
            Some(Reply::Ended(ended)) => return Ok(show(&ended, which)),
            Some(Reply::Progress(_)) => {}
            Some(Reply::Refused(refusal)) => return Err(refusal.into()),
            Some(_) => return Err(link.beside()),
            None => return Err(link.unanswered(exit::SOFTWARE)),
        }
    }
}

/// A duration as a request has it.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn show(ended: &Ended, which: &Which) -> ExitCode {
    if which.json {
        text::json(ended);
    } else {
        text::out(&outcome::tell(ended, &Again::to(which), Paint::of_stdout()));
    }
    ended.exit.into()
}

/// How waiting for a handoff ends.
enum End {
    Ended(Box<Ended>),
    Begun(String),
    Signal(i32),
}

fn outcome_of(link: Link, which: &Which, wait: bool) -> Result<End, Trouble> {
    let (beside, unanswered) = (link.beside(), link.unanswered(exit::SOFTWARE));
    let again = Again::to(which);
    let heard = link.listen(wait)?;
    let mut progress = Progress::new(which.json || !wait);
    let mut begun = false;
    while let Ok(heard) = heard.recv() {
        match heard {
            Heard::Reply(Ok(Some(Reply::Progress(flight)))) => {
                begun = true;
                progress.goes_on(flight);
            }
            Heard::Reply(Ok(Some(Reply::Ended(ended)))) => {
                progress.ended(&ended);
                return Ok(End::Ended(ended));
            }
            Heard::Reply(Ok(Some(Reply::Begun { id }))) if !wait => return Ok(End::Begun(id)),
            Heard::Reply(Ok(Some(Reply::Refused(refusal)))) => return Err(refusal.into()),
            Heard::Reply(Ok(Some(_))) => return Err(beside),
            Heard::Reply(Err(trouble)) => return Err(trouble),
            Heard::Signal(signal) => {
                progress.clear();
                let (watch, abort) = (again.say("status --watch"), again.say("abort"));
                let text = format!(
                    "The handoff goes on without this command: {watch} shows it, {abort} rolls it back."
                );
                tell(&paragraphs(&text));
                return Ok(End::Signal(signal));
            }
            Heard::Reply(Ok(None)) => break,
        }
    }
    progress.clear();
    if !begun {
        return Err(unanswered);
    }
    let text = format!(
        "the connection to the supervisor was lost in the middle of the handoff, so its outcome is \
         not known here. Look at {}: it tells who serves. The history tells how it ended, once the \
         supervisor is back.",
        again.say("status")
    );
    Err(Trouble::new(exit::SOFTWARE, text))
}

/// How a handoff gets on, on standard error: a line for each phase that has ended, and on a terminal one
/// more for the phase under way.
struct Progress {
    line: ProgressBar,
    silent: bool,
    /// What was told last, and when.
    flight: Arc<Mutex<Option<(Flight, Instant)>>>,
    /// The phases that have a line.
    told: usize,
}

impl Progress {
    fn new(silent: bool) -> Self {
        let target = match silent {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        };
        let line = ProgressBar::with_draw_target(None, target);
        let flight: Arc<Mutex<Option<(Flight, Instant)>>> = Arc::default();
        let shown = Arc::clone(&flight);
        let now = move |_: &ProgressState, text: &mut dyn std::fmt::Write| {
            let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = match &*shown {
                Some((flight, at)) => write!(text, "{}", under_way(flight, at.elapsed())),
                None => write!(text, "waiting for the supervisor"),
            };
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {now}") {
            line.set_style(style.with_key("now", now));
        }
        line.enable_steady_tick(TICK);
        Self { line, silent, flight, told: 0 }
    }

    fn goes_on(&mut self, next: Flight) {
        let now = (next.clone(), Instant::now());
        let before = self.flight.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        match before {
            None => {
                let what = if next.dry_run { "dry run" } else { "handoff" };
                let text = format!("{what} {} to\n  {}", clean(&next.id), path(&next.binary));
                self.say(&paragraphs(&text));
            }
            Some((before, _)) if before.phase != next.phase => {
                let began = before.elapsed_ms.saturating_sub(before.phase_ms);
                let ended = next.elapsed_ms.saturating_sub(next.phase_ms);
                self.phase(&before.phase, ended.saturating_sub(began));
            }
            Some(_) => {}
        }
    }

    /// Tells the phases that were not told, as the supervisor has measured them.
    fn ended(&mut self, ended: &Ended) {
        self.clear();
        for (phase, took) in ended.entry.phases.iter().skip(self.told) {
            self.phase(phase, *took);
        }
    }

    fn phase(&mut self, phase: &str, took_ms: u64) {
        self.told += 1;
        let phase = clean(phase);
        let line = format!("  {phase:<9} {:>9}  {}", span(took_ms), what_it_means(&phase));
        self.say(&format!("{}\n", line.trim_end()));
    }

    /// Takes the changing line away.
    fn clear(&self) {
        self.line.finish_and_clear();
    }

    fn say(&self, text: &str) {
        if !self.silent {
            self.line.suspend(|| tell(text));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The phase under way, some time after it was told, in a line.
fn under_way(flight: &Flight, since: Duration) -> String {
    let since = millis(since);
    let phase = clean(&flight.phase);
    let took = span(flight.phase_ms.saturating_add(since));
    let mut text = format!("{phase:<9} {took:>9}");
    if let Some(left) = flight.left_ms {
        let _ = write!(text, "  {} left", span(left.saturating_sub(since)));
    }
    match flight.shards {
        Some((sealed, all)) => {
            let _ = write!(text, "  {} {sealed}/{all} shards", bar(sealed, all, BAR));
        }
        None => {
            let _ = write!(text, "  {}", what_it_means(&flight.phase));
        }
    }
    text
}

/// The file of `--timeline`.
struct Picture {
    /// Where it is to be, and before that another in the same directory.
    to: PathBuf,
    file: NamedTempFile,
}

impl Picture {
    /// Makes sure, before anything has begun, that it can be written.
    fn new(to: &Path) -> Result<Self, Trouble> {
        let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        let file = tempfile::Builder::new()
            .prefix(".handoff-timeline-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory.unwrap_or(Path::new(".")))
            .and_then(|file| if to.is_dir() { Err(is_a_directory()) } else { Ok(file) });
        match file {
            Ok(file) => Ok(Self { to: to.to_owned(), file }),
            Err(error) => {
                let text = format!(
                    "cannot write the timeline\n  {}\n{error}. Nothing was begun; name another file.",
                    path(to)
                );
                Err(Trouble::new(exit::IO, text))
            }
        }
    }

    /// A picture that cannot be drawn changes nothing of what has happened, so it is said and no more.
    fn draw(mut self, ended: &Ended) {
        let written = self.file.write_all(timeline::svg(ended).as_bytes());
        let kept = written.and_then(|()| Ok(self.file.persist(&self.to)?));
        if let Err(error) = kept {
            let text = format!("the timeline is missing, {error}:\n  {}", path(&self.to));
            tell(&paragraphs(&text));
        }
    }
}

fn is_a_directory() -> std::io::Error {
    std::io::ErrorKind::IsADirectory.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_under_way_fits_a_terminal() {
        let mut flight = Flight {
            phase: "seal".into(),
            phase_ms: 59_000,
            left_ms: Some(28_000),
            ..Flight::default()
        };
        let since = Duration::from_millis(900);
        let text = "seal         59.9 s  27.1 s left  the old daemon closes its data";
        assert_eq!(under_way(&flight, since), text);
        flight.shards = Some((512, 1024));
        let text = "seal         59.9 s  27.1 s left  ██████████░░░░░░░░░░ 512/1024 shards";
        assert_eq!(under_way(&flight, since), text);
        flight.phase = "promote".into();
        flight.shards = None;
        assert!(under_way(&flight, since).chars().count() <= 78);
    }
}

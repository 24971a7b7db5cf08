//! Where a process is held at each of its steps: it asks whether it may go on, and the run decides.
//!
//! The hosts of `handoff-unix` tell of each effect, hook and message at TRACE, before it and after it.
//! What subscribes to that here says so on a socket, and waits for the answer. So a fault comes exactly
//! there, and a process that is held for long is one whose step takes long.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The variable that tells a process where its gate is.
pub(super) const GATE: &str = "CONFORMANCE_GATE";

/// The target of what the hosts tell of their steps.
const STEP: &str = "handoff::step";

/// What an [`Answer::Exit`] exits with.
const EXIT: i32 = 70;

/// Before a step or after it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// It has not begun.
    Before,
    /// It is over, and what it came to is not known to the machine yet.
    After,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Before => "before",
            Self::After => "after",
        })
    }
}

/// What a process that is held is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Go on.
    Go,
    /// `_exit`, at once.
    Exit,
    /// Go on, and find no free descriptor for so many milliseconds.
    NoDescriptors(u64),
}

/// A process that is held at a step. Dropped, it is told nothing, and ends.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) pid: u32,
    pub(super) moment: Moment,
    /// What the step is called.
    pub(super) what: String,
    /// The same in full.
    pub(super) text: String,
    stream: UnixStream,
}

impl Held {
    /// Answers it. A process that is gone by now hears nothing.
    pub(super) fn answer(mut self, answer: Answer) {
        let line = serde_json::to_string(&answer).unwrap_or_default() + "\n";
        let _ = self.stream.write_all(line.as_bytes());
    }
}

/// Listens at `path`, and tells of everybody who is held.
pub(super) fn open<T: From<Held> + Send + 'static>(path: &Path, to: Sender<T>) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    std::thread::Builder::new().name("gate".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let to = to.clone();
            // Each in a thread of its own: one may be stopped before it has said who it is.
            std::thread::spawn(move || read(stream).map(|held| to.send(held.into())));
        }
    })?;
    Ok(())
}

fn read(stream: UnixStream) -> Option<Held> {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).ok()?;
    let mut words = line.trim_end().splitn(3, ' ');
    let pid = words.next()?.parse().ok()?;
    let moment = if words.next()? == "before" { Moment::Before } else { Moment::After };
    let text = words.next()?.to_string();
    Some(Held { pid, moment, what: name(&text), text, stream })
}

/// A step's name: that of its kind, and what tells it from others of the kind.
fn name(text: &str) -> String {
    let word =
        |text: &str| text.chars().take_while(char::is_ascii_alphanumeric).collect::<String>();
    let (kind, rest) = (word(text), text.split_once("step: ").or(text.split_once("signal: ")));
    match (kind.as_str(), rest) {
        ("Journal" | "Signal", Some((_, rest))) => format!("{kind}{}", word(rest)),
        ("SignalSuccessor", _) => format!("Signal{}", word(&text["SignalSuccessor(".len()..])),
        ("Spawn", _) if text.contains("false") => "SpawnCold".to_string(),
        _ => kind,
    }
}

/// Has this process held at its steps, if it is to be.
pub(crate) fn keep() {
    if let Some(path) = std::env::var_os(GATE) {
        let keeper = Keeper { path: path.into(), limit: Arc::default() };
        let _ = tracing::subscriber::set_global_default(keeper);
    }
}

struct Keeper {
    path: PathBuf,
    /// What the limit of descriptors was, while there are none.
    limit: Arc<Mutex<Option<Rlimit>>>,
}

impl Keeper {
    fn ask(&self, moment: &str, what: &str) {
        // It may be one of those for whom there are no descriptors.
        let limit = self.limit();
        let (was, short) = (getrlimit(Resource::Nofile), limit.is_some());
        if let Some(limit) = *limit {
            let _ = setrlimit(Resource::Nofile, limit);
        }
        let stream = UnixStream::connect(&self.path);
        if short {
            let _ = setrlimit(Resource::Nofile, was);
        }
        // Others may ask while this one is held.
        drop(limit);
        let answered = stream.and_then(|mut stream| {
            stream.write_all(format!("{} {moment} {what}\n", std::process::id()).as_bytes())?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(serde_json::from_str(&line)?)
        });
        match answered {
            Ok(Answer::Go) => {}
            Ok(Answer::NoDescriptors(ms)) => self.run_out_for(Duration::from_millis(ms)),
            Ok(Answer::Exit) | Err(_) => signal_hook::low_level::exit(EXIT),
        }
    }

    fn run_out_for(&self, time: Duration) {
        let limit = Arc::clone(&self.limit);
        let mut held = self.limit();
        let was = getrlimit(Resource::Nofile);
        if held.is_none() && setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..was }).is_ok()
        {
            *held = Some(was);
            std::thread::spawn(move || {
                std::thread::sleep(time);
                let mut limit = limit.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(was) = limit.take() {
                    let _ = setrlimit(Resource::Nofile, was);
                }
            });
        }
    }

    fn limit(&self) -> MutexGuard<'_, Option<Rlimit>> {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber for Keeper {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == STEP || *metadata.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        let mut said = Said::default();
        event.record(&mut said);
        if event.metadata().target() == STEP {
            self.ask(&said.moment, &said.what);
        } else {
            // One write a line, and no panic where nobody reads it.
            let line = format!("{}: {}\n", event.metadata().level(), said.message);
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// What an event says.
#[derive(Default)]
struct Said {
    moment: String,
    what: String,
    message: String,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "moment" => self.moment = format!("{value:?}").trim_matches('"').to_string(),
            "what" => self.what = format!("{value:?}").replace('\n', " "),
            "message" => self.message = format!("{value:?}{}", self.message),
            name => self.message += &format!(" {name}={value:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_apart_by_name() {
        assert_eq!(name("TakeLock"), "TakeLock");
        assert_eq!(name("Drain { grace: 30s }"), "Drain");
        assert_eq!(name("Journal(Entry { id: 1, step: Warm, incumbent: None })"), "JournalWarm");
        assert_eq!(name("Signal { pid: 7, signal: Term }"), "SignalTerm");
        assert_eq!(name("SignalSuccessor(Kill)"), "SignalKill");
        assert_eq!(name("Spawn { successor: true }"), "Spawn");
        assert_eq!(name("Spawn { successor: false }"), "SpawnCold");
        assert_eq!(name("PrepareHandoff { handoff_id: HandoffId(1) }"), "PrepareHandoff");
    }
}

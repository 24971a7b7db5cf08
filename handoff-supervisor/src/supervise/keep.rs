//! What a supervisor keeps on disk: its state, and the history.
//!
//! Written by a thread of its own, in order, so that a disk that stalls holds up nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::thread;

use serde::{Deserialize, Serialize};

use crate::admin::{Entry, Serving};
use crate::sockets;

const STATE: &str = "state.json";
const HISTORY: &str = "history.jsonl";

/// How many entries of the history are kept in memory. The file keeps them all.
pub(super) const REMEMBERED: usize = 10_000;

/// What the next supervisor of this daemon is to know.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    /// How many daemons have served.
    pub(super) generation: u64,
    /// Who served last.
    pub(super) serving: Option<Serving>,
    /// What is started where nobody serves, if not what the configuration says.
    pub(super) current: Option<Binary>,
    /// What served before.
    pub(super) previous: Option<Binary>,
    /// The listeners that were passed on.
    pub(super) listeners: Vec<sockets::Kept>,
    /// What is being swapped in, until it is known whether it serves.
    pub(super) next: Option<Next>,
    /// Who serves is on probation.
    pub(super) probation: Option<Probation>,
}

/// A handoff, as whoever comes into it has to know it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Next {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) binary: Binary,
    pub(super) reason: Option<String>,
    pub(super) key: Option<String>,
    pub(super) uid: Option<u32>,
}

/// Until when, in milliseconds since 1970, a daemon that fails is replaced by what served before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Probation {
    pub(super) until_at: u64,
    pub(super) previous: Binary,
}

/// A binary as it was when it was started.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Binary {
    pub(super) path: PathBuf,
    device: u64,
    inode: u64,
    modified_ns: i64,
}

impl Binary {
    /// What is at this path now, links resolved: a link may lead elsewhere tomorrow.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let meta = fs::metadata(&path)?;
        let modified_ns = meta.mtime().saturating_mul(1_000_000_000) + meta.mtime_nsec();
        Ok(Self { path, device: meta.dev(), inode: meta.ino(), modified_ns })
    }

    /// Whether the path still has what it had.
    pub(super) fn is_there(&self) -> bool {
        Self::at(&self.path).is_ok_and(|now| now == *self)
    }
}

enum Job {
    State(String),
    Entry(String),
    Flush(Sender<()>),
}

/// Writes both.
#[derive(Debug)]
pub(super) struct Keeper {
    to: Sender<Job>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Write")
    }
}

impl Keeper {
    /// Reads what is there; gives what cannot be understood as complaints.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, State, Vec<Entry>, Vec<String>)> {
        let mut complaints = Vec::new();
        let state_file = dir.join(STATE);
        let state = match fs::read(&state_file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                let aside = dir.join("state.json.unreadable");
                let _ = fs::rename(&state_file, &aside);
                complaints.push(format!(
                    "{} cannot be understood ({error}); it is now {}",
                    state_file.display(),
                    aside.display()
                ));
                State::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error),
        };
        let history_file = dir.join(HISTORY);
        let (history, unread) = load(&history_file)?;
        if unread > 0 {
            let path = history_file.display();
            complaints.push(format!("{unread} lines of {path} cannot be understood"));
        }
        let mut append = OpenOptions::new();
        let append = append.read(true).append(true).create(true).mode(0o600).open(&history_file)?;
        let mut lines = Lines::after(append);
        let (to, from) = mpsc::channel();
        thread::Builder::new().name("keeper".into()).spawn(move || {
            for write in from {
                let written = match write {
                    Job::State(text) => replace(&state_file, &text),
                    Job::Entry(line) => lines.add(&line),
                    Job::Flush(done) => {
                        let _ = done.send(());
                        Ok(())
                    }
                };
                if let Err(error) = written {
                    tracing::warn!(%error, "what happened cannot be written to the state directory");
                }
            }
        })?;
        Ok((Self { to }, state, history, complaints))
    }

    pub(super) fn state(&self, state: &State) {
        if let Ok(text) = serde_json::to_string_pretty(state) {
            let _ = self.to.send(Job::State(text));
        }
    }

    pub(super) fn entry(&self, entry: &Entry) {
        if let Ok(line) = serde_json::to_string(entry) {
            let _ = self.to.send(Job::Entry(line + "\n"));
        }
    }

    /// Waits until all of it is written, at most for a second: a disk that stalls must not keep a
    /// supervisor from stopping.
    pub(super) fn flush(&self) {
        let (done, wait) = mpsc::channel();
        let _ = self.to.send(Job::Flush(done));
        let _ = wait.recv_timeout(std::time::Duration::from_secs(1));
    }
}

/// A file of lines.
struct Lines {
    file: File,
    /// The last line was cut off, by a crash or a full disk.
    torn: bool,
}

impl Lines {
    fn after(file: File) -> Self {
        let mut last = [b'\n'];
        let length = file.metadata().map_or(0, |meta| meta.len());
        let read = length.checked_sub(1).map(|at| file.read_exact_at(&mut last, at));
        Self { torn: read.is_some_and(|read| read.is_err()) || last != *b"\n", file }
    }

    fn add(&mut self, line: &str) -> io::Result<()> {
        if self.torn {
            self.file.write_all(b"\n")?;
        }
        self.torn = true;
        self.file.write_all(line.as_bytes())?;
        self.torn = false;
        self.file.sync_data()
    }
}

/// The newest entries, and how many lines were none.
fn load(path: &Path) -> io::Result<(Vec<Entry>, usize)> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error),
    };
    let (mut entries, mut unread) = (std::collections::VecDeque::new(), 0);
    for line in BufReader::new(file).split(b'\n') {
        match serde_json::from_slice(&line?) {
            Ok(entry) => entries.push_back(entry),
            Err(_) => unread += 1,
        }
        if entries.len() > REMEMBERED {
            entries.pop_front();
        }
    }
    Ok((entries.into(), unread))
}

/// In one step, so that a crash leaves the old text or the new.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("json.new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    fs::rename(new, path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_again_and_garbage_is_set_aside() {
        let dir = tempfile::Builder::new().prefix("handoff keep ").tempdir().unwrap();
        let (keeper, state, history, complaints) = Keeper::open(dir.path()).unwrap();
        assert_eq!((state.generation, history.len(), complaints.len()), (0, 0, 0));
        keeper.state(&State { generation: 3, ..State::default() });
        keeper.entry(&Entry { kind: "start".into(), at: 7, ..Entry::default() });
        keeper.flush();

        fs::OpenOptions::new()
            .append(true)
            .open(dir.path().join(HISTORY))
            .and_then(|mut file| file.write_all(b"{half a line\n"))
            .unwrap();
        let (_, state, history, complaints) = Keeper::open(dir.path()).unwrap();
        assert_eq!((state.generation, history.len(), history[0].at), (3, 1, 7));
        assert!(complaints[0].starts_with("1 lines of "), "{complaints:?}");

        fs::write(dir.path().join(STATE), "garbage").unwrap();
        let (_, state, _, complaints) = Keeper::open(dir.path()).unwrap();
        assert_eq!(state.generation, 0);
        assert!(complaints[0].contains("state.json cannot be understood"), "{complaints:?}");
        assert!(dir.path().join("state.json.unreadable").exists());
    }

    #[test]
    fn a_line_that_was_cut_off_takes_none_with_it() {
        let dir = tempfile::Builder::new().prefix("handoff keep ").tempdir().unwrap();
        fs::write(dir.path().join(HISTORY), "{\"kind\":\"sta").unwrap();
        for kind in ["adopt", "exit"] {
            let (keeper, ..) = Keeper::open(dir.path()).unwrap();
            keeper.entry(&Entry { kind: kind.into(), ..Entry::default() });
            keeper.flush();
        }
        let (_, _, history, complaints) = Keeper::open(dir.path()).unwrap();
        let kinds: Vec<&str> = history.iter().map(|entry| entry.kind.as_str()).collect();
        assert_eq!(kinds, ["adopt", "exit"]);
        assert!(complaints[0].starts_with("1 lines of "), "{complaints:?}");
    }

    #[test]
    fn a_binary_that_was_replaced_is_not_there_any_more() {
        let dir = tempfile::Builder::new().prefix("handoff keep ").tempdir().unwrap();
        let (real, link) = (dir.path().join("v1"), dir.path().join("current"));
        fs::write(&real, "1").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let binary = Binary::at(&link).unwrap();
        assert_eq!(binary.path, fs::canonicalize(&real).unwrap());
        assert!(binary.is_there());
        fs::write(dir.path().join("new"), "2").unwrap();
        fs::rename(dir.path().join("new"), &real).unwrap();
        assert!(!binary.is_there());
    }
}

//! The output of daemons: each writes to files of its own in the state directory, and a thread passes
//! on what is written there.
//!
//! Files, because a pipe would end with the supervisor, and a daemon that outlives it would fail at its
//! next line or stand still when the pipe is full. What was passed on is given back to the filesystem.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{FallocateFlags, SeekFrom};

/// How much of a file stays: the last lines of a daemon that failed are read from it.
const KEPT: u64 = 64 << 10;
/// How much is given back at a time.
const SHARE: u64 = 1 << 20;
/// Where a supervisor that ends in order leaves how far it was in each file.
const PLACES: &str = "places";
/// The longest line that is held back until it is whole.
const LONGEST_LINE: usize = 64 << 10;

/// What a daemon writes to.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) stdout: PathBuf,
    pub(super) stderr: PathBuf,
}

impl Files {
    /// The last lines of its standard error.
    pub(super) fn last_lines(&self, count: usize) -> Vec<String> {
        last_lines(&self.stderr, count).unwrap_or_default()
    }
}

/// Passes on what daemons write.
#[derive(Debug)]
pub(super) struct Output {
    dir: PathBuf,
    /// How far the supervisor before this one was in each file, where it has said so.
    places: BTreeMap<PathBuf, u64>,
    tails: Arc<Mutex<Vec<Tail>>>,
}

/// A file that is passed on.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    file: File,
    /// How much was passed on, and how much of it was given back.
    read: u64,
    freed: u64,
    /// The daemon is gone: what is left is passed on, and the file removed.
    over: bool,
}

impl Output {
    /// In this directory, which is made where it is missing.
    pub(super) fn start(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let places = places(&dir);
        let watch = inotify::init(CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, &dir, WatchFlags::MODIFY | WatchFlags::ATTRIB)?;
        let tails: Arc<Mutex<Vec<Tail>>> = Arc::default();
        let shared = Arc::clone(&tails);
        thread::Builder::new().name("output".into()).spawn(move || follow(&watch, &shared))?;
        Ok(Self { dir, places, tails })
    }

    /// Files for a daemon that is about to be started, and their descriptors for it.
    pub(super) fn make(&self, name: &str) -> io::Result<(Files, OwnedFd, OwnedFd)> {
        let path = |stream| self.dir.join(format!("{name}.{stream}"));
        let files = Files { stdout: path("stdout"), stderr: path("stderr") };
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.append(true).create_new(true).mode(0o600).open(path).map(OwnedFd::from)
        };
        let (stdout, stderr) = (open(&files.stdout)?, open(&files.stderr)?);
        self.follow(&files)?;
        Ok((files, stdout, stderr))
    }

    /// Passes on what is written to these from now on, and what was written since they were last read.
    fn follow(&self, files: &Files) -> io::Result<()> {
        for path in [&files.stdout, &files.stderr] {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            // What was passed on before this supervisor was given back, all but the last of it.
            let freed = rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap_or(0);
            let read = self.places.get(path).map_or(freed, |read| freed.max(*read));
            let tail = Tail { path: path.clone(), file, read, freed, over: false };
            self.tails().push(tail);
        }
        Ok(())
    }

    /// The files of a daemon that another supervisor has started, if it writes to such.
    pub(super) fn adopt(&self, pid: u32) -> Option<Files> {
        let file = |fd| {
            let path = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
            (path.parent() == Some(self.dir.as_path())).then_some(path)
        };
        let files = Files { stdout: file(1)?, stderr: file(2)? };
        self.follow(&files).ok()?;
        Some(files)
    }

    /// Removes the files that nobody is followed by: of daemons that ended while no supervisor was there.
    pub(super) fn clear(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let tails = self.tails();
        for path in entries.flatten().map(|entry| entry.path()) {
            if !tails.iter().any(|tail| tail.path == path) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// The daemon has ended: what is left is passed on, then the files are removed.
    pub(super) fn over(&self, files: &Files) {
        let mut tails = self.tails();
        for tail in tails.iter_mut() {
            if tail.path == files.stdout || tail.path == files.stderr {
                tail.over = true;
            }
        }
        drop(tails);
        // Wakes the thread.
        for path in [&files.stdout, &files.stderr] {
            if let Ok(file) = OpenOptions::new().write(true).open(path) {
                let _ = rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600));
            }
        }
    }

    /// Passes on all that is there now: before the supervisor ends.
    pub(super) fn drain(&self) {
        let mut tails = self.tails();
        pass_on(&mut tails);
        let place =
            |tail: &Tail| Some(format!("{} {}\n", tail.read, tail.path.file_name()?.to_str()?));
        let places: String = tails.iter().filter_map(place).collect();
        // Without it the next one passes on some of it again.
        let file = self.dir.join(PLACES);
        let _ = if places.is_empty() { fs::remove_file(file) } else { fs::write(file, places) };
    }

    fn tails(&self) -> std::sync::MutexGuard<'_, Vec<Tail>> {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What [`Output::drain`] has left, once.
fn places(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let file = dir.join(PLACES);
    let text = fs::read_to_string(&file).unwrap_or_default();
    let _ = fs::remove_file(&file);
    let place = |line: &str| {
        let (read, name) = line.split_once(' ')?;
        Some((dir.join(name), read.parse().ok()?))
    };
    text.lines().filter_map(place).collect()
}

fn follow(watch: &OwnedFd, tails: &Mutex<Vec<Tail>>) {
    // What happened is not looked at: all files are few.
    let mut events = [0; 4096];
    while rustix::io::read(watch, &mut events).is_ok_and(|count| count > 0) {
        pass_on(&mut tails.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn pass_on(tails: &mut Vec<Tail>) {
    for tail in &mut *tails {
        let to: &mut dyn Write = match tail.path.extension().map(OsStr::as_bytes) {
            Some(b"stdout") => &mut io::stdout().lock(),
            _ => &mut io::stderr().lock(),
        };
        if let Err(error) = tail.pass_on(to) {
            // There may be nobody to tell: the output itself may be what failed.
            tracing::debug!(path = %tail.path.display(), %error, "output is not passed on");
        }
    }
    tails.retain(|tail| {
        if tail.over {
            let _ = fs::remove_file(&tail.path);
        }
        !tail.over
    });
}

impl Tail {
    /// Whole lines, so that those of two daemons are not mixed.
    fn pass_on(&mut self, to: &mut dyn Write) -> io::Result<()> {
        let mut buffer = vec![0; LONGEST_LINE];
        loop {
            let count = self.file.read_at(&mut buffer, self.read)?;
            let read = buffer.get(..count).unwrap_or_default();
            let whole = match read.iter().rposition(|byte| *byte == b'\n') {
                Some(last) => last + 1,
                None if count == buffer.len() || self.over => count,
                None => return Ok(()),
            };
            if whole == 0 {
                return Ok(());
            }
            self.read += whole as u64;
            to.write_all(read.get(..whole).unwrap_or_default())?;
            to.flush()?;
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        let spent = self.read.saturating_sub(KEPT);
        if spent >= self.freed + SHARE {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Where the filesystem cannot do that, the file grows.
            let _ = rustix::fs::fallocate(&self.file, flags, 0, spent);
            self.freed = spent;
        }
    }
}

fn last_lines(path: &Path, count: usize) -> io::Result<Vec<String>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(KEPT);
    let mut bytes = vec![0; usize::try_from(length - from).unwrap_or(0)];
    file.read_exact_at(&mut bytes, from)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(count);
    Ok(lines.into_iter().skip(skipped).map(str::to_string).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    fn write(fd: &OwnedFd, text: &str) {
        rustix::io::write(fd, text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_are_passed_on_whole_and_what_is_left_at_the_end() {
        let dir = tempfile::Builder::new().prefix("handoff output ").tempdir().unwrap();
        let output = Output::start(dir.path().join("output")).unwrap();
        let (files, _stdout, stderr) = output.make("1").unwrap();
        let mut tail = output.tails().pop().unwrap();
        assert_eq!(tail.path, files.stderr);
        let mut seen = Vec::new();
        write(&stderr, "one\ntw");
        tail.pass_on(&mut seen).unwrap();
        assert_eq!(seen, b"one\n");
        write(&stderr, "o\nthr");
        tail.pass_on(&mut seen).unwrap();
        assert_eq!(seen, b"one\ntwo\n");
        tail.over = true;
        tail.pass_on(&mut seen).unwrap();
        assert_eq!(seen, b"one\ntwo\nthr");
        assert_eq!(files.last_lines(2), ["two", "thr"]);
    }

    #[test]
    fn what_was_passed_on_takes_no_room_and_is_not_passed_on_by_the_next_supervisor() {
        let dir = tempfile::Builder::new().prefix("handoff output ").tempdir().unwrap();
        let output = Output::start(dir.path().to_path_buf()).unwrap();
        let (files, _stdout, stderr) = output.make("1").unwrap();
        let mut tail = output.tails().pop().unwrap();
        let line = "x".repeat(1023) + "\n";
        for _ in 0..4 << 10 {
            write(&stderr, &line);
        }
        let mut seen = Vec::new();
        tail.pass_on(&mut seen).unwrap();
        assert_eq!(seen.len(), 4 << 20);
        use std::os::unix::fs::MetadataExt;
        let taken = fs::metadata(&files.stderr).unwrap().blocks() * 512;
        assert!(taken <= SHARE + KEPT + 4096, "{taken}");

        output.tails().clear();
        output.follow(&files).unwrap();
        let next = output.tails().pop().unwrap();
        assert!(next.read >= (4 << 20) - SHARE - KEPT - 4096, "{}", next.read);
    }

    #[test]
    fn after_an_end_in_order_nothing_is_passed_on_twice() {
        let dir = tempfile::Builder::new().prefix("handoff output ").tempdir().unwrap();
        let output = Output::start(dir.path().to_path_buf()).unwrap();
        let (files, _stdout, stderr) = output.make("1").unwrap();
        write(&stderr, "one\ntw");
        output.drain();
        let output = Output::start(dir.path().to_path_buf()).unwrap();
        write(&stderr, "o\n");
        output.follow(&files).unwrap();
        let mut tail = output.tails().pop().unwrap();
        let mut seen = Vec::new();
        tail.pass_on(&mut seen).unwrap();
        assert_eq!(seen, b"two\n");
        assert!(!dir.path().join(PLACES).exists());
    }
}

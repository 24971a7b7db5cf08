//! The output of daemons: each writes to files of its own in the state directory, and a thread passes
//! on what is written there.
//!
//! Files, because a pipe would end with the supervisor, and a daemon that outlives it would fail at its
//! next line or stand still when the pipe is full. What was passed on is given back to the filesystem.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use handoff_unix::poll;
use handoff_unix::wake::Waker;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{FallocateFlags, SeekFrom};

/// How much of a file stays: the last lines of a daemon that failed are read from it.
const KEPT: u64 = 64 << 10;
/// How much is given back at a time.
const SHARE: u64 = 1 << 20;
/// The longest line that is held back until it is whole.
const LONGEST_LINE: usize = 64 << 10;
/// What the name of the file ends with that says how much of another was passed on.
const PASSED: &str = ".passed";
/// How long a supervisor that ends waits for its own readers.
const PATIENCE: Duration = Duration::from_secs(1);

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

/// Passes on what daemons write. The thread that does so is the only one that waits for a reader who
/// does not read.
#[derive(Debug)]
pub(super) struct Output {
    dir: PathBuf,
    orders: Sender<Order>,
    waker: Waker,
    /// The files that are passed on.
    followed: Vec<PathBuf>,
}

/// What the thread is told.
#[derive(Debug)]
enum Order {
    Follow(Tail),
    /// Who wrote to it is gone: what is left is passed on, and the file removed.
    Over(PathBuf),
    /// Answered when all that is there was passed on.
    Drain(Sender<()>),
}

/// A file that is passed on.
#[derive(Debug)]
struct Tail {
    path: PathBuf,
    file: File,
    /// Where it is written down how much was passed on, for the supervisor after this one.
    passed: Option<File>,
    /// How much was passed on, and how much of it was given back.
    read: u64,
    freed: u64,
    over: bool,
}

impl Output {
    /// In this directory, which is made where it is missing.
    pub(super) fn start(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, &dir, WatchFlags::MODIFY)?;
        let waker = Waker::new()?;
        let (orders, taken) = mpsc::channel();
        let woken = waker.clone();
        thread::Builder::new()
            .name("output".into())
            .spawn(move || follow(&watch, &woken, &taken))?;
        Ok(Self { dir, orders, waker, followed: Vec::new() })
    }

    /// Files for a daemon that is about to be started, and their descriptors for it.
    pub(super) fn make(&mut self, name: &str) -> io::Result<(Files, OwnedFd, OwnedFd)> {
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
    fn follow(&mut self, files: &Files) -> io::Result<()> {
        for path in [&files.stdout, &files.stderr] {
            let tail = Tail::open(path)?;
            self.followed.push(path.clone());
            self.tell(Order::Follow(tail));
        }
        Ok(())
    }

    /// The files of a daemon that another supervisor has started, if it writes to such.
    pub(super) fn adopt(&mut self, pid: u32) -> Option<Files> {
        let file = |fd| {
            let path = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
            (path.parent() == Some(self.dir.as_path())).then_some(path)
        };
        let files = Files { stdout: file(1)?, stderr: file(2)? };
        if !self.followed.contains(&files.stderr) {
            self.follow(&files).ok()?;
        }
        Some(files)
    }

    /// Removes the files that nobody is followed by: of daemons that ended while no supervisor was there.
    pub(super) fn clear(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if !self.followed.iter().any(|followed| *followed == path || passed(followed) == path) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// The daemon has ended: what is left is passed on, then the files are removed.
    pub(super) fn over(&mut self, files: &Files) {
        for path in [&files.stdout, &files.stderr] {
            self.followed.retain(|followed| followed != path);
            self.tell(Order::Over(path.clone()));
        }
    }

    /// Passes on all that is there now, before the supervisor ends: unless nobody reads it.
    pub(super) fn drain(&self) {
        let (done, wait) = mpsc::channel();
        self.tell(Order::Drain(done));
        let _ = wait.recv_timeout(PATIENCE);
    }

    fn tell(&self, order: Order) {
        let _ = self.orders.send(order);
        self.waker.wake();
    }
}

fn follow(watch: &OwnedFd, waker: &Waker, orders: &Receiver<Order>) {
    let mut tails = Vec::new();
    // What happened is not looked at: all files are few.
    let mut events = [0; 4096];
    loop {
        let fds = &mut [PollFd::new(watch, PollFlags::IN), PollFd::new(waker, PollFlags::IN)];
        if poll::wait(fds, None).is_err() {
            return;
        }
        waker.drain();
        while rustix::io::read(watch, &mut events).is_ok_and(|count| count > 0) {}
        let mut drained = Vec::new();
        for order in orders.try_iter() {
            match order {
                Order::Follow(tail) => tails.push(tail),
                Order::Over(path) => {
                    tails
                        .iter_mut()
                        .filter(|tail| tail.path == path)
                        .for_each(|tail| tail.over = true);
                }
                Order::Drain(done) => drained.push(done),
            }
        }
        pass_on(&mut tails);
        for done in drained {
            let _ = done.send(());
        }
    }
}

fn pass_on(tails: &mut Vec<Tail>) {
    for tail in &mut *tails {
        let to: &mut dyn Write = match tail.path.extension().map(OsStr::as_bytes) {
            Some(b"stdout") => &mut io::stdout(),
            _ => &mut io::stderr(),
        };
        if let Err(error) = tail.pass_on(to) {
            // There may be nobody to tell: the output itself may be what failed.
            tracing::debug!(path = %tail.path.display(), %error, "output is not passed on");
        }
    }
    tails.retain(|tail| {
        if tail.over {
            let _ = fs::remove_file(&tail.path);
            let _ = fs::remove_file(passed(&tail.path));
        }
        !tail.over
    });
}

/// The file that says how much of this one was passed on.
fn passed(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(PASSED);
    path.into()
}

impl Tail {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let passed = options.open(passed(path)).ok();
        let mut number = [0; 8];
        let read = match passed.as_ref().map(|passed| passed.read_exact_at(&mut number, 0)) {
            Some(Ok(())) => u64::from_le_bytes(number).min(file.metadata()?.len()),
            // What was passed on was given back, all but the last of it.
            _ => rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap_or(0),
        };
        Ok(Self { path: path.to_owned(), file, passed, read, freed: read, over: false })
    }

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
            let written =
                to.write_all(read.get(..whole).unwrap_or_default()).and_then(|()| to.flush());
            if let Some(passed) = &self.passed {
                // Without it the next supervisor passes on some of it again.
                let _ = passed.write_all_at(&self.read.to_le_bytes(), 0);
            }
            written?;
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
        let mut output = Output::start(dir.path().join("output")).unwrap();
        let (files, _stdout, stderr) = output.make("1").unwrap();
        let mut tail = Tail::open(&files.stderr).unwrap();
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
        let file = dir.path().join("1.stderr");
        let stderr = OwnedFd::from(File::create(&file).unwrap());
        let mut tail = Tail::open(&file).unwrap();
        let line = "x".repeat(1023) + "\n";
        for _ in 0..4 << 10 {
            write(&stderr, &line);
        }
        write(&stderr, "half a ");
        let mut seen = Vec::new();
        tail.pass_on(&mut seen).unwrap();
        assert_eq!(seen.len(), 4 << 20);
        use std::os::unix::fs::MetadataExt;
        let taken = fs::metadata(&file).unwrap().blocks() * 512;
        assert!(taken <= SHARE + KEPT + 4096, "{taken}");

        drop(tail);
        write(&stderr, "line\n");
        let mut seen = Vec::new();
        Tail::open(&file).unwrap().pass_on(&mut seen).unwrap();
        assert_eq!(String::from_utf8(seen).unwrap(), "half a line\n");

        // Where that is not written down, little of it is passed on again.
        fs::remove_file(passed(&file)).unwrap();
        let next = Tail::open(&file).unwrap();
        assert!(next.read >= (4 << 20) - SHARE - KEPT - 4096, "{}", next.read);
    }

    #[test]
    fn the_files_of_who_is_gone_are_removed() {
        let dir = tempfile::Builder::new().prefix("handoff output ").tempdir().unwrap();
        let mut output = Output::start(dir.path().to_path_buf()).unwrap();
        let (gone, ..) = output.make("1").unwrap();
        let (stays, ..) = output.make("2").unwrap();
        fs::write(dir.path().join("0.stderr"), "of long ago").unwrap();
        output.over(&gone);
        output.drain();
        output.clear();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        let mut expected = vec![stays.stdout.clone(), stays.stderr.clone()];
        expected.extend([passed(&stays.stdout), passed(&stays.stderr)]);
        expected.sort();
        assert_eq!(left, expected);
    }
}

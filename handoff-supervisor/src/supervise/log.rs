//! The supervisor's log: lines on standard error, written by a thread of its own, so that a reader who
//! does not read holds up nothing else.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// How many lines wait for a reader; those that come then are left out.
const WAITING: usize = 4096;
/// How long a supervisor that ends waits for the reader.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Clone, Debug)]
pub(super) struct Log {
    to: SyncSender<Said>,
    left_out: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Said {
    Line(Vec<u8>),
    Flush(Sender<()>),
}

impl Log {
    /// One that writes there.
    pub(super) fn start(to: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, said) = mpsc::sync_channel(WAITING);
        let left_out = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&left_out);
        thread::Builder::new().name("log".into()).spawn(move || write(to, &said, &counted))?;
        Ok(Self { to: sender, left_out })
    }

    /// Waits until all is written, for a second at most.
    pub(super) fn flush(&self) {
        let (done, wait) = mpsc::channel();
        if self.to.try_send(Said::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(PATIENCE);
        }
    }
}

fn write(mut to: impl Write, said: &Receiver<Said>, left_out: &AtomicU64) {
    for said in said {
        // Nobody could be told of an error.
        match said {
            Said::Line(line) => drop(to.write_all(&line)),
            Said::Flush(done) => drop(done.send(())),
        }
        let count = left_out.swap(0, Ordering::Relaxed);
        if count > 0 {
            let _ = writeln!(to, "{count} lines are left out here: nobody read them in time");
        }
    }
}

/// A line at a time.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.to.try_send(Said::Line(line.to_vec())).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn a_reader_who_does_not_read_holds_up_nobody() {
        let (reader, writer) = io::pipe().unwrap();
        let mut log = Log::start(writer).unwrap();
        let line = "x".repeat(1023) + "\n";
        // More than a pipe and the queue hold.
        for _ in 0..2 * WAITING {
            log.write_all(line.as_bytes()).unwrap();
        }
        let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("lines are left out")));
        log.write_all(b"the last\n").unwrap();
        assert!(lines.any(|line| line == "the last"));
        log.flush();
    }
}

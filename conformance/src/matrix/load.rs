//! The clients of a run, and what became of each of their requests.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::cast::Speech;
use crate::suite::program::{data_dir, writes};

/// How many clients write one request after the other.
const CLIENTS: u64 = 3;

/// The pace of each.
const PACE: Duration = Duration::from_millis(25);

/// How often one comes who waits for nobody, so that some request has always just begun.
const VISITOR: Duration = Duration::from_millis(200);

/// How long a client waits. Longer than anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Writes of many clients to one daemon, until it is stopped.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    speech: Speech,
    pace: Duration,
    patience: Duration,
    stop: AtomicBool,
    number: AtomicU64,
    record: Mutex<Record>,
}

/// What became of the requests that are over.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    pub(super) acknowledged: Vec<Request>,
    pub(super) failed: Vec<(Request, Failure)>,
}

/// A write of `key`, which no other request has.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) key: String,
    pub(super) begun: Instant,
    pub(super) over: Instant,
}

/// How a request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Failed {
    /// Nobody listened, or nobody answered for too long.
    Refused,
    /// The connection broke.
    Cut,
    /// It was answered that this cannot be.
    Declined,
}

/// Why a request was not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) kind: Failed,
    pub(super) why: String,
}

impl Load {
    pub(super) fn start(address: SocketAddr, speech: Speech) -> io::Result<Self> {
        Self::paced(address, speech, PACE, PATIENCE)
    }

    /// The same with another pace of each client, and another patience.
    pub(super) fn paced(
        address: SocketAddr,
        speech: Speech,
        pace: Duration,
        patience: Duration,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            address,
            speech,
            pace,
            patience,
            stop: AtomicBool::new(false),
            number: AtomicU64::new(0),
            record: Mutex::default(),
        });
        let client = |visits: bool| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("client".into()).spawn(move || shared.writes(visits))
        };
        let clients = (0..CLIENTS).map(|_| client(false)).chain([client(true)]);
        let threads = clients.collect::<io::Result<_>>()?;
        Ok(Self { shared, threads })
    }

    /// When the last request that was acknowledged had begun.
    pub(super) fn last_begun(&self) -> Option<Instant> {
        self.shared.record().acknowledged.iter().map(|request| request.begun).max()
    }

    /// Makes no more requests than those under way.
    pub(super) fn no_more(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Whether no request is under way any more.
    pub(super) fn is_over(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// What became of the requests that are over.
    pub(super) fn record(self) -> Record {
        self.shared.record().clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writes(self: Arc<Self>, visits: bool) {
        let mut visitors = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            if visits {
                let visited = Arc::clone(&self);
                visitors.push(thread::spawn(move || visited.write()));
                visitors.retain(|visitor: &JoinHandle<()>| !visitor.is_finished());
                thread::park_timeout(VISITOR);
            } else {
                self.write();
                thread::park_timeout(self.pace);
            }
        }
        for visitor in visitors {
            let _ = visitor.join();
        }
    }

    fn write(&self) {
        let key = format!("w{}", self.number.fetch_add(1, Ordering::Relaxed));
        let begun = Instant::now();
        let answered = self.ask(&key);
        let request = Request { key, begun, over: Instant::now() };
        let mut record = self.record();
        match answered {
            Ok(()) => record.acknowledged.push(request),
            Err(failure) => record.failed.push((request, failure)),
        }
    }

    fn ask(&self, key: &str) -> Result<(), Failure> {
        let failed = |what: &str, error: io::Error| Failure {
            kind: match error.kind() {
                io::ErrorKind::ConnectionRefused => Failed::Refused,
                _ => Failed::Cut,
            },
            why: format!("{what}: {error}"),
        };
        let mut stream = TcpStream::connect_timeout(&self.address, self.patience)
            .map_err(|error| failed("not connected", error))?;
        let request = match self.speech {
            Speech::Http => format!("PUT /{key} HTTP/1.1\r\nContent-Length: 1\r\n\r\n1"),
            Speech::Lines => format!("{key}\n"),
        };
        let mut answer = String::new();
        stream
            .set_read_timeout(Some(self.patience))
            .and_then(|()| stream.write_all(request.as_bytes()))
            .and_then(|()| match self.speech {
                Speech::Http => Ok(()),
                Speech::Lines => stream.shutdown(Shutdown::Write),
            })
            .and_then(|()| stream.read_to_string(&mut answer))
            .map_err(|error| failed("not answered", error))?;
        let whole = match self.speech {
            Speech::Http => answer.starts_with("HTTP/1.1 2") && answer.contains("\r\n\r\n"),
            Speech::Lines => answer.ends_with('\n'),
        };
        let declined = self.speech == Speech::Http && answer.starts_with("HTTP/1.1 503");
        let kind = if declined { Failed::Declined } else { Failed::Cut };
        if whole { Ok(()) } else { Err(Failure { kind, why: format!("answered {answer:?}") }) }
    }
}

/// The keys that a daemon's data holds, while nobody has it open.
pub(super) fn stored(dir: &Path, speech: Speech) -> Result<Vec<String>, String> {
    match speech {
        Speech::Lines => {
            let log = std::fs::read_to_string(writes(dir)).map_err(|error| error.to_string())?;
            Ok(log.lines().map(str::to_string).collect())
        }
        Speech::Http => database(&data_dir(dir)).map_err(|error| error.to_string()),
    }
}

/// The keys in the example daemon's database in this directory.
pub(super) fn database(data_dir: &Path) -> Result<Vec<String>, redb::Error> {
    const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
    let db = Database::open(data_dir.join("kv.redb"))?;
    let values = db.begin_read()?.open_table(VALUES)?;
    let keys = values.iter()?.map(|entry| entry.map(|(key, _)| key.value()[1..].to_string()));
    Ok(keys.collect::<Result<_, _>>()?)
}

/// What of `acknowledged` is not stored, or stored twice.
pub(super) fn lost(acknowledged: &[Request], stored: &[String]) -> Vec<String> {
    let (mut once, mut twice) = (BTreeSet::new(), BTreeSet::new());
    for key in stored {
        if !once.insert(key.as_str()) {
            twice.insert(key.as_str());
        }
    }
    let keys = acknowledged.iter().map(|request| request.key.as_str());
    keys.filter(|key| !once.contains(key) || twice.contains(key)).map(str::to_string).collect()
}

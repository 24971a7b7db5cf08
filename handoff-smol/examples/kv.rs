//! A key-value daemon that is replaced with no refused connection and no lost write: copy it.
//!
//! `PUT /key` stores the body and answers once it is durable, `GET /key` gives it back,
//! `GET /healthz` says whether the daemon is well. The handoff is all in one place, see below.
//!
//! Settings: `KV_CONTROL`, the path of its control socket; `KV_DATA`, its data directory, which
//! must exist; `KV_LISTEN`, the address to listen at where no supervisor passes a listener. For
//! trying failures: with `KV_UNHEALTHY` set it calls itself unfit, with `KV_DIE_AFTER_BEGIN` set it
//! dies once it has opened its data.

use std::env;
use std::error::Error;
use std::fmt::Display;
use std::fs;
use std::future::Future;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{self, ExitCode};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_signal::{Signal, Signals};
use handoff_smol::{
    Config, Daemon, DrainContext, DrainReport, Ended, HookError, Hooks, Listener, Off, Readiness,
    SealContext, SealReport,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use smol::Timer;
use smol::channel::{self, Receiver, Sender};
use smol::future::or;
use smol::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};
use smol::stream::StreamExt;

const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

/// How long a client may dawdle with its request, and then with its answer. A drain waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_REQUEST: usize = 1 << 20;

type Failure = Box<dyn Error + Send + Sync>;

/// Runs the daemon until it is replaced or told to stop.
pub fn main() -> ExitCode {
    main_on(smol::block_on)
}

/// The same, under the `block_on` of any runtime: async-std's, say.
pub fn main_on(
    block_on: impl FnOnce(Pin<Box<dyn Future<Output = ExitCode>>>) -> ExitCode,
) -> ExitCode {
    // What the handoff has to say: who was turned away and why, what was rolled back.
    let log_lines = tracing_subscriber::fmt().without_time().with_ansi(false);
    // It fails only where somebody has set up a log already, which is as good.
    let _ = log_lines.with_writer(io::stderr).with_max_level(tracing::Level::WARN).try_init();
    let setting = |name| env::var(name).map_err(|error| format!("{name}: {error}"));
    let run = async move || serve(setting("KV_CONTROL")?, setting("KV_DATA")?).await;
    block_on(Box::pin(async move {
        match run().await {
            Ok(ended) => {
                log(&ended);
                ended.exit_code().into()
            }
            Err(error) => {
                log(error);
                ExitCode::FAILURE
            }
        }
    }))
}

// ---- The handoff begins here -------------------------------------------------------------------

async fn serve(control: String, data: String) -> Result<Ended, Failure> {
    let mut daemon = Daemon::from_env(Config::new(control, data))?;
    let http = daemon.listener("http", bind).await?;
    let listening_on = vec![http.local_addr()?.to_string()];
    // Slow work that needs no data belongs here: whoever is to be replaced still serves.
    let grant = match daemon.begin().await {
        Ok(grant) => grant,
        Err(ended) => return Ok(ended),
    };
    // From here on the data is this process's alone. An error gives it back.
    let server = Server::open(http, grant.data_dir()).await?;
    let revisions = vec![server.blocking(|server| server.data(revision)).await?];
    let mut signals = Signals::new([Signal::Term, Signal::Int])?;
    let connections = vec![server.accept()];
    let serving = grant.ready(Readiness { listening_on, healthz_ok: server.healthy, revisions });
    let stop = serving.stopper();
    let stopping = async move {
        signals.next().await;
        stop.stop();
    };
    smol::spawn(stopping).detach();
    Ok(serving.run(Handoff { server, connections }).await)
}

impl Hooks for Handoff {
    async fn drain(&mut self, drain: &DrainContext) -> Result<DrainReport, HookError> {
        self.finish_connections(drain.grace(), drain.off()).await?;
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }
    async fn seal(&mut self, _: &SealContext) -> Result<SealReport, HookError> {
        let revisions = self.server.blocking(Server::close).await?.into_iter().collect();
        Ok(SealReport { revisions, ..SealReport::default() })
    }
    async fn resume(&mut self) -> Result<(), HookError> {
        self.server.blocking(Server::reopen).await?;
        self.connections.push(self.server.accept());
        Ok(())
    }
}

// ---- and ends here. The rest is a plain server that can do two things more: stop accepting and
// ---- finish what it accepted, and close its data and open it again. ----------------------------

struct Handoff {
    server: Arc<Server>,
    /// For each time it began to accept.
    connections: Vec<Connections>,
}

struct Connections {
    /// Closed to stop accepting.
    accepting: Sender<()>,
    /// Hung up once accepting has stopped and the last connection is done.
    open: Receiver<()>,
}

impl Handoff {
    async fn finish_connections(&mut self, grace: Duration, off: Off) -> Result<(), Failure> {
        let done = async {
            while let Some(connections) = self.connections.last() {
                connections.accepting.close();
                let _ = connections.open.recv().await;
                self.connections.pop();
            }
            Ok(())
        };
        let off = async {
            off.await;
            Err("the handoff is off".into())
        };
        let late = async {
            Timer::after(grace).await;
            Err("requests are still running".into())
        };
        or(done, or(off, late)).await
    }
}

struct Server {
    http: Listener,
    file: PathBuf,
    db: RwLock<Data>,
    healthy: bool,
}

/// What it stores, while it has the lock and is not sealed.
enum Data {
    Open(Database),
    /// Its file system has failed it.
    Broken,
    Closed,
}

impl Data {
    fn open(&mut self, file: &Path) {
        // The old one first: a database is open once.
        *self = Self::Broken;
        match open(file) {
            Ok(db) => *self = Self::Open(db),
            Err(error) => log(format!("the data cannot be opened for now: {error}")),
        }
    }
}

impl Server {
    async fn open(http: Listener, data: &Path) -> Result<Arc<Self>, Failure> {
        let healthy = env::var_os("KV_UNHEALTHY").is_none();
        let file = data.join("kv.redb");
        let server = Arc::new(Self { http, file, db: RwLock::new(Data::Closed), healthy });
        server.blocking(Self::reopen).await?;
        if env::var_os("KV_DIE_AFTER_BEGIN").is_some() {
            log("dying, as KV_DIE_AFTER_BEGIN says");
            process::exit(1);
        }
        Ok(server)
    }

    /// Does what waits for the disk where that holds nobody up.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let server = Arc::clone(self);
        smol::unblock(move || f(&server)).await
    }

    fn data<T>(&self, f: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, Failure> {
        let result = match &*self.db.read().unwrap_or_else(PoisonError::into_inner) {
            Data::Open(db) => f(db),
            Data::Broken => Err(redb::Error::PreviousIo),
            Data::Closed => return Err("the data is closed".into()),
        };
        if let Err(redb::Error::Io(_) | redb::Error::PreviousIo) = result {
            // A database that a file system has failed once is to be opened again.
            let mut data = self.db.write().unwrap_or_else(PoisonError::into_inner);
            if !matches!(*data, Data::Closed) {
                data.open(&self.file);
            }
        }
        Ok(result?)
    }

    /// Closes the data once nobody uses it; gives its last revision, if it can be told.
    fn close(&self) -> Result<Option<u64>, Failure> {
        let mut data = self.db.write().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *data, Data::Closed) {
            Data::Open(db) => {
                let revision = revision(&db).ok();
                db.close()?;
                Ok(revision)
            }
            Data::Broken => Ok(None),
            Data::Closed => Err("the data is closed".into()),
        }
    }

    /// Opens the data where it is closed. Where that fails, the next request tries again.
    fn reopen(&self) -> Result<(), Failure> {
        let mut data = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if let Data::Closed = *data {
            data.open(&self.file);
        }
        Ok(())
    }

    /// Serves connections, each in a task of its own, until told to stop.
    fn accept(self: &Arc<Self>) -> Connections {
        let (accepting, stopped) = channel::bounded::<()>(1);
        let (sender, open) = channel::bounded::<()>(1);
        let server = Arc::clone(self);
        let accept = async move {
            log("accepting");
            loop {
                let stop = async {
                    let _ = stopped.recv().await;
                    None
                };
                let stream = match or(stop, async { Some(server.http.accept().await) }).await {
                    Some(Ok((stream, _))) => stream,
                    Some(Err(error)) => return log(format!("cannot accept any more: {error}")),
                    None => return log("stopped accepting"),
                };
                let (on, open) = (Arc::clone(&server), sender.clone());
                let serve = async move {
                    let _ = on.answer(stream).await; // An error is the client's, who went away.
                    drop(open);
                };
                smol::spawn(serve).detach();
            }
        };
        smol::spawn(accept).detach();
        Connections { accepting, open }
    }

    async fn answer(self: &Arc<Self>, mut stream: TcpStream) -> io::Result<()> {
        let (status, body) = match patiently(read_request(&mut stream)).await? {
            Some((method, path, body)) => {
                let response = self.blocking(move |server| server.respond(&method, &path, &body));
                response.await.unwrap_or_else(|error| {
                    log(&error);
                    ("503 Service Unavailable", error.to_string().into())
                })
            }
            None => ("400 Bad Request", "not a request that is served here".into()),
        };
        let (close, length) = ("Connection: close", body.len());
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{close}\r\n\r\n");
        patiently(stream.write_all(&[head.as_bytes(), &body].concat())).await
    }

    fn respond(&self, method: &str, path: &str, body: &[u8]) -> Result<Response, Failure> {
        Ok(match (method, path) {
            ("GET", "/healthz") if self.healthy => ("200 OK", "ok".into()),
            ("GET", "/healthz") => ("503 Service Unavailable", "unfit to serve".into()),
            ("GET", key) => match self.data(|db| get(db, key))? {
                Some(value) => ("200 OK", value),
                None => ("404 Not Found", "no such key".into()),
            },
            ("PUT", key) => {
                self.data(|db| put(db, key, body))?;
                ("204 No Content", Vec::new())
            }
            _ => ("405 Method Not Allowed", "GET and PUT only".into()),
        })
    }
}

type Response = (&'static str, Vec<u8>);

async fn patiently<T>(io: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = async {
        Timer::after(PATIENCE).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    or(io, late).await
}

/// Reads a request: its method, path and body. `None` if it is malformed or too long.
async fn read_request(
    mut stream: impl AsyncRead + Unpin,
) -> io::Result<Option<(String, String, Vec<u8>)>> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    while bytes.len() < LONGEST_REQUEST {
        match stream.read(&mut chunk).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let head = match request.parse(&bytes) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) => continue,
            Err(_) => return Ok(None),
        };
        let length = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case("Content-Length"));
        let length = length.map_or(Some(0), |h| std::str::from_utf8(h.value).ok()?.parse().ok());
        let (Some(method), Some(path), Some(length)) = (request.method, request.path, length)
        else {
            return Ok(None);
        };
        if let Some(body) = bytes[head..].get(..length) {
            return Ok(Some((method.to_owned(), path.to_owned(), body.to_vec())));
        }
    }
    Ok(None)
}

async fn bind() -> io::Result<TcpListener> {
    TcpListener::bind(env::var("KV_LISTEN").map_err(|_| io::Error::other("set KV_LISTEN"))?).await
}

/// Opens the database. A new one is made aside, and has its name when it is whole: who dies on the way
/// leaves nothing that cannot be opened.
fn open(file: &Path) -> Result<Database, redb::Error> {
    if !file.exists() {
        let new = file.with_extension("new");
        let _ = fs::remove_file(&new);
        let db = Database::create(&new)?;
        let tables = db.begin_write()?;
        tables.open_table(VALUES)?;
        tables.open_table(COUNTERS)?;
        tables.commit()?;
        db.close()?;
        fs::rename(new, file).map_err(redb::Error::Io)?;
    }
    Ok(Database::open(file)?)
}

/// The last revision: how many writes there were.
fn revision(db: &Database) -> Result<u64, redb::Error> {
    let counters = db.begin_read()?.open_table(COUNTERS)?;
    Ok(counters.get("revision")?.map_or(0, |revision| revision.value()))
}

fn get(db: &Database, key: &str) -> Result<Option<Vec<u8>>, redb::Error> {
    let values = db.begin_read()?.open_table(VALUES)?;
    Ok(values.get(key)?.map(|value| value.value().to_vec()))
}

/// Returns once it is durable.
fn put(db: &Database, key: &str, value: &[u8]) -> Result<(), redb::Error> {
    let write = db.begin_write()?;
    write.open_table(VALUES)?.insert(key, value)?;
    {
        let mut counters = write.open_table(COUNTERS)?;
        let revision = counters.get("revision")?.map_or(0, |revision| revision.value());
        counters.insert("revision", revision + 1)?;
    }
    Ok(write.commit()?)
}

/// One write for each line, and no panic when nobody reads them.
fn log(message: impl Display) {
    let _ = io::stderr().write_all(format!("kv[{}]: {message}\n", process::id()).as_bytes());
}

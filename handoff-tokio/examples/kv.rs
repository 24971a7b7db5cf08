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
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use handoff_tokio::{
    Config, Daemon, DrainContext, DrainReport, Ended, HookError, Hooks, Listener, Off, Readiness,
    SealContext, SealReport,
};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

/// How long a client may dawdle with its request's head, then with its body, and then with its
/// answer. A drain waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_REQUEST: usize = 1 << 20;

type Failure = Box<dyn Error + Send + Sync>;

/// Runs the daemon until it is replaced or told to stop.
pub fn main() -> ExitCode {
    // What the handoff has to say: who was turned away and why, what was rolled back.
    let log_lines = tracing_subscriber::fmt().without_time().with_ansi(false);
    // It fails only where somebody has set up a log already, which is as good.
    let _ = log_lines.with_writer(io::stderr).with_max_level(tracing::Level::WARN).try_init();
    let setting = |name| env::var(name).map_err(|error| format!("{name}: {error}"));
    let run = || Runtime::new()?.block_on(serve(setting("KV_CONTROL")?, setting("KV_DATA")?));
    match run() {
        Ok(ended) => {
            log(&ended);
            ended.exit_code().into()
        }
        Err(error) => {
            log(error);
            ExitCode::FAILURE
        }
    }
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
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let accepting = Some(server.accept());
    let serving = grant.ready(Readiness { listening_on, healthz_ok: server.healthy, revisions });
    let stop = serving.stopper();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        stop.stop();
    });
    Ok(serving.run(Handoff { server, accepting }).await)
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
        self.accepting = Some(self.server.accept());
        Ok(())
    }
}

// ---- and ends here. The rest is a plain server that can do two things more: stop accepting and
// ---- finish what it accepted, and close its data and open it again. ----------------------------

struct Handoff {
    server: Arc<Server>,
    /// Dropped to stop accepting.
    accepting: Option<oneshot::Sender<()>>,
}

impl Handoff {
    async fn finish_connections(&mut self, grace: Duration, off: Off) -> Result<(), Failure> {
        self.accepting = None;
        tokio::select! {
            () = self.server.busy.closed() => Ok(()),
            () = off => Err("the handoff is off".into()),
            () = sleep(grace) => Err("requests are still running".into()),
        }
    }
}

struct Server {
    http: Listener,
    file: PathBuf,
    db: RwLock<Data>,
    healthy: bool,
    /// Closed while nobody accepts and no connection is left.
    busy: watch::Sender<()>,
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
        let (db, busy) = (RwLock::new(Data::Closed), watch::Sender::default());
        let server = Arc::new(Self { http, file, db, healthy, busy });
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
        spawn_blocking(move || f(&server)).await?
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

    /// Serves connections, each in a task of its own, until what it gives is dropped.
    fn accept(self: &Arc<Self>) -> oneshot::Sender<()> {
        let (accepting, mut stopped) = oneshot::channel();
        let (server, busy) = (Arc::clone(self), self.busy.subscribe());
        // Every path is a key, so there is one handler for all.
        let router = Router::new().fallback(answer).with_state(Arc::clone(self));
        tokio::spawn(async move {
            log("accepting");
            loop {
                let stream = tokio::select! {
                    biased;
                    _ = &mut stopped => return log("stopped accepting"),
                    accepted = server.http.accept() => match accepted {
                        Ok((stream, _)) => stream,
                        Err(error) => return log(format!("cannot accept any more: {error}")),
                    },
                };
                let (router, busy) = (router.clone(), busy.clone());
                tokio::spawn(async move {
                    converse(router, stream).await;
                    drop(busy);
                });
            }
        });
        accepting
    }

    fn respond(&self, method: &str, path: &str, body: &[u8]) -> Result<Response, Failure> {
        Ok(match (method, path) {
            ("GET", "/healthz") if self.healthy => (StatusCode::OK, "ok".into()),
            ("GET", "/healthz") => (StatusCode::SERVICE_UNAVAILABLE, "unfit to serve".into()),
            ("GET", key) => match self.data(|db| get(db, key))? {
                Some(value) => (StatusCode::OK, value),
                None => (StatusCode::NOT_FOUND, "no such key".into()),
            },
            ("PUT", key) => {
                self.data(|db| put(db, key, body))?;
                (StatusCode::NO_CONTENT, Vec::new())
            }
            _ => (StatusCode::METHOD_NOT_ALLOWED, "GET and PUT only".into()),
        })
    }
}

type Response = (StatusCode, Vec<u8>);

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(Ok(body)) = timeout(PATIENCE, to_bytes(body, LONGEST_REQUEST)).await else {
        return (StatusCode::BAD_REQUEST, "not a request that is served here".into());
    };
    let (method, path) = (head.method, head.uri.to_string());
    let response = server.blocking(move |server| server.respond(method.as_str(), &path, &body));
    response.await.unwrap_or_else(|error| {
        log(&error);
        (StatusCode::SERVICE_UNAVAILABLE, error.to_string().into())
    })
}

/// Answers the one request of a connection.
///
/// In place of `axum::serve`, because its graceful shutdown closes a connection whose request it has
/// not begun to read, though that was accepted, and may have been sent.
async fn converse(router: Router, stream: TcpStream) {
    let (router, answered) = (TowerToHyperService::new(router), Notify::new());
    let service = service_fn(async |request| {
        let answer = router.call(request).await;
        answered.notify_one();
        answer
    });
    let mut http = http1::Builder::new();
    // A client that has closed its half still waits for the answer.
    http.keep_alive(false).half_close(true);
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    tokio::select! {
        _ = http.serve_connection(TokioIo::new(stream), service) => {} // An error is the client's.
        () = async { answered.notified().await; sleep(PATIENCE).await } => {}
    }
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

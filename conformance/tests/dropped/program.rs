//! The daemon processes. One serves writes, and drops a part of the public API where `TEST_DROP` says;
//! what is left of it then it tells in a file, `saw-` and its pid.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::future::{Future, pending, poll_fn};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use handoff_core::daemon::{DrainReport, Ended, Readiness, SealReport};
use handoff_unix::host::task::{Grant, Hooks};
use handoff_unix::host::{Config, DrainContext, HookError, SealContext};

use crate::adapters::{Adapter, PATIENCE, Smol, Tokio, block_on, first, polled, unless};
use crate::bench::{calm, fds, threads};

/// What a daemon process runs, if this is one.
pub fn main() {
    let Ok(dir) = std::env::var("TEST_DIR") else { return };
    let program = Program { dir: dir.into(), point: std::env::var("TEST_DROP").unwrap() };
    // A scenario that fails leaves no daemon.
    let parent = rustix::process::getppid();
    std::thread::spawn(move || {
        while rustix::process::getppid() == parent {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        std::process::exit(9);
    });
    let runtime = std::env::var("TEST_RUNTIME").unwrap();
    let code = match runtime.as_str() {
        "tokio-current" | "tokio-multi" => block_on(&runtime, program.run::<Tokio>()),
        "blocking" => program.block(),
        _ => block_on(&runtime, program.run::<Smol>()),
    };
    std::process::exit(code);
}

/// Writes, one a line. Its file is locked while it is open, which tells whether another process has it
/// open too.
struct Store(File);

impl Store {
    fn open(dir: &Path, data: &Path) -> Self {
        let file =
            OpenOptions::new().create(true).append(true).open(data.join("writes.log")).unwrap();
        // A process that dies lets go of its files one after the other.
        let limit = Instant::now() + Duration::from_secs(1);
        while file.try_lock().is_err() {
            if Instant::now() > limit {
                std::fs::write(dir.join("two-writers"), "").unwrap();
                panic!("another process has the data open");
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        Self(file)
    }

    /// Answers one connection.
    fn serve(&mut self, mut stream: TcpStream) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut value = String::new();
        if BufReader::new(&mut stream).read_line(&mut value).is_ok_and(|count| count > 0) {
            self.0.write_all(value.as_bytes()).unwrap();
            self.0.sync_data().unwrap();
            let _ = writeln!(stream, "{}", std::process::id());
        }
    }
}

/// What the hooks share with the loop that accepts.
#[derive(Clone)]
struct Shared {
    dir: PathBuf,
    point: String,
    store: Rc<RefCell<Option<Store>>>,
    accepting: Rc<Cell<bool>>,
    /// Where the program stands, once that is where it is to be dropped.
    there: Rc<Cell<bool>>,
}

impl Shared {
    /// The program stands here, and goes no further if that is where it is to be dropped.
    async fn stand(&self, point: &str) {
        if self.point == point {
            self.there.set(true);
            pending().await
        }
    }
}

struct Serve<A>(Shared, std::marker::PhantomData<A>);

impl<A: Adapter> Hooks for Serve<A> {
    async fn drain(&mut self, drain: &DrainContext) -> Result<DrainReport, HookError> {
        self.0.accepting.set(false);
        self.0.stand("run:drain").await;
        if self.0.dir.join("hold-drain").exists() {
            drain.off().await;
        }
        // It is dropped when it has answered.
        self.0.there.set(self.0.point == "run:drained");
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    async fn seal(&mut self, seal: &SealContext) -> Result<SealReport, HookError> {
        self.0.stand("run:seal").await;
        if self.0.dir.join("hold-seal").exists() {
            seal.off().await;
        }
        self.0.store.take().ok_or("sealed twice")?.0.sync_all()?;
        self.0.there.set(self.0.point == "run:sealed");
        Ok(SealReport::default())
    }

    async fn resume(&mut self) -> Result<(), HookError> {
        self.0.stand("run:resume").await;
        let mut store = self.0.store.borrow_mut();
        let dir = &self.0.dir;
        store.get_or_insert_with(|| Store::open(dir, &dir.join("data")));
        self.0.accepting.set(true);
        Ok(())
    }
}

impl<A> Drop for Serve<A> {
    /// What a program holds may take its time to go.
    fn drop(&mut self) {
        if self.0.there.get() {
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
}

/// What there was before the adapter was used, but for what it inherited.
struct Before {
    fds: BTreeMap<String, usize>,
    threads: Vec<String>,
}

impl Before {
    fn now() -> Self {
        let runtime = std::env::var("TEST_RUNTIME").unwrap();
        let number = |name| std::env::var(name).map_or(0, |value: String| value.parse().unwrap());
        let inherited: usize = number("LISTEN_FDS");
        let control = usize::from(std::env::var("HANDOFF_SOCK_FD").is_ok());
        let mut fds = fds();
        take(&mut fds, "socket", inherited + control);
        Self { fds, threads: calm(&runtime, &["daemon", "daemon"]) }
    }
}

fn take(fds: &mut BTreeMap<String, usize>, kind: &str, count: usize) {
    if count > 0 {
        let left = fds.remove(kind).unwrap() - count;
        if left > 0 {
            fds.insert(kind.to_string(), left);
        }
    }
}

struct Program {
    dir: PathBuf,
    point: String,
}

fn readiness() -> Readiness {
    Readiness { listening_on: vec!["tcp".into()], healthz_ok: true, revisions: vec![] }
}

impl Program {
    fn config(&self) -> Config {
        Config::new(self.dir.join("c.sock"), self.dir.join("data"))
    }

    fn at(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    fn polls(&self, of: &str) -> Option<usize> {
        self.point.strip_prefix(of)?.parse().ok()
    }

    /// Its exit code.
    async fn run<A: Adapter>(self) -> i32 {
        A::warm().await;
        let before = Before::now();
        let mut daemon = A::daemon(self.config());
        let listener = A::inherited(&mut daemon).await;
        let hold = std::env::var("TEST_HOLD").unwrap_or_default();
        while hold == "warm" && !self.at("go") {
            A::pause().await;
        }
        if self.point == "daemon" {
            drop((daemon, listener));
            return self.tell::<A>(&before).await;
        }
        let Some(begun) = self.begin::<A>(daemon).await else {
            drop(listener);
            return self.tell::<A>(&before).await;
        };
        let grant = match begun {
            Ok(grant) => grant,
            Err(ended) => return ended.exit_code().into(),
        };
        if self.point == "grant" {
            drop((grant, listener));
            return self.tell::<A>(&before).await;
        }
        if let Some(polls) = self.polls("fail:") {
            let ended = polled(grant.fail("injected"), polls).await;
            assert!(matches!(ended, None | Some(Ended::OpenFailed(_))), "{ended:?}");
            drop(listener);
            return self.tell::<A>(&before).await;
        }
        while hold == "open" && !grant.is_off() && !self.at("go") {
            A::pause().await;
        }
        if std::env::var_os("TEST_FAIL").is_some() || (hold == "open" && grant.is_off()) {
            return grant.fail("injected").await.exit_code().into();
        }
        let shared = Shared {
            store: Rc::new(RefCell::new(Some(Store::open(&self.dir, grant.data_dir())))),
            dir: self.dir.clone(),
            point: self.point.clone(),
            accepting: Rc::new(Cell::new(true)),
            there: Rc::default(),
        };
        let serving = grant.ready(readiness());
        if self.point == "serving" {
            drop((serving, listener));
            return self.tell::<A>(&before).await;
        }
        let run = serving.run(Serve::<A>(shared.clone(), std::marker::PhantomData));
        match serve::<A>(run, &listener, &shared).await {
            Some(ended) => ended.exit_code().into(),
            None => {
                drop(listener);
                self.tell::<A>(&before).await
            }
        }
    }

    async fn begin<A: Adapter>(&self, daemon: A::Daemon) -> Option<Result<Grant, Ended>> {
        let begin = A::begin(daemon);
        if let Some(polls) = self.polls("begin:") {
            // On another thread it may have been granted by then.
            drop(polled(begin, polls).await);
            return None;
        }
        if self.point == "begin@drop" {
            let told = async {
                while !self.at("drop") {
                    A::pause().await;
                }
            };
            return first(begin, told).await.ok();
        }
        Some(begin.await)
    }

    /// Tells what is left once the protocol's task is gone; then its exit code. It stays while the
    /// scenario wants that.
    async fn tell<A: Adapter>(&self, before: &Before) -> i32 {
        let limit = Instant::now() + PATIENCE / 2;
        while !self.told(before, Instant::now() > limit) {
            A::pause().await;
        }
        while self.at("stay") {
            A::pause().await;
        }
        7
    }

    /// Whether nothing of the adapter is left, which is then told; if `late`, whatever is left.
    fn told(&self, before: &Before, late: bool) -> bool {
        let (mut kept, mut rest) = (Vec::new(), BTreeMap::new());
        let data = self.dir.join("data");
        for (kind, count) in fds() {
            match Path::new(&kind).strip_prefix(&data) {
                Ok(name) => kept.push(name.display().to_string()),
                Err(_) => drop(rest.insert(kind, count)),
            }
        }
        let threads = threads();
        let nothing = rest == before.fds && threads == before.threads;
        if nothing || late {
            let was = if nothing {
                String::new()
            } else {
                format!("; {rest:?}, {threads:?}; before: {:?}, {:?}", before.fds, before.threads)
            };
            let name = format!("saw-{}", std::process::id());
            let temporary = self.dir.join("saw.tmp");
            std::fs::write(&temporary, format!("kept {}{was}", kept.join(" "))).unwrap();
            std::fs::rename(temporary, self.dir.join(name)).unwrap();
        }
        nothing || late
    }

    /// The same on threads, where only handles can be dropped.
    fn block(self) -> i32 {
        let before = Before::now();
        let mut daemon = handoff_blocking::Daemon::from_env(self.config()).unwrap();
        let listener = daemon.listener("tcp", || std::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.unwrap();
        let tell = || {
            // A job that was under way may take a moment, and a thread that was joined too.
            let limit = Instant::now() + PATIENCE / 2;
            while !self.told(&before, Instant::now() > limit) {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            while self.at("stay") {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            7
        };
        if self.point == "daemon" {
            drop((daemon, listener));
            return tell();
        }
        let grant = match daemon.begin() {
            Ok(grant) => grant,
            Err(ended) => return ended.exit_code().into(),
        };
        if self.point == "grant" {
            drop((grant, listener));
            return tell();
        }
        let mut store = Store::open(&self.dir, grant.data_dir());
        let serving = grant.ready(readiness());
        if self.point == "run:idle" {
            store.serve(listener.accept().unwrap().0);
        }
        drop((serving, listener));
        tell()
    }
}

/// Serves, until the daemon has ended or is where it is to be dropped: `None`.
async fn serve<A: Adapter>(
    run: impl Future<Output = Ended>,
    listener: &A::Listener,
    shared: &Shared,
) -> Option<Ended> {
    let mut accept: Option<Pin<Box<dyn Future<Output = TcpStream>>>> = None;
    let mut run = Box::pin(run);
    let both = poll_fn(|cx| {
        if let Poll::Ready(ended) = run.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        while shared.accepting.get() {
            let next = accept.get_or_insert_with(|| {
                let listener = listener.clone();
                Box::pin(async move { A::accept(&listener).await })
            });
            let Poll::Ready(stream) = next.as_mut().poll(cx) else { return Poll::Pending };
            accept = None;
            if let Some(store) = shared.store.borrow_mut().as_mut() {
                store.serve(stream);
            }
            shared.there.set(shared.point == "run:idle");
        }
        // Whoever waits is served by who accepts next.
        accept = None;
        Poll::Pending
    });
    unless(both, || shared.there.get()).await
}

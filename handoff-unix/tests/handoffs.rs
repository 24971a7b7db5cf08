//! Whole handoffs of a small daemon: what it is told, and what is seen by who watches its supervisor.
//!
//! The daemon is this very program, started again with the ignored test at the end of the file.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    unsafe_code,
    reason = "a test, which ignores a signal"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant};

use handoff_core::HandoffId;
use handoff_core::daemon::{DrainReport, Readiness, SealReport};
use handoff_core::supervisor::{Event as Told, Phase, Report, Verdict};
use handoff_unix::host::{
    Config, DaemonHost, DrainContext, Front, Handoff, HookError, Hooks, Host, Request, SealContext,
    StartError, SupervisorConfig, SupervisorHost,
};
use handoff_unix::poll;
use handoff_unix::spawn::Launch;
use tempfile::TempDir;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// How long anything may take on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a daemon looks whether it is the incumbent: less than a supervisor may be silent (T2).
const MOMENT: Duration = Duration::from_millis(300);

/// Where a daemon has what it has.
const DIR: &str = "TEST_DIR";
/// What it is called.
const NAME: &str = "TEST_NAME";
/// The one that is not fit to serve.
const UNHEALTHY: &str = "unhealthy";

/// What there is to do until the next turn, on this thread.
fn work(host: &mut impl Host) {
    while let Some(job) = host.job() {
        job();
    }
}

/// A turn of a host, and what there is to do after it.
fn turn(host: &mut impl Host) -> Result<(), StartError> {
    poll::readable(&*host, Some(PATIENCE)).unwrap();
    host.turn().unwrap();
    work(host);
    Ok(())
}

/// A supervisor. Its daemons are ended when it is dropped, and where it ends otherwise, too.
struct Bench {
    dir: TempDir,
    host: SupervisorHost,
    front: Front,
}

impl Bench {
    /// With a daemon that serves.
    fn start() -> Self {
        Transcript::install();
        let dir = tempfile::Builder::new().prefix("handoffs of unix ").tempdir().unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        let config = SupervisorConfig::new(dir.path().join("control"))
            .data_dir(dir.path().join("data"))
            .no_listeners();
        let (host, front) = SupervisorHost::new(config).unwrap();
        let mut bench = Self { dir, host, front };
        let launch = bench.daemon("first");
        let Self { host, front, .. } = &mut bench;
        assert!(front.start(&launch, || turn(host)).unwrap().started);
        bench
    }

    fn daemon(&self, name: &str) -> Launch {
        let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
        Launch::new(std::env::current_exe().unwrap())
            .args(["daemon", "--exact", "--ignored", "--nocapture"])
            .env(DIR, self.dir.path())
            .env(NAME, name)
            .stdout(Arc::new(null.into()))
    }

    fn swap(&mut self, launch: Launch) -> Report {
        self.swap_told(launch, |_| {})
    }

    /// The same, with `on` told what happens: the supervisor waits for it.
    fn swap_told(&mut self, launch: Launch, on: impl FnMut(&Told)) -> Report {
        let Self { host, front, .. } = self;
        front.handoff(&Handoff::new(launch), on, || turn(host)).unwrap()
    }

    /// Ends all daemons; gives those that would not.
    fn end(&mut self) -> Vec<u32> {
        let Self { host, front, .. } = self;
        front.shutdown(Duration::ZERO, || turn(host)).unwrap()
    }

    /// What a daemon writes to a file, sooner or later.
    fn written(&self, name: &str) -> String {
        written(&self.dir.path().join(name))
    }
}

fn written(path: &Path) -> String {
    let limit = Instant::now() + PATIENCE;
    loop {
        match fs::read_to_string(path) {
            Ok(text) if !text.is_empty() => return text,
            _ => assert!(Instant::now() < limit, "{} is not written", path.display()),
        }
        thread::yield_now();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.end();
    }
}

/// X1: a cold start is the incumbent at once, a successor when it is committed, and one that is given up
/// never.
#[test]
fn x1_a_daemon_knows_when_it_is_the_incumbent_for_good() {
    let mut bench = Bench::start();
    assert_eq!(bench.written("first"), "true");

    let report = bench.swap(bench.daemon(UNHEALTHY));
    assert_eq!(report.verdict, Verdict::RolledBack, "{report}");
    assert_eq!(bench.written(UNHEALTHY), "false", "it was ready, and served");

    // The supervisor has said Begin, and is held before it takes in that the successor is ready.
    let ready = bench.dir.path().join("second, ready");
    let report = bench.swap_told(bench.daemon("second"), |told| {
        if *told == Told::Phase(Phase::Open) {
            assert_eq!(written(&ready), "false", "it serves, and may still be given up");
        }
    });
    assert_eq!(report.verdict, Verdict::Committed, "{report}");
    assert_eq!(bench.written("second"), "true");
}

/// R10, R14: a daemon that was not started by a supervisor, in a process group with others, is watched, and
/// ended without them.
#[test]
fn r10_a_daemon_that_leads_no_group_is_watched_and_ended() {
    let mut bench = Bench::start();
    assert_eq!(bench.end(), []);
    for name in ["killed", "stopped"] {
        let launch = bench.daemon(name);
        let mut daemon = Command::new(&launch.program)
            .args(&launch.args)
            .envs(launch.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        assert_eq!(bench.written(name), "true");
        let Bench { host, front, .. } = &mut bench;
        let found = front.start(&launch, || turn(host)).unwrap();
        assert_eq!((found.pid, found.started), (daemon.id(), false));
        if name == "killed" {
            daemon.kill().unwrap();
        } else {
            assert_eq!(bench.end(), []);
        }
        let Bench { host, front, .. } = &mut bench;
        let exited = loop {
            match front.exit() {
                Some((pid, _)) if pid == daemon.id() => break pid,
                Some(_) => {}
                None => turn(host).unwrap(),
            }
        };
        assert_eq!(exited, daemon.id());
        daemon.wait().unwrap();
    }
}

thread_local! {
    /// Spans and what is logged in them, a line each, as they come on a thread that wants to know.
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Everybody's subscriber: whether anybody listens at a place in the code is decided once for all threads.
struct Transcript;

impl Transcript {
    fn install() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let subscriber = tracing_subscriber::registry().with(Self);
            tracing::subscriber::set_global_default(subscriber).unwrap();
        });
    }

    /// What `run` does, without the steps, which are for the crash matrix.
    fn of<T>(run: impl FnOnce() -> T) -> (T, Vec<String>) {
        LINES.set(Some(Vec::new()));
        let result = run();
        (result, LINES.take().unwrap())
    }

    fn line(&self, line: String) {
        LINES.with_borrow_mut(|lines| lines.iter_mut().for_each(|lines| lines.push(line.clone())));
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Fields {
    fn of(record: impl FnOnce(&mut Self)) -> Self {
        let mut fields = Self::default();
        record(&mut fields);
        fields
    }

    /// These of them, in order.
    fn list(&self, names: &[&str]) -> String {
        let named = names.iter().map(|name| format!("{name}={}", self.0[name]));
        named.collect::<Vec<_>>().join(" ")
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_string());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Transcript {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let (span, fields) = (context.span(id).unwrap(), Fields::of(|it| attributes.record(it)));
        let parent = span.parent().map_or("nothing", |parent| parent.name());
        let ids = fields.list(&["trace_id", "span_id"]);
        self.line(format!("{} opens in {parent}, {ids}", span.name()));
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        let fields = Fields::of(|it| record.record(it));
        for (name, value) in fields.0 {
            self.line(format!("{} has {name}={value}", context.span(id).unwrap().name()));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if *event.metadata().level() > Level::INFO {
            return;
        }
        let span = context.event_span(event).map_or("nothing", |span| span.name());
        let fields = Fields::of(|it| event.record(it));
        self.line(format!("{span}: {}", fields.0["message"]));
        if fields.0.contains_key("outcome") {
            assert!(fields.0["duration_ms"].parse::<u64>().is_ok());
            assert!(fields.0["unavailable_ms"].parse::<u64>().is_ok());
            self.line(format!("{span}: {}", fields.list(&["id", "outcome", "reason"])));
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.line(format!("{} closes", context.span(&id).unwrap().name()));
    }
}

/// What is told of a handoff that goes through these phases, in which this is told beside them.
fn expected(report: &Report, phases: &[(&str, &[&str])], end: [&str; 2]) -> Vec<String> {
    let (id, [outcome, reason]) = (report.id, end);
    let (_, half) = id.0.as_u64_pair();
    let ids = |stage| format!("trace_id={} span_id={:016x}", id.0.simple(), half + stage);
    let mut lines = vec![format!("handoff opens in nothing, {}", ids(0))];
    for ((phase, told), stage) in phases.iter().zip(1..) {
        lines.push(format!("handoff.{phase} opens in handoff, {}", ids(stage)));
        lines.push(format!("handoff.{phase}: handoff: phase {phase}"));
        lines.extend(told.iter().map(|told| format!("handoff.{phase}: handoff: {told}")));
        lines.push(format!("handoff.{phase} closes"));
    }
    lines.push(format!("handoff has outcome={outcome}"));
    lines.push(format!("handoff has reason={reason}"));
    lines.push(format!("handoff: handoff: {report}"));
    lines.push(format!("handoff: id={id} outcome={outcome} reason={reason}"));
    lines.push("handoff closes".to_string());
    lines
}

const DRAINED: &[&str] = &["drained, 0 connections still open"];

#[test]
fn a_handoff_is_a_span_with_a_span_for_each_phase() {
    let mut bench = Bench::start();
    let launch = bench.daemon("second");
    let (report, told) = Transcript::of(|| bench.swap(launch));
    let phases = [
        ("warm", [].as_slice()),
        ("drain", DRAINED),
        ("seal", &[]),
        ("open", &[]),
        ("commit", &[]),
    ];
    assert_eq!(told, expected(&report, &phases, ["committed", "none"]));

    let launch = bench.daemon(UNHEALTHY);
    let (report, told) = Transcript::of(|| bench.swap(launch));
    let phases = [
        ("warm", [].as_slice()),
        ("drain", DRAINED),
        ("seal", &[]),
        ("open", &[]),
        ("rollback", &[]),
    ];
    assert_eq!(told, expected(&report, &phases, ["rolled_back", "unhealthy"]));

    let (report, told) = Transcript::of(|| bench.swap(Launch::new("/nowhere/at all")));
    let phases = [("warm", [].as_slice())];
    assert_eq!(told, expected(&report, &phases, ["refused", "successor_exec_failed"]));
}

/// Runs the test below in a process that has a trace of its own.
#[test]
fn a_successor_joins_the_trace_of_its_handoff() {
    let body = "in_a_trace_of_the_supervisors_own";
    let out = Command::new(std::env::current_exe().unwrap())
        .args([body, "--exact", "--ignored", "--nocapture"])
        .envs([("TRACEPARENT", "the supervisor's"), ("TRACESTATE", "its own")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}

#[test]
#[ignore = "the body of a_successor_joins_the_trace_of_its_handoff"]
fn in_a_trace_of_the_supervisors_own() {
    let mut bench = Bench::start();
    let print = |path: &Path| {
        let script = "echo \"$TRACEPARENT $TRACESTATE\" > \"$1\"";
        Launch::new("/bin/sh").args(["-c", script, "sh"].map(OsStr::new)).arg(path)
    };
    let (one, other) = (bench.dir.path().join("one"), bench.dir.path().join("other"));
    let HandoffId(id) = bench.swap(print(&one)).id;
    let (_, half) = id.as_u64_pair();
    let expected = format!("00-{}-{half:016x}-01 \n", id.simple());
    assert_eq!(fs::read_to_string(one).unwrap(), expected, "its own is replaced");

    bench.swap(print(&other).env("TRACEPARENT", "asked for"));
    assert_eq!(fs::read_to_string(other).unwrap(), "asked for its own\n", "and what is set is not");
}

#[cfg(feature = "metrics")]
mod measured {
    use super::*;
    use std::sync::Mutex;

    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata,
        Recorder, SharedString, Unit,
    };

    type Shared<T> = Arc<Mutex<BTreeMap<String, T>>>;

    /// What was counted, set and recorded, and what it was said to be.
    #[derive(Default)]
    struct Meter {
        values: Shared<Vec<f64>>,
        texts: Shared<String>,
    }

    /// One of them.
    struct Hand {
        key: String,
        values: Shared<Vec<f64>>,
    }

    impl Hand {
        fn with(&self, change: impl FnOnce(&mut Vec<f64>)) {
            change(self.values.lock().unwrap().entry(self.key.clone()).or_default());
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "small counts")]
    impl CounterFn for Hand {
        fn increment(&self, value: u64) {
            self.with(|values| *values = vec![values.iter().sum::<f64>() + value as f64]);
        }

        fn absolute(&self, _: u64) {
            panic!("{} is counted", self.key);
        }
    }

    impl GaugeFn for Hand {
        fn increment(&self, _: f64) {
            panic!("{} is set", self.key);
        }

        fn decrement(&self, _: f64) {
            panic!("{} is set", self.key);
        }

        fn set(&self, value: f64) {
            self.with(|values| *values = vec![value]);
        }
    }

    impl HistogramFn for Hand {
        fn record(&self, value: f64) {
            self.with(|values| values.push(value));
        }
    }

    impl Meter {
        fn hand(&self, key: &Key) -> Arc<Hand> {
            let labels: Vec<_> =
                key.labels().map(|it| format!("{}={}", it.key(), it.value())).collect();
            let key = format!("{}{{{}}}", key.name(), labels.join(","));
            Arc::new(Hand { key: key.replace("{}", ""), values: Arc::clone(&self.values) })
        }

        fn describe(&self, name: &KeyName, text: &str) {
            let twice = self.texts.lock().unwrap().insert(name.as_str().into(), text.into());
            assert_eq!(twice, None, "{name:?} is described twice");
        }

        fn of(&self, key: &str) -> Vec<f64> {
            self.values.lock().unwrap().get(key).cloned().unwrap_or_default()
        }
    }

    impl Recorder for Meter {
        fn describe_counter(&self, key: KeyName, _: Option<Unit>, text: SharedString) {
            self.describe(&key, &text);
        }

        fn describe_gauge(&self, key: KeyName, _: Option<Unit>, text: SharedString) {
            self.describe(&key, &text);
        }

        fn describe_histogram(&self, key: KeyName, _: Option<Unit>, text: SharedString) {
            self.describe(&key, &text);
        }

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.hand(key))
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.hand(key))
        }

        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::from_arc(self.hand(key))
        }
    }

    #[test]
    fn a_supervisors_handoffs_are_counted_and_timed() {
        let meter = Meter::default();
        metrics::with_local_recorder(&meter, || {
            let mut bench = Bench::start();
            assert_eq!(meter.of("handoff_handoffs_total"), [0.0], "it is there from the start");
            assert_eq!(meter.of("handoff_in_progress"), [0.0]);

            let mut seen = Vec::new();
            bench.swap_told(bench.daemon("second"), |told| {
                if matches!(told, Told::Phase(_)) {
                    seen.extend(meter.of("handoff_in_progress"));
                }
            });
            // The last phases may be told when all is over.
            assert!(seen.starts_with(&[1.0, 1.0, 1.0, 1.0]), "{seen:?}");
            bench.swap(bench.daemon(UNHEALTHY));
            bench.swap(Launch::new("/nowhere/at all"));
        });
        let outcome = |outcome, reason| {
            meter.of(&format!("handoff_outcomes_total{{outcome={outcome},reason={reason}}}"))
        };
        assert_eq!(meter.of("handoff_handoffs_total"), [3.0]);
        assert_eq!(outcome("committed", "none"), [1.0]);
        assert_eq!(outcome("rolled_back", "unhealthy"), [1.0]);
        assert_eq!(outcome("refused", "successor_exec_failed"), [1.0]);
        assert_eq!(meter.of("handoff_in_progress"), [0.0]);
        assert_eq!(meter.of("handoff_open_connections_at_commit"), [0.0]);
        let phase = |phase| meter.of(&format!("handoff_phase_duration_seconds{{phase={phase}}}"));
        let took = meter.of("handoff_duration_seconds");
        assert_eq!(took.len(), 3);
        for (name, times) in
            [("warm", 3), ("drain", 2), ("seal", 2), ("open", 2), ("commit", 1), ("rollback", 1)]
        {
            assert_eq!(phase(name).len(), times, "{name}");
            assert!(phase(name).iter().all(|time| *time < took.iter().sum()), "{name}");
        }
        let unavailable = meter.of("handoff_unavailable_seconds");
        assert_eq!(unavailable.len(), 2, "the last touched nobody");
        assert!(unavailable.iter().zip(&took).all(|(part, whole)| part < whole));
        // Each has a text, and nothing else has one.
        let mut named: Vec<String> = meter.values.lock().unwrap().keys().cloned().collect();
        named.iter_mut().for_each(|key| key.truncate(key.find('{').unwrap_or(key.len())));
        named.sort();
        named.dedup();
        assert_eq!(named, meter.texts.lock().unwrap().keys().cloned().collect::<Vec<_>>());
    }
}

struct Nothing;

impl Hooks for Nothing {
    fn drain(&mut self, _: &DrainContext) -> Result<DrainReport, HookError> {
        Ok(DrainReport { open_conns_remaining: 0, accept_closed: true })
    }

    fn seal(&mut self, _: &SealContext) -> Result<SealReport, HookError> {
        Ok(SealReport::default())
    }

    fn resume(&mut self) -> Result<(), HookError> {
        Ok(())
    }
}

/// Once it is ready, it looks for a moment whether it is the incumbent for good, and writes that to a file;
/// to one of its name what it comes to in the end.
#[test]
#[ignore = "the body of the daemons"]
fn daemon() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let name = std::env::var(NAME).unwrap();
    // With the thread of the test that has started it.
    let with_the_test = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(with_the_test).unwrap();
    // SAFETY: no handler is installed. It ends when it has read Abort, and not before that.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };

    let config = Config::new(dir.join("control"), dir.join("data"));
    let (mut host, mut program) = DaemonHost::from_env(config).unwrap();
    thread::spawn(move || {
        work(&mut host);
        while !host.has_ended() {
            turn(&mut host).unwrap();
        }
    });
    program.begin();
    let Request::Hook(open) = program.wait() else { panic!("it does not begin") };
    let (incumbency, healthz_ok) = (program.incumbency(), name != UNHEALTHY);
    program.ready(open, Readiness { listening_on: vec![], healthz_ok, revisions: vec![] });
    let waits = thread::spawn(move || {
        let tells = |limit, file: String| {
            fs::write(dir.join(file), incumbency.wait(limit).to_string()).unwrap();
        };
        tells(Some(MOMENT), format!("{name}, ready"));
        tells(None, name);
    });
    let ended = loop {
        match program.wait() {
            Request::Hook(hook) => hook.run(&mut Nothing),
            Request::Ended(ended) => break ended,
        }
    };
    waits.join().unwrap();
    std::process::exit(ended.exit_code().into());
}

//! What a daemon holds, dropped at any point. The daemons are processes; each tells what is left of it.

use std::cell::Cell;
use std::process::{Command, Stdio};

use handoff_core::supervisor::{Event, Phase, Reason, Verdict};
use handoff_unix::host::StartError;
use handoff_unix::lock::{DataDirLock, LockState, lock_state};

use smol::future::zip;

use crate::adapters::{Adapter, a_while, first};
use crate::bench::{Bench, children, eventually, fds};

/// What is kept of a lock, and of the data.
const NOTHING: &str = "kept ";
const LOCK: &str = "kept  .handoff.lock";
const LOCK_AND_DATA: &str = "kept  .handoff.lock writes.log";

impl<A: Adapter> Bench<A> {
    fn saw(&self) -> Vec<(u32, String)> {
        let files = std::fs::read_dir(self.dir.path()).unwrap();
        files
            .filter_map(|file| {
                let path = file.unwrap().path();
                let pid = path.file_name()?.to_str()?.strip_prefix("saw-")?.parse().ok()?;
                Some((pid, std::fs::read_to_string(path).unwrap()))
            })
            .collect()
    }

    /// What one daemon has told, once it has.
    async fn told(&self) -> (u32, String) {
        eventually::<A, _>("those that told", 1, || self.saw().len()).await;
        let saw = self.saw().remove(0);
        std::fs::remove_file(self.dir.path().join(format!("saw-{}", saw.0))).unwrap();
        saw
    }

    /// A daemon that is started cold and drops something: it ends, and nobody serves.
    async fn starts_in_vain(&mut self, point: &str, kept: &str) {
        self.mark("stay", true);
        let launch = self.launch(&[("TEST_DROP", point)]);
        let dropped = async {
            let (pid, saw) = self.told().await;
            assert_eq!(saw, kept, "{point}");
            match kept {
                NOTHING => assert_eq!(lock_state(&self.data()), LockState::Free, "{point}"),
                _ => self.holds(pid),
            }
            self.mark("stay", false);
        };
        match zip(A::start(self.supervisor(), &launch), dropped).await {
            (Err(StartError::NobodyServes(_)), ()) => {}
            ended => panic!("{point}: {ended:?}"),
        }
    }
}

pub async fn a_successor_that_is_dropped_is_rolled_back<A: Adapter>(runtime: &str) {
    A::warm().await;
    let (mut bench, _) = Bench::<A>::serving(runtime, &[]).await;
    let mut serving = bench.swap().await;
    let rest = bench.at_rest(serving).await;
    let points = ["daemon", "begin:0", "begin:1", "grant", "fail:0", "fail:1", "fail:2"];
    for point in points {
        let report = bench.handoff(&[("TEST_DROP", point)], |_| {}).await;
        // One that was polled may have said Hello, and the incumbent may have been told of it by then.
        let expected: &[_] = match point {
            "daemon" | "begin:0" => &[Verdict::Refused],
            "begin:1" => &[Verdict::Refused, Verdict::RolledBack],
            _ => &[Verdict::RolledBack],
        };
        assert!(expected.contains(&report.verdict), "{point}: {report}");
        assert_eq!(report.trouble.unwrap().reason, Reason::SuccessorExited, "{point}");
        assert_eq!(bench.told().await.1, NOTHING, "{point}");
        assert_eq!(bench.write().await, serving);
        bench.holds(serving);
        bench.rests(&rest, &[serving]).await;
    }
    // In each phase of the handoff; where it opens, it may have the lock by then.
    for phase in [Phase::Warm, Phase::Drain, Phase::Seal, Phase::Open] {
        bench.mark("hold-drain", phase == Phase::Drain);
        bench.mark("hold-seal", phase == Phase::Seal);
        let mark = |event: &Event| {
            if *event == Event::Phase(phase) {
                bench.mark("drop", true);
            }
        };
        let report = bench.handoff(&[("TEST_DROP", "begin@drop")], mark).await;
        bench.mark("drop", false);
        bench.mark("hold-drain", false);
        bench.mark("hold-seal", false);
        if report.verdict == Verdict::Committed {
            assert_eq!(phase, Phase::Open, "{report}");
            serving = report.serving.unwrap();
        } else {
            assert_eq!(bench.told().await.1, NOTHING, "{phase:?}");
        }
        assert_eq!(bench.write().await, serving);
        bench.rests(&rest, &[serving]).await;
    }
    bench.ends_well().await;
}

pub async fn a_cold_start_that_is_dropped_frees_the_lock<A: Adapter>(runtime: &str) {
    A::warm().await;
    let mut bench = Bench::<A>::new(runtime);
    let rest = {
        bench.starts_in_vain("daemon", NOTHING).await;
        fds()
    };
    for point in ["daemon", "begin:0", "begin:1", "grant", "fail:0", "fail:1", "fail:2"] {
        bench.starts_in_vain(point, NOTHING).await;
        bench.rests(&rest, &[]).await;
    }
    bench.runtime = "blocking".to_string();
    for point in ["daemon", "grant"] {
        bench.starts_in_vain(point, NOTHING).await;
    }
    bench.runtime = runtime.to_string();
    bench.start(&[]).await;
    bench.ends_well().await;
}

pub async fn a_wait_for_the_lock_that_is_dropped_takes_none<A: Adapter>(runtime: &str) {
    A::warm().await;
    let mut bench = Bench::<A>::new(runtime);
    for (point, pauses) in [("begin:0", 0), ("begin:1", 0), ("begin@drop", 0), ("begin@drop", 90)] {
        let lock = DataDirLock::try_take(&bench.data()).unwrap();
        // It belongs to nobody's supervisor.
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .args(["daemon", "--exact", "--ignored", "--nocapture"])
            .env("TEST_DIR", bench.dir.path())
            .env("TEST_RUNTIME", runtime)
            .env("TEST_DROP", point)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        a_while::<A, _>(std::future::pending::<()>(), 1, pauses).await;
        bench.mark("stay", true);
        bench.mark("drop", true);
        let (pid, saw) = bench.told().await;
        assert_eq!((pid, saw.as_str()), (daemon.id(), NOTHING), "{point}");
        bench.holds(std::process::id());
        // Nor does it take the lock later.
        lock.release().unwrap();
        a_while::<A, _>(std::future::pending::<()>(), 1, 40).await;
        assert_eq!(lock_state(&bench.data()), LockState::Free, "{point}");
        bench.mark("stay", false);
        bench.mark("drop", false);
        daemon.wait().unwrap();
    }
    bench.start(&[]).await;
    bench.ends_well().await;
}

pub async fn a_successor_that_drops_its_serving_keeps_the_lock_until_it_exits<A: Adapter>(
    runtime: &str,
) {
    A::warm().await;
    let (mut bench, _) = Bench::<A>::serving(runtime, &[]).await;
    for _ in 0..4 {
        bench.mark("stay", true);
        let handoff = async {
            let report = bench.handoff(&[("TEST_DROP", "serving")], |_| {}).await;
            (report.verdict, report.serving)
        };
        let dropped = async {
            let (pid, saw) = bench.told().await;
            assert_eq!(saw, LOCK_AND_DATA);
            bench.holds(pid);
            bench.mark("stay", false);
        };
        // Committed to before it was seen to be gone, it is as one that died after the commit.
        let ((verdict, serving), ()) = zip(handoff, dropped).await;
        match verdict {
            Verdict::RolledBack => bench.holds(serving.unwrap()),
            Verdict::Unknown => assert_eq!(serving, None),
            verdict => panic!("{verdict:?}"),
        }
        bench.start(&[]).await;
    }
    bench.ends_well().await;
}

pub async fn a_daemon_that_is_dropped_keeps_the_lock_until_it_exits<A: Adapter>(runtime: &str) {
    A::warm().await;
    let plain = runtime;
    let points = [runtime, "blocking"].map(|on| ["serving", "run:idle"].map(|point| (on, point)));
    for (runtime, point) in points.into_iter().flatten() {
        let mut bench = Bench::<A>::new(runtime);
        bench.mark("stay", true);
        let launch = bench.launch(&[("TEST_DROP", point)]);
        if point == "serving" {
            // It may have been seen to serve.
            let told = bench.told();
            let start = async {
                let _ = A::start(bench.supervisor(), &launch).await;
                std::future::pending::<()>().await
            };
            let (pid, saw) = first(told, start).await.ok().unwrap();
            assert_eq!(saw, LOCK_AND_DATA);
            bench.holds(pid);
        } else {
            let pid = A::start(bench.supervisor(), &launch).await.unwrap().pid;
            assert_eq!(bench.write().await, pid);
            assert_eq!(bench.told().await, (pid, LOCK_AND_DATA.to_string()));
            bench.holds(pid);
            // Nobody answers, so there is nothing to hand off.
            let report = bench.handoff(&[], |_| {}).await;
            assert_eq!(report.verdict, Verdict::Refused, "{report}");
            assert_eq!(report.trouble.unwrap().reason, Reason::IncumbentLost);
            bench.holds(pid);
        }
        drop(launch);
        bench.mark("stay", false);
        eventually::<A, _>("processes", vec![], children).await;
        // The next one is a plain one.
        bench.runtime = plain.to_string();
        bench.start(&[]).await;
        bench.ends_well().await;
    }
}

pub async fn an_incumbent_that_is_dropped_in_a_handoff_is_succeeded<A: Adapter>(runtime: &str) {
    A::warm().await;
    let points = [
        ("run:drain", LOCK_AND_DATA),
        ("run:drained", LOCK_AND_DATA),
        ("run:seal", LOCK_AND_DATA),
        ("run:sealed", ""),
    ];
    for (point, kept) in points {
        let (mut bench, old) = Bench::<A>::serving(runtime, &[("TEST_DROP", point)]).await;
        bench.mark("stay", true);
        let promoted = Cell::new(false);
        let handoff = bench.handoff(&[], |event| {
            promoted.set(promoted.get() || *event == Event::Phase(Phase::Promote));
        });
        let dropped = async {
            let (pid, saw) = bench.told().await;
            assert_eq!(pid, old);
            if kept.is_empty() {
                // The lock was let go of already, or it is kept.
                assert!([NOTHING, LOCK].contains(&saw.as_str()), "{point}: {saw}");
            } else {
                assert_eq!(saw, kept, "{point}");
                bench.holds(old);
                // It goes on to hold it while the supervisor sees that it is gone.
                eventually::<A, _>("promoted", true, || promoted.get()).await;
                bench.holds(old);
            }
            bench.mark("stay", false);
        };
        let (report, ()) = zip(handoff, dropped).await;
        assert_eq!(report.verdict, Verdict::Committed, "{point}: {report}");
        let serving = bench.write().await;
        assert_eq!(report.serving, Some(serving));
        bench.holds(serving);
        eventually::<A, _>("processes", vec![serving], children).await;
        bench.ends_well().await;
    }
}

pub async fn an_incumbent_that_is_dropped_in_its_resume_keeps_the_lock<A: Adapter>(runtime: &str) {
    A::warm().await;
    let (mut bench, old) = Bench::<A>::serving(runtime, &[("TEST_DROP", "run:resume")]).await;
    bench.mark("stay", true);
    let handoff = bench.handoff(&[("TEST_FAIL", "")], |_| {});
    let dropped = async {
        assert_eq!(bench.told().await, (old, LOCK.to_string()));
        bench.holds(old);
        bench.mark("stay", false);
    };
    let (report, ()) = zip(handoff, dropped).await;
    assert_eq!((report.verdict, report.serving), (Verdict::Unknown, None), "{report}");
    eventually::<A, _>("processes", vec![], children).await;
    bench.start(&[]).await;
    bench.ends_well().await;
}

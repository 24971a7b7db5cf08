//! Completions that are late, or fail for a while: hooks that take long, a lock that somebody else has, a
//! control path that is in the way, a journal that cannot be written; and frames that fit no socket.

use std::fs::{self, File};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use handoff_core::supervisor::{Event, Phase, Reason, Verdict};
use handoff_core::wire::MAX_SHARDS;
use handoff_unix::host::Handoff;

use super::Scenario;
use crate::suite::program::{control_path, journal};
use crate::suite::{Adapter, Bench, Fault, reason};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::handoff(&["T1", "T2", "T5"], "a drain of 6 s is nobody's death", |adapter| {
        slow(adapter, Some(Fault::DrainsSlowly), None)
    }),
    Scenario::handoff(&["T1", "T2", "T5"], "a seal of 6 s is nobody's death", |adapter| {
        slow(adapter, Some(Fault::SealsSlowly), None)
    }),
    Scenario::handoff(&["T1", "T2", "T5"], "an open of 6 s is nobody's death", |adapter| {
        slow(adapter, None, Some(Fault::OpensSlowly))
    }),
    Scenario::handoff(&["W2"], "frames that fit no socket's buffer arrive", many_shards),
    Scenario::handoff(
        &["R1", "R3", "R8"],
        "a successor waits for a lock that another has",
        successor_waits,
    ),
    Scenario::handoff(
        &["R1", "R2", "R8"],
        "an incumbent waits for a lock that another has",
        incumbent_waits,
    ),
    Scenario::handoff(
        &["R4", "R8"],
        "aborted while it waits for the lock, a successor takes none",
        aborted_while_it_waits,
    ),
    Scenario::handoff(
        &["R8", "R11", "R16"],
        "a control path that is in the way is claimed later",
        path_in_the_way,
    ),
    Scenario::handoff(
        &["R9"],
        "a journal that cannot be written stops a handoff before it seals",
        no_journal,
    ),
    Scenario::handoff(
        &["R9"],
        "a journal that cannot be written later stops nothing",
        no_journal_later,
    ),
];

/// Commits all the same, with nothing to remark.
fn slow(adapter: &'static dyn Adapter, incumbents: Option<Fault>, successors: Option<Fault>) {
    let (mut bench, old) = Bench::start(adapter, incumbents);
    let report = bench.swap(successors);
    assert_eq!((report.verdict, reason(&report)), (Verdict::Committed, None), "{report}");
    let new = bench.write();
    assert_eq!(Some(new), report.serving);
    assert_ne!(new, old);
    bench.ends_well();
}

fn many_shards(adapter: &'static dyn Adapter) {
    let (mut bench, _) = Bench::start(adapter, Some(Fault::ManyShards));
    for _ in 0..2 {
        let report = bench.swap(Some(Fault::ManyShards));
        assert_eq!((report.verdict, reason(&report)), (Verdict::Committed, None), "{report}");
        assert_eq!(Some(bench.write()), report.serving);
        let shards = report.ready.as_ref().map(|ready| ready.revisions.len());
        assert_eq!(shards, Some(MAX_SHARDS));
    }
    bench.has_all();
}

/// Somebody else who has the lock until this is dropped. The file that the incumbent has locked is not
/// the one that the path names any more, so whoever wants the lock next waits for this one.
struct Rival(File);

impl Rival {
    fn takes(data_dir: &Path) -> Self {
        let (ours, theirs) = (data_dir.join("rival"), data_dir.join(".handoff.lock"));
        let file = File::create(&ours).expect("a file");
        file.lock().expect("nobody else has it");
        fs::rename(ours, theirs).expect("they are in one directory");
        Self(file)
    }

    /// Lets go of it after this time.
    fn leaves_in(self, time: Duration) -> JoinHandle<()> {
        thread::spawn(move || {
            thread::sleep(time);
            drop(self);
        })
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        // A child that is being started may share it.
        let _ = self.0.unlock();
    }
}

/// Time for several tries of whoever wants what it does not get.
const HELD: Duration = Duration::from_millis(500);

fn successor_waits(adapter: &'static dyn Adapter) {
    let (mut bench, _) = Bench::start(adapter, None);
    let leaves = Rival::takes(&bench.data_dir()).leaves_in(2 * HELD);
    let report = bench.swap(None);
    leaves.join().expect("it leaves");
    assert_eq!((report.verdict, reason(&report)), (Verdict::Committed, None), "{report}");
    assert_eq!(Some(bench.write()), report.serving);
    bench.ends_well();
}

fn incumbent_waits(adapter: &'static dyn Adapter) {
    let (mut bench, old) = Bench::start(adapter, None);
    let mut rival = Some(Rival::takes(&bench.data_dir()));
    let mut leaves = None;
    // Neither gets the lock: the successor not in its time, the incumbent not at once.
    let handoff = Handoff::new(bench.launch(None)).deadline(2 * HELD);
    let report = bench.swap_as(&handoff, |event| {
        if *event == Event::Phase(Phase::Rollback) {
            leaves = rival.take().map(|rival| rival.leaves_in(2 * HELD));
        }
    });
    leaves.expect("it was rolled back").join().expect("it leaves");
    assert_eq!((report.verdict, report.serving), (Verdict::RolledBack, Some(old)), "{report}");
    assert_eq!(bench.write(), old);
    bench.ends_well();
}

fn aborted_while_it_waits(adapter: &'static dyn Adapter) {
    let (mut bench, old) = Bench::start(adapter, None);
    let mut rival = Some(Rival::takes(&bench.data_dir()));
    let abort = bench.supervisor.aborter();
    let handoff = Handoff::new(bench.launch(None));
    let report = bench.swap_as(&handoff, |event| match event {
        Event::Phase(Phase::Open) => abort(),
        // It may get the lock now, and has to give it back.
        Event::Phase(Phase::Rollback) => rival = None,
        _ => {}
    });
    assert!(rival.is_none(), "{report}");
    let seen = (report.verdict, reason(&report));
    assert_eq!(seen, (Verdict::RolledBack, Some(Reason::OperatorAbort)), "{report}");
    assert_eq!(bench.write(), old);
    bench.ends_well();
}

fn path_in_the_way(adapter: &'static dyn Adapter) {
    let (mut bench, old) = Bench::start(adapter, None);
    let path = control_path(bench.dir.path());
    let mut cleared = None;
    let handoff = Handoff::new(bench.launch(None));
    let report = bench.swap_as(&handoff, |event| match event {
        Event::Phase(Phase::Open) => {
            fs::remove_file(&path).and_then(|()| fs::create_dir(&path)).expect("a directory");
        }
        Event::Phase(Phase::Commit) => {
            let path = path.clone();
            cleared = Some(thread::spawn(move || {
                thread::sleep(HELD);
                fs::remove_dir(path)
            }));
        }
        _ => {}
    });
    cleared.expect("it was committed").join().expect("it ends").expect("it was in the way");
    assert_eq!((report.verdict, reason(&report)), (Verdict::Committed, None), "{report}");
    let new = bench.write();
    assert!(Some(new) == report.serving && new != old, "{report}");
    bench.ends_well();
}

/// A directory where the journal has to be, or none.
fn spoil(journal: &Path, spoilt: bool) {
    let _ = fs::remove_dir(journal);
    // An entry may be put there at any moment.
    while spoilt && !journal.is_dir() {
        let _ = fs::remove_file(journal);
        let _ = fs::create_dir(journal);
    }
}

fn no_journal(adapter: &'static dyn Adapter) {
    let (mut bench, old) = Bench::start(adapter, None);
    let journal = journal(bench.dir.path());
    spoil(&journal, true);
    let report = bench.swap(None);
    let seen = (report.verdict, reason(&report));
    assert_eq!(seen, (Verdict::Refused, Some(Reason::IoError)), "{report}");
    assert_eq!(bench.write(), old);
    spoil(&journal, false);
    bench.ends_well();
}

fn no_journal_later(adapter: &'static dyn Adapter) {
    let (mut bench, old) = Bench::start(adapter, None);
    let journal = journal(bench.dir.path());
    let handoff = Handoff::new(bench.launch(None));
    let report = bench.swap_as(&handoff, |event| {
        if *event == Event::Phase(Phase::Open) {
            spoil(&journal, true);
        }
    });
    assert_eq!(report.verdict, Verdict::Committed, "{report}");
    let new = bench.write();
    assert!(Some(new) == report.serving && new != old, "{report}");
    spoil(&journal, false);
    bench.ends_well();
}

//! What happens to a control path while its daemon serves.

use std::fs;
use std::path::Path;

use conformance::adapters::ALL;
use conformance::suite::{Bench, wait_until};
use handoff_unix::control::ControlPath;
use handoff_unix::probe::{Users, probe};

/// R11, R17: who serves is found again where its control path was removed, moved or replaced, on each
/// runtime, and hands off as ever.
#[test]
fn a_control_path_that_is_lost_is_claimed_again() {
    type Act = fn(&Path);
    let acts: [(&str, Act); 3] = [
        ("removed", |path| fs::remove_file(path).unwrap()),
        ("moved", |path| fs::rename(path, path.with_extension("moved")).unwrap()),
        ("replaced", |path| {
            let other = path.with_extension("other");
            fs::write(&other, "").unwrap();
            fs::rename(&other, path).unwrap();
        }),
    ];
    for adapter in ALL {
        let (mut bench, mut pid) = Bench::start(adapter, None);
        let path = bench.control_path();
        let control = ControlPath::new(path.clone()).unwrap();
        for (act, change) in acts {
            change(&path);
            wait_until(&format!("{}, {act}", adapter.name()), || {
                probe(&control, &Users::default()).is_ok_and(|found| found.cred.pid == pid)
            });
            // The same of one that has taken over.
            let report = bench.swap(None);
            pid = report.serving.unwrap();
            assert_eq!(bench.write(), pid, "{report}");
        }
        bench.ends_well();
    }
}

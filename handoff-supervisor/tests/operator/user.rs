//! A daemon of another user.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use super::bench::{Bench, Load};

const USER: &str = "nobody";

/// Its numbers, as the system tells them, in order.
fn ids(of: &str) -> Vec<u32> {
    let output = Command::new("id").args([of, USER]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut ids: Vec<u32> = text.split_whitespace().map(|id| id.parse().unwrap()).collect();
    ids.sort_unstable();
    ids
}

/// Whom a process runs as: the four kinds of user and group, and its groups in order.
fn identity(pid: u32) -> [Vec<u32>; 3] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    ["Uid:", "Gid:", "Groups:"].map(|name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let mut ids: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        ids.sort_unstable();
        ids
    })
}

#[test]
fn a_daemon_runs_as_the_user_it_is_given_and_is_swapped_as_that() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can start a daemon of another user");
    }
    if ids("-u").is_empty() {
        return eprintln!("skipped: this system has no user {USER}");
    }
    let (uid, gid) = (ids("-u")[0], ids("-g")[0]);
    let mut bench = Bench::new("");
    fs::set_permissions(bench.path(""), Permissions::from_mode(0o755)).unwrap();
    for dir in ["data", "run"] {
        chown(bench.path(dir), Some(uid), Some(gid)).unwrap();
    }
    // The one that was built may lie where only root gets.
    let own = bench.path("handoff");
    fs::copy(env!("CARGO_BIN_EXE_handoff"), &own).unwrap();
    bench.version_of(&own, "v1", "");
    bench.configure("[daemon]", &format!("user = {USER:?}"));
    bench.handoff(&["check"]).exits(0);
    bench.start();
    let whom = [vec![uid; 4], vec![gid; 4], ids("-G")];
    assert_eq!(identity(bench.serving()), whom);
    let load = Load::start(bench.address);
    load.goes_on();
    let second = bench.version_of(&own, "v2", "");
    bench.handoff(&["swap", second.to_str().unwrap()]).exits(0);
    assert_eq!(identity(bench.serving()), whom);
    load.goes_on();
    let unfit = bench.version_of(&own, "unfit", "export KV_UNHEALTHY=1");
    bench.handoff(&["swap", unfit.to_str().unwrap()]).exits(75);
    load.ends_clean();
    for file in fs::read_dir(bench.path("data")).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().uid(), uid, "{file:?}");
    }
    bench.handoff(&["doctor"]).exits(0);
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}

#[test]
fn only_root_the_supervisors_user_and_admins_get_an_answer() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can be other users");
    }
    let Some(admin) = ids("-u").first().map(u32::to_string) else {
        return eprintln!("skipped: this system has no user {USER}");
    };
    let mut bench = Bench::new("");
    fs::set_permissions(bench.path(""), Permissions::from_mode(0o755)).unwrap();
    let (own, socket) = (bench.path("handoff"), bench.path("run/handoff.sock"));
    fs::copy(env!("CARGO_BIN_EXE_handoff"), &own).unwrap();
    let status_as = |uid: &str| {
        let mut command = Command::new(&own);
        command.args(["run-as", uid, uid, ""]).arg(&own).arg("status").arg("--socket").arg(&socket);
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let mode = || fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    bench.start();
    assert_eq!(mode(), 0o600);
    assert_eq!(status_as(&admin).0, 77);

    // An admin is let in, and nobody else, from the next binary on.
    bench.configure("[supervisor]", &format!("admins = [{USER:?}]"));
    bench.handoff(&["reexec"]).exits(0);
    bench.until("it is back", |status| status["activity"] == "serving");
    assert_eq!(mode(), 0o666);
    assert_eq!(status_as(&admin), (0, String::new()));
    let (code, said) = status_as("4322");
    assert_eq!(code, 77, "{said}");
    assert!(said.contains("You are user 4322") && said.contains("`admins`"), "{said}");
    assert!(bench.log().contains("this user may not use it uid=4322"), "{}", bench.log());
    bench.handoff(&["doctor"]).exits(0);
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}

//! What is asked for and cannot be: each with its own code, and nothing is changed.

use std::fs;

use super::bench::{Bench, link};

#[test]
fn what_cannot_be_done_is_refused_with_its_own_code() {
    let mut bench = Bench::new("");
    fs::create_dir(bench.path("good")).unwrap();
    bench.configure("[handoff]", &format!("binaries = [{:?}]", bench.path("good/*")));
    let (first, good) = (bench.version("good/v1", ""), bench.version("good/v2", ""));
    let config = fs::read_to_string(bench.path("handoff.toml")).unwrap();
    let config = config.replace(bench.path("v1").to_str().unwrap(), first.to_str().unwrap());
    fs::write(bench.path("handoff.toml"), config).unwrap();
    bench.start();
    let serving = bench.serving();
    let refused = |args: &[&str], exit: i32, code: &str, phrase: &str| {
        let said = bench.handoff(args).exits(exit).words();
        assert!(said.contains(code) && said.contains(phrase), "{args:?}: {said}");
        let object = bench.handoff(&[args, &["--json"]].concat()).exits(exit).json();
        assert_eq!((&object["code"], &object["exit"]), (&code.into(), &exit.into()), "{args:?}");
    };
    refused(&["rollback"], 65, "no_previous", "name it: handoff swap BINARY");
    refused(&["abort"], 75, "not_busy", "no handoff is under way");
    let nothing = bench.path("good/nothing");
    refused(&["swap", nothing.to_str().unwrap()], 66, "successor_exec_failed", "check the path");
    let times = ["swap", "--deadline", "1s", "--drain-grace", "2s"];
    refused(&times, 64, "bad_request", "give other values for --deadline");

    // A binary that is not allowed, and one that only looks as if it were.
    let other = bench.version("other", "");
    refused(&["swap", other.to_str().unwrap()], 77, "not_allowed", "`binaries`");
    let looks = bench.path("good/looks");
    link(&other, &looks);
    refused(&["swap", looks.to_str().unwrap()], 77, "not_allowed", "`binaries`");

    // A configuration that was broken meanwhile.
    let config = fs::read_to_string(bench.path("handoff.toml")).unwrap();
    bench.configure("[handoff]", "dedline = \"1s\"");
    let socket = bench.path("run/handoff.sock");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_handoff"))
        .args(["swap", "--socket", socket.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean deadline?"));
    fs::write(bench.path("handoff.toml"), config).unwrap();

    // The binary before has another file in its place.
    assert_eq!((bench.serving(), bench.history()), (serving, vec!["start".to_string()]));
    bench.handoff(&["swap", good.to_str().unwrap()]).exits(0);
    let serving = bench.serving();
    fs::rename(bench.version("new", "# another"), &first).unwrap();
    refused(&["rollback"], 66, "no_previous", "give each version a path of its own");
    assert_eq!((bench.serving(), bench.history()), (serving, vec!["start".into(), "swap".into()]));
    // What the daemons have said was passed on.
    assert!(bench.log().contains(&format!("kv[{serving}]: accepting\n")), "{}", bench.log());
    bench.handoff(&["stop"]).exits(0);
    assert_eq!(bench.ends(), 0);
}

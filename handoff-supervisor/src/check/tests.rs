use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use super::*;

/// A directory with a configuration that is good, but for what is put in it.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("handoff check ").tempdir().unwrap();
        for name in ["data", "run"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let bench = Self(dir);
        fs::write(bench.at("kv"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(bench.at("kv"), fs::Permissions::from_mode(0o755)).unwrap();
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    /// `DIR` stands for the directory.
    fn check(&self, daemon: &str, rest: &str) -> Report {
        let text = format!(
            "[daemon]\ncommand = \"DIR/kv\"\ndata_dir = \"DIR/data\"\ncontrol = \"DIR/run/c\"\n{daemon}
[supervisor]\nsocket = \"DIR/run/s\"\nstate_dir = \"DIR/state/kv\"\n{rest}"
        );
        self.check_file(&text)
    }

    fn check_file(&self, text: &str) -> Report {
        let dir = self.0.path().canonicalize().unwrap();
        fs::write(self.at("kv.toml"), text.replace("DIR", dir.to_str().unwrap())).unwrap();
        Report::of(&self.at("kv.toml"))
    }

    /// As it is printed, with `DIR` for the directory again.
    fn text(&self, report: &Report) -> String {
        report.text().replace(self.0.path().canonicalize().unwrap().to_str().unwrap(), "DIR")
    }
}

#[test]
fn what_is_there_is_good() {
    let bench = Bench::new();
    let rest = "[[listener]]\nname = \"a\"\ntcp = \"127.0.0.1:0\"
[[listener]]\nname = \"b\"\nunix = \"DIR/run/b\"\n[handoff]\nbinaries = [\"DIR/*\"]\n";
    let report = bench.check("directory = \"/\"", rest);
    let text = bench.text(&report);
    let mistakes = report.mistakes.len();
    assert_eq!((report.exit, report.good, mistakes), (0, true, 0), "{text}");
    assert!(text.ends_with("DIR/kv.toml is good\n"), "{text}");
    let left: Vec<_> =
        fs::read_dir(bench.0.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 4, "nothing was made: {left:?}");
}

#[test]
fn what_is_not_there_is_told_with_its_line() {
    let bench = Bench::new();
    let report = bench.check_file(
        "\
[daemon]
command = \"DIR/none\"
data_dir = \"DIR/none\"
control = \"DIR/none/c\"
directory = \"DIR/kv\"
[supervisor]
socket = \"DIR/kv.toml\"
state_dir = \"DIR/kv/state\"
",
    );
    let me = User::current().name;
    let expected = format!(
        "\
DIR/kv.toml:2: DIR/none does not exist
    check the path, or install the binary
DIR/kv.toml:3: DIR/none does not exist
    make it: install -d -o {me} -m 0700 'DIR/none'
DIR/kv.toml:4: DIR/none does not exist
    make it: install -d -o {me} -m 0700 'DIR/none'
DIR/kv.toml:5: DIR/kv is no directory
    name a directory, or move the file away
DIR/kv.toml:7: DIR/kv.toml is there already, and is no socket
    move it away, or choose another path
DIR/kv.toml:8: DIR/kv/state cannot be made: DIR/kv is no directory
    make it: install -d -o {me} -m 0700 'DIR/kv/state'
"
    );
    let text = bench.text(&report);
    let text: Vec<&str> = text.lines().collect();
    let (text, end) = text.split_at(12);
    assert_eq!(text.join("\n") + "\n", expected);
    assert_eq!(end, ["6 mistakes"]);
    assert_eq!(report.exit, 78);
}

#[test]
fn a_command_that_cannot_be_run_or_is_not_allowed() {
    let bench = Bench::new();
    fs::write(bench.at("kv-1"), "").unwrap();
    let text = "[daemon]\ncommand = \"DIR/kv-1\"\ndata_dir = \"DIR/data\"\ncontrol = \"DIR/run/c\"
[supervisor]\nsocket = \"DIR/run/s\"\nstate_dir = \"DIR/state\"\n[handoff]\nbinaries = [\"DIR/kv\"]\n";
    let report = bench.check_file(text);
    let told = bench.text(&report);
    assert!(
        told.contains("kv.toml:2: DIR/kv-1 is not executable by this user\n    chmod +x"),
        "{told}"
    );

    fs::remove_file(bench.at("kv-1")).unwrap();
    std::os::unix::fs::symlink("/bin/sh", bench.at("kv-1")).unwrap();
    let report = bench.check_file(text);
    let told = bench.text(&report);
    let shell = Path::new("/bin/sh").canonicalize().unwrap();
    let expected = format!("kv.toml:9: binaries does not allow {}\n", shell.display());
    assert!(told.contains(&expected), "{told}");
}

#[test]
fn a_user_who_may_not_is_named() {
    let bench = Bench::new();
    let me = User::current();
    fs::set_permissions(bench.at("data"), fs::Permissions::from_mode(0o500)).unwrap();
    if me.uid != 0 {
        let report = bench.check("", "");
        let told = bench.text(&report);
        let expected = format!("kv.toml:3: user {} may not write to DIR/data\n    chown", me.name);
        assert!(told.contains(&expected), "{told}");
        let told = bench.text(&bench.check("user = \"root\"", ""));
        assert!(told.contains("kv.toml:5: only root can start the daemon as root"), "{told}");
        return;
    }
    fs::set_permissions(bench.0.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let told = bench.text(&bench.check("user = \"nobody\"", ""));
    assert!(told.contains("user nobody does not get to DIR/data: DIR is closed\n"), "{told}");
    assert!(told.contains("user nobody may not execute DIR/kv\n    chmod o+x 'DIR'\n"), "{told}");
    fs::set_permissions(bench.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let told = bench.text(&bench.check("user = \"nobody\"", ""));
    let expected = "user nobody may not write to DIR/data\n    chown nobody 'DIR/data', ";
    assert!(told.contains(expected), "{told}");
    assert!(told.contains("kv.toml:4: user nobody may not write to DIR/run\n"), "{told}");
    assert_eq!(told.lines().last(), Some("2 mistakes"), "{told}");
}

#[test]
fn an_address_in_use_is_told_with_its_user() {
    let bench = Bench::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let rest = format!("metrics = \"{at}\"\n[[listener]]\nname = \"a\"\nunix = \"DIR/run/a\"\n");
    let unix = UnixListener::bind(bench.at("run/a")).unwrap();
    let me = system::named(std::process::id());
    let report = bench.check("", &rest);
    let told = bench.text(&report);
    assert!(told.contains(&format!("kv.toml:9: {at} is in use, by {me}\n    stop ")), "{told}");
    assert!(told.contains(&format!("kv.toml:12: DIR/run/a is in use, by {me}\n")), "{told}");
    assert_eq!(report.exit, 78);

    // The same process at the supervisor's socket: it is the supervisor then.
    let _socket = UnixListener::bind(bench.at("run/s")).unwrap();
    let report = bench.check("", &rest);
    let told = bench.text(&report);
    let expected =
        format!("kv.toml:9: note: {at} is bound already, by {me}: this configuration runs\n");
    assert!(told.contains(&expected), "{told}");
    assert_eq!(report.exit, 0, "{told}");

    // A socket that nobody listens at any more is replaced.
    drop(unix);
    let told = bench.text(&bench.check("", &rest));
    assert!(!told.contains("run/a"), "{told}");
}

#[test]
fn an_address_of_another_machine() {
    let bench = Bench::new();
    let report = bench.check("", "[[listener]]\nname = \"a\"\ntcp = \"192.0.2.1:80\"\n");
    let told = bench.text(&report);
    let expected = "kv.toml:11: this machine does not have the address 192.0.2.1\n";
    // As a plain user the port comes first.
    assert!(told.contains(expected) || told.contains("may not bind 192.0.2.1:80"), "{told}");
}

#[test]
fn mistakes_in_the_file_come_first_and_a_program_can_read_them() {
    let bench = Bench::new();
    let report = bench.check("stop_grace = 5", "");
    assert_eq!(report.exit, 78);
    let json: serde_json::Value =
        serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(json["good"], false);
    assert_eq!(json["file"], bench.at("kv.toml").to_str().unwrap());
    assert_eq!(json["mistakes"][0]["line"], 5);
    assert_eq!(json["mistakes"][0]["remedy"], "write stop_grace = \"10s\"");
    assert_eq!(bench.text(&report).lines().last(), Some("1 mistake"));

    let report = Report::of(&bench.at("none.toml"));
    assert_eq!((report.exit, report.good), (66, false));
    let told = bench.text(&report);
    assert!(told.starts_with("DIR/none.toml: cannot be read: No such file"), "{told}");
}

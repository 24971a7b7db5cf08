use super::*;

/// A file that begins with `table`, with `lines` in it from line 2, and is good but for them.
fn file(table: &str, lines: &str) -> String {
    let mut text = format!("[{table}]\n{lines}\n");
    let given = |key: &str| lines.lines().any(|line| line.starts_with(&format!("{key} ")));
    let needed = [
        ("daemon", "command", "/bin/kv"),
        ("daemon", "data_dir", "/var/lib/kv"),
        ("daemon", "control", "/run/kv/control"),
        ("supervisor", "socket", "/run/kv/handoff"),
        ("supervisor", "state_dir", "/var/lib/handoff"),
        ("[listener]", "name", "http"),
        ("handoff.health", "http", "http://localhost/"),
    ];
    for (_, key, value) in needed.iter().filter(|(t, key, _)| *t == table && !given(key)) {
        text.push_str(&format!("{key} = {value:?}\n"));
    }
    for other in ["daemon", "supervisor"].into_iter().filter(|other| *other != table) {
        text.push_str(&format!("[{other}]\n"));
        for (_, key, value) in needed.iter().filter(|(t, ..)| *t == other) {
            text.push_str(&format!("{key} = {value:?}\n"));
        }
    }
    text
}

fn told(result: Result<(Config, Lines), Mistakes>) -> String {
    let list = result.err().map(|mistakes| mistakes.list).unwrap_or_default();
    let told = |Mistake { line, what, remedy }: &Mistake| {
        let line = line.map(|line| line.to_string()).unwrap_or_else(|| "file".into());
        format!("> {line}: {what}\n>     {remedy}\n")
    };
    if list.is_empty() { "> good\n".into() } else { list.iter().map(told).collect() }
}

/// To write the file anew after a change of words, and then read it: HANDOFF_BLESS=1.
#[test]
fn every_mistake_has_its_line_and_its_remedy() {
    let all = include_str!("mistakes.txt");
    let (head, cases) = all.split_once("\n\n").unwrap();
    let mut anew = format!("{head}\n");
    let mut wrong = Vec::new();
    let (mut case, mut expected) = (String::new(), String::new());
    let mut lines = cases.lines().peekable();
    while let Some(line) = lines.next() {
        let line = format!("{line}\n");
        if line.starts_with('>') {
            expected.push_str(&line)
        } else {
            case.push_str(&line)
        }
        if !(line.starts_with('>') && lines.peek().is_none_or(|next| !next.starts_with('>'))) {
            continue;
        }
        let (table, inside) = case.trim_start().split_once('\n').unwrap();
        let text = match table {
            "raw" => inside.to_owned(),
            table => file(&table[1..table.len() - 1], inside.trim_end()),
        };
        let got = told(parse(Path::new("kv.toml"), &text));
        anew.push_str(&format!("\n{}{got}", case.trim_start()));
        if got != expected {
            wrong.push(format!("{case}expected\n{expected}got\n{got}"));
        }
        case.clear();
        expected.clear();
    }
    if std::env::var_os("HANDOFF_BLESS").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/read/mistakes.txt");
        std::fs::write(file, anew).unwrap();
    } else {
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

const EXAMPLE: &str = include_str!("../../../systemd/handoff.toml");

#[test]
fn the_example_is_good_as_it_is() {
    let (config, _) = parse(Path::new("handoff.toml"), EXAMPLE).unwrap();
    let names: Vec<&str> = config.listeners.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names, ["http", "metrics", "local"]);
    assert_eq!(config.handoff.health.unwrap().path, "/healthz");
}

#[test]
fn the_example_has_every_key_and_its_usual_value() {
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key.replace("\"kv\"", "\"root\""),
        _ => line.to_owned(),
    };
    let text: Vec<String> = EXAMPLE.lines().map(uncommented).collect();
    let text = text.join("\n");
    let (full, lines) = parse(Path::new("handoff.toml"), &text).unwrap();
    for table in TABLES {
        let name = table.name;
        for key in table.keys {
            let is_there = if table.many {
                (0..3).any(|i| lines.0.contains_key(&format!("{name}.{i}.{key}")))
            } else {
                lines.0.contains_key(&format!("{name}.{key}"))
            };
            assert!(is_there, "{name}.{key} is not in the example");
        }
    }
    // What stands after a # is what holds without it.
    let (short, _) = parse(Path::new("handoff.toml"), EXAMPLE).unwrap();
    let Handoff { probation, binaries, .. } = full.handoff.clone();
    assert_eq!(full.handoff, Handoff { probation, binaries, ..short.handoff });
    assert_eq!(full.daemon.stop_grace, short.daemon.stop_grace);
    assert_eq!(full.daemon.wrapper, short.daemon.wrapper);
    assert_eq!(full.supervisor.restart_first, short.supervisor.restart_first);
    assert_eq!(full.supervisor.restart_most, short.supervisor.restart_most);
    assert_eq!(full.listeners[2], short.listeners[2]);
}

#[test]
fn what_is_left_out_is_as_usual() {
    let (config, lines) = parse(Path::new("kv.toml"), &file("daemon", "")).unwrap();
    assert_eq!(config.handoff, Handoff::default());
    assert_eq!(config.supervisor.restart_most, Duration::from_secs(30));
    assert_eq!(config.state("history"), Path::new("/var/lib/handoff/history"));
    assert_eq!((lines.of("daemon.command"), lines.of("daemon.user")), (Some(3), Some(1)));
    assert_eq!(lines.of("handoff.deadline"), None);
}

#[test]
fn a_user_brings_its_groups() {
    let (config, _) = parse(Path::new("kv.toml"), &file("daemon", "user = \"root\"")).unwrap();
    let root = config.daemon.user.unwrap();
    assert_eq!((root.name.as_str(), root.uid), ("root", 0));
    assert!(root.groups.contains(&root.gid));
}

#[test]
fn a_file_that_cannot_be_read_is_told_from_one_that_is_wrong() {
    let dir = tempfile::Builder::new().prefix("handoff config ").tempdir().unwrap();
    let file = dir.path().join("kv.toml");

    let missing = read(&file).unwrap_err();
    assert_eq!((missing.unreadable, missing.exit()), (true, 66));
    assert!(missing.to_string().contains("--config FILE"), "{missing}");

    let directory = read(dir.path()).unwrap_err();
    assert_eq!((directory.unreadable, directory.exit()), (true, 66));

    std::fs::write(&file, b"[daemon]\n\xff").unwrap();
    let wrong = read(&file).unwrap_err();
    assert_eq!((wrong.list[0].line, wrong.exit()), (Some(2), 78));

    std::fs::write(&file, vec![b'\n'; 2 << 20]).unwrap();
    let large = read(&file).unwrap_err();
    assert_eq!((large.list.len(), large.exit()), (1, 78));
    assert!(large.to_string().contains("1 MiB"), "{large}");

    std::fs::write(&file, "").unwrap();
    let empty = read(&file).unwrap_err().to_string();
    assert!(empty.contains("kv.toml: there is no [daemon]\n    add it, "), "{empty}");
}

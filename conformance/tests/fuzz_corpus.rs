//! Every input of the fuzz targets' corpora, without a fuzzer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a library of its own")]
mod fuzz;

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(name: &str) {
    let (_, target) = fuzz::TARGETS.into_iter().find(|it| it.0 == name).unwrap();
    let files = files(&folder("corpus").join(name));
    assert!(!files.is_empty());
    for file in files {
        let data = fs::read(&file).unwrap();
        if catch_unwind(|| target(&data)).is_err() {
            panic!("{} is a finding\n{}", file.display(), fuzz::transcript(target, &data));
        }
    }
}

/// W2, W5, W6, W7
#[test]
fn decoder() {
    replay("decoder");
}

/// W2, W3, W5, W6
#[test]
fn differential() {
    replay("differential");
}

/// I1 to I6
#[test]
fn world() {
    replay("world");
}

/// R1-R3, R7, R8, R11, C2, C5, T5
#[test]
fn incumbent() {
    replay("incumbent");
}

/// R1, R3, R7, R8
#[test]
fn successor() {
    replay("successor");
}

/// C1, R4-R6, T3
#[test]
fn supervisor() {
    replay("supervisor");
}

/// Each target has a corpus and a binary, and nothing else has.
#[test]
fn every_target_is_there() {
    let targets: BTreeSet<&str> = fuzz::TARGETS.into_iter().map(|it| it.0).collect();
    for place in ["corpus", "fuzz_targets"] {
        let files = files(&folder(place));
        let stems: BTreeSet<&str> =
            files.iter().map(|file| file.file_stem().unwrap().to_str().unwrap()).collect();
        assert_eq!(stems, targets, "{place}");
    }
}

//! `docs/protocol.md` keeps its word: it has every clause, and every test it names exists.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/protocol.md")).unwrap()
}

#[test]
fn every_clause_has_a_row_and_a_proof() {
    let document = document();
    let mut missing = BTreeSet::new();
    for (letter, count) in conformance::CLAUSES {
        for number in 1..=count {
            let row = format!("| {letter}{number} | ");
            let proven = document.lines().any(|line| line.starts_with(&row) && line.contains("::"));
            if !proven {
                missing.insert(row);
            }
        }
    }
    assert!(missing.is_empty(), "no row, or no proof: {missing:?}");
}

#[test]
fn every_test_that_is_named_exists() {
    let document = document();
    let named: BTreeSet<&str> = document
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter_map(|line| line.rsplit(" | ").next())
        .flat_map(|cell| cell.split('`').filter(|part| part.contains("::")))
        .collect();
    assert!(named.len() > 50, "only {} tests are named", named.len());
    let missing: Vec<_> = named.into_iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "named, but not there: {missing:?}");
}

/// Whether `crate/file::test` stands in the crate's tests or among its sources.
fn exists(name: &str) -> bool {
    let Some((file, test)) = name.split_once("::") else { return false };
    let Some((krate, path)) = file.split_once('/') else { return false };
    let folder =
        if krate == "conformance" { krate.to_string() } else { format!("handoff-{krate}") };
    ["tests", "src"].iter().any(|place| {
        let file = root().join(&folder).join(place).join(path).with_extension("rs");
        let source = std::fs::read_to_string(file).unwrap_or_default();
        source.contains(&format!("fn {test}("))
    })
}

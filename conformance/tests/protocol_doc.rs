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

/// The suite is for other adapters too, which have no tests of ours beside it.
#[test]
fn every_clause_is_named_by_a_scenario() {
    let scenarios = conformance::suite::scenarios();
    let named: BTreeSet<&str> =
        scenarios.iter().flat_map(|scenario| scenario.clauses).copied().collect();
    let clauses = conformance::CLAUSES.into_iter();
    let clauses: BTreeSet<String> = clauses
        .flat_map(|(letter, count)| (1..=count).map(move |number| format!("{letter}{number}")))
        .collect();
    let without: Vec<_> =
        clauses.iter().filter(|clause| !named.contains(clause.as_str())).collect();
    assert!(without.is_empty(), "no scenario names {without:?}");
    let unknown: Vec<_> = named.iter().filter(|&&clause| !clauses.contains(clause)).collect();
    assert!(unknown.is_empty(), "there are no clauses {unknown:?}");
}

/// A scenario is told from all others by what a test is called, and is one line of the table.
#[test]
fn scenarios_are_told_apart_and_fit_a_line() {
    let scenarios = conformance::suite::scenarios();
    let ids: BTreeSet<String> = scenarios.iter().map(|scenario| scenario.id()).collect();
    assert_eq!(ids.len(), scenarios.len());
    for scenario in scenarios {
        let width = scenario.name.len() + 1 + scenario.clauses.join(" ").len();
        assert!(2 + width + 2 * conformance::adapters::ALL.len() <= 80, "{}", scenario.name);
    }
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

//! What an adapter is taken through.

mod alone;
mod late;
mod lost;
mod swap;

use serde::Serialize;

use super::{Adapter, guarded};
use crate::probe;
pub use crate::probe::Verdict;

/// Who of an adapter a scenario is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Its daemon, met as an incumbent.
    Incumbent,
    /// Its daemon, started as a successor.
    Successor,
    /// Its supervisor.
    Supervisor,
    /// All three of them, in a handoff.
    Handoff,
}

impl Role {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Incumbent, Self::Successor, Self::Supervisor, Self::Handoff];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Incumbent => "incumbent",
            Self::Successor => "successor",
            Self::Supervisor => "supervisor",
            Self::Handoff => "handoff",
        }
    }
}

/// One scenario: a script, and what has to come of it.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// What an adapter does that passes.
    pub name: &'static str,
    /// The clauses of the protocol that it proves.
    pub clauses: &'static [&'static str],
    /// Whom it is about.
    pub role: Role,
    script: Script,
}

#[derive(Clone, Copy)]
enum Script {
    Incumbent(&'static probe::Check<probe::Incumbent>),
    Successor(&'static probe::Check<probe::Successor>),
    Supervisor(&'static probe::Check<probe::Supervisor>),
    Handoff(fn(&'static dyn Adapter)),
}

impl Scenario {
    const fn handoff(
        clauses: &'static [&'static str],
        name: &'static str,
        script: fn(&'static dyn Adapter),
    ) -> Self {
        Self { name, clauses, role: Role::Handoff, script: Script::Handoff(script) }
    }

    /// What tells it from all others, without spaces: its role, its clauses and its name.
    #[must_use]
    pub fn id(&self) -> String {
        let words: Vec<_> = self.name.split_whitespace().collect();
        format!("{}::{}::{}", self.role.name(), self.clauses.join("-"), words.join("_"))
    }

    /// Runs it on an adapter; what was seen, or why it says nothing of this one.
    ///
    /// To be called in a program that called [`play`](super::play) first.
    #[must_use]
    pub fn run(&self, adapter: &'static dyn Adapter) -> (Verdict, String) {
        let case = guarded(|| match self.script {
            Script::Incumbent(check) => alone::incumbent(adapter, check),
            Script::Successor(check) => alone::successor(adapter, check),
            Script::Supervisor(check) => alone::supervisor(adapter, check),
            Script::Handoff(script) => {
                script(adapter);
                (Verdict::Pass, String::new())
            }
        });
        case.unwrap_or_else(|panic| (Verdict::Fail, panic))
    }
}

/// All there are.
#[must_use]
pub fn scenarios() -> Vec<Scenario> {
    fn of<C>(
        role: Role,
        checks: &'static [probe::Check<C>],
        script: impl Fn(&'static probe::Check<C>) -> Script,
    ) -> impl Iterator<Item = Scenario> {
        checks.iter().map(move |check| Scenario {
            name: check.name,
            clauses: check.clauses,
            role,
            script: script(check),
        })
    }
    of(Role::Incumbent, probe::INCUMBENT, Script::Incumbent)
        .chain(of(Role::Successor, probe::SUCCESSOR, Script::Successor))
        .chain(of(Role::Supervisor, probe::SUPERVISOR, Script::Supervisor))
        .chain([swap::SCENARIOS, late::SCENARIOS, lost::SCENARIOS].concat())
        .collect()
}

//! Every state there is, and whether each of them leads to rest.
//!
//! Invariants say what is wrong with a state. That a system comes to rest is a property of its graph:
//! from every state there must be a way to one in which nothing is left to do, without anybody's will
//! and without a further fault. As everything that has to be done is done sooner or later, a run then
//! ends there; where there is no such way, it goes round for ever.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::world::{Choice, Kind, Rules, Violation, World};

/// Where a search began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody runs but the supervisor.
    Cold,
    /// A daemon serves.
    Settled,
}

impl Origin {
    /// The state.
    #[must_use]
    pub fn world(self, rules: Rules) -> World {
        match self {
            Self::Cold => World::new(rules),
            Self::Settled => World::settled(rules),
        }
    }
}

/// What is wrong with the state at the end of a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// An invariant does not hold.
    Violation(Violation),
    /// There is no way to rest, not even when every stopped process is continued.
    NoRest,
    /// While those that are stopped stay so, it never rests and nobody ever serves.
    NeverServed,
}

/// What a search came to.
#[derive(Clone, Debug)]
pub struct Explored {
    /// How many states there are.
    pub states: usize,
    /// How many of them are at rest.
    pub rests: usize,
    /// Whether every state was seen.
    pub complete: bool,
    /// What is wrong, each with a shortest way there, at most one of a kind.
    pub findings: Vec<(Finding, Vec<Choice>)>,
}

/// Looks at every state that can be reached, at most `limit`, nearest first.
#[must_use]
pub fn explore(origin: Origin, rules: Rules, limit: usize) -> Explored {
    let mut search = Search::default();
    let mut queue = VecDeque::new();
    let start = origin.world(rules);
    search.insert(&start, None);
    queue.push_back((0, start));
    let mut complete = true;
    while let Some((place, world)) = queue.pop_front() {
        if let Some(violation) = world.violation() {
            search.found(Finding::Violation(violation), place);
            // What follows from a state that is wrong tells nothing more.
            search.rests.push(place);
            continue;
        }
        let choices = world.choices();
        let mut rest = true;
        for choice in choices {
            let work = world.kind(choice) == Kind::Work;
            rest &= !work;
            let mut next = world.clone();
            next.step(choice, &mut |_| {});
            let (to, new) = search.insert(&next, Some((place, choice)));
            match choice {
                Choice::Continue(_) => search.continued.push((to, place)),
                _ if work => search.edges.push((to, place)),
                _ => {}
            }
            if new {
                if search.parents.len() <= limit {
                    queue.push_back((to, next));
                } else {
                    complete = false;
                    search.rests.push(to);
                }
            }
        }
        if rest || world.is_lost() {
            search.rests.push(place);
        } else if world.is_served() {
            search.served.push(place);
        }
    }
    search.judge();
    Explored {
        states: search.parents.len(),
        rests: search.rests.len(),
        complete,
        findings: search.findings,
    }
}

type Place = u32;

#[derive(Default)]
struct Search {
    seen: HashMap<u128, Place>,
    parents: Vec<Option<(Place, Choice)>>,
    /// Work, from where it leads to where it comes from.
    edges: Vec<(Place, Place)>,
    /// The same, of processes that were stopped and continue.
    continued: Vec<(Place, Place)>,
    rests: Vec<Place>,
    /// Not at rest, and somebody serves or nobody can.
    served: Vec<Place>,
    findings: Vec<(Finding, Vec<Choice>)>,
}

impl Search {
    fn insert(&mut self, world: &World, from: Option<(Place, Choice)>) -> (Place, bool) {
        let next = Place::try_from(self.parents.len()).unwrap_or(Place::MAX);
        let place = *self.seen.entry(digest(world)).or_insert(next);
        if place == next {
            self.parents.push(from);
        }
        (place, place == next)
    }

    fn path(&self, mut place: Place) -> Vec<Choice> {
        let mut path = Vec::new();
        while let Some((from, choice)) = self.parents[place as usize] {
            path.push(choice);
            place = from;
        }
        path.reverse();
        path
    }

    fn found(&mut self, finding: Finding, place: Place) {
        if self.findings.iter().all(|(known, _)| *known != finding) {
            let path = self.path(place);
            self.findings.push((finding, path));
        }
    }

    /// What the whole graph tells.
    fn judge(&mut self) {
        let good: Vec<Place> = self.rests.iter().chain(&self.served).copied().collect();
        if let Some(lost) = unreached(self.parents.len(), &mut self.edges, good) {
            self.found(Finding::NeverServed, lost);
        }
        self.edges.append(&mut self.continued);
        if let Some(lost) = unreached(self.parents.len(), &mut self.edges, self.rests.clone()) {
            self.found(Finding::NoRest, lost);
        }
    }
}

/// The nearest place from which no way leads to one of the `good` ones.
fn unreached(places: usize, edges: &mut [(Place, Place)], mut good: Vec<Place>) -> Option<Place> {
    edges.sort_unstable();
    let mut reached = vec![false; places];
    while let Some(place) = good.pop() {
        if core::mem::replace(&mut reached[place as usize], true) {
            continue;
        }
        let start = edges.partition_point(|edge| edge.0 < place);
        let into = edges[start..].iter().take_while(|edge| edge.0 == place);
        good.extend(into.map(|edge| edge.1));
    }
    let lost = reached.iter().position(|reached| !reached)?;
    Place::try_from(lost).ok()
}

/// Two independent hashes, so that no two states of a run are taken for one.
fn digest(world: &World) -> u128 {
    let mut low = DefaultHasher::new();
    world.hash(&mut low);
    let mut high = DefaultHasher::new();
    0x9e37_79b9_u64.hash(&mut high);
    world.hash(&mut high);
    (u128::from(high.finish()) << 64) | u128::from(low.finish())
}

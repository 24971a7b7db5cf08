//! A table of a TOML file, taken out key by key. What is wrong is collected, each with its line.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::read::Mistake;

/// Where each key of a file stands, by its place: `daemon.command`, `listener.0.tcp`, `supervisor`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Lines(pub(super) BTreeMap<String, usize>);

impl Lines {
    /// The line of a key, from 1; of the table it would be in where it is not set.
    #[must_use]
    pub(crate) fn of(&self, place: &str) -> Option<usize> {
        self.0.get(place).or_else(|| self.0.get(place.rsplit_once('.')?.0)).copied()
    }
}

/// A file while it is read.
#[derive(Debug)]
pub(super) struct Page {
    /// Where each line begins.
    starts: Vec<usize>,
    mistakes: RefCell<Vec<Mistake>>,
    lines: RefCell<Lines>,
    tables: &'static [Shape],
}

/// A table that a file may have.
#[derive(Debug)]
pub(super) struct Shape {
    /// Its name, without brackets.
    pub(super) name: &'static str,
    /// It is an array: `[[name]]`.
    pub(super) many: bool,
    /// Its keys.
    pub(super) keys: &'static [&'static str],
}

impl Shape {
    /// As it is written in the file.
    pub(super) fn header(&self) -> String {
        if self.many { format!("[[{}]]", self.name) } else { format!("[{}]", self.name) }
    }
}

impl Page {
    pub(super) fn new(text: &str, tables: &'static [Shape]) -> Self {
        let after = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            starts: std::iter::once(0).chain(after).collect(),
            mistakes: RefCell::default(),
            lines: RefCell::default(),
            tables,
        }
    }

    /// The line of a byte, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }

    pub(super) fn wrong(
        &self,
        line: Option<usize>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.mistakes.borrow_mut().push(Mistake { line, what: what.into(), remedy: remedy.into() });
    }

    /// What was wrong, and where everything stands.
    pub(super) fn close(self) -> (Vec<Mistake>, Lines) {
        (self.mistakes.into_inner(), self.lines.into_inner())
    }

    fn note(&self, place: String, line: usize) {
        self.lines.borrow_mut().0.insert(place, line);
    }

    fn shape(&self, name: &str) -> Option<&'static Shape> {
        self.tables.iter().find(|table| table.name == name)
    }
}

/// A table, out of which known keys are taken; what is left is wrong.
#[derive(Debug)]
pub(super) struct Reader<'p> {
    page: &'p Page,
    /// `daemon`, `listener.0`; empty for the file itself.
    place: String,
    shape: Option<&'static Shape>,
    /// Where it begins, where it is in the file.
    pub(super) line: Option<usize>,
    /// It is there, but is no table: that is said, and nothing is missing in it.
    is_broken: bool,
    entries: BTreeMap<String, (usize, DeValue<'p>)>,
}

impl<'p> Reader<'p> {
    /// The whole file.
    pub(super) fn file(page: &'p Page, table: DeTable<'p>) -> Self {
        Self::over(page, String::new(), None, None, table)
    }

    fn over(
        page: &'p Page,
        place: String,
        shape: Option<&'static Shape>,
        line: Option<usize>,
        table: DeTable<'p>,
    ) -> Self {
        let entries = table
            .into_iter()
            .map(|(key, value)| {
                let line = page.line(key.span().start);
                (key.into_inner().into_owned(), (line, value.into_inner()))
            })
            .collect();
        Self { page, place, shape, line, is_broken: false, entries }
    }

    /// A key, if it is set.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Item<'p>> {
        debug_assert!(self.shape.is_none_or(|shape| shape.keys.contains(&key)), "{key}");
        let (line, value) = self.entries.remove(key)?;
        let place = self.place_of(key);
        self.page.note(place.clone(), line);
        Some(Item { page: self.page, key: key.to_owned(), place, line, value })
    }

    /// A key that must be set. `add` is what to write, and what it is.
    pub(super) fn need(&mut self, key: &'static str, add: &str) -> Option<Item<'p>> {
        let found = self.take(key);
        // A key that is only written wrong is complained about as that.
        let keys = self.shape.map(|shape| shape.keys).unwrap_or_default();
        let meant = |given: &String| nearest(given, keys.iter().copied()) == Some(key);
        if found.is_none() && !self.is_broken && !self.entries.keys().any(meant) {
            let name = self.shape.map(Shape::header).unwrap_or_default();
            self.page.wrong(self.line, format!("{name} has no {key}"), format!("add {add}"));
        }
        found
    }

    /// The keys of a table as they stand, in the order of their lines.
    pub(super) fn into_items(self) -> Vec<Item<'p>> {
        let mut items: Vec<Item<'p>> = self
            .entries
            .into_iter()
            .map(|(key, (line, value))| {
                let place = format!("{}.{key}", self.place);
                Item { page: self.page, key, place, line, value }
            })
            .collect();
        items.sort_by_key(|item| item.line);
        items
    }

    /// A table of this one: without a line, and with no keys, where it is not there.
    pub(super) fn table(&mut self, key: &'static str) -> Self {
        let place = self.place_of(key);
        let shape = self.page.shape(&place);
        let item = self.take(key);
        let is_broken = item.is_some();
        item.and_then(|item| item.into_table(shape)).unwrap_or_else(|| {
            let none = Self::over(self.page, place, shape, None, DeTable::new());
            Self { is_broken, ..none }
        })
    }

    /// The tables of an array of them.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<Self> {
        let shape = self.page.shape(&self.place_of(key));
        self.take(key).map(|item| item.into_tables(shape)).unwrap_or_default()
    }

    /// The line of a key that was taken.
    pub(super) fn line_of(&self, key: &str) -> Option<usize> {
        self.page.lines.borrow().of(&self.place_of(key))
    }

    pub(super) fn wrong_at(
        &self,
        line: Option<usize>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.page.wrong(line.or(self.line), what, remedy);
    }

    pub(super) fn is_there(&self) -> bool {
        self.line.is_some() || self.is_broken
    }

    pub(super) fn wrong(&self, what: impl Into<String>, remedy: impl Into<String>) {
        self.page.wrong(self.line, what, remedy);
    }

    /// Complains about each key that was not taken.
    pub(super) fn finish(self) {
        for (key, (line, value)) in &self.entries {
            let (what, remedy) = match self.shape {
                Some(shape) => self.unknown_key(shape, key),
                None => self.unknown_at_the_top(key, value),
            };
            self.page.wrong(Some(*line), what, remedy);
        }
    }

    fn unknown_key(&self, shape: &Shape, key: &str) -> (String, String) {
        let what = format!("{} has no key {key:?}", shape.header());
        let remedy = match (nearest(key, shape.keys.iter().copied()), self.home_of(key)) {
            (_, Some(home)) => format!("it belongs in {}", home.header()),
            (Some(near), None) => format!("did you mean {near}?"),
            (None, None) => format!("remove it; the keys are {}", list(shape.keys)),
        };
        (what, remedy)
    }

    fn unknown_at_the_top(&self, key: &str, value: &DeValue<'_>) -> (String, String) {
        let is_table = value.is_table()
            || matches!(value, DeValue::Array(a) if a.iter().any(|v| v.get_ref().is_table()));
        let tables = self.page.tables;
        if let (false, Some(home)) = (is_table, self.home_of(key)) {
            let header = home.header();
            return (
                format!("{key} stands in no table"),
                format!("move it below the line {header}"),
            );
        }
        let what = if is_table {
            format!("there is no table [{key}]")
        } else {
            format!("there is no key {key:?}")
        };
        let near =
            nearest(key, tables.iter().map(|t| t.name)).and_then(|name| self.page.shape(name));
        let remedy = match near.or_else(|| self.home_of(key)) {
            Some(near) => format!("did you mean {}?", near.header()),
            None => {
                let headers: Vec<String> = tables.iter().map(Shape::header).collect();
                format!("remove it; the tables are {}", headers.join(", "))
            }
        };
        (what, remedy)
    }

    /// The only table that has this key, where it is another one.
    fn home_of(&self, key: &str) -> Option<&'static Shape> {
        let has = |table: &&Shape| table.keys.contains(&key);
        let mut homes = self.page.tables.iter().filter(has);
        homes.next().filter(|_| homes.next().is_none())
    }

    fn place_of(&self, key: &str) -> String {
        if self.place.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place) }
    }
}

/// A key and its value.
#[derive(Debug)]
pub(super) struct Item<'p> {
    page: &'p Page,
    pub(super) key: String,
    place: String,
    pub(super) line: usize,
    value: DeValue<'p>,
}

/// What is wrong with a value, to be read after its key, and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub(super) what: String,
    pub(super) remedy: String,
}

impl Fault {
    pub(super) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

impl<'p> Item<'p> {
    /// Complains about it, by its key.
    pub(super) fn wrong(&self, what: impl AsRef<str>, remedy: impl Into<String>) {
        self.page.wrong(Some(self.line), format!("{} {}", self.key, what.as_ref()), remedy);
    }

    /// Complains about it, in other words.
    pub(super) fn wrong_in_all(&self, what: impl Into<String>, remedy: impl Into<String>) {
        self.page.wrong(Some(self.line), what, remedy);
    }

    /// Its text, as `parse` reads it. `kind` and `example` say what it must be.
    pub(super) fn parse<T>(
        &self,
        kind: &str,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let Some(text) = self.value.as_str() else {
            self.not(kind, example);
            return None;
        };
        let parsed = if text.contains('\0') {
            Err(Fault::new("has a NUL character", "remove it: no path or argument can have one"))
        } else {
            parse(text)
        };
        parsed.map_err(|fault| self.wrong(fault.what, fault.remedy)).ok()
    }

    pub(super) fn flag(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| {
            self.not("true or false", "true");
            None
        })
    }

    /// A whole number in a range.
    pub(super) fn count(&self, range: std::ops::RangeInclusive<u32>, example: &str) -> Option<u32> {
        let Some(number) = self.value.as_integer() else {
            self.not("a number", example);
            return None;
        };
        let parsed = u32::from_str_radix(number.as_str(), number.radix()).ok();
        let good = parsed.filter(|number| range.contains(number));
        if good.is_none() {
            let (least, most) = range.into_inner();
            self.wrong(
                format!("must be from {least} to {most}, not {number}"),
                format!("write {} = {example}", self.key),
            );
        }
        good
    }

    /// The number it is, as text, if it is one: where a name or a number will do.
    pub(super) fn digits(&self) -> Option<&str> {
        self.value.as_integer().filter(|number| number.radix() == 10).map(|number| number.as_str())
    }

    /// The values of an array, each named as the array is.
    pub(super) fn elements(self, kind: &str, example: &str) -> Vec<Self> {
        let Self { page, key, place, line, value } = self;
        match value {
            DeValue::Array(array) => array
                .into_iter()
                .map(|element: Spanned<DeValue<'p>>| {
                    let Range { start, .. } = element.span();
                    let (key, place, line) = (key.clone(), place.clone(), page.line(start));
                    Self { page, key, place, line, value: element.into_inner() }
                })
                .collect(),
            value => {
                Self { page, key, place, line, value }.not(kind, example);
                Vec::new()
            }
        }
    }

    /// The table it is, with any keys.
    pub(super) fn into_map(self, kind: &str, example: &str) -> Option<Reader<'p>> {
        match self.value {
            DeValue::Table(table) => {
                Some(Reader::over(self.page, self.place, None, Some(self.line), table))
            }
            _ => {
                self.not(kind, example);
                None
            }
        }
    }

    fn into_table(self, shape: Option<&'static Shape>) -> Option<Reader<'p>> {
        let header = shape.map(Shape::header).unwrap_or_default();
        match self.value {
            DeValue::Table(table) => {
                Some(Reader::over(self.page, self.place, shape, Some(self.line), table))
            }
            DeValue::Array(_) => {
                self.wrong(
                    "is one table, not an array of them",
                    format!("write {header}, with one pair of brackets, and once"),
                );
                None
            }
            _ => {
                let remedy = format!("write {header} on a line, and its keys below it");
                self.wrong(format!("must be a table, not {}", self.kind()), remedy);
                None
            }
        }
    }

    fn into_tables(self, shape: Option<&'static Shape>) -> Vec<Reader<'p>> {
        let header = shape.map(Shape::header).unwrap_or_default();
        let remedy = format!("write {header}, with two pairs of brackets, above the keys of each");
        let DeValue::Array(array) = self.value else {
            self.wrong("must be an array of tables", remedy);
            return Vec::new();
        };
        let (page, mut tables) = (self.page, Vec::new());
        for (index, element) in array.into_iter().enumerate() {
            let line = page.line(element.span().start);
            let place = format!("{}.{index}", self.place);
            page.note(place.clone(), line);
            match element.into_inner() {
                DeValue::Table(table) => {
                    tables.push(Reader::over(page, place, shape, Some(line), table));
                }
                _ => page.wrong(Some(line), format!("{} must be tables", self.key), remedy.clone()),
            }
        }
        tables
    }

    fn not(&self, kind: &str, example: &str) {
        let such =
            if kind.contains(example) { String::new() } else { format!(" such as {example}") };
        self.wrong(
            format!("must be {kind}{such}, not {}", self.kind()),
            format!("write {} = {example}", self.key),
        );
    }

    fn kind(&self) -> &'static str {
        match self.value {
            DeValue::String(_) => "text",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        }
    }
}

/// The word that was probably meant.
fn nearest<'a>(word: &str, among: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = word.to_lowercase().replace(['-', ' '], "_");
    let most = (plain.chars().count() / 3).max(1);
    among
        .map(|known| (strsim::osa_distance(&plain, known), known))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

fn list(words: &[&str]) -> String {
    words.join(", ")
}

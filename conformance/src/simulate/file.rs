//! Runs as files: JSON, with one choice a line, for people and for later versions to read.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use crate::explore::Origin;
use crate::world::{Choice, Rules};

use super::Run;

/// The version of the files that are written, and the only one that is read.
pub const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    /// What goes wrong, for people.
    shows: String,
    seed: u64,
    cold: bool,
    rules: Rules,
    choices: Vec<Choice>,
}

/// Why a text is no run.
#[derive(Debug)]
pub enum Unreadable {
    /// It is not what is written here.
    Malformed(serde_json::Error),
    /// It is of another version.
    Version(u32),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => write!(f, "this is no run: {error}"),
            Self::Version(version) => {
                write!(f, "this run is of version {version}; version {VERSION} is read")
            }
        }
    }
}

impl std::error::Error for Unreadable {}

/// The text of a run in which `shows` goes wrong.
///
/// # Errors
///
/// Where the run has no JSON form, which no run is known to be without.
pub fn write(run: &Run, shows: &str) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    let start = serde_json::json!({
        "version": VERSION,
        "shows": shows,
        "seed": run.seed,
        "cold": run.origin == Origin::Cold,
    });
    // Writing to a String does not fail.
    let _ = writeln!(text, "{{");
    for key in ["version", "shows", "seed", "cold"] {
        let _ = writeln!(text, "  \"{key}\": {},", start[key]);
    }
    let _ = writeln!(text, "  \"rules\": {},", serde_json::to_string(&run.rules)?);
    let _ = writeln!(text, "  \"choices\": [");
    for (place, choice) in run.choices.iter().enumerate() {
        let comma = if place + 1 < run.choices.len() { "," } else { "" };
        let _ = writeln!(text, "    {}{comma}", serde_json::to_string(choice)?);
    }
    let _ = writeln!(text, "  ]\n}}");
    Ok(text)
}

/// The run of a text.
///
/// # Errors
///
/// [`Unreadable`].
pub fn read(text: &str) -> Result<Run, Unreadable> {
    let file: File = serde_json::from_str(text).map_err(Unreadable::Malformed)?;
    if file.version != VERSION {
        return Err(Unreadable::Version(file.version));
    }
    let origin = if file.cold { Origin::Cold } else { Origin::Settled };
    Ok(Run { seed: file.seed, origin, rules: file.rules, choices: file.choices })
}

//! Processes that have no business on the control socket, and what they do there.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::suite::program::control_path;

/// What a stranger does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stranger {
    /// It says nothing.
    Silent,
    /// It sends what is no frame.
    Garbage,
    /// It sends a byte a second.
    Drips,
    /// It announces a frame of 4 GiB, and sends as much as is taken.
    Huge,
    /// Ten at once that say nothing.
    Ten,
}

impl Stranger {
    /// All of them.
    pub(super) const ALL: [Self; 5] =
        [Self::Silent, Self::Garbage, Self::Drips, Self::Huge, Self::Ten];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Silent => "a silent stranger",
            Self::Garbage => "a stranger that sends garbage",
            Self::Drips => "a stranger that drips",
            Self::Huge => "a stranger with a huge frame",
            Self::Ten => "ten silent strangers",
        }
    }

    /// Comes to the control path, and stays for so long or until it is turned away.
    pub(super) fn come(self, dir: &Path, stays: Duration) -> io::Result<()> {
        let count = if self == Self::Ten { 10 } else { 1 };
        for _ in 0..count {
            let stream = UnixStream::connect(control_path(dir))?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.set_write_timeout(Some(Duration::from_secs(1)))?;
            thread::Builder::new().name("stranger".into()).spawn(move || {
                let until = Instant::now() + stays;
                // It is turned away sooner or later.
                let _ = self.talk(stream, until);
            })?;
        }
        Ok(())
    }

    fn talk(self, mut stream: UnixStream, until: Instant) -> io::Result<()> {
        match self {
            Self::Garbage => stream.write_all(&[0x5a; 64])?,
            Self::Huge => stream.write_all(&[0xff; 4])?,
            Self::Silent | Self::Drips | Self::Ten => {}
        }
        let mut said = [0; 256];
        while Instant::now() < until {
            match self {
                Self::Drips => stream.write_all(&[0])?,
                Self::Huge => stream.write_all(&[0; 4096])?,
                Self::Silent | Self::Garbage | Self::Ten => {}
            }
            // What is said to it is of no interest; a second without a word is.
            let begun = Instant::now();
            match stream.read(&mut said) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    thread::park_timeout(Duration::from_secs(1).saturating_sub(begun.elapsed()))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

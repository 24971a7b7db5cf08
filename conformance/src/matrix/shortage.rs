//! File systems of a run's own, and what they may lack for a while.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, UnmountFlags, mount as mount_at, mount_remount, unmount as unmount_at,
};
use serde::{Deserialize, Serialize};

use crate::suite::program::DIRECTORIES;

/// Which file system.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// That of the data.
    Data,
    /// That of the control path.
    Run,
    /// That of the journal.
    State,
}

impl Place {
    fn directory(self, dir: &Path) -> PathBuf {
        dir.join(match self {
            Self::Data => "data",
            Self::Run => "run",
            Self::State => "state",
        })
    }
}

/// What it lacks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shortage {
    /// It is full: no block, no name.
    Full,
    /// It is read-only.
    ReadOnly,
}

/// Gives each directory a small file system of its own.
pub(super) fn mount(dir: &Path) -> io::Result<()> {
    for name in DIRECTORIES {
        let target = dir.join(name);
        fs::create_dir(&target)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount_at("none", &target, "tmpfs", flags, c"size=16m,nr_inodes=64")?;
    }
    Ok(())
}

/// Takes them away again.
pub(super) fn unmount(dir: &Path) {
    for name in DIRECTORIES {
        let _ = unmount_at(dir.join(name), UnmountFlags::DETACH);
    }
}

/// Begins it; gives what ends it.
pub(super) fn begin(
    dir: &Path,
    shortage: Shortage,
    place: Place,
) -> io::Result<Box<dyn FnOnce() + Send>> {
    let directory = place.directory(dir);
    match shortage {
        Shortage::ReadOnly => {
            mount_remount(&directory, MountFlags::RDONLY, c"")?;
            Ok(Box::new(move || {
                let _ = mount_remount(&directory, MountFlags::empty(), c"");
            }))
        }
        Shortage::Full => {
            let mut fillers = Vec::new();
            // First the blocks, then the names.
            for number in 0.. {
                let path = directory.join(format!("filler {number}"));
                let Ok(mut file) = File::create_new(&path) else { break };
                fillers.push(path);
                if number == 0 {
                    while file.write_all(&[0; 4096]).is_ok() {}
                }
            }
            Ok(Box::new(move || {
                for filler in fillers {
                    let _ = fs::remove_file(filler);
                }
            }))
        }
    }
}

//! Becomes another user and then the program.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getgid, getgroups, getuid};
use rustix::thread::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::exit;

/// The program was found and cannot be executed; what shells exit with.
const NOT_EXECUTABLE: u8 = 126;
/// The program is not there; what shells exit with.
const NOT_FOUND: u8 = 127;

/// Runs the verb; returns only if that cannot be done.
///
/// The calls change the ids of the calling thread, so it is for a process that has no other. Environment
/// and descriptors are inherited.
pub(crate) fn run(uid: u32, gid: u32, groups: &str, program: &Path, args: &[OsString]) -> ExitCode {
    let groups = match groups_of(groups) {
        Ok(groups) if uid != u32::MAX && gid != u32::MAX => groups,
        _ => return failed(exit::USAGE, format!("{uid} {gid} {groups:?} are no ids of a user")),
    };
    if let Err(error) = become_user(Uid::from_raw(uid), Gid::from_raw(gid), &groups) {
        let whom = format!("become user {uid} with group {gid}");
        let why = format!("cannot {whom} to run {}: {error}", program.display());
        return failed(
            exit::PERMISSION,
            format!("{why}. The supervisor must run as root for that"),
        );
    }
    let error = Command::new(program).args(args).exec();
    let code = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    failed(code, format!("cannot execute {} as user {uid}: {error}", program.display()))
}

fn groups_of(list: &str) -> Result<Vec<Gid>, ()> {
    let numbers = list.split(',').filter(|number| !number.is_empty());
    let gid = |number: &str| number.parse().ok().filter(|gid| *gid != u32::MAX).ok_or(());
    numbers.map(|number| gid(number).map(Gid::from_raw)).collect()
}

/// Changes the real, the effective and the saved ids, and makes sure that the old ones are lost.
fn become_user(uid: Uid, gid: Gid, groups: &[Gid]) -> io::Result<()> {
    let (old_uid, old_gid) = (geteuid(), getegid());
    set_thread_groups(groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;

    let mut now = getgroups()?;
    let mut wanted = groups.to_vec();
    for list in [&mut now, &mut wanted] {
        list.sort_unstable_by_key(|gid| gid.as_raw());
        list.dedup();
    }
    let changed =
        (getuid(), geteuid(), getgid(), getegid()) == (uid, uid, gid, gid) && now == wanted;
    // What a process may take back shows in the attempt: saved ids and capabilities alike.
    let returns = !uid.is_root()
        && ((old_uid != uid && may(set_thread_res_uid(uid, old_uid, uid)))
            || (old_gid != gid && may(set_thread_res_gid(gid, old_gid, gid))));
    if changed && !returns {
        return Ok(());
    }
    Err(io::Error::other("the system says that it is done, and it is not"))
}

/// Whether a change of ids was let through, or was refused for anything but the lack of permission.
fn may(change: rustix::io::Result<()>) -> bool {
    change != Err(Errno::PERM)
}

fn failed(code: u8, why: impl Display) -> ExitCode {
    eprintln!("handoff run-as: {why}");
    code.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_numbers_with_commas_between_them() {
        let raw = |list| groups_of(list).map(|all| all.into_iter().map(Gid::as_raw).collect());
        assert_eq!(raw(""), Ok(vec![]));
        assert_eq!(raw("10,1000"), Ok(vec![10, 1000]));
        for wrong in ["wheel", "-1", "4294967295", "1;2"] {
            assert_eq!(raw(wrong), Err::<Vec<u32>, _>(()), "{wrong}");
        }
    }
}

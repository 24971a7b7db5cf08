//! Putting another program into this process: pid, children and descriptors stay.

#![allow(unsafe_code, reason = "execve and descriptors by number have no safe wrapper")]

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Names the process and what was kept: `PID/NAME=FD/NAME=FD`.
const KEPT: &str = "HANDOFF_KEPT";

/// Becomes `program`, which finds the descriptors of `keep` by [`kept`]; everything else that is
/// close-on-exec is closed. Children stay children, and a subreaper stays one. The environment stays but
/// for `LISTEN_*`, whose descriptors are spent.
///
/// Signals that the calling thread blocks are blocked in the new program too, and those that wait go on
/// waiting. Names must have no `/` and no `=`.
///
/// It returns only where that failed, with the error, and nothing is changed then.
pub fn replace(program: &Path, args: &[OsString], keep: &[(String, BorrowedFd<'_>)]) -> io::Error {
    match prepare(program, args, keep) {
        Ok((path, argv, envp)) => execute(&path, &argv, &envp, keep),
        Err(error) => error,
    }
}

type Strings = Vec<CString>;

fn prepare(
    program: &Path,
    args: &[OsString],
    keep: &[(String, BorrowedFd<'_>)],
) -> io::Result<(CString, Strings, Strings)> {
    let mut kept = std::process::id().to_string();
    for (name, fd) in keep {
        if name.contains(['/', '=']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the name {name:?}")));
        }
        kept.push_str(&format!("/{name}={}", fd.as_raw_fd()));
    }
    let path = CString::new(program.as_os_str().as_bytes())?;
    let argv = std::iter::once(program.as_os_str()).chain(args.iter().map(OsString::as_os_str));
    let argv = argv.map(|arg| CString::new(arg.as_bytes())).collect::<Result<_, _>>()?;
    let spent = |name: &OsStr| name == KEPT || name.as_bytes().starts_with(b"LISTEN_");
    let environment = env::vars_os().filter(|(name, _)| !spent(name));
    let environment = environment.chain([(KEPT.into(), kept.into())]);
    let envp = environment
        .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect::<Result<_, _>>()?;
    Ok((path, argv, envp))
}

fn execute(
    path: &CString,
    argv: &Strings,
    envp: &Strings,
    keep: &[(String, BorrowedFd<'_>)],
) -> io::Error {
    let pointers = |strings: &Strings| -> Vec<*const libc::c_char> {
        strings.iter().map(|it| it.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(argv), pointers(envp));
    let passed = keep.iter().try_for_each(|(_, fd)| fcntl_setfd(fd, FdFlags::empty()));
    let error = match passed {
        Ok(()) => {
            // SAFETY: both arrays end with a null pointer and point to strings that live across the call.
            unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
            io::Error::last_os_error()
        }
        Err(error) => error.into(),
    };
    for (_, fd) in keep {
        let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
    error
}

/// What the former program of this process has kept for this one, by name, close-on-exec again. `None`
/// where there was no such program, or when it was asked for before.
#[must_use]
pub fn kept() -> Option<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let text = env::var(KEPT).ok()?;
    let mut parts = text.split('/');
    let ours = parts.next().and_then(|pid| pid.parse().ok()) == Some(std::process::id());
    if !ours || TAKEN.swap(true, Ordering::Relaxed) {
        return None;
    }
    let descriptor = |part: &str| {
        let (name, number) = part.split_once('=')?;
        let number: RawFd = number.parse().ok().filter(|number| *number > 2)?;
        // SAFETY: borrowed for one call, which says whether there is such a descriptor.
        fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).ok()?;
        // SAFETY: it is open, and it was left to this program alone: the variable names this process, and
        // is heeded once.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
        Some((name.to_string(), fd))
    };
    Some(parts.filter_map(descriptor).collect())
}

//! The successor of a supervisor that is probed: it passes on what is said to it, and says what it is told.
//!
//! The supervisor starts it as it would start any successor. The probe, which started the supervisor,
//! is at the socket that the environment names.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use handoff_unix::inherit::Inherited;

/// The variable that names the probe's socket.
pub const PUPPET: &str = "CONFORMANCE_PUPPET";

/// What a puppet exits with when the probe lets go of it (R15).
const STOOD_DOWN: u8 = 75;

/// Runs it, until the probe lets go of it.
///
/// # Errors
///
/// It was not started by a supervisor that a probe has started.
pub fn run() -> io::Result<ExitCode> {
    let Some(socket) = std::env::var_os(PUPPET) else {
        return Err(io::Error::other(format!(
            "{PUPPET} is not set: this is for the supervisor that `probe supervisor` starts"
        )));
    };
    let mut inherited = Inherited::from_env().map_err(io::Error::other)?;
    let Some(control) = inherited.take_control() else {
        return Err(io::Error::other("no supervisor has started this as a successor"));
    };
    control.set_nonblocking(false)?;
    let probe = UnixStream::connect(socket)?;
    let (mut heard, mut told) = (control.try_clone()?, probe.try_clone()?);
    std::thread::spawn(move || {
        // The end of one is passed on as the end of the other, but the process stays: after Ready
        // it is no sign of death.
        let _ = io::copy(&mut heard, &mut told);
        let _ = told.shutdown(Shutdown::Write);
    });
    let (mut probe, mut control) = (probe, control);
    let mut length = [0; 4];
    while probe.read_exact(&mut length).is_ok() {
        let mut bytes = Vec::new();
        let wanted = u64::from(u32::from_le_bytes(length));
        Read::by_ref(&mut probe).take(wanted).read_to_end(&mut bytes)?;
        let _ = control.write_all(&bytes);
    }
    Ok(ExitCode::from(STOOD_DOWN))
}

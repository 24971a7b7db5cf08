//! Asking who the incumbent is (C6).

use std::io;
use std::time::{Duration, Instant};

use handoff_core::daemon::Probed;
use handoff_core::probe::Probe;
use handoff_core::{Credentials, HandoffId};
use rustix::event::PollFlags;

use crate::control::ControlPath;
use crate::stream::ControlStream;

/// How long a probe may take (C6).
pub const PROBE: Duration = Duration::from_secs(1);

/// The incumbent, as a probe found it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Who the kernel says it is.
    pub cred: Credentials,
    /// What it calls its build.
    pub build_id: Vec<u8>,
}

/// Which users may answer, or be answered (R12): this process's own, root, and those listed.
#[derive(Clone, Debug, Default)]
pub struct Users(pub Vec<u32>);

impl Users {
    /// Whether this one may.
    #[must_use]
    pub fn allow(&self, uid: u32) -> bool {
        uid == 0 || uid == rustix::process::geteuid().as_raw() || self.0.contains(&uid)
    }
}

/// Connects, reads Hello, answers HelloAck and closes, within [`PROBE`].
///
/// # Errors
///
/// Nobody listens, nobody answered in time, or what answered is no incumbent, or not of `users`.
pub fn probe(control: &ControlPath, users: &Users) -> io::Result<Found> {
    let limit = Instant::now() + PROBE;
    let mut stream = ControlStream::connected(control.connect(PROBE)?)?;
    let mut cred = stream.introduction().ok_or(io::ErrorKind::PermissionDenied)?;
    if !users.allow(cred.uid) {
        let text = format!("uid {} answers there, which is not allowed", cred.uid);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let mut probe = Probe::new();
    let mut buffer = [0; 4096];
    loop {
        let left = limit.saturating_duration_since(Instant::now());
        // At the end of its time it looks once more: what has arrived by then counts.
        if !crate::poll::ready(&stream, PollFlags::IN, Some(left))? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not say Hello within 1 s"));
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                let answer = probe
                    .received(&buffer[..count], HandoffId::new())
                    .map_err(|violation| io::Error::new(io::ErrorKind::InvalidData, violation))?;
                if let Some(answer) = answer {
                    let _ = stream.write(&answer.ack);
                    // A peer in another pid namespace has no pid here but the one it says.
                    if cred.pid == 0 {
                        cred.pid = answer.pid;
                    }
                    return Ok(Found { cred, build_id: answer.build_id });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// What a probe of `control` found, for the machines. Why nobody answered goes to the debug log.
pub(crate) fn probed(control: &ControlPath, users: &Users) -> Probed {
    match probe(control, users) {
        Ok(found) => Probed::Answered { pid: found.cred.pid },
        Err(error) => {
            tracing::debug!(path = %control.as_path().display(), %error, "probe");
            Probed::Silent
        }
    }
}

use core::time::Duration;

use crate::{Credentials, Violation};

/// The rhythm of heartbeats on a connection (T1, T2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pulse {
    /// How often a heartbeat is sent, from HelloAck on: 1 s.
    pub every: Duration,
    /// How long a peer that heartbeats may be silent before it counts as dead: 5 s.
    pub silence: Duration,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { every: Duration::from_secs(1), silence: Duration::from_secs(5) }
    }
}

/// Whether a peer of these credentials may speak to a process of uid `own` (R12).
pub(crate) fn check_user(cred: Credentials, own: u32, allowed: &[u32]) -> Result<(), Violation> {
    let uid = cred.uid;
    if uid == own || uid == 0 || allowed.contains(&uid) {
        Ok(())
    } else {
        Err(Violation::WrongUser { uid })
    }
}

//! Daemons on the bench: their inputs and outputs, and benches that stand in a given state.

use super::*;
use handoff_core::daemon::{
    Command, Config, ConnId, Daemon, DrainReport, Effect, Ended, Event, Hook, LockFailure, Off,
    OsEffect, Outcome, Output, Probed, Readiness, SealFailure, SealReport, Signal,
};
use handoff_core::incumbent::Incumbent;

/// The supervisor's connection to the incumbent, and another one.
pub(crate) const S: ConnId = ConnId(1);
pub(crate) const T: ConnId = ConnId(2);

/// What the supervisor of these tests asks for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const GRACE: Duration = Duration::from_secs(20);

// Outputs.

pub(crate) fn os(effect: OsEffect) -> Output {
    Output::Do(Effect::Os(effect))
}

pub(crate) fn hook(hook: Hook) -> Output {
    Output::Do(Effect::Hook(hook))
}

pub(crate) fn take_lock() -> Output {
    os(OsEffect::TakeLock)
}

pub(crate) fn release_lock() -> Output {
    os(OsEffect::ReleaseLock)
}

pub(crate) fn claim_path() -> Output {
    os(OsEffect::ClaimPath)
}

pub(crate) fn stage_path() -> Output {
    os(OsEffect::StagePath)
}

pub(crate) fn probe() -> Output {
    os(OsEffect::Probe)
}

pub(crate) fn signal(signal: Signal) -> Output {
    os(OsEffect::SignalSuccessor(signal))
}

pub(crate) fn drain(grace: Duration) -> Output {
    hook(Hook::Drain { grace })
}

pub(crate) fn off(why: Off) -> Output {
    event(Event::HandoffOff { id: ID, why })
}

pub(crate) fn ended(ended: Ended) -> Output {
    event(Event::Ended(ended))
}

pub(crate) fn hook_failed(hook: &'static str, error: &str) -> Output {
    let error = error.into();
    event(Event::HookFailed { hook, error })
}

pub(crate) fn refused(conn: ConnId, violation: Violation, state: &'static str) -> Output {
    event(Event::PeerRefused { conn, violation, state })
}

pub(crate) fn unexpected(message: &'static str, state: &'static str) -> Violation {
    Violation::Unexpected { message, state }
}

pub(crate) fn silent(awaited: &'static str) -> Violation {
    Violation::Silent { awaited }
}

// Completions.

pub(crate) fn drain_ok() -> Outcome {
    Outcome::Drained(Ok(DrainReport { open_conns_remaining: 3, accept_closed: true }))
}

pub(crate) fn drain_err() -> Outcome {
    Outcome::Drained(Err("stuck writes".into()))
}

pub(crate) fn sealed(revisions: &[u64]) -> Outcome {
    Outcome::Sealed(Ok(SealReport { revisions: revisions.to_vec(), fingerprint: [9; 32] }))
}

pub(crate) fn seal_err() -> Outcome {
    Outcome::Sealed(Err(SealFailure { error: "disk full".into(), partial_state: "1 of 2".into() }))
}

pub(crate) fn locked() -> Outcome {
    Outcome::Lock(Ok(()))
}

pub(crate) fn held() -> LockFailure {
    LockFailure::Held { holder: Some(N_PID) }
}

pub(crate) fn lock_held() -> Outcome {
    Outcome::Lock(Err(held()))
}

pub(crate) fn released() -> Outcome {
    Outcome::Released(Ok(()))
}

pub(crate) fn claimed() -> Outcome {
    Outcome::Claimed(Ok(()))
}

pub(crate) fn staged() -> Outcome {
    Outcome::Staged(Ok(()))
}

pub(crate) fn resumed() -> Outcome {
    Outcome::Resumed(Ok(()))
}

pub(crate) fn answered(pid: u32) -> Outcome {
    Outcome::Probed(Probed::Answered { pid })
}

pub(crate) fn nobody() -> Outcome {
    Outcome::Probed(Probed::Silent)
}

pub(crate) fn readiness() -> Readiness {
    Readiness { listening_on: vec!["[::1]:80".into()], healthz_ok: true, revisions: vec![4, 9] }
}

pub(crate) fn data_open() -> Outcome {
    Outcome::Opened(Ok(readiness()))
}

// The incumbent.

pub(crate) type TestIncumbent = Bench<Incumbent>;

pub(crate) fn hello_o() -> Message {
    hello_of(Side::Incumbent, O_PID, Capabilities::OURS)
}

impl TestIncumbent {
    /// It serves and has no connection.
    pub(crate) fn serving() -> Self {
        Self::new(Incumbent::new(Config::new(O_PID, UID)))
    }

    pub(crate) fn opens(&mut self, conn: ConnId) {
        self.opens_as(conn, cred(S_PID));
    }

    /// It has greeted `conn` and read HelloAck.
    pub(crate) fn connects(&mut self, conn: ConnId) {
        self.opens(conn);
        self.expect([send(conn, hello_o())]);
        self.hears(conn, ack());
        self.quiet();
    }

    /// Prepare is read, the drain hook runs.
    pub(crate) fn draining() -> Self {
        let mut o = Self::serving();
        o.prepares();
        o
    }

    /// From serving to draining.
    pub(crate) fn prepares(&mut self) {
        self.connects(S);
        self.hears(S, prepare(DEADLINE, GRACE));
        self.expect([
            event(Event::HandoffBegun { id: ID, successor: N_PID }),
            os(OsEffect::WatchSuccessor { pid: N_PID }),
            drain(GRACE),
        ]);
        self.done(Outcome::Watched(Ok(())));
        self.quiet();
    }

    /// Drained is said.
    pub(crate) fn drained() -> Self {
        let mut o = Self::draining();
        o.done(drain_ok());
        o.expect([send(S, drained())]);
        o
    }

    /// SealRequest is read, the seal hook runs.
    pub(crate) fn sealing() -> Self {
        let mut o = Self::drained();
        o.hears(S, seal_request());
        o.expect([hook(Hook::Seal)]);
        o
    }

    /// The data is sealed, the lock is being released.
    pub(crate) fn releasing() -> Self {
        let mut o = Self::sealing();
        o.done(sealed(&[4, 9]));
        o.expect([release_lock()]);
        o
    }

    /// SealComplete is said.
    pub(crate) fn sealed() -> Self {
        let mut o = Self::releasing();
        o.done(released());
        o.expect([event(Event::Sealed { id: ID }), send(S, seal_complete(&[4, 9]))]);
        o
    }

    /// The supervisor is gone, and the lock is being tried.
    pub(crate) fn abandoned() -> Self {
        let mut o = Self::sealed();
        o.loses(S);
        o.expect([off(Off::SupervisorGone), take_lock()]);
        o
    }

    /// An Abort was read, and the lock is being tried.
    pub(crate) fn aborted() -> Self {
        let mut o = Self::sealed();
        o.hears(S, abort());
        o.expect([off(Off::Aborted), take_lock()]);
        o
    }

    /// The lock is held again and the resume hook runs.
    pub(crate) fn resuming() -> Self {
        let mut o = Self::aborted();
        o.done(locked());
        o.expect([hook(Hook::Resume), claim_path()]);
        o
    }

    /// From the resume hook to serving.
    #[track_caller]
    pub(crate) fn resumes(&mut self) {
        self.done(claimed());
        self.quiet();
        self.done(resumed());
        assert_eq!(self.machine.state_name(), "serving");
    }

    /// It shows that it serves: a new connection is greeted, and a handoff starts.
    #[track_caller]
    pub(crate) fn proves_that_it_serves(&mut self) {
        let conn = ConnId(77);
        self.opens(conn);
        self.expect([send(conn, hello_o())]);
        self.hears(conn, ack_of(OTHER));
        self.hears(conn, prepare_of(OTHER, DEADLINE, GRACE));
        self.expect([
            event(Event::HandoffBegun { id: OTHER, successor: N_PID }),
            os(OsEffect::WatchSuccessor { pid: N_PID }),
            drain(GRACE),
        ]);
    }
}

// The successor.

pub(crate) type TestDaemon = Bench<Daemon>;

/// The connection that a successor inherits.
pub(crate) const UP: ConnId = ConnId::SUPERVISOR;

pub(crate) fn hello_n() -> Message {
    hello_of(Side::Successor, N_PID, Capabilities::OURS)
}

impl TestDaemon {
    /// A process that nobody came before.
    pub(crate) fn cold() -> Self {
        Self::new(Daemon::cold(Config::new(N_PID, UID)))
    }

    /// A successor that warms up and says Hello when it has.
    pub(crate) fn warming() -> Self {
        let mut n = Self::new(Daemon::successor(Config::new(N_PID, UID), true));
        n.opens();
        n.quiet();
        n
    }

    pub(crate) fn opens(&mut self) {
        self.opens_as(UP, cred(S_PID));
    }

    /// Hello is said.
    pub(crate) fn greeted() -> Self {
        let mut n = Self::warming();
        n.asks(Command::Begin);
        n.expect([send(UP, hello_n())]);
        n
    }

    /// HelloAck is read.
    pub(crate) fn acked() -> Self {
        let mut n = Self::greeted();
        n.hears(UP, ack());
        n.quiet();
        n
    }

    /// Begin is read, the lock is being tried.
    pub(crate) fn locking() -> Self {
        let mut n = Self::acked();
        n.hears(UP, begin());
        n.expect([take_lock()]);
        n
    }

    /// The lock is held, the data is being opened.
    pub(crate) fn opening() -> Self {
        let mut n = Self::locking();
        n.done(locked());
        n.expect([hook(Hook::Open), stage_path()]);
        n
    }

    /// Ready is said.
    pub(crate) fn ready() -> Self {
        let mut n = Self::opening();
        n.done(staged());
        n.quiet();
        n.done(data_open());
        n.expect([send(UP, ready(true, &[4, 9]))]);
        n
    }

    /// The control path is being claimed.
    pub(crate) fn claiming() -> Self {
        let mut n = Self::ready();
        n.hears(UP, commit());
        n.expect([close(UP), claim_path()]);
        n
    }

    /// From claiming to the incumbent.
    #[track_caller]
    pub(crate) fn becomes_the_incumbent(&mut self) {
        assert!(!self.machine.answers(), "only then does it answer");
        self.done(claimed());
        self.expect([event(Event::Incumbent)]);
        self.becomes_visible();
    }

    /// It answers on the control path, as the incumbent.
    #[track_caller]
    pub(crate) fn becomes_visible(&mut self) {
        assert_eq!(self.machine.state_name(), "serving");
        assert!(self.machine.answers());
        let hello = hello_of(Side::Incumbent, N_PID, Capabilities::OURS);
        self.opens_as(S, cred(S_PID));
        self.expect([send(S, hello)]);
    }
}

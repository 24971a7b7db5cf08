//! A supervisor, as it meets an incumbent and starts a successor: the probe is the one, and a
//! [`puppet`](super::puppet) of the probe the other.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use handoff_core::{
    Capabilities, HandoffId, Message, PROTO_MAX, PROTO_MIN, ProtoVersion, Side, short_name,
};
use handoff_unix::control::{ControlPath, ControlPathError, ControlSocket};
use handoff_unix::spawn::{Launch, SpawnRole};

use super::conn::{Conn, Next};
use super::process::{Process, quiet};
use super::puppet::PUPPET;
use super::report::{Case, Check, Log, Report, Seen, Stop, fail, run, seconds, skip};

/// How long what must not be said is waited for.
const WATCHED: Duration = Duration::from_millis(700);

/// How long a turn waits on each connection.
const TURN: Duration = Duration::from_millis(5);

/// A command that hands off, to be probed: run once for each case.
#[derive(Debug)]
pub struct Supervisor {
    launch: Launch,
    socket: ControlPath,
    patience: Duration,
}

impl Supervisor {
    /// The command, and the control path at which it finds the incumbent, which is the probe. What it
    /// prints is let go unless `output`.
    ///
    /// # Errors
    ///
    /// The path cannot be one of a socket.
    pub fn new(
        socket: impl Into<PathBuf>,
        launch: Launch,
        output: bool,
    ) -> Result<Self, ControlPathError> {
        Ok(Self {
            launch: quiet(launch, output),
            socket: ControlPath::new(socket.into())?,
            patience: Duration::from_secs(10),
        })
    }

    /// How long it may take for what the protocol sets no bound to: to start, to end a successor.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// What is probed, for the heading.
    #[must_use]
    pub fn target(&self) -> String {
        self.launch.program.display().to_string()
    }

    /// Runs all cases. `on` is told of each as it ends.
    pub fn probe(&self, mut on: impl FnMut(&Case)) -> Report {
        let before = |probe: &Self| {
            let users = handoff_unix::probe::Users::default();
            let found = handoff_unix::probe::probe(&probe.socket, &users).ok()?;
            let pid = found.cred.pid;
            Some(format!("process {pid} serves at the control path; the probe must be alone there"))
        };
        let report = run("supervisor", self.target(), CHECKS.iter(), self, before, &mut on);
        super::tidy(&self.socket);
        report
    }

    fn start(&self, log: &Log, capabilities: Capabilities) -> Result<Stage, Stop> {
        let own = self.socket.stage().and_then(|socket| {
            socket.publish()?;
            Ok(socket)
        });
        let own = own.map_err(|error| Stop::Skipped(error.to_string()))?;
        let dir = tempfile::Builder::new().prefix("handoff-probe-").tempdir()?;
        let path = dir.path().join("puppet.sock");
        let puppets = UnixListener::bind(&path)?;
        puppets.set_nonblocking(true)?;
        let launch = self.launch.clone().env(PUPPET, path);
        let process = Process::start(&launch, &[], SpawnRole::Cold, log)?;
        Ok(Stage {
            o: Vec::new(),
            n: None,
            ids: Vec::new(),
            session: None,
            capabilities,
            holds_hello: false,
            puppet: 0,
            beaten: Instant::now(),
            connections: 0,
            own,
            puppets,
            log: log.clone(),
            patience: self.patience,
            process,
            _dir: dir,
        })
    }

    fn start_ours(&self, log: &Log) -> Result<Stage, Stop> {
        self.start(log, Capabilities::OURS)
    }
}

/// Who was spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    O,
    N,
}

/// The incumbent and the successor of one case, both the probe's.
struct Stage {
    /// The incumbent's connections: probes (C6), and the one that hands off.
    o: Vec<(usize, Conn)>,
    n: Option<Conn>,
    /// The ids heard in HelloAck, and by whom.
    ids: Vec<(Who, usize, ProtoVersion, HandoffId)>,
    /// The connection on which Prepare came.
    session: Option<usize>,
    capabilities: Capabilities,
    /// The successor does not say Hello by itself.
    holds_hello: bool,
    /// The successor's pid.
    puppet: u32,
    beaten: Instant,
    connections: usize,
    own: ControlSocket,
    puppets: UnixListener,
    log: Log,
    patience: Duration,
    process: Process,
    _dir: tempfile::TempDir,
}

impl Stage {
    fn hello(&self, role: Side, pid: u32) -> Message {
        Message::Hello {
            role,
            pid,
            build_id: b"probe".to_vec(),
            proto_min: PROTO_MIN,
            proto_max: PROTO_MAX,
            capabilities: self.capabilities,
        }
    }

    fn n_says_hello(&mut self) {
        let hello = self.hello(Side::Successor, self.puppet);
        if let Some(n) = &mut self.n {
            n.send(&hello);
        }
    }

    /// Takes who has come, beats, and gives what was said next.
    fn turn(&mut self) -> Result<Option<(Who, Message)>, Stop> {
        while let Some(stream) = self.own.accept()? {
            self.connections += 1;
            let name = format!("O{}", self.connections);
            let mut conn = Conn::connected(&name, stream, &self.log)?;
            conn.send(&self.hello(Side::Incumbent, std::process::id()));
            self.o.push((self.connections, conn));
        }
        if self.n.is_none()
            && let Ok((stream, _)) = self.puppets.accept()
        {
            let conn = Conn::to_puppet("N", stream, &self.log)?;
            self.puppet = conn.cred().map_or(0, |cred| cred.pid);
            self.log.note(format_args!("-- the successor is pid {}", self.puppet));
            self.n = Some(conn);
            if !self.holds_hello {
                self.n_says_hello();
            }
        }
        if self.beaten.elapsed() >= Duration::from_secs(1)
            && self.capabilities.has(Capabilities::STEADY_HEARTBEAT)
        {
            self.beaten = Instant::now();
            let beat = Message::Heartbeat { ts_ms: 1 };
            for (number, conn) in &mut self.o {
                if self.ids.iter().any(|(who, of, ..)| *who == Who::O && of == number) {
                    conn.send(&beat);
                }
            }
            if let Some(n) = &mut self.n
                && self.ids.iter().any(|(who, ..)| *who == Who::N)
            {
                n.send(&beat);
            }
        }
        for at in 0..self.o.len() {
            let (number, conn) = &mut self.o[at];
            let number = *number;
            match conn.next(TURN)? {
                Next::Silent => {}
                Next::Closed => {
                    self.o.remove(at);
                    return Ok(None);
                }
                Next::Frame(frame) => {
                    match &frame.message {
                        Message::HelloAck { proto_version_chosen, handoff_id } => {
                            conn.handshake_done(*proto_version_chosen);
                            let chosen = *proto_version_chosen;
                            self.ids.push((Who::O, number, chosen, *handoff_id));
                        }
                        // T3.
                        Message::Heartbeat { ts_ms } => {
                            conn.send(&Message::Heartbeat { ts_ms: *ts_ms });
                        }
                        Message::PrepareHandoff { .. } => self.session = Some(number),
                        _ => {}
                    }
                    return Ok(Some((Who::O, frame.message)));
                }
            }
        }
        if let Some(n) = &mut self.n {
            match n.next(TURN) {
                Ok(Next::Frame(frame)) => {
                    if let Message::HelloAck { proto_version_chosen: chosen, handoff_id } =
                        frame.message
                    {
                        n.handshake_done(chosen);
                        self.ids.push((Who::N, 0, chosen, handoff_id));
                    }
                    return Ok(Some((Who::N, frame.message)));
                }
                // Whoever has ended it says so on the other connection, or by the end of this one.
                Ok(Next::Silent | Next::Closed) => {}
                Err(stop) => return Err(stop),
            }
        } else if self.o.is_empty() {
            std::thread::sleep(TURN);
        }
        Ok(None)
    }

    /// The first that `wanted` takes; none may be said that `forbidden` takes.
    fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(Who, &Message) -> Option<T>,
        forbidden: impl Fn(Who, &Message) -> bool,
    ) -> Result<T, Stop> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some((who, message)) = self.turn()? {
                if forbidden(who, &message) {
                    return fail(format!("it said {} to {who:?}", short_name(&message)));
                }
                if let Some(found) = wanted(who, &message) {
                    return Ok(found);
                }
            }
        }
        fail(format!("no {what} within {}", seconds(limit)))
    }

    /// The first message of this name to this one.
    fn told(&mut self, to: Who, name: &str) -> Result<Message, Stop> {
        let wanted = |who: Who, message: &Message| {
            (who == to && short_name(message) == name).then(|| message.clone())
        };
        self.wait(&format!("{name} to {to:?}"), self.patience, wanted, |_, _| false)
    }

    /// That nobody is told this for a while.
    fn not_told(&mut self, limit: Duration, names: &[&str]) -> Result<(), Stop> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some((who, message)) = self.turn()?
                && names.contains(&short_name(&message))
            {
                return fail(format!("it said {} to {who:?}", short_name(&message)));
            }
        }
        Ok(())
    }

    fn say_as_o(&mut self, message: &Message) {
        let session = self.session;
        if let Some((_, conn)) = self.o.iter_mut().find(|(number, _)| Some(*number) == session) {
            conn.send(message);
        }
    }

    fn say_as_n(&mut self, message: &Message) {
        if let Some(n) = &mut self.n {
            n.send(message);
        }
    }

    /// Up to Prepare; its id.
    fn prepared(&mut self) -> Result<HandoffId, Stop> {
        match self.told(Who::O, "PrepareHandoff")? {
            Message::PrepareHandoff { handoff_id, .. } => Ok(handoff_id),
            _ => fail("no Prepare"),
        }
    }

    fn drained(&mut self) {
        self.say_as_o(&Message::Drained { open_conns_remaining: 0, accept_closed: true });
    }

    fn sealed(&mut self, handoff_id: HandoffId, revisions: &[u64]) {
        self.say_as_o(&Message::SealComplete {
            handoff_id,
            last_revision_per_shard: revisions.to_vec(),
            data_dir_fingerprint: [0; 32],
        });
    }

    fn ready(&mut self, handoff_id: HandoffId, healthz_ok: bool, revisions: &[u64]) {
        self.say_as_n(&Message::Ready {
            handoff_id,
            listening_on: vec!["probe".into()],
            healthz_ok,
            advertised_revision_per_shard: revisions.to_vec(),
        });
    }

    /// Up to Begin.
    fn begun(&mut self) -> Result<HandoffId, Stop> {
        let id = self.prepared()?;
        self.drained();
        self.told(Who::O, "SealRequest")?;
        self.sealed(id, &[7]);
        self.told(Who::N, "Begin")?;
        Ok(id)
    }

    fn puppet_is_gone(&self) -> bool {
        std::fs::metadata(format!("/proc/{}", self.puppet)).is_err()
    }

    /// Waits for the one ResumeAfterAbort, with nothing before it that must not be.
    fn resumed(&mut self, forbidden: &[&str]) -> Seen {
        let start = Instant::now();
        let limit = self.patience + super::slack(self.patience);
        self.wait(
            "ResumeAfterAbort",
            limit,
            |who, message| {
                (who == Who::O && matches!(message, Message::ResumeAfterAbort { .. })).then_some(())
            },
            |_, message| forbidden.contains(&short_name(message)),
        )?;
        if !self.puppet_is_gone() {
            return fail(format!("ResumeAfterAbort came while process {} was there", self.puppet));
        }
        let took = start.elapsed();
        self.not_told(WATCHED, &["ResumeAfterAbort", "Commit"])?;
        Ok(format!("one ResumeAfterAbort after {}, the successor was gone", seconds(took)))
    }
}

fn one_id(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    let (prepare, successor) = match stage.told(Who::O, "PrepareHandoff")? {
        Message::PrepareHandoff { handoff_id, successor_pid, .. } => (handoff_id, successor_pid),
        _ => return fail("no Prepare"),
    };
    // What is said to the successor comes here by way of the puppet.
    let start = Instant::now();
    let heard = |stage: &Stage| stage.ids.iter().any(|(who, ..)| *who == Who::N);
    while !heard(&stage) && start.elapsed() < probe.patience {
        stage.turn()?;
    }
    let session = stage.session;
    let of = |wanted: Who| {
        stage
            .ids
            .iter()
            .rev()
            .find(|(who, number, ..)| {
                *who == wanted && (wanted == Who::N || Some(*number) == session)
            })
            .map(|(.., chosen, id)| (*chosen, *id))
    };
    let (Some((o_chosen, o)), Some((n_chosen, n))) = (of(Who::O), of(Who::N)) else {
        return fail("PrepareHandoff without HelloAck to both");
    };
    if o != n || o != prepare {
        return fail(format!("ids {o} to O, {n} to N, {prepare} in Prepare"));
    }
    if o.0.get_version_num() != 4 {
        return fail(format!("{o} is no UUID of version 4"));
    }
    if [o_chosen, n_chosen] != [PROTO_MAX; 2] {
        return fail(format!("versions {o_chosen} and {n_chosen} were chosen, of 1 to 1"));
    }
    if successor != stage.puppet {
        return fail(format!("Prepare names pid {successor}, the successor is {}", stage.puppet));
    }
    Ok(format!("id {o} to both, and Prepare for pid {successor}"))
}

fn waits_for_hello(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    stage.holds_hello = true;
    let start = Instant::now();
    while stage.n.is_none() {
        if start.elapsed() > probe.patience {
            return fail("it started no successor");
        }
        stage.turn()?;
    }
    stage.not_told(WATCHED, &["PrepareHandoff"])?;
    stage.n_says_hello();
    stage.prepared()?;
    Ok("Prepare came behind the successor's Hello".into())
}

fn in_order(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    let id = stage.prepared()?;
    stage.not_told(WATCHED, &["SealRequest", "Begin", "Commit"])?;
    stage.drained();
    stage.told(Who::O, "SealRequest")?;
    stage.not_told(WATCHED, &["Begin", "Commit"])?;
    stage.sealed(id, &[7]);
    stage.told(Who::N, "Begin")?;
    stage.not_told(WATCHED, &["Commit"])?;
    stage.ready(id, true, &[7]);
    let commit = Message::Commit { handoff_id: id };
    stage.wait(
        "Commit to the incumbent",
        probe.patience,
        |who, message| (who == Who::O && *message == commit).then_some(()),
        |_, message| matches!(message, Message::Abort { .. } | Message::ResumeAfterAbort { .. }),
    )?;
    Ok("SealRequest, Begin and Commit, each after what it waits for".into())
}

/// What is said to the successor comes by way of the puppet, so who was told first is not to be seen.
fn tells_successor(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    let id = stage.begun()?;
    stage.ready(id, true, &[7]);
    let mut told = [false; 2];
    let both = stage.wait(
        "Commit to both",
        probe.patience.min(Duration::from_secs(5)),
        |who, message| {
            told[usize::from(who == Who::N)] |= matches!(message, Message::Commit { .. });
            (told == [true; 2]).then_some(())
        },
        |_, message| matches!(message, Message::Abort { .. } | Message::ResumeAfterAbort { .. }),
    );
    match both {
        Err(Stop::Failed(_)) if told == [true, false] => {
            skip("it told the incumbent only, so it does not know X1")
        }
        Err(stop) => Err(stop),
        Ok(()) => Ok("Commit to both".into()),
    }
}

fn unhealthy(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    let id = stage.begun()?;
    stage.ready(id, false, &[7]);
    stage.resumed(&["Commit"])
}

fn regressed(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    let id = stage.begun()?;
    stage.ready(id, true, &[6]);
    stage.resumed(&["Commit"])
}

fn mismatched(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    let id = stage.begun()?;
    stage.ready(id, true, &[7, 7]);
    stage.resumed(&["Commit"])
}

fn successor_dies(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    stage.begun()?;
    // It ends when it is let go of.
    if let Some(n) = stage.n.take() {
        n.close();
    }
    stage.resumed(&["Commit"])
}

fn dies_before_hello(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    stage.holds_hello = true;
    let start = Instant::now();
    while stage.n.is_none() {
        if start.elapsed() > probe.patience {
            return fail("it started no successor");
        }
        stage.turn()?;
    }
    if let Some(n) = stage.n.take() {
        n.close();
    }
    stage.not_told(Duration::from_secs(2), &["PrepareHandoff", "SealRequest"])?;
    Ok("no Prepare".into())
}

fn seal_fails(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    let handoff_id = stage.prepared()?;
    stage.drained();
    stage.told(Who::O, "SealRequest")?;
    let (error, partial_state) = ("the probe says so".into(), String::new());
    stage.say_as_o(&Message::SealFailed { handoff_id, error, partial_state });
    stage.not_told(Duration::from_secs(3), &["Begin", "Commit", "ResumeAfterAbort"])?;
    Ok("neither Begin nor ResumeAfterAbort".into())
}

fn legacy(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start(log, Capabilities { reserved: 0 })?;
    stage.begun()?;
    if let Some(n) = stage.n.take() {
        n.close();
    }
    let start = Instant::now();
    stage.wait(
        "ResumeAfterAbort",
        probe.patience + super::slack(probe.patience),
        |who, message| {
            (who == Who::O && matches!(message, Message::ResumeAfterAbort { .. })).then_some(())
        },
        |who, message| {
            matches!(message, Message::Commit { .. })
                || (who == Who::O && matches!(message, Message::Abort { .. }))
        },
    )?;
    let took = start.elapsed();
    let start = Instant::now();
    while start.elapsed() < WATCHED {
        if let Some((Who::O, message)) = stage.turn()?
            && matches!(message, Message::Abort { .. } | Message::ResumeAfterAbort { .. })
        {
            return fail(format!("{} behind ResumeAfterAbort", short_name(&message)));
        }
    }
    Ok(format!("one ResumeAfterAbort after {}, no Abort", seconds(took)))
}

fn beats(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    stage.prepared()?;
    let (start, mut heard) = (Instant::now(), [0_usize; 2]);
    stage.wait(
        "3 Heartbeats to each",
        Duration::from_secs(3) + super::slack(probe.patience),
        |who, message| {
            // The time stamp of the probe's own would be an answer.
            if matches!(message, Message::Heartbeat { .. }) {
                heard[usize::from(who == Who::N)] += 1;
            }
            heard.iter().all(|count| *count >= 3).then_some(())
        },
        |_, message| matches!(message, Message::Heartbeat { ts_ms: 1 }),
    )?;
    Ok(format!("3 Heartbeats to each in {}, none of them an answer", seconds(start.elapsed())))
}

fn incumbent_dies(probe: &Supervisor, log: &Log) -> Seen {
    let mut stage = probe.start_ours(log)?;
    let id = stage.prepared()?;
    stage.drained();
    stage.told(Who::O, "SealRequest")?;
    // Garbage instead of SealComplete: its connection is to be closed, and nobody to be begun.
    let session = stage.session;
    if let Some((_, conn)) = stage.o.iter_mut().find(|(number, _)| Some(*number) == session) {
        conn.send_bytes(&u32::MAX.to_le_bytes(), "the length 4294967295");
    }
    let start = Instant::now();
    while stage.o.iter().any(|(number, _)| Some(*number) == session) {
        if start.elapsed() > probe.patience {
            return fail("the connection is not closed");
        }
        if let Some((who, message)) = stage.turn()?
            && message.handoff_id() == Some(id)
            && matches!(message, Message::Commit { .. })
        {
            return fail(format!("it said Commit to {who:?}"));
        }
    }
    if !stage.process.child.pidfd.wait(Some(Duration::ZERO))? {
        return Ok(format!("closed after {}; it runs", seconds(start.elapsed())));
    }
    Ok(format!("closed after {}", seconds(start.elapsed())))
}

pub(crate) const CHECKS: &[Check<Supervisor>] = &[
    Check {
        name: "one fresh id for both, and Prepare names the successor",
        clauses: &["C1", "W4"],
        sent: "Hello of an incumbent and of a successor",
        expected: "HelloAck of version 1 with the same UUID of version 4 to both, and in Prepare, \
                   with the successor's pid",
        run: one_id,
    },
    Check {
        name: "the incumbent is left alone until the successor's Hello",
        clauses: &["C3"],
        sent: "Hello of the incumbent, that of the successor a while later",
        expected: "Prepare behind it",
        run: waits_for_hello,
    },
    Check {
        name: "a successor that dies before Hello costs nothing",
        clauses: &["C3", "R4"],
        sent: "Hello of the incumbent; the successor ends without one",
        expected: "no Prepare",
        run: dies_before_hello,
    },
    Check {
        name: "each step waits for the one before",
        clauses: &["C2"],
        sent: "Drained, SealComplete and Ready, each a while after what asks for it",
        expected: "SealRequest, Begin and Commit, each behind them",
        run: in_order,
    },
    Check {
        name: "a successor that wants to be told of the commit is told",
        clauses: &["X1"],
        sent: "X1 in the successor's Hello, and Ready in the end",
        expected: "Commit to the successor and to the incumbent",
        run: tells_successor,
    },
    Check {
        name: "it heartbeats to both and answers none",
        clauses: &["T1", "T3"],
        sent: "Heartbeats of both, every second",
        expected: "Heartbeats to both, every second, none with the time stamp it was sent",
        run: beats,
    },
    Check {
        name: "an unhealthy successor is not committed",
        clauses: &["R6"],
        sent: "Ready with healthz_ok false",
        expected: "no Commit, the successor ended, then one ResumeAfterAbort",
        run: unhealthy,
    },
    Check {
        name: "lower revisions are not committed",
        clauses: &["R6"],
        sent: "SealComplete with revision 7, Ready with revision 6",
        expected: "no Commit, the successor ended, then one ResumeAfterAbort",
        run: regressed,
    },
    Check {
        name: "another number of shards is not committed",
        clauses: &["R6"],
        sent: "SealComplete of one shard, Ready of two",
        expected: "no Commit, the successor ended, then one ResumeAfterAbort",
        run: mismatched,
    },
    Check {
        name: "a successor that dies after Begin is rolled back",
        clauses: &["R4", "R14", "C3"],
        sent: "after Begin the end of the successor's process",
        expected: "one ResumeAfterAbort, after the process is reaped",
        run: successor_dies,
    },
    Check {
        name: "after SealFailed it asks for no resume",
        clauses: &["R4", "R7"],
        sent: "SealFailed instead of SealComplete",
        expected: "neither Begin nor ResumeAfterAbort",
        run: seal_fails,
    },
    Check {
        name: "an incumbent without X2 gets one Resume and no Abort",
        clauses: &["R4", "X2"],
        sent: "Hellos without capabilities, after Begin the end of the successor's process",
        expected: "one ResumeAfterAbort to the incumbent, and no Abort",
        run: legacy,
    },
    Check {
        name: "bytes that are no frame close their connection",
        clauses: &["W2", "W7"],
        sent: "the length 4294967295 instead of SealComplete",
        expected: "the connection closed, no Commit",
        run: incumbent_dies,
    },
];

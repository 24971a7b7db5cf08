//! Several connections, and time.

use super::*;

pub(super) fn strangers_wait(probe: &Incumbent, log: &Log) -> Seen {
    let (conn, hello) = probe.greeted("0", log)?;
    conn.close();
    probe.serves(log, Some(hello.pid))?;
    let mut strangers = Vec::new();
    for name in ["1", "2", "3", "4"] {
        strangers.push(probe.connect(name, log)?);
    }
    log.note("4 strangers are connected and say nothing");
    let limit = HELD_UP.min(probe.patience);
    match probe.serves_within(log, Some(hello.pid), limit) {
        Ok(took) => Ok(format!("another connection got its Hello after {}", seconds(took))),
        Err(_) => fail(format!("another connection got no Hello in {}", seconds(limit))),
    }
}

pub(super) fn crowd(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.drained("S", log, LONG)?;
    let mut strangers = Vec::new();
    for number in 0..100 {
        let stream = probe.socket.connect(Duration::from_millis(200));
        let Ok(stream) = stream else { break };
        strangers.push(Conn::connected(&number.to_string(), stream, &Log::new())?);
    }
    log.note(format_args!("{} strangers are connected and say nothing", strangers.len()));
    let exact = session.has_x2();
    session.conn.ask(4711, exact, probe.patience)?;
    session.resume();
    session.conn.ask(4712, exact, probe.patience)?;
    let count = strangers.len();
    drop(strangers);
    session.conn.close();
    probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("with {count} strangers the supervisor was answered, and the daemon serves"))
}

pub(super) fn overdue_ack(probe: &Incumbent, log: &Log) -> Seen {
    let (mut conn, _) = probe.greeted("1", log)?;
    let took = conn.closes(HELLO_ACK + probe.slack(), |_| false)?;
    if took + Duration::from_secs(1) < HELLO_ACK {
        return fail(format!("closed after {} already", seconds(took)));
    }
    Ok(format!("closed after {}", seconds(took)))
}

pub(super) fn dripped_ack(probe: &Incumbent, log: &Log) -> Seen {
    let (mut conn, _) = probe.greeted("1", log)?;
    let ack = Message::HelloAck { proto_version_chosen: PROTO_MAX, handoff_id: HandoffId::new() };
    log.note("1 -> HelloAck, one byte each half second");
    let start = Instant::now();
    for byte in frame(&ack, PROTO_MAX) {
        if start.elapsed() > HELLO_ACK + probe.slack() {
            break;
        }
        match conn.next(Duration::from_millis(500))? {
            Next::Closed => return Ok(format!("closed after {}", seconds(start.elapsed()))),
            Next::Frame(_) | Next::Silent => drop(conn.write(&[byte])),
        }
    }
    fail(format!("the connection is open after {}", seconds(start.elapsed())))
}

pub(super) fn idle(probe: &Incumbent, log: &Log) -> Seen {
    if !probe.slow {
        return skip("it takes half a minute; ask for it with --slow");
    }
    let mut session = probe.acked("1", log)?;
    let took = session.conn.closes(IDLE + probe.slack(), |_| false)?;
    Ok(format!("closed after {}", seconds(took)))
}

pub(super) fn beats(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    if !session.has_x2() {
        return skip("its Hello does not announce steady heartbeats (X2)");
    }
    let start = Instant::now();
    let limit = Duration::from_secs(3) + probe.slack();
    for count in 1..=3 {
        let left = limit.saturating_sub(start.elapsed());
        session.conn.wait(&format!("Heartbeat number {count}"), left, |message| {
            matches!(message, Message::Heartbeat { .. }).then_some(())
        })?;
    }
    let took = start.elapsed();
    if took < Duration::from_secs(2) {
        return fail(format!("3 Heartbeats in {}", seconds(took)));
    }
    Ok(format!("3 Heartbeats in {}", seconds(took)))
}

pub(super) fn answers(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    let exact = session.has_x2();
    for ts_ms in [0, 1, u64::MAX, 1 << 40] {
        session.conn.ask(ts_ms, exact, probe.patience)?;
    }
    let how = if exact { ", each with its own time stamp (X2)" } else { "" };
    Ok(format!("4 answers{how}"))
}

pub(super) fn answers_once(probe: &Incumbent, log: &Log) -> Seen {
    const STAMP: u64 = 0x5eed_5eed;
    let mut session = probe.acked("1", log)?;
    session.conn.send(&Message::Heartbeat { ts_ms: STAMP });
    let first = session.conn.wait("answer to a Heartbeat", probe.patience, |message| {
        (*message == Message::Heartbeat { ts_ms: STAMP }).then_some(())
    });
    if first.is_err() && !session.has_x2() {
        return skip("its answers do not repeat the time stamp, and X2 is not announced");
    }
    first?;
    // Another question and its answer behind it: what was to come has come by then.
    session.conn.send(&Message::Heartbeat { ts_ms: STAMP + 1 });
    let mut again = 0;
    session.conn.wait("answer to a second Heartbeat", probe.patience, |message| match message {
        Message::Heartbeat { ts_ms } if *ts_ms == STAMP => {
            again += 1;
            None
        }
        Message::Heartbeat { ts_ms } if *ts_ms == STAMP + 1 => Some(()),
        _ => None,
    })?;
    if again > 0 {
        return fail(format!("{} answers to one Heartbeat", again + 1));
    }
    Ok("one answer".into())
}

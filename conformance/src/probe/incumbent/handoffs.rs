//! Handoffs that come to nothing, and one that does not.

use super::frames::drip;
use super::*;

pub(super) fn wrong_id(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    let dummy = Dummy::start()?;
    let message = session.prepare_message(HandoffId::new(), dummy.pid(), LONG);
    session.conn.send(&message);
    let seen = session
        .conn
        .closes(closing(probe, true), |message| matches!(message, Message::Drained { .. }));
    drop(session.conn);
    probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("closed after {}; the daemon serves", seconds(seen?)))
}

pub(super) fn busy(probe: &Incumbent, log: &Log) -> Seen {
    let mut first = probe.acked("1", log)?;
    let mut second = match probe.acked("2", log) {
        Ok(second) => second,
        Err(Stop::Failed(why)) => return fail(format!("on a second connection: {why}")),
        Err(skipped) => return Err(skipped),
    };
    first.prepare(LONG)?;
    first.wait_drained(probe.patience)?;
    second.prepare(LONG)?;
    second
        .conn
        .closes(closing(probe, true), |message| matches!(message, Message::Drained { .. }))?;
    let exact = first.has_x2();
    first.conn.ask(1, exact, probe.patience)?;
    first.resume();
    first.conn.ask(2, exact, probe.patience)?;
    drop(first.conn);
    probe.serves(log, Some(first.greeting.pid))?;
    Ok("the second was closed, the first went on".into())
}

pub(super) fn prepared_twice(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.drained("1", log, LONG)?;
    let pid = session.successor.as_ref().map_or(0, Dummy::pid);
    let message = session.prepare_message(session.id, pid, LONG);
    let seen = comes_to_nothing(probe, &mut session.conn, &message, |message| {
        matches!(message, Message::Drained { .. })
    });
    drop(session.conn);
    probe.serves(log, Some(session.greeting.pid))?;
    seen
}

pub(super) fn drain_then_abort(probe: &Incumbent, log: &Log) -> Seen {
    for name in ["1", "2"] {
        let mut session = probe.drained(name, log, LONG)?;
        session.abort();
        if session.has_x2() {
            session.conn.ask(1, true, probe.patience)?;
        }
        drop(session.conn);
        probe.serves(log, Some(session.greeting.pid))?;
    }
    Ok("it serves, after each of two handoffs".into())
}

pub(super) fn drain_then_resume(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.drained("1", log, LONG)?;
    let exact = session.has_x2();
    session.resume();
    session.conn.ask(4711, exact, probe.patience)?;
    // The connection is kept, so this is not what a close would have brought about.
    let took = match probe.serves(log, Some(session.greeting.pid)) {
        Err(_) if !exact => {
            session.conn.close();
            probe.serves(log, Some(session.greeting.pid))?
        }
        other => other?,
    };
    Ok(format!("a Heartbeat was answered, and a probe {} later", seconds(took)))
}

pub(super) fn drain_then_close(probe: &Incumbent, log: &Log) -> Seen {
    let session = probe.drained("1", log, LONG)?;
    session.conn.close();
    let took = probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("it serves after {}{}", seconds(took), probe.lock_is(true)?))
}

pub(super) fn drain_then_deadline(probe: &Incumbent, log: &Log) -> Seen {
    let session = probe.drained("1", log, SHORT)?;
    let took = probe.serves_within(log, Some(session.greeting.pid), SHORT + probe.slack())?;
    Ok(format!("it serves {} after Drained, on a connection that is open", seconds(took)))
}

pub(super) fn seal_then_close(probe: &Incumbent, log: &Log) -> Seen {
    let session = probe.sealed("1", log, LONG)?;
    let free = probe.lock_is(false)?;
    session.conn.close();
    let took = probe.serves(log, Some(session.greeting.pid))?;
    let held = probe.lock_is(true)?;
    Ok(format!("sealed{free}; it serves after {}{held}", seconds(took)))
}

pub(super) fn seal_then_resume(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.sealed("1", log, LONG)?;
    let exact = session.has_x2();
    session.resume();
    session.conn.ask(4711, exact, probe.patience)?;
    let held = if exact { probe.lock_is(true)? } else { "" };
    drop(session.conn);
    probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("the answer to a Heartbeat came{held}; it serves"))
}

pub(super) fn seal_then_abort(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.sealed("1", log, LONG)?;
    session.abort();
    drop(session.conn);
    let took = probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("it serves after {}{}", seconds(took), probe.lock_is(true)?))
}

pub(super) fn seal_then_deadline(probe: &Incumbent, log: &Log) -> Seen {
    let session = probe.sealed("1", log, SHORT)?;
    let took = probe.serves_within(log, Some(session.greeting.pid), SHORT + probe.slack())?;
    let held = probe.lock_is(true)?;
    Ok(format!("it serves {} after SealComplete{held}", seconds(took)))
}

pub(super) fn dripped_deadline(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.sealed("1", log, SHORT)?;
    let long = Message::Abort { handoff_id: session.id, reason: "x".repeat(2000) };
    log.note("1 -> a long frame, one byte each tenth of a second");
    let (start, limit) = (Instant::now(), SHORT + probe.slack());
    let pid = session.greeting.pid;
    for byte in frame(&long, PROTO_MAX) {
        let taken = drip(&mut session.conn, &[byte], Duration::from_millis(100));
        let early = start.elapsed() < SHORT;
        if early && taken {
            continue;
        }
        let look = Duration::from_millis(200);
        if probe.serves_within(log, Some(pid), look).is_ok() {
            let took = seconds(start.elapsed());
            return Ok(format!("it serves {took} after SealComplete, bytes dripping"));
        }
        if start.elapsed() > limit {
            break;
        }
    }
    session.conn.close();
    probe.serves(log, Some(pid))?;
    fail(format!("it did not serve {} after SealComplete", seconds(limit)))
}

pub(super) fn silent_supervisor(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    session.conn.ask(1, session.has_x2(), probe.patience)?;
    session.prepare(LONG)?;
    session.wait_drained(probe.patience)?;
    session.seal(probe.patience)?;
    let took = match probe.serves_within(log, Some(session.greeting.pid), SILENCE + probe.slack()) {
        Ok(took) => took,
        Err(_) => {
            session.conn.close();
            probe.serves(log, Some(session.greeting.pid))?;
            let limit = seconds(SILENCE + probe.slack());
            return fail(format!("it did not serve {limit} after the last byte"));
        }
    };
    Ok(format!("it serves {} after the last byte, long before its deadline", seconds(took)))
}

pub(super) fn sealed_twice(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.sealed("1", log, LONG)?;
    let again = Message::SealRequest { handoff_id: session.id };
    let seen = comes_to_nothing(probe, &mut session.conn, &again, |message| {
        matches!(message, Message::SealComplete { .. } | Message::SealFailed { .. })
    });
    drop(session.conn);
    probe.serves(log, Some(session.greeting.pid))?;
    seen
}

/// Between Prepare and resume nobody is told that this is the incumbent.
pub(super) fn settles_first(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.drained("1", log, LONG)?;
    let mut asking = probe.connect("2", log)?;
    if !matches!(asking.next(Duration::from_secs(1))?, Next::Silent) {
        return fail("Hello, or the end of the connection, while it serves nobody");
    }
    session.resume();
    session.conn.ask(1, session.has_x2(), probe.patience)?;
    if !session.has_x2() {
        // It may serve one connection at a time.
        session.conn.close();
    }
    let hello = asking.hello(Side::Incumbent, probe.patience)?;
    if hello.pid != session.greeting.pid {
        return fail(format!("process {} says Hello", hello.pid));
    }
    drop(asking);
    probe.serves(log, Some(hello.pid))?;
    Ok("no Hello until it was told to resume, then on the same connection".into())
}

pub(super) fn seal_unasked(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    session.conn.send(&Message::SealRequest { handoff_id: session.id });
    let seen = session
        .conn
        .closes(closing(probe, true), |message| matches!(message, Message::SealComplete { .. }));
    drop(session.conn);
    let held = probe.lock_is(true)?;
    probe.serves(log, Some(session.greeting.pid))?;
    Ok(format!("closed after {}; the daemon serves{held}", seconds(seen?)))
}

pub(super) fn commit_unasked(probe: &Incumbent, log: &Log) -> Seen {
    let mut session = probe.acked("1", log)?;
    session.conn.send(&Message::Commit { handoff_id: session.id });
    session.conn.closes(closing(probe, true), |_| false)?;
    probe.serves(log, Some(session.greeting.pid))?;
    let mut session = probe.drained("2", log, LONG)?;
    session.conn.send(&Message::Commit { handoff_id: session.id });
    session.conn.closes(closing(probe, true), |_| false)?;
    probe.serves(log, Some(session.greeting.pid))?;
    Ok("closed, each time; the daemon serves".into())
}

/// Takes the lock as a successor would.
pub(super) fn take(probe: &Incumbent, dir: &Path) -> Result<DataDirLock, Stop> {
    let mut taken = None;
    let mut error = String::new();
    until(probe.patience, || match DataDirLock::try_take(dir) {
        Ok(lock) => {
            taken = Some(lock);
            true
        }
        Err(why) => {
            error = why.to_string();
            false
        }
    });
    taken.ok_or(Stop::Failed(format!("after SealComplete: {error}")))
}

pub(super) fn never_gives_up(probe: &Incumbent, log: &Log) -> Seen {
    let held = Duration::from_secs(4);
    let dir = probe.dir()?;
    let session = probe.sealed("1", log, LONG)?;
    let lock = take(probe, dir)?;
    log.note("-- the probe holds the lock, as a successor would");
    session.conn.close();
    if probe.serves_within(log, None, held).is_ok() {
        return fail("it answered as the incumbent, without the lock");
    }
    lock.release()?;
    log.note("-- the probe has released the lock");
    let took = probe.serves(log, Some(session.greeting.pid))?;
    let now = probe.lock_is(true)?;
    Ok(format!("it serves {} after the lock was free{now}", seconds(took)))
}

pub(super) fn commits(probe: &Incumbent, log: &Log) -> Seen {
    if !probe.commit {
        return skip("it ends the daemon; ask for it with --commit");
    }
    let dir = probe.dir()?;
    let mut session = probe.sealed("1", log, LONG)?;
    let lock = take(probe, dir)?;
    log.note("-- the probe holds the lock, as a successor would");
    session.conn.send(&Message::Commit { handoff_id: session.id });
    let closed = session.conn.closes(probe.patience, |_| false);
    let alive = || {
        // A zombie has exited, whatever its parent does.
        std::fs::read_to_string(format!("/proc/{}/stat", session.greeting.pid))
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
    };
    let gone = until(probe.patience, || !alive());
    lock.release()?;
    closed?;
    if !gone {
        return fail(format!("it is there {} after Commit", seconds(probe.patience)));
    }
    Ok("it closed the connection and exited".into())
}

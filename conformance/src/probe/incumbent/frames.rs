//! What bytes may do to it.

use super::*;

pub(super) fn closed_at_once(probe: &Incumbent, log: &Log) -> Seen {
    let (conn, hello) = probe.greeted("1", log)?;
    conn.close();
    for _ in 0..20 {
        drop(probe.socket.connect(probe.patience)?);
    }
    log.note("20 connections made and closed");
    let took = probe.serves(log, Some(hello.pid))?;
    Ok(format!("it answers in {}", seconds(took)))
}

pub(super) fn too_short(probe: &Incumbent, log: &Log) -> Seen {
    each_closes(
        probe,
        log,
        false,
        &[("a frame of length 0", &0_u32.to_le_bytes()), ("a frame of length 1", &[1, 0, 0, 0, 1])],
    )
}

pub(super) fn too_long_before(probe: &Incumbent, log: &Log) -> Seen {
    each_closes(
        probe,
        log,
        false,
        &[
            ("the length 4097", &(HANDSHAKE_CAP + 1).to_le_bytes()),
            ("the length 4294967295", &u32::MAX.to_le_bytes()),
        ],
    )
}

pub(super) fn too_long_after(probe: &Incumbent, log: &Log) -> Seen {
    let length = (FRAME_CAP + 1).to_le_bytes();
    each_closes(probe, log, true, &[("the length 1048577", &length)])
}

pub(super) fn no_message(probe: &Incumbent, log: &Log) -> Seen {
    each_closes(
        probe,
        log,
        true,
        &[
            ("variant 14, which there is not", &raw(PROTO_MAX, &[14])),
            ("a Heartbeat without its field", &raw(PROTO_MAX, &[13])),
            ("a frame without a message", &raw(PROTO_MAX, &[])),
        ],
    )
}

pub(super) fn leftovers(probe: &Incumbent, log: &Log) -> Seen {
    each_closes(probe, log, true, &[("a Heartbeat and a byte more", &raw(PROTO_MAX, &[13, 7, 0]))])
}

pub(super) fn another_frame_version(probe: &Incumbent, log: &Log) -> Seen {
    let bytes = frame(&HEARTBEAT, PROTO_MAX + 1);
    each_closes(probe, log, true, &[("a Heartbeat in a frame of version 2", &bytes)])
}

pub(super) fn another_chosen_version(probe: &Incumbent, log: &Log) -> Seen {
    let (_conn, hello) = probe.greeted("0", log)?;
    let Some(chosen) = hello.proto.1.checked_add(1) else {
        return skip("it offers every version");
    };
    drop(_conn);
    let ack = Message::HelloAck { proto_version_chosen: chosen, handoff_id: HandoffId::new() };
    let what = "HelloAck of a version that was not offered";
    each_closes(probe, log, false, &[(what, &frame(&ack, chosen))])
}

pub(super) fn wrong_message(probe: &Incumbent, log: &Log) -> Seen {
    let begin = Message::Begin { handoff_id: HandoffId::new() };
    let what = "Begin instead of HelloAck";
    each_closes(probe, log, false, &[(what, &frame(&begin, PROTO_MAX))])?;
    let drained = Message::Drained { open_conns_remaining: 0, accept_closed: true };
    let what = "Drained, which only a daemon says";
    each_closes(probe, log, true, &[(what, &frame(&drained, PROTO_MAX))])
}

pub(super) fn lengths_cost_nothing(probe: &Incumbent, log: &Log) -> Seen {
    const MANY: usize = 16;
    let (conn, hello) = probe.greeted("0", log)?;
    conn.close();
    probe.serves(log, Some(hello.pid))?;
    let before = memory(hello.pid)?;
    let mut held: Vec<Conn> = Vec::new();
    for number in 1..=MANY {
        let mut conn = probe.connect(&number.to_string(), log)?;
        // A daemon that serves one connection at a time does not say more than one Hello.
        if held.is_empty() {
            conn.hello(Side::Incumbent, probe.patience)?;
        } else if conn.hello(Side::Incumbent, HELLO_ACK.min(probe.patience)).is_err() {
            break;
        }
        conn.hello_ack(HandoffId::new());
        let start = [&FRAME_CAP.to_le_bytes()[..], &PROTO_MAX.to_le_bytes(), &[13]].concat();
        conn.send_bytes(&start, "a frame of 1 MiB is announced, its first 3 bytes follow");
        held.push(conn);
    }
    for number in 0..50 {
        let mut conn = probe.connect(&format!("u{number}"), &Log::new())?;
        conn.write(&u32::MAX.to_le_bytes());
    }
    log.note("50 connections announced 4 GiB");
    let count = held.len() as u64;
    if count < 4 {
        drop(held);
        probe.serves(log, Some(hello.pid))?;
        return skip(format!("it answers on {count} at a time, too few to measure"));
    }
    // They have been read once the one behind them is answered.
    probe.serves(log, Some(hello.pid))?;
    let grown = memory(hello.pid)?.saturating_sub(before);
    drop(held);
    probe.serves(log, Some(hello.pid))?;
    let (announced, kib) = (count * u64::from(FRAME_CAP), grown / 1024);
    if grown > announced / 2 {
        return fail(format!("its memory grew by {kib} KiB for {count} announced MiB"));
    }
    Ok(format!("its memory grew by {kib} KiB for {count} announced MiB"))
}

/// Heartbeats whose answers are not read: more than any socket holds.
pub(super) fn unread_answers(probe: &Incumbent, log: &Log) -> Seen {
    const MANY: u64 = 400_000;
    let mut session = probe.acked("1", log)?;
    let pid = session.greeting.pid;
    let before = memory(pid)?;
    let beats: Vec<u8> =
        (1..=MANY).flat_map(|ts_ms| frame(&Message::Heartbeat { ts_ms }, PROTO_MAX)).collect();
    session.conn.send_bytes(&beats, "400,000 Heartbeats, and nothing is read");
    let taken = beats.len() as u64;
    probe.serves(log, Some(pid)).or_else(|stop| {
        // One that serves one connection at a time waits until it is read.
        if session.has_x2() { Err(stop) } else { Ok(Duration::ZERO) }
    })?;
    let grown = memory(pid)?.saturating_sub(before);
    if grown > taken / 2 {
        let (grown, taken) = (grown / 1024, taken / 1024);
        return fail(format!("its memory grew by {grown} KiB for {taken} KiB of heartbeats"));
    }
    if session.has_x2() {
        session.conn.wait("answer to the last Heartbeat", probe.patience, |message| {
            matches!(message, Message::Heartbeat { ts_ms: MANY }).then_some(())
        })?;
    }
    drop(session);
    probe.serves(log, Some(pid))?;
    Ok(format!("its memory grew by {} KiB; the last was answered", grown / 1024))
}

/// Bytes one at a time.
pub(super) fn drip(conn: &mut Conn, bytes: &[u8], pause: Duration) -> bool {
    bytes.iter().all(|byte| {
        std::thread::sleep(pause);
        conn.write(&[*byte])
    })
}

pub(super) fn byte_by_byte(probe: &Incumbent, log: &Log) -> Seen {
    let (mut conn, hello) = probe.greeted("1", log)?;
    let exact = hello.capabilities.has(Capabilities::STEADY_HEARTBEAT);
    let ack = Message::HelloAck { proto_version_chosen: PROTO_MAX, handoff_id: HandoffId::new() };
    log.note("1 -> HelloAck and Heartbeat, one byte at a time");
    let pause = Duration::from_millis(10);
    let taken = drip(&mut conn, &frame(&ack, PROTO_MAX), pause)
        && drip(&mut conn, &frame(&HEARTBEAT, PROTO_MAX), pause);
    conn.handshake_done(PROTO_MAX);
    if !taken {
        return fail("it closed the connection");
    }
    conn.wait("answer to a Heartbeat", probe.patience, |message| {
        let answer = *message == HEARTBEAT || !exact;
        (answer && matches!(message, Message::Heartbeat { .. })).then_some(())
    })?;
    Ok("the Heartbeat was answered".into())
}

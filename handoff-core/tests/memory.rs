//! What the wire costs, counted by the allocator (W2, T4). A file of its own, for the allocator's sake.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use allocation_counter::{AllocationInfo, measure};
use handoff_core::daemon::{Command, Config, ConnId, DrainReport, Outcome};
use handoff_core::driver::Driver;
use handoff_core::incumbent::Incumbent;
use handoff_core::wire::{Decoder, FRAME_CAP, encode};
use handoff_core::{Credentials, HandoffId, Input, Instant, Message};

const ID: HandoffId = HandoffId::from_random_bytes([7; 16]);

/// The nine bytes of a varint that says 2^60.
const HUGE: [u8; 9] = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];

fn frame(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, 1, &mut bytes).unwrap();
    bytes
}

/// A frame whose message takes one allocation of `payload` bytes.
fn large(payload: usize) -> Vec<u8> {
    frame(&Message::Abort { handoff_id: ID, reason: "x".repeat(payload) })
}

fn decoder() -> Decoder {
    let mut decoder = Decoder::new();
    decoder.handshake_done(1);
    decoder
}

/// What it costs to read `bytes` in pieces of `piece` bytes; how many frames they were.
fn cost(bytes: &[u8], piece: usize) -> (AllocationInfo, usize) {
    let mut frames = 0;
    let info = measure(|| {
        let mut decoder = decoder();
        for mut input in bytes.chunks(piece) {
            while decoder.decode(&mut input).unwrap().is_some() {
                frames += 1;
            }
        }
    });
    (info, frames)
}

/// W2: bytes are never copied again and again. What is allocated in total bounds what is copied: a
/// buffer that doubles allocates less than four times what it ends up with.
#[test]
fn reading_byte_by_byte_is_linear() {
    for kib in [4, 16, 64, 256, 1000] {
        let bytes = large(kib << 10);
        let (info, frames) = cost(&bytes, 1);
        assert_eq!(frames, 1);
        let limit = 5 * bytes.len() as u64;
        assert!(info.bytes_total < limit, "{kib} KiB: {info:?}");
        assert!(info.count_total < 40, "{kib} KiB: {info:?}");
    }
}

/// W2: the same for many small frames, cut everywhere: the buffer is reused.
#[test]
fn reading_many_small_frames_byte_by_byte_allocates_once() {
    let beat = frame(&Message::Heartbeat { ts_ms: u64::MAX });
    let bytes = beat.repeat(1000);
    let (info, frames) = cost(&bytes, 1);
    assert_eq!(frames, 1000);
    assert!(info.count_total <= 4 && info.bytes_total <= 256, "{info:?}");
}

/// A frame of fixed size costs no allocation, neither said nor heard, where it arrives whole.
#[test]
fn a_frame_of_fixed_size_allocates_nothing() {
    let fixed = [
        Message::HelloAck { proto_version_chosen: 1, handoff_id: ID },
        Message::PrepareHandoff {
            handoff_id: ID,
            successor_pid: 1,
            deadline_ms: u64::MAX,
            drain_grace_ms: u64::MAX,
        },
        Message::Drained { open_conns_remaining: 1, accept_closed: true },
        Message::SealRequest { handoff_id: ID },
        Message::SealProgress { shards_sealed: 1, shards_total: 2, last_revision: 3 },
        Message::Begin { handoff_id: ID },
        Message::Commit { handoff_id: ID },
        Message::ResumeAfterAbort { handoff_id: ID },
        Message::Heartbeat { ts_ms: u64::MAX },
    ];
    let mut buffer = Vec::with_capacity(64);
    for message in fixed {
        buffer.clear();
        let said = measure(|| encode(&message, 1, &mut buffer).unwrap());
        assert_eq!(said.count_total, 0, "{message:?}");
        let (heard, frames) = cost(&buffer, buffer.len());
        assert_eq!((heard.count_total, frames), (0, 1), "{message:?}");
    }
}

/// W2: an announced length costs nothing, before the handshake as after it.
#[test]
fn an_announced_length_costs_nothing() {
    let mut bytes = FRAME_CAP.to_le_bytes().to_vec();
    let header = measure(|| assert_eq!(decoder().decode(&mut &bytes[..]), Ok(None)));
    assert!(header.bytes_total <= 16, "{header:?}");
    bytes.extend_from_slice(&[1, 0, 11]);
    let begun = measure(|| assert_eq!(decoder().decode(&mut &bytes[..]), Ok(None)));
    assert!(begun.bytes_total <= 64, "{begun:?}");
}

/// W2: memory grows with the bytes received.
#[test]
fn memory_grows_with_the_bytes_received() {
    let bytes = large(500_000);
    let mut decoder = decoder();
    for received in [100, 1000, 10_000, 100_000, 400_000_u64] {
        let missing = received as usize - decoder.buffered();
        let from = decoder.buffered();
        let mut input = &bytes[from..from + missing];
        let info = measure(|| assert_eq!(decoder.decode(&mut input), Ok(None)));
        assert!(info.bytes_max <= 2 * received, "{received}: {info:?}");
    }
}

/// W2: a count inside a message costs no more than its bytes could hold.
#[test]
fn an_absurd_count_inside_a_message_allocates_little() {
    let id = &postcard::to_allocvec(&ID).unwrap()[..];
    let fields: [(&str, &[&[u8]]); 6] = [
        ("build_id", &[&[0, 0, 1], &HUGE, b"abc"]),
        ("last_revision_per_shard", &[&[6], id, &HUGE, &[1, 2, 3]]),
        ("error", &[&[7], id, &HUGE, b"abc"]),
        ("listening_on", &[&[9], id, &HUGE, &[0, 0]]),
        ("an address of it", &[&[9], id, &[1], &HUGE, b"abc"]),
        ("reason", &[&[11], id, &HUGE, b"abc"]),
    ];
    for (field, parts) in fields {
        let payload = parts.concat();
        let length = u32::try_from(payload.len() + 2).unwrap();
        let bytes = [&length.to_le_bytes()[..], &[1, 0], &payload].concat();
        let info = measure(|| assert!(decoder().decode(&mut &bytes[..]).is_err()));
        assert!(info.bytes_total <= 1024, "{field}: {info:?}");
    }
}

/// W2: what the bytes of the largest frame can unfold to in memory is a small multiple of them.
#[test]
fn the_worst_frame_unfolds_to_a_small_multiple_of_its_bytes() {
    let worst = frame(&Message::Ready {
        handoff_id: ID,
        listening_on: vec![String::new(); (1 << 20) - 64],
        healthz_ok: true,
        advertised_revision_per_shard: Vec::new(),
    });
    let (info, frames) = cost(&worst, worst.len());
    assert_eq!(frames, 1);
    assert!(info.bytes_max <= 64 * worst.len() as u64, "{info:?}");
}

/// T4, C4: nor is what has left kept. A peer that reads, but is always a little behind, costs no more for
/// everything that it has read.
#[test]
fn what_a_peer_has_read_costs_nothing() {
    const S: ConnId = ConnId(1);
    let (now, mut actions) = (Instant::ORIGIN, Vec::new());
    let mut o = Driver::new(Incumbent::new(Config::new(100, 1000)));
    o.opened(now, S, Credentials { pid: 300, uid: 1000, descends: false }, &mut actions);
    let said = [
        Message::HelloAck { proto_version_chosen: 1, handoff_id: ID },
        Message::PrepareHandoff {
            handoff_id: ID,
            successor_pid: 200,
            deadline_ms: 60_000,
            drain_grace_ms: 20_000,
        },
    ];
    for message in said {
        o.received(now, S, &frame(&message), &mut actions);
    }
    let report = DrainReport { open_conns_remaining: 0, accept_closed: true };
    o.handle(now, Input::Done(Outcome::Drained(Ok(report))), &mut actions);
    o.received(now, S, &frame(&Message::SealRequest { handoff_id: ID }), &mut actions);
    let info = measure(|| {
        for last_revision in 0..10_000 {
            let (shards_sealed, shards_total) = (1, 2);
            let report = Command::SealProgress { shards_sealed, shards_total, last_revision };
            o.handle(now, Input::Command(report), &mut actions);
            o.sent(S, o.unsent(S).len() - 1);
        }
    });
    assert_eq!(o.unsent(S).len(), 1);
    assert!(info.bytes_max <= 1024, "{info:?}");
}

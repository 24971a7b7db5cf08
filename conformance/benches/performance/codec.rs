//! Messages to bytes and back, and the decoder by the size of the pieces.

use std::hint::black_box;
use std::io::{self, Read};

use handoff::frame::{FrameAccumulator, read_message, write_message};
use handoff_core::wire::{Decoder, encode};
use handoff_core::{Capabilities, HandoffId, Message, Side, short_name};

use crate::measure::calls;
use crate::table::{Row, Table, Unit};

/// Batches of a measurement.
const ROUNDS: usize = 41;

/// One of each message, with this many shards where there is a list of them.
pub fn messages(shards: usize) -> Vec<Message> {
    let handoff_id = HandoffId::from_random_bytes([7; 16]);
    // Revisions as they are after some millions of writes.
    let revisions: Vec<u64> = (0..shards as u64).map(|shard| 40_000_000 + shard * 7919).collect();
    let reason = "the operator aborted it".to_string();
    vec![
        Message::Hello {
            role: Side::Incumbent,
            pid: 41_872,
            build_id: b"5e0c9f2c6d6f1a7be3d1".to_vec(),
            proto_min: 1,
            proto_max: 1,
            capabilities: Capabilities::OURS,
        },
        Message::HelloAck { proto_version_chosen: 1, handoff_id },
        Message::PrepareHandoff {
            handoff_id,
            successor_pid: 41_900,
            deadline_ms: 300_000,
            drain_grace_ms: 60_000,
        },
        Message::Drained { open_conns_remaining: 3, accept_closed: true },
        Message::SealRequest { handoff_id },
        Message::SealProgress { shards_sealed: 1, shards_total: 16, last_revision: 40_000_000 },
        Message::SealComplete {
            handoff_id,
            last_revision_per_shard: revisions.clone(),
            data_dir_fingerprint: [9; 32],
        },
        Message::SealFailed {
            handoff_id,
            error: "the disk is full".to_string(),
            partial_state: "3 of 16 shards".to_string(),
        },
        Message::Begin { handoff_id },
        Message::Ready {
            handoff_id,
            listening_on: vec!["127.0.0.1:8080".to_string()],
            healthz_ok: true,
            advertised_revision_per_shard: revisions,
        },
        Message::Commit { handoff_id },
        Message::Abort { handoff_id, reason },
        Message::ResumeAfterAbort { handoff_id },
        Message::Heartbeat { ts_ms: 1_234_567 },
    ]
}

/// Whether it has neither a list nor a text.
const fn is_fixed(message: &Message) -> bool {
    !matches!(
        message,
        Message::Hello { .. }
            | Message::SealComplete { .. }
            | Message::SealFailed { .. }
            | Message::Ready { .. }
            | Message::Abort { .. }
    )
}

pub fn framed(message: &Message) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(message, 1, &mut frame).expect("it fits a frame");
    frame
}

/// A decoder after the handshake.
pub fn decoder() -> Decoder {
    let mut decoder = Decoder::new();
    decoder.handshake_done(1);
    decoder
}

/// These messages in every form that is compared.
struct Case {
    messages: Vec<Message>,
    theirs: Vec<handoff::protocol::Message>,
    frames: Vec<Vec<u8>>,
}

/// Four contenders: ours, the peer, postcard, memcpy.
type Four = [f64; 4];

impl Case {
    fn new(messages: Vec<Message>) -> Self {
        let frames: Vec<_> = messages.iter().map(framed).collect();
        let theirs =
            frames.iter().map(|frame| read_message(&mut &frame[..]).expect("the same wire").1);
        Self { theirs: theirs.collect(), messages, frames }
    }

    fn encode(&self) -> Four {
        let longest = self.frames.iter().map(Vec::len).max().unwrap_or_default();
        let (mut ours, mut theirs) = (Vec::with_capacity(longest), Vec::with_capacity(longest));
        let (mut raw, mut copy) = (vec![0; longest], vec![0; longest]);
        calls(
            ROUNDS,
            [
                &mut || {
                    for message in &self.messages {
                        ours.clear();
                        encode(black_box(message), 1, &mut ours).expect("it fits");
                        black_box(&ours);
                    }
                },
                &mut || {
                    for message in &self.theirs {
                        theirs.clear();
                        write_message(&mut theirs, 1, black_box(message)).expect("it fits");
                        black_box(&theirs);
                    }
                },
                &mut || {
                    for message in &self.messages {
                        black_box(
                            postcard::to_slice(black_box(message), &mut raw).expect("it fits"),
                        );
                    }
                },
                &mut || {
                    for frame in &self.frames {
                        copy[..frame.len()].copy_from_slice(black_box(frame));
                        black_box(&copy);
                    }
                },
            ],
        )
    }

    fn decode(&self) -> Four {
        let longest = self.frames.iter().map(Vec::len).max().unwrap_or_default();
        let (mut decoder, mut copy) = (decoder(), vec![0; longest]);
        calls(
            ROUNDS,
            [
                &mut || {
                    for frame in &self.frames {
                        let decoded = decoder.decode(&mut black_box(&frame[..]));
                        assert!(black_box(&decoded).is_ok());
                    }
                },
                &mut || {
                    for frame in &self.frames {
                        let decoded = read_message(&mut black_box(&frame[..]));
                        assert!(black_box(&decoded).is_ok());
                    }
                },
                &mut || {
                    for frame in &self.frames {
                        black_box(
                            postcard::from_bytes::<Message>(black_box(&frame[6..]))
                                .expect("a message"),
                        );
                    }
                },
                &mut || {
                    for frame in &self.frames {
                        copy[..frame.len()].copy_from_slice(black_box(frame));
                        black_box(&copy);
                    }
                },
            ],
        )
    }

    /// How many allocations it is to encode them into room that is there, and to decode them.
    fn allocations(&self) -> [[f64; 3]; 2] {
        let count = |work: &mut dyn FnMut()| allocation_counter::measure(work).count_total as f64;
        let longest = self.frames.iter().map(Vec::len).max().unwrap_or_default();
        let mut room = Vec::with_capacity(longest);
        let mut decoder = decoder();
        let mut raw = vec![0; longest];
        let encoded = [
            count(&mut || {
                for message in &self.messages {
                    room.clear();
                    encode(message, 1, &mut room).expect("it fits");
                }
            }),
            count(&mut || {
                for message in &self.theirs {
                    room.clear();
                    write_message(&mut room, 1, message).expect("it fits");
                }
            }),
            count(&mut || {
                for message in &self.messages {
                    postcard::to_slice(message, &mut raw).expect("it fits");
                }
            }),
        ];
        let decoded = [
            count(&mut || {
                for frame in &self.frames {
                    drop(decoder.decode(&mut &frame[..]).expect("a frame"));
                }
            }),
            count(&mut || {
                for frame in &self.frames {
                    drop(read_message(&mut &frame[..]).expect("a frame"));
                }
            }),
            count(&mut || {
                for frame in &self.frames {
                    drop(postcard::from_bytes::<Message>(&frame[6..]).expect("a message"));
                }
            }),
        ];
        [encoded, decoded]
    }
}

const SECTION: &str = "codec";

fn row(name: impl Into<String>, [ours, peer, postcard, _]: Four) -> Row {
    Row::new(SECTION, name, Unit::Nanoseconds, ours).peer(peer).floor(postcard)
}

fn beside_memcpy(name: impl Into<String>, [ours, peer, _, memcpy]: Four) -> Row {
    Row::new(SECTION, name, Unit::Nanoseconds, ours).peer(peer).floor(memcpy)
}

pub fn codec(table: &mut Table) {
    table.section("codec; the floor is postcard into a slice, or memcpy of the frame");
    let all = Case::new(messages(1));
    let (encoded, decoded) = (all.encode(), all.decode());
    table.push(row("encode the 14", encoded).reach(1.2));
    table.push(row("decode the 14", decoded).reach(1.2));
    table.push(beside_memcpy("encode the 14, memcpy", encoded));
    table.push(beside_memcpy("decode the 14, memcpy", decoded));
    for shards in [100, 10_000, 100_000] {
        let mut long = messages(shards);
        long.retain(|it| matches!(it, Message::SealComplete { .. } | Message::Ready { .. }));
        let long = Case::new(long);
        let (encoded, decoded) = (long.encode(), long.decode());
        table.push(row(format!("encode lists of {shards}"), encoded));
        table.push(row(format!("decode lists of {shards}"), decoded));
        table.push(beside_memcpy(format!("encode lists of {shards}, memcpy"), encoded));
        table.push(beside_memcpy(format!("decode lists of {shards}, memcpy"), decoded));
    }
    let (fixed, other): (Vec<_>, Vec<_>) = messages(1).into_iter().partition(is_fixed);
    for (messages, name, reach) in [(fixed, "fixed size", Some(0.0)), (other, "others", None)] {
        let (count, case) = (messages.len(), Case::new(messages));
        for (counted, what) in case.allocations().into_iter().zip(["encode", "decode"]) {
            let [ours, peer, floor] = counted;
            let name = format!("allocations, {what} {count} {name}");
            let row = Row::new(SECTION, name, Unit::Count, ours).peer(peer).floor(floor);
            table.push(reach.map_or_else(|| row.clone(), |reach| row.clone().reach(reach)));
        }
    }
    for message in messages(1) {
        let name = short_name(&message);
        let case = Case::new(vec![message]);
        table.push(row(format!("encode {name}"), case.encode()));
        table.push(row(format!("decode {name}"), case.decode()));
    }
}

/// A stream that gives a piece, and then has nothing more for now.
struct Pieces<'a> {
    rest: &'a [u8],
    piece: usize,
    given: bool,
}

impl Read for Pieces<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.given {
            self.given = false;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.piece.min(room.len()).min(self.rest.len());
        let (piece, rest) = self.rest.split_at(count);
        room[..count].copy_from_slice(piece);
        self.rest = rest;
        // The end of what there is room for is not the end of what has arrived.
        self.given = count == self.piece || rest.is_empty();
        Ok(count)
    }
}

/// One pass over the bytes: a call for each piece, which keeps it; at the end, postcard.
#[inline(never)]
fn keep(kept: &mut Vec<u8>, piece: &[u8], whole: usize) -> bool {
    kept.extend_from_slice(piece);
    kept.len() >= whole
}

pub fn long_frame() -> Vec<u8> {
    let mut messages = messages(16_000);
    messages.retain(|message| matches!(message, Message::SealComplete { .. }));
    framed(&messages[0])
}

/// Feeds a decoder a frame in pieces.
pub fn feed(decoder: &mut Decoder, frame: &[u8], piece: usize) {
    for mut piece in frame.chunks(piece) {
        // Looked at where it is: to move it out would be measured too.
        let decoded = decoder.decode(black_box(&mut piece));
        assert!(black_box(&decoded).is_ok());
    }
}

pub fn pieces(table: &mut Table) {
    let frame = long_frame();
    table.section(&format!(
        "decoder, a frame of {} KiB in pieces; the floor is one pass with as many calls",
        frame.len() >> 10
    ));
    for piece in [1, 7, 64, 4096, frame.len()] {
        let mut decoder = decoder();
        let mut theirs = FrameAccumulator::new();
        let mut kept = Vec::new();
        let [ours, peer, floor] = calls(
            9,
            [
                &mut || feed(&mut decoder, &frame, piece),
                &mut || {
                    let mut pieces = Pieces { rest: &frame, piece, given: false };
                    while matches!(&theirs.poll_read(black_box(&mut pieces)), Ok(None)) {}
                },
                &mut || {
                    for piece in frame.chunks(piece) {
                        if keep(black_box(&mut kept), black_box(piece), frame.len()) {
                            black_box(
                                postcard::from_bytes::<Message>(&kept[6..]).expect("a message"),
                            );
                            kept.clear();
                        }
                    }
                },
            ],
        );
        let name = match piece {
            1 => "1 byte at a time".to_string(),
            piece if piece == frame.len() => "whole".to_string(),
            piece => format!("{piece} bytes at a time"),
        };
        let row = Row::new("decoder", name, Unit::Nanoseconds, ours).peer(peer).floor(floor);
        table.push(row.reach(2.0));
    }
}

//! The frames that an independent implementation wrote, byte for byte, both ways (W2, W3).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use handoff_core::wire::{Decoder, Frame, encode};
use handoff_core::{
    Capabilities, HandoffId, Message, PROTO_MAX, PROTO_MIN, ProtoVersion, Side, short_name,
};
use std::collections::BTreeSet;
use uuid::Uuid;

const FILE: &str = include_str!("vectors/v1.tsv");

/// The version that every frame of the file carries.
const VERSION: ProtoVersion = 1;

const ID: HandoffId = HandoffId(Uuid::from_bytes([
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
]));

/// What the file says in words: a frame's name, its message's identifier, its message.
fn values() -> Vec<(&'static str, &'static str, Message)> {
    vec![
        (
            "hello-incumbent",
            "Hello",
            Message::Hello {
                role: Side::Incumbent,
                pid: 4242,
                build_id: vec![171; 20],
                proto_min: 1,
                proto_max: 1,
                capabilities: Capabilities { reserved: 0 },
            },
        ),
        (
            "hello-successor",
            "Hello",
            Message::Hello {
                role: Side::Successor,
                pid: u32::MAX,
                build_id: vec![0xde, 0xad, 0xbe, 0xef],
                proto_min: 1,
                proto_max: 3,
                capabilities: Capabilities { reserved: 0 },
            },
        ),
        ("hello-ack", "HelloAck", Message::HelloAck { proto_version_chosen: 1, handoff_id: ID }),
        (
            "prepare-handoff",
            "PrepareHandoff",
            Message::PrepareHandoff {
                handoff_id: ID,
                successor_pid: 4343,
                deadline_ms: 300_000,
                drain_grace_ms: 60_000,
            },
        ),
        ("drained", "Drained", Message::Drained { open_conns_remaining: 0, accept_closed: true }),
        ("seal-request", "SealRequest", Message::SealRequest { handoff_id: ID }),
        (
            "seal-progress",
            "SealProgress",
            Message::SealProgress { shards_sealed: 3, shards_total: 8, last_revision: 1_000_000 },
        ),
        (
            "seal-complete",
            "SealComplete",
            Message::SealComplete {
                handoff_id: ID,
                last_revision_per_shard: vec![0, 1, 127, 128, 16383, 16384, u64::MAX],
                data_dir_fingerprint: [90; 32],
            },
        ),
        (
            "seal-failed",
            "SealFailed",
            Message::SealFailed {
                handoff_id: ID,
                error: "disk full".into(),
                partial_state: "2 of 8 shards sealed".into(),
            },
        ),
        ("begin", "Begin", Message::Begin { handoff_id: ID }),
        (
            "ready",
            "Ready",
            Message::Ready {
                handoff_id: ID,
                listening_on: vec!["127.0.0.1:8080".into(), "[::1]:8080".into()],
                healthz_ok: true,
                advertised_revision_per_shard: vec![1, 2, 3],
            },
        ),
        ("commit", "Commit", Message::Commit { handoff_id: ID }),
        ("abort", "Abort", Message::Abort { handoff_id: ID, reason: "deadline passed".into() }),
        ("resume-after-abort", "ResumeAfterAbort", Message::ResumeAfterAbort { handoff_id: ID }),
        ("heartbeat", "Heartbeat", Message::Heartbeat { ts_ms: 1_700_000_000_000 }),
    ]
}

fn file() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let rows = FILE.lines().map(|line| {
        let columns: Vec<&str> = line.split('\t').collect();
        let [name, hex, value] = columns[..] else { panic!("not three columns: {line}") };
        let bytes = (0..hex.len()).step_by(2);
        let bytes = bytes.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        (name, bytes.collect(), value)
    });
    rows.collect()
}

/// W3: the file and this test list the same frames, in the same order.
#[test]
fn the_test_holds_a_value_for_every_frame_of_the_file() {
    let of_file: Vec<&str> = file().iter().map(|&(name, ..)| name).collect();
    let of_test: Vec<&str> = values().iter().map(|&(name, ..)| name).collect();
    assert_eq!(of_file, of_test);
}

/// W2, W3
#[test]
fn every_value_encodes_to_the_bytes_of_the_file() {
    for ((name, bytes, _), (_, _, message)) in file().into_iter().zip(values()) {
        let mut encoded = Vec::new();
        encode(&message, VERSION, &mut encoded).unwrap();
        assert_eq!(encoded, bytes, "{name}");
    }
}

/// W2, W3
#[test]
fn the_bytes_of_the_file_decode_to_every_value() {
    for ((name, bytes, _), (_, _, message)) in file().into_iter().zip(values()) {
        let frame = Frame { version: VERSION, message };
        for mut decoder in [Decoder::new(), after_handshake()] {
            let mut input = &bytes[..];
            assert_eq!(decoder.decode(&mut input), Ok(Some(frame.clone())), "{name}");
            assert_eq!(decoder.decode(&mut input), Ok(None), "{name}");
            assert_eq!((input.len(), decoder.buffered()), (0, 0), "{name}");
        }
    }
}

/// W2: the whole file as one stream.
#[test]
fn the_frames_of_the_file_decode_as_one_stream() {
    let stream: Vec<u8> = file().into_iter().flat_map(|(_, bytes, _)| bytes).collect();
    let mut decoder = after_handshake();
    let mut input = &stream[..];
    let mut messages = Vec::new();
    while let Some(frame) = decoder.decode(&mut input).unwrap() {
        messages.push(frame.message);
    }
    let expected: Vec<Message> = values().into_iter().map(|(_, _, message)| message).collect();
    assert_eq!(messages, expected);
}

/// W3: `short_name` gives the variant's identifier, and the file shows every one of them.
#[test]
fn the_file_covers_all_fourteen_messages_and_their_names() {
    let mut seen = BTreeSet::new();
    for ((_, _, words), (name, identifier, message)) in file().into_iter().zip(values()) {
        assert_eq!(short_name(&message), identifier, "{name}");
        assert_eq!(words.split(' ').next(), Some(identifier), "{name}");
        let kebab: String = identifier
            .chars()
            .flat_map(|c| {
                let dash = c.is_uppercase().then_some('-');
                dash.into_iter().chain([c.to_ascii_lowercase()])
            })
            .skip(1)
            .collect();
        assert!(name.starts_with(&kebab), "{name} is no {kebab}");
        seen.insert(identifier);
    }
    let all = [
        "Hello",
        "HelloAck",
        "PrepareHandoff",
        "Drained",
        "SealRequest",
        "SealProgress",
        "SealComplete",
        "SealFailed",
        "Begin",
        "Ready",
        "Commit",
        "Abort",
        "ResumeAfterAbort",
        "Heartbeat",
    ];
    assert_eq!(seen, BTreeSet::from(all));
}

/// W3: the third column is Rust's Debug of the value, but for how an id is written.
#[test]
fn the_values_read_as_the_file_spells_them() {
    for ((name, _, words), (_, _, message)) in file().into_iter().zip(values()) {
        let id = format!("{ID:?}");
        let spelled = format!("{message:?}").replace(&id, &ID.to_string());
        assert_eq!(spelled, words, "{name}");
    }
}

/// W3: postcard's index of the variant is the byte behind the header, in the order of the table.
#[test]
fn the_order_of_the_variants_is_the_wire() {
    let values = values();
    let mut names: Vec<&str> = values.iter().map(|&(_, identifier, _)| identifier).collect();
    names.dedup();
    assert_eq!(names.len(), 14);
    for (_, identifier, message) in &values {
        let mut bytes = Vec::new();
        encode(message, VERSION, &mut bytes).unwrap();
        let place = names.iter().position(|name| name == identifier);
        assert_eq!(place, Some(usize::from(bytes[6])), "{identifier}");
    }
}

/// W3: `Side` is Incumbent = 0, Successor = 1; the id a length byte 16, then its bytes; `Capabilities`
/// one varint.
#[test]
fn sides_ids_and_capabilities_have_their_bytes() {
    assert_eq!(postcard::to_allocvec(&Side::Incumbent), Ok(vec![0]));
    assert_eq!(postcard::to_allocvec(&Side::Successor), Ok(vec![1]));
    let mut id = vec![16];
    id.extend_from_slice(ID.0.as_bytes());
    assert_eq!(postcard::to_allocvec(&ID), Ok(id));
    let capabilities = Capabilities { reserved: 300 };
    assert_eq!(postcard::to_allocvec(&capabilities), Ok(vec![0xac, 0x02]));
    assert_eq!(postcard::to_allocvec(&Capabilities::OURS), Ok(vec![3]));
}

/// W3
#[test]
fn the_protocol_version_is_one() {
    assert_eq!((PROTO_MIN, PROTO_MAX), (1, 1));
}

/// W3: an id reads as its UUID, and one made of random bytes is a version 4 UUID.
#[test]
fn an_id_of_random_bytes_is_a_version_4_uuid() {
    assert_eq!(ID.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    for bytes in [[0; 16], [0xff; 16], *ID.0.as_bytes()] {
        let id = HandoffId::from_random_bytes(bytes);
        assert_eq!(id.0.get_version_num(), 4);
        assert_eq!(id.0.get_variant(), uuid::Variant::RFC4122);
        assert_eq!(id.0.as_bytes()[0], bytes[0]);
    }
}

/// W3: an id made fresh is v4, by `new` as by `Default`, and no two are equal.
#[cfg(feature = "v4")]
#[test]
fn a_fresh_id_is_a_version_4_uuid() {
    let ids = [HandoffId::new(), HandoffId::default(), HandoffId::new()];
    for id in ids {
        assert_eq!(id.0.get_version_num(), 4);
    }
    assert_eq!(BTreeSet::from(ids).len(), ids.len());
}

fn after_handshake() -> Decoder {
    let mut decoder = Decoder::new();
    decoder.handshake_done(VERSION);
    decoder
}

//! The wire against arbitrary bytes, cut anywhere (W2-W7).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod arbitrary;

use arbitrary::{config, message};
use handoff_core::wire::{
    Decoder, EncodeError, FRAME_CAP, Frame, HANDSHAKE_CAP, MAX_SHARDS, VersionMismatch, WireError,
    encode,
};
use handoff_core::{
    Capabilities, HandoffId, Message, ProtoVersion, Side, negotiate_version, short_name,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

const ID: HandoffId = HandoffId::from_random_bytes([7; 16]);

/// What a stream of bytes amounts to: the frames before the first error, and that error.
type Reading = (Vec<Frame>, Option<WireError>);

/// W2, W5, W6, read off the clauses, with all of the bytes at hand.
fn reference(mut bytes: &[u8], chosen: Option<ProtoVersion>) -> Reading {
    let cap = if chosen.is_some() { 1 << 20 } else { 4096 };
    let mut frames = Vec::new();
    let error = loop {
        if bytes.len() < 4 {
            break None;
        }
        let announced = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if !(2..=cap).contains(&announced) {
            break Some(WireError::Length { announced, cap });
        }
        let end = 4 + announced as usize;
        if bytes.len() < end {
            break None;
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        match chosen {
            Some(chosen) if chosen != version => {
                let got = version;
                break Some(WireError::Version { got, chosen });
            }
            _ => {}
        }
        let Ok((message, rest)) = postcard::take_from_bytes::<Message>(&bytes[6..end]) else {
            break Some(WireError::Malformed);
        };
        if !rest.is_empty() {
            let (message, bytes) = (short_name(&message), rest.len());
            break Some(WireError::Leftover { message, bytes });
        }
        frames.push(Frame { version, message });
        bytes = &bytes[end..];
    };
    (frames, error)
}

fn decoder(chosen: Option<ProtoVersion>) -> Decoder {
    let mut decoder = Decoder::new();
    if let Some(chosen) = chosen {
        decoder.handshake_done(chosen);
    }
    decoder
}

/// Feeds `bytes` in pieces that end at `cuts`, and checks what must hold after each of them.
fn read(bytes: &[u8], cuts: &[usize], chosen: Option<ProtoVersion>) -> Reading {
    let cap = if chosen.is_some() { FRAME_CAP } else { HANDSHAKE_CAP };
    let mut decoder = decoder(chosen);
    let mut frames = Vec::new();
    let mut from = 0;
    for &to in cuts.iter().chain([&bytes.len()]) {
        let mut input = &bytes[from..to];
        from = to;
        loop {
            let decoded = decoder.decode(&mut input);
            // Memory grows with the bytes received, and not beyond one frame.
            assert!(decoder.buffered() <= to);
            assert!(decoder.buffered() <= cap as usize + 4);
            match decoded {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => {
                    assert!(input.is_empty(), "all bytes are taken before more are asked for");
                    break;
                }
                Err(error) => {
                    assert_eq!(decoder.buffered(), 0);
                    let mut more = &frame(&Message::Heartbeat { ts_ms: 1 }, 1)[..];
                    for _ in 0..3 {
                        assert_eq!(decoder.decode(&mut input), Err(error));
                        assert_eq!(decoder.decode(&mut more), Err(error));
                    }
                    return (frames, Some(error));
                }
            }
        }
    }
    (frames, None)
}

fn frame(message: &Message, version: ProtoVersion) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, version, &mut bytes).unwrap();
    bytes
}

/// A frame around any payload.
fn raw(version: ProtoVersion, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + 2).unwrap();
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// One frame's worth of bytes, read before or after the handshake.
fn read_one(bytes: &[u8], chosen: Option<ProtoVersion>) -> Result<Option<Frame>, WireError> {
    decoder(chosen).decode(&mut &bytes[..])
}

fn sorted(cuts: Vec<Index>, len: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.index(len + 1)).collect();
    cuts.sort_unstable();
    cuts
}

proptest! {
    #![proptest_config(config(512))]

    /// W2, W3: whatever can be said is heard as it was said, in the same bytes.
    #[test]
    fn any_message_comes_out_as_it_went_in(message in message(), version in any::<u16>()) {
        let bytes = frame(&message, version);
        let announced = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        prop_assert_eq!(announced as usize, bytes.len() - 4);
        let decoded = read_one(&bytes, Some(version)).unwrap().unwrap();
        prop_assert_eq!(frame(&decoded.message, decoded.version), bytes);
        prop_assert_eq!(decoded, Frame { version, message });
    }

    /// W2: a stream may be cut anywhere, also inside a header, and reads the same.
    #[test]
    fn any_split_of_any_frames_reads_the_same(
        messages in vec(message(), 0..6),
        cuts in vec(any::<Index>(), 0..12),
        done in any::<bool>(),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(|message| frame(message, 1)).collect();
        let (frames, error) = read(&stream, &sorted(cuts, stream.len()), done.then_some(1));
        prop_assert_eq!(error, None);
        let read: Vec<Message> = frames.into_iter().map(|frame| frame.message).collect();
        prop_assert_eq!(read, messages);
    }

    /// W2: byte by byte is one of the ways to cut a stream.
    #[test]
    fn byte_by_byte_reads_the_same(messages in vec(message(), 1..4)) {
        let stream: Vec<u8> = messages.iter().flat_map(|message| frame(message, 1)).collect();
        let cuts: Vec<usize> = (0..stream.len()).collect();
        prop_assert_eq!(read(&stream, &cuts, Some(1)), reference(&stream, Some(1)));
    }

    /// W7: arbitrary bytes are frames or a typed error, the same however they are cut.
    #[test]
    fn any_bytes_are_frames_or_a_typed_error(
        bytes in vec(any::<u8>(), 0..200),
        cuts in vec(any::<Index>(), 0..12),
        done in any::<bool>(),
    ) {
        let chosen = done.then_some(1);
        prop_assert_eq!(read(&bytes, &sorted(cuts, bytes.len()), chosen), reference(&bytes, chosen));
    }

    /// W2, W7: the same for bytes that look like frames: a plausible length, version and variant.
    #[test]
    fn bytes_that_look_like_frames_are_frames_or_a_typed_error(
        frames in vec((0..60_usize, 0..3_u16, 0..15_u8, vec(any::<u8>(), 60)), 1..5),
        cuts in vec(any::<Index>(), 0..12),
        done in any::<bool>(),
    ) {
        let mut stream = Vec::new();
        for (length, version, variant, mut payload) in frames {
            payload[0] = variant;
            stream.extend(raw(version, &payload[..length]));
        }
        let chosen = done.then_some(1);
        prop_assert_eq!(read(&stream, &sorted(cuts, stream.len()), chosen), reference(&stream, chosen));
    }

    /// W7: the same for good frames with bytes changed, taken out or put in.
    #[test]
    fn damaged_frames_are_frames_or_a_typed_error(
        messages in vec(message(), 1..4),
        damage in vec((any::<Index>(), 0..3_u8, any::<u8>()), 1..4),
        cuts in vec(any::<Index>(), 0..12),
        done in any::<bool>(),
    ) {
        let mut stream: Vec<u8> = messages.iter().flat_map(|message| frame(message, 1)).collect();
        for (place, how, byte) in damage {
            let place = place.index(stream.len());
            match how {
                0 => stream[place] = byte,
                1 => stream.insert(place, byte),
                _ if stream.len() > 1 => drop(stream.remove(place)),
                _ => {}
            }
        }
        let chosen = done.then_some(1);
        prop_assert_eq!(read(&stream, &sorted(cuts, stream.len()), chosen), reference(&stream, chosen));
    }

    /// W2, W5: the handshake may be done at any point of the stream, also inside a frame.
    #[test]
    fn the_handshake_counts_from_where_it_is_done(message in message(), cut in any::<Index>()) {
        let bytes = frame(&message, 2);
        let cut = cut.index(bytes.len());
        let mut decoder = Decoder::new();
        prop_assert_eq!(decoder.decode(&mut &bytes[..cut]), Ok(None));
        decoder.handshake_done(1);
        let decoded = decoder.decode(&mut &bytes[cut..]);
        prop_assert_eq!(decoded, Err(WireError::Version { got: 2, chosen: 1 }));
    }

    /// W5: before the handshake any version is heard, after it only the chosen one.
    #[test]
    fn after_the_handshake_only_the_chosen_version_is_heard(
        message in message(),
        got in any::<u16>(),
        chosen in any::<u16>(),
    ) {
        let bytes = frame(&message, got);
        let expected = Frame { version: got, message };
        prop_assert_eq!(read_one(&bytes, None), Ok(Some(expected.clone())));
        prop_assert_eq!(read_one(&bytes, Some(got)), Ok(Some(expected)));
        if got != chosen {
            let error = WireError::Version { got, chosen };
            prop_assert_eq!(read_one(&bytes, Some(chosen)), Err(error));
        }
    }

    /// W6: bytes left over after the message inside its frame are a violation, counted and named.
    #[test]
    fn leftovers_inside_a_frame_are_a_violation(message in message(), extra in vec(any::<u8>(), 1..40)) {
        let mut payload = frame(&message, 1)[6..].to_vec();
        payload.extend_from_slice(&extra);
        let error = WireError::Leftover { message: short_name(&message), bytes: extra.len() };
        prop_assert_eq!(read_one(&raw(1, &payload), Some(1)), Err(error));
    }

    /// W2: a frame that ends inside its message is malformed, whatever bytes follow it.
    #[test]
    fn a_message_never_reads_beyond_its_frame(message in message(), cut in any::<Index>()) {
        let payload = frame(&message, 1)[6..].to_vec();
        let (head, tail) = payload.split_at(cut.index(payload.len()));
        let mut bytes = raw(1, head);
        bytes.extend_from_slice(tail);
        prop_assert_eq!(read_one(&bytes, Some(1)), Err(WireError::Malformed));
    }

    /// W4: the highest version that both ranges hold, or all four numbers.
    #[test]
    fn negotiation_at_the_ends_of_the_range(
        numbers in [0..4_u16, 0..4, 0..4, 0..4],
        high in any::<[bool; 4]>(),
    ) {
        let at = |i: usize| if high[i] { u16::MAX - numbers[i] } else { numbers[i] };
        check_negotiation(at(0), at(1), at(2), at(3));
    }
}

fn check_negotiation(our_min: u16, our_max: u16, their_min: u16, their_max: u16) {
    let both = |v: &u16| (our_min..=our_max).contains(v) && (their_min..=their_max).contains(v);
    // The bounds themselves are the only candidates for a highest common version.
    let candidates = [our_min, our_max, their_min, their_max];
    let expected = candidates.into_iter().filter(both).max().ok_or(VersionMismatch {
        our_min,
        our_max,
        their_min,
        their_max,
    });
    let negotiated = negotiate_version(our_min, our_max, their_min, their_max);
    assert_eq!(negotiated, expected);
    if let Err(mismatch) = negotiated {
        let text = mismatch.to_string();
        for number in candidates {
            assert!(text.contains(&number.to_string()), "{text}");
        }
    }
}

/// W4: every combination of small ranges, empty ones among them, against the definition.
#[test]
fn negotiation_is_the_highest_common_version() {
    const TOP: u16 = 6;
    let bounds = || 0..TOP;
    for (a, b) in bounds().flat_map(|a| bounds().map(move |b| (a, b))) {
        for (c, d) in bounds().flat_map(|c| bounds().map(move |d| (c, d))) {
            check_negotiation(a, b, c, d);
            let both = |v: &u16| a <= *v && *v <= b && c <= *v && *v <= d;
            let highest = (0..TOP).rev().find(both);
            assert_eq!(negotiate_version(a, b, c, d).ok(), highest, "{a} {b} {c} {d}");
        }
    }
}

/// W2: 2 <= L <= 4 KiB before the handshake, 2 <= L <= 1 MiB after it; the header alone decides.
#[test]
fn a_length_is_judged_by_its_header_alone() {
    for (chosen, cap) in [(None, 4096), (Some(1), 1 << 20)] {
        for announced in [0, 1, cap + 1, cap + 2, 1 << 31, u32::MAX] {
            let error = WireError::Length { announced, cap };
            assert_eq!(read_one(&announced.to_le_bytes(), chosen), Err(error));
        }
        for announced in [2, 3, cap - 1, cap] {
            assert_eq!(read_one(&announced.to_le_bytes(), chosen), Ok(None));
        }
    }
    assert_eq!((HANDSHAKE_CAP, FRAME_CAP), (4096, 1 << 20));
}

/// W2: the shortest frame is a header and nothing else, and holds no message.
#[test]
fn a_frame_of_length_two_holds_no_message() {
    assert_eq!(read_one(&raw(1, &[]), None), Err(WireError::Malformed));
    assert_eq!(read_one(&raw(1, &[]), Some(1)), Err(WireError::Malformed));
}

/// W5 before W3: of another version nothing is known but its header.
#[test]
fn another_version_is_named_before_its_message_is_read() {
    let error = WireError::Version { got: 2, chosen: 1 };
    assert_eq!(read_one(&raw(2, &[]), Some(1)), Err(error));
    assert_eq!(read_one(&raw(2, &[200, 1, 2]), Some(1)), Err(error));
}

/// W2: the largest Hello that may come before the handshake, and one byte more.
#[test]
fn a_frame_of_exactly_the_handshake_cap_is_heard() {
    let hello = |bytes: usize| Message::Hello {
        role: Side::Incumbent,
        pid: 1,
        build_id: vec![0xab; bytes],
        proto_min: 1,
        proto_max: 1,
        capabilities: Capabilities { reserved: 0 },
    };
    let overhead = frame(&hello(1000), 1).len() - 4 - 1000;
    let fits = hello(4096 - overhead);
    let bytes = frame(&fits, 1);
    assert_eq!(bytes.len(), 4 + 4096);
    let expected = Frame { version: 1, message: fits };
    assert_eq!(read_one(&bytes, None), Ok(Some(expected)));

    let bytes = frame(&hello(4096 - overhead + 1), 1);
    let error = WireError::Length { announced: 4097, cap: 4096 };
    assert_eq!(read_one(&bytes, None), Err(error));
    assert!(read_one(&bytes, Some(1)).unwrap().is_some());
}

/// W2: the largest message that can be said is heard; one byte more is not said at all.
#[test]
fn a_frame_of_exactly_the_cap_is_said_and_heard() {
    let failed = |bytes: usize| Message::SealFailed {
        handoff_id: ID,
        error: "x".repeat(bytes),
        partial_state: String::new(),
    };
    let overhead = frame(&failed(1_000_000), 1).len() - 4 - 1_000_000;
    let most = (1 << 20) - overhead;
    let fits = failed(most);
    let bytes = frame(&fits, 1);
    assert_eq!(bytes.len(), 4 + (1 << 20));
    let cuts: Vec<usize> = (0..bytes.len()).step_by(4093).collect();
    let expected = Frame { version: 1, message: fits };
    assert_eq!(read(&bytes, &cuts, Some(1)), (vec![expected], None));

    let mut buffer = vec![1, 2, 3];
    let error = EncodeError { message: "SealFailed", length: (1 << 20) + 1 };
    assert_eq!(encode(&failed(most + 1), 1, &mut buffer), Err(error));
    assert_eq!(buffer, [1, 2, 3], "nothing of it is left behind");
}

/// W2: as many shards as are promised fit a frame, whatever their revisions.
#[test]
fn the_promised_number_of_shards_fits_a_frame() {
    let complete = Message::SealComplete {
        handoff_id: ID,
        last_revision_per_shard: vec![u64::MAX; MAX_SHARDS],
        data_dir_fingerprint: [0xff; 32],
    };
    assert!(read_one(&frame(&complete, 1), Some(1)).unwrap().is_some());
    // What a successor says at most: 64 addresses of 256 bytes beside its shards.
    let ready = Message::Ready {
        handoff_id: ID,
        listening_on: vec!["x".repeat(256); 64],
        healthz_ok: true,
        advertised_revision_per_shard: vec![u64::MAX; MAX_SHARDS],
    };
    assert!(read_one(&frame(&ready, 1), Some(1)).unwrap().is_some());
}

/// The nine bytes of a varint that says 2^60.
const HUGE: [u8; 9] = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];

/// The frames of every field that carries a count of its own, with the count 2^60.
fn absurd_counts() -> Vec<(&'static str, Vec<u8>)> {
    let id = &postcard::to_allocvec(&ID).unwrap()[..];
    let fields: [(&str, &[&[u8]]); 7] = [
        ("build_id", &[&[0, 0, 1], &HUGE, b"abc"]),
        ("last_revision_per_shard", &[&[6], id, &HUGE, &[1, 2, 3]]),
        ("error", &[&[7], id, &HUGE, b"abc"]),
        ("partial_state", &[&[7], id, &[1], b"a", &HUGE, b"abc"]),
        ("listening_on", &[&[9], id, &HUGE, &[0, 0]]),
        ("an address of it", &[&[9], id, &[1], &HUGE, b"abc"]),
        ("reason", &[&[11], id, &HUGE, b"abc"]),
    ];
    let frames = fields.map(|(field, parts)| (field, raw(1, &parts.concat())));
    frames.to_vec()
}

/// W2: a count announced inside a message costs no more than the bytes that are there.
#[test]
fn an_absurd_count_inside_a_message_is_an_error() {
    for (field, bytes) in absurd_counts() {
        assert_eq!(read_one(&bytes, Some(1)), Err(WireError::Malformed), "{field}");
        assert_eq!(read_one(&bytes, None), Err(WireError::Malformed), "{field}");
    }
}

/// W3: what is no value of the table is malformed.
#[test]
fn values_outside_the_table_are_malformed() {
    let mut short_id = vec![4, 15];
    short_id.extend_from_slice(&[7; 15]);
    let mut long_id = vec![4, 17];
    long_id.extend_from_slice(&[7; 17]);
    let bad: [(&str, &[u8]); 8] = [
        ("a fifteenth variant", &[14]),
        ("a variant that is no u32", &[0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        ("a third side", &[0, 2, 1, 0, 1, 1, 0]),
        ("a bool of 2", &[3, 0, 2]),
        ("a u32 beyond its range", &[3, 0xff, 0xff, 0xff, 0xff, 0x1f, 1]),
        ("a version beyond u16", &[0, 0, 1, 0, 1, 0xff, 0xff, 0x07, 0]),
        ("an id of 15 bytes", &short_id),
        ("an id of 17 bytes", &long_id),
    ];
    for (what, payload) in bad {
        assert_eq!(read_one(&raw(1, payload), Some(1)), Err(WireError::Malformed), "{what}");
    }
    let mut text = vec![11];
    text.extend(postcard::to_allocvec(&ID).unwrap());
    text.extend_from_slice(&[2, 0xc3, 0x28]);
    assert_eq!(read_one(&raw(1, &text), Some(1)), Err(WireError::Malformed), "no UTF-8");
}

/// X1, X2: bits that nobody knows are heard and ignored.
#[test]
fn unknown_capabilities_are_heard() {
    let message = Message::Hello {
        role: Side::Successor,
        pid: 1,
        build_id: Vec::new(),
        proto_min: 1,
        proto_max: 9,
        capabilities: Capabilities { reserved: u64::MAX },
    };
    let decoded = read_one(&frame(&message, 9), None).unwrap().unwrap();
    assert_eq!(decoded.message, message);
    let all = Capabilities { reserved: u64::MAX };
    assert!(all.has(Capabilities::COMMIT_NOTICE | Capabilities::STEADY_HEARTBEAT));
    let one = Capabilities { reserved: 1 };
    assert!(one.has(Capabilities::COMMIT_NOTICE) && !one.has(Capabilities::OURS.reserved));
}

/// W7: an error says what was wrong, in numbers.
#[test]
fn errors_say_what_was_wrong() {
    let errors = [
        (
            WireError::Length { announced: 4097, cap: 4096 },
            "a frame announces 4097 bytes, outside 2..=4096",
        ),
        (
            WireError::Version { got: 3, chosen: 1 },
            "a frame carries version 3, but version 1 was chosen",
        ),
        (WireError::Malformed, "a frame holds no message of this protocol"),
        (
            WireError::Leftover { message: "Begin", bytes: 5 },
            "5 bytes are left over behind Begin inside its frame",
        ),
    ];
    for (error, text) in errors {
        assert_eq!(error.to_string(), text);
    }
}

//! beyond-handoff's reading and writing of the wire against ours.

use std::io::ErrorKind;

use handoff::Error;
use handoff::frame::{read_message, write_message};
use handoff::protocol::Message as Theirs;
use handoff_core::short_name;
use handoff_core::wire::{Decoder, FRAME_CAP, Frame, WireError, encode};

/// The version that both speak.
const VERSION: u16 = 1;

/// W2, W3, W5, W6: both read the same messages of the same bytes, and write the same bytes.
///
/// The first byte: whether a stream follows, from before the handshake (0) or from after it (1), or the
/// bytes of a message (2).
pub fn differential(data: &[u8]) {
    let Some((head, bytes)) = data.split_first() else { return };
    match head % 3 {
        0 => stream(bytes, Decoder::new()),
        1 => stream(bytes, after_handshake()),
        _ => message(bytes),
    }
}

fn after_handshake() -> Decoder {
    let mut decoder = Decoder::new();
    decoder.handshake_done(VERSION);
    decoder
}

/// Both read until either is done.
fn stream(bytes: &[u8], mut decoder: Decoder) {
    let (mut to_us, mut to_them) = (bytes, bytes);
    loop {
        let ours = decoder.decode(&mut to_us);
        let theirs = read_message(&mut to_them);
        match (ours, theirs) {
            (Ok(Some(frame)), Ok(theirs)) => {
                same(&frame, &theirs);
                assert_eq!(to_us, to_them, "they take the same bytes for a frame");
            }
            (Ok(None), Err(Error::Io(error))) if error.kind() == ErrorKind::UnexpectedEof => return,
            (Err(error), theirs) => {
                assert!(is_known(error, &theirs), "{error:?}, but to them it is {theirs:?}");
                return;
            }
            (ours, theirs) => panic!("{ours:?}, but to them it is {theirs:?}"),
        }
    }
}

/// Whether they are known to make this of what we refuse.
fn is_known(error: WireError, theirs: &handoff::Result<(u16, Theirs)>) -> bool {
    match (error, theirs) {
        // Refused by both.
        (WireError::Length { announced, .. }, Err(Error::FrameMalformed(length))) => {
            announced < 2 && announced == *length
        }
        (WireError::Length { announced, .. }, Err(Error::FrameTooLarge(length))) => {
            announced > FRAME_CAP && announced == *length
        }
        (WireError::Malformed, Err(Error::Codec(_))) => true,
        // W2: before the handshake they have no lower cap, and read on.
        (WireError::Length { announced, cap }, _) => (cap..=FRAME_CAP).contains(&announced),
        // W5: they take any version for theirs, and read on.
        (WireError::Version { got, .. }, Ok((version, _))) => got == *version,
        (WireError::Version { .. }, Err(Error::Codec(_))) => true,
        // W6: they leave it.
        (WireError::Leftover { message, .. }, Ok((_, theirs))) => {
            format!("{theirs:?}").split(' ').next() == Some(message)
        }
        _ => false,
    }
}

/// The bytes of any message, in a frame of their length.
fn message(payload: &[u8]) {
    let Ok(length) = u32::try_from(payload.len() + 2) else { return };
    let frame = [&length.to_le_bytes()[..], &VERSION.to_le_bytes(), payload].concat();
    match after_handshake().decode(&mut &frame[..]) {
        Err(WireError::Leftover { bytes, .. }) => message(&payload[..payload.len() - bytes]),
        _ => stream(&frame, after_handshake()),
    }
}

/// Both say the same in all fields, and would write it in the same bytes.
fn same(ours: &Frame, (version, theirs): &(u16, Theirs)) {
    assert_eq!(ours.version, *version);
    // Names and fields of both are those of W3, in its order.
    assert_eq!(format!("{:?}", ours.message), format!("{theirs:?}"));
    let (mut by_us, mut by_them) = (Vec::new(), Vec::new());
    assert_eq!(encode(&ours.message, ours.version, &mut by_us), Ok(()));
    let written = write_message(&mut by_them, *version, theirs);
    assert!(written.is_ok(), "{} is not written: {written:?}", short_name(&ours.message));
    assert_eq!(by_us, by_them, "{theirs:?}");
}

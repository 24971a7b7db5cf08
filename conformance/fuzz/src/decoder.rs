//! The decoder against any bytes, cut anywhere.

use allocation_counter::measure;
use handoff_core::wire::{Decoder, Frame, WireError, encode};

/// What a stream amounts to.
#[derive(PartialEq, Debug)]
struct Reading {
    /// Each frame, and where it ends.
    frames: Vec<(Frame, usize)>,
    error: Option<WireError>,
    /// How many bytes of an unfinished frame are kept.
    buffered: usize,
}

/// W2, W5, W6, W7: a stream, read whole, in pieces and byte by byte.
///
/// The first byte: after how many frames the handshake is done, three for never, and four times the
/// number of pieces. Then a byte for the length of each piece, then the stream.
pub fn decoder(data: &[u8]) {
    let Some((&head, rest)) = data.split_first() else { return };
    let Some((pieces, stream)) = rest.split_at_checked(usize::from(head >> 2)) else { return };
    let done = Some(usize::from(head & 3)).filter(|&frames| frames < 3);
    let whole = read(stream, [], done);
    assert_eq!(whole, read(stream, pieces.iter().map(|&length| length.into()), done));
    assert_eq!(whole, read(stream, stream.iter().map(|_| 1), done));

    let mut from = 0;
    for (frame, end) in whole.frames {
        let bytes = &stream[from..end];
        from = end;
        let mut decoder = reader(Some(frame.version));
        let mut again = Vec::new();
        assert_eq!(encode(&frame.message, frame.version, &mut again), Ok(()));
        // A varint may be longer than it has to be, and is not written so.
        assert!(again.len() < bytes.len() || again == bytes, "{again:?} of {bytes:?}");
        assert_eq!(decoder.decode(&mut &again[..]), Ok(Some(frame)));
        // Without its last byte it is no message: nothing was left over.
        let body = &bytes[4..bytes.len() - 1];
        let short = [&(body.len() as u32).to_le_bytes(), body].concat();
        assert_eq!(decoder.decode(&mut &short[..]), Err(WireError::Malformed));
    }
}

fn reader(chosen: Option<u16>) -> Decoder {
    let mut decoder = Decoder::new();
    if let Some(chosen) = chosen {
        decoder.handshake_done(chosen);
    }
    decoder
}

/// Reads pieces of these lengths, and then all the rest.
fn read(stream: &[u8], pieces: impl IntoIterator<Item = usize>, done: Option<usize>) -> Reading {
    let mut decoder = reader((done == Some(0)).then_some(1));
    let mut reading = Reading { frames: Vec::new(), error: None, buffered: 0 };
    let (mut rest, mut from) = (stream, 0);
    for length in pieces.into_iter().chain([stream.len()]) {
        let (piece, behind) = rest.split_at(length.min(rest.len()));
        rest = behind;
        let mut input = piece;
        loop {
            let mut decoded = Ok(None);
            let cost = measure(|| decoded = decoder.decode(&mut input));
            let read = stream.len() - rest.len() - input.len();
            // An empty string is a byte, and its place in a list a few words, twice while the list grows.
            let received = read - from;
            assert!(cost.bytes_max <= 64 * received as u64, "{cost:?} for {received} bytes");
            assert!(decoder.buffered() <= received, "more is kept than has arrived");
            match decoded {
                Ok(Some(frame)) => {
                    assert_eq!(decoder.buffered(), 0);
                    from = read;
                    reading.frames.push((frame.clone(), read));
                    if done == Some(reading.frames.len()) {
                        decoder.handshake_done(frame.version);
                    }
                }
                Ok(None) => {
                    assert!(input.is_empty(), "all bytes are taken before more are asked for");
                    break;
                }
                Err(error) => {
                    assert_eq!(decoder.buffered(), 0);
                    assert_eq!(decoder.decode(&mut input), Err(error), "it is wrong for good");
                    reading.error = Some(error);
                    return reading;
                }
            }
        }
    }
    reading.buffered = decoder.buffered();
    reading
}

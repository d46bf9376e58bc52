//! Frames over memory: whole, cut, damaged and hostile.

use super::*;
use crate::wire::frame::{MAX_CONTROL_BYTES, MAX_PIECE_BYTES};
use crate::wire::message::{RefuseCode, Start, TokenMessage};
use proptest::prelude::*;
use tokio::io::{DuplexStream, duplex};

const RUN: PieceHeader = PieceHeader {
    session: 5,
    request: 6,
    layer: 7,
    token_start: 8,
    token_count: 9,
};

fn pair(buffer_bytes: usize) -> (FrameWriter<DuplexStream>, FrameReader<DuplexStream>) {
    let (near, far) = duplex(buffer_bytes);
    (FrameWriter::new(near), FrameReader::new(far))
}

/// The bytes of frames as `write` leaves them.
fn framed(header: Header, payload: &[u8]) -> Vec<u8> {
    [&header.sealed(payload).encode(), payload].concat()
}

#[tokio::test]
async fn frames_arrive_whole_and_are_counted_apart() {
    // A buffer of 13 bytes forces partial writes and reads everywhere.
    let (mut writer, mut reader) = pair(13);
    let payload: Vec<u8> = (0..1000).map(|i| i as u8).collect();
    let send = async {
        writer.write_piece(RUN, &payload).await.unwrap();
        let token = TokenMessage { index: 1, token: 2 };
        let sent = writer.write_control(Kind::Token, 5, 6, &token).await;
        sent.unwrap();
        writer.write_empty(Kind::Ping, 5, 77).await.unwrap();
        writer.write_ack(RUN).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let receive = async {
        let header = reader.read_header().await.unwrap();
        assert_eq!((header.kind, header.run()), (Kind::Piece, RUN));
        let mut place = vec![0; 1000];
        let read = reader.read_payload_into(&header, &mut place).await;
        read.unwrap();
        assert_eq!(place, payload);
        let (_, token) = reader.expect::<TokenMessage>(Kind::Token).await.unwrap();
        assert_eq!(token, TokenMessage { index: 1, token: 2 });
        assert_eq!(reader.expect_empty(Kind::Ping).await.unwrap().request, 77);
        assert_eq!(reader.expect_empty(Kind::Ack).await.unwrap().run(), RUN);
        let end = reader.read_header().await.unwrap_err();
        assert!(matches!(end, WireError::Closed));
    };
    tokio::join!(send, receive);
    let sent = writer.sent();
    assert_eq!(sent, reader.received());
    assert_eq!((sent.payload_bytes, sent.framing_bytes), (1000, 56));
    let token_bytes = r#"{"index":1,"token":2}"#.len() as u64;
    assert_eq!((sent.control_bytes, sent.pieces), (3 * 56 + token_bytes, 1));
    assert_eq!(sent.since(sent), WireBytes::default());
}

#[tokio::test]
async fn a_dropped_read_header_loses_nothing() {
    let (near, far) = duplex(100);
    let mut reader = FrameReader::new(far);
    let mut near = near;
    let bytes = framed(Header::new(Kind::Ping, 1, 2, 0), &[]);
    near.write_all(&bytes[..30]).await.unwrap();
    tokio::select! {
        biased;
        _ = reader.read_header() => panic!("half a header is no header"),
        () = tokio::task::yield_now() => {}
    }
    near.write_all(&bytes[30..]).await.unwrap();
    assert_eq!(reader.expect_empty(Kind::Ping).await.unwrap().request, 2);
}

#[tokio::test]
async fn a_cut_anywhere_is_an_error_that_says_where() {
    let bytes = framed(Header::for_run(Kind::Piece, RUN, 40), &[3; 40]);
    for cut in 0..bytes.len() {
        let mut reader = FrameReader::new(&bytes[..cut]);
        let error = match reader.read_header().await {
            Err(error) => error,
            Ok(header) => {
                let mut place = [0; 40];
                let read = reader.read_payload_into(&header, &mut place).await;
                read.unwrap_err()
            }
        };
        match (cut, error) {
            (0, WireError::Closed) => {}
            (1..56, WireError::ClosedAmid { what }) => assert_eq!(what, "a frame header"),
            (56.., WireError::ClosedAmid { what }) => assert_eq!(what, "a payload"),
            (cut, error) => panic!("cut at {cut}: {error}"),
        }
    }
}

#[tokio::test]
async fn refuse_and_failed_come_through_in_the_peers_words() {
    let (mut writer, mut reader) = pair(4096);
    let refuse = Refuse {
        code: RefuseCode::Busy,
        reason: "full\x1b[2J".to_owned(),
    };
    let sent = writer.write_control(Kind::Refuse, 1, 1, &refuse).await;
    sent.unwrap();
    let error = reader.expect::<Start>(Kind::Start).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the peer refused (busy), in its words: full [2J"
    );

    let failed = Failed {
        reason: "no memory".to_owned(),
        checksum: true,
    };
    let sent = writer.write_control(Kind::Failed, 1, 1, &failed).await;
    sent.unwrap();
    let error = reader.expect_empty(Kind::Pong).await.unwrap_err();
    assert!(
        matches!(error, WireError::PeerFailed { checksum: true, reason } if reason == "no memory")
    );

    writer.write_empty(Kind::Cancel, 1, 1).await.unwrap();
    let error = reader.expect_empty(Kind::Pong).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the peer sent CANCEL where PONG is due: build both nodes from one commit"
    );
}

#[tokio::test]
async fn damage_is_named_and_the_stream_goes_on() {
    let mut bytes = framed(Header::for_run(Kind::Piece, RUN, 40), &[3; 40]);
    bytes[56 + 39] ^= 1;
    bytes.extend(framed(Header::new(Kind::Start, 5, 6, 2), b"{]"));
    bytes.extend(framed(Header::for_run(Kind::Piece, RUN, 40), &[3; 40]));
    bytes.extend(framed(Header::new(Kind::Pong, 5, 6, 0), &[]));
    let mut reader = FrameReader::new(&bytes[..]);

    let header = reader.read_header().await.unwrap();
    let read = reader.read_payload_into(&header, &mut [0; 40]).await;
    let error = read.unwrap_err();
    assert!(matches!(
        error,
        WireError::Checksum {
            layer: 7,
            token_start: 8,
            token_count: 9,
            ..
        }
    ));
    let error = reader.expect::<Start>(Kind::Start).await.unwrap_err();
    assert!(matches!(
        error,
        WireError::Json {
            kind: Kind::Start,
            ..
        }
    ));
    let header = reader.read_header().await.unwrap();
    let wrong_place = reader.read_payload_into(&header, &mut [0; 41]).await;
    assert!(matches!(
        wrong_place.unwrap_err(),
        WireError::Length {
            got: 40,
            want: 41,
            ..
        }
    ));
    reader.discard_payload(&header).await.unwrap();
    reader.expect_empty(Kind::Pong).await.unwrap();
}

#[tokio::test]
async fn a_parse_error_quotes_the_peer_harmlessly() {
    let json = r#"{"code":"\u001b[2J","reason":""}"#.as_bytes();
    let bytes = framed(Header::new(Kind::Refuse, 0, 0, json.len() as u64), json);
    let mut reader = FrameReader::new(&bytes[..]);
    let text = reader.expect::<Refuse>(Kind::Refuse).await.unwrap_err();
    let text = text.to_string();
    assert!(text.contains("[2J") && !text.contains('\x1b'), "{text:?}");
}

#[tokio::test]
async fn nothing_over_a_limit_is_sent() {
    let (mut writer, reader) = pair(16);
    let piece = vec![0; MAX_PIECE_BYTES as usize + 1];
    let error = writer.write_piece(RUN, &piece).await.unwrap_err();
    assert!(matches!(
        error,
        WireError::TooLarge {
            limit: MAX_PIECE_BYTES,
            ..
        }
    ));
    let text = "x".repeat(MAX_CONTROL_BYTES as usize);
    let sent = writer.write_control(Kind::Open, 1, 1, &text).await;
    assert!(matches!(sent.unwrap_err(), WireError::TooLarge { .. }));
    assert_eq!(writer.sent(), WireBytes::default());
    drop(writer);
    let mut rest = Vec::new();
    let FrameReader { mut inner, .. } = reader;
    inner.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}

/// Shorter than any test would wait, and than a machine under load needs for nothing.
const SOON: Pace = Pace {
    grace: std::time::Duration::from_millis(20),
    bytes_per_s: u64::MAX,
};

#[tokio::test]
async fn a_frame_that_does_not_go_on_is_given_up_and_one_that_has_not_begun_is_not() {
    let (near, far) = duplex(1 << 16);
    let mut reader = FrameReader::new(far).limited(SOON, FrameLimits::WIRE);
    let waiting = tokio::time::timeout(4 * SOON.grace, reader.read_header()).await;
    assert!(waiting.is_err(), "nothing has begun");
    let frame = framed(Header::new(Kind::Start, 5, 6, 10), b"0123456789");
    for (sent, part) in [
        (3, "56 bytes"),
        (HEADER_BYTES, "10 bytes"),
        (frame.len() - 1, "10 bytes"),
    ] {
        let (mut near, far) = duplex(1 << 16);
        let mut reader = FrameReader::new(far).limited(SOON, FrameLimits::WIRE);
        near.write_all(&frame[..sent]).await.unwrap();
        let error = reader.expect::<Start>(Kind::Start).await.unwrap_err();
        assert!(
            matches!(error, WireError::TooSlow { .. }),
            "{sent}: {error}"
        );
        let left = part.replace("56", "53");
        assert!(error.to_string().contains(&left), "{sent}: {error}");
        assert!(error.refuse_code().is_some());
    }
    drop(near);
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_given_up() {
    let (near, _far) = duplex(100);
    let mut writer = FrameWriter::new(near).paced(SOON);
    writer.write_empty(Kind::Ping, 5, 1).await.unwrap();
    let error = writer.write_empty(Kind::Ping, 5, 2).await.unwrap_err();
    assert!(
        matches!(error, WireError::NotReading { bytes: 56, .. }),
        "{error}"
    );
    // Nothing more can be said over it.
    assert!(error.refuse_code().is_none());
}

#[tokio::test]
async fn frames_over_the_readers_own_limits_are_refused_before_they_are_read() {
    let limits = FrameLimits {
        control_bytes: 9,
        piece_bytes: 10,
    };
    for (header, fits) in [
        (Header::new(Kind::Start, 5, 6, 9), true),
        (Header::new(Kind::Start, 5, 6, 10), false),
        (Header::for_run(Kind::Piece, RUN, 10), true),
        (Header::for_run(Kind::Piece, RUN, 11), false),
    ] {
        let bytes = header.encode();
        let mut reader = FrameReader::new(&bytes[..]).limited(Pace::USUAL, limits);
        let read = reader.read_header().await;
        assert_eq!(read.is_ok(), fits, "{header:?}");
        let too_large = matches!(read, Err(WireError::TooLarge { flag: Some(_), .. }));
        assert_eq!(too_large, !fits);
    }
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        tail in proptest::collection::vec(any::<u8>(), 0..300),
        number in 0u16..20,
        length in prop_oneof![0u64..300, any::<u64>()],
    ) {
        let mut bytes = Vec::from(Header::new(Kind::Hello, 1, 1, length).encode());
        bytes[10..12].copy_from_slice(&number.to_le_bytes());
        bytes.extend(tail);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let error = runtime.block_on(async {
            let mut reader = FrameReader::new(&bytes[..]);
            reader.expect::<serde_json::Value>(Kind::Hello).await.unwrap_err()
        });
        prop_assert!(!error.to_string().is_empty());
    }
}

//! The handshake over memory: agreement, every refusal, and strangers.

use super::*;
use crate::wire::frame::{HEADER_BYTES, Header, MAGIC};
use crate::wire::message::{BuildIdentity, Limits, ModelIdentity, NodeIdentity, RefuseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};

type Reader = FrameReader<ReadHalf<DuplexStream>>;
type Writer = FrameWriter<WriteHalf<DuplexStream>>;
type Outcome = Result<Session, WireError>;

fn end(stream: DuplexStream) -> (Reader, Writer) {
    let (reader, writer) = split(stream);
    (FrameReader::new(reader), FrameWriter::new(writer))
}

fn introduction() -> Introduction {
    let layer = LayerLayout {
        n_kv_heads: 3,
        head_dim: 64,
        window: None,
    };
    Introduction {
        build: BuildIdentity {
            tool_version: "0.1.0".to_owned(),
            git_revision: "abc".to_owned(),
            target: "x86_64".to_owned(),
            instruction_set: "avx2".to_owned(),
            threads: 2,
        },
        node: NodeIdentity {
            host: "a".to_owned(),
            machine: "m".to_owned(),
        },
        model: Some(ModelIdentity {
            name: "smollm2".to_owned(),
            weights: "q8_0".to_owned(),
            fingerprint: "f00d".to_owned(),
        }),
        layout: Some(CacheLayout::new(vec![layer; 4])),
        limits: Limits {
            max_tokens: 4096,
            max_piece_bytes: 1 << 20,
            max_cache_bytes: 1 << 30,
        },
        environment: serde_json::json!({"cpu": "some"}),
    }
}

fn link_only() -> Introduction {
    Introduction {
        model: None,
        layout: None,
        ..introduction()
    }
}

fn token(text: &str) -> Token {
    Token::from_bytes(text.as_bytes()).unwrap()
}

/// Both sides at once; each closes its end when it is done.
async fn shake(
    prefill: (&Introduction, Option<&Token>),
    decode: (&Introduction, Option<&Token>),
) -> (Outcome, Outcome) {
    let (near, far) = duplex(4096);
    let prefill_side = async {
        let (mut reader, mut writer) = end(near);
        initiate(
            &mut reader,
            &mut writer,
            prefill.0,
            prefill.1,
            HANDSHAKE_TIMEOUT,
        )
        .await
    };
    let decode_side = async {
        let (mut reader, mut writer) = end(far);
        respond(
            &mut reader,
            &mut writer,
            decode.0,
            decode.1,
            HANDSHAKE_TIMEOUT,
        )
        .await
    };
    tokio::join!(prefill_side, decode_side)
}

/// What the decode node makes of raw bytes, and what it answers.
async fn respond_to(bytes: &[u8], token: Option<&Token>) -> (WireError, Vec<u8>) {
    let (mut near, far) = duplex(1 << 20);
    let stranger = async {
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let decode_side = async {
        let (mut reader, mut writer) = end(far);
        let outcome = respond(
            &mut reader,
            &mut writer,
            &introduction(),
            token,
            HANDSHAKE_TIMEOUT,
        )
        .await;
        outcome.unwrap_err()
    };
    let (answer, error) = tokio::join!(stranger, decode_side);
    (error, answer)
}

fn refused(outcome: Outcome, want: RefuseCode) -> String {
    match outcome {
        Err(WireError::Refused { code, reason }) if code == want => reason,
        other => panic!("refused ({want}) is wanted, not {other:?}"),
    }
}

#[tokio::test]
async fn two_like_nodes_agree_on_a_session() {
    let theirs = Introduction {
        build: BuildIdentity {
            instruction_set: "neon".to_owned(),
            threads: 20,
            git_revision: "other".to_owned(),
            ..introduction().build
        },
        ..introduction()
    };
    let secret = token("0123456789abcdef");
    for token in [None, Some(&secret)] {
        let (prefill, decode) = shake((&introduction(), token), (&theirs, token)).await;
        let (prefill, decode) = (prefill.unwrap(), decode.unwrap());
        assert_eq!(prefill.id, decode.id);
        assert_eq!(prefill.peer, theirs);
        let without_environment = Introduction {
            environment: serde_json::Value::Null,
            ..introduction()
        };
        assert_eq!(decode.peer, without_environment);
    }
    let (prefill, decode) = shake((&link_only(), None), (&link_only(), None)).await;
    assert!(prefill.is_ok() && decode.is_ok());
}

#[tokio::test]
async fn the_connection_is_usable_after_the_handshake() {
    let (near, far) = duplex(4096);
    let (mut near_reader, mut near_writer) = end(near);
    let (mut far_reader, mut far_writer) = end(far);
    let ours = introduction();
    let (prefill, decode) = tokio::join!(
        initiate(
            &mut near_reader,
            &mut near_writer,
            &ours,
            None,
            HANDSHAKE_TIMEOUT
        ),
        respond(
            &mut far_reader,
            &mut far_writer,
            &ours,
            None,
            HANDSHAKE_TIMEOUT
        )
    );
    let id = prefill.unwrap().id;
    assert_eq!(id, decode.unwrap().id);
    near_writer.write_empty(Kind::Ping, id, 1).await.unwrap();
    assert_eq!(
        far_reader.expect_empty(Kind::Ping).await.unwrap().session,
        id
    );
}

#[tokio::test]
async fn a_wrong_token_is_refused_and_never_shown() {
    let (ours, theirs) = (token("0123456789abcdef"), token("fedcba9876543210"));
    let node = introduction();
    let (prefill, decode) = shake((&node, Some(&ours)), (&node, Some(&theirs))).await;
    let error = prefill.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the decode node did not prove")
    );
    assert_eq!(refused(decode, RefuseCode::Auth), error.to_string());
}

#[tokio::test]
async fn a_missing_token_says_where_to_give_it() {
    let secret = token("0123456789abcdef");
    let node = introduction();
    let (prefill, decode) = shake((&node, None), (&node, Some(&secret))).await;
    let error = decode.unwrap_err().to_string();
    assert_eq!(
        error,
        "the decode node demands a shared token and the prefill node has none: give the prefill node the same one with --token-file or DISAGG_TOKEN"
    );
    assert_eq!(refused(prefill, RefuseCode::Auth), error);

    let (prefill, decode) = shake((&node, Some(&secret)), (&node, None)).await;
    let error = decode.unwrap_err().to_string();
    assert!(error.starts_with("the prefill node demands a shared token"));
    assert_eq!(refused(prefill, RefuseCode::Auth), error);
}

/// A prefill node that holds no token, but says that it does; `proof` makes its AUTH from the
/// decode node's HELLO and its own nonce.
async fn impostor(proof: impl Fn(&Hello) -> Option<Hex32>) -> (WireError, Outcome) {
    let secret = token("0123456789abcdef");
    let (near, far) = duplex(4096);
    let prefill_side = async {
        let (mut reader, mut writer) = end(near);
        let fake = hello(&introduction(), Some(&secret));
        let sent = writer.write_control(Kind::Hello, 0, 0, &fake).await;
        sent.unwrap();
        let (header, theirs) = reader.expect::<Hello>(Kind::Hello).await.unwrap();
        let auth = Auth {
            proof: proof(&theirs),
        };
        let sent = writer.write_control(Kind::Auth, header.session, 0, &auth);
        sent.await.unwrap();
        reader.expect_empty(Kind::Ready).await.unwrap_err()
    };
    let decode_side = async {
        let (mut reader, mut writer) = end(far);
        respond(
            &mut reader,
            &mut writer,
            &introduction(),
            Some(&secret),
            HANDSHAKE_TIMEOUT,
        )
        .await
    };
    tokio::join!(prefill_side, decode_side)
}

#[tokio::test]
async fn a_reflected_a_made_up_and_a_missing_proof_are_refused() {
    let reflected = impostor(|theirs| theirs.proof).await;
    let made_up = impostor(|_| Some(Hex32([7; 32]))).await;
    let missing = impostor(|_| None).await;
    for (prefill, decode) in [reflected, made_up, missing] {
        let error = decode.unwrap_err();
        assert!(matches!(error, WireError::Auth(_)));
        assert!(
            error
                .to_string()
                .starts_with("the prefill node did not prove")
        );
        assert!(matches!(
            prefill,
            WireError::Refused {
                code: RefuseCode::Auth,
                ..
            }
        ));
    }
}

#[tokio::test]
async fn an_impostor_decode_node_is_refused_by_the_prefill_node() {
    let secret = token("0123456789abcdef");
    for proof in [None, Some(Hex32([7; 32]))] {
        let (near, far) = duplex(4096);
        let decode_side = async {
            let (mut reader, mut writer) = end(far);
            reader.expect::<Hello>(Kind::Hello).await.unwrap();
            let mut fake = hello(&introduction(), Some(&secret));
            fake.proof = proof;
            let sent = writer.write_control(Kind::Hello, 1, 0, &fake).await;
            sent.unwrap();
            reader.expect::<Auth>(Kind::Auth).await.unwrap_err()
        };
        let prefill_side = async {
            let (mut reader, mut writer) = end(near);
            initiate(
                &mut reader,
                &mut writer,
                &introduction(),
                Some(&secret),
                HANDSHAKE_TIMEOUT,
            )
            .await
        };
        let (prefill, decode) = tokio::join!(prefill_side, decode_side);
        assert!(matches!(prefill.unwrap_err(), WireError::Auth(_)));
        assert!(matches!(
            decode,
            WireError::Refused {
                code: RefuseCode::Auth,
                ..
            }
        ));
    }
}

#[tokio::test]
async fn other_models_are_refused_with_both_named() {
    let ours = introduction();
    let other = |change: fn(&mut ModelIdentity)| {
        let mut theirs = introduction();
        theirs.model.as_mut().map(change).unwrap();
        theirs
    };
    let fingerprint = other(|model| model.fingerprint = "beef".to_owned());
    let weights = other(|model| model.weights = "f32".to_owned());
    for (theirs, word) in [
        (fingerprint, "beef"),
        (weights, "f32"),
        (link_only(), "no model"),
    ] {
        let (prefill, decode) = shake((&ours, None), (&theirs, None)).await;
        let error = decode.unwrap_err();
        assert!(matches!(error, WireError::ModelMismatch { .. }));
        let text = error.to_string();
        assert!(text.contains(word) && text.contains("f00d"), "{text}");
        assert_eq!(refused(prefill, RefuseCode::Model), text);
    }
    let renamed = other(|model| model.name = "another name".to_owned());
    assert!(compatible(&ours, &renamed).is_ok());
}

#[tokio::test]
async fn other_layouts_are_refused_with_the_difference_named() {
    let ours = introduction();
    let changed = |change: fn(&mut CacheLayout)| {
        let mut theirs = introduction();
        theirs.layout.as_mut().map(change).unwrap();
        theirs
    };
    for (theirs, words) in [
        (
            changed(|layout| layout.layers[2].window = Some(512)),
            "3 KV heads of 64 with a window of 512 in layer 2",
        ),
        (
            changed(|layout| layout.layers.truncate(3)),
            "decode node has 3 layers",
        ),
        (
            changed(|layout| layout.arrangement = "head-major".to_owned()),
            "head-major",
        ),
        (
            Introduction {
                layout: None,
                ..introduction()
            },
            "decode node has no cache",
        ),
    ] {
        let (prefill, decode) = shake((&ours, None), (&theirs, None)).await;
        let text = decode.unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
        assert_eq!(refused(prefill, RefuseCode::Layout), text);
    }
}

#[tokio::test]
async fn a_piece_limit_that_carries_no_token_is_refused() {
    // One token of a layer is 2 x 3 x 64 elements of 4 bytes.
    for (limit, enough) in [(1536, true), (1535, false), (0, false)] {
        let mut ours = introduction();
        ours.limits.max_piece_bytes = limit;
        let (prefill, decode) = shake((&ours, None), (&introduction(), None)).await;
        assert_eq!((prefill.is_ok(), decode.is_ok()), (enough, enough));
    }
    let mut ours = link_only();
    ours.limits.max_piece_bytes = 0;
    assert!(compatible(&ours, &link_only()).is_err());
}

/// A HELLO header of another wire version and of a size that only that version knows.
fn hello_of_version(version: u16) -> Vec<u8> {
    let mut bytes = vec![0xee; 200];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&version.to_le_bytes());
    bytes
}

#[tokio::test]
async fn another_version_is_refused_by_number_on_both_sides() {
    let (error, answer) = respond_to(&hello_of_version(2), None).await;
    assert!(matches!(error, WireError::Version { got: 2, want: 1 }));
    let mut reader = FrameReader::new(&answer[..]);
    let told = reader.expect_empty(Kind::Ready).await.unwrap_err();
    assert!(matches!(
        told,
        WireError::Refused {
            code: RefuseCode::Version,
            ..
        }
    ));

    let (near, mut far) = duplex(1 << 16);
    far.write_all(&hello_of_version(3)).await.unwrap();
    far.shutdown().await.unwrap();
    let prefill_side = async {
        let (mut reader, mut writer) = end(near);
        initiate(
            &mut reader,
            &mut writer,
            &introduction(),
            None,
            HANDSHAKE_TIMEOUT,
        )
        .await
    };
    let mut received = Vec::new();
    let (outcome, received_bytes) = tokio::join!(prefill_side, far.read_to_end(&mut received));
    assert!(received_bytes.unwrap() > 0);
    assert!(matches!(
        outcome.unwrap_err(),
        WireError::Version { got: 3, want: 1 }
    ));
}

#[tokio::test]
async fn strangers_get_no_answer() {
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let (error, answer) = respond_to(request, None).await;
    assert!(
        matches!(&error, WireError::BadMagic { looks_like } if looks_like == "an HTTP request")
    );
    assert!(error.to_string().contains("check the address and the port"));
    assert!(answer.is_empty());
}

#[tokio::test]
async fn a_tls_handshake_is_answered_in_plain_so_that_its_peer_knows() {
    let (error, answer) = respond_to(b"\x16\x03\x01\x02\x00", None).await;
    assert!(matches!(&error, WireError::Auth(why) if why.contains("a TLS handshake")));
    let header = Header::decode(answer[..HEADER_BYTES].try_into().unwrap()).unwrap();
    assert_eq!(header.kind, Kind::Refuse);
}

#[tokio::test]
async fn lengths_kinds_and_json_that_make_no_sense_are_refused() {
    let huge = Header::new(Kind::Hello, 0, 0, u64::MAX)
        .sealed(&[])
        .encode();
    let (error, _) = respond_to(&huge, None).await;
    assert!(matches!(
        error,
        WireError::TooLarge {
            got: u64::MAX,
            limit: MAX_HELLO_BYTES,
            ..
        }
    ));

    let early = Header::new(Kind::Join, 9, 0, 0).sealed(&[]).encode();
    let (error, _) = respond_to(&early, None).await;
    assert!(matches!(
        error,
        WireError::Unexpected {
            got: Kind::Join,
            want: Kind::Hello
        }
    ));

    let json = br#"{"build": 7}"#;
    let header = Header::new(Kind::Hello, 0, 0, json.len() as u64).sealed(json);
    let (error, answer) = respond_to(&[&header.encode()[..], json].concat(), None).await;
    assert!(matches!(
        error,
        WireError::Json {
            kind: Kind::Hello,
            ..
        }
    ));
    let mut reader = FrameReader::new(&answer[..]);
    let told = reader.expect_empty(Kind::Ready).await.unwrap_err();
    assert!(matches!(
        told,
        WireError::Refused {
            code: RefuseCode::BadRequest,
            ..
        }
    ));
}

#[tokio::test]
async fn a_peer_that_leaves_midway_is_named() {
    let payload = serde_json::to_vec(&hello(&introduction(), None)).unwrap();
    let header = Header::new(Kind::Hello, 0, 0, payload.len() as u64).sealed(&payload);
    let whole = [&header.encode()[..], &payload].concat();
    for cut in [
        0,
        1,
        HEADER_BYTES - 1,
        HEADER_BYTES,
        HEADER_BYTES + 1,
        whole.len() - 1,
    ] {
        let (error, _) = respond_to(&whole[..cut], None).await;
        let named = match cut {
            0 => matches!(error, WireError::Closed),
            _ => matches!(error, WireError::ClosedAmid { .. }),
        };
        assert!(named, "cut at {cut}: {error}");
    }
    let (error, _) = respond_to(&whole, None).await;
    assert!(
        matches!(error, WireError::Closed),
        "AUTH never came: {error}"
    );
}

#[tokio::test]
async fn a_silent_peer_ends_in_a_timeout() {
    let limit = Duration::from_millis(5);
    let (_silent, far) = duplex(4096);
    let (mut reader, mut writer) = end(far);
    let ours = introduction();
    let agreed = agree_as_decode_node(&mut reader, &mut writer, &ours, None);
    let error = within(limit, None, agreed).await.unwrap_err();
    assert!(matches!(error, WireError::Timeout { after, .. } if after == limit));
}

#[tokio::test]
async fn a_frame_of_another_session_is_refused() {
    let (near, far) = duplex(4096);
    let ours = introduction();
    let prefill_side = async {
        let (mut reader, mut writer) = end(near);
        let sent = writer
            .write_control(Kind::Hello, 0, 0, &hello(&ours, None))
            .await;
        sent.unwrap();
        let (header, _) = reader.expect::<Hello>(Kind::Hello).await.unwrap();
        let auth = Auth { proof: None };
        let sent = writer.write_control(Kind::Auth, !header.session, 0, &auth);
        sent.await.unwrap();
        reader.expect_empty(Kind::Ready).await.unwrap_err()
    };
    let decode_side = async {
        let (mut reader, mut writer) = end(far);
        respond(&mut reader, &mut writer, &ours, None, HANDSHAKE_TIMEOUT).await
    };
    let (prefill, decode) = tokio::join!(prefill_side, decode_side);
    assert!(matches!(
        decode.unwrap_err(),
        WireError::ForeignSession { .. }
    ));
    assert!(matches!(
        prefill,
        WireError::Refused {
            code: RefuseCode::BadRequest,
            ..
        }
    ));
}

/// A decode node that closed at once would cut the peer off in the middle of its HELLO, and the
/// peer would report a broken connection instead of the reason.
#[tokio::test]
async fn a_refusal_waits_for_a_peer_that_is_still_sending() {
    let (mut near, far) = duplex(512);
    let decode_side = async {
        let (mut reader, mut writer) = end(far);
        respond(
            &mut reader,
            &mut writer,
            &introduction(),
            None,
            HANDSHAKE_TIMEOUT,
        )
        .await
    };
    let prefill_side = async {
        let mut bytes = hello_of_version(2);
        bytes.resize(100_000, 0xee);
        near.write_all(&bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let mut reader = FrameReader::new(near);
        reader.expect_empty(Kind::Ready).await.unwrap_err()
    };
    let (decode, prefill) = tokio::join!(decode_side, prefill_side);
    assert!(matches!(decode.unwrap_err(), WireError::Version { .. }));
    let code = RefuseCode::Version;
    assert!(matches!(prefill, WireError::Refused { code: told, .. } if told == code));
}

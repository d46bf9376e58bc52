//! The codec's promises: roundtrip, every bit covered, every limit enforced.

use super::*;
use proptest::prelude::*;

fn any_header() -> impl Strategy<Value = Header> {
    let kind = (0..Kind::ALL.len()).prop_map(|i| Kind::ALL[i]);
    let numbers = any::<(u32, u64, u64, u32, u32, u32, u32)>();
    (kind, numbers, any::<u64>()).prop_map(|(kind, n, length)| Header {
        kind,
        flags: n.0,
        session: n.1,
        request: n.2,
        layer: n.3,
        token_start: n.4,
        token_count: n.5,
        payload_bytes: length % (kind.max_payload_bytes() + 1),
        crc32c: n.6,
    })
}

/// A header decoded and its payload checked, as a reader does.
fn accept(bytes: &[u8; HEADER_BYTES], payload: &[u8]) -> Result<Header, WireError> {
    let header = Header::decode(bytes)?;
    header.verify(payload)?;
    Ok(header)
}

proptest! {
    #[test]
    fn headers_roundtrip(header in any_header()) {
        prop_assert_eq!(Header::decode(&header.encode()).unwrap(), header);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), HEADER_BYTES), ours: bool) {
        let mut bytes: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
        if ours {
            // Past magic and version, so that the rest of the header is read as well.
            bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
            bytes[MAGIC.len()..PREFIX_BYTES].copy_from_slice(&WIRE_VERSION.to_le_bytes());
        }
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert!(header.payload_bytes <= header.kind.max_payload_bytes());
            prop_assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn every_bit_flip_is_caught(payload in proptest::collection::vec(any::<u8>(), 1..200), run: (u64, u64, u32, u32, u32)) {
        let run = PieceHeader { session: run.0, request: run.1, layer: run.2, token_start: run.3, token_count: run.4 };
        let header = Header::for_run(Kind::Piece, run, payload.len() as u64).sealed(&payload);
        let sound = header.encode();
        prop_assert_eq!(accept(&sound, &payload).unwrap(), header);
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = sound;
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(accept(&bytes, &payload).is_err(), "header bit {} slipped through", bit);
        }
        for bit in 0..payload.len() * 8 {
            let mut damaged = payload.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = accept(&sound, &damaged).unwrap_err();
            let named = matches!(error, WireError::Checksum { .. });
            prop_assert!(named);
        }
    }

    #[test]
    fn a_checksum_in_parts_is_the_checksum_in_one(payload in proptest::collection::vec(any::<u8>(), 0..5000), cut: prop::sample::Index) {
        let header = Header::new(Kind::Piece, 1, 2, payload.len() as u64).sealed(&payload);
        let cut = cut.index(payload.len() + 1);
        let mut checksum = Checksum::start(&header);
        checksum.update(&payload[..cut]);
        checksum.update(&payload[cut..]);
        prop_assert!(header.verify_checksum(checksum).is_ok());
    }
}

#[test]
fn the_checksum_is_crc32c() {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(b"123456789");
    assert_eq!(digest.finalize() as u32, 0xe306_9283);
}

#[test]
fn the_layout_is_the_documented_one() {
    let header = Header {
        flags: 0x0403_0201,
        layer: 3,
        token_start: 4,
        token_count: 5,
        crc32c: 0xaabb_ccdd,
        ..Header::new(Kind::Piece, 1, 2, 6)
    };
    let mut want = Vec::from(MAGIC);
    want.extend([1, 0, 8, 0, 1, 2, 3, 4]);
    want.extend([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    want.extend([3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0]);
    want.extend([0xdd, 0xcc, 0xbb, 0xaa, 6, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(header.encode()[..], want[..]);
}

#[test]
fn every_kind_has_a_limit_that_is_enforced() {
    for &kind in Kind::ALL {
        assert_eq!(Kind::from_number(kind as u16), Some(kind));
        let limit = kind.max_payload_bytes();
        assert!(check_length(kind, limit).is_ok());
        let error = Header::decode(&Header::new(kind, 0, 0, limit + 1).encode()).unwrap_err();
        assert!(matches!(error, WireError::TooLarge { got, .. } if got == limit + 1));
    }
    let mut bytes = Header::new(Kind::Ping, 0, 0, 0).encode();
    bytes[10..12].copy_from_slice(&999u16.to_le_bytes());
    let error = Header::decode(&bytes).unwrap_err();
    assert!(matches!(error, WireError::Kind { got: 999 }));
}

#[test]
fn version_is_told_by_number_before_anything_else() {
    let mut bytes = [0xff; HEADER_BYTES];
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes[MAGIC.len()..PREFIX_BYTES].copy_from_slice(&2u16.to_le_bytes());
    assert_eq!(
        Header::decode(&bytes).unwrap_err().to_string(),
        "peer speaks wire version 2, this build speaks 1: build both nodes from one commit"
    );
    assert!(check_prefix(&bytes[..PREFIX_BYTES - 1]).is_ok());
}

#[test]
fn strangers_are_named() {
    for (bytes, name) in [
        (&b"GET / HTTP/1.1\r\n"[..], "an HTTP request"),
        (b"HTTP/1.1 400", "an HTTP response"),
        (b"SSH-2.0-x", "an SSH greeting"),
        (b"\x15\x03\x03\x00\x02", "a TLS alert"),
        (b"\x00\x01", "bytes [00, 01]"),
    ] {
        let error = check_prefix(bytes).unwrap_err();
        assert!(matches!(error, WireError::BadMagic { looks_like } if looks_like == name));
    }
}

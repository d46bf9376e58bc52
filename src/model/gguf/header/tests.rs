//! Every limit is crossed, and what a file of the format may be is taken.

use super::*;
use proptest::prelude::*;

const U8: u32 = 0;
const U32: u32 = 4;
const F64: u32 = 12;

fn length(n: u64) -> Vec<u8> {
    n.to_le_bytes().to_vec()
}

fn text(text: &str) -> Vec<u8> {
    [length(text.len() as u64), text.into()].concat()
}

fn list(kind: u32, n: u64, values: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &length(n), values].concat()
}

fn metadata(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

fn tensor(name: &str, dimensions: u32) -> Vec<u8> {
    let sizes = length(2).repeat(dimensions as usize);
    [&text(name)[..], &dimensions.to_le_bytes(), &sizes, &[0; 12]].concat()
}

/// A header of these tensors and metadata.
fn header(tensors: &[Vec<u8>], metadata: &[Vec<u8>]) -> Vec<u8> {
    let counts = [length(tensors.len() as u64), length(metadata.len() as u64)].concat();
    let start = [&b"GGUF\x03\0\0\0"[..], &counts].concat();
    [start, metadata.concat(), tensors.concat()].concat()
}

fn checked(bytes: &[u8]) -> Result<(), String> {
    check(bytes, bytes.len() as u64)
}

fn is_refused(bytes: &[u8], part: &str) {
    let error = checked(bytes).unwrap_err();
    assert!(error.contains(part), "{part}: {error}");
}

#[test]
fn every_kind_of_value_is_walked_over() {
    let nested = list(LIST, 2, &list(U8, 3, &[1, 2, 3]).repeat(2));
    let all = [
        metadata("a", U8, &[1]),
        metadata("b", F64, &[0; 8]),
        metadata("c", STRING, &text("é")),
        metadata("d", LIST, &list(STRING, 2, &text("x").repeat(2))),
        metadata("e", LIST, &nested),
        metadata(ALIGNMENT, U32, &64u32.to_le_bytes()),
    ];
    let whole = header(&[tensor("t", 0), tensor("u", 4)], &all);
    checked(&whole).unwrap();
    for cut in 0..whole.len() {
        checked(&whole[..cut]).unwrap_err();
    }
}

#[test]
fn lengths_beyond_the_file_or_the_limits_are_refused_unread() {
    let huge = length(1 << 40);
    is_refused(
        &header(&[], &[metadata("a", STRING, &huge)]),
        "the file has 0",
    );
    is_refused(&header(&[], std::slice::from_ref(&huge)), "bytes of a name");
    let values = list(U8, MAX_LISTED_VALUES + 1, &[]);
    is_refused(
        &header(&[], &[metadata("a", LIST, &values)]),
        "values in lists",
    );
    // Twice half of it is too much as well.
    let half = MAX_LISTED_VALUES / 2 + 1;
    let values = list(U8, half, &vec![0; half as usize]);
    let twice = [metadata("a", LIST, &values), metadata("b", LIST, &values)];
    is_refused(&header(&[], &twice), "values in lists");
    let counts = |tensors, metadata| {
        [
            b"GGUF\x03\0\0\0".to_vec(),
            length(tensors),
            length(metadata),
        ]
        .concat()
    };
    is_refused(&counts(MAX_ENTRIES + 1, 0), "65537 tensors");
    is_refused(&counts(0, u64::MAX), "metadata, wanted at most");
    is_refused(
        &header(&[tensor("t", MAX_DIMENSIONS + 1)], &[]),
        "5 dimensions",
    );
}

#[test]
fn a_header_that_never_ends_is_not_read_to_its_end() {
    let start = header(&[], &[metadata("a", STRING, &length(MAX_HEADER_BYTES))]);
    let error = check(&start[..], u64::MAX).unwrap_err();
    assert!(error.contains("more than 67108864 bytes"), "{error}");
}

#[test]
fn deep_lists_are_refused() {
    let nested = |depth| (0..depth).fold(list(U8, 0, &[]), |inner, _| list(LIST, 1, &inner));
    checked(&header(
        &[],
        &[metadata("a", LIST, &nested(MAX_LIST_DEPTH - 1))],
    ))
    .unwrap();
    let deep = header(&[], &[metadata("a", LIST, &nested(MAX_LIST_DEPTH))]);
    is_refused(&deep, "lists in lists");
    let unknown = metadata("a", 13, &[]);
    is_refused(&header(&[], &[unknown]), "type 13");
}

#[test]
fn what_stands_twice_is_refused() {
    let twice = [metadata("a", U8, &[1]), metadata("a", U8, &[2])];
    is_refused(&header(&[], &twice), "metadata a stands twice");
    is_refused(
        &header(&[tensor("t", 1), tensor("t", 1)], &[]),
        "tensor t stands twice",
    );
}

#[test]
fn an_alignment_is_a_power_of_two() {
    for (kind, value, part) in [
        (U32, &0u32.to_le_bytes()[..], "is 0"),
        (U32, &48u32.to_le_bytes(), "is 48"),
        (U32, &(1u32 << 31).to_le_bytes(), "is 2147483648"),
        (U8, &[0], "is 0"),
        (STRING, &text("32"), "of type 8"),
    ] {
        is_refused(&header(&[], &[metadata(ALIGNMENT, kind, value)]), part);
    }
    checked(&header(&[], &[metadata(ALIGNMENT, U8, &[32])])).unwrap();
}

#[test]
fn the_first_version_has_shorter_lengths() {
    let short = |n: u32| n.to_le_bytes();
    let key = [&short(1)[..], b"a", &STRING.to_le_bytes(), &short(1), b"x"].concat();
    let whole = [b"GGUF\x01\0\0\0", &short(0)[..], &short(1), &key].concat();
    checked(&whole).unwrap();
    checked(&whole[..whole.len() - 1]).unwrap_err();
}

proptest! {
    #[test]
    fn bytes_of_any_kind_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), file_bytes: u64) {
        let _ = check(&bytes[..], file_bytes);
        let whole = [&b"GGUF\x03\0\0\0"[..], &bytes].concat();
        let _ = check(&whole[..], file_bytes);
    }
}

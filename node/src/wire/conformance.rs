//! Checks that the messages of every protocol between nodes must pass: the bytes that each version sent, fields of later
//! versions, and disturbed bytes that are refused or decode to a well-formed message. For tests; each protocol supplies its
//! messages.
//!
//! `tests/golden/wire` has a folder for each version and in it a file for each protocol. Those of the version in work are written by a
//! run of the tests with `PANGEA_RECORD=1`; those of released versions never change.

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use capnp::message::{Builder, HeapAllocator};

use super::field::{header_error, read_flat};
use super::{FrameHead, Header, PREFIX_BYTES, TraceParent};

/// The context of a trace, for messages that carry one.
pub(crate) fn trace() -> Option<TraceParent> {
    TraceParent::new([0x4b; 16], [0xb7; 8], true)
}

/// Folder of the recorded bytes.
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/wire");

/// Environment variable that has the bytes of the version in work written, with any value.
const RECORD: &str = "PANGEA_RECORD";

/// The version in work.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Bytes as hex digits, in words of eight bytes, four words per line.
fn hex(bytes: &[u8]) -> String {
    let word = |word: &[u8]| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(32).map(|line| format!("  {}\n", line.chunks(8).map(word).collect::<Vec<_>>().join(" "))).collect()
}

/// The values that a file of hex digits holds, with their names.
pub(crate) fn values_of(text: &str) -> Vec<(String, Vec<u8>)> {
    let mut values: Vec<(String, Vec<u8>)> = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("  ") {
            None => values.push((line.to_owned(), Vec::new())),
            Some(line) => {
                let digits: Vec<u8> = line.bytes().filter(|byte| *byte != b' ').collect();
                let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
                values.last_mut().unwrap().1.extend(digits.chunks(2).map(byte));
            }
        }
    }
    values
}

/// The recorded text `file` of every version, with the version; the version in work is among them.
pub(crate) fn recorded(file: &str, today: &str) -> Vec<(String, String)> {
    let folder = Path::new(RECORDED).join(VERSION);
    if std::env::var_os(RECORD).is_some() {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(file), today).unwrap();
    }
    let mut versions = Vec::new();
    for folder in fs::read_dir(RECORDED).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir()) {
        // A protocol that came later has no file in the folder of an earlier version.
        if let Ok(text) = fs::read_to_string(folder.path().join(file)) {
            versions.push((folder.file_name().into_string().unwrap(), text));
        }
    }
    let here = versions.iter().find(|(version, _)| version == VERSION);
    let (_, here) =
        here.unwrap_or_else(|| panic!("{file} of {VERSION} is not recorded: run this test with {RECORD}=1"));
    assert!(here == today, "the encoding changed: if that is meant, record {file} with {RECORD}=1. It is now\n{today}");
    versions
}

/// The name of the file with the recorded messages of a protocol.
fn file_of(protocol: &str) -> String {
    format!("{}.txt", protocol.trim_start_matches("/pangea/").replace('/', "-"))
}

/// Checks that `today`, names and encodings of values of `protocol`, is what is recorded of the version in work, and gives each
/// value that any version sent to `check`, with the version and the index of the value.
pub(crate) fn assert_recorded(protocol: &str, today: &[(String, Vec<u8>)], check: impl Fn(&str, usize, &[u8])) {
    let text: String = today.iter().map(|(name, bytes)| format!("{name}\n{}", hex(bytes))).collect();
    for (version, text) in recorded(&file_of(protocol), &text) {
        for (index, (_, bytes)) in values_of(&text).iter().enumerate() {
            check(&version, index, bytes);
        }
    }
}

/// As [`assert_recorded`] for values that have exactly one encoding: `values` gives those that a version sent, with their names;
/// what is parsed equals them, and is encoded to the same bytes again.
pub(crate) fn assert_values_recorded<T: Debug + PartialEq>(
    protocol: &str,
    values: impl Fn(&str) -> Vec<(&'static str, T)>,
    encode: impl Fn(&T) -> Vec<u8>,
    parse: impl Fn(&[u8]) -> Option<T>,
) {
    let today: Vec<_> = values(VERSION).iter().map(|(name, value)| ((*name).to_owned(), encode(value))).collect();
    assert_recorded(protocol, &today, |version, index, bytes| {
        let (name, value) = values(version).swap_remove(index);
        let parsed = parse(bytes).unwrap_or_else(|| panic!("`{name}` of {version} is not parsed"));
        assert_eq!(parsed, value, "`{name}` of {version}");
        assert_eq!(encode(&parsed), bytes, "`{name}` of {version} is encoded otherwise");
    });
}

/// Prefix and header of a frame with a payload of `payload_len` bytes.
pub(crate) fn encoded<M: Header>(message: &M, payload_len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(payload_len, &mut bytes).unwrap();
    bytes
}

/// Checks that frames are what is recorded of the version in work, and that those of every version are still read: `messages` gives
/// what a version sent, each message with the length of its payload, and `receive`, given the message, its header and the length
/// of its payload, returns an equal message.
///
/// A kind of message that is added later comes last. A field that is added later has its default in the messages of earlier versions.
pub(crate) fn assert_frames_recorded<M: Header + Debug + PartialEq>(
    protocol: &str,
    messages: impl Fn(&str) -> Vec<(M, usize)>,
    receive: impl Fn(&M, &[u8], usize) -> M,
) {
    let frame = |(message, payload_len): &(M, usize)| (message.name().to_owned(), encoded(message, *payload_len));
    let today: Vec<_> = messages(VERSION).iter().map(frame).collect();
    assert_recorded(protocol, &today, |version, index, bytes| {
        let (message, payload_len) = messages(version).swap_remove(index);
        let (prefix, header) = bytes.split_first_chunk::<PREFIX_BYTES>().unwrap();
        let head = FrameHead::parse(*prefix, M::LIMITS).unwrap();
        assert_eq!((head.header_len(), head.payload_len()), (header.len(), payload_len), "{version}");
        assert_eq!(receive(&message, header, payload_len), message, "{version}");
    });
}

/// Checks that a message in which a later version added a field to every struct is read as what it is without them. `receive` is
/// that of [`assert_frames_recorded`].
pub(crate) fn assert_later_fields_are_ignored<M: Header + Debug + PartialEq>(
    messages: &[(M, usize)],
    receive: impl Fn(&M, &[u8], usize) -> M,
) {
    for (message, payload_len) in messages {
        let header = with_later_fields(&encoded(message, *payload_len)[PREFIX_BYTES..]);
        assert_eq!(receive(message, &header, *payload_len), *message);
    }
}

/// A Cap'n Proto message with one more number and one more text in every struct, as a later version of its schema may have them.
pub(crate) fn with_later_fields(message: &[u8]) -> Vec<u8> {
    let words = read_flat(message, usize::MAX, |reader| {
        // A copy in one segment, without pointers from one to another.
        let words = u32::try_from(message.len()).unwrap();
        let mut one_segment = Builder::new(HeapAllocator::new().first_segment_words(words));
        let root: capnp::any_pointer::Reader<'_> = reader.get_root().map_err(header_error)?;
        one_segment.set_root(root).map_err(header_error)?;
        let segments = one_segment.get_segments_for_output();
        assert_eq!(segments.len(), 1);
        Ok(segments[0].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect::<Vec<_>>())
    });
    let mut grown = vec![0];
    grow(&words.unwrap(), 0, &mut grown, 0);
    let mut bytes = vec![0; 4];
    bytes.extend((grown.len() as u32).to_le_bytes());
    bytes.extend(grown.into_iter().flat_map(u64::to_le_bytes));
    bytes
}

/// Copies what the pointer `from` of a segment leads to to the end of `grown`, and the pointer to its place `to`.
/// The encoding: <https://capnproto.org/encoding.html>.
fn grow(segment: &[u64], from: usize, grown: &mut Vec<u64>, to: usize) {
    const STRUCT: u64 = 0;
    const LIST: u64 = 1;
    const POINTERS: u64 = 6;
    const STRUCTS: u64 = 7;
    const BITS: [usize; 6] = [0, 1, 8, 16, 32, 64];

    let pointer = segment[from];
    if pointer == 0 {
        return;
    }
    let target = (from as i64 + 1 + i64::from(pointer as i32 >> 2)) as usize;
    let offset = (grown.len() - to - 1) as u64;
    match pointer & 3 {
        STRUCT => {
            grown[to] = offset << 2 | STRUCT | grown_size(pointer);
            grow_structs(segment, target, pointer, 1, grown);
        }
        LIST if pointer >> 32 & 7 == STRUCTS => {
            let tag = segment[target];
            let elements = tag as u32 >> 2;
            let words = u64::from(elements) * ((grown_size(tag) >> 32 & 0xffff) + (grown_size(tag) >> 48));
            grown[to] = offset << 2 | LIST | STRUCTS << 32 | words << 35;
            grown.push(u64::from(elements) << 2 | grown_size(tag));
            grow_structs(segment, target + 1, tag, elements as usize, grown);
        }
        LIST => {
            let (kind, count) = (pointer >> 32 & 7, (pointer >> 35) as usize);
            grown[to] = offset << 2 | pointer & !0xffff_fffc;
            let begin = grown.len();
            if kind == POINTERS {
                grown.resize(begin + count, 0);
                (0..count).for_each(|at| grow(segment, target + at, grown, begin + at));
            } else {
                grown.extend(&segment[target..target + (count * BITS[kind as usize]).div_ceil(64)]);
            }
        }
        kind => panic!("a pointer of kind {kind} in a message"),
    }
}

/// The sizes of a struct's two sections in a pointer, each larger by one word.
fn grown_size(pointer: u64) -> u64 {
    (pointer & !0xffff_ffff) + (1 << 32) + (1 << 48)
}

/// Copies structs that lie one after the other, each larger by a number and a text.
fn grow_structs(segment: &[u64], target: usize, pointer: u64, count: usize, grown: &mut Vec<u64>) {
    let (data, pointers) = ((pointer >> 32 & 0xffff) as usize, (pointer >> 48) as usize);
    let (begin, size) = (grown.len(), data + pointers + 2);
    grown.resize(begin + count * size, 0);
    for index in 0..count {
        let (from, to) = (target + index * (data + pointers), begin + index * size);
        grown[to..to + data].copy_from_slice(&segment[from..from + data]);
        grown[to + data] = u64::MAX;
        (0..pointers).for_each(|at| grow(segment, from + data + at, grown, to + data + 1 + at));
        // A text of four bytes, its closing zero among them.
        let last = to + size - 1;
        grown[last] = ((grown.len() - last - 1) as u64) << 2 | 1 | 2 << 32 | 4 << 35;
        grown.push(u64::from_le_bytes(*b"new\0\0\0\0\0"));
    }
}

/// Checks that headers with one flipped bit never panic, that those which still decode satisfy `check` (which also gets
/// the length of the payload), and that truncated headers are refused.
pub(crate) fn assert_sturdy<M: Header>(messages: &[(M, usize)], check: impl Fn(M, usize)) {
    for (message, payload_len) in messages {
        let header = &encoded(message, *payload_len)[PREFIX_BYTES..];
        disturb(header, |bytes| M::decode(bytes, *payload_len).map(|message| check(message, *payload_len)).is_ok());
    }
}

/// Calls `read` with every one-bit change of `bytes` and with every proper prefix, which must be refused.
pub(crate) fn disturb(bytes: &[u8], read: impl Fn(&[u8]) -> bool) {
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut disturbed = bytes.to_vec();
            disturbed[at] ^= 1 << bit;
            read(&disturbed);
        }
        assert!(!read(&bytes[..at]), "cut at {at}");
    }
}

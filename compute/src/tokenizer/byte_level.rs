//! The alphabet of byte-level vocabularies, in which every byte is a printable character.
//!
//! Source: GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, the other bytes are U+0100 and up, in
//! order.

/// The character that stands for each byte.
pub(super) const CHARACTERS: [char; 256] = {
    let mut characters = ['\0'; 256];
    let mut byte = 0;
    let mut other = 0;
    while byte < 256 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            byte as u32
        } else {
            other += 1;
            0xff + other
        };
        characters[byte] = match char::from_u32(code) {
            Some(c) => c,
            None => panic!("no surrogate is below U+0200"),
        };
        byte += 1;
    }
    characters
};

/// The byte that `c` stands for, if any.
pub(super) fn byte_of(c: char) -> Option<u8> {
    const BYTES: [Option<u8>; 0x144] = {
        let mut bytes = [None; 0x144];
        let mut byte = 0;
        while byte < 256 {
            bytes[CHARACTERS[byte] as usize] = Some(byte as u8);
            byte += 1;
        }
        bytes
    };
    BYTES.get(c as usize).copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        for byte in 0..=255u8 {
            assert_eq!(byte_of(CHARACTERS[usize::from(byte)]), Some(byte));
        }
        assert_eq!([b' ', b'\n', b'a', 0xff].map(|byte| CHARACTERS[usize::from(byte)]), ['Ġ', 'Ċ', 'a', 'ÿ']);
        assert_eq!([byte_of('\u{144}'), byte_of(' '), byte_of('語')], [None; 3]);
    }
}

//! Hashes of single positions and the root over them, as the docs of [`commit`](super) define them.

use crate::sample::Choice;

/// The hash of one position's bytes.
pub type Leaf = [u8; 32];

const LEAF: &[u8] = b"pangea exact/1 leaf\0";
const NODE: &[u8] = b"pangea exact/1 node\0";
const EMPTY: &[u8] = b"pangea exact/1 empty\0";

/// The leaf of the bytes at `position`.
pub fn leaf(position: u64, bytes: &[u8]) -> Leaf {
    let mut hasher = blake3::Hasher::new();
    hasher.update(LEAF).update(&position.to_le_bytes()).update(bytes);
    *hasher.finalize().as_bytes()
}

/// The leaf of a row of activations: `[hidden_size]`, f32.
pub fn row_leaf(position: u64, row: &[f32]) -> Leaf {
    // Memory is little-endian on every supported machine.
    leaf(position, bytemuck::cast_slice(row))
}

/// The leaf of a token in the first stage's input.
pub fn token_leaf(position: u64, token: u32) -> Leaf {
    leaf(position, &token.to_le_bytes())
}

/// The leaf of the token that the last stage chose to follow `position`: its id (u32); with log-probabilities, its own
/// (f32), then id (u32) and log-probability (f32) of every alternative in the order given.
pub fn chosen_leaf(position: u64, choice: &Choice) -> Leaf {
    let mut bytes = Vec::with_capacity(8 + 8 * choice.top.len());
    bytes.extend(choice.token.to_le_bytes());
    if let Some(logprob) = choice.logprob {
        bytes.extend(logprob.to_le_bytes());
    }
    for (token, logprob) in &choice.top {
        bytes.extend(token.to_le_bytes());
        bytes.extend(logprob.to_le_bytes());
    }
    leaf(position, &bytes)
}

/// The leaf of a position at which the last stage chose no token.
pub fn nothing_leaf(position: u64) -> Leaf {
    leaf(position, &[])
}

/// The leaves of the first stage's input tokens, from position 0 on.
pub fn token_leaves(tokens: &[u32]) -> Vec<Leaf> {
    tokens.iter().zip(0..).map(|(token, position)| token_leaf(position, *token)).collect()
}

/// The root over the leaves of positions 0, 1, …
pub fn merkle_root(leaves: &[Leaf]) -> [u8; 32] {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        let above = level.len().div_ceil(2);
        for at in 0..above {
            level[at] = match level.get(2 * at + 1) {
                Some(right) => node(&level[2 * at], right),
                None => level[2 * at],
            };
        }
        level.truncate(above);
    }
    level.first().copied().unwrap_or_else(|| *blake3::hash(EMPTY).as_bytes())
}

fn node(left: &Leaf, right: &Leaf) -> Leaf {
    let mut hasher = blake3::Hasher::new();
    hasher.update(NODE).update(left).update(right);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_definition(leaves: &[Leaf]) -> [u8; 32] {
        match leaves {
            [] => *blake3::hash(b"pangea exact/1 empty\0").as_bytes(),
            [only] => *only,
            _ => {
                let above: Vec<Leaf> = leaves
                    .chunks(2)
                    .map(|pair| match pair {
                        [left, right] => {
                            *blake3::hash(&[b"pangea exact/1 node\0", &left[..], &right[..]].concat()).as_bytes()
                        }
                        _ => pair[0],
                    })
                    .collect();
                by_definition(&above)
            }
        }
    }

    #[test]
    fn leaves_are_what_the_definition_says() {
        let by_hand = |position: u64, bytes: &[u8]| {
            *blake3::hash(&[b"pangea exact/1 leaf\0", &position.to_le_bytes()[..], bytes].concat()).as_bytes()
        };
        assert_eq!(leaf(7, b"abc"), by_hand(7, b"abc"));
        assert_eq!(row_leaf(1, &[1.0, -0.0]), by_hand(1, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x80]));
        assert_eq!(token_leaf(2, 0x0102), by_hand(2, &[2, 1, 0, 0]));
        assert_eq!(nothing_leaf(3), by_hand(3, &[]));
        let bare = Choice { token: 5, logprob: None, top: Vec::new() };
        assert_eq!(chosen_leaf(4, &bare), by_hand(4, &[5, 0, 0, 0]));
        let told = Choice { token: 5, logprob: Some(-1.0), top: vec![(6, -0.5)] };
        let bytes = [5, 0, 0, 0, 0, 0, 0x80, 0xbf, 6, 0, 0, 0, 0, 0, 0, 0xbf];
        assert_eq!(chosen_leaf(4, &told), by_hand(4, &bytes));
    }

    #[test]
    fn roots_of_none_one_and_odd_counts_are_what_the_definition_says() {
        let leaves: Vec<Leaf> = (0..70u64).map(|position| leaf(position, &[position as u8])).collect();
        for count in 0..=leaves.len() {
            assert_eq!(merkle_root(&leaves[..count]), by_definition(&leaves[..count]), "{count}");
        }
    }

    #[test]
    fn the_roots_stay_as_they_are() {
        let leaves: Vec<Leaf> = (0..5u64).map(|position| leaf(position, b"pangea")).collect();
        let root = crate::Digest::from_bytes(merkle_root(&leaves)).to_string();
        assert_eq!(root, "1a272582d9c9df8ea1493c2dc7759be58f4f27dfdc5f4daa6ab8714777692a0c");
    }

    proptest! {
        /// Any change to any leaf, any exchange of two and any other count gives another root.
        #[test]
        fn no_two_lists_have_one_root(count in 1..40usize, at in any::<prop::sample::Index>(), bit in 0..256usize) {
            let leaves: Vec<Leaf> = (0..count as u64).map(|position| leaf(position, b"x")).collect();
            let root = merkle_root(&leaves);
            let mut changed = leaves.clone();
            changed[at.index(count)][bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(merkle_root(&changed), root);
            prop_assert_ne!(merkle_root(&leaves[..count - 1]), root);
            let mut doubled = leaves.clone();
            doubled.push(leaves[count - 1]);
            prop_assert_ne!(merkle_root(&doubled), root);
        }
    }
}

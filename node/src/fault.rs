//! Faults that a node injects on purpose, behind the hidden flag `--fault`, so that tests can show that they are
//! caught. This file names faults and corrupts single values; the code that computes or supervises a part applies them.

/// An injected fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// One element is off by 1 % of its row norm times its column norm.
    CorruptOne,
    /// Every element is off by as much.
    CorruptAll,
    /// The first two results are right; in every later one an element is off.
    CorruptLater,
    /// The result of an earlier task is sent.
    Stale,
    /// No answer is sent.
    Hang,
    /// The stream is cut in the middle of the result.
    Drop,
    /// Computing takes 20 times as long.
    Slow,
    /// As a later stage: each frame is held back for a third of a second after it was measured.
    Stall,
    /// As a stage: one bit of one row of activations is changed, somewhere in a session; on an engine without exact bits the elements
    /// of the row are in another order, since a bit may be within what is accepted.
    CorruptStage,
    /// As a last stage: another token than the chosen one is sent, somewhere in a session.
    CorruptToken,
    /// As a last stage: one token of a prompt seems less likely than it is.
    CorruptScore,
    /// As a stage: the output is sometimes wrong, and nothing is signed.
    LieUnsigned,
    /// As a stage before the last: tokens are sent, which only the last stage may send.
    OutOfTurn,
    /// As a last stage: the coordinator is sometimes sent another token than the first stage.
    TwoFaced,
    /// As a stage before the last: the coordinator is sent another signed claim than the next stage.
    SignsTwice,
    /// As a last stage: answers do not end.
    Endless,
    /// As a stage: every request is called invalid.
    Refuse,
    /// As a last stage: frames are reported that nobody sent, and no tokens.
    FalseReports,
    /// As a stage before the last: one frame, once, does not fit the earlier ones.
    Misfit,
    /// As a later stage: sometimes there is no memory for a session's keys and values.
    Full,
    /// The task that follows the pool panics shortly after the start.
    PanicPool,
    /// The thread that computes tasks panics once, at a peer's task.
    PanicExecutor,
    /// The thread of a stage panics once, in a session.
    PanicStage,
    /// The GPU that computes a stage is lost once, in a session.
    LoseDevice,
    /// A model's file that is new to the node is hashed only once there is a file `hash` in its models folder.
    LateHash,
    /// The node says that it is of an earlier release.
    OldVersion,
}

/// Bits of an f32 that can be flipped without making a finite number infinite: the fraction's and the sign.
const SAFE_BITS: [u32; 24] = {
    let mut bits = [31; 24];
    let mut bit = 0;
    while bit < 23 {
        bits[bit] = bit as u32;
        bit += 1;
    }
    bits
};

/// Flips one bit of a row of activations, chosen by `random`. The row stays finite.
pub fn twist_row(row: &mut [f32], random: u64) {
    let (element, bit) = (random / SAFE_BITS.len() as u64, random % SAFE_BITS.len() as u64);
    let count = row.len().max(1) as u64;
    if let Some(value) = row.get_mut((element % count) as usize) {
        *value = f32::from_bits(value.to_bits() ^ 1 << SAFE_BITS[bit as usize]);
    }
}

/// Another token of the vocabulary, chosen by `random`.
pub fn twist_token(token: u32, vocabulary: usize, random: u64) -> u32 {
    let size = (vocabulary as u64).max(2);
    ((u64::from(token) + 1 + random % (size - 1)) % size) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twisted_row_differs_in_one_bit_and_stays_finite() {
        for random in 0..1000u64 {
            let mut row = [0.0, 1.5, -2.0, f32::MAX];
            let before = row;
            twist_row(&mut row, random.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let bits: u32 = row.iter().zip(before).map(|(a, b)| (a.to_bits() ^ b.to_bits()).count_ones()).sum();
            assert_eq!(bits, 1);
            assert!(row.iter().all(|value| value.is_finite()));
        }
        twist_row(&mut [], 7);
    }

    #[test]
    fn a_twisted_token_is_another_one_of_the_vocabulary() {
        for random in (0..1000).chain([u64::MAX]) {
            for token in 0..5 {
                let other = twist_token(token, 5, random);
                assert!(other != token && other < 5);
            }
        }
    }
}

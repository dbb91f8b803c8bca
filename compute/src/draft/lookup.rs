//! Prompt lookup: the next tokens are guessed from an earlier place in the text where the same tokens stood. Source: Saxena,
//! "Prompt lookup decoding" (2023).

/// Lengths of the n-grams that are looked up, longest first: the longer the match, the likelier the guess.
pub(super) const NGRAMS: [usize; 3] = [5, 3, 2];
/// Places remembered per n-gram length, 64 KiB each; newer places replace older ones.
pub(super) const SLOTS: usize = 1 << 14;
/// Weight of a new observation of a guess: an average over about 20.
const GUESS_WEIGHT: f64 = 0.05;

/// The places of a text's n-grams. Takes 192 KiB whatever the length of the text, and constant time per token.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    /// `[n-gram length][slot]`: one past the last token of an n-gram's latest occurrence; 0 is none.
    pub(super) places: Vec<Vec<u32>>,
    /// Length of the text whose n-grams are in `places`.
    indexed: usize,
    /// The last tokens of that text, to notice a change of text.
    pub(super) tail: Vec<u32>,
    /// Probability that the next guess is right, per n-gram length; measured whether drafts are made or not.
    hit_rate: [f64; NGRAMS.len()],
}

impl Lookup {
    pub(super) fn new() -> Lookup {
        Lookup { places: vec![vec![0; SLOTS]; NGRAMS.len()], indexed: 0, tail: Vec::new(), hit_rate: [0.7, 0.4, 0.2] }
    }

    /// Extends the index to `text`; returns whether it is another text than before. An n-gram is indexed once a token follows
    /// it, because only then can it predict one.
    pub(super) fn index(&mut self, text: &[u32]) -> bool {
        // Places are 32 bits; later tokens are not looked up.
        let text = &text[..text.len().min(u32::MAX as usize)];
        let known = self.indexed.checked_sub(self.tail.len()).and_then(|from| text.get(from..self.indexed));
        let is_other = known != Some(&self.tail[..]);
        if is_other {
            self.places.iter_mut().for_each(|places| places.fill(0));
            self.indexed = 0;
        }
        // The first text is a prompt: how it repeats itself says little about the answer.
        let watch = self.indexed > 0;
        for end in self.indexed.max(1)..text.len() {
            if watch && let Some((source, place)) = self.find(text, end) {
                let right = f64::from(u8::from(text[place] == text[end]));
                self.hit_rate[source] += GUESS_WEIGHT * (right - self.hit_rate[source]);
            }
            for (places, n) in self.places.iter_mut().zip(NGRAMS) {
                if end >= n {
                    places[slot(&text[end - n..end])] = end as u32;
                }
            }
        }
        self.indexed = text.len();
        self.tail.clear();
        self.tail.extend_from_slice(&text[text.len().saturating_sub(NGRAMS[0])..]);
        is_other
    }

    /// Where the text may go on like at its end, and the probability that the next token there is right.
    pub(super) fn guess(&self, text: &[u32]) -> Option<(usize, f64)> {
        self.find(text, text.len()).map(|(source, place)| (place, self.hit_rate[source]))
    }

    /// The latest occurrence of the longest n-gram that ends at `end`: its length's index, and the place after it.
    fn find(&self, text: &[u32], end: usize) -> Option<(usize, usize)> {
        NGRAMS.iter().enumerate().find_map(|(source, &n)| {
            let ngram = text.get(end.checked_sub(n)?..end)?;
            let place = self.places[source][slot(ngram)] as usize;
            // Another n-gram may have the same slot, or the text may have been cut.
            let earlier = text.get(place.checked_sub(n)?..place)?;
            (earlier == ngram && place < end).then_some((source, place))
        })
    }
}

/// FNV-1a over whole tokens, high bits; collisions are found by comparing tokens.
fn slot(ngram: &[u32]) -> usize {
    let hash = ngram
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.trailing_zeros())) as usize
}

//! What must hold for sampling as a whole: definitions written the slow way beside the fast ones.

use super::*;
use crate::ErrorKind;
use proptest::prelude::*;

fn everything() -> Sampling {
    Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() }
}

/// Draws at many positions: how often each token came.
fn histogram(sampling: &Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    let prompt = vec![0; draws];
    for position in 0..draws {
        let choice = choose(sampling, &prompt[..position], &[], &mut logits.to_vec(), None).unwrap();
        counts[choice.token as usize] += 1;
    }
    counts
}

#[test]
fn every_choice_of_a_request_draws_with_a_seed_of_its_own() {
    let asked = Sampling { seed: u64::MAX - 1, logit_bias: vec![(3, 0.5)], ..everything() };
    assert_eq!(asked.of_choice(0), asked);
    let seeds: Vec<u64> = (0..4).map(|choice| asked.of_choice(choice).seed).collect();
    assert_eq!(seeds, [u64::MAX - 1, u64::MAX, 0, 1]);
    assert_eq!(asked.of_choice(2).logit_bias, asked.logit_bias);
}

fn drawn(sampling: &Sampling, logits: &[f32]) -> Vec<u32> {
    let counts = histogram(sampling, logits, 3000);
    (0..logits.len() as u32).filter(|&token| counts[token as usize] > 0).collect()
}

/// Logits of these probabilities.
fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

#[test]
fn draws_follow_the_softmax_at_every_temperature() {
    let logits = logits_of(&[0.5, 0.25, 0.125, 0.125]);
    for temperature in [0.5_f32, 1.0, 2.0] {
        let counts = histogram(&Sampling { temperature, ..everything() }, &logits, 20_000);
        let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            let expected = 20_000.0 * weight / total;
            assert!(
                (*count as f64 - expected).abs() < 5.0 * expected.sqrt(),
                "{count}, not {expected} at {temperature}"
            );
        }
    }
}

#[test]
fn draws_over_a_large_vocabulary_follow_the_softmax_too() {
    // Many blocks; all weight on four tokens far apart.
    let mut logits = vec![-50.0_f32; 5000];
    for token in [0, 1023, 1024, 4999] {
        logits[token] = 0.0;
    }
    let counts = histogram(&everything(), &logits, 4000);
    for token in [0, 1023, 1024, 4999] {
        assert!((850..1150).contains(&counts[token]), "{token}: {}", counts[token]);
    }
}

#[test]
fn each_truncation_keeps_what_its_definition_says() {
    let logits = logits_of(&[0.05, 0.4, 0.05, 0.3, 0.2]);
    assert_eq!(drawn(&everything(), &logits), [0, 1, 2, 3, 4]);
    assert_eq!(drawn(&Sampling { top_k: 2, ..everything() }, &logits), [1, 3]);
    assert_eq!(drawn(&Sampling { top_k: 4, ..everything() }, &logits), [0, 1, 3, 4], "of equals the lower id");
    assert_eq!(drawn(&Sampling { top_p: 0.6, ..everything() }, &logits), [1, 3]);
    assert_eq!(drawn(&Sampling { top_p: 0.75, ..everything() }, &logits), [1, 3, 4]);
    assert_eq!(drawn(&Sampling { top_p: 1e-6, ..everything() }, &logits), [1], "never none");
    assert_eq!(drawn(&Sampling { min_p: 0.45, ..everything() }, &logits), [1, 3, 4]);
    assert_eq!(drawn(&Sampling { min_p: 1.0, ..everything() }, &logits), [1]);
    // Surprises 3.0, 0.92, 3.0, 1.2, 1.61; entropy 1.35: 0.3 is nearest (0.15), then 0.2 (0.26), then 0.4 (0.43).
    assert_eq!(drawn(&Sampling { typical_p: 0.25, ..everything() }, &logits), [3]);
    assert_eq!(drawn(&Sampling { typical_p: 0.45, ..everything() }, &logits), [3, 4]);
    assert_eq!(drawn(&Sampling { typical_p: 0.85, ..everything() }, &logits), [1, 3, 4]);
    // In order: of the two that top-k keeps, 0.4 alone has more than half.
    assert_eq!(drawn(&Sampling { top_k: 2, top_p: 0.55, ..everything() }, &logits), [1]);
}

proptest! {
    #[test]
    fn fast_truncations_keep_what_a_whole_sort_keeps(
        seed in any::<u32>(), size in 1_usize..3000, spread in 0.1_f64..12.0,
        top_k in prop_oneof![Just(0_usize), 1_usize..300], top_p in 0.01_f32..=1.0, min_p in 0.0_f32..0.9,
    ) {
        let logits: Vec<f32> = (0..size).map(|token| {
            // Rounded, so that there are ties.
            ((philox::uniform(u64::from(seed), token as u64) * spread * 8.0).round() / 8.0) as f32
        }).collect();
        let sampling = Sampling { top_k, top_p, min_p, ..everything() };
        let ranking = Ranking::of(&logits);
        let best = ranking.best().unwrap();
        let kept = match Kept::of(&sampling, &ranking, best) {
            Kept::All => ranking.top(size),
            Kept::Some(list) => list,
        };
        let mut list = ranking.top(size);
        if top_k > 0 { list.truncate(top_k); }
        if top_p < 1.0 {
            let weight = |c: &ranking::Candidate| f64::from(c.logit - best.logit).exp();
            let total: f64 = list.iter().map(weight).sum();
            let mut sum = 0.0;
            let before = list.len();
            let mut needed = before;
            for (place, c) in list.iter().enumerate() {
                sum += weight(c);
                // Too near to call with another order of summation.
                prop_assume!((sum / total - f64::from(top_p)).abs() > 1e-9);
                if sum >= f64::from(top_p) * total { needed = place + 1; break; }
            }
            list.truncate(needed);
        }
        list.retain(|c| f64::from(c.logit) >= f64::from(best.logit) + f64::from(min_p).ln());
        prop_assert_eq!(kept, list);
    }

    #[test]
    fn the_choice_depends_on_request_and_position_alone(
        logits in prop::collection::vec(-20_f32..20.0, 1..400), seed in any::<u64>(), length in 0_usize..9, split in 0_usize..9,
    ) {
        let sampling = Sampling { seed, logprobs: Some(3), ..Sampling::default() };
        let text = vec![0; length];
        let (prompt, generated) = text.split_at(split.min(length));
        let first = choose(&sampling, prompt, generated, &mut logits.clone(), None).unwrap();
        let again = choose(&sampling, &text, &[], &mut logits.clone(), None).unwrap();
        prop_assert_eq!(&first, &again);
        // The raw softmax, written the slow way.
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        let expected = f64::from(logits[first.token as usize] - max) - sum.ln();
        prop_assert!((f64::from(first.logprob.unwrap()) - expected).abs() < 1e-5);
        prop_assert_eq!(first.top.len(), 3.min(logits.len()));
        prop_assert!(first.top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
    }

    #[test]
    fn greedy_is_the_lowest_of_the_best(logits in prop::collection::vec((-3_i8..3).prop_map(f32::from), 1..500)) {
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let expected = logits.iter().position(|&logit| logit == max).unwrap() as u32;
        let choice = choose(&Sampling::greedy(), &[], &[], &mut logits.clone(), None).unwrap();
        prop_assert_eq!(choice, Choice { token: expected, logprob: None, top: Vec::new() });
    }
}

#[test]
fn the_bits_are_pinned() {
    // Another generator, order of stages or order of candidates changes these draws.
    let logits: Vec<f32> = (0..2000).map(|token| (philox::uniform(9, token) * 6.0) as f32).collect();
    let settings = [
        everything(),
        Sampling { temperature: 0.7, ..everything() },
        Sampling::default(),
        Sampling { top_k: 0, min_p: 0.0, top_p: 0.9, ..Sampling::default() },
        Sampling { typical_p: 0.6, temperature: 1.3, ..everything() },
    ];
    let mut bits = blake3::Hasher::new();
    for sampling in settings {
        for position in 0..200 {
            let sampling = Sampling { seed: 77, logprobs: Some(2), ..sampling.clone() };
            let choice = choose(&sampling, &vec![0; position], &[], &mut logits.clone(), None).unwrap();
            bits.update(&choice.token.to_le_bytes());
            bits.update(&choice.logprob.unwrap().to_bits().to_le_bytes());
            choice.top.iter().for_each(|(token, logprob)| {
                bits.update(&token.to_le_bytes());
                bits.update(&logprob.to_bits().to_le_bytes());
            });
        }
    }
    assert_eq!(&bits.finalize().to_hex()[..16], "844426cd7d934d5a");
}

#[test]
fn penalties_look_at_what_they_should() {
    let logits = [2.0, -2.0, 1.0, 0.5];
    let after = |sampling: Sampling, prompt: &[u32], generated: &[u32]| {
        let mut logits = logits.to_vec();
        choose(&Sampling { temperature: 0.0, ..sampling }, prompt, generated, &mut logits, None).unwrap();
        logits
    };
    let repetition = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
    assert_eq!(after(repetition.clone(), &[0, 0, 1], &[2]), [1.0, -4.0, 0.5, 0.5], "prompt and answer, once each");
    let window = Sampling { repetition_window: Some(2), ..repetition };
    assert_eq!(after(window.clone(), &[0, 1], &[2]), [2.0, -4.0, 0.5, 0.5], "the last two only");
    assert_eq!(after(Sampling { repetition_window: Some(0), ..window }, &[0, 1], &[2]), logits);
    let openai = Sampling { presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::default() };
    assert_eq!(after(openai, &[0, 0], &[2, 3, 3]), [2.0, -2.0, 0.25, -0.5], "the answer only, counted");
    let bias = Sampling { logit_bias: vec![(1, 10.0), (0, -1.0)], ..Sampling::default() };
    assert_eq!(after(bias, &[], &[]), [1.0, 8.0, 1.0, 0.5]);
}

#[test]
fn a_mask_decides_before_anything_else() {
    let mut mask = TokenMask::none(4);
    mask.allow(2);
    let sampling = Sampling { logit_bias: vec![(0, 100.0)], logprobs: Some(1), ..Sampling::default() };
    let choice = choose(&sampling, &[], &[], &mut [5.0, 1.0, 0.0, 1.0], Some(&mask)).unwrap();
    assert_eq!(choice.token, 2);
    assert_eq!(choice.top[0].0, 0, "logprobs are the model's own");
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let refused = |sampling: &Sampling, logits: &[f32], mask: Option<&TokenMask>| {
        choose(sampling, &[0], &[], &mut logits.to_vec(), mask).unwrap_err()
    };
    let good = Sampling::default();
    for (sampling, part) in [
        (Sampling { temperature: -1.0, ..good.clone() }, "temperature is -1"),
        (Sampling { temperature: f32::NAN, ..good.clone() }, "temperature is NaN"),
        (Sampling { top_p: 0.0, ..good.clone() }, "top_p is 0; it must be above 0 and at most 1"),
        (Sampling { typical_p: 1.5, ..good.clone() }, "typical_p is 1.5"),
        (Sampling { min_p: -0.1, ..good.clone() }, "min_p is -0.1"),
        (Sampling { repetition_penalty: 0.0, ..good.clone() }, "repetition_penalty is 0"),
        (Sampling { presence_penalty: f32::INFINITY, ..good.clone() }, "presence_penalty is inf"),
        (Sampling { frequency_penalty: 101.0, ..good.clone() }, "frequency_penalty is 101"),
        (Sampling { logit_bias: vec![(2, 0.0)], ..good.clone() }, "names token 2, but this model's tokens are 0 to 1"),
        (Sampling { logit_bias: vec![(1, f32::NAN)], ..good.clone() }, "token 1 is NaN"),
        (Sampling { logprobs: Some(21), ..good.clone() }, "21 alternatives"),
        (Sampling { logit_bias: vec![(0, f32::MAX), (0, f32::MAX)], ..good.clone() }, "infinite"),
    ] {
        let error = refused(&sampling, &[0.0, 1.0], None);
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(part), "{error}");
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let error = refused(&good, &[0.0, bad], None);
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.to_string().contains("the logit of token 1"), "{error}");
    }
    for error in [
        refused(&good, &[], None),
        refused(&good, &[f32::NEG_INFINITY; 2], None),
        refused(&good, &[0.0; 2], Some(&TokenMask::none(2))),
    ] {
        assert!(error.to_string().contains("every token is forbidden"), "{error}");
    }
    let penalised = Sampling { presence_penalty: 1.0, repetition_penalty: 1.1, ..good };
    for (prompt, generated) in [(&[9][..], &[][..]), (&[][..], &[9][..])] {
        let error = choose(&penalised, prompt, generated, &mut [0.0; 2], None).unwrap_err();
        assert!(error.to_string().contains("token 9 is in the text so far"), "{error}");
    }
}

//! Attention against its definition in f64, and its bits however rows are grouped.

use super::*;
use half::f16;
use proptest::prelude::*;

type Vectors = Vec<Vec<f64>>;

/// Pages of pseudo-random keys and values, NaN behind the last position, and the same in f64: `[position][width]` each.
fn cache(positions: usize, width: usize, seed: u32) -> (Vec<Vec<u16>>, Vectors, Vectors) {
    let mut state = seed;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
    };
    let mut pages = vec![vec![f16::NAN.to_bits(); 2 * PAGE_POSITIONS * width]; positions.div_ceil(PAGE_POSITIONS)];
    let (mut keys, mut values) = (vec![vec![0.0; width]; positions], vec![vec![0.0; width]; positions]);
    for position in 0..positions {
        let (page, slot) = (&mut pages[position / PAGE_POSITIONS], position % PAGE_POSITIONS);
        for d in 0..width {
            let (key, value) = (number(), number());
            page[slot / LANES * width * LANES + d * LANES + slot % LANES] = key.to_bits();
            page[PAGE_POSITIONS * width + slot * width + d] = value.to_bits();
            (keys[position][d], values[position][d]) = (key.to_f64(), value.to_f64());
        }
    }
    (pages, keys, values)
}

fn query(row: usize, width: usize) -> Vec<f32> {
    (0..width).map(|d| ((row * width + d) * 29 % 13) as f32 / 6.0 - 1.0).collect()
}

/// The bits of the results of rows at these positions, `[row][width]`, whose queries are those of the rows `numbers`.
fn attend_all(
    isa: Isa,
    pages: &mut [Vec<u16>],
    width: usize,
    numbers: &[usize],
    positions: &[usize],
    terms: Terms,
) -> Vec<Vec<u32>> {
    with_rows(pages, width, numbers, positions, |rows, cache| {
        let last = positions.iter().copied().max().unwrap_or(0);
        let mut scratch = vec![f32::NAN; scratch_len(rows.len(), last)];
        // SAFETY: all of these are as long as the rows and positions ask for.
        unsafe { attend(isa, rows, cache, terms, &mut scratch) };
    })
}

/// The same, each head cut by positions; `shuffle` says in which order the parts of a step are computed.
fn attend_split(
    isa: Isa,
    pages: &mut [Vec<u16>],
    width: usize,
    numbers: &[usize],
    positions: &[usize],
    terms: Terms,
    shuffle: usize,
) -> Vec<Vec<u32>> {
    with_rows(pages, width, numbers, positions, |rows, cache| {
        let last = positions.iter().copied().max().unwrap_or(0);
        let shape = SplitShape::new(rows.len(), last, width);
        let mut memory = vec![f32::NAN; shape.floats()];
        let head = SplitHead { shape, rows, cache, terms, memory: memory.as_mut_ptr() };
        let run = |count: usize, step: &dyn Fn(usize) -> SplitStep| {
            for i in 0..count {
                // SAFETY: as above; one thread runs all steps in turn.
                unsafe { head.run(isa, step((i + shuffle) % count)) };
            }
        };
        run(shape.chains(), &|chain| SplitStep::Scores { chain });
        run(shape.chains(), &|chain| SplitStep::Values { chain });
        run(rows.len(), &|row| SplitStep::Sum { row });
    })
}

/// Two of three rows have a sink.
fn sink(number: usize) -> f32 {
    if number.is_multiple_of(3) { f32::NEG_INFINITY } else { (number * 5 % 7) as f32 - 2.0 }
}

/// What `compute` makes of the rows, as bits: `[row][width]`.
fn with_rows(
    pages: &mut [Vec<u16>],
    width: usize,
    numbers: &[usize],
    positions: &[usize],
    compute: impl FnOnce(&[Row], KeysValues<'_>),
) -> Vec<Vec<u32>> {
    let queries: Vec<Vec<f32>> = numbers.iter().map(|row| query(*row, width)).collect();
    let mut out = vec![vec![f32::NAN; width]; positions.len()];
    let rows: Vec<Row> = queries
        .iter()
        .zip(&mut out)
        .zip(positions)
        .zip(numbers)
        .map(|(((query, out), position), number)| Row {
            query: query.as_ptr(),
            out: out.as_mut_ptr(),
            position: *position,
            sink: sink(*number),
        })
        .collect();
    let starts: Vec<*mut u16> = pages.iter_mut().map(|page| page.as_mut_ptr()).collect();
    let cache = KeysValues { pages: &starts, key_offset: 0, value_offset: PAGE_POSITIONS * width, head_dim: width };
    compute(&rows, cache);
    out.into_iter().map(|out| out.into_iter().map(f32::to_bits).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn rows_get_the_right_attention_and_the_same_bits_however_they_are_grouped(
        last in 0usize..700, count in 1usize..=MAX_ROWS, apart in 0usize..40,
        window in prop_oneof![Just(usize::MAX), 1usize..300], soft_cap in prop_oneof![Just(None), Just(Some(5.0f32))],
        width in prop_oneof![Just(16), Just(32), Just(64), Just(80)], seed: u32,
    ) {
        let (mut pages, keys, values) = cache(last + 1, width, seed);
        let terms = Terms { window, soft_cap };
        let positions: Vec<usize> = (0..count).map(|r| last - (r * apart).min(last)).collect();
        let numbers: Vec<usize> = (0..count).collect();
        let together = attend_all(Isa::best(), &mut pages, width, &numbers, &positions, terms);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            prop_assert_eq!(&attend_all(isa, &mut pages, width, &numbers, &positions, terms), &together);
            let few = count.min(SPLIT_ROWS);
            let split = attend_split(isa, &mut pages, width, &numbers[..few], &positions[..few], terms, last);
            prop_assert_eq!(&split[..], &together[..few]);
        }
        for (r, position) in positions.iter().enumerate() {
            let query = query(r, width);
            let seen = (position + 1).saturating_sub(window)..position + 1;
            let scores: Vec<f64> = seen.clone().map(|j| {
                let dot: f64 = keys[j].iter().zip(&query).map(|(k, q)| k * f64::from(*q)).sum();
                soft_cap.map_or(dot, |cap| f64::from(cap) * (dot / f64::from(cap)).tanh())
            }).collect();
            let sink = f64::from(sink(r));
            let most = scores.iter().copied().fold(sink, f64::max);
            let total = (sink - most).exp() + scores.iter().map(|s| (s - most).exp()).sum::<f64>();
            for (d, got) in together[r].iter().map(|bits| f32::from_bits(*bits)).enumerate() {
                let want: f64 = seen.clone().zip(&scores).map(|(j, s)| (s - most).exp() / total * values[j][d]).sum();
                prop_assert!((f64::from(got) - want).abs() < 3e-5, "row {} at {}: {} for {}", r, position, got, want);
            }
        }
        for at in [0, count / 2, count - 1] {
            let alone = attend_all(Isa::best(), &mut pages, width, &numbers[at..=at], &positions[at..=at], terms);
            prop_assert_eq!(&alone[0], &together[at]);
        }
    }
}

#[test]
fn the_rows_of_a_task_are_whole_groups_and_their_scores_are_bounded() {
    for position in [0, 100, 5_000, 30_000, 131_071, 1_000_000] {
        let rows = rows_at_once(Isa::best(), position);
        assert!(rows.is_multiple_of(MIN_ROWS) && (MIN_ROWS..=MAX_ROWS).contains(&rows), "{rows} at {position}");
        let bytes = rows * (position + 1) * size_of::<f32>();
        assert!(rows == MIN_ROWS || bytes <= SCORE_BYTES, "{bytes} bytes at {position}");
    }
}

//! Rotation, the cache and attention against a plain reference in f64, whose keys and values were rounded to f16 as the cache
//! rounds them.

use super::{assert_close, floats, gpu};
use half::f16;
use pangea_compute::gpu::{
    AttentionShape, GPU_PAGE_POSITIONS, GpuBuffer, GpuPlaces, GpuRows, GpuSequence, QueryKeyValue, Rotation,
};
use pangea_units::SplitMix64;

struct Case {
    shape: AttentionShape,
    /// Of each session, the positions that are cached already, and the rows that come.
    sessions: Vec<(usize, usize)>,
    pairs: usize,
    interleaved: bool,
    norms: bool,
    sinks: bool,
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape { heads, kv_heads, head_dim, has_gates: false, window: usize::MAX, soft_cap: None }
}

/// A head after its norm and rotation. `angles`: cosines, then sines.
fn turned(case: &Case, x: &[f32], norm: Option<&[f32]>, angles: &[f32]) -> Vec<f64> {
    let mut x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    if let Some(norm) = norm {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter_mut().zip(norm).for_each(|(x, norm)| *x = *x / (mean + 1e-6).sqrt() * f64::from(*norm));
    }
    for pair in 0..case.pairs {
        let (first, second) = if case.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + case.pairs) };
        let (cosine, sine) = (f64::from(angles[pair]), f64::from(angles[case.pairs + pair]));
        (x[first], x[second]) = (x[first] * cosine - x[second] * sine, x[second] * cosine + x[first] * sine);
    }
    x
}

fn check(name: &str, case: Case) {
    let Some(gpu) = gpu(name) else { return };
    let mut random = SplitMix64::new(case.shape.head_dim as u64 + case.sessions.len() as u64);
    let AttentionShape { heads, kv_heads, head_dim, has_gates, window, soft_cap } = case.shape;
    let (scale, norm_values) = (1.0 / (head_dim as f32).sqrt(), floats(&mut random, 2 * head_dim));
    let norms = case.norms.then(|| GpuBuffer::of(&gpu, &norm_values, "norms").unwrap());
    let sink_values = floats(&mut random, heads);
    let sinks = case.sinks.then(|| GpuBuffer::of(&gpu, &sink_values, "sinks").unwrap());
    // Pages in no order, with some between them that nobody has.
    let total: usize = case.sessions.iter().map(|(cached, rows)| (cached + rows).div_ceil(GPU_PAGE_POSITIONS)).sum();
    let mut free: Vec<u32> = (0..2 * total as u32 + 1).collect();
    (1..free.len()).rev().for_each(|at| free.swap(at, random.index(at + 1)));
    let pages: Vec<Vec<u32>> = case
        .sessions
        .iter()
        .map(|(cached, rows)| free.split_off(free.len() - (cached + rows).div_ceil(GPU_PAGE_POSITIONS)))
        .collect();
    let cache_bytes = (2 * total as u64 + 1) * case.shape.page_bytes();
    // What nobody wrote is no number.
    let garbage = vec![0xffu8; cache_bytes as usize];
    let cache = GpuBuffer::of_bytes(&gpu, &garbage, "cache").unwrap();
    // Of each session and position: keys and values [kv_heads, head_dim] as the cache should have them.
    let mut stored: Vec<Vec<(Vec<f64>, Vec<f64>)>> = case.sessions.iter().map(|_| Vec::new()).collect();
    let stride = if has_gates { 2 * head_dim } else { head_dim };
    let mut compare = |chunks: &[(usize, usize)], is_last: bool| {
        let rows: usize = chunks.iter().map(|(_, rows)| rows).sum();
        if rows == 0 {
            return;
        }
        let (q, k, v) = (
            floats(&mut random, rows * heads * stride),
            floats(&mut random, rows * kv_heads * head_dim),
            floats(&mut random, rows * kv_heads * head_dim),
        );
        let (mut sequences, mut angles, mut row) = (Vec::new(), Vec::new(), 0);
        for ((position, count), pages) in chunks.iter().zip(&pages).filter(|((_, count), _)| *count > 0) {
            let needed = (position + count).div_ceil(GPU_PAGE_POSITIONS);
            sequences.push(GpuSequence { rows: row..row + count, position: *position, pages: &pages[..needed] });
            for position in *position..position + count {
                let angle =
                    |pair: usize| (position as f64 * 10_000f64.powf(-(pair as f64) / case.pairs as f64)).sin_cos();
                angles.extend((0..case.pairs).map(|pair| angle(pair).1 as f32));
                angles.extend((0..case.pairs).map(|pair| angle(pair).0 as f32));
            }
            row += count;
        }
        let places = GpuPlaces::new(&gpu, case.shape, &sequences).unwrap();
        let of = |cols: usize, elements: &[f32]| GpuRows::of(&gpu, cols, elements, "rows").unwrap();
        let (of_q, of_k, of_v) = (of(heads * stride, &q), of(kv_heads * head_dim, &k), of(kv_heads * head_dim, &v));
        let out = GpuRows::new(&gpu, rows, heads * head_dim, "out").unwrap();
        let angle_buffer = GpuBuffer::of(&gpu, &angles, "angles").unwrap();
        let rotation = Rotation {
            angles: &angle_buffer,
            pairs: case.pairs,
            interleaved: case.interleaved,
            norms: norms.as_ref(),
            epsilon: 1e-6,
            query_scale: scale,
        };
        let mut commands = gpu.commands();
        commands.rope_and_cache(&places, QueryKeyValue { q: &of_q, k: &of_k, v: &of_v }, rotation, &cache, 10).unwrap();
        commands.attend(&places, &of_q, &cache, sinks.as_ref(), &out, 20).unwrap();
        let slot = out.read(&mut commands, 0..rows).unwrap();
        let readback = commands.finish().unwrap();
        assert_eq!(readback.fault, None, "{name}");
        let got = out.elements(&readback, slot);
        let mut row = 0;
        let mut want = Vec::new();
        for ((position, count), stored) in chunks.iter().zip(&mut stored) {
            for position in *position..position + count {
                let angles = &angles[row * 2 * case.pairs..][..2 * case.pairs];
                let rounded = |x: f64| f64::from(f16::from_f32(x as f32).to_f32());
                let mut keys = Vec::new();
                for head in k[row * kv_heads * head_dim..][..kv_heads * head_dim].chunks_exact(head_dim) {
                    keys.extend(
                        turned(&case, head, case.norms.then_some(&norm_values[head_dim..]), angles)
                            .into_iter()
                            .map(rounded),
                    );
                }
                let values =
                    v[row * kv_heads * head_dim..][..kv_heads * head_dim].iter().map(|v| rounded(f64::from(*v)));
                stored.push((keys, values.collect()));
                for (head, sink) in sink_values.iter().enumerate() {
                    let from = row * heads * stride + head * stride;
                    let query = turned(
                        &case,
                        &q[from..from + head_dim],
                        case.norms.then_some(&norm_values[..head_dim]),
                        angles,
                    );
                    let kv = head / (heads / kv_heads) * head_dim;
                    let first = (position + 1).saturating_sub(window);
                    let scores: Vec<f64> = (first..=position)
                        .map(|at| {
                            let score: f64 =
                                query.iter().zip(&stored[at].0[kv..]).map(|(q, k)| q * k * f64::from(scale)).sum();
                            soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                        })
                        .collect();
                    let sum: f64 = scores.iter().map(|score| score.exp()).sum::<f64>()
                        + if case.sinks { f64::from(*sink).exp() } else { 0.0 };
                    for d in 0..head_dim {
                        let value: f64 = scores
                            .iter()
                            .zip(first..)
                            .map(|(score, at)| score.exp() / sum * stored[at].1[kv + d])
                            .sum();
                        let gate =
                            if has_gates { 1.0 / (1.0 + (-f64::from(q[from + head_dim + d])).exp()) } else { 1.0 };
                        want.push((value * gate, 1.0));
                    }
                }
                row += 1;
            }
        }
        // A key that lies between two halves may be rounded to the other one.
        if is_last {
            assert_close(name, &got, &want, 2e-4);
        }
    };
    // First what is cached already, of all sessions together.
    let cached: Vec<(usize, usize)> = case.sessions.iter().map(|(cached, _)| (0, *cached)).collect();
    compare(&cached, true);
    compare(&case.sessions, true);
}

#[test]
fn one_row_attends_to_what_is_cached() {
    let name = "one_row_attends_to_what_is_cached";
    for (cached, head_dim) in [(0, 64), (31, 64), (127, 80), (128, 8), (700, 64), (40, 256), (33, 320)] {
        check(
            name,
            Case {
                shape: shape(3, 3, head_dim),
                sessions: vec![(cached, 1)],
                pairs: head_dim / 2,
                interleaved: false,
                norms: false,
                sinks: false,
            },
        );
    }
}

#[test]
fn query_heads_share_keys_and_rows_are_causal() {
    let name = "query_heads_share_keys_and_rows_are_causal";
    for (heads, kv_heads, rows) in [(9, 3, 33), (8, 1, 7), (4, 2, 130), (6, 6, 9)] {
        check(
            name,
            Case {
                shape: shape(heads, kv_heads, 64),
                sessions: vec![(45, rows)],
                pairs: 32,
                interleaved: false,
                norms: true,
                sinks: false,
            },
        );
    }
}

#[test]
fn sessions_of_a_batch_see_only_their_own_pages() {
    check(
        "sessions_of_a_batch_see_only_their_own_pages",
        Case {
            shape: shape(4, 2, 64),
            sessions: vec![(200, 1), (0, 5), (63, 2), (64, 1), (300, 40)],
            pairs: 16,
            interleaved: true,
            norms: false,
            sinks: false,
        },
    );
}

#[test]
fn windows_soft_caps_sinks_and_gates_are_respected() {
    let name = "windows_soft_caps_sinks_and_gates_are_respected";
    for (window, cached, rows) in [(1, 40, 3), (17, 150, 40), (128, 300, 1), (200, 500, 20)] {
        let shape = AttentionShape { window, soft_cap: Some(0.7), has_gates: true, ..shape(4, 2, 32) };
        check(
            name,
            Case { shape, sessions: vec![(cached, rows)], pairs: 16, interleaved: false, norms: true, sinks: true },
        );
    }
}

#[test]
fn heads_of_512_elements_fit() {
    check(
        "heads_of_512_elements_fit",
        Case {
            shape: shape(8, 1, 512),
            sessions: vec![(20, 3)],
            pairs: 256,
            interleaved: false,
            norms: false,
            sinks: true,
        },
    );
}

#[test]
fn values_beyond_half_precision_and_queries_that_are_too_large_are_reported() {
    let Some(gpu) = gpu("values_beyond_half_precision_and_queries_that_are_too_large_are_reported") else { return };
    let shape = shape(1, 1, 8);
    let places = GpuPlaces::new(&gpu, shape, &[GpuSequence { rows: 0..1, position: 0, pages: &[0] }]).unwrap();
    let cache = GpuBuffer::new(&gpu, shape.page_bytes(), "cache").unwrap();
    let angles = GpuBuffer::of(&gpu, &[1.0f32, 0.0], "angles").unwrap();
    let of = |element: f32| GpuRows::of(&gpu, 8, &[[0.5; 7].as_slice(), &[element]].concat(), "rows").unwrap();
    let fault = |q: f32, k: f32, v: f32| {
        let mut commands = gpu.commands();
        let rows = QueryKeyValue { q: &of(q), k: &of(k), v: &of(v) };
        let rotation =
            Rotation { angles: &angles, pairs: 1, interleaved: false, norms: None, epsilon: 0.0, query_scale: 1.0 };
        commands.rope_and_cache(&places, rows, rotation, &cache, 10).unwrap();
        commands.finish().unwrap().fault
    };
    assert_eq!(fault(1e30, 65_519.0, -65_519.0), None);
    assert_eq!(fault(1.3e30, 0.0, 0.0), Some(10));
    assert_eq!(fault(f32::NAN, f32::NAN, 0.0), Some(10));
    assert_eq!(fault(0.0, 65_520.0, 0.0), Some(11));
    assert_eq!(fault(0.0, 0.0, -65_520.0), Some(12));
    assert_eq!(fault(0.0, f32::INFINITY, f32::NAN), Some(11));
}

#[test]
fn halves_are_rounded_to_nearest_even_on_every_device() {
    let Some(gpu) = gpu("halves_are_rounded_to_nearest_even_on_every_device") else { return };
    let mut random = SplitMix64::new(9);
    let shape = shape(1, 1, 512);
    let cache = GpuBuffer::new(&gpu, 2 * shape.page_bytes(), "cache").unwrap();
    let mut values: Vec<f32> = (0..64 * 512).map(|_| f32::from_bits(random.bits() as u32)).collect();
    // What f16 holds, what lies between two halves, and one unit beside that.
    for at in (0..values.len()).step_by(2) {
        let half = f16::from_bits(random.bits() as u16 & 0x7bff).to_f32();
        let next = f16::from_bits((f16::from_f32(half).to_bits() + 1).min(0x7bff)).to_f32();
        let between = half + (next - half) / 2.0;
        values[at] = [half, -between, between.next_up(), between.next_down(), 1e-8][at / 2 % 5];
    }
    values.iter_mut().filter(|v| v.is_nan() || v.abs() >= 65_519.0).for_each(|v| *v = 1.0);
    let sequence = [GpuSequence { rows: 0..64, position: 0, pages: &[1, 0] }];
    let places = GpuPlaces::new(&gpu, shape, &sequence).unwrap();
    let of = |elements: &[f32]| GpuRows::of(&gpu, 512, elements, "rows").unwrap();
    let (q, k) = (of(&vec![0.0; values.len()]), of(&vec![0.0; values.len()]));
    let angles = GpuBuffer::new(&gpu, 16, "angles").unwrap();
    let mut commands = gpu.commands();
    let rotation =
        Rotation { angles: &angles, pairs: 0, interleaved: false, norms: None, epsilon: 0.0, query_scale: 1.0 };
    let v = of(&values);
    commands.rope_and_cache(&places, QueryKeyValue { q: &q, k: &k, v: &v }, rotation, &cache, 1).unwrap();
    let words = shape.page_bytes() / 4;
    let slot = commands.read(&cache, 0..2 * words).unwrap();
    let readback = commands.finish().unwrap();
    assert_eq!(readback.fault, None);
    let halves: Vec<u16> = readback.get(slot);
    for (row, values) in values.chunks_exact(512).enumerate() {
        let page = 1 - row / 32;
        let from = page * 2 * words as usize + 32 * 512 + row % 32 * 512;
        for (got, value) in halves[from..].iter().zip(values) {
            assert_eq!(*got, f16::from_f32(*value).to_bits(), "{value:e}");
        }
    }
}

#[test]
fn sequences_that_do_not_follow_one_another_are_errors() {
    let Some(gpu) = gpu("sequences_that_do_not_follow_one_another_are_errors") else { return };
    let places = |shape, sequences: &[GpuSequence<'_>]| GpuPlaces::new(&gpu, shape, sequences).map(|_| ());
    let sequence = |rows, position, pages| GpuSequence { rows, position, pages };
    places(shape(2, 1, 8), &[sequence(0..2, 31, &[4, 5]), sequence(2..3, 0, &[0])]).unwrap();
    assert!(places(shape(2, 1, 8), &[sequence(1..2, 0, &[4])]).is_err());
    assert!(places(shape(2, 1, 8), &[sequence(0..2, 31, &[4])]).is_err());
    assert!(places(shape(2, 1, 8), &[sequence(0..0, 31, &[4])]).is_err());
    assert!(places(shape(3, 2, 8), &[sequence(0..1, 0, &[4])]).is_err());
    assert!(places(shape(2, 1, 12), &[sequence(0..1, 0, &[4])]).is_err());
    assert!(places(shape(2, 1, 520), &[sequence(0..1, 0, &[4])]).is_err());
}

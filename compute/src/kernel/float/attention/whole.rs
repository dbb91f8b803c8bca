//! The attention of one row on one thread: what other engines' kernels are held to.
#![allow(unsafe_code)]

use super::{KeysValues, LANES, PAGE_POSITIONS, Row, Terms, attend, scratch_len};
use crate::Isa;
use half::f16;

/// Attention of a row whose query is already scaled, at the last of the positions of `keys` and `values`: `[positions][head_dim]`.
pub(crate) fn attend_alone(query: &[f32], keys: &[Vec<f16>], values: &[Vec<f16>], terms: Terms, sink: f32) -> Vec<f32> {
    let (head_dim, position) = (query.len(), keys.len() - 1);
    let mut pages = vec![vec![0u16; 2 * PAGE_POSITIONS * head_dim]; keys.len().div_ceil(PAGE_POSITIONS)];
    for (at, (key, value)) in keys.iter().zip(values).enumerate() {
        let (page, slot) = (&mut pages[at / PAGE_POSITIONS], at % PAGE_POSITIONS);
        for d in 0..head_dim {
            page[slot / LANES * head_dim * LANES + d * LANES + slot % LANES] = key[d].to_bits();
            page[PAGE_POSITIONS * head_dim + slot * head_dim + d] = value[d].to_bits();
        }
    }
    let pages: Vec<*mut u16> = pages.iter_mut().map(|page| page.as_mut_ptr()).collect();
    let value_offset = PAGE_POSITIONS * head_dim;
    let cache = KeysValues { pages: &pages, key_offset: 0, value_offset, head_dim };
    let mut out = vec![0.0; head_dim];
    let row = Row { query: query.as_ptr(), out: out.as_mut_ptr(), position, sink };
    let mut scratch = vec![0.0; scratch_len(1, position)];
    // SAFETY: all of these are as long as the row and its position ask for; the best instruction set is available.
    unsafe { attend(Isa::best(), &[row], cache, terms, &mut scratch) };
    out
}

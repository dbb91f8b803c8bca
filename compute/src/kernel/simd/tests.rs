//! Every operation of every family against the portable one, bit for bit, on random lanes and on the odd ones.

use super::{Body, LANES, Simd, dispatch};
use crate::Isa;
use proptest::prelude::*;

/// What operations are tried on. Sixteen lanes of each.
#[derive(Clone, Debug)]
struct Lanes {
    floats: [Vec<f32>; 4],
    integers: [Vec<i32>; 2],
    halves: Vec<u16>,
    bytes: [Vec<u8>; 3],
    n: usize,
}

struct All<'a>(&'a Lanes);

/// Results with the name of what gave them; NaN has one payload.
type Results = Vec<(&'static str, Vec<u32>)>;

impl Body for All<'_> {
    type Out = Results;
    const DOTS: bool = true;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Results {
        let lanes = self.0;
        let mut results = Results::new();
        // SAFETY: `dispatch` chose S; every vector has 16 lanes or 64 bytes.
        unsafe {
            let [a, b, c, e] = [0, 1, 2, 3].map(|i: usize| S::load(lanes.floats[i].as_ptr()));
            let i =
                S::to_i32(S::load(lanes.integers[0].iter().map(|i| (i % 100_000) as f32).collect::<Vec<_>>().as_ptr()));
            let small =
                S::to_i32(S::load(lanes.integers[1].iter().map(|i| (i % 20) as f32).collect::<Vec<_>>().as_ptr()));
            let magnitude =
                S::load(lanes.floats[0].iter().map(|x| x.rem_euclid(3.0) + 1.0).collect::<Vec<_>>().as_ptr());
            let near = S::load(lanes.integers[0].iter().map(|i| *i as f32 / 1024.0).collect::<Vec<_>>().as_ptr());
            let mut float = |name, x: S::F| {
                let mut out = [0.0f32; LANES];
                S::store(out.as_mut_ptr(), x);
                let bits = out.map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() });
                results.push((name, bits.to_vec()));
            };
            float("add", S::add(a, b));
            float("sub", S::sub(a, b));
            float("mul", S::mul(a, b));
            float("div", S::div(a, b));
            float("fma", S::fma(a, b, c));
            float("fnma", S::fnma(a, b, c));
            float("max", S::max(a, b));
            float("min", S::min(a, b));
            float("abs", S::abs(a));
            float("copysign", S::copysign(a, b));
            float("round", S::round(near));
            float("select_lt", S::select_lt(a, b, c, e));
            float("mask_prefix", S::mask_prefix(a, lanes.n, b));
            float("scale_exponent", S::scale_exponent(magnitude, small));
            float("to_f32", S::to_f32(i));
            float("load_f16", S::load_f16(lanes.halves.as_ptr()));
            float("load_bf16", S::load_bf16(lanes.halves.as_ptr()));
            float("load_e8m0", S::load_e8m0(lanes.bytes[0].as_ptr()));
            let finite =
                S::load(lanes.floats[1].iter().map(|x| if x.is_nan() { 0.0 } else { *x }).collect::<Vec<_>>().as_ptr());
            float("max_lanes", S::splat(S::max_lanes(S::abs(finite))));
            let mut integer = |name, x: S::I| {
                let mut out = [0i32; LANES];
                S::store_i(out.as_mut_ptr(), x);
                results.push((name, out.map(|x| x as u32).to_vec()));
            };
            integer("to_i32", S::to_i32(near));
            integer("add_i", S::add_i(i, small));
            integer("sub_i", S::sub_i(i, small));
            integer("mul_i", S::mul_i(i, i));
            integer("shift_left", S::shift_left::<7>(i));
            integer("load_u8", S::load_u8(lanes.bytes[0].as_ptr()));
            integer("load_low_nibbles", S::load_low_nibbles(lanes.bytes[0].as_ptr()));
            integer("load_high_nibbles", S::load_high_nibbles(lanes.bytes[0].as_ptr()));
            integer("load_i8", S::load_i8(lanes.bytes[0].as_ptr().cast()));
            integer("sum_lanes", S::splat_i(S::sum_lanes(i)));
            // Weights as the products have them: bytes from nibbles, bits above them, and activations without −128.
            let (w, plane) = (S::load_b(lanes.bytes[0].as_ptr()), S::load_b(lanes.bytes[1].as_ptr()));
            let activations: Vec<i8> = lanes.bytes[2].iter().map(|b| (*b as i8).max(-127)).collect();
            let (x, first) = (S::load_b(activations.as_ptr().cast()), S::splat_b(activations.as_ptr()));
            let (low, high) = (S::low_nibbles(w), S::high_nibbles(w));
            integer("dots of 4 bits", S::sum_dots(S::add_dots(S::add_dots(S::no_dots(), low, x), high, first)));
            let wide = [
                S::or_masked(low, S::shift_left_4(plane), 0x30),
                S::or_masked(high, S::shift_left_4(S::shift_right_1(plane)), 0x10),
                S::or_masked(low, S::shift_right_2(plane), 0x30),
            ];
            let mut sum = S::no_dots();
            for w in wide {
                sum = S::settle_dots(S::add_dots(sum, w, x));
            }
            integer("dots of 6 bits", S::sum_dots(sum));
            let ones = S::load_b([1u8; 64].as_ptr());
            let zeros = S::prepare_i8(S::load_b([0u8; 64].as_ptr()));
            let bias = S::dot_i8(S::splat_i(0), zeros, x);
            integer("dot_i8", S::sub_i(S::dot_i8(i, S::prepare_i8(w), x), bias));
            let looked = S::lookup(plane, low);
            integer("lookup", S::sub_i(S::dot_i8(i, S::prepare_i8(looked), x), bias));
            let sums = S::sum_dots(S::add_dots(S::no_dots(), ones, x));
            integer("bias", S::sub_i(bias, S::mul_i(sums, S::splat_i(S::I8_BIAS))));
            // Five rows: pairs, and one that is left over.
            let signed = [w, plane, low, high].map(|w| S::prepare_i8(w));
            let rows = S::dots_of_rows::<5, 4>(signed, activations.as_ptr(), 11);
            let biases = S::dots_of_rows::<5, 4>([zeros; 4], activations.as_ptr(), 11);
            for (row, bias) in rows.into_iter().zip(biases) {
                integer("dots of rows", S::sub_i(row, bias));
            }
            let mut bytes = [0i8; LANES];
            S::store_i8(bytes.as_mut_ptr(), i);
            results.push(("store_i8", bytes.map(|b| b as u32).to_vec()));
            let mut halves = [0u16; LANES];
            S::store_f16(halves.as_mut_ptr(), finite);
            results.push(("store_f16", halves.map(u32::from).to_vec()));
        }
        results
    }
}

fn floats() -> impl Strategy<Value = Vec<f32>> {
    let odd = prop::sample::select(vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e-45,
        1e-40,
        f32::MAX,
    ]);
    prop::collection::vec(prop_oneof![3 => -100f32..100.0, 1 => any::<u32>().prop_map(f32::from_bits), 1 => odd], LANES)
}

proptest! {
    #[test]
    fn every_operation_gives_the_same_bits_in_every_family(
        floats in [floats(), floats(), floats(), floats()],
        integers in [prop::collection::vec(any::<i32>(), LANES), prop::collection::vec(any::<i32>(), LANES)],
        halves in prop::collection::vec(any::<u16>(), LANES),
        bytes in prop::array::uniform3(prop::collection::vec(any::<u8>(), 64)),
        n in 0..=LANES,
    ) {
        let lanes = Lanes { floats, integers, halves, bytes, n };
        // SAFETY: the portable family is everywhere; the others were found available.
        let expected = unsafe { dispatch(Isa::Plain, All(&lanes)) };
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let results = unsafe { dispatch(isa, All(&lanes)) };
            for (result, expected) in results.iter().zip(&expected) {
                prop_assert_eq!(result, expected, "{:?}", isa);
            }
        }
    }
}

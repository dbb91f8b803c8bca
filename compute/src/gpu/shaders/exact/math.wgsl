// The elementary functions of the CPU's kernels (kernel/float/math.rs), operation by operation.

const EXP_MIN = 0xc2ae0000u; // −87
const EXP_MAX = 0x42b00000u; // 88

// eˣ: Cody & Waite's reduction, then the Taylor polynomial of degree 7 by Horner's rule.
fn exponential(x: u32) -> u32 {
  let above = select(x, EXP_MAX, is_less(EXP_MAX, x));
  let clamped = select(above, EXP_MIN, is_less(above, EXP_MIN));
  let n = to_integer(times(clamped, 0x3fb8aa3bu)); // log₂ e
  let turns = negative(from_integer(n));
  // ln 2 in two parts.
  let r = fused(turns, 0xb95e8083u, fused(turns, 0x3f318000u, clamped));
  // 1/6!, 1/5!, 1/4!, 1/3!, 1/2, 1, 1
  var coefficients = array<u32, 7>(0x3ab60b61u, 0x3c088889u, 0x3d2aaaabu, 0x3e2aaaabu, 0x3f000000u, ONE, ONE);
  var p = 0x39500d01u; // 1/7!
  for (var i = 0u; i < 7u; i++) {
    p = fused(p, r, coefficients[i]);
  }
  return select(p + (bitcast<u32>(n) << 23u), 0u, is_less(x, EXP_MIN));
}

// 1 + e^x
fn one_and_exponential(x: u32) -> u32 {
  return plus(ONE, exponential(x));
}

// x · sigmoid(x)
fn silu(x: u32) -> u32 {
  return quotient(x, one_and_exponential(minus(0u, x)));
}

// GELU in its tanh form.
fn gelu(x: u32) -> u32 {
  // −2·√(2/π)·0.044715, −2·√(2/π)
  let inner = times(x, fused(times(x, x), 0xbd922279u, 0xbfcc422au));
  return quotient(x, one_and_exponential(inner));
}

fn tangent(x: u32) -> u32 {
  let e = exponential(times(x & MAGNITUDE, TWO));
  let magnitude = minus(ONE, quotient(TWO, plus(e, ONE)));
  return (magnitude & MAGNITUDE) | (x & SIGN);
}

// cap · tanh(x / cap)
fn soft_cap(x: u32, cap: u32) -> u32 {
  return times(cap, tangent(quotient(x, cap)));
}

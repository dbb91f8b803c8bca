// IEEE 754 arithmetic in integers, on the bits of f32: rounded to nearest, ties to even, with subnormal numbers and infinities, as
// the CPU's kernels compute it. No float of WGSL is touched, whose compilers may fuse, reorder and flush.

const SIGN = 0x80000000u;
const MAGNITUDE = 0x7fffffffu;
const INFINITY = 0x7f800000u;
const NAN = 0x7fc00000u;
const ONE = 0x3f800000u;
const TWO = 0x40000000u;

// The number significand / 2³¹ · 2^(exponent − 127). The significand has its highest bit, or is zero.
struct Parts {
  exponent: i32,
  significand: u32,
}

fn parts(x: u32) -> Parts {
  let exponent = (x >> 23u) & 255u;
  let significand = ((x & 0x7fffffu) | select(0u, 0x800000u, exponent != 0u)) << 8u;
  let zeros = countLeadingZeros(significand);
  return Parts(i32(max(exponent, 1u)) - i32(zeros), significand << (zeros & 31u));
}

// The nearest f32. The significand has its highest bit; its lowest bit stands for all bits below it.
fn rounded(sign: u32, exponent: i32, significand: u32) -> u32 {
  if (exponent >= 255) {
    return sign | INFINITY;
  }
  var kept = significand;
  var base = 0u;
  if (exponent > 0) {
    base = u32(exponent - 1) << 23u;
  } else {
    let shift = u32(min(1 - exponent, 31));
    kept = (significand >> shift) | u32((significand << (32u - shift)) != 0u);
  }
  let rest = kept & 255u;
  let up = u32(rest > 128u || (rest == 128u && (kept & 256u) != 0u));
  return sign | (base + (kept >> 8u) + up);
}

fn is_special(x: u32) -> bool {
  return (x & INFINITY) == INFINITY;
}

fn is_nan(x: u32) -> bool {
  return (x & MAGNITUDE) > INFINITY;
}

fn is_zero(x: u32) -> bool {
  return (x & MAGNITUDE) == 0u;
}

fn negative(x: u32) -> u32 {
  return x ^ SIGN;
}

// The highest 24 bits of the product of two significands of 24 bits, which has 48 or 47.
fn upper_product(x: u32, y: u32) -> u32 {
  let low = (x & 0xfffu) * (y & 0xfffu);
  let middle = (x >> 12u) * (y & 0xfffu) + (x & 0xfffu) * (y >> 12u);
  return (x >> 12u) * (y >> 12u) + ((middle + (low >> 12u)) >> 12u);
}

fn special_product(a: u32, b: u32) -> u32 {
  if (is_nan(a) || is_nan(b) || is_zero(a) || is_zero(b)) {
    return NAN;
  }
  return ((a ^ b) & SIGN) | INFINITY;
}

// a · b
fn times(a: u32, b: u32) -> u32 {
  if (is_special(a) || is_special(b)) {
    return special_product(a, b);
  }
  let sign = (a ^ b) & SIGN;
  let x = parts(a);
  let y = parts(b);
  if (x.significand == 0u || y.significand == 0u) {
    return sign;
  }
  let lower = (x.significand >> 8u) * (y.significand >> 8u);
  let upper = upper_product(x.significand >> 8u, y.significand >> 8u);
  // The highest 32 of 48 bits.
  var significand = (upper << 8u) | ((lower >> 16u) & 255u);
  var below = lower & 0xffffu;
  var exponent = x.exponent + y.exponent - 126;
  if ((significand & SIGN) == 0u) {
    significand = (significand << 1u) | (below >> 15u);
    below &= 0x7fffu;
    exponent -= 1;
  }
  return rounded(sign, exponent, significand | u32(below != 0u));
}

// a · b + c, rounded once.
fn fused(a: u32, b: u32, c: u32) -> u32 {
  let sign = (a ^ b) & SIGN;
  if (is_special(a) || is_special(b)) {
    let product = special_product(a, b);
    if (is_nan(product) || is_nan(c) || (is_special(c) && product != c)) {
      return NAN;
    }
    return product;
  }
  if (is_special(c)) {
    return select(c, NAN, is_nan(c));
  }
  let x = parts(a);
  let y = parts(b);
  let z = parts(c);
  if (x.significand == 0u || y.significand == 0u) {
    return select(c, sign & c, z.significand == 0u);
  }
  // 64 bits of each, of which the highest is left for the carry.
  let lower = (x.significand >> 8u) * (y.significand >> 8u);
  let upper = upper_product(x.significand >> 8u, y.significand >> 8u);
  var high = (upper << 7u) | ((lower >> 17u) & 127u);
  var low = lower << 15u;
  var exponent = x.exponent + y.exponent - 126;
  if ((high & 0x40000000u) == 0u) {
    high = (high << 1u) | (low >> 31u);
    low <<= 1u;
    exponent -= 1;
  }
  var other_high = z.significand >> 1u;
  var other_low = 0u;
  var other_exponent = select(z.exponent, -1024, z.significand == 0u);
  var result_sign = sign;
  let is_difference = ((sign ^ c) & SIGN) != 0u;
  if (other_exponent > exponent || (other_exponent == exponent && other_high > high)) {
    let swapped_high = high;
    let swapped_low = low;
    let swapped_exponent = exponent;
    high = other_high;
    low = 0u;
    exponent = other_exponent;
    other_high = swapped_high;
    other_low = swapped_low;
    other_exponent = swapped_exponent;
    result_sign = c & SIGN;
  }
  // The smaller one comes to the exponent of the larger; what falls off leaves a bit.
  let shift = u32(exponent - other_exponent);
  if (shift >= 64u) {
    other_low = u32((other_high | other_low) != 0u);
    other_high = 0u;
  } else if (shift >= 32u) {
    let by = shift - 32u;
    let fallen = other_low | select(0u, other_high << ((32u - by) & 31u), by != 0u);
    other_low = (other_high >> by) | u32(fallen != 0u);
    other_high = 0u;
  } else if (shift > 0u) {
    let fallen = other_low << (32u - shift);
    other_low = (other_low >> shift) | (other_high << (32u - shift)) | u32(fallen != 0u);
    other_high = other_high >> shift;
  }
  if (is_difference) {
    let borrow = u32(low < other_low);
    low -= other_low;
    high -= other_high + borrow;
    if ((high | low) == 0u) {
      return 0u;
    }
  } else {
    low += other_low;
    high += other_high + u32(low < other_low);
  }
  var zeros = countLeadingZeros(high);
  if (high == 0u) {
    high = low;
    low = 0u;
    exponent -= 32;
    zeros = countLeadingZeros(high);
  }
  if (zeros > 0u) {
    high = (high << zeros) | (low >> (32u - zeros));
    low <<= zeros;
  }
  return rounded(result_sign, exponent + 1 - i32(zeros), high | u32(low != 0u));
}

// a + b. A product with one is exact.
fn plus(a: u32, b: u32) -> u32 {
  return fused(a, ONE, b);
}

// a − b
fn minus(a: u32, b: u32) -> u32 {
  return fused(a, ONE, negative(b));
}

// a / b
fn quotient(a: u32, b: u32) -> u32 {
  let sign = (a ^ b) & SIGN;
  if (is_nan(a) || is_nan(b) || (is_special(a) && is_special(b)) || (is_zero(a) && is_zero(b))) {
    return NAN;
  }
  if (is_special(a) || is_zero(b)) {
    return sign | INFINITY;
  }
  if (is_special(b) || is_zero(a)) {
    return sign;
  }
  let x = parts(a);
  let y = parts(b);
  let divisor = y.significand >> 8u;
  var rest = x.significand >> 8u;
  var exponent = x.exponent - y.exponent + 127;
  if (rest < divisor) {
    rest <<= 1u;
    exponent -= 1;
  }
  var bits = 0u;
  for (var i = 0u; i < 26u; i++) {
    let is_in = rest >= divisor;
    bits = (bits << 1u) | u32(is_in);
    rest = (rest - select(0u, divisor, is_in)) << 1u;
  }
  return rounded(sign, exponent, (bits << 6u) | u32(rest != 0u));
}

// √x
fn root(x: u32) -> u32 {
  if (is_zero(x) || x == INFINITY) {
    return x;
  }
  if (is_nan(x) || (x & SIGN) != 0u) {
    return NAN;
  }
  let own = parts(x);
  let exponent = own.exponent - 127;
  // Two bits before the point, 24 after it.
  let radicand = (own.significand >> 7u) << u32(exponent & 1);
  var rest = 0u;
  var bits = 0u;
  for (var i = 0u; i < 26u; i++) {
    var pair = 0u;
    if (i < 13u) {
      pair = (radicand >> (24u - 2u * i)) & 3u;
    }
    rest = (rest << 2u) | pair;
    let next = (bits << 2u) | 1u;
    let is_in = rest >= next;
    rest -= select(0u, next, is_in);
    bits = (bits << 1u) | u32(is_in);
  }
  return rounded(0u, (exponent >> 1u) + 127, (bits << 6u) | u32(rest != 0u));
}

// The nearest integer, ties to even; |x| < 2³⁰, else 0.
fn to_integer(x: u32) -> i32 {
  let exponent = (x >> 23u) & 255u;
  if (exponent < 126u || exponent >= 157u) {
    return 0;
  }
  let significand = ((x & 0x7fffffu) | 0x800000u) << 7u;
  let shift = 157u - exponent;
  let half = 1u << (shift - 1u);
  let rest = significand & ((half << 1u) - 1u);
  var kept = significand >> shift;
  kept += u32(rest > half || (rest == half && (kept & 1u) != 0u));
  return select(i32(kept), -i32(kept), (x & SIGN) != 0u);
}

// The nearest f32.
fn from_integer(i: i32) -> u32 {
  if (i == 0) {
    return 0u;
  }
  let magnitude = u32(abs(i));
  let zeros = countLeadingZeros(magnitude);
  return rounded(select(0u, SIGN, i < 0), 158 - i32(zeros), magnitude << zeros);
}

// Of the bits of f16, exactly.
fn from_half(x: u32) -> u32 {
  let sign = (x & 0x8000u) << 16u;
  let exponent = (x >> 10u) & 31u;
  let fraction = x & 1023u;
  if (exponent == 31u) {
    return sign | INFINITY | (fraction << 13u);
  }
  if (exponent == 0u) {
    if (fraction == 0u) {
      return sign;
    }
    let zeros = countLeadingZeros(fraction);
    return sign | ((134u - zeros) << 23u) | (((fraction << zeros) >> 8u) & 0x7fffffu);
  }
  return sign | ((exponent + 112u) << 23u) | (fraction << 13u);
}

// An integer that is ordered as x is; zeros are equal. Not for NaN.
fn ordered(x: u32) -> i32 {
  let magnitude = i32(x & MAGNITUDE);
  return select(magnitude, -magnitude, (x & SIGN) != 0u);
}

// a < b; false for NaN.
fn is_less(a: u32, b: u32) -> bool {
  return !is_nan(a) && !is_nan(b) && ordered(a) < ordered(b);
}

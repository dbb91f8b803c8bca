// What several kernels use. Exponents are looked at as bits: a compiler may assume that no float is infinite.

// Whether a float is NaN or infinite.
fn is_bad(x: f32) -> bool {
  return (bitcast<u32>(x) & 0x7f800000u) == 0x7f800000u;
}

// The bits of x as f16, rounded to nearest, ties to even, in integers: drivers differ in how they narrow. Beyond f16's range:
// infinity; NaN stays NaN.
fn f16_bits(x: f32) -> u32 {
  return half_of_bits(bitcast<u32>(x));
}

// The same of the bits of x.
fn half_of_bits(bits: u32) -> u32 {
  let sign = (bits >> 16u) & 0x8000u;
  let magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return sign | 0x7e00u;
  }
  if (magnitude >= 0x477ff000u) {
    return sign | 0x7c00u;
  }
  if (magnitude < 0x33000000u) {
    return sign;
  }
  // The fraction with its leading one, and how far it is shifted.
  let exponent = magnitude >> 23u;
  var fraction = (magnitude & 0x7fffffu) | 0x800000u;
  var shift = 13u;
  var base = (exponent - 112u) << 10u;
  if (exponent < 113u) {
    shift = 126u - exponent;
    base = 0u;
  } else {
    fraction = magnitude & 0x7fffffu;
  }
  let kept = fraction >> shift;
  let rest = fraction & ((1u << shift) - 1u);
  let half = 1u << (shift - 1u);
  let up = u32(rest > half || (rest == half && (kept & 1u) == 1u));
  return sign | (base + kept + up);
}

// Where a workgroup of a row of workgroups stands that was broken into several.
fn spread(group: vec3<u32>, groups: vec3<u32>) -> u32 {
  return group.z * groups.x + group.x;
}

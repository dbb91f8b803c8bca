// The step of a product for a block of quantised weights.

fn load(b: u32) -> Weights {
  let low = vec4<u32>(codes(b, 0u), codes(b, 1u));
  return Weights(low, vec4<u32>(codes(b, 2u), codes(b, 3u)), scales(b));
}

fn dot_of(x: vec4<u32>, y: vec4<u32>) -> i32 {
  return dot4I8Packed(x.x, y.x) + dot4I8Packed(x.y, y.y) + dot4I8Packed(x.z, y.z) + dot4I8Packed(x.w, y.w);
}

fn multiply_add(weights: Weights, row: u32, b: u32, sum: u32) -> u32 {
  let at = row * p.x_stride + b * 3u;
  // Bits of d and d · Σ, Σ, the sum of the first half.
  let own = x[at + 2u];
  let first_sum = bitcast<i32>(own.w);
  let second_sum = bitcast<i32>(own.z) - first_sum;
  let first = dot_of(weights.low, x[at]) - OFFSET * first_sum;
  let second = dot_of(weights.high, x[at + 1u]) - OFFSET * second_sum;
  let scales = weights.scales;
  var dot = first + second;
  if (HALVES) {
    dot = scales.halves.x * first + scales.halves.y * second;
  }
  var total = fused(times(scales.scale, own.x), from_integer(dot), sum);
  if (MINIMA == ADDED) {
    total = fused(scales.minimum, own.y, total);
  } else if (MINIMA == SUBTRACTED) {
    total = fused(negative(scales.minimum), own.y, total);
  } else if (MINIMA == OF_HALVES) {
    let minima = scales.half_minima.x * first_sum + scales.half_minima.y * second_sum;
    total = fused(negative(times(scales.minimum, own.x)), from_integer(minima), total);
  }
  return total;
}

// The element i of a block of quantised weights, as `dequantize` gives it: products and sums are rounded apart.
fn element(b: u32, i: u32) -> u32 {
  let words = codes(b, i / 8u);
  let byte = (words[(i >> 2u) & 1u] >> ((i & 3u) * 8u)) & 255u;
  let own = scales(b);
  let is_first = i < 16u;
  var scale = own.scale;
  if (HALVES) {
    scale = times(scale, from_integer(select(own.halves.y, own.halves.x, is_first)));
  }
  let value = times(scale, from_integer(signed_integer(byte) - OFFSET));
  if (MINIMA == ADDED) {
    return plus(value, own.minimum);
  }
  if (MINIMA == SUBTRACTED) {
    return minus(value, own.minimum);
  }
  if (MINIMA == OF_HALVES) {
    return minus(value, times(own.minimum, from_integer(select(own.half_minima.y, own.half_minima.x, is_first))));
  }
  return value;
}

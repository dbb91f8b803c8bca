// Plane 0: nibbles. Plane 1: scale and minimum, a byte each. Plane 2: scale and minimum of eight blocks, half floats.
const OFFSET = 0;
const HALVES = false;
const MINIMA = SUBTRACTED;
fn codes(b: u32, o: u32) -> vec2<u32> {
  return nibble_codes(nibbles(b, o));
}
fn scales(b: u32) -> Scales {
  let of_block = sixteen_bits(p.plane1, b);
  let d = half_pair(word(p.plane2 + (b >> 3u)));
  let scale = times(d.x, from_integer(i32(of_block & 255u)));
  return Scales(scale, times(d.y, from_integer(i32(of_block >> 8u))), no_halves(), no_halves());
}

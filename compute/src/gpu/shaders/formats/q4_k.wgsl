// Plane 0: nibbles. Plane 1: scale and minimum, a byte each. Plane 2: scale and minimum of eight blocks, half floats.
const SHIFTED = true;
fn load(b: u32, o: u32) -> Octet {
  let of_block = sixteen_bits(p.plane1, b);
  let d = unpack2x16float(word(p.plane2 + (b >> 3u)));
  return nibble_octet(nibbles(b, o), d.x * f32(of_block & 255u), -d.y * f32(of_block >> 8u));
}

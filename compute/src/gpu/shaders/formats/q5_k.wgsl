// Plane 0: nibbles. Plane 1: fifth bits. Plane 2: scale and minimum, a byte each. Plane 3: scale and minimum of eight blocks, half
// floats.
const SHIFTED = true;
fn load(b: u32, o: u32) -> Octet {
  let of_block = sixteen_bits(p.plane2, b);
  let d = unpack2x16float(word(p.plane3 + (b >> 3u)));
  let scale = d.x * f32(of_block & 255u);
  return five_bit_octet(nibbles(b, o), bits(p.plane1, b, o), scale, -d.y * f32(of_block >> 8u));
}

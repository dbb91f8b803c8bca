// Plane 0: nibbles. Plane 1: fifth and sixth bits. Plane 2: of each half a signed byte, the scale. Plane 3: a half float for eight
// blocks.
const SHIFTED = true;
fn load(b: u32, o: u32) -> Octet {
  let x = nibbles(b, o);
  let upper = pairs(p.plane1, b, o);
  let scale = half_float(p.plane3, b >> 3u) * signed_byte(of_half(sixteen_bits(p.plane2, b), o));
  let low = unsigned_quad((x & 0x0f0f0f0fu) | ((upper & 0x03030303u) << 4u));
  let high = unsigned_quad(((x >> 4u) & 0x0f0f0f0fu) | (((upper >> 2u) & 0x03030303u) << 4u));
  return Octet(low, high, scale, -32.0 * scale);
}

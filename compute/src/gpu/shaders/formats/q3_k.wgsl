// Plane 0: pairs of bits. Plane 1: third bits. Plane 2: of each half a signed byte, the scale. Plane 3: a half float for eight
// blocks.
const SHIFTED = true;
fn load(b: u32, o: u32) -> Octet {
  let x = pairs(0u, b, o);
  let third = bits(p.plane1, b, o);
  let scale = half_float(p.plane3, b >> 3u) * signed_byte(of_half(sixteen_bits(p.plane2, b), o));
  let low = unsigned_quad((x & 0x03030303u) | (spread_bits(third) << 2u));
  let high = unsigned_quad(((x >> 2u) & 0x03030303u) | (spread_bits(third >> 4u) << 2u));
  return Octet(low, high, scale, -4.0 * scale);
}

// Plane 0: pairs of bits. Plane 1: of each half a byte, scale and minimum in its nibbles. Plane 2: scale and minimum of eight
// blocks, half floats.
const SHIFTED = true;
fn load(b: u32, o: u32) -> Octet {
  let x = pairs(0u, b, o);
  let of_group = of_half(sixteen_bits(p.plane1, b), o);
  let d = unpack2x16float(word(p.plane2 + (b >> 3u)));
  let low = unsigned_quad(x & 0x03030303u);
  return Octet(low, unsigned_quad((x >> 2u) & 0x03030303u), d.x * f32(of_group & 15u), -d.y * f32(of_group >> 4u));
}

// Plane 0: nibbles. Plane 1: fifth bits. Plane 2: scale and minimum, half floats.
const SHIFTED = true;
fn load(b: u32, o: u32) -> Octet {
  let d = unpack2x16float(word(p.plane2 + b));
  return five_bit_octet(nibbles(b, o), bits(p.plane1, b, o), d.x, d.y);
}

// Plane 0: nibbles. Plane 1: scale and minimum, half floats.
const SHIFTED = true;
fn load(b: u32, o: u32) -> Octet {
  let d = unpack2x16float(word(p.plane1 + b));
  return nibble_octet(nibbles(b, o), d.x, d.y);
}

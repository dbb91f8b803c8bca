// Plane 0: nibbles that choose a value, twice what it is. Plane 1: the upper half of a float, half the scale.
const SHIFTED = false;
fn load(b: u32, o: u32) -> Octet {
  let scale = bitcast<f32>(sixteen_bits(p.plane1, b) << 16u);
  return book_octet(vec4<u32>(BOOK0, BOOK1, BOOK2, BOOK3), nibbles(b, o), scale);
}

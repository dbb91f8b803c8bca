// Plane 0: nibbles that choose a value, twice what it is. Plane 1: the upper half of a float, half the scale.
const OFFSET = 0;
const HALVES = false;
const MINIMA = NONE;
fn codes(b: u32, o: u32) -> vec2<u32> {
  return book_codes(vec4<u32>(BOOK0, BOOK1, BOOK2, BOOK3), nibbles(b, o));
}
fn scales(b: u32) -> Scales {
  return Scales(sixteen_bits(p.plane1, b) << 16u, 0u, no_halves(), no_halves());
}

// Plane 0: nibbles that choose a value. Plane 1: a signed byte, the scale. Plane 2: a half float for eight blocks.
const OFFSET = 0;
const HALVES = false;
const MINIMA = NONE;
fn codes(b: u32, o: u32) -> vec2<u32> {
  return book_codes(vec4<u32>(BOOK0, BOOK1, BOOK2, BOOK3), nibbles(b, o));
}
fn scales(b: u32) -> Scales {
  let of_block = signed_integer(word(p.plane1 + (b >> 2u)) >> ((b & 3u) * 8u));
  return Scales(times(half_bits(p.plane2, b >> 3u), from_integer(of_block)), 0u, no_halves(), no_halves());
}

// Plane 0: nibbles that choose a value. Plane 1: a signed byte, the scale. Plane 2: a half float for eight blocks.
const SHIFTED = false;
fn load(b: u32, o: u32) -> Octet {
  let scale = signed_byte(word(p.plane1 + (b >> 2u)) >> ((b & 3u) * 8u));
  return book_octet(vec4<u32>(BOOK0, BOOK1, BOOK2, BOOK3), nibbles(b, o), half_float(p.plane2, b >> 3u) * scale);
}

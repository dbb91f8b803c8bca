// Plane 0: nibbles that choose a value. Plane 1: a half float.
const SHIFTED = false;
fn load(b: u32, o: u32) -> Octet {
  return book_octet(vec4<u32>(BOOK0, BOOK1, BOOK2, BOOK3), nibbles(b, o), half_float(p.plane1, b));
}

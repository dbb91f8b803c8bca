// Plane 0: signed bytes. Plane 1: a half float.
const SHIFTED = false;
fn load(b: u32, o: u32) -> Octet {
  let at = b * 8u + o * 2u;
  return Octet(signed_quad(word(at)), signed_quad(word(at + 1u)), half_float(p.plane1, b), 0.0);
}

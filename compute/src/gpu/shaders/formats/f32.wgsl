// Plane 0: 32 floats.
const SHIFTED = false;
fn load(b: u32, o: u32) -> Octet {
  let at = b * 8u + o * 2u;
  return Octet(bitcast<vec4<f32>>(w[at]), bitcast<vec4<f32>>(w[at + 1u]), 1.0, 0.0);
}

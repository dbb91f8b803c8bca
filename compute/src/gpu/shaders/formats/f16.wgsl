// Plane 0: 32 half floats.
const SHIFTED = false;
fn load(b: u32, o: u32) -> Octet {
  let x = w[b * 4u + o];
  let low = vec4<f32>(unpack2x16float(x.x), unpack2x16float(x.y));
  return Octet(low, vec4<f32>(unpack2x16float(x.z), unpack2x16float(x.w)), 1.0, 0.0);
}

// Plane 0: 32 upper halves of floats.
const SHIFTED = false;
fn load(b: u32, o: u32) -> Octet {
  let x = w[b * 4u + o];
  let low = bitcast<vec4<f32>>(vec4<u32>(x.x << 16u, x.x & 0xffff0000u, x.y << 16u, x.y & 0xffff0000u));
  let high = bitcast<vec4<f32>>(vec4<u32>(x.z << 16u, x.z & 0xffff0000u, x.w << 16u, x.w & 0xffff0000u));
  return Octet(low, high, 1.0, 0.0);
}

// Plane 0: nibbles. Plane 1: scale and minimum, a byte each. Plane 2: scale and minimum of eight blocks, half floats.
const SHIFTED = true;
struct Raw { low: vec4<u32>, scale: vec2<f32>, shift: vec2<f32> }
fn load(b: u32) -> Raw {
  let of_block = sixteen_bits(p.plane1, b);
  let d = unpack2x16float(word(p.plane2 + (b >> 3u)));
  return Raw(w[b], vec2<f32>(d.x * f32(of_block & 255u)), vec2<f32>(-d.y * f32(of_block >> 8u)));
}
fn codes(raw: Raw, g: u32) -> vec4<f32> {
  return unsigned_quad(nibbles(raw.low, g));
}

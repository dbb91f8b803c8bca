// gate = activation(gate) · up, as the activation says.

struct Params {
  cols: u32,
  stride: u32,
  // 0: SiLU, 1: GELU in its tanh form, 2: gpt-oss's clamped SiLU.
  activation: u32,
  code: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> gate: array<f32>;
@group(0) @binding(1) var<storage, read> up: array<f32>;
@group(0) @binding(2) var<storage, read_write> fault: atomic<u32>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let col = group.x * 128u + t;
  if (col >= p.cols) {
    return;
  }
  let at = group.y * p.stride + col;
  let x = gate[at];
  let u = up[at];
  var y = 0.0;
  if (p.activation == 0u) {
    // Of larger exponents the quotient is as good as zero.
    y = x / (1.0 + exp(min(-x, 87.0))) * u;
  } else if (p.activation == 1u) {
    // Beyond 10, the tangent is 1 in f32; its own exponentials may overflow.
    let inner = clamp(0.7978845608 * (x + 0.044715 * x * x * x), -10.0, 10.0);
    y = 0.5 * x * (1.0 + tanh(inner)) * u;
  } else {
    let g = min(x, 7.0);
    y = g / (1.0 + exp(min(-1.702 * g, 87.0))) * (clamp(u, -7.0, 7.0) + 1.0);
  }
  // Infinities become numbers here.
  report(is_bad(x) || is_bad(u) || is_bad(y), p.code);
  gate[at] = y;
}

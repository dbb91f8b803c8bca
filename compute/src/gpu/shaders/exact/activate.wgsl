// gate = activation(gate) · up, as the activation says.

struct Params {
  cols: u32,
  stride: u32,
  // 0: SiLU, 1: GELU in its tanh form, 2: gpt-oss's clamped SiLU.
  activation: u32,
  code: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> gate: array<u32>;
@group(0) @binding(1) var<storage, read> up: array<u32>;
@group(0) @binding(2) var<storage, read_write> fault: atomic<u32>;

const LIMIT = 0x40e00000u; // 7
const ALPHA = 0x3fd9db23u; // 1.702

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let col = group.x * 128u + t;
  if (col >= p.cols) {
    return;
  }
  let at = group.y * p.stride + col;
  let x = gate[at];
  let u = up[at];
  var y = 0u;
  if (p.activation == 0u) {
    y = times(silu(x), u);
  } else if (p.activation == 1u) {
    y = times(gelu(x), u);
  } else {
    let g = select(LIMIT, x, is_less(x, LIMIT));
    let below = select(LIMIT, u, is_less(u, LIMIT));
    let within = select(negative(LIMIT), below, is_less(negative(LIMIT), below));
    let sigmoid = quotient(g, one_and_exponential(times(negative(ALPHA), g)));
    y = times(sigmoid, plus(within, ONE));
  }
  // Infinities become numbers here.
  report(is_special(x) || is_special(u) || is_special(y), p.code);
  gate[at] = y;
}

// Activations in 8 bits, a scale for 32 elements: a thread for each block. Of each block: the 32 integers, four in a word; the bits
// of the scale d and of d · Σ; the sum Σ, and that of the first sixteen.

struct Params {
  blocks: u32,
  // Words of a row of x.
  stride: u32,
  code: u32,
  pad0: u32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<u32>;
// [rows, blocks, 3]
@group(0) @binding(1) var<storage, read_write> q: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> fault: atomic<u32>;

const LARGEST = 0x42fe0000u; // 127

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  let block = group.x * 64u + t;
  if (block >= p.blocks) {
    return;
  }
  let origin = group.y * p.stride + block * 32u;
  var largest = 0u;
  for (var i = 0u; i < 32u; i++) {
    largest = max(largest, x[origin + i] & MAGNITUDE);
  }
  report(largest >= INFINITY, p.code);
  var inverse = quotient(LARGEST, largest);
  var d = quotient(largest, LARGEST);
  if (is_special(inverse)) {
    inverse = 0u;
    d = 0u;
  }
  let to = (group.y * p.blocks + block) * 3u;
  var sum = 0;
  var first = 0;
  for (var half = 0u; half < 2u; half++) {
    var words = vec4<u32>();
    for (var word = 0u; word < 4u; word++) {
      var bytes = 0u;
      for (var i = 0u; i < 4u; i++) {
        let value = to_integer(times(x[origin + half * 16u + word * 4u + i], inverse));
        sum += value;
        bytes |= (bitcast<u32>(value) & 255u) << (i * 8u);
      }
      words[word] = bytes;
    }
    if (half == 0u) {
      first = sum;
    }
    q[to + half] = words;
  }
  q[to + 2u] = vec4<u32>(d, times(d, from_integer(sum)), bitcast<u32>(sum), bitcast<u32>(first));
}

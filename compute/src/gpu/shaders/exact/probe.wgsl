// One operation on many numbers: y = OPERATION(a, b, c).

struct Params {
  count: u32,
  pad0: u32,
  pad1: u32,
  pad2: u32,
}
var<immediate> p: Params;
// [count]: a, b, c, nothing
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_index) t: u32,
) {
  let i = spread(group, groups) * 64u + t;
  if (i >= p.count) {
    return;
  }
  let a = x[i].x;
  let b = x[i].y;
  let c = x[i].z;
  var result = 0u;
  if (OPERATION == 0u) {
    result = plus(a, b);
  } else if (OPERATION == 1u) {
    result = minus(a, b);
  } else if (OPERATION == 2u) {
    result = times(a, b);
  } else if (OPERATION == 3u) {
    result = fused(a, b, c);
  } else if (OPERATION == 4u) {
    result = quotient(a, b);
  } else if (OPERATION == 5u) {
    result = root(a);
  } else if (OPERATION == 6u) {
    result = bitcast<u32>(to_integer(a));
  } else if (OPERATION == 7u) {
    result = from_integer(bitcast<i32>(a));
  } else if (OPERATION == 8u) {
    result = from_half(a & 0xffffu);
  } else {
    result = half_of_bits(a);
  }
  y[i] = result;
}

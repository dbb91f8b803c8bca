// Blocks of 32 weights in planes: plane 0 begins the buffer, the others begin at the words p.plane1, p.plane2, p.plane3. A format
// defines Raw, what it loads of a block; `load`; and `codes`, the integers of the quad g (0 to 7) of a block, four consecutive
// weights. A weight of half h = g / 4 is codes · scale[h] + shift[h].

fn word(i: u32) -> u32 {
  return w[i >> 2u][i & 3u];
}

fn sixteen_bits(plane: u32, i: u32) -> u32 {
  return (word(plane + (i >> 1u)) >> ((i & 1u) * 16u)) & 0xffffu;
}

fn half_float(plane: u32, i: u32) -> f32 {
  return unpack2x16float(sixteen_bits(plane, i)).x;
}

// A signed byte, the lowest of a word.
fn signed_byte(x: u32) -> f32 {
  return f32(bitcast<i32>(x << 24u) >> 24u);
}

// Four nibbles of a quad, each in a byte.
fn nibbles(low: vec4<u32>, g: u32) -> u32 {
  return (low[g >> 1u] >> ((g & 1u) * 4u)) & 0x0f0f0f0fu;
}

// Four bits of a quad, each in a byte.
fn bits(x: u32, g: u32) -> u32 {
  return (((x >> (g * 4u)) & 15u) * 0x00204081u) & 0x01010101u;
}

// Four pairs of bits of a quad, each in a byte.
fn pairs(x: vec2<u32>, g: u32) -> u32 {
  return (x[g >> 2u] >> ((g & 3u) * 2u)) & 0x03030303u;
}

fn unsigned_quad(x: u32) -> vec4<f32> {
  return vec4<f32>(vec4<u32>(x, x >> 8u, x >> 16u, x >> 24u) & vec4<u32>(255u));
}

fn signed_quad(x: u32) -> vec4<f32> {
  return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(x << 24u, x << 16u, x << 8u, x)) >> vec4<u32>(24u));
}

// The values of a code book of sixteen signed bytes, in four words, that four nibbles in the bytes of x choose.
fn book_quad(book: vec4<u32>, x: u32) -> vec4<f32> {
  let n = vec4<u32>(x, x >> 8u, x >> 16u, x >> 24u) & vec4<u32>(15u);
  let low = select(vec4<u32>(book.x), vec4<u32>(book.y), n >= vec4<u32>(4u));
  let high = select(vec4<u32>(book.z), vec4<u32>(book.w), n >= vec4<u32>(12u));
  let chosen = select(low, high, n >= vec4<u32>(8u));
  let left = (vec4<u32>(3u) - (n & vec4<u32>(3u))) * 8u;
  return vec4<f32>(bitcast<vec4<i32>>(chosen << left) >> vec4<u32>(24u));
}

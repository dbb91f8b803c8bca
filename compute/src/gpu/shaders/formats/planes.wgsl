// Blocks of 32 weights in planes: plane 0 begins the buffer, the others begin at the words p.plane1, p.plane2, p.plane3. A format
// defines `load`: eight consecutive weights, those of octet o (0 to 3) of block b. A weight is code · scale + shift.

struct Octet {
  low: vec4<f32>,
  high: vec4<f32>,
  scale: f32,
  shift: f32,
}

fn word(i: u32) -> u32 {
  return w[i >> 2u][i & 3u];
}

fn sixteen_bits(plane: u32, i: u32) -> u32 {
  return (word(plane + (i >> 1u)) >> ((i & 1u) * 16u)) & 0xffffu;
}

fn half_float(plane: u32, i: u32) -> f32 {
  return unpack2x16float(sixteen_bits(plane, i)).x;
}

// The byte of the octet's half of the block, of two in x.
fn of_half(x: u32, o: u32) -> u32 {
  return (x >> ((o >> 1u) * 8u)) & 255u;
}

// A signed byte, the lowest of a word.
fn signed_byte(x: u32) -> f32 {
  return f32(bitcast<i32>(x << 24u) >> 24u);
}

// The nibbles of an octet: those of the first quad are the low ones.
fn nibbles(b: u32, o: u32) -> u32 {
  return w[b][o];
}

// The pairs of bits of an octet: those of the first quad in the lowest bits of the bytes, those of the second above them.
fn pairs(plane: u32, b: u32, o: u32) -> u32 {
  return word(plane + b * 2u + (o >> 1u)) >> ((o & 1u) * 4u);
}

// The bits of an octet.
fn bits(plane: u32, b: u32, o: u32) -> u32 {
  return word(plane + b) >> (o * 8u);
}

// The lowest four bits, each in a byte.
fn spread_bits(x: u32) -> u32 {
  return ((x & 15u) * 0x00204081u) & 0x01010101u;
}

fn unsigned_quad(x: u32) -> vec4<f32> {
  return vec4<f32>(vec4<u32>(x, x >> 8u, x >> 16u, x >> 24u) & vec4<u32>(255u));
}

fn signed_quad(x: u32) -> vec4<f32> {
  return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(x << 24u, x << 16u, x << 8u, x)) >> vec4<u32>(24u));
}

fn nibble_octet(x: u32, scale: f32, shift: f32) -> Octet {
  return Octet(unsigned_quad(x & 0x0f0f0f0fu), unsigned_quad((x >> 4u) & 0x0f0f0f0fu), scale, shift);
}

// Nibbles with a fifth bit.
fn five_bit_octet(x: u32, fifth: u32, scale: f32, shift: f32) -> Octet {
  let low = (x & 0x0f0f0f0fu) | (spread_bits(fifth) << 4u);
  let high = ((x >> 4u) & 0x0f0f0f0fu) | (spread_bits(fifth >> 4u) << 4u);
  return Octet(unsigned_quad(low), unsigned_quad(high), scale, shift);
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

fn book_octet(book: vec4<u32>, x: u32, scale: f32) -> Octet {
  return Octet(book_quad(book, x), book_quad(book, x >> 4u), scale, 0.0);
}

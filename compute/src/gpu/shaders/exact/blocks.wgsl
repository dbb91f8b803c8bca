// A block of 32 quantised weights, and its step in a product. A format defines OFFSET, HALVES, MINIMA, `codes` and `scales`.

// Codes are signed bytes; a weight is (code − OFFSET) · scale + minimum.
struct Scales {
  // Bits of f32.
  scale: u32,
  minimum: u32,
  // Integers of the two halves, where HALVES is true: scales and minima.
  halves: vec2<i32>,
  half_minima: vec2<i32>,
}

// MINIMA
const NONE = 0u;
const ADDED = 1u;
const SUBTRACTED = 2u;
const OF_HALVES = 3u;

struct Weights {
  low: vec4<u32>,
  high: vec4<u32>,
  scales: Scales,
}

fn no_halves() -> vec2<i32> {
  return vec2<i32>(0, 0);
}

fn signed_integer(x: u32) -> i32 {
  return bitcast<i32>(x << 24u) >> 24u;
}

fn half_bits(plane: u32, i: u32) -> u32 {
  return from_half(sixteen_bits(plane, i));
}

// Two halves in a word.
fn half_pair(x: u32) -> vec2<u32> {
  return vec2<u32>(from_half(x & 0xffffu), from_half(x >> 16u));
}

fn nibble_codes(x: u32) -> vec2<u32> {
  return vec2<u32>(x & 0x0f0f0f0fu, (x >> 4u) & 0x0f0f0f0fu);
}

// Nibbles with a fifth bit.
fn five_bit_codes(x: u32, fifth: u32) -> vec2<u32> {
  return nibble_codes(x) | vec2<u32>(spread_bits(fifth) << 4u, spread_bits(fifth >> 4u) << 4u);
}

// The values of a code book of sixteen signed bytes, in four words, that the lower nibbles of four bytes choose.
fn book_values(book: vec4<u32>, x: u32) -> u32 {
  var words = 0u;
#for i 4
  {
    let n = (x >> ($iu * 8u)) & 15u;
    var word = select(book.x, book.y, n >= 4u);
    word = select(word, book.z, n >= 8u);
    word = select(word, book.w, n >= 12u);
    words |= ((word >> ((n & 3u) * 8u)) & 255u) << ($iu * 8u);
  }
#end
  return words;
}

fn book_codes(book: vec4<u32>, x: u32) -> vec2<u32> {
  return vec2<u32>(book_values(book, x), book_values(book, x >> 4u));
}

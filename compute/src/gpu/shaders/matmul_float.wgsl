// Elements of float matrices. A_KIND, B_KIND: 0 f32, 1 f16, 2 bf16.

alias Scalar = f32;
alias Vector = vec4<f32>;
alias Sum = vec4<f32>;

fn widened(kind: u32, words: vec2<u32>) -> vec4<f32> {
  if (kind == 1u) {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
  }
  return bitcast<vec4<f32>>(vec4<u32>(words.x << 16u, words.x & 0xffff0000u, words.y << 16u, words.y & 0xffff0000u));
}

fn a_quad(i: u32) -> Vector {
  if (A_KIND == 0u) {
    return bitcast<vec4<f32>>(vec4<u32>(a[2u * i], a[2u * i + 1u]));
  }
  return widened(A_KIND, a[i]);
}

fn b_quad(i: u32) -> Vector {
  if (B_KIND == 0u) {
    return bitcast<vec4<f32>>(vec4<u32>(b[2u * i], b[2u * i + 1u]));
  }
  return widened(B_KIND, b[i]);
}

fn multiply_add(sum: Sum, x: Scalar, y: Vector) -> Sum {
  return sum + x * y;
}

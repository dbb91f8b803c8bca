// Elements of i8 matrices, four consecutive k in a word. Sums are exact.

alias Scalar = u32;
alias Vector = vec4<u32>;
alias Sum = vec4<i32>;

fn a_quad(i: u32) -> Vector {
  return vec4<u32>(a[2u * i], a[2u * i + 1u]);
}

fn b_quad(i: u32) -> Vector {
  return vec4<u32>(b[2u * i], b[2u * i + 1u]);
}

fn multiply_add(sum: Sum, x: Scalar, y: Vector) -> Sum {
  return sum + vec4<i32>(dot4I8Packed(x, y.x), dot4I8Packed(x, y.y), dot4I8Packed(x, y.z), dot4I8Packed(x, y.w));
}

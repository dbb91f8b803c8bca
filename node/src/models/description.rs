//! A model file's description of itself for people: name, architecture, size, quantisation. It reads metadata, no weights.

use std::collections::HashMap;

use pangea_compute::model::ModelFile;

/// Facts about a model, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Name of the model in its file.
    pub title: String,
    /// Architecture, as GGUF names it.
    pub architecture: &'static str,
    /// Number of weights.
    pub parameters: u64,
    /// Size of the file in bytes.
    pub size_bytes: u64,
    /// Quantisation as file names spell it, such as `Q4_K_M`.
    pub quantisation: String,
    /// Maximum positions of one session.
    pub context: usize,
}

impl Description {
    /// The description of an opened file.
    pub fn of(file: &ModelFile) -> Description {
        let config = file.config();
        let (mut parameters, mut of_type) = (0, HashMap::<&'static str, u64>::new());
        for tensor in file.gguf().tensors().flatten() {
            let elements = tensor.elements() as u64;
            parameters += elements;
            *of_type.entry(tensor.ggml_type.name()).or_default() += elements;
        }
        let claimed = file.gguf().metadata().get_u64("general.file_type").ok().flatten().and_then(quantisation);
        let most = of_type.into_iter().max_by_key(|(name, elements)| (*elements, *name)).map_or("", |(name, _)| name);
        Description {
            title: config.name.clone(),
            architecture: config.architecture.name(),
            parameters,
            size_bytes: file.gguf().size_bytes(),
            quantisation: claimed.unwrap_or(most).to_owned(),
            context: config.context,
        }
    }

    /// The number of weights with a unit, such as `134.5 M`.
    pub fn parameters(&self) -> String {
        match self.parameters as f64 {
            n if n >= 1e9 => format!("{:.2} B", n / 1e9),
            n if n >= 1e6 => format!("{:.1} M", n / 1e6),
            n => format!("{:.1} K", n / 1e3),
        }
    }

    /// The size with a unit, such as `93.8 MiB`.
    pub fn size(&self) -> String {
        size(self.size_bytes)
    }
}

/// A size with a unit and one decimal digit.
pub fn size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = UNITS.iter().find(|(bits, _)| bytes >> bits > 0);
    unit.map_or(format!("{bytes} B"), |(bits, name)| format!("{:.1} {name}", bytes as f64 / (1u64 << bits) as f64))
}

/// Name of a mixture of types (`general.file_type`, llama.cpp's `llama_ftype`).
fn quantisation(file_type: u64) -> Option<&'static str> {
    Some(match file_type {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        21 => "Q2_K_S",
        25 => "IQ4_NL",
        30 => "IQ4_XS",
        32 => "BF16",
        38 => "MXFP4",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_that_suits_them() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(98_362_432), "93.8 MiB");
        assert_eq!(size(5 << 30), "5.0 GiB");
    }
}

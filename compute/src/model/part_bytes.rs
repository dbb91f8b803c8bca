//! How many bytes of a model file each part of the model has: what placement and memory are reckoned with. The table of tensors
//! is enough; nothing is read or hashed.

use crate::Error;
use crate::gguf::Gguf;
use crate::model::Experts;
use std::collections::BTreeMap;

/// The part of a model that a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Layer(u32),
    Embedding,
    Head,
    /// Small and of no layer, or unknown: needed by every node.
    Everywhere,
}

impl Purpose {
    pub(super) fn of(name: &str) -> Purpose {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(layer, _)| layer.parse());
        match (layer, name) {
            (Some(Ok(layer)), _) => Purpose::Layer(layer),
            (_, "token_embd.weight") => Purpose::Embedding,
            (_, "output.weight" | "output_norm.weight") => Purpose::Head,
            _ => Purpose::Everywhere,
        }
    }
}

/// Whether a layer's tensor holds one matrix of each expert.
fn is_of_experts(name: &str) -> bool {
    name.ends_with("_exps.weight")
}

#[derive(Clone, Copy, Debug)]
struct TensorBytes {
    purpose: Purpose,
    of_experts: bool,
    bytes: u64,
}

/// Bytes of the parts of a model in its file.
#[derive(Clone, Debug)]
pub struct PartBytes {
    tensors: Vec<TensorBytes>,
    /// Whether the head is the embedding.
    is_tied: bool,
}

impl PartBytes {
    /// Those of a file.
    ///
    /// # Errors
    /// [`Error::Dtype`] for a tensor of an unsupported type.
    pub fn of(file: &Gguf) -> Result<PartBytes, Error> {
        let bytes_of = |tensor: Result<crate::gguf::TensorView<'_>, Error>| {
            let tensor = tensor?;
            let (purpose, of_experts) = (Purpose::of(tensor.name), is_of_experts(tensor.name));
            Ok(TensorBytes { purpose, of_experts, bytes: tensor.bytes.len() as u64 })
        };
        let tensors = file.tensors().map(bytes_of).collect::<Result<_, Error>>()?;
        Ok(PartBytes { tensors, is_tied: !file.tensor_names().any(|name| name == "output.weight") })
    }

    /// Bytes of the largest of the first `layers` layers, all its experts included: the memory that it takes.
    pub fn layer(&self, layers: usize) -> u64 {
        self.largest_layer(layers, |tensor| tensor.bytes)
    }

    /// Bytes of the one of the first `layers` layers of which a position reads most; of experts, those that compute one
    /// position.
    pub fn active_layer(&self, layers: usize, experts: Option<Experts>) -> u64 {
        self.largest_layer(layers, |tensor| match experts {
            Some(Experts { count, used, .. }) if tensor.of_experts => {
                (u128::from(tensor.bytes) * used as u128 / count.max(1) as u128) as u64
            }
            _ => tensor.bytes,
        })
    }

    /// The largest sum over the tensors of one of the first `count` layers.
    fn largest_layer(&self, count: usize, bytes: impl Fn(&TensorBytes) -> u64) -> u64 {
        let mut layers: BTreeMap<u32, u64> = BTreeMap::new();
        for tensor in &self.tensors {
            if let Purpose::Layer(layer) = tensor.purpose
                && (layer as usize) < count
            {
                *layers.entry(layer).or_default() += bytes(tensor);
            }
        }
        layers.into_values().max().unwrap_or(0)
    }

    /// Bytes of the embedding, unless the head is the same tensor: then 0.
    pub fn embedding(&self) -> u64 {
        if self.is_tied { 0 } else { self.of_purpose(Purpose::Embedding) }
    }

    /// Bytes of the head.
    pub fn head(&self) -> u64 {
        self.of_purpose(Purpose::Head) + if self.is_tied { self.of_purpose(Purpose::Embedding) } else { 0 }
    }

    fn of_purpose(&self, purpose: Purpose) -> u64 {
        self.tensors.iter().filter(|tensor| tensor.purpose == purpose).map(|tensor| tensor.bytes).sum()
    }
}

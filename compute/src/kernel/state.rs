//! The sizes of gated delta nets (Yang et al. 2024), and how a session's recurrent states and the last inputs of their
//! convolutions lie in memory. Only offsets and sizes are defined here; the memory belongs to the model's cache.

pub(crate) use pangea_units::rewind::KEPT_INPUTS;

/// Positions that a convolution sees, at most; known models have 4.
pub(crate) const MAX_KERNEL: usize = 16;

/// The sizes of a gated delta net. Keys and queries have the same heads; several value heads share one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeltaShape {
    /// Heads of queries and keys; the number of value heads is a multiple.
    pub(crate) key_heads: usize,
    /// Heads of values, each with a state of its own.
    pub(crate) value_heads: usize,
    /// Elements of a query or key head; a multiple of 16.
    pub(crate) key_dim: usize,
    /// Elements of a value head; a multiple of 16.
    pub(crate) value_dim: usize,
    /// Positions that the convolution sees, its own included; at least 1.
    pub(crate) kernel: usize,
    /// Whether value head h shares key head h mod key heads, and alphas follow all betas; otherwise value heads of one key head
    /// lie together, and so do their betas, then their alphas.
    pub(crate) tiled: bool,
}

impl DeltaShape {
    /// Length of all query (or key) heads together.
    pub(crate) fn key_len(self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Length of all value heads together.
    pub(crate) fn value_len(self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Channels of the convolution: queries, keys, values.
    pub(crate) fn channels(self) -> usize {
        2 * self.key_len() + self.value_len()
    }

    /// Elements of an input row: the channels, then beta and alpha of every value head.
    pub(crate) fn input_len(self) -> usize {
        self.channels() + 2 * self.value_heads
    }

    /// Elements of a projected row: an input row, then the gate of every value element.
    pub(crate) fn projected_len(self) -> usize {
        self.input_len() + self.value_len()
    }

    /// Elements of the states of all value heads, each `[key_dim, value_dim]`.
    pub(crate) fn state_len(self) -> usize {
        self.value_len() * self.key_dim
    }

    /// Value heads of one key head.
    fn group(self) -> usize {
        self.value_heads / self.key_heads
    }

    /// The key head of a value head.
    pub(crate) fn key_head(self, value_head: usize) -> usize {
        if self.tiled { value_head % self.key_heads } else { value_head / self.group() }
    }

    /// The places of a value head's beta and alpha in an input row.
    pub(crate) fn beta_and_alpha(self, value_head: usize) -> [usize; 2] {
        let (first, second) = match self.tiled {
            true => (value_head, self.value_heads + value_head),
            false => {
                let group = self.group();
                let first = value_head / group * 2 * group + value_head % group;
                (first, first + group)
            }
        };
        [self.channels() + first, self.channels() + second]
    }
}

/// The recurrent state of a session after some position, for all gated delta nets of a part: for each of them the last inputs
/// of the convolution `[kernel - 1][channels]`, the oldest first, then the state of every value head
/// `[value heads][key_dim][value_dim]`, as f32. Inputs before the first position are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateShape {
    pub(crate) layers: usize,
    pub(crate) shape: DeltaShape,
}

impl StateShape {
    fn history_len(self) -> usize {
        (self.shape.kernel - 1) * self.shape.channels()
    }

    fn layer_len(self) -> usize {
        self.history_len() + self.shape.state_len()
    }

    /// Bytes of a state.
    pub(crate) fn bytes(self) -> usize {
        self.layers * self.layer_len() * size_of::<f32>()
    }

    /// The first element of a layer's last inputs of the convolution.
    pub(crate) fn history_offset(self, layer: usize) -> usize {
        layer * self.layer_len()
    }

    /// The first element of the state of a layer's value head.
    pub(crate) fn head_offset(self, layer: usize, value_head: usize) -> usize {
        self.history_offset(layer) + self.history_len() + value_head * self.shape.key_dim * self.shape.value_dim
    }

    /// Bytes of kept inputs: for each layer [`KEPT_INPUTS`] input rows, as f32.
    pub(crate) fn inputs_bytes(self) -> usize {
        self.layers * KEPT_INPUTS * self.shape.input_len() * size_of::<f32>()
    }

    /// The first element of a layer's kept input row.
    pub(crate) fn input_offset(self, layer: usize, row: usize) -> usize {
        (layer * KEPT_INPUTS + row) * self.shape.input_len()
    }
}

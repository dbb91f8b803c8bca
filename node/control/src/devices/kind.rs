//! The purposes of leases, and how much memory each purpose may have.

use pangea_units::limits::PART_BYTES;

/// The part of a node's memory that stays free for its own work, whatever else it holds: one sixteenth.
const OWN_WORK_SHARE: u64 = 16;

/// The part of a node's memory that operands of peers may take together: one half.
const OPERANDS_SHARE: u64 = 2;

/// The part of a node's memory that results for peers may take together: one quarter, so that operands and results leave a
/// quarter to the node itself.
const RESULTS_SHARE: u64 = 4;

/// The part of a node's memory that packed operands may take: one eighth.
const PACKS_SHARE: u64 = 8;

/// The part of a node's memory that weights may take while an answer is audited: one eighth.
const AUDITS_SHARE: u64 = 8;

/// The part of a node's memory that the sessions of one stage get if there is room: one eighth.
const SESSIONS_SHARE: u64 = 8;

/// The part of a node's memory that parts of model files on their way to peers may take: one thirty-second, half of what is
/// kept free for this node's own work.
const UPLOADS_SHARE: u64 = 32;

/// The part of a node's memory that rows may take which stages keep to open them: one thirty-second, the other half of that.
const ROWS_SHARE: u64 = 32;

/// Maximum bytes of the rows that a node keeps: 16 Ki positions of a model with activations of 4096 elements.
pub const ROWS_BYTES_MAX: u64 = 256 << 20;

/// Purpose of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Operands and results of this node's own products.
    Tensors,
    /// Operands that peers sent.
    Operands,
    /// Results of products for peers, leased before they are computed.
    Results,
    /// Operands packed for the kernels, kept for the next task.
    Packs,
    /// Packed weights of models.
    Weights,
    /// Rows of weights that are put in order while they are packed.
    Loading,
    /// Keys and values of sessions.
    Sessions,
    /// Weights that an audit loads.
    Audits,
    /// Parts of model files that come from peers, until they are on disk.
    Downloads,
    /// Parts of model files that are sent to peers.
    Uploads,
    /// Rows that stages without exact bits gave, kept for audits.
    Rows,
}

impl Kind {
    /// Every kind, in the order in which they are displayed.
    pub const ALL: [Kind; 11] = [
        Kind::Tensors,
        Kind::Operands,
        Kind::Results,
        Kind::Packs,
        Kind::Weights,
        Kind::Loading,
        Kind::Sessions,
        Kind::Audits,
        Kind::Downloads,
        Kind::Uploads,
        Kind::Rows,
    ];

    /// The name for display and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Tensors => "tensors",
            Kind::Operands => "operands",
            Kind::Results => "results",
            Kind::Packs => "packs",
            Kind::Weights => "weights",
            Kind::Loading => "loading",
            Kind::Sessions => "sessions",
            Kind::Audits => "audits",
            Kind::Downloads => "downloads",
            Kind::Uploads => "uploads",
            Kind::Rows => "rows",
        }
    }

    /// Whether this kind may use the part that [`own_work_bytes`] keeps free.
    pub const fn is_own_work(self) -> bool {
        matches!(self, Kind::Tensors | Kind::Loading | Kind::Audits | Kind::Downloads | Kind::Uploads | Kind::Rows)
    }

    /// The most bytes that leases of this kind may take together, of a memory of `limit` bytes.
    pub fn most_bytes(self, limit: u64) -> u64 {
        match self {
            // An audit holds at least one layer, and layers can be large.
            Kind::Tensors | Kind::Loading | Kind::Downloads | Kind::Audits => limit,
            Kind::Operands => limit / OPERANDS_SHARE,
            Kind::Results => limit / RESULTS_SHARE,
            Kind::Packs => limit / PACKS_SHARE,
            Kind::Weights | Kind::Sessions => models_bytes(limit),
            // A node can always send one part at a time: other nodes may need layers that only this node has.
            Kind::Uploads => (limit / UPLOADS_SHARE).max(PART_BYTES).min(limit),
            Kind::Rows => rows_bytes(limit),
        }
    }

    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// Bytes of a memory of `limit` bytes that only this node's own work may use.
pub const fn own_work_bytes(limit: u64) -> u64 {
    limit / OWN_WORK_SHARE
}

/// Bytes of a memory of `limit` bytes that weights and sessions of models may take together: what placement may give a node.
pub const fn models_bytes(limit: u64) -> u64 {
    limit - own_work_bytes(limit)
}

/// Bytes of a memory of `limit` bytes that the sessions of one stage get if there is room; they may need more.
pub const fn roomy_sessions_bytes(limit: u64) -> u64 {
    limit / SESSIONS_SHARE
}

/// Bytes of a memory of `limit` bytes that the rows take which stages keep to open them.
pub const fn rows_bytes(limit: u64) -> u64 {
    let share = limit / ROWS_SHARE;
    if share < ROWS_BYTES_MAX { share } else { ROWS_BYTES_MAX }
}

/// Bytes of a memory of `limit` bytes that the weights of one audit gets if there is room; one layer may need more.
pub const fn roomy_audit_bytes(limit: u64) -> u64 {
    limit / AUDITS_SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_account() {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), at);
        }
    }

    #[test]
    fn what_peers_may_take_leaves_room_for_this_nodes_own_work() {
        for limit in [0, 1, 15, 16, 100 << 20, 1 << 40] {
            let peers =
                Kind::Operands.most_bytes(limit) + Kind::Results.most_bytes(limit) + Kind::Packs.most_bytes(limit);
            assert!(peers + own_work_bytes(limit) <= limit, "{limit}");
        }
    }

    #[test]
    fn a_node_full_of_layers_can_send_parts_and_keeps_memory_for_its_own_work() {
        assert!(Kind::Uploads.is_own_work(), "the part that models cannot have must be there for uploads");
        for limit in [2 * 16 * PART_BYTES, 1 << 30, 1 << 40] {
            let most = Kind::Uploads.most_bytes(limit);
            assert!(most >= PART_BYTES && most <= own_work_bytes(limit) / 2, "{most} of {limit}");
        }
        assert_eq!(Kind::Uploads.most_bytes(16 << 20), PART_BYTES);
        assert_eq!(Kind::Uploads.most_bytes(PART_BYTES - 1), PART_BYTES - 1);
    }
}

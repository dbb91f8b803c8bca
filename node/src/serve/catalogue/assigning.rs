//! What a node serves that was started without models. `pangea_control::placement::assignment` decides; the layers of an
//! assignment by the master are loaded by its placement.

use std::sync::PoisonError;

use pangea_client::Result;
use pangea_compute::Digest;
use pangea_control::Time;
use pangea_control::placement::assignment::{Assigned, OwnFacts};
use pangea_control::placement::pool_facts;

use super::changes::Elsewhere;
use super::{Node, Served};
use crate::pool::View;

/// Why a node serves a model that the master assigned to it.
const NEEDED: &str = "needed by the pool";

/// Why a node takes a model on by itself.
const BUSY: &str = "every node that serves it is busy";

impl Served {
    /// Follows what the pool needs of this node.
    pub(super) fn assign(&self, view: &View, now: Time) {
        let Some(node) = self.0.node.get().filter(|node| node.pinned.is_none() && view.own.works) else { return };
        let Some(assignments) = &self.0.assignments else { return };
        let (free_bytes, _) = node.loader.memory_for_models();
        let own = OwnFacts { on_disk: node.loader.found_on_disk(), free_bytes };
        let assigned = assignments.lock().unwrap_or_else(PoisonError::into_inner).update(view, &own, now);
        for assigned in assigned {
            match assigned {
                Assigned::To { name, on_disk } => log(&name, NEEDED, on_disk),
                Assigned::Still { name: model } => {
                    tracing::info!(event = "still_assigned", model, "Still serving {model}, nothing to change");
                }
                Assigned::TakeOn { model, name } => self.take_on(node, model, name),
            }
        }
    }

    /// Serves a model besides the nodes that do; works on a thread of its own.
    fn take_on(&self, node: &Node, model: Digest, name: String) {
        let (served, called) = (self.clone(), name.clone());
        let work = move || {
            if let Err(error) = served.serve_too(model, &called) {
                tracing::warn!(event = "not_taken_on", model = called, %error, "cannot serve the busy model {called}: {error}");
            }
        };
        // Without a thread, the model is taken on later.
        let supervisor = node.loader.pipeline().supervisor();
        let _ = supervisor.owned_thread(&format!("taking on model {name}"), work, |_| {});
    }

    fn serve_too(&self, digest: Digest, name: &str) -> Result<()> {
        let node = self.node()?;
        let size = pool_facts::model(&node.loader.view().borrow(), &digest).map(|needs| needs.size);
        let Some(size) = size else { return Ok(()) };
        let prepared = self.bring_from_pool(node, Elsewhere { name: name.to_owned(), digest, size })?;
        // Dropped while it was fetched.
        if !self.is_dropped(&digest) {
            self.add(prepared)?;
            log(name, BUSY, node.loader.found_on_disk().contains(&digest));
        }
        Ok(())
    }
}

fn log(model: &str, why: &str, on_disk: bool) {
    let file = if on_disk { "already on disk" } else { "fetched from other nodes" };
    tracing::info!(event = "assigned", model, why, on_disk, "Assigned to serve {model} ({why}, {file})");
}

//! The small model of a node that drafts for larger ones of the same vocabulary: in memory once, used by every first stage here. What
//! is drafted, and when it pays, is [`pangea_compute::draft`]'s.

use std::path::Path;
use std::sync::Arc;

use pangea_client::{Error, ErrorKind, Result};
use pangea_compute::Pool;
use pangea_compute::draft::DraftModel;
use pangea_compute::engine::Stage;
use pangea_compute::model::{ModelFile, ModelPart, PageBudget};

use crate::devices::threads::Purpose;
use crate::devices::{Devices, Kind, Lease};
use crate::{compute_error, models};

/// Positions of the sessions of a model that drafts, at most: only answers that have a chain to themselves are drafted.
const POSITIONS: usize = 8192;

/// A model that drafts.
#[derive(Debug)]
pub struct Draft {
    name: String,
    file: ModelFile,
    model: Stage,
    budget: PageBudget,
    /// Weights and sessions.
    memory: [Lease; 2],
}

impl Draft {
    /// Loads a model by its name in `folder`, or by its path. Blocks.
    ///
    /// # Errors
    /// `NotFound` for a model that is not on this machine, `InvalidInput` for an unsupported file, `Overloaded` if memory does not
    /// suffice.
    pub fn load(model: &str, folder: &Path, devices: &Devices) -> Result<Draft> {
        let name = models::name_of(model).to_owned();
        let about = |error: Error| {
            Error::new(error.kind(), format!("cannot load the model {name}, which is to draft: {}", error.message()))
        };
        let path = models::resolve(folder, model).map_err(about)?;
        let file = ModelFile::open(&path).map_err(compute_error).map_err(about)?;
        let engine = devices.engine(Purpose::Loading).map_err(about)?;
        let whole = ModelPart::whole(file.config());
        let needs = engine.load_bytes(&file, &whole).map_err(compute_error).map_err(about)?;
        let weights = devices.lease(Kind::Weights, needs.weights).map_err(about)?;
        let packed = {
            let _scratch = devices.lease(Kind::Loading, needs.scratch).map_err(about)?;
            engine.load(&file, whole).map_err(compute_error).map_err(about)?
        };
        let positions = packed.config().context.min(POSITIONS);
        let sessions = devices.lease(Kind::Sessions, packed.cache_shape().bytes_for(positions)).map_err(about)?;
        let budget = packed.page_budget(sessions.bytes());
        Ok(Draft { name, file, model: packed, budget, memory: [weights, sessions] })
    }

    /// Bytes of its weights and sessions.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.iter().map(Lease::bytes).sum()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it can draft for the model of `file`.
    ///
    /// # Errors
    /// `InvalidInput` with what differs in their vocabularies.
    pub fn check(&self, file: &ModelFile) -> Result<()> {
        let (own, of) = (self.file.gguf().metadata(), file.gguf().metadata());
        DraftModel::check_vocabulary(own, of).map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))
    }

    /// Drafts for a model with `of_bytes` bytes of weights, computed on the threads of its stage.
    ///
    /// # Errors
    /// None in fact: the model is whole.
    pub fn on(&self, pool: &Arc<Pool>, of_bytes: u64) -> Result<DraftModel> {
        DraftModel::new(Arc::new(self.model.with_pool(Arc::clone(pool))), self.budget.clone(), of_bytes)
            .map_err(compute_error)
    }
}

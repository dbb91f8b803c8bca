//! Who a request is from: the holder of one of the node's API keys, with what that key allows, or somebody without limits. The
//! keys on the disk are read again when they change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use libp2p::PeerId;
use pangea_client::ErrorKind;
use pangea_compute::Digest;
use pangea_control::Time;
use pangea_control::jobs::{Api, Owner};
use pangea_control::net::allowance::{Allowance, KeyLimits};

use super::error::ApiError;
use crate::api_keys::{ApiKeys, digest};
use crate::clock;
use crate::serve::{Engine, Event, Generation, Request, RequestRefused};
use crate::tunnel::answering::Tally;

/// Interval at which the file is looked at: a revoked key is refused after that.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The keys of a node and who holds them.
pub(super) struct Keys {
    stored: ApiKeys,
    read: Mutex<ReadKeys>,
}

#[derive(Default)]
struct ReadKeys {
    looked: Option<Time>,
    /// Time and size of the file that was read; `None` without a file.
    version: Option<(SystemTime, u64)>,
    /// Whether a key is required: there is a file.
    required: bool,
    /// By digest.
    holders: BTreeMap<String, KeyHolder>,
}

/// The holder of a key, or a peer that asks for its own clients. Clones share what is left.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyHolder {
    key: Option<Arc<Holder>>,
    peer: Option<AskingPeer>,
}

/// A peer that asks.
#[derive(Clone, Debug)]
pub(super) struct AskingPeer {
    /// The peer.
    pub(super) peer: PeerId,
    /// The model that it asks, whatever the request names.
    pub(super) model: Digest,
    /// Where the tokens are counted.
    pub(super) tally: Tally,
}

#[derive(Debug)]
struct Holder {
    name: String,
    limits: KeyLimits,
    models: Vec<String>,
    allowance: Mutex<Allowance>,
}

impl Keys {
    /// The keys in `stored`.
    pub(super) fn new(stored: ApiKeys) -> Keys {
        Keys { stored, read: Mutex::default() }
    }

    /// Whether clients must show a key.
    pub(super) fn required(&self) -> bool {
        self.current().required
    }

    /// The holder of a key.
    pub(super) fn holder(&self, key: &str) -> Option<KeyHolder> {
        self.current().holders.get(&digest(key)).cloned()
    }

    fn current(&self) -> MutexGuard<'_, ReadKeys> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        if read.looked.is_none_or(|looked| now.since(looked) >= LOOK_INTERVAL) {
            read.looked = Some(now);
            self.look(&mut read, now);
        }
        read
    }

    fn look(&self, read: &mut ReadKeys, now: Time) {
        let about = std::fs::metadata(self.stored.path()).ok();
        let version = about.and_then(|about| Some((about.modified().ok()?, about.len())));
        if version == read.version {
            return;
        }
        read.version = version;
        read.required |= version.is_some();
        let keys = self.stored.read().unwrap_or_else(|error| {
            tracing::warn!(event = "keys_unusable", %error, "no API key of the file is accepted: {error}");
            Vec::new()
        });
        let mut before = std::mem::take(&mut read.holders);
        for key in keys {
            let limits = key.limits();
            let unchanged = |holder: &KeyHolder| {
                holder
                    .key
                    .as_ref()
                    .is_some_and(|known| known.limits == limits && known.models == key.models && known.name == key.name)
            };
            // Who writes the file again gives nobody a new minute.
            let holder = before.remove(&key.digest).filter(unchanged).unwrap_or_else(|| {
                let allowance = Mutex::new(Allowance::full(limits, now));
                let key = Some(Arc::new(Holder { name: key.name, limits, models: key.models, allowance }));
                KeyHolder { key, peer: None }
            });
            read.holders.insert(key.digest, holder);
        }
    }
}

impl KeyHolder {
    /// Somebody without limits: the owner of the node, or anyone where no key is required.
    pub(super) fn unlimited() -> KeyHolder {
        KeyHolder::default()
    }

    /// A peer that asks for its own clients; it has judged them itself.
    pub(super) fn of_peer(peer: AskingPeer) -> KeyHolder {
        KeyHolder { key: None, peer: Some(peer) }
    }

    /// The peer that asks, if one does.
    pub(super) fn peer(&self) -> Option<&AskingPeer> {
        self.peer.as_ref()
    }

    /// Counts a request.
    ///
    /// # Errors
    /// `Overloaded` for one too many, with the time after which the holder may ask again.
    pub(super) fn ask(&self) -> Result<(), ApiError> {
        let Some(holder) = &self.key else { return Ok(()) };
        holder.allowance().ask(clock::now()).map_err(|again| {
            let message = format!("the API key {:?} has used what it may use in a minute", holder.name);
            ApiError::new(ErrorKind::Overloaded, message).code("rate_limit_exceeded").retry_after(again)
        })
    }

    /// Whether the holder may use a model.
    pub(super) fn may_use(&self, model: &str) -> bool {
        self.key.as_ref().is_none_or(|holder| holder.models.is_empty() || holder.models.iter().any(|may| may == model))
    }

    /// # Errors
    /// `Unauthorized` for the holder of a key that the owner gave away, and for a peer: they use the node and do not change it.
    pub(super) fn check_owner(&self) -> Result<(), ApiError> {
        let message = match (&self.key, &self.peer) {
            (None, None) => return Ok(()),
            (Some(holder), _) => {
                format!("the API key {:?} may ask models; only the owner of the node may do this", holder.name)
            }
            (None, Some(_)) => "another node may ask models; only the owner of the node may do this".to_owned(),
        };
        Err(ApiError::new(ErrorKind::Unauthorized, message).status(StatusCode::FORBIDDEN))
    }

    /// # Errors
    /// `Unauthorized` for a model that the holder may not use.
    pub(super) fn check(&self, model: &str) -> Result<(), ApiError> {
        match &self.key {
            Some(holder) if !self.may_use(model) => {
                let message = format!(
                    "the API key {:?} may not use {model}; it may use: {}",
                    holder.name,
                    holder.models.join(", ")
                );
                Err(ApiError::new(ErrorKind::Unauthorized, message).status(StatusCode::FORBIDDEN).about("model"))
            }
            _ => Ok(()),
        }
    }

    /// Has an engine answer at the holder's cost.
    ///
    /// # Errors
    /// Those of the engine.
    pub(super) async fn generate(&self, engine: &Engine, request: Request) -> Result<Metered, RequestRefused> {
        let owner = match &self.peer {
            Some(asking) => Owner { api: Api::Peer, client: Some(asking.peer.to_string()) },
            None => request.owner,
        };
        let request = Request { owner, ..request };
        let generation = engine.generate(request).await?;
        self.spend(generation.prompt_tokens());
        Ok(Metered { generation, holder: self.clone(), counted: 0 })
    }

    /// Counts tokens of a text that were computed for the holder.
    pub(super) fn spend(&self, tokens: usize) {
        if let Some(asking) = &self.peer {
            asking.tally.add_prompt(tokens);
        }
        self.pay(tokens);
    }

    /// Counts tokens of an answer.
    fn spend_answer(&self, tokens: usize) {
        if let Some(asking) = &self.peer {
            asking.tally.add_answer(tokens);
        }
        self.pay(tokens);
    }

    fn pay(&self, tokens: usize) {
        if let Some(holder) = self.key.as_ref().filter(|_| tokens > 0) {
            holder.allowance().spend(u32::try_from(tokens).unwrap_or(u32::MAX), clock::now());
        }
    }
}

impl Holder {
    fn allowance(&self) -> MutexGuard<'_, Allowance> {
        self.allowance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Sync> FromRequestParts<S> for KeyHolder {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<KeyHolder, ApiError> {
        // The guard has put it there, or the request did not come so far.
        parts
            .extensions
            .get::<KeyHolder>()
            .cloned()
            .ok_or_else(|| ApiError::new(ErrorKind::Internal, "the request passed no guard"))
    }
}

/// A generation whose tokens count while they come, so that an answer that is left is paid as well.
pub(super) struct Metered {
    generation: Generation,
    holder: KeyHolder,
    counted: usize,
}

impl Metered {
    /// Tokens of the prompt.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.generation.prompt_tokens()
    }

    /// The next event.
    pub(super) async fn next(&mut self) -> Option<pangea_client::Result<Event>> {
        let event = self.generation.next().await;
        let tokens = match &event {
            Some(Ok(Event::Delta(delta))) => delta.tokens.len(),
            Some(Ok(Event::Done(summary))) => summary.answer_tokens.saturating_sub(self.counted),
            _ => 0,
        };
        self.counted += tokens;
        self.holder.spend_answer(tokens);
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(keys: &Keys) {
        keys.read.lock().unwrap().looked = None;
    }

    #[test]
    fn a_key_is_accepted_until_it_is_revoked_and_then_none_is() {
        let folder = tempfile::tempdir().unwrap();
        let stored = ApiKeys::of(folder.path());
        let keys = Keys::new(stored.clone());
        assert!(!keys.required());
        let limits = KeyLimits { requests_per_minute: Some(1), tokens_per_minute: None };
        let key = stored.create("ada", limits, vec!["m".to_owned()], 0).unwrap();
        again(&keys);
        assert!(keys.required() && keys.holder("pgk-other").is_none());
        let holder = keys.holder(&key).unwrap();
        assert!(holder.check("m").is_ok() && holder.check("n").is_err() && holder.ask().is_ok());
        // Another key in the same file gives nobody a new minute.
        stored.create("bob", KeyLimits::default(), Vec::new(), 0).unwrap();
        again(&keys);
        let refused = keys.holder(&key).unwrap().ask().unwrap_err();
        assert_eq!(refused.body()["error"]["code"], "rate_limit_exceeded");
        stored.revoke("ada").unwrap();
        stored.revoke("bob").unwrap();
        again(&keys);
        assert!(keys.holder(&key).is_none() && keys.required());
        std::fs::remove_file(stored.path()).unwrap();
        again(&keys);
        assert!(keys.required(), "a file that is gone opens nothing while the node runs");
    }
}

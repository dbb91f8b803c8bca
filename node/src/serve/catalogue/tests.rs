//! The names under which a node lists models, as its own and its pool's come and go.

use std::collections::{BTreeMap, BTreeSet};

use libp2p::PeerId;

use super::*;
use crate::pool::{Advert, ModelSize, advert_of};

/// A pool in which another node serves these models.
fn pool(models: &[(&str, u8)]) -> View {
    let advert = |(name, byte): &(&str, u8)| ModelAdvert {
        digest: Digest::from_bytes([*byte; 32]),
        name: (*name).to_owned(),
        served: true,
        whole: true,
        split: false,
        pinned: None,
        size: ModelSize::default(),
    };
    let node = |models: Vec<ModelAdvert>| {
        let mut node = advert_of(PeerId::random());
        node.models = models;
        Arc::new(node)
    };
    let (own, other): (Arc<Advert>, Arc<Advert>) = (node(Vec::new()), node(models.iter().map(advert).collect()));
    let nodes = BTreeMap::from([(other.peer, other)]);
    View { local: own.peer, own, term: None, nodes, connected: BTreeSet::new() }
}

fn found(served: &Served, name: &str) -> Option<u8> {
    served.find(name).and_then(|entry| entry.digest.get().map(|digest| digest.as_bytes()[0]))
}

#[test]
fn two_models_with_one_name_are_both_listed_and_reachable() {
    let served = Served::default();
    served.update(&pool(&[("tiny", 0xab), ("tiny", 0x12), ("tiny", 0xab), ("other", 7)]));
    assert_eq!(served.names(), ["other", "tiny", "tiny@abababab"]);
    assert_eq!((found(&served, "tiny"), found(&served, "tiny@abababab")), (Some(0x12), Some(0xab)));
    assert_eq!(found(&served, "tiny@12121212"), Some(0x12), "the first one by its full name, too");
    assert_eq!(found(&served, "tiny@33333333"), None);
}

#[test]
fn a_model_keeps_its_name_until_it_goes_and_another_takes_it() {
    let served = Served::default();
    served.update(&pool(&[("tiny", 0xab)]));
    served.update(&pool(&[("tiny", 0x12), ("tiny", 0xab)]));
    assert_eq!((found(&served, "tiny"), found(&served, "tiny@12121212")), (Some(0xab), Some(0x12)));
    served.update(&pool(&[("tiny", 0x12)]));
    assert_eq!(served.names(), ["tiny@12121212"]);
    assert_eq!(found(&served, "tiny"), Some(0x12), "the name leads to the model that is left");
}

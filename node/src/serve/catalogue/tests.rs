//! The names under which a node lists models, as its own and its pool's come and go.

use std::collections::{BTreeMap, BTreeSet};

use libp2p::PeerId;
use pangea_control::pool::served_lately;

use super::*;
use crate::pool::{Advert, ModelSize, Term, advert_of};

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
    let term = Some(Term { counter: 1, master: nodes.keys().copied().max().unwrap_or(own.peer) });
    View { local: own.peer, own, term, nodes, connected: BTreeSet::new() }
}

fn found(served: &Served, name: &str) -> Option<u8> {
    served.find(name).and_then(|entry| entry.digest.get().map(|digest| digest.as_bytes()[0]))
}

/// Lets a catalogue follow views, one every minute.
fn follow(views: &[View]) -> Served {
    let served = Served::default();
    for (minute, view) in views.iter().enumerate() {
        served.update(view, Time::from_secs(60 * minute as u64));
    }
    served
}

#[test]
fn two_models_with_one_name_are_both_listed_and_reachable() {
    let served = follow(&[pool(&[("tiny", 0xab), ("tiny", 0x12), ("tiny", 0xab), ("other", 7)])]);
    assert_eq!(served.names(), ["other", "tiny", "tiny@abababab"]);
    assert_eq!((found(&served, "tiny"), found(&served, "tiny@abababab")), (Some(0x12), Some(0xab)));
    assert_eq!(found(&served, "tiny@12121212"), Some(0x12), "the first one by its full name, too");
    assert_eq!(found(&served, &format!("tiny@{}", "ab".repeat(32))), Some(0xab), "or by all digits");
    assert_eq!(found(&served, "tiny@33333333"), None);
    assert_eq!(served.one("tiny@12121212").map(|model| model.name), Some("tiny".to_owned()));
}

#[test]
fn a_model_that_is_not_here_is_the_pools_as_long_as_a_node_serves_it() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::new(&["tiny".to_owned()], folder.path()).unwrap();
    let why = served.one("tiny").and_then(|model| model.why).unwrap();
    assert!(why.contains(folder.path().to_str().unwrap()) && why.contains("`pangea models pull`"), "{why}");
    served.update(&pool(&[("other", 7)]), Time::from_secs(60));
    assert_eq!(served.names(), ["tiny", "other"]);
    served.update(&pool(&[("tiny", 0xab), ("tiny", 0x12)]), Time::from_secs(120));
    assert_eq!(served.names(), ["tiny", "tiny@abababab"]);
    assert_eq!(found(&served, "tiny"), Some(0x12));
    served.update(&pool(&[]), Time::from_secs(180));
    assert_eq!((served.names(), found(&served, "tiny")), (vec!["tiny".to_owned()], None));
}

#[test]
fn a_name_that_stands_for_no_model_anywhere_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["a/tiny.gguf", "b/tiny.gguf"] {
        std::fs::create_dir_all(folder.path().join(file).parent().unwrap()).unwrap();
        std::fs::write(folder.path().join(file), "GGUF").unwrap();
    }
    for (wrong, why) in
        [("tiny", "ambiguous"), ("hf:owner", "hf:OWNER/REPO/FILE.gguf"), ("nosuch.gguf", "does not exist")]
    {
        let error = Served::new(&[wrong.to_owned()], folder.path()).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.message().contains(why), "{wrong}: {error}");
    }
}

#[test]
fn a_model_keeps_its_name_and_no_other_takes_it_while_it_is_away() {
    let (one, both, other) =
        (pool(&[("tiny", 0xab)]), pool(&[("tiny", 0x12), ("tiny", 0xab)]), pool(&[("tiny", 0x12)]));
    let served = follow(&[one.clone(), one.clone(), both.clone()]);
    assert_eq!((found(&served, "tiny"), found(&served, "tiny@12121212")), (Some(0xab), Some(0x12)));
    let served = follow(&[one.clone(), one, both, other.clone()]);
    assert_eq!(served.names(), ["tiny@12121212"]);
    assert_eq!(found(&served, "tiny"), None, "another model is not what was meant");
    let error = served.not_found("tiny");
    assert!(error.message().contains("tiny@12121212"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "it was there a minute ago: {error}");
    for minute in 4..20 {
        served.update(&other, Time::from_secs(60 * minute));
    }
    assert_eq!(served.names(), ["tiny"]);
    assert_eq!(found(&served, "tiny"), Some(0x12), "the name is free again");
}

#[test]
fn a_node_that_claims_many_models_fills_no_catalogue() {
    let names: Vec<String> = (0..64).map(|number| format!("model {number}")).collect();
    let models: Vec<(&str, u8)> = names.iter().zip(0..).map(|(name, number)| (name.as_str(), number)).collect();
    assert_eq!(follow(&[pool(&models)]).names().len(), served::SERVED_PER_NODE);
}

#[test]
fn a_model_that_its_pool_served_a_moment_ago_is_away_and_not_unknown() {
    let mut pool_with_owner = pool(&[("tiny", 7)]);
    for node in pool_with_owner.nodes.values_mut() {
        Arc::make_mut(node).name = "desk".to_owned();
    }
    let served = follow(&[pool_with_owner.clone()]);
    let state =
        |served: &Served| served.states().into_iter().map(|model| (model.name, model.state)).collect::<Vec<_>>();
    assert_eq!(state(&served), [("tiny".to_owned(), "absent".to_owned())]);
    let served = follow(&[pool_with_owner.clone(), pool(&[])]);
    assert!(served.names().is_empty());
    assert_eq!(state(&served), [("tiny".to_owned(), "away".to_owned())]);
    let why = served.states().remove(0).why;
    assert!(why.starts_with("no node that is here has the model's weights: tiny was on desk;"), "{why}");
    for name in ["tiny", "tiny@07070707"] {
        let error = served.not_found(name);
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.message().contains(&format!("{name} was on desk")), "{error}");
    }
    assert_eq!(served.not_found("never").kind(), ErrorKind::NotFound);
    served.update(&pool(&[]), Time::from_secs(60) + served_lately::REMEMBERED);
    assert_eq!(served.not_found("tiny").kind(), ErrorKind::NotFound, "it is gone for good");
    assert!(served.states().is_empty());
    let served = follow(&[pool_with_owner.clone(), pool(&[]), pool_with_owner]);
    assert_eq!(state(&served), [("tiny".to_owned(), "absent".to_owned())], "its node is back");
}

#[test]
fn a_model_whose_layers_are_loaded_stays_listed_without_the_nodes_that_served_it() {
    let with_owner = pool(&[("tiny", 7)]);
    let (mut loaded, mut others) = (pool(&[]), pool(&[("tiny", 7)]));
    let holder = Arc::make_mut(others.nodes.values_mut().next().unwrap());
    (holder.models[0].served, holder.models[0].whole, holder.models[0].size.layers) = (false, false, 4);
    let layers = |layers: Range<u32>| crate::pool::StageAdvert {
        model: holder.models[0].digest,
        layers,
        epoch: 1,
        state: crate::pool::StageState::Ready,
        session_bytes: 0,
        broken: None,
        pace: None,
    };
    let (all, some) = (layers(0..4), layers(1..4));
    holder.stages = vec![all];
    loaded.nodes = others.nodes.clone();
    assert_eq!(follow(&[with_owner.clone(), loaded.clone()]).names(), ["tiny"]);
    for node in loaded.nodes.values_mut() {
        Arc::make_mut(node).stages = vec![some.clone()];
    }
    assert!(follow(&[with_owner, loaded]).names().is_empty(), "layer 0 is lost");
}

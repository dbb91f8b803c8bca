//! What every version sent, byte by byte: a difference is a change of the protocol. Then disturbed bytes, and limits.

use std::time::Duration;

use libp2p::PeerId;
use pangea_compute::Digest;

use super::codec::{MAX_ADVERT_BYTES, TOPIC, decode, decode_if, encode, encode_with};
use super::{
    Advert, DropRecord, LayerSpeed, LinkAdvert, ModelAdvert, ModelSize, ServingAdvert, StageAdvert, StagePace,
    StageState, Term,
};
use crate::wire::WireError;
use crate::wire::conformance::{assert_recorded, disturb, values_of, with_later_fields};
use pangea_control::placement::{PlacedStage, Placement, PlacementRefusal};

/// Advert of an ordinary new node.
pub(crate) fn advert_of(peer: PeerId) -> Advert {
    Advert {
        incarnation: 1_700_000_000_000,
        sequence: 1,
        name: "blue".to_owned(),
        uptime: Duration::from_millis(1500),
        numerics: 1,
        addresses: vec!["/ip4/192.168.1.20/tcp/7777".parse().unwrap()],
        device: "cpu/avx512".to_owned(),
        threads: 8,
        memory_bytes: 8 << 30,
        f32_flops_per_s: 2e11,
        ..Advert::new(peer)
    }
}

/// The same peers in every run.
fn peer(n: u8) -> PeerId {
    let multihash = libp2p::multihash::Multihash::wrap(0, &[n; 36]).unwrap();
    PeerId::from_multihash(multihash).unwrap()
}

/// An advert with one of everything.
fn full() -> Advert {
    let term = Term { counter: 5, master: peer(1) };
    let model = Digest::from_bytes([7; 32]);
    let size = ModelSize {
        layers: 30,
        hidden_size: 576,
        context: 8192,
        layer_bytes: 3 << 20,
        active_layer_bytes: 1 << 20,
        embedding_bytes: 0,
        head_bytes: 30 << 20,
        position_bytes: 1536,
    };
    let pace = StagePace {
        epoch: 3,
        step: Duration::from_micros(4100),
        away: Duration::from_micros(5200),
        prompt_row: Duration::from_micros(300),
    };
    let stage = |state| StageAdvert {
        model,
        layers: 0..15,
        epoch: 3,
        state,
        session_bytes: 1 << 30,
        broken: Some(2),
        pace: Some(pace),
    };
    Advert {
        software: "1.2.3-beta".to_owned(),
        bits: "canonical-grid/1".to_owned(),
        votes: true,
        term: Some(term),
        counter: 6,
        force_master: true,
        speed: Some(LayerSpeed { weight_bytes_per_s: 2e10, macs_per_s: 1e11 }),
        links: vec![LinkAdvert {
            to: peer(2),
            rtt: Duration::from_micros(150),
            bytes_per_s: 1e9,
            sent_bytes_per_s: 2.5e6,
            transport: "tcp".to_owned(),
            found_by: "gossip".to_owned(),
        }],
        models: vec![ModelAdvert {
            digest: model,
            name: "smollm2".to_owned(),
            served: true,
            whole: true,
            split: true,
            pinned: Some(0..15),
            size,
        }],
        stages: vec![
            stage(StageState::Fetching { done: 1, total: 2 }),
            stage(StageState::Loading),
            stage(StageState::Ready),
            stage(StageState::Failed("no room".to_owned())),
        ],
        placements: vec![Placement {
            model,
            name: "smollm2".to_owned(),
            epoch: 3,
            term,
            stages: vec![PlacedStage { peer: peer(1), layers: 0..15 }, PlacedStage { peer: peer(2), layers: 15..30 }],
        }],
        refusals: vec![PlacementRefusal { model, why: "no room".to_owned() }],
        serving: vec![ServingAdvert { model, places: 4, running: 3, waiting: 9, tokens_per_s: 120 }],
        unloaded: vec![model],
        wanted: vec![model],
        drops: vec![DropRecord { model, version: 4, dropped: true }],
        ..advert_of(peer(1))
    }
}

/// An advert with few facts and one with all, in the order in which they are recorded.
fn adverts() -> [(&'static str, Advert); 2] {
    [("new", advert_of(peer(1))), ("full", full())]
}

#[test]
fn adverts_of_every_version_are_read() {
    let today = adverts().map(|(name, advert)| (name.to_owned(), encode_with(&advert, b"certificate").unwrap()));
    assert_recorded(TOPIC, &today, |version, index, bytes| {
        let mut shown = Vec::new();
        let decoded = decode_if(bytes, |certificate| {
            shown.extend_from_slice(certificate);
            Ok::<(), WireError>(())
        });
        assert_eq!((decoded.unwrap(), &shown[..]), (adverts()[index].1.clone(), &b"certificate"[..]), "{version}");
    });
}

#[test]
fn fields_of_later_versions_are_ignored() {
    for (_, advert) in adverts() {
        assert_eq!(decode(&with_later_fields(&encode(&advert).unwrap())).unwrap(), advert);
    }
}

/// Adverts from before fields were added, none of which a release sent: those fields have their defaults.
#[test]
fn adverts_from_before_fields_were_added_are_decoded() {
    // Without what its links carry now.
    let mut untold = full();
    untold.links.iter_mut().for_each(|link| link.sent_bytes_per_s = 0.0);
    // Without the bits of its engine.
    let exact = Advert { bits: String::new(), serving: Vec::new(), ..untold.clone() };
    // Without the weights that a position is computed with.
    let mut one_size = exact.clone();
    one_size.models.iter_mut().for_each(|model| model.size.active_layer_bytes = 0);
    let before = Advert {
        drops: Vec::new(),
        unloaded: Vec::new(),
        wanted: Vec::new(),
        software: String::new(),
        votes: false,
        ..one_size.clone()
    };
    let mut earlier = before.clone();
    earlier.refusals.clear();
    earlier.stages.iter_mut().for_each(|stage| (stage.broken, stage.pace) = (None, None));
    let mut uncertified = before.clone();
    uncertified.stages.iter_mut().for_each(|stage| stage.pace = None);
    let versions = [
        (include_str!("goldens_earlier.txt"), earlier),
        (include_str!("goldens_uncertified.txt"), uncertified),
        (include_str!("goldens_undropped.txt"), before),
        (include_str!("goldens_one_size.txt"), one_size),
        (include_str!("goldens_exact.txt"), exact),
        (include_str!("goldens_untold.txt"), untold),
    ];
    for (text, full) in versions {
        let [(_, new_bytes), (_, full_bytes)] = &values_of(text)[..] else { panic!("two adverts") };
        assert_eq!(decode(new_bytes).unwrap(), advert_of(peer(1)));
        assert_eq!(decode(full_bytes).unwrap(), full);
    }
}

#[test]
fn a_certificate_is_checked_before_anything_else_is_read() {
    let certified = encode_with(&full(), b"certificate").unwrap();
    let mut shown = Vec::new();
    let decoded = decode_if(&certified, |certificate| {
        shown.extend_from_slice(certificate);
        Ok::<(), WireError>(())
    });
    assert_eq!((decoded.unwrap(), shown), (full(), b"certificate".to_vec()));
    // What it says of a layer range is impossible, and is not read.
    let mut impossible = full();
    impossible.stages[0].layers = 3..3;
    let refuse = |certificate: &[u8]| Err(WireError::Header(format!("{} bytes of proof", certificate.len())));
    let refused = decode_if(&encode(&impossible).unwrap(), refuse).unwrap_err();
    assert_eq!(refused.to_string(), WireError::Header("0 bytes of proof".to_owned()).to_string());
}

#[test]
fn an_advert_comes_back_as_it_was() {
    for advert in [advert_of(peer(1)), full()] {
        assert_eq!(decode(&encode(&advert).unwrap()).unwrap(), advert);
    }
}

#[test]
fn disturbed_bytes_never_panic_and_never_make_an_impossible_advert() {
    disturb(&encode(&full()).unwrap(), |bytes| {
        let read = decode(bytes);
        if let Ok(advert) = &read {
            assert!(advert.stages.iter().all(|stage| !stage.layers.is_empty()));
            assert!(advert.f32_flops_per_s.is_finite());
        }
        read.is_ok()
    });
}

#[test]
fn what_is_beyond_the_limits_is_refused() {
    let refused = |advert: &Advert| {
        let bytes = encode(advert).unwrap();
        assert!(decode(&bytes).is_err());
    };
    refused(&Advert { f32_flops_per_s: f64::NAN, ..full() });
    refused(&Advert { speed: Some(LayerSpeed { weight_bytes_per_s: -1.0, macs_per_s: 0.0 }), ..full() });
    for impossible in [-1.0, f64::NAN, f64::INFINITY] {
        let mut sent = full();
        sent.links[0].sent_bytes_per_s = impossible;
        refused(&sent);
    }
    let mut gap = full();
    gap.placements[0].stages[1].layers = 16..30;
    refused(&gap);
    let mut nobody = full();
    nobody.placements[0].stages.clear();
    refused(&nobody);
    let mut empty = full();
    empty.stages[0].layers = 3..3;
    refused(&empty);
    assert!(decode(&vec![0; MAX_ADVERT_BYTES + 8]).is_err());
    assert!(decode(&[]).is_err());
}

#[test]
fn lists_beyond_their_limits_are_truncated() {
    let mut long = full();
    long.name = "ü".repeat(50);
    long.software = "ü".repeat(50);
    long.addresses = (1..=40).map(|port| format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()).collect();
    long.links = std::iter::repeat_n(long.links[0].clone(), 600).collect();
    let read = decode(&encode(&long).unwrap()).unwrap();
    assert_eq!((read.name.chars().count(), read.addresses.len(), read.links.len()), (32, 16, 512));
    assert_eq!(read.software.chars().count(), 16);
}

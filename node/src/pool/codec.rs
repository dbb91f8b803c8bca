//! Encodes adverts: one Cap'n Proto message (`schema/pool.capnp`) on the pool's gossip topic. Sans-I/O. Decoding
//! validates bytes from a peer: a decoded [`Advert`] is within every limit, which says nothing about whether it is true.

use std::ops::Range;
use std::time::Duration;

use capnp::message::{Builder, HeapAllocator};
use libp2p::{Multiaddr, PeerId};
use pangea_compute::Digest;
use pangea_schema::pool_capnp as wire;

use super::{
    Advert, DropRecord, LayerSpeed, LinkAdvert, ModelAdvert, ModelSize, ServingAdvert, StageAdvert, StagePace,
    StageState, Term,
};
use crate::wire::WireError;
use crate::wire::field::{header_error, printable, read_flat, read_text, truncated};
use pangea_control::placement::{PlacedStage, Placement, PlacementRefusal};

/// The gossip topic of adverts, versioned in its name.
pub const TOPIC: &str = "/pangea/pool/1";

/// Version inside a message.
const VERSION: u16 = 1;

/// Maximum bytes of an advert: a node with 512 links (112 bytes each) and a few dozen models is under 64 KiB; each advert is
/// published every second at most, unless something changes.
pub const MAX_ADVERT_BYTES: usize = 128 << 10;

/// Exclusive maximum of a term's counter: beyond any number of elections, and far from overflow.
pub const MAX_COUNTER: u64 = 1 << 62;

const MAX_NAME_BYTES: usize = 64;
const MAX_SOFTWARE_BYTES: usize = 32;
const MAX_BITS_BYTES: usize = 32;
const MAX_MODEL_NAME_BYTES: usize = 128;
const MAX_LABEL_BYTES: usize = 16;
const MAX_WHY_BYTES: usize = 256;
const MAX_ADDRESS_BYTES: usize = 256;
const MAX_ADDRESSES: usize = 16;
const MAX_LINKS: usize = 512;
const MAX_MODELS: usize = 64;
const MAX_STAGE_ADVERTS: usize = 64;
const MAX_PLACEMENTS: usize = 64;
const MAX_PLACED_STAGES: usize = 256;
const MAX_REFUSALS: usize = 64;
const MAX_DROPS: usize = pangea_control::pool::drops::DROPS_MAX;
/// Models for which requests of one node wait.
pub const MAX_WANTED: usize = 16;

const MAX_REFUSAL_BYTES: usize = 1024;

type Read<T> = Result<T, WireError>;

/// Encodes `advert`. Lists and texts beyond their limits are truncated.
///
/// # Errors
/// [`WireError`] if the result is still longer than [`MAX_ADVERT_BYTES`].
pub fn encode(advert: &Advert) -> Result<Vec<u8>, WireError> {
    encode_with(advert, &[])
}

/// Encodes `advert` with the certificate of its author.
///
/// # Errors
/// Those of [`encode`].
pub fn encode_with(advert: &Advert, certificate: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut builder = Builder::new(HeapAllocator::new().first_segment_words(512));
    let mut root: wire::advert::Builder<'_> = builder.init_root();
    write(advert, root.reborrow());
    if !certificate.is_empty() {
        root.set_certificate(certificate);
    }
    let bytes = capnp::serialize::write_message_to_words(&builder);
    if bytes.len() > MAX_ADVERT_BYTES {
        return Err(too_long(bytes.len()));
    }
    Ok(bytes)
}

/// Decodes an advert.
///
/// # Errors
/// [`WireError`] for bytes that are no advert within the limits.
pub fn decode(bytes: &[u8]) -> Result<Advert, WireError> {
    decode_if(bytes, |_| Ok(()))
}

/// Decodes an advert if `admits` accepts the certificate in it, which is empty where there is none. Nothing else is read
/// before.
///
/// # Errors
/// The error of `admits`, and those of [`decode`].
pub fn decode_if<E: From<WireError>>(bytes: &[u8], admits: impl FnOnce(&[u8]) -> Result<(), E>) -> Result<Advert, E> {
    if bytes.len() > MAX_ADVERT_BYTES {
        return Err(too_long(bytes.len()).into());
    }
    let mut refused = None;
    let decoded = read_flat(bytes, MAX_ADVERT_BYTES / 8, |reader| {
        let advert: wire::advert::Reader<'_> = reader.get_root().map_err(header_error)?;
        match admits(advert.get_certificate().map_err(header_error)?) {
            Ok(()) => read(advert).map(Some),
            Err(why) => {
                refused = Some(why);
                Ok(None)
            }
        }
    })?;
    match (decoded, refused) {
        (Some(advert), _) => Ok(advert),
        (None, Some(why)) => Err(why),
        (None, None) => Err(malformed("an advert that was not read").into()),
    }
}

fn too_long(bytes: usize) -> WireError {
    WireError::Header(format!("an advert of {bytes} bytes; at most {MAX_ADVERT_BYTES} are allowed"))
}

// Encoding.

fn write(advert: &Advert, mut to: wire::advert::Builder<'_>) {
    to.set_version(VERSION);
    to.set_peer(&advert.peer.to_bytes());
    to.set_incarnation(advert.incarnation);
    to.set_sequence(advert.sequence);
    to.set_name(truncated(&advert.name, MAX_NAME_BYTES));
    if let Some(term) = &advert.term {
        write_term(term, to.reborrow().init_term());
    }
    to.set_counter(advert.counter.min(MAX_COUNTER - 1));
    to.set_force_master(advert.force_master);
    to.set_uptime_ms(u64::try_from(advert.uptime.as_millis()).unwrap_or(u64::MAX));
    to.set_works(advert.works);
    to.set_numerics(advert.numerics);
    if !advert.software.is_empty() {
        to.set_software(truncated(&advert.software, MAX_SOFTWARE_BYTES));
    }
    if !advert.bits.is_empty() {
        to.set_bits(truncated(&advert.bits, MAX_BITS_BYTES));
    }
    to.set_votes(advert.votes);
    let addresses: Vec<Vec<u8>> = advert.addresses.iter().map(Multiaddr::to_vec).collect();
    let fitting: Vec<&Vec<u8>> =
        addresses.iter().filter(|address| address.len() <= MAX_ADDRESS_BYTES).take(MAX_ADDRESSES).collect();
    let mut list = to.reborrow().init_addresses(fitting.len() as u32);
    for (i, address) in fitting.into_iter().enumerate() {
        list.set(i as u32, address);
    }
    to.set_device(truncated(&advert.device, MAX_NAME_BYTES));
    to.set_threads(advert.threads);
    to.set_memory_bytes(advert.memory_bytes);
    to.set_f32_flops_per_s(advert.f32_flops_per_s);
    if let Some(speed) = &advert.speed {
        let mut to = to.reborrow().init_speed();
        to.set_weight_bytes_per_s(speed.weight_bytes_per_s);
        to.set_macs_per_s(speed.macs_per_s);
    }
    let links = head(&advert.links, MAX_LINKS);
    let mut list = to.reborrow().init_links(links.len() as u32);
    for (i, link) in links.iter().enumerate() {
        write_link(link, list.reborrow().get(i as u32));
    }
    let models = head(&advert.models, MAX_MODELS);
    let mut list = to.reborrow().init_models(models.len() as u32);
    for (i, model) in models.iter().enumerate() {
        let serving = advert.serving.iter().find(|serving| serving.model == model.digest);
        let mut to = list.reborrow().get(i as u32);
        to.set_unloaded(advert.unloaded.contains(&model.digest));
        write_model(model, serving, to);
    }
    let stages = head(&advert.stages, MAX_STAGE_ADVERTS);
    let mut list = to.reborrow().init_stages(stages.len() as u32);
    for (i, stage) in stages.iter().enumerate() {
        write_stage(stage, list.reborrow().get(i as u32));
    }
    let placements = head(&advert.placements, MAX_PLACEMENTS);
    let mut list = to.reborrow().init_placements(placements.len() as u32);
    for (i, placement) in placements.iter().enumerate() {
        write_placement(placement, list.reborrow().get(i as u32));
    }
    let refusals = head(&advert.refusals, MAX_REFUSALS);
    let mut list = to.reborrow().init_refusals(refusals.len() as u32);
    for (i, refusal) in refusals.iter().enumerate() {
        let mut to = list.reborrow().get(i as u32);
        to.set_model(refusal.model.as_bytes());
        to.set_why(truncated(&refusal.why, MAX_REFUSAL_BYTES));
    }
    let drops = head(&advert.drops, MAX_DROPS);
    let mut list = to.reborrow().init_drops(drops.len() as u32);
    for (i, record) in drops.iter().enumerate() {
        let mut to = list.reborrow().get(i as u32);
        to.set_model(record.model.as_bytes());
        to.set_version(record.version);
        to.set_dropped(record.dropped);
    }
    let wanted = head(&advert.wanted, MAX_WANTED);
    let mut list = to.init_wanted(wanted.len() as u32);
    for (i, model) in wanted.iter().enumerate() {
        list.set(i as u32, model.as_bytes());
    }
}

fn head<T>(list: &[T], max_len: usize) -> &[T] {
    &list[..list.len().min(max_len)]
}

fn write_term(term: &Term, mut to: wire::term::Builder<'_>) {
    to.set_counter(term.counter.min(MAX_COUNTER - 1));
    to.set_master(&term.master.to_bytes());
}

fn write_link(link: &LinkAdvert, mut to: wire::link::Builder<'_>) {
    to.set_to(&link.to.to_bytes());
    to.set_rtt_nanos(nanos(link.rtt));
    to.set_bytes_per_s(link.bytes_per_s);
    to.set_sent_bytes_per_s(link.sent_bytes_per_s);
    to.set_transport(truncated(&link.transport, MAX_LABEL_BYTES));
    to.set_found_by(truncated(&link.found_by, MAX_LABEL_BYTES));
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn write_layers(layers: &Range<u32>, mut to: wire::layers::Builder<'_>) {
    to.set_first(layers.start);
    to.set_end(layers.end);
}

fn write_model(model: &ModelAdvert, serving: Option<&ServingAdvert>, mut to: wire::model::Builder<'_>) {
    if let Some(serving) = serving {
        to.set_serving(true);
        to.set_places(serving.places);
        to.set_running(serving.running);
        to.set_waiting(serving.waiting);
        to.set_tokens_per_s(serving.tokens_per_s);
    }
    to.set_digest(model.digest.as_bytes());
    to.set_name(truncated(&model.name, MAX_MODEL_NAME_BYTES));
    to.set_served(model.served);
    to.set_whole(model.whole);
    to.set_split(model.split);
    if let Some(pinned) = &model.pinned {
        write_layers(pinned, to.reborrow().init_pinned());
    }
    let (size, mut to) = (&model.size, to.init_size());
    to.set_layers(size.layers);
    to.set_width(size.hidden_size);
    to.set_context(size.context);
    to.set_layer_bytes(size.layer_bytes);
    to.set_active_layer_bytes(size.active_layer_bytes);
    to.set_embedding_bytes(size.embedding_bytes);
    to.set_head_bytes(size.head_bytes);
    to.set_position_bytes(size.position_bytes);
}

fn write_stage(stage: &StageAdvert, mut to: wire::stage::Builder<'_>) {
    to.set_model(stage.model.as_bytes());
    write_layers(&stage.layers, to.reborrow().init_layers());
    to.set_epoch(stage.epoch);
    to.set_session_bytes(stage.session_bytes);
    to.set_broken_epoch(stage.broken.unwrap_or(0));
    if let Some(pace) = &stage.pace {
        let mut to = to.reborrow().init_pace();
        to.set_epoch(pace.epoch);
        to.set_step_nanos(nanos(pace.step));
        to.set_away_nanos(nanos(pace.away));
        to.set_prompt_row_nanos(nanos(pace.prompt_row));
    }
    let mut state = to.init_state();
    match &stage.state {
        StageState::Loading => state.set_loading(()),
        StageState::Ready => state.set_ready(()),
        StageState::Fetching { done, total } => {
            let mut fetching = state.init_fetching();
            fetching.set_done(*done);
            fetching.set_total(*total);
        }
        StageState::Failed(why) => state.set_failed(truncated(why, MAX_WHY_BYTES)),
    }
}

fn write_placement(placement: &Placement, mut to: wire::placement::Builder<'_>) {
    to.set_model(placement.model.as_bytes());
    to.set_name(truncated(&placement.name, MAX_MODEL_NAME_BYTES));
    to.set_epoch(placement.epoch);
    write_term(&placement.term, to.reborrow().init_term());
    let mut list = to.init_stages(placement.stages.len() as u32);
    for (i, stage) in placement.stages.iter().enumerate() {
        let mut to = list.reborrow().get(i as u32);
        to.set_peer(&stage.peer.to_bytes());
        write_layers(&stage.layers, to.init_layers());
    }
}

// Decoding.

fn read(from: wire::advert::Reader<'_>) -> Read<Advert> {
    if from.get_version() == 0 {
        return Err(malformed("an advert without a version"));
    }
    let term = if from.has_term() { Some(read_term(from.get_term().map_err(header_error)?)?) } else { None };
    let speed = if from.has_speed() {
        let speed = from.get_speed().map_err(header_error)?;
        Some(LayerSpeed {
            weight_bytes_per_s: rate(speed.get_weight_bytes_per_s())?,
            macs_per_s: rate(speed.get_macs_per_s())?,
        })
    } else {
        None
    };
    let addresses = from.get_addresses().map_err(header_error)?;
    let links = from.get_links().map_err(header_error)?;
    let models = from.get_models().map_err(header_error)?;
    let stages = from.get_stages().map_err(header_error)?;
    let placements = from.get_placements().map_err(header_error)?;
    let refusals = from.get_refusals().map_err(header_error)?;
    limited("addresses", addresses.len(), MAX_ADDRESSES)?;
    limited("links", links.len(), MAX_LINKS)?;
    limited("models", models.len(), MAX_MODELS)?;
    limited("stages", stages.len(), MAX_STAGE_ADVERTS)?;
    limited("placements", placements.len(), MAX_PLACEMENTS)?;
    limited("refusals", refusals.len(), MAX_REFUSALS)?;
    let drops = from.get_drops().map_err(header_error)?;
    limited("dropped models", drops.len(), MAX_DROPS)?;
    let wanted = from.get_wanted().map_err(header_error)?;
    limited("wanted models", wanted.len(), MAX_WANTED)?;
    Ok(Advert {
        peer: read_peer(from.get_peer())?,
        incarnation: from.get_incarnation(),
        sequence: from.get_sequence(),
        name: printable(read_text("name", from.get_name(), MAX_NAME_BYTES)?),
        term,
        counter: read_counter(from.get_counter())?,
        force_master: from.get_force_master(),
        uptime: Duration::from_millis(from.get_uptime_ms()),
        works: from.get_works(),
        numerics: from.get_numerics(),
        software: printable(read_text("software", from.get_software(), MAX_SOFTWARE_BYTES)?),
        bits: printable(read_text("bits", from.get_bits(), MAX_BITS_BYTES)?),
        votes: from.get_votes(),
        addresses: addresses.iter().map(read_address).collect::<Read<_>>()?,
        device: printable(read_text("device", from.get_device(), MAX_NAME_BYTES)?),
        threads: from.get_threads(),
        memory_bytes: from.get_memory_bytes(),
        f32_flops_per_s: rate(from.get_f32_flops_per_s())?,
        speed,
        links: links.iter().map(read_link).collect::<Read<_>>()?,
        serving: models.iter().filter(|model| model.get_serving()).map(read_serving).collect::<Read<_>>()?,
        unloaded: models
            .iter()
            .filter(|model| model.get_unloaded())
            .map(|model| read_digest(model.get_digest()))
            .collect::<Read<_>>()?,
        wanted: wanted.iter().map(read_digest).collect::<Read<_>>()?,
        models: models.iter().map(read_model).collect::<Read<_>>()?,
        stages: stages.iter().map(read_stage).collect::<Read<_>>()?,
        placements: placements.iter().map(read_placement).collect::<Read<_>>()?,
        refusals: refusals.iter().map(read_refusal).collect::<Read<_>>()?,
        drops: drops.iter().map(read_drop).collect::<Read<_>>()?,
    })
}

fn limited(what: &str, count: u32, max_len: usize) -> Read<()> {
    if count as usize > max_len {
        return Err(WireError::Header(format!("{count} {what} in one advert; at most {max_len} are allowed")));
    }
    Ok(())
}

fn malformed(why: &str) -> WireError {
    WireError::Header(why.to_owned())
}

fn read_peer(bytes: capnp::Result<capnp::data::Reader<'_>>) -> Read<PeerId> {
    PeerId::from_bytes(bytes.map_err(header_error)?).map_err(|_| malformed("not a peer id"))
}

fn read_digest(bytes: capnp::Result<capnp::data::Reader<'_>>) -> Read<Digest> {
    let bytes = bytes.map_err(header_error)?;
    bytes.try_into().map(Digest::from_bytes).map_err(|_| malformed("a digest has 32 bytes"))
}

fn read_address(bytes: capnp::Result<capnp::data::Reader<'_>>) -> Read<Multiaddr> {
    let bytes = bytes.map_err(header_error)?;
    if bytes.len() > MAX_ADDRESS_BYTES {
        return Err(malformed("an address is too long"));
    }
    Multiaddr::try_from(bytes.to_vec()).map_err(|_| malformed("not an address"))
}

fn read_counter(counter: u64) -> Read<u64> {
    if counter < MAX_COUNTER { Ok(counter) } else { Err(malformed("a term's counter is too large")) }
}

fn rate(per_s: f64) -> Read<f64> {
    if per_s.is_finite() && per_s >= 0.0 { Ok(per_s) } else { Err(malformed("a speed is negative or not finite")) }
}

fn read_term(from: wire::term::Reader<'_>) -> Read<Term> {
    Ok(Term { counter: read_counter(from.get_counter())?, master: read_peer(from.get_master())? })
}

fn read_layers(from: capnp::Result<wire::layers::Reader<'_>>) -> Read<Range<u32>> {
    let from = from.map_err(header_error)?;
    let layers = from.get_first()..from.get_end();
    if layers.is_empty() { Err(malformed("a range of layers is empty")) } else { Ok(layers) }
}

fn read_link(from: wire::link::Reader<'_>) -> Read<LinkAdvert> {
    Ok(LinkAdvert {
        to: read_peer(from.get_to())?,
        rtt: Duration::from_nanos(from.get_rtt_nanos()),
        bytes_per_s: rate(from.get_bytes_per_s())?,
        sent_bytes_per_s: rate(from.get_sent_bytes_per_s())?,
        transport: printable(read_text("transport", from.get_transport(), MAX_LABEL_BYTES)?),
        found_by: printable(read_text("foundBy", from.get_found_by(), MAX_LABEL_BYTES)?),
    })
}

fn read_model(from: wire::model::Reader<'_>) -> Read<ModelAdvert> {
    let size = from.get_size().map_err(header_error)?;
    Ok(ModelAdvert {
        digest: read_digest(from.get_digest())?,
        name: printable(read_text("name", from.get_name(), MAX_MODEL_NAME_BYTES)?),
        served: from.get_served(),
        whole: from.get_whole(),
        split: from.get_split(),
        pinned: if from.has_pinned() { Some(read_layers(from.get_pinned())?) } else { None },
        size: ModelSize {
            layers: size.get_layers(),
            hidden_size: size.get_width(),
            context: size.get_context(),
            layer_bytes: size.get_layer_bytes(),
            active_layer_bytes: size.get_active_layer_bytes(),
            embedding_bytes: size.get_embedding_bytes(),
            head_bytes: size.get_head_bytes(),
            position_bytes: size.get_position_bytes(),
        },
    })
}

fn read_serving(from: wire::model::Reader<'_>) -> Read<ServingAdvert> {
    Ok(ServingAdvert {
        model: read_digest(from.get_digest())?,
        places: from.get_places(),
        running: from.get_running(),
        waiting: from.get_waiting(),
        tokens_per_s: from.get_tokens_per_s(),
    })
}

fn read_stage(from: wire::stage::Reader<'_>) -> Read<StageAdvert> {
    use wire::stage::state::Which;
    let state = match from
        .get_state()
        .which()
        .map_err(|unknown| WireError::Header(format!("unknown state {} of a stage", unknown.0)))?
    {
        Which::Loading(()) => StageState::Loading,
        Which::Ready(()) => StageState::Ready,
        Which::Fetching(fetching) => StageState::Fetching { done: fetching.get_done(), total: fetching.get_total() },
        Which::Failed(why) => StageState::Failed(printable(read_text("failed", why, MAX_WHY_BYTES)?)),
    };
    let pace = if from.has_pace() { Some(read_pace(from.get_pace().map_err(header_error)?)) } else { None };
    Ok(StageAdvert {
        pace,
        model: read_digest(from.get_model())?,
        layers: read_layers(from.get_layers())?,
        epoch: from.get_epoch(),
        state,
        session_bytes: from.get_session_bytes(),
        broken: Some(from.get_broken_epoch()).filter(|epoch| *epoch > 0),
    })
}

fn read_pace(from: wire::pace::Reader<'_>) -> StagePace {
    StagePace {
        epoch: from.get_epoch(),
        step: Duration::from_nanos(from.get_step_nanos()),
        away: Duration::from_nanos(from.get_away_nanos()),
        prompt_row: Duration::from_nanos(from.get_prompt_row_nanos()),
    }
}

fn read_refusal(from: wire::refusal::Reader<'_>) -> Read<PlacementRefusal> {
    let why = printable(read_text("refusal", from.get_why(), MAX_REFUSAL_BYTES)?);
    Ok(PlacementRefusal { model: read_digest(from.get_model())?, why })
}

fn read_drop(from: wire::drop_record::Reader<'_>) -> Read<DropRecord> {
    Ok(DropRecord { model: read_digest(from.get_model())?, version: from.get_version(), dropped: from.get_dropped() })
}

fn read_placement(from: wire::placement::Reader<'_>) -> Read<Placement> {
    let stages = from.get_stages().map_err(header_error)?;
    limited("stages of a placement", stages.len(), MAX_PLACED_STAGES)?;
    let stages = stages
        .iter()
        .map(|stage| Ok(PlacedStage { peer: read_peer(stage.get_peer())?, layers: read_layers(stage.get_layers())? }))
        .collect::<Read<Vec<_>>>()?;
    let contiguous = stages.windows(2).all(|pair| pair[0].layers.end == pair[1].layers.start);
    if !contiguous || stages.first().is_none_or(|first| first.layers.start != 0) {
        return Err(malformed("a placement whose stages do not follow each other from layer 0"));
    }
    Ok(Placement {
        model: read_digest(from.get_model())?,
        name: printable(read_text("name", from.get_name(), MAX_MODEL_NAME_BYTES)?),
        epoch: from.get_epoch(),
        term: read_term(from.get_term().map_err(header_error)?)?,
        stages,
    })
}

//! The JSON form of a claim's profile: its name.

use pangea_compute::commit::Profile;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(profile: &Profile, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(profile.name())
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Profile, D::Error> {
    let name = String::deserialize(from)?;
    Profile::from_name(&name).ok_or_else(|| D::Error::custom(format!("{name:?} is not a profile of claims")))
}

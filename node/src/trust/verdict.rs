//! The JSON form of a verdict: its name.

use pangea_control::trust::Verdict;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(verdict: &Verdict, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(verdict.name())
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Verdict, D::Error> {
    let name = String::deserialize(from)?;
    Verdict::from_name(&name).ok_or_else(|| D::Error::custom(format!("{name:?} is not a verdict")))
}

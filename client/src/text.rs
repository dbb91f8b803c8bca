//! Text fields of messages as owned strings.

/// The text of a field.
pub(crate) fn string(text: capnp::text::Reader<'_>) -> capnp::Result<String> {
    Ok(text.to_str()?.to_owned())
}

/// The texts of a list field.
pub(crate) fn strings(texts: capnp::text_list::Reader<'_>) -> capnp::Result<Vec<String>> {
    texts.iter().map(|text| string(text?)).collect()
}

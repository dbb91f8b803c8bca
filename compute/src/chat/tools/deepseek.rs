//! The head of a call as DeepSeek writes it, in the form of V3 and R1, `<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME`, a line end and
//! the arguments in a block of code, and of V3.1, `<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>` and the arguments.

pub(super) const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
pub(super) const CALLS_END: &str = "<｜tool▁calls▁end｜>";
pub(super) const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
pub(super) const CALL_END: &str = "<｜tool▁call▁end｜>";
pub(super) const SEPARATOR: &str = "<｜tool▁sep｜>";
const CODE: &str = "```json";
const CODE_END: &str = "```";

/// What may stand after the arguments of a call.
pub(super) const CLOSE: [&str; 4] = [CODE_END, CALL_END, CALL_BEGIN, CALLS_END];

/// Bytes of a head: longer ones are text.
const HEAD_BYTES_MAX: usize = 1024;

/// What a text begins with.
pub(super) enum DeepseekHead {
    /// More text is needed.
    Short,
    /// Something else.
    Other,
    /// The name, and the place of the bracket that begins the arguments.
    Begun { name: String, arguments: usize },
}

/// Whether more of the same call's end may follow this mark.
pub(super) fn goes_on_after(mark: &str) -> bool {
    [CODE_END, CALL_END].contains(&mark)
}

/// The head of the call that `text` begins with.
pub(super) fn head(text: &str) -> DeepseekHead {
    let Some(begun) = text.strip_prefix(CALL_BEGIN) else {
        let is_part = text.len() < CALL_BEGIN.len() && CALL_BEGIN.starts_with(text);
        return if is_part { DeepseekHead::Short } else { DeepseekHead::Other };
    };
    let Some(brace) = begun.find('{').filter(|&brace| brace <= HEAD_BYTES_MAX) else {
        return if begun.len() <= HEAD_BYTES_MAX { DeepseekHead::Short } else { DeepseekHead::Other };
    };
    let Some((kind, rest)) = begun[..brace].split_once(SEPARATOR) else { return DeepseekHead::Other };
    let (name, rest) = match rest.trim_start().split_once('\n') {
        Some((name, rest)) if kind.trim() == "function" => (name, rest),
        _ => (kind, rest),
    };
    let (name, rest) = (name.trim(), rest.trim());
    if name.is_empty() || !(rest.is_empty() || rest == CODE) {
        return DeepseekHead::Other;
    }
    DeepseekHead::Begun { name: name.to_owned(), arguments: CALL_BEGIN.len() + brace }
}

//! The way of a request from this node to a model: by a session, whose answer this node checks, or tunnelled as a whole to a node
//! that serves the model. A pure function.

/// The way of a request to its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// This node coordinates the answer: tokens, sampling terms and commitments are its own to check.
    Session,
    /// Another node answers the request as a whole.
    Tunnel,
}

/// What this node knows of a model that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelKnowledge {
    /// Whether its tokenizer and template are loaded here.
    pub has_text: bool,
    /// Whether they are fetched when a request needs them. A lite client fetches nothing of a model, and a node that could not
    /// fetch them does not make further requests wait for the next try.
    pub fetches_text: bool,
    /// Whether a node that computes the model speaks this node's version of the numerics, or this node computes it.
    pub has_numerics: bool,
    /// Whether a node takes whole requests to it.
    pub has_server: bool,
}

/// The way of a request. Checked answers are better, so a session is preferred wherever one is possible.
pub fn way_of(known: ModelKnowledge) -> Way {
    let may_coordinate = known.has_numerics && (known.has_text || known.fetches_text);
    if known.has_server && !may_coordinate { Way::Tunnel } else { Way::Session }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_tunnelled_only_where_this_node_cannot_coordinate_it_and_another_answers() {
        for bits in 0..16u8 {
            let bit = |at: u8| bits >> at & 1 == 1;
            let known =
                ModelKnowledge { has_text: bit(0), fetches_text: bit(1), has_numerics: bit(2), has_server: bit(3) };
            let expected = match known {
                ModelKnowledge { has_server: false, .. } => Way::Session,
                ModelKnowledge { has_numerics: false, .. } => Way::Tunnel,
                ModelKnowledge { has_text: false, fetches_text: false, .. } => Way::Tunnel,
                _ => Way::Session,
            };
            assert_eq!(way_of(known), expected, "{known:?}");
        }
    }
}

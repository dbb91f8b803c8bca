//! What the nodes of a pool said of their models when it was last looked at, and whether that changed since: what follows from it
//! alone is worked out once, and not at every look. Nothing is worked out here.

use std::sync::Arc;

use super::{Advert, View};

/// The adverts of the last view.
#[derive(Debug, Default)]
pub(crate) struct ModelsSaid {
    adverts: Vec<Arc<Advert>>,
}

impl ModelsSaid {
    /// Whether a node came or went, or says something else of its name, its models, those unloaded or dropped, or of whether it computes for others, since the
    /// last call.
    pub(crate) fn changed(&mut self, view: &View) -> bool {
        let mut known = self.adverts.iter_mut();
        let mut is_known = |advert: &Arc<Advert>| {
            let Some(before) = known.next() else { return false };
            let same = Arc::ptr_eq(before, advert)
                || (before.peer == advert.peer
                    && before.works == advert.works
                    && before.name == advert.name
                    && before.models == advert.models
                    && before.unloaded == advert.unloaded
                    && before.drops == advert.drops);
            if same {
                before.clone_from(advert);
            }
            same
        };
        let changed = !view.everyone().all(&mut is_known) || known.next().is_some();
        if changed {
            self.adverts = view.everyone().cloned().collect();
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pool::{ModelAdvert, ModelSize, advert_of};
    use crate::test_peers::peer;

    fn view(nodes: &[Advert]) -> View {
        let own = Arc::new(advert_of(peer(100)));
        let nodes = nodes.iter().map(|advert| (advert.peer, Arc::new(advert.clone()))).collect();
        View { local: own.peer, own, term: None, nodes, connected: BTreeSet::new() }
    }

    #[test]
    fn only_what_is_said_of_models_counts() {
        let mut said = ModelsSaid::default();
        assert!(said.changed(&view(&[])), "nothing was known");
        let mut changed = |nodes: &[Advert]| said.changed(&view(nodes));
        assert!(!changed(&[]));
        let (mut first, second) = (advert_of(peer(1)), advert_of(peer(2)));
        assert!(changed(&[first.clone()]), "a node came");
        assert!(changed(&[first.clone(), second.clone()]), "another one");
        first.sequence += 1;
        assert!(!changed(&[first.clone(), second.clone()]));
        first.name.push('s');
        assert!(changed(&[first.clone(), second.clone()]), "it has another name");
        first.works = !first.works;
        assert!(changed(&[first.clone(), second.clone()]));
        let (digest, name) = (pangea_units::Digest([1; 32]), "tiny".to_owned());
        let (served, whole, split, pinned) = (true, true, false, None);
        first.models.push(ModelAdvert { digest, name, served, whole, split, pinned, size: ModelSize::default() });
        assert!(changed(&[first.clone(), second.clone()]), "it serves a model");
        first.models[0].whole = false;
        assert!(changed(&[first.clone(), second]), "it has pieces of it");
        assert!(changed(&[first.clone()]), "a node went");
        assert!(changed(&[]), "another one");
        assert!(!changed(&[]));
    }
}

//! Limits how many streams of one protocol are served at once: per peer, and in total. A stream without a place is
//! refused before anything is read from it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use libp2p::PeerId;

/// The places of one protocol. Clones share them.
#[derive(Clone, Debug)]
pub struct Places {
    taken: Rc<RefCell<HashMap<PeerId, usize>>>,
    per_peer: usize,
    total: usize,
}

/// One stream's place; dropping it releases the place.
#[derive(Debug)]
pub struct Place {
    taken: Rc<RefCell<HashMap<PeerId, usize>>>,
    peer: PeerId,
}

impl Places {
    /// `per_peer` places for each peer and `total` in all.
    pub fn new(per_peer: usize, total: usize) -> Places {
        Places { taken: Rc::default(), per_peer, total }
    }

    /// Takes a place for a stream of `peer`; `None` if there is none.
    pub fn take(&self, peer: PeerId) -> Option<Place> {
        let mut taken = self.taken.borrow_mut();
        let of_peer = taken.get(&peer).copied().unwrap_or_default();
        if of_peer >= self.per_peer || taken.values().sum::<usize>() >= self.total {
            return None;
        }
        taken.insert(peer, of_peer + 1);
        Some(Place { taken: Rc::clone(&self.taken), peer })
    }

    /// Places that `peer` has taken.
    pub fn of(&self, peer: &PeerId) -> usize {
        self.taken.borrow().get(peer).copied().unwrap_or_default()
    }

    /// Whether no peer has a place.
    pub fn is_free(&self) -> bool {
        self.taken.borrow().is_empty()
    }
}

impl Place {
    /// Whose stream has the place.
    pub fn peer(&self) -> PeerId {
        self.peer
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.borrow_mut();
        if let Some(of_peer) = taken.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_per_peer_and_in_total_and_released_on_drop() {
        let places = Places::new(2, 3);
        let (one, other) = (PeerId::random(), PeerId::random());
        let first = places.take(one).unwrap();
        let _second = places.take(one).unwrap();
        assert!(places.take(one).is_none(), "beyond the bound of a peer");
        let third = places.take(other).unwrap();
        assert!(places.take(other).is_none(), "beyond the bound of all");
        drop(first);
        let _fourth = places.take(other).unwrap();
        drop(third);
        assert!(places.take(one).is_some());
        assert_eq!((places.of(&one), places.of(&other)), (1, 1));
        drop((_second, _fourth));
        assert!(places.is_free());
    }
}

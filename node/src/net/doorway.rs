//! The doors of a node: the sockets that are open at one port, each with the switch that closes it.
//! `pangea_control::net::callers` decides who gives a place to a newcomer. This file never reads or writes a socket.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pangea_control::net::callers::{Arrival, CallerLimits, CallerNumber, Callers, Origin, Standing};
use tokio_util::sync::CancellationToken;

use crate::clock;

/// One port's door. Clones share it.
#[derive(Clone, Debug)]
pub struct Doorway {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    callers: Callers,
    /// Cancelled when a connection must close.
    closing: HashMap<CallerNumber, CancellationToken>,
}

/// One connection's place at a door; dropping it frees the place.
#[derive(Debug)]
pub struct Caller {
    doorway: Doorway,
    number: CallerNumber,
    origin: Origin,
    closing: CancellationToken,
}

impl Doorway {
    /// A door with these places.
    pub fn new(limits: CallerLimits) -> Doorway {
        let state = State { callers: Callers::new(limits), closing: HashMap::new() };
        Doorway { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `address`; the connection that gives up its place closes. `None` if all are busy.
    pub fn arrived(&self, address: IpAddr) -> Option<Caller> {
        let origin = Origin::of(address);
        let mut state = self.lock();
        let Arrival::Enters { number, instead_of } = state.callers.arrived(origin, clock::now()) else { return None };
        if let Some(closed) = instead_of.and_then(|evicted| state.closing.remove(&evicted)) {
            closed.cancel();
        }
        let closing = CancellationToken::new();
        state.closing.insert(number, closing.clone());
        drop(state);
        Some(Caller { doorway: self.clone(), number, origin, closing })
    }

    /// Number of open connections.
    pub fn open(&self) -> usize {
        self.lock().callers.len()
    }
}

impl Caller {
    /// Where the caller is.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The caller stands otherwise now.
    pub fn stands(&self, standing: Standing) {
        self.doorway.lock().callers.stands(self.number, standing, clock::now());
    }

    /// Cancelled when the connection must close, because a newcomer has its place.
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut state = self.doorway.lock();
        state.callers.left(self.number);
        state.closing.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_that_gives_up_its_place_is_told_and_a_place_is_freed_on_drop() {
        let doorway = Doorway::new(CallerLimits { total: 2, per_origin: 2, local: 0 });
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let first = doorway.arrived(address).unwrap();
        let second = doorway.arrived(address).unwrap();
        second.stands(Standing::Busy);
        let third = doorway.arrived(address).unwrap();
        assert!(first.closing().is_cancelled() && !second.closing().is_cancelled());
        drop(first);
        third.stands(Standing::Busy);
        assert!(doorway.arrived(address).is_none());
        drop(second);
        assert!(doorway.arrived(address).is_some());
        assert_eq!(doorway.open(), 1);
    }
}

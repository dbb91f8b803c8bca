//! Failures of dials and connections: converts libp2p's errors to the dialling plan's [`Failure`], to [`NetError`] and
//! to text for people. Nothing here acts on a failure.

use std::error::Error as StdError;
use std::io;

use libp2p::core::transport::TransportError;
use libp2p::swarm::{ConnectionError, DialError};
use libp2p::{Multiaddr, PeerId};
use pangea_control::net::admission::Refusal;
use pangea_control::net::dial::Failure;

use super::network::NetError;
use super::transport::HandshakeError;

/// Error of a dial that a caller requested.
pub(super) fn connect_error(address: &Multiaddr, error: &DialError) -> NetError {
    match handshake_error(error) {
        Some(HandshakeError::Refused { peer, refusal }) => refused_here(*peer, *refusal),
        Some(HandshakeError::RefusedByPeer { peer, refusal }) => {
            NetError::Refused { peer: *peer, why: refusal.of_this_node().to_owned() }
        }
        Some(HandshakeError::Own) => NetError::OwnAddress(address.clone()),
        _ if is_own(error) => NetError::OwnAddress(address.clone()),
        _ => NetError::Unreachable { address: address.clone(), why: dial_error_text(error) },
    }
}

pub(super) fn refused_here(peer: PeerId, refusal: Refusal) -> NetError {
    NetError::Refused { peer, why: refusal.of_the_other().to_owned() }
}

pub(super) fn listen_error(address: &Multiaddr, error: &TransportError<io::Error>) -> NetError {
    let why = match error {
        TransportError::MultiaddrNotSupported(_) => {
            "not an address that this node can listen on; use /ip4/…/tcp/… or /ip4/…/udp/…/quic-v1".to_owned()
        }
        TransportError::Other(error) => error.to_string(),
    };
    NetError::Listen { address: address.clone(), why }
}

/// An error and all its sources, including those inside `io::Error`s, which `source` does not return.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| {
        let error: &'a (dyn StdError + 'static) = *error;
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match inner {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        }
    })
}

fn handshake_error(error: &DialError) -> Option<&HandshakeError> {
    let DialError::Transport(attempts) = error else {
        return None;
    };
    let mut found = attempts.iter().filter_map(|(_, error)| match error {
        TransportError::Other(error) => chain(error).find_map(|error| error.downcast_ref::<HandshakeError>()),
        TransportError::MultiaddrNotSupported(_) => None,
    });
    // With several addresses, an answer from a node says more than silence.
    let mut best = found.next()?;
    for next in found {
        if !matches!(best, HandshakeError::Refused { .. } | HandshakeError::RefusedByPeer { .. }) {
            best = next;
        }
    }
    Some(best)
}

pub(super) fn failure_of(error: &DialError) -> Failure {
    match handshake_error(error) {
        Some(
            HandshakeError::Refused { peer, refusal: Refusal::Duplicate }
            | HandshakeError::RefusedByPeer { peer, refusal: Refusal::Duplicate },
        ) => Failure::Duplicate(*peer),
        Some(HandshakeError::Refused { .. } | HandshakeError::RefusedByPeer { .. }) => Failure::Refused,
        Some(HandshakeError::Own) => Failure::Own,
        _ if is_own(error) => Failure::Own,
        _ => Failure::Unreachable,
    }
}

/// Whether a dial led to this node itself. The swarm drops its own listen addresses, so there may be no address left.
fn is_own(error: &DialError) -> bool {
    matches!(error, DialError::LocalPeerId { .. } | DialError::NoAddresses)
}

/// Describes a failed dial with the innermost error of each address.
pub(super) fn dial_error_text(error: &DialError) -> String {
    let DialError::Transport(attempts) = error else {
        return error.to_string();
    };
    let texts: Vec<String> = attempts
        .iter()
        .map(|(_, error)| match error {
            TransportError::Other(error) => chain(error).last().map_or_else(|| error.to_string(), ToString::to_string),
            TransportError::MultiaddrNotSupported(_) => "not an address that this node can dial".to_owned(),
        })
        .collect();
    texts.join("; ")
}

pub(super) fn closed_text(cause: Option<&ConnectionError>) -> String {
    match cause {
        None => "disconnected".to_owned(),
        Some(ConnectionError::KeepAliveTimeout) => "idle".to_owned(),
        Some(ConnectionError::IO(error)) => match error_kind(error) {
            Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe) => "it closed the connection".to_owned(),
            Some(io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted) => {
                "the connection was reset".to_owned()
            }
            Some(io::ErrorKind::TimedOut) => "the connection timed out".to_owned(),
            _ => chain(error).last().map_or_else(|| error.to_string(), ToString::to_string),
        },
    }
}

/// The innermost error kind other than `Other`.
fn error_kind(error: &io::Error) -> Option<io::ErrorKind> {
    chain(error)
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .map(io::Error::kind)
        .filter(|kind| *kind != io::ErrorKind::Other)
        .last()
}

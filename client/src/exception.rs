//! The wire form of an error in Cap'n Proto: an exception whose text is `Kind: sentence`, as
//! `schema/node.capnp` states. Only this file writes and reads that text, on both sides.

use crate::{Error, ErrorKind};

/// Prefix that RPC libraries put before the text of an exception of the other side.
const REMOTE_PREFIX: &str = "remote exception: ";

/// The exception that carries `error`.
pub fn to_exception(error: &Error) -> capnp::Error {
    let text = format!("{}: {}", error.kind(), error.message());
    match error.kind() {
        ErrorKind::Overloaded => capnp::Error::overloaded(text),
        _ => capnp::Error::failed(text),
    }
}

/// The error that an exception carries. An exception without one (the connection broke, the other
/// side is older or not a node) gets the nearest kind.
pub fn from_exception(exception: &capnp::Error) -> Error {
    let mut text = exception.extra.as_str();
    while let Some(rest) = text.strip_prefix(REMOTE_PREFIX) {
        text = rest;
    }
    if let Some((name, message)) = text.split_once(": ")
        && let Some(kind) = ErrorKind::from_name(name)
    {
        return Error::new(kind, message);
    }
    match exception.kind {
        // A node that ended causes either text, depending on whether its last message was read completely.
        capnp::ErrorKind::Disconnected | capnp::ErrorKind::PrematureEndOfFile => {
            Error::new(ErrorKind::Unavailable, format!("the connection to the node was lost ({text})"))
        }
        capnp::ErrorKind::Overloaded => Error::new(ErrorKind::Overloaded, text),
        capnp::ErrorKind::Unimplemented => Error::new(
            ErrorKind::NotFound,
            format!("the node does not know this call; is it older than this program? ({text})"),
        ),
        _ => Error::new(ErrorKind::Internal, exception.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_way_there() {
        for kind in ErrorKind::ALL {
            let sent = Error::new(kind, "A is [2, 3], B is [4, 5]: they do not fit");
            let mut exception = to_exception(&sent);
            exception.extra.insert_str(0, "remote exception: remote exception: ");
            let got = from_exception(&exception);
            assert_eq!(got.kind(), kind);
            assert_eq!(got.message(), sent.message());
        }
    }

    #[test]
    fn exceptions_of_the_rpc_system_get_the_nearest_kind() {
        let kind = |exception: capnp::Error| from_exception(&exception).kind();
        assert_eq!(kind(capnp::Error::disconnected("Peer disconnected.".into())), ErrorKind::Unavailable);
        assert_eq!(kind(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()), ErrorKind::Unavailable);
        assert_eq!(kind(capnp::Error::overloaded("busy".into())), ErrorKind::Overloaded);
        assert_eq!(kind(capnp::Error::unimplemented("method 99".into())), ErrorKind::NotFound);
        assert_eq!(kind(capnp::Error::failed("Oops: what".into())), ErrorKind::Internal);
    }
}

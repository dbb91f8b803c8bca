//! Who belongs to a pool, as its own key says: certificates ([`certificate`]) and the check of those that others show
//! ([`proofs`]). Who holds the pool's signing key and when a certificate is issued is decided elsewhere.

pub mod certificate;
pub mod proofs;

pub use certificate::{Certificate, CertificateError, Role, SignedCertificate};
pub use proofs::{NotProven, Proofs};

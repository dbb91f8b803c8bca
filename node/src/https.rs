//! HTTP and HTTPS towards servers that are no peers: which certificates are trusted, and clients that follow no redirect by
//! themselves. This room knows no server.

use std::path::PathBuf;
use std::sync::Arc;

use pangea_client::{Error, ErrorKind, Result};
use ureq::Agent;
use ureq::config::ConfigBuilder;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::typestate::AgentScope;

/// Files of trusted certificates on Debian, Fedora, SUSE, macOS and Alpine.
const CERTIFICATES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A client for the server at `address`, with the timeouts that `limited` sets. A status that is no success is no error to it.
///
/// # Errors
/// `Unavailable` if the address needs trusted certificates and there are none.
pub(crate) fn agent(
    address: &str,
    limited: impl FnOnce(ConfigBuilder<AgentScope>) -> ConfigBuilder<AgentScope>,
) -> Result<Agent> {
    let certificates = match trusted() {
        Err(error) if address.starts_with("https://") => return Err(error),
        certificates => certificates.unwrap_or_default(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates))
        .unversioned_rustls_crypto_provider(provider)
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("pangea/", env!("CARGO_PKG_VERSION")));
    Ok(limited(config).build().into())
}

/// Certificates that the system trusts; networks behind a proxy have installed its certificate there.
fn trusted() -> Result<Vec<Certificate<'static>>> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|file| !file.is_empty()).map(PathBuf::from);
    let path = named.or_else(|| CERTIFICATES.iter().map(PathBuf::from).find(|path| path.is_file()));
    let no = |what: String| {
        let hint = "set SSL_CERT_FILE to a PEM file of trusted certificates";
        Error::new(ErrorKind::Unavailable, format!("cannot use https: {what}; {hint}"))
    };
    let path = path.ok_or_else(|| no("no file of trusted certificates was found".to_owned()))?;
    let pem = std::fs::read(&path).map_err(|error| no(format!("{}: {error}", path.display())))?;
    let items = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        // Keys and unknown entries are skipped.
        _ => None,
    });
    Ok(items.collect())
}

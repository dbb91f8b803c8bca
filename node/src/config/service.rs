//! Flags of `pangea node` for its services: the Cap'n Proto service and the HTTP API.

use std::net::{Ipv4Addr, SocketAddr};

use clap::builder::FalseyValueParser;
use clap::{Args, value_parser};

use super::node::ConfigError;
use crate::host;

/// Default port of the Cap'n Proto service.
const RPC_PORT: u16 = 8080;

/// Default port of the HTTP API.
pub const API_PORT: u16 = 52415;

/// Port of Ollama's own server.
const OLLAMA_PORT: u16 = 11434;

/// Minimum length of an API key in characters; a shorter one can be guessed.
const MIN_API_KEY_CHARS: usize = 8;

/// Requests per second of one client without `--client-rate`: a program that asks in a loop over loopback stays below it
/// where each request does some work.
const CLIENT_RATE: u32 = 500;

/// The network on which the HTTP API is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bind {
    /// On this host only.
    Loopback,
    /// At this host's private address, or on loopback if the host has no private address.
    Lan,
}

/// The services, as given on the command line, in the environment or in `config.toml`; no defaults.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Programs")]
pub struct ServiceFlags {
    /// Address of the Cap'n Proto service; port 0 picks a free one; other hosts need a key in PANGEA_API_KEY or config.toml, and
    /// users of this host the socket rpc.sock in the data directory (--rpc unix:PATH) [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", env = "PANGEA_RPC_ADDR", hide_env_values = true, value_parser = socket_address)]
    pub rpc_addr: Option<SocketAddr>,

    /// Address of the HTTP API; port 0 picks a free one [default: 127.0.0.1:52415]
    #[arg(long, value_name = "ADDR", env = "PANGEA_API_ADDR", hide_env_values = true, value_parser = socket_address, conflicts_with_all = ["api_port", "bind"])]
    pub api_addr: Option<SocketAddr>,

    /// Port of the HTTP API; its address stays
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub api_port: Option<u16>,

    /// lan: bind the HTTP API to this host's private address; needs a key in PANGEA_API_KEY or config.toml
    #[arg(long, value_name = "WHERE", value_enum, hide_possible_values = true)]
    pub bind: Option<Bind>,

    /// Do not offer the HTTP API
    #[arg(long, env = "PANGEA_NO_API", hide_env_values = true, value_parser = FalseyValueParser::new(), conflicts_with_all = ["api_addr", "api_port", "bind"])]
    pub no_api: bool,

    /// Requests per second that one client (a host) may make over HTTP before it gets 429; 0: no limit [default: 500]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(0..=1_000_000))]
    pub client_rate: Option<u32>,

    /// Let web pages of this origin (SCHEME://HOST:PORT) use the HTTP API; may be given several times; *: all pages
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    pub cors: Vec<String>,

    /// Offer the HTTP API on port 11434 as well, where clients of Ollama look for it
    #[arg(long, conflicts_with = "no_api")]
    pub ollama: bool,

    /// What clients must show: of the HTTP API always, of the Cap'n Proto service where other hosts reach it. Typed, it would
    /// stand in every list of processes.
    #[arg(long, hide = true, env = "PANGEA_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
}

/// Addresses of the services of a node.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Address of the Cap'n Proto service; port 0 picks a free one.
    pub rpc_addr: SocketAddr,
    /// Whether a person asked for that address; otherwise another port does as well.
    pub rpc_is_asked_for: bool,
    /// Key that clients of the Cap'n Proto service must show. It is always present if other hosts can reach the service.
    pub rpc_key: Option<ApiKey>,
    /// The HTTP API; `None` with `--no-api`.
    pub api: Option<ApiConfig>,
}

/// Address and key of the HTTP API.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Address of the API; port 0 picks a free one.
    pub address: SocketAddr,
    /// Whether a person asked for that port; otherwise another one does as well.
    pub is_asked_for: bool,
    /// Key that clients must send. It is always present if other hosts can reach the API.
    pub key: Option<ApiKey>,
    /// Requests per second that one client may make; `None` without a limit.
    pub client_rate: Option<u32>,
    /// Origins whose pages may use the API; `*` is every origin.
    pub cors: Vec<String>,
    /// Where clients of Ollama find the API, if it is offered there too.
    pub ollama: Option<SocketAddr>,
}

/// A key that programs show to this node.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

impl ServiceFlags {
    /// Fills in the defaults.
    /// `has_keys`: whether the data directory has API keys, which the HTTP API requires then.
    pub(super) fn resolve(self, has_keys: bool) -> Result<ServiceConfig, ConfigError> {
        let rpc_is_asked_for = self.rpc_addr.is_some();
        let rpc_addr = self.rpc_addr.unwrap_or((Ipv4Addr::LOCALHOST, RPC_PORT).into());
        let key = self.api_key.clone().filter(|key| !key.is_empty());
        if key.as_ref().is_some_and(|key| key.len() < MIN_API_KEY_CHARS || !key.chars().all(|c| c.is_ascii_graphic())) {
            return Err(ConfigError::ApiKey { min_chars: MIN_API_KEY_CHARS });
        }
        let key = key.map(ApiKey);
        // On loopback the service stays as it was: a key in the file is for the HTTP API there.
        let rpc_key = key.clone().filter(|_| !rpc_addr.ip().is_loopback());
        if rpc_key.is_none() && !rpc_addr.ip().is_loopback() {
            return Err(ConfigError::NoRpcKey { address: rpc_addr, min_chars: MIN_API_KEY_CHARS });
        }
        let api = if self.no_api { None } else { Some(self.api(key, has_keys)?) };
        Ok(ServiceConfig { rpc_addr, rpc_is_asked_for, rpc_key, api })
    }

    /// The HTTP API at `--api-addr`; without it, at `--api-port` of loopback or of the private address (`--bind`).
    fn api(self, key: Option<ApiKey>, has_keys: bool) -> Result<ApiConfig, ConfigError> {
        let is_asked_for = self.api_addr.is_some() || self.api_port.is_some();
        let address = self.api_addr.unwrap_or_else(|| {
            let host = match self.bind {
                Some(Bind::Lan) => host::private_address().unwrap_or(Ipv4Addr::LOCALHOST.into()),
                Some(Bind::Loopback) | None => Ipv4Addr::LOCALHOST.into(),
            };
            (host, self.api_port.unwrap_or(API_PORT)).into()
        });
        // `--bind lan` needs a key even if the host has no private address now and falls back to loopback.
        if key.is_none() && !has_keys && (self.bind == Some(Bind::Lan) || !address.ip().is_loopback()) {
            return Err(ConfigError::NoApiKey { address, min_chars: MIN_API_KEY_CHARS });
        }
        let client_rate = Some(self.client_rate.unwrap_or(CLIENT_RATE)).filter(|rate| *rate > 0);
        let ollama = self.ollama.then(|| (address.ip(), OLLAMA_PORT).into());
        Ok(ApiConfig { address, is_asked_for, key, client_rate, cors: self.cors, ollama })
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "use ADDRESS:PORT, such as 127.0.0.1:8080 or [::1]:8080; names are not looked up".to_owned())
}

/// Parses the origin of a web page: scheme, host and perhaps port, as browsers send it.
fn origin(text: &str) -> Result<String, String> {
    let is_origin = text.split_once("://").is_some_and(|(scheme, host)| {
        !scheme.is_empty() && !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ', '*'])
    });
    match text == "*" || is_origin {
        true => Ok(text.to_owned()),
        false => {
            Err("use SCHEME://HOST or SCHEME://HOST:PORT without a path, such as https://app.example, or *".to_owned())
        }
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "a port is a number from 0 to 65535; 0 picks a free one".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::node::tests::{refusal, resolve};

    #[test]
    fn the_api_binds_to_its_port_on_loopback_or_the_private_network() {
        let api = |flags: &[&str]| resolve(flags, "").service.api;
        assert_eq!(api(&[]).unwrap().address.to_string(), "127.0.0.1:52415");
        assert!(!api(&[]).unwrap().is_asked_for && api(&["--api-port", "52415"]).unwrap().is_asked_for);
        assert_eq!(api(&["--api-port", "9"]).unwrap().address.to_string(), "127.0.0.1:9");
        assert_eq!(api(&["--api-addr", "[::1]:9"]).unwrap().address.to_string(), "[::1]:9");
        let lan = resolve(&["--bind", "lan"], "api-key = \"long-enough\"").service.api.unwrap().address.ip();
        assert!(lan.is_loopback() || host::is_private(lan), "{lan}");
        assert!(api(&["--no-api"]).is_none());
        for (flags, why) in [
            (["--api-port", "99999"], "0 to 65535"),
            (["--api-addr", "localhost"], "ADDRESS:PORT"),
            (["--rpc-addr", "here"], "ADDRESS:PORT"),
        ] {
            assert!(refusal(&flags, "").contains(why), "{flags:?}");
        }
    }

    #[test]
    fn pages_and_ollamas_clients_are_let_in_where_asked_for() {
        let api = |flags: &[&str]| resolve(flags, "").service.api.unwrap();
        assert_eq!((api(&[]).cors.len(), api(&[]).ollama), (0, None));
        let named =
            api(&["--cors", "https://app.example", "--cors=http://localhost:3000", "--ollama", "--api-port", "9"]);
        assert_eq!(named.cors, ["https://app.example", "http://localhost:3000"]);
        assert_eq!(named.ollama.unwrap().to_string(), "127.0.0.1:11434");
        for wrong in ["app.example", "https://app.example/path", "https://*.example", "://x"] {
            assert!(refusal(&["--cors", wrong], "").contains("SCHEME://HOST"), "{wrong}");
        }
    }

    #[test]
    fn an_api_that_other_hosts_can_reach_needs_a_key() {
        for flags in [["--bind", "lan"], ["--api-addr", "0.0.0.0:0"]] {
            assert!(refusal(&flags, "").contains("PANGEA_API_KEY"), "{flags:?}");
            assert!(resolve(&flags, "api-key = \"open-sesame\"").service.api.unwrap().key.is_some());
        }
        let short = refusal(&[], "api-key = \"a-short\"");
        assert!(short.contains("at least 8") && !short.contains("a-short"), "{short}");
    }

    #[test]
    fn a_service_that_other_hosts_can_reach_needs_a_key() {
        for address in ["0.0.0.0:0", "[::]:0", "192.168.1.20:8080"] {
            let why = refusal(&["--rpc-addr", address], "");
            assert!(why.contains("PANGEA_API_KEY") && why.contains(address), "{why}");
            let keyed = resolve(&["--rpc-addr", address], "api-key = \"open-sesame\"").service;
            assert_eq!(keyed.rpc_key.as_ref().map(ApiKey::as_str), Some("open-sesame"));
            assert!(!format!("{keyed:?}").contains("sesame"));
        }
        for address in ["127.0.0.1:0", "[::1]:0"] {
            assert!(resolve(&["--rpc-addr", address], "api-key = \"open-sesame\"").service.rpc_key.is_none());
        }
    }

    #[test]
    fn a_client_rate_of_zero_is_no_limit() {
        let rate = |flags: &[&str]| resolve(flags, "").service.api.unwrap().client_rate;
        assert_eq!(
            [rate(&[]), rate(&["--client-rate", "7"]), rate(&["--client-rate", "0"])],
            [Some(500), Some(7), None]
        );
    }

    #[test]
    fn an_api_key_on_the_command_line_is_an_error() {
        let why = refusal(&["--api-key", "open-sesame"], "");
        assert!(why.contains("PANGEA_API_KEY") && !why.contains("sesame"), "{why}");
    }
}

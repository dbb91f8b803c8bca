//! Flags that several commands share, and the parsing of their values. Parsing only; nothing here acts.

use std::net::ToSocketAddrs;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pangea_client::UNIX_PREFIX;
use pangea_compute::DType;

pub(super) use crate::config::duration;

/// Verbosity of every command.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(super) struct OutputArgs {
    /// Log more; -vv logs everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub(super) verbose: u8,

    /// Print no notes and log only errors
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
}

/// Output format of commands that end by themselves.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(super) struct JsonArgs {
    /// Write the result to standard output as one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// Which node to talk to.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct RpcArgs {
    /// Node to talk to: HOST:PORT, or unix:PATH for its socket on this host; PANGEA_API_KEY holds the key of a node that
    /// requires one [default: the one that runs with --data-dir, else the one at 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", env = "PANGEA_RPC", hide_env_values = true, value_parser = node_address)]
    pub(super) rpc: Option<String>,

    /// Data directory of that node.
    #[command(flatten)]
    pub(super) data_dir: DataDirArgs,
}

/// `status` and `topology`.
#[derive(Args, Clone, Debug)]
pub(super) struct QueryArgs {
    /// Which node.
    #[command(flatten)]
    pub(super) rpc: RpcArgs,
    /// Form of the result.
    #[command(flatten)]
    pub(super) json: JsonArgs,
}

/// Where models are.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct StoreArgs {
    /// Data directory; models are in its folder `models` [default: ~/.pangea]
    #[arg(long, value_name = "DIR", env = "PANGEA_HOME", hide_env_values = true)]
    pub(super) data_dir: Option<PathBuf>,
}

/// Data directory of a node.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct DataDirArgs {
    /// Data directory of the node [default: ~/.pangea]
    #[arg(long, value_name = "DIR", env = "PANGEA_HOME", hide_env_values = true)]
    pub(super) data_dir: Option<PathBuf>,
}

/// Where the tasks of a product may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum PlaceArg {
    /// Wherever the product finishes soonest
    #[default]
    Auto,
    /// On the accepting node only
    Local,
    /// On peers, and on the accepting node only where no peer can
    Remote,
}

pub(super) fn dtype(text: &str) -> Result<DType, String> {
    match DType::from_name(text) {
        Some(DType::I32) => Err("i32 is the type of an i8 product, never of an operand; use i8 or f64".to_owned()),
        Some(dtype) => Ok(dtype),
        None => Err("use f16, bf16, f32, f64 or i8".to_owned()),
    }
}

/// Checks the address of a node as people write it; the node parses it again.
pub(super) fn host_or_multiaddr(text: &str) -> Result<String, String> {
    crate::net::peer_address::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Parses the address of a node's Cap'n Proto service: `HOST:PORT` or `unix:PATH`.
pub(super) fn node_address(text: &str) -> Result<String, String> {
    match text.strip_prefix(UNIX_PREFIX) {
        Some("") => Err("use unix:PATH with the path of the node's rpc.sock".to_owned()),
        Some(_) => Ok(text.to_owned()),
        None => host_and_port(text),
    }
}

/// Parses a number of rows or columns.
pub(super) fn side(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "use a whole number, such as 1024".to_owned())
}

pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!("use HOST:PORT without {scheme}://, such as {}", rest.trim_end_matches('/')));
    }
    // Only names would need a lookup on the network; here only their form is checked.
    let (host, port) = text.rsplit_once(':').ok_or("use HOST:PORT, such as 127.0.0.1:8080")?;
    port.parse::<u16>().map_err(|_| format!("'{port}' is not a port; use HOST:PORT"))?;
    match host {
        "" => Err("use HOST:PORT, such as 127.0.0.1:8080".to_owned()),
        _ if host.contains(':') && text.to_socket_addrs().is_err() => {
            Err("write an IPv6 address as [ADDRESS]:PORT".to_owned())
        }
        _ => Ok(text.to_owned()),
    }
}

/// Parses the address of an HTTP API: `HOST:PORT`, or a URL such as `http://127.0.0.1:52415/v1`.
pub(super) fn api_address(text: &str) -> Result<String, String> {
    let Some((scheme, rest)) = text.split_once("://") else { return host_and_port(text) };
    if scheme.eq_ignore_ascii_case("https") {
        return Err("a node's API is plain HTTP; use http://HOST:PORT/v1 or HOST:PORT".to_owned());
    }
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(format!("{scheme} is not HTTP; use http://HOST:PORT/v1 or HOST:PORT"));
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !matches!(path.trim_end_matches('/'), "" | "v1") {
        return Err(format!("/{path} is not the path of a node's API; use http://HOST:PORT/v1 or HOST:PORT"));
    }
    let port_is_missing = !authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    host_and_port(&if port_is_missing { format!("{authority}:80") } else { authority.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_nodes_are_validated() {
        for text in ["127.0.0.1:8080", "mac2.local:80", "[::1]:8080"] {
            assert!(host_and_port(text).is_ok() && node_address(text).is_ok(), "{text}");
        }
        assert!(node_address("unix:/home/me/.pangea/rpc.sock").is_ok() && node_address("unix:").is_err());
        let url = node_address("http://mac2:8080/").unwrap_err();
        assert_eq!(url, "use HOST:PORT without http://, such as mac2:8080");
        for text in ["", "8080", ":8080", "host:", "host:99999", "::1:8080x"] {
            assert!(host_and_port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_api_is_given_as_address_or_url() {
        for (text, address) in [
            ("127.0.0.1:52415", "127.0.0.1:52415"),
            ("http://127.0.0.1:52415/v1", "127.0.0.1:52415"),
            ("http://mac2.local:52415/v1/", "mac2.local:52415"),
            ("HTTP://[::1]:9", "[::1]:9"),
            ("http://[::1]", "[::1]:80"),
            ("http://mac2/", "mac2:80"),
        ] {
            assert_eq!(api_address(text).as_deref(), Ok(address));
        }
        for (text, why) in [
            ("https://127.0.0.1:52415/v1", "plain HTTP"),
            ("ftp://127.0.0.1:1", "not HTTP"),
            ("http://127.0.0.1:52415/v1/chat/completions", "/v1/chat/completions is not the path"),
            ("http://", "HOST:PORT"),
            ("mac2", "HOST:PORT"),
        ] {
            let error = api_address(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

//! Addresses and access tokens of files on Hugging Face. This file sends no requests.

use std::env;

use pangea_client::{Error, ErrorKind, Result};

/// Default of `HF_ENDPOINT`.
const ENDPOINT: &str = "https://huggingface.co";

/// The address of a repository's file, and the user's token if there is one.
///
/// # Errors
/// `InvalidInput` if `HF_ENDPOINT` is not an address.
pub(super) fn address(repository: &str, file: &str) -> Result<(String, Option<String>)> {
    let set = |name: &str| env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
    Ok((format!("{}/{repository}/resolve/main/{file}", checked(&endpoint)?), set("HF_TOKEN")))
}

fn checked(endpoint: &str) -> Result<&str> {
    let trimmed = endpoint.trim_end_matches('/');
    match trimmed.split_once("://") {
        Some(("http" | "https", host)) if !host.is_empty() => Ok(trimmed),
        _ => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("HF_ENDPOINT is {endpoint:?}, which is not an address; use one such as {ENDPOINT}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address() {
        assert_eq!(checked("https://mirror.example/hf/").unwrap(), "https://mirror.example/hf");
        for endpoint in ["mirror.example", "ftp://mirror.example", "https://"] {
            assert_eq!(checked(endpoint).unwrap_err().kind(), ErrorKind::InvalidInput, "{endpoint}");
        }
    }
}

//! The console at `/`: the files of `node/console/dist`, which are built from `node/console/src` and are part of the binary. They
//! hold no secret, so that they are served without a key; what the console asks for afterwards is judged like any other request.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pangea_client::ErrorKind;

use super::App;
use super::error::ApiError;

/// Where the files are; [`is_file`] and the routes agree on it.
const FOLDER: &str = "/console/";

/// What a page of the console may do: load its own files, ask its own node, and nothing else. A hostile text that found its way
/// into the page could neither run nor send anything. `blob:` is how a browser saves a product.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
);

/// The browser asks every time whether a file has changed: their names stay the same from one version to the next.
const CACHE: HeaderValue = HeaderValue::from_static("no-cache");

/// One file of the console.
struct File {
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

/// A file of the folder `dist`.
macro_rules! file {
    ($name:literal, $content_type:literal) => {
        File {
            name: $name,
            content_type: $content_type,
            bytes: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/console/dist/", $name)),
        }
    };
}

/// Every file of the console; the first is the page itself.
const FILES: [File; 7] = [
    file!("index.html", "text/html; charset=utf-8"),
    file!("app.js", "text/javascript; charset=utf-8"),
    file!("chart.js", "text/javascript; charset=utf-8"),
    file!("ed25519-library.js", "text/javascript; charset=utf-8"),
    file!("app.css", "text/css; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
    file!("licences.txt", "text/plain; charset=utf-8"),
];

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/", get(page)).route("/console/{file}", get(one))
}

/// Whether a path is one of the console's.
pub(super) fn is_file(path: &str) -> bool {
    path == "/" || path.strip_prefix(FOLDER).is_some_and(|name| find(name).is_some())
}

fn find(name: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.name == name)
}

/// `/`.
async fn page(headers: HeaderMap) -> Response {
    serve(&FILES[0], &headers)
}

/// `/console/{file}`.
async fn one(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, ApiError> {
    let file = find(&name);
    let file = file.ok_or_else(|| ApiError::new(ErrorKind::NotFound, format!("the console has no file {name:?}")))?;
    Ok(serve(file, &headers))
}

fn serve(file: &'static File, asked: &HeaderMap) -> Response {
    let tag = format!("\"{}\"", blake3::hash(file.bytes).to_hex().get(..16).unwrap_or_default());
    let known = asked.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    let mut response = match known.is_some_and(|known| known.split(',').any(|one| one.trim() == tag)) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => ([(header::CONTENT_TYPE, file.content_type)], file.bytes).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(header::CACHE_CONTROL, CACHE);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
    if let Ok(tag) = tag.parse() {
        headers.insert(header::ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn get(name: &str, known: Option<&str>) -> Response {
        let mut headers = HeaderMap::new();
        headers.extend(known.map(|known| (header::IF_NONE_MATCH, known.parse().unwrap())));
        serve(find(name).unwrap(), &headers)
    }

    #[test]
    fn every_file_of_the_folder_is_served_and_no_other() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("console/dist");
        let built: BTreeSet<String> =
            std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(FILES.iter().map(|file| file.name.to_owned()).collect::<BTreeSet<_>>(), built);
        for name in &built {
            assert!(is_file(&format!("{FOLDER}{name}")), "{name}");
        }
        for other in ["/console/", "/console", "/console/../index.html", "/console/app.js/x", "/index.html", "//", ""] {
            assert!(!is_file(other), "{other}");
        }
        assert!(is_file("/"));
    }

    #[test]
    fn pages_may_run_and_reach_nothing_but_their_own_node() {
        for file in &FILES {
            let headers = get(file.name, None).headers().clone();
            let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
            assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
            assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
            assert_eq!(headers[header::CACHE_CONTROL], "no-cache");
        }
        // What the policy forbids would not work in the page: it has no script and no style of its own.
        let page = std::str::from_utf8(FILES[0].bytes).unwrap();
        assert!(page.contains("src=\"/console/app.js\"") && page.contains("href=\"/console/app.css\""), "{page}");
        assert!(!page.contains("<style") && !page.contains("style=") && !page.contains("onload"), "{page}");
        assert_eq!(page.matches("<script").count(), page.matches("src=\"/console/").count(), "{page}");
    }

    #[test]
    fn a_file_that_the_browser_has_is_not_sent_again() {
        let first = get("app.js", None);
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        assert_eq!(get("app.js", Some(&tag)).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(get("app.js", Some(&format!("\"other\", {tag}"))).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(get("app.js", Some("\"other\"")).status(), StatusCode::OK);
        assert_ne!(get("app.css", None).headers()[header::ETAG], first.headers()[header::ETAG]);
    }
}

//! `/openapi.json`: the description of every route and of every field that a request may have. The tests read the sources, so that
//! none is forgotten.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use super::App;

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/openapi.json", get(show))
}

const DOCUMENT: &str = include_str!("openapi.json");

async fn show() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    /// A source of this folder, without its tests.
    fn source(file: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/http").join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
    }

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    /// The literals that follow `before` in a text.
    fn literals<'t>(text: &'t str, before: &str) -> Vec<&'t str> {
        text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    /// The fields that a file reads: literals given to `optional`, `number`, `required`, `unsupported` or `rename`, and those of lists that
    /// are looped over.
    fn fields(text: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for call in [".optional", ".number", ".required", ".unsupported"] {
            for rest in text.split(call).skip(1) {
                let rest = rest.split_once('(').map_or("", |(_, rest)| rest).trim_start();
                found.extend(rest.strip_prefix('"').and_then(|rest| rest.split('"').next()).map(str::to_owned));
            }
        }
        for list in text.split("for field in [").skip(1) {
            let list = list.split(']').next().unwrap_or_default();
            found.extend(list.split('"').skip(1).step_by(2).map(str::to_owned));
        }
        found
    }

    /// The names of all properties in a schema.
    fn properties(document: &Value, schema: &Value, found: &mut BTreeSet<String>) {
        if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/components/schemas/")) {
            properties(document, &document["components"]["schemas"][name], found);
        }
        for part in ["allOf", "oneOf"] {
            schema[part].as_array().into_iter().flatten().for_each(|schema| properties(document, schema, found));
        }
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            found.insert(name.clone());
            properties(document, schema, found);
        }
    }

    #[test]
    fn every_route_is_described_and_nothing_else_is() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/http");
        let mut routes = BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".rs") && name != "mod.rs" {
                let text = source(&name);
                routes.extend(literals(&text, ".route(\"").into_iter().map(|route| route.replace("{*", "{")));
            }
        }
        let described: BTreeSet<String> = document()["paths"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(routes, described);
    }

    #[test]
    fn every_field_of_a_request_is_described() {
        let document = document();
        for (paths, files) in [
            (&["/v1/chat/completions"][..], &["chat.rs", "generation.rs"][..]),
            (&["/v1/federation/vote"], &["federation.rs"]),
            (&["/v1/completions"], &["completions.rs", "generation.rs"]),
            (&["/v1/responses"], &["responses.rs", "generation.rs"]),
            (&["/v1/messages"], &["messages.rs"]),
            (&["/v1/embeddings", "/api/embed", "/api/embeddings"], &["embeddings.rs"]),
            (&["/api/chat", "/api/generate"], &["ollama.rs"]),
            (&["/api/show"], &["ollama_models.rs"]),
        ] {
            let mut described = BTreeSet::new();
            for path in paths {
                let body = &document["paths"][path]["post"]["requestBody"];
                properties(&document, &body["content"]["application/json"]["schema"], &mut described);
            }
            for file in files {
                let read = fields(&source(file));
                let missing: Vec<&String> = read.difference(&described).collect();
                assert!(missing.is_empty() && !read.is_empty(), "{paths:?} lack what {file} reads: {missing:?}");
            }
        }
    }
}

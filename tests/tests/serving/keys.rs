//! API keys that the owner gives to others: their limits, their models, their end; and web pages of other origins.

use std::path::Path;

use pangea_tests::command;

use super::*;

/// Runs `pangea keys` with these arguments.
fn keys(data_dir: &Path, arguments: &[&str]) -> Value {
    let folder = data_dir.parent().unwrap();
    let all: Vec<&str> = ["keys"].iter().chain(arguments).copied().collect();
    let directory = data_dir.to_str().unwrap();
    command::json(&command::pangea(folder, &[&all[..], &["--data-dir", directory, "--json"]].concat()))
}

fn asked(api: &str, key: Option<&str>, path: &str, body: &Value) -> http::Response {
    let bearer = key.map(|key| format!("Bearer {key}"));
    let mut headers = vec![("Content-Type", "application/json")];
    headers.extend(bearer.as_deref().map(|bearer| ("Authorization", bearer)));
    http::send(api, "POST", path, &headers, &body.to_string())
}

#[test]
fn a_key_opens_the_api_within_its_limits_until_it_is_revoked() {
    let Some(serving) = Serving::start("a_key_opens_the_api_within_its_limits") else { return };
    let (api, data_dir) = (serving.api(), serving.node.data_dir.as_path());
    let body = question("Hello", 2);
    assert_eq!(asked(api, None, CHAT, &body).status, 200);
    let created = keys(data_dir, &["create", "ada", "--requests-per-minute", "2"]);
    let ada = created["key"].as_str().unwrap();
    let other = keys(data_dir, &["create", "bob", "--model", "other"]);
    let bob = other["key"].as_str().unwrap();
    let cheap = keys(data_dir, &["create", "eve", "--tokens-per-minute", "5"]);
    let eve = cheap["key"].as_str().unwrap();
    eventually("a key is required", || asked(api, None, CHAT, &body).status == 401);
    assert_eq!(asked(api, Some("pgk-wrong"), CHAT, &body).status, 401);

    // Two requests, and a third one when a minute has brought another.
    eventually("the key is known", || get_with(api, ada) == 200);
    assert_eq!([asked(api, Some(ada), CHAT, &body).status, asked(api, Some(ada), CHAT, &body).status], [200, 200]);
    let refused = asked(api, Some(ada), CHAT, &body);
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!(refused.status == 429 && (1..=30).contains(&seconds), "{} {seconds}", refused.status);
    let refused = http::send(api, "POST", "/v1/messages", &[("x-api-key", ada)], "{}");
    assert_eq!((refused.status, refused.json()["error"]["type"].clone()), (429, json!("rate_limit_error")));
    assert_eq!(get_with(api, ada), 200, "who only looks uses nothing");

    // The first answer costs more than a minute gives.
    assert_eq!(asked(api, Some(eve), CHAT, &body).status, 200);
    assert_eq!(asked(api, Some(eve), CHAT, &body).status, 429);

    let refused = asked(api, Some(bob), CHAT, &body);
    assert_eq!((refused.status, refused.json()["error"]["param"].clone()), (403, json!("model")));
    let bearer = format!("Bearer {bob}");
    let listed = http::send(api, "GET", "/v1/models", &[("Authorization", &bearer)], "").json();
    assert_eq!(listed["data"], json!([]));

    let names: Vec<Value> =
        keys(data_dir, &["list"]).as_array().unwrap().iter().map(|key| key["name"].clone()).collect();
    assert_eq!(names, ["ada", "bob", "eve"]);
    for name in ["ada", "bob", "eve"] {
        keys(data_dir, &["revoke", name]);
    }
    eventually("the key is revoked", || get_with(api, ada) == 401);
    assert_eq!(asked(api, None, CHAT, &body).status, 401, "revoking the last key opens nothing");
}

fn get_with(api: &str, key: &str) -> u16 {
    http::send(api, "GET", "/v1/models", &[("Authorization", &format!("Bearer {key}"))], "").status
}

#[test]
fn a_key_of_its_own_lets_the_api_bind_beyond_loopback() {
    let cluster = Cluster::new();
    let builder = cluster.node("one").api_addr("0.0.0.0:0");
    keys(&builder.data_dir(), &["create", "ada"]);
    let node = builder.start();
    let api = node.api.replace("0.0.0.0", "127.0.0.1");
    assert_eq!((get(&api, "/v1/models").status, get(&api, "/healthz").status), (401, 200));
}

#[test]
fn pages_of_named_origins_may_use_the_api_and_no_others() {
    let cluster = Cluster::new();
    let node = cluster.node("one").with("--cors", "https://app.example").start();
    let send = |method: &str, origin: &str, more: &[(&str, &str)]| {
        let headers: Vec<(&str, &str)> = [("Origin", origin)].iter().chain(more).copied().collect();
        http::send(&node.api, method, "/v1/models", &headers, "")
    };
    // Of a page with the client of OpenAI that is traced.
    let headers = "authorization,content-type,traceparent,tracestate,x-stainless-lang,x-stainless-retry-count";
    let wanted = [("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", headers)];
    let preflight = send("OPTIONS", "https://app.example", &wanted);
    assert_eq!(preflight.status, 204);
    for (header, value) in [
        ("access-control-allow-origin", "https://app.example"),
        ("access-control-allow-headers", headers),
        ("access-control-allow-methods", "GET, HEAD, POST, OPTIONS"),
    ] {
        assert_eq!(preflight.header(header), Some(value), "{header}");
    }
    let answered = send("GET", "https://app.example", &[]);
    assert_eq!((answered.status, answered.header("access-control-allow-origin")), (200, Some("https://app.example")));
    // A page reads failures, too.
    let missing = http::send(&node.api, "GET", "/v1/nothing", &[("Origin", "https://app.example")], "");
    assert_eq!((missing.status, missing.header("access-control-allow-origin")), (404, Some("https://app.example")));
    let refused = send("OPTIONS", "https://evil.example", &wanted);
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (403, None));
    let off = cluster.node("two").start();
    let local = http::send(&off.api, "OPTIONS", CHAT, &[("Origin", "http://localhost:3000"), wanted[0]], "");
    assert_eq!((local.status, local.header("access-control-allow-origin")), (204, None));
}

#[test]
fn other_methods_are_answered_as_people_expect() {
    let cluster = Cluster::new();
    let node = cluster.node("one").start();
    let send = |method: &str, path: &str| http::send(&node.api, method, path, &[], "");
    let options = send("OPTIONS", CHAT);
    assert_eq!((options.status, options.header("allow")), (204, Some("POST")));
    let wrong = send("GET", CHAT);
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")));
    assert_eq!(send("DELETE", "/v1/models").header("allow"), Some("GET,HEAD"));
    let head = send("HEAD", "/v1/models");
    assert!(head.status == 200 && head.header("content-length").is_some_and(|length| length != "0"));
    let described = get(&node.api, "/openapi.json").json();
    assert!(described["paths"]["/v1/responses"]["post"].is_object());
}

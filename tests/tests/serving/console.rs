//! The console at `/` and the routes that it uses: pages and keys, products over HTTP, who belongs to the pool, models on the disk.
//! What a person sees is tested in a browser (`node/console/browser`).

use pangea_tests::http::send;

use super::*;

/// Every route that changes something, with a body that it takes.
fn changes() -> [(&'static str, Value); 10] {
    [
        ("/api/pangea/models/load", json!({"model": "x"})),
        ("/api/pangea/models/drop", json!({"model": "x"})),
        ("/api/pangea/models/pull", json!({"model": "x"})),
        ("/api/pangea/models/pull/cancel", json!({"model": "x"})),
        ("/api/pangea/members/compare", json!({"node": "x"})),
        ("/api/pangea/members/accept", json!({"node": "x", "digits": "123456"})),
        ("/api/pangea/members/revoke", json!({"node": "x"})),
        ("/api/pangea/invitations", json!({})),
        ("/api/pangea/products", json!({"m": 1, "k": 1, "n": 1})),
        ("/api/pangea/receipts/0123456789ab/audit", json!({})),
    ]
}

#[test]
fn the_console_needs_no_key_and_what_it_asks_for_does() {
    let cluster = Cluster::new();
    let builder = cluster.node("keyed");
    std::fs::create_dir_all(builder.data_dir()).unwrap();
    std::fs::write(builder.data_dir().join("config.toml"), "api-key = \"open-sesame\"\n").unwrap();
    let node = builder.start();
    for path in ["/", "/console/app.js", "/console/app.css", "/console/icon.svg"] {
        let file = get(&node.api, path);
        let policy = file.header("content-security-policy").unwrap_or_default().to_owned();
        assert!(file.status == 200 && policy.starts_with("default-src 'none'; script-src 'self';"), "{path}: {policy}");
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
        let (tag, cache) = (file.header("etag").unwrap().to_owned(), file.header("cache-control").unwrap().to_owned());
        assert_eq!(cache, "no-cache");
        assert_eq!(send(&node.api, "GET", path, &[("If-None-Match", &tag)], "").status, 304, "{path}");
        assert_eq!(send(&node.api, "POST", path, &[], "").status, 405, "{path}");
    }
    assert!(get(&node.api, "/").text().contains("/console/app.js"));
    // A name that is no file of the console is not let through without a key.
    for path in
        ["/console/none.js", "/console/%2e%2e/node.key", "/console/..%2fnode.key", "/api/pangea/pool", "/metrics"]
    {
        assert_eq!(get(&node.api, path).status, 401, "{path}");
    }
    for (path, body) in changes() {
        assert_eq!(post(&node.api, path, &body).status, 401, "{path}");
    }
    let key = [("Authorization", "Bearer open-sesame")];
    assert_eq!(send(&node.api, "GET", "/console/none.js", &key, "").status, 404);
    assert_eq!(send(&node.api, "GET", "/api/pangea/pool", &key, "").json()["nodes"][0]["name"], "keyed");
}

#[test]
fn pages_of_others_and_other_names_change_nothing() {
    let cluster = Cluster::new();
    let node = cluster.node("one").start();
    for (path, body) in changes() {
        for header in [("Origin", "https://evil.example"), ("Origin", "null"), ("Host", "evil.example:52415")] {
            // What a page may send without a preflight.
            let headers = [header, ("Content-Type", "text/plain")];
            assert_eq!(send(&node.api, "POST", path, &headers, &body.to_string()).status, 403, "{path} {header:?}");
        }
    }
    // Matrices are sent in a form for which a browser asks first, and nothing is said of what is allowed.
    let headers = [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")];
    let preflight = send(&node.api, "OPTIONS", "/api/pangea/products", &headers, "");
    assert!(preflight.status == 403 && preflight.header("access-control-allow-origin").is_none());
    assert_eq!(send(&node.api, "GET", "/", &[("Host", "evil.example")], "").status, 403);
    assert_eq!(get(&node.api, "/api/pangea/members").json()["members"].as_array().unwrap().len(), 1);
}

#[test]
fn a_key_for_others_asks_models_and_manages_nothing() {
    let cluster = Cluster::new();
    let node = cluster.node("one").start();
    let data_dir = node.data_dir.to_str().unwrap();
    let key = cluster.run(&["keys", "create", "ada", "--data-dir", data_dir, "--json"]).json()["key"].clone();
    let bearer = format!("Bearer {}", key.as_str().unwrap());
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    eventually("the key is known", || send(&node.api, "GET", "/v1/models", &headers, "").status == 200);
    for (path, body) in changes() {
        let refused = send(&node.api, "POST", path, &headers, &body.to_string());
        assert_eq!(refused.status, 403, "{path}");
        assert!(refused.text().contains("only the owner"), "{path}");
    }
    assert_eq!(send(&node.api, "GET", "/api/pangea/members", &headers, "").status, 403, "digits let nodes in");
}

/// The frames of a product's answer, and the bytes after them.
fn frames(answer: &[u8]) -> (Vec<Value>, &[u8]) {
    let (mut frames, mut rest): (Vec<Value>, &[u8]) = (Vec::new(), answer);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        if line.is_empty() {
            continue;
        }
        frames.push(serde_json::from_slice(line).unwrap());
        if frames.last().unwrap()["event"] == "product" {
            break;
        }
    }
    (frames, rest)
}

#[test]
fn a_product_over_http_tells_where_its_tiles_landed_and_ends_with_the_file() {
    let cluster = Cluster::new();
    let nodes = cluster.pool(&["one", "two"]);
    let body = json!({"m": 300, "k": 200, "n": 100, "dtype": "i8", "seed": 3, "place": "remote"});
    let answer = post(&nodes[0].api, "/api/pangea/products", &body);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/octet-stream")));
    let answer = answer.bytes();
    let (frames, file) = frames(&answer);
    let events: Vec<&str> = frames.iter().map(|frame| frame["event"].as_str().unwrap()).collect();
    assert_eq!((events[0], events[1], &events[events.len() - 2..]), ("accepted", "planned", &["done", "product"][..]));
    assert_eq!(frames[0]["shape"], json!([300, 200, 100]));
    let grid = frames[1]["bands"].as_u64().unwrap() * frames[1]["panels"].as_u64().unwrap();
    let tiles: Vec<&Value> = frames
        .iter()
        .filter(|frame| frame["event"] == "tiles")
        .flat_map(|frame| frame["tiles"].as_array().unwrap())
        .collect();
    assert_eq!(tiles.len() as u64, grid);
    let other = nodes[1].status().peer;
    assert!(tiles.iter().all(|tile| tile[2] == other.as_str()), "{tiles:?}");
    let done = &frames[frames.len() - 2]["report"];
    assert_eq!((&done["verification"]["verdict"], &done["mode"]), (&json!("verified"), &json!("remote")), "{done}");
    assert_eq!(file.len() as u64, frames.last().unwrap()["bytes"].as_u64().unwrap());
    assert_eq!(&file[..6], b"\x93NUMPY");
    // The command gives the same bits for the same seed.
    let path = cluster.folder().join("same.npy");
    let command = [
        "matmul",
        "--shape",
        "300x200x100",
        "--generate",
        "--seed",
        "3",
        "--dtype",
        "i8",
        "-o",
        path.to_str().unwrap(),
    ];
    assert_eq!(cluster.run(&[&command[..], &["--rpc", &nodes[0].rpc]].concat()).code, Some(0));
    assert_eq!(std::fs::read(&path).unwrap(), file);
    nodes[0].is_idle_again();
}

#[test]
fn products_that_cannot_be_are_refused_with_the_reason() {
    let cluster = Cluster::new();
    let node = cluster.node("one").max_memory("64M").start();
    for (body, status, why) in [
        (json!({"m": 0, "k": 1, "n": 1}), 400, "m must be"),
        (json!({"m": 1, "k": 1}), 400, "n is missing"),
        (json!({"m": 1, "k": 1, "n": 1, "dtype": "f128"}), 400, "f128"),
        (json!({"m": 100_000, "k": 100_000, "n": 1}), 429, "needs"),
        (json!({"m": u64::MAX, "k": 2, "n": 2}), 429, "needs"),
    ] {
        let refused = post(&node.api, "/api/pangea/products", &body);
        let (code, text) = (refused.status, refused.text());
        assert!(code == status && text.contains(why), "{body}: {code} {text}");
    }
    let octets = [("Content-Type", "application/octet-stream")];
    for (body, why) in [("", "the first file ends"), ("not a file at all", "the first file")] {
        let refused = send(&node.api, "POST", "/api/pangea/products", &octets, body);
        let (code, text) = (refused.status, refused.text());
        assert!(code == 400 && text.contains(why), "{code} {text}");
    }
    assert_eq!(send(&node.api, "POST", "/api/pangea/models/load", &octets, "{}").status, 415, "only matrices come so");
    node.is_idle_again();
}

#[test]
fn members_are_listed_invited_and_never_accepted_by_wrong_digits() {
    let cluster = Cluster::new();
    let node = cluster.node("one").own_pool().start();
    let listed = get(&node.api, "/api/pangea/members").json();
    assert_eq!((listed["members"][0]["state"].clone(), listed["open"].clone()), (json!("this node"), json!(false)));
    let invited = post(&node.api, "/api/pangea/invitations", &json!({"pin": true})).json();
    let squares = invited["qr"].as_array().unwrap();
    assert!(squares.len() > 20 && squares.iter().all(|row| row.as_str().unwrap().len() == squares.len()));
    assert_eq!(invited["pin"].as_str().unwrap().chars().filter(char::is_ascii_digit).count(), 6, "{invited}");
    let token = invited["token"].as_str().unwrap();
    let other = cluster.node("two").own_pool().with("--join", token).start();
    eventually("the invited node is a member", || {
        let members = get(&node.api, "/api/pangea/members").json();
        members["members"].as_array().unwrap().iter().any(|member| member["state"] == "connected")
    });
    drop(other);
    for (path, body, status) in [
        ("invitations", json!({"uses": 0}), 400),
        ("invitations", json!({"valid_s": 0}), 400),
        ("invitations", json!({"role": "king"}), 400),
        ("members/accept", json!({"node": "nobody", "digits": "12345"}), 400),
        ("members/accept", json!({"node": "nobody", "digits": "123456"}), 404),
        ("members/compare", json!({"node": "nobody"}), 404),
        ("members/revoke", json!({"node": "nobody"}), 404),
    ] {
        assert_eq!(post(&node.api, &format!("/api/pangea/{path}"), &body).status, status, "{path} {body}");
    }
}

#[test]
fn downloads_take_names_and_never_paths_and_models_on_the_disk_have_no_paths() {
    let cluster = Cluster::new();
    let node = cluster.node("one").start();
    for path in ["/etc/passwd", "../x.gguf", "x.gguf", "http://example.org/m.gguf", "hf:../a/b.gguf"] {
        for what in ["pull", "pull/cancel"] {
            let refused = post(&node.api, &format!("/api/pangea/models/{what}"), &json!({"model": path}));
            assert_eq!(refused.status, 400, "{what} {path}");
        }
    }
    // Nobody downloads it: there is nothing to follow, and nothing to stop.
    for (what, body) in
        [("pull", json!({"model": "smollm2", "start": false})), ("pull/cancel", json!({"model": "smollm2"}))]
    {
        assert_eq!(post(&node.api, &format!("/api/pangea/models/{what}"), &body).status, 404, "{what}");
    }
    assert_eq!(get(&node.api, "/api/pangea/jobs").json(), json!([]));
    let mut unknown = post(&node.api, "/api/pangea/models/pull", &json!({"model": "no-such-model"}));
    assert_eq!(unknown.status, 200);
    let said: Value = serde_json::from_str(&unknown.event().unwrap()).unwrap();
    assert!(said["error"]["message"].as_str().unwrap().contains("no-such-model"), "{said}");
    let job = &get(&node.api, "/api/pangea/jobs").json()[0];
    let facts = ["kind", "subject", "state"].map(|fact| job[fact].as_str().unwrap());
    assert_eq!(facts, ["download", "no-such-model", "failed"], "{job}");
    std::fs::create_dir_all(node.data_dir.join("models")).unwrap();
    std::fs::write(node.data_dir.join("models/broken.gguf"), "GGUF?").unwrap();
    let listed = get(&node.api, "/api/pangea/models/disk").text();
    assert!(listed.contains("\"broken\"") && listed.contains("problem") && listed.contains("smollm2"), "{listed}");
    assert!(!listed.contains(node.data_dir.to_str().unwrap()), "{listed}");
    assert_eq!(get(&node.api, "/api/pangea/plan/no-such-model").status, 404);
    assert_eq!(get(&node.api, "/api/pangea/plan/%2Fetc%2Fpasswd.gguf").status, 404);
}

#[test]
fn a_stream_tells_the_length_of_its_prompt_before_it_is_read_if_asked_to() {
    let Some(serving) = Serving::start("a_stream_tells_the_length_of_its_prompt") else { return };
    let mut body = question("Hello there", 3);
    body["stream_options"] = json!({"include_usage": true, "include_prefill": true});
    let events = serving.stream(CHAT, body.clone());
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(events[0]["prefill"]["tokens"], usage["prompt_tokens"]);
    assert_eq!(events[0]["choices"], json!([]));
    assert!(events[1..].iter().all(|event| event.get("prefill").is_none()));
    body["stream_options"] = json!({"include_usage": true});
    assert!(serving.stream(CHAT, body).iter().all(|event| event.get("prefill").is_none()));
}

#[test]
fn a_stream_tells_how_much_of_a_long_prompt_is_computed() {
    let Some(serving) = Serving::start("a_stream_tells_how_much_of_a_long_prompt_is_computed") else { return };
    let mut body = question(&"The sea is wide and blue. ".repeat(150), 3);
    body["stream_options"] = json!({"include_usage": true, "include_prefill": true});
    let events = serving.stream(CHAT, body);
    let tokens = events.last().unwrap()["usage"]["prompt_tokens"].as_u64().unwrap();
    let told: Vec<u64> = events.iter().filter_map(|event| event["prefill"]["computed"].as_u64()).collect();
    assert!(told.len() >= 3 && told[0] == 0, "{told:?}");
    assert!(told.is_sorted_by(|one, next| one < next) && *told.last().unwrap() < tokens, "{told:?} of {tokens}");
    assert!(events.iter().filter_map(|event| event.get("prefill")).all(|told| told["tokens"] == tokens));
    // The job of the answer keeps the last of it.
    let job = &get(serving.api(), "/api/pangea/jobs").json()[0];
    assert_eq!(job["prompt"], json!({"done": told.last().unwrap(), "total": tokens}), "{job}");
    assert_eq!(job["stages"][0]["layers"], json!([0, 30]), "{job}");
}

//! The doors for programs: whoever says nothing, or half of something, keeps nobody out; whoever has no key gets nothing.

use std::io::Write;
use std::net::TcpStream;

use pangea_client::ErrorKind;
use pangea_client::blocking::Client;
use pangea_tests::process::TIMEOUT;

use super::*;

/// Sockets of a stranger: more than there are places for, at either door.
const SOCKETS: usize = 600;

#[test]
fn sockets_that_say_nothing_keep_nobody_out() {
    let cluster = Cluster::new();
    let node = cluster.node("one").start();
    let silent: Vec<TcpStream> = (0..SOCKETS).map(|_| TcpStream::connect(&node.rpc).unwrap()).collect();
    let half: Vec<TcpStream> = (0..SOCKETS)
        .map(|_| {
            let mut socket = TcpStream::connect(&node.api).unwrap();
            // The node may have closed it for a newer one.
            let _ = socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n");
            socket
        })
        .collect();
    assert_eq!(get(&node.api, "/healthz").status, 200);
    node.status();
    let data_dir = node.data_dir.to_str().unwrap();
    assert_eq!(cluster.run(&["status", "--data-dir", data_dir, "--json"]).code, Some(0));
    drop((silent, half));
}

#[test]
fn a_service_beyond_loopback_needs_a_key_and_its_clients_show_it() {
    let cluster = Cluster::new();
    let refused = cluster.node("open").rpc_addr("0.0.0.0:0").launch();
    assert_eq!(refused.wait().code(), Some(2));
    let said: String = refused.lines().into_iter().map(|line| line.text + "\n").collect();
    assert!(said.contains("PANGEA_API_KEY") && said.contains("config.toml"), "{said}");

    let builder = cluster.node("keyed").rpc_addr("0.0.0.0:0");
    std::fs::create_dir_all(builder.data_dir()).unwrap();
    std::fs::write(builder.data_dir().join("config.toml"), "api-key = \"open-sesame\"\n").unwrap();
    let node = builder.start();
    let rpc = node.rpc.replace("0.0.0.0", "127.0.0.1");
    for key in [None, Some("open-sesamf")] {
        let refused = Client::connect_with_key(&rpc, key, TIMEOUT).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{refused}");
    }
    Client::connect_with_key(&rpc, Some("open-sesame"), TIMEOUT).unwrap().status().unwrap();
    // A command without the key is told what to do; over the socket of its own user it needs none.
    let without = cluster.run(&["status", "--rpc", &rpc]);
    assert!(without.code == Some(1) && without.err.contains("PANGEA_API_KEY"), "{without:?}");
    let socket = format!("unix:{}", node.data_dir.join("rpc.sock").display());
    assert_eq!(cluster.run(&["status", "--rpc", &socket, "--json"]).json()["name"], "keyed");
    assert_eq!(cluster.run(&["peers", "--data-dir", node.data_dir.to_str().unwrap(), "--json"]).json(), json!([]));
    assert_eq!(node.terminate(), Some(0));
    assert!(!node.data_dir.join("rpc.sock").exists());
}

#[test]
fn a_failed_request_does_not_tell_where_the_data_directory_is() {
    let cluster = Cluster::new();
    let node = cluster.node("one").start();
    for path in ["/api/receipts/none", "/api/pangea/receipts/none"] {
        let answer = get(&node.api, path);
        assert_eq!(answer.status, 404);
        let told = answer.text();
        assert!(told.contains("no receipt") && !told.contains(node.data_dir.to_str().unwrap()), "{told}");
    }
}

#[test]
fn a_client_that_asks_too_often_gets_429_and_when_to_come_again() {
    let cluster = Cluster::new();
    let node = cluster.node("one").with("--client-rate", "1").start();
    let refused = loop {
        let answer = get(&node.api, "/v1/models");
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
}

//! Serving on runtimes of a thread each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;

use axum::Router;
use function_gateway_rest::serve::{ServeOptions, serve};
use reqwest::Client;
use tokio::net::TcpListener;

use crate::common::{LONG, runtime, until};

/// A server that answers with the name of the thread that has served the request.
async fn server(threads: &[&str]) -> SocketAddr {
    let name = async || thread::current().name().unwrap().to_owned();
    let router = Router::new().fallback(name);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = ServeOptions::default().with_runtimes(threads.iter().copied().map(runtime));
    tokio::spawn(serve(listener, router, options, std::future::pending()));
    address
}

/// A client with a connection of its own.
fn client() -> Client {
    Client::builder().timeout(LONG).build().unwrap()
}

async fn served_by(client: &Client, address: SocketAddr) -> String {
    client.get(format!("http://{address}")).send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn connections_are_spread_over_the_runtimes_and_stay_where_they_are() {
    let address = server(&["a", "b", "c"]).await;
    let clients: Vec<_> = (0..6).map(|_| client()).collect();
    let mut places = Vec::new();
    for client in &clients {
        places.push(served_by(client, address).await);
    }
    let mut counts = BTreeMap::new();
    for place in &places {
        *counts.entry(place.as_str()).or_insert(0) += 1;
    }
    assert_eq!(counts, BTreeMap::from([("a", 2), ("b", 2), ("c", 2)]));
    for (client, place) in clients.iter().zip(&places) {
        assert_eq!(served_by(client, address).await, *place);
    }
}

#[tokio::test]
async fn a_connection_that_is_gone_makes_room_for_another_on_its_runtime() {
    let address = server(&["a", "b"]).await;
    let (stays, goes) = (client(), client());
    let there = served_by(&stays, address).await;
    let free = served_by(&goes, address).await;
    assert_ne!(there, free);
    drop(goes);
    // Its end is noticed some time after.
    until("the next connection is served where one is gone", async || served_by(&client(), address).await == free)
        .await;
}

#[tokio::test]
async fn requests_of_one_connection_of_http_2_are_not_held_on_one_thread() {
    let address = server(&["a"]).await;
    let client = Client::builder().timeout(LONG).http2_prior_knowledge().build().unwrap();
    assert_eq!(served_by(&client, address).await, thread::current().name().unwrap());
}

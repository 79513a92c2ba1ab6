//! Serving on runtimes of a thread each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;

use axum::Router;
use function_gateway_rest::serve::{ServeOptions, Threads, serve};
use reqwest::Client;
use tokio::net::TcpListener;

use crate::common::{LONG, runtime, until};

async fn server(threads: &[&str]) -> SocketAddr {
    serving(ServeOptions::default().with_runtimes(threads.iter().copied().map(runtime))).await
}

/// A server that answers with the name of the thread that has served the request.
async fn serving(options: ServeOptions) -> SocketAddr {
    let name = async || thread::current().name().unwrap().to_owned();
    let router = Router::new().fallback(name);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
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
async fn threads_serve_until_they_are_dropped() {
    let threads = Threads::start(2.try_into().unwrap()).unwrap();
    let address = serving(ServeOptions::default().with_runtimes(threads.runtimes())).await;
    let (first, second) = (client(), client());
    let mut places = [served_by(&first, address).await, served_by(&second, address).await];
    places.sort();
    assert_eq!(places, ["serve-0", "serve-1"]);
    let runtime = threads.runtimes().next().unwrap();
    drop(threads);
    let goes_on = runtime.spawn(std::future::pending::<()>());
    assert!(tokio::time::timeout(LONG, goes_on).await.unwrap().unwrap_err().is_cancelled());
}

#[tokio::test]
async fn a_runtime_whose_connections_are_gone_has_room_for_others() {
    let address = server(&["a", "b"]).await;
    let (mut goes, mut stays) = (Vec::new(), Vec::new());
    for client in (0..4).map(|_| client()) {
        let is_gone = served_by(&client, address).await == "a";
        if is_gone { &mut goes } else { &mut stays }.push(client);
    }
    assert_eq!((goes.len(), stays.len()), (2, 2));
    drop(goes);
    // Their ends are noticed some time after.
    until("the next two are served where two are gone", async || {
        let (first, second) = (client(), client());
        [served_by(&first, address).await, served_by(&second, address).await] == ["a", "a"]
    })
    .await;
}

#[tokio::test]
async fn a_runtime_that_has_ended_takes_one_connection_at_most() {
    let ended = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = ServeOptions::default().with_runtimes([ended.handle().clone(), runtime("b")]);
    ended.shutdown_background();
    let address = serving(options).await;
    assert!(client().get(format!("http://{address}")).send().await.is_err());
    for _ in 0..3 {
        assert_eq!(served_by(&client(), address).await, "b");
    }
}

#[tokio::test]
async fn where_all_runtimes_have_ended_that_of_the_server_serves() {
    let ended = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = ServeOptions::default().with_runtimes([ended.handle().clone()]);
    ended.shutdown_background();
    let address = serving(options).await;
    assert!(client().get(format!("http://{address}")).send().await.is_err());
    assert_eq!(served_by(&client(), address).await, thread::current().name().unwrap());
}

#[tokio::test]
async fn requests_of_one_connection_of_http_2_are_not_held_on_one_thread() {
    let address = server(&["a"]).await;
    let client = Client::builder().timeout(LONG).http2_prior_knowledge().build().unwrap();
    assert_eq!(served_by(&client, address).await, thread::current().name().unwrap());
}

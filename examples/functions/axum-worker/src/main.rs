//! A function that is a web server, written with axum.
//!
//! | Request                | Answer                                                                 |
//! |------------------------|------------------------------------------------------------------------|
//! | `POST /`               | the payload                                                            |
//! | `GET /health`          | that it is ready                                                       |
//! | `GET /stream/{bytes}`  | so many bytes, in chunks                                               |
//! | `POST /count`          | the size of the payload, which is read as it comes                     |
//! | `POST /sleep/{millis}` | nothing, after so many milliseconds                                    |
//! | `POST /crash`          | none: the process ends, as a defect might end it                       |
//! | any below `/inspect`   | method, path, query and headers of the request, as JSON                |
//!
//! Protocol `http`, over HTTP/1.1 or HTTP/2. It listens on the port in `PORT` and is ready when `/health` says so.

use std::convert::Infallible;
use std::error::Error;
use std::net::Ipv4Addr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Path;
use axum::routing::{any, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

static CHUNK: [u8; 16 * 1024] = [b'.'; 16 * 1024];

async fn echo(mut headers: HeaderMap, payload: Bytes) -> (HeaderMap, Bytes) {
    let content_type = headers.remove(CONTENT_TYPE).map(|value| (CONTENT_TYPE, value));
    (content_type.into_iter().collect(), payload)
}

/// Makes each chunk when the one before it was taken: a caller who reads slowly costs no memory.
async fn chunks(Path(bytes): Path<usize>) -> Body {
    Body::from_stream(stream::unfold(bytes, |left| async move {
        let chunk = CHUNK.get(..left).unwrap_or(&CHUNK);
        let rest = left - chunk.len();
        (!chunk.is_empty()).then(|| (Ok::<_, Infallible>(Bytes::from_static(chunk)), rest))
    }))
}

async fn count(body: Body) -> Result<String, StatusCode> {
    let mut chunks = body.into_data_stream();
    let mut bytes = 0;
    while let Some(chunk) = chunks.next().await {
        bytes += chunk.map_err(|_| StatusCode::BAD_REQUEST)?.len();
    }
    Ok(bytes.to_string())
}

async fn sleep(Path(millis): Path<u64>) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

async fn inspect(method: Method, uri: Uri, headers: HeaderMap) -> Json<Value> {
    let mut shown = Map::new();
    for name in headers.keys() {
        let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        shown.insert(name.to_string(), values.collect());
    }
    Json(json!({"method": method.as_str(), "path": uri.path(), "query": uri.query(), "headers": shown}))
}

async fn crash() {
    eprintln!("asked to crash");
    std::process::exit(3)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port = std::env::var("PORT").map_err(|_| "PORT has to name the port to listen on")?.parse()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    eprintln!("listening on {}", listener.local_addr()?);

    // Answers that are on their way are finished first.
    let mut terminated = signal(SignalKind::terminate())?;
    let stop = async move {
        terminated.recv().await;
    };
    let routes = Router::new()
        .route("/", post(echo))
        .route("/health", get(|| async { "ready\n" }))
        .route("/stream/{bytes}", get(chunks))
        .route("/count", post(count))
        .route("/sleep/{millis}", post(sleep))
        .route("/crash", post(crash))
        .route("/inspect", any(inspect))
        .route("/inspect/{*path}", any(inspect));
    Ok(axum::serve(listener, routes).with_graceful_shutdown(stop).await?)
}

//! The REST API against a bare axum handler that forwards to the same kind of worker with hyper: requests per second, processor
//! time, and the time of a request at half of the load that saturates it.
//!
//! Each server is a process of its own (this program, started again), with its own worker. The load comes from this process.
//! `-- unrecorded` does the same without records, `-- overload` measures what a function at its limit does under ten times the
//! load that it can take, and `-- stream` how much memory 1 GiB up and down takes; they are left out without their names.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a benchmark")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use function_gateway_benches::{caller, parse};
use function_gateway_core::store::sql::{SqlStore, SqlStoreOptions};
use function_gateway_core::{
    AccessManager as _, CallContext, DeployRequest, FaasDriver as _, FunctionId, FunctionKey, FunctionManager as _,
    FunctionSpec, Gateway, Generation, NewApiKey, Principal, ProcessWorkload, Protocol, RecordMode, Revision,
    RevisionReason, ScopeAuthorizer, Timestamp,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use function_gateway_rest::serve::{ServeOptions, Threads, serve};
use function_gateway_rest::{ApiKeyAuthenticator, MintedKey, RestApi};
use futures_util::StreamExt as _;
use http::{HeaderValue, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use load::Load;
use tokio::net::{TcpListener, TcpStream};

#[path = "rest/load.rs"]
mod load;

/// That of `local-gateway`, for both servers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 10;
const ROUND: Duration = Duration::from_secs(1);
const PAYLOAD: &[u8] = &[b'x'; 100];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let Some(at) = args.iter().position(|arg| arg == "--server") {
        return server(&args[at + 1], Path::new(&args[at + 2]));
    }
    let wants = |part: &str| args.iter().any(|arg| arg == part);
    let worker = build_worker();
    // One thread, so that the load of the last two takes little from what is measured. That of the others is in `load`.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if args.is_empty() || wants("requests") {
        requests(&worker, "/v1/functions/worker/invocations");
    }
    if wants("unrecorded") {
        requests(&worker, "/v1/functions/unrecorded/invocations");
    }
    if wants("overload") {
        runtime.block_on(overload(&worker));
    }
    if wants("stream") {
        runtime.block_on(streamed(&worker));
    }
}

/// The worker is a program of its own, built as this benchmark is.
fn build_worker() -> PathBuf {
    let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--release", "-p", "axum-worker"]).status();
    assert!(built.unwrap().success());
    std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("axum-worker")
}

fn spec(worker: &Path) -> FunctionSpec {
    FunctionSpec::new(parse("local"), ProcessWorkload::new(worker.to_str().unwrap())).with_protocol(Protocol::http())
}

// Servers

fn server(kind: &str, worker: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // It ends with the process that has started it.
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            drop(ended);
        });
        let end = async {
            let _ = end.await;
        };
        match kind {
            "forwarder" => {
                let router = forwarder(worker).await;
                println!("{address} -");
                let serve = axum::serve(listener, router);
                tokio::select! { _ = serve => {}, () = end => {} }
            }
            _ => {
                let folder = tempfile::tempdir().unwrap();
                let (gateway, key) = gateway(worker, folder.path()).await;
                let api = RestApi::builder(gateway.clone());
                let api = api.authenticator(ApiKeyAuthenticator::new(gateway.clone())).build().unwrap();
                println!("{address} {key}");
                // As `local-gateway` does.
                let threads = Threads::for_each_processor().unwrap();
                let options = ServeOptions::default().with_grace(Duration::ZERO).with_runtimes(threads.runtimes());
                serve(listener, api.router(), options, end).await.unwrap();
                gateway.shutdown(Duration::from_secs(1)).await.unwrap();
            }
        }
    });
}

#[derive(Clone)]
struct Forward {
    client: Client<HttpConnector, axum::body::Body>,
    worker: SocketAddr,
    // Keeps the worker.
    _driver: Arc<LocalProcess>,
}

async fn forwarder(worker: &Path) -> Router {
    let driver = Arc::new(LocalProcess::new(LocalProcessConfig::new()).unwrap());
    let cx = caller();
    let key = FunctionKey::new(cx.tenant().clone(), parse("worker"));
    let created = (Timestamp::now(), cx.principal().id.clone());
    let (id, reason) = (FunctionId::generate(), RevisionReason::Created);
    let revision = Arc::new(Revision::new(key, id, Generation::FIRST, spec(worker), created, reason));
    let target = driver.reference(&parse("bench"), &revision);
    driver.deploy(&cx, &target, DeployRequest::new(parse("bench"), revision)).await.unwrap();
    // It says so in its log: listening on 127.0.0.1:<port>.
    let line = driver.logs(&cx, &target, Default::default()).await.unwrap().next().await.unwrap().unwrap().text;
    let worker = std::str::from_utf8(&line).unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let forward = async |State(forward): State<Forward>, mut request: Request| -> Response {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = format!("http://{}{path}", forward.worker).parse().unwrap();
        forward.client.request(request).await.unwrap().map(axum::body::Body::new)
    };
    Router::new().fallback(forward).with_state(Forward { client, worker, _driver: driver })
}

/// A gateway with the worker as `worker`, a function `slow` that is at its limit with 64 calls, one that streams, and a key for it.
async fn gateway(worker: &Path, folder: &Path) -> (Gateway, String) {
    let url = format!("sqlite://{}", folder.join("gateway.db").display());
    let store = SqlStore::connect(&url, SqlStoreOptions::default()).await.unwrap();
    let gateway = Gateway::builder()
        .store(Arc::new(store))
        .driver(parse("local"), Arc::new(LocalProcess::new(LocalProcessConfig::new()).unwrap()))
        .authorizer(Arc::new(ScopeAuthorizer))
        .build()
        .await
        .unwrap();
    let admin = Principal::new(parse("acme"), parse("ada")).with_scope("admin");
    let cx = CallContext::new(admin);
    gateway.create(&cx, &parse("worker"), spec(worker)).await.unwrap();
    let mut unrecorded = spec(worker);
    unrecorded.record.mode = Some(RecordMode::Off);
    gateway.create(&cx, &parse("unrecorded"), unrecorded).await.unwrap();
    let mut slow = spec(worker);
    slow.limits.max_in_flight = Some(64);
    gateway.create(&cx, &parse("slow"), slow).await.unwrap();
    let mut streaming = spec(worker);
    (streaming.streaming, streaming.limits.max_request_bytes) = (true, Some(1 << 31));
    gateway.create(&cx, &parse("streaming"), streaming).await.unwrap();
    let minted = MintedKey::mint().unwrap();
    let mut key = NewApiKey::new(minted.id, minted.hash);
    key.scopes.insert("invoke".to_owned());
    gateway.create_api_key(&cx, key).await.unwrap();
    (gateway, minted.text.expose_str().unwrap().to_owned())
}

/// A server in a process of its own.
struct Server {
    child: Child,
    address: SocketAddr,
    key: HeaderValue,
    path: &'static str,
}

impl Server {
    fn start(kind: &str, worker: &Path, path: &'static str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--server", kind])
            .arg(worker)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (address, key) = line.trim().split_once(' ').unwrap();
        let key = HeaderValue::try_from(format!("Bearer {key}")).unwrap();
        Self { address: address.parse().unwrap(), key, child, path }
    }

    fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // USER_HZ is 100 on every architecture of Linux that this runs on.
        Duration::from_millis(ticks * 10)
    }

    /// A figure of the process in `/proc/<pid>/status`, in KiB.
    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    async fn connect(&self) -> http1::SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// Connections that send what [`request`](Self::request) is.
    fn load(&self, connections: usize) -> Load {
        let Self { path, key, .. } = self;
        let (key, length) = (key.to_str().unwrap(), PAYLOAD.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: {key}\r\ncontent-length: {length}\r\n\r\n"
        );
        Load::new(self.address, connections, [head.as_bytes(), PAYLOAD].concat())
    }

    fn request(&self) -> http::Request<Full<Bytes>> {
        http::Request::post(self.path)
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, &self.key)
            .body(Full::new(Bytes::from_static(PAYLOAD)))
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // With the end of its input it stops, its worker too.
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

async fn call(sender: &mut http1::SendRequest<Full<Bytes>>, request: http::Request<Full<Bytes>>) -> http::StatusCode {
    sender.ready().await.unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    response.into_body().collect().await.unwrap();
    status
}

// Requests per second, processor time, and time at half of the load

fn requests(worker: &Path, path: &'static str) {
    let servers = [Server::start("forwarder", worker, "/"), Server::start("gateway", worker, path)];
    println!("medians of {ROUNDS} rounds in turns of {ROUND:?}, 100 bytes there and back\n");
    println!("at a time   forwarder     gateway   ratio    processor time per 10,000 requests   ratio");
    let mut loads = Vec::new();
    for at_a_time in [16, 64] {
        let mut rates: [Vec<f64>; 2] = Default::default();
        let mut costs: [Vec<f64>; 2] = Default::default();
        for round in 0..=ROUNDS {
            for (side, server) in servers.iter().enumerate() {
                let (rate, cost) = closed_loop(server, at_a_time);
                // The first round warms up.
                if round > 0 {
                    rates[side].push(rate);
                    costs[side].push(cost);
                }
            }
        }
        let rate_ratio = middle_of(ratios(&rates[1], &rates[0]));
        let cost_ratio = middle_of(ratios(&costs[1], &costs[0]));
        let [forwarder, gateway] = rates.map(middle_of);
        let [forwarder_cost, gateway_cost] = costs.map(middle_of);
        println!(
            "{at_a_time:>9}   {forwarder:>7.0}/s   {gateway:>7.0}/s   {rate_ratio:>5.2}   {forwarder_cost:>14.2} s {gateway_cost:>14.2} s       {cost_ratio:.2}",
        );
        loads.push((at_a_time, gateway / 2.0));
    }
    for (connections, load) in loads {
        open(&servers, load, connections);
    }
}

/// The time of a request at a steady load, and the processor time there.
fn open(servers: &[Server; 2], rate: f64, connections: usize) {
    let mut middles: [Vec<f64>; 2] = Default::default();
    let mut slowest: [Vec<f64>; 2] = Default::default();
    let mut costs: [Vec<f64>; 2] = Default::default();
    for round in 0..=ROUNDS {
        for (side, server) in servers.iter().enumerate() {
            let load = server.load(connections);
            let before = server.processor_time();
            let mut times = load.steady(rate, ROUND * 2);
            let used = server.processor_time() - before;
            if round > 0 {
                costs[side].push(used.as_secs_f64() / times.len() as f64 * 10_000.0);
                times.sort_unstable();
                middles[side].push(times[times.len() / 2].as_secs_f64());
                slowest[side].push(times[times.len() * 99 / 100].as_secs_f64());
            }
        }
    }
    let added: Vec<f64> = middles[1].iter().zip(&middles[0]).map(|(gateway, bare)| (gateway - bare) * 1e6).collect();
    let tail = middle_of(ratios(&slowest[1], &slowest[0]));
    let [forwarder_p50, gateway_p50] = middles.map(|times| middle_of(times) * 1e6);
    let [forwarder_p99, gateway_p99] = slowest.map(|times| middle_of(times) * 1e6);
    println!("\nat {rate:.0} requests per second by {connections} connections:");
    println!("p50   {forwarder_p50:>6.0} µs   {gateway_p50:>6.0} µs   {:>5.0} µs more", middle_of(added));
    println!("p99   {forwarder_p99:>6.0} µs   {gateway_p99:>6.0} µs   {tail:>5.2} times");
    let cost_ratio = middle_of(ratios(&costs[1], &costs[0]));
    let [forwarder_cost, gateway_cost] = costs.map(middle_of);
    println!("processor time per 10,000   {forwarder_cost:.2} s   {gateway_cost:.2} s   {cost_ratio:.2} times\n");
}

fn ratios(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of / to).collect()
}

fn middle_of(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Requests per second of connections that each send one after the other, and processor seconds per 10,000 of them.
fn closed_loop(server: &Server, at_a_time: usize) -> (f64, f64) {
    let load = server.load(at_a_time);
    let (start, before) = (Instant::now(), server.processor_time());
    let calls = f64::from(load.saturate(ROUND));
    let used = server.processor_time() - before;
    (calls / start.elapsed().as_secs_f64(), used.as_secs_f64() / calls * 10_000.0)
}

// Overload

async fn overload(worker: &Path) {
    const SLEEP: Duration = Duration::from_millis(50);
    const LIMIT: u32 = 64;
    const CONNECTIONS: u32 = 640;
    const HOW_LONG: Duration = Duration::from_secs(60);
    let server = Arc::new(Server::start("gateway", worker, "/v1/functions/slow/http/sleep/50"));
    let possible = f64::from(LIMIT) / SLEEP.as_secs_f64();
    let rate = possible * 10.0;
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        senders.push(server.connect().await);
    }
    let memory = server.status("VmRSS");
    let start = Instant::now();
    let apart = Duration::from_secs_f64(1.0 / rate);
    let callers: Vec<_> = senders
        .into_iter()
        .zip(0..CONNECTIONS)
        .map(|(mut sender, first)| {
            let server = Arc::clone(&server);
            tokio::spawn(async move {
                let (mut good, mut refused, mut number) = (0_u32, Vec::new(), first);
                loop {
                    let due = start + apart * number;
                    if due - start > HOW_LONG {
                        return (good, refused);
                    }
                    tokio::time::sleep_until(due.into()).await;
                    let sent = Instant::now();
                    match call(&mut sender, server.request()).await.as_u16() {
                        200 => good += 1,
                        429 => refused.push(sent.elapsed()),
                        status => panic!("{status}"),
                    }
                    // What was due while this one was under way is not sent twice at once.
                    while start + apart * number <= Instant::now() {
                        number += CONNECTIONS;
                    }
                }
            })
        })
        .collect();
    let (mut good, mut refused) = (0, Vec::new());
    for caller in callers {
        let (answered, times) = caller.await.unwrap();
        good += answered;
        refused.extend(times);
    }
    refused.sort_unstable();
    let took = start.elapsed().as_secs_f64();
    let goodput = f64::from(good) / took;
    println!(
        "a function that takes 50 ms with a limit of 64, {CONNECTIONS} connections, {rate:.0} requests due per second:"
    );
    println!("answered {goodput:.0} per second, {:.1} % of what the limit allows", goodput / possible * 100.0);
    println!(
        "refused {:.0} per second, p50 {:.1} ms, p99 {:.1} ms",
        refused.len() as f64 / took,
        refused[refused.len() / 2].as_secs_f64() * 1e3,
        refused[refused.len() * 99 / 100].as_secs_f64() * 1e3
    );
    let peak = server.status("VmHWM").saturating_sub(memory);
    println!("memory: {:.1} MiB more at the peak\n", peak as f64 / 1024.0);
}

// 1 GiB

async fn streamed(worker: &Path) {
    const SIZE: usize = 1 << 30;
    const CHUNK: usize = 64 * 1024;
    let server = Server::start("gateway", worker, "/v1/functions/streaming/http/");
    for (what, path, up) in [("down", "stream/1073741824", false), ("up", "count", true)] {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        std::fs::write(format!("/proc/{}/clear_refs", server.child.id()), "5").unwrap();
        let before = server.status("VmRSS");
        let start = Instant::now();
        let chunk = Bytes::from(vec![b'x'; CHUNK]);
        let chunks = futures_util::stream::iter(0..if up { SIZE / CHUNK } else { 0 });
        let body = http_body_util::StreamBody::new(
            chunks.map(move |_| Ok::<_, std::io::Error>(http_body::Frame::data(chunk.clone()))),
        );
        let request = http::Request::builder()
            .method(if up { "POST" } else { "GET" })
            .uri(format!("{}{path}", server.path))
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, &server.key)
            .body(body)
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let mut read = 0;
        let mut last = Bytes::new();
        while let Some(frame) = body.frame().await {
            last = frame.unwrap().into_data().unwrap();
            read += last.len();
        }
        match up {
            true => assert_eq!(last, SIZE.to_string()),
            false => assert_eq!(read, SIZE),
        }
        let rate = SIZE as f64 / start.elapsed().as_secs_f64() / 1e6;
        let grown = server.status("VmHWM").saturating_sub(before);
        println!("1 GiB {what}: {rate:.0} MB/s, {:.1} MiB more memory at the peak", grown as f64 / 1024.0);
    }
    println!();
}

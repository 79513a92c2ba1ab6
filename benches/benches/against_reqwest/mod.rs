//! A driver whose engine is reached by HTTP against bare reqwest on the same mock of the engine: processor time of the client per call, and
//! how much memory an answer of 1 GiB takes that is read as a stream.
//!
//! Mock and clients are processes of their own (the benchmark, started again), so that each side's processor time is its own. What is
//! compared runs in turns. `-- calls` and `-- stream` run one of the two.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use function_gateway_benches::{caller, parse};
use function_gateway_core::{
    CallContext, DriverRef, DriverRequest, FaasDriver, FunctionId, FunctionKey, FunctionSpec, Generation,
    ImageWorkload, InvocationId, LogSink, Revision, RevisionReason, Timestamp, TraceParent, set_call_headers,
};
use futures_util::StreamExt as _;
use tokio::net::TcpListener;

/// An engine, and how it is reached.
#[derive(Clone, Copy)]
pub(crate) struct Engine {
    /// The path of functions, as axum has paths.
    pub(crate) path: &'static str,
    /// What the engine adds to an answer.
    pub(crate) marks: &'static [(&'static str, &'static str)],
    /// What of the mock is no function.
    pub(crate) management: fn() -> Router,
    /// A driver for the mock at an address.
    pub(crate) open: fn(&str) -> Box<dyn FaasDriver>,
    /// What the driver adds to the headers by which a function is told of its call.
    pub(crate) tell: fn(&mut HeaderMap),
}

const ROUNDS: usize = 10;
/// Of each turn. Processor time is counted in steps of 10 ms, so that a turn has to take many of them.
const ROUND: Duration = Duration::from_secs(2);
const PAYLOAD: &[u8] = &[b'x'; 100];
const STREAMED: usize = 1 << 30;
const CHUNK: usize = 64 * 1024;

pub(crate) fn run(engine: Engine) {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.first().map(String::as_str) {
        Some("--mock") => return mock(engine),
        Some("--client") => return client(engine, &args[1], args[2].parse().unwrap()),
        _ => {}
    }
    let wants = |part: &str| args.is_empty() || args.iter().any(|arg| arg == part);
    let mut mock = Process::start(&["--mock"]);
    let address = mock.line();
    if wants("calls") {
        calls(&address);
    }
    if wants("stream") {
        streamed(&address);
    }
}

// The mock

/// Answers each call with its payload, as the engine would, or with as many bytes as the path says.
fn mock(engine: Engine) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        let marked = move |body: Body| {
            let mut answer = Response::new(body);
            answer.headers_mut().insert("content-type", HeaderValue::from_static("application/octet-stream"));
            for (name, value) in engine.marks {
                answer.headers_mut().insert(*name, HeaderValue::from_static(value));
            }
            answer
        };
        let echo = async move |payload: Bytes| marked(Body::from(payload));
        let stream = async move |uri: axum::http::Uri| {
            let bytes: usize = uri.path().rsplit('/').next().unwrap().parse().unwrap();
            let chunk = Bytes::from(vec![b'x'; CHUNK]);
            let chunks = futures_util::stream::iter(0..bytes / CHUNK);
            marked(Body::from_stream(chunks.map(move |_| Ok::<_, std::io::Error>(chunk.clone()))))
        };
        let below = engine.path.trim_end_matches('/');
        let router = (engine.management)()
            .route(engine.path, axum::routing::post(echo))
            .route(&format!("{below}/stream/{{bytes}}"), axum::routing::post(stream));
        let serve = axum::serve(listener, router);
        tokio::select! { _ = serve => {}, () = input_ends() => {} }
    });
}

/// A process ends with the one that has started it.
async fn input_ends() {
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(ended);
    });
    let _ = end.await;
}

// The clients

/// A client reads lines `<at a time>`, calls for a round with as many callers, and says how many calls it has made and the
/// processor time that they took; for `stream` it reads an answer and says how long it took and by how much it has grown.
fn client(engine: Engine, kind: &str, address: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let entered = runtime.enter();
    let caller = Arc::new(Caller::new(engine, kind, address));
    drop(entered);
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).unwrap() > 0 {
        match line.trim() {
            "stream" => {
                let (took, grown) = runtime.block_on(caller.stream());
                println!("{} {grown}", took.as_nanos());
            }
            at_a_time => {
                let at_a_time = at_a_time.parse().unwrap();
                let before = processor_time();
                let calls = runtime.block_on(round(&caller, at_a_time));
                println!("{calls} {}", (processor_time() - before).as_nanos());
            }
        }
        std::io::stdout().flush().unwrap();
        line.clear();
    }
}

/// The processor time of this process, all threads, by the scheduler's own count of nanoseconds.
fn processor_time() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let ran = threads.filter_map(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(ran.sum())
}

async fn round(caller: &Arc<Caller>, at_a_time: usize) -> u64 {
    let end = Instant::now() + ROUND;
    let callers: Vec<_> = (0..at_a_time)
        .map(|_| {
            let caller = Arc::clone(caller);
            tokio::spawn(async move {
                let mut calls = 0;
                while Instant::now() < end {
                    caller.call().await;
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    calls
}

enum Caller {
    Bare {
        client: reqwest::Client,
        url: String,
        headers: HeaderMap,
    },
    Driver {
        cx: CallContext,
        driver: Box<dyn FaasDriver>,
        target: DriverRef,
        revision: Arc<Revision>,
        streaming: Arc<Revision>,
        /// Core makes one for each call, which is no cost of the driver's.
        logs: LogSink,
    },
}

/// The function that is called, the same in every process.
pub(crate) fn revision(streaming: bool) -> Arc<Revision> {
    let mut spec = FunctionSpec::new(parse("faas"), ImageWorkload::new("fn"));
    spec.streaming = streaming;
    let key = FunctionKey::new(caller().tenant().clone(), parse("fn"));
    let created = (Timestamp::default(), caller().principal().id.clone());
    let (id, reason) = (FunctionId::from_bytes([7; 16]), RevisionReason::Created);
    Arc::new(Revision::new(key, id, Generation::FIRST, spec, created, reason))
}

impl Caller {
    fn new(engine: Engine, kind: &str, address: SocketAddr) -> Self {
        let url = format!("http://{address}");
        let cx = caller().with_invocation_id(InvocationId::generate()).with_trace(TraceParent::root());
        if kind != "driver" {
            let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(64).build().unwrap();
            let mut headers = HeaderMap::new();
            if kind == "telling" {
                set_call_headers(&cx, &mut headers);
                (engine.tell)(&mut headers);
            }
            return Self::Bare { client, url: format!("{url}{}", engine.path.replace("{name}", "fn")), headers };
        }
        let driver = (engine.open)(&url);
        let (revision, streaming) = (revision(false), revision(true));
        let target = driver.reference(&parse("bench"), &revision);
        Self::Driver { cx, driver, target, revision, streaming, logs: LogSink::detached(0) }
    }

    async fn call(&self) {
        match self {
            Self::Bare { client, url, headers } => {
                let request = client.post(url);
                let request = if headers.is_empty() { request } else { request.headers(headers.clone()) };
                let response = request.body(Bytes::from_static(PAYLOAD)).send().await.unwrap();
                assert_eq!(response.bytes().await.unwrap(), PAYLOAD);
            }
            Self::Driver { cx, driver, target, revision, logs, .. } => {
                let request = DriverRequest::new(Arc::clone(revision), PAYLOAD, logs.clone());
                let response = driver.invoke(cx, target, request).await.unwrap();
                assert_eq!(response.body.collect(1000).await.unwrap(), PAYLOAD);
            }
        }
    }

    async fn stream(&self) -> (Duration, u64) {
        // The most that this process has ever had from here on is what is shown.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let (before, start) = (status("VmRSS"), Instant::now());
        let mut read = 0;
        match self {
            Self::Bare { client, url, .. } => {
                let mut response =
                    client.post(format!("{}/stream/{STREAMED}", url.trim_end_matches('/'))).send().await.unwrap();
                while let Some(chunk) = response.chunk().await.unwrap() {
                    read += chunk.len();
                }
            }
            Self::Driver { cx, driver, target, streaming, .. } => {
                let mut request = DriverRequest::new(Arc::clone(streaming), "", LogSink::detached(0));
                request.path = format!("/stream/{STREAMED}").into();
                let mut body = driver.invoke(cx, target, request).await.unwrap().body.into_stream();
                while let Some(chunk) = body.next().await {
                    read += chunk.unwrap().len();
                }
            }
        }
        assert_eq!(read, STREAMED);
        (start.elapsed(), status("VmHWM").saturating_sub(before))
    }
}

/// A figure of this process in `/proc/self/status`, in KiB.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

// What is compared

/// This program, started again.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "a process has ended");
        line.trim().to_owned()
    }

    /// Two figures for a task.
    fn ask(&mut self, task: &str) -> (f64, f64) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{task}").unwrap();
        let line = self.line();
        let (one, two) = line.split_once(' ').unwrap();
        (one.parse().unwrap(), two.parse().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // With the end of its input it stops.
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

fn middle_of(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn calls(address: &str) {
    let mut clients = ["bare", "telling", "driver"].map(|kind| Process::start(&["--client", kind, address]));
    println!(
        "processor time of the client per call, medians of {ROUNDS} rounds in turns of {ROUND:?}, 100 bytes there and back;"
    );
    println!("telling: bare reqwest that sends the headers by which a function is told of its call\n");
    println!(
        "at a time   bare reqwest       telling        driver   to bare   to telling   calls per second, bare and driver"
    );
    for at_a_time in [1, 16, 64] {
        let (mut costs, mut rates): ([Vec<f64>; 3], [Vec<f64>; 3]) = Default::default();
        for round in 0..=ROUNDS {
            for side in 0..3 {
                // Whoever comes first does so in turns too.
                let side = (side + round) % 3;
                let (calls, nanos) = clients[side].ask(&at_a_time.to_string());
                // The first round warms up.
                if round > 0 {
                    costs[side].push(nanos / calls / 1e3);
                    rates[side].push(calls / ROUND.as_secs_f64());
                }
            }
        }
        let ratio = |base: &[f64]| middle_of(costs[2].iter().zip(base).map(|(driver, base)| driver / base).collect());
        let (to_bare, to_telling) = (ratio(&costs[0]), ratio(&costs[1]));
        let ([bare, telling, driver], [bare_rate, _, driver_rate]) = (costs.map(middle_of), rates.map(middle_of));
        println!(
            "{at_a_time:>9}   {bare:>9.1} µs   {telling:>8.1} µs   {driver:>8.1} µs      {to_bare:.2}         {to_telling:.2}   {bare_rate:>8.0}/s {driver_rate:>8.0}/s"
        );
    }
    println!();
}

fn streamed(address: &str) {
    for kind in ["bare", "driver"] {
        let (nanos, grown) = Process::start(&["--client", kind, address]).ask("stream");
        let rate = STREAMED as f64 / nanos * 1e3;
        println!("1 GiB as a stream, {kind}: {rate:.0} MB/s, {:.1} MiB more memory at the peak", grown / 1024.0);
    }
}

//! A worker that stays, through the driver and through a gateway, against the bare HTTP client on the same worker.
//!
//! It also shows how much memory an answer of 1 GiB takes that is read as a stream, and what 200 workers cost the host that
//! has nothing to do.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use function_gateway_benches::{caller, parse};
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    CallContext, DeployRequest, DeploymentState, DriverRef, DriverRequest, FaasDriver, FunctionExecutor, FunctionId,
    FunctionKey, FunctionManager, FunctionName, FunctionRef, FunctionSpec, Gateway, Generation, InvokeRequest, LogSink,
    ProcessWorkload, Protocol, Revision, RevisionReason, Timestamp,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

const ROUNDS: usize = 10;
const ROUND: Duration = Duration::from_millis(400);
const PAYLOAD: &[u8] = &[b'x'; 100];
const STREAMED: usize = 1 << 30;
const FUNCTIONS: usize = 200;
const IDLE: Duration = Duration::from_secs(10);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let program = build_worker();
    requests(&runtime, &program);
    streamed(&runtime, &program);
    idle(&runtime, &program);
}

/// The worker is a program of its own, built as this benchmark is.
fn build_worker() -> PathBuf {
    let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--release", "-p", "axum-worker"]).status();
    assert!(built.unwrap().success());
    // This program lies in `release/deps`.
    std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("axum-worker")
}

fn spec(program: &std::path::Path) -> FunctionSpec {
    let run = ProcessWorkload::new(program.to_str().unwrap());
    FunctionSpec::new(parse("local"), run).with_protocol(Protocol::http())
}

fn driver() -> LocalProcess {
    LocalProcess::new(LocalProcessConfig::new()).unwrap()
}

fn revision(spec: FunctionSpec) -> Arc<Revision> {
    let cx = caller();
    let key = FunctionKey::new(cx.tenant().clone(), parse("program"));
    let created = (Timestamp::now(), cx.principal().id.clone());
    Arc::new(Revision::new(key, FunctionId::generate(), Generation::FIRST, spec, created, RevisionReason::Created))
}

fn requests(runtime: &Runtime, program: &std::path::Path) {
    println!("requests per second, medians of {ROUNDS} rounds in turns of {ROUND:?}, 100 bytes there and back\n");
    println!("at a time   bare client            driver           gateway");
    let function = runtime.block_on(Function::new(program));
    for at_a_time in [1, 16, 64] {
        let mut rates: [Vec<f64>; 3] = Default::default();
        for round in 0..=ROUNDS {
            let turn = [
                runtime.block_on(rate(at_a_time, &function, By::Client)),
                runtime.block_on(rate(at_a_time, &function, By::Driver)),
                runtime.block_on(rate(at_a_time, &function, By::Gateway)),
            ];
            // The first round warms up.
            if round > 0 {
                rates.iter_mut().zip(turn).for_each(|(rates, rate)| rates.push(rate));
            }
        }
        let [bare, driver, gateway] = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[ROUNDS / 2]
        });
        println!(
            "{at_a_time:>9}   {bare:>9.0}/s   {driver:>9.0}/s ({:.2})   {gateway:>9.0}/s ({:.2})",
            driver / bare,
            gateway / bare
        );
    }
    runtime.block_on(function.driver.shutdown(Instant::now())).unwrap();
    println!();
}

#[derive(Clone, Copy)]
enum By {
    Client,
    Driver,
    Gateway,
}

/// How many calls a second a number of callers make, each one after the other.
async fn rate(at_a_time: usize, function: &Arc<Function>, by: By) -> f64 {
    let start = Instant::now();
    let callers: Vec<_> =
        (0..at_a_time).map(|_| tokio::spawn(Arc::clone(function).call_until(start + ROUND, by))).collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    f64::from(calls) / start.elapsed().as_secs_f64()
}

/// One worker, known to a driver, to a gateway by the same driver's kind, and to a bare client.
struct Function {
    cx: CallContext,
    driver: LocalProcess,
    target: DriverRef,
    revision: Arc<Revision>,
    gateway: Gateway,
    name: FunctionRef,
    port: u16,
}

impl Function {
    async fn new(program: &std::path::Path) -> Arc<Self> {
        let (cx, driver, revision) = (caller(), driver(), revision(spec(program)));
        let target = driver.reference(&parse("bench"), &revision);
        driver.deploy(&cx, &target, DeployRequest::new(parse("bench"), Arc::clone(&revision))).await.unwrap();
        let gateway = Gateway::builder()
            .store(Arc::new(MemoryStore::new(parse("bench"))))
            .driver(parse("local"), Arc::new(self::driver()))
            .build()
            .await
            .unwrap();
        let name: FunctionName = parse("program");
        gateway.create(&cx, &name, spec(program)).await.unwrap();
        let mut logs = driver.logs(&cx, &target, Default::default()).await.unwrap();
        // It says so in its log: listening on 127.0.0.1:<port>.
        let line = logs.next().await.unwrap().unwrap().text;
        let port = std::str::from_utf8(&line).unwrap().rsplit(':').next().unwrap().parse().unwrap();
        drop(logs);
        Arc::new(Self { cx, driver, target, revision, gateway, name: name.into(), port })
    }

    async fn call_until(self: Arc<Self>, end: Instant, by: By) -> u32 {
        let mut calls = 0;
        match by {
            By::Client => {
                let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
                tokio::spawn(connection);
                while Instant::now() < end {
                    let request = http::Request::post("/").header("host", "localhost");
                    let request = request.body(Full::new(Bytes::from_static(PAYLOAD))).unwrap();
                    sender.ready().await.unwrap();
                    let response = sender.send_request(request).await.unwrap();
                    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), PAYLOAD);
                    calls += 1;
                }
            }
            By::Driver => {
                while Instant::now() < end {
                    let request = DriverRequest::new(Arc::clone(&self.revision), PAYLOAD, LogSink::detached(1 << 16));
                    let response = self.driver.invoke(&self.cx, &self.target, request).await.unwrap();
                    assert_eq!(response.body.collect(1000).await.unwrap(), PAYLOAD);
                    calls += 1;
                }
            }
            By::Gateway => {
                while Instant::now() < end {
                    let response =
                        self.gateway.invoke(&self.cx, &self.name, InvokeRequest::new(PAYLOAD)).await.unwrap();
                    assert_eq!(response.body.collect(1000).await.unwrap(), PAYLOAD);
                    calls += 1;
                }
            }
        }
        calls
    }
}

/// A figure of this process in `/proc/self/status`, in KiB.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

fn streamed(runtime: &Runtime, program: &std::path::Path) {
    runtime.block_on(async {
        let mut spec = spec(program);
        spec.streaming = true;
        let (cx, driver, revision) = (caller(), driver(), revision(spec));
        let target = driver.reference(&parse("bench"), &revision);
        driver.deploy(&cx, &target, DeployRequest::new(parse("bench"), Arc::clone(&revision))).await.unwrap();
        let mut request = DriverRequest::new(revision, "", LogSink::detached(0));
        (request.method, request.path) = (http::Method::GET, format!("/stream/{STREAMED}").into());
        // The most that this process has ever had from here on is what is shown.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS");
        let start = Instant::now();
        let mut body = driver.invoke(&cx, &target, request).await.unwrap().body.into_stream();
        let mut read = 0;
        while let Some(chunk) = body.next().await {
            read += chunk.unwrap().len();
        }
        assert_eq!(read, STREAMED);
        let took = start.elapsed();
        let grown = status("VmHWM").saturating_sub(before);
        let rate = STREAMED as f64 / took.as_secs_f64() / 1e6;
        println!("1 GiB as a stream: {rate:.0} MB/s, {:.1} MiB more memory at the peak\n", grown as f64 / 1024.0);
        driver.shutdown(Instant::now()).await.unwrap();
    });
}

/// The processor time of this process, all threads.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every architecture of Linux that this runs on.
    Duration::from_millis(ticks * 10)
}

fn idle(runtime: &Runtime, program: &std::path::Path) {
    runtime.block_on(async {
        let (cx, driver) = (caller(), driver());
        for _ in 0..FUNCTIONS {
            let revision = revision(spec(program));
            let target = driver.reference(&parse("bench"), &revision);
            driver.deploy(&cx, &target, DeployRequest::new(parse("bench"), revision)).await.unwrap();
            // What is measured is what they take once they are there, not what starting them takes.
            while driver.status(&cx, &target).await.unwrap().state != DeploymentState::Ready {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let (start, before) = (Instant::now(), processor_time());
        tokio::time::sleep(IDLE).await;
        let share = (processor_time() - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
        println!("{FUNCTIONS} functions with a worker each, idle: {share:.2} % of a core");
        driver.shutdown(Instant::now() + Duration::from_secs(30)).await.unwrap();
    });
}

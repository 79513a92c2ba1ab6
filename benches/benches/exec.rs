//! A process for each call, against starting the same program by hand.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark")]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use function_gateway_benches::{caller, median, parse, ratio};
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    CallContext, DeployRequest, DriverRef, DriverRequest, FaasDriver, FunctionExecutor, FunctionId, FunctionKey,
    FunctionManager, FunctionName, FunctionRef, FunctionSpec, Gateway, Generation, InvokeRequest, LogSink,
    ProcessWorkload, Revision, RevisionReason, Timestamp,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};

const ROUNDS: usize = 10;
const CALLS: u32 = 240;
static PAYLOAD: [u8; 100] = [b'x'; 100];
const RESIDENT: usize = 1 << 30;
const PAGE: usize = 4096;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!("medians of {ROUNDS} rounds in turns, {CALLS} calls in each; times are wall time for each call\n");
    println!("program    at a time  host      by hand    driver             gateway");
    compare(&runtime, "small");
    // Not zeroes, which the system would hand out without giving memory for them.
    let mut resident = vec![1_u8; RESIDENT];
    compare(&runtime, "1 GiB");
    resident.iter_mut().step_by(PAGE).for_each(|byte| *byte = 2);
    std::hint::black_box(resident);
}

fn compare(runtime: &tokio::runtime::Runtime, host: &str) {
    for (program, answer) in [("/bin/cat", &PAYLOAD[..]), ("/bin/true", &[][..])] {
        for at_a_time in [1, 8] {
            let function = runtime.block_on(Function::new(program, answer));
            let (mut by_hand, mut driver, mut gateway) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..=ROUNDS {
                let times = [
                    in_threads(at_a_time, || assert_eq!(spawn(program), answer)),
                    runtime.block_on(in_tasks(at_a_time, &function, By::Driver)),
                    runtime.block_on(in_tasks(at_a_time, &function, By::Gateway)),
                ];
                // The first round warms up.
                if round > 0 {
                    by_hand.push(times[0]);
                    driver.push(times[1]);
                    gateway.push(times[2]);
                }
            }
            let (driver_ratio, gateway_ratio) = (ratio(&driver, &by_hand), ratio(&gateway, &by_hand));
            let [by_hand, driver, gateway] = [by_hand, driver, gateway].map(|times| median(times).as_micros());
            println!(
                "{program:<10} {at_a_time:>9}  {host:<6} {by_hand:>7} us  {driver:>7} us ({driver_ratio:.2})  \
                 {gateway:>7} us ({gateway_ratio:.2})"
            );
        }
    }
}

/// What a program does that wants result, log and exit status. The child gets nothing of this process's environment, as
/// the driver's does: `cargo` sets `LD_LIBRARY_PATH`, whose folders are then searched for each library first, and a
/// locale has `cat` load its files. That weighs more than what is compared here.
fn spawn(program: &str) -> Vec<u8> {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(&PAYLOAD);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn in_threads(at_a_time: u32, call: impl Fn() + Sync) -> Duration {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| (0..CALLS / at_a_time).for_each(|_| call()));
        }
    });
    start.elapsed() / CALLS
}

async fn in_tasks(at_a_time: u32, function: &Arc<Function>, by: By) -> Duration {
    let start = Instant::now();
    let calls = |_| tokio::spawn(Arc::clone(function).call_times(CALLS / at_a_time, by));
    let tasks: Vec<_> = (0..at_a_time).map(calls).collect();
    for task in tasks {
        task.await.unwrap();
    }
    start.elapsed() / CALLS
}

#[derive(Clone, Copy)]
enum By {
    Driver,
    Gateway,
}

/// A program as a function, both at a driver alone and at a gateway.
struct Function {
    cx: CallContext,
    driver: LocalProcess,
    target: DriverRef,
    revision: Arc<Revision>,
    gateway: Gateway,
    name: FunctionRef,
    answer: &'static [u8],
}

impl Function {
    async fn new(program: &'static str, answer: &'static [u8]) -> Arc<Self> {
        let cx = caller();
        let spec = FunctionSpec::new(parse("local"), ProcessWorkload::new(program));
        let name: FunctionName = parse("program");

        let driver = LocalProcess::new(LocalProcessConfig::new()).unwrap();
        let key = FunctionKey::new(cx.tenant().clone(), name.clone());
        let (id, created) = (FunctionId::generate(), (Timestamp::now(), cx.principal().id.clone()));
        let revision = Revision::new(key, id, Generation::FIRST, spec.clone(), created, RevisionReason::Created);
        let revision = Arc::new(revision);
        let target = driver.reference(&parse("bench"), &revision);
        driver.deploy(&cx, &target, DeployRequest::new(parse("bench"), Arc::clone(&revision))).await.unwrap();

        let gateway = Gateway::builder()
            .store(Arc::new(MemoryStore::new(parse("bench"))))
            .driver(parse("local"), Arc::new(LocalProcess::new(LocalProcessConfig::new()).unwrap()))
            .build()
            .await
            .unwrap();
        gateway.create(&cx, &name, spec).await.unwrap();
        Arc::new(Self { cx, driver, target, revision, gateway, name: name.into(), answer })
    }

    async fn call_times(self: Arc<Self>, times: u32, by: By) {
        for _ in 0..times {
            self.call(by).await;
        }
    }

    async fn call(&self, by: By) {
        let response = match by {
            By::Driver => {
                let request = DriverRequest::new(Arc::clone(&self.revision), &PAYLOAD[..], LogSink::detached(1 << 16));
                self.driver.invoke(&self.cx, &self.target, request).await
            }
            By::Gateway => self.gateway.invoke(&self.cx, &self.name, InvokeRequest::new(&PAYLOAD[..])).await,
        };
        let response = response.unwrap();
        assert!(response.outcome.is_success());
        assert_eq!(response.body.as_bytes().unwrap(), self.answer);
    }
}

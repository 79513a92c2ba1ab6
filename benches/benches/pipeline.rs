//! What the gateway adds to a call: over a driver that does nothing, with a record in memory.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::time::Instant;

use function_gateway_benches::{caller, five_pass_through, median, noop_gateway};
use function_gateway_core::{FunctionExecutor, FunctionRef, Gateway, InvokeRequest};

const CALLS: u32 = 2_000;
const ROUNDS: usize = 60;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let lean = noop_gateway(five_pass_through).await.unwrap();
        let default = noop_gateway(|builder| builder).await.unwrap();
        let (mut lean_times, mut default_times) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            lean_times.push(round(&lean).await);
            default_times.push(round(&default).await);
        }
        println!("five pass-through middleware, record in memory: {:?} a call", median(lean_times));
        println!("default stack (observe, record, deadline):      {:?} a call", median(default_times));
    });
}

async fn round((gateway, function): &(Gateway, FunctionRef)) -> std::time::Duration {
    let cx = caller();
    let start = Instant::now();
    for _ in 0..CALLS {
        gateway.invoke(&cx, function, InvokeRequest::new("hello")).await.unwrap();
    }
    start.elapsed() / CALLS
}

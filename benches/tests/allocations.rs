//! How often a call allocates. A count, so the same on every machine.

use function_gateway_benches::{caller, five_pass_through, noop_gateway};
use function_gateway_core::{FunctionExecutor as _, InvokeRequest};

#[test]
fn a_call_through_five_middleware_with_a_record_allocates_at_most_16_times() {
    const CALLS: u64 = 1_000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (gateway, function) = runtime.block_on(noop_gateway(five_pass_through)).unwrap();
    let cx = caller();
    let call = || {
        runtime.block_on(async {
            for _ in 0..CALLS {
                gateway.invoke(&cx, &function, InvokeRequest::new("hello")).await.unwrap();
            }
        });
    };
    call();
    let counted = allocation_counter::measure(call).count_total;
    let each = counted / CALLS;
    assert!(each <= 16, "{each} allocations for each call");
    assert!(each > 5, "{each} allocations for each call: the counter does not count");
    println!("{each} allocations for each call ({counted} for {CALLS})");
}

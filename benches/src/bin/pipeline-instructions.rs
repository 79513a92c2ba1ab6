//! Executes a function that does nothing as often as its argument says, for a tool that counts instructions.

use std::process::ExitCode;

use function_gateway_benches::{caller, five_pass_through, noop_gateway};
use function_gateway_core::{FunctionExecutor as _, InvokeRequest, Result};

fn main() -> ExitCode {
    let Some(calls) = std::env::args().nth(1).and_then(|calls| calls.parse().ok()) else {
        eprintln!("usage: pipeline-instructions CALLS");
        return ExitCode::from(2);
    };
    match run(calls) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(calls: u32) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let Ok(runtime) = runtime else { return Ok(()) };
    runtime.block_on(async {
        let (gateway, function) = noop_gateway(five_pass_through).await?;
        let cx = caller();
        for _ in 0..calls {
            gateway.invoke(&cx, &function, InvokeRequest::new("hello")).await?;
        }
        Ok(())
    })
}

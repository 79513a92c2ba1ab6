//! Embeds a driver of your own in a gateway, and calls a function on it.
//!
//! `cargo run -p custom-driver`

use std::sync::Arc;
use std::time::Duration;

use custom_driver::{Call, ClosureDriver, closure};
use function_gateway::store::memory::MemoryStore;
use function_gateway::{
    CallContext, DriverName, FunctionExecutor as _, FunctionManager as _, FunctionName, Gateway, GatewayId,
    InvokeRequest, Outcome, Principal, Result,
};

async fn greet(call: Call) -> Result<Vec<u8>, String> {
    let name = std::str::from_utf8(&call.payload).map_err(|error| error.to_string())?;
    if name.is_empty() {
        return Err("whom?".to_owned());
    }
    let greeting = call.variables.get("GREETING").map_or("Hello", String::as_str);
    Ok(format!("{greeting}, {name}!").into_bytes())
}

#[tokio::main]
async fn main() -> Result<()> {
    let closures: DriverName = "closures".parse()?;
    let gateway = Gateway::builder()
        .store(Arc::new(MemoryStore::new(GatewayId::generate())))
        .driver(closures.clone(), Arc::new(ClosureDriver::new().with_closure("greet", greet)))
        .build()
        .await?;
    let ada = CallContext::new(Principal::new("acme".parse()?, "ada".parse()?));

    let name: FunctionName = "greeter".parse()?;
    let spec = closure(closures.clone(), "greet").with_env("GREETING", "Good morning");
    let function = gateway.create(&ada, &name, spec).await?;
    println!("created {} on {}: {:?}", function.key, function.spec.driver, function.status.phase);

    let greeter = name.into();
    let response = gateway.invoke(&ada, &greeter, InvokeRequest::new("Ada")).await?;
    println!("it answers: {}", String::from_utf8_lossy(&response.body.collect(1024).await?));

    let response = gateway.invoke(&ada, &greeter, InvokeRequest::new("")).await?;
    if let Outcome::Failed(failure) = &response.outcome {
        println!("without a name it fails: {}", failure.message);
    }

    if let Err(error) = gateway.create(&ada, &"typo".parse()?, closure(closures, "gret")).await {
        println!("a closure that nobody registered is refused: {error}");
    }
    gateway.shutdown(Duration::from_secs(5)).await
}

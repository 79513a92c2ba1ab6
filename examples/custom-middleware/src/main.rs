//! Embeds middleware of your own in a gateway, and calls a function through it.
//!
//! `cargo run -p custom-middleware`

use std::sync::Arc;
use std::time::Duration;

use custom_middleware::{AskAgain, CallToken, ContentTypes, RenameFields};
use function_gateway::drivers::local_process::{LocalProcess, LocalProcessConfig};
use function_gateway::store::memory::MemoryStore;
use function_gateway::{
    CallContext, Error, FunctionExecutor as _, FunctionManager as _, FunctionName, FunctionSpec, Gateway, GatewayId,
    InvocationId, InvokeRequest, Principal, ProcessWorkload, Result, Secret,
};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    let gateway = Gateway::builder()
        .store(Arc::new(MemoryStore::new(GatewayId::generate())))
        .driver("local".parse()?, Arc::new(LocalProcess::new(LocalProcessConfig::new())?))
        .middleware(Arc::new(ContentTypes::only(["application/json"])))
        .middleware(Arc::new(AskAgain))
        .middleware(Arc::new(CallToken::new(|_| Secret::new(InvocationId::generate().to_string()))))
        .middleware_by_choice(Arc::new(RenameFields))
        .build()
        .await?;
    let cx = CallContext::new(Principal::new("acme".parse()?, "ada".parse()?));
    // It answers with its payload.
    let cat = FunctionSpec::new("local".parse()?, ProcessWorkload::new("/bin/cat"));

    let plain: FunctionName = "plain".parse()?;
    gateway.create(&cx, &plain, cat.clone()).await?;
    println!("A function that chooses no middleware gets what is for all:");
    call(&gateway, &cx, &plain, InvokeRequest::json(&json!({"colour": "red"}))?).await?;
    call(&gateway, &cx, &plain, InvokeRequest::new("red")).await?;

    let renamed: FunctionName = "renamed".parse()?;
    let chosen = |settings| cat.clone().with_middleware("rename-fields", settings);
    gateway.create(&cx, &renamed, chosen(json!({"fields": {"colour": "color"}}))).await?;
    println!("\nOne that chooses rename-fields has its result changed:");
    call(&gateway, &cx, &renamed, InvokeRequest::json(&json!({"colour": "red", "size": 3}))?).await?;
    call(&gateway, &cx, &renamed, InvokeRequest::json(&json!(["red"]))?).await?;

    println!("\nWrong settings are refused when the function is created:");
    let mut streaming = chosen(json!({"fields": {"colour": "color"}}));
    streaming.streaming = true;
    let wrong = [
        chosen(json!({"field": "colour"})),
        chosen(json!({"fields": {"colour": "color", "color": "color", "size": 7}})),
        cat.with_middleware("rename-feilds", json!({})),
        streaming,
    ];
    for spec in wrong {
        if let Err(error) = gateway.create(&cx, &"wrong".parse()?, spec).await {
            refused(&error);
        }
    }
    gateway.shutdown(Duration::from_secs(5)).await
}

/// Shows what a function answers, or why there is no answer.
async fn call(gateway: &Gateway, cx: &CallContext, name: &FunctionName, request: InvokeRequest) -> Result<()> {
    let payload = request.body.as_bytes().map(|payload| String::from_utf8_lossy(payload).into_owned());
    println!("  {}", payload.unwrap_or_default());
    match gateway.invoke(cx, &name.clone().into(), request).await {
        Ok(answer) => println!("  -> {}", String::from_utf8_lossy(&answer.body.collect(1024).await?)),
        Err(error) => println!("  -> {}: {}", error.kind(), error.message()),
    }
    Ok(())
}

fn refused(error: &Error) {
    println!("  {}: {}", error.kind(), error.message());
    for violation in error.violations() {
        println!("    {violation}");
    }
}

//! Embeds a gateway and runs real functions as processes on this machine: creates two, executes them with good and bad
//! input and with a secret, lists them, and shows the records and statistics of their executions.

use std::env;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use function_gateway::drivers::local_process::{LocalProcess, LocalProcessConfig};
use function_gateway::middleware::secrets::{Secrets, SecretsOptions};
use function_gateway::middleware::validation::Validation;
use function_gateway::store::memory::MemoryStore;
use function_gateway::{
    CallContext, Error, FunctionExecutor, FunctionManager, FunctionManagerExt, FunctionName, FunctionSpec, Gateway,
    GatewayId, InvokeRequest, MemorySecrets, PageRequest, Principal, ProcessWorkload, RecordFilter, Result, Secret,
    SecretBinding, SecretChain, SecretProvider, StatisticsQuery, TenantId, Timestamp,
};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<()> {
    let tenant: TenantId = "acme".parse()?;
    let cx = CallContext::new(Principal::new(tenant.clone(), "ada".parse()?));

    // The host decides where secrets come from; here it puts one in by hand.
    let vault = Arc::new(MemorySecrets::new());
    vault.set(tenant, "signing-key".parse()?, Secret::new("correct horse battery staple"));
    let secrets = SecretChain::new(vec![vault as Arc<dyn SecretProvider>]);

    // A gateway is a store, drivers, and middleware.
    let path = env::var_os("PATH").unwrap_or_default();
    let search_path = env::split_paths(&path).filter(|folder| folder.is_absolute());
    let local = LocalProcess::new(LocalProcessConfig::new().with_search_path(search_path))?;
    let gateway = Gateway::builder()
        .store(Arc::new(MemoryStore::new(GatewayId::generate())))
        .driver("local".parse()?, Arc::new(local))
        .middleware_for_all(Arc::new(Validation::default()))
        .middleware_for_all(Arc::new(Secrets::new(secrets, SecretsOptions::new())))
        .build()
        .await?;

    title("Create functions");
    let greet: FunctionName = "greet".parse()?;
    let takes_a_name = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 1}},
        "required": ["name"],
    });
    create(&gateway, &cx, &greet, script("greet.py")?.with_input_schema(takes_a_name)).await?;
    let sign: FunctionName = "sign".parse()?;
    let key = SecretBinding::env("signing-key".parse()?, "SIGNING_KEY");
    create(&gateway, &cx, &sign, script("sign.py")?.with_secret(key)).await?;

    title("Execute them");
    execute(&gateway, &cx, &greet, InvokeRequest::json(&json!({"name": "Ada"}))?).await?;
    execute(&gateway, &cx, &greet, InvokeRequest::json(&json!({"nam": "Ada"}))?).await?;
    execute(&gateway, &cx, &sign, InvokeRequest::new("order 7: 3 apples")).await?;

    title("The functions that ada created");
    for function in gateway.list_mine(&cx, &PageRequest::default()).await?.items {
        let (name, status) = (&function.key.name, &function.status);
        println!("{name:<8} generation {} on {}: {}", function.generation, function.spec.driver, status.phase);
    }

    title("What is kept of the executions, newest first");
    for record in gateway.executions(&cx, &RecordFilter::default(), &PageRequest::default()).await?.items {
        let took = record.timings.get(function_gateway::TimedPhase::Total).unwrap_or_default();
        let failure = record.failure.as_ref().map(|failure| format!(": {} ({})", failure.message, failure.class));
        let failure = failure.unwrap_or_default();
        println!("{}  {:<6} {:<10} {took:>9.1?}{failure}", record.id, record.key.name, record.state);
    }

    title("Statistics of the last hour");
    let now = Timestamp::now();
    let hour = StatisticsQuery::new(now.minus(Duration::from_secs(3600)), now.plus(Duration::from_secs(60)));
    let statistics = gateway.statistics(&cx, &hour).await?;
    println!("{} executions, {:.0} % failed", statistics.count, statistics.error_rate() * 100.0);
    for (phase, quantiles) in &statistics.phases {
        let (p50, p95, p99) = (quantiles.p50, quantiles.p95, quantiles.p99);
        println!("{:<9} p50 {p50:>8.1?}  p95 {p95:>8.1?}  p99 {p99:>8.1?}", phase.as_str());
    }

    gateway.shutdown(Duration::from_secs(5)).await
}

/// A function that is one of the scripts in `examples/functions`.
fn script(name: &str) -> Result<FunctionSpec> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions").join(name);
    // A function sees no environment but its own; these scripts need to find python3.
    let path_variable = env::var("PATH").unwrap_or_default();
    let run = ProcessWorkload::new(path.to_string_lossy());
    Ok(FunctionSpec::new("local".parse()?, run).with_env("PATH", path_variable))
}

async fn create(gateway: &Gateway, cx: &CallContext, name: &FunctionName, spec: FunctionSpec) -> Result<()> {
    let function = gateway.create(cx, name, spec).await?;
    println!("{name} is {}", function.status.phase);
    Ok(())
}

/// Shows what a function answers, or why it was not called.
async fn execute(gateway: &Gateway, cx: &CallContext, name: &FunctionName, request: InvokeRequest) -> Result<()> {
    match gateway.invoke(cx, &name.clone().into(), request).await {
        Ok(answer) => {
            let body = answer.body.collect(64 * 1024).await?;
            println!("{name} answered: {}", String::from_utf8_lossy(&body).trim_end());
        }
        Err(error) => refused(name, &error),
    }
    Ok(())
}

fn refused(name: &FunctionName, error: &Error) {
    println!("{name} was not called: {}", error.message());
    for violation in error.violations() {
        println!("  {violation}");
    }
}

fn title(title: &str) {
    println!("\n{title}");
}

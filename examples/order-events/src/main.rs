//! What happens when an order comes in as an event: it is checked, two functions are chained, one fails, and what died is
//! executed again once its cause is gone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use function_gateway::drivers::local_process::{LocalProcess, LocalProcessConfig};
use function_gateway::events::{Event, EventBroker, FailurePolicy, Filter, Filters, SubscriptionSpec};
use function_gateway::middleware::validation::Validation;
use function_gateway::store::sql::SqlStore;
use function_gateway::{
    AsyncPolicy, CallContext, DeadLetterFilter, Destination, FunctionExecutor, FunctionManager, FunctionSpec, Gateway,
    InvocationRecord, PageRequest, Principal, ProcessWorkload, QueueManager, RecordFilter, Result, Waited,
    WorkerConfig,
};
use serde_json::{Value, json};

/// For what is to end soon.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<()> {
    let cx = CallContext::new(Principal::new("shop".parse()?, "ada".parse()?));
    let folder = tempfile::tempdir().map_err(problem)?;

    // Everything is in one file: functions, the queue, subscriptions, records.
    let store = Arc::new(SqlStore::open(&format!("sqlite:{}", folder.path().join("shop.db").display())).await?);
    let local = LocalProcess::new(LocalProcessConfig::new().with_search_path(["/usr/bin", "/bin"]))?;
    let gateway = Gateway::builder()
        .store(Arc::clone(&store))
        .driver("local".parse()?, Arc::new(local))
        .middleware_for_all(Arc::new(Validation::default()))
        .build()
        .await?;
    let workers = gateway.start_workers(WorkerConfig::default())?;
    let broker = EventBroker::new(gateway.clone(), Arc::clone(&store) as _);

    title("Functions: `reserve` leads to `bill`; `ship` needs a carrier, which is not there yet");
    let carrier = folder.path().join("carrier");
    create(&gateway, &cx, "reserve", reserve()?).await?;
    create(&gateway, &cx, "bill", shell("read order; echo \"billed: $order\"")?).await?;
    create(&gateway, &cx, "ship", ship(&carrier)?).await?;

    title("Subscriptions: an order that was created is reserved and shipped, each independently of the other");
    let orders = Filters::new(vec![Filter::exact("type", "com.example.order.created")?])?;
    let spec = SubscriptionSpec::to_all(vec!["reserve".parse()?, "ship".parse()?])
        .with_filters(orders)
        .with_on_failure(FailurePolicy::OfFunction);
    broker.create(&cx, "new-orders".parse()?, spec).await?;

    title("An order comes in");
    let published = broker.publish(&cx, &order("1001", &json!({"order": "1001", "total": 12}))?).await?;
    for triggered in &published.triggered {
        show(&*ended(&gateway, &cx, triggered.invocation).await?);
    }
    let again = broker.publish(&cx, &order("1001", &json!({"order": "1001", "total": 12}))?).await?;
    let repeated = again.triggered.iter().all(|triggered| triggered.is_repeated);
    println!("the same event once more: {}", if repeated { "nothing is executed twice" } else { "executed twice" });

    title("An order comes in that `reserve` does not take");
    let published = broker.publish(&cx, &order("1002", &json!({"order": 1002}))?).await?;
    for triggered in &published.triggered {
        show(&*ended(&gateway, &cx, triggered.invocation).await?);
    }

    title("What has died, with the reason");
    let dead = gateway.dead_letters(&cx, &DeadLetterFilter::default(), &PageRequest::default()).await?;
    for letter in &dead.items {
        let (name, failure) = (&letter.submission.key.name, letter.progress.failure.as_ref());
        println!("{name}: {}", failure.map_or("no reason", |failure| failure.message.as_str()));
        for violation in failure.iter().flat_map(|failure| &failure.violations) {
            println!("  {violation}");
        }
    }

    title("The carrier is there now: what could not be shipped is executed again");
    std::fs::write(&carrier, "parcel service").map_err(problem)?;
    for letter in dead.items.iter().filter(|letter| letter.submission.key.name.as_str() == "ship") {
        let receipt = gateway.redrive(&cx, letter.submission.id).await?;
        show(&*ended(&gateway, &cx, receipt.id).await?);
    }

    title("All executions, newest first");
    workers.drain().await;
    for record in gateway.executions(&cx, &RecordFilter::default(), &PageRequest::default()).await?.items {
        show(&record);
    }
    gateway.shutdown(Duration::from_secs(5)).await
}

fn order(id: &str, data: &Value) -> Result<Event> {
    Event::builder()
        .id(id)
        .source("/shop/orders")
        .event_type("com.example.order.created")
        .data("application/json", data.to_string())
        .build()
}

/// Takes orders with a number as text and a total, and hands them on to `bill`.
fn reserve() -> Result<FunctionSpec> {
    let mut policy = AsyncPolicy::default();
    policy.on_success = Some(Destination::Function("bill".parse()?));
    let mut spec = shell("cat")?.with_input_schema(json!({
        "type": "object",
        "properties": {"order": {"type": "string"}, "total": {"type": "number"}},
        "required": ["order", "total"],
    }));
    spec.async_policy = Some(Box::new(policy));
    Ok(spec)
}

/// Fails as long as a file is not there.
fn ship(carrier: &Path) -> Result<FunctionSpec> {
    let script =
        "[ -e \"$CARRIER\" ] || { echo 'there is no carrier' >&2; exit 1; }; echo \"shipped by $(cat \"$CARRIER\")\"";
    Ok(shell(script)?.with_env("CARRIER", carrier.to_string_lossy()))
}

fn shell(script: &str) -> Result<FunctionSpec> {
    let run = ProcessWorkload::new("sh").with_args(["-c", script]);
    Ok(FunctionSpec::new("local".parse()?, run).with_env("PATH", "/usr/bin:/bin"))
}

async fn create(gateway: &Gateway, cx: &CallContext, name: &str, spec: FunctionSpec) -> Result<()> {
    let function = gateway.create(cx, &name.parse()?, spec).await?;
    println!("{name} is {}", function.status.phase);
    Ok(())
}

async fn ended(
    gateway: &Gateway,
    cx: &CallContext,
    id: function_gateway::InvocationId,
) -> Result<Arc<InvocationRecord>> {
    match gateway.wait(cx, id, PATIENCE).await? {
        Waited::Ended(record) | Waited::NotYet(record) => Ok(record),
        _ => gateway.execution(cx, id).await,
    }
}

fn show(record: &InvocationRecord) {
    let lineage = record.lineage.as_deref();
    let event = lineage.and_then(|lineage| lineage.event.as_ref());
    let because = match (lineage.and_then(|lineage| lineage.redrive_of), event) {
        (Some(_), _) => "redriven".to_owned(),
        (None, Some(event)) => format!("event {}", event.id),
        (None, None) => "called".to_owned(),
    };
    let failure = record.failure.as_ref().map(|failure| format!(": {}", failure.message)).unwrap_or_default();
    println!("{:<8} {:<10} {because}{failure}", record.key.name, record.state);
}

fn problem(error: std::io::Error) -> function_gateway::Error {
    function_gateway::Error::new(function_gateway::ErrorKind::Internal, "a file could not be written")
        .with_source(error)
}

fn title(title: &str) {
    println!("\n{title}");
}

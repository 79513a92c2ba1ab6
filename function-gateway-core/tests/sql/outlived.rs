//! What holds of invocations that were accepted, whatever happens to the gateways, to their network and to the clocks.

pub(crate) mod clocks;
pub(crate) mod killed;
pub(crate) mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use function_gateway_core::store::sql::SqlStore;
use function_gateway_core::{
    AsyncPolicy, BoxStream, CallContext, Clock, CustomWorkload, DeadLetterFilter, DeployRequest, Deployment,
    DeploymentStatus, DriverCapabilities, DriverInfo, DriverRef, DriverRequest, EngineInfo, FaasDriver,
    FunctionExecutor as _, FunctionManager as _, FunctionSpec, Gateway, GatewayConfig, GatewayId, InvocationId,
    InvocationState, InvokeRequest, InvokeResponse, ListScope, PageRequest, Principal, Protocol, QueueManager as _,
    RecordFilter, Result, Revision, StatisticsQuery, SubmitOptions, Timestamp, Violation, WorkerConfig,
};
use http::StatusCode;
use tokio_util::sync::CancellationToken;

use crate::common::tenant;
use crate::crashes::seed;

/// How long it may take until something happens that has to.
const PATIENCE: Duration = Duration::from_secs(60);

fn cx() -> CallContext {
    CallContext::new(Principal::new(tenant(), "ada".parse().unwrap()))
}

/// An engine that has everything, and writes down each execution before it does anything else.
#[derive(Debug)]
struct Counting {
    info: DriverInfo,
    file: PathBuf,
}

impl Counting {
    fn new(file: &Path) -> Self {
        let info = DriverInfo::new("counting", "counts its executions", vec![Protocol::exec()]);
        Self { info, file: file.to_owned() }
    }
}

#[async_trait]
impl FaasDriver for Counting {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn capabilities(&self, _: &Protocol) -> DriverCapabilities {
        DriverCapabilities::NONE.with(|capabilities| capabilities.custom = true)
    }

    async fn probe(&self, _: &CallContext) -> Result<EngineInfo> {
        Ok(EngineInfo::new("counting", "1"))
    }

    async fn check(&self, _: &CallContext, _: &FunctionSpec) -> Result<Vec<Violation>> {
        Ok(Vec::new())
    }

    fn reference(&self, gateway: &GatewayId, revision: &Revision) -> DriverRef {
        DriverRef::plain(gateway, revision)
    }

    async fn deploy(&self, _: &CallContext, _: &DriverRef, _: DeployRequest) -> Result<DeploymentStatus> {
        Ok(DeploymentStatus::ready())
    }

    async fn status(&self, _: &CallContext, _: &DriverRef) -> Result<DeploymentStatus> {
        Ok(DeploymentStatus::ready())
    }

    async fn remove(&self, _: &CallContext, _: &DriverRef) -> Result<()> {
        Ok(())
    }

    fn list<'a>(&'a self, _: &'a CallContext, _: ListScope) -> BoxStream<'a, Result<Deployment>> {
        Box::pin(futures_util::stream::empty())
    }

    async fn invoke(&self, cx: &CallContext, _: &DriverRef, request: DriverRequest) -> Result<InvokeResponse> {
        let line = format!("{} {}\n", request.revision.key.name, cx.invocation_id().unwrap());
        // One write to a file that is only appended to is not mixed with another one.
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&self.file).unwrap();
        file.write_all(line.as_bytes()).unwrap();
        // sleep: the time that the function takes, in which its gateway may be killed.
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..5000))).await;
        Ok(InvokeResponse::new(StatusCode::OK, "done"))
    }

    async fn shutdown(&self, _: Instant) -> Result<()> {
        Ok(())
    }
}

async fn gateway(store: &SqlStore, file: &Path, clock: Arc<dyn Clock>) -> Gateway {
    let mut config = GatewayConfig::default();
    config.default_total_timeout = Duration::from_millis(500);
    config.queue.lease_margin = Duration::from_millis(500);
    Gateway::builder()
        .config(config)
        .store(Arc::new(store.clone()))
        .clock(clock)
        .driver("counting".parse().unwrap(), Arc::new(Counting::new(file)))
        .without_reconciler()
        .build()
        .await
        .unwrap()
}

/// Creates what is invoked: `once`, which must not be repeated, and `again`, which may be.
async fn create_functions(gateway: &Gateway) {
    for (name, idempotent) in [("once", false), ("again", true)] {
        let run = CustomWorkload::new("counting", serde_json::Value::Null);
        let mut spec = FunctionSpec::new("counting".parse().unwrap(), run);
        let mut policy = AsyncPolicy::default();
        policy.max_attempts = Some(20);
        (policy.initial_backoff, policy.max_backoff) =
            (Some(Duration::from_millis(10)), Some(Duration::from_millis(50)));
        (spec.idempotent, spec.async_policy) = (idempotent, Some(Box::new(policy)));
        gateway.create(&cx(), &name.parse().unwrap(), spec).await.unwrap();
    }
}

/// Submits one invocation of a function after the other until it is told to stop, and gives what was accepted away.
async fn submit_until(gateway: Gateway, number: usize, accepted: Sender<InvocationId>, stop: CancellationToken) {
    let function = if number.is_multiple_of(2) { "once" } else { "again" }.parse().unwrap();
    while !stop.is_cancelled() {
        let submitted = gateway.submit(&cx(), &function, InvokeRequest::new("x"), SubmitOptions::default()).await;
        match submitted {
            Ok(receipt) => accepted.send(receipt.id).unwrap(),
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }
}

/// Waits until so many more are accepted.
fn accept(accepted: &mut BTreeSet<InvocationId>, receiver: &Receiver<InvocationId>, count: usize) {
    for _ in 0..count {
        accepted.insert(receiver.recv_timeout(PATIENCE).expect("invocations are accepted"));
    }
}

/// Works off what is in the queue.
async fn empty(gateway: &Gateway) {
    let workers = gateway.start_workers(WorkerConfig::default().with_poll_interval(Duration::from_millis(50))).unwrap();
    let emptied = async {
        while gateway.queue_depth(&cx(), None).await.unwrap().open > 0 {
            // sleep: between two looks at what others change.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(2 * PATIENCE, emptied).await.expect("the queue is worked off");
    workers.drain().await;
}

/// What was accepted has one end and a reason for it, and what must not be repeated was executed once at most.
async fn check(gateway: &Gateway, accepted: &BTreeSet<InvocationId>, file: &Path) {
    let seed = seed();
    let mut ends = BTreeMap::new();
    let mut page = PageRequest::first(PageRequest::MAX_LIMIT);
    loop {
        let records = gateway.executions(&cx(), &RecordFilter::default(), &page).await.unwrap();
        for record in records.items {
            assert!(record.state.is_final() && record.finished_at.is_some(), "{record:?}; seed {seed}");
            assert_eq!(record.failure.is_some(), record.state != InvocationState::Succeeded, "{record:?}; seed {seed}");
            let name = record.key.name.as_str().to_owned();
            assert!(ends.insert(record.id, (name, record.state)).is_none(), "one end each; seed {seed}");
        }
        match records.next {
            Some(next) => page = page.after(next),
            None => break,
        }
    }
    let lost: Vec<_> = accepted.iter().filter(|id| !ends.contains_key(id)).collect();
    assert!(lost.is_empty(), "{} of {} accepted are lost; seed {seed}", lost.len(), accepted.len());
    let query = StatisticsQuery::new(Timestamp::from_micros(0), Timestamp::now().plus(Duration::from_secs(24 * 3600)));
    let counted = gateway.statistics(&cx(), &query).await.unwrap().count;
    assert_eq!(usize::try_from(counted).unwrap(), ends.len(), "figures count each end once; seed {seed}");

    let mut executed: BTreeMap<InvocationId, usize> = BTreeMap::new();
    for line in std::fs::read_to_string(file).unwrap().lines() {
        let (name, id) = line.split_once(' ').unwrap();
        let id = id.parse().unwrap();
        let times = executed.entry(id).or_default();
        *times += 1;
        assert!(name == "again" || *times == 1, "{id} must be executed once at most; seed {seed}");
    }
    let (mut lost, mut dead) = (0, 0);
    for (id, (name, state)) in &ends {
        match state {
            InvocationState::Succeeded => assert!(executed.contains_key(id), "{id} has a reason; seed {seed}"),
            InvocationState::Lost => {
                assert_eq!(name, "once", "what may be repeated is repeated; seed {seed}");
                lost += 1;
            }
            other => panic!("{id} ended as {other}; seed {seed}"),
        }
    }
    let mut page = PageRequest::first(PageRequest::MAX_LIMIT);
    loop {
        let letters = gateway.dead_letters(&cx(), &DeadLetterFilter::default(), &page).await.unwrap();
        dead += letters.items.len();
        match letters.next {
            Some(next) => page = page.after(next),
            None => break,
        }
    }
    assert_eq!(dead, lost, "what enters equals what ended; seed {seed}");
    let depth = gateway.queue_depth(&cx(), None).await.unwrap();
    assert_eq!((depth.open, usize::try_from(depth.dead).unwrap()), (0, dead), "seed {seed}");
}

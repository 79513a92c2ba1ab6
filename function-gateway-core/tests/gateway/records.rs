//! What is kept of executions.

use std::sync::Arc;
use std::time::Duration;

use function_gateway_core::{
    Durability, Error, ErrorClass, ErrorKind, FunctionExecutor as _, FunctionExecutorExt as _, FunctionManager as _,
    FunctionSpec, GatewayConfig, InvocationId, InvocationRecord, InvocationState, InvocationStore, InvokeRequest,
    KeepPayloads, Page, PageRequest, Precondition, RecordFilter, RecordMode, Result, Retention, Statistics,
    StatisticsQuery, TenantId, TimedPhase, Timestamp,
};
use function_gateway_testkit::{Gate, Handler, Op};
use futures_util::StreamExt as _;
use http::StatusCode;

use crate::common::{Setup, cx, function, gateway, gateway_with, name, soon, spec};

async fn records(setup: &Setup) -> Vec<Arc<InvocationRecord>> {
    setup.gateway.executions(&cx(), &RecordFilter::default(), &PageRequest::default()).await.unwrap().items
}

async fn invoke(setup: &Setup, body: &'static str) -> Result<()> {
    let answer = setup.gateway.invoke(&cx(), &function("f"), InvokeRequest::new(body)).await?;
    answer.body.collect(1000).await.map(drop)
}

fn keeping(payloads: KeepPayloads) -> FunctionSpec {
    let mut spec = spec();
    spec.record.payloads = Some(payloads);
    spec
}

fn mode(mode: RecordMode) -> FunctionSpec {
    let mut spec = spec();
    spec.record.mode = Some(mode);
    spec
}

#[tokio::test]
async fn an_execution_is_recorded_and_outlives_its_function() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), spec()).await.unwrap();
    invoke(&setup, "hello").await.unwrap();
    setup.gateway.delete(&cx(), &name("f"), Precondition::none()).await.unwrap();
    let records = records(&setup).await;
    let record = &records[0];
    assert_eq!(record.state, InvocationState::Succeeded);
    assert_eq!((record.key.name.as_str(), record.caller.as_str()), ("f", "ada"));
    assert_eq!((record.request_bytes, record.response_bytes, record.attempts), (Some(5), 5, 1));
    assert!(record.created_at <= record.started_at.unwrap());
    assert!(record.started_at.unwrap() <= record.finished_at.unwrap());
    for phase in [TimedPhase::Driver, TimedPhase::Total] {
        assert!(record.timings.get(phase).is_some(), "{phase:?}");
    }
    assert_eq!((&record.payload, &record.result), (&None, &None));
    let by_id = setup.gateway.execution(&cx(), record.id).await.unwrap();
    assert_eq!(&by_id, record);
    let absent = setup.gateway.execution(&cx(), InvocationId::generate()).await.unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_record_says_whose_failure_it_was() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), spec()).await.unwrap();
    let engine_down = Error::new(ErrorKind::Unavailable, "down").with_detail("10.0.0.1");
    for (handler, class, code) in [
        (Handler::failing("bad luck"), ErrorClass::Function, "function_failed"),
        (Handler::status(StatusCode::CONFLICT, ""), ErrorClass::Rejected, "function_rejected"),
        (Handler::error(engine_down), ErrorClass::Engine, "unavailable"),
    ] {
        setup.engine.on_invoke(handler);
        let _ = invoke(&setup, "").await;
        let records = records(&setup).await;
        let failure = records[0].failure.as_ref().unwrap();
        assert_eq!((failure.class, failure.code.as_str()), (class, code));
        assert!(!failure.message.contains("10.0.0.1"));
    }
}

#[tokio::test]
async fn payloads_are_kept_by_policy_up_to_a_size() {
    for (payloads, of_success, of_failure) in [
        (KeepPayloads::Never, false, false),
        (KeepPayloads::OnFailure, false, true),
        (KeepPayloads::Always, true, true),
    ] {
        let setup = gateway().await;
        setup.gateway.create(&cx(), &name("f"), keeping(payloads)).await.unwrap();
        invoke(&setup, "hello").await.unwrap();
        setup.engine.on_invoke(Handler::failing("no"));
        invoke(&setup, "hello").await.unwrap();
        let records = records(&setup).await;
        let kept: Vec<_> = records.iter().map(|record| record.payload.is_some() && record.result.is_some()).collect();
        assert_eq!(kept, [of_failure, of_success], "{payloads:?}");
    }
    let setup = gateway().await;
    let mut small = keeping(KeepPayloads::Always);
    small.record.max_payload_bytes = Some(2);
    setup.gateway.create(&cx(), &name("f"), small).await.unwrap();
    invoke(&setup, "hello").await.unwrap();
    let records = records(&setup).await;
    let payload = records[0].payload.as_ref().unwrap();
    assert_eq!((&payload.bytes[..], payload.len, payload.truncated), (&b"he"[..], Some(5), true));
}

#[tokio::test]
async fn nothing_is_recorded_where_recording_is_off() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), mode(RecordMode::Off)).await.unwrap();
    invoke(&setup, "").await.unwrap();
    assert!(records(&setup).await.is_empty());
}

#[tokio::test]
async fn a_durable_execution_is_committed_as_running_before_it_is_sent() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), mode(RecordMode::Durable)).await.unwrap();
    let gate = Gate::new();
    setup.engine.on_invoke(Handler::echo().gated(&gate));
    let gateway = setup.gateway.clone();
    let call =
        tokio::spawn(async move { gateway.invoke(&cx(), &function("f"), InvokeRequest::new("")).await.map(drop) });
    soon(gate.reached_by(1)).await;
    assert_eq!(records(&setup).await[0].state, InvocationState::Running);
    gate.open();
    soon(call).await.unwrap().unwrap();
    assert_eq!(records(&setup).await[0].state, InvocationState::Succeeded);
}

/// A store for records that fails on demand.
#[derive(Debug)]
struct Broken {
    begin: bool,
    finish: bool,
}

#[async_trait::async_trait]
impl InvocationStore for Broken {
    async fn begin(&self, _: Arc<InvocationRecord>) -> Result<()> {
        if self.begin { Err(Error::new(ErrorKind::Store, "disk full")) } else { Ok(()) }
    }
    async fn finish(&self, _: Arc<InvocationRecord>, _: Durability) -> Result<()> {
        if self.finish { Err(Error::new(ErrorKind::Store, "disk full")) } else { Ok(()) }
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    async fn get(&self, _: &TenantId, _: InvocationId) -> Result<Option<Arc<InvocationRecord>>> {
        Ok(None)
    }
    async fn list(&self, _: &TenantId, _: &RecordFilter, _: &PageRequest) -> Result<Page<Arc<InvocationRecord>>> {
        Ok(Page::new(Vec::new(), None))
    }
    async fn statistics(&self, _: &TenantId, _: &StatisticsQuery) -> Result<Statistics> {
        Ok(Statistics::default())
    }
    async fn retain(&self, _: &Retention, _: Timestamp, _: usize) -> Result<u64> {
        Ok(0)
    }
}

#[tokio::test]
async fn what_can_not_be_recorded_durably_is_not_sent_or_not_answered() {
    let broken = |begin, finish| async move {
        let store = Arc::new(Broken { begin, finish });
        gateway_with(|builder| builder.invocation_store(store)).await
    };
    let unsent = broken(true, false).await;
    unsent.gateway.create(&cx(), &name("f"), mode(RecordMode::Durable)).await.unwrap();
    assert_eq!(invoke(&unsent, "").await.unwrap_err().kind(), ErrorKind::Store);
    assert_eq!(unsent.engine.count(Op::Invoke), 0);

    let unanswered = broken(false, true).await;
    unanswered.gateway.create(&cx(), &name("f"), mode(RecordMode::Durable)).await.unwrap();
    let error = invoke(&unanswered, "").await.unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::Store, function_gateway_core::Delivery::Executed));

    let mut streamed = mode(RecordMode::Durable);
    streamed.streaming = true;
    unanswered.gateway.create(&cx(), &name("s"), streamed).await.unwrap();
    let gate = Gate::new();
    gate.open();
    unanswered.engine.on_invoke(Handler::stream(["a"], &gate));
    let answer = unanswered.gateway.invoke(&cx(), &function("s"), InvokeRequest::new("")).await.unwrap();
    assert_eq!(answer.body.collect(10).await.unwrap_err().kind(), ErrorKind::Store);

    // Without the promise of durability the answer is worth more than its record.
    unanswered.gateway.create(&cx(), &name("b"), mode(RecordMode::Buffered)).await.unwrap();
    unanswered.engine.on_invoke(Handler::echo());
    unanswered.gateway.invoke(&cx(), &function("b"), InvokeRequest::new("")).await.unwrap();
}

#[tokio::test]
async fn statistics_count_states_classes_and_phases() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), spec()).await.unwrap();
    for _ in 0..3 {
        invoke(&setup, "").await.unwrap();
    }
    setup.engine.on_invoke(Handler::failing("no"));
    invoke(&setup, "").await.unwrap();
    let now = Timestamp::now();
    let hour = Duration::from_secs(3600);
    let query = StatisticsQuery::new(now.minus(hour), now.plus(hour)).of(name("f"));
    let statistics = setup.gateway.statistics(&cx(), &query).await.unwrap();
    assert_eq!(statistics.count, 4);
    assert!((statistics.error_rate() - 0.25).abs() < f64::EPSILON);
    assert!((statistics.class_rate(ErrorClass::Function) - 0.25).abs() < f64::EPSILON);
    let total = statistics.phases[&TimedPhase::Total];
    assert_eq!(total.count, 4);
    assert!(total.p50 <= total.p95 && total.p95 <= total.p99);
    let other = StatisticsQuery::new(now.minus(hour), now.plus(hour)).of(name("g"));
    assert_eq!(setup.gateway.statistics(&cx(), &other).await.unwrap().count, 0);
}

#[tokio::test]
async fn retention_deletes_by_count_and_statistics_stay() {
    let setup = gateway_with(|builder| {
        let mut config = GatewayConfig::default();
        config.retention = Retention::keep_all().with_max_per_function(2);
        builder.config(config)
    })
    .await;
    setup.gateway.create(&cx(), &name("f"), spec()).await.unwrap();
    for _ in 0..5 {
        invoke(&setup, "").await.unwrap();
    }
    assert_eq!(setup.gateway.apply_retention().await.unwrap(), 3);
    assert_eq!(records(&setup).await.len(), 2);
    let now = Timestamp::now();
    let query = StatisticsQuery::new(now.minus(Duration::from_secs(3600)), now.plus(Duration::from_secs(3600)));
    assert_eq!(setup.gateway.statistics(&cx(), &query).await.unwrap().count, 5);
}

#[tokio::test]
async fn a_used_id_is_not_executed_twice_where_records_are_durable() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), mode(RecordMode::Durable)).await.unwrap();
    let mine = cx().with_invocation_id(InvocationId::generate());
    setup.gateway.invoke(&mine, &function("f"), InvokeRequest::new("")).await.unwrap();
    let error = setup.gateway.invoke(&mine, &function("f"), InvokeRequest::new("")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(setup.engine.count(Op::Invoke), 1);
    assert_eq!(records(&setup).await[0].state, InvocationState::Succeeded);
}

/// A store for records whose writes wait at a gate, as a disk does.
#[derive(Debug)]
struct Slow {
    inner: Arc<function_gateway_core::store::memory::MemoryStore>,
    gate: Gate,
}

#[async_trait::async_trait]
impl InvocationStore for Slow {
    async fn begin(&self, record: Arc<InvocationRecord>) -> Result<()> {
        self.inner.begin(record).await
    }
    async fn finish(&self, record: Arc<InvocationRecord>, durability: Durability) -> Result<()> {
        self.gate.pass().await;
        self.inner.finish(record, durability).await
    }
    async fn flush(&self) -> Result<()> {
        InvocationStore::flush(&*self.inner).await
    }
    async fn get(&self, tenant: &TenantId, id: InvocationId) -> Result<Option<Arc<InvocationRecord>>> {
        InvocationStore::get(&*self.inner, tenant, id).await
    }
    async fn list(
        &self,
        tenant: &TenantId,
        filter: &RecordFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<InvocationRecord>>> {
        InvocationStore::list(&*self.inner, tenant, filter, page).await
    }
    async fn statistics(&self, tenant: &TenantId, query: &StatisticsQuery) -> Result<Statistics> {
        self.inner.statistics(tenant, query).await
    }
    async fn retain(&self, retention: &Retention, now: Timestamp, limit: usize) -> Result<u64> {
        self.inner.retain(retention, now, limit).await
    }
}

#[tokio::test]
async fn a_record_is_kept_although_its_caller_goes_away_while_it_is_written() {
    for mode in [mode(RecordMode::Buffered), mode(RecordMode::Durable)] {
        let gate = Gate::new();
        let slow = Arc::new(Slow { inner: crate::common::store(), gate: gate.clone() });
        let setup = gateway_with(|builder| builder.invocation_store(slow)).await;
        setup.gateway.create(&cx(), &name("f"), mode).await.unwrap();
        let gateway = setup.gateway.clone();
        let call = tokio::spawn(async move { gateway.invoke(&cx(), &function("f"), InvokeRequest::new("")).await });
        soon(gate.reached_by(1)).await;
        call.abort();
        let _ = call.await;
        gate.open();
        setup.gateway.shutdown(Duration::from_secs(60)).await.unwrap();
        let records = records(&setup).await;
        assert_eq!((records.len(), records[0].state), (1, InvocationState::Succeeded));
    }
}

#[tokio::test]
async fn records_are_exported_as_json_lines() {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), spec()).await.unwrap();
    for _ in 0..300 {
        invoke(&setup, "x").await.unwrap();
    }
    let (cx, filter) = (cx(), RecordFilter::default());
    let chunks: Vec<_> = setup.gateway.export_executions(&cx, &filter).map(Result::unwrap).collect().await;
    assert!(chunks.len() > 1 && chunks.iter().all(|chunk| chunk.ends_with(b"\n")));
    let text = String::from_utf8(chunks.concat()).unwrap();
    let exported: Vec<InvocationRecord> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let page = PageRequest::first(PageRequest::MAX_LIMIT);
    let listed = setup.gateway.executions(&cx, &filter, &page).await.unwrap().items;
    assert_eq!(exported.len(), 300);
    assert!(exported.iter().zip(&listed).all(|(exported, listed)| *exported == **listed));
}

//! The scripted driver does what its script says.

#![expect(clippy::unwrap_used, reason = "test code fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use function_gateway_core::{
    Body, CallContext, CustomWorkload, Delivery, DeployRequest, DeploymentState, DriverRef, DriverRequest, Error,
    ErrorKind, FaasDriver as _, FunctionId, FunctionKey, FunctionSpec, GatewayId, Generation, InvokeResponse, LogSink,
    Principal, Result, Revision, RevisionReason, Secret, SecretVariable, Timestamp,
};
use function_gateway_testkit::scripted::{DRIVER_HEADER, GENERATION_HEADER};
use function_gateway_testkit::{Engine, Fault, Gate, Handler, Op, Readiness, ScriptedDriver};
use futures_util::{StreamExt as _, poll};

fn cx() -> CallContext {
    CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()))
}

/// A function with its generations, on one driver.
struct Function {
    driver: ScriptedDriver,
    gateway: GatewayId,
    id: FunctionId,
}

impl Function {
    fn on(driver: ScriptedDriver) -> Self {
        Self { driver, gateway: GatewayId::generate(), id: FunctionId::generate() }
    }

    fn revision(&self, generation: u64) -> Arc<Revision> {
        let key = FunctionKey::new("acme".parse().unwrap(), "resize".parse().unwrap());
        let run = CustomWorkload::new("scripted", serde_json::Value::Null);
        let spec = FunctionSpec::new("scripted".parse().unwrap(), run);
        let created = (Timestamp::from_micros(0), "ada".parse().unwrap());
        let generation = Generation::new(generation).unwrap();
        Arc::new(Revision::new(key, self.id, generation, spec, created, RevisionReason::Created))
    }

    fn target(&self, generation: u64) -> DriverRef {
        self.driver.reference(&self.gateway, &self.revision(generation))
    }

    async fn deploy(&self, generation: u64) -> Result<DeploymentState> {
        let request = DeployRequest::new(self.gateway.clone(), self.revision(generation));
        Ok(self.driver.deploy(&cx(), &self.target(generation), request).await?.state)
    }

    async fn state(&self, generation: u64) -> DeploymentState {
        self.driver.status(&cx(), &self.target(generation)).await.unwrap().state
    }

    async fn invoke(&self, generation: u64) -> Result<InvokeResponse> {
        let request = DriverRequest::new(self.revision(generation), "ping", LogSink::detached(1024));
        self.driver.invoke(&cx(), &self.target(generation), request).await
    }
}

fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "no route")
}

#[tokio::test]
async fn readiness_follows_the_script() {
    use DeploymentState::{Failed, Progressing, Ready};

    let function = Function::on(ScriptedDriver::new());
    let engine = function.driver.engine();
    let gate = Gate::new();
    for (generation, readiness, expected) in [
        (1, Readiness::Immediate, [Ready, Ready, Ready]),
        (2, Readiness::AfterPolls(2), [Progressing, Progressing, Ready]),
        (3, Readiness::Never, [Progressing, Progressing, Progressing]),
        (4, Readiness::Failed("out of memory".to_owned()), [Failed, Failed, Failed]),
        (5, Readiness::Flapping, [Progressing, Ready, Progressing]),
        (6, Readiness::Gated(gate.clone()), [Progressing, Progressing, Progressing]),
    ] {
        engine.set_readiness(readiness);
        let seen = [
            function.deploy(generation).await.unwrap(),
            function.state(generation).await,
            function.state(generation).await,
        ];
        assert_eq!(seen, expected, "generation {generation}");
    }
    gate.open();
    assert_eq!(function.state(6).await, Ready);
    assert!(engine.set_readiness_of(&function.target(3), Readiness::Immediate));
    assert_eq!(function.state(3).await, Ready);
}

#[tokio::test]
async fn what_is_not_ready_takes_no_calls() {
    let function = Function::on(ScriptedDriver::new());
    function.driver.engine().set_readiness(Readiness::Never);
    function.deploy(1).await.unwrap();
    let error = function.invoke(1).await.unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::NotReady, Delivery::NotSent));
}

#[tokio::test]
async fn faults_strike_in_order_and_as_often_as_they_are_told() {
    let function = Function::on(ScriptedDriver::new());
    let engine = function.driver.engine();
    engine.inject(Op::Deploy, Fault::error(unavailable()).times(2));
    engine.inject(Op::Deploy, Fault::error(unavailable()).times(1).after_effect());
    for held in [0, 0, 1] {
        assert!(function.deploy(1).await.is_err());
        assert_eq!(engine.targets().len(), held);
    }
    function.deploy(1).await.unwrap();

    engine.inject(Op::Remove, Fault::error(unavailable()));
    for _ in 0..3 {
        assert!(function.driver.remove(&cx(), &function.target(1)).await.is_err());
    }
    engine.heal(Op::Remove);
    function.driver.remove(&cx(), &function.target(1)).await.unwrap();
    assert!(engine.targets().is_empty());
    assert_eq!((engine.count(Op::Deploy), engine.count(Op::Remove)), (4, 4));
}

#[tokio::test]
async fn every_operation_can_hang_until_it_is_released() {
    let function = Function::on(ScriptedDriver::new());
    let gate = function.driver.engine().hang(Op::Deploy);
    let mut deploy = std::pin::pin!(function.deploy(1));
    assert!(poll!(deploy.as_mut()).is_pending());
    gate.reached_by(1).await;
    gate.release(1);
    deploy.await.unwrap();
    assert_eq!(gate.waiting(), 0);
}

#[tokio::test]
async fn answers_tell_driver_and_generation() {
    let function = Function::on(ScriptedDriver::new().with_name("blue"));
    function.deploy(2).await.unwrap();
    let response = function.invoke(2).await.unwrap();
    assert_eq!(response.headers[DRIVER_HEADER], "blue");
    assert_eq!(response.headers[GENERATION_HEADER], "2");
    let entry = function.driver.engine().journal().pop().unwrap();
    assert_eq!((&*entry.driver, entry.op), ("blue", Op::Invoke));
    assert_eq!(entry.target, Some(function.target(2)));
    assert_eq!(entry.generation, Generation::new(2));
}

#[tokio::test]
async fn the_engine_outlives_its_drivers() {
    let engine = Engine::new();
    let function = Function::on(ScriptedDriver::on(&engine));
    function.deploy(1).await.unwrap();
    let Function { driver, gateway, id } = function;
    drop(driver);
    let function = Function { driver: ScriptedDriver::on(&engine), gateway, id };
    assert_eq!(function.state(1).await, DeploymentState::Ready);
    function.invoke(1).await.unwrap();
}

#[tokio::test]
async fn an_engine_that_loses_its_state_breaks_calls_off() {
    let function = Function::on(ScriptedDriver::new());
    let engine = function.driver.engine();
    engine.on_invoke(Handler::hang());
    function.deploy(1).await.unwrap();
    let lose = async {
        engine.until(|engine| engine.in_flight() == 1).await;
        engine.lose_all();
    };
    let (broken, ()) = tokio::join!(function.invoke(1), lose);
    assert_eq!(broken.unwrap_err().kind(), ErrorKind::FunctionBroken);
    assert_eq!(function.state(1).await, DeploymentState::Missing);
    assert_eq!(function.invoke(1).await.unwrap_err().kind(), ErrorKind::NotDeployed);
    assert_eq!((engine.in_flight(), engine.dropped()), (0, 0));
}

#[tokio::test]
async fn calls_are_counted_until_their_answer_ends() {
    let function = Function::on(ScriptedDriver::new());
    let (engine, gate) = (function.driver.engine(), Gate::new());
    engine.on_invoke(Handler::stream(["one", "two"], &gate));
    function.deploy(1).await.unwrap();
    gate.release(1);
    let mut body = function.invoke(1).await.unwrap().body.into_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "one");
    assert!(poll!(body.next()).is_pending());
    assert_eq!(engine.in_flight_of(&function.target(1)), 1);
    gate.open();
    assert_eq!(body.next().await.unwrap().unwrap(), "two");
    assert!(body.next().await.is_none());
    assert_eq!((engine.in_flight(), engine.dropped(), engine.peak_in_flight()), (0, 0, 1));

    drop(function.invoke(1).await.unwrap());
    assert_eq!(engine.dropped(), 1);
    engine.on_invoke(Handler::hang());
    {
        let mut call = std::pin::pin!(function.invoke(1));
        assert!(poll!(call.as_mut()).is_pending());
        assert_eq!(engine.in_flight(), 1);
    }
    assert_eq!((engine.in_flight(), engine.dropped()), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_function_can_take_its_time_and_wait() {
    let function = Function::on(ScriptedDriver::new());
    let (engine, gate) = (function.driver.engine(), Gate::new());
    function.deploy(1).await.unwrap();
    let before = tokio::time::Instant::now();
    engine.on_invoke(Handler::echo().after(Duration::from_secs(60)));
    function.invoke(1).await.unwrap();
    assert_eq!(before.elapsed(), Duration::from_secs(60));

    engine.on_invoke(Handler::echo().gated(&gate));
    let mut call = std::pin::pin!(function.invoke(1));
    assert!(poll!(call.as_mut()).is_pending());
    gate.open();
    call.await.unwrap();
}

#[tokio::test]
async fn secrets_of_deployment_and_call_reach_the_function() {
    let driver = ScriptedDriver::new();
    driver.engine().on_invoke(Handler::secrets());
    let function = Function::on(driver);
    let secret = |name: &str, value: &str| SecretVariable::new(name, Secret::new(value));
    let deploy = DeployRequest::new(function.gateway.clone(), function.revision(1))
        .with_secret(secret("A", "at deployment"))
        .with_secret(secret("B", "at deployment"));
    function.driver.deploy(&cx(), &function.target(1), deploy).await.unwrap();
    let mut request = DriverRequest::new(function.revision(1), Body::empty(), LogSink::detached(0));
    request.secrets.push(secret("B", "at the call"));
    let response = function.driver.invoke(&cx(), &function.target(1), request).await.unwrap();
    let got: serde_json::Value = response.json(1024).await.unwrap();
    assert_eq!(got, serde_json::json!({"A": "at deployment", "B": "at the call"}));
}

#[tokio::test]
async fn a_stream_breaks_off_after_its_chunks() {
    let (function, open) = (Function::on(ScriptedDriver::new()), Gate::new());
    open.open();
    function.driver.engine().on_invoke(Handler::break_off(["one"], &open));
    function.deploy(1).await.unwrap();
    let chunks: Vec<Result<Bytes>> = function.invoke(1).await.unwrap().body.into_stream().collect().await;
    assert_eq!(chunks.len(), 2);
    assert_eq!(chunks[1].as_ref().unwrap_err().kind(), ErrorKind::FunctionBroken);
}

#[tokio::test]
async fn peaks_tell_how_many_stood_side_by_side() {
    let function = Function::on(ScriptedDriver::new());
    let engine = function.driver.engine();
    for generation in 1..=3 {
        function.deploy(generation).await.unwrap();
        if generation > 1 {
            function.driver.remove(&cx(), &function.target(generation - 1)).await.unwrap();
        }
    }
    assert_eq!((engine.peak_deployed(), engine.peak_deployed_of(function.id), engine.targets().len()), (2, 2, 1));
    engine.clear_journal();
    assert_eq!((engine.peak_deployed(), engine.journal().len()), (1, 0));
}

#[tokio::test]
async fn a_target_that_names_another_revision_is_refused() {
    let function = Function::on(ScriptedDriver::new());
    let request = DeployRequest::new(function.gateway.clone(), function.revision(1));
    let error = function.driver.deploy(&cx(), &function.target(2), request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

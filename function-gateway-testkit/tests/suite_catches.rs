//! The conformance suite fails a driver that breaks a promise: one broken driver for each kind of promise.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "test code fails by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use function_gateway_core::{
    Body, BoxStream, CallContext, CustomWorkload, Delivery, DeployRequest, Deployment, DeploymentState,
    DeploymentStatus, DriverCapabilities, DriverInfo, DriverRef, DriverRequest, EngineInfo, Error, ErrorKind,
    FaasDriver, FunctionSpec, GatewayId, Generation, InvokeResponse, ListScope, Outcome, Protocol, Result, Revision,
    ScaleRequest, Violation,
};
use function_gateway_testkit::driver::{CaseResult, cases, run};
use function_gateway_testkit::{Behaviour, Bench, DriverHarness, Engine, Gate, Handler, ScriptedDriver};
use futures_util::{StreamExt as _, stream};
use http::StatusCode;

/// Which promise the driver breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    OneReferenceForAllGenerations,
    MissingIsAnError,
    RemoveOfMissingFails,
    DeployTakesTheOthersAway,
    ListsEverything,
    NotDeployedLooksSent,
    PollsTheBodyOfWhatIsNotThere,
    ChangesThePayload,
    AnswersTooMuch,
    FailureIsAnError,
    BuffersAnswers,
    HidesThatAStreamBroke,
    GoesOnWhenDropped,
    ShowsSecrets,
    OffersWhatItDoesNotDeclare,
    CallsAfterShutdown,
    NamesNoEngine,
}

#[derive(Debug)]
struct BrokenDriver {
    inner: ScriptedDriver,
    broken: Broken,
    seen: std::sync::Mutex<Vec<String>>,
}

impl BrokenDriver {
    fn is(&self, broken: Broken) -> bool {
        self.broken == broken
    }
}

fn sent() -> Error {
    Error::new(ErrorKind::NotDeployed, "not there").with_delivery(Delivery::Unknown)
}

#[async_trait]
impl FaasDriver for BrokenDriver {
    fn info(&self) -> &DriverInfo {
        self.inner.info()
    }

    fn capabilities(&self, protocol: &Protocol) -> DriverCapabilities {
        let undeclared = self.is(Broken::OffersWhatItDoesNotDeclare);
        self.inner.capabilities(protocol).with(|caps| caps.scale &= !undeclared)
    }

    async fn probe(&self, cx: &CallContext) -> Result<EngineInfo> {
        let probed = self.inner.probe(cx).await?;
        Ok(if self.is(Broken::NamesNoEngine) { EngineInfo::new("", "") } else { probed })
    }

    async fn check(&self, cx: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>> {
        self.inner.check(cx, spec).await
    }

    fn reference(&self, gateway: &GatewayId, revision: &Revision) -> DriverRef {
        let mut revision = revision.clone();
        if self.is(Broken::OneReferenceForAllGenerations) {
            revision.generation = Generation::FIRST;
        }
        self.inner.reference(gateway, &revision)
    }

    async fn deploy(&self, cx: &CallContext, target: &DriverRef, request: DeployRequest) -> Result<DeploymentStatus> {
        if self.is(Broken::DeployTakesTheOthersAway) {
            for other in self.inner.engine().targets().iter().filter(|other| *other != target) {
                self.inner.engine().lose(other);
            }
        }
        self.inner.deploy(cx, target, request).await
    }

    async fn status(&self, cx: &CallContext, target: &DriverRef) -> Result<DeploymentStatus> {
        let status = self.inner.status(cx, target).await?;
        if self.is(Broken::MissingIsAnError) && status.state == DeploymentState::Missing {
            return Err(Error::new(ErrorKind::NotDeployed, "not there"));
        }
        Ok(status)
    }

    async fn remove(&self, cx: &CallContext, target: &DriverRef) -> Result<()> {
        if self.is(Broken::RemoveOfMissingFails) && !self.inner.engine().targets().contains(target) {
            return Err(Error::new(ErrorKind::NotFound, "not there"));
        }
        self.inner.remove(cx, target).await
    }

    fn list<'a>(&'a self, cx: &'a CallContext, scope: ListScope) -> BoxStream<'a, Result<Deployment>> {
        if !self.is(Broken::ListsEverything) {
            return self.inner.list(cx, scope);
        }
        let engine = self.inner.engine();
        let all = engine.targets().into_iter().filter_map(|target| {
            let revision = engine.revision(&target)?;
            Some(Ok(Deployment::new(target, revision.function, revision.generation)))
        });
        Box::pin(stream::iter(all.collect::<Vec<_>>()))
    }

    async fn invoke(&self, cx: &CallContext, target: &DriverRef, mut request: DriverRequest) -> Result<InvokeResponse> {
        let there = self.inner.engine().targets().contains(target);
        let secrets = request.secrets.iter().map(|secret| secret.secret.expose_str().unwrap().to_owned());
        if self.is(Broken::ShowsSecrets) {
            self.seen.lock().unwrap().extend(secrets);
        }
        match self.broken {
            Broken::NotDeployedLooksSent if !there => return Err(sent()),
            Broken::PollsTheBodyOfWhatIsNotThere => {
                request.body = std::mem::take(&mut request.body).collect(u64::MAX).await?.into();
            }
            Broken::ChangesThePayload => {
                let text = std::mem::take(&mut request.body).collect(u64::MAX).await?;
                request.body = String::from_utf8_lossy(&text).trim_end().to_owned().into();
            }
            Broken::AnswersTooMuch => request.max_response_bytes = u64::MAX,
            Broken::CallsAfterShutdown => {
                return Ok(InvokeResponse::new(StatusCode::OK, request.body));
            }
            Broken::GoesOnWhenDropped => {
                // Work that nobody owns: it outlives the call.
                let driver = ScriptedDriver::on(self.inner.engine());
                let (cx, target) = (cx.clone(), target.clone());
                return tokio::spawn(async move { driver.invoke(&cx, &target, request).await }).await.unwrap();
            }
            _ => {}
        }
        let mut response = self.inner.invoke(cx, target, request).await?;
        match self.broken {
            Broken::FailureIsAnError if matches!(response.outcome, Outcome::Failed(_)) => {
                return Err(Error::new(ErrorKind::Engine, "the function failed"));
            }
            Broken::BuffersAnswers => response.body = response.body.collect(u64::MAX).await?.into(),
            Broken::HidesThatAStreamBroke => {
                let whole = response.body.into_stream().take_while(|chunk| std::future::ready(chunk.is_ok()));
                response.body = Body::from_stream(whole);
            }
            _ => {}
        }
        Ok(response)
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.inner.shutdown(deadline).await
    }

    async fn scale(&self, cx: &CallContext, target: &DriverRef, request: ScaleRequest) -> Result<()> {
        self.inner.scale(cx, target, request).await
    }
}

struct Harness {
    engine: Engine,
    broken: Broken,
}

#[async_trait]
impl DriverHarness for Harness {
    async fn driver(&self) -> Arc<dyn FaasDriver> {
        // The log is read elsewhere, and `logs` is not forwarded.
        let inner = ScriptedDriver::on(&self.engine).with_capabilities(|caps| caps.logs = false);
        Arc::new(BrokenDriver { inner, broken: self.broken, seen: std::sync::Mutex::default() })
    }

    fn function(&self, behaviour: &Behaviour) -> Option<FunctionSpec> {
        let open = Gate::new();
        open.open();
        self.engine.on_invoke(match behaviour {
            Behaviour::Echo => Handler::echo(),
            Behaviour::EchoVariable(_) => Handler::new(async |_, request: DriverRequest| {
                let secret = request.secrets.first().unwrap().secret.expose().to_vec();
                Ok(InvokeResponse::new(StatusCode::OK, secret))
            }),
            Behaviour::Fail => Handler::failing("it went wrong"),
            Behaviour::Hang => Handler::hang(),
            Behaviour::Large(bytes) => Handler::status(StatusCode::OK, vec![b'x'; *bytes as usize]),
            Behaviour::BreakOff => Handler::break_off(["first"], &open),
            Behaviour::Stall => Handler::new(async |_, _| {
                let first = stream::iter([Ok(Bytes::from("first"))]);
                Ok(InvokeResponse::new(StatusCode::OK, Body::from_stream(first.chain(stream::pending()))))
            }),
            _ => return None,
        });
        let run = CustomWorkload::new("scripted", serde_json::Value::Null);
        Some(FunctionSpec::new("scripted".parse().unwrap(), run))
    }

    async fn running(&self, target: &DriverRef) -> Option<usize> {
        Some(self.engine.in_flight_of(target))
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(500)
    }
}

/// The case passes with a driver that keeps its promises, and fails with the one that breaks this one.
fn catches(broken: Broken, case: &impl AsyncFn(&Bench) -> CaseResult) {
    let outcome = |broken| {
        let harness = async move { Harness { engine: Engine::new(), broken } };
        let strict = async |bench: &Bench| {
            let result = case(bench).await;
            assert_eq!(result, Ok(()), "the case was skipped, and so proves nothing");
            result
        };
        catch_unwind(AssertUnwindSafe(|| run("case", harness, strict))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
        })
    };
    outcome(Broken::Nothing).expect("the case fails a driver that keeps its promises");
    let message = outcome(broken).expect_err("the case passes a driver that breaks its promise");
    assert!(!message.contains("proves nothing"), "{message}");
}

macro_rules! catches {
    ($($test:ident: $broken:ident by $case:ident;)+) => {
        $(
            #[test]
            fn $test() {
                catches(Broken::$broken, &cases::$case);
            }
        )+
    };
}

catches! {
    one_reference_for_all: OneReferenceForAllGenerations by references_are_pure_and_distinct;
    missing_as_an_error: MissingIsAnError by a_target_is_missing_before_deploy_and_after_remove;
    removing_what_is_missing: RemoveOfMissingFails by remove_can_be_repeated;
    removing_what_never_was: RemoveOfMissingFails by remove_of_what_never_was_is_ok;
    replacing_a_generation: DeployTakesTheOthersAway by generations_stand_side_by_side;
    foreign_gateways: ListsEverything by a_list_holds_only_what_belongs_to_its_gateway;
    foreign_functions: ListsEverything by a_list_holds_only_what_belongs_to_its_function;
    wrong_delivery: NotDeployedLooksSent by a_call_to_what_was_removed_is_not_sent;
    polled_bodies: PollsTheBodyOfWhatIsNotThere by a_call_to_what_was_never_deployed_is_not_sent;
    changed_payloads: ChangesThePayload by echo_answers_with_the_payload;
    large_answers: AnswersTooMuch by an_answer_over_the_limit_is_refused;
    failures_as_errors: FailureIsAnError by a_failing_function_is_an_answer;
    buffered_answers: BuffersAnswers by a_streamed_answer_arrives_as_it_comes;
    broken_streams: HidesThatAStreamBroke by a_stream_that_breaks_off_says_so;
    calls_that_go_on: GoesOnWhenDropped by dropping_a_call_stops_the_function;
    deadlines_that_do_not_stop: GoesOnWhenDropped by a_deadline_stops_the_function;
    shown_secrets: ShowsSecrets by secrets_are_never_shown;
    undeclared_operations: OffersWhatItDoesNotDeclare by scaling_works_or_is_refused;
    calls_after_shutdown: CallsAfterShutdown by no_call_is_taken_after_shutdown;
    nameless_engines: NamesNoEngine by probe_names_the_engine;
}

//! The cases: each is what one sentence of [`FaasDriver`](function_gateway_core::FaasDriver)'s documentation promises.
//!
//! A case fails by panicking, and says [`Skipped`] where it can't be run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use function_gateway_core::{
    Body, Delivery, DeploymentState, DriverCapabilities, DriverRequest, Error, ErrorClass, ErrorKind, FunctionId,
    GatewayId, Generation, InvokeResponse, ListScope, LogQuery, Outcome, Protocol, Result, ScaleRequest, Scope, Secret,
    SecretBinding, SecretVariable, TraceParent,
};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, poll, stream};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use tokio::sync::mpsc;

use super::bench::{ExpectOk as _, Target};
use super::{Behaviour, Bench, CaseResult, Skipped};

const VARIABLE: &str = "CONFORMANCE_VALUE";
const LIMIT: u64 = 16 * 1024 * 1024;

/// `info`: a kind that is a DNS label, and at least one protocol.
pub async fn info_names_a_kind_and_its_protocols(bench: &Bench) -> CaseResult {
    let info = bench.driver.info();
    assert!(Protocol::new(info.kind).is_ok(), "the kind {:?} is no DNS label", info.kind);
    assert!(!info.summary.is_empty(), "the driver does not say what it runs functions on");
    assert!(!info.protocols.is_empty(), "the driver speaks no protocol");
    let distinct: BTreeSet<_> = info.protocols.iter().collect();
    assert_eq!(distinct.len(), info.protocols.len(), "a protocol is named twice");
    Ok(())
}

/// `capabilities`: none for a protocol that the driver does not speak.
pub async fn an_unknown_protocol_has_no_capabilities(bench: &Bench) -> CaseResult {
    let unknown = Protocol::new("spoken-by-nobody").unwrap_or_else(|error| panic!("{error}"));
    let capabilities = bench.driver.capabilities(&unknown);
    assert_eq!(capabilities, DriverCapabilities::NONE, "capabilities for a protocol that nobody speaks");
    Ok(())
}

/// `probe`: names the engine and its version.
pub async fn probe_names_the_engine(bench: &Bench) -> CaseResult {
    let engine = bench.driver.probe(&bench.cx()).await.expect_ok("probe");
    assert!(!engine.name.is_empty() && !engine.version.is_empty(), "the probe tells nothing: {engine:?}");
    Ok(())
}

/// `reference`: the same for the same arguments in every process, another one for any other.
pub async fn references_are_pure_and_distinct(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Echo)?;
    let mut seen = BTreeSet::new();
    let second = bench.another_process().await.ok();
    for gateway in [GatewayId::generate(), GatewayId::generate()] {
        for function in [FunctionId::generate(), FunctionId::generate()] {
            for generation in [Generation::FIRST, Generation::FIRST.next()] {
                let revision = bench.revision(function, generation, &spec);
                let reference = bench.driver.reference(&gateway, &revision);
                for driver in [Some(&bench.driver), second.as_ref()].into_iter().flatten() {
                    let again = driver.reference(&gateway, &revision);
                    assert_eq!(reference, again, "two references for the same arguments");
                }
                assert!(seen.insert(reference), "one reference for different arguments");
            }
        }
    }
    Ok(())
}

/// `check`: an empty list means that `deploy` takes it; nothing is changed by asking.
pub async fn check_accepts_what_deploy_takes(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Echo)?;
    let violations = bench.driver.check(&bench.cx(), &spec).await.expect_ok("check");
    assert!(violations.is_empty(), "`check` refuses what the harness gave: {violations:?}");
    let listed = bench.list(&*bench.driver, ListScope::All(bench.gateway.clone())).await;
    assert!(listed.is_empty(), "`check` deployed something: {listed:?}");
    bench.deployed(&spec).await;
    Ok(())
}

/// `check`: names the place of what it refuses, and gives a reason.
pub async fn check_names_what_it_refuses(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Invalid)?;
    let violations = bench.driver.check(&bench.cx(), &spec).await.expect_ok("check");
    assert!(!violations.is_empty(), "`check` accepts a specification that the harness calls invalid");
    let value = serde_json::to_value(&spec).unwrap_or_else(|error| panic!("the specification is no JSON: {error}"));
    for violation in &violations {
        assert!(!violation.reason.is_empty(), "a violation without a reason: {violation:?}");
        let parent = violation.pointer.rsplit_once('/').map_or("", |(parent, _)| parent);
        assert!(value.pointer(parent).is_some(), "a violation at no place of the specification: {violation:?}");
    }
    Ok(())
}

/// `status`: missing is a state, not an error.
pub async fn a_target_is_missing_before_deploy_and_after_remove(bench: &Bench) -> CaseResult {
    let target = bench.target(&bench.spec(&Behaviour::Echo)?);
    let driver = &*bench.driver;
    assert_eq!(bench.state(driver, &target).await, DeploymentState::Missing, "before `deploy`");
    bench.deploy(&target).await;
    bench.remove(driver, &target).await;
    let listed = bench.list(driver, ListScope::All(bench.gateway.clone())).await;
    assert!(listed.is_empty(), "what was removed is still listed: {listed:?}");
    Ok(())
}

/// `deploy`: called again it changes nothing and says how far it is.
pub async fn deploy_can_be_repeated(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Echo)?).await;
    bench.deploy(&target).await;
    let listed = bench.list(&*bench.driver, ListScope::All(bench.gateway.clone())).await;
    assert_eq!(listed.len(), 1, "one target, deployed twice: {listed:?}");
    bench.serves(&target).await;
    Ok(())
}

/// `deploy`: may be called at any time, so also twice at a time. One of the two may be asked to come again.
pub async fn deploy_can_run_twice_at_a_time(bench: &Bench) -> CaseResult {
    let target = bench.target(&bench.spec(&Behaviour::Echo)?);
    let driver = &*bench.driver;
    let (one, two) = tokio::join!(bench.begin_deploy(driver, &target), bench.begin_deploy(driver, &target));
    assert!(one.is_ok() || two.is_ok(), "neither deploys: {one:?} {two:?}");
    for error in [one, two].into_iter().filter_map(Result::err) {
        assert!(error.is_transient(), "an error that does not ask to try again: {error:?}");
    }
    bench.deploy(&target).await;
    let listed = bench.list(driver, ListScope::All(bench.gateway.clone())).await;
    assert_eq!(listed.len(), 1, "one target, deployed twice at a time: {listed:?}");
    bench.serves(&target).await;
    Ok(())
}

/// `deploy`: may be called at any time, so also after `remove`.
pub async fn what_was_removed_can_be_deployed_again(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Echo)?).await;
    bench.remove(&*bench.driver, &target).await;
    bench.deploy(&target).await;
    bench.serves(&target).await;
    Ok(())
}

/// Cancel safety: a dropped `deploy` leaves the engine so that calling again converges.
pub async fn a_dropped_deploy_converges(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Echo)?;
    for polls in 1..=4 {
        let target = bench.target(&spec);
        poll_and_drop(polls, bench.begin_deploy(&*bench.driver, &target)).await;
        bench.deploy(&target).await;
        bench.serves(&target).await;
        let function = ListScope::Function(bench.gateway.clone(), target.revision.function);
        let listed = bench.list(&*bench.driver, function).await;
        assert_eq!(listed.len(), 1, "a `deploy` dropped after {polls} polls left more than one: {listed:?}");
    }
    Ok(())
}

/// Cancel safety: a dropped `remove` leaves the engine so that calling again converges.
pub async fn a_dropped_remove_converges(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Echo)?;
    for polls in 1..=4 {
        let target = bench.deployed(&spec).await;
        poll_and_drop(polls, bench.driver.remove(&bench.cx(), &target.reference)).await;
        bench.remove(&*bench.driver, &target).await;
    }
    Ok(())
}

/// `remove`: a target that is missing is `Ok`.
pub async fn remove_can_be_repeated(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Echo)?).await;
    bench.remove(&*bench.driver, &target).await;
    bench.driver.remove(&bench.cx(), &target.reference).await.expect_ok("the second remove");
    Ok(())
}

/// `remove`: a target that never was is `Ok` too.
pub async fn remove_of_what_never_was_is_ok(bench: &Bench) -> CaseResult {
    let target = bench.target(&bench.spec(&Behaviour::Echo)?);
    bench.driver.remove(&bench.cx(), &target.reference).await.expect_ok("remove of what never was");
    Ok(())
}

/// Generations stand side by side: deploying or removing one does not touch another.
pub async fn generations_stand_side_by_side(bench: &Bench) -> CaseResult {
    let driver = &*bench.driver;
    let first = bench.deployed(&bench.spec(&Behaviour::Echo)?).await;
    let second = bench.next(&first);
    bench.begin_deploy(driver, &second).await.expect_ok("deploy");
    assert_eq!(bench.state(driver, &first).await, DeploymentState::Ready, "the first, while the second comes");
    bench.serves(&first).await;
    bench.ready(driver, &second).await;
    bench.serves(&first).await;
    bench.serves(&second).await;
    let listed = bench.list(driver, ListScope::Function(bench.gateway.clone(), first.revision.function)).await;
    let generations: BTreeSet<_> = listed.iter().map(|deployment| deployment.generation).collect();
    assert_eq!(generations, BTreeSet::from([first.revision.generation, second.revision.generation]));

    bench.remove(driver, &first).await;
    assert_eq!(bench.state(driver, &second).await, DeploymentState::Ready, "the second, after the first went");
    bench.serves(&second).await;
    refuses_unsent(bench, &first).await;
    Ok(())
}

/// `status`: ready is what the engine says of this generation, never a guess.
pub async fn what_cannot_become_ready_never_is(bench: &Bench) -> CaseResult {
    let target = bench.target(&bench.spec(&Behaviour::Unready)?);
    match bench.begin_deploy(&*bench.driver, &target).await {
        Ok(()) => {
            for _ in 0..3 {
                let status = bench.driver.status(&bench.cx(), &target.reference).await.expect_ok("status");
                let plausible = matches!(status.state, DeploymentState::Progressing | DeploymentState::Failed);
                assert!(plausible, "what can't become ready is {status:?}");
                assert!(!status.message.is_empty(), "nobody is told why it is not ready");
            }
        }
        Err(error) => assert!(!error.is_transient(), "`deploy` asks to try again what can't work: {error:?}"),
    }
    Ok(())
}

/// `list`: never lists what belongs to another gateway.
pub async fn a_list_holds_only_what_belongs_to_its_gateway(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Echo)?;
    let mut expected = BTreeSet::new();
    for _ in 0..2 {
        expected.insert(bench.deployed(&spec).await.reference);
    }
    let foreign = bench.foreign_target(&spec);
    bench.deploy(&foreign).await;
    let driver = &*bench.driver;
    let listed = bench.list(driver, ListScope::All(bench.gateway.clone())).await;
    let listed: BTreeSet<_> = listed.into_iter().map(|deployment| deployment.target).collect();
    assert_eq!(listed, expected, "what the gateway holds");
    let listed = bench.list(driver, ListScope::All(foreign.gateway.clone())).await;
    let listed: Vec<_> = listed.into_iter().map(|deployment| deployment.target).collect();
    assert_eq!(listed, [foreign.reference], "what the other gateway holds");
    Ok(())
}

/// `list`: by function, every generation of it and nothing else, under the gateway that it belongs to.
pub async fn a_list_holds_only_what_belongs_to_its_function(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Echo)?;
    let (first, _other) = (bench.deployed(&spec).await, bench.deployed(&spec).await);
    let second = bench.next(&first);
    bench.deploy(&second).await;
    let function = first.revision.function;
    let listed = bench.list(&*bench.driver, ListScope::Function(bench.gateway.clone(), function)).await;
    assert!(listed.iter().all(|deployment| deployment.function == function), "another function: {listed:?}");
    let listed: BTreeSet<_> = listed.into_iter().map(|item| (item.target, item.generation)).collect();
    let expected = [&first, &second].map(|target| (target.reference.clone(), target.revision.generation));
    assert_eq!(listed, BTreeSet::from(expected), "what the function has");
    let foreign = bench.list(&*bench.driver, ListScope::Function(GatewayId::generate(), function)).await;
    assert!(foreign.is_empty(), "another gateway's function of the same id: {foreign:?}");
    Ok(())
}

/// `scope`: what one process deploys serves all, or itself only.
pub async fn another_process_sees_what_the_scope_says(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Echo)?;
    let other = bench.another_process().await?;
    let target = bench.deployed(&spec).await;
    let listed = bench.list(&*other, ListScope::All(bench.gateway.clone())).await;
    let call = other.invoke(&bench.cx(), &target.reference, target.request("ping")).await;
    if bench.capabilities(&spec).scope == Scope::Shared {
        assert_eq!(bench.state(&*other, &target).await, DeploymentState::Ready, "in another process");
        assert_eq!(listed.len(), 1, "the other process lists {listed:?}");
        let answer = call.expect_ok("invoke in another process").body.collect(LIMIT).await;
        assert_eq!(&answer.expect_ok("reading the answer")[..], b"ping");
    } else {
        assert_eq!(bench.state(&*other, &target).await, DeploymentState::Missing, "in another process");
        assert!(listed.is_empty(), "the other process lists {listed:?}");
        assert_unsent(&failure(call, "a call in a process that has not deployed"));
    }
    Ok(())
}

/// Operations can be repeated by any process.
pub async fn another_process_can_deploy_and_remove_again(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Echo)?;
    let other = bench.another_process().await?;
    let target = bench.deployed(&spec).await;
    bench.deploy_by(&*other, &target).await;
    bench.serves(&target).await;
    bench.remove(&*other, &target).await;
    bench.remove(&*bench.driver, &target).await;
    refuses_unsent(bench, &target).await;
    Ok(())
}

/// `invoke`: the payload reaches the function, and its answer comes back, byte for byte.
pub async fn echo_answers_with_the_payload(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Echo)?).await;
    for payload in [&b"{\"a\": 1}"[..], b"no newline", b"a newline\n", b"\0\xff\r\n\xc3\x28"] {
        let answer = bench.answer(&target, Bytes::from_static(payload)).await;
        assert_eq!(answer, Bytes::from_static(payload));
    }
    Ok(())
}

/// `invoke`: no payload is a payload.
pub async fn an_empty_payload_passes(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Echo)?).await;
    assert!(bench.answer(&target, Body::empty()).await.is_empty());
    Ok(())
}

/// `invoke`: a payload and an answer that fit no single buffer pass.
pub async fn a_payload_of_1_mib_passes(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Echo)?).await;
    let payload: Bytes = (0..=u8::MAX).cycle().take(1024 * 1024).collect();
    let answer = bench.answer(&target, payload.clone()).await;
    assert_eq!(answer.len(), payload.len(), "the length of the answer");
    assert!(answer == payload, "the answer differs from the payload");
    Ok(())
}

/// `invoke`: content types pass, where the protocol has them.
pub async fn content_types_pass_both_ways(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::EchoTyped)?).await;
    let content_type = HeaderValue::from_static("application/vnd.conformance+json");
    let mut request = target.request("{}");
    request.headers.insert(CONTENT_TYPE, content_type.clone());
    let response = bench.invoke(&target, request).await.expect_ok("invoke");
    assert_eq!(response.headers.get(CONTENT_TYPE), Some(&content_type));
    Ok(())
}

/// `invoke`: method, path and query reach the function as they came.
pub async fn method_path_and_query_reach_the_function(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Tell)?).await;
    let mut request = target.request(Body::empty());
    request.method = Method::PUT;
    request.path = "/a%20b/c".into();
    request.query = Some("x=1&y=%2F".to_owned());
    let told = told(bench, bench.cx(), &target, request).await;
    let expected = [("method", "PUT"), ("path", "/a%20b/c"), ("query", "x=1&y=%2F")];
    for (name, value) in expected {
        assert_eq!(text_of(&told, name)?, value, "{name}");
    }
    Ok(())
}

/// `invoke`: the function is told the id, the trace, the attempt and the deadline of its call.
pub async fn the_call_is_told_to_the_function(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Tell)?).await;
    let cx = bench.cx();
    let mut request = target.request(Body::empty());
    // What a caller sends under the gateway's own names does not reach the function.
    let forged = HeaderValue::from_static("forged");
    request.headers.insert(function_gateway_core::call_header::INVOCATION_ID, forged);
    let told = told(bench, cx.clone(), &target, request).await;
    let id = cx.invocation_id().map(|id| id.to_string());
    assert_eq!(Some(text_of(&told, "invocation_id")?), id);
    let trace: Option<TraceParent> = text_of(&told, "traceparent")?.parse().ok();
    assert_eq!(trace.map(TraceParent::trace_id), cx.trace().map(TraceParent::trace_id));
    assert_eq!(text_of(&told, "attempt")?, "1");
    let deadline: i64 = text_of(&told, "deadline_ms")?.parse().unwrap_or_default();
    let now = function_gateway_core::Timestamp::now().as_micros() / 1000;
    let left = cx.deadline().map_or(Duration::ZERO, |deadline| deadline.remaining()).as_millis();
    let expected = now + i64::try_from(left).unwrap_or_default();
    // Both are read off two clocks at two moments.
    assert!((deadline - expected).abs() < 5_000, "the deadline {deadline} is not near {expected}");
    Ok(())
}

/// `env`: the environment of the specification is that of the function.
pub async fn environment_reaches_the_function(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::EchoVariable(VARIABLE.to_owned()))?;
    bench.need(&spec, "env", |caps| caps.env)?;
    let target = bench.deployed(&spec.with_env(VARIABLE, "a = 'b' $HOME")).await;
    assert_eq!(&bench.answer(&target, Body::empty()).await[..], b"a = 'b' $HOME");
    Ok(())
}

/// `invoke`: a function's own error is an answer, with the outcome failed.
pub async fn a_failing_function_is_an_answer(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Fail)?).await;
    let response = bench.invoke(&target, target.request("x")).await.expect_ok("invoke of a function that fails");
    assert_eq!(response.outcome.class(), Some(ErrorClass::Function), "{response:?}");
    assert!(response.status.is_server_error(), "the status of a failure: {}", response.status);
    if let Outcome::Failed(failure) = &response.outcome {
        assert!(!failure.message.is_empty(), "a failure without a message");
    }
    Ok(())
}

/// `invoke`: a function's refusal is an answer, with the outcome rejected.
pub async fn a_refusing_function_is_an_answer(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Reject)?).await;
    let response = bench.invoke(&target, target.request("x")).await.expect_ok("invoke of a function that refuses");
    assert_eq!(response.outcome, Outcome::Rejected);
    assert!(response.status.is_client_error(), "the status of a refusal: {}", response.status);
    Ok(())
}

const LARGE: u64 = 256 * 1024;

/// `max_response_bytes`: as much as that passes.
pub async fn an_answer_at_the_limit_passes(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Large(LARGE))?).await;
    let mut request = target.request(Body::empty());
    request.max_response_bytes = LARGE;
    let response = bench.invoke(&target, request).await.expect_ok("invoke");
    let answer = response.body.collect(LIMIT).await.expect_ok("reading an answer at its limit");
    assert_eq!(answer.len() as u64, LARGE);
    Ok(())
}

/// `max_response_bytes`: more than that is `OutputTooLarge`, of the call or of the answer's body.
pub async fn an_answer_over_the_limit_is_refused(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Large(LARGE))?).await;
    let mut request = target.request(Body::empty());
    request.max_response_bytes = LARGE - 1;
    let answered = match bench.invoke(&target, request).await {
        Ok(response) => response.body.collect(LIMIT).await.map(drop),
        Err(error) => Err(error),
    };
    let error = failure(answered, "an answer over the limit");
    assert_eq!(error.kind(), ErrorKind::OutputTooLarge, "{error:?}");
    assert_eq!(error.delivery(), Delivery::Executed, "{error:?}");
    Ok(())
}

/// `invoke`: calls at the same time get their own answers.
pub async fn sixteen_calls_at_a_time_keep_apart(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Echo)?).await;
    let payloads: Vec<String> = (0..16).map(|number| format!("payload {number}").repeat(1000)).collect();
    let answers = join_all(payloads.iter().map(|payload| bench.answer(&target, payload.clone()))).await;
    for (payload, answer) in payloads.iter().zip(answers) {
        assert!(answer == payload.as_bytes(), "a call got another call's answer, or part of its own");
    }
    Ok(())
}

/// `invoke`: a call that never ends holds up neither another call nor another operation.
pub async fn a_call_that_hangs_holds_up_no_other(bench: &Bench) -> CaseResult {
    let hanging = bench.deployed(&bench.spec(&Behaviour::Hang)?).await;
    let spec = bench.spec(&Behaviour::Echo)?;
    let others = async {
        let target = bench.deployed(&spec).await;
        bench.serves(&target).await;
        bench.remove(&*bench.driver, &target).await;
    };
    tokio::select! {
        biased;
        answer = bench.invoke(&hanging, hanging.request("x")) => panic!("a call that hangs has ended: {answer:?}"),
        () = others => {}
    }
    Ok(())
}

/// `invoke`: what is not there is `NotDeployed`, not sent, and its body was not touched.
pub async fn a_call_to_what_was_never_deployed_is_not_sent(bench: &Bench) -> CaseResult {
    let target = bench.target(&bench.spec(&Behaviour::Echo)?);
    refuses_unsent(bench, &target).await;
    Ok(())
}

/// `invoke`: what is no longer there is `NotDeployed`, not sent, and its body was not touched.
pub async fn a_call_to_what_was_removed_is_not_sent(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Echo)?).await;
    bench.serves(&target).await;
    bench.remove(&*bench.driver, &target).await;
    refuses_unsent(bench, &target).await;
    Ok(())
}

/// `secrets_at_deploy`: a secret of the deployment reaches the function.
pub async fn secrets_at_deployment_reach_the_function(bench: &Bench) -> CaseResult {
    let mut target = secret_target(bench)?;
    bench.need(&target.revision.spec, "secrets_at_deploy", |caps| caps.secrets_at_deploy)?;
    target.secrets.push(SecretVariable::new(VARIABLE, Secret::new("s3cr\"et'$x")));
    bench.deploy(&target).await;
    assert!(bench.answer(&target, Body::empty()).await == b"s3cr\"et'$x"[..], "the secret does not reach the function");
    Ok(())
}

/// `secrets_per_call`: a secret of the call reaches the function, and no other call.
pub async fn secrets_at_each_call_reach_the_function(bench: &Bench) -> CaseResult {
    let target = secret_target(bench)?;
    bench.need(&target.revision.spec, "secrets_per_call", |caps| caps.secrets_per_call)?;
    bench.deploy(&target).await;
    for value in ["s3cr\"et'$x", "rotated"] {
        let mut request = target.request(Body::empty());
        request.secrets.push(SecretVariable::new(VARIABLE, Secret::new(value)));
        let response = bench.invoke(&target, request).await.expect_ok("invoke");
        let answer = response.body.collect(LIMIT).await.expect_ok("reading the answer");
        assert!(answer == value.as_bytes(), "the secret of the call does not reach the function");
    }
    Ok(())
}

/// No credential stands in a reference, a list, a status, an error or a `Debug` output.
pub async fn secrets_are_never_shown(bench: &Bench) -> CaseResult {
    const CANARY: &str = "canary-7f3a91";
    let mut target = secret_target(bench)?;
    let capabilities = bench.capabilities(&target.revision.spec);
    let secret = SecretVariable::new(VARIABLE, Secret::new(CANARY));
    if capabilities.secrets_at_deploy {
        target.secrets.push(secret.clone());
    } else {
        bench.need(&target.revision.spec, "secrets_per_call", |caps| caps.secrets_per_call)?;
    }
    let request = || {
        let mut request = target.request(Body::empty());
        if capabilities.secrets_per_call {
            request.secrets.push(secret.clone());
        }
        request
    };
    let driver = &bench.driver;
    let mut shown = vec![target.reference.to_string()];
    bench.deploy(&target).await;
    shown.push(format!("{:?}", driver.status(&bench.cx(), &target.reference).await));
    shown.push(format!("{:?}", bench.list(&**driver, ListScope::All(bench.gateway.clone())).await));
    let mut response = bench.invoke(&target, request()).await.expect_ok("invoke");
    shown.push(format!("{driver:?} {driver:#?} {response:?}"));
    let body = std::mem::take(&mut response.body).collect(LIMIT).await.expect_ok("reading the answer");
    assert!(body == CANARY.as_bytes(), "the function does not have the secret, so this proves nothing");
    let mut limited = request();
    limited.max_response_bytes = 1;
    let too_large = match bench.invoke(&target, limited).await {
        Ok(response) => response.body.collect(LIMIT).await.map(drop),
        Err(error) => Err(error),
    };
    shown.push(format!("{too_large:?} {too_large:#?}"));
    bench.remove(&**driver, &target).await;
    let gone = failure(bench.invoke(&target, request()).await, "a call to what was removed");
    shown.push(format!("{gone} {gone:?} {gone:#?} {driver:?}"));
    for text in shown {
        assert!(!text.contains(CANARY), "a secret is shown: {text}");
    }
    Ok(())
}

/// `streaming`: an answer that comes in many pieces arrives whole and in order.
pub async fn a_streamed_answer_arrives_whole(bench: &Bench) -> CaseResult {
    const LINES: u32 = 2000;
    let target = bench.deployed(&bench.streaming(&Behaviour::Lines(LINES))?).await;
    let expected: String = (0..LINES).map(|line| format!("{line}\n")).collect();
    assert!(bench.answer(&target, Body::empty()).await == expected.as_bytes(), "lines are missing or out of order");
    Ok(())
}

/// `streaming`: the start of an answer arrives before the function has ended.
pub async fn a_streamed_answer_arrives_as_it_comes(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.streaming(&Behaviour::Stall)?).await;
    let (_response, _rest) = first_of(bench, &target).await;
    Ok(())
}

/// `streaming`: a payload reaches the function as it comes: each part is answered before the next is sent.
pub async fn a_streamed_payload_arrives_as_it_comes(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.streaming(&Behaviour::StreamEcho)?).await;
    let mut call = OpenCall::start(bench, &target).await;
    for part in ["one\n", "two\n", "three\n"] {
        call.exchange(part).await;
    }
    call.end().await.expect_ok("the end of the answer");
    Ok(())
}

/// `streaming`: an answer that breaks off ends with an error, never as if it were complete.
pub async fn a_stream_that_breaks_off_says_so(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.streaming(&Behaviour::BreakOff)?).await;
    let (_, mut rest) = first_of(bench, &target).await;
    let end = loop {
        match rest.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("an answer that breaks off looks complete"),
        }
    };
    assert_eq!(end.delivery(), Delivery::Executed, "{end:?}");
    assert!(rest.next().await.is_none(), "something comes after the error that ends a stream");
    Ok(())
}

/// `cancel`: dropping a call stops the function.
pub async fn dropping_a_call_stops_the_function(bench: &Bench) -> CaseResult {
    let target = cancellable(bench, &Behaviour::Hang).await?;
    let call = bench.invoke(&target, target.request("x"));
    while_running(bench, &target, call).await;
    bench.runs(&target, 0).await;
    Ok(())
}

/// `cancel`: dropping the body of an answer stops the function.
pub async fn dropping_an_answer_stops_the_function(bench: &Bench) -> CaseResult {
    bench.streaming(&Behaviour::Stall)?;
    let target = cancellable(bench, &Behaviour::Stall).await?;
    let (response, rest) = first_of(bench, &target).await;
    bench.runs(&target, 1).await;
    drop((response, rest));
    bench.runs(&target, 0).await;
    Ok(())
}

/// `cancel`: a call that is dropped at its deadline is over, in the engine too.
pub async fn a_deadline_stops_the_function(bench: &Bench) -> CaseResult {
    let target = cancellable(bench, &Behaviour::Hang).await?;
    let deadline = function_gateway_core::Deadline::after(Duration::from_secs(1));
    let cx = bench.cx().with_deadline(deadline);
    let call = bench.driver.invoke(&cx, &target.reference, target.request("x"));
    // A call that never started would prove nothing.
    let (ended, ()) = tokio::join!(tokio::time::timeout_at(deadline.instant().into(), call), bench.runs(&target, 1));
    match ended {
        Err(_) => {}
        Ok(Err(error)) => assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error:?}"),
        Ok(Ok(response)) => panic!("a call that hangs has answered: {response:?}"),
    }
    bench.runs(&target, 0).await;
    Ok(())
}

/// `remove`: stops what still runs in the target. A call that is stopped is never a success, nor not sent.
pub async fn removing_a_target_stops_its_calls(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Hang)?;
    let target = bench.deployed(&spec).await;
    bench.need_running(&target).await?;
    let call = bench.invoke(&target, target.request("x"));
    let remove = async {
        bench.runs(&target, 1).await;
        bench.remove(&*bench.driver, &target).await;
    };
    let (stopped, ()) = tokio::join!(call, remove);
    assert_stopped(stopped).await;
    bench.runs(&target, 0).await;
    Ok(())
}

/// `invocation_logs`: what a function logs in a call is told to the call's log.
pub async fn the_log_of_a_call_is_told(bench: &Bench) -> CaseResult {
    const TEXT: &str = "a line of the log";
    let spec = bench.spec(&Behaviour::Log(TEXT.to_owned()))?;
    bench.need(&spec, "invocation_logs", |caps| caps.invocation_logs)?;
    let target = bench.deployed(&spec).await;
    let request = target.request(Body::empty());
    let logs = request.logs.clone();
    let response = bench.invoke(&target, request).await.expect_ok("invoke");
    response.body.collect(LIMIT).await.expect_ok("reading the answer");
    let told = logs.contents();
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains(TEXT), "once the answer has ended, the log of the call is {told:?}");
    Ok(())
}

/// `logs`: reads what functions logged where it is declared, and is `Unsupported` where not.
pub async fn logs_are_read_or_refused(bench: &Bench) -> CaseResult {
    const TEXT: &str = "a line of the log";
    let spec = bench.spec(&Behaviour::Log(TEXT.to_owned())).or_else(|_| bench.spec(&Behaviour::Echo))?;
    let declared = bench.capabilities(&spec).logs;
    if declared {
        bench.spec(&Behaviour::Log(TEXT.to_owned()))?;
    }
    let target = bench.deployed(&spec).await;
    bench.answer(&target, Body::empty()).await;
    if !declared {
        let (cx, query) = (bench.cx(), LogQuery::default());
        let refused = bench.driver.logs(&cx, &target.reference, query).await.map(drop);
        assert_unsupported(&failure(refused, "`logs`, which is not declared"));
        return Ok(());
    }
    bench
        .eventually("the function's log has the line", async || {
            let cx = bench.cx();
            let lines = bench.driver.logs(&cx, &target.reference, LogQuery::default()).await.expect_ok("logs");
            let lines: Vec<_> = lines.collect().await;
            lines.into_iter().any(|line| String::from_utf8_lossy(&line.expect_ok("a line").text).contains(TEXT))
        })
        .await;
    Ok(())
}

/// `scale`: sets the number of instances where it is declared, and is `Unsupported` where not.
pub async fn scaling_works_or_is_refused(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Echo)?;
    let target = bench.deployed(&spec).await;
    let scaled = bench.driver.scale(&bench.cx(), &target.reference, ScaleRequest::new(2)).await;
    if bench.capabilities(&spec).scale {
        scaled.expect_ok("scale");
        bench.ready(&*bench.driver, &target).await;
        bench.serves(&target).await;
    } else {
        assert_unsupported(&failure(scaled, "`scale`, which is not declared"));
    }
    Ok(())
}

/// `shutdown`: may be called again.
pub async fn shutdown_can_be_repeated(bench: &Bench) -> CaseResult {
    for _ in 0..2 {
        bench.driver.shutdown(soon()).await.expect_ok("shutdown");
    }
    Ok(())
}

/// `shutdown`: a call that comes after it is not sent.
pub async fn no_call_is_taken_after_shutdown(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.spec(&Behaviour::Echo)?).await;
    bench.serves(&target).await;
    bench.driver.shutdown(soon()).await.expect_ok("shutdown");
    let error = failure(bench.invoke(&target, target.request("x")).await, "a call after `shutdown`");
    assert!(matches!(error.kind(), ErrorKind::ShuttingDown | ErrorKind::NotDeployed), "{error:?}");
    assert_eq!(error.delivery(), Delivery::NotSent, "{error:?}");
    Ok(())
}

/// `shutdown`: waits for what runs.
pub async fn shutdown_lets_calls_end_in_time(bench: &Bench) -> CaseResult {
    let target = bench.deployed(&bench.streaming(&Behaviour::StreamEcho)?).await;
    let mut call = OpenCall::start(bench, &target).await;
    call.exchange("before\n").await;
    let mut shutdown = bench.driver.shutdown(Instant::now() + Duration::from_secs(600));
    assert!(poll!(shutdown.as_mut()).is_pending(), "`shutdown` does not wait for a call");
    tokio::select! {
        biased;
        ended = shutdown.as_mut() => panic!("`shutdown` does not wait for a call: {ended:?}"),
        () = call.exchange("after\n") => {}
    }
    let (ended, shutdown) = tokio::join!(call.end(), shutdown);
    ended.expect_ok("the end of a call during `shutdown`");
    shutdown.expect_ok("shutdown");
    Ok(())
}

/// `shutdown`: stops what still runs at its deadline.
pub async fn shutdown_stops_calls_at_its_deadline(bench: &Bench) -> CaseResult {
    let target = cancellable(bench, &Behaviour::Hang).await?;
    let call = bench.invoke(&target, target.request("x"));
    let shutdown = async {
        bench.runs(&target, 1).await;
        bench.driver.shutdown(soon()).await.expect_ok("shutdown");
    };
    let (stopped, ()) = tokio::join!(call, shutdown);
    assert_stopped(stopped).await;
    bench.runs(&target, 0).await;
    Ok(())
}

/// `shutdown`: what other processes share stays.
pub async fn shutdown_keeps_what_others_share(bench: &Bench) -> CaseResult {
    let spec = bench.spec(&Behaviour::Echo)?;
    bench.need(&spec, "scope: Shared", |caps| caps.scope == Scope::Shared)?;
    let other = bench.another_process().await?;
    let target = bench.deployed(&spec).await;
    bench.driver.shutdown(soon()).await.expect_ok("shutdown");
    assert_eq!(bench.state(&*other, &target).await, DeploymentState::Ready, "after another process went");
    let answer = other.invoke(&bench.cx(), &target.reference, target.request("ping")).await.expect_ok("invoke");
    assert_eq!(&answer.body.collect(LIMIT).await.expect_ok("reading the answer")[..], b"ping");
    Ok(())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(50)
}

async fn poll_and_drop(polls: usize, operation: impl Future) {
    let mut operation = std::pin::pin!(operation);
    for _ in 0..polls {
        if poll!(operation.as_mut()).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Polls a call until the engine executes it, and drops it.
async fn while_running(bench: &Bench, target: &Target, call: impl Future<Output = Result<InvokeResponse>>) {
    tokio::select! {
        biased;
        answer = call => panic!("a call that hangs has ended: {answer:?}"),
        () = bench.runs(target, 1) => {}
    }
}

/// Deploys a function whose calls can be cancelled and seen.
async fn cancellable(bench: &Bench, behaviour: &Behaviour) -> Result<Target, Skipped> {
    let mut spec = bench.spec(behaviour)?;
    bench.need(&spec, "cancel", |caps| caps.cancel)?;
    spec.streaming = *behaviour == Behaviour::Stall;
    let target = bench.deployed(&spec).await;
    bench.need_running(&target).await?;
    Ok(target)
}

fn secret_target(bench: &Bench) -> Result<Target, Skipped> {
    let spec = bench.spec(&Behaviour::EchoVariable(VARIABLE.to_owned()))?;
    let name = "conformance".parse().unwrap_or_else(|error| panic!("{error}"));
    Ok(bench.target(&spec.with_secret(SecretBinding::env(name, VARIABLE))))
}

/// Calls a streaming function, and reads its answer up to `first`.
async fn first_of(bench: &Bench, target: &Target) -> (Parts, function_gateway_core::ByteStream) {
    let mut response = bench.invoke(target, target.request(Body::empty())).await.expect_ok("invoke");
    let mut stream = std::mem::take(&mut response.body).into_stream();
    let mut read = Vec::new();
    while !read.starts_with(b"first") {
        let Some(chunk) = stream.next().await else { panic!("the answer ends before its first chunk") };
        read.extend_from_slice(&chunk.expect_ok("the first chunk"));
    }
    (Parts(response), stream)
}

/// What of an answer is not its body, kept so that only the body decides when a call ends.
struct Parts(#[expect(dead_code, reason = "held, not read")] InvokeResponse);

async fn told(
    bench: &Bench,
    cx: function_gateway_core::CallContext,
    target: &Target,
    request: DriverRequest,
) -> serde_json::Value {
    let response = bench.driver.invoke(&cx, &target.reference, request).await.expect_ok("invoke");
    response.json(LIMIT).await.expect_ok("reading what the function was told")
}

fn text_of(told: &serde_json::Value, name: &str) -> Result<String, Skipped> {
    let text = told.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
    text.ok_or_else(|| Skipped::because(format!("the protocol does not tell the function its `{name}`")))
}

fn failure<T>(result: Result<T>, what: &str) -> Error {
    match result {
        Ok(_) => panic!("{what} does not fail"),
        Err(error) => error,
    }
}

fn assert_unsent(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::NotDeployed, "{error:?}");
    assert_eq!(error.delivery(), Delivery::NotSent, "{error:?}");
}

fn assert_unsupported(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    assert_eq!(error.delivery(), Delivery::NotSent, "{error:?}");
}

async fn assert_stopped(call: Result<InvokeResponse>) {
    match call {
        Err(error) => assert_ne!(error.delivery(), Delivery::NotSent, "the function had started: {error:?}"),
        Ok(response) => {
            let outcome = response.outcome.clone();
            let read = response.body.collect(LIMIT).await;
            assert!(read.is_err() || !outcome.is_success(), "a call that was stopped looks like a success");
        }
    }
}

/// Asserts that a call to what is not there is refused as the contract says.
async fn refuses_unsent(bench: &Bench, target: &Target) {
    let polled = Arc::new(AtomicBool::new(false));
    let body = {
        let polled = Arc::clone(&polled);
        Body::from_stream(stream::once(async move {
            polled.store(true, Ordering::SeqCst);
            Ok(Bytes::from_static(b"x"))
        }))
    };
    let error = failure(bench.invoke(target, target.request(body)).await, "a call to what is not there");
    assert_unsent(&error);
    assert!(!polled.load(Ordering::SeqCst), "the body of a call that was not sent was polled");
}

/// A call whose payload is still being sent.
struct OpenCall {
    payload: mpsc::UnboundedSender<Bytes>,
    answer: function_gateway_core::ByteStream,
    _parts: Parts,
}

impl OpenCall {
    /// Starts a call with an open payload. The first part is sent at once: some protocols answer only then.
    async fn start(bench: &Bench, target: &Target) -> Self {
        let (payload, parts) = mpsc::unbounded_channel::<Bytes>();
        let body = stream::unfold(parts, |mut parts| async { parts.recv().await.map(|part| (Ok(part), parts)) });
        send(&payload, "start\n");
        let request = target.request(Body::from_stream(body));
        let mut response = bench.invoke(target, request).await.expect_ok("invoke");
        let answer = std::mem::take(&mut response.body).into_stream();
        let mut call = Self { payload, answer, _parts: Parts(response) };
        call.expect("start\n").await;
        call
    }

    /// Sends a part, and waits for it to come back.
    async fn exchange(&mut self, part: &'static str) {
        send(&self.payload, part);
        self.expect(part).await;
    }

    async fn expect(&mut self, part: &'static str) {
        let mut read = Vec::new();
        while read.len() < part.len() {
            let Some(chunk) = self.answer.next().await else { panic!("the answer ends before {part:?} has come back") };
            read.extend_from_slice(&chunk.expect_ok("a chunk of the answer"));
        }
        assert_eq!(String::from_utf8_lossy(&read), part);
    }

    /// Ends the payload, and waits for the end of the answer.
    async fn end(self) -> Result<()> {
        let Self { payload, mut answer, _parts } = self;
        drop(payload);
        match answer.next().await {
            None => Ok(()),
            Some(Err(error)) => Err(error),
            Some(Ok(chunk)) => panic!("the answer goes on after its payload: {chunk:?}"),
        }
    }
}

fn send(payload: &mpsc::UnboundedSender<Bytes>, part: &'static str) {
    // A driver that has dropped the payload answers with an error, or never: both are seen by who reads the answer.
    let _ = payload.send(Bytes::from_static(part.as_bytes()));
}

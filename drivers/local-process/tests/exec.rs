//! The protocol `exec`, with real processes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy takes helpers of tests for more"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroU32;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{
    Deployed, ENOUGH, Fifo, cx, driver, ended, forgotten, is_known, named_pipe, runs_forever, sh, spec, streaming, text,
};
use function_gateway_core::{
    Body, ByteStream, Deadline, Delivery, DeployRequest, DeploymentState, DriverCapabilities, Error, ErrorClass,
    ErrorKind, FaasDriver as _, FunctionSpec, InvocationId, ListScope, Outcome, Protocol, Retry, Scope, Secret,
    SecretVariable, TraceParent,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Method, StatusCode};
use rustix::process::{Pid, Signal};
use tokio::sync::mpsc;

/// A body whose chunks are sent one by one.
fn channel() -> (mpsc::Sender<Result<Bytes, Error>>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    let chunks = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    (sender, Body::from_stream(chunks))
}

async fn next(body: &mut ByteStream) -> Option<Result<Bytes, Error>> {
    tokio::time::timeout(Duration::from_secs(60), body.next()).await.expect("the body hangs")
}

fn failure(outcome: &Outcome) -> (&str, Option<i32>, Option<i32>) {
    match outcome {
        Outcome::Failed(failure) => (&failure.message, failure.exit_status, failure.signal),
        other => panic!("it did not fail: {other:?}"),
    }
}

mod result {
    use super::*;

    #[tokio::test]
    async fn the_payload_goes_in_and_the_result_comes_out() {
        let response = Deployed::new(spec("cat", &[])).await.call("hello").await.unwrap();
        assert_eq!((response.status, &response.outcome), (StatusCode::OK, &Outcome::Succeeded));
        assert_eq!(response.headers["content-type"], "application/octet-stream");
        assert_eq!(text(response).await, "hello");
    }

    #[tokio::test]
    async fn an_empty_payload_is_the_end_of_input() {
        assert_eq!(text(Deployed::new(spec("cat", &[])).await.call("").await.unwrap()).await, "");
    }

    #[tokio::test]
    async fn arguments_and_folder_are_the_specification_s() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let mut spec = spec("/bin/sh", &["-c", "pwd -P; printf '%s|' \"$@\"", "sh", "a b", "", "$x"]);
        if let function_gateway_core::Workload::Process(run) = &mut spec.run {
            run.working_dir = Some(path.to_str().unwrap().to_owned());
        }
        let response = Deployed::new(spec).await.call("").await.unwrap();
        assert_eq!(text(response).await, format!("{}\na b||$x|", path.display()));
    }

    #[tokio::test]
    async fn a_status_other_than_zero_is_the_function_s_failure() {
        let function = Deployed::new(sh("echo partial; echo oops >&2; exit 3")).await;
        let response = function.call("").await.unwrap();
        assert_eq!(response.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(failure(&response.outcome), ("exit status 3", Some(3), None));
        assert_eq!(text(response).await, "partial\n");
        assert_eq!(function.logs.contents(), b"oops\n");
    }

    #[tokio::test]
    async fn a_signal_is_the_function_s_failure() {
        let response = Deployed::new(sh("kill -SEGV $$")).await.call("").await.unwrap();
        assert_eq!(failure(&response.outcome), ("ended by signal 11", None, Some(11)));
        // Also the one that the driver itself sends.
        let response = Deployed::new(sh("kill -KILL $$")).await.call("").await.unwrap();
        assert_eq!(failure(&response.outcome), ("ended by signal 9", None, Some(9)));
    }

    #[tokio::test]
    async fn megabytes_pass_both_ways_at_once() {
        let payload: Vec<u8> = (0..3_000_000_u32).map(|index| (index / 7) as u8).collect();
        let response = Deployed::new(spec("cat", &[])).await.call(payload.clone()).await.unwrap();
        assert!(response.body.as_bytes().unwrap() == &payload);
    }

    #[tokio::test]
    async fn a_function_need_not_read_its_payload() {
        let response = Deployed::new(sh("echo done")).await.call(vec![7; 1 << 20]).await.unwrap();
        assert_eq!(text(response).await, "done\n");
        let (sender, endless) = channel();
        let response = Deployed::new(sh("exec <&-; echo done")).await.call(endless).await.unwrap();
        assert_eq!(text(response).await, "done\n");
        assert!(sender.is_closed());
    }

    #[tokio::test]
    async fn a_function_that_closes_its_output_is_waited_for() {
        let mut fifo = Fifo::new();
        let script = sh("exec >&- 2>&-; echo closed > \"$FIFO\"; cat > /dev/null; exit 4");
        let function = Deployed::new(script.with_env("FIFO", fifo.path().to_str().unwrap())).await;
        let (sender, body) = channel();
        let call = function.call_in_background(body);
        assert_eq!(fifo.line().await, "closed");
        sender.send(Ok(Bytes::from_static(b"still read"))).await.unwrap();
        drop(sender);
        assert_eq!(failure(&call.await.unwrap().unwrap().outcome).1, Some(4));
    }

    #[tokio::test]
    async fn a_result_up_to_the_limit_passes_and_one_over_it_kills() {
        let mut fifo = Fifo::new();
        let script = "echo $$ > \"$FIFO\"; printf 12345; while [ -n \"$ON\" ]; do printf 12345; done";
        let spec = sh(script).with_env("FIFO", fifo.path().to_str().unwrap());
        let function = Deployed::new(spec.clone()).await;
        let mut request = function.request("");
        request.max_response_bytes = 5;
        assert_eq!(text(function.send(request).await.unwrap()).await, "12345");
        fifo.line().await;

        for spec in [spec.clone().with_env("ON", "1"), streaming(spec.with_env("ON", "1"))] {
            let function = Deployed::new(spec).await;
            let mut request = function.request("");
            request.max_response_bytes = 100_000;
            let answered = function.send(request).await;
            let error = match answered {
                Ok(response) => response.body.collect(ENOUGH).await.unwrap_err(),
                Err(error) => error,
            };
            assert_eq!((error.kind(), error.delivery()), (ErrorKind::OutputTooLarge, Delivery::Executed));
            assert_eq!(error.context_value("limit_bytes"), Some("100000"));
            let pid = fifo.pids().await[0];
            ended(pid).await;
            function.stop().await;
            assert!(!is_known(pid));
        }
    }

    #[tokio::test]
    async fn a_log_of_any_length_is_drained() {
        let function = Deployed::new(sh("head -c 3000000 /dev/zero >&2; echo done")).await;
        assert_eq!(text(function.call("").await.unwrap()).await, "done\n");
        assert_eq!(function.logs.contents().len(), 1 << 20);
    }

    #[tokio::test]
    async fn a_broken_payload_kills_and_is_returned() {
        let mut fifo = Fifo::new();
        for wrap in [|spec| spec, streaming] {
            let function = Deployed::new(wrap(runs_forever(&fifo))).await;
            let (sender, body) = channel();
            let call = function.call_in_background(body);
            let pids = fifo.pids().await;
            sender.send(Err(Error::new(ErrorKind::PayloadTooLarge, "the payload grew"))).await.unwrap();
            let error = match call.await.unwrap() {
                Ok(response) => response.body.collect(ENOUGH).await.unwrap_err(),
                Err(error) => error,
            };
            assert_eq!((error.kind(), error.delivery()), (ErrorKind::PayloadTooLarge, Delivery::Executed));
            for pid in pids {
                ended(pid).await;
            }
        }
    }
}

mod streams {
    use super::*;

    #[tokio::test]
    async fn chunks_go_through_as_they_come() {
        let (sender, body) = channel();
        let response = Deployed::new(streaming(spec("cat", &[]))).await.call(body).await.unwrap();
        let mut answer = response.body.into_stream();
        for word in ["one", "two"] {
            sender.send(Ok(Bytes::from(word))).await.unwrap();
            assert_eq!(next(&mut answer).await.unwrap().unwrap(), word);
        }
        drop(sender);
        assert!(next(&mut answer).await.is_none());
    }

    #[tokio::test]
    async fn megabytes_stream_both_ways() {
        let chunk = Bytes::from(vec![7; 100_000]);
        let payload = Body::from_stream(stream::iter(vec![Ok(chunk); 50]));
        let response = Deployed::new(streaming(spec("cat", &[]))).await.call(payload).await.unwrap();
        assert!(response.body.is_stream());
        assert_eq!(response.body.collect(ENOUGH).await.unwrap().len(), 5_000_000);
    }

    #[tokio::test]
    async fn the_status_decides_at_the_end() {
        let response = Deployed::new(streaming(sh("echo part; exit 3"))).await.call("").await.unwrap();
        assert!(response.outcome.is_success());
        let mut body = response.body.into_stream();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "part\n");
        let error = next(&mut body).await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.class()), (ErrorKind::FunctionBroken, ErrorClass::Function));
        assert_eq!((error.message(), error.delivery()), ("exit status 3", Delivery::Executed));
        assert!(next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn the_log_is_drained_though_nobody_reads_the_answer() {
        let mut fifo = Fifo::new();
        let script = sh("head -c 3000000 /dev/zero >&2; echo logged > \"$FIFO\"; echo done");
        let script = streaming(script.with_env("FIFO", fifo.path().to_str().unwrap()));
        let response = Deployed::new(script).await.call("").await.unwrap();
        assert_eq!(fifo.line().await, "logged");
        assert_eq!(text(response).await, "done\n");
    }

    #[tokio::test]
    async fn dropping_the_answer_kills_the_whole_group() {
        let mut fifo = Fifo::new();
        let function = Deployed::new(streaming(runs_forever(&fifo))).await;
        let response = function.call("").await.unwrap();
        let pids = fifo.pids().await;
        drop(response);
        for &pid in &pids {
            ended(pid).await;
        }
        function.driver.shutdown(Instant::now() + Duration::from_secs(60)).await.unwrap();
        assert!(!is_known(pids[0]));
    }

    #[tokio::test]
    async fn what_was_written_before_the_end_is_not_lost() {
        // The answer is first read when the process is long gone.
        let function = Deployed::new(streaming(sh("head -c 60000 /dev/zero"))).await;
        let response = function.call("").await.unwrap();
        function.driver.shutdown(Instant::now() + Duration::from_secs(60)).await.unwrap();
        assert_eq!(response.body.collect(ENOUGH).await.unwrap().len(), 60_000);
    }
}

mod killing {
    use super::*;

    #[tokio::test]
    async fn dropping_the_call_kills_the_whole_group() {
        let mut fifo = Fifo::new();
        let function = Deployed::new(runs_forever(&fifo)).await;
        let call = function.call_in_background("");
        let pids = fifo.pids().await;
        assert_eq!(pids.len(), 2);
        call.abort();
        for &pid in &pids {
            ended(pid).await;
        }
        function.driver.shutdown(Instant::now() + Duration::from_secs(60)).await.unwrap();
        assert!(!is_known(pids[0]));
    }

    #[tokio::test]
    async fn what_a_function_leaves_behind_is_killed_and_holds_nobody() {
        let function = Deployed::new(sh("sleep 1000 & echo $!")).await;
        for wrap in [|spec| spec, streaming] {
            let function = Deployed::on(Arc::clone(&function.driver), wrap(function.revision.spec.clone())).await;
            let pid = text(function.call("").await.unwrap()).await.trim().parse().unwrap();
            ended(pid).await;
        }
    }

    #[tokio::test]
    async fn what_left_the_group_holds_nobody() {
        let mut fifo = Fifo::new();
        let folder = tempfile::tempdir().unwrap();
        let gate = folder.path().join("gate");
        named_pipe(&gate);
        // The function ends only after the other has left its group.
        let leave = r#"setsid sh -c 'echo $$ > "$FIFO"; echo out > "$GATE"; exec sleep 1000'"#;
        let spec = sh(&format!(r#"{leave} & read word < "$GATE"; echo $word"#))
            .with_env("FIFO", fifo.path().to_str().unwrap())
            .with_env("GATE", gate.to_str().unwrap());
        let response = Deployed::new(spec).await.call("").await.unwrap();
        assert_eq!(text(response).await, "out\n");
        let escaped = Pid::from_raw(fifo.pids().await[0]).unwrap();
        rustix::process::kill_process(escaped, Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn removing_kills_what_runs() {
        let mut fifo = Fifo::new();
        for wrap in [|spec| spec, streaming] {
            let function = Deployed::new(wrap(runs_forever(&fifo))).await;
            let call = function.call_in_background("");
            let pids = fifo.pids().await;
            function.remove().await;
            assert!(!is_known(pids[0]));
            ended(pids[1]).await;
            let error = match call.await.unwrap() {
                Ok(response) => response.body.collect(ENOUGH).await.unwrap_err(),
                Err(error) => error,
            };
            assert_eq!((error.kind(), error.delivery()), (ErrorKind::Cancelled, Delivery::Executed));
            assert_eq!(error.message(), "the function was removed");
            assert_eq!(function.status().await.state, DeploymentState::Missing);
        }
    }

    #[tokio::test]
    async fn a_shutdown_waits_for_calls_and_takes_no_new_ones() {
        let mut fifo = Fifo::new();
        let spec = sh("echo $$ > \"$FIFO\"; cat").with_env("FIFO", fifo.path().to_str().unwrap());
        let function = Deployed::new(spec).await;
        let (sender, body) = channel();
        let call = function.call_in_background(body);
        fifo.line().await;

        let stopping = function.driver.shutdown(Instant::now() + Duration::from_secs(60));
        let mut stopping = Box::pin(stopping);
        assert!(futures_util::poll!(&mut stopping).is_pending());
        let refused = function.call("").await.unwrap_err();
        assert_eq!((refused.kind(), refused.delivery()), (ErrorKind::ShuttingDown, Delivery::NotSent));
        assert_eq!(function.deploy().await.unwrap_err().kind(), ErrorKind::ShuttingDown);

        sender.send(Ok(Bytes::from_static(b"late"))).await.unwrap();
        drop(sender);
        stopping.await.unwrap();
        assert_eq!(text(call.await.unwrap().unwrap()).await, "late");
    }

    #[tokio::test]
    async fn a_shutdown_kills_at_its_deadline() {
        let mut fifo = Fifo::new();
        let function = Deployed::new(runs_forever(&fifo)).await;
        let call = function.call_in_background("");
        let pids = fifo.pids().await;
        function.stop().await;
        assert!(!is_known(pids[0]));
        ended(pids[1]).await;
        let error = call.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.message()), (ErrorKind::Cancelled, "the gateway stopped"));
    }

    #[tokio::test]
    async fn a_call_that_is_no_longer_polled_is_ended_too() {
        let mut fifo = Fifo::new();
        let function = Deployed::new(runs_forever(&fifo)).await;
        let cx = cx();
        let mut call = Box::pin(function.driver.invoke(&cx, &function.target, function.request("")));
        assert!(futures_util::poll!(&mut call).is_pending());
        let pids = fifo.pids().await;
        function.stop().await;
        assert!(!is_known(pids[0]));
        assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn a_runtime_that_goes_away_leaves_no_process() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let pids = runtime.block_on(async {
            let mut fifo = Fifo::new();
            let function = Deployed::new(runs_forever(&fifo)).await;
            drop(function.call_in_background(""));
            fifo.pids().await
        });
        drop(runtime);
        // It can tell its number before the driver's own thread that starts it is done, and is ended by that thread then.
        forgotten(pids[0]);
    }

    #[tokio::test]
    async fn a_call_may_run_on_another_runtime_than_the_driver() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let driver = LocalProcess::with_runtime(LocalProcessConfig::new(), runtime.handle().clone()).unwrap();
        let function = Deployed::on(Arc::new(driver), spec("cat", &[])).await;
        assert_eq!(text(function.call("hello").await.unwrap()).await, "hello");
        runtime.shutdown_background();
    }
}

mod environment {
    use super::*;

    async fn variables(function: &Deployed, request: function_gateway_core::DriverRequest) -> BTreeSet<String> {
        let response = function.send(request).await.unwrap();
        let all = text(response).await;
        let (marks, told): (BTreeSet<_>, BTreeSet<_>) =
            all.lines().map(str::to_owned).partition(|variable| variable.starts_with("FUNCTION_HOST=test/"));
        assert_eq!(marks.len(), 1, "{all}");
        told
    }

    #[tokio::test]
    async fn it_holds_what_is_documented_and_nothing_else() {
        let function = Deployed::new(spec("/usr/bin/env", &[]).with_env("GREETING", "hello")).await;
        let always = [
            "FUNCTION_ATTEMPT=1",
            "FUNCTION_GENERATION=1",
            "FUNCTION_METHOD=POST",
            "FUNCTION_NAME=fun",
            "FUNCTION_PATH=",
            "FUNCTION_TENANT=acme",
            "GREETING=hello",
        ];
        let always = always.map(str::to_owned);
        assert_eq!(variables(&function, function.request("")).await, BTreeSet::from(always.clone()));

        let (id, trace) = (InvocationId::generate(), TraceParent::root());
        let cx = cx()
            .with_invocation_id(id)
            .with_trace(trace)
            .with_trace_state("vendor=1")
            .with_deadline(Deadline::after(Duration::from_secs(3600)));
        let mut request = function.request("");
        request.method = Method::PUT;
        request.path = "/a%20b".into();
        request.query = Some("x=1&y".into());
        for (name, value) in [
            ("content-type", "text/plain"),
            ("x-custom", "1"),
            ("x-custom", "2"),
            ("proxy", "http://evil"),
            ("traceparent", "forged"),
            ("tracestate", "forged"),
            ("x-function-tenant", "forged"),
            ("x_custom", "forged"),
        ] {
            request.headers.append(name, HeaderValue::from_static(value));
        }
        request.secrets.push(SecretVariable::new("TOKEN", Secret::new("s3cret")));
        let response = function.driver.invoke(&cx, &function.target, request).await.unwrap();
        let mut given: BTreeSet<String> = text(response).await.lines().map(str::to_owned).collect();
        let deadline = given.iter().find(|line| line.starts_with("FUNCTION_DEADLINE_MS=")).unwrap().clone();
        given.remove(&deadline);
        given.retain(|line| !line.starts_with("FUNCTION_HOST="));
        assert!(deadline["FUNCTION_DEADLINE_MS=".len()..].parse::<u64>().unwrap() > 1_700_000_000_000);
        let mut expected = BTreeSet::from(always);
        expected.remove("FUNCTION_METHOD=POST");
        expected.remove("FUNCTION_PATH=");
        expected.extend([
            format!("FUNCTION_INVOCATION_ID={id}"),
            format!("TRACEPARENT={trace}"),
            "TRACESTATE=vendor=1".to_owned(),
            "FUNCTION_METHOD=PUT".to_owned(),
            "FUNCTION_PATH=/a%20b".to_owned(),
            "FUNCTION_QUERY=x=1&y".to_owned(),
            "FUNCTION_CONTENT_TYPE=text/plain".to_owned(),
            "FUNCTION_HEADER_CONTENT_TYPE=text/plain".to_owned(),
            "FUNCTION_HEADER_X_CUSTOM=1, 2".to_owned(),
            "FUNCTION_HEADER_PROXY=http://evil".to_owned(),
            "TOKEN=s3cret".to_owned(),
        ]);
        assert_eq!(given, expected);
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_pass_as_they_are() {
        let function = Deployed::new(sh("printf %s \"$FUNCTION_HEADER_X_RAW/$TOKEN\"")).await;
        let mut request = function.request("");
        request.headers.insert("x-raw", HeaderValue::from_bytes(b"a\xff\xfe").unwrap());
        request.secrets.push(SecretVariable::new("TOKEN", Secret::new(*b"\x80")));
        let response = function.send(request).await.unwrap();
        assert_eq!(&response.body.collect(ENOUGH).await.unwrap()[..], b"a\xff\xfe/\x80");
    }

    #[tokio::test]
    async fn what_no_variable_can_hold_is_refused_unsent() {
        let function = Deployed::new(spec("true", &[])).await;
        let mut nul_path = function.request("");
        nul_path.path = "/a\0b".into();
        let mut nul_query = function.request("");
        nul_query.query = Some("\0".into());
        for (request, field) in [(nul_path, "path"), (nul_query, "query")] {
            let error = function.send(request).await.unwrap_err();
            assert_eq!((error.kind(), error.delivery()), (ErrorKind::InvalidArgument, Delivery::NotSent));
            assert_eq!(error.context_value("field"), Some(field));
        }
        let mut nul_secret = function.request("");
        nul_secret.secrets.push(SecretVariable::new("TOKEN", Secret::new("canary\0")));
        let error = function.send(nul_secret).await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::Misconfigured, Delivery::NotSent));
        assert!(!format!("{error} {error:?}").contains("canary"));
    }

    #[tokio::test]
    async fn too_large_an_environment_says_whose_it_is() {
        let function = Deployed::new(spec("true", &[])).await;
        let canary = "canary".repeat(50_000);
        let mut header = function.request("");
        header.headers.insert("x-big", canary.parse().unwrap());
        let error = function.send(header).await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::InvalidArgument, Delivery::NotSent));

        let mut secret = function.request("");
        secret.secrets.push(SecretVariable::new("TOKEN", Secret::new(canary)));
        let error = function.send(secret).await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::Misconfigured, Delivery::NotSent));
        assert!(!format!("{error} {error:?}").contains("canary"));
    }
}

mod programs {
    use super::*;

    async fn refused(spec: &FunctionSpec) -> Vec<(String, String)> {
        let found = driver().check(&cx(), spec).await.unwrap();
        found.into_iter().map(|violation| (violation.pointer, violation.reason)).collect()
    }

    #[tokio::test]
    async fn one_that_is_not_there_is_refused_at_creation() {
        assert_eq!(refused(&spec("cat", &[])).await, []);
        let expected = ("/run/process/command".to_owned(), "not found in /usr/local/bin:/usr/bin:/bin".to_owned());
        assert_eq!(refused(&spec("no-such-program", &[])).await, [expected]);
        let function = Deployed::prepare(driver(), spec("no-such-program", &[]));
        let error = function.deploy().await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Misconfigured, Retry::Never));
        assert_eq!(error.violations()[0].pointer, "/run/process/command");
        assert_eq!(function.status().await.state, DeploymentState::Missing);
    }

    #[tokio::test]
    async fn one_that_is_not_executable_is_refused_at_creation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        fs::write(&path, "").unwrap();
        let expected = ("/run/process/command".to_owned(), format!("{} is not executable", path.display()));
        assert_eq!(refused(&spec(path.to_str().unwrap(), &[])).await, [expected]);
    }

    async fn fails_to_start(function: &Deployed) -> String {
        let error = function.call("").await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::Misconfigured, Delivery::NotSent), "{error:?}");
        assert!(!error.to_string().contains('/'), "the message shows a path of the machine: {error}");
        error.message().to_owned()
    }

    #[tokio::test]
    async fn one_that_vanishes_is_misconfigured() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        symlink("/bin/cat", &path).unwrap();
        let function = Deployed::new(spec(path.to_str().unwrap(), &[])).await;
        assert_eq!(text(function.call("x").await.unwrap()).await, "x");
        fs::remove_file(&path).unwrap();
        assert_eq!(fails_to_start(&function).await, "the function's program was not found");
        fs::write(&path, "").unwrap();
        assert_eq!(fails_to_start(&function).await, "the function's program is not executable");
    }

    #[tokio::test]
    async fn a_folder_that_vanishes_is_misconfigured() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = spec("/bin/cat", &[]);
        if let function_gateway_core::Workload::Process(run) = &mut spec.run {
            run.working_dir = Some(folder.path().to_str().unwrap().to_owned());
        }
        let function = Deployed::new(spec).await;
        drop(folder);
        let expected = "the function's working directory is gone, or may not be entered";
        assert_eq!(fails_to_start(&function).await, expected);
    }

    /// A program that another process has written: this one, which starts processes all the time, would hand the open
    /// file on to one of them for a moment, and a file that is open for writing can't be executed.
    fn program(folder: &tempfile::TempDir, content: &str) -> String {
        let path = folder.path().join("program").to_str().unwrap().to_owned();
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", "printf %s \"$1\" > \"$2\"", "sh", content, &path]);
        assert!(command.status().unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn one_that_the_machine_can_t_execute_is_misconfigured() {
        let folder = tempfile::tempdir().unwrap();
        let function = Deployed::new(spec(&program(&folder, "no program"), &[])).await;
        let expected = "the function's program is in no format that this machine executes";
        assert_eq!(fails_to_start(&function).await, expected);
    }

    #[tokio::test]
    async fn a_missing_interpreter_is_named_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let function = Deployed::new(spec(&program(&folder, "#!/no/such/interpreter\n"), &[])).await;
        let expected = "the function's program names an interpreter that was not found";
        assert_eq!(fails_to_start(&function).await, expected);
    }
}

mod deployments {
    use super::*;

    #[tokio::test]
    async fn what_is_not_deployed_is_not_sent() {
        let function = Deployed::prepare(driver(), spec("cat", &[]));
        let polled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&polled);
        let body = Body::from_stream(stream::poll_fn(move |_| {
            flag.store(true, Ordering::Relaxed);
            std::task::Poll::Ready(None)
        }));
        let error = function.call(body).await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::NotDeployed, Delivery::NotSent));
        assert!(!polled.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn deploying_and_removing_can_be_repeated() {
        let function = Deployed::prepare(driver(), spec("cat", &[]));
        assert_eq!(function.status().await.state, DeploymentState::Missing);
        for _ in 0..2 {
            assert_eq!(function.deploy().await.unwrap().state, DeploymentState::Ready);
            assert_eq!(function.status().await.state, DeploymentState::Ready);
        }
        for _ in 0..2 {
            function.remove().await;
            assert_eq!(function.status().await.state, DeploymentState::Missing);
        }
        function.deploy().await.unwrap();
        assert_eq!(text(function.call("again").await.unwrap()).await, "again");
    }

    #[tokio::test]
    async fn only_the_gateway_s_own_are_listed() {
        let driver = driver();
        let mine = Deployed::on(Arc::clone(&driver), spec("cat", &[])).await;
        let sibling = Deployed::on(Arc::clone(&driver), spec("cat", &[])).await;
        let mut foreign = Deployed::prepare(Arc::clone(&driver), spec("cat", &[]));
        foreign.gateway = "other".parse().unwrap();
        foreign.target = driver.reference(&foreign.gateway, &foreign.revision);
        let request = DeployRequest::new(foreign.gateway.clone(), Arc::clone(&foreign.revision));
        driver.deploy(&cx(), &foreign.target, request).await.unwrap();

        let cx = cx();
        let listed = async |scope| {
            let found = driver.list(&cx, scope).map(|item| item.unwrap().target).collect::<BTreeSet<_>>();
            found.await
        };
        let both = BTreeSet::from([mine.target.clone(), sibling.target.clone()]);
        assert_eq!(listed(ListScope::All(mine.gateway.clone())).await, both);
        let one = ListScope::Function(mine.gateway.clone(), mine.revision.function);
        assert_eq!(listed(one).await, BTreeSet::from([mine.target.clone()]));
        let none = ListScope::Function(mine.gateway.clone(), foreign.revision.function);
        assert_eq!(listed(none).await, BTreeSet::new());
    }

    #[tokio::test]
    async fn a_call_beyond_the_limit_is_refused_at_once() {
        let config = LocalProcessConfig::new().with_max_processes(NonZeroU32::MIN);
        let driver = Arc::new(LocalProcess::new(config).unwrap());
        let mut fifo = Fifo::new();
        let first = Deployed::on(Arc::clone(&driver), runs_forever(&fifo)).await;
        let second = Deployed::on(Arc::clone(&driver), spec("cat", &[])).await;
        let call = first.call_in_background("");
        fifo.pids().await;
        let error = second.call("").await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::Unavailable, Delivery::NotSent));
        assert!(error.is_transient() && error.message().contains("limit of 1 processes"));
        first.remove().await;
        assert_eq!(text(second.call("x").await.unwrap()).await, "x");
        assert!(call.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn it_declares_what_it_does() {
    let driver = driver();
    let declared = |protocol| {
        let caps = driver.capabilities(&protocol);
        assert_eq!(caps.scope, Scope::PerProcess);
        caps.flags().into_iter().filter(|flag| flag.2).map(|flag| flag.0).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        declared(Protocol::exec()),
        "process env secrets_per_call streaming cancel invocation_logs memory_limit"
    );
    assert_eq!(
        declared(Protocol::http()),
        "process env secrets_at_deploy streaming logs scale_bounds instance_concurrency memory_limit readiness_path"
    );
    assert_eq!(driver.capabilities(&"other".parse().unwrap()), DriverCapabilities::NONE);
}

#[test]
fn without_a_runtime_there_is_no_driver() {
    let error = LocalProcess::new(LocalProcessConfig::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn nothing_of_a_function_is_shown_by_debug() {
    let function = Deployed::new(spec("cat", &["canary"]).with_env("A", "canary")).await;
    assert!(!format!("{:?}", function.driver).contains("canary"));
}

//! The protocol `exec`: one process for each invocation.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::pin::pin;
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use function_gateway_core::{
    Body, CallContext, Delivery, DriverRequest, Error, ErrorKind, FunctionFailure, FunctionSpec, InvokeResponse,
    LogSink, PayloadFormat, Result, Revision, SecretVariable, Violation, call_headers,
};
use futures_util::future::OptionFuture;
use futures_util::{StreamExt as _, stream};
use http::header::{CONTENT_TYPE, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::config::LocalProcessConfig;
use crate::error;
use crate::identity::Identity;
use crate::limits;
use crate::process::{self, Group, Hold, Input, Process, Processes, Started};
use crate::program::Program;
use crate::settings::{Annotations, check_variables};
use crate::threads::Threads;

/// The annotation that gives the content type of the result.
const CONTENT_TYPE_ANNOTATION: &str = "content-type";

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// How much of a result is read at first where it is kept whole; the buffer grows as it fills.
const FIRST_READ: usize = 8 * 1024;
/// How much of a streamed result is read at a time: the capacity of a pipe.
const STREAM_READ: usize = 64 * 1024;
/// How much of the log is read at a time.
const LOG_READ: usize = 4 * 1024;

/// A function that is ready to be executed.
#[derive(Debug)]
pub(crate) struct ExecFunction {
    revision: Arc<Revision>,
    program: Arc<Program>,
    content_type: HeaderValue,
}

impl ExecFunction {
    /// What of a specification can't be honoured. Blocks on the file system.
    pub(crate) fn check(config: &LocalProcessConfig, spec: &FunctionSpec) -> Vec<Violation> {
        resolve(config, spec).err().unwrap_or_default()
    }

    /// Checks everything about a specification and finds its program. Blocks on the file system.
    pub(crate) fn new(config: &LocalProcessConfig, revision: Arc<Revision>) -> Result<Self, Vec<Violation>> {
        let (program, content_type) = resolve(config, &revision.spec)?;
        Ok(Self { revision, program: Arc::new(program), content_type })
    }

    fn command(&self, cx: &CallContext, request: &DriverRequest) -> Result<Command> {
        let mut command = self.program.command();
        command.envs(&self.revision.spec.env);
        for SecretVariable { name, secret, .. } in &request.secrets {
            if secret.expose().contains(&0) {
                let error = Error::new(ErrorKind::Misconfigured, "a secret with a NUL byte can't be a variable");
                return Err(error.with_context("variable", name));
            }
            command.env(name, OsStr::from_bytes(secret.expose()));
        }
        // Last, so that nothing else can stand in their place.
        command.envs(call_variables(cx, &self.revision, request)?);
        Ok(command)
    }
}

fn resolve(config: &LocalProcessConfig, spec: &FunctionSpec) -> Result<(Program, HeaderValue), Vec<Violation>> {
    let mut found = Vec::new();
    check_variables(spec, &[], &mut found);
    let mut annotations = Annotations::of(spec);
    let content_type = content_type(spec, &mut annotations);
    let identity = Identity::of(&mut annotations);
    found.extend(annotations.finish());
    match Program::of(spec, identity, &config.search_path, &mut found) {
        Some(program) if found.is_empty() => Ok((program, content_type)),
        _ => Err(found),
    }
}

/// The content type of the result.
fn content_type(spec: &FunctionSpec, annotations: &mut Annotations<'_>) -> HeaderValue {
    let is_json = spec.output_schema.is_some() || spec.format == PayloadFormat::Envelope;
    let usual = if is_json { JSON } else { BINARY };
    let Some(chosen) = annotations.get(CONTENT_TYPE_ANNOTATION) else { return usual };
    if is_json {
        let reason = "the result is application/json already: by `output_schema` or `format: envelope`";
        annotations.refuse(CONTENT_TYPE_ANNOTATION, reason);
        return usual;
    }
    match HeaderValue::from_str(chosen) {
        Ok(value) if value.as_bytes().contains(&b'/') => value,
        _ => {
            annotations.refuse(CONTENT_TYPE_ANNOTATION, "is not a media type, such as text/plain");
            usual
        }
    }
}

/// What the process is told about its call.
fn call_variables(cx: &CallContext, revision: &Revision, request: &DriverRequest) -> Result<Vec<(OsString, OsString)>> {
    let mut variables: Vec<(OsString, OsString)> = Vec::with_capacity(12 + request.headers.len());
    let mut set = |name: &str, value: &str| variables.push((name.into(), value.into()));
    set("FUNCTION_NAME", revision.key.name.as_str());
    set("FUNCTION_TENANT", revision.key.tenant.as_str());
    set("FUNCTION_GENERATION", &revision.generation.to_string());
    set("FUNCTION_METHOD", request.method.as_str());
    set("FUNCTION_PATH", without_nul("path", &request.path)?);
    if let Some(query) = &request.query {
        set("FUNCTION_QUERY", without_nul("query", query)?);
    }
    for (header, value) in call_headers(cx) {
        set(&variable_name(header.trim_start_matches("x-")), without_nul(header, &value)?);
    }
    if let Some(value) = request.headers.get(CONTENT_TYPE) {
        variables.push(("FUNCTION_CONTENT_TYPE".into(), bytes_of(value).into()));
    }
    for name in request.headers.keys().filter(|name| is_handed_over(name)) {
        let variable = format!("FUNCTION_HEADER_{}", variable_name(name.as_str()));
        variables.push((variable.into(), joined(&request.headers, name)));
    }
    Ok(variables)
}

fn without_nul<'a>(what: &'static str, text: &'a str) -> Result<&'a str> {
    if text.contains('\0') {
        let error = Error::new(ErrorKind::InvalidArgument, "a NUL byte can't be handed over to a process");
        return Err(error.with_context("field", what));
    }
    Ok(text)
}

fn variable_name(header: &str) -> String {
    header.replace('-', "_").to_ascii_uppercase()
}

/// Whether a caller's header becomes a variable. Not one with a sign that no variable has or that another header's
/// `-` becomes, so that two headers never meet in one variable; and none that the gateway itself speaks by.
fn is_handed_over(name: &HeaderName) -> bool {
    let name = name.as_str();
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    plain && !name.starts_with("x-function-") && name != "traceparent" && name != "tracestate"
}

/// All values of a header in one (RFC 9110, section 5.3; RFC 9113, section 8.2.3 for cookies).
fn joined(headers: &HeaderMap, name: &HeaderName) -> OsString {
    let separator: &[u8] = if name == COOKIE { b"; " } else { b", " };
    let values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    OsString::from_vec(values.join(separator))
}

fn bytes_of(value: &HeaderValue) -> &OsStr {
    OsStr::from_bytes(value.as_bytes())
}

/// Where a call's process and tasks belong.
pub(crate) struct Place<'a> {
    pub(crate) processes: &'a Arc<Processes>,
    pub(crate) runtime: &'a Handle,
    pub(crate) threads: &'a Threads,
    pub(crate) tasks: &'a TaskTracker,
    pub(crate) hold: Hold,
}

/// Executes a function once.
pub(crate) async fn invoke(
    function: &ExecFunction,
    place: Place<'_>,
    cx: &CallContext,
    request: DriverRequest,
) -> Result<InvokeResponse> {
    let command = function.command(cx, &request)?;
    let Place { processes, runtime, threads, tasks, hold } = place;
    let DriverRequest { body, logs, max_response_bytes, .. } = request;

    let mut bytes = body.as_bytes().cloned().unwrap_or_default();
    let input = Input::new(&mut bytes, body.is_stream())?;
    let (program, processes, owner) = (Arc::clone(&function.program), Arc::clone(processes), runtime.clone());
    let starting = threads.blocking(move || {
        process::start(command, input, &processes, &owner, hold).map_err(|error| program.explain(error))
    });
    let Started { process, stdin, stdout, stderr } = starting.await??;
    let payload = stdin.map(|stdin| (stdin, if body.is_stream() { body } else { Body::from(bytes) }));

    let output = Output::new(stdout, Arc::clone(process.group()), max_response_bytes);
    let response = if function.revision.spec.streaming {
        let attending = async move { attend(&process, payload, stderr, &logs).await };
        let ending = tasks.spawn_on(attending, runtime);
        InvokeResponse::new(StatusCode::OK, stream_of(output, ending))
    } else {
        let attending = attend(&process, payload, stderr, &logs);
        let (status, result) = tokio::try_join!(attending, output.collect())?;
        match conclude(process.group(), status)? {
            None => InvokeResponse::new(StatusCode::OK, result),
            Some(failure) => InvokeResponse::failed(failure, result),
        }
    };
    Ok(response.with_header(CONTENT_TYPE, function.content_type.clone()))
}

/// Feeds the payload and drains the log until the process has ended.
async fn attend(
    process: &Process,
    payload: Option<(pipe::Sender, Body)>,
    mut stderr: pipe::Receiver,
    logs: &LogSink,
) -> Result<ExitStatus> {
    let (mut fed, mut logged) = (payload.is_none(), false);
    let mut feeding = pin!(OptionFuture::from(payload.map(|(stdin, body)| feed(stdin, body))));
    let mut chunk = Vec::new();
    let status = loop {
        tokio::select! {
            result = &mut feeding, if !fed => {
                result.transpose()?;
                fed = true;
            }
            read = read_log(&stderr, &mut chunk, logs), if !logged => logged = read.map_err(lost)? == 0,
            status = process.group().ended() => break status.map_err(lost)?,
        }
    };
    logs.write(&left_in(&mut stderr).map_err(lost)?);
    Ok(status)
}

/// Writes the payload, or what is left of it, and closes the pipe. A function that reads no more of it is free to.
async fn feed(mut stdin: pipe::Sender, body: Body) -> Result<()> {
    let written = async |stdin: &mut pipe::Sender, chunk: &[u8]| match stdin.write_all(chunk).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(lost(error)),
    };
    if let Some(bytes) = body.as_bytes() {
        written(&mut stdin, bytes).await?;
        return Ok(());
    }
    let mut chunks = body.into_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| error.with_delivery(Delivery::Executed))?;
        if !written(&mut stdin, &chunk).await? {
            break;
        }
    }
    Ok(())
}

/// Hands the next part of the log on; 0 at its end. Cancel-safe.
async fn read_log(stderr: &pipe::Receiver, chunk: &mut Vec<u8>, logs: &LogSink) -> io::Result<usize> {
    loop {
        stderr.readable().await?;
        chunk.clear();
        chunk.reserve(LOG_READ);
        match stderr.try_read_buf(chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(read) => {
                logs.write(chunk);
                return Ok(read);
            }
            Err(error) => return Err(error),
        }
    }
}

/// What a process that has ended left in its pipe. A process that got away may hold the pipe open and write on, so
/// this does not wait for the pipe's end.
fn left_in(pipe: &mut (impl AsFd + ?Sized)) -> io::Result<Vec<u8>> {
    let left = rustix::io::ioctl_fionread(pipe.as_fd())?;
    let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX)];
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match rustix::io::read(pipe.as_fd(), room) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
            Ok(read) => filled += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn lost(error: io::Error) -> Error {
    error::of_io(error, Delivery::Executed)
}

/// What a process writes to its standard output, up to a limit. Dropping it kills the process.
struct Output {
    stdout: Option<pipe::Receiver>,
    group: Arc<Group>,
    room: u64,
    limit: u64,
}

impl Output {
    fn new(stdout: pipe::Receiver, group: Arc<Group>, limit: u64) -> Self {
        Self { stdout: Some(stdout), group, room: limit, limit }
    }

    /// Reads on, to `buffer`, until the pipe or the process has ended, which `false` says. Cancel-safe.
    async fn read(&mut self, buffer: &mut BytesMut) -> Result<bool> {
        let Some(stdout) = &mut self.stdout else { return Ok(false) };
        let before = buffer.len();
        let ended = tokio::select! {
            biased;
            read = stdout.read_buf(buffer) => read.map_err(lost)? == 0,
            status = self.group.ended() => {
                status.map_err(lost)?;
                buffer.extend_from_slice(&left_in(stdout).map_err(lost)?);
                true
            }
        };
        if ended {
            self.stdout = None;
        }
        let read = u64::try_from(buffer.len() - before).unwrap_or(u64::MAX);
        let Some(room) = self.room.checked_sub(read) else {
            return Err(Error::too_large(ErrorKind::OutputTooLarge, "output", self.limit));
        };
        self.room = room;
        Ok(!ended)
    }

    async fn collect(mut self) -> Result<Bytes> {
        let mut buffer = BytesMut::with_capacity(FIRST_READ);
        while self.read(&mut buffer).await? {
            buffer.reserve(FIRST_READ);
        }
        // A function may close its output and work on: dropping `self` now would kill it.
        self.group.ended().await.map_err(lost)?;
        Ok(buffer.freeze())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.group.kill();
    }
}

/// The output as it comes. The status decides at the end, which `ending` gives.
fn stream_of(output: Output, ending: JoinHandle<Result<ExitStatus>>) -> Body {
    Body::from_stream(stream::try_unfold((output, Some(ending)), |(mut output, mut ending)| async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(STREAM_READ);
            let more = output.read(&mut buffer).await?;
            if !buffer.is_empty() {
                return Ok(Some((buffer.freeze(), (output, ending))));
            }
            if !more {
                break;
            }
        }
        let Some(ending) = ending.take() else { return Ok(None) };
        let status = ending.await.map_err(|error| {
            let message = "the runtime of the driver has stopped";
            Error::new(ErrorKind::Cancelled, message).with_delivery(Delivery::Executed).with_source(error)
        })??;
        match conclude(&output.group, status)? {
            None => Ok(None),
            Some(failure) => {
                let error = Error::new(ErrorKind::FunctionBroken, failure.message);
                Err(error)
            }
        }
    }))
}

/// How the function failed, if it did. One that the driver has ended did not fail.
fn conclude(group: &Group, status: ExitStatus) -> Result<Option<FunctionFailure>> {
    if status.signal() == Some(Signal::KILL.as_raw())
        && let Some(stop) = group.stopped()
    {
        return Err(stop.error());
    }
    Ok(failure_of(status, group.out_of_memory()))
}

/// How the function failed, if it did; with the bytes of memory that it may have where it was killed for needing more.
fn failure_of(status: ExitStatus, out_of_memory: Option<u64>) -> Option<FunctionFailure> {
    let (exit_status, signal) = (status.code(), status.signal());
    let message = match (exit_status, signal) {
        (Some(0), _) => return None,
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => match out_of_memory {
            Some(bytes) => limits::killed_for_memory(bytes),
            None => format!("ended by signal {signal}"),
        },
        (None, None) => status.to_string(),
    };
    let mut failure = FunctionFailure::new(message);
    failure.exit_status = exit_status;
    failure.signal = signal;
    Some(failure)
}

#[cfg(test)]
mod tests {
    use function_gateway_core::ProcessWorkload;
    use serde_json::json;

    use super::*;

    fn spec() -> FunctionSpec {
        FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("/bin/sh"))
    }

    fn pointers(spec: &FunctionSpec) -> Vec<String> {
        ExecFunction::check(&LocalProcessConfig::new(), spec).into_iter().map(|violation| violation.pointer).collect()
    }

    #[test]
    fn an_annotation_that_nobody_honours_is_refused() {
        let mut annotated = spec();
        annotated.annotations.insert("content-type".into(), "text/plain".into());
        assert_eq!(pointers(&annotated), [""; 0]);
        assert_eq!(pointers(&annotated.clone().with_output_schema(json!(true))), ["/annotations/content-type"]);
        annotated.annotations.insert("content-typ".into(), "text/plain".into());
        annotated.annotations.insert("content-type".into(), "text\n/plain".into());
        assert_eq!(pointers(&annotated), ["/annotations/content-type", "/annotations/content-typ"]);
    }

    #[test]
    fn a_result_has_the_content_type_that_the_specification_gives() {
        let of = |spec: &FunctionSpec| content_type(spec, &mut Annotations::of(spec));
        assert_eq!(of(&spec()), "application/octet-stream");
        assert_eq!(of(&spec().with_output_schema(json!(true))), "application/json");
        let mut envelope = spec();
        envelope.format = PayloadFormat::Envelope;
        assert_eq!(of(&envelope), "application/json");
        let mut annotated = spec();
        annotated.annotations.insert("content-type".into(), "text/csv".into());
        assert_eq!(of(&annotated), "text/csv");
    }

    #[test]
    fn two_headers_never_meet_in_one_variable() {
        let handed_over = |name: &'static str| is_handed_over(&HeaderName::from_static(name));
        assert!(handed_over("x-a") && handed_over("proxy"));
        assert!(!handed_over("x_a") && !handed_over("x.a") && !handed_over("x~a"));
    }

    #[test]
    fn a_caller_can_t_speak_for_the_gateway() {
        for name in ["traceparent", "tracestate", "x-function-invocation-id", "x-function-deadline-ms"] {
            assert!(!is_handed_over(&HeaderName::from_static(name)), "{name}");
        }
    }

    #[test]
    fn a_repeated_header_is_one_list() {
        let mut headers = HeaderMap::new();
        for value in ["a", "b"] {
            headers.append("accept", HeaderValue::from_static(value));
            headers.append("cookie", HeaderValue::from_static(value));
        }
        assert_eq!(joined(&headers, &HeaderName::from_static("accept")), "a, b");
        assert_eq!(joined(&headers, &COOKIE), "a; b");
    }

    #[test]
    fn a_failure_says_how_the_process_ended() {
        let ended = |raw| failure_of(ExitStatus::from_raw(raw), None);
        assert_eq!(ended(0), None);
        let failed = ended(3 << 8).unwrap();
        assert_eq!((failed.message.as_str(), failed.exit_status, failed.signal), ("exit status 3", Some(3), None));
        let killed = ended(11).unwrap();
        assert_eq!(
            (killed.message.as_str(), killed.exit_status, killed.signal),
            ("ended by signal 11", None, Some(11))
        );
        let killed = failure_of(ExitStatus::from_raw(9), Some(64 << 20)).unwrap();
        assert!(killed.message.contains("67108864 bytes") && killed.signal == Some(9), "{killed:?}");
    }
}

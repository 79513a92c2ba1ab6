//! What the tests of the driver share: a deployed function, and a way to know that a process is gone.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use function_gateway_core::{
    Body, CallContext, DeployRequest, DeploymentStatus, DriverRef, DriverRequest, FaasDriver, FunctionId, FunctionKey,
    FunctionSpec, GatewayId, Generation, InvokeResponse, LogSink, Principal, ProcessWorkload, Result, Revision,
    RevisionReason, Timestamp,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// More than any of the tests produces.
pub const ENOUGH: u64 = 64 << 20;
/// Longer than any of the tests takes: reached only where one has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn driver() -> Arc<LocalProcess> {
    Arc::new(LocalProcess::new(LocalProcessConfig::new()).unwrap())
}

pub fn cx() -> CallContext {
    CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()))
}

pub fn spec(command: &str, args: &[&str]) -> FunctionSpec {
    FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new(command).with_args(args.iter().copied()))
}

pub fn sh(script: &str) -> FunctionSpec {
    spec("/bin/sh", &["-c", script])
}

pub fn streaming(mut spec: FunctionSpec) -> FunctionSpec {
    spec.streaming = true;
    spec
}

/// A function as it is deployed.
#[derive(Clone)]
pub struct Deployed {
    pub driver: Arc<LocalProcess>,
    pub target: DriverRef,
    pub gateway: GatewayId,
    pub revision: Arc<Revision>,
    pub logs: LogSink,
}

impl Deployed {
    pub fn prepare(driver: Arc<LocalProcess>, spec: FunctionSpec) -> Self {
        let gateway: GatewayId = "test".parse().unwrap();
        let revision = Arc::new(Revision::new(
            FunctionKey::new("acme".parse().unwrap(), "fun".parse().unwrap()),
            FunctionId::generate(),
            Generation::FIRST,
            spec,
            (Timestamp::now(), "ada".parse().unwrap()),
            RevisionReason::Created,
        ));
        let target = driver.reference(&gateway, &revision);
        Self { driver, target, gateway, revision, logs: LogSink::detached(1 << 20) }
    }

    pub async fn on(driver: Arc<LocalProcess>, spec: FunctionSpec) -> Self {
        let function = Self::prepare(driver, spec);
        function.deploy().await.unwrap();
        function
    }

    pub async fn new(spec: FunctionSpec) -> Self {
        Self::on(driver(), spec).await
    }

    pub async fn deploy(&self) -> Result<DeploymentStatus> {
        let request = DeployRequest::new(self.gateway.clone(), Arc::clone(&self.revision));
        self.driver.deploy(&cx(), &self.target, request).await
    }

    pub fn request(&self, body: impl Into<Body>) -> DriverRequest {
        DriverRequest::new(Arc::clone(&self.revision), body, self.logs.clone())
    }

    pub async fn send(&self, request: DriverRequest) -> Result<InvokeResponse> {
        self.send_as(&cx(), request).await
    }

    pub async fn send_as(&self, cx: &CallContext, request: DriverRequest) -> Result<InvokeResponse> {
        let invoked = self.driver.invoke(cx, &self.target, request);
        tokio::time::timeout(PATIENCE, invoked).await.expect("the call hangs")
    }

    pub async fn call(&self, body: impl Into<Body>) -> Result<InvokeResponse> {
        self.send(self.request(body)).await
    }

    pub fn call_in_background(&self, body: impl Into<Body>) -> tokio::task::JoinHandle<Result<InvokeResponse>> {
        let (function, body) = (self.clone(), body.into());
        tokio::spawn(async move { function.call(body).await })
    }

    pub async fn remove(&self) {
        self.driver.remove(&cx(), &self.target).await.unwrap();
    }

    pub async fn status(&self) -> DeploymentStatus {
        self.driver.status(&cx(), &self.target).await.unwrap()
    }

    /// Waits until every process of the driver is reaped, killing what runs.
    pub async fn stop(&self) {
        self.driver.shutdown(Instant::now()).await.unwrap();
    }
}

pub async fn text(response: InvokeResponse) -> String {
    String::from_utf8(response.body.collect(ENOUGH).await.unwrap().to_vec()).unwrap()
}

pub fn named_pipe(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// A named pipe by which a function tells the test something.
pub struct Fifo {
    folder: tempfile::TempDir,
    receiver: pipe::Receiver,
}

impl Fifo {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        named_pipe(&path);
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&path).unwrap();
        Self { folder, receiver }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("fifo")
    }

    /// The next line, without its end. Opened for writing too, the pipe has no end between two writers.
    pub async fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            let byte = tokio::time::timeout(PATIENCE, self.receiver.read_u8()).await.expect("nobody writes");
            match byte.unwrap() {
                b'\n' => return String::from_utf8(line).unwrap(),
                byte => line.push(byte),
            }
        }
    }

    /// The process numbers that a function writes in one line.
    pub async fn pids(&mut self) -> Vec<i32> {
        self.line().await.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }
}

/// Starts a child in the background, tells the numbers of both, and runs on until it is killed.
pub fn runs_forever(fifo: &Fifo) -> FunctionSpec {
    sh("sleep 1000 & echo $$ $! > \"$FIFO\"; wait").with_env("FIFO", fifo.path().to_str().unwrap())
}

/// Waits until a process has ended, whoever has to reap it.
pub async fn ended(pid: i32) {
    let Ok(pidfd) = rustix::process::pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else { return };
    let waiting = tokio::task::spawn_blocking(move || wait_for(&pidfd));
    assert!(waiting.await.unwrap(), "process {pid} still runs");
}

fn wait_for(pidfd: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

/// Waits until the system knows a process no more: it has ended and was reaped.
pub fn forgotten(pid: i32) {
    let start = std::time::Instant::now();
    while is_known(pid) {
        assert!(start.elapsed() < PATIENCE, "process {pid} is still there");
        std::thread::yield_now();
    }
}

/// Whether the system still knows a process, be it as a zombie.
pub fn is_known(pid: i32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

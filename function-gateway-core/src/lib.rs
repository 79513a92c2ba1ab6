//! Types, traits, pipeline, manager, executor and in-memory stores of Function Gateway.
//!
//! A host depends on the crate `function-gateway`, which re-exports this one and brings drivers and middleware by
//! feature. Authors of drivers ([`FaasDriver`]), middleware ([`Middleware`]) and stores ([`FunctionStore`],
//! [`InvocationStore`], [`AuditLog`], [`ApiKeyStore`]) depend on this one.
//!
//! A [`Gateway`] is put together from a store, drivers and middleware, and implements [`FunctionManager`],
//! [`FunctionExecutor`] and [`AccessManager`]:
//!
//! ```
//! use std::sync::Arc;
//!
//! use function_gateway_core::store::memory::MemoryStore;
//! use function_gateway_core::{
//!     CallContext, CustomWorkload, FunctionExecutor as _, FunctionManager as _, FunctionSpec, Gateway, GatewayId,
//!     InvokeRequest, Principal,
//! };
//! # use function_gateway_testkit::ScriptedDriver as MyDriver;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let gateway = Gateway::builder()
//!     .store(Arc::new(MemoryStore::new(GatewayId::generate())))
//!     .driver("mine".parse()?, Arc::new(MyDriver::new()))
//!     .build()
//!     .await?;
//! let cx = CallContext::new(Principal::new("acme".parse()?, "ada".parse()?));
//! let spec = FunctionSpec::new("mine".parse()?, CustomWorkload::new("echo", serde_json::json!({})));
//! gateway.create(&cx, &"echo".parse()?, spec).await?;
//! let answer = gateway.invoke(&cx, &"echo".parse()?, InvokeRequest::new("hello")).await?;
//! assert_eq!(answer.body.collect(1024).await?, "hello");
//! # Ok::<_, function_gateway_core::Error>(()) }).unwrap();
//! ```
//!
//! Nothing here starts a runtime, reads the environment, sets up logging or keeps a global: the host passes
//! configuration in as values.

mod access;
mod authorize;
mod body;
mod callback;
mod capability;
mod config;
mod context;
mod credential;
mod driver;
mod envelope;
mod error;
mod executor;
pub mod forward;
mod function;
mod gateway;
mod headers;
mod health;
mod host;
mod invocation;
mod key;
mod layers;
mod manager;
mod middleware;
pub mod naming;
mod queue;
mod reconcile;
mod record;
mod registry;
mod route;
mod running;
#[cfg(feature = "openapi")]
mod schema;
mod secret;
mod settle;
pub mod store;
mod submit;
mod time;
mod trace;
mod watch;
mod worker;

pub use access::{AccessManager, NewApiKey};
pub use authorize::{
    Action, AllowWithinTenant, AuditEvent, AuditFilter, AuditLog, Authorizer, Decision, Principal, Resource,
    ScopeAuthorizer,
};
pub use body::{Body, BodyEnd, ByteStream};
pub use callback::{Callback, CallbackSender};
pub use capability::{DriverCapabilities, Scope, SpecField};
pub use config::{GatewayConfig, QueueConfig, RecordDefaults};
pub use context::{CallContext, Cancellation, Origin};
pub use credential::{ApiKey, ApiKeyState};
pub use driver::{
    BoxStream, DeployRequest, Deployment, DeploymentState, DeploymentStatus, DriverInfo, DriverRef, DriverRequest,
    EngineInfo, FaasDriver, ListScope, LogLine, LogQuery, ScaleRequest, call_header, call_headers, set_call_headers,
};
pub use error::{Delivery, Error, ErrorClass, ErrorKind, Result, Retry, Violation};
pub use executor::{FunctionExecutor, FunctionExecutorExt};
pub use function::{
    Condition, ConditionKind, CustomWorkload, Function, FunctionSpec, FunctionStatus, ImageWorkload, KeepPayloads,
    Limits, MiddlewareChoice, PayloadFormat, Phase, ProcessWorkload, Rate, RecordMode, RecordPolicy, RetryPolicy,
    Revision, RevisionReason, RevisionState, RevisionStatus, RouteEntry, Scale, SecretBinding, SecretDelivery,
    Timeouts, UnknownFields, Workload,
};
pub use gateway::{Gateway, GatewayBuilder};
pub use headers::{for_one_hop, for_one_hop_without};
pub use invocation::{
    CallState, FunctionFailure, Invocation, InvokeRequest, InvokeResponse, LogSink, Outcome, TimedPhase, Timings,
};
pub use key::{
    ApiKeyId, AuditEventId, DriverName, FunctionId, FunctionKey, FunctionName, FunctionRef, GatewayId, Generation,
    InvalidName, InvocationId, PrincipalId, Protocol, Qualifier, SecretRef, TenantId, Version,
};
pub use manager::{FunctionManager, FunctionManagerExt, Precondition};
pub use middleware::{BodyAccess, Middleware, MiddlewareFactory, Next, Settings, Stage};
pub use queue::{
    Acceptance, Accepted, Attempt, Cancelling, DeadLetterFilter, Dispatch, Due, EventRef, IdempotencyKey,
    InvocationQueue, Lineage, Progress, QueueDepth, QueueLease, QueueLimits, QueueNotifier, QueueSignal, QueueState,
    QueuedInvocation, Sequence, Settled, Settlement, StoredAnswer, StoredRequest, Submission, TakeRequest, Taken,
    TakenInvocation, Work,
};
pub use reconcile::{Reconciled, Swept};
pub use record::{
    Failure, InvocationRecord, InvocationState, KeptBytes, Quantiles, RecordFilter, Retention, Statistics,
    StatisticsQuery,
};
pub use registry::DriverRegistry;
pub use secret::{
    DirectorySecrets, EnvironmentSecrets, MemorySecrets, ProvidedSecret, REDACTED, Redactor, Secret, SecretChain,
    SecretProvider, SecretVariable, StreamRedactor,
};
pub use settle::{AsyncPolicy, CallbackTarget, Destination};
pub use store::{
    ApiKeyStore, Cursor, CursorKind, DocumentStore, Durability, FunctionFilter, FunctionStore, InvocationStore, Lease,
    Page, PageRequest, StoredDocument, UnreadableRow,
};
pub use submit::{QueueManager, Receipt, SubmitOptions};
pub use time::{Clock, Deadline, SystemClock, Timestamp};
pub use trace::TraceParent;
pub use watch::Waited;
pub use worker::{WorkerConfig, Workers};

/// The code in docs/operations.md, compiled.
#[cfg(all(doctest, feature = "sqlite", feature = "postgres", feature = "mysql"))]
#[doc = include_str!("../../docs/operations.md")]
pub struct Operations;

/// The code in docs/async.md, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/async.md")]
pub struct Async;

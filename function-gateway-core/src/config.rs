//! What a host sets for a whole gateway. A value: nothing is read from the environment.

use std::time::Duration;

use crate::{DriverCapabilities, FunctionSpec, KeepPayloads, RecordMode, Retention};

/// Settings of a gateway. Each has a default.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GatewayConfig {
    /// How long a process may go on using a route that another process has changed. A retired revision stays for this
    /// long and its longest call. Default: 1 s.
    pub route_ttl: Duration,
    /// How many routes and pipelines are held in memory. Default: 10,000.
    pub max_cached_routes: usize,
    /// The whole time of a call whose specification sets none and that does not stream. Default: 30 s.
    pub default_total_timeout: Duration,
    /// The time between two chunks of a streamed answer whose specification sets none. Default: 60 s.
    pub default_idle_timeout: Duration,
    /// How long the reader of a streamed answer may stand still between two chunks. Then the call is given up, so that nobody holds a
    /// function by not reading. Default: 5 min.
    pub max_reader_pause: Duration,
    /// The time that a new revision has to get ready, whose specification sets none. Default: 5 min.
    pub default_ready_timeout: Duration,
    /// How long a revision that streams without a total time is kept for calls that may still run on it, once it no
    /// longer serves. Default: 1 h.
    pub max_drain: Duration,
    /// How much longer still, for the time until a change is written and for clocks that differ. Default: 5 s.
    pub drain_margin: Duration,
    /// How long `create`, `update` and `delete` wait for the engine where the caller sets no deadline. Default: 30 s.
    pub default_manage_wait: Duration,
    /// The time of one operation of a driver, but for `invoke`. Default: 30 s.
    pub driver_timeout: Duration,
    /// The largest payload of a function that sets no limit, and the bound on any that does not stream. Default: 16 MiB.
    pub max_request_bytes: u64,
    /// The largest result that is not streamed, of a function that sets no limit, and the bound on any. Default: 16 MiB.
    pub max_response_bytes: u64,
    /// The bound on what a function may have kept of a payload, a result or a log. Default: 1 MiB.
    pub max_kept_bytes: u32,
    /// The bound on how many calls of a function may wait for their turn. Default: 10,000.
    pub max_queued: u32,
    /// Sizes and times of invocations that are submitted for later, or under an idempotency key.
    pub queue: QueueConfig,
    /// What is recorded of executions whose specification does not say.
    pub record: RecordDefaults,
    /// How long records, figures and audit events are kept. Default: all of them.
    pub retention: Retention,
    /// Time between two runs of the retention. Default: 1 min.
    pub retention_interval: Duration,
    /// How long a process holds the right to reconcile a function before another may take over. Default: 60 s.
    pub lease_ttl: Duration,
    /// Time between two looks for functions that are due. Default: 500 ms.
    pub reconcile_interval: Duration,
    /// Time between two comparisons of the stored functions with what the engines hold. Default: 5 min.
    pub sweep_interval: Duration,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            route_ttl: Duration::from_secs(1),
            max_cached_routes: 10_000,
            default_total_timeout: Duration::from_secs(30),
            default_idle_timeout: Duration::from_secs(60),
            max_reader_pause: Duration::from_secs(300),
            default_ready_timeout: Duration::from_secs(300),
            max_drain: Duration::from_secs(3600),
            drain_margin: Duration::from_secs(5),
            default_manage_wait: Duration::from_secs(30),
            driver_timeout: Duration::from_secs(30),
            max_request_bytes: 16 * MIB,
            max_response_bytes: 16 * MIB,
            max_kept_bytes: 1024 * 1024,
            max_queued: 10_000,
            queue: QueueConfig::default(),
            record: RecordDefaults::default(),
            retention: Retention::keep_all(),
            retention_interval: Duration::from_secs(60),
            lease_ttl: Duration::from_secs(60),
            reconcile_interval: Duration::from_millis(500),
            sweep_interval: Duration::from_secs(300),
        }
    }
}

impl GatewayConfig {
    /// The whole time of a call of a function; `None` for one that streams and sets none.
    pub(crate) fn total_timeout(&self, spec: &FunctionSpec) -> Option<Duration> {
        spec.timeouts.total.or((!spec.streaming).then_some(self.default_total_timeout))
    }

    /// How long a call may go on on a revision that no longer serves.
    pub(crate) fn longest_call(&self, spec: &FunctionSpec) -> Duration {
        self.total_timeout(spec).unwrap_or(self.max_drain)
    }

    /// How long somebody has a call from the queue for himself: longer than it can take.
    pub(crate) fn lease_of(&self, spec: &FunctionSpec) -> Duration {
        self.longest_call(spec).saturating_add(self.queue.lease_margin)
    }

    pub(crate) fn request_limit(&self, spec: &FunctionSpec, capabilities: &DriverCapabilities) -> u64 {
        let limit = spec.limits.max_request_bytes.unwrap_or(self.max_request_bytes);
        limit.min(capabilities.max_request_bytes.unwrap_or(u64::MAX))
    }

    /// A stream is bounded only where its specification says so.
    pub(crate) fn response_limit(&self, spec: &FunctionSpec) -> u64 {
        let default = if spec.streaming { u64::MAX } else { self.max_response_bytes };
        spec.limits.max_response_bytes.unwrap_or(default)
    }
}

/// Sizes and times of invocations that are submitted for later, or under an idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueConfig {
    /// How many invocations of a function may be waiting or running; further ones are refused. Default: 100,000.
    pub max_per_function: u64,
    /// How many of a tenant. Default: 1,000,000.
    pub max_per_tenant: u64,
    /// How many of a function may be pinned to a generation. Default: 1,000.
    pub max_pinned: u64,
    /// The largest payload that is accepted, where the function's own limit is not lower. Default: 1 MiB.
    pub max_payload_bytes: u64,
    /// The largest result that is kept. A larger one is not; that it came is. Default: 1 MiB.
    pub max_result_bytes: u64,
    /// How long payload and result are kept after the end. An idempotency key holds as long. Default: 24 h.
    pub keep_for: Duration,
    /// How far in the future an invocation may be due. Default: 365 days.
    pub max_delay: Duration,
    /// How many invocations may follow one upon the other by `on_success` and `on_failure`. Default: 16.
    pub max_chain: u32,
    /// How much longer than its call the right to execute an invocation lasts. What died is taken again that much later. Default: 15 s.
    pub lease_margin: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            max_per_function: 100_000,
            max_per_tenant: 1_000_000,
            max_pinned: 1_000,
            max_payload_bytes: MIB,
            max_result_bytes: MIB,
            keep_for: DAY,
            max_delay: DAY * 365,
            max_chain: 16,
            lease_margin: Duration::from_secs(15),
        }
    }
}

/// What is recorded of executions whose specification does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordDefaults {
    /// How surely. Default: [`RecordMode::Buffered`].
    pub mode: RecordMode,
    /// Whether payload and result are kept. Default: [`KeepPayloads::Never`].
    pub payloads: KeepPayloads,
    /// How much of payload and result each is kept, in bytes. Default: 16 KiB.
    pub max_payload_bytes: u32,
    /// How much of the log is kept, in bytes. Default: 64 KiB.
    pub max_log_bytes: u32,
}

impl Default for RecordDefaults {
    fn default() -> Self {
        Self {
            mode: RecordMode::Buffered,
            payloads: KeepPayloads::Never,
            max_payload_bytes: 16 * 1024,
            max_log_bytes: 64 * 1024,
        }
    }
}

impl RecordDefaults {
    /// What holds for a function.
    pub(crate) fn for_spec(self, spec: &FunctionSpec) -> Self {
        let own = &spec.record;
        Self {
            mode: own.mode.unwrap_or(self.mode),
            payloads: own.payloads.unwrap_or(self.payloads),
            max_payload_bytes: own.max_payload_bytes.unwrap_or(self.max_payload_bytes),
            max_log_bytes: own.max_log_bytes.unwrap_or(self.max_log_bytes),
        }
    }
}

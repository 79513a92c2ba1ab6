//! What a driver can do, and the one place that checks a specification against it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    DriverInfo, FunctionSpec, PayloadFormat, Protocol, RecordMode, RecordPolicy, Retry, SecretDelivery, UnknownFields,
    Violation, Workload,
};

/// Whether the processes of a gateway see the same deployments in the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// What one process deploys serves all.
    #[default]
    Shared,
    /// The engine lives in the process: each deploys for itself, and again after a restart.
    PerProcess,
}

macro_rules! capabilities {
    ($($(#[doc = $doc:literal])+ $name:ident;)+) => {
        /// What a driver can do with a protocol. Nothing is assumed that is not declared.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct DriverCapabilities {
            /// Whether the processes of a gateway see the same deployments.
            pub scope: Scope,
            $($(#[doc = $doc])+ pub $name: bool,)+
            /// The largest payload that it takes, in bytes.
            pub max_request_bytes: Option<u64>,
            /// The largest answer that it gives, in bytes.
            pub max_response_bytes: Option<u64>,
        }

        impl DriverCapabilities {
            /// Nothing.
            pub const NONE: Self = Self {
                scope: Scope::Shared,
                $($name: false,)+
                max_request_bytes: None,
                max_response_bytes: None,
            };

            /// Every yes-or-no capability: its name, what it means, and whether it is declared.
            #[must_use]
            pub fn flags(&self) -> Vec<(&'static str, &'static str, bool)> {
                vec![$((stringify!($name), concat!($($doc),+).trim_ascii(), self.$name)),+]
            }
        }
    };
}

capabilities! {
    /// Runs programs of its machine (`run.process`).
    process;
    /// Runs container images (`run.image`).
    image;
    /// Runs workloads of its own kinds (`run.custom`).
    custom;
    /// Sets environment variables.
    env;
    /// Hands secrets over in the environment when it deploys or starts an instance.
    secrets_at_deploy;
    /// Hands secrets over in the environment at each call.
    secrets_per_call;
    /// Payload and answer pass as streams.
    streaming;
    /// Dropping a call stops the function.
    cancel;
    /// Tells the log of each call.
    invocation_logs;
    /// Reads the log of a function.
    logs;
    /// Sets the number of instances on demand.
    scale;
    /// Keeps bounds on the number of instances (`scale.min`, `scale.max`).
    scale_bounds;
    /// Limits the calls that an instance takes at a time (`scale.instance_concurrency`).
    instance_concurrency;
    /// Limits memory (`limits.memory_bytes`).
    memory_limit;
    /// Limits CPU (`limits.cpu_millis`).
    cpu_limit;
    /// Asks a path before a revision gets calls (`readiness_path`).
    readiness_path;
    /// Its engine may send `GET`, `HEAD` and `OPTIONS` a second time by itself; functions have to take it.
    engine_may_repeat;
}

impl DriverCapabilities {
    /// Changes what is declared, since the struct can't be written out outside this crate.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// A part of a specification that somebody in the gateway has to honour. One that nobody claims is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SpecField {
    /// `input_schema`
    InputSchema,
    /// `output_schema`
    OutputSchema,
    /// `secrets` that reach the function at each call
    Secrets,
    /// `limits.max_in_flight`, `limits.max_queued` and `timeouts.queue_ms`
    MaxInFlight,
    /// `limits.rate`
    Rate,
    /// `retry`
    Retry,
    /// `timeouts.attempt_ms`
    AttemptTimeout,
    /// `timeouts.total_ms`, `timeouts.first_byte_ms` and `timeouts.idle_ms`
    TotalTimeout,
    /// `async`
    Async,
    /// `record`
    Record,
}

impl SpecField {
    /// Where it stands in a specification, as a JSON Pointer.
    #[must_use]
    pub fn pointer(self) -> &'static str {
        match self {
            Self::InputSchema => "/input_schema",
            Self::OutputSchema => "/output_schema",
            Self::Secrets => "/secrets",
            Self::MaxInFlight => "/limits/max_in_flight",
            Self::Rate => "/limits/rate",
            Self::Retry => "/retry",
            Self::AttemptTimeout => "/timeouts/attempt_ms",
            Self::TotalTimeout => "/timeouts/total_ms",
            Self::Async => "/async",
            Self::Record => "/record",
        }
    }

    /// The fields that a specification uses.
    fn used_by(spec: &FunctionSpec, caps: &DriverCapabilities) -> Vec<Self> {
        let per_call = |binding: &crate::SecretBinding| match binding.deliver {
            SecretDelivery::Env(_) => caps.secrets_per_call,
            SecretDelivery::Envelope(_) => true,
        };
        let limits = &spec.limits;
        let timeouts = &spec.timeouts;
        let in_flight = limits.max_in_flight.is_some() || limits.max_queued.is_some() || timeouts.queue.is_some();
        let total = timeouts.total.or(timeouts.first_byte).or(timeouts.idle).is_some();
        let candidates = [
            (Self::InputSchema, spec.input_schema.is_some()),
            (Self::OutputSchema, spec.output_schema.is_some()),
            (Self::Secrets, spec.secrets.iter().any(per_call)),
            (Self::MaxInFlight, in_flight),
            (Self::Rate, limits.rate.is_some()),
            (Self::Retry, spec.retry.is_some()),
            (Self::AttemptTimeout, timeouts.attempt.is_some()),
            (Self::TotalTimeout, total),
            (Self::Async, spec.async_policy.is_some()),
            (Self::Record, spec.record != RecordPolicy::default()),
        ];
        candidates.into_iter().filter_map(|(field, used)| used.then_some(field)).collect()
    }
}

const MAX_DESCRIPTION: usize = 1024;
const MAX_LABELS: usize = 32;
const MAX_LABEL_KEY: usize = 63;
const MAX_LABEL_VALUE: usize = 255;
const MAX_ATTEMPTS: u32 = 10;

/// Everything that is wrong with a specification by itself, and all that neither the driver nor a middleware honours.
pub(crate) fn check_spec(
    spec: &FunctionSpec,
    info: &DriverInfo,
    caps: &DriverCapabilities,
    claims: &BTreeSet<SpecField>,
) -> Vec<Violation> {
    let mut found = Vec::new();
    check_shape(spec, &mut found);
    if info.protocols.contains(&spec.protocol) {
        check_capabilities(spec, info, caps, &mut found);
    } else {
        let known = info.protocols.iter().map(Protocol::as_str).collect::<Vec<_>>().join(", ");
        let reason = format!("the driver {} does not speak {:?}; it speaks: {known}", info.kind, spec.protocol);
        found.push(Violation::new("/protocol", reason));
    }
    for field in SpecField::used_by(spec, caps) {
        if !claims.contains(&field) {
            let reason = "nothing in this gateway honours it: the host has registered no middleware that does";
            found.push(Violation::new(field.pointer(), reason));
        }
    }
    found
}

/// Everything that is wrong with a specification by itself, whoever is to run it.
pub(crate) fn check_shape(spec: &FunctionSpec, found: &mut Vec<Violation>) {
    check_unknown(spec, found);
    let mut add = |pointer: String, reason: String| found.push(Violation::new(pointer, reason));
    if spec.description.len() > MAX_DESCRIPTION {
        add(
            "/description".into(),
            format!("is {} bytes long, at most {MAX_DESCRIPTION} are allowed", spec.description.len()),
        );
    }
    if spec.labels.len() > MAX_LABELS {
        add("/labels".into(), format!("there are {} labels, at most {MAX_LABELS} are allowed", spec.labels.len()));
    }
    for (key, value) in &spec.labels {
        let at = format!("/labels/{}", escape(key));
        if key.is_empty() || key.len() > MAX_LABEL_KEY || key.chars().any(char::is_control) {
            add(at.clone(), format!("a key is 1 to {MAX_LABEL_KEY} bytes without control characters"));
        }
        if value.len() > MAX_LABEL_VALUE || value.chars().any(char::is_control) {
            add(at, format!("a value is at most {MAX_LABEL_VALUE} bytes without control characters"));
        }
    }
    let mut variables = BTreeMap::new();
    for (name, value) in &spec.env {
        let at = format!("/env/{}", escape(name));
        if let Some(reason) = bad_variable(name) {
            add(at.clone(), reason);
        }
        if value.contains('\0') {
            add(at.clone(), "a value can't contain a NUL byte".into());
        }
        variables.insert(name.as_str(), at);
    }
    let mut names = BTreeSet::new();
    for (index, binding) in spec.secrets.iter().enumerate() {
        let at = format!("/secrets/{index}/deliver");
        match &binding.deliver {
            SecretDelivery::Env(name) => {
                if let Some(reason) = bad_variable(name) {
                    add(format!("{at}/env"), reason);
                }
                if let Some(other) = variables.insert(name, format!("{at}/env")) {
                    add(format!("{at}/env"), format!("the variable {name:?} is set at {other} already"));
                }
            }
            SecretDelivery::Envelope(name) => {
                if spec.format != PayloadFormat::Envelope {
                    add(format!("{at}/envelope"), "needs `format: envelope`".into());
                }
                if !names.insert(name) {
                    add(format!("{at}/envelope"), format!("{name:?} is used by another secret already"));
                }
            }
        }
    }
    if spec.streaming && spec.format == PayloadFormat::Envelope {
        add("/streaming".into(), "an envelope is read whole: `format: envelope` can't stream".into());
    }
    if spec.streaming && spec.retry.is_some() {
        add("/retry".into(), "a streaming function is never retried: its payload can be read once".into());
    }
    let positive = [
        ("/limits/max_in_flight", spec.limits.max_in_flight == Some(0)),
        ("/limits/memory_bytes", spec.limits.memory_bytes == Some(0)),
        ("/limits/cpu_millis", spec.limits.cpu_millis == Some(0)),
        ("/scale/max", spec.scale.as_ref().is_some_and(|scale| scale.max == Some(0))),
        ("/scale/instance_concurrency", spec.scale.as_ref().is_some_and(|scale| scale.instance_concurrency == Some(0))),
        ("/timeouts/attempt_ms", spec.timeouts.attempt.is_some_and(|timeout| timeout.is_zero())),
        ("/timeouts/first_byte_ms", spec.timeouts.first_byte.is_some_and(|timeout| timeout.is_zero())),
        ("/timeouts/idle_ms", spec.timeouts.idle.is_some_and(|timeout| timeout.is_zero())),
        ("/timeouts/total_ms", spec.timeouts.total.is_some_and(|timeout| timeout.is_zero())),
        ("/timeouts/ready_ms", spec.timeouts.ready.is_some_and(|timeout| timeout.is_zero())),
    ];
    for (pointer, broken) in positive {
        if broken {
            add(pointer.into(), "must be at least 1; leave it out for no limit".into());
        }
    }
    if spec.limits.max_in_flight.is_none() && (spec.limits.max_queued.is_some() || spec.timeouts.queue.is_some()) {
        add("/limits/max_in_flight".into(), "is needed where there is a queue before it".into());
    }
    if let Some(rate) = spec.limits.rate
        && (rate.calls == 0 || rate.per.is_zero() || rate.burst == Some(0))
    {
        add("/limits/rate".into(), "`calls`, `per_ms` and `burst` must be at least 1".into());
    }
    if let Some(scale) = &spec.scale
        && let (Some(min), Some(max)) = (scale.min, scale.max)
        && min > max
    {
        add("/scale/min".into(), format!("is greater than `max`, which is {max}"));
    }
    if let Some(policy) = &spec.async_policy {
        policy.check("/async", found);
    }
    let mut add = |pointer: String, reason: String| found.push(Violation::new(pointer, reason));
    if let Some(retry) = &spec.retry {
        if !(1..=MAX_ATTEMPTS).contains(&retry.max_attempts) {
            add("/retry/max_attempts".into(), format!("must be from 1 to {MAX_ATTEMPTS}"));
        }
        if retry.initial_backoff > retry.max_backoff {
            add("/retry/initial_backoff_ms".into(), "is greater than `max_backoff_ms`".into());
        }
    }
    if spec.record.mode == Some(RecordMode::Off) && spec.record != RecordPolicy::off() {
        add("/record/mode".into(), "is `off`, and the other settings ask for something to be kept".into());
    }
    if let Some(path) = &spec.readiness_path
        && !path.starts_with('/')
    {
        add("/readiness_path".into(), "must start with '/'".into());
    }
}

fn check_capabilities(spec: &FunctionSpec, info: &DriverInfo, caps: &DriverCapabilities, found: &mut Vec<Violation>) {
    let scale = spec.scale.clone().unwrap_or_default();
    let env_secret = spec.secrets.iter().position(|binding| matches!(binding.deliver, SecretDelivery::Env(_)));
    let (workload, runs) = match &spec.run {
        Workload::Process(_) => ("process", caps.process),
        Workload::Image(_) => ("image", caps.image),
        Workload::Custom(_) => ("custom", caps.custom),
    };
    let needed = [
        (format!("/run/{workload}"), true, runs),
        ("/env".to_owned(), !spec.env.is_empty(), caps.env),
        (
            format!("/secrets/{}/deliver/env", env_secret.unwrap_or_default()),
            env_secret.is_some(),
            caps.secrets_at_deploy || caps.secrets_per_call,
        ),
        ("/streaming".to_owned(), spec.streaming, caps.streaming),
        ("/limits/memory_bytes".to_owned(), spec.limits.memory_bytes.is_some(), caps.memory_limit),
        ("/limits/cpu_millis".to_owned(), spec.limits.cpu_millis.is_some(), caps.cpu_limit),
        ("/scale/min".to_owned(), scale.min.is_some(), caps.scale_bounds),
        ("/scale/max".to_owned(), scale.max.is_some(), caps.scale_bounds),
        ("/scale/instance_concurrency".to_owned(), scale.instance_concurrency.is_some(), caps.instance_concurrency),
        ("/readiness_path".to_owned(), spec.readiness_path.is_some(), caps.readiness_path),
    ];
    for (pointer, used, offered) in needed {
        if used && !offered {
            let reason = format!("the driver {} can't honour it with the protocol {:?}", info.kind, spec.protocol);
            found.push(Violation::new(pointer, reason));
        }
    }
    let sizes = [
        ("/limits/max_request_bytes", spec.limits.max_request_bytes, caps.max_request_bytes),
        ("/limits/max_response_bytes", spec.limits.max_response_bytes, caps.max_response_bytes),
    ];
    for (pointer, wanted, offered) in sizes {
        if let (Some(wanted), Some(offered)) = (wanted, offered)
            && wanted > offered
        {
            found.push(Violation::new(pointer, format!("the driver {} takes at most {offered} bytes", info.kind)));
        }
    }
}

/// Fields that nobody knows are refused at creation: a mistyped setting must not be stored and ignored.
fn check_unknown(spec: &FunctionSpec, found: &mut Vec<Violation>) {
    let mut check = |at: &str, unknown: &UnknownFields| {
        for name in unknown.names() {
            found.push(Violation::new(format!("{at}/{}", escape(name)), "there is no such setting"));
        }
    };
    check("", &spec.unknown);
    match &spec.run {
        Workload::Process(run) => check("/run/process", &run.unknown),
        Workload::Image(run) => check("/run/image", &run.unknown),
        Workload::Custom(run) => check("/run/custom", &run.unknown),
    }
    for (index, binding) in spec.secrets.iter().enumerate() {
        check(&format!("/secrets/{index}"), &binding.unknown);
    }
    check("/timeouts", &spec.timeouts.unknown);
    check("/limits", &spec.limits.unknown);
    check("/record", &spec.record.unknown);
    if let Some(scale) = &spec.scale {
        check("/scale", &scale.unknown);
    }
    if let Some(retry) = &spec.retry {
        check("/retry", &retry.unknown);
    }
}

fn bad_variable(name: &str) -> Option<String> {
    let bad = name.is_empty() || name.contains(['=', '\0']) || name.chars().any(char::is_control);
    bad.then(|| "the name of a variable is not empty and has no '=' and no control character".to_owned())
}

/// A name as part of a JSON Pointer (RFC 6901, section 3).
pub(crate) fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Whether a failed attempt may be made again: the one rule.
pub(crate) fn may_retry(error: &crate::Error, spec: &FunctionSpec) -> bool {
    error.retry() == Retry::Transient && (error.delivery() == crate::Delivery::NotSent || spec.idempotent)
}

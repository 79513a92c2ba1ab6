//! The gateway: a store, drivers, middleware and a REST API put together, until somebody stops it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::{env, fs, process};

use function_gateway::callbacks::HttpCallbacks;
use function_gateway::drivers::knative::Knative;
use function_gateway::drivers::local_process::LocalProcess;
use function_gateway::drivers::openfaas::OpenFaas;
use function_gateway::events::EventBroker;
use function_gateway::middleware::secrets::{Secrets, SecretsOptions};
use function_gateway::middleware::validation::Validation;
use function_gateway::rest::auth::jwt::{JwtAuthenticator, JwtKeys, JwtOptions};
use function_gateway::rest::serve::{ServeOptions, Threads, serve};
use function_gateway::rest::{ApiKeyAuthenticator, RestApi, RestOptions, ThisMachine};
use function_gateway::store::sql::SqlStore;
use function_gateway::{
    DirectorySecrets, DriverName, EnvironmentSecrets, FaasDriver, Gateway, GatewayConfig, MemorySecrets, Principal,
    Retention, ScopeAuthorizer, Secret, SecretChain, SecretProvider, TenantId, WorkerConfig,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_util::MetricKindMask;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Authentication, Config, Driver, DriverKind, Mode, Workers};
use crate::exit::{Exit, Failure, Result};
use crate::output::Progress;
use crate::samples::{self, Registered};
use crate::welcome::Welcome;
use crate::{log, store};

/// Runs the gateway until it is stopped.
pub(crate) async fn run(config: &Config, file: Option<PathBuf>) -> Result<()> {
    let welcomed = log::start(&config.log)?;
    let metrics = record_metrics()?;
    let stop = stop_by_signal()?;
    let tokens = tokens(config).await?;
    let in_use = |error| Failure::new(Exit::GatewayFailed, format!("can't listen on {}: {error}", config.listen));
    let listener = TcpListener::bind(config.listen).await.map_err(in_use)?;
    let address = listener.local_addr().map_err(in_use)?;

    let store = store::open(config).await?;
    let gateway = gateway(config, store.clone()).await?;
    let broker = EventBroker::new(gateway.clone(), Arc::new(store.clone()));
    let api = api(config, gateway.clone(), broker, tokens, metrics)?;
    let samples = register_samples(config, &gateway).await?;
    if config.workers.enabled {
        // They end with the gateway.
        gateway.start_workers(worker_config(&config.workers))?;
    }
    Welcome { config, file: file.as_deref(), address, samples: &samples }.show()?;
    welcomed.store(true, Ordering::Relaxed);

    let threads = config.threads.map_or_else(Threads::for_each_processor, Threads::start);
    let threads =
        threads.map_err(|error| Failure::new(Exit::GatewayFailed, format!("can't start the threads: {error}")))?;
    let options = serve_options(config).with_runtimes(threads.runtimes());
    let grace = options.grace;
    let serving = async {
        let served = serve(listener, api.router(), options, stop.cancelled()).await;
        stop.cancel();
        served
    };
    // At the same time, so that who follows a log does not keep the gateway from ending.
    let draining = async {
        stop.cancelled().await;
        gateway.shutdown(grace).await
    };
    let (served, drained) = tokio::join!(serving, draining);
    store.close().await;
    // What they serve has ended.
    drop(threads);
    served.and(drained)?;
    tracing::info!("stopped");
    Ok(())
}

fn serve_options(config: &Config) -> ServeOptions {
    let limits = &config.limits;
    ServeOptions::default()
        .with_max_connections(limits.max_connections)
        .with_max_streams(limits.max_streams.get())
        .with_max_header_bytes(limits.max_header_bytes)
        .with_header_timeout(Duration::from_millis(limits.header_timeout_ms.get()))
        .with_write_timeout(Duration::from_millis(limits.write_timeout_ms.get()))
        .with_grace(Duration::from_millis(limits.shutdown_grace_ms))
}

fn rest_options(config: &Config) -> Result<RestOptions> {
    let limits = &config.limits;
    let options = RestOptions::default()
        .with_max_document_bytes(limits.max_document_bytes)
        .with_document_timeout(Duration::from_millis(limits.document_timeout_ms.get()))
        .with_upload_idle_timeout(Duration::from_millis(limits.upload_idle_timeout_ms.get()));
    Ok(match config.cors.allowed()? {
        Some(cors) => options.with_cors(cors),
        None => options,
    })
}

async fn gateway(config: &Config, store: SqlStore) -> Result<Gateway> {
    let mut gateway = Gateway::builder()
        .config(gateway_config(config))
        .store(Arc::new(store))
        .middleware_for_all(Arc::new(Validation::default()))
        .callbacks(Arc::new(callbacks(&config.callbacks)?))
        .authorizer(Arc::new(ScopeAuthorizer));
    let secrets = secrets(config)?;
    for (name, settings) in &config.drivers {
        gateway = gateway.driver(name.clone(), driver(name, settings, &secrets)?);
    }
    if !secrets.is_empty() {
        // For functions that get them when they are deployed, and for those that get them with each call.
        gateway = gateway
            .secrets(Arc::new(secrets.clone()))
            .middleware_for_all(Arc::new(Secrets::new(secrets, SecretsOptions::default())));
    }
    Ok(gateway.build().await?)
}

fn callbacks(settings: &toml::Table) -> Result<HttpCallbacks> {
    HttpCallbacks::new(read("callbacks", settings)?).map_err(|error| refused("callbacks", error))
}

/// Reads what a library is set up with, and says where what is wrong stands.
fn read<T: DeserializeOwned>(place: &str, settings: &toml::Table) -> Result<T> {
    serde_path_to_error::deserialize(settings.clone()).map_err(|error| {
        let place = match error.path().iter().next() {
            Some(_) => format!("{place}.{}", error.path()),
            None => place.to_owned(),
        };
        Failure::usage(format!("`{place}`: {}", error.inner().message()))
    })
}

fn refused(place: &str, error: function_gateway::Error) -> Failure {
    let failure = Failure::from(error);
    Failure { message: format!("`{place}`: {}", failure.message), ..failure }
}

fn gateway_config(config: &Config) -> GatewayConfig {
    let Config { limits, queue, records, retention: kept, .. } = config;
    let days = |days: u32| Duration::from_secs(86_400) * days;
    let mut gateway = GatewayConfig::default();
    gateway.max_request_bytes = limits.max_request_bytes;
    gateway.max_response_bytes = limits.max_response_bytes;
    gateway.max_kept_bytes = limits.max_kept_bytes;
    gateway.max_queued = limits.max_queued;
    gateway.default_total_timeout = Duration::from_millis(limits.total_timeout_ms);
    gateway.default_idle_timeout = Duration::from_millis(limits.idle_timeout_ms);
    gateway.max_reader_pause = Duration::from_millis(limits.max_reader_pause_ms.get());
    gateway.default_manage_wait = Duration::from_millis(limits.manage_wait_ms);
    gateway.driver_timeout = Duration::from_millis(limits.driver_timeout_ms.get());
    gateway.default_ready_timeout = Duration::from_millis(limits.ready_timeout_ms);
    gateway.queue.max_per_function = queue.max_per_function;
    gateway.queue.max_per_tenant = queue.max_per_tenant;
    gateway.queue.max_pinned = queue.max_pinned;
    gateway.queue.max_payload_bytes = queue.max_payload_bytes;
    gateway.queue.max_result_bytes = queue.max_result_bytes;
    gateway.queue.keep_for = Duration::from_secs(3600) * queue.keep_hours.get();
    gateway.queue.max_delay = days(queue.max_delay_days);
    gateway.queue.max_chain = queue.max_chain;
    gateway.queue.lease_margin = Duration::from_millis(queue.lease_margin_ms);
    gateway.record.mode = records.mode;
    gateway.record.payloads = records.payloads;
    gateway.record.max_payload_bytes = records.max_payload_bytes;
    gateway.record.max_log_bytes = records.max_log_bytes;
    gateway.retention = Retention::keep_all();
    gateway.retention.max_age = kept.max_age_days.map(days);
    gateway.retention.max_per_function = kept.max_per_function;
    gateway.retention.max_statistics_age = kept.max_statistics_age_days.map(days);
    gateway.retention.max_audit_age = kept.max_audit_age_days.map(days);
    gateway
}

fn worker_config(workers: &Workers) -> WorkerConfig {
    let config = WorkerConfig::default()
        .with_concurrency(workers.concurrency.get())
        .with_poll_interval(Duration::from_millis(workers.poll_interval_ms.get()));
    match workers.max_per_tenant {
        Some(most) => config.with_max_per_tenant(most.get()),
        None => config,
    }
}

fn driver(name: &DriverName, driver: &Driver, secrets: &SecretChain) -> Result<Arc<dyn FaasDriver>> {
    let place = format!("drivers.{name}");
    let refused = |error| refused(&place, error);
    Ok(match driver.kind {
        DriverKind::LocalProcess => Arc::new(LocalProcess::new(read(&place, &driver.settings)?).map_err(refused)?),
        DriverKind::Knative => {
            let config = read(&place, &driver.settings)?;
            let driver = match secrets.is_empty() {
                true => Knative::new(config),
                false => Knative::with_secrets(config, Arc::new(secrets.clone())),
            };
            Arc::new(driver.map_err(refused)?)
        }
        DriverKind::OpenFaas => {
            let config = read(&place, &driver.settings)?;
            let driver = match secrets.is_empty() {
                // It says so where it needs some.
                true => OpenFaas::new(config),
                false => OpenFaas::with_secrets(config, Arc::new(secrets.clone())),
            };
            Arc::new(driver.map_err(refused)?)
        }
    })
}

fn secrets(config: &Config) -> Result<SecretChain> {
    let configured = &config.secrets;
    let mut chain: Vec<Arc<dyn SecretProvider>> = Vec::new();
    if let Some(directory) = &configured.directory {
        let unreadable = |error| Failure::usage(format!("`secrets.directory`: {}: {error}", directory.display()));
        let mut folders = Vec::new();
        for entry in fs::read_dir(directory).map_err(unreadable)? {
            let folder = entry.map_err(unreadable)?.path();
            let tenant = folder.file_name().and_then(|name| name.to_str()?.parse::<TenantId>().ok());
            // Kubernetes puts more beside what it mounts.
            if let Some(tenant) = tenant.filter(|_| folder.is_dir()) {
                folders.push((tenant, folder));
            }
        }
        chain.push(Arc::new(DirectorySecrets::new(folders)));
    }
    if !configured.environment.is_empty() {
        chain.push(Arc::new(EnvironmentSecrets::new(env::vars_os(), configured.environment.clone())?));
    }
    if !configured.memory.is_empty() {
        let memory = MemorySecrets::new();
        for (name, value) in &configured.memory {
            let parts =
                name.split_once('/').and_then(|(tenant, name)| Some((tenant.parse().ok()?, name.parse().ok()?)));
            let (tenant, secret) = parts
                .ok_or_else(|| Failure::usage(format!("`secrets.memory`: {name:?} is not like \"TENANT/NAME\"")))?;
            memory.set(tenant, secret, Secret::new(value.clone()));
        }
        chain.push(Arc::new(memory));
    }
    Ok(SecretChain::new(chain))
}

fn api(
    config: &Config,
    gateway: Gateway,
    broker: EventBroker,
    tokens: Option<JwtAuthenticator>,
    metrics: PrometheusHandle,
) -> Result<RestApi> {
    let mut api = RestApi::builder(gateway.clone())
        .options(rest_options(config)?)
        .events(broker)
        .metrics(move || metrics.render());
    let modes = &config.authentication.modes;
    if modes.contains(&Mode::None) {
        let advice = "switch authentication on, such as with --authentication api-keys";
        api = api.authenticator(ThisMachine::new(anonymous(&config.tenant)?).with_advice(advice));
    }
    if modes.contains(&Mode::ApiKeys) {
        api = api.authenticator(ApiKeyAuthenticator::new(gateway));
    }
    if let Some(tokens) = tokens {
        api = api.authenticator(tokens);
    }
    Ok(api.build()?)
}

/// Knows callers by their tokens, where that is configured.
async fn tokens(config: &Config) -> Result<Option<JwtAuthenticator>> {
    let Authentication { modes, jwt } = &config.authentication;
    if !modes.contains(&Mode::Jwt) {
        return Ok(None);
    }
    let missing =
        |what| Failure::usage(format!("`authentication.jwt.{what}` is needed to know callers by their tokens"));
    let issuer = jwt.issuer.as_deref().ok_or_else(|| missing("issuer"))?;
    let (audience, more) = jwt.audiences.split_first().ok_or_else(|| missing("audiences"))?;
    let keys = match (&jwt.keys_url, &jwt.keys_file) {
        (Some(url), None) => JwtKeys::from_url(url)?,
        (None, Some(file)) => JwtKeys::from_file(file).await?,
        (None, None) => return Err(missing("keys_url")),
        (Some(_), Some(_)) => return Err(Failure::usage("`authentication.jwt`: either keys_url or keys_file is set")),
    };
    let options = JwtOptions::new(issuer, audience, keys).with_scope_claim(&jwt.scope_claim);
    let options = match &jwt.tenant {
        Some(tenant) => options.with_tenant(tenant.clone()),
        None => options.with_tenant_claim(&jwt.tenant_claim),
    };
    let options = more.iter().fold(options, |options, audience| options.with_audience(audience));
    Ok(Some(JwtAuthenticator::new(options)))
}

/// Who calls where nobody has to say so: may do everything.
fn anonymous(tenant: &TenantId) -> Result<Principal> {
    let name = "anonymous".parse().map_err(function_gateway::Error::from)?;
    Ok(Principal::new(tenant.clone(), name).with_scope("admin").with_scope("metrics"))
}

async fn register_samples(config: &Config, gateway: &Gateway) -> Result<Registered> {
    let runs_processes = |driver: &Driver| driver.kind == DriverKind::LocalProcess;
    let driver = config.drivers.iter().find(|(_, driver)| runs_processes(driver));
    let Some((driver, _)) = driver.filter(|_| config.samples.register) else { return Ok(Registered::default()) };
    let _progress = Progress::start("The sample functions are getting ready");
    samples::register(gateway, &config.tenant, driver, &config.samples.folder).await
}

/// Has what the gateway measures kept for `/metrics`.
fn record_metrics() -> Result<PrometheusHandle> {
    const UPKEEP: Duration = Duration::from_secs(5);
    /// A series of a function that was deleted would stay for ever. One that goes on counts from zero again, as after a restart.
    const KEEP: Duration = Duration::from_secs(86_400);
    let recorder = recorder(KEEP)?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| not_recorded(&error))?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(UPKEEP);
        loop {
            interval.tick().await;
            // What alerts go by is not to be forgotten.
            metrics::counter!("function_gateway.records.lost").increment(0);
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// Keeps each series for so long after it was last measured.
fn recorder(keep: Duration) -> Result<PrometheusRecorder> {
    /// In seconds: everything of which there is a histogram is a time.
    const BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    let builder = PrometheusBuilder::new().set_buckets(&BUCKETS).map_err(|error| not_recorded(&error))?;
    Ok(builder.idle_timeout(MetricKindMask::ALL, Some(keep)).build_recorder())
}

fn not_recorded(error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::GatewayFailed, format!("metrics can't be recorded: {error}"))
}

/// Is cancelled by the first Ctrl-C or SIGTERM. A second one ends the process at once.
fn stop_by_signal() -> Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stopped.is_cancelled() {
                process::exit(Exit::Interrupted as i32);
            }
            tracing::info!("stopping once all calls have ended; Ctrl-C again stops at once");
            stopped.cancel();
        }
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings;

    #[test]
    fn the_defaults_are_those_of_the_library() {
        let ours: Config = settings::defaults();
        assert_eq!(format!("{:?}", gateway_config(&ours)), format!("{:?}", GatewayConfig::default()));
        assert_eq!(worker_config(&ours.workers), WorkerConfig::default());
        assert_eq!(format!("{:?}", rest_options(&ours).unwrap()), format!("{:?}", RestOptions::default()));
        assert_eq!(format!("{:?}", serve_options(&ours)), format!("{:?}", ServeOptions::default()));
    }

    #[test]
    fn each_limit_is_one_of_the_library() {
        let shown = |config: &Config| {
            let (rest, serve) = (rest_options(config).unwrap(), serve_options(config));
            format!("{:?}{rest:?}{serve:?}", gateway_config(config))
        };
        for limit in settings::of("limits") {
            let set = shown(&settings::with(limit, "123456"));
            let limit = limit.trim_start_matches("limits.").trim_end_matches("_ms");
            let name = limit.trim_start_matches("shutdown_");
            // As a number, or as milliseconds.
            let holds = [": 123456", ": 123.456s"].iter().any(|value| {
                let field = format!("{name}{value}");
                set.contains(&format!(" {field}")) || set.contains(&format!(" default_{field}"))
            });
            assert!(holds, "{limit}: {set}");
        }
    }

    #[test]
    fn what_is_not_measured_any_more_is_forgotten() {
        for (keep, stays) in [(Duration::from_secs(86_400), true), (Duration::from_nanos(1), false)] {
            let recorder = recorder(keep).unwrap();
            metrics::with_local_recorder(&recorder, || {
                metrics::counter!("calls", "function" => "deleted").increment(1);
                metrics::gauge!("depth", "function" => "deleted").set(1.0);
                metrics::histogram!("took", "function" => "deleted").record(0.5);
            });
            let handle = recorder.handle();
            // The first one notes when.
            for series in ["calls{", "depth{", "took_bucket{"] {
                assert!(handle.render().contains(series) || !stays, "{series}");
            }
            assert_eq!(handle.render().contains("deleted"), stays, "{}", handle.render());
        }
    }
}

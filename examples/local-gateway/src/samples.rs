//! The sample functions: the ones that need nothing but a shell and Python.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use function_gateway::{
    CallContext, DriverName, Error, ErrorKind, Function, FunctionManager as _, FunctionName, FunctionSpec, Gateway,
    PayloadFormat, Phase, Precondition, Principal, ProcessWorkload, TenantId, Workload,
};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::exit::{Failure, Result};

/// Where they are, unless another folder is set.
pub(crate) const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../functions");

/// As whom the samples are created. What another principal has changed since is left alone.
const CREATOR: &str = "samples";

/// What became of the samples.
#[derive(Debug, Default)]
pub(crate) struct Registered {
    pub(crate) ready: Vec<FunctionName>,
    /// The names of others, and why they are not ready.
    pub(crate) missing: Vec<(String, String)>,
}

impl Registered {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.ready.iter().any(|ready| ready.as_str() == name)
    }
}

/// A sample: its name, its file or folder, what it needs, and how its specification differs from the usual one.
type Sample = (&'static str, &'static str, Needs, fn(FunctionSpec) -> FunctionSpec);

#[derive(PartialEq, Eq)]
enum Needs {
    Shell,
    Python,
}

const SAMPLES: &[Sample] = &[
    ("countdown", "countdown", Needs::Python, |spec| spec),
    ("fail", "fail.sh", Needs::Shell, |spec| spec),
    ("greet", "greet.py", Needs::Python, |spec| spec.with_input_schema(takes_a_name())),
    ("resize-plan", "resize-plan.py", Needs::Python, |mut spec| {
        spec.format = PayloadFormat::Envelope;
        spec
    }),
    ("slow", "slow.sh", Needs::Shell, |spec| spec),
    ("word-count", "word-count.sh", Needs::Shell, |spec| spec),
];

fn takes_a_name() -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 1}},
        "required": ["name"],
    })
}

/// Creates the samples that are not there yet, updates those whose files are elsewhere now, and waits until they are ready.
pub(crate) async fn register(
    gateway: &Gateway,
    tenant: &TenantId,
    driver: &DriverName,
    folder: &Path,
) -> Result<Registered> {
    let not_there = |error: io::Error| {
        let message =
            format!("the sample functions are not in {}: {error}. --no-samples starts without", folder.display());
        Failure::usage(message)
    };
    if folder == Path::new(FOLDER) && !folder.exists() {
        // This program is elsewhere than where it was built.
        let missing = vec![("the samples".to_owned(), format!("{FOLDER} is not there; see samples.folder"))];
        return Ok(Registered { missing, ..Registered::default() });
    }
    let folder = folder.canonicalize().map_err(not_there)?;
    let creator = Principal::new(tenant.clone(), CREATOR.parse().map_err(Error::from)?).with_scope("write");
    let cx = CallContext::new(creator);
    let python = find_python();
    let (possible, impossible): (Vec<_>, Vec<_>) =
        SAMPLES.iter().partition(|(_, _, needs, _)| *needs == Needs::Shell || python.is_some());
    let made = possible.iter().map(async |(name, file, _, adapt)| {
        let made = async {
            let spec = adapt(spec_of(driver, &folder.join(file), python.as_deref()).map_err(not_there)?);
            Result::<_, Failure>::Ok(ensure(gateway, &cx, &name.parse().map_err(Error::from)?, spec).await?)
        };
        (*name, made.await)
    });
    let mut registered = Registered::default();
    for (name, made) in join_all(made).await {
        match made {
            Ok(function) if function.status.phase == Phase::Ready => registered.ready.push(function.key.name.clone()),
            Ok(function) => {
                let reason = function.status.conditions.first().map(|condition| condition.message.clone());
                let reason = reason.unwrap_or_else(|| function.status.phase.to_string());
                registered.missing.push((name.to_owned(), reason));
            }
            Err(failure) => registered.missing.push((name.to_owned(), failure.message)),
        }
    }
    let without_python = impossible.iter().map(|(name, ..)| ((*name).to_owned(), "python3 was not found".to_owned()));
    registered.missing.extend(without_python);
    Ok(registered)
}

/// A script is started for each call; a folder has a specification of its own.
fn spec_of(driver: &DriverName, file: &Path, python: Option<&Path>) -> io::Result<FunctionSpec> {
    let spec = if file.is_dir() {
        let mut spec: FunctionSpec = serde_json::from_slice(&fs::read(file.join("spec.json"))?)?;
        if let Workload::Process(process) = &mut spec.run {
            process.working_dir = Some(file.to_string_lossy().into_owned());
        }
        spec.driver = driver.clone();
        spec
    } else {
        FunctionSpec::new(driver.clone(), ProcessWorkload::new(file.to_string_lossy()))
    };
    // A function sees no environment but its own; scripts look for their interpreter in it. It holds no more than it has to,
    // so that the specification is the same whoever starts the gateway.
    let folders = ["/usr/local/bin", "/usr/bin", "/bin"].map(Path::new);
    let elsewhere = python.filter(|python| !folders.contains(python));
    let path = env::join_paths(elsewhere.into_iter().chain(folders)).map_err(io::Error::other)?;
    Ok(spec.with_env("PATH", path.to_string_lossy()))
}

/// The first folder of the path in which there is a Python.
fn find_python() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).find(|folder| folder.is_absolute() && folder.join("python3").is_file())
}

async fn ensure(
    gateway: &Gateway,
    cx: &CallContext,
    name: &FunctionName,
    spec: FunctionSpec,
) -> Result<std::sync::Arc<Function>, Error> {
    match gateway.create(cx, name, spec.clone()).await {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        created => return created,
    }
    let function = gateway.get(cx, name).await?;
    let newest = gateway.revision(cx, name, function.generation).await?;
    match newest.created_by == cx.principal().id {
        // Where nothing has changed, nothing is done.
        true => gateway.update(cx, name, spec, Precondition::generation(function.generation)).await,
        false => Ok(function),
    }
}

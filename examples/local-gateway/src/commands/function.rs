//! `function`: creates, shows and deletes functions.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Args, Subcommand};
use function_gateway::Timestamp;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::client::{self, Client, Connection};
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Format, Progress};

#[derive(Debug, Args)]
pub(crate) struct FunctionArgs {
    #[command(flatten)]
    connection: Connection,
    /// Form of the output
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    #[command(subcommand)]
    command: FunctionCommand,
}

#[derive(Debug, Subcommand)]
enum FunctionCommand {
    /// Create functions, and wait until they are ready
    Create(Create),
    /// List functions
    List {
        /// Only those whose name starts with this
        #[arg(long)]
        prefix: Option<String>,
        /// How many at most
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show a function
    Get {
        /// Name of the function
        name: String,
    },
    /// Delete a function
    Delete {
        /// Name of the function
        name: String,
        /// How long to wait until it is gone, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = WAIT)]
        wait: u32,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// File with a function in YAML or JSON, as `name` and `spec`, or with several; - is standard input
    #[arg(long, short, value_name = "FILE", required = true)]
    file: Vec<PathBuf>,
    /// Update a function that is there already
    #[arg(long)]
    replace: bool,
    /// How long to wait until it is ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = WAIT)]
    wait: u32,
}

const WAIT: u32 = 60;

/// The parts of a function that are shown.
#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    owner: String,
    spec: Spec,
    generation: u64,
    created_at: Timestamp,
    updated_at: Timestamp,
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Spec {
    driver: String,
    protocol: String,
    #[serde(default)]
    description: String,
}

#[derive(Debug, Deserialize)]
struct Status {
    phase: String,
    serving_generation: Option<u64>,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
struct Condition {
    kind: String,
    message: String,
}

impl FunctionArgs {
    pub(crate) async fn run(self) -> Result<()> {
        let Self { connection, output, command } = self;
        let client = connection.client()?;
        match command {
            FunctionCommand::Create(create) => create.run(&client, output).await,
            FunctionCommand::List { prefix, limit } => list(&client, output, prefix, limit).await,
            FunctionCommand::Get { name } => {
                let document = client.document(client.request(Method::GET, &["v1", "functions", &name])).await?;
                show(document, output)
            }
            FunctionCommand::Delete { name, wait } => delete(&client, output, &name, wait).await,
        }
    }
}

async fn list(client: &Client, output: Format, prefix: Option<String>, limit: u32) -> Result<()> {
    let query: Vec<_> = prefix.into_iter().map(|prefix| ("prefix", prefix)).collect();
    let (items, more) = client.list(&["v1", "functions"], &query, limit as usize).await?;
    if output == Format::Json {
        return Ok(output::json(&items)?);
    }
    let functions = items.into_iter().map(client::read::<Function>).collect::<Result<Vec<_>>>()?;
    let row = |function: Function| {
        let serving = function.status.serving_generation.map_or_else(|| "-".to_owned(), |serving| serving.to_string());
        let (generation, updated) = (function.generation.to_string(), output::ago(function.updated_at));
        let Spec { driver, protocol, .. } = function.spec;
        [function.name, function.status.phase, generation, serving, driver, protocol, function.owner, updated]
    };
    let names = ["NAME", "PHASE", "GENERATION", "SERVING", "DRIVER", "PROTOCOL", "OWNER", "UPDATED"];
    output::table(names, functions.into_iter().map(row))?;
    output::note_more(more, limit);
    Ok(())
}

fn show(document: Value, output: Format) -> Result<()> {
    if output == Format::Json {
        return Ok(output::json(&document)?);
    }
    let Function { name, owner, spec, generation, created_at, updated_at, status } = client::read(document)?;
    let serving = status.serving_generation.map_or_else(|| "none".to_owned(), |serving| serving.to_string());
    let conditions: Vec<_> =
        status.conditions.iter().map(|Condition { kind, message }| format!("{kind}: {message}")).collect();
    Ok(output::details([
        ("Name", Some(name)),
        ("Phase", Some(status.phase)),
        ("Condition", Some(conditions.join("\n")).filter(|text| !text.is_empty())),
        ("Generation", Some(generation.to_string())),
        ("Serving", Some(serving)),
        ("Driver", Some(spec.driver)),
        ("Protocol", Some(spec.protocol)),
        ("Description", Some(spec.description).filter(|text| !text.is_empty())),
        ("Owner", Some(owner)),
        ("Created", Some(created_at.to_string())),
        ("Updated", Some(updated_at.to_string())),
    ])?)
}

async fn delete(client: &Client, output: Format, name: &str, wait: u32) -> Result<()> {
    let request = client.request(Method::DELETE, &["v1", "functions", name]).header("prefer", format!("wait={wait}"));
    let progress = Progress::start(format!("{name} is being deleted"));
    let response = client.send(request).await?;
    drop(progress);
    let is_gone = response.status() == StatusCode::NO_CONTENT;
    match output {
        Format::Json => output::json(&serde_json::json!({"name": name, "deleted": is_gone}))?,
        Format::Table if is_gone => output::line(&format!("{name} is deleted"))?,
        Format::Table => {}
    }
    if !is_gone {
        let message = format!("{name} is being deleted, and was not gone within {wait} s");
        return Err(Failure::new(Exit::FunctionFailed, message));
    }
    Ok(())
}

/// A function to create, and the file that it stands in.
struct New {
    file: String,
    name: String,
    document: Value,
}

impl Create {
    async fn run(self, client: &Client, output: Format) -> Result<()> {
        let mut functions = Vec::new();
        for file in &self.file {
            functions.extend(read(file)?);
        }
        let mut documents = Vec::new();
        let mut failed: Option<Failure> = None;
        for new in functions {
            match self.create(client, &new).await {
                Ok((document, done)) => {
                    let function: Function = client::read(document.clone())?;
                    documents.push(document);
                    if output == Format::Table {
                        output::line(&format!("{} {done}, generation {}", new.name, function.generation))?;
                    }
                }
                // It would be the same for the next one.
                Err(failure) if failure.exit == Exit::OutOfReach => return Err(failure),
                // Further ones may be right all the same. What all come to is said at the end.
                Err(failure) => {
                    let message = format!("{}: {}: {}", new.file, new.name, failure.message);
                    if let Some(earlier) = failed.replace(Failure { message, ..failure }) {
                        earlier.tell(output);
                        let exit = earlier.exit;
                        failed = failed.map(|failure| Failure { exit, ..failure });
                    }
                }
            }
        }
        if output == Format::Json {
            output::json(&documents)?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Creates or updates a function. Gives it, and what was done.
    async fn create(&self, client: &Client, new: &New) -> Result<(Value, &'static str)> {
        let _progress = Progress::start(format!("{} is getting ready", new.name));
        let prefer = ("prefer", format!("wait={}", self.wait));
        let create = client.request(Method::POST, &["v1", "functions"]);
        let create = create.header(prefer.0, &prefer.1).header("content-type", "application/json");
        let (document, done) = match client.document(create.body(new.document.to_string())).await {
            Err(failure) if self.replace && failure.code() == Some("already_exists") => {
                let spec = new.document.get("spec").cloned().unwrap_or_default();
                let replace = client.request(Method::PUT, &["v1", "functions", &new.name]);
                let replace = replace.header(prefer.0, &prefer.1).header("content-type", "application/json");
                (client.document(replace.body(spec.to_string())).await?, "is updated and ready")
            }
            created => (created?, "is created and ready"),
        };
        let Status { phase, conditions, .. } = client::read::<Function>(document.clone())?.status;
        if phase != "ready" {
            let reasons: String = conditions.iter().map(|condition| format!("\n  {}", condition.message)).collect();
            let message = format!("it is {phase}, not ready{reasons}");
            return Err(Failure::new(Exit::FunctionFailed, message));
        }
        Ok((document, done))
    }
}

/// The functions in a file. What is in them is for the gateway to check.
fn read(file: &Path) -> Result<Vec<New>> {
    let (shown, text) = match file.to_str() {
        Some("-") => {
            let mut text = String::new();
            ("standard input".to_owned(), io::stdin().read_to_string(&mut text).map(|_| text))
        }
        _ => (file.display().to_string(), fs::read_to_string(file)),
    };
    let wrong = |reason: String| Failure::usage(format!("{shown}: {reason}"));
    let text = text.map_err(|error| wrong(error.to_string()))?;
    let documents: Vec<Value> = if text.trim_start().starts_with('{') {
        let documents = serde_json::Deserializer::from_str(&text).into_iter().collect::<Result<_, _>>();
        documents.map_err(|error| wrong(error.to_string()))?
    } else {
        let documents = serde_norway::Deserializer::from_str(&text).map(Value::deserialize).collect::<Result<_, _>>();
        documents.map_err(|error| wrong(error.to_string()))?
    };
    // A separator at the end, or a comment alone, is no document.
    let documents: Vec<_> = documents.into_iter().filter(|document| !document.is_null()).collect();
    if documents.is_empty() {
        return Err(wrong("there is no function in it".to_owned()));
    }
    let new = |document: Value| match document.get("name").and_then(Value::as_str) {
        Some(name) => Ok(New { file: shown.clone(), name: name.to_owned(), document }),
        None => Err(wrong("a function is given by its `name` and its `spec`".to_owned())),
    };
    documents.into_iter().map(new).collect()
}

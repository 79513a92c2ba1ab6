//! `executions`: shows what is kept of executions.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use function_gateway::Timestamp;
use futures_util::StreamExt as _;
use http::header::RETRY_AFTER;
use reqwest::{Method, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::{self, Client, Connection};
use crate::commands::invoke;
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Format, Progress};

#[derive(Debug, Args)]
pub(crate) struct Executions {
    #[command(flatten)]
    connection: Connection,
    /// Form of the output
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    #[command(subcommand)]
    command: ExecutionsCommand,
}

#[derive(Debug, Subcommand)]
enum ExecutionsCommand {
    /// List executions, newest first
    List(List),
    /// Show what is kept of an execution
    Get {
        /// Id of the execution, as `executions list` shows it
        id: String,
    },
    /// Show what a function logged in an execution
    Logs {
        /// Id of the execution, as `executions list` shows it
        id: String,
        /// Go on until the execution ends
        #[arg(long, short)]
        follow: bool,
    },
    /// Wait until an execution that was submitted has ended, and show it
    Wait {
        /// Id of the execution, as `invoke --async` shows it
        id: String,
    },
    /// Show what the function answered in an execution that was submitted
    Result {
        /// Id of the execution, as `invoke --async` shows it
        id: String,
    },
    /// End an execution that was submitted
    Cancel {
        /// Id of the execution, as `invoke --async` shows it
        id: String,
    },
}

#[derive(Debug, Args)]
struct List {
    /// Only those of this function
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// Only those in this state: queued, running, succeeded, failed, timed_out, cancelled or lost
    #[arg(long)]
    state: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// The parts of an execution that are shown.
#[derive(Debug, Deserialize)]
struct Execution {
    id: String,
    key: Key,
    generation: u64,
    driver: String,
    state: String,
    failure: Option<Reason>,
    status: Option<u16>,
    attempts: u32,
    caller: String,
    created_at: Timestamp,
    #[serde(default)]
    timings: serde_json::Map<String, Value>,
    request_bytes: Option<u64>,
    response_bytes: u64,
    payload: Option<Kept>,
    result: Option<Kept>,
    logs: Option<Kept>,
}

#[derive(Debug, Deserialize)]
struct Key {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Reason {
    code: String,
    message: String,
}

#[derive(Debug, Deserialize)]
struct Kept {
    text: Option<String>,
    truncated: bool,
}

impl Kept {
    fn shown(self) -> String {
        let text = self.text.unwrap_or_else(|| "(not text: --output json shows it)".to_owned());
        if self.truncated { format!("{text} (cut off)") } else { text }
    }
}

impl Execution {
    fn took(&self) -> String {
        self.timings.get("total").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), output::took)
    }
}

impl Executions {
    pub(crate) async fn run(self) -> Result<()> {
        let Self { connection, output, command } = self;
        let client = connection.client()?;
        match command {
            ExecutionsCommand::List(list) => list.run(&client, output).await,
            ExecutionsCommand::Get { id } => {
                let document = client.document(client.request(Method::GET, &["v1", "executions", &id])).await?;
                show(document, output)
            }
            ExecutionsCommand::Logs { id, follow } => {
                let request = client.request(Method::GET, &["v1", "executions", &id, "logs"]);
                logs(client.send(request.query(&[("follow", follow)])).await?, output).await
            }
            ExecutionsCommand::Wait { id } => wait(&client, &id, output).await,
            ExecutionsCommand::Result { id } => {
                let request = client.request(Method::GET, &["v1", "executions", &id, "result"]);
                invoke::show(client.call(request).await?, "the function", output).await
            }
            ExecutionsCommand::Cancel { id } => {
                client.send(client.request(Method::POST, &["v1", "executions", &id, "cancel"])).await?;
                match output {
                    Format::Table => output::line(&format!("{id} is being ended"))?,
                    Format::Json => output::json(&json!({"id": id, "cancel_requested": true}))?,
                }
                Ok(())
            }
        }
    }
}

impl List {
    async fn run(self, client: &Client, output: Format) -> Result<()> {
        let query = [("function", self.function), ("state", self.state)];
        let query: Vec<_> = query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        let (items, more) = client.list(&["v1", "executions"], &query, self.limit as usize).await?;
        if output == Format::Json {
            return Ok(output::json(&items)?);
        }
        let executions = items.into_iter().map(client::read::<Execution>).collect::<Result<Vec<_>>>()?;
        let row = |execution: Execution| {
            let (took, ago) = (execution.took(), output::ago(execution.created_at));
            let reason =
                execution.failure.map_or_else(String::new, |Reason { message, .. }| message.replace('\n', " "));
            [execution.id, execution.key.name, execution.state, took, ago, execution.caller, reason]
        };
        let names = ["ID", "FUNCTION", "STATE", "TOOK", "CAME IN", "CALLER", "REASON"];
        output::table(names, executions.into_iter().map(row))?;
        output::note_more(more, self.limit);
        Ok(())
    }
}

fn show(document: Value, output: Format) -> Result<()> {
    if output == Format::Json {
        return Ok(output::json(&document)?);
    }
    let execution: Execution = client::read(document)?;
    let took = execution.took();
    let phases = execution.timings.iter().filter(|(phase, _)| *phase != "total");
    let phases: Vec<_> =
        phases.filter_map(|(phase, took)| Some(format!("{phase} {}", output::took(took.as_u64()?)))).collect();
    Ok(output::details([
        ("Id", Some(execution.id)),
        ("Function", Some(format!("{}@{}", execution.key.name, execution.generation))),
        ("Driver", Some(execution.driver)),
        ("State", Some(execution.state)),
        ("Reason", execution.failure.map(|Reason { code, message }| format!("{code}: {message}"))),
        ("Status", execution.status.map(|status| status.to_string())),
        ("Caller", Some(execution.caller)),
        ("Came in", Some(execution.created_at.to_string())),
        ("Took", Some(took)),
        ("Of that", Some(phases.join(", ")).filter(|phases| !phases.is_empty())),
        ("Attempts", Some(execution.attempts.to_string())),
        ("Payload", execution.request_bytes.map(|bytes| format!("{bytes} bytes"))),
        ("Result", Some(format!("{} bytes", execution.response_bytes))),
        ("Kept payload", execution.payload.map(Kept::shown)),
        ("Kept result", execution.result.map(Kept::shown)),
        ("Log", execution.logs.map(Kept::shown)),
    ])?)
}

/// Waits for the end, however long that takes. It is a failure where the execution has not succeeded.
async fn wait(client: &Client, id: &str, output: Format) -> Result<()> {
    /// The longest that a gateway waits at a time.
    const WAIT: Duration = Duration::from_secs(30);
    const PAUSE: Duration = Duration::from_secs(1);
    let progress = Progress::start(format!("{id} has not ended"));
    let document = loop {
        let asked = Instant::now();
        let request = client.request(Method::GET, &["v1", "executions", id]).query(&[("wait_ms", WAIT.as_millis())]);
        let answer = client.send(request).await?;
        // It says when to ask again as long as there is something to ask for.
        let has_ended = !answer.headers().contains_key(RETRY_AFTER);
        let document = client::document(answer).await?;
        if has_ended {
            break document;
        }
        if asked.elapsed() < WAIT {
            tokio::time::sleep(PAUSE).await;
        }
    };
    drop(progress);
    let Execution { state, failure, .. } = client::read(document.clone())?;
    show(document, output)?;
    if state == "succeeded" {
        return Ok(());
    }
    let reason = failure.map_or(state, |Reason { code, message }| format!("{code}: {message}"));
    Err(Failure::new(Exit::FunctionFailed, format!("{id} did not succeed: {reason}")))
}

/// Writes a log as it comes; for programs, a JSON object for each line of it.
async fn logs(answer: Response, output: Format) -> Result<()> {
    let mut body = answer.bytes_stream();
    let mut line = Vec::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| client::broken_off(&error))?;
        let mut out = io::stdout().lock();
        match output {
            Format::Table => out.write_all(&chunk)?,
            Format::Json => {
                line.extend_from_slice(&chunk);
                while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                    let whole: Vec<u8> = line.drain(..=end).collect();
                    write_line(&mut out, &whole)?;
                }
            }
        }
        out.flush()?;
    }
    if !line.is_empty() {
        write_line(&mut io::stdout().lock(), &line)?;
    }
    Ok(())
}

fn write_line(out: &mut impl io::Write, line: &[u8]) -> io::Result<()> {
    let text = String::from_utf8_lossy(line);
    writeln!(out, "{}", json!({"text": text.trim_end_matches('\n')}))
}

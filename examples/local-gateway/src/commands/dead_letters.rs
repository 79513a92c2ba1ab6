//! `dead-letters`: shows executions that have failed for good, has them executed again, and forgets them.

use clap::{Args, Subcommand};
use function_gateway::Timestamp;
use http::header::CONTENT_TYPE;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::{self, Client, Connection};
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Format};

#[derive(Debug, Args)]
pub(crate) struct DeadLetters {
    #[command(flatten)]
    connection: Connection,
    /// Form of the output
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    #[command(subcommand)]
    command: DeadLettersCommand,
}

#[derive(Debug, Subcommand)]
enum DeadLettersCommand {
    /// List dead letters, those that died last first
    List {
        /// Only those of this function
        #[arg(long, value_name = "NAME")]
        function: Option<String>,
        /// How many at most
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show a dead letter with its payload and each attempt
    Show {
        /// Id of the execution, as `dead-letters list` shows it
        id: String,
    },
    /// Have dead letters executed again, as new executions
    Redrive(Which),
    /// Forget dead letters; what is kept of their executions stays
    Purge(Which),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Ids of the executions, as `dead-letters list` shows them
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All of this function
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

/// The parts of a dead letter that are shown.
#[derive(Debug, Deserialize)]
struct DeadLetter {
    id: String,
    function: String,
    generation: u64,
    state: String,
    caller: String,
    created_at: Timestamp,
    ended_at: Option<Timestamp>,
    payload: Option<Payload>,
    attempts: u32,
    #[serde(default)]
    history: Vec<Attempt>,
    failure: Option<Reason>,
    redriven_as: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Payload {
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Attempt {
    number: u32,
    started_at: Timestamp,
    status: Option<u16>,
    failure: Option<Reason>,
}

#[derive(Debug, Deserialize)]
struct Reason {
    code: String,
    message: String,
}

impl Attempt {
    fn shown(&self) -> String {
        let Self { number, started_at, status, failure } = self;
        let status = status.map_or_else(String::new, |status| format!(", status {status}"));
        let failure =
            failure.as_ref().map_or_else(String::new, |Reason { code, message }| format!(", {code}: {message}"));
        format!("{number}: {started_at}{status}{failure}")
    }
}

impl DeadLetters {
    pub(crate) async fn run(self) -> Result<()> {
        let Self { connection, output, command } = self;
        let client = connection.client()?;
        match command {
            DeadLettersCommand::List { function, limit } => list(&client, function, limit, output).await,
            DeadLettersCommand::Show { id } => {
                let document = client.document(client.request(Method::GET, &["v1", "dead-letters", &id])).await?;
                show(document, output)
            }
            DeadLettersCommand::Redrive(which) => which.run(&client, Deed::Redrive, output).await,
            DeadLettersCommand::Purge(which) => which.run(&client, Deed::Purge, output).await,
        }
    }
}

async fn list(client: &Client, function: Option<String>, limit: u32, output: Format) -> Result<()> {
    let query: Vec<_> = function.into_iter().map(|function| ("function", function)).collect();
    let (items, more) = client.list(&["v1", "dead-letters"], &query, limit as usize).await?;
    if output == Format::Json {
        return Ok(output::json(&items)?);
    }
    let dead_letters = items.into_iter().map(client::read::<DeadLetter>).collect::<Result<Vec<_>>>()?;
    let row = |dead: DeadLetter| {
        let died = dead.ended_at.map_or_else(|| "-".to_owned(), output::ago);
        let reason = dead.failure.map_or_else(String::new, |Reason { message, .. }| message.replace('\n', " "));
        [dead.id, dead.function, died, dead.attempts.to_string(), dead.caller, reason]
    };
    let names = ["ID", "FUNCTION", "DIED", "ATTEMPTS", "CALLER", "REASON"];
    output::table(names, dead_letters.into_iter().map(row))?;
    output::note_more(more, limit);
    Ok(())
}

fn show(document: Value, output: Format) -> Result<()> {
    if output == Format::Json {
        return Ok(output::json(&document)?);
    }
    let dead: DeadLetter = client::read(document)?;
    let payload =
        dead.payload.map(|payload| payload.text.unwrap_or_else(|| "(not text: --output json shows it)".to_owned()));
    let history: Vec<_> = dead.history.iter().map(Attempt::shown).collect();
    Ok(output::details([
        ("Id", Some(dead.id)),
        ("Function", Some(format!("{}@{}", dead.function, dead.generation))),
        ("State", Some(dead.state)),
        ("Reason", dead.failure.map(|Reason { code, message }| format!("{code}: {message}"))),
        ("Caller", Some(dead.caller)),
        ("Came in", Some(dead.created_at.to_string())),
        ("Died", dead.ended_at.map(|at| at.to_string())),
        ("Redriven as", dead.redriven_as),
        ("Attempts", Some(dead.attempts.to_string())),
        ("Of these", Some(history.join("\n")).filter(|history| !history.is_empty())),
        ("Payload", payload),
    ])?)
}

/// What is done with dead letters.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Redrive,
    Purge,
}

/// What has become of some: by a document of the gateway, or put together here.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Done {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    redriven: Vec<Redriven>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    purged: Vec<String>,
    failed: Vec<NotDone>,
    #[serde(default, skip_serializing)]
    next: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Redriven {
    id: String,
    redriven_as: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct NotDone {
    id: String,
    code: String,
    detail: String,
}

/// The part of what was accepted that is needed.
#[derive(Debug, Deserialize)]
struct Accepted {
    id: String,
}

impl Done {
    fn add(&mut self, more: Self) {
        self.redriven.extend(more.redriven);
        self.purged.extend(more.purged);
        self.failed.extend(more.failed);
    }
}

impl Which {
    async fn run(self, client: &Client, deed: Deed, output: Format) -> Result<()> {
        let Self { ids, function, all: _ } = self;
        let mut done = Done::default();
        match ids.as_slice() {
            [] => deed.many(client, function.as_deref(), &mut done).await?,
            ids => {
                for id in ids {
                    done.add(deed.one(client, id).await?);
                }
            }
        }
        let Done { redriven, purged, failed, .. } = &done;
        if output == Format::Json {
            output::json(&done)?;
        } else {
            for Redriven { id, redriven_as } in redriven {
                output::line(&format!("{id} is executed again as {redriven_as}"))?;
            }
            for id in purged {
                output::line(&format!("{id} is forgotten"))?;
            }
            for NotDone { id, code, detail } in failed {
                output::note(&format!("{id}: {code}: {detail}"));
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        let what = match deed {
            Deed::Redrive => "redriven",
            Deed::Purge => "purged",
        };
        Err(Failure::new(Exit::Refused, format!("{} could not be {what}", failed.len())))
    }
}

impl Deed {
    async fn one(self, client: &Client, id: &str) -> Result<Done> {
        let result = match self {
            Self::Redrive => {
                let request = client.request(Method::POST, &["v1", "dead-letters", id, "redrive"]);
                client.document(request).await.and_then(client::read).map(|Accepted { id: redriven_as }| {
                    let redriven = vec![Redriven { id: id.to_owned(), redriven_as }];
                    Done { redriven, ..Done::default() }
                })
            }
            Self::Purge => {
                let sent = client.send(client.request(Method::DELETE, &["v1", "dead-letters", id])).await;
                sent.map(|_| Done { purged: vec![id.to_owned()], ..Done::default() })
            }
        };
        match result {
            // Further ones may fare better. It is told at the end.
            Err(Failure { problem: Some(problem), exit: Exit::Refused, .. }) => {
                let text = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
                let failed = vec![NotDone { id: id.to_owned(), code: text("code"), detail: text("detail") }];
                Ok(Done { failed, ..Done::default() })
            }
            result => result,
        }
    }

    /// All there are, part by part.
    async fn many(self, client: &Client, function: Option<&str>, done: &mut Done) -> Result<()> {
        const PART: usize = 100;
        let route = match self {
            Self::Redrive => "redrive",
            Self::Purge => "purge",
        };
        let mut cursor = None;
        loop {
            let which = json!({"function": function, "limit": PART, "cursor": cursor});
            let request = client.request(Method::POST, &["v1", "dead-letters", route]);
            let request = request.header(CONTENT_TYPE, "application/json").body(which.to_string());
            let mut part: Done = client::read(client.document(request).await?)?;
            cursor = part.next.take();
            done.add(part);
            if cursor.is_none() {
                return Ok(());
            }
        }
    }
}

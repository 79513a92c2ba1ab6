//! `events` and `subscriptions`: publishes events, and keeps what leads from them to functions.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use function_gateway::events::{
    Event, EventForm, FailurePolicy, Filters, Retries, Strategy, SubscriptionSpec, to_http_binary,
};
use function_gateway::{FunctionName, InvocationId, Timestamp};
use http::header::CONTENT_TYPE;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::invoke::Data;
use crate::client::{self, Client, Connection};
use crate::exit::{Failure, Result};
use crate::output::{self, Format};

#[derive(Debug, Args)]
pub(crate) struct Events {
    #[command(flatten)]
    connection: Connection,
    /// Form of the output
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    #[command(subcommand)]
    command: EventsCommand,
}

#[derive(Debug, Subcommand)]
enum EventsCommand {
    /// Publish an event, or those of a file, and show the executions that were accepted for them
    Publish(Publish),
}

#[derive(Debug, Args)]
struct Publish {
    /// What kind of event it is, such as com.example.order.created
    #[arg(long = "type", value_name = "TYPE", required_unless_present = "file")]
    event_type: Option<String>,
    /// In what context it happened: a URI or a part of one, such as /orders
    #[arg(long, value_name = "URI", required_unless_present = "file")]
    source: Option<String>,
    /// Tells events of one source apart: one that was published before is not executed again [default: a new one]
    #[arg(long)]
    id: Option<String>,
    /// What it is about, within its source
    #[arg(long)]
    subject: Option<String>,
    /// Data: a text, @FILE, or - for standard input; none without it
    #[arg(long, short, value_name = "TEXT|@FILE|-", allow_hyphen_values = true)]
    data: Option<Data>,
    /// File with the data; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    data_file: Option<PathBuf>,
    /// Content type of the data [default: JSON for a text that is JSON and for files *.json]
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// File with a whole event as JSON, or with an array of them; - is standard input
    #[arg(
        long,
        short,
        value_name = "FILE",
        conflicts_with_all = ["event_type", "source", "id", "subject", "data", "data_file", "content_type"]
    )]
    file: Option<PathBuf>,
}

/// What an event has led to.
#[derive(Debug, Deserialize)]
struct Published {
    id: String,
    source: String,
    triggered: Vec<Triggered>,
}

#[derive(Debug, Deserialize)]
struct Triggered {
    subscription: String,
    function: String,
    execution: String,
    repeated: bool,
}

impl Events {
    pub(crate) async fn run(self) -> Result<()> {
        let Self { connection, output, command: EventsCommand::Publish(publish) } = self;
        publish.run(&connection.client()?, output).await
    }
}

impl Publish {
    async fn run(self, client: &Client, output: Format) -> Result<()> {
        let request = client.request(Method::POST, &["v1", "events"]);
        let request = match &self.file {
            Some(file) => {
                let text = read_file(file).await?;
                request.header(CONTENT_TYPE, mode_of(file, &text)?).body(text)
            }
            None => {
                let (headers, body) = to_http_binary(&self.event().await?)?;
                request.headers(headers).body(body)
            }
        };
        let document = client.document(request).await?;
        if output == Format::Json {
            return Ok(output::json(&document)?);
        }
        let published: Vec<Published> = client::read(document)?;
        for Published { id, source, .. } in published.iter().filter(|event| event.triggered.is_empty()) {
            output::note(&format!("No subscription is about {id} of {source}."));
        }
        let row = |id: &str, triggered: Triggered| {
            let Triggered { subscription, function, execution, repeated } = triggered;
            let accepted = if repeated { "before" } else { "now" };
            [execution, function, subscription, id.to_owned(), accepted.to_owned()]
        };
        let rows = published.into_iter().flat_map(|Published { id, triggered, .. }| {
            triggered.into_iter().map(|triggered| row(&id, triggered)).collect::<Vec<_>>()
        });
        Ok(output::table(["EXECUTION", "FUNCTION", "SUBSCRIPTION", "EVENT", "ACCEPTED"], rows)?)
    }

    async fn event(self) -> Result<Event> {
        let Self { event_type, source, id, subject, data, data_file, content_type, file: _ } = self;
        let id = id.unwrap_or_else(|| InvocationId::generate().to_string());
        let mut event =
            Event::builder().id(id).source(source.unwrap_or_default()).event_type(event_type.unwrap_or_default());
        if let Some(subject) = subject {
            event = event.subject(subject);
        }
        let data = data.or_else(|| data_file.map(Data::of_file));
        let content_type = content_type.or_else(|| data.as_ref().map(|data| data.content_type().to_owned()));
        if let Some(content_type) = content_type {
            event = event.datacontenttype(content_type);
        }
        if let Some(data) = data {
            event = event.untyped_data(data.read().await?);
        }
        Ok(event.build()?)
    }
}

async fn read_file(file: &Path) -> Result<String> {
    let bytes = Data::of_file(file.to_owned()).read().await?;
    String::from_utf8(bytes).map_err(|_| Failure::usage(format!("{}: it is not text in UTF-8", file.display())))
}

/// The content type that says how many events a file holds. What is in them is for the gateway to check.
fn mode_of(file: &Path, text: &str) -> Result<&'static str> {
    match text.trim_start().chars().next() {
        Some('{') => Ok("application/cloudevents+json"),
        Some('[') => Ok("application/cloudevents-batch+json"),
        _ => Err(Failure::usage(format!("{}: it is neither a JSON object nor an array of them", file.display()))),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Subscriptions {
    #[command(flatten)]
    connection: Connection,
    /// Form of the output
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    #[command(subcommand)]
    command: SubscriptionsCommand,
}

#[derive(Debug, Subcommand)]
enum SubscriptionsCommand {
    /// List subscriptions
    List {
        /// How many at most
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show a subscription
    Show {
        /// Name of the subscription
        name: String,
    },
    /// Create a subscription; its functions are executed on behalf of the one who does
    Create(Create),
    /// Delete a subscription; what it has led to goes on
    Delete {
        /// Name of the subscription
        name: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// Its name: at most 63 of a-z, 0-9 and '-'
    name: String,
    /// A function that its events execute; several times for several, in their order
    #[arg(long = "function", value_name = "NAME", value_delimiter = ',', required_unless_present = "file")]
    functions: Vec<FunctionName>,
    /// Which events: a filter, or an array of those that all have to match, such as {"exact":{"type":"order.paid"}} [default: all]
    #[arg(long, value_name = "JSON", value_parser = filters)]
    filter: Option<Filters>,
    /// How several functions are executed
    #[arg(long, value_enum, default_value_t = Order::Parallel)]
    strategy: Order,
    /// What becomes of a failure: of-function, drop, dead-letter, function:NAME or retry:ATTEMPTS
    #[arg(long, value_name = "POLICY", default_value = "of-function", value_parser = on_failure)]
    on_failure: FailurePolicy,
    /// In which form functions get an event
    #[arg(long, value_enum, default_value_t = Form::Binary)]
    form: Form,
    /// Publish an event of the type io.function-gateway.validation-error.v1 where a function does not take the data
    #[arg(long)]
    tell_invalid: bool,
    /// What it is for
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// File with all of that in YAML or JSON, as the REST API takes it as `spec`; - is standard input
    #[arg(
        long,
        short,
        value_name = "FILE",
        conflicts_with_all = ["functions", "filter", "strategy", "on_failure", "form", "tell_invalid", "description"]
    )]
    file: Option<PathBuf>,
    /// Replace one that is there already
    #[arg(long)]
    replace: bool,
}

/// The strategies, for the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Order {
    /// Each independently of the others
    Parallel,
    /// In their order, each when the one before has succeeded
    SequentialStop,
    /// In their order, each when the one before has ended
    SequentialGoOn,
}

impl From<Order> for Strategy {
    fn from(order: Order) -> Self {
        match order {
            Order::Parallel => Self::Parallel,
            Order::SequentialStop => Self::SequentialStop,
            Order::SequentialGoOn => Self::SequentialGoOn,
        }
    }
}

/// The forms, for the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    /// The data as the payload, the attributes in ce-* headers
    Binary,
    /// The whole event as JSON
    Structured,
}

impl From<Form> for EventForm {
    fn from(form: Form) -> Self {
        match form {
            Form::Binary => Self::Binary,
            Form::Structured => Self::Structured,
        }
    }
}

fn filters(text: &str) -> Result<Filters, String> {
    // A filter alone stands for an array of it.
    let array = if text.trim_start().starts_with('{') { format!("[{text}]") } else { text.to_owned() };
    serde_json::from_str(&array).map_err(|error| error.to_string())
}

fn on_failure(text: &str) -> Result<FailurePolicy, String> {
    let wrong = || "it is of-function, drop, dead-letter, function:NAME or retry:ATTEMPTS".to_owned();
    match text.split_once(':') {
        None if text == "of-function" => Ok(FailurePolicy::OfFunction),
        None if text == "drop" => Ok(FailurePolicy::Drop),
        None if text == "dead-letter" => Ok(FailurePolicy::DeadLetter),
        Some(("function", name)) => name.parse().map(FailurePolicy::Function).map_err(|_| wrong()),
        Some(("retry", attempts)) => {
            attempts.parse().map(|attempts| FailurePolicy::Retry(Retries::attempts(attempts))).map_err(|_| wrong())
        }
        _ => Err(wrong()),
    }
}

/// The parts of a subscription that are shown.
#[derive(Debug, Deserialize)]
struct Subscription {
    name: String,
    version: u64,
    principal: String,
    created_at: Timestamp,
    updated_at: Timestamp,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
struct Spec {
    #[serde(default)]
    filters: Vec<Value>,
    functions: Vec<String>,
    strategy: String,
    on_failure: Value,
    form: String,
    #[serde(default)]
    tell_invalid: bool,
    #[serde(default)]
    description: String,
}

impl Spec {
    fn filters(&self) -> String {
        match self.filters.as_slice() {
            [] => "all events".to_owned(),
            [filter] => filter.to_string(),
            filters => Value::from(filters).to_string(),
        }
    }

    fn on_failure(&self) -> String {
        self.on_failure.as_str().map_or_else(|| self.on_failure.to_string(), str::to_owned)
    }
}

impl Subscriptions {
    pub(crate) async fn run(self) -> Result<()> {
        let Self { connection, output, command } = self;
        let client = connection.client()?;
        match command {
            SubscriptionsCommand::List { limit } => list(&client, limit, output).await,
            SubscriptionsCommand::Show { name } => {
                let document = client.document(client.request(Method::GET, &["v1", "subscriptions", &name])).await?;
                show(document, output)
            }
            SubscriptionsCommand::Create(create) => create.run(&client, output).await,
            SubscriptionsCommand::Delete { name } => {
                client.send(client.request(Method::DELETE, &["v1", "subscriptions", &name])).await?;
                match output {
                    Format::Table => output::line(&format!("{name} is deleted"))?,
                    Format::Json => output::json(&json!({"name": name, "deleted": true}))?,
                }
                Ok(())
            }
        }
    }
}

async fn list(client: &Client, limit: u32, output: Format) -> Result<()> {
    let (items, more) = client.list(&["v1", "subscriptions"], &[], limit as usize).await?;
    if output == Format::Json {
        return Ok(output::json(&items)?);
    }
    let subscriptions = items.into_iter().map(client::read::<Subscription>).collect::<Result<Vec<_>>>()?;
    let row = |Subscription { name, principal, updated_at, spec, .. }: Subscription| {
        let (failure, filters) = (spec.on_failure(), spec.filters());
        [name, spec.functions.join(","), spec.strategy, failure, principal, output::ago(updated_at), filters]
    };
    let names = ["NAME", "FUNCTIONS", "STRATEGY", "ON FAILURE", "OWNER", "UPDATED", "FILTERS"];
    output::table(names, subscriptions.into_iter().map(row))?;
    output::note_more(more, limit);
    Ok(())
}

fn show(document: Value, output: Format) -> Result<()> {
    if output == Format::Json {
        return Ok(output::json(&document)?);
    }
    let Subscription { name, version, principal, created_at, updated_at, spec } = client::read(document)?;
    let (failure, filters) = (spec.on_failure(), spec.filters());
    Ok(output::details([
        ("Name", Some(name)),
        ("Version", Some(version.to_string())),
        ("Filters", Some(filters)),
        ("Functions", Some(spec.functions.join(", "))),
        ("Strategy", Some(spec.strategy)),
        ("On failure", Some(failure)),
        ("Form", Some(spec.form)),
        ("Tells invalid", spec.tell_invalid.then(|| "yes".to_owned())),
        ("Description", Some(spec.description).filter(|text| !text.is_empty())),
        ("On behalf of", Some(principal)),
        ("Created", Some(created_at.to_string())),
        ("Updated", Some(updated_at.to_string())),
    ])?)
}

impl Create {
    async fn run(self, client: &Client, output: Format) -> Result<()> {
        let (name, replace) = (self.name.clone(), self.replace);
        let spec = self.spec().await?;
        let create = client.request(Method::POST, &["v1", "subscriptions"]).header(CONTENT_TYPE, "application/json");
        let create = create.body(json!({"name": name, "spec": spec}).to_string());
        let (document, done) = match client.document(create).await {
            Err(failure) if replace && failure.code() == Some("already_exists") => {
                let replace = client.request(Method::PUT, &["v1", "subscriptions", &name]);
                let replace = replace.header(CONTENT_TYPE, "application/json").body(spec.to_string());
                (client.document(replace).await?, "is updated")
            }
            created => (created?, "is created"),
        };
        match output {
            Format::Json => output::json(&document)?,
            Format::Table => output::line(&format!("{name} {done}"))?,
        }
        Ok(())
    }

    /// What is wanted. Whether all of it is right is for the gateway to check.
    async fn spec(self) -> Result<Value> {
        let wrong = |file: &Path, reason: String| Failure::usage(format!("{}: {reason}", file.display()));
        if let Some(file) = &self.file {
            let text = read_file(file).await?;
            return match text.trim_start().starts_with('{') {
                true => serde_json::from_str(&text).map_err(|error| wrong(file, error.to_string())),
                false => serde_norway::from_str(&text).map_err(|error| wrong(file, error.to_string())),
            };
        }
        let mut spec = SubscriptionSpec::to_all(self.functions)
            .with_filters(self.filter.unwrap_or_default())
            .with_strategy(self.strategy.into())
            .with_on_failure(self.on_failure)
            .with_form(self.form.into());
        (spec.tell_invalid, spec.description) = (self.tell_invalid, self.description);
        serde_json::to_value(spec).map_err(|error| Failure::usage(error.to_string()))
    }
}

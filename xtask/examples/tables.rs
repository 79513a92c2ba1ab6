//! Writes the tables of the documents as a JSON map from name to Markdown; `cargo xtask docs` puts them in place.

use std::collections::BTreeMap;
use std::io::Write as _;

use function_gateway_core::{DriverCapabilities, ErrorKind, FaasDriver, Protocol, Result, Scope};
use function_gateway_knative::{Knative, KnativeConfig};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use function_gateway_openfaas::{OpenFaas, OpenFaasConfig};

/// Every driver of the workspace, as it is before it has asked its engine. A new one is one line.
fn drivers() -> Result<Vec<Box<dyn FaasDriver>>> {
    Ok(vec![
        Box::new(LocalProcess::new(LocalProcessConfig::new())?),
        Box::new(OpenFaas::new(OpenFaasConfig::new("http://127.0.0.1:8080"))?),
        Box::new(Knative::new(KnativeConfig::default())?),
    ])
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    // A driver may ask for a runtime when it is made.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let columns: Vec<_> = drivers()?.iter().flat_map(|driver| columns_of(driver.as_ref())).collect();
    let tables = BTreeMap::from([("errors", errors()), ("drivers", capabilities(&columns)), ("routes", routes()?)]);
    serde_json::to_writer(std::io::stdout(), &tables)?;
    Ok(std::io::stdout().flush()?)
}

fn errors() -> String {
    let mut table = row(["Kind", "Code", "Class", "HTTP status", "Retry", "Delivery", "Meaning"]);
    table += &row(["---"; 7]);
    for kind in ErrorKind::ALL {
        table += &row([
            &format!("`{kind:?}`"),
            &format!("`{}`", kind.code()),
            kind.class().as_str(),
            &kind.http_status().to_string(),
            kind.default_retry().as_str(),
            kind.default_delivery().as_str(),
            kind.meaning().trim(),
        ]);
    }
    table
}

/// The operations of the REST API, by what its description says of them.
fn routes() -> std::result::Result<String, serde_json::Error> {
    let description: serde_json::Value = serde_json::from_str(function_gateway_rest::openapi_json())?;
    let mut table = row(["Route", "What it does"]) + &row(["---"; 2]);
    for (path, item) in description.get("paths").and_then(|paths| paths.as_object()).into_iter().flatten() {
        let operations = item.as_object().into_iter().flatten();
        let mut summaries: Vec<(String, &str)> = Vec::new();
        for (method, operation) in operations {
            let summary = operation.get("summary").and_then(|summary| summary.as_str()).unwrap_or_default();
            match summaries.last_mut() {
                // One that does the same with every method is one line.
                Some((methods, last)) if *last == summary => *methods = "ANY".to_owned(),
                _ => summaries.push((method.to_uppercase(), summary)),
            }
        }
        for (methods, summary) in summaries {
            table += &row([format!("`{methods} {path}`").as_str(), &summary.replace('\n', " ")]);
        }
    }
    Ok(table)
}

/// A driver has a column for each protocol that it speaks.
fn columns_of(driver: &dyn FaasDriver) -> Vec<(String, DriverCapabilities)> {
    let info = driver.info();
    let column = |protocol: &Protocol| (format!("`{}`: {protocol}", info.kind), driver.capabilities(protocol));
    info.protocols.iter().map(column).collect()
}

fn capabilities(columns: &[(String, DriverCapabilities)]) -> String {
    let cells = |first: &str, cell: &dyn Fn(&DriverCapabilities) -> String| {
        row(std::iter::once(first.to_owned()).chain(columns.iter().map(|(_, declared)| cell(declared))))
    };
    let mut table = row(std::iter::once("Capability").chain(columns.iter().map(|(title, _)| title.as_str())));
    table += &cells("---", &|_| "---".to_owned());
    for (index, (name, meaning, _)) in DriverCapabilities::NONE.flags().into_iter().enumerate() {
        let declares = |declared: &DriverCapabilities| declared.flags().get(index).is_some_and(|flag| flag.2);
        table += &cells(&format!("`{name}`: {meaning}"), &|declared| mark(declares(declared)));
    }
    let bytes = |limit: Option<u64>| limit.map_or_else(|| "no limit".to_owned(), |bytes| format!("{bytes} bytes"));
    table += &cells("`scope`: the processes of a gateway share its deployments.", &|declared| {
        mark(declared.scope == Scope::Shared)
    });
    table += &cells("`max_request_bytes`: the largest payload.", &|declared| bytes(declared.max_request_bytes));
    table += &cells("`max_response_bytes`: the largest answer.", &|declared| bytes(declared.max_response_bytes));
    table
}

fn mark(yes: bool) -> String {
    if yes { "yes" } else { "–" }.to_owned()
}

fn row(cells: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let cells: Vec<String> = cells.into_iter().map(|cell| cell.as_ref().replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}

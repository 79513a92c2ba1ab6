//! The invariants of docs/architecture.md that can be read from manifests, the lock file and sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::files::{self, File};
use crate::workspace::{Package, Workspace, output, report};
use crate::{Result, rust};

pub(crate) const SUMMARY: &str = "Check the invariants between crates and of what they depend on";
pub(crate) const HELP: &str = "\
- Drivers, middleware, REST, events, callbacks and the test kit depend on core, and core on none of them.
- No driver depends on another driver or on a middleware, and no middleware on a driver; REST, events and callbacks depend on neither.
- Core without features brings in no SQL, no HTTP client or server and no JSON Schema.
- The facade only re-exports.
- A host gets each dependency in one version, unless `xtask/src/architecture.rs` says why not, and one TLS provider.
- No public signature shows a type of a crate that is an implementation detail.

Dependencies of tests (dev-dependencies) may go where they need to.";

const CORE: &str = "function-gateway-core";
const FACADE: &str = "function-gateway";

/// What core must not bring in unless a feature asks for it.
const HEAVY: &[&str] = &["sqlx", "sqlx-core", "reqwest", "hyper", "axum", "jsonschema", "kube"];

/// Implementation details: their types in a public signature would tie our versions to theirs.
const HIDDEN: &[&str] = &["jsonschema", "sqlx", "kube", "reqwest"];

/// Crates of which at most one may be in a build.
const TLS_PROVIDERS: &[&str] = &["aws-lc-rs", "ring", "openssl", "native-tls"];

/// Dependencies that come in several incompatible versions, and why that is accepted.
const ACCEPTED_DUPLICATES: &[(&str, &str)] = &[
    ("base64", "jsonwebtoken is on 0.22 and hyper-util on 0.23; neither shows it"),
    ("block-buffer", "comes with the two versions of digest"),
    ("cpufeatures", "comes with the two versions of sha2"),
    ("crypto-common", "comes with the two versions of digest"),
    ("digest", "comes with the two versions of sha2"),
    ("getrandom", "jsonschema is on 0.3 and uuid on 0.4; neither shows it"),
    ("hashbrown", "governor is on 0.16 and jsonschema on 0.17; neither shows it"),
    ("r-efi", "comes with the two versions of getrandom, for UEFI only"),
    ("sha2", "sqlx is on 0.10, its part for MySQL on 0.11; neither shows it"),
    ("syn", "macros are moving from 2 to 3; it is only there while building"),
    ("tower-http", "kube is on 0.7, reqwest and axum are on 0.6; none shows it"),
    ("untrusted", "aws-lc-rs is on 0.7 and rustls-webpki on 0.9; neither shows it"),
];

/// What a crate of the workspace is, by the folder it lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Area {
    Core,
    Facade,
    Rest,
    Events,
    Callbacks,
    Testkit,
    Driver,
    Middleware,
    /// Examples, benchmarks, chores: they may use anything.
    Unpublished,
}

impl Area {
    fn of(folder: &str) -> Option<Self> {
        match folder.split_once('/').map_or(folder, |(first, _)| first) {
            CORE => Some(Self::Core),
            FACADE => Some(Self::Facade),
            "function-gateway-rest" => Some(Self::Rest),
            "function-gateway-events" => Some(Self::Events),
            "function-gateway-callbacks" => Some(Self::Callbacks),
            "function-gateway-testkit" => Some(Self::Testkit),
            "drivers" => Some(Self::Driver),
            "middleware" => Some(Self::Middleware),
            "examples" | "benches" | "xtask" => Some(Self::Unpublished),
            _ => None,
        }
    }

    /// Whether a crate of this area may depend on one of that area, tests aside.
    fn may_use(self, other: Self) -> bool {
        match self {
            Self::Core => false,
            Self::Driver | Self::Middleware | Self::Events | Self::Callbacks | Self::Testkit => other == Self::Core,
            Self::Rest => matches!(other, Self::Core | Self::Events),
            Self::Facade => !matches!(other, Self::Testkit | Self::Unpublished),
            Self::Unpublished => true,
        }
    }

    fn needs_core(self) -> bool {
        matches!(self, Self::Driver | Self::Middleware | Self::Rest | Self::Events | Self::Callbacks | Self::Testkit)
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Core => "core",
            Self::Facade => "the facade",
            Self::Rest => "REST",
            Self::Events => "events",
            Self::Callbacks => "callbacks",
            Self::Testkit => "the test kit",
            Self::Driver => "a driver",
            Self::Middleware => "a middleware",
            Self::Unpublished => "an example, benchmark or chore",
        })
    }
}

/// A crate of the workspace and what it depends on, tests aside.
struct Member<'a> {
    name: &'a str,
    area: Area,
    uses: Vec<&'a str>,
}

pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut problems = Vec::new();
    let mut members = Vec::new();
    for package in workspace.members() {
        let folder = workspace.folder(package);
        let uses = package.dependencies.iter().filter(|dependency| !dependency.is_dev());
        match Area::of(&folder) {
            None => problems.push(format!("{folder}: no area of the workspace is known by this folder")),
            Some(area) => members.push(Member {
                name: &package.name,
                area,
                uses: uses.map(|dependency| dependency.name.as_str()).collect(),
            }),
        }
    }
    problems.extend(edge_problems(&members));
    problems.extend(heavy_problems(&core_tree(workspace)?));
    let built = built(workspace)?;
    let mut shipped = workspace.shipped();
    shipped.retain(|package| built.contains(&format!("{} v{}", package.name, package.version)));
    problems.extend(duplicate_problems(shipped.iter().map(|package| (&*package.name, &*package.version))));
    problems.extend(tls_problems(built.iter().filter_map(|package| package.split(' ').next())));
    for package in workspace.members().filter(|package| package.is_published()) {
        for file in sources(workspace, package)? {
            problems.extend(hidden_type_problems(&file));
            if package.name == FACADE {
                problems.extend(logic_problems(&file));
            }
        }
    }
    report(&problems)?;
    println!("{} crates and {} dependencies of a host keep the invariants", members.len(), shipped.len());
    Ok(())
}

fn sources(workspace: &Workspace, package: &Package) -> Result<Vec<File>> {
    let files = files::read_all(&workspace.root, &package.folder().join("src"))?;
    Ok(files.into_iter().filter(|file| file.has_extension("rs")).collect())
}

/// Name and version of all that is ever built. `cargo metadata` also tells of what a feature that is off would bring.
fn built(workspace: &Workspace) -> Result<BTreeSet<String>> {
    let args = ["tree", "--workspace", "--all-features", "--edges", "all", "--target", "all", "--prefix", "none"];
    let tree = output(&mut workspace.cargo(args))?;
    let package = |line: &str| line.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
    Ok(tree.lines().map(package).collect())
}

/// The names of all that core depends on without features.
fn core_tree(workspace: &Workspace) -> Result<Vec<String>> {
    let args =
        ["tree", "-p", CORE, "--no-default-features", "--edges", "normal", "--target", "all", "--prefix", "none"];
    let tree = output(&mut workspace.cargo(args))?;
    Ok(tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn edge_problems(members: &[Member<'_>]) -> Vec<String> {
    let areas: BTreeMap<&str, Area> = members.iter().map(|member| (member.name, member.area)).collect();
    let mut problems = Vec::new();
    for member in members {
        for used in &member.uses {
            if let Some(area) = areas.get(used)
                && !member.area.may_use(*area)
            {
                problems.push(format!("{} ({}) depends on {used} ({area})", member.name, member.area));
            }
        }
        if member.area.needs_core() && !member.uses.contains(&CORE) {
            problems.push(format!("{} ({}) does not depend on {CORE}", member.name, member.area));
        }
    }
    problems
}

fn heavy_problems(tree: &[String]) -> Vec<String> {
    let found = HEAVY.iter().filter(|heavy| tree.iter().any(|name| name == *heavy));
    found.map(|heavy| format!("{CORE} without features brings in {heavy}")).collect()
}

fn duplicate_problems<'a>(packages: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, version) in packages {
        versions.entry(name).or_default().insert(compatible_with(version));
    }
    let duplicates: BTreeMap<_, _> = versions.into_iter().filter(|(_, versions)| versions.len() > 1).collect();
    let accepted = |name: &str| ACCEPTED_DUPLICATES.iter().any(|(known, _)| *known == name);
    let mut problems = Vec::new();
    for (name, versions) in duplicates.iter().filter(|(name, _)| !accepted(name)) {
        let versions: Vec<_> = versions.iter().map(String::as_str).collect();
        problems.push(format!("{name} comes in the versions {}: see `cargo tree -i {name}`", versions.join(" and ")));
    }
    for (name, _) in ACCEPTED_DUPLICATES.iter().filter(|(name, _)| !duplicates.contains_key(name)) {
        problems.push(format!("{name} comes in one version: take it off the list of accepted duplicates"));
    }
    problems
}

/// The part of a version that cargo takes for compatible: `1` of 1.2.3, `0.4` of 0.4.1, `0.0.3` of itself.
fn compatible_with(version: &str) -> String {
    let release = version.split(['-', '+']).next().unwrap_or(version);
    let mut parts = Vec::new();
    for part in release.split('.') {
        parts.push(part);
        if part != "0" {
            break;
        }
    }
    parts.join(".")
}

fn tls_problems<'a>(packages: impl Iterator<Item = &'a str>) -> Vec<String> {
    let found: BTreeSet<&str> = packages.filter(|name| TLS_PROVIDERS.contains(name)).collect();
    if found.len() < 2 {
        return Vec::new();
    }
    vec![format!("more than one TLS provider: {}", found.into_iter().collect::<Vec<_>>().join(", "))]
}

/// Public signatures that show a type of a hidden crate, by its path or by a name that is imported from there.
fn hidden_type_problems(file: &File) -> Vec<String> {
    let code = rust::code_only(&file.text);
    let mut hidden: BTreeSet<&str> = HIDDEN.iter().copied().collect();
    for (start, _) in code.match_indices("use ") {
        let import = code.get(start + 4..).and_then(|rest| rest.split(';').next()).unwrap_or_default();
        if rust::words(import).next().is_some_and(|first| HIDDEN.contains(&first)) {
            hidden.extend(rust::words(import).filter(|word| word.starts_with(char::is_uppercase)));
        }
    }
    let conversions = code.lines().enumerate().filter(|(_, line)| line.starts_with("impl") && line.contains("From<"));
    let conversions = conversions.map(|(index, line)| (index + 1, line));
    let mut problems = Vec::new();
    for (line, part) in rust::public_parts(&code).into_iter().chain(conversions) {
        if let Some(word) = rust::words(part).find(|word| hidden.contains(word)) {
            problems.push(format!("{}:{line}: {word:?} is an implementation detail, and public here", file.path));
        }
    }
    problems
}

/// What is more than modules and re-exports. A unit struct that carries a doc test is not there outside of it.
fn logic_problems(file: &File) -> Vec<String> {
    let logic = ["fn", "struct", "enum", "union", "trait", "impl", "static", "const", "macro_rules", "type", "let"];
    let code = rust::code_only(&file.text);
    let mut problems = Vec::new();
    let mut doctest_only = false;
    for (index, line) in code.lines().enumerate() {
        let carries_doctest = doctest_only && line.starts_with("pub struct ") && line.ends_with(';');
        let before_item = line.trim().is_empty() || line.starts_with("#[");
        doctest_only = before_item && (doctest_only || line.contains("doctest"));
        if let Some(word) = rust::words(line).find(|word| logic.contains(word))
            && !carries_doctest
        {
            problems.push(format!("{}:{}: `{word}`: the facade only re-exports", file.path, index + 1));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &'static str, area: Area, uses: &[&'static str]) -> Member<'static> {
        Member { name, area, uses: uses.to_vec() }
    }

    fn source(text: &str) -> File {
        File { path: "lib.rs".into(), text: text.into() }
    }

    #[test]
    fn a_workspace_whose_arrows_point_to_core_is_fine() {
        let members = [
            member(CORE, Area::Core, &["tokio"]),
            member("driver-a", Area::Driver, &[CORE, "tokio"]),
            member("kit", Area::Testkit, &[CORE]),
            member(FACADE, Area::Facade, &[CORE, "driver-a"]),
            member("example", Area::Unpublished, &[FACADE, "kit"]),
        ];
        assert_eq!(edge_problems(&members), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_that_points_elsewhere_is_named() {
        let members = [
            member(CORE, Area::Core, &["driver-a"]),
            member("driver-a", Area::Driver, &[CORE, "driver-b"]),
            member("driver-b", Area::Driver, &[CORE, "middleware-c"]),
            member("middleware-c", Area::Middleware, &[CORE]),
            member("rest", Area::Rest, &[CORE, "driver-a"]),
            member("events", Area::Events, &[CORE, "rest"]),
        ];
        let problems = edge_problems(&members);
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert_eq!(problems[0], "function-gateway-core (core) depends on driver-a (a driver)");
    }

    #[test]
    fn a_driver_without_core_is_named() {
        let members = [member(CORE, Area::Core, &[]), member("driver-a", Area::Driver, &["tokio"])];
        assert_eq!(edge_problems(&members), ["driver-a (a driver) does not depend on function-gateway-core"]);
    }

    #[test]
    fn every_folder_of_the_workspace_has_an_area_and_no_other() {
        assert_eq!(Area::of("drivers/local-process"), Some(Area::Driver));
        assert_eq!(Area::of("function-gateway"), Some(Area::Facade));
        assert_eq!(Area::of("function-gateway-callbacks"), Some(Area::Callbacks));
        assert_eq!(Area::of("plugins/x"), None);
    }

    #[test]
    fn core_without_features_stays_light() {
        let tree = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(heavy_problems(&tree(&[CORE, "tokio", "http"])).is_empty());
        assert_eq!(heavy_problems(&tree(&[CORE, "sqlx"])), ["function-gateway-core without features brings in sqlx"]);
    }

    #[test]
    fn versions_are_compatible_as_cargo_sees_it() {
        assert_eq!(compatible_with("1.2.3"), "1");
        assert_eq!(compatible_with("0.4.1"), "0.4");
        assert_eq!(compatible_with("0.0.3-beta.1"), "0.0.3");
    }

    #[test]
    fn a_duplicate_is_named_unless_it_is_accepted() {
        let accepted = ACCEPTED_DUPLICATES.iter().flat_map(|(name, _)| [(*name, "1.0.0"), (*name, "2.0.0")]);
        let problems = duplicate_problems(accepted.clone().chain([("http", "0.2.1"), ("http", "1.5.0")]));
        assert_eq!(problems, ["http comes in the versions 0.2 and 1: see `cargo tree -i http`"]);
        assert!(duplicate_problems(accepted.chain([("http", "1.4.0"), ("http", "1.5.0")])).is_empty());
    }

    #[test]
    fn an_accepted_duplicate_that_is_none_any_more_is_named() {
        assert_eq!(duplicate_problems(std::iter::empty()).len(), ACCEPTED_DUPLICATES.len());
    }

    #[test]
    fn two_tls_providers_are_one_too_many() {
        assert!(tls_problems(["aws-lc-rs", "tokio"].into_iter()).is_empty());
        assert_eq!(tls_problems(["ring", "aws-lc-rs"].into_iter()), ["more than one TLS provider: aws-lc-rs, ring"]);
    }

    #[test]
    fn a_hidden_type_is_found_by_its_path_and_by_its_import() {
        assert_eq!(hidden_type_problems(&source("pub fn f(pool: &sqlx::Pool) {}")).len(), 1);
        assert_eq!(hidden_type_problems(&source("use sqlx::{Row as _, Pool};\npub struct S { pub p: Pool }")).len(), 1);
        assert_eq!(hidden_type_problems(&source("pub use reqwest::Client;")).len(), 1);
        assert_eq!(hidden_type_problems(&source("impl From<sqlx::Error> for Error {}")).len(), 1);
    }

    #[test]
    fn a_hidden_type_inside_is_fine() {
        let text = "use sqlx::Pool;\npub struct S { p: Pool }\npub(crate) fn f(p: &Pool) {}\npub fn g() { sqlx::x() }\n\
                    /// Like `sqlx::Pool`.\npub fn h() {}";
        assert_eq!(hidden_type_problems(&source(text)), Vec::<String>::new());
    }

    #[test]
    fn the_facade_has_modules_and_re_exports_only() {
        let fine = "//! A type.\npub use core::*;\n#[cfg(feature = \"x\")]\npub mod x { pub use y::*; }";
        assert!(logic_problems(&source(fine)).is_empty());
        assert_eq!(
            logic_problems(&source("pub use a::b;\npub fn f() {}")),
            ["lib.rs:2: `fn`: the facade only re-exports"]
        );
    }

    #[test]
    fn what_carries_a_doc_test_is_no_logic() {
        let carrier = "/// Code.\n#[cfg(all(doctest, feature = \"x\"))]\n#[doc = include_str!(\"../../README.md\")]\npub struct Readme;";
        assert_eq!(logic_problems(&source(carrier)), Vec::<String>::new());
        assert_eq!(logic_problems(&source(&format!("{carrier}\npub struct Other;"))).len(), 1);
        assert_eq!(logic_problems(&source("#[cfg(doctest)]\npub struct Readme { a: u8 }")).len(), 1);
    }
}

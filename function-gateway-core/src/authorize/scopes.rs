//! Decides by the scopes of a principal.

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::{Action, Authorizer, Decision, Principal, Resource};
use crate::{CallContext, FunctionName, Result, Violation};

/// Decides by the scopes of the principal:
///
/// | Scope | What it allows |
/// |---|---|
/// | `read` | To read and list functions, and to read executions |
/// | `write` | What `read` allows, and to check specifications, to create, update and delete functions, and to purge dead letters |
/// | `invoke` | To execute functions, to read what has become of what one submitted, to cancel and to redrive, nothing else |
/// | `admin` | All of that, and to read the audit log, and to read, create and revoke API keys |
/// | `metrics` | To read the figures of the gateway as a whole, nothing else. They are about all tenants, so `admin` does not include it |
///
/// All but `metrics` can be for some functions only: `read:resize` for one, `invoke:img-*` for all whose name begins with
/// `img-`. Such a scope allows nothing that is not about one function: neither to list functions, nor to read executions
/// of no function in particular, nor what is about audit log and keys. What is not known counts for nothing.
///
/// Keys can be given what their creator has, and no more: `admin` may give everything away but `metrics`, and `metrics`
/// only who has it too.
///
/// ```
/// use std::sync::Arc;
///
/// use function_gateway_core::{Gateway, Principal, ScopeAuthorizer};
///
/// let builder = Gateway::builder().authorizer(Arc::new(ScopeAuthorizer));
/// let worker = Principal::new("acme".parse()?, "worker".parse()?).with_scope("invoke:img-*").with_scope("read");
/// # Ok::<_, function_gateway_core::InvalidName>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct ScopeAuthorizer;

/// What a scope is for, by its part before the colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    Read,
    Write,
    Invoke,
    Admin,
    Metrics,
}

impl Right {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "read" => Self::Read,
            "write" => Self::Write,
            "invoke" => Self::Invoke,
            "admin" => Self::Admin,
            "metrics" => Self::Metrics,
            _ => return None,
        })
    }

    fn includes(self, other: Self) -> bool {
        match self {
            Self::Admin => other != Self::Metrics,
            Self::Write => matches!(other, Self::Write | Self::Read),
            Self::Read | Self::Invoke | Self::Metrics => self == other,
        }
    }

    /// The least that an action needs, and whether it is about the tenant as a whole.
    fn needed(action: Action) -> (Self, bool) {
        match action {
            Action::Read | Action::ReadExecutions => (Self::Read, false),
            Action::List | Action::ReadSubscriptions => (Self::Read, true),
            Action::Create | Action::Update | Action::Delete | Action::Purge => (Self::Write, false),
            Action::Validate | Action::WriteSubscriptions => (Self::Write, true),
            Action::Invoke | Action::Cancel | Action::Redrive => (Self::Invoke, false),
            Action::Publish => (Self::Invoke, true),
            Action::ReadAudit | Action::ReadKeys | Action::CreateKey | Action::RevokeKey => (Self::Admin, true),
            Action::ReadMetrics => (Self::Metrics, true),
        }
    }
}

/// On what a scope is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On<'a> {
    Tenant,
    Function(&'a str),
    FunctionsFrom(&'a str),
}

impl On<'_> {
    fn holds(self, name: &str) -> bool {
        match self {
            Self::Tenant => true,
            Self::Function(function) => name == function,
            Self::FunctionsFrom(prefix) => name.starts_with(prefix),
        }
    }

    fn includes(self, other: On<'_>) -> bool {
        match other {
            On::Tenant => self == Self::Tenant,
            On::Function(name) => self.holds(name),
            On::FunctionsFrom(prefix) => !matches!(self, Self::Function(_)) && self.holds(prefix),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scope<'a> {
    right: Right,
    on: On<'a>,
}

impl<'a> Scope<'a> {
    /// Takes a scope apart. What it says of functions need not be possible: then it holds none.
    fn parse(text: &'a str) -> Option<Self> {
        let Some((right, pattern)) = text.split_once(':') else {
            return Right::of(text).map(|right| Self { right, on: On::Tenant });
        };
        let on = pattern.strip_suffix('*').map_or(On::Function(pattern), On::FunctionsFrom);
        Right::of(right).filter(|right| *right != Right::Metrics).map(|right| Self { right, on })
    }

    fn allows(self, action: Action, function: Option<&FunctionName>) -> bool {
        let (needed, of_tenant) = Right::needed(action);
        self.right.includes(needed)
            && match (self.on, function) {
                (On::Tenant, _) => true,
                (_, None) => false,
                (on, Some(name)) => !of_tenant && on.holds(name.as_str()),
            }
    }

    fn includes(self, other: Scope<'_>) -> bool {
        self.right.includes(other.right) && self.on.includes(other.on)
    }
}

/// The scopes that count.
fn known(principal: &Principal) -> impl Iterator<Item = Scope<'_>> {
    principal.scopes.iter().filter_map(|scope| Scope::parse(scope))
}

/// Why a scope can't be given by a principal.
fn refusal(granter: &Principal, text: &str) -> Option<String> {
    let Some(scope) = Scope::parse(text) else {
        return Some(format!(
            "there is no scope {text:?}; there are read, write, invoke, admin and metrics, and all but metrics for some \
             functions, such as read:resize or invoke:img-*"
        ));
    };
    let possible = match scope.on {
        On::Tenant => Ok(()),
        On::Function(name) => FunctionName::new(name).map(drop),
        // Whether some name begins so.
        On::FunctionsFrom(prefix) => FunctionName::new(format!("{prefix}0")).map(drop),
    };
    if let Err(error) = possible {
        return Some(format!("no function has a name that {text:?} is for: it {}", error.reason()));
    }
    let has = known(granter).any(|held| held.includes(scope));
    (!has).then(|| format!("the principal that creates the key may not do itself what {text:?} allows"))
}

#[async_trait]
impl Authorizer for ScopeAuthorizer {
    async fn authorize(&self, cx: &CallContext, action: Action, resource: Resource<'_>) -> Result<Decision> {
        let allowed = known(cx.principal()).any(|scope| scope.allows(action, resource.function));
        Ok(if allowed { Decision::Allow } else { Decision::Deny })
    }

    fn check_grant(&self, granter: &Principal, scopes: &BTreeSet<String>) -> Vec<Violation> {
        let refused = scopes.iter().enumerate().filter_map(|(index, scope)| {
            refusal(granter, scope).map(|reason| Violation::new(format!("/scopes/{index}"), reason))
        });
        refused.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIONS: [Action; 13] = [
        Action::Read,
        Action::List,
        Action::ReadExecutions,
        Action::Create,
        Action::Validate,
        Action::Update,
        Action::Delete,
        Action::Invoke,
        Action::ReadAudit,
        Action::ReadKeys,
        Action::CreateKey,
        Action::RevokeKey,
        Action::ReadMetrics,
    ];

    fn principal(scopes: &[&str]) -> Principal {
        let principal = Principal::new("acme".parse().unwrap(), "ann".parse().unwrap());
        scopes.iter().fold(principal, |principal, scope| principal.with_scope(*scope))
    }

    async fn allows(scopes: &[&str], action: Action, function: Option<&str>) -> bool {
        let cx = CallContext::new(principal(scopes));
        let name = function.map(|name| name.parse::<FunctionName>().unwrap());
        let resource = match &name {
            Some(name) => Resource::function(cx.tenant(), name, None),
            None => Resource::tenant(cx.tenant()),
        };
        ScopeAuthorizer.authorize(&cx, action, resource).await.unwrap() == Decision::Allow
    }

    /// A letter for each of [`ACTIONS`], in their order, where it is allowed.
    async fn allowed(scopes: &[&str], function: Option<&str>) -> String {
        let mut row = String::new();
        for (action, letter) in ACTIONS.into_iter().zip("RLECvUDIakcrm".chars()) {
            row.push(if allows(scopes, action, function).await { letter } else { '.' });
        }
        row
    }

    #[tokio::test]
    async fn every_scope_allows_what_it_says_and_nothing_else() {
        // On the tenant as a whole, on the function img-a, on the function b.
        let rows: [(&[&str], [&str; 3]); 18] = [
            (&[], ["............."; 3]),
            (&["read"], ["RLE.........."; 3]),
            (&["write"], ["RLECvUD......"; 3]),
            (&["invoke"], [".......I....."; 3]),
            (&["admin"], ["RLECvUDIakcr."; 3]),
            (&["metrics"], ["............m"; 3]),
            (&["read:img-a"], [".............", "R.E..........", "............."]),
            (&["write:img-a"], [".............", "R.EC.UD......", "............."]),
            (&["invoke:img-a"], [".............", ".......I.....", "............."]),
            (&["admin:img-a"], [".............", "R.EC.UDI.....", "............."]),
            (&["invoke:img-*"], [".............", ".......I.....", "............."]),
            (&["read:*"], [".............", "R.E..........", "R.E.........."]),
            (&["metrics:img-a"], ["............."; 3]),
            (&["invoke:", "invoke:img", "invoke:i*g-a", "invoke:mg-a*", "invoke:IMG-A"], ["............."; 3]),
            (&["Read", " read", "read ", "*", "", ":", "all", "invoke:img-a:b"], ["............."; 3]),
            (&["read", "invoke:b"], ["RLE..........", "RLE..........", "RLE....I....."]),
            (&["write:b", "read:img-*"], [".............", "R.E..........", "R.EC.UD......"]),
            (&["metrics", "invoke"], [".......I....m"; 3]),
        ];
        for (scopes, expected) in rows {
            for (function, expected) in [None, Some("img-a"), Some("b")].into_iter().zip(expected) {
                assert_eq!(allowed(scopes, function).await, expected, "{scopes:?} on {function:?}");
            }
        }
    }

    #[test]
    fn nobody_gives_away_what_he_may_not_do_himself() {
        let granters: [(&[&str], &[&str], &[&str]); 8] = [
            (&[], &[], &["read", "write", "invoke", "admin", "metrics", "read:a"]),
            (
                &["admin"],
                &["read", "write", "invoke", "admin", "read:a", "write:*", "invoke:img-*", "admin:a"],
                &["metrics"],
            ),
            (&["metrics"], &["metrics"], &["read", "admin"]),
            (&["admin", "metrics"], &["metrics", "admin"], &[]),
            (&["write"], &["write", "read", "read:a", "write:a-*"], &["invoke", "invoke:a", "admin", "admin:a"]),
            (
                &["admin:img-*"],
                &["admin:img-*", "read:img-a", "invoke:img-b-*", "write:img-*"],
                &["admin", "read", "read:im*", "read:*", "read:img", "metrics"],
            ),
            (&["invoke:a"], &["invoke:a"], &["invoke:a*", "invoke:ab", "invoke", "read:a"]),
            (&["root", "admin:"], &[], &["read", "read:a"]),
        ];
        for (held, may, may_not) in granters {
            let granter = principal(held);
            let set = |scopes: &[&str]| scopes.iter().map(|scope| (*scope).to_owned()).collect::<BTreeSet<_>>();
            assert_eq!(ScopeAuthorizer.check_grant(&granter, &set(may)), [], "{held:?}");
            let refused = ScopeAuthorizer.check_grant(&granter, &set(may_not));
            assert_eq!(refused.len(), may_not.len(), "{held:?}: {refused:?}");
            assert!(refused.iter().all(|violation| violation.reason.contains("may not do itself")), "{refused:?}");
        }
    }

    #[test]
    fn a_scope_that_is_none_is_told_with_those_that_there_are() {
        let granter = principal(&["admin", "metrics"]);
        for (scope, says) in [
            ("owner", "read, write, invoke, admin and metrics"),
            ("", "read, write, invoke, admin and metrics"),
            ("metrics:a", "all but metrics"),
            ("invoke:img_*", "contains '_'"),
            ("invoke:", "must not be empty"),
            ("read:A", "contains 'A'"),
            ("read:-*", "must start and end"),
            ("read:a*b", "contains '*'"),
        ] {
            let set = BTreeSet::from(["admin".to_owned(), scope.to_owned()]);
            let found = ScopeAuthorizer.check_grant(&granter, &set);
            assert_eq!(found.len(), 1, "{scope:?}: {found:?}");
            let index = set.iter().position(|known| known == scope).unwrap();
            assert_eq!(found[0].pointer, format!("/scopes/{index}"));
            assert!(found[0].reason.contains(says), "{}", found[0].reason);
        }
    }
}

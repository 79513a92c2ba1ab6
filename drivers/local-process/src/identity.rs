//! The user and the group that a function runs as, where that is not the host's own.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::settings::Annotations;

/// Whom a process runs as. What is absent stays as the host's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
}

impl Identity {
    /// What the annotations `user` and `group` say. Blocks on the user database.
    pub(crate) fn of(annotations: &mut Annotations<'_>) -> Self {
        let (user, group) = (annotations.get("user"), annotations.get("group"));
        let mut identity = Self::default();
        if user.is_none() && group.is_none() {
            return identity;
        }
        if !rustix::process::geteuid().is_root() {
            for name in [user.map(|_| "user"), group.map(|_| "group")].into_iter().flatten() {
                annotations.refuse(name, "can't be changed: the host does not run as root");
            }
            return identity;
        }
        if let Some(name) = user {
            let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
            match (find(&users, name), name.parse()) {
                (Some((number, its_group)), _) => (identity.user, identity.group) = (Some(number), its_group),
                (None, Ok(number)) => identity.user = Some(number),
                (None, Err(_)) => annotations.refuse("user", "there is no such user in /etc/passwd"),
            }
        }
        if let Some(name) = group {
            let groups = fs::read_to_string("/etc/group").unwrap_or_default();
            match (find(&groups, name), name.parse()) {
                (Some((number, _)), _) | (None, Ok(number)) => identity.group = Some(number),
                (None, Err(_)) => annotations.refuse("group", "there is no such group in /etc/group"),
            }
        } else if identity.user.is_some() && identity.group.is_none() {
            annotations.refuse("user", "is not in /etc/passwd, so `group` has to say which group it has");
        }
        identity
    }

    /// Has a process run so. It has no other group then but its own.
    pub(crate) fn apply(self, command: &mut Command) {
        if let Some(group) = self.group {
            command.gid(group);
        }
        if let Some(user) = self.user {
            command.uid(user);
        }
    }
}

/// The number of a user or a group, by name or number, and the group of a user (passwd(5), group(5)).
fn find(database: &str, wanted: &str) -> Option<(u32, Option<u32>)> {
    database.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?;
        let is_it = name == wanted || number == wanted;
        is_it.then_some((number.parse().ok()?, fields.next().and_then(|group| group.parse().ok())))
    })
}

#[cfg(test)]
mod tests {
    use function_gateway_core::{FunctionSpec, ProcessWorkload};

    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65533:nobody:/:/bin/false\nbroken\n";

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        assert_eq!(find(USERS, "nobody"), Some((65534, Some(65533))));
        assert_eq!(find(USERS, "65534"), Some((65534, Some(65533))));
        assert_eq!(find(USERS, "x"), None);
        assert_eq!(find("staff:x:50:ada,bob\n", "staff"), Some((50, None)));
    }

    fn read(annotations: &[(&str, &str)]) -> (Identity, Vec<String>) {
        let spec = FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("/bin/sh"));
        let spec = annotations.iter().fold(spec, |spec, (name, value)| spec.with_annotation(*name, *value));
        let mut annotations = Annotations::of(&spec);
        let identity = Identity::of(&mut annotations);
        (identity, annotations.finish().into_iter().map(|violation| violation.pointer).collect())
    }

    #[test]
    fn only_root_can_change_it_and_only_to_what_there_is() {
        assert_eq!(read(&[]), (Identity::default(), Vec::new()));
        if !rustix::process::geteuid().is_root() {
            assert_eq!(read(&[("user", "root"), ("group", "root")]).1, ["/annotations/user", "/annotations/group"]);
            return;
        }
        let root = Identity { user: Some(0), group: Some(0) };
        assert_eq!(read(&[("user", "root")]), (root, Vec::new()));
        assert_eq!(read(&[("user", "0"), ("group", "7")]), (Identity { group: Some(7), ..root }, Vec::new()));
        assert_eq!(read(&[("user", "no-such-user")]).1, ["/annotations/user"]);
        assert_eq!(read(&[("user", "4000000000")]).1, ["/annotations/user"]);
        assert_eq!(read(&[("group", "no-such-group")]).1, ["/annotations/group"]);
    }
}

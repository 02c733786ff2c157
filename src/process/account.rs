//! Users of this host, as `/etc/passwd` knows them: executors may run as another one.

use serde_json::Value;

/// A user and its primary group, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    pub user: u32,
    pub group: u32,
}

impl Account {
    /// The one of this name or number, which only root may give to its children.
    pub fn find(wanted: &Value) -> Result<Account, String> {
        let wanted = wanted.as_str().map_or_else(|| wanted.to_string(), str::to_owned);
        if !rustix::process::geteuid().is_root() {
            return Err(format!("only root can start processes as {wanted}"));
        }
        let users =
            std::fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
        Account::in_text(&users, &wanted).ok_or_else(|| format!("/etc/passwd has no user {wanted}"))
    }

    /// In the lines `name:password:user:group:…` (passwd(5)).
    fn in_text(users: &str, wanted: &str) -> Option<Account> {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, user) = (fields.next()?, fields.nth(1)?);
            let account = Account { user: user.parse().ok()?, group: fields.next()?.parse().ok()? };
            (name == wanted || user == wanted).then_some(account)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number_and_no_other_is() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken:x\njobs:x:990:991::/:/bin/false\n";
        let jobs = Some(Account { user: 990, group: 991 });
        assert_eq!((Account::in_text(users, "jobs"), Account::in_text(users, "990")), (jobs, jobs));
        for unknown in ["job", "991", "x", "", "broken"] {
            assert_eq!(Account::in_text(users, unknown), None, "{unknown}");
        }
    }
}

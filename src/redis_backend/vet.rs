//! Is this server fit to keep jobs, and what does it promise? Pure, from what the server says of itself.

use crate::ports::Fitness;

/// The oldest server that the scripts run on.
const OLDEST: u64 = 7;

/// Judges `INFO`, and `appendfsync` where we may ask for it.
pub fn judge(info: &str, fsync: Option<&str>) -> Fitness {
    let value = |name: &str| {
        let lines = info.lines().filter_map(|line| line.trim_end().split_once(':'));
        lines.clone().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    };
    let unfit = Fitness::Unfit;
    let (redis, valkey) = (value("redis_version"), value("valkey_version"));
    let major = redis.split('.').next().and_then(|major| major.parse::<u64>().ok()).unwrap_or(0);
    if valkey.is_empty() && major < OLDEST {
        return unfit(format!("redis {redis} is too old: version {OLDEST} or later, or Valkey, is needed"));
    }
    if value("role") == "slave" {
        return unfit("it is a read-only replica: runtime.platform.redis.url must name the primary".into());
    }
    if value("loading") == "1" {
        return Fitness::Away("it is loading its data".into());
    }
    let policy = value("maxmemory_policy");
    if policy != "noeviction" {
        return unfit(format!(
            "maxmemory-policy is {policy}, which throws jobs away when memory is short: set `maxmemory-policy noeviction`"
        ));
    }
    let kind = if valkey.is_empty() { format!("redis {redis}") } else { format!("valkey {valkey}") };
    let promise = match (value("aof_enabled"), fsync) {
        ("1", Some("always")) => "what is kept there survives a crash of the server",
        ("1", Some("everysec")) => {
            "a crash of the server loses at most about a second (appendfsync everysec)"
        }
        ("1", Some(_)) => {
            "a crash of the server's host loses what the system had not written (appendfsync no)"
        }
        ("1", None) => "the append-only file is on; how often it is written is not ours to see (CONFIG GET)",
        _ => "a crash of the server loses what was not saved: set `appendonly yes` and `appendfsync always`",
    };
    Fitness::Fit(format!("{kind}: {promise}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# Server\r\nredis_version:7.0.15\r\nrole:master\r\nloading:0\r\naof_enabled:1\r\nmaxmemory_policy:noeviction\r\n";

    #[test]
    fn a_server_is_fit_or_the_line_to_change_is_said() {
        let said = |from: &str, to: &str| match judge(&GOOD.replace(from, to), Some("always")) {
            Fitness::Fit(text) | Fitness::Unfit(text) | Fitness::Away(text) => text,
        };
        for (from, to, expected) in [
            ("", "", "redis 7.0.15: what is kept there survives"),
            ("7.0.15", "6.2.1", "too old"),
            ("redis_version:7.0.15", "redis_version:7.2.4\r\nvalkey_version:8.0.1", "valkey 8.0.1: what is"),
            ("role:master", "role:slave", "read-only replica"),
            ("loading:0", "loading:1", "loading its data"),
            ("noeviction", "allkeys-lru", "set `maxmemory-policy noeviction`"),
            ("aof_enabled:1", "aof_enabled:0", "set `appendonly yes`"),
        ] {
            assert!(said(from, to).contains(expected), "{to}: {}", said(from, to));
        }
        let unseen = judge(GOOD, None);
        assert!(matches!(unseen, Fitness::Fit(text) if text.contains("not ours to see")));
        assert!(matches!(judge(GOOD, Some("everysec")), Fitness::Fit(text) if text.contains("a second")));
    }
}

//! Who a request is from, and whether that is enough for it: tokens (RFC 6750), their scopes, how often each may ask. Judged
//! on the head alone. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::http1::{Head, Refused, refused};
use super::routes::{Inner, OfJob, Route};
use crate::clock::Timestamp;
use crate::config::tokens::{Scope, Token, hash};
use crate::config::{Web, WebAuth};
use crate::entropy::Entropy;
use crate::limits::{AUTHORIZATION_BYTES, UNAUTHORIZED_A_SECOND, UNAUTHORIZED_ADDRESSES};
use crate::mac::MacKey;
use crate::negative_controls::{Control, is_off};
use crate::observe::event;
use crate::ports::Viewer;
use crate::problem::Code;

const CHALLENGE: &str = "www-authenticate";
const NO_TOKEN: Refused = refused(Code::Unauthorized, "this needs a token: Authorization: Bearer TOKEN")
    .with(CHALLENGE, r#"Bearer realm="cofferdam""#);
const BAD_TOKEN: Refused = refused(Code::Unauthorized, "the token is not known here")
    .with(CHALLENGE, r#"Bearer realm="cofferdam", error="invalid_token""#);
const TOO_MANY: Refused =
    refused(Code::TooManyRequests, "too many requests without a valid token came from this address");
const TOO_FAST: Refused = refused(Code::TooManyRequests, "the token's rate_per_second is exceeded");
const NOT_THIS_HANDLER: Refused = refused(Code::Forbidden, "the token is not for this handler")
    .with(CHALLENGE, r#"Bearer realm="cofferdam", error="insufficient_scope""#);

/// Whom a request is from; by default nobody who could own a job or see one, as where the request needed no token.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// What it may see, by the name that its jobs belong to.
    pub viewer: Viewer,
    /// Callers of this name that may wait at once, if its token says so.
    pub max_inflight: Option<usize>,
}

/// The token that a connection's last request brought, which the next one likely brings again.
pub struct Known {
    text: Zeroizing<Vec<u8>>,
    token: Arc<Token>,
    /// Of the token file that it was in.
    reread: u64,
}

/// See the module.
pub struct Guard {
    /// Of this process alone: tokens are looked up by their macs, so that the time of a look-up says nothing about them.
    key: MacKey,
    /// `None`: everybody on this host may do everything.
    tokens: Option<HashMap<[u8; 32], Arc<Token>>>,
    /// How often they were replaced.
    reread: u64,
    open_metrics: bool,
    trusted_proxies: Vec<IpAddr>,
    /// How fast requests of a name come, where a limit is set.
    paces: HashMap<Arc<str>, Pace>,
    /// How fast requests without a valid token come from an address, or from a site's many of IPv6.
    failures: HashMap<IpAddr, Pace>,
    /// When such a request was said to the log last, and how many came since.
    said_at: Timestamp,
    unsaid: u64,
}

impl Guard {
    /// With these tokens, if the mode asks for any.
    pub fn new(web: &Web, tokens: Vec<Token>, entropy: &mut Entropy) -> Guard {
        let WebAuth { mode, open_metrics, .. } = &web.auth;
        let mut guard = Guard {
            key: MacKey::new(&entropy.bytes::<32>()),
            tokens: None,
            reread: 0,
            open_metrics: *open_metrics,
            trusted_proxies: web.trusted_proxies.iter().map(IpAddr::to_canonical).collect(),
            paces: HashMap::new(),
            failures: HashMap::new(),
            said_at: Timestamp(0),
            unsaid: 0,
        };
        if mode == "bearer" {
            guard.tokens = Some(guard.by_mac(tokens));
        }
        guard
    }

    fn by_mac(&self, tokens: Vec<Token>) -> HashMap<[u8; 32], Arc<Token>> {
        tokens.into_iter().map(|token| (self.key.sign(&[&token.hash]), Arc::new(token))).collect()
    }

    /// These hold from now on; what the names of those are that came, went or changed, for the log.
    pub fn replace(&mut self, tokens: Vec<Token>) -> String {
        let after = self.by_mac(tokens);
        let before = self.tokens.replace(after.clone()).unwrap_or_default();
        self.paces.clear();
        self.reread += 1;
        let is_in = |tokens: &HashMap<_, Arc<Token>>, mac: &[u8; 32], name: &str| {
            tokens.get(mac).is_some_and(|token| *token.name == *name)
        };
        let added = after.iter().filter(|(mac, token)| !is_in(&before, mac, &token.name));
        let removed = before.iter().filter(|(mac, token)| !is_in(&after, mac, &token.name));
        let changed = after.iter().filter(|(mac, token)| {
            is_in(&before, mac, &token.name) && before.get(*mac).is_some_and(|before| before != *token)
        });
        let [added, removed, changed] = [names(added), names(removed), names(changed)];
        format!("{} known; added: {added}; removed: {removed}; changed: {changed}", after.len())
    }

    /// Who the request is from. It may do what it asks for.
    pub fn judge(
        &mut self,
        head: &Head,
        route: &Route,
        peer: IpAddr,
        known: &mut Option<Known>,
        now: Timestamp,
    ) -> Result<Caller, Refused> {
        let Some(tokens) = &self.tokens else {
            return Ok(Caller { viewer: Viewer::anonymous(), max_inflight: None });
        };
        let (scopes, handler) = asks_for(route);
        let is_open = self.open_metrics && matches!(route, Route::Inner(Inner::Ready | Inner::Metrics));
        if scopes.is_empty() || is_open {
            return Ok(Caller::default());
        }
        let found = bearer(head).map(|text| {
            let text = text?;
            let again =
                known.as_ref().filter(|known| known.reread == self.reread && is_same(&known.text, text));
            if let Some(known) = again {
                return Some(known.token.clone());
            }
            let token = tokens.get(&self.key.sign(&[&hash(text)]))?.clone();
            *known = Some(Known { text: text.to_vec().into(), token: token.clone(), reread: self.reread });
            Some(token)
        });
        let token = match found {
            Ok(Some(token)) => token,
            Ok(None) => return Err(self.failed(head, peer, BAD_TOKEN, now)),
            Err(refused) => return Err(self.failed(head, peer, refused, now)),
        };
        if let Some(rate) = token.rate_per_second
            && !self.paces.entry(token.name.clone()).or_default().allows(rate, now)
        {
            return Err(TOO_FAST);
        }
        if !token.scopes.iter().any(|scope| scopes.contains(scope)) && !is_off(Control::Scope) {
            return Err(lacks(scopes[0]));
        }
        let (name, admin) = (token.name.clone(), token.scopes.contains(&Scope::Admin));
        let viewer = Viewer { name, admin, handlers: token.handlers.clone() };
        // Which jobs a bulk is about is not known yet.
        let is_of_many = matches!(route, Route::Inner(Inner::Bulk(_))) && token.handlers.is_some();
        if handler.is_some_and(|handler| !viewer.is_for(handler)) || is_of_many {
            return Err(NOT_THIS_HANDLER);
        }
        Ok(Caller { viewer, max_inflight: token.max_inflight })
    }

    /// A request without a valid token: too many of one address are told so.
    fn failed(&mut self, head: &Head, peer: IpAddr, why: Refused, now: Timestamp) -> Refused {
        const A_SECOND: Duration = Duration::from_secs(1);
        let client = self.client(head, peer);
        let site = site(client);
        if self.failures.len() >= UNAUTHORIZED_ADDRESSES && !self.failures.contains_key(&site) {
            self.failures.clear();
        }
        let allowed = self.failures.entry(site).or_default().allows(UNAUTHORIZED_A_SECOND, now);
        if now < self.said_at.plus(A_SECOND) {
            self.unsaid += 1;
        } else {
            self.said_at = now;
            let rejected = event(log::Level::Warn, "ingress.rejected").field("code", why.code.as_str());
            let rejected = rejected.field("client", &client.to_string());
            rejected.number("others_since", std::mem::take(&mut self.unsaid)).emit();
        }
        if allowed { why } else { TOO_MANY }
    }

    /// The address that stands for the client: its own, or what a trusted proxy says of it; of several proxies on the way only
    /// what trusted ones say counts. Where both headers are there and differ, one is the client's own word: neither counts.
    pub fn client(&self, head: &Head, peer: IpAddr) -> IpAddr {
        let listed = |name| {
            let values: Vec<&str> = head.values(name).filter_map(Result::ok).collect();
            Some(values.join(",")).filter(|list| !list.is_empty())
        };
        let by_list = listed("x-forwarded-for").map(|list| self.behind(peer, list.split(',')));
        let by_rfc = listed("forwarded").map(|list| self.behind(peer, list.split(',').map(forwarded_for)));
        match (by_list, by_rfc) {
            (Some(one), Some(other)) if one != other => peer,
            (one, other) => one.or(other).unwrap_or(peer),
        }
    }

    /// Who is behind this peer by a list of hops, the nearest one last, as far as trusted proxies wrote it.
    fn behind<'a>(&self, peer: IpAddr, hops: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        let mut client = peer;
        for hop in hops.rev() {
            match address(hop).as_ref().map(IpAddr::to_canonical) {
                Some(said) if self.trusted_proxies.contains(&client) => client = said,
                Some(_) | None => break,
            }
        }
        client
    }
}

/// The names of these tokens for the log: the first ones, and how many more there are.
fn names<'a>(tokens: impl Iterator<Item = (&'a [u8; 32], &'a Arc<Token>)>) -> String {
    const SHOWN: usize = 10;
    let mut names: Vec<&str> = tokens.map(|(_, token)| &*token.name).collect();
    names.sort_unstable();
    let shown = names[..names.len().min(SHOWN)].join(",");
    match names.len() {
        0 => "none".into(),
        1..=SHOWN => shown,
        count => format!("{shown} and {} more", count - SHOWN),
    }
}

/// Any one of these scopes is enough; and the handler that the request is about. None: it needs no token.
fn asks_for(route: &Route) -> (&'static [Scope], Option<&str>) {
    use Scope::{Admin, Read, Submit};
    match route {
        Route::Alive | Route::Options(_) | Route::OpenApi | Route::Dashboard => (&[], None),
        Route::Submit(handler) | Route::Batch(handler) => (&[Submit], Some(handler)),
        Route::Inner(Inner::Pause(handler, _)) => (&[Admin], Some(handler)),
        Route::Inner(Inner::Bulk(_)) => (&[Admin], None),
        Route::Inner(Inner::Job(_, OfJob::Cancel | OfJob::Retry)) => (&[Submit, Admin], None),
        Route::Wait(_)
        | Route::Events
        | Route::Inner(
            Inner::Job(_, OfJob::Record | OfJob::Result | OfJob::Payload)
            | Inner::List
            | Inner::Lanes(_)
            | Inner::Stats
            | Inner::Ready
            | Inner::Metrics,
        ) => (&[Read, Admin], None),
    }
}

fn lacks(scope: Scope) -> Refused {
    match scope {
        Scope::Submit => refused(Code::Forbidden, "the token lacks the scope submit")
            .with(CHALLENGE, r#"Bearer realm="cofferdam", error="insufficient_scope", scope="submit""#),
        Scope::Read => refused(Code::Forbidden, "the token lacks the scope read")
            .with(CHALLENGE, r#"Bearer realm="cofferdam", error="insufficient_scope", scope="read""#),
        Scope::Admin => refused(Code::Forbidden, "the token lacks the scope admin")
            .with(CHALLENGE, r#"Bearer realm="cofferdam", error="insufficient_scope", scope="admin""#),
    }
}

/// The one token of a request; `None`: what it brings is none.
fn bearer(head: &Head) -> Result<Option<&[u8]>, Refused> {
    let mut values = head.headers().filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    let (Some((_, value)), None) = (values.next(), values.next()) else { return Err(NO_TOKEN) };
    let Some((scheme, token)) = value.split_at_checked(7).filter(|_| value.len() <= AUTHORIZATION_BYTES)
    else {
        return Err(NO_TOKEN);
    };
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return Err(NO_TOKEN);
    }
    let token = token.trim_ascii_start();
    let is_visible = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    Ok(Some(token).filter(|_| is_visible))
}

/// Compared in a time that says nothing about where they differ: one connection of a proxy may bring many clients' tokens.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// The node behind `for=` in an element of `Forwarded` (RFC 7239, 4).
fn forwarded_for(element: &str) -> &str {
    let pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let node = pairs.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("for"));
    node.map_or("", |(_, node)| node.trim_matches('"'))
}

/// What one client may have of addresses: of IPv6 the 64 bits of a network (RFC 4291, 2.5.4).
fn site(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// An address with or without a port, in brackets or not.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once(']')?.0.parse().ok();
    }
    let without_port = || text.rsplit_once(':')?.0.parse().ok();
    text.parse().ok().or_else(without_port)
}

/// How fast something comes: as many at once as a second may bring, then evenly (the generic cell rate algorithm).
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// When the last one would have come, had all come evenly.
    at: Timestamp,
}

impl Pace {
    fn allows(&mut self, per_second: u32, now: Timestamp) -> bool {
        const SECOND: Duration = Duration::from_secs(1);
        let next = Timestamp(self.at.0.max(now.0)).plus(SECOND / per_second);
        let is_allowed = next <= now.plus(SECOND);
        if is_allowed {
            self.at = next;
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::super::http1::parse_head;
    use super::super::routes::route;
    use super::*;
    use crate::config::Config;
    use crate::config::tokens::parse;

    fn line(name: &str, rest: &str) -> String {
        use std::fmt::Write as _;
        let mut hex = String::new();
        hash(format!("token-of-{name}").as_bytes()).iter().for_each(|byte| _ = write!(hex, "{byte:02x}"));
        format!("{name} {hex} {rest}\n")
    }

    fn guard(lines: &str) -> Guard {
        let mut web = Config::default().web;
        web.auth.mode = "bearer".into();
        web.trusted_proxies = vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        Guard::new(&web, parse(lines).unwrap(), &mut Entropy::Seeded(1))
    }

    fn head(headers: &str) -> Head {
        parse_head(format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n").as_bytes(), 8_192)
            .unwrap()
            .unwrap()
            .0
    }

    /// A socket that listens on `[::]` sees peers of IPv4 as addresses of IPv6.
    #[test]
    fn an_address_is_one_whichever_way_it_is_written_and_a_site_of_ipv6_is_one_client() {
        let at = |text: &str| -> IpAddr { text.parse().unwrap() };
        let mut web = Config::default().web;
        web.trusted_proxies = vec![at("::ffff:10.0.0.1"), at("10.0.0.2")];
        let guard = Guard::new(&web, Vec::new(), &mut Entropy::Seeded(1));
        let behind = head("X-Forwarded-For: 8.8.8.8, ::ffff:10.0.0.1\r\n");
        assert_eq!(guard.client(&behind, at("10.0.0.2")), at("8.8.8.8"));
        assert_eq!(site(at("2001:db8::1:2:3:4")), site(at("2001:db8::5:6:7:8")));
        assert_ne!(site(at("2001:db8::1")), site(at("2001:db8:0:1::1")));
        assert_ne!(site(at("10.0.0.1")), site(at("10.0.0.2")));
    }

    fn ask(guard: &mut Guard, request: &str, headers: &str, now: u64) -> Result<Caller, Refused> {
        let (method, target) = request.split_once(' ').unwrap();
        let (route, _) = route(method, target).unwrap();
        guard.judge(&head(headers), &route, "127.0.0.1".parse().unwrap(), &mut None, Timestamp(now))
    }

    #[test]
    fn each_route_needs_its_scope_and_its_handler() {
        let lines = ["submit", "read", "admin"].map(|scope| line(scope, scope)).concat();
        let mut guard = guard(&(lines + &line("echo-only", "submit,admin echo")));
        let id = "0123456789abcdef0123456789abcdef";
        let (read, submit, admin, echo) = (2, 1, 4, 8);
        for (request, allowed) in [
            ("POST /v1/jobs/echo".to_owned(), submit | echo),
            ("POST /v1/jobs/sleep".into(), submit),
            ("POST /v1/batch/echo".into(), submit | echo),
            ("POST /v1/batch/sleep".into(), submit),
            (format!("GET /v1/jobs/{id}"), read | admin | echo),
            (format!("GET /v1/jobs/{id}?wait=1"), read | admin | echo),
            (format!("GET /v1/jobs/{id}/result"), read | admin | echo),
            (format!("GET /v1/jobs/{id}/payload"), read | admin | echo),
            ("GET /v1/jobs".into(), read | admin | echo),
            ("GET /v1/stats".into(), read | admin | echo),
            ("GET /readyz".into(), read | admin | echo),
            ("GET /metrics".into(), read | admin | echo),
            (format!("DELETE /v1/jobs/{id}"), submit | admin | echo),
            (format!("POST /v1/jobs/{id}/retry"), submit | admin | echo),
            ("POST /v1/handlers/echo/pause".into(), admin | echo),
            ("POST /v1/handlers/sleep/resume".into(), admin),
            ("GET /".into(), 15),
            ("GET /healthz".into(), 15),
            ("OPTIONS /v1/stats".into(), 15),
        ] {
            for (name, bit) in [("submit", submit), ("read", read), ("admin", admin), ("echo-only", echo)] {
                let answer =
                    ask(&mut guard, &request, &format!("Authorization: Bearer token-of-{name}\r\n"), 0);
                let code = answer.err().map(|refused| refused.code);
                let expected = (allowed & bit == 0).then_some(Code::Forbidden);
                assert_eq!(code, expected, "{request} with {name}");
            }
        }
    }

    #[test]
    fn what_is_no_token_or_not_a_known_one_is_unauthorized_and_challenged() {
        let mut guard = guard(&line("a", "read"));
        let long = format!("Authorization: Bearer {}\r\n", "x".repeat(122));
        for (number, headers) in [
            "",
            "Authorization: Bearer token-of-b\r\n",
            "Authorization: Basic token-of-a\r\n",
            "Authorization: Bearer\r\n",
            "Authorization: token-of-a\r\n",
            "Authorization: Bearer token-of-a token-of-a\r\n",
            "Authorization: Bearer token-of-a\r\nAuthorization: Bearer token-of-a\r\n",
            "Authorization: Bearer \u{e9}\r\n",
            &long,
        ]
        .into_iter()
        .enumerate()
        {
            let refused = ask(&mut guard, "GET /v1/jobs", headers, number as u64 * 1_000_000).unwrap_err();
            assert_eq!(refused.code, Code::Unauthorized, "{headers:?}");
            assert!(
                refused.header.is_some_and(|(name, value)| name == CHALLENGE && value.starts_with("Bearer "))
            );
        }
        for headers in ["Authorization: Bearer token-of-a\r\n", "authorization:bearer token-of-a\r\n"] {
            let caller = ask(&mut guard, "GET /v1/jobs", headers, 0).unwrap();
            assert_eq!((&*caller.viewer.name, caller.viewer.admin), ("a", false));
        }
    }

    #[test]
    fn who_fails_too_often_is_told_so_and_a_valid_token_passes_all_the_same() {
        let mut guard = guard(&line("a", "read"));
        let fail = |guard: &mut Guard, now| ask(guard, "GET /v1/jobs", "", now).unwrap_err().code;
        let codes: Vec<Code> = (0..12).map(|_| fail(&mut guard, 0)).collect();
        assert_eq!(codes[9..], [Code::Unauthorized, Code::TooManyRequests, Code::TooManyRequests]);
        assert!(ask(&mut guard, "GET /v1/jobs", "Authorization: Bearer token-of-a\r\n", 0).is_ok());
        assert_eq!(fail(&mut guard, 200_000), Code::Unauthorized);
    }

    #[test]
    fn a_tokens_own_rate_holds_and_a_new_file_changes_who_is_known() {
        let mut guard = guard(&line("a", "read rate_per_second=2"));
        let code = |guard: &mut Guard, now| {
            let answer = ask(guard, "GET /v1/jobs", "Authorization: Bearer token-of-a\r\n", now);
            answer.err().map(|refused| refused.code)
        };
        let answers = [0, 0, 0, 499_000, 501_000].map(|now| code(&mut guard, now));
        assert_eq!(answers, [None, None, Some(Code::TooManyRequests), Some(Code::TooManyRequests), None]);
        let said = guard.replace(parse(&(line("a", "read") + &line("b", "read"))).unwrap());
        assert_eq!(said, "2 known; added: b; removed: none; changed: a");
        assert_eq!(code(&mut guard, 502_000), None);
        // The log is told some names, and who has a token that was another's.
        let many: String = (10..30).map(|number| line(&format!("n{number}"), "read")).collect();
        let renamed = line("b", "read").replacen('b', "c", 1);
        assert_eq!(
            guard.replace(parse(&(many + &renamed)).unwrap()),
            "21 known; added: c,n10,n11,n12,n13,n14,n15,n16,n17,n18 and 11 more; removed: a,b; changed: none"
        );
        let gone = guard.replace(Vec::new());
        assert!(
            gone.starts_with("0 known; added: none; removed: c,n10,")
                && gone.ends_with(" 11 more; changed: none")
        );
        assert_eq!(code(&mut guard, 503_000), Some(Code::Unauthorized));
    }

    #[test]
    fn what_a_connection_brought_before_is_known_until_the_file_is_read_again() {
        let mut guard = guard(&(line("a", "read") + &line("b", "read")));
        let mut known = None;
        let mut ask = |guard: &mut Guard, name: &str| {
            let head = head(&format!("Authorization: Bearer token-of-{name}\r\n"));
            let route = route("GET", "/v1/jobs").unwrap().0;
            let peer = "127.0.0.1".parse().unwrap();
            guard
                .judge(&head, &route, peer, &mut known, Timestamp(0))
                .map(|caller| caller.viewer.name.to_string())
        };
        for name in ["a", "a", "b", "a", "c", "a"] {
            let expected = Some(name).filter(|name| *name != "c").map(str::to_owned);
            assert_eq!(ask(&mut guard, name).ok(), expected, "{name}");
        }
        // One connection of a proxy brings many clients' requests; a token that is gone is known nowhere.
        guard.replace(parse(&line("b", "read")).unwrap());
        assert_eq!((ask(&mut guard, "a").ok(), ask(&mut guard, "b").ok()), (None, Some("b".into())));
    }

    #[test]
    fn only_what_trusted_proxies_say_of_the_client_counts() {
        let guard = guard("");
        for (peer, headers, client) in [
            ("1.1.1.1", "X-Forwarded-For: 2.2.2.2\r\n", "1.1.1.1"),
            ("10.0.0.1", "X-Forwarded-For: 9.9.9.9, 2.2.2.2\r\n", "2.2.2.2"),
            ("10.0.0.1", "X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: 2.2.2.2:81, 10.0.0.2\r\n", "2.2.2.2"),
            ("10.0.0.1", "X-Forwarded-For: 2.2.2.2, unknown\r\n", "10.0.0.1"),
            ("10.0.0.1", "Forwarded: for=9.9.9.9, proto=https;For=\"[2001:db8::1]:47\"\r\n", "2001:db8::1"),
            ("10.0.0.1", "Forwarded: for=_hidden\r\n", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "X-Forwarded-For: 2.2.2.2\r\nForwarded: for=2.2.2.2\r\n", "2.2.2.2"),
            // One of the two is the client's own word, and nobody knows which.
            ("10.0.0.1", "X-Forwarded-For: 9.9.9.9\r\nForwarded: for=2.2.2.2\r\n", "10.0.0.1"),
        ] {
            let found = guard.client(&head(headers), peer.parse().unwrap());
            assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{peer} {headers}");
        }
    }
}

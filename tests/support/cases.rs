//! Cases of HTTP as data: how they are written, what comes back as answers, and whether that is what a case asks for.
//!
//! Pure: `case_sockets` says the bytes to a server, `case_gate` to the gate alone. `tests/http_cases/README.md` has the
//! format.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::time::Duration;

/// The groups, each a file of its own.
pub const GROUPS: [(&str, &str); 8] = [
    ("feature", include_str!("../http_cases/feature.txt")),
    ("syntax", include_str!("../http_cases/syntax.txt")),
    ("smuggling", include_str!("../http_cases/smuggling.txt")),
    ("truncation", include_str!("../http_cases/truncation.txt")),
    ("limits", include_str!("../http_cases/limits.txt")),
    ("slowness", include_str!("../http_cases/slowness.txt")),
    ("load", include_str!("../http_cases/load.txt")),
    ("tokens", include_str!("../http_cases/tokens.txt")),
];
/// Says whether a connection goes on; its answer is the last one.
pub const PROBE: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// How much a case binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Must,
    /// Told, and no failure.
    Should,
    /// What our own interface promises.
    Ours,
}

impl Class {
    pub fn name(self) -> &'static str {
        match self {
            Class::Must => "MUST",
            Class::Should => "SHOULD",
            Class::Ours => "OURS",
        }
    }
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A further request on it is served.
    Open,
    Closed,
    /// Nothing more is said, and it is not closed.
    Quiet,
    Either,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Send(Vec<u8>),
    Wait(Duration),
    /// The client says nothing until the server does.
    Listen,
    /// The client closes its writing half.
    Shut,
}

/// One answer that must come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    pub status: u16,
    /// It answers a HEAD: no content follows.
    pub is_head: bool,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    pub group: &'static str,
    pub name: String,
    /// The section of an RFC, or our reason.
    pub why: String,
    pub class: Class,
    pub steps: Vec<Step>,
    pub expect: Vec<Expected>,
    /// Sequences that any server may answer with; `None`: the case is about our own interface.
    pub others: Option<Vec<Vec<Expected>>>,
    /// Of the last answer: a header, and a part of its value.
    pub headers: Vec<(String, String)>,
    pub absent: Vec<String>,
    /// Of the last answer: a header, and what is no part of its value.
    pub without: Vec<(String, String)>,
    pub bodies: Vec<String>,
    pub code: Option<String>,
    pub end: End,
    /// When the first answer comes, or the end if there is none; from the connection's start.
    pub after: Option<Duration>,
    /// So long the client reads nothing.
    pub unread: Duration,
    /// So many clients say the same at the same time.
    pub clients: usize,
    /// What answers it is not in the gate alone.
    pub needs_service: bool,
}

/// Words that a run puts into the bytes: the text of `$name` in the case of this number.
pub type Words<'a> = &'a dyn Fn(usize, &str) -> String;

/// All cases of a file. A mistake in it is named with its line.
pub fn parse(group: &'static str, text: &str, words: Words<'_>) -> Result<Vec<Case>, String> {
    let mut cases: Vec<Case> = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let fail = |what: &str| format!("{group}.txt:{number}: {what}: {line}");
        if word == "case" {
            if cases.iter().any(|case| case.name == rest) {
                return Err(fail("another case has this name"));
            }
            cases.push(Case::new(group, rest));
            continue;
        }
        let number = cases.len();
        let words = |word: &str| words(number, word);
        let case = cases.last_mut().ok_or_else(|| fail("no case before it"))?;
        case.read(word, rest, &words).ok_or_else(|| fail("not understood"))?;
    }
    match cases.iter().find(|case| case.why.is_empty() || case.steps.is_empty()) {
        Some(case) => Err(format!("{group}: {} has no why, or no bytes", case.name)),
        None => Ok(cases),
    }
}

impl Case {
    fn new(group: &'static str, name: &str) -> Case {
        Case {
            group,
            name: name.to_owned(),
            why: String::new(),
            class: Class::Ours,
            steps: Vec::new(),
            expect: Vec::new(),
            others: None,
            headers: Vec::new(),
            absent: Vec::new(),
            without: Vec::new(),
            bodies: Vec::new(),
            code: None,
            end: End::Open,
            after: None,
            unread: Duration::ZERO,
            clients: 1,
            needs_service: false,
        }
    }

    fn read(&mut self, word: &str, rest: &str, words: &dyn Fn(&str) -> String) -> Option<()> {
        match word {
            "why" => rest.clone_into(&mut self.why),
            "class" => {
                self.class = match rest {
                    "MUST" => Class::Must,
                    "SHOULD" => Class::Should,
                    "OURS" => Class::Ours,
                    _ => return None,
                }
            }
            "send" => self.steps.push(Step::Send(bytes(rest, words)?)),
            "times" => {
                let (count, text) = rest.split_once(' ')?;
                self.steps.push(Step::Send(bytes(text, words)?.repeat(count.parse().ok()?)));
            }
            "drip" => {
                let (pause, text) = rest.split_once(' ')?;
                for byte in bytes(text, words)? {
                    self.steps.extend([Step::Send(vec![byte]), Step::Wait(millis(pause)?)]);
                }
            }
            "wait" => self.steps.push(Step::Wait(millis(rest)?)),
            "listen" => self.steps.push(Step::Listen),
            "shut" => self.steps.push(Step::Shut),
            "expect" => self.expect = answers_of(rest)?,
            "others" => {
                self.others = Some(rest.split(" or ").map(answers_of).collect::<Option<_>>()?);
            }
            "header" => self.headers.push(field(rest, words)?),
            "without" => self.without.push(field(rest, words)?),
            "absent" => self.absent.push(rest.to_ascii_lowercase()),
            "body" => self.bodies.push(rest.to_owned()),
            "code" => self.code = Some(rest.to_owned()),
            "end" => {
                self.end = match rest {
                    "open" => End::Open,
                    "closed" => End::Closed,
                    "quiet" => End::Quiet,
                    "either" => End::Either,
                    _ => return None,
                }
            }
            "after" => self.after = Some(millis(rest)?),
            "unread" => self.unread = millis(rest)?,
            "sockets" => self.needs_service = true,
            "clients" => self.clients = rest.parse().ok()?,
            _ => return None,
        }
        Some(())
    }

    /// The sequences of answers that are right. Where the connection stays open, the probe's answer is the last of the first
    /// sequence; another server may answer in another way, and is not held to that end then.
    pub fn accepted(&self, is_ours: bool) -> Vec<Vec<Expected>> {
        const PROBED: Expected = Expected { status: 200, is_head: false };
        let others = self.others.as_ref().filter(|_| !is_ours);
        let mut accepted = others.cloned().unwrap_or_else(|| vec![self.expect.clone()]);
        if self.end == End::Open {
            let probed = accepted.iter().map(|answers| [answers.as_slice(), &[PROBED]].concat());
            let probed: Vec<_> = probed.collect();
            accepted = [probed, accepted.split_off(1)].concat();
        }
        accepted
    }

    /// Whether all answers that are waited for are there, before anything is asked further.
    pub fn is_answered(&self, said: &[u8], is_ours: bool) -> bool {
        let others = self.others.as_ref().filter(|_| !is_ours);
        let accepted = others.cloned().unwrap_or_else(|| vec![self.expect.clone()]);
        let is_there = |expected: &Vec<Expected>| {
            let are_enough = |(found, _): (Vec<Answer>, usize)| is_ours && found.len() >= expected.len();
            is_it(said, expected) || answers(said, expected).is_ok_and(are_enough)
        };
        accepted.iter().any(|expected| !expected.is_empty() && is_there(expected))
    }

    /// Whether another server has answered in a way that leaves the end to it.
    pub fn is_left_to_it(&self, said: &[u8]) -> bool {
        let others = self.others.iter().flatten().skip(1);
        others.into_iter().any(|expected| is_it(said, expected) && !expected.is_empty())
    }
}

/// Whether these are exactly the answers that are there.
fn is_it(said: &[u8], expected: &[Expected]) -> bool {
    let statuses = expected.iter().map(|it| it.status);
    let found = answers(said, expected);
    found.is_ok_and(|(found, rest)| rest == 0 && found.iter().map(|it| it.status).eq(statuses))
}

/// A header's name, and a part of its value.
fn field(text: &str, words: &dyn Fn(&str) -> String) -> Option<(String, String)> {
    let (name, value) = text.split_once(':').unwrap_or((text, ""));
    let value = String::from_utf8(bytes(value.trim(), words)?).ok()?;
    Some((name.to_ascii_lowercase(), value))
}

fn millis(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_millis)
}

/// `200`, `200/head`, `200*3`, or `none`.
fn answers_of(text: &str) -> Option<Vec<Expected>> {
    let mut found = Vec::new();
    for word in text.split(' ').filter(|word| *word != "none") {
        let (word, count) = word.split_once('*').unwrap_or((word, "1"));
        let status = word.trim_end_matches("/head").parse().ok()?;
        let expected = Expected { status, is_head: word.ends_with("/head") };
        found.extend(std::iter::repeat_n(expected, count.parse().ok()?));
    }
    Some(found)
}

/// The bytes that a text stands for: `\r`, `\n`, `\t`, `\s`, `\0`, `\\`, `\xHH`, `$word`.
fn bytes(text: &str, words: &dyn Fn(&str) -> String) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some(char) = rest.chars().next() {
        rest = &rest[char.len_utf8()..];
        match char {
            '\\' => {
                let escape = *rest.as_bytes().first()?;
                rest = rest.get(1..)?;
                out.push(match escape {
                    b'r' => b'\r',
                    b'n' => b'\n',
                    b't' => b'\t',
                    b's' => b' ',
                    b'0' => 0,
                    b'\\' => b'\\',
                    b'x' => {
                        let byte = u8::from_str_radix(rest.get(..2)?, 16).ok()?;
                        rest = rest.get(2..)?;
                        byte
                    }
                    _ => return None,
                });
            }
            '$' => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
                out.extend_from_slice(words(&rest[..end]).as_bytes());
                rest = &rest[end..];
            }
            other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Some(out)
}

/// One answer as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// The whole answers at the start of `said`, and how many bytes follow them. `expected` says which have no content.
pub fn answers(said: &[u8], expected: &[Expected]) -> Result<(Vec<Answer>, usize), String> {
    let (mut found, mut rest) = (Vec::new(), said);
    while let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default();
        let status = line.strip_prefix("HTTP/1.").and_then(|line| line.get(2..5)?.parse().ok());
        let status: u16 = status.ok_or_else(|| format!("{line:?} is no status line"))?;
        let pairs = lines.map(|line| line.split_once(':').ok_or_else(|| format!("{line:?} is no header")));
        let pairs =
            pairs.map(|pair| pair.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().into())));
        let mut answer = Answer { status, headers: pairs.collect::<Result<_, _>>()?, body: Vec::new() };
        let is_head = expected.get(found.len()).is_some_and(|expected| expected.is_head);
        let after = &rest[end + 4..];
        let used = if is_head || status < 200 || matches!(status, 204 | 304) {
            Some(0)
        } else if answer.header("transfer-encoding").is_some() {
            chunks(after, &mut answer.body)?
        } else if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().map_err(|_| format!("{length:?} is no length"))?;
            after.get(..length).map(|body| {
                answer.body = body.to_vec();
                length
            })
        } else {
            // It ends with the connection.
            answer.body = after.to_vec();
            Some(after.len())
        };
        let Some(used) = used else { break };
        found.push(answer);
        rest = &after[used..];
    }
    if found.len() < expected.len() || rest.is_empty() || rest.starts_with(b"HTTP/1.") {
        return Ok((found, rest.len()));
    }
    Err(format!("behind the answers stands {:?}", rest[..rest.len().min(60)].escape_ascii().to_string()))
}

/// The length of a whole chunked body, whose data is added; `None` while it is not whole.
fn chunks(bytes: &[u8], body: &mut Vec<u8>) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
        let size =
            std::str::from_utf8(&rest[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.ok_or("an answer's chunk has no size")?;
        let Some(chunk) = rest.get(end + 2..end + 2 + size + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err("an answer's chunk does not end with CR LF".into());
        }
        body.extend_from_slice(&chunk[..size]);
        at += end + 2 + size + 2;
        if size == 0 {
            return Ok(Some(at));
        }
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What came of a case.
#[derive(Clone, Debug, Default)]
pub struct Talk {
    pub said: Vec<u8>,
    /// When the first byte came, and the end of the connection.
    pub first: Option<Duration>,
    pub closed: Option<Duration>,
}

/// How exactly a server keeps times.
#[derive(Clone, Copy, Debug)]
pub struct Slack {
    pub early: Duration,
    pub late: Duration,
}

/// Whether the answers are those of the case; if not, why. Of others only statuses and the end count.
pub fn judge(case: &Case, talk: &Talk, is_ours: bool, slack: Slack) -> Result<(), String> {
    let accepted = case.accepted(is_ours);
    let Some(expected) = accepted.iter().find(|expected| is_it(&talk.said, expected)) else {
        let (found, rest) = answers(&talk.said, &accepted[0])?;
        let statuses: Vec<u16> = found.iter().map(|answer| answer.status).collect();
        let closed = if talk.closed.is_some() { "closed" } else { "not closed" };
        return Err(format!("got {}, {rest} bytes more, {closed}", shown(&statuses)));
    };
    if !is_ours && case.is_left_to_it(&talk.said) {
        return Ok(());
    }
    let is_closed = talk.closed.is_some();
    match case.end {
        End::Open | End::Closed if !is_closed => return Err("the connection is not closed".into()),
        End::Quiet if is_closed => return Err("the connection is closed".into()),
        End::Open | End::Closed | End::Quiet | End::Either => {}
    }
    if !is_ours {
        return Ok(());
    }
    if let Some(after) = case.after {
        let at = talk.first.or(talk.closed).unwrap_or_default();
        if at + slack.early < after || at > after + slack.late {
            return Err(format!("it came after {at:?}, not {after:?}"));
        }
    }
    let (found, _) = answers(&talk.said, expected)?;
    for answer in found.iter().filter(|answer| answer.status >= 200) {
        if answer.header("cache-control") != Some("no-store") || answer.header("traceparent").is_none() {
            return Err("an answer lacks cache-control or traceparent".into());
        }
    }
    let last = found.len() - usize::from(case.end == End::Open);
    let Some(answer) = last.checked_sub(1).and_then(|last| found.get(last)) else { return Ok(()) };
    look_at(case, answer)
}

/// The headers and the body of a case's last answer.
fn look_at(case: &Case, answer: &Answer) -> Result<(), String> {
    for (name, value) in &case.headers {
        let found = answer.header(name).ok_or_else(|| format!("there is no {name}"))?;
        if !found.contains(value.as_str()) {
            return Err(format!("{name} is {found:?}, without {value:?}"));
        }
    }
    for (name, part) in &case.without {
        if let Some(value) = answer.header(name).filter(|value| value.contains(part.as_str())) {
            return Err(format!("{name} is {value:?}, with {part:?}"));
        }
    }
    for name in &case.absent {
        if let Some(value) = answer.header(name) {
            return Err(format!("there is {name}: {value}"));
        }
    }
    let body = String::from_utf8_lossy(&answer.body);
    let code = case.code.as_ref().map(|code| format!(r#""code":"{code}""#));
    match case.bodies.iter().chain(&code).find(|part| !body.contains(part.as_str())) {
        Some(part) => Err(format!("the body has no {part:?}: {:.200}", body)),
        None => Ok(()),
    }
}

fn shown(statuses: &[u16]) -> String {
    if statuses.is_empty() {
        return "no answer".into();
    }
    let mut out: Vec<String> = Vec::new();
    for same in statuses.chunk_by(|one, other| one == other) {
        out.push(if same.len() == 1 { same[0].to_string() } else { format!("{}*{}", same[0], same.len()) });
    }
    out.join(" ")
}

//! Tokens and the files that name them, for services that ask for one.

#![allow(dead_code, reason = "each test that includes this file uses its own part of it")]

use std::path::PathBuf;

use super::program::{Folder, cofferdam, command, run};
use super::service::{Answer, Service};

/// A token and its line of the token file.
pub struct Token {
    pub text: String,
    pub line: String,
}

impl Token {
    /// As `cofferdam token` makes it.
    pub fn new(name: &str, scopes: &str) -> Token {
        Token::of(&[name, "--scopes", scopes])
    }

    pub fn of(arguments: &[&str]) -> Token {
        let output = run(&mut command(&cofferdam(), [&["token"], arguments].concat()), b"");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        let [text, line] = text.lines().collect::<Vec<_>>()[..] else { panic!("two lines, not {text:?}") };
        Token { text: text.into(), line: line.into() }
    }

    pub fn header(&self) -> String {
        format!("Authorization: Bearer {}", self.text)
    }

    pub fn ask(&self, service: &Service, method: &str, target: &str, headers: &[&str], body: &str) -> Answer {
        let own = self.header();
        let headers: Vec<&str> = headers.iter().copied().chain([&*own]).collect();
        service.request(method, target, &headers, body)
    }

    pub fn get(&self, service: &Service, target: &str) -> Answer {
        self.ask(service, "GET", target, &[], "")
    }

    /// The id of a new job that nobody waits for.
    pub fn submit(&self, service: &Service, target: &str, headers: &[&str], body: &str) -> String {
        let headers: Vec<&str> = headers.iter().copied().chain(["Prefer: respond-async"]).collect();
        let answer = self.ask(service, "POST", target, &headers, body);
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json()["id"].as_str().expect("an id").to_owned()
    }
}

/// A token file that its owner alone may read.
pub struct TokenFile {
    pub folder: Folder,
    pub path: PathBuf,
}

impl TokenFile {
    pub fn new(lines: &[&str]) -> TokenFile {
        let folder = Folder::new();
        let path = folder.private_file("tokens", &lines.join("\n"));
        TokenFile { folder, path }
    }

    /// As an editor does it: a new file in the place of the old one.
    pub fn write(&self, lines: &[&str]) {
        let new = self.folder.private_file("tokens.new", &lines.join("\n"));
        std::fs::rename(new, &self.path).expect("our own folder");
    }

    pub fn sets(&self) -> [String; 2] {
        ["web.auth.mode=bearer".into(), format!("web.auth.token_file={}", self.path.display())]
    }
}

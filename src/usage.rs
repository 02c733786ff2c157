//! What `--help` says: the list of commands, and a page for each, all from `usage.txt`.

/// The options of every command that has a configuration.
const CONFIG: &str = "  --config FILE          a JSON config file; default: $COFFERDAM_CONFIG, else none: every key has a default
  --set PATH=VALUE       one value, such as web.bind=127.0.0.1:0; may be repeated, later ones win.
                         Each is an environment variable, too: COFFERDAM_WEB__BIND=127.0.0.1:0";

/// The options of every command that asks a running service.
const CONSOLE: &str =
    "  --url URL              where it serves; default: $COFFERDAM_URL, else http://127.0.0.1:8080
  --token-file FILE      a file that holds a token; default: $COFFERDAM_TOKEN_FILE, else none
  --json                 JSON for scripts, where several things are shown a line each";

/// Name, purpose and page of each command.
fn pages() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let all = include_str!("usage.txt").trim_start_matches("== ").split("\n== ");
    all.filter_map(|text| {
        let (head, page) = text.split_once('\n')?;
        let (name, does) = head.split_once(": ")?;
        Some((name, does, page.trim_end()))
    })
}

/// All commands.
pub fn overview() -> String {
    let rows: String = pages().map(|(name, does, _)| format!("  {name:9} {does}\n")).collect();
    format!(
        "usage: cofferdam COMMAND [OPTIONS]\n\n{rows}\n`cofferdam COMMAND --help` has its options, an example and \
         its exit codes.\n  --help, --version\n"
    )
}

/// A command's own page.
pub fn page(command: &str) -> Option<String> {
    let (name, does, page) = pages().find(|(name, ..)| *name == command)?;
    let page = page.replace("{config}", CONFIG).replace("{console}", CONSOLE);
    Some(format!("{name}: {does}.\n\n{page}\n"))
}
